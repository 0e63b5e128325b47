"""Whether an instance that is renewed in time stays listed, at whichever node it renews.

Each instance has a client of its own that registers it and renews it at any node, sometimes at the
very end of its lease and sometimes too late, and looks between at any node whether it is listed.
Meanwhile nodes evict as fast as they can, and faults befall them. What was seen is judged by the
instants at which calls were sent and answered, so not by how fast anything was:

* A registration or renewal that was acknowledged gives a whole lease from when it was sent.
* A renewal that comes after the end gives nothing: somebody may be evicting the instance already.
* Until the end, no node that listed the instance once lists it not, or refuses a renewal. Nodes may
  differ in when that is, by as much as they do not know Redis' clock: each by no more than a round
  trip to it has taken. So that is measured in the nodes' own processes, and not supposed.
* In the end nobody renews any more, and all nodes show nobody.

Not so where all processes of a node are killed: that loses the heartbeats of its last 0.2 s. Nor
where a node is cut off for longer than a lease, and Redis forgets meanwhile that there is such a
node: then the others wait for nothing that it has to tell.

    python -m tests.leases 640 --nodes 3 --workers 2 --faults all
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tests.histories.command import in_turn, parser_of, told
from tests.redis_nodes import FAULTS, Nodes
from tests.servers import JSON, ROOT, RegistryServer, instance_body, wait_until

LEASE_SECS = 2
_EVICTING = {
    "EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS": "200",
    "EUREKA_SERVER_RENEWAL_PERCENT_THRESHOLD": "0.01",
}
"""What nodes are told that are to evict all whose leases ended, and soon."""
KEEPING = tuple(
    fault
    for fault in FAULTS
    if "node killed" not in fault
    and fault not in ("redis emptied, node stopped", "redis emptied, node in a black hole")
)
"""The faults that lose no heartbeat."""
_CLOCK_LOOKS = Path(__file__).parent / "clock_looks"
# Instants are told in milliseconds, and an instant of Redis' clock is translated more than once.
_ROUNDED_SECS = 0.01


class EvictingNodes(Nodes):
    """Nodes that evict as fast as they can, and tell how well they know Redis' clock."""

    def __init__(self, folder: Path, count: int = 3, *, workers: int = 2) -> None:
        self._looks = folder / "clock-looks"
        self._dead: set[str] = set()
        told = {"PYTHONPATH": f"{_CLOCK_LOOKS}:{ROOT}", "CLOCK_LOOKS": str(self._looks)}
        super().__init__(folder, count, workers=workers, env=_EVICTING | told)

    def looks(self) -> list[Look]:
        lines = (line.split() for line in self._looks.read_text().splitlines())
        told = [Look(float(since), who, float(secs)) for since, who, secs in lines]
        return [look for look in told if look.who not in self._dead]

    def forget_dead(self) -> None:
        """Have ``looks`` be those of processes that live now, and of later ones."""
        for look in self.looks():
            if not Path("/proc", look.who.partition("-")[0]).exists():
                self._dead.add(look.who)


class Look(NamedTuple):
    """Since when a process knows Redis' clock within so many seconds."""

    since: float
    who: str
    secs: float


def may_differ_secs(looks: Iterable[Look], since: float, until: float) -> float:
    """By how much nodes may differ in when a lease ends that was told and judged in this time.

    Each process that tells of it, hears of it or gives it back to Redis may be wrong by as much as
    the shortest of its looks so far took.
    """
    worst: dict[str, float] = {}
    for look in looks:
        if look.since <= until:
            known = 0.0 if look.since <= since else worst.get(look.who, 0.0)
            worst[look.who] = max(known, look.secs)
    return _ROUNDED_SECS + sum(worst.values())


class Seen(NamedTuple):
    """A call on an instance, or on all. ``listed`` is what its answer says; None: nothing."""

    name: str
    node: int
    sent: float
    ended: float
    listed: bool | None


def gone_too_soon(
    calls: Iterable[Seen], looks: Sequence[Look], lease_secs: float = LEASE_SECS
) -> Seen | None:
    """The first call that found an instance gone before its lease had ended.

    ``calls`` are those of one client, one after the other, and ``looks`` those of all nodes.
    """
    ends, shown_by = None, set[int]()
    for call in calls:
        is_in_time = ends is not None and call.ended < ends - may_differ_secs(
            looks, ends - lease_secs, call.ended
        )
        if call.listed:
            if call.name == "register":
                ends = call.sent + lease_secs
            elif call.name == "renew":
                ends = call.sent + lease_secs if is_in_time else None
            if ends is None:
                shown_by.clear()
            else:
                shown_by.add(call.node)
        elif call.listed is False and call.node in shown_by:
            if is_in_time:
                return call
            ends = None
            shown_by.clear()
    return None


class _Client(threading.Thread):
    """Keeps one instance until it is told to stop."""

    def __init__(
        self, servers: Sequence[RegistryServer], name: str, stopping: threading.Event
    ) -> None:
        super().__init__()
        self.calls: list[Seen] = []
        self.id = name
        self._servers = servers
        self._chance = random.Random(name)
        self._stopping = stopping

    def run(self) -> None:
        self._register()
        while not self._stopping.is_set():
            is_late = self._chance.random() < 0.2
            part = self._chance.uniform(0.9, 1.3) if is_late else self._chance.uniform(0.05, 0.5)
            due = time.monotonic() + part * LEASE_SECS
            while time.monotonic() < due and not self._stopping.is_set():
                self._call("list", "GET", "/apps/LEASES")
                self._stopping.wait(min(0.3 * self._chance.random(), due - time.monotonic()))
            if not self._call("renew", "PUT", f"/apps/LEASES/{self.id}") or is_late:
                self._register()

    def _register(self) -> None:
        lease = {"renewalIntervalInSecs": 1, "durationInSecs": LEASE_SECS}
        body = instance_body("LEASES", self.id, leaseInfo=lease)
        self._call("register", "POST", "/apps/LEASES", body)

    def _call(self, name: str, method: str, path: str, body: str | None = None) -> bool:
        node = self._chance.randrange(len(self._servers))
        sent = time.monotonic()
        try:
            answer = self._servers[node].eureka(method, path, body, JSON)
            listed = {200: True, 204: True, 404: False}.get(answer.status)
            if name == "list" and listed:
                listed = self.id.encode() in answer.body
        except (OSError, HTTPException):
            listed = None
        self.calls.append(Seen(name, node, sent, time.monotonic(), listed))
        return listed is True


class Kept(NamedTuple):
    """What was found while one fault befell the nodes."""

    fault: str
    instances: int
    calls: int
    ended: int
    """How often a lease ended, so that an instance was gone."""
    differ_secs: float
    """By how much nodes may have differed in when a lease ended, at the worst."""
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"{self.fault}: {self.instances} instances, {self.calls} calls, "
            f"{self.ended} leases ended, clocks known within {self.differ_secs:.3f} s, "
            f"{len(self.wrong)} wrong"
        )


def keep(nodes: EvictingNodes, seeds: Sequence[int], fault: str | None) -> Kept:
    """Keep an instance for each seed while a fault befalls the nodes."""
    nodes.forget_dead()
    chance = random.Random(f"{seeds[0]} {fault}")
    stopping = threading.Event()
    run = format(time.time_ns(), "x")
    clients = [_Client(nodes.servers, f"l{seed}x{run}", stopping) for seed in seeds]
    for client in clients:
        client.start()
    try:
        time.sleep(LEASE_SECS * chance.random())
        if fault is not None:
            with nodes.befallen(fault, chance):
                time.sleep(0.2 + 2.4 * chance.random())
        nodes.heal()
        time.sleep(LEASE_SECS * 2)
    finally:
        stopping.set()
        for client in clients:
            client.join()
    wrong, looks = [], nodes.looks()
    for client in clients:
        found = gone_too_soon(client.calls, looks)
        if found is not None:
            lines = [f"{client.id} was gone too soon: {found}", *map(str, client.calls)]
            wrong.append("\n".join(lines))
    wait_until(lambda: not any(server.apps() for server in nodes.servers), "nobody is listed")
    calls = [call for client in clients for call in client.calls]
    began = min(call.sent for call in calls)
    differ_secs = may_differ_secs(looks, began, max(call.ended for call in calls))
    ended = sum(call.name == "renew" and call.listed is False for call in calls)
    return Kept(fault or "none", len(clients), len(calls), ended, differ_secs, wrong)


def main(arguments: Sequence[str]) -> int:
    """Keep as many instances as asked for, and print what is wrong; 1 where anything is."""
    parser = parser_of("tests.leases", __doc__, KEEPING)
    parser.add_argument("--workers", type=int, default=2, help="of each node")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        EvictingNodes(Path(folder), options.nodes, workers=options.workers) as nodes,
    ):
        wrong = in_turn(
            options,
            nodes.servers,
            KEEPING,
            lambda seeds, fault: keep(nodes, seeds, fault),
            options.keep,
        )
    return told(wrong, f"{options.count} instances, {len(wrong)} of them gone too soon")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
