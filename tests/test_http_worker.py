"""The event-loop worker in real gunicorn processes, next to a worker of gunicorn's own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conformance.programs import free_port
from tests.servers import HANG_SECS, ROOT, wait_until
from tests.sites import APPLICATION, LOOP, Load, Site, Wire, tls
from tests.turned import request

BOTH = ("gthread", LOOP)


@pytest.fixture(scope="module", params=[*BOTH, "no hooks"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """What both workers promise alike: one server of each, and one without hooks in the loop."""
    folder = tmp_path_factory.mktemp("shared")
    limits = {"limit_request_line": 1000, "limit_request_fields": 20}
    name = request.param
    worker, application = (name, "app") if name in BOTH else (LOOP, "plain")
    limits |= {"limit_request_field_size": 500}
    with Site(folder, worker, f"{APPLICATION}:{application}", **limits) as site:
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
            "Content-Length: x\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: -3\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Blank : before the colon\r\n",
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
        wait_until(lambda: shared.state()["closed"] == closed + 1, "close()")

    def test_write_and_iterable_follow_each_other(self, shared: Site) -> None:
        assert shared.get("/write").body == b"written and returned"

    def test_exc_info_replaces_a_head_that_is_not_sent(self, shared: Site) -> None:
        reply = shared.get("/exc-info")
        assert (reply.status, reply.body) == (503, b"changed its mind")

    def test_a_file_is_sent_through_the_wrapper(self, shared: Site) -> None:
        assert shared.get("/file").body == (ROOT / "tests/applications/loop.py").read_bytes()

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

    def test_clients_that_go_away_amid_an_answer_cost_nobody_else(self, shared: Site) -> None:
        for _ in range(8):
            with shared.wire(request("/endless")) as wire:
                assert wire.head()[0] == 200
        assert shared.get("/").body == b"plain"

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


def over_tls(certificates: Path) -> dict[str, Any]:
    return {
        "certfile": str(certificates / "server.pem"),
        "keyfile": str(certificates / "server.key"),
    }


def ask_without_certificate(site: Site, certificates: Path) -> None:
    with tls(site, certificates) as wire:
        wire.send(request("/"))
        wire.reply()


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
            wait_until(lambda: site.state()["asked"] == asked + 1)
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
            assert wire.is_closed()

    def test_no_keep_alive_closes_after_each_answer(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class, keepalive=0) as site, site.wire(request("/")) as wire:
            assert wire.reply().headers["connection"] == "close"
            assert wire.is_closed()

    def test_a_graceful_stop_finishes_the_answer_in_flight(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        go = tmp_path / "go"
        with Site(tmp_path, worker_class) as site, site.wire(request(f"/until{go}")) as wire:
            wait_until(lambda: site.state()["made"])
            site.process.send_signal(signal.SIGTERM)
            go.touch()
            reply = wire.reply()
            assert reply.body == b"at last"
            assert wire.is_closed()
            assert site.process.wait(timeout=HANG_SECS) == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
    def test_a_quick_stop_waits_for_no_connection(
        self, tmp_path: Path, worker_class: str, number: int
    ) -> None:
        with Site(tmp_path, worker_class) as site, site.wire(request("/")) as wire:
            wire.reply()
            site.process.send_signal(number)
            assert wire.is_closed()
            assert site.process.wait(timeout=HANG_SECS) == 0

    def test_a_reload_under_load_loses_nothing(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class, workers=2) as site:
            load = Load(site.port, ["/", "/fast", "/slow/0.01"])
            for _ in range(2):
                before = set(site.worker_pids())
                wait_until(lambda now=load.answers: load.answers > now + 100, "some load")
                site.process.send_signal(signal.SIGHUP)
                wait_until(
                    lambda old=before: len(p := site.worker_pids()) == 2 and not old & set(p)
                )
            load.stop()
            assert load.errors == []

    def test_after_its_share_of_requests_a_worker_is_replaced_without_loss(
        self, tmp_path: Path, worker_class: str
    ) -> None:
        with Site(tmp_path, worker_class, workers=2, max_requests=100) as site:
            load = Load(site.port, ["/", "/echo"])
            wait_until(lambda: site.log().count("Autorestarting") >= 3, "three replacements")
            load.stop()
            assert load.errors == []

    def test_a_killed_worker_is_replaced(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class) as site:
            (before,) = site.worker_pids()
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: site.worker_pids() not in ([], [before]))
            assert site.get("/").body == b"plain"

    def test_a_worker_without_its_parent_stops(self, tmp_path: Path, worker_class: str) -> None:
        with Site(tmp_path, worker_class) as site:
            (pid,) = site.worker_pids()
            site.process.kill()
            site.process.wait()
            wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists(), "its end")

    def test_a_unix_socket_is_served(self, tmp_path: Path, worker_class: str) -> None:
        path = tmp_path / "s"
        with Site(tmp_path, worker_class, bind=f"unix:{path}"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(HANG_SECS)
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
            wait_until(lambda: log.read_text().count("\n") == 1)
        assert log.read_text() == '127.0.0.1 "GET /?q HTTP/1.1" 200 5 "me" mine text/plain\n'

    def test_the_hooks_are_called_around_a_request(self, tmp_path: Path, worker_class: str) -> None:
        hooks = (
            "def pre_request(worker, req):\n    worker.log.info('before %s', req.path)\n"
            "def post_request(worker, req, environ, resp):\n"
            "    worker.log.info('after %s %s', req.uri, resp.status)\n"
        )
        with Site(tmp_path, worker_class, hooks=hooks) as site:
            site.get("/?q")
            wait_until(lambda: "after /?q 200" in site.log())
            assert site.log().count("before /") == 1

    def test_tls_is_spoken(self, tmp_path: Path, worker_class: str, certificates: Path) -> None:
        with Site(tmp_path, worker_class, **over_tls(certificates)) as site:
            with tls(site, certificates) as wire:
                wire.send(request("/peer") + request("/fast"))
                assert wire.reply().json() == ["https", None]
                assert wire.reply().status == 200
                body = os.urandom(300_000)
                sent = request("/echo", f"Content-Length: {len(body)}\r\n", "POST", body)
                wire.send(sent)
                assert wire.reply().json()["length"] == len(body)
            with site.wire(request("/")) as plain:  # no TLS: no answer, and no harm
                plain._file.read()
            with tls(site, certificates) as wire:
                wire.send(request("/", "Connection: close\r\n"))
                assert wire.reply().body == b"plain"
                assert wire.is_closed()

    def test_mutual_tls_lets_in_only_who_has_a_certificate(
        self, tmp_path: Path, worker_class: str, certificates: Path
    ) -> None:
        asked = {"ca_certs": str(certificates / "ca.pem"), "cert_reqs": int(ssl.CERT_REQUIRED)}
        with Site(tmp_path, worker_class, **over_tls(certificates), **asked) as site:
            with tls(site, certificates, "client") as wire:
                wire.send(request("/peer"))
                scheme, subject = wire.reply().json()
                assert scheme == "https"
                assert [["commonName", "localhost"]] in subject
            with pytest.raises((OSError, AssertionError)):
                ask_without_certificate(site, certificates)


# The arbiter is to be patient with a slow machine's worker; the worker itself with nobody.
PATIENT_ARBITER = f"""
def when_ready(server):
    server.timeout = {HANG_SECS}
"""


class Dawdlers(NamedTuple):
    """Three who take too long, all at the same time."""

    site: Site
    head: Wire
    body: Wire
    reader: Wire


@pytest.fixture(scope="module")
def dawdlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dawdlers]:
    folder = tmp_path_factory.mktemp("dawdlers")
    with Site(folder, LOOP, timeout=4, hooks=PATIENT_ARBITER) as site:
        reader = site.wire(request("/endless"))
        body = site.wire(request("/echo", "Content-Length: 9\r\n", "POST", b"abc"))
        with reader, body, site.wire(b"GET / HTTP/1.1\r\nHo") as head:
            yield Dawdlers(site, head, body, reader)


class TestStops:
    def test_whoever_comes_during_a_stop_is_refused_at_once(self, tmp_path: Path) -> None:
        """While what has begun is finished: an answer, and a request of which half was sent."""
        go = tmp_path / "go"
        half = request("/echo", "Content-Length: 2\r\n", "POST", b"a")
        with Site(tmp_path, LOOP) as site:
            with site.wire(request(f"/until{go}")) as slow, site.wire(half) as late:
                wait_until(lambda: site.state()["made"])
                site.process.send_signal(signal.SIGTERM)

                def is_refused() -> bool:
                    try:
                        socket.create_connection(("127.0.0.1", site.port), HANG_SECS).close()
                    except ConnectionRefusedError:
                        return True
                    return False

                wait_until(is_refused, "refusing")
                assert site.process.poll() is None
                late.send(b"b")
                assert late.reply().json()["length"] == 2
                go.touch()
                assert slow.reply().body == b"at last"


@pytest.mark.slow
class TestTime:
    """When exactly is tested in ``test_http_connection.py``, where time is turned by hand."""

    def test_a_slow_head_is_answered_with_408(self, dawdlers: Dawdlers) -> None:
        assert dawdlers.head.reply().status == 408
        assert dawdlers.head.is_closed()

    def test_a_slow_body_is_answered_with_408(self, dawdlers: Dawdlers) -> None:
        assert dawdlers.body.reply().status == 408
        assert dawdlers.body.is_closed()

    def test_a_client_that_reads_nothing_is_dropped(self, dawdlers: Dawdlers) -> None:
        site = dawdlers.site
        wait_until(lambda: site.state()["closed"] == 1, "the end of the answer")
        assert site.state()["made"] < 200, "the application ran ahead of its reader"

    def test_under_tls_a_client_that_says_nothing_is_let_go(
        self, tmp_path: Path, certificates: Path
    ) -> None:
        options = {"timeout": 4, "hooks": PATIENT_ARBITER, "worker_connections": 1}
        with Site(tmp_path, LOOP, **options, **over_tls(certificates)) as site:
            with site.wire() as silent:
                assert silent.is_closed()
            with tls(site, certificates) as wire:
                wire.send(request("/"))
                assert wire.reply().body == b"plain"
            with site.wire() as silent:
                site.process.send_signal(signal.SIGTERM)
                assert silent.is_closed()
                assert site.process.wait(timeout=HANG_SECS) == 0

    def test_a_worker_that_hangs_is_killed(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, "tests.applications.hanging:app", timeout=4) as site:
            (before,) = site.worker_pids()
            with site.wire(request("/hang")) as wire:
                assert wire.is_closed()
            wait_until(lambda: site.worker_pids() not in ([], [before]))
            assert site.get("/").status == 200


class TestBounds:
    def test_a_body_beyond_the_bound_is_refused_at_once(self, site: Site) -> None:
        fields = f"Content-Length: {64 * 1024 * 1024 + 1}\r\nExpect: 100-continue\r\n"
        with site.wire(request("/echo", fields, "POST")) as wire:
            assert wire.reply().status == 413
            assert wire.is_closed()

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
        with Site(tmp_path, LOOP, worker_connections=5, keepalive=HANG_SECS) as site:
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
        paths = ["/fast?1", "/slow/0.01", "/fast?2", "/", "/fast?3"] * 20
        with site.wire(b"".join(map(request, paths))) as wire:
            bodies = [wire.reply().body for _ in paths]
        for one, slow, two, plain, three in zip(*(bodies[n::5] for n in range(5)), strict=True):
            assert [json.loads(each)["query"] for each in (one, two, three)] == ["1", "2", "3"]
            assert (slow, plain) == (b"at last", b"plain")

    def test_it_answers_while_every_thread_is_busy(self, site: Site, tmp_path: Path) -> None:
        go = tmp_path / "go"
        made = site.state()["made"]
        wires = [site.wire(request(f"/until{go}")) for _ in range(4)]
        wait_until(lambda: site.get("/fast/state").json()["made"] == made + 4, "busy threads")
        assert site.get("/fast").status == 200
        go.touch()
        for wire in wires:
            assert wire.reply().body == b"at last"

    def test_an_application_without_one_is_served_all_the_same(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, f"{APPLICATION}:plain") as site:
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
            wait_until(lambda: log.read_text().count("\n") == 2)
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

    def test_while_promises_are_kept_apart_others_are_served_and_the_next_go_together(
        self, tmp_path: Path
    ) -> None:
        with Site(tmp_path, LOOP, f"{APPLICATION}:patient") as site:
            wires = [site.wire(request("/fast/first", "X-Lane: 5\r\n")) for _ in range(9)]
            for wire in wires:
                assert wire.reply().status == 200
            *waiting, last = wires
            for number, wire in enumerate(waiting[:-1]):
                wire.send(request(f"/lane/promise/{number}", "X-Lane: 5\r\n"))
                wait_until(lambda: site.state()["settled"])
            # The next round fails as a whole.
            waiting[-1].send(request("/lane/promise/boom", "X-Lane: 5\r\n"))
            last.send(request("/lane/as-ever", "X-Lane: 5\r\n"))
            assert last.reply().status == 200
            assert site.state()["settled"] == [1]
            (tmp_path / "kept").touch()
            told = [wire.reply() for wire in waiting]
            assert told[0].body == b"/lane/promise/0"
            assert told[-1].status == 500
            assert site.state()["settled"] == [1, 7]
            last.send(request("/lane/promise/again", "X-Lane: 5\r\n"))
            assert last.reply().body == b"/lane/promise/again"
            for wire in wires:
                wire.__exit__()

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


class TestThreads:
    def test_a_client_that_goes_away_frees_its_thread(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, threads=2) as site:
            wires = [site.wire(request("/endless")) for _ in range(2)]
            for wire in wires:
                assert wire.head()[0] == 200
            for wire in wires:
                wire.__exit__()
            assert site.get("/").body == b"plain"
            wait_until(lambda: site.state()["closed"] == 2, "close()")

    def test_a_client_that_leaves_before_its_answer_does_no_harm(self, site: Site) -> None:
        for _ in range(10):
            with site.wire(request("/slow/0.1")):
                pass
        assert site.get("/").body == b"plain"
        assert "Error handling request GET /slow" not in site.log()

    def test_a_streaming_body_waits_for_its_reader(self, site: Site) -> None:
        began = site.state()["made"]

        def is_still() -> bool:
            before = site.state()["made"]
            assert before - began < 1_000, "the application ran ahead of its reader"
            time.sleep(0.3)
            return bool(site.state()["made"] == before)

        with site.wire(request("/endless")) as wire:
            assert wire.head()[0] == 200
            wait_until(is_still, "it waits")
            before = site.state()["made"]
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
            for wire in wires:
                wire.__exit__()
            wait_until(lambda: site.state()["left"] == 200, "all to have left")
            ticks = site.state()["ticks"]
            time.sleep(0.2)
            assert site.state()["ticks"] <= ticks + 1

    def test_a_slow_reader_is_dropped_and_others_are_not(self, tmp_path: Path) -> None:
        with Site(tmp_path, LOOP, env={"EVENT_BYTES": "60000"}) as site:
            slow = site.wire(request("/fast/stream"))
            with site.wire(request("/fast/stream")) as quick:
                quick.head()
                wait_until(lambda: quick.chunk() and "too slow" in site.log())
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
            wait_until(lambda: site.state()["left"] == left + 1)

    def test_a_graceful_stop_ends_streams_and_idle_connections_at_once(
        self, tmp_path: Path
    ) -> None:
        with Site(tmp_path, LOOP) as site:
            idle, stream = site.wire(request("/")), site.wire(request("/fast/stream"))
            idle.reply()
            stream.head()
            site.process.send_signal(signal.SIGTERM)
            while stream.chunk():
                pass
            assert stream.is_closed()
            assert idle.is_closed()
            assert site.process.wait(timeout=HANG_SECS) == 0

    def test_streams_are_spoken_under_tls(self, tmp_path: Path, certificates: Path) -> None:
        with Site(tmp_path, LOOP, **over_tls(certificates)) as site:
            with tls(site, certificates) as wire:
                wire.send(request("/fast/stream"))
                wire.head()
                assert wire.chunk() == b"welcome\n"
                assert wire.chunk().startswith(b"event")
            with tls(site, certificates) as wire:
                wire.send(b"".join(request("/fast/big") for _ in range(20)))
                assert all(len(wire.reply().body) == 1_000_000 for _ in range(20))
                wire.send(request("/state"))
                wait_until(lambda: wire.reply().json()["left"] or wire.send(request("/state")))


def read_to_the_end(wire: Wire) -> None:
    wire.head()
    while wire.chunk():
        pass
