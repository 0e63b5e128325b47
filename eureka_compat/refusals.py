"""Answers that refuse, and what each of the registry's errors is to a client."""

from __future__ import annotations

import json
import logging

from eureka_compat import codecs
from eureka_http.exchange import Answer, BodyTooLargeError
from registry import InvalidIdentityError, QuotaError, SourceConflictError, StoreError

log = logging.getLogger("eureka")

PARSE_FAILURE = "cannot parse request body"
NOT_FOUND = Answer(404)
NOT_OPEN = Answer(503, headers={"Retry-After": "1"})
"""While an empty server waits for its peers: an empty answer would be taken for the truth."""


class RefusalError(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


REFUSALS = (
    RefusalError,
    SourceConflictError,
    InvalidIdentityError,
    QuotaError,
    BodyTooLargeError,
    StoreError,
)
"""All errors that a client is answered by; ``refusal`` gives the answer."""


def refusal(error: Exception, method: str, path: str) -> Answer:
    """What one of ``REFUSALS`` is to a client; a store that fails is also logged."""
    match error:
        case RefusalError():
            return error.answer
        case SourceConflictError():
            return plain(409, str(error))
        case InvalidIdentityError():
            return plain(400, str(error))
        case QuotaError():
            return plain(403, str(error))
        case BodyTooLargeError():
            return Answer(413)
        case _:
            log.error("%s %s refused: %s", method, path, error)
            return Answer(503, headers={"Retry-After": "1"})


def plain(status: int, text: str) -> Answer:
    """A status with a line of text."""
    return Answer(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


def parse_failure(detail: str, is_json: bool) -> Answer:
    """The 400 for a body: the original's text, then the field and what was expected."""
    message = f"{PARSE_FAILURE}: {detail}"
    if is_json:
        body = json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")
        return Answer(400, body, "application/json")
    body = codecs.to_xml("error", {"message": message}, indent=False).encode()
    return Answer(400, body, "application/xml")


def wrong_method(*allowed: str) -> Answer:
    """The 405 of a resource that has these methods."""
    return Answer(405, headers={"Allow": ",".join((*allowed, "OPTIONS"))})


def bodiless(answer: Answer) -> Answer:
    """The answer to a PUT or DELETE: Java clients would decode a refusal's body as an instance.

    That of a 409 is one.
    """
    if answer.status >= 300 and answer.status != 409:
        return Answer(answer.status, headers=answer.headers)
    return answer
