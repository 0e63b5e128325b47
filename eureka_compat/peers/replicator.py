"""All that goes on between this server and its peers, in one of its workers at a time.

A lock in the store says which worker that is; another goes on within seconds of its death, and
begins with a comparison, since it does not know what was told already.

One thread follows this server's changes and puts them into each peer's outbox. Each peer has two
threads of its own, one that sends and one that compares, so a peer that is dead or slow costs the
others nothing, and one whose list is long in coming is told of renewals meanwhile.
What peers say is registered as a peer's word (``Instance.peers_know``) and goes to nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import orjson

from eureka_compat.peers import hold, leases
from eureka_compat.peers.comparison import Comparison, Difference, DifferenceKind, compared
from eureka_compat.peers.hold import Asked, Hold
from eureka_compat.peers.leases import Ending, Removal
from eureka_compat.peers.link import Link, PeerError
from eureka_compat.peers.membership import Peer, is_reached_by, others
from eureka_compat.peers.outbox import Pending
from eureka_compat.peers.settings import PeersSettings
from registry import (
    DEFAULT_NAMESPACE,
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Registry,
    RegistryError,
    Revision,
    StoreError,
    duration_ms,
)
from registry.duty import Duty

log = logging.getLogger("peers")

_LOCK = "peers"
_LOCK_TTL_MS = 3_000
_FOLLOW_SECS = 0.05
_LOCK_SECS = 0.5
_REPORT_SECS = 1.0
_GATHER_SECS = 0.05
_IDLE_SECS = 0.5
_STOP_SECS = 5.0
_GRACE_SECS = 1.0
# Between two comparisons that changes ask for which cannot be told.
_LONGEST_FAULT_SECS = 60.0
# A genuine server may list a change as late as that (its response cache), and until then a
# difference says nothing. A server of ours lists it at once: only what is under way is younger.
_CACHED_MS, _UNDER_WAY_MS = 35_000, 3_000
_EXAMPLES = 5
_MOST_LOGGED = 100
# A difference that is still there after so many attempts is left; the report tells of it.
_HEALED_AT_MOST = 3
# A list may lie in a cache, so there is no use in asking for it much more often.
_ASKED_AGAIN_SECS = 3.0
# Whose lease ends so much later at a peer gets that time here.
_LATER_MS = 1_000
_RENEW_SECS = 30.0
# Which run of a server may answer reads; which one began with an empty store; how the peers are.
_OPEN_NOTE, _EMPTY_NOTE, _REPORT_NOTE = "peers-open", "peers-began-empty", "peers"


class Replicator:
    """What goes on with all peers, as far as this worker is the one that sees to it.

    ``start`` and ``stop`` are for one thread; the rest is thread-safe.
    """

    def __init__(self, registry: Registry, settings: PeersSettings) -> None:
        """Nothing runs before ``start``."""
        self._registry = registry
        self._namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        self._settings = settings
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._run: _Run | None = None
        self._server = _server_run()
        self._waits_until = time.monotonic() + settings.start_wait_ms / 1000
        self._is_open = not settings.active()

    def start(self) -> None:
        """Run in the background until ``stop``; ``StoreError`` where the store does not answer."""
        if not self._settings.active():
            return
        doubled = self._registry.settings.lease_expiry == "genuine"
        self._namespace.hold_back(Hold(self._registry, self._settings.hold_ms, doubled=doubled))
        self._look_how_it_began()
        self._thread = threading.Thread(target=self._supervise, name="peers", daemon=True)
        self._thread.start()

    def _look_how_it_began(self) -> None:
        """Open this server if its store was not empty when the first of its workers started.

        What a later worker finds there may have been registered since, and is not all that the
        peers know. The size is read before the note: where nobody had noted anything yet, nobody
        had served either. Where the notes cannot be read, what there is to be read is served.
        """
        coordination = self._registry.coordination
        size = self._namespace.view().size()
        with contextlib.suppress(StoreError):
            if coordination.note(_EMPTY_NOTE) == self._server:
                return
            if size:
                self._opened()
            else:
                coordination.set_note(_EMPTY_NOTE, self._server)
        self._is_open = size > 0

    def stop(self) -> None:
        """Stop, and give the lock back so that another worker goes on at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECS)

    def is_open(self) -> bool:
        """Whether this server may answer reads.

        One that starts with an empty store asks its peers first: clients would take an empty answer
        for the truth. A worker that is not open looks whether another was told meanwhile: once one
        calls the server ready, none refuses a read.
        """
        if not self._is_open:
            with contextlib.suppress(StoreError):
                self._is_open = self._registry.coordination.note(_OPEN_NOTE) == self._server
        return self._is_open

    def is_shadow(self) -> bool:
        """Whether nothing is to go from here to the peers: neither told, nor taken by who asks."""
        return self._settings.mode == "shadow"

    def report(self) -> dict[str, Any]:
        """How each peer is, as JSON values, whichever worker sees to them; empty without peers."""
        if not self._settings.active():
            return {}
        with contextlib.suppress(StoreError, ValueError):
            stored = self._registry.coordination.note(_REPORT_NOTE)
            if stored is not None:
                found = orjson.loads(stored)
                # That of a run before tells of what it compared: nobody is to act on it any more.
                if isinstance(found, dict) and found.pop("run", "") == self._server.decode():
                    return found
        return {
            "mode": self._settings.mode,
            "peers": [],
            "verdict": "Not known: nothing is compared.",
        }

    def _supervise(self) -> None:
        problem = ""
        while True:
            try:
                self._look_whether_open()
                self._take_lock()
                problem = ""
            except Exception as error:
                if str(error) != problem:
                    is_known = isinstance(error, StoreError)
                    log.error("peers wait: %s", error, exc_info=None if is_known else error)
                problem = str(error)
            if self._stopping.wait(_LOCK_SECS if self._is_open else _FOLLOW_SECS):
                break
        if self._run is not None:
            self._run.stop()
        with contextlib.suppress(StoreError):
            self._registry.coordination.release(_LOCK, self._owner)

    def _take_lock(self) -> None:
        now = self._registry.clock.mono_ms()
        held = self._registry.coordination.acquire(_LOCK, self._owner, now, _LOCK_TTL_MS)
        if held is None and self._run is not None:
            log.warning("the peers are left to another worker")
            self._run.stop()
            self._run = None
        elif held is not None and self._run is None and not self._stopping.is_set():
            log.info("this worker sees to the peers")
            self._run = _Run(self._registry, self._settings, self._opened, self._server)

    def _opened(self) -> None:
        """Let all workers of this server answer reads."""
        if not self._is_open:
            self._registry.coordination.set_note(_OPEN_NOTE, self._server)

    def _look_whether_open(self) -> None:
        if self._is_open:
            return
        if self._registry.coordination.note(_OPEN_NOTE) == self._server:
            self._is_open = True
        elif time.monotonic() > self._waits_until:
            log.warning("no peer has answered; this server serves what it has")
            self._opened()  # the other workers need not come to it by themselves
            self._is_open = True


class _Run:
    """The peers while this worker has the lock."""

    def __init__(
        self,
        registry: Registry,
        settings: PeersSettings,
        opened: Callable[[], None],
        server: bytes,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._opened = opened
        self._server = server
        self._local = _Local(registry, settings)
        self._stopping = threading.Event()
        self._links: dict[Peer, _Following] = {}
        # Held while peers are added: the first may answer before the last is there to be asked.
        self._naming = threading.Lock()
        self._is_named = False  # whether it is known who the peers are
        # Up to which change the peers were told; what was before them, comparisons find.
        self._told: Revision | None = None
        self._next_passing = 0.0
        self._told_renewals: dict[InstanceKey, int] = {}
        self._renewed_until = registry.clock.mono_ms()
        # How the peers stood when another worker saw to them, or before a restart.
        self._left: dict[str, Asked] = {}
        with contextlib.suppress(StoreError):
            self._left = hold.known(registry)
            self._told = self._local.namespace.view().revision
        self._threads = [
            threading.Thread(target=self._follow, name="peers: changes", daemon=True),
            threading.Thread(target=self._resolve, name="peers: names", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop: what is under way has a second to end, and is broken off then."""
        self._stopping.set()
        links = self._all()
        for link in links:
            link.stop()
        threads = [thread for link in links for thread in link.threads]
        _join(threads, _GRACE_SECS)
        for link in links:
            link.link.end()
        _join([*threads, *self._threads], _GRACE_SECS)

    def _answered(self, listed: int) -> None:
        """Let this server answer reads, once a peer has told it of anything but servers.

        Or where no peer has anything to tell: all were asked, and one at least has answered.
        """
        with self._naming:
            links = self._all()
        if listed or (all(e.was_asked for e in links) and any(e.has_told for e in links)):
            self._opened()

    # Who the peers are

    def _resolve(self) -> None:
        while not self._stopping.is_set():
            found = others(
                self._settings.urls,
                my_url=self._settings.my_url,
                host_name=self._settings.host_name,
                port=self._settings.port,
                is_own=lambda address: is_reached_by(address, self._settings.listens),
            )
            # A list that is empty may be a resolver's fault: the old one stays.
            if found or not self._links:
                with self._naming:
                    self._change_links(found)
                    self._is_named = True
            if not self._links:
                self._opened()  # it is alone: there is nobody to wait for
            self._stopping.wait(self._settings.resolve_interval_ms / 1000 if found else 5.0)

    def _change_links(self, found: Iterable[Peer]) -> None:
        wanted = dict.fromkeys(found)
        for peer in self._links.keys() - wanted.keys():
            log.info("%s is no peer any more", peer.name)
            left_out = self._links.pop(peer)
            left_out.stop()
            left_out.link.end()
        for peer in wanted:
            if peer not in self._links and not self._stopping.is_set():
                log.info("%s is a peer", peer.name)
                left = self._left.get(peer.name, Asked())
                self._links[peer] = _Following(
                    peer, self._settings, self._local, self._answered, left
                )

    # What they are told

    def _follow(self) -> None:
        settings = self._settings
        duties = [
            Duty("telling the peers of changes", 0.0, self._tell_changes, log),
            Duty(
                "telling of renewals",
                settings.heartbeat_interval_ms / 1000,
                self._tell_renewals,
                log,
            ),
            Duty("telling how the peers are", _REPORT_SECS, self._report, log),
            Duty("telling who was asked", _REPORT_SECS, self._tell_whom_was_asked, log),
        ]
        if settings.register and settings.mode != "shadow":
            own = self._own_entry()
            duties.insert(
                1, Duty("its own entry", _RENEW_SECS, lambda: self._list_itself(own), log)
            )
        while not self._stopping.wait(_FOLLOW_SECS):
            for duty in duties:
                duty.run(time.monotonic())

    def _tell_changes(self) -> None:
        """Tell of what changed since the last time; what is forgotten by now a comparison finds."""
        view = self._local.namespace.view()
        if self._told == view.revision:
            return
        with view.lock:
            now = view.revision
            changes = None if self._told is None else view.changes_since(self._told)
        if changes is None:
            for link in self._all():
                link.compare_anew()
        for change in changes or ():
            try:
                news = self._local.news_of(change)
                if news is not None:
                    self._put(*news)
            except Exception:
                self._pass_over()
        self._told = now

    def _pass_over(self) -> None:
        """Leave a change that cannot be told to a comparison: no other is to wait for it."""
        now = time.monotonic()
        if now >= self._next_passing:
            self._next_passing = now + _LONGEST_FAULT_SECS
            log.exception("a change cannot be told, and is left to a comparison")
            for link in self._all():
                link.compare_anew()

    def _tell_renewals(self) -> None:
        """Tell of each renewal since the last time, once."""
        until = self._renewed_until
        renewed = dict(self._local.namespace.renewed_by_clients(until))
        for key, at in renewed.items():
            # Told again and again, the last renewal would keep a dead instance alive for ever.
            if self._told_renewals.get(key) != at:
                self._put(key, Pending.HEARTBEAT)
        # A renewal that was under way may have an instant of just before.
        following = max(until, max(renewed.values(), default=0) - 5)
        self._told_renewals = {key: at for key, at in renewed.items() if at > following}
        self._renewed_until = following

    def _put(self, key: InstanceKey, what: Pending) -> None:
        for link in self._all():
            link.put(key, what)

    def _all(self) -> list[_Following]:
        return list(self._links.values())

    # This server's own entry

    def _own_entry(self) -> Instance:
        settings = self._settings
        host = settings.host_name or socket.gethostname()
        app = settings.app_name.upper()
        base = f"http://{host}:{settings.port}"
        return Instance(
            app=app,
            id=f"{host}:{app.lower()}:{settings.port}",
            instance_id=f"{host}:{app.lower()}:{settings.port}",
            host_name=host,
            ip_addr=_own_address(host),
            port=settings.port,
            secure_port=443,
            home_page_url=f"{base}/",
            status_page_url=f"{base}/actuator/info",
            health_check_url=f"{base}/actuator/health",
            vip_address=app.lower(),
            secure_vip_address=app.lower(),
            metadata={"management.port": str(settings.port)},
            last_dirty_ms=self._registry.clock.wall_ms(),
        )

    def _list_itself(self, own: Instance) -> None:
        """Register in the own registry and renew there, as a client: the peers hear as of any."""
        namespace = self._local.namespace
        listed = namespace.instance(own.app, own.id)
        if listed is None or listed.last_dirty_ms < own.last_dirty_ms:
            namespace.register(own)
        else:
            namespace.renew(own.app, own.id)

    def _tell_whom_was_asked(self) -> None:
        """For ``Hold`` in all workers; and ask anew where one of them wants that."""
        if not self._links:
            return
        hold.tell(self._registry, {each.link.peer.name: each.asked() for each in self._all()})
        wanted = hold.wanted_at(self._registry)
        for each in self._all():
            if each.asked().asked_mono_ms <= wanted:
                each.compare_soon()

    def _report(self) -> None:
        with self._naming:
            if not self._is_named:
                return
            links = self._all()
        peers = [link.report() for link in links]
        told = {
            "run": self._server.decode(),
            "mode": self._settings.mode,
            "worker": os.getpid(),
            "at_ms": self._registry.clock.wall_ms(),
            "peers": peers,
            "verdict": verdict(peers),
        }
        self._registry.coordination.set_note(_REPORT_NOTE, orjson.dumps(told))


class _Local:
    """The registry, as the exchange with peers sees it."""

    def __init__(self, registry: Registry, settings: PeersSettings) -> None:
        self.namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        self.clock = registry.clock
        self._settings = settings
        self._began = self._began_ms()
        self._untaken: set[InstanceKey] = set()  # what was logged

    def goes_out(self, instance: Instance) -> bool:
        """Whether peers are told of instances of this source."""
        if instance.source == "eureka":
            return True
        if instance.source == "native":
            return self._settings.sends_native
        return self._settings.sends_catalogs

    def news_of(self, change: Change) -> tuple[InstanceKey, Pending] | None:
        """What a change is to peers; None where it is none of theirs, or they know."""
        instance = change.instance
        if instance is None or instance.peers_know or change.evicted:
            return None
        if not self.goes_out(instance):
            return None
        if change.removed:
            return instance.key, Pending.CANCEL
        if change.override is not None:
            return instance.key, Pending.REGISTER | Pending.OVERRIDE
        return instance.key, Pending.REGISTER

    def outgoing(self, key: InstanceKey) -> tuple[Instance, InstanceStatus | None] | None:
        """See ``link.Local``."""
        view = self.namespace.view()
        with view.lock:
            instance = view.get(key)
            override = view.overrides.get(key.id)
        if instance is None or not self.goes_out(instance):
            return None
        return instance, override

    def adopt(self, entity: Instance) -> None:
        """See ``link.Local``. Source: protocol section 9.4."""
        if entity.overridden_status is not InstanceStatus.UNKNOWN:
            self.namespace.store_override(
                entity.app,
                entity.id,
                entity.overridden_status,
                last_dirty_ms=entity.last_dirty_ms,
            )
        self.take(entity)

    def take(self, instance: Instance, age_ms: int = 0) -> bool:
        """List a peer's instance whose last renewal was so long ago; whether it was taken."""
        try:
            self.namespace.register(instance, is_replication=True, age_ms=age_ms)
        except StoreError:
            raise
        except RegistryError as error:
            if instance.key not in self._untaken and len(self._untaken) < _MOST_LOGGED:
                self._untaken.add(instance.key)
                log.warning("a peer's %s/%s is not taken: %s", instance.app, instance.id, error)
            return False
        return True

    def take_override(self, theirs: Instance) -> None:
        """Set or remove an override as a peer has it."""
        if theirs.overridden_status is InstanceStatus.UNKNOWN:
            self.namespace.remove_override(
                theirs.app, theirs.id, theirs.status, is_replication=True
            )
        else:
            self.namespace.set_override(
                theirs.app, theirs.id, theirs.overridden_status, is_replication=True
            )

    def listed(self) -> dict[InstanceKey, Instance]:
        """All that peers may have as well: what registered somewhere, and what goes out."""
        view = self.namespace.view()
        with view.lock:
            return {
                instance.key: instance
                for application in view.applications.values()
                for instance in application.values()
                if instance.is_leased or self.goes_out(instance)
            }

    def comparable(
        self, theirs: Mapping[InstanceKey, Instance], leased: Collection[InstanceKey] | None
    ) -> dict[InstanceKey, Instance]:
        """What a peer lists, without what either of the two has from its own catalogs alone.

        Nobody renews that: taken for a registration, it would be gone with the end of a lease, and
        until then hide what this server's own catalog says. ``leased`` is what has a lease there,
        None of a genuine server, which has no catalogs.
        """
        view = self.namespace.view()
        with view.lock:
            mine = {key: view.get(key) for key in theirs}

        def counts(key: InstanceKey) -> bool:
            here = mine[key]
            if here is not None:
                return here.is_leased or self.goes_out(here)
            return leased is None or key in leased

        return {key: each for key, each in theirs.items() if counts(key)}

    def heard_ms(self, instance: Instance) -> int:
        """When this server last heard of an instance, from whomever.

        In epoch milliseconds of the wall clock as it is now: where that was set forward since this
        worker took the peers up, nothing is taken for older than it is.
        """
        lease = self.namespace.lease(instance.key)
        renewed = 0 if lease is None else lease.last_renewal_ms
        set_forward_ms = max(0, self._began_ms() - self._began)
        return max(renewed, instance.last_updated_ms) + set_forward_ms

    def _began_ms(self) -> int:
        """When the monotonic clock began, by the wall clock."""
        return self.clock.wall_ms() - self.clock.mono_ms()

    def end(self, seen: Instance) -> bool:
        """Cancel what was cancelled at a peer; whether it was still as it was seen."""
        return self.namespace.cancel(seen.app, seen.id, is_replication=True, revision=seen.revision)

    def extend(self, ends: Mapping[InstanceKey, int]) -> None:
        """Give leases that end later at a peer that time here (monotonic milliseconds)."""
        for key, lease in self.namespace.leases().items():
            end = ends.get(key)
            if end is not None and end > lease.deadline_mono_ms + _LATER_MS:
                self.namespace.extend_lease(key, end)

    def renewed_here(self) -> dict[InstanceKey, int]:
        """When each client last renewed at this server (monotonic milliseconds)."""
        return dict(self.namespace.renewed_by_clients(0))


class _Following:
    """A peer with the two threads that see to it: one sends, and one compares."""

    def __init__(
        self,
        peer: Peer,
        settings: PeersSettings,
        local: _Local,
        answered: Callable[[int], None],
        left: Asked,
    ) -> None:
        self.link = Link(peer, settings, local)
        self._asked = left
        self.was_asked = False
        """Whether the peer was asked for everything, answered or not."""
        self._settings = settings
        self._local = local
        self._answered = answered
        self._stopping = threading.Event()
        self._something, self._wanted = threading.Event(), threading.Event()
        self._next_comparison = 0.0
        # What was done about differences that are still there: the two states, and how often.
        self._healed: dict[InstanceKey, tuple[object, int]] = {}
        self._heals = 0
        self._compared_at = -_ASKED_AGAIN_SECS
        self._comparison: dict[str, Any] | None = None
        self._has_sent = False
        self._ending: set[InstanceKey] = (
            set()
        )  # whose end the peer was told of since it listed them
        # Apart, since a list may be long in coming, and renewals have no time to wait for it.
        self.threads = [
            threading.Thread(target=work, name=f"peer {peer.name}: {what}", daemon=True)
            for what, work in (("batches", self._tell), ("lists", self._compare_again))
        ]
        for thread in self.threads:
            thread.start()

    def put(self, key: InstanceKey, what: Pending) -> None:
        """Tell the peer, soon."""
        if self._settings.mode != "shadow":
            self.link.outbox.put(key, what)
            self._something.set()

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()
        self._something.set()
        self._wanted.set()

    def asked(self) -> Asked:
        """How the peer stands, as ``Hold`` is to know it."""
        away = self._asked.away_mono_ms
        if self.link.is_up and self.link.answered_at is not None:
            away = 0
        elif not self.link.is_up:
            away = away or self._local.clock.mono_ms()
        self._asked = self._asked._replace(away_mono_ms=away)
        return self._asked

    def compare_anew(self) -> None:
        """Compare at the next turn, and heal what differs though it is young."""
        self.link.needs_comparison = True
        self._wanted.set()

    def compare_soon(self) -> None:
        """Compare at the next turn, unless that was done a moment ago."""
        if time.monotonic() - self._compared_at > _ASKED_AGAIN_SECS:
            self._next_comparison = 0.0
            self._wanted.set()

    def _tell(self) -> None:
        """Send whatever there is, until stopped."""
        turn = Duty(f"telling {self.link.peer.name}", 0.0, self._send, log)
        while not self._stopping.is_set():
            if turn.run(time.monotonic()) and self._has_sent:
                continue
            waits = self.link.waits(time.monotonic())
            if waits:
                self._stopping.wait(min(_IDLE_SECS, waits))
            else:
                self._something.wait(_IDLE_SECS)
                self._something.clear()
                self._stopping.wait(_GATHER_SECS)  # what comes together is told together

    def _send(self) -> None:
        self._has_sent = self.link.run_once(time.monotonic())
        if self.link.needs_comparison:
            self._wanted.set()

    def _compare_again(self) -> None:
        """Compare whenever it is due, until stopped."""
        duty = Duty(f"comparing with {self.link.peer.name}", 0.0, self._compare_if_due, log)
        while not self._stopping.is_set():
            duty.run(time.monotonic())
            self._wanted.wait(_IDLE_SECS)
            self._wanted.clear()

    def _compare_if_due(self) -> None:
        now = time.monotonic()
        is_due = self.link.needs_comparison or now >= self._next_comparison
        if is_due and self.link.may_fetch(now):
            self.link.outbox.note_cancels()
            try:
                self._compare()
            finally:
                self.link.outbox.cancels_noted()

    @property
    def has_told(self) -> bool:
        """Whether the peer has told everything that it lists."""
        return self._comparison is not None

    def _compare(self) -> None:
        link, local = self.link, self._local
        is_first = link.needs_comparison
        link.needs_comparison = False
        now_ms, began = local.clock.wall_ms(), local.clock.mono_ms()
        self._compared_at = time.monotonic()
        try:
            theirs, skew = link.fetch(now_ms)
            asked_ms, removals_ms = local.clock.mono_ms(), local.clock.wall_ms()
            told_of = link.leases()
        except PeerError as error:
            if self._stopping.is_set():
                return
            self.was_asked = True
            link.needs_comparison |= is_first
            link.fetched(error)
            self._answered(0)
            return
        if self._stopping.is_set():
            return
        ended: Mapping[InstanceKey, Removal] = {}
        leased: Collection[InstanceKey] | None = None
        if told_of is None:
            young_ms = _CACHED_MS
            left = {key: _left_by_list(each, now_ms + skew) for key, each in theirs.items()}
        else:
            young_ms = _UNDER_WAY_MS
            left, ended = dict(told_of.left_ms), told_of.removed
            leased = left.keys()
        # At its start a server takes over from a shadow too: a genuine one does so from any peer.
        is_start = self._comparison is None
        believes = is_start or told_of is None or not told_of.is_shadow
        ends = {key: asked_ms + ms for key, ms in left.items() if key in theirs}
        if believes:
            local.extend(ends)
        self._next_comparison = time.monotonic() + self._settings.compare_interval_ms / 1000
        theirs = local.comparable(theirs, leased)
        found = compared(local.listed(), theirs, skew_ms=skew)
        removed = leases.removed_lately(local.namespace)
        told = [
            each
            for each in found.differences
            if not self._settles(each, theirs, removed, skew, young_ms)
        ]
        if believes and (is_start or self._settings.mode != "shadow"):
            renewed = local.renewed_here()
            self._ending = link.outbox.cancels_noted()
            for each in found.differences if is_first else told:
                if not self._ended_there(each, ended.get(each.key), removals_ms):
                    self._heal(
                        each,
                        theirs.get(each.key),
                        removed.get(each.key),
                        renewed,
                        ends.get(each.key),
                    )
        differing = {each.key for each in found.differences}
        self._healed = {key: what for key, what in self._healed.items() if key in differing}
        self._asked = Asked(asked_mono_ms=began)
        self._note_comparison(found, told, now_ms)
        self.was_asked = True
        link.fetched(None)
        # One that starts empty at the same time lists itself: that is nothing to be opened for.
        servers = self._settings.app_name.upper()
        self._answered(sum(key.app != servers for key in theirs))

    def _settles(
        self,
        difference: Difference,
        theirs: dict[InstanceKey, Instance],
        removed: dict[InstanceKey, Change],
        skew_ms: int,
        young_ms: int,
    ) -> bool:
        """Whether a difference is so young that it may be a cached answer's, or under way."""
        since = self._local.clock.wall_ms() - young_ms
        gone = removed.get(difference.key)
        there = theirs.get(difference.key)
        found = self._local.outgoing(difference.key)
        return (
            (
                gone is not None
                and gone.instance is not None
                and gone.instance.last_updated_ms > since
            )
            or (there is not None and there.last_updated_ms - skew_ms > since)
            or (found is not None and found[0].last_updated_ms > since)
        )

    def _ended_there(self, difference: Difference, removal: Removal | None, at_ms: int) -> bool:
        """Whether a peer removed what only this server lists, after it was last heard of here.

        The peer is not to list it again then: this server may have been away, or cut off from where
        it was cancelled. It ends here too where the peer knows that from its own client. A word of
        a third server may have been under way for longer than the client needed to come back, so
        that ends nothing here: the next renewal of who lives lists him everywhere again.

        ``at_ms`` is the wall clock when the peer was asked: so long before that, the removal was at
        the earliest.
        """
        if difference.kind is not DifferenceKind.MISSING or removal is None:
            return False
        local = self._local
        found = local.outgoing(difference.key)
        # What is never renewed ends at a peer with each lease, and is told anew.
        if found is None or not found[0].expires:
            return False
        if at_ms - removal.ago_ms <= local.heard_ms(found[0]):
            return False
        if removal.how is Ending.CANCELLED and self._settings.fetch and local.end(found[0]):
            self._heals += 1
        return True

    def _heal(
        self,
        difference: Difference,
        theirs: Instance | None,
        gone: Change | None,
        renewed: dict[InstanceKey, int],
        ends_mono_ms: int | None,
    ) -> None:
        """Do about a difference what the newer state asks for, once for the same two states.

        ``ends_mono_ms`` is when the lease ends at the peer.
        """
        key, link, local = difference.key, self.link, self._local
        found = local.outgoing(key)
        mine = None if found is None else found[0]
        states = (
            None if mine is None else (mine.last_dirty_ms, mine.last_updated_ms),
            None if theirs is None else (theirs.last_dirty_ms, theirs.last_updated_ms),
        )
        before, times = self._healed.get(key, (None, 0))
        if difference.kind is DifferenceKind.DIFFERS and (
            before == states or times >= _HEALED_AT_MOST
        ):
            return
        sends = self._settings.mode != "shadow"
        if difference.kind is DifferenceKind.MISSING or (
            difference.kind is DifferenceKind.DIFFERS and difference.ours_wins
        ):
            if not sends or mine is None or not self._lives_here(mine, renewed):
                return
            what = Pending.REGISTER
            if "overriddenStatus" in difference.fields or "status" in difference.fields:
                what |= Pending.OVERRIDE
            link.outbox.put(key, what)
        elif theirs is None or not self._settings.fetch:
            return
        elif difference.kind is DifferenceKind.EXTRA:
            if ends_mono_ms is None or not self._take(theirs, gone, ends_mono_ms, sends=sends):
                return
        else:
            if "overriddenStatus" in difference.fields:
                local.take_override(theirs)
            local.take(theirs)
        self._healed[key] = (states, times + 1)
        self._heals += 1

    def _lives_here(self, instance: Instance, renewed: dict[InstanceKey, int]) -> bool:
        """Whether this server knows of its own that an instance lives: it may tell others then.

        What only peers renew is theirs to tell of. Otherwise two servers would keep a dead one
        alive, each by the other's word.
        """
        if not instance.is_leased or not instance.peers_know:
            return True
        at = renewed.get(instance.key)
        return at is not None and self._local.clock.mono_ms() - at < instance.lease_secs * 1000

    def _take(
        self, theirs: Instance, gone: Change | None, ends_mono_ms: int, *, sends: bool
    ) -> bool:
        """Take what only the peer lists, for the rest of its lease; or tell it of a cancel."""
        local, outbox = self._local, self.link.outbox
        now = local.clock.mono_ms()
        age_ms = max(0, now + duration_ms(theirs.duration_secs) - ends_mono_ms)
        if gone is not None and gone.instance is not None:
            left = gone.instance
            if gone.evicted:
                if local.clock.wall_ms() - age_ms <= left.last_updated_ms:
                    return False
            elif theirs.last_dirty_ms <= left.last_dirty_ms:
                if sends and not left.peers_know:
                    outbox.put(theirs.key, Pending.CANCEL)
                return False
        if ends_mono_ms <= now or theirs.key in self._ending:
            return False
        return local.take(theirs, age_ms)

    def _note_comparison(self, found: Comparison, told: list[Difference], now_ms: int) -> None:
        self._comparison = {
            "at_ms": now_ms,
            "ours": found.ours,
            "theirs": found.theirs,
            "settling": len(found.differences) - len(told),
            **{str(kind): sum(each.kind is kind for each in told) for kind in DifferenceKind},
            "examples": [
                {
                    "app": each.key.app,
                    "id": each.key.id,
                    "kind": str(each.kind),
                    "fields": {name: list(values) for name, values in each.fields.items()},
                }
                for each in told[:_EXAMPLES]
            ],
        }

    def report(self) -> dict[str, Any]:
        """How this peer is, as JSON values."""
        link, now = self.link, time.monotonic()
        answered = link.answered_at
        clock = self._local.clock.wall_ms()
        return {
            "url": link.peer.name,
            "state": "up"
            if link.is_up and answered is not None
            else "starting"
            if link.is_up
            else "down",
            "last_exchange_ms": None if answered is None else clock - int((now - answered) * 1000),
            "pending": len(link.outbox),
            "lag_ms": 0
            if not len(link.outbox) or answered is None
            else int((now - answered) * 1000),
            "problem": link.problem,
            "failures": link.failures,
            "healed": self._heals,
            **asdict(link.tally),
            "comparison": self._comparison,
        }


def _left_by_list(theirs: Instance, now_ms: int) -> int:
    """What a lease has left by a genuine peer's list, whose clock says ``now_ms``; milliseconds.

    What a genuine server shows as the instant of a renewal is one duration later (``Lease.renew``
    of eureka-core), and it keeps the instance for another one. Here it ends as at any of ours.
    """
    duration = duration_ms(theirs.duration_secs)
    renewed = theirs.last_renewal_ms or now_ms
    if theirs.registration_ms and renewed > theirs.registration_ms:
        renewed = max(theirs.registration_ms, renewed - duration)
    return min(duration, renewed + duration - now_ms)


def verdict(peers: list[dict[str, Any]]) -> str:
    """One sentence for whoever wonders whether clients may be pointed at this server."""
    if not peers:
        return "Not known: there is no peer."
    for peer in peers:
        if peer["state"] != "up":
            reason = peer["problem"] or "it was not asked yet"
            return f"Not known: {peer['url']} is {peer['state']} ({reason})."
        if peer["comparison"] is None:
            return f"Not known: {peer['url']} was not compared yet."
    differing = []
    for peer in peers:
        counts = {str(kind): peer["comparison"][str(kind)] for kind in DifferenceKind}
        if any(counts.values()):
            told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            differing.append(f"{peer['url']}: {told}")
    if differing:
        return f"Not yet: this server and its peers differ ({'; '.join(differing)})."
    count = max(peer["comparison"]["ours"] for peer in peers)
    return f"Safe to switch: {count} instances, the same here and at each of {len(peers)} peers."


def _join(threads: Iterable[threading.Thread], secs: float) -> None:
    """Wait for the end of threads, together for so long."""
    until = time.monotonic() + secs
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _own_address(host: str) -> str:
    """An address at which others may reach this machine."""
    for target in (host, socket.gethostname()):
        with contextlib.suppress(OSError):
            return str(socket.getaddrinfo(target, None, socket.AF_INET)[0][4][0])
    return "127.0.0.1"


def _server_run() -> bytes:
    """What all workers of one start of the server have in common, and no other start has."""
    parent = os.getppid()
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{parent}/stat", "rb") as file:
            began = file.read().rpartition(b")")[2].split()[19]
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return b"%d-%s-%s" % (parent, began, file.read().strip())
    return b"%d" % parent
