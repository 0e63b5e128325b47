"""Answers that take their time: of the WSGI application, promised by a lane, and streams.

Each is made for one request of one connection, which does not read the next request meanwhile. An
answer writes to its connection as a ``Sink`` and tells it when it has ended; the connection tells
the answer of backpressure (``blocked``, ``drained``), of the client's leaving (``lose``) and of the
worker's stop (``wind_down``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from eureka_http.exchange import Answer, Promise, Stream
from eureka_http.gunicorn_glue import Gunicorn, Logger, WsgiRequest
from eureka_http.heads import BODILESS, JOINED_BODY, Heads
from eureka_http.reader import Address, Message

MAX_UNSENT_BYTES = 256 * 1024
"""How far a client may be behind in reading before backpressure sets in, in bytes."""


class Sink(Protocol):
    """The connection as its answers see it. To be used in the loop's thread only."""

    peer: Address
    server: Address

    def client_socket(self) -> Any:
        """The socket that a WSGI application is shown."""

    def write(self, data: bytes) -> None:
        """Send bytes; nothing happens where the client has gone."""

    def write_parts(self, parts: tuple[bytes, ...]) -> None:
        """Send several pieces, without joining them."""

    def unsent(self) -> int:
        """How many bytes the client has not taken yet."""

    def answered(self, keeps: bool) -> None:
        """The answer has ended; ``keeps`` says whether its head let the client stay."""

    def settled(self, answer: Answer) -> None:
        """Send the whole answer, which was promised before."""

    def drop(self) -> None:
        """Close at once, whatever has not been sent."""


class Host(Protocol):
    """The worker as answers see it."""

    loop: asyncio.AbstractEventLoop
    gunicorn: Gunicorn
    heads: Heads
    keeps_alive: bool
    observes: bool

    log: Logger

    @property
    def wsgi(self) -> Callable[..., Any]:
        """The WSGI application."""

    def stream_opened(self) -> None:
        """One more stream is open."""

    def stream_closed(self) -> None:
        """One less."""


class ClientGoneError(ConnectionError):
    """Nobody reads this answer any more."""


class Answering:
    """An answer that is being made. What a kind of answer does not care about does nothing."""

    __slots__ = ()

    reads_on = False
    """Whether the connection is read meanwhile, which is how one learns that a client has left."""

    def blocked(self) -> None:
        """The client does not read what it is sent."""

    def drained(self) -> None:
        """The client has read what blocked it."""

    def lose(self) -> None:
        """The client has gone."""

    def wind_down(self) -> None:
        """The worker is about to stop. By default an answer that has begun is finished."""


class WsgiAnswer(Answering):
    """What the WSGI application answers in a thread, to be sent in the loop.

    The thread waits where the client does not read; it gets an error where the client has gone.
    """

    def __init__(self, host: Host, sink: Sink, message: Message, request: WsgiRequest) -> None:
        self._host = host
        self._sink = sink
        self._message = message
        self._request = request
        # What the thread has not handed to the loop, and whether it hands over all at once.
        self._held: list[bytes] = []
        self._holds_all = False
        self._posted = False
        # Guards what follows, and is notified when the thread may go on.
        self._room = threading.Condition()
        # Handed to the loop and not yet written to the connection.
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

    def _deliver(self, data: bytes, ended: bool, keeps: bool) -> None:
        with self._room:
            self._unsent -= len(data)
            if self._is_gone:
                return
            self._room.notify_all()
        self._sink.write(data)
        if ended:
            self._sink.answered(keeps)

    # In the thread

    def run(self) -> None:
        """Call the application and send what it answers; never raises."""
        host, request = self._host, self._request
        gunicorn = host.gunicorn
        response: Any = None
        environ: dict[str, Any] = {}
        keeps = False
        started = datetime.now()
        try:
            if self._message.started is None:
                gunicorn.begins(request)
            client = self._sink.client_socket()
            response, environ = gunicorn.exchange(request, self._sink.server, client, self)
            if not host.keeps_alive:
                response.force_close()
            self._call(environ, response)
            keeps = not response.should_close()
            length = response.response_length
            has_body = request.method != "HEAD" and response.status_code not in BODILESS
            if length is not None and response.sent < length and has_body:
                host.log.warning("%s ended before its Content-Length", request.uri)
                keeps = False
        except ClientGoneError:
            host.log.debug("The client left before its answer: %s", request.uri)
        except (Exception, SystemExit):
            host.log.exception("Error handling request %s %s", request.method, request.uri)
            keeps = False
            if not self._posted:
                self._held = [host.heads.empty(500, self._message.version)]
                if response is not None:
                    response.status, response.sent = "500 Internal Server Error", 0
        finally:
            self._post(ended=True, keeps=keeps)
            gunicorn.ended(request, environ, response, started)
            self._message.discard()

    def _call(self, environ: dict[str, Any], response: Any) -> None:
        body = self._host.wsgi(environ, response.start_response)
        try:
            # All of a list is there already; each part of any other iterable is sent as it comes.
            self._holds_all = isinstance(body, list | tuple)
            for part in body:
                response.write(part)
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()

    def sendall(self, data: bytes) -> None:
        """Send: this is the socket of gunicorn's response."""
        # The head waits for the first part of the body, so that both leave in one packet; but not
        # a 103 (Early Hints), which is to be early.
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
                raise ClientGoneError
            self._unsent += len(data)
        self._posted = True
        # A closed loop raises RuntimeError; then nobody waits for an answer any more.
        with contextlib.suppress(RuntimeError):
            self._host.loop.call_soon_threadsafe(self._deliver, data, ended, keeps)


class PromisedAnswer(Answering):
    """What a lane promised to one request."""

    __slots__ = ("_is_gone", "_promise", "_sink")

    def __init__(self, sink: Sink, promise: Promise) -> None:
        self._sink = sink
        self._promise = promise
        self._is_gone = False

    def settle(self) -> None:
        """Send the answer that is there by now; 500 where the promise was not kept."""
        if not self._is_gone:
            self._sink.settled(self._promise.answer or Answer(500))

    def lose(self) -> None:
        self._is_gone = True


class StreamAnswer(Answering):
    """A ``Stream`` on its way to one reader."""

    reads_on = True

    def __init__(self, host: Host, sink: Sink, message: Message, stream: Stream) -> None:
        self._host = host
        self._sink = sink
        self._message = message
        self._stream = stream
        self._chunked = message.version == "1.1"
        self._keeps = message.keeps and self._chunked
        self._leave: Callable[[], None] | None = None
        self._is_open = True
        self._sent = 0
        # How many unsent bytes make a reader too slow. What a stream begins with may be long, so
        # that is not counted until it was read.
        self._limit = math.inf

    def begin(self) -> None:
        """Send the head, then let the stream write."""
        host, stream = self._host, self._stream
        keeps = self._keeps = self._keeps and host.keeps_alive
        headers = tuple(stream.headers.items())
        version = self._message.version
        self._sink.write(host.heads.make(200, stream.content_type, None, keeps, version, headers))
        if self._message.method == "HEAD":
            self._finish()
            return
        host.stream_opened()
        try:
            self._leave = stream.subscribe(self.write, self.end)
        except Exception:
            host.log.exception("Error handling request %s", self._message.target)
            self._sink.drop()
            return
        self._limit = MAX_UNSENT_BYTES + self._sink.unsent()
        if not self._is_open:
            self._let_go()

    def write(self, data: bytes) -> int:
        """Send bytes, and return how many bytes the reader has not taken yet.

        A reader that is too far behind already is dropped.
        """
        if not self._is_open:
            return 0
        sink = self._sink
        if not data:
            return sink.unsent()
        if sink.unsent() > self._limit:
            self._host.log.info("A reader of %s was too slow", self._message.target)
            sink.drop()
            return 0
        self._sent += len(data)
        if not self._chunked:
            sink.write(data)
        elif len(data) <= JOINED_BODY:
            sink.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            sink.write_parts((b"%x\r\n" % len(data), data, b"\r\n"))
        return sink.unsent()

    def end(self) -> None:
        """End the body; the connection may go on."""
        if self._is_open:
            if self._chunked:
                self._sink.write(b"0\r\n\r\n")
            self._host.stream_closed()
            self._finish()

    def _finish(self) -> None:
        self._is_open = False
        # Soon, not now: a stream may end while it begins, when its request is still being read.
        self._host.loop.call_soon(self._sink.answered, self._keeps)
        self._let_go()
        self._report()

    def _let_go(self) -> None:
        """Tell the stream, once, that this reader has gone or was told the end."""
        leave, self._leave = self._leave, None
        if leave is not None:
            try:
                leave()
            except Exception:
                self._host.log.exception("Error ending %s", self._message.target)

    def _report(self) -> None:
        if self._host.observes:
            sink = self._sink
            client = sink.client_socket()
            self._host.gunicorn.ended_fast(
                self._message, sink.peer, sink.server, client, self._stream, self._sent
            )

    def drained(self) -> None:
        self._limit = MAX_UNSENT_BYTES

    def lose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._host.stream_closed()
            self._let_go()
            self._report()

    def wind_down(self) -> None:
        """End it for its reader, who is to come back to another worker."""
        self._keeps = False
        self.end()
