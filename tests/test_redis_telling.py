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
from tests.redis_suite import Machines, lease_from, listed, mono
from tests.servers import fill, small_disk, wait_until

NS = DEFAULT_NAMESPACE
pytestmark = pytest.mark.programs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def machines(server: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(server, tmp_path)
    yield machines
    machines.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that nobody else asks anything."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


def renewed_at(store: Store, instance: Instance) -> int:
    found = store.lease(NS, instance.key)
    assert found is not None
    return found.last_renewal_ms


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
        store._stopping.set()
        for thread in store._threads:
            thread.join()
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
