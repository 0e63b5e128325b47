"""Self-preservation by application: who is missing, by the leases' own intervals.

An application is preserved while more of its instances are missing than the settings' share allows:
its ended leases are kept then, for the network may be at fault. Missing are those that are *late*,
which comes before their leases end, and those that were evicted in the last minute and have not
come back. So where a network parts, all that are behind it are missing before the first of their
leases ends, and the first is kept like the last. For example, of twenty instances that renew every
30 s and have leases of 90 s, eight are cut off at once:

    60 s later, at the earliest, they are late: 8 of 20 are missing, 3 may be
    90 s later, at the latest, their leases end, and are kept

Whoever cancels does not count at all. A small application is not preserved: so few run on so few
machines that the end of one machine takes many of them at once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque

from registry.lease import renewed_mono_ms
from registry.model import Instance, InstanceKey, Lease
from registry.namespace import NamespaceRegistry
from registry.preservation import Preserved, missing_at_most

_GONE_MS = 60_000
_AT_ONCE = 1_000
_PAUSE_SECS = 0.002
# Late is who has missed so many renewals, and let so much of the lease go by.
_INTERVALS = 2
_SHARE_NUMERATOR, _SHARE_DENOMINATOR = 2, 3


class ByApplication:
    """What the evictor remembers of one namespace between its looks."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        """Begin with what the change log says was evicted in the last minute."""
        self._registry = registry
        now, wall = registry.clock.mono_ms(), registry.clock.wall_ms()
        view = registry.view()
        with view.lock:
            lately = [
                (now - max(0, wall - change.instance.last_updated_ms), change.instance.key)
                for change in view.recent(now)
                if change.evicted and change.instance is not None
            ]
        # When it was evicted, and which; in the order of these instants.
        self._gone = deque(each for each in lately if each[0] > now - _GONE_MS)

    def note_evicted(self, keys: list[InstanceKey]) -> None:
        """These were chosen to be evicted. One that was not is listed, and does not count."""
        now = self._registry.clock.mono_ms()
        self._gone += [(now, key) for key in keys]

    def preserved(
        self, ended: list[tuple[InstanceKey, Lease]], since_ms: dict[str, int]
    ) -> dict[str, Preserved]:
        """The applications that are preserved, of those with leases that have ended.

        ``since_ms`` has since when those are that were preserved before.
        """
        wall = self._registry.clock.wall_ms()
        gone = self._gone_by_app()
        by_app: defaultdict[str, set[str]] = defaultdict(set)
        for key, _ in ended:
            by_app[key.app].add(key.id)
        found = {}
        for app, ids in by_app.items():
            state = self._counted(app, ids, gone[app], since_ms.get(app, wall))
            if state is not None:
                found[app] = state
        return found

    def _gone_by_app(self) -> Counter[str]:
        """How many of each application were evicted in the last minute and have not come back."""
        before = self._registry.clock.mono_ms() - _GONE_MS
        while self._gone and self._gone[0][0] <= before:
            self._gone.popleft()
        view = self._registry.view()
        with view.lock:
            return Counter(key.app for key in {k for _, k in self._gone} if view.get(key) is None)

    def _counted(self, app: str, ended: set[str], gone: int, since_ms: int) -> Preserved | None:
        """The application, if it is preserved."""
        registry = self._registry
        view = registry.view()
        with view.lock:
            members = [each for each in view.applications.get(app, {}).values() if each.expires]
        instances = len(members) + gone
        at_most = missing_at_most(instances, registry.settings)
        if instances < registry.settings.self_preservation_minimum:
            return None
        missing = gone + len(ended)
        doubled = registry.settings.lease_expiry == "genuine"
        for number, instance in enumerate(members, start=1):
            if instance.id not in ended:
                missing += self._is_late(instance, doubled=doubled)
            if number % _AT_ONCE == 0:
                time.sleep(_PAUSE_SECS)
        if missing <= at_most:
            return None
        return Preserved(app, since_ms, instances, missing, at_most, len(ended))

    def _is_late(self, instance: Instance, *, doubled: bool) -> bool:
        """Whether it has missed renewals of its own interval, before its lease ends."""
        lease = self._registry.lease(instance.key)
        if lease is None:
            return False
        patience_ms = max(
            _INTERVALS * 1_000 * instance.renewal_interval_secs,
            lease.duration_ms * _SHARE_NUMERATOR // _SHARE_DENOMINATOR,
        )
        silent_ms = self._registry.clock.mono_ms() - renewed_mono_ms(
            lease.deadline_mono_ms,
            lease.duration_ms,
            doubled=doubled and lease.last_renewal_ms != instance.registration_ms,
        )
        return silent_ms > min(patience_ms, lease.duration_ms)
