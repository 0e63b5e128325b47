"""Children, signals and zombies: what the first process of a container is responsible for."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from native_api.sidecar.settings import ChildSettings

log = logging.getLogger("sidecar.supervisor")

_POLL_SECS = 0.05
_LAST_WAIT_SECS = 5.0  # a process in a hung file system does not end even when it is killed
_FAR_TOO_MANY_SPINS = 10_000


class Supervisor:
    """Starts processes, passes signals on, and takes note of every end.

    Orphans that the kernel hands to a first process are reaped too. Needs nothing of ``/proc``.
    """

    def __init__(
        self,
        children: Sequence[ChildSettings],
        grace_secs: float,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``environ`` is the environment of all processes; None: this process's own."""
        self._settings = children
        self._grace = grace_secs
        self._environ = environ
        self._children: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._spawned: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        self._first_end: int | None = None

    def start(self) -> None:
        """Start all children; ``OSError`` where one cannot be, with the others ended again."""
        for number, settings in enumerate(self._settings):
            try:
                with self._lock:
                    # A group of its own, so that what it starts gets its signals too.
                    process = subprocess.Popen(
                        settings.command, process_group=0, env=self._with(settings.env)
                    )
                    self._children[process.pid] = (number, process)
            except OSError:
                self.end()
                raise
            log.info("started %s as %d", settings.command[0], process.pid)
            if number == 0:
                _hand_over_terminal(process.pid)

    def _with(self, more: Mapping[str, str]) -> Mapping[str, str] | None:
        if not more:
            return self._environ
        return {**(os.environ if self._environ is None else self._environ), **more}

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._lock:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
                env=self._environ,
            )
            self._spawned[process.pid] = process
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._spawned.pop(process.pid, None)

    @property
    def is_over(self) -> bool:
        """Whether a child whose end counts has ended."""
        return self._first_end is not None

    @property
    def exit_code(self) -> int:
        """That of the child that ended it all, or of the first one where all were told to end."""
        if self._first_end is not None:
            return self._codes[self._first_end]
        return self._codes[min(self._codes)] if self._codes else 0

    def forward(self, number: int) -> None:
        """Pass a signal on to all children and what they started."""
        # Under the lock, or one could be reaped meanwhile and its pid be another process's.
        with self._lock:
            for pid in self._children:
                _signal_group(pid, number)

    def reap(self) -> None:
        """Take note of every end."""
        for _ in range(_FAR_TOO_MANY_SPINS):
            with self._lock:
                try:
                    # The end is not taken here: a known process is asked by its ``Popen``.
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return
                if found is None:
                    return
                self._note(found.si_pid)

    def _note(self, pid: int) -> None:
        if pid in self._spawned:
            # Whoever waits for it learns of its end from the ``Popen``.
            self._spawned[pid].poll()
            return
        if pid not in self._children:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            return
        number, process = self._children[pid]
        code = process.poll()
        if code is None:
            return
        del self._children[pid]
        settings = self._settings[number]
        told = code if code >= 0 else 128 - code
        log.info("%s ended with %d", settings.command[0], told)
        if settings.on_exit == "terminate":
            self._codes[number] = told

    def look(self) -> bool:
        """Reap; whether a child that counts has ended by itself."""
        self.reap()
        if self._codes and self._first_end is None:
            self._first_end = min(self._codes)
        return self.is_over

    def end(self, number: int = signal.SIGTERM, wait: Callable[[float], None] = time.sleep) -> None:
        """Tell the children to end, wait, and kill what is left; ``wait`` is called meanwhile."""
        self.forward(number)
        self._wait(self._grace, wait)
        if self._children:
            log.warning("killing what did not end within %g s", self._grace)
            self.forward(signal.SIGKILL)
            self._wait(_LAST_WAIT_SECS, wait)
        with self._lock:
            for pid in self._spawned:
                _signal_group(pid, signal.SIGKILL)

    def _wait(self, secs: float, wait: Callable[[float], None]) -> None:
        deadline = time.monotonic() + secs
        while True:
            self.reap()
            if not self._children or time.monotonic() >= deadline:
                return
            wait(_POLL_SECS)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        log.warning("%d runs as another user and cannot be told %d", group, number)


def _hand_over_terminal(group: int) -> None:
    """Where there is a terminal, it is the application's: a group behind could not read from it."""
    if not sys.stdin or not sys.stdin.isatty():
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):  # it may not be ours
            if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
                return  # somebody else's at the moment, who would miss it
            os.tcsetpgrp(sys.stdin.fileno(), group)
            os.killpg(group, signal.SIGCONT)  # it may have tried already, and been stopped
    finally:
        signal.signal(signal.SIGTTOU, before)
