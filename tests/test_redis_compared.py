"""What a machine wrote while Redis was away, beside what others wrote: the later one stays.

Whoever offers it first, whatever Redis lost meanwhile, and however often it was offered.
"""

from __future__ import annotations

from typing import Any

import pytest

from registry.model import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceStatus,
    OverrideChange,
    Revision,
)
from registry.stores.lmdb import copying, log
from registry.stores.lmdb.offering import LAST_ALONE
from registry.stores.lmdb.records import U64
from registry.stores.redis import RedisStore
from registry.stores.redis.records import Records
from registry.testing import put, sample_instance
from tests.redis_suite import (
    Machines,
    addresses,
    cut_power,
    lease_from,
    mono,
    settle,
    stop_threads,
)
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects", "unhurried")]
HERE, THERE = "10.1.1.1", "10.2.2.2"
LONG_MS = 1_000_000  # longer than the log tells of what is gone


class Pair:
    """Two machines that list web:1; ``here`` writes alone. They do only what they are told to."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self.here = machines.open("here", accepts=True)
        self.there = machines.open("there", accepts=True)
        first = put(sample_instance(), lease=lease_from(mono()), at_mono_ms=mono())
        self.here.commit(NS, first)
        stop_threads(self.here, self.there)
        self.there._follower.catch_up_all()
        self._began = mono()
        for store in (self.here, self.there):
            store._lives.know_of([each._lives.node.encode() for each in (self.here, self.there)])

    def write(self, store: RedisStore, at: int, *, alone: bool = False, **fields: Any) -> None:
        """Register web:1 with these fields, or cancel it where there are none, at an instant."""
        known: Instance | None = next(iter(store.load(NS).instances), None)
        changed = (known or sample_instance())._replace(**fields)
        expected = Revision(0) if known is None else known.revision
        step = int(known is None)
        commit = put(
            changed, expected=expected, lease=lease_from(mono()), expected_clients_step=step
        )
        if not fields:
            commit = commit._replace(remove=True, lease=None, expected_clients_step=-1)
        commit = commit._replace(at_mono_ms=self._began + at)
        (store._copy.commit_alone if alone else store.commit_all)(NS, [commit])

    def settle(self, first: str = "here") -> None:
        settle(*((self.here, self.there) if first == "here" else (self.there, self.here)))

    def agree(self) -> dict[str, str]:
        """What both list, and go on listing."""
        assert addresses(self.here) == addresses(self.there)
        expected = addresses(self.here)
        self.settle()
        assert addresses(self.here) == addresses(self.there) == expected
        return expected

    def snapshot(self) -> dict[bytes, bytes]:
        """What a replica has that hears of nothing from now on."""
        prefix = self._machines.prefix
        with self._machines.server.client() as client:
            names = client.keys(f"{{{prefix}}}:*") + client.keys(f"{{{prefix}:*")
            return {name: client.dump(name) for name in names}

    def fail_over(self, replica: dict[bytes, bytes]) -> None:
        """Have Redis be as a replica of it was."""
        self._machines.forget()
        with self._machines.server.client() as client:
            for name, value in replica.items():
                client.restore(name, 0, value)

    def lose(self) -> None:
        """Have Redis lose everything."""
        self._machines.forget()

    def await_nobody(self) -> None:
        """Have Redis wait for nobody any more, as some seconds after a loss."""
        with self._machines.server.client() as client:
            for name in client.keys(f"*{self._machines.prefix}*:awaited"):
                client.delete(name)


@pytest.fixture
def pair(fragile: Machines) -> Pair:
    return Pair(fragile)


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_what_followed_a_write_alone_is_given_back_where_a_replica_lacks_it(
    pair: Pair, alone: bool, is_cancelled: bool
) -> None:
    pair.write(pair.here, 0, alone=alone, ip_addr=HERE, last_dirty_ms=5_000)
    pair.settle()
    assert pair.agree() == {"web:1": HERE}
    replica = pair.snapshot()
    later = {} if is_cancelled else {"ip_addr": THERE, "last_dirty_ms": 6_000}
    pair.write(pair.there, 1_000, **later)
    pair.here._follower.catch_up_all()
    pair.fail_over(replica)
    pair.there._lives.adopt(lost=True)
    pair.settle()
    assert pair.agree() == ({} if is_cancelled else {"web:1": THERE})


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("later", ["here", "there"])
def test_of_a_write_alone_and_one_that_redis_lost_the_newer_stays_whoever_offers_it_first(
    pair: Pair, first: str, later: str
) -> None:
    dirty = (6_000, 5_000) if later == "here" else (5_000, 6_000)
    pair.write(pair.here, 0, alone=True, ip_addr=HERE, last_dirty_ms=dirty[0])
    pair.write(pair.there, 0, ip_addr=THERE, last_dirty_ms=dirty[1])
    pair.lose()
    pair.settle(first)
    assert pair.agree() == {"web:1": HERE if later == "here" else THERE}


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("cancelled_at", [-1_000, 1_000])
def test_of_equal_timestamps_the_later_write_stays_where_redis_lost_both(
    pair: Pair, cancelled_at: int, first: str
) -> None:
    """A cancel has the timestamp of what it cancels."""
    pair.write(pair.here, 0, alone=True, ip_addr=HERE)
    pair.write(pair.there, cancelled_at)
    pair.lose()
    pair.settle(first)
    assert pair.agree() == ({"web:1": HERE} if cancelled_at < 0 else {})


def test_what_others_only_gave_back_is_not_what_they_wrote_meanwhile(
    pair: Pair, fragile: Machines
) -> None:
    """Though it got another revision, since a machine was there already; and by whatever clock."""
    pair.write(pair.here, -5_000, alone=True)
    pair.lose()
    third = fragile.open("third")
    stop_threads(third)
    third.commit(NS, put(sample_instance(instance_id="web:2")))
    before = pair.there.revision(NS)
    pair.there._lives.adopt()
    assert {each.id for each in pair.there.load(NS).instances if each.revision > before} == {
        "web:1",
        "web:2",
    }
    pair.settle()
    assert pair.agree().keys() == {"web:2"}


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("redis", ["keeps all", "begins again", "loses all", "loses all twice"])
def test_of_two_registrations_with_equal_timestamps_the_later_stays(
    pair: Pair, redis: str, first: str
) -> None:
    """Though the earlier one counts as changed when Redis began again, or it was given back."""
    pair.write(pair.there, -5_000, ip_addr=THERE)
    pair.write(pair.here, -2_000, alone=True, ip_addr=HERE)
    if redis == "begins again":
        pair.there._lives.adopt(lost=True)
    elif redis != "keeps all":
        pair.lose()
    if redis == "loses all twice":
        pair.there._lives.adopt()
        pair.lose()
    pair.settle(first)
    assert pair.agree() == {"web:1": HERE}


def test_an_older_write_does_not_come_back_by_a_power_cut(pair: Pair) -> None:
    """At a machine that had not heard of the later one: after it, all counts as just changed."""
    pair.write(pair.there, -5_000, ip_addr=THERE)
    pair.write(pair.here, -2_000, alone=True, ip_addr=HERE)
    pair.here._lives.adopt()
    assert addresses(pair.here) == {"web:1": HERE}
    pair.there._copy._coordination._note_running(mono())
    cut_power(pair.there)
    pair.settle("there")
    assert pair.agree() == {"web:1": HERE}


def test_an_older_write_does_not_come_back_by_an_outage(pair: Pair) -> None:
    """In which the store's clock stands still."""
    pair.write(pair.there, -50_000, ip_addr=THERE)
    now = mono()
    for at in (now, now + 60_000):
        pair.there._copy._coordination._note_running(at)
    pair.write(pair.here, -20_000, alone=True, ip_addr=HERE)
    pair.lose()
    pair.settle("here")
    assert pair.agree() == {"web:1": HERE}


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_newer_write_is_offered_also_where_its_revision_is_beyond_the_one_given_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """As after weeks in one life, where a machine is alone another time."""
    monkeypatch.setattr(copying, "_BELOW", 1_000)
    last = U64.pack(pair.here.revision(NS) + 2_002)
    env = pair.here._copy.offering._env
    env.write(lambda txn: txn.put(LAST_ALONE, last, db=env.meta))
    pair.write(pair.here, 0, alone=True, ip_addr=HERE, last_dirty_ms=5_000)
    pair.write(pair.there, 0, ip_addr=THERE, last_dirty_ms=6_000)
    pair.lose()
    pair.settle(first)
    assert pair.agree() == {"web:1": THERE}


@pytest.mark.parametrize("is_cancelled_alone", [True, False])
def test_who_is_expected_to_renew_is_who_stays(pair: Pair, is_cancelled_alone: bool) -> None:
    """Whatever the machine that gave back first had counted."""
    pair.here.set_expected_clients(NS, 5)
    pair.there._copy.set_expected_clients(NS, 5)
    if is_cancelled_alone:
        pair.write(pair.here, 0, alone=True)
        pair.write(pair.there, 1_000, ip_addr=THERE, last_dirty_ms=6_000)
    else:
        pair.write(pair.here, 0, alone=True, ip_addr=HERE)
        pair.write(pair.there, 1_000)
    pair.lose()
    pair.settle("here")
    assert pair.agree() == ({"web:1": THERE} if is_cancelled_alone else {})
    for store in (pair.here, pair.there):
        assert store.expected_clients(NS) == (5 if is_cancelled_alone else 4)


def test_what_got_another_revision_as_it_was_given_back_is_not_given_back_again(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was written alone, and Redis has all that the machines have."""
    pair.write(pair.there, 0, ip_addr=THERE)
    pair.lose()
    pair.settle("here")  # who did not hear of it has taken the life up before
    assert pair.agree() == {"web:1": THERE}
    known = {each.revision for each in pair.there.load(NS).instances}
    for _ in range(2):
        caplog.clear()
        pair.here._lives.adopt(lost=True)
        pair.settle("there")
        assert [each.message for each in caplog.records if "gave" in each.message] == []
    assert {each.revision for each in pair.there.load(NS).instances} == known


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_what_an_old_master_took_counts_though_its_successor_was_given_what_came_before(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool, first: str
) -> None:
    """Sentinels left a master that lived, and came back to it when its successor was lost.

    What the successor had been given meanwhile, revisions beyond, was followed by one machine.
    """
    successor = pair.snapshot()
    former, later = ({"ip_addr": HERE}, {}) if is_cancelled else ({}, {"ip_addr": HERE})
    pair.write(pair.here, 0, **former)
    master = pair.snapshot()
    pair.fail_over(successor)
    pair.there._lives.adopt(lost=True)
    given_back_but_not_taken_up(pair.here, monkeypatch)
    pair.there._follower.catch_up_all()
    assert addresses(pair.there) == ({"web:1": HERE} if is_cancelled else {})
    pair.fail_over(master)
    pair.write(pair.here, 1_000, **later)
    (pair.here if first == "here" else pair.there)._lives.adopt(lost=True)
    pair.settle(first)
    assert pair.agree() == ({} if is_cancelled else {"web:1": HERE})


def given_back_but_not_taken_up(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine be killed as it is about to take up what it has just given back."""

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(store._copy, "take_up", killed)
        patch.setattr(store._copy, "replace", killed)
        with pytest.raises(KilledError):
            store._lives.adopt()


def test_a_cancel_of_what_was_offered_stays_though_who_offered_it_did_not_hear(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before it took up what it had offered, and offers it again."""
    pair.write(pair.here, 0, alone=True, ip_addr=HERE, last_dirty_ms=5_000)
    given_back_but_not_taken_up(pair.here, monkeypatch)
    pair.there._follower.catch_up_all()
    assert addresses(pair.there) == {"web:1": HERE}
    pair.write(pair.there, 1_000)
    pair.lose()
    pair.settle()
    assert pair.agree() == {}


@pytest.mark.parametrize("alone", [False, True])
def test_what_nobody_else_touched_is_taken_as_it_is_also_a_second_time(
    pair: Pair, alone: bool
) -> None:
    """Though the machine's clock was set back in between."""
    pair.write(pair.here, 0, alone=alone, ip_addr=HERE)
    pair.settle()
    pair.write(pair.here, -2_000, alone=True)
    pair.settle()
    assert pair.agree() == {}


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_what_one_wrote_alone_another_cancels_alone(pair: Pair, first: str, is_lost: bool) -> None:
    pair.write(pair.here, 0, alone=True, ip_addr=HERE, last_dirty_ms=5_000)
    pair.settle()
    pair.write(pair.there, 0, alone=True)
    if is_lost:
        pair.lose()
    pair.settle(first)
    assert pair.agree() == {}


@pytest.fixture
def third(fragile: Machines, pair: Pair) -> RedisStore:
    """Another machine, that has all of it too."""
    store = fragile.open("third")
    stop_threads(store)
    store._follower.catch_up_all()
    return store


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_others_gave_back_again_is_not_what_they_wrote_meanwhile(
    pair: Pair, fragile: Machines, first: str, is_cancelled: bool
) -> None:
    """The first loss gave it another revision, at an instant after what was written alone."""
    pair.write(pair.here, -3_000, alone=True, **({} if is_cancelled else {"ip_addr": HERE}))
    pair.lose()
    empty = fragile.open("empty")
    stop_threads(empty)
    empty.commit(NS, put(sample_instance(instance_id="web:2")))
    pair.there._lives.adopt()
    pair.there._follower.catch_up_all()
    pair.lose()
    fragile.close(empty)
    pair.settle(first)
    listed = pair.agree()
    listed.pop("web:2", None)
    assert listed == ({} if is_cancelled else {"web:1": HERE})


def test_a_write_alone_that_redis_alone_has_is_not_replaced_by_what_was_given_back(
    pair: Pair, fragile: Machines
) -> None:
    """Its machine is lost, and the other gave an older state to a successor meanwhile."""
    pair.write(pair.here, 0, alone=True, ip_addr=HERE, last_dirty_ms=5_000)
    pair.here._lives.adopt(lost=True)
    master = pair.snapshot()
    fragile.close(pair.here)
    pair.lose()
    empty = fragile.open("empty")
    stop_threads(empty)
    empty.commit(NS, put(sample_instance(instance_id="web:2")))
    pair.there._lives.adopt()
    pair.there._follower.catch_up_all()
    pair.fail_over(master)
    pair.there._lives.adopt(lost=True)
    settle(pair.there, empty)
    assert addresses(pair.there)["web:1"] == HERE


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_is_forgotten_while_a_machine_takes_a_life_up_is_not_missed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    pair.there._lives.adopt(lost=True)
    pair.await_nobody()
    if is_cancelled:
        pair.write(pair.there, 0)
    else:
        pair.there.commit(NS, put(sample_instance(instance_id="web:2"), lease=lease_from(mono())))
    named, trimmed = Records.named, list[bool]()

    def late(*args: Any) -> Any:
        if not trimmed:
            trimmed.append(bool(pair.there.trim(NS, mono() + LONG_MS)))
        return (yield from named(*args))

    monkeypatch.setattr(Records, "named", late)
    pair.here._lives.adopt()
    assert trimmed == [True]
    pair.here._follower.catch_up_all()
    assert addresses(pair.here) == addresses(pair.there)
    assert ("web:1" in addresses(pair.here)) is not is_cancelled


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("accepts", [False, True])
def test_what_was_cancelled_long_ago_does_not_come_back_with_who_was_away_in_one_life(
    fragile: Machines, accepts: bool, is_stopped: bool
) -> None:
    """Redis lost nothing: what a machine has beyond that has gone, however long ago."""
    here, there = fragile.open("here", accepts=accepts), fragile.open("there", accepts=accepts)
    here.commit(NS, put(sample_instance(), lease=lease_from(mono()), at_mono_ms=mono()))
    stop_threads(here, *([] if is_stopped else [there]))
    wait_until(lambda: addresses(there) or there._follower.catch_up_all())
    if is_stopped:
        there.flush()
        fragile.close(there)
    known = next(iter(here.load(NS).instances))
    gone = put(known, expected=known.revision, remove=True, lease=None, at_mono_ms=mono())
    here.commit(NS, gone)
    assert here.trim(NS, mono() + LONG_MS)
    if is_stopped:
        fragile.reboot("there")
        there = fragile.open("there", accepts=accepts)
    else:
        cut_power(there)
        there._lives.adopt()
    here._follower.catch_up_all()
    assert addresses(there) == addresses(here) == {}


def test_of_what_was_cancelled_alone_nothing_is_forgotten_before_it_was_offered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_REMOVED_BYTES", 2_000)
    more = [put(sample_instance(instance_id=f"web:{n}"), at_mono_ms=mono()) for n in range(2, 20)]
    pair.here.commit_all(NS, more)
    pair.there._follower.catch_up_all()
    for each in pair.here.load(NS).instances:
        gone = put(each, expected=each.revision, remove=True, lease=None, at_mono_ms=mono())
        pair.here._copy.commit_alone(NS, [gone])
    pair.settle()
    assert pair.agree() == {}


@pytest.mark.parametrize("is_alone", [False, True])
def test_an_override_that_was_removed_is_removed_also_where_its_instance_was_known_to_be_gone(
    pair: Pair, is_alone: bool
) -> None:
    here, away = pair.here, InstanceStatus.OUT_OF_SERVICE

    def listed() -> Instance:
        return next(iter(here.load(NS).instances))

    overrides = put(listed(), expected=listed().revision, override=OverrideChange("web:1", away))
    here.commit_all(NS, [overrides])
    known = put(listed(), expected=listed().revision)
    here.commit_all(NS, [known._replace(remove=True, expected_override=away)])
    pair.there._follower.catch_up_all()
    replica = pair.snapshot()
    write = here._copy.commit_alone if is_alone else here.commit_all
    again = put(sample_instance(), lease=lease_from(mono()), at_mono_ms=mono())
    write(NS, [again._replace(expected_override=away)])
    none = put(
        listed(),
        expected=listed().revision,
        override=OverrideChange("web:1", None),
        at_mono_ms=mono(),
    )
    write(NS, [none._replace(expected_override=away)])
    write(NS, [put(listed(), expected=listed().revision, at_mono_ms=mono())._replace(remove=True)])
    if not is_alone:
        pair.fail_over(replica)
        here._lives.adopt(lost=True)
    pair.settle()
    assert pair.agree() == {}
    assert [dict(each.load(NS).overrides) for each in (here, pair.there)] == [{}, {}]


def test_a_worker_hears_of_an_override_though_its_machine_began_to_take_a_life_up(
    pair: Pair,
) -> None:
    """That may come to nothing, and what is taken up is noted as changed before."""
    known = next(iter(pair.here.load(NS).instances))
    override = OverrideChange("web:1", InstanceStatus.OUT_OF_SERVICE)
    pair.here.commit_all(NS, [put(known, expected=known.revision, override=override)])
    pair.here._copy.offering.touch(NS, mono())
    changes = pair.here.changes(NS, known.revision)
    assert changes is not None
    assert [change.override for change in changes] == [override]


def register(store: RedisStore, name: str, *, alone: bool = False) -> None:
    made = put(sample_instance(instance_id=name), lease=lease_from(mono()), at_mono_ms=mono())
    (store._copy.commit_alone if alone else store.commit_all)(NS, [made])


@pytest.mark.parametrize("how", ["alone", "a power cut"])
def test_what_redis_lost_within_one_life_is_given_back_by_who_went_on_by_itself(
    pair: Pair, how: str
) -> None:
    """A server that lost its office, and has it again, without the last writes."""
    replica = pair.snapshot()
    register(pair.here, "web:2")
    if how == "alone":
        register(pair.here, "web:3", alone=True)
    else:
        cut_power(pair.here)
    pair.fail_over(replica)
    pair.here._lives.adopt()
    pair.settle()
    assert "web:2" in pair.agree()


@pytest.mark.parametrize("is_rebooted", [False, True])
def test_what_was_registered_on_lmdb_is_there_where_redis_is_used_again(
    fragile: Machines, is_rebooted: bool
) -> None:
    here = fragile.open("here")
    register(here, "web:1")
    here.flush()
    fragile.close(here)
    for name in ("web:2", "web:3"):
        plain = fragile.open_folder("here")
        made = put(sample_instance(instance_id=name), lease=lease_from(mono()), at_mono_ms=mono())
        plain.commit(NS, made)
        plain.flush()
        plain.close()
        if is_rebooted:
            fragile.reboot("here")
    here = fragile.open("here")
    stop_threads(here)
    assert addresses(here).keys() == {"web:1", "web:2", "web:3"}


def test_many_cancels_that_were_accepted_alone_are_offered_after_a_reboot_too(
    fragile: Machines,
) -> None:
    here, there = fragile.open("here", accepts=True), fragile.open("there", accepts=True)
    metadata = {"x": "y" * 2_000}
    many = [
        put(
            sample_instance(instance_id=f"web:{n}", metadata=metadata),
            lease=lease_from(mono()),
            at_mono_ms=mono(),
        )
        for n in range(200)
    ]
    here.commit_all(NS, many)
    wait_until(lambda: len(addresses(there)) == len(many))
    stop_threads(here, there)
    for each in here.load(NS).instances:
        gone = put(each, expected=each.revision, remove=True, lease=None, at_mono_ms=mono())
        here._copy.commit_alone(NS, [gone])
    here.flush()
    fragile.close(here)
    fragile.reboot("here")
    here = fragile.open("here", accepts=True)
    stop_threads(here)
    settle(here, there)
    assert addresses(here) == addresses(there) == {}
