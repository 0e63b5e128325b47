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
_AFTER_DEFECT_SECS = 5.0


class Registration:
    """What was told to which registry, and what is to be told next. Time is passed in."""

    def __init__(
        self,
        registries: Sequence[RegistryProtocol],
        *,
        interval_secs: float,
        when_unwell: str,
        max_backoff_secs: float,
        chance: random.Random,
    ) -> None:
        """Renew at that interval at the latest.

        ``when_unwell`` it is told out of service (``out_of_service``), or taken out
        (``deregister``); otherwise (``silence``) its lease runs out.
        """
        self._registries = registries
        self._current = 0
        self._interval = interval_secs
        self._reports_illness = when_unwell == "out_of_service"
        self._leaves = when_unwell == "deregister"
        self._max_backoff = max_backoff_secs
        self._chance = chance
        self._failures = self._refusals = 0
        self._problems: dict[str, str] = {}
        self._due = 0.0
        self._may_be_known = False
        self.registered = False
        self.in_service = True

    def step(self, now: float, verdict: bool | None) -> float:
        """Do what is due, one request at most; returns in how many seconds to look again."""
        wants_service = verdict is True
        if self.registered and verdict is False and self._leaves:
            return self._leave(now)
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

    def _leave(self, now: float) -> float:
        """Taken out while it is unwell; where nobody answers, again after a pause."""
        if self._failures and now < self._due:
            return self._due - now
        registry = self._registries[self._current]
        try:
            registry.deregister()
        except GoneError:
            pass
        except (RefusedError, UnreachableError) as error:
            self._told(registry.name, f"not taken out at {registry.name}: {error}", logging.WARNING)
            self._current = (self._current + 1) % len(self._registries)
            self._due = now + self._pause(first=_FIRST_PAUSE_SECS)
            return self._due - now
        self._problems.pop(registry.name, None)
        self._failures = 0
        self._due = now
        self.registered = self._may_be_known = False
        log.info("taken out at %s while it is unwell", registry.name)
        return _LOOK_AGAIN_SECS

    def _attempt(self, wants_service: bool, *, changed: bool) -> float:
        registry = self._registries[self._current]
        try:
            if not self.registered:
                # Even where the answer is lost: the request may have come through.
                self._may_be_known = True
                registry.register(in_service=wants_service)
                self.registered, self.in_service = True, wants_service
                log.info("registered at %s", registry.name)
            elif changed:
                registry.set_in_service(wants_service)
                self.in_service = wants_service
                log.info("told %s: %s", registry.name, "in" if wants_service else "out of service")
            else:
                registry.renew()
        except GoneError:
            self.registered = False
            log.warning("%s does not know the instance; it is registered again", registry.name)
            # At once, unless that is what happens again and again.
            return self._pause(first=0.0)
        except RefusedError as error:
            self._told(registry.name, f"refused by {registry.name}: {error}", logging.ERROR)
            return self._after_refusal()
        except UnreachableError as error:
            text = f"{registry.name} cannot be reached: {error}"
            self._told(registry.name, text, logging.WARNING)
            self._current = (self._current + 1) % len(self._registries)
            return self._pause(first=_FIRST_PAUSE_SECS)
        if self._problems.pop(registry.name, None):
            log.info("%s answers again", registry.name)
        self._failures = self._refusals = 0
        return self._interval * self._chance.uniform(0.8, 1.0)

    def _after_refusal(self) -> float:
        """Another registry may know the account: slow only once all of them have refused."""
        self._current = (self._current + 1) % len(self._registries)
        self._refusals += 1
        pause = self._pause(first=_FIRST_PAUSE_SECS)
        if self._refusals % len(self._registries):
            return pause
        return self._max_backoff * self._chance.uniform(0.5, 1.0)

    def _pause(self, first: float) -> float:
        """Longer after each failure, and never all at the same moment."""
        self._failures += 1
        longest = min(self._max_backoff, self._interval) if self.registered else self._max_backoff
        exponent = min(self._failures - 1, 20)
        pause = first if self._failures == 1 else _FIRST_PAUSE_SECS * 2.0**exponent
        return min(longest, pause) * self._chance.uniform(0.5, 1.0)

    def _told(self, name: str, problem: str, level: int) -> None:
        """Once: an outage is long, and says the same with each try."""
        if self._problems.get(name) != problem:
            log.log(level, problem)
        self._problems[name] = problem

    def end(self) -> None:
        """Deregister, wherever that can be done: the one used last first."""
        if not self._may_be_known:
            return
        count = len(self._registries)
        for offset in range(count):
            registry = self._registries[(self._current + offset) % count]
            try:
                registry.deregister()
            except GoneError:
                continue  # never registered with this one, or gone before
            except (RefusedError, UnreachableError) as error:
                log.warning("not deregistered at %s: %s", registry.name, error)
                continue
            log.info("deregistered at %s", registry.name)
            break
        self.registered = self._may_be_known = False


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
        """Deregister and come to an end; what takes longer goes on, or is left to the lease."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._step())
            self._wake.clear()
        self._registration.end()

    def _step(self) -> float:
        try:
            return self._registration.step(time.monotonic(), self._verdict())
        except Exception:
            # A thread that ended here would leave a program that looks alive and renews nothing.
            log.exception("a step failed by a defect of the sidecar; it is tried again")
            return _AFTER_DEFECT_SECS
