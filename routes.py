"""Flask's side of the protocol: it turns a WSGI request into a ``Request`` and an answer back."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request

from eureka_compat.protocol import Protocol
from eureka_compat.settings import EurekaSettings
from exchange import Answer, BodyTooLargeError, Request
from registry import Registry

BASE = "/eureka"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


def blueprint(registry: Registry, settings: EurekaSettings) -> Blueprint:
    """One rule takes every path below the base, so that the protocol splits it still encoded."""
    routes = Blueprint("eureka", __name__)
    protocol = Protocol(registry, settings)

    def answer(rest: str = "") -> Response:
        return _response(protocol.answer(_request()))

    for rule in (BASE, f"{BASE}/", f"{BASE}/<path:rest>"):
        routes.add_url_rule(
            rule,
            "protocol",
            answer,
            methods=METHODS,
            provide_automatic_options=False,
            strict_slashes=False,
        )
    return routes


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
    headers = {name.lower(): value for name, value in request.headers.items()}
    path = _raw_path(environ)[len(BASE) :].removeprefix("/")
    return Request(request.method, path, environ.get("QUERY_STRING", ""), headers, _read_body)


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, dict(answer.headers))
    if answer.content_type is None:
        del response.headers["Content-Type"]
    else:
        response.headers["Content-Type"] = answer.content_type
    return response
