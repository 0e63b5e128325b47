"""One meaning behind either door: the same requests, byte for byte the same answers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conformance.case import unique
from conformance.cases.recorded import masked
from conformance.differential import TAIL, Request, requests
from conformance.documents import Form
from conformance.http import Connection, Exchange
from tests.servers import HANG_SECS, RegistryServer, instance_body

LISTS = (
    "/eureka/apps",
    "/eureka/apps/",
    "/eureka/apps/delta",
    "/eureka/v2/apps/delta",
    "/eureka/vips/v~",
)
ACCEPTED = ("application/json", "application/xml", "text/plain", "*/*", "application/json, */*")
ODD = (
    ("GET", "/eureka/apps/Da~/i~:1"),
    ("HEAD", "/eureka/apps"),
    ("OPTIONS", "/eureka/apps"),
    ("PATCH", "/eureka/apps"),
    ("GET", "/eureka/nothing"),
    ("GET", "//eureka/apps"),
    ("POST", "//eureka/apps/Da~"),
    ("GET", "/./eureka/apps/delta"),
    ("GET", "/x/../eureka/apps"),
    ("GET", "/../eureka/apps"),
    ("GET", "/%65ureka/apps/Da~"),
    ("PUT", "/eureka;a=b/apps/Da~;x/i~:1;y"),
    ("GET", "/eureka/v2%20/apps"),
    ("HEAD", "/eureka//apps"),
    ("PATCH", "//eureka/apps"),
    ("GET", "/%61pi/v1/services"),
    ("GET", "/eureka%2Fapps"),
    ("GET", "/eureka"),
    ("PUT", "/eureka/apps/Da~/i~:1?lastDirtyTimestamp=x"),
    ("GET", "/api/v1/services"),
    ("GET", "/api/v1/instances?status=ALL&fields=id,status,tags"),
    ("GET", "/api/v1/instances?fields=none"),
    ("GET", "/api/v1/instances/i~:1?fields=id,endpoint,metadata"),
    ("PUT", "/api/v1/instances/i~:1/heartbeat"),
    ("PUT", "/api/v1/instances/nobody/heartbeat"),
    ("PUT", "/api/v1/instances/nobody/why"),
    ("PUT", "/api/v1/status"),
    ("GET", "/api/v1/watch?since=x"),
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/account"),
    ("DELETE", "/api/v1/account"),
    ("GET", "/api/v1/instances?q=app:Da&limit=1&fields=zone,override"),
    ("GET", "/api/v1/services?q=status%3DUP&limit=2"),
    ("GET", "/dashboard/page.js"),
    ("GET", "/lastn"),
    ("GET", "/health/live"),
    ("HEAD", "/health"),
    ("GET", "/actuator/health"),
    ("POST", "/actuator/health"),
    ("GET", "/"),
    ("GET", "/nothing"),
)
JSON_FIELDS = (("Accept", "application/json"), ("Content-Type", "application/json"))
# Each server's own clock, and headers that say how the connection goes on.
WORKED_OUT = re.compile(r'"(last_heartbeat|revision)":(?:\d+|"[^"]*")')
CONNECTION = {"date", "connection", "server", "transfer-encoding"}


@st.composite
def any_request(draw: st.DrawFn) -> Request:
    """A change, a list, or something odd."""
    kind = draw(st.integers(0, 9))
    if kind < 5:
        made = draw(requests())
        return replace(made, path=made.target("/eureka"), dress="plain")
    headers = [("Accept", draw(st.sampled_from(ACCEPTED)))]
    if draw(st.booleans()):
        headers.append(("Accept-Encoding", "gzip"))
    if draw(st.booleans()):
        headers.append(("X-Eureka-Accept", "compact"))
    if kind < 8:
        return Request("GET", draw(st.sampled_from(LISTS)), None, tuple(headers))
    method, path = draw(st.sampled_from(ODD))
    return Request(method, path, None, tuple(headers))


def told(exchange: Exchange) -> tuple[int, dict[str, str], str]:
    """What must be the same: the status, the headers that mean something, and the bytes."""
    headers = {k: v for k, v in exchange.headers.items() if k not in CONNECTION}
    if exchange.headers.get("content-encoding") == "gzip":
        headers.pop("content-length", None)  # clock readings compress to other lengths
    return exchange.status, headers, WORKED_OUT.sub(r'"\1":0', masked(exchange.body))


class Joined(Connection):
    """Head and body of a request arrive together, as most clients send them, and as lanes are for.

    The library sends them one after the other.
    """

    def _exchange(self, *asked: Any) -> Exchange:
        library = self._connection
        if library.sock is None:
            library.connect()
        sock = library.sock
        endheaders = library.endheaders

        def corked(*arguments: Any) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            endheaders(*arguments)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

        library.endheaders = corked  # type: ignore[method-assign]
        try:
            return super()._exchange(*asked)
        finally:
            library.endheaders = endheaders  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, Connection]]:
    """The event loop with its lanes, and Flask alone in gthread."""
    same = {
        "PYTHONHASHSEED": "1",  # applications are listed in the order of their hashes
        # Nothing leaves the delta at one of them a moment before it does at the other.
        "EUREKA_SERVER_RETENTION_TIME_IN_MS_IN_DELTA_QUEUE": "36000000",
        # And nobody's lease ends at one of them a moment before it does at the other.
        "LEASE_EXPIRY": "genuine",
        "EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS": "36000000",
    }
    loop = {"WORKER_CLASS": "eureka_http.worker.EventLoopWorker"}
    fast = RegistryServer(tmp_path_factory.mktemp("fast"), env=same | loop)
    slow = RegistryServer(tmp_path_factory.mktemp("slow"), env=same | {"WORKER_CLASS": "gthread"})
    with fast, slow:
        yield Joined(fast.root), Joined(slow.root)


def test_the_fast_lane_and_flask_alone_answer_alike(doors: tuple[Connection, Connection]) -> None:
    seen: dict[int, int] = {}

    def compare(sequence: list[Request]) -> None:
        tail = unique("")
        for request in sequence:
            named = request.named(tail)
            answers = [
                told(door.send(named.method, named.path, named.data, dict(named.headers)))
                for door in doors
            ]
            assert answers[0] == answers[1], named
            seen[answers[0][0]] = seen.get(answers[0][0], 0) + 1

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.lists(any_request(), min_size=3, max_size=15))
    def play(sequence: list[Request]) -> None:
        compare(sequence)

    # Of each kind some, again and again, so that it is recalled; then whatever comes.
    registration = Request("POST", "/eureka/apps/Da~", instance_body("Da~", "i~:1"), JSON_FIELDS)
    plain = [Request("GET", path, None, (("Accept", a),)) for path in LISTS for a in ACCEPTED]
    odd = [Request(method, path, None, JSON_FIELDS[:1]) for method, path in ODD]
    compare(3 * [registration, *plain, *odd])
    assert {200, 204, 400, 404, 405, 406} <= set(seen)
    play()


def test_registrations_of_both_apis_are_seen_alike(doors: tuple[Connection, Connection]) -> None:
    document = {"service_name": "alike", "endpoint": {"type": "https", "value": "10.0.0.1:8443/a"}}
    for door in doors:
        assert (
            door.send("POST", "/api/v1/instances", json.dumps(document), dict(JSON_FIELDS)).status
            == 201
        )
    for path in ("/eureka/apps/ALIKE", "/eureka/vips/alike", "/api/v1/services/alike"):
        for form in Form:
            answers = [told(door.send("GET", path, None, form.headers)) for door in doors]
            assert answers[0] == answers[1]
            assert answers[0][0] == 200
            assert TAIL not in answers[0][2]


class Door(NamedTuple):
    server: RegistryServer
    asks_first: bool


@pytest.fixture(scope="module", params=["eureka_http.worker.EventLoopWorker", "gthread"])
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    """One of the two, where everybody needs a token."""
    env = {"WORKER_CLASS": request.param, "REGISTRY_AUTH": "trusted"}
    with RegistryServer(tmp_path_factory.mktemp("door"), workers=1, env=env) as server:
        yield Door(server, request.param != "gthread")


def spoken(server: RegistryServer, data: bytes, *, ends: bool = False) -> tuple[int, bool]:
    """The status of the answer to these bytes, and whether the body was asked for before."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECS) as connection:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            status = int(file.readline().split()[1])
            asked = status == 100
            if asked:
                assert file.readline() == b"\r\n"
                status = int(file.readline().split()[1])
    return status, asked


TOKEN = "Authorization: Bearer me\r\n"
REGISTERING = f"Host: test\r\n{TOKEN}Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("POST /nope", "", 404),
        ("POST /eureka/nope", TOKEN, 404),
        ("POST /api/v1/nope", TOKEN, 404),
        ("POST /eureka/apps/A", "", 401),
        ("POST /eureka/peerreplication/batch", "", 401),
        ("POST /api/v1/instances", "", 401),
        ("PUT /eureka/apps/A/i", TOKEN, 413),
        ("POST /eureka/apps/A", TOKEN, 413),
        ("POST /eureka/v2/apps/A", TOKEN, 413),
        ("POST /eureka/n/me/apps/A", "", 413),
        ("POST /eureka/peerreplication/batch", TOKEN, 413),
        ("POST /api/v1/instances", TOKEN, 413),
        ("PATCH /api/v1/instances", TOKEN, 405),
        ("GET /eureka/apps", TOKEN, 413),
        ("POST /health/live", "", 405),
        ("POST /nope#x", "", 400),
        ("POST http://test/nope", "", 404),
        ("OPTIONS *", "", 404),
    ],
)
@pytest.mark.parametrize("expects", ["", "Expect: 100-continue\r\n"])
def test_a_long_body_is_refused_before_it_has_come(
    door: Door, line: str, fields: str, status: int, expects: str
) -> None:
    head = f"{line} HTTP/1.1\r\nHost: test\r\n{fields}{expects}Content-Length: 60000000\r\n\r\n"
    told, asked = spoken(door.server, head.encode())
    # Gunicorn's own workers ask for the body first.
    assert asked is (bool(expects) and not door.asks_first)
    assert told == status


@pytest.mark.parametrize(
    "body",
    [
        "Content-Length: 500\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\n{size}\r\n{}\r\nzz\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n{size}\r\n{}\r\n",
        "Transfer-Encoding: chunked\r\n\r\n{size}\r\n{}xx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n{size}\r\n{}\r\n0\r\nX : y\r\n\r\n",
    ],
)
def test_a_body_that_does_not_come_as_announced_registers_nothing(door: Door, body: str) -> None:
    document = json.dumps({"service_name": "broken", "endpoint": {"type": "tcp", "value": "a:1"}})
    for path, text in (
        ("/eureka/apps/BROKEN", instance_body("BROKEN", "b:1")),
        ("/api/v1/instances", document),
    ):
        size = f"{len(text):x}"
        framed = body.replace("500", str(len(text) + 1)).replace("{size}", size)
        head = f"POST {path} HTTP/1.1\r\n{REGISTERING}"
        status, _ = spoken(door.server, (head + framed.replace("{}", text)).encode(), ends=True)
        assert status == 400
    token = {"Authorization": "Bearer me", "Accept": "application/json"}
    assert door.server.send("GET", "/eureka/apps/BROKEN", None, token).status == 404
    assert door.server.send("GET", "/api/v1/services/broken", None, token).status == 404
    assert "Traceback" not in door.server.log()


def test_a_body_in_a_coding_that_nobody_undoes_registers_nothing(door: Door) -> None:
    text = instance_body("CODED", "c:1")
    chunks = f"{len(text):x}\r\n{text}\r\n0\r\n\r\n"
    for coding in ("gzip, chunked", "deflate, chunked", "identity, chunked"):
        head = (
            f"POST /eureka/apps/CODED HTTP/1.1\r\n{REGISTERING}Transfer-Encoding: {coding}\r\n\r\n"
        )
        status, _ = spoken(door.server, (head + chunks).encode())
        assert status in (400, 501)
    token = {"Authorization": "Bearer me"}
    assert door.server.send("GET", "/eureka/apps/CODED", None, token).status == 404


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://test/eureka/apps", 200),
        ("HTTPS://u:p@[::1]:8761/eureka/apps?a=/nope", 200),
        ("http://test/nope?a=/eureka/apps", 404),
        ("http://test?a=/eureka/nope", 200),
        ("http://test?a=://b/eureka/nope", 200),
        ("http://test", 200),
        ("http://[::1/eureka/apps", 400),
    ],
)
def test_of_an_absolute_target_the_path_counts(door: Door, target: str, status: int) -> None:
    if "/" not in target.partition("://")[2].partition("?")[0] and not door.asks_first:
        status = 308  # gunicorn's own workers tell of no path, and Flask sends the client to /
    head = f"GET {target} HTTP/1.1\r\nHost: test\r\n{TOKEN}Connection: close\r\n\r\n"
    assert spoken(door.server, head.encode()) == (status, False)


def test_a_fragment_is_refused_and_not_cut_off(door: Door) -> None:
    token = {"Authorization": "Bearer me", "Accept": "application/json"}
    body = instance_body("HASH", "h:1")
    door.server.send("POST", "/eureka/apps/HASH", body, token | dict(JSON_FIELDS[1:]))
    for line in (
        "PUT /eureka/apps/HASH/h:1/metadata?colour=#fff",
        "PUT /eureka/apps/HASH/h:1#x",
        "GET /health/live#",
        "GET http://test/eureka/apps#x",
    ):
        assert spoken(door.server, f"{line} HTTP/1.1\r\n{REGISTERING}\r\n".encode())[0] == 400
    told = door.server.send("GET", "/eureka/apps/HASH/h:1", None, token).json()
    assert "colour" not in told["instance"]["metadata"]


def test_an_offer_to_change_the_protocol_changes_no_answer(door: Door) -> None:
    text = instance_body("OFFER", "o:1")
    chunks = f"Transfer-Encoding: chunked\r\n\r\n{len(text):x}\r\n{text}\r\n0\r\n\r\n"
    for line, rest, status in (
        ("POST /eureka/apps/OFFER", f"Content-Length: {len(text)}\r\n\r\n{text}", 204),
        ("POST /eureka/apps/OFFER", chunks, 204),
        ("GET /eureka/apps/OFFER", "\r\n", 200),
        ("PUT /eureka/apps", "\r\n", 405),
        ("GET /api/v1/services", "\r\n", 200),
        ("GET /health/live", "\r\n", 200),
        ("POST /health/live", "\r\n", 405),
        ("GET /nope", "\r\n", 404),
    ):
        for offer in ("websocket", "WebSocket", "h2c", "websocket, h2c"):
            fields = f"{REGISTERING}Connection: Upgrade\r\nUpgrade: {offer}\r\n"
            data = f"{line} HTTP/1.1\r\n{fields}{rest}"
            assert spoken(door.server, data.encode()) == (status, False), data


def test_the_first_line_of_accept_decides_the_form_of_a_list(
    doors: tuple[Connection, Connection],
) -> None:
    body = instance_body("LINES", "lines:1")
    fast, _ = doors  # gunicorn's own workers make one line of several
    fast.send("POST", "/eureka/apps/LINES", body, dict(JSON_FIELDS))
    for first, second in ((Form.XML, Form.JSON), (Form.JSON, Form.XML)):
        lines = {"Accept": first.media_type, "accept": second.media_type}
        for path in (
            "/eureka/apps",
            "/eureka/apps/LINES",
            "/eureka/apps/delta",
            "/eureka/vips/lines",
        ):
            for headers in (lines, lines | {"Accept-Encoding": "gzip"}):
                assert fast.send("GET", path, None, headers).media_type == first.media_type
        one = fast.send("GET", "/eureka/apps/LINES/lines:1", None, lines)
        assert one.media_type == first.media_type
    joined = {"Accept": "application/xml, application/json"}
    assert fast.send("GET", "/eureka/apps", None, joined).media_type == "application/json"
