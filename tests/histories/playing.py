"""Histories as they are played, against the nodes of one registry, and judged."""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from native_api import form
from tests.histories.calls import Instance, read_answer, request
from tests.histories.linearizable import (
    NEVER,
    Operation,
    UndecidedError,
    explained,
    explained_over_nodes,
)
from tests.histories.model import Call, State, is_written, registry_model
from tests.redis_nodes import Registry
from tests.servers import HANG_SECS, wait_until

Address = tuple[str, int]
# A node waits three seconds for a Redis that hangs before it takes it for away.
_GIVEN_UP_SECS = 3.5


@dataclass
class History:
    """One that was played: of each instance what was called and answered."""

    seed: int
    operations: dict[Instance, list[Operation]] = field(default_factory=dict)

    def unexplained(self, nodes: int | None = None) -> str | None:
        """What no order explains, to be read by people; None where all of it is right.

        ``nodes``: on how many of them that share a Redis; None where all is of one machine.
        """
        for instance, operations in self.operations.items():
            try:
                found: Any
                if instance.contested:
                    found = None if newer_is_lost(operations) else operations
                elif nodes is None:
                    found = explained(operations, State(), registry_model)
                else:
                    found = explained_over_nodes(
                        operations, State(), registry_model, nodes, is_written
                    )
                if found is not None:
                    continue
                verdict = "no order explains"
            except UndecidedError:
                verdict = "too many orders may explain"
            begin = min(operation.sent for operation in operations)
            lines = [f"seed {self.seed}, {instance.app}/{instance.id}: {verdict}"]
            for each in sorted(operations, key=lambda each: each.sent):
                sent, ended = (each.sent - begin) * 1000, (each.ended - begin) * 1000
                call = {k: v for k, v in each.call._asdict().items() if v not in (None, 0)}
                who = f"{each.client}@{each.node}{'.' * each.is_last}"
                lines.append(f"{sent:9.3f} {ended:9.3f} ms  {who}  {call} -> {each.answer}")
            return "\n".join(lines)
        return None


def newer_is_lost(operations: Iterable[Operation]) -> bool:
    """Whether a contested instance was shown older than it had been, with no cancel to explain it.

    At a node it is compared with what that one showed and acknowledged; in the end with all.
    """
    registered = {each.call.metadata: each for each in operations if each.call.name == "register"}
    cancels = [
        each for each in operations if each.call.name == "cancel" and each.answer in (200, None)
    ]

    def shown(read: Operation) -> frozenset[tuple[str, str]] | None:
        """The metadata, by which a state is known; None where nothing is listed."""
        is_listed = isinstance(read.answer, tuple)
        return (
            next(each for each in read.answer if isinstance(each, frozenset)) if is_listed else None
        )

    def dirty(known: frozenset[tuple[str, str]] | None) -> int:
        return 0 if known is None else registered[known].call.dirty

    known = [
        (each, each.call.metadata if each.call.name == "register" else shown(each))
        for each in operations
        if each.answer == 204 or each.call.name in _READS
    ]
    for later, seen in known:
        if later.call.name not in _READS:
            continue
        if seen is not None and (seen not in registered or registered[seen].sent > later.ended):
            return True  # nobody had said so
        for earlier, expected in known:
            is_after = earlier.ended < later.sent
            if not is_after or not (later.is_last or later.node == earlier.node):
                continue
            if dirty(expected) > dirty(seen) and not any(
                cancel.sent < later.ended
                and any(
                    each.sent < cancel.ended
                    and (each is registered[expected] or each.call.dirty > dirty(expected))
                    for each in registered.values()
                )
                for cancel in cancels
            ):
                return True
    return False


_STATUSES = ("UP", "UP", "DOWN", "STARTING", "OUT_OF_SERVICE")
_OPERATIONS = ("override", "lift", "patch", "delete")
_ALIKE = ("metadata", "set status", "remove status", "heartbeat", "get", "list", "put", "show")
_ALIKE += _OPERATIONS
_OF_EUREKA = ("register", "peer register", "cancel", "import", "register", *_ALIKE)
_OF_NATIVE = ("post", "beat", "delete", "put", "post", "register", *_ALIKE)
_CONTESTED = ("register", "register", "get", "list", "show")
_CUT_OFF = 0.02


class Player:
    """Plays histories against a server; the same calls for the same seed, in what order ever."""

    def __init__(
        self,
        nodes: Sequence[Address],
        *,
        clients: int = 4,
        calls: int = 10,
        thinks_secs: float = 0,
        namespaces: Sequence[str] = ("",),
        accepting: bool = False,
    ) -> None:
        """``nodes`` are those of one registry; each call goes to any of them.

        A client ``thinks`` for at most so long before each call, and as long after a 503. Each
        history is in one of the ``namespaces``, which come in turn. Where nodes are ``accepting``
        writes while Redis is away, some instances are one client's at one node, and one is of all.
        """
        self.nodes = nodes
        self._clients = clients
        self._calls = calls
        self._thinks_secs = thinks_secs
        self._namespaces = namespaces
        self._accepting = accepting

    def play(self, seed: int, run: str = "") -> History:
        """One history on instances of its own; ``run`` tells them from those of another run."""
        return self.play_all([seed], run)[0]

    def play_all(self, seeds: Iterable[int], run: str = "") -> list[History]:
        """Some histories at the same time, each on instances of its own."""
        histories, players = [], []
        selector = selectors.DefaultSelector()
        for seed in seeds:
            chance = random.Random(seed)
            namespace = self._namespaces[seed % len(self._namespaces)]
            instances = _instances(seed, run, namespace)
            if self._accepting:
                instances = [
                    each._replace(home=chance.randrange(len(self.nodes)), writer=writer)
                    for writer, each in enumerate(instances)
                ]
                instances.append(_contested(seed, run, namespace))
            programs = [
                [
                    _any_call(chance, instances, client, f"{client}.{number}")
                    for number in range(self._calls)
                ]
                for client in range(self._clients)
            ]
            history = History(seed, {instance: [] for instance in instances})
            histories.append(history)
            for number, program in enumerate(programs):
                chance = random.Random(f"{seed} {number}")
                players.append(
                    _Client(history, number, program, self.nodes, chance, self._thinks_secs)
                )
        with selector:
            _play(players, selector)
        return histories

    def agree(self, histories: Sequence[History], *, reads: int = 1) -> None:
        """Read on each node until all show the same, and note what they show as the truth.

        Each is read so often, on as many connections. ``AssertionError`` where they never agree.
        """
        with selectors.DefaultSelector() as selector:
            for history in histories:
                for instance, operations in history.operations.items():
                    operations += wait_until(
                        lambda instance=instance: self._agreed(instance, reads, selector),
                        f"seed {history.seed}, {instance}: that all nodes show the same",
                    )

    def _agreed(
        self, instance: Instance, reads: int, selector: selectors.BaseSelector
    ) -> list[Operation]:
        """A read of both APIs on each node, where all that were answered alike are the same."""
        calls = [(instance, Call("get")), (instance, Call("show"))] * reads
        readers = [
            _Client(
                History(0, {instance: []}), number, calls, [node], random.Random(0), is_last=number
            )
            for number, node in enumerate(self.nodes)
        ]
        _play(readers, selector)
        operations = [each for reader in readers for each in reader.history.operations[instance]]
        answers = {(each.call.name, each.answer) for each in operations}
        is_agreed = len(answers) == len({name for name, _ in answers}) and len(operations) == (
            len(readers) * len(calls)
        )
        return operations if is_agreed else []


def _instances(seed: int, run: str, namespace: str) -> list[Instance]:
    service = f"h{seed}x{run}"
    endpoint = "10.0.0.1:80"
    native = form.instance_id(service, form.parsed_endpoint("http", endpoint))
    return [
        # An override is that of an id, in whichever application.
        Instance(service.upper(), f"e{service}", namespace=namespace),
        Instance(service.upper(), native, endpoint, namespace),
    ]


def _contested(seed: int, run: str, namespace: str) -> Instance:
    service = f"h{seed}x{run}"
    calls = (*_CONTESTED, "cancel") if seed % 2 else _CONTESTED
    return Instance(service.upper(), f"c{service}", namespace=namespace, contested=calls)


def _any_call(
    chance: random.Random, instances: Sequence[Instance], client: int, value: str
) -> tuple[Instance, Call]:
    own = [each for each in instances if each.writer == client]
    instance = chance.choice([*instances, *own, *own])
    if instance.writer not in (None, client):
        return instance, Call(chance.choice(_READS))
    of_api = _OF_EUREKA if instance.endpoint is None else _OF_NATIVE
    name = chance.choice(instance.contested or of_api)
    status = chance.choice(_STATUSES)
    metadata = frozenset({(chance.choice("abc"), value)})
    dirty = 1_000 + chance.randrange(10**9 if instance.contested else 3)
    if name in ("register", "peer register", "import"):
        return instance, Call(name, status, metadata, dirty=dirty)
    if name == "heartbeat":
        return instance, Call(name, dirty=dirty)
    if name in ("set status", "remove status", "override", "lift"):
        return instance, Call(name, status)
    if name in ("metadata", "patch"):
        return instance, Call(name, metadata=metadata)
    if name == "post":
        return instance, Call(name, chance.choice((*_STATUSES, "BUSY")), metadata, (value,))
    if name == "put":
        change = chance.randrange(3)
        if change == 0:
            return instance, Call(name, status)
        if change == 1:
            return instance, Call(name, metadata=metadata)
        return instance, Call(name, tags=(value,))
    return instance, Call(name)


class _Client:
    """Makes one call after the other, each on a new connection, as soon as it has an answer."""

    def __init__(
        self,
        history: History,
        number: int,
        program: Iterable[tuple[Instance, Call]],
        nodes: Sequence[Address],
        chance: random.Random,
        thinks_secs: float = 0,
        *,
        is_last: int | None = None,
    ) -> None:
        """``is_last``: it reads after everything, on the node of this place."""
        self.history = history
        self._number = number
        self._program = iter(program)
        self._nodes = nodes
        self._chance = chance
        self._thinks_secs = thinks_secs
        self._is_last = is_last

    def think(self) -> float:
        """When to make the next call."""
        return time.monotonic() + self._thinks_secs * self._chance.random()

    def next(self) -> socket.socket | None:
        """Make the next call; the connection on which the answer comes, None where none is left."""
        for instance, call in self._program:
            place = self._chance.randrange(len(self._nodes))
            if instance.home is not None and call.name not in _READS:
                place = instance.home
                if call.dirty and call.name != "heartbeat":
                    # As clients set it, and the server for who has no client.
                    call = call._replace(dirty=int(time.time() * 1000))
            self._instance, self._call = instance, call
            self._node = place if self._is_last is None else self._is_last
            self._sent = time.monotonic()
            is_cut_off = self._is_last is None and self._chance.random() < _CUT_OFF
            try:
                connection = socket.create_connection(self._nodes[place])
            except ConnectionError:
                continue  # nobody is there who could have done it
            try:
                connection.sendall(request(self._instance, self._call))
            except ConnectionError:
                is_cut_off = True
            if is_cut_off:
                connection.close()
                self._note(NEVER, None)
                continue
            self._connection, self._reply = connection, b""
            return connection
        return None

    def read(self) -> bool:
        """Take what came of the answer; whether that was all."""
        try:
            data = self._connection.recv(1 << 20)
        except ConnectionError:
            data = b""
        self._reply += data
        if data:
            return False
        self._connection.close()
        answer = read_answer(self._instance, self._call, self._reply)
        self._note(NEVER if answer is None else time.monotonic(), answer)
        return True

    def _note(self, ended: float, answer: Any) -> None:
        is_read = self._call.name in _READS
        if answer is None and is_read:
            return  # it says nothing
        operation = Operation(
            self._number,
            self._sent,
            ended,
            self._call,
            answer,
            self._node,
            self._is_last is not None,
        )
        self.history.operations[self._instance].append(operation)


_READS = ("get", "list", "show")


def _play(clients: Iterable[_Client], selector: selectors.BaseSelector) -> None:
    """Have all of them make their calls."""
    order = itertools.count()
    due = [(client.think(), next(order), client) for client in clients]
    heapq.heapify(due)
    while True:
        now = time.monotonic()
        while due and due[0][0] <= now:
            client = heapq.heappop(due)[2]
            connection = client.next()
            if connection is not None:
                selector.register(connection, selectors.EVENT_READ, client)
        if not due and not selector.get_map():
            return
        patience = max(0.0, due[0][0] - time.monotonic()) if due else HANG_SECS
        ready = selector.select(patience)
        assert ready or due, f"no answer for {HANG_SECS} s"
        for key, _ in ready:
            if key.data.read():
                selector.unregister(key.fileobj)
                heapq.heappush(due, (key.data.think(), next(order), key.data))


def search(nodes: Sequence[Address], seeds: Iterable[int], run: str = "") -> list[str]:
    """Play a history for each seed; those that nothing explains."""
    player = Player(nodes)
    found = (player.play(seed, run).unexplained() for seed in seeds)
    return [wrong for wrong in found if wrong is not None]


class Played(NamedTuple):
    """What was found in the histories that one fault befell."""

    fault: str
    histories: int
    cut_off: int
    operations: int
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"{self.fault}: {self.histories} histories, {self.operations} calls, "
            f"{self.cut_off} without an answer, {len(self.wrong)} wrong"
        )


def search_over_nodes(
    nodes: Registry,
    seeds: Sequence[int],
    fault: str | None,
    run: str = "",
    *,
    at_once: int = 16,
    thinks_secs: float | None = None,
) -> Played:
    """Play a history for each seed over nodes on one Redis, some at a time, amid a fault.

    One that Redis breaks off is named so in what is found. Where there is none, clients do not
    think, so that nothing has time to be told. Where nodes accept writes while Redis is away, they
    think for longer: a node waits before it gives it up. Every node and worker must agree in the
    end, and an order explain what was answered.
    """
    addresses = [("127.0.0.1", server.port) for server in nodes.servers]
    lasts_secs = _GIVEN_UP_SECS if nodes.accepting else 0.2
    if thinks_secs is None:
        thinks_secs = 0.8 if nodes.accepting else 0.3
    player = Player(
        addresses,
        clients=6,
        calls=15 if nodes.accepting else 10,
        thinks_secs=0 if fault is None else thinks_secs,
        namespaces=nodes.namespaces,
        accepting=nodes.accepting,
    )
    played: list[History] = []
    befell = fault or "none"
    for start in range(0, len(seeds), at_once):
        chance = random.Random(f"{seeds[start]} {fault}")
        with ThreadPoolExecutor(1) as pool:
            playing = pool.submit(player.play_all, seeds[start : start + at_once], run)
            time.sleep(chance.random() * 3 * thinks_secs)
            if fault is not None:
                try:
                    with nodes.befallen(fault, chance):
                        time.sleep(lasts_secs + chance.random() * 8 * thinks_secs)
                except redis.RedisError as error:
                    # Redis did not do as it was told. What was answered meanwhile is judged, too.
                    befell = f"{fault}, broken off"
                    print(f"{befell}: {error!r}", file=sys.stderr, flush=True)
            histories = playing.result()
        nodes.heal()
        player.agree(histories, reads=4)
        played += histories
    operations = [each for history in played for one in history.operations.values() for each in one]
    found = (history.unexplained(len(addresses)) for history in played)
    return Played(
        befell,
        len(played),
        sum(each.is_cut_off for each in operations),
        len(operations),
        [wrong for wrong in found if wrong is not None],
    )
