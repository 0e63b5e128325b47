"""Children, signals and zombies: what a container's first process has to take care of."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from native_api.sidecar.settings import ChildSettings

log = logging.getLogger("sidecar.supervisor")

FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECS = 0.05


class Supervisor:
    """Starts processes, passes signals on, and takes note of every end.

    Orphans that the kernel hands to a first process are reaped too. The ends of processes from
    ``spawn`` are their callers' to note.
    """

    def __init__(self, children: Sequence[ChildSettings], grace_secs: float) -> None:
        self._settings = children
        self._grace = grace_secs
        self._children: dict[int, tuple[subprocess.Popen[bytes], ChildSettings]] = {}
        self._spawned: set[int] = set()
        self._lock = threading.Lock()
        self.exit_code: int | None = None

    def start(self) -> None:
        """Start all children; ``OSError`` where one cannot be, with the others ended again."""
        for settings in self._settings:
            try:
                with self._lock:
                    # A group of its own, so that what it starts gets its signals too.
                    process = subprocess.Popen(settings.command, process_group=0)
                    self._children[process.pid] = (process, settings)
            except OSError:
                self.end()
                raise
            log.info("started %s as %d", settings.command[0], process.pid)

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._lock:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._spawned.add(process.pid)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._spawned.discard(process.pid)

    def forward(self, number: int) -> None:
        """Pass a signal on to all children and what they started."""
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def reap(self) -> bool:
        """Take note of every end; whether one of them ends the sidecar."""
        with self._lock:
            for pid in _own_children():
                if pid in self._spawned:
                    continue
                self._reap(pid)
        return self.exit_code is not None

    def _reap(self, pid: int) -> None:
        child = self._children.get(pid)
        if child is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            return
        process, settings = child
        code = process.poll()
        if code is None:
            return
        del self._children[pid]
        told = code if code >= 0 else 128 - code
        log.info("%s ended with %d", settings.command[0], told)
        if settings.on_exit == "terminate" and self.exit_code is None:
            self.exit_code = told

    def end(self) -> None:
        """Ask the children to end, wait, and kill what is left."""
        self.forward(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while self._children and time.monotonic() < deadline:
            self.reap()
            time.sleep(_POLL_SECS)
        if self._children:
            log.warning("killing what did not end within %g s", self._grace)
            self.forward(signal.SIGKILL)
        while self._children:
            self.reap()
            time.sleep(_POLL_SECS)


def _own_children() -> list[int]:
    """The kernel's list: also those that were adopted."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found
