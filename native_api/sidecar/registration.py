"""Keeps the instance registered while it is well: a state machine, and the thread that drives it.

The instance is registered after its first good verdict and not before: an entry is a promise to
whoever calls it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from native_api.sidecar.protocols import (
    GoneError,
    RefusedError,
    RegistryProtocol,
    UnreachableError,
)

log = logging.getLogger("sidecar.registration")

_FIRST_PAUSE_SECS = 0.25
_LOOK_AGAIN_SECS = 1.0


class Registration:
    """What was told to which registry, and what is to be told next. Time is passed in."""

    def __init__(
        self,
        registries: Sequence[RegistryProtocol],
        *,
        ttl_secs: float,
        reports_illness: bool,
        max_backoff_secs: float,
        chance: random.Random,
    ) -> None:
        """``reports_illness``: told out of service while unwell; otherwise its lease runs out."""
        self._registries = registries
        self._current = 0
        self._interval = ttl_secs / 3
        self._reports_illness = reports_illness
        self._max_backoff = max_backoff_secs
        self._chance = chance
        self._failures = 0
        self._last_problem = ""
        self._due = 0.0
        self.registered = False
        self.in_service = True

    def step(self, now: float, verdict: bool | None) -> float:
        """Do what is due, one request at most; returns in how many seconds to look again."""
        wants_service = verdict is True
        changed = (
            self.registered
            and self.in_service != wants_service
            and (wants_service or self._reports_illness)
        )
        if self.registered and verdict is False and not self._reports_illness:
            return _LOOK_AGAIN_SECS  # silence: the lease runs out by itself
        if not self.registered and not wants_service:
            return _LOOK_AGAIN_SECS
        if now < self._due and not (changed and not self._failures):
            return self._due - now
        self._due = now + self._attempt(wants_service, changed=changed)
        return self._due - now

    def _attempt(self, wants_service: bool, *, changed: bool) -> float:
        registry = self._registries[self._current]
        try:
            if not self.registered:
                registry.register(in_service=wants_service)
                self.registered, self.in_service = True, wants_service
                log.info("registered at %s", registry.url)
            elif changed:
                registry.set_in_service(wants_service)
                self.in_service = wants_service
                log.info("told %s: %s", registry.url, "in" if wants_service else "out of service")
            else:
                registry.renew()
        except GoneError:
            self.registered = False
            log.warning("%s does not know the instance; it is registered again", registry.url)
            # At once, unless that is what happens again and again.
            return self._pause(first=0.0)
        except RefusedError as error:
            self._told(f"refused by {registry.url}: {error}", logging.ERROR)
            self._current = (self._current + 1) % len(self._registries)
            self._failures += 1
            return self._max_backoff * self._chance.uniform(0.5, 1.0)
        except UnreachableError as error:
            self._told(f"{registry.url} cannot be reached: {error}", logging.WARNING)
            self._current = (self._current + 1) % len(self._registries)
            return self._pause(first=_FIRST_PAUSE_SECS)
        if self._failures and self._last_problem:
            log.info("%s answers again", registry.url)
        self._failures, self._last_problem = 0, ""
        return self._interval * self._chance.uniform(0.8, 1.0)

    def _pause(self, first: float) -> float:
        """Longer after each failure, and never all at the same moment."""
        self._failures += 1
        longest = min(self._max_backoff, self._interval) if self.registered else self._max_backoff
        exponent = min(self._failures - 1, 20)
        pause = first if self._failures == 1 else _FIRST_PAUSE_SECS * 2.0**exponent
        return min(longest, pause) * self._chance.uniform(0.5, 1.0)

    def _told(self, problem: str, level: int) -> None:
        if problem != self._last_problem:
            log.log(level, problem)
        self._last_problem = problem

    def end(self) -> None:
        """Deregister, wherever that can be done: the one used last first."""
        if not self.registered:
            return
        count = len(self._registries)
        for offset in range(count):
            registry = self._registries[(self._current + offset) % count]
            try:
                registry.deregister()
            except (GoneError, RefusedError, UnreachableError) as error:
                log.warning("not deregistered at %s: %s", registry.url, error or "not known there")
                continue
            log.info("deregistered at %s", registry.url)
            break
        self.registered = False


class Keeper:
    """The thread that steps the registration, woken by each change of the verdict."""

    def __init__(self, registration: Registration, verdict: Callable[[], bool | None]) -> None:
        self._registration = registration
        self._verdict = verdict
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at the verdict now."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Deregister and come to an end; what takes longer is left to the lease."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            pause = self._registration.step(time.monotonic(), self._verdict())
            self._wake.wait(pause)
            self._wake.clear()
        self._registration.end()
