"""Users and keys, as files hold them: read, checked, and read again when they change.

A file that was changed into one that is wrong changes nobody's access: what was last good stays in
force, and the log says which line is wrong and why, at once.
"""

from __future__ import annotations

import base64
import codecs
import functools
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from werkzeug.security import check_password_hash, generate_password_hash

from eureka_http.shown import escaped
from registry import NAMESPACE, Namespace

log = logging.getLogger("access")

_LONGEST_FILE = 16 * 1024 * 1024
_SHORTEST_SECRET = 32
_SMALLEST_RSA_BITS = 2048
_T_co = TypeVar("_T_co", covariant=True)


class AccessError(ValueError):
    """Keys or users that cannot be used; the text says which and why, and shows no secret."""


# Users


@dataclass(frozen=True, slots=True)
class User:
    """A line of the users file."""

    name: str
    namespace: Namespace
    is_admin: bool
    password_hash: str


class Users:
    """The users of one file, by name. Immutable."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = users
        self._salt = secrets.token_bytes(16)
        self._hashes = [user.password_hash for user in users.values()]

    def get(self, name: str) -> User | None:
        """The user of this name."""
        return self._users.get(name)

    def with_password(self, name: str, password: str) -> User | None:
        """The user, where the password is right. Takes a tenth of a second, on purpose.

        A name that nobody has costs the same as one that somebody has: each is compared with a hash
        made in the way of one of the users', always the same one's.
        """
        user = self._users.get(name)
        if user is not None:
            return user if check_password_hash(user.password_hash, password) else None
        told = hmac.digest(self._salt, name.encode("utf-8", "replace"), hashlib.sha256)
        method, salt, digest = self._hashes[int.from_bytes(told) % len(self._hashes)].split("$")
        check_password_hash(f"{method}${salt}${'0' * len(digest)}", password)
        return None


def parsed_users(data: bytes) -> Users:
    """The users of a file's text; ``AccessError`` names the line that is wrong, and why."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise AccessError(f"line {number}: not UTF-8") from None
    users: dict[str, User] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 4 or words[2] not in ("user", "admin"):
            raise AccessError(f"line {number}: expected NAME NAMESPACE user|admin HASH")
        name, namespace, role, password_hash = words
        if not NAMESPACE.match(namespace):
            # Where words are in another order this one may be the password.
            raise AccessError(f"line {number}: its second word is no name of a namespace")
        if ":" in name:
            raise AccessError(f"line {number}: a name with a colon could never log in")
        if name in users:
            raise AccessError(f"line {number}: {name!r} stands twice")
        problem = _problem_of(password_hash)
        if problem:
            raise AccessError(f"line {number}: {problem}")
        users[name] = User(name, Namespace(namespace), role == "admin", password_hash)
    if not users:
        raise AccessError("it names no user")
    return Users(users)


def _problem_of(password_hash: str) -> str:
    """Why a hash could never be compared with; empty where it can. Shows nothing of it."""
    method, _, rest = password_hash.partition("$")
    salt, _, digest = rest.partition("$")
    length = _digest_length(method)
    if length is None:
        return "a password hash of an unknown method; make one as docs/operate/accounts.md shows"
    if not salt or len(digest) != length or not re.fullmatch(r"[0-9a-f]+", digest):
        return "a password hash that is cut short or mistyped"
    return ""


@functools.lru_cache(maxsize=256)
def _digest_length(method: str) -> int | None:
    """The digits of a hash made in this way; None where there is no such way. Tries it once."""
    if not re.fullmatch(r"scrypt(:\d{1,8}){0,3}|pbkdf2:[a-z0-9_-]+(:\d{1,8})?", method):
        return None
    try:
        return len(generate_password_hash("x", method).split("$")[2])
    except (ValueError, MemoryError, OverflowError):
        return None


# Keys


@dataclass(frozen=True, slots=True)
class Key:
    """What signatures are checked with. ``kid`` is what tokens call it; None: they need not."""

    algorithms: tuple[str, ...]
    material: Any
    kid: str | None = None
    mark: str = ""
    """Tells two keys apart, without showing either."""


class Keys:
    """The keys that signatures are checked with. Immutable."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def marks(self) -> frozenset[str]:
        """What tells the keys apart from others."""
        return frozenset(key.mark for key in self._keys)

    def candidates(self, token: str) -> list[Key]:
        """Those that may have signed a token, by its ``kid`` and algorithm; ``PyJWTError``."""
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        if kid is None:
            return fitting
        named = [key for key in fitting if key.kid == kid]
        return named or [key for key in fitting if key.kid is None]


_OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: dict[str, tuple[str, ...]] = {
    "secp256r1": ("ES256",),
    "secp384r1": ("ES384",),
    "secp521r1": ("ES512",),
}
_ALGORITHMS = (*_OF_RSA, "ES256", "ES384", "ES512", "EdDSA", "HS256")
_JWK_CURVES = (None, "P-256", "P-384", "P-521", "Ed25519")


def parsed_keys(data: bytes, kid: str | None = None) -> list[Key]:
    """The keys of a text: a secret, public keys or certificates in PEM, or a JWKS.

    ``AccessError`` where there are none that can be used, or one that must not lie there.
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise AccessError("expected a secret, PEM or a JWKS, all of them text") from None
    if re.match(r"\{|\[\s*\{", text):
        return _of_jwks(text)
    if "-----BEGIN" in text:
        return _of_pem(text, kid)
    if _is_public(text):
        raise AccessError(
            "what anybody may know is no secret: expected a public key with its lines of PEM, or a"
            " JWKS itself"
        )
    return [_of_secret(text.encode(), kid)]


def _is_public(text: str) -> bool:
    """Whether a text that would be the secret of HS256 is a public key, or where one is found.

    Whoever knew it could sign whatever they liked.
    """
    if re.match(r"(https?|file)://|((sk-)?(ssh|ecdsa)-\S+|-+ ?BEGIN) ", text, re.IGNORECASE):
        return True
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return False
    if len(data) < _SHORTEST_SECRET:
        return False
    # PEM without its first and last line: one sequence of DER, which tells its own length.
    size = data[1] & 0x7F if data[1] & 0x80 else 0
    length = int.from_bytes(data[2 : 2 + size]) if size else data[1]
    return data[0] == 0x30 and len(data) == 2 + size + length


def _of_secret(secret: bytes, kid: str | None) -> Key:
    if len(secret) < _SHORTEST_SECRET:
        raise AccessError(f"the key of HS256 must have at least {_SHORTEST_SECRET} characters")
    return Key(("HS256",), secret, kid, _mark("HS256", secret, kid))


def _of_pem(text: str, kid: str | None) -> list[Key]:
    blocks = re.findall(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", text, re.DOTALL)
    if any("PRIVATE" in label for label in blocks):
        raise AccessError("a private key: whoever checks signatures needs the public one alone")
    found = []
    for match in re.finditer(
        r"-----BEGIN (PUBLIC KEY|RSA PUBLIC KEY|CERTIFICATE)-----.*?-----END \1-----",
        text,
        re.DOTALL,
    ):
        try:
            if match[1] == "CERTIFICATE":
                public: Any = x509.load_pem_x509_certificate(match[0].encode()).public_key()
            else:
                public = load_pem_public_key(match[0].encode())
        except (ValueError, UnsupportedAlgorithm):
            raise AccessError("PEM that holds no key that can be read") from None
        found.append(_public(public, match[0].encode(), kid))
    if not found:
        raise AccessError("PEM without a public key or a certificate")
    return found


def _public(public: Any, data: bytes, kid: str | None) -> Key:
    match public:
        case rsa.RSAPublicKey():
            if public.key_size < _SMALLEST_RSA_BITS:
                raise AccessError(f"an RSA key of less than {_SMALLEST_RSA_BITS} bits")
            algorithms: tuple[str, ...] = _OF_RSA
        case ec.EllipticCurvePublicKey() if public.curve.name in _CURVES:
            algorithms = _CURVES[public.curve.name]
        case ed25519.Ed25519PublicKey():
            algorithms = ("EdDSA",)
        case _:
            raise AccessError("a key of another kind than RSA, EC (P-256, 384, 521) and Ed25519")
    return Key(algorithms, public, kid, _mark(algorithms[0], data, kid))


def _of_jwks(text: str) -> list[Key]:
    try:
        document = json.loads(text)
        listed = document.get("keys", [document])
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise TypeError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise AccessError('expected a JWKS: {"keys": [...]}') from None
    found = []
    for number, each in enumerate(listed, 1):
        # Keys to encrypt with, and of kinds that come after us, are somebody else's.
        if each.get("use", "sig") != "sig" or each.get("kty") not in ("RSA", "EC", "OKP", "oct"):
            continue
        if each.get("alg", "RS256") not in _ALGORITHMS or each.get("crv") not in _JWK_CURVES:
            continue
        kid = each.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise AccessError(f"key {number}: its kid is no text")
        if "d" in each:
            raise AccessError(f"key {number}: a private key; the public one is enough")
        try:
            material = jwt.PyJWK(each).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            raise AccessError(f"key {number}: not a key that can be used") from None
        try:
            if isinstance(material, bytes):
                key = _of_secret(material, kid)
            else:
                key = _public(material, json.dumps(each, sort_keys=True).encode(), kid)
        except AccessError as error:
            raise AccessError(f"key {number}: {error}") from None
        if "alg" in each:
            if each["alg"] not in key.algorithms:
                continue
            key = Key((each["alg"],), key.material, kid, key.mark)
        found.append(key)
    if not found:
        raise AccessError("a JWKS without a key that signatures can be checked with")
    return found


def _mark(algorithm: str, data: bytes, kid: str | None) -> str:
    return hashlib.sha256(b"\0".join((algorithm.encode(), data, (kid or "").encode()))).hexdigest()


def read_keys(path: Path) -> Keys:
    """The keys of a file, or of each file in a folder, called by its name without the ending.

    Hidden files in a folder are left out, as Kubernetes has some beside those of a secret.
    """
    if not path.is_dir():
        return Keys(parsed_keys(_read(path)))
    keys: list[Key] = []
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        try:
            keys += parsed_keys(_read(file), file.stem)
        except (AccessError, OSError) as error:
            raise AccessError(f"{file.name}: {_said(error)}") from None
    if not keys:
        raise AccessError("a folder without a key")
    return Keys(keys)


def read_users(path: Path) -> Users:
    """The users of a file."""
    return parsed_users(_read(path))


# Files that change


class _Reader(Protocol[_T_co]):
    def __call__(self, path: Path, /) -> _T_co: ...


_T = TypeVar("_T")


class WatchedFile(Generic[_T]):
    """What a file (or a folder of them) holds, as it last was when it was good.

    With ``copy``, where the last good text is kept for a start that finds the file wrong: only for
    what is no secret by itself. Not thread-safe but for reading ``value``.
    """

    def __init__(self, what: str, path: Path, read: _Reader[_T], copy: Path | None = None) -> None:
        """``AccessError`` where the file cannot be used, and no copy of it can."""
        self._what, self._path, self._read, self._copy = what, path, read, copy
        self._seen = _state(path)
        try:
            self.value: _T = read(path)
        except (OSError, AccessError) as error:
            self.value = self._last_good(error)
        else:
            self._keep()

    def refresh(self) -> bool:
        """Read the file again if it has changed; whether there is a new ``value``."""
        seen = _state(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            value = self._read(self._path)
        except (OSError, AccessError) as error:
            log.error(
                "the %s %s cannot be used, what was last good stays in force: %s",
                self._what,
                self._path,
                _said(error),
            )
            return False
        self.value = value
        self._keep()
        log.info("the %s %s was read again", self._what, self._path)
        return True

    def _last_good(self, error: Exception) -> _T:
        told = f"the {self._what} {self._path} cannot be used: {_said(error)}"
        # A file that was taken away was meant to be; one that is wrong was not.
        if self._copy is None or isinstance(error, FileNotFoundError):
            raise AccessError(told) from None
        try:
            if not _read(self._copy).startswith(self._heading()):
                raise AccessError("it is of another file")
            value = self._read(self._copy)
        except (OSError, AccessError):
            raise AccessError(told) from None
        log.error("%s; what was last good stays in force", told)
        return value

    def _heading(self) -> bytes:
        """A comment's line that says whose copy it is."""
        return f"# last good copy of {escaped(str(self._path.absolute()))}\n".encode()

    def _keep(self) -> None:
        """Keep a copy that its owner alone can read, whole or not at all."""
        if self._copy is None:
            return
        with suppress(OSError):
            data = self._heading() + _read(self._path).removeprefix(codecs.BOM_UTF8)
            if self._copy.exists() and _read(self._copy) == data:
                return
            self._copy.parent.mkdir(parents=True, exist_ok=True)
            beside = self._copy.with_name(f"{self._copy.name}.{os.getpid()}")
            with suppress(FileNotFoundError):
                beside.unlink()
            file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "wb") as written:
                written.write(data)
            beside.replace(self._copy)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LONGEST_FILE + 1)
    if len(data) > _LONGEST_FILE:
        raise AccessError(f"it is longer than {_LONGEST_FILE} bytes")
    return data


def _said(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _state(path: Path) -> Any:
    """What changes when a file does, or any file of a folder, or what a link leads to."""
    try:
        if path.is_dir():
            return sorted(
                (file.name, _state_of(file)) for file in path.iterdir() if file.name[0] != "."
            )
        return _state_of(path)
    except OSError as error:
        return error.errno


def _state_of(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
