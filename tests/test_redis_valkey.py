"""A registry on Valkey, which speaks as Redis does: alone, behind Sentinel, as a Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_servers import ClusterServers, RedisServer, SentinelServers, valkey
from tests.redis_suite import RedisSuite, WritingNodes

pytestmark = pytest.mark.programs
DOCUMENT = Path(__file__).parent.parent / "docs" / "operate" / "stores.md"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("valkey"), program=valkey())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"), valkey())
    yield servers
    servers.stop()


def test_the_documents_name_the_version_that_is_played(alone: RedisServer) -> None:
    with alone.client() as client:
        version: str = client.info("server")["valkey_version"]
    minor = ".".join(version.split(".")[:2])
    assert f"run on Redis 7.0 and on Valkey {minor}" in DOCUMENT.read_text()


def test_a_failover_behind_its_sentinels_loses_nothing(tmp_path: Path) -> None:
    servers = SentinelServers(tmp_path / "valkey", valkey())
    try:
        nodes = WritingNodes(servers, tmp_path)
        try:
            lives = nodes.lives()
            nodes.write()
            nodes.wait_for_more()
            servers.lose_server_of(nodes.prefix)
            nodes.wait_for_another_life(lives)
            nodes.wait_for_more()
            nodes.settle()
        finally:
            nodes.close()
    finally:
        servers.stop()


def test_a_failover_of_its_cluster_loses_nothing(cluster: ClusterServers, tmp_path: Path) -> None:
    nodes = WritingNodes(cluster, tmp_path)
    try:
        lives = nodes.lives()
        nodes.write()
        nodes.wait_for_more()
        cluster.lose_server_of(nodes.prefix)
        nodes.wait_for_another_life(lives)
        nodes.wait_for_more()
        nodes.settle()
    finally:
        nodes.close()
        cluster.whole_again()


class TestRedisStoreOnValkey(RedisSuite):
    """The whole contract on one server."""

    @pytest.fixture
    def server(self, alone: RedisServer) -> RedisServer:
        return alone


class TestRedisStoreOnAClusterOfValkey(RedisSuite):
    """The whole contract, after a replica took over."""

    @pytest.fixture
    def server(self, cluster: ClusterServers) -> ClusterServers:
        return cluster
