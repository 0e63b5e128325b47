"""Who may read and write which namespace: tokens, passwords, and transport.

Free of any web framework; both ways in ask it. Nothing here logs a token or a password, and secrets
are compared in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jwt

from eureka_http.exchange import Answer, Request
from eureka_http.shown import escaped
from eureka_server.accounts import (
    AccessError,
    Keys,
    User,
    Users,
    Watched,
    parsed_keys,
    read_keys,
    read_users,
)
from registry import DEFAULT_NAMESPACE, NAMESPACE, Namespace

log = logging.getLogger("access")

Mode = Literal["none", "trusted", "jwt", "basic"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_REREAD_SECS = 1.0
_MOST_REMEMBERED = 10_000
_WRITING = frozenset({"POST", "PUT", "DELETE", "PATCH"})
# Hashing a password takes a core for a tenth of a second, and 32 MB.
_HASHING_THREADS = 2
_WRONG_REMEMBERED_SECS = 10.0
# How many wrong passwords one client, and one name, may try at once, and how many a second then.
_OF_A_CLIENT, _OF_A_NAME = (10.0, 0.5), (20.0, 2.0)
# An end that is later than this is none; beyond it some numbers fit into no float.
_LATEST = 2**53
# Lines about refused logins: so many at once, and so many a second then.
_LINES = (20.0, 1.0)


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


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do: everything in its namespace."""

    namespace: Namespace
    is_admin: bool = False
    user: str = ""
    """Who it is, as far as that is known."""

    until: float = field(default=float("inf"), compare=False)
    """When it ends by itself, in seconds of the epoch."""

    def __str__(self) -> str:
        """Who it is, for the log; empty without an account, or where the namespace is the token."""
        return f"{self.user}@{self.namespace}" if self.user else ""


class _Remembered(NamedTuple):
    """Credentials that were found good, and what that rests on: a user's line, or a key's mark."""

    grant: Grant
    rests_on: User | str | None


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
        self._lock = threading.Lock()
        # What is remembered is keyed so that a core dump shows no password.
        self._salt = secrets.token_bytes(32)
        self._remembered: dict[bytes, _Remembered] = {}
        self._wrong: dict[bytes, float] = {}
        self._hashing: dict[bytes, Future[User | None]] = {}
        self._may_wait = threading.BoundedSemaphore(max(1, threads // 2))
        self._pool: ThreadPoolExecutor | None = None
        self._of_client, self._of_name = _Allowances(*_OF_A_CLIENT), _Allowances(*_OF_A_NAME)
        self._lines = _Allowances(*_LINES)
        self._unlogged = 0
        self._stopping = threading.Event()
        self._users: Watched[Users] | None = None
        self._watched_keys: Watched[Keys] | None = None
        self._keys = Keys(())
        self.version = 0
        """Changes where users or keys do: what was granted before is to be asked for again."""
        if settings.mode == "jwt":
            self._read_keys()
        if settings.mode == "basic":
            if settings.users_file is None:
                raise AccessError("the mode basic needs a users file")
            self._users = Watched(
                "users file", settings.users_file, read_users, settings.users_copy
            )

    def _read_keys(self) -> None:
        settings = self._settings
        if settings.keys_path is not None:
            self._watched_keys = Watched("key", settings.keys_path, read_keys)
            self._keys = self._watched_keys.value
        else:
            self._keys = Keys(parsed_keys(settings.key.encode()))

    def start(self) -> None:
        """Look for changes of users and keys in the background until ``stop``."""
        if self._users is not None or self._watched_keys is not None:
            threading.Thread(target=self._follow, name="accounts", daemon=True).start()

    def stop(self) -> None:
        """Look no more, soon."""
        self._stopping.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _follow(self) -> None:
        while not self._stopping.wait(_REREAD_SECS):
            try:
                self.refresh()
            except Exception:
                log.exception("users and keys stay as they are")

    def refresh(self) -> None:
        """Read users and keys where their files have changed; what is wrong changes nobody.

        Who was known stays known where the user's line, or the key, is still there.
        """
        if self._users is not None and self._users.refresh():
            self._forget()
        if self._watched_keys is not None and self._watched_keys.refresh():
            self._keys = self._watched_keys.value
            self._forget()

    def _still_holds(self, rests_on: User | str | None) -> bool:
        """Whether the user's line, or the key, is there as it was."""
        if isinstance(rests_on, User):
            return self._users is not None and self._users.value.get(rests_on.name) == rests_on
        return rests_on is None or rests_on in self._keys.marks()

    def _forget(self) -> None:
        with self._lock:
            self._remembered = {
                mark: known
                for mark, known in self._remembered.items()
                if self._still_holds(known.rests_on)
            }
            self._wrong.clear()
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
        if settings.mode == "none":
            # Without accounts a token in the path could only pretend to part namespaces.
            return _EVERYBODY if path_token is None else Answer(404)
        needed = settings.protect_writes if request.method in _WRITING else settings.protect_reads
        authorization = request.headers.get("authorization")
        if authorization is None and path_token is None:
            return self._unauthorized() if needed else self._in_namespace(_ANYBODY, request)
        credentials = authorization if authorization is not None else f"\0{path_token}"
        mark = hmac.digest(self._salt, credentials.encode("utf-8", "replace"), hashlib.sha256)
        known = self._remembered.get(mark)
        if known is not None and known.grant.until > self._clock():
            return self._in_namespace(known.grant, request)
        found: Grant | Answer | None
        if settings.mode == "basic":
            found = self._by_password(mark, request, authorization, path_token, quick=quick)
        else:
            found = self._by_token(mark, request, authorization, path_token)
        return self._in_namespace(found, request) if isinstance(found, Grant) else found

    def _in_namespace(self, grant: Grant, request: Request) -> Grant | Answer:
        wanted = request.headers.get("registry-namespace")
        if wanted is None or wanted == grant.namespace:
            return grant
        if not grant.is_admin or not NAMESPACE.match(wanted):
            return Answer(403)
        return Grant(Namespace(wanted), True, grant.user, grant.until)

    def origin(self, request: Request) -> str:
        """What this server's URLs begin with for this caller, such as ``https://registry:8761``.

        Nothing where the request names no host: then a URL has to go without.
        """
        host = self._forwarded(request, "host") or request.headers.get("host", "")
        if not _AUTHORITY.match(host):
            return ""
        return f"{'https' if self._is_https(request) else 'http'}://{host}"

    def _is_https(self, request: Request) -> bool:
        return request.scheme == "https" or self._forwarded(request, "proto").lower() == "https"

    def _forwarded(self, request: Request, what: str) -> str:
        """What a trusted proxy says of the request that it passes on."""
        told = request.headers.get(f"x-forwarded-{what}")
        if told is None or not self._is_proxy(request.peer):
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

    def _unauthorized(self) -> Answer:
        challenge = "Basic" if self._settings.mode == "basic" else "Bearer"
        return Answer(401, headers={"WWW-Authenticate": f'{challenge} realm="registry"'})

    def _refused(self, request: Request, reason: str) -> Answer:
        """The 401 for credentials that do not hold, with a line for the operator."""
        if self._lines.take(""):
            more = f" ({self._unlogged} more before it)" if self._unlogged else ""
            self._unlogged = 0
            log.warning("refused login from %s: %s%s", self._client(request), reason, more)
        else:
            self._unlogged += 1
        return self._unauthorized()

    def _remember(
        self, request: Request, mark: bytes, grant: Grant, rests_on: User | str | None
    ) -> Grant | Answer:
        """The grant, known from now on; the refusal where what it rests on is gone by now."""
        with self._lock:
            if not self._still_holds(rests_on):
                return self._refused(request, "its account or key is not there any more")
            if len(self._remembered) >= _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[mark] = _Remembered(grant, rests_on)
        return grant

    # Tokens

    def _by_token(
        self, mark: bytes, request: Request, authorization: str | None, path_token: str | None
    ) -> Grant | Answer:
        token = path_token or ""
        if authorization is not None:
            scheme, value = _parted(authorization)
            account = _account(value) if scheme == "basic" else None
            if scheme == "bearer":
                token = value
            elif account is None:
                return self._refused(request, "neither a bearer's token nor a Basic account")
            elif self._settings.mode == "jwt":
                # Eureka clients can only send Basic: there the token is the password, or the name.
                token = account[1] or account[0]
            else:
                token = account[0]
        if self._settings.mode == "trusted":
            if not NAMESPACE.match(token):
                return self._refused(request, "the token is no name of a namespace")
            return self._remember(request, mark, Grant(Namespace(token)), None)
        return self._by_jwt(mark, request, token)

    def _by_jwt(self, mark: bytes, request: Request, token: str) -> Grant | Answer:
        settings = self._settings
        options: Any = {"require": self._required(), "verify_aud": bool(settings.audience)}
        problem: Exception | None = None
        try:
            keys = self._keys.candidates(token)
        except (jwt.PyJWTError, ValueError) as error:
            return self._refused(request, f"not a token: {type(error).__name__}")
        for key in keys:
            try:
                claims: Mapping[str, Any] = jwt.decode(
                    token,
                    key.material,
                    algorithms=list(key.algorithms),
                    options=options,
                    audience=settings.audience or None,
                    issuer=settings.issuer or None,
                )
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
                # Of several keys the one that signed it says most.
                if problem is None or not isinstance(error, jwt.InvalidSignatureError):
                    problem = error
                continue
            namespace, role, user = claims["namespace"], claims.get("role"), claims.get("sub", "")
            if not isinstance(namespace, str) or not NAMESPACE.match(namespace):
                return self._refused(request, "the token's namespace is none")
            until = float(min(int(claims["exp"]), _LATEST)) if "exp" in claims else float("inf")
            name = user[:64] if isinstance(user, str) and user else "token"
            grant = Grant(Namespace(namespace), role == "admin", name, until)
            return self._remember(request, mark, grant, key.mark)
        reason = "no key of its kid and algorithm" if problem is None else type(problem).__name__
        return self._refused(request, f"the token does not hold: {reason}")

    def _required(self) -> list[str]:
        return ["exp", "namespace"] if self._settings.require_expiry else ["namespace"]

    # Passwords

    def _by_password(
        self,
        mark: bytes,
        request: Request,
        authorization: str | None,
        path_token: str | None,
        *,
        quick: bool,
    ) -> Grant | Answer | None:
        """The grant, or the refusal; hashing is done elsewhere, for few at a time.

        Wrong passwords are remembered for a while, and each client and each name may try a few of
        them only: otherwise whoever guesses would keep the threads from everybody else.
        """
        if authorization is not None:
            scheme, value = _parted(authorization)
            account = _account(value) if scheme == "basic" else None
        else:
            name, _, password = (path_token or "").partition(":")
            account = (name, password)
        if account is None:
            return self._refused(request, "no Basic account")
        wrong_until = self._wrong.get(mark)
        if wrong_until is not None and wrong_until > time.monotonic():
            return self._refused(request, self._wrong_password(account[0]))
        client = self._client(request)
        if not (self._of_client.has(client) and self._of_name.has(account[0])):
            self._refused(request, "too many wrong passwords from there, or for that name")
            return _BUSY
        if quick:
            return None
        version = self.version
        if not self._may_wait.acquire(blocking=False):
            return _BUSY
        try:
            user = self._hashed(mark, *account)
        finally:
            self._may_wait.release()
        if user is None:
            self._of_client.take(client)
            self._of_name.take(account[0])
            with self._lock:
                if len(self._wrong) >= _MOST_REMEMBERED:
                    self._wrong.clear()
                if version == self.version:  # it may be right by now
                    self._wrong[mark] = time.monotonic() + _WRONG_REMEMBERED_SECS
            return self._refused(request, self._wrong_password(account[0]))
        return self._remember(request, mark, Grant(user.namespace, user.is_admin, user.name), user)

    def _wrong_password(self, name: str) -> str:
        """What the log says; a name that nobody has may be a password that slipped."""
        assert self._users is not None
        known = self._users.value.get(name) is not None
        return f"a wrong password for {escaped(name)!r}" if known else "a name that nobody has"

    def _hashed(self, mark: bytes, name: str, password: str) -> User | None:
        """The user, once for all who ask the same at the same time."""
        assert self._users is not None
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    _HASHING_THREADS, "passwords", initializer=_step_back
                )
            found = self._hashing.get(mark)
            if found is None:
                found = self._pool.submit(self._users.value.with_password, name, password)
                self._hashing[mark] = found
        try:
            return found.result()
        finally:
            with self._lock:
                self._hashing.pop(mark, None)


class _Allowances:
    """How often each may do something: so often at once, and so often a second after that."""

    def __init__(self, at_once: float, per_sec: float) -> None:
        self._at_once = at_once
        self._per_sec = per_sec
        self._lock = threading.Lock()
        # Of whom something is missing: how much there was, and when.
        self._left: dict[str, tuple[float, float]] = {}

    def has(self, who: str) -> bool:
        """Whether this one may, now."""
        return self._now(who) >= 1.0

    def take(self, who: str) -> bool:
        """Use one up, if there is one."""
        with self._lock:
            left = self._now(who)
            if left < 1.0:
                return False
            if len(self._left) >= _MOST_REMEMBERED:
                del self._left[next(iter(self._left))]
            self._left[who] = (left - 1.0, time.monotonic())
            return True

    def _now(self, who: str) -> float:
        left, at = self._left.get(who, (self._at_once, 0.0))
        return min(self._at_once, left + (time.monotonic() - at) * self._per_sec)


def _step_back() -> None:
    """Let this thread have what the others leave: nobody waits for hashes but who asks for them."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _parted(authorization: str) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    return scheme.lower(), value.strip()


def _account(value: str) -> tuple[str, str] | None:
    """Name and password of Basic; in Latin-1 where it is not UTF-8, as old clients send it."""
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    name, _, password = text_of(data).partition(":")
    return name, password


def text_of(data: bytes) -> str:
    """Text that came as UTF-8, or else as Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


_EVERYBODY = Grant(DEFAULT_NAMESPACE, is_admin=True)
_ANYBODY = Grant(DEFAULT_NAMESPACE)
_BUSY = Answer(429, headers={"Retry-After": "2"})

__all__ = ["NAMESPACE", "Access", "AccessError", "AccessSettings", "Grant", "Network", "text_of"]
