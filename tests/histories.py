"""What clients of several workers or nodes saw, searched for an order that explains it.

Clients call and read a few instances at once, each call on a connection of its own, so that it is
any worker's, or any node's. A *history* is what they called and were answered, with the instants at
which each call was sent and its answer had come. It is right if some order of its calls, in which
none comes after one that began when it had ended, gives these answers on a small model (it is
*linearizable*): whatever was acknowledged is there, in some order. The search is Wing's and Gong's
with Lowe's memory of what was tried; instances are independent, and each is searched for itself.

A call that was cut off has no answer: it may have been done, at any time since, or never.

    python -m tests.histories 5000                      # over four workers that it starts
    python -m tests.histories 5000 10.0.0.1:8761 10.0.0.2:8761
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from native_api import form
from native_api.transfer import FORMAT, MEDIA_TYPE, VERSION
from tests.servers import RegistryServer, instance_body

Address = tuple[str, int]
_S = TypeVar("_S", bound=Hashable)
_NEVER = float("inf")
_PATIENCE_SECS = 30


# The search


class Operation(NamedTuple):
    """A call and its answer. Of one that was cut off, ``answer`` is None and it never ended."""

    client: int
    sent: float
    ended: float
    call: Any
    answer: Any

    @property
    def is_cut_off(self) -> bool:
        return self.answer is None


Model = Callable[[_S, Any], tuple[_S, Any]]
"""The state after a call, and the answer to it."""


def explained(operations: Sequence[Operation], start: _S, model: Model[_S]) -> list[int] | None:
    """The places of the operations in an order that explains them; None where there is none."""
    order = sorted(range(len(operations)), key=lambda place: operations[place].sent)
    done_when = sum(
        1 << rank for rank, place in enumerate(order) if not operations[place].is_cut_off
    )
    tried: set[tuple[int, _S]] = set()
    # Each: what was taken (by rank), the state then, the path to it as a linked list.
    pending: list[tuple[int, _S, Any]] = [(0, start, None)]
    while pending:
        taken, state, path = pending.pop()
        if taken & done_when == done_when:
            found = []
            while path is not None:
                path, rank = path
                found.append(order[rank])
            return found[::-1]
        first_end = min(
            (operations[place].ended for rank, place in enumerate(order) if not taken >> rank & 1),
            default=_NEVER,
        )
        for rank in reversed(range(len(order))):
            operation = operations[order[rank]]
            if taken >> rank & 1 or operation.sent > first_end:
                continue
            after, answer = model(state, operation.call)
            if not operation.is_cut_off and answer != operation.answer:
                continue
            key = (taken | 1 << rank, after)
            if key not in tried:
                tried.add(key)
                pending.append((*key, (path, rank)))
    return None


# The model: one instance of which both APIs speak.

_SERVING = ("UP", "OUT_OF_SERVICE")
Pairs = frozenset[tuple[str, str]]


class Listed(NamedTuple):
    """What is listed of it. ``word`` is a status that only the native API knows, shown for UP."""

    source: str
    status: str
    metadata: Pairs
    overridden: str = "UNKNOWN"
    dirty: int = 0
    word: str | None = None
    tags: tuple[str, ...] = ()


class State(NamedTuple):
    """What is listed, if anything, and what an operator said."""

    listed: Listed | None = None
    override: str | None = None


class Call(NamedTuple):
    """A call of one of either API's operations on one instance."""

    name: str
    status: str | None = None
    metadata: Pairs | None = None
    tags: tuple[str, ...] | None = None
    dirty: int = 0


def registry_model(state: State, call: Call) -> tuple[State, Any]:
    """The registry's rules for one instance, as a client sees them."""
    return _MODEL[call.name](state, call)


def _effective(
    reported: str, override: str | None, leased: Listed | None, *, is_told: bool = False
) -> str:
    if reported not in _SERVING:
        return reported
    if override is not None:
        return override
    if not is_told and leased is not None and leased.status in _SERVING:
        return leased.status
    return reported


def _listed_as(state: State, told: Listed, *, is_told: bool) -> State:
    """As a registration lists it, below an override; a peer and the native API are believed."""
    override = state.override
    if override is None and told.overridden != "UNKNOWN":
        override = told.overridden
    status = _effective(told.status, override, state.listed, is_told=is_told)
    return State(told._replace(status=status, overridden=override or told.overridden), override)


def _register(state: State, call: Call, *, is_told: bool = False) -> tuple[State, Any]:
    listed = state.listed
    if listed is not None and listed.source != "eureka":
        return state, 409
    told = Listed("eureka", call.status or "", call.metadata or frozenset(), dirty=call.dirty)
    if listed is not None and listed.dirty > call.dirty:
        told = listed
    return _listed_as(state, told, is_told=is_told), 204


def _peer_register(state: State, call: Call) -> tuple[State, Any]:
    after, answer = _register(state, call, is_told=True)
    return after, {204: 200, 409: 500}[answer]


def _renewed(state: State, source: str, gone: int) -> tuple[State, int]:
    listed = state.listed
    if listed is None or listed.source != source:
        return state, gone
    status = listed.status
    if status in _SERVING and state.override is not None:
        status = state.override
    if status == "UNKNOWN":
        return state, gone
    return state._replace(listed=listed._replace(status=status)), 200


def _heartbeat(state: State, call: Call) -> tuple[State, Any]:
    after, answer = _renewed(state, "eureka", 404)
    if answer == 200 and after.listed is not None and call.dirty > after.listed.dirty:
        return after, 404
    return after, answer


def _set_status(state: State, call: Call) -> tuple[State, Any]:
    listed, status = state.listed, call.status
    if listed is None:
        return state, 404
    if listed.status == status or status is None:
        return state, 200
    return State(listed._replace(status=status, overridden=status), status), 200


def _remove_status(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 404
    if state.override is None:
        return state, 200
    return State(listed._replace(status=call.status or "UNKNOWN", overridden="UNKNOWN")), 200


def _merge(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 404
    merged = frozenset((dict(listed.metadata) | dict(call.metadata or ())).items())
    return _listed_as(state, listed._replace(metadata=merged), is_told=False), 200


def _cancel(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is None:
        return State(), 404
    return (State(), 200) if state.listed.source == "eureka" else (state, 404)


def _as_told(word: str) -> tuple[str, str | None]:
    known = ("UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN")
    return (word, None) if word in known else ("UP", word)


def _post(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is not None and state.listed.source != "native":
        return state, 409
    status, word = _as_told(call.status or "UP")
    told = Listed("native", status, call.metadata or frozenset(), word=word, tags=call.tags or ())
    return _listed_as(state, told, is_told=True), 201


def _put(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 410
    if listed.source != "native":
        if call.status is None or call.metadata is not None or call.tags is not None:
            return state, 409
        after, _ = _set_status(state, call)
        return after, _shown(after.listed)
    told = listed._replace(
        metadata=listed.metadata if call.metadata is None else call.metadata,
        tags=listed.tags if call.tags is None else call.tags,
        overridden="UNKNOWN",
    )
    if call.status is not None:
        status, word = _as_told(call.status)
        state, told = State(listed), told._replace(status=status, word=word)
    after = _listed_as(state, told, is_told=True)
    return after, _shown(after.listed)


def _beat(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is not None and state.listed.source != "native":
        return state, 409
    return _renewed(state, "native", 410)


def _delete(state: State, call: Call) -> tuple[State, Any]:
    return (state, 410) if state.listed is None else (State(), 200)


def _override(state: State, call: Call) -> tuple[State, Any]:
    after, _ = _set_status(state, call)
    return after, _shown(after.listed)


def _lift(state: State, call: Call) -> tuple[State, Any]:
    after, _ = _remove_status(state, call)
    return after, _shown(after.listed)


def _patch(state: State, call: Call) -> tuple[State, Any]:
    """As ``_merge`` for what Eureka clients registered, and as ``_put`` for the others."""
    listed = state.listed
    if listed is None:
        return state, 410
    merged = frozenset((dict(listed.metadata) | dict(call.metadata or ())).items())
    if listed.source == "native":
        return _put(state, call._replace(metadata=merged))
    after = _listed_as(state, listed._replace(metadata=merged), is_told=False)
    return after, _shown(after.listed)


def _import(state: State, call: Call) -> tuple[State, Any]:
    """As a peer's registration, where nothing as new is listed; native ones are new to it."""
    listed = state.listed
    if listed is not None and (listed.source == "native" or listed.dirty >= call.dirty):
        return state, 0
    told = Listed("eureka", call.status or "", call.metadata or frozenset(), dirty=call.dirty)
    return _listed_as(state, told, is_told=True), 1


def _shown(listed: Listed | None) -> Any:
    """As the native API shows it."""
    if listed is None:
        return 410
    shown = listed.word if listed.word is not None and listed.status == "UP" else listed.status
    return (listed.source, shown, listed.metadata, listed.tags)


def _told(listed: Listed | None) -> Any:
    """As a Eureka client reads it."""
    return 404 if listed is None else (listed.status, listed.overridden, listed.metadata)


_MODEL: dict[str, Callable[[State, Call], tuple[State, Any]]] = {
    "register": _register,
    "peer register": _peer_register,
    "heartbeat": _heartbeat,
    "set status": _set_status,
    "remove status": _remove_status,
    "metadata": _merge,
    "cancel": _cancel,
    "post": _post,
    "put": _put,
    "beat": _beat,
    "delete": _delete,
    "override": _override,
    "lift": _lift,
    "patch": _patch,
    "import": _import,
    "get": lambda state, call: (state, _told(state.listed)),
    "list": lambda state, call: (state, _told(state.listed)),
    "show": lambda state, call: (state, _shown(state.listed)),
}


# The calls on the wire


class Instance(NamedTuple):
    """Where an instance is found. ``endpoint`` is that of the one which native clients register."""

    app: str
    id: str
    endpoint: str | None = None


_JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def _wire(instance: Instance, call: Call) -> tuple[str, str, Any]:
    """Method, path and document of a call."""
    app, identity = instance.app, instance.id
    eureka, native = f"/eureka/apps/{app}/{identity}", f"/api/v1/instances/{identity}"
    fields = {
        name: value
        for name, value in (
            ("status", call.status),
            ("metadata", None if call.metadata is None else dict(call.metadata)),
            ("tags", call.tags),
        )
        if value is not None
    }
    registration = json.loads(
        instance_body(
            app,
            identity,
            status=call.status,
            metadata=dict(call.metadata or ()),
            lastDirtyTimestamp=str(call.dirty),
        )
    )
    query = "&".join(f"{name}={value}" for name, value in call.metadata or ())
    told = {"appName": app, "id": identity, "action": "Register"}
    batch = {"replicationList": [told | {"instanceInfo": registration["instance"]}]}
    header = {"kind": "header", "format": FORMAT, "version": VERSION, "namespace": "default"}
    exported = {"app": app, "id": identity, "host_name": "h", "ip_addr": "10.0.0.1"}
    exported |= {"status": call.status, "last_dirty_ms": call.dirty}
    exported |= {"metadata": dict(call.metadata or ())}
    line = {"kind": "instance", "source": "eureka", "instance": exported}
    posted = {"service_name": app.lower(), "ttl": 600}
    posted |= {"endpoint": {"type": "http", "value": instance.endpoint}}
    return {
        "register": ("POST", f"/eureka/apps/{app}", registration),
        "peer register": ("POST", "/eureka/peerreplication/batch/", batch),
        "heartbeat": ("PUT", f"{eureka}?lastDirtyTimestamp={call.dirty}", None),
        "set status": ("PUT", f"{eureka}/status?value={call.status}", None),
        "remove status": ("DELETE", f"{eureka}/status?value={call.status}", None),
        "metadata": ("PUT", f"{eureka}/metadata?{query}", None),
        "cancel": ("DELETE", eureka, None),
        "post": ("POST", "/api/v1/instances", posted | fields),
        "put": ("PUT", native, fields),
        "beat": ("PUT", f"{native}/heartbeat", None),
        "delete": ("DELETE", native, None),
        "override": ("PUT", f"{native}/override", {"status": call.status}),
        "lift": ("DELETE", f"{native}/override?status={call.status}", None),
        "import": ("POST", "/api/v1/import", [header, line]),
        "patch": ("PATCH", f"{native}/metadata", fields.get("metadata")),
        "get": ("GET", eureka, None),
        "list": ("GET", "/eureka/apps/" + app, None),
        "show": ("GET", native, None),
    }[call.name]


def _request(instance: Instance, call: Call) -> bytes:
    method, path, document = _wire(instance, call)
    lines = document if isinstance(document, list) else [] if document is None else [document]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    fields = _JSON | {"Host": "registry", "Connection": "close", "Content-Length": str(len(body))}
    if call.name == "import":
        fields["Content-Type"] = MEDIA_TYPE
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return head.encode() + b"\r\n" + body


def _answer(instance: Instance, call: Call, reply: bytes) -> Any:
    """What the model answers, as the server spelled it; None where it did not come whole."""
    head, _, body = reply.partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
        document = json.loads(body) if body else None
    except (ValueError, IndexError):
        return None
    if status >= 500:
        raise AssertionError(f"{call} was answered {head.decode()}\n{body.decode()}")
    if call.name == "peer register":
        return document["responseList"][0]["statusCode"]
    if call.name == "import":
        return document["taken"]
    if call.name == "list":
        listed = [] if status == 404 else document["application"]["instance"]
        found = [each for each in listed if each["instanceId"] == instance.id]
        return _read_eureka(found[0]) if found else 404
    if call.name == "get" and status == 200:
        return _read_eureka(document["instance"])
    if call.name in ("show", "put", "override", "lift", "patch") and status == 200:
        metadata = frozenset(document["metadata"].items())
        return (document["source"], document["status"], metadata, tuple(document["tags"]))
    return status


def _read_eureka(shown: Mapping[str, Any]) -> Any:
    metadata = {k: v for k, v in shown["metadata"].items() if k not in ("tags", "@class")}
    return shown["status"], shown["overriddenStatus"], frozenset(metadata.items())


# What is played


@dataclass
class History:
    """One that was played: of each instance what was called and answered."""

    seed: int
    operations: dict[Instance, list[Operation]] = field(default_factory=dict)

    def unexplained(self) -> str | None:
        """What no order explains, to be read by people; None where all of it is right."""
        for instance, operations in self.operations.items():
            if explained(operations, State(), registry_model) is not None:
                continue
            begin = min(operation.sent for operation in operations)
            lines = [f"seed {self.seed}, {instance.app}/{instance.id}: no order explains"]
            for each in sorted(operations, key=lambda each: each.sent):
                sent, ended = (each.sent - begin) * 1000, (each.ended - begin) * 1000
                call = {k: v for k, v in each.call._asdict().items() if v not in (None, 0)}
                lines.append(f"{sent:9.3f} {ended:9.3f} ms  {each.client}  {call} -> {each.answer}")
            return "\n".join(lines)
        return None


_STATUSES = ("UP", "UP", "DOWN", "STARTING", "OUT_OF_SERVICE")
_OPERATIONS = ("override", "lift", "patch", "delete")
_ALIKE = ("metadata", "set status", "remove status", "heartbeat", "get", "list", "put", "show")
_ALIKE += _OPERATIONS
_OF_EUREKA = ("register", "peer register", "cancel", "import", "register", *_ALIKE)
_OF_NATIVE = ("post", "beat", "delete", "put", "post", "register", *_ALIKE)
_CUT_OFF = 0.02


class Player:
    """Plays histories against a server; the same calls for the same seed, in what order ever."""

    def __init__(self, nodes: Sequence[Address], *, clients: int = 4, calls: int = 10) -> None:
        """``nodes`` are those of one registry; each call goes to any of them."""
        self._nodes = nodes
        self._clients = clients
        self._calls = calls

    def play(self, seed: int, run: str = "") -> History:
        """One history on instances of its own; ``run`` tells them from those of another run."""
        chance = random.Random(seed)
        service = f"h{seed}x{run}"
        endpoint = "10.0.0.1:80"
        native = form.instance_id(service, form.parsed_endpoint("http", endpoint))
        instances = [
            # An override is that of an id, in whichever application.
            Instance(service.upper(), f"e{service}"),
            Instance(service.upper(), native, endpoint),
        ]
        programs = [
            [
                _any_call(chance, chance.choice(instances), f"{client}.{number}")
                for number in range(self._calls)
            ]
            for client in range(self._clients)
        ]
        history = History(seed, {instance: [] for instance in instances})
        with selectors.DefaultSelector() as selector:
            clients = [
                _Client(number, program, self._nodes, random.Random(f"{seed} {number}"), selector)
                for number, program in enumerate(programs)
            ]
            for client in clients:
                client.next()
            while selector.get_map():
                ready = selector.select(_PATIENCE_SECS)
                assert ready, f"seed {seed}: no answer for {_PATIENCE_SECS} s"
                for key, _ in ready:
                    key.data.read()
        for client in clients:
            for instance, operation in client.operations:
                history.operations[instance].append(operation)
        return history


def _any_call(chance: random.Random, instance: Instance, value: str) -> tuple[Instance, Call]:
    name = chance.choice(_OF_EUREKA if instance.endpoint is None else _OF_NATIVE)
    status = chance.choice(_STATUSES)
    metadata = frozenset({(chance.choice("abc"), value)})
    dirty = 1_000 + chance.randrange(3)
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
        number: int,
        program: Iterable[tuple[Instance, Call]],
        nodes: Sequence[Address],
        chance: random.Random,
        selector: selectors.BaseSelector,
    ) -> None:
        self.operations: list[tuple[Instance, Operation]] = []
        self._number = number
        self._program = iter(program)
        self._nodes = nodes
        self._chance = chance
        self._selector = selector

    def next(self) -> None:
        for instance, call in self._program:
            self._instance, self._call = instance, call
            connection = socket.create_connection(self._chance.choice(self._nodes))
            self._sent = time.monotonic()
            is_cut_off = self._chance.random() < _CUT_OFF
            try:
                connection.sendall(_request(self._instance, self._call))
            except ConnectionError:
                is_cut_off = True
            if is_cut_off:
                connection.close()
                self._note(_NEVER, None)
                continue
            self._connection, self._reply = connection, b""
            self._selector.register(connection, selectors.EVENT_READ, self)
            return

    def read(self) -> None:
        try:
            data = self._connection.recv(1 << 20)
        except ConnectionError:
            data = b""
        self._reply += data
        if data:
            return
        self._selector.unregister(self._connection)
        self._connection.close()
        answer = _answer(self._instance, self._call, self._reply)
        self._note(_NEVER if answer is None else time.monotonic(), answer)
        self.next()

    def _note(self, ended: float, answer: Any) -> None:
        operation = Operation(self._number, self._sent, ended, self._call, answer)
        self.operations.append((self._instance, operation))


def search(nodes: Sequence[Address], seeds: Iterable[int], run: str = "") -> list[str]:
    """Play a history for each seed; those that nothing explains."""
    player = Player(nodes)
    found = (player.play(seed, run).unexplained() for seed in seeds)
    return [wrong for wrong in found if wrong is not None]


@contextmanager
def _killing(server: RegistryServer, every_secs: float | None) -> Iterator[None]:
    """Kill one of the workers now and then; the main process starts another."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(every_secs):
            with suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(server.worker_pids()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    if every_secs is not None:
        killer.start()
    yield
    ended.set()
    if every_secs is not None:
        killer.join()


def main(arguments: Sequence[str]) -> int:
    """Search as many histories as asked for, and print what is wrong; 1 where anything is."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("node", nargs="*", help="HOST:PORT of each node of one registry")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=4, help="of the server that it starts")
    parser.add_argument("--kill-every", type=float, metavar="SECS", help="one of its workers")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.count)
    run = format(time.time_ns(), "x")
    if options.node:
        parted = [node.rpartition(":") for node in options.node]
        wrong = search([(host, int(port)) for host, _, port in parted], seeds, run)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            RegistryServer(Path(folder), workers=options.workers) as server,
            _killing(server, options.kill_every),
        ):
            wrong = search([("127.0.0.1", server.port)], seeds, run)
    print("\n\n".join(wrong[:10]))
    print(f"{options.count} histories, {len(wrong)} of them not to be explained")
    return min(1, len(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
