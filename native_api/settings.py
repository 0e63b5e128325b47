"""How the native API is served, with the reason for each default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeSettings:
    """Units are in the names."""

    default_ttl_secs: int = 30
    """The lease of a registration that names none: three heartbeats of ten seconds."""

    min_ttl_secs: int = 10
    """Shorter leases would be at the mercy of one late heartbeat."""

    max_ttl_secs: int = 600
    """Longer leases would show the dead for too long."""

    max_service_name: int = 64
    """Characters."""

    max_endpoint: int = 128
    """Characters."""

    max_status: int = 32
    """Characters."""

    max_tags: int = 128
    """Tags of one instance, each as long as a service name may be."""

    max_metadata_bytes: int = 1024
    """Of the metadata as compact JSON: every reader of the registry carries it."""
