"""JSON as it comes in and goes out, the same for every endpoint of this API."""

from __future__ import annotations

from typing import Any

import orjson

from eureka_http.exchange import Answer, Request
from native_api.problems import ProblemError, problem

JSON = "application/json"
MAX_BODY_BYTES = 64 * 1024


def json_body(request: Request) -> bytes:
    """The body, which has to say that it is JSON: what a web page sends unasked does not.

    ``ProblemError`` with a 415; ``BodyTooLargeError``.
    """
    media, *parameters = request.headers.get("content-type", "").lower().split(";")
    told = [parameter.strip().partition("=") for parameter in parameters]
    charsets = {value.strip('"') for name, _, value in told if name == "charset"}
    if media.strip() != JSON or not charsets <= {"utf-8"}:
        text = "expected Content-Type: application/json, in UTF-8"
        code = "Bad Content-Type or charset, expected 'application/json'"
        raise ProblemError(problem(415, text, code=code))
    return request.read_body(MAX_BODY_BYTES)


def json_answer(document: Any) -> Answer:
    """A 200 with a document."""
    return Answer(200, orjson.dumps(document), JSON)
