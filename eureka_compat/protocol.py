"""Every Eureka v2 endpoint as a function from a request to an answer, free of any web framework.

The routes hand each request here, and any faster way in calls the same functions: one meaning. A
path is taken raw and split before it is decoded, so an id may hold ``%2F``, and what follows the
application in ``apps/APP/…`` is the id even where it holds slashes. Source: protocol section 2.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from eureka_compat import codecs, wire
from eureka_compat.answers import JSON, XML, Answers, Form
from eureka_compat.pieces import EncodedAnswer
from eureka_compat.settings import EurekaSettings
from eureka_http.exchange import (
    NEXT_LINE,
    UNREAD_BODY_BYTES,
    Answer,
    BodyTooLargeError,
    Promise,
    Request,
)
from registry import (
    Instance,
    InstanceStatus,
    InvalidIdentityError,
    NamespaceRegistry,
    NotYetError,
    QuotaError,
    Registering,
    RegistryError,
    SourceConflictError,
    StoreError,
)

log = logging.getLogger("eureka")

PARSE_FAILURE = "cannot parse request body"


class _RefusedError(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


OK = Answer(200)
NO_CONTENT = Answer(204)
NOT_FOUND = Answer(404)


def _bodiless(answer: Answer) -> Answer:
    """Without the body of a refusal: Java clients would decode it as an instance."""
    if answer.status >= 300 and answer.status != 409:
        return Answer(answer.status, headers=answer.headers)
    return answer


def _wrong_method(*allowed: str) -> Answer:
    return Answer(405, headers={"Allow": ",".join((*allowed, "OPTIONS"))})


# Negotiation


def _accepted_rank(accept: str, wanted: str) -> tuple[float, int, int]:
    """The best quality that an Accept header gives a media type, how exactly and how early.

    A quality of 0 is the least there is, and still one: to the original, too.
    """
    kind, _, form = wanted.partition("/")
    specificity = {wanted: 2, f"{kind}/*": 1, f"*/{form}": 1, "*/*": 0, "*": 0}
    best = _UNACCEPTED
    for position, part in enumerate(accept.split(",")):
        media, _, parameters = part.partition(";")
        quality = 1.0
        for parameter in parameters.split(";"):
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = -1.0
        exactness = specificity.get(media.strip().lower())
        if exactness is not None and quality >= 0:
            best = max(best, (quality, exactness, -position))
    return best


_UNACCEPTED = (-1.0, 0, 0)


@functools.lru_cache(maxsize=256)
def negotiated(accept: str | None) -> str | None:
    """XML or JSON by quality, the more exact range, the earlier range, XML; None for neither (406).

    Each range counts for itself, as JAX-RS has it: ``application/json, */*`` is JSON.
    """
    if not accept or accept.strip() in ("", "*/*"):
        return XML
    json_rank = _accepted_rank(accept, JSON)
    xml_rank = _accepted_rank(accept, XML)
    if json_rank == xml_rank == _UNACCEPTED:
        return None
    return JSON if json_rank > xml_rank else XML


class Protocol:
    """The Eureka v2 protocol over one namespace of a registry. Thread-safe."""

    def __init__(
        self,
        registry: NamespaceRegistry,
        settings: EurekaSettings,
    ) -> None:
        """Serve what is in that namespace."""
        self._registry = registry
        self.settings = settings
        self._answers = Answers(registry)
        # How the lists that were asked for are answered, by their path and the request's shape.
        self._reads: dict[tuple[str, _Shape], Read] = {}
        self._promised: list[tuple[Promise, Registering]] = []
        self._started = time.monotonic()
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

        None where it is to be quick, and takes long: then it is to be asked for in a thread.
        """
        try:
            if request.method == "GET":
                read = self.remembered(path, _shape(request.headers))
                answer = read(request.is_quick) if read is not None else None
                if answer is not None:
                    return answer
            return self._dispatch(request, path)
        except NotYetError:
            return None
        except _REFUSALS as error:
            return _refusal(error, request.method, path)

    def admit(self, request: Request, path: str) -> Answer | int:
        """What can be said before the body has come: the refusal, or how long it may be."""
        resource, rest = _split(path)
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
        resource, rest = _split(path)
        handler = self._handlers.get(resource)
        if handler is None:
            return NOT_FOUND
        answer = handler(request, path, rest)
        return _bodiless(answer) if request.method in ("PUT", "DELETE") else answer

    # apps

    def _apps(self, request: Request, path: str, rest: list[str]) -> Answer:
        method = request.method
        if len(rest) <= 1 and (not rest or rest[0] == "delta"):
            if method == "OPTIONS":
                return Answer(200, headers={"Allow": "GET,HEAD,OPTIONS"})
            if method not in ("GET", "HEAD"):
                return _wrong_method("GET", "HEAD")
            if rest and not self.settings.delta_enabled:
                self._form(request)  # what cannot be accepted is refused first
                return Answer(403)
            return self._list(
                request, path, self._answers.delta if rest else self._answers.applications
            )
        app = unquote(rest[0])
        if len(rest) == 1:
            if method in ("GET", "HEAD"):
                fetch = functools.partial(self._answers.application, app)
                return self._list(request, path, fetch)
            if method == "POST":
                return self._register(request, app)
            return _wrong_method("GET", "HEAD", "POST")
        return self._instance_resource(request, app, rest[1:])

    def _list(
        self, request: Request, path: str, fetch: Callable[..., EncodedAnswer | None]
    ) -> Answer:
        """Answer with a list, and remember how for the next request of this shape."""
        form = self._form(request)
        zipped = "gzip" in request.headers.get("accept-encoding", "").lower()

        def find(is_quick: bool) -> Answer | None:
            encoded = fetch(form=form, zipped=zipped, is_quick=is_quick)
            if encoded is None:
                return None
            return encoded.gzipped() if zipped else encoded.plain()

        def read(is_quick: bool = True) -> Answer | None:
            try:
                return find(is_quick)
            except NotYetError:
                return None

        answer = find(request.is_quick)
        if answer is None:
            return NOT_FOUND
        if request.method == "GET":
            if len(self._reads) >= _REMEMBERED_READS:
                self._reads.clear()
            self._reads[path, _shape(request.headers)] = read
        return answer

    def remembered(self, path: str, shape: _Shape) -> Read | None:
        """How a list is read that was asked for before."""
        return self._reads.get((path, shape))

    def _register(self, request: Request, app: str) -> Answer:
        body = _body(request, self.settings.max_instance_bytes)
        return self.register(app, body, _is_json(request.headers), _is_replication(request.headers))

    def register(self, app: str, body: bytes, is_json: bool, is_replication: bool) -> Answer:
        """Register the instance that the body spells (2.4); raises what ``Registry`` raises."""
        instance = self._posted(app, body, is_json)
        if isinstance(instance, Answer):
            return instance
        self._registry.register(instance, is_replication=is_replication)
        return NO_CONTENT

    def register_soon(
        self, app: str, body: bytes, is_json: bool, is_replication: bool
    ) -> Answer | Promise:
        """As ``register``, together with others; the refusal of a body comes at once.

        To be called, as ``settle``, in the event loop's thread.
        """
        instance = self._posted(app, body, is_json)
        if isinstance(instance, Answer):
            return instance
        promise = Promise()
        self._promised.append((promise, Registering(instance, is_replication)))
        return promise

    def settle(self) -> None:
        """Register what was promised."""
        promised, self._promised = self._promised, []
        wanted = [registering for _, registering in promised]
        outcomes: list[RegistryError | None]
        try:
            outcomes = self._registry.register_all(wanted)
        except StoreError as error:
            outcomes = [error] * len(wanted)
        for (promise, wish), outcome in zip(promised, outcomes, strict=True):
            promise.answer = (
                NO_CONTENT
                if outcome is None
                else _refusal(outcome, "POST", f"apps/{wish.instance.app}")
            )

    def _posted(self, app: str, body: bytes, is_json: bool) -> Instance | Answer:
        """The instance that a body spells, or why it spells none."""
        try:
            if is_json:
                tree = codecs.instance_tree_from_json(body)
            else:
                tree = codecs.instance_tree_from_xml(body)
            candidate = wire.read_candidate(tree)
        except wire.ParseError as error:
            return _parse_failure(str(error), is_json)
        try:
            return wire.validated(candidate, app, self._registry.clock.wall_ms())
        except wire.InvalidInstanceError as error:
            return _plain(400, str(error))

    def _instance_resource(self, request: Request, app: str, rest: list[str]) -> Answer:
        method = request.method
        if method in ("PUT", "DELETE") and len(rest) > 1 and rest[-1] in ("status", "metadata"):
            instance_id = unquote("/".join(rest[:-1]))
            if rest[-1] == "status":
                if method == "PUT":
                    return self._set_status(request, app, instance_id)
                return self._delete_status(request, app, instance_id)
            if method == "PUT":
                return self._metadata(request, app, instance_id)
            return _wrong_method("PUT")
        instance_id = unquote("/".join(rest))
        if method in ("GET", "HEAD"):
            return self.instance(app, instance_id, negotiated(request.headers.get("accept")))
        if method == "PUT":
            return self._heartbeat(request, app, instance_id)
        if method == "DELETE":
            gone = self._registry.cancel(app, instance_id)
            return OK if gone else NOT_FOUND
        return _wrong_method("GET", "HEAD", "PUT", "DELETE")

    def instance(self, app: str, instance_id: str, media: str | None) -> Answer:
        """One instance (2.7), in the media type that was negotiated."""
        return self._entity(media, self._registry.renewed(app, instance_id))

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

    def _heartbeat(self, request: Request, app: str, instance_id: str) -> Answer:
        query = _query(request)
        return self.heartbeat(
            app,
            instance_id,
            query.get("lastDirtyTimestamp"),
            query.get("overriddenstatus"),
            _is_replication(request.headers),
            negotiated(request.headers.get("accept")),
        )

    def heartbeat(
        self,
        app: str,
        instance_id: str,
        dirty: str | None,
        override: str | None,
        is_replication: bool,
        media: str | None,
    ) -> Answer:
        """Renew (2.6), with the two values of the query; ``media`` is for the entity of a 409."""
        status, conflict = self._renew(
            app, instance_id, dirty, override, is_replication=is_replication
        )
        if conflict is not None:
            return self._entity(media, (conflict, conflict.last_renewal_ms), 409)
        return OK if status == 200 else Answer(status)

    def _renew(
        self,
        app: str,
        instance_id: str,
        dirty: str | None,
        override: str | None,
        *,
        is_replication: bool,
    ) -> tuple[int, Instance | None]:
        """Renew, then compare dirty timestamps (2.6): a status, and the entity of a 409."""
        incoming = None
        if dirty is not None:
            incoming = _timestamp(dirty)
            if incoming is None:
                # To the original, who cannot be renewed comes first.
                found = self._registry.instance(app, instance_id)
                known = found is not None and found.status is not InstanceStatus.UNKNOWN
                return (400 if known else 404), None
        stored = override is not None and override != "UNKNOWN"
        instance = self._registry.renew(app, instance_id)
        if instance is None:
            return 404, None
        if incoming is None or not self.settings.sync_when_timestamp_differs:
            return 200, None
        if incoming > instance.last_dirty_ms:
            if is_replication and stored:
                status = _status_name(override)
                if status is None:
                    return 400, None
                self._registry.store_override(app, instance_id, status, last_dirty_ms=incoming)
            return 404, None
        if incoming < instance.last_dirty_ms and is_replication:
            # Where it is gone by now, the one that was compared.
            current = self._registry.instance(app, instance_id)
            return 409, current or instance
        return 200, None

    def _set_status(self, request: Request, app: str, instance_id: str) -> Answer:
        query = _query(request)
        code = self._override(
            app, instance_id, query.get("value"), query.get("lastDirtyTimestamp"), remove=False
        )
        return Answer(code)

    def _delete_status(self, request: Request, app: str, instance_id: str) -> Answer:
        query = _query(request)
        value = query.get("value", "UNKNOWN")
        code = self._override(app, instance_id, value, query.get("lastDirtyTimestamp"), remove=True)
        return Answer(code)

    def _override(
        self, app: str, instance_id: str, value: str | None, dirty: str | None, *, remove: bool
    ) -> int:
        registry = self._registry
        if registry.instance(app, instance_id) is None:
            return 404
        status = _status_name(value)
        timestamp = 0 if dirty is None else _timestamp(dirty)
        if status is None or timestamp is None:
            return 400
        change = registry.remove_override if remove else registry.set_override
        known = change(app, instance_id, status, last_dirty_ms=timestamp)
        return 200 if known is not None else 404

    def _metadata(self, request: Request, app: str, instance_id: str) -> Answer:
        metadata: dict[str, str] = {}
        for key, value in parse_qsl(request.query, keep_blank_values=True):
            if key:
                metadata.setdefault(key, value)
        # An expired lease counts as unknown, as for every read of one instance.
        if self._registry.instance(app, instance_id) is None:
            return NOT_FOUND
        known = self._registry.update_metadata(app, instance_id, metadata)
        return OK if known else NOT_FOUND

    # instances, vips, status, asg

    def _instances(self, request: Request, _: str, rest: list[str]) -> Answer:
        if not rest:
            return NOT_FOUND
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET", "HEAD")
        found = self._registry.instance_by_id(unquote("/".join(rest)))
        media = negotiated(request.headers.get("accept"))
        return self._entity(media, found and (found, found.last_renewal_ms))

    def _vips(self, request: Request, path: str, rest: list[str], *, secure: bool) -> Answer:
        if not rest:
            return NOT_FOUND
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET", "HEAD")
        fetch = functools.partial(self._answers.vip, unquote("/".join(rest)), secure=secure)
        return self._list(request, path, fetch)

    def _status(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest:
            return NOT_FOUND
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET", "HEAD")
        media = negotiated(request.headers.get("accept"))
        if media is None:
            return Answer(406)
        tree = {
            "generalStats": _general_stats(self._started, self.settings),
            "applicationStats": {
                "registered-replicas": "",
                "available-replicas": "",
                "unavailable-replicas": "",
            },
        }
        if media == JSON:
            return Answer(200, codecs.to_json({**tree, "healthy": True}), JSON)
        body = codecs.to_xml("com.netflix.eureka.util.StatusInfo", tree)
        return Answer(200, body.rstrip("\n").encode(), XML)

    def _server_info(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest != ["statusoverrides"]:
            return NOT_FOUND
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET", "HEAD")
        view = self._registry.view()
        with view.lock:
            overrides = {key: str(status) for key, status in view.overrides.items()}
        return Answer(200, codecs.to_json(overrides), JSON)

    def _asg(self, request: Request, _: str, rest: list[str]) -> Answer:
        if len(rest) != 2 or rest[1] != "status":
            return NOT_FOUND
        return Answer(400) if request.method == "PUT" else _wrong_method("PUT")

    # peers

    def _peer_replication(self, request: Request, _: str, rest: list[str]) -> Answer:
        if rest != ["batch"]:
            return NOT_FOUND
        if request.method != "POST":
            return _wrong_method("POST")
        body = _body(request, self.settings.max_batch_bytes)
        if not _is_json(request.headers):
            return Answer(415)
        try:
            items = _batch_items(codecs.batch_from_json(body))
        except wire.ParseError as error:
            return _parse_failure(str(error), True)
        results: list[tuple[int, Instance | None]] = [self._batch_item(item) for item in items]
        responses: list[dict[str, Any]] = []
        for status, entity in results:
            response: dict[str, Any] = {"statusCode": status}
            if entity is not None:
                # Entities show the state after the whole batch, as the original's do.
                current = self._registry.instance(entity.app, entity.id)
                response["responseEntity"] = wire.instance_tree(current or entity)
            responses.append(response)
        if negotiated(request.headers.get("accept")) == XML:
            # No peer asks for it; the original names its classes here, and so do we.
            return Answer(200, _batch_as_xml(responses), XML)
        return Answer(200, codecs.to_json({"responseList": responses}), JSON)

    def _batch_item(self, item: dict[str, Any]) -> tuple[int, Instance | None]:
        """One action as a replication call (9.3): its status, and the entity of a 409."""
        app, instance_id = item.get("appName"), item.get("id")
        action = item.get("action")
        dirty = item.get("lastDirtyTimestamp")
        if not isinstance(app, str) or not isinstance(instance_id, str):
            return 500, None
        try:
            if action == "Register":
                return self._batch_register(app, item), None
            if action == "Heartbeat":
                told = None if dirty is None else str(dirty)
                override = item.get("overriddenStatus")
                code, entity = self._renew(app, instance_id, told, override, is_replication=True)
                return (500 if code == 400 else code), entity
            if action == "Cancel":
                gone = self._registry.cancel(app, instance_id)
                return (200 if gone else 404), None
            if action == "StatusUpdate":
                code = self._override(
                    app, instance_id, item.get("status"), str(dirty or 0), remove=False
                )
                return (500 if code == 400 else code), None
            if action == "DeleteStatusOverride":
                if dirty is None:
                    return 500, None
                value = item.get("status")
                value = "UNKNOWN" if value is None else value
                code = self._override(app, instance_id, value, str(dirty), remove=True)
                return (500 if code == 400 else code), None
        except (SourceConflictError, InvalidIdentityError, QuotaError) as error:
            log.warning("refused from a peer: %s", error)
            return 500, None
        return 500, None

    def _batch_register(self, app: str, item: dict[str, Any]) -> int:
        candidate = item.get("instanceInfo")
        if candidate is None:
            return 500
        try:
            instance = wire.validated(candidate, app, self._registry.clock.wall_ms())
        except wire.InvalidInstanceError as error:
            # The original answers 200 even for an instance that it refused.
            log.warning("a peer sent an instance that is none: %s", error)
            return 200
        self._registry.register(instance, is_replication=True)
        return 200

    def _form(self, request: Request) -> Form:
        """The form of a list answer: JSON where ``Accept`` says json anywhere (2.0).

        That is its first line, where there are several.
        """
        accept = request.headers.get("accept", "")
        if negotiated(accept) is None:
            raise _RefusedError(Answer(406))
        is_json = "json" in accept.partition(NEXT_LINE)[0].lower()
        if request.headers.get("x-eureka-accept", "").lower() == "compact":
            return Form.COMPACT_JSON if is_json else Form.COMPACT_XML
        return Form.JSON if is_json else Form.XML


class Caller:
    """Requests that have the same header fields: what these decide is decided once.

    It answers what comes by the thousand, with the functions that ``Protocol.answer`` uses, and
    leaves all else to that.
    """

    def __init__(self, protocol: Protocol, base: str, headers: Mapping[str, str]) -> None:
        """``base`` is the path that the protocol is served below, with a slash at its end."""
        self._protocol = protocol
        self._base = base
        instance = rf"{re.escape(base)}(?:v2/)?apps/([^/%?#;]+)/([^/%?#;]+)"
        self._instance = re.compile(instance).fullmatch
        # What clients send with each heartbeat.
        told = r"(?:\?status=[A-Z_]+&lastDirtyTimestamp=([0-9]{1,18}))?"
        self._heartbeat = re.compile(instance + told).fullmatch
        self._application = re.compile(rf"{re.escape(base)}(?:v2/)?apps/([^/%?#;]+)").fullmatch
        self._shape = _shape(headers)
        self._reads: dict[str, Read] = {}
        self._media = negotiated(headers.get("accept"))
        self._is_replication = _is_replication(headers)
        self._longest = protocol.settings.max_instance_bytes
        self._posts_json: bool | None = None
        if "content-encoding" not in headers:
            with contextlib.suppress(_RefusedError):
                self._posts_json = _is_json(headers)

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        """The answer to a request; None where it is none of the usual ones. Never raises for it."""
        try:
            if method == "GET":
                read = self._reads.get(target)
                if read is not None:
                    return read()
                return self._first(target)
            if method == "PUT":
                beat = self._heartbeat(target)
                if beat is not None:
                    app, instance_id, dirty = beat.groups()
                    return _bodiless(
                        self._protocol.heartbeat(
                            app, instance_id, dirty, None, self._is_replication, self._media
                        )
                    )
            elif method == "POST" and self._posts_json is not None:
                posted = self._application(target)
                if posted is not None and posted[1] != "delta" and len(body) <= self._longest:
                    return self._protocol.register_soon(
                        posted[1], body, self._posts_json, self._is_replication
                    )
        except _REFUSALS as error:
            return _refusal(error, method, target)
        return None

    def reader(self, target: str) -> Read | None:
        """What gives the list that this target stands for, once it was asked for."""
        return self._reads.get(target)

    def _first(self, target: str) -> Answer | None:
        one = self._instance(target)
        if one is not None:
            return self._protocol.instance(one[1], one[2], self._media)
        path = target.partition("?")[0]
        if path.startswith(self._base):
            read = self._protocol.remembered(path[len(self._base) :], self._shape)
            if read is not None:
                if len(self._reads) >= _REMEMBERED_READS:
                    self._reads.clear()
                self._reads[target] = read
                return read()
        return None


def _split(path: str) -> tuple[str, list[str]]:
    """The resource that a path names, and what follows it."""
    raw = path.split("/")
    if raw[0].startswith("v2") and len(raw) > 1:
        raw = raw[1:]  # to the original, too, whatever begins so is a version
    while len(raw) > 1 and raw[0] in ("", "."):
        raw = raw[1:]
    if len(raw) > 1 and raw[-1] == "":
        raw.pop()  # one trailing slash is as good as none
    return raw[0], raw[1:]


Read = Callable[..., Answer | None]
"""Answers with a list as it is now; with None where there is none of this name, or where it takes
long, unless it is told (with False) that it need not be quick."""

_Shape = tuple[str | None, str | None, str | None]
_REMEMBERED_READS = 1024
_REFUSALS = (
    _RefusedError,
    SourceConflictError,
    InvalidIdentityError,
    QuotaError,
    BodyTooLargeError,
    StoreError,
)


def _refusal(error: Exception, method: str, path: str) -> Answer:
    """What one of the errors in ``_REFUSALS`` is to a client."""
    match error:
        case _RefusedError():
            return error.answer
        case SourceConflictError():
            return _plain(409, str(error))
        case InvalidIdentityError():
            return _plain(400, str(error))
        case QuotaError():
            return _plain(403, str(error))
        case BodyTooLargeError():
            return Answer(413)
        case _:
            log.error("%s %s refused: %s", method, path, error)
            return Answer(503, headers={"Retry-After": "1"})


def _shape(headers: Mapping[str, str]) -> _Shape:
    """All of the fields that the answer with a list depends on."""
    find = headers.get
    return find("accept"), find("x-eureka-accept"), find("accept-encoding")


def _query(request: Request) -> dict[str, str]:
    """The query's first value for each name."""
    values: dict[str, str] = {}
    query = request.query
    if "%" in query or "+" in query:
        for key, value in parse_qsl(query, keep_blank_values=True):
            values.setdefault(key, value)
        return values
    # What clients send with each heartbeat needs no decoding.
    for part in query.split("&"):
        if part:
            key, _, value = part.partition("=")
            values.setdefault(key, value)
    return values


def _is_replication(headers: Mapping[str, str]) -> bool:
    told = headers.get("x-netflix-discovery-replication")
    # Of several lines, the first counts.
    return told is not None and told.partition(",")[0].strip() == "true"


_LONG = re.compile(r"[+-]?\d{1,100}")


def _timestamp(text: str) -> int | None:
    """Digits and nothing beside them, as Java's ``Long.valueOf`` takes them."""
    if len(text) < 19 and text.isascii() and text.isdecimal():
        return int(text)  # what clients send, the shortest way
    if not _LONG.fullmatch(text):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def _status_name(text: str | None) -> InstanceStatus | None:
    try:
        return InstanceStatus(text) if text else None
    except ValueError:
        return None


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether a POST body is JSON (else XML); 415 for any other type or charset."""
    media, _, parameters = headers.get("content-type", "").partition(";")
    media = media.strip().lower()
    if media not in (JSON, XML):
        raise _RefusedError(Answer(415))
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in (
            "utf-8",
            "iso-8859-1",
        ):
            raise _RefusedError(Answer(415))
    return media == JSON


def _body(request: Request, limit: int) -> bytes:
    body = request.read_body(limit)
    if request.headers.get("content-encoding", "").lower() != "gzip":
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            body = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _RefusedError(_plain(400, f"not a gzip body: {error}")) from error
    if len(body) > limit:
        raise BodyTooLargeError
    return body


def _plain(status: int, text: str) -> Answer:
    return Answer(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


def _parse_failure(detail: str, is_json: bool) -> Answer:
    """The refusal of a body: the original's text, then the field and what was expected."""
    message = f"{PARSE_FAILURE}: {detail}"
    if is_json:
        body = json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")
        return Answer(400, body, JSON)
    body = codecs.to_xml("error", {"message": message}, indent=False).encode()
    return Answer(400, body, XML)


_BATCH_KEYS = {
    "appName",
    "id",
    "lastDirtyTimestamp",
    "overriddenStatus",
    "status",
    "instanceInfo",
    "action",
}
_BATCH_ACTIONS = {"Register", "Heartbeat", "Cancel", "StatusUpdate", "DeleteStatusOverride"}


def _batch_items(document: Any) -> list[dict[str, Any]]:
    """The items of a batch; ``ParseError`` where any is not as a genuine peer sends it."""
    if not isinstance(document, dict) or not isinstance(document.get("replicationList"), list):
        raise wire.ParseError("replicationList: expected an array")
    items: list[dict[str, Any]] = document["replicationList"]
    for position, item in enumerate(items):
        path = f"replicationList[{position}]"
        if not isinstance(item, dict):
            raise wire.ParseError(f"{path}: expected an object")
        unknown = item.keys() - _BATCH_KEYS
        if unknown:
            raise wire.ParseError(f"{path}.{min(unknown)}: unknown key")
        action = item.get("action")
        if action is not None and (not isinstance(action, str) or action not in _BATCH_ACTIONS):
            raise wire.ParseError(f"{path}.action: expected one of {sorted(_BATCH_ACTIONS)}")
        for name in ("appName", "id", "status", "overriddenStatus"):
            if item.get(name) is not None:
                item[name] = wire.scalar(item[name], f"{path}.{name}")
        told = f"{path}.lastDirtyTimestamp"
        item["lastDirtyTimestamp"] = wire.long_number(item.get("lastDirtyTimestamp"), told)
        if item.get("instanceInfo") is not None:
            tree = codecs.as_read_from_json(item["instanceInfo"])
            item["instanceInfo"] = wire.read_candidate(tree)
    return items


def _batch_as_xml(responses: list[dict[str, Any]]) -> bytes:
    package = "com.netflix.eureka.cluster.protocol"
    lines = [f"<{package}.ReplicationListResponse>"]
    if responses:
        lines.append("  <responseList>")
        for response in responses:
            item = codecs.to_xml(f"{package}.ReplicationInstanceResponse", response, 2)
            lines.append(item.rstrip("\n"))
        lines.append("  </responseList>")
    else:
        lines.append("  <responseList/>")
    lines.append(f"</{package}.ReplicationListResponse>")
    return "\n".join(lines).encode()


def _general_stats(started: float, settings: EurekaSettings) -> dict[str, str]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[1]) * page
    minutes = int(time.monotonic() - started) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    clock = f"{hours:02d}:{minutes % 60:02d}"
    megabyte = 1024 * 1024
    return {
        "environment": settings.environment,
        "num-of-cpus": str(os.cpu_count() or 1),
        "total-avail-memory": f"{total // megabyte}mb",
        "current-memory-usage": f"{used // megabyte}mb ({100 * used // total}%)",
        "server-uptime": clock if not days else f"{days} day{'s' * (days > 1)} {clock}",
    }
