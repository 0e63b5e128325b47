"""Time, and the arithmetic of leases: when they end, how many may be evicted, self-preservation.

Pure functions on numbers (tables in ``tests/test_rules.py``). The clock is passed in everywhere.
"""

from __future__ import annotations

import math
from time import CLOCK_BOOTTIME, clock_gettime_ns, time_ns
from typing import Protocol

RENEWAL_WINDOW_MS = 60_000
EVICTION_WINDOW_MS = 60_000
"""The time for which ``eviction_limit`` counts, where leases end exactly."""


class Clock(Protocol):
    """The two clocks of the machine."""

    def wall_ms(self) -> int:
        """Epoch milliseconds, for showing."""
        ...

    def mono_ms(self) -> int:
        """Milliseconds since boot, the same for all processes of the machine, for deciding."""
        ...


class SystemClock:
    """The machine's clocks. BOOTTIME goes on during a suspend, so a pause of ours is seen."""

    def wall_ms(self) -> int:
        """Epoch milliseconds of the wall clock."""
        return time_ns() // 1_000_000

    def mono_ms(self) -> int:
        """Milliseconds since boot."""
        return clock_gettime_ns(CLOCK_BOOTTIME) // 1_000_000


def duration_ms(duration_secs: int) -> int:
    """The length of a lease; a duration that is not positive means the default of 90 s."""
    return duration_secs * 1000 if duration_secs > 0 else 90_000


def deadline_after_registration(now_mono_ms: int, duration: int) -> int:
    """A lease that is never renewed lives one duration."""
    return now_mono_ms + duration


def deadline_after_renewal(now_mono_ms: int, duration: int, *, doubled: bool) -> int:
    """One duration after the renewal, or two where the genuine server's slip is asked for.

    Source: ``Lease.renew`` of eureka-core adds the duration, and ``isExpired`` adds it again.
    """
    return now_mono_ms + duration * (2 if doubled else 1)


def renewed_mono_ms(deadline_mono_ms: int, duration: int, *, doubled: bool) -> int:
    """When a lease was renewed that ends then; ``doubled`` as it was renewed."""
    return deadline_mono_ms - duration * (2 if doubled else 1)


def eviction_limit(registry_size: int, renewal_percent_threshold: float) -> int:
    """How many of ``registry_size`` leases one eviction run (or window) may take."""
    return registry_size - math.floor(registry_size * renewal_percent_threshold)


def renewal_threshold(expected_clients: int, interval_secs: int, percent: float) -> int:
    """The renewals per minute below which self-preservation holds evictions back."""
    return math.floor(expected_clients * (60.0 / interval_secs) * percent)


def lease_expiration_enabled(*, self_preservation: bool, threshold: int, renewals: int) -> bool:
    """Whether expired leases may be evicted at all: strictly more renewals than the threshold."""
    return not self_preservation or (threshold > 0 and renewals > threshold)


def renewal_window(now_mono_ms: int) -> int:
    """The number of the 60 s window that the instant lies in."""
    return now_mono_ms // RENEWAL_WINDOW_MS
