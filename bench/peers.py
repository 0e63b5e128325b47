"""What replication costs three servers, and what a sick peer costs the others.

    python bench/peers.py [--instances 10000] [--seconds 60] [--write docs/performance.md]

Three servers list each other, and every instance renews at one of them each 30 s, as clients do by
default. Then one of these alone, with a third of the clients: what it uses less is what replication
costs. Of a genuine server that tells nothing, since a JVM uses less the longer it runs. Both kinds
have their own defaults, and all cores of the machine. A relay between each two servers counts
bytes, and can be a peer that answers late or with 503. Processor time is counted, so a busy machine
matters little there. A p99 it moves, so what a sick peer costs is measured in turns with three that
are well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.beside_genuine import (
    ASKING_FIELDS,
    INSTANCES_OF_AN_APP,
    Asking,
    Client,
    processor_secs,
    registration,
)
from conformance.programs import built_jar, free_port
from tests.servers import send

ROOT = Path(__file__).parent.parent
NODES = 3
INTERVAL_SECS = 30
LANES = 8
LATE_SECS = 10.0
TURNS, SETTLING_SECS = 3, 3.0
MOST_QUIET = 20
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
WELL, LATE, UNAVAILABLE = "all answer", "one answers after 10 s", "one answers 503"


class Relay:
    """The way from one server to one of its peers."""

    def __init__(self, host: str, target: int) -> None:
        """``host`` is how the server names its peer; genuine ones tell them apart by it alone."""
        self.host = host
        self.port = free_port()
        self.carried = 0
        """Bytes, in both directions."""
        self.state = WELL
        self._target = target
        self._open: set[asyncio.Transport] = set()

    async def start(self) -> None:
        await asyncio.get_running_loop().create_server(
            lambda: _Near(self, self._target), self.host, self.port
        )

    def become(self, state: str) -> None:
        self.state = state
        for transport in list(self._open):
            transport.abort()

    def opened(self, transport: asyncio.Transport) -> None:
        self._open.add(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)


class _End(asyncio.Protocol):
    """One side of a connection through a relay."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.relay.opened(self.transport)
        for data in self._waiting:
            self.transport.write(data)

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def pass_on(self, data: bytes) -> None:
        assert self.other is not None
        self.relay.carried += len(data)
        self.other.write(data)

    def data_received(self, data: bytes) -> None:
        self.pass_on(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.relay.closed(self.transport)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Far(_End):
    """The side of the peer, whose answers may be late."""

    def data_received(self, data: bytes) -> None:
        if self.relay.state == LATE:
            asyncio.get_running_loop().call_later(LATE_SECS, self.pass_on, data)
        else:
            self.pass_on(data)


class _Near(_End):
    """The side of the server that has this peer."""

    def __init__(self, relay: Relay, target: int) -> None:
        super().__init__(relay)
        self._target = target
        self._connecting: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.relay.state == UNAVAILABLE:
            return
        self.other = far = _Far(self.relay)
        far.other = self
        loop = asyncio.get_running_loop()
        self._connecting = loop.create_task(self._connect(far))

    async def _connect(self, far: _Far) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: far, "127.0.0.1", self._target
            )
        except OSError:
            assert self.transport is not None
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.pass_on(data)
            return
        assert self.transport is not None
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        self.transport.close()


@dataclass
class Node:
    """A server process with its children."""

    port: int
    process: subprocess.Popen[bytes]

    def cpu_secs(self) -> float:
        return processor_secs(self.process.pid)


@contextmanager
def running(
    command: Sequence[str], port: int, env: Mapping[str, str], checkout: Path = ROOT
) -> Iterator[Node]:
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Node(port, process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def genuine(number: int, peers: Sequence[str], port: int) -> tuple[list[str], dict[str, str]]:
    """The command and the variables of a genuine server with its defaults."""
    options = {
        "server.port": str(port),
        "spring.application.name": "EUREKA",
        "eureka.instance.hostname": f"127.0.0.{number + 1}",
        "eureka.client.register-with-eureka": str(bool(peers)).lower(),
        "eureka.client.fetch-registry": str(bool(peers)).lower(),
        # The recipe's own settings switch both off for recordings.
        "eureka.server.use-read-only-response-cache": "true",
        "eureka.server.enable-self-preservation": "true",
    }
    if peers:
        options["eureka.client.service-url.defaultZone"] = ",".join(peers)
    jar = str(built_jar(ROOT / "conformance" / "oracle"))
    settings = [f"--{name}={value}" for name, value in options.items()]
    return ["java", "-Xmx1g", "-jar", jar, *settings], {}


def ours(number: int, peers: Sequence[str], port: int) -> tuple[list[str], dict[str, str]]:
    """The same of this server, with one worker process."""
    env = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": "1",
        "LOG_LEVEL": "error",
        "EUREKA_INSTANCE_HOSTNAME": f"node-{number}",
        "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": ",".join(peers),
        "PEERS_START_WAIT_MS": "1000",
    }
    return [sys.executable, "-m", "gunicorn", "wsgi:app"], env


KINDS = {"genuine": genuine, "this server": ours}


def answers(port: int) -> bool:
    try:
        return send(port, "GET", "/eureka/apps/NOBODY").status < 500
    except OSError:
        return False


@dataclass
class Clients:
    """Instances that renew at their nodes, in turns, from one thread.

    ``latencies`` has the milliseconds of each node's renewals, from when each was due.
    """

    ports: Sequence[int]
    numbers: Sequence[int]
    latencies: list[list[float]] = field(default_factory=list)

    async def register(self) -> None:
        """All of them, each at its node."""
        await asyncio.gather(
            *(
                self._register(port, list(self.numbers[place::LANES]))
                for port in self.ports
                for place in range(LANES)
            )
        )

    async def _register(self, port: int, numbers: Sequence[int]) -> None:
        client = Client(port)
        for number in numbers:
            if self.ports[number % len(self.ports)] == port:
                app, text = registration(number)
                body = text.replace('"durationInSecs": 86400', '"durationInSecs": 90').encode()
                fields = "Content-Type: application/json\r\n"
                await client.ask(f"POST /eureka/apps/{app}", body, fields)
        client.close()

    async def renew(self) -> None:
        """Until cancelled."""
        self.latencies = [[] for _ in self.ports]
        loop = asyncio.get_running_loop()
        lanes = [
            [
                (
                    await loop.create_connection(
                        lambda n=node: Asking(self.latencies[n]), host, port
                    )
                )[1]
                for _ in range(LANES)
            ]
            for node, port in enumerate(self.ports)
            for host in ("127.0.0.1",)
        ]
        per_second = len(self.numbers) / INTERVAL_SECS
        began, asked = time.perf_counter(), 0
        try:
            while True:
                now = time.perf_counter() - began
                while asked / per_second <= now:
                    i = self.numbers[asked % len(self.numbers)]
                    node = i % len(self.ports)
                    path = b"/eureka/apps/APP%d/host-%d.local:app:8080" % (
                        i // INSTANCES_OF_AN_APP,
                        i,
                    )
                    query = b"?status=UP&lastDirtyTimestamp=1700000000000"
                    beat = b"PUT " + path + query + ASKING_FIELDS + b"\r\n"
                    due = began + asked / per_second
                    lanes[node][asked // len(self.ports) % LANES].ask(beat, due)
                    asked += 1
                await asyncio.sleep(0.001)
        finally:
            for lane in (each for node in lanes for each in node):
                lane.end()

    def forget(self) -> None:
        for each in self.latencies:
            each.clear()

    def p99(self, nodes: Sequence[int]) -> float:
        found = sorted(value for node in nodes for value in self.latencies[node])
        return found[int(len(found) * 0.99)]


@dataclass
class Figures:
    """What was measured of one kind of server."""

    cluster: float = 0.0
    """Processor time of each of the three, as a share of one core."""
    alone: float | None = None
    bytes_each_second: float = 0.0
    bytes_each_renewal: float = 0.0
    p99: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds of a renewal at the two that are well, by what the third does; each turn's."""


async def used(nodes: Sequence[Node], secs: float) -> float:
    """The share of one core that each node uses."""
    before, began = [node.cpu_secs() for node in nodes], time.monotonic()
    await asyncio.sleep(secs)
    took = time.monotonic() - began
    after = [node.cpu_secs() for node in nodes]
    return sum(b - a for a, b in zip(before, after, strict=True)) / took / len(nodes)


async def of_three(name: str, folder: Path, count: int, secs: float, found: Figures) -> None:
    ports = [free_port() for _ in range(NODES)]
    ways = {
        (here, there): Relay(f"127.0.0.{there + 1}", ports[there])
        for here in range(NODES)
        for there in range(NODES)
        if here != there
    }
    for way in ways.values():
        await way.start()
    with ExitStack() as stack:
        nodes = []
        for number, port in enumerate(ports):
            peers = [
                f"http://{way.host}:{way.port}/eureka/"
                for (here, _), way in ways.items()
                if here == number
            ]
            command, env = KINDS[name](number, peers, port)
            env |= {"STORE_URL": f"lmdb:{folder / str(port)}"}
            nodes.append(stack.enter_context(running(command, port, env)))
        await until_each(ports, answers)
        clients = Clients(ports, range(count))
        await clients.register()
        renewing = asyncio.ensure_future(clients.renew())
        await warm(name)
        await until_each(ports, lambda port: lists(port) >= count)
        for state in [*TURNS * (WELL, LATE, UNAVAILABLE), WELL]:
            for (_, there), way in ways.items():
                if there == 1:
                    way.become(state)
            await asyncio.sleep(SETTLING_SECS)
            clients.forget()
            await asyncio.sleep(secs / 10)
            found.p99.setdefault(state, []).append(clients.p99((0, 2)))
        if name == "genuine":
            # Each fetches another's delta, which tells of all registrations for some minutes.
            await until_each(ports, lambda port: lists(port, "/apps/delta") <= MOST_QUIET)
        await asyncio.sleep(INTERVAL_SECS)
        before = sum(way.carried for way in ways.values())
        found.cluster = await used(nodes, secs)
        carried = sum(way.carried for way in ways.values()) - before
        found.bytes_each_second = carried / secs
        found.bytes_each_renewal = carried / (secs * count / INTERVAL_SECS)
        assert not renewing.done(), renewing
        renewing.cancel()


async def of_one(name: str, folder: Path, count: int, secs: float, found: Figures) -> None:
    port = free_port()
    command, env = KINDS[name](0, (), port)
    env |= {"STORE_URL": f"lmdb:{folder / str(port)}"}
    with running(command, port, env) as node:
        await until_each([port], answers)
        clients = Clients([port], range(0, count, NODES))
        await clients.register()
        renewing = asyncio.ensure_future(clients.renew())
        await warm(name)
        found.alone = await used([node], secs / 3)
        assert not renewing.done(), renewing
        renewing.cancel()


async def until_each(ports: Sequence[int], holds: Callable[[int], bool]) -> None:
    """Ask each server, now and then, until something holds of it."""
    for port in ports:
        while not await asyncio.to_thread(holds, port):
            await asyncio.sleep(2)


async def warm(name: str) -> None:
    """A JVM is fast once it is warm, and its list shows all after half a minute."""
    await asyncio.sleep(45 if name == "genuine" else 20)


def lists(port: int, path: str = "/apps") -> int:
    """How many instances a server lists."""
    accept = {"Accept": "application/json"}
    return send(port, "GET", f"/eureka{path}", None, accept).body.count(b'"instanceId"')


def measured(name: str, folder: Path, count: int, secs: float) -> Figures:
    found = Figures()
    uvloop.run(of_three(name, folder, count, secs, found))
    if name != "genuine":
        uvloop.run(of_one(name, folder, count, secs, found))
    print(f"{name}: {found}", flush=True)
    return found


def table(found: Mapping[str, Figures], count: int, secs: float) -> list[str]:
    def row(name: str, digits: int, *values: float | None) -> str:
        told = ("" if value is None else f"{value:,.{digits}f}" for value in values)
        return f"| {name} | " + " | ".join(told) + " |"

    of_each = list(found.values())
    names = " | ".join(found)
    return [
        f"{count:,} instances over three servers on {os.cpu_count()} cores, {secs:g} s:",
        "",
        f"| | {names} |",
        "| --- |" + " --- |" * len(found),
        row("processor, one of three (% of a core)", 1, *(100 * f.cluster for f in of_each)),
        row(
            "… alone, with its third of the clients",
            1,
            *(None if f.alone is None else 100 * f.alone for f in of_each),
        ),
        row(
            "… for replication",
            1,
            *(None if f.alone is None else 100 * (f.cluster - f.alone) for f in of_each),
        ),
        row(
            "between the servers, all ways (KB/s)", 0, *(f.bytes_each_second / 1e3 for f in of_each)
        ),
        row("… for each renewal (bytes)", 0, *(f.bytes_each_renewal for f in of_each)),
        *(
            f"| p99 of a renewal at the others (ms), {state} | "
            + " | ".join(spread(each.p99[state]) for each in of_each)
            + " |"
            for state in (WELL, LATE, UNAVAILABLE)
        ),
    ]


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.1f} / **{statistics.median(values):.1f}** / {max(values):.1f}"


def write(page: Path, lines: Sequence[str]) -> None:
    """Put the table between the page's marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no {BEGIN} and {END}")
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=tuple(KINDS))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):  # where it may, before what else runs here
        os.setpriority(os.PRIO_PROCESS, 0, -5)
    found = {}
    with tempfile.TemporaryDirectory() as made:
        for name in KINDS:
            if options.only in (None, name):
                found[name] = measured(name, Path(made), options.instances, options.seconds)
    lines = table(found, options.instances, options.seconds)
    print("\n".join(lines))
    if options.write:
        write(options.write, lines)


if __name__ == "__main__":
    main()
