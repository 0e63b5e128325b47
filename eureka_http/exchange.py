"""What passes between a way in and a meaning: requests, answers, streams. Knows no framework.

The WSGI application and the event-loop worker both make a ``Request`` of what arrives and send the
``Answer`` or ``Stream`` that comes back, so that there is one meaning behind either door. None of
them is changed once made; they are not frozen because making one would cost three times as much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

UNREAD_BODY_BYTES = 64 * 1024
"""The longest body that is let pass where none is asked for."""

is_host = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9\-._~%]+)?\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+)(?::[0-9]*)?"
).fullmatch
"""Whether this can be the value of ``Host``, which must not be empty (RFC 9110, 7.2).

Some clients leave the zone in the address of their own link, as ``[fe80::1%eth0]``.
"""

NEXT_LINE = ",\t"
"""Stands between two lines of one field where it matters that they were two."""


@dataclass(slots=True)
class Request:
    """A request. ``headers`` has lower-case names; ``path`` is still percent-encoded.

    The lines of a field that comes in several are joined by commas; those of ``Accept`` by
    ``NEXT_LINE``, where the way in tells lines apart.

    ``read_body`` reads at most the given number of bytes and raises ``BodyTooLargeError`` beyond.
    ``scheme``, ``peer`` and its ``port`` are those of the connection itself, whatever a proxy
    tells; ``base`` is the path that the whole application is mounted at. ``is_quick`` says that the
    answer is awaited in the event loop, where nothing may take long.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read_body: Callable[[int], bytes]
    scheme: str = "http"
    peer: str = ""
    base: str = ""
    is_quick: bool = False
    port: int = 0

    def parameters(self) -> dict[str, str]:
        """The parameters of the query; of one that is given twice the first counts."""
        values: dict[str, str] = {}
        query = self.query
        if "%" in query or "+" in query:
            for name, value in parse_qsl(query, keep_blank_values=True):
                values.setdefault(name, value)
            return values
        # What clients send with each heartbeat needs no decoding.
        for part in query.split("&"):
            if part:
                name, _, value = part.partition("=")
                values.setdefault(name, value)
        return values

    def announced(self) -> int:
        """The bytes of body that the head announces; 0 where it announces none or no length."""
        return int(self.headers.get("content-length") or 0)


@dataclass(slots=True)
class Answer:
    """A status with a body (often none).

    A long body may come as ``parts`` that follow each other, with ``body`` empty: parts that many
    answers have in common are copied for none of them.
    """

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[bytes] = ()
    revision: int = field(default=0, compare=False)
    """Up to which change it shows what it lists, by the application's count; 0 where it lists
    nothing."""
    sent: Any = field(default=None, compare=False, repr=False)
    """What the event loop keeps with an answer that is given often: how it was sent."""

    @property
    def length(self) -> int:
        """How many bytes the body has."""
        return sum(map(len, self.parts)) if self.parts else len(self.body)

    def whole_body(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.parts) if self.parts else self.body


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose body goes on as long as its reader stays.

    ``subscribe(write, end)`` begins it: ``write`` sends bytes and ``end`` ends the body, both to be
    called in the thread that subscribed. ``write`` returns how many bytes the reader has not taken
    yet, and where it is given none it only tells that. ``subscribe`` returns what is to be called
    when the reader has gone.
    """

    content_type: str
    headers: Mapping[str, str]
    subscribe: Callable[[Callable[[bytes], int], Callable[[], None]], Callable[[], None]]


class Promise:
    """An answer that is there once the application was told to ``settle`` what it promised.

    What changes the store is dear alone and cheap in company: so those who ask at the same moment
    wait for each other.
    """

    # Of the class as long as an instance has none of its own: so to make one calls no function.
    answer: Answer | None = None
    peer = ""
    """The address that the request is from, once the event loop has said so."""


class Lane(Protocol):
    """Answers requests that have the same header fields."""

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        """The answer; None where it is to be asked for with a ``Request``."""
        ...

    def reader(self, target: str) -> Callable[[], Answer | None] | None:
        """What gives the answers to all GETs of this target, as they are when it is called.

        It is asked for after a GET whose answer lists something (``Answer.revision``). None where
        there is no such thing. It may give None, as ``answer`` does.
        """
        ...


MAX_BODY_BYTES = 64 * 1024 * 1024
"""The longest body that is taken at all."""


class LoopState(NamedTuple):
    """How an event loop is: for those who look after it."""

    connections: int
    """Open ones, those under way to be welcomed included."""
    refused: int
    """How many requests could not be read since the worker began: they were none."""
    late_secs: float
    """By how much the loop has come late to what is due twice a second, all in all."""


class Fetcher(Protocol):
    """A connection on which lists are read."""

    peer: Any
    """The client's address: for a TCP socket a tuple that begins with address and port."""
    given_at: float
    """When a list was last given to it, on the loop's clock."""


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """What an application offers to an event loop beside WSGI, as its attribute ``loop_hooks``.

    All are called in the loop's thread and must not wait. Each has a default that leaves the
    request to WSGI.
    """

    fast_lane: Callable[[Request], Answer | Stream | None] = lambda request: None
    """Answers a request whose body is empty or small (16 KiB); None leaves it to WSGI.

    An ``Answer`` is sent at once, a ``Stream`` for as long as its reader stays.
    """

    lane: Callable[[Mapping[str, str]], Lane | None] = lambda headers: None
    """Finds a lane for header fields that came before, byte for byte, and hold no secret.

    It is asked once about the same fields. The lane is asked before ``fast_lane`` about each
    request with them; with None those requests go to ``fast_lane``.
    """

    settle: Callable[[], None] = lambda: None
    """Keeps all promises: called when everything that had arrived together was read.

    Every ``Promise`` that a lane gave must have its answer then.
    """

    admit: Callable[[Request], Answer | int] = lambda request: MAX_BODY_BYTES
    """Judges a request whose head has come and whose body has not, or not all of it.

    An ``Answer`` refuses it before the body is read; a number is the most bytes it may have.
    """

    tick: Callable[[], None] = lambda: None
    """Called every 20 ms while a stream is open."""

    gave: Callable[[Fetcher, bytes, int], None] = lambda fetcher, request, revision: None
    """Called when a lane's list was given to a connection that was last given another, or none.

    The request is told by its bytes, and the answer by its revision. Where the same is given again,
    ``given_at`` of the connection tells of it.
    """

    gone: Callable[[Any], None] = lambda peer: None
    """Called when the connection of a client has ended."""

    began: Callable[[Callable[[], LoopState]], None] = lambda state: None
    """Is given, as the loop begins, what tells how it is; that may be asked in any thread."""

    settle_apart: Callable[[], Callable[[], None]] | None = None
    """In place of ``settle``, where to keep a promise may mean to wait for another machine.

    It takes all promises of this moment, and returns what keeps them, to be called in a thread of
    the pool. Meanwhile everybody else is served; what is promised until then is kept together.
    """


def plain_address(address: str) -> str:
    """An address as one writes it: that of an IPv4 peer of a socket for both kinds has a prefix."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


class BodyTooLargeError(Exception):
    """The body is longer than the endpoint takes."""
