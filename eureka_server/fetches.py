"""Which of the answers are read by whom: from what the doors see to the registry's ``Readers``.

Nothing is done about a list on its way out but to note that it was given; a thread makes a reader
of it later (``flush``). On a connection that asks again and gets the same answer, the loop only
sets a time.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from eureka_compat.negotiation import is_peers_fetch
from eureka_compat.routes import fetched
from eureka_http.cache import Cache
from eureka_http.exchange import Answer, Fetcher, Request
from eureka_server.paths import EUREKA, below_eureka
from native_api import api
from registry import DEFAULT_NAMESPACE, Asker, Clock, Namespace, Revision
from registry.readers import ALL, Client, Readers, client, what

_FIELD = re.compile(rb"\r\n([^:\r\n]+):[ \t]*([^\r\n]*)")
_KEPT_ASKED = 1024
_KEPT_BYTES = 2 * 1024 * 1024


class _Asked(NamedTuple):
    """What the bytes of a request ask for, and the fields that say who asks."""

    about: tuple[str, bool] | None
    headers: Mapping[str, str]


class _Given(NamedTuple):
    """An answer that was given: to the bytes of a request, or to one that was read."""

    peer: Any
    revision: int
    fetcher: Fetcher | None = None
    data: bytes = b""
    namespace: Namespace = DEFAULT_NAMESPACE
    headers: Mapping[str, str] = {}
    about: tuple[str, bool] | None = None


class _Gone(NamedTuple):
    """A connection that ended."""

    peer: Any


class Fetches:
    """Notes answers in any thread; one thread calls ``flush``."""

    def __init__(
        self,
        readers: Readers,
        clock: Clock,
        asker: Callable[[str, Mapping[str, str], str], Asker],
    ) -> None:
        """``asker`` tells who sent a request with these header fields."""
        self.readers = readers
        self._clock = clock
        self._asker = asker
        # Given answers, and the peers of connections that ended, as they came.
        self._noted: deque[_Given | _Gone] = deque()
        self._asked: Cache[bytes, _Asked]
        self._asked = Cache(_KEPT_ASKED, most_bytes=_KEPT_BYTES, size_of=len)
        # The readers on each connection of the loop's, and the connections that are given lists.
        self._by_peer: dict[Any, set[Client]] = {}
        self._fetchers: dict[Client, tuple[Fetcher, float]] = {}
        self._has_loop = False

    # On the way out

    def gave(self, fetcher: Fetcher, data: bytes, revision: int) -> None:
        """A lane has given a list; in the event loop's thread."""
        self._noted.append(_Given(fetcher.peer, revision, fetcher, data))

    def gone(self, peer: Any) -> None:
        """A connection has ended; in the event loop's thread."""
        self._has_loop = True
        self._noted.append(_Gone(peer))

    def note(self, request: Request, namespace: Namespace, answer: Answer) -> None:
        """Any request was answered; in any thread."""
        if answer.revision and answer.status == 200 and request.method == "GET":
            about = _about(request.path)
            if about is not None:
                peer = (request.peer, request.port)
                self._noted.append(
                    _Given(peer, answer.revision, None, b"", namespace, request.headers, about)
                )

    # Later

    def flush(self) -> None:
        """Make readers of what was noted."""
        now, began = self._clock.wall_ms(), time.monotonic()
        readers, noted = self.readers, self._noted
        while noted:
            each = noted.popleft()
            if isinstance(each, _Given):
                self._read(each, now)
            else:
                for gone in self._by_peer.pop(_place(each.peer), ()):
                    self._fetchers.pop(gone, None)
                    readers.left(gone, now)
        for reader, (fetcher, seen) in self._fetchers.items():
            at = fetcher.given_at
            if at > seen:
                self._fetchers[reader] = (fetcher, at)
                readers.again(reader, now - int((began - at) * 1000))
        readers.forget(now)

    def _read(self, given: _Given, now: int) -> None:
        about, headers = given.about, given.headers
        if given.fetcher is not None:
            about, headers = self._asked_by(given.data)
        if about is None or is_peers_fetch(headers):
            return
        address, port = _place(given.peer)
        asker = self._asker("", headers, address)
        reader = client(given.namespace, asker.address, port, asker.client, about[0])
        self.readers.note(reader, Revision(given.revision), now, is_delta=about[1])
        if self._has_loop or given.fetcher is not None:
            self._by_peer.setdefault((address, port), set()).add(reader)
        if given.fetcher is not None:
            self._fetchers[reader] = (given.fetcher, given.fetcher.given_at)

    def _asked_by(self, data: bytes) -> _Asked:
        """What a request's bytes ask for. They come again with each fetch of the same client."""
        known = self._asked.get(data)
        if known is not None:
            return known
        target = data.split(b" ", 2)[1].decode("latin-1")
        about = _about(target.partition("?")[0])
        fields = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in _FIELD.findall(data)
        }
        asked = _Asked(about, fields)
        self._asked.keep(data, asked)
        return asked


def _about(path: str) -> tuple[str, bool] | None:
    """What a list is of, and whether it is a delta; None for what is no list."""
    if path.startswith(f"{api.BASE}/"):
        parts = path[len(api.BASE) :].strip("/").split("/")
        if parts == ["instances"]:
            return ALL, False
        if parts[0] == "services" and len(parts) == 2:
            return what("apps", unquote(parts[1]).upper()), False
        return None
    if not path.startswith(f"{EUREKA}/"):
        return None
    found = fetched(below_eureka(path)[0])
    if found is None:
        return None
    kind, name, is_delta = found
    return (what(kind, name) if kind else ALL), is_delta


def _place(peer: Any) -> tuple[str, int]:
    """The address and the port of a peer; what is no TCP connection has none."""
    return (peer[0], peer[1]) if isinstance(peer, tuple) else (str(peer or ""), 0)
