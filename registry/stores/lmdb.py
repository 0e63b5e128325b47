"""One machine, many workers: an LMDB environment that all processes map.

**Format** (its number, and what becomes of older ones: ``formats.py``). The databases of
``data.mdb``; parts of a key are joined by NUL, which no part can hold:

| database | key | value |
| --- | --- | --- |
| ``record`` | namespace, application, id | revision, instance |
| ``leased`` | the same | the lease's place in the lease file, and the lease as registered |
| ``free`` | version of the lease file, slot | generation: a slot that was let go of then |
| ``override`` | namespace, id | status |
| ``log`` | namespace, revision | the key of the instance that was listed or changed so |
| ``removal`` | namespace, revision | a removed instance's last state; or whose override changed |
| ``removed`` | namespace, application, id | the revision of its removal |
| ``meta`` | a name, often with a namespace | counters, locks, notes |

``log`` and ``removal`` have the last change of each instance alone. Renewals are in the lease file
(``leases.py``), and nowhere else.

**Validity.** ``data.mdb`` is trusted on the boot of the machine that wrote it, since commits are
not flushed one by one: the kernel keeps them through any kill, not through a power cut. Once a
second a consistent copy goes to the disk (``checkpoint.mdb``), from which another boot starts. So a
power cut costs the last second at most; where copying takes longer than 50 ms, twenty times what
one copy takes. Instances stand behind their checksums, and a start has every file looked through by
another process before it maps it (``files.py``, ``folder.py``).

**Reading.** A transaction sees one state, whatever is committed meanwhile. What is kept in memory
(places, revisions) is kept with the lease file's version before it was read, and counts as long as
that version stands. Another process may have made the map larger: then it is mapped anew.

**Writing.** Under the lease file's lock: its version odd, one transaction, the slots in line, its
version even. A full map is doubled.

**Crashes.** A killed process leaves no half transaction; its locks are taken back by the system,
its reader slot is cleared by the next who looks, and where it left the version odd the next writer
brings the slots in line with what was committed.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb
import orjson

from registry.errors import ConflictError, LockLostError, StoreError, StoreGoneError
from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
    Snapshot,
)
from registry.store import PAUSE_MS, Commit, Due, Fence, StoreState, another_life
from registry.stores import formats
from registry.stores.files import sealed, unsealed
from registry.stores.folder import INITIAL_MAP_BYTES, Folder
from registry.stores.leases import VERSION, LeaseFile, Place
from registry.stores.records import (
    ENTRY,
    EVICTED,
    KIND,
    LEASED,
    OF_OVERRIDE,
    U64,
    LogEntry,
    decode_instance,
    decode_record,
    encode_instance,
    packed_entry,
)

log = logging.getLogger("registry")

_T = TypeVar("_T")
_PLACE = struct.Struct(">QQ")
_FREED = struct.Struct(">QQ")  # at which version, slot
_DUE = struct.Struct(">QQQ")
_I64 = struct.Struct(">q")
_REMOVED_BYTES = 16 * 1024 * 1024
_CHECKPOINT_EVERY_SECS = 1.0
_CHECKPOINT_DUTY = 20.0
_MAX_KEY_BYTES = 510
_TRIMMED_AT_ONCE = 200
_TRIM_PORTIONS = 20
_TRIM_PAUSE_SECS = 0.004
_LOOKED_AT_AT_ONCE = 1_000
_EXTENDED_AT_ONCE = 1_000
_PAUSE_SECS = 0.002
_MINIMUM_FREE_BYTES = 128 * 1024
_PROBED_SECS = 1.0
_BLOCK_BYTES = 512
_FAILURES = (lmdb.Error, OSError, ValueError, LookupError, TypeError, struct.error)


class _Written:
    """What the commits of one transaction come to."""

    __slots__ = (
        "_next",
        "evicted_at",
        "has_overrides",
        "last",
        "places",
        "prefix",
        "removed_bytes",
        "revisions",
        "size",
        "steps",
    )

    def __init__(self, namespace: Namespace, revision: int, has_overrides: bool) -> None:
        self.prefix = namespace.encode() + b"\0"
        self.has_overrides = has_overrides
        # How many instances the namespace holds; None as long as none came or went.
        self.size: int | None = None
        self._next = revision + 1
        self.last = 0
        self.revisions: list[Revision | None] = []
        # The places in the lease file that are another lease's now, and whose they are: the
        # instance's that is listed, or nobody's.
        self.places: list[tuple[InstanceKey, Place, Lease | None]] = []
        # How the number of expected clients moves, and from where if it was never set.
        self.steps: list[tuple[int, int]] = []
        self.evicted_at: list[int] = []
        # How much more there is of what was removed.
        self.removed_bytes = 0

    @property
    def revision(self) -> Revision:
        """That of the last change, of these commits or before them."""
        return Revision(self._next - 1)

    def skip_to(self, revision: Revision) -> None:
        """Have this revision be the next."""
        self._next = revision

    def take(self) -> Revision:
        """The next revision."""
        revision = self.last = Revision(self._next)
        self._next += 1
        self.revisions.append(revision)
        return revision


class Renewed(NamedTuple):
    """A lease as it was renewed."""

    namespace: Namespace
    key: InstanceKey
    lease: Lease


@dataclass(frozen=True, slots=True)
class Contents:
    """All of a namespace as another store has it; its log as the commits that were the last."""

    revision: Revision
    complete_after: Revision
    instances: Sequence[Instance] = ()
    overrides: Mapping[str, InstanceStatus] = field(default_factory=dict)
    log: Sequence[tuple[Revision, Commit]] = ()
    leases: Mapping[InstanceKey, Lease] = field(default_factory=dict)
    expected_clients: int | None = None


class LmdbStore:
    """A store in a folder, shared by all processes of this machine that open it."""

    def __init__(
        self, folder: Path, *, boot_id: str | None = None, life: Revision | None = None
    ) -> None:
        """Open or create the store; ``StoreError`` where the folder cannot be used.

        A new one begins with a life of its own, unless it is given one.
        """
        self._folder = folder
        self._lock = threading.RLock()  # guards the environment: resizing allows no transaction
        self._checkpointed: tuple[float, int] = (0.0, -1)
        self._checkpoint_cost = 0.0
        self._places: dict[Namespace, dict[InstanceKey, Place]] = {}
        self._owners: dict[Place, tuple[Namespace, InstanceKey]] = {}
        # The revision up to which each namespace's changes are in it.
        self._owned: dict[Namespace, int] = {}
        self._counters: dict[Namespace, int] = {}
        self._revisions: dict[Namespace, tuple[int, Revision]] = {}
        self._first_life = another_life(Revision(0)) if life is None else life
        self._gone: str | None = None
        self._probed = 0.0
        try:
            self._files = Folder(folder, None if boot_id is None else boot_id.encode())
            folder.mkdir(parents=True, exist_ok=True)
            with self._files.locked("opening.lock"):
                self._start()
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"cannot open the store in {folder}: {error}") from error

    def _start(self) -> None:
        """Open what is there, or what can be made of it; alone among those who open."""
        files, leases = self._files, self._files.leases
        is_known = files.is_of_this_boot()
        is_as_left = files.is_as_left() and is_known
        if not is_known:
            leases.unlink(missing_ok=True)
        is_alone = not LeaseFile.is_open(leases)
        begins_again = files.choose(is_known=is_known, is_alone=is_alone, is_as_left=is_as_left)
        self._live = LeaseFile(leases)
        try:
            self._open()
            begins_again = self._write(self._begin) or begins_again
            if begins_again or not (is_as_left or self._renewals_are_whole()):
                self._live.close()
                leases.unlink(missing_ok=True)
                self._live = LeaseFile(leases)
                self._write(self._forget_clock)
            if begins_again:
                self._write(self._begin_again)
            # The file may be new; the store knows how many slots.
            slots = self._read(lambda txn: self._number(txn, self._meta, b"slots")) or 0
            self._live.reserve(max(0, slots - 1))
            self._read(self._show_clock)
            if self._live.is_alone():
                self._live.skip_to(self._read(self._last_freed))
            data = os.stat(files.data)
            self._identity = (data.st_dev, data.st_ino)
            self._whole = files.state_of_data() if is_alone else ""
        except BaseException:
            self._live.close()
            raise
        if not is_known:
            files.note_boot()

    def _renewals_are_whole(self) -> bool:
        """Whether the lease file says of each lease what can be; not looked at beside others."""
        if not self._live.is_alone():
            return True
        self._read(self._show_clock)
        is_plausible = self._live.is_plausible
        with self._alone():
            return self._read(
                lambda txn: all(
                    is_plausible(*LEASED.unpack(value)[:4])
                    for value in txn.cursor(self._leased).iternext(keys=False)
                )
            )

    def _open(self) -> None:
        self._env = lmdb.open(
            str(self._folder),
            map_size=INITIAL_MAP_BYTES,
            max_dbs=8,
            max_readers=1024,
            sync=False,
            metasync=False,
        )
        self._env.reader_check()
        # An existing file may be larger than the initial map.
        if self._map_is_smaller():
            self._env.set_mapsize(0)
        self._record = self._env.open_db(b"record")
        self._leased = self._env.open_db(b"leased")
        self._free = self._env.open_db(b"free")
        self._override = self._env.open_db(b"override")
        self._log = self._env.open_db(b"log")
        self._removal = self._env.open_db(b"removal")
        self._removed = self._env.open_db(b"removed")
        self._meta = self._env.open_db(b"meta")

    def _begin(self, txn: Any) -> bool:
        """State the format of a new store; whether another life is to begin on an older one."""
        found = txn.get(formats.KEY, db=self._meta)
        if found is None and txn.stat(self._record)["entries"] == 0:
            txn.put(formats.KEY, formats.STATED, db=self._meta)
            txn.put(b"life", U64.pack(self._first_life), db=self._meta)
        elif found != formats.STATED:
            raise StoreError(f"the store in {self._folder} is in use by another version")
        return txn.get(formats.BEGINS, db=self._meta) is not None

    def _map_is_smaller(self) -> bool:
        size: int = self._env.info()["map_size"]
        return self._files.data.stat().st_size > size

    def _forget_clock(self, txn: Any) -> None:
        """After a reboot the monotonic clock begins again: nothing written by it holds."""
        for key, value in list(txn.cursor(self._leased)):
            slot, generation, _, duration, renewed = LEASED.unpack(value)
            packed = LEASED.pack(slot, generation, 0, duration, renewed)
            txn.put(key, packed, db=self._leased)
        for key, _ in list(txn.cursor(self._meta)):
            if key.startswith((b"lock\0", b"window\0")):
                txn.delete(key, db=self._meta)
        # An instant before every pause: the next ``resume`` gives the leases their time back. So
        # that it gives the log its own, running time stands there where it stood.
        alive = self._signed(txn, b"alive")
        ran = alive - (self._signed(txn, b"outages") or 0) if alive is not None else None
        if ran is None:
            ran = max([ENTRY.unpack_from(v)[0] for _, v in txn.cursor(self._log)], default=0)
        txn.put(b"alive", _I64.pack(-PAUSE_MS - 1), db=self._meta)
        txn.put(b"outages", _I64.pack(-1 - ran), db=self._meta)

    def _begin_again(self, txn: Any) -> None:
        """Begin another life, in which all that is listed counts as just changed."""
        revisions = [
            (key, U64.unpack(value)[0])
            for key, value in txn.cursor(self._meta)
            if key.startswith(b"revision\0")
        ]
        before = max([self._life_in(txn), *(r for _, r in revisions)])
        life = U64.pack(another_life(Revision(before)))
        txn.put(b"life", life, db=self._meta)
        for key, _ in revisions:
            txn.put(key, life, db=self._meta)
            txn.put(b"trimmed\0" + key.partition(b"\0")[2], life, db=self._meta)
        at = (self._signed(txn, b"alive") or 0) + PAUSE_MS - (self._signed(txn, b"outages") or 0)
        for key, value in txn.cursor(self._record):
            namespace, _, name = key.partition(b"\0")
            txn.put(namespace + b"\0" + value[:8], packed_entry(at, 0, name), db=self._log)
        txn.delete(formats.BEGINS, db=self._meta)

    def _last_freed(self, txn: Any) -> int:
        """The version of the lease file at which a slot was last let go of."""
        cursor = txn.cursor(self._free)
        return int(_FREED.unpack(cursor.key())[0]) if cursor.last() else 0

    def _show_clock(self, txn: Any) -> None:
        """Bring into the lease file, which may be new, what the store says of running time."""
        self._live.show_clock(self._signed(txn, b"alive"), self._signed(txn, b"outages") or 0)

    # Transactions: each is short, so one lock for all threads of this process costs nothing.

    def _read(self, work: Callable[[Any], _T]) -> _T:
        with self._lock:
            if self._gone is not None:
                raise StoreGoneError(self._gone)
            try:
                try:
                    with self._env.begin() as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    self._env.set_mapsize(0)
                    with self._env.begin() as txn:
                        return work(txn)
            except _FAILURES as error:
                raise self._failure("read", error) from error

    def _write(self, work: Callable[[Any], _T]) -> _T:
        with self._lock:
            if self._gone is not None:
                raise StoreGoneError(self._gone)
            try:
                while True:
                    try:
                        with self._env.begin(write=True) as txn:
                            return work(txn)
                    except lmdb.MapResizedError:
                        self._env.set_mapsize(0)
                    except lmdb.MapFullError:
                        self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except _FAILURES as error:
                raise self._failure("write to", error) from error

    def _failure(self, what: str, error: Exception) -> StoreError:
        """What went wrong, in the words of the contract; what was tried before counts no more."""
        self._probed = 0.0
        if isinstance(error, (lmdb.Error, OSError)):
            return StoreError(f"cannot {what} the store in {self._folder}: {error}")
        # What was written is not what is read.
        return StoreError(f"{self._files.data} is damaged: {error}")

    def _check_files(self) -> None:
        """``StoreGoneError``, now and from now on, where the files are no longer in their place."""
        for name, identity in (("data.mdb", self._identity), ("leases", self._live.identity)):
            path = self._folder / name
            try:
                found = os.stat(path)
            except OSError:
                self._gone = f"{path} is gone"
            else:
                if (found.st_dev, found.st_ino) == identity:
                    continue
                self._gone = f"{path} is another file than before"
            self._revisions.clear()
            self._places.clear()
            raise StoreGoneError(self._gone)

    @staticmethod
    def _key(namespace: Namespace, *parts: str) -> bytes:
        key = "\0".join((namespace, *parts)).encode()
        if len(key) > _MAX_KEY_BYTES:
            raise StoreError(f"the identity is longer than {_MAX_KEY_BYTES} bytes")
        return key

    @staticmethod
    def _number(txn: Any, db: Any, key: bytes) -> int | None:
        value = txn.get(key, db=db)
        return None if value is None else U64.unpack(value)[0]

    def _signed(self, txn: Any, key: bytes) -> int | None:
        value = txn.get(key, db=self._meta)
        return None if value is None else _I64.unpack(value)[0]

    def _revision(self, txn: Any, namespace: Namespace) -> int:
        key = b"revision\0" + namespace.encode()
        return self._number(txn, self._meta, key) or self._life_in(txn)

    def _trimmed(self, txn: Any, namespace: Namespace) -> int:
        key = b"trimmed\0" + namespace.encode()
        return self._number(txn, self._meta, key) or self._life_in(txn)

    def _life_in(self, txn: Any) -> int:
        return self._number(txn, self._meta, b"life") or 0

    def revision(self, namespace: Namespace) -> Revision:
        # Read before the store is: what is kept may be newer than its version says, never older.
        # Every request asks, so the version is taken from where it is, without a call.
        version = self._live.words[VERSION]
        seen = self._revisions.get(namespace)
        if seen is not None and seen[0] == version:
            return seen[1]
        revision = Revision(self._read(lambda txn: self._revision(txn, namespace)))
        if not version & 1:
            self._revisions[namespace] = (version, revision)
        return revision

    def _changes(
        self,
        txn: Any,
        namespace: Namespace,
        after: int,
        listed: Callable[[bytes], Instance],
    ) -> list[Change]:
        """The changes after a revision, with ``listed`` to tell what stands under a key."""
        last = None if after == 0 else U64.pack(after)
        found = []
        for _, value in self._items(txn, self._log, namespace, last):
            at_running_ms, kind, _ = ENTRY.unpack_from(value)
            name = value[ENTRY.size :]
            instance = listed(name)
            change = Change(instance.revision, at_running_ms, instance)
            if kind:
                change = change._replace(override=self._override_of(txn, namespace, name))
            found.append(change)
        for key, value in self._items(txn, self._removal, namespace, last):
            entry = LogEntry.unpack(value)
            revision = U64.unpack(key)[0]
            of_override = entry.kind & OF_OVERRIDE
            found.append(
                Change(
                    Revision(revision),
                    entry.at_running_ms,
                    decode_instance(unsealed(entry.encoded), revision) if entry.encoded else None,
                    bool(entry.encoded),
                    bool(entry.kind & EVICTED),
                    self._override_of(txn, namespace, entry.key) if of_override else None,
                )
            )
        found.sort(key=_BY_REVISION)
        return found

    def _override_of(self, txn: Any, namespace: Namespace, name: bytes) -> OverrideChange:
        """The override of the id in an instance's key, as it is now."""
        instance_id = name.partition(b"\0")[2]
        stored = txn.get(namespace.encode() + b"\0" + instance_id, db=self._override)
        status = None if stored is None else InstanceStatus(stored.decode())
        return OverrideChange(instance_id.decode(), status)

    def load(self, namespace: Namespace) -> Snapshot:
        def load(txn: Any) -> Snapshot:
            instances = {
                key: decode_record(value)
                for key, value in self._items(txn, self._record, namespace)
            }
            return Snapshot(
                Revision(self._revision(txn, namespace)),
                tuple(instances.values()),
                {
                    key.decode(): InstanceStatus(value.decode())
                    for key, value in self._items(txn, self._override, namespace)
                },
                tuple(self._changes(txn, namespace, 0, instances.__getitem__)),
                Revision(self._trimmed(txn, namespace)),
            )

        return self._read(load)

    @staticmethod
    def _items(
        txn: Any, db: Any, namespace: Namespace, after: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        prefix = namespace.encode() + b"\0"
        cursor = txn.cursor(db)
        # No key lies between one and the same with a byte of zero after it.
        if cursor.set_range(prefix if after is None else prefix + after + b"\0"):
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key[len(prefix) :], value

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        prefix = namespace.encode() + b"\0"

        def read(txn: Any) -> list[Change] | None:
            def listed(key: bytes) -> Instance:
                value = txn.get(prefix + key, db=self._record)
                return decode_record(value)

            if not self._trimmed(txn, namespace) <= after <= self._revision(txn, namespace):
                return None
            return self._changes(txn, namespace, after, listed)

        return self._read(read)

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        revision = self.commit_all(namespace, (commit,), fence)[0]
        if revision is None:
            raise ConflictError
        return revision

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        def write(txn: Any) -> _Written:
            if fence is not None and self._token(txn, fence.lock) > fence.token:
                raise LockLostError
            has_overrides = txn.stat(self._override)["entries"] > 0
            revision = known[1] if is_known else self._revision(txn, namespace)
            written = _Written(namespace, revision, has_overrides)
            for commit in commits:
                self._apply(txn, namespace, commit, written)
            self._count(txn, namespace, written)
            return written

        with self._alone():
            known = self._revisions.get(namespace, _UNKNOWN)
            is_known = known[0] == self._live.version
            return self._written(namespace, write).revisions

    def _written(self, namespace: Namespace, write: Callable[[Any], _Written]) -> _Written:
        """Write and bring the slots in line; the lease file is locked."""
        self._live.begin_change()
        try:
            written = self._write(write)
        except BaseException:
            self._live.end_change()  # nothing was written
            raise
        places = self._places.setdefault(namespace, {})
        for key, place, lease in written.places:
            self._live.write(place, lease or _NO_LEASE)
            if lease is None:
                places.pop(key, None)
            else:
                places[key] = place
        self._live.end_change()
        # Nobody else can have written since, so whoever reads next needs no transaction.
        self._revisions[namespace] = (self._live.version, written.revision)
        return written

    def _apply(self, txn: Any, namespace: Namespace, commit: Commit, written: _Written) -> None:
        """Write a commit if its guards hold, all but what is written once for many."""
        app, instance_id = commit.key
        key = self._key(namespace, app, instance_id)
        stored = txn.get(key, db=self._record)
        override = None
        if written.has_overrides or commit.override is not None:
            override = txn.get(self._key(namespace, instance_id), db=self._override)
        leased = txn.get(key, db=self._leased)
        deadline = commit.expected_deadline_mono_ms
        if (
            # The revision leads the record, so that the guard costs no decoding.
            (U64.unpack_from(stored)[0] if stored is not None else 0) != commit.expected
            or (None if override is None else InstanceStatus(override.decode()))
            != commit.expected_override
            or (
                deadline is not None
                and (leased is None or self._as_renewed(leased).deadline_mono_ms != deadline)
            )
            or (
                stored is None
                and commit.instance is not None
                and not self._has_room(txn, namespace, commit, written)
            )
        ):
            written.revisions.append(None)
            return
        self._put(txn, commit, key, stored, leased, namespace, written)

    def _put(
        self,
        txn: Any,
        commit: Commit,
        key: bytes,
        stored: bytes | None,
        leased: bytes | None,
        namespace: Namespace,
        written: _Written,
    ) -> None:
        """Write a commit whose guards hold, or are another's to look at."""
        record, leases = self._record, self._leased
        revision = written.take()
        instance, lease, change = commit.instance, commit.lease, commit.override
        packed_revision = U64.pack(revision)
        place = written.prefix
        kind = 0
        if change is not None:
            kind = OF_OVERRIDE
            written.has_overrides = True
            override_key = self._key(namespace, commit.key.id)
            if change.status is None:
                txn.delete(override_key, db=self._override)
            else:
                txn.put(override_key, change.status.encode(), db=self._override)
        # The log has the last change of each alone.
        name = key[len(place) :]
        removed_key = key if instance is not None else key + b"\0"
        if stored is not None and instance is not None:
            superseded = txn.pop(place + stored[:8], db=self._log)
            if superseded is not None:  # it was not trimmed
                kind |= superseded[KIND] & OF_OVERRIDE
        else:
            kind |= self._supersede_removal(txn, place, removed_key, written)
        at = self.running_ms(commit.at_mono_ms)
        if instance is None or commit.remove:
            kind |= EVICTED if commit.evicted else 0
            encoded = b"" if instance is None else sealed(encode_instance(instance))
            entry = packed_entry(at, kind, name, encoded)
            txn.put(place + packed_revision, entry, db=self._removal)
            txn.put(removed_key, packed_revision, db=self._removed)
            written.removed_bytes += _size_of_removal(entry)
        else:
            txn.put(place + packed_revision, packed_entry(at, kind, name), db=self._log)
        if instance is not None and commit.remove:
            txn.delete(key, db=record)
            if leased is not None:
                txn.delete(key, db=leases)
                written.places.append((commit.key, self._free_place(txn, leased), None))
        elif instance is not None:
            txn.put(key, packed_revision + sealed(encode_instance(instance)), db=record)
            if lease is not None:
                if leased is None:
                    slot = self._new_place(txn)
                elif self._live.is_over(self._live.version):
                    slot = _place(leased).next()  # nobody is amid a renewal of what it was
                else:
                    written.places.append((commit.key, self._free_place(txn, leased), None))
                    slot = self._new_place(txn)
                txn.put(key, _pack(slot, lease), db=leases)
                written.places.append((commit.key, slot, lease))
        if instance is not None and commit.remove is (stored is not None):
            size = self._size(txn, namespace, written)
            written.size = size - 1 if commit.remove else size + 1
        if commit.expected_clients_step:
            written.steps.append((commit.expected_clients_step, commit.opening_clients))
        if commit.evicted:
            written.evicted_at.append(at)

    def _supersede_removal(self, txn: Any, place: bytes, key: bytes, written: _Written) -> int:
        revision = txn.pop(key, db=self._removed)
        if revision is None:
            return 0
        superseded = txn.pop(place + revision, db=self._removal)
        written.removed_bytes -= _size_of_removal(superseded)
        kind: int = superseded[KIND] & OF_OVERRIDE
        return kind

    def _has_room(self, txn: Any, namespace: Namespace, commit: Commit, written: _Written) -> bool:
        """Whether one more instance may be listed."""
        size = self._size(txn, namespace, written)
        most = commit.namespaces_at_most
        if most is not None and not size:
            return sum(map(bool, self._sizes(txn).values())) < most
        return commit.instances_at_most is None or size < commit.instances_at_most

    def _size(self, txn: Any, namespace: Namespace, written: _Written) -> int:
        if written.size is None:
            written.size = self._number(txn, self._meta, b"size\0" + namespace.encode()) or 0
        return written.size

    def _sizes(self, txn: Any) -> dict[Namespace, int]:
        """Every namespace that was written to, and how many instances it holds."""
        found = {}
        cursor = txn.cursor(self._meta)
        if cursor.set_range(b"size\0"):
            for key, value in cursor:
                if not key.startswith(b"size\0"):
                    break
                found[Namespace(key[5:].decode())] = U64.unpack(value)[0]
        return found

    def _count(self, txn: Any, namespace: Namespace, written: _Written) -> None:
        """Write the numbers that the commits moved, and keep to the budget."""
        name = namespace.encode()
        if not written.last:
            return
        txn.put(b"revision\0" + name, U64.pack(written.last), db=self._meta)
        if written.size is not None:
            txn.put(b"size\0" + name, U64.pack(written.size), db=self._meta)
        if written.steps:
            count = self._number(txn, self._meta, b"expected\0" + name)
            for step, opening in written.steps:
                count = opening if count is None else count
                count = max(0, count + step) if count else 0
            txn.put(b"expected\0" + name, U64.pack(count or 0), db=self._meta)
        if written.evicted_at:
            seconds = Counter(self._evicted(txn, namespace))
            seconds.update(at // 1000 for at in written.evicted_at)
            newest = max(seconds)
            kept = {at: count for at, count in seconds.items() if at >= newest - 60}
            txn.put(b"evicted\0" + name, orjson.dumps(list(kept.items())), db=self._meta)
        if written.removed_bytes:
            self._keep_to_budget(txn, name, written.removed_bytes)

    def _keep_to_budget(self, txn: Any, name: bytes, step: int) -> None:
        """Forget the oldest of what was removed until the rest is within the budget."""
        key = b"removed\0" + name
        size = (self._number(txn, self._meta, key) or 0) + step
        last = None
        while size > _REMOVED_BYTES:
            cursor = txn.cursor(self._removal)
            cursor.set_range(name + b"\0")
            last = cursor.key()[-8:]
            size -= self._forget_removal(txn, name, last)
        txn.put(key, U64.pack(size), db=self._meta)
        if last is not None:
            self._note_trimmed(txn, name, last)

    def _forget_removal(self, txn: Any, name: bytes, revision: bytes) -> int:
        """Forget a removal; its size."""
        value = txn.pop(name + b"\0" + revision, db=self._removal)
        entry = LogEntry.unpack(value)
        key = name + b"\0" + entry.key
        txn.delete(key if entry.encoded else key + b"\0", db=self._removed)
        return _size_of_removal(value)

    def _note_trimmed(self, txn: Any, name: bytes, revision: bytes) -> None:
        key = b"trimmed\0" + name
        txn.put(key, max(revision, txn.get(key, default=b"", db=self._meta)), db=self._meta)

    def _evicted(self, txn: Any, namespace: Namespace) -> dict[int, int]:
        """How many were evicted in each of the last seconds in which any were."""
        stored = txn.get(b"evicted\0" + namespace.encode(), db=self._meta)
        return {} if stored is None else dict(orjson.loads(stored))

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        after = self.running_ms(after_mono_ms)
        seconds = self._read(lambda txn: self._evicted(txn, namespace))
        return sum(n for second, n in seconds.items() if second >= after // 1000)

    # Where this store is a copy of what another has decided (``redis``).

    def life(self) -> Revision:
        """Where revisions begin in this life."""
        return Revision(self._read(self._life_in))

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes, and other threads, from doing what has this name meanwhile."""
        return self._files.locked(f"{name}.lock")

    def complete_after(self, namespace: Namespace) -> Revision:
        """The revision after which all changes are told of."""
        return Revision(self._read(lambda txn: self._trimmed(txn, namespace)))

    def follow(
        self,
        namespace: Namespace,
        decided: Sequence[tuple[Revision, Commit]],
        expected_clients: int | None,
    ) -> None:
        """Write what was decided elsewhere, in one operation: no guard is looked at.

        Each change has the revision that it was given there. What is no news here is passed over,
        so several may bring the same.
        """

        def write(txn: Any) -> _Written:
            written = _Written(namespace, self._revision(txn, namespace), has_overrides=True)
            for revision, commit in decided:
                if revision > written.revision:
                    written.skip_to(revision)
                    key = self._key(namespace, *commit.key)
                    stored = txn.get(key, db=self._record)
                    leased = txn.get(key, db=self._leased)
                    self._put(txn, commit, key, stored, leased, namespace, written)
            written.steps.clear()
            self._size(txn, namespace, written)  # of removals alone it is known too
            self._count(txn, namespace, written)
            if expected_clients is not None:
                packed = U64.pack(expected_clients)
                txn.put(b"expected\0" + namespace.encode(), packed, db=self._meta)
            return written

        with self._alone():
            self._written(namespace, write)

    def replace(
        self,
        life: Revision,
        contents: Mapping[Namespace, Contents],
        known: Mapping[Namespace, Revision] | None = None,
    ) -> bool:
        """Hold this instead of all that was held, in one operation.

        Where it is ``known`` at which revisions the namespaces are, and any of them is at another,
        nothing is done, and False returned. Else one that is further than the given contents stays.

        A lease that is held already, and ends later than the given one, stays as it is.
        """

        def write(txn: Any) -> list[tuple[Place, Lease]] | None:
            held = {each: self._revision(txn, each) for each in self._sizes(txn)}
            if known is not None and held != known:
                return None
            txn.put(b"life", U64.pack(life), db=self._meta)
            slots: list[tuple[Place, Lease]] = []
            for namespace in {*held, *contents}:
                found = contents.get(namespace) or Contents(life, life)
                if known is not None or held.get(namespace, 0) <= found.revision:
                    self._replace(txn, namespace, found, slots)
            return slots

        with self._alone():
            self._live.begin_change()
            try:
                slots = self._write(write)
                for place, lease in slots or ():
                    self._live.write(place, lease)
            finally:
                self._places.clear()
                self._live.end_change()
        return slots is not None

    def _replace(
        self,
        txn: Any,
        namespace: Namespace,
        contents: Contents,
        slots: list[tuple[Place, Lease]],
    ) -> None:
        name = namespace.encode()
        prefix = name + b"\0"
        for db in (self._record, self._override, self._log, self._removal, self._removed):
            for key, _ in list(self._items(txn, db, namespace)):
                txn.delete(prefix + key, db=db)
        for instance in contents.instances:
            key = self._key(namespace, *instance.key)
            record = U64.pack(instance.revision) + sealed(encode_instance(instance))
            txn.put(key, record, db=self._record)
        for each, status in contents.overrides.items():
            txn.put(self._key(namespace, each), status.encode(), db=self._override)
        leases = {self._key(namespace, *key): lease for key, lease in contents.leases.items()}
        for key, leased in list(self._items(txn, self._leased, namespace)):
            lease = leases.get(prefix + key)
            known = self._as_renewed(leased)
            if lease is None or lease.duration_ms != known.duration_ms:
                txn.delete(prefix + key, db=self._leased)
                slots.append((self._free_place(txn, leased), _NO_LEASE))
                continue
            if lease.deadline_mono_ms > known.deadline_mono_ms:
                slots.append((_place(leased), lease))
            del leases[prefix + key]
        for key, lease in leases.items():
            place = self._new_place(txn)
            txn.put(key, _pack(place, lease), db=self._leased)
            slots.append((place, lease))
        removed_bytes = 0
        for revision, commit in contents.log:
            at, packed = self.running_ms(commit.at_mono_ms), U64.pack(revision)
            kind = OF_OVERRIDE if commit.override is not None else 0
            key = self._key(namespace, *commit.key)
            changed = key[len(prefix) :]
            if commit.instance is not None and not commit.remove:
                txn.put(prefix + packed, packed_entry(at, kind, changed), db=self._log)
                continue
            kind |= EVICTED if commit.evicted else 0
            last = commit.instance
            encoded = b"" if last is None else sealed(encode_instance(last))
            entry = packed_entry(at, kind, changed, encoded)
            txn.put(prefix + packed, entry, db=self._removal)
            txn.put(key if encoded else key + b"\0", packed, db=self._removed)
            removed_bytes += _size_of_removal(entry)
        txn.put(b"size\0" + name, U64.pack(len(contents.instances)), db=self._meta)
        txn.put(b"revision\0" + name, U64.pack(contents.revision), db=self._meta)
        txn.put(b"trimmed\0" + name, U64.pack(contents.complete_after), db=self._meta)
        txn.put(b"removed\0" + name, U64.pack(removed_bytes), db=self._meta)
        if contents.expected_clients is not None:
            packed = U64.pack(contents.expected_clients)
            txn.put(b"expected\0" + name, packed, db=self._meta)

    def renewed_since(self, seen: list[int]) -> tuple[list[int], list[Renewed]]:
        """What tells renewals from the next time, and the leases that were renewed since.

        It is what was returned the last time, or an empty list: then all are told. Leases that
        began since are told too.
        """
        now = self._live.renewals()
        places = [
            slot
            for slot, (is_now, was) in enumerate(
                itertools.zip_longest(now, seen[: len(now)], fillvalue=0)
            )
            if is_now != was
        ]
        if places:
            self._look_for_owners()
        found = []
        for slot in places:
            place = self._live.place(slot)
            owner = self._owners.get(place)
            lease = None if owner is None else self._live.read(place)
            if owner is not None and lease is not None:
                found.append(Renewed(*owner, lease))
        return now, found

    def _look_for_owners(self) -> None:
        """Know whose lease each place is: from the log, where that tells all that changed."""

        def look(txn: Any) -> bool:
            """Look at what changed; whether that was all there is to be known."""
            for name, after in self._owned.items():
                if after < self._trimmed(txn, name):
                    return False
            for name in self._sizes(txn):
                after = self._owned.get(name, 0)
                prefix = name.encode() + b"\0"
                for _, value in self._items(txn, self._log, name, U64.pack(after)):
                    key = value[ENTRY.size :]
                    leased = txn.get(prefix + key, db=self._leased)
                    if leased is not None:
                        owner = name, InstanceKey(*key.decode().split("\0"))
                        self._owners[_place(leased)] = owner
                self._owned[name] = self._revision(txn, name)
            return True

        if len(self._owners) <= 2 * self._live.size() and self._read(look) and self._owners:
            return
        # What is known may be older than what is found, never newer.
        self._owned = self._read(
            lambda txn: {name: self._revision(txn, name) for name in self._sizes(txn)}
        )
        self._owners = self._owners_of_places()

    def count_renewals(self, namespace: Namespace, window: int, count: int) -> None:
        """Count so many renewals of elsewhere in a window."""
        if count > 0:
            self._live.count(self._counter(namespace), window, count)

    def trim_to(self, namespace: Namespace, revision: Revision) -> int:
        """Forget the changes up to a revision, as ``trim`` does those up to an instant."""
        return self._trim(namespace, lambda key, _: U64.unpack(key)[0] <= revision)

    # Leases: who has which slot is said here, what renewals change in the lease file.

    def _free_place(self, txn: Any, leased: bytes) -> Place:
        """Let go of a lease's slot; the place is nobody's, and the slot not yet another's."""
        place = _place(leased).next()
        freed = _FREED.pack(self._live.version, place.slot)
        txn.put(freed, U64.pack(place.generation), db=self._free)
        return place

    def _new_place(self, txn: Any) -> Place:
        cursor = txn.cursor(self._free)
        if cursor.first():
            version, slot = _FREED.unpack(cursor.key())
            if self._live.is_over(version):
                generation = U64.unpack(cursor.value())[0]
                cursor.delete()
                return Place(slot, generation).next()
        slot = self._number(txn, self._meta, b"slots") or 0
        self._live.reserve(slot)
        txn.put(b"slots", U64.pack(slot + 1), db=self._meta)
        return Place(slot, 1)

    def _as_renewed(self, leased: bytes) -> Lease:
        """A lease as it is now; as it was registered where no slot was written since."""
        return self._live.read(_place(leased)) or Lease(*LEASED.unpack(leased)[2:])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all others from changing places, one that was killed at it included."""
        try:
            with self._lock:
                try:
                    if self._live.lock():
                        self._read(self._publish)
                        self._live.end_change()
                    yield
                finally:
                    self._live.unlock()
        except OSError as error:
            raise StoreError(f"cannot use the lease file: {error}") from error

    def _publish(self, txn: Any) -> None:
        """Bring the file's slots to what the store says of them."""
        for _, value in txn.cursor(self._leased):
            place = _place(value)
            if not self._live.holds(place):
                self._live.write(place, Lease(*LEASED.unpack(value)[2:]))
        for key, value in txn.cursor(self._free):
            self._live.write(Place(_FREED.unpack(key)[1], U64.unpack(value)[0]), _NO_LEASE)

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        live = self._live
        place = self._places.get(namespace, _NO_PLACES).get(key) or self._find(namespace, key)
        counter = None
        if window is not None:
            counter = self._counters.get(namespace)
            if counter is None:
                counter = self._counter(namespace)
        stored = None if place is None else live.renew(place, lease, counter, window or 0)
        if stored:
            return True
        if not self._renew_surely(namespace, key, lease):
            return False
        if stored is None and counter is not None:
            live.count(counter, window or 0)
        return True

    def _find(self, namespace: Namespace, key: InstanceKey) -> Place | None:
        """The place of a lease that another worker registered, where it is sure; else None."""
        version = self._live.version
        stored_key = self._key(namespace, *key)
        leased = self._read(lambda txn: txn.get(stored_key, db=self._leased))
        if leased is None or version & 1 or self._live.version != version:
            return None
        return self._remember(namespace, key, _place(leased))

    def _remember(self, namespace: Namespace, key: InstanceKey, place: Place) -> Place:
        places = self._places.setdefault(namespace, {})
        if len(places) > self._live.size():
            places.clear()  # most of them ended in other processes
        places[key] = place
        return place

    def _renew_surely(self, namespace: Namespace, key: InstanceKey, lease: Lease) -> bool:
        """Renew where nobody else changes places meanwhile."""
        stored_key = self._key(namespace, *key)
        with self._alone():
            leased = self._read(lambda txn: txn.get(stored_key, db=self._leased))
            if leased is None:
                self._places.get(namespace, {}).pop(key, None)
                return False
            known = self._as_renewed(leased)
            if known.duration_ms != lease.duration_ms:
                return False
            if not lease.client_mono_ms:
                lease = lease._replace(client_mono_ms=known.client_mono_ms)
            self._live.write(self._remember(namespace, key, _place(leased)), lease)
            return True

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        renewed = self._live.renewed_by_clients(after_mono_ms)
        if any(place not in self._owners for place, _ in renewed):
            self._owners = self._owners_of_places()
        found = []
        for place, at in renewed:
            owner = self._owners.get(place)
            if owner is not None and owner[0] == namespace:
                found.append((owner[1], at))
        return found

    def _owners_of_places(self) -> dict[Place, tuple[Namespace, InstanceKey]]:
        """Whose lease each place is, of all namespaces; read a portion at a time."""
        owners: dict[Place, tuple[Namespace, InstanceKey]] = {}
        last: bytes | None = None

        def look(txn: Any) -> bool:
            """Look at the next portion; whether there is more."""
            nonlocal last
            cursor = txn.cursor(self._leased)
            if cursor.set_range(b"" if last is None else last + b"\0"):
                for number, (key, value) in enumerate(cursor):
                    if number == _LOOKED_AT_AT_ONCE:
                        return True
                    namespace, app, instance_id = bytes(key).decode().split("\0")
                    owner = Namespace(namespace), InstanceKey(app, instance_id)
                    owners[_place(value)] = owner
                    last = bytes(key)
            return False

        while self._read(look):
            time.sleep(_PAUSE_SECS)
        return owners

    def _counter(self, namespace: Namespace) -> int:
        """The slot in which this process counts the renewals of a namespace."""
        slot = self._counters.get(namespace)
        if slot is None:
            key = b"counter\0" + namespace.encode() + b"\0" + U64.pack(self._live.owner)

            def write(txn: Any) -> int:
                stored = self._number(txn, self._meta, key)
                if stored is None:
                    stored = self._number(txn, self._meta, b"slots") or 0
                    self._live.reserve(stored)
                    txn.put(b"slots", U64.pack(stored + 1), db=self._meta)
                    txn.put(key, U64.pack(stored), db=self._meta)
                return stored

            slot = self._counters[namespace] = self._write(write)
        return slot

    def renewals(self, namespace: Namespace, window: int) -> int:
        prefix = b"counter\0" + namespace.encode() + b"\0"

        def slots(txn: Any) -> list[int]:
            found = []
            cursor = txn.cursor(self._meta)
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    found.append(U64.unpack(value)[0])
            return found

        return sum(self._live.counted(slot, window) for slot in self._read(slots))

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        live = self._live
        words = live.words  # the version is at the same place in older mappings of the file
        version = words[VERSION]
        place = self._places.get(namespace, _NO_PLACES).get(key)
        if place is not None and not version & 1:
            found = live.read(place)
            if found is not None and words[VERSION] == version:
                return found
        stored_key = self._key(namespace, *key)
        leased = self._read(lambda txn: txn.get(stored_key, db=self._leased))
        if leased is None:
            return None
        if not version & 1 and live.version == version:
            self._remember(namespace, key, _place(leased))
        return self._as_renewed(leased)

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        deadline_of = self._live.deadline
        expired: list[tuple[InstanceKey, Lease]] = []
        leases, earliest = 0, 1 << 62
        last: bytes | None = None

        def look(txn: Any) -> bool:
            """Look at the next portion; whether there is more."""
            nonlocal leases, earliest, last
            for number, (key, value) in enumerate(self._items(txn, self._leased, namespace, last)):
                if number == _LOOKED_AT_AT_ONCE:
                    return True
                slot, generation, registered = _DUE.unpack_from(value)
                deadline = deadline_of(slot, generation, registered)
                leases += 1
                if deadline < now_mono_ms:
                    place = InstanceKey(*key.decode().split("\0"))
                    expired.append((place, self._as_renewed(value)))
                elif deadline < earliest:
                    earliest = deadline
                last = key
            return False

        # Neither this process' other threads nor its transactions wait for a look at all leases.
        while self._read(look):
            time.sleep(_PAUSE_SECS)
        return Due(expired, leases, earliest if leases > len(expired) else None)

    def expected_clients(self, namespace: Namespace) -> int | None:
        key = b"expected\0" + namespace.encode()
        return self._read(lambda txn: self._number(txn, self._meta, key))

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        key = b"expected\0" + namespace.encode()
        self._write(lambda txn: txn.put(key, U64.pack(count), db=self._meta))

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        before = self.running_ms(before_mono_ms)
        return self._trim(namespace, lambda _, value: ENTRY.unpack_from(value)[0] < before)

    def _trim(self, namespace: Namespace, is_old: Callable[[bytes, bytes], bool]) -> int:
        """Forget the first changes, as long as they are old by key and value; a few at a time."""
        name = namespace.encode()

        def old(txn: Any, db: Any) -> list[bytes]:
            found: list[bytes] = []
            for key, value in self._items(txn, db, namespace):
                if not is_old(key, value) or len(found) == _TRIMMED_AT_ONCE:
                    break
                found.append(key)
            return found

        def write(txn: Any) -> int:
            changed = old(txn, self._log)
            for key in changed:
                txn.delete(name + b"\0" + key, db=self._log)
            removed = old(txn, self._removal)
            size = sum([self._forget_removal(txn, name, key) for key in removed])
            if size:
                self._keep_to_budget(txn, name, -size)
            for keys in (changed, removed):
                if keys:
                    self._note_trimmed(txn, name, keys[-1])
            return len(changed) + len(removed)

        # After a storm there is much to forget: between two portions others have their turn, and
        # what is left after some of them is forgotten next time.
        total = 0
        for _ in range(_TRIM_PORTIONS):
            gone = self._write(write)
            total += gone
            if gone < _TRIMMED_AT_ONCE:
                break
            time.sleep(_TRIM_PAUSE_SECS)
        return total

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> int | None:
            stored = txn.get(key, db=self._meta)
            holder, until = (None, 0) if stored is None else orjson.loads(stored)
            if holder not in (None, owner) and until > now_mono_ms:
                return None
            txn.put(key, orjson.dumps([owner, now_mono_ms + ttl_ms]), db=self._meta)
            token = self._token(txn, name)
            if holder != owner:
                token += 1
                txn.put(b"token\0" + name.encode(), U64.pack(token), db=self._meta)
            return token

        return self._write(write)

    def _token(self, txn: Any, lock: str) -> int:
        """The last one that was given out; it outlives the lock, so that each is given once."""
        return self._number(txn, self._meta, b"token\0" + lock.encode()) or 0

    def note(self, name: str) -> bytes | None:
        key = b"note\0" + name.encode()
        stored: bytes | None = self._read(lambda txn: txn.get(key, db=self._meta))
        return stored

    def set_note(self, name: str, value: bytes | None) -> None:
        key = b"note\0" + name.encode()

        def write(txn: Any) -> None:
            if value is None:
                txn.delete(key, db=self._meta)
            else:
                txn.put(key, value, db=self._meta)

        self._write(write)

    def release(self, name: str, owner: str) -> None:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> None:
            stored = txn.get(key, db=self._meta)
            if stored is not None and orjson.loads(stored)[0] == owner:
                txn.delete(key, db=self._meta)

        self._write(write)

    def resume(self, now_mono_ms: int) -> int | None:
        self._check_files()
        previous = self._read(lambda txn: self._signed(txn, b"alive"))
        if previous is not None and now_mono_ms - previous > PAUSE_MS:
            return self._make_good(now_mono_ms)
        self._note_running(now_mono_ms)
        return None

    def _make_good(self, now_mono_ms: int) -> int | None:
        """Make good a pause, unless another process just did: they all notice it at once."""
        try:
            with self._files.locked("resume.lock"):
                return self._make_good_alone(now_mono_ms)
        except OSError as error:
            raise StoreError(f"cannot use the store in {self._folder}: {error}") from error

    def _make_good_alone(self, now_mono_ms: int) -> int | None:
        alive = self._read(lambda txn: self._signed(txn, b"alive"))
        if alive is not None and now_mono_ms - alive <= PAUSE_MS:
            return None
        began = time.monotonic()
        extended = self._extend_all(now_mono_ms)
        took_ms = int(1000 * (time.monotonic() - began))
        # What takes that long is not to look like another pause.
        self._note_running(now_mono_ms + (took_ms if took_ms > PAUSE_MS // 2 else 0))
        return extended

    def _note_running(self, now_mono_ms: int) -> None:
        def write(txn: Any) -> None:
            alive = self._signed(txn, b"alive")
            if alive is not None and now_mono_ms <= alive:
                return
            outages = self._signed(txn, b"outages") or 0
            if alive is not None and now_mono_ms - alive > PAUSE_MS:
                outages += now_mono_ms - alive - PAUSE_MS
                txn.put(b"outages", _I64.pack(outages), db=self._meta)
            txn.put(b"alive", _I64.pack(now_mono_ms), db=self._meta)
            self._live.show_clock(now_mono_ms, outages)

        self._write(write)

    def _extend_all(self, now_mono_ms: int) -> int:
        """Give every lease its whole duration from now, unless it has more; how many that were.

        A renewal that comes meanwhile finds the version moved, and is stored again afterwards.
        """
        extended = 0
        last: bytes | None = None

        def read(txn: Any) -> list[tuple[bytes, bytes]]:
            """The next portion."""
            cursor = txn.cursor(self._leased)
            found = []
            if cursor.set_range(b"" if last is None else last + b"\0"):
                for item in cursor:
                    found.append(item)
                    if len(found) == _EXTENDED_AT_ONCE:
                        break
            return found

        while True:
            with self._alone():
                portion = self._read(read)
                self._live.begin_change()
                try:
                    for _, value in portion:
                        extended += self._live.extend(now_mono_ms, *LEASED.unpack(value))
                finally:
                    self._live.end_change()
            if len(portion) < _EXTENDED_AT_ONCE:
                return extended
            last = portion[-1][0]

    def running_ms(self, now_mono_ms: int) -> int:
        return self._live.running_ms(now_mono_ms)

    def namespaces(self) -> dict[Namespace, int]:
        return self._read(self._sizes)

    def probe(self) -> None:
        """All that a registration needs, and the growth of the files.

        Pages that were freed before may hide a full disk, a quota or a limit.
        """
        if time.monotonic() < self._probed + _PROBED_SECS:
            return
        self._check_files()
        try:
            disk = os.statvfs(self._folder)
            free = disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
            if free < _MINIMUM_FREE_BYTES:
                raise StoreError(f"the disk is full: {free} bytes are free in {self._folder}")
            self._make_room()
        except OSError as error:
            raise StoreError(f"the store in {self._folder} cannot grow: {error}") from error
        stamp = U64.pack(time.monotonic_ns())
        self._write(lambda txn: txn.put(b"probe", stamp, db=self._meta))
        self._probed = time.monotonic()

    def state(self) -> StoreState:
        """The size is that of the folder: the files' blocks, with the checkpoint."""
        try:
            with os.scandir(self._folder) as entries:
                blocks = sum([entry.stat().st_blocks for entry in entries if entry.is_file()])
        except OSError as error:
            raise StoreError(f"cannot look at the store in {self._folder}: {error}") from error
        return StoreState(self.life(), blocks * _BLOCK_BYTES)

    def _make_room(self) -> None:
        """Have the files as long as the next registrations need them."""
        slots = self._read(lambda txn: self._number(txn, self._meta, b"slots")) or 0
        with self._lock:
            self._live.reserve(slots)
            used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        with open(self._files.data, "r+b") as file:
            os.posix_fallocate(file.fileno(), used, _MINIMUM_FREE_BYTES)

    def flush(self) -> None:
        """Write a checkpoint if something changed and the last one is old enough."""
        self._flush(at_once=False)

    def _flush(self, *, at_once: bool) -> None:
        now = time.monotonic()
        written_at, written = self._checkpointed
        pause = max(_CHECKPOINT_EVERY_SECS, self._checkpoint_cost * _CHECKPOINT_DUTY)
        if not at_once and now - written_at < pause:
            return
        self._check_files()

        def read(txn: Any) -> tuple[int, int]:
            """The sums of all revisions, and of what was removed and is still told of."""
            revisions = removed = 0
            for key, value in txn.cursor(self._meta):
                if key.startswith(b"revision\0"):
                    revisions += U64.unpack(value)[0]
                elif key.startswith(b"removed\0"):
                    removed += U64.unpack(value)[0]
            return revisions, removed

        total, removed = self._read(read)
        if total == written:
            return
        try:
            with self._files.locked("checkpoint.lock", waits=at_once):
                self._files.write_checkpoint(self._copy, removed, self._check_files)
        except BlockingIOError:
            return  # another process is at it
        except (OSError, lmdb.Error) as error:
            self._checkpointed = (time.monotonic(), written)
            raise StoreError(f"cannot write a checkpoint: {error}") from error
        self._checkpoint_cost = time.monotonic() - now
        self._checkpointed = (time.monotonic(), total)

    def _copy(self, draft: Path) -> None:
        """Copy all that is in use into an empty folder."""
        with self._lock:
            env = self._env
            env.reader_check()  # what a killed process was reading is free again
        try:
            env.copy(str(draft), compact=True)
        except lmdb.MapResizedError:  # another process has grown the file since the last read
            with self._lock:
                env.set_mapsize(0)
            (draft / "data.mdb").unlink(missing_ok=True)
            env.copy(str(draft), compact=True)

    def close(self) -> None:
        """Write what is not yet in the checkpoint, and let go."""
        try:
            with suppress(StoreGoneError):  # what is there now is not of this store
                self._flush(at_once=True)
                with suppress(OSError), self._files.locked("opening.lock"):
                    if self._live.is_alone():
                        self._files.leave_whole(self._whole)
        finally:
            with self._lock:
                self._env.close()
                self._live.close()


_BY_REVISION = operator.attrgetter("revision")
_NO_LEASE = Lease(0, 0, 0)
_UNKNOWN = (-1, Revision(0))
_NO_PLACES: dict[InstanceKey, Place] = {}


def _pack(place: Place, lease: Lease) -> bytes:
    return LEASED.pack(*place, lease.deadline_mono_ms, lease.duration_ms, lease.last_renewal_ms)


def _size_of_removal(entry: bytes) -> int:
    """What a removed instance takes on the disk, roughly."""
    return len(entry) + 100


def _place(leased: bytes) -> Place:
    return Place(*_PLACE.unpack_from(leased))
