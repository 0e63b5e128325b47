"""Keys of etcd, ``prefix/namespace/service/id``, whose values are in the native form.

It uses etcd's JSON gateway, so no gRPC library is needed: a range read at one revision, then a
watch from the next revision on. A watch that has been quiet for some seconds is opened again at the
same revision: a server that hangs does not answer that.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from catalogs.bounds import readable, shortened
from catalogs.catalog import QUIET_SECS, Entry, Groups, RelistError, SourceError
from catalogs.document import DocumentError, decoded, json_document
from catalogs.entries import LIMITS, entry_of
from catalogs.http import Client, Quiet, StatusError, Url, checked_files, documents
from native_api.schemas import Schemas, WrongFieldsError
from registry import NAMESPACE, Namespace

log = logging.getLogger("catalogs")

_PAGE = 1000
_QUIET_SECS = 4.0  # a member that hangs is noticed within twice this time


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """One prefix of one etcd."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    endpoints: tuple[Url, ...] = (Url("http://127.0.0.1:2379"),)
    """Its members' client URLs; one that fails is left for the next."""

    prefix: str = "registry"
    """What stands before ``/namespace/service/id``."""

    username: str | None = None
    """For etcd's own authentication."""

    password_file: Path | None = None
    """Read at each authentication."""

    ca_file: Path | None = None
    """Whom to trust, where that is not a public authority."""

    cert_file: Path | None = None
    """This client's own certificate, with ``key_file``."""

    key_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse incomplete settings; ``ValueError``."""
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file, both or neither")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file, both or neither")
        if not self.endpoints:
            raise ValueError("endpoints: at least one")
        if not self.prefix.strip("/"):
            raise ValueError("prefix: at least one character that is no /")

    def check(self) -> None:
        """Look at its files; ``ValueError``."""
        checked_files(self.ca_file, self.cert_file, self.key_file)
        readable("password_file", self.password_file)


class EtcdCatalog:
    """The catalog of one prefix; see ``catalogs.catalog.Catalog``. A group is a key.

    A value that cannot be used is a problem, and the key's last good value stays.
    """

    quiet_secs = QUIET_SECS
    prefers_local = False

    def __init__(self, settings: EtcdSettings) -> None:
        """Nothing is asked before ``list``."""
        self.source = f"etcd:{settings.name}"
        self._settings = settings
        self._prefix = settings.prefix.rstrip("/") + "/"
        self._token = ""
        files = None
        if settings.cert_file is not None and settings.key_file is not None:
            files = (settings.cert_file, settings.key_file)
        self._client = Client(
            settings.endpoints, headers=self._headers, ca_file=settings.ca_file, cert_files=files
        )
        self._schemas = Schemas(LIMITS)
        self._revision = 0
        self._good: dict[str, Entry] = {}
        self._wrong: dict[str, str] = {}

    @property
    def problems(self) -> Sequence[str]:
        """Each key whose value cannot be used, and why."""
        return [f"{key}: {text}" for key, text in sorted(self._wrong.items())]

    def list(self) -> Groups:
        """Every key below the prefix, all at one revision."""
        key, revision, keys = self._prefix.encode(), 0, []
        while True:
            asked: dict[str, Any] = {
                "key": _b64(key),
                "range_end": _b64(_end_of(self._prefix)),
                "limit": str(_PAGE),
            }
            if revision:
                asked["revision"] = str(revision)
            try:
                found = self._asked("/v3/kv/range", asked)
            except StatusError as error:
                if "compacted" in str(error):
                    raise RelistError(str(error)) from None
                raise
            try:
                revision = revision or int(found["header"]["revision"])
                kvs = found.get("kvs", [])
                keys += kvs
                if not found.get("more"):
                    break
                key = base64.b64decode(kvs[-1]["key"]) + b"\0"
            except (LookupError, TypeError, ValueError, AttributeError):
                raise SourceError(f"{self._client.url} answers with what is not etcd's") from None
        self._revision = revision
        present = set()
        for kv in keys:
            present.add(self._remember(kv))
        for gone in (self._good.keys() | self._wrong.keys()) - present:
            self._drop(gone)
        return {key: self._held(key) for key in self._good.keys() | self._wrong.keys()}

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The keys that are put, deleted, or end with their lease."""
        while not stopping.is_set():
            asked = {
                "create_request": {
                    "key": _b64(self._prefix.encode()),
                    "range_end": _b64(_end_of(self._prefix)),
                    "start_revision": str(self._revision + 1),
                }
            }
            stream = self._authenticated(
                lambda a=asked: self._client.send(
                    "POST", "/v3/watch", document=a, read_secs=_QUIET_SECS, stream=True
                )
            )
            try:
                # The first message confirms the watch, so it is a sign of life.
                for told in documents(stream):
                    yield self._changes(told)
                    if stopping.is_set():
                        return
            except Quiet:
                continue
            except (LookupError, TypeError, ValueError, AttributeError):
                raise SourceError(f"{self._client.url} tells what is not etcd's") from None
            raise SourceError(f"{self._client.url} ended the watch")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _changes(self, told: Mapping[str, Any]) -> Groups:
        result = told.get("result", {})
        if int(result.get("compact_revision", 0)):
            raise RelistError(f"revisions up to {result['compact_revision']} are compacted")
        if "error" in told or result.get("canceled"):
            raise SourceError(f"the watch was refused: {result.get('cancel_reason', 'no reason')}")
        changed: dict[str, Sequence[Entry] | None] = {}
        for event in result.get("events", []):
            kv = event["kv"]
            self._revision = max(self._revision, int(kv["mod_revision"]))
            if event.get("type") == "DELETE":
                key = base64.b64decode(kv["key"]).decode("utf-8", "replace")
                self._drop(key)
            else:
                key = self._remember(kv)
            changed[key] = self._held(key)
        return changed

    def _held(self, key: str) -> Sequence[Entry] | None:
        """The group of a key: the entry of its last good value, None if none is known."""
        kept = self._good.get(key)
        if kept is not None:
            return (kept,)
        return None if key in self._wrong else ()

    def _drop(self, key: str) -> None:
        self._good.pop(key, None)
        self._wrong.pop(key, None)

    def _remember(self, kv: Mapping[str, Any]) -> str:
        """Keep the entry of a key, or the reason why its value cannot be used; the key."""
        key = base64.b64decode(kv["key"]).decode("utf-8", "replace")
        try:
            self._good[key] = self._entry(key, base64.b64decode(kv.get("value", "")))
            self._wrong.pop(key, None)
        except ValueError as error:
            self._wrong[key] = str(error)
        except Exception as error:
            log.exception("%s: %s cannot be used, for an unforeseen reason", self.source, key)
            self._wrong[key] = f"{type(error).__name__}: {error}"
        return key

    def _entry(self, key: str, value: bytes) -> Entry:
        parts = key[len(self._prefix) :].split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"expected a key {self._prefix}namespace/service/id")
        try:
            document = json_document(decoded(value)).value
        except DocumentError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        service = unquote(parts[1])
        document.setdefault("service_name", service)
        try:
            data = self._schemas.checked_registration(document)
        except WrongFieldsError as error:
            raise ValueError(str(error)) from None
        if data["service_name"].lower() != service.lower():
            raise ValueError(f"service_name: {data['service_name']} stands below {service}")
        namespace = unquote(parts[0])
        if not NAMESPACE.match(namespace):
            raise ValueError(f"{shortened(namespace)} is no namespace's name")
        return entry_of(self.source, data, Namespace(namespace))

    # Authentication

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    def _asked(self, path: str, document: Any) -> Any:
        return self._authenticated(lambda: self._client.read("POST", path, document=document))

    def _authenticated(self, ask: Any) -> Any:
        """The answer to ``ask``; asked again with a new token if the old one has expired."""
        if self._settings.username is not None and not self._token:
            self._authenticate()
        try:
            return ask()
        except StatusError as error:
            if self._settings.username is None or "token" not in str(error).lower():
                raise
            self._authenticate()
            return ask()

    def _authenticate(self) -> None:
        self._token = ""
        settings = self._settings
        assert settings.password_file is not None
        try:
            password = settings.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"password_file cannot be read: {type(error).__name__}") from None
        asked = {"name": settings.username, "password": password}
        try:
            found = self._client.read("POST", "/v3/auth/authenticate", document=asked)
        except StatusError as error:
            text = f"{self._client.url} does not authenticate {settings.username}: {error.status}"
            raise SourceError(text) from None
        if not isinstance(found, dict) or not isinstance(found.get("token"), str):
            raise SourceError(f"{self._client.url} answers with no token")
        self._token = found["token"]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _end_of(prefix: str) -> bytes:
    """The smallest key greater than all keys with the prefix."""
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])
