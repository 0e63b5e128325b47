"""A registry on Redis behind Sentinel: failovers, and masters that are none any more."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import StoreError
from registry.lease import SystemClock
from registry.model import DEFAULT_NAMESPACE, Lease, Revision
from registry.store import Store
from registry.stores.redis import RedisStore, read_address
from registry.testing import put, sample_instance
from tests.redis_servers import SentinelServers, another_prefix
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = pytest.mark.programs


@pytest.fixture(scope="module")
def all_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    servers = SentinelServers(tmp_path_factory.mktemp("sentinel"))
    yield servers
    servers.stop()


@pytest.fixture
def servers(all_servers: SentinelServers) -> Iterator[SentinelServers]:
    yield all_servers
    all_servers.whole_again()


class Nodes:
    """The stores of two machines, and a writer on each that notes what was acknowledged."""

    def __init__(self, servers: SentinelServers, folder: Path) -> None:
        prefix = another_prefix()
        self.stores = [
            RedisStore(read_address(servers.url(prefix, folder / name))) for name in ("a", "b")
        ]
        self.acknowledged: set[str] = set()
        self._stopping = threading.Event()
        self._writers: list[threading.Thread] = []

    def write(self) -> None:
        """Register instances on both, until ``settle``."""
        for number, store in enumerate(self.stores):
            writer = threading.Thread(target=self._write, args=[store, f"w{number}"])
            self._writers.append(writer)
            writer.start()

    def _write(self, store: Store, name: str) -> None:
        number = 0
        while not self._stopping.wait(0.005):
            number += 1
            instance_id = f"{name}:{number}"
            now = SystemClock().mono_ms()
            lease = Lease(now + 90_000, 90_000, now)
            try:
                store.commit(NS, put(sample_instance(instance_id=instance_id), lease=lease))
            except StoreError:
                continue
            self.acknowledged.add(instance_id)

    def lives(self) -> list[Revision]:
        """In which lives the copies are."""
        return [store._copy.life() for store in self.stores]

    def wait_for_another_life(self, lives: list[Revision]) -> None:
        """Wait until both are in a later life than they were."""
        wait_until(lambda: all(map(operator.gt, self.lives(), lives)))

    def wait_for_more(self) -> None:
        """Wait until both take writes again."""
        for name in ("w0", "w1"):
            known = self._count(name)
            wait_until(lambda name=name, known=known: self._count(name) > known)

    def _count(self, name: str) -> int:
        return sum(each.startswith(name) for each in tuple(self.acknowledged))

    def settle(self) -> None:
        """Stop the writers, and have both nodes list all that was acknowledged, and the same."""
        self._stopping.set()
        for writer in self._writers:
            writer.join()
        for store in self.stores:
            wait_until(lambda store=store: listed(store) >= self.acknowledged)
        one, two = self.stores
        wait_until(lambda: one.revision(NS) == two.revision(NS))
        assert listed(one) == listed(two)

    def close(self) -> None:
        self._stopping.set()
        for writer in self._writers:
            writer.join()
        for store in self.stores:
            store.close()


@pytest.fixture
def nodes(servers: SentinelServers, tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(servers, tmp_path)
    yield nodes
    nodes.close()


def listed(store: Store) -> set[str]:
    return {instance.id for instance in store.load(NS).instances}


@pytest.mark.parametrize("how", ["killed", "asked"])
def test_a_failover_under_writes_loses_nothing(
    servers: SentinelServers, nodes: Nodes, how: str
) -> None:
    before = servers.master()
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    if how == "killed":
        before.kill()
    else:
        with servers.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", "registry")
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()


def test_the_tail_that_no_replica_had_is_given_back(servers: SentinelServers, nodes: Nodes) -> None:
    before = servers.master()
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    for replica in servers.replicas():
        with replica.client() as client:
            client.replicaof("127.0.0.1", 1)
    nodes.wait_for_more()
    before.kill()
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()


def test_a_master_that_others_left_takes_no_writes_of_a_node_that_reaches_it(
    servers: SentinelServers, nodes: Nodes
) -> None:
    """It answers the nodes all the while; only sentinels and replicas do not reach it any more."""
    before = servers.master()
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    with before.client() as client:
        client.acl_setuser("inner", enabled=False)
        client.execute_command("CLIENT", "KILL", "USER", "inner")
        nodes.wait_for_another_life(lives)
        nodes.wait_for_more()
        assert client.role()[0] == b"master"
        nodes.settle()
        client.acl_setuser("inner", enabled=True)
    assert servers.master() is not before


def test_a_node_that_can_ask_no_majority_takes_no_writes(
    servers: SentinelServers, nodes: Nodes
) -> None:
    """It may be cut off with a master that the others left. It reads on."""
    store = nodes.stores[0]
    store.commit(NS, put(sample_instance()))
    for sentinel in servers.sentinels[:2]:
        sentinel.pause()
    numbers = iter(range(1_000_000))

    def refusal() -> str:
        try:
            store.commit(NS, put(sample_instance(instance_id=f"late:{next(numbers)}")))
        except StoreError as error:
            return str(error)
        return ""

    assert "no majority of 3 sentinels tells the master" in wait_until(refusal)
    assert "web:1" in listed(store)
    for sentinel in servers.sentinels[:2]:
        sentinel.go_on()
    wait_until(lambda: not refusal())
