"""The history in an LMDB environment of its own: for all workers of a machine, and kept.

| database | key | value |
| --- | --- | --- |
| ``entry`` | namespace, instant, revision, number | the entry |
| ``of`` | namespace, application, id, revision, number, instant | whether that was a state |
| ``base`` | namespace, application, id | revision, and the newest state that was forgotten |
| ``meta`` | a name, perhaps with a namespace | the format; the earliest instant, and revision |

Words in a key are parted by NUL, which none can hold; the numbers behind them have eight bytes, and
four that which tells entries of one revision apart. So ``entry`` is in the order of instants, and
``of`` in that of revisions.

**Bytes.** The map is as large as the history may be, so the file can never be larger; one that is,
since it may be less than before, is made smaller by the next who opens it alone. Where three
quarters of the map are in use the oldest entries go, and so they do where a write finds no room.
Nothing is written where the disk has hardly anything left: the registry needs that more.

**Validity.** Each batch is flushed when it is committed, so that even a power cut leaves the file
whole. A file that is damaged all the same is put aside, and the history begins anew: the registry
does not depend on it.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import lmdb
import orjson

from registry.errors import StoreError
from registry.history import (
    Asker,
    Extent,
    ForgottenError,
    HistoryEntry,
    HistoryKind,
    Moment,
    Page,
    Wish,
)
from registry.model import Instance, InstanceKey, Namespace, Revision
from registry.stores.lmdb.records import U64, decode_instance, encode_instance

log = logging.getLogger("registry")

_T = TypeVar("_T")
LEFT_FREE_BYTES = 1024 * 1024
"""Of the disk so much is left to the registry."""
_FORMAT = b"1"
# The end of a key in ``entry``, and in ``of``.
_WHEN = struct.Struct(">QQI")
_WHICH = struct.Struct(">QIQ")
# What begins an entry: its kind, the length of its name, that of what tells of it.
_HEAD = struct.Struct(">BHI")
_KINDS = tuple(HistoryKind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_EVENT, _LISTED, _REMOVED = b"", b"l", b"r"
# Of the bytes that it may take so much is used before the oldest entries go, and afterwards.
_FULL, _ROOMY = 0.75, 0.65
# A base of the registry as it was that takes more than this leaves no room for a history.
_MOST_BASE = 0.5
# Where the map is small a transaction must be too: it copies each page that it touches.
_BYTES_FOR_EACH = 16 * 1024
_PACKED_AT_ONCE = 100
_FORGOTTEN_AT_ONCE = 500
_TAKEN_AT_ONCE = 500
_LOOKED_AT = 20_000
_PAUSE_SECS = 0.001
_NEVER = (1 << 64) - 1
_FAILURES = (lmdb.Error, OSError, ValueError, LookupError, TypeError, struct.error)


class LmdbHistory:
    """The history in a folder, shared by all processes of this machine that open it."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Open or create it; ``StoreError`` where the folder cannot be used."""
        self._folder = folder
        self._most_bytes = most_bytes
        self._data = folder / "data.mdb"
        self._lock = threading.Lock()  # an environment has one writer, also among threads
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "opening.lock").open("w") as opening:
                fcntl.flock(opening, fcntl.LOCK_EX)
                # Held for as long as this process has it open.
                self._in_use = (folder / "in-use.lock").open("w")
                is_alone = _is_alone(self._in_use)
                fcntl.flock(self._in_use, fcntl.LOCK_SH)
                is_larger = self._data.exists() and self._data.stat().st_size > most_bytes
                if is_alone and is_larger:
                    self._make_smaller()
                self._open_whole()
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"cannot open the history in {folder}: {error}") from error

    def _open_whole(self, spare_bytes: int = 0) -> None:
        try:
            self._open(spare_bytes)
            if self._is_whole():
                return
            reason: object = "it is cut off, or of another version"
            self._env.close()
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            reason = error
        data = self._data
        log.error("%s: %s; it is put aside, and the history begins anew", data, reason)
        data.replace(self._folder / "damaged.mdb")
        (self._folder / "lock.mdb").unlink(missing_ok=True)
        self._open(spare_bytes)
        self._is_whole()

    def _open(self, spare_bytes: int) -> None:
        data = self._data
        size = data.stat().st_size if data.exists() else 0
        self._env = lmdb.open(
            str(self._folder),
            map_size=max(self._most_bytes, size + spare_bytes),
            max_dbs=4,
            max_readers=1024,
            metasync=False,
        )
        self._env.reader_check()

    def _make_smaller(self) -> None:
        """Forget as much as is too much, and write the rest anew."""
        self._open_whole(spare_bytes=self._data.stat().st_size)
        self._make_room(_ROOMY)
        smaller = self._folder / "smaller"
        shutil.rmtree(smaller, ignore_errors=True)
        smaller.mkdir()
        self._env.copy(str(smaller), compact=True)
        self._env.close()
        (smaller / "data.mdb").replace(self._data)
        smaller.rmdir()

    def _is_whole(self) -> bool:
        """Open the databases, and state the format; False where this is not what was written."""
        used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if self._data.stat().st_size < used:
            return False
        self._entry = self._env.open_db(b"entry")
        self._of = self._env.open_db(b"of")
        self._base = self._env.open_db(b"base")
        self._meta = self._env.open_db(b"meta")
        with self._env.begin(write=True) as txn:
            found = txn.get(b"format", db=self._meta)
            if found is None:
                txn.put(b"format", _FORMAT, db=self._meta)
            elif found != _FORMAT:
                return False
            room = txn.get(b"room", db=self._meta)
            if self._earliest(txn) == _NEVER and room and U64.unpack(room)[0] < self._most_bytes:
                txn.delete(b"earliest", db=self._meta)  # there may be room for all now
            txn.put(b"room", U64.pack(self._most_bytes), db=self._meta)
        return True

    # Transactions

    def _read(self, work: Callable[[Any], _T]) -> _T:
        try:
            with self._env.begin() as txn:
                return work(txn)
        except _FAILURES as error:
            raise self._failure("read", error) from error

    def _write(self, work: Callable[[Any], _T]) -> _T:
        try:
            with self._lock, self._env.begin(write=True) as txn:
                return work(txn)
        except lmdb.MapFullError:
            raise
        except _FAILURES as error:
            raise self._failure("write to", error) from error

    def _failure(self, what: str, error: Exception) -> StoreError:
        return StoreError(f"cannot {what} the history in {self._folder}: {error}")

    def _earliest(self, txn: Any) -> int | None:
        value = txn.get(b"earliest", db=self._meta)
        return None if value is None else int(U64.unpack(value)[0])

    # Writing

    def begin(self, revisions: Mapping[Namespace, Revision], now_ms: int) -> None:
        def write(txn: Any) -> None:
            if self._earliest(txn) is not None:
                return
            txn.put(b"earliest", U64.pack(now_ms), db=self._meta)
            for namespace, revision in revisions.items():
                txn.put(_revision_key(namespace), U64.pack(revision), db=self._meta)
            # What stands there already is how everything began.
            self._forget(txn, now_ms, None)

        self._write(write)

    def add(self, entries: Sequence[HistoryEntry]) -> None:
        if shutil.disk_usage(self._folder).free < LEFT_FREE_BYTES:
            raise StoreError(f"the disk of {self._folder} is full")
        packed: list[tuple[HistoryEntry, bytes]] = []
        for start in range(0, len(entries), _PACKED_AT_ONCE):
            if start:
                time.sleep(_PAUSE_SECS)  # for whoever waits for the interpreter
            packed += [
                (entry, _packed(entry)) for entry in entries[start : start + _PACKED_AT_ONCE]
            ]
        at_once = max(1, self._most_bytes // (4 * _BYTES_FOR_EACH))
        for start in range(0, len(packed), at_once):
            portion = packed[start : start + at_once]
            self._make_room(_FULL)
            while not self._has_added(portion):
                if not self._make_room(_ROOMY / 2):
                    raise StoreError(f"the history in {self._folder} has no room for an entry")

    def _has_added(self, packed: Sequence[tuple[HistoryEntry, bytes]]) -> bool:
        """Add entries; False, and none is added, where there is no room."""

        def write(txn: Any) -> None:
            earliest = self._earliest(txn)
            if earliest is None or earliest == _NEVER:
                earliest = 0
            told, found = [], []
            for entry, value in packed:
                if entry.at_ms < earliest:
                    self._settle(txn, entry)
                    continue
                told.append((_entry_key(entry), value))
                if entry.id:
                    found.append((_of_key(entry), _what(entry)))
            told.sort()
            found.sort()
            with txn.cursor(self._entry) as cursor:
                cursor.putmulti(told)
            with txn.cursor(self._of) as cursor:
                cursor.putmulti(found)

        try:
            self._write(write)
        except lmdb.MapFullError:
            return False
        return True

    def _settle(self, txn: Any, entry: HistoryEntry) -> None:
        """Keep the state of an entry that is older than what is told of."""
        if entry.id and entry.is_state:
            is_listed = not entry.removed and entry.instance is not None
            encoded = encode_instance(entry.instance) if is_listed and entry.instance else None
            self._keep_base(txn, _name_key(entry), entry.revision, encoded)

    def _keep_base(self, txn: Any, name: bytes, revision: int, encoded: bytes | None) -> None:
        if self._earliest(txn) == _NEVER:
            return
        known = txn.get(name, db=self._base)
        if known is not None and U64.unpack_from(known)[0] > revision:
            return
        if encoded is not None:
            txn.put(name, U64.pack(revision) + encoded, db=self._base)
        elif known is not None:
            txn.delete(name, db=self._base)

    def prune(self, before_ms: int) -> bool:
        # Looked at first, so that nobody waits for a writer where there is nothing to do.
        self._make_room(_FULL)
        if not self._read(lambda txn: self._oldest(txn) < before_ms):
            return False
        return self._pruned(before_ms)

    def _pruned(self, before_ms: int) -> bool:
        at_most = min(_FORGOTTEN_AT_ONCE, self._most_bytes // (16 * _BYTES_FOR_EACH))
        for count in (max(1, at_most), 1):
            try:
                return self._write(lambda txn, count=count: self._forget(txn, before_ms, count))  # type: ignore[misc]
            except lmdb.MapFullError:
                continue
        # Not even room to forget in: all of it goes.
        log.error("the history in %s is full and begins anew", self._folder)
        self._write(self._empty)
        return False

    def _make_room(self, share: float) -> bool:
        """Forget the oldest until no more than a share of the bytes is used; whether any went."""
        went = False
        while True:
            used, base, oldest, newest = self._read(
                lambda txn: (
                    self._used(txn, self._entry, self._of, self._base),
                    self._used(txn, self._base),
                    self._oldest(txn),
                    self._newest(txn),
                )
            )
            if base > _MOST_BASE * self._most_bytes:
                log.warning(
                    "the history may take %d bytes: too few to keep what was listed, so it keeps"
                    " what happened alone",
                    self._most_bytes,
                )
                self._write(self._give_up_states)
                went = True
                continue
            if used <= share * self._most_bytes or oldest == _NEVER:
                return went
            share = min(share, _ROOMY)
            before = oldest + max(1, (newest - oldest) // 20)
            while self._pruned(before):
                time.sleep(_PAUSE_SECS)
            went = True

    def _give_up_states(self, txn: Any) -> None:
        txn.drop(self._base, delete=False)
        txn.put(b"earliest", U64.pack(_NEVER), db=self._meta)

    def _empty(self, txn: Any) -> None:
        self._give_up_states(txn)
        for database in (self._entry, self._of):
            txn.drop(database, delete=False)

    @staticmethod
    def _used(txn: Any, *databases: Any) -> int:
        found = [txn.stat(database) for database in databases]
        pages = sum(each["branch_pages"] + each["leaf_pages"] for each in found)
        pages += sum(each["overflow_pages"] for each in found)
        return int(pages * found[0]["psize"])

    def _namespaces(self, txn: Any) -> Iterator[tuple[bytes, int]]:
        """Each namespace that has entries, as it begins a key, and its oldest entry's instant."""
        with txn.cursor(self._entry) as cursor:
            found = cursor.first()
            while found:
                key = cursor.key()
                prefix = key[: -_WHEN.size]
                yield prefix, _WHEN.unpack(key[-_WHEN.size :])[0]
                found = cursor.set_range(prefix[:-1] + b"\1")

    def _oldest(self, txn: Any) -> int:
        return min((at for _, at in self._namespaces(txn)), default=_NEVER)

    def _newest(self, txn: Any) -> int:
        newest = 0
        with txn.cursor(self._entry) as cursor:
            for prefix, _ in self._namespaces(txn):
                is_behind = cursor.set_range(prefix[:-1] + b"\1")
                if cursor.prev() if is_behind else cursor.last():
                    newest = max(newest, _WHEN.unpack(cursor.key()[-_WHEN.size :])[0])
        return newest

    def _forget(self, txn: Any, before_ms: int, at_most: int | None) -> bool:
        """Forget entries from before an instant, at most so many; whether some are left."""
        gone: list[bytes] = []
        for prefix, _ in self._namespaces(txn):
            with txn.cursor(self._entry) as cursor:
                cursor.set_range(prefix)
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix) or len(gone) == at_most:
                        break
                    if _WHEN.unpack(key[-_WHEN.size :])[0] >= before_ms:
                        break
                    gone.append(key)
        earliest = self._earliest(txn)
        latest = earliest or 0
        for key in gone:
            latest = max(latest, _WHEN.unpack(key[-_WHEN.size :])[0] + 1)
            self._forget_entry(txn, key)
        is_left = len(gone) == at_most
        if earliest is not None and earliest != _NEVER:
            # What was forgotten shares its instant with nothing that is told of.
            bound = latest if is_left else max(latest, before_ms)
            txn.put(b"earliest", U64.pack(bound), db=self._meta)
        return is_left

    def _forget_entry(self, txn: Any, key: bytes) -> None:
        value = txn.get(key, db=self._entry)
        if value is None:
            return  # it went with a later one of its instance
        at, revision, number = _WHEN.unpack(key[-_WHEN.size :])
        prefix = key[: -_WHEN.size]
        _, length, told = _HEAD.unpack_from(value)
        name = prefix + value[_HEAD.size : _HEAD.size + length]
        txn.delete(key, db=self._entry)
        before = txn.get(_revision_key_of(prefix), db=self._meta)
        if before is None or U64.unpack(before)[0] < revision:
            txn.put(_revision_key_of(prefix), U64.pack(revision), db=self._meta)
        if name.endswith(b"\0"):
            return  # it is not about an instance
        last = name + b"\0" + _WHICH.pack(revision, number, at)
        what = txn.get(last, db=self._of)
        with txn.cursor(self._of) as cursor:
            # Usually itself alone. What is older by its revision is not told of any more either.
            found = cursor.set_range(name + b"\0")
            while found and name < cursor.key() <= last:
                which, numbered, when = _WHICH.unpack(cursor.key()[-_WHICH.size :])
                is_event = cursor.value() == _EVENT
                if cursor.key() == last or (what != _EVENT and not is_event):
                    txn.delete(prefix + _WHEN.pack(when, which, numbered), db=self._entry)
                    found = cursor.delete()
                else:
                    found = cursor.next()
        if what == _LISTED:
            self._keep_base(txn, name, revision, bytes(value[_HEAD.size + length + told :]))
        elif what == _REMOVED:
            self._keep_base(txn, name, revision, None)

    # Reading

    def read(self, namespace: Namespace, wish: Wish) -> Page:
        return self._read(lambda txn: self._page(txn, namespace, wish))

    def _page(self, txn: Any, namespace: Namespace, wish: Wish) -> Page:
        keys: Iterable[bytes]
        if wish.id is not None:
            keys = self._keys_of(txn, namespace, wish.id, wish)
        else:
            keys = self._keys(txn, namespace, wish)
        codes = {_CODES[kind] for kind in wish.kinds} or set(range(len(_KINDS)))
        app = None if wish.app is None else wish.app.encode() + b"\0"
        found: list[HistoryEntry] = []
        for looked, key in enumerate(keys, 1):
            value = txn.get(key, db=self._entry)
            code, length, _ = _HEAD.unpack_from(value)
            name = value[_HEAD.size : _HEAD.size + length]
            if code in codes and (app is None or name.startswith(app)):
                found.append(_unpacked(namespace, key, value))
            if len(found) == wish.limit or looked == _LOOKED_AT:
                return Page(found, _WHEN.unpack(key[-_WHEN.size :]))
        return Page(found, None)

    def _keys(self, txn: Any, namespace: Namespace, wish: Wish) -> Iterator[bytes]:
        """The keys of entries in the wanted time, the newest first."""
        prefix = namespace.encode() + b"\0"
        since, before = _bounds(wish)
        with txn.cursor(self._entry) as cursor:
            is_behind = cursor.set_range(prefix + _WHEN.pack(*before))
            found = cursor.prev() if is_behind else cursor.last()
            while found and cursor.key() >= prefix + _WHEN.pack(since, 0, 0):
                yield cursor.key()
                found = cursor.prev()

    def _keys_of(self, txn: Any, namespace: Namespace, instance_id: str, wish: Wish) -> list[bytes]:
        """The same, of one id: in an application, or in each."""
        prefix = namespace.encode() + b"\0"
        apps = self._apps(txn, prefix) if wish.app is None else [wish.app.encode()]
        since, before = _bounds(wish)
        found = []
        for app in apps:
            name = b"%b%b\0%b\0" % (prefix, app, instance_id.encode())
            for key, _ in self._items(txn, self._of, name):
                revision, number, at = _WHICH.unpack(key[-_WHICH.size :])
                if since <= at and (at, revision, number) < before:
                    found.append(prefix + _WHEN.pack(at, revision, number))
        return sorted(found, reverse=True)

    def _apps(self, txn: Any, prefix: bytes) -> Iterator[bytes]:
        """The applications of a namespace that entries are about."""
        with txn.cursor(self._of) as cursor:
            found = cursor.set_range(prefix)
            while found and (key := cursor.key()).startswith(prefix):
                app = key[len(prefix) :].partition(b"\0")[0]
                yield app
                found = cursor.set_range(prefix + app + b"\1")

    def _items(self, txn: Any, database: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(database) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        return
                    yield key, value

    def _check(self, txn: Any, namespace: Namespace, moment: Moment) -> None:
        """``ForgottenError`` where a moment is older than what can be told of."""
        earliest = self._earliest(txn)
        if earliest is None or earliest == _NEVER:
            raise ForgottenError(None)
        if moment.revision is not None:
            known = txn.get(_revision_key(namespace), db=self._meta)
            if known is not None and moment.revision < U64.unpack(known)[0]:
                raise ForgottenError(earliest)
        elif moment.at_ms is not None and moment.at_ms < earliest:
            raise ForgottenError(earliest)

    def _states(
        self, txn: Any, namespace: Namespace, moments: Sequence[Moment]
    ) -> dict[bytes, list[bytes | None]]:
        """For each instance with entries: where its state at each moment stands; None: in base.

        It is a key in ``entry``; empty: it was removed.
        """
        prefix = namespace.encode() + b"\0"
        found: dict[bytes, list[bytes | None]] = {}
        for looked, (key, what) in enumerate(self._items(txn, self._of, prefix)):
            if looked % _TAKEN_AT_ONCE == 0:
                time.sleep(0)
            if what == _EVENT:
                continue
            revision, number, at = _WHICH.unpack(key[-_WHICH.size :])
            places = found.setdefault(key[: -_WHICH.size - 1], [None] * len(moments))
            for place, moment in enumerate(moments):
                if moment.has(at, revision):
                    where = prefix + _WHEN.pack(at, revision, number)
                    places[place] = where if what == _LISTED else b""
        return found

    def _at(self, txn: Any, name: bytes, place: bytes | None) -> Instance | None:
        if place == b"":
            return None
        if place is None:
            value = txn.get(name, db=self._base)
            return None if value is None else _of_base(value)
        return _instance_of(txn.get(place, db=self._entry), _WHEN.unpack(place[-_WHEN.size :])[1])

    def state(self, namespace: Namespace, moment: Moment) -> Iterator[Instance]:
        def names(txn: Any) -> list[tuple[bytes, bytes | None]]:
            self._check(txn, namespace, moment)
            prefix = namespace.encode() + b"\0"
            found = {
                name: places[0] for name, places in self._states(txn, namespace, [moment]).items()
            }
            for name, _ in self._items(txn, self._base, prefix):
                found.setdefault(name, None)
            return sorted(found.items())

        return self._taken(names, lambda txn, each: self._at(txn, *each))

    def differences(
        self, namespace: Namespace, first: Moment, second: Moment
    ) -> Iterator[tuple[Instance | None, Instance | None]]:
        def names(txn: Any) -> list[tuple[bytes, list[bytes | None]]]:
            self._check(txn, namespace, first)
            self._check(txn, namespace, second)
            found = self._states(txn, namespace, [first, second])
            return sorted((name, at) for name, at in found.items() if at[0] != at[1])

        def both(
            txn: Any, each: tuple[bytes, list[bytes | None]]
        ) -> tuple[Instance | None, Instance | None] | None:
            name, (before, after) = each
            pair = self._at(txn, name, before), self._at(txn, name, after)
            return None if pair == (None, None) else pair

        return self._taken(names, both)

    def _taken(
        self,
        names: Callable[[Any], list[Any]],
        take: Callable[[Any, Any], _T | None],
    ) -> Iterator[_T]:
        """What ``take`` makes of each name, all in one transaction; others may go on in between."""
        try:
            txn = self._env.begin()
        except _FAILURES as error:
            raise self._failure("read", error) from error
        try:
            wanted = names(txn)
        except ForgottenError:
            txn.abort()
            raise
        except _FAILURES as error:
            txn.abort()
            raise self._failure("read", error) from error

        def taken() -> Iterator[_T]:
            try:
                for number, name in enumerate(wanted):
                    if number % _TAKEN_AT_ONCE == 0:
                        time.sleep(_PAUSE_SECS)
                    found = take(txn, name)
                    if found is not None:
                        yield found
            except _FAILURES as error:
                raise self._failure("read", error) from error
            finally:
                txn.abort()

        return taken()

    def known(self, namespace: Namespace) -> dict[InstanceKey, tuple[Revision, bool]]:
        prefix = namespace.encode() + b"\0"

        def read(txn: Any) -> dict[InstanceKey, tuple[Revision, bool]]:
            found = {
                _key_of(name[len(prefix) :]): (Revision(U64.unpack_from(value)[0]), True)
                for name, value in self._items(txn, self._base, prefix)
            }
            for looked, (key, what) in enumerate(self._items(txn, self._of, prefix)):
                if looked % _TAKEN_AT_ONCE == 0:
                    time.sleep(0)
                if what != _EVENT:
                    revision = _WHICH.unpack(key[-_WHICH.size :])[0]
                    name = _key_of(key[len(prefix) : -_WHICH.size - 1])
                    found[name] = (Revision(revision), what == _LISTED)
            return found

        return self._read(read)

    def extent(self) -> Extent:
        def read(txn: Any) -> Extent:
            earliest = self._earliest(txn)
            entries = txn.stat(self._entry)["entries"]
            used = self._used(txn, self._entry, self._of, self._base)
            return Extent(None if earliest == _NEVER else earliest, entries, used)

        return self._read(read)

    def close(self) -> None:
        with self._lock:
            self._env.close()
            self._in_use.close()


def _is_alone(file: IO[str]) -> bool:
    """Whether no other process has the history open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _revision_key(namespace: Namespace) -> bytes:
    return _revision_key_of(namespace.encode() + b"\0")


def _revision_key_of(prefix: bytes) -> bytes:
    """In ``meta``: the revision before which nothing of a namespace is told."""
    return b"revision\0" + prefix


def _name_key(entry: HistoryEntry) -> bytes:
    return f"{entry.namespace}\0{entry.app}\0{entry.id}".encode()


def _entry_key(entry: HistoryEntry) -> bytes:
    when = _WHEN.pack(entry.at_ms, entry.revision, entry.number)
    return b"%b\0%b" % (entry.namespace.encode(), when)


def _of_key(entry: HistoryEntry) -> bytes:
    return b"%b\0%b" % (_name_key(entry), _WHICH.pack(entry.revision, entry.number, entry.at_ms))


def _what(entry: HistoryEntry) -> bytes:
    if entry.removed:
        return _REMOVED
    return _EVENT if entry.instance is None else _LISTED


def _packed(entry: HistoryEntry) -> bytes:
    name = f"{entry.app}\0{entry.id}".encode()
    by = None if entry.by is None else tuple(entry.by)
    told = orjson.dumps((by, entry.rule, entry.detail, entry.removed))
    head = _HEAD.pack(_CODES[entry.kind], len(name), len(told))
    state = b"" if entry.instance is None else encode_instance(entry.instance)
    return b"".join((head, name, told, state))


def _unpacked(namespace: Namespace, key: bytes, value: bytes) -> HistoryEntry:
    at, revision, number = _WHEN.unpack(key[-_WHEN.size :])
    code, length, told = _HEAD.unpack_from(value)
    app, _, instance_id = value[_HEAD.size : _HEAD.size + length].decode().partition("\0")
    start = _HEAD.size + length
    by, rule, detail, removed = orjson.loads(value[start : start + told])
    return HistoryEntry(
        namespace,
        Revision(revision),
        at,
        _KINDS[code],
        app,
        instance_id,
        _instance_of(value, revision),
        removed,
        None if by is None else Asker(*by),
        rule,
        detail,
        number,
    )


def _instance_of(value: bytes, revision: int) -> Instance | None:
    _, length, told = _HEAD.unpack_from(value)
    encoded = value[_HEAD.size + length + told :]
    return decode_instance(bytes(encoded), revision) if encoded else None


def _of_base(value: bytes) -> Instance:
    return decode_instance(bytes(value[U64.size :]), U64.unpack_from(value)[0])


def _key_of(name: bytes) -> InstanceKey:
    app, _, instance_id = name.decode().partition("\0")
    return InstanceKey(app, instance_id)


def _bounds(wish: Wish) -> tuple[int, tuple[int, int, int]]:
    """From which instant, and before which place in the order of entries."""
    before = wish.before or (_NEVER, 0, 0)
    if wish.until_ms is not None:
        before = min(before, (wish.until_ms + 1, 0, 0))
    return wish.since_ms or 0, before
