"""What can be known before anybody is served, found out before anybody is: one line, or a start.

Asked by the start itself, before each reload, and by ``eureka-registry --check``, which serves
nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn

from gunicorn import util
from gunicorn.workers.base import Worker

from eureka_http.shown import masked_url
from eureka_server.access import Access
from eureka_server.settings import Environment, SettingError, TlsSettings, load
from registry import StoreError, open_store


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
    if environment.is_shared:
        _check_store(environment.store_url)
    return environment


def check_options(cfg: Any, environ: Mapping[str, str]) -> None:
    """What gunicorn was told beside the environment, and whether the port is free.

    ``SettingError`` with one line. ``cfg`` is gunicorn's.
    """
    if cfg.preload_app:
        raise SettingError("--preload: expected not to be there: each worker opens the store")
    if cfg.workers > 1 and not load(environ).is_shared:
        raise SettingError(f"{cfg.workers} workers: expected 1: STORE_URL=memory: is not shared")
    if "GUNICORN_FD" in environ or "LISTEN_FDS" in environ:
        return  # the sockets come from whoever started this
    for address in cfg.address:
        if isinstance(address, tuple):
            _check_port(*address)


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
    url = masked_url(url) if "://" in url else url
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
        shown = masked_url(url) if "://" in url else url
        text = f"STORE_URL={shown}: the store is damaged: {type(error).__name__}: {error}"
        os.write(told, " ".join(text.split()).encode("utf-8", "replace"))
    finally:
        # Nothing that the parent has open is this process's to end.
        os._exit(code)
