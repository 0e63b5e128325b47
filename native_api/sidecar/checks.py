"""Whether the instance is well: checks in threads of their own, and one verdict."""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from native_api.sidecar.settings import CheckSettings

log = logging.getLogger("sidecar.health")


class Spawner(Protocol):
    """Starts processes whose ends are left to whoever started them."""

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """The started process; ``OSError`` where it cannot be started."""
        ...

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Its end was taken note of."""
        ...


def probe(settings: CheckSettings, spawner: Spawner) -> str | None:
    """Run a check once: None where it passes, else why not."""
    try:
        if settings.type == "tcp":
            host, _, port = settings.address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), settings.timeout).close()
            return None
        if settings.type == "command":
            return _run(settings, spawner)
        return _request(settings)
    except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        return str(error) or type(error).__name__


def _run(settings: CheckSettings, spawner: Spawner) -> str | None:
    process = spawner.spawn(settings.command)
    try:
        code = process.wait(settings.timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"no end within {settings.timeout:g} s"
    finally:
        spawner.ended(process)
    return None if code == 0 else f"exit status {code}"


def _request(settings: CheckSettings) -> str | None:
    parts = urlsplit(settings.url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if settings.type == "https":
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=settings.timeout, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=settings.timeout)
    try:
        path = parts.path or "/"
        connection.request(settings.method, f"{path}?{parts.query}" if parts.query else path)
        status = connection.getresponse().status
    finally:
        connection.close()
    return None if status == settings.expect else f"status {status}"


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
            reason = probe(settings, self._spawner)
            if tally.note(reason):
                shown = settings.url or settings.address or " ".join(settings.command)
                if tally.well:
                    log.info("%s is well", shown)
                else:
                    log.warning("%s is unwell: %s", shown, reason)
                self._changed()
            self._stopping.wait(max(0.0, settings.interval - (time.monotonic() - began)))
