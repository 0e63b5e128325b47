"""The store contract as a suite, a clock set by hand, and a sample instance.

Shipped with the package, so that a store kept elsewhere can be held to the same contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from registry.errors import ConflictError, LockLostError, StoreError
from registry.history import (
    Asker,
    ForgottenError,
    History,
    HistoryEntry,
    HistoryKind,
    Moment,
    Wish,
)
from registry.lease import Clock
from registry.model import (
    DEFAULT_NAMESPACE,
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.namespace import NamespaceRegistry
from registry.registry import Registry
from registry.settings import RegistrySettings
from registry.store import Commit, Coordination, Due, Fence, Records, Store

NS = DEFAULT_NAMESPACE
OTHER = Namespace("other")
LEASE = Lease(1_000, 90_000, 5)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        """Start the two clocks at unlike instants, so that mixing them up shows."""
        self.mono = 1_000_000
        self.wall = 1_700_000_000_000

    def wall_ms(self) -> int:
        """The wall clock as it was set."""
        return self.wall

    def mono_ms(self) -> int:
        """The monotonic clock as it was moved."""
        return self.mono

    def advance(self, milliseconds: int) -> None:
        """Let time pass on both clocks."""
        self.mono += milliseconds
        self.wall += milliseconds


def sample_instance(app: str = "WEB", instance_id: str = "web:1", **fields: Any) -> Instance:
    """A valid instance."""
    values: dict[str, Any] = {
        "app": app,
        "id": instance_id,
        "instance_id": instance_id,
        "host_name": "host.local",
        "ip_addr": "10.0.0.1",
        "vip_address": "web",
        "last_dirty_ms": 1_000,
    }
    return Instance(**(values | fields))


def registry_on(
    store: Store, clock: Clock, settings: RegistrySettings | None = None
) -> NamespaceRegistry:
    """The default namespace of a store, loaded, as another worker process has it."""
    registry = Registry(store, clock, settings or RegistrySettings())
    registry.start()
    return registry.in_namespace(DEFAULT_NAMESPACE)


def put(instance: Instance, **fields: Any) -> Commit:
    """A commit that lists an instance for the first time."""
    values: dict[str, Any] = {
        "key": instance.key,
        "expected": Revision(0),
        "expected_override": None,
        "at_mono_ms": 100,
        "instance": instance,
        "lease": LEASE,
    }
    return Commit(**(values | fields))


def methods_of(contract: type) -> list[str]:
    """The names of a contract's methods, but for those that it inherits."""
    return [
        name
        for name, method in vars(contract).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]


Failing = Callable[[], AbstractContextManager[None]]
"""Within what it gives, every call of the driver fails."""


def check_failure(store: Store, failing: Failing, method: str) -> None:
    """A method whose driver fails says so in the contract's words, and nothing is written."""
    call = getattr(store, method)
    required = [
        parameter.name
        for parameter in inspect.signature(getattr(Store, method)).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "self"
    ]
    arguments = [_ARGUMENTS[parameter] for parameter in required]
    if method == "revision":
        arguments = [OTHER]  # that of a namespace just written to may be known
    store.commit(NS, put(sample_instance()))
    store.set_note("a", b"old")
    token = store.acquire("a", "b", 0, 100)
    before = _told_by(store)
    with failing(), pytest.raises(StoreError) as caught:
        call(*arguments)
    assert caught.value.__cause__ is not None
    assert _told_by(store) == before
    assert store.note("a") == b"old"
    assert store.acquire("a", "another", 0, 100) is None
    assert store.acquire("a", "b", 0, 100) == token
    call(*arguments)  # and it serves again


def _told_by(store: Store) -> Any:
    counts = (store.expected_clients(NS), store.renewals(NS, 1), store.evictions(NS, 0))
    return store.load(NS), store.due(NS, 0), counts, store.namespaces()


class RecordsSuite:
    """What the records of every store must promise.

    A subclass gives the fixtures ``store`` (empty, at revision 0), ``failing``, and
    ``another_life``: a function that has the store lose what it last wrote, all of it or a part,
    and gives the store as it is then.
    """

    def test_an_empty_namespace_has_no_changes(self, store: Store) -> None:
        """Nothing is there before the first change."""
        assert store.load(NS).instances == ()
        assert store.changes(NS, store.revision(NS)) == []

    def test_a_commit_is_read_back_field_by_field(self, store: Store) -> None:
        """Nothing that was registered is lost."""
        first = store.revision(NS) + 1
        instance = sample_instance(metadata={"ü": "☃"}, status=InstanceStatus.STARTING)
        revision = store.commit(NS, put(instance))

        assert revision == first
        assert store.load(NS).instances == (instance._replace(revision=revision),)
        assert store.lease(NS, instance.key) == LEASE

    def test_every_commit_has_the_next_revision_and_is_a_change(self, store: Store) -> None:
        """A follower misses nothing."""
        start = store.revision(NS)
        first = store.commit(NS, put(sample_instance()))
        second = store.commit(NS, put(sample_instance(instance_id="web:2")))

        assert (first, second) == (start + 1, start + 2)
        changes = store.changes(NS, first)
        assert changes is not None
        assert [c.revision for c in changes] == [second]
        assert changes[0].instance == sample_instance(instance_id="web:2", revision=second)

    def test_what_changed_often_is_told_of_once_as_it_is_now(self, store: Store) -> None:
        """Whatever happened between, and in the order of the last changes."""
        one, two = sample_instance(), sample_instance(instance_id="web:2")
        start = store.revision(NS)
        first = store.commit(
            NS, put(one, override=OverrideChange("web:1", InstanceStatus.DOWN), at_mono_ms=1)
        )
        second = store.commit(NS, put(two, at_mono_ms=2))
        third = store.commit(
            NS,
            put(
                one._replace(ip_addr="10.0.0.9"),
                expected=first,
                expected_override=InstanceStatus.DOWN,
                at_mono_ms=3,
            ),
        )
        shown = one._replace(ip_addr="10.0.0.9", revision=third)
        override = OverrideChange("web:1", InstanceStatus.DOWN)
        changes = [
            Change(second, 2, two._replace(revision=second)),
            Change(third, 3, shown, override=override),
        ]
        assert store.changes(NS, start) == changes == list(store.load(NS).changes)
        assert store.changes(NS, second) == changes[1:]

        gone = store.commit(
            NS,
            put(
                shown,
                expected=third,
                expected_override=InstanceStatus.DOWN,
                override=OverrideChange("web:1", None),
                remove=True,
                evicted=True,
                lease=None,
                at_mono_ms=4,
            ),
        )
        last = shown._replace(revision=gone)
        removal = Change(gone, 4, last, True, True, OverrideChange("web:1", None))
        assert store.changes(NS, start) == [changes[0], removal] == list(store.load(NS).changes)

        back = store.commit(NS, put(one, at_mono_ms=5))
        again = one._replace(revision=back)
        assert store.changes(NS, start) == [
            changes[0],
            Change(back, 5, again, override=OverrideChange("web:1", None)),
        ]

    def test_an_override_that_changes_alone_is_a_change(self, store: Store) -> None:
        """And the removal of an instance under the same key is told of beside it."""
        instance = sample_instance()
        first = store.commit(NS, put(instance))
        gone = store.commit(NS, put(instance, expected=first, remove=True, lease=None))
        other = sample_instance("API", "web:1")
        set_override = OverrideChange("web:1", InstanceStatus.DOWN)
        there = store.commit(NS, put(other, override=set_override))
        none = OverrideChange("web:1", None)
        alone = Commit(instance.key, Revision(0), InstanceStatus.DOWN, 200, None, override=none)
        last = store.commit(NS, alone)

        assert store.changes(NS, first) == [
            Change(gone, 100, instance._replace(revision=gone), removed=True),
            Change(there, 100, other._replace(revision=there), override=none),
            Change(last, 200, None, override=none),
        ]
        assert store.load(NS).overrides == {}

    def test_it_tells_its_life_and_its_size(self, store: Store) -> None:
        start = store.revision(NS)
        store.commit(NS, put(sample_instance()))
        state = store.state()
        assert state.life == start
        assert state.size_bytes is None or state.size_bytes > 0

    def test_another_life_gives_no_revision_out_again(
        self, store: Store, another_life: Callable[[], Store]
    ) -> None:
        """Whoever knows a state that was lost is told everything, however much comes after it."""
        start = store.revision(NS)
        known = [
            store.commit(NS, put(sample_instance(instance_id=f"web:{number}")))
            for number in range(5)
        ]
        store = another_life()
        life = store.revision(NS)
        assert abs(life - known[-1]) > 1_000
        for number in range(5, 12):
            store.commit(NS, put(sample_instance(instance_id=f"web:{number}")))
        for revision in (start, *known):
            assert store.changes(NS, revision) is None
        changes = store.changes(NS, life)
        assert changes is not None
        assert [c.revision for c in changes] == list(range(life + 1, life + 8))
        # A delta has all that is listed, so its followers end with that or notice that they do not.
        snapshot = store.load(NS)
        assert snapshot.complete_after == life
        told = [c.instance for c in snapshot.changes if c.instance is not None and not c.removed]
        assert sorted(i.id for i in told) == sorted(i.id for i in snapshot.instances)

    def test_a_revision_from_nowhere_is_not_known(self, store: Store) -> None:
        """One of another store, say."""
        assert store.changes(NS, Revision(store.revision(NS) + 1)) is None

    def test_a_commit_on_a_stale_revision_changes_nothing(self, store: Store) -> None:
        """A lost race is told, not won."""
        first = store.commit(NS, put(sample_instance()))

        with pytest.raises(ConflictError):
            store.commit(NS, put(sample_instance(status=InstanceStatus.DOWN)))
        assert store.revision(NS) == first
        assert store.load(NS).instances[0].status is InstanceStatus.UP

    def test_a_commit_on_a_stale_override_changes_nothing(self, store: Store) -> None:
        """An override set meanwhile is not overlooked."""
        change = OverrideChange("web:1", InstanceStatus.DOWN)
        store.commit(NS, put(sample_instance(), override=change))

        with pytest.raises(ConflictError):
            store.commit(NS, put(sample_instance("API", "web:1")))
        assert store.load(NS).overrides == {"web:1": InstanceStatus.DOWN}

    def test_a_renewal_in_time_beats_an_eviction(self, store: Store) -> None:
        """A removal guarded by a deadline fails where the lease was renewed."""
        instance = sample_instance()
        revision = store.commit(NS, put(instance))
        assert store.renew(NS, instance.key, LEASE._replace(deadline_mono_ms=2_000), None)

        removal = put(
            instance, expected=revision, remove=True, expected_deadline_mono_ms=1_000, lease=None
        )
        with pytest.raises(ConflictError):
            store.commit(NS, removal)
        assert len(store.load(NS).instances) == 1

    def test_of_many_commits_each_holds_for_itself(self, store: Store) -> None:
        """They are written in their order; one whose guard does not hold stops no other."""
        one, two = sample_instance(), sample_instance(instance_id="web:2")
        start = store.revision(NS)
        first, second, third, fourth = (Revision(start + step) for step in (1, 2, 3, 4))
        found = store.commit_all(
            NS,
            [
                put(one),
                put(one._replace(status=InstanceStatus.DOWN)),
                put(two),
                put(one, expected=first, remove=True, lease=None),
                put(two, expected=second, lease=LEASE._replace(deadline_mono_ms=2_000)),
            ],
        )

        assert found == [first, None, second, third, fourth]
        assert store.load(NS).instances == (two._replace(revision=fourth),)
        assert store.lease(NS, one.key) is None
        assert store.lease(NS, two.key) == LEASE._replace(deadline_mono_ms=2_000)
        changes = store.changes(NS, start)
        assert changes is not None
        assert [(c.revision, c.removed) for c in changes] == [(third, True), (fourth, False)]

    def test_an_expected_client_counts_once_for_each_of_many_commits(self, store: Store) -> None:
        """Self-preservation counts what was written, and not what was refused."""
        store.set_expected_clients(NS, 10)
        one, two = sample_instance(), sample_instance(instance_id="web:2")
        steps = [put(each, expected_clients_step=1) for each in (one, one, two)]

        start = store.revision(NS)
        assert store.commit_all(NS, steps) == [start + 1, None, start + 2]
        assert store.expected_clients(NS) == 12

    def test_a_removal_takes_lease_and_override_with_it(self, store: Store) -> None:
        """Nothing is left of a removed instance but its change."""
        instance = sample_instance()
        change = OverrideChange("web:1", InstanceStatus.DOWN)
        revision = store.commit(NS, put(instance, override=change))
        removal = put(
            instance,
            expected=revision,
            expected_override=InstanceStatus.DOWN,
            remove=True,
            evicted=True,
            lease=None,
            override=OverrideChange("web:1", None),
        )
        store.commit(NS, removal)

        snapshot = store.load(NS)
        assert (snapshot.instances, snapshot.overrides) == ((), {})
        assert store.lease(NS, instance.key) is None
        assert (snapshot.changes[-1].removed, snapshot.changes[-1].evicted) == (True, True)

    def test_a_renewal_is_not_a_change(self, store: Store) -> None:
        """It touches the lease alone."""
        instance = sample_instance()
        revision = store.commit(NS, put(instance))
        renewed = Lease(9_000, 90_000, 77)

        assert store.renew(NS, instance.key, renewed, 3)
        assert store.revision(NS) == revision
        assert store.lease(NS, instance.key) == renewed
        assert store.due(NS, 1 << 40) == Due([(instance.key, renewed)], 1, None)

    def test_a_clients_renewal_is_told_until_another_lease_begins(self, store: Store) -> None:
        """Other servers learn from it who lives; what those told is no news to them."""
        keys = []
        for number in range(3):
            instance = sample_instance(instance_id=f"web:{number}")
            keys.append(instance.key)
            store.commit(NS, put(instance))
        other = store.commit(OTHER, put(sample_instance()))
        assert other
        assert store.renewed_by_clients(NS, 0) == []

        assert store.renew(NS, keys[0], LEASE._replace(client_mono_ms=50), None)
        assert store.renew(NS, keys[1], LEASE._replace(client_mono_ms=70), 3)
        assert store.renew(NS, keys[2], LEASE, 3)
        assert store.renew(OTHER, sample_instance().key, LEASE._replace(client_mono_ms=90), 3)
        assert sorted(store.renewed_by_clients(NS, 0)) == [(keys[0], 50), (keys[1], 70)]
        assert store.renewed_by_clients(NS, 50) == [(keys[1], 70)]
        assert store.renewed_by_clients(OTHER, 0) == [(sample_instance().key, 90)]

        # Another server's word leaves the client's as it was.
        assert store.renew(NS, keys[0], LEASE, None)
        assert sorted(store.renewed_by_clients(NS, 0)) == [(keys[0], 50), (keys[1], 70)]

        again = sample_instance(instance_id="web:1")
        revision = next(i.revision for i in store.load(NS).instances if i.key == keys[1])
        store.commit(NS, put(again, expected=revision))
        assert store.renewed_by_clients(NS, 0) == [(keys[0], 50)]

    def test_a_lease_is_due_from_the_instant_after_its_deadline(self, store: Store) -> None:
        """The evictor learns what is over, and until when it need not look again."""
        keys = []
        for number, deadline in enumerate((3_000, 1_000, 2_000)):
            instance = sample_instance(instance_id=f"web:{number}")
            keys.append(instance.key)
            store.commit(NS, put(instance, lease=LEASE._replace(deadline_mono_ms=deadline)))
        assert store.due(NS, 1_000) == Due([], 3, 1_000)
        lease = LEASE._replace(deadline_mono_ms=1_000)
        assert store.due(NS, 1_001) == Due([(keys[1], lease)], 3, 2_000)
        assert store.renew(NS, keys[1], LEASE._replace(deadline_mono_ms=4_000), None)
        assert store.due(NS, 1_001) == Due([], 3, 2_000)
        assert store.due(NS, 9_000).next_deadline_mono_ms is None

    def test_a_renewal_of_a_lease_of_another_duration_is_refused(self, store: Store) -> None:
        """It was decided for the registration before."""
        instance = sample_instance()
        shorter = Lease(500, 10_000, 5)
        revision = store.commit(NS, put(instance))
        store.commit(NS, put(instance, expected=revision, lease=shorter))
        assert not store.renew(NS, instance.key, LEASE._replace(deadline_mono_ms=9_000), 3)
        assert store.lease(NS, instance.key) == shorter
        assert store.renewals(NS, 3) == 0
        assert store.renew(NS, instance.key, shorter._replace(deadline_mono_ms=900), 3)

    def test_renewing_an_unknown_lease_is_refused(self, store: Store) -> None:
        """No lease comes into being by a renewal."""
        assert not store.renew(NS, InstanceKey("WEB", "nobody"), LEASE, 3)
        assert store.due(NS, 1 << 40) == Due([], 0, None)
        assert store.renewals(NS, 3) == 0

    def test_renewals_count_in_their_window(self, store: Store) -> None:
        """The running window and the last complete one are known."""
        instance = sample_instance()
        store.commit(NS, put(instance))
        for window in (3, 3, 4, 3 + 2):
            store.renew(NS, instance.key, LEASE, window)

        assert store.renewals(NS, 5) == 1
        assert store.renewals(NS, 4) == 1
        assert store.renewals(NS, 6) == 0

    def test_trimmed_changes_are_told_from_none(self, store: Store) -> None:
        """A follower that lost its place learns that it did."""
        revisions = [
            store.commit(NS, put(sample_instance(instance_id=f"web:{number}"), at_mono_ms=at))
            for number, at in enumerate((100, 200, 300))
        ]
        assert store.trim(NS, 201) == 2
        assert store.changes(NS, revisions[0]) is None
        changes = store.changes(NS, revisions[1])
        assert changes is not None
        assert [c.revision for c in changes] == revisions[2:]
        snapshot = store.load(NS)
        assert len(snapshot.instances) == 3
        assert snapshot.complete_after == revisions[1]
        assert [c.revision for c in snapshot.changes] == revisions[2:]

    def test_expected_clients_move_from_the_opening_number_and_only_above_0(
        self, store: Store
    ) -> None:
        """As the original counts them, in whichever namespace and whenever it came into being."""
        assert store.expected_clients(NS) is None
        store.commit(NS, put(sample_instance()))
        assert store.expected_clients(NS) is None
        one, two = sample_instance(instance_id="web:2"), sample_instance(instance_id="web:3")
        steps = [
            put(one, expected_clients_step=1, opening_clients=1),
            put(two, expected_clients_step=1, opening_clients=7),
        ]
        assert store.commit_all(NS, steps) == [2, 3]
        assert store.expected_clients(NS) == 3
        store.commit(OTHER, put(one, expected_clients_step=1, opening_clients=0))
        store.commit(OTHER, put(two, expected_clients_step=1, opening_clients=1))
        assert store.expected_clients(OTHER) == 0
        store.set_expected_clients(OTHER, 1)
        store.commit(
            OTHER,
            put(one, expected=Revision(1), remove=True, expected_clients_step=-1, lease=None),
        )
        assert store.expected_clients(OTHER) == 0

    def test_a_namespace_holds_no_more_than_it_may(self, store: Store) -> None:
        """However many come at once; what is there already may change and go."""
        one, two, three = (sample_instance(instance_id=f"web:{number}") for number in range(3))
        assert store.commit_all(NS, [put(i, instances_at_most=2) for i in (one, two, three)]) == [
            1,
            2,
            None,
        ]
        with pytest.raises(ConflictError):
            store.commit(NS, put(three, instances_at_most=2))
        again = put(one, expected=Revision(1), instances_at_most=2)
        gone = put(two, expected=Revision(2), remove=True, lease=None)
        assert store.commit_all(NS, [again, gone, put(three, instances_at_most=2)]) == [3, 4, 5]
        assert store.namespaces() == {NS: 2}

    def test_no_more_namespaces_hold_something_than_may(self, store: Store) -> None:
        """One that is empty again makes room for another."""
        held = store.commit(NS, put(sample_instance(), namespaces_at_most=1))
        with pytest.raises(ConflictError):
            store.commit(OTHER, put(sample_instance(), namespaces_at_most=1))
        assert set(store.namespaces()) == {NS}
        store.commit(NS, put(sample_instance(instance_id="web:2"), namespaces_at_most=1))
        for number, revision in enumerate((held, Revision(held + 1)), 1):
            instance = sample_instance(instance_id=f"web:{number}")
            store.commit(NS, put(instance, expected=revision, remove=True, lease=None))
        store.commit(OTHER, put(sample_instance(), namespaces_at_most=1))
        assert store.namespaces() == {NS: 0, OTHER: 1}

    def test_reading_a_namespace_does_not_bring_it_into_being(self, store: Store) -> None:
        """Nor do a refused write, and a look at its leases."""
        store.revision(NS)
        store.load(NS)
        store.changes(NS, Revision(0))
        store.renew(NS, InstanceKey("WEB", "nobody"), LEASE, 1)
        store.due(NS, 0)
        store.expected_clients(NS)
        store.evictions(NS, 0)
        store.trim(NS, 0)
        with pytest.raises(ConflictError):
            store.commit(NS, put(sample_instance(), expected=Revision(7)))
        assert store.namespaces() == {}

    def test_evictions_count_for_a_minute_and_removals_do_not(self, store: Store) -> None:
        """In the store, so that it matters to no budget who evicts, nor what a log still holds."""
        for number, at in enumerate((10_000, 10_000, 25_000, 30_000)):
            instance = sample_instance(instance_id=f"web:{number}")
            revision = store.commit(NS, put(instance))
            removal = put(instance, expected=revision, remove=True, lease=None, at_mono_ms=at)
            store.commit(NS, removal._replace(evicted=number != 3))
            store.trim(NS, at + 1)
        assert store.evictions(NS, 0) == 3
        assert store.evictions(NS, 20_000) == 1
        assert store.evictions(NS, 26_000) == 0
        assert store.evictions(OTHER, 0) == 0

    def test_a_pause_gives_the_leases_their_time_back(self, store: Store) -> None:
        """A server's own outage evicts nobody, and a lease that has more keeps it."""
        instance, longer = sample_instance(), sample_instance(instance_id="web:2")
        store.commit(NS, put(instance))
        store.commit(NS, put(longer, lease=Lease(900_000, 90_000, 5)))
        assert store.renew(NS, instance.key, LEASE._replace(client_mono_ms=50), None)

        assert store.resume(0) is None
        assert store.resume(2_500) is None
        assert store.resume(10_000) == 1
        assert store.lease(NS, instance.key) == Lease(100_000, 90_000, LEASE.last_renewal_ms, 50)
        assert store.lease(NS, longer.key) == Lease(900_000, 90_000, 5)

    def test_a_pause_consumes_nothing_of_the_log(self, store: Store) -> None:
        """A change is told of for as long as the server runs, whatever lies between."""
        store.resume(1_000)
        revision = store.commit(NS, put(sample_instance(), at_mono_ms=1_500))
        ran = store.running_ms(1_500)
        assert store.running_ms(2_000) == ran + 500
        assert store.running_ms(9_000_000) == store.running_ms(3_500) == ran + 2_000
        assert store.resume(9_000_000) == 1
        assert store.running_ms(9_000_000) == ran + 2_000
        assert store.running_ms(9_001_000) == ran + 3_000
        assert store.trim(NS, 9_001_000 - 3_000) == 0
        assert [(c.revision, c.at_running_ms) for c in store.load(NS).changes] == [(revision, ran)]
        assert store.trim(NS, 9_001_000 - 2_999) == 1

    def test_a_note_that_comes_late_takes_no_time_back(self, store: Store) -> None:
        """Of a process that was held up between its look at the clock and its word."""
        store.resume(1_000)
        store.resume(3_000)
        assert store.resume(2_000) is None
        assert store.resume(5_400) is None

    def test_namespaces_do_not_see_each_other(self, store: Store) -> None:
        """Same application, same id, another tenant."""
        store.commit(NS, put(sample_instance()))
        store.commit(OTHER, put(sample_instance(ip_addr="10.9.9.9")))

        assert [i.ip_addr for i in store.load(NS).instances] == ["10.0.0.1"]
        assert [i.ip_addr for i in store.load(OTHER).instances] == ["10.9.9.9"]
        assert set(store.namespaces()) == {NS, OTHER}
        assert store.due(NS, 0).leases == 1

    # The one is as cheap as it is promised to be, the other may lie in memory that is shared: both
    # may ask no driver.
    @pytest.mark.parametrize(
        "method", [m for m in methods_of(Records) if m not in ("running_ms", "renewed_by_clients")]
    )
    def test_a_failing_driver_raises_store_errors_only(
        self, store: Store, failing: Failing, method: str
    ) -> None:
        """Nothing of the driver's leaks out, whichever method meets the failure."""
        check_failure(store, failing, method)


class CoordinationSuite:
    """What the locks and notes of every store must promise.

    A subclass gives the fixtures ``store`` and ``failing``.
    """

    def test_a_lock_has_one_owner_until_it_times_out(self, store: Store) -> None:
        """A dead owner's lock is taken over, a live one's is not."""
        assert store.acquire("evictor", "a", 0, 100)
        assert not store.acquire("evictor", "b", 99, 100)
        assert store.acquire("evictor", "a", 50, 100)
        assert not store.acquire("evictor", "b", 149, 100)
        assert store.acquire("evictor", "b", 151, 100)
        store.release("evictor", "a")
        assert not store.acquire("evictor", "c", 152, 100)
        store.release("evictor", "b")
        assert store.acquire("evictor", "c", 153, 100)

    def test_a_lock_that_is_taken_anew_has_a_greater_token(self, store: Store) -> None:
        """Whoever keeps it keeps the token; another's, and one after a release, is later."""
        first = store.acquire("evictor", "a", 0, 100)
        assert first is not None
        assert first > 0
        assert store.acquire("evictor", "a", 50, 100) == first
        # It ran out, but nobody took it meanwhile.
        assert store.acquire("evictor", "a", 500, 100) == first
        second = store.acquire("evictor", "b", 700, 100)
        assert second is not None
        assert second > first
        store.release("evictor", "b")
        third = store.acquire("evictor", "b", 710, 100)
        assert third is not None
        assert third > second

    def test_a_note_is_read_as_it_was_left(self, store: Store) -> None:
        """The last one counts, each under its own name."""
        assert store.note("a") is None
        store.set_note("a", b"1")
        store.set_note("b", b"2")
        store.set_note("a", b"3")
        assert (store.note("a"), store.note("b")) == (b"3", b"2")
        store.set_note("a", None)
        store.set_note("a", None)
        assert (store.note("a"), store.note("b")) == (None, b"2")

    def test_a_lock_that_another_has_is_not_released(self, store: Store) -> None:
        """Nor is one that nobody has."""
        store.release("evictor", "a")
        token = store.acquire("evictor", "a", 0, 100)
        store.release("evictor", "b")
        store.release("another", "a")
        assert store.acquire("evictor", "b", 50, 100) is None
        assert store.acquire("evictor", "a", 50, 100) == token

    @pytest.mark.parametrize("method", methods_of(Coordination))
    def test_a_lock_or_note_that_the_driver_refuses_is_a_store_error(
        self, store: Store, failing: Failing, method: str
    ) -> None:
        """A lock that nobody could write is nobody's."""
        check_failure(store, failing, method)


class StoreSuite(RecordsSuite, CoordinationSuite):
    """What every store must promise: both, and what holds between them."""

    def test_nothing_is_written_for_a_former_owner_of_a_lock(self, store: Store) -> None:
        """However late it comes; a lock that ran out is good until another has it."""
        token = store.acquire("evictor", "a", 0, 100)
        assert token is not None
        fence = Fence("evictor", token)
        assert store.acquire("another", "b", 900, 100) is not None
        assert store.commit(NS, put(sample_instance()), fence) == 1
        assert store.acquire("evictor", "b", 1_000, 100) is not None
        late = put(sample_instance(instance_id="web:2"))
        with pytest.raises(LockLostError):
            store.commit(NS, late, fence)
        with pytest.raises(LockLostError):
            store.commit_all(NS, [late], fence)
        assert store.revision(NS) == 1
        assert store.commit(NS, late) == 2

    def test_a_healthy_store_takes_a_probe_and_shows_nothing_of_it(self, store: Store) -> None:
        """Also one that was never written to."""
        before = _told_by(store)
        store.probe()
        store.flush()
        assert _told_by(store) == before

    def test_a_probe_fails_as_a_write_does(self, store: Store, failing: Failing) -> None:
        """So that readiness is what writers would find."""
        check_failure(store, failing, "probe")


# For each parameter that a method of the contract may have. The key is of an instance that the
# store has not met: what it knows of others may do for them.
_ARGUMENTS: dict[str, Any] = {
    "namespace": NS,
    "key": InstanceKey("WEB", "another"),
    "commit": put(sample_instance(instance_id="web:2")),
    "commits": [put(sample_instance(instance_id="web:3"))],
    "after": Revision(0),
    "lease": LEASE,
    "window": 1,
    "now_mono_ms": 0,
    "before_mono_ms": 1,
    "after_mono_ms": 0,
    "ttl_ms": 1,
    "count": 1,
    "name": "a",
    "owner": "b",
    "value": b"c",
}


def happened(
    revision: int, at_ms: int, instance_id: str = "web:1", app: str = "WEB", **fields: Any
) -> HistoryEntry:
    """An entry: the registration of an instance, unless it is told to be something else."""
    values: dict[str, Any] = {
        "namespace": NS,
        "revision": Revision(revision),
        "at_ms": at_ms,
        "kind": HistoryKind.REGISTERED,
        "app": app,
        "id": instance_id,
        "instance": sample_instance(app, instance_id, revision=Revision(revision)),
    }
    return HistoryEntry(**(values | fields))


def gone(revision: int, at_ms: int, instance_id: str = "web:1", **fields: Any) -> HistoryEntry:
    """An entry: the cancel of an instance."""
    values: dict[str, Any] = {"kind": HistoryKind.CANCELLED, "removed": True}
    return happened(revision, at_ms, instance_id, **(values | fields))


class HistorySuite:
    """What every history must promise.

    A subclass gives the fixture ``history``: empty, not begun, with room for a thousand entries.
    """

    @pytest.fixture
    def begun(self, history: History) -> History:
        """A history of a registry in which nothing was listed at the instant 0."""
        history.begin({}, 0)
        return history

    @staticmethod
    def _ids(history: History, moment: Moment) -> list[tuple[str, int]]:
        return [(each.id, each.revision) for each in history.state(NS, moment)]

    def test_an_entry_is_read_back_field_by_field(self, begun: History) -> None:
        """Nothing that was told is lost."""
        entry = happened(
            7,
            1_000,
            kind=HistoryKind.OVERRIDE,
            by=Asker("ann", "10.0.0.1", "curl/8"),
            rule="override",
            detail={"override": "DOWN", "n": {"x": [1, None]}},
            instance=sample_instance(metadata={"ü": "☃"}, tags=("a", "b"), revision=Revision(7)),
        )
        event = happened(7, 1_001, "", "", instance=None, number=9, detail={"a": 1})
        begun.add([event, entry])
        assert begun.read(NS, Wish()) == ([event, entry], None)

    def test_the_newest_come_first_and_pages_follow_each_other(self, begun: History) -> None:
        """Every entry is on one page, whatever the limit."""
        entries = [happened(n, 1_000 + n // 2, f"web:{n}") for n in range(1, 12)]
        begun.add(entries)
        for limit in (1, 3, 11, 50):
            found, page = [], begun.read(NS, Wish(limit=limit))
            found += page.entries
            while page.before is not None:
                page = begun.read(NS, Wish(limit=limit, before=page.before))
                assert len(page.entries) <= limit
                found += page.entries
            assert found == entries[::-1]

    def test_it_is_read_by_time_application_id_and_kind(self, begun: History) -> None:
        """Instants are inclusive."""
        one, two = happened(1, 1_000), happened(2, 1_001, "api:1", "API")
        three, four = gone(3, 1_002), happened(4, 1_003, "web:1", "WEB-2")
        begun.add([one, two, three, four])

        def read(**wish: Any) -> list[HistoryEntry]:
            return begun.read(NS, Wish(**wish)).entries

        assert read(since_ms=1_001, until_ms=1_002) == [three, two]
        assert read(app="WEB") == [three, one]
        assert read(id="web:1") == [four, three, one]
        assert read(id="web:1", app="WEB") == [three, one]
        assert read(id="web:1", since_ms=1_001, until_ms=1_002) == [three]
        assert read(kinds=frozenset({HistoryKind.CANCELLED})) == [three]
        assert read(app="WEB", kinds=frozenset({HistoryKind.REGISTERED})) == [one]
        assert read(id="web") == read(app="W") == read(since_ms=1_004) == []

    def test_a_namespace_tells_of_itself_alone(self, begun: History) -> None:
        """Also where one's name begins as another's does."""
        begun.add([happened(1, 1_000), happened(1, 1_000, "x", namespace=Namespace("default-2"))])
        begun.add([happened(1, 1_000, "y", namespace=OTHER)])
        assert [e.id for e in begun.read(OTHER, Wish()).entries] == ["y"]
        assert [e.id for e in begun.read(NS, Wish()).entries] == ["web:1"]
        assert self._ids(begun, Moment(1_000)) == [("web:1", 1)]
        assert list(begun.known(OTHER)) == [InstanceKey("WEB", "y")]
        assert list(begun.state(Namespace("none"), Moment(1_000))) == []

    def test_what_was_listed_is_told_at_each_instant_and_revision(self, begun: History) -> None:
        """As of the last change until then; an event changes nothing."""
        changed = sample_instance(ip_addr="10.0.0.9")
        begun.add([happened(1, 1_000), happened(2, 1_010, "web:2"), gone(3, 1_020)])
        begun.add([happened(4, 1_030, "web:2", kind=HistoryKind.CHANGED, instance=changed)])
        begun.add([happened(4, 1_040, "web:2", instance=None, number=5)])
        assert self._ids(begun, Moment(999)) == []
        assert self._ids(begun, Moment(1_000)) == [("web:1", 1)]
        assert self._ids(begun, Moment(1_019)) == [("web:1", 1), ("web:2", 2)]
        assert self._ids(begun, Moment(1_020)) == [("web:2", 2)]
        assert list(begun.state(NS, Moment(1_050))) == [changed._replace(revision=Revision(4))]
        assert self._ids(begun, Moment(revision=0)) == []
        assert self._ids(begun, Moment(revision=2)) == [("web:1", 1), ("web:2", 2)]
        assert self._ids(begun, Moment()) == [("web:1", 4)]

    def test_a_clock_that_was_set_back_changes_no_order(self, begun: History) -> None:
        """Of what had happened by an instant the highest revision counts."""
        begun.add([happened(1, 2_000), gone(2, 1_000), happened(3, 1_500)])
        assert self._ids(begun, Moment(1_000)) == []
        assert self._ids(begun, Moment(1_999)) == self._ids(begun, Moment(2_001)) == [("web:1", 3)]
        begun.prune(1_600)
        assert self._ids(begun, Moment(2_001)) == [("web:1", 3)]

    def test_differences_tell_what_came_went_and_changed(self, begun: History) -> None:
        """Also of what was not touched between, nothing."""
        begun.add([happened(1, 1_000), happened(2, 1_001, "web:2"), happened(3, 1_002, "web:3")])
        first = Moment(1_003)
        begun.add([gone(4, 1_010), happened(5, 1_011, "web:2"), happened(6, 1_012, "web:4")])
        begun.add([happened(7, 1_013, "web:5"), gone(8, 1_014, "web:5")])

        def told(second: Moment) -> list[tuple[int, int]]:
            pairs = begun.differences(NS, first, second)
            return [(a.revision if a else 0, b.revision if b else 0) for a, b in pairs]

        assert told(Moment(1_014)) == told(Moment(revision=8)) == [(1, 0), (2, 5), (0, 6)]
        assert told(Moment(1_013)) == [(1, 0), (2, 5), (0, 6), (0, 7)]
        assert told(first) == []

    def test_before_it_begins_nothing_is_told_of_what_was_listed(self, history: History) -> None:
        """And what was listed when it began is told from then on, without an entry."""
        history.add([happened(1, 500), happened(2, 600, "web:2"), gone(3, 700)])
        with pytest.raises(ForgottenError) as caught:
            list(history.state(NS, Moment(600)))
        assert caught.value.earliest_ms is None
        history.begin({NS: Revision(3)}, 1_000)
        history.begin({NS: Revision(9)}, 2_000)
        assert history.extent().earliest_ms == 1_000
        assert history.read(NS, Wish()).entries == []
        for moment in (Moment(999), Moment(revision=2)):
            with pytest.raises(ForgottenError) as caught:
                list(history.state(NS, moment))
            assert caught.value.earliest_ms == 1_000
        for moment in (Moment(1_000), Moment(revision=3), Moment()):
            assert self._ids(history, moment) == [("web:2", 2)]

    def test_an_entry_from_before_it_began_is_a_state_without_an_entry(
        self, history: History
    ) -> None:
        """What is made up for may be older than what is kept."""
        history.begin({}, 1_000)
        history.add([happened(1, 10), happened(2, 20, "web:2"), happened(4, 1_100, "web:2")])
        assert [e.revision for e in history.read(NS, Wish()).entries] == [4]
        assert self._ids(history, Moment(1_000)) == [("web:1", 1), ("web:2", 2)]
        history.add([gone(3, 30)])
        assert self._ids(history, Moment(1_000)) == [("web:2", 2)]

    def test_what_is_forgotten_leaves_what_was_listed(self, begun: History) -> None:
        """Whatever was pruned, each later instant is told of as before."""
        begun.add([happened(n, 1_000 + n, f"web:{n % 7}") for n in range(1, 60)])
        begun.add([gone(n, 1_000 + n, f"web:{n % 7}") for n in range(60, 64)])
        begun.add([happened(n, 1_000 + n, f"web:{n % 5}") for n in range(64, 80)])
        told = {at: self._ids(begun, Moment(at)) for at in range(1_000, 1_081)}
        for before in (1_010, 1_030, 1_062, 1_075, 1_200):
            while begun.prune(before):
                pass
            earliest = begun.extent().earliest_ms
            assert earliest is not None
            assert before <= earliest
            for at, listed in told.items():
                if at >= earliest:
                    assert self._ids(begun, Moment(at)) == listed
                else:
                    with pytest.raises(ForgottenError):
                        list(begun.state(NS, Moment(at)))
            assert all(entry.at_ms >= before for entry in begun.read(NS, Wish(limit=99)).entries)
        assert self._ids(begun, Moment()) == told[1_080]
        assert begun.extent().entries == 0
        assert begun.prune(1_300) is False

    def test_the_newest_state_of_each_is_known(self, begun: History) -> None:
        """Also of those that were forgotten."""
        begun.add([happened(1, 1_000), happened(2, 1_001, "web:2"), happened(3, 1_002, "web:3")])
        while begun.prune(1_002):
            pass
        begun.add([gone(4, 1_003, "web:2"), happened(4, 1_004, instance=None, number=1)])
        assert begun.known(NS) == {
            InstanceKey("WEB", "web:1"): (1, True),
            InstanceKey("WEB", "web:2"): (4, False),
            InstanceKey("WEB", "web:3"): (3, True),
        }

    def test_the_bytes_stay_within_their_bound(self, begun: History) -> None:
        """The oldest go first, and the registry as it was can be told all the same."""
        most, number = 0, 0
        for _ in range(40):
            entries = []
            for _ in range(500):
                number += 1
                entries.append(happened(number, 1_000 + number, f"web:{number % 50}"))
            begun.add(entries)
            while begun.prune(0):
                pass
            most = max(most, begun.extent().bytes)
        extent = begun.extent()
        assert 0 < extent.entries < 20_000
        assert begun.read(NS, Wish(limit=1)).entries == [entries[-1]]
        assert extent.earliest_ms is not None
        assert extent.earliest_ms > 1_000
        assert len(self._ids(begun, Moment(extent.earliest_ms))) == 50
        assert most < 2 * extent.bytes
