"""What stands in the databases of an LMDB store: instances, changes and leases as bytes.

All of it belongs to the store's format (``formats.py``). Numbers are big-endian, so that keys come
in the order of their numbers; instances are JSON arrays of their fields, behind a checksum.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import lmdb
import orjson

from registry.model import ActionType, DataCenter, Instance, InstanceStatus
from registry.stores.lmdb import formats
from registry.stores.lmdb.files import unsealed

U64 = struct.Struct(">Q")
"""A revision, before a record and in keys; any other number."""

LEASED = struct.Struct(">QQQQQ")
"""In ``leased``: slot, generation; deadline, duration, last renewal."""

ENTRY = struct.Struct(">qBH")
"""What begins a change: its instant, its kind as below, the length of the key."""

KIND = 8
"""Where in it the kind is."""

EVICTED, OF_OVERRIDE, TOUCHED = 1, 2, 4
"""``TOUCHED``: it only counts as changed then, and when it was is not known."""

_PLACE_OF = {name: place for place, name in enumerate(Instance._fields)}
_DATA_CENTER, _TAGS = _PLACE_OF["data_center"], _PLACE_OF["tags"]
_STATUS, _OVERRIDDEN = _PLACE_OF["status"], _PLACE_OF["overridden_status"]
_ACTION, _REVISION = _PLACE_OF["action_type"], _PLACE_OF["revision"]
_STATUSES = {str(status): status for status in InstanceStatus}
_ACTIONS = {str(action): action for action in ActionType}


def encode_instance(instance: Instance) -> bytes:
    """An instance as the store keeps it; its revision stands beside it."""
    values: list[Any] = list(instance)
    center = values[_DATA_CENTER]
    values[_DATA_CENTER] = (center.name, center.amazon_metadata)
    # To orjson these are members of enums, whose values it asks for by functions written in Python:
    # for the three of them that takes as long as all the rest.
    values[_STATUS] = values[_STATUS]._value_
    values[_OVERRIDDEN] = values[_OVERRIDDEN]._value_
    values[_ACTION] = values[_ACTION]._value_
    return orjson.dumps(values)


def decode_instance(data: bytes | list[Any], revision: int) -> Instance:
    """The instance that ``encode_instance`` wrote, at this revision."""
    values = orjson.loads(data) if isinstance(data, bytes) else data
    name, amazon_metadata = values[_DATA_CENTER]
    values[_DATA_CENTER] = (
        _data_center(name) if amazon_metadata is None else DataCenter(name, amazon_metadata)
    )
    values[_TAGS] = tuple(values[_TAGS])
    values[_STATUS] = _STATUSES[values[_STATUS]]
    values[_OVERRIDDEN] = _STATUSES[values[_OVERRIDDEN]]
    values[_ACTION] = _ACTIONS[values[_ACTION]]
    values[_REVISION] = revision
    return Instance._make(values)


# Most are in one of three that have nothing but their name.
_data_center = functools.lru_cache(maxsize=64)(DataCenter)


class LogEntry(NamedTuple):
    """A change as the log has it: what it refers to, and a removed instance's last state."""

    at_running_ms: int
    kind: int
    key: bytes
    encoded: bytes = b""

    @classmethod
    def unpack(cls, data: bytes) -> LogEntry:
        """A change as ``packed_entry`` wrote it."""
        at, kind, length = ENTRY.unpack_from(data)
        end = ENTRY.size + length
        return cls(at, kind, data[ENTRY.size : end], data[end:])


def packed_entry(at_running_ms: int, kind: int, key: bytes, encoded: bytes = b"") -> bytes:
    """A change as it stands in ``log`` and ``removal``."""
    return ENTRY.pack(at_running_ms, kind, len(key)) + key + encoded


def decode_record(value: bytes) -> Instance:
    """The instance of an item in ``record``."""
    return decode_instance(unsealed(value, U64.size), U64.unpack_from(value)[0])


def _check_record(value: bytes) -> None:
    unsealed(value, U64.size)


def _check_removal(value: bytes) -> None:
    entry = LogEntry.unpack(value)
    if entry.encoded:
        unsealed(entry.encoded)


_CHECKS: dict[bytes, Callable[[bytes], object]] = {
    b"record": _check_record,
    b"removal": _check_removal,
    b"log": LogEntry.unpack,
    b"leased": LEASED.unpack,
}


def look_through(env: Any) -> None:
    """Raise an error where something in a file is not what this version wrote."""
    try:
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            if txn.get(formats.KEY, db=meta) != formats.STATED:
                return  # its checksums, if it has any, are elsewhere
        for name, check in _CHECKS.items():
            database = env.open_db(name, create=False)
            with env.begin() as txn:
                for _, value in txn.cursor(database):
                    check(value)
    except lmdb.NotFoundError:
        return  # it is of another version, or its making was interrupted
