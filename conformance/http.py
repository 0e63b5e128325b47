"""Requests byte for byte as the cases write them, and answers kept for the report."""

from __future__ import annotations

import gzip
import http.client
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from conformance.spellings import Dress, plain

# What takes longer is no answer: a server may be on a machine that is busy with other things.
ANSWER_SECS = 60.0


@dataclass(frozen=True)
class Exchange:
    """One request with its answer, the body decompressed."""

    method: str
    path: str
    sent_headers: dict[str, str]
    sent: str | None
    status: int
    headers: dict[str, str]
    body: str

    @property
    def media_type(self) -> str:
        """The answer's type without its parameters."""
        return self.headers.get("content-type", "").split(";")[0].strip()


class Connection:
    """A kept connection to one server; a request that finds it closed opens it again.

    Nothing is added to the headers but ``Host`` and ``Content-Length``: what a client leaves out is
    part of what is tested.
    """

    def __init__(self, url: str, timeout: float = ANSWER_SECS) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not the URL of a server: {url}")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._prefix = parts.path.rstrip("/")

    def send(
        self,
        method: str,
        path: str,
        body: str | bytes | None,
        headers: Mapping[str, str],
        dress: Dress = plain,
    ) -> Exchange:
        """Send it and return both sides; ``OSError`` where the server cannot be reached."""
        data = body.encode() if isinstance(body, str) else body
        target = dress(self._prefix, path)
        try:
            try:
                return self._exchange(method, target, data, headers)
            except (http.client.BadStatusLine, ConnectionError):
                self._connection.close()  # the kept connection had been closed by the server
                return self._exchange(method, target, data, headers)
        except OSError:
            self._connection.close()  # half a request may have been sent on it
            raise

    def _exchange(
        self, method: str, target: str, data: bytes | None, headers: Mapping[str, str]
    ) -> Exchange:
        self._connection.putrequest(method, target, skip_accept_encoding=True, skip_host=False)
        for name, value in headers.items():
            self._connection.putheader(name, value)
        if data is not None or method in ("PUT", "POST"):
            self._connection.putheader("Content-Length", str(len(data or b"")))
        self._connection.endheaders(data)
        response = self._connection.getresponse()
        received = response.read()
        answered = {name.lower(): value for name, value in response.getheaders()}
        if answered.get("content-encoding") == "gzip":
            received = gzip.decompress(received)
        sent = None if data is None else data.decode("utf-8", "replace")
        text = received.decode("utf-8", "replace")
        path = target.removeprefix(self._prefix)
        return Exchange(method, path, dict(headers), sent, response.status, answered, text)

    def close(self) -> None:
        self._connection.close()
