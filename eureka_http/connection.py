"""One client's connection, as a state machine.

A connection has a state of reading and a state of writing:

* ``IDLE``: nothing of the next request was read. ``PARTIAL``: a part of it was. ``HALF_CLOSED``:
  the client has ended its sending, and what it had sent before is still answered. ``DEAF``: what
  still comes is thrown away.
* ``READY``: no answer is due and the client has read the ones before. ``ANSWERING``: an answer is
  being made. ``STALLED``: the same, and the client does not read. ``BLOCKED``: no answer is being
  made, and the client does not read the last one. ``LINGERING``: the last answer was sent, and the
  client's end is waited for; once it has come nothing changes any more.

What happens to it:

* ``part``: a part of a request is read. ``request``: a whole one whose answer takes its time.
  ``quick``: one that is answered at once. ``last``: one after which the client wants to close.
  ``nonsense``: what is no request.
* ``eof``: the client ends its sending. ``early``: it does so while requests of its wait in the
  queue. ``lost``: the connection is gone.
* ``pause``: the transport asks to write no more (backpressure). ``resume``: it takes more.
* ``done``: an answer has ended and the connection is kept. ``finished``: and it is not kept.
* ``turn``: the queue has come to this connection, with a request in its stash.
* ``deadline``: it has passed, and the client has read nothing meanwhile.
* ``stop``: the worker is to stop, and this client has not asked for anything for long.

Only what changes the state is listed; ``*`` stands for any, ``=`` for the same as before:

===========  =========  ========  ===========  =========
reading      writing    event     reading      writing
===========  =========  ========  ===========  =========
IDLE         READY      part      PARTIAL      =
IDLE         READY      request   =            ANSWERING
PARTIAL      READY      request   IDLE         ANSWERING
PARTIAL      READY      quick     IDLE         =
*            READY      last      DEAF         ANSWERING
*            READY      nonsense  DEAF         LINGERING
HALF_CLOSED  READY      turn      =            ANSWERING
IDLE         READY      eof       DEAF         LINGERING
PARTIAL      READY      eof       DEAF         LINGERING
*            READY      early     HALF_CLOSED  =
*            ANSWERING  eof       HALF_CLOSED  =
*            STALLED    eof       HALF_CLOSED  =
IDLE         BLOCKED    eof       HALF_CLOSED  =
PARTIAL      BLOCKED    eof       HALF_CLOSED  =
*            READY      pause     =            BLOCKED
*            ANSWERING  pause     =            STALLED
*            LINGERING  pause     =            BLOCKED
*            STALLED    resume    =            ANSWERING
IDLE         BLOCKED    resume    =            READY
PARTIAL      BLOCKED    resume    =            READY
HALF_CLOSED  BLOCKED    resume    DEAF         LINGERING
DEAF         BLOCKED    resume    =            LINGERING
IDLE         ANSWERING  done      =            READY
HALF_CLOSED  ANSWERING  done      DEAF         LINGERING
*            STALLED    done      =            BLOCKED
*            ANSWERING  finished  DEAF         LINGERING
*            STALLED    finished  DEAF         BLOCKED
*            READY      deadline  DEAF         LINGERING
*            STALLED    deadline  DEAF         LINGERING
*            BLOCKED    deadline  DEAF         LINGERING
IDLE         READY      stop      DEAF         LINGERING
*            *          lost      DEAF         LINGERING
===========  =========  ========  ===========  =========

What a HALF_CLOSED connection still has in its stash is answered before it becomes DEAF; a request
that is cut off there is refused. A client that ends its sending while it reads a stream has left.
Under TLS no connection is half-closed.

Nothing is read while an answer is due or the client does not read: what arrives then waits in the
stash, and soon the transport is told to stop reading. What can be read is taken by shares: one
request, or a piece of a body. Whoever has more than a share waits in a queue, and so does whoever
comes when this turn of the worker's loop has spent a few milliseconds on others that came in it.
The next turns serve the queue, for a few milliseconds each. So neither those who send much, nor
many who come at once, hold up those who send little, and least of all those whom a lane answers.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Protocol, cast

from eureka_http import answers
from eureka_http.answers import (
    MAX_UNSENT_BYTES,
    Answering,
    PromisedAnswer,
    StreamAnswer,
    WsgiAnswer,
)
from eureka_http.exchange import (
    Answer,
    BodyTooLargeError,
    LoopHooks,
    Promise,
    Request,
    plain_address,
)
from eureka_http.heads import BODILESS, JOINED_BODY
from eureka_http.reader import (
    END_OF_HEAD,
    PIECE,
    Address,
    Limits,
    Message,
    Reader,
    RefusedError,
    absolute,
)
from eureka_http.recall import KnownFields, KnownRequests, learn

# The longest body of a request that may be answered in the loop.
_MAX_FAST_BODY = 16 * 1024
# Whoever's share took more processor time than this waits in the queue from the start, for so long.
_DEAR_SECS = 0.0005
_DEAR_FOR_SECS = 2.0
# How recently a client must have asked for something to be given time for one more request when the
# worker stops.
RECENT_SECS = 1.0
_G = ord("G")
_PLAIN_LINE = re.compile(r"(GET|HEAD|POST|PUT|DELETE) (/[!\"$-~]*) HTTP/1\.1").fullmatch


class Reading(Enum):
    """What a connection has read; see the module."""

    IDLE = auto()
    PARTIAL = auto()
    HALF_CLOSED = auto()
    DEAF = auto()


class Writing(Enum):
    """What a connection is writing; see the module."""

    READY = auto()
    ANSWERING = auto()
    STALLED = auto()
    BLOCKED = auto()
    LINGERING = auto()


# Globals are found faster than members of an enum.
_IDLE, _PARTIAL, _HALF_CLOSED, _DEAF = Reading
_READY, _ANSWERING, _STALLED, _BLOCKED, _LINGERING = Writing


class Host(answers.Host, Protocol):
    """The worker as its connections see it."""

    now: float
    """The loop's clock, as of the last sweep."""
    idle_until: float
    """Until when the next request is waited for, if that begins now."""
    linger_secs: float
    """How long a client has to read the last answer and to close."""
    patience: float
    """How long a client may take to send a request, or to read something of an answer."""
    recent_since: float
    """When the worker stops: a deadline before this one is of a client that has long been idle."""
    is_tls: bool
    is_crowded: bool
    """Whether this turn of the loop has no time left for what is not answered by a lane."""
    is_quick: bool
    """Whether known requests may be answered without gunicorn hearing of each."""
    nr: int
    max_requests: int
    refused: int
    """How many requests were none."""
    to_send: list[Connection]
    """Connections with an answer that is sent soon; see ``send_soon``."""
    limits: Limits
    known_fields: KnownFields
    known_requests: KnownRequests
    hooks: LoopHooks

    def reader(self, peer: Address) -> Reader:
        """A reader for a new connection."""

    def connection_made(self, connection: Connection) -> None:
        """Take note of a connection, whose deadline is to be watched."""

    def connection_lost(self, connection: Connection) -> None:
        """Forget it."""

    def count_request(self) -> None:
        """Count one, which may be this worker's last."""

    def take_turns(self, connection: Connection) -> None:
        """Call ``share`` when the connections before it had theirs."""

    def spend(self, seconds: float) -> None:
        """Count what a request has cost that did not wait in the queue."""

    def discard_soon(self, connection: Connection) -> None:
        """Call ``share`` when it may read again what is only thrown away."""

    def send_soon(self) -> None:
        """Call ``flush`` of those ``to_send`` when all that has arrived by now was read."""

    def settle_soon(self, promised: PromisedAnswer) -> None:
        """Have the promise kept, and call ``settle``, when all that has arrived by now was read."""

    def submit(self, run: Callable[[], None], is_long: bool) -> None:
        """Run in a thread; ``is_long`` says that the request has a long body."""


class Connection(asyncio.Protocol):
    """Reads the requests of one client, and answers each in its turn."""

    __slots__ = (
        "_current",
        "_dear_until",
        "_find_fields",
        "_find_request",
        "_given_by",
        "_given_revision",
        "_host",
        "_is_held",
        "_is_queued",
        "_partial_since",
        "_pending",
        "_reader",
        "_resumes",
        "_stash",
        "_transport",
        "_unsent_before",
        "deadline",
        "given_at",
        "peer",
        "reading",
        "server",
        "writing",
    )

    def __init__(self, host: Host, peer: Address, server: Address) -> None:
        self._host = host
        self.peer = peer if isinstance(peer, str) else (plain_address(peer[0]), *peer[1:])
        self.server = server
        self._reader = host.reader(self.peer)
        # Bound here: they are looked up for each request.
        self._find_fields = host.known_fields.get
        self._find_request = host.known_requests.get
        # What gave the last list, of which revision that was, and when. The list itself is not
        # held: it may be long, and its successors are others' too.
        self._given_by: Callable[[], Answer | None] | None = None
        self._given_revision = 0
        self.given_at = 0.0
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.reading = _IDLE
        self.writing = _READY
        self.deadline = math.inf
        """When ``overdue`` is to be called, by the loop's clock.

        ``_rearm`` says when. Two answers that come by the thousand set it as that would."""
        # What has arrived and was not read, and since when a request is PARTIAL.
        self._stash = bytearray()
        self._partial_since = 0.0
        # Waits in the worker's queue; until when everything it sends does.
        self._is_queued = False
        self._dear_until = 0.0
        # The transport was told to stop reading.
        self._is_held = False
        # A whole answer that is sent at the end of this turn of the loop.
        self._pending = b""
        # The answer that is being made: while ANSWERING or STALLED, and until it hears of the end.
        self._current: Answering | None = None
        # ``_resume`` will be called. How much was unsent when the client was last looked at.
        self._resumes = False
        self._unsent_before = 0

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._rearm()
        self._host.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reading, self.writing = _DEAF, _LINGERING
        current, self._current = self._current, None
        if current is not None:
            current.lose()
        self._stash.clear()
        self._reader.drop()
        self._host.connection_lost(self)
        self._host.hooks.gone(self.peer)

    def data_received(self, data: bytes) -> None:
        stash = self._stash
        if self.writing is _READY:
            if not stash and self.reading is _IDLE and len(data) <= PIECE:
                read = self._find_request(data) if data[0] == _G else None
                if (read is not None and self._is_recalled(read, data)) or self._is_known(data):
                    return
            stash += data
            if self._is_queued:
                self._hold()
            elif self._dear_until > self._host.now or self._host.is_crowded:
                self._await_turn()
            else:
                self._host.spend(self._take())
        elif self.reading is _DEAF:
            # Thrown away, but slowly: reading it takes time that others need.
            self._hold()
            if self._current is None and not self._is_queued:
                self._is_queued = True
                self._host.discard_soon(self)
        else:
            stash += data
            if self._current is None or not self._current.reads_on:
                self._hold()
            elif len(stash) > MAX_UNSENT_BYTES:
                self.drop()

    def eof_received(self) -> bool:
        """Finish what is due for a client that has only ended its sending."""
        # The transport closes when this returns False.
        self.flush()
        current = self._current
        if self._host.is_tls or (current is None and self.reading is _DEAF):
            return False
        if current is not None:
            is_due = not current.reads_on
        else:
            is_due = self.writing is _BLOCKED or self._is_queued or self.reading is _PARTIAL
        if not is_due:
            self.reading, self.writing = _DEAF, _LINGERING
            self._rearm()
            return False
        self.reading = _HALF_CLOSED
        if not self._is_queued:
            self._listen()
        return True

    def pause_writing(self) -> None:
        self._resumes = False
        self._unsent_before = self.unsent()
        current = self._current
        self.writing = _BLOCKED if current is None else _STALLED
        self._rearm()
        if current is not None:
            current.blocked()

    def resume_writing(self) -> None:
        # Later, because under TLS this may be called amid a write, when a request is being read.
        self._resumes = True
        self._host.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._resumes:
            return
        self._resumes = False
        if self.writing is _STALLED:
            self.writing = _ANSWERING
        elif self.writing is _BLOCKED:
            self.writing = _LINGERING if self.reading is _DEAF else _READY
        self._rearm()
        if self._current is not None:
            self._current.drained()
        elif self.writing is _READY:
            self._advance()

    # Time

    def _rearm(self, reads: bool = False) -> None:
        """Derive the deadline from the state.

        ``reads`` says that the client has read a little of what was sent, so that it gets the time
        for the rest.
        """
        host = self._host
        writing = self.writing
        if reads or writing is _BLOCKED or writing is _STALLED:
            self.deadline = host.now + host.patience
        elif writing is _READY and not self._is_queued:
            if self.reading is _PARTIAL:
                # For the whole request, however often a little of it comes.
                self.deadline = self._partial_since + host.patience
            else:
                self.deadline = host.idle_until
        elif writing is _LINGERING:
            self.deadline = host.now + host.linger_secs
        else:
            # Nobody is waited for but this server.
            self.deadline = math.inf

    def overdue(self) -> None:
        """Act on a deadline that has passed."""
        self.flush()
        unsent = self.unsent()
        if unsent and unsent != self._unsent_before:
            self._unsent_before = unsent
            self._rearm(True)
        elif unsent or self.reading is _DEAF:
            self.drop()
        elif self.reading is _PARTIAL:
            self._refuse(RefusedError(408, "the request took too long"))
        else:
            self._leave()

    def wind_down(self) -> None:
        """Close as soon as nothing is due: the worker is about to stop.

        A client that has asked for something a moment ago may have sent its next request already,
        which is still answered, so that nothing is lost.
        """
        self.flush()
        if self._current is not None:
            self._current.wind_down()
        elif self.writing is _READY and self.reading is _IDLE and not self._is_queued:
            if self.deadline < self._host.recent_since:
                self._leave()
            else:
                self._rearm()

    def _leave(self) -> None:
        """Close a connection on which nothing is due."""
        self.reading, self.writing = _DEAF, _LINGERING
        self._transport.close()
        self._rearm()

    # For the answers

    def write(self, data: bytes) -> None:
        if self._pending:
            self.flush()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def write_parts(self, parts: tuple[bytes, ...]) -> None:
        if self._pending:
            self.flush()
        if not self._transport.is_closing():
            self._transport.writelines(parts)

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def drop(self) -> None:
        self.reading, self.writing = _DEAF, _LINGERING
        self._rearm()
        self._transport.abort()

    def settled(self, answer: Answer) -> None:
        if self.writing is _ANSWERING:  # as ``_done``, without its call
            self._current, self.writing = None, _READY
        else:
            self._done()
        host = self._host
        if not host.keeps_alive:
            self.write(host.heads.of(answer, False, "1.1") + answer.whole_body())
            self._close()
            return
        sent = answer.sent
        if (
            sent is not None
            and sent[0] is host.heads
            and type(sent[1]) is bytes
            and self.reading is _IDLE
            and self.writing is _READY
            and not (self._pending or self._is_queued or self._transport.is_closing())
        ):
            # As ``_reply``, but at once: the answers that were promised are here together, at the
            # end of a turn of the loop, so to collect them again would only cost calls.
            self.deadline = host.idle_until
            self._transport.write(sent[1])
        else:
            self._reply(answer)
        if self._stash or self.reading is _HALF_CLOSED:
            self._advance()

    def answered(self, keeps: bool) -> None:
        self._done()
        if not keeps:
            self._close()
        elif self.writing is _READY:
            self._advance()

    def client_socket(self) -> Any:
        transport = self._transport
        return transport.get_extra_info("ssl_object") or transport.get_extra_info("socket")

    # For the worker

    def flush(self) -> None:
        """Send what was to be sent soon."""
        pending, self._pending = self._pending, b""
        if pending and not self._transport.is_closing():
            self._transport.write(pending)

    def share(self) -> None:
        """Read one share of the stash, as one of several connections that have more."""
        self._is_queued = False
        if self._can_take():
            self._take()
        elif self.reading is _DEAF:
            self._listen()

    def was_made(self) -> bool:
        """Whether the transport has begun."""
        return self._transport is not None

    # Reading

    def _hold(self) -> None:
        """Read no more from the socket until the stash was read."""
        if not self._is_held:
            self._is_held = True
            self._transport.pause_reading()

    def _await_turn(self) -> None:
        """Read a share of the stash when it is this connection's turn."""
        if not self._is_queued:
            self._hold()
            self._is_queued = True
            self._host.take_turns(self)
            self._rearm()

    def _can_take(self) -> bool:
        return bool(self._stash) and self.writing is _READY

    def _take(self) -> float:
        """Read a share of the stash, and begin to answer the request that it completes.

        How many seconds of the processor that took.
        """
        began = time.thread_time()
        stash, reader = self._stash, self._reader
        is_alone = len(stash) <= PIECE and not reader.is_amid
        data = bytes(stash) if is_alone else b""
        try:
            message = reader.read(stash)
        except RefusedError as error:
            self._refuse(error)
        except Exception as error:
            self._host.log.exception("Error reading a request")
            self._refuse(RefusedError(500, repr(error)))
        else:
            if message is not None:
                if self.reading is _PARTIAL:
                    self.reading = _IDLE
                if not message.keeps:
                    if self.reading is _IDLE:
                        self.reading = _DEAF
                    stash.clear()
                elif data and not stash:
                    learn(self._host.known_fields, data, message)
                self._begin(message)
            else:
                if self.reading is _IDLE and (stash or reader.is_amid):
                    self.reading = _PARTIAL
                    self._partial_since = self._host.now
                if reader.is_unasked:
                    self._ask_first()
        spent = self._cost_since(began)
        if not reader.starves and self._can_take():
            self._await_turn()
        else:
            self._listen()
        return spent

    def _cost_since(self, began: float) -> float:
        """The thread's time since ``began``. Whoever costs much waits in the queue for a while."""
        spent = time.thread_time() - began
        if spent > _DEAR_SECS:
            self._dear_until = self._host.now + _DEAR_FOR_SECS
        return spent

    def _listen(self) -> None:
        """Wait for what comes next, if anything may."""
        if self._transport.is_closing():
            return
        writing = self.writing
        current = self._current
        if self._is_held and (
            writing is _READY
            or writing is _LINGERING
            or not self._stash
            or (current is not None and current.reads_on)
        ):
            self._is_held = False
            self._transport.resume_reading()
        if writing is _READY:
            if self.reading is not _HALF_CLOSED:
                self._rearm()
            elif self._stash or self._reader.is_amid:
                self._refuse(RefusedError(400, "the request was cut off"))
            else:
                self._close()

    def _advance(self) -> None:
        """Go on with what has arrived meanwhile."""
        if self._transport.is_closing():
            return
        if self._stash:
            self._await_turn()
        else:
            self._listen()

    def _is_recalled(self, read: Callable[[], Answer | None], data: bytes) -> bool:
        """Answer a request whose bytes came before; False where it is to be looked at."""
        host = self._host
        if not host.is_quick or host.nr + 1 >= host.max_requests:
            return False
        try:
            answer = read()
        except Exception:
            self._fail("what was asked before")
            return True
        if answer is None:
            return False
        host.nr += 1
        if answer.revision != self._given_revision or read is not self._given_by:
            self._note_given(read, data, answer.revision)
        self.given_at = host.now
        self._reply(answer)
        return True

    def _note_given(self, read: Callable[[], Answer | None], data: bytes, revision: int) -> None:
        self._given_by, self._given_revision = read, revision
        if revision:
            self._host.hooks.gave(self, data, revision)

    def _fail(self, what: str) -> None:
        """Answer 500 for the error that is being handled, and close."""
        self._host.log.exception("Error handling request %s", what)
        self.write(self._host.heads.empty(500))
        self._close()

    def _is_known(self, data: bytes) -> bool:
        """Take a whole request whose fields came before; False where it is not one.

        Only its first line is read: what follows has the bytes of fields that were read already.
        """
        host = self._host
        line, _, rest = data.partition(b"\r\n")
        body = b""
        if rest.endswith(END_OF_HEAD):
            known = self._find_fields(rest)
        else:
            fields, end, body = rest.partition(END_OF_HEAD)
            known = self._find_fields(fields) if end else None
        if known is None:
            return False
        found = _PLAIN_LINE(line.decode("latin-1"))
        if found is None or len(body) != known.length or len(line) > host.limits.line:
            return False
        method, target = found.groups()
        if known.has_lane and host.is_quick and host.nr + 1 < host.max_requests:
            lane = known.lane or known.find_lane(host.hooks)
            try:
                answer = None if lane is None else lane.answer(method, target, body)
            except Exception:
                self._fail(target)
                return True
            if answer is not None and lane is not None:
                if method == "GET" and isinstance(answer, Answer) and answer.revision:
                    read = lane.reader(target)
                    if read is not None:
                        host.known_requests.keep(data, read)
                        self.given_at = host.now
                        self._note_given(read, data, answer.revision)
                host.nr += 1
                if isinstance(answer, Promise):
                    peer = self.peer
                    answer.peer = peer if type(peer) is str else peer[0]
                    self._current = promised = PromisedAnswer(self, answer)
                    self.writing = _ANSWERING
                    self.deadline = math.inf  # nobody is waited for but this server
                    host.settle_soon(promised)
                else:
                    self._reply(answer)
                return True
        if self._dear_until > host.now or host.is_crowded:
            return False
        message = Message(method, target, "1.1", known.headers, True, body)
        message.is_alone = True
        began = time.thread_time()
        self._begin(message)
        host.spend(self._cost_since(began))
        return True

    def _ask_first(self) -> None:
        """Ask the application about a request whose body has not come yet; once for each."""
        host, reader = self._host, self._reader
        reader.is_unasked = False
        message = reader.message
        assert message is not None  # its head was read
        try:
            request = self._fast_request(message)
            if request is None:
                host.gunicorn.request(message, self.peer)
                found: Answer | int | None = None
            else:
                found = host.hooks.admit(request)
            if isinstance(found, int):
                reader.allow(found)
        except RefusedError as error:
            self._refuse(error)
            return
        except Exception:
            host.log.exception("Error handling request %s", message.target)
            found = Answer(500)
        if isinstance(found, Answer):
            host.count_request()
            if host.observes:
                message.started = host.gunicorn.begins_fast(message, self.peer)
            message.keeps = False
            self._send(message, found)
        elif reader.awaits_100:
            reader.awaits_100 = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Answering

    def _begin(self, message: Message) -> None:
        """Answer a message, or begin to."""
        host = self._host
        host.count_request()
        request = self._fast_request(message)
        if request is not None:
            if host.observes:
                message.started = host.gunicorn.begins_fast(message, self.peer)
            try:
                found = host.hooks.fast_lane(request)
                if isinstance(found, Answer):
                    self._send(message, found)
                    return
            except Exception:
                host.log.exception("Error handling request %s", message.target)
                message.keeps = False
                self._send(message, Answer(500))
                return
            if found is not None:
                stream = StreamAnswer(host, self, message, found)
                self._answer_by(stream)
                stream.begin()
                return
        try:
            wsgi_request = host.gunicorn.request(message, self.peer)
        except RefusedError as error:
            message.discard()
            self._refuse(error)
            return
        answer = WsgiAnswer(host, self, message, wsgi_request)
        self._answer_by(answer)
        body = message.body
        is_long = not isinstance(body, bytes) or len(body) > _MAX_FAST_BODY
        # What is compressed may be long once it is not.
        host.submit(answer.run, is_long or (bool(body) and "content-encoding" in message.headers))

    def _answer_by(self, current: Answering) -> None:
        """Have an answer made that takes its time."""
        self._current = current
        self.writing = _ANSWERING
        self._rearm()

    def _done(self) -> None:
        """Go back to what is written when no answer is being made."""
        self._current = None
        if self.writing is _ANSWERING:
            self.writing = _READY
        elif self.writing is _STALLED:
            self.writing = _BLOCKED

    def _fast_request(self, message: Message) -> Request | None:
        """The message for ``fast_lane``; None where it is not one for it."""
        body = message.body
        read_body: Callable[[int], bytes] = _no_body
        if body:
            if not isinstance(body, bytes) or len(body) > _MAX_FAST_BODY:
                return None
            read_body = _reading(body)
        gunicorn = self._host.gunicorn
        target = message.target
        headers = message.headers
        if target[0] != "/" or gunicorn.base_path or "script_name" in headers:
            target = self._mounted(target) if "script_name" not in headers else ""
            if not target:
                return None
        path, _, query = target.partition("?")
        peer = self.peer
        return Request(
            message.method,
            path,
            query,
            headers,
            read_body,
            gunicorn.scheme,
            peer if isinstance(peer, str) else peer[0],
            gunicorn.base_path,
            port=0 if isinstance(peer, str) else peer[1],
        )

    def _mounted(self, target: str) -> str:
        """What an unusual target is below the application's base; empty where that is not sure."""
        url = absolute(target)
        if url is not None:
            # The absolute form, as for a proxy. Its path may be empty, and a query have slashes.
            rest = target[url.end() :]
            target = rest if rest.startswith("/") else f"/{rest}"
        base_path = self._host.gunicorn.base_path
        if target == "*":
            return target
        if not target.startswith(base_path + "/"):
            return ""
        return target[len(base_path) :]

    def _reply(self, answer: Answer) -> None:
        """Answer a request that came alone and keeps its connection, soon and whole."""
        host = self._host
        sent = answer.sent
        if sent is None or sent[0] is not host.heads:
            sent = answer.sent = (host.heads, host.heads.whole(answer))
        whole = sent[1]
        if type(whole) is tuple:
            self.write_parts(whole)
        elif self._pending:
            self.write(whole)
        else:
            self._pending = whole
            to_send = host.to_send
            if not to_send:
                host.send_soon()
            to_send.append(self)
            if self.reading is _IDLE and self.writing is _READY and not self._is_queued:
                # What ``_rearm`` would do, without its call: nearly all answers end here.
                self.deadline = host.idle_until
                return
        self._rearm()

    def _send(self, message: Message, answer: Answer) -> None:
        host = self._host
        body, parts, length = answer.body, answer.parts, answer.length
        status = answer.status
        keeps = message.keeps and host.keeps_alive
        head = host.heads.of(answer, keeps, message.version)
        if status in BODILESS or message.method == "HEAD":
            body, parts, length = b"", (), 0
        if parts:
            self.write_parts((head, *parts))
        elif len(body) > JOINED_BODY:
            self.write_parts((head, body))
        elif message.is_alone and keeps and not self._pending:
            self._pending = head + body
            if not host.to_send:
                host.send_soon()
            host.to_send.append(self)
        else:
            self.write(head + body)
        if message.started is not None:
            client = self.client_socket()
            host.gunicorn.ended_fast(message, self.peer, self.server, client, answer, length)
        if not keeps:
            self._close()
        else:
            self._rearm()

    def _refuse(self, error: RefusedError) -> None:
        """Answer with an error, and read no further."""
        peer = self.peer if isinstance(self.peer, str) else self.peer[0]
        self._host.refused += 1
        self._host.log.warning("Invalid request from ip=%s: %s", peer, error)
        self.write(self._host.heads.empty(error.status))
        self._close()

    def _close(self) -> None:
        """Close once all is sent.

        What still comes is read and thrown away for a while: closing a socket with unread bytes
        resets the connection, and the client could lose the last answer.
        """
        self.flush()
        has_ended = self.reading is _HALF_CLOSED
        self.reading = _DEAF
        if self.writing is _READY:
            self.writing = _LINGERING
        self._stash.clear()
        self._reader.drop()
        self._rearm()
        transport = self._transport
        if transport.is_closing():
            return
        if has_ended or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            self._is_held = False
            transport.resume_reading()


def _no_body(limit: int) -> bytes:
    return b""


def _reading(body: bytes) -> Callable[[int], bytes]:
    def read_body(limit: int) -> bytes:
        if len(body) > limit:
            raise BodyTooLargeError
        return body

    return read_body
