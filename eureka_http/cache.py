"""A bounded cache: what was worked out once, for those who ask for it again.

Made answers, parsed heads, verified credentials: whatever requests can fill without end is kept in
one of these. ``docs/architecture.md`` lists them all, with what makes their entries invalid; this
module only bounds them.

A full cache gives up an entry picked at random for each new one (random replacement, as in some
processors). So a look-up records nothing and costs what a dict's does; no order of keys makes every
look-up miss, such as more clients in turn than there is room for; and whoever sends ever new keys
pushes useful entries out one at a time, never all at once.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Cache(Generic[_K, _V]):
    """Values by key, bounded by their number and, where that is not enough, by size. Thread-safe.

    ``get(key)`` gives the value that is kept under a key, or None.
    """

    __slots__ = ("_entries", "_keys", "_lock", "_most", "_most_bytes", "_size", "_size_of", "get")

    def __init__(
        self,
        most: int,
        *,
        most_bytes: int = sys.maxsize,
        size_of: Callable[[_K], int] = lambda key: 0,
    ) -> None:
        """Keep at most ``most`` entries, whose keys have at most ``most_bytes`` by ``size_of``."""
        self._most = most
        self._most_bytes = most_bytes
        self._size_of = size_of
        self._size = 0
        self._lock = threading.Lock()
        self._entries: dict[_K, _V] = {}
        # The same keys once more: of these one can be picked at random.
        self._keys: list[_K] = []
        # The dict's own method, since one that calls it would double the time of a look-up.
        self.get: Callable[[_K], _V | None] = self._entries.get

    def keep(self, key: _K, value: _V) -> None:
        """Keep a value under a key, in place of the one that is there.

        Others go where it is full. A key that alone is over the bound is not kept.
        """
        with self._lock:
            if key not in self._entries:
                size = self._size_of(key)
                if size > self._most_bytes or self._most < 1:
                    return
                self._make_room(self._most - 1, self._most_bytes - size)
                self._keys.append(key)
                self._size += size
            self._entries[key] = value

    def forget(self, is_over: Callable[[_V], bool]) -> None:
        """Forget all values that are over."""
        with self._lock:
            for key, value in list(self._entries.items()):
                if is_over(value):
                    self._size -= self._size_of(key)
                    del self._entries[key]
            self._keys = list(self._entries)

    def resize(self, most: int) -> None:
        """Keep at most ``most`` entries from now on."""
        with self._lock:
            self._most = most
            self._make_room(most, self._most_bytes)

    def _make_room(self, most: int, most_bytes: int) -> None:
        keys = self._keys
        while len(keys) > most or self._size > most_bytes:
            place = int(random.random() * len(keys))
            key = keys[place]
            keys[place] = keys[-1]
            keys.pop()
            self._size -= self._size_of(key)
            del self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)
