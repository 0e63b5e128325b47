"""How gunicorn serves the application: all of it from the same environment as ``wsgi.py``."""

import os
import sys

from environment import SettingError, load

try:
    _environment = load(os.environ)
except SettingError as error:
    sys.exit(f"cannot start: {error}")

_host = f"[{_environment.host}]" if ":" in _environment.host else _environment.host
bind = f"{_host}:{_environment.port}"
workers = _environment.workers
worker_class = _environment.worker_class
threads = _environment.threads
loglevel = _environment.log_level
backlog = 2048
# Longer than the clients' 30 s between two requests, so that their connections stay.
keepalive = 75
graceful_timeout = 10
timeout = 30
# Each worker opens the store itself: an LMDB environment must not cross a fork.
preload_app = False
# One server per account would own the socket, and nothing here uses it.
control_socket_disable = True
# Ids may hold %2F and be long; real request lines stay far below.
limit_request_line = 8190

_format = {"format": "%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"}
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": _format, "generic": _format},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "stream": "ext://sys.stderr",
        }
    },
    "root": {"level": loglevel.upper(), "handlers": ["stderr"]},
    "loggers": {
        "gunicorn.error": {"level": loglevel.upper(), "handlers": ["stderr"], "propagate": False},
        "gunicorn.access": {"level": "CRITICAL", "handlers": ["stderr"], "propagate": False},
    },
}


def when_ready(server):  # type: ignore[no-untyped-def]  # gunicorn's hook
    """Name each setting of the operator's that changes nothing here."""
    for warning in _environment.warnings:
        server.log.warning(warning)
