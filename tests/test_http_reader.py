"""What a reader makes of bytes, without a socket. RFC 9112 and 9110 say what it must refuse."""

from __future__ import annotations

import pytest

from eureka_http.exchange import MAX_BODY_BYTES
from eureka_http.reader import Address, Limits, Message, Reader, RefusedError, SpoolRoom
from eureka_http.recall import FieldNames
from tests.turned import request

LIMITS = Limits.of(4094, 100, 8190)
CHUNKED = "Transfer-Encoding: chunked\r\n"


def a_reader(limits: Limits = LIMITS, room: SpoolRoom | None = None) -> Reader:
    return Reader(limits, FieldNames(lambda name, peer: False), room or SpoolRoom(10_000_000))


def feed(reader: Reader, *pieces: bytes) -> list[Message]:
    """Give a reader bytes as they arrive, and take all messages; ``RefusedError`` as it comes."""
    stash = bytearray()
    messages = []
    for piece in pieces:
        stash += piece
        while stash:
            message = reader.read(stash)
            if message is not None:
                messages.append(message)
            elif reader.starves:
                break
    return messages


def singly(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def ways(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and cut in two at any place near an end of line."""
    places = [n for n in range(1, len(data)) if b"\r" in data[n - 2 : n + 2]][:20]
    return [[data], singly(data), *([data[:n], data[n:]] for n in places)]


def whole(message: Message) -> bytes:
    return message.body if isinstance(message.body, bytes) else message.body.read()


class TestHeads:
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
    def test_what_the_standard_forbids_has_its_status(self, head: bytes, status: int) -> None:
        """However it arrives; the next head is never looked at."""
        for pieces in ways(head):
            with pytest.raises(RefusedError) as refused:
                feed(a_reader(), *pieces, request("/next"))
            assert refused.value.status == status

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
    def test_what_clients_send_and_may_is_read(self, head: bytes) -> None:
        for pieces in ways(head):
            first, second = feed(a_reader(), *pieces, request("/echo?next"))
            assert first.target.endswith("/echo")
            assert first.keeps
            assert second.target == "/echo?next"

    def test_the_asterisk_asks_about_the_whole_server(self) -> None:
        (message,) = feed(a_reader(), b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (message.method, message.target) == ("OPTIONS", "*")

    def test_fields_have_lower_case_names_and_lines_of_one_are_joined(self) -> None:
        fields = "X-Two: a\r\nx-two: b\r\nAccept: c\r\nAccept: d\r\nX-Blank: \t e \t\r\n"
        (message,) = feed(a_reader(), request("/", fields))
        assert message.headers == {
            "host": "test",
            "x-two": "a, b",
            "accept": "c,\td",
            "x-blank": "e",
        }
        assert message.repeated == {"x-two": ["a", "b"]}

    def test_whether_a_field_with_an_underscore_is_kept_is_asked_with_its_peer(self) -> None:
        asked: list[tuple[str, Address]] = []

        def takes(name: str, peer: Address) -> bool:
            asked.append((name, peer))
            if name == "not_this":
                raise RefusedError(400, "not this")
            return name == "this_one"

        names = FieldNames(takes)
        for _ in "ab":
            reader = Reader(LIMITS, names, SpoolRoom(0), ("10.0.0.1", 1))
            (message,) = feed(reader, request("/", "This_One: 1\r\nThat_One: 2\r\n"))
            assert message.headers == {"host": "test", "this_one": "1"}
        assert asked == [("this_one", ("10.0.0.1", 1)), ("that_one", ("10.0.0.1", 1))] * 2
        with pytest.raises(RefusedError) as refused:
            feed(Reader(LIMITS, names, SpoolRoom(0)), request("/", "Not_This: 1\r\n"))
        assert refused.value.status == 400

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
    @pytest.mark.parametrize("framing", ["", "Content-Length: 1\r\n", CHUNKED])
    def test_an_offer_to_upgrade_changes_no_meaning(self, fields: str, framing: str) -> None:
        body = {"": b"", CHUNKED: b"1\r\nx\r\n0\r\n\r\n"}.get(framing, b"x")
        told = []
        for offer in ("X-Offer: x\r\n", "Connection: Upgrade\r\nUpgrade: x\r\n"):
            sent = request("/echo", fields + offer + framing, "POST", body)
            (message,) = feed(a_reader(), sent)
            names = ("upgrade", "connection", "x-offer")
            headers = {k: v for k, v in message.headers.items() if k not in names}
            repeated = {k: v for k, v in (message.repeated or {}).items() if k not in names}
            told.append((headers, repeated, message.keeps, whole(message)))
        assert told[0] == told[1]

    def test_the_next_message_waits_in_the_buffer(self) -> None:
        reader, stash = a_reader(), bytearray(request("/one") + request("/two")[:9])
        message = reader.read(stash)
        assert message is not None
        assert message.target == "/one"
        assert not reader.starves
        assert reader.read(stash) is None
        assert reader.starves
        assert not reader.is_amid
        stash += request("/two")[9:]
        message = reader.read(stash)
        assert message is not None
        assert message.target == "/two"
        assert stash == b""


class TestLimits:
    LIMITS = Limits.of(line=100, fields=5, field_size=50)

    def status(self, head: bytes) -> int:
        """Of the refusal, the same however the head arrives; 200 where there is none."""
        found = set()
        for pieces in ([head], singly(head)):
            try:
                feed(a_reader(self.LIMITS), *pieces)
                found.add(200)
            except RefusedError as error:
                found.add(error.status)
        (status,) = found
        return status

    def test_of_the_request_line(self) -> None:
        room = 100 - len("GET / HTTP/1.1")
        assert self.status(request("/" + "a" * room)) == 200
        assert self.status(request("/" + "a" * (room + 1))) == 414
        assert self.status(b"GET /" + b"a" * 500) == 414

    def test_of_a_field(self) -> None:
        assert self.status(request("/", "X: " + "a" * 45 + "\r\n")) == 200
        assert self.status(request("/", "X: " + "a" * 46 + "\r\n")) == 431
        assert self.status(request("/")[:-2] + b"X: " + b"a" * 500) == 431

    def test_of_the_number_of_fields(self) -> None:
        assert self.status(request("/", "".join(f"X-{n}: 1\r\n" for n in range(4)))) == 200
        assert self.status(request("/", "".join(f"X-{n}: 1\r\n" for n in range(5)))) == 431
        assert self.status(request("/", "X: 1\r\n" * 5)) == 431

    def test_of_a_head_without_end(self) -> None:
        assert self.status(request("/")[:-2] + b"X: 1\r\n" * 500) == 431


class TestBodies:
    def test_of_a_length_and_in_chunks_come_the_same_however_they_arrive(self) -> None:
        by_length = request("/", "Content-Length: 12\r\n", "POST", b"hello, world")
        chunks = b"5\r\nhello\r\n1;ext=1\r\n,\r\n6\r\n world\r\n0\r\nX-Late: a\r\n\r\n"
        for sent in (by_length, request("/", CHUNKED, "POST", chunks)):
            for pieces in ways(sent):
                first, second = feed(a_reader(), *pieces, request("/next"))
                assert whole(first) == b"hello, world"
                assert "x-late" not in first.headers
                assert second.target == "/next"

    def test_long_ones_are_kept_in_a_file_and_come_whole(self) -> None:
        body = bytes(range(256)) * 2000
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
        for sent in (
            request("/", f"Content-Length: {len(body)}\r\n", "POST", body),
            request("/", CHUNKED, "POST", chunks + b"0\r\n\r\n"),
        ):
            (message,) = feed(a_reader(), sent)
            assert not isinstance(message.body, bytes)
            assert whole(message) == body
            message.discard()
            assert message.body.closed

    def test_files_have_one_bound_for_all_which_is_given_back(self) -> None:
        room = SpoolRoom(200_000)
        long = request("/", "Content-Length: 150000\r\n", "POST", bytes(150_000))
        (message,) = feed(a_reader(room=room), long)
        with pytest.raises(RefusedError) as refused:
            feed(a_reader(room=room), long)
        assert refused.value.status == 503
        message.discard()
        message.discard()
        half = a_reader(room=room)
        feed(half, long[:120_000])
        half.drop()
        (message,) = feed(a_reader(room=room), long)
        assert len(whole(message)) == 150_000

    def test_one_call_reads_a_piece_so_that_others_have_their_turn(self) -> None:
        reader = a_reader()
        stash = bytearray(request("/", "Content-Length: 500000\r\n", "POST", bytes(500_000)))
        calls = 0
        before = len(stash)
        while reader.read(stash) is None:
            assert not reader.starves
            assert before - len(stash) <= 64 * 1024 + 200
            before = len(stash)
            calls += 1
        assert calls == 7

    def test_a_client_that_waits_to_be_asked_says_so(self) -> None:
        reader = a_reader()
        fields = "Content-Length: 3\r\nExpect: 100-Continue\r\n"
        assert feed(reader, request("/", fields, "POST")) == []
        assert (reader.is_unasked, reader.awaits_100, reader.is_amid) == (True, True, True)
        assert reader.message is not None
        assert reader.message.target == "/"
        assert [whole(each) for each in feed(reader, b"abc")] == [b"abc"]
        assert (reader.is_unasked, reader.awaits_100, reader.is_amid) == (False, False, False)

    def test_what_the_application_allows_bounds_it(self) -> None:
        reader = a_reader()
        feed(reader, request("/", "Content-Length: 1001\r\n", "POST"))
        with pytest.raises(RefusedError) as refused:
            reader.allow(1000)
        assert refused.value.status == 413
        reader = a_reader()
        feed(reader, request("/", CHUNKED, "POST", b"3e8\r\n" + bytes(1000) + b"\r\n"))
        reader.allow(1000)
        with pytest.raises(RefusedError) as refused:
            feed(reader, b"1\r\n")
        assert refused.value.status == 413

    @pytest.mark.parametrize(
        ("fields", "body"),
        [
            (f"Content-Length: {MAX_BODY_BYTES + 1}\r\n", b""),
            (CHUNKED, b"%x\r\n" % (MAX_BODY_BYTES + 1)),
            (CHUNKED, b"1\r\nx\r\n%x\r\n" % MAX_BODY_BYTES),
        ],
    )
    def test_beyond_the_bound_of_all_bodies_they_are_refused_at_once(
        self, fields: str, body: bytes
    ) -> None:
        with pytest.raises(RefusedError) as refused:
            feed(a_reader(), request("/", fields, "POST", body))
        assert refused.value.status == 413


class TestChunks:
    @pytest.mark.parametrize(
        "line", [b"1 ; a", b"1\t;a=b", b"1 ; a = b", b'1;a="\\" ;"', b"1;a;b = c", b"00001"]
    )
    def test_they_may_have_extensions_with_blanks(self, line: bytes) -> None:
        chunks = line + b"\r\nx\r\n0 ;last\r\nX-Late: 1\r\n\r\n"
        sent = request("/", "Transfer-Encoding: Chunked\r\n", "POST", chunks)
        for pieces in ways(sent):
            first, second = feed(a_reader(), *pieces, request("/next"))
            assert whole(first) == b"x"
            assert second.target == "/next"

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
    def test_what_is_none_is_refused(self, chunks: bytes) -> None:
        for pieces in ways(chunks):
            reader = a_reader()
            feed(reader, request("/", CHUNKED, "POST"))
            with pytest.raises(RefusedError) as refused:
                feed(reader, *pieces, request("/smuggled"))
            assert refused.value.status == 400

    def test_many_tiny_ones_are_refused_and_many_small_ones_are_not(self) -> None:
        head = request("/", CHUNKED, "POST")
        with pytest.raises(RefusedError) as refused:
            feed(a_reader(), head + b"1\r\nx\r\n" * 50_000)
        assert refused.value.status == 400
        small = head + b"10\r\n0123456789abcdef\r\n" * 50_000 + b"0\r\n\r\n"
        assert [len(whole(each)) for each in feed(a_reader(), small)] == [800_000]
        few = head + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n"
        assert [len(whole(each)) for each in feed(a_reader(), few)] == [5_000]

    @pytest.mark.parametrize(
        ("endless", "status"),
        [
            (b"0\r\n" + b"X-A: " + b"a" * 20_000, 400),
            (b"0\r\n" + b"X-A: a\r\n" * 20_000, 431),
            (b"3;" + b"a" * 20_000, 400),
        ],
    )
    def test_trailers_and_extensions_have_a_bound(self, endless: bytes, status: int) -> None:
        with pytest.raises(RefusedError) as refused:
            feed(a_reader(), request("/", CHUNKED, "POST"), endless)
        assert refused.value.status == status
