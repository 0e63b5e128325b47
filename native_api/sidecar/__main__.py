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

from native_api.sidecar.checks import Health
from native_api.sidecar.protocols import protocols
from native_api.sidecar.registration import Keeper, Registration
from native_api.sidecar.settings import SettingError, Settings, load
from native_api.sidecar.supervisor import FORWARDED, Supervisor

log = logging.getLogger("sidecar")

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECS = 1.0


def run(settings: Settings) -> int:
    """Stand by until told to stop or until a child's end ends it; the exit code."""
    woken = _signals()
    supervisor = Supervisor(settings.supervise, settings.grace)
    registration = Registration(
        protocols(settings),
        ttl_secs=settings.ttl,
        reports_illness=settings.on_unhealthy == "out_of_service",
        max_backoff_secs=settings.max_backoff,
        chance=random.Random(),
    )
    health = Health(settings.checks, supervisor, lambda: keeper.wake())
    keeper = Keeper(registration, health.verdict)
    try:
        supervisor.start()
    except OSError as error:
        log.error("cannot start %s", error)
        return 127
    health.start()
    keeper.start()
    _stand_by(woken, supervisor)
    # First out of the registry, so that nobody is sent to an instance that is ending.
    keeper.stop(timeout=settings.timeout * (len(settings.registries) + 1))
    health.stop()
    supervisor.end()
    return supervisor.exit_code or 0


def _signals() -> socket.socket:
    """A socket that holds the number of each signal that came."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in (*_STOPPING, *FORWARDED, signal.SIGCHLD):
        # Without a handler of Python's own, nothing is written for it.
        signal.signal(number, lambda *_, kept=writing: None)
    return reading


def _stand_by(woken: socket.socket, supervisor: Supervisor) -> None:
    while not supervisor.reap():
        if not select.select([woken], [], [], _LOOK_SECS)[0]:
            continue
        for number in woken.recv(4096):
            if number in _STOPPING:
                log.info("stopping: %s", signal.Signals(number).name)
                return
            if number in FORWARDED:
                supervisor.forward(number)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run with these settings; 2 where they are wrong."""
    try:
        settings = load(arguments, environ)
    except SettingError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
