"""Each store against the contract, and what LMDB promises beyond it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from registry import StoreError, open_store
from registry.model import DEFAULT_NAMESPACE, Instance, Revision
from registry.store import Store
from registry.stores.lmdb import LmdbStore, decode_instance, encode_instance
from registry.stores.memory import MemoryStore
from registry.testing import StoreSuite, put, sample_instance

NS = DEFAULT_NAMESPACE


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    test_a_failing_driver_raises_store_errors_only = None  # it has no driver


class FailingEnvironment:
    """A fake driver whose every transaction fails, which a healthy disk cannot be made to do."""

    def begin(self, **_: object) -> None:
        raise lmdb.DiskError("no space left on device")

    copy = begin

    def close(self) -> None:
        pass


class TestLmdbStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = LmdbStore(tmp_path / "store")
        yield store
        store.close()

    @pytest.fixture
    def broken_store(self, tmp_path: Path) -> Store:
        store = LmdbStore(tmp_path / "broken")
        store.commit(NS, put(sample_instance()))
        store._env = FailingEnvironment()
        return store


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
    here.commit(NS, put(sample_instance(instance_id="first")))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=fill, args=(folder, name, 2_000)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (folder / "data.mdb").stat().st_size > 16 * 1024 * 1024
    assert here.revision(NS) == 4_001
    assert len(here.load(NS).instances) == 4_001
    here.commit(NS, put(sample_instance(instance_id="last")))
    assert here.revision(NS) == 4_002


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
    assert store.resume(5_000, 2_500) == 1
    lease = store.lease(NS, sample_instance().key)
    assert lease is not None
    assert lease.deadline_mono_ms == 95_000
    store.close()


def test_a_checkpoint_is_written_while_the_store_runs(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = LmdbStore(folder, boot_id="one")
    store.commit(NS, put(sample_instance()))
    store.flush()
    (folder / "data.mdb").write_bytes(b"torn" * 10_000)

    restored = LmdbStore(folder, boot_id="two")
    assert restored.revision(NS) == Revision(1)


def test_an_instance_is_encoded_field_by_field() -> None:
    instance: Instance = sample_instance(metadata={"a": "b"}, sid="s", country_id=7)
    assert decode_instance(encode_instance(instance), instance.revision) == instance


@pytest.mark.parametrize("url", ["", "redis://x", "lmdb:", "memory:x", "lmdb"])
def test_an_unknown_store_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected memory: or lmdb:PATH"):
        open_store(url)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the store"):
        LmdbStore(tmp_path / "file" / "store")
