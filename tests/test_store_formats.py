"""Upgrades keep the data: today's code starts on what each release stored."""

from __future__ import annotations

import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lmdb
import pytest

from registry import StoreError
from registry.model import (
    ActionType,
    DataCenter,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit
from registry.stores.lmdb import LmdbStore, environment, formats, opening
from registry.stores.lmdb import folder as folder_of_store
from registry.stores.lmdb.leases import LeaseFile

FOLDER = Path(__file__).parent / "stores"
FORMATS = sorted(int(path.name.split("-")[1].split(".")[0]) for path in FOLDER.glob("*.tar.gz"))
OLDER = [number for number in FORMATS if number != formats.FORMAT]
A, B = Namespace("default"), Namespace("team-b")

WEB = Instance(
    *("WEB", "web:1", "web:1", "web.local", "10.0.0.1"),
    vip_address="web",
    metadata={"zone": "a"},
    last_dirty_ms=7,
    last_updated_ms=12,
    registration_ms=11,
    last_renewal_ms=13,
    service_up_ms=14,
)
WEB_CHANGED = WEB._replace(action_type=ActionType.MODIFIED, metadata={"zone": "b"})
CLOUD = Instance(
    *("CLOUD", "i-1", "i-1", "cloud.local", "10.0.0.2"),
    InstanceStatus.OUT_OF_SERVICE,
    InstanceStatus.OUT_OF_SERVICE,
    data_center=DataCenter("Amazon", {"instance-id": "i-1", "ami-id": "ami-9"}),
    duration_secs=30,
    secure_vip_address="cloud-s",
    lease_secs=30,
)
JOBS = Instance(
    *("JOBS", "jobs-1", None, "", "10.0.0.3"),
    metadata={"n": "1"},
    custom_status="warm",
    endpoint_type="url",
    endpoint_value="http://10.0.0.3/",
    tags=("blue", "b"),
    attributes='{"n":1}',
    source="native",
)
DB = Instance(
    *("DB", "db@consul", None, "db.local", "10.0.0.4"), source="consul:main", origin="dc1"
)


def put(instance: Instance, lease: Lease | None, at_mono_ms: int, **more: Any) -> Commit:
    expected = more.pop("expected", Revision(0))
    return Commit(instance.key, expected, None, at_mono_ms, instance, lease, **more)


def write(folder: Path) -> None:
    """What each stored folder holds."""
    store = LmdbStore(folder, boot_id="one", life=Revision(0))
    store.resume(1_000)
    store.set_expected_clients(A, 5)
    gone = WEB._replace(id="web:2", instance_id="web:2")
    listed = store.commit(A, put(WEB, Lease(91_000, 90_000, 13), 1_000, expected_clients_step=1))
    store.commit(A, put(gone, Lease(91_000, 90_000, 13), 1_001, expected_clients_step=1))
    aside = OverrideChange("i-1", InstanceStatus.OUT_OF_SERVICE)
    lease = Lease(31_000, 30_000, 13)
    store.commit(A, put(CLOUD, lease, 1_002, override=aside, expected_clients_step=1))
    store.commit(A, put(DB, None, 1_003))
    store.commit(
        A,
        put(
            gone._replace(action_type=ActionType.DELETED),
            None,
            1_004,
            expected=Revision(2),
            remove=True,
            expected_clients_step=-1,
        ),
    )
    # Of an id that is not listed.
    down = OverrideChange("later-1", InstanceStatus.DOWN)
    store.commit(
        A, Commit(InstanceKey("NONE", "later-1"), Revision(0), None, 1_005, None, override=down)
    )
    store.commit(A, put(WEB_CHANGED, None, 1_006, expected=listed))
    store.commit(B, put(JOBS, Lease(91_500, 90_000, 13), 1_007))
    store.renew(A, WEB.key, Lease(93_000, 90_000, 3_000), 0)
    store.renew(B, JOBS.key, Lease(94_000, 90_000, 4_000), 0)
    store.set_note("catalog:consul:main", b'{"source":"consul:main"}')
    store.acquire("evictor", "another", 1_000, 60_000)
    store.resume(3_000)
    store.close()


def unpacked(number: int, folder: Path) -> Path:
    with tarfile.open(FOLDER / f"format-{number}.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    return folder


def check_content(store: LmdbStore, last_renewals: tuple[int, int]) -> None:
    """That all is there that ``write`` wrote."""

    def shown(namespace: Namespace) -> list[Instance]:
        return [i._replace(revision=Revision(0)) for i in store.load(namespace).instances]

    assert shown(A) == [CLOUD, DB, WEB_CHANGED]
    assert shown(B) == [JOBS]
    assert store.namespaces() == {A: 3, B: 1}
    assert store.load(A).overrides == {
        "i-1": InstanceStatus.OUT_OF_SERVICE,
        "later-1": InstanceStatus.DOWN,
    }
    assert store.note("catalog:consul:main") == b'{"source":"consul:main"}'
    assert store.expected_clients(A) == 7
    leases = [store.lease(A, WEB.key), store.lease(B, JOBS.key)]
    assert tuple(lease.last_renewal_ms for lease in leases if lease) == last_renewals
    assert store.lease(A, DB.key) is None


def check_use(store: LmdbStore) -> None:
    """That everything goes on with it: renewals, cancellations, registrations, what changed."""
    assert store.renew(A, WEB.key, Lease(800_000, 90_000, 5), None)
    assert store.lease(A, WEB.key) == Lease(800_000, 90_000, 5)
    snapshot = store.load(A)
    cloud = snapshot.instances[0]
    assert cloud.key == CLOUD.key
    before = snapshot.revision
    store.commit(
        A,
        Commit(
            cloud.key, cloud.revision, InstanceStatus.OUT_OF_SERVICE, 500_000, cloud, remove=True
        ),
    )
    new = WEB._replace(id="web:3")
    store.commit(A, put(new, Lease(590_000, 90_000, 6), 500_000))
    assert store.lease(A, new.key) == Lease(590_000, 90_000, 6)
    assert store.lease(A, WEB.key) == Lease(800_000, 90_000, 5)
    assert store.lease(A, CLOUD.key) is None
    changes = store.changes(A, before)
    assert changes is not None
    assert [(c.instance.id, c.removed) for c in changes if c.instance] == [
        ("i-1", True),
        ("web:3", False),
    ]


@pytest.mark.parametrize("boot", ["one", "two"])
@pytest.mark.parametrize("number", FORMATS)
def test_a_start_on_what_a_release_stored_keeps_all_of_it(
    tmp_path: Path, number: int, boot: str
) -> None:
    """On another boot of the machine from its checkpoint, and its lease file counts no more."""
    folder = unpacked(number, tmp_path)
    store = LmdbStore(folder, boot_id=boot)
    check_content(store, (3_000, 4_000) if boot == "one" else (13, 13))
    if boot == "two" or number in OLDER:
        # Each lease gets its whole duration, and all that is listed counts as just changed.
        assert store.resume(500_000) == 3
        assert store.lease(A, WEB.key) == Lease(590_000, 90_000, 3_000 if boot == "one" else 13)
        changed = {c.instance.id for c in store.load(A).changes if c.instance}
        assert changed >= {"web:1", "i-1", "db@consul"}
        assert store.acquire("evictor", "me", 3_100, 1_000) is not None
    else:
        assert store.acquire("evictor", "me", 3_100, 1_000) is None
    check_use(store)
    store.close()
    store = LmdbStore(folder, boot_id=boot)
    assert store.namespaces() == {A: 3, B: 1}
    store.close()


@pytest.mark.parametrize("number", OLDER)
def test_a_way_back_is_left(tmp_path: Path, number: int) -> None:
    folder = unpacked(number, tmp_path)
    before = (folder / "data.mdb").read_bytes()
    LmdbStore(folder, boot_id="one").close()
    assert (folder / f"data.format-{number}.mdb").read_bytes() == before


def steps_of_a_start(folder: Path, at_most: int) -> int:
    """Start, and be killed before so many lines of what brings a folder to this format.

    Returns how many there were; ``at_most`` where it was killed.
    """
    child = os.fork()
    if child == 0:
        count, this = 0, os.getpid()
        watched = {each.__file__ for each in (environment, folder_of_store, formats, opening)}

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in watched or os.getpid() != this:
                return None  # another looks through the files for it
            if event == "line":
                count += 1
                if count == at_most:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        LmdbStore(folder, boot_id="one")
        sys.settrace(None)
        (folder / "lines").write_text(str(count))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return at_most
    assert status == 0
    return int((folder / "lines").read_text())


@pytest.mark.slow  # and it traces lines itself, as whoever measures the quick tests does
@pytest.mark.parametrize("number", OLDER)
def test_a_start_that_is_killed_anywhere_begins_again_from_what_was_there(
    tmp_path: Path, number: int
) -> None:
    lines = steps_of_a_start(unpacked(number, tmp_path / "whole"), 1 << 30)
    assert lines > 200
    for at in range(1, lines, 7):
        folder = unpacked(number, tmp_path / str(at))
        assert steps_of_a_start(folder, at) == at
        store = LmdbStore(folder, boot_id="one")
        check_content(store, (3_000, 4_000))
        assert store.resume(500_000) == 3
        assert store.load(A).revision > 1 << 40, "another life"
        check_use(store)
        store.close()


def test_a_checkpoint_that_is_restored_begins_another_life_though_the_start_is_killed(
    tmp_path: Path,
) -> None:
    """Revisions would be given out again, and who follows them would miss what is new."""
    write(tmp_path / "whole")
    (tmp_path / "whole" / "data.mdb").unlink()
    lines = steps_of_a_start(tmp_path / "whole", 1 << 30)
    for at in range(1, lines, 7):
        folder = tmp_path / str(at)
        write(folder)
        (folder / "data.mdb").unlink()
        assert steps_of_a_start(folder, at) == at
        store = LmdbStore(folder, boot_id="one")
        assert store.revision(A) > 1 << 40
        store.close()


@pytest.mark.parametrize("boot", ["one", "two"])
def test_a_newer_format_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path, boot: str) -> None:
    write(tmp_path)
    newer = formats.FORMAT + 2
    for name in ("data.mdb", "checkpoint.mdb"):
        with (
            lmdb.open(str(tmp_path / name), subdir=False, max_dbs=8, lock=False) as env,
            env.begin(write=True) as txn,
        ):
            txn.put(formats.KEY, str(newer).encode(), db=env.open_db(b"meta", txn))
    before = {name: (tmp_path / name).read_bytes() for name in ("data.mdb", "checkpoint.mdb")}
    for _ in "ab":
        with pytest.raises(StoreError) as caught:
            LmdbStore(tmp_path, boot_id=boot)
        line = str(caught.value)
        assert "\n" not in line
        assert str(tmp_path) in line
        assert f"format {newer}," in line
        assert f"and {formats.FORMAT}:" in line
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("stated", [b"another", b"", b"4:app,id", b"-1"])
def test_a_format_that_is_none_is_refused_in_one_line(tmp_path: Path, stated: bytes) -> None:
    write(tmp_path)
    with (
        lmdb.open(str(tmp_path / "data.mdb"), subdir=False, max_dbs=8, lock=False) as env,
        env.begin(write=True) as txn,
    ):
        txn.put(formats.KEY, stated, db=env.open_db(b"meta", txn))
    with pytest.raises(StoreError, match=r"format") as caught:
        LmdbStore(tmp_path, boot_id="one")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", OLDER)
def test_records_that_are_not_of_their_format_are_named(tmp_path: Path, number: int) -> None:
    folder = unpacked(number, tmp_path)
    with lmdb.open(str(folder / "data.mdb"), subdir=False, max_dbs=8, lock=False) as env:
        record = env.open_db(b"record")
        with env.begin(write=True) as txn:
            txn.put(b"default\0WEB\0web:1", b"12345678[nonsense", db=record)
    before = (folder / "data.mdb").read_bytes()
    with pytest.raises(StoreError, match=rf"data\.mdb.*format {number}.*move the folder away"):
        LmdbStore(folder, boot_id="one")
    assert (folder / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("number", OLDER)
def test_a_folder_that_an_older_server_has_open_is_left_to_it(tmp_path: Path, number: int) -> None:
    folder = unpacked(number, tmp_path)
    content = (folder / "leases").read_bytes()
    (folder / "leases").unlink()
    beside = LeaseFile(folder / "leases")  # it has its number among the openers
    (folder / "leases").write_bytes(content)
    before = (folder / "data.mdb").read_bytes()
    with pytest.raises(StoreError, match="in use by another version"):
        LmdbStore(folder, boot_id="one")
    assert (folder / "leases").read_bytes() == content
    assert (folder / "data.mdb").read_bytes() == before
    beside.close()


def everything(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """All databases of both LMDB files, and the lease file."""
    for name in ("data.mdb", "checkpoint.mdb"):
        with lmdb.open(
            str(folder / name), subdir=False, readonly=True, lock=False, max_dbs=8
        ) as env:
            with env.begin() as txn:
                databases = [key for key, _ in txn.cursor()]
            for database in databases:
                opened = env.open_db(database, create=False)
                with env.begin() as txn:
                    for key, value in txn.cursor(opened):
                        yield f"{name} {database.decode()}", key, value
    yield "leases", b"", (folder / "leases").read_bytes()


def test_todays_code_writes_the_format_that_it_states(tmp_path: Path) -> None:
    """Who changes the format is to give it a number: see ``tests/stores/README.md``."""
    assert FORMATS[-1] == formats.FORMAT, "keep a folder of the new format"
    before = list(everything(unpacked(formats.FORMAT, tmp_path / "before")))
    write(tmp_path / "today")
    assert list(everything(tmp_path / "today")) == before, "the format has changed"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, tarfile.open(sys.argv[1], "w:gz") as packing:
        write(Path(made))
        for each in ("boot", "checkpoint.mdb", "data.mdb", "leases"):
            packing.add(Path(made) / each, each)
