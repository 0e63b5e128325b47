"""The stores, and their histories, chosen by URL scheme: ``memory:``, ``lmdb:PATH``, ``redis://``.

A store on Redis has a folder on this machine too. Which URLs name one: ``redis/address.py``.
"""

from __future__ import annotations

from pathlib import Path

from registry.history import History
from registry.model import Revision
from registry.store import Store, another_life


def folder_of(url: str) -> Path | None:
    """The folder of this machine where a store has its files, if it has any.

    ``ValueError``, which does not show the URL, for one that names no store.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory" and not rest:
        return None
    if scheme == "lmdb" and rest:
        return Path(rest)
    if scheme.partition("+")[0] in ("redis", "rediss"):
        from registry.stores.redis import read_address

        return Path(read_address(url).folder)
    raise ValueError("expected memory:, lmdb:PATH or redis://HOST:PORT/DATABASE")


def is_remote(url: str) -> bool:
    """Whether a write to the store that a URL names may have to wait for another machine."""
    return url.partition(":")[0] not in ("memory", "lmdb")


def open_store(url: str, *, accepts_while_away: bool = False) -> Store:
    """Open the store that a URL names; ``ValueError`` for a URL that names none, ``StoreError``.

    With ``accepts_while_away`` a store on Redis takes writes while that does not answer.
    """
    folder = folder_of(url)
    if folder is None:
        from registry.stores.memory import MemoryStore

        return MemoryStore(another_life(Revision(0)))
    if url.startswith("lmdb:"):
        from registry.stores.lmdb import LmdbStore

        return LmdbStore(folder)
    from registry.stores.redis import RedisStore, read_address

    return RedisStore(read_address(url), accepts_while_away=accepts_while_away)


def open_history(url: str, most_bytes: int) -> History:
    """Open the history beside the store that a URL names; it takes so many bytes at most."""
    folder = folder_of(url)
    if folder is None:
        from registry.stores.memory_history import MemoryHistory

        return MemoryHistory(most_bytes)
    from registry.stores.lmdb_history import LmdbHistory

    return LmdbHistory(folder / "history", most_bytes)
