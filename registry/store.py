"""The store contract: what must survive and be shared between worker processes.

A store may be in this process, on this machine or across a network: no caller assumes a call to be
local or free, and each method is one atomic operation. Writers read from their view, decide, and
``commit`` with guards; a guard that no longer holds raises ``ConflictError`` and the caller decides
again. So the rules stay out of the stores, and a store needs one conditional write.

Every method raises ``StoreError``, with the driver's error chained, when the store does not answer
or refuses a write; nothing is written then.

**Lives.** A revision is never given to two states. Where a store may have lost what it last wrote
(a copy was restored, a damaged file was given up, another server took over) or begins empty, it
begins another *life*: its revisions go on from ``another_life``, far beyond any that it can have
given out, nothing before counts as known to ``changes``, and what is listed counts as changed. So
whoever asks with a revision of another life gets everything, and a follower of the delta ends with
what is listed, whatever it saw of what was lost. A life may begin while the server runs.

**Running time.** The log's instants are in the time that the server has run. An outage consumes
nothing: not the leases' time and not the log's. Every worker notes a few times a second that the
server runs (``resume``); where the last note is older than ``PAUSE_MS``, running time stands still.
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
"""After so long without a note that the server runs, it does not."""

_LIFE = 1 << 42


def another_life(known: Revision) -> Revision:
    """Where revisions go on in another life of a store whose last known one is this.

    Further than changes can have been lost, by chance, so that no two lives meet; small enough for
    a thousand of them in numbers that JavaScript holds exactly.
    """
    return Revision(known + random.SystemRandom().randrange(_LIFE, 2 * _LIFE))


class Commit(NamedTuple):
    """One conditional write.

    The guards: ``expected`` is the revision of the stored instance under ``key`` (0: there must be
    none); ``expected_override`` the override of its id; ``expected_deadline_mono_ms``, where given,
    the deadline of its lease, so that a renewal that came in time beats an eviction. What lists a
    new key is also refused where the namespace holds ``instances_at_most`` already, or holds none
    while ``namespaces_at_most`` others hold some: limits are decided with the write, as the number
    of writers has no limit.
    The write: ``instance`` is put (or taken out, where ``remove``), its lease with it; the override
    changes as ``override`` says (it is of the key's id); ``expected_clients`` moves by
    ``expected_clients_step`` unless it stands at 0, from ``opening_clients`` where it was never
    set. One that is ``evicted`` counts (see ``evictions``). The change has the next revision, which
    the instance carries.
    """

    key: InstanceKey
    expected: Revision
    expected_override: InstanceStatus | None
    at_mono_ms: int
    instance: Instance | None
    lease: Lease | None = None
    remove: bool = False
    evicted: bool = False
    expected_deadline_mono_ms: int | None = None
    override: OverrideChange | None = None
    expected_clients_step: int = 0
    opening_clients: int = 0
    instances_at_most: int | None = None
    namespaces_at_most: int | None = None


class Fence(NamedTuple):
    """A lock, and the token with which its owner holds it.

    Work under a lock that can run out commits behind a fence: once a later token was given out
    nothing of the former owner's is written, however late it comes.
    """

    lock: str
    token: int


class Due(NamedTuple):
    """What a look through the leases of a namespace found at an instant.

    ``next_deadline_mono_ms`` is the earliest deadline that has not passed; None where there is
    none.
    """

    expired: list[tuple[InstanceKey, Lease]]
    leases: int
    next_deadline_mono_ms: int | None


class Records(Protocol):
    """What is registered, the log of its changes, and the time in which both live.

    ``registry.testing.RecordsSuite`` is this contract, executable.
    """

    def revision(self, namespace: Namespace) -> Revision:
        """The revision of the last change; the life's first before there is one.

        The cheapest call there is.
        """
        ...

    def load(self, namespace: Namespace) -> Snapshot:
        """The whole namespace at one revision."""
        ...

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        """What changed after a revision, in the order of the last changes; each instance once.

        It is shown as it is now, and a removed one as it was last. None where some of it was
        forgotten, or the revision is not known in this life.
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
        """Each as ``commit``, in their order, in one operation; None where a guard did not hold.

        A commit sees those before it. ``StoreError`` and ``LockLostError`` mean that none was
        written.
        """
        ...

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        """Replace the lease of ``key``; False where it has none, or one of another duration.

        So what was decided for a lease is never another one's. No entry in the change log.
        Where ``window`` is given, the renewal counts in that window (see ``renewals``). A lease
        whose ``client_mono_ms`` is 0 leaves the one that is known.
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
        """The lease as it is now."""
        ...

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        """The leases whose deadline has passed, among how many, and when the next one's will."""
        ...

    def renewals(self, namespace: Namespace, window: int) -> int:
        """How many renewals counted in a window. Windows before the last two may be forgotten."""
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
        """Forget changes older than an instant, all or some of them; how many went.

        It takes a moment, not more: where any went, ask again soon. Of removed instances a store
        may forget the oldest earlier, to stay within a budget.
        """
        ...

    def namespaces(self) -> Mapping[Namespace, int]:
        """Every namespace that ever held an instance, and how many it holds. Reads make none."""
        ...

    def resume(self, now_mono_ms: int) -> int | None:
        """Note that the server runs, and make good a time in which it did not.

        Where the last such note is more than ``PAUSE_MS`` old, or of another boot, every lease gets
        its whole duration from now on (unless it has more) before anybody can note that the server
        runs, so nobody is evicted for the server's own outage; a renewal that comes meanwhile
        stands. Returns how many leases that were; None where the server had been running (or there
        was no note yet).
        """
        ...

    def running_ms(self, now_mono_ms: int) -> int:
        """How long the server had run at an instant (see above). As cheap as ``revision``."""
        ...

    def flush(self) -> None:
        """Bring what was written to the disk, as far as the store has one."""
        ...


class Coordination(Protocol):
    """What workers agree by: locks that run out, and notes.

    It belongs to the same store as the records, since these are written behind fences.
    ``registry.testing.CoordinationSuite`` is this contract, executable.
    """

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        """Take or keep a lock until ``ttl_ms`` from now; None where another owner holds it.

        Returns its token for a ``Fence``: above 0, the same as long as the owner keeps the lock,
        and greater than all before where it was taken anew.
        """
        ...

    def release(self, name: str, owner: str) -> None:
        """Give a lock back, if this owner holds it."""
        ...

    def note(self, name: str) -> bytes | None:
        """What was last noted under a name."""
        ...

    def set_note(self, name: str, value: bytes | None) -> None:
        """Keep a few bytes for all workers to read; None forgets them."""
        ...


class Store(Records, Coordination, Protocol):
    """Both, as they are opened, looked after and closed together.

    ``registry.testing.StoreSuite`` is the whole contract, executable.
    """

    def probe(self) -> None:
        """Write something that nobody reads: ``StoreError`` where writes are refused."""
        ...

    def close(self) -> None:
        """Let go of everything; the store is not used after."""
        ...
