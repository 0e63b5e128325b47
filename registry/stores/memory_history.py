"""The plainest reading of the contract of a history: one process, nothing kept after it."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from registry.history import Extent, ForgottenError, HistoryEntry, Moment, Page, Wish
from registry.model import Instance, InstanceKey, Namespace, Revision

_BYTES_FOR_EACH = 2048
"""What an entry counts for: an instance of some fifty strings, and what tells of it."""


def _place(entry: HistoryEntry) -> tuple[int, int, int]:
    return entry.at_ms, entry.revision, entry.number


@dataclass
class _Contents:
    """One namespace: its entries in their order, and what was forgotten of them."""

    entries: list[HistoryEntry] = field(default_factory=list)
    base: dict[InstanceKey, HistoryEntry] = field(default_factory=dict)
    forgotten: int = 0


class MemoryHistory:
    """A history in this process. One lock guards all of it."""

    def __init__(self, most_bytes: int) -> None:
        """Start empty."""
        self._most = max(1, most_bytes // _BYTES_FOR_EACH)
        self._lock = threading.Lock()
        self._contents: dict[Namespace, _Contents] = {}
        self._earliest: int | None = None

    def begin(self, revisions: Mapping[Namespace, Revision], now_ms: int) -> None:
        with self._lock:
            if self._earliest is not None:
                return
            self._earliest = now_ms
            for namespace, revision in revisions.items():
                self._contents.setdefault(namespace, _Contents()).forgotten = revision
            self._forget(now_ms)

    def add(self, entries: Sequence[HistoryEntry]) -> None:
        with self._lock:
            for entry in entries:
                contents = self._contents.setdefault(entry.namespace, _Contents())
                if self._earliest is not None and entry.at_ms < self._earliest:
                    self._settle(contents, entry)
                else:
                    insort(contents.entries, entry, key=_place)
            held = sorted(e.at_ms for c in self._contents.values() for e in c.entries)
            if len(held) > self._most:
                self._forget(held[-self._most] + 1)

    @staticmethod
    def _settle(contents: _Contents, entry: HistoryEntry) -> None:
        """Keep the state of an entry that is not told of any more."""
        key = InstanceKey(entry.app, entry.id)
        known = contents.base.get(key)
        if not entry.is_state or (known is not None and known.revision > entry.revision):
            return
        if entry.removed:
            contents.base.pop(key, None)
        else:
            contents.base[key] = entry

    def _forget(self, before_ms: int) -> None:
        for contents in self._contents.values():
            end = bisect_left(contents.entries, (before_ms, 0, 0), key=_place)
            gone = sorted(contents.entries[:end], key=lambda entry: entry.revision)
            del contents.entries[:end]
            newest = {InstanceKey(e.app, e.id): e.revision for e in gone if e.is_state}
            # What is older by its revision is not told of any more, though the clock was set back.
            contents.entries = [
                entry
                for entry in contents.entries
                if not (
                    entry.is_state
                    and entry.revision < newest.get(InstanceKey(entry.app, entry.id), 0)
                )
            ]
            for entry in gone:
                self._settle(contents, entry)
                contents.forgotten = max(contents.forgotten, entry.revision)
        if self._earliest is not None:
            self._earliest = max(self._earliest, before_ms)

    def prune(self, before_ms: int) -> bool:
        with self._lock:
            if any(c.entries and c.entries[0].at_ms < before_ms for c in self._contents.values()):
                self._forget(before_ms)
        return False

    def read(self, namespace: Namespace, wish: Wish) -> Page:
        with self._lock:
            entries = self._contents.get(namespace, _Contents()).entries
            start = 0
            if wish.since_ms is not None:
                start = bisect_left(entries, (wish.since_ms, 0, 0), key=_place)
            end = len(entries)
            if wish.until_ms is not None:
                end = bisect_right(entries, (wish.until_ms + 1, -1, 0), key=_place)
            if wish.before is not None:
                end = min(end, bisect_left(entries, wish.before, key=_place))
            found = []
            for entry in reversed(entries[start:end]):
                if wish.has(entry):
                    found.append(entry)
                if len(found) == wish.limit:
                    return Page(found, _place(entry))
            return Page(found, None)

    def _check(self, namespace: Namespace, moment: Moment) -> None:
        if self._earliest is None:
            raise ForgottenError(None)
        if moment.revision is not None:
            contents = self._contents.get(namespace)
            if contents is not None and moment.revision < contents.forgotten:
                raise ForgottenError(self._earliest)
        elif moment.at_ms is not None and moment.at_ms < self._earliest:
            raise ForgottenError(self._earliest)

    def _states(self, namespace: Namespace, moment: Moment) -> dict[InstanceKey, HistoryEntry]:
        """The newest state of each instance up to a moment."""
        contents = self._contents.get(namespace, _Contents())
        found = dict(contents.base)
        for entry in sorted(contents.entries, key=lambda entry: (entry.revision, entry.number)):
            if entry.is_state and moment.has(entry.at_ms, entry.revision):
                found[InstanceKey(entry.app, entry.id)] = entry
        return found

    def state(self, namespace: Namespace, moment: Moment) -> Iterator[Instance]:
        with self._lock:
            self._check(namespace, moment)
            found = sorted(self._states(namespace, moment).items())
        return iter([i for _, entry in found if (i := _listed(entry)) is not None])

    def differences(
        self, namespace: Namespace, first: Moment, second: Moment
    ) -> Iterator[tuple[Instance | None, Instance | None]]:
        with self._lock:
            self._check(namespace, first)
            self._check(namespace, second)
            before = self._states(namespace, first)
            after = self._states(namespace, second)
        pairs = [
            (_listed(before.get(key)), _listed(after.get(key)))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) is not after.get(key)
        ]
        return iter([pair for pair in pairs if pair != (None, None)])

    def known(self, namespace: Namespace) -> dict[InstanceKey, tuple[Revision, bool]]:
        with self._lock:
            found = self._states(namespace, Moment())
        return {key: (entry.revision, not entry.removed) for key, entry in found.items()}

    def extent(self) -> Extent:
        with self._lock:
            count = sum(len(contents.entries) for contents in self._contents.values())
            base = sum(len(contents.base) for contents in self._contents.values())
            return Extent(self._earliest, count, (count + base) * _BYTES_FOR_EACH)

    def close(self) -> None:
        pass


def _listed(entry: HistoryEntry | None) -> Instance | None:
    """An entry's instance, at its revision; None where it was removed by it."""
    if entry is None or entry.removed or entry.instance is None:
        return None
    return entry.instance._replace(revision=entry.revision)
