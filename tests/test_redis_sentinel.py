"""A registry on Redis behind Sentinel: failovers, and masters that are none any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import StoreError, open_store
from registry.model import DEFAULT_NAMESPACE
from registry.testing import put, sample_instance
from tests.redis_servers import (
    PASSWORD,
    SENTINEL_PASSWORD,
    SERVICE,
    SentinelServers,
    another_prefix,
)
from tests.redis_suite import RedisSuite, WritingNodes, is_taken, listed
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = pytest.mark.programs


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[SentinelServers]:
    """New ones for each test: sentinels fight over masters that came and went in quick turn."""
    servers = SentinelServers(tmp_path / "redis")
    yield servers
    servers.stop()


@pytest.fixture
def nodes(servers: SentinelServers, tmp_path: Path) -> Iterator[WritingNodes]:
    nodes = WritingNodes(servers, tmp_path)
    yield nodes
    nodes.close()


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_failover_under_writes_loses_nothing(
    servers: SentinelServers, nodes: WritingNodes, how: str
) -> None:
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    if how == "killed":
        servers.lose_server_of(nodes.prefix)
    else:
        servers.fail_over()
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()


def test_the_tail_that_no_replica_had_is_given_back(
    servers: SentinelServers, nodes: WritingNodes
) -> None:
    before = servers.master()
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    for replica in servers.replicas():
        with replica.client() as client:
            client.replicaof("127.0.0.1", 1)
    nodes.wait_for_more()
    servers.take_over_soon()
    before.kill()
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()


def test_a_master_that_others_left_takes_no_writes_of_a_node_that_reaches_it(
    servers: SentinelServers, nodes: WritingNodes
) -> None:
    """It answers the nodes all the while; only sentinels and replicas do not reach it any more."""
    before = servers.master()
    lives = nodes.lives()
    nodes.write()
    nodes.wait_for_more()
    servers.take_over_soon()
    with before.client() as client:
        client.acl_setuser("inner", enabled=False)
        client.execute_command("CLIENT", "KILL", "USER", "inner")
        nodes.wait_for_another_life(lives)
        nodes.wait_for_more()
        assert client.role()[0] == b"master"
        nodes.settle()
    assert servers.master() is not before


def test_a_node_that_can_ask_no_majority_takes_no_writes(
    servers: SentinelServers, nodes: WritingNodes
) -> None:
    """It may be cut off with a master that the others left. It reads on."""
    store = nodes.stores[0]
    wait_until(lambda: is_taken(store, put(sample_instance())))
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


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    servers = SentinelServers(tmp_path_factory.mktemp("sentinel"))
    servers.fail_over()
    yield servers
    servers.stop()


def test_a_wrong_address_is_said_in_one_line(promoted: SentinelServers, tmp_path: Path) -> None:
    url = promoted.url(another_prefix(), tmp_path)
    sentinel, server = promoted.sentinels[0].port, promoted.servers[0].port
    for wrong, reason in (
        (url.replace(f"/{SERVICE}/", "/other/"), r"no majority.*\(one does not know other\)"),
        (url.replace(f":{PASSWORD}@", ":another@"), "refuses its user: invalid username-password"),
        (url.replace(SENTINEL_PASSWORD, "another"), "no majority.*invalid username-password"),
        (
            f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{sentinel}/0?folder={tmp_path}",
            "it is a sentinel: expected redis.sentinel://",
        ),
        (
            f"redis+sentinel://127.0.0.1:{server}/{SERVICE}/0?folder={tmp_path}",
            "no majority of 1 sentinels",
        ),
    ):
        with pytest.raises(StoreError, match=reason) as caught:
            open_store(wrong)
        assert "\n" not in str(caught.value)
        assert "another" not in str(caught.value)


class TestRedisStoreBehindSentinel(RedisSuite):
    """The whole contract, on a master that took over."""

    @pytest.fixture
    def server(self, promoted: SentinelServers) -> SentinelServers:
        return promoted
