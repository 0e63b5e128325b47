"""The in-memory picture of a namespace that each worker keeps, following the change log.

``sync`` asks the store whether its revision moved and applies what is new, so whatever one worker
accepted is in the next answer of every other. All reads of one answer happen while holding
``lock``: they see one immutable moment.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Namespace,
    Revision,
    at_revision,
)
from registry.store import Commit, Store

_K = TypeVar("_K")
_V = TypeVar("_V")


class View:
    """One namespace as of ``revision``. ``lock`` guards everything; hold it while reading."""

    def __init__(self, store: Store, namespace: Namespace, retention_ms: int) -> None:
        """Keep changes for ``retention_ms`` for the delta. Call ``sync`` before the first read."""
        self.lock = threading.RLock()
        self.namespace = namespace
        self._store = store
        self._retention_ms = retention_ms
        self._loaded = False
        self._clear()

    def _clear(self) -> None:
        self.revision = Revision(0)
        self.applications: dict[str, dict[str, Instance]] = {}
        self.application_revisions: dict[str, Revision] = {}
        self.overrides: dict[str, InstanceStatus] = {}
        self.status_counts: Counter[InstanceStatus] = Counter()
        self.leased = 0
        self._ids: dict[str, dict[str, None]] = {}
        self._vips: dict[str, dict[InstanceKey, None]] = {}
        self._secure_vips: dict[str, dict[InstanceKey, None]] = {}
        self._log: deque[Change] = deque()
        self.recent_applications: dict[str, dict[str, Instance]] = {}
        self.recent_revisions: dict[str, Revision] = {}

    def sync(self) -> None:
        """Catch up with the store; ``StoreError`` (and an unchanged view) if it does not answer."""
        revision = self._store.revision(self.namespace)
        if revision == self.revision and self._loaded:
            return
        with self.lock:
            changes = None
            if self._loaded:
                if revision <= self.revision:
                    return  # another thread caught up while this one waited for the lock
                changes = self._store.changes(self.namespace, self.revision)
            if changes is None:
                self._load()
            else:
                for change in changes:
                    self._apply(change)

    def follow_all(self, commits: Sequence[Commit], revisions: Sequence[Revision | None]) -> None:
        """Apply this worker's own commits, as far as they are next, without reading them back."""
        with self.lock:
            for commit, revision in zip(commits, revisions, strict=True):
                if revision is None:
                    continue
                if not self._loaded or revision != self.revision + 1:
                    return
                instance = commit.instance
                self._apply(
                    Change(
                        revision,
                        commit.at_mono_ms,
                        None if instance is None else at_revision(instance, revision),
                        commit.remove,
                        commit.evicted,
                        commit.override,
                    )
                )

    def _load(self) -> None:
        snapshot = self._store.load(self.namespace)
        self._clear()
        for instance in snapshot.instances:
            self._put(instance)
        self.overrides = dict(snapshot.overrides)
        for change in snapshot.changes:
            listed = None if change.instance is None else self.get(change.instance.key)
            if listed is not None and listed.revision == change.revision:
                change = change._replace(instance=listed)  # one copy of what is the same
            self._remember(change)
        self.revision = snapshot.revision
        self._loaded = True

    def _apply(self, change: Change) -> None:
        if change.revision <= self.revision:
            return
        instance = change.instance
        if instance is not None:
            if change.removed:
                self._take_out(instance.key)
            else:
                self._put(instance)
            if instance.app in self.applications:
                self.application_revisions[instance.app] = change.revision
        override = change.override
        if override is not None:
            if override.status is None:
                self.overrides.pop(override.id, None)
            else:
                self.overrides[override.id] = override.status
        self._remember(change)
        self.revision = change.revision

    def _remember(self, change: Change) -> None:
        self._log.append(change)
        instance = change.instance
        if instance is not None:
            instances = self.recent_applications.setdefault(instance.app, {})
            # It stands once, at the place of its last change.
            instances.pop(instance.id, None)
            instances[instance.id] = instance
            self.recent_revisions[instance.app] = change.revision

    def forget(self, now_mono_ms: int, at_most: int) -> bool:
        """Let go of so many of the changes that are older than the window; whether some remain.

        To be called now and then, since what has gathered by the next read costs that read.
        """
        with self.lock:
            before = now_mono_ms - self._retention_ms
            self._forget(now_mono_ms, at_most)
            return bool(self._log) and self._log[0].at_mono_ms < before

    def _forget(self, now_mono_ms: int, at_most: int | None = None) -> None:
        """Let go of the changes that are older than the retention window."""
        before = now_mono_ms - self._retention_ms
        while self._log and self._log[0].at_mono_ms < before and at_most != 0:
            at_most = None if at_most is None else at_most - 1
            change = self._log.popleft()
            instance = change.instance
            if instance is None:
                continue
            instances = self.recent_applications[instance.app]
            if instances[instance.id].revision == change.revision:
                del instances[instance.id]
                if not instances:
                    del self.recent_applications[instance.app]
                    del self.recent_revisions[instance.app]

    def _put(self, instance: Instance) -> None:
        app = instance.app
        application = self.applications.setdefault(app, {})
        before = application.get(instance.id)
        if (
            before is not None
            and before.source == instance.source
            and before.vip_address == instance.vip_address
            and before.secure_vip_address == instance.secure_vip_address
        ):
            # It stands in the same places as before.
            if before.status is not instance.status:
                self.status_counts[before.status] -= 1
                self.status_counts[instance.status] += 1
            application[instance.id] = instance
            self.application_revisions[app] = max(
                self.application_revisions[app], instance.revision
            )
            return
        key = instance.key
        if before is not None:
            self._take_out(key)
            application = self.applications.setdefault(app, {})
        application[key.id] = instance
        newest = self.application_revisions.get(app, Revision(0))
        self.application_revisions[app] = max(newest, instance.revision)
        self.status_counts[instance.status] += 1
        self.leased += instance.is_leased
        self._ids.setdefault(key.id, {})[key.app] = None
        for index, vips in self._vip_indexes(instance):
            for vip in vips:
                index.setdefault(vip, {})[key] = None

    def _take_out(self, key: InstanceKey) -> None:
        application = self.applications.get(key.app, {})
        instance = application.pop(key.id, None)
        if instance is None:
            return
        if not application:
            del self.applications[key.app]
            self.application_revisions.pop(key.app, None)
        self.status_counts[instance.status] -= 1
        self.leased -= instance.is_leased
        _discard(self._ids, key.id, key.app)
        for index, vips in self._vip_indexes(instance):
            for vip in vips:
                _discard(index, vip, key)

    def _vip_indexes(
        self, instance: Instance
    ) -> Iterator[tuple[dict[str, dict[InstanceKey, None]], Iterable[str]]]:
        if instance.vip_address is not None:
            yield self._vips, set(instance.vip_address.split(","))
        if instance.secure_vip_address is not None:
            yield self._secure_vips, set(instance.secure_vip_address.split(","))

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

    def by_vip(self, vip: str, *, secure: bool) -> list[Instance]:
        """The instances that name ``vip`` (one comma part, exact) as their (secure) VIP."""
        index = self._secure_vips if secure else self._vips
        return [self.applications[key.app][key.id] for key in index.get(vip, ())]

    def size(self) -> int:
        """How many instances there are."""
        return sum(map(len, self.applications.values()))

    def recent(self, now_mono_ms: int) -> list[Change]:
        """The changes inside the retention window, oldest first."""
        self._forget(now_mono_ms)
        return list(self._log)

    def changes_since(self, revision: Revision) -> list[Change] | None:
        """The changes after a revision, oldest first; None where it is too old or not known yet."""
        if revision == self.revision:
            return []
        if revision > self.revision or not self._log or self._log[0].revision > revision + 1:
            return None
        found = []
        for change in reversed(self._log):
            if change.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found

    def recent_until(self, now_mono_ms: int) -> int | None:
        """The last instant at which the window holds what it holds now, if nothing else changes.

        None where it is empty, and stays so. Afterwards ``recent_applications`` has the instances
        that changed in the window, by application and id, each as it was after its last change, and
        ``recent_revisions`` the last change of each of these applications.
        """
        self._forget(now_mono_ms)
        return self._log[0].at_mono_ms + self._retention_ms if self._log else None


def _discard(index: dict[_K, dict[_V, None]], key: _K, value: _V) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(value, None)
        if not entries:
            del index[key]
