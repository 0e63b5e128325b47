"""The LMDB environment of a store: its databases, and short transactions on them.

A transaction sees one state, whatever is committed meanwhile. Another process may have made the map
larger: then it is mapped anew. A full map is doubled. Each transaction is short, so one lock for
all threads of this process costs nothing.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from registry.errors import StoreError, StoreGoneError
from registry.model import Namespace
from registry.stores.lmdb.folder import INITIAL_MAP_BYTES
from registry.stores.lmdb.records import U64

_T = TypeVar("_T")
NOTE = b"note\0"
"""In ``meta``, before the name of a note."""
I64 = struct.Struct(">q")
"""An instant in ``meta``, which may lie before the boot."""
_MAX_KEY_BYTES = 510
_FAILURES = (lmdb.Error, OSError, ValueError, LookupError, TypeError, struct.error)


class Environment:
    """The environment as this process has it open. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open or create it; ``lmdb.Error``, ``OSError``."""
        self.folder = folder
        self.data = folder / "data.mdb"
        self.lock = threading.RLock()
        """Resizing allows no transaction. Whoever locks the lease file has this one before."""
        self.failures = 0
        """How many transactions failed so far."""
        self._gone: str | None = None
        self._env = lmdb.open(
            str(folder),
            map_size=INITIAL_MAP_BYTES,
            max_dbs=8,
            max_readers=1024,
            sync=False,
            metasync=False,
        )
        self._env.reader_check()
        # An existing file may be larger than the initial map.
        if self.data.stat().st_size > self._env.info()["map_size"]:
            self._env.set_mapsize(0)
        self.record = self._env.open_db(b"record")
        self.leased = self._env.open_db(b"leased")
        self.free = self._env.open_db(b"free")
        self.override = self._env.open_db(b"override")
        self.log = self._env.open_db(b"log")
        self.removal = self._env.open_db(b"removal")
        self.removed = self._env.open_db(b"removed")
        self.meta = self._env.open_db(b"meta")

    def read(self, work: Callable[[Any], _T]) -> _T:
        """What ``work`` returns, given a transaction; ``StoreError``."""
        with self.lock:
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

    def write(self, work: Callable[[Any], _T]) -> _T:
        """The same with a transaction that may write; it may be called again. ``StoreError``."""
        with self.lock:
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
        """What went wrong, in the words of the contract."""
        self.failures += 1
        if isinstance(error, (lmdb.Error, OSError)):
            return StoreError(f"cannot {what} the store in {self.folder}: {error}")
        # What was written is not what is read.
        return StoreError(f"{self.data} is damaged: {error}")

    def give_up(self, reason: str) -> StoreGoneError:
        """Have every transaction fail from now on: what this process has mapped is nobody's."""
        self._gone = reason
        return StoreGoneError(reason)

    def number(self, txn: Any, key: bytes) -> int | None:
        """A number in ``meta``."""
        value = txn.get(key, db=self.meta)
        return None if value is None else U64.unpack(value)[0]

    def signed(self, txn: Any, key: bytes) -> int | None:
        """An instant in ``meta``."""
        value = txn.get(key, db=self.meta)
        return None if value is None else I64.unpack(value)[0]

    def life(self, txn: Any) -> int:
        """Where revisions begin in this life."""
        return self.number(txn, b"life") or 0

    def revision(self, txn: Any, namespace: Namespace) -> int:
        """That of the namespace's last change; the life's first before there is one."""
        return self.number(txn, b"revision\0" + namespace.encode()) or self.life(txn)

    def trimmed(self, txn: Any, namespace: Namespace) -> int:
        """The revision after which the log has all changes of the namespace."""
        return self.number(txn, b"trimmed\0" + namespace.encode()) or self.life(txn)

    def sizes(self, txn: Any) -> dict[Namespace, int]:
        """Every namespace that was written to, and how many instances it holds."""
        found = {}
        cursor = txn.cursor(self.meta)
        if cursor.set_range(b"size\0"):
            for key, value in cursor:
                if not key.startswith(b"size\0"):
                    break
                found[Namespace(key[5:].decode())] = U64.unpack(value)[0]
        return found

    def used_bytes(self) -> int:
        """How much of the file is in use."""
        with self.lock:
            pages: int = self._env.info()["last_pgno"] + 1
            return pages * int(self._env.stat()["psize"])

    def copy(self, draft: Path) -> None:
        """Copy all that is in use into an empty folder; ``OSError``, ``lmdb.Error``."""
        with self.lock:
            env = self._env
            env.reader_check()  # what a killed process was reading is free again
        try:
            env.copy(str(draft), compact=True)
        except lmdb.MapResizedError:  # another process has grown the file since the last read
            with self.lock:
                env.set_mapsize(0)
            (draft / "data.mdb").unlink(missing_ok=True)
            env.copy(str(draft), compact=True)

    def close(self) -> None:
        """Let go; only under ``lock``."""
        self._env.close()


def key_of(namespace: Namespace, *parts: str) -> bytes:
    """The key of something in a namespace; ``StoreError`` where it is too long for one."""
    key = "\0".join((namespace, *parts)).encode()
    if len(key) > _MAX_KEY_BYTES:
        raise StoreError(f"the identity is longer than {_MAX_KEY_BYTES} bytes")
    return key


def items(
    txn: Any, db: Any, namespace: Namespace, after: bytes | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """What a database has of a namespace, after a key; the keys without the namespace."""
    prefix = namespace.encode() + b"\0"
    cursor = txn.cursor(db)
    # No key lies between one and the same with a byte of zero after it.
    if cursor.set_range(prefix if after is None else prefix + after + b"\0"):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key[len(prefix) :], value
