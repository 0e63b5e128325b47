"""Whether the instance is well: checks in threads of their own, and one verdict."""

from __future__ import annotations

import logging
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from native_api.sidecar.client import Deadline, ExchangeError, Site, connect, exchange
from native_api.sidecar.settings import CheckSettings

log = logging.getLogger("sidecar.health")


class Spawner(Protocol):
    """Starts processes and takes note of their ends."""

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """The process, in a group of its own; ``OSError`` where it cannot be started."""
        ...

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Its end is known to whoever had it started."""
        ...


def probe(settings: CheckSettings, spawner: Spawner) -> str | None:
    """Run a check once: None where it passes, else why not. Over by its timeout, whatever comes."""
    try:
        if settings.type == "tcp":
            host, _, port = settings.address.rpartition(":")
            connect(host.strip("[]"), int(port), Deadline(settings.timeout)).close()
            return None
        if settings.type == "command":
            return _run(settings, spawner)
        return _request(settings)
    except (OSError, ExchangeError) as error:
        return str(error) or type(error).__name__


def _run(settings: CheckSettings, spawner: Spawner) -> str | None:
    process = spawner.spawn(settings.command)
    try:
        code = process.wait(settings.timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started hangs with it
        process.wait()
        return f"timed out: no end within {settings.timeout:g} s"
    finally:
        spawner.ended(process)
    return None if code == settings.expected else f"exit status {code}"


def _request(settings: CheckSettings) -> str | None:
    site = Site.of(settings.url)
    context = None
    if site.is_secure:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    headers = {"Connection": "close"}
    if site.authorization:
        headers["Authorization"] = site.authorization
    status, _ = exchange(
        site,
        settings.method,
        site.path or "/",
        timeout=settings.timeout,
        headers=headers,
        context=context,
    )
    return None if status == settings.expected else f"status {status}"


def target_of(settings: CheckSettings) -> str:
    """What a check looks at, for the log."""
    if settings.url:
        return Site.of(settings.url).shown
    return settings.address or " ".join(settings.command)


class Tally:
    """What one check's results in a row amount to. ``well`` is None before the first verdict."""

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self._failures = self._successes = 0
        self.well: bool | None = None

    def note(self, reason: str | None) -> bool:
        """Count a result; whether the verdict changed."""
        before = self.well
        if reason is None:
            self._failures, self._successes = 0, self._successes + 1
            if self._successes >= self._settings.successes:
                self.well = True
        else:
            self._failures, self._successes = self._failures + 1, 0
            if self._failures >= self._settings.failures:
                self.well = False
        return self.well is not before


class Health:
    """The verdict over all checks: well where all are, unwell where one is, None before that."""

    def __init__(
        self, checks: Sequence[CheckSettings], spawner: Spawner, changed: Callable[[], None]
    ) -> None:
        """``changed`` is called, in a check's thread, whenever a check changes its mind."""
        self._checks = [(settings, Tally(settings)) for settings in checks]
        self._spawner = spawner
        self._changed = changed
        self._stopping = threading.Event()

    def start(self) -> None:
        for number, (settings, tally) in enumerate(self._checks):
            threading.Thread(
                target=self._watch, args=(settings, tally), name=f"check-{number}", daemon=True
            ).start()

    def stop(self) -> None:
        self._stopping.set()

    def verdict(self) -> bool | None:
        """True without any check: then the process that runs is all that is asked."""
        verdicts = [tally.well for _, tally in self._checks]
        if any(well is False for well in verdicts):
            return False
        return None if None in verdicts else True

    def _watch(self, settings: CheckSettings, tally: Tally) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._result(settings)
            if tally.note(reason):
                if tally.well:
                    log.info("%s is well", target_of(settings))
                else:
                    log.warning("%s is unwell: %s", target_of(settings), reason)
                self._changed()
            self._stopping.wait(max(0.0, settings.interval - (time.monotonic() - began)))

    def _result(self, settings: CheckSettings) -> str | None:
        try:
            return probe(settings, self._spawner)
        except Exception as error:
            # A check that cannot be made passes nothing, and must not end in silence.
            log.exception("a check failed by a defect of the sidecar")
            return type(error).__name__
