"""A gunicorn worker on one event loop: what can be answered at once never waits for a thread.

Requests are parsed by httptools on uvloop. Each goes to the application's ``fast_lane`` first, in
the loop's thread; what that is not sure about runs through the WSGI application in a pool of
``threads``. Without a fast lane this is a plain threaded worker.

The application may carry, each optional:

* ``fast_lane(Request) -> Answer | Stream | None``: None hands the request on.
* ``tick()``: called every 20 ms while a ``Stream`` is open.
"""

from __future__ import annotations

import asyncio
import http
import io
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import formatdate
from types import SimpleNamespace
from typing import IO, Any, cast
from urllib.parse import unquote_to_bytes

import httptools
import uvloop
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]  # gunicorn has no types
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]  # the same

from exchange import Answer, BodyTooLargeError, Request, Stream

SPOOL_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_UNSENT_BYTES = 256 * 1024
MAX_PIPELINED = 64
TICK_SECS = 0.02
_HOUSEKEEPING_SECS = 1.0
_FIRST_REQUEST_SECS = 1.0
_STATUS = {s.value: f"{s.value} {s.phrase}".encode() for s in http.HTTPStatus}
_BODILESS = frozenset({204, 304})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect"})

HeaderList = list[tuple[bytes, bytes]]


class Received:
    """One request as it came, with its body read whole."""

    __slots__ = ("began", "body", "headers", "keep_alive", "method", "target", "version")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.version = "1.1"
        self.headers: HeaderList = []
        self.body: IO[bytes] | None = None
        self.keep_alive = True
        self.began = 0.0

    def read_body(self, limit: int) -> bytes:
        """At most so many bytes; ``BodyTooLargeError`` where there are more."""
        if self.body is None:
            return b""
        data = self.body.read(limit + 1)
        if len(data) > limit:
            raise BodyTooLargeError
        return data


class Connection(asyncio.Protocol):
    """One client: requests in, answers out in the same order."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_broken",
        "_busy",
        "_framing",
        "_leave",
        "_parser",
        "_paused",
        "_queue",
        "_request",
        "_worker",
        "last_used",
        "peer",
        "receiving",
        "transport",
        "writable",
    )

    def __init__(self, worker: EventLoopWorker) -> None:
        self._worker = worker
        self._parser = httptools.HttpRequestParser(self)
        self._request = Received()
        self._body: IO[bytes] | None = None
        self._body_bytes = 0
        self._framing: HeaderList = []
        self._queue: deque[Received] = deque()
        self._busy = False
        self._paused = False
        self._broken = False
        self._leave: Callable[[], None] | None = None
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.peer: Any = ""
        self.receiving = False
        self.last_used = 0.0
        self.writable = threading.Event()
        self.writable.set()

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer if isinstance(peer, tuple) and peer else ("", 0)
        self.last_used = self._worker.now
        if not self._worker.admit(self):
            self._refuse(503)

    def connection_lost(self, error: Exception | None) -> None:
        self._broken = True
        self.writable.set()
        self._queue.clear()
        self._worker.connections.discard(self)
        self._left()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        self.last_used = self._worker.now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer that is not taken up: the request is answered as any other
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause.status if isinstance(cause, _RefusedError) else 400)
        except (httptools.HttpParserError, ValueError):
            self._refuse(400)

    # The parser's calls

    def on_message_begin(self) -> None:
        self.receiving = True
        self._request = Received()
        self._request.began = time.monotonic()
        self._body = None
        self._body_bytes = 0
        self._framing.clear()

    def on_url(self, url: bytes) -> None:
        self._request.target += url
        if len(self._request.target) > self._worker.max_target:
            raise _RefusedError(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._request.headers
        if (
            len(headers) >= self._worker.max_headers
            or len(name) + len(value) > self._worker.max_header_bytes
        ):
            raise _RefusedError(431)
        name = name.lower()
        if name in _FRAMING:
            self._framing.append((name, value))
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        if self._framing:
            self._check_framing(request)

    def _check_framing(self, request: Received) -> None:
        lengths = {value for name, value in self._framing if name == b"content-length"}
        chunked = any(name == b"transfer-encoding" for name, _ in self._framing)
        if len(lengths) > 1 or (lengths and chunked):
            raise _RefusedError(400)  # two readings of where the next request begins
        if lengths and int(next(iter(lengths))) > MAX_BODY_BYTES:
            raise _RefusedError(413)
        expects = (b"expect", b"100-continue") in self._framing and request.version != "1.0"
        if expects and not self._busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            raise _RefusedError(413)
        if self._body is None:
            self._body = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  # closed when it was answered
        self._body.write(data)

    def on_message_complete(self) -> None:
        request = self._request
        if self._body is not None:
            self._body.seek(0)
            request.body = self._body
        self.receiving = False
        if self._broken or self.transport.is_closing():
            return  # sent on after it was told that this connection ends
        if self._busy:
            self._queue.append(request)
            if len(self._queue) >= MAX_PIPELINED and not self._paused:
                self._paused = True
                self.transport.pause_reading()
            return
        self._begin(request)

    # Answering

    def _begin(self, request: Received) -> None:
        worker = self._worker
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            worker.retire()
        if not worker.alive:
            request.keep_alive = False
        if worker.fast_lane is not None and request.target[:1] == b"/":
            try:
                answer = worker.fast_lane(self._as_request(request))
            except Exception:
                worker.log.exception("Error handling request %s", request.method)
                answer = Answer(500)
            if isinstance(answer, Answer):
                self._answer(request, answer)
                return
            if answer is not None:
                self._stream(request, answer)
                return
            if request.body is not None:
                request.body.seek(0)
        self._busy = True
        worker.pool.submit(self._run_application, request)

    def _as_request(self, request: Received) -> Request:
        path, _, query = request.target.partition(b"?")
        headers: dict[str, str] = {}
        for raw_name, raw_value in request.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Request(
            request.method,
            path.decode("latin-1"),
            query.decode("latin-1"),
            headers,
            request.read_body,
            self._worker.scheme,
            self.peer[0],
        )

    def _answer(self, request: Received, answer: Answer) -> None:
        head = self._worker.head(answer, request.keep_alive, request.version)
        body = answer.body
        if answer.status in _BODILESS:
            self.transport.write(head + b"\r\n")
        else:
            head += b"Content-Length: %d\r\n\r\n" % len(body)
            self.transport.write(head if request.method == "HEAD" else head + body)
        if self._worker.logs_access:
            self._worker.log_access(self, request, answer.status, answer.headers, len(body))
        self._finish(request)

    def _stream(self, request: Received, stream: Stream) -> None:
        self._busy = True
        worker = self._worker
        answer = Answer(200, content_type=stream.content_type, headers=stream.headers)
        chunked = request.version != "1.0"
        request.keep_alive = request.keep_alive and chunked
        head = worker.head(answer, request.keep_alive, request.version)
        self.transport.write(head + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        ended = False

        def write(data: bytes) -> None:
            if ended or self._broken or not data:
                return
            if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self.transport.abort()  # it reads too slowly, and can come back and resume
                return
            self.transport.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

        def end() -> None:
            nonlocal ended
            ended = True
            if not self._broken:
                if chunked:
                    self.transport.write(b"0\r\n\r\n")
                self._left()
                self._finish(request)

        try:
            leave = stream.subscribe(write, end)
        except Exception:
            worker.log.exception("Error beginning a stream")
            self.transport.abort()
            return
        if not ended and not self._broken:
            self._leave = leave
            worker.stream_opened(self)
        if worker.logs_access:
            worker.log_access(self, request, 200, stream.headers, 0)

    def _left(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            self._worker.streams.discard(self)
            leave()

    def _finish(self, request: Received) -> None:
        """An answer is written: on to the next request, or the end."""
        self._busy = False
        self.last_used = self._worker.now
        if not request.keep_alive or not self._worker.alive:
            self.transport.close()
            return
        if self._queue:
            following = self._queue.popleft()
            if self._paused and len(self._queue) < MAX_PIPELINED // 2:
                self._paused = False
                self.transport.resume_reading()
            # Not from here: a long pipeline must not become a deep stack.
            self._busy = True
            self._worker.loop.call_soon(self._begin_queued, following)

    def _begin_queued(self, request: Received) -> None:
        self._busy = False
        if not self._broken:
            self._begin(request)

    def _refuse(self, status: int) -> None:
        """Answer once and close: what follows cannot be understood."""
        self._broken = True
        if not self._busy:
            head = self._worker.head(Answer(status), False, "1.1")
            self.transport.write(head + b"Content-Length: 0\r\n\r\n")
        self.transport.close()

    def is_idle(self) -> bool:
        return not self._busy and not self._queue and not self.receiving

    def is_new(self) -> bool:
        """Whether it has not asked for anything yet."""
        return not self._request.began

    def is_streaming(self) -> bool:
        return self._leave is not None

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, and refuse what takes too long to arrive."""
        if self._busy or self._broken:
            return
        silent = now - self.last_used
        if self.receiving:
            if now - max(self._request.began, 0.0) > self._worker.timeout:
                self._refuse(408)
        elif silent > self._worker.keep_alive_secs:
            self.transport.close()

    # The WSGI application, in a thread of the pool

    def _run_application(self, request: Received) -> None:
        response = _Response(self, request)
        try:
            result = self._worker.wsgi(self._environ(request), response.start)
            try:
                response.send_all(result)
            finally:
                if hasattr(result, "close"):
                    result.close()
        except _ClientGoneError:
            pass
        except BaseException as error:
            self._worker.log.exception("Error handling request %s", request.method)
            self._worker.in_loop(self._failed, request, response.begun)
            if not isinstance(error, Exception):
                raise
        else:
            self._worker.in_loop(self._done, request, response)
        finally:
            if request.body is not None:
                request.body.close()

    def _environ(self, request: Received) -> dict[str, Any]:
        worker = self._worker
        target = request.target
        if target[:1] != b"/" and b"://" in target:  # absolute form, as a proxy sends it
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        path, _, query = target.partition(b"?")
        script = worker.script_name
        path_info = unquote_to_bytes(path).decode("latin-1")
        environ: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": worker.scheme,
            "wsgi.input": request.body if request.body is not None else io.BytesIO(),
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": worker.cfg.workers > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": _FileWrapper,
            "SERVER_SOFTWARE": "gunicorn",
            "SERVER_PROTOCOL": f"HTTP/{request.version}",
            "REQUEST_METHOD": request.method,
            "RAW_URI": request.target.decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "SCRIPT_NAME": script,
            "PATH_INFO": path_info.removeprefix(script) if script else path_info,
            "REMOTE_ADDR": self.peer[0],
            "REMOTE_PORT": str(self.peer[1]),
        }
        here = self.transport.get_extra_info("sockname")
        name, port = here[:2] if isinstance(here, tuple) else (str(here), "")
        environ["SERVER_NAME"], environ["SERVER_PORT"] = name, str(port)
        for raw_name, raw_value in request.headers:
            header = raw_name.decode("latin-1").upper().replace("-", "_")
            if "_" in raw_name.decode("latin-1"):
                continue  # it would pass for the one with a dash
            value = raw_value.decode("latin-1")
            key = header if header in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{header}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        if request.body is not None and "HTTP_TRANSFER_ENCODING" in environ:
            del environ["HTTP_TRANSFER_ENCODING"]  # it is undone; the input has an end of its own
        return environ

    def _done(self, request: Received, response: _Response) -> None:
        if response.must_close:
            request.keep_alive = False
        if self._worker.logs_access:
            headers = dict(response.headers)
            self._worker.log_access(self, request, response.status, headers, response.sent)
        if not self._broken:
            self._finish(request)

    def _failed(self, request: Received, begun: bool) -> None:
        if self._broken:
            return
        if begun:
            self.transport.abort()  # half an answer must not look whole
            return
        self._busy = False
        self._answer(request, Answer(500))

    def send_from_thread(self, data: bytes) -> None:
        """Write from the application's thread; waits while the client is slow to read."""
        while not self.writable.wait(1.0):
            if self._broken:
                raise _ClientGoneError
        if self._broken:
            raise _ClientGoneError
        self._worker.in_loop(self._write, data)

    def _write(self, data: bytes) -> None:
        if not self._broken:
            self.transport.write(data)


class _RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _ClientGoneError(Exception):
    pass


class _FileWrapper:
    def __init__(self, file: IO[bytes], block: int = 65536) -> None:
        self._file, self._block = file, block

    def __iter__(self) -> Iterator[bytes]:
        while data := self._file.read(self._block):
            yield data

    def close(self) -> None:
        if hasattr(self._file, "close"):
            self._file.close()


class _Response:
    """One answer of the WSGI application (PEP 3333)."""

    def __init__(self, connection: Connection, request: Received) -> None:
        self._connection = connection
        self._request = request
        self._chunked = False
        self.status = 500
        self.headers: list[tuple[str, str]] = []
        self.begun = False
        self.sent = 0
        self.must_close = False
        self._line = ""

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """``start_response``."""
        if exc_info is not None:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._line:
            raise AssertionError("the answer has been started already")
        for name, value in headers:
            if any(c in name or c in value for c in "\r\n\0"):
                raise ValueError("a header holds a line break")
        self._line, self.headers = status, headers
        self.status = int(status[:3])
        return lambda data: self._send(data)

    def send_all(self, result: Iterable[bytes]) -> None:
        """Send what the application gives, in one write where it is one piece."""
        if isinstance(result, list | tuple) and not self.begun:
            whole = b"".join(result)
            self._send(whole, of=len(whole), last=True)
            return
        for data in result:
            if data:
                self._send(data)
        self._send(b"", of=0, last=True)

    def _send(self, data: bytes, *, of: int | None = None, last: bool = False) -> None:
        if not self._line:
            raise AssertionError("the answer was never started")
        out = b""
        if not self.begun:
            self.begun = True
            out = self._head(of)
        if self._request.method != "HEAD" and self.status not in _BODILESS:
            self.sent += len(data)
            if self._chunked:
                out += b"%x\r\n%s\r\n" % (len(data), data) if data else b""
                out += b"0\r\n\r\n" if last else b""
            else:
                out += data
        if out:
            self._connection.send_from_thread(out)

    def _head(self, length: int | None) -> bytes:
        names = {name.lower() for name, _ in self.headers}
        request = self._request
        worker = self._connection._worker
        lines = [f"HTTP/1.1 {self._line}"]
        if "server" not in names:
            lines.append("Server: gunicorn")
        lines.append(worker.date)
        lines += [f"{n}: {v}" for n, v in self.headers if n.lower() != "connection"]
        if any(n.lower() == "connection" and v.lower() == "close" for n, v in self.headers):
            self.must_close = True
        if "content-length" not in names and self.status not in _BODILESS:
            if length is not None:
                lines.append(f"Content-Length: {length}")
            elif request.version == "1.0":
                self.must_close = True
            elif request.method != "HEAD":
                self._chunked = True
                lines.append("Transfer-Encoding: chunked")
        keeps = request.keep_alive and not self.must_close and worker.alive
        lines.append(f"Connection: {'keep-alive' if keeps else 'close'}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class EventLoopWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """The worker process: its loop, its listeners, its threads and its end."""

    def init_process(self) -> None:
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.connections: set[Connection] = set()
        self.streams: set[Connection] = set()
        self._heads: dict[Any, bytes] = {}
        self._ticking = False
        self.now = time.monotonic()
        self._refresh_date()
        cfg = self.cfg
        self.max_target = cfg.limit_request_line or 65536
        self.max_headers = cfg.limit_request_fields
        self.max_header_bytes = cfg.limit_request_field_size or 65536
        self.keep_alive_secs = cfg.keepalive
        self.scheme = "https" if cfg.is_ssl else "http"
        self.script_name = os.environ.get("SCRIPT_NAME", "")
        self.logs_access = self.log.access_log.isEnabledFor(20)
        self.pool = ThreadPoolExecutor(cfg.threads, thread_name_prefix="wsgi")
        super().init_process()

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        add = self.loop.add_signal_handler
        add(signal.SIGTERM, self.retire)
        add(signal.SIGQUIT, self._stop_now)
        add(signal.SIGINT, self._stop_now)
        add(signal.SIGWINCH, lambda: None)
        add(signal.SIGUSR1, self.log.reopen_files)
        # The arbiter's last word to a worker that hangs: not to be left to the loop.
        signal.signal(signal.SIGABRT, self.handle_abort)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.fast_lane = None if self.script_name else getattr(self.wsgi, "fast_lane", None)
        self._tick_application = getattr(self.wsgi, "tick", None)

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.loop.close()

    async def _serve(self) -> None:
        self._retired = asyncio.Event()
        if not self.alive:
            self._retired.set()
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        servers = [
            await self.loop.create_server(
                lambda: Connection(self), sock=listener.sock, ssl=context, backlog=self.cfg.backlog
            )
            for listener in self.sockets
        ]
        self._housekeep()
        await self._retired.wait()
        for server in servers:
            server.close()
        began = time.monotonic()
        while self.connections and time.monotonic() < began + self.cfg.graceful_timeout:
            for connection in list(self.connections):
                # One that is new is about to ask: its first request may be on its way.
                waits = connection.is_new() and time.monotonic() < began + _FIRST_REQUEST_SECS
                if connection.is_streaming() or (connection.is_idle() and not waits):
                    connection.transport.close()
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.transport.abort()

    def retire(self) -> None:
        """Take no more connections, finish what has begun, and end."""
        self.alive = False
        if hasattr(self, "_retired"):
            self._retired.set()

    def _stop_now(self) -> None:
        self.cfg.worker_int(self)
        for connection in list(self.connections):
            connection.transport.abort()
        self.retire()

    def _housekeep(self) -> None:
        """Each second: a sign of life, the date, and connections that have gone quiet."""
        self.notify()
        self.now = time.monotonic()
        self._refresh_date()
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.retire()
            return
        for connection in list(self.connections):
            connection.sweep(self.now)
        self.loop.call_later(_HOUSEKEEPING_SECS, self._housekeep)

    def _refresh_date(self) -> None:
        self.date = f"Date: {formatdate(usegmt=True)}"
        self._date_line = self.date.encode() + b"\r\n"

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for one more."""
        if len(self.connections) >= self.cfg.worker_connections:
            return False
        self.connections.add(connection)
        return True

    def head(self, answer: Answer, keep_alive: bool, version: str) -> bytes:
        """All of an answer's head but its length, from a store of those that were made before."""
        headers = answer.headers
        key = (answer.status, answer.content_type, keep_alive, version, tuple(headers.items()))
        made = self._heads.get(key)
        if made is None:
            lines = [b"HTTP/1.1 " + _STATUS[answer.status], b"Server: gunicorn"]
            if answer.content_type is not None:
                lines.append(b"Content-Type: " + answer.content_type.encode("latin-1"))
            lines += [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
            if not keep_alive:
                lines.append(b"Connection: close")
            elif version == "1.0":
                lines.append(b"Connection: keep-alive")
            made = b"\r\n".join(lines) + b"\r\n"
            if len(self._heads) > 1000:  # answers with headers of their own, such as locations
                self._heads.clear()
            self._heads[key] = made
        return made + self._date_line

    def in_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do it in the loop's thread, in the order of these calls."""
        try:
            self.loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:
            raise _ClientGoneError from None  # the loop has ended, and every client with it

    def stream_opened(self, connection: Connection) -> None:
        """Tick for as long as there are streams."""
        self.streams.add(connection)
        if not self._ticking and self._tick_application is not None:
            self._ticking = True
            self.loop.call_later(TICK_SECS, self._tick)

    def _tick(self) -> None:
        if not self.streams or self._tick_application is None:
            self._ticking = False
            return
        try:
            self._tick_application()
        except Exception:
            self.log.exception("Error telling streams what has changed")
        self.loop.call_later(TICK_SECS, self._tick)

    def log_access(
        self, connection: Connection, request: Received, status: int, headers: Any, sent: int
    ) -> None:
        """A line of gunicorn's access log."""
        response = SimpleNamespace(
            status=_STATUS[status].decode(), sent=sent, headers=list(dict(headers).items())
        )
        sent_headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers]
        asked = SimpleNamespace(headers=sent_headers)
        path, _, query = request.target.partition(b"?")
        environ = {
            "REQUEST_METHOD": request.method,
            "RAW_URI": request.target.decode("latin-1"),
            "PATH_INFO": path.decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "SERVER_PROTOCOL": f"HTTP/{request.version}",
            "REMOTE_ADDR": connection.peer[0],
        }
        for name, value in sent_headers:
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        taken = timedelta(seconds=time.monotonic() - request.began)
        self.log.access(response, asked, environ, taken)
