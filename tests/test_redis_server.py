"""The Redis server: away, hung, a replica suddenly, and with a clock of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from registry import StoreError
from registry.errors import ConflictError
from registry.lease import renewal_window
from registry.model import (
    DEFAULT_NAMESPACE,
    Lease,
)
from registry.stores.redis import RedisStore, read_address, scripts
from registry.stores.redis import server as redis_server
from registry.stores.redis import store as redis_store
from registry.stores.redis.server import Call, Server
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer
from tests.redis_suite import (
    Machines,
    alone_with_many,
    is_following,
    is_taken,
    lease_from,
    listed,
    mono,
)
from tests.servers import HANG_SECS, wait_until

NS = DEFAULT_NAMESPACE
_DAY_MS = 86_400_000
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


def test_a_password_is_shown_nowhere() -> None:
    address = read_address("redis://user:secret@127.0.0.1:1/0")
    assert "secret" not in address.shown
    assert address.prefix == "eureka"


def test_while_redis_is_away_reads_and_renewals_go_on(fragile: Machines) -> None:
    """And writes fail, nobody is evicted, and afterwards every lease has its whole duration."""
    store = fragile.open("here")
    key = sample_instance().key
    store.resume(0)
    store.commit(NS, put(sample_instance(), lease=Lease(1_000, 90_000, 5)))
    fragile.server.kill()
    assert listed(store) == {"web:1"}
    assert store.renew(NS, key, Lease(2_000, 90_000, 6), None)
    for call in (
        lambda: store.commit(NS, put(sample_instance(instance_id="web:2"))),
        lambda: store.resume(4_000),
        lambda: store.acquire("evictor", "a", 4_000, 100),
        store.probe,
    ):
        with pytest.raises(StoreError, match="Redis at redis://127"):
            call()
    assert store.running_ms(60_000) == store.running_ms(2_500)
    fragile.server.start()
    store.resume(100_000)
    # Or from a later instant, where the store itself was the first to notice.
    lease = store.lease(NS, key)
    assert lease is not None
    assert lease.deadline_mono_ms >= 190_000
    assert lease._replace(deadline_mono_ms=0) == Lease(0, 90_000, 6)


def test_a_machine_that_starts_while_redis_is_away_serves_its_copy(fragile: Machines) -> None:
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    fragile.close(store)
    fragile.server.kill()
    assert listed(fragile.open("here")) == {"web:1"}
    with pytest.raises(StoreError, match="Redis at redis://127"):
        fragile.open("another")


def test_a_write_that_met_a_paused_redis_is_written_once(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fragile.open("here")
    before = store.commit(NS, put(sample_instance()))
    run, timed_out = redis_server._run, list[None]()

    def noting(connection: Any, tag: str, script: scripts.Script, arguments: Any) -> Any:
        try:
            return run(connection, tag, script, arguments)
        except redis.TimeoutError:
            if script is scripts.COMMIT:
                timed_out.append(None)
            raise

    monkeypatch.setattr(redis_server, "_run", noting)
    monkeypatch.setattr(redis_server, "_TRIED_SECS", HANG_SECS)
    fragile.server.pause()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.commit, NS, put(sample_instance(instance_id="web:2")))
        wait_until(lambda: timed_out, "it waited for its answer in vain")
        fragile.server.go_on()
        assert writing.result(timeout=HANG_SECS) == before + 1
    assert listed(store) == {"web:1", "web:2"}


def test_a_redis_that_hangs_is_waited_for_once(fragile: Machines) -> None:
    """Or else all threads would soon wait for it, and nobody answered the readers."""
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    fragile.server.pause()
    late = put(sample_instance(instance_id="web:2"))
    with pytest.raises(StoreError, match="Timeout"):
        store.commit(NS, late)
    with pytest.raises(StoreError, match="it hangs"):
        store.commit(NS, late)
    assert listed(store) == {"web:1"}
    fragile.server.go_on()
    wait_until(lambda: is_taken(store, put(sample_instance(instance_id="web:3"))))


def test_a_write_to_what_became_a_replica_is_tried_in_one_window(
    fragile: Machines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """First it refuses the write, and then to begin a life, in that of its master."""
    store, _ = alone_with_many(fragile, 1)
    master = RedisServer(tmp_path / "master")
    request.addfinalizer(master.stop)
    others = Machines(master, tmp_path / "others")
    others.prefix = fragile.prefix
    others.open("there").commit(NS, put(sample_instance(instance_id="web:9")))
    others.close()
    elapsed, followed = [0.0], list[float]()

    def sleep(secs: float) -> None:
        elapsed[0] += secs
        if elapsed[0] > 2.9 and not followed:
            followed.append(elapsed[0])
            client.replicaof("127.0.0.1", master.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")

    told = SimpleNamespace(monotonic=lambda: elapsed[0], sleep=sleep)
    monkeypatch.setattr(redis_server, "time", told)
    monkeypatch.setattr(redis_store, "time", told)
    with fragile.server.client() as client:
        client.replicaof("127.0.0.1", 1)  # where nobody is
        with pytest.raises(StoreError, match="read only replica"):
            store.commit(NS, put(sample_instance()))
    assert followed
    assert 3.0 < elapsed[0] < 3.6


def test_a_connection_that_another_thread_closed_is_one_that_failed(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where another server took over; the write is asked for again."""
    store, read = machines.open("here"), redis.connection.Connection.read_response
    closed: list[None] = []

    def read_response(connection: Any, *arguments: Any, **options: Any) -> Any:
        if not closed:
            closed.append(None)
            raise ValueError("I/O operation on closed file.")
        return read(connection, *arguments, **options)

    monkeypatch.setattr(redis.connection.Connection, "read_response", read_response)
    wait_until(lambda: closed)
    closed.clear()
    store.commit(NS, put(sample_instance()))
    assert listed(store) == {"web:1"}


def test_what_is_asked_together_is_bounded() -> None:
    """In calls, in bytes, and in what is answered; one that is longer goes alone."""

    def portions(*calls: Call) -> list[int]:
        return [len(each) for each in redis_server._portions(range(len(calls)), calls)]

    small = Call(scripts.TELL, NS, (b"",))
    long = small._replace(arguments=(b"x" * 700_000,))
    much = small._replace(most=4_000)
    assert portions() == []
    assert portions(*[small] * 250) == [100, 100, 50]
    assert portions(long, small, long, long._replace(arguments=(b"x" * 9_000_000,)), small) == [
        2,
        1,
        1,
        1,
    ]
    assert portions(much, small, much, much._replace(most=9_000)) == [2, 1, 1]


# Its clock.


def test_the_clocks_offset_moves_only_where_a_round_trip_proves_it_wrong(
    shared_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_at = Server(read_address(shared_redis.url("clock", tmp_path)))
    reads = iter([1_000, 1_010, 2_000, 2_030, 3_000, 3_002, 4_000, 4_010])
    times = iter([50_005, 51_015, 52_020, 40_000])

    def call(*_: str, waits: bool) -> tuple[int, int]:
        seconds, milliseconds = divmod(next(times), 1000)
        return seconds, milliseconds * 1000

    monkeypatch.setattr(redis_at, "_clock", SimpleNamespace(mono_ms=lambda: next(reads)))
    monkeypatch.setattr(redis_at, "call", call)
    found = []
    for _ in range(4):
        redis_at.look_at_clock()
        found.append(redis_at.time_of(0))
    assert found == [49_000, 49_000, 49_017, 36_001]
    assert redis_at.mono_of(redis_at.time_of(5)) == 5


def _set_back(store: RedisStore) -> None:
    """Have all leases in Redis be of before its clock was set back by a day."""
    name = store._server.name("lease", NS)
    told = store._server.call("HGETALL", name, namespace=NS)
    for each, lease in zip(told[::2], told[1::2], strict=True):
        deadline, rest = lease.split(b" ", 1)
        later = b"%d %b" % (int(deadline) + _DAY_MS, rest)
        store._server.call("HSET", name, each, later, namespace=NS)


def test_a_redis_whose_clock_is_set_back_keeps_no_dead_instance(machines: Machines) -> None:
    """It has its lease once more, by the new time, and is evicted then."""
    store = machines.open("here")
    wait_until(lambda: store._teller.told_until)
    instance = sample_instance()
    lease = lease_from(mono() - 500, duration_ms=400)
    revision = store.commit(NS, put(instance, lease=lease))
    _set_back(store)
    removal = put(instance, expected=revision, remove=True, lease=None, evicted=True)
    eviction = removal._replace(expected_deadline_mono_ms=lease.deadline_mono_ms)
    with pytest.raises(ConflictError):
        store.commit(NS, eviction)

    def is_evicted() -> bool:
        return store.commit_all(NS, [eviction]) != [None]

    wait_until(is_evicted)
    assert listed(store) == set()


def test_a_redis_whose_clock_is_set_back_takes_renewals(machines: Machines) -> None:
    """And for a machine that comes later no lease is longer than it is."""
    here = machines.open("here")
    instance = sample_instance()
    here.commit(NS, put(instance, lease=lease_from(mono())))
    wait_until(lambda: is_following(here))
    _set_back(here)
    there = machines.open("there")
    found = there.lease(NS, instance.key)
    assert found is not None
    assert found.deadline_mono_ms <= mono() + 90_000
    renewed = lease_from(mono() + 100)
    assert here.renew(NS, instance.key, renewed, renewal_window(mono()))
    name = here._server.name("lease", NS)

    def deadline() -> int:
        (told,) = here._server.call("HVALS", name, namespace=NS)
        return int(told.split(b" ")[0])

    wait_until(lambda: deadline() < here._server.now() + _DAY_MS // 2)
    assert deadline() == here._server.time_of(renewed.deadline_mono_ms)


def test_what_was_evicted_before_redis_clock_was_set_back_counts_no_more(
    machines: Machines,
) -> None:
    store = machines.open("here")
    instance = sample_instance()
    for ahead, count in ((_DAY_MS, 0), (0, 1)):
        revision = store.commit(NS, put(instance))
        gone = put(instance, expected=revision, remove=True, lease=None, evicted=True)
        store.commit(NS, gone._replace(at_mono_ms=mono() + ahead))
        assert store.evictions(NS, mono() - 60_000) == count
