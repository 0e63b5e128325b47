"""Addresses of host names, looked up in the background, again and again."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from native_api.form import looked_up

_LOOKUPS_AT_ONCE = 8


def is_literal(host: str) -> bool:
    """Whether the host is an address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Addresses:
    """Addresses by host name. If a lookup fails, the name keeps its last address."""

    def __init__(
        self,
        refreshed: Callable[[], None],
        look_up: Callable[[str], str | None] = looked_up,
    ) -> None:
        """``refreshed`` is called after each lookup with a new result, in any thread."""
        self._refreshed = refreshed
        self._look_up = look_up
        self._known: dict[str, str] = {}
        self._failed: set[str] = set()
        self._busy: set[str] = set()
        self._pool = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="addresses")

    def get(self, host: str) -> str | None:
        """The address, None if it is not known yet; a literal address is its own."""
        return host if is_literal(host) else self._known.get(host)

    def has_failed(self, host: str) -> bool:
        """Whether the last lookup failed."""
        return host in self._failed

    def refresh(self, hosts: Iterable[str]) -> None:
        """Start looking these up, and forget all others."""
        wanted = {host for host in hosts if not is_literal(host)}
        for host in self._known.keys() - wanted:
            self._known.pop(host, None)
        self._failed &= wanted
        for host in wanted - self._busy:
            self._busy.add(host)
            try:
                self._pool.submit(self._refresh, host)
            except RuntimeError:
                return  # closed meanwhile; the caller is about to stop too

    def _refresh(self, host: str) -> None:
        try:
            found = self._look_up(host)
            if found is None:
                is_news = host not in self._failed
                self._failed.add(host)
            else:
                is_news = self._known.get(host) != found
                self._failed.discard(host)
                self._known[host] = found
        finally:
            self._busy.discard(host)
        if is_news:
            self._refreshed()

    def close(self) -> None:
        """Start no more lookups."""
        self._pool.shutdown(wait=False, cancel_futures=True)
