"""A source that is a process of the test's own, and what can be done to it."""

from __future__ import annotations

import signal
import subprocess


class OwnProcess:
    """Started by ``start`` of who has it, which keeps it in ``_process``."""

    _process: subprocess.Popen[bytes] | None = None

    def suspend(self) -> None:
        """Hang: no answer, and every connection stays open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on where it hung."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Be gone at once, as with ``kill -9``."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
