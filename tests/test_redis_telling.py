"""What machines tell each other besides writes: whose leases were renewed, and how far each is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import StoreError
from registry.errors import ConflictError
from registry.lease import renewal_window
from registry.model import DEFAULT_NAMESPACE, Instance, Namespace
from registry.store import Store
from registry.stores.lmdb import LmdbStore
from registry.stores.redis import RedisStore, renewals
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer
from tests.redis_suite import Machines, lease_from, listed, mono, stop_threads
from tests.servers import fill, small_disk, wait_until

NS = DEFAULT_NAMESPACE
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


def renewed_at(store: Store, instance: Instance) -> int:
    found = store.lease(NS, instance.key)
    assert found is not None
    return found.last_renewal_ms


# Renewals


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


# A full disk


@pytest.fixture
def full(machines: Machines, tmp_path: Path) -> Iterator[Path]:
    """The disk of the machine ``full``, which is full once that is filled."""
    with small_disk(tmp_path / "full") as disk:
        yield disk
        machines.close()


def fill_with_copy(disk: Path, copy: LmdbStore) -> Path:
    """Fill a disk, and what space the copy's file has left."""
    ballast = fill(disk)
    for size in (4_000, 400, 1):
        try:
            for number in itertools.count():
                copy.set_note(f"ballast {size} {number}", b"x" * size)
        except StoreError:
            continue
    return ballast


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system is mounted, which takes root")
def test_a_machine_whose_disk_is_full_tells_its_renewals_and_hears_of_others(
    machines: Machines, full: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients that renew there alone are evicted by nobody; and it goes on when there is space."""
    here, there = machines.open("here"), machines.open("full")
    at_here, at_there = (sample_instance(instance_id=name) for name in ("here", "there"))
    began = mono()
    first = here.commit(NS, put(at_there, lease=lease_from(began, 20_000)))
    last = here.commit(NS, put(at_here, lease=lease_from(began, 20_000)))
    wait_until(lambda: there.revision(NS) == last)
    lease = here.lease(NS, at_there.key)
    assert lease is not None
    ballast = fill_with_copy(full, there._copy)
    # It cannot follow any more.
    here.commit(NS, put(sample_instance(instance_id="late"), lease=lease_from(began)))

    window = renewal_window(began)
    for turn in range(1, 4):
        at = began + 1_000 * turn
        assert there.renew(NS, at_there.key, lease_from(at, 20_000), window)
        assert here.renew(NS, at_here.key, lease_from(at, 20_000), window)
        wait_until(lambda at=at: renewed_at(here, at_there) == at, "its renewal is told")
        wait_until(lambda at=at: renewed_at(there, at_here) == at, "it hears of another")
    removal = put(at_there, expected=first, remove=True, lease=None, evicted=True)
    with pytest.raises(ConflictError):
        here.commit(NS, removal._replace(expected_deadline_mono_ms=lease.deadline_mono_ms))
    told = there._teller.told_until
    wait_until(lambda: there._teller.told_until > told, "it tells until when it told all")
    assert listed(there) == {"here", "there"}
    with pytest.raises(StoreError):
        there._copy.set_note("ballast", b"x")

    ballast.unlink()
    wait_until(lambda: listed(there) == {"here", "there", "late"})

    def said() -> list[str]:
        return [each for each in caplog.messages if "what others write" in each]

    wait_until(lambda: len(said()) == 2)
    assert "No space" in said()[0] or "Input/output error" in said()[0]


# How far each namespace is


def names(count: int) -> list[Namespace]:
    return [Namespace(f"n{number:03}") for number in range(count)]


def evaluations(server: RedisServer) -> int:
    """How many scripts Redis has run."""
    with server.client() as client:
        return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


def test_namespaces_in_which_nothing_happens_are_asked_for_seldom(
    own: RedisServer, tmp_path: Path
) -> None:
    """A call of the root in each round, and one for a hundredth of them."""
    machines = Machines(own, tmp_path)
    stores = [machines.open("here"), machines.open("there")]
    for name in names(200):
        revision = stores[0].commit(name, put(sample_instance(), lease=lease_from(mono())))
        wait_until(lambda name=name, revision=revision: stores[1].revision(name) == revision)

    def rounds() -> int:
        return sum(store._teller._round for store in stores)

    # All that was written is told, and known.
    settled = rounds() + 50
    wait_until(lambda: rounds() > settled)
    first, before = rounds(), evaluations(own)
    wait_until(lambda: rounds() > first + 60)
    after, last = evaluations(own), rounds()
    machines.close()
    # Of each store a round may have been at work when they were read.
    assert after - before <= (last - first + len(stores)) * (1 + 2)


@pytest.fixture
def by_hand(machines: Machines) -> list[RedisStore]:
    """Two machines with many namespaces, which tell when they are told to, and follow nothing."""
    stores = [machines.open("here"), machines.open("there")]
    here, there = stores
    for name in names(300):
        revision = here.commit(name, put(sample_instance(), lease=lease_from(mono())))
        wait_until(lambda name=name, revision=revision: there.revision(name) == revision)
    for store in stores:
        stop_threads(store)
    # All that was written is told, and nobody waits for its turn any more.
    for _ in range(2 * renewals._BEHIND_ROUNDS):
        for store in stores:
            store._teller.tell()
    return stores


def test_what_was_renewed_elsewhere_is_heard_soon_in_any_namespace(
    by_hand: list[RedisStore],
) -> None:
    here, there = by_hand
    key, at = sample_instance().key, mono() + 1_000
    for name in names(300):
        assert here.renew(name, key, lease_from(at), None)
    here._teller.tell()
    for _ in range(renewals._BEHIND_ROUNDS + 1):
        there._teller.tell()
    for name in names(300):
        found = there.lease(name, key)
        assert found is not None
        assert found.last_renewal_ms == at


def test_a_write_of_which_no_message_came_is_noticed_soon(by_hand: list[RedisStore]) -> None:
    """In any namespace, and in one that is new too."""
    here, there = by_hand
    changed = [*names(300)[-3:], Namespace("new")]
    for name in changed:
        here.commit(name, put(sample_instance(instance_id="late")))
    assert [there.revision(name) for name in changed] != [here.revision(name) for name in changed]
    here._teller.tell()
    for _ in range(renewals._BEHIND_ROUNDS + 1):
        there._teller.tell()
    assert [there.revision(name) for name in changed] == [here.revision(name) for name in changed]


def test_a_teller_that_takes_over_knows_what_its_machine_lacks(by_hand: list[RedisStore]) -> None:
    here, there = by_hand
    name = names(300)[-1]
    key, at = sample_instance().key, mono() + 1_000
    assert here.renew(name, key, lease_from(at), None)
    here._teller.tell()
    there._teller.tell()
    there._teller._is_teller = False
    for _ in range(renewals._BEHIND_ROUNDS + 1):
        there._teller.tell()
    found = there.lease(name, key)
    assert found is not None
    assert found.last_renewal_ms == at
