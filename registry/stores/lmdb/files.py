"""Whether an LMDB file is whole, found out before this process maps it.

A file that is cut or overwritten can end the process that reads it. So another one reads it first:
all pages that are in use, and the checksum of every record.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lmdb

_CRC = struct.Struct(">I")
_SECONDS = 300


def sealed(data: bytes) -> bytes:
    """Some bytes behind their checksum."""
    return _CRC.pack(zlib.crc32(data)) + data


def unsealed(data: bytes, start: int = 0) -> bytes:
    """The bytes that ``sealed`` was given; ``ValueError`` where they are no longer that."""
    content = data[start + _CRC.size :]
    if len(data) < start + _CRC.size or _CRC.unpack_from(data, start)[0] != zlib.crc32(content):
        raise ValueError("a record does not have its checksum")
    return content


def damage(path: Path, look_through: Callable[[Any], None]) -> str | None:
    """What is wrong with an LMDB file; None where nothing is.

    ``look_through`` reads what is in it, and raises an error where that cannot have been written.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _look(path, look_through, writing)
    os.close(writing)
    with open(reading, "rb") as told:
        text = told.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"reading it ends in {signal.Signals(os.WTERMSIG(status)).name}"
    return text or None


def _look(path: Path, look_through: Callable[[Any], None], told: int) -> NoReturn:
    try:
        faulthandler.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)  # damaged pages may lead in a circle
        with (
            lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=8) as env,
            open(os.devnull, "wb") as nowhere,
        ):
            env.copyfd(nowhere.fileno(), compact=True)  # which visits all pages that are in use
            look_through(env)
    except Exception as error:
        os.write(told, (" ".join(str(error).split())[:300] or repr(error)).encode())
    finally:
        os._exit(0)
