"""What can be known before anybody is served, found out before anybody is: one line, or a start.

``check`` is asked by the start itself (``gunicorn.conf.py``), before a reload, and by ``python -m
start`` (``make check-settings``), which serves nothing. What a worker finds out later is told by
``give_up``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from gunicorn import util
from gunicorn.workers.base import Worker

from eureka_server.access import Access
from eureka_server.settings import Environment, SettingError, TlsSettings, load
from registry import StoreError, open_store

MOST_CONNECTIONS = 20_000
# What a worker has open besides connections: the store, logs, listeners, catalogs' connections.
_RESERVED_FILES = 200
_ENOUGH_FILES = 1_048_576
_RETRY_SECS = 1.0
# Exit codes of a worker: gunicorn gives up at the first and starts another after any else.
_BOOT_ERROR, _NOT_NOW = 3, 1


class _Shared:
    """What the main process and its workers know together; made before the first is forked."""

    def __init__(self) -> None:
        # One byte that all of them see: whether a worker ever served.
        self._has_served = mmap.mmap(-1, 1)
        # One byte in a pipe, which one worker takes: the right to tell why none can start.
        self._right_to_tell, giving = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(giving, b"!")
        os.close(giving)

    @property
    def has_served(self) -> bool:
        return self._has_served[0] == 1

    def serves(self) -> None:
        self._has_served[0] = 1

    def may_tell(self) -> bool:
        """Whether this worker is the one that tells: true once, for all of them."""
        # Empty, and nobody left who could write: the end of the pipe.
        return os.read(self._right_to_tell, 1) != b""


_shared: _Shared | None = None


def check(environ: Mapping[str, str]) -> Environment:
    """Everything that is set, read and tried; ``SettingError`` with one line for what is wrong."""
    environment = load(environ)
    try:
        Access(environment.access)
    except ValueError as error:
        raise SettingError(str(error)) from None
    _check_tls(environment.tls)
    _check_worker_class(environment.worker_class)
    _check_host(environment.host)
    if is_shared(environment):
        _check_store(environment.store_url)
    return environment


def check_options(cfg: Any, environ: Mapping[str, str]) -> None:
    """What gunicorn was told beside the environment, and whether the port is free.

    ``SettingError`` with one line. ``cfg`` is gunicorn's.
    """
    if cfg.preload_app:
        raise SettingError("--preload: expected not to be there: each worker opens the store")
    if cfg.workers > 1 and not is_shared(load(environ)):
        raise SettingError(f"{cfg.workers} workers: expected 1: STORE_URL=memory: is not shared")
    if "GUNICORN_FD" in environ or "LISTEN_FDS" in environ:
        return  # the sockets come from whoever started this
    for address in cfg.address:
        if isinstance(address, tuple):
            _check_port(*address)


def is_shared(environment: Environment) -> bool:
    """Whether several workers can have the same registry."""
    return environment.store_url != "memory:"


def _check_worker_class(name: str) -> None:
    with contextlib.suppress(RuntimeError, ImportError, AttributeError):
        found = util.load_class(name)
        if isinstance(found, type) and issubclass(found, Worker):
            return
    raise SettingError(
        f"WORKER_CLASS={name!r}: expected eureka_http.worker.EventLoopWorker, gthread, or"
        " another of gunicorn's that is installed"
    )


def _check_host(host: str) -> None:
    """Whether it is a name or an address at all; whether it is this machine's, the port tells."""
    try:
        socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError):
        raise SettingError(
            f"HOST={host!r}: expected a name or an address of this machine, such as 0.0.0.0 or ::"
        ) from None


def _check_tls(tls: TlsSettings) -> None:
    if tls.cert_file is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_passphrase() -> str:
        raise ValueError("it is locked with a passphrase, which nobody could be asked for")

    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, no_passphrase)
    except (OSError, ValueError) as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            reason = "they do not belong to each other"
        else:
            reason = _reason(error)
        raise SettingError(
            f"TLS_CERT_FILE={tls.cert_file}, TLS_KEY_FILE={tls.key_file}: {reason}"
        ) from None
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"TLS_CLIENT_CA_FILE={tls.client_ca_file}: expected certificates in PEM:"
                f" {_reason(error)}"
            ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not what PEM looks like ({error.reason or error.strerror or 'unknown'})"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            tried.listen(1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingError(f"HOST={host} PORT={port}: cannot listen there: {reason}") from None


def _check_store(url: str) -> None:
    """Open the store and close it, in a process of its own.

    An open LMDB environment must not cross a fork, and a file that is damaged badly enough ends the
    process that maps it.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _try_store(url, writing)
    os.close(writing)
    with open(reading, "rb") as told:
        text = told.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        text = f"STORE_URL={url}: the store is damaged; opening it ends in {name}"
    if text or status != 0:
        raise SettingError(text or f"STORE_URL={url}: the store cannot be opened")


def _try_store(url: str, told: int) -> NoReturn:
    code = 1
    try:
        store = open_store(url)
        list(store.namespaces())
        store.close()
        code = 0
    except (StoreError, OSError, ValueError) as error:
        os.write(told, " ".join(str(error).split()).encode("utf-8", "replace"))
    except Exception as error:
        text = f"STORE_URL={url}: the store is damaged: {type(error).__name__}: {error}"
        os.write(told, " ".join(text.split()).encode("utf-8", "replace"))
    finally:
        # Nothing that the parent has open is this process's to end.
        os._exit(code)


# Files, of which each connection is one


def raise_file_limit() -> str:
    """Let each process open as many files as it may; the line that says so, if anything changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return f"each process may open {wanted} files now, not {soft}"
    return ""


def most_connections() -> int:
    """How many connections one worker may have: never more than it may open files for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, soft - _RESERVED_FILES))


# Workers


def share_with_workers() -> None:
    """Have ``served`` and ``give_up`` know of all workers; to be called before any is forked."""
    global _shared
    if _shared is None:
        _shared = _Shared()


def served() -> None:
    """Note that a worker serves: from now on one that cannot start is tried again."""
    if _shared is not None:
        _shared.serves()


def give_up(reason: object) -> NoReturn:
    """End this worker, which cannot start: with the server, if no worker ever served.

    Otherwise gunicorn starts another at once, so this one waits a second first. A store that is
    away for a while is a reason of that kind.
    """
    if _shared is not None and _shared.has_served:
        print(f"cannot start a worker, tried again: {reason}", file=sys.stderr, flush=True)
        time.sleep(_RETRY_SECS)
        sys.exit(_NOT_NOW)
    if _shared is None or _shared.may_tell():
        print(f"cannot start: {reason}", file=sys.stderr, flush=True)
        sys.exit(_BOOT_ERROR)
    # One is enough: gunicorn stumbles over a second while it ends because of the first.
    sys.exit(_NOT_NOW)


def main(environ: Mapping[str, str]) -> int:
    """Say whether a server with these settings would start: 0, or 1 with the reason."""
    try:
        environment = check(environ)
    except SettingError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    for warning in environment.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"it would serve on {environment.host}:{environment.port}"
        f" with accounts {environment.access.mode!r}, {environment.store_url}"
        f" and {len(environment.catalogs)} catalogs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
