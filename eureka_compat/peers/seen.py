"""What the rest of the server sees of its peers."""

from __future__ import annotations

from typing import Any, Protocol


class PeersSeen(Protocol):
    """Whether there is something to serve yet, how the peers are, and what they may take."""

    def is_open(self) -> bool:
        """Whether reads may be answered."""
        ...

    def is_shadow(self) -> bool:
        """Whether nothing is to go from here to the peers."""
        ...

    def report(self) -> dict[str, Any]:
        """How each peer is, as JSON values; empty where the server has none."""
        ...


class _Alone:
    """A server without peers."""

    def is_open(self) -> bool:
        return True

    def is_shadow(self) -> bool:
        return False

    def report(self) -> dict[str, Any]:
        return {}


ALONE: PeersSeen = _Alone()
