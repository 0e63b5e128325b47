"""Flask's side: it turns a WSGI request into a ``Request``, and an answer into a response."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import PathConverter

from eureka_http.exchange import (
    UNREAD_BODY_BYTES,
    Answer,
    BodyTooLargeError,
    Request,
    is_host,
    plain_address,
)
from eureka_server.gateway import Gateway
from eureka_server.paths import EUREKA, normalised
from native_api import api
from native_api.problems import problem

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


class _AnyPath(PathConverter):
    """What is below a base, whatever it has: line feeds too."""

    regex = "(?s:[^/].*?)"


def blueprint(gateway: Gateway, threads: int) -> Blueprint:
    """One rule takes every path below each base, so that it is split still encoded.

    A watch holds one of the ``threads`` of this process here; half of them at most may.
    """
    routes = Blueprint("registry", __name__)
    watchers = threading.BoundedSemaphore(max(1, threads // 2))

    @routes.before_app_request
    def check_head() -> Response | None:
        """Refuse what HTTP/1.1 forbids (RFC 9112, 3.2 and 6.1) and not every server looks at."""
        coding = request.environ.get("HTTP_TRANSFER_ENCODING")
        if coding is not None and coding.lower() != "chunked":
            # Only the chunks are undone by any server.
            return Response(status=501)
        if "#" in (_raw_target(request.environ) or ""):
            # Whoever sends it means more than would be understood.
            return Response(status=400)
        host = request.environ.get("HTTP_HOST")
        if host is None:
            is_needed = request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
            return Response(status=400) if is_needed else None
        return None if is_host(host) else Response(status=400)

    def answer(rest: str = "") -> Response:
        g.is_of_gateway = True
        asked = _request()
        if asked.announced() > UNREAD_BODY_BYTES:
            refused = gateway.admit(asked)
            if isinstance(refused, Answer):
                return _response(refused)
        try:
            found = gateway.answer(asked)
        except _BrokenBodyError:
            return _response(Answer(400))
        if isinstance(found, Answer):
            return _response(found)
        media, headers, body = found
        if not watchers.acquire(blocking=False):
            text = "every thread for watches is taken; poll, or use the event-loop worker"
            return _response(problem(503, text, headers={"Retry-After": "5"}))
        gateway.watching_threads += 1
        return Response(released(body), 200, dict(headers), content_type=media)

    def released(body: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from body
        finally:
            gateway.watching_threads -= 1
            watchers.release()

    def elsewhere() -> Response | None:
        """What no rule knows may still be a way to write the protocol's base."""
        if not isinstance(request.routing_exception, NotFound) or request.method not in METHODS:
            return None
        return None if normalised(_raw_path(request.environ)) is None else answer()

    routes.before_app_request(elsewhere)
    routes.record(lambda state: state.app.url_map.converters.update(any_path=_AnyPath))
    for base in (EUREKA, api.BASE):
        for rule in (base, f"{base}/", f"{base}/<any_path:rest>"):
            routes.add_url_rule(
                rule,
                "answer",
                answer,
                methods=METHODS,
                provide_automatic_options=False,
                strict_slashes=False,
            )
    return routes


def admission(app: Flask, gateway: Gateway) -> Callable[[Request], Answer | int]:
    """What the event loop asks before a body has come, about every path of the application."""
    paths = app.url_map.bind("")

    def admit(asked: Request) -> Answer | int:
        found = gateway.admit(asked)
        if found is not None:
            return found
        try:
            paths.match(asked.path, asked.method)
        except MethodNotAllowed as error:
            return Answer(405, headers={"Allow": ", ".join(sorted(error.valid_methods or ()))})
        except HTTPException as error:
            return Answer(error.code or 404)
        return Answer(413) if asked.announced() > UNREAD_BODY_BYTES else UNREAD_BODY_BYTES

    return admit


def is_of_gateway() -> bool:
    """Whether the gateway was asked for the answer to the request that is being answered."""
    return bool(g.get("is_of_gateway"))


class _BrokenBodyError(Exception):
    """The body did not come as its head announced."""


def _raw_target(environ: dict[str, Any]) -> str | None:
    return environ.get("RAW_URI") or environ.get("REQUEST_URI")


def _raw_path(environ: dict[str, Any]) -> str:
    """The path as sent. PATH_INFO is decoded, so ``%2F`` is lost in it; most servers keep more."""
    raw = _raw_target(environ)
    if raw is None:
        return quote(environ.get("PATH_INFO", "").encode("latin-1"), safe="/:@!$&'()*+,;=~-._")
    path = raw.partition("?")[0]
    if not path.startswith("/"):  # absolute form, as a proxy sends it
        path = "/" + path.partition("://")[2].partition("/")[2]
    script: str = environ.get("SCRIPT_NAME", "")
    return path[len(script) :] if script and path.startswith(script) else path


def _read_body(limit: int) -> bytes:
    length = request.content_length
    if length is not None and length > limit:
        raise BodyTooLargeError
    try:
        body = request.stream.read(limit + 1)
    except Exception as error:
        # Each server has errors of its own for chunks that are none, and for a client that left.
        raise _BrokenBodyError from error
    if len(body) > limit:
        raise BodyTooLargeError
    if length is not None and len(body) < length:
        raise _BrokenBodyError
    return body


def _request() -> Request:
    environ = request.environ
    return Request(
        request.method,
        _raw_path(environ),
        environ.get("QUERY_STRING", ""),
        {name.lower(): value for name, value in request.headers.items()},
        _read_body,
        environ.get("wsgi.url_scheme", "http"),
        plain_address(environ.get("REMOTE_ADDR", "")),
        environ.get("SCRIPT_NAME", ""),
        port=int(environ.get("REMOTE_PORT") or 0),
    )


def _response(answer: Answer) -> Response:
    response = Response(answer.parts or answer.body, answer.status, dict(answer.headers))
    if answer.content_type is None:
        del response.headers["Content-Type"]
    else:
        response.headers["Content-Type"] = answer.content_type
    return response
