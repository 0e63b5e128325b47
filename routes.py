"""Flask's side: it turns a WSGI request into a ``Request``, and an answer into a response."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from exchange import Answer, BodyTooLargeError, Request
from gateway import EUREKA, Gateway, normalised
from native_api import api
from native_api.problems import problem

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


def blueprint(gateway: Gateway, threads: int) -> Blueprint:
    """One rule takes every path below each base, so that it is split still encoded.

    A watch holds one of the ``threads`` of this process here; half of them at most may.
    """
    routes = Blueprint("registry", __name__)
    watchers = threading.BoundedSemaphore(max(1, threads // 2))

    def answer(rest: str = "") -> Response:
        found = gateway.answer(_request())
        if isinstance(found, Answer):
            return _response(found)
        media, headers, body = found
        if not watchers.acquire(blocking=False):
            text = "every thread for watches is taken; poll, or use the event-loop worker"
            return _response(problem(503, text, headers={"Retry-After": "5"}))
        return Response(_released(body, watchers), 200, dict(headers), content_type=media)

    def elsewhere() -> Response | None:
        """What no rule knows may still be a way to write the protocol's base."""
        if not isinstance(request.routing_exception, NotFound) or request.method not in METHODS:
            return None
        return None if normalised(_raw_path(request.environ)) is None else answer()

    routes.before_app_request(elsewhere)
    for base in (EUREKA, api.BASE):
        for rule in (base, f"{base}/", f"{base}/<path:rest>"):
            routes.add_url_rule(
                rule,
                "answer",
                answer,
                methods=METHODS,
                provide_automatic_options=False,
                strict_slashes=False,
            )
    return routes


def _released(body: Iterator[bytes], watchers: threading.BoundedSemaphore) -> Iterator[bytes]:
    try:
        yield from body
    finally:
        watchers.release()


def _raw_path(environ: dict[str, Any]) -> str:
    """The path as sent. PATH_INFO is decoded, so ``%2F`` is lost in it; most servers keep more."""
    raw: str | None = environ.get("RAW_URI") or environ.get("REQUEST_URI")
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
    body = request.stream.read(limit + 1)
    if len(body) > limit:
        raise BodyTooLargeError
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
        environ.get("REMOTE_ADDR", ""),
        environ.get("SCRIPT_NAME", ""),
    )


def _response(answer: Answer) -> Response:
    response = Response(answer.parts or answer.body, answer.status, dict(answer.headers))
    if answer.content_type is None:
        del response.headers["Content-Type"]
    else:
        response.headers["Content-Type"] = answer.content_type
    return response
