"""How gunicorn serves the application: all of it from the same environment as ``wsgi.py``.

``gunicorn.conf.py`` takes the settings from here for ``gunicorn wsgi:app``; ``eureka-registry
serve`` runs ``Server``, which needs no file.
"""

from __future__ import annotations

import gc
import logging
import os
import ssl
import sys
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from gunicorn.app.base import Application as GunicornApplication
from gunicorn.glogging import Logger

# The workers share the memory of what is imported before they are forked. Only modules are: an
# application opens the store.
import eureka_http.worker  # noqa: F401
from eureka_http.shown import masked
from eureka_server import checks, start
from eureka_server.app import from_environment
from eureka_server.settings import Environment, SettingError

_LINE = {
    "()": "eureka_http.shown.LineFormatter",
    "fmt": "%(asctime)s %(levelname)s %(name)s [%(process)d]%(caller)s %(message)s",
}


def gunicorn_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Gunicorn's settings by name, hooks among them. To be called in the main process.

    Everything is checked first: what cannot serve ends the process with one line (``SystemExit``).
    The limit of open files is raised, so that there is room for connections.
    """
    try:
        environment = checks.check(environ)
    except SettingError as error:
        sys.exit(f"cannot start: {error}")
    start.share_with_workers()
    more_files = start.raise_file_limit()
    host = f"[{environment.host}]" if ":" in environment.host else environment.host
    tls = environment.tls
    # Watches hold their connections, at a few kilobytes each.
    connections = start.most_connections()
    return {
        "bind": f"{host}:{environment.port}",
        "workers": environment.workers,
        "worker_class": environment.worker_class,
        "threads": environment.threads,
        "worker_connections": connections,
        "backlog": 2048,
        "certfile": str(tls.cert_file or "") or None,
        "keyfile": str(tls.key_file or "") or None,
        "ca_certs": str(tls.client_ca_file or "") or None,
        "cert_reqs": ssl.CERT_REQUIRED if tls.client_ca_file else ssl.CERT_NONE,
        # Whose word counts for the scheme is decided by REGISTRY_TRUSTED_PROXIES alone.
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        # Longer than the clients' 30 s between two requests, so that their connections stay.
        "keepalive": 75,
        "graceful_timeout": 10,
        "timeout": 30,
        # Each worker opens the store itself: an LMDB environment must not cross a fork.
        "preload_app": False,
        # One server per account would own the socket, and nothing here uses it.
        "control_socket_disable": True,
        # Ids may hold %2F and be long; real request lines stay far below.
        "limit_request_line": 8190,
        "loglevel": environment.log_level,
        "logger_class": NamingLogger if environment.access.mode == "basic" else QuietLogger,
        "logconfig_dict": _logging(environment.log_level.upper(), shown=environment.access_log),
        "on_starting": _on_starting(environ, environment),
        "when_ready": _when_ready(environment, more_files, connections),
        "pre_fork": _pre_fork,
        "post_worker_init": _post_worker_init,
    }


class Server(GunicornApplication):
    """Gunicorn with this application, told its remaining options by the caller.

    They count before ``GUNICORN_CMD_ARGS``, and that before what the environment says, as they do
    for gunicorn's own command. No file of settings is looked for, but one that ``-c`` names.
    """

    def __init__(self, options: Sequence[str]) -> None:
        """``SystemExit`` with one line where something cannot be served."""
        self._options = list(options)
        super().__init__()

    def load_config(self) -> None:
        """Read everything, at the start and for each reload."""
        told = [self._parsed(self.cfg.get_cmd_args_from_env()), self._parsed(self._options)]
        for name, value in gunicorn_settings(os.environ).items():
            self.cfg.set(name, value)
        for options in told:
            if options.config:
                self.load_config_from_file(options.config)
        for options in told:
            for name, value in vars(options).items():
                if value is not None and name != "args":
                    self.cfg.set(name.lower(), value)
        self.chdir()

    def load(self) -> Any:
        """The application, in a worker."""
        return from_environment(os.environ)

    def _parsed(self, options: list[str]) -> Namespace:
        parser = self.cfg.parser()
        parser.exit_on_error = False
        try:
            found, unknown = parser.parse_known_args(options)
        except ArgumentError as error:
            refuse_options(str(error))
        if unknown or found.args:
            refuse_options(f"no option of gunicorn's: {(unknown or found.args)[0]}")
        return found


def refuse_options(reason: str) -> NoReturn:
    """End for options that are none: with one line and the code for that."""
    print(f"eureka-registry serve: {reason}", file=sys.stderr)
    sys.exit(2)


# The log


class QuietLogger(Logger):
    """Gunicorn's log, without the secrets that stand in requests, and without callers' names.

    A token may stand where Basic has the name.
    """

    def atoms(self, resp, req, environ, request_time):  # type: ignore[no-untyped-def]
        """What an access line is made of."""
        atoms = super().atoms(resp, req, environ, request_time)
        for name in ("r", "U", "f"):
            text = atoms.get(name)
            if isinstance(text, str):
                atoms[name] = masked(text)
        if not self._may_name_user(atoms):
            atoms["u"] = "-"
        return atoms

    def _may_name_user(self, atoms: Mapping[str, Any]) -> bool:
        return False

    def debug(self, msg, *args, **kwargs):  # type: ignore[no-untyped-def]
        """A line that may name a request's path, as gunicorn's own hook before each request."""
        if self.error_log.isEnabledFor(logging.DEBUG):
            super().debug("%s", masked(msg % args if args else msg), **kwargs)


class NamingLogger(QuietLogger):
    """The same where callers have names and passwords: those who are let in are named."""

    def _may_name_user(self, atoms: Mapping[str, Any]) -> bool:
        # A name that was refused may be a password, typed into the wrong field.
        return atoms.get("s") not in ("401", "429")


def _logging(level: str, *, shown: bool) -> dict[str, Any]:
    """Everything on stderr in one form; ``shown``: the access log too."""
    to_stderr = {"handlers": ["stderr"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": _LINE, "generic": _LINE},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, **to_stderr},
            "gunicorn.access": {"level": "INFO" if shown else "CRITICAL", **to_stderr},
        },
    }


# Hooks, which gunicorn calls with its arbiter (``server``) and with a worker


def _on_starting(environ: Mapping[str, str], environment: Environment) -> Callable[[Any], None]:
    def on_starting(server: Any) -> None:
        """Refuse options that the store forbids; see that no reload breaks a server that runs."""
        try:
            checks.check_options(server.cfg, environ)
        except SettingError as error:
            sys.exit(f"cannot start: {error}")
        hang_up = server.handle_hup

        def reload() -> None:
            try:
                checks.check(environ)
            except SettingError as error:
                server.log.error("not reloaded, all stays as it is: %s", error)
            else:
                hang_up()

        # gunicorn would end itself for a wrong setting, and its workers one after another.
        server.handle_hup = reload
        if not environment.is_shared:
            server.handle_ttin = lambda: server.log.warning("this store takes one worker")

    return on_starting


def _when_ready(
    environment: Environment, more_files: str, connections: int
) -> Callable[[Any], None]:
    def when_ready(server: Any) -> None:
        """Name each setting of the operator's that changes nothing here."""
        if more_files:
            server.log.info(more_files)
        if connections < start.MOST_CONNECTIONS:
            server.log.info(
                "a worker takes %d connections at most: it may not open more files", connections
            )
        for warning in environment.warnings:
            server.log.warning(warning)

    return when_ready


def _pre_fork(server: Any, worker: Any) -> None:
    """Leave what is shared alone: a look for garbage would write to each object."""
    gc.freeze()


def _post_worker_init(worker: Any) -> None:
    """Look for garbage seldom, and not among what was loaded; let the loop have its turn soon.

    Hardly anything here is in a cycle, while a look through a large registry holds every request
    up, so that is left to one in a million new objects. A look at the newest alone has few of them:
    in a storm all are still in use, and fifty thousand took up to fifty milliseconds. A thread that
    is given five milliseconds at a time, as they are by default, holds requests up as well.
    """
    start.served()
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 200, 20)
