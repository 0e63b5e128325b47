"""The stores, and their histories, chosen by URL scheme: ``memory:`` and ``lmdb:PATH``."""

from __future__ import annotations

from pathlib import Path

from registry.history import History
from registry.model import Revision
from registry.store import Store, another_life


def open_store(url: str) -> Store:
    """Open the store that a URL names; ``ValueError`` for a URL that names none."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory" and not rest:
        from registry.stores.memory import MemoryStore

        return MemoryStore(another_life(Revision(0)))
    if scheme == "lmdb" and rest:
        from registry.stores.lmdb import LmdbStore

        return LmdbStore(Path(rest))
    raise ValueError(f"STORE_URL={url!r}: expected memory: or lmdb:PATH")


def open_history(url: str, most_bytes: int) -> History:
    """Open the history beside the store that a URL names; it takes so many bytes at most."""
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb":
        from registry.stores.lmdb_history import LmdbHistory

        return LmdbHistory(Path(rest) / "history", most_bytes)
    from registry.stores.memory_history import MemoryHistory

    return MemoryHistory(most_bytes)


def folder_of(url: str) -> Path | None:
    """The folder on this machine that the store of a URL has; None where it has none."""
    scheme, _, rest = url.partition(":")
    return Path(rest) if scheme == "lmdb" and rest else None
