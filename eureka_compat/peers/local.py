"""The registry of this server, as the exchange with its peers sees it.

What goes out to them, what a list of theirs is compared with, and how their word is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from eureka_compat.peers.outbox import Pending
from eureka_compat.peers.settings import PeersSettings
from registry import (
    DEFAULT_NAMESPACE,
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Registry,
    RegistryError,
    StoreError,
)

log = logging.getLogger("peers")

_MOST_LOGGED = 100
# Whose lease ends so much later at a peer gets that time here.
_LATER_MS = 1_000


class LocalRegistry:
    """The registry, as the exchange with peers sees it."""

    def __init__(self, registry: Registry, settings: PeersSettings) -> None:
        self.namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        self.clock = registry.clock
        self._settings = settings
        self._began = self._began_ms()
        self._untaken: set[InstanceKey] = set()  # what was logged

    def goes_out(self, instance: Instance) -> bool:
        """Whether peers are told of instances of this source."""
        if instance.source == "eureka":
            return True
        if instance.source == "native":
            return self._settings.sends_native
        return self._settings.sends_catalogs

    def news_of(self, change: Change) -> tuple[InstanceKey, Pending] | None:
        """What a change is to peers; None where it is none of theirs, or they know."""
        instance = change.instance
        if instance is None or instance.peers_know or change.evicted:
            return None
        if not self.goes_out(instance):
            return None
        if change.removed:
            return instance.key, Pending.CANCEL
        if change.override is not None:
            return instance.key, Pending.REGISTER | Pending.OVERRIDE
        return instance.key, Pending.REGISTER

    def outgoing(self, key: InstanceKey) -> tuple[Instance, InstanceStatus | None] | None:
        """See ``link.Local``."""
        view = self.namespace.view()
        with view.lock:
            instance = view.get(key)
            override = view.overrides.get(key.id)
        if instance is None or not self.goes_out(instance):
            return None
        return instance, override

    def adopt(self, entity: Instance) -> None:
        """See ``link.Local``. Source: protocol section 9.4."""
        if entity.overridden_status is not InstanceStatus.UNKNOWN:
            self.namespace.store_override(
                entity.app,
                entity.id,
                entity.overridden_status,
                last_dirty_ms=entity.last_dirty_ms,
            )
        self.take(entity)

    def take(self, instance: Instance, age_ms: int = 0) -> bool:
        """List a peer's instance whose last renewal was so long ago; whether it was taken."""
        try:
            self.namespace.register(instance, is_replication=True, age_ms=age_ms)
        except StoreError:
            raise
        except RegistryError as error:
            if instance.key not in self._untaken and len(self._untaken) < _MOST_LOGGED:
                self._untaken.add(instance.key)
                log.warning("a peer's %s/%s is not taken: %s", instance.app, instance.id, error)
            return False
        return True

    def take_override(self, theirs: Instance) -> None:
        """Set or remove an override as a peer has it."""
        if theirs.overridden_status is InstanceStatus.UNKNOWN:
            self.namespace.remove_override(
                theirs.app, theirs.id, theirs.status, is_replication=True
            )
        else:
            self.namespace.set_override(
                theirs.app, theirs.id, theirs.overridden_status, is_replication=True
            )

    def listed(self) -> dict[InstanceKey, Instance]:
        """All that peers may have as well: what registered somewhere, and what goes out."""
        view = self.namespace.view()
        with view.lock:
            return {
                instance.key: instance
                for application in view.applications.values()
                for instance in application.values()
                if instance.is_leased or self.goes_out(instance)
            }

    def comparable(
        self, theirs: Mapping[InstanceKey, Instance], leased: Collection[InstanceKey] | None
    ) -> dict[InstanceKey, Instance]:
        """What a peer lists, without what either of the two has from its own catalogs alone.

        Nobody renews that: taken for a registration, it would be gone with the end of a lease, and
        until then hide what this server's own catalog says. ``leased`` is what has a lease there,
        None of a genuine server, which has no catalogs.
        """
        view = self.namespace.view()
        with view.lock:
            mine = {key: view.get(key) for key in theirs}

        def counts(key: InstanceKey) -> bool:
            here = mine[key]
            if here is not None:
                return here.is_leased or self.goes_out(here)
            return leased is None or key in leased

        return {key: each for key, each in theirs.items() if counts(key)}

    def heard_ms(self, instance: Instance) -> int:
        """When this server last heard of an instance, from whomever.

        In epoch milliseconds of the wall clock as it is now: where that was set forward since this
        worker took the peers up, nothing is taken for older than it is.
        """
        lease = self.namespace.lease(instance.key)
        renewed = 0 if lease is None else lease.last_renewal_ms
        set_forward_ms = max(0, self._began_ms() - self._began)
        return max(renewed, instance.last_updated_ms) + set_forward_ms

    def _began_ms(self) -> int:
        """When the monotonic clock began, by the wall clock."""
        return self.clock.wall_ms() - self.clock.mono_ms()

    def end(self, seen: Instance) -> bool:
        """Cancel what was cancelled at a peer; whether it was still as it was seen."""
        return self.namespace.cancel(seen.app, seen.id, is_replication=True, revision=seen.revision)

    def extend(self, ends: Mapping[InstanceKey, int]) -> None:
        """Give leases that end later at a peer that time here (monotonic milliseconds)."""
        for key, lease in self.namespace.leases().items():
            end = ends.get(key)
            if end is not None and end > lease.deadline_mono_ms + _LATER_MS:
                self.namespace.extend_lease(key, end)

    def renewed_here(self) -> dict[InstanceKey, int]:
        """When each client last renewed at this server (monotonic milliseconds)."""
        return dict(self.namespace.renewed_by_clients(0))
