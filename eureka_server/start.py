"""What a start needs of the processes: room for files, and one voice for why none can serve."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import sys
import time
from typing import NoReturn

BEGAN = time.monotonic()
"""When the server began: workers have this from the main process, which forked them."""

MOST_CONNECTIONS = 20_000
# What a worker has open besides connections: the store, logs, listeners, catalogs' connections.
_RESERVED_FILES = 200
_ENOUGH_FILES = 1_048_576
_RETRY_SECS = 1.0
# Exit codes of a worker: gunicorn gives up at the first and starts another after any else.
_BOOT_ERROR, _NOT_NOW = 3, 1


# Files, of which each connection is one


def raise_file_limit() -> str:
    """Let each process open as many files as it may; the line that says so, if anything changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return f"each process may open {wanted} files now, not {soft}"
    return ""


def most_connections() -> int:
    """How many connections one worker may have: never more than it may open files for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, soft - _RESERVED_FILES))


# Workers


class _Shared:
    """What the main process and its workers know together; made before the first is forked."""

    def __init__(self) -> None:
        # One byte that all of them see: whether a worker ever served.
        self._has_served = mmap.mmap(-1, 1)
        # One byte in a pipe, which one worker takes: the right to tell why none can start.
        self._right_to_tell, giving = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(giving, b"!")
        os.close(giving)

    @property
    def has_served(self) -> bool:
        return self._has_served[0] == 1

    def serves(self) -> None:
        self._has_served[0] = 1

    def may_tell(self) -> bool:
        """Whether this worker is the one that tells: true once, for all of them."""
        # Empty, and nobody left who could write: the end of the pipe.
        return os.read(self._right_to_tell, 1) != b""


_shared: _Shared | None = None


def share_with_workers() -> None:
    """Have ``served`` and ``give_up`` know of all workers; to be called before any is forked."""
    global _shared
    if _shared is None:
        _shared = _Shared()


def served() -> None:
    """Note that a worker serves: from now on one that cannot start is tried again."""
    if _shared is not None:
        _shared.serves()


def give_up(reason: object) -> NoReturn:
    """End this worker, which cannot start: with the server, if no worker ever served.

    Otherwise gunicorn starts another at once, so this one waits a second first. A store that is
    away for a while is a reason of that kind.
    """
    if _shared is not None and _shared.has_served:
        print(f"cannot start a worker, tried again: {reason}", file=sys.stderr, flush=True)
        time.sleep(_RETRY_SECS)
        sys.exit(_NOT_NOW)
    if _shared is None or _shared.may_tell():
        print(f"cannot start: {reason}", file=sys.stderr, flush=True)
        sys.exit(_BOOT_ERROR)
    # One is enough: gunicorn stumbles over a second while it ends because of the first.
    sys.exit(_NOT_NOW)
