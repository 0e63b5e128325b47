"""A gunicorn worker whose connections live in one loop: ``worker.EventLoopWorker``.

The WSGI application may have attributes that make use of the loop; each is looked up once:

``fast_lane(request)`` is asked in the loop's thread about every request whose body is empty or
small (16 KiB). It must not wait, nor must what follows. An ``Answer`` is sent at once and a
``Stream`` for as long as its reader stays; for None the WSGI application is called, in one of
``threads`` threads.

``lane(headers)`` is asked once about header fields that came before, byte for byte, and hold no
secret. It may return a ``Lane``, which is asked before ``fast_lane`` about each request with these
fields; None leaves the request to that. A lane may also give a ``Promise``: ``settle()`` is called
when all that had arrived together was read, and every promise has its answer then.

``tick()`` is called in the same thread every 20 ms while a stream is open.

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
from http import HTTPStatus
from typing import IO, Any, NamedTuple, cast

import gunicorn.sock  # type: ignore[import-untyped]  # gunicorn ships no types
import uvloop
from gunicorn import SERVER, config, util
from gunicorn.glogging import Logger  # type: ignore[import-untyped]  # gunicorn ships no types
from gunicorn.http import wsgi  # type: ignore[import-untyped]  # gunicorn ships no types
from gunicorn.workers import base  # type: ignore[import-untyped]  # gunicorn ships no types
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from exchange import Answer, BodyTooLargeError, Lane, Promise, Request, Stream

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_UNSENT_BYTES = 256 * 1024
_MAX_BODY_IN_MEMORY = 64 * 1024
_MAX_FAST_BODY = 16 * 1024
# Input is parsed in pieces of this size. No piece follows while an answer is due, so the requests
# that one connection can queue are those that fit into one piece.
_PIECE = 8 * 1024
# Up to here one buffer for head and body is cheaper than two.
_JOINED_BODY = 64 * 1024
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

_FRAMING = frozenset({"content-length", "transfer-encoding", "expect", "upgrade"})
_SINGLE = frozenset({"host", "content-type", "content-length", "transfer-encoding"})
_BODILESS = frozenset({204, 304})
_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
}
_G = ord("G")
_END_OF_HEAD = b"\r\n\r\n"
_PLAIN_LINE = re.compile(r"(GET|HEAD|POST|PUT|DELETE) (/[!\"$-~]*) HTTP/1\.1").fullmatch
# What a head is not remembered with: it may hold a secret, or ask for more than an answer.
_CAREFUL = frozenset(
    {"authorization", "proxy-authorization", "cookie", "transfer-encoding", "expect", "upgrade"}
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
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


class _Head(NamedTuple):
    """The fields of a head, with each value of those that came more than once."""

    fields: dict[str, str]
    repeated: dict[str, list[str]]


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

    def discard(self) -> None:
        """Let go of the body's file."""
        if not isinstance(self.body, bytes):
            self.body.close()


class _WsgiRequest:
    """A message as gunicorn's WSGI layer, loggers and hooks know a request."""

    # Whoever waits for a 100 has had it before the message was whole.
    _expected_100_continue = False
    proxy_protocol_info = None

    def __init__(self, message: _Message, scheme: str, peer: Address) -> None:
        parts = util.split_request_uri(message.target)
        self.method = message.method
        self.uri = message.target
        self.path: str = parts.path or ""
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

    def write(self, data: bytes) -> None:
        """Send bytes, unless the reader is too far behind already: then it is dropped."""
        if not data or not self._is_open:
            return
        connection = self._connection
        if connection.unsent() > self._limit:
            self._worker.log.info("A reader of %s was too slow", self._message.target)
            connection.drop()
            return
        self._sent += len(data)
        if not self._chunked:
            connection.write(data)
        elif len(data) <= _JOINED_BODY:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            connection.write_parts((b"%x\r\n" % len(data), data, b"\r\n"))

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

    ``deadline`` is when it is overdue, by the loop's clock.
    """

    __slots__ = (
        "_awaits_100",
        "_body",
        "_body_size",
        "_completed",
        "_current",
        "_has_ended",
        "_has_moved",
        "_head",
        "_headers",
        "_is_deaf",
        "_is_odd",
        "_is_partial",
        "_is_paused",
        "_names",
        "_parser",
        "_pending",
        "_queue",
        "_repeated",
        "_repeats",
        "_replay",
        "_resumes",
        "_seen",
        "_server",
        "_stash",
        "_transport",
        "_unsent_before",
        "_url",
        "deadline",
        "peer",
        "worker",
    )

    def __init__(self, worker: EventLoopWorker, peer: Address, server: Address) -> None:
        self.worker = worker
        self.peer = peer
        self._server = server
        self._names = worker.names
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.deadline = math.inf
        # What is due. Both are empty unless an answer is being made or the client does not read.
        self._queue: deque[_Message | _RefusedError] = deque()
        self._stash = bytearray()
        self._pending = b""
        self._current: _WsgiAnswer | _StreamAnswer | _PromisedAnswer | None = None
        self._is_paused = False
        self._resumes = False
        self._unsent_before = 0
        # No more requests: the connection is to be closed, now or after what is queued.
        self._is_deaf = False
        self._has_ended = False
        # The message that is arriving.
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeats = 0
        self._repeated: dict[str, list[str]] = {}
        self._is_odd = False
        self._head: _Head | None = None
        self._body: list[bytes] | IO[bytes] = []
        self._body_size = 0
        self._awaits_100 = False
        self._replay = b""
        # At most so many bytes belong to it; whether any was made use of; whether more must come.
        self._seen = 0
        self._has_moved = False
        self._is_partial = False
        # What was last found whole in what was fed.
        self._completed: _Message | None = None

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.deadline = self.worker.now + max(self.worker.keepalive, _LINGER_SECS)
        self.worker.connections.add(self)
        if self.worker.is_stopping():
            self.wind_down()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        current, self._current = self._current, None
        if current is not None:
            current.lose()
        self._forget_requests()
        self._drop_body()
        # It knows this connection; without it both go at once.
        self._parser = cast(HttpRequestParser, None)
        self.worker.connections.discard(self)
        self.worker.connection_closed()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            if self._is_due():
                self._transport.pause_reading()
        elif self._current is None and not self._is_paused:
            if len(data) <= _PIECE:
                read = self.worker.known_requests.get(data) if data[0] == _G else None
                if (read is None or not self._is_recalled(read)) and not self._is_known(data):
                    self._feed(data)
                    if self._stash:
                        self._drain()
            else:
                self._stash += data
                self._drain()
        else:
            self._stash += data
            if not isinstance(self._current, _StreamAnswer):
                self._transport.pause_reading()
            elif len(self._stash) > MAX_UNSENT_BYTES:
                # Reading on is how one learns that a stream's reader has gone.
                self.drop()

    def eof_received(self) -> bool:
        """Finish what is due for a client that only ceased to send."""
        is_due = self._is_due() or bool(self._queue)
        self._has_ended = is_due and not self.worker.ssl_context
        return self._has_ended

    def _is_due(self) -> bool:
        """Whether an answer is being made that ends by itself."""
        return isinstance(self._current, _WsgiAnswer | _PromisedAnswer)

    def pause_writing(self) -> None:
        self._is_paused = True
        self._resumes = False
        self._unsent_before = self.unsent()
        self.deadline = self.worker.now + self.worker.patience
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
        self.deadline = math.inf
        if self._current is not None:
            self._current.drained()
        elif self._is_deaf and not self._queue:
            self.deadline = self.worker.now + _LINGER_SECS
        else:
            self._advance()

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
        if self._stash or self._queue or self._has_ended:
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
        elif self._is_partial:
            self._refuse(_RefusedError(408, "the request took too long"))
        else:
            self._is_deaf = True
            self._transport.close()
            self.deadline = self.worker.now + _LINGER_SECS

    def wind_down(self) -> None:
        """Close as soon as nothing is due; the worker is about to stop.

        A client that has been here a moment ago may have sent its next request already. That one is
        still answered, so that nothing is lost.
        """
        self.flush()
        if self._current is not None:
            self._current.wind_down()
        elif not (self._is_deaf or self._is_partial or self._queue or self._is_paused):
            worker = self.worker
            recent = worker.now + worker.keepalive - _RECENT_SECS
            if self.deadline < recent:
                self._is_deaf = True
                self._transport.close()
            else:
                self.deadline = worker.now + _RECENT_SECS - _SWEEP_SECS

    def was_made(self) -> bool:
        return self._transport is not None

    def client_socket(self) -> Any:
        """What an application may ask for the client's certificate."""
        transport = self._transport
        return transport.get_extra_info("ssl_object") or transport.get_extra_info("socket")

    def server(self) -> Address:
        return self._server

    # Reading

    def _drain(self) -> None:
        stash = self._stash
        while stash and self._current is None and not self._is_paused and not self._is_deaf:
            piece = bytes(stash[:_PIECE])
            del stash[:_PIECE]
            self._feed(piece)
        if not stash and not self._is_deaf:
            self._transport.resume_reading()

    def _is_recalled(self, read: Callable[[], Answer | None]) -> bool:
        """Answer a request that came before, byte for byte; False where it is to be looked at."""
        worker = self.worker
        if self._seen or self._is_partial or self._queue or not worker.is_quick:
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
        if known is None or self._seen or self._is_partial or self._queue or self._is_deaf:
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
                    self.deadline = math.inf
                    self._current = promised = _PromisedAnswer(self, answer)
                    worker.settle_soon(promised)
                else:
                    self._reply(answer)
                return True
        message = _Message(method, target, "1.1", known.headers, True, body)
        message.is_alone = True
        self._begin(message)
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

    def _feed(self, data: bytes) -> None:
        self._seen += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # An offer to change the protocol is not taken up; what follows is a body or a request.
            self._parser = HttpRequestParser(self)
            self._stash[:0] = self._replay + data[upgrade.args[0] :]
            self._replay = b""
            self._has_moved = False
            self._seen = 0
            return
        except HttpParserError as error:
            self._malformed(error)
            return
        completed, self._completed = self._completed, None
        if self._has_moved:
            self._has_moved = False
            if not self._url:
                if completed is not None and self._seen == len(data):
                    self._get_to_know(data, completed)
                self._seen = 0
                return
            self._seen = len(data)
        if self._is_deaf:
            return
        if self._seen > self.worker.limits.floor:
            try:
                self._check_limits()
            except _RefusedError as error:
                self._refuse(error)
                return
        if not self._is_partial:
            self._is_partial = True
            if self._current is None and not self._is_paused:
                self.deadline = self.worker.now + self.worker.patience

    def _malformed(self, error: HttpParserError) -> None:
        if self._is_deaf:
            return
        cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
        if isinstance(cause, _RefusedError):
            self._refuse(cause)
        elif cause is not None:
            self.worker.log.error("Error reading a request", exc_info=cause)
            self._refuse(_RefusedError(500, repr(cause)))
        else:
            self._refuse(_RefusedError(400, str(error)))

    def _check_limits(self) -> None:
        limits = self.worker.limits
        method = self._parser.get_method() if self._url else b""
        if len(method) + len(self._url) + len("  HTTP/1.1") > limits.line:
            raise _RefusedError(414, "the request line is too long")
        headers = self._headers
        if len(headers) + self._repeats > limits.fields:
            raise _RefusedError(431, "too many header fields")
        if self._seen > limits.field_size:
            for name, value in headers.items():
                if len(name) + len(value) + len(": \r\n") > limits.field_size:
                    raise _RefusedError(431, f"the header field {name} is too long")
            if self._seen > limits.head + _PIECE:
                raise _RefusedError(431, "the head is too long")

    # The parser's calls

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = self._names.get(name)
        if key is None:
            key = self._uncommon(name)
            if not key:
                return
        headers = self._headers
        if key not in headers:
            headers[key] = value.decode("latin-1").strip(" \t")
        elif key in _SINGLE:
            raise _RefusedError(400, f"{key} is given twice")
        else:
            self._repeats += 1
            if self._repeats > self.worker.limits.fields:
                raise _RefusedError(431, "too many header fields")
            values = self._repeated.setdefault(key, [headers[key]])
            values.append(value.decode("latin-1").strip(" \t"))

    def _uncommon(self, spelling: bytes) -> str:
        """The name of a field that is not known by its spelling; empty where it is not wanted."""
        name = spelling.decode("ascii").lower()
        if name in _FRAMING:
            self._is_odd = True
        elif "_" in name:
            # In a WSGI environment it could pass for a field that a proxy has checked.
            worker = self.worker
            allowed = worker.cfg.forwarder_headers if worker.trusts(self.peer) else ()
            if worker.cfg.header_map != "dangerous" and not {name.upper(), "*"} & set(allowed):
                if worker.cfg.header_map == "drop":
                    return ""
                raise _RefusedError(400, f"the header field {name} is not allowed")
            self._is_odd = True
        else:
            self.worker.learn(spelling, name)
        return name

    def on_headers_complete(self) -> None:
        if self._seen > self.worker.limits.floor:
            self._check_limits()
        if self._is_odd:
            self._read_framing()

    def _read_framing(self) -> None:
        headers = self._headers
        parser = self._parser
        version = parser.get_http_version()
        coding = headers.get("transfer-encoding")
        length = 0
        if coding is not None:
            if version != "1.1" or "content-length" in headers:
                raise _RefusedError(400, "the length of the body is not certain")
            if coding.lower() != "chunked":
                raise _RefusedError(501, f"the transfer coding {coding} is not known")
        elif "content-length" in headers:
            given = headers["content-length"]
            if not (given.isascii() and given.isdigit()):
                raise _RefusedError(400, "Content-Length is not a number")
            length = int(given)
            if length > MAX_BODY_BYTES:
                raise _RefusedError(413, "the body is too long")
        if coding is None and not length:
            return
        if "upgrade" in headers and parser.should_upgrade():
            # The parser takes the body for another protocol. Without the offer it does not.
            kept = [f"{name}: {value}" for name, value in headers.items() if name != "upgrade"]
            line = f"{parser.get_method().decode()} {self._url.decode()} HTTP/{version}"
            self._replay = "\r\n".join([line, *kept, "", ""]).encode("latin-1")
            return
        expected = headers.get("expect")
        if expected is not None and version == "1.1":
            if expected.lower() != "100-continue":
                raise _RefusedError(417, f"{expected} cannot be met")
            self._awaits_100 = True
            self._give_100()
        # From here on fields are trailers, which nobody asks for.
        self._head = self._whole_head(headers)
        self._headers = {}
        self._is_partial = True
        if self._current is None:
            self.deadline = self.worker.now + self.worker.patience

    def _give_100(self) -> None:
        if self._awaits_100 and self._current is None and not self._queue:
            self._awaits_100 = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._has_moved = True
        self._awaits_100 = False
        self._body_size += len(data)
        body = self._body
        if self._body_size > MAX_BODY_BYTES:
            raise _RefusedError(413, "the body is too long")
        if isinstance(body, list):
            if self._body_size <= _MAX_BODY_IN_MEMORY:
                body.append(data)
                return
            self._body = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the message
            self._body.write(b"".join(body))
            body = self._body
        body.write(data)

    def on_message_complete(self) -> None:
        if self._is_deaf:
            return
        url, headers = self._url, self._headers
        self._url = b""
        self._headers = {}
        self._has_moved = True
        self._is_partial = False
        parser = self._parser
        if self._is_odd or self._repeats or not url.startswith(b"/"):
            odd = self._odd_message(url, headers)
            if odd is None:
                return
            message = odd
        else:
            method = parser.get_method()
            keeps = parser.should_keep_alive()
            # The version is costly to ask for, and only of 1.1 is a connection kept unasked.
            version = "1.1"
            if not keeps or "connection" in headers:
                version = _checked(parser.get_http_version())
            message = _Message(
                _METHODS.get(method) or method.decode(), url.decode(), version, headers, keeps, b""
            )
        if not message.keeps:
            self._is_deaf = True
        self._completed = message
        if self._current is None and not self._is_paused:
            self._begin(message)
        else:
            self._queue.append(message)

    def _whole_head(self, fields: dict[str, str]) -> _Head:
        repeated, self._repeated = self._repeated, {}
        for name, values in repeated.items():
            fields[name] = ", ".join(values)
        return _Head(fields, repeated)

    def _odd_message(self, url: bytes, headers: dict[str, str]) -> _Message | None:
        """A message with a body, or of which anything else is rare; None to read it once more."""
        parser = self._parser
        head, repeated = self._head or self._whole_head(headers)
        self._repeated = {}
        body = self._body
        self._body = []
        self._body_size = 0
        self._head = None
        self._is_odd = False
        self._repeats = 0
        self._awaits_100 = False
        if self._replay:
            return None
        version = _checked(parser.get_http_version())
        method = parser.get_method().decode()
        target = url.decode()
        # What follows CONNECT would be a tunnel.
        keeps = parser.should_keep_alive() and method != "CONNECT"
        if not isinstance(body, list):
            body.seek(0)
        whole = b"".join(body) if isinstance(body, list) else body
        message = _Message(method, target, version, head, keeps, whole)
        message.repeated = repeated
        return message

    # Answering

    def _begin(self, message: _Message) -> None:
        worker = self.worker
        worker.count_request()
        lane = worker.fast_lane
        if lane is not None:
            request = self._fast_request(message)
            if request is not None:
                if worker.observes:
                    message.started = worker.begun(self, message)
                try:
                    found = lane(request)
                    if isinstance(found, Answer):
                        self._send(message, found)
                        return
                except Exception:
                    worker.log.exception("Error handling request %s", message.target)
                    message.keeps = False
                    self._send(message, Answer(500))
                    return
                if found is not None:
                    self.deadline = math.inf
                    self._current = stream = _StreamAnswer(self, message, found)
                    stream.begin()
                    return
        try:
            request_ = worker.wsgi_request(self, message)
        except _RefusedError as error:
            message.discard()
            self._refuse(error)
            return
        self.deadline = math.inf
        self._current = answer = _WsgiAnswer(self, message, request_)
        worker.pool.submit(answer.run)

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
        if target[0] != "/" or worker.base_path or "#" in target or "script_name" in headers:
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
        if "://" in target and target[0] != "/":
            # The absolute form, as for a proxy.
            _, slash, target = target.partition("://")[2].partition("/")
            target = slash + target
        base_path = self.worker.base_path
        if "#" in target or not target.startswith(base_path + "/"):
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
        elif not self._is_paused:
            self.deadline = worker.now + worker.keepalive

    def _advance(self) -> None:
        queue = self._queue
        while queue and self._current is None and not self._is_paused:
            due = queue.popleft()
            if isinstance(due, _RefusedError):
                self._send_refusal(due)
                return
            self._begin(due)
        if self._current is not None or self._is_paused or self._transport.is_closing():
            return
        self._give_100()
        worker = self.worker
        if self._is_partial:
            self.deadline = worker.now + worker.patience
        elif worker.is_stopping():
            self.deadline = worker.now + _RECENT_SECS - _SWEEP_SECS
        else:
            self.deadline = worker.now + worker.keepalive
        self._drain()
        if self._has_ended and self._current is None and not self._is_paused:
            self._close()

    def _refuse(self, error: _RefusedError) -> None:
        """Answer with an error in its turn, and read no further."""
        peer = self.peer if isinstance(self.peer, str) else self.peer[0]
        self.worker.log.warning("Invalid request from ip=%s: %s", peer, error)
        self._is_deaf = True
        self._stash.clear()
        self._drop_body()
        if self._current is None and not self._is_paused:
            self._send_refusal(error)
        else:
            self._queue.append(error)

    def _send_refusal(self, error: _RefusedError) -> None:
        self.write(self.worker.plain_head(error.status, "1.1", False))
        self._close()

    def _close(self) -> None:
        """Close once all is sent. What still comes is read, or the last answer could be lost."""
        self._is_deaf = True
        self.flush()
        self._forget_requests()
        worker = self.worker
        linger = 0.0 if worker.is_stopping() else _LINGER_SECS
        self.deadline = worker.now + (worker.patience if self._is_paused else linger)
        transport = self._transport
        if transport.is_closing():
            return
        if self._has_ended or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            transport.resume_reading()

    def _forget_requests(self) -> None:
        for message in self._queue:
            if isinstance(message, _Message):
                message.discard()
        self._queue.clear()
        self._stash.clear()

    def _drop_body(self) -> None:
        body, self._body = self._body, []
        if not isinstance(body, list):
            body.close()


def _checked(version: str) -> str:
    if version not in ("1.1", "1.0"):
        raise _RefusedError(400, f"HTTP/{version} is not spoken here")
    return version


def _no_body(limit: int) -> bytes:
    return b""


def _reader(body: bytes) -> Callable[[int], bytes]:
    def read_body(limit: int) -> bytes:
        if len(body) > limit:
            raise BodyTooLargeError
        return body

    return read_body


class EventLoopWorker(base.Worker):  # type: ignore[misc]  # gunicorn ships no types
    """The worker process. Its loop's thread runs everything but the WSGI application."""

    def init_process(self) -> None:
        """Prepare, load the application, and run."""
        self.prepare()
        super().init_process()

    def prepare(self) -> None:
        """Make what the connections share."""
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.pool = ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="wsgi")
        self.connections: set[_Connection] = set()
        self.names: dict[bytes, str] = {}
        self.heads: dict[tuple[int, str | None, int | None, bool, str, Extra], bytes] = {}
        # The fields of requests, by what stands between the first line and the end of the head.
        self.known_fields: dict[bytes, _Known] = {}
        self._fields_since = 0.0
        self.known_requests: dict[bytes, Callable[[], Answer | None]] = {}
        self._sends_soon = False
        self._to_send: list[_Connection] = []
        self._promised: list[_PromisedAnswer] = []
        self.limits = _Limits.of(self.cfg)
        self.now = self.loop.time()
        self.keepalive = float(self.cfg.keepalive)
        self.patience = float(self.cfg.timeout or _DEFAULT_PATIENCE_SECS)
        self.scheme = "https" if self.cfg.is_ssl else "http"
        self.keeps_alive = self.cfg.keepalive > 0
        self.is_quick = False
        self.ssl_context: ssl.SSLContext | None = None
        self._accepted = 0
        self._accepts = False
        self._welcomes: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._ticks = False
        self._stops_at: float | None = None
        self._date = (0, b"")

    def adopt(self, app: Any) -> None:
        """Look up the attributes that an application may have."""
        self.fast_lane: Callable[[Request], Answer | Stream | None] | None
        self.fast_lane = getattr(app, "fast_lane", None)
        self._app_tick: Callable[[], None] | None = getattr(app, "tick", None)
        self.observes = self._is_observed()
        self.base_path = os.environ.get("SCRIPT_NAME", "")
        self._app_lane: Callable[[dict[str, str]], Lane | None] | None
        self._app_lane = getattr(app, "lane", None)
        self._app_settle: Callable[[], None] = getattr(app, "settle", lambda: None)

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
        if not self._streams or self._app_tick is None:
            self._ticks = False
            return
        self.loop.call_later(_TICK_SECS, self._tick)
        try:
            self._app_tick()
        except Exception:
            self.log.exception("Error in the application's tick")

    def stream_opened(self) -> None:
        self._streams += 1
        if not self._ticks and self._app_tick is not None:
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
        welcome = self.loop.create_task(self._welcome(client, peer, listener.getsockname()))
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

    # Stopping

    def _stop(self) -> None:
        """Accept no more; end when every connection has had its answer."""
        if self.is_stopping():
            return
        self.alive = False
        self.now = self.loop.time()
        self._stops_at = self.now + self.cfg.graceful_timeout
        self._choose_accepting()
        for connection in list(self.connections):
            connection.wind_down()
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
                self._app_settle()
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
        if self._app_lane is not None:
            known.lane = self._app_lane(known.headers)
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
            return _WsgiRequest(message, told.pop() if told else self.scheme, connection.peer)
        except ValueError as error:
            raise _RefusedError(400, str(error)) from error

    def wsgi_exchange(
        self, connection: _Connection, request: _WsgiRequest, sink: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Gunicorn's response, which writes to ``sink``, and the WSGI environment."""
        response, environ = wsgi.create(
            request, sink, connection.peer, connection.server(), self.cfg
        )
        environ["wsgi.multithread"] = True
        environ["gunicorn.socket"] = connection.client_socket()
        return response, environ

    def finished(
        self, request: _WsgiRequest, environ: dict[str, Any], response: Any, started: datetime
    ) -> None:
        """Write the access log and call the hook after an answer; never raises."""
        try:
            if self._logs_access and response is not None and response.status is not None:
                self.log.access(response, request, environ, datetime.now() - started)
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
