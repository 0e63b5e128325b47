"""What clients of several workers or nodes saw, searched for an order that explains it.

Clients call and read a few instances at once, each call on a connection of its own, so that it is
any worker's, or any node's. A *history* is what they called and were answered, with the instants at
which each call was sent and its answer had come. It is right if some order of its calls, in which
none comes after one that began when it had ended, gives these answers on a small model (it is
*linearizable*): whatever was acknowledged is there, in some order. The search is Wing's and Gong's
with Lowe's memory of what was tried; instances are independent, and each is searched for itself.

A call that was cut off has no answer: it may have been done, at any time since, or never. So it is
with one that was answered 503: the store may not have said whether it wrote it.

**Nodes on one Redis** promise less of their reads, and the same of their writes. What is true is in
Redis, in one order. A node shows what was true at some instant: never earlier than what it showed
or acknowledged before, and never later than now. It refuses a call by what it shows, and writes
only where that is still true. In the end, when every fault is healed, all nodes show the truth.
How far a node may be behind is not judged here, for that is a matter of speed.

**Nodes that accept writes while Redis is away** agree in the end too. Then there are two kinds of
instances. Of one that one client alone writes, always at the same node, the same holds as above: no
other changed it. Its timestamps grow, as those of clients do: the write that was on its way when
Redis stopped answering is older than all that come after it, and may be done late. A *contested*
instance is registered everywhere, each time as another state with a timestamp that no other has,
and in every second history cancelled too. Whatever a node showed or acknowledged, it shows nothing
older by the timestamps afterwards; in the end all show what is at least as new as all that was
acknowledged anywhere. Only a cancel explains that something older is shown, or nothing: one that
comes later, or one of a newer state, for a cancel has the timestamp of what it removes.

    python -m tests.histories 5000                      # over four workers that it starts
    python -m tests.histories 5000 10.0.0.1:8761 10.0.0.2:8761
    python -m tests.histories 672 --store redis redis+sentinel redis+cluster --workers 2 \\
        --faults all
    python -m tests.histories 352 --store redis --workers 2 --faults all --accepting
"""

from __future__ import annotations

import argparse
import heapq
import itertools
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import redis

from native_api import form
from native_api.transfer import FORMAT, MEDIA_TYPE, VERSION
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
from tests.servers import HANG_SECS, RegistryServer, instance_body, wait_until

Address = tuple[str, int]
_S = TypeVar("_S", bound=Hashable)
_T = TypeVar("_T", bound=Hashable)
_NEVER = float("inf")
_MOST_TRIED = 300_000
# How many calls further an order must have come to be preferred, for each call that was cut off and
# that it supposes done. Where much was cut off, the first finds in moments what the other never
# would; the other is for orders of which much that was cut off is a part.
_PRICES = (8, 2)
# Nobody's lease ends in a history.
_LEASE_SECS = 600


# The search


class Operation(NamedTuple):
    """A call and its answer. Of one that was cut off, ``answer`` is None and it never ended."""

    client: int
    sent: float
    ended: float
    call: Any
    answer: Any
    node: int = 0
    """Which one answered, by its place."""
    is_last: bool = False
    """A read after everything, which must see the truth on each node."""

    @property
    def is_cut_off(self) -> bool:
        return self.answer is None


Model = Callable[[_S, Any], tuple[_S, Any]]
"""The state after a call, and the answer to it."""
Steps = Callable[[_S, Operation], Iterable[_S]]
"""The states after an operation that gives the answer it was given; of a cut off one, after it."""


class UndecidedError(Exception):
    """The search was given up: there are too many orders."""


def explained(operations: Sequence[Operation], start: _S, model: Model[_S]) -> list[int] | None:
    """The places of the operations in an order that explains them; None where there is none."""

    def steps(state: _S, operation: Operation) -> Iterator[_S]:
        after, answer = model(state, operation.call)
        if operation.is_cut_off or answer == operation.answer:
            yield after

    return _search(operations, start, steps)


class Shown(NamedTuple):
    """What is true of an instance, after what was, and up to where each node shows that."""

    states: tuple[Any, ...]
    seen: tuple[int, ...]
    owed: tuple[tuple[int, float, int], ...] = ()
    """What nodes wrote and need not show yet: the node, when it acknowledges it, and its place."""


def explained_over_nodes(
    operations: Sequence[Operation],
    start: _S,
    model: Model[_S],
    nodes: int,
    is_written: Callable[[Any, Any], bool] = lambda call, answer: False,
) -> list[int] | None:
    """As ``explained``, where each node shows what was true lately.

    ``is_written`` says of a call and its answer that it was a write, even if it changed nothing: so
    its node showed the truth. ``UndecidedError``.
    """

    def steps(shown: Shown, operation: Operation) -> Iterator[Shown]:
        states, node, call = shown.states, operation.node, operation.call
        last = len(states) - 1
        after, answer = model(states[last], call)
        if after != states[last]:
            longer = shown._replace(states=(*states, after))
            if operation.is_cut_off:
                yield _shortened(longer)
            elif answer == operation.answer:
                # Others may see it before its own node, which must show it once it says so.
                owed = (*shown.owed, (node, operation.ended, last + 1))
                yield _seen(longer._replace(owed=owed), node, last)
        if operation.is_cut_off:
            return  # what changed nothing, or was never done, is left out
        acknowledged = (
            place for by, ended, place in shown.owed if by == node and ended < operation.sent
        )
        first = max(acknowledged, default=shown.seen[node])
        if operation.is_last or is_written(call, operation.answer):
            first = last
        for place in range(first, last + 1):
            after, answer = model(states[place], call)
            if after == states[place] and answer == operation.answer:
                # Whoever is further behind may still see all that others may.
                yield _seen(shown, node, place)
                return

    for price in _PRICES:
        with suppress(UndecidedError):
            shown = Shown((start,), (0,) * nodes)
            return _search(operations, shown, steps, price=price, most=_MOST_TRIED)
    raise UndecidedError


def _seen(shown: Shown, node: int, place: int) -> Shown:
    seen = (*shown.seen[:node], place, *shown.seen[node + 1 :])
    owed = tuple(each for each in shown.owed if each[0] != node or each[2] > place)
    return _shortened(shown._replace(seen=seen, owed=owed))


def _shortened(shown: Shown) -> Shown:
    """Without what no node shows any more."""
    gone = min(shown.seen)
    if not gone:
        return shown
    seen = tuple(place - gone for place in shown.seen)
    owed = tuple((node, ended, place - gone) for node, ended, place in shown.owed)
    return Shown(shown.states[gone:], seen, owed)


def _search(
    operations: Sequence[Operation],
    start: _T,
    steps: Steps[_T],
    *,
    price: int = _PRICES[0],
    most: float = _NEVER,
) -> list[int] | None:
    order = sorted(range(len(operations)), key=lambda place: operations[place].sent)
    done_when = sum(
        1 << rank for rank, place in enumerate(order) if not operations[place].is_cut_off
    )
    tried: set[tuple[int, _T]] = set()
    # What surely was done is tried first, and of that what ended first.
    by_end = sorted(range(len(order)), key=lambda rank: operations[order[rank]].ended)
    # Each: how preferred, what was taken (by rank), the state then, the path to it as a linked
    # list. Of two that came as far, the one that supposes less of what was cut off is tried first.
    number = itertools.count()
    pending: list[tuple[int, int, int, _T, Any]] = [(0, next(number), 0, start, None)]
    while pending:
        preferred, _, taken, state, path = heapq.heappop(pending)
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
        if len(tried) > most:
            raise UndecidedError
        for rank in reversed(by_end):
            operation = operations[order[rank]]
            if taken >> rank & 1 or operation.sent > first_end:
                continue
            for after in steps(state, operation):
                key = (taken | 1 << rank, after)
                if key not in tried:
                    tried.add(key)
                    more = preferred + (price if operation.is_cut_off else -1)
                    heapq.heappush(pending, (more, -next(number), *key, (path, rank)))
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
    namespace: str = ""
    """Empty where nobody says which: it is the default one."""
    home: int | None = None
    """The place of the only node that it is written at; None: at any."""
    writer: int | None = None
    """The only client that writes it; None: all do."""
    contested: tuple[str, ...] = ()
    """The calls of one that is registered at all nodes, as another state each time."""


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
            leaseInfo={"renewalIntervalInSecs": 30, "durationInSecs": _LEASE_SECS},
            lastDirtyTimestamp=str(call.dirty),
        )
    )
    query = "&".join(f"{name}={value}" for name, value in call.metadata or ())
    told = {"appName": app, "id": identity, "action": "Register"}
    batch = {"replicationList": [told | {"instanceInfo": registration["instance"]}]}
    header = {"kind": "header", "format": FORMAT, "version": VERSION}
    header["namespace"] = instance.namespace or "default"
    exported = {"app": app, "id": identity, "host_name": "h", "ip_addr": "10.0.0.1"}
    exported |= {"status": call.status, "last_dirty_ms": call.dirty}
    exported |= {"duration_secs": _LEASE_SECS}
    exported |= {"metadata": dict(call.metadata or ())}
    line = {"kind": "instance", "source": "eureka", "instance": exported}
    posted = {"service_name": app.lower(), "ttl": _LEASE_SECS}
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
    if instance.namespace:
        fields["Authorization"] = f"Bearer {instance.namespace}"
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
    if status == 503:
        return None  # the store may have written it all the same
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


def is_written(call: Call, answer: Any) -> bool:
    """Whether a call was surely written, though it may have changed nothing."""
    if isinstance(answer, tuple):
        return call.name == "patch" or (call.name == "put" and answer[0] == "native")
    return (call.name, answer) in _WRITTEN


_WRITTEN = {("register", 204), ("peer register", 200), ("post", 201), ("metadata", 200)}
_WRITTEN |= {("import", 1)}


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
                connection.sendall(_request(self._instance, self._call))
            except ConnectionError:
                is_cut_off = True
            if is_cut_off:
                connection.close()
                self._note(_NEVER, None)
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
        answer = _answer(self._instance, self._call, self._reply)
        self._note(_NEVER if answer is None else time.monotonic(), answer)
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


def _over_nodes(options: argparse.Namespace, store: str, run: str) -> list[str]:
    """As the command line asks for on one of the stores; what is wrong."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        nodes: Nodes | SentinelNodes | ClusterNodes
        if store == "redis":
            nodes = Nodes(
                Path(folder),
                options.nodes,
                workers=options.workers,
                accepting=options.accepting,
                env=FORGETTING,
                seed=options.seed,
            )
        else:
            led = SentinelNodes if store == "redis+sentinel" else ClusterNodes
            nodes = led(
                Path(folder),
                options.nodes,
                workers=options.workers,
                accepting=options.accepting,
                env=FORGETTING,
            )
        opened.enter_context(nodes)
        return in_turn(
            options,
            nodes.servers,
            _FAULTS[store],
            lambda seeds, fault: search_over_nodes(nodes, seeds, fault, run),
            options.keep and options.keep / store,
        )


# The command line, also that of tests/leases.py


class Found(Protocol):
    """What a batch of seeds found, told as one line."""

    @property
    def wrong(self) -> list[str]: ...


def parser_of(module: str, doc: str | None, faults: Iterable[str]) -> argparse.ArgumentParser:
    """What is the same in each search over nodes; ``in_turn`` does as is asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=3, help="on one Redis, each a server")
    parser.add_argument(
        "--faults",
        nargs="+",
        default=[],
        choices=["all", *faults],
        help="of nodes on a Redis; all is each of its store's in turn",
    )
    parser.add_argument("--keep", type=Path, help="a folder for what is wrong, and the logs then")
    return parser


def in_turn(
    options: argparse.Namespace,
    servers: Sequence[RegistryServer],
    known: Iterable[str],
    play: Callable[[Sequence[int], str | None], Found],
    keep: Path | None,
) -> list[str]:
    """Play some seeds at a time, each time amid another fault; what is wrong, with its fault."""
    faults: list[str | None] = list(known) if options.faults == ["all"] else [*options.faults]
    faults = faults or [None]
    wrong = []
    for place, start in enumerate(range(0, options.count, _AT_ONCE)):
        seeds = range(options.seed + start, options.seed + min(start + _AT_ONCE, options.count))
        fault = faults[place % len(faults)]
        try:
            found = play(seeds, fault)
            print(found, flush=True)
            batch = found.wrong
        except AssertionError as error:  # they never agreed, or one answered as no server may
            batch = [f"seeds {seeds[0]} to {seeds[-1]}: {error}"]
            print(f"{fault or 'none'}: {batch[0]}", flush=True)
        wrong += [f"{fault or 'none'}, {each}" for each in batch]
        if batch and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for server in servers:
                name = f"{server.folder.name}-{seeds[0]}.log"
                (keep / name).write_text(server.log())
            (keep / f"wrong-{seeds[0]}").write_text("\n\n".join(batch))
    return wrong


def told(wrong: Sequence[str], verdict: str) -> int:
    """Print some of what is wrong, and the verdict on all; the exit code."""
    print("\n\n".join(wrong[:10]))
    print(verdict)
    return min(1, len(wrong))


_AT_ONCE = 16
# A node waits three seconds for a Redis that hangs before it takes it for away.
_GIVEN_UP_SECS = 3.5
_FAULTS: Mapping[str, Iterable[str]] = {
    "lmdb": (),
    "redis": FAULTS,
    "redis+sentinel": FAILOVERS,
    "redis+cluster": OF_A_CLUSTER,
}


def main(arguments: Sequence[str]) -> int:
    """Search as many histories as asked for, and print what is wrong; 1 where anything is."""
    of_any = (fault for each in _FAULTS.values() for fault in each)
    parser = parser_of("tests.histories", __doc__, of_any)
    parser.add_argument("node", nargs="*", help="HOST:PORT of each node of one registry")
    parser.add_argument("--workers", type=int, default=4, help="of each server that it starts")
    parser.add_argument("--kill-every", type=float, metavar="SECS", help="one of its workers")
    parser.add_argument(
        "--store", nargs="+", choices=_FAULTS, default=["lmdb"], help="as many histories on each"
    )
    parser.add_argument(
        "--accepting", action="store_true", help="nodes accept writes while Redis is away"
    )
    options = parser.parse_args(arguments)
    for store in options.store:
        if not {"all", *_FAULTS[store]}.issuperset(options.faults):
            parser.error(f"on {store} there are other faults")
    if "lmdb" in options.store and len(options.store) > 1:
        parser.error("nodes share no lmdb")
    seeds = range(options.seed, options.seed + options.count)
    run = format(time.time_ns(), "x")
    if options.node:
        parted = [node.rpartition(":") for node in options.node]
        wrong = search([(host, int(port)) for host, _, port in parted], seeds, run)
    elif options.store != ["lmdb"]:
        wrong = [wrong for store in options.store for wrong in _over_nodes(options, store, run)]
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            RegistryServer(Path(folder), workers=options.workers) as server,
            _killing(server, options.kill_every),
        ):
            wrong = search([("127.0.0.1", server.port)], seeds, run)
    played = options.count * len(options.store)
    return told(wrong, f"{played} histories, {len(wrong)} of them not to be explained")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
