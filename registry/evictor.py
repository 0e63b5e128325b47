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
from collections.abc import Callable

from registry.errors import LockLostError, StoreError, StoreGoneError
from registry.history import HistoryKind
from registry.lease import EVICTION_WINDOW_MS, eviction_limit
from registry.model import InstanceKey, Lease, Namespace
from registry.namespace import NamespaceRegistry
from registry.preservation import note_name, noted
from registry.registry import Registry
from registry.store import Fence, Records

log = logging.getLogger("registry")

PASS_INTERVAL_SECS = 0.4
LOCK_TTL_MS = 3_000
_LOCK = "evictor"
_EVICTED_AT_ONCE = 50
_PAUSE_SECS = 0.002
_NEVER = 1 << 62
# Who is held back is looked at again after so long.
_HELD_BACK_MS = 1_000
# While nothing may be evicted, the history is told of what has expired once in so long.
_KEPT_MS = 10_000
_NOBODY = InstanceKey("", "")
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
        self._preserving: dict[Namespace, bool] = {}
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
        if registry.settings.lease_expiry == "genuine":
            return self._sweep(held, now)
        return sum([self._evict_due(each, now) for each in held])

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
            self._preserving.clear()
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
        found = self._records.due(namespace, now)
        due, held_back = _evictable(registry, found.expired)
        gone = self._records.evictions(namespace, now - EVICTION_WINDOW_MS)
        limit = eviction_limit(found.leases + gone, registry.settings.renewal_percent_threshold)
        evicted = self._evict_some(registry, due, limit - gone)
        self._tell_kept(registry, found.expired, due, evicted, limit)
        if evicted < len(due):
            self._next_due.pop(namespace, None)
        else:
            following = found.next_deadline_mono_ms
            earliest = _NEVER if following is None else following
            if held_back:
                earliest = min(earliest, now + _HELD_BACK_MS)
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
            due, _ = _evictable(registry, found.expired)
            limit = eviction_limit(found.leases, registry.settings.renewal_percent_threshold)
            gone = self._evict_some(registry, due, limit)
            self._tell_kept(registry, found.expired, due, gone, limit)
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
        evicted: int,
        limit: int,
    ) -> None:
        """Tell of what has expired and stays after a pass that evicted so many of those due."""
        if registry.history is None:
            return
        namespace = registry.namespace
        is_capped = evicted < len(due)
        if is_capped and namespace not in self._capped:
            registry.record(
                HistoryKind.BUDGET_REACHED,
                _NOBODY,
                rule="eviction-budget",
                limit=limit,
                waiting=len(due) - evicted,
            )
        (self._capped.add if is_capped else self._capped.discard)(namespace)
        if not expired or (evicted == len(expired) and namespace not in self._kept):
            self._kept.pop(namespace, None)
            return
        going = {key for key, _ in due}
        view = registry.view()
        kept = {}
        with view.lock:
            for key, lease in expired:
                instance = view.get(key)
                if instance is not None:
                    rule = "peers" if instance.expires else "out-of-service"
                    kept[key] = lease, "eviction-budget" if key in going else rule
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
        self, registry: NamespaceRegistry, due: list[tuple[InstanceKey, Lease]], limit: int
    ) -> int:
        """Evict so many of them; fewer where the lock is lost, or the server pauses meanwhile."""
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
                    portion, fence=fence, held_by=self._held_by(registry.namespace)
                )
            except LockLostError:
                break
        return evicted

    def _may_evict(self, registry: NamespaceRegistry) -> bool:
        view, state = registry.view(), registry.self_preservation()
        with view.lock:
            # Where nobody is registered there is nothing to preserve, and nothing to tell.
            is_active = not state.expiration_enabled and view.leased > 0
        self._note_preservation(registry, is_active=is_active)
        return state.expiration_enabled

    def _note_preservation(self, registry: NamespaceRegistry, *, is_active: bool) -> None:
        """Tell of self-preservation where it was entered or left: in a note, and in the log."""
        namespace = registry.namespace
        notes, name = self._registry.coordination, note_name(namespace)
        was_active = self._preserving.get(namespace)
        if was_active is None:
            was_active = notes.note(name) is not None  # another worker's, or of an earlier start
        if is_active != was_active:
            notes.set_note(name, noted(registry.clock.wall_ms()) if is_active else None)
            sentence = registry.preservation().sentence
            word = "entered" if is_active else "left"
            log.warning("%s self-preservation in %s: %s", word, namespace, sentence)
            kind = HistoryKind.PRESERVATION_ENTERED if is_active else HistoryKind.PRESERVATION_LEFT
            registry.record(kind, _NOBODY, rule="self-preservation", sentence=sentence)
        self._preserving[namespace] = is_active

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


def _evictable(
    registry: NamespaceRegistry, ended: list[tuple[InstanceKey, Lease]]
) -> tuple[list[tuple[InstanceKey, Lease]], int]:
    """Of the ended leases, those whose instances are to go; and how many are held back.

    See ``Instance.expires`` and ``NamespaceRegistry.hold_back``.
    """
    view = registry.view()
    with view.lock:
        found = [(view.get(key), key, lease) for key, lease in ended]
    going, held_back = [], 0
    for instance, key, lease in found:
        if instance is None:
            going.append((key, lease))
        elif instance.expires:
            if registry.is_held_back(instance, lease):
                held_back += 1
            else:
                going.append((key, lease))
    return going, held_back
