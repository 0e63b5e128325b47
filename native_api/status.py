"""``GET status``: how the server and one namespace are, in figures, with warnings.

Several pages ask it each second. So an answer is kept for a moment, and nothing in it is counted
for it: the figures are those that the view and the store keep anyway.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eureka_http.shown import masked_url
from native_api.form import instant
from registry import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    NamespaceRegistry,
    NotYetError,
    Preservation,
    StoreError,
    StoreState,
)

_KEPT_MS = 1_000
# A namespace that is fuller than this will soon refuse somebody.
_NEARLY_FULL = 0.9
_Reports = Callable[[], Sequence[Mapping[str, Any]]]


def _no_store() -> StoreState:
    raise StoreError("there is no store")


class Samples(NamedTuple):
    """What was counted at regular instants."""

    step_secs: int
    columns: tuple[str, ...]
    rows: list[list[float]]
    """The instant (epoch seconds), then the columns: what there was, or what came in a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is the same in all namespaces of a server.

    ``check`` raises ``StoreError`` where the store takes no writes; ``warnings`` are those of the
    start, about settings. ``began`` is the monotonic clock (seconds) at the start.
    """

    version: str = "unknown"
    workers: int = 1
    began: float = field(default_factory=time.monotonic)
    store_url: str = ""
    state: Callable[[], StoreState] = _no_store
    check: Callable[[], object] = lambda: None
    warnings: tuple[str, ...] = ()
    delta_enabled: bool = True
    """Whether Eureka's clients may fetch deltas."""
    samples: Callable[[float], Samples] = lambda since_secs: Samples(0, (), [])
    """What was counted regularly, since an instant (epoch seconds)."""
    namespaces: Callable[[], Sequence[str]] = lambda: (DEFAULT_NAMESPACE,)
    """Those that an administrator may name."""


class Status:
    """The status of one namespace. Thread-safe."""

    def __init__(
        self,
        registry: NamespaceRegistry,
        server: Server,
        catalogs: _Reports,
        peers: Callable[[], Mapping[str, Any]],
    ) -> None:
        """``catalogs`` and ``peers`` tell how each is, as JSON values."""
        self._registry = registry
        self._server = server
        self._catalogs = catalogs
        self._peers = peers
        self._lock = threading.Lock()
        self._kept: dict[bool, tuple[int, dict[str, Any]]] = {}

    def document(self, *, is_admin: bool, is_quick: bool = False) -> dict[str, Any]:
        """The status as JSON values, at most a second old; ``StoreError`` where it is not known.

        Only an administrator sees the store, the peers, all of the catalogs and the settings.
        ``NotYetError`` where it ``is_quick`` and the answer must be made: the store is tried.
        """
        now = self._registry.clock.mono_ms()
        kept = self._kept.get(is_admin)
        if kept is not None and 0 <= now - kept[0] < _KEPT_MS:
            return kept[1]
        if is_quick:
            raise NotYetError
        with self._lock:
            kept = self._kept.get(is_admin)
            if kept is not None and 0 <= now - kept[0] < _KEPT_MS:
                return kept[1]
            made = self._made(is_admin=is_admin)
            self._kept[is_admin] = (now, made)
            return made

    def _made(self, *, is_admin: bool) -> dict[str, Any]:
        registry, server = self._registry, self._server
        view = registry.view()
        with view.lock:
            revision, size, leased = view.revision, view.size(), view.leased
            applications = len(view.applications)
            counts = {str(status): view.listing.counts[status] for status in InstanceStatus}
        try:
            preservation: Preservation | None = registry.preservation()
        except StoreError:
            preservation = None
        catalogs = self._shown_catalogs(is_admin=is_admin)
        peers = self._peers() if is_admin else {}
        return {
            "version": server.version,
            "namespace": registry.namespace,
            "revision": revision,
            "applications": applications,
            "instances": {"total": size, **counts},
            "leases": leased,
            "renewals": _renewals(preservation),
            "self_preservation": _self_preservation(preservation),
            "workers": server.workers,
            "uptime_ms": int((time.monotonic() - server.began) * 1000),
            "store": self._store() if is_admin else None,
            "peers": _peers_in_short(peers) if peers else None,
            "catalogs": [
                {name: each[name] for name in ("source", "state", "entries", "stale")}
                for each in catalogs
            ],
            "warnings": list(self._warnings(size, preservation, catalogs, peers, is_admin)),
        }

    def _shown_catalogs(self, *, is_admin: bool) -> Sequence[Mapping[str, Any]]:
        """All of them, or those that bring something to this namespace, with how much."""
        reports = self._catalogs()
        if is_admin or not reports:
            return reports
        view = self._registry.view()
        with view.lock:
            brought = Counter(i.source for a in view.applications.values() for i in a.values())
        return [
            {**each, "entries": brought[each["source"]]}
            for each in reports
            if brought[each["source"]]
        ]

    def _store(self) -> dict[str, Any] | None:
        try:
            state = self._server.state()
        except StoreError:
            return None
        url = self._server.store_url
        return {
            "url": masked_url(url) if "://" in url else url,
            "size_bytes": state.size_bytes,
            "life": state.life,
        }

    def _warnings(
        self,
        size: int,
        preservation: Preservation | None,
        catalogs: Sequence[Mapping[str, Any]],
        peers: Mapping[str, Any],
        is_admin: bool,
    ) -> Iterator[str]:
        """A sentence for each thing that somebody should see to."""
        try:
            self._server.check()
        except StoreError as error:
            why = f": {error}" if is_admin else ""
            yield f"The store takes no writes, so nobody can register or renew{why}."
        if preservation is not None and preservation.is_active:
            yield preservation.sentence
        most = self._registry.settings.max_instances
        if size >= most * _NEARLY_FULL:
            yield (
                f"This namespace lists {size} instances of the {most} that it may; raise"
                " REGISTRY_MAX_INSTANCES before the next are refused."
            )
        for each in catalogs:
            if each["stale"]:
                yield (
                    f"The catalog {each['source']} does not answer, and what it brought is shown as"
                    " stale."
                )
            elif each["problems"] and is_admin:
                yield f"The catalog {each['source']} has problems: see /api/v1/catalogs."
        for peer in peers.get("peers", ()):
            if peer["state"] == "down":
                reason = f": {peer['problem']}" if peer["problem"] else ""
                yield f"The peer {peer['url']} does not answer{reason}."
        if is_admin:
            yield from self._server.warnings


def _renewals(preservation: Preservation | None) -> dict[str, int] | None:
    if preservation is None:
        return None
    return {
        "last_minute": preservation.arithmetic.renewals_last_minute,
        "threshold": preservation.arithmetic.threshold,
        "expected": preservation.expected_renewals,
        "expected_clients": preservation.arithmetic.expected_clients,
    }


def _self_preservation(preservation: Preservation | None) -> dict[str, Any] | None:
    if preservation is None:
        return None
    since = preservation.since_ms
    return {
        "mode": preservation.mode,
        "active": preservation.is_active,
        "since": None if since is None else instant(since),
        "sentence": preservation.sentence,
        "applications": [
            {
                "application": each.app,
                "since": instant(each.since_ms),
                "instances": each.instances,
                "missing": each.missing,
                "at_most": each.at_most,
                "ended": each.ended,
            }
            for each in preservation.applications
        ],
    }


def _peers_in_short(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mode": report["mode"],
        "verdict": report["verdict"],
        "peers": [
            {name: each[name] for name in ("url", "state", "pending", "lag_ms")}
            for each in report["peers"]
        ],
    }
