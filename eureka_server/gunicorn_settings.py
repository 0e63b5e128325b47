"""How gunicorn serves the application: all of it from the same environment as ``wsgi.py``."""

import gc
import logging
import os
import ssl
import sys

from gunicorn.glogging import Logger

# The workers share the memory of what is imported before they are forked. Only modules are: an
# application opens the store.
import eureka_http.worker  # noqa: F401
import eureka_server.flask_door
import eureka_server.gateway  # noqa: F401
from eureka_http.shown import masked
from eureka_server import start
from eureka_server.settings import SettingError

try:
    _environment = start.check(os.environ)
except SettingError as error:
    sys.exit(f"cannot start: {error}")
_more_files = start.raise_file_limit()

_host = f"[{_environment.host}]" if ":" in _environment.host else _environment.host
bind = f"{_host}:{_environment.port}"
workers = _environment.workers
worker_class = _environment.worker_class
threads = _environment.threads
loglevel = _environment.log_level
backlog = 2048
# Watches hold their connections, at a few kilobytes each.
worker_connections = start.most_connections()
certfile = str(_environment.tls.cert_file or "") or None
keyfile = str(_environment.tls.key_file or "") or None
ca_certs = str(_environment.tls.client_ca_file or "") or None
cert_reqs = ssl.CERT_REQUIRED if ca_certs else ssl.CERT_NONE
# Whose word counts for the scheme is decided by REGISTRY_TRUSTED_PROXIES alone.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
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


class QuietLogger(Logger):
    """Gunicorn's log, but for the secrets that stand in requests."""

    def atoms(self, resp, req, environ, request_time):  # type: ignore[no-untyped-def]
        """What an access line is made of."""
        atoms = super().atoms(resp, req, environ, request_time)
        for name in ("r", "U", "f"):
            text = atoms.get(name)
            if isinstance(text, str):
                atoms[name] = masked(text)
        # In other modes a token may stand where Basic has the name, and a wrong name may be a
        # password that slipped.
        if _environment.access.mode != "basic" or atoms.get("s") in ("401", "429"):
            atoms["u"] = "-"
        return atoms

    def debug(self, msg, *args, **kwargs):  # type: ignore[no-untyped-def]
        """A line that may name a request's path, as gunicorn's own hook before each request."""
        if self.error_log.isEnabledFor(logging.DEBUG):
            super().debug("%s", masked(msg % args if args else msg), **kwargs)


logger_class = QuietLogger
_format = {
    "()": "eureka_http.shown.LineFormatter",
    "fmt": "%(asctime)s %(levelname)s %(name)s [%(process)d]%(caller)s %(message)s",
}
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
        "gunicorn.access": {
            "level": "INFO" if _environment.access_log else "CRITICAL",
            "handlers": ["stderr"],
            "propagate": False,
        },
    },
}


def post_worker_init(worker):  # type: ignore[no-untyped-def]  # gunicorn's hook
    """Look for garbage seldom, and not among what was loaded; let the loop have its turn soon.

    Hardly anything here is in a cycle, while a look through a large registry holds every request
    up. So does a thread that is given five milliseconds at a time, as they are by default.
    """
    start.served()
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pre_fork(server, worker):  # type: ignore[no-untyped-def]  # gunicorn's hook
    """Leave what is shared alone: a look for garbage would write to each object."""
    gc.freeze()


def on_starting(server):  # type: ignore[no-untyped-def]  # gunicorn's hook
    """Refuse what the command line says and the store cannot have; let no reload break anything."""
    try:
        start.check_command_line(server.cfg, os.environ)
    except SettingError as error:
        sys.exit(f"cannot start: {error}")
    hang_up = server.handle_hup

    def reload() -> None:
        try:
            start.check(os.environ)
        except SettingError as error:
            server.log.error("not reloaded, all stays as it is: %s", error)
        else:
            hang_up()

    # gunicorn would end itself for a setting that is wrong, and its workers one after another.
    server.handle_hup = reload
    if not start.is_shared(_environment):
        server.handle_ttin = lambda: server.log.warning("this store takes one worker")


def when_ready(server):  # type: ignore[no-untyped-def]  # gunicorn's hook
    """Name each setting of the operator's that changes nothing here."""
    if _more_files:
        server.log.info(_more_files)
    if worker_connections < start.MOST_CONNECTIONS:
        server.log.info(
            "a worker takes %d connections at most: it may not open more files", worker_connections
        )
    for warning in _environment.warnings:
        server.log.warning(warning)
