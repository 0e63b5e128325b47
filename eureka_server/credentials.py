"""What callers show of themselves, and what it is worth: one judge for each mode of accounts.

A judge knows no requests, and remembers nobody who was let in: ``access`` does. No token and no
password gets into a reason that a judge gives.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jwt

from eureka_http.cache import Cache
from eureka_http.shown import escaped
from eureka_server.accounts import Keys, User, Users, WatchedFile
from registry import NAMESPACE, Namespace

# Hashing a password takes a core for a tenth of a second, and 32 MB.
_HASHING_THREADS = 2
_WRONG_REMEMBERED_SECS = 10.0
_MOST_REMEMBERED = 10_000
# How many wrong passwords one client, and one name, may try at once, and how many a second then.
_OF_A_CLIENT, _OF_A_NAME = (10.0, 0.5), (20.0, 2.0)
# An end that is later than this is none; beyond it some numbers fit into no float.
_LATEST = 2**53


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


class Verified(NamedTuple):
    """Credentials that were found good: what they grant, and what that rests on."""

    grant: Grant
    rests_on: User | str | None
    """A user's line, or a key's mark; None: nothing that could be taken away."""


class CredentialsError(Exception):
    """Credentials that do not hold; the text is for the operator's log."""


class BusyError(Exception):
    """More is asked than can be looked at now; the text, where there is one, is for the log."""


class Credentials(NamedTuple):
    """What a request shows. One of the first two is there."""

    authorization: str | None
    path_token: str | None
    mark: bytes
    """Stands for both, where they are remembered."""

    client: Callable[[], str]
    """Whom guesses are counted for."""

    def parted(self) -> tuple[str, str]:
        """The scheme of ``Authorization`` in lower case, and what stands behind it."""
        scheme, _, value = (self.authorization or "").partition(" ")
        return scheme.lower(), value.strip()


class Judge(Protocol):
    """Says what credentials are worth in one mode. Thread-safe."""

    challenge: str
    """The scheme that a caller without credentials is asked for."""

    may_change: bool
    """Whether ``refresh`` is worth calling."""

    def judge(self, credentials: Credentials, *, quick: bool) -> Verified | None:
        """What they grant; ``CredentialsError`` or ``BusyError`` otherwise.

        With ``quick``, None where finding out takes long.
        """
        ...

    def still_holds(self, known: Verified) -> bool:
        """Whether what somebody was let in for is there as it was."""
        ...

    def refresh(self) -> bool:
        """Read files that have changed; whether some who were let in may not be any more."""
        ...

    def stop(self) -> None:
        """End what runs in the background, soon."""
        ...


class _Tokens:
    """What the two modes with tokens have in common."""

    challenge = "Bearer"
    may_change = False

    def judge(self, credentials: Credentials, *, quick: bool) -> Verified | None:
        """See ``Judge``."""
        if credentials.authorization is None:
            return self._judged(credentials.path_token or "")
        scheme, value = credentials.parted()
        if scheme == "bearer":
            return self._judged(value)
        account = _account(value) if scheme == "basic" else None
        if account is None:
            raise CredentialsError("neither a bearer's token nor a Basic account")
        return self._judged(self._of_account(*account))

    def still_holds(self, known: Verified) -> bool:
        return True

    def refresh(self) -> bool:
        return False

    def stop(self) -> None:
        pass

    def _judged(self, token: str) -> Verified:
        raise NotImplementedError

    def _of_account(self, name: str, password: str) -> str:
        """Where clients that can only send Basic have the token."""
        raise NotImplementedError


class NamedNamespaces(_Tokens):
    """Mode ``trusted``: the token is the namespace's name."""

    def _judged(self, token: str) -> Verified:
        if not NAMESPACE.match(token):
            raise CredentialsError("the token is no name of a namespace")
        return Verified(Grant(Namespace(token)), None)

    def _of_account(self, name: str, password: str) -> str:
        return name


class SignedTokens(_Tokens):
    """Mode ``jwt``: the token says the namespace, and a key that it was signed with is known."""

    def __init__(
        self, keys: Keys | WatchedFile[Keys], *, audience: str, issuer: str, require_expiry: bool
    ) -> None:
        """Any audience or issuer will do where none is named."""
        self._source = keys
        self._audience, self._issuer = audience or None, issuer or None
        self._options: Any = {
            "require": ["exp", "namespace"] if require_expiry else ["namespace"],
            "verify_aud": bool(audience),
        }
        self.may_change = isinstance(keys, WatchedFile)

    @property
    def _keys(self) -> Keys:
        return self._source.value if isinstance(self._source, WatchedFile) else self._source

    def still_holds(self, known: Verified) -> bool:
        return known.rests_on in self._keys.marks()

    def refresh(self) -> bool:
        return isinstance(self._source, WatchedFile) and self._source.refresh()

    def _of_account(self, name: str, password: str) -> str:
        return password or name

    def _judged(self, token: str) -> Verified:
        problem: Exception | None = None
        try:
            keys = self._keys.candidates(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise CredentialsError(f"not a token: {type(error).__name__}") from None
        for key in keys:
            try:
                claims: Mapping[str, Any] = jwt.decode(
                    token,
                    key.material,
                    algorithms=list(key.algorithms),
                    options=self._options,
                    audience=self._audience,
                    issuer=self._issuer,
                )
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
                # Of several keys the one that signed it says most.
                if problem is None or not isinstance(error, jwt.InvalidSignatureError):
                    problem = error
                continue
            namespace, role, user = claims["namespace"], claims.get("role"), claims.get("sub", "")
            if not isinstance(namespace, str) or not NAMESPACE.match(namespace):
                raise CredentialsError("the token's namespace is none")
            until = float(min(int(claims["exp"]), _LATEST)) if "exp" in claims else float("inf")
            name = user[:64] if isinstance(user, str) and user else "token"
            return Verified(Grant(Namespace(namespace), role == "admin", name, until), key.mark)
        reason = "no key of its kid and algorithm" if problem is None else type(problem).__name__
        raise CredentialsError(f"the token does not hold: {reason}")


class Passwords:
    """Mode ``basic``: names and passwords of a file of users.

    Hashing is done in threads of its own, for few at a time. Wrong passwords are remembered for a
    while, and each client and each name may try a few of them only: otherwise whoever guesses would
    keep the threads from everybody else.
    """

    challenge = "Basic"
    may_change = True

    def __init__(self, users: WatchedFile[Users], *, threads: int) -> None:
        """Half of the ``threads`` that answer requests may wait for a password's hash."""
        self._users = users
        self._lock = threading.Lock()
        # Until when each is known to be wrong (monotonic seconds).
        self._wrong: Cache[bytes, float] = Cache(_MOST_REMEMBERED)
        self._hashing: dict[bytes, Future[User | None]] = {}
        self._may_wait = threading.BoundedSemaphore(max(1, threads // 2))
        self._pool: ThreadPoolExecutor | None = None
        self._of_client, self._of_name = Allowances(*_OF_A_CLIENT), Allowances(*_OF_A_NAME)
        # Changes with the users: a password that was wrong may be right by now.
        self._edition = 0

    def judge(self, credentials: Credentials, *, quick: bool) -> Verified | None:
        """See ``Judge``. What takes long is a password that was not seen before."""
        name, password = self._account(credentials)
        wrong_until = self._wrong.get(credentials.mark)
        if wrong_until is not None and wrong_until > time.monotonic():
            raise CredentialsError(self._wrong_password(name))
        client = credentials.client()
        if not (self._of_client.has(client) and self._of_name.has(name)):
            raise BusyError("too many wrong passwords from there, or for that name")
        if quick:
            return None
        edition = self._edition
        if not self._may_wait.acquire(blocking=False):
            raise BusyError
        try:
            user = self._with_password(credentials.mark, name, password)
        finally:
            self._may_wait.release()
        if user is None:
            self._of_client.take(client)
            self._of_name.take(name)
            self._remember_wrong(credentials.mark, edition)
            raise CredentialsError(self._wrong_password(name))
        return Verified(Grant(user.namespace, user.is_admin, user.name), user)

    def still_holds(self, known: Verified) -> bool:
        user = known.rests_on
        return isinstance(user, User) and self._users.value.get(user.name) == user

    def refresh(self) -> bool:
        if not self._users.refresh():
            return False
        with self._lock:
            self._wrong.forget(lambda _: True)
            self._edition += 1
        return True

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _account(self, credentials: Credentials) -> tuple[str, str]:
        if credentials.authorization is None:
            name, _, password = (credentials.path_token or "").partition(":")
            return name, password
        scheme, value = credentials.parted()
        account = _account(value) if scheme == "basic" else None
        if account is None:
            raise CredentialsError("no Basic account")
        return account

    def _remember_wrong(self, mark: bytes, edition: int) -> None:
        with self._lock:
            if edition == self._edition:
                self._wrong.keep(mark, time.monotonic() + _WRONG_REMEMBERED_SECS)

    def _wrong_password(self, name: str) -> str:
        """What the log says; a name that nobody has may be a password that slipped."""
        known = self._users.value.get(name) is not None
        return f"a wrong password for {escaped(name)!r}" if known else "a name that nobody has"

    def _with_password(self, mark: bytes, name: str, password: str) -> User | None:
        """The user, worked out once for all who ask the same at the same time."""
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


class Allowances:
    """A token bucket for each: so much at once, and so much a second after that."""

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
