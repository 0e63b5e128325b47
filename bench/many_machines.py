"""One, two and three nodes on one Redis, and LMDB on one node, on two cores.

    python bench/many_machines.py [--only KIND …] [--before CHECKOUT] [--write docs/performance.md]

The nodes, Redis and those who ask share the two cores, so more nodes are no more machines here:
each has its share. Two workers are on one node, or one is on each of several. Of each kind are
measured, one after another:

* heartbeats and registrations (each again) of 1,000 instances, as fast as they are answered, from
  ``wrk`` at each node, in rounds;
* from when one node has acknowledged a new instance until another, which is asked again and again,
  has it, while 500 heartbeats and 50 registrations a second arrive at the nodes;
* a storm: all others of a fleet register at once, over 64 connections in all;
* what it costs Redis and the nodes when that fleet renews, each instance every 30 s.

The table's line of a kind is written when that has been measured, so a run may be interrupted, and
gone on with by ``--only``. What could not be measured is told, and the others go on. With
``--before`` LMDB is measured of another checkout too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.beside_genuine import (
    ASKING,
    ASKING_FIELDS,
    CONNECTIONS,
    INSTANCES_OF_AN_APP,
    PLAIN,
    SERVING,
    Asking,
    heartbeats,
    registration,
    registrations,
    storm,
    wrk,
)
from bench.peers import Clients, Node, answers, running
from conformance.programs import free_port
from tests.redis_servers import RedisServer
from tests.servers import JSON, send, wait_until

ROOT = Path(__file__).parent.parent
BOTH = f"{SERVING},{ASKING}"
FEW = 1_000
LANES = 64
HEARTBEATS, REGISTRATIONS = 500, 50
CHANGES, CHANGES_A_SECOND = 400, 40
# Beyond all that are in the fleet.
OTHERS = 10_000_000
BEGIN, END = "<!-- nodes: begin -->", "<!-- nodes: end -->"
HEADS = (
    "",
    "heartbeats/s",
    "registrations/s",
    "known at another node, p50 / p99 (ms)",
    "storm, registrations/s",
    "storm, p99 of an answer (ms)",
    "renewing fleet: all nodes (% of a core)",
    "renewing fleet: Redis (% of a core)",
    "Redis, bytes for each instance",
)


RULE = "| --- " * len(HEADS) + "|"


class Kind(NamedTuple):
    """A line of the table: how many nodes there are on Redis, or one on LMDB."""

    title: str
    nodes: int


KINDS = {
    "lmdb": Kind("LMDB", 0),
    "one": Kind("Redis, 1 node", 1),
    "two": Kind("Redis, 2 nodes", 2),
    "three": Kind("Redis, 3 nodes", 3),
}
EARLIER = "LMDB, before"


class Options(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    fleet: int


class Redis:
    """Debian's, with nothing on its disk; what it has used."""

    def __init__(self, folder: Path) -> None:
        self._server = RedisServer(folder)

    def url(self, folder: Path) -> str:
        return self._server.url("bench", folder)

    def memory(self) -> int:
        with self._server.client() as client:
            return int(client.info("memory")["used_memory"])

    def cpu_secs(self) -> float:
        with self._server.client() as client:
            told = client.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    def stop(self) -> None:
        self._server.stop()


def measured(checkout: Path, nodes: int, redis: Redis | None, options: Options) -> list[str]:
    """The cells of one kind."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        servers = [
            stack.enter_context(node(checkout, Path(made) / str(number), nodes, redis))
            for number in range(nodes)
        ]
        ports = [server.port for server in servers]
        empty = redis.memory() if redis else 0
        uvloop.run(storm_over(ports, 0, FEW, []))
        wait_until(lambda: all(known(port, FEW - 1) for port in ports), "all to be known")
        cells = [
            shown([of_all(ports, script, options.seconds) for _ in range(options.rounds)])
            for script in (heartbeats(FEW), registrations(FEW))
        ]
        if nodes > 1:
            found = sorted(delays(ports))
            cells.append(f"{statistics.median(found):.1f} / {found[len(found) * 99 // 100]:.1f}")
        else:
            cells.append("")
        latencies: list[float] = []
        secs = uvloop.run(storm_over(ports, FEW, options.fleet, latencies))
        latencies.sort()
        cells.append(f"{(options.fleet - FEW) / secs:,.0f}")
        cells.append(f"{latencies[len(latencies) * 99 // 100]:.0f}")
        wait_until(lambda: all(known(port, options.fleet - 1) for port in ports), "all to be known")
        size = redis.memory() - empty if redis else 0
        shares = uvloop.run(renewing(ports, options, [*servers, *([redis] if redis else [])]))
        cells.append(f"{100 * sum(shares[:nodes]):.0f}")
        cells += (
            [f"{100 * shares[nodes]:.1f}", f"{size / options.fleet:,.0f}"] if redis else ["", ""]
        )
    return cells


@contextmanager
def node(checkout: Path, folder: Path, nodes: int, redis: Redis | None) -> Iterator[Node]:
    port = free_port()
    env = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": "2" if nodes == 1 else "1",
        "STORE_URL": redis.url(folder) if redis else f"lmdb:{folder}",
        "REGISTRY_MAX_INSTANCES": "1000000",
        "LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    with running(command, port, env, checkout) as started:
        wait_until(lambda: answers(port), "an answer")
        yield started


async def storm_over(ports: Sequence[int], first: int, last: int, latencies: list[float]) -> float:
    """Register these at the nodes, each its part; the seconds that it took."""
    bounds = [first + (last - first) * part // len(ports) for part in range(len(ports) + 1)]
    lanes = LANES // len(ports)
    took = await asyncio.gather(
        *(
            storm(port, begin, end, latencies, lanes)
            for port, (begin, end) in zip(ports, itertools.pairwise(bounds), strict=True)
        )
    )
    return max(took)


def of_all(ports: Sequence[int], script: str, seconds: float) -> float:
    """Requests a second at all nodes together."""

    def ask(port: int) -> float:
        url = f"http://127.0.0.1:{port}/eureka/apps"
        return wrk(url, PLAIN, seconds, script, BOTH, CONNECTIONS // len(ports))

    with ThreadPoolExecutor(len(ports)) as pool:
        return sum(pool.map(ask, ports))


def shown(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} / **{statistics.median(values):,.0f}** / {max(values):,.0f}"


# From one node to another.


def delays(ports: Sequence[int]) -> list[float]:
    """Milliseconds from each acknowledgement at one node until the next one knows, under load."""
    found = []
    connections = [http.client.HTTPConnection("127.0.0.1", port) for port in ports]
    with loaded(ports):
        began = time.perf_counter()
        for number in range(CHANGES):
            here, there = number % len(ports), (number + 1) % len(ports)
            app, body = registration(OTHERS + number)
            path = f"/eureka/apps/{app}"
            reply = send(ports[here], "POST", path, body, JSON, connections[here])
            acknowledged = time.perf_counter()
            assert reply.status == 204, reply
            while not known(ports[there], OTHERS + number, connections[there]):
                pass
            found.append(1000 * (time.perf_counter() - acknowledged))
            due = began + (number + 1) / CHANGES_A_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))
    for number in range(CHANGES):
        path = "/eureka/apps/{}/{}".format(*named(OTHERS + number))
        assert send(ports[0], "DELETE", path, None, JSON, connections[0]).status == 200
    for connection in connections:
        connection.close()
    return found


def named(number: int) -> tuple[str, str]:
    return f"APP{number // INSTANCES_OF_AN_APP}", f"host-{number}.local:app:8080"


def known(port: int, number: int, connection: http.client.HTTPConnection | None = None) -> bool:
    path = "/eureka/apps/{}/{}".format(*named(number))
    return send(port, "GET", path, None, JSON, connection).status == 200


@contextmanager
def loaded(ports: Sequence[int]) -> Iterator[None]:
    """Heartbeats and registrations arrive meanwhile, from a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=load, args=(ports,))
    process.start()
    try:
        time.sleep(2)  # until it has begun
        yield
        assert process.is_alive()
    finally:
        process.terminate()
        process.join()


def load(ports: Sequence[int]) -> None:
    uvloop.run(_load(ports))


async def _load(ports: Sequence[int]) -> None:
    loop = asyncio.get_running_loop()
    lanes = [
        (await loop.create_connection(lambda: Asking([]), "127.0.0.1", port))[1]
        for _ in range(4)
        for port in ports
    ]
    per_second = HEARTBEATS + REGISTRATIONS
    began, asked = time.perf_counter(), 0
    while True:
        while asked / per_second <= time.perf_counter() - began:
            number = asked * 7919 % FEW
            if asked % (per_second // REGISTRATIONS):
                path = "/eureka/apps/{}/{}".format(*named(number)).encode()
                request = b"PUT " + path + ASKING_FIELDS + b"\r\n"
            else:
                app, body = registration(number)
                length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                head = f"POST /eureka/apps/{app}".encode() + ASKING_FIELDS
                request = head + (length + body).encode()
            lanes[asked % len(lanes)].ask(request, began + asked / per_second)
            asked += 1
        await asyncio.sleep(0.001)


# A fleet that renews.


async def renewing(
    ports: Sequence[int], options: Options, used: Sequence[Node | Redis]
) -> list[float]:
    """The share of a core that each of these uses."""
    clients = Clients(ports, range(options.fleet))
    task = asyncio.ensure_future(clients.renew())
    await asyncio.sleep(options.seconds)
    before, began = [each.cpu_secs() for each in used], time.perf_counter()
    await asyncio.sleep(5 * options.seconds)
    took = time.perf_counter() - began
    after = [each.cpu_secs() for each in used]
    assert not task.done(), task
    task.cancel()
    return [(a - b) / took for a, b in zip(after, before, strict=True)]


# The table.


def write(page: Path, row: str, fleet: int) -> None:
    """Put a line into the page's table, in place of the one of the same kind."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no {BEGIN} and {END}")
    rows = {kind_of(line): line for line in table.splitlines() if line.startswith("| ")}
    rows[kind_of(row)] = row
    titles = [kind.title for kind in KINDS.values()]
    titles.insert(1, EARLIER)
    lines = [rows[title] for title in titles if title in rows]
    head = f"A storm and a fleet of {fleet:,}; {os.cpu_count()} cores:"
    made = [BEGIN, "", head, "", line_of(HEADS), RULE, *lines, "", END]
    page.write_text(before + "\n".join(made) + after, encoding="utf-8")


def line_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def kind_of(line: str) -> str:
    return line.split(" | ")[0].removeprefix("| ")


def of_kind(title: str, nodes: int, checkout: Path, options: Options) -> str:
    """The table's line; with no nodes on Redis there is one on LMDB."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        redis = None
        if nodes:
            redis = Redis(Path(folder))
            stack.callback(redis.stop)
        return line_of([title, *measured(checkout, max(1, nodes), redis, options)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--before", type=Path, help="another checkout, whose LMDB is measured too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each round of requests")
    parser.add_argument("--fleet", type=int, default=100_000)
    parser.add_argument("--write", type=Path, help="the page whose table gets the lines")
    given = parser.parse_args()
    options = Options(given.rounds, given.seconds, given.fleet)
    wanted = [(*KINDS[name], ROOT) for name in given.only]
    if "lmdb" in given.only and given.before:
        wanted.insert(1, (EARLIER, 0, given.before.resolve()))
    with contextlib.suppress(PermissionError):  # where it may, before what else runs here
        os.setpriority(os.PRIO_PROCESS, 0, -5)
    print(line_of(HEADS), RULE, sep="\n", flush=True)
    failed = False
    for title, nodes, checkout in wanted:
        try:
            row = of_kind(title, nodes, checkout, options)
        except (AssertionError, OSError, EOFError, subprocess.CalledProcessError) as error:
            print(f"{title}: not measured: {error!r}", file=sys.stderr, flush=True)
            failed = True
            continue
        print(row, flush=True)
        if given.write:
            write(given.write, row, options.fleet)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
