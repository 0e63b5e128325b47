"""Consul's catalog and health, followed by blocking queries.

A blocking query for each service would see changes soonest, but an agent accepts at most 200
connections of one client. So there are two blocking queries. One is for all checks: comparing the
indexes in its answer shows which services to ask for. The other is for the list of services, and
each of its answers is followed by asking for all of them, at most once a second if they are many:
changes of services without checks are found in this way only.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from catalogs.bounds import checked_prefix, in_bounds, readable, shortened
from catalogs.catalog import QUIET_SECS, Entry, Groups, RelistError, SourceError
from catalogs.entries import EntryError, entry
from catalogs.http import Client, Url, checked_files, parsed
from registry import DEFAULT_NAMESPACE, Namespace

log = logging.getLogger("catalogs")

_LOCAL = Url("http://127.0.0.1:8500")
_ASKED_AT_ONCE = 8
_SWEEP_SECS = 1.0
_TICK_SECS = 1.0
_SLACK_SECS = 3.0
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

    wait_secs: int = 5
    """How long a blocking query waits; a silent agent is noticed a few seconds later."""

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
        self.quiet_secs = QUIET_SECS + settings.wait_secs
        self._settings = settings
        self._problems: dict[str, list[str]] = {}
        self._services: set[str] = set()
        # A digest of the agent's last answer for each service.
        self._seen: dict[str, bytes] = {}
        self._service_index = 0
        self._check_index = 0
        self._checks: Mapping[str, Checks] = {}
        self._local = threading.local()
        self._clients: list[Client] = []
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix=self.source)
        self._ended = threading.Event()

    @property
    def problems(self) -> Sequence[str]:
        """Instances that cannot be used, and why."""
        return [text for service in sorted(self._problems) for text in self._problems[service]]

    def list(self) -> Groups:
        """Every service of the data centre."""
        # The indexes first, so that the watch reports what changes while the rest is read.
        checks, self._check_index = self._asked("/v1/health/state/any")
        self._checks = _by_service(checks)
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
                    continue  # not a sign of life; a query that ends without a change is one
                if isinstance(due, Exception):
                    raise due
                yield self._refreshed(due) if due else {}
        finally:
            ended.set()

    def close(self) -> None:
        """Close the connections; a blocking query ends when its time is over."""
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
                before, self._checks = self._checks, _by_service(checks)
                changed = {
                    name
                    for name in self._checks.keys() | before.keys()
                    if self._checks.get(name) != before.get(name)
                }
                if "" in changed:  # a node's check concerns every service on it
                    changed = set(self._services)
                told.put(changed & self._services)
        except Exception as error:
            told.put(error)
        finally:
            self._let_go()

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
                    # However many changes there are in this time, they cost one more sweep.
                    ended.wait(_SWEEP_SECS if len(wanted) > 50 else 0.05)
        except Exception as error:
            told.put(error)
        finally:
            self._let_go()

    def _waited(self, path: str, index: int) -> tuple[Any, int]:
        """The answer of a blocking query, and the index for the next one (Consul's API docs)."""
        found, fresh = self._asked(path, index)
        if fresh < index:
            raise RelistError(f"the index of {path} went back from {index} to {fresh}")
        return found, fresh

    def _asked(self, path: str, index: int | None = None) -> tuple[Any, int]:
        told, index = self._answered(path, index)
        return _parsed(told), index

    def _answered(self, path: str, index: int | None = None) -> tuple[bytes, int]:
        settings = self._settings
        params = {} if settings.datacenter is None else {"dc": settings.datacenter}
        read_secs = None
        if index is not None:
            params |= {"index": str(index), "wait": f"{settings.wait_secs}s"}
            # Consul adds up to a sixteenth of the time.
            read_secs = settings.wait_secs * 17 / 16 + _SLACK_SECS
        else:
            # A server that has just restarted could otherwise answer with an incomplete list.
            params["consistent"] = ""
        client = self._client()
        answer = client.send("GET", path, params=params, read_secs=read_secs)
        try:
            told = int(answer.headers.get("X-Consul-Index", "1"))
            return answer.content, max(1, told)
        except ValueError:
            raise SourceError(f"{client.url} answers with what is not Consul's") from None
        except requests.RequestException as error:
            raise SourceError(f"{client.url} broke off: {type(error).__name__}") from None

    def _client(self) -> Client:
        """A client of the calling thread's own."""
        found: Client | None = getattr(self._local, "client", None)
        if found is None:
            settings = self._settings
            found = Client([settings.url], headers=self._headers, ca_file=settings.ca_file)
            self._local.client = found
            self._clients.append(found)
        return found

    def _let_go(self) -> None:
        """Close this thread's client, if any: each ``watch`` starts new threads."""
        found: Client | None = self._local.__dict__.pop("client", None)
        if found is not None:
            self._clients.remove(found)
            found.close()

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
        """Those of these services that have changed, with all their entries."""
        changed: dict[str, Sequence[Entry] | None] = {}
        names = sorted(services)
        for name, told in zip(names, self._pool.map(self._told, names), strict=True):
            digest = hashlib.blake2b(told, digest_size=16).digest()
            if self._seen.get(name) == digest:
                continue
            self._problems.pop(name, None)
            found = _parsed(told)
            if not isinstance(found, list):
                raise SourceError(f"what is told of the service {shortened(name)} is not Consul's")
            if found:
                self._seen[name] = digest
            else:
                self._seen.pop(name, None)
            changed[name] = [e for item in found if (e := self._entry(name, item)) is not None]
        return changed

    def _told(self, service: str) -> bytes:
        return self._answered(f"/v1/health/service/{quote(service, safe='')}")[0]

    def _entry(self, name: str, item: Any) -> Entry | None:
        """One instance; None, and a problem in the report, if it cannot be listed."""
        try:
            return self._mapped(name, item)
        except EntryError as error:
            where = f"{shortened(name)}/{shortened(str(item['Service'].get('ID')))}"
            self._problems.setdefault(name, []).append(f"{where}: {error}")
        except Exception as error:
            log.exception("%s: an instance of %s cannot be used", self.source, shortened(name))
            self._problems.setdefault(name, []).append(
                f"{shortened(name)}: an instance that is not Consul's: {type(error).__name__}"
            )
        return None

    def _mapped(self, name: str, item: Mapping[str, Any]) -> Entry | None:
        settings = self._settings
        node, service = item["Node"], item["Service"]
        if service.get("Kind"):
            return None  # a proxy or gateway of the mesh, for mutual TLS with others of its kind
        tags = service.get("Tags") or []
        status = _status(item["Checks"])
        if (settings.tag is not None and settings.tag not in tags) or (
            settings.passing_only and status != "UP"
        ):
            return None
        meta = service.get("Meta") or {}
        port = service.get("Port") or 0
        host = str(service.get("Address") or node.get("Address") or "")
        shown = f"[{host}]" if ":" in host else host
        zone = meta.get("zone") or (node.get("Meta") or {}).get("zone") or node.get("Datacenter")
        metadata = {
            **{f"node-{key}": value for key, value in (node.get("Meta") or {}).items()},
            **meta,
            "consul-node": node.get("Node", ""),
            "consul-id": service.get("ID", ""),
            **({"zone": zone} if zone else {}),
        }
        return entry(
            self.source,
            service_name=settings.prefix + name,
            endpoint_type=_endpoint_type(meta, tags, port),
            endpoint_value=f"{shown}:{port}" if port else shown,
            status=status,
            tags=tags,
            metadata=metadata,
            namespace=settings.namespace,
        )


Checks = frozenset[tuple[Any, ...]]
"""A service's checks as last reported. Complete, since a sum of their indexes could be equal for
different checks."""


def _by_service(checks: Any) -> Mapping[str, Checks]:
    """The checks of each service; those of nodes under the empty name."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    try:
        for check in checks:
            told = tuple(str(check.get(k)) for k in ("Node", "CheckID", "Status", "ModifyIndex"))
            found.setdefault(check.get("ServiceName") or "", []).append(told)
    except (AttributeError, TypeError):
        raise SourceError("the list of checks is not Consul's") from None
    return {name: frozenset(told) for name, told in found.items()}


def _status(checks: Sequence[Mapping[str, Any]]) -> str:
    """The worst check decides, as in Consul; an operator sets maintenance."""
    if any(str(check.get("CheckID", "")).startswith(_MAINTENANCE) for check in checks):
        return "OUT_OF_SERVICE"
    # A warning is UP: Consul's own DNS lists such instances too.
    return "DOWN" if any(check.get("Status") == "critical" for check in checks) else "UP"


def _parsed(told: bytes) -> Any:
    try:
        return parsed(told)
    except ValueError:
        raise SourceError("an answer that is not Consul's") from None


def _endpoint_type(meta: Mapping[str, str], tags: Sequence[str], port: int) -> str:
    if not port:
        return "tcp"  # HTTP would need a port
    told = meta.get("scheme") or meta.get("protocol") or ""
    if told in ("http", "https", "tcp", "udp"):
        return told
    if meta.get("secure") == "true" or "https" in tags or "secure=true" in tags:
        return "https"
    return "http"
