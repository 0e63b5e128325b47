"""What reads see: each worker's copy in memory of one namespace, following the change log.

``sync`` asks the store for its revision, and reads the changes since where it moved on. So what one
worker accepted is in the next answer of every other. A worker's own commits are applied without
being read back. For example, with the views ``a`` and ``b`` of two workers on one store:

    >>> store = MemoryStore()
    >>> a, b = View(store, NS, retention_ms=180_000), View(store, NS, retention_ms=180_000)
    >>> a.sync(), b.sync()
    (True, True)
    >>> one, two = put(sample_instance("WEB", "web:1")), put(sample_instance("WEB", "web:2"))
    >>> a.follow_all([one], [store.commit(NS, one)])
    >>> a.revision, b.revision
    (1, 0)

``b`` catches up when it is asked next. Then there is nothing to do until the store moves on:

    >>> b.sync(), list(b.applications["WEB"]), b.sync()
    (True, ['web:1'], False)

Where another worker's commit came in between, an own one is not the next change that a view waits
for. It is left to the next ``sync``, which reads both in their order:

    >>> b.follow_all([two], [store.commit(NS, two)])
    >>> three = put(sample_instance("API", "api:1"))
    >>> a.follow_all([three], [store.commit(NS, three)])
    >>> a.revision, b.revision, a.sync(), list(a.applications)
    (1, 2, True, ['WEB', 'API'])

Where the store has trimmed changes that a view had not seen, it loads everything again:

    >>> store.trim(NS, before_mono_ms=101)
    3
    >>> store.changes(NS, b.revision) is None, b.sync(), b.revision, list(b.applications)
    (True, True, 3, ['WEB', 'API'])

All reads of one answer are made while holding ``lock``, so that they show one moment.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, TypeVar

from registry.changes import ChangeLog, place_of
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
# So many ids are remembered that have changed their addresses, and so many addresses of each.
_MOVED, _ADDRESSES = 1_000, 8
# An answer that lacks more pieces than this has them made before, one by one (see ``prepare``).
_MADE_AT_ONCE = 16
# While pieces are made others may change again. After so many rounds the rest is made at once.
_PREPARED_AT_MOST = 3
_PAUSE_SECS = 0.0001
# A load of so many objects is exempted from garbage collection, which would walk over them all.
_MANY = 10_000
_NOBODY: Mapping[str, Instance] = {}
# Versions begin far apart, so no two views of a namespace, one after the other, share any.
_FIRST_VERSIONS = itertools.count(0, 1 << 40)


class NotYetError(Exception):
    """An answer takes too long to make where it was asked for: it is to be made in a thread."""


class Moved(NamedTuple):
    """An id that has changed its address."""

    addresses: frozenset[str]
    returns: int
    """How often it came back to one of them: then several processes have this id."""


class View:
    """One namespace as of ``revision``. Hold ``lock`` while reading anything of it."""

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
        self.moved: dict[InstanceKey, Moved] = {}
        """Which ids have changed their addresses while this view followed, the latest last."""
        self.version = next(_FIRST_VERSIONS)
        """Grows whenever what the view shows may differ, also where no revision tells it."""
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
        """What changed in the retention window, each instance as it is after its last change."""

    def sync(self) -> bool:
        """Catch up with the store; whether there was anything new.

        ``StoreError``, and an unchanged view, where the store does not answer.
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
                    if change.revision > self.revision:
                        self._apply(change, place_of(change))
        return True

    def follow_all(self, commits: Sequence[Commit], revisions: Sequence[Revision | None]) -> None:
        """Apply commits of this worker's own, up to the first that is not the next change.

        ``revisions`` are what the store returned for them: None where a guard did not hold.
        """
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
                    at_running_ms = self.running_ms(at_mono_ms)
                listed = None if instance is None else at_revision(instance, revision)
                told = (
                    revision,
                    at_running_ms,
                    listed,
                    commit.remove,
                    commit.evicted,
                    commit.override,
                )
                change = tuple.__new__(Change, told)
                # The commit has the key already, which to make anew costs a quarter microsecond.
                self._apply(change, commit.key if listed is not None else place_of(change))

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
            self._log.put(change, place_of(change))
        told = [change.instance for change in self._log.all()]
        self.changed = Listing(instance for instance in told if instance is not None)
        self.version += 1
        self.revision = snapshot.revision
        self.is_loaded = True

    def _apply(self, change: Change, place: InstanceKey | str) -> None:
        """Show the next change; ``place`` is what the log has it by."""
        revision, _, instance, removed, _, override = change
        if instance is not None:
            if removed:
                self._take_out(instance.key)
            else:
                self._put(instance)
            self.changed.put(instance)
        elif self.listing.kept:
            # What is listed stays the same, and what is made of it tells of this revision.
            self.listing.kept.clear()
        if override is not None:
            if override.status is None:
                self.overrides.pop(override.id, None)
            else:
                self.overrides[override.id] = override.status
        for forgotten in self._log.put(change, place):
            self._drop(forgotten)
        self.version += 1
        self.revision = revision

    def forget(self, now_mono_ms: int, at_most: int) -> bool:
        """Forget at most so many of the changes older than the window; whether some remain.

        Reads forget them too, so call it now and then: one read should not pay for thousands.
        """
        with self.lock:
            self._forget(now_mono_ms, at_most)
            oldest = self._log.oldest()
            return oldest is not None and oldest.at_running_ms < self._window(now_mono_ms)

    def _window(self, now_mono_ms: int) -> int:
        """When the retention window begins, in running time."""
        return self.running_ms(now_mono_ms) - self._retention_ms

    def running_ms(self, now_mono_ms: int) -> int:
        """The server's running time, or the last known one while the store does not answer."""
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
        if before is not None and before.ip_addr != instance.ip_addr:
            self._note_move(before, instance)
        if (
            before is not None
            and before.source == instance.source
            and before.vip_address == instance.vip_address
            and before.secure_vip_address == instance.secure_vip_address
        ):
            # It is found by the same names as before, so no index changes.
            self._note_lease(instance)
            self.listing.put(instance)
            if self._large_vips:
                for listing in self._large_vips_of(instance):
                    listing.put(instance)
            return
        if before is not None:
            self._take_out(instance.key)
        self.listing.put(instance)
        self._index(instance)
        for listing in self._large_vips_of(instance):
            listing.put(instance)

    def _note_move(self, before: Instance, after: Instance) -> None:
        moved = self.moved.pop(after.key, None) or Moved(frozenset([before.ip_addr]), 0)
        returns = moved.returns + (after.ip_addr in moved.addresses)
        if len(moved.addresses) < _ADDRESSES:
            moved = moved._replace(addresses=moved.addresses | {after.ip_addr})
        self.moved[after.key] = moved._replace(returns=returns)
        if len(self.moved) > _MOVED:
            del self.moved[next(iter(self.moved))]

    def _index(self, instance: Instance) -> None:
        """Have a listed instance found by its id alone, and by its VIPs."""
        self._note_lease(instance)
        key = instance.key
        self.leased += instance.is_leased
        self._ids.setdefault(key.id, {})[key.app] = None
        if instance.vip_address is not None:
            for vip in _vips(instance.vip_address):
                self._vips.setdefault(vip, {})[key] = None
        if instance.secure_vip_address is not None:
            for vip in _vips(instance.secure_vip_address):
                self._secure_vips.setdefault(vip, {})[key] = None

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
        """Of the VIPs that an instance names, the listings that are kept up to date."""
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
        """The shortest lease listed or renewed by registering since the last call, in seconds.

        None where there was none. It tells the evictor how soon a lease may end that it has not
        seen yet.
        """
        with self.lock:
            shortest, self._shortest_lease_secs = self._shortest_lease_secs, None
            return shortest

    def prepare(
        self, missing: Callable[[], Iterator[_K]], make: Callable[[_K], object], *, is_quick: bool
    ) -> None:
        """Make the pieces of an answer that are missing, until few enough are left.

        Call it without the lock. To encode a large fleet takes seconds, in which others must get
        the lock and the interpreter: so ``make`` takes the lock for one piece at a time, and there
        is a pause after each. ``missing`` tells, with the lock held, what lacks yet. Where
        ``is_quick`` nothing is made: ``NotYetError`` if more than a few pieces are missing.
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

    def apps_with(self, instance_id: str) -> tuple[str, ...]:
        """The applications that have an instance with this id."""
        return tuple(self._ids.get(instance_id, ()))

    def by_vip(self, vip: str, *, secure: bool) -> Listing:
        """The instances that name ``vip`` (one comma part, exact) as their (secure) VIP."""
        found = self._large_vips.get((secure, vip))
        if found is None:
            index = self._secure_vips if secure else self._vips
            keys = index.get(vip, ())
            found = Listing(self.applications[key.app][key.id] for key in keys)
            if found.is_large:
                # To collect so many again for each request costs too much: keep it up to date.
                if len(self._large_vips) >= _LARGE_VIPS:
                    del self._large_vips[next(iter(self._large_vips))]
                self._large_vips[secure, vip] = found
        return found

    def size(self) -> int:
        """How many instances there are."""
        return self.listing.size

    def is_blank(self) -> bool:
        """Whether nothing is listed and nothing was lately: as if the namespace never was."""
        return not (self.listing.size or self.overrides or self._log)

    def recent(self, now_mono_ms: int) -> list[Change]:
        """The changes inside the retention window, each instance's last one, oldest first."""
        self._forget(now_mono_ms)
        return self._log.all()

    def changes_since(self, revision: Revision) -> list[Change] | None:
        """What changed after a revision, each instance once and as it is now, oldest first.

        None where some of it is forgotten, and where the revision is not this view's past: one that
        is still to come, or one of another life of the store.
        """
        return self._log.after(revision) if revision <= self.revision else None

    def recent_until(self, now_mono_ms: int) -> int | None:
        """Until when the window holds what it holds now, if nothing else changes.

        None where it is empty. After the call ``changed`` lists exactly what is in the window.
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
    """Pause the collector while much is made that stays: it would double the time."""
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
