"""What a store that is a copy has to offer to where the truth is, when that lost something.

Among it is what was written *alone*: while where the truth is could not be reached. For each such
state ``meta`` has when it was written, and for its namespace the revision before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from registry.model import Lease, Namespace, Revision
from registry.stores.lmdb.environment import Environment, items
from registry.stores.lmdb.files import unsealed
from registry.stores.lmdb.leases import LeaseFile
from registry.stores.lmdb.places import Places
from registry.stores.lmdb.records import (
    ENTRY,
    KIND,
    OF_OVERRIDE,
    TOUCHED,
    U64,
    LogEntry,
    packed_entry,
)

ALONE, FORMER = b"alone", b"alone-after"
"""In ``meta``: where the revisions of what is written alone began; the life before the store's own.

It is in one of its own from the first such write on, or from a loss (``opening.py``).
"""
LAST_ALONE = b"alone-last"
"""In ``meta``: where its own lives began, the least that is beyond the life that it is in."""
BASED, WRITTEN = b"based\0", b"alone\0"
"""In ``meta``, before a namespace: its last revision in that life; before a state's name: when."""

GIVEN_AS = "as\0"
"""In ``meta``, before a namespace and a revision: that of the state before it was given back."""

_TOUCHED_AT_ONCE = 2_000


def former_life(env: Environment, txn: Any) -> Revision:
    """The last life of where the truth is in which the store was, or is."""
    former = env.number(txn, FORMER)
    return Revision(env.life(txn) if former is None else former)


def leave_own_life(env: Environment, txn: Any) -> None:
    """Note where the store's own life began, if it is in one; before it is in another."""
    if txn.get(FORMER, db=env.meta) is not None:
        life = env.life(txn)
        least = min(life, env.number(txn, LAST_ALONE) or life)
        txn.put(LAST_ALONE, U64.pack(least), db=env.meta)


def based_on(env: Environment, txn: Any, namespace: Namespace) -> Revision:
    """The last revision that the store had of a namespace in that life."""
    for key in (BASED, b"revision\0"):
        found = env.number(txn, key + namespace.encode())
        if found is not None:
            return Revision(found)
    return former_life(env, txn)


class Held(NamedTuple):
    """What a store has of a namespace, at one moment."""

    revision: Revision
    revisions: dict[bytes, Revision]
    """By names: of what is listed, of what was removed lately, and of overrides alone.

    A name is an application and an id, joined by NUL; an override's own has another NUL.
    """
    unlisted_overrides: dict[str, str]
    """Overrides of ids that are under no name."""
    former_life: Revision
    """The life in which it was before it was in one of its own; else in which it is."""
    based_on: Revision
    written: dict[bytes, int]
    """What was written alone, after ``based_on``: when, on the monotonic clock in milliseconds."""
    given_as: dict[Revision, Revision]
    """By revisions: which ones the states had before they were given back."""


class State(NamedTuple):
    """What is under a name."""

    name: bytes
    revision: Revision
    is_listed: bool
    encoded: bytes
    """The instance, or a removed one as it was last; empty of an override alone."""
    lease: Lease | None
    override: bytes
    at_running_ms: int | None
    """When it changed, on the store's clock; None where that is not known any more."""


class Offering:
    """Reads what can be offered. Thread-safe."""

    def __init__(self, env: Environment, live: LeaseFile, places: Places) -> None:
        """Read nothing yet."""
        self._env = env
        self._live = live
        self._places = places

    def is_alone(self) -> bool:
        """Whether anything was written alone that is not yet where the truth is."""
        return self._env.read(lambda txn: txn.get(ALONE, db=self._env.meta)) is not None

    def former_life(self) -> Revision:
        """The last of the lives of where the truth is that the store was in; ``StoreError``."""
        return self._env.read(lambda txn: former_life(self._env, txn))

    def greatest(self) -> Revision:
        """The greatest revision that it had in that life, in any namespace; ``StoreError``."""
        env = self._env

        def read(txn: Any) -> Revision:
            known = [based_on(env, txn, each) for each in env.sizes(txn)]
            return max([former_life(env, txn), *known])

        return env.read(read)

    def bases(self) -> dict[Namespace, Revision]:
        """The revisions from which the store went on in a life of its own; ``StoreError``.

        None where it is in none.
        """
        env = self._env

        def read(txn: Any) -> dict[Namespace, Revision]:
            return {
                Namespace(key.removeprefix(BASED).decode()): Revision(U64.unpack(value)[0])
                for key, value in txn.cursor(env.meta)
                if key.startswith(BASED)
            }

        return env.read(read)

    def held(self, namespace: Namespace) -> Held:
        """What is held, by revisions; ``StoreError``."""
        env = self._env

        def read(txn: Any) -> Held:
            revision = Revision(env.revision(txn, namespace))
            revisions = {
                key: Revision(U64.unpack_from(value)[0])
                for db in (env.record, env.removed)
                for key, value in items(txn, db, namespace)
            }
            overrides = dict(items(txn, env.override, namespace))
            if overrides:
                for name in revisions:
                    overrides.pop(name.split(b"\0")[1], None)
            return Held(
                revision,
                revisions,
                {each.decode(): status.decode() for each, status in overrides.items()},
                former_life(env, txn),
                based_on(env, txn, namespace),
                {
                    key: U64.unpack(value)[0]
                    for key, value in items(txn, env.meta, Namespace(f"alone\0{namespace}"))
                },
                {
                    Revision(U64.unpack(key)[0]): Revision(U64.unpack(value)[0])
                    for key, value in items(txn, env.meta, Namespace(GIVEN_AS + namespace))
                },
            )

        return env.read(read)

    def states(self, namespace: Namespace, names: Sequence[bytes]) -> list[State]:
        """What is under some names, where anything is; ``StoreError``."""
        env, prefix = self._env, namespace.encode() + b"\0"

        def instant(txn: Any, entry: bytes | None) -> int | None:
            at, kind, _ = (0, TOUCHED, 0) if entry is None else ENTRY.unpack_from(entry)
            # Running time stands still while the server does not run, or Redis is away.
            resumed = env.signed(txn, b"resumed")
            return None if kind & TOUCHED or (resumed is not None and at <= resumed) else at

        def state(txn: Any, name: bytes) -> State | None:
            override = txn.get(prefix + name.split(b"\0")[1], b"", db=env.override)
            record = txn.get(prefix + name, db=env.record)
            if record is not None:
                leased = txn.get(prefix + name, db=env.leased)
                lease = None if leased is None else self._places.as_renewed(leased)
                revision = Revision(U64.unpack_from(record)[0])
                at = instant(txn, txn.get(prefix + record[: U64.size], db=env.log))
                return State(name, revision, True, unsealed(record, U64.size), lease, override, at)
            removed = txn.get(prefix + name, db=env.removed)
            if removed is None:
                return None
            stored = txn.get(prefix + removed, db=env.removal)
            entry = LogEntry.unpack(stored)
            last = unsealed(entry.encoded) if entry.encoded else b""
            revision = Revision(U64.unpack(removed)[0])
            at = instant(txn, stored)
            return State(name, revision, False, last, None, override, at)

        def read(txn: Any) -> list[State]:
            return [found for name in names if (found := state(txn, name)) is not None]

        return env.read(read)

    def touch(self, namespace: Namespace, now_mono_ms: int) -> None:
        """Have the log say that all that is listed changed just now; a portion at a time.

        What it said of overrides it goes on to say: a worker may not have heard of them yet.
        """
        env, prefix = self._env, namespace.encode() + b"\0"
        at = self._live.running_ms(now_mono_ms)
        last: bytes | None = None

        def write(txn: Any) -> bool:
            nonlocal last
            for number, (key, value) in enumerate(items(txn, env.record, namespace, last)):
                if number == _TOUCHED_AT_ONCE:
                    return True
                entry = txn.get(prefix + value[:8], db=env.log)
                of_override = 0 if entry is None else entry[KIND] & OF_OVERRIDE
                told = packed_entry(at, TOUCHED | of_override, key)
                txn.put(prefix + value[:8], told, db=env.log)
                last = key
            return False

        while env.write(write):
            pass
