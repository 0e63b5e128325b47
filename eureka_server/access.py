"""Who may read and write which namespace, and by which transport.

Free of any web framework; both doors ask it. What credentials are worth, a judge says
(``credentials``), once: what was found is remembered here. Nothing logs a token or a password.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, overload

from eureka_http.cache import Cache
from eureka_http.exchange import Answer, Request
from eureka_http.shown import masked
from eureka_server.accounts import (
    AccessError,
    Keys,
    WatchedFile,
    parsed_keys,
    read_keys,
    read_users,
)
from eureka_server.credentials import (
    Allowances,
    BusyError,
    Credentials,
    CredentialsError,
    Grant,
    Judge,
    NamedNamespaces,
    Passwords,
    SignedTokens,
    Verified,
)
from registry import DEFAULT_NAMESPACE, NAMESPACE, Asker, Namespace
from registry.duty import Duty

log = logging.getLogger("access")

Mode = Literal["none", "trusted", "jwt", "basic"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_REREAD_SECS = 1.0
_MOST_REMEMBERED = 10_000
_WRITING = frozenset({"POST", "PUT", "DELETE", "PATCH"})
# Lines about refused logins: so many at once, and so many a second then.
_LINES = (20.0, 1.0)
# What the history keeps of an address, and of what a client calls itself.
_LONGEST_ADDRESS, _LONGEST_CLIENT = 64, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """How callers are told apart, with the reason for each default."""

    mode: Mode = "none"
    """One open namespace, as the original has it."""

    key: str = ""
    """For ``jwt``: the secret of HS256, public keys in PEM, or a JWKS."""

    keys_path: Path | None = None
    """For ``jwt``, instead: a file of the same, or a folder of such files; read when it changes."""

    audience: str = ""
    """For ``jwt``: whom a token must be meant for (``aud``); empty: anybody."""

    issuer: str = ""
    """For ``jwt``: whom a token must be from (``iss``); empty: anybody who has the key."""

    require_expiry: bool = True
    """For ``jwt``: whether a token must say when it ends (``exp``)."""

    users_file: Path | None = None
    """For ``basic``: a line for each user: name, namespace, role (user or admin), password hash."""

    users_copy: Path | None = None
    """Where the users' last good file is kept for a start that finds a broken one."""

    protect_reads: bool = True
    """Whether reading needs credentials where a mode is set."""

    protect_writes: bool = True
    """Whether writing does."""

    require_https: bool = False
    """Whether plain HTTP is refused."""

    trusted_proxies: tuple[Network, ...] = ()
    """Whose ``X-Forwarded-Proto``, ``-Host`` and ``-For`` are believed: nobody's, unless named."""


class Access:
    """Decides for each request. Thread-safe; what was found once is quick to find again.

    ``refresh`` reads users and keys again where their files have changed; after ``start`` it is
    called each second.
    """

    def __init__(
        self, settings: AccessSettings, *, threads: int = 8, clock: Callable[[], float] = time.time
    ) -> None:
        """``AccessError`` where the mode's key or users cannot be used.

        Half of the ``threads`` that answer requests may wait for a password's hash. ``clock`` gives
        seconds of the epoch.
        """
        self._settings = settings
        self._clock = clock
        self._judge = _judge_of(settings, threads)
        self._lock = threading.Lock()
        # What is remembered is keyed so that a core dump shows no password.
        self._salt = secrets.token_bytes(32)
        self._remembered: Cache[bytes, Verified] = Cache(_MOST_REMEMBERED)
        self._lines = Allowances(*_LINES)
        self._unlogged = 0
        self._stopping = threading.Event()
        self.version = 0
        """Changes where users or keys do: what was granted before is to be asked for again."""

    def start(self) -> None:
        """Look for changes of users and keys in the background until ``stop``."""
        if self._judge is not None and self._judge.may_change:
            threading.Thread(target=self._follow, name="accounts", daemon=True).start()

    def stop(self) -> None:
        """Look no more, soon."""
        self._stopping.set()
        if self._judge is not None:
            self._judge.stop()

    def _follow(self) -> None:
        duty = Duty("looking for changed users and keys", 0.0, self.refresh, log)
        while not self._stopping.wait(_REREAD_SECS):
            duty.run(time.monotonic())

    def refresh(self) -> None:
        """Read users and keys where their files have changed; what is wrong changes nobody.

        Who was known stays known where the user's line, or the key, is still there.
        """
        judge = self._judge
        if judge is None or not judge.refresh():
            return
        with self._lock:
            self._remembered.forget(lambda known: not judge.still_holds(known))
            self.version += 1

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything, in one namespace, whatever the request says."""
        return self._settings.mode == "none" and not self._settings.require_https

    @overload
    def grant(
        self, request: Request, path_token: str | None = None, *, quick: Literal[False] = False
    ) -> Grant | Answer: ...

    @overload
    def grant(
        self, request: Request, path_token: str | None = None, *, quick: bool
    ) -> Grant | Answer | None: ...

    def grant(
        self, request: Request, path_token: str | None = None, *, quick: bool = False
    ) -> Grant | Answer | None:
        """What this caller may do here, or the refusal.

        401 without credentials that hold, 403 for the wrong namespace, and 429 where more unknown
        passwords come than can be looked at. ``path_token`` is what stands in the path of clients
        that can send no header. With ``quick``, None where finding out takes long (a password that
        was not seen before).
        """
        settings = self._settings
        if settings.require_https and not self._is_https(request):
            return Answer(403, headers={"X-Refused": "https"})
        judge = self._judge
        if judge is None:
            # Without accounts a token in the path could only pretend to part namespaces.
            return _EVERYBODY if path_token is None else Answer(404)
        authorization = request.headers.get("authorization")
        if authorization is None and path_token is None:
            needed = (
                settings.protect_writes if request.method in _WRITING else settings.protect_reads
            )
            return (
                self._unauthorized(judge, request)
                if needed
                else self._in_namespace(_ANYBODY, request)
            )
        shown = authorization if authorization is not None else f"\0{path_token}"
        mark = hmac.digest(self._salt, shown.encode("utf-8", "replace"), hashlib.sha256)
        known = self._remembered.get(mark)
        if known is not None and known.grant.until > self._clock():
            return self._in_namespace(known.grant, request)
        # Not a lambda: with one, every request would pay for the variables that it shares.
        credentials = Credentials(authorization, path_token, mark, partial(self._client, request))
        try:
            found = judge.judge(credentials, quick=quick)
            if found is None:
                return None
            self._remember(judge, mark, found)
        except CredentialsError as error:
            self._log_refusal(request, str(error))
            return self._unauthorized(judge, request)
        except BusyError as error:
            if str(error):
                self._log_refusal(request, str(error))
            return _BUSY
        return self._in_namespace(found.grant, request)

    def _in_namespace(self, grant: Grant, request: Request) -> Grant | Answer:
        wanted = request.headers.get("registry-namespace")
        if wanted is None or wanted == grant.namespace:
            return grant
        if not grant.is_admin or not NAMESPACE.match(wanted):
            return Answer(403)
        return Grant(Namespace(wanted), True, grant.user, grant.until)

    @property
    def mode(self) -> Mode:
        """How callers are told apart."""
        return self._settings.mode

    def may_write(self, request: Request) -> bool:
        """Whether who was granted this request, whatever its method, may also change something."""
        settings = self._settings
        is_known = "authorization" in request.headers
        return is_known or settings.mode == "none" or not settings.protect_writes

    def origin(self, request: Request) -> str:
        """What this server's URLs begin with for this caller, such as ``https://registry:8761``.

        Nothing where the request names no host: then a URL has to go without.
        """
        host = self._forwarded(request, "host") or request.headers.get("host", "")
        if not _AUTHORITY.match(host):
            return ""
        return f"{'https' if self._is_https(request) else 'http'}://{host}"

    def asker(self, account: str, headers: Mapping[str, str], peer: str) -> Asker:
        """Who sent a request, for the history: what the client calls itself is not verified."""
        client = headers.get("discoveryidentity-name", "")
        agent = headers.get("user-agent", "")
        words = " ".join(word for word in (client, agent) if word)
        address = self._forwarded_of(headers, peer, "for") or peer
        return Asker(account, address[:_LONGEST_ADDRESS], masked(words)[:_LONGEST_CLIENT])

    def _is_https(self, request: Request) -> bool:
        return request.scheme == "https" or self._forwarded(request, "proto").lower() == "https"

    def _forwarded(self, request: Request, what: str) -> str:
        return self._forwarded_of(request.headers, request.peer, what)

    def _forwarded_of(self, headers: Mapping[str, str], peer: str, what: str) -> str:
        """What a trusted proxy says of the request that it passes on."""
        told = headers.get(f"x-forwarded-{what}")
        if told is None or not self._is_proxy(peer):
            return ""
        # The proxy next to us wrote the last word.
        return told.rpartition(",")[2].strip()

    def _is_proxy(self, peer: str) -> bool:
        if not self._settings.trusted_proxies:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._settings.trusted_proxies)

    def _client(self, request: Request) -> str:
        """The address that a request is from: what a named proxy says, or the connection's own.

        Of IPv6 the network alone, for each client has one of its own.
        """
        told = self._forwarded(request, "for") or request.peer
        try:
            address = ipaddress.ip_address(told)
        except ValueError:
            return told[:64]
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
        return told

    def _unauthorized(self, judge: Judge, request: Request) -> Answer:
        challenge = f'{judge.challenge} realm="registry"'
        if request.headers.get("x-requested-with") == "XMLHttpRequest":
            # A page asks for the account itself; a scheme that no browser knows leaves that to it.
            challenge = f'Page realm="registry", scheme="{judge.challenge}"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    def _log_refusal(self, request: Request, reason: str) -> None:
        """A line for the operator; of many, some."""
        if self._lines.take(""):
            more = f" ({self._unlogged} more before it)" if self._unlogged else ""
            self._unlogged = 0
            log.warning("refused login from %s: %s%s", self._client(request), reason, more)
        else:
            self._unlogged += 1

    def _remember(self, judge: Judge, mark: bytes, found: Verified) -> None:
        """Know these credentials from now on; ``CredentialsError`` where they hold no more."""
        with self._lock:
            if not judge.still_holds(found):
                raise CredentialsError("its account or key is not there any more")
            self._remembered.keep(mark, found)


def _judge_of(settings: AccessSettings, threads: int) -> Judge | None:
    """Who judges in this mode; nobody where everybody may do everything. ``AccessError``."""
    match settings.mode:
        case "none":
            return None
        case "trusted":
            return NamedNamespaces()
        case "jwt":
            keys: Keys | WatchedFile[Keys]
            if settings.keys_path is not None:
                keys = WatchedFile("key", settings.keys_path, read_keys)
            else:
                keys = Keys(parsed_keys(settings.key.encode()))
            return SignedTokens(
                keys,
                audience=settings.audience,
                issuer=settings.issuer,
                require_expiry=settings.require_expiry,
            )
        case "basic":
            if settings.users_file is None:
                raise AccessError("the mode basic needs a users file")
            users = WatchedFile("users file", settings.users_file, read_users, settings.users_copy)
            return Passwords(users, threads=threads)


_EVERYBODY = Grant(DEFAULT_NAMESPACE, is_admin=True)
_ANYBODY = Grant(DEFAULT_NAMESPACE)
_BUSY = Answer(429, headers={"Retry-After": "2"})

__all__ = ["Access", "AccessError", "AccessSettings", "Grant", "Mode", "Network"]
