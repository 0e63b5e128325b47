"""The plainest reading of the store contract: one process, nothing kept after it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from registry.changes import ChangeLog, place_of
from registry.errors import ConflictError, LockLostError
from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
    Snapshot,
)
from registry.store import PAUSE_MS, Commit, Due, Fence, StoreState


@dataclass
class _Contents:
    """One namespace."""

    revision: Revision
    log: ChangeLog
    instances: dict[InstanceKey, Instance] = field(default_factory=dict)
    leases: dict[InstanceKey, Lease] = field(default_factory=dict)
    overrides: dict[str, InstanceStatus] = field(default_factory=dict)
    renewals: dict[int, int] = field(default_factory=dict)
    expected_clients: int | None = None
    evicted_at: list[int] = field(default_factory=list)


class MemoryStore:
    """A store in this process. One lock guards all of it."""

    def __init__(self, life: int = 0) -> None:
        """Start empty, at this revision."""
        self._life = Revision(life)
        self._lock = threading.Lock()
        self._contents: dict[Namespace, _Contents] = {}
        self._notes: dict[str, bytes] = {}
        self._locks: dict[str, tuple[str, int]] = {}
        self._tokens: dict[str, int] = {}
        self._alive: int | None = None
        self._outages = 0

    def _of(self, namespace: Namespace) -> _Contents:
        """What a namespace holds; one that was never written to is not kept for being read."""
        return self._contents.get(namespace) or _Contents(self._life, ChangeLog(self._life))

    def _written(self, namespace: Namespace) -> _Contents:
        return self._contents.setdefault(namespace, _Contents(self._life, ChangeLog(self._life)))

    def revision(self, namespace: Namespace) -> Revision:
        with self._lock:
            return self._of(namespace).revision

    def load(self, namespace: Namespace) -> Snapshot:
        with self._lock:
            contents = self._of(namespace)
            return Snapshot(
                contents.revision,
                tuple(contents.instances.values()),
                dict(contents.overrides),
                tuple(contents.log.all()),
                contents.log.complete_after,
            )

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        with self._lock:
            contents = self._of(namespace)
            found = contents.log.after(after) if after <= contents.revision else None
            if found is None:
                return None
            return [
                change
                if change.override is None
                else change._replace(
                    override=OverrideChange(
                        change.override.id, contents.overrides.get(change.override.id)
                    )
                )
                for change in found
            ]

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        with self._lock:
            self._check(fence)
            return self._commit(namespace, commit)

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        found: list[Revision | None] = []
        with self._lock:
            self._check(fence)
            for commit in commits:
                try:
                    found.append(self._commit(namespace, commit))
                except ConflictError:
                    found.append(None)
        return found

    def _check(self, fence: Fence | None) -> None:
        if fence is not None and self._tokens.get(fence.lock, 0) > fence.token:
            raise LockLostError

    def _has_room(self, contents: _Contents, commit: Commit) -> bool:
        """Whether one more instance may be listed."""
        held, most = len(contents.instances), commit.namespaces_at_most
        if most is not None and not held:
            return sum(bool(each.instances) for each in self._contents.values()) < most
        return commit.instances_at_most is None or held < commit.instances_at_most

    def _commit(self, namespace: Namespace, commit: Commit) -> Revision:
        contents = self._of(namespace)
        key = commit.key
        stored = contents.instances.get(key)
        lease = contents.leases.get(key)
        if (
            (stored.revision if stored else 0) != commit.expected
            or contents.overrides.get(key.id) != commit.expected_override
            or (
                commit.expected_deadline_mono_ms is not None
                and (lease is None or lease.deadline_mono_ms != commit.expected_deadline_mono_ms)
            )
            or (
                stored is None
                and commit.instance is not None
                and not self._has_room(contents, commit)
            )
        ):
            raise ConflictError
        contents = self._written(namespace)
        revision = Revision(contents.revision + 1)
        instance = commit.instance
        if instance is not None:
            instance = instance._replace(revision=revision)
            if commit.remove:
                contents.instances.pop(key, None)
                contents.leases.pop(key, None)
            else:
                contents.instances[key] = instance
                if commit.lease is not None:
                    contents.leases[key] = commit.lease
        if commit.override is not None:
            if commit.override.status is None:
                contents.overrides.pop(commit.override.id, None)
            else:
                contents.overrides[commit.override.id] = commit.override.status
        if commit.expected_clients_step:
            if contents.expected_clients is None:
                contents.expected_clients = commit.opening_clients
            if contents.expected_clients:
                contents.expected_clients += commit.expected_clients_step
        if commit.evicted:
            minute_ago = commit.at_mono_ms - 60_000
            contents.evicted_at = [at for at in contents.evicted_at if at > minute_ago]
            contents.evicted_at.append(commit.at_mono_ms)
        contents.revision = revision
        change = Change(
            revision,
            self._running(commit.at_mono_ms),
            instance,
            commit.remove,
            commit.evicted,
            commit.override,
        )
        contents.log.put(change, place_of(change))
        return revision

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        with self._lock:
            contents = self._of(namespace)
            stored = contents.leases.get(key)
            if stored is None or stored.duration_ms != lease.duration_ms:
                return False
            if not lease.client_mono_ms:
                lease = lease._replace(client_mono_ms=stored.client_mono_ms)
            contents.leases[key] = lease
            if window is not None:
                contents.renewals[window] = contents.renewals.get(window, 0) + 1
                contents.renewals.pop(window - 2, None)
            return True

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        with self._lock:
            return self._of(namespace).leases.get(key)

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        with self._lock:
            leases = self._of(namespace).leases
            alive = [
                lease.deadline_mono_ms
                for lease in leases.values()
                if now_mono_ms <= lease.deadline_mono_ms
            ]
            expired = [
                (key, lease)
                for key, lease in leases.items()
                if now_mono_ms > lease.deadline_mono_ms
            ]
            return Due(expired, len(leases), min(alive, default=None))

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        with self._lock:
            leases = self._of(namespace).leases
            return [
                (key, lease.client_mono_ms)
                for key, lease in leases.items()
                if lease.client_mono_ms > after_mono_ms
            ]

    def renewals(self, namespace: Namespace, window: int) -> int:
        with self._lock:
            return self._of(namespace).renewals.get(window, 0)

    def expected_clients(self, namespace: Namespace) -> int | None:
        with self._lock:
            return self._of(namespace).expected_clients

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        with self._lock:
            self._written(namespace).expected_clients = count

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        with self._lock:
            return sum(at > after_mono_ms for at in self._of(namespace).evicted_at)

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        with self._lock:
            contents = self._of(namespace)
            before = self._running(before_mono_ms)
            count = 0
            while (oldest := contents.log.oldest()) and oldest.at_running_ms < before:
                contents.log.forget_oldest()
                count += 1
            return count

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        with self._lock:
            holder, until = self._locks.get(name, (None, 0))
            if holder not in (None, owner) and until > now_mono_ms:
                return None
            self._locks[name] = (owner, now_mono_ms + ttl_ms)
            if holder != owner:
                self._tokens[name] = self._tokens.get(name, 0) + 1
            return self._tokens[name]

    def release(self, name: str, owner: str) -> None:
        with self._lock:
            if self._locks.get(name, ("", 0))[0] == owner:
                del self._locks[name]

    def note(self, name: str) -> bytes | None:
        with self._lock:
            return self._notes.get(name)

    def set_note(self, name: str, value: bytes | None) -> None:
        with self._lock:
            if value is None:
                self._notes.pop(name, None)
            else:
                self._notes[name] = value

    def resume(self, now_mono_ms: int) -> int | None:
        with self._lock:
            previous = self._alive
            self._alive = now_mono_ms if previous is None else max(previous, now_mono_ms)
            if previous is None or now_mono_ms - previous <= PAUSE_MS:
                return None
            self._outages += now_mono_ms - previous - PAUSE_MS
            extended = 0
            for contents in self._contents.values():
                for key, lease in contents.leases.items():
                    deadline = now_mono_ms + lease.duration_ms
                    if deadline > lease.deadline_mono_ms:
                        contents.leases[key] = lease._replace(deadline_mono_ms=deadline)
                        extended += 1
            return extended

    def running_ms(self, now_mono_ms: int) -> int:
        with self._lock:
            return self._running(now_mono_ms)

    def _running(self, now_mono_ms: int) -> int:
        if self._alive is not None:
            now_mono_ms = min(now_mono_ms, self._alive + PAUSE_MS)
        return now_mono_ms - self._outages

    def namespaces(self) -> dict[Namespace, int]:
        with self._lock:
            return {name: len(contents.instances) for name, contents in self._contents.items()}

    def probe(self) -> str | None:
        """Nothing to do: a write to memory is not refused."""
        return None

    def state(self) -> StoreState:
        """No size: it is a part of this process."""
        return StoreState(self._life, None)

    def flush(self) -> None:
        """Nothing to do: this store has no disk."""

    def close(self) -> None:
        """Nothing to let go of."""
