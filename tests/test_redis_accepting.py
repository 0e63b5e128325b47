"""Writes that nodes accept while Redis is away, over HTTP: two nodes with two workers each.

What one store promises of them by itself is in ``tests/test_redis_alone.py``.
"""

from __future__ import annotations

import http.client
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Session, Target
from conformance.documents import Form
from conformance.follower import Follower
from tests.redis_servers import RedisServer, another_prefix
from tests.servers import (
    JSON,
    RegistryServer,
    Renewed,
    Reply,
    Watch,
    instance_body,
    send,
    wait_until,
)
from tests.test_system import worker_connections

pytestmark = pytest.mark.programs
LEASE_SECS = 5
SHORT = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": LEASE_SECS}}
RETURNS = ("with its data", "without its data", "from a standstill")


class Two:
    """Two nodes, and the Redis that they share."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self._redis_folder = folder / "redis"
        self._redis = RedisServer(self._redis_folder, "--appendonly", "yes")
        running.callback(self._redis.stop)
        prefix = another_prefix()
        self.servers = []
        for name in ("one", "two"):
            home = folder / name
            home.mkdir()
            env = {
                "STORE_URL": self._redis.url(prefix, home / "copy"),
                "REGISTRY_WRITES_WHILE_AWAY": "accept",
            }
            server = RegistryServer(home, env=env)
            running.push(server.__exit__)
            server.launch()
            self.servers.append(server)
        for server in self.servers:
            server.await_ready()

    @contextmanager
    def away(self, returns: str) -> Iterator[None]:
        """Have Redis stop, and come back in one of several ways."""
        if returns == "from a standstill":
            self._redis.pause()
        else:
            self._redis.kill()
        try:
            yield
        finally:
            if returns == "from a standstill":
                self._redis.go_on()
            else:
                if returns == "without its data":
                    shutil.rmtree(self._redis_folder / "appendonlydir")
                self._redis.start()

    def list_the_same(self, expected: dict[str, tuple[str, str]]) -> bool:
        """Whether both show these statuses and addresses, and nobody else."""
        return all(shown(server) == expected for server in self.servers)

    def settle(self, expected: dict[str, tuple[str, str]]) -> None:
        """Wait until both agree, and have nothing to offer any more."""
        wait_until(lambda: self.list_the_same(expected))
        for server in self.servers:
            wait_until(lambda server=server: readiness(server) == (200, None))
        assert self.list_the_same(expected)


def shown(server: RegistryServer) -> dict[str, tuple[str, str]]:
    return {name: (i["status"], i["ipAddr"]) for name, i in server.apps().items()}


def readiness(
    server: RegistryServer, connection: http.client.HTTPConnection | None = None
) -> tuple[int, str | None]:
    answer = send(server.port, "GET", "/health/ready", connection=connection)
    return answer.status, answer.json().get("reason")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with ExitStack() as running:
        yield Two(tmp_path_factory.mktemp("two"), running)


@pytest.fixture(autouse=True)
def emptied(two: Two) -> Iterator[None]:
    yield

    def is_empty() -> bool:
        for name in two.servers[0].apps():
            two.servers[0].eureka("DELETE", f"/apps/WEB/{name}")
        return two.list_the_same({})

    wait_until(is_empty)


def registered(two: Two, *names: str, **fields: Any) -> dict[str, tuple[str, str]]:
    """Register them at the first node, and wait until both list them."""
    for name in names:
        assert two.servers[0].register("WEB", name, **fields) == 204
    expected = dict.fromkeys(names, ("UP", "10.0.0.1"))
    wait_until(lambda: two.list_the_same(expected))
    return expected


class Workers:
    """One worker of a node, to write to, and its other one, which reads and is watched."""

    def __init__(self, server: RegistryServer) -> None:
        self.port = server.port
        workers = worker_connections(server, 2)
        self.pids = list(workers)
        self.writer, self.reader = workers.values()
        self.spare = worker_connections(server, 2)
        self.watch = Watch(server, self.spare[self.pids[1]])

    def write(self, method: str, path: str, body: str | None = None) -> Reply:
        return send(self.port, method, f"/eureka/apps/WEB{path}", body, JSON, self.writer)

    def read(self, name: str) -> dict[str, Any] | None:
        """The instance at the other worker, in which each kind of read agrees."""

        def get(path: str) -> Any:
            answer = send(self.port, "GET", f"/eureka/apps{path}", None, JSON, self.reader)
            return answer.json() if answer.status == 200 else None

        def found(listing: Any) -> Any:
            listed = [
                each for app in listing["applications"]["application"] for each in app["instance"]
            ]
            return next((each for each in listed if each["instanceId"] == name), None)

        alone, whole, delta = get(f"/WEB/{name}"), found(get("")), found(get("/delta"))
        if alone is None:
            assert whole is None
            assert delta["actionType"] == "DELETED"
            return None
        assert alone["instance"]["status"] == whole["status"] == delta["status"]
        assert alone["instance"]["ipAddr"] == whole["ipAddr"] == delta["ipAddr"]
        assert delta["actionType"] != "DELETED"
        return dict(whole)

    def close(self) -> None:
        for connection in (self.writer, self.reader, *self.spare.values()):
            connection.close()


@pytest.mark.parametrize("returns", RETURNS)
def test_what_a_node_accepts_alone_its_workers_show_at_once_and_all_nodes_when_redis_is_back(
    two: Two, returns: str
) -> None:
    known = registered(two, *(f"{what}:{n}" for what in ("cancel", "override") for n in (0, 1)))
    known |= {f"both:{n}": ("UP", "10.0.0.1") for n in (0, 1)}
    for number in (0, 1):
        assert two.servers[1].register("WEB", f"both:{number}", lastDirtyTimestamp="1000") == 204
    wait_until(lambda: two.list_the_same(known))
    followers = [Follower(Session(Target(server.base)), Form.JSON) for server in two.servers]
    for follower in followers:
        follower.fetch_all()
    nodes = [Workers(server) for server in two.servers]
    with two.away(returns):
        for number, node in enumerate(nodes):
            new = instance_body("WEB", f"new:{number}")
            assert node.write("POST", "", new).status == 204
            found = node.read(f"new:{number}")
            assert found is not None
            assert found["status"] == "UP"
            assert node.watch.next() == ("added", f"new:{number}")
            assert node.write("PUT", f"/new:{number}").status == 200
            assert node.write("DELETE", f"/cancel:{number}").status == 200
            assert node.read(f"cancel:{number}") is None
            assert node.watch.next() == ("deleted", f"cancel:{number}")
            path = f"/override:{number}/status?value=OUT_OF_SERVICE"
            assert node.write("PUT", path).status == 200
            found = node.read(f"override:{number}")
            assert found is not None
            assert found["status"] == "OUT_OF_SERVICE"
            assert node.watch.next() == ("modified", f"override:{number}")
        # Of the first the newest state is written first, of the second last.
        for number, node in enumerate(nodes):
            for place in (0, 1):
                body = instance_body(
                    "WEB",
                    f"both:{place}",
                    ipAddr=f"10.0.0.{10 + number}",
                    lastDirtyTimestamp="3000" if place == number else "2000",
                )
                assert node.write("POST", "", body).status == 204
                found = node.read(f"both:{place}")
                assert found is not None
                assert found["ipAddr"] == f"10.0.0.{10 + number}"
                assert node.watch.next()[1] == f"both:{place}"
        for server, node in zip(two.servers, nodes, strict=True):
            for connection in (node.writer, node.reader):
                status, reason = readiness(server, connection)
                assert status == 200
                assert reason is not None
                assert "is offered to the other machines later" in reason
    expected = {f"new:{number}": ("UP", "10.0.0.1") for number in (0, 1)}
    expected |= {f"override:{number}": ("OUT_OF_SERVICE", "10.0.0.1") for number in (0, 1)}
    expected |= {f"both:{number}": ("UP", f"10.0.0.{10 + number}") for number in (0, 1)}
    two.settle(expected)
    assert two.servers[1].register("WEB", "late") == 204
    expected["late"] = ("UP", "10.0.0.1")
    wait_until(lambda: two.list_the_same(expected))
    for node, follower in zip(nodes, followers, strict=True):
        follower.fetch_delta()
        assert {name: state for (_, name), state in follower.states().items()} == expected
        node.watch.until("late")
        told = {name: each["status"] for name, each in node.watch.known.items()}
        assert told == {name: status for name, (status, _) in expected.items()}
        node.close()
    # An override that was accepted alone can be lifted as any other.
    for number, server in enumerate(two.servers):
        path = f"/apps/WEB/override:{number}/status?value=UP"
        assert server.eureka("DELETE", path).status == 200
        expected[f"override:{number}"] = ("UP", "10.0.0.1")
    two.settle(expected)


def test_a_node_that_is_killed_and_started_while_redis_is_away_keeps_what_it_accepted(
    two: Two,
) -> None:
    known = registered(two, "cancel", "override")
    one, other = two.servers
    with two.away("without its data"):
        assert one.register("WEB", "new") == 204
        assert one.eureka("DELETE", "/apps/WEB/cancel").status == 200
        path = "/apps/WEB/override/status?value=OUT_OF_SERVICE"
        assert one.eureka("PUT", path).status == 200
        assert other.register("WEB", "other") == 204
        one.kill9()
        one.start()
        mine = {"new": ("UP", "10.0.0.1"), "override": ("OUT_OF_SERVICE", "10.0.0.1")}
        assert shown(one) == mine
        assert shown(other) == {**known, "other": ("UP", "10.0.0.1")}
        assert one.eureka("PUT", "/apps/WEB/new").status == 200
        assert one.register("WEB", "after") == 204
        assert one.eureka("DELETE", "/apps/WEB/cancel").status == 404
        status, reason = readiness(one)
        assert status == 200
        assert reason is not None
    two.settle({**mine, "after": ("UP", "10.0.0.1"), "other": ("UP", "10.0.0.1")})


def test_nobody_is_evicted_until_a_whole_lease_after_redis_is_back(two: Two) -> None:
    """Neither who was known before, nor who was accepted by one node alone."""
    known = dict.fromkeys(("known:1", "known:2", "known:3"), ("UP", "10.0.0.1"))
    leases = Renewed("WEB", LEASE_SECS)

    def all_list_them() -> bool:
        """With leases that last; whose may have ended before registers again."""
        if not leases.all_last():
            leases.register(two.servers[0], *known)
        return two.list_the_same(known)

    leases.register(two.servers[0], *known)
    with ExitStack() as stack:
        while True:
            wait_until(all_list_them)
            stack.enter_context(two.away("without its data"))
            if leases.all_last():
                break
            stack.close()
        for number, server in enumerate(two.servers):
            assert server.register("WEB", f"alone:{number}", **SHORT) == 204
        time.sleep(LEASE_SECS * 1.5)
        for number, server in enumerate(two.servers):
            assert shown(server) == {**known, f"alone:{number}": ("UP", "10.0.0.1")}
        returned = time.monotonic()
    mine = [known.keys() | {f"alone:{number}"} for number in (0, 1)]

    def somebody_is_gone() -> float | None:
        pairs = zip(two.servers, mine, strict=True)
        is_gone = any(not names <= server.apps().keys() for server, names in pairs)
        return time.monotonic() if is_gone else None

    assert wait_until(somebody_is_gone) - returned > LEASE_SECS
