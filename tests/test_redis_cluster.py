"""A registry on a Redis Cluster: the namespaces are spread, and a shard may fail or move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from conformance.programs import free_port
from registry import open_store
from registry.errors import ConflictError, LockLostError, StoreError
from registry.lease import SystemClock
from registry.model import Lease, Namespace
from registry.store import Fence, Store
from registry.testing import put, sample_instance
from tests.redis_servers import ClusterServers, RedisServer
from tests.redis_suite import RedisSuite, WritingNodes, listed
from tests.servers import wait_until

NAMESPACES = tuple(map(Namespace, ("default", "a", "b", "c", "d")))
pytestmark = pytest.mark.programs


@pytest.fixture(scope="module")
def all_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"))
    yield servers
    servers.stop()


@pytest.fixture
def servers(all_servers: ClusterServers) -> Iterator[ClusterServers]:
    yield all_servers
    all_servers.whole_again()


@pytest.fixture
def nodes(servers: ClusterServers, tmp_path: Path) -> Iterator[WritingNodes]:
    nodes = WritingNodes(servers, tmp_path, NAMESPACES)
    yield nodes
    nodes.close()


def test_the_namespaces_are_spread_and_followed_from_all_servers(
    servers: ClusterServers, nodes: WritingNodes
) -> None:
    here, there = nodes.stores
    for namespace in NAMESPACES:
        revision = here.commit(namespace, put(sample_instance()))
        wait_until(lambda namespace=namespace, known=revision: there.revision(namespace) == known)
    holders = {servers.master_of(f"{{{nodes.prefix}:{each}}}").port for each in NAMESPACES}
    assert len(holders) > 1
    # In each round each of them is asked for something, as the root is.
    others = holders - {servers.master_of(f"{{{nodes.prefix}}}").port}
    asked = here._server.first_at_each(NAMESPACES)
    found = [servers.master_of(f"{{{nodes.prefix}:{each}}}").port for each in asked]
    assert sorted(found) == sorted(others)
    size = here.state().size_bytes
    assert size is not None
    with servers.masters()[0].client() as client:
        assert size > client.info("memory")["used_memory"]


@pytest.mark.parametrize("part", ["", ":c"], ids=["root", "namespace"])
def test_a_failover_of_one_shard_under_writes_loses_nothing(
    servers: ClusterServers, nodes: WritingNodes, part: str
) -> None:
    nodes.write()
    nodes.wait_for_more()
    lives = nodes.lives()
    servers.take_over_soon()
    servers.master_of(f"{{{nodes.prefix}{part}}}").kill()
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()


def test_while_a_part_of_the_cluster_is_away_nobody_is_evicted_in_any_namespace(
    servers: ClusterServers, nodes: WritingNodes
) -> None:
    """Reads and heartbeats go on; and it comes back with nothing, and is given all back."""
    instance = sample_instance()
    for namespace in NAMESPACES:
        revision = nodes.stores[0].commit(namespace, put(instance, lease=ended_lease()))
        wait_until(lambda name=namespace, rev=revision: nodes.stores[1].revision(name) == rev)
    lives = nodes.lives()
    servers.take_over_soon()
    for server in servers.part_of(servers.master_of(f"{{{nodes.prefix}:c}}")):
        server.kill()
    for store in nodes.stores:
        wait_until(lambda store=store: not may_evict(store))
        for namespace in NAMESPACES:
            assert listed(store, namespace) == {instance.id}
            assert store.renew(namespace, instance.key, ended_lease(), None)
        with pytest.raises(StoreError):
            store.commit(Namespace("c"), put(sample_instance(instance_id="late")))
        assert not may_evict(store)
    servers.whole_again()
    nodes.wait_for_another_life(lives)
    for store in nodes.stores:
        wait_until(lambda store=store: may_evict(store))
        for namespace in NAMESPACES:
            lease = store.lease(namespace, instance.key)
            assert lease is not None
            assert lease.deadline_mono_ms > SystemClock().mono_ms()
    for namespace in NAMESPACES:
        late = nodes.stores[0].commit(namespace, put(sample_instance(instance_id="late")))
        wait_until(lambda name=namespace, rev=late: nodes.stores[1].revision(name) == rev)
        assert listed(nodes.stores[1], namespace) == {instance.id, "late"}


def ended_lease() -> Lease:
    now = SystemClock().mono_ms()
    return Lease(now - 1, 600_000, now)


def may_evict(store: Store) -> bool:
    """With what each pass of an evictor begins."""
    try:
        store.resume(SystemClock().mono_ms())
    except StoreError:
        return False
    return True


@pytest.mark.parametrize("part", ["", ":c"], ids=["root", "namespace"])
def test_a_slot_that_is_moved_under_writes_loses_nothing(
    servers: ClusterServers, nodes: WritingNodes, part: str
) -> None:
    """Key by key, as resharding does it; meanwhile nobody may see a part of the keys."""
    nodes.write()
    nodes.wait_for_more()
    lives = nodes.lives()
    tag = f"{{{nodes.prefix}{part}}}"
    source, moved = servers.master_of(tag), 0
    for here, there in servers.moving(tag):
        moved += 1
        assert is_refused_in_between(here, tag)
        assert is_refused_in_between(there, tag)
    assert moved > 3
    nodes.wait_for_another_life(lives)
    nodes.wait_for_more()
    nodes.settle()
    assert servers.master_of(tag) is not source


def is_refused_in_between(client: Any, tag: str) -> bool:
    """Whether a script that looks at a part that is being moved runs neither here nor there."""
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command("ASKING")
    pipeline.eval("return 1", 2, tag, f"{tag}:life")
    _, answer = pipeline.execute(raise_on_error=False)
    return isinstance(answer, redis.ResponseError)


def test_who_lost_a_lock_writes_in_no_namespace(nodes: WritingNodes) -> None:
    """Also in one that was opened after the lock had changed hands."""
    here, there = nodes.stores
    now = SystemClock().mono_ms()
    for namespace in NAMESPACES[:3]:
        here.commit(namespace, put(sample_instance()))
    token = here.acquire("evictor", "a", now, 60_000)
    assert token is not None
    here.release("evictor", "a")
    later = there.acquire("evictor", "b", now, 60_000)
    assert later is not None
    late = put(sample_instance(instance_id="late"))
    for namespace in NAMESPACES:
        with pytest.raises(LockLostError):
            here.commit(namespace, late, Fence("evictor", token))
        there.commit(namespace, late, Fence("evictor", later))


def test_the_limit_of_namespaces_holds_over_all_servers(nodes: WritingNodes) -> None:
    here, there = nodes.stores
    names = (Namespace(f"n{number}") for number in count())
    one = put(sample_instance(), namespaces_at_most=3)
    taken = [next(names) for _ in range(3)]
    revisions = [
        store.commit(name, one) for store, name in zip((here, there, here), taken, strict=True)
    ]
    for store in nodes.stores:
        with pytest.raises(ConflictError):
            store.commit(next(names), one)
    gone = put(sample_instance(), expected=revisions[1], remove=True, lease=None)
    last = there.commit(taken[1], gone)
    wait_until(lambda: here.revision(taken[1]) == last)
    assert here.commit(next(names), one)
    for store in nodes.stores:
        with pytest.raises(ConflictError):
            store.commit(taken[1], one)


def test_a_slot_that_nobody_had_for_a_while_is_found_again(
    servers: ClusterServers, nodes: WritingNodes
) -> None:
    """Whoever read the table of slots meanwhile asks for it again."""
    store, tag = nodes.stores[0], f"{{{nodes.prefix}:a}}"
    slot, master = key_slot(tag.encode()), servers.master_of(tag)
    store.commit(Namespace("a"), put(sample_instance()))

    def forget_who_has_it() -> None:
        # Again and again: who hears from a server that still had it learns it anew.
        for server in servers.servers:
            with server.client() as client, suppress(redis.ResponseError):
                client.execute_command("CLUSTER", "DELSLOTS", slot)

    def refusal() -> str:
        try:
            store.commit(Namespace("a"), put(sample_instance(instance_id="late")))
        except StoreError as error:
            return str(error)
        return "it was written"

    def is_known_to_be_nobodys() -> bool:
        forget_who_has_it()
        return "not covered" in refusal()

    wait_until(is_known_to_be_nobodys, "the table of slots was read")
    with master.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", slot)
    wait_until(lambda: refusal() == "it was written", "it is written")
    assert listed(store, Namespace("a")) >= {"late"}


def test_a_wrong_address_is_said_in_one_line(servers: ClusterServers, tmp_path: Path) -> None:
    one = RedisServer(tmp_path / "one")
    try:
        for wrong, reason in (
            *(
                (f"redis://127.0.0.1:{each.port}/0", "it is a server of a Cluster: expected redis")
                for each in servers.servers
            ),
            (f"redis+cluster://127.0.0.1:{one.port}", "Cluster mode is not enabled"),
        ):
            with pytest.raises(StoreError, match=reason) as caught:
                open_store(f"{wrong}?folder={tmp_path / 'copy'}")
            assert "\n" not in str(caught.value)
    finally:
        one.stop()


def test_a_cluster_in_which_nobody_has_a_slot_does_not_answer(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    one = RedisServer(tmp_path / "one", *options)
    try:
        with pytest.raises(StoreError, match="no server has a slot") as caught:
            open_store(f"redis+cluster://127.0.0.1:{one.port}?folder={tmp_path / 'copy'}")
        assert "\n" not in str(caught.value)
    finally:
        one.stop()


class TestRedisStoreOnACluster(RedisSuite):
    """The whole contract, after servers failed and slots were moved."""

    @pytest.fixture
    def server(self, all_servers: ClusterServers) -> ClusterServers:
        return all_servers
