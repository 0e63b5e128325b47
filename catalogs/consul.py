"""Consul's catalog and health, followed by blocking queries.

One query per service would be answered soonest, but an agent takes 200 connections of one client at
most. So two queries wait: one for any check, whose answer tells by its indexes which services
to ask for, and one for the list of services, after which all are asked, in turns of a second
at most: a service without checks is found by that alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from catalogs.bounds import checked_prefix, in_bounds, readable
from catalogs.catalog import Entry, Groups, RelistError, SourceError
from catalogs.entries import EntryError, entry
from catalogs.http import READ_SECS, Client, Url, checked_files
from registry import DEFAULT_NAMESPACE, Namespace

_LOCAL = Url("http://127.0.0.1:8500")
_ASKED_AT_ONCE = 8
_SWEEP_SECS = 1.0
_TICK_SECS = 2.0
_MAINTENANCE = ("_node_maintenance", "_service_maintenance:")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulSettings:
    """One data centre of one Consul."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    url: Url = _LOCAL
    """An agent's HTTP API; the local one's, as Consul means it."""

    datacenter: str | None = None
    """Another than the agent's own."""

    token_file: Path | None = None
    """Holds the ACL token (node:read and service:read); read at each request."""

    namespace: Namespace = DEFAULT_NAMESPACE
    """Where its instances are listed."""

    prefix: str = ""
    """Stands before each service's name."""

    passing_only: bool = False
    """Whether what does not pass its checks is left out, rather than listed as DOWN."""

    tag: str | None = None
    """Only services' instances with this tag."""

    without: tuple[str, ...] = ("consul",)
    """Services that are left out."""

    wait_secs: int = 10
    """How long a blocking query waits; also how soon a silent agent is noticed."""

    ca_file: Path | None = None
    """Whom to trust, where that is not a public authority."""

    def __post_init__(self) -> None:
        """Refuse what cannot work; ``ValueError``."""
        in_bounds("wait_secs", self.wait_secs, 1, 600)
        checked_prefix(self.prefix)

    def check(self) -> None:
        """Look at its files; ``ValueError``."""
        checked_files(self.ca_file)
        readable("token_file", self.token_file)


class ConsulCatalog:
    """The catalog of one data centre; see ``catalogs.catalog.Catalog``. A group is a service."""

    prefers_local = False

    def __init__(self, settings: ConsulSettings) -> None:
        """Nothing is asked before ``list``."""
        self.source = f"consul:{settings.name}"
        self._settings = settings
        self._problems: dict[str, list[str]] = {}
        self._services: set[str] = set()
        self._seen: dict[str, Any] = {}
        self._service_index = 0
        self._check_index = 0
        self._check_marks: dict[str, int] = {}
        self._local = threading.local()
        self._clients: list[Client] = []
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix=self.source)
        self._ended = threading.Event()
        self._watching = threading.Event()

    @property
    def problems(self) -> Sequence[str]:
        """Instances that cannot be used, and why."""
        return [text for service in sorted(self._problems) for text in self._problems[service]]

    def list(self) -> Groups:
        """Every service of the data centre."""
        # The indexes first: what changes while the rest is read is then told by the watch.
        checks, self._check_index = self._asked("/v1/health/state/any")
        self._check_marks = _marks(checks)
        services, self._service_index = self._asked("/v1/catalog/services")
        self._seen.clear()
        self._problems.clear()
        self._services = self._wanted(services)
        return self._refreshed(self._services)

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The services whose instances or checks change."""
        told: queue.Queue[Any] = queue.Queue()
        ended = threading.Event()
        for wait in (self._await_checks, self._await_services):
            threading.Thread(target=wait, args=(told, ended), daemon=True).start()
        try:
            while not stopping.is_set() and not self._ended.is_set():
                try:
                    due = told.get(timeout=_TICK_SECS)
                except queue.Empty:
                    yield {}
                    continue
                if isinstance(due, Exception):
                    raise due
                yield self._refreshed(due)
        finally:
            ended.set()

    def close(self) -> None:
        """Let go of the connections; a query that waits ends when its time is over."""
        self._ended.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()

    # Waiting; each in a thread of its own

    def _await_checks(self, told: queue.Queue[Any], ended: threading.Event) -> None:
        index = self._check_index
        try:
            while not ended.is_set():
                checks, index = self._waited("/v1/health/state/any", index)
                marks = _marks(checks)
                before, self._check_marks = self._check_marks, marks
                changed = {
                    name
                    for name in marks.keys() | before.keys()
                    if marks.get(name) != before.get(name)
                }
                if "" in changed:  # a check of a node concerns all that runs there
                    changed = set(self._services)
                due = changed & self._services
                if due:
                    told.put(due)
        except Exception as error:
            told.put(error)

    def _await_services(self, told: queue.Queue[Any], ended: threading.Event) -> None:
        index = self._service_index
        try:
            while not ended.is_set():
                before = index
                services, index = self._waited("/v1/catalog/services", index)
                wanted = self._wanted(services)
                fresh = wanted - self._services
                gone = self._services - wanted
                self._services = wanted
                if fresh or gone:
                    told.put(fresh | gone)
                if index != before:
                    told.put(wanted - fresh)
                    # More changes within this time cost one more sweep, not one each.
                    ended.wait(_SWEEP_SECS if len(wanted) > 50 else 0.05)
        except Exception as error:
            told.put(error)

    def _waited(self, path: str, index: int) -> tuple[Any, int]:
        """What a blocking query answers, and the next one's index, by Consul's rules."""
        found, fresh = self._asked(path, index)
        if fresh < index:
            raise RelistError(f"the index of {path} went back from {index} to {fresh}")
        return found, fresh

    def _asked(self, path: str, index: int | None = None) -> tuple[Any, int]:
        settings = self._settings
        params = {} if settings.datacenter is None else {"dc": settings.datacenter}
        read_secs = READ_SECS
        if index is not None:
            params |= {"index": str(index), "wait": f"{settings.wait_secs}s"}
            # Consul adds up to a sixteenth of the time.
            read_secs = settings.wait_secs * 17 / 16 + READ_SECS / 2
        else:
            # A server that has just come back would tell of less than it has.
            params["consistent"] = ""
        client = self._client()
        answer = client.send("GET", path, params=params, read_secs=read_secs)
        try:
            told = int(answer.headers.get("X-Consul-Index", "1"))
            return orjson.loads(answer.content), max(1, told)
        except ValueError:
            raise SourceError(f"{client.url} answers with what is not Consul's") from None

    def _client(self) -> Client:
        """A client of the calling thread's own."""
        found: Client | None = getattr(self._local, "client", None)
        if found is None:
            settings = self._settings
            found = Client([settings.url], headers=self._headers, ca_file=settings.ca_file)
            self._local.client = found
            self._clients.append(found)
        return found

    def _headers(self) -> Mapping[str, str]:
        file = self._settings.token_file
        if file is None:
            return {}
        try:
            return {"X-Consul-Token": file.read_text(encoding="utf-8").strip()}
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"token_file cannot be read: {type(error).__name__}") from None

    # Services

    def _wanted(self, services: Any) -> set[str]:
        if not isinstance(services, dict):
            raise SourceError("the list of services is not Consul's")
        tag = self._settings.tag
        return {
            name
            for name, tags in services.items()
            if name not in self._settings.without and (tag is None or tag in (tags or ()))
        }

    def _refreshed(self, services: set[str]) -> Groups:
        """These services as they are now; of those that are as they were, nothing."""
        changed: dict[str, Sequence[Entry]] = {}
        names = sorted(services)
        for name, found in zip(names, self._pool.map(self._instances, names), strict=True):
            marks = [_mark(item) for item in found]
            if self._seen.get(name) == marks:
                continue
            self._seen[name] = marks
            if not marks:
                del self._seen[name]
            self._problems.pop(name, None)
            changed[name] = [e for item in found if (e := self._entry(name, item)) is not None]
        return changed

    def _instances(self, service: str) -> Any:
        found, _ = self._asked(f"/v1/health/service/{quote(service, safe='')}")
        return found

    def _entry(self, name: str, item: Mapping[str, Any]) -> Entry | None:
        settings = self._settings
        node, service = item["Node"], item["Service"]
        tags = service.get("Tags") or []
        status = _status(item["Checks"])
        if (settings.tag is not None and settings.tag not in tags) or (
            settings.passing_only and status != "UP"
        ):
            return None
        meta = service.get("Meta") or {}
        port = service.get("Port") or 0
        host = service.get("Address") or node.get("Address")
        kind = _endpoint_type(meta, tags, port)
        shown = f"[{host}]" if ":" in str(host) else host
        zone = meta.get("zone") or (node.get("Meta") or {}).get("zone") or node.get("Datacenter")
        metadata = {
            **{f"node-{key}": value for key, value in (node.get("Meta") or {}).items()},
            **meta,
            "consul-node": node.get("Node", ""),
            "consul-id": service.get("ID", ""),
            **({"zone": zone} if zone else {}),
        }
        try:
            return entry(
                self.source,
                service_name=settings.prefix + name,
                endpoint_type=kind,
                endpoint_value=str(host) if kind == "user" else f"{shown}:{port}",
                status=status,
                tags=tags,
                metadata=metadata,
                namespace=settings.namespace,
            )
        except EntryError as error:
            self._problems.setdefault(name, []).append(f"{name}/{service.get('ID')}: {error}")
            return None


def _mark(item: Mapping[str, Any]) -> Any:
    """What is another where the instance, its node or one of its checks is."""
    node, service = item["Node"], item["Service"]
    checks = sorted((check["CheckID"], check["Status"]) for check in item["Checks"])
    return node.get("ModifyIndex"), service.get("ModifyIndex"), service["ID"], checks


def _marks(checks: Any) -> dict[str, int]:
    """For each service the newest of its checks' indexes, and their number; "" for nodes' own."""
    if not isinstance(checks, list):
        raise SourceError("the list of checks is not Consul's")
    found: dict[str, int] = {}
    for check in checks:
        name = check.get("ServiceName") or ""
        # A check that goes lowers the sum, one that comes or changes raises it.
        found[name] = found.get(name, 0) + int(check.get("ModifyIndex") or 0)
    return found


def _status(checks: Sequence[Mapping[str, Any]]) -> str:
    """By Consul's rule the worst check counts; maintenance is an operator's word."""
    if any(str(check.get("CheckID", "")).startswith(_MAINTENANCE) for check in checks):
        return "OUT_OF_SERVICE"
    # A warning passes: Consul's own DNS answers with it.
    return "DOWN" if any(check.get("Status") == "critical" for check in checks) else "UP"


def _endpoint_type(meta: Mapping[str, str], tags: Sequence[str], port: int) -> str:
    if not port:
        return "user"
    told = meta.get("scheme") or meta.get("protocol") or ""
    if told in ("http", "https", "tcp", "udp"):
        return told
    if meta.get("secure") == "true" or "https" in tags or "secure=true" in tags:
        return "https"
    return "http"
