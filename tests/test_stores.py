"""Each store against the contract, and what LMDB promises beyond it."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from registry import StoreError, open_store
from registry.errors import ConflictError, StoreGoneError
from registry.model import DEFAULT_NAMESPACE, Instance, Lease, Revision
from registry.store import Commit, Store
from registry.stores.lmdb import LmdbStore, TakenUp, coordination, log
from registry.stores.lmdb import folder as store_folder
from registry.stores.lmdb.files import damage
from registry.stores.lmdb.leases import LeaseFile, Place
from registry.stores.lmdb.records import decode_instance, encode_instance
from registry.stores.memory import MemoryStore
from registry.testing import LEASE, Failing, StoreSuite, put, sample_instance
from tests.servers import HANG_SECS

NS = DEFAULT_NAMESPACE


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    @pytest.fixture
    def another_life(self) -> Callable[[], Store]:
        return lambda: open_store("memory:")

    # It has no driver that could fail.
    test_a_failing_driver_raises_store_errors_only = None
    test_a_lock_or_note_that_the_driver_refuses_is_a_store_error = None
    test_a_probe_fails_as_a_write_does = None


class FragileEnvironment:
    """A driver that fails where it is told to, which a healthy disk cannot be made to do."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def __enter__(self) -> lmdb.Environment:
        return self._environment

    def __exit__(self, *_: object) -> None:
        self._environment.close()

    def begin(self, *arguments: Any, **options: Any) -> Any:
        if self.fails:
            raise lmdb.DiskError("no space left on device")
        return self._environment.begin(*arguments, **options)

    def copy(self, *arguments: Any, **options: Any) -> None:
        if self.fails:
            raise lmdb.DiskError("no space left on device")
        self._environment.copy(*arguments, **options)


class TestLmdbStore(StoreSuite):
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[FragileEnvironment]:
        """The environments that the driver opens."""
        opened: list[FragileEnvironment] = []
        lmdb_open = lmdb.open

        def open_fragile(*arguments: Any, **options: Any) -> FragileEnvironment:
            opened.append(FragileEnvironment(lmdb_open(*arguments, **options)))
            return opened[-1]

        monkeypatch.setattr(lmdb, "open", open_fragile)
        return opened

    @pytest.fixture
    def store(self, tmp_path: Path, opened: list[FragileEnvironment]) -> Iterator[Store]:
        store = LmdbStore(tmp_path / "store", boot_id="one", life=Revision(0))
        yield store
        store.close()

    @pytest.fixture
    def another_life(self, store: LmdbStore, tmp_path: Path) -> Callable[[], Store]:
        def lose() -> Store:
            store.flush()
            return LmdbStore(tmp_path / "store", boot_id="two")

        return lose

    @pytest.fixture
    def failing(self, opened: list[FragileEnvironment]) -> Failing:
        @contextmanager
        def fail() -> Iterator[None]:
            for environment in opened:
                environment.fails = True
            yield
            for environment in opened:
                environment.fails = False

        return fail

    def test_the_revision_of_an_own_write_is_known_without_asking(
        self, store: LmdbStore, failing: Failing
    ) -> None:
        """So that one registration after the other asks for nothing but its own writing."""
        revision = store.commit(NS, put(sample_instance()))
        with failing():
            assert store.revision(NS) == revision


def fill(folder: Path, prefix: str, count: int) -> None:
    store = LmdbStore(folder)
    for number in range(count):
        instance = sample_instance(instance_id=f"{prefix}:{number}", metadata={"pad": "x" * 2000})
        store.commit(NS, put(instance))
    store.close()


def test_the_map_grows_and_other_processes_follow(tmp_path: Path) -> None:
    """Two processes write past the first map size in turn, and both read everything."""
    folder = tmp_path / "store"
    here = LmdbStore(folder)
    first = here.commit(NS, put(sample_instance(instance_id="first")))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=fill, args=(folder, name, 2_000)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=HANG_SECS)

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (folder / "data.mdb").stat().st_size > 16 * 1024 * 1024
    assert here.revision(NS) == first + 4_000
    assert len(here.load(NS).instances) == 4_001
    here.commit(NS, put(sample_instance(instance_id="last")))
    assert here.revision(NS) == first + 4_001


def test_what_is_forgotten_amid_taking_up_is_not_told_to_be_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removals that a life begins with may be more than are kept."""
    monkeypatch.setattr(log, "_REMOVED_BYTES", 3_000)
    store = LmdbStore(tmp_path / "store", life=Revision(0))
    names = ["web:1", "web:2", "web:3"]
    for name in names:
        store.commit(NS, put(sample_instance(instance_id=name, metadata={"pad": "x" * 2_000})))
    life, known = Revision(100), {NS: store.revision(NS)}
    removals = [
        (Revision(life + place), put(each, expected=each.revision, remove=True, lease=None))
        for place, each in enumerate(store.load(NS).instances, start=1)
    ]
    last = Revision(life + len(names))

    assert store.take_up(life, {NS: TakenUp(last, life, removals, {}, None, {})}, known, {})

    forgotten = store.complete_after(NS)
    assert life < forgotten < last
    assert store.changes(NS, life) is None
    assert store.load(NS).complete_after == forgotten
    assert [each.revision for each in store.changes(NS, forgotten) or ()] == [last]


def test_after_a_power_cut_the_store_starts_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Another boot id stands for the reboot, a torn working file for what the cut left behind."""
    folder = tmp_path / "store"
    store = LmdbStore(folder, boot_id="one")
    store.commit(NS, put(sample_instance()))
    store.close()
    (folder / "data.mdb").write_bytes(b"torn" * 10_000)

    store = LmdbStore(folder, boot_id="two")
    assert [i.id for i in store.load(NS).instances] == ["web:1"]
    # The old clock's deadlines hold no more: the first pass gives every lease its time.
    assert store.resume(5_000) == 1
    lease = store.lease(NS, sample_instance().key)
    assert lease is not None
    assert lease.deadline_mono_ms == 95_000
    store.close()


def test_a_store_that_came_without_its_checkpoint_loses_nothing_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = LmdbStore(folder, boot_id="one")
    store.commit(NS, put(sample_instance()))
    store.close()
    (folder / "checkpoint.mdb").unlink()
    whole = (folder / "data.mdb").read_bytes()

    store = LmdbStore(folder, boot_id="two")
    assert [i.id for i in store.load(NS).instances] == ["web:1"]
    assert store.resume(5_000) == 1
    store.close()

    (folder / "checkpoint.mdb").unlink()
    (folder / "data.mdb").write_bytes(b"torn" * 10_000)
    with pytest.raises(StoreError, match=r"another boot, .* no checkpoint\.mdb"):
        LmdbStore(folder, boot_id="three")
    (folder / "data.mdb").write_bytes(whole)
    assert len(LmdbStore(folder, boot_id="three").load(NS).instances) == 1


def test_after_another_boot_all_slots_have_their_room(tmp_path: Path) -> None:
    """Those that count renewals and those that are free too, with no lease left beyond them."""
    store = LmdbStore(tmp_path / "store", boot_id="one")
    keys = [sample_instance(instance_id=f"web:{number}") for number in range(1_100)]
    revisions = [store.commit(NS, put(instance)) for instance in keys]
    assert store.renew(NS, keys[0].key, Lease(1_000, 90_000, 1), 7)
    for instance, revision in zip(keys[1:], revisions[1:], strict=True):
        store.commit(NS, put(instance, expected=revision, remove=True))
    store.close()

    store = LmdbStore(tmp_path / "store", boot_id="two")
    assert store.renewals(NS, 7) == 0
    assert store.renew(NS, keys[0].key, Lease(2_000, 90_000, 2), 9)
    assert store.renewals(NS, 9) == 1
    for instance in keys[1:]:
        store.commit(NS, put(instance))
    assert store.due(NS, 0).leases == 1_100
    store.close()


def test_a_checkpoint_is_written_while_the_store_runs(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = LmdbStore(folder, boot_id="one")
    store.commit(NS, put(sample_instance()))
    store.flush()
    (folder / "data.mdb").write_bytes(b"torn" * 10_000)

    restored = LmdbStore(folder, boot_id="two")
    assert [i.id for i in restored.load(NS).instances] == ["web:1"]


def test_a_long_log_is_trimmed_in_portions_to_the_same_end(store: LmdbStore) -> None:
    start = store.revision(NS)
    for number in range(4_200):
        instance = sample_instance(instance_id=f"web:{number}")
        store.commit(NS, put(instance, at_mono_ms=number))
    assert [store.trim(NS, 4_100) for _ in "abc"] == [4_000, 100, 0]
    assert store.changes(NS, Revision(start + 4_099)) is None
    left = store.changes(NS, Revision(start + 4_100))
    assert left is not None
    assert [change.at_running_ms for change in left] == list(range(4_100, 4_200))


def test_an_instance_is_encoded_field_by_field() -> None:
    instance: Instance = sample_instance(metadata={"a": "b"}, sid="s", country_id=7)
    assert decode_instance(encode_instance(instance), instance.revision) == instance


@pytest.mark.parametrize("url", ["", "redis:", "redis:///", "lmdb:", "memory:x", "lmdb", "rediss:"])
def test_an_unknown_store_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*redis://HOST"):
        open_store(url)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the store"):
        LmdbStore(tmp_path / "file" / "store")


# The lease file.


class Elsewhere:
    """A store in a process of its own, whose methods are called from here."""

    def __init__(self, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._calls, there = spawn.Pipe()
        self._process = spawn.Process(target=self._serve, args=(folder, there), daemon=True)
        self._process.start()

    @staticmethod
    def _serve(folder: Path, calls: Any) -> None:
        store = LmdbStore(folder)
        while call := calls.recv():
            calls.send(getattr(store, call[0])(*call[1:]))
        store.close()

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._calls.send((method, *arguments))
            assert self._calls.poll(30)
            return self._calls.recv()

        return call

    def leave(self) -> None:
        self._calls.send(())
        self._process.join(timeout=HANG_SECS)
        assert self._process.exitcode == 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    store = LmdbStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def other(store: LmdbStore, tmp_path: Path) -> Iterator[Elsewhere]:
    other = Elsewhere(tmp_path / "store")
    yield other
    other.leave()


def test_renewals_are_seen_by_other_processes(store: LmdbStore, other: Elsewhere) -> None:
    key = sample_instance().key
    store.commit(NS, put(sample_instance()))
    assert store.renew(NS, key, Lease(1_000, 90_000, 1), 7)
    assert other.renew(NS, key, Lease(2_000, 90_000, 2), 7)
    assert store.lease(NS, key) == other.lease(NS, key) == Lease(2_000, 90_000, 2)
    assert store.renewals(NS, 7) == other.renewals(NS, 7) == 2


def test_a_change_of_another_process_is_seen_right_after_an_own_one(
    store: LmdbStore, other: Elsewhere
) -> None:
    for number in range(20):
        for writer in (store, other):
            instance = sample_instance(instance_id=f"{writer is store}:{number}")
            revision = writer.commit(NS, put(instance))
            assert store.revision(NS) == other.revision(NS) == revision


def test_one_process_leads_until_it_says_so_no_longer(store: LmdbStore, other: Elsewhere) -> None:
    assert store.lead(10_000, 1_000)
    assert not other.lead(10_999, 1_000)
    assert store.lead(10_900, 1_000)
    assert not other.lead(11_800, 1_000)
    assert other.lead(11_900, 1_000)
    assert not store.lead(12_000, 1_000)
    assert other.lead(12_100, 0)
    assert store.lead(12_101, 1_000)
    # What says that another leads for years is nonsense.
    assert other.lead(-(10**9), 1_000)


def test_renewals_survive_a_restart(tmp_path: Path) -> None:
    key = sample_instance().key
    store = LmdbStore(tmp_path / "store")
    store.commit(NS, put(sample_instance()))
    assert store.renew(NS, key, Lease(2_000, 90_000, 2), 7)
    store.close()

    store = LmdbStore(tmp_path / "store")
    assert store.lease(NS, key) == Lease(2_000, 90_000, 2)
    assert store.renew(NS, key, Lease(3_000, 90_000, 3), 7)
    assert store.renewals(NS, 7) == 2
    store.close()


def test_a_lease_that_another_process_ended_or_replaced_is_not_renewed_by_mistake(
    store: LmdbStore, other: Elsewhere
) -> None:
    instance = sample_instance()
    first = store.commit(NS, put(instance))
    for holder in (store, other):
        assert holder.renew(NS, instance.key, Lease(1_000, 90_000, 1), None)
    second = other.commit(NS, put(instance, expected=first, lease=Lease(5_000, 30_000, 5)))
    assert store.lease(NS, instance.key) == Lease(5_000, 30_000, 5)
    assert store.renew(NS, instance.key, Lease(6_000, 30_000, 6), None)
    assert other.lease(NS, instance.key) == Lease(6_000, 30_000, 6)

    other.commit(NS, put(instance, expected=second, remove=True))
    assert not store.renew(NS, instance.key, Lease(7_000, 30_000, 7), None)
    assert store.lease(NS, instance.key) is None
    # Its slot is the next one's, which a late writer's deadline must not reach.
    newcomer = sample_instance(instance_id="web:2")
    other.commit(NS, put(newcomer, lease=Lease(8_000, 30_000, 8)))
    assert not store.renew(NS, instance.key, Lease(9_000, 30_000, 9), None)
    assert store.lease(NS, newcomer.key) == Lease(8_000, 30_000, 8)


def test_more_leases_than_the_file_had_room_for(store: LmdbStore, other: Elsewhere) -> None:
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(3_000)]
    for instance in instances:
        store.commit(NS, put(instance, lease=Lease(1_000, 90_000, 1)))
    assert other.renew(NS, instances[-1].key, Lease(2_000, 90_000, 2), None)
    assert store.lease(NS, instances[-1].key) == Lease(2_000, 90_000, 2)
    assert store.due(NS, 0).leases == 3_000
    over = store.due(NS, 1_500)
    assert {key for key, _ in over.expired} == {instance.key for instance in instances[:-1]}
    assert (over.leases, over.next_deadline_mono_ms) == (3_000, 2_000)


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (lambda file: file.holds(Place(5_000, 3)), True),
        (lambda file: file.renew(Place(5_000, 3), Lease(8, 10, 2)), True),
        (lambda file: file.read(Place(5_000, 3)), Lease(7, 10, 1)),
        (lambda file: file.deadline(5_000, 3, 0), 7),
        (lambda file: file.counted(5_001, 4), 1),
        (lambda file: file.count(5_001, 4), None),
        (lambda file: file.write(Place(5_000, 4), Lease(9, 10, 3)), None),
    ],
)
def test_room_that_another_process_made_is_there_at_the_first_look(
    tmp_path: Path, look: Callable[[LeaseFile], Any], expected: Any
) -> None:
    maker, other = LeaseFile(tmp_path / "leases"), LeaseFile(tmp_path / "leases")
    maker.reserve(5_001)
    maker.write(Place(5_000, 3), Lease(7, 10, 1))
    maker.count(5_001, 4)
    assert look(other) == expected
    maker.close()
    other.close()


def test_a_late_deadline_is_not_taken_for_the_next_leases(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "leases")
    late, new = Place(3, 1), Place(3, 2)
    file.write(new, Lease(50, 10, 1))
    file.write(late, Lease(99, 10, 2))
    assert file.read(new) is None  # the store then tells what was registered
    file.close()


def commit_and_die(folder: Path, commit: Commit) -> None:
    """Commit, and be killed before the lease file says so."""
    store = LmdbStore(folder)
    LeaseFile.write_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    store.commit(NS, commit)


@pytest.mark.parametrize("removed", [False, True])
def test_a_writer_killed_before_it_published_a_lease_hides_nothing(
    store: LmdbStore, other: Elsewhere, tmp_path: Path, removed: bool
) -> None:
    instance, neighbour = sample_instance(), sample_instance(instance_id="web:2")
    first = store.commit(NS, put(instance))
    assert store.commit(NS, put(neighbour)) == first + 1
    for holder in (store, other):
        assert holder.renew(NS, instance.key, Lease(1_000, 90_000, 1), None)
        assert holder.renew(NS, neighbour.key, Lease(1_500, 90_000, 1), None)
        assert holder.revision(NS) == first + 1

    again = put(instance, expected=first, lease=Lease(5_000, 30_000, 5), remove=removed)
    spawn = multiprocessing.get_context("spawn")
    dying = spawn.Process(target=commit_and_die, args=(tmp_path / "store", again))
    dying.start()
    dying.join(timeout=HANG_SECS)
    assert dying.exitcode == -signal.SIGKILL

    left = {neighbour.key: Lease(1_500, 90_000, 1)}
    if not removed:
        left[instance.key] = Lease(5_000, 30_000, 5)
    for holder in (store, other):
        assert holder.revision(NS) == first + 2
        assert holder.lease(NS, instance.key) == left.get(instance.key)
        assert dict(holder.due(NS, 1 << 40).expired) == left
    assert store.commit(NS, put(sample_instance(instance_id="web:3"))) == first + 3
    for deadline, holder in ((6_000, store), (7_000, other)):
        assert holder.renew(NS, instance.key, Lease(deadline, 30_000, 6), None) is not removed
    assert store.lease(NS, instance.key) == (None if removed else Lease(7_000, 30_000, 6))


def renew_until_gone(folder: Path, keys: int, told: Any) -> None:
    """Renew each key with growing deadlines until it is refused; tell the last deadline."""
    store = LmdbStore(folder)
    for number in range(keys):
        key = sample_instance(instance_id=f"web:{number}").key
        deadline = 1
        while store.renew(NS, key, Lease(deadline + 1, 90_000, 1), None):
            deadline += 1
            time.sleep(random.random() / 5_000)  # an eviction takes longer than a renewal
        told.put(deadline)
    store.close()


def test_of_a_renewal_and_an_eviction_at_once_one_sees_the_other(tmp_path: Path) -> None:
    """No renewal was acknowledged beyond the deadline that an eviction believed to be the last.

    It may have seen the next one, which then was refused.
    """
    keys = 300
    store = LmdbStore(tmp_path / "store")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(keys)]
    revisions = [store.commit(NS, put(i, lease=Lease(1, 90_000, 1))) for i in instances]
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    renewing = spawn.Process(target=renew_until_gone, args=(tmp_path / "store", keys, told))
    renewing.start()
    for instance, revision in zip(instances, revisions, strict=True):
        while True:
            lease = store.lease(NS, instance.key)
            assert lease is not None
            if lease.deadline_mono_ms < 5:
                continue  # not its turn yet
            deadline = lease.deadline_mono_ms
            removal = put(instance, expected=revision, remove=True)
            removal = removal._replace(expected_deadline_mono_ms=deadline)
            try:
                store.commit(NS, removal)
                break
            except ConflictError:
                continue
        believed = lease.deadline_mono_ms
        assert told.get(timeout=HANG_SECS) in (believed, believed - 1)
    renewing.join(timeout=HANG_SECS)
    assert renewing.exitcode == 0
    store.close()


def give_time_back(folder: Path, begun: Any, enough: Any) -> None:
    """Give all leases their time back, over and over, as if the server paused all the time."""
    store = LmdbStore(folder)
    begun.set()
    now = 0
    while not enough.is_set():
        now += 10_000
        store.resume(now)
    store.close()


def test_a_renewal_that_comes_while_time_is_given_back_stands(tmp_path: Path) -> None:
    """Each is there when it was acknowledged: nobody else renews, and none has less time."""
    store = LmdbStore(tmp_path / "store")
    keys = [sample_instance(instance_id=f"web:{number}").key for number in range(50)]
    for key in keys:
        store.commit(NS, put(sample_instance(instance_id=key.id), lease=Lease(1, 1, 0)))
    spawn = multiprocessing.get_context("spawn")
    begun, enough = spawn.Event(), spawn.Event()
    pausing = spawn.Process(target=give_time_back, args=(tmp_path / "store", begun, enough))
    pausing.start()
    assert begun.wait(HANG_SECS)
    lost = 0
    for turn in range(400):
        short, long = Lease(1, 1, turn), Lease(1 << 43, 1, turn)
        for lease in (short, long):  # the short one is given time, if it is seen in between
            for key in keys:
                assert store.renew(NS, key, lease, None)
        lost += sum(store.lease(NS, key) != long for key in keys)
    enough.set()
    pausing.join(timeout=HANG_SECS)
    assert lost == 0, f"{lost} renewals"
    assert pausing.exitcode == 0
    store.close()


class HeldUp:
    """The words of a lease file, whose first store of a lease something else comes before."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.meanwhile: Callable[[], None] | None = None

    def __getitem__(self, place: Any) -> Any:
        return self._words[place]

    def __setitem__(self, place: int, value: int) -> None:
        if place >= 2_048 and self.meanwhile is not None:  # behind the header
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        self._words[place] = value


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_renewer_that_was_held_up_erases_no_renewal_of_the_leases_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    """However many registrations there were meanwhile, whose renewals had been acknowledged."""
    words: list[HeldUp] = []

    def mapped(file: int, size: int) -> HeldUp:
        words.append(HeldUp(memoryview(mmap.mmap(file, size)).cast("Q")))
        return words[-1]

    with monkeypatch.context() as patched:
        patched.setattr("registry.stores.lmdb.leases._mapped", mapped)
        store = LmdbStore(tmp_path / "store")
    other = Elsewhere(tmp_path / "store")
    instance = sample_instance()
    first = store.commit(NS, put(instance))
    others = [sample_instance(instance_id=f"new:{number}") for number in range(20)]
    renewed = Lease(9_000, 90_000, 9)

    def meanwhile() -> None:
        removal = put(instance, expected=first, remove=True, lease=None)
        last = other.commit(NS, removal if is_removed else put(instance, expected=first))
        for each in others:
            revision = other.commit(NS, put(each))
            other.commit(NS, put(each, expected=revision))
            assert other.renew(NS, each.key, renewed, None)
        if not is_removed:
            for _ in range(20):
                last = other.commit(NS, put(instance, expected=last))

    words[-1].meanwhile = meanwhile
    assert store.renew(NS, instance.key, Lease(2_000, 90_000, 2), None) is not is_removed
    assert all(each.meanwhile is None for each in words)  # it came in between
    for holder in (store, other):
        assert [holder.lease(NS, each.key) for each in others] == [renewed] * len(others)
    if not is_removed:
        assert other.lease(NS, instance.key) == Lease(2_000, 90_000, 2)
    other.leave()
    store.close()


def test_slots_are_used_again_when_nobody_can_write_to_them(store: LmdbStore) -> None:
    """Registering again and again takes no more of them."""
    revision = store.commit(NS, put(sample_instance()))
    for _ in range(50):
        revision = store.commit(NS, put(sample_instance(), expected=revision))
        assert store.renew(NS, sample_instance().key, LEASE, None)
    env = store._upkeep._env
    used = env.read(lambda txn: env.number(txn, b"slots"))
    assert used is not None
    assert used <= 3


# Damaged, deleted and overgrown files.

COUNT = 300


def stored(folder: Path, **options: Any) -> list[Lease]:
    """A store with some instances, closed again; their leases, which were renewed."""
    store = LmdbStore(folder, boot_id="one", **options)
    store.resume(1_000)
    leases = []
    for number in range(COUNT):
        instance = sample_instance(instance_id=f"web:{number}", metadata={"pad": "x" * 500})
        store.commit(NS, put(instance, lease=Lease(91_000, 90_000, 1)))
        leases.append(Lease(92_000 + number, 90_000, number))
        assert store.renew(NS, instance.key, leases[-1], None)
    store.close()
    return leases


def flip(path: Path, many: int, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(many):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def change_a_name(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"host.local", b"hosT.local"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut within a page": lambda path: os.truncate(path, path.stat().st_size - 5_000),
    "empty": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
    "no page is right": lambda path: path.write_bytes(os.urandom(100_000)),
    "many bits are others": lambda path: flip(path, 3_000, 1),
    "a name is another": change_a_name,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_store_whose_file_is_damaged_starts_from_its_checkpoint_and_says_so(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored(tmp_path)
    DAMAGES[kind](tmp_path / "data.mdb")
    store = LmdbStore(tmp_path, boot_id="one")
    assert {i.host_name for i in store.load(NS).instances} == {"host.local"}
    assert len(store.load(NS).instances) == COUNT
    assert store.due(NS, 1 << 40).leases == COUNT
    assert store.resume(5_000) == COUNT
    (record,) = caplog.records
    assert str(tmp_path / "data.mdb") in record.getMessage()
    assert "\n" not in record.getMessage()
    store.close()


@pytest.mark.parametrize("kind", sorted(set(DAMAGES) - {"missing", "empty"}))
def test_a_damaged_file_without_a_checkpoint_is_named_in_one_line(
    tmp_path: Path, kind: str
) -> None:
    stored(tmp_path)
    (tmp_path / "checkpoint.mdb").unlink()
    DAMAGES[kind](tmp_path / "data.mdb")
    for _ in "ab":
        with pytest.raises(StoreError, match=r"data\.mdb.*move the folder away") as caught:
            LmdbStore(tmp_path, boot_id="one")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted(set(DAMAGES) - {"missing"}))
def test_a_damaged_checkpoint_that_is_needed_is_named_in_one_line(
    tmp_path: Path, kind: str
) -> None:
    stored(tmp_path)
    DAMAGES[kind](tmp_path / "checkpoint.mdb")
    LmdbStore(tmp_path, boot_id="one")  # it is not needed here
    with pytest.raises(StoreError, match=r"checkpoint\.mdb.*move the folder away"):
        LmdbStore(tmp_path, boot_id="two")


@pytest.mark.parametrize("seed", range(8))
def test_a_few_flipped_bits_end_no_process_and_change_nothing_unnoticed(
    tmp_path: Path, seed: int
) -> None:
    stored(tmp_path)
    flip(tmp_path / "data.mdb", 30, seed)
    store = LmdbStore(tmp_path, boot_id="one")
    assert [i.host_name for i in store.load(NS).instances] == ["host.local"] * COUNT
    store.commit(NS, put(sample_instance(instance_id="new")))
    store.close()


@pytest.mark.parametrize("kind", sorted(set(DAMAGES) - {"a name is another", "missing"}))
def test_a_damaged_lease_file_is_made_anew_and_nobody_pays_for_it(
    tmp_path: Path, kind: str
) -> None:
    """Each lease gets its whole duration."""
    stored(tmp_path)
    DAMAGES[kind](tmp_path / "leases")
    store = LmdbStore(tmp_path, boot_id="one")
    assert store.resume(500_000) == COUNT
    found = store.due(NS, 500_000)
    assert (found.expired, found.leases, found.next_deadline_mono_ms) == ([], COUNT, 590_000)
    store.close()


def test_a_whole_lease_file_is_left_as_it_is(tmp_path: Path) -> None:
    leases = stored(tmp_path)
    store = LmdbStore(tmp_path, boot_id="one")
    keys = [sample_instance(instance_id=f"web:{number}").key for number in range(COUNT)]
    assert [store.lease(NS, key) for key in keys] == leases
    store.close()


@pytest.mark.parametrize("name", ["boot", "lock.mdb"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"another", bytes(range(256)) * 20])
def test_the_small_files_may_hold_anything(tmp_path: Path, name: str, content: bytes) -> None:
    stored(tmp_path)
    (tmp_path / name).write_bytes(content)
    store = LmdbStore(tmp_path, boot_id="one")
    assert len(store.load(NS).instances) == COUNT
    store.close()


@pytest.mark.parametrize("name", ["boot", "lock.mdb", "opening.lock", "data.mdb", "leases"])
def test_a_folder_in_the_place_of_a_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    stored(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=name) as caught:
        LmdbStore(tmp_path, boot_id="one")
    assert "\n" not in str(caught.value)


def test_a_record_that_is_damaged_while_the_store_runs_is_an_error_of_the_store(
    tmp_path: Path,
) -> None:
    stored(tmp_path)
    store = LmdbStore(tmp_path, boot_id="one")
    path = tmp_path / "data.mdb"
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data.replace(b"host.local", b"hosT.local"))
    with pytest.raises(StoreError, match=r"data\.mdb is damaged"):
        store.load(NS)


@pytest.mark.parametrize("how", ["deleted", "replaced", "one file replaced"])
def test_a_store_whose_files_are_gone_refuses_everything(tmp_path: Path, how: str) -> None:
    """Others may have another by then: two registries must not answer in turns."""
    folder = tmp_path / "store"
    stored(folder)
    store = LmdbStore(folder, boot_id="one")
    assert store.revision(NS)
    if how == "one file replaced":
        shutil.copyfile(folder / "data.mdb", folder / "copy")
        (folder / "copy").replace(folder / "data.mdb")
    else:
        shutil.rmtree(folder)
    other = LmdbStore(folder, boot_id="one") if how == "replaced" else None
    key = sample_instance(instance_id="web:1").key
    with pytest.raises(StoreGoneError, match="store"):
        store.resume(2_000)
    for call in (
        lambda: store.revision(NS),
        lambda: store.load(NS),
        lambda: store.commit(NS, put(sample_instance())),
        lambda: store.renew(NS, key, Lease(95_000, 90_000, 1), None),
        lambda: store.lease(NS, key),
        store.probe,
        store.flush,
    ):
        with pytest.raises(StoreGoneError):
            call()
    left = {path.name for path in folder.glob("*")}
    store.close()
    assert {path.name for path in folder.glob("*")} == left
    if other is not None:
        assert other.load(NS).instances == ()
        other.close()


def test_a_file_is_not_replaced_under_those_who_have_it_open(
    store: LmdbStore, other: Elsewhere, tmp_path: Path
) -> None:
    store.commit(NS, put(sample_instance()))
    assert other.revision(NS)
    store.flush()
    (tmp_path / "store" / "data.mdb").unlink()
    with pytest.raises(StoreError, match=r"data\.mdb is missing, while another process"):
        LmdbStore(tmp_path / "store")


def test_a_checkpoint_is_as_large_as_what_is_listed(store: LmdbStore, tmp_path: Path) -> None:
    """Not as the file that it is copied from, nor as what was removed and is still told of."""
    folder = tmp_path / "store"
    for number in range(30):
        large = sample_instance(instance_id=f"web:{number}", metadata={"pad": "x" * 1_000_000})
        revision = store.commit(NS, put(large))
        store.commit(NS, put(large, expected=revision, remove=True, lease=None))
    store._upkeep.flush(at_once=True)
    assert (folder / "data.mdb").stat().st_size > 8_000_000
    assert (folder / "checkpoint.mdb").stat().st_size < 400_000


def test_removed_instances_have_a_budget_on_the_disk(store: LmdbStore, tmp_path: Path) -> None:
    for number in range(200):
        large = sample_instance(instance_id=f"web:{number}", metadata={"pad": "x" * 500_000})
        revision = store.commit(NS, put(large))
        store.commit(NS, put(large, expected=revision, remove=True, lease=None))
    again = sample_instance()
    revision = Revision(0)
    for _ in range(100):
        revision = store.commit(
            NS, put(again._replace(metadata={"pad": "x" * 500_000}), expected=revision)
        )
    assert (tmp_path / "store" / "data.mdb").stat().st_size < 64 * 1024 * 1024


def test_a_file_that_a_storm_made_large_is_small_again_after_the_next_start(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    store = LmdbStore(folder, boot_id="one")
    pad = {"pad": "x" * 1_000_000}
    kept = store.commit(NS, put(sample_instance(instance_id="kept")))
    for number in range(60):
        large = sample_instance(instance_id=f"web:{number}", metadata=pad)
        store.commit(NS, put(large, at_mono_ms=0))
    for instance in store.load(NS).instances:
        if instance.metadata:
            store.commit(NS, put(instance, expected=instance.revision, remove=True, lease=None))
    store.close()
    assert (folder / "data.mdb").stat().st_size > 60_000_000
    store = LmdbStore(folder, boot_id="one")
    assert (folder / "data.mdb").stat().st_size < 20_000_000
    assert store.revision(NS) == kept + 120
    assert [i.id for i in store.load(NS).instances] == ["kept"]
    store.close()


def test_what_a_killed_process_left_of_a_checkpoint_is_cleared_by_the_next(
    store: LmdbStore, tmp_path: Path
) -> None:
    for name in ("checkpoint", "checkpoint.smaller", "checkpoint.4711"):
        (tmp_path / "store" / name).mkdir()
        (tmp_path / "store" / name / "data.mdb").write_bytes(b"half")
    store.commit(NS, put(sample_instance()))
    store.flush()
    assert {path.name for path in (tmp_path / "store").glob("checkpoint*")} == {
        "checkpoint.mdb",
        "checkpoint.lock",
    }


def register_under_a_limit(folder: Path, told: Any) -> None:
    """Register until a registration is refused, and again after what a probe said."""
    store = LmdbStore(folder)
    size = (folder / "data.mdb").stat().st_size + 200_000
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store.probe()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    number = 0
    try:
        while number < 2_000:
            store.commit(NS, put(sample_instance(instance_id=f"i:{number}", sid="x" * 2_000)))
            number += 1
    except StoreError:
        pass
    store._upkeep._probed = (0.0, 0)
    try:
        store.probe()
        told.put((number, "ready"))
    except StoreError as error:
        told.put((number, str(error)))
    os._exit(0)


def test_a_store_that_cannot_grow_is_not_ready(tmp_path: Path) -> None:
    """Small writes still find free pages, while registrations are refused."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.SimpleQueue()
    limited = spawn.Process(target=register_under_a_limit, args=(tmp_path / "store", told))
    limited.start()
    registered, said = told.get()
    limited.join(timeout=HANG_SECS)
    assert 0 < registered < 2_000
    assert "cannot grow" in said


def open_and_die(folder: Path) -> None:
    """Open the store, and be killed before it can be closed."""
    store = LmdbStore(folder, boot_id="one")
    assert store.namespaces()
    os.kill(os.getpid(), signal.SIGKILL)


def test_files_that_nobody_changed_since_they_were_looked_through_are_not_looked_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start looks through a large file before its workers do; any change is looked at."""
    looks: list[Path] = []

    def counting(path: Path, look_through: Callable[[Any], None]) -> str | None:
        looks.append(path)
        return damage(path, look_through)

    def opened() -> tuple[LmdbStore, bool]:
        looks.clear()
        return LmdbStore(tmp_path, boot_id="one"), bool(looks)

    monkeypatch.setattr(store_folder, "damage", counting)
    stored(tmp_path)
    store, has_looked = opened()
    assert has_looked
    store.close()
    store, has_looked = opened()
    assert not has_looked
    store.close()
    # Of one that is killed nobody can say what it left.
    killed = multiprocessing.get_context("spawn").Process(target=open_and_die, args=(tmp_path,))
    killed.start()
    killed.join(timeout=HANG_SECS)
    assert killed.exitcode == -signal.SIGKILL
    store, has_looked = opened()
    assert has_looked
    store.commit(NS, put(sample_instance(instance_id="new")))
    store.close()
    for name in ("data.mdb", "leases"):
        store, has_looked = opened()
        assert has_looked
        store.close()
        flip(tmp_path / name, 0, 1)  # written anew, with what was there
    store, has_looked = opened()
    assert has_looked
    store.close()
    (tmp_path / "checkpoint.mdb").unlink()
    flip(tmp_path / "data.mdb", 3_000, 1)
    with pytest.raises(StoreError, match="another boot"):
        LmdbStore(tmp_path, boot_id="two")


def test_the_example_that_opens_the_lease_file(tmp_path: Path) -> None:
    """The version's values as ``leases.py`` tells them, from 8 on."""
    evictor, renewer = LeaseFile(tmp_path / "leases"), LeaseFile(tmp_path / "leases")
    place, renewed = Place(3, 5), Lease(95_000, 90_000, 5_000)

    def change(place: Place | None = None) -> tuple[int, int]:
        """The version within a change, and after it."""
        assert not evictor.lock()
        evictor.begin_change()
        within = evictor.version
        if place is not None:
            evictor.write(place, Lease(0, 0, 0))
        evictor.end_change()
        evictor.unlock()
        return within, evictor.version

    evictor.skip_to(8)
    evictor.write(place, Lease(90_000, 90_000, 0))
    # 1. A renewal.
    assert renewer.renew(place, renewed) is True
    assert (renewer.version, evictor.deadline(3, 5, 0)) == (8, 95_000)

    # 2. and 3. Another that is held up after its look at the slot, and an eviction meanwhile.
    class HeldUp:
        """The mapped words; before the first store into slot 3 the others have their turn."""

        def __init__(self, words: Any) -> None:
            self._words, self.is_over = words, None

        def __getitem__(self, at: Any) -> Any:
            return self._words[at]

        def __setitem__(self, at: int, value: int) -> None:
            if self.is_over is None and at >= 2_048 + 3 * 4:
                assert self._words[512 + renewer.owner] == 9
                assert change(place.next()) == (9, 10)
                self.is_over = evictor.is_over(9)
                assert change() == (11, 12)
            self._words[at] = value

    held_up = HeldUp(renewer._words)
    renewer._words = held_up  # type: ignore[assignment]
    assert renewer.renew(place, renewed) is False
    assert (held_up.is_over, evictor.is_over(9), renewer.version) == (False, True, 12)

    # 4. A worker is killed in the middle of a change.
    evictor.lock()
    evictor.begin_change()
    evictor.unlock()  # as the system does it
    assert renewer.version == 13
    assert renewer.renew(place, renewed) is None
    assert renewer.lock()
    renewer.end_change()
    assert renewer.version == 14
    renewer.unlock()
    renewer.close()
    evictor.close()


def test_a_pause_that_several_notice_is_made_good_once(tmp_path: Path) -> None:
    """As all workers do at a start; here threads, since LMDB opens a file once in a process."""
    store = LmdbStore(tmp_path, boot_id="one")
    store.resume(1_000)
    store.commit(NS, put(sample_instance()))
    is_waiting = threading.Event()
    at_once = ThreadPoolExecutor(1)
    extend_all, locked = store._places.extend_all, store._files.locked
    others = []

    def slowly(now_mono_ms: int) -> int:
        store._files.locked = waiting  # type: ignore[method-assign]
        others.append(at_once.submit(store.resume, 50_100))
        assert is_waiting.wait(HANG_SECS)
        return extend_all(now_mono_ms)

    @contextmanager
    def waiting(name: str, *, waits: bool = True) -> Iterator[None]:
        is_waiting.set()
        with locked(name, waits=waits):
            yield

    store._places.extend_all = slowly  # type: ignore[method-assign]
    assert store.resume(50_000) == 1
    assert [each.result(HANG_SECS) for each in others] == [None]
    lease = store.lease(NS, sample_instance().key)
    assert lease == Lease(140_000, 90_000, LEASE.last_renewal_ms)
    store.close()


def test_a_pause_that_cannot_be_made_good_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, boot_id="one")
    store.resume(1_000)
    (tmp_path / "resume.lock").mkdir()
    with pytest.raises(StoreError, match=r"resume\.lock"):
        store.resume(50_000)
    (tmp_path / "resume.lock").rmdir()
    assert store.resume(50_000) == 0
    store.close()


def test_what_makes_a_pause_good_for_long_is_no_other_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many leases, on a busy machine: each time would be followed by the next for ever."""
    store = LmdbStore(tmp_path, boot_id="one")
    store.resume(1_000)
    store.commit(NS, put(sample_instance()))
    ran = store.running_ms(1_000)
    passed = iter((100.0, 160.0))
    clock = SimpleNamespace(monotonic=lambda: next(passed))
    with monkeypatch.context() as patch:
        patch.setattr(coordination, "time", clock)
        assert store.resume(50_000) == 1
    assert store.resume(110_400) is None
    assert store.running_ms(110_400) == ran + 2_500 + 400
    store.close()
