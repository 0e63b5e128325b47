"""Nodes with workers of their own on one Redis, each behind a fake link; and what befalls them.

Each fault is a context manager: it begins, the test goes on, and it is healed at the end. What is
befallen is chosen by the test's chances.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import redis

from tests.fake_link import FakeLink, Fault
from tests.redis_servers import ClusterServers, RedisServer, SentinelServers, another_prefix
from tests.servers import RegistryServer

_ACCEPTING: Mapping[bool, dict[str, str]] = {
    False: {},
    True: {"REGISTRY_WRITES_WHILE_AWAY": "accept"},
}
FORGETTING = {
    "EUREKA_SERVER_RETENTION_TIME_IN_MS_IN_DELTA_QUEUE": "1000",
    "EUREKA_SERVER_DELTA_RETENTION_TIMER_INTERVAL_IN_MS": "200",
}
"""What servers are told that are to forget changes as soon as they may, and so at any moment."""
_WRONG_CLOCK = Path(__file__).parent / "wrong_clock"


class Node:
    """One machine: its server, and its link to Redis."""

    def __init__(
        self,
        folder: Path,
        redis_server: RedisServer,
        prefix: str,
        *,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        clock_off_secs: int = 0,
        seed: int | str = 0,
    ) -> None:
        """Start nothing yet. Its wall clock is wrong by ``clock_off_secs``."""
        folder.mkdir()
        self.link = FakeLink(redis_server.port, seed)
        url = f"redis://127.0.0.1:{self.link.port}/0?prefix={prefix}&folder={folder / 'copy'}"
        env = {"STORE_URL": url, **(env or {})}
        if clock_off_secs:
            env |= {"PYTHONPATH": str(_WRONG_CLOCK), "WRONG_CLOCK_SECS": str(clock_off_secs)}
        self.server = RegistryServer(folder, workers=workers, env=env)

    def close(self) -> None:
        self.server.__exit__()
        self.link.close()


class Registry(Protocol):
    """The nodes of one registry, and what may befall them."""

    @property
    def servers(self) -> list[RegistryServer]: ...

    @property
    def namespaces(self) -> Sequence[str]:
        """In which of them histories are played; an empty name where nobody says which."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether they accept writes while Redis is away."""
        ...

    def befallen(self, fault: str, chance: random.Random) -> AbstractContextManager[None]:
        """Have a fault befall them, by its name."""
        ...

    def heal(self) -> None:
        """Have everything go on, and wait until every node says that it is ready."""
        ...


class Nodes:
    """The nodes of one registry, and the Redis that they share."""

    namespaces = ("",)

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        accepting: bool = False,
        clocks_off_secs: Sequence[int] = (),
        seed: int | str = 0,
    ) -> None:
        """``env`` is that of all servers, ``clocks_off_secs`` how wrong each one's clock is."""
        self.accepting = accepting
        env = _ACCEPTING[accepting] | dict(env or {})
        with ExitStack() as opened:
            self.redis = RedisServer(folder)
            opened.callback(self.redis.stop)
            self.prefix = another_prefix()
            self.all: list[Node] = []
            for place in range(count):
                node = Node(
                    folder / f"node-{place}",
                    self.redis,
                    self.prefix,
                    workers=workers,
                    env=env,
                    clock_off_secs=clocks_off_secs[place] if clocks_off_secs else 0,
                    seed=f"{seed} {place}",
                )
                opened.callback(node.close)
                self.all.append(node)
                node.server.launch()
            for node in self.all:
                node.server.await_ready()
            self._opened = opened.pop_all()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def servers(self) -> list[RegistryServer]:
        return [node.server for node in self.all]

    def befallen(self, fault: str, chance: random.Random) -> AbstractContextManager[None]:
        return FAULTS[fault](self, chance)

    def heal(self) -> None:
        for node in self.all:
            node.link.heal()
        for node in self.all:
            node.server.await_ready()

    def forget(self) -> None:
        """Have Redis lose everything."""
        with suppress(redis.RedisError), self.redis.client() as client:
            client.flushall()

    @contextmanager
    def linked(self, fault: Fault, *nodes: Node) -> Iterator[None]:
        """Have the links of some nodes fail, or those of all."""
        with ExitStack() as failing:
            for node in nodes or self.all:
                failing.enter_context(node.link.faulty(fault))
            yield


class _Servers(Protocol):
    def __init__(self, folder: Path) -> None: ...

    def url(self, prefix: str, folder: Path) -> str: ...

    def whole_again(self) -> None: ...

    def stop(self) -> None: ...


_S = TypeVar("_S", bound=_Servers)


class _Led(Generic[_S]):
    """The nodes of one registry, on servers that tell them where to go: so by no link."""

    namespaces: Sequence[str] = ("",)
    _servers: Callable[[Path], _S]
    _env: Mapping[str, str] = {}

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        workers: int = 2,
        accepting: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.accepting = accepting
        env = {**_ACCEPTING[accepting], **self._env, **(env or {})}
        self.prefix = another_prefix()
        self.servers: list[RegistryServer] = []
        self.redis = type(self)._servers(folder / "redis")
        with ExitStack() as opened:
            opened.callback(self.redis.stop)
            for place in range(count):
                home = folder / f"node-{place}"
                home.mkdir()
                url = self.redis.url(self.prefix, home / "copy")
                server = RegistryServer(home, workers=workers, env={"STORE_URL": url, **env})
                opened.push(server.__exit__)
                self.servers.append(server)
                server.launch()
            for server in self.servers:
                server.await_ready()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def heal(self) -> None:
        self.redis.whole_again()
        for server in self.servers:
            server.await_ready()


class SentinelNodes(_Led[SentinelServers]):
    """Nodes on a Redis behind Sentinel."""

    _servers = SentinelServers

    def befallen(self, fault: str, chance: random.Random) -> AbstractContextManager[None]:
        self.redis.take_over_soon()
        return FAILOVERS[fault](self, chance)


class ClusterNodes(_Led[ClusterServers]):
    """Nodes on a Redis Cluster, with some namespaces that lie on several of its servers."""

    namespaces = ("default", "a", "b", "c", "d")
    _servers = ClusterServers
    # So that a client says which namespace is its own.
    _env: Mapping[str, str] = {"REGISTRY_AUTH": "trusted"}

    @property
    def root(self) -> str:
        """Where its slot is told by."""
        return f"{{{self.prefix}}}"

    def a_namespace(self, chance: random.Random) -> str:
        """That of some namespace."""
        return f"{{{self.prefix}:{chance.choice(self.namespaces)}}}"

    def befallen(self, fault: str, chance: random.Random) -> AbstractContextManager[None]:
        self.redis.take_over_soon()
        return OF_A_CLUSTER[fault](self, chance)


# What befalls them, by its name. Each takes chances of its own.

_R = TypeVar("_R")
Befalls = Callable[[_R, random.Random], AbstractContextManager[None]]


@contextmanager
def _workers_killed(nodes: Registry, chance: random.Random) -> Iterator[None]:
    """One after the other, until it ends; the main processes start others."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.2 + chance.random()):
            with suppress(ProcessLookupError, IndexError):
                os.kill(chance.choice(chance.choice(nodes.servers).worker_pids()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        ended.set()
        killer.join()


@contextmanager
def _redis_restarted(nodes: Nodes, chance: random.Random) -> Iterator[None]:
    """It ends with everything that it had, and another run begins with nothing."""
    nodes.redis.kill()
    try:
        yield
    finally:
        nodes.redis.start()


@contextmanager
def _redis_emptied(nodes: Nodes, chance: random.Random) -> Iterator[None]:
    nodes.forget()
    yield


@contextmanager
def _redis_stopped(nodes: Nodes, chance: random.Random) -> Iterator[None]:
    nodes.redis.pause()
    try:
        yield
    finally:
        nodes.redis.go_on()


@contextmanager
def _clients_paused(nodes: Nodes, chance: random.Random) -> Iterator[None]:
    """Redis lets all of its clients wait, or those that write."""
    with nodes.redis.client() as client:
        client.execute_command("CLIENT", "PAUSE", 5_000, chance.choice(("ALL", "WRITE")))
    try:
        yield
    finally:
        with nodes.redis.client() as client:
            client.execute_command("CLIENT", "UNPAUSE")


@contextmanager
def _links_cut(nodes: Nodes, chance: random.Random) -> Iterator[None]:
    """All connections of this moment, again and again."""
    ended = threading.Event()

    def cut() -> None:
        while not ended.wait(0.5 * chance.random()):
            chance.choice(nodes.all).link.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        yield
    finally:
        ended.set()
        cutter.join()


@contextmanager
def _node_stopped(nodes: Registry, chance: random.Random) -> Iterator[None]:
    """All processes of one stand still."""
    server = chance.choice(nodes.servers)
    server.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        server.kill(signal.SIGCONT)


@contextmanager
def _node_killed(nodes: Registry, chance: random.Random) -> Iterator[None]:
    """All processes of one are gone, and it is started again at the end."""
    server = chance.choice(nodes.servers)
    server.kill9()
    try:
        yield
    finally:
        server.start()


def _all_links(fault: Fault) -> Befalls[Nodes]:
    return lambda nodes, chance: nodes.linked(fault)


def _one_link(fault: Fault) -> Befalls[Nodes]:
    return lambda nodes, chance: nodes.linked(fault, chance.choice(nodes.all))


def _both(first: Befalls[_R], then: Befalls[_R]) -> Befalls[_R]:
    @contextmanager
    def both(nodes: _R, chance: random.Random) -> Iterator[None]:
        with first(nodes, chance), ExitStack() as second:
            # The second comes in the middle of the first.
            threading.Event().wait(chance.random() * 0.5)
            second.enter_context(then(nodes, chance))
            yield

    return both


_LOSING_ANSWERS = Fault(delay_secs=0.01, loses_answer=0.1)

FAULTS: Mapping[str, Befalls[Nodes]] = {
    "workers killed": _workers_killed,
    "node stopped": _node_stopped,
    "node killed": _node_killed,
    "redis restarted empty": _redis_restarted,
    "redis emptied": _redis_emptied,
    "redis stopped": _redis_stopped,
    "redis pauses clients": _clients_paused,
    "links delay": _all_links(Fault(delay_secs=0.05)),
    "links lose answers": _all_links(_LOSING_ANSWERS),
    "links lose requests": _all_links(Fault(loses_request=0.1)),
    "links close and reset": _all_links(Fault(cuts=0.1, resets=0.1)),
    "connections torn down": _links_cut,
    "node in a black hole": _one_link(Fault(holds=True)),
    "node hears no answers": _one_link(Fault(loses_answer=1)),
    "redis emptied, answers lost": _both(_all_links(_LOSING_ANSWERS), _redis_emptied),
    "redis emptied, links delay": _both(_all_links(Fault(delay_secs=0.05)), _redis_emptied),
    "redis emptied, node stopped": _both(_node_stopped, _redis_emptied),
    "redis emptied, node in a black hole": _both(_one_link(Fault(holds=True)), _redis_emptied),
    "redis restarted empty, workers killed": _both(_workers_killed, _redis_restarted),
    "redis restarted empty, node killed": _both(_node_killed, _redis_restarted),
    "redis stopped, node stopped": _both(_node_stopped, _redis_stopped),
}


@contextmanager
def _failed_over(nodes: SentinelNodes, chance: random.Random) -> Iterator[None]:
    """The master is killed, and a replica takes over that had all, or nearly all."""
    nodes.redis.master().kill()
    yield


@contextmanager
def _failed_over_without_the_tail(nodes: SentinelNodes, chance: random.Random) -> Iterator[None]:
    """For a moment no replica follows the master, which is killed then."""
    before = nodes.redis.master()
    for replica in nodes.redis.replicas():
        with replica.client() as client:
            client.replicaof("127.0.0.1", 1)
    threading.Event().wait(0.2 + 0.5 * chance.random())
    before.kill()
    yield


FAILOVERS: Mapping[str, Befalls[SentinelNodes]] = {
    "failover": _failed_over,
    "failover, tail lost": _failed_over_without_the_tail,
}


# Of a Cluster. Where it says "a shard", it is any that has a namespace; the root's may be the same.


def _taken_over(of_root: bool) -> Befalls[ClusterNodes]:
    """A master is killed, and its replica takes over."""

    @contextmanager
    def befallen(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
        tag = nodes.root if of_root else nodes.a_namespace(chance)
        master = nodes.redis.master_of(tag)
        master.kill()
        yield
        nodes.redis.wait_for_another_than(master, tag)

    return befallen


@contextmanager
def _taken_over_without_the_tail(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
    """The replica stands still, its connection ends, and its master is killed some writes later."""
    tag = nodes.root if chance.random() < 0.3 else nodes.a_namespace(chance)
    master = nodes.redis.master_of(tag)
    _, replica = nodes.redis.part_of(master)
    replica.pause()
    try:
        with master.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "REPLICA")
        threading.Event().wait(0.2 + 0.5 * chance.random())
        master.kill()
    finally:
        replica.go_on()
    yield
    nodes.redis.wait_for_another_than(master, tag)


@contextmanager
def _planned(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
    """A replica takes over that has everything."""
    nodes.redis.fail_over(nodes.root if chance.random() < 0.3 else nodes.a_namespace(chance))
    yield


def _slot_moved(of_root: bool) -> Befalls[ClusterNodes]:
    """To another server, key by key, with some time in between."""

    @contextmanager
    def befallen(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
        for _ in nodes.redis.moving(nodes.root if of_root else nodes.a_namespace(chance)):
            threading.Event().wait(0.2 * chance.random())
        yield

    return befallen


@contextmanager
def _shard_stopped(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
    """A master stands still; where that lasts, its replica takes over before it goes on."""
    tag = nodes.root if chance.random() < 0.3 else nodes.a_namespace(chance)
    master = nodes.redis.master_of(tag)
    master.pause()
    try:
        yield
    finally:
        master.go_on()


@contextmanager
def _shard_restarted(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
    """A master and its replica end with everything that they had, and begin with nothing."""
    tag = nodes.root if chance.random() < 0.3 else nodes.a_namespace(chance)
    for server in nodes.redis.part_of(nodes.redis.master_of(tag)):
        server.kill()
    yield


@contextmanager
def _all_restarted(nodes: ClusterNodes, chance: random.Random) -> Iterator[None]:
    for server in nodes.redis.servers:
        server.kill()
    yield


OF_A_CLUSTER: Mapping[str, Befalls[ClusterNodes]] = {
    "root's master killed": _taken_over(of_root=True),
    "shard's master killed": _taken_over(of_root=False),
    "shard's master killed, tail lost": _taken_over_without_the_tail,
    "planned failover": _planned,
    "root's slot moved": _slot_moved(of_root=True),
    "namespace's slot moved": _slot_moved(of_root=False),
    "shard stopped": _shard_stopped,
    "shard restarted empty": _shard_restarted,
    "cluster restarted empty": _all_restarted,
    "shard's master killed, workers killed": _both(_workers_killed, _taken_over(of_root=False)),
    "root's master killed, node killed": _both(_node_killed, _taken_over(of_root=True)),
    "namespace's slot moved, node stopped": _both(_node_stopped, _slot_moved(of_root=False)),
}
