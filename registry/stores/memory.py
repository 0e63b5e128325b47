"""The plainest reading of the store contract: one process, nothing kept after it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from registry.errors import ConflictError
from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    Revision,
    Snapshot,
)
from registry.store import Commit, Due

_NONE = Revision(0)


@dataclass
class _Contents:
    """One namespace."""

    revision: Revision = _NONE
    trimmed_to: Revision = _NONE
    instances: dict[InstanceKey, Instance] = field(default_factory=dict)
    leases: dict[InstanceKey, Lease] = field(default_factory=dict)
    overrides: dict[str, InstanceStatus] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    renewals: dict[int, int] = field(default_factory=dict)
    expected_clients: int | None = None


class MemoryStore:
    """A store in this process. One lock guards all of it."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._contents: dict[Namespace, _Contents] = {}
        self._notes: dict[str, bytes] = {}
        self._locks: dict[str, tuple[str, int]] = {}
        self._alive: int | None = None

    def _of(self, namespace: Namespace) -> _Contents:
        return self._contents.setdefault(namespace, _Contents())

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
                tuple(contents.log),
            )

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        with self._lock:
            contents = self._of(namespace)
            if after < contents.trimmed_to:
                return None
            return [change for change in contents.log if change.revision > after]

    def commit(self, namespace: Namespace, commit: Commit) -> Revision:
        with self._lock:
            return self._commit(self._of(namespace), commit)

    def commit_all(self, namespace: Namespace, commits: Sequence[Commit]) -> list[Revision | None]:
        found: list[Revision | None] = []
        with self._lock:
            for commit in commits:
                try:
                    found.append(self._commit(self._of(namespace), commit))
                except ConflictError:
                    found.append(None)
        return found

    @staticmethod
    def _commit(contents: _Contents, commit: Commit) -> Revision:
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
        ):
            raise ConflictError
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
        if commit.expected_clients_step and contents.expected_clients:
            contents.expected_clients += commit.expected_clients_step
        contents.revision = revision
        contents.log.append(
            Change(
                revision,
                commit.at_mono_ms,
                instance,
                commit.remove,
                commit.evicted,
                commit.override,
            )
        )
        return revision

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        with self._lock:
            contents = self._of(namespace)
            if key not in contents.leases:
                return False
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

    def renewals(self, namespace: Namespace, window: int) -> int:
        with self._lock:
            return self._of(namespace).renewals.get(window, 0)

    def expected_clients(self, namespace: Namespace) -> int | None:
        with self._lock:
            return self._of(namespace).expected_clients

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        with self._lock:
            self._of(namespace).expected_clients = count

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        with self._lock:
            contents = self._of(namespace)
            count = 0
            for change in contents.log:
                if change.at_mono_ms >= before_mono_ms:
                    break
                count += 1
            if count:
                contents.trimmed_to = contents.log[count - 1].revision
                del contents.log[:count]
            return count

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> bool:
        with self._lock:
            holder, until = self._locks.get(name, (owner, 0))
            if holder != owner and until > now_mono_ms:
                return False
            self._locks[name] = (owner, now_mono_ms + ttl_ms)
            return True

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

    def resume(self, now_mono_ms: int, pause_ms: int) -> int | None:
        with self._lock:
            previous, self._alive = self._alive, now_mono_ms
            if previous is None or now_mono_ms - previous <= pause_ms:
                return None
            extended = 0
            for contents in self._contents.values():
                for key, lease in contents.leases.items():
                    deadline = now_mono_ms + lease.duration_ms
                    if deadline > lease.deadline_mono_ms:
                        contents.leases[key] = lease._replace(deadline_mono_ms=deadline)
                        extended += 1
            return extended

    def namespaces(self) -> list[Namespace]:
        with self._lock:
            return list(self._contents)

    def probe(self) -> None:
        """Nothing to do: a write to memory is not refused."""

    def flush(self) -> None:
        """Nothing to do: this store has no disk."""

    def close(self) -> None:
        """Nothing to let go of."""
