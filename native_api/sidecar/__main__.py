"""``python -m native_api.sidecar --config sidecar.yaml [-- command …]``."""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from eureka_http.shown import LineFormatter
from native_api.sidecar.probes import Health
from native_api.sidecar.protocols import protocols
from native_api.sidecar.registration import Keeper, Registration
from native_api.sidecar.settings import SettingError, Settings, load, without_secrets
from native_api.sidecar.supervisor import Supervisor

log = logging.getLogger("sidecar")

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_SECS = 1.0


def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Stand by until told to stop or until a child's end ends it; the exit code."""
    signals = Signals()
    supervisor = Supervisor(settings.supervise, settings.grace, without_secrets(environ))
    registration = Registration(
        protocols(settings),
        interval_secs=settings.ttl * settings.renew_fraction,
        when_unwell=settings.on_unhealthy,
        max_backoff_secs=settings.max_backoff,
        chance=random.Random(),
    )
    health = Health(settings.checks, supervisor, lambda: keeper.wake())
    keeper = Keeper(registration, health.verdict)
    try:
        supervisor.start()
    except OSError as error:
        log.error("cannot start %s", error)
        return 126 if isinstance(error, PermissionError) else 127
    health.start()
    keeper.start()
    told = _stand_by(signals, supervisor)
    # First out of the registry, so that nobody is sent to an instance that is ending; but one
    # that does not answer must not use up the time that an orchestrator gives to the children.
    keeper.stop(timeout=settings.timeout)
    health.stop()

    def pass_on(secs: float) -> None:
        for number in signals.take(secs):
            supervisor.forward(number)

    supervisor.end(told, wait=pass_on)
    keeper.stop(timeout=settings.timeout)
    signals.ignore()
    return supervisor.exit_code


class Signals:
    """The signals that came, in their order."""

    def __init__(self) -> None:
        """From here on they are kept instead of acted upon."""
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (*_STOPPING, *_FORWARDED, signal.SIGCHLD):
            # Without a handler of Python's own, nothing is written for it.
            signal.signal(number, lambda *_: None)

    def take(self, secs: float) -> list[int]:
        """Those to act upon, at once where there are some; a child's end cuts the time short."""
        if not select.select([self._reading], [], [], secs)[0]:
            return []
        known = (*_STOPPING, *_FORWARDED)
        return [number for number in self._reading.recv(4096) if number in known]

    def ignore(self) -> None:
        """From here on they have come too late; the exit code is not to be a late one's."""
        for number in (*_STOPPING, *_FORWARDED):
            signal.signal(number, signal.SIG_IGN)


def _stand_by(signals: Signals, supervisor: Supervisor) -> int:
    """Until it is over; the signal that the children are to be told."""
    while not supervisor.look():
        for number in signals.take(_LOOK_SECS):
            if number in _STOPPING:
                log.info("stopping: %s", signal.Signals(number).name)
                return number
            supervisor.forward(number)
    return signal.SIGTERM


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run with these settings; 2 where they are wrong."""
    try:
        settings = load(arguments, environ)
    except SettingError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    return run(settings, environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
