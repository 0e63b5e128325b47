"""One connection, one request, one deadline: whatever the other side does, it is over by then.

A timeout for each operation would not do: a server that gives a byte now and then never meets it,
and neither does a resolver that hangs.
"""

from __future__ import annotations

import base64
import http.client
import io
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from eureka_http.shown import masked_url

_LONGEST_ANSWER = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x20\x7f]+")


class ExchangeError(Exception):
    """There is no answer; the text says why, in one line and without credentials."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a URL says. ``shown`` is the URL without credentials, for the log."""

    host: str
    port: int
    is_secure: bool
    path: str
    shown: str
    authorization: str

    @classmethod
    def of(cls, url: str) -> Site:
        """``ValueError`` says what was expected, and nothing of the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("URLs such as http://host:port/path") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("URLs that begin with http:// or https:// and a host")
        if parts.fragment or not url.isascii() or _CONTROL.search(url):
            raise ValueError("URLs of ASCII without blanks, escaped where need be")
        query = f"?{parts.query}" if parts.query else ""
        return cls(
            host=parts.hostname,
            port=port or (443 if parts.scheme == "https" else 80),
            is_secure=parts.scheme == "https",
            path=parts.path + query,
            shown=masked_url(url),
            authorization=basic(unquote(parts.username or ""), unquote(parts.password or "")),
        )


def basic(user: str, password: str) -> str:
    """The header for an account; empty without a user."""
    if not user:
        return ""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Deadline:
    """A moment by which all must be over."""

    def __init__(self, secs: float) -> None:
        self._secs = secs
        self._end = time.monotonic() + secs

    def left(self) -> float:
        """Seconds that are left; ``TimeoutError`` where none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"timed out: no end within {self._secs:g} s")
        return left


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A TCP connection to the first address that takes one; ``OSError``."""
    addresses = _resolve(host, port, deadline)
    problem: OSError = OSError(f"{host} has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        made = socket.socket(family, kind, protocol)
        try:
            # A fair share for each, or the first that is silent would use up the others' time.
            made.settimeout(deadline.left() / (len(addresses) - tried))
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            problem = error
    raise problem


def resolved_address(host: str, site: Site, deadline: Deadline) -> str:
    """The host's address in digits, IPv4 before IPv6; ``OSError`` where nothing is known.

    Where its name means nothing here, it is this end's of a connection to the site: a sidecar runs
    beside what it registers.
    """
    try:
        found = _resolve(host, 0, deadline)
    except OSError:
        with connect(site.host, site.port, deadline) as connection:
            return str(connection.getsockname()[0])
    # Name servers answer in turns; without an order each registration could be another.
    return min((e[0] != socket.AF_INET, str(e[4][0])) for e in found)[1]


def _resolve(host: str, port: int, deadline: Deadline) -> list[Any]:
    try:
        return _addresses(host, port, socket.AI_NUMERICHOST)
    except OSError:
        pass
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_addresses(host, port, 0))
        except OSError as error:
            answers.put(error)

    # The resolver takes no deadline; the thread ends whenever it gives up by itself.
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError(f"timed out: no address of {host} in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _addresses(host: str, port: int, flags: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise OSError(f"{host} cannot be a host's name") from None


class _Timed:
    """A socket as ``http.client`` uses it, each operation ending by the same deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def close(self) -> None:
        """Left to whoever opened it: the answer may still have to be read."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def exchange(
    site: Site,
    method: str,
    path: str,
    *,
    timeout: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Send a request on a connection of its own; the answer's status and body, or its beginning.

    ``ExchangeError`` where none comes by the deadline, or none that is HTTP.
    """
    deadline = Deadline(timeout)
    connection = http.client.HTTPConnection(site.host, site.port)
    connection.default_port = 443 if site.is_secure else 80
    try:
        with connect(site.host, site.port, deadline) as plain:
            plain.settimeout(deadline.left())
            with _secured(plain, site, context) as sock:
                timed: Any = _Timed(sock, deadline)
                connection.sock = timed
                connection.request(method, path, body, dict(headers or {}))
                response = connection.getresponse()
                return response.status, response.read(_LONGEST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise ExchangeError(one_line(str(error)) or type(error).__name__) from None
    except ValueError:
        # Its text may be a header's value.
        raise ExchangeError("this cannot be sent: a character that HTTP does not allow") from None


def _secured(sock: socket.socket, site: Site, context: ssl.SSLContext | None) -> socket.socket:
    if not site.is_secure:
        return sock
    made = context or ssl.create_default_context()
    return made.wrap_socket(sock, server_hostname=site.host)


def one_line(text: str) -> str:
    """Text from outside, fit for one line of a log."""
    return _CONTROL.sub(" ", text).strip()[:300]
