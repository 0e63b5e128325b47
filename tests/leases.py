"""Whether an instance that is renewed in time stays listed, at whichever node it renews.

Each instance has a client of its own that registers it and renews it at any node, sometimes at the
very end of its lease and sometimes too late, and looks between at any node whether it is listed.
Meanwhile nodes evict as fast as they can, and faults befall them. What was seen is judged by the
instants at which calls were sent and answered, so not by how fast anything was:

* A registration or renewal that was acknowledged gives a whole lease from when it was sent.
* A renewal that comes after the end gives nothing: somebody may be evicting the instance already.
* Until the end, no node that listed the instance once lists it not, or refuses a renewal.
* In the end nobody renews any more, and all nodes show nobody.

Not so where all processes of a node are killed: that loses the heartbeats of its last 0.2 s. Nor
where a node is cut off for longer than a lease, and Redis forgets meanwhile that there is such a
node: then the others wait for nothing that it has to tell.

    python -m tests.leases 640 --nodes 3 --workers 2 --faults all
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tests.redis_nodes import FAULTS, Nodes
from tests.servers import JSON, RegistryServer, instance_body, wait_until

LEASE_SECS = 2
EVICTING = {
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
_AT_ONCE = 16
# By how much nodes may differ in when a lease ends: clocks are compared by round trips.
_SLACK_SECS = 0.5


class Seen(NamedTuple):
    """A call on an instance, or on all. ``listed`` is what its answer says; None: nothing."""

    name: str
    node: int
    sent: float
    ended: float
    listed: bool | None


def gone_too_soon(calls: Iterable[Seen], lease_secs: float = LEASE_SECS) -> Seen | None:
    """The first call that found an instance gone before its lease had ended.

    ``calls`` are those of one client, one after the other.
    """
    ends, shown_by = None, set[int]()
    for call in calls:
        is_in_time = ends is not None and call.ended < ends - _SLACK_SECS
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
    wrong: list[str]


def keep(nodes: Nodes, seeds: Sequence[int], fault: str | None) -> Kept:
    """Keep an instance for each seed while a fault befalls nodes that are ``EVICTING``."""
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
    wrong = []
    for client in clients:
        found = gone_too_soon(client.calls)
        if found is not None:
            lines = [f"{client.id} was gone too soon: {found}", *map(str, client.calls)]
            wrong.append("\n".join(lines))
    wait_until(lambda: not any(server.apps() for server in nodes.servers), "nobody is listed")
    calls = [call for client in clients for call in client.calls]
    ended = sum(call.name == "renew" and call.listed is False for call in calls)
    return Kept(fault or "none", len(clients), len(calls), ended, wrong)


def main(arguments: Sequence[str]) -> int:
    """Keep as many instances as asked for, and print what is wrong; 1 where anything is."""
    parser = argparse.ArgumentParser(prog="python -m tests.leases", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of each node")
    parser.add_argument("--faults", nargs="+", default=[], choices=["all", *KEEPING])
    parser.add_argument("--keep", type=Path, help="a folder for what is wrong, and the logs then")
    options = parser.parse_args(arguments)
    faults = list(KEEPING) if options.faults == ["all"] else options.faults or [None]
    wrong = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Nodes(Path(folder), options.nodes, workers=options.workers, env=EVICTING) as nodes,
    ):
        for place, start in enumerate(range(0, options.count, _AT_ONCE)):
            seeds = range(options.seed + start, options.seed + min(start + _AT_ONCE, options.count))
            found = keep(nodes, seeds, faults[place % len(faults)])
            wrong += [f"{found.fault}, {each}" for each in found.wrong]
            print(
                f"{found.fault}: {found.instances} instances, {found.calls} calls, "
                f"{found.ended} leases ended, {len(found.wrong)} wrong",
                flush=True,
            )
            if found.wrong and options.keep is not None:
                for server in nodes.servers:
                    name = f"{server.folder.name}-{seeds[0]}.log"
                    (options.keep / name).write_text(server.log())
                (options.keep / f"wrong-{seeds[0]}").write_text("\n\n".join(found.wrong))
    print("\n\n".join(wrong[:10]))
    print(f"{options.count} instances, {len(wrong)} of them gone too soon")
    return min(1, len(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
