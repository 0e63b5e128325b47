"""Commits: what changes what is listed, in one transaction and one change of places.

Under the lease file's lock: its version odd, one transaction, the slots in line, its version even.
A commit is written if its guards hold (``commit_all``); in a store that is a copy, what another has
decided is written as it is told (``follow``, ``replace``).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from registry.errors import LockLostError
from registry.model import Instance, InstanceKey, InstanceStatus, Lease, Namespace, Revision
from registry.store import Commit, Fence
from registry.stores.lmdb.coordination import Coordination
from registry.stores.lmdb.environment import Environment, items, key_of
from registry.stores.lmdb.files import sealed
from registry.stores.lmdb.leases import LeaseFile, Place
from registry.stores.lmdb.log import Log, size_of_removal
from registry.stores.lmdb.offering import ALONE, BASED, FORMER, WRITTEN
from registry.stores.lmdb.places import NO_LEASE, Places, pack, place_of
from registry.stores.lmdb.records import (
    EVICTED,
    KIND,
    OF_OVERRIDE,
    U64,
    encode_instance,
    packed_entry,
)

_UNKNOWN = (-1, Revision(0))
# By how much the revisions of what is written alone are beyond: less than by which another life's.
_ALONE = 1 << 40


@dataclass(frozen=True, slots=True)
class Contents:
    """All of a namespace as another store has it; its log as the commits that were the last."""

    revision: Revision
    complete_after: Revision
    instances: Sequence[Instance] = ()
    overrides: Mapping[str, InstanceStatus] = field(default_factory=dict)
    log: Sequence[tuple[Revision, Commit]] = ()
    leases: Mapping[InstanceKey, Lease] = field(default_factory=dict)
    expected_clients: int | None = None


class TakenUp(NamedTuple):
    """How a namespace differs where the truth is, and which revisions it is at there."""

    revision: Revision
    complete_after: Revision
    decided: Sequence[tuple[Revision, Commit]]
    """What differs, as the commits that were the last, in the order of their revisions."""
    overrides: Mapping[str, InstanceStatus]
    expected_clients: int | None


class _Written:
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
        def write(txn: Any) -> _Written:
            if fence is not None and self._coordination.token(txn, fence.lock) > fence.token:
                raise LockLostError
            has_overrides = txn.cursor(self._env.override).first()
            revision = known[1] if is_known else self._env.revision(txn, namespace)
            written = _Written(namespace, revision, has_overrides)
            for commit in commits:
                self._apply(txn, namespace, commit, written)
            self._count(txn, namespace, written)
            return written

        with self._places.alone():
            known = self._log.revisions.get(namespace, _UNKNOWN)
            is_known = known[0] == self._live.version
            return self._written(namespace, write).revisions

    def _written(self, namespace: Namespace, write: Callable[[Any], _Written]) -> _Written:
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

    # Each registration comes here and to ``_put``, so what both ask of ``txn`` for it is asked by
    # position: to name the database costs half of what the look itself does. Before a put's come
    # three flags, here as they are by default (``dupdata``, ``overwrite``, ``append``).

    def _apply(self, txn: Any, namespace: Namespace, commit: Commit, written: _Written) -> None:
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
        self._put(txn, commit, key, stored, leased, namespace, written)

    def _put(
        self,
        txn: Any,
        commit: Commit,
        key: bytes,
        stored: bytes | None,
        leased: bytes | None,
        namespace: Namespace,
        written: _Written,
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
            size = self._size(txn, namespace, written)
            written.size = size - 1 if remove else size + 1
        if commit.expected_clients_step:
            written.steps.append((commit.expected_clients_step, commit.opening_clients))
        if commit.evicted:
            written.evicted_at.append(at)

    def _supersede_removal(self, txn: Any, place: bytes, key: bytes, written: _Written) -> int:
        revision = txn.pop(key, db=self._env.removed)
        if revision is None:
            return 0
        superseded = txn.pop(place + revision, db=self._env.removal)
        written.removed_bytes -= size_of_removal(superseded)
        kind: int = superseded[KIND] & OF_OVERRIDE
        return kind

    def _has_room(self, txn: Any, namespace: Namespace, commit: Commit, written: _Written) -> bool:
        """Whether one more instance may be listed."""
        size = self._size(txn, namespace, written)
        most = commit.namespaces_at_most
        if most is not None and not size:
            return sum(map(bool, self._env.sizes(txn).values())) < most
        return commit.instances_at_most is None or size < commit.instances_at_most

    def _size(self, txn: Any, namespace: Namespace, written: _Written) -> int:
        if written.size is None:
            written.size = self._env.number(txn, b"size\0" + namespace.encode()) or 0
        return written.size

    def _count(self, txn: Any, namespace: Namespace, written: _Written) -> None:
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

    # Where this store is a copy of what another has decided.

    def follow(
        self,
        namespace: Namespace,
        decided: Sequence[tuple[Revision, Commit]],
        expected_clients: int | None,
    ) -> None:
        """Write what was decided elsewhere, in one operation: no guard is looked at.

        Each change has the revision that it was given there. What is no news here is passed over,
        so several may bring the same.
        """

        def write(txn: Any) -> _Written:
            written = _Written(namespace, self._env.revision(txn, namespace), has_overrides=True)
            for revision, commit in decided:
                if revision > written.revision:
                    written.skip_to(revision)
                    key = key_of(namespace, *commit.key)
                    stored = txn.get(key, db=self._env.record)
                    leased = txn.get(key, db=self._env.leased)
                    self._put(txn, commit, key, stored, leased, namespace, written)
            written.steps.clear()
            self._size(txn, namespace, written)  # of removals alone it is known too
            self._count(txn, namespace, written)
            if expected_clients is not None:
                packed = U64.pack(expected_clients)
                txn.put(b"expected\0" + namespace.encode(), packed, db=self._env.meta)
            return written

        with self._places.alone():
            self._written(namespace, write)

    def commit_alone(
        self, namespace: Namespace, commits: Sequence[Commit]
    ) -> list[Revision | None]:
        """Commit as ``commit_all``, though nobody can be asked who decides.

        From the first such commit the store is in a life of its own, and its revisions go on from
        far beyond, so that none is given to two states. What was written is noted (``offering``).
        """
        env, name = self._env, namespace.encode()

        def write(txn: Any) -> _Written:
            known, began = env.revision(txn, namespace), env.number(txn, ALONE)
            life = env.life(txn)
            is_first = txn.get(BASED + name, db=env.meta) is None
            if began is None:
                revisions = [env.revision(txn, each) for each in env.sizes(txn)]
                began = _alone_from(max([known, life, *revisions]))
            written = _Written(namespace, began if is_first else known, has_overrides=True)
            for commit in commits:
                self._apply(txn, namespace, commit, written)
                if written.revisions[-1] is not None:
                    key = key_of(namespace, *commit.key) + b"\0" * (commit.instance is None)
                    at = U64.pack(max(0, commit.at_mono_ms))
                    txn.put(WRITTEN + key, at, db=env.meta)
            if written.last:
                if life != began:
                    # The logs go on: what they have of the former life is still told.
                    for each in {namespace, *env.sizes(txn)}:
                        trimmed = U64.pack(env.trimmed(txn, each))
                        txn.put(b"trimmed\0" + each.encode(), trimmed, db=env.meta)
                    txn.put(ALONE, U64.pack(began), db=env.meta)
                    txn.put(FORMER, U64.pack(life), db=env.meta)
                    txn.put(b"life", U64.pack(began), db=env.meta)
                if is_first:
                    txn.put(BASED + name, U64.pack(known), db=env.meta)
                self._count(txn, namespace, written)
            else:
                written.skip_to(Revision(known + 1))
            return written

        with self._places.alone():
            return self._written(namespace, write).revisions

    def take_up(
        self,
        life: Revision,
        taken: Mapping[Namespace, TakenUp],
        known: Mapping[Namespace, Revision],
    ) -> bool:
        """Be in a life, by what differs in it, in one operation.

        False, and nothing is done, where a namespace is not at its ``known`` revision.
        """

        def write(txn: Any) -> list[tuple[Namespace, _Written]] | None:
            if not self._is_at(txn, known):
                return None
            self._begin(txn, life)
            return [(each, self._take_up(txn, each, found)) for each, found in taken.items()]

        with self._places.alone():
            self._live.begin_change()
            try:
                written = self._env.write(write)
                for namespace, each in written or ():
                    self._places.put_in_line(namespace, each.places)
            finally:
                self._live.end_change()
        return written is not None

    def _begin(self, txn: Any, life: Revision) -> None:
        """Be in a life, which knows of nothing that was written alone."""
        meta = self._env.meta
        txn.put(b"life", U64.pack(life), db=meta)
        txn.delete(ALONE, db=meta)
        txn.delete(FORMER, db=meta)
        for prefix in (BASED, WRITTEN):
            cursor = txn.cursor(meta)
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                cursor.delete()

    def _is_at(self, txn: Any, known: Mapping[Namespace, Revision]) -> bool:
        env = self._env
        return all(env.revision(txn, each) == known.get(each) for each in env.sizes(txn))

    def _take_up(self, txn: Any, namespace: Namespace, taken: TakenUp) -> _Written:
        env, name = self._env, namespace.encode()
        written = _Written(namespace, env.revision(txn, namespace), has_overrides=True)
        for revision, commit in taken.decided:
            written.skip_to(revision)
            key = key_of(namespace, *commit.key)
            stored, leased = txn.get(key, db=env.record), txn.get(key, db=env.leased)
            self._put(txn, commit, key, stored, leased, namespace, written)
        written.steps.clear()
        written.evicted_at.clear()
        self._count(txn, namespace, written)
        for each, _ in list(items(txn, env.override, namespace)):
            txn.delete(name + b"\0" + each, db=env.override)
        for instance_id, status in taken.overrides.items():
            txn.put(key_of(namespace, instance_id), status.encode(), db=env.override)
        if txn.get(b"size\0" + name, db=env.meta) is None:
            txn.put(b"size\0" + name, U64.pack(0), db=env.meta)
        txn.put(b"revision\0" + name, U64.pack(taken.revision), db=env.meta)
        txn.put(b"trimmed\0" + name, U64.pack(taken.complete_after), db=env.meta)
        if taken.expected_clients is not None:
            packed = U64.pack(taken.expected_clients)
            txn.put(b"expected\0" + name, packed, db=env.meta)
        return written

    def replace(
        self,
        life: Revision,
        contents: Mapping[Namespace, Contents],
        known: Mapping[Namespace, Revision] | None = None,
    ) -> bool:
        """Hold this instead of all that was held, in one operation.

        Where it is ``known`` at which revisions the namespaces are, and any of them is at another,
        nothing is done, and False returned. Else one that is further than the given contents stays.

        A lease that is held already, and ends later than the given one, stays as it is.
        """
        env = self._env

        def write(txn: Any) -> list[tuple[Place, Lease]] | None:
            held = {each: env.revision(txn, each) for each in env.sizes(txn)}
            if known is not None and not self._is_at(txn, known):
                return None
            self._begin(txn, life)
            slots: list[tuple[Place, Lease]] = []
            for namespace in {*held, *contents}:
                found = contents.get(namespace) or Contents(life, life)
                if known is not None or held.get(namespace, 0) <= found.revision:
                    self._replace(txn, namespace, found, slots)
            return slots

        with self._places.alone():
            self._live.begin_change()
            try:
                slots = env.write(write)
                for place, lease in slots or ():
                    self._live.write(place, lease)
            finally:
                self._places.forget()
                self._live.end_change()
        return slots is not None

    def _replace(
        self,
        txn: Any,
        namespace: Namespace,
        contents: Contents,
        slots: list[tuple[Place, Lease]],
    ) -> None:
        env = self._env
        name = namespace.encode()
        prefix = name + b"\0"
        for db in (
            env.record,
            env.override,
            env.log,
            env.removal,
            env.removed,
        ):
            for key, _ in list(items(txn, db, namespace)):
                txn.delete(prefix + key, db=db)
        for instance in contents.instances:
            key = key_of(namespace, *instance.key)
            record = U64.pack(instance.revision) + sealed(encode_instance(instance))
            txn.put(key, record, db=env.record)
        for each, status in contents.overrides.items():
            txn.put(key_of(namespace, each), status.encode(), db=env.override)
        leases = {key_of(namespace, *key): lease for key, lease in contents.leases.items()}
        for key, leased in list(items(txn, env.leased, namespace)):
            lease = leases.get(prefix + key)
            known = self._places.as_renewed(leased)
            if lease is None or lease.duration_ms != known.duration_ms:
                txn.delete(prefix + key, db=env.leased)
                slots.append((self._places.let_go(txn, leased), NO_LEASE))
                continue
            if lease.deadline_mono_ms > known.deadline_mono_ms:
                slots.append((place_of(leased), lease))
            del leases[prefix + key]
        for key, lease in leases.items():
            place = self._places.take(txn)
            txn.put(key, pack(place, lease), db=env.leased)
            slots.append((place, lease))
        removed_bytes = 0
        for revision, commit in contents.log:
            at, packed = self._live.running_ms(commit.at_mono_ms), U64.pack(revision)
            kind = OF_OVERRIDE if commit.override is not None else 0
            key = key_of(namespace, *commit.key)
            changed = key[len(prefix) :]
            if commit.instance is not None and not commit.remove:
                txn.put(prefix + packed, packed_entry(at, kind, changed), db=env.log)
                continue
            kind |= EVICTED if commit.evicted else 0
            last = commit.instance
            encoded = b"" if last is None else sealed(encode_instance(last))
            entry = packed_entry(at, kind, changed, encoded)
            txn.put(prefix + packed, entry, db=env.removal)
            txn.put(key if encoded else key + b"\0", packed, db=env.removed)
            removed_bytes += size_of_removal(entry)
        txn.put(b"size\0" + name, U64.pack(len(contents.instances)), db=env.meta)
        txn.put(b"revision\0" + name, U64.pack(contents.revision), db=env.meta)
        txn.put(b"trimmed\0" + name, U64.pack(contents.complete_after), db=env.meta)
        txn.put(b"removed\0" + name, U64.pack(removed_bytes), db=env.meta)
        if contents.expected_clients is not None:
            packed = U64.pack(contents.expected_clients)
            txn.put(b"expected\0" + name, packed, db=env.meta)


def _alone_from(known: int) -> int:
    return known + random.SystemRandom().randrange(_ALONE, 2 * _ALONE)
