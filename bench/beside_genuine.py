"""A genuine server, this one and nginx on the same core, in turns.

    python bench/beside_genuine.py [--rounds N] [--seconds S] [--write docs/performance.md]

One core serves and the other asks. The genuine server has its own defaults, and as many seconds to
warm up as it takes to fill it. Each figure is measured in rounds that take turns (genuine, this
server, nginx, genuine …) and shown as min / median / max; the ratio is that of the medians.
nginx serves the same bytes as a static file: what the machine can do at most.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
        pids = [self.process.pid]
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids += [int(child) for child in children]
        total = 0
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024


@contextmanager
def started(
    name: str, command: Sequence[str], port: int, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    process = subprocess.Popen(
        ["taskset", "-c", SERVING, *command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(name, port, process)

    def answers() -> bool:
        try:
            return send(port, "GET", "/eureka/apps").status < 500
        except OSError:
            return False

    try:
        wait_until(answers, 90, name)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def genuine() -> AbstractContextManager[Server]:
    port = free_port()
    jar = str(built_jar(ROOT / "conformance" / "oracle"))
    # The recipe's own settings switch the cache off for recordings; its default is on.
    cached = "--eureka.server.use-read-only-response-cache=true"
    return started("genuine", ["java", "-jar", jar, f"--server.port={port}", cached], port)


def ours(
    folder: Path, workers: int = 1, name: str = "this server"
) -> AbstractContextManager[Server]:
    port = free_port()
    env = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": str(workers),
        "STORE_URL": f"lmdb:{folder / str(port)}",
        "LOG_LEVEL": "error",
    }
    return started(name, [sys.executable, "-m", "gunicorn", "wsgi:app"], port, env)


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


def wrk(url: str, headers: Mapping[str, str], seconds: float, script: str = "") -> float:
    """Requests a second; an answer that is no success ends the whole run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script)
        lua.flush()
        run = subprocess.run(
            [
                *("taskset", "-c", ASKING, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s"),
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

    def add(self, server: str, value: float) -> None:
        self.values.setdefault(server, []).append(value)
        print(f"{self.name:42} {server:12} {value:10.1f} {self.unit}", flush=True)

    def median(self, server: str) -> float:
        return statistics.median(self.values[server])

    def shown(self, server: str) -> str:
        found = self.values.get(server)
        if not found:
            return ""
        low, middle, high = min(found), statistics.median(found), max(found)
        return f"{low:,.0f} / **{middle:,.0f}** / {high:,.0f}"

    def ratio(self, other: str) -> str:
        if other not in self.values or "this server" not in self.values:
            return ""
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


def compare(count: int, rounds: int, seconds: float, folder: Path) -> list[Row]:
    """All reads at one size, the servers taking turns."""
    rows = []
    with ExitStack() as stack:
        servers = [stack.enter_context(genuine()), stack.enter_context(ours(folder))]
        for server in servers:
            fill(server, count)
        time.sleep(31)  # the genuine server's cache shows it all only now
        own = servers[1]
        wanted = reads(count)
        bodies = {}
        for number, (_, path, headers, script) in enumerate(wanted):
            if not script:
                reply = send(own.port, "GET", f"/eureka{path}", None, headers)
                bodies[f"file{number}"] = reply.body
        static = stack.enter_context(nginx(folder, bodies))
        for server in servers:  # a JVM is fast once it is warm
            for _, path, headers, script in wanted:
                wrk(server.url(path), headers, 2, script)
        for _ in range(rounds):
            for number, (row, path, headers, script) in enumerate(wanted):
                for server in servers:
                    row.add(server.name, wrk(server.url(path), headers, seconds, script))
                if not script:
                    row.add("nginx", wrk(static.url(f"/file{number}"), headers, seconds))
        rows += [row for row, *_ in wanted]
        if count <= 1000:
            rows.append(changing(servers, rounds, seconds))
        memory = Row(f"memory at {count:,}, one process", "", "MiB")
        for server in servers:
            memory.add(server.name, server.memory_mib())
        rows.append(memory)
    return rows


def changing(servers: Sequence[Server], rounds: int, seconds: float) -> Row:
    """Delta fetches while ten instances a second change."""
    row = Row("`apps/delta` gzip, 10 changes/s", "≥ 5")
    for _ in range(rounds):
        for server in servers:
            script = (
                "import http.client,sys,time\n"
                f"c=http.client.HTTPConnection('127.0.0.1',{server.port})\n"
                "n=0\n"
                "while True:\n"
                " s=('OUT_OF_SERVICE','UP')[n//200%2]; i=n%200; n+=1\n"
                " path=f'/eureka/apps/APP{i//10}/host-{i}.local:app:8080/status'\n"
                " c.request('PUT',f'{path}?value={s}')\n"
                " c.getresponse().read(); time.sleep(0.1)\n"
            )
            changer = subprocess.Popen(["taskset", "-c", ASKING, sys.executable, "-c", script])
            try:
                time.sleep(1)
                row.add(server.name, wrk(server.url("/apps/delta"), GZIP, seconds))
            finally:
                changer.kill()
                changer.wait()
    return row


# A fleet at the clients' defaults.


async def fleet(port: int, size: int, seconds: float) -> tuple[float, float]:
    """Every instance renews and fetches the delta each 30 s, one in a thousand changes each minute.

    The p99 of all answers in milliseconds, and the share of the planned requests that was made.
    """
    per_second = size / 30
    lanes = 64
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    async def lane(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        interval = lanes / (2 * per_second)
        due = time.perf_counter() + interval * number / lanes
        turn = number
        while due < stop:
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            i = (turn * 7919) % size
            turn += lanes
            if (turn // lanes) % 2:
                path = f"/eureka/apps/APP{i // INSTANCES_OF_AN_APP}/host-{i}.local:app:8080"
                line = f"PUT {path}?status=UP&lastDirtyTimestamp=1700000000000 HTTP/1.1\r\n"
            else:
                line = (
                    "GET /eureka/apps/delta HTTP/1.1\r\n"
                    "Accept: application/json\r\nAccept-Encoding: gzip\r\n"
                )
            writer.write(f"{line}Host: h\r\nContent-Length: 0\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 2"), head
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            elif b"chunked" in head:
                while (await reader.readline()) != b"0\r\n":
                    pass
                await reader.readline()
            # From when it was due: a server that falls behind is not waited for.
            latencies.append((time.perf_counter() - due) * 1000)
            due += interval
        writer.close()

    async def changes() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = 0
        while time.perf_counter() < stop:
            await asyncio.sleep(60_000 / size)
            i = number % 500
            status = ("OUT_OF_SERVICE", "UP")[number // 500 % 2]
            number += 1
            path = f"/eureka/apps/APP{i // INSTANCES_OF_AN_APP}/host-{i}.local:app:8080"
            line = (
                f"PUT {path}/status?value={status} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
            )
            writer.write(line.encode())
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    await asyncio.gather(changes(), *(lane(number) for number in range(lanes)))
    latencies.sort()
    planned = 2 * per_second * seconds
    return latencies[int(len(latencies) * 0.99)], len(latencies) / planned


def largest_fleet(server: Server, sizes: Sequence[int], seconds: float, row: Row) -> None:
    """The largest of these sizes whose p99 stays within 100 ms, added to the row."""
    largest = filled = 0
    for size in sizes:
        fill(server, size, filled)
        filled = size
        os.sched_setaffinity(0, {int(ASKING)})
        p99, made = uvloop.run(fleet(server.port, size, seconds))
        print(f"fleet of {size:,} at {server.name}: p99 {p99:.1f} ms, {made:.0%} made", flush=True)
        if p99 > 100 or made < 0.98:
            break
        largest = size
    row.add(server.name, largest)


# Propagation, and heartbeats at growing sizes.


def propagation(folder: Path, rounds: int) -> Row:
    """Milliseconds from a registration's answer to a delta that shows it, through two workers."""
    row = Row("change → delta through any worker, p99", "≤ 20 ms", "ms")
    with ours(folder, workers=2) as server:
        fill(server, 1000)
        for _ in range(rounds):
            delays = []
            for number in range(300):
                connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in "ab"]
                app, body = registration(2000 + number)
                began = time.perf_counter()
                send(server.port, "POST", f"/eureka/apps/{app}", body, JSON, connections[0])
                while True:
                    delta = send(
                        server.port, "GET", "/eureka/apps/delta", None, JSON, connections[1]
                    ).body
                    if f"host-{2000 + number}.local".encode() in delta:
                        break
                delays.append((time.perf_counter() - began) * 1000)
                for connection in connections:
                    connection.close()
            row.add(server.name, sorted(delays)[int(len(delays) * 0.99)])
    return row


def growing(folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Heartbeats at 1,000, 10,000 and 100,000 instances."""
    rows = [Row(f"heartbeat at {count:,}", "flat within 25 %") for count in (1000, 10_000, 100_000)]
    with ours(folder) as server:
        filled = 0
        for row, count in zip(rows, (1000, 10_000, 100_000), strict=True):
            fill(server, count, filled)
            filled = count
            for _ in range(rounds):
                row.add(server.name, wrk(server.url("/apps"), PLAIN, seconds, heartbeats(count)))
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| measure | genuine | this server | ratio | target | nginx, static | to nginx |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        unit = "" if row.unit == "/s" else f" ({row.unit})"
        lines.append(
            f"| {row.name}{unit} | {row.shown('genuine')} | {row.shown('this server')}"
            f" | {row.ratio('genuine')} | {row.target}"
            f" | {row.shown('nginx')} | {row.ratio('nginx')} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """The ratios to the genuine server as bars."""
    found = [
        (row.name.replace("`", ""), float(row.ratio("genuine")))
        for row in rows
        if row.ratio("genuine") and row.unit == "/s"
    ]
    top = max([value for _, value in found] or [1.0])
    height = 26 * len(found) + 20
    bars = []
    for place, (name, value) in enumerate(found):
        y = 26 * place + 10
        width = 420 * value / top
        bars.append(
            f'<text x="250" y="{y + 13}" text-anchor="end">{name}</text>'
            f'<rect x="260" y="{y}" width="{width:.0f}" height="18" fill="#175cd3"/>'
            f'<text x="{268 + width:.0f}" y="{y + 13}">{value:.1f} times</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#475467">'
        + "".join(bars)
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--parts", default="1000,10000,propagation,growing,fleet")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    parts = options.parts.split(",")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for size in (1000, 10_000):
            if str(size) in parts:
                rows += compare(size, options.rounds, options.seconds, folder)
        if "propagation" in parts:
            rows.append(propagation(folder, options.rounds))
        if "growing" in parts:
            rows += growing(folder, options.rounds, options.seconds)
        if "fleet" in parts:
            row = Row("largest fleet, p99 ≤ 100 ms", "≥ 60,000 and ≥ 5", "instances")
            with genuine() as server:
                largest_fleet(server, (2000, 5000, 10_000, 20_000, 40_000), 15, row)
            with ours(folder) as server:
                largest_fleet(server, (20_000, 40_000, 60_000, 80_000, 100_000), 15, row)
            rows.append(row)
    print(table(rows))
    if options.write:
        options.write.write_text(table(rows) + "\n", encoding="utf-8")
        options.write.with_suffix(".svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
