"""Three machines with two workers each on one Redis, as processes: one registry.

The Redis is one server; several behind Sentinel; or a Cluster. Played on all of them is what goes
to Redis, or where Redis fails; renewals, which a Cluster is told at another server than what all
namespaces share, on the one server and a Cluster; and what a machine does alone on the one server.
"""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from conformance.case import Session, Target
from conformance.documents import Form
from conformance.follower import Follower
from tests.redis_servers import ClusterServers, RedisServer, SentinelServers, another_prefix
from tests.servers import JSON, RegistryServer, Renewed, Watch, instance_body, wait_until

pytestmark = pytest.mark.programs
KINDS = {"alone": RedisServer, "cluster": ClusterServers, "sentinel": SentinelServers}


def on(*kinds: str) -> pytest.MarkDecorator:
    """On which Redis a test is played."""
    return pytest.mark.parametrize("fleet", kinds, indirect=True, scope="module")


LEASE_SECS = 6


class Fleet:
    """The machines, and the Redis that they share."""

    def __init__(
        self,
        redis: RedisServer | SentinelServers | ClusterServers,
        prefix: str,
        servers: list[RegistryServer],
    ) -> None:
        self.redis = redis
        self.prefix = prefix
        self.servers = servers
        self.leases = Renewed("WEB", LEASE_SECS)

    def register(self, at: int, name: str) -> None:
        """At one of the machines."""
        self.servers[at].take("WEB", name)

    def cancel(self, at: int, name: str) -> None:
        """At one of the machines."""
        self.servers[at].cancel("WEB", name)

    def list_the_same(self, expected: set[str]) -> bool:
        return all(set(server.apps()) == expected for server in self.servers)

    def renew(self, *names: str, at: list[RegistryServer] | None = None) -> None:
        """Renew each at the machines in turn, for longer than a lease lasts."""
        until = time.monotonic() + LEASE_SECS * 1.5
        self.renew_until(lambda: time.monotonic() > until, *names, at=at)

    def renew_until(
        self, holds: Callable[[], bool], *names: str, at: list[RegistryServer] | None = None
    ) -> None:
        """Renew each at the machines in turn, until a condition holds."""
        turns = itertools.cycle(at or self.servers)

        def renewed() -> bool:
            if holds():
                return True
            for name, server in zip(names, turns, strict=False):
                self.leases.renew(server, name)
            time.sleep(0.5)
            return False

        wait_until(renewed)

    @contextmanager
    def registering(self) -> Iterator[set[str]]:
        """Register one after the other at the machines in turn; whom they acknowledged."""
        acknowledged: set[str] = set()
        ended = threading.Event()

        def register() -> None:
            for number, server in enumerate(itertools.cycle(self.servers)):
                if ended.wait(0.01):
                    return
                name = f"load:{number}"
                status = server.register("WEB", name)
                assert status in (204, 503)
                if status == 204:
                    acknowledged.add(name)

        with ThreadPoolExecutor(1) as pool:
            registered = pool.submit(register)
            try:
                yield acknowledged
            finally:
                ended.set()
        registered.result()


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as running:
        redis = KINDS[request.param](folder / "redis")
        running.callback(redis.stop)
        prefix = another_prefix()
        servers = []
        for name in ("one", "two", "three"):
            home = folder / name
            home.mkdir()
            env = {"STORE_URL": redis.url(prefix, home / "copy")}
            server = RegistryServer(home, env=env)
            running.push(server.__exit__)
            server.launch()
            servers.append(server)
        for server in servers:
            server.await_ready()
        yield Fleet(redis, prefix, servers)


@pytest.fixture(autouse=True)
def emptied(fleet: Fleet) -> Iterator[None]:
    yield
    for name in fleet.servers[0].apps():
        fleet.cancel(0, name)
    wait_until(lambda: fleet.list_the_same(set()))


@on("alone", "cluster", "sentinel")
def test_what_one_machine_accepted_all_list(fleet: Fleet) -> None:
    """At once on the machine itself, whichever worker is asked; and soon on the others."""
    names = set()
    for number in range(12):
        name = f"web:{number}"
        fleet.register(number % 3, name)
        names.add(name)
        for _ in range(4):
            assert name in fleet.servers[number % 3].apps()
    wait_until(lambda: fleet.list_the_same(names))
    one, two, _ = fleet.servers
    path = "/apps/WEB/web:0/status?value=OUT_OF_SERVICE"
    assert two.settled(lambda: two.eureka("PUT", path).status) == 200
    wait_until(lambda: one.apps()["web:0"]["status"] == "OUT_OF_SERVICE")
    fleet.cancel(2, "web:1")
    wait_until(lambda: fleet.list_the_same(names - {"web:1"}))
    assert one.eureka("PUT", "/apps/WEB/web:1").status == 404


@on("alone", "cluster")
def test_who_renews_anywhere_stays_and_who_renews_nowhere_is_evicted(fleet: Fleet) -> None:
    names = ("web:1", "web:2", "dead")
    fleet.leases.register(fleet.servers[0], *names)
    fleet.renew_until(lambda: fleet.list_the_same(set(names)), *names)
    fleet.renew("web:1", "web:2")
    fleet.renew("web:1", at=fleet.servers[1:2])
    fleet.leases.register(fleet.servers[2], "web:2")
    wait_until(lambda: "dead" not in fleet.servers[0].apps())


@pytest.mark.slow
@on("alone")
def test_a_machine_that_was_paused_evicts_nobody(fleet: Fleet) -> None:
    """It is behind when it goes on, and hears first what was renewed meanwhile."""
    names = {"web:1", "web:2", "web:3"}
    fleet.leases.register(fleet.servers[0], *names)
    fleet.renew_until(lambda: fleet.list_the_same(names), *names)
    for paused in fleet.servers:
        paused.kill(signal.SIGSTOP)
        fleet.renew(*names, at=[server for server in fleet.servers if server is not paused])
        paused.kill(signal.SIGCONT)
        fleet.renew(*names)
        fleet.renew_until(lambda: fleet.list_the_same(names), *names)


@on("alone", "cluster", "sentinel")
def test_a_machine_that_starts_while_redis_is_away_serves_its_copy(fleet: Fleet) -> None:
    """So does a worker that takes another's place; and writes go on when Redis is back."""
    names = {"web:1", "web:2"}
    for name in names:
        fleet.register(0, name)
    wait_until(lambda: fleet.list_the_same(names))
    one, two, _ = fleet.servers
    fleet.redis.kill()
    one.kill9()
    one.launch()
    wait_until(lambda: answers(one))
    before = two.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: answers(two) and not set(before) & set(two.worker_pids()))
    for server in (one, two):
        assert set(server.apps()) == names
        assert server.eureka("PUT", "/apps/WEB/web:1").status == 200
        assert server.register("WEB", "late") == 503
        assert server.send("GET", "/health/ready").status == 503
    fleet.redis.start()
    for server in fleet.servers:
        server.await_ready()
    fleet.register(0, "late")
    wait_until(lambda: fleet.list_the_same(names | {"late"}))


def answers(server: RegistryServer) -> bool:
    try:
        return server.send("GET", "/health/live").status == 200
    except (OSError, http.client.HTTPException):
        return False


@on("alone", "cluster", "sentinel")
@pytest.mark.parametrize("fault", ["killed", "emptied"])
def test_nothing_acknowledged_is_lost_with_redis(fleet: Fleet, fault: str) -> None:
    """It comes back with nothing, and the machines give it back what they have."""
    names = {f"web:{number}" for number in range(9)}
    for number, name in enumerate(sorted(names)):
        fleet.register(number % 3, name)
    wait_until(lambda: fleet.list_the_same(names))
    if fault == "killed":
        fleet.redis.kill()
        for server in fleet.servers:
            answer = server.eureka("POST", "/apps/WEB", instance_body("WEB", "late"), JSON)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
            assert server.eureka("PUT", "/apps/WEB/web:1").status == 200
            assert set(server.apps()) == names
            wait_until(lambda server=server: server.send("GET", "/health/ready").status == 503)
            assert server.send("GET", "/health/live").status == 200
        fleet.redis.start()
    else:
        fleet.redis.empty()
    for server in fleet.servers:
        wait_until(lambda server=server: server.send("GET", "/health/ready").status == 200)
        assert set(server.apps()) == names
    fleet.register(2, "late")
    wait_until(lambda: fleet.list_the_same(names | {"late"}))
    for server in fleet.servers:
        assert server.eureka("PUT", "/apps/WEB/web:1").status == 200


@on("cluster", "sentinel")
def test_a_failover_loses_nothing_and_who_follows_comes_out_right(fleet: Fleet) -> None:
    """The server that has the registry is killed amid registrations, and its replica takes over."""
    assert not isinstance(fleet.redis, RedisServer)
    kept = {f"web:{number}" for number in range(6)}
    for number, name in enumerate(sorted(kept)):
        fleet.register(number % 3, name)
    wait_until(lambda: fleet.list_the_same(kept))
    follower = Follower(Session(Target(fleet.servers[0].base)), Form.JSON)
    follower.fetch_all()
    watch = Watch(fleet.servers[1])
    before = watch.revision
    with fleet.registering() as acknowledged:
        wait_until(lambda: acknowledged)
        fleet.redis.lose_server_of(fleet.prefix)
        # A snapshot of the new life, in which nobody is missing.
        while (told := watch.next()[0]) != "snapshot":
            assert told == "added"
        assert watch.revision > before
        assert set(watch.known) >= kept
        later = len(acknowledged) + 30
        wait_until(lambda: len(acknowledged) > later, "registrations are accepted again")
    for server in fleet.servers:
        wait_until(lambda server=server: server.send("GET", "/health/ready").status == 200)
        assert server.eureka("PUT", "/apps/WEB/web:1").status == 200
    fleet.cancel(2, "web:0")
    fleet.register(2, "late")
    watch.until("late")
    watch.close()
    expected = set(fleet.servers[2].apps())
    assert expected >= acknowledged | kept - {"web:0"} | {"late"}
    assert set(watch.known) == expected
    wait_until(lambda: fleet.list_the_same(expected))

    def is_right() -> bool:
        follower.fetch_delta()
        return {name for _, name in follower.instances} == expected

    wait_until(is_right)
    fleet.redis.whole_again()
