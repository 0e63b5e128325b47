"""The native REST API over one namespace, as functions from a request to an answer.

Source of the pattern: the Amalgam8 registry, whose clients are served unchanged (``QUIRKS.md``).
Free of any web framework.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson

from eureka_http.exchange import Answer, BodyTooLargeError, Request, Stream
from eureka_http.shown import masked
from native_api import form, watch, why
from native_api.bodies import JSON, MAX_BODY_BYTES, json_answer, json_body
from native_api.history import Past
from native_api.lists import COLUMNS, DETAILS, Lists, Wanted, without_comma
from native_api.observed import Observed
from native_api.operations import Operations
from native_api.preservation import accept_loss
from native_api.problems import ProblemError, gone, problem
from native_api.schemas import Schemas
from native_api.search import DEFAULT_LIMIT, MAX_LIMIT, Pages, Search, SearchError
from native_api.settings import NativeSettings
from native_api.status import Server, Status
from native_api.transfer import MAX_IMPORT_BYTES, Transfer
from registry import (
    RENEWAL_REFUSED,
    RENEWAL_UNKNOWN,
    Instance,
    InstanceStatus,
    InvalidIdentityError,
    NamespaceRegistry,
    NotYetError,
    QuotaError,
    SourceConflictError,
    StoreError,
)

BASE = "/api/v1"

_T = TypeVar("_T")
_Handler = Callable[[Request, str], Answer]
# Given whatever ``fields`` names; and what it may name, but no list has.
_ALWAYS = ("id", "endpoint")
_NAMEABLE = frozenset((*COLUMNS, *DETAILS, "links"))
_FILTERS = frozenset({"id", "service_name", "status", "tags", "fields", "at"})
# With any of these a list comes page by page.
_PAGING = frozenset({"q", "limit", "after"})
_COSTLY = frozenset({"history", "diff", "findings", "series", "readers", "export"})
_COSTLY_QUERY = _PAGING | {"at"}
_LONG = 64 * 1024
_MOST_DIGITS = 20
_ALONE = "This server has no peers."
_DEFAULT_WAIT_SECS, _MAX_WAIT_SECS = 30, 300


class NativeApi:
    """The API over one namespace. Thread-safe but for ``stream`` and ``tick``: one thread's."""

    def __init__(
        self,
        registry: NamespaceRegistry,
        settings: NativeSettings,
        catalogs: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        peers: Callable[[], Mapping[str, Any]] = dict,
        origin: Callable[[Request], str] = lambda _: "",
        server: Server | None = None,
    ) -> None:
        """Serve ``namespace``.

        ``catalogs`` tells how each catalog is, and ``peers`` how each peer, as JSON values;
        ``origin`` what the URLs of a request begin with, or nothing where that is not known;
        ``server`` what is the same in all namespaces.
        """
        self._catalogs = catalogs
        self._peers = peers
        self._origin = origin
        self._registry = registry
        self._settings = settings
        self._schemas = Schemas(settings)
        self._lists = Lists(registry)
        self._pages = Pages(registry, self._lists)
        self._hub = watch.Hub(registry, self._lists)
        self._server = server or Server()
        self._status = Status(registry, self._server, catalogs, peers)
        self._past = Past(registry)
        self._observed = Observed(registry, self._server)
        operations = Operations(registry, self._schemas)
        self._transfer = Transfer(registry, settings, self._schemas)
        # What answers about one instance, and about one service, by the last word of the path.
        self._of_instance: Mapping[str, Mapping[str, _Handler]] = {
            "": {"GET": self._show, "PUT": self._change, "DELETE": operations.remove},
            "heartbeat": {"PUT": self._heartbeat},
            "why": {"GET": self._why},
            "history": {"GET": self._past.of_instance},
            **operations.of_instance,
        }
        self._of_service: Mapping[str, Mapping[str, _Handler]] = {
            "": {"GET": self._service, "DELETE": operations.remove_all},
            **operations.of_service,
        }

    def answer(self, request: Request, *, is_admin: bool = False) -> Answer | None:
        """The answer to any request below ``/api/v1``; never raises for what a client sent.

        None where it is to be quick, and takes long: then it is to be asked for in a thread. An
        administrator sees all of the catalogs, others what they bring to this namespace.
        """
        try:
            answer = self._dispatch(request, is_admin)
        except NotYetError:
            return None
        except ProblemError as refused:
            return refused.answer
        except SourceConflictError as error:
            return problem(409, str(error))
        except QuotaError as error:
            return problem(403, str(error))
        except InvalidIdentityError as error:
            return problem(400, str(error), errors={"service_name": str(error)})
        except BodyTooLargeError:
            return _too_long(_longest_body(request))
        except StoreError as error:
            return _store_failed(error)
        return answer

    def admit(self, request: Request) -> Answer | int:
        """What can be said before the body has come: the refusal, or how long it may be."""
        try:
            if not self.is_watch(request):
                self._routed(request)
        except ProblemError as refused:
            return refused.answer
        limit = _longest_body(request)
        return _too_long(limit) if request.announced() > limit else limit

    def is_watch(self, request: Request) -> bool:
        """Whether the request is answered by ``stream`` (or, in a thread, by ``watched``)."""
        path = request.path[len(BASE) :].rstrip("/")
        return request.method == "GET" and path == "/watch"

    def is_costly(self, request: Request) -> bool:
        """Whether the answer looks at all instances, at the past, or at files, for one caller."""
        if request.method not in ("GET", "HEAD"):
            return False
        words = request.path[len(BASE) :].strip("/").split("/")
        if words[0] in _COSTLY or words[-1] in ("why", "history"):
            return True
        return bool(request.query) and not _COSTLY_QUERY.isdisjoint(request.parameters())

    def stream(self, request: Request, holds: Callable[[], bool] = watch.always) -> Answer | Stream:
        """A watch that costs no thread; to be called, as ``tick``, in the event loop's thread.

        It ends within a second or so when ``holds`` gives False.
        """
        try:
            since, service, wait_secs, wants_snapshot = self._watch_query(request)
            self._registry.view()
        except ProblemError as refused:
            return refused.answer
        except StoreError as error:
            return _store_failed(error)
        is_poll = _wants_json(request)

        def subscribe(write: Any, end: Any) -> Any:
            until = time.monotonic() + wait_secs if is_poll else None
            watcher = watch.Watcher(write, end, service, until, holds, wants_snapshot)
            return self._hub.join(watcher, since)

        return Stream(JSON if is_poll else "text/event-stream", _NO_CACHE, subscribe)

    def tick(self) -> None:
        """Tell the watchers of ``stream`` what has changed."""
        self._hub.tick()

    def watchers(self) -> int:
        """How many wait for ``tick``."""
        return len(self._hub)

    def watched(
        self, request: Request, holds: Callable[[], bool] = watch.always
    ) -> Answer | tuple[str, Mapping[str, str], Any]:
        """A watch in a thread of its own: a media type, headers and an iterator of bytes."""
        try:
            since, service, wait_secs, wants_snapshot = self._watch_query(request)
            self._registry.view()
            if _wants_json(request):
                body = self._hub.polled(since, service, wait_secs, holds, wants_snapshot)
                return Answer(200, body, JSON, _NO_CACHE)
        except ProblemError as refused:
            return refused.answer
        except StoreError as error:
            return _store_failed(error)
        events = self._hub.streamed(since, service, holds, wants_snapshot)
        return "text/event-stream", _NO_CACHE, events

    def _dispatch(self, request: Request, is_admin: bool) -> Answer:
        handler, name = self._routed(request, is_admin)
        return handler(request, name)

    def _routed(self, request: Request, is_admin: bool = False) -> tuple[_Handler, str]:
        """What answers, and whom it is about."""
        parts = [unquote(p) for p in request.path[len(BASE) :].strip("/").split("/")]
        method = "GET" if request.method == "HEAD" else request.method
        handlers: Mapping[str, _Handler]
        match parts:
            case ["instances"]:
                handlers = {"GET": self._list, "POST": self._register}
            case ["instances", *identity, what] if identity and what in self._of_instance:
                handlers = self._of_instance[what]
                parts = ["instances", "/".join(identity)]
            case ["instances", *identity] if identity:
                handlers = self._of_instance[""]
                parts = ["instances", "/".join(identity)]
            case ["services"]:
                handlers = {"GET": self._services}
            case ["services", name]:
                handlers = self._of_service[""]
            case ["services", name, what] if what in self._of_service:
                handlers = self._of_service[what]
                parts = ["services", name]
            case ["history"]:
                handlers = {"GET": self._past.entries}
            case ["diff"]:
                handlers = {"GET": self._past.diff}
            case ["findings"]:
                handlers = {"GET": self._observed.findings}
            case ["series"]:
                handlers = {"GET": self._observed.series if is_admin else self._hide_series}
            case ["readers"]:
                handlers = {"GET": self._observed.readers}
            case ["catalogs"]:
                handlers = {"GET": self._show_catalogs if is_admin else self._show_own_catalogs}
            case ["peers"]:
                handlers = {"GET": self._show_peers if is_admin else self._hide_peers}
            case ["status"]:
                handlers = {"GET": self._show_status if is_admin else self._show_own_status}
            case ["self-preservation", "accept-loss"]:
                handlers = {"POST": self._accept_loss}
            case ["namespaces"]:
                handlers = {"GET": self._namespaces if is_admin else self._own_namespace}
            case ["export"]:
                handlers = {"GET": self._transfer.export}
            case ["import"]:
                handlers = {"POST": self._transfer.take}
            case ["watch"]:
                handlers = {}
            case _:
                text = "there is nothing at this path"
                raise ProblemError(problem(404, text, code="Resource not found"))
        handler = handlers.get(method)
        if handler is None:
            allowed = {*handlers, "HEAD"} if "GET" in handlers else set(handlers)
            allow = ", ".join(sorted(allowed or {"GET"}))
            text = f"allowed here: {allow}"
            refusal = problem(405, text, headers={"Allow": allow}, code="Method not allowed")
            raise ProblemError(refusal)
        return handler, parts[-1]

    # Instances

    def _register(self, request: Request, name: str) -> Answer:
        settings = self._settings
        data = self._schemas.read_registration(json_body(request))
        endpoint = form.parsed_endpoint(data["endpoint"]["type"], data["endpoint"]["value"])
        ttl = data.get("ttl", settings.default_ttl_secs)
        instance = form.complete(
            service_name=data["service_name"],
            endpoint=endpoint,
            ttl_secs=ttl,
            address=form.literal_address(endpoint.host, otherwise=request.peer),
            status=data.get("status", "UP"),
            tags=data.get("tags", ()),
            metadata=data.get("metadata"),
            last_dirty_ms=self._registry.clock.wall_ms(),
        )
        # Told as by a peer: what the instance says of itself counts, below an operator's override.
        self._registry.register(instance, is_replication=True)
        location = f"{self._origin(request)}{request.base}{BASE}/instances/{instance.id}"
        links = {"self": location, "heartbeat": f"{location}/heartbeat"}
        body = {"id": instance.id, "ttl": ttl, "links": links}
        return Answer(201, orjson.dumps(body), JSON, {"Location": location})

    def _heartbeat(self, request: Request, name: str) -> Answer:
        try:
            instance = self._own(name, "error_instance_heartbeat_failure")
        except ProblemError as refused:
            is_unknown = refused.answer.status == 410
            self._registry.counted[RENEWAL_UNKNOWN if is_unknown else RENEWAL_REFUSED] += 1
            raise
        renewed = self._registry.renew(
            instance.app, instance.id, source=form.SOURCE, is_quick=request.is_quick
        )
        if renewed is None:
            self._registry.counted[RENEWAL_UNKNOWN] += 1
            raise ProblemError(gone(name, "error_instance_heartbeat_failure"))
        return json_answer({"id": instance.id, "ttl": instance.duration_secs})

    def _show(self, request: Request, name: str) -> Answer:
        columns = _columns(request.parameters())
        service = _service(request)
        then = self._past.one(request, name, service)
        if then is not None:
            shown = {**form.shown(then), **form.details(then)}
        else:
            instance = self._known(name, service=service)
            is_plain = columns == COLUMNS
            shown = form.shown(instance) if is_plain else self._pages.shown_now(instance)
        return json_answer({column: shown[column] for column in columns})

    def _why(self, request: Request, name: str) -> Answer:
        return json_answer(
            why.document(
                self._registry, name, _service(request), self._catalogs, is_quick=request.is_quick
            )
        )

    def _change(self, request: Request, name: str) -> Answer:
        change = self._schemas.read_change(json_body(request))
        instance = self._known(name, service=_service(request))
        if not instance.is_leased:
            raise ProblemError(problem(409, _belongs(instance)))
        if instance.source != form.SOURCE:
            changed = self._override(instance, change)
        else:
            changed = self._replace(instance, change)
        if changed is None:
            raise ProblemError(gone(name))
        return json_answer(form.shown(changed))

    def _replace(self, instance: Instance, change: Mapping[str, Any]) -> Instance | None:
        """The instance with these fields; its status takes the place of any override."""
        now = self._registry.clock.wall_ms()
        return self._registry.amend(
            instance.app,
            instance.id,
            lambda listed: form.changed(listed, change, now),
            source=form.SOURCE,
            is_replication=True,
            drops_override="status" in change,
        )

    def _override(self, instance: Instance, change: Mapping[str, Any]) -> Instance | None:
        """Of another's instance an operator may set the status, which Eureka clients see too."""
        if set(change) != {"status"}:
            raise ProblemError(problem(409, f"{_belongs(instance)}; only its status can be set"))
        try:
            status = InstanceStatus(change["status"].upper())
        except ValueError:
            words = ", ".join(InstanceStatus)
            text = f"a Eureka instance has one of {words}"
            raise ProblemError(problem(400, text, errors={"status": text})) from None
        # What has its id by now, if it is gone, is not what the operator was shown.
        return self._registry.set_override(
            instance.app, instance.id, status, source=instance.source
        )

    def _known(
        self, instance_id: str, code: str | None = None, service: str | None = None
    ) -> Instance:
        """The instance as lists show it: one whose eviction waits can be renewed or taken out.

        Where an id is in several services, ``service`` decides.
        """
        instance = self._registry.listed_by_id(instance_id, service)
        if instance is None:
            raise ProblemError(gone(instance_id, code))
        return instance

    def _own(self, instance_id: str, code: str) -> Instance:
        """As ``_known``, an instance that was registered through this API."""
        instance = self._known(instance_id, code)
        if instance.source != form.SOURCE:
            raise ProblemError(problem(409, _belongs(instance)))
        return instance

    # Lists

    def _list(self, request: Request, name: str) -> Answer:
        query = request.parameters()
        unknown = sorted(query.keys() - _FILTERS - _PAGING)
        if unknown:
            text = f"expected only {', '.join(sorted(_FILTERS | _PAGING))}"
            raise ProblemError(
                problem(
                    400,
                    f"nothing is listed by {', '.join(unknown)}",
                    errors=dict.fromkeys(unknown, text),
                    code="error_filter_selection_criteria",
                )
            )
        if query.keys() & _PAGING:
            return self._page(request, query)
        return self._listed(request, b"{", query.get("service_name"), self._past.asked(request))

    def _page(self, request: Request, query: Mapping[str, str]) -> Answer:
        """Those that answer a search, in any status unless one is asked for."""
        _check_present(query)
        columns = _columns(query)
        wanted = self._wanted(query, query.get("service_name"))
        if wanted.status is None:
            wanted = wanted._replace(status="ALL")
        page = self._searched(
            query,
            lambda search, limit, after: self._pages.instances(
                search, wanted, limit=limit, after=after, is_quick=request.is_quick
            ),
        )
        found = [{column: each[column] for column in columns} for each in page.found]
        return json_answer(
            {
                "revision": page.revision,
                "total": page.total,
                "next": page.next,
                "instances": found,
            }
        )

    def _services(self, request: Request, name: str) -> Answer:
        query = request.parameters()
        if not query.keys() & _PAGING:
            past = self._past.asked(request)
            if past is not None:
                names = {form.service_name(each) for some in past for each in some}
                return json_answer({"services": sorted(names)})
            return json_answer({"services": self._lists.names()})
        _check_present(query)
        page, instances = self._searched(
            query,
            lambda search, limit, after: self._pages.services(
                search, limit=limit, after=after, is_quick=request.is_quick
            ),
        )
        return json_answer(
            {
                "revision": page.revision,
                "total": page.total,
                "instances": instances,
                "next": page.next,
                "services": page.found,
            }
        )

    def _searched(self, query: Mapping[str, str], search: Callable[[Search, int, str], _T]) -> _T:
        """What a search gives that the query asks for."""
        limit = _whole("limit", query.get("limit", str(DEFAULT_LIMIT)), 1, MAX_LIMIT)
        try:
            wanted = Search.parsed(query.get("q", ""))
        except SearchError as error:
            raise ProblemError(problem(400, str(error), errors={"q": str(error)})) from None
        return search(wanted, limit, query.get("after", ""))

    def _service(self, request: Request, name: str) -> Answer:
        past = self._past.asked(request)
        if past is not None:
            then = [i for portion in past for i in portion if form.is_of(i, name)]
            is_known, past = bool(then), iter([then])
        else:
            is_known = self._lists.has(name)
        if not is_known:
            text = f"no instance of {name!r} is registered"
            return problem(404, text, code="error_service_enumeration")
        return self._listed(request, b'{"service_name":%b,' % orjson.dumps(name), name, past)

    def _show_status(self, request: Request, name: str) -> Answer:
        return json_answer(self._status.document(is_admin=True, is_quick=request.is_quick))

    def _show_own_status(self, request: Request, name: str) -> Answer:
        return json_answer(self._status.document(is_admin=False, is_quick=request.is_quick))

    def _accept_loss(self, request: Request, name: str) -> Answer:
        return accept_loss(self._registry, self._schemas, request)

    def _show_catalogs(self, request: Request, name: str) -> Answer:
        return json_answer({"catalogs": [_without_secrets(report) for report in self._catalogs()]})

    def _show_peers(self, request: Request, name: str) -> Answer:
        return json_answer(self._peers() or {"mode": "alone", "peers": [], "verdict": _ALONE})

    def _hide_peers(self, request: Request, name: str) -> Answer:
        raise ProblemError(problem(403, "only an administrator sees the peers"))

    def _hide_series(self, request: Request, name: str) -> Answer:
        raise ProblemError(problem(403, "it is of all namespaces: only an administrator sees it"))

    def _namespaces(self, request: Request, name: str) -> Answer:
        if request.is_quick:
            raise NotYetError  # the store is asked
        return json_answer({"namespaces": sorted(self._server.namespaces())})

    def _own_namespace(self, request: Request, name: str) -> Answer:
        return json_answer({"namespaces": [self._registry.namespace]})

    def _show_own_catalogs(self, request: Request, name: str) -> Answer:
        """What concerns this namespace: the catalogs that bring something to it, no one's names."""
        view = self._registry.view()
        with view.lock:
            brought = Counter(i.source for a in view.applications.values() for i in a.values())
        return json_answer(
            {
                "catalogs": [
                    {**report, "entries": brought[report["source"]], **_ONLY_ADMINS_SEE}
                    for report in self._catalogs()
                    if brought[report["source"]]
                ]
            }
        )

    def _listed(
        self,
        request: Request,
        opening: bytes,
        service: str | None,
        past: Iterator[list[Instance]] | None,
    ) -> Answer:
        """A list of what is there, or of what was in the past."""
        wanted = self._wanted(request.parameters(), service)
        pieces: Sequence[bytes]
        if past is not None:
            revision = 0
            pieces = without_comma([wanted.spelled(some) for some in past])
        else:
            revision, pieces = self._lists.spelled(wanted, is_quick=request.is_quick)
        answer = _in_parts([opening + b'"instances":[', *pieces, b"]}"])
        answer.revision = revision
        return answer

    def _wanted(self, query: Mapping[str, str], service: str | None) -> Wanted:
        return Wanted(
            service,
            query.get("id"),
            frozenset(query["tags"].split(",")) if "tags" in query else None,
            query["status"].upper() if "status" in query else None,
            _columns(query),
        )

    def _watch_query(self, request: Request) -> tuple[int | None, str | None, float, bool]:
        query = request.parameters()
        told = request.headers.get("last-event-id") or query.get("since")
        since = None if told is None else _whole("since", told, 0, 2**63)
        wait = _whole("wait", query.get("wait", str(_DEFAULT_WAIT_SECS)), 0, _MAX_WAIT_SECS)
        service = query.get("service_name")
        wants_snapshot = query.get("snapshot", "true")
        if wants_snapshot not in ("true", "false"):
            text = "expected true or false"
            raise ProblemError(problem(400, f"snapshot: {text}", errors={"snapshot": text}))
        return since, service or None, float(wait), wants_snapshot == "true"


def _check_present(query: Mapping[str, str]) -> None:
    """Refuse to search in the past, page by page: each page would have to look at all of it."""
    if "at" in query:
        text = "only the present can be searched"
        raise ProblemError(problem(404, text, errors={"at": text}))


_NO_CACHE = {"Cache-Control": "no-store"}


def _without_secrets(report: Mapping[str, Any]) -> dict[str, Any]:
    """A catalog's report; what a source says of itself may hold URLs with accounts."""
    error, problems = report["last_error"], report["problems"]
    return {
        **report,
        "last_error": None if error is None else masked(error),
        "problems": [masked(text) for text in problems],
    }


# Errors and problems may name hosts, files and instances of other namespaces.
_ONLY_ADMINS_SEE: Mapping[str, Any] = {
    "last_error": None,
    "problems": (),
    "shadowed": 0,
    "worker": 0,
}


def _columns(query: Mapping[str, str]) -> tuple[str, ...]:
    """The fields that are asked for: all, or the named ones with those that are always given."""
    named = query.get("fields")
    if named is None:
        return COLUMNS
    columns = set(named.split(",")) if named else set()
    if not columns <= _NAMEABLE:
        text = f"some of {', '.join((*COLUMNS, *DETAILS))}"
        raise ProblemError(
            problem(
                400,
                f"no such field: {named!r}",
                errors={"fields": text},
                code="error_filter_bad_fields",
            )
        )
    return tuple(name for name in (*COLUMNS, *DETAILS) if name in columns or name in _ALWAYS)


def _whole(name: str, text: str, low: int, high: int) -> int:
    # A number of thousands of digits cannot even be read.
    if len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit() and low <= int(text) <= high:
        return int(text)
    expected = f"a whole number from {low} to {high}"
    raise ProblemError(problem(400, f"{name}: expected {expected}", errors={name: expected}))


def _service(request: Request) -> str | None:
    return request.parameters().get("service_name") or None


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "json" in accept and "text/event-stream" not in accept


def _longest_body(request: Request) -> int:
    is_import = request.path[len(BASE) :].rstrip("/") == "/import"
    return MAX_IMPORT_BYTES if is_import else MAX_BODY_BYTES


def _too_long(limit: int) -> Answer:
    return problem(413, f"the body is longer than {limit} bytes")


def _store_failed(error: StoreError) -> Answer:
    return problem(503, str(error), headers={"Retry-After": "1"})


def _in_parts(parts: list[bytes]) -> Answer:
    """An answer that is not copied together where it is long."""
    if sum(map(len, parts)) > _LONG:
        return Answer(200, b"", JSON, {}, parts)
    return Answer(200, b"".join(parts), JSON)


def _belongs(instance: Instance) -> str:
    return f"{instance.id!r} belongs to the source {instance.source!r}"
