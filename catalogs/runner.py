"""Runs each catalog in one worker at a time, and reports on it.

Every worker has a ``Runner``. A lock in the store decides which of them runs a catalog; the lock of
a worker that died expires. A running catalog has two threads: one builds the catalog and reads its
source, the other writes to the registry. So a burst of changes is read on while it is being
written, and an entry that changes several times meanwhile is written once. An error in one catalog
is logged and retried, and never affects another.
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

_LOCK_TTL_MS = 2_000
_TURN_SECS = 0.5
_STOP_SECS = 5.0
_PAUSE_SECS = 0.002
_REFRESH_SECS = 30.0
_BACKOFF_SECS, _MAX_BACKOFF_SECS = 0.25, 15.0
_LIST_SECS = 1.0  # at least between two lists of a source that asks for one again and again
_ORPHANS = "catalogs"
_MAX_PROBLEMS = 20
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How one catalog's entries are kept while its source is silent.

    They are marked stale after ``stale_after_secs`` of silence, and removed after
    ``remove_after_secs``; None means never.
    """

    stale_after_secs: float = 10.0
    remove_after_secs: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of bounds; ``ValueError``."""
        in_bounds("stale_after_secs", self.stale_after_secs, 0.1, LONGEST_SECS)
        if self.remove_after_secs is not None:
            in_bounds("remove_after_secs", self.remove_after_secs, 0.1, LONGEST_SECS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The state of a catalog. Instants are epoch milliseconds, 0 if it has not happened.

    ``lag_ms``: from the arrival of the source's last change until it was listed.
    ``shadowed``: how many of the ``entries`` are not listed because another source owns the
    instance.
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
"""A catalog as it is set up: a function that builds it, its source, its terms."""


@dataclass(slots=True)
class _Inbox:
    """What the reading thread passes to the writing thread. Guarded by ``changed``."""

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
        """Seconds of silence before this run, according to the last worker's report."""
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
        """Wait until nothing is written any more, for ``secs`` at most.

        The reading thread may still be waiting for its source; its result is discarded.
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
                # With jitter, so that many readers of one source do not all return at once.
                self._stopping.wait(backoff * random.uniform(0.5, 1.0))
                backoff = min(_MAX_BACKOFF_SECS, backoff * 2)

    def _made(self) -> Catalog:
        """The catalog, built at the first call."""
        if self._catalog is None:
            self._catalog = self._make()
            if self._stopping.is_set():
                self._close()  # ``stop`` came while it was built, and had nothing to close
        return self._catalog

    def _close(self) -> None:
        if self._catalog is not None:
            try:
                self._catalog.close()
            except Exception as error:
                log.warning("%s does not close: %s", self._source, _one_line(error))

    def _leave(self, catalog: Catalog, groups: Groups, *, whole: bool) -> None:
        """Pass on to the writing thread what the source has just reported."""
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
        text = _one_line(error)
        if self._answers or text != self._report.last_error:
            _log_failure(
                error, SourceError, "%s does not answer, its entries stay: %s", self._source, text
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
                        # Most lookups end in a moment, and then an entry is written once.
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
        text = _one_line(error)
        if text != self._cannot_write:
            _log_failure(
                error, StoreError, "%s: its entries cannot be written: %s", self._source, text
            )
            self._note_error(f"its entries cannot be written: {text}")
        self._cannot_write = text

    def _collect(self) -> float | None:
        """Take what the reading thread has left, waiting half a second at most; since when."""
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
            # The reading thread hangs, as on a file server that is gone.
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
        """The fence of the lock; None if it is lost, or after ``stop``. Pauses between batches."""
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
        """Store the report for all workers, if it has changed or is a second old."""
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
        """Entries in namespaces that nobody can see: without accounts there is only one."""
        if not self._is_open:
            return ()
        return tuple(
            f"{group} is in the namespace {namespace}, and nobody sees it: without accounts there "
            f"is {DEFAULT_NAMESPACE} alone"
            for namespace, group in sorted(self._reconciler.namespaces().items())
            if namespace != DEFAULT_NAMESPACE
        )


def _printable(text: str) -> str:
    """A text for the report: without secrets, on one line, and of bounded length."""
    told = escaped(masked(text))
    return told if len(told) <= _MAX_TEXT else f"{told[:_MAX_TEXT]}…"


def _one_line(error: Exception) -> str:
    text = _printable(" ".join(str(error).split()))
    if isinstance(error, SourceError | RelistError | StoreError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _log_failure(
    error: Exception, foreseen: type[Exception], message: str, name: str, text: str
) -> None:
    """Log a foreseen error as a warning, and any other one with its traceback."""
    is_foreseen = isinstance(error, foreseen)
    log.log(
        logging.WARNING if is_foreseen else logging.ERROR,
        message,
        name,
        text,
        exc_info=None if is_foreseen else error,
    )


def _note_name(source: str) -> str:
    return f"catalog:{source}"


def _remembered(registry: Registry, source: str) -> Report:
    """The last stored report of a catalog, whichever worker ran it."""
    try:
        stored = registry.coordination.note(_note_name(source))
        if stored is not None:
            told = orjson.loads(stored)
            return Report(**{**told, "problems": tuple(told["problems"])})
    except (StoreError, TypeError, KeyError, ValueError) as error:
        log.debug("no report of %s: %s", source, error)
    return Report(source=source)


class Runner:
    """Runs those catalogs of this server whose locks this worker has."""

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
        """Stop, and release the locks so that another worker continues at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECS)
        for run in self._runs.values():
            run.stop()
        until = time.monotonic() + _STOP_SECS
        for run in self._runs.values():
            run.join(until - time.monotonic())
        for source, run in self._runs.items():
            # One that does not stop in time keeps its lock until it expires.
            if run.has_ended():
                self._release(source)
        self._release(_ORPHANS)

    def reports(self) -> list[Report]:
        """The report of each catalog, whichever worker runs it."""
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
        """Run a turn of one catalog; an error is logged once, and affects no other catalog."""
        try:
            turn()
            self._problem.pop(name, None)
        except Exception as error:
            text = _one_line(error)
            if self._problem.get(name) != text:
                _log_failure(error, StoreError, "%s waits, and is tried again: %s", name, text)
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
        token = self._registry.coordination.acquire(lock, self._owner, now, _LOCK_TTL_MS)
        if token is None:
            self._held.pop(name, None)
            return None
        fence = Fence(lock, token)
        self._held[name] = (fence, now + _LOCK_TTL_MS)
        return fence

    def _fence(self, source: str) -> Fence | None:
        """The fence, if the lock is certainly still held: a paused worker may have lost it.

        Even if it is lost right afterwards, the store refuses a write with an old fence.
        """
        held = self._held.get(source)
        if held is None or self._registry.clock.mono_ms() >= held[1] - _LOCK_TTL_MS // 4:
            return None
        return held[0]

    def _sweep(self) -> None:
        """Remove, once, the entries of catalogs that are no longer set up."""
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
