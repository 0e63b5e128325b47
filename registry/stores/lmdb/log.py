"""The log and the records as they are read: what is listed, and what changed.

``log`` and ``removal`` have the last change of each instance alone, so a namespace's log is as long
as the instances that were listed or removed lately. What was removed has a budget on the disk.

**Kept in memory** are revisions, with the lease file's version before they were read, and they
count as long as that version stands.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any

import orjson

from registry.model import (
    Change,
    Instance,
    InstanceStatus,
    Namespace,
    OverrideChange,
    Revision,
    Snapshot,
)
from registry.stores.lmdb.environment import Environment, items
from registry.stores.lmdb.files import unsealed
from registry.stores.lmdb.leases import LeaseFile
from registry.stores.lmdb.offering import ALONE
from registry.stores.lmdb.records import (
    ENTRY,
    EVICTED,
    OF_OVERRIDE,
    U64,
    LogEntry,
    decode_instance,
    decode_record,
)

_BY_REVISION = operator.attrgetter("revision")
_REMOVED_BYTES = 16 * 1024 * 1024
_TRIMMED_AT_ONCE = 200
_TRIM_PORTIONS = 20
_TRIM_PAUSE_SECS = 0.004


class Log:
    """What a store has of namespaces. Thread-safe."""

    def __init__(self, env: Environment, live: LeaseFile) -> None:
        """Know nothing yet."""
        self._env = env
        self._live = live
        self.revisions: dict[Namespace, tuple[int, Revision]] = {}
        """The lease file's version, and the revision that a namespace has as long as it stands."""

    def revision(self, namespace: Namespace) -> Revision:
        """That of the last change, looked up in the store."""
        # Read before the store is: what is kept may be newer than its version says, never older.
        version = self._live.version
        revision = Revision(self._env.read(lambda txn: self._env.revision(txn, namespace)))
        if not version & 1:
            self.revisions[namespace] = (version, revision)
        return revision

    def know(self, namespace: Namespace, revision: Revision) -> None:
        """Keep a revision that nobody else can have changed yet."""
        self.revisions[namespace] = (self._live.version, revision)

    def forget(self) -> None:
        """Go by what is in the store, and not by what was there."""
        self.revisions.clear()

    def _changes(
        self,
        txn: Any,
        namespace: Namespace,
        after: int,
        listed: Callable[[bytes], Instance],
    ) -> list[Change]:
        """The changes after a revision, with ``listed`` to tell what stands under a key."""
        last = None if after == 0 else U64.pack(after)
        found = []
        for _, value in items(txn, self._env.log, namespace, last):
            at_running_ms, kind, _ = ENTRY.unpack_from(value)
            name = value[ENTRY.size :]
            instance = listed(name)
            change = Change(instance.revision, at_running_ms, instance)
            if kind & OF_OVERRIDE:
                change = change._replace(override=self._override_of(txn, namespace, name))
            found.append(change)
        for key, value in items(txn, self._env.removal, namespace, last):
            entry = LogEntry.unpack(value)
            revision = U64.unpack(key)[0]
            of_override = entry.kind & OF_OVERRIDE
            found.append(
                Change(
                    Revision(revision),
                    entry.at_running_ms,
                    decode_instance(unsealed(entry.encoded), revision) if entry.encoded else None,
                    bool(entry.encoded),
                    bool(entry.kind & EVICTED),
                    self._override_of(txn, namespace, entry.key) if of_override else None,
                )
            )
        found.sort(key=_BY_REVISION)
        return found

    def _override_of(self, txn: Any, namespace: Namespace, name: bytes) -> OverrideChange:
        """The override of the id in an instance's key, as it is now."""
        instance_id = name.partition(b"\0")[2]
        stored = txn.get(namespace.encode() + b"\0" + instance_id, db=self._env.override)
        status = None if stored is None else InstanceStatus(stored.decode())
        return OverrideChange(instance_id.decode(), status)

    def load(self, namespace: Namespace) -> Snapshot:
        def load(txn: Any) -> Snapshot:
            instances = {
                key: decode_record(value) for key, value in items(txn, self._env.record, namespace)
            }
            return Snapshot(
                Revision(self._env.revision(txn, namespace)),
                tuple(instances.values()),
                {
                    key.decode(): InstanceStatus(value.decode())
                    for key, value in items(txn, self._env.override, namespace)
                },
                tuple(self._changes(txn, namespace, 0, instances.__getitem__)),
                Revision(self._env.trimmed(txn, namespace)),
            )

        return self._env.read(load)

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        prefix = namespace.encode() + b"\0"

        def read(txn: Any) -> list[Change] | None:
            def listed(key: bytes) -> Instance:
                value = txn.get(prefix + key, db=self._env.record)
                return decode_record(value)

            if not self._env.trimmed(txn, namespace) <= after <= self._env.revision(txn, namespace):
                return None
            return self._changes(txn, namespace, after, listed)

        return self._env.read(read)

    def life(self) -> Revision:
        """Where revisions begin in this life."""
        return Revision(self._env.read(self._env.life))

    def complete_after(self, namespace: Namespace) -> Revision:
        """The revision after which all changes are told of."""
        return Revision(self._env.read(lambda txn: self._env.trimmed(txn, namespace)))

    def namespaces(self) -> dict[Namespace, int]:
        return self._env.read(self._env.sizes)

    def expected_clients(self, namespace: Namespace) -> int | None:
        key = b"expected\0" + namespace.encode()
        return self._env.read(lambda txn: self._env.number(txn, key))

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        key = b"expected\0" + namespace.encode()
        self._env.write(lambda txn: txn.put(key, U64.pack(count), db=self._env.meta))

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        after = self._live.running_ms(after_mono_ms)
        seconds = self._env.read(lambda txn: self.evicted(txn, namespace))
        return sum(n for second, n in seconds.items() if second >= after // 1000)

    def evicted(self, txn: Any, namespace: Namespace) -> dict[int, int]:
        """How many were evicted in each of the last seconds in which any were."""
        stored = txn.get(b"evicted\0" + namespace.encode(), db=self._env.meta)
        return {} if stored is None else dict(orjson.loads(stored))

    # Forgetting.

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        before = self._live.running_ms(before_mono_ms)
        return self._trim(namespace, lambda _, value: ENTRY.unpack_from(value)[0] < before)

    def _trim(self, namespace: Namespace, is_old: Callable[[bytes, bytes], bool]) -> int:
        """Forget the first changes, as long as they are old by key and value; a few at a time."""
        name = namespace.encode()

        def old(txn: Any, db: Any) -> list[bytes]:
            found: list[bytes] = []
            for key, value in items(txn, db, namespace):
                if not is_old(key, value) or len(found) == _TRIMMED_AT_ONCE:
                    break
                found.append(key)
            return found

        def write(txn: Any) -> int:
            changed = old(txn, self._env.log)
            for key in changed:
                txn.delete(name + b"\0" + key, db=self._env.log)
            removed = old(txn, self._env.removal)
            size = sum([self._forget_removal(txn, name, key) for key in removed])
            if size:
                self.keep_to_budget(txn, name, -size)
            for keys in (changed, removed):
                if keys:
                    self._note_trimmed(txn, name, keys[-1])
            return len(changed) + len(removed)

        # After a storm there is much to forget: between two portions others have their turn, and
        # what is left after some of them is forgotten next time.
        total = 0
        for _ in range(_TRIM_PORTIONS):
            gone = self._env.write(write)
            total += gone
            if gone < _TRIMMED_AT_ONCE:
                break
            time.sleep(_TRIM_PAUSE_SECS)
        return total

    def trim_to(self, namespace: Namespace, revision: Revision) -> int:
        """Forget the changes up to a revision, as ``trim`` does those up to an instant."""
        return self._trim(namespace, lambda key, _: U64.unpack(key)[0] <= revision)

    def keep_to_budget(self, txn: Any, name: bytes, step: int) -> None:
        """Forget the oldest of what was removed until the rest is within the budget."""
        key = b"removed\0" + name
        size = (self._env.number(txn, key) or 0) + step
        last = None
        # What was removed alone is yet to be offered (``offering.ALONE``).
        while size > _REMOVED_BYTES and txn.get(ALONE, db=self._env.meta) is None:
            cursor = txn.cursor(self._env.removal)
            cursor.set_range(name + b"\0")
            last = cursor.key()[-8:]
            size -= self._forget_removal(txn, name, last)
        txn.put(key, U64.pack(size), db=self._env.meta)
        if last is not None:
            self._note_trimmed(txn, name, last)

    def _forget_removal(self, txn: Any, name: bytes, revision: bytes) -> int:
        """Forget a removal; its size."""
        value = txn.pop(name + b"\0" + revision, db=self._env.removal)
        entry = LogEntry.unpack(value)
        key = name + b"\0" + entry.key
        txn.delete(key if entry.encoded else key + b"\0", db=self._env.removed)
        return size_of_removal(value)

    def _note_trimmed(self, txn: Any, name: bytes, revision: bytes) -> None:
        key = b"trimmed\0" + name
        txn.put(key, max(revision, txn.get(key, default=b"", db=self._env.meta)), db=self._env.meta)


def size_of_removal(entry: bytes) -> int:
    """What a removed instance takes on the disk, roughly."""
    return len(entry) + 100
