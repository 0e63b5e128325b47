"""Asks a server that runs: one request after the other, as somebody, about one namespace.

Needs the standard library alone. Whatever goes wrong is an ``EndError``, with the exit code that
the command ends with.
"""

from __future__ import annotations

import base64
import copy
import email.utils
import http.client
import json
import netrc
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

from eureka_http.shown import escaped, masked_url

GOOD, NOT_GOOD, WRONG_USE, UNREACHABLE = range(4)
"""The exit codes: as it should be, not so, wrong words or credentials, no answer of a registry."""

DEFAULT_URL = "http://127.0.0.1:8761"
API = "/api/v1"
_WAIT_SECS = 10.0
# A list of a hundred thousand instances has thirty megabytes.
_LONGEST_ANSWER = 256 * 1024 * 1024
_LONGEST_LINE = 64 * 1024 * 1024
_NO_QUERY: Mapping[str, str | int | None] = {}
_NO_PATH = "Resource not found"


class EndError(Exception):
    """The command is over: why, and its exit code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Whom(NamedTuple):
    """Which server, and as whom."""

    url: str = DEFAULT_URL
    user: str | None = None
    token: str | None = None
    namespace: str | None = None


class Event(NamedTuple):
    """A server-sent event."""

    id: str
    name: str
    data: Any


class Server:
    """A server that runs, as the caller sees it. ``now_ms`` is its own clock."""

    def __init__(
        self, whom: Whom, environ: Mapping[str, str], *, patience_secs: float = _WAIT_SECS
    ) -> None:
        """Nothing is asked yet; ``EndError`` where URL or credentials cannot be used.

        A server that says nothing for so long does not answer.
        """
        self._patience_secs = patience_secs
        self._parts = _parted(whom.url)
        self.shown = masked_url(whom.url)
        self._headers = {"Accept": "application/json", "User-Agent": "eureka-registry"}
        authorization = _authorization(whom, self._parts.account, self._parts.host, environ)
        if authorization:
            self._headers["Authorization"] = authorization
        if whom.namespace is not None:
            self._headers["Registry-Namespace"] = _header("--namespace", whom.namespace)
        self.now_ms = int(time.time() * 1000)

    def in_namespace(self, name: str) -> Server:
        """The same server, asked about another namespace."""
        other = copy.copy(self)
        other._headers = {**self._headers, "Registry-Namespace": _header("namespace", name)}
        return other

    def get(self, path: str, **query: str | int | None) -> Any:
        """The document at a path of the API; parameters that are None are left out."""
        return self.send("GET", path, query=query)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        query: Mapping[str, str | int | None] = _NO_QUERY,
    ) -> Any:
        """What a request is answered with; None for an answer without a body.

        A ``body`` that is no bytes is sent as JSON.
        """
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = media
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(self._connection(self._patience_secs)) as connection:
            response = self._asked(connection, method, path, query, body, headers)
            try:
                answer = response.read(_LONGEST_ANSWER + 1)
            except (OSError, http.client.HTTPException) as error:
                raise self._silent(error) from None
        if len(answer) > _LONGEST_ANSWER:
            raise EndError(UNREACHABLE, f"{self.shown} answers with more than can be read")
        return self._document(response.status, answer)

    def lines(self, path: str, **query: str | int | None) -> Iterator[bytes]:
        """The lines of a long answer, as they come."""
        with closing(self._connection(self._patience_secs)) as connection:
            response = self._asked(connection, "GET", path, query, None, self._headers)
            if response.status != 200:
                self._document(response.status, response.read(_LONGEST_ANSWER))
                raise EndError(UNREACHABLE, f"{self.shown} answers {response.status}")
            yield from self._read_lines(response)

    def events(self, path: str, since: str | None, **query: str | None) -> Iterator[Event]:
        """The events of a stream, until the server ends it."""
        headers = {**self._headers, "Accept": "text/event-stream"}
        if since is not None:
            headers["Last-Event-ID"] = since
        # A stream may say nothing for as long as nothing changes.
        with closing(self._connection(None)) as connection:
            response = self._asked(connection, "GET", path, query, None, headers)
            if response.status != 200:
                self._document(response.status, response.read(_LONGEST_ANSWER))
                raise EndError(UNREACHABLE, f"{self.shown} answers {response.status}")
            fields: dict[str, str] = {}
            for line in self._read_lines(response):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = fields.get(name, "") + value.removeprefix(" ")
                    continue
                if "data" in fields:
                    try:
                        data = json.loads(fields["data"])
                    except ValueError:
                        raise self._no_registry(200) from None
                    yield Event(fields.get("id", ""), fields.get("event", ""), data)
                fields = {}

    def _read_lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while line := response.readline(_LONGEST_LINE):
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from None

    def _connection(self, seconds: float | None) -> http.client.HTTPConnection:
        parts = self._parts
        if not parts.is_secure:
            return http.client.HTTPConnection(parts.host, parts.port, timeout=seconds)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.host, parts.port, timeout=seconds, context=context)

    def _asked(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        query: Mapping[str, str | int | None],
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        told = urlencode({name: value for name, value in query.items() if value is not None})
        target = f"{self._parts.base}{API}{path}" + (f"?{told}" if told else "")
        try:
            connection.request(method, target, body=body, headers=dict(headers))
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from None
        self.now_ms = _clock_ms(response.getheader("Date"))
        return response

    def _silent(self, error: Exception) -> EndError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return EndError(UNREACHABLE, f"{self.shown} does not answer: {reason}")

    def _no_registry(self, status: int) -> EndError:
        return EndError(UNREACHABLE, f"{self.shown} answers {status}, and is no registry of ours")

    def _document(self, status: int, body: bytes) -> Any:
        """The document of a success; otherwise ``EndError`` with what the server says of it."""
        told: Any = None
        if body:
            with suppress(ValueError):
                told = json.loads(body)
        if 200 <= status < 300:
            if body and told is None:
                raise self._no_registry(status)
            return told
        said = told if isinstance(told, dict) else {}
        detail = said.get("detail") if isinstance(said.get("detail"), str) else None
        if status in (401, 403):
            reason = detail or "it asks for other credentials"
            ways = "credentials are given by --user, --token, the URL or .netrc"
            raise EndError(WRONG_USE, f"{self.shown} answers {status}: {reason} ({ways})")
        if detail is None:
            raise self._no_registry(status)
        if said.get("Error") == _NO_PATH:
            raise EndError(UNREACHABLE, f"{self.shown} is of a version without this")
        raise EndError(UNREACHABLE if status >= 500 else NOT_GOOD, detail)


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


class _Parts(NamedTuple):
    """A server's URL, taken apart; ``base`` is what its paths begin with."""

    is_secure: bool
    host: str
    port: int | None
    base: str
    account: tuple[str, str] | None


def _parted(url: str) -> _Parts:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    is_url = host is not None and parts.scheme in ("http", "https") and port != 0
    if not is_url or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise EndError(WRONG_USE, f"--url: expected a URL such as {DEFAULT_URL}")
    assert host is not None
    account = None
    if parts.username is not None:
        account = unquote(parts.username), unquote(parts.password or "")
    return _Parts(parts.scheme == "https", host, port, parts.path.rstrip("/"), account)


def _authorization(
    whom: Whom, of_url: tuple[str, str] | None, host: str, environ: Mapping[str, str]
) -> str:
    """What credentials the server is sent; empty for none.

    The first that is there: a token or a user of the command line, an account in the URL, a token
    in the environment, an account in ``.netrc``.
    """
    if whom.token is not None:
        return f"Bearer {_header('--token', whom.token)}"
    if whom.user is not None:
        password = environ.get("EUREKA_REGISTRY_PASSWORD")
        if password is None:
            raise EndError(WRONG_USE, "--user: expected the password in EUREKA_REGISTRY_PASSWORD")
        return _basic(whom.user, password)
    if of_url is not None:
        return _basic(*of_url)
    token = environ.get("EUREKA_REGISTRY_TOKEN", "").strip()
    if token:
        return f"Bearer {_header('EUREKA_REGISTRY_TOKEN', token)}"
    account = _from_netrc(host, environ)
    return _basic(*account) if account is not None else ""


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _header(name: str, value: str) -> str:
    """A value that can stand in a header field."""
    value = value.strip()
    if not value or not value.isascii() or not value.isprintable():
        raise EndError(WRONG_USE, f"{name}: expected printable ASCII")
    return value


def _from_netrc(host: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The account of a host in ``NETRC`` or ``~/.netrc``; of the host itself, not the default."""
    home = environ.get("HOME")
    place = environ.get("NETRC") or (f"{home}/.netrc" if home else "")
    if not place or not Path(place).is_file():
        return None
    try:
        found = netrc.netrc(place).hosts.get(host)
    except (OSError, netrc.NetrcParseError) as error:
        raise EndError(WRONG_USE, f"{escaped(place)}: {error}") from None
    return None if found is None else (found[0], found[2] or "")


def _clock_ms(date: str | None) -> int:
    """The server's clock, as its answer tells it: instants in a report are by that one."""
    try:
        return int(email.utils.parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
