"""The heads of answers: status line and header fields, up to the empty line.

Most answers of one second have one of a few heads, so each is made once. The ``Date`` in them is
that of the second, therefore a ``Heads`` is good for one second and the worker makes the next one.
Whoever has kept bytes with a head in them compares the ``Heads`` they came from with the present
one by identity: another object means that the date is over.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus

from eureka_http.cache import Cache
from eureka_http.exchange import Answer

BODILESS = frozenset({204, 304})
"""Statuses whose answers have no body (RFC 9110, 15.3.5 and 15.4.5)."""

JOINED_BODY = 64 * 1024
"""The longest body for which one buffer with the head is cheaper than two, in bytes."""

Extra = tuple[tuple[str, str], ...]
"""The header fields that an application gives to an answer."""

_BOUND = 1024
_Key = tuple[int, str | None, int | None, bool, str, Extra]
# About the connection itself, which is this server's and not the application's (RFC 9110, 7.6.1).
_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "date",
        "server",
        "te",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*").fullmatch


class Heads:
    """The heads of answers during one second."""

    __slots__ = ("_date", "_made", "_server", "second")

    def __init__(self, second: int, server: str) -> None:
        """Make heads of the ``second`` since the epoch, in the name of ``server``."""
        self.second = second
        self._date = formatdate(second, usegmt=True)
        self._server = server
        self._made: Cache[_Key, bytes] = Cache(_BOUND)

    def whole(self, answer: Answer) -> bytes | tuple[bytes, ...]:
        """An answer as it is sent on a kept HTTP/1.1 connection; in parts where it is long."""
        head = self.of(answer, True, "1.1")
        if answer.parts:
            return (head, *answer.parts)
        body = b"" if answer.status in BODILESS else answer.body
        return (head, body) if len(body) > JOINED_BODY else head + body

    def of(self, answer: Answer, keeps: bool, version: str) -> bytes:
        """The head of an answer; ``keeps`` says whether the connection is kept after it.

        ``ValueError`` where its fields cannot be sent.
        """
        headers = answer.headers
        extra = tuple(headers.items()) if headers else ()
        key = (answer.status, answer.content_type, answer.length, keeps, version, extra)
        head = self._made.get(key)
        if head is None:
            head = self.make(*key)
            self._made.keep(key, head)
        return head

    def make(
        self,
        status: int,
        content_type: str | None,
        length: int | None,
        keeps: bool,
        version: str,
        headers: Extra = (),
    ) -> bytes:
        """A head that is not kept; a ``length`` of None is that of a stream."""
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/{version} {status} {phrase}", f"Server: {self._server}"]
        lines.append(f"Date: {self._date}")
        lines.append(f"Connection: {'keep-alive' if keeps else 'close'}")
        if length is None and version == "1.1":
            lines.append("Transfer-Encoding: chunked")
        if content_type is not None:
            lines.append(f"Content-Type: {_valid(content_type)}")
        for name, value in headers:
            if name.lower() not in _OF_THE_CONNECTION:
                if not _TOKEN(name):
                    raise ValueError(f"{name!r} is no name of a header field")
                lines.append(f"{name}: {_valid(value)}")
        if length is not None and status not in BODILESS:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def empty(self, status: int, version: str = "1.1") -> bytes:
        """A whole answer without a body, after which the connection is closed."""
        return self.make(status, None, 0, False, version)


def _valid(value: str) -> str:
    if not _VALUE(value):
        raise ValueError("a header field's value holds what must not be in it")
    return value
