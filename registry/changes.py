"""The change log as it is held in memory: the last change of each instance, and no more.

It refers to the instances that are listed, so however often they change it costs no more than their
number. Removed instances are held for the log alone, so they have a budget: beyond it the oldest
removals are forgotten before their time.

A delta that lacks a removal still leads to what is listed. It has every listed instance that
changed, so whoever follows it ends with some instances too many and none too few; the hash code
of the registry is another then, and the follower fetches everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from registry.model import Change, Instance, InstanceKey, Revision

REMOVED_BYTES = 32 * 1024 * 1024
"""How much memory removed instances may take, roughly."""

_INSTANCE_BYTES = 1_200
_ENTRY_BYTES = 150


class ChangeLog:
    """The last change of each instance, and of each override that changed alone, in their order."""

    def __init__(self, complete_after: Revision) -> None:
        """Start empty, without the changes up to that revision."""
        self.complete_after = complete_after
        """All changes after this revision are here; of those before only some."""
        self._changes: OrderedDict[InstanceKey | str, Change] = OrderedDict()
        self._removed: OrderedDict[InstanceKey | str, int] = OrderedDict()
        self._removed_bytes = 0

    def __len__(self) -> int:
        return len(self._changes)

    def put(self, change: Change, place: InstanceKey | str) -> Sequence[Change]:
        """Add the newest change; returns what was forgotten to stay within the budget.

        ``place`` is its ``place_of``, which whoever applies a commit has at hand.
        """
        instance = change.instance
        before = self._changes.pop(place, None)
        if before is not None and before.override is not None and change.override is None:
            change = change._replace(override=before.override)
        if self._removed:
            self._removed_bytes -= self._removed.pop(place, 0)
        self._changes[place] = change
        if not change.removed and instance is not None:
            return ()
        size = self._removed[place] = _size(instance)
        self._removed_bytes += size
        forgotten: list[Change] = []
        while self._removed_bytes > REMOVED_BYTES:
            forgotten.append(self._forget(next(iter(self._removed))))
        return forgotten

    def oldest(self) -> Change | None:
        """The oldest change; None where there is none."""
        for change in self._changes.values():
            return change
        return None

    def forget_oldest(self) -> Change:
        """Forget the oldest change, and return it; there must be one."""
        return self._forget(next(iter(self._changes)))

    def _forget(self, place: InstanceKey | str) -> Change:
        change = self._changes.pop(place)
        self._removed_bytes -= self._removed.pop(place, 0)
        self.complete_after = max(self.complete_after, change.revision)
        return change

    def all(self) -> list[Change]:
        """All changes, oldest first."""
        return list(self._changes.values())

    def after(self, revision: Revision) -> list[Change] | None:
        """The changes after a revision, oldest first; None where some of them are forgotten."""
        if revision < self.complete_after:
            return None
        found = []
        for change in reversed(self._changes.values()):
            if change.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found


def place_of(change: Change) -> InstanceKey | str:
    """An instance's key; where an override alone changed, the id that it is of."""
    if change.instance is not None:
        return change.instance.key
    return change.override.id if change.override is not None else ""


def _size(instance: Instance | None) -> int:
    """How many bytes of memory a removed instance takes, roughly."""
    if instance is None:
        return _ENTRY_BYTES
    texts = sum([len(value) for value in instance if type(value) is str])
    entries = sum([len(key) + len(value) for key, value in instance.metadata.items()])
    return _INSTANCE_BYTES + texts + entries + _ENTRY_BYTES * len(instance.metadata)
