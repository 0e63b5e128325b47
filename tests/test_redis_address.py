"""What the URL of a registry on Redis says, and what is said of one that says nothing."""

from __future__ import annotations

import pytest
import redis

from registry.stores.redis.address import Kind, read_address


def test_one_server() -> None:
    address = read_address("redis://user:secret@host:7000/3?prefix=eu&folder=/copy")
    assert (address.kind, address.hosts) == (Kind.ONE, (("host", 7000),))
    assert dict(address.options) | {"host": "", "port": ""} == {
        "host": "",
        "port": "",
        "db": 3,
        "username": "user",
        "password": "secret",
    }


def test_sentinels_with_passwords_of_both() -> None:
    address = read_address(
        "redis+sentinel://user:a%40b@one:1,two,[::1]:3/the-service/2"
        "?prefix=eu&folder=/copy&sentinel_username=s&sentinel_password=p%25"
    )
    assert address.kind is Kind.SENTINEL
    assert address.hosts == (("one", 1), ("two", 26379), ("::1", 3))
    assert address.service == "the-service"
    assert dict(address.options) == {"username": "user", "password": "a@b", "db": 2}
    assert dict(address.sentinel_options) == {"username": "s", "password": "p%"}
    assert (address.prefix, address.folder) == ("eu", "/copy")
    assert address.shown == "redis+sentinel://one:1,two,[::1]:3/the-service/2"


def test_a_cluster_with_tls() -> None:
    address = read_address("rediss+cluster://:secret@one,two:7001?ssl_ca_certs=/ca.pem")
    assert (address.kind, address.hosts) == (Kind.CLUSTER, (("one", 6379), ("two", 7001)))
    assert dict(address.options) == {
        "password": "secret",
        "ssl_ca_certs": "/ca.pem",
        "connection_class": redis.SSLConnection,
    }
    assert address.shown == "rediss+cluster://one,two:7001"


def test_sentinels_are_asked_with_tls_where_servers_are() -> None:
    address = read_address("rediss+sentinel://one/s?ssl_ca_certs=/ca.pem&sentinel_password=p")
    assert dict(address.sentinel_options) == {
        "password": "p",
        "ssl_ca_certs": "/ca.pem",
        "connection_class": redis.SSLConnection,
    }


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+other://h", "expected redis://, redis.sentinel:// or redis.cluster://"),
        ("http+cluster://h", "expected redis://HOST:PORT/DATABASE"),
        ("redis://one,two", r"expected redis.sentinel://.* \(several servers\)"),
        ("redis://one/x", "'x' is no number of a database"),
        ("redis://one:port", "'one:port' is no HOST:PORT"),
        ("redis://one?foo=1", "foo= is no option of a connection"),
        ("redis://one?ssl_ca_certs=/ca.pem", "ssl_ca_certs= is no option of a connection"),
        ("redis://one?socket_timeout=soon", "Invalid value for 'socket_timeout'"),
        ("redis://one?sentinel_password=p", r"expected redis.sentinel:// \(sentinel_password=\)"),
        ("redis://one?prefix={a}", r"expected letters.* \(prefix='{a}'\)"),
        ("redis://one?folder=", "expected a folder of this machine"),
        ("redis+sentinel://one:1", r"expected redis.sentinel://HOST.* \(no name"),
        ("redis+sentinel://one:1,/s", "expected redis.sentinel://HOST"),
        ("redis+sentinel://one:1/s/x", "'x' is no number of a database"),
        ("redis+cluster://one/1", "a Cluster has no databases"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, reason: str) -> None:
    scheme, _, rest = url.partition("://")
    with pytest.raises(ValueError, match=reason) as caught:
        read_address(f"{scheme}://user:secret@{rest}")
    assert "secret" not in str(caught.value)
    # What it begins with is what stands behind the setting and its value.
    assert str(caught.value).startswith("expected ")
