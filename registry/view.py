"""The in-memory picture of a namespace that each worker keeps, following the change log.

``sync`` asks the store whether its revision moved and applies what is new, so whatever one worker
accepted is in the next answer of every other. All reads of one answer happen while holding
``lock``: they see one immutable moment.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from registry.changes import ChangeLog
from registry.errors import StoreError
from registry.listing import Listing
from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Namespace,
    Revision,
    Snapshot,
    at_revision,
)
from registry.store import Commit, Records

_K = TypeVar("_K")
_V = TypeVar("_V")
_LARGE_VIPS = 256
# So much is made for an answer at once; where there is more, little by little.
_MADE_AT_ONCE = 16
_PREPARED_AT_MOST = 3
_PAUSE_SECS = 0.0001
# After a load of so many nobody looks for garbage among them again.
_MANY = 10_000
_NOBODY: Mapping[str, Instance] = {}
# Of two views of a namespace, one after the other, none has a version of the other's.
_FIRST_VERSIONS = itertools.count(0, 1 << 40)


class NotYetError(Exception):
    """An answer takes longer than it may where it was asked for."""


class View:
    """One namespace as of ``revision``. ``lock`` guards everything; hold it while reading."""

    def __init__(self, records: Records, namespace: Namespace, retention_ms: int) -> None:
        """Keep changes for ``retention_ms`` for the delta. Call ``sync`` before the first read."""
        self.lock = threading.RLock()
        self.namespace = namespace
        self._records = records
        self._retention_ms = retention_ms
        self.is_loaded = False
        """Whether the store was ever read."""
        self._shortest_lease_secs: int | None = None
        self._preparing = threading.Lock()
        self.version = next(_FIRST_VERSIONS)
        """Grows with every change that this process sees, and with each that it may have missed."""
        self._running = 0
        self._clear()

    def _clear(self) -> None:
        self.revision = Revision(0)
        self.listing = Listing()
        self.applications = self.listing.applications
        self.overrides: dict[str, InstanceStatus] = {}
        self.leased = 0
        self._ids: dict[str, dict[str, None]] = {}
        self._vips: dict[str, dict[InstanceKey, None]] = {}
        self._secure_vips: dict[str, dict[InstanceKey, None]] = {}
        self._large_vips: dict[tuple[bool, str], Listing] = {}
        self._log = ChangeLog(self.revision)
        self.changed = Listing()
        """What changed in the window, each as it is after its last change."""

    def sync(self) -> bool:
        """Catch up with the store, and say whether there was anything to catch up with.

        ``StoreError`` (and an unchanged view) if it does not answer.
        """
        revision = self._records.revision(self.namespace)
        if revision == self.revision and self.is_loaded:
            return False
        with self.lock:
            changes = None
            if self.is_loaded:
                if revision < self.revision:
                    # Another thread caught up while this one waited for the lock.
                    revision = self._records.revision(self.namespace)
                if revision == self.revision:
                    return False
                changes = self._records.changes(self.namespace, self.revision)
            if changes is None:
                self._load()
            else:
                for change in changes:
                    self._apply(change)
        return True

    def follow_all(self, commits: Sequence[Commit], revisions: Sequence[Revision | None]) -> None:
        """Apply this worker's own commits, as far as they are next, without reading them back."""
        at_mono_ms = at_running_ms = -1
        with self.lock:
            for commit, revision in zip(commits, revisions, strict=True):
                if revision is None:
                    continue
                if not self.is_loaded or revision != self.revision + 1:
                    return
                instance = commit.instance
                if commit.at_mono_ms != at_mono_ms:
                    at_mono_ms = commit.at_mono_ms
                    at_running_ms = self._running_ms(at_mono_ms)
                self._apply(
                    Change(
                        revision,
                        at_running_ms,
                        None if instance is None else at_revision(instance, revision),
                        commit.remove,
                        commit.evicted,
                        commit.override,
                    )
                )

    def _load(self) -> None:
        with _without_looking_for_garbage():
            self._take(self._records.load(self.namespace))
            if self.listing.size >= _MANY:
                gc.freeze()

    def _take(self, snapshot: Snapshot) -> None:
        self._clear()
        self._log = ChangeLog(snapshot.complete_after)
        self.listing = Listing(snapshot.instances)
        self.applications = self.listing.applications
        for instance in snapshot.instances:
            self._index(instance)
        self.overrides = dict(snapshot.overrides)
        for change in snapshot.changes:
            self._log.put(change)
        told = [change.instance for change in self._log.all()]
        self.changed = Listing(instance for instance in told if instance is not None)
        self.version += 1
        self.revision = snapshot.revision
        self.is_loaded = True

    def _apply(self, change: Change) -> None:
        if change.revision <= self.revision:
            return
        instance = change.instance
        if instance is not None:
            if change.removed:
                self._take_out(instance.key)
            else:
                self._put(instance)
        override = change.override
        if override is not None:
            if override.status is None:
                self.overrides.pop(override.id, None)
            else:
                self.overrides[override.id] = override.status
        self._remember(change)
        self.version += 1
        self.revision = change.revision

    def _remember(self, change: Change) -> None:
        if change.instance is not None:
            self.changed.put(change.instance)
        for forgotten in self._log.put(change):
            self._drop(forgotten)

    def forget(self, now_mono_ms: int, at_most: int) -> bool:
        """Let go of so many of the changes that are older than the window; whether some remain.

        To be called now and then, since what has gathered by the next read costs that read.
        """
        with self.lock:
            self._forget(now_mono_ms, at_most)
            oldest = self._log.oldest()
            return oldest is not None and oldest.at_running_ms < self._window(now_mono_ms)

    def _window(self, now_mono_ms: int) -> int:
        """When the retention window begins, in running time."""
        return self._running_ms(now_mono_ms) - self._retention_ms

    def _running_ms(self, now_mono_ms: int) -> int:
        """The server's running time; it stands still while the store does not answer."""
        try:
            self._running = self._records.running_ms(now_mono_ms)
        except StoreError:
            return self._running
        return self._running

    def _forget(self, now_mono_ms: int, at_most: int | None = None) -> None:
        """Let go of the changes that are older than the retention window."""
        before = self._window(now_mono_ms)
        while (oldest := self._log.oldest()) and oldest.at_running_ms < before and at_most != 0:
            at_most = None if at_most is None else at_most - 1
            self._drop(self._log.forget_oldest())

    def _drop(self, change: Change) -> None:
        """No longer tell of a change."""
        if change.instance is not None:
            self.changed.remove(change.instance.key)

    def _put(self, instance: Instance) -> None:
        before = self.applications.get(instance.app, _NOBODY).get(instance.id)
        if (
            before is not None
            and before.source == instance.source
            and before.vip_address == instance.vip_address
            and before.secure_vip_address == instance.secure_vip_address
        ):
            # It stands in the same places as before.
            self._note_lease(instance)
            self.listing.put(instance)
            for listing in self._large_vips_of(instance):
                listing.put(instance)
            return
        if before is not None:
            self._take_out(instance.key)
        self.listing.put(instance)
        self._index(instance)
        for listing in self._large_vips_of(instance):
            listing.put(instance)

    def _index(self, instance: Instance) -> None:
        """Have what was just listed found by whatever else it is looked for."""
        self._note_lease(instance)
        key = instance.key
        self.leased += instance.is_leased
        self._ids.setdefault(key.id, {})[key.app] = None
        for index, vips in self._vip_indexes(instance):
            for vip in vips:
                index.setdefault(vip, {})[key] = None

    def _note_lease(self, instance: Instance) -> None:
        shortest = self._shortest_lease_secs
        if (shortest is None or instance.lease_secs < shortest) and instance.is_leased:
            self._shortest_lease_secs = instance.lease_secs

    def _take_out(self, key: InstanceKey) -> None:
        instance = self.applications.get(key.app, _NOBODY).get(key.id)
        if instance is None:
            return
        self.listing.remove(key)
        self.leased -= instance.is_leased
        _discard(self._ids, key.id, key.app)
        for index, vips in self._vip_indexes(instance):
            for vip in vips:
                _discard(index, vip, key)
        for listing in self._large_vips_of(instance):
            listing.remove(key)

    def _large_vips_of(self, instance: Instance) -> list[Listing]:
        """The listings that are kept of the VIPs that an instance names."""
        if not self._large_vips:
            return []
        named = [
            (index is self._secure_vips, vip)
            for index, vips in self._vip_indexes(instance)
            for vip in vips
        ]
        return [self._large_vips[name] for name in named if name in self._large_vips]

    def _vip_indexes(
        self, instance: Instance
    ) -> Iterator[tuple[dict[str, dict[InstanceKey, None]], Iterable[str]]]:
        if instance.vip_address is not None:
            yield self._vips, _vips(instance.vip_address)
        if instance.secure_vip_address is not None:
            yield self._secure_vips, _vips(instance.secure_vip_address)

    def take_shortest_lease_secs(self) -> int | None:
        """The shortest lease of what was listed since the last call; None where nothing was."""
        with self.lock:
            shortest, self._shortest_lease_secs = self._shortest_lease_secs, None
            return shortest

    def prepare(
        self, missing: Callable[[], Iterator[_K]], make: Callable[[_K], object], *, is_quick: bool
    ) -> None:
        """Have what an answer takes made, until little of it is missing; without the lock.

        A fleet is spelled in seconds, in which nobody else is to wait, neither for the lock nor for
        the interpreter: ``make`` takes the lock for one thing at a time. Where ``is_quick`` nothing
        is made, and where more than a little is missing ``NotYetError`` is raised.
        """
        with nullcontext() if is_quick else self._preparing:
            for _ in range(_PREPARED_AT_MOST):
                with self.lock:
                    found = list(itertools.islice(missing(), _MADE_AT_ONCE + 1))
                    if len(found) <= _MADE_AT_ONCE:
                        return
                    if is_quick:
                        raise NotYetError
                    found = list(missing())
                for each in found:
                    make(each)
                    time.sleep(_PAUSE_SECS)

    # Reads; the caller holds the lock.

    def get(self, key: InstanceKey) -> Instance | None:
        """The instance, whatever its lease says."""
        application = self.applications.get(key.app)
        return None if application is None else application.get(key.id)

    def by_id(self, instance_id: str) -> Instance | None:
        """The first instance with this id in any application."""
        for app in self._ids.get(instance_id, ()):
            return self.applications[app][instance_id]
        return None

    def by_vip(self, vip: str, *, secure: bool) -> Listing:
        """The instances that name ``vip`` (one comma part, exact) as their (secure) VIP."""
        found = self._large_vips.get((secure, vip))
        if found is None:
            index = self._secure_vips if secure else self._vips
            keys = index.get(vip, ())
            found = Listing(self.applications[key.app][key.id] for key in keys)
            if found.is_large:
                # To list so many anew at each change would cost too much; it follows them.
                if len(self._large_vips) >= _LARGE_VIPS:
                    del self._large_vips[next(iter(self._large_vips))]
                self._large_vips[secure, vip] = found
        return found

    def size(self) -> int:
        """How many instances there are."""
        return self.listing.size

    def is_blank(self) -> bool:
        """Whether nothing is listed and nothing was lately, as in a namespace that never was."""
        return not (self.listing.size or self.overrides or self._log)

    def recent(self, now_mono_ms: int) -> list[Change]:
        """The changes inside the retention window, each instance's last one, oldest first."""
        self._forget(now_mono_ms)
        return self._log.all()

    def changes_since(self, revision: Revision) -> list[Change] | None:
        """What changed after a revision, each instance once and as it is now, oldest first.

        None where some of it is forgotten, or the revision is not known (yet, or in this life).
        """
        return self._log.after(revision) if revision <= self.revision else None

    def recent_until(self, now_mono_ms: int) -> int | None:
        """The last instant at which the window holds what it holds now, if nothing else changes.

        None where it is empty, and stays so. Afterwards ``changed`` lists what is in it.
        """
        self._forget(now_mono_ms)
        oldest = self._log.oldest()
        if oldest is None:
            return None
        return now_mono_ms + oldest.at_running_ms - self._window(now_mono_ms)


def _vips(address: str) -> Iterable[str]:
    return set(address.split(",")) if "," in address else (address,)


@contextmanager
def _without_looking_for_garbage() -> Iterator[None]:
    """Make much that stays: to look for garbage among it takes as long again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _discard(index: dict[_K, dict[_V, None]], key: _K, value: _V) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(value, None)
        if not entries:
            del index[key]
