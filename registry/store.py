"""The store contract: what survives, and what the worker processes share.

It has two parts. ``Records`` is what is registered; ``Coordination`` is what workers agree by. A
``Store`` is both. It may be in this process, on this machine or across a network, so no caller
assumes that a call is local or free. Each method is one atomic operation.

Writers use optimistic concurrency: they read from their view, decide, and ``commit`` with guards.
Where a guard no longer holds ``ConflictError`` is raised, and they decide again. So the rules stay
out of the stores, and all that a store needs is one conditional write.

Every method raises ``StoreError``, with the driver's error chained, where the store does not answer
or refuses a write; nothing is written then.

**Lives.** A revision is never given to two states. A store that may have lost what it last wrote (a
copy was restored, a damaged file was given up, another server took over), or that begins empty,
begins another *life*. Its revisions go on from ``another_life``, far beyond any that it can have
given out. ``changes`` knows none of the revisions before, and everything that is listed counts as
changed. So whoever asks with a revision of another life gets everything, and whoever follows the
delta ends with what is listed, whatever it had seen of what was lost. A life may begin while the
server runs.

**Running time.** The change log's instants are in *running time*: milliseconds for which the server
has run. An outage uses up neither the leases' time nor the log's. Every worker notes a few times a
second that the server runs (``resume``). Where the last note is older than ``PAUSE_MS``, running
time stands still until the next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

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

PAUSE_MS = 2_500
"""The server counts as not running from so long after the last note that it does."""

_LIFE = 1 << 42


def another_life(known: Revision) -> Revision:
    """Where revisions go on in another life of a store whose last known one is this.

    The step is random, so that two lives that begin at the same revision do not meet; longer than
    any number of changes that can have been lost; and short enough that a thousand lives fit into
    the numbers that JavaScript holds exactly.
    """
    return Revision(known + random.SystemRandom().randrange(_LIFE, 2 * _LIFE))


class Commit(NamedTuple):
    """One conditional write of one instance. Its change has the next revision.

    Limits are guards too: many writers may decide at once that there is room for one more.
    """

    key: InstanceKey
    expected: Revision
    """Guard: the revision of the stored instance; 0: there must be none."""
    expected_override: InstanceStatus | None
    """Guard: the stored override of the instance's id."""
    at_mono_ms: int
    """When it was decided; becomes the change's instant, in running time."""
    instance: Instance | None
    """What is stored, with the change's revision; None where only an override changes."""
    lease: Lease | None = None
    """The lease that it gets; None leaves the one that is there."""
    remove: bool = False
    """Remove the instance and its lease; ``instance`` is its last state, for the log."""
    evicted: bool = False
    """The removal counts in ``evictions``."""
    expected_deadline_mono_ms: int | None = None
    """Guard, where given: the deadline of its lease. So a renewal in time beats an eviction."""
    override: OverrideChange | None = None
    """Sets or removes the override of the key's id."""
    expected_clients_step: int = 0
    """Moves ``expected_clients``, unless that stands at 0."""
    opening_clients: int = 0
    """Where ``expected_clients`` moves from if it was never set."""
    instances_at_most: int | None = None
    """Guard of a new key, where given: the namespace holds fewer instances than this."""
    namespaces_at_most: int | None = None
    """Guard of a namespace's first instance, where given: fewer namespaces than this hold any."""
    before: Instance | None = None
    """What is replaced, as the writer saw it: for the history. No store looks at it."""


class Fence(NamedTuple):
    """A lock, and the token with which its owner holds it.

    A lock can run out while its owner works. So the owner commits behind a fence: as soon as
    another owner has a later token, nothing of the former one's is written, however late it comes.
    """

    lock: str
    token: int


class Due(NamedTuple):
    """What a look through the leases of a namespace found at an instant.

    ``leases`` is how many there are, ``next_deadline_mono_ms`` the earliest deadline that has not
    passed, or None.
    """

    expired: list[tuple[InstanceKey, Lease]]
    leases: int
    next_deadline_mono_ms: int | None


class StoreState(NamedTuple):
    """What an operator is shown of a store.

    ``life`` is the revision at which its life began (see the module), ``size_bytes`` what it takes
    on the disk or of a server's memory; None where it takes neither.
    """

    life: Revision
    size_bytes: int | None


class Records(Protocol):
    """What is registered, the log of its changes, and the time in which both live.

    ``registry.testing.RecordsSuite`` is this contract, executable.
    """

    def revision(self, namespace: Namespace) -> Revision:
        """The revision of the last change; the life's first before there is one.

        It is asked before every read and every renewal, so it must be as cheap as can be.
        """
        ...

    def load(self, namespace: Namespace) -> Snapshot:
        """The whole namespace at one revision."""
        ...

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        """What changed after a revision: each instance once, in the order of their last changes.

        An instance is told as it is now, a removed one as it was last. None where some of these
        changes were forgotten, or the revision is unknown in this life.
        """
        ...

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        """Write if the guards hold, and return the change's revision; else ``ConflictError``.

        ``LockLostError`` where a later token than that of ``fence`` was given out.
        """
        ...

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        """Commit several in one operation, in their order (*group commit*).

        Returns the revision of each, None where its guards did not hold; they see the commits
        before it. ``StoreError`` and ``LockLostError`` mean that none was written.
        """
        ...

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        """Replace the lease of ``key``; False where it has none, or one of another duration.

        Another duration means another registration than the one that the renewal was decided for.
        A renewal is no change and is not in the log. Where ``window`` is given, it counts in that
        window (see ``renewals``). A lease whose ``client_mono_ms`` is 0 leaves the stored one.
        """
        ...

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        """Whose client renewed after an instant, and when it last did; in no order.

        Registrations are no renewals. One that comes while the store looks may be told of next
        time: ask again with the latest instant that was told, less a moment.
        """
        ...

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        """The lease as it is now; None where there is none."""
        ...

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        """The leases whose deadline has passed, how many there are, and when the next one ends."""
        ...

    def renewals(self, namespace: Namespace, window: int) -> int:
        """How many renewals counted in a window; a store may keep the latest two windows only.

        Windows are numbered by ``lease.renewal_window``.
        """
        ...

    def expected_clients(self, namespace: Namespace) -> int | None:
        """How many clients are expected to renew; None before it was first set."""
        ...

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        """State how many clients are expected to renew."""
        ...

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        """How many were evicted after an instant, at most a minute ago.

        Rounded up: those of a second before it may count too.
        """
        ...

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        """Forget changes older than an instant; how many were forgotten.

        A call takes a moment and no more, so it may leave some: where any were forgotten, call
        again soon. A store may also forget the oldest removals by itself, to stay within a budget.
        """
        ...

    def namespaces(self) -> Mapping[Namespace, int]:
        """Every namespace that ever held an instance, and how many it holds now."""
        ...

    def resume(self, now_mono_ms: int) -> int | None:
        """Note that the server runs; after an outage of its own, give every lease its time back.

        An outage is where the last such note is more than ``PAUSE_MS`` old, or of another boot.
        Then every lease gets its whole duration from now on, unless it has more, or is renewed
        meanwhile; and this is done before any worker can note that the server runs, so nobody is
        evicted for the outage. Returns how many leases were extended; None where there was no
        outage, or no note yet.
        """
        ...

    def running_ms(self, now_mono_ms: int) -> int:
        """The running time at an instant (see the module). As cheap as ``revision``."""
        ...

    def flush(self) -> None:
        """Bring what was written to the disk, where the store has one."""
        ...


class Coordination(Protocol):
    """What workers agree by: locks that run out, and notes.

    It belongs to the same store as the records, because a commit checks its fence as it is written.
    ``registry.testing.CoordinationSuite`` is this contract, executable.
    """

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        """Take or keep a lock until ``ttl_ms`` from now; None where another owner holds it.

        Returns the token for a ``Fence``, above 0. It stays the same as long as no other owner has
        taken the lock and it was not released; taken anew, the lock has a greater token than ever.
        """
        ...

    def release(self, name: str, owner: str) -> None:
        """Give a lock back, if this owner holds it."""
        ...

    def note(self, name: str) -> bytes | None:
        """What was last noted under a name; None where nothing is."""
        ...

    def set_note(self, name: str, value: bytes | None) -> None:
        """Keep a few bytes for all workers to read; None forgets them."""
        ...


class Store(Records, Coordination, Protocol):
    """Records and coordination, opened, watched and closed together.

    ``registry.testing.StoreSuite`` is the whole contract, executable.
    """

    def probe(self) -> str | None:
        """Write something that nobody reads; ``StoreError`` where a registration would fail too.

        What is to be said of what is accepted, where there is anything.
        """
        ...

    def state(self) -> StoreState:
        """Its life and its size, to be shown. It may take a moment, so it is asked seldom."""
        ...

    def close(self) -> None:
        """Let go of everything; the store is not used after."""
        ...
