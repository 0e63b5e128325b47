"""The event-loop worker in real gunicorn processes, next to a worker of gunicorn's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from conformance.programs import free_port
from eureka_http.connection import Connection
from eureka_http.exchange import Answer, LoopHooks, Promise, Request
from eureka_http.worker import EventLoopWorker
from tests.servers import ROOT, wait_until

LOOP = "eureka_http.worker.EventLoopWorker"
BOTH = ("gthread", LOOP)

APPLICATION = """
import hashlib, json, os, sys, threading, time
from eureka_http.exchange import Answer, LoopHooks, Promise, Stream
from gunicorn.http.errors import InvalidHeader

state = {"closed": 0, "made": 0, "ticks": 0, "joined": 0, "left": 0, "hooks": [], "fast": 0,
         "lanes": 0, "lane": 0, "read": 0, "settled": [], "asked": 0}
told = ("REQUEST_METHOD", "PATH_INFO", "RAW_URI", "QUERY_STRING", "SCRIPT_NAME", "REMOTE_ADDR",
        "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT", "CONTENT_TYPE", "CONTENT_LENGTH",
        "wsgi.url_scheme", "wsgi.multithread", "wsgi.run_once", "wsgi.version")


class Closing:
    def __init__(self, parts):
        self.parts = iter(parts)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.parts)
    def close(self):
        state["closed"] += 1


def endless():
    while True:
        state["made"] += 1
        yield b"x" * 65536


def late():
    yield b"the beginning"
    raise RuntimeError("in the middle")


def slowly(seconds):
    time.sleep(seconds)
    yield b"at last"


def plain(environ, start_response):
    path = environ["PATH_INFO"]
    text = [("Content-Type", "text/plain")]
    if path == "/echo":
        body = environ["wsgi.input"].read()
        answer = {name: environ.get(name) for name in told}
        answer |= {name: value for name, value in environ.items() if name.startswith("HTTP_")}
        answer |= {"length": len(body), "digest": hashlib.sha256(body).hexdigest()}
        body = json.dumps(answer).encode()
        start_response("200 OK", [*text, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/state":
        body = json.dumps(state | {"threads": threading.active_count()}).encode()
        start_response("200 OK", [*text, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/lines":
        body = b"|".join(environ["wsgi.input"])
        start_response("200 OK", [*text, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/parts":
        start_response("200 OK", text)
        return Closing([b"one ", b"", b"two ", b"three"])
    if path == "/write":
        write = start_response("200 OK", text)
        write(b"written ")
        return [b"and returned"]
    if path == "/exc-info":
        start_response("200 OK", [])
        try:
            raise ValueError
        except ValueError:
            start_response("503 Service Unavailable", text, sys.exc_info())
        return [b"changed its mind"]
    if path == "/boom":
        raise RuntimeError("before anything")
    if path == "/boom-late":
        start_response("200 OK", text)
        return late()
    if path == "/bad-header":
        start_response("200 OK", [("X-Split", "a\\r\\nb: c")])
        return [b"never"]
    if path == "/endless":
        start_response("200 OK", text)
        return Closing(endless())
    if path == "/file":
        start_response("200 OK", text)
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    if path == "/peer":
        certificate = environ["gunicorn.socket"].getpeercert()
        body = json.dumps([environ["wsgi.url_scheme"], (certificate or {}).get("subject")]).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    if path.startswith("/slow/"):
        seconds = float(path.rpartition("/")[2])
        state["made"] += 1
        start_response("200 OK", [*text, ("Content-Length", "7")])
        return slowly(seconds)
    if path.startswith("/status/"):
        status = path.rpartition("/")[2]
        start_response(status + " As Asked", text)
        return [] if status in ("204", "304") else [b"body"]
    if path == "/short":
        start_response("200 OK", [*text, ("Content-Length", "10")])
        return [b"short"]
    start_response("200 OK", [*text, ("Content-Length", "5")])
    return [b"plain"]


class Application:
    def __init__(self):
        self.writers = {}
        self.promised = []
        self.loop_hooks = LoopHooks(
            self.fast_lane, self.lane, self.settle, self.admit, self.tick
        )

    def lane(self, headers):
        if "x-lane" not in headers:
            return None
        state["lanes"] += 1
        return self

    def reader(self, target):
        if target.startswith("/fast/read"):
            return self.read
        return None

    def read(self):
        state["read"] += 1
        if state["read"] == 3:
            return None
        if state["read"] == 5:
            raise RuntimeError("while reading")
        return Answer(200, b"read", "text/plain")

    def answer(self, method, target, body):
        state["lane"] += 1
        if target == "/fast/left":
            return None
        if target == "/lane/boom":
            raise RuntimeError("in the lane")
        if target.startswith("/lane/promise"):
            promise = Promise()
            self.promised.append((promise, target))
            return promise
        text = f"{method} {target} {body.decode()}".encode()
        size = 1_000_000 if target == "/lane/big" else len(text)
        return Answer(200, text.ljust(size), "text/plain", {"X-Lane": "yes"})

    def settle(self):
        promised, self.promised = self.promised, []
        state["settled"].append(len(promised))
        if any(target.endswith("boom") for _, target in promised):
            raise RuntimeError("while settling")
        for promise, target in promised:
            promise.answer = Answer(200, target.encode(), "text/plain")

    def __call__(self, environ, start_response):
        return plain(environ, start_response)

    def fast_lane(self, request):
        state["fast"] += 1
        if not request.path.startswith("/fast"):
            return None
        if request.path == "/fast/none":
            return None
        if request.path == "/fast/boom":
            raise RuntimeError("in the fast lane")
        if request.path == "/fast/split":
            return Answer(200, b"", None, {"X-Split": "a\\r\\nb: c"})
        if request.path == "/fast/304":
            return Answer(304, b"", None, {"ETag": "x"})
        if request.path == "/fast/big":
            return Answer(200, b"y" * 1_000_000, "text/plain")
        if request.path == "/fast/parts":
            return Answer(200, b"", "text/plain", {}, [b"a" * 700_000, b"b" * 700_000])
        if request.path == "/fast/stream":
            return Stream("text/event-stream", {"X-Stream": "yes"}, self.subscribe)
        if request.path == "/fast/poll":
            return Stream("text/plain", {}, self.poll)
        if request.path == "/fast/once":
            return Stream("text/plain", {}, self.once)
        body = {name: getattr(request, name)
                for name in ("method", "path", "query", "scheme", "peer", "base")}
        body |= {"headers": dict(request.headers), "body": request.read_body(100).decode()}
        return Answer(200, json.dumps(body).encode(), "application/json", {"X-Fast": "yes"})

    def admit(self, request):
        state["asked"] += 1
        if request.path == "/nowhere":
            return Answer(404, b"not here", "text/plain", {"X-Admit": request.method})
        return 1000 if request.path == "/few" else 64 * 1024 * 1024

    def subscribe(self, write, end):
        key = object()
        self.writers[key] = write
        state["joined"] += 1
        write(b"welcome\\n")
        def leave():
            del self.writers[key]
            state["left"] += 1
        return leave

    def poll(self, write, end):
        self.writers[end] = lambda data: (write(b"polled"), end())
        return lambda: self.writers.pop(end)

    def once(self, write, end):
        write(b"once")
        end()
        write(b"too late")
        def leave():
            state["left"] += 1
        return leave

    def tick(self):
        state["ticks"] += 1
        size = int(os.environ.get("EVENT_BYTES", "0"))
        for write in list(self.writers.values()):
            write(b"event %d\\n" % state["ticks"] + b"z" * size)


app = Application()
"""


class Site:
    """Gunicorn serving the test application from a folder."""

    def __init__(
        self,
        folder: Path,
        worker_class: str,
        application: str = "application:app",
        bind: str | None = None,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "application.py").write_text(APPLICATION)
        self.port = free_port()
        self.folder = folder
        self._log = folder / "log"
        given = {
            "bind": bind or f"127.0.0.1:{self.port}",
            "worker_class": worker_class,
            "threads": 4,
            "keepalive": 30,
            "graceful_timeout": 5,
            "control_socket_disable": True,
            **settings,
        }
        hooks = given.pop("hooks", "")
        lines = [f"{name} = {value!r}" for name, value in given.items()]
        (folder / "conf.py").write_text("\n".join([*lines, hooks]))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
            **(env or {}),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "conf.py", application],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, 20, "readiness")
        except BaseException:
            self.__exit__()
            raise

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return bool(self.worker_pids()) and "Booting worker" in self.log()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        main = self.process.pid
        return [int(p) for p in Path(f"/proc/{main}/task/{main}/children").read_text().split()]

    def wire(self, first: bytes = b"") -> Wire:
        """A connection, with what is to be sent on it first."""
        wire = Wire(socket.create_connection(("127.0.0.1", self.port), timeout=10))
        wire.send(first)
        return wire

    def get(self, path: str, headers: str = "", method: str = "GET") -> Reply:
        with self.wire(request(path, headers + "Connection: close\r\n", method)) as wire:
            return wire.reply(method)

    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.get("/state").body)
        return value


class Reply(NamedTuple):
    status: int
    version: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A client that says exactly what it is told to, and reads answers one by one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, str, dict[str, str]]:
        line = self._file.readline().decode()
        assert line, "the connection was closed before an answer"
        version, status, *_ = line.split(" ", 2)
        headers = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        return int(status), version, headers

    def chunk(self) -> bytes:
        """The next chunk of a body; empty at its end."""
        size = self._file.readline()
        assert size.endswith(b"\r\n"), "the body was cut off"
        data = self._file.read(int(size, 16))
        assert self._file.read(2) == b"\r\n"
        return data

    def reply(self, method: str = "GET") -> Reply:
        status, version, headers = self.head()
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
            assert len(body) == int(headers["content-length"])
        else:
            body = self._file.read()
        return Reply(status, version, headers, body)

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False where anything else comes."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


def request(path: str, headers: str = "", method: str = "GET", body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode("latin-1") + body


@pytest.fixture(scope="module", params=BOTH)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """What both workers promise alike is tested on one server of each."""
    folder = tmp_path_factory.mktemp("shared")
    limits = {"limit_request_line": 1000, "limit_request_fields": 20}
    with Site(folder, request.param, limit_request_field_size=500, **limits) as site:
        yield site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the event-loop worker alone."""
    with Site(tmp_path_factory.mktemp("site"), LOOP) as site:
        yield site


class TestBothWorkers:
    def test_an_answer_has_its_length_a_date_and_the_server(self, shared: Site) -> None:
        reply = shared.get("/")
        assert (reply.status, reply.version, reply.body) == (200, "HTTP/1.1", b"plain")
        assert reply.headers["content-length"] == "5"
        assert reply.headers["server"] == "gunicorn"
        assert reply.headers["date"].endswith(" GMT")

    def test_a_connection_is_kept_for_the_next_request(self, shared: Site) -> None:
        with shared.wire() as wire:
            for _ in range(3):
                wire.send(request("/"))
                reply = wire.reply()
                assert (reply.body, reply.headers["connection"]) == (b"plain", "keep-alive")

    def test_pipelined_requests_are_answered_in_order(self, shared: Site) -> None:
        paths = ["/slow/0.2", "/echo?1", "/parts", "/echo?2", "/"]
        with shared.wire(b"".join(map(request, paths))) as wire:
            bodies = [wire.reply().body for _ in paths]
        assert bodies[0] == b"at last"
        assert json.loads(bodies[1])["QUERY_STRING"] == "1"
        assert bodies[2] == b"one two three"
        assert json.loads(bodies[3])["QUERY_STRING"] == "2"
        assert bodies[4] == b"plain"

    def test_fields_that_came_before_say_the_same_again(self, shared: Site) -> None:
        """Whole, in pieces, before another or after one: what is remembered changes nothing."""
        fields = "X-One: 1\r\nX-Two: 2\r\n"
        plain = [request(f"/echo?{number}", fields) for number in range(6)]
        with shared.wire() as wire:
            sent = [plain[0], plain[1], plain[2] + plain[3], plain[4][:9], plain[4][9:] + plain[5]]
            for piece in sent:
                wire.send(piece)
                time.sleep(0.05)  # each piece is to arrive by itself
            told = [wire.reply().json() for _ in plain]
        assert [each["QUERY_STRING"] for each in told] == [str(number) for number in range(6)]
        assert {(each["HTTP_X_ONE"], each["HTTP_X_TWO"]) for each in told} == {("1", "2")}

    def test_a_body_after_known_fields_is_read_to_its_length(self, shared: Site) -> None:
        fields = "X-Body: yes\r\nContent-Length: 3\r\n"
        with shared.wire() as wire:
            for body in (b"abc", b"def"):
                wire.send(request("/echo", fields, "POST", body))
                assert wire.reply().json()["length"] == 3
            wire.send(request("/echo?late", fields, "POST", b"g"))
            time.sleep(0.05)
            wire.send(b"hi" + request("/echo?next", fields, "POST", b"jkl"))
            told = [wire.reply().json() for _ in "ab"]
        assert [(each["QUERY_STRING"], each["length"]) for each in told] == [
            ("late", 3),
            ("next", 3),
        ]

    @pytest.mark.parametrize("line", [b"GET /\x01 HTTP/1.1", b"GET / HTTP/1.1x", b"G(T / HTTP/1.1"])
    def test_known_fields_excuse_no_malformed_line(self, shared: Site, line: bytes) -> None:
        with shared.wire() as wire:
            for _ in "ab":
                wire.send(request("/", "X-Known: yes\r\n"))
                assert wire.reply().status == 200
            wire.send(line + b"\r\nHost: test\r\nX-Known: yes\r\n\r\n")
            assert wire.reply().status == 400
            assert wire.is_closed()

    def test_known_fields_of_http_1_1_keep_no_connection_of_http_1_0(self, shared: Site) -> None:
        with shared.wire() as wire:
            for _ in "ab":
                wire.send(request("/", "X-Kept: yes\r\n"))
                assert wire.reply().headers["connection"] == "keep-alive"
            wire.send(b"GET / HTTP/1.0\r\nHost: test\r\nX-Kept: yes\r\n\r\n")
            assert wire.reply().headers["connection"] == "close"
            assert wire.is_closed()

    def test_a_request_may_come_byte_by_byte(self, shared: Site) -> None:
        with shared.wire() as wire:
            wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request("/echo?q", "Content-Length: 3\r\n", "POST", b"abc"):
                wire.send(bytes([byte]))
            assert wire.reply().json()["length"] == 3

    def test_a_chunked_body_reaches_the_application(self, shared: Site) -> None:
        body = b"5\r\nhello\r\n1;ext=1\r\n,\r\n6\r\n world\r\n0\r\nX-Late: a\r\nX-Late: b\r\n\r\n"
        sent = request("/echo", "Transfer-Encoding: chunked\r\n", "POST", body)
        with shared.wire(sent + request("/")) as wire:
            told = wire.reply().json()
            assert told["length"] == 12
            assert "HTTP_X_LATE" not in told
            assert wire.reply().body == b"plain"

    def test_a_body_of_some_megabytes_arrives_whole(self, shared: Site) -> None:
        body = os.urandom(3_000_000)
        digest = hashlib.sha256(body).hexdigest()
        with shared.wire(request("/echo", f"Content-Length: {len(body)}\r\n", "PUT", body)) as wire:
            assert wire.reply().json()["digest"] == digest
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
        sent = request("/echo", "Transfer-Encoding: chunked\r\n", "PUT", chunks + b"0\r\n\r\n")
        with shared.wire(sent) as wire:
            assert wire.reply().json()["digest"] == digest

    def test_a_body_can_be_read_by_lines(self, shared: Site) -> None:
        with shared.wire(request("/lines", "Content-Length: 5\r\n", "POST", b"a\nb\nc")) as wire:
            assert wire.reply().body == b"a\n|b\n|c"

    def test_a_body_that_is_not_read_does_not_disturb_the_next_request(self, shared: Site) -> None:
        first = request("/", "Content-Length: 9\r\n", "POST", b"GET / HTT")
        with shared.wire(first + request("/echo?next")) as wire:
            assert wire.reply().body == b"plain"
            assert wire.reply().json()["QUERY_STRING"] == "next"

    def test_a_client_that_expects_100_gets_it_before_its_body(self, shared: Site) -> None:
        fields = "Content-Length: 3\r\nExpect: 100-Continue\r\n"
        with shared.wire(request("/echo", fields, "POST")) as wire:
            assert wire.head()[0] == 100
            wire.send(b"abc")
            assert wire.reply().json()["length"] == 3

    def test_another_expectation_is_refused(self, shared: Site) -> None:
        fields = "Content-Length: 3\r\nExpect: wonders\r\n"
        with shared.wire(request("/echo", fields, "POST")) as wire:
            assert wire.reply().status == 417

    @pytest.mark.parametrize(
        "fields",
        [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: -3\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Host: another\r\n",
            "Name\x01: value\r\n",
            "Name: val\x00ue\r\n",
            "Name: value\r\n folded\r\n",
            "Name: value\nOther: bare line feed\r\n",
            ": no name\r\n",
        ],
    )
    def test_an_ambiguous_or_malformed_head_is_refused(self, shared: Site, fields: str) -> None:
        with shared.wire(request("/echo", fields, "POST", b"abc\r\n\r\n")) as wire:
            reply = wire.reply()
            assert reply.status in (400, 501)
            assert reply.headers["connection"] == "close"
            assert wire.is_closed()

    def test_chunks_in_http_1_0_are_refused(self, shared: Site) -> None:
        line = b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        with shared.wire(line) as wire:
            assert wire.reply().status == 400
            assert wire.is_closed()

    def test_an_unknown_transfer_coding_is_refused(self, shared: Site) -> None:
        with shared.wire(request("/", "Transfer-Encoding: secret\r\n", "POST")) as wire:
            assert wire.reply().status in (400, 501)
            assert wire.is_closed()

    @pytest.mark.parametrize(
        "line", [b"GET /", b"GET / HTTP/2.0", b"GET /\xff HTTP/1.1", b"\x16\x03"]
    )
    def test_a_malformed_request_line_is_refused(self, shared: Site, line: bytes) -> None:
        with shared.wire(line + b"\r\n\r\n") as wire:
            assert wire.reply().status in (400, 505)
            assert wire.is_closed()

    def test_a_malformed_chunk_never_reaches_the_next_request(self, shared: Site) -> None:
        sent = request("/", "Transfer-Encoding: chunked\r\n", "POST", b"zz\r\nabc\r\n0\r\n\r\n")
        with shared.wire(sent + request("/echo?smuggled")) as wire:
            assert b"smuggled" not in wire._file.read()

    def test_what_is_valid_before_a_refusal_is_answered_first(self, shared: Site) -> None:
        with shared.wire(request("/slow/0.2") + b"nonsense\r\n\r\n") as wire:
            assert wire.reply().body == b"at last"
            assert wire.reply().status == 400
            assert wire.is_closed()

    def test_a_long_request_line_is_refused(self, shared: Site) -> None:
        assert shared.get("/" + "a" * 900).status == 200
        assert shared.get("/" + "a" * 1000).status == 414
        with shared.wire(b"GET /" + b"a" * 50_000) as wire:
            assert wire.reply().status == 414

    def test_a_long_header_field_is_refused(self, shared: Site) -> None:
        assert shared.get("/", "X-Long: " + "a" * 480 + "\r\n").status == 200
        assert shared.get("/", "X-Long: " + "a" * 500 + "\r\n").status == 431

    def test_too_many_header_fields_are_refused(self, shared: Site) -> None:
        assert shared.get("/", "".join(f"X-{n}: 1\r\n" for n in range(18))).status == 200
        assert shared.get("/", "".join(f"X-{n}: 1\r\n" for n in range(19))).status == 431
        assert shared.get("/", "X-Same: 1\r\n" * 30).status == 431

    def test_http_1_0_is_closed_unless_asked_to_keep(self, shared: Site) -> None:
        with shared.wire(b"GET / HTTP/1.0\r\n\r\n") as wire:
            reply = wire.reply()
            assert (reply.version, reply.headers["connection"]) == ("HTTP/1.0", "close")
            assert wire.is_closed()
        kept = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        with shared.wire(kept + kept) as wire:
            assert wire.reply().headers["connection"] == "keep-alive"
            assert wire.reply().body == b"plain"

    def test_http_1_0_gets_no_chunks(self, shared: Site) -> None:
        with shared.wire(b"GET /parts HTTP/1.0\r\n\r\n") as wire:
            reply = wire.reply()
            assert reply.body == b"one two three"
            assert "transfer-encoding" not in reply.headers

    @pytest.mark.parametrize("path", ["/", "/parts", "/file"])
    def test_head_has_no_body(self, shared: Site, path: str) -> None:
        with shared.wire(request(path, method="HEAD") + request("/")) as wire:
            assert wire.reply("HEAD").status == 200
            assert wire.reply().body == b"plain"

    @pytest.mark.parametrize("status", [204, 304])
    def test_an_answer_without_content_has_no_body(self, shared: Site, status: int) -> None:
        with shared.wire(request(f"/status/{status}") + request("/")) as wire:
            reply = wire.reply()
            assert reply.status == status
            assert "transfer-encoding" not in reply.headers
            assert wire.reply().body == b"plain"

    def test_a_client_that_closes_is_told_so(self, shared: Site) -> None:
        with shared.wire(request("/", "Connection: close\r\n") + request("/echo?after")) as wire:
            assert wire.reply().headers["connection"] == "close"
            assert wire.is_closed()

    def test_a_client_that_only_ceased_to_send_is_answered(self, shared: Site) -> None:
        with shared.wire(request("/slow/0.2")) as wire:
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.reply().body == b"at last"
            assert wire.is_closed()

    def test_a_body_without_a_length_is_chunked_and_its_iterable_closed(self, shared: Site) -> None:
        closed = shared.state()["closed"]
        reply = shared.get("/parts")
        assert reply.headers["transfer-encoding"] == "chunked"
        assert reply.body == b"one two three"
        wait_until(lambda: shared.state()["closed"] == closed + 1, 2, "close()")

    def test_write_and_iterable_follow_each_other(self, shared: Site) -> None:
        assert shared.get("/write").body == b"written and returned"

    def test_exc_info_replaces_a_head_that_is_not_sent(self, shared: Site) -> None:
        reply = shared.get("/exc-info")
        assert (reply.status, reply.body) == (503, b"changed its mind")

    def test_a_file_is_sent_through_the_wrapper(self, shared: Site) -> None:
        assert shared.get("/file").body == APPLICATION.encode()

    @pytest.mark.parametrize("path", ["/boom", "/bad-header"])
    def test_an_exception_gives_500(self, shared: Site, path: str) -> None:
        reply = shared.get(path)
        assert reply.status == 500
        assert b"never" not in reply.body
        assert shared.get("/").status == 200

    def test_an_exception_amid_the_body_cuts_it_off(self, shared: Site) -> None:
        with shared.wire(request("/boom-late") + request("/")) as wire:
            assert wire.head()[0] == 200
            assert wire.chunk() == b"the beginning"
            with pytest.raises(AssertionError, match="cut off"):
                wire.chunk()

    def test_the_environment_tells_of_the_request(self, shared: Site) -> None:
        path = "/e%63ho?a=%20b&c"
        fields = "X-One: 1\r\nX-Two: a\r\nx-two: b\r\nContent-Type: text/x\r\nX_Two: spoofed\r\n"
        told = shared.get(path, fields + "X-Spaces:  \tin the middle \t\r\n").json()
        expected = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/echo",
            "RAW_URI": path,
            "QUERY_STRING": "a=%20b&c",
            "SCRIPT_NAME": "",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(shared.port),
            "CONTENT_TYPE": "text/x",
            "HTTP_HOST": "test",
            "HTTP_X_ONE": "1",
            "HTTP_X_SPACES": "in the middle",
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "wsgi.run_once": False,
            "wsgi.version": [1, 0],
        }
        assert {name: told[name] for name in expected} == expected
        assert told["HTTP_X_TWO"] == "a,b"

    def test_the_absolute_form_has_the_same_path(self, shared: Site) -> None:
        told = shared.get("http://other:80/echo?q").json()
        assert (told["PATH_INFO"], told["QUERY_STRING"]) == ("/echo", "q")

    def test_a_trusted_proxy_tells_the_scheme_and_the_mount(self, shared: Site) -> None:
        told = shared.get("/base/echo", "X-Forwarded-Proto: https\r\nSCRIPT_NAME: /base\r\n").json()
        assert (told["wsgi.url_scheme"], told["SCRIPT_NAME"]) == ("https", "/base")
        assert told["PATH_INFO"] == "/echo"

    def test_an_offer_to_upgrade_is_not_taken_up(self, shared: Site) -> None:
        offer = (
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        )
        sent = request("/echo", offer + "Content-Length: 3\r\n", "POST", b"abc")
        chunks = request(
            "/echo", offer + "Transfer-Encoding: chunked\r\n", "POST", b"2\r\nab\r\n0\r\n\r\n"
        )
        with shared.wire(sent + chunks + request("/echo", offer) + request("/")) as wire:
            assert wire.reply().json()["length"] == 3
            assert wire.reply().json()["length"] == 2
            assert wire.reply().json()["length"] == 0
            assert wire.reply().body == b"plain"


class TestHeads:
    """RFC 9112 and 9110, where gunicorn's own parser is more lenient or says another status."""

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"GET /echo RTSP/1.0\r\n\r\n", 400),
            (b"GET /echo RTSP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"SOURCE /echo ICE/1.0\r\n\r\n", 400),
            (b"GET * HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET ftp://test/echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET http:///echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET  /echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET\t/echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET /echo\x00 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET /echo http/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET /echo HTTP/1.1 \r\nHost: test\r\n\r\n", 400),
            (b"GET /echo HTTP/11\r\nHost: test\r\n\r\n", 400),
            (b"GET /echo HTTP/1.1\nHost: test\n\n", 400),
            (b"GET /echo HTTP/1.1\r\nHost: test\n\n", 400),
            (b"CONNECT /echo HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n", 501),
            (b"BREW /echo HTTP/1.1\r\nHost: test\r\n\r\n", 501),
            (b"get /echo HTTP/1.1\r\nHost: test\r\n\r\n", 501),
            (b"PROPFIND /echo HTTP/1.1\r\nHost: test\r\n\r\n", 501),
            (b"GET /echo HTTP/1.2\r\nHost: test\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"GET /echo HTTP/0.9\r\nHost: test\r\n\r\n", 505),
            (b"GET /echo HTTP/1.1\r\n\r\n", 400),
            (b"GET http://test/echo HTTP/1.1\r\n\r\n", 400),
            (b"GET /echo HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
            *(
                (b"GET /echo HTTP/1.1\r\nHost:" + host + b"\r\n\r\n", 400)
                for host in (
                    b"",
                    b" ",
                    b" a b",
                    b" a/b",
                    b" u@a",
                    b" a:b",
                    b" a, b",
                    b" [::1",
                    b" \xe9",
                )
            ),
            *(
                (
                    b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: " + length + b"\r\n\r\n",
                    400,
                )
                for length in (
                    b"0" * 4400 + b"1",
                    b"0x1",
                    b"1_0",
                    b"1 0",
                    b"1.0",
                    b"\xb2",
                    b"9" * 30,
                )
            ),
            (b"GET /echo HTTP/1.1\r\nHost: test\r\nExpect: other\r\n\r\n", 417),
            (b"PUT /echo HTTP/1.1\r\nHost: test\r\nExpect:\r\nContent-Length: 0\r\n\r\n", 417),
            (b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ],
    )
    def test_what_the_standard_forbids_has_its_status(
        self, site: Site, head: bytes, status: int
    ) -> None:
        """Whole, and byte by byte; the next head is never looked at, and nothing is our error."""
        for pieces in ([head], [bytes([byte]) for byte in head[:300]] + [head[300:]]):
            with site.wire() as wire:
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        wire.send(piece)
                    wire.send(request("/echo?next"))
                assert wire.reply().status == status
                assert wire.is_closed()
        assert "Traceback" not in site.log()

    @pytest.mark.parametrize(
        "head",
        [
            b"\r\n\r\nGET /echo HTTP/1.1\r\nHost: test\r\n\r\n",
            b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"GET HTTPS://other:80/echo HTTP/1.1\r\nHost: test\r\n\r\n",
            *(
                b"GET /echo HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
                for host in (
                    b"a_b.c:1",
                    b"10.0.0.1",
                    b"[::1]:8761",
                    b"[fe80::1%eth0]:8761",
                    b"[fe80::1%25eth0]",
                    b"a:",
                    b"xn--e1afmkfd.example.",
                )
            ),
            b"GET /echo HTTP/1.1\r\nhOsT:test\r\nX-Empty:\r\nX: \xe9\t\x80\r\n\r\n",
            b"GET /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-CONTINUE\r\n\r\n",
            b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\nExpect: other\r\n\r\n",
            b"DELETE /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 0000\r\n\r\n",
            b"TRACE /echo HTTP/1.1\r\nHost: test\r\n\r\n",
        ],
    )
    def test_what_clients_send_and_may_is_served(self, site: Site, head: bytes) -> None:
        with site.wire(head + request("/echo?next")) as wire:
            assert wire.reply().json()["PATH_INFO"] == "/echo"
            assert wire.reply().json()["QUERY_STRING"] == "next"

    def test_the_asterisk_asks_about_the_whole_server(self, site: Site) -> None:
        with site.wire(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n" + request("/")) as wire:
            assert wire.reply().status == 200
            assert wire.reply().body == b"plain"

    @pytest.mark.parametrize(
        "fields",
        [
            "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n",
            "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n",
            "Authorization: Basic YTpi\r\nAuthorization: Basic YzpkCg==\r\n",
            "X-Empty:\r\nX-Latin: \xe9\r\nX_Under: 1\r\n",
            "Connection: close\r\n",
            "Content-Type: text/plain\r\nAccept: a\r\nAccept: b\r\n",
        ],
    )
    @pytest.mark.parametrize("framing", ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n"])
    def test_an_offer_to_upgrade_changes_no_meaning(
        self, site: Site, fields: str, framing: str
    ) -> None:
        body = b"x" if "Length" in framing else b"1\r\nx\r\n0\r\n\r\n"
        told = []
        for offer in ("X-Offer: x\r\n", "Connection: Upgrade\r\nUpgrade: x\r\n"):
            with site.wire(request("/echo", fields + offer + framing, "POST", body)) as wire:
                reply = wire.reply()
                answer = reply.json()
                for name in ("HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_X_OFFER"):
                    answer.pop(name, None)
                told.append((answer, reply.headers["connection"]))
        assert told[0] == told[1]

    @pytest.mark.parametrize(
        "line", [b"1 ; a", b"1\t;a=b", b"1 ; a = b", b'1;a="\\" ;"', b"1;a;b = c", b"00001"]
    )
    def test_chunks_may_have_extensions_with_blanks(self, site: Site, line: bytes) -> None:
        chunks = line + b"\r\nx\r\n0 ;last\r\nX-Late: 1\r\n\r\n"
        for pieces in ([chunks], [bytes([byte]) for byte in chunks]):
            with site.wire(request("/echo", "Transfer-Encoding: Chunked\r\n", "POST")) as wire:
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    wire.send(piece)
                wire.send(request("/echo?next"))
                assert wire.reply().json()["length"] == 1
                assert wire.reply().json()["QUERY_STRING"] == "next"

    @pytest.mark.parametrize(
        "chunks",
        [
            b"0x1\r\nx\r\n0\r\n\r\n",
            b"+1\r\nx\r\n0\r\n\r\n",
            b"1 \r\nx\r\n0\r\n\r\n",
            b" 1\r\nx\r\n0\r\n\r\n",
            b"\r\n1\r\nx\r\n0\r\n\r\n",
            b"1 2\r\nx\r\n0\r\n\r\n",
            b"1;a\x00\r\nx\r\n0\r\n\r\n",
            b"1;a\rb\r\nx\r\n0\r\n\r\n",
            b"1\nx\r\n0\r\n\r\n",
            b"1\r\nx\n0\r\n\r\n",
            b"1\r\nxy\r\n0\r\n\r\n",
            b"1\r\nx0\r\n\r\n",
            b"00000000000000001\r\nx\r\n0\r\n\r\n",
            b"1\r\nx\r\n0\r\nX : y\r\n\r\n",
            b"1\r\nx\r\n0\r\nX: y\n\r\n\r\n",
            b"1\r\nx\r\n0\r\n folded\r\n\r\n",
            b"1\r\nx\r\n0\r\nGET /echo?smuggled HTTP/1.1\r\nHost: test\r\n\r\n",
        ],
    )
    def test_what_is_no_chunk_is_refused(self, site: Site, chunks: bytes) -> None:
        for pieces in ([chunks], [bytes([byte]) for byte in chunks]):
            with site.wire(request("/echo", "Transfer-Encoding: chunked\r\n", "POST")) as wire:
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        wire.send(piece)
                    wire.send(request("/echo?smuggled"))
                assert wire.reply().status == 400
                assert wire.is_closed()
        assert "Traceback" not in site.log()

    def test_many_tiny_chunks_are_refused_and_many_small_ones_are_not(self, site: Site) -> None:
        head = request("/echo", "Transfer-Encoding: chunked\r\n", "POST")
        with site.wire(head) as wire:
            with contextlib.suppress(ConnectionError):
                wire.send(b"1\r\nx\r\n" * 50_000)
            assert wire.reply().status == 400
        with site.wire(head + b"10\r\n0123456789abcdef\r\n" * 50_000 + b"0\r\n\r\n") as wire:
            assert wire.reply().json()["length"] == 800_000
        with site.wire(head + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n") as wire:
            assert wire.reply().json()["length"] == 5_000


class TestAdmission:
    """Refused at the head, before a body is taken."""

    @pytest.mark.parametrize(
        "framing",
        [
            "Content-Length: 60000000\r\n",
            "Content-Length: 60000000\r\nExpect: 100-continue\r\n",
            "Content-Length: 1\r\n",
            "Content-Length: 1\r\nExpect: 100-continue\r\n",
            "Transfer-Encoding: chunked\r\n",
        ],
    )
    def test_the_application_refuses_before_the_body_has_come(
        self, site: Site, framing: str
    ) -> None:
        with site.wire(request("/nowhere", framing, "PUT")) as wire:
            reply = wire.reply()
            assert (reply.status, reply.body) == (404, b"not here")
            assert (reply.headers["x-admit"], reply.headers["connection"]) == ("PUT", "close")
            assert wire.is_closed()

    def test_more_than_the_application_takes_is_refused(self, site: Site) -> None:
        announced = "Content-Length: 1001\r\nExpect: 100-continue\r\n"
        with site.wire(request("/few", announced, "POST")) as wire:
            assert wire.reply().status == 413
        head = request("/few", "Transfer-Encoding: chunked\r\n", "POST")
        with site.wire(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n") as wire:
            wire.send(b"1\r\n")
            assert wire.reply().status == 413

    def test_a_body_that_comes_with_its_head_is_answered_as_any(self, site: Site) -> None:
        asked = site.state()["asked"]
        with site.wire(request("/echo", "Content-Length: 2\r\n", "POST", b"ab")) as wire:
            assert wire.reply().json()["length"] == 2
        assert site.state()["asked"] == asked
        with site.wire(request("/echo", "Content-Length: 2\r\n", "POST", b"a")) as wire:
            wait_until(lambda: site.state()["asked"] == asked + 1, 5)
            wire.send(b"b")
            assert wire.reply().json()["length"] == 2
        assert site.state()["asked"] == asked + 1


@pytest.mark.parametrize("worker_class", BOTH)
class TestBothWorkersAlone:
    """What needs a server of its own."""

    def test_an_idle_connection_is_closed_after_its_time(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class, keepalive=1) as site, site.wire(request("/")) as wire:
            wire.reply()
            began = time.monotonic()
            assert wire.is_closed()
            assert 0.9 < time.monotonic() - began < 3.5

    def test_no_keep_alive_closes_after_each_answer(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class, keepalive=0) as site, site.wire(request("/")) as wire:
            assert wire.reply().headers["connection"] == "close"
            assert wire.is_closed()

    def test_a_graceful_stop_finishes_the_answer_in_flight(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class) as site, site.wire(request("/slow/1")) as wire:
            wait_until(lambda: site.state()["made"], 5)
            site.process.send_signal(signal.SIGTERM)
            reply = wire.reply()
            assert reply.body == b"at last"
            assert wire.is_closed()
            assert site.process.wait(timeout=5) == 0

    def test_whoever_comes_during_a_stop_is_refused_at_once(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        """While what has begun is finished: an answer, and a request of which half was sent."""
        with Site(tmp_path, worker_class) as site:
            half = request("/echo", "Content-Length: 2\r\n", "POST", b"a")
            with site.wire(request("/slow/3")) as slow, site.wire(half) as late:
                wait_until(lambda: site.state()["made"], 5)
                site.process.send_signal(signal.SIGTERM)

                def is_refused() -> bool:
                    try:
                        socket.create_connection(("127.0.0.1", site.port), timeout=10).close()
                    except ConnectionRefusedError:
                        return True
                    return False

                wait_until(is_refused, 10, "refusing")
                assert site.process.poll() is None
                if worker_class == LOOP:
                    late.send(b"b")
                    assert late.reply().json()["length"] == 2
                assert slow.reply().body == b"at last"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
    def test_a_quick_stop_waits_for_no_connection(
        self, tmp_path: Path, worker_class: str, number: int
    ) -> None:
        with Site(tmp_path, worker_class) as site, site.wire(request("/")) as wire:
            wire.reply()
            site.process.send_signal(number)
            assert wire.is_closed()
            assert site.process.wait(timeout=5) == 0

    def test_a_reload_under_load_loses_nothing(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class, workers=2) as site:
            load = Load(site.port, ["/", "/fast", "/slow/0.01"])
            for _ in range(2):
                before = set(site.worker_pids())
                time.sleep(0.3)
                site.process.send_signal(signal.SIGHUP)
                wait_until(
                    lambda old=before: len(p := site.worker_pids()) == 2 and not old & set(p), 10
                )
            load.stop()
            assert load.errors == []
            assert load.answers > 200

    def test_after_its_share_of_requests_a_worker_is_replaced_without_loss(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class, workers=2, max_requests=100) as site:
            load = Load(site.port, ["/", "/echo"])
            time.sleep(1.5)
            load.stop()
            assert load.errors == []
            assert "Autorestarting" in site.log()

    def test_a_killed_worker_is_replaced(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class) as site:
            (before,) = site.worker_pids()
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: site.worker_pids() not in ([], [before]), 10)
            assert site.get("/").body == b"plain"

    def test_a_worker_without_its_parent_stops(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class) as site:
            (pid,) = site.worker_pids()
            site.process.kill()
            site.process.wait()
            wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists(), 10, "its end")

    def test_a_unix_socket_is_served(self, tmp_path: Path, worker_class: str) -> None:
        path = tmp_path / "s"
        with Site(tmp_path, worker_class, bind=f"unix:{path}"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(5)
            connection.connect(str(path))
            with Wire(connection) as wire:
                wire.send(request("/echo") + request("/fast"))
                told = wire.reply().json()
                assert (told["REMOTE_ADDR"], told["SERVER_NAME"]) == ("", "test")
                assert wire.reply().status == 200

    def test_several_binds_are_served(self, tmp_path: Path, worker_class: str) -> None:
        ports = [free_port(), free_port()]
        with Site(tmp_path, worker_class, bind=[f"127.0.0.1:{p}" for p in ports]) as site:
            for port in ports:
                site.port = port
                assert site.get("/echo").json()["SERVER_PORT"] == str(port)

    def test_the_access_log_has_its_line(self, tmp_path: Path, worker_class: str) -> None:
        form = '%(h)s "%(r)s" %(s)s %(b)s "%(a)s" %({x-own}i)s %({content-type}o)s'
        log = tmp_path / "access"
        settings = {"accesslog": str(log), "access_log_format": form}
        with Site(tmp_path, worker_class, **settings) as site:
            site.get("/?q", "User-Agent: me\r\nX-Own: mine\r\n")
            wait_until(lambda: log.read_text().count("\n") == 1, 2)
        assert log.read_text() == '127.0.0.1 "GET /?q HTTP/1.1" 200 5 "me" mine text/plain\n'

    def test_the_hooks_are_called_around_a_request(self, tmp_path: Path, worker_class: str) -> None:
        hooks = (
            "def pre_request(worker, req):\n    worker.log.info('before %s', req.path)\n"
            "def post_request(worker, req, environ, resp):\n"
            "    worker.log.info('after %s %s', req.uri, resp.status)\n"
        )
        with Site(tmp_path, worker_class, hooks=hooks) as site:
            site.get("/?q")
            wait_until(lambda: "after /?q 200" in site.log(), 2)
            assert site.log().count("before /") == 1

    def test_tls_is_spoken(self, tmp_path: Path, worker_class: str) -> None:
        make_certificates(tmp_path)
        files = {"certfile": str(tmp_path / "server.pem"), "keyfile": str(tmp_path / "server.key")}
        with Site(tmp_path, worker_class, **files) as site:
            with tls(site, tmp_path) as wire:
                wire.send(request("/peer") + request("/fast"))
                assert wire.reply().json() == ["https", None]
                assert wire.reply().status == 200
                body = os.urandom(300_000)
                sent = request("/echo", f"Content-Length: {len(body)}\r\n", "POST", body)
                wire.send(sent)
                assert wire.reply().json()["length"] == len(body)
            with site.wire(request("/")) as plain:  # no TLS: no answer, and no harm
                plain._file.read()
            with tls(site, tmp_path) as wire:
                wire.send(request("/", "Connection: close\r\n"))
                assert wire.reply().body == b"plain"
                assert wire.is_closed()

    def test_mutual_tls_lets_in_only_who_has_a_certificate(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        make_certificates(tmp_path)
        files = {
            "certfile": str(tmp_path / "server.pem"),
            "keyfile": str(tmp_path / "server.key"),
            "ca_certs": str(tmp_path / "ca.pem"),
            "cert_reqs": int(ssl.CERT_REQUIRED),
        }
        with Site(tmp_path, worker_class, **files) as site:
            with tls(site, tmp_path, "client") as wire:
                wire.send(request("/peer"))
                scheme, subject = wire.reply().json()
                assert scheme == "https"
                assert [["commonName", "client"]] in subject
            with pytest.raises((OSError, AssertionError)):
                ask_without_certificate(site, tmp_path)


class Dawdlers(NamedTuple):
    """Three who take too long, all at the same time."""

    site: Site
    began: float
    head: Wire
    body: Wire
    reader: Wire


@pytest.fixture(scope="module")
def dawdlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dawdlers]:
    with Site(tmp_path_factory.mktemp("dawdlers"), LOOP, timeout=2) as site:
        began = time.monotonic()
        reader = site.wire(request("/endless"))
        body = site.wire(request("/echo", "Content-Length: 9\r\n", "POST", b"abc"))
        with reader, body, site.wire(b"GET / HTTP/1.1\r\nHo") as head:
            yield Dawdlers(site, began, head, body, reader)


class TestTime:
    def test_a_slow_head_is_answered_with_408(self, dawdlers: Dawdlers) -> None:
        wire = dawdlers.head
        for byte in b"st: test\r\nX-Slow: abcdefgh":
            time.sleep(0.05)
            wire.send(bytes([byte]))
        assert wire.reply().status == 408
        assert wire.is_closed()
        assert 1.9 < time.monotonic() - dawdlers.began < 4.9

    def test_a_slow_body_is_answered_with_408(self, dawdlers: Dawdlers) -> None:
        assert dawdlers.body.reply().status == 408
        assert dawdlers.body.is_closed()

    def test_a_client_that_reads_nothing_is_dropped(self, dawdlers: Dawdlers) -> None:
        site = dawdlers.site
        wait_until(lambda: site.state()["closed"] == 1, 8, "the end of the answer")
        assert site.state()["made"] < 200, "the application ran ahead of its reader"

    def test_under_tls_a_client_that_says_nothing_is_let_go(self, tmp_path: Path) -> None:
        make_certificates(tmp_path)
        files = {"certfile": str(tmp_path / "server.pem"), "keyfile": str(tmp_path / "server.key")}
        with Site(tmp_path, LOOP, timeout=2, worker_connections=1, **files) as site:
            with site.wire() as silent:
                assert silent.is_closed()
            with tls(site, tmp_path) as wire:
                wire.send(request("/"))
                assert wire.reply().body == b"plain"
            with site.wire() as silent:
                site.process.send_signal(signal.SIGTERM)
                assert silent.is_closed()
                assert site.process.wait(timeout=10) == 0

    def test_a_worker_that_hangs_is_killed(self, tmp_path: Path) -> None:
        hang = "import time\nfrom eureka_http.exchange import LoopHooks\nclass Hang:\n"
        hang += "    def __init__(self):\n        self.loop_hooks = LoopHooks(self.fast_lane)\n"
        hang += "    def fast_lane(self, request):\n"
        hang += "        while request.path == '/hang': time.sleep(0.01)\n"
        hang += "    def __call__(self, environ, start_response):\n"
        hang += "        start_response('200 OK', [('Content-Length', '0')])\n        return []\n"
        (tmp_path / "hanging.py").write_text(hang + "app = Hang()\n")
        with Site(tmp_path, LOOP, "hanging:app", timeout=1) as site:
            (before,) = site.worker_pids()
            with site.wire(request("/hang")) as wire:
                assert wire.is_closed()
            wait_until(lambda: site.worker_pids() not in ([], [before]), 10)
            assert site.get("/").status == 200


class TestBounds:
    def test_a_body_beyond_the_bound_is_refused_at_once(self, site: Site) -> None:
        fields = f"Content-Length: {64 * 1024 * 1024 + 1}\r\nExpect: 100-continue\r\n"
        with site.wire(request("/echo", fields, "POST")) as wire:
            assert wire.reply().status == 413
            assert wire.is_closed()

    def test_a_chunked_body_beyond_the_bound_is_refused(self, site: Site) -> None:
        chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        with site.wire(request("/echo", "Transfer-Encoding: chunked\r\n", "POST")) as wire:
            for _ in range(65):
                wire.send(chunk)
            assert wire.reply().status == 413

    def test_trailers_and_chunk_extensions_have_a_bound(self, site: Site) -> None:
        head = request("/echo", "Transfer-Encoding: chunked\r\n", "POST")
        for endless in (b"0\r\n" + b"X-A: " + b"a" * 2_000_000, b"3;" + b"a" * 2_000_000):
            with site.wire() as wire:
                try:
                    wire.send(head + endless)
                    assert wire.reply().status in (400, 431)
                except ConnectionError:
                    pass
        assert site.get("/").status == 200

    def test_requests_far_ahead_are_answered_all_and_in_order(self, site: Site) -> None:
        count = 3000
        many = b"".join(request(f"/fast?{n}") for n in range(count))
        with site.wire(request("/slow/0.3")) as wire:
            sender = threading.Thread(target=wire.send, args=(many,))
            sender.start()
            assert wire.reply().body == b"at last"
            assert [wire.reply().json()["query"] for _ in range(count)] == [
                str(n) for n in range(count)
            ]
            sender.join()

    def test_answers_that_nobody_reads_yet_are_not_made(self, site: Site) -> None:
        count = 100
        with site.wire(b"".join(request("/fast/big") for _ in range(count))) as wire:
            fast = site.state()["fast"]
            time.sleep(0.3)
            assert site.state()["fast"] - fast < 10
            for _ in range(count):
                assert len(wire.reply().body) == 1_000_000

    def test_beyond_the_bound_on_connections_clients_wait(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, worker_connections=5, keepalive=2) as site:
            wires = [site.wire(request("/")) for _ in range(5)]
            for wire in wires:
                assert wire.reply().status == 200
            with site.wire(request("/")) as sixth:
                sixth.socket.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sixth.socket.recv(1)
            for wire in wires:
                wire.__exit__()
            assert site.get("/").status == 200

    def test_an_answer_shorter_than_it_said_ends_the_connection(self, site: Site) -> None:
        with site.wire(request("/short") + request("/")) as wire:
            assert wire.head()[2]["content-length"] == "10"
            assert wire._file.read() == b"short"


class TestFastLane:
    def test_it_is_given_the_request_as_it_came(self, site: Site) -> None:
        fields = "X-Two: a\r\nX-TWO: b\r\nAccept: x/y\r\n"
        reply = site.get("/fast/%2Fa%20b?q=%20&r", fields)
        told = reply.json()
        assert told == {
            "method": "GET",
            "path": "/fast/%2Fa%20b",
            "query": "q=%20&r",
            "scheme": "http",
            "peer": "127.0.0.1",
            "base": "",
            "headers": {"host": "test", "x-two": "a, b", "accept": "x/y", "connection": "close"},
            "body": "",
        }
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-fast"] == "yes"
        assert reply.headers["server"] == "gunicorn"
        assert reply.headers["date"].endswith(" GMT")

    def test_none_leaves_the_request_to_the_application(self, site: Site) -> None:
        assert site.get("/fast/none").body == b"plain"

    def test_a_small_body_is_passed_and_a_longer_one_is_not(self, site: Site) -> None:
        chunked = "Transfer-Encoding: chunked\r\n"
        with site.wire(request("/fast", "Content-Length: 2\r\n", "PUT", b"{}")) as wire:
            assert wire.reply().json()["body"] == "{}"
            wire.send(request("/fast", chunked, "POST", b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"))
            assert wire.reply().json()["body"] == "{}"
            wire.send(request("/fast", "Content-Length: 0\r\n", "POST"))
            assert wire.reply().json()["body"] == ""
            wire.send(request("/fast", "Content-Length: 17000\r\n", "PUT", b"x" * 17000))
            assert wire.reply().body == b"plain"

    def test_a_longer_body_than_is_taken_is_an_error(self, site: Site) -> None:
        with site.wire(request("/fast", "Content-Length: 101\r\n", "PUT", b"x" * 101)) as wire:
            assert wire.reply().status == 500

    def test_the_absolute_form_has_the_same_path(self, site: Site) -> None:
        assert site.get("http://other/fast/x?q").json()["path"] == "/fast/x"

    def test_a_body_in_parts_is_one(self, site: Site) -> None:
        """In the order of the requests, whatever was asked for beside it."""
        sent = request("/fast/parts") + request("/fast/parts", method="HEAD") + request("/fast/x")
        with site.wire(sent) as wire:
            assert wire.reply().body == b"a" * 700_000 + b"b" * 700_000
            assert wire.reply("HEAD").headers["content-length"] == "1400000"
            assert wire.reply().json()["path"] == "/fast/x"
        with site.wire(b"GET /fast/parts HTTP/1.0\r\n\r\n") as wire:
            assert len(wire.reply().body) == 1_400_000

    def test_head_and_304_have_no_body(self, site: Site) -> None:
        sent = request("/fast", method="HEAD") + request("/fast/304") + request("/fast/big")
        with site.wire(sent) as wire:
            assert int(wire.reply("HEAD").headers["content-length"]) > 50
            reply = wire.reply()
            assert (reply.status, reply.headers["etag"]) == (304, "x")
            assert "content-length" not in reply.headers
            assert wire.reply().body == b"y" * 1_000_000

    @pytest.mark.parametrize("path", ["/fast/boom", "/fast/split"])
    def test_an_exception_gives_500(self, site: Site, path: str) -> None:
        reply = site.get(path)
        assert (reply.status, reply.body) == (500, b"")
        assert site.get("/fast").status == 200

    def test_http_1_0_is_answered_in_kind(self, site: Site) -> None:
        kept = b"GET /fast HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        with site.wire(kept + b"GET /fast HTTP/1.0\r\n\r\n") as wire:
            assert wire.reply().headers["connection"] == "keep-alive"
            reply = wire.reply()
            assert (reply.version, reply.headers["connection"]) == ("HTTP/1.0", "close")
            assert wire.is_closed()

    def test_it_waits_its_turn_behind_a_thread(self, site: Site) -> None:
        paths = ["/fast?1", "/slow/0.2", "/fast?2", "/", "/fast?3"]
        with site.wire(b"".join(map(request, paths))) as wire:
            bodies = [wire.reply().body for _ in paths]
        assert [json.loads(bodies[n])["query"] for n in (0, 2, 4)] == ["1", "2", "3"]
        assert (bodies[1], bodies[3]) == (b"at last", b"plain")

    def test_it_answers_while_every_thread_is_busy(self, site: Site) -> None:
        wires = [site.wire(request("/slow/0.5")) for _ in range(4)]
        began = time.monotonic()
        assert site.get("/fast").status == 200
        assert time.monotonic() - began < 0.3
        for wire in wires:
            assert wire.reply().body == b"at last"

    def test_an_application_without_one_is_served_all_the_same(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, "application:plain") as site:
            assert site.get("/fast").body == b"plain"

    def test_below_a_mount_it_is_told_the_base(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, env={"SCRIPT_NAME": "/mount"}) as site:
            told = site.get("/mount/fast?q").json()
            assert (told["base"], told["path"]) == ("/mount", "/fast")
            assert site.get("/mount/echo").json()["PATH_INFO"] == "/echo"

    def test_outside_of_the_mount_there_is_nothing(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, env={"SCRIPT_NAME": "/mount"}) as site:
            for path in ("/echo", "/fast", "/", "/moun"):
                for framing in ("", "Content-Length: 60000000\r\n"):
                    with site.wire(request(path, framing, "POST")) as wire:
                        assert wire.reply().status == 404
            assert "Traceback" not in site.log()

    def test_log_and_hooks_hear_of_it(self, tmp_path: Path) -> None:
        hooks = (
            "def pre_request(worker, req):\n    worker.log.info('before %s', req.path)\n"
            "def post_request(worker, req, environ, resp):\n"
            "    worker.log.info('after %s %s', req.path, resp.status)\n"
        )
        log = tmp_path / "access"
        form = '%(h)s "%(r)s" %(s)s %(b)s %({x-own}i)s %({x-fast}o)s'
        settings = {"accesslog": str(log), "access_log_format": form, "hooks": hooks}
        with Site(tmp_path, LOOP, **settings) as site:
            size = len(site.get("/fast?q", "X-Own: mine\r\n").body)
            site.get("/fast/none")
            wait_until(lambda: log.read_text().count("\n") == 2, 2)
            assert f'127.0.0.1 "GET /fast?q HTTP/1.1" 200 {size} mine yes\n' in log.read_text()
            assert site.log().count("before /fast\n") == site.log().count("after /fast 200") == 1
            assert site.log().count("before /fast/none\n") == 1


class TestLanes:
    def test_a_lane_answers_requests_whose_fields_came_before(self, site: Site) -> None:
        with site.wire() as wire:
            for number in range(4):
                wire.send(request(f"/fast/{number}", "X-Lane: 1\r\n"))
                reply = wire.reply()
                if number:  # the first was parsed and had no lane yet
                    assert reply.body == b"GET /fast/%d " % number
                    assert reply.headers["x-lane"] == "yes"
                    assert reply.headers["connection"] == "keep-alive"
                    assert reply.headers["content-length"] == str(len(reply.body))
                else:
                    assert reply.json()["path"] == "/fast/0"
            for body in (b"abc", b"def"):
                fields = "X-Lane: 2\r\nContent-Length: 3\r\n"
                wire.send(request("/fast/post", fields, "POST", body))
                reply = wire.reply()
            assert reply.body == b"POST /fast/post def"
            wire.send(request("/fast/left", "X-Lane: 1\r\n"))
            assert wire.reply().json()["path"] == "/fast/left"
            wire.send(request("/lane/big", "X-Lane: 1\r\n"))
            assert len(wire.reply().body) == 1_000_000

    def test_what_a_lane_has_a_reader_for_is_recalled_byte_for_byte(self, site: Site) -> None:
        asked = request("/fast/read", "X-Lane: 0\r\n")
        with site.wire(request("/fast/0", "X-Lane: 0\r\n")) as wire:
            assert wire.reply().status == 200
            for expected in (
                b"GET /fast/read ",  # the lane, whose reader is kept then
                b"read",
                b"read",
                b"GET /fast/read ",  # the third reading leaves it to the lane
                b"read",
            ):
                wire.send(asked)
                assert wire.reply().body == expected
            wire.send(asked)
            assert wire.reply().status == 500
            assert wire.is_closed()
        with site.wire(asked + asked[:20]) as wire:  # not alone
            assert wire.reply().json()["path"] == "/fast/read"
            wire.send(asked[20:])
            assert wire.reply().json()["path"] == "/fast/read"

    def test_a_secret_field_has_no_lane(self, site: Site) -> None:
        with site.wire() as wire:
            for _ in "abc":
                wire.send(request("/fast/secret", "X-Lane: 3\r\nAuthorization: x\r\n"))
                assert wire.reply().json()["path"] == "/fast/secret"

    def test_an_error_in_a_lane_is_a_500_and_ends_the_connection(self, site: Site) -> None:
        with site.wire() as wire:
            for _ in "ab":
                wire.send(request("/fast/before", "X-Lane: 4\r\n"))
                assert wire.reply().status == 200
            wire.send(request("/lane/boom", "X-Lane: 4\r\n"))
            assert wire.reply().status == 500
            assert wire.is_closed()

    def test_what_is_promised_together_is_settled_together(self, site: Site) -> None:
        wires = [site.wire(request("/fast/first", "X-Lane: 5\r\n")) for _ in range(8)]
        try:
            for wire in wires:
                assert wire.reply().status == 200
            before = len(site.state()["settled"])
            os.kill(site.worker_pids()[0], signal.SIGSTOP)
            for number, wire in enumerate(wires):
                wire.send(request(f"/lane/promise/{number}", "X-Lane: 5\r\n"))
            os.kill(site.worker_pids()[0], signal.SIGCONT)
            told = [wire.reply().body for wire in wires]
        finally:
            for wire in wires:
                wire.__exit__()
        assert told == [b"/lane/promise/%d" % number for number in range(8)]
        settled = site.state()["settled"][before:]
        assert sum(settled) == 8
        assert len(settled) < 8

    def test_a_promise_that_cannot_be_kept_is_a_500(self, site: Site) -> None:
        with site.wire(request("/fast/first", "X-Lane: 7\r\n")) as wire:
            assert wire.reply().status == 200
            wire.send(request("/lane/promise/boom", "X-Lane: 7\r\n"))
            assert wire.reply().status == 500
            wire.send(request("/lane/promise/fine", "X-Lane: 7\r\n"))
            assert wire.reply().body == b"/lane/promise/fine"

    def test_a_client_that_leaves_before_a_promise_is_kept_costs_nobody(self, site: Site) -> None:
        with site.wire(request("/fast/first", "X-Lane: 8\r\n")) as wire:
            assert wire.reply().status == 200
            os.kill(site.worker_pids()[0], signal.SIGSTOP)
            wire.send(request("/lane/promise/gone", "X-Lane: 8\r\n"))
            linger = (1).to_bytes(4, "little") + bytes(4)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.kill(site.worker_pids()[0], signal.SIGCONT)
        with site.wire(request("/lane/promise/here", "X-Lane: 8\r\n")) as wire:
            assert wire.reply().body == b"/lane/promise/here"


class Taken(asyncio.Transport):
    """A transport that keeps what is written; named as the fake that it is.

    When the kernel hands over what a client sent is not ours to choose.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads = True
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        self.written += b"".join(parts)

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


class Promising:
    """An application whose lane promises everything, and tells what in the order of settling."""

    def __init__(self) -> None:
        self.promised: list[tuple[Promise, str]] = []
        self.loop_hooks = LoopHooks(self.fast_lane, self.lane, self.settle)

    def lane(self, headers: Mapping[str, str]) -> Promising:
        return self

    def reader(self, target: str) -> None:
        return None

    def fast_lane(self, request: Request) -> Answer:
        return Answer(200, b"fast %s" % request.path.encode())

    def answer(self, method: str, target: str, body: bytes) -> Promise:
        promise = Promise()
        self.promised.append((promise, target))
        return promise

    def settle(self) -> None:
        for promise, target in self.promised:
            promise.answer = Answer(200, f"kept {target}".encode())
        self.promised.clear()


class Turned:
    """A loop that is turned by hand; named as the fake that it is."""

    def __init__(self) -> None:
        self._soon: list[tuple[Callable[..., Any], Any]] = []
        self.remove_reader: Callable[[int], None] = lambda descriptor: None

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._soon.append((function, arguments))

    def turn(self) -> None:
        """Call what was to be called soon, but not what comes of that."""
        soon, self._soon = self._soon, []
        for function, arguments in soon:
            function(*arguments)


def a_worker(application: object) -> tuple[EventLoopWorker, Turned]:
    cfg = Config()
    worker = EventLoopWorker(1, os.getppid(), [], None, 30, cfg, Logger(cfg))
    worker.wsgi = cast(Any, application)
    worker.prepare()
    worker.alive = True
    worker.keeps_alive = worker.is_quick = True
    worker.loop.close()
    loop = Turned()
    worker.loop = cast(asyncio.AbstractEventLoop, loop)
    return worker, loop


def connected(worker: EventLoopWorker) -> tuple[Connection, Taken]:
    transport = Taken()
    connection = Connection(worker, ("127.0.0.1", 1), ("127.0.0.1", 2))
    connection.connection_made(transport)
    return connection, transport


class Counting:
    """An application that answers at once, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loop_hooks = LoopHooks(self.fast_lane)

    def fast_lane(self, request: Request) -> Answer:
        self.asked.append(request.path)
        return Answer(200, request.read_body(100_000))


BUSY = {
    "requests": b"".join(request(f"/{number}") for number in range(50)),
    "requests in chunks": b"".join(
        request(f"/{n}", "Transfer-Encoding: chunked\r\n", "POST", b"1\r\nx\r\n0\r\n\r\n")
        for n in range(50)
    ),
    "small chunks": request("/", "Transfer-Encoding: chunked\r\n", "POST")
    + b"10\r\n0123456789abcdef\r\n" * 50_000,
    "a long body": request("/", "Content-Length: 60000000\r\n", "POST") + bytes(1_000_000),
}


@pytest.mark.parametrize("kind", BUSY)
def test_whoever_sends_much_has_one_share_of_a_turn(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has arrived: so others are answered, and no more is read meanwhile."""
    monkeypatch.setattr("eureka_http.worker._TURN_SECS", 0.0)
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 100.0)
    application = Counting()
    worker, loop = a_worker(application)
    several = [connected(worker) for _ in range(3)]
    other, heard = connected(worker)
    left = []
    for connection, _ in several:
        connection.data_received(BUSY[kind])
    for number in range(10):
        left.append([len(connection._stash) for connection, _ in several])
        assert not any(transport.reads for _, transport in several)
        other.data_received(request("/beat"))
        assert application.asked.count("/beat") == number + 1
        assert heard.reads
        loop.turn()
    # In each turn one of them had a share: a request, or a piece of a body.
    for before, after in itertools.pairwise(left):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert max(b - a for a, b in zip(after, before, strict=True)) <= 64 * 1024
    # All is answered in the end, in its order.
    while any(connection._is_queued for connection, _ in several):
        loop.turn()
    if kind.startswith("requests"):
        answered = [path for path in application.asked if path != "/beat"]
        assert sorted(answered) == sorted(f"/{n}" for n in range(50) for _ in several)
    assert all(transport.reads for _, transport in several)
    for connection, _ in several:
        connection.connection_lost(None)


def test_whoever_asks_what_is_dear_waits_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 0.0)
    monkeypatch.setattr("eureka_http.worker._TURN_SECS", 0.0)
    application = Counting()
    worker, loop = a_worker(application)
    several = [connected(worker) for _ in range(3)]
    for connection, _ in several:
        connection.data_received(request("/dear"))
    assert len(application.asked) == 3
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 100.0)
    for connection, _ in several:
        connection.data_received(request("/dear"))
    other, _ = connected(worker)
    other.data_received(request("/beat"))
    assert application.asked[3:] == ["/beat"]
    for number in range(3):
        loop.turn()
        assert len(application.asked) == number + 5


class Laned(Counting):
    """It has a lane for all fields, which answers what is called so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop_hooks = LoopHooks(self.fast_lane, self.lane)

    def lane(self, headers: Mapping[str, str]) -> Laned:
        return self

    def reader(self, target: str) -> None:
        return None

    def answer(self, method: str, target: str, body: bytes) -> Answer | None:
        if target != "/laned":
            return None
        self.asked.append(target)
        return Answer(200)


def test_whoever_waits_in_the_queue_is_known_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a heartbeat's next one needs no turn, whatever the first one took."""
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 0.0)
    application = Laned()
    worker, loop = a_worker(application)
    connection, _ = connected(worker)
    connection.data_received(request("/dear", "X-Other: fields\r\n"))
    connection.data_received(request("/laned"))
    assert application.asked == ["/dear"]
    loop.turn()
    connection.data_received(request("/laned"))
    assert application.asked == ["/dear", "/laned", "/laned"]


def test_handshakes_begin_one_in_a_turn() -> None:
    worker, loop = a_worker(Counting())
    begun: list[Any] = []
    worker._welcome_soon = lambda client, peer, server: begun.append(peer)  # type: ignore[method-assign]
    clients = [socket.socket() for _ in range(4)]
    worker._silent = dict.fromkeys(clients, 0.0)
    for number, client in enumerate(clients):
        worker._hear(client, str(number), "")
    for number in range(4):
        assert begun == [str(each) for each in range(number)]
        loop.turn()
    assert begun == ["0", "1", "2", "3"]
    assert worker._silent == {}
    for client in clients:
        client.close()


class Pool:
    """A pool that does nothing; named as the fake that it is."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, function: Callable[[], None]) -> None:
        self.submitted += 1


def test_long_bodies_have_one_thread_of_their_own() -> None:
    """Several that are parsed at once would leave the interpreter, and a thread, to nobody else."""
    worker, _ = a_worker(lambda environ, start_response: [])
    assert worker.long_pool._max_workers == 1
    pool, long_pool = Pool(), Pool()
    worker.pool, worker.long_pool = cast(Any, pool), cast(Any, long_pool)
    for size in (0, 16 * 1024, 16 * 1024 + 1, 100_000):
        connection, _ = connected(worker)
        connection.data_received(request("/", f"Content-Length: {size}\r\n", "POST", bytes(size)))
        while connection._is_queued:
            connection.share()
    assert (pool.submitted, long_pool.submitted) == (2, 2)


@pytest.mark.parametrize("ends", [False, True])
def test_what_follows_a_promise_waits_for_it(ends: bool) -> None:
    """All is answered in its order, also to a client that has ceased to send."""
    worker, loop = a_worker(Promising())
    connection, transport = connected(worker)
    connection.data_received(request("/first"))
    connection.data_received(request("/second"))
    assert not transport.written.count(b"kept")
    connection.data_received(request("/third"))
    connection.data_received(request("/fourth")[:20])
    assert not transport.reads
    connection.data_received(request("/fourth")[20:] + request("/fifth"))
    if ends:
        assert connection.eof_received()
    for _ in range(9):
        loop.turn()
    bodies = re.findall(rb"(?:fast|kept) /[a-z]+", transport.written)
    assert [body.split()[1] for body in bodies] == [
        b"/first",
        b"/second",
        b"/third",
        b"/fourth",
        b"/fifth",
    ]
    assert bodies[1] == b"kept /second"
    assert transport.is_closed is ends
    assert transport.reads


class TestThreads:
    def test_a_client_that_goes_away_frees_its_thread(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, threads=2) as site:
            wires = [site.wire(request("/endless")) for _ in range(2)]
            for wire in wires:
                assert wire.head()[0] == 200
            for wire in wires:
                wire.__exit__()
            assert site.get("/").body == b"plain"
            wait_until(lambda: site.state()["closed"] == 2, 5, "close()")

    def test_a_client_that_leaves_before_its_answer_does_no_harm(self, site: Site) -> None:
        for _ in range(10):
            with site.wire(request("/slow/0.1")):
                pass
        assert site.get("/").body == b"plain"
        assert "Error handling request GET /slow" not in site.log()

    def test_a_streaming_body_waits_for_its_reader(self, site: Site) -> None:
        with site.wire(request("/endless")) as wire:
            assert wire.head()[0] == 200
            time.sleep(0.3)
            before = site.state()["made"]
            time.sleep(0.3)
            assert site.state()["made"] == before
            for _ in range(200):
                assert len(wire.chunk()) == 65536
            assert site.state()["made"] > before


class TestStreams:
    def test_200_readers_hear_every_tick_and_cost_no_thread(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP) as site:
            assert site.state()["ticks"] == 0
            threads = site.state()["threads"]
            wires = [site.wire(request("/fast/stream")) for _ in range(200)]
            for wire in wires:
                status, _, headers = wire.head()
                assert (status, headers["transfer-encoding"]) == (200, "chunked")
                assert (headers["content-type"], headers["x-stream"]) == (
                    "text/event-stream",
                    "yes",
                )
                assert wire.chunk() == b"welcome\n"
            for wire in wires:
                first = int(wire.chunk().split()[1])
                assert [int(wire.chunk().split()[1]) for _ in range(5)] == [
                    first + n for n in range(1, 6)
                ]
            assert site.state()["threads"] <= max(threads, 4 + 1)
            began, ticks = time.monotonic(), site.state()["ticks"]
            time.sleep(0.5)
            per_second = (site.state()["ticks"] - ticks) / (time.monotonic() - began)
            assert 25 < per_second < 55
            for wire in wires:
                wire.__exit__()
            wait_until(lambda: site.state()["left"] == 200, 5, "all to have left")
            ticks = site.state()["ticks"]
            time.sleep(0.2)
            assert site.state()["ticks"] <= ticks + 1

    def test_a_slow_reader_is_dropped_and_others_are_not(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, env={"EVENT_BYTES": "60000"}) as site:
            slow = site.wire(request("/fast/stream"))
            with site.wire(request("/fast/stream")) as quick:
                quick.head()
                wait_until(lambda: quick.chunk() and "too slow" in site.log(), 10)
                assert site.state()["left"] == 1
                for _ in range(5):
                    assert quick.chunk()
            with slow, pytest.raises((AssertionError, ConnectionError)):
                read_to_the_end(slow)

    def test_a_stream_that_ends_leaves_the_connection_open(self, site: Site) -> None:
        left = site.state()["left"]
        with site.wire(request("/fast/poll") + request("/fast/once") + request("/")) as wire:
            assert wire.reply().body == b"polled"
            assert wire.reply().body == b"once"
            assert wire.reply().body == b"plain"
        assert site.state()["left"] == left + 1
        assert "Error ending" not in site.log()

    def test_head_of_a_stream_subscribes_nothing(self, site: Site) -> None:
        joined = site.state()["joined"]
        with site.wire(request("/fast/stream", method="HEAD") + request("/")) as wire:
            assert wire.reply("HEAD").headers["transfer-encoding"] == "chunked"
            assert wire.reply().body == b"plain"
        assert site.state()["joined"] == joined

    def test_http_1_0_gets_a_stream_until_the_end(self, site: Site) -> None:
        with site.wire(b"GET /fast/once HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") as wire:
            reply = wire.reply()
            assert (reply.headers["connection"], reply.body) == ("close", b"once")
            assert "transfer-encoding" not in reply.headers

    def test_a_reader_that_only_closes_its_side_has_left(self, site: Site) -> None:
        left = site.state()["left"]
        with site.wire(request("/fast/stream")) as wire:
            wire.head()
            wire.socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: site.state()["left"] == left + 1, 3)

    def test_a_graceful_stop_ends_streams_and_idle_connections_at_once(
        self, tmp_path: Path
    ) -> None:
        with Site(tmp_path, LOOP) as site:
            idle, stream = site.wire(request("/")), site.wire(request("/fast/stream"))
            idle.reply()
            stream.head()
            time.sleep(1.2)
            began = time.monotonic()
            site.process.send_signal(signal.SIGTERM)
            while stream.chunk():
                pass
            assert stream.is_closed()
            assert idle.is_closed()
            assert site.process.wait(timeout=5) == 0
            assert time.monotonic() - began < 2.5

    def test_streams_are_spoken_under_tls(self, tmp_path: Path) -> None:
        make_certificates(tmp_path)
        files = {"certfile": str(tmp_path / "server.pem"), "keyfile": str(tmp_path / "server.key")}
        with Site(tmp_path, LOOP, **files) as site:
            with tls(site, tmp_path) as wire:
                wire.send(request("/fast/stream"))
                wire.head()
                assert wire.chunk() == b"welcome\n"
                assert wire.chunk().startswith(b"event")
            with tls(site, tmp_path) as wire:
                wire.send(b"".join(request("/fast/big") for _ in range(20)))
                assert all(len(wire.reply().body) == 1_000_000 for _ in range(20))
                wire.send(request("/state"))
                wait_until(lambda: wire.reply().json()["left"] or wire.send(request("/state")), 3)


def read_to_the_end(wire: Wire) -> None:
    wire.head()
    while wire.chunk():
        pass


class Load:
    """Clients that keep their connections, until stopped; every error is a loss."""

    def __init__(self, port: int, paths: list[str]) -> None:
        self.errors: list[str] = []
        self.answers = 0
        self._port = port
        self._paths = paths
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stopped.is_set():
            path = self._paths[(self.answers + number) % len(self._paths)]
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                self.answers += 1
                if response.status != 200:
                    self.errors.append(f"{path}: {response.status}")
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(f"{path}: {error!r}")
                connection.close()
            if number % 2:
                connection.close()
            time.sleep(0.002)
        connection.close()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def tls(site: Site, folder: Path, client: str | None = None) -> Wire:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client is not None:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    plain = socket.create_connection(("127.0.0.1", site.port), timeout=10)
    return Wire(context.wrap_socket(plain, server_hostname="localhost"))


def ask_without_certificate(site: Site, folder: Path) -> None:
    with tls(site, folder) as wire:
        wire.send(request("/"))
        wire.reply()


def make_certificates(folder: Path) -> None:
    """An authority, a server for localhost and a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority",
        "-days", "2", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
            "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE",
        )  # fmt: skip
