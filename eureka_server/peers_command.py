"""``eureka-registry peers``: how a running server's peers are, and what differs between them.

Asks ``GET /api/v1/peers``. Needs the standard library alone, and nothing of the server.
"""

from __future__ import annotations

import argparse
import base64
import email.utils
import http.client
import json
import ssl
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from eureka_http.shown import escaped, masked_url

_PATH = "/api/v1/peers"
_DEFAULT_URL = "http://127.0.0.1:8761"
_WAIT_SECS = 10.0
_LONGEST_ANSWER = 16 * 1024 * 1024
# A server looks at its peers each second. A report that is so old, nobody has written since.
_STALE_SECS = 30
_GOOD, _NOT_GOOD, _WRONG_USE, _UNREACHABLE = range(4)
_NEEDED = {"url", "state", "last_exchange_ms", "pending", "lag_ms", "problem", "comparison"}
_KINDS = ("missing", "extra", "differs")


class _EndError(Exception):
    """The command is over: why, and its exit code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG_USE, f"{self.prog}: {escaped(message)}\n")


class _Report(NamedTuple):
    """What a server said of its peers, and when, by its own clock."""

    told: Mapping[str, Any]
    now_ms: int

    @property
    def peers(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.told["peers"]
        return found

    @property
    def is_stale(self) -> bool:
        """Whether no worker of the server looks at its peers any more."""
        at_ms = self.told.get("at_ms")
        return at_ms is not None and self.now_ms - at_ms > _STALE_SECS * 1000

    @property
    def is_up(self) -> bool:
        """Whether there are peers, and all of them answer."""
        states = [peer["state"] for peer in self.peers]
        return bool(states) and set(states) == {"up"} and not self.is_stale

    @property
    def is_same(self) -> bool:
        """Whether all answer and list what this server lists."""
        compared = [peer["comparison"] for peer in self.peers]
        return self.is_up and all(
            comparison is not None and not any(comparison[kind] for kind in _KINDS)
            for comparison in compared
        )

    def ago(self, at_ms: int | None) -> str:
        """How long ago that was."""
        return "never" if at_ms is None else f"{max(0, self.now_ms - at_ms) // 1000} s ago"


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Ask and print; 0 where all is well, 1 where not, 2 for wrong use, 3 without an answer."""
    parser = _parser(environ)
    options = parser.parse_args(list(arguments))
    try:
        report = _asked(options.url, _authorization(options.user, environ))
    except _EndError as end:
        print(f"{parser.prog}: {escaped(str(end))}", file=sys.stderr)
        return end.code
    is_difference = options.what == "diff"
    if options.output == "json":
        print(json.dumps(_differences(report) if is_difference else report.told, indent=2))
    else:
        for line in _diff_lines(report) if is_difference else _state_lines(report):
            print(escaped(line))
    good = report.is_same if is_difference else report.is_up
    return _GOOD if good else _NOT_GOOD


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eureka-registry peers",
        description="Says how a running server's peers are, and with the word diff, what differs"
        " between its instances and theirs.",
        epilog="exit codes: 0 all peers are up (diff: and list the same), 1 not so,"
        " 2 wrong use or refused credentials, 3 no answer of a registry",
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="?", choices=["diff"], help="show what differs")
    parser.add_argument(
        "--url",
        default=environ.get("EUREKA_REGISTRY_URL") or _DEFAULT_URL,
        help=f"the server (default {_DEFAULT_URL}; EUREKA_REGISTRY_URL)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="an administrator; the password is in EUREKA_REGISTRY_PASSWORD. Without it, a token"
        " is sent if EUREKA_REGISTRY_TOKEN holds one",
    )
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser


def _authorization(user: str | None, environ: Mapping[str, str]) -> str:
    """What credentials the server is sent; empty for none."""
    if user is not None:
        password = environ.get("EUREKA_REGISTRY_PASSWORD")
        if password is None:
            raise _EndError(_WRONG_USE, "--user: expected the password in EUREKA_REGISTRY_PASSWORD")
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = environ.get("EUREKA_REGISTRY_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        raise _EndError(_WRONG_USE, "EUREKA_REGISTRY_TOKEN: expected a token")
    return f"Bearer {token}" if token else ""


# Asking


def _asked(url: str, authorization: str) -> _Report:
    headers = {"Accept": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    connection, base = _connection(url)
    shown = masked_url(url)
    with closing(connection):
        try:
            connection.request("GET", base + _PATH, headers=headers)
            response = connection.getresponse()
            body = response.read(_LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _EndError(_UNREACHABLE, f"{shown} does not answer: {reason}") from None
    if response.status in (401, 403):
        raise _EndError(
            _WRONG_USE,
            f"{shown} answers {response.status}: it asks for an administrator, by --user and"
            " EUREKA_REGISTRY_PASSWORD or by EUREKA_REGISTRY_TOKEN",
        )
    told: Any = None
    if response.status == 200:
        with suppress(ValueError):
            told = json.loads(body)
    if not _is_report(told):
        raise _EndError(
            _UNREACHABLE, f"{shown} answers {response.status}, and is no registry that has peers"
        )
    return _Report(told, _clock_ms(response.getheader("Date")))


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the server of a URL, and what its paths begin with."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    is_url = host is not None and parts.scheme in ("http", "https") and port != 0
    if not is_url or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise _EndError(_WRONG_USE, f"--url: expected a URL such as {_DEFAULT_URL}")
    if parts.username is not None:
        raise _EndError(_WRONG_USE, "--url: expected no credentials in it, but --user")
    assert host is not None
    base = parts.path.rstrip("/")
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_WAIT_SECS), base
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(host, port, timeout=_WAIT_SECS, context=context), base


def _is_report(told: Any) -> bool:
    """Whether an answer is what this command can read."""
    if not isinstance(told, dict) or not isinstance(told.get("peers"), list):
        return False
    if not isinstance(told.get("verdict"), str):
        return False
    return all(isinstance(peer, dict) and peer.keys() >= _NEEDED for peer in told["peers"])


def _clock_ms(date: str | None) -> int:
    """The server's clock, as its answer tells it: instants in a report are by that one."""
    try:
        return int(email.utils.parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)


# Showing


def _state_lines(report: _Report) -> Iterable[str]:
    rows = [("PEER", "STATE", "LAST EXCHANGE", "PENDING", "LAG", "PROBLEM")]
    rows += [
        (
            peer["url"],
            peer["state"],
            report.ago(peer["last_exchange_ms"]),
            str(peer["pending"]),
            f"{peer['lag_ms']} ms",
            peer["problem"] or "none",
        )
        for peer in report.peers
    ]
    if report.peers:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()
    yield from _verdict_lines(report)


def _diff_lines(report: _Report) -> Iterable[str]:
    for peer in report.peers:
        comparison = peer["comparison"]
        if comparison is None:
            yield f"{peer['url']}: not compared yet"
            continue
        counts = ", ".join(f"{comparison[kind]} {kind}" for kind in (*_KINDS, "settling"))
        yield (
            f"{peer['url']}: {comparison['ours']} instances here, {comparison['theirs']} there;"
            f" {counts} (compared {report.ago(comparison['at_ms'])})"
        )
        examples = comparison["examples"]
        for example in examples:
            yield f"  {example['kind']}  {example['app']}/{example['id']}"
            for name, (ours, theirs) in example["fields"].items():
                yield f"    {name}: here {_value(ours)}, there {_value(theirs)}"
        more = sum(comparison[kind] for kind in _KINDS) - len(examples)
        if more > 0:
            yield f"  and {more} more"
    yield from _verdict_lines(report)


def _verdict_lines(report: _Report) -> Iterable[str]:
    if report.is_stale:
        yield f"Not known: the server looked at its peers {report.ago(report.told['at_ms'])}."
    else:
        yield report.told["verdict"]


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _differences(report: _Report) -> dict[str, Any]:
    """What ``diff`` is about, of all that the server said."""
    peers = [{name: peer[name] for name in ("url", "state", "comparison")} for peer in report.peers]
    return {"peers": peers, "verdict": report.told["verdict"]}
