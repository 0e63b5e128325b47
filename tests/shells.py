"""A shell to which a test types, and the command that it finds there."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tests.servers import HANG_SECS, ROOT


class Shell:
    """A bash that stays: what one command sets, the next ones have."""

    def __init__(self, folder: Path, environment: Mapping[str, str], typed: Path) -> None:
        """It begins in ``folder``; what is typed is kept in the file ``typed``."""
        self._typed = typed
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def type(self, command: str, *, seconds: float = HANG_SECS) -> tuple[int, str]:
        """The status of a command, and what it prints; after these seconds it hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._typed.write_text(command + "\n")
        line = f"source {shlex.quote(str(self._typed))} </dev/null; printf '\\0%s\\0' $?\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        guard = threading.Timer(seconds, self._process.kill)
        guard.start()
        told = b""
        try:
            while told.count(b"\0") < 2:
                part = os.read(self._process.stdout.fileno(), 65536)
                assert part, f"the shell ended at {command!r}: {told.decode()}"
                told += part
        finally:
            guard.cancel()
        printed, status, _ = told.decode().split("\0")
        return int(status), printed

    def close(self) -> None:
        """End it, and all that it started and did not let go of."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:  # waits for it, and closes what it was told and heard through
            pass


def path_with_commands(folder: Path) -> str:
    """A ``PATH`` that finds the commands as the wheel installs them, though of this checkout.

    They are written into ``folder``, which is made.
    """
    folder.mkdir()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n"
        )
        program.chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
