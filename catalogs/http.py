"""HTTP requests to a source: one of its URLs at a time, with timeouts.

Errors say why a request failed, without any text that could contain a password or a token.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NewType
from urllib.parse import unquote, urlsplit

import orjson
import requests
import urllib3

from catalogs.addresses import is_literal
from catalogs.bounds import shortened
from catalogs.catalog import SourceError
from eureka_http.shown import masked, masked_url

CONNECT_SECS = 3.0
READ_SECS = 10.0
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9._])?\Z")
# What ``requests`` raises, and errors that it passes through: a certificate file that has been
# deleted, a token that is not valid in a header, an invalid host name.
_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


class StatusError(SourceError):
    """An answer with a status other than 2xx."""

    def __init__(self, status: int, text: str) -> None:
        """Keep the status for callers that know what it means."""
        super().__init__(text)
        self.status = status


class Quiet(Exception):  # noqa: N818  # not an error
    """A stream had nothing within its read timeout."""


Url = NewType("Url", str)
"""A URL that ``checked_url`` has accepted."""

AccountUrl = NewType("AccountUrl", str)
"""The same; it may have a name and a password."""

_URL = re.compile(r"[!-~]+\Z")


def checked_url(text: str, *, credentials: bool = False) -> Url:
    """An http(s) URL with a host and no query; ``ValueError``, whose text shows no password.

    ``credentials``: whether it may have a name and a password.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The error's own text may show a password that was taken for a port.
        raise ValueError(f"not an http(s) URL: its host or its port, {masked_url(text)}") from None
    if "://" not in text:
        raise ValueError(f"http:// or https:// must stand before {shortened(_masked(text))}")
    shown = shortened(masked_url(text))
    if parts.scheme not in ("http", "https") or not host or port == 0 or not _URL.match(text):
        raise ValueError(f"not an http(s) URL: {shown}")
    if not _HOST.match(host) and not is_literal(host):
        raise ValueError(f"no host's name in {shown}")
    if parts.query or parts.fragment or text[-1] in "?#":
        raise ValueError(f"no query and no fragment can stand in {shown}")
    if not credentials and "@" in parts.netloc:
        raise ValueError(f"no name and no password can stand in {shown}")
    return Url(text)


def _masked(text: str) -> str:
    """A text without a scheme, its account masked."""
    return masked_url(f"http://{text}").removeprefix("http://")


def checked_files(
    ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None
) -> None:
    """``ValueError`` if TLS cannot use one of these files."""
    context = ssl.create_default_context()
    named = ca_file
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        if cert_file is not None:
            named = cert_file
            # A key with a passphrase would ask for it on the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
    except OSError as error:  # an SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or "no certificate or key"
        raise ValueError(f"{named} cannot be used: {reason}") from None


class Client:
    """A source with one or several URLs; one is used until it fails, then the next.

    For one thread. Credentials in a URL are sent as Basic.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        headers: Callable[[], Mapping[str, str]] = dict,
        ca_file: Path | None = None,
        cert_files: tuple[Path, Path] | None = None,
    ) -> None:
        """``headers`` is called before each request, since a token may have been renewed."""
        if not urls:
            raise ValueError("at least one URL")
        for url in urls:
            checked_url(url, credentials=True)
        self._urls = [url.rstrip("/") for url in urls]
        self._headers = headers
        self._verify: bool | str = str(ca_file) if ca_file is not None else True
        self._cert = tuple(map(str, cert_files)) if cert_files is not None else None
        self._current = 0
        self.is_closed = False
        self._session = self._fresh()

    def _fresh(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False  # no proxy and no .netrc from the environment
        return session

    @property
    def url(self) -> str:
        """The URL in use, without credentials."""
        return masked_url(self._urls[self._current])

    def move_on(self) -> None:
        """Use the next URL from now on."""
        self._current = (self._current + 1) % len(self._urls)
        self._session.close()
        self._session = self._fresh()

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        document: Any = None,
        read_secs: float | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """A 2xx answer of the current URL; raises ``StatusError`` or ``SourceError``.

        A source that is silent for ``read_secs`` has failed; where that is None, for ``READ_SECS``.
        """
        url = self._urls[self._current]
        headers = self._headers()
        try:
            answer = self._session.request(
                method,
                url + path,
                params=params,
                data=None if document is None else orjson.dumps(document),
                headers={"Accept": "application/json", **headers},
                timeout=(CONNECT_SECS, READ_SECS if read_secs is None else read_secs),
                verify=self._verify,
                cert=self._cert,  # type: ignore[arg-type]  # the two paths
                stream=stream,
                allow_redirects=False,
            )
        except _ERRORS as error:
            raise SourceError(f"{self.url} {_reason(error)}") from None
        if not 200 <= answer.status_code < 300:
            with contextlib.suppress(*_ERRORS):
                text = self._without_secrets(" ".join(answer.text.split())[:200], headers)
                answer.close()
                raise StatusError(
                    answer.status_code, f"{self.url} answers {answer.status_code}: {text}"
                )
            raise StatusError(answer.status_code, f"{self.url} answers {answer.status_code}")
        return answer

    def _without_secrets(self, text: str, headers: Mapping[str, str]) -> str:
        """The text of an answer, which may repeat secrets that it was sent, without them."""
        secrets = [value.rpartition(" ")[2] for value in headers.values()]
        secrets.append(unquote(urlsplit(self._urls[self._current]).password or ""))
        for secret in secrets:
            if secret:
                text = text.replace(secret, "…")
        return masked(text)

    def read(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer, as by ``send``; if a URL fails, the next one is tried."""
        last: SourceError | None = None
        for _ in self._urls:
            try:
                answer = self.send(method, path, **options)
                return parsed(answer.content)
            except StatusError as error:
                if error.status < 500:
                    raise
                last = error
            except SourceError as error:
                last = error
            except ValueError:
                last = SourceError(f"{self.url} answers with what is not JSON")
            except _ERRORS as error:
                last = SourceError(f"{self.url} {_reason(error)}")
            self.move_on()
        assert last is not None
        raise last

    def close(self) -> None:
        """Close the connections."""
        self.is_closed = True
        self._session.close()


def parsed(data: bytes) -> Any:
    """The JSON of an answer; raises ``ValueError``.

    A text with half of a surrogate pair is accepted here, so that it costs one entry only: the
    reconciler refuses that entry.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("too deep") from None


def documents(answer: requests.Response) -> Iterator[Any]:
    """The JSON documents of a stream, one per line, each as soon as it arrives.

    Returns when the stream ends. Raises ``Quiet`` if nothing came within the read timeout, and
    ``SourceError`` if the stream breaks.
    """
    rest = b""
    try:
        for data in answer.iter_content(chunk_size=None):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield parsed(line)
    except requests.ConnectionError as error:
        if "timed out" in str(error).lower():
            raise Quiet from None
        raise SourceError(f"the stream broke: {_reason(error)}") from None
    except requests.RequestException as error:
        raise SourceError(f"the stream broke: {_reason(error)}") from None
    except ValueError:
        raise SourceError("the stream holds what is not JSON") from None
    finally:
        answer.close()


def _reason(error: Exception) -> str:
    match error:
        case requests.ConnectTimeout():
            return f"does not take a connection within {CONNECT_SECS:g} s"
        case requests.ReadTimeout():
            return "does not answer in time"
        case requests.exceptions.SSLError():
            return f"cannot be trusted: {_root(error)}"
        case requests.ConnectionError():
            return f"cannot be reached: {_root(error)}"
    return f"cannot be asked: {type(error).__name__}"


def _root(error: BaseException) -> str:
    """The innermost cause in a few words; the outer errors repeat the whole request."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            inner = next((a for a in error.args if isinstance(a, BaseException)), None)
        if inner is None:
            strerror = getattr(error, "strerror", None)
            return strerror if isinstance(strerror, str) else type(error).__name__
        error = inner
