"""What has a lease and what was removed, as one of these servers tells another of the two.

That is ``peerreplication/leases``, beside the list of instances.

Lists are the same for all who ask, so they show when an instance registered and not when it last
renewed. A peer needs to know that: an instance that renews elsewhere is not to be evicted here, and
a dead one is not to get another lease. Nor is one to come back that was cancelled while a server
was away: who still lists it asks here what it would be told of. Told are spans and no instants, so
clocks do not matter. A genuine server knows nothing of it and answers 404; its list has instants
that are fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from eureka_compat import codecs
from eureka_compat.negotiation import JSON
from eureka_compat.wire import ParseError
from eureka_http.exchange import Answer
from registry import Change, InstanceKey, NamespaceRegistry

PATH = "peerreplication/leases"
_LONGEST_MS = 1 << 40


class Ending(StrEnum):
    """How an instance ended at a server."""

    CANCELLED = "cancelled"
    """Its client said so there, or an operator."""
    TOLD = "told"
    """A peer told of its cancel: it may have been under way for long."""
    EVICTED = "evicted"
    """Its lease ended."""


class Removal(NamedTuple):
    """That an instance was removed, and how many milliseconds ago."""

    how: Ending
    ago_ms: int


class Leases(NamedTuple):
    """What a server tells: what each lease has left (ms), and what it removed lately.

    Who has begun takes none of it from a shadow.
    """

    left_ms: Mapping[InstanceKey, int]
    removed: Mapping[InstanceKey, Removal]
    is_shadow: bool = False


def removed_lately(registry: NamespaceRegistry) -> dict[InstanceKey, Change]:
    """What was cancelled or evicted within the delta's window, and is not listed again."""
    view = registry.view()
    with view.lock:
        changes = view.recent(registry.clock.mono_ms())
    return {
        change.instance.key: change
        for change in changes
        if change.removed and change.instance is not None
    }


def answer(registry: NamespaceRegistry, *, is_shadow: bool = False) -> Answer:
    """Milliseconds by application and id; negative where a lease has ended. ``StoreError``.

    A shadow says that it is one.
    """
    leases = registry.leases()
    now, wall = registry.clock.mono_ms(), registry.clock.wall_ms()
    left: dict[str, dict[str, int]] = {}
    for key, lease in leases.items():
        left.setdefault(key.app, {})[key.id] = lease.deadline_mono_ms - now
    told: dict[str, Any] = {"leases": left}
    if is_shadow:
        told["mode"] = "shadow"
    running = registry.view().running_ms(now)
    for key, change in removed_lately(registry).items():
        # What a catalog no longer names is another thing than a client that has gone.
        if change.instance is not None and change.instance.is_leased:
            of_its_kind = told.setdefault(str(_how(change)), {})
            # By either clock: one goes on while the server is down, none sets the other back.
            of_its_kind.setdefault(key.app, {})[key.id] = max(
                wall - change.instance.last_updated_ms, running - change.at_running_ms
            )
    return Answer(200, codecs.to_json(told), JSON)


def _how(change: Change) -> Ending:
    if change.evicted:
        return Ending.EVICTED
    known = change.instance is not None and change.instance.peers_know
    return Ending.TOLD if known else Ending.CANCELLED


def read(body: bytes) -> Leases:
    """What ``answer`` wrote; ``ParseError`` where it is not that."""
    document: Any = codecs.read_json(body)
    if not isinstance(document, dict) or "leases" not in document:
        raise ParseError("leases: expected objects")
    removed = {
        key: Removal(how, ago_ms)
        for how in Ending
        for key, ago_ms in _spans(document.get(how, {}), 0).items()
    }
    is_shadow = document.get("mode") == "shadow"
    return Leases(_spans(document["leases"], -_LONGEST_MS), removed, is_shadow)


def _spans(told: Any, least_ms: int) -> dict[InstanceKey, int]:
    if not isinstance(told, dict) or not all(isinstance(each, dict) for each in told.values()):
        raise ParseError("leases: expected objects")
    found = {
        InstanceKey(app, instance_id): ms
        for app, ids in told.items()
        for instance_id, ms in ids.items()
    }
    if not all(type(ms) is int and least_ms <= ms < _LONGEST_MS for ms in found.values()):
        raise ParseError("leases: expected milliseconds")
    return found
