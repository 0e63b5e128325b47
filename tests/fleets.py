"""Fleets on a clock set by hand: they register, renew, cancel and die, and the evictor looks on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from registry import DEFAULT_NAMESPACE, Evictor, Instance, InstanceKey, Registry, RegistrySettings
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, sample_instance

STEP_MS = 500


@dataclass
class Member:
    """One instance: when it renews next, and what becomes of it."""

    instance: Instance
    next_ms: int
    is_cut_off: bool = False
    renewed_ms: int = 0
    evicted_ms: int | None = None


@dataclass
class Fleet:
    """Applications by name: so many instances each, with these intervals and leases in seconds."""

    applications: dict[str, list[tuple[int, int, int]]]
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore()
        self.random = random.Random(1)
        self.whole = Registry(self.store, self.clock, RegistrySettings(**self.options))
        self.whole.start()
        self.registry = self.whole.in_namespace(DEFAULT_NAMESPACE)
        self.evictor = Evictor(self.whole, self.store, rng=random.Random(2))
        self.members: dict[InstanceKey, Member] = {}
        for app, kinds in self.applications.items():
            number = 0
            for count, interval, lease in kinds:
                for _ in range(count):
                    self._add(app, number, interval, lease)
                    number += 1

    def _add(self, app: str, number: int, interval: int, lease: int) -> None:
        instance = sample_instance(
            app,
            f"{app}:{number}",
            renewal_interval_secs=interval,
            duration_secs=lease,
        )
        self.registry.register(instance)
        phase = self.random.randrange(interval * 1000 // STEP_MS) * STEP_MS
        member = Member(instance, self.clock.mono + phase, renewed_ms=self.clock.mono)
        self.members[instance.key] = member

    def of(self, app: str) -> list[Member]:
        """The members of an application, in the order in which they came."""
        return [each for key, each in self.members.items() if key.app == app]

    def run(self, secs: float, each_step: Callable[[], None] = lambda: None) -> None:
        """Let time go by: who is not cut off renews, and registers again where it is unknown."""
        for _ in range(int(secs * 1000 / STEP_MS)):
            self.clock.advance(STEP_MS)
            now = self.clock.mono
            for key, member in self.members.items():
                if now < member.next_ms:
                    continue
                member.next_ms += member.instance.renewal_interval_secs * 1000
                if not member.is_cut_off:
                    if self.registry.renew(*key) is None:
                        self.registry.register(member.instance)
                    member.renewed_ms, member.evicted_ms = now, None
            self.evictor.run_once()
            self._note_evictions(now)
            each_step()

    def _note_evictions(self, now: int) -> None:
        view = self.registry.view()
        for key, member in self.members.items():
            if member.evicted_ms is None and view.get(key) is None:
                member.evicted_ms = now

    def cut_off(self, members: Iterable[Member]) -> None:
        """From now on nothing of these arrives; whether they live is all the same."""
        for member in members:
            member.is_cut_off = True

    def reconnect(self) -> None:
        """The network is whole again."""
        for member in self.members.values():
            member.is_cut_off = False

    def cancel(self, members: Iterable[Member]) -> None:
        """These leave cleanly."""
        for member in list(members):
            self.registry.cancel(*member.instance.key)
            del self.members[member.instance.key]
