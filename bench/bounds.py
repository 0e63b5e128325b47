"""What is promised of large registries and of many at once, against its bound.

    python bench/bounds.py [--only PART …] [--before CHECKOUT] [--write docs/performance.md]

Each part starts servers of its own on the loopback. With ``--before`` the same is measured of
another checkout, in the same run and with the same packages. Figures are of requests from the
first byte sent to the last received.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.beside_genuine import ASKING, SERVING, registration
from conformance.programs import free_port
from tests.servers import send, wait_until

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
TITLE = "## Bounds"
AT_ONCE = 50
BEAT_EVERY_SECS = 0.005


class Figure(NamedTuple):
    """One measure of one checkout."""

    name: str
    bound: str
    value: str


class Server:
    """One checkout's server, its data in a folder."""

    def __init__(self, checkout: Path, folder: Path, workers: int) -> None:
        self.port = free_port()
        self._checkout = checkout
        self._cores = SERVING if workers == 1 else f"{SERVING},{ASKING}"
        self._env = {
            **os.environ,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WORKERS": str(workers),
            "STORE_URL": f"lmdb:{folder}",
            "REGISTRY_MAX_INSTANCES": "1000000",
            "LOG_LEVEL": "error",
        }

    @contextmanager
    def running(self) -> Iterator[float]:
        """It serves meanwhile; how many seconds it took until it did."""
        began = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", self._cores, sys.executable, "-m", "gunicorn", "wsgi:app"],
            cwd=self._checkout,
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return send(self.port, "GET", "/eureka/apps/NOBODY").status < 500
            except OSError:
                return False

        try:
            wait_until(answers, "an answer")
            yield time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(60)

    def wire(self) -> Wire:
        return Wire(self.port)

    def fill(self, bodies: Iterator[tuple[str, str]]) -> None:
        """Register them, many at once on each of a few connections."""
        wires = [self.wire() for _ in range(8)]
        portion: list[bytes] = []
        turn = 0
        for app, body in bodies:
            portion.append(_request("POST", f"/eureka/apps/{app}", body))
            if len(portion) == AT_ONCE:
                wires[turn % len(wires)].exchange(b"".join(portion), AT_ONCE)
                portion, turn = [], turn + 1
        if portion:
            wires[0].exchange(b"".join(portion), len(portion))
        for wire in wires:
            wire.close()


def _request(method: str, path: str, body: str = "", fields: str = "") -> bytes:
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}{kind}\r\n{body}".encode()


class Wire:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", 1 << 20)

    def exchange(self, data: bytes, answers: int = 1) -> tuple[int, int]:
        """Send requests and read their answers: the last one's status, and all bodies' bytes."""
        self._socket.sendall(data)
        status = size = 0
        for _ in range(answers):
            status = int(self._file.readline().split()[1])
            length, chunked = 0, False
            while (line := self._file.readline().strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
                chunked = chunked or line == b"transfer-encoding: chunked"
            size += length
            self._file.read(length)
            while chunked:
                length = int(self._file.readline(), 16)
                self._file.read(length + 2)
                size += length
                chunked = length > 0
        assert status < 300, status
        return status, size

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Heartbeats:
    """Heartbeats every few milliseconds on some connections, and how long each took."""

    def __init__(self, port: int, path: str, connections: int) -> None:
        self.seconds: list[float] = []
        self._beat = _request("PUT", f"{path}?status=UP&lastDirtyTimestamp=1700000000000")
        self._wires = [Wire(port) for _ in range(connections)]
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(wire,)) for wire in self._wires]

    def _run(self, wire: Wire) -> None:
        while not self._is_over.is_set():
            began = time.perf_counter()
            wire.exchange(self._beat)
            self.seconds.append(time.perf_counter() - began)
            self._is_over.wait(BEAT_EVERY_SECS)

    def __enter__(self) -> Heartbeats:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        for wire in self._wires:
            wire.close()

    def percentile(self, percent: int) -> float:
        """In milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def one_application(checkout: Path, folder: Path) -> list[Figure]:
    """One change in a large application, then each list of it."""
    count, rounds = 50_000, 15
    server = Server(checkout, folder, 1)
    bodies = (_instance_of("BIG", number) for number in range(count))
    paths = {"apps": "/eureka/apps", "apps/delta": "/eureka/apps/delta", "apps/BIG": None}
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    fields = "Accept: application/json\r\nAccept-Encoding: gzip\r\n"
    with server.running():
        server.fill(bodies)
        asking, changing = server.wire(), server.wire()
        for turn in range(rounds + 1):
            for name, path in paths.items():
                app, body = _instance_of("BIG", 7919 * turn % count, dirty=turn + 1)
                changing.exchange(_request("POST", f"/eureka/apps/{app}", body))
                began = time.perf_counter()
                asking.exchange(_request("GET", path or "/eureka/apps/BIG", fields=fields))
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    return [
        Figure(
            f"one change in an application of {count:,}, then `{name}` gzip",
            "≤ 20 ms",
            f"{1000 * statistics.median(values):,.1f} ms",
        )
        for name, values in seconds.items()
    ]


def _instance_of(app: str, number: int, dirty: int = 1) -> tuple[str, str]:
    document = json.loads(registration(number)[1])["instance"]
    document |= {
        "app": app,
        "vipAddress": "big",
        "lastDirtyTimestamp": str(1_700_000_000_000 + dirty),
    }
    return app, json.dumps({"instance": document})


def stored(checkout: Path, folder: Path) -> list[Figure]:
    """A start with much that is stored, and the first full fetch, beside heartbeats."""
    count = 200_000
    server = Server(checkout, folder, 4)
    with server.running():
        server.fill(registration(number) for number in range(count))
    path = "/eureka/apps/APP3/host-33.local:app:8080"
    with server.running() as ready:
        # All workers are there, and each of the connections has one of them.
        time.sleep(max(0.0, 3 * ready))
        with Heartbeats(server.port, path, 8) as beats:
            time.sleep(1)
            beats.seconds.clear()
            asking = server.wire()
            began = time.perf_counter()
            fields = "Accept: application/json\r\nAccept-Encoding: gzip\r\n"
            asking.exchange(_request("GET", "/eureka/apps", fields=fields))
            first = time.perf_counter() - began
    return [
        Figure(f"{count:,} stored: ready", "≤ 10 s", f"{ready:.1f} s"),
        Figure("then the first `apps` gzip", "≤ 3 s", f"{first:.1f} s"),
        Figure("heartbeats meanwhile, p99", "≤ 100 ms", f"{beats.percentile(99):,.1f} ms"),
    ]


def native_lists(checkout: Path, folder: Path) -> list[Figure]:
    """Heartbeats beside pollers of native lists, and of snapshots."""
    count, seconds = 20_000, 10.0
    server = Server(checkout, folder, 1)
    path = "/eureka/apps/APP3/host-33.local:app:8080"
    found = []
    with server.running():
        server.fill(registration(number) for number in range(count))
        for name, target, accept in (
            ("native list", "/api/v1/instances", "*/*"),
            ("watch snapshot", "/api/v1/watch?wait=0", "application/json"),
        ):
            poll = _request("GET", target, fields=f"Accept: {accept}\r\n")
            until = time.monotonic() + seconds
            with Heartbeats(server.port, path, 1) as beats:
                beside(polling, server.port, poll, until)
            found.append(
                Figure(
                    f"{name}, {count:,} instances, 4 pollers: heartbeats p50",
                    "≤ 3 ms",
                    f"{beats.percentile(50):,.1f} ms",
                )
            )
    return found


def polling(port: int, poll: bytes, until: float) -> None:
    """Four clients that ask again and again."""

    def ask() -> None:
        wire = Wire(port)
        while time.monotonic() < until:
            wire.exchange(poll)
        wire.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def beside(work: Callable[..., T], *arguments: Any) -> T:
    """Do it in a process of its own, which makes way for the one that measures."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), os.nice, (10,)) as pool:
        return pool.submit(work, *arguments).result()


def watchers(checkout: Path, folder: Path) -> list[Figure]:
    """Many watchers that come at once: how long nobody else had an answer."""
    count, instances = 2_000, 1_000
    server = Server(checkout, folder, 1)
    path = "/eureka/apps/APP3/host-33.local:app:8080"
    with server.running():
        server.fill(registration(number) for number in range(instances))
        with Heartbeats(server.port, path, 1) as beats:
            time.sleep(1)
            beats.seconds.clear()
            told = beside(watching, server.port, count)
    longest = 1000 * max(beats.seconds)
    assert told == count, f"{told} of {count} watchers were told"
    return [
        Figure(
            f"{count:,} watchers that join at once, {instances:,} instances:"
            " longest pause of heartbeats",
            "≤ 200 ms",
            f"{longest:,.0f} ms",
        )
    ]


def watching(port: int, count: int) -> int:
    return asyncio.run(_watch(port, count))


async def _watch(port: int, count: int) -> int:
    """How many of so many watchers that come at once had their whole snapshot."""
    request = _request("GET", "/api/v1/watch", fields="Accept: text/event-stream\r\n")

    async def one() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        joined.append((reader, writer))
        return writer

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(request)
        with contextlib.suppress(asyncio.TimeoutError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(120):
                await reader.readuntil(b"]\n\n")
                return True
        return False

    joined: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    for _ in range(count):
        await one()
    outcomes = await asyncio.gather(*(told(*each) for each in joined))
    for _, writer in joined:
        writer.close()
    return sum(outcomes)


PARTS: dict[str, Callable[[Path, Path], list[Figure]]] = {
    "one-application": one_application,
    "stored": stored,
    "native-lists": native_lists,
    "watchers": watchers,
}


def table(before: dict[str, list[Figure]], after: dict[str, list[Figure]]) -> list[str]:
    lines = ["| measure | bound | before | after |", "| --- | --- | --- | --- |"]
    for part, figures in after.items():
        earlier = {figure.name: figure.value for figure in before.get(part, [])}
        for figure in figures:
            was = earlier.get(figure.name, "")
            lines.append(f"| {figure.name} | {figure.bound} | {was} | {figure.value} |")
    return lines


def write(page: Path, lines: list[str]) -> None:
    """Put the table's lines into the page's section, beside those of parts that did not run."""
    text = page.read_text()
    if TITLE not in text:
        text += (
            f"\n{TITLE}\n\n`make bounds`: what is promised of large registries and of many at once."
            " Servers and clients share two cores; the figures are of one run.\n\n"
            "| measure | bound | before | after |\n| --- | --- | --- | --- |\n"
        )
    start = text.index(TITLE)
    end = text.find("\n## ", start + 1)
    end = len(text) if end < 0 else end
    section = text[start:end]
    for line in lines[2:]:
        name = line.split(" | ")[0]
        known = re.compile(re.escape(name) + r" \|.*\n")
        if known.search(section):
            section = known.sub(lambda _, line=line: line + "\n", section)
        else:
            section = section.rstrip("\n") + f"\n{line}\n"
    page.write_text(text[:start] + section + text[end:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--before", type=Path, help="another checkout, measured as well")
    parser.add_argument("--write", type=Path, help="the page whose section gets the table")
    options = parser.parse_args()
    # This process asks; where a server has one worker it has the other core.
    os.sched_setaffinity(0, {int(ASKING)})
    before: dict[str, list[Figure]] = {}
    after: dict[str, list[Figure]] = {}
    for part in options.only:
        for checkout, figures in ((options.before, before), (ROOT, after)):
            if checkout is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                figures[part] = PARTS[part](checkout.resolve(), Path(folder))
            for figure in figures[part]:
                where = "after" if figures is after else "before"
                print(f"{where:7} {figure.name}: {figure.value}", flush=True)
    lines = table(before, after)
    print("\n".join(lines))
    if options.write:
        write(options.write, lines)


if __name__ == "__main__":
    main()
