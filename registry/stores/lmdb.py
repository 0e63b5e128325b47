"""One machine, many workers: an LMDB environment that all processes map.

What it promises beyond the contract:

* It grows with its content: a full map is doubled, and other processes follow.
* A killed process leaves no lock and no half write behind; its reader slot is cleared.
* Commits are not flushed one by one (the kernel keeps them through any kill). Once a second a
  consistent copy goes to the disk (``checkpoint.mdb``, written beside and renamed). After a power
  cut the machine boots with another boot id, the working file is not trusted then, and the store
  starts from the last copy: never damaged, short by at most the last second (or, where copying
  takes longer than 50 ms, by twenty times what one copy takes).

Layout: ``record`` (namespace, key → instance), ``lease``, ``override``, ``log`` (namespace,
revision → change) and ``meta`` (counters, locks). Parts of a key are joined by NUL, which no
part can hold.
"""

from __future__ import annotations

import fcntl
import operator
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import orjson

from registry.errors import ConflictError, StoreError
from registry.model import (
    ActionType,
    Change,
    DataCenter,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
    Snapshot,
)
from registry.store import Commit

_T = TypeVar("_T")
_INITIAL_MAP_BYTES = 16 * 1024 * 1024
_LEASE = struct.Struct(">QQQ")
_U64 = struct.Struct(">Q")
_FIELDS = tuple(f.name for f in fields(Instance))
_VALUES = operator.attrgetter(*_FIELDS)
_DATA_CENTER = _FIELDS.index("data_center")
_CHECKPOINT_EVERY_SECS = 1.0
_CHECKPOINT_DUTY = 20.0
_MAX_KEY_BYTES = 511
_MINIMUM_FREE_BYTES = 128 * 1024


def encode_instance(instance: Instance) -> bytes:
    """An instance as the store keeps it; its revision stands beside it."""
    values = list(_VALUES(instance))
    center = instance.data_center
    values[_DATA_CENTER] = [center.name, center.amazon_metadata]
    return orjson.dumps(values)


def decode_instance(data: bytes | list[Any], revision: int) -> Instance:
    """The instance that ``encode_instance`` wrote, at this revision."""
    values = dict(
        zip(_FIELDS, orjson.loads(data) if isinstance(data, bytes) else data, strict=True)
    )
    values["data_center"] = DataCenter(*values["data_center"])
    values["tags"] = tuple(values["tags"])
    values["status"] = InstanceStatus(values["status"])
    values["overridden_status"] = InstanceStatus(values["overridden_status"])
    values["action_type"] = ActionType(values["action_type"])
    values["revision"] = revision
    return Instance(**values)


def _encode_change(commit: Commit, encoded: bytes | None) -> bytes:
    override = commit.override
    return orjson.dumps(
        [
            commit.at_mono_ms,
            None if encoded is None else orjson.Fragment(encoded),
            commit.remove,
            commit.evicted,
            None if override is None else [override.id, override.status],
        ]
    )


def _decode_change(revision: int, data: bytes) -> Change:
    at_mono_ms, instance, removed, evicted, override = orjson.loads(data)
    return Change(
        Revision(revision),
        at_mono_ms,
        None if instance is None else decode_instance(instance, revision),
        removed,
        evicted,
        None
        if override is None
        else OverrideChange(override[0], InstanceStatus(override[1]) if override[1] else None),
    )


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class LmdbStore:
    """A store in a folder, shared by all processes of this machine that open it."""

    def __init__(self, folder: Path, *, boot_id: str | None = None) -> None:
        """Open or create the store; ``StoreError`` where the folder cannot be used."""
        self._folder = folder
        self._lock = threading.RLock()  # guards the environment: resizing allows no transaction
        self._checkpointed: tuple[float, int] = (0.0, -1)
        self._checkpoint_cost = 0.0
        boot_id = boot_id or _boot_id()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._opening():
                boot_file = folder / "boot"
                rebooted = boot_file.exists() and boot_file.read_text() != boot_id
                if rebooted:
                    self._restore_checkpoint()
                self._open()
                if rebooted:
                    self._forget_clock()
                if rebooted or not boot_file.exists():
                    boot_file.write_text(boot_id)
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"cannot open the store in {folder}: {error}") from error

    @contextmanager
    def _opening(self) -> Iterator[None]:
        with (self._folder / "opening.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open(self) -> None:
        self._env = lmdb.open(
            str(self._folder),
            map_size=_INITIAL_MAP_BYTES,
            max_dbs=5,
            max_readers=1024,
            sync=False,
            metasync=False,
        )
        self._env.reader_check()
        # An existing file may be larger than the initial map.
        if self._map_is_smaller():
            self._env.set_mapsize(0)
        self._record = self._env.open_db(b"record")
        self._lease = self._env.open_db(b"lease")
        self._override = self._env.open_db(b"override")
        self._log = self._env.open_db(b"log")
        self._meta = self._env.open_db(b"meta")

    def _map_is_smaller(self) -> bool:
        size: int = self._env.info()["map_size"]
        return (self._folder / "data.mdb").stat().st_size > size

    def _restore_checkpoint(self) -> None:
        checkpoint = self._folder / "checkpoint.mdb"
        if checkpoint.exists():
            shutil.copyfile(checkpoint, self._folder / "restored.mdb")
            (self._folder / "restored.mdb").replace(self._folder / "data.mdb")
        else:
            (self._folder / "data.mdb").unlink(missing_ok=True)
        (self._folder / "lock.mdb").unlink(missing_ok=True)

    def _forget_clock(self) -> None:
        """After a reboot the monotonic clock begins again: nothing written by it holds."""

        def forget(txn: Any) -> None:
            for key, value in list(txn.cursor(self._lease)):
                _, duration, renewed = _LEASE.unpack(value)
                txn.put(key, _LEASE.pack(0, duration, renewed), db=self._lease)
            for key, value in list(txn.cursor(self._log)):
                entry = orjson.loads(value)
                entry[0] = 0
                txn.put(key, orjson.dumps(entry), db=self._log)
            for key, _ in list(txn.cursor(self._meta)):
                if key.startswith((b"lock\0", b"window\0")):
                    txn.delete(key, db=self._meta)
            # An instant before every pause: the next ``resume`` gives the leases their time back.
            txn.put(b"alive", _U64.pack(0), db=self._meta)

        self._write(forget)

    # Transactions: each is short, so one lock for all threads of this process costs nothing.

    def _read(self, work: Callable[[Any], _T]) -> _T:
        with self._lock:
            try:
                try:
                    with self._env.begin() as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    self._env.set_mapsize(0)
                    with self._env.begin() as txn:
                        return work(txn)
            except lmdb.Error as error:
                raise StoreError(f"cannot read the store: {error}") from error

    def _write(self, work: Callable[[Any], _T]) -> _T:
        with self._lock:
            try:
                while True:
                    try:
                        with self._env.begin(write=True) as txn:
                            return work(txn)
                    except lmdb.MapResizedError:
                        self._env.set_mapsize(0)
                    except lmdb.MapFullError:
                        self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except (lmdb.Error, OSError) as error:
                raise StoreError(f"cannot write to the store: {error}") from error

    @staticmethod
    def _key(namespace: Namespace, *parts: str) -> bytes:
        key = "\0".join((namespace, *parts)).encode()
        if len(key) > _MAX_KEY_BYTES:
            raise StoreError(f"the identity is longer than {_MAX_KEY_BYTES} bytes")
        return key

    @staticmethod
    def _number(txn: Any, db: Any, key: bytes) -> int | None:
        value = txn.get(key, db=db)
        return None if value is None else _U64.unpack(value)[0]

    def _revision(self, txn: Any, namespace: Namespace) -> int:
        return self._number(txn, self._meta, b"revision\0" + namespace.encode()) or 0

    def revision(self, namespace: Namespace) -> Revision:
        return Revision(self._read(lambda txn: self._revision(txn, namespace)))

    def _changes(self, txn: Any, namespace: Namespace, after: int) -> list[Change]:
        prefix = namespace.encode() + b"\0"
        found = []
        cursor = txn.cursor(self._log)
        if cursor.set_range(prefix + _U64.pack(after + 1)):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                found.append(_decode_change(_U64.unpack(key[len(prefix) :])[0], value))
        return found

    def load(self, namespace: Namespace) -> Snapshot:
        def load(txn: Any) -> Snapshot:
            return Snapshot(
                Revision(self._revision(txn, namespace)),
                tuple(
                    decode_instance(v[8:], _U64.unpack(v[:8])[0])
                    for _, v in self._items(txn, self._record, namespace)
                ),
                {
                    key.decode(): InstanceStatus(value.decode())
                    for key, value in self._items(txn, self._override, namespace)
                },
                tuple(self._changes(txn, namespace, 0)),
            )

        return self._read(load)

    @staticmethod
    def _items(txn: Any, db: Any, namespace: Namespace) -> Iterator[tuple[bytes, bytes]]:
        prefix = namespace.encode() + b"\0"
        cursor = txn.cursor(db)
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key[len(prefix) :], value

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        def read(txn: Any) -> list[Change] | None:
            trimmed = self._number(txn, self._meta, b"trimmed\0" + namespace.encode()) or 0
            return None if after < trimmed else self._changes(txn, namespace, after)

        return self._read(read)

    def commit(self, namespace: Namespace, commit: Commit) -> Revision:
        key = self._key(namespace, *commit.key)
        override_key = self._key(namespace, commit.key.id)

        def write(txn: Any) -> Revision:
            stored = txn.get(key, db=self._record)
            # The revision leads the record, so that the guard costs no decoding.
            expected = _U64.unpack(stored[:8])[0] if stored is not None else 0
            override = txn.get(override_key, db=self._override)
            lease = txn.get(key, db=self._lease)
            if (
                expected != commit.expected
                or (None if override is None else InstanceStatus(override.decode()))
                != commit.expected_override
                or (
                    commit.expected_deadline_mono_ms is not None
                    and (
                        lease is None or _LEASE.unpack(lease)[0] != commit.expected_deadline_mono_ms
                    )
                )
            ):
                raise ConflictError
            return self._apply(txn, namespace, commit, key)

        return self._write(write)

    def _apply(self, txn: Any, namespace: Namespace, commit: Commit, key: bytes) -> Revision:
        name = namespace.encode()
        revision = Revision(self._revision(txn, namespace) + 1)
        instance = commit.instance
        encoded = None if instance is None else encode_instance(instance)
        if encoded is not None:
            if commit.remove:
                txn.delete(key, db=self._record)
                txn.delete(key, db=self._lease)
            else:
                txn.put(key, _U64.pack(revision) + encoded, db=self._record)
                if commit.lease is not None:
                    txn.put(key, _pack(commit.lease), db=self._lease)
        if commit.override is not None:
            override_key = self._key(namespace, commit.override.id)
            if commit.override.status is None:
                txn.delete(override_key, db=self._override)
            else:
                txn.put(override_key, commit.override.status.encode(), db=self._override)
        if commit.expected_clients_step:
            count = self._number(txn, self._meta, b"expected\0" + name)
            if count:
                count = max(0, count + commit.expected_clients_step)
                txn.put(b"expected\0" + name, _U64.pack(count), db=self._meta)
        log_key = name + b"\0" + _U64.pack(revision)
        txn.put(log_key, _encode_change(commit, encoded), db=self._log)
        txn.put(b"revision\0" + name, _U64.pack(revision), db=self._meta)
        return revision

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        stored_key = self._key(namespace, *key)
        name = namespace.encode()

        def write(txn: Any) -> bool:
            if txn.get(stored_key, db=self._lease) is None:
                return False
            txn.put(stored_key, _pack(lease), db=self._lease)
            if window is not None:
                # Two slots take turns: the running window and the last complete one.
                slot = b"window\0" + name + (b"\0even" if window % 2 == 0 else b"\0odd")
                stored = txn.get(slot, db=self._meta)
                number, count = struct.unpack(">QQ", stored) if stored else (window, 0)
                count = count + 1 if number == window else 1
                txn.put(slot, struct.pack(">QQ", window, count), db=self._meta)
            return True

        return self._write(write)

    def renewals(self, namespace: Namespace, window: int) -> int:
        slot = b"window\0" + namespace.encode() + (b"\0even" if window % 2 == 0 else b"\0odd")
        stored = self._read(lambda txn: txn.get(slot, db=self._meta))
        number, count = struct.unpack(">QQ", stored) if stored else (window, 0)
        return int(count) if number == window else 0

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        stored_key = self._key(namespace, *key)
        stored = self._read(lambda txn: txn.get(stored_key, db=self._lease))
        return None if stored is None else Lease(*_LEASE.unpack(stored))

    def leases(self, namespace: Namespace) -> list[tuple[InstanceKey, Lease]]:
        items = self._read(lambda txn: list(self._items(txn, self._lease, namespace)))
        return [(InstanceKey(*k.decode().split("\0")), Lease(*_LEASE.unpack(v))) for k, v in items]

    def expected_clients(self, namespace: Namespace) -> int | None:
        key = b"expected\0" + namespace.encode()
        return self._read(lambda txn: self._number(txn, self._meta, key))

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        key = b"expected\0" + namespace.encode()
        self._write(lambda txn: txn.put(key, _U64.pack(count), db=self._meta))

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        prefix = namespace.encode() + b"\0"

        def write(txn: Any) -> int:
            old = []
            for key, value in self._items(txn, self._log, namespace):
                if orjson.loads(value)[0] >= before_mono_ms:
                    break
                old.append(key)
            for key in old:
                txn.delete(prefix + key, db=self._log)
            if old:
                txn.put(b"trimmed\0" + prefix[:-1], old[-1], db=self._meta)
            return len(old)

        return self._write(write)

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> bool:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> bool:
            stored = txn.get(key, db=self._meta)
            if stored is not None:
                holder, until = orjson.loads(stored)
                if holder != owner and until > now_mono_ms:
                    return False
            txn.put(key, orjson.dumps([owner, now_mono_ms + ttl_ms]), db=self._meta)
            return True

        return self._write(write)

    def release(self, name: str, owner: str) -> None:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> None:
            stored = txn.get(key, db=self._meta)
            if stored is not None and orjson.loads(stored)[0] == owner:
                txn.delete(key, db=self._meta)

        self._write(write)

    def resume(self, now_mono_ms: int, pause_ms: int) -> int | None:
        def write(txn: Any) -> int | None:
            previous = self._number(txn, self._meta, b"alive")
            txn.put(b"alive", _U64.pack(now_mono_ms), db=self._meta)
            if previous is None or now_mono_ms - previous <= pause_ms:
                return None
            extended = 0
            for key, value in list(txn.cursor(self._lease)):
                deadline, duration, renewed = _LEASE.unpack(value)
                if now_mono_ms + duration > deadline:
                    packed = _LEASE.pack(now_mono_ms + duration, duration, renewed)
                    txn.put(key, packed, db=self._lease)
                    extended += 1
            return extended

        return self._write(write)

    def namespaces(self) -> list[Namespace]:
        def read(txn: Any) -> list[Namespace]:
            return [
                Namespace(key.partition(b"\0")[2].decode())
                for key, _ in txn.cursor(self._meta)
                if key.startswith(b"revision\0")
            ]

        return self._read(read)

    def probe(self) -> None:
        """A write, and room for a registration: pages freed before may hide a full disk."""
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise StoreError(f"the store's folder is gone: {error}") from error
        free = disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
        if free < _MINIMUM_FREE_BYTES:
            raise StoreError(f"the disk is full: {free} bytes are free in {self._folder}")
        stamp = _U64.pack(time.monotonic_ns())
        self._write(lambda txn: txn.put(b"probe", stamp, db=self._meta))

    def flush(self) -> None:
        """Write a checkpoint if something changed and the last one is old enough."""
        self._flush(at_once=False)

    def _flush(self, *, at_once: bool) -> None:
        now = time.monotonic()
        written_at, written = self._checkpointed
        pause = max(_CHECKPOINT_EVERY_SECS, self._checkpoint_cost * _CHECKPOINT_DUTY)
        if not at_once and now - written_at < pause:
            return
        total = self._read(
            lambda txn: sum(
                _U64.unpack(value)[0]
                for key, value in txn.cursor(self._meta)
                if key.startswith(b"revision\0")
            )
        )
        if total == written:
            return
        draft = self._folder / f"checkpoint.{os.getpid()}"
        try:
            draft.mkdir(exist_ok=True)
            with self._lock:
                env = self._env
            env.copy(str(draft))
            with (draft / "data.mdb").open("rb") as file:
                os.fsync(file.fileno())
            (draft / "data.mdb").replace(self._folder / "checkpoint.mdb")
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, lmdb.Error) as error:
            self._checkpointed = (time.monotonic(), written)
            raise StoreError(f"cannot write a checkpoint: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._checkpoint_cost = time.monotonic() - now
        self._checkpointed = (time.monotonic(), total)

    def close(self) -> None:
        """Write what is not yet in the checkpoint, and let go."""
        try:
            self._flush(at_once=True)
        finally:
            with self._lock:
                self._env.close()


def _pack(lease: Lease) -> bytes:
    return _LEASE.pack(lease.deadline_mono_ms, lease.duration_ms, lease.last_renewal_ms)
