"""The store on Redis against the contract, and what it promises beyond it."""

from __future__ import annotations

import operator
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from registry import Registry, RegistrySettings, StoreError, open_store
from registry.errors import ConflictError, LockLostError
from registry.evictor import Evictor
from registry.lease import SystemClock, renewal_window
from registry.model import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit, Fence, Store
from registry.stores.lmdb import LmdbStore
from registry.stores.redis import RedisStore, read_address, scripts
from registry.stores.redis import records as redis_records
from registry.stores.redis import server as redis_server
from registry.stores.redis import store as redis_store
from registry.stores.redis.following import Follower
from registry.stores.redis.renewals import Teller
from registry.stores.redis.server import AnotherLifeError, AwaitedError, Call, Server
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer, another_prefix
from tests.redis_suite import Machines, RedisSuite, lease_from, listed, mono
from tests.servers import HANG_SECS, counted, wait_until
from tests.test_duties import Tried, Turns, logged_faults

NS = DEFAULT_NAMESPACE
by_revision = operator.attrgetter("revision")
pytestmark = pytest.mark.programs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No thread of a store met what it had not foreseen."""
    yield
    assert [each for each in caplog.get_records("call") if each.exc_info] == []


class TestRedisStore(RedisSuite):
    """The whole contract on one server."""


# Several machines: each has a folder of its own, and all the same prefix.


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.stop()


@pytest.fixture
def machines(server: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(server, tmp_path)
    yield machines
    machines.close()


@pytest.fixture
def fragile(own: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    """Machines on a server that the test may kill."""
    machines = Machines(own, tmp_path)
    yield machines
    own.go_on()
    machines.close()


def test_what_one_machine_writes_all_others_follow(machines: Machines) -> None:
    """With lease, override and what was removed, in the same revisions."""
    here, there = machines.open("here"), machines.open("there")
    one, two = sample_instance(), sample_instance(instance_id="web:2")
    lease = lease_from(mono())
    first = here.commit(
        NS, put(one, lease=lease, override=OverrideChange("web:1", InstanceStatus.DOWN))
    )
    gone = here.commit(NS, put(two, lease=lease))
    gone = here.commit(NS, put(two, expected=gone, remove=True, lease=None, evicted=True))
    wait_until(lambda: there.revision(NS) == gone)
    ours, theirs = here.load(NS), there.load(NS)
    assert theirs.instances == ours.instances == (one._replace(revision=first),)
    assert theirs.overrides == {"web:1": InstanceStatus.DOWN}
    assert [change._replace(at_running_ms=0) for change in theirs.changes] == [
        change._replace(at_running_ms=0) for change in ours.changes
    ]
    assert there.namespaces() == {NS: 1}
    found = there.lease(NS, one.key)
    assert found is not None
    assert abs(found.deadline_mono_ms - lease.deadline_mono_ms) <= 1_000
    assert found._replace(deadline_mono_ms=0) == lease._replace(deadline_mono_ms=0)


def test_what_others_wrote_before_comes_with_the_answer_to_an_own_write(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an own change is never seen without those before it; without another call."""
    here, there = machines.open("here"), machines.open("there")
    wait_until(lambda: is_following(there))
    monkeypatch.setattr(there._follower, "_hear", lambda data: None)
    monkeypatch.setattr(there._follower, "catch_up", lambda namespace: None)
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    here.commit(NS, put(sample_instance(instance_id="web:2")))
    revision = there.commit(NS, put(sample_instance(instance_id="web:3")))
    assert there.revision(NS) == revision
    assert listed(there) == {"web:1", "web:2", "web:3"}


def test_of_two_machines_that_decide_at_once_one_loses(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    assert here.commit(NS, put(sample_instance()))
    with pytest.raises(ConflictError):
        there.commit(NS, put(sample_instance(ip_addr="10.9.9.9")))
    wait_until(lambda: listed(there) == {"web:1"})
    assert there.load(NS).instances[0].ip_addr == "10.0.0.1"


def test_a_lock_has_one_owner_among_all_machines(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    token = here.acquire("evictor", "a", mono(), 60_000)
    assert token is not None
    assert there.acquire("evictor", "b", mono(), 60_000) is None
    here.release("evictor", "a")
    later = there.acquire("evictor", "b", mono(), 60_000)
    assert later is not None
    with pytest.raises(LockLostError):
        here.commit(NS, put(sample_instance()), Fence("evictor", token))
    here.set_note("a", b"1")
    assert there.note("a") == b"1"


def test_renewals_are_heard_on_all_machines_and_counted(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    key = sample_instance().key
    now = mono()
    revision = here.commit(NS, put(sample_instance(), lease=lease_from(now)))
    wait_until(lambda: there.revision(NS) == revision)
    window = renewal_window(mono())
    for _ in range(3):
        assert here.renew(NS, key, lease_from(now + 5_000, by_client=now + 5_000), window)

    def is_heard() -> bool:
        found = there.lease(NS, key)
        return found is not None and found.last_renewal_ms == now + 5_000

    wait_until(is_heard)
    found = there.lease(NS, key)
    assert found is not None
    assert abs(found.deadline_mono_ms - (now + 95_000)) <= 1_000
    assert [each for each, _ in there.renewed_by_clients(NS, 0)] == [key]
    windows = range(window - 1, renewal_window(mono()) + 1)
    wait_until(lambda: sum(there.renewals(NS, each) for each in windows) == 3)
    assert here.renewals(NS, window) == 3
    assert here.revision(NS) == there.revision(NS) == revision


def test_nobody_is_evicted_before_every_machine_has_told_its_renewals(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where one was renewed elsewhere, nor where that may be."""
    here, there = machines.open("here"), machines.open("there")
    instance = sample_instance()
    # Both have told that they are there.
    wait_until(lambda: here._teller.told_until and there._teller.told_until)
    monkeypatch.setattr(there._teller, "tell", lambda: None)
    until = there._teller.told_until
    monkeypatch.setattr(here._server, "now", lambda: until + 3_000)
    lease = lease_from(mono() - 1_000, duration_ms=10_000)._replace(
        deadline_mono_ms=here._server.mono_of(until + 2_000)
    )
    revision = here.commit(NS, put(instance, lease=lease))
    removal = put(instance, expected=revision, remove=True, lease=None, evicted=True)
    eviction = removal._replace(expected_deadline_mono_ms=lease.deadline_mono_ms)
    with pytest.raises(ConflictError):
        here.commit(NS, eviction)
    monkeypatch.undo()

    def is_evicted() -> bool:
        # As the evictor does: what it commits is of the lease as its copy has it now.
        found = here.lease(NS, instance.key)
        assert found is not None
        try:
            here.commit(NS, removal._replace(expected_deadline_mono_ms=found.deadline_mono_ms))
        except ConflictError:
            return False
        return True

    wait_until(is_evicted)
    assert listed(here) == set()


_DAY_MS = 86_400_000


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


def test_a_new_machine_gets_everything_page_by_page(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_records, "_PAGE", 5)
    monkeypatch.setattr(redis_records, "_FETCHED_AT_ONCE", 7)
    here = machines.open("here")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(600)]
    revisions = here.commit_all(NS, [put(each) for each in instances])
    removed = put(instances[0], expected=revisions[0], remove=True, lease=None)
    here.commit(NS, removed)
    # An override that changed alone, before its instance was listed.
    down = OverrideChange("api:1", InstanceStatus.DOWN)
    api = sample_instance("API", "api:1")
    here.commit(NS, Commit(api.key, Revision(0), None, 100, None, override=down))
    here.commit(NS, put(api, expected_override=InstanceStatus.DOWN))
    before = mono()
    there = machines.open("there")
    ours, theirs = here.load(NS), there.load(NS)
    assert sorted(theirs.instances, key=by_revision) == sorted(ours.instances, key=by_revision)
    assert [change._replace(at_running_ms=0) for change in theirs.changes] == [
        change._replace(at_running_ms=0) for change in ours.changes
    ]
    assert theirs.overrides == ours.overrides
    assert theirs.revision == ours.revision
    # What was renewed meanwhile it cannot know.
    due = there.due(NS, before)
    assert (due.leases, due.expired) == (600, [])


@pytest.mark.parametrize("meanwhile", ["removed", "changed"])
def test_what_changes_while_a_new_machine_gets_everything_is_told_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Between two portions of the log; the first told of the same instance."""
    monkeypatch.setattr(redis_records, "_FETCHED_AT_ONCE", 5)
    here = machines.open("here")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(12)]
    first = here.commit_all(NS, [put(each) for each in instances])[0]
    fetch = redis_records.Records.fetch

    def fetched(records: Any, life: Any, namespace: Any, after: Revision, **options: Any) -> Any:
        if first < after < first + 12 and here.revision(NS) == first + 11:
            change = put(instances[0], expected=first)
            if meanwhile == "removed":
                change = change._replace(remove=True, lease=None)
            here.commit(NS, change)
        return fetch(records, life, namespace, after, **options)

    monkeypatch.setattr(redis_records.Records, "fetch", fetched)
    there = machines.open("there")
    assert here.revision(NS) == first + 12
    assert listed(there) == listed(here)
    assert [(change.revision, change.removed) for change in there.load(NS).changes] == [
        (change.revision, change.removed) for change in here.load(NS).changes
    ]


def test_who_missed_what_was_trimmed_gets_everything(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    here.commit(NS, put(sample_instance(), at_mono_ms=100))
    wait_until(lambda: listed(there) == {"web:1"})
    machines.close(there)
    late = [put(sample_instance(instance_id=f"web:{n}"), at_mono_ms=200) for n in range(2, 9)]
    here.commit_all(NS, late)
    here.trim(NS, 300)
    known = here.revision(NS)
    there = machines.open("there")
    assert there.load(NS).complete_after == known
    assert listed(there) == listed(here)
    assert there.revision(NS) == known


def test_all_machines_forget_what_one_trims(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    revision = here.commit(NS, put(sample_instance(), at_mono_ms=100))
    wait_until(lambda: there.revision(NS) == revision)
    assert here.trim(NS, 300) == 1
    wait_until(lambda: there.load(NS).changes == ())
    assert there.changes(NS, Revision(revision - 1)) is None
    assert there.changes(NS, revision) == []


# Following.


def is_following(store: RedisStore) -> bool:
    """Whether it hears of each change, and is the first of its machine to bring it in."""
    return store._follower.is_first and store._follower._subscription is not None


def followed_by_messages(store: RedisStore, patch: pytest.MonkeyPatch) -> list[None]:
    """From now on it hears of changes by messages alone; how often it fetched any."""
    wait_until(lambda: is_following(store))
    patch.setattr(store._teller, "tell", lambda: None)
    return counted(patch, store._follower, "catch_up")


def test_a_change_comes_with_the_message_that_tells_of_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is; several in one group, and each after the other."""
    here, there = machines.open("here"), machines.open("there")
    fetched = followed_by_messages(there, monkeypatch)
    lease = lease_from(mono())
    instances = [sample_instance(instance_id=f"wéb {n}") for n in range(3)]
    down = OverrideChange("wéb 0", InstanceStatus.DOWN)
    first, second, _ = here.commit_all(
        NS, [put(instances[0], lease=lease, override=down), *(put(i) for i in instances[1:])]
    )
    assert first is not None
    assert second is not None
    up = OverrideChange("wéb 0", None)
    without = Commit(instances[0].key, first, InstanceStatus.DOWN, 100, None, override=up)
    unlisted = Commit(
        sample_instance("API", "api:1").key, Revision(0), None, 100, None, override=down
    )
    gone = put(instances[1], expected=second, remove=True, lease=None, evicted=True)
    for commit in (without, unlisted._replace(override=down._replace(id="api:1")), gone):
        here.commit(NS, commit)
    here.commit(NS, put(instances[0]._replace(ip_addr="10.9.9.9"), expected=first, lease=None))
    here.set_expected_clients(NS, 5)
    last = here.commit(NS, put(sample_instance(instance_id="late"), expected_clients_step=2))
    wait_until(lambda: there.revision(NS) == last)
    ours, theirs = here.load(NS), there.load(NS)
    assert [change._replace(at_running_ms=0) for change in theirs.changes] == [
        change._replace(at_running_ms=0) for change in ours.changes
    ]
    assert sorted(theirs.instances) == sorted(ours.instances)
    assert theirs.overrides == {"api:1": InstanceStatus.DOWN}
    assert there.expected_clients(NS) == 7
    found = there.lease(NS, instances[0].key)
    assert found is not None
    assert found._replace(deadline_mono_ms=0) == lease._replace(deadline_mono_ms=0)
    assert fetched == []


def test_what_no_message_brought_is_fetched(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was missed, and one whose changes are too long for a message."""
    here, there = machines.open("here"), machines.open("there")
    fetched = followed_by_messages(there, monkeypatch)
    hear, missed = there._follower._hear, []

    def miss_one(data: bytes) -> None:
        if missed:
            hear(data)
        missed.append(data)

    monkeypatch.setattr(there._follower, "_hear", miss_one)
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    wait_until(lambda: missed)
    last = here.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == last)
    assert listed(there) == {"web:1", "web:2"}
    assert len(fetched) == 1
    long = [sample_instance(instance_id=f"long:{n}", metadata={"a": "b" * 999}) for n in range(99)]
    here.commit_all(NS, [put(each) for each in long])
    wait_until(lambda: listed(there) == listed(here))
    assert len(listed(there)) == 101
    assert len(fetched) >= 2


@pytest.mark.parametrize("portion", [1, 7, 1 << 20])
def test_messages_are_read_in_whatever_portions_they_come(portion: int) -> None:
    head = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$"
    bodies = [b"", b"a\r\nb", b"*3\r\n" * 99]
    stream = b"".join(head + b"%d\r\n%s\r\n" % (len(each), each) for each in bodies)
    found, received = [], b""
    for start in range(0, len(stream), portion):
        told, received = redis_server.published(head, received + stream[start : start + portion])
        found += told
    assert (found, received) == (bodies, b"")
    with pytest.raises(redis.ConnectionError, match="no message"):
        redis_server.published(head, b"*3\r\n$9\r\nsubscribe")


def test_nonsense_on_the_channel_holds_up_nobody(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may publish may write anything there: what follows it is followed as before."""
    here, there = machines.open("here"), machines.open("there")
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    wait_until(lambda: there.revision(NS) == here.revision(NS))
    followed_by_messages(there, monkeypatch)
    subscriptions = there._follower._subscription
    revision = here.revision(NS)
    state = [b"WEB\0forged", b"%d" % (revision + 9), b"1 4 nonsense", b"", b"", b""]
    lengths = b" ".join(b"%d" % len(each) for each in state)
    unopened = b"ghost 0 %d n \n" % (revision + 9)
    for nonsense in (
        b"",
        b"nonsense",
        b"\n" * 100,
        b"x" * 5_000_000,
        b"\xff 1 2 n 5\n",
        b"default x y z 0\n",
        b"default 0 %d n  \n" % (revision + 9),
        b"default 0 %d n  -5\nabc" % (revision + 9),
        b"default 0 %d n  9999999\nabc" % (revision + 9),
        b"default 0 %s n \n" % (b"9" * 5_000),
        b"default %d %d n  %s\n%s" % (revision, revision + 9, lengths, b"".join(state)),
        b"default 0 %d n \n" % (revision + 10**15),
        b"a namespace 0 5 n \n",
        unopened,
        unopened,
    ):
        here._server.call("PUBLISH", here._server.name("moved"), nonsense)
    last = here.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == last)
    assert listed(there) == {"web:1", "web:2"}
    assert there._follower._subscription is subscriptions


def test_what_is_told_of_a_namespace_that_nobody_began_is_asked_for_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines.open("here")
    monkeypatch.setattr(store._teller, "tell", lambda: None)
    adopted = counted(monkeypatch, store._lives, "adopt")
    store._follower.catch_up(Namespace("ghost"))
    assert len(adopted) == 1


def test_a_worker_does_what_the_first_of_its_machine_leaves_undone(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may have been stopped; it also brings in what a killed writer of its own wrote."""
    here, there = machines.open("here"), machines.open("there")
    wait_until(lambda: is_following(there))
    monkeypatch.setattr(there._copy, "lead", lambda *_: False)
    wait_until(lambda: not there._follower.is_first)
    revision = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == revision)
    take, writer = there._follower.take, threading.current_thread()

    def taken_by_others(*arguments: Any) -> None:
        if threading.current_thread() is not writer:
            take(*arguments)

    monkeypatch.setattr(there._follower, "take", taken_by_others)
    revision = there.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == revision)
    assert listed(there) == {"web:1", "web:2"}


@pytest.mark.parametrize("thread", ["follower", "teller"])
def test_a_lasting_defect_of_a_thread_is_logged_once(
    machines: Machines,
    thread: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, tried = machines.open("here"), Tried()
    follower = Follower(store._server, store._copy, store._lives)
    teller = Teller(store._server, store._copy, store._lives, follower, is_away=False)
    for each in (follower, teller):
        monkeypatch.setattr(each, "_server", SimpleNamespace(listen=tried, look_at_clock=tried))
    if thread == "follower":
        follower.follow(Turns(1_000))
    else:
        teller.keep_telling(Turns(1_000))
    assert tried.count >= 1
    assert logged_faults(caplog) == 1
    caplog.clear()


# Redis away, restarted, emptied.


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


def test_after_a_power_cut_a_machine_has_what_redis_has(machines: Machines, tmp_path: Path) -> None:
    """Its copy is the last that was flushed; what was written since comes from Redis."""
    one, two = machines.open("one"), machines.open("two")
    one.commit(NS, put(sample_instance("WEB", "web:1"), lease=lease_from(mono())))
    one.flush()
    one.commit(NS, put(sample_instance("WEB", "web:2"), lease=lease_from(mono())))
    flushed = (tmp_path / "one" / "checkpoint.mdb").read_bytes()
    assert (b"web:1" in flushed, b"web:2" in flushed) == (True, False)
    machines.close(one)
    (tmp_path / "one" / "checkpoint.mdb").write_bytes(flushed)
    (tmp_path / "one" / "boot").write_text("another")
    last = two.commit(NS, put(sample_instance("WEB", "web:3"), lease=lease_from(mono())))

    again = machines.open("one")

    assert {instance.id for instance in again.load(NS).instances} == {"web:1", "web:2", "web:3"}
    assert again.revision(NS) == last
    assert {key.id for key, _ in again.due(NS, 1 << 61).expired} == {"web:1", "web:2", "web:3"}


def test_a_machine_that_starts_while_redis_is_away_serves_its_copy(fragile: Machines) -> None:
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    fragile.close(store)
    fragile.server.kill()
    assert listed(fragile.open("here")) == {"web:1"}
    with pytest.raises(StoreError, match="Redis at redis://127"):
        fragile.open("another")


@pytest.mark.parametrize("how", ["restarted", "emptied"])
def test_what_redis_lost_the_machines_give_back(fragile: Machines, how: str) -> None:
    """In another life; what is removed stays so, though another machine had not heard of it."""
    here, there = fragile.open("here"), fragile.open("there")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(4)]
    override = OverrideChange("web:0", InstanceStatus.OUT_OF_SERVICE)
    first = put(instances[0], override=override)
    revisions = here.commit_all(NS, [first, *map(put, instances[1:])])
    here.set_expected_clients(NS, 7)
    known = here.revision(NS)
    wait_until(lambda: there.revision(NS) == known)
    fragile.close(there)
    only_here = put(instances[3], expected=revisions[3], remove=True, lease=None)
    known = here.commit(NS, only_here)
    if how == "restarted":
        fragile.server.kill()
        fragile.server.start()
    else:
        with fragile.server.client() as client:
            client.flushall()
    wait_until(lambda: here.revision(NS) > known + 1_000)
    there = fragile.open("there")
    for store in (here, there, fragile.open("new")):
        wait_until(lambda store=store: store.revision(NS) == here.revision(NS))
        assert listed(store) == {"web:0", "web:1", "web:2"}
        assert store.load(NS).overrides == {"web:0": InstanceStatus.OUT_OF_SERVICE}
        assert store.changes(NS, known) is None
        assert store.expected_clients(NS) == 7
        assert store.due(NS, 0).leases == 3
        told = {c.instance.id for c in store.load(NS).changes if c.instance and not c.removed}
        assert told == listed(store)
    token = here.acquire("evictor", "a", 0, 100)
    assert token is not None
    assert token > known


@pytest.mark.parametrize(("changes_since", "at_once"), [(0, 1_000), (1, 1_000), (1, 1)])
def test_who_comes_after_the_log_of_a_life_was_trimmed_has_everything(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch, changes_since: int, at_once: int
) -> None:
    """Also between two portions of the trimming; with a machine that never had anything."""
    here, there = fragile.open("here"), fragile.open("there")
    here.commit_all(NS, [put(sample_instance(instance_id=f"web:{n}")) for n in range(4)])
    wait_until(lambda: len(listed(there)) == 4)
    fragile.close(there)
    known = here.revision(NS)
    with fragile.server.client() as client:
        client.flushall()
    wait_until(lambda: here.revision(NS) > known + 1_000)
    for number in range(changes_since):

        def is_committed(number: int = number) -> bool:
            with suppress(AwaitedError):  # who was closed is awaited for a while
                here.commit(NS, put(sample_instance(instance_id=f"new:{number}")))
                return True
            return False

        wait_until(is_committed)

    run = here._server.run

    def run_once(script: Any, *arguments: Any) -> Any:
        return run(script, *arguments) and 0

    monkeypatch.setattr("registry.stores.redis.store.TRIMMED_AT_ONCE", at_once)
    monkeypatch.setattr(here._server, "run", run_once)
    here.trim(NS, 1 << 50)
    monkeypatch.undo()

    for name in ("there", "new"):
        store = fragile.open(name)
        assert listed(store) == listed(here)
        assert len(listed(store)) == 4 + changes_since
        assert store.revision(NS) == here.revision(NS)


def test_a_listing_tells_what_was_forgotten_between_two_of_its_portions(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is missing would be taken for removed."""
    monkeypatch.setattr(redis_records, "_FIRST", 1)
    monkeypatch.setattr(redis_records, "_LISTED_AT_ONCE", 1)
    records = redis_records.Records(Server(read_address(server.url("listing", tmp_path))))
    listing = records.listing(Revision(100), NS, "node", takes_up=True)
    state = redis_records.packed([b"WEB\0web:1", b"90", b""])
    next(listing)
    listing.send([b"130", b"100", b"1", state, b"90"])
    with pytest.raises(StopIteration) as ended:
        listing.send([b"140", b"120", b"1", redis_records.packed([]), b""])
    assert ended.value.value == redis_records.Listing(
        Revision(130),
        Revision(120),
        True,
        {b"WEB\0web:1": (Revision(90), Revision(90))},
    )


@pytest.mark.parametrize("part", ["root", "namespace"])
def test_a_part_that_lost_everything_begins_another_life_for_all(
    machines: Machines, part: str
) -> None:
    """As where a server of a Cluster lost what it had, and the others did not."""
    here, there = machines.open("here"), machines.open("there")
    other = Namespace("other")
    for namespace in (NS, other):
        known = here.commit(namespace, put(sample_instance(), lease=lease_from(mono())))
        wait_until(lambda namespace=namespace, known=known: there.revision(namespace) == known)
    name = here._server.name("*", None if part == "root" else NS)
    with machines.server.client() as client:
        client.delete(*client.keys(name))
    for store in (here, there):
        for namespace in (NS, other):
            wait_until(lambda each=namespace, store=store: store.revision(each) > known + 1_000)
            assert {each.id for each in store.load(namespace).instances} == {"web:1"}
    limited = put(sample_instance(instance_id="web:2"), namespaces_at_most=2)
    assert here.commit(other, limited)
    with pytest.raises(ConflictError):
        here.commit(Namespace("third"), limited)


def test_what_a_machine_heard_of_it_does_not_tell_again(machines: Machines) -> None:
    here, there = machines.open("here"), machines.open("there")
    key, now = sample_instance().key, mono()
    revision = here.commit(NS, put(sample_instance(), lease=lease_from(now)))
    wait_until(lambda: there.revision(NS) == revision)

    def told() -> int:
        return int(here._server.call("GET", here._server.name("told", NS), namespace=NS) or 0)

    def is_heard() -> bool:
        found = there.lease(NS, key)
        return found is not None and found.last_renewal_ms == now + 5_000

    rounds = there._teller._round
    wait_until(lambda: there._teller._round > rounds + 2)
    before = told()
    assert here.renew(NS, key, lease_from(now + 5_000), None)
    wait_until(is_heard)
    rounds = there._teller._round
    wait_until(lambda: there._teller._round > rounds + 2)
    assert told() == before + 1


def test_the_tail_that_a_restarted_redis_lost_is_given_back(fragile: Machines) -> None:
    """It has an earlier state: the machines know better, and what they know is later."""
    here, there = fragile.open("here"), fragile.open("there")
    one, two, three = (sample_instance(instance_id=f"web:{number}") for number in range(3))
    first, second = here.commit_all(NS, [put(one), put(two)])
    with fragile.server.client() as client:
        client.save()
    changed = one._replace(ip_addr="10.9.9.9")
    here.commit(NS, put(changed, expected=first))
    here.commit(NS, put(two, expected=second, remove=True, lease=None))
    known = here.commit(NS, put(three))
    wait_until(lambda: there.revision(NS) == known)
    fragile.server.kill()
    fragile.server.start()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > known + 1_000)
        wait_until(lambda store=store: listed(store) == {"web:0", "web:2"})
        assert {each.ip_addr for each in store.load(NS).instances} == {"10.9.9.9", "10.0.0.1"}
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    machine = fragile.open("new")
    assert listed(machine) == {"web:0", "web:2"}


def test_what_all_machines_have_is_sent_once_and_fetched_by_none(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its revisions, its leases their places; and all of it counts as just changed."""
    here, there = fragile.open("here"), fragile.open("there")
    now = mono()
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(700)]
    here.commit_all(NS, [put(each, lease=lease_from(now)) for each in instances])
    known = here.commit(NS, put(sample_instance(instance_id="web:last"), lease=lease_from(now)))
    wait_until(lambda: there.revision(NS) == known)
    before = {each.id: each.revision for each in here.load(NS).instances}
    asked, genuine = list[str](), redis_server._command

    def command(connection: Any, tag: str, script: scripts.Script, arguments: Any) -> Any:
        asked.extend(name for name, each in vars(scripts).items() if each is script)
        return genuine(connection, tag, script, arguments)

    monkeypatch.setattr(redis_server, "_command", command)
    fragile.forget()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > known + 1_000)
        after = store.load(NS)
        assert {each.id: each.revision for each in after.instances} == before
        assert len(after.changes) == len(before)
        assert store.due(NS, now).leases == len(before)
        assert store.renew(NS, instances[0].key, lease_from(mono()), None)
    assert {"PAGE", "NAMED"}.isdisjoint(asked)
    assert asked.count("OFFER") == 2
    # Whoever comes new gets all of it.
    assert listed(fragile.open("new")) == listed(here) == listed(there)


def test_what_is_given_back_is_told_in_one_line(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    """However many namespaces it is of."""
    store = machines.open("here")
    for number in range(5):
        store.commit(Namespace(f"n{number}"), put(sample_instance()))
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    told = [each for each in caplog.messages if "back to Redis" in each]
    assert told == ["gave 5 changes in 5 namespaces back to Redis"]


def alone_with_many(machines: Machines, count: int) -> tuple[RedisStore, list[Namespace]]:
    """A store that nobody else works in, with an instance in each of many namespaces."""
    store = machines.open("here")
    store._stopping.set()
    for thread in store._threads:
        thread.join()
    namespaces = [Namespace(f"n{number}") for number in range(count)]
    for namespace in namespaces:
        store.commit(namespace, put(sample_instance(), lease=lease_from(mono())))
    return store, namespaces


def test_many_namespaces_are_given_back_and_taken_up_in_few_round_trips(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the server knows no script any more; and none holds it up for long."""
    store, namespaces = alone_with_many(machines, 200)
    machines.forget()
    with machines.server.client() as client:
        client.script_flush()
    sent: list[int] = []
    genuine = redis.connection.Connection.send_packed_command

    def send(connection: Any, command: Any, *arguments: Any, **options: Any) -> None:
        sent.append(b"".join(command).count(b"EVALSHA"))
        genuine(connection, command, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.connection.Connection, "send_packed_command", send)
        store._lives.adopt()
        assert (len(sent) < 100, max(sent)) == (True, 100)
        sent.clear()
        store._follower.catch_up_all()
        assert len(sent) < 10
    there = machines.open("there")
    assert set(there.namespaces()) == set(namespaces)
    for namespace in namespaces:
        assert there.revision(namespace) == store.revision(namespace)
        assert there.load(namespace).instances == store.load(namespace).instances


def test_a_namespace_that_another_machine_gives_back_holds_up_no_other(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, namespaces = alone_with_many(machines, 5)
    machines.forget()
    give_back, given_back = store._lives._give_back, list[Namespace]()
    waits_for = namespaces[0]

    def given(life: Revision, namespace: Namespace) -> Any:
        if namespace == waits_for:
            listing = store._records.listing(life, namespace, "another", takes_up=False)
            assert (yield from listing) is not None
        found = yield from give_back(life, namespace)
        given_back.append(namespace)
        return found

    monkeypatch.setattr(store._lives, "_give_back", given)
    store._lives.adopt()
    assert set(given_back) == set(namespaces)
    assert given_back[-1] == waits_for
    there = machines.open("there")
    for namespace in namespaces:
        assert there.load(namespace).instances == store.load(namespace).instances


def test_many_namespaces_are_given_back_though_the_connection_is_cut(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have been asked; and what was cut off is asked for again with all others."""
    store, namespaces = alone_with_many(machines, 20)
    machines.forget()
    genuine, cut = redis_server._exchange_each, list[int]()

    def exchange_each(connection: Any, commands: Any) -> Any:
        answers = genuine(connection, commands)
        if len(commands) > 1 and len(cut) < 9 and len(commands) not in cut[-1:]:
            cut.append(len(commands))
            raise redis.ConnectionError("cut off")
        return answers

    monkeypatch.setattr(redis_server, "_exchange_each", exchange_each)
    store._lives.adopt()
    assert cut
    there = machines.open("there")
    for namespace in namespaces:
        assert there.load(namespace).instances == store.load(namespace).instances


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


def test_while_one_machine_gives_back_the_others_wait_for_it(machines: Machines) -> None:
    store = machines.open("here")
    store._stopping.set()
    for thread in store._threads:
        thread.join()
    run = store._server.run

    def listing(*arguments: Any, takes_up: bool) -> redis_records.Listing | None:
        return store._server.ask(store._records.listing(*arguments, takes_up=takes_up))

    store.commit(NS, put(sample_instance()))
    life, begun_in, run_id, *_ = run(scripts.LIFE, NS, "", "", "", "", "")
    another = Revision(int(life) + 1_000)
    run(scripts.LIFE, NS, another, life, begun_in, run_id, store._server.now())
    assert listing(another, NS, "a", takes_up=False) is not None
    assert listing(another, NS, "b", takes_up=False) is None
    # Since then the clock of Redis was set back.
    meta = store._server.name("meta", NS)
    began = store._server.now() + _DAY_MS
    store._server.call("HSET", meta, "giving", began, namespace=NS)
    assert listing(another, NS, "b", takes_up=False) is not None
    assert listing(another, NS, "a", takes_up=False) is None
    taken = listing(another, NS, "a", takes_up=True)
    assert taken is not None
    found = listing(another, NS, "b", takes_up=False)
    assert found is not None
    assert found.is_taken


def test_overrides_are_given_back_and_so_is_their_removal(fragile: Machines) -> None:
    """Also of ids that nobody has registered, and though Redis has an earlier word of them."""
    here = fragile.open("here")
    down, up = (
        lambda name: OverrideChange(name, InstanceStatus.DOWN),
        lambda name: OverrideChange(name, None),
    )
    web, api = sample_instance(), sample_instance("API", "api:1")
    alone = Commit(api.key, Revision(0), None, 100, None)
    here.commit(NS, alone._replace(override=down("api:1")))
    here.commit(NS, put(sample_instance("OLD", "old:1"), override=down("old:1")))
    first = here.commit(NS, put(web, override=down("web:1")))
    with fragile.server.client() as client:
        client.save()
    here.commit(
        NS,
        put(web, expected=first, expected_override=InstanceStatus.DOWN, override=up("web:1")),
    )
    other = sample_instance("OTHER", "other:1")
    known = here.commit(
        NS, Commit(other.key, Revision(0), None, 100, None, override=down("other:1"))
    )
    expected = {"api:1", "old:1", "other:1"}
    assert set(here.load(NS).overrides) == expected
    for lose in (fragile.server.kill, fragile.forget):
        lose()
        if lose == fragile.server.kill:
            fragile.server.start()
        wait_until(lambda known=known: here.revision(NS) > known + 1_000)
        known = here.revision(NS)
        assert set(here.load(NS).overrides) == expected
        there = fragile.open("there" if lose == fragile.server.kill else "elsewhere")
        assert set(there.load(NS).overrides) == expected


def test_a_write_that_met_a_paused_redis_is_written_once(fragile: Machines) -> None:
    store = fragile.open("here")
    before = store.commit(NS, put(sample_instance()))
    fragile.server.pause()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.commit, NS, put(sample_instance(instance_id="web:2")))
        time.sleep(1.2)  # longer than a call waits for its answer
        fragile.server.go_on()
        assert writing.result(timeout=HANG_SECS) == before + 1
    assert listed(store) == {"web:1", "web:2"}


# What no registry wrote, in keys of the registry.


JUNK = {
    "namespaces": [("HSET", "namespaces", "n0", "junk"), ("HSET", "namespaces", b"\xff", "1")],
    "life": [("HSET", "life", "number", "junk")],
    "meta": [
        ("HSET", "meta", "revision", "junk"),
        ("HSET", "meta", "trimmed", "junk"),
        ("HSET", "meta", "expected", "junk"),
        ("HSET", "meta", "size", "junk"),
    ],
    "record": [("HSET", "record", "WEB\0web:1", "junk"), ("HSET", "record", "junk", "1 junk")],
    "lease": [("HSET", "lease", "WEB\0web:1", "junk")],
    "change": [("HSET", "change", "WEB\0web:1", "junk")],
    "override": [("HSET", "override", "web:1", "junk")],
    "log": [("SET", "log", "junk")],
    "told": [("SET", "told", "junk")],
}


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, all_of in JUNK.items() for command in all_of]
)
def test_what_no_registry_wrote_is_said_once_with_the_name_of_its_key(
    machines: Machines,
    name: str,
    command: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither is it a traceback, nor is it taken for anything else."""
    here = machines.open("here")
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    if command[0] == "SET":
        here._server.call("DEL", here._server.name(name, NS), namespace=NS)
    namespace = None if name == "namespaces" else NS
    key = here._server.name(name, namespace)
    here._server.call(command[0], key, *command[2:], namespace=namespace)
    shown = f"a key of {here._server._tag(NS)}" if name == "log" else key
    if name == "told":
        rounds = here._teller._round
        wait_until(lambda: here._teller._round > rounds + 30)
    elif name == "life":
        with pytest.raises(StoreError, match=re.escape(shown)):
            here.commit(NS, put(sample_instance(instance_id="web:2")))
    else:
        with pytest.raises(StoreError, match=re.escape(shown)):
            machines.open("there")
    for number in range(3):
        with suppress(StoreError):
            here.commit(NS, put(sample_instance(instance_id=f"late:{number}")))
    rounds = here._teller._round
    wait_until(lambda: here._teller._is_away or here._teller._round > rounds + 30)
    machines.close()
    told = [each for each in caplog.messages if shown in each]
    assert len(told) <= 1
    if name in ("life", "told"):
        assert len(told) == 1


def test_what_no_registry_wrote_of_evictions_is_said(machines: Machines) -> None:
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    key = store._server.name("evicted", NS)
    store._server.call("HSET", key, "junk", "1", namespace=NS)
    with pytest.raises(StoreError, match=re.escape(key)):
        store.evictions(NS, 0)


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
    wait_until(lambda: _takes(store, put(sample_instance(instance_id="web:3"))))


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


def test_a_server_begins_its_work_though_nothing_is_written_yet(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Redis is away: it serves what it has, and evicts later."""
    store, _ = alone_with_many(machines, 1)
    registry = Registry(store, SystemClock(), RegistrySettings())
    evictor, refused = Evictor(registry, store), list[None]()

    def refuse(now_mono_ms: int) -> None:
        refused.append(None)
        raise AwaitedError("the machines are giving back what Redis lost")

    monkeypatch.setattr(store, "resume", refuse)
    evictor.make_good()
    assert refused


def _takes(store: Store, commit: Commit) -> bool:
    try:
        store.commit(NS, commit)
    except StoreError:
        return False
    return True


def test_a_write_whose_answer_was_cut_off_is_asked_for_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was executed, so it must not be executed again, nor be told to have failed."""
    store = machines.open("here")
    before = store.commit(NS, put(sample_instance()))
    exchange, cut = redis_server._exchange, []

    def cut_off(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (scripts.COMMIT.sha,) and not cut:
            cut.append(command)
            raise redis.TimeoutError("cut off")
        return answer

    monkeypatch.setattr(redis_server, "_exchange", cut_off)
    assert store.commit(NS, put(sample_instance(instance_id="web:2"))) == before + 1
    assert len(cut) == 1
    assert store.revision(NS) == before + 1
    assert listed(store) == {"web:1", "web:2"}


# What was on its way when Redis lost something.


def cut_off_once(
    patch: pytest.MonkeyPatch, script: scripts.Script, then: Callable[[], object]
) -> None:
    """Have a script's answer lost, once, and something happen before it is asked again."""
    exchange, cut = redis_server._exchange, []

    def exchanged(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (script.sha,) and not cut:
            cut.append(command)
            then()
            raise redis.TimeoutError("cut off")
        return answer

    patch.setattr(redis_server, "_exchange", exchanged)


def test_what_may_have_been_written_before_redis_lost_it_is_not_decided_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have given it back, so a lost race would be told of its own doing."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))

    def lose() -> None:
        wait_until(lambda: there.revision(NS) == first + 1)
        machines.forget()
        wait_until(lambda: there.revision(NS) > first + 1_000)

    cut_off_once(monkeypatch, scripts.COMMIT, lose)
    with pytest.raises(StoreError, match="it is not known whether this was written"):
        here.commit(NS, put(sample_instance(), expected=first, remove=True, lease=None))
    wait_until(lambda: listed(here) == listed(there) == set())


def known_to_each_other(*stores: RedisStore) -> bool:
    return all(len(store._lives.known_nodes()) == len(stores) for store in stores)


def awaited(store: RedisStore, namespace: Namespace | None = NS) -> list[bytes]:
    """The nodes that have not given back yet."""
    name = store._server.name("awaited", namespace)
    found: list[bytes] = store._server.call("HGETALL", name, namespace=namespace)
    return found[::2]


def test_nothing_is_written_before_all_machines_have_given_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a change that was acknowledged, and that no other had followed, would be replaced."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == first and known_to_each_other(here, there))
    goes_on, refused, adopt = threading.Event(), [], there._lives.adopt

    def adopted_late(*, lost: bool = False) -> None:
        assert goes_on.wait(HANG_SECS)
        adopt(lost=lost)

    monkeypatch.setattr(there._lives, "adopt", adopted_late)
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(here._follower, "_hear", lambda data: None)
        patch.setattr(here._follower, "catch_up", lambda namespace: None)
        second = there.commit(NS, put(sample_instance(ip_addr="10.9.9.9"), expected=first))
        machines.forget()
    wait_until(lambda: here.revision(NS) > second + 1_000)

    def write() -> Revision:
        while True:
            try:
                return here.commit(NS, put(sample_instance(ip_addr="10.7.7.7"), expected=first))
            except AwaitedError as error:
                refused.append(error)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        wait_until(lambda: refused or writing.done())
        goes_on.set()
        with pytest.raises(ConflictError):
            writing.result(HANG_SECS)
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    for store in (here, there):
        assert [each.ip_addr for each in store.load(NS).instances] == ["10.9.9.9"]
    wait_until(lambda: awaited(here) == awaited(here, None) == [])


def test_a_machine_that_does_not_come_is_awaited_for_a_while(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few seconds after one gave back for the last time."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == first and known_to_each_other(here, there))
    machines.close(there)
    machines.forget()
    wait_until(lambda: here.revision(NS) > first + 1_000)
    for namespace in (None, NS):
        name = here._server.name("awaited", namespace)
        assert here._server.call("TTL", name, namespace=namespace) != -1
    wait_until(lambda: _takes(here, put(sample_instance(), expected=first)))
    assert awaited(here) == []
    # It is not one of the machines any more.
    wait_until(lambda: known_to_each_other(here))


def test_a_machine_alone_awaits_nobody(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machines.open("here")
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    for turn in range(3):
        wait_until(lambda: known_to_each_other(store))
        known = store.commit(NS, put(sample_instance(instance_id=f"web:{turn}")))
        machines.forget()
        # Whichever notices first: the write, or the teller.
        assert store.commit(NS, put(sample_instance(instance_id=f"late:{turn}"))) > known + 1_000
    assert len(listed(store)) == 6


def test_a_namespace_that_is_new_waits_too_for_whoever_may_have_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines.open("here"), machines.open("there")
    other = Namespace("other")
    first = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == first and known_to_each_other(here, there))
    goes_on, adopt = threading.Event(), there._lives.adopt

    def adopted_late(*, lost: bool = False) -> None:
        assert goes_on.wait(HANG_SECS)
        adopt(lost=lost)

    monkeypatch.setattr(there._lives, "adopt", adopted_late)
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    with monkeypatch.context() as patch:
        for name, does in (("catch_up", lambda _: None), ("_hear", lambda _: None)):
            patch.setattr(here._follower, name, does)
        there.commit(other, put(sample_instance(ip_addr="10.9.9.9")))
        machines.forget()
    wait_until(lambda: here.revision(NS) > first + 1_000)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(here.commit, other, put(sample_instance()))
        with pytest.raises(AwaitedError):
            writing.result(HANG_SECS)
    goes_on.set()
    wait_until(lambda: [each.ip_addr for each in here.load(other).instances] == ["10.9.9.9"])


def test_what_redis_loses_again_while_it_is_given_back_is_given_back_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that met it waits for that."""
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    adopt, lost = store._lives.adopt, []

    def adopted(**options: bool) -> None:
        if not lost:
            lost.append(None)
            raise AnotherLifeError
        adopt(**options)

    store._stopping.set()
    for thread in store._threads:
        thread.join()
    monkeypatch.setattr(store._lives, "adopt", adopted)
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert lost
    assert listed(store) == {"web:1", "web:2"}


def test_a_namespace_that_comes_into_the_copy_while_it_is_given_back_is_given_back_too(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written in the former life may be the first of its namespace, and come late."""
    store = machines.open("here")
    store._stopping.set()
    for thread in store._threads:
        thread.join()
    give_back, came = store._lives._give_back_all, list[None]()

    def giving_back(*arguments: Any) -> Any:
        given = give_back(*arguments)
        if not came:
            came.append(None)
            late = Revision(store._copy.life() + 1)
            store._copy.follow(NS, [(late, put(sample_instance()))], None)
        return given

    monkeypatch.setattr(store._lives, "_give_back_all", giving_back)
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert listed(store) == {"web:1", "web:2"}
    assert listed(machines.open("there")) == {"web:1", "web:2"}


def test_a_machine_that_only_followed_a_removal_gives_it_back(machines: Machines) -> None:
    """Or else who did not follow it would bring the instance back."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))
    removal = put(sample_instance(), expected=first, remove=True, lease=None)
    there._copy.follow(NS, [(Revision(first + 1), removal)], None)
    machines.forget()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > first + 1_000)
        wait_until(lambda store=store: listed(store) == set())


def test_what_redis_lost_before_its_answer_came_is_not_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines.open("here")
    wait_until(lambda: is_following(store))  # it has caught up, and does so again only if told
    first = store.commit(NS, put(sample_instance()))
    exchange = redis_server._exchange

    def late(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (scripts.COMMIT.sha,) and store.revision(NS) == first:
            machines.forget()
            wait_until(lambda: store.revision(NS) > first + 1_000)
        return answer

    monkeypatch.setattr(redis_server, "_exchange", late)
    monkeypatch.setattr(store._follower, "_hear", lambda data: None)
    with pytest.raises(StoreError, match="it is not known whether this was written"):
        store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert listed(store) == {"web:1"}


def test_what_came_into_the_copy_while_it_was_given_back_is_given_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written, and acknowledged, just before Redis lost it."""
    store = machines.open("here")
    first = store.commit(NS, put(sample_instance()))
    give_back, late = store._lives._give_back, put(sample_instance(instance_id="web:2"))

    def given_back(life: Revision, namespace: Any) -> Any:
        given = yield from give_back(life, namespace)
        store._copy.follow(NS, [(Revision(first + 1), late)], None)
        return given

    monkeypatch.setattr(store._lives, "_give_back", given_back)
    machines.forget()
    wait_until(lambda: store.revision(NS) > first + 1_000)
    assert listed(store) == {"web:1", "web:2"}
    assert listed(machines.open("there")) == {"web:1", "web:2"}


def test_a_copy_that_is_taken_up_again_does_not_lose_what_was_written_meanwhile(
    machines: Machines,
) -> None:
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    life = store._copy.life()
    taken_up = store._server.ask(store._lives._contents(life, NS))
    revision = store.commit(NS, put(sample_instance(instance_id="web:2")))
    store._copy.replace(life, {NS: taken_up})
    assert store.revision(NS) == revision
    assert listed(store) == {"web:1", "web:2"}


def test_what_the_copy_lacks_is_not_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker of this machine would not show it."""
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))

    def fail(*_: Any) -> None:
        raise StoreError("Redis does not answer")

    cut_off_once(monkeypatch, scripts.COMMIT, lambda: None)
    monkeypatch.setattr(store._follower, "catch_up", fail)
    with pytest.raises(StoreError, match="Redis does not answer"):
        store.commit(NS, put(sample_instance(instance_id="web:2")))
    monkeypatch.undo()
    wait_until(lambda: listed(store) == {"web:1", "web:2"})


def test_a_life_that_redis_refuses_is_not_told_of(
    fragile: Machines, own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a replica does, to which the address leads: it is asked again and again."""
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    store._stopping.set()
    for thread in store._threads:
        thread.join()
    own.kill()
    own.start()
    with own.client() as client:
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(StoreError, match="replicas"):
            store._lives.adopt()
        assert "another life" not in caplog.text
        client.config_set("min-replicas-to-write", 0)
    store._lives.adopt()
    assert caplog.text.count("another life") == 1


@pytest.mark.parametrize("ends_by", ["removal of the override", "removal of the instance"])
def test_an_override_that_was_removed_does_not_come_back_with_redis(
    fragile: Machines, ends_by: str
) -> None:
    """It comes back with an earlier state, in which the override still stood."""
    store = fragile.open("here")
    down = OverrideChange("web:1", InstanceStatus.DOWN)
    first = store.commit(NS, put(sample_instance(), override=down))
    with fragile.server.client() as client:
        client.save()
    removed = put(
        sample_instance(),
        expected=first,
        expected_override=InstanceStatus.DOWN,
        override=OverrideChange("web:1", None),
    )
    if ends_by == "removal of the instance":
        removed = removed._replace(remove=True, lease=None)
    known = store.commit(NS, removed)
    fragile.server.kill()
    fragile.server.start()
    wait_until(lambda: store.revision(NS) > known + 1_000)
    assert store.load(NS).overrides == {}
    assert fragile.open("new").load(NS).overrides == {}


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


# From LMDB and back.


def test_a_folder_of_lmdb_fills_an_empty_redis_and_can_be_taken_back(
    machines: Machines, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    alone = LmdbStore(folder)
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(700)]
    known = alone.commit_all(NS, [put(each) for each in instances])
    alone.close()
    here, there = machines.open("here"), machines.open("there")
    assert listed(here) == listed(there) == {each.id for each in instances}
    last = known[-1]
    assert last is not None
    assert here.revision(NS) == there.revision(NS) > last
    here.commit(NS, put(sample_instance(instance_id="late")))
    wait_until(lambda: "late" in listed(there))
    machines.close(there)
    back = LmdbStore(tmp_path / "there")
    assert listed(back) == {each.id for each in instances} | {"late"}
    back.close()


def test_a_folder_and_a_redis_that_both_have_something_are_not_mixed(
    machines: Machines, tmp_path: Path
) -> None:
    machines.open("here").commit(NS, put(sample_instance()))
    alone = LmdbStore(tmp_path / "there")
    alone.commit(NS, put(sample_instance(instance_id="web:2")))
    alone.close()
    with pytest.raises(StoreError, match="has a registry, and the folder another"):
        machines.open("there")


def test_a_copy_of_another_registry_is_refused(
    machines: Machines, server: RedisServer, tmp_path: Path
) -> None:
    machines.close(machines.open("here"))
    with pytest.raises(StoreError, match="the folder is a copy of the registry"):
        open_store(server.url(another_prefix(), tmp_path / "here"))


# Other versions.


@contextmanager
def another_format() -> Iterator[None]:
    """Who connects meanwhile is of a version that keeps all of it otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "FORMAT", 7)
        yield


OF_ANOTHER_FORMAT = r"has a registry of format 7, and this version writes format 1$"


def take_over(machines: Machines) -> None:
    """Another version begins the registry anew, and registers ``web:2``."""
    machines.forget()
    with another_format():
        there = machines.open("there")
        there.commit(NS, put(sample_instance(instance_id="web:2")))
        machines.close(there)


def assert_left_to_it(machines: Machines) -> None:
    with another_format():
        assert listed(machines.open("there")) == {"web:2"}
        machines.close()


def test_what_another_version_keeps_otherwise_is_left_to_it(machines: Machines) -> None:
    """By who comes new, and by who has a copy from before."""
    here = machines.open("here")
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    machines.close(here)
    take_over(machines)
    for name in ("here", "new"):
        with pytest.raises(StoreError, match=OF_ANOTHER_FORMAT):
            machines.open(name)
    assert_left_to_it(machines)


def test_who_was_away_while_another_version_took_over_writes_nothing(fragile: Machines) -> None:
    here = fragile.open("here")
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    fragile.close(here)
    take_over(fragile)
    fragile.server.pause()
    here = fragile.open("here")
    fragile.server.go_on()

    def is_refused() -> bool:
        with pytest.raises(StoreError) as refused:
            here.commit(NS, put(sample_instance(instance_id="web:3")))
        return re.search(OF_ANOTHER_FORMAT, str(refused.value)) is not None

    wait_until(is_refused, "Redis to answer again")
    assert listed(here) == {"web:1"}
    fragile.close(here)
    assert_left_to_it(fragile)


def test_a_password_is_shown_nowhere() -> None:
    address = read_address("redis://user:secret@127.0.0.1:1/0")
    assert "secret" not in address.shown
    assert address.prefix == "eureka"


def test_the_clocks_offset_moves_only_where_a_round_trip_proves_it_wrong(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_at = Server(read_address(server.url("clock", tmp_path)))
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
