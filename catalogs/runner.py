"""Runs each catalog in one worker at a time, and tells of it.

Every worker has a runner; a lock in the store decides which of them runs a catalog, and a dead
worker's lock runs out. Of a running catalog one thread reads the source and another writes to the
registry, so that a burst is read while it is written, and told once.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from catalogs.addresses import Addresses
from catalogs.catalog import Catalog, Entry, Groups, RelistError, SourceError
from catalogs.reconciler import Reconciler
from registry import Registry, StoreError

log = logging.getLogger("catalogs")

LOCK_TTL_MS = 2_000
_TURN_SECS = 0.5
_STOP_SECS = 5.0
_PAUSE_SECS = 0.002
_REFRESH_SECS = 30.0
_BACKOFF_SECS, _MAX_BACKOFF_SECS = 0.25, 15.0
_ORPHANS = "catalogs"
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How one catalog's entries are kept while its source is silent.

    They are marked stale after ``stale_after_secs``, and taken out ``remove_after_secs`` after its
    last word; None: never.
    """

    stale_after_secs: float = 10.0
    remove_after_secs: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a catalog is. Instants are epoch milliseconds, 0 before the first.

    ``lag_ms`` is how long the source's last change took from being known to being listed. Of the
    ``entries`` those are ``shadowed`` whose instances are another's here.
    """

    source: str
    state: str = "starting"
    worker: int = 0
    entries: int = 0
    shadowed: int = 0
    stale: bool = False
    last_success_ms: int = 0
    last_change_ms: int = 0
    lag_ms: float = 0.0
    last_error: str | None = None
    last_error_ms: int = 0
    errors: int = 0
    relists: int = 0
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Inbox:
    """What the reading thread leaves for the writing one. Guarded by ``changed``."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    whole: Groups | None = None
    groups: dict[str, Sequence[Entry] | None] = field(default_factory=dict)
    since: float | None = None
    is_woken: bool = False


class _Run:
    """One catalog while this worker has its lock."""

    def __init__(
        self, registry: Registry, catalog: Catalog, terms: Terms, holds_lock: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._terms = terms
        self._holds_lock = holds_lock
        self._stopping = threading.Event()
        self._inbox = _Inbox()
        self._addresses = Addresses(self._wake)
        self._reconciler = Reconciler(
            registry,
            catalog.source,
            prefers_local=catalog.prefers_local,
            address_of=self._addresses.get,
        )
        self._report = _remembered(registry, catalog.source)
        self._heard = time.monotonic() - self._silence_before()
        self._reporting = threading.Lock()
        self._answers = False
        self._has_forgotten = False
        self._problems: tuple[str, ...] = ()
        self._noted = b""
        self._noted_at = 0.0
        name = catalog.source
        threading.Thread(target=self._read, name=f"read {name}", daemon=True).start()
        self._writer = threading.Thread(target=self._write, name=f"write {name}", daemon=True)
        self._writer.start()

    def _silence_before(self) -> float:
        """How long the source had been silent already, as far as another worker noted it."""
        if not self._report.last_success_ms:
            return 0.0
        return max(0.0, (self._registry.clock.wall_ms() - self._report.last_success_ms) / 1000)

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()
        self._catalog.close()
        self._addresses.close()
        self._wake()

    def join(self, secs: float) -> None:
        """Wait until nothing is written any more, so long at most.

        The reading thread may still wait for its source; nobody takes up what it gets.
        """
        self._writer.join(max(0.0, secs))

    def has_ended(self) -> bool:
        return not self._writer.is_alive()

    # The reading thread

    def _read(self) -> None:
        backoff = _BACKOFF_SECS
        while not self._stopping.is_set():
            try:
                groups = self._catalog.list()
                self._tell(groups, whole=True)
                backoff = _BACKOFF_SECS
                for groups in self._catalog.watch(self._stopping):
                    self._tell(groups, whole=False)
            except RelistError as error:
                log.info("%s is listed again: %s", self._catalog.source, error)
                with self._reporting:
                    self._report = replace(self._report, relists=self._report.relists + 1)
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._failed(error)
                # At random, so that many readers of one source do not all come back at once.
                self._stopping.wait(backoff * random.uniform(0.5, 1.0))
                backoff = min(_MAX_BACKOFF_SECS, backoff * 2)

    def _tell(self, groups: Groups, *, whole: bool) -> None:
        if not self._answers:
            log.info("%s answers", self._catalog.source)
        self._answers = True
        self._heard = time.monotonic()
        self._problems = tuple(self._catalog.problems[:_MAX_PROBLEMS])
        inbox = self._inbox
        with inbox.changed:
            if whole:
                inbox.whole = groups
                inbox.groups.clear()
            else:
                inbox.groups.update(groups)
            if inbox.since is None and (whole or groups):
                inbox.since = time.monotonic()
            if whole or groups:
                inbox.changed.notify()

    def _failed(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not isinstance(error, SourceError):
            log.exception("%s failed in an unforeseen way", self._catalog.source)
            text = f"{type(error).__name__}: {text}"
        elif self._answers or text != self._report.last_error:
            log.warning("%s does not answer, what it brought stays: %s", self._catalog.source, text)
        self._answers = False
        with self._reporting:
            self._report = replace(
                self._report,
                last_error=text,
                last_error_ms=self._registry.clock.wall_ms(),
                errors=self._report.errors + 1,
            )

    # The writing thread

    def _wake(self) -> None:
        with self._inbox.changed:
            self._inbox.is_woken = True
            self._inbox.changed.notify()

    def _write(self) -> None:
        refreshed = 0.0
        hosts: set[str] = set()
        while not self._stopping.is_set():
            since = self._take()
            try:
                wanted = self._reconciler.hosts()
                now = time.monotonic()
                if wanted - hosts or now > refreshed + _REFRESH_SECS:
                    hosts, refreshed = wanted, now
                    self._addresses.refresh(wanted)
                    if since is not None:
                        # Most names are known in a moment, and an address is told once then.
                        self._stopping.wait(0.05)
                self._age()
                outcome = self._reconciler.reconcile(self._goes_on)
                if outcome.listed or outcome.removed:
                    self._changed(since, outcome.listed, outcome.removed)
                self._note()
            except StoreError as error:
                log.warning("%s: the store does not answer: %s", self._catalog.source, error)
                self._stopping.wait(_TURN_SECS)
            except Exception:
                log.exception("%s: its entries cannot be written", self._catalog.source)
                self._stopping.wait(_TURN_SECS)

    def _take(self) -> float | None:
        """Wait for something to do, or for half a second; since when it has been known."""
        inbox = self._inbox
        with inbox.changed:
            if inbox.whole is None and not inbox.groups and not inbox.is_woken:
                inbox.changed.wait(_TURN_SECS)
            whole, inbox.whole = inbox.whole, None
            groups, inbox.groups = inbox.groups, {}
            since, inbox.since = inbox.since, None
            woken, inbox.is_woken = inbox.is_woken, False
        if whole is not None:
            self._reconciler.replace(whole)
        if groups:
            self._reconciler.change(groups)
        if woken:
            self._reconciler.addresses_changed()
        return since

    def _age(self) -> None:
        silent = 0.0 if self._answers else time.monotonic() - self._heard
        is_stale = silent > self._terms.stale_after_secs
        if is_stale != self._report.stale:
            self._tell_report(stale=is_stale)
            state = "stale" if is_stale else "fresh again"
            log.warning("the entries of %s are %s", self._catalog.source, state)
        self._reconciler.set_stale(is_stale)
        limit = self._terms.remove_after_secs
        if limit is None or silent <= limit:
            self._has_forgotten = False
        elif not self._has_forgotten:
            gone = self._reconciler.forget(self._goes_on).removed
            self._has_forgotten = not self._reconciler.has_due()
            log.error(
                "%s has been silent for %.0f s: %d entries go", self._catalog.source, silent, gone
            )

    def _goes_on(self) -> bool:
        if self._stopping.is_set() or not self._holds_lock():
            return False
        time.sleep(_PAUSE_SECS)
        return True

    def _changed(self, since: float | None, listed: int, removed: int) -> None:
        now = self._registry.clock.wall_ms()
        lag = self._report.lag_ms if since is None else (time.monotonic() - since) * 1000
        self._tell_report(last_change_ms=now, lag_ms=round(lag, 1))
        log.info("%s: %d listed, %d removed", self._catalog.source, listed, removed)

    def _note(self) -> None:
        """Leave the report for every worker, each second and where it says something new."""
        heard_ms = self._registry.clock.wall_ms() - int((time.monotonic() - self._heard) * 1000)
        silent = not self._answers
        state = "stale" if self._report.stale else "failing" if silent else "following"
        if not self._report.last_success_ms and silent and not self._report.last_error:
            state = "starting"
        self._tell_report(
            state=state,
            worker=os.getpid(),
            entries=self._reconciler.size(),
            shadowed=self._reconciler.shadowed(),
            problems=self._problems + self._unresolved(),
        )
        value = orjson.dumps(asdict(self._report))
        now = time.monotonic()
        if value != self._noted or now > self._noted_at + 1.0:
            if self._answers:
                self._tell_report(last_success_ms=heard_ms)
            self._noted, self._noted_at = value, now
            name = _note_name(self._catalog.source)
            self._registry.store.set_note(name, orjson.dumps(asdict(self._report)))

    def _tell_report(self, **changes: Any) -> None:
        with self._reporting:  # the reading thread counts errors in it
            self._report = replace(self._report, **changes)

    def _unresolved(self) -> tuple[str, ...]:
        failed = [h for h in sorted(self._reconciler.hosts()) if self._addresses.has_failed(h)]
        return tuple(f"the name {host} has no address" for host in failed[:_MAX_PROBLEMS])


def _note_name(source: str) -> str:
    return f"catalog:{source}"


def _remembered(registry: Registry, source: str) -> Report:
    """What was last noted of a catalog, by whichever worker ran it."""
    try:
        stored = registry.store.note(_note_name(source))
        if stored is not None:
            told = orjson.loads(stored)
            return Report(**{**told, "problems": tuple(told["problems"])})
    except (StoreError, TypeError, KeyError, ValueError) as error:
        log.debug("no report of %s: %s", source, error)
    return Report(source=source)


class Runner:
    """All catalogs of this server, as far as this worker has their locks."""

    def __init__(
        self, registry: Registry, catalogs: Sequence[tuple[Callable[[], Catalog], str, Terms]]
    ) -> None:
        """Each catalog: how it is made, its source, its terms. Nothing runs before ``start``."""
        self._registry = registry
        self._catalogs = catalogs
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._runs: dict[str, _Run] = {}
        self._held_until: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_swept = False
        self._failing = False

    def start(self) -> None:
        """Run in the background until ``stop``."""
        self._thread = threading.Thread(target=self._supervise, name="catalogs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and give the locks back so that another worker goes on at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECS)
        for run in self._runs.values():
            run.stop()
        until = time.monotonic() + _STOP_SECS
        for run in self._runs.values():
            run.join(until - time.monotonic())
        for source, run in self._runs.items():
            # One that cannot be stopped keeps its lock until that runs out.
            if run.has_ended():
                self._release(source)
        self._release(_ORPHANS)

    def reports(self) -> list[Report]:
        """How each catalog is, whichever worker runs it."""
        return [_remembered(self._registry, source) for _, source, _ in self._catalogs]

    def _release(self, name: str) -> None:
        try:
            self._registry.store.release(_note_name(name), self._owner)
        except StoreError as error:
            log.warning("the lock of %s is left to time out: %s", name, error)

    def _supervise(self) -> None:
        while True:
            try:
                self._turn()
                self._failing = False
            except StoreError as error:
                if not self._failing:
                    log.warning("catalogs wait while the store fails: %s", error)
                self._failing = True
            if self._stopping.wait(_TURN_SECS):
                return

    def _turn(self) -> None:
        for make, source, terms in self._catalogs:
            holds = self._acquire(source)
            run = self._runs.get(source)
            if run is not None and (not holds or run.has_ended()):
                log.warning("%s is left to another worker", source)
                run.stop()
                del self._runs[source]
            elif run is None and holds and not self._stopping.is_set():
                log.info("%s runs in this worker", source)
                catalog = make()
                self._runs[source] = _Run(
                    self._registry,
                    catalog,
                    terms,
                    lambda source=source: self._holds(source),  # type: ignore[misc]
                )
        if not self._has_swept and self._acquire(_ORPHANS):
            self._sweep()
            self._has_swept = True

    def _acquire(self, name: str) -> bool:
        now = self._registry.clock.mono_ms()
        holds = self._registry.store.acquire(_note_name(name), self._owner, now, LOCK_TTL_MS)
        self._held_until[name] = now + LOCK_TTL_MS if holds else 0
        return holds

    def _holds(self, source: str) -> bool:
        """Whether the lock is surely held still: a worker that was stopped for a while lost it."""
        return self._registry.clock.mono_ms() < self._held_until.get(source, 0) - LOCK_TTL_MS // 4

    def _sweep(self) -> None:
        """Take out what catalogs brought that are not set up any more."""
        known = {source for _, source, _ in self._catalogs}
        for namespace in self._registry.namespaces():
            view = self._registry.view(namespace)
            with view.lock:
                orphans = [
                    instance
                    for application in view.applications.values()
                    for instance in application.values()
                    if not instance.is_leased and instance.source not in known
                ]
            for instance in orphans:
                self._registry.cancel(
                    instance.app, instance.id, source=instance.source, namespace=namespace
                )
            if orphans:
                log.warning("%d entries go: their catalogs are not set up any more", len(orphans))
