"""What workers agree on: locks, notes, and until when the server ran.

All of it stands in ``meta``. Locks hold on this machine alone, until an instant of its monotonic
clock; a lock's token outlives it, so that each is given out once.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from registry.errors import StoreError
from registry.store import PAUSE_MS
from registry.stores.lmdb.environment import I64, NOTE, Environment
from registry.stores.lmdb.folder import Folder
from registry.stores.lmdb.leases import LeaseFile
from registry.stores.lmdb.places import Places
from registry.stores.lmdb.records import U64


class Coordination:
    """Locks, notes and running time. Thread-safe, and so among processes."""

    def __init__(self, env: Environment, files: Folder, live: LeaseFile, places: Places) -> None:
        """Agree on nothing yet."""
        self._env = env
        self._files = files
        self._live = live
        self._places = places

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> int | None:
            stored = txn.get(key, db=self._env.meta)
            holder, until = (None, 0) if stored is None else orjson.loads(stored)
            if holder not in (None, owner) and until > now_mono_ms:
                return None
            txn.put(key, orjson.dumps([owner, now_mono_ms + ttl_ms]), db=self._env.meta)
            token = self.token(txn, name)
            if holder != owner:
                token += 1
                txn.put(b"token\0" + name.encode(), U64.pack(token), db=self._env.meta)
            return token

        return self._env.write(write)

    def token(self, txn: Any, lock: str) -> int:
        """The last one that was given out; it outlives the lock, so that each is given once."""
        return self._env.number(txn, b"token\0" + lock.encode()) or 0

    def release(self, name: str, owner: str) -> None:
        key = b"lock\0" + name.encode()

        def write(txn: Any) -> None:
            stored = txn.get(key, db=self._env.meta)
            if stored is not None and orjson.loads(stored)[0] == owner:
                txn.delete(key, db=self._env.meta)

        self._env.write(write)

    def note(self, name: str) -> bytes | None:
        key = NOTE + name.encode()
        stored: bytes | None = self._env.read(lambda txn: txn.get(key, db=self._env.meta))
        return stored

    def set_note(self, name: str, value: bytes | None) -> None:
        key = NOTE + name.encode()

        def write(txn: Any) -> None:
            if value is None:
                txn.delete(key, db=self._env.meta)
            else:
                txn.put(key, value, db=self._env.meta)

        self._env.write(write)

    # Running time.

    def resume(self, now_mono_ms: int) -> int | None:
        previous = self._env.read(lambda txn: self._env.signed(txn, b"alive"))
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
            raise StoreError(f"cannot use the store in {self._env.folder}: {error}") from error

    def _make_good_alone(self, now_mono_ms: int) -> int | None:
        alive = self._env.read(lambda txn: self._env.signed(txn, b"alive"))
        if alive is not None and now_mono_ms - alive <= PAUSE_MS:
            return None
        began = time.monotonic()
        extended = self._places.extend_all(now_mono_ms)
        took_ms = int(1000 * (time.monotonic() - began))
        # What takes that long is not to look like another pause.
        self._note_running(now_mono_ms + (took_ms if took_ms > PAUSE_MS // 2 else 0))
        return extended

    def _note_running(self, now_mono_ms: int) -> None:
        def write(txn: Any) -> None:
            alive = self._env.signed(txn, b"alive")
            if alive is not None and now_mono_ms <= alive:
                return
            outages = self._env.signed(txn, b"outages") or 0
            if alive is not None and now_mono_ms - alive > PAUSE_MS:
                outages += now_mono_ms - alive - PAUSE_MS
                txn.put(b"outages", I64.pack(outages), db=self._env.meta)
                txn.put(b"resumed", I64.pack(now_mono_ms - outages), db=self._env.meta)
            txn.put(b"alive", I64.pack(now_mono_ms), db=self._env.meta)
            self._live.show_clock(now_mono_ms, outages)

        self._env.write(write)
