"""What one worker remembers of requests, to answer the next ones without parsing them.

Clients say the same with each request. All of it is kept in a bounded ``Cache`` and can be made
anew from what a client sends, so losing it costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from eureka_http.cache import Cache
from eureka_http.exchange import Answer, Lane, LoopHooks
from eureka_http.reader import END_OF_HEAD, Address, Message

_MOST_NAMES = 1024
_MOST_FIELDS = 2048
_MOST_REQUESTS = 1024
# Requests and fields may be long, and are kept by all of their bytes.
_MOST_BYTES = 2 * 1024 * 1024
# A field name that is longer is looked at each time it comes.
_LONGEST_NAME = 64
# Fields that may hold a secret, or ask for more than an answer.
_CAREFUL = frozenset(
    {"authorization", "proxy-authorization", "cookie", "transfer-encoding", "expect", "upgrade"}
)


class FieldNames:
    """The names of header fields, by the bytes that they came as.

    ``takes_underscore(name, peer)`` is asked about each name with an underscore: whether the field
    is kept. It raises ``RefusedError`` where such a field may not come.
    """

    def __init__(self, takes_underscore: Callable[[str, Address], bool]) -> None:
        self._takes_underscore = takes_underscore
        self.known: Cache[bytes, str] = Cache(_MOST_NAMES)
        """Names by spelling, of those that need no second look."""

    def find(self, spelling: bytes, peer: Address) -> str:
        """The name of a field whose spelling is not known; empty where it is left out."""
        name = spelling.decode("ascii").lower()
        if "_" in name:
            # The answer depends on the peer, so it is not kept.
            return name if self._takes_underscore(name, peer) else ""
        if len(spelling) <= _LONGEST_NAME:
            self.known.keep(spelling, name)
        return name


class Known:
    """What the header fields of an ordinary request say."""

    __slots__ = ("has_lane", "headers", "lane", "length")

    def __init__(self, headers: dict[str, str], length: int) -> None:
        self.headers = headers
        # How many bytes of body follow.
        self.length = length
        # The application is not asked for a lane before the fields come again.
        self.lane: Lane | None = None
        self.has_lane = True

    def find_lane(self, hooks: LoopHooks) -> Lane | None:
        """Ask the application for a lane for these fields."""
        self.lane = hooks.lane(self.headers)
        self.has_lane = self.lane is not None
        return self.lane


KnownFields = Cache[bytes, Known]
"""What header fields mean, by their bytes.

Those are what stands between the request line and the body; without the empty line where there is a
body.
"""

KnownRequests = Cache[bytes, Callable[[], Answer | None]]
"""What gives the answer to a request, by all of its bytes."""


def known_fields() -> KnownFields:
    """Room for the fields of many clients."""
    return Cache(_MOST_FIELDS, most_bytes=_MOST_BYTES, size_of=len)


def known_requests() -> KnownRequests:
    """Room for the requests that are sent most."""
    return Cache(_MOST_REQUESTS, most_bytes=_MOST_BYTES, size_of=len)


def learn(known: KnownFields, data: bytes, message: Message) -> None:
    """Remember the fields of a request that came whole and alone, if they may be.

    They may where nothing about them is odd: whatever has these bytes for fields then means
    the same, from any peer.
    """
    fields, _, body = data.partition(b"\r\n")[2].partition(END_OF_HEAD)
    headers = message.headers
    length = len(body)
    if (
        message.keeps
        and message.version == "1.1"
        and message.body == body
        and not message.repeated
        and headers.get("content-length", "0") == str(length)
        and _CAREFUL.isdisjoint(headers)
        # A name with an underscore may be allowed to one peer and not to another.
        and not any("_" in name for name in headers)
        # One line each: no field was left out.
        and fields.count(b"\r\n") == len(headers) - 1
    ):
        known.keep(fields if body else fields + END_OF_HEAD, Known(headers, length))
