"""The number of the LMDB store's format, and how an older one becomes this one.

The format is everything that a later version finds in the folder: the databases, their keys and
values, and the layout of the lease file. Whoever changes any of it gives it the next number and
adds a step from the one before; ``tests/stores`` keeps a folder of each released format.

``migrate`` writes the new file beside the old one, which it only reads, and puts it in its place by
renaming. So a process that is killed at any moment leaves either the old file, and the next start
begins again, or the new one. What it carries over is what is listed, with its leases, overrides,
notes and counters. The change log is not: the store begins another life (``registry.store``).
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import orjson

from registry.errors import StoreError
from registry.stores.lmdb.files import sealed

FORMAT = 5
"""Of 0.2.0. Format 1 is that of 0.1.0; 2 to 4 were in no release."""

KEY = b"format"
"""Where the number stands in the database ``meta``."""

STATED = str(FORMAT).encode()
"""How it is written there."""

BEGINS = b"begins"
"""Stands in ``meta`` while the store has yet to begin another life on this file."""

_Step = Callable[[Any, Any, Path], None]


def number_of(path: Path) -> int:
    """The format of a whole LMDB file; this version's where nothing was written to it yet."""
    try:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=8) as env:
            meta = env.open_db(b"meta", create=False)
            with env.begin() as txn:
                stated = txn.get(KEY, db=meta)
    except lmdb.NotFoundError:
        return FORMAT
    if stated is None:
        return FORMAT
    # 0.1.0 has no number there but the names of the fields.
    return 1 if stated.startswith(b"app,") else int(stated.partition(b":")[0])


def check(path: Path) -> int:
    """The format of a whole LMDB file; ``StoreError`` where this version cannot read it."""
    try:
        number = number_of(path)
    except ValueError as error:
        raise StoreError(f"{path} is damaged: it has no format: {error}") from error
    if number == FORMAT or number in _STEPS:
        return number
    known = f"this version reads {', '.join(map(str, sorted(_STEPS)))} and {FORMAT}"
    if number > FORMAT:
        advice = "run the version that wrote it, or move the folder away"
    else:
        advice = "it is of no release; move the folder away"
    raise StoreError(
        f"the store in {path.parent} has format {number}, and {known}: {advice}, and clients"
        " register again"
    )


def have_begin_again(path: Path) -> None:
    """Note in a file that nobody has open that another life is to begin on it."""
    size = path.stat().st_size + 16 * 1024 * 1024
    with lmdb.open(str(path), subdir=False, map_size=size, lock=False, max_dbs=8) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            txn.put(BEGINS, b"", db=meta)


def migrate(folder: Path) -> None:
    """Bring a folder to this version's format, if it has an older one; nobody has it open.

    The old file stays beside the new one, for a way back.
    """
    data, leases = folder / "data.mdb", folder / "leases"
    number = check(data)
    if number == FORMAT:
        return
    draft, kept = folder / "migrated", folder / f"data.format-{number}.mdb"
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed at it
    draft.mkdir()
    # Checksums take space, and a file can hold little more than its map.
    size = 2 * data.stat().st_size + 16 * 1024 * 1024
    try:
        with (
            lmdb.open(str(data), subdir=False, readonly=True, lock=False, max_dbs=8) as old,
            lmdb.open(str(draft), map_size=size, max_dbs=8, lock=False, sync=False) as new,
        ):
            _STEPS[number](old, new, leases)
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise StoreError(
            f"{data}: what stands there is not what format {number} has: {error}; move the folder"
            " away, and clients register again"
        ) from error
    kept.unlink(missing_ok=True)
    os.link(data, kept)
    (draft / "data.mdb").replace(data)
    leases.unlink(missing_ok=True)
    shutil.rmtree(draft)


_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">QQ")
_LEASED = struct.Struct(">QQQQQ")

# Of format 1: where ``service_name`` is missing in a record, and the layout of the lease file.
_SERVICE_NAME = 27
_HEADER_BYTES = 4096
_SLOT = struct.Struct("QQQQ")
_GENERATION = (1 << 20) - 1


def _from_1(old: Any, new: Any, leases: Path) -> None:
    """From 0.1.0: records without a checksum, and with two fields less; no count of instances."""
    live = leases.read_bytes() if leases.exists() else b""
    sizes: dict[bytes, int] = {}
    names = (b"record", b"leased", b"free", b"override", b"log", b"removal", b"removed", b"meta")
    created = {name: new.open_db(name) for name in names}
    read = {name: old.open_db(name, create=False) for name in names[:4]}
    counters = old.open_db(b"meta", create=False)
    with old.begin() as before, new.begin(write=True) as after:
        for key, value in before.cursor(read[b"record"]):
            fields = orjson.loads(value[_U64.size :])
            fields.insert(_SERVICE_NAME, None)
            fields.append(False)  # ``peers_know``
            record = value[: _U64.size] + sealed(orjson.dumps(fields))
            after.put(key, record, db=created[b"record"])
            namespace = key.partition(b"\0")[0]
            sizes[namespace] = sizes.get(namespace, 0) + 1
        for key, value in before.cursor(read[b"leased"]):
            after.put(key, _renewed(value, live), db=created[b"leased"])
        for key, value in before.cursor(read[b"free"]):
            # Since no version of the lease file, which is made anew.
            after.put(_TWO.pack(0, *_U64.unpack(key)), value, db=created[b"free"])
        for key, value in before.cursor(read[b"override"]):
            after.put(key, value, db=created[b"override"])
        meta = created[b"meta"]
        for key, value in before.cursor(counters):
            name, _, namespace = key.partition(b"\0")
            # Locks are of processes that are no more.
            if name in (b"revision", b"expected", b"note", b"counter", b"slots", b"alive"):
                after.put(key, value, db=meta)
            if name == b"revision":
                after.put(b"size\0" + namespace, _U64.pack(sizes.get(namespace, 0)), db=meta)
        after.put(b"life", _U64.pack(0), db=meta)
        after.put(KEY, STATED, db=meta)
        after.put(BEGINS, b"", db=meta)


def _renewed(leased: bytes, live: bytes) -> bytes:
    """A lease as it was renewed last, as far as the lease file knows it."""
    slot, generation, *_ = registered = _LEASED.unpack(leased)
    at = _HEADER_BYTES + slot * _SLOT.size
    if at + _SLOT.size > len(live):
        return leased
    first, duration, renewed, _ = _SLOT.unpack_from(live, at)
    if first & _GENERATION != generation:
        return leased
    return _LEASED.pack(*registered[:2], first >> 20, duration, renewed)


_STEPS: dict[int, _Step] = {1: _from_1}
