"""Two servers' registries side by side: what one lacks, what differs, and who is to be believed.

Of two states of one instance the newer dirty timestamp wins, as everywhere in the protocol. An
override or metadata set at a server leaves that timestamp as it is; then the later change at either
server wins (``lastUpdatedTimestamp``, by the peer's own clock, which its answer's date tells).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from eureka_compat import wire
from registry import Instance, InstanceKey

# What each server says for itself; instances differ in it even where nothing is wrong.
_OWN_WORD = frozenset(
    {"leaseInfo", "lastUpdatedTimestamp", "actionType", "isCoordinatingDiscoveryServer"}
)


class DifferenceKind(StrEnum):
    """How the two differ about an instance."""

    MISSING = "missing"
    """Listed here, not there."""
    EXTRA = "extra"
    """Listed there, not here."""
    DIFFERS = "differs"
    """Listed at both, not alike."""


class Difference(NamedTuple):
    """One instance about which two servers differ.

    ``fields`` has, for ``DIFFERS``, each field with its value here and there. ``ours_wins`` says
    whose state is the newer one.
    """

    key: InstanceKey
    kind: DifferenceKind
    fields: Mapping[str, tuple[Any, Any]] = {}
    ours_wins: bool = True


@dataclass(slots=True)
class Comparison:
    """All differences between this server and a peer, and how many instances were compared."""

    ours: int
    theirs: int
    differences: list[Difference] = field(default_factory=list)

    def count(self, kind: DifferenceKind) -> int:
        """How many differences there are of a kind."""
        return sum(each.kind is kind for each in self.differences)


def compared(
    ours: Mapping[InstanceKey, Instance],
    theirs: Mapping[InstanceKey, Instance],
    *,
    skew_ms: int = 0,
) -> Comparison:
    """What differs. ``skew_ms`` is how far the peer's clock is ahead of this server's."""
    result = Comparison(len(ours), len(theirs))
    for key, mine in ours.items():
        other = theirs.get(key)
        if other is None:
            result.differences.append(Difference(key, DifferenceKind.MISSING))
            continue
        fields = differing_fields(mine, other)
        if fields:
            here = (mine.last_dirty_ms, mine.last_updated_ms)
            there = (other.last_dirty_ms, other.last_updated_ms - skew_ms)
            # Of the same instant, both servers must choose the same, or they would change places.
            wins = here > there or (here == there and _shown(fields, 0) > _shown(fields, 1))
            result.differences.append(Difference(key, DifferenceKind.DIFFERS, fields, wins))
    result.differences.extend(
        Difference(key, DifferenceKind.EXTRA, ours_wins=False) for key in theirs if key not in ours
    )
    return result


def differing_fields(mine: Instance, other: Instance) -> dict[str, tuple[Any, Any]]:
    """Each field that the two show differently, with both values."""
    ours, theirs = wire.instance_tree(mine), wire.instance_tree(other)
    # Durations are the client's word; the instants beside them are the server's.
    for tree in (ours, theirs):
        lease = tree["leaseInfo"]
        tree["durationInSecs"] = lease["durationInSecs"]
        tree["renewalIntervalInSecs"] = lease["renewalIntervalInSecs"]
    names = dict.fromkeys([*ours, *theirs])
    return {
        name: (ours.get(name), theirs.get(name))
        for name in names
        if name not in _OWN_WORD and ours.get(name) != theirs.get(name)
    }


def _shown(fields: Mapping[str, tuple[Any, Any]], side: int) -> bytes:
    """What one side shows, as bytes that can be ordered."""
    shown = {name: values[side] for name, values in fields.items()}
    return orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)
