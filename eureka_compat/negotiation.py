"""What the header fields of a request ask for, and what they say of its body.

The media type of an answer, the form of a list, the type of a body and its compression. Source:
protocol section 2.0.
"""

from __future__ import annotations

import functools
import gzip
import io
import zlib
from collections.abc import Mapping
from enum import Enum

from eureka_compat.refusals import RefusalError, plain
from eureka_http.exchange import NEXT_LINE, Answer, BodyTooLargeError, Request

JSON = "application/json"
XML = "application/xml"
_CHARSETS = frozenset({"utf-8", "iso-8859-1"})
_UNACCEPTED = (-1.0, 0, 0)


class Form(Enum):
    """How a list is written: its format, and whether its instances are in their short form."""

    JSON = "json"
    XML = "xml"
    COMPACT_JSON = "compact json"
    COMPACT_XML = "compact xml"

    # That of ``Enum`` is written in Python, and each list is looked up by its form.
    __hash__ = object.__hash__

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON."""
        return self in (Form.JSON, Form.COMPACT_JSON)

    @property
    def media(self) -> str:
        """The media type of the body."""
        return JSON if self.is_json else XML

    @property
    def is_compact(self) -> bool:
        """Whether instances are in their short form."""
        return self in (Form.COMPACT_JSON, Form.COMPACT_XML)


# Answers


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


def _accepted_rank(accept: str, wanted: str) -> tuple[float, int, int]:
    """The best quality that an Accept header gives a media type, how exactly and how early.

    A quality of 0 is the lowest but still accepted, as in the original.
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


def list_form(headers: Mapping[str, str]) -> Form:
    """The form of a list: JSON where the first line of ``Accept`` has the word json anywhere.

    ``RefusalError`` with a 406 where neither format is accepted.
    """
    accept = headers.get("accept", "")
    if negotiated(accept) is None:
        raise RefusalError(Answer(406))
    is_json = "json" in accept.partition(NEXT_LINE)[0].lower()
    if headers.get("x-eureka-accept", "").lower() == "compact":
        return Form.COMPACT_JSON if is_json else Form.COMPACT_XML
    return Form.JSON if is_json else Form.XML


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Whether an answer is to be compressed."""
    return "gzip" in headers.get("accept-encoding", "").lower()


ListFields = tuple[str | None, str | None, str | None]


def list_fields(headers: Mapping[str, str]) -> ListFields:
    """The values of all fields that ``list_form`` and ``takes_gzip`` look at."""
    find = headers.get
    return find("accept"), find("x-eureka-accept"), find("accept-encoding")


# Requests


def is_peers_fetch(headers: Mapping[str, str]) -> bool:
    """Whether another server asks, to compare: it can tell an empty answer from the truth."""
    return headers.get("user-agent", "").startswith("Java-EurekaClient-Replication")


def is_replication(headers: Mapping[str, str]) -> bool:
    """Whether a peer passes on what a client told it."""
    told = headers.get("x-netflix-discovery-replication")
    # Of several lines, the first counts.
    return told is not None and told.partition(",")[0].strip() == "true"


def is_json_body(headers: Mapping[str, str]) -> bool:
    """Whether the body of a POST is JSON, else XML.

    ``RefusalError`` with a 415 for any other type or charset.
    """
    media, _, parameters = headers.get("content-type", "").partition(";")
    media = media.strip().lower()
    if media not in (JSON, XML):
        raise RefusalError(Answer(415))
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        is_charset = name.strip().lower() == "charset"
        if is_charset and value.strip().strip('"').lower() not in _CHARSETS:
            raise RefusalError(Answer(415))
    return media == JSON


def read_body(request: Request, limit: int) -> bytes:
    """The body, decompressed where it came as gzip.

    ``BodyTooLargeError`` where it has more than ``limit`` bytes, before or after that.
    """
    body = request.read_body(limit)
    if request.headers.get("content-encoding", "").lower() != "gzip":
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            body = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RefusalError(plain(400, f"not a gzip body: {error}")) from error
    if len(body) > limit:
        raise BodyTooLargeError
    return body
