"""A registry on a Redis that wants TLS and certificates, and that restricts its users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from registry import StoreError, open_store
from registry.model import DEFAULT_NAMESPACE, Lease
from registry.stores.redis import RedisStore
from registry.testing import put, sample_instance
from tests.certificates import make_certificates
from tests.redis_servers import REDIS, RedisServer, another_prefix, valkey
from tests.redis_suite import RedisSuite
from tests.servers import counted, wait_until

NS = DEFAULT_NAMESPACE
pytestmark = pytest.mark.programs
DOCUMENT = Path(__file__).parent.parent / "docs" / "operate" / "stores.md"


class TlsServer(RedisServer):
    """It answers with TLS alone, and asks each client for a certificate."""

    def __init__(self, folder: Path) -> None:
        make_certificates(folder)
        self.certificates = folder
        super().__init__(
            folder,
            *("--tls-ca-cert-file", str(folder / "ca.pem")),
            *("--tls-cert-file", str(folder / "server.pem")),
            *("--tls-key-file", str(folder / "server.key")),
        )

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--tls-port", str(self.port), "--save", ""]
        self._begin([*command, "--dir", str(self._folder), *self._options])

    def client(self) -> Any:
        return redis.Redis(
            port=self.port,
            ssl=True,
            ssl_ca_certs=str(self.certificates / "ca.pem"),
            ssl_certfile=str(self.certificates / "client.pem"),
            ssl_keyfile=str(self.certificates / "client.key"),
        )

    def url(self, prefix: str, folder: Path) -> str:
        return (
            f"rediss://localhost:{self.port}/0?prefix={prefix}&folder={folder}"
            f"&ssl_ca_certs={self.certificates / 'ca.pem'}"
            f"&ssl_certfile={self.certificates / 'client.pem'}"
            f"&ssl_keyfile={self.certificates / 'client.key'}"
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.stop()


def test_what_is_missing_for_tls_is_said(server: TlsServer, tmp_path: Path) -> None:
    url = server.url(another_prefix(), tmp_path)
    for wrong, reason in (
        (url.replace("rediss", "redis", 1).partition("&ssl")[0], "does not answer"),
        (url.partition("&ssl_certfile")[0], "certificate required|does not answer"),
        (url.replace("ca.pem", "client.pem", 1), "CERTIFICATE_VERIFY_FAILED|certificate verify"),
        (url.replace("localhost", "localhost.localdomain", 1), "does not answer"),
    ):
        with pytest.raises(StoreError, match=reason):
            open_store(wrong).commit(NS, put(sample_instance()))


@pytest.fixture
def documented() -> list[str]:
    """The user that the operator's manual says is enough, for the prefix ``eureka``."""
    (line,) = (
        line.strip()
        for line in DOCUMENT.read_text().splitlines()
        if line.strip().startswith("ACL SETUSER eureka ")
    )
    return line.split()[2:]


@pytest.fixture(params=["redis", "valkey"])
def restricted(
    request: pytest.FixtureRequest, documented: list[str], tmp_path: Path
) -> Iterator[RedisServer]:
    program = {"redis": lambda: REDIS, "valkey": valkey}[request.param]()
    server = RedisServer(tmp_path / "redis", program=program)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", *documented, ">secret")
    yield server
    server.stop()


def test_a_user_restricted_as_documented_can_do_all_and_nothing_else(
    restricted: RedisServer, tmp_path: Path
) -> None:
    url = f"redis://eureka:secret@127.0.0.1:{restricted.port}/0?folder={tmp_path}"
    here, there = open_store(f"{url}/a"), open_store(f"{url}/b")
    revision = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == revision)
    token = here.acquire("evictor", "a", 0, 1_000)
    assert token is not None
    here.set_note("a", b"1")
    here.set_note("a", None)
    here.set_expected_clients(NS, 1)
    assert here.evictions(NS, 0) == 0
    assert here.state().size_bytes
    here.resume(0)
    here.probe()
    here.trim(NS, 1 << 40)
    with restricted.client() as client:
        denied = client.execute_command("ACL", "LOG")
        client.flushall()
    assert denied == []
    wait_until(lambda: here.revision(NS) > revision + 1_000)
    wait_until(lambda: there.revision(NS) == here.revision(NS))
    assert {each.id for each in here.load(NS).instances} == {"web:1"}
    for store in (here, there):
        store.close()
    with pytest.raises(StoreError, match="forbids its user what the registry needs"):
        open_store(f"{url}/c&prefix=other")


@pytest.mark.parametrize(
    "command", ["info", "time", "evalsha", "publish", "subscribe", "hset", "xadd"]
)
def test_that_a_command_is_forbidden_is_said_in_one_line(
    restricted: RedisServer, tmp_path: Path, command: str
) -> None:
    with restricted.client() as client:
        client.acl_setuser("eureka", enabled=True, commands=[f"-{command}"])
    url = f"redis://eureka:secret@127.0.0.1:{restricted.port}/0?folder={tmp_path}"
    with pytest.raises(StoreError, match="forbids its user what the registry needs") as caught:
        use(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("rule", ["-publish", "resetchannels"])
def test_who_may_not_tell_of_changes_does_not_start_and_is_not_ready(
    restricted: RedisServer, tmp_path: Path, rule: str
) -> None:
    """Or else each write would be done, and answered as one that was refused."""
    url = f"redis://eureka:secret@127.0.0.1:{restricted.port}/0?folder={tmp_path}"
    store = open_store(f"{url}/a")
    try:
        with restricted.client() as client:
            client.execute_command("ACL", "SETUSER", "eureka", rule)
        with pytest.raises(StoreError, match="forbids its user what the registry needs"):
            store.probe()
        with pytest.raises(StoreError, match="forbids its user what the registry needs"):
            open_store(f"{url}/b")
    finally:
        store.close()


@pytest.mark.parametrize("rule", ["-subscribe", "resetchannels"])
def test_who_may_not_hear_of_changes_does_not_start_and_is_not_ready(
    restricted: RedisServer,
    tmp_path: Path,
    rule: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says so in one line, which is none for each time that it is refused."""
    url = f"redis://eureka:secret@127.0.0.1:{restricted.port}/0?folder={tmp_path}"
    store = open_store(f"{url}/a")
    assert isinstance(store, RedisStore)
    try:
        with restricted.client() as client:
            client.execute_command("ACL", "SETUSER", "eureka", rule)
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        tries = counted(monkeypatch, store._server, "listen")
        wait_until(lambda: len(tries) > 2)
        with pytest.raises(StoreError, match="forbids its user what the registry needs"):
            store.probe()
        with pytest.raises(StoreError, match="forbids its user what the registry needs"):
            open_store(f"{url}/b")
        (said,) = (each for each in caplog.messages if "is heard of late" in each)
        assert "forbids its user what the registry needs" in said
        with restricted.client() as client:
            client.execute_command("ACL", "SETUSER", "eureka", "+subscribe", "&{eureka}:moved")
        wait_until(lambda: not store._follower.refusal)
        store.probe()
    finally:
        store.close()


def use(url: str) -> None:
    """Do what calls each command."""
    store = open_store(url)
    try:
        store.commit(NS, put(sample_instance(), lease=Lease(1 << 39, 90_000, 0)))
        store._teller.tell()  # type: ignore[attr-defined]
        assert store.renew(NS, sample_instance().key, Lease(1 << 40, 90_000, 1), None)
        store._teller.tell()  # type: ignore[attr-defined]
    finally:
        store.close()


def test_a_wrong_password_is_said_at_once(restricted: RedisServer, tmp_path: Path) -> None:
    url = f"redis://eureka:wrong@127.0.0.1:{restricted.port}/0?folder={tmp_path}"
    with pytest.raises(StoreError, match="invalid username-password") as caught:
        open_store(url)
    assert "wrong@" not in str(caught.value)


class TestRedisStoreWithTls(RedisSuite):
    """The whole contract, with certificates on both sides."""
