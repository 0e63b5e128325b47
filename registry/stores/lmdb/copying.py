"""A store that is a copy: what another has decided is written as it is told, without its guards.

Follows another store's changes (``follow``), takes up what differs in another life of it
(``take_up``) or all that it holds (``replace``), and commits alone while it cannot be asked
(``commit_alone``). How a change is written is told in ``commits.py``.
"""

from __future__ import annotations

import random
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from registry.lease import SystemClock
from registry.model import Instance, InstanceKey, InstanceStatus, Lease, Namespace, Revision
from registry.store import Commit
from registry.stores.lmdb.commits import Commits, Written
from registry.stores.lmdb.environment import NOTE, Environment, items, key_of
from registry.stores.lmdb.files import sealed
from registry.stores.lmdb.leases import LeaseFile, Place
from registry.stores.lmdb.log import size_of_removal
from registry.stores.lmdb.offering import (
    ALONE,
    BASED,
    FORMER,
    GIVEN_AS,
    LAST_ALONE,
    WRITTEN,
    based_on,
    leave_own_life,
)
from registry.stores.lmdb.places import NO_LEASE, Places, pack, place_of
from registry.stores.lmdb.records import (
    EVICTED,
    OF_OVERRIDE,
    U64,
    encode_instance,
    packed_entry,
)

# How far the revisions of what is written alone are beyond the present microsecond, at random: so
# far that none of those of a life which begins soon is reached, nor what another writes alone.
_ALONE = 1 << 40
# How many of them one time alone may take, as far as the next begins below it.
_BELOW = 1 << 28


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
    given_as: Mapping[Revision, Revision] = field(default_factory=dict)
    """As ``follow`` is told."""


class TakenUp(NamedTuple):
    """How a namespace differs where the truth is, and which revisions it is at there."""

    revision: Revision
    complete_after: Revision
    decided: Sequence[tuple[Revision, Commit]]
    """What differs, as the commits that were the last, in the order of their revisions."""
    overrides: Mapping[str, InstanceStatus]
    expected_clients: int | None
    given_as: Mapping[Revision, Revision]
    """As ``follow`` is told."""


class Copying:
    """Writes into a copy. Thread-safe, and so among the processes that have the store open."""

    def __init__(self, env: Environment, live: LeaseFile, places: Places, commits: Commits) -> None:
        """Write nothing yet."""
        self._env = env
        self._live = live
        self._places = places
        self._commits = commits

    def follow(
        self,
        namespace: Namespace,
        decided: Sequence[tuple[Revision, Commit]],
        expected_clients: int | None,
        given_as: Mapping[Revision, Revision] = types.MappingProxyType({}),
    ) -> None:
        """Write what was decided elsewhere, in one operation: no guard is looked at.

        Each change has the revision that it was given there; ``given_as`` says of which it had been
        another in an earlier life. What is no news here is passed over, so several may bring the
        same.
        """

        def write(txn: Any) -> Written:
            written = Written(namespace, self._env.revision(txn, namespace), has_overrides=True)
            for revision, commit in decided:
                if revision > written.revision:
                    written.skip_to(revision)
                    key = key_of(namespace, *commit.key)
                    stored = txn.get(key, db=self._env.record)
                    leased = txn.get(key, db=self._env.leased)
                    self._commits.put(txn, commit, key, stored, leased, namespace, written)
            written.steps.clear()
            self._commits.size(txn, namespace, written)  # of removals alone it is known too
            self._commits.count(txn, namespace, written)
            self._note_given(txn, namespace, given_as)
            if expected_clients is not None:
                packed = U64.pack(expected_clients)
                txn.put(b"expected\0" + namespace.encode(), packed, db=self._env.meta)
            return written

        with self._places.alone():
            self._commits.write(namespace, write)

    def commit_alone(
        self, namespace: Namespace, commits: Sequence[Commit]
    ) -> list[Revision | None]:
        """Commit as ``commit_all``, though nobody can be asked who decides.

        From the first such commit the store is in a life of its own, and its revisions go on from
        far beyond, so that none is given to two states. What was written is noted (``offering``).
        """
        env, name = self._env, namespace.encode()

        def write(txn: Any) -> Written:
            known, life, alone = env.revision(txn, namespace), env.life(txn), env.number(txn, ALONE)
            began = alone
            if began is None:
                revisions = [env.revision(txn, each) for each in env.sizes(txn)]
                before = max([known, life, *revisions])
                began = _alone_from(before, SystemClock().wall_ms(), env.number(txn, LAST_ALONE))
            based = U64.pack(based_on(env, txn, namespace))
            written = Written(namespace, Revision(max(began, known)), has_overrides=True)
            for commit in commits:
                self._commits.apply(txn, namespace, commit, written)
                if written.revisions[-1] is not None:
                    key = key_of(namespace, *commit.key) + b"\0" * (commit.instance is None)
                    at = U64.pack(max(0, commit.at_mono_ms))
                    txn.put(WRITTEN + key, at, db=env.meta)
            if written.last:
                if alone is None:
                    leave_own_life(env, txn)
                    # The logs go on: what they have of the former life is still told.
                    for each in {namespace, *env.sizes(txn)}:
                        trimmed = U64.pack(env.trimmed(txn, each))
                        txn.put(b"trimmed\0" + each.encode(), trimmed, db=env.meta)
                    txn.put(ALONE, U64.pack(began), db=env.meta)
                    txn.put(FORMER, U64.pack(life), db=env.meta, overwrite=False)
                    txn.put(b"life", U64.pack(began), db=env.meta)
                txn.put(BASED + name, based, db=env.meta, overwrite=False)
                self._commits.count(txn, namespace, written)
            else:
                written.skip_to(Revision(known + 1))
            return written

        with self._places.alone():
            return self._commits.write(namespace, write).revisions

    def take_up(
        self,
        life: Revision,
        taken: Mapping[Namespace, TakenUp],
        known: Mapping[Namespace, Revision],
        notes: Mapping[str, bytes],
    ) -> bool:
        """Be in a life, by what differs in it, and with these notes, in one operation.

        False, and nothing is done, where a namespace is not at its ``known`` revision.
        """

        def write(txn: Any) -> list[tuple[Namespace, Written]] | None:
            if not self._is_at(txn, known):
                return None
            self._begin(txn, life, notes)
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

    def _begin(self, txn: Any, life: Revision, notes: Mapping[str, bytes]) -> None:
        """Be in a life, which knows of nothing that was written alone."""
        meta = self._env.meta
        for note, value in notes.items():
            txn.put(NOTE + note.encode(), value, db=meta)
        leave_own_life(self._env, txn)
        if (self._env.number(txn, LAST_ALONE) or 0) <= life:
            txn.delete(LAST_ALONE, db=meta)
        txn.put(b"life", U64.pack(life), db=meta)
        txn.delete(ALONE, db=meta)
        txn.delete(FORMER, db=meta)
        for prefix in (BASED, WRITTEN):
            cursor = txn.cursor(meta)
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                cursor.delete()

    def _note_given(
        self, txn: Any, namespace: Namespace, given_as: Mapping[Revision, Revision]
    ) -> None:
        prefix = (GIVEN_AS + namespace).encode() + b"\0"
        for revision, before in given_as.items():
            txn.put(prefix + U64.pack(revision), U64.pack(before), db=self._env.meta)

    def _forget_given(self, txn: Any, namespace: Namespace) -> None:
        """Of what is not held any more; all that is held is in the log."""
        env, prefix = self._env, namespace.encode() + b"\0"
        for key, _ in list(items(txn, env.meta, Namespace(GIVEN_AS + namespace))):
            if not any(txn.get(prefix + key, db=db) for db in (env.log, env.removal)):
                txn.delete((GIVEN_AS + namespace).encode() + b"\0" + key, db=env.meta)

    def _is_at(self, txn: Any, known: Mapping[Namespace, Revision]) -> bool:
        env = self._env
        return all(env.revision(txn, each) == known.get(each) for each in env.sizes(txn))

    def _take_up(self, txn: Any, namespace: Namespace, taken: TakenUp) -> Written:
        env, name = self._env, namespace.encode()
        written = Written(namespace, env.revision(txn, namespace), has_overrides=True)
        # Before what differs: the oldest of it may be forgotten at once.
        txn.put(b"trimmed\0" + name, U64.pack(taken.complete_after), db=env.meta)
        for revision, commit in taken.decided:
            written.skip_to(revision)
            key = key_of(namespace, *commit.key)
            stored, leased = txn.get(key, db=env.record), txn.get(key, db=env.leased)
            self._commits.put(txn, commit, key, stored, leased, namespace, written)
        written.steps.clear()
        written.evicted_at.clear()
        self._commits.count(txn, namespace, written)
        self._forget_given(txn, namespace)
        self._note_given(txn, namespace, taken.given_as)
        for each, _ in list(items(txn, env.override, namespace)):
            txn.delete(name + b"\0" + each, db=env.override)
        for instance_id, status in taken.overrides.items():
            txn.put(key_of(namespace, instance_id), status.encode(), db=env.override)
        if txn.get(b"size\0" + name, db=env.meta) is None:
            txn.put(b"size\0" + name, U64.pack(0), db=env.meta)
        txn.put(b"revision\0" + name, U64.pack(taken.revision), db=env.meta)
        if taken.expected_clients is not None:
            packed = U64.pack(taken.expected_clients)
            txn.put(b"expected\0" + name, packed, db=env.meta)
        return written

    def replace(
        self,
        life: Revision,
        contents: Mapping[Namespace, Contents],
        known: Mapping[Namespace, Revision] | None,
        notes: Mapping[str, bytes],
    ) -> bool:
        """Hold this instead of all that was held, and have these notes, in one operation.

        Where it is ``known`` at which revisions the namespaces are, and any of them is at another,
        nothing is done, and False returned. Nor where that is not known and the store is in another
        life; else one that is further than the given contents stays.

        A lease that is held already, and ends later than the given one, stays as it is.
        """
        env = self._env

        def write(txn: Any) -> list[tuple[Place, Lease]] | None:
            held = {each: env.revision(txn, each) for each in env.sizes(txn)}
            if env.life(txn) != life if known is None else not self._is_at(txn, known):
                return None
            self._begin(txn, life, notes)
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
        self._forget_given(txn, namespace)
        self._note_given(txn, namespace, contents.given_as)
        txn.put(b"size\0" + name, U64.pack(len(contents.instances)), db=env.meta)
        txn.put(b"revision\0" + name, U64.pack(contents.revision), db=env.meta)
        txn.put(b"trimmed\0" + name, U64.pack(contents.complete_after), db=env.meta)
        txn.put(b"removed\0" + name, U64.pack(removed_bytes), db=env.meta)
        if contents.expected_clients is not None:
            packed = U64.pack(contents.expected_clients)
            txn.put(b"expected\0" + name, packed, db=env.meta)


def _alone_from(known: int, wall_ms: int, last: int | None) -> Revision:
    """Where revisions of what is written alone begin, after those of the life before.

    Who has one of an own life before is not told of what came in between. So each begins below the
    ``last``, where that one's revisions are not yet known; thousands of times in one life.
    """
    if last is not None and last - known > 2 * _BELOW:
        return Revision(last - _BELOW)
    return Revision(max(known, 1_000 * wall_ms) + _random_step())


def _random_step() -> int:
    return random.SystemRandom().randrange(_ALONE, 2 * _ALONE)
