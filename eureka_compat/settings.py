"""How the Eureka protocol is served, with the reason for each default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EurekaSettings:
    """Units are in the names."""

    delta_enabled: bool = True
    """Off: ``apps/delta`` answers 403 and clients fetch everything each time."""

    sync_when_timestamp_differs: bool = True
    """Whether a heartbeat's dirty timestamp is compared with the registered one."""

    max_instance_bytes: int = 1024 * 1024
    """The longest registration; a real one has about a kilobyte. Longer: 413."""

    max_batch_bytes: int = 4 * 1024 * 1024
    """The longest batch of a peer; 250 registrations have well under a megabyte. Longer: 413.

    While one is parsed nobody else is heard: tens of milliseconds at this length.
    """

    environment: str = "test"
    """The environment's name, shown in the status."""

    regions: Mapping[str, str] = field(default_factory=dict)
    """Remote regions by name (lower case), each with the source of its instances. Who asks for some
    of them (``?regions=``) is not shown those of the others."""

    falls_back: bool = True
    """Whether who asks for no region is shown the instances of all of them, as by default by the
    original; off: only what is here."""
