"""Which requests are remembered, and how the next ones are known by that."""

from __future__ import annotations

import pytest

from eureka_http.exchange import LoopHooks
from eureka_http.heads import Heads
from eureka_http.reader import Message
from eureka_http.recall import Known, KnownFields, known_fields, learn
from tests.test_http_reader import a_reader, feed
from tests.turned import Laned, request


def learned(data: bytes) -> tuple[KnownFields, Message]:
    known = known_fields()
    (message,) = feed(a_reader(), data)
    learn(known, data, message)
    return known, message


@pytest.mark.parametrize(
    ("data", "key", "length"),
    [
        (request("/a", "X: 1\r\n"), b"Host: test\r\nX: 1\r\n\r\n", 0),
        (
            request("/a", "Content-Length: 3\r\n", "POST", b"abc"),
            b"Host: test\r\nContent-Length: 3",
            3,
        ),
        (request("/a", "Content-Length: 0\r\n"), b"Host: test\r\nContent-Length: 0\r\n\r\n", 0),
    ],
)
def test_ordinary_fields_are_kept_by_their_bytes(data: bytes, key: bytes, length: int) -> None:
    known, message = learned(data)
    fields = known.get(key)
    assert fields is not None
    assert (fields.length, fields.headers) == (length, message.headers)


@pytest.mark.parametrize(
    "data",
    [
        *(
            request("/", f"{name}: x\r\n")
            for name in ("Authorization", "Proxy-Authorization", "Cookie", "Upgrade")
        ),
        request("/", "Expect: 100-continue\r\nContent-Length: 1\r\n", "POST", b"x"),
        request("/", "Transfer-Encoding: chunked\r\n", "POST", b"1\r\nx\r\n0\r\n\r\n"),
        request("/", "Connection: close\r\n"),
        request("/", "X: 1\r\nX: 2\r\n"),
        request("/", "X_One: dropped\r\n"),
        request("/", "Content-Length: 01\r\n", "POST", b"x"),
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"\r\n" + request("/"),
    ],
)
def test_what_is_secret_or_odd_is_not_kept(data: bytes) -> None:
    known, _ = learned(data)
    assert len(known) == 0


def test_the_application_is_asked_once_for_a_lane() -> None:
    asked = []
    for lane in (Laned(), None):
        known = Known({"host": "test"}, 0)
        hooks = LoopHooks(lane=lambda headers, lane=lane: (asked.append(headers), lane)[1])
        assert known.has_lane
        assert known.find_lane(hooks) is lane
        assert known.has_lane is (lane is not None)
        assert known.lane is lane
    assert asked == [{"host": "test"}] * 2


class TestHeads:
    def test_a_head_says_when_by_whom_and_how_long(self) -> None:
        made = Heads(784111777, "me").make(200, "text/plain", 5, True, "1.1", (("X-A", "b"),))
        assert made.decode().split("\r\n") == [
            "HTTP/1.1 200 OK",
            "Server: me",
            "Date: Sun, 06 Nov 1994 08:49:37 GMT",
            "Connection: keep-alive",
            "Content-Type: text/plain",
            "X-A: b",
            "Content-Length: 5",
            "",
            "",
        ]

    def test_the_framing_is_the_servers_whatever_the_application_says(self) -> None:
        fields = tuple((name, "x") for name in ("Date", "Server", "Connection", "Content-Length"))
        made = Heads(0, "me").make(200, None, None, False, "1.1", fields)
        assert b": x" not in made
        assert b"Transfer-Encoding: chunked\r\n" in made
        assert b"Connection: close\r\n" in made
        assert b"chunked" not in Heads(0, "me").make(200, None, None, False, "1.0")

    @pytest.mark.parametrize("field", [("X-A", "a\r\nb: c"), ("X A", "b"), ("", "b")])
    def test_what_would_split_it_is_an_error(self, field: tuple[str, str]) -> None:
        with pytest.raises(ValueError, match="header field"):
            Heads(0, "me").make(200, None, 0, True, "1.1", (field,))

    @pytest.mark.parametrize("status", [204, 304])
    def test_a_status_without_a_body_has_no_length(self, status: int) -> None:
        assert b"Content-Length" not in Heads(0, "me").make(status, None, 0, True, "1.1")
