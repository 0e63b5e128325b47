"""The store on Redis against the contract, and machines that share one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import Registry, RegistrySettings, StoreError, open_store
from registry.errors import ConflictError, LockLostError
from registry.evictor import Evictor
from registry.lease import SystemClock
from registry.model import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    OverrideChange,
    Revision,
)
from registry.store import Fence
from registry.stores.lmdb import LmdbStore
from registry.stores.redis import scripts
from registry.stores.redis.server import AwaitedError
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer, another_prefix
from tests.redis_suite import (
    Machines,
    RedisSuite,
    alone_with_many,
    is_following,
    lease_from,
    listed,
    mono,
)
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects", "unhurried")]


class TestRedisStore(RedisSuite):
    """The whole contract on one server."""

    @pytest.fixture
    def server(self, shared_redis: RedisServer) -> RedisServer:
        return shared_redis


# Several machines: each has a folder of its own, and all the same prefix.


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
    machines: Machines, shared_redis: RedisServer, tmp_path: Path
) -> None:
    machines.close(machines.open("here"))
    with pytest.raises(StoreError, match="the folder is a copy of the registry"):
        open_store(shared_redis.url(another_prefix(), tmp_path / "here"))


# Other versions.


@contextmanager
def another_format() -> Iterator[None]:
    """Who connects meanwhile is of a version that keeps all of it otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "FORMAT", 7)
        yield


OF_ANOTHER_FORMAT = r"has a registry of format 7, and this version writes format 2$"


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
