"""Every Eureka v2 endpoint as a function from a request to an answer, free of any web framework.

A path is taken raw and split before it is decoded, so an id may hold ``%2F``, and what follows the
application in ``apps/APP/…`` is the id even where it holds slashes. Source: protocol section 2.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from urllib.parse import unquote

from eureka_compat.actions import NO_CONTENT, Actions, AskerOf
from eureka_compat.batch import Batches
from eureka_compat.encoded import EncodedAnswers
from eureka_compat.negotiation import (
    JSON,
    Form,
    ListFields,
    is_json_body,
    is_peers_fetch,
    is_replication,
    list_fields,
    list_form,
    negotiated,
    read_body,
    takes_gzip,
)
from eureka_compat.past import Past
from eureka_compat.peers import leases
from eureka_compat.peers.seen import ALONE, PeersSeen
from eureka_compat.pieces import EncodedAnswer
from eureka_compat.refusals import (
    NOT_FOUND,
    NOT_OPEN,
    REFUSALS,
    RefusalError,
    bodiless,
    refusal,
    wrong_method,
)
from eureka_compat.routes import REGISTER, ROUTES, route, split
from eureka_compat.server_status import ServerStatus, status_overrides
from eureka_compat.settings import EurekaSettings
from eureka_http.cache import Cache
from eureka_http.counting import UNMEASURED, Requests
from eureka_http.exchange import UNREAD_BODY_BYTES, Answer, Promise, Request
from registry import Instance, NamespaceRegistry, NotYetError

OK = Answer(200)
_READING = ("GET", "HEAD")
_MOST_READERS = 1024
_MOST_READERS_BYTES = 1024 * 1024

ListReader = Callable[..., Answer | None]
"""Gives a list as it is now. None where there is none of this name, or where making it takes long;
called with False it takes the time."""


class EurekaApi:
    """The Eureka v2 protocol over one namespace of a registry. Thread-safe.

    ``answer`` and ``admit`` take any request. The other methods are what ``answer`` itself calls,
    for ``EurekaLane``, which knows what most requests ask for without a ``Request``.
    """

    def __init__(
        self,
        registry: NamespaceRegistry,
        settings: EurekaSettings,
        peers: PeersSeen = ALONE,
        requests: Requests | None = None,
    ) -> None:
        """Serve what is in that namespace, once ``peers`` says that there is something to serve.

        All requests are counted in ``requests``, which knows the protocol's ``ROUTES``.
        """
        self._peers = peers
        self._registry = registry
        self.settings = settings
        self.requests = Requests(ROUTES) if requests is None else requests
        self._answers = EncodedAnswers(
            registry, settings.regions.values(), falls_back=settings.falls_back
        )
        self._past = Past(registry)
        self._actions = Actions(registry, settings, self.requests)
        self._batches = Batches(registry, self._actions, settings.max_batch_bytes)
        self._server_status = ServerStatus(settings, peers)
        self.list_readers: Cache[tuple[str, ListFields], ListReader] = Cache(
            _MOST_READERS, most_bytes=_MOST_READERS_BYTES, size_of=_size_of
        )
        """What gives each list that was asked for, by its path and the request's ``list_fields``.

        It is never out of date: what a reader gave last it gives again only while the view is of
        the same version, and a delta until its oldest change leaves the window.
        """
        self._handlers: dict[str, Callable[[Request, str, list[str]], Answer]] = {
            "apps": self._apps,
            "instances": self._instances,
            "vips": functools.partial(self._vips, secure=False),
            "svips": functools.partial(self._vips, secure=True),
            "status": self._status,
            "serverinfo": self._server_info,
            "asg": self._asg,
            "peerreplication": self._peer_replication,
        }

    def answer(self, request: Request, path: str) -> Answer | None:
        """The answer to a request for ``path`` below the protocol's base; never raises for it.

        None where the request ``is_quick`` and its answer takes long: it is to be asked for again,
        in a thread.
        """
        query = request.query
        if request.method == "GET" and not (query and (self.settings.regions or "at=" in query)):
            read = self.list_readers.get((path, list_fields(request.headers)))
            try:
                answer = read(request.is_quick) if read is not None else None
            except REFUSALS as error:
                answer = refusal(error, request.method, path)
            if answer is not None:
                return answer
        began = time.perf_counter()
        try:
            answer = self._dispatch(request, path)
        except NotYetError:
            return None
        except REFUSALS as error:
            answer = refusal(error, request.method, path)
        took = time.perf_counter() - began
        self.requests.note(self.route(request.method, path), answer.status, took, answer.length)
        return answer

    def route(self, method: str, path: str) -> str:
        """What a request is counted as."""
        return route(method, *split(path))

    def admit(self, request: Request, path: str) -> Answer | int:
        """What can be said before the body has come: the refusal, or how long it may be."""
        resource, rest = split(path)
        if resource not in self._handlers:
            return NOT_FOUND
        limit = UNREAD_BODY_BYTES
        if request.method == "POST":
            if resource == "apps" and len(rest) == 1 and rest[0] != "delta":
                limit = self.settings.max_instance_bytes
            elif resource == "peerreplication" and rest == ["batch"]:
                limit = self.settings.max_batch_bytes
        return Answer(413) if request.announced() > limit else limit

    def _dispatch(self, request: Request, path: str) -> Answer:
        resource, rest = split(path)
        handler = self._handlers.get(resource)
        if handler is None:
            return NOT_FOUND
        answer = handler(request, path, rest)
        return bodiless(answer) if request.method in ("PUT", "DELETE") else answer

    # For lanes

    def instance(self, app: str, instance_id: str, media: str | None) -> Answer:
        """One instance (2.7), in the media type that was negotiated."""
        if not self._peers.is_open():
            raise RefusalError(NOT_OPEN)
        return self._entity(media, self._registry.renewed(app, instance_id))

    def heartbeat(
        self,
        app: str,
        instance_id: str,
        dirty: str | None,
        override: str | None,
        is_replication: bool,
        media: str | None,
        is_quick: bool,
    ) -> Answer:
        """Renew (2.6), with two values of the query; ``media`` is for the instance of a 409.

        ``NotYetError`` where it ``is_quick``, and more than a lease is to be written.
        """
        status, conflict = self._actions.renew(
            app, instance_id, dirty, override, is_replication=is_replication, is_quick=is_quick
        )
        if conflict is not None:
            return self._entity(media, (conflict, conflict.last_renewal_ms), 409)
        return OK if status == 200 else self._unless_not_open(Answer(status), is_replication)

    def _unless_not_open(self, answer: Answer, is_replication: bool) -> Answer:
        """The answer; but who is not found before a peer has told who there is, may well be there.

        A client that is told 404 registers again. Told 503, it goes to another server.
        """
        if answer.status == 404 and not is_replication and not self._peers.is_open():
            return NOT_OPEN
        return answer

    def register_soon(
        self,
        app: str,
        body: bytes,
        is_json: bool,
        is_replication: bool,
        by: AskerOf | None = None,
    ) -> Answer | Promise:
        """Register what the body spells (2.4) at the next ``settle``; a refused body at once.

        To be called, as ``settle``, in the event loop's thread.
        """
        instance = self._actions.parsed(app, body, is_json)
        if isinstance(instance, Answer):
            self.requests.note(REGISTER, instance.status, None, instance.length)
            return instance
        return self._actions.register_soon(instance, is_replication, by)

    def settle(self) -> None:
        """Register what was promised."""
        self._actions.settle()

    def settle_apart(self) -> Callable[[], None]:
        """Take what was promised; what is returned registers it, in any thread."""
        return self._actions.settle_apart()

    # apps

    def _apps(self, request: Request, path: str, rest: list[str]) -> Answer:
        method = request.method
        if "at=" in request.query and method in _READING and rest != ["delta"]:
            found = self._past.answer(request, [unquote(name) for name in rest])
            if found is not None:
                return found
        if len(rest) <= 1 and (not rest or rest[0] == "delta"):
            if method == "OPTIONS":
                return Answer(200, headers={"Allow": "GET,HEAD,OPTIONS"})
            if method not in _READING:
                return wrong_method(*_READING)
            if rest and not self.settings.delta_enabled:
                list_form(request.headers)  # what cannot be accepted is refused first
                return Answer(403)
            fetch: Callable[..., EncodedAnswer]
            fetch = self._answers.delta if rest else self._answers.applications
            without = self._left_out(request)
            if without:
                fetch = functools.partial(self._answers.selected, without, is_delta=bool(rest))
            if request.query and self.settings.regions:
                # What is kept by the path alone is for those who ask for no region.
                path = f"{path}?{request.query}"
            return self._list(request, path, fetch)
        app = unquote(rest[0])
        if len(rest) == 1:
            if method in _READING:
                fetch_one = functools.partial(self._answers.application, app)
                return self._list(request, path, fetch_one)
            if method == "POST":
                return self._register(request, app)
            return wrong_method(*_READING, "POST")
        return self._instance_resource(request, app, rest[1:])

    def _left_out(self, request: Request) -> frozenset[str]:
        """The sources of those remote regions that a request does not ask for (2.1).

        Who asks for none is shown all of them, unless the fallback to them is switched off.
        """
        regions = self.settings.regions
        asked = request.parameters().get("regions") if regions and request.query else None
        if not asked:
            return frozenset() if self.settings.falls_back else frozenset(regions.values())
        names = asked.lower().split(",")
        return frozenset(source for name, source in regions.items() if name not in names)

    def _list(
        self, request: Request, path: str, fetch: Callable[..., EncodedAnswer | None]
    ) -> Answer:
        """Answer with a list, and keep how for the next request that asks for it so."""
        if not self._peers.is_open() and not is_peers_fetch(request.headers):
            raise RefusalError(NOT_OPEN)
        form = list_form(request.headers)
        zipped = takes_gzip(request.headers)
        encoded = fetch(form=form, zipped=zipped, is_quick=request.is_quick)
        if encoded is None:
            return NOT_FOUND
        if request.method == "GET":
            read = self._reader(fetch, form, zipped, self.route("GET", path))
            self.list_readers.keep((path, list_fields(request.headers)), read)
        return encoded.gzipped() if zipped else encoded.plain()

    def _reader(
        self, fetch: Callable[..., EncodedAnswer | None], form: Form, zipped: bool, name: str
    ) -> ListReader:
        """What gives a list, and counts it: this is the way that takes microseconds."""
        requests, numbers = self.requests, self.requests.numbers
        place, sent = requests.place(name), requests.bytes_place(name)
        find_view, mono_ms = self._registry.view, self._registry.clock.mono_ms
        # What was sent last, its length, of which version of the view it is, and until when it
        # holds. One tuple, for several threads may read.
        last: tuple[int, int | None, Answer, int] | None = None

        def read(is_quick: bool = True) -> Answer | None:
            nonlocal last
            began = 0.0 if numbers[place] & UNMEASURED else time.perf_counter()
            view = find_view()
            if (
                last is not None
                and (kept := last)[0] == view.version
                and (kept[1] is None or mono_ms() <= kept[1])
            ):
                _, _, answer, length = kept
            else:
                # Before the answer is made: it may be newer than this says, never older.
                version = view.version
                try:
                    encoded = fetch(form=form, zipped=zipped, is_quick=is_quick)
                except NotYetError:
                    return None
                if encoded is None:
                    return None
                answer = encoded.gzipped() if zipped else encoded.plain()
                length = answer.length
                last = version, encoded.until, answer, length
            numbers[place] += 1
            numbers[sent] += length
            if began:
                requests.took(place, time.perf_counter() - began)
            return answer

        return read

    def _register(self, request: Request, app: str) -> Answer:
        body = read_body(request, self.settings.max_instance_bytes)
        headers = request.headers
        instance = self._actions.parsed(app, body, is_json_body(headers))
        if isinstance(instance, Answer):
            return instance
        self._actions.register(instance, is_replication=is_replication(headers))
        return NO_CONTENT

    def _instance_resource(self, request: Request, app: str, rest: list[str]) -> Answer:
        method, actions = request.method, self._actions
        is_peers = is_replication(request.headers)
        if method in ("PUT", "DELETE") and len(rest) > 1 and rest[-1] in ("status", "metadata"):
            instance_id = unquote("/".join(rest[:-1]))
            told = request.parameters()
            if rest[-1] == "metadata":
                if method != "PUT":
                    return wrong_method("PUT")
                metadata = {key: value for key, value in told.items() if key}
                return self._unless_not_open(
                    _coded(actions.update_metadata(app, instance_id, metadata)), is_peers
                )
            change = actions.update_status if method == "PUT" else actions.delete_override
            status = change(
                app,
                instance_id,
                told.get("value"),
                told.get("lastDirtyTimestamp"),
                is_replication=is_peers,
            )
            return self._unless_not_open(_coded(status), is_peers)
        instance_id = unquote("/".join(rest))
        if method in _READING:
            return self.instance(app, instance_id, negotiated(request.headers.get("accept")))
        if method == "PUT":
            return self._heartbeat(request, app, instance_id, is_peers)
        if method == "DELETE":
            status = actions.cancel(app, instance_id, is_replication=is_peers)
            return self._unless_not_open(_coded(status), is_peers)
        return wrong_method(*_READING, "PUT", "DELETE")

    def _heartbeat(self, request: Request, app: str, instance_id: str, is_peers: bool) -> Answer:
        told = request.parameters()
        return self.heartbeat(
            app,
            instance_id,
            told.get("lastDirtyTimestamp"),
            told.get("overriddenstatus"),
            is_peers,
            negotiated(request.headers.get("accept")),
            request.is_quick,
        )

    def _entity(
        self, media: str | None, found: tuple[Instance, int] | None, status: int = 200
    ) -> Answer:
        """An instance, and when it was last renewed."""
        if media is None:
            return Answer(406)
        if found is None:
            return NOT_FOUND
        form = Form.JSON if media == JSON else Form.XML
        return Answer(status, self._answers.instance(*found, form), media)

    # instances, vips, status, serverinfo, asg, peerreplication

    def _instances(self, request: Request, _: str, rest: list[str]) -> Answer:
        if not rest:
            return NOT_FOUND
        if request.method not in _READING:
            return wrong_method(*_READING)
        found = self._registry.instance_by_id(unquote("/".join(rest)))
        media = negotiated(request.headers.get("accept"))
        return self._entity(media, found and (found, found.last_renewal_ms))

    def _vips(self, request: Request, path: str, rest: list[str], *, secure: bool) -> Answer:
        if not rest:
            return NOT_FOUND
        if request.method not in _READING:
            return wrong_method(*_READING)
        fetch = functools.partial(self._answers.vip, unquote("/".join(rest)), secure=secure)
        return self._list(request, path, fetch)

    def _status(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest:
            return NOT_FOUND
        if request.method not in _READING:
            return wrong_method(*_READING)
        return self._server_status.answer(negotiated(request.headers.get("accept")))

    def _server_info(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest != ["statusoverrides"]:
            return NOT_FOUND
        if request.method not in _READING:
            return wrong_method(*_READING)
        return status_overrides(self._registry.view())

    def _asg(self, request: Request, _: str, rest: list[str]) -> Answer:
        if len(rest) != 2 or rest[1] != "status":
            return NOT_FOUND
        return Answer(400) if request.method == "PUT" else wrong_method("PUT")

    def _peer_replication(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest == ["leases"]:
            if request.method not in _READING:
                return wrong_method(*_READING)
            if request.is_quick:
                raise NotYetError
            return leases.answer(self._registry, is_shadow=self._peers.is_shadow())
        if rest != ["batch"]:
            return NOT_FOUND
        if request.method != "POST":
            return wrong_method("POST")
        return self._batches.answer(request)


def _coded(status: int) -> Answer:
    return OK if status == 200 else Answer(status)


def _size_of(key: tuple[str, ListFields]) -> int:
    path, fields = key
    return len(path) + sum([len(value) for value in fields if value is not None])
