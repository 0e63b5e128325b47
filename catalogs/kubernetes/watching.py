"""Lists and watches objects of an API server.

A watch is requested for a few seconds only. A healthy server ends it after that time, and it is
opened again on the same connection and at the same version. So a server that hangs can be told from
one where nothing changes, although its connections stay open.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from catalogs.catalog import RelistError, SourceError
from catalogs.http import Client, Quiet, StatusError, documents

WATCH_SECS = 5
SILENT_SECS = 8.0
"""A server that is silent for longer, after a request for ``WATCH_SECS``, hangs."""
_PAGE = 500
_TICK_SECS = 1.0
_GATHER_SECS = 0.02

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource, and the path of its lists below a namespace."""

    name: str
    path: str

    def url(self, namespace: str | None) -> str:
        """The URL of its list in a namespace, or in all namespaces."""
        group, _, resource = self.path.rpartition("/")
        where = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
        return f"/{group}/{where}{resource}"


SLICES = Kind("endpointslices", "apis/discovery.k8s.io/v1/endpointslices")
SERVICES = Kind("services", "api/v1/services")
PODS = Kind("pods", "api/v1/pods")
WATCHED = (SERVICES, PODS, SLICES)


@dataclass(frozen=True, slots=True)
class Scope:
    """What one list or watch covers."""

    kind: Kind
    namespace: str | None
    selector: str | None

    @property
    def params(self) -> dict[str, str]:
        """The query parameters of the selector."""
        return {} if self.selector is None else {"labelSelector": self.selector}


@dataclass(frozen=True, slots=True)
class Event:
    """An object's new state, or its last one if it is gone."""

    kind: Kind
    object: Object
    is_gone: bool


def listed(client: Client, scope: Scope) -> tuple[list[Object], str]:
    """All objects, and the version to watch from; raises ``SourceError`` or ``RelistError``."""
    found: list[Object] = []
    proceed = ""
    while True:
        params = {**scope.params, "limit": str(_PAGE)}
        if proceed:
            params["continue"] = proceed
        try:
            page = client.read("GET", scope.kind.url(scope.namespace), params=params)
            found += page["items"] or ()
            meta = page["metadata"]
            proceed = meta.get("continue") or ""
            version = str(meta["resourceVersion"])
        except StatusError as error:
            if error.status == 410:
                raise RelistError("the list went on for too long") from None
            raise
        except (KeyError, TypeError, AttributeError):
            raise SourceError(f"{client.url} answers with what is no list") from None
        if not proceed:
            return found, version


class Watches:
    """Watches of several scopes, each with its own thread and connection."""

    def __init__(self, connect: Callable[[], Client], versions: Mapping[Scope, str]) -> None:
        """Watches each scope from its version on; nothing is requested before ``events``."""
        self._connect = connect
        self._versions = dict(versions)
        self._heard = dict.fromkeys(versions, 0.0)
        self._told: queue.Queue[Event | Exception] = queue.Queue()
        self._ended = threading.Event()

    def events(self, goes_on: Callable[[], bool]) -> Iterator[Sequence[Event]]:
        """Events as they arrive; those of one scope are in order.

        An empty sequence is a sign of life: every scope has been heard since the last yield. Ends
        when ``goes_on`` returns false, or by raising ``SourceError`` or ``RelistError``.
        """
        lived = 0.0
        for scope in self._versions:
            threading.Thread(target=self._follow, args=(scope,), daemon=True).start()
        try:
            while goes_on():
                events = self._gathered()
                oldest = min(self._heard.values())
                if events or oldest > lived:
                    lived = oldest
                    yield events
        finally:
            self._ended.set()

    def _gathered(self) -> Sequence[Event]:
        """The events of a tick, gathered, since a rollout changes a slice and its Pods at once."""
        found: list[Event] = []
        pause = _TICK_SECS
        while True:
            try:
                told = self._told.get(timeout=pause)
            except queue.Empty:
                return found
            if isinstance(told, Exception):
                raise told
            found.append(told)
            pause = _GATHER_SECS

    def _follow(self, scope: Scope) -> None:
        """Watch one scope in a thread of its own, opening the watch again when it ends."""
        kind = scope.kind
        client: Client | None = None
        try:
            client = self._connect()
            while not self._ended.is_set():
                params = {
                    **scope.params,
                    "watch": "1",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": self._versions[scope],
                    "timeoutSeconds": str(WATCH_SECS),
                }
                stream = client.send(
                    "GET",
                    kind.url(scope.namespace),
                    params=params,
                    read_secs=SILENT_SECS,
                    stream=True,
                )
                self._heard[scope] = time.monotonic()
                for event in documents(stream):
                    if self._ended.is_set():
                        return
                    self._hear(scope, event)
        except StatusError as error:
            gone = error.status == 410
            self._told.put(RelistError("history is gone") if gone else error)
        except Quiet:
            assert client is not None
            text = f"{client.url} is silent: no {kind.name} and no end within {SILENT_SECS:g} s"
            self._told.put(SourceError(text))
        except Exception as error:
            self._told.put(error)
        finally:
            if client is not None:
                client.close()

    def _hear(self, scope: Scope, event: Any) -> None:
        kind = scope.kind
        try:
            happened, item = event["type"], event["object"]
            if happened == "ERROR":
                text = f"{kind.name}: {item.get('message', 'no reason')}"
                raise (RelistError if item.get("code") == 410 else SourceError)(text)
            version = str(item["metadata"]["resourceVersion"])
        except (KeyError, TypeError, AttributeError):
            raise SourceError(f"the watch of {kind.name} tells what is no event") from None
        self._versions[scope] = version
        self._heard[scope] = time.monotonic()
        if happened != "BOOKMARK":
            self._told.put(Event(kind, item, happened == "DELETED"))
