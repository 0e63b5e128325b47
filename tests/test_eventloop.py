"""The event-loop worker under real gunicorn processes, and what every worker class owes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.programs import free_port
from tests.servers import ROOT, Reply, send, wait_until

LOOP = "eureka_http.worker.EventLoopWorker"
APPLICATION = """
import os, time
from eureka_http.exchange import Answer, LoopHooks, Stream

class Application:
    def __init__(self):
        self.told = set()
        self.ticks = 0

    def __call__(self, environ, start_response):
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        text = [("Content-Type", "text/plain")]
        if path == "/echo":
            body = environ["wsgi.input"].read()
            start_response("200 OK", [*text, ("X-Length", str(len(body)))])
            return [body[:1000]]
        if path == "/environ":
            start_response("200 OK", text)
            shown = {k: v for k, v in environ.items() if isinstance(v, (str, bool, int))}
            return [repr(sorted(shown.items())).encode()]
        if path == "/slow":
            time.sleep(float(environ["QUERY_STRING"] or 1))
            start_response("200 OK", text)
            return [b"slow"]
        if path == "/parts":
            start_response("200 OK", text)
            return (b"part %d;" % n for n in range(3))
        if path == "/large":
            start_response("200 OK", text)
            return (b"x" * 65536 for _ in range(200))
        if path == "/written":
            write = start_response("200 OK", text)
            write(b"written, ")
            return [b"returned"]
        if path == "/fail":
            raise RuntimeError("on purpose")
        if path == "/half":
            start_response("200 OK", text)
            return self.half()
        if path == "/none":
            start_response("204 No Content", [])
            return []
        if path == "/pid":
            start_response("200 OK", text)
            return [str(os.getpid()).encode()]
        if path == "/split":
            start_response("200 OK", [("X", "a\\r\\nb: c")])
            return []
        if path == "/ticks":
            start_response("200 OK", text)
            return [str(self.ticks).encode()]
        start_response("404 Not Found", text)
        return [b"wsgi 404"]

    def half(self):
        yield b"half"
        raise RuntimeError("on purpose")

app = Application()
if FAST:
    def fast_lane(request):
        if request.path == "/fast":
            names = ",".join(sorted(request.headers))
            text = f"{request.method} {request.query} {names} {request.peer} {request.scheme}"
            return Answer(200, text.encode(), "text/plain", {"X-Lane": "fast"})
        if request.path == "/fast-fail":
            raise RuntimeError("on purpose")
        if request.path == "/stream":
            def subscribe(write, end):
                entry = (write, end)
                app.told.add(entry)
                write(b"hello;")
                return lambda: app.told.discard(entry)
            return Stream("text/event-stream", {"X-Lane": "fast"}, subscribe)
        if request.path == "/tell":
            data = b"y" * int(request.query)
            for write, _ in list(app.told):
                write(data)
            return Answer(200, str(len(app.told)).encode())
        if request.path == "/end":
            for _, end in list(app.told):
                end()
            return Answer(200)
        return None

    def tick():
        app.ticks += 1
        for write, _ in list(app.told):
            if app.ticks == 10:
                write(b"tick;")

    app.loop_hooks = LoopHooks(fast_lane=fast_lane, tick=tick)
"""


class Served:
    """A gunicorn of its own for the small application above."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        worker: str = LOOP,
        fast: bool = True,
    ) -> None:
        self.folder = folder
        (folder / "small.py").write_text(f"FAST = {fast}\n{textwrap.dedent(APPLICATION)}")
        self.port = free_port()
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "small:app", "-c", "/dev/null"),
                    *("--bind", f"127.0.0.1:{self.port}", "--worker-class", worker),
                    *("--threads", "4", "--pythonpath", f"{folder},{ROOT}", "--no-control-socket"),
                    *options,
                ],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )
        wait_until(lambda: "Booting worker" in self.log.read_text() and self._answers(), 15, "it")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def get(self, path: str, method: str = "GET", body: bytes | None = None) -> Reply:
        return send(self.port, method, path, body)

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, end sending, and read all that comes."""
        with self.open() as connection:
            connection.sendall(data)
            return everything(connection)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            subprocess.run(["pkill", "-9", "-f", str(self.folder)], check=False)


def everything(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def until(connection: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*options: str, **named: Any) -> Served:
        folder = tmp_path / f"served-{len(started)}"
        folder.mkdir()
        started.append(Served(folder, *options, **named))
        return started[-1]

    yield start
    for served in started:
        served.end()


@pytest.fixture(scope="module", params=[LOOP, "gthread", "no fast lane"])
def any_worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name = request.param
    served = Served(
        tmp_path_factory.mktemp("any"),
        worker="gthread" if name == "gthread" else LOOP,
        fast=name != "no fast lane",
    )
    yield served
    served.end()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("one"))
    yield served
    served.end()


CLOSE = b"Connection: close\r\n"
HOST = b"Host: h\r\n"


# What every worker class owes.


def test_a_body_arrives_whole_by_length_and_by_chunks(any_worker: Served) -> None:
    reply = any_worker.get("/echo", "POST", b"0123456789" * 20_000)
    assert (reply.status, reply.headers["x-length"]) == (200, "200000")
    chunks = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    head = b"POST /echo HTTP/1.1\r\n" + HOST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    assert any_worker.raw(head + chunks).count(b"hello world") == 1


def test_a_client_may_ask_before_it_sends_its_body(any_worker: Served) -> None:
    with any_worker.open() as connection:
        connection.sendall(
            b"POST /echo HTTP/1.1\r\n"
            + HOST
            + CLOSE
            + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        connection.sendall(b"ok")
        assert b"ok" in everything(connection).partition(b"\r\n\r\n")[2]


def test_answers_come_in_parts_by_write_and_without_a_body(any_worker: Served) -> None:
    assert any_worker.get("/parts").body == b"part 0;part 1;part 2;"
    assert any_worker.get("/written").body == b"written, returned"
    none = any_worker.get("/none")
    assert (none.status, none.body) == (204, b"")
    assert "content-length" not in none.headers
    head = any_worker.get("/environ", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert len(any_worker.get("/large").body) == 200 * 65536


def test_http_1_0_closes_unless_asked_to_stay(any_worker: Served) -> None:
    answer = any_worker.raw(b"GET /parts HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\npart 0;part 1;part 2;")
    assert b"Transfer-Encoding" not in answer


def test_an_application_that_fails_is_a_500_and_the_next_is_served(any_worker: Served) -> None:
    assert any_worker.get("/fail").status == 500
    assert any_worker.get("/split").status == 500
    assert any_worker.get("/pid").status == 200


def test_half_an_answer_does_not_look_whole(any_worker: Served) -> None:
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = any_worker.raw(b"GET /half HTTP/1.1\r\n" + HOST + b"\r\n")
    assert not answer.endswith(b"0\r\n\r\n")


def test_the_environment_is_a_wsgi_servers(any_worker: Served) -> None:
    answer = any_worker.raw(
        b"GET /environ?a=b%20c HTTP/1.1\r\n" + HOST + CLOSE + b"X-Two: 1\r\nX-Two: 2\r\n\r\n"
    ).decode()
    for pair in (
        "('PATH_INFO', '/environ')",
        "('QUERY_STRING', 'a=b%20c')",
        "('RAW_URI', '/environ?a=b%20c')",
        "('REMOTE_ADDR', '127.0.0.1')",
        "('REQUEST_METHOD', 'GET')",
        "('SERVER_PROTOCOL', 'HTTP/1.1')",
        "('wsgi.url_scheme', 'http')",
        "('wsgi.multithread', True)",
        "('HTTP_HOST', 'h')",
        "('HTTP_X_TWO', '1,2')",
    ):
        assert pair in answer, pair


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nBad\x00Name: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_closed(any_worker: Served, request_: bytes) -> None:
    answer = any_worker.raw(request_)
    # Nothing of it ran; the worker that was asked decides whether it says so or just closes.
    assert not answer or answer.split()[1] in (b"400", b"505", b"500", b"501")
    assert any_worker.get("/pid").status == 200


def test_both_kinds_of_length_are_refused(any_worker: Served) -> None:
    smuggled = b"0\r\n\r\nGET /pid HTTP/1.1\r\nHost: h\r\n\r\n"
    both = b"POST /echo HTTP/1.1\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert any_worker.raw(both + smuggled).count(b"HTTP/1.1 200") == 0


def test_requests_sent_in_a_row_are_answered_in_order(any_worker: Served) -> None:
    paths = [b"/slow?0.2", b"/none", b"/echo", b"/parts", b"/missing", b"/pid"]
    requests = b"".join(b"GET " + p + b" HTTP/1.1\r\n" + HOST + b"\r\n" for p in paths[:-1])
    last = b"GET /pid HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    answer = any_worker.raw(requests + last)
    codes = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert codes == [b"200", b"204", b"200", b"200", b"404", b"200"]
    assert answer.index(b"slow") < answer.index(b"part 0") < answer.index(b"wsgi 404")


def test_a_client_that_goes_away_costs_nobody_else(any_worker: Served) -> None:
    for _ in range(8):
        connection = any_worker.open()
        connection.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        connection.recv(100)
        connection.close()
    wait_until(lambda: any_worker.get("/pid").status == 200, 10, "the others' answers")


# The event loop's own.


def test_the_fast_lane_answers_and_what_it_passes_on_goes_to_the_application(one: Served) -> None:
    reply = one.get("/fast?a=b")
    assert (reply.status, reply.headers["x-lane"]) == (200, "fast")
    assert reply.body == b"GET a=b accept-encoding,host 127.0.0.1 http"
    assert one.get("/fast", "HEAD").body == b""
    assert one.get("/missing").body == b"wsgi 404"
    assert one.get("/fast-fail").status == 500
    assert one.get("/fast").status == 200


def test_fast_and_slow_answers_keep_their_order(one: Served) -> None:
    paths = [b"/slow?0.1", b"/fast", b"/parts", b"/fast"] * 30
    requests = b"".join(b"GET " + p + b" HTTP/1.1\r\n" + HOST + b"\r\n" for p in paths)
    answer = one.raw(requests + b"GET /pid HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    found = re.findall(rb"slow|part 0|X-Lane", answer)
    assert found == [b"slow", b"X-Lane", b"part 0", b"X-Lane"] * 30


def test_nothing_after_a_last_request_is_run(one: Served) -> None:
    last = b"GET /fast HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    assert one.raw(last + last).count(b"X-Lane") == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"414"),
        (
            b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n",
            b"431",
        ),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", b"431"),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", b"413"),
    ],
)
def test_limits_have_their_refusals(one: Served, request_: bytes, status: bytes) -> None:
    assert one.raw(request_).split()[1] == status


def test_silent_and_slow_clients_are_let_go(serve: Callable[..., Served]) -> None:
    served = serve("--keep-alive", "1", "--timeout", "2")
    with served.open() as idle, served.open() as slow:
        idle.sendall(b"GET /fast HTTP/1.1\r\n" + HOST + b"\r\n")
        slow.sendall(b"GET /fast HT")
        began = time.monotonic()
        until(idle, b"http")
        assert idle.recv(10) == b""
        assert 0.9 < time.monotonic() - began < 4
        assert everything(slow).split()[1] == b"408"
        assert time.monotonic() - began < 6


def test_streams_are_told_and_let_go(one: Served) -> None:
    readers = [one.open() for _ in range(200)]
    for reader in readers:
        reader.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
    for reader in readers:
        assert b"hello;" in until(reader, b"hello;")
    assert one.get("/tell?10").body == b"200"
    for reader in readers:
        until(reader, b"y" * 10)
    wait_until(lambda: int(one.get("/ticks").body) >= 10, 5, "ticks")
    for reader in readers[:150]:
        reader.close()
    wait_until(lambda: one.get("/tell?1").body == b"50", 5, "the others to be let go")
    one.get("/end")
    for reader in readers[150:]:
        assert until(reader, b"0\r\n\r\n")
        # The connection goes on.
        reader.sendall(b"GET /fast HTTP/1.1\r\n" + HOST + b"\r\n")
        until(reader, b"X-Lane")
        reader.close()
    assert one.get("/tell?1").body == b"0"
    ticks = int(one.get("/ticks").body)
    time.sleep(0.2)
    assert int(one.get("/ticks").body) - ticks <= 1


def test_a_reader_that_does_not_read_is_dropped(one: Served) -> None:
    with one.open() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        until(reader, b"hello;")

        def dropped() -> bool:
            return one.get("/tell?1000000").body == b"0"

        wait_until(dropped, 10, "it to be dropped")


def test_a_stop_finishes_what_has_begun_and_lets_streams_go(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.open() as slow, served.open() as stream, served.open() as idle:
        slow.sendall(b"GET /slow?1 HTTP/1.1\r\n" + HOST + b"\r\n")
        stream.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        until(stream, b"hello;")
        idle.sendall(b"GET /fast HTTP/1.1\r\n" + HOST + b"\r\n")
        until(idle, b"X-Lane")
        time.sleep(0.2)
        served.process.terminate()
        assert b"slow" in everything(slow)
        assert everything(idle) == b""  # nothing was begun on it
        everything(stream)
        assert served.process.wait(10) == 0


def test_a_reload_under_load_loses_nothing(serve: Callable[..., Served]) -> None:
    served = serve("--workers", "2")
    failures: list[str] = []
    pids: set[bytes] = set()
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            for path in ("/fast", "/pid"):
                try:
                    reply = served.get(path)
                except OSError as error:
                    failures.append(repr(error))
                    continue
                if reply.status != 200:
                    failures.append(str(reply.status))
                elif path == "/pid":
                    pids.add(reply.body)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before = set(pids)
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(pids - before) >= 2, 10, "new workers")
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_killed_worker_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve()
    pid = int(served.get("/pid").body)
    os.kill(pid, signal.SIGKILL)

    def other() -> bool:
        try:
            return int(served.get("/pid").body) != pid
        except OSError:
            return False

    wait_until(other, 10, "another worker")


def test_after_its_number_of_requests_a_worker_makes_room(serve: Callable[..., Served]) -> None:
    served = serve("--max-requests", "20")
    pids = set()

    def renewed() -> bool:
        with contextlib.suppress(OSError):
            pids.add(served.get("/pid").body)
        return len(pids) >= 3

    wait_until(renewed, 20, "three workers")


def test_a_unix_socket_serves(serve: Callable[..., Served], tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    serve("--bind", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /fast HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
        assert b"X-Lane: fast" in everything(connection)


def test_an_access_line_is_written_where_asked_for(serve: Callable[..., Served]) -> None:
    served = serve("--access-logfile", "-")
    served.get("/fast?a=b")
    served.get("/missing")
    wait_until(lambda: '"GET /missing HTTP/1.1" 404' in served.log.read_text(), 5, "the line")
    assert '"GET /fast?a=b HTTP/1.1" 200' in served.log.read_text()


def test_tls_and_client_certificates(serve: Callable[..., Served], certificates: Path) -> None:
    own = ["--certfile", str(certificates / "server.pem"), "--keyfile"]
    own += [str(certificates / "server.key"), "--ca-certs", str(certificates / "ca.pem")]
    served = serve(*own, "--cert-reqs", "2")

    def ask(context: ssl.SSLContext) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), 5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(b"GET /fast HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
                return everything(connection)

    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    refused = b""
    with contextlib.suppress(OSError):
        refused = ask(context)
    assert refused == b""
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    assert ask(context).endswith(b"127.0.0.1 https")


def test_the_log_tells_of_a_failure_with_its_trace(one: Served) -> None:
    one.get("/fail")
    assert "RuntimeError: on purpose" in one.log.read_text()
