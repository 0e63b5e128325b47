"""All that goes on between this server and its peers, in one of its workers at a time.

A lock in the store says which worker that is; another goes on within seconds of its death, and
begins with a comparison, since it does not know what was told already.

One thread follows this server's changes and puts them into each peer's outbox; ``following`` has
what goes on with one peer. What peers say is registered as a peer's word
(``Instance.peers_know``) and goes to nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from eureka_compat.peers import hold
from eureka_compat.peers.following import Following, verdict
from eureka_compat.peers.hold import Asked, Hold
from eureka_compat.peers.local import LocalRegistry
from eureka_compat.peers.membership import Peer, is_reached_by, others
from eureka_compat.peers.outbox import Pending
from eureka_compat.peers.settings import PeersSettings
from registry import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceKey,
    Registry,
    Revision,
    StoreError,
)
from registry.duty import Duty

log = logging.getLogger("peers")

_LOCK = "peers"
_LOCK_TTL_MS = 3_000
_FOLLOW_SECS = 0.05
_LOCK_SECS = 0.5
_REPORT_SECS = 1.0
_STOP_SECS = 5.0
_GRACE_SECS = 1.0
# Between two comparisons that changes ask for which cannot be told.
_LONGEST_FAULT_SECS = 60.0
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
            self._run = _Run(
                self._registry, self._settings, self._opened, self.is_open, self._server
            )

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
        is_open: Callable[[], bool],
        server: bytes,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._opened = opened
        self._is_open = is_open
        self._server = server
        self._local = LocalRegistry(registry, settings)
        self._stopping = threading.Event()
        self._links: dict[Peer, Following] = {}
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
                self._links[peer] = Following(
                    peer, self._settings, self._local, self._answered, self._is_open, left
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

    def _named(self) -> list[Following] | None:
        """All peers, and not a part of them; None while it is not known who they are."""
        with self._naming:
            return self._all() if self._is_named else None

    def _all(self) -> list[Following]:
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
        named = self._named()
        if not named:
            return
        links = [each for each in named if not each.is_shadow]
        hold.tell(self._registry, {each.link.peer.name: each.asked() for each in links})
        wanted = hold.wanted_at(self._registry)
        for each in links:
            if each.asked().asked_mono_ms <= wanted:
                each.compare_soon()

    def _report(self) -> None:
        links = self._named()
        if links is None:
            return
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
