"""Self-preservation: whether ended leases are kept because the network may be at fault.

``Preservation`` is what is known of it at a moment, and says so in one sentence with numbers. The
evictor is who decides; it leaves a note in the store, so that every worker tells the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Literal, NamedTuple

import orjson

from registry.lease import (
    eviction_limit,
    lease_expiration_enabled,
    renewal_threshold,
    renewal_window,
)
from registry.model import Namespace
from registry.settings import RegistrySettings
from registry.store import Records
from registry.words import counted, instant, span

Mode = Literal["off", "genuine", "by-application"]
# So many applications are named in a sentence.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class SelfPreservation:
    """The numbers behind the genuine arithmetic, and its verdict."""

    expected_clients: int
    threshold: int
    renewals_last_minute: int
    expiration_enabled: bool


@dataclass(frozen=True, slots=True)
class Preserved:
    """An application whose ended leases are kept: too many of its instances are missing at once.

    ``missing`` of ``instances`` are late or were evicted in the last minute (``by_application``);
    ``at_most`` so many may be. ``ended`` leases are kept. ``since_ms`` is of the wall clock.
    """

    app: str
    since_ms: int
    instances: int
    missing: int
    at_most: int
    ended: int


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
    applications: tuple[Preserved, ...]
    settings: RegistrySettings

    @property
    def expected_renewals(self) -> int:
        """How many renewals a minute the expected clients send."""
        interval = self.settings.expected_client_renewal_interval_secs
        return math.floor(self.arithmetic.expected_clients * 60.0 / interval)

    def holds(self, app: str) -> bool:
        """Whether an application's ended leases are kept."""
        if self.mode == "by-application":
            return any(each.app == app for each in self.applications)
        return self.is_active

    @property
    def sentence(self) -> str:
        """Why it is on, since when, and what ends it; or why it is not. With numbers."""
        if self.mode == "off":
            return (
                f"Self-preservation is switched off: what expires goes, {_spared(self.settings)}."
            )
        if not self.leases:
            return "Self-preservation is not on: nobody is registered who has to renew."
        if self.mode == "by-application":
            return self._by_application()
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
        began = f"{self._on()}: "
        if not found.threshold:
            return (
                f"{began}no client is expected to renew yet, and until one is nothing is evicted."
                f" It ends when the expected clients are counted again, which is each {recounted},"
                " or when the loss is accepted."
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
            f" with more than {found.threshold}{recount}; or when the loss is accepted."
        )

    def _by_application(self) -> str:
        settings = self.settings
        if not self.applications:
            return (
                "Self-preservation is not on: of no application with at least"
                f" {counted(settings.self_preservation_minimum, 'instance')} more than"
                f" {_lost(settings)} % are missing with leases that have ended."
            )
        kept = sum(each.ended for each in self.applications)
        named = sorted(self.applications, key=lambda each: (-each.ended, each.app))
        told = "; ".join([_told(each) for each in named[:_NAMED]])
        if len(named) > _NAMED:
            told += f"; and {len(named) - _NAMED} more"
        return (
            f"{self._on()} and keeps {counted(kept, 'ended lease')} of"
            f" {counted(len(named), 'application')}: {told}. It ends for an application when no"
            " more of it are missing than may be, because they renew, register again or cancel; or"
            " when the loss is accepted."
        )

    def _on(self) -> str:
        if self.since_ms is None:
            return "Self-preservation is on"
        return f"Self-preservation has been on since {instant(self.since_ms)}"


def _told(each: Preserved) -> str:
    return (
        f"of {each.app} {each.missing} of {counted(each.instances, 'instance')} are missing, and"
        f" {each.at_most} may be"
    )


def _percent(settings: RegistrySettings) -> str:
    return f"{settings.renewal_percent_threshold * 100:g}"


def _lost(settings: RegistrySettings) -> str:
    return f"{round(100 - settings.renewal_percent_threshold * 100, 6):g}"


def _spared(settings: RegistrySettings) -> str:
    return f"at most {_lost(settings)} % of the registry in any 60 s"


def mode_of(settings: RegistrySettings) -> Mode:
    """Which arithmetic counts; ``off`` where the genuine switch is off."""
    return settings.self_preservation_by if settings.self_preservation else "off"


def arithmetic(
    records: Records, namespace: Namespace, now_mono_ms: int, settings: RegistrySettings
) -> SelfPreservation:
    """The renewal arithmetic of a namespace at an instant; ``StoreError``."""
    expected = records.expected_clients(namespace)
    if expected is None:
        expected = settings.default_open_for_traffic_count
    renewals = records.renewals(namespace, renewal_window(now_mono_ms) - 1)
    threshold = renewal_threshold(
        expected,
        settings.expected_client_renewal_interval_secs,
        settings.renewal_percent_threshold,
    )
    return SelfPreservation(
        expected,
        threshold,
        renewals,
        lease_expiration_enabled(
            self_preservation=settings.self_preservation,
            threshold=threshold,
            renewals=renewals,
        ),
    )


def missing_at_most(instances: int, settings: RegistrySettings) -> int:
    """How many instances of an application may be missing at once without it being preserved."""
    return eviction_limit(instances, settings.renewal_percent_threshold)


# The note that the evictor leaves for all workers


def note_name(namespace: Namespace) -> str:
    """Under which name the state of a namespace is noted, while it is active."""
    return f"preservation\0{namespace}"


class Noted(NamedTuple):
    """What the evictor noted: since when it is active (epoch ms; None: it is not), and for whom."""

    since_ms: int | None = None
    applications: Mapping[str, Preserved] = {}

    def packed(self) -> bytes | None:
        """The note; None where there is nothing to note."""
        if self.since_ms is None:
            return None
        told = [astuple(each) for each in self.applications.values()]
        return orjson.dumps([self.since_ms, told])

    def told(
        self, leases: int, arithmetic: SelfPreservation, settings: RegistrySettings
    ) -> Preservation:
        """Self-preservation as it is told, where there are so many leases at the moment."""
        mode = mode_of(settings)
        is_active = leases > 0
        if mode == "by-application":
            is_active &= bool(self.applications)
        else:
            is_active &= not arithmetic.expiration_enabled
        return Preservation(
            mode,
            is_active,
            self.since_ms if is_active else None,
            arithmetic,
            leases,
            tuple(self.applications.values()) if mode == "by-application" else (),
            settings,
        )


def read_note(note: bytes | None) -> Noted:
    """What ``packed`` made of it."""
    if note is None:
        return Noted()
    since_ms, told = orjson.loads(note)
    found = [Preserved(*each) for each in told]
    return Noted(since_ms, {each.app: each for each in found})
