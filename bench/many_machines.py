"""One, two and three machines on one Redis, against LMDB on one machine, at the store itself.

Each machine is a process with a folder of its own; Debian's Redis keeps nothing on the disk. First
all register one by one, then in groups of 20, then renew as fast as they can; then one registers
while another looks how soon it knows. At last a fleet of 100,000 renews every 30 s. Run with
``python bench/many_machines.py``.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from registry import open_store
from registry.lease import SystemClock
from registry.model import DEFAULT_NAMESPACE, Instance, Lease
from registry.store import Store
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer

NS = DEFAULT_NAMESPACE
SECONDS = 3.0
GROUP = 20
SEEN = 500
FLEET_RENEWALS = 100_000 / 30


def fresh() -> Lease:
    now = SystemClock().mono_ms()
    return Lease(now + 90_000, 90_000, time.time_ns() // 1_000_000, now)


class Machine:
    """What one does, in a process of its own."""

    def __init__(self, url: str, name: str) -> None:
        self._store: Store = open_store(url)
        self._name = name
        self._made = 0

    def _next(self) -> Instance:
        self._made += 1
        return sample_instance("WEB", f"{self._name}.example.com:web:{self._made}")

    def _per_second(self, work: Callable[[], int]) -> float:
        done, began = 0, time.monotonic()
        while time.monotonic() < began + SECONDS:
            done += work()
        return done / (time.monotonic() - began)

    def register(self, group: int) -> float:
        """How many register each second, so many at a time."""

        def work() -> int:
            self._store.commit_all(NS, [put(self._next(), lease=fresh()) for _ in range(group)])
            return group

        return self._per_second(work)

    def renew(self, rate: float | None = None) -> float:
        """How many renew each second, as fast as can be or at a rate."""
        keys = [instance.key for instance in self._store.load(NS).instances]
        began, done = time.monotonic(), 0

        def work() -> int:
            nonlocal done
            if rate is not None and done > rate * (time.monotonic() - began):
                time.sleep(0.005)
                return 0
            for _ in range(10):
                done += 1
                assert self._store.renew(NS, keys[done % len(keys)], fresh(), 7)
            return 10

        return self._per_second(work)

    def write(self) -> dict[int, float]:
        """Register now and then; when each was acknowledged, by its revision."""
        found = {}
        for _ in range(SEEN):
            found[self._store.commit(NS, put(self._next(), lease=fresh()))] = time.monotonic()
            time.sleep(0.004)
        return {int(revision): at for revision, at in found.items()}

    def look(self) -> list[tuple[int, float]]:
        """When each revision was first known here."""
        found: list[tuple[int, float]] = []
        until = time.monotonic() + 120
        while len(found) < SEEN and time.monotonic() < until:
            revision = self._store.revision(NS)
            if not found or revision > found[-1][0]:
                found.append((revision, time.monotonic()))
            elif len(found) > 1 and time.monotonic() > found[-1][1] + 3:
                break
            time.sleep(0.0002)
        return found

    def close(self) -> None:
        self._store.close()


def serve(url: str, name: str, calls: Any) -> None:
    machine = Machine(url, name)
    calls.send(None)
    while call := calls.recv():
        calls.send(getattr(machine, call[0])(*call[1:]))
    machine.close()


class Machines:
    """Several, that all do the same at once."""

    def __init__(self, urls: list[str]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._calls, self._processes = [], []
        for number, url in enumerate(urls):
            here, there = spawn.Pipe()
            process = spawn.Process(target=serve, args=(url, f"host-{number}", there))
            process.start()
            self._calls.append(here)
            self._processes.append(process)
        for calls in self._calls:
            calls.recv()

    def all(self, *call: Any) -> list[Any]:
        for calls in self._calls:
            calls.send(call)
        return [calls.recv() for calls in self._calls]

    def delays(self) -> list[float]:
        """From an acknowledgement until the last machine knows, in milliseconds."""
        writer, looker = self._calls[0], self._calls[-1]
        looker.send(("look",))
        writer.send(("write",))
        written, seen = writer.recv(), looker.recv()
        return [
            max(0.0, 1000 * (next(t for known, t in seen if known >= revision) - at))
            for revision, at in written.items()
            if revision <= seen[-1][0]
        ]

    def close(self) -> None:
        for calls, process in zip(self._calls, self._processes, strict=True):
            calls.send(())
            process.join()


def measure(urls: list[str], server: RedisServer | None) -> list[str]:
    machines = Machines(urls)
    cells = [f"{sum(machines.all('register', size)):,.0f}" for size in (1, GROUP)]
    cells.append(f"{sum(machines.all('renew')):,.0f}")
    if len(urls) > 1:
        delays = sorted(machines.delays())
        cells.append(f"{statistics.median(delays):.1f} / {delays[len(delays) * 99 // 100]:.1f} ms")
    else:
        cells.append("")
    if server is not None:
        before, began = used(server), time.monotonic()
        machines.all("renew", FLEET_RENEWALS / len(urls))
        cells.append(f"{(used(server) - before) / (time.monotonic() - began):.1%}")
    else:
        cells.append("")
    machines.close()
    return cells


def used(server: RedisServer) -> float:
    """The seconds of a processor that Redis has used."""
    with server.client() as client:
        told = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def main() -> None:
    heads = (
        "registrations a second, one by one",
        f"in groups of {GROUP}",
        "renewals a second",
        "known elsewhere, p50 / p99",
        "Redis' share of a processor, fleet of 100,000",
    )
    print("| store |", " | ".join(heads), "|")
    print("| ---" * (1 + len(heads)) + " |")
    with tempfile.TemporaryDirectory() as made:
        print("| LMDB |", " | ".join(measure([f"lmdb:{made}/alone"], None)), "|")
        for count in (1, 2, 3):
            folder = Path(made) / str(count)
            folder.mkdir()
            server = RedisServer(folder)
            try:
                urls = [server.url("bench", folder / f"copy-{each}") for each in range(count)]
                print(f"| Redis, {count} |", " | ".join(measure(urls, server)), "|")
            finally:
                server.stop()


if __name__ == "__main__":
    main()
