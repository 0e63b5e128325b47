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
from registry.model import DEFAULT_NAMESPACE, Instance
from registry.store import Store
from registry.stores.lmdb import LmdbStore
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
