"""The files of an LMDB store: which of them a start begins on, and the copies that are made.

Knows nothing of what the records mean. Everything here is done by one process at a time: a start
under ``opening.lock``, a checkpoint under ``checkpoint.lock``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from registry.errors import StoreError
from registry.stores.lmdb import formats
from registry.stores.lmdb.files import damage
from registry.stores.lmdb.records import look_through

log = logging.getLogger("registry")

INITIAL_MAP_BYTES = 16 * 1024 * 1024
_REMOVED_KEPT_BYTES = 128 * 1024
_SPARE_BYTES = 32 * 1024 * 1024


class Folder:
    """A store's folder, on one boot of the machine. ``OSError`` and ``lmdb.Error`` go through."""

    def __init__(self, path: Path, boot_id: bytes | None = None) -> None:
        """Name it; nothing is read or made."""
        self.path = path
        self.data = path / "data.mdb"
        self.checkpoint = path / "checkpoint.mdb"
        self.leases = path / "leases"
        self._boot = path / "boot"
        self._note = path / "whole"
        self._boot_id = _boot_id() if boot_id is None else boot_id

    @contextmanager
    def locked(self, name: str, *, waits: bool = True) -> Iterator[None]:
        """Keep other processes, and other threads, from doing the same meanwhile.

        ``BlockingIOError`` where one is at it, and this one does not wait.
        """
        with (self.path / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def is_of_this_boot(self) -> bool:
        """Whether the files were last used on this boot, so that nothing of them was torn."""
        return self._boot.exists() and self._boot.read_bytes() == self._boot_id

    def note_boot(self) -> None:
        """Note that they are used on this boot now."""
        draft = self.path / "boot.draft"
        draft.write_bytes(self._boot_id)
        draft.replace(self._boot)

    def is_as_left(self) -> bool:
        """Whether the files are those that the last opener had looked through, and left alone."""
        with suppress(OSError):
            told = self._note.read_text()
            self._note.unlink()  # it counts once: who opens them now may be killed at any time
            return told == self._states()
        return False

    def leave_whole(self, seen: str) -> None:
        """Spare the next opener the look at files in which nothing changed since this one's.

        ``seen`` is the state of ``data`` then. A start looks through the files before any worker
        does, and the first worker need not again.
        """
        if seen == self.state_of_data():
            self._note.write_text(self._states())

    def state_of_data(self) -> str:
        """What is another as soon as anybody writes to ``data``, or puts another in its place."""
        return _state(self.data)

    def _states(self) -> str:
        return "\n".join([f"format {formats.FORMAT}", _state(self.data), _state(self.leases)])

    def choose(self, *, is_known: bool, is_alone: bool, is_as_left: bool) -> bool:
        """Put the file in place that the store starts from; whether something may be lost by it.

        ``StoreError`` with one line where there is none.
        """
        may_be_lost = self._restore(is_known, is_alone, is_as_left)
        if is_alone and self._has_data():
            formats.migrate(self.path)
        return may_be_lost

    def _has_data(self) -> bool:
        return self.data.exists() and self.data.stat().st_size > 0

    def _restore(self, is_known: bool, is_alone: bool, is_as_left: bool) -> bool:
        data, checkpoint = self.data, self.checkpoint
        if is_alone:
            # It is of processes that are no more, and made anew.
            (self.path / "lock.mdb").unlink(missing_ok=True)
        if not self._has_data() and not checkpoint.exists():
            return False  # the store is new
        reason: str | None = "it is of another boot"
        if is_known:
            if not is_alone:
                # They read it, and change it while it would be looked through.
                if not self._has_data():
                    raise StoreError(f"{data} is missing, while another process has it open")
                return False
            if is_as_left:
                return False
            reason = damage(data, look_through) if self._has_data() else "it is missing"
            if reason is None:
                formats.check(data)
                self._give_space_back()
                return False
        if not checkpoint.exists():
            if not is_known:
                # The machine went down before the first one, or somebody left it behind.
                if (more := damage(data, look_through)) is None:
                    formats.check(data)
                    log.warning("%s: %s, without a checkpoint; all of it is whole", data, reason)
                    return True
                reason = f"{reason}, {more}"
            raise StoreError(
                f"{data}: {reason}, and there is no checkpoint.mdb beside it; "
                "move the folder away, and clients register again"
            )
        if (more := damage(checkpoint, look_through)) is not None:
            raise StoreError(
                f"{checkpoint}: {more}, and {data} cannot be used: {reason}; "
                "move the folder away, and clients register again"
            )
        formats.check(checkpoint)
        if is_known:
            log.error("%s: %s; the store starts from its last checkpoint", data, reason)
        restored = self.path / "restored.mdb"
        shutil.copyfile(checkpoint, restored)
        formats.have_begin_again(restored)
        restored.replace(data)
        return True

    def _give_space_back(self) -> None:
        """Make a file small again that a storm made large: LMDB gives no page back."""
        needed = self.checkpoint.stat().st_size if self.checkpoint.exists() else 0
        if not needed or self.data.stat().st_size < 2 * needed + _SPARE_BYTES:
            return
        draft = self.path / "compact.mdb"
        draft.unlink(missing_ok=True)
        with lmdb.open(str(self.data), subdir=False, readonly=True, lock=False, max_dbs=8) as env:
            env.copy(str(draft), compact=True)
        draft.replace(self.data)

    def write_checkpoint(
        self, copy: Callable[[Path], None], removed: int, check: Callable[[], None]
    ) -> None:
        """Copy what is listed, and nothing else of size; only one process at a time does.

        What was removed, of so many bytes, is left out: a store that starts from here begins
        another life, and who follows its delta misses nothing by that. ``check`` is asked before
        the copy takes its place.
        """
        draft, smaller = self.path / "checkpoint", self.path / "checkpoint.smaller"
        for left in (*self.path.glob("checkpoint.*[0-9]"), draft, smaller):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed at it
        try:
            draft.mkdir()
            copy(draft)
            if removed > max(_REMOVED_KEPT_BYTES, (draft / "data.mdb").stat().st_size // 10):
                smaller.mkdir()
                self._leave_removed_out(draft, smaller)
                draft, smaller = smaller, draft
            with (draft / "data.mdb").open("rb") as copied:
                os.fsync(copied.fileno())
            check()
            (draft / "data.mdb").replace(self.checkpoint)
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(smaller, ignore_errors=True)

    @staticmethod
    def _leave_removed_out(draft: Path, smaller: Path) -> None:
        size = 2 * (draft / "data.mdb").stat().st_size + INITIAL_MAP_BYTES
        with lmdb.open(str(draft), map_size=size, max_dbs=8, lock=False, sync=False) as env:
            for name in (b"removal", b"removed"):
                database = env.open_db(name)
                with env.begin(write=True) as txn:
                    txn.drop(database, delete=False)
            meta = env.open_db(b"meta")
            with env.begin(write=True) as txn:
                for key, _ in list(txn.cursor(meta)):
                    if key.startswith(b"removed\0"):
                        txn.delete(key, db=meta)
            env.copy(str(smaller), compact=True)


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().encode()


def _state(path: Path) -> str:
    file = os.stat(path)
    return f"{file.st_dev} {file.st_ino} {file.st_size} {file.st_mtime_ns} {file.st_ctime_ns}"
