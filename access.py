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
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import jwt
from werkzeug.security import check_password_hash

from exchange import Answer, Request
from registry import DEFAULT_NAMESPACE, Namespace

Mode = Literal["none", "trusted", "jwt", "basic"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_REREAD_SECS = 1.0
_MOST_REMEMBERED = 10_000
_WRITING = frozenset({"POST", "PUT", "DELETE", "PATCH"})


class AccessError(ValueError):
    """Keys or users that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """How callers are told apart, with the reason for each default."""

    mode: Mode = "none"
    """One open namespace, as the original has it."""

    key: str = ""
    """For ``jwt``: the secret of HS256, or the public key of RS256 in PEM."""

    users_file: Path | None = None
    """For ``basic``: a line for each user: name, namespace, role (user or admin), password hash."""

    protect_reads: bool = True
    """Whether reading needs credentials where a mode is set."""

    protect_writes: bool = True
    """Whether writing does."""

    require_https: bool = False
    """Whether plain HTTP is refused."""

    trusted_proxies: tuple[Network, ...] = ()
    """Whose ``X-Forwarded-Proto`` is believed: nobody's, unless named."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do: everything in its namespace."""

    namespace: Namespace
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class _User:
    namespace: Namespace
    is_admin: bool
    password_hash: str


class Access:
    """Decides for each request. Thread-safe; what was found once is quick to find again."""

    def __init__(self, settings: AccessSettings) -> None:
        """``AccessError`` where the mode's key or users cannot be used."""
        self._settings = settings
        self._users: dict[str, _User] = {}
        self._users_read = (0.0, 0)
        self._lock = threading.Lock()
        # What is remembered is keyed so that a core dump shows no password.
        self._salt = secrets.token_bytes(32)
        self._remembered: dict[bytes, tuple[Grant, float]] = {}
        self._nobody = f"pbkdf2:sha256:1$x${'0' * 64}"
        if settings.mode == "jwt":
            self._algorithm = "RS256" if "PUBLIC KEY" in settings.key else "HS256"
            if self._algorithm == "HS256" and len(settings.key) < 32:
                raise AccessError("the key of HS256 must have at least 32 characters")
        if settings.mode == "basic":
            self._read_users()

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
        """What this caller may do here, or the refusal: 401, or 403 for the wrong namespace.

        ``path_token`` is what stands in the path of clients that can send no header. With
        ``quick``, None where finding out takes long (a password that was not seen before).
        """
        settings = self._settings
        if settings.require_https and not self._is_https(request):
            return Answer(403, headers={"X-Refused": "https"})
        if settings.mode == "none":
            # Without accounts a token in the path could only pretend to part namespaces.
            return _OPEN if path_token is None else Answer(404)
        needed = settings.protect_writes if request.method in _WRITING else settings.protect_reads
        authorization = request.headers.get("authorization")
        if authorization is None and path_token is None:
            return self._unauthorized() if needed else _OPEN
        credentials = authorization if authorization is not None else f"\0{path_token}"
        mark = hmac.digest(self._salt, credentials.encode("utf-8", "replace"), hashlib.sha256)
        grant = self._known(mark)
        if grant is None:
            if quick and settings.mode == "basic":
                return None
            grant = self._recognized(mark, authorization, path_token)
        if grant is None:
            return self._unauthorized()
        wanted = request.headers.get("registry-namespace")
        if wanted is None or wanted == grant.namespace:
            return grant
        if not grant.is_admin or not NAMESPACE.match(wanted):
            return Answer(403)
        return Grant(Namespace(wanted), is_admin=True)

    def _is_https(self, request: Request) -> bool:
        if request.scheme == "https":
            return True
        try:
            peer = ipaddress.ip_address(request.peer)
        except ValueError:
            return False
        if not any(peer in network for network in self._settings.trusted_proxies):
            return False
        # The proxy next to us wrote the last word.
        told = request.headers.get("x-forwarded-proto", "")
        return told.rpartition(",")[2].strip().lower() == "https"

    def _unauthorized(self) -> Answer:
        challenge = "Basic" if self._settings.mode == "basic" else "Bearer"
        return Answer(401, headers={"WWW-Authenticate": f'{challenge} realm="registry"'})

    def _known(self, mark: bytes) -> Grant | None:
        """The grant of credentials that were seen before and still hold."""
        if self._settings.mode == "basic":
            self._read_users()
        remembered = self._remembered.get(mark)
        if remembered is not None and remembered[1] > time.time():
            return remembered[0]
        return None

    def _recognized(
        self, mark: bytes, authorization: str | None, path_token: str | None
    ) -> Grant | None:
        """The grant of these credentials; the path's count where there is no header."""
        if authorization is not None:
            scheme, _, value = authorization.partition(" ")
            found = self._by_header(scheme.lower(), value.strip())
        else:
            found = self._by_token(path_token or "")
        if found is None:
            return None
        with self._lock:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[mark] = found
        return found[0]

    def _by_header(self, scheme: str, value: str) -> tuple[Grant, float] | None:
        if scheme == "bearer" and self._settings.mode != "basic":
            return self._by_token(value)
        if scheme != "basic":
            return None
        try:
            text = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        name, _, password = text.partition(":")
        # Eureka clients can only send Basic: there the token is the password, or the name.
        if self._settings.mode == "jwt":
            return self._by_token(password or name)
        if self._settings.mode == "trusted":
            return self._by_token(name)
        return self._by_password(name, password)

    def _by_token(self, token: str) -> tuple[Grant, float] | None:
        match self._settings.mode:
            case "trusted":
                known = NAMESPACE.match(token)
                return (Grant(Namespace(token)), float("inf")) if known else None
            case "jwt":
                return self._by_jwt(token)
            case _:
                name, _, password = token.partition(":")
                return self._by_password(name, password)

    def _by_jwt(self, token: str) -> tuple[Grant, float] | None:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self._settings.key,
                algorithms=[self._algorithm],
                options={"require": ["exp", "namespace"], "verify_aud": False},
            )
        except jwt.PyJWTError:
            return None
        namespace, role = claims["namespace"], claims.get("role")
        if not isinstance(namespace, str) or not NAMESPACE.match(namespace):
            return None
        return Grant(Namespace(namespace), role == "admin"), float(claims["exp"])

    def _by_password(self, name: str, password: str) -> tuple[Grant, float] | None:
        user = self._users.get(name)
        # An unknown name costs a comparison too, so that time tells nothing.
        holds = check_password_hash(user.password_hash if user else self._nobody, password)
        if user is None or not holds:
            return None
        return Grant(user.namespace, user.is_admin), float("inf")

    def _read_users(self) -> None:
        """Read the users where their file has changed; a file that is wrong changes nobody."""
        path = self._settings.users_file
        checked, version = self._users_read
        now = time.monotonic()
        if path is None:
            raise AccessError("the mode basic needs a users file")
        if checked and now - checked < _REREAD_SECS:
            return
        try:
            stat = path.stat()
            if checked and version == stat.st_mtime_ns:
                self._users_read = (now, version)
                return
            users = _parsed_users(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, AccessError) as error:
            if not checked:
                raise AccessError(f"the users file {path} cannot be used: {error}") from error
            self._users_read = (now, version)
            return
        with self._lock:
            self._users = users
            self._remembered.clear()
            self._users_read = (now, stat.st_mtime_ns)


def _parsed_users(text: str) -> dict[str, _User]:
    users: dict[str, _User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 4 or words[2] not in ("user", "admin") or words[3].count("$") != 2:
            raise AccessError(f"line {number}: expected NAME NAMESPACE user|admin HASH")
        name, namespace, role, password_hash = words
        if not NAMESPACE.match(namespace):
            raise AccessError(f"line {number}: {namespace!r} is no name of a namespace")
        if name in users:
            raise AccessError(f"line {number}: {name!r} stands twice")
        users[name] = _User(Namespace(namespace), role == "admin", password_hash)
    if not users:
        raise AccessError("it names no user")
    return users


_OPEN = Grant(DEFAULT_NAMESPACE)
