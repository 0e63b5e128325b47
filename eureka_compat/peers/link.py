"""The exchange with one peer: batches out, its replies in, and how that went.

Source: protocol section 9.4. A batch that was not answered stays in the outbox and is sent again,
with the state of that later moment. One batch is under way at a time, so that none overtakes
another.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import urllib3

from eureka_compat import codecs, wire
from eureka_compat.peers import items as wire_items
from eureka_compat.peers import leases
from eureka_compat.peers.circuit import Breaker, Circuit
from eureka_compat.peers.items import Action, Item, Reply
from eureka_compat.peers.leases import Leases
from eureka_compat.peers.membership import Peer
from eureka_compat.peers.outbox import Outbox, Pending
from eureka_compat.peers.settings import PeersSettings
from eureka_compat.wire import ParseError
from registry import Instance, InstanceKey, InstanceStatus

log = logging.getLogger("peers")

MOST_ITEMS = 250
"""In one batch, as a genuine sender has it."""

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json",
    "User-Agent": "Java-EurekaClient-Replication",
    "DiscoveryIdentity-Name": "DefaultServer",
    "DiscoveryIdentity-Version": "1.0",
}
# A fetch of everything is long; a batch's reply is not.
_FETCH_SECS = 30.0
_LONGEST_REPLY = 16 << 20
# A list of lists that are empty takes twenty times its length in memory, and one of real instances,
# with an object in a hundred bytes, five times. What is so dense is no list of instances.
_BYTES_OF_AN_OBJECT = 24
_FEW_OBJECTS = 100_000
_MOST_LOGGED = 100
_READ_AT_ONCE = 256 << 10


class PeerError(Exception):
    """The peer did not do what it was asked for; the text says why, without secrets."""


class PeerBusyError(PeerError):
    """Not reached, too slow, or not in order: the same again later."""


class PeerRefusedError(PeerError):
    """Understood and refused (400, 500): the same again would be refused again."""


class PeerRefusedAllError(PeerBusyError):
    """Of several items it took none, each by itself."""


class PeerUnknownError(PeerBusyError):
    """There is nothing of the kind (404, 405), at present or at such a server."""


class Local(Protocol):
    """What a link asks of this server."""

    def outgoing(self, key: InstanceKey) -> tuple[Instance, InstanceStatus | None] | None:
        """The instance as it is listed now, with its override; None where peers get none."""
        ...

    def adopt(self, entity: Instance) -> None:
        """List a peer's newer state of an instance."""
        ...


@dataclass(slots=True)
class Exchanges:
    """What was exchanged with a peer since this worker took it up."""

    batches: int = 0
    items: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Action), 0))
    bytes_sent: int = 0
    refused: int = 0
    adopted: int = 0
    registered_again: int = 0


class PeerConnection:
    """Requests to one peer, over connections that are kept."""

    def __init__(self, peer: Peer, settings: PeersSettings) -> None:
        """Nothing is connected before the first request."""
        timeout = urllib3.Timeout(
            connect=settings.connect_timeout_ms / 1000, read=settings.read_timeout_ms / 1000
        )
        options: dict[str, Any] = {"timeout": timeout, "retries": False, "maxsize": 2}
        self._connect_secs = settings.connect_timeout_ms / 1000
        self._lock = threading.Lock()
        self._is_ended = False
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        headers = dict(_HEADERS)
        if peer.credentials is not None:
            headers |= urllib3.make_headers(basic_auth=":".join(peer.credentials))
        if peer.address is not None:
            shown = f"[{peer.host}]" if ":" in peer.host else peer.host
            headers["Host"] = f"{shown}:{peer.port}"
        self._secs = settings.read_timeout_ms / 1000
        self._headers = headers
        self._path = peer.path
        host = peer.address or peer.host
        if peer.scheme == "https":
            self._pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                host, peer.port, server_hostname=peer.host, assert_hostname=peer.host, **options
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(host, peer.port, **options)
        self._pool.ConnectionCls = _telling(self._pool.ConnectionCls, self._opened)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        secs: float | None = None,
        most: int = _LONGEST_REPLY,
        extra: Mapping[str, str] | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """The body and header fields of a 2xx answer; ``PeerBusyError``, ``PeerRefusedError``.

        ``secs`` is how long the answer may take, where not as long as settings say; ``most`` how
        many bytes it may have.
        """
        options: dict[str, Any] = {}
        if secs is not None:
            options["timeout"] = urllib3.Timeout(connect=self._connect_secs, read=secs)
        until = time.monotonic() + (self._secs if secs is None else secs)
        try:
            answer = self._pool.request(
                method,
                self._path + path,
                body=body,
                headers={**self._headers, **(extra or {})},
                redirect=False,
                preload_content=False,
                **options,
            )
            try:
                if 200 <= answer.status < 300:
                    return _body(answer, most, until), answer.headers
            except BaseException:
                answer.close()
                raise
            # What an error has to say is not read: the connection is given up with it.
            answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise PeerBusyError(_reason(error)) from error
        if answer.status in (404, 405):
            raise PeerUnknownError(f"it answers {answer.status}")
        if answer.status in (400, 413, 500):
            raise PeerRefusedError(f"it answers {answer.status}")
        raise PeerBusyError(f"it answers {answer.status}")

    def end(self) -> None:
        """Break off what is under way, and refuse what is still to come. For any thread."""
        with self._lock:
            self._is_ended = True
            found = list(self._open)
        for each in found:
            with contextlib.suppress(OSError):
                # Of TLS too: its own method would change what the reader is reading with.
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        self._pool.close()

    def _opened(self, connected: socket.socket) -> None:
        with self._lock:
            self._open.add(connected)
            if self._is_ended:
                raise ConnectionAbortedError("this server stops")


def _telling(base: Any, opened: Callable[[socket.socket], None]) -> Any:
    """A class of connections that tell of their socket, so that another thread can shut it."""

    class Telling(base):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    return Telling


def _body(answer: urllib3.BaseHTTPResponse, most: int, until: float) -> bytes:
    """The whole body; ``PeerBusyError`` where it is longer, or has not ended by then.

    A peer may send a byte now and then, or no end; neither memory nor time are the peer's to take.
    """
    parts, size = [], 0
    while part := answer.read1(_READ_AT_ONCE):
        parts.append(part)
        size += len(part)
        if size > most:
            raise PeerBusyError(f"its answer has more than {most >> 20} MB")
        if time.monotonic() > until:
            raise PeerBusyError("no end of its answer in time")
    answer.release_conn()
    return b"".join(parts)


def _refuse_dense(body: bytes) -> None:
    """``PeerBusyError`` where a document would take many times its length in memory."""
    objects = body.count(b"{") + body.count(b"[")
    if objects > max(_FEW_OBJECTS, len(body) // _BYTES_OF_AN_OBJECT):
        raise PeerBusyError("its answer is no list of instances")


def _reason(error: Exception) -> str:
    """What is wrong, in words that hold no address of an object and no password."""
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "its name has no address"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "it cannot be connected to"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer in time"
    if isinstance(error, urllib3.exceptions.SSLError):
        return f"TLS fails: {error}"
    return f"the connection broke ({type(error).__name__})"


class Link:
    """One peer. One thread sends (``run_once``), and one fetches; the rest is for any."""

    def __init__(
        self,
        peer: Peer,
        settings: PeersSettings,
        local: Local,
        transport: PeerConnection | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Nothing is sent before ``run_once``."""
        self.peer = peer
        self.outbox = Outbox(settings.most_pending)
        self.tally = Exchanges()
        self.problem = ""
        """Why the last exchange failed; empty after one that did not."""
        self.answered_at: float | None = None
        """When the peer last did what it was asked for (monotonic seconds)."""
        self.needs_comparison = True
        """Whether something may have been missed, so that both registries are to be compared."""
        self._settings = settings
        self._local = local
        self._transport = transport or PeerConnection(peer, settings)
        # Apart: a peer may serve its list and refuse batches, or the other way round. Either is to
        # go on, and to be tried again in its own time.
        self._sending = breaker or Breaker()
        self._fetching = Breaker(longest_secs=_FETCH_SECS)
        self._refused: set[InstanceKey] = set()  # what was logged
        self._is_ended = False

    @property
    def is_up(self) -> bool:
        """Whether the last exchanges succeeded; so it is before the first."""
        return not self.failures

    @property
    def failures(self) -> int:
        """How many exchanges failed in a row."""
        return max(self._sending.failures, self._fetching.failures)

    def may_fetch(self, now: float) -> bool:
        """Whether ``fetch`` is to be tried at an instant (monotonic seconds)."""
        return self._fetching.state(now) is not Circuit.OPEN

    def waits(self, now: float) -> float:
        """For how many seconds nothing is sent, because the last batch failed."""
        return max(0.0, self._sending.retry_at - now) if self._sending.failures else 0.0

    def run_once(self, now: float) -> bool:
        """Send one batch, if there is anything to send and the circuit lets it; whether it did."""
        if self._sending.state(now) is Circuit.OPEN:
            return False
        if self.outbox.overflowed():
            self.needs_comparison = True
        if self._sending.failures:
            self.outbox.mark_late()
        entries = self.outbox.take(MOST_ITEMS)
        if not entries:
            return False
        try:
            self._deliver(entries)
        except PeerBusyError as error:
            if not isinstance(error, PeerRefusedAllError):
                self.outbox.put_back(entries)
            self._failed(self._sending, error)
            return False
        except Exception:
            # A fault of this server's: put back, the same entries would meet it again for ever.
            self.needs_comparison = True
            raise
        if self._succeeded(self._sending):
            self.needs_comparison = True
        return True

    def fetch(self, now_ms: int) -> tuple[dict[InstanceKey, Instance], int]:
        """All that the peer lists, and how far its clock is ahead; ``PeerError``.

        Instances that cannot be read are left out.
        """
        try:
            body, headers = self._transport.send(
                "GET", "apps/", secs=_FETCH_SECS, most=self._settings.most_list_bytes
            )
            _refuse_dense(body)
            told = wire.read_applications(codecs.read_json(body))
        except ParseError as error:
            raise PeerBusyError(f"its registry cannot be read: {error}") from None
        found = [each for each in told.instances if not isinstance(each, wire.Unreadable)]
        return {instance.key: instance for _, instance in found}, _skew(headers, now_ms)

    def leases(self) -> Leases | None:
        """What each lease has left there, and what was removed; ``PeerError``.

        None from a genuine server, whose list tells when each was renewed.
        """
        try:
            body, _ = self._transport.send(
                "GET", leases.PATH, secs=_FETCH_SECS, most=self._settings.most_list_bytes // 4
            )
            _refuse_dense(body)
            return leases.read(body)
        except PeerUnknownError:
            return None
        except ParseError as error:
            raise PeerBusyError(f"its leases cannot be read: {error}") from None

    def fetched(self, error: PeerError | None) -> None:
        """Note how ``fetch`` went, and what followed it."""
        if error is None:
            self._succeeded(self._fetching)
        else:
            self._failed(self._fetching, error)

    def end(self) -> None:
        """Break off what is under way, and let go of the connections."""
        self._is_ended = True
        self._transport.end()

    def _deliver(self, entries: Sequence[tuple[InstanceKey, Pending]]) -> None:
        """Send entries, in parts where the whole is refused: one bad item spoils no other.

        ``PeerBusyError``; where it says ``PeerRefusedAllError`` there is nothing to be sent again.
        """
        if not self._delivered(entries) and len(entries) > 1:
            raise PeerRefusedAllError("it refuses everything")

    def _delivered(self, entries: Sequence[tuple[InstanceKey, Pending]]) -> bool:
        """As ``_deliver``; whether any of it was taken."""
        late = {key for key, what in entries if Pending.LATE in what}
        items = [item for entry in entries for item in self._items(*entry)]
        if not items:
            return True
        try:
            replies = self._post(items)
        except PeerRefusedError as error:
            if len(entries) == 1:
                self._note_refused(entries[0][0], error)
                return False
            middle = len(entries) // 2
            first = self._delivered(entries[:middle])
            return self._delivered(entries[middle:]) or first
        for item, reply in zip(items, replies, strict=True):
            self._react(item, reply, is_late=item.key in late)
        return True

    def _note_refused(self, key: InstanceKey, error: PeerRefusedError) -> None:
        self.tally.refused += 1
        if key not in self._refused and len(self._refused) < _MOST_LOGGED:
            self._refused.add(key)
            log.warning("%s refuses %s/%s: %s", self.peer.name, key.app, key.id, error)

    def _items(self, key: InstanceKey, what: Pending) -> list[Item]:
        """What an entry means now: a state that is no more is not told of."""
        cancel = [Item(Action.CANCEL, key)] if Pending.CANCEL in what else []
        found = self._local.outgoing(key)
        if found is None:
            return cancel
        instance, override = found
        # Who has registered at another server since would be removed by a cancel that comes late.
        is_over = Pending.LATE in what and Pending.REGISTER not in what and instance.peers_know
        items = [] if is_over else cancel
        if Pending.REGISTER in what:
            items.append(Item(Action.REGISTER, key, instance))
        if Pending.OVERRIDE in what:
            action = Action.DELETE_STATUS_OVERRIDE if override is None else Action.STATUS_UPDATE
            items.append(Item(action, key, instance, override))
        if Pending.HEARTBEAT in what:
            items.append(Item(Action.HEARTBEAT, key, instance, override))
        return items

    def _post(self, items: Sequence[Item]) -> list[Reply]:
        body = wire_items.encoded(items)
        extra = {}
        if self._settings.gzip:
            body = gzip.compress(body, 1)
            extra["Content-Encoding"] = "gzip"
        answer, _ = self._transport.send("POST", wire_items.PATH, body, extra=extra)
        self.tally.batches += 1
        self.tally.bytes_sent += len(body)
        for item in items:
            self.tally.items[item.action] += 1
        try:
            return wire_items.read_replies(answer, len(items), time.time_ns() // 1_000_000)
        except ParseError as error:
            raise PeerBusyError(f"its reply cannot be read: {error}") from None

    def _react(self, item: Item, reply: Reply, *, is_late: bool) -> None:
        if 200 <= reply.status < 300:
            return
        if item.action is not Action.HEARTBEAT:
            # A cancel of what the peer does not know is the ordinary case.
            if not (item.action is Action.CANCEL and reply.status == 404):
                self.tally.refused += 1
            return
        if reply.status == 404 and is_late:
            # It may have been cancelled since it renewed, which a comparison knows.
            self.needs_comparison = True
        elif reply.status == 404:
            self.tally.registered_again += 1
            self.outbox.put(item.key, Pending.REGISTER)
        elif reply.entity is not None:
            self.tally.adopted += 1
            self._local.adopt(reply.entity)

    def _succeeded(self, breaker: Breaker) -> bool:
        """Note that an exchange succeeded; whether that closed its circuit."""
        self.answered_at = time.monotonic()
        closed = breaker.succeeded()
        if self.is_up:
            self.problem = ""
            if closed:
                log.info("peer %s answers again", self.peer.name)
        return closed

    def _failed(self, breaker: Breaker, error: PeerError) -> None:
        self.problem = str(error)
        was_up = self.is_up
        breaker.failed(time.monotonic())
        if was_up and not self._is_ended:
            log.warning("peer %s does not answer: %s", self.peer.name, error)


def _skew(headers: Mapping[str, str], now_ms: int) -> int:
    """How many milliseconds a peer's clock is ahead; 0 where its answer has no date.

    A date has whole seconds, so up to one counts as none.
    """
    try:
        told = parsedate_to_datetime(headers["Date"]).timestamp() * 1000
    except (KeyError, TypeError, ValueError):
        return 0
    skew = int(told) - now_ms
    return 0 if -2000 < skew < 1000 else skew
