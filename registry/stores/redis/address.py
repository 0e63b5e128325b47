"""What the URL of a registry on Redis says: one server, several behind Sentinel, or a Cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.connection import parse_url

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SENTINEL_PORT, _PORT = 26379, 6379


class Kind(Enum):
    """How the server is found that has a key."""

    ONE = ""
    SENTINEL = "+sentinel"
    CLUSTER = "+cluster"


_FORMS = {
    Kind.ONE: "redis://HOST:PORT/DATABASE or rediss://",
    Kind.SENTINEL: "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE or rediss+sentinel://",
    Kind.CLUSTER: "redis+cluster://HOST:PORT,HOST:PORT or rediss+cluster://",
}

Options = Mapping[str, Any]
_parse_url: Any = parse_url


class Address(NamedTuple):
    """What a URL says: where the servers are, the registry's prefix there, this machine's folder.

    ``hosts`` are the one server; or the sentinels; or some servers of the Cluster. The options are
    those of the driver's connections: to servers, and to sentinels.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: Options
    sentinel_options: Options
    prefix: str
    folder: str
    shown: str
    """Without passwords."""


def read_address(url: str) -> Address:
    """Read a URL; ``ValueError``, which shows no password, for one that names no registry.

    Its text begins with what was expected.

    ``redis://``, ``redis+sentinel://`` or ``redis+cluster://``, with TLS ``rediss…``; after it
    ``?prefix=…&folder=…``, the driver's own options, and ``sentinel_username`` and
    ``sentinel_password``.
    """
    scheme, netloc, path, query, _ = urlsplit(url)
    plain, plus, topology = scheme.partition("+")
    try:
        kind = Kind(plus + topology)
    except ValueError:
        raise ValueError("expected redis://, redis+sentinel:// or redis+cluster://") from None
    if plain not in ("redis", "rediss"):
        raise ValueError(f"expected {_FORMS[Kind.ONE]}")
    expected = f"expected {_FORMS[kind]}"
    users, at, hosts_text = netloc.rpartition("@")
    default_port = _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT
    hosts = tuple(_host(each, default_port, expected) for each in hosts_text.split(","))
    if kind is Kind.ONE and len(hosts) > 1:
        raise ValueError(f"expected {_FORMS[Kind.SENTINEL]}, or redis+cluster:// (several servers)")
    service, database = "", path.strip("/")
    if kind is Kind.SENTINEL:
        service, _, database = database.partition("/")
        if not service:
            raise ValueError(f"{expected} (no name of the service)")
    if database and not database.isdecimal():
        raise ValueError(f"{expected} ({database!r} is no number of a database)")
    if kind is Kind.CLUSTER and database not in ("", "0"):
        raise ValueError(f"{expected} (a Cluster has no databases)")
    words = dict(parse_qsl(query, keep_blank_values=True))
    prefix = words.pop("prefix", "eureka")
    folder = words.pop("folder", "data")
    if not _PREFIX.match(prefix):
        raise ValueError(f"expected letters, digits, points and dashes (prefix={prefix!r})")
    if not folder:
        raise ValueError("expected a folder of this machine (folder=)")
    sentinel_words = {
        name: words.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in words
    }
    if sentinel_words and kind is not Kind.SENTINEL:
        raise ValueError(f"expected redis+sentinel:// (sentinel_{next(iter(sentinel_words))}=)")
    try:
        options: dict[str, Any] = _parse_url(f"{plain}://{users}{at}/{database}?{urlencode(words)}")
    except ValueError as error:
        raise ValueError(f"{expected} ({error})") from None
    if kind is Kind.CLUSTER:
        options.pop("db", None)
    _check(options, expected)
    transport = {
        name: value
        for name, value in options.items()
        if name == "connection_class" or name.startswith(("ssl_", "socket_"))
    }
    return Address(
        kind,
        hosts,
        unquote(service),
        options,
        transport | sentinel_words,
        prefix,
        folder,
        f"{scheme}://{hosts_text}{path}",
    )


def _host(text: str, default_port: int, expected: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{expected} ({text!r} is no HOST:PORT)") from None
    if not host:
        raise ValueError(f"{expected} (no server is named)" if text else expected)
    return host, default_port if port is None else port


def _check(options: Options, expected: str) -> None:
    """That the driver has all these options: it would say so no earlier than when it connects."""
    arguments = dict(options)
    connection_class = arguments.pop("connection_class", redis.Connection)
    for of_the_pool in ("max_connections", "timeout"):
        arguments.pop(of_the_pool, None)
    try:
        connection_class(**arguments)
    except (TypeError, ValueError, redis.RedisError) as error:
        found = re.search(r"keyword argument '(\w+)'", str(error))
        why = f"{found[1]}= is no option of a connection" if found else str(error)
        raise ValueError(f"{expected} ({why})") from None
