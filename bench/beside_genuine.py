"""A genuine server, this one and nginx on the same core, in turns.

    python bench/beside_genuine.py [--rounds N] [--seconds S] [--write docs/performance.md]
    python bench/beside_genuine.py --before CHECKOUT [--parts PART,PART]

One core serves and the other asks. The genuine server has its own defaults, and is warmed up. Each
figure is measured in rounds that take turns (genuine, this server, nginx, genuine …) and shown as
min / median / max; the ratio is that of the medians. nginx serves the same bytes as a static file:
what the machine can do at most.

With ``--before`` another checkout of this server stands in the genuine one's place, also in what is
measured of this server alone, and there is no nginx: the ratio then says what a change cost. The
processor time of each request and start is shown there too: other work on the machine moves it
less, and its least hardly.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.programs import built_jar, free_port
from tests.servers import JSON, instance_body, send, wait_until

ROOT = Path(__file__).parent.parent
SERVING, ASKING = "0", "1"
CONNECTIONS = 32
INSTANCES_OF_AN_APP = 10
GZIP = {"Accept": "application/json", "Accept-Encoding": "gzip"}
PLAIN = {"Accept": "application/json"}
TICKS = os.sysconf("SC_CLK_TCK")


def processes(pid: int) -> list[int]:
    """The process and all that come from it."""
    pids = [pid]
    for each in pids:
        with suppress(OSError):  # it may have ended just now
            children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
            pids += [int(child) for child in children]
    return pids


def processor_secs(pid: int) -> float:
    """What the process and those that come from it have used of a processor."""
    ticks = 0
    for each in processes(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


@dataclass
class Server:
    """One server on the serving core."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    base: str = "/eureka"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{self.base}{path}"

    def memory_mib(self) -> float:
        """Of all its processes, shared pages counted once."""
        total = 0
        for pid in processes(self.process.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    port: int,
    env: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> Iterator[Server]:
    process = subprocess.Popen(
        ["taskset", "-c", SERVING, *command],
        cwd=checkout,
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(name, port, process)

    def answers() -> bool:
        try:
            return send(port, "GET", "/eureka/apps/NOBODY").status < 500
        except OSError:
            return False

    try:
        wait_until(answers, name)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def genuine(folder: Path, workers: int = 1) -> AbstractContextManager[Server]:
    """It is one process, and keeps nothing in a folder."""
    port = free_port()
    jar = str(built_jar(ROOT / "conformance" / "oracle"))
    # The recipe's own settings switch the cache off for recordings; its default is on.
    cached = "--eureka.server.use-read-only-response-cache=true"
    return started("genuine", ["java", "-jar", jar, f"--server.port={port}", cached], port)


def ours(
    folder: Path,
    workers: int = 1,
    port: int | None = None,
    name: str = "this server",
    checkout: Path = ROOT,
) -> AbstractContextManager[Server]:
    port = port or free_port()
    env = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": str(workers),
        "STORE_URL": f"lmdb:{folder / name.replace(' ', '-') / str(port)}",
        "LOG_LEVEL": "error",
    }
    return started(name, [sys.executable, "-m", "gunicorn", "wsgi:app"], port, env, checkout)


class Beside(NamedTuple):
    """What this server is measured beside."""

    name: str
    start: Callable[..., AbstractContextManager[Server]]
    """In a folder, with a number of ``workers``; of this server's own also at a ``port``."""
    fleets: tuple[int, ...]
    is_own: bool
    """Whether it is this server too, of another checkout."""

    def both(self) -> list[Callable[..., AbstractContextManager[Server]]]:
        return [self.start, ours]

    def own(self) -> list[Callable[..., AbstractContextManager[Server]]]:
        """Those of this server, of whichever checkout."""
        return [self.start, ours] if self.is_own else [ours]


GENUINE_FLEETS = (20_000, 40_000, 60_000, 80_000)
OUR_FLEETS = (100_000, 200_000, 300_000, 400_000)
GENUINE = Beside("genuine", genuine, GENUINE_FLEETS, is_own=False)


def earlier(checkout: Path) -> Beside:
    start = partial(ours, name="before", checkout=checkout.resolve())
    return Beside("before", start, OUR_FLEETS, is_own=True)


@contextmanager
def nginx(folder: Path, bodies: Mapping[str, bytes]) -> Iterator[Server]:
    port = free_port()
    places = []
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
        encoding = "add_header Content-Encoding gzip;" if body[:2] == b"\x1f\x8b" else ""
        places.append(f"location = /{name} {{ default_type application/json; {encoding} }}")
    os.chmod(folder, 0o755)
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;"
        "events { worker_connections 1024; }"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 10000000;"
        f"open_file_cache max=100; server {{ listen 127.0.0.1:{port}; root {folder};"
        f" {' '.join(places)} location / {{ return 404; }} }} }}"
    )
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with started("nginx", command, port) as server:
        server.base = ""
        yield server


def registration(number: int) -> tuple[str, str]:
    app = f"APP{number // INSTANCES_OF_AN_APP}"
    urls = {
        "homePageUrl": f"http://host-{number}.local:8080/",
        "statusPageUrl": f"http://host-{number}.local:8080/actuator/info",
        "healthCheckUrl": f"http://host-{number}.local:8080/actuator/health",
        "hostName": f"host-{number}.local",
        "ipAddr": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        "metadata": {"zone": f"zone-{number % 3}", "management.port": "8081"},
        # So that none is evicted between two measurements.
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 86_400},
    }
    return app, instance_body(app, f"host-{number}.local:app:8080", **urls)


def fill(server: Server, count: int, first: int = 0) -> float:
    """Register so many instances; the seconds that it took on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    began = time.perf_counter()
    for number in range(first, count):
        app, body = registration(number)
        reply = send(server.port, "POST", f"/eureka/apps/{app}", body, JSON, connection)
        assert reply.status == 204, reply
    return time.perf_counter() - began


def wrk(
    url: str,
    headers: Mapping[str, str],
    seconds: float,
    script: str = "",
    cores: str = ASKING,
    connections: int = CONNECTIONS,
) -> float:
    """Requests a second; an answer that is no success ends the whole run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script)
        lua.flush()
        run = subprocess.run(
            [
                *("taskset", "-c", cores, "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"),
                *(("-s", lua.name) if script else ()),
                *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}")),
                url,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    found = re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)
    assert found, run.stdout
    assert not failed, run.stdout
    return float(found[1])


def heartbeats(count: int) -> str:
    return f"""
n = 0
request = function()
  local i = n % {count}
  n = n + 7919
  local app = math.floor(i / {INSTANCES_OF_AN_APP})
  local path = "/eureka/apps/APP" .. app .. "/host-" .. i .. ".local:app:8080"
  return wrk.format("PUT", path .. "?status=UP&lastDirtyTimestamp=1700000000000")
end
"""


def registrations(count: int) -> str:
    _, body = registration(7)
    parts = json.dumps(body.replace("host-7", "host-XNX").replace("APP0", "APPXAX"))
    return f"""
n = 0
body = {parts}
wrk.headers["Content-Type"] = "application/json"
request = function()
  local i = n % {count}
  n = n + 7919
  local app = math.floor(i / {INSTANCES_OF_AN_APP})
  local text = body:gsub("XNX", i):gsub("XAX", app)
  return wrk.format("POST", "/eureka/apps/APP" .. app, nil, text)
end
"""


@dataclass
class Row:
    """One figure of every server that has it, over all rounds."""

    name: str
    target: str = ""
    unit: str = "/s"
    values: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    """Of each value that was measured so: the processor time, in microseconds."""

    def add(self, server: str, value: float) -> None:
        self.values.setdefault(server, []).append(value)
        print(f"{self.name:42} {server:12} {value:10.1f} {self.unit}", flush=True)

    def ask(
        self,
        server: Server,
        path: str,
        headers: Mapping[str, str],
        seconds: float,
        script: str = "",
    ) -> None:
        """Add how many of these requests it answers in a second, and what each costs it."""
        used = processor_secs(server.process.pid)
        found = wrk(server.url(path), headers, seconds, script)
        used = processor_secs(server.process.pid) - used
        self.add(server.name, found)
        self.cost(server, used / (found * seconds))

    def cost(self, server: Server, secs: float) -> None:
        self.processor.setdefault(server.name, []).append(secs * 1e6)

    def of_processor(self) -> Row:
        """The processor times as a figure of their own."""
        return Row(f"{self.name}: processor", "", "µs", self.processor)

    def median(self, server: str) -> float:
        return statistics.median(self.values[server])

    def shown(self, server: str) -> str:
        found = self.values.get(server)
        if not found:
            return ""
        low, middle, high = min(found), statistics.median(found), max(found)
        digits = 0 if high >= 100 else 1 if high >= 10 else 2
        return f"{low:,.{digits}f} / **{middle:,.{digits}f}** / {high:,.{digits}f}"

    def ratio(self, other: str) -> str:
        if other not in self.values or "this server" not in self.values:
            return ""
        if not self.median(other):
            return "∞"
        return f"{self.median('this server') / self.median(other):.2f}"


def reads(count: int) -> list[tuple[Row, str, Mapping[str, str], str]]:
    """What is asked of a registry of this size: a row, a path, headers and a script."""
    one = "/apps/APP3/host-33.local:app:8080"
    size = f"{count:,}"
    made = [
        (Row(f"`apps` gzip, {size}", "≥ 4"), "/apps/", GZIP, ""),
        (Row(f"`apps` identity, {size}", "≥ 4"), "/apps/", PLAIN, ""),
    ]
    if count <= 1000:
        made = [
            (Row("heartbeat", "≥ 4"), "/apps", PLAIN, heartbeats(count)),
            (Row("`apps/delta` gzip, quiet", "≥ 8"), "/apps/delta", GZIP, ""),
            *made,
            (Row("`apps/{app}`", "≥ 4"), "/apps/APP3", PLAIN, ""),
            (Row("one instance", "≥ 4"), one, PLAIN, ""),
            (Row("registration", "≥ 3"), "/apps", PLAIN, registrations(count)),
        ]
    return made


def compare(count: int, rounds: int, seconds: float, folder: Path, beside: Beside) -> list[Row]:
    """All reads at one size, the servers taking turns."""
    rows = []
    with ExitStack() as stack:
        servers = [stack.enter_context(start(folder)) for start in beside.both()]
        for server in servers:
            fill(server, count)
        own = servers[1]
        wanted = [each for each in reads(count) if each[0].name != "registration"]
        for server in servers:  # a JVM is fast once it is warm
            for _, path, headers, script in wanted:
                wrk(server.url(path), headers, 2, script)
        if count <= 1000:
            wait_for_quiet(servers)
        else:
            time.sleep(31)  # the genuine server's cache shows it all only now
        static = None
        if not beside.is_own:
            bodies = {}
            for number, (_, path, headers, script) in enumerate(wanted):
                if not script:
                    reply = send(own.port, "GET", f"/eureka{path}", None, headers)
                    bodies[f"file{number}"] = reply.body
            static = stack.enter_context(nginx(folder, bodies))
        for number, (row, path, headers, script) in list(enumerate(wanted)) * rounds:
            for server in servers:
                row.ask(server, path, headers, seconds, script)
            if static is not None and not script:
                row.add("nginx", wrk(static.url(f"/file{number}"), headers, seconds))
        rows += [row for row, *_ in wanted]
        rows.append(memory(f"memory at {count:,}, one process", servers))
    return rows


def writing(rounds: int, seconds: float, folder: Path, beside: Beside) -> list[Row]:
    """Deltas amid changes, then registrations without pause, after which much is kept a while."""
    with ExitStack() as stack:
        servers = [stack.enter_context(start(folder)) for start in beside.both()]
        for server in servers:
            fill(server, 1000)
        ((row, path, headers, script),) = (e for e in reads(1000) if e[0].name == "registration")
        for server in servers:
            for each in reads(1000):
                wrk(server.url(each[1]), each[2], 2, each[3])
        wait_for_quiet(servers)
        rows = [changing(servers, rounds, seconds), row]
        for _ in range(rounds):
            for server in servers:
                row.ask(server, path, headers, seconds, script)
        return [*rows, memory("memory just after all these registrations", servers)]


def memory(name: str, servers: Sequence[Server]) -> Row:
    row = Row(name, "", "MiB")
    for server in servers:
        row.add(server.name, server.memory_mib())
    return row


def wait_for_quiet(servers: Sequence[Server]) -> None:
    """Until nobody's delta tells of the filling any more.

    A delta tells of three minutes and up to half a minute more, so a test's patience is too short.
    """
    for server in servers:
        while b'"instance"' in send(server.port, "GET", "/eureka/apps/delta", headers=PLAIN).body:
            time.sleep(1)


def changing(servers: Sequence[Server], rounds: int, seconds: float) -> Row:
    """Delta fetches while ten instances a second change, two hundred of them in turn."""
    row = Row("`apps/delta` gzip, 10 changes/s", "≥ 5")
    with ExitStack() as changes:
        for server in servers:
            changes.enter_context(change(server, 10, 201, back=True))
        time.sleep(25)
        for _ in range(rounds):
            for server in servers:
                row.ask(server, "/apps/delta", GZIP, seconds)
    return row


class Client:
    """One connection after another: a genuine server closes each after a hundred requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, line: str, body: bytes = b"", fields: str = "") -> None:
        """Send a request and read its answer, which must be a success."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{line} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        reader = self._reader
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 2"), answer
        length = re.search(rb"\r\ncontent-length: (\d+)", answer)
        if length:
            await reader.readexactly(int(length[1]))
        elif b"\r\ntransfer-encoding: chunked" in answer:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        if b"\r\nconnection: close" in answer:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


# A fleet at the clients' defaults.


class Asking(asyncio.Protocol):
    """A connection that asks one thing after another; it costs a tenth of a ``Client``."""

    def __init__(self, latencies: list[float]) -> None:
        self._latencies = latencies
        self._transport: asyncio.Transport | None = None
        self._due: deque[tuple[bytes, float]] = deque()
        self._asked: float | None = None
        self._head = b""
        self._missing = 0
        self._tail = b""
        self._is_chunked = self._closes = self._is_last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def ask(self, request: bytes, due: float) -> None:
        """Ask, when what was asked before has its answer."""
        self._due.append((request, due))
        if self._asked is None:
            self._next()

    def backlog(self) -> int:
        return len(self._due) + (self._asked is not None)

    def end(self) -> None:
        self._is_last = True
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        if self._transport is not None and self._due:
            request, self._asked = self._due.popleft()
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = b""
            head = head.lower()
            assert head.startswith(b"http/1.1 2"), head
            self._closes = b"\r\nconnection: close" in head
            self._is_chunked = b"\r\ntransfer-encoding: chunked" in head
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            self._missing = int(length[1]) if length else 0
            data = body
        if self._is_chunked:
            # Nothing else is on its way, so its end is the end of what comes.
            self._tail = (self._tail + data)[-7:]
            self._missing = 0 if self._tail[-5:] == b"0\r\n\r\n" else 1
        else:
            self._missing -= len(data)
        if self._missing:
            return
        assert self._asked is not None
        self._tail = b""
        self._latencies.append((time.perf_counter() - self._asked) * 1000)
        self._asked = None
        if self._closes:
            transport, self._transport = self._transport, None
            assert transport is not None
            port = transport.get_extra_info("peername")[1]
            transport.close()
            connecting = asyncio.get_running_loop().create_connection(
                lambda: self, "127.0.0.1", port
            )
            RECONNECTING.add(task := asyncio.ensure_future(connecting))
            task.add_done_callback(RECONNECTING.discard)
        else:
            self._next()


RECONNECTING: set[asyncio.Future[Any]] = set()
ASKING_FIELDS = b" HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n"
DELTA = b"GET /eureka/apps/delta" + ASKING_FIELDS + b"Accept-Encoding: gzip\r\n\r\n"


async def fleet(port: int, size: int, seconds: float) -> tuple[float, float]:
    """Every instance renews and fetches the delta each 30 s.

    The p99 in milliseconds of all answers but those of the first half, in which a server may find
    its feet, from when each request was due; and the share of the planned requests that had their
    answers at the end.
    """
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    lanes = [
        (await loop.create_connection(lambda: Asking(latencies), "127.0.0.1", port))[1]
        for _ in range(64)
    ]
    per_second = 2 * size / 30
    began = time.perf_counter()
    planned = int(per_second * seconds)
    asked = 0
    while asked < planned:
        now = time.perf_counter() - began
        while asked < planned and asked / per_second <= now:
            i = (asked // 2 * 7919) % size
            path = b"/eureka/apps/APP%d/host-%d.local:app:8080" % (i // INSTANCES_OF_AN_APP, i)
            query = b"?status=UP&lastDirtyTimestamp=1700000000000"
            beat = b"PUT " + path + query + ASKING_FIELDS + b"\r\n"
            request = DELTA if asked % 2 else beat
            # From when it was due: a server that falls behind is not waited for.
            lanes[asked % len(lanes)].ask(request, began + asked / per_second)
            asked += 1
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    made = 1 - sum(lane.backlog() for lane in lanes) / planned
    for lane in lanes:
        lane.end()
    return _p99(latencies[len(latencies) // 2 :]), made


@contextmanager
def change(server: Server, per_second: float, instances: int, *, back: bool) -> Iterator[None]:
    """So many changes of status a second, each of another instance, from a process of its own.

    ``back``: when all were put out of service they are put back, and so on.
    """
    script = (
        "import http.client,time\n"
        f"c=http.client.HTTPConnection('127.0.0.1',{server.port})\n"
        "n=0; began=time.monotonic()\n"
        "while True:\n"
        f" s='UP' if {back} and n//{instances}%2 else 'OUT_OF_SERVICE'; i=n*7%{instances}; n+=1\n"
        f" path=f'/eureka/apps/APP{{i//{INSTANCES_OF_AN_APP}}}/host-{{i}}.local:app:8080/status'\n"
        " c.request('PUT',f'{path}?value={s}')\n"
        " c.getresponse().read()\n"
        f" time.sleep(max(0,began+n/{per_second}-time.monotonic()))\n"
    )
    changer = subprocess.Popen(["taskset", "-c", ASKING, sys.executable, "-c", script])
    try:
        yield
        assert changer.poll() is None, f"the changes at {server.name} ended"
    finally:
        changer.kill()
        changer.wait()


@dataclass
class Curve:
    """A figure over sizes, for each server."""

    name: str
    axis: str
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, server: str, size: float, value: float) -> None:
        self.points.setdefault(server, []).append((size, value))


# So long does a delta tell of a change at the defaults.
WINDOW_SECS = 215


def fleets(folder: Path, seconds: float, beside: Beside) -> tuple[Row, Curve]:
    """The largest of these fleets that each server, alone on its core, answers in 100 ms (p99).

    One in a thousand instances changes each minute, from long enough before for the delta to tell
    of all the changes that it will ever tell of at that size.
    """
    row = Row("largest fleet, p99 ≤ 100 ms", "≥ 60,000 and ≥ 5", "instances")
    curve = Curve("p99 of all answers to a fleet of so many instances", "ms")
    os.sched_setaffinity(0, {int(ASKING)})
    for start, sizes in zip(beside.both(), (beside.fleets, OUR_FLEETS), strict=True):
        largest = filled = 0
        with start(folder) as server:
            for size in sizes:
                try:
                    uvloop.run(storm(server.port, filled, size))
                except (OSError, asyncio.IncompleteReadError, AssertionError) as error:
                    print(f"fleet of {size:,} at {server.name}: not even filled: {error!r}")
                    break
                filled = size
                with change(server, size / 60_000, size - 1, back=False):
                    time.sleep(WINDOW_SECS)
                    p99, made = uvloop.run(fleet(server.port, size, seconds))
                print(
                    f"fleet of {size:,} at {server.name}: p99 {p99:.1f} ms, {made:.0%} made",
                    flush=True,
                )
                curve.add(server.name, size, p99)
                if p99 > 100 or made < 0.98:
                    break
                largest = size
            row.add(server.name, largest)
    return row, curve


# All at once, as after an outage.


async def storm(
    port: int, first: int, last: int, latencies: list[float] | None = None, lanes: int = 64
) -> float:
    """Register these instances as fast as they are taken; seconds, and milliseconds of each."""
    turns = iter(range(first, last))
    began = time.perf_counter()

    async def lane() -> None:
        client = Client(port)
        for number in turns:
            app, text = registration(number)
            sent = time.perf_counter()
            fields = "Content-Type: application/json\r\n"
            await client.ask(f"POST /eureka/apps/{app}", text.encode(), fields)
            if latencies is not None:
                latencies.append((time.perf_counter() - sent) * 1000)
        client.close()

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return time.perf_counter() - began


async def meanwhile(
    port: int, line: str, fields: str, stop: asyncio.Event, latencies: list[float]
) -> None:
    """One such request each 20 ms, from when it was due, until told to stop."""
    client = Client(port)
    due = time.perf_counter()
    while not stop.is_set():
        await client.ask(line, fields=fields)
        latencies.append((time.perf_counter() - due) * 1000)
        due = max(due + 0.02, time.perf_counter())
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    client.close()


def storms(folder: Path, rounds: int, beside: Beside) -> list[Row]:
    """Ten thousand registrations at once, and those who renew and read meanwhile."""
    rows = [
        Row("storm of 10,000: registrations", "≥ 3"),
        Row("storm of 10,000: registration, p99", "", "ms"),
        Row("storm of 10,000: a heartbeat meanwhile, p99", "", "ms"),
        Row("storm of 10,000: a delta meanwhile, p99", "", "ms"),
    ]
    beat = ("PUT /eureka/apps/APP3/host-33.local:app:8080", "")
    delta = ("GET /eureka/apps/delta", "Accept: application/json\r\nAccept-Encoding: gzip\r\n")

    async def play(port: int) -> tuple[float, list[float], list[float], list[float]]:
        stop = asyncio.Event()
        registering: list[float] = []
        renewing: list[float] = []
        reading: list[float] = []
        others = [
            asyncio.create_task(meanwhile(port, *asked, stop, latencies))
            for asked, latencies in 4 * [(beat, renewing)] + 2 * [(delta, reading)]
        ]
        await asyncio.sleep(0.5)
        renewing.clear()
        reading.clear()
        seconds = await storm(port, 100, 10_100, registering)
        stop.set()
        await asyncio.gather(*others)
        return seconds, registering, renewing, reading

    os.sched_setaffinity(0, {int(ASKING)})
    for _ in range(rounds):
        for start in beside.both():
            with start(folder) as server:
                fill(server, 100)
                for _ in range(2):  # once to warm up: a JVM gains most by it
                    seconds, *latencies = uvloop.run(play(server.port))
                rows[0].add(server.name, 10_000 / seconds)
                for row, found in zip(rows[1:], latencies, strict=True):
                    row.add(server.name, _p99(found))
    return rows


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


# Memory, starting, and what one change costs.


def footprint(folder: Path, beside: Beside) -> list[Row]:
    """Memory of everything at 10,000 instances, after all was fetched in JSON by many."""
    whole = Row("memory at 10,000, ours with 2 workers", "≤ 0.25", "MiB")
    each = Row("memory per instance and worker", "", "bytes")
    for start in beside.both():
        with start(folder, workers=2) as server:
            empty = server.memory_mib()
            fill(server, 10_000)
            time.sleep(31)
            for headers in (GZIP, PLAIN):
                wrk(server.url("/apps/"), headers, 5)
            wrk(server.url("/apps"), PLAIN, 5, heartbeats(10_000))
            full = server.memory_mib()
            whole.add(server.name, full)
            processes = 1 if server.name == "genuine" else 2
            each.add(server.name, (full - empty) * 1024 * 1024 / 10_000 / processes)
    return [whole, each]


def one_change(servers: Sequence[Server], count: int, rounds: int) -> Row:
    """Milliseconds from asking for all, just after a change, to having it."""
    target = "≤ 10 ms" if count <= 10_000 else "≤ 60 ms"
    row = Row(f"one change, then full `apps` gzip, {count:,}", target, "ms")
    for server in servers:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        send(server.port, "GET", "/eureka/apps/", None, GZIP, connection)
        for number in range(rounds * 5):
            instance = f"APP{number}/host-{10 * number}.local:app:8080"
            path = f"/eureka/apps/{instance}/status?value=OUT_OF_SERVICE"
            assert send(server.port, "PUT", path, None, {}, connection).status == 200
            began = time.perf_counter()
            send(server.port, "GET", "/eureka/apps/", None, GZIP, connection)
            row.add(server.name, (time.perf_counter() - began) * 1000)
        connection.close()
    return row


def starting(folder: Path, rounds: int, beside: Beside) -> list[Row]:
    """Seconds from the start to being ready, with nothing stored and with 100,000 instances."""
    rows = [
        Row("ready after start, empty", "≤ 1 s", "s"),
        Row("ready after start, 100,000 stored", "≤ 5 s", "s"),
        Row("then the first full `apps` gzip", "", "s"),
    ]
    for _ in range(rounds):
        for start in beside.both():
            began = time.perf_counter()
            with start(Path(tempfile.mkdtemp(dir=folder))) as server:
                rows[0].add(server.name, time.perf_counter() - began)
                rows[0].cost(server, processor_secs(server.process.pid))
    kept, port = folder / "kept", free_port()
    for start in beside.own():
        with start(kept, port=port) as server:
            uvloop.run(storm(server.port, 0, 100_000))
    for _ in range(rounds):
        for start in beside.own():
            began = time.perf_counter()
            with start(kept, port=port) as server:
                rows[1].add(server.name, time.perf_counter() - began)
                used = processor_secs(server.process.pid)
                rows[1].cost(server, used)
                began = time.perf_counter()
                send(server.port, "GET", "/eureka/apps/", None, GZIP)
                rows[2].add(server.name, time.perf_counter() - began)
                rows[2].cost(server, processor_secs(server.process.pid) - used)
    return rows


# Propagation, and heartbeats at growing sizes.


def propagation(folder: Path, rounds: int, beside: Beside) -> Row:
    """Milliseconds from a registration's answer to a delta that shows it, through two workers."""
    row = Row("change → delta through any worker, p99", "≤ 20 ms", "ms")
    with ExitStack() as stack:
        servers = [stack.enter_context(start(folder, workers=2)) for start in beside.own()]
        for server in servers:
            fill(server, 1000)
        for _ in range(rounds):
            for server in servers:
                row.add(server.name, _p99([_shown_after(server, n) for n in range(2000, 2300)]))
    return row


def _shown_after(server: Server, number: int) -> float:
    connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in "ab"]
    app, body = registration(number)
    began = time.perf_counter()
    send(server.port, "POST", f"/eureka/apps/{app}", body, JSON, connections[0])
    wanted, delta = f"host-{number}.local".encode(), b""
    while wanted not in delta:
        delta = send(server.port, "GET", "/eureka/apps/delta", None, JSON, connections[1]).body
    took = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return took * 1000


def growing(folder: Path, rounds: int, seconds: float, beside: Beside) -> tuple[list[Row], Curve]:
    """Heartbeats at 1,000, 10,000 and 100,000 instances, and what one change costs there."""
    rows = []
    curve = Curve("heartbeats a second at so many instances", "/s")
    with ExitStack() as stack:
        servers = [stack.enter_context(start(folder)) for start in beside.own()]
        filled = 0
        for count in (1000, 10_000, 100_000):
            row = Row(f"heartbeat at {count:,}", "flat within 25 %")
            for server in servers:
                uvloop.run(storm(server.port, filled, count))
                wrk(server.url("/apps"), PLAIN, 3, heartbeats(count))
            filled = count
            for _ in range(rounds):
                for server in servers:
                    row.ask(server, "/apps", PLAIN, seconds, heartbeats(count))
            rows.append(row)
            for server in servers:
                curve.add(server.name, count, row.median(server.name))
            if count > 1000:
                rows.append(one_change(servers, count, rounds))
    return rows, curve


HEAD = [
    "| measure | genuine | this server | ratio | target | nginx, static | to nginx |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def lines_of(rows: Sequence[Row], name: str = "genuine") -> list[str]:
    """The rows of the table, beside the server of that name."""
    found = []
    for row in rows:
        unit = "" if row.unit == "/s" else f" ({row.unit})"
        found.append(
            f"| {row.name}{unit} | {row.shown(name)} | {row.shown('this server')}"
            f" | {row.ratio(name)} | {row.target}"
            f" | {row.shown('nginx')} | {row.ratio('nginx')} |"
        )
    return found


def merged(before: Sequence[str], lines: Sequence[str]) -> list[str]:
    """The table with these lines in the places of those of the same measures."""
    found = {cells(line)[0]: line for line in before}
    return list((found | {cells(line)[0]: line for line in lines}).values())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


COLOURS = {"genuine": "#b54708", "this server": "#175cd3", "nginx": "#667085"}


def drawing(width: int, height: int, content: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#475467">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>' + "".join(content) + "</svg>\n"
    )


def ratios(lines: Sequence[str]) -> str:
    """The ratios to the genuine server as bars, with a line where the target is."""
    found = [
        (name.replace("`", ""), float(ratio), target)
        for name, _, _, ratio, target, *_ in map(cells, lines)
        if ratio and not name.endswith(")")
    ]
    top = max([value for _, value, _ in found] or [1.0])
    bars = []
    for place, (name, value, target) in enumerate(found):
        y = 26 * place + 10
        width = 420 * value / top
        bars.append(
            f'<text x="270" y="{y + 13}" text-anchor="end">{name}</text>'
            f'<rect x="280" y="{y}" width="{width:.0f}" height="18" fill="#175cd3"/>'
            f'<text x="{288 + width:.0f}" y="{y + 13}">{value:.1f} times</text>'
        )
        wanted = re.fullmatch(r"≥ (\d+)", target)
        if wanted:
            x = 280 + 420 * int(wanted[1]) / top
            bars.append(
                f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{y - 3}" y2="{y + 21}" stroke="#b54708" '
                'stroke-width="2"/>'
            )
    return drawing(790, 26 * len(found) + 20, bars)


def lines(curve: Curve) -> str:
    """A curve over sizes, both axes logarithmic."""
    points = [point for found in curve.points.values() for point in found]
    lows = [min(point[axis] for point in points) * 0.7 for axis in (0, 1)]
    highs = [max(point[axis] for point in points) * 1.4 for axis in (0, 1)]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        share = [
            math.log(max(point[axis], 1e-9) / lows[axis]) / math.log(highs[axis] / lows[axis])
            for axis in (0, 1)
        ]
        return 70 + 600 * share[0], 280 - 230 * share[1]

    content = [f'<text x="70" y="24" font-size="14">{curve.name}</text>']
    content.append('<path d="M70 40V280H670" fill="none" stroke="#98a2b3"/>')
    for server, found in curve.points.items():
        colour = COLOURS[server]
        path = " ".join(f"{x:.0f},{y:.0f}" for x, y in map(at, found))
        content.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for size, value in found:
            x, y = at((size, value))
            content.append(
                f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour}"/>'
                f'<text x="{x:.0f}" y="{y - 10:.0f}" text-anchor="middle" fill="{colour}">'
                f"{value:,.0f} {curve.axis.strip('/')}</text>"
                f'<text x="{x:.0f}" y="298" text-anchor="middle">{size:,.0f}</text>'
            )
        x, y = at(found[-1])
        content.append(
            f'<text x="{x + 8:.0f}" y="{y + 16:.0f}" text-anchor="end" fill="{colour}">'
            f"{server}</text>"
        )
    return drawing(700, 310, content)


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(page: Path, rows: Sequence[Row], curves: Mapping[str, Curve]) -> None:
    """Put rows and plots between the page's marks, the drawings beside it.

    What was not measured this time stays as it is.
    """
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no {BEGIN} and {END}")
    kept = [line for line in old.splitlines() if line.startswith("| ") and line not in HEAD]
    shown = [line for line in old.splitlines() if line.startswith("![")]
    made = merged(kept, lines_of(rows))
    drawings = {"ratios": ratios(made)} | {name: lines(curve) for name, curve in curves.items()}
    for name, drawn in drawings.items():
        file = page.with_name(f"{page.stem}-{name}.svg")
        file.write_text(drawn, encoding="utf-8")
        link = f"![{name}]({file.name})"
        if link not in shown:
            shown.append(link)
    content = [BEGIN, "", *HEAD, *made, "", *shown, "", END]
    page.write_text(before + "\n".join(content) + after, encoding="utf-8")


PARTS = "1000,writing,10000,propagation,growing,storm,memory,start,fleet"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--before", type=Path, help="a checkout, in the genuine server's place")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.before and options.write:
        parser.error("--write is for the figures beside a genuine server")
    beside = earlier(options.before) if options.before else GENUINE
    parts, rounds, seconds = options.parts.split(","), options.rounds, options.seconds
    rows: list[Row] = []
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for size in (1000, 10_000):
            if str(size) in parts:
                rows += compare(size, rounds, seconds, folder, beside)
            if size == 1000 and "writing" in parts:
                rows += writing(rounds, seconds, folder, beside)
        if "propagation" in parts:
            rows.append(propagation(folder, rounds, beside))
        if "growing" in parts:
            more, curves["heartbeats"] = growing(folder, rounds, seconds, beside)
            rows += more
        if "storm" in parts:
            rows += storms(folder, rounds, beside)
        if "memory" in parts:
            rows += footprint(folder, beside)
        if "start" in parts:
            rows += starting(folder, rounds, beside)
        if "fleet" in parts:
            row, curves["fleet"] = fleets(folder, 60, beside)
            rows.append(row)
    head = [line.replace("genuine", beside.name) for line in HEAD]
    if beside.is_own:
        rows += [row.of_processor() for row in rows if row.processor]
    print("\n".join([*head, *lines_of(rows, beside.name)]))
    if options.write:
        write(options.write, rows, curves)


if __name__ == "__main__":
    main()
