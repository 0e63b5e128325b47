"""Errors as RFC 9457 has them: ``application/problem+json``, naming the field."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

from exchange import Answer

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
) -> Answer:
    """A problem with its detail; ``errors`` maps a field's path to what was expected of it."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [{"field": name, "message": text} for name, text in errors.items()]
    return Answer(status, orjson.dumps(body), MEDIA_TYPE, headers or {})
