"""Writes that a machine accepts while Redis is away, and a machine that is cut off alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from registry import StoreError
from registry.errors import ConflictError
from registry.lease import SystemClock
from registry.model import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceStatus,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit, Fence, Store
from registry.stores.lmdb import copying
from registry.stores.redis import RedisStore, scripts
from registry.stores.redis import server as redis_server
from registry.stores.redis.scripts import Script
from registry.testing import put, registry_on, sample_instance
from tests.fake_link import FakeLink, Fault
from tests.redis_suite import (
    Machines,
    cut_power,
    lease_from,
    listed,
    mono,
    settle,
    stop_threads,
)
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = pytest.mark.programs
# Nothing arrives any more, and what was on its way is lost.
CUT_OFF = Fault(loses_request=1.0)


def untold(asked: bytes) -> Fault:
    """What is asked for with these bytes is done, and nobody hears of it, nor of what follows."""
    return Fault(loses_answer=1.0, since=asked)


@pytest.fixture
def machines(fragile: Machines) -> Machines:
    """Each test has a server that it may kill."""
    return fragile


class CutOff:
    """Two machines on a Redis, of which one reaches it over a link that can be cut."""

    def __init__(self, machines: Machines) -> None:
        self.link = FakeLink(machines.server.port)
        self.here = machines.open("here", accepts=True)
        self.alone = machines.open("alone", accepts=True, port=self.link.port)

    def cut(self) -> None:
        """Have all that was written until now known to both, and then cut one off."""
        wait_until(lambda: self.alone.revision(NS) == self.here.revision(NS))
        self.link.fail(CUT_OFF)
        self.link.cut()
        wait_until(lambda: self.alone._teller._is_away)

    def heal(self) -> None:
        """Let it through again, and wait until both agree."""
        self.link.heal()
        wait_until(lambda: not self.alone._copy.offering.is_alone())
        wait_until(lambda: self.alone.revision(NS) == self.here.revision(NS))
        assert shown(self.alone) == shown(self.here)

    def both(self) -> tuple[RedisStore, RedisStore]:
        return self.here, self.alone


@pytest.fixture
def cut_off(machines: Machines) -> Iterator[CutOff]:
    both = CutOff(machines)
    yield both
    both.link.heal()
    machines.close()
    both.link.close()


def shown(store: Store) -> tuple[set[Instance], dict[str, InstanceStatus]]:
    snapshot = store.load(NS)
    return {str(each) for each in snapshot.instances}, dict(snapshot.overrides)


def of(store: Store, instance_id: str = "web:1") -> Instance | None:
    return next((each for each in store.load(NS).instances if each.id == instance_id), None)


def change(store: Store, **fields: object) -> Instance:
    """Register web:1 again, as it is but for some fields."""
    known = of(store)
    assert known is not None
    changed = known._replace(**fields)
    store.commit(NS, put(changed, expected=known.revision, lease=lease_from(mono())))
    return changed


def removal(store: Store) -> Commit:
    known = of(store)
    assert known is not None
    return put(known, expected=known.revision, remove=True, lease=None)


def test_writes_are_accepted_while_redis_is_away_and_offered_when_it_is_back(
    machines: Machines,
) -> None:
    """They are seen as any other: the delta goes on, and a restart of the workers loses nothing."""
    here, there = machines.open("here", accepts=True), machines.open("there", accepts=True)
    old = sample_instance(instance_id="old")
    first = here.commit(NS, put(old, lease=lease_from(mono())))
    known = here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    wait_until(lambda: there.revision(NS) == known)
    machines.server.kill()
    assert here.probe() is None or "later" in str(here.probe())
    revision = here.commit(NS, put(sample_instance(instance_id="new"), lease=lease_from(mono())))
    down = OverrideChange("web:1", InstanceStatus.OUT_OF_SERVICE)
    web = of(here)
    assert web is not None
    here.commit(NS, put(web, expected=web.revision, lease=None, override=down))
    here.commit(NS, put(old, expected=first, remove=True, lease=None))
    there.commit(NS, put(sample_instance(instance_id="other"), lease=lease_from(mono())))
    assert revision > known
    told = here.changes(NS, known)
    assert told is not None
    assert [(c.instance and c.instance.id, c.removed) for c in told] == [
        ("new", False),
        ("web:1", False),
        ("old", True),
    ]
    remark = here.probe()
    assert remark is not None
    assert "offered to the other machines later" in remark
    key = sample_instance(instance_id="new").key
    assert here.renew(NS, key, lease_from(mono()), None)
    machines.close(here)
    here = machines.open("here", accepts=True)
    assert listed(here) == {"web:1", "new"}
    machines.server.start()
    for store in (here, there):
        wait_until(lambda store=store: not store._copy.offering.is_alone())
        wait_until(lambda store=store: listed(store) == {"web:1", "new", "other"})
        assert store.load(NS).overrides == {"web:1": InstanceStatus.OUT_OF_SERVICE}
        assert store.lease(NS, key) is not None
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    assert shown(here) == shown(there)
    wait_until(lambda: here.probe() is None)
    # And who joins now gets all of it.
    assert listed(machines.open("new", accepts=True)) == {"web:1", "new", "other"}


def test_without_the_setting_they_are_refused(machines: Machines) -> None:
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    machines.server.kill()
    with pytest.raises(StoreError, match="Redis at redis://127"):
        store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert not store._copy.offering.is_alone()


def test_while_redis_is_away_guards_hold_and_what_all_decide_together_is_refused(
    machines: Machines,
) -> None:
    """Limits are this machine's own; nobody is evicted, and nothing behind a fence is written."""
    store = machines.open("here", accepts=True)
    revision = store.commit(NS, put(sample_instance(), lease=lease_from(mono() - 10**6)))
    machines.server.kill()
    with pytest.raises(ConflictError):
        store.commit(NS, put(sample_instance()))
    full = put(sample_instance(instance_id="web:2"), instances_at_most=1)
    with pytest.raises(ConflictError):
        store.commit(NS, full)
    assert store.revision(NS) == revision
    with pytest.raises(StoreError):
        store.commit(NS, full._replace(instances_at_most=None), Fence("evictor", 1))
    lease = store.lease(NS, sample_instance().key)
    assert lease is not None
    eviction = removal(store)._replace(
        evicted=True, expected_deadline_mono_ms=lease.deadline_mono_ms
    )
    with pytest.raises(StoreError):
        store.commit(NS, eviction)
    with pytest.raises(StoreError):
        store.resume(mono())
    assert listed(store) == {"web:1"}
    store.commit(NS, full._replace(instances_at_most=2))
    assert listed(store) == {"web:1", "web:2"}


def test_a_machine_that_was_cut_off_joins_the_others_in_their_life(cut_off: CutOff) -> None:
    """Only what it wrote is offered; the others hear of it as of any change."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    cut_off.cut()
    life, before = here._copy.life(), here.revision(NS)
    alone.commit(NS, put(sample_instance(instance_id="there"), lease=lease_from(mono())))
    alone.commit(NS, removal(alone))
    here.commit(NS, put(sample_instance(instance_id="here"), lease=lease_from(mono())))
    cut_off.heal()
    assert listed(here) == listed(alone) == {"here", "there"}
    assert here._copy.life() == alone._copy.life() == life
    told = here.changes(NS, before)
    assert told is not None
    assert {(c.instance and c.instance.id, c.removed) for c in told} == {
        ("here", False),
        ("there", False),
        ("web:1", True),
    }


@pytest.mark.parametrize("is_newer_alone", [True, False])
def test_of_two_that_changed_the_same_the_newest_timestamp_wins(
    cut_off: CutOff, is_newer_alone: bool
) -> None:
    """The instance's own, whoever wrote later."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    cut_off.cut()
    dirty = (3_000, 2_000) if is_newer_alone else (2_000, 3_000)
    change(alone, ip_addr="10.0.0.7", last_dirty_ms=dirty[0])
    change(here, ip_addr="10.0.0.8", last_dirty_ms=dirty[1])
    cut_off.heal()
    for store in cut_off.both():
        found = of(store)
        assert found is not None
        assert found.ip_addr == ("10.0.0.7" if is_newer_alone else "10.0.0.8")


@pytest.mark.parametrize("is_later_alone", [True, False])
def test_among_equal_timestamps_the_later_write_wins(cut_off: CutOff, is_later_alone: bool) -> None:
    """As a cancel here and an override there, which change no timestamp."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    cut_off.cut()
    now = mono()
    down = OverrideChange("web:1", InstanceStatus.DOWN)
    known = of(here)
    assert known is not None
    override = put(known, expected=known.revision, lease=None, override=down)
    times = (now + 2_000, now) if is_later_alone else (now, now + 2_000)
    alone.commit(NS, override._replace(at_mono_ms=times[0]))
    here.commit(NS, removal(here)._replace(at_mono_ms=times[1]))
    cut_off.heal()
    expected = {"web:1": InstanceStatus.DOWN} if is_later_alone else {}
    for store in cut_off.both():
        assert listed(store) == set(expected)
        assert store.load(NS).overrides == expected


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("where", ["after a power cut", "in a namespace that was new"])
def test_what_others_wrote_meanwhile_is_compared_though_the_copy_is_in_a_life_of_its_own(
    machines: Machines, where: str, is_lost: bool
) -> None:
    """It is the later one by its timestamp, and so stays, also where Redis lost everything."""
    here, there = machines.open("here", accepts=True), machines.open("there")
    known = here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    wait_until(lambda: there.revision(NS) == known)
    stop_threads(here, there)
    namespace = NS
    if where == "after a power cut":
        cut_power(here)
    else:
        namespace = Namespace("new")
        here._copy.commit_alone(NS, [put(sample_instance(instance_id="web:2"))])
    expected = {each.id: each.revision for each in here.load(namespace).instances}.get("web:1")
    mine = sample_instance()._replace(ip_addr="10.1.1.1", last_dirty_ms=5_000)
    here._copy.commit_alone(namespace, [put(mine, expected=expected or Revision(0))])
    if is_lost:
        there._lives.know_of([there._lives.node.encode()])
        machines.forget()
        there._lives.adopt()
    expected = {each.id: each.revision for each in there.load(namespace).instances}.get("web:1")
    theirs = sample_instance()._replace(ip_addr="10.2.2.2", last_dirty_ms=6_000)
    there.commit(namespace, put(theirs, expected=expected or Revision(0)))
    for store in (here, there):
        store._lives.adopt()
        store._follower.catch_up_all()
    for store in (there, here):
        assert {i.ip_addr for i in store.load(namespace).instances if i.id == "web:1"} == {
            "10.2.2.2"
        }


@pytest.mark.parametrize(
    "what",
    [
        *("nothing else", "Redis emptied", "Redis emptied before"),
        *("power cut before", "power cut amid", "power cut then"),
    ],
)
def test_who_heard_a_machine_alone_misses_nothing_when_it_is_alone_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Though others changed something in between."""
    here, there = machines.open("here", accepts=True), machines.open("there")
    stop_threads(here, there)
    here.commit(NS, put(sample_instance()))
    steps = iter([1, 1 << 40, 2 << 40])  # at random else, so each may be the greater one
    monkeypatch.setattr(copying, "_random_step", lambda: next(steps))
    if what == "Redis emptied before":
        here._copy.commit_alone(NS, [put(sample_instance(instance_id="before"))])
        machines.forget()
        settle(here, there)
    else:
        next(steps)
    if what == "power cut before":
        cut_power(here)
        heard = Heard(here)
    here._copy.commit_alone(NS, [put(sample_instance(instance_id="alone"))])
    if what != "power cut before":
        heard = Heard(here)
    if what == "power cut amid":
        cut_power(here)
    if what == "Redis emptied":
        machines.forget()
    settle(here, there)
    if what == "power cut then":
        cut_power(here)
        here._copy.commit_alone(NS, [put(sample_instance(instance_id="after"))])
        settle(here, there)
    there.commit(NS, put(sample_instance(instance_id="between")))
    settle(here)
    assert here.changes(NS, heard.revision) is None
    here._copy.commit_alone(NS, [put(sample_instance(instance_id="again"))])
    assert heard.comes_out_right()
    assert here.changes(NS, here.revision(NS)) == []


def test_who_heard_a_machine_any_time_that_it_was_alone_misses_nothing(machines: Machines) -> None:
    here, there = machines.open("here", accepts=True), machines.open("there")
    stop_threads(here, there)
    here.commit(NS, put(sample_instance()))
    heard: list[Heard] = []
    for number in range(50):
        here._copy.commit_alone(NS, [put(sample_instance(instance_id=f"alone:{number}"))])
        assert all(each.comes_out_right() for each in heard)
        heard.append(Heard(here))
        settle(here, there)
        there.commit(NS, put(sample_instance(instance_id=f"between:{number}")))
        settle(here)


class Heard:
    """What somebody knows who was told of everything until now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = store.load(NS).revision
        self._known = listed(store)

    def comes_out_right(self) -> bool:
        """Whether what is told from then on leads to what is listed, or is said to be unknown."""
        told = self._store.changes(NS, self.revision)
        if told is None:
            return True
        named = {each.instance.id: each.removed for each in told if each.instance is not None}
        gone = {name for name, is_removed in named.items() if is_removed}
        return (self._known | named.keys()) - gone == listed(self._store)


def test_what_two_removed_alone_under_the_same_revision_stays_apart(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where both began at the same one, which is so unlikely that it is forced here."""
    here, there = (machines.open(name, accepts=True) for name in ("here", "there"))
    instances = [sample_instance(instance_id=f"web:{number}") for number in (1, 2, 3)]
    revisions = here.commit_all(NS, [put(each) for each in instances])
    there._follower.catch_up_all()
    stop_threads(here, there)
    began = Revision(here.revision(NS) + 1_000)
    monkeypatch.setattr(copying, "_alone_from", lambda *_: began)
    nodes = [store._lives.node.encode() for store in (here, there)]
    for number, store in enumerate((here, there)):
        gone = put(instances[number], expected=revisions[number], remove=True, lease=None)
        assert store._copy.commit_alone(NS, [gone]) == [began + 1]
        store._lives.know_of(nodes)
    machines.forget()
    for store in (here, there) * 2:
        store._lives.adopt()
        store._follower.catch_up_all()
    for store in (here, there):
        assert listed(store) == {"web:3"}
        names = list(store._copy.offering.held(NS).revisions)
        assert len(store._copy.offering.states(NS, names)) == 3


def test_what_is_written_alone_while_the_copy_is_taken_up_again_is_offered(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines.open("here", accepts=True), machines.open("there")
    known = here.commit(NS, put(sample_instance()))
    stop_threads(here, there)
    replace = here._copy.replace

    def late(*arguments: Any) -> bool:
        monkeypatch.undo()
        here._copy.commit_alone(NS, [put(sample_instance(instance_id="web:2"))])
        return replace(*arguments)

    monkeypatch.setattr(here._copy, "replace", late)
    here._lives.take_up_again(here.state().life, NS, known)
    here._lives.adopt()
    there._follower.catch_up_all()
    there.commit(NS, put(sample_instance(instance_id="web:3")))
    here._follower.catch_up_all()
    assert listed(here) == listed(there) == {"web:1", "web:2", "web:3"}


def test_what_two_machines_wrote_alone_is_compared_too(machines: Machines) -> None:
    """Both while Redis was down, which came back with nothing."""
    here, there = machines.open("here", accepts=True), machines.open("there", accepts=True)
    known = here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    wait_until(lambda: there.revision(NS) == known)
    machines.server.kill()
    change(here, ip_addr="10.0.0.7", last_dirty_ms=9_000)
    change(there, ip_addr="10.0.0.8", last_dirty_ms=8_000)
    machines.server.start()
    for store in (here, there):
        wait_until(lambda store=store: not store._copy.offering.is_alone())
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    for store in (here, there):
        found = of(store)
        assert found is not None
        assert found.ip_addr == "10.0.0.7"


def test_a_group_of_which_nobody_knows_whether_it_was_written_is_listed_once(
    cut_off: CutOff,
) -> None:
    """It was; and was decided again, alone, for no answer came. Both come to the same."""
    here, alone = cut_off.both()
    gone, kept = sample_instance(instance_id="gone"), sample_instance(instance_id="kept")
    both = [put(each, lease=lease_from(mono())) for each in (gone, kept)]
    first, second = alone.commit_all(NS, both)
    assert first is not None
    assert second is not None
    here.set_expected_clients(NS, 2)
    wait_until(lambda: here.revision(NS) == second and alone.expected_clients(NS) == 2)
    down = OverrideChange("kept", InstanceStatus.DOWN)
    now = mono()
    cut_off.link.fail(untold(b'"new"'))
    decided = alone.commit_all(
        NS,
        [
            put(
                sample_instance(instance_id="new"),
                lease=lease_from(now),
                at_mono_ms=now,
                expected_clients_step=1,
            ),
            put(kept, expected=second, override=down, lease=None, at_mono_ms=now),
            put(gone, expected=first, remove=True, lease=None, at_mono_ms=now),
        ],
    )
    assert None not in decided
    wait_until(lambda: here.revision(NS) == second + 3)
    expected = {"new", "kept"}
    assert listed(here) == listed(alone) == expected
    cut_off.heal()
    for store in (here, alone):
        assert listed(store) == expected
        assert store.load(NS).overrides == {"kept": InstanceStatus.DOWN}
        assert store.expected_clients(NS) == 3
        told = [each.instance and each.instance.id for each in store.load(NS).changes]
        assert sorted(told) == ["gone", "kept", "new"]


def test_a_group_that_was_not_written_when_it_was_cut_off_is_offered(cut_off: CutOff) -> None:
    here, alone = cut_off.both()
    first = alone.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    wait_until(lambda: here.revision(NS) == first)
    cut_off.link.fail(CUT_OFF)
    now = mono()
    decided = alone.commit_all(
        NS,
        [
            put(sample_instance(instance_id="new"), lease=lease_from(now), at_mono_ms=now),
            put(sample_instance(), expected=first, remove=True, lease=None, at_mono_ms=now),
        ],
    )
    assert None not in decided
    assert here.revision(NS) == first
    cut_off.heal()
    assert listed(here) == listed(alone) == {"new"}


def test_what_was_written_after_a_group_of_unknown_outcome_counts(cut_off: CutOff) -> None:
    """By either machine: of two that are alike but for when they were written, the later one."""
    here, alone = cut_off.both()
    first = alone.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    wait_until(lambda: here.revision(NS) == first)
    cut_off.link.fail(untold(b"web:1"))
    now = mono()
    cancel = put(sample_instance(), expected=first, remove=True, lease=None, at_mono_ms=now)
    alone.commit(NS, cancel)
    api = sample_instance("API", "api:1")
    alone.commit(NS, put(api, lease=lease_from(mono()), at_mono_ms=now + 1))
    # The client comes back, at the other machine.
    wait_until(lambda: here.revision(NS) == first + 1)
    here.commit(NS, put(sample_instance(), lease=lease_from(mono()), at_mono_ms=now + 5_000))
    cut_off.heal()
    assert listed(here) == listed(alone) == {"web:1", "api:1"}


def test_what_was_renewed_alone_is_not_evicted_afterwards(cut_off: CutOff) -> None:
    """Whoever was written alone has its whole lease from when the others hear of it."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    cut_off.cut()
    late = sample_instance(instance_id="late")
    alone.commit(NS, put(late, lease=lease_from(mono() - 80_000)))
    before = mono()
    cut_off.heal()
    lease = here.lease(NS, late.key)
    assert lease is not None
    assert lease.deadline_mono_ms >= before + 80_000


def test_how_many_clients_are_expected_is_offered_too_and_once(
    cut_off: CutOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others registered meanwhile counts beside it."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    here.set_expected_clients(NS, 5)
    wait_until(lambda: alone.expected_clients(NS) == 5)
    cut_off.cut()
    for number in range(2):
        new = sample_instance(instance_id=f"alone:{number}")
        alone.commit(NS, put(new, lease=lease_from(mono()), expected_clients_step=1))
    new = sample_instance(instance_id="here")
    here.commit(NS, put(new, lease=lease_from(mono()), expected_clients_step=1))
    assert (here.expected_clients(NS), alone.expected_clients(NS)) == (6, 7)
    take_up, moved_on = alone._lives._take_up, list[None]()

    def taken_up(*arguments: Any) -> bool:
        if not moved_on:
            moved_on.append(None)
            return False
        return take_up(*arguments)

    monkeypatch.setattr(alone._lives, "_take_up", taken_up)
    cut_off.heal()
    assert moved_on
    for store in (here, alone):
        wait_until(lambda store=store: store.expected_clients(NS) == 8)


def test_views_of_a_machine_that_was_cut_off_show_what_all_agree_on(cut_off: CutOff) -> None:
    """They follow what is written alone, and load again when it joins."""
    here, alone = cut_off.both()
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    cut_off.cut()
    registry = registry_on(alone, SystemClock())
    registry.register(sample_instance("API", "api:1"))
    registry.cancel("WEB", "web:1")
    assert set(registry.view().applications) == {"API"}
    here.commit(NS, put(sample_instance("OTHER", "other:1"), lease=lease_from(mono())))
    cut_off.heal()
    assert set(registry.view().applications) == {"API", "OTHER"}
    assert registry.renew("API", "api:1") is not None
    assert set(registry_on(here, SystemClock()).view().applications) == {"API", "OTHER"}
    assert here.revision(NS) > Revision(0)


def test_what_redis_may_have_done_and_the_copy_has_is_not_decided_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, its answer never came, and the copy heard of it as of another's change."""
    here, there = machines.open("here", accepts=True), machines.open("there", accepts=True)
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    run = redis_server._run

    def unheard(connection: Any, tag: str, script: Script, arguments: Any) -> Any:
        answer = run(connection, tag, script, arguments)
        if script is scripts.COMMIT:
            wait_until(lambda: not listed(here))
            raise redis.TimeoutError
        return answer

    known = removal(here)
    with monkeypatch.context() as patch:
        patch.setattr(redis_server, "_run", unheard)
        with pytest.raises(StoreError, match="it is not known whether this was written"):
            here.commit(NS, known)
    wait_until(lambda: not listed(there))
    assert not here._copy.offering.is_alone()
