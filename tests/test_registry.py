"""The life of an instance, on a clock set by hand."""

from __future__ import annotations

import doctest
import gc
import inspect
import random
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import (
    DEFAULT_NAMESPACE,
    ActionType,
    ConflictError,
    Evictor,
    Fence,
    Instance,
    InstanceKey,
    InvalidIdentityError,
    Lease,
    LockLostError,
    Namespace,
    NamespaceRegistry,
    Registering,
    Registry,
    RegistrySettings,
    SourceConflictError,
    StoreError,
    View,
)
from registry import InstanceStatus as S
from registry import listing as listing_module
from registry import view as view_module
from registry.model import Revision, at_revision, registered
from registry.stores.lmdb import LmdbStore
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, put, registry_on, sample_instance
from tests.servers import HANG_SECS

KEY = InstanceKey("WEB", "web:1")


class World:
    """A registry with its clock and its evictor."""

    def __init__(self, store: Any, clock: ManualClock | None = None, **options: Any) -> None:
        self.store = store
        self.clock = clock or ManualClock()
        self.settings = RegistrySettings(**({"self_preservation": False} | options))
        self.whole = Registry(store, self.clock, self.settings)
        self.whole.start()
        self.registry = self.whole.in_namespace(DEFAULT_NAMESPACE)
        self.evictor = Evictor(self.whole, store, rng=random.Random(1))

    def another(self) -> NamespaceRegistry:
        """As another worker has it."""
        return registry_on(self.store, self.clock, self.settings)

    def another_evictor(self, seed: int = 0) -> Evictor:
        whole = Registry(self.store, self.clock, self.settings)
        return Evictor(whole, self.store, rng=random.Random(seed))

    def listed(self, key: InstanceKey = KEY) -> Instance | None:
        view = self.registry.view()
        with view.lock:
            return view.get(key)

    def pass_time(self, secs: float) -> int:
        """Let the evictor run as it does, several times a second; how many it evicted."""
        evicted = 0
        for _ in range(int(secs * 2)):
            self.clock.advance(500)
            evicted += self.evictor.run_once()
        return evicted


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        store: Any = MemoryStore()
    else:
        store = LmdbStore(tmp_path / "store", life=Revision(0))
    yield store
    store.close()


@pytest.fixture
def world(store: Any) -> World:
    return World(store)


def test_a_registration_is_listed_with_the_servers_own_instants(world: World) -> None:
    world.registry.register(sample_instance())
    listed = world.listed()
    assert listed is not None
    now = world.clock.wall
    assert (listed.registration_ms, listed.last_updated_ms, listed.service_up_ms) == (now, now, now)
    assert listed.action_type is ActionType.ADDED


def test_an_older_dirty_timestamp_keeps_the_data_with_a_new_lease(world: World) -> None:
    world.registry.register(sample_instance(last_dirty_ms=10, status=S.DOWN))
    world.clock.advance(50_000)
    world.registry.register(sample_instance(last_dirty_ms=9, ip_addr="10.9.9.9"))
    listed = world.listed()
    assert listed is not None
    assert (listed.ip_addr, listed.status, listed.last_dirty_ms) == ("10.0.0.1", S.DOWN, 10)
    assert listed.registration_ms == world.clock.wall
    assert world.pass_time(60) == 0


def test_an_older_registration_brings_the_length_of_the_lease_but_not_what_is_shown(
    world: World,
) -> None:
    """As the genuine server does: the lease is the incoming one's, the data are not."""
    world.registry.register(sample_instance(last_dirty_ms=10))
    world.registry.register(sample_instance(last_dirty_ms=9, duration_secs=5))
    world.registry.renew("WEB", "web:1")
    listed = world.listed()
    assert listed is not None
    assert listed.duration_secs == 90
    assert world.pass_time(6) == 1


def test_a_lease_that_is_not_renewed_ends_when_it_says(world: World) -> None:
    world.registry.register(sample_instance())
    assert world.pass_time(90) == 0
    assert world.pass_time(1) == 1
    assert world.listed() is None


@pytest.mark.parametrize("retention_ms", [0, 1_000, 180_000])
def test_a_shorter_lease_that_came_later_ends_first(store: Any, retention_ms: int) -> None:
    """Also where the delta tells of no change at all, and another worker took it."""
    world = World(store, delta_retention_ms=retention_ms)
    other = world.another()
    for number in range(10):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    assert world.pass_time(20) == 0
    other.register(sample_instance("API", "api:1", duration_secs=5))
    assert world.pass_time(5) == 0
    assert world.pass_time(1) == 1
    other.update_metadata("WEB", "web:3", {"a": "b"})
    assert world.pass_time(60) == 0
    # Of ten two may go in a minute, and one of them has a lease of its own since.
    assert world.pass_time(5) == 2


def test_a_renewed_lease_lives_one_duration_from_its_renewal(world: World) -> None:
    world.registry.register(sample_instance())
    world.pass_time(60)
    assert world.registry.renew("web", "web:1") is not None
    assert world.pass_time(90) == 0
    assert world.pass_time(1) == 1


def test_the_genuine_timing_doubles_and_sweeps(store: Any) -> None:
    world = World(store, lease_expiry="genuine")
    world.registry.register(sample_instance())
    assert world.registry.renew("WEB", "web:1") is not None
    assert world.pass_time(179) == 0
    assert world.pass_time(62) == 1


def test_renewing_what_is_not_there_or_unknown_is_refused(world: World) -> None:
    assert world.registry.renew("WEB", "web:1") is None
    world.registry.register(sample_instance(status=S.UNKNOWN))
    assert world.registry.renew("WEB", "web:1") is None


def test_a_renewal_shows_in_the_lease_and_is_no_change(world: World) -> None:
    world.registry.register(sample_instance())
    revision = world.registry.view().revision
    world.clock.advance(7_000)
    world.registry.renew("WEB", "web:1")
    found = world.registry.instance("WEB", "web:1")
    assert found is not None
    assert found.last_renewal_ms == world.clock.wall
    assert world.registry.view().revision == revision


def test_an_expired_instance_is_hidden_alone_but_listed_until_evicted(world: World) -> None:
    world.registry.register(sample_instance())
    world.clock.advance(90_001)
    assert world.registry.instance("WEB", "web:1") is None
    assert world.registry.instance_by_id("web:1") is None
    assert world.listed() is not None
    # A late heartbeat is in time as long as the lease was not evicted.
    assert world.registry.renew("WEB", "web:1") is not None
    assert world.registry.instance("WEB", "web:1") is not None


def test_an_override_beats_the_client_until_it_is_removed(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance())
    assert registry.set_override("WEB", "web:1", S.OUT_OF_SERVICE)
    registry.register(sample_instance(last_dirty_ms=2_000))
    listed = world.listed()
    assert listed is not None
    assert (listed.status, listed.overridden_status) == (S.OUT_OF_SERVICE, S.OUT_OF_SERVICE)
    assert registry.remove_override("WEB", "web:1")
    listed = world.listed()
    assert listed is not None
    assert (listed.status, listed.overridden_status) == (S.UNKNOWN, S.UNKNOWN)
    assert registry.renew("WEB", "web:1") is None
    registry.register(sample_instance(last_dirty_ms=3_000))
    listed = world.listed()
    assert listed is not None
    assert listed.status is S.UP


def test_removing_an_override_notes_no_instant_of_coming_up_and_setting_up_does(
    world: World,
) -> None:
    """As the genuine server does."""
    world.registry.register(sample_instance(status=S.STARTING))
    world.registry.set_override("WEB", "web:1", S.DOWN)
    world.registry.remove_override("WEB", "web:1", S.UP)
    listed = world.listed()
    assert listed is not None
    assert (listed.status, listed.service_up_ms) == (S.UP, 0)
    world.registry.set_override("WEB", "web:1", S.DOWN)
    world.registry.set_override("WEB", "web:1", S.UP)
    listed = world.listed()
    assert listed is not None
    assert listed.service_up_ms == world.clock.wall


def test_setting_the_status_that_it_has_stores_no_override(world: World) -> None:
    world.registry.register(sample_instance())
    assert world.registry.set_override("WEB", "web:1", S.UP)
    assert world.registry.view().overrides == {}


def test_an_override_told_by_a_peer_applies_at_the_next_renewal_and_is_in_the_log(
    world: World,
) -> None:
    world.registry.register(sample_instance())
    world.registry.store_override("WEB", "web:1", S.OUT_OF_SERVICE, last_dirty_ms=2_000)
    listed = world.listed()
    assert listed is not None
    assert listed.status is S.UP
    world.registry.renew("WEB", "web:1")
    listed = world.listed()
    assert listed is not None
    assert listed.status is S.OUT_OF_SERVICE
    last = world.registry.view().recent(world.clock.mono)[-1]
    assert last.instance is not None
    assert last.instance.status is S.OUT_OF_SERVICE


def test_a_cancel_takes_the_override_along_even_where_nothing_is_registered(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance())
    registry.set_override("WEB", "web:1", S.DOWN)
    assert not registry.cancel("OTHER", "web:1")
    assert registry.view().overrides == {}
    assert registry.cancel("WEB", "web:1")
    assert not registry.cancel("WEB", "web:1")


def test_metadata_is_merged_by_registering_again(world: World) -> None:
    world.registry.register(sample_instance(metadata={"a": "1", "b": "2"}))
    assert world.registry.update_metadata("WEB", "web:1", {"b": "3"})
    assert not world.registry.update_metadata("WEB", "nobody", {"b": "3"})
    listed = world.listed()
    assert listed is not None
    assert (listed.metadata, listed.action_type) == ({"a": "1", "b": "3"}, ActionType.ADDED)


def test_a_source_never_touches_anothers_instance(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance(source="kubernetes"))
    with pytest.raises(SourceConflictError):
        registry.register(sample_instance(source="eureka"))
    assert registry.renew("WEB", "web:1", source="eureka") is None
    assert not registry.cancel("WEB", "web:1", source="eureka")
    assert world.listed() is not None
    assert registry.cancel("WEB", "web:1", source="kubernetes")


@pytest.mark.parametrize("instance_id", ["x" * 401, "a\0b", "☃" * 134])
def test_an_identity_that_no_store_can_hold_is_refused(world: World, instance_id: str) -> None:
    with pytest.raises(InvalidIdentityError):
        world.registry.register(sample_instance(instance_id=instance_id))
    assert world.registry.view().size() == 0


@pytest.mark.parametrize("retention_ms", [0, 1_000, 180_000])
def test_eviction_is_capped_in_a_moving_window(store: Any, retention_ms: int) -> None:
    """Whatever the delta still tells of."""
    world = World(store, delta_retention_ms=retention_ms)
    for number in range(100):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.pass_time(90)
    assert world.pass_time(50) == 15
    assert world.registry.view().size() == 85
    # 60 s after the first were taken the next may go: 15 % of the 85 that are left.
    assert world.pass_time(20) == 13


def test_eviction_is_random_across_applications(world: World) -> None:
    for number in range(100):
        world.registry.register(sample_instance(f"APP{number // 10}", f"i:{number}"))
    world.pass_time(92)
    view = world.registry.view()
    left = Counter(len(instances) for instances in view.applications.values())
    assert len(view.applications) == 10
    assert len(left) > 1


def test_what_registers_is_as_if_its_fields_were_replaced_by_name() -> None:
    before = sample_instance(
        revision=Revision(7),
        action_type=ActionType.DELETED,
        eviction_ms=3,
        overridden_status=S.DOWN,
        tags=("a",),
        source="native",
    )
    after = registered(
        before,
        status=S.STARTING,
        overridden_status=S.OUT_OF_SERVICE,
        lease_secs=11,
        now_ms=12,
        service_up_ms=13,
        peers_know=True,
    )
    assert after == before._replace(
        status=S.STARTING,
        overridden_status=S.OUT_OF_SERVICE,
        lease_secs=11,
        action_type=ActionType.ADDED,
        last_updated_ms=12,
        registration_ms=12,
        last_renewal_ms=12,
        eviction_ms=0,
        service_up_ms=13,
        peers_know=True,
    )
    assert at_revision(after, Revision(8)) == after._replace(revision=Revision(8))
    assert type(after) is type(at_revision(after, Revision(8))) is Instance


class Interrupted:
    """A fake: the store, but another worker's call comes just before one of this one's calls."""

    def __init__(self, store: MemoryStore, before: int, other: Callable[[], None]) -> None:
        self.store = store
        self.calls = 0
        self._before = before
        self._other = other

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._before:
                self._other()
            return method(*arguments)

        return call


def zoned(zone: str) -> Callable[[Instance], Instance]:
    return lambda listed: listed._replace(metadata={**listed.metadata, "zone": zone})


MUTATIONS: dict[str, Callable[[NamespaceRegistry], Any]] = {
    "register": lambda r: r.register(sample_instance(last_dirty_ms=2_000, metadata={"r": "1"})),
    "register an older": lambda r: r.register(sample_instance(last_dirty_ms=1, status=S.DOWN)),
    "register many": lambda r: r.register_all([Registering(sample_instance(duration_secs=7))]),
    "renew": lambda r: r.renew("WEB", "web:1"),
    "set": lambda r: r.set_override("WEB", "web:1", S.DOWN),
    "set the same": lambda r: r.set_override("WEB", "web:1", S.UP),
    "remove": lambda r: r.remove_override("WEB", "web:1", S.STARTING),
    "peer's override": lambda r: r.store_override("WEB", "web:1", S.DOWN, last_dirty_ms=1_500),
    "metadata": lambda r: r.update_metadata("WEB", "web:1", {"a": "1"}),
    "other metadata": lambda r: r.update_metadata("WEB", "web:1", {"b": "1"}),
    "amend": lambda r: r.amend("WEB", "web:1", zoned("z"), drops_override=True),
    "cancel": lambda r: r.cancel("WEB", "web:1"),
    "evict": lambda r: r.evict([(KEY, Lease(1_090_000, 90_000, 0))]),
}
BEFORE: dict[str, Callable[[NamespaceRegistry], Any]] = {
    "nothing": lambda r: None,
    "listed": lambda r: r.register(sample_instance()),
    "overridden": lambda r: (
        r.register(sample_instance()),
        r.set_override("WEB", "web:1", S.OUT_OF_SERVICE),
    ),
    "told of an override": lambda r: (
        r.register(sample_instance()),
        r.store_override("WEB", "web:1", S.OUT_OF_SERVICE, last_dirty_ms=1_500),
    ),
}


def left_behind(store: MemoryStore, registry: NamespaceRegistry) -> Any:
    """All that a sequence of calls leaves, but for the count of changes that it took."""
    snapshot = store.load(DEFAULT_NAMESPACE)
    listed = {i._replace(revision=Revision(0)) for i in map(hashable, snapshot.instances)}
    lease = store.lease(DEFAULT_NAMESPACE, KEY)
    clients = registry.self_preservation().expected_clients
    return listed, dict(snapshot.overrides), lease, clients


def hashable(instance: Instance) -> Instance:
    return instance._replace(metadata=frozenset(instance.metadata.items()))  # type: ignore[arg-type]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("first", MUTATIONS)
def test_of_two_mutations_at_once_one_comes_before_the_other(first: str, before: str) -> None:
    """Whatever the second does, and between whichever two steps of the first it comes."""

    def world() -> World:
        world = World(MemoryStore())
        BEFORE[before](world.registry)
        return world

    def in_order(*names: str) -> tuple[dict[str, bool], Any]:
        alone = world()
        answers = {name: bool(MUTATIONS[name](alone.registry)) for name in names}
        return answers, left_behind(alone.store, alone.registry)

    for second in MUTATIONS:
        if second == first:
            continue
        serial = [in_order(first, second), in_order(second, first)]
        if first == "evict":
            # One that finds anything changed leaves it to the next pass.
            answers, left = in_order(second)
            serial.append((answers | {first: False}, left))
        place = 0
        while True:
            place += 1
            shared = world()
            answers = {}
            other = shared.another()
            interrupted: Any = Interrupted(
                shared.store,
                place,
                lambda other=other, second=second, answers=answers: answers.update(  # type: ignore[misc]
                    {second: bool(MUTATIONS[second](other))}
                ),
            )
            registry = Registry(interrupted, shared.clock, shared.settings).in_namespace(
                DEFAULT_NAMESPACE
            )
            answers[first] = bool(MUTATIONS[first](registry))
            if second not in answers:
                break  # it has no further steps
            assert (answers, left_behind(shared.store, other)) in serial, (second, place)


@pytest.mark.parametrize("name", ["register", "register many", "metadata", "amend"])
def test_a_lease_counts_from_its_writing_though_its_worker_was_stopped(name: str) -> None:
    """A worker decides, and is stopped before it writes; the instance renews at another one."""
    world = World(MemoryStore())
    world.registry.register(sample_instance(duration_secs=7))
    store: Any = world.store

    def stopped() -> None:
        for _ in range(10):
            world.clock.advance(2_000)
            assert store.resume(world.clock.mono) is None
            assert world.registry.renew("WEB", "web:1") is not None

    for place in range(2, 6):
        interrupted: Any = Interrupted(store, place, stopped)
        late = Registry(interrupted, world.clock, world.settings).in_namespace(DEFAULT_NAMESPACE)
        MUTATIONS[name](late)
        lease = store.lease(DEFAULT_NAMESPACE, KEY)
        assert lease.deadline_mono_ms == world.clock.mono + lease.duration_ms
        world.registry.register(sample_instance(duration_secs=7, last_dirty_ms=3_000))


def test_the_servers_own_timestamps_lose_no_word_when_the_clock_is_set_back(world: World) -> None:
    """Those of the native API are this server's; an operator may have noted one of any year."""
    world.registry.register(sample_instance(source="native", last_dirty_ms=9_000))
    world.registry.register(sample_instance(source="native", last_dirty_ms=5, ip_addr="10.9.9.9"))
    listed = world.listed()
    assert listed is not None
    assert (listed.ip_addr, listed.last_dirty_ms) == ("10.9.9.9", 9_000)


@pytest.mark.parametrize("change", ["app", "source"])
def test_an_amendment_leaves_the_key_and_the_source(world: World, change: str) -> None:
    world.registry.register(sample_instance())
    revision = world.registry.view().revision
    with pytest.raises(ValueError, match="leaves the key"):
        world.registry.amend("WEB", "web:1", lambda i: i._replace(**{change: "native"}))
    assert world.registry.view().revision == revision


@pytest.mark.parametrize(
    "name", ["register", "register many", "set", "remove", "metadata", "amend", "cancel", "evict"]
)
def test_what_is_logged_was_committed_before(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No line says what the store then refused, nor says twice what was decided twice."""
    world = World(MemoryStore())
    registry, store = world.registry, world.store
    BEFORE["told of an override"](registry)
    commit, commit_all = store.commit, store.commit_all
    refusing = Mock(side_effect=[StoreError("no space left"), ConflictError, None])

    def commit_late(*arguments: Any) -> Any:
        refusing()
        return commit(*arguments)

    monkeypatch.setattr(store, "commit", commit_late)
    monkeypatch.setattr(store, "commit_all", commit_late)
    caplog.set_level("DEBUG", "registry")
    with pytest.raises(StoreError):
        MUTATIONS[name](registry)
    assert caplog.messages == []
    monkeypatch.setattr(store, "commit_all", commit_all)
    MUTATIONS[name](registry)
    assert len(caplog.messages) == 1


def test_many_are_registered_together_each_for_itself(world: World) -> None:
    world.registry.register(sample_instance("WEB", "taken", source="native"))
    world.registry.register(sample_instance("WEB", "again", last_dirty_ms=2_000))
    wanted = [
        Registering(sample_instance("WEB", "new")),
        Registering(sample_instance("WEB", "taken")),
        Registering(sample_instance("WEB", "x" * 500)),
        Registering(sample_instance("WEB", "new", host_name="second")),
        Registering(sample_instance("WEB", "again", last_dirty_ms=1_000, host_name="older")),
    ]
    outcomes = world.registry.register_all(wanted)

    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        SourceConflictError,
        InvalidIdentityError,
        type(None),
        type(None),
    ]
    found = {i.id: i.host_name for i in world.registry.view().applications["WEB"].values()}
    assert found == {"taken": "host.local", "again": "host.local", "new": "second"}
    for instance_id in ("new", "again"):
        assert world.store.lease(DEFAULT_NAMESPACE, InstanceKey("WEB", instance_id))


def test_what_lost_its_race_among_many_is_decided_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker registers one of them, between the decision and the write."""
    other = world.another()
    commit_all = world.store.commit_all
    older, newer = (sample_instance(last_dirty_ms=dirty) for dirty in (1_000, 2_000))

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        other.register(newer)
        return commit_all(*arguments)

    monkeypatch.setattr(world.store, "commit_all", meanwhile)
    wanted = [Registering(older), Registering(sample_instance(instance_id="web:2"))]
    assert world.registry.register_all(wanted) == [None, None]
    listed = world.registry.view().applications["WEB"]
    assert {i.id: i.last_dirty_ms for i in listed.values()} == {"web:1": 2_000, "web:2": 1_000}


def test_an_application_that_is_gone_leaves_nothing_in_the_view(world: World) -> None:
    view = world.registry.view()
    for number in range(3):
        world.registry.register(sample_instance(f"APP{number}", "i"))
        assert world.registry.cancel(f"APP{number}", "i")
    view = world.registry.view()
    assert (view.applications, view.size(), view.leased) == ({}, 0, 0)
    assert not +view.listing.counts


@pytest.mark.parametrize("changed", [{}, {"vip_address": "other"}, {"status": S.DOWN}])
def test_an_instance_that_registers_again_is_indexed_as_it_is_now(
    world: World, changed: dict[str, Any]
) -> None:
    world.registry.register(sample_instance())
    world.registry.register(sample_instance(**changed))
    instance = sample_instance(**changed)
    view = world.registry.view()
    named = view.by_vip(instance.vip_address or "", secure=False)
    assert list(named.applications["WEB"]) == ["web:1"]
    assert view.by_vip("web", secure=False).size == (instance.vip_address == "web")
    assert +view.listing.counts == {instance.status: 1}
    assert (view.size(), view.leased) == (1, 1)


def test_one_evictor_acts_at_a_time_and_another_takes_over(world: World) -> None:
    second = world.another_evictor()
    world.registry.register(sample_instance(duration_secs=3))
    world.evictor.run_once()
    world.clock.advance(2_000)
    assert second.run_once() == 0
    world.clock.advance(1_100)
    # The first one's lock has run out, as if its process had died.
    assert second.run_once() == 1


def test_an_error_of_ours_does_not_end_the_evictors_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("registry.evictor.PASS_INTERVAL_SECS", 0.001)
    world = World(MemoryStore())
    due, wrong = world.store.due, IndexError("a defect")
    passes = Mock(side_effect=[wrong, wrong])
    goes_on = threading.Event()

    def failing_twice(*arguments: Any) -> Any:
        if passes.call_count < 2:
            return passes()
        goes_on.set()
        return due(*arguments)

    monkeypatch.setattr(world.store, "due", failing_twice)
    world.registry.register(sample_instance())
    world.evictor.start()
    assert goes_on.wait(HANG_SECS)
    world.evictor.stop()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [wrong]


def test_a_pause_of_the_server_gives_leases_their_time_back(world: World) -> None:
    world.registry.register(sample_instance())
    world.evictor.run_once()
    world.clock.advance(3_600_000)
    assert world.evictor.run_once() == 0
    assert world.pass_time(89) == 0
    assert world.pass_time(2) == 1


def test_a_wall_clock_set_by_an_hour_evicts_nobody(world: World) -> None:
    world.registry.register(sample_instance())
    for step in (3_600_000, -7_200_000):
        world.clock.wall += step
        assert world.pass_time(10) == 0
    assert world.pass_time(72) == 1


def test_self_preservation_keeps_expired_instances(store: Any) -> None:
    world = World(store, self_preservation=True)
    for number in range(2):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    assert world.registry.self_preservation().threshold == 5
    assert world.pass_time(300) == 0
    assert world.registry.instance("WEB", "web:1") is not None


@pytest.mark.parametrize("namespace", [DEFAULT_NAMESPACE, Namespace("late")])
def test_enough_renewals_let_evictions_through(store: Any, namespace: Namespace) -> None:
    """In each namespace, whenever and by whichever worker it came into being."""
    world = World(store, self_preservation=True)
    world.pass_time(1)
    other = Registry(store, world.clock, world.settings).in_namespace(namespace)
    here = world.whole.in_namespace(namespace)
    other.register(sample_instance(source="file:x"))
    world.pass_time(1)
    for number in range(10):
        instance = sample_instance(instance_id=f"leased:{number}")
        other.register(instance)
    # One stands for the server itself, as in the original.
    assert here.self_preservation().expected_clients == 11
    evicted = 0
    for _ in range(40):
        for number in range(9):
            here.renew("WEB", f"leased:{number}")
        evicted += world.pass_time(5)
    assert evicted == 1
    assert here.view().size() == 10


def test_expected_clients_begin_alike_before_and_after_a_restart(store: Any) -> None:
    late = Namespace("late")
    registry = World(store, self_preservation=True).whole.in_namespace(late)
    assert registry.self_preservation().expected_clients == 1
    registry.register(sample_instance(source="file:x"))
    assert registry.self_preservation().expected_clients == 1
    again = World(store, self_preservation=True).whole.in_namespace(late)
    assert again.self_preservation().expected_clients == 1
    again.register(sample_instance(instance_id="web:2"))
    assert registry.self_preservation().expected_clients == 2


def test_a_long_pass_over_many_namespaces_is_no_pause(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where each is asked over a network: or else no pass would ever be the last."""
    world = World(store)
    names = [Namespace(f"n{number}") for number in range(10)]
    for name in names:
        world.whole.in_namespace(name).register(sample_instance())
    assert world.pass_time(85) == 0
    evictions, asked = store.evictions, []

    def ask_slowly(namespace: Namespace, after_mono_ms: int) -> Any:
        asked.append(namespace)
        world.clock.advance(700)
        return evictions(namespace, after_mono_ms)

    monkeypatch.setattr(store, "evictions", ask_slowly)
    assert world.pass_time(10) == 10
    assert sorted(asked) == names
    assert "paused" not in caplog.text


def test_a_lease_that_ends_while_the_registry_does_not_run_hides_nobody(world: World) -> None:
    """As while the store is away: nobody knows who renewed elsewhere, and nobody is evicted."""
    world.registry.register(sample_instance())
    world.store.resume(world.clock.mono)
    world.clock.advance(95_000)
    assert world.registry.instance("WEB", "web:1") is not None
    assert world.registry.instance_by_id("web:1") is not None

    assert world.store.resume(world.clock.mono) == 1
    for _ in range(91):
        world.clock.advance(1_000)
        world.store.resume(world.clock.mono)
    assert world.registry.instance("WEB", "web:1") is None


def outlasted(world: World, second: Evictor) -> Callable[[], None]:
    """What happens while a pass takes longer than its lock: others note that the server runs."""

    def outlast() -> None:
        for _ in range(2):
            world.clock.advance(2_000)
            assert world.store.resume(world.clock.mono) is None
        second.run_once()

    return outlast


@pytest.mark.parametrize("commits_before", [0, 1, 2])
def test_the_cap_holds_though_a_pass_outlasts_its_lock(
    store: Any, monkeypatch: pytest.MonkeyPatch, commits_before: int
) -> None:
    """Another worker takes over in the middle of a pass, and another after it."""
    world = World(store)
    workers = [world.another_evictor(number) for number in range(2)]
    for number in range(1_000):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.evictor.run_once()
    for _ in range(45):
        world.clock.advance(2_001)
        store.resume(world.clock.mono)
    commit_all, left = store.commit_all, commits_before
    outlast = outlasted(world, workers[0])

    def commit_late(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            monkeypatch.undo()
            outlast()
            outlasted(world, workers[1])()
        return commit_all(*arguments)

    monkeypatch.setattr(store, "commit_all", commit_late)
    world.evictor.run_once()
    assert 1_000 - world.registry.view().size() == 150
    assert [worker.run_once() for worker in workers] == [0, 0]
    outlast()
    assert 1_000 - world.registry.view().size() == 150


def test_the_cap_holds_over_restarts(store: Any) -> None:
    world = World(store)
    for number in range(100):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.pass_time(91)
    for _ in range(3):
        world.evictor.stop()
        world.evictor = world.another_evictor()
        assert world.pass_time(2) == 0
    assert world.registry.view().size() == 85


def test_a_pass_that_takes_long_is_no_pause_of_the_server(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notes between its steps that the server runs, and keeps its lock."""
    world = World(store)
    for number in range(1_000):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.pass_time(90)
    commit_all = store.commit_all

    def commit_slowly(*arguments: Any) -> Any:
        world.clock.advance(2_000)
        return commit_all(*arguments)

    monkeypatch.setattr(store, "commit_all", commit_slowly)
    world.clock.advance(500)
    assert world.evictor.run_once() == 150
    assert world.evictor.run_once() == 0
    assert world.registry.view().size() == 850


@pytest.mark.parametrize(
    "late",
    [
        lambda registry, entry, fence: registry.register(entry, fence=fence),
        lambda registry, entry, fence: registry.cancel(
            entry.app, entry.id, source=entry.source, fence=fence
        ),
    ],
)
def test_what_was_decided_under_a_lock_is_not_written_after_it(
    world: World, late: Callable[[NamespaceRegistry, Instance, Fence], None]
) -> None:
    """Whoever brings entries in does it behind a fence too."""
    registry, entry = world.registry, sample_instance(source="file:x")
    registry.register(entry)
    token = world.whole.coordination.acquire("catalog:file:x", "a", 0, 100)
    assert token is not None
    assert world.whole.coordination.acquire("catalog:file:x", "b", 200, 100) is not None
    revision = registry.view().revision
    fence = Fence("catalog:file:x", token)
    with pytest.raises(LockLostError):
        late(registry, entry, fence)
    assert registry.view().revision == revision


def test_what_the_store_does_not_tell_is_not_told_to_be_empty(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen goes on from memory."""
    world.registry.register(sample_instance())
    monkeypatch.setattr(world.store, "revision", Mock(side_effect=StoreError("away")))
    monkeypatch.setattr(world.store, "load", Mock(side_effect=StoreError("away")))
    assert world.registry.view().size() == 1
    with pytest.raises(StoreError):
        world.whole.in_namespace(Namespace("late")).view()


def test_a_view_of_a_namespace_that_is_empty_again_is_let_go(world: World) -> None:
    """Whoever comes back to it finds versions that nobody saw before."""
    late, whole = Namespace("late"), world.whole
    whole.in_namespace(late).register(sample_instance())
    first = whole.in_namespace(late).view().version
    assert whole.keeps(late)
    whole.in_namespace(late).cancel("WEB", "web:1")
    assert whole.keeps(late)
    world.pass_time(300)
    assert not whole.keeps(late)
    whole.in_namespace(late).register(sample_instance())
    assert whole.keeps(late)
    assert whole.in_namespace(late).view().version > first + 1_000


def test_all_who_have_a_namespace_at_once_have_the_same_of_it(world: World) -> None:
    """Also where it was empty for long meanwhile, so that the registry itself let go of it."""
    late, whole = Namespace("late"), world.whole
    held = whole.in_namespace(late)
    held.view()
    assert not whole.keeps(late)
    assert whole.in_namespace(late) is held
    held.register(sample_instance())
    held.cancel("WEB", "web:1")
    world.pass_time(300)
    assert not whole.keeps(late)
    whole.in_namespace(late).register(sample_instance())
    assert whole.in_namespace(late) is held
    assert whole.keeps(late)
    # What came by another worker is seen by the next read.
    world.pass_time(300)
    assert not whole.keeps(late)
    Registry(world.store, world.clock, world.settings).in_namespace(late).register(
        sample_instance()
    )
    assert held.view().size() == 1
    assert whole.keeps(late)


def test_no_verb_has_a_namespace_among_its_arguments() -> None:
    """It is bound once, so that none can be left out and write into another tenant's space."""
    verbs = [m for n, m in vars(NamespaceRegistry).items() if not n.startswith("_") and callable(m)]
    assert {"register", "renew", "cancel", "evict", "view"} <= {verb.__name__ for verb in verbs}
    for verb in verbs:
        assert "namespace" not in inspect.signature(verb).parameters


def test_nothing_is_kept_of_a_namespace_for_being_asked_for(world: World) -> None:
    asked = weakref.ref(world.whole.in_namespace(Namespace("anybodys")))
    assert asked() is None


operations = st.lists(
    st.tuples(
        st.sampled_from(["register", "cancel", "renew", "set", "remove", "peer", "metadata"]),
        st.sampled_from(["A", "B"]),
        st.sampled_from(["1", "2", "3"]),
        st.sampled_from(list(S)),
        st.integers(1, 4),
    ),
    max_size=40,
)


@given(operations)
@settings(max_examples=150)
def test_whoever_applies_every_change_ends_with_the_whole(steps: list[Any]) -> None:
    """A second view, and a follower of the log, agree with the first after any operations."""
    world = World(MemoryStore())
    registry = world.registry
    follower: dict[InstanceKey, Instance] = {}
    seen = 0
    for kind, app, instance_id, status, dirty in steps:
        world.clock.advance(10)
        if kind == "register":
            instance = sample_instance(app, instance_id, status=status, last_dirty_ms=dirty)
            registry.register(instance)
        elif kind == "cancel":
            registry.cancel(app, instance_id)
        elif kind == "renew":
            registry.renew(app, instance_id)
        elif kind == "set":
            registry.set_override(app, instance_id, status)
        elif kind == "remove":
            registry.remove_override(app, instance_id, status)
        elif kind == "peer":
            registry.store_override(app, instance_id, status, last_dirty_ms=99)
        else:
            registry.update_metadata(app, instance_id, {"n": str(dirty)})
        view = registry.view()
        for change in view.recent(world.clock.mono):
            if change.revision > seen and change.instance is not None:
                if change.removed:
                    follower.pop(change.instance.key, None)
                else:
                    follower[change.instance.key] = change.instance
        seen = view.revision
        listed = {i.key: i for a in view.applications.values() for i in a.values()}
        assert follower == listed
        counts = Counter(i.status for i in listed.values())
        assert {s: n for s, n in view.listing.counts.items() if n} == counts
    fresh = world.another()
    assert fresh.view().applications == registry.view().applications
    assert fresh.view().overrides == registry.view().overrides


def test_a_thread_that_comes_second_to_a_change_loads_nothing_again(store: Any) -> None:
    """It read the revision first, and another thread caught up while it waited for the lock."""

    class Overtaken:
        """A fake: right after the revision was read there is another change, and another thread
        catches up with both."""

        loads = 0
        view: View
        overtaking = False

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def revision(self, namespace: Any) -> Any:
            revision = store.revision(namespace)
            if self.overtaking:
                self.overtaking = False
                world.registry.register(sample_instance(instance_id="web:later"))
                self.view.sync()
            return revision

        def load(self, namespace: Any) -> Any:
            self.loads += 1
            return store.load(namespace)

    world = World(store)
    overtaken = Overtaken()
    view = overtaken.view = View(overtaken, DEFAULT_NAMESPACE, 180_000)
    view.sync()
    world.registry.register(sample_instance())
    overtaken.overtaking = True
    view.sync()
    assert overtaken.loads == 1
    assert view.size() == 2


def test_a_view_left_behind_by_trimming_loads_everything_again(store: Any) -> None:
    world = World(store)
    other = world.another()
    for number in range(5):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    store.trim("default", world.clock.mono + 1)
    world.registry.register(sample_instance(instance_id="web:last"))
    assert other.view().size() == 6
    assert sample_instance()._replace(id="web:0").key in {
        i.key for i in other.view().applications["WEB"].values()
    }


# Followers of the delta.


class Follower:
    """A client as the original's: it applies each delta, and fetches all where the counts differ.

    It knows nothing but what the answers say.
    """

    def __init__(self) -> None:
        self.known: dict[InstanceKey, S] = {}
        self.full_fetches = 0

    def poll(self, world: World) -> None:
        view = world.registry.view()
        with view.lock:
            view.recent_until(world.clock.mono)
            changed = [i for a in view.changed.applications.values() for i in a.values()]
            listed = {i.key: i.status for a in view.applications.values() for i in a.values()}
        for instance in changed:
            if instance.action_type is ActionType.DELETED:
                self.known.pop(instance.key, None)
            else:
                self.known[instance.key] = instance.status
        if Counter(self.known.values()) != Counter(listed.values()):
            self.known = listed
            self.full_fetches += 1
        assert self.known == listed


@pytest.mark.parametrize("outage_secs", [1, 200, 100_000])
def test_the_first_delta_after_an_outage_tells_of_what_came_before_it(
    store: Any, outage_secs: int
) -> None:
    """As many came as went, so that the hash code is the same: the delta alone can tell."""
    world, follower = World(store), Follower()
    world.registry.register(sample_instance(instance_id="old:0"))
    world.evictor.run_once()
    follower.poll(world)
    world.pass_time(60)
    follower.poll(world)
    world.registry.cancel("WEB", "old:0")
    world.registry.register(sample_instance(instance_id="new:0", duration_secs=100_000))
    world.pass_time(3)

    world.clock.advance(outage_secs * 1_000)
    fetches = follower.full_fetches
    # One worker lives on, as after the suspend of a machine, and another is new.
    restarted = World(store, world.clock)
    for each in (world, restarted):
        read = Follower()
        read.known = dict(follower.known)
        read.poll(each)
        each.evictor.run_once()
        read.known = dict(follower.known)
        read.poll(each)
        assert read.full_fetches == 0
    assert follower.full_fetches == fetches
    restarted.pass_time(170)
    follower.poll(restarted)
    assert follower.full_fetches == fetches
    restarted.pass_time(20)
    assert restarted.registry.view().recent(restarted.clock.mono) == []


@pytest.mark.parametrize("is_lost", [False, True])
def test_the_first_delta_after_a_reboot_leads_to_what_is_listed(
    tmp_path: Path, is_lost: bool
) -> None:
    """Also where the last second was lost: who went in it is back, who came in it is not there."""
    store = LmdbStore(tmp_path / "store", boot_id="one")
    world, follower = World(store), Follower()
    world.registry.register(sample_instance(instance_id="old:0", duration_secs=100_000))
    world.registry.register(sample_instance(instance_id="stays", duration_secs=100_000))
    world.pass_time(200)
    follower.poll(world)
    if is_lost:
        store.flush()
    world.registry.cancel("WEB", "old:0")
    world.registry.register(sample_instance(instance_id="new:0"))
    if is_lost:
        follower.poll(world)
        (tmp_path / "store" / "data.mdb").write_bytes(b"torn")
    else:
        store.close()

    store = LmdbStore(tmp_path / "store", boot_id="two")
    rebooted = World(store)
    rebooted.clock.mono = 30_000
    rebooted.evictor.run_once()
    follower.poll(rebooted)
    assert set(follower.known) == {
        InstanceKey("WEB", "stays"),
        InstanceKey("WEB", "old:0" if is_lost else "new:0"),
    }
    store.close()


@given(operations, st.lists(st.booleans(), min_size=40, max_size=40), st.integers(0, 3_000))
@settings(max_examples=100)
def test_a_delta_without_all_removals_still_leads_to_what_is_listed(
    steps: list[Any], polls: list[bool], budget: int
) -> None:
    """Removed instances have a budget; what was forgotten for it shows in the hash code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("registry.changes.REMOVED_BYTES", budget)
        world, follower = World(MemoryStore()), Follower()
        registry = world.registry
        for (kind, app, instance_id, status, dirty), polled in zip(steps, polls, strict=False):
            world.clock.advance(100)
            if kind in ("register", "peer"):
                registry.register(
                    sample_instance(app, instance_id, status=status, last_dirty_ms=dirty)
                )
            elif kind in ("cancel", "metadata"):
                registry.cancel(app, instance_id)
            elif kind == "set":
                registry.set_override(app, instance_id, status)
            else:
                registry.remove_override(app, instance_id, status)
            if polled:
                follower.poll(world)
        follower.poll(world)


def test_a_storm_of_registrations_leaves_nothing_but_the_last(store: Any) -> None:
    """The log has each instance once, however often it changed."""
    world = World(store)
    for number in range(300):
        world.registry.register(sample_instance(last_dirty_ms=number + 2_000))
        world.registry.register(sample_instance(instance_id="comes and goes"))
        world.registry.cancel("WEB", "comes and goes")
    view = world.registry.view()
    assert [c.removed for c in view.recent(world.clock.mono)] == [False, True]
    changes = store.changes(DEFAULT_NAMESPACE, store.load(DEFAULT_NAMESPACE).complete_after)
    assert [c.removed for c in changes] == [False, True]


def test_what_was_removed_is_forgotten_early_beyond_the_budget(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that had not seen it yet loads everything; what is listed stays in the delta."""
    monkeypatch.setattr("registry.changes.REMOVED_BYTES", 20_000)
    monkeypatch.setattr("registry.stores.lmdb.log._REMOVED_BYTES", 20_000)
    world = World(store)
    other = world.another()
    seen = other.view().revision
    world.registry.register(sample_instance(instance_id="stays"))
    for number in range(100):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
        world.registry.cancel("WEB", f"web:{number}")
    for registry in (world.registry, other):
        view = registry.view()
        recent = view.recent(world.clock.mono)
        assert 1 < len(recent) < 40
        assert recent[0].instance is not None
        assert (recent[0].instance.id, recent[-1].removed) == ("stays", True)
        assert set(view.changed.applications["WEB"]) == {c.instance.id for c in recent}  # type: ignore[union-attr]
        assert view.changes_since(seen) is None
        assert view.changes_since(recent[-2].revision) == recent[-1:]


def test_a_worker_whose_store_is_gone_leaves_and_answers_nothing_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another begins on what is there; from memory none answers beside it."""
    monkeypatch.setattr("registry.evictor.PASS_INTERVAL_SECS", 0.001)
    world = World(LmdbStore(tmp_path / "store"))
    world.registry.register(sample_instance())
    shutil.rmtree(tmp_path / "store")
    left = threading.Event()
    evictor = Evictor(world.whole, world.store, leave=left.set)
    evictor.start()
    assert left.wait(HANG_SECS)
    with pytest.raises(StoreError, match="gone"):
        world.registry.view()
    evictor.stop()
    assert [r.levelname for r in caplog.records if "this process ends" in r.getMessage()] == [
        "ERROR"
    ]


def test_a_load_looks_for_no_garbage_and_leaves_the_collector_as_it_was() -> None:
    store, clock = MemoryStore(), ManualClock()
    registry_on(store, clock).register_all(
        [Registering(sample_instance("BIG", f"i{number}")) for number in range(3000)]
    )
    looks: list[str] = []

    def noted(phase: str, info: dict[str, int]) -> None:
        looks.append(phase)

    fresh = View(store, DEFAULT_NAMESPACE, 180_000)
    was_enabled = gc.isenabled()
    gc.enable()
    gc.collect()
    gc.callbacks.append(noted)
    try:
        fresh.sync()
    finally:
        gc.callbacks.remove(noted)
        assert gc.isenabled()
        if not was_enabled:
            gc.disable()
    assert looks.count("start") <= 1  # of what comes after it
    assert fresh.size() == 3000


def test_who_was_held_up_in_a_renewal_renews_again(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it puts down late may be older than what others did meanwhile."""
    world = World(store)
    world.registry.register(sample_instance())
    renew, deadlines = store.renew, []

    def held_up(namespace: Any, key: Any, lease: Any, window: Any) -> Any:
        if not deadlines:
            world.clock.advance(80_000)
            renew(namespace, key, lease._replace(deadline_mono_ms=world.clock.mono + 90_000), 1)
        deadlines.append(lease.deadline_mono_ms)
        return renew(namespace, key, lease, window)

    monkeypatch.setattr(store, "renew", held_up)
    assert world.registry.renew("WEB", "web:1") is not None
    assert deadlines[1:] == [world.clock.mono + 90_000]
    lease = store.lease(DEFAULT_NAMESPACE, KEY)
    assert lease is not None
    assert lease.deadline_mono_ms == world.clock.mono + 90_000


def test_memory_is_given_back_once_after_a_fleet_went(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr("registry.registry._trim_memory", lambda: trims.append(1))
    monkeypatch.setattr("registry.registry._MANY", 100)
    world = World(MemoryStore())
    world.registry.register_all(
        [Registering(sample_instance(instance_id=f"web:{number}")) for number in range(200)]
    )
    world.pass_time(10)
    for number in range(200):
        world.registry.cancel("WEB", f"web:{number}")
    world.pass_time(180)
    assert trims == []
    world.pass_time(120)
    assert trims == [1]
    world.pass_time(300)
    assert trims == [1]


@pytest.mark.parametrize("by_peer", [False, True])
def test_each_change_knows_whether_it_is_the_word_of_a_peer(world: World, by_peer: bool) -> None:
    registry = world.registry

    def told() -> bool:
        change = registry.view().recent(world.clock.mono_ms())[-1]
        assert change.instance is not None
        return change.instance.peers_know

    registry.register(sample_instance(), is_replication=by_peer)
    assert told() is by_peer
    registry.set_override("WEB", "web:1", S.OUT_OF_SERVICE, is_replication=by_peer)
    assert told() is by_peer
    registry.remove_override("WEB", "web:1", is_replication=by_peer)
    assert told() is by_peer
    registry.cancel("WEB", "web:1", is_replication=by_peer)
    assert told() is by_peer


def test_the_word_of_a_client_after_that_of_a_peer_is_news_again(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance(), is_replication=True)
    registry.update_metadata("WEB", "web:1", {"a": "b"})

    instance = registry.instance("WEB", "web:1")
    assert instance is not None
    assert not instance.peers_know


def test_the_native_api_is_no_peer(world: World) -> None:
    world.registry.register(sample_instance(source="native"), is_replication=True)

    instance = world.registry.instance("WEB", "web:1")
    assert instance is not None
    assert not instance.peers_know


def test_a_lease_knows_when_its_client_renewed_and_not_when_a_peer_said_so(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance())
    assert registry.renewed_by_clients(0) == []
    world.pass_time(1)
    at = world.clock.mono_ms()
    assert registry.renew("WEB", "web:1") is not None
    world.pass_time(1)
    assert registry.renew("WEB", "web:1", is_replication=True) is not None

    assert registry.renewed_by_clients(0) == [(InstanceKey("WEB", "web:1"), at)]


@pytest.mark.parametrize("module", [view_module, listing_module])
def test_the_example_that_opens_a_module_holds(module: ModuleType) -> None:
    names = {"MemoryStore": MemoryStore, "put": put, "sample_instance": sample_instance}
    found = doctest.testmod(module, extraglobs=names | {"NS": DEFAULT_NAMESPACE})
    assert found.attempted > 0
    assert found.failed == 0
