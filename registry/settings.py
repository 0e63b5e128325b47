"""How the registry behaves, with the reason for each default."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from registry.model import DEFAULT_NAMESPACE, Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Units are in the names. The defaults are the genuine server's, but for ``lease_expiry``."""

    lease_expiry: Literal["exact", "genuine"] = "exact"
    """``exact``: a lease ends when it says and its instance goes within about a second.
    ``genuine``: twice the duration after a renewal, and a sweep each ``eviction_interval_ms``."""

    self_preservation: bool = True
    """Whether evictions stop while renewals fall below the threshold."""

    self_preservation_by: Literal["genuine", "by-application"] = "genuine"
    """``genuine``: all renewals of a minute against what all expected clients send.
    ``by-application``: in each application, who has missed renewals of its own interval."""

    self_preservation_minimum: int = 10
    """By application: smaller ones are not preserved. So few run on so few machines that one
    machine's end, or one step of a deployment, takes more than a seventh of them at once: a usual
    event, and none of the network's. From ten on two may be lost at once."""

    renewal_percent_threshold: float = 0.85
    """The share of expected renewals below which self-preservation begins, and the share of the
    registry that one eviction window leaves untouched."""

    expected_client_renewal_interval_secs: int = 30
    """How often a client is expected to renew; part of the threshold's arithmetic."""

    renewal_threshold_update_interval_ms: int = 900_000
    """How often the number of expected clients is set to the number of registered ones."""

    eviction_interval_ms: int = 60_000
    """The time between two sweeps; only for the genuine lease expiry."""

    delta_retention_ms: int = 180_000
    """How long a change is told of in the delta: six fetches at the clients' default interval."""

    delta_retention_timer_interval_ms: int = 30_000
    """How often older changes are trimmed from the store."""

    default_open_for_traffic_count: int = 1
    """The number of expected clients that an empty registry starts with."""

    max_instances: int = 100_000
    """Instances in one namespace, whoever lists them: every reader carries them all."""

    max_namespaces: int = 1_000
    """Namespaces that hold an instance, besides the default one: each costs every worker memory."""

    names_are_secret: bool = False
    """Whether who knows a namespace's name may do everything in it."""

    def shown(self, namespace: Namespace) -> str:
        """A namespace as logs and metrics name it: where names are secret, by a part of a digest.

        ``printf NAME | sha256sum`` begins with it.
        """
        if not self.names_are_secret or namespace == DEFAULT_NAMESPACE:
            return namespace
        return hashlib.sha256(namespace.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """How much of what happened is kept; 0 in either: nothing."""

    keep_ms: int = 7 * 24 * 3_600_000
    """A week: what was changed before the weekend can be looked up after it."""

    most_bytes: int = 256 * 1024 * 1024
    """Some 400,000 changes; never more on the disk."""

    @property
    def is_kept(self) -> bool:
        """Whether there is a history at all."""
        return self.keep_ms > 0 and self.most_bytes > 0
