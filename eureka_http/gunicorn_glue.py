"""Everything that is taken from gunicorn: the one module here that imports it.

Gunicorn's worker classes are made to be derived from, but much of what a worker needs is not
documented. Used are: ``Worker`` with the attributes named in ``GunicornWorker``; ``wsgi.create``
and the response it makes; the names of settings; ``ssl_context``; ``Logger.access`` and what it
reads of a request. ``tests/test_gunicorn_glue.py`` asserts each of these, and pyproject.toml bounds
gunicorn's version by what that test has seen.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import os
import ssl
from datetime import datetime
from typing import Any, cast

import gunicorn.sock
from gunicorn import SERVER, config, util
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers import base

from eureka_http.exchange import Answer, Stream
from eureka_http.reader import Address, Limits, Message, RefusedError

__all__ = ["Gunicorn", "GunicornWorker", "Logger", "WsgiRequest"]

GunicornWorker = base.Worker
"""What a worker class derives from.

The arbiter calls ``init_process``, ``notify`` keeps it from killing the worker, ``handle_abort`` is
the handler of SIGABRT. ``alive``, ``nr``, ``max_requests``, ``ppid``, ``sockets``, ``cfg``, ``log``
and, once ``init_process`` has loaded the application, ``wsgi`` are read.
"""


class WsgiRequest:
    """A message as gunicorn's WSGI layer, loggers and hooks know a request."""

    # Whoever waits for a 100 (Continue) was sent it before the message was whole.
    _expected_100_continue = False
    proxy_protocol_info = None

    def __init__(self, message: Message, scheme: str, peer: Address) -> None:
        parts = util.split_request_uri(message.target)
        self.method = message.method
        self.uri = message.target
        # Only a target in the absolute form can be without a path.
        self.path: str = parts.path or "/"
        self.query: str = parts.query or ""
        self.fragment: str = parts.fragment or ""
        self.version = (1, 1) if message.version == "1.1" else (1, 0)
        repeated = message.repeated or {}
        self.headers = [
            (name.upper(), value)
            for name, joined in message.headers.items()
            for value in repeated.get(name, [joined])
        ]
        self.trailers: list[tuple[str, str]] = []
        self.body = io.BytesIO(message.body) if isinstance(message.body, bytes) else message.body
        self.scheme = scheme
        self.peer_addr = self.remote_addr = peer
        self._keeps = message.keeps

    def should_close(self) -> bool:
        """Whether the client asked that the connection be closed after the answer."""
        return not self._keeps


class Gunicorn:
    """Gunicorn's settings, WSGI layer, access log and hooks, for one worker. Thread-safe."""

    server_name = SERVER

    def __init__(self, worker: base.Worker) -> None:
        self._worker = worker
        self._cfg: Any = worker.cfg
        self._log = worker.log
        self._logs_access = False
        self.scheme = "https" if self._cfg.is_ssl else "http"
        self.base_path = os.environ.get("SCRIPT_NAME", "")
        """The path that the whole application is mounted at; empty where it is the root."""

    # Settings

    def limits(self) -> Limits:
        """What a head may measure; 0 means no limit of gunicorn's, and here a generous one."""
        cfg = self._cfg
        return Limits.of(
            min(cfg.limit_request_line, 8190) if cfg.limit_request_line > 0 else 1024 * 1024,
            cfg.limit_request_fields if 0 < cfg.limit_request_fields <= 32768 else 32768,
            cfg.limit_request_field_size if cfg.limit_request_field_size > 0 else 8190,
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for TLS, as the settings have it; None without TLS."""
        if not self._cfg.is_ssl:
            return None
        context: ssl.SSLContext = gunicorn.sock.ssl_context(self._cfg)
        # Whatever else is configured, no other protocol is spoken.
        context.set_alpn_protocols(["http/1.1"])
        return context

    def trusts(self, peer: Address) -> bool:
        """Whether this peer is a proxy whose word about the client is believed."""
        allowed = self._cfg.forwarded_allow_ips
        if not isinstance(peer, tuple) or "*" in allowed:
            return True
        try:
            address = ipaddress.ip_address(peer[0])
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(each) for each in allowed)

    def takes_underscore(self, name: str, peer: Address) -> bool:
        """Whether a field with an underscore in its name is kept.

        In a WSGI environment ``x_a`` cannot be told from ``x-a``, which a proxy may have checked.
        ``RefusedError`` where the settings say that it must not come.
        """
        cfg = self._cfg
        allowed = cfg.forwarder_headers if self.trusts(peer) else ()
        if cfg.header_map == "dangerous" or {name.upper(), "*"} & set(allowed):
            return True
        if cfg.header_map == "drop":
            return False
        raise RefusedError(400, f"the header field {name} is not allowed")

    def is_observed(self) -> bool:
        """Whether an access log or a hook is told of each request.

        That costs far more than most answers, so it is not done for nobody.
        """
        log, cfg = self._log, self._cfg
        # A logger of another class may do more than log, so it is told of everything.
        self._logs_access = type(log).access is not Logger.access or (
            getattr(log, "access_log_enabled", True) and log.access_log.isEnabledFor(logging.INFO)
        )
        return bool(
            self._logs_access
            or cfg.pre_request is not config.PreRequest.default
            or cfg.post_request is not config.PostRequest.default
        )

    # Requests

    def request(self, message: Message, peer: Address) -> WsgiRequest:
        """The message as gunicorn knows it; ``RefusedError`` where WSGI cannot serve it."""
        told = set()
        headers = message.headers
        for name, secure in self._cfg.secure_scheme_headers.items():
            value = headers.get(name.lower())
            if value is not None and self.trusts(peer):
                told.add("https" if value == secure else "http")
        if len(told) > 1:
            raise RefusedError(400, "the schemes that are told contradict each other")
        try:
            made = WsgiRequest(message, told.pop() if told else self.scheme, peer)
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        base_path = headers.get("script_name", self.base_path)
        if made.path != "*" and not made.path.startswith(base_path):
            raise RefusedError(404, f"nothing is served outside of {base_path}")
        return made

    def exchange(
        self, request: WsgiRequest, server: Address, client: Any, sink: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Gunicorn's response, and the WSGI environment.

        The response writes by ``sink.sendall(data)``; ``server`` is the address that was connected
        to, and ``client`` the socket that the application is shown.
        """
        # What ``create`` reads of a request is all that a ``WsgiRequest`` has.
        response, environ = wsgi.create(
            cast(Any, request), sink, cast(Any, request.peer_addr), cast(Any, server), self._cfg
        )
        environ["wsgi.multithread"] = True
        environ["gunicorn.socket"] = client
        return response, cast(dict[str, Any], environ)

    # The access log and the hooks

    def begins(self, request: WsgiRequest) -> None:
        """Call the hook before an answer. Raises what the hook raises."""
        self._cfg.pre_request(self._worker, request)

    def begins_fast(self, message: Message, peer: Address) -> datetime:
        """The same for an answer that does not go through WSGI; the time is now."""
        with contextlib.suppress(RefusedError):
            self.begins(self.request(message, peer))
        return datetime.now()

    def ended(
        self, request: WsgiRequest, environ: dict[str, Any], response: Any, started: datetime
    ) -> None:
        """Write the access log and call the hook after an answer; never raises."""
        try:
            if self._logs_access and response is not None and response.status is not None:
                self._log.access(response, cast(Any, request), environ, datetime.now() - started)
            self._cfg.post_request(self._worker, request, environ, response)
        except Exception:
            self._log.exception("Exception after a request")

    def ended_fast(
        self,
        message: Message,
        peer: Address,
        server: Address,
        client: Any,
        answer: Answer | Stream,
        sent: int,
    ) -> None:
        """The same for an answer that did not go through WSGI, of whose body ``sent`` bytes went.

        Never raises.
        """
        try:
            request = self.request(message, peer)
            response, environ = self.exchange(request, server, client, None)
        except Exception:
            self._log.exception("Exception after a request")
            return
        response.status = str(answer.status) if isinstance(answer, Answer) else "200"
        response.headers = list(answer.headers.items())
        response.sent = sent
        self.ended(request, environ, response, message.started or datetime.now())
