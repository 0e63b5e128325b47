"""How long it takes until Redis has back what it lost, and what heartbeats take meanwhile.

    python bench/giving_back.py [--instances 100000] [--namespaces 1] [--machines 3]
                                [--how emptied|restarted]

Each machine is a process with a folder of its own and the registry as a worker has it. All hold the
whole fleet, which is spread over the namespaces, and each renews 200 of its instances a second, one
by one. Then Redis is emptied, or killed and started with nothing. Printed is after how many seconds
Redis had everything again, after how many each machine had it in the new life, and what one
heartbeat took meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import redis

from registry import Registry, RegistrySettings, open_store
from registry.lease import SystemClock
from registry.model import DEFAULT_NAMESPACE, Lease, Namespace
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer

GROUP = 500
RATE = 200
MOST_SECS = 300.0
PREFIX = "bench"


def spread(instances: int, namespaces: int) -> dict[Namespace, list[tuple[str, str]]]:
    """The application and id of each instance, by its namespace."""
    names = [Namespace(f"n{number}") for number in range(namespaces)]
    fleet: dict[Namespace, list[tuple[str, str]]] = {each: [] for each in names}
    if namespaces == 1:
        names, fleet = [DEFAULT_NAMESPACE], {DEFAULT_NAMESPACE: []}
    for number in range(instances):
        instance = f"APP-{number // GROUP}", f"host-{number}.example.com:web:8080"
        fleet[names[number % namespaces]].append(instance)
    return fleet


class Machine:
    """What one does, in a process of its own."""

    def __init__(self, url: str, fleet: dict[Namespace, list[tuple[str, str]]]) -> None:
        self._store = open_store(url)
        self._registry = Registry(self._store, SystemClock(), RegistrySettings())
        self._registry.start()
        self._fleet = fleet
        self._instances = sum(map(len, fleet.values()))
        self._took: list[float] = []
        self._stopping = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def fill(self) -> None:
        for namespace, names in self._fleet.items():
            for start in range(0, len(names), GROUP):
                now = SystemClock().mono_ms()
                lease = Lease(now + 900_000, 900_000, time.time_ns() // 1_000_000)
                portion = [
                    put(
                        sample_instance(
                            app,
                            name,
                            duration_secs=900,
                            lease_secs=900,
                            metadata={"zone": "a" * 100},
                        ),
                        lease=lease,
                    )
                    for app, name in names[start : start + GROUP]
                ]
                self._store.commit_all(namespace, portion)

    def _has_all(self) -> bool:
        return sum(self._store.namespaces().values()) == self._instances

    def begin(self) -> None:
        """Have everything, and renew from now on."""
        while not self._has_all():
            time.sleep(0.1)
        for namespace in self._fleet:
            self._registry.in_namespace(namespace).view()
        self._renewing.start()

    def _renew(self) -> None:
        names = [(namespace, *name) for namespace, listed in self._fleet.items() for name in listed]
        chosen = random.Random(1)
        while not self._stopping.wait(1 / RATE):
            namespace, app, name = chosen.choice(names)
            registry = self._registry.in_namespace(namespace)
            began = time.monotonic()
            assert registry.renew(app, name) is not None
            self._took.append(time.monotonic() - began)

    def life(self) -> int:
        return int(self._store.state().life)

    def given_back(self, life: int) -> float:
        """When this machine had everything in another life, in monotonic seconds."""
        until = time.monotonic() + MOST_SECS
        while time.monotonic() < until:
            with contextlib.suppress(Exception):
                now = self.life()
                if self._has_all() and all(
                    self._store.revision(each) >= now > life for each in self._fleet
                ):
                    return time.monotonic()
            time.sleep(0.05)
        return float("inf")

    def heartbeats(self) -> list[float]:
        took, self._took = self._took, []
        return took

    def close(self) -> None:
        self._stopping.set()
        self._renewing.join(10)
        self._store.close()


def serve(url: str, fleet: dict[Namespace, list[tuple[str, str]]], calls: Any) -> None:
    machine = Machine(url, fleet)
    calls.send(None)
    while call := calls.recv():
        calls.send(getattr(machine, call[0])(*call[1:]))


class Machines:
    """Several, on one Redis."""

    def __init__(self, urls: list[str], fleet: dict[Namespace, list[tuple[str, str]]]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.calls, self._processes = [], []
        for url in urls:
            here, there = spawn.Pipe()
            process = spawn.Process(target=serve, args=(url, fleet, there))
            process.start()
            self.calls.append(here)
            self._processes.append(process)
            here.recv()

    def all(self, *call: Any) -> list[Any]:
        for calls in self.calls:
            calls.send(call)
        return [calls.recv() for calls in self.calls]

    def close(self) -> None:
        self.all("close")
        for calls, process in zip(self.calls, self._processes, strict=True):
            calls.send(())
            process.join()


def has_all(server: RedisServer, fleet: dict[Namespace, list[tuple[str, str]]]) -> bool:
    with contextlib.suppress(redis.RedisError), server.client() as client:
        asked = client.pipeline(transaction=False)
        for namespace in fleet:
            asked.hlen(f"{{{PREFIX}:{namespace}}}:record")
        return bool(asked.execute() == [len(listed) for listed in fleet.values()])
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--namespaces", type=int, default=1)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--how", choices=("emptied", "restarted"), default="emptied")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        server = RedisServer(Path(made))
        try:
            measure(server, Path(made), options)
        finally:
            server.stop()


def measure(server: RedisServer, folder: Path, options: argparse.Namespace) -> None:
    urls = [server.url(PREFIX, folder / f"copy-{each}") for each in range(options.machines)]
    fleet = spread(options.instances, options.namespaces)
    machines = Machines(urls, fleet)
    machines.calls[0].send(("fill",))
    machines.calls[0].recv()
    machines.all("begin")
    time.sleep(3)
    before = [each for took in machines.all("heartbeats") for each in took]
    life = machines.all("life")[0]
    began = time.monotonic()
    if options.how == "emptied":
        with server.client() as client:
            client.flushall()
    else:
        server.kill()
        server.start()
    for calls in machines.calls:
        calls.send(("given_back", life))
    while not has_all(server, fleet) and time.monotonic() < began + MOST_SECS:
        time.sleep(0.05)
    redis_had = time.monotonic() - began
    had = [calls.recv() - began for calls in machines.calls]
    during = [each for took in machines.all("heartbeats") for each in took]
    print(f"{options.instances:,} instances in {options.namespaces:,} namespaces,", end=" ")
    print(f"{options.machines} machines, Redis {options.how}")
    print(f"Redis had all after {redis_had:.1f} s, the machines after", end=" ")
    print(", ".join(f"{each:.1f} s" for each in sorted(had)))
    for name, took in (("before", sorted(before)), ("meanwhile", sorted(during))):
        shown = [f"{1000 * took[int(len(took) * part)]:.1f}" for part in (0.5, 0.99)]
        print(f"a heartbeat {name}: p50 {shown[0]} ms, p99 {shown[1]} ms,", end=" ")
        print(f"longest {1000 * took[-1]:.0f} ms, {len(took)} of them")
    machines.close()


if __name__ == "__main__":
    main()
