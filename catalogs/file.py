"""A folder with a file for each namespace, for instances that never register themselves.

``default.yaml`` (or ``.yml``, or JSON in ``.json`` and ``.conf``) holds
``instances: [{service_name, endpoint, …}]``, each in the native form; the file's name is the
namespace. An Amalgam8 registry's files (``NAMESPACE.conf``) have the same form.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import watchfiles

from catalogs.bounds import shortened
from catalogs.catalog import QUIET_SECS, Entry, Groups, SourceError
from catalogs.document import DocumentError, decoded, json_document, yaml_document
from catalogs.entries import LIMITS, entry_of
from native_api.form import ENDPOINT_TYPES
from native_api.schemas import Schemas
from registry import NAMESPACE, Namespace

log = logging.getLogger("catalogs")

MAX_FILE_BYTES = 64 * 1024 * 1024
_READERS = {
    ".yaml": yaml_document,
    ".yml": yaml_document,
    ".json": json_document,
    ".conf": json_document,
}
_LOOK_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """One folder."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    folder: Path
    """Its files; sub-folders, hidden files and editors' backups are left alone."""

    def check(self) -> None:
        """``ValueError`` if it is not a folder; it may be missing now and come later."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder: {self.folder} is a file")


class _Stamp(NamedTuple):
    """Shows without reading a file whether it has changed."""

    changed_ns: int
    size: int
    inode: int


_NO_STAMP = _Stamp(0, 0, 0)


@dataclass(slots=True)
class _File:
    """A file as last read: its stamp, its last good entries, and what is wrong with it now.

    ``entries`` is None if it never had good ones.
    """

    stamp: _Stamp
    entries: Sequence[Entry] | None
    problem: str | None = None


class _WrongError(Exception):
    """A file cannot be used; the text has the reason, and the line if it is known."""


class FileCatalog:
    """The catalog of one folder; see ``catalogs.catalog.Catalog``.

    A group is a file. A file that is broken keeps what it held before; an unreadable folder is a
    source that does not answer.
    """

    quiet_secs = QUIET_SECS
    prefers_local = False

    def __init__(self, settings: FileSettings) -> None:
        """Nothing is read before ``list``."""
        self.source = f"file:{settings.name}"
        self._folder = settings.folder
        self._files: dict[str, _File] = {}
        self._schemas = Schemas(LIMITS)
        self._closing = threading.Event()

    @property
    def problems(self) -> Sequence[str]:
        """Each broken file, with the line and the reason."""
        return [f"{name}: {f.problem}" for name, f in sorted(self._files.items()) if f.problem]

    def list(self) -> Groups:
        """Every file; only those that have changed are read again."""
        self._look()
        return {name: file.entries for name, file in self._files.items()}

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The files that change, by the kernel's notifications and a look every half second.

        There are no notifications from network file systems, nor when links are swapped, as
        Kubernetes does for a ConfigMap.
        """
        try:
            told = watchfiles.watch(
                self._folder,
                watch_filter=None,
                debounce=50,
                step=10,
                stop_event=self._closing,
                rust_timeout=_LOOK_MS,
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            )
            for _ in told:
                if stopping.is_set():
                    return
                yield self._look()
        except OSError as error:
            raise SourceError(f"{self._folder} cannot be watched: {error}") from error

    def close(self) -> None:
        """End a ``watch`` that waits."""
        self._closing.set()

    def _look(self) -> Groups:
        """The files that have changed since the last look."""
        stamps = self._stamps()
        changed: dict[str, Sequence[Entry] | None] = dict.fromkeys(
            self._files.keys() - stamps.keys(), ()
        )
        for name in changed:
            del self._files[name]
        for name, stamp in stamps.items():
            known = self._files.get(name)
            if known is not None and known.stamp == stamp:
                continue
            entries, problem = self._read(name)
            if problem is not None:
                # It may be half written: its last good entries stay.
                self._files[name] = _File(stamp, known.entries if known else None, problem)
            else:
                self._files[name] = _File(stamp, entries)
                changed[name] = entries
        return changed

    def _stamps(self) -> dict[str, _Stamp]:
        found = {}
        try:
            for path in self._folder.iterdir():
                if path.name.startswith((".", "#")) or path.suffix not in _READERS:
                    continue
                try:
                    told = path.stat()
                except FileNotFoundError:
                    continue  # renamed or deleted meanwhile
                except OSError:
                    found[path.name] = (
                        _NO_STAMP  # a link to itself, say; reading it reports the error
                    )
                    continue
                if stat.S_ISREG(told.st_mode):
                    found[path.name] = _Stamp(told.st_mtime_ns, told.st_size, told.st_ino)
        except OSError as error:
            raise SourceError(f"{self._folder} cannot be read: {error.strerror}") from error
        return found

    def _read(self, name: str) -> tuple[Sequence[Entry], str | None]:
        try:
            return self._entries(name), None
        except (_WrongError, DocumentError) as error:
            return (), str(error)
        except OSError as error:
            return (), f"it cannot be read: {error.strerror}"
        except Exception as error:
            # An unforeseen error must not affect the other files.
            log.exception("%s: %s cannot be used, for an unforeseen reason", self.source, name)
            return (), f"it cannot be used: {type(error).__name__}: {error}"

    def _entries(self, name: str) -> Sequence[Entry]:
        path = self._folder / name
        if not NAMESPACE.match(path.stem):
            raise _WrongError(
                f"its name is not that of a namespace, {shortened(path.stem)!r}: "
                "letters, digits, dots, dashes and underscores, 64 at most"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _WrongError(f"longer than {MAX_FILE_BYTES} bytes")
        document = _READERS[path.suffix](decoded(path.read_bytes()))
        held = document.value
        if not isinstance(held, Mapping) or held.keys() != {"instances"}:
            raise _WrongError("line 1: expected one key, instances, and a list below it")
        if not isinstance(held["instances"], list):
            raise _WrongError("line 1: instances is not a list")
        namespace = Namespace(path.stem)
        found = []
        for number, told in enumerate(held["instances"]):
            try:
                found.append(self._entry(told, namespace))
            except _WrongError as error:
                raise _WrongError(
                    f"line {document.line_of(number)}: instance {number + 1}: {error}{_named(told)}"
                ) from None
        return found

    def _entry(self, told: Any, namespace: Namespace) -> Entry:
        if not isinstance(told, Mapping):
            raise _WrongError("not a mapping")
        endpoint = told.get("endpoint")
        if isinstance(endpoint, str):
            told = {**told, "endpoint": _spelled_out(endpoint)}
        try:
            data = self._schemas.checked_registration(told)
            return entry_of(self.source, data, namespace)
        except ValueError as error:
            raise _WrongError(str(error)) from None


def _named(told: Any) -> str:
    """The service of a wrong instance, for the message; empty if it has none."""
    name = told.get("service_name") if isinstance(told, Mapping) else None
    return f" (service {shortened(name)})" if isinstance(name, str) and name else ""


def _spelled_out(endpoint: str) -> dict[str, str]:
    """Type and value of an endpoint written as a URL or as ``host:port``."""
    scheme, mark, rest = endpoint.partition("://")
    if mark and scheme.lower() in ENDPOINT_TYPES:
        return {"type": scheme.lower(), "value": rest}
    return {"type": "http", "value": endpoint}
