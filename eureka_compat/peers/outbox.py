"""What one peer is still to be told: one entry for each instance, the newest word wins.

An entry says what happened, not what to send: the instance itself is looked up when a batch is
made, so a peer that was away for an hour is told how things are now. Several changes of one
instance are one entry, and an outbox is never longer than the registry.

==========  =============================================================================
pending     then this comes
==========  =============================================================================
anything    ``CANCEL``: only the cancel is left
``CANCEL``  ``REGISTER``: both are sent, in this order: a client that was stopped and started
            again may come with an older dirty timestamp, which would lose against its own past
anything    ``REGISTER``, ``OVERRIDE``, ``HEARTBEAT``: added to what is pending
==========  =============================================================================

A registration renews too, so a heartbeat beside one is left out. What had to wait, since the peer
did not answer, is marked ``LATE``: other servers may have heard newer words meanwhile.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from enum import Flag, auto

from registry import InstanceKey


class Pending(Flag):
    """What happened to an instance, in the order in which a peer is told of it."""

    CANCEL = auto()
    REGISTER = auto()
    OVERRIDE = auto()
    HEARTBEAT = auto()
    LATE = auto()


class Outbox:
    """The entries of one peer, oldest first. Thread-safe."""

    def __init__(self, most: int) -> None:
        """``most`` is the bound of ``maxElementsInPeerReplicationPool``, in instances."""
        self._most = most
        self._lock = threading.Lock()
        self._entries: OrderedDict[InstanceKey, Pending] = OrderedDict()
        self._overflowed = False
        self._under_way: list[tuple[InstanceKey, Pending]] = []
        self._cancels: set[InstanceKey] | None = None

    def __len__(self) -> int:
        """How many instances the peer is to be told of."""
        return len(self._entries)

    def put(self, key: InstanceKey, what: Pending) -> None:
        """Add to what a peer is told of an instance.

        Where there is no room nothing is kept at all: from then on only a comparison of both
        registries can tell what the peer lacks, and that is what ``overflowed`` asks for.
        """
        with self._lock:
            if self._cancels is not None and Pending.CANCEL in what:
                self._cancels.add(key)
            known = self._entries.get(key)
            if known is None and len(self._entries) >= self._most:
                self._entries.clear()
                self._overflowed = True
                return
            self._entries[key] = what if known is None else _later(known, what)

    def take(self, most: int) -> list[tuple[InstanceKey, Pending]]:
        """Remove and return the oldest entries; ``put_back`` what could not be sent."""
        with self._lock:
            count = min(most, len(self._entries))
            self._under_way = [self._entries.popitem(last=False) for _ in range(count)]
            return self._under_way

    def put_back(self, entries: list[tuple[InstanceKey, Pending]]) -> None:
        """Return what was taken and not sent; what was put meanwhile is the later word."""
        with self._lock:
            for key, what in reversed(entries):
                newer = self._entries.get(key)
                self._entries[key] = what if newer is None else _later(what, newer)
                self._entries.move_to_end(key, last=False)

    def mark_late(self) -> None:
        """Mark all that waits as late."""
        with self._lock:
            for key in self._entries:
                self._entries[key] |= Pending.LATE

    def overflowed(self) -> bool:
        """Whether entries were given up since this was last asked."""
        with self._lock:
            told, self._overflowed = self._overflowed, False
            return told

    def note_cancels(self) -> None:
        """Note from now on whose end the peer is told of, until ``cancels_noted``.

        Its list may be older than that: it is fetched while batches go on.
        """
        with self._lock:
            told = [*self._under_way, *self._entries.items()]
            self._cancels = {key for key, what in told if Pending.CANCEL in what}

    def cancels_noted(self) -> set[InstanceKey]:
        """Whose end the peer was, is or will be told of since ``note_cancels``; note no more."""
        with self._lock:
            noted, self._cancels = self._cancels or set(), None
            return noted


def _later(earlier: Pending, later: Pending) -> Pending:
    if Pending.CANCEL in later:
        return later
    both = earlier | later
    return both & ~Pending.HEARTBEAT if Pending.REGISTER in both else both
