"""Numbers that processes own in a file, each given back by the system when its process ends.

They are locks of single bytes at the file's beginning (open file description locks of Linux); what
stands in those bytes does not matter.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


def own(file: int, most: int) -> int | None:
    """Take the first number below ``most`` that nobody owns; None where there is none."""
    for number in range(most):
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, number, 1))
        except (BlockingIOError, PermissionError):
            continue
        return number
    return None


def disown(file: int, most: int) -> None:
    """Give back whatever this opener of the file owns below ``most``."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_UNLCK, 0, most))


def is_free(file: int, first: int, count: int) -> bool:
    """Whether no other opener owns one of these numbers."""
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, first, count))
    return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)


def _lock(kind: int, first: int, count: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, first, count, 0)
