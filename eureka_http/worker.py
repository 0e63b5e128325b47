"""A gunicorn worker whose connections live in one loop: ``eureka_http.worker.EventLoopWorker``.

The WSGI application may offer ``LoopHooks`` as its attribute ``loop_hooks``. What they leave to the
application is called in one of ``threads`` threads; what has a long body, one after the other in a
thread of its own.

All else is as with gunicorn's own workers, whose settings hold: ``keepalive``, ``timeout`` (here
also the longest that the head or the body of a request may take), ``graceful_timeout``,
``worker_connections``, ``max_requests``, ``limit_request_*``, ``forwarded_allow_ips``, TLS, the
access log and the hooks. Of HTTP there are versions 1.0 and 1.1; no PROXY protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import logging
import math
import os
import re
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from enum import Enum, auto
from http import HTTPStatus
from typing import IO, Any, NamedTuple, cast

import gunicorn.sock
import uvloop
from gunicorn import SERVER, config, util
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers import base
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from eureka_http.exchange import (
    MAX_BODY_BYTES,
    NEXT_LINE,
    Answer,
    BodyTooLargeError,
    Lane,
    LoopHooks,
    Promise,
    Request,
    Stream,
    is_host,
    plain_address,
)

MAX_UNSENT_BYTES = 256 * 1024
_MAX_BODY_IN_MEMORY = 64 * 1024
_MAX_FAST_BODY = 16 * 1024
# All bodies of a worker that lie in files, together.
_MAX_SPOOLED_BYTES = 256 * 1024 * 1024
# What a connection may take of one turn of the loop: one request, or so much of a body. What is
# more waits in a queue, of which a turn serves so many seconds.
_PIECE = 8 * 1024
_BODY_PIECE = 64 * 1024
_TURN_SECS = 0.004
# Whose share took more of the processor than this waits in the queue from the start, for so long.
_DEAR_SECS = 0.0005
_DEAR_FOR_SECS = 2.0
# The line before a chunk, and all trailers; what chunks may add to a body, beside half of its size.
_MAX_CHUNK_LINE = 4096
_MAX_TRAILERS = 16 * 1024
_CHUNKS_GRACE = 64 * 1024
# Up to here one buffer for head and body is cheaper than two.
_JOINED_BODY = 64 * 1024
_SEND_BUFFER_BYTES = 256 * 1024
_TICK_SECS = 0.02
_SWEEP_SECS = 0.5
# How long a client has to read the last answer, and how recently a connection must have been used
# to be kept for one more request when the worker stops.
_LINGER_SECS = 2.0
_RECENT_SECS = 1.0
_MAX_CACHED = 1024
_MAX_KNOWN_FIELDS = 2048
_FORGET_FIELDS_SECS = 60.0
_DEFAULT_PATIENCE_SECS = 60.0

_SINGLE = frozenset({"host", "content-type", "content-length", "transfer-encoding"})
_BODILESS = frozenset({204, 304})
# Of a length that may be told with zeros before it.
_MOST_DIGITS = 19
_METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY")
}
_G = ord("G")
_END_OF_HEAD = b"\r\n\r\n"
_PLAIN_LINE = re.compile(r"(GET|HEAD|POST|PUT|DELETE) (/[!\"$-~]*) HTTP/1\.1").fullmatch
# What a head is not remembered with: it may hold a secret, or ask for more than an answer.
_CAREFUL = frozenset(
    {"authorization", "proxy-authorization", "cookie", "transfer-encoding", "expect", "upgrade"}
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ANY_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])").fullmatch
_BEGINS_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]").match
_ABSOLUTE = re.compile(r"https?://(?:[^/?#@]*@)?([^/?#@]+)", re.IGNORECASE).match
_AUTHORITY = re.compile(rb"[^/?#@]+:[0-9]+").fullmatch
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n").search
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?").fullmatch
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*").fullmatch
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")

Address = tuple[Any, ...] | str
Extra = tuple[tuple[str, str], ...]


class _RefusedError(Exception):
    """A request that no application sees: its status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _ClientGoneError(ConnectionError):
    """Nobody reads this answer any more."""


class _Limits(NamedTuple):
    """What a head may measure. No head of at most ``floor`` bytes exceeds any of the others."""

    line: int
    fields: int
    field_size: int
    head: int
    floor: int

    @classmethod
    def of(cls, cfg: Any) -> _Limits:
        line = min(cfg.limit_request_line, 8190) if cfg.limit_request_line > 0 else 1024 * 1024
        fields = cfg.limit_request_fields if 0 < cfg.limit_request_fields <= 32768 else 32768
        size = cfg.limit_request_field_size if cfg.limit_request_field_size > 0 else 8190
        return cls(line, fields, size, fields * (size + 2) + line, min(line, size, fields * 4))


class _Known:
    """What the fields of an ordinary request say, the length of its body among it."""

    __slots__ = ("has_lane", "headers", "lane", "length")

    def __init__(self, headers: dict[str, str], length: int) -> None:
        self.headers = headers
        self.length = length
        # Not asked for before they come again.
        self.lane: Lane | None = None
        self.has_lane = True


class _Message:
    """A request that has arrived whole. ``target`` is what stands in its first line."""

    __slots__ = (
        "body",
        "headers",
        "is_alone",
        "keeps",
        "method",
        "repeated",
        "spooled",
        "started",
        "target",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: str,
        version: str,
        headers: dict[str, str],
        keeps: bool,
        body: bytes | IO[bytes],
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.keeps = keeps
        self.body = body
        # Each value of the fields that came more than once, whose values ``headers`` has joined.
        self.repeated: dict[str, list[str]] | None = None
        self.started: datetime | None = None
        # Whether it came with nothing before or after it, so that its answer may wait a moment.
        self.is_alone = False
        # What keeps the body's file, where there is one.
        self.spooled: _Body | None = None

    def discard(self) -> None:
        """Let go of the body's file."""
        if self.spooled is not None:
            self.spooled.close()


class _Room:
    """How many bytes more may lie in files. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


class _Body:
    """A body that is arriving: in memory while it is short, then in a file, by long writes."""

    __slots__ = ("_file", "_held", "_room", "_spooled", "limit", "size")

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._spooled = 0
        self.size = 0
        self.limit = MAX_BODY_BYTES

    def add(self, data: bytes | bytearray) -> None:
        """Take more of it; ``_RefusedError`` beyond its limit, or where there is no room."""
        self.size += len(data)
        if self.size > self.limit:
            raise _RefusedError(413, "the body is too long")
        self._held += data
        if len(self._held) > _MAX_BODY_IN_MEMORY:
            self._spool()

    def _spool(self) -> None:
        if not self._room.take(len(self._held)):
            raise _RefusedError(503, "too many long bodies are arriving")
        self._spooled += len(self._held)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
            self._file.write(self._held)
        except OSError as error:
            raise _RefusedError(503, f"the body cannot be kept: {error}") from error
        self._held.clear()

    def finish(self) -> bytes | IO[bytes]:
        """All of it."""
        if self._file is None:
            return bytes(self._held)
        self._spool()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Let go of all; once more does nothing."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
        spooled, self._spooled = self._spooled, 0
        self._room.give(spooled)


class _Reading(Enum):
    """What a reader waits for."""

    LINE = auto()
    FIELDS = auto()
    LENGTH = auto()
    CHUNK = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class _Reader:
    """Bytes in; one message after the other, or why it is refused, out. It knows no connection.

    ============  ============================  =================================
    waits for     which is                      and then for
    ============  ============================  =================================
    ``LINE``      the request line              ``FIELDS``
    ``FIELDS``    all fields, an empty line     ``LENGTH``, ``CHUNK``, or ``LINE``
    ``LENGTH``    a body of a given length      ``LINE``
    ``CHUNK``     the size of a chunk           ``DATA``, or ``TRAILERS`` after the last
    ``DATA``      so many bytes                 ``DATA_END``
    ``DATA_END``  the end of the line           ``CHUNK``
    ``TRAILERS``  fields, an empty line         ``LINE``
    ============  ============================  =================================

    A message is there whenever it waits for ``LINE`` again. Heads are parsed by llhttp, each alone
    and whole. Source: RFC 9112.
    """

    __slots__ = (
        "_body",
        "_due",
        "_framing",
        "_headers",
        "_is_complete",
        "_keeps",
        "_names",
        "_parser",
        "_peer",
        "_repeated",
        "_scanned",
        "_state",
        "_worker",
        "awaits_100",
        "is_unasked",
        "message",
        "starves",
    )

    def __init__(self, worker: EventLoopWorker, peer: Address) -> None:
        self._worker = worker
        self._peer = peer
        self._names = worker.names
        self._parser = HttpRequestParser(self)
        self._state = _Reading.LINE
        # So much of the head holds no end.
        self._scanned = 0
        self._headers: dict[str, str] = {}
        self._repeated: dict[str, list[str]] = {}
        self._is_complete = False
        self._keeps = False
        self._body: _Body | None = None
        # Bytes of the body or chunk that are to come, and those that were no body.
        self._due = 0
        self._framing = 0
        # What is arriving; whether its body was announced, but not talked about; whether its
        # client waits to be asked for it.
        self.message: _Message | None = None
        self.is_unasked = False
        self.awaits_100 = False
        # Whether no more can be made of what is there.
        self.starves = True

    @property
    def is_amid(self) -> bool:
        """Whether part of a message was taken already."""
        return self._state is not _Reading.LINE

    def read(self, stash: bytearray) -> _Message | None:
        """The next message; None where it has not come whole, or more of it than a share.

        What was made use of is taken from ``stash``. Raises ``_RefusedError``.
        """
        self.starves = False
        if self._body is None:
            if not self._read_head(stash):
                self.starves = True
                return None
            if self._body is None:
                return self.message
        if self._state is _Reading.LENGTH:
            part = stash[: min(self._due, _BODY_PIECE)]
            del stash[: len(part)]
            self._body.add(part)
            self._due -= len(part)
            if not self._due:
                return self._whole()
            self.starves = not stash
            return None
        return self._read_chunks(stash, self._body)

    def allow(self, limit: int) -> None:
        """Take so many bytes of body at most; ``_RefusedError`` where more are announced."""
        if self._body is not None:
            self._body.limit = limit
            if self._body.size + self._due > limit:
                raise _RefusedError(413, "the body is too long")

    def drop(self) -> None:
        """Forget what has arrived; no more is to be read."""
        body, self._body = self._body, None
        if body is not None:
            body.close()
        # It knows its reader; without it both go at once.
        self._parser = cast(HttpRequestParser, None)

    # Heads

    def _read_head(self, stash: bytearray) -> bool:
        """Take a whole head; False where it has not come whole."""
        limits = self._worker.limits
        if self._state is _Reading.LINE:
            if stash[0] in b"\r\n":
                # Empty lines before a request are let pass (RFC 9112, 2.2).
                del stash[: len(stash) - len(stash.lstrip(b"\r\n"))]
                if not stash:
                    return False
            end = stash.find(b"\r\n", self._scanned)
            if end > limits.line or (end < 0 and len(stash) > limits.line + 1):
                raise _RefusedError(414, "the request line is too long")
            if end < 0:
                if not _BEGINS_LINE(stash) or _BARE_LINE_FEED(stash, self._scanned):
                    raise _RefusedError(400, "this is no request line")
                self._scanned = len(stash) - 1
                return False
            self._read_line(bytes(stash[:end]))
            self._state = _Reading.FIELDS
            self._scanned = end
        end = stash.find(_END_OF_HEAD, self._scanned)
        if end < 0:
            if len(stash) - stash.rfind(b"\r\n") > limits.field_size + 2:
                raise _RefusedError(431, "a header field is too long")
            if len(stash) > limits.head:
                raise _RefusedError(431, "the head is too long")
            if _BARE_LINE_FEED(stash, self._scanned):
                raise _RefusedError(400, "a line of the head ends without CR")
            self._scanned = max(self._scanned, len(stash) - 3)
            return False
        end += len(_END_OF_HEAD)
        head = bytes(stash[:end])
        del stash[:end]
        if end > limits.floor:
            self._check_limits(head)
        self._read_fields(head)
        return True

    def _read_line(self, line: bytes) -> None:
        found = _ANY_LINE(line)
        if found is None:
            raise _RefusedError(400, "this is no request line")
        method, target, version = found.groups()
        if version not in (b"1.1", b"1.0"):
            raise _RefusedError(505, f"HTTP/{version.decode()} is not spoken here")
        if method == b"CONNECT" and not _AUTHORITY(target):
            raise _RefusedError(400, "CONNECT names no host and port")
        name = _METHODS.get(method)
        if name is None:
            raise _RefusedError(501, f"the method {method.decode()} is not known")
        text = target.decode()
        if "#" in text:
            raise _RefusedError(400, "the target has a fragment, which is never sent")
        if not (text.startswith("/") or (text == "*" and name == "OPTIONS")):
            url = _ABSOLUTE(text)
            if url is None or not is_host(url[1]):
                raise _RefusedError(400, "the target is neither a path nor a URL")
        self.message = _Message(name, text, version.decode(), {}, False, b"")

    def _check_limits(self, head: bytes) -> None:
        limits = self._worker.limits
        if head.count(b"\r\n") - 2 > limits.fields:
            raise _RefusedError(431, "too many header fields")
        if len(head) > limits.field_size:
            for line in head.split(b"\r\n")[1:]:
                if len(line) + 2 > limits.field_size:
                    raise _RefusedError(431, "a header field is too long")

    def _read_fields(self, head: bytes) -> None:
        """Parse a head, of which the first line was read, and see what follows."""
        self._scanned = 0
        self._headers = {}
        self._repeated = {}
        self._is_complete = False
        try:
            self._parser.feed_data(head)
        except HttpParserUpgrade:
            # An offer to change the protocol is not taken up.
            self._parser = HttpRequestParser(self)
        except HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if cause is not None else error  # noqa: B904  # the parser's adds nothing
        except HttpParserError as error:
            raise _RefusedError(400, str(error)) from error
        message = self.message
        assert message is not None  # its line was read
        if not self._is_complete:
            raise _RefusedError(400, "the head has no end")
        headers, repeated = self._headers, self._repeated
        host = headers.get("host")
        if (host is None and message.version == "1.1") or (host is not None and not is_host(host)):
            raise _RefusedError(400, "Host is missing or malformed")
        for name, values in repeated.items():
            headers[name] = ", ".join(values)
        accepted = repeated.pop("accept", None)
        if accepted is not None:
            headers["accept"] = NEXT_LINE.join(accepted)
        message.headers = headers
        message.repeated = repeated or None
        message.keeps = self._keeps
        self._read_framing(message)

    def _read_framing(self, message: _Message) -> None:
        headers = message.headers
        coding = headers.get("transfer-encoding")
        given = headers.get("content-length")
        expected = headers.get("expect") if message.version == "1.1" else None
        if expected is not None and expected.lower() != "100-continue":
            raise _RefusedError(417, f"{expected} cannot be met")
        self._due = 0
        if coding is not None:
            if message.version != "1.1" or given is not None:
                raise _RefusedError(400, "the length of the body is not certain")
            if coding.lower() != "chunked":
                raise _RefusedError(501, f"the transfer coding {coding} is not known")
        elif given is not None:
            if not (given.isascii() and given.isdigit() and len(given) <= _MOST_DIGITS):
                raise _RefusedError(400, "Content-Length is not a number")
            self._due = int(given)
            if self._due > MAX_BODY_BYTES:
                raise _RefusedError(413, "the body is too long")
        if coding is None and not self._due:
            self._state = _Reading.LINE
            return
        self.awaits_100 = expected is not None
        self.is_unasked = True
        self._state = _Reading.LENGTH if coding is None else _Reading.CHUNK
        self._framing = 0
        self._body = _Body(self._worker.room)
        # The next head has a parser that expects no body.
        self._parser = HttpRequestParser(self)

    # Bodies

    def _read_chunks(self, stash: bytearray, body: _Body) -> _Message | None:
        position = 0
        try:
            while position < _PIECE:
                if self._state is _Reading.DATA:
                    part = stash[position : position + min(self._due, _PIECE)]
                    if not part:
                        self.starves = True
                        return None
                    body.add(part)
                    position += len(part)
                    self._due -= len(part)
                    if not self._due:
                        self._state = _Reading.DATA_END
                    continue
                end = stash.find(b"\r\n", position, position + _MAX_CHUNK_LINE)
                if end < 0:
                    if len(stash) - position >= _MAX_CHUNK_LINE or stash.find(b"\n", position) >= 0:
                        raise _RefusedError(400, "a line between the chunks has no end")
                    self.starves = True
                    return None
                line = bytes(stash[position:end])
                self._framing += end + 2 - position
                position = end + 2
                if self._read_between(line, body):
                    return self._whole()
        finally:
            del stash[:position]
        self.starves = not stash
        return None

    def _read_between(self, line: bytes, body: _Body) -> bool:
        """Take a line between the chunks; whether it was the last."""
        if self._state is _Reading.CHUNK:
            found = _CHUNK_LINE(line)
            if found is None:
                raise _RefusedError(400, "this is no size of a chunk")
            if self._framing > _CHUNKS_GRACE + body.size // 2:
                raise _RefusedError(400, "the chunks are too small")
            self._due = int(found[1], 16)
            if body.size + self._due > body.limit:
                raise _RefusedError(413, "the body is too long")
            self._state = _Reading.DATA if self._due else _Reading.TRAILERS
            if not self._due:
                self._framing = 0
        elif self._state is _Reading.DATA_END:
            if line:
                raise _RefusedError(400, "a chunk is longer than its size")
            self._state = _Reading.CHUNK
        elif not line:
            return True
        elif self._framing > _MAX_TRAILERS:
            raise _RefusedError(431, "the trailers are too long")
        elif not _TRAILER(line):
            raise _RefusedError(400, "a trailer is malformed")
        return False

    def _whole(self) -> _Message:
        """The message, now that its body is there. Trailers are for nobody."""
        message, body = self.message, self._body
        assert message is not None
        assert body is not None
        message.body = body.finish()
        if not isinstance(message.body, bytes):
            message.spooled = body
        self._body = None
        self._state = _Reading.LINE
        self.awaits_100 = self.is_unasked = False
        return message

    # The parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        key = self._names.get(name) or self._uncommon(name)
        if not key:
            return
        headers = self._headers
        if key not in headers:
            headers[key] = value.decode("latin-1").strip(" \t")
        elif key in _SINGLE:
            raise _RefusedError(400, f"{key} is given twice")
        else:
            values = self._repeated.setdefault(key, [headers[key]])
            values.append(value.decode("latin-1").strip(" \t"))

    def _uncommon(self, spelling: bytes) -> str:
        """The name of a field that is not known by its spelling; empty where it is not wanted."""
        name = spelling.decode("ascii").lower()
        worker = self._worker
        if "_" not in name:
            worker.learn(spelling, name)
        elif not worker.takes_underscores(name, self._peer):
            return ""
        return name

    def on_headers_complete(self) -> None:
        self._is_complete = True
        self._keeps = self._parser.should_keep_alive()


class _WsgiRequest:
    """A message as gunicorn's WSGI layer, loggers and hooks know a request."""

    # Whoever waits for a 100 has had it before the message was whole.
    _expected_100_continue = False
    proxy_protocol_info = None

    def __init__(self, message: _Message, scheme: str, peer: Address) -> None:
        parts = util.split_request_uri(message.target)
        self.method = message.method
        self.uri = message.target
        # Only an absolute target can be without.
        self.path: str = parts.path or "/"
        self.query: str = parts.query or ""
        self.fragment: str = parts.fragment or ""
        self.version = (1, 1) if message.version == "1.1" else (1, 0)
        repeated = message.repeated or {}
        self.headers = [
            (name.upper(), value)
            for name, joined in message.headers.items()
            for value in repeated.get(name, [joined])
        ]
        self.trailers: list[tuple[str, str]] = []
        self.body = io.BytesIO(message.body) if isinstance(message.body, bytes) else message.body
        self.scheme = scheme
        self.peer_addr = self.remote_addr = peer
        self._keeps = message.keeps

    def should_close(self) -> bool:
        return not self._keeps


class _WsgiAnswer:
    """What the WSGI application answers in a thread, to be sent in the loop.

    The thread waits where the client does not read; it gets an error where the client has gone.
    """

    def __init__(self, connection: _Connection, message: _Message, request: _WsgiRequest) -> None:
        self._connection = connection
        self._worker = connection.worker
        self._message = message
        self._request = request
        self._held: list[bytes] = []
        self._holds_all = False
        self._posted = False
        self._room = threading.Condition()
        self._unsent = 0
        self._is_blocked = False
        self._is_gone = False

    # In the loop

    def blocked(self) -> None:
        with self._room:
            self._is_blocked = True

    def drained(self) -> None:
        with self._room:
            self._is_blocked = False
            self._room.notify_all()

    def lose(self) -> None:
        with self._room:
            self._is_gone = True
            self._room.notify_all()

    def wind_down(self) -> None:
        """Nothing: an answer that has begun is finished."""

    def _deliver(self, data: bytes, ended: bool, keeps: bool) -> None:
        with self._room:
            self._unsent -= len(data)
            if self._is_gone:
                return
            self._room.notify_all()
        self._connection.write(data)
        if ended:
            self._connection.answered(keeps)

    # In the thread

    def run(self) -> None:
        """Call the application and send what it answers; never raises."""
        worker, request = self._worker, self._request
        response: Any = None
        environ: dict[str, Any] = {}
        keeps = False
        started = datetime.now()
        try:
            if self._message.started is None:
                worker.cfg.pre_request(worker, request)
            response, environ = worker.wsgi_exchange(self._connection, request, self)
            if not worker.keeps_alive:
                response.force_close()
            self._call(environ, response)
            keeps = not response.should_close()
            length = response.response_length
            has_body = request.method != "HEAD" and response.status_code not in _BODILESS
            if length is not None and response.sent < length and has_body:
                worker.log.warning("%s ended before its Content-Length", request.uri)
                keeps = False
        except _ClientGoneError:
            worker.log.debug("The client left before its answer: %s", request.uri)
        except (Exception, SystemExit):
            worker.log.exception("Error handling request %s %s", request.method, request.uri)
            keeps = False
            if not self._posted:
                self._held = [worker.plain_head(500, self._message.version, False)]
                if response is not None:
                    response.status, response.sent = "500 Internal Server Error", 0
        finally:
            self._post(ended=True, keeps=keeps)
            worker.finished(request, environ, response, started)
            self._message.discard()

    def _call(self, environ: dict[str, Any], response: Any) -> None:
        body = self._worker.wsgi(environ, response.start_response)
        try:
            # A list is there already; of anything else each part is sent as it comes.
            self._holds_all = isinstance(body, list | tuple)
            for part in body:
                response.write(part)
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()

    def sendall(self, data: bytes) -> None:
        """Send, for gunicorn's ``Response``, whose socket this is."""
        # The head waits for the first of the body, so that both leave in one packet.
        holds = not self._posted and not self._held and not data.startswith(b"HTTP/1.1 103")
        self._held.append(data)
        if not (holds or self._holds_all):
            self._post(ended=False, keeps=True)

    def _post(self, *, ended: bool, keeps: bool) -> None:
        data = b"".join(self._held)
        self._held.clear()
        with self._room:
            while not ended and not self._is_gone:
                if not self._is_blocked and self._unsent < MAX_UNSENT_BYTES:
                    break
                self._room.wait()
            if self._is_gone and not ended:
                raise _ClientGoneError
            self._unsent += len(data)
        self._posted = True
        # The loop is closed only where nobody waits for an answer any more.
        with contextlib.suppress(RuntimeError):
            self._worker.loop.call_soon_threadsafe(self._deliver, data, ended, keeps)


class _PromisedAnswer:
    """What a lane promised to one request."""

    __slots__ = ("_connection", "_is_gone", "_promise")

    def __init__(self, connection: _Connection, promise: Promise) -> None:
        self._connection = connection
        self._promise = promise
        self._is_gone = False

    def settle(self) -> None:
        """Send the answer that is there by now."""
        if not self._is_gone:
            self._connection.settled(self._promise.answer or Answer(500))

    def blocked(self) -> None:
        """Nothing: it is short."""

    def drained(self) -> None:
        """Nothing, for the same reason."""

    def wind_down(self) -> None:
        """Nothing: what was promised is kept."""

    def lose(self) -> None:
        self._is_gone = True


class _StreamAnswer:
    """A ``Stream`` on its way to one reader."""

    def __init__(self, connection: _Connection, message: _Message, stream: Stream) -> None:
        self._connection = connection
        self._worker = connection.worker
        self._message = message
        self._stream = stream
        self._chunked = message.version == "1.1"
        self._keeps = message.keeps and self._chunked
        self._leave: Callable[[], None] | None = None
        self._is_open = True
        self._sent = 0
        # What is said at the beginning may be long, and a reader is given the time to take it.
        self._limit = math.inf

    def begin(self) -> None:
        """Send the head, then let the stream write."""
        worker, stream = self._worker, self._stream
        keeps = self._keeps = self._keeps and worker.keeps_alive
        headers = tuple(stream.headers.items())
        version = self._message.version
        head = worker.make_head(200, stream.content_type, None, keeps, version, headers)
        self._connection.write(head)
        if self._message.method == "HEAD":
            self._finish()
            return
        worker.stream_opened()
        try:
            self._leave = stream.subscribe(self.write, self.end)
        except Exception:
            worker.log.exception("Error handling request %s", self._message.target)
            self._connection.drop()
            return
        self._limit = MAX_UNSENT_BYTES + self._connection.unsent()
        if not self._is_open:
            self._let_go()

    def write(self, data: bytes) -> int:
        """Send bytes, unless the reader is too far behind already: then it is dropped.

        How many bytes it has not taken yet.
        """
        if not self._is_open:
            return 0
        connection = self._connection
        if not data:
            return connection.unsent()
        if connection.unsent() > self._limit:
            self._worker.log.info("A reader of %s was too slow", self._message.target)
            connection.drop()
            return 0
        self._sent += len(data)
        if not self._chunked:
            connection.write(data)
        elif len(data) <= _JOINED_BODY:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            connection.write_parts((b"%x\r\n" % len(data), data, b"\r\n"))
        return connection.unsent()

    def end(self) -> None:
        """End the body; the connection may go on."""
        if self._is_open:
            if self._chunked:
                self._connection.write(b"0\r\n\r\n")
            self._worker.stream_closed()
            self._finish()

    def _finish(self) -> None:
        self._is_open = False
        # It may have ended while it began, amid the reading of requests.
        self._worker.loop.call_soon(self._connection.answered, self._keeps)
        self._let_go()
        self._report()

    def _let_go(self) -> None:
        """Tell the stream, once, that this reader has gone or was told the end."""
        leave, self._leave = self._leave, None
        if leave is not None:
            try:
                leave()
            except Exception:
                self._worker.log.exception("Error ending %s", self._message.target)

    def _report(self) -> None:
        if self._worker.observes:
            self._worker.report(self._connection, self._message, 200, self._stream, self._sent)

    def blocked(self) -> None:
        """Nothing: a stream does not wait for its readers."""

    def drained(self) -> None:
        self._limit = MAX_UNSENT_BYTES

    def lose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._worker.stream_closed()
            self._let_go()
            self._report()

    def wind_down(self) -> None:
        """End it for its reader, who is to come back to another worker."""
        self._keeps = False
        self.end()


class _Connection(asyncio.Protocol):
    """One client's connection: reads requests, and answers each in its turn.

    Nothing is read while an answer is due or the client does not read; what arrives then waits in
    the stash. What can be read is taken by shares, of which each turn of the loop has so many for
    all connections together. ``deadline`` is when it is overdue, by the loop's clock.
    """

    __slots__ = (
        "_began",
        "_current",
        "_dear_until",
        "_has_ended",
        "_is_deaf",
        "_is_held",
        "_is_paused",
        "_is_queued",
        "_pending",
        "_reader",
        "_resumes",
        "_server",
        "_stash",
        "_transport",
        "_unsent_before",
        "deadline",
        "peer",
        "worker",
    )

    def __init__(self, worker: EventLoopWorker, peer: Address, server: Address) -> None:
        self.worker = worker
        self.peer = peer if isinstance(peer, str) else (plain_address(peer[0]), *peer[1:])
        self._server = server
        self._reader = _Reader(worker, self.peer)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.deadline = math.inf
        # What has arrived and was not read; whether it waits for its share, and since when part
        # of a message has been here.
        self._stash = bytearray()
        self._is_queued = False
        self._began = 0.0
        # Its requests are dear: they wait in the queue.
        self._dear_until = 0.0
        # Whether the transport was told to read no more.
        self._is_held = False
        # What is to be sent soon, and the answer that is being made.
        self._pending = b""
        self._current: _WsgiAnswer | _StreamAnswer | _PromisedAnswer | None = None
        self._is_paused = False
        self._resumes = False
        self._unsent_before = 0
        # No more requests: the connection is to be closed, now or after what is due.
        self._is_deaf = False
        self._has_ended = False

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._rearm()
        self.worker.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        current, self._current = self._current, None
        if current is not None:
            current.lose()
        self._stash.clear()
        self._reader.drop()
        self.worker.connections.discard(self)
        self.worker.connection_closed()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            # It is thrown away, but no faster than others are heard.
            self._hold()
            if self._current is None:
                self._queue_up()
            return
        stash = self._stash
        if self._current is not None or self._is_paused:
            stash += data
            if not isinstance(self._current, _StreamAnswer):
                self._hold()
            elif len(stash) > MAX_UNSENT_BYTES:
                # Reading on is how one learns that a stream's reader has gone.
                self.drop()
            return
        if not stash and not self._began and len(data) <= _PIECE:
            read = self.worker.known_requests.get(data) if data[0] == _G else None
            if (read is not None and self._is_recalled(read)) or self._is_known(data):
                return
        stash += data
        if self._is_queued:
            self._hold()
        elif self._dear_until > self.worker.now:
            self._await_turn()
        else:
            self._take()

    def eof_received(self) -> bool:
        """Finish what is due for a client that only ceased to send."""
        if self.worker.ssl_context is not None:
            return False
        waits = self._current is None and not self._is_paused and not self._is_deaf
        self._has_ended = self._is_due() or self._is_queued or (waits and self._began > 0)
        if self._has_ended and not self._is_queued:
            self._listen()
        return self._has_ended

    def _is_due(self) -> bool:
        """Whether an answer is being made that ends by itself."""
        return isinstance(self._current, _WsgiAnswer | _PromisedAnswer)

    def pause_writing(self) -> None:
        self._is_paused = True
        self._resumes = False
        self._unsent_before = self.unsent()
        self._rearm()
        if self._current is not None:
            self._current.blocked()

    def resume_writing(self) -> None:
        # Under TLS this may be called amid a write, and so amid the reading of requests.
        self._resumes = True
        self.worker.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._resumes:
            return
        self._resumes = self._is_paused = False
        self._rearm()
        if self._current is not None:
            self._current.drained()
        elif not self._is_deaf:
            self._advance()

    # Time

    def _rearm(self) -> None:
        """Derive the deadline from what is waited for.

        Only ``_reply`` sets another, for the one case that it knows, and ``wind_down`` for a
        connection that is to have one more moment.
        """
        worker = self.worker
        now = worker.now
        if self._is_paused:
            # For the client to read.
            self.deadline = now + worker.patience
        elif self._current is not None:
            # For this server.
            self.deadline = math.inf
        elif self._is_deaf:
            # For the client to read the end, and to close.
            self.deadline = now + (0.0 if worker.is_stopping() else _LINGER_SECS)
        elif self._is_queued:
            # For its turn.
            self.deadline = math.inf
        elif self._began:
            # For the rest of a request, however often a little of it comes.
            self.deadline = self._began + worker.patience
        elif worker.is_stopping():
            self.deadline = now + _RECENT_SECS - _SWEEP_SECS
        else:
            # For the next request.
            self.deadline = now + worker.keepalive

    # For the answers

    def write(self, data: bytes) -> None:
        if self._pending:
            self.flush()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def write_parts(self, parts: tuple[bytes, ...]) -> None:
        if self._pending:
            self.flush()
        if not self._transport.is_closing():
            self._transport.writelines(parts)

    def flush(self) -> None:
        """Send what was to be sent soon."""
        pending, self._pending = self._pending, b""
        if pending and not self._transport.is_closing():
            self._transport.write(pending)

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def drop(self) -> None:
        """Close at once, whatever has not been sent."""
        self._is_deaf = True
        self._transport.abort()

    def settled(self, answer: Answer) -> None:
        """Answer as was promised."""
        worker = self.worker
        self._current = None
        if not worker.keeps_alive:
            self.write(worker.head_of(answer, False, "1.1") + answer.whole_body())
            self._close()
            return
        self._reply(answer)
        if self._stash or self._has_ended:
            self._advance()

    def answered(self, keeps: bool) -> None:
        """Go on after an answer that took its time; ``keeps`` is what its client was told."""
        self._current = None
        if not keeps:
            self._close()
        elif not self._is_paused:
            self._advance()

    # For the worker

    def overdue(self) -> None:
        """Do what is to be done when the deadline has passed."""
        self.flush()
        unsent = self.unsent()
        if unsent and unsent != self._unsent_before:
            # It reads, if slowly.
            self._unsent_before = unsent
            self.deadline = self.worker.now + self.worker.patience
        elif unsent or self._is_deaf:
            self.drop()
        elif self._began:
            self._refuse(_RefusedError(408, "the request took too long"))
        else:
            self._is_deaf = True
            self._transport.close()
            self._rearm()

    def wind_down(self) -> None:
        """Close as soon as nothing is due; the worker is about to stop.

        A client that has been here a moment ago may have sent its next request already. That one is
        still answered, so that nothing is lost.
        """
        self.flush()
        if self._current is not None:
            self._current.wind_down()
        elif not (self._is_deaf or self._began or self._is_queued or self._is_paused):
            worker = self.worker
            recent = worker.now + worker.keepalive - _RECENT_SECS
            if self.deadline < recent:
                self._is_deaf = True
                self._transport.close()
            else:
                self._rearm()

    def was_made(self) -> bool:
        return self._transport is not None

    def client_socket(self) -> Any:
        """What an application may ask for the client's certificate."""
        transport = self._transport
        return transport.get_extra_info("ssl_object") or transport.get_extra_info("socket")

    def server(self) -> Address:
        return self._server

    # Reading

    def _hold(self) -> None:
        """Read no more from the socket until what is here was taken."""
        if not self._is_held:
            self._is_held = True
            self._transport.pause_reading()

    def _await_turn(self) -> None:
        """Take a share of what is stashed when it is this connection's turn."""
        if not self._is_queued:
            self._hold()
            self._queue_up()
            self._rearm()

    def _queue_up(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self.worker.take_turns(self)

    def share(self) -> None:
        """Take one share, as one of several who have more."""
        self._is_queued = False
        if self._can_take():
            self._take()
        elif self._is_deaf:
            self._listen()

    def _can_take(self) -> bool:
        return (
            bool(self._stash)
            and self._current is None
            and not self._is_paused
            and not self._is_deaf
        )

    def _take(self) -> None:
        """Take a share of the stash, and begin to answer what came whole by it.

        Where there is more to take, another turn is waited for.
        """
        began = time.thread_time()
        stash, reader = self._stash, self._reader
        message = None
        is_alone = len(stash) <= _PIECE and not reader.is_amid
        data = bytes(stash) if is_alone else b""
        try:
            message = reader.read(stash)
        except _RefusedError as error:
            self._refuse(error)
        except Exception as error:
            self.worker.log.exception("Error reading a request")
            self._refuse(_RefusedError(500, repr(error)))
        else:
            if message is not None:
                self._began = 0.0
                if not message.keeps:
                    self._is_deaf = True
                    stash.clear()
                elif data and not stash:
                    self._get_to_know(data, message)
                self._begin(message)
            else:
                if not self._began and (stash or reader.is_amid):
                    self._began = self.worker.now
                if reader.is_unasked:
                    self._ask_first()
        if time.thread_time() - began > _DEAR_SECS:
            self._dear_until = self.worker.now + _DEAR_FOR_SECS
        if not reader.starves and self._can_take():
            self._await_turn()
        else:
            self._listen()

    def _listen(self) -> None:
        """Wait for what comes next, if anything may."""
        if self._transport.is_closing():
            return
        is_ready = self._current is None and not self._is_paused
        if self._is_held and (
            is_ready or not self._stash or isinstance(self._current, _StreamAnswer)
        ):
            self._is_held = False
            self._transport.resume_reading()
        if is_ready and not self._is_deaf:
            self._rearm()
            if self._has_ended and self._began:
                self._refuse(_RefusedError(400, "the request was cut off"))
            elif self._has_ended:
                self._close()

    def _advance(self) -> None:
        """Go on with what has arrived meanwhile."""
        if self._transport.is_closing():
            return
        if self._stash:
            self._await_turn()
        else:
            self._listen()

    def _is_recalled(self, read: Callable[[], Answer | None]) -> bool:
        """Answer a request that came before, byte for byte; False where it is to be looked at."""
        worker = self.worker
        if not worker.is_quick:
            return False
        if worker.nr + 1 >= worker.max_requests:
            return False
        try:
            answer = read()
        except Exception:
            self._fail("what was asked before")
            return True
        if answer is None:
            return False
        worker.nr += 1
        self._reply(answer)
        return True

    def _fail(self, what: str) -> None:
        """Answer 500 for the error that is being handled, and close."""
        self.worker.log.exception("Error handling request %s", what)
        self.write(self.worker.plain_head(500, "1.1", False))
        self._close()

    def _is_known(self, data: bytes) -> bool:
        """Take a whole request whose fields came before, byte for byte; False where it is not one.

        Clients say the same with each request, so what follows the first line was read already.
        """
        worker = self.worker
        line, _, rest = data.partition(b"\r\n")
        body = b""
        if rest.endswith(_END_OF_HEAD):
            known = worker.known_fields.get(rest)
        else:
            fields, end, body = rest.partition(_END_OF_HEAD)
            known = worker.known_fields.get(fields) if end else None
        if known is None:
            return False
        found = _PLAIN_LINE(line.decode("latin-1"))
        if found is None or len(body) != known.length or len(line) > worker.limits.line:
            return False
        method, target = found.groups()
        if known.has_lane and worker.is_quick and worker.nr + 1 < worker.max_requests:
            lane = known.lane or worker.find_lane(known)
            try:
                answer = None if lane is None else lane.answer(method, target, body)
            except Exception:
                self._fail(target)
                return True
            if answer is not None and lane is not None:
                if method == "GET":
                    worker.recall(data, lane.reader(target))
                worker.nr += 1
                if isinstance(answer, Promise):
                    self._current = promised = _PromisedAnswer(self, answer)
                    self._rearm()
                    worker.settle_soon(promised)
                else:
                    self._reply(answer)
                return True
        if self._dear_until > worker.now:
            return False
        message = _Message(method, target, "1.1", known.headers, True, body)
        message.is_alone = True
        began = time.thread_time()
        self._begin(message)
        if time.thread_time() - began > _DEAR_SECS:
            self._dear_until = worker.now + _DEAR_FOR_SECS
        return True

    def _get_to_know(self, data: bytes, message: _Message) -> None:
        """Keep the fields of a request that came whole and alone, where nothing about it is odd."""
        fields, _, body = data.partition(b"\r\n")[2].partition(_END_OF_HEAD)
        headers = message.headers
        length = len(body)
        if (
            message.keeps
            and message.version == "1.1"
            and message.body == body
            and not message.repeated
            and headers.get("content-length", "0") == str(length)
            and _CAREFUL.isdisjoint(headers)
            # Such a name may be allowed to one peer and not to another.
            and not any("_" in name for name in headers)
            # One line each: none was dropped.
            and fields.count(b"\r\n") == len(headers) - 1
        ):
            # Without a body they are known by all that follows the first line.
            key = fields if body else fields + _END_OF_HEAD
            self.worker.keep_fields(key, _Known(headers, length))

    def _ask_first(self) -> None:
        """Ask the application about a request whose body has not come yet; once for each."""
        worker, reader = self.worker, self._reader
        reader.is_unasked = False
        message = reader.message
        assert message is not None  # it is amid this one
        found: Answer | int = MAX_BODY_BYTES
        request = self._fast_request(message)
        if request is None:
            try:
                worker.wsgi_request(self, message)
            except _RefusedError as error:
                self._refuse(error)
                return
        else:
            try:
                found = worker.hooks.admit(request)
            except Exception:
                worker.log.exception("Error handling request %s", message.target)
                found = Answer(500)
        if isinstance(found, Answer):
            worker.count_request()
            if worker.observes:
                message.started = worker.begun(self, message)
            message.keeps = False
            self._end_reading()
            self._send(message, found)
            return
        try:
            reader.allow(found)
        except _RefusedError as error:
            self._refuse(error)
            return
        if reader.awaits_100:
            reader.awaits_100 = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _end_reading(self) -> None:
        """Read no more requests."""
        self._is_deaf = True
        self._stash.clear()
        self._reader.drop()

    # Answering

    def _begin(self, message: _Message) -> None:
        worker = self.worker
        worker.count_request()
        request = self._fast_request(message)
        if request is not None:
            if worker.observes:
                message.started = worker.begun(self, message)
            try:
                found = worker.hooks.fast_lane(request)
                if isinstance(found, Answer):
                    self._send(message, found)
                    return
            except Exception:
                worker.log.exception("Error handling request %s", message.target)
                message.keeps = False
                self._send(message, Answer(500))
                return
            if found is not None:
                self._current = stream = _StreamAnswer(self, message, found)
                self._rearm()
                stream.begin()
                return
        try:
            request_ = worker.wsgi_request(self, message)
        except _RefusedError as error:
            message.discard()
            self._refuse(error)
            return
        self._current = answer = _WsgiAnswer(self, message, request_)
        self._rearm()
        is_long = not isinstance(message.body, bytes) or len(message.body) > _MAX_FAST_BODY
        (worker.long_pool if is_long else worker.pool).submit(answer.run)

    def _fast_request(self, message: _Message) -> Request | None:
        """The message for the fast lane; None where it is not one for it."""
        body = message.body
        read_body: Callable[[int], bytes] = _no_body
        if body:
            if not isinstance(body, bytes) or len(body) > _MAX_FAST_BODY:
                return None
            read_body = _reader(body)
        worker = self.worker
        target = message.target
        headers = message.headers
        if target[0] != "/" or worker.base_path or "script_name" in headers:
            target = self._mounted(target) if "script_name" not in headers else ""
            if not target:
                return None
        path, _, query = target.partition("?")
        peer = self.peer
        return Request(
            message.method,
            path,
            query,
            headers,
            read_body,
            worker.scheme,
            peer if isinstance(peer, str) else peer[0],
            worker.base_path,
        )

    def _mounted(self, target: str) -> str:
        """What an unusual target is below the application's base; empty where that is not sure."""
        url = _ABSOLUTE(target)
        if url is not None:
            # The absolute form, as for a proxy. Its path may be empty, and a query have slashes.
            rest = target[url.end() :]
            target = rest if rest.startswith("/") else f"/{rest}"
        base_path = self.worker.base_path
        if target == "*":
            return target
        if not target.startswith(base_path + "/"):
            return ""
        return target[len(base_path) :]

    def _reply(self, answer: Answer) -> None:
        """Answer a request that came alone and keeps its connection, soon and whole."""
        worker = self.worker
        sent = answer.sent
        if sent is None or sent[0] is not worker.heads:
            sent = answer.sent = (worker.heads, worker.whole(answer))
        whole = sent[1]
        if type(whole) is tuple:
            self.write_parts(whole)
            if self._is_paused:
                return
        elif self._pending:
            self.write(whole)
        else:
            self._pending = whole
            worker.send_soon(self)
        self.deadline = worker.now + worker.keepalive

    def _send(self, message: _Message, answer: Answer) -> None:
        worker = self.worker
        body, parts, length = answer.body, answer.parts, answer.length
        status = answer.status
        keeps = message.keeps and worker.keeps_alive
        head = worker.head_of(answer, keeps, message.version)
        if status in _BODILESS or message.method == "HEAD":
            body, parts, length = b"", (), 0
        if parts:
            self.write_parts((head, *parts))
        elif len(body) > _JOINED_BODY:
            self.write_parts((head, body))
        elif message.is_alone and keeps and not self._pending:
            self._pending = head + body
            worker.send_soon(self)
        else:
            self.write(head + body)
        if message.started is not None:
            worker.report(self, message, status, answer, length)
        if not keeps:
            self._close()
        else:
            self._rearm()

    def _refuse(self, error: _RefusedError) -> None:
        """Answer with an error, and read no further."""
        peer = self.peer if isinstance(self.peer, str) else self.peer[0]
        self.worker.log.warning("Invalid request from ip=%s: %s", peer, error)
        self._end_reading()
        self.write(self.worker.plain_head(error.status, "1.1", False))
        self._close()

    def _close(self) -> None:
        """Close once all is sent. What still comes is read, or the last answer could be lost."""
        self.flush()
        self._end_reading()
        self._rearm()
        transport = self._transport
        if transport.is_closing():
            return
        if self._has_ended or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            self._is_held = False
            transport.resume_reading()


def _no_body(limit: int) -> bytes:
    return b""


def _reader(body: bytes) -> Callable[[int], bytes]:
    def read_body(limit: int) -> bytes:
        if len(body) > limit:
            raise BodyTooLargeError
        return body

    return read_body


class EventLoopWorker(base.Worker):
    """The worker process. Its loop's thread runs everything but the WSGI application."""

    def init_process(self) -> None:
        """Prepare, load the application, and run."""
        self.prepare()
        super().init_process()

    def prepare(self) -> None:
        """Make what the connections share."""
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.pool = ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="wsgi")
        # Long bodies are read one after the other: several at once would leave the interpreter to
        # nobody else, and fill the pool.
        self.long_pool = ThreadPoolExecutor(1, thread_name_prefix="wsgi-long")
        self.connections: set[_Connection] = set()
        self.names: dict[bytes, str] = {}
        self.heads: dict[tuple[int, str | None, int | None, bool, str, Extra], bytes] = {}
        # The fields of requests, by what stands between the first line and the end of the head.
        self.known_fields: dict[bytes, _Known] = {}
        self._fields_since = 0.0
        self.known_requests: dict[bytes, Callable[[], Answer | None]] = {}
        # Who has more to be read than its share.
        self._queued: deque[_Connection] = deque()
        self._gives_turns = False
        self.room = _Room(_MAX_SPOOLED_BYTES)
        self._sends_soon = False
        self._to_send: list[_Connection] = []
        self._promised: list[_PromisedAnswer] = []
        self.limits = _Limits.of(self.cfg)
        self.now = self.loop.time()
        # For the first request of a connection there is time even where none is kept.
        self.keepalive = float(self.cfg.keepalive or _LINGER_SECS)
        self.patience = float(self.cfg.timeout or _DEFAULT_PATIENCE_SECS)
        self.scheme = "https" if self.cfg.is_ssl else "http"
        self.keeps_alive = self.cfg.keepalive > 0
        self.is_quick = False
        self.ssl_context: ssl.SSLContext | None = None
        self._accepted = 0
        self._accepts = False
        self._welcomes: set[asyncio.Task[None]] = set()
        # Under TLS: who has connected and said nothing, until when; and who has, but must wait.
        self._silent: dict[socket.socket, float] = {}
        self._heard: deque[tuple[socket.socket, Address, Address]] = deque()
        self._streams = 0
        self._ticks = False
        self._stops_at: float | None = None
        self._date = (0, b"")

    def adopt(self, app: Any) -> None:
        """Look up what the application offers to the loop."""
        hooks = getattr(app, "loop_hooks", None)
        self.hooks: LoopHooks = LoopHooks() if hooks is None else hooks
        self.observes = self._is_observed()
        self.base_path = os.environ.get("SCRIPT_NAME", "")

    def run(self) -> None:
        """Serve until told to stop."""
        self.adopt(self.wsgi)
        if self.cfg.is_ssl:
            self.ssl_context = gunicorn.sock.ssl_context(self.cfg)
            # Whatever else is configured, nothing else is spoken.
            self.ssl_context.set_alpn_protocols(["http/1.1"])
        loop = self.loop
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._quit)
        loop.add_signal_handler(signal.SIGQUIT, self._quit)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        for listener in self.sockets:
            listener.setblocking(False)
        self._choose_accepting()
        loop.call_soon(self._sweep)
        try:
            loop.run_forever()
        finally:
            for connection in list(self.connections):
                connection.drop()
            # Those whose connection was dropped hear of it here.
            loop.call_soon(loop.stop)
            loop.run_forever()
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.long_pool.shutdown(wait=False, cancel_futures=True)
            loop.close()

    # Time

    def _sweep(self) -> None:
        self.loop.call_later(_SWEEP_SECS, self._sweep)
        self.now = now = self.loop.time()
        self.notify()
        self._refresh_date()
        if self.ppid != os.getppid() and not self.is_stopping():
            self.log.info("Parent changed, shutting down: %s", self)
            self._stop()
        if not self.alive and not self.is_stopping():
            self._stop()
        # The clock of the connections stands still between two sweeps; none is closed too early.
        late = now - _SWEEP_SECS
        for connection in [each for each in self.connections if each.deadline < late]:
            connection.overdue()
        self._forget_silent()
        if self._stops_at is not None and now >= self._stops_at:
            self.log.warning("%d connections did not end in time", self._accepted)
            self.loop.stop()
        self._choose_accepting()

    def _refresh_date(self) -> None:
        second = int(time.time())
        if self._date[0] != second:
            self._date = (second, util.http_date(second).encode())
            # Another one, by which answers know that their date is over.
            self.heads = {}

    def _tick(self) -> None:
        if not self._streams:
            self._ticks = False
            return
        self.loop.call_later(_TICK_SECS, self._tick)
        try:
            self.hooks.tick()
        except Exception:
            self.log.exception("Error in the application's tick")

    def stream_opened(self) -> None:
        self._streams += 1
        if not self._ticks:
            self._ticks = True
            self.loop.call_later(_TICK_SECS, self._tick)

    def stream_closed(self) -> None:
        self._streams -= 1

    # Connections

    def _choose_accepting(self) -> None:
        """Take new connections unless there are too many, or the worker is to stop."""
        has_room = self._accepted < self.cfg.worker_connections
        accepts = self.alive and has_room
        # Clients that keep their connections must not keep everyone else out.
        self.keeps_alive = accepts and self.cfg.keepalive > 0
        self.is_quick = self.keeps_alive and not self.observes and not self.base_path
        if accepts == self._accepts:
            return
        self._accepts = accepts
        for listener in self.sockets:
            if accepts:
                self.loop.add_reader(listener.fileno(), self._accept, listener)
            else:
                self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: Any) -> None:
        # One at a time, so that other workers have their share of a burst.
        try:
            client, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor is free. The next sweep tries again.
            self.log.warning("Cannot accept a connection: %s", error)
            for each in self.sockets:
                self.loop.remove_reader(each.fileno())
            self._accepts = False
            return
        self._accepted += 1
        if self._accepted >= self.cfg.worker_connections:
            self._choose_accepting()
        client.setblocking(False)
        with contextlib.suppress(OSError):
            # What is copied to the kernel at once holds the others up, and stays there for those
            # who do not read.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        server = listener.getsockname()
        if self.ssl_context is None:
            self._welcome_soon(client, peer, server)
        else:
            self._silent[client] = self.now + self.patience
            self.loop.add_reader(client.fileno(), self._hear, client, peer, server)

    def _hear(self, client: socket.socket, peer: Address, server: Address) -> None:
        """Have a client that speaks wait for its handshake, which is dear."""
        self.loop.remove_reader(client.fileno())
        del self._silent[client]
        self._heard.append((client, peer, server))
        if len(self._heard) == 1:
            self.loop.call_soon(self._greet)

    def _greet(self) -> None:
        """Begin one handshake in each turn of the loop."""
        self._welcome_soon(*self._heard.popleft())
        if self._heard:
            self.loop.call_soon(self._greet)

    def _forget_silent(self) -> None:
        for client in [each for each, until in self._silent.items() if until < self.now]:
            del self._silent[client]
            self.loop.remove_reader(client.fileno())
            client.close()
            self.connection_closed()

    def _welcome_soon(self, client: socket.socket, peer: Address, server: Address) -> None:
        welcome = self.loop.create_task(self._welcome(client, peer, server))
        self._welcomes.add(welcome)
        welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, client: socket.socket, peer: Address, server: Address) -> None:
        timeouts: dict[str, Any] = {}
        if self.ssl_context is not None:
            timeouts = {"ssl_handshake_timeout": self.patience, "ssl_shutdown_timeout": 2.0}
        connection = _Connection(self, peer, server)
        try:
            await self.loop.connect_accepted_socket(
                lambda: connection, client, ssl=self.ssl_context, **timeouts
            )
        except OSError as error:
            self.log.debug("A connection could not begin: %s", error)
        finally:
            # Only a connection that was made tells of its end.
            if not connection.was_made():
                self.connection_closed()

    def connection_closed(self) -> None:
        self._accepted -= 1
        if self.is_stopping():
            if not self._accepted:
                self.loop.stop()
        elif not self._accepts:
            self._choose_accepting()

    def take_turns(self, connection: _Connection) -> None:
        """Have a connection take a share when those before it had theirs."""
        self._queued.append(connection)
        if not self._gives_turns:
            self._gives_turns = True
            self.loop.call_soon(self._give_turns)

    def _give_turns(self) -> None:
        """Give shares for a moment; the others have theirs in the next turns of the loop.

        In between everybody is heard whose requests are few and cheap, as heartbeats are.
        """
        queued = self._queued
        until = time.perf_counter() + _TURN_SECS
        try:
            while queued:
                queued.popleft().share()
                if time.perf_counter() >= until:
                    break
        finally:
            self._gives_turns = bool(queued)
            if queued:
                self.loop.call_soon(self._give_turns)

    # Stopping

    def _stop(self) -> None:
        """Accept no more; end when every connection has had its answer."""
        if self.is_stopping():
            return
        self.alive = False
        self.now = self.loop.time()
        self._stops_at = self.now + self.cfg.graceful_timeout
        self._choose_accepting()
        # Whoever comes now is for another worker or, where there is none, refused at once.
        for listener in self.sockets:
            listener.close()
        for connection in list(self.connections):
            connection.wind_down()
        self._silent = dict.fromkeys(self._silent, self.now + _RECENT_SECS)
        for welcome in self._welcomes:
            self.loop.call_later(_RECENT_SECS, welcome.cancel)
        if not self._accepted:
            self.loop.stop()

    def is_stopping(self) -> bool:
        return self._stops_at is not None

    def _quit(self) -> None:
        self.alive = False
        self.cfg.worker_int(self)
        self.loop.stop()

    def handle_abort(self, sig: int, frame: Any) -> None:
        """End at once, for a loop that hangs."""
        # The parser and the loop would take an exception for an error of the request.
        self.cfg.worker_abort(self)
        os._exit(1)

    def _reopen_logs(self) -> None:
        self.log.reopen_files()

    def count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self.keeps_alive = self.is_quick = False
            self.loop.call_soon(self._stop)

    # Heads

    def takes_underscores(self, name: str, peer: Address) -> bool:
        """Whether a field of this name is kept; raises ``_RefusedError`` where it may not come.

        In a WSGI environment it could pass for a field that a proxy has checked.
        """
        cfg = self.cfg
        allowed = cfg.forwarder_headers if self.trusts(peer) else ()
        if cfg.header_map == "dangerous" or {name.upper(), "*"} & set(allowed):
            return True
        if cfg.header_map == "drop":
            return False
        raise _RefusedError(400, f"the header field {name} is not allowed")

    def learn(self, spelling: bytes, name: str) -> None:
        """Keep the spelling of a field's name that needs no second look."""
        if len(self.names) < _MAX_CACHED and len(spelling) <= 64:
            self.names[spelling] = name

    def send_soon(self, connection: _Connection) -> None:
        """Have a connection send when all that has arrived by now is read.

        A client on this machine that sleeps is then woken for many answers at once, not for each.
        """
        if not self._sends_soon:
            self._sends_soon = True
            self.loop.call_soon(self._send_now)
        self._to_send.append(connection)

    def settle_soon(self, promised: _PromisedAnswer) -> None:
        """Have the application keep its promises when all that has arrived by now is read."""
        if not self._sends_soon:
            self._sends_soon = True
            self.loop.call_soon(self._send_now)
        self._promised.append(promised)

    def _send_now(self) -> None:
        if self._promised:
            promised, self._promised = self._promised, []
            try:
                self.hooks.settle()
            except Exception:
                self.log.exception("Error in the application's settling")
            for each in promised:
                each.settle()
        to_send, self._to_send = self._to_send, []
        self._sends_soon = False
        for connection in to_send:
            connection.flush()

    def keep_fields(self, fields: bytes, known: _Known) -> None:
        """Keep what fields say, of so many clients; others have their turn a minute later."""
        if len(self.known_fields) >= _MAX_KNOWN_FIELDS:
            if self.now < self._fields_since + _FORGET_FIELDS_SECS:
                return
            self.known_fields.clear()
            self._fields_since = self.now
        self.known_fields[fields] = known

    def recall(self, data: bytes, read: Callable[[], Answer | None] | None) -> None:
        """Keep what answers a request, byte for byte."""
        if read is not None:
            if len(self.known_requests) >= _MAX_CACHED:
                self.known_requests.clear()
            self.known_requests[data] = read

    def find_lane(self, known: _Known) -> Lane | None:
        """What the application says to fields that come again."""
        known.lane = self.hooks.lane(known.headers)
        known.has_lane = known.lane is not None
        return known.lane

    def whole(self, answer: Answer) -> bytes | tuple[bytes, ...]:
        """An answer as it is sent on a kept connection; in parts where it is long."""
        head = self.head_of(answer, True, "1.1")
        if answer.parts:
            return (head, *answer.parts)
        body = b"" if answer.status in _BODILESS else answer.body
        return (head, body) if len(body) > _JOINED_BODY else head + body

    def head_of(self, answer: Answer, keeps: bool, version: str) -> bytes:
        """The head of an answer, which many have in common."""
        headers = answer.headers
        extra = tuple(headers.items()) if headers else ()
        key = (answer.status, answer.content_type, answer.length, keeps, version, extra)
        head = self.heads.get(key)
        if head is None:
            if len(self.heads) >= _MAX_CACHED:
                self.heads.clear()
            head = self.heads[key] = self.make_head(*key)
        return head

    def make_head(
        self,
        status: int,
        content_type: str | None,
        length: int | None,
        keeps: bool,
        version: str,
        headers: Extra,
    ) -> bytes:
        """The head of an answer up to its body; a ``length`` of None is that of a stream."""
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/{version} {status} {phrase}", f"Server: {SERVER}"]
        lines.append(f"Date: {self._date[1].decode()}")
        lines.append(f"Connection: {'keep-alive' if keeps else 'close'}")
        if length is None and version == "1.1":
            lines.append("Transfer-Encoding: chunked")
        if content_type is not None:
            lines.append(f"Content-Type: {_valid(content_type)}")
        for name, value in headers:
            # The framing is this worker's, whatever an answer says of it.
            if not util.is_hoppish(name) and name.lower() != "content-length":
                if not _TOKEN.fullmatch(name):
                    raise ValueError(f"{name!r} is no name of a header field")
                lines.append(f"{name}: {_valid(value)}")
        if length is not None and status not in _BODILESS:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def plain_head(self, status: int, version: str, keeps: bool) -> bytes:
        return self.make_head(status, None, 0, keeps, version, ())

    # What gunicorn's WSGI layer, access log and hooks need

    def trusts(self, peer: Address) -> bool:
        """Whether what this peer says of the client it forwards is believed."""
        allowed = self.cfg.forwarded_allow_ips
        if not isinstance(peer, tuple) or "*" in allowed:
            return True
        try:
            address = ipaddress.ip_address(peer[0])
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(each) for each in allowed)

    def wsgi_request(self, connection: _Connection, message: _Message) -> _WsgiRequest:
        """The message as gunicorn knows it; raises ``_RefusedError`` where there is no such."""
        told = set()
        headers = message.headers
        for name, secure in self.cfg.secure_scheme_headers.items():
            value = headers.get(name.lower())
            if value is not None and self.trusts(connection.peer):
                told.add("https" if value == secure else "http")
        if len(told) > 1:
            raise _RefusedError(400, "the schemes that are told contradict each other")
        try:
            made = _WsgiRequest(message, told.pop() if told else self.scheme, connection.peer)
        except ValueError as error:
            raise _RefusedError(400, str(error)) from error
        base_path = headers.get("script_name", self.base_path)
        if made.path != "*" and not made.path.startswith(base_path):
            raise _RefusedError(404, f"nothing is served outside of {base_path}")
        return made

    def wsgi_exchange(
        self, connection: _Connection, request: _WsgiRequest, sink: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Gunicorn's response, which writes to ``sink``, and the WSGI environment."""
        # What it needs of a request is all that a ``_WsgiRequest`` has.
        response, environ = wsgi.create(
            cast(Any, request),
            sink,
            cast(Any, connection.peer),
            cast(Any, connection.server()),
            self.cfg,
        )
        environ["wsgi.multithread"] = True
        environ["gunicorn.socket"] = connection.client_socket()
        return response, cast(dict[str, Any], environ)

    def finished(
        self, request: _WsgiRequest, environ: dict[str, Any], response: Any, started: datetime
    ) -> None:
        """Write the access log and call the hook after an answer; never raises."""
        try:
            if self._logs_access and response is not None and response.status is not None:
                self.log.access(response, cast(Any, request), environ, datetime.now() - started)
            self.cfg.post_request(self, request, environ, response)
        except Exception:
            self.log.exception("Exception after a request")

    def begun(self, connection: _Connection, message: _Message) -> datetime:
        """Call the hook before an answer in the fast lane."""
        with contextlib.suppress(_RefusedError):
            self.cfg.pre_request(self, self.wsgi_request(connection, message))
        return datetime.now()

    def report(
        self,
        connection: _Connection,
        message: _Message,
        status: int,
        answer: Answer | Stream,
        sent: int,
    ) -> None:
        """Do for an answer of the fast lane what ``finished`` does for one of the application."""
        try:
            request = self.wsgi_request(connection, message)
            response, environ = self.wsgi_exchange(connection, request, None)
        except Exception:
            self.log.exception("Exception after a request")
            return
        response.status = str(status)
        response.headers = list(answer.headers.items())
        response.sent = sent
        self.finished(request, environ, response, message.started or datetime.now())

    def _is_observed(self) -> bool:
        """Whether anyone is told of each request, which costs far more than most answers."""
        log, cfg = self.log, self.cfg
        # Another logger may do more than log, and is asked each time.
        self._logs_access = type(log).access is not Logger.access or (
            getattr(log, "access_log_enabled", True) and log.access_log.isEnabledFor(logging.INFO)
        )
        return bool(
            self._logs_access
            or cfg.pre_request is not config.PreRequest.default
            or cfg.post_request is not config.PostRequest.default
        )


def _valid(value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise ValueError("a header field's value holds what must not be in it")
    return value
