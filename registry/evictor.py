"""The evictor: removes instances that stopped renewing, in one worker at a time.

Every worker runs one. The one that holds the store's lock acts, and when its process dies another
takes the lock over. What it removes is chosen at random among the expired, so that an outage never
empties one application first, and there is a cap: 15 % of the registry in any 60 s (or in each
sweep, where the genuine timing is asked for). The store counts what was evicted, and everything is
written behind the lock's fence. So the cap holds however long a pass takes, and whoever takes over
in the middle of it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping

from registry.by_application import ByApplication
from registry.errors import LockLostError, StoreAwayError, StoreError, StoreGoneError
from registry.history import HistoryKind
from registry.lease import EVICTION_WINDOW_MS, eviction_limit
from registry.loss import accepted, settle
from registry.model import InstanceKey, Lease, Namespace
from registry.namespace import NamespaceRegistry
from registry.preservation import Noted, Preserved, mode_of, note_name, read_note
from registry.registry import Registry
from registry.store import Fence, Records
from registry.words import counted

log = logging.getLogger("registry")

PASS_INTERVAL_SECS = 0.4
LOCK_TTL_MS = 3_000
_LOCK = "evictor"
_EVICTED_AT_ONCE = 50
_PAUSE_SECS = 0.002
# How long a pass may take before it is noted again that the server runs.
_NOTED_AGAIN_MS = 1_000
_NEVER = 1 << 62
# Who is held back is looked at again after so long, and so many times as long as a look takes.
_HELD_BACK_MS = 1_000
_HELD_BACK_SHARE = 9
# While nothing may be evicted, the history is told of what has expired once in so long.
_KEPT_MS = 10_000
_NOBODY = InstanceKey("", "")
# A line of the log names so many applications.
_NAMED = 10
_NO_APPLICATIONS: Mapping[str, Preserved] = {}
# Other workers' views follow the log, so it is kept for so long even where the delta tells of less.
_FOLLOWED_MS = 60_000


class Evictor:
    """Expiry, eviction and housekeeping for all namespaces of a registry."""

    def __init__(
        self,
        registry: Registry,
        records: Records,
        *,
        rng: random.Random | None = None,
        leave: Callable[[], object] | None = None,
    ) -> None:
        """Nothing runs before ``start`` or ``run_once``.

        ``records`` are those that the registry works on. ``leave`` is called where the store's
        files are gone: the process must end, so that another opens the new ones.
        """
        self._registry = registry
        self._records = records
        self._leave = leave
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._random = rng or random.Random()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # What was last noted of self-preservation, and what is remembered of each application.
        self._noted: dict[Namespace, Noted] = {}
        self._applications: dict[Namespace, ByApplication] = {}
        self._fence: Fence | None = None
        # For each namespace: when its leases were last looked at, and when the earliest of them
        # ends. Until then no look is needed.
        self._next_due: dict[Namespace, tuple[int, int]] = {}
        self._last_sweep: int | None = None
        self._last_trim: int | None = None
        self._last_threshold: int | None = None
        self._failing = False
        self._flush_failing = False
        # What the history was told of: by namespace, which lease ended and why its instance stays;
        # when that was last looked at; and where the cap held evictions back.
        self._kept: dict[Namespace, dict[InstanceKey, tuple[int, str]]] = {}
        self._looked: dict[Namespace, int] = {}
        self._capped: set[Namespace] = set()

    def make_good(self) -> None:
        """Run before the first request, so that a time in which no worker ran is made good.

        ``StoreError``, but not where the store is away: what it has here is served, and nobody is
        evicted before it was made good.
        """
        try:
            self.run_once()
        except StoreAwayError as error:
            log.warning("nothing is evicted while the store fails: %s", error)
            self._failing = True

    def start(self) -> None:
        """Run in a background thread until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="evictor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop soon, and give the lock back so that another worker goes on at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        try:
            self._registry.coordination.release(_LOCK, self._owner)
        except StoreError as error:
            log.warning("the evictor's lock is left to time out: %s", error)

    def _run(self) -> None:
        while not self._stopping.wait(PASS_INTERVAL_SECS):
            try:
                self.run_once()
                self._failing = False
            except StoreGoneError as error:
                log.error("this process ends, and another begins on what is there: %s", error)
                if self._leave is not None:
                    self._leave()
                return
            except StoreError as error:
                if not self._failing:
                    log.warning("nothing is evicted while the store fails: %s", error)
                self._failing = True
            except Exception:
                # A defect must not end all evictions for as long as this worker lives.
                if not self._failing:
                    log.exception("nothing is evicted while this error lasts")
                self._failing = True

    def run_once(self) -> int:
        """One pass; how many instances it evicted. ``StoreError`` if the store does not answer."""
        registry = self._registry
        now = registry.clock.mono_ms()
        self._note_running(now)
        registry.forget_old_changes()
        if not self._holds_lock(now):
            return 0
        self._flush()
        known = self._records.namespaces()
        held = [registry.in_namespace(namespace) for namespace, size in known.items() if size]
        self._housekeep(list(known), now)
        for namespace, size in known.items():
            if not size and self._noted_of(namespace).since_ms is not None:
                self._tell_of_preservation(registry.in_namespace(namespace), is_active=False)
        evicted = self._let_losses_go(now)
        if registry.settings.lease_expiry == "genuine":
            return evicted + self._sweep(held, now)
        noted = now
        for each in held:
            evicted += self._evict_due(each, now)
            # A pass over many namespaces, each asked over a network, is not to look like a pause.
            at, fence = registry.clock.mono_ms(), self._fence
            if at - noted > _NOTED_AGAIN_MS:
                noted = at
                if self._note_running(at) or not self._holds_lock(at) or self._fence != fence:
                    break
        return evicted

    def _note_running(self, now: int) -> bool:
        """Note that the server runs; whether it had paused, so that leases got their time back."""
        given_back = self._records.resume(now)
        if given_back is None:
            return False
        log.warning("the server had paused: %d leases got their time back", given_back)
        self._next_due.clear()
        return True

    def _holds_lock(self, now: int) -> bool:
        """Take or keep the lock; whether this evictor has it.

        Taken anew it may have been another's, so what was known of the leases is forgotten.
        """
        token = self._registry.coordination.acquire(_LOCK, self._owner, now, LOCK_TTL_MS)
        fence = None if token is None else Fence(_LOCK, token)
        if fence is None or fence != self._fence:
            self._next_due.clear()
            self._noted.clear()
            self._applications.clear()
            self._last_sweep = None
        self._fence = fence
        return fence is not None

    def _flush(self) -> None:
        """Have the store write to the disk. Where that fails evictions go on without it."""
        try:
            self._records.flush()
            self._flush_failing = False
        except StoreError as error:
            if not self._flush_failing:
                log.error("a power cut would now lose more than a second: %s", error)
            self._flush_failing = True

    def _evict_due(self, registry: NamespaceRegistry, now: int) -> int:
        if not self._may_evict(registry):
            self._tell_preserved(registry, now)
            return 0
        if not self._something_due(registry, now):
            return 0
        namespace = registry.namespace
        began = time.monotonic()
        found = self._records.due(namespace, now)
        due, held_back = registry.evictable(found.expired)
        going = self._without_preserved(registry, due)
        # Where nothing goes, nobody needs to be asked how many did.
        gone = self._records.evictions(namespace, now - EVICTION_WINDOW_MS) if going else 0
        limit = eviction_limit(found.leases + gone, registry.settings.renewal_percent_threshold)
        evicted = self._evict_some(registry, going, limit - gone)
        self._tell_kept(registry, found.expired, due, going, evicted, limit)
        if evicted < len(going):
            self._next_due.pop(namespace, None)
        else:
            following = found.next_deadline_mono_ms
            earliest = _NEVER if following is None else following
            if held_back or len(going) < len(due):
                earliest = min(earliest, now + _HELD_BACK_MS)
                # To look at a large fleet again takes a while, of which others need most.
                took_ms = int((time.monotonic() - began) * 1000)
                earliest = max(earliest, now + took_ms * _HELD_BACK_SHARE)
            self._next_due[namespace] = (now, earliest)
        return evicted

    def _something_due(self, registry: NamespaceRegistry, now: int) -> bool:
        """Whether a lease may have ended: one that was looked at, or one registered since."""
        namespace = registry.namespace
        shortest = registry.view().take_shortest_lease_secs()
        seen = self._next_due.get(namespace)
        if seen is None:
            return True
        looked, earliest = seen
        if shortest is not None:
            # It began after the view was last asked, so it ends no earlier than this.
            earliest = min(earliest, looked + shortest * 1000)
        self._next_due[namespace] = (now, earliest)
        return now > earliest

    def _sweep(self, held: list[NamespaceRegistry], now: int) -> int:
        """The genuine timing: one run an interval; a late one adds its delay to every lease."""
        interval = self._registry.settings.eviction_interval_ms
        if self._last_sweep is None:
            self._last_sweep = now
            return 0
        elapsed = now - self._last_sweep
        if elapsed < interval:
            return 0
        # A pass comes up to one pass interval late by itself; that is no delay.
        extra = max(0, elapsed - interval - int(PASS_INTERVAL_SECS * 1000) * 2)
        self._last_sweep = now
        evicted = 0
        for registry in held:
            if not self._may_evict(registry):
                self._tell_preserved(registry, now)
                continue
            found = self._records.due(registry.namespace, now - extra)
            due, _ = registry.evictable(found.expired)
            going = self._without_preserved(registry, due)
            limit = eviction_limit(found.leases, registry.settings.renewal_percent_threshold)
            gone = self._evict_some(registry, going, limit)
            self._tell_kept(registry, found.expired, due, going, gone, limit)
            evicted += gone
        return evicted

    # What the history is told

    def _tell_preserved(self, registry: NamespaceRegistry, now: int) -> None:
        """Tell of what has expired, and stays because nothing may be evicted."""
        looked = self._looked.get(registry.namespace)
        if registry.history is None or (looked is not None and now - looked < _KEPT_MS):
            return
        self._looked[registry.namespace] = now
        expired = self._records.due(registry.namespace, now).expired
        self._tell_each(registry, {key: (lease, "self-preservation") for key, lease in expired})

    def _tell_kept(
        self,
        registry: NamespaceRegistry,
        expired: list[tuple[InstanceKey, Lease]],
        due: list[tuple[InstanceKey, Lease]],
        going: list[tuple[InstanceKey, Lease]],
        evicted: int,
        limit: int,
    ) -> None:
        """Tell of what has expired and stays after a pass that evicted so many of those going.

        Those that are ``due`` and do not go are preserved.
        """
        if registry.history is None:
            return
        namespace = registry.namespace
        is_capped = evicted < len(going)
        if is_capped and namespace not in self._capped:
            registry.record(
                HistoryKind.BUDGET_REACHED,
                _NOBODY,
                rule="eviction-budget",
                limit=limit,
                waiting=len(going) - evicted,
            )
        (self._capped.add if is_capped else self._capped.discard)(namespace)
        if not expired or (evicted == len(expired) and namespace not in self._kept):
            self._kept.pop(namespace, None)
            return
        rules = {key: "self-preservation" for key, _ in due}
        rules |= {key: "eviction-budget" for key, _ in going}
        view = registry.view()
        kept = {}
        with view.lock:
            for key, lease in expired:
                instance = view.get(key)
                if instance is not None:
                    rule = "peers" if instance.expires else "out-of-service"
                    kept[key] = lease, rules.get(key, rule)
        self._tell_each(registry, kept)

    def _tell_each(
        self, registry: NamespaceRegistry, kept: dict[InstanceKey, tuple[Lease, str]]
    ) -> None:
        """Tell once of each why it stays, and again where the reason is another."""
        before = self._kept.get(registry.namespace, {})
        told = {key: (lease.deadline_mono_ms, rule) for key, (lease, rule) in kept.items()}
        self._kept[registry.namespace] = told
        for key, (lease, rule) in kept.items():
            if before.get(key) != told[key]:
                registry.record(
                    HistoryKind.EXPIRED_BUT_KEPT,
                    key,
                    rule=rule,
                    last_renewal_ms=lease.last_renewal_ms,
                    lease_secs=lease.duration_ms // 1000,
                )

    def _held_by(self, namespace: Namespace) -> Callable[[InstanceKey, Lease], str]:
        """What kept an instance of a namespace listed, after its lease had ended so."""
        kept = self._kept.get(namespace, {})

        def held_by(key: InstanceKey, lease: Lease) -> str:
            deadline, rule = kept.get(key, (None, ""))
            return rule if deadline == lease.deadline_mono_ms else ""

        return held_by

    def _evict_some(
        self,
        registry: NamespaceRegistry,
        due: list[tuple[InstanceKey, Lease]],
        limit: int,
        *,
        is_accepted: bool = False,
    ) -> int:
        """Evict so many of them; fewer where the lock is lost, or the server pauses meanwhile.

        What ``is_accepted`` as lost is not missing from its application any more.
        """
        applications = None if is_accepted else self._applications.get(registry.namespace)
        chosen = self._random.sample(due, min(len(due), max(0, limit)))
        evicted, fence = 0, self._fence
        for start in range(0, len(chosen), _EVICTED_AT_ONCE):
            if start:
                time.sleep(_PAUSE_SECS)
                now = registry.clock.mono_ms()
                if self._note_running(now) or not self._holds_lock(now) or self._fence != fence:
                    break
            portion = chosen[start : start + _EVICTED_AT_ONCE]
            try:
                evicted += registry.evict(
                    portion,
                    fence=fence,
                    held_by=self._held_by(registry.namespace),
                    is_accepted=is_accepted,
                )
            except LockLostError:
                break
            if applications is not None:
                applications.note_evicted([key for key, _ in portion])
        return evicted

    # Self-preservation

    def _may_evict(self, registry: NamespaceRegistry) -> bool:
        """Whether anything may be evicted; by application that is decided for each."""
        if mode_of(registry.settings) == "by-application":
            return True
        view, state = registry.view(), registry.self_preservation()
        with view.lock:
            # Where nobody is registered there is nothing to preserve, and nothing to tell.
            is_active = not state.expiration_enabled and view.leased > 0
        self._tell_of_preservation(registry, is_active=is_active)
        return state.expiration_enabled

    def _without_preserved(
        self, registry: NamespaceRegistry, due: list[tuple[InstanceKey, Lease]]
    ) -> list[tuple[InstanceKey, Lease]]:
        """Of what has ended, that which is not kept because its application is preserved."""
        if mode_of(registry.settings) != "by-application":
            return due
        namespace = registry.namespace
        known = self._applications.get(namespace)
        if known is None:
            known = self._applications[namespace] = ByApplication(registry)
        before = self._noted_of(namespace).applications
        kept = known.preserved(due, {app: each.since_ms for app, each in before.items()})
        self._tell_of_preservation(registry, is_active=bool(kept), applications=kept)
        return [each for each in due if each[0].app not in kept]

    def _noted_of(self, namespace: Namespace) -> Noted:
        """What was noted of self-preservation, maybe by another worker or before a restart."""
        noted = self._noted.get(namespace)
        if noted is None:
            note = self._registry.coordination.note(note_name(namespace))
            noted = self._noted[namespace] = read_note(note)
        return noted

    def _tell_of_preservation(
        self,
        registry: NamespaceRegistry,
        *,
        is_active: bool,
        applications: Mapping[str, Preserved] = _NO_APPLICATIONS,
    ) -> None:
        """Note how self-preservation is, for all workers; and log where it was entered or left."""
        namespace = registry.namespace
        before = self._noted_of(namespace)
        since_ms = before.since_ms or registry.clock.wall_ms()
        state = Noted(since_ms if is_active else None, applications)
        if state == before:
            return
        self._registry.coordination.set_note(note_name(namespace), state.packed())
        self._noted[namespace] = state
        was_active = before.since_ms is not None
        entered = applications.keys() - before.applications.keys()
        left = before.applications.keys() - applications.keys()
        if applications or before.applications:
            changes = {"entered": _named(entered), "left": _named(left)}
        else:
            changes = {"entered" if is_active else "left": ""} if is_active != was_active else {}
        sentence = registry.preservation().sentence
        for change, whom in changes.items():
            if whom is None:
                continue
            where = registry.settings.shown(namespace)
            log.warning("%s self-preservation in %s%s: %s", change, where, whom, sentence)
            is_entered = change == "entered"
            kind = HistoryKind.PRESERVATION_ENTERED if is_entered else HistoryKind.PRESERVATION_LEFT
            # Of each application, where it is decided for each; else of all of the namespace.
            for app in sorted(entered if is_entered else left) or [""]:
                registry.record(
                    kind, InstanceKey(app, ""), rule="self-preservation", sentence=sentence
                )

    def _let_losses_go(self, now: int) -> int:
        """Evict what somebody has accepted as lost; how many those were."""
        notes, clock = self._registry.coordination, self._registry.clock
        losses = accepted(notes)
        fence, evicted = self._fence, 0
        for loss in losses:
            registry = self._registry.in_namespace(loss.namespace)
            # One that is of another boot of the machine is ahead of the clock.
            found = self._records.due(loss.namespace, min(now, loss.at_mono_ms))
            due, _ = registry.evictable(found.expired)
            wanted = [each for each in due if loss.app in (None, each[0].app)]
            gone = self._evict_some(registry, wanted, len(wanted), is_accepted=True)
            evicted += gone
            if not self._holds_lock(clock.mono_ms()) or self._fence != fence:
                return evicted  # whoever has the lock goes on with it
            if mode_of(registry.settings) == "genuine":
                self._records.set_expected_clients(loss.namespace, found.leases - gone)
            whose = loss.app or "all applications"
            log.warning(
                "%s accepted the loss in %s: %s of %s evicted",
                loss.by,
                registry.settings.shown(loss.namespace),
                counted(gone, "instance"),
                whose,
            )
            self._next_due.pop(loss.namespace, None)
        if losses:
            settle(notes, clock, losses)
        return evicted

    def _housekeep(self, namespaces: list[Namespace], now: int) -> None:
        settings = self._registry.settings
        if (
            self._last_trim is None
            or now - self._last_trim > settings.delta_retention_timer_interval_ms
        ):
            keep = max(settings.delta_retention_ms, _FOLLOWED_MS)
            before = now - keep - settings.delta_retention_timer_interval_ms
            gone = sum([self._records.trim(namespace, before) for namespace in namespaces])
            # Each pass trims a little of what a storm left, so that no eviction waits for it.
            self._last_trim = None if gone else now
        if self._last_threshold is None:
            self._last_threshold = now
        elif now - self._last_threshold > settings.renewal_threshold_update_interval_ms:
            self._last_threshold = now
            for namespace in namespaces:
                self._update_expected_clients(namespace)

    def _update_expected_clients(self, namespace: Namespace) -> None:
        settings = self._registry.settings
        registry = self._registry.in_namespace(namespace)
        expected = registry.self_preservation().expected_clients
        view = registry.view()
        with view.lock:
            count = view.leased
        if count > settings.renewal_percent_threshold * expected or not settings.self_preservation:
            self._records.set_expected_clients(namespace, count)


def _named(apps: Collection[str]) -> str | None:
    """The applications that a line of the log names; None where there are none."""
    if not apps:
        return None
    shown = sorted(apps)[:_NAMED]
    more = f" and {len(apps) - len(shown)} more" if len(apps) > len(shown) else ""
    return f" for {', '.join(shown)}{more}"
