"""Who is not evicted, though the lease ended here, because a peer may know better.

An instance whose last renewal here was a peer's word is evicted only after every peer was asked
since its lease ended (``leases``), so that what was lost on the way costs nobody his place. A peer
that does not answer holds it for ``hold_ms`` at most, and none that has been away for so long.

Any worker may evict, and one sees to the peers; they agree by two notes in the store.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from registry import HoldBack, Instance, Lease, Registry, StoreError
from registry.words import span

_ASKED_NOTE, _WANTED_NOTE = "peers-asked", "peers-wanted"
_KEPT_MS = 200
_WANT_AGAIN_MS = 1_000
# A renewal so much later than the client's own was another's.
_LATER_MS = 1_000


class Asked(NamedTuple):
    """How a peer stands, in monotonic milliseconds; 0 is never."""

    asked_mono_ms: int = 0
    """When the last comparison with it began that succeeded."""
    away_mono_ms: int = 0
    """Since when it does not answer."""


class Hold(HoldBack):
    """Whether an instance stays though its lease ended. Thread-safe; for every worker."""

    def __init__(self, registry: Registry, hold_ms: int, *, doubled: bool) -> None:
        """``doubled``: whether a renewal gives a lease twice its duration."""
        self._notes = registry.coordination
        self._clock = registry.clock
        self._hold_ms = hold_ms
        self._doubled = doubled
        self._lock = threading.Lock()
        self._known: dict[str, Asked] = {}
        self._read_at: int | None = None
        self._wanted_at = 0

    def __call__(self, instance: Instance, lease: Lease) -> bool:
        """See ``NamespaceRegistry.hold_back``."""
        now, ended = self._clock.mono_ms(), lease.deadline_mono_ms
        if now - ended > self._hold_ms or not self._is_by_peers(instance, lease):
            return False
        unsure = False
        for peer in self._asked(now).values():
            if peer.asked_mono_ms > ended:
                continue
            if peer.away_mono_ms:
                unsure |= now - peer.away_mono_ms <= self._hold_ms
            else:
                unsure = True
                self._want(now)
        return unsure

    def reason(self, instance: Instance, lease: Lease) -> str:
        """See ``HoldBack``."""
        if not self(instance, lease):
            return ""
        now, ended = self._clock.mono_ms(), lease.deadline_mono_ms
        away = [
            f"{name} (away for {span(now - peer.away_mono_ms)})"
            for name, peer in self._asked(now).items()
            if peer.away_mono_ms and peer.asked_mono_ms <= ended
        ]
        left = span(self._hold_ms - (now - ended))
        if away:
            return (
                "It renewed last at another server, and it is kept because a server that may know"
                f" more does not answer: {', '.join(away)}; for {left} more at most."
            )
        return (
            "It renewed last at another server, and it is kept until all of them have been asked"
            f" since its lease ended, which is being done; for {left} more at most."
        )

    def _is_by_peers(self, instance: Instance, lease: Lease) -> bool:
        """Whether a peer said last that the instance lives."""
        if not lease.client_mono_ms:
            later = lease.last_renewal_ms > instance.last_updated_ms + _LATER_MS
            return instance.peers_know or later
        renewed = lease.deadline_mono_ms - lease.duration_ms * (2 if self._doubled else 1)
        return renewed > lease.client_mono_ms + _LATER_MS

    def _asked(self, now: int) -> Mapping[str, Asked]:
        with self._lock:
            if self._read_at is None or now - self._read_at >= _KEPT_MS:
                self._read_at = now
                with contextlib.suppress(StoreError):
                    self._known = asked(self._notes.note(_ASKED_NOTE), now)
            return self._known

    def _want(self, now: int) -> None:
        """Have the peers asked soon."""
        with self._lock:
            if now - self._wanted_at < _WANT_AGAIN_MS:
                return
            self._wanted_at = now
        with contextlib.suppress(StoreError):
            self._notes.set_note(_WANTED_NOTE, b"%d" % now)


def asked(note: bytes | None, now: int) -> dict[str, Asked]:
    """How the peers stood, by name, as ``tell`` noted it in this boot of the machine."""
    if note is None:
        return {}
    told = {name: Asked(*each) for name, each in orjson.loads(note).items()}
    return {name: each for name, each in told.items() if max(each) <= now}


def known(registry: Registry) -> dict[str, Asked]:
    """How the peers stood when a worker last noted it; ``StoreError``."""
    return asked(registry.coordination.note(_ASKED_NOTE), registry.clock.mono_ms())


def tell(registry: Registry, peers: Mapping[str, Asked]) -> None:
    """Note how the peers stand, for all workers; ``StoreError``."""
    registry.coordination.set_note(
        _ASKED_NOTE, orjson.dumps({name: tuple(each) for name, each in peers.items()})
    )


def wanted_at(registry: Registry) -> int:
    """When a worker last wanted the peers to be asked (monotonic ms); ``StoreError``."""
    return int(registry.coordination.note(_WANTED_NOTE) or 0)
