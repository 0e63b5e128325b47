"""Moves registries: writes what a server lists to a file, and has another server list it.

An export may hold several namespaces, one after the other: a header, instances, an end that counts
them. It is read as it comes, however long it is, and sent on in parts that a server takes at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from eureka_server.operator.client import NOT_GOOD, UNREACHABLE, WRONG_USE, EndError, Server
from eureka_server.operator.tables import Shown, table

_MEDIA_TYPE = "application/x-ndjson"
_FORMAT = "eureka-registry export"
_PART_BYTES, _PART_LINES = 1024 * 1024, 10_000
# No server takes more at once, and no line comes alone.
_LONGEST_LINE = 3 * 1024 * 1024
_COUNTS = ("taken", "kept", "of_catalogs")


def export(server: Server, options: argparse.Namespace) -> Iterator[Shown]:
    """Write what is listed in each namespace that may be read; ``EndError`` where it is not whole.

    A file is there only once all of it is.
    """
    if options.namespace is not None:
        names = [options.namespace]
    else:
        names = server.get("/namespaces")["namespaces"]
    if options.file is None:
        _write(server, names, sys.stdout.buffer)
        return
    part = Path(f"{options.file}.part")
    try:
        with part.open("wb") as out:
            counts = _write(server, names, out)
        os.replace(part, options.file)
    except OSError as error:
        raise EndError(NOT_GOOD, f"{options.file}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    document = {"file": options.file, "namespaces": counts}
    yield Shown(document, table(("NAMESPACE", "INSTANCES"), counts.items()), [options.file])


def _write(server: Server, names: list[str], out: BinaryIO) -> dict[str, int]:
    """How many instances of each namespace were written."""
    counts = {}
    for name in names:
        count, ended = -1, False
        for line in server.in_namespace(name).lines("/export"):
            told = _parsed(line)
            if count < 0 and told.get("namespace") != name:
                raise EndError(UNREACHABLE, f"{server.shown} does not know namespaces by name")
            ended = told.get("kind") == "end"
            count += not ended
            out.write(line)
        if not ended:
            raise EndError(UNREACHABLE, f"{server.shown}: the answer broke off")
        counts[name] = count
    out.flush()
    return counts


def take(server: Server, options: argparse.Namespace) -> Shown:
    """Have the server list what a file says; what became of it, in each namespace."""
    reader = _Reader(server, options.into)
    with _opened(options.file) as file:
        try:
            while line := file.readline(_LONGEST_LINE + 1):
                reader.read(line)
            reader.close()
        except OSError as error:
            raise EndError(NOT_GOOD, f"{options.file}: {error.strerror}") from None
    rows = [(name, *(counts[word] for word in _COUNTS)) for name, counts in reader.counts.items()]
    lines = table(("NAMESPACE", "TAKEN", "KEPT", "OF CATALOGS"), rows)
    for each in reader.refused:
        lines.append(f"line {each['line']}, {each['id'] or 'no id'}: {each['detail']}")
    document = {"namespaces": reader.counts, "refused": reader.refused}
    return Shown(document, lines, reader.counts, not reader.refused)


@contextmanager
def _opened(name: str | None) -> Iterator[BinaryIO]:
    if name is None:
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115  # an error of what follows is not the file's
    except OSError as error:
        raise EndError(WRONG_USE, f"{name}: {error.strerror}") from None
    with file:
        yield file


class _Reader:
    """Reads an export line by line, and sends on what it says."""

    def __init__(self, server: Server, into: str | None) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.refused: list[dict[str, Any]] = []
        self._server = server
        self._into = into
        self._number = 0
        self._header: dict[str, Any] | None = None
        self._namespace = ""
        self._instances = 0
        # What is to be sent next, and where in the file it stood.
        self._part: list[bytes] = []
        self._numbers: list[int] = []
        self._size = 0

    def read(self, line: bytes) -> None:
        """The next line."""
        self._number += 1
        if len(line) > _LONGEST_LINE:
            raise EndError(NOT_GOOD, f"line {self._number} is longer than {_LONGEST_LINE} bytes")
        told = _parsed(line)
        kind = told.get("kind")
        if self._header is None:
            self._begin(told)
        elif kind == "end":
            self._send()
            self._header = None
            if told.get("instances") != self._instances:
                text = f"instead of {told.get('instances')} instances there are {self._instances}"
                raise EndError(NOT_GOOD, f"line {self._number}: {text}")
        elif kind == "header":
            raise self._cut_off()
        else:
            self._instances += 1
            self._part.append(line.rstrip(b"\r\n"))
            self._numbers.append(self._number)
            self._size += len(line)
            if self._size >= _PART_BYTES or len(self._part) >= _PART_LINES:
                self._send()

    def close(self) -> None:
        """There are no more lines."""
        if self._header is not None:
            self._send()
            raise self._cut_off()
        if not self._number:
            raise EndError(NOT_GOOD, "there is nothing in it")

    def _begin(self, told: dict[str, Any]) -> None:
        name = told.get("namespace")
        is_header = told.get("kind") == "header" and told.get("format") == _FORMAT
        if not is_header or not isinstance(name, str):
            raise EndError(NOT_GOOD, f"line {self._number}: this is no export of a registry")
        if self._into is not None:
            if self.counts:
                text = "--into takes one namespace, and there are several"
                raise EndError(WRONG_USE, f"line {self._number}: {text}")
            name = self._into
        self._header, self._namespace, self._instances = told | {"namespace": name}, name, 0
        self.counts[name] = dict.fromkeys(_COUNTS, 0)
        # Also without an instance the server says whether it can read this.
        self._send(is_empty=True)

    def _send(self, *, is_empty: bool = False) -> None:
        if not self._part and not is_empty:
            return
        body = b"\n".join((json.dumps(self._header).encode(), *self._part))
        server = self._server.in_namespace(self._namespace)
        told = server.send("POST", "/import", body, media=_MEDIA_TYPE)
        for word in _COUNTS:
            self.counts[self._namespace][word] += told[word]
        for each in told["refused"]:
            self.refused.append({**each, "line": self._numbers[each["line"] - 2]})
        self._part, self._numbers, self._size = [], [], 0

    def _cut_off(self) -> EndError:
        text = f"the export is cut off: its end is missing after {self._instances} instances"
        return EndError(NOT_GOOD, f"line {self._number}: {text}")


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where that is no JSON object, which the server then refuses."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
