"""From any request to its meaning: access, namespace, then the protocol or the native API.

Both ways in ask this one: the WSGI application for everything, and the event-loop worker first
for what can be answered at once (``fast_lane``).
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

from eureka_compat import EurekaApi, EurekaLane, EurekaSettings
from eureka_compat.peers.seen import ALONE, PeersSeen
from eureka_compat.routes import RENEW
from eureka_compat.routes import ROUTES as EUREKA_ROUTES
from eureka_http.counting import Requests
from eureka_http.exchange import UNREAD_BODY_BYTES, Answer, Lane, Request, Stream
from eureka_http.shown import caller
from eureka_server.access import Access, Grant
from eureka_server.fetches import Fetches
from eureka_server.paths import EUREKA, below_eureka, is_below, normalised
from native_api import api, description
from native_api.api import NativeApi
from native_api.problems import problem
from native_api.settings import NativeSettings
from native_api.status import Server
from registry import DEFAULT_NAMESPACE, Asker, Namespace, Registry, StoreError, asking

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# What the operator's page keeps as a cookie, and what it sends of it with each change.
_PAGE_COOKIE, _PAGE_FIELD = "registry-page", "x-registry-page"
_ACCOUNT = f"{api.BASE}/account"
_FAST_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE", "POST"})
# A registration is read in the loop; a peer's batch of hundreds would hold the others up.
_FAST_BODY_BYTES = 16 * 1024
_OPEN_BEFORE_PEERS = tuple(
    f"{api.BASE}/{name}" for name in ("account", "peers", "catalogs", "status")
)
_UNKNOWN = Answer(503, headers={"Retry-After": "1"})
OTHER = "other"
"""What neither the protocol nor the native API answers: probes, and what is not there at all."""
METRICS = "metrics"
_NATIVE_ROUTES = {
    (name, method): f"native-{verb}"
    for name, verbs in {
        "instances": {"GET": "list", "POST": "register"},
        "instance": {"GET": "show", "PUT": "change", "DELETE": "cancel"},
        "heartbeat": {"PUT": "renew"},
        "services": {"GET": "services"},
        "service": {"GET": "service"},
        "watch": {"GET": "watch"},
    }.items()
    for method, verb in verbs.items()
}
NATIVE_RENEW = "native-renew"
_NATIVE_OTHER = "native-other"
ROUTES = (*EUREKA_ROUTES, *dict.fromkeys(_NATIVE_ROUTES.values()), _NATIVE_OTHER, METRICS, OTHER)
"""What requests are counted as."""
_T = TypeVar("_T")
Watched = tuple[str, Mapping[str, str], Iterator[bytes]]
"""A watch that holds a thread: its media type, header fields, and what it tells."""


class Gateway:
    """All endpoints of the protocol and of the native API, in every namespace. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        eureka: EurekaSettings,
        native: NativeSettings,
        access: Access,
        catalogs: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        peers: PeersSeen = ALONE,
        server: Server | None = None,
        requests: Requests | None = None,
        threads: int = 8,
        writes_wait: bool = False,
    ) -> None:
        """Serve the registry's namespaces to those whom ``access`` lets in.

        ``catalogs`` tells how each catalog is, as JSON values; ``server`` what is the same in all
        namespaces. All requests are counted in ``requests``, which knows the ``ROUTES``. Of the
        ``threads`` that answer, half may look much up. ``writes_wait``: to write may mean to wait
        for another machine, so it is done in threads alone.
        """
        self._server = server
        self.fetches = Fetches(registry.readers, registry.clock, access.asker)
        """Who was given lists."""
        self.requests = Requests(ROUTES) if requests is None else requests
        self.watching_threads = 0
        self._may_look_up = threading.BoundedSemaphore(max(1, threads // 2))
        self._writes_wait = writes_wait
        self._peers = peers
        self._catalogs = catalogs
        self._registry = registry
        self._eureka_settings = eureka
        self._native_settings = native
        self._access = access
        self._asker = self._asked_by
        self._lock = threading.Lock()
        self._eureka_apis: dict[Namespace, EurekaApi] = {}
        self._native_apis: dict[Namespace, NativeApi] = {}
        # Those with watchers; also of namespaces that nothing else is kept of, as yet.
        self._watched: set[NativeApi] = set()
        self._descriptions: Mapping[str, Callable[[], Answer]] = {
            f"{api.BASE}/openapi.json": lambda: description.openapi(native),
            f"{api.BASE}/docs": description.page,
        }
        self._eureka_api(DEFAULT_NAMESPACE)

    def answer(self, request: Request) -> Answer | Watched:
        """The answer to a request below one of the bases, in a thread that may wait."""
        if is_below(request.path, api.BASE):
            return self._native_answer(request)
        if not is_below(request.path, EUREKA):
            path = normalised(request.path)
            if path is None:
                return Answer(404)
            request = replace(request, path=path)
        answer = self._eureka_answer(request)
        assert answer is not None  # only a quick one may be unsure, or takes too long
        return answer

    def fast_lane(self, request: Request) -> Answer | Stream | None:
        """The same answer, where it can be had without waiting; None where that is not sure.

        To be called, as ``tick``, in the event loop's thread.
        """
        if request.method not in _FAST_METHODS:
            return None
        request.is_quick = True
        path = request.path
        if is_below(path, EUREKA):
            headers = request.headers
            length = headers.get("content-length")
            if length is not None and int(length) > _FAST_BODY_BYTES:
                return None
            if "transfer-encoding" in headers:
                return None
            if request.method == "POST" and "content-encoding" in headers:
                # A few bytes may be megabytes, and thousands of heartbeats.
                return None
            if self._writes_wait and self._is_write(request):
                return None
            return self._eureka_answer(request, quick=True)
        if not is_below(path, api.BASE):
            below = normalised(path)
            return None if below is None else self.fast_lane(replace(request, path=below))
        if path in self._descriptions:
            return None
        began = time.perf_counter()
        found = self._fast_native(request)
        if found is not None:
            self._note_native(request, found, began)
        return found

    def _is_write(self, request: Request) -> bool:
        """Whether a request of the protocol may be written to the store.

        A heartbeat hardly ever is: where it has to be, that is noticed before anything is done.
        """
        if request.method in ("GET", "HEAD"):
            return False
        rest, _ = below_eureka(request.path)
        return self._eureka_api(DEFAULT_NAMESPACE).route(request.method, rest) != RENEW

    def _fast_native(self, request: Request) -> Answer | Stream | None:
        if is_cross_site(request):
            return _elsewhere()
        grant = self._access.grant(request, quick=True)
        if not isinstance(grant, Grant):
            return grant
        if self._is_waiting(request):
            return _not_open()
        native = self._native_api(grant.namespace)
        if native.is_watch(request):
            return self._watch(native, request, grant)
        if request.path == _ACCOUNT:
            return self._account(request, grant)
        if request.method == "GET" or request.path.rstrip("/").endswith("/heartbeat"):
            return self._as(grant, request, lambda: native.answer(request, is_admin=grant.is_admin))
        return None

    def _note_native(
        self, request: Request, found: Answer | Stream | Watched, began: float
    ) -> None:
        """Count what was asked of the native API; of a stream, that it began."""
        secs = time.perf_counter() - began
        route = native_route(request.method, request.path)
        if isinstance(found, Answer):
            self.requests.note(route, found.status, secs, found.length)
        else:
            self.requests.note(route, 200, secs)

    def admit(self, request: Request) -> Answer | int | None:
        """What can be said before the body has come: the refusal, or how long it may be.

        None for a path below neither base. Where it is not yet sure whose a request is, its body
        may come. To be called in the event loop's thread.
        """
        found, route = self._admitted(request)
        if isinstance(found, Answer):
            self.requests.note(route, found.status, None, found.length)
        return found

    def _admitted(self, request: Request) -> tuple[Answer | int | None, str]:
        path = request.path
        if is_below(path, api.BASE):
            return self._admitted_native(request), native_route(request.method, path)
        if not is_below(path, EUREKA):
            below = normalised(path)
            if below is None:
                return None, OTHER
            path = below
        rest, token = below_eureka(path)
        eureka = self._eureka_api(DEFAULT_NAMESPACE)
        found: Answer | int | None = _ELSEWHERE
        if not is_cross_site(request):
            grant = self._access.grant(request, token, quick=True)
            found = grant if isinstance(grant, Answer) else eureka.admit(request, rest)
        return found, eureka.route(request.method, rest)

    def _admitted_native(self, request: Request) -> Answer | int:
        if request.path in self._descriptions and request.method in ("GET", "HEAD"):
            return UNREAD_BODY_BYTES
        if is_cross_site(request):
            return _elsewhere()
        grant = self._access.grant(request, quick=True)
        if isinstance(grant, Answer):
            return grant
        return self._native_api(DEFAULT_NAMESPACE).admit(request)

    def lane(self, headers: Mapping[str, str]) -> Lane | None:
        """How requests with these fields are answered in the fast lane, as far as these decide it.

        None where it also matters who sends them, or from which page a browser does. To be called,
        as what it returns and ``settle``, in the event loop's thread.
        """
        if not self._access.is_open or not _FROM_PAGES.isdisjoint(headers):
            return None
        api, access = self._eureka_apis[DEFAULT_NAMESPACE], self._access
        return EurekaLane(api, f"{EUREKA}/", headers, partial(access.asker, "", headers))

    def settle(self) -> None:
        """Keep what the lanes promised."""
        self._eureka_apis[DEFAULT_NAMESPACE].settle()

    def settle_apart(self) -> Callable[[], None]:
        """Take what the lanes promised; what is returned keeps it, in any thread."""
        return self._eureka_apis[DEFAULT_NAMESPACE].settle_apart()

    def watchers(self) -> int:
        """How many clients of this process are told of changes as they happen."""
        return sum([native.watchers() for native in list(self._watched)]) + self.watching_threads

    def tick(self) -> None:
        """Tell the watchers of streams what has changed."""
        for native in list(self._watched):
            native.tick()
            if not native.watchers():
                self._watched.discard(native)

    def _watch(self, native: NativeApi, request: Request, grant: Grant) -> Answer | Stream:
        stream = native.stream(request, self._holds(request, grant))
        if isinstance(stream, Answer):
            return stream

        def subscribe(write: Any, end: Any) -> Any:
            self._watched.add(native)
            return stream.subscribe(write, end)

        return Stream(stream.content_type, stream.headers, subscribe)

    def _eureka_answer(self, request: Request, *, quick: bool = False) -> Answer | None:
        rest, token = below_eureka(request.path)
        grant: Grant | Answer | None = _ELSEWHERE
        if not is_cross_site(request):
            grant = self._access.grant(request, token, quick=quick)
        if isinstance(grant, Grant):
            try:
                eureka = self._eureka_api(grant.namespace)
            except StoreError:
                grant = _UNKNOWN
            else:
                return self._as(grant, request, lambda: eureka.answer(request, rest))
        if grant is not None:
            route = self._eureka_api(DEFAULT_NAMESPACE).route(request.method, rest)
            self.requests.note(route, grant.status, None)
        return grant

    def _native_answer(self, request: Request) -> Answer | Watched:
        began = time.perf_counter()
        found = self._native_found(request)
        self._note_native(request, found, began)
        return found

    def _native_found(self, request: Request) -> Answer | Watched:
        described = self._descriptions.get(request.path)
        if described is not None and request.method in ("GET", "HEAD"):
            return described()
        if is_cross_site(request):
            return _elsewhere()
        grant = self._access.grant(request)
        if not isinstance(grant, Grant):
            return grant
        if self._is_waiting(request):
            return _not_open()
        if request.path == _ACCOUNT:
            return self._account(request, grant)
        native = self._native_api(grant.namespace)
        if native.is_watch(request):
            return native.watched(request, self._holds(request, grant))
        if not native.is_costly(request):
            return self._answered(native, request, grant)
        # Probes and registrations wait for a thread as well: these must not have all of them.
        if not self._may_look_up.acquire(blocking=False):
            return _busy()
        try:
            return self._answered(native, request, grant)
        finally:
            self._may_look_up.release()

    def _answered(self, native: NativeApi, request: Request, grant: Grant) -> Answer:
        answer = self._as(grant, request, lambda: native.answer(request, is_admin=grant.is_admin))
        assert answer is not None  # only a quick one may take too long
        return answer

    def _as(self, grant: Grant, request: Request, work: Callable[[], _T]) -> _T:
        """Have log, history and readers say who asked for what they tell of."""
        before = caller.set(grant)
        asked = asking.set(partial(self._asker, grant, request))
        try:
            found = work()
        finally:
            asking.reset(asked)
            caller.reset(before)
        if isinstance(found, Answer) and found.revision:
            self.fetches.note(request, grant.namespace, found)
        return found

    def _account(self, request: Request, grant: Grant) -> Answer:
        """Who asks, and what that allows: so a page need not offer what would be refused."""
        if request.method not in ("GET", "HEAD"):
            return problem(405, "allowed here: GET, HEAD", headers={"Allow": "GET, HEAD"})
        told = {
            "mode": self._access.mode,
            "user": grant.user,
            "namespace": grant.namespace,
            "is_admin": grant.is_admin,
            "may_write": self._access.may_write(request),
        }
        return Answer(200, orjson.dumps(told), "application/json", {"Cache-Control": "no-store"})

    def _asked_by(self, grant: Grant, request: Request) -> Asker:
        return self._access.asker(grant.user, request.headers, request.peer)

    def _is_waiting(self, request: Request) -> bool:
        """Whether a native read asks what this server does not know before a peer has answered."""
        if self._peers.is_open() or request.method not in ("GET", "HEAD"):
            return False
        return not request.path.startswith(_OPEN_BEFORE_PEERS)

    def _holds(self, request: Request, grant: Grant) -> Callable[[], bool]:
        """Whether what was granted for a request that goes on still holds, whenever it is asked."""
        access = self._access
        seen = access.version

        def holds() -> bool:
            nonlocal seen
            if grant.until <= time.time():
                return False
            if access.version == seen:
                return True
            seen = access.version
            # A user whose line has changed is not known any more, and comes back with a password.
            again = access.grant(request, quick=True)
            return isinstance(again, Grant) and again == grant

        return holds

    def _eureka_api(self, namespace: Namespace) -> EurekaApi:
        """The protocol over a namespace; ``StoreError`` where the store does not tell of it."""
        found = self._eureka_apis.get(namespace)
        if found is None:
            found = EurekaApi(
                self._registry.in_namespace(namespace),
                self._eureka_settings,
                self._peers,
                self.requests,
            )
            found = self._kept(self._eureka_apis, namespace, found)
        return found

    def _native_api(self, namespace: Namespace) -> NativeApi:
        found = self._native_apis.get(namespace)
        if found is None:
            found = NativeApi(
                self._registry.in_namespace(namespace),
                self._native_settings,
                self._catalogs,
                self._peers.report,
                self._access.origin,
                self._server,
            )
            found = self._kept(self._native_apis, namespace, found)
        return found

    def _kept(self, among: dict[Namespace, _T], namespace: Namespace, made: _T) -> _T:
        """Keep what was made for a namespace that holds something: anybody may ask for any."""
        if not self._registry.keeps(namespace):
            return made
        with self._lock:
            for other in list(among):
                if not self._registry.keeps(other):
                    del among[other]
            return among.setdefault(namespace, made)


def is_cross_site(request: Request) -> bool:
    """Whether a page of another site has a browser change something here, perhaps unknowingly.

    Only browsers send these fields, and no page can leave them out or choose them. Beside them the
    operator's page has a token: a browser that keeps it as a cookie must send it in a field too,
    which a page of another site cannot read, and may not send.
    """
    if request.method in _READING:
        return False
    headers = request.headers
    cookie = headers.get("cookie")
    if cookie is not None and not _has_token(cookie, headers.get(_PAGE_FIELD, "")):
        return True
    told = headers.get("sec-fetch-site")
    if told is not None:
        return told not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def native_route(method: str, path: str) -> str:
    """What a request below the native API's base is counted as."""
    name, *rest = path[len(api.BASE) :].strip("/").split("/")
    if name == "instances" and rest:
        name = "heartbeat" if rest[1:] == ["heartbeat"] else "instance" if not rest[1:] else ""
    elif name == "services" and rest:
        name = "service" if not rest[1:] else ""
    return _NATIVE_ROUTES.get((name, "GET" if method == "HEAD" else method), _NATIVE_OTHER)


def _has_token(cookie: str, field: str) -> bool:
    """Whether the page's token, where it is among the cookies, stands in the field as well."""
    kept = [
        value
        for name, _, value in (each.strip().partition("=") for each in cookie.split(";"))
        if name == _PAGE_COOKIE
    ]
    return all(hmac.compare_digest(value.encode(), field.encode()) for value in kept)


# By these a request is known that a browser sends for a page.
_FROM_PAGES = frozenset({"origin", "sec-fetch-site", "cookie"})
# Without a body: clients decode the bodies of error pages.
_ELSEWHERE = Answer(403, headers={"X-Refused": "cross-site"})


def _not_open() -> Answer:
    text = "this server has just started empty and waits for its peers"
    return problem(503, text, headers={"Retry-After": "1"})


def _busy() -> Answer:
    text = "as much is looked up here as may be at once; try again in a moment"
    return problem(429, text, headers={"Retry-After": "1"})


def _elsewhere() -> Answer:
    return problem(403, "a page of another site may change nothing here")
