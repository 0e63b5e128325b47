"""Errors as RFC 9457 has them: ``application/problem+json``, naming the field.

The member ``Error`` is what clients of the Amalgam8 registry read.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

from eureka_http.exchange import Answer

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


def problem(
    status: int,
    detail: str,
    *,
    errors: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
) -> Answer:
    """A problem with its detail; ``errors`` maps a field's path to what was expected of it.

    ``code`` is how the Amalgam8 registry calls it, where it has a word for it.
    """
    body: dict[str, Any] = {
        "Error": code or HTTPStatus(status).phrase,
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [{"field": name, "message": text} for name, text in errors.items()]
    return Answer(status, orjson.dumps(body), MEDIA_TYPE, headers or {})


def gone(instance_id: str, code: str | None = None) -> Answer:
    """Nothing is registered under this id (any more)."""
    text = f"no instance {instance_id!r} is registered; register it again"
    return problem(410, text, code=code)
