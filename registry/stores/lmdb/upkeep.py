"""Upkeep: that the files are there, whole and not full, and what of them is on the disk.

``data.mdb`` is trusted on the boot of the machine that wrote it, since commits are not flushed one
by one: the kernel keeps them through any kill, not through a power cut. Once a second a consistent
copy goes to the disk (``checkpoint.mdb``), from which another boot starts. So a power cut costs the
last second at most; where copying takes longer than 50 ms, twenty times what one copy takes.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import lmdb

from registry.errors import StoreError, StoreGoneError
from registry.store import StoreState
from registry.stores.lmdb.log import Log
from registry.stores.lmdb.offering import ALONE
from registry.stores.lmdb.opening import Opened
from registry.stores.lmdb.places import Places
from registry.stores.lmdb.records import U64

_CHECKPOINT_EVERY_SECS = 1.0
_CHECKPOINT_DUTY = 20.0
_MINIMUM_FREE_BYTES = 128 * 1024
_PROBED_SECS = 1.0
_BLOCK_BYTES = 512


class Upkeep:
    """Looks after the files of an open store. Thread-safe."""

    def __init__(self, opened: Opened, log: Log, places: Places) -> None:
        """Nothing is known to be on the disk, nor to be writable."""
        self._log = log
        self._places = places
        self._files = opened.files
        self._env = opened.env
        self._live = opened.live
        self._identity = opened.identity
        self._whole = opened.whole
        self._checkpointed: tuple[float, int] = (0.0, -1)
        self._checkpoint_cost = 0.0
        # When a probe last succeeded, and how many transactions had failed by then.
        self._probed: tuple[float, int] = (0.0, 0)

    def check(self) -> None:
        """``StoreGoneError``, now and from now on, where the files are no longer in their place."""
        for name, identity in (("data.mdb", self._identity), ("leases", self._live.identity)):
            path = self._env.folder / name
            try:
                found = os.stat(path)
            except OSError:
                reason = f"{path} is gone"
            else:
                if (found.st_dev, found.st_ino) == identity:
                    continue
                reason = f"{path} is another file than before"
            error = self._env.give_up(reason)
            self._log.forget()
            self._places.forget()
            raise error

    def probe(self) -> None:
        """All that a registration needs, and the growth of the files.

        Pages that were freed before may hide a full disk, a quota or a limit.
        """
        probed_at, failures = self._probed
        # What was tried before a failure counts no more.
        if failures == self._env.failures and time.monotonic() < probed_at + _PROBED_SECS:
            return
        self.check()
        try:
            disk = os.statvfs(self._env.folder)
            free = disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
            if free < _MINIMUM_FREE_BYTES:
                raise StoreError(f"the disk is full: {free} bytes are free in {self._env.folder}")
            self._make_room()
        except OSError as error:
            raise StoreError(f"the store in {self._env.folder} cannot grow: {error}") from error
        stamp = U64.pack(time.monotonic_ns())
        self._env.write(lambda txn: txn.put(b"probe", stamp, db=self._env.meta))
        self._probed = (time.monotonic(), self._env.failures)

    def state(self) -> StoreState:
        """The size is that of the folder: the files' blocks, with the checkpoint."""
        try:
            with os.scandir(self._env.folder) as entries:
                blocks = sum([entry.stat().st_blocks for entry in entries if entry.is_file()])
        except OSError as error:
            raise StoreError(f"cannot look at the store in {self._env.folder}: {error}") from error
        return StoreState(self._log.life(), blocks * _BLOCK_BYTES)

    def _make_room(self) -> None:
        """Have the files as long as the next registrations need them."""
        slots = self._env.read(lambda txn: self._env.number(txn, b"slots")) or 0
        with self._env.lock:
            self._live.reserve(slots)
            used = self._env.used_bytes()
        with open(self._files.data, "r+b") as file:
            os.posix_fallocate(file.fileno(), used, _MINIMUM_FREE_BYTES)

    def flush(self, *, at_once: bool = False) -> None:
        """Write a checkpoint if something changed since the last one, and that is old enough."""
        now = time.monotonic()
        written_at, written = self._checkpointed
        pause = max(_CHECKPOINT_EVERY_SECS, self._checkpoint_cost * _CHECKPOINT_DUTY)
        if not at_once and now - written_at < pause:
            return
        self.check()

        def read(txn: Any) -> tuple[int, int]:
            """The sums of all revisions, and of what was removed and may be forgotten."""
            revisions = removed = 0
            for key, value in txn.cursor(self._env.meta):
                if key.startswith(b"revision\0"):
                    revisions += U64.unpack(value)[0]
                elif key.startswith(b"removed\0"):
                    removed += U64.unpack(value)[0]
            # What was removed alone is yet to be offered.
            return revisions, 0 if txn.get(ALONE, db=self._env.meta) is not None else removed

        total, removed = self._env.read(read)
        if total == written:
            return
        try:
            with self._files.locked("checkpoint.lock", waits=at_once):
                self._files.write_checkpoint(self._env.copy, removed, self.check)
        except BlockingIOError:
            return  # another process is at it
        except (OSError, lmdb.Error) as error:
            self._checkpointed = (time.monotonic(), written)
            raise StoreError(f"cannot write a checkpoint: {error}") from error
        self._checkpoint_cost = time.monotonic() - now
        self._checkpointed = (time.monotonic(), total)

    def close(self) -> None:
        """Write what is not yet in the checkpoint, and let go."""
        try:
            with suppress(StoreGoneError):  # what is there now is not of this store
                self.flush(at_once=True)
                with suppress(OSError), self._files.locked("opening.lock"):
                    if self._live.is_alone():
                        self._files.leave_whole(self._whole)
        finally:
            with self._env.lock:
                self._env.close()
                self._live.close()
