"""Bytes in; one message after the other, a refusal, or "its client waits for a 100" out.

A reader does no input or output and knows no connection: it takes bytes from a buffer that is given
to it. Heads are parsed by llhttp, each alone and whole; bodies are counted here. Source: RFC 9112.
"""

from __future__ import annotations

import re
import tempfile
import threading
from datetime import datetime
from enum import Enum, auto
from typing import IO, Any, NamedTuple, Protocol, cast

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from eureka_http.cache import Cache
from eureka_http.exchange import MAX_BODY_BYTES, NEXT_LINE, is_host

PIECE = 8 * 1024
"""How many bytes of chunks ``Reader.read`` takes at once, in bytes."""

END_OF_HEAD = b"\r\n\r\n"

Address = tuple[Any, ...] | str
"""A peer as its socket names it: host and port, or the path of a unix socket."""

# How much of a body with a length is taken at once.
_BODY_PIECE = 64 * 1024
_MAX_BODY_IN_MEMORY = 64 * 1024
# The line before a chunk, and all trailers together.
_MAX_CHUNK_LINE = 4096
_MAX_TRAILERS = 16 * 1024
# Chunk lines may add this much to a body, and half of its size.
_CHUNKS_GRACE = 64 * 1024
# A Content-Length may begin with zeros, but not with thousands of them.
_MOST_DIGITS = 19

# Fields of which a second line would make the request ambiguous.
_SINGLE = frozenset({"host", "content-type", "content-length", "transfer-encoding"})
_METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY")
}
_ANY_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])").fullmatch
_BEGINS_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]").match
absolute = re.compile(r"https?://(?:[^/?#@]*@)?([^/?#@]+)", re.IGNORECASE).match
"""The beginning of a target in the absolute form, up to its path; group 1 is the authority."""
_AUTHORITY = re.compile(rb"[^/?#@]+:[0-9]+").fullmatch
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n").search
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?").fullmatch
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*").fullmatch


class RefusedError(Exception):
    """A request is refused before any application sees it: with which status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Limits(NamedTuple):
    """What a head may measure, in bytes, and how many fields it may have."""

    line: int
    fields: int
    field_size: int
    head: int
    floor: int
    """A head of at most so many bytes is within all other limits, so none needs to be checked."""

    @classmethod
    def of(cls, line: int, fields: int, field_size: int) -> Limits:
        """Those that follow from three; a field takes four bytes at least (``a:`` and its end)."""
        head = fields * (field_size + 2) + line
        return cls(line, fields, field_size, head, min(line, field_size, fields * 4))


class Names(Protocol):
    """What a reader asks about the names of header fields."""

    known: Cache[bytes, str]
    """Names by the bytes that they come as."""

    def find(self, spelling: bytes, peer: Address) -> str:
        """The name of one that is not known; empty where the field is left out.

        ``RefusedError`` where it must not come.
        """


class Message:
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
        # Whether the client lets the connection be kept after the answer.
        self.keeps = keeps
        self.body = body
        # The single values of fields that came more than once; ``headers`` has them joined.
        self.repeated: dict[str, list[str]] | None = None
        # When its answer was begun; only set where somebody is told of it.
        self.started: datetime | None = None
        # Nothing came before or after it in the same read, so its answer may wait until the end of
        # this turn of the loop and be sent together with others.
        self.is_alone = False
        # Owns the body's temporary file, where there is one.
        self.spooled: Body | None = None

    def discard(self) -> None:
        """Close the body's temporary file, if there is one."""
        if self.spooled is not None:
            self.spooled.close()


class SpoolRoom:
    """How many more bytes of bodies may lie in temporary files. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take so many bytes; False, and nothing is taken, where they are not left."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give so many bytes back."""
        with self._lock:
            self._left += size


class Body:
    """A body that is arriving: in memory while it is short, then in a temporary file.

    What has arrived since the last write is collected, so that the file sees few long writes.
    """

    __slots__ = ("_file", "_held", "_room", "_spooled", "limit", "size")

    def __init__(self, room: SpoolRoom) -> None:
        self._room = room
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._spooled = 0
        self.size = 0
        self.limit = MAX_BODY_BYTES

    def add(self, data: bytes | bytearray) -> None:
        """Take more of it; ``RefusedError`` beyond its limit, or where no file may be written."""
        self.size += len(data)
        if self.size > self.limit:
            raise RefusedError(413, "the body is too long")
        self._held += data
        if len(self._held) > _MAX_BODY_IN_MEMORY:
            self._spool()

    def _spool(self) -> None:
        if not self._room.take(len(self._held)):
            raise RefusedError(503, "too many long bodies are arriving")
        self._spooled += len(self._held)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
            self._file.write(self._held)
        except OSError as error:
            raise RefusedError(503, f"the body cannot be kept: {error}") from error
        self._held.clear()

    def finish(self) -> bytes | IO[bytes]:
        """All of it."""
        if self._file is None:
            return bytes(self._held)
        self._spool()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Drop what is held and close the file. May be called more than once."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
        spooled, self._spooled = self._spooled, 0
        self._room.give(spooled)


class Expected(Enum):
    """Which part of a message a reader waits for."""

    LINE = auto()
    FIELDS = auto()
    LENGTH = auto()
    CHUNK = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class Reader:
    """Reads the messages of one connection.

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

    A message is whole whenever the reader waits for ``LINE`` again.
    """

    __slots__ = (
        "_body",
        "_due",
        "_framing",
        "_headers",
        "_is_complete",
        "_keeps",
        "_limits",
        "_name_of",
        "_names",
        "_parser",
        "_peer",
        "_repeated",
        "_room",
        "_scanned",
        "_state",
        "awaits_100",
        "is_unasked",
        "message",
        "starves",
    )

    def __init__(self, limits: Limits, names: Names, room: SpoolRoom, peer: Address = "") -> None:
        """Read within ``limits``. ``names`` and ``room`` are shared with other readers."""
        self._limits = limits
        self._names = names
        self._name_of = names.known.get
        self._room = room
        self._peer = peer
        self._parser = HttpRequestParser(self)
        self._state = Expected.LINE
        # The buffer was searched up to here for the end that is awaited.
        self._scanned = 0
        self._headers: dict[str, str] = {}
        self._repeated: dict[str, list[str]] = {}
        self._is_complete = False
        self._keeps = False
        self._body: Body | None = None
        # How many bytes of the body, or of the present chunk, are still to come.
        self._due = 0
        # How many bytes of lines between chunks have come.
        self._framing = 0
        self.message: Message | None = None
        """The message that is arriving, once its first line was read; then the whole one."""
        self.is_unasked = False
        """A body was announced, and nobody was asked yet whether it may come."""
        self.awaits_100 = False
        """The client waits for a 100 (Continue) before it sends the body."""
        self.starves = True
        """Nothing more can be read from the buffer as it is: more bytes must arrive."""

    @property
    def is_amid(self) -> bool:
        """Whether part of a message was read already."""
        return self._state is not Expected.LINE

    def read(self, stash: bytearray) -> Message | None:
        """The next message, or None: more must arrive, or this was as much as one call reads.

        ``starves`` tells which. One call reads one message, or a piece of a body, so that a client
        who sends much cannot hold up others. What was read is removed from ``stash``. Raises
        ``RefusedError``; nothing may be read afterwards.
        """
        self.starves = False
        if self._body is None:
            if not self._read_head(stash):
                self.starves = True
                return None
            if self._body is None:
                return self.message
        if self._state is Expected.LENGTH:
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
        """Bound the body of the arriving message; ``RefusedError`` where more is announced."""
        if self._body is not None:
            self._body.limit = limit
            if self._body.size + self._due > limit:
                raise RefusedError(413, "the body is too long")

    def drop(self) -> None:
        """Forget what has arrived. Nothing may be read afterwards."""
        body, self._body = self._body, None
        if body is not None:
            body.close()
        # The parser refers to this reader: without the circle both are freed at once.
        self._parser = cast(HttpRequestParser, None)

    # Heads

    def _read_head(self, stash: bytearray) -> bool:
        """Read a whole head; False where it has not come whole."""
        limits = self._limits
        if self._state is Expected.LINE:
            if stash[0] in b"\r\n":
                # Empty lines before a request are ignored (RFC 9112, 2.2).
                del stash[: len(stash) - len(stash.lstrip(b"\r\n"))]
                if not stash:
                    return False
            end = stash.find(b"\r\n", self._scanned)
            if end > limits.line or (end < 0 and len(stash) > limits.line + 1):
                raise RefusedError(414, "the request line is too long")
            if end < 0:
                if not _BEGINS_LINE(stash) or _BARE_LINE_FEED(stash, self._scanned):
                    raise RefusedError(400, "this is no request line")
                self._scanned = len(stash) - 1
                return False
            self._read_line(bytes(stash[:end]))
            self._state = Expected.FIELDS
            self._scanned = end
        end = stash.find(END_OF_HEAD, self._scanned)
        if end < 0:
            if len(stash) - stash.rfind(b"\r\n") > limits.field_size + 2:
                raise RefusedError(431, "a header field is too long")
            if len(stash) > limits.head:
                raise RefusedError(431, "the head is too long")
            if _BARE_LINE_FEED(stash, self._scanned):
                raise RefusedError(400, "a line of the head ends without CR")
            self._scanned = max(self._scanned, len(stash) - 3)
            return False
        end += len(END_OF_HEAD)
        head = bytes(stash[:end])
        del stash[:end]
        if end > limits.floor:
            self._check_limits(head)
        self._read_fields(head)
        return True

    def _read_line(self, line: bytes) -> None:
        found = _ANY_LINE(line)
        if found is None:
            raise RefusedError(400, "this is no request line")
        method, target, version = found.groups()
        if version not in (b"1.1", b"1.0"):
            raise RefusedError(505, f"HTTP/{version.decode()} is not spoken here")
        if method == b"CONNECT" and not _AUTHORITY(target):
            raise RefusedError(400, "CONNECT names no host and port")
        name = _METHODS.get(method)
        if name is None:
            raise RefusedError(501, f"the method {method.decode()} is not known")
        text = target.decode()
        if "#" in text:
            raise RefusedError(400, "the target has a fragment, which is never sent")
        if not (text.startswith("/") or (text == "*" and name == "OPTIONS")):
            url = absolute(text)
            if url is None or not is_host(url[1]):
                raise RefusedError(400, "the target is neither a path nor a URL")
        self.message = Message(name, text, version.decode(), {}, False, b"")

    def _check_limits(self, head: bytes) -> None:
        limits = self._limits
        if head.count(b"\r\n") - 2 > limits.fields:
            raise RefusedError(431, "too many header fields")
        if len(head) > limits.field_size:
            for line in head.split(b"\r\n")[1:]:
                if len(line) + 2 > limits.field_size:
                    raise RefusedError(431, "a header field is too long")

    def _read_fields(self, head: bytes) -> None:
        """Parse a head whose first line was read, and find out which body follows."""
        self._scanned = 0
        self._headers = {}
        self._repeated = {}
        self._is_complete = False
        try:
            self._parser.feed_data(head)
        except HttpParserUpgrade:
            # The parser stops where a client offers another protocol. The offer is ignored.
            self._parser = HttpRequestParser(self)
        except HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if cause is not None else error  # noqa: B904  # the cause says it all
        except HttpParserError as error:
            raise RefusedError(400, str(error)) from error
        message = self.message
        assert message is not None  # its line was read
        if not self._is_complete:
            raise RefusedError(400, "the head has no end")
        headers, repeated = self._headers, self._repeated
        host = headers.get("host")
        if (host is None and message.version == "1.1") or (host is not None and not is_host(host)):
            raise RefusedError(400, "Host is missing or malformed")
        for name, values in repeated.items():
            headers[name] = ", ".join(values)
        accepted = repeated.pop("accept", None)
        if accepted is not None:
            headers["accept"] = NEXT_LINE.join(accepted)
        message.headers = headers
        message.repeated = repeated or None
        message.keeps = self._keeps
        self._read_framing(message)

    def _read_framing(self, message: Message) -> None:
        headers = message.headers
        coding = headers.get("transfer-encoding")
        given = headers.get("content-length")
        expected = headers.get("expect") if message.version == "1.1" else None
        if expected is not None and expected.lower() != "100-continue":
            raise RefusedError(417, f"{expected} cannot be met")
        self._due = 0
        if coding is not None:
            if message.version != "1.1" or given is not None:
                raise RefusedError(400, "the length of the body is not certain")
            if coding.lower() != "chunked":
                raise RefusedError(501, f"the transfer coding {coding} is not known")
        elif given is not None:
            if not (given.isascii() and given.isdigit() and len(given) <= _MOST_DIGITS):
                raise RefusedError(400, "Content-Length is not a number")
            self._due = int(given)
            if self._due > MAX_BODY_BYTES:
                raise RefusedError(413, "the body is too long")
        if coding is None and not self._due:
            self._state = Expected.LINE
            return
        self.awaits_100 = expected is not None
        self.is_unasked = True
        self._state = Expected.LENGTH if coding is None else Expected.CHUNK
        self._framing = 0
        self._body = Body(self._room)
        # The parser now expects a body, which it never gets: the next head needs a new one.
        self._parser = HttpRequestParser(self)

    # Bodies

    def _read_chunks(self, stash: bytearray, body: Body) -> Message | None:
        position = 0
        try:
            while position < PIECE:
                if self._state is Expected.DATA:
                    part = stash[position : position + min(self._due, PIECE)]
                    if not part:
                        self.starves = True
                        return None
                    body.add(part)
                    position += len(part)
                    self._due -= len(part)
                    if not self._due:
                        self._state = Expected.DATA_END
                    continue
                end = stash.find(b"\r\n", position, position + _MAX_CHUNK_LINE)
                if end < 0:
                    if len(stash) - position >= _MAX_CHUNK_LINE or stash.find(b"\n", position) >= 0:
                        raise RefusedError(400, "a line between the chunks has no end")
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

    def _read_between(self, line: bytes, body: Body) -> bool:
        """Read a line between the chunks; whether it was the last of the message."""
        if self._state is Expected.CHUNK:
            found = _CHUNK_LINE(line)
            if found is None:
                raise RefusedError(400, "this is no size of a chunk")
            if self._framing > _CHUNKS_GRACE + body.size // 2:
                raise RefusedError(400, "the chunks are too small")
            self._due = int(found[1], 16)
            if body.size + self._due > body.limit:
                raise RefusedError(413, "the body is too long")
            self._state = Expected.DATA if self._due else Expected.TRAILERS
            if not self._due:
                self._framing = 0
        elif self._state is Expected.DATA_END:
            if line:
                raise RefusedError(400, "a chunk is longer than its size")
            self._state = Expected.CHUNK
        elif not line:
            return True
        elif self._framing > _MAX_TRAILERS:
            raise RefusedError(431, "the trailers are too long")
        elif not _TRAILER(line):
            raise RefusedError(400, "a trailer is malformed")
        return False

    def _whole(self) -> Message:
        """The message, now that its body is complete. Trailers are not passed on."""
        message, body = self.message, self._body
        assert message is not None
        assert body is not None
        message.body = body.finish()
        if not isinstance(message.body, bytes):
            message.spooled = body
        self._body = None
        self._state = Expected.LINE
        self.awaits_100 = self.is_unasked = False
        return message

    # What llhttp calls while it parses a head

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field."""
        key = self._name_of(name) or self._names.find(name, self._peer)
        if not key:
            return
        headers = self._headers
        if key not in headers:
            headers[key] = value.decode("latin-1").strip(" \t")
        elif key in _SINGLE:
            raise RefusedError(400, f"{key} is given twice")
        else:
            values = self._repeated.setdefault(key, [headers[key]])
            values.append(value.decode("latin-1").strip(" \t"))

    def on_headers_complete(self) -> None:
        """Note that the head has an end."""
        self._is_complete = True
        self._keeps = self._parser.should_keep_alive()
