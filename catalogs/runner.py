"""Runs each catalog in one worker at a time, and tells of it.

Every worker has a runner; a lock in the store decides which of them runs a catalog, and a dead
worker's lock runs out. Of a running catalog one thread makes it and reads the source, and another
writes to the registry, so that a burst is read while it is written, and told once. Whatever goes
wrong in the one or in the other is that catalog's alone: it is told, and tried again.
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
from functools import partial
from itertools import islice
from typing import Any

import orjson

from catalogs.addresses import Addresses
from catalogs.bounds import LONGEST_SECS, in_bounds
from catalogs.catalog import QUIET_SECS, Catalog, Entry, Groups, RelistError, SourceError
from catalogs.reconciler import Reconciler
from eureka_http.shown import escaped, masked
from registry import DEFAULT_NAMESPACE, Fence, Registry, StoreError

log = logging.getLogger("catalogs")

LOCK_TTL_MS = 2_000
_TURN_SECS = 0.5
_STOP_SECS = 5.0
_PAUSE_SECS = 0.002
_REFRESH_SECS = 30.0
_BACKOFF_SECS, _MAX_BACKOFF_SECS = 0.25, 15.0
_LIST_SECS = 1.0  # between two lists, where a source has one begun again and again
_ORPHANS = "catalogs"
_MAX_PROBLEMS = 20
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How one catalog's entries are kept while its source is silent.

    They are marked stale after ``stale_after_secs``, and taken out ``remove_after_secs`` after its
    last word; None: never.
    """

    stale_after_secs: float = 10.0
    remove_after_secs: float | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense; ``ValueError``."""
        in_bounds("stale_after_secs", self.stale_after_secs, 0.1, LONGEST_SECS)
        if self.remove_after_secs is not None:
            in_bounds("remove_after_secs", self.remove_after_secs, 0.1, LONGEST_SECS)


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


SetUp = tuple[Callable[[], Catalog], str, Terms]
"""A catalog as it is set up: how it is made, its source, its terms."""


@dataclass(slots=True)
class _Inbox:
    """What the reading thread leaves for the writing one. Guarded by ``changed``."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    whole: Groups | None = None
    groups: dict[str, Sequence[Entry] | None] = field(default_factory=dict)
    prefers_local: bool = False
    quiet_secs: float = QUIET_SECS
    since: float | None = None
    is_woken: bool = False


class _Run:
    """One catalog while this worker has its lock."""

    def __init__(
        self,
        registry: Registry,
        set_up: SetUp,
        lock: Callable[[], Fence | None],
        is_open: bool,
    ) -> None:
        self._registry = registry
        self._make, self._source, self._terms = set_up
        self._lock = lock
        self._is_open = is_open
        self._stopping = threading.Event()
        self._inbox = _Inbox()
        self._catalog: Catalog | None = None
        self._addresses = Addresses(self._wake)
        self._reconciler = Reconciler(registry, self._source, address_of=self._addresses.get)
        self._report = _remembered(registry, self._source)
        self._heard = time.monotonic() - self._silence_before()
        self._reporting = threading.Lock()
        self._answers = False
        self._has_forgotten = False
        self._problems: tuple[str, ...] = ()
        self._logged: frozenset[str] = frozenset()
        self._cannot_write = ""
        self._noted = b""
        self._noted_at = 0.0
        name = self._source
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
        self._close()
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
            began = time.monotonic()
            try:
                catalog = self._made()
                groups = catalog.list()
                self._leave(catalog, groups, whole=True)
                backoff = _BACKOFF_SECS
                for groups in catalog.watch(self._stopping):
                    self._leave(catalog, groups, whole=False)
            except RelistError as error:
                log.info("%s is listed again: %s", self._source, _one_line(error))
                with self._reporting:
                    self._report = replace(self._report, relists=self._report.relists + 1)
                self._stopping.wait(began + _LIST_SECS - time.monotonic())
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._failed(error)
                # At random, so that many readers of one source do not all come back at once.
                self._stopping.wait(backoff * random.uniform(0.5, 1.0))
                backoff = min(_MAX_BACKOFF_SECS, backoff * 2)

    def _made(self) -> Catalog:
        """The catalog, made where it is not yet there."""
        if self._catalog is None:
            self._catalog = self._make()
            if self._stopping.is_set():
                self._close()  # it was told to stop meanwhile, when there was nothing to close
        return self._catalog

    def _close(self) -> None:
        if self._catalog is not None:
            try:
                self._catalog.close()
            except Exception as error:
                log.warning("%s does not close: %s", self._source, _one_line(error))

    def _leave(self, catalog: Catalog, groups: Groups, *, whole: bool) -> None:
        """Leave for the writing thread what the source has just told."""
        if not self._answers:
            log.info("%s answers", self._source)
        self._answers = True
        self._heard = time.monotonic()
        self._problems = tuple(catalog.problems[:_MAX_PROBLEMS])
        inbox = self._inbox
        with inbox.changed:
            inbox.prefers_local, inbox.quiet_secs = catalog.prefers_local, catalog.quiet_secs
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
        text, is_known = _one_line(error), isinstance(error, SourceError)
        if self._answers or text != self._report.last_error:
            log.log(
                logging.WARNING if is_known else logging.ERROR,
                "%s does not answer, what it brought stays: %s",
                self._source,
                text,
                exc_info=None if is_known else error,
            )
        self._answers = False
        self._note_error(text)

    def _note_error(self, text: str) -> None:
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
            try:
                since = self._collect()
                wanted = self._reconciler.hosts()
                now = time.monotonic()
                if wanted - hosts or now > refreshed + _REFRESH_SECS:
                    hosts, refreshed = wanted, now
                    self._addresses.refresh(wanted)
                    self._reconciler.try_refused_again()
                    if since is not None:
                        # Most names are known in a moment, and an address is told once then.
                        self._stopping.wait(0.05)
                self._age()
                outcome = self._reconciler.reconcile(self._held)
                if outcome.listed or outcome.removed:
                    self._changed(since, outcome.listed, outcome.removed)
                self._note()
                self._cannot_write = ""
            except Exception as error:
                self._failed_to_write(error)
                self._stopping.wait(_TURN_SECS)

    def _failed_to_write(self, error: Exception) -> None:
        text, is_known = _one_line(error), isinstance(error, StoreError)
        if text != self._cannot_write:
            log.log(
                logging.WARNING if is_known else logging.ERROR,
                "%s: its entries cannot be written: %s",
                self._source,
                text,
                exc_info=None if is_known else error,
            )
            self._note_error(f"its entries cannot be written: {text}")
        self._cannot_write = text

    def _collect(self) -> float | None:
        """Wait for something to do, or for half a second; since when it has been known."""
        inbox = self._inbox
        with inbox.changed:
            if inbox.whole is None and not inbox.groups and not inbox.is_woken:
                inbox.changed.wait(_TURN_SECS)
            whole, inbox.whole = inbox.whole, None
            groups, inbox.groups = inbox.groups, {}
            since, inbox.since = inbox.since, None
            woken, inbox.is_woken = inbox.is_woken, False
            self._reconciler.prefers_local = inbox.prefers_local
        if whole is not None:
            self._reconciler.replace(whole)
        if groups:
            self._reconciler.change(groups)
        if woken:
            self._reconciler.addresses_changed()
        return since

    def _age(self) -> None:
        silent = time.monotonic() - self._heard
        if silent > self._inbox.quiet_secs and (self._answers or not self._report.errors):
            # As a folder of a file server that is gone: whoever reads it cannot even say so.
            self._failed(SourceError(f"not a word for {silent:.0f} s"))
        silent = 0.0 if self._answers else silent
        is_stale = silent > self._terms.stale_after_secs
        if is_stale != self._report.stale:
            self._tell_report(stale=is_stale)
            state = "stale" if is_stale else "fresh again"
            log.warning("the entries of %s are %s", self._source, state)
        self._reconciler.set_stale(is_stale)
        limit = self._terms.remove_after_secs
        if limit is None or silent <= limit:
            self._has_forgotten = False
        elif not self._has_forgotten:
            gone = self._reconciler.forget(self._held).removed
            self._has_forgotten = not self._reconciler.has_due()
            log.error("%s has been silent for %.0f s: %d entries go", self._source, silent, gone)

    def _held(self) -> Fence | None:
        """The lock, while it is held and there is no stop."""
        fence = None if self._stopping.is_set() else self._lock()
        if fence is not None:
            time.sleep(_PAUSE_SECS)
        return fence

    def _changed(self, since: float | None, listed: int, removed: int) -> None:
        now = self._registry.clock.wall_ms()
        lag = self._report.lag_ms if since is None else (time.monotonic() - since) * 1000
        self._tell_report(last_change_ms=now, lag_ms=round(lag, 1))
        log.info("%s: %d listed, %d removed", self._source, listed, removed)

    def _note(self) -> None:
        """Leave the report for every worker, each second and where it says something new."""
        heard_ms = self._registry.clock.wall_ms() - int((time.monotonic() - self._heard) * 1000)
        silent = not self._answers
        state = "stale" if self._report.stale else "failing" if silent else "following"
        if not self._report.last_success_ms and silent and not self._report.last_error:
            state = "starting"
        problems = (*self._problems, *self._unresolved(), *self._refused(), *self._unseen())
        shown = tuple(_printable(text) for text in problems[:_MAX_PROBLEMS])
        for text in shown:
            if text not in self._logged:
                log.warning("%s: %s", self._source, text)
        self._logged = frozenset(shown)
        self._tell_report(
            state=state,
            worker=os.getpid(),
            entries=self._reconciler.size(),
            shadowed=self._reconciler.shadowed(),
            problems=shown,
        )
        value = orjson.dumps(asdict(self._report))
        now = time.monotonic()
        if value != self._noted or now > self._noted_at + 1.0:
            if self._answers:
                self._tell_report(last_success_ms=heard_ms)
            self._noted, self._noted_at = value, now
            name = _note_name(self._source)
            self._registry.coordination.set_note(name, orjson.dumps(asdict(self._report)))

    def _tell_report(self, **changes: Any) -> None:
        with self._reporting:  # the reading thread counts errors in it
            self._report = replace(self._report, **changes)

    def _unresolved(self) -> tuple[str, ...]:
        failed = [h for h in sorted(self._reconciler.hosts()) if self._addresses.has_failed(h)]
        return tuple(f"the name {host} has no address" for host in failed[:_MAX_PROBLEMS])

    def _refused(self) -> tuple[str, ...]:
        return tuple(islice(self._reconciler.refused(), _MAX_PROBLEMS))

    def _unseen(self) -> tuple[str, ...]:
        """What is listed where nobody can look: without accounts there is one namespace."""
        if not self._is_open:
            return ()
        return tuple(
            f"{group} is in the namespace {namespace}, and nobody sees it: without accounts there "
            f"is {DEFAULT_NAMESPACE} alone"
            for namespace, group in sorted(self._reconciler.namespaces().items())
            if namespace != DEFAULT_NAMESPACE
        )


def _printable(text: str) -> str:
    """A text as a report can have it: without secrets, on one line, and of bounded length."""
    told = escaped(masked(text))
    return told if len(told) <= _MAX_TEXT else f"{told[:_MAX_TEXT]}…"


def _one_line(error: Exception) -> str:
    text = _printable(" ".join(str(error).split()))
    if isinstance(error, SourceError | RelistError | StoreError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _note_name(source: str) -> str:
    return f"catalog:{source}"


def _remembered(registry: Registry, source: str) -> Report:
    """What was last noted of a catalog, by whichever worker ran it."""
    try:
        stored = registry.coordination.note(_note_name(source))
        if stored is not None:
            told = orjson.loads(stored)
            return Report(**{**told, "problems": tuple(told["problems"])})
    except (StoreError, TypeError, KeyError, ValueError) as error:
        log.debug("no report of %s: %s", source, error)
    return Report(source=source)


class Runner:
    """All catalogs of this server, as far as this worker has their locks."""

    def __init__(
        self, registry: Registry, catalogs: Sequence[SetUp], *, is_open: bool = False
    ) -> None:
        """Nothing runs before ``start``.

        ``is_open``: there are no accounts, so that nobody sees any namespace but the default one.
        """
        self._registry = registry
        self._catalogs = catalogs
        self._is_open = is_open
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._runs: dict[str, _Run] = {}
        self._held: dict[str, tuple[Fence, int]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_swept = False
        self._problem: dict[str, str] = {}

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
            self._registry.coordination.release(_note_name(name), self._owner)
        except StoreError as error:
            log.warning("the lock of %s is left to time out: %s", name, error)

    def _supervise(self) -> None:
        while True:
            for set_up in self._catalogs:
                self._guarded(set_up[1], partial(self._turn, set_up))
            self._guarded(_ORPHANS, self._sweep)
            if self._stopping.wait(_TURN_SECS):
                return

    def _guarded(self, name: str, turn: Callable[[], None]) -> None:
        """What goes wrong with one catalog is told once, and holds up no other."""
        try:
            turn()
            self._problem.pop(name, None)
        except Exception as error:
            text = _one_line(error)
            if self._problem.get(name) != text:
                is_known = isinstance(error, StoreError)
                log.log(
                    logging.WARNING if is_known else logging.ERROR,
                    "%s waits, and is tried again: %s",
                    name,
                    text,
                    exc_info=None if is_known else error,
                )
            self._problem[name] = text

    def _turn(self, set_up: SetUp) -> None:
        source = set_up[1]
        holds = self._acquire(source) is not None
        run = self._runs.get(source)
        if run is not None and (not holds or run.has_ended()):
            log.warning("%s is left to another worker", source)
            del self._runs[source]
            run.stop()
        elif run is None and holds and not self._stopping.is_set():
            log.info("%s runs in this worker", source)
            self._runs[source] = _Run(
                self._registry, set_up, lambda: self._fence(source), self._is_open
            )

    def _acquire(self, name: str) -> Fence | None:
        now, lock = self._registry.clock.mono_ms(), _note_name(name)
        token = self._registry.coordination.acquire(lock, self._owner, now, LOCK_TTL_MS)
        if token is None:
            self._held.pop(name, None)
            return None
        fence = Fence(lock, token)
        self._held[name] = (fence, now + LOCK_TTL_MS)
        return fence

    def _fence(self, source: str) -> Fence | None:
        """The lock, where it is surely held still: a worker that was stopped for a while lost it.

        Sure as of now; what is written behind the fence is refused once another has the lock.
        """
        held = self._held.get(source)
        if held is None or self._registry.clock.mono_ms() >= held[1] - LOCK_TTL_MS // 4:
            return None
        return held[0]

    def _sweep(self) -> None:
        """Take out what catalogs brought that are not set up any more, once."""
        fence = None if self._has_swept else self._acquire(_ORPHANS)
        if fence is None:
            return
        known = {source for _, source, _ in self._catalogs}
        for namespace in self._registry.namespaces():
            registry = self._registry.in_namespace(namespace)
            view = registry.view()
            with view.lock:
                orphans = [
                    instance
                    for application in view.applications.values()
                    for instance in application.values()
                    if not instance.is_leased and instance.source not in known
                ]
            gone = sum(registry.cancel(i.app, i.id, source=i.source, fence=fence) for i in orphans)
            if gone:
                log.warning("%d entries go: their catalogs are not set up any more", gone)
        self._has_swept = True
