"""Commits: what changes what is listed, in one transaction and one change of places.

Under the lease file's lock: its version odd, one transaction, the slots in line, its version even.
A commit is written if its guards hold. What another store has decided is written by
``copying.py``, which uses the same steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from registry.errors import LockLostError
from registry.model import InstanceKey, InstanceStatus, Lease, Namespace, Revision
from registry.store import Commit, Fence
from registry.stores.lmdb.coordination import Coordination
from registry.stores.lmdb.environment import Environment, key_of
from registry.stores.lmdb.files import sealed
from registry.stores.lmdb.leases import LeaseFile, Place
from registry.stores.lmdb.log import Log, size_of_removal
from registry.stores.lmdb.places import Places, pack, place_of
from registry.stores.lmdb.records import (
    EVICTED,
    KIND,
    OF_OVERRIDE,
    U64,
    encode_instance,
    packed_entry,
)

_UNKNOWN = (-1, Revision(0))


class Written:
    """What the commits of one transaction come to."""

    __slots__ = (
        "_next",
        "at_mono_ms",
        "at_running_ms",
        "evicted_at",
        "has_overrides",
        "is_nobody_amid",
        "last",
        "places",
        "prefix",
        "removed_bytes",
        "revisions",
        "size",
        "steps",
    )

    def __init__(self, namespace: Namespace, revision: int, has_overrides: bool) -> None:
        self.prefix = namespace.encode() + b"\0"
        self.has_overrides = has_overrides
        # Whether nobody is amid a renewal of what was listed before. It stays so: whoever begins
        # one now finds the version odd.
        self.is_nobody_amid = False
        # An instant by the monotonic clock, and in running time.
        self.at_mono_ms = self.at_running_ms = -1
        # How many instances the namespace holds; None as long as none came or went.
        self.size: int | None = None
        # A ``Revision``; to call that would cost each commit a tenth of a microsecond.
        self._next: Any = revision + 1
        self.last = 0
        self.revisions: list[Revision | None] = []
        # The places in the lease file that are another lease's now, and whose they are: the
        # instance's that is listed, or nobody's.
        self.places: list[tuple[InstanceKey, Place, Lease | None]] = []
        # How the number of expected clients moves, and from where if it was never set.
        self.steps: list[tuple[int, int]] = []
        self.evicted_at: list[int] = []
        # How much more there is of what was removed.
        self.removed_bytes = 0

    @property
    def revision(self) -> Revision:
        """That of the last change, of these commits or before them."""
        return Revision(self._next - 1)

    def skip_to(self, revision: Revision) -> None:
        """Have this revision be the next."""
        self._next = revision

    def take(self) -> Revision:
        """The next revision."""
        revision: Revision = self._next
        self.last = revision
        self._next += 1
        self.revisions.append(revision)
        return revision


class Commits:
    """Writes what is listed. Thread-safe, and so among the processes that have the store open."""

    def __init__(
        self,
        env: Environment,
        live: LeaseFile,
        log: Log,
        places: Places,
        coordination: Coordination,
    ) -> None:
        """Write nothing yet."""
        self._env = env
        self._live = live
        self._log = log
        self._places = places
        self._coordination = coordination

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        def write(txn: Any) -> Written:
            if fence is not None and self._coordination.token(txn, fence.lock) > fence.token:
                raise LockLostError
            has_overrides = txn.cursor(self._env.override).first()
            revision = known[1] if is_known else self._env.revision(txn, namespace)
            written = Written(namespace, revision, has_overrides)
            for commit in commits:
                self.apply(txn, namespace, commit, written)
            self.count(txn, namespace, written)
            return written

        with self._places.alone():
            known = self._log.revisions.get(namespace, _UNKNOWN)
            is_known = known[0] == self._live.version
            return self.write(namespace, write).revisions

    def write(self, namespace: Namespace, write: Callable[[Any], Written]) -> Written:
        """Write and bring the slots in line; the lease file is locked."""
        self._live.begin_change()
        try:
            written = self._env.write(write)
        except BaseException:
            self._live.end_change()  # nothing was written
            raise
        self._places.put_in_line(namespace, written.places)
        self._live.end_change()
        # Nobody else can have written since, so whoever reads next needs no transaction.
        self._log.know(namespace, written.revision)
        return written

    # Each registration comes here and to ``put``, so what both ask of ``txn`` for it is asked by
    # position: to name the database costs half of what the look itself does. Before a put's come
    # three flags, here as they are by default (``dupdata``, ``overwrite``, ``append``).

    def apply(self, txn: Any, namespace: Namespace, commit: Commit, written: Written) -> None:
        """Write a commit if its guards hold, all but what is written once for many."""
        env = self._env
        app, instance_id = commit.key
        key = key_of(namespace, app, instance_id)
        stored = txn.get(key, None, env.record)
        override = None
        if written.has_overrides or commit.override is not None:
            override = txn.get(key_of(namespace, instance_id), db=env.override)
        leased = txn.get(key, None, env.leased)
        deadline = commit.expected_deadline_mono_ms
        if (
            # The revision leads the record, so that the guard costs no decoding.
            (U64.unpack_from(stored)[0] if stored is not None else 0) != commit.expected
            or (None if override is None else InstanceStatus(override.decode()))
            != commit.expected_override
            or (
                deadline is not None
                and (leased is None or self._places.as_renewed(leased).deadline_mono_ms != deadline)
            )
            or (
                stored is None
                and commit.instance is not None
                and not self._has_room(txn, namespace, commit, written)
            )
        ):
            written.revisions.append(None)
            return
        self.put(txn, commit, key, stored, leased, namespace, written)

    def put(
        self,
        txn: Any,
        commit: Commit,
        key: bytes,
        stored: bytes | None,
        leased: bytes | None,
        namespace: Namespace,
        written: Written,
    ) -> None:
        """Write a commit whose guards hold, or are another's to look at."""
        env = self._env
        record, leases = env.record, env.leased
        revision = written.take()
        instance, lease, change = commit.instance, commit.lease, commit.override
        remove = commit.remove
        packed_revision = U64.pack(revision)
        place = written.prefix
        kind = 0
        if change is not None:
            kind = OF_OVERRIDE
            written.has_overrides = True
            override_key = key_of(namespace, commit.key.id)
            if change.status is None:
                txn.delete(override_key, db=env.override)
            else:
                txn.put(override_key, change.status.encode(), db=env.override)
        # The log has the last change of each alone.
        name = key[len(place) :]
        removed_key = key if instance is not None else key + b"\0"
        if stored is not None and instance is not None:
            superseded = txn.pop(place + stored[:8], env.log)
            if superseded is not None:  # it was not trimmed
                kind |= superseded[KIND] & OF_OVERRIDE
        else:
            kind |= self._supersede_removal(txn, place, removed_key, written)
        if written.at_mono_ms != commit.at_mono_ms:  # commits of a group have one instant
            written.at_mono_ms = commit.at_mono_ms
            written.at_running_ms = self._live.running_ms(commit.at_mono_ms)
        at = written.at_running_ms
        if instance is None or remove:
            kind |= EVICTED if commit.evicted else 0
            encoded = b"" if instance is None else sealed(encode_instance(instance))
            entry = packed_entry(at, kind, name, encoded)
            txn.put(place + packed_revision, entry, db=env.removal)
            txn.put(removed_key, packed_revision, db=env.removed)
            written.removed_bytes += size_of_removal(entry)
        else:
            entry = packed_entry(at, kind, name)
            txn.put(place + packed_revision, entry, True, True, False, env.log)
        if instance is not None and remove:
            txn.delete(key, db=record)
            if leased is not None:
                txn.delete(key, db=leases)
                written.places.append((commit.key, self._places.let_go(txn, leased), None))
        elif instance is not None:
            value = packed_revision + sealed(encode_instance(instance))
            txn.put(key, value, True, True, False, record)
            if lease is not None:
                if leased is None:
                    slot = self._places.take(txn)
                elif written.is_nobody_amid or self._live.is_over(self._live.version):
                    written.is_nobody_amid = True
                    slot = place_of(leased).next()
                else:
                    written.places.append((commit.key, self._places.let_go(txn, leased), None))
                    slot = self._places.take(txn)
                txn.put(key, pack(slot, lease), True, True, False, leases)
                written.places.append((commit.key, slot, lease))
        if instance is not None and remove is (stored is not None):
            size = self.size(txn, namespace, written)
            written.size = size - 1 if remove else size + 1
        if commit.expected_clients_step:
            written.steps.append((commit.expected_clients_step, commit.opening_clients))
        if commit.evicted:
            written.evicted_at.append(at)

    def _supersede_removal(self, txn: Any, place: bytes, key: bytes, written: Written) -> int:
        revision = txn.pop(key, db=self._env.removed)
        if revision is None:
            return 0
        superseded = txn.pop(place + revision, db=self._env.removal)
        written.removed_bytes -= size_of_removal(superseded)
        kind: int = superseded[KIND] & OF_OVERRIDE
        return kind

    def _has_room(self, txn: Any, namespace: Namespace, commit: Commit, written: Written) -> bool:
        """Whether one more instance may be listed."""
        size = self.size(txn, namespace, written)
        most = commit.namespaces_at_most
        if most is not None and not size:
            return sum(map(bool, self._env.sizes(txn).values())) < most
        return commit.instances_at_most is None or size < commit.instances_at_most

    def size(self, txn: Any, namespace: Namespace, written: Written) -> int:
        """How many instances the namespace holds after the commits so far."""
        if written.size is None:
            written.size = self._env.number(txn, b"size\0" + namespace.encode()) or 0
        return written.size

    def count(self, txn: Any, namespace: Namespace, written: Written) -> None:
        """Write the numbers that the commits moved, and keep to the budget."""
        env = self._env
        name = namespace.encode()
        if not written.last:
            return
        txn.put(b"revision\0" + name, U64.pack(written.last), db=env.meta)
        if written.size is not None:
            txn.put(b"size\0" + name, U64.pack(written.size), db=env.meta)
        if written.steps:
            count = env.number(txn, b"expected\0" + name)
            for step, opening in written.steps:
                count = opening if count is None else count
                count = max(0, count + step) if count else 0
            txn.put(b"expected\0" + name, U64.pack(count or 0), db=env.meta)
        if written.evicted_at:
            seconds = Counter(self._log.evicted(txn, namespace))
            seconds.update(at // 1000 for at in written.evicted_at)
            newest = max(seconds)
            kept = {at: count for at, count in seconds.items() if at >= newest - 60}
            txn.put(b"evicted\0" + name, orjson.dumps(list(kept.items())), db=env.meta)
        if written.removed_bytes:
            self._log.keep_to_budget(txn, name, written.removed_bytes)
