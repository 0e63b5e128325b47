"""Whatever clients of several workers were answered, some order of their calls explains it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.histories.linearizable import Operation, explained, explained_over_nodes
from tests.histories.model import Call, State, registry_model
from tests.histories.playing import Player, newer_is_lost, search, search_over_nodes
from tests.redis_nodes import (
    FAILOVERS,
    FAULTS,
    FORGETTING,
    OF_A_CLUSTER,
    ClusterNodes,
    Nodes,
    Registry,
    SentinelNodes,
)
from tests.servers import JSON, RegistryServer, instance_body, wait_until

HISTORIES = 150
BEFALLEN_BY = (
    None,
    "workers killed",
    "node stopped",
    "redis emptied, answers lost",
    "redis restarted empty, node killed",
    "links close and reset",
    "node in a black hole",
    "redis pauses clients",
)
CLUSTER_BEFALLEN_BY = ("shard's master killed, tail lost", "root's slot moved")
UP = ("UP", "UNKNOWN", frozenset({("zone", "a")}))


def register_model(state: int, call: tuple[str, int]) -> tuple[int, Any]:
    """A number that is written and read."""
    name, value = call
    return (value, "done") if name == "write" else (state, state)


def written(sent: float, ended: float, value: int, answer: Any = "done") -> Operation:
    return Operation(0, sent, ended, ("write", value), answer)


def read(sent: float, ended: float, value: int) -> Operation:
    return Operation(0, sent, ended, ("read", 0), value)


NEVER = float("inf")


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([], []),
        ([written(0, 1, 7), read(2, 3, 7)], [0, 1]),
        # At once, in either order.
        ([written(0, 3, 7), read(1, 2, 0)], [1, 0]),
        ([written(0, 3, 7), read(1, 2, 7)], [0, 1]),
        # What was read once is not unread.
        ([written(0, 9, 7), read(1, 2, 7), read(3, 4, 0)], None),
        # What was acknowledged is there.
        ([written(0, 1, 7), read(2, 3, 0)], None),
        ([written(0, 2, 7), written(1, 3, 8), read(4, 5, 7), read(6, 7, 7)], [1, 0, 2, 3]),
        ([written(0, 2, 7), written(1, 3, 8), read(4, 5, 7), read(6, 7, 8)], None),
        # What was cut off is done late, or never, but not before it was sent.
        ([written(0, NEVER, 7, None), read(2, 3, 0), read(4, 5, 7)], [1, 0, 2]),
        ([written(0, NEVER, 7, None), read(2, 3, 0)], [1]),
        ([read(0, 1, 7), written(2, NEVER, 7, None)], None),
    ],
)
def test_an_order_is_found_where_there_is_one(
    operations: list[Operation], expected: list[int] | None
) -> None:
    assert explained(operations, 0, register_model) == expected


@pytest.mark.parametrize(
    ("operations", "is_right"),
    [
        # Another node may be late, and the own may not.
        ([written(0, 1, 7), read(2, 3, 0)._replace(node=1), read(4, 5, 7)], True),
        ([written(0, 1, 7), read(2, 3, 0)], False),
        # Until it has acknowledged a write, the own may be later than others.
        ([written(0, 5, 7), read(1, 2, 7)._replace(node=1), read(3, 4, 0)], True),
        ([written(0, 5, 7), read(1, 2, 7)._replace(node=1), read(6, 7, 0)], False),
        # Neither goes back behind what it showed.
        (
            [written(0, 1, 7), *(read(t, t + 1, v)._replace(node=1) for t, v in ((2, 7), (4, 0)))],
            False,
        ),
        # Two that are late need not be equally late, but see the same order.
        (
            [
                *(written(0, 1, 7), written(2, 3, 8)),
                *(read(4, 5, 7)._replace(node=1), read(4, 5, 0)._replace(node=2)),
                *(read(6, 7, 8)._replace(node=1), read(6, 7, 7)._replace(node=2)),
            ],
            True,
        ),
        (
            [
                *(written(0, 3, 7), written(0, 3, 8)),
                *(read(4, 5, 7)._replace(node=1), read(6, 7, 8)._replace(node=1)),
                *(read(4, 5, 8)._replace(node=2), read(6, 7, 7)._replace(node=2)),
            ],
            False,
        ),
        # A node that writes has heard of everything before.
        (
            [written(0, 1, 7), written(2, 3, 8)._replace(node=1), read(4, 5, 7)._replace(node=1)],
            False,
        ),
        # In the end all show what is true.
        ([written(0, 1, 7), read(2, 3, 0)._replace(node=1, is_last=True)], False),
        ([written(0, 1, 7), read(2, 3, 7)._replace(node=1, is_last=True)], True),
        # What was cut off may be done and not yet be shown, even by its own node.
        ([written(0, NEVER, 7, None), read(2, 3, 7)._replace(node=1), read(4, 5, 0)], True),
        ([written(0, NEVER, 7, None), read(2, 3, 7), read(4, 5, 0)], False),
    ],
)
def test_nodes_may_be_late_and_never_go_back(operations: list[Operation], is_right: bool) -> None:
    found = explained_over_nodes(operations, 0, register_model, 3)
    assert (found is not None) == is_right


def test_an_order_is_found_among_the_many_of_what_was_cut_off() -> None:
    """Of two writes at once it was not the likelier that was last, which only the end tells."""
    at_once = [written(0, 2, 8), written(0, 3, 7)]
    cut_off = [written(4 + each, NEVER, 100 + each, None) for each in range(10)]
    late = [read(4 + each, 4.5 + each, 0)._replace(node=1) for each in range(10)]
    last = [read(20, 21, 8)._replace(node=node, is_last=True) for node in range(3)]
    found = explained_over_nodes([*at_once, *cut_off, *late, *last], 0, register_model, 3)
    assert found is not None
    assert found[:2] == [1, 0]


def call(number: int, name: str, answer: Any, *, at_once: bool = False, **told: Any) -> Operation:
    """The call of this number; all of those that come ``at_once`` overlap."""
    sent, ended = (0, 1) if at_once else (number, number + 0.5)
    return Operation(number, sent, ended, Call(name, **told), answer)


@pytest.mark.parametrize(
    "lost",
    [
        # Of two merges at once one is gone.
        [
            call(1, "metadata", 200, metadata=frozenset({("b", "1")}), at_once=True),
            call(2, "metadata", 200, metadata=frozenset({("c", "1")}), at_once=True),
            call(3, "get", ("UP", "UNKNOWN", frozenset({("zone", "a"), ("c", "1")}))),
        ],
        # What was cancelled is back.
        [
            call(1, "metadata", 200, metadata=frozenset({("zone", "a")}), at_once=True),
            call(2, "cancel", 200, at_once=True),
            call(3, "get", UP),
        ],
        # An override that was removed is back.
        [
            call(1, "set status", 200, status="DOWN"),
            call(2, "remove status", 200, status="UP"),
            call(3, "get", ("DOWN", "DOWN", frozenset({("zone", "a")}))),
        ],
    ],
)
def test_what_was_acknowledged_and_lost_is_noticed(lost: list[Operation]) -> None:
    zone = frozenset({("zone", "a")})
    first = Operation(0, -2, -1, Call("register", "UP", zone, dirty=1), 204)
    assert explained([first, *lost], State(), registry_model) is None
    assert explained([first, *lost[:-1]], State(), registry_model) is not None


def contested(number: int, name: str, answer: Any, node: int = 0, dirty: int = 0) -> Operation:
    """Of an instance that all nodes write: a state is known by its timestamp."""
    metadata = frozenset({("a", str(dirty))}) if name == "register" else None
    told = Call(name, metadata=metadata, dirty=dirty)
    return Operation(number, number, number + 0.5, told, answer, node)


def state_of(dirty: int) -> tuple[str, str, frozenset[tuple[str, str]]]:
    return ("UP", "UNKNOWN", frozenset({("a", str(dirty))}))


OLDER, NEWER = contested(1, "register", 204, dirty=1), contested(2, "register", 204, 1, dirty=2)


@pytest.mark.parametrize(
    ("operations", "is_lost"),
    [
        # Each node may show what it accepted alone, and in the end all show the newest.
        ([OLDER, NEWER, contested(3, "get", state_of(1))], False),
        ([OLDER, NEWER, contested(3, "get", state_of(1), 1)], True),
        ([OLDER, NEWER, contested(3, "get", state_of(2))._replace(is_last=True)], False),
        ([OLDER, NEWER, contested(3, "get", state_of(1))._replace(is_last=True)], True),
        ([OLDER, NEWER, contested(3, "get", 404)._replace(is_last=True)], True),
        # What was shown is not unshown by the same node.
        (
            [
                *(OLDER, NEWER._replace(answer=None)),
                *(contested(3, "get", state_of(2)), contested(4, "get", state_of(1))),
            ],
            True,
        ),
        # What is not known to have been done may be, and what nobody said may not.
        (
            [OLDER, NEWER._replace(answer=None), contested(3, "get", state_of(2))],
            False,
        ),
        ([OLDER, contested(3, "get", state_of(2))], True),
        # An older one comes after a cancel, or a cancel of a newer one is known later.
        ([NEWER, contested(3, "cancel", 200, 1), OLDER, contested(9, "get", 404)], False),
        (
            [
                *(OLDER, NEWER, contested(3, "cancel", 200, 1)),
                contested(4, "get", state_of(1))._replace(is_last=True),
            ],
            False,
        ),
        (
            [
                *(contested(0, "cancel", 200, 1), OLDER, NEWER),
                contested(4, "get", 404)._replace(is_last=True),
            ],
            True,
        ),
        (
            [
                *(OLDER, NEWER, contested(3, "cancel", 404, 1)),
                contested(4, "get", 404)._replace(is_last=True),
            ],
            True,
        ),
    ],
)
def test_of_what_several_nodes_accepted_alone_the_newest_stays(
    operations: list[Operation], is_lost: bool
) -> None:
    assert newer_is_lost(operations) == is_lost


def expect_all_explained(
    nodes: Registry, fault: str | None, place: int = 0, **options: Any
) -> None:
    """Play eight histories amid a fault; ``place`` is that among the faults, so of its seeds."""
    found = search_over_nodes(nodes, range(1_000 * place, 1_000 * place + 8), fault, **options)
    # As one text, which a report of the failure does not shorten.
    assert not found.wrong, "\n\n".join(found.wrong)
    assert (found.fault, found.histories) == (fault or "none", 8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("histories")
    with RegistryServer(folder, workers=4) as server:
        yield server


def test_the_model_answers_as_the_server_where_one_client_calls_alone(
    server: RegistryServer,
) -> None:
    player = Player([("127.0.0.1", server.port)], clients=1, calls=200)
    for seed in range(5):
        assert player.play(seed, "alone").unexplained() is None


@pytest.mark.slow
def test_some_order_explains_what_clients_of_several_workers_were_answered(
    server: RegistryServer,
) -> None:
    """Every mutating call of both APIs beside reads; the seed of a history is printed with it."""
    wrong = search([("127.0.0.1", server.port)], range(HISTORIES))
    assert not wrong, "\n\n".join(wrong)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder, 3, workers=2, env=FORGETTING, seed=1) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
@pytest.mark.parametrize("fault", BEFALLEN_BY)
def test_some_order_explains_what_clients_of_three_nodes_on_redis_were_answered(
    nodes: Nodes, fault: str | None
) -> None:
    """Amid a fault; and when it is healed, all nodes and workers show the same.

    That the search can fail was seen with a store that was broken on purpose: one that gave nothing
    back when Redis had been emptied, and one that answered before its copy had its own writes.
    """
    place = [None, *FAULTS].index(fault)
    expect_all_explained(nodes, fault, place, thinks_secs=0.15)


@pytest.fixture(scope="module")
def behind_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelNodes]:
    with SentinelNodes(tmp_path_factory.mktemp("sentinel")) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
@pytest.mark.parametrize("fault", FAILOVERS)
def test_some_order_explains_what_clients_were_answered_over_a_failover(
    behind_sentinel: SentinelNodes, fault: str
) -> None:
    """Also where the new master had not received what the old one acknowledged last."""
    expect_all_explained(behind_sentinel, fault, [*FAILOVERS].index(fault))


@pytest.fixture(scope="module")
def on_a_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    with ClusterNodes(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
@pytest.mark.parametrize("fault", CLUSTER_BEFALLEN_BY)
def test_some_order_explains_what_clients_of_a_cluster_were_answered(
    on_a_cluster: ClusterNodes, fault: str
) -> None:
    """In namespaces that lie on several of its servers."""
    expect_all_explained(on_a_cluster, fault, [*OF_A_CLUSTER].index(fault))


@pytest.mark.slow
@pytest.mark.programs
def test_a_server_of_a_cluster_that_ends_keeps_nothing(on_a_cluster: ClusterNodes) -> None:
    """Neither does one that was a replica for a while, and was sent all that another had."""
    servers, name = on_a_cluster.redis, "nobody's"
    master = servers.master_of(name)
    with master.client() as client:
        client.set(name, "kept")
        assert client.wait(1, 0) == 1
    servers.take_over_soon()
    master.kill()
    servers.wait_for_another_than(master, name)
    servers.whole_again()
    servers.fail_over(name)
    servers.whole_again()
    assert servers.master_of(name) is master
    servers.kill()
    servers.start()
    assert servers.master_of(name) is master
    with master.client() as client:
        assert client.get(name) is None
    on_a_cluster.heal()


@pytest.mark.slow
@pytest.mark.programs
def test_a_cluster_is_whole_again_where_moving_a_slot_was_broken_off(
    on_a_cluster: ClusterNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it begins anew, with nothing, which the nodes give back."""
    headers = JSON | {"Authorization": "Bearer a"}
    body = instance_body("KEPT", "kept")
    first = on_a_cluster.servers[0]
    registered = first.settled(lambda: first.eureka("POST", "/apps/KEPT", body, headers).status)
    assert registered == 204
    tag = on_a_cluster.root
    source = on_a_cluster.redis.master_of(tag)
    move = on_a_cluster.redis.moving(tag)
    next(move)
    move.close()
    source.kill()
    on_a_cluster.heal()
    assert "begins anew: moves of slots were broken off: [" in capsys.readouterr().err
    for server in on_a_cluster.servers:
        assert server.eureka("GET", "/apps/KEPT/kept", None, headers).status == 200
    expect_all_explained(on_a_cluster, None)


@pytest.fixture(scope="module")
def accepting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("accepting"), accepting=True) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
def test_what_nodes_accepted_while_redis_was_away_is_there_unless_something_newer_is(
    accepting: Nodes,
) -> None:
    """The search failed with a store that offered nothing, and with one where the older one won."""
    places = itertools.count()

    def has_accepted() -> bool:
        """Where clients stood still for most of the outage, no node noticed it; more are played."""
        expect_all_explained(accepting, "redis stopped", next(places))
        logs = [server.log() for server in accepting.servers]
        return any("accepted by this machine alone" in each for each in logs)

    wait_until(has_accepted, "a write is accepted alone")
