"""Self-preservation: whether ended leases are kept because the network may be at fault.

``Preservation`` is what is known of it at a moment, and says so in one sentence with numbers. The
evictor is who decides; it leaves a note in the store, so that every worker tells the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from registry.lease import renewal_threshold
from registry.model import Namespace
from registry.settings import RegistrySettings
from registry.words import counted, instant, span

Mode = Literal["off", "genuine"]


@dataclass(frozen=True, slots=True)
class SelfPreservation:
    """The numbers behind the genuine arithmetic, and its verdict."""

    expected_clients: int
    threshold: int
    renewals_last_minute: int
    expiration_enabled: bool


@dataclass(frozen=True, slots=True)
class Preservation:
    """Self-preservation in one namespace at a moment.

    ``since_ms`` (epoch) is None while it is not active, and where that is not known yet.
    """

    mode: Mode
    is_active: bool
    since_ms: int | None
    arithmetic: SelfPreservation
    leases: int
    settings: RegistrySettings

    @property
    def expected_renewals(self) -> int:
        """How many renewals a minute the expected clients send."""
        interval = self.settings.expected_client_renewal_interval_secs
        return math.floor(self.arithmetic.expected_clients * 60.0 / interval)

    @property
    def sentence(self) -> str:
        """Why it is on, since when, and what ends it; or why it is not. With numbers."""
        if self.mode == "off":
            return (
                f"Self-preservation is switched off: what expires goes, {_spared(self.settings)}."
            )
        if not self.leases:
            return "Self-preservation is not on: nobody is registered who has to renew."
        return self._genuine_on() if self.is_active else self._genuine_off()

    def _genuine_off(self) -> str:
        found = self.arithmetic
        return (
            f"Self-preservation is not on: {counted(found.renewals_last_minute, 'renewal')} came"
            f" in the last whole minute, and more than {found.threshold} are enough"
            f" ({_percent(self.settings)} % of what {found.expected_clients} expected clients"
            " send)."
        )

    def _genuine_on(self) -> str:
        found, settings = self.arithmetic, self.settings
        recounted = span(settings.renewal_threshold_update_interval_ms)
        began = f"Self-preservation is on{self._since()}: "
        if not found.threshold:
            return (
                f"{began}no client is expected to renew yet, and until one is nothing is evicted."
                f" It ends when the expected clients are counted again, which is each {recounted}."
            )
        would_be = renewal_threshold(
            self.leases,
            settings.expected_client_renewal_interval_secs,
            settings.renewal_percent_threshold,
        )
        if self.leases > settings.renewal_percent_threshold * found.expected_clients:
            recount = (
                f"; or when the expected clients are counted again, which is each {recounted}:"
                f" {self.leases} are registered, for whom more than {would_be} are enough"
            )
        else:
            recount = (
                f"; the count of expected clients will not go down by itself, for the {self.leases}"
                f" that are registered are not more than {_percent(settings)} % of it"
            )
        return (
            f"{began}{counted(found.renewals_last_minute, 'renewal')} came in the last whole"
            f" minute, and nothing is evicted unless more than {found.threshold} come"
            f" ({_percent(settings)} % of what {found.expected_clients} expected clients send, each"
            f" every {settings.expected_client_renewal_interval_secs} s). It ends after a minute"
            f" with more than {found.threshold}{recount}."
        )

    def _since(self) -> str:
        return "" if self.since_ms is None else f" since {instant(self.since_ms)}"


def _percent(settings: RegistrySettings) -> str:
    return f"{settings.renewal_percent_threshold * 100:g}"


def _lost(settings: RegistrySettings) -> str:
    return f"{round(100 - settings.renewal_percent_threshold * 100, 6):g}"


def _spared(settings: RegistrySettings) -> str:
    return f"at most {_lost(settings)} % of the registry in any 60 s"


def mode_of(settings: RegistrySettings) -> Mode:
    """Which arithmetic counts; ``off`` where the genuine switch is off."""
    return "genuine" if settings.self_preservation else "off"


# The note that the evictor leaves for all workers


def note_name(namespace: Namespace) -> str:
    """Under which name the state of a namespace is noted, while it is active."""
    return f"preservation\0{namespace}"


def noted(since_ms: int) -> bytes:
    """The note that says since when it is active (epoch ms)."""
    return b"%d" % since_ms


def read_note(note: bytes | None) -> int | None:
    """What ``noted`` said; None where it is not active."""
    return None if note is None else int(note)
