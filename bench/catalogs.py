"""How soon a change at a source is in the answer of a Eureka client, and what 10,000 entries cost.

    python bench/catalogs.py [--only file,etcd] [--write build/catalogs.md]

Real sources, and the real server with two workers, asked on a fresh connection each time: so either
worker answers. From the write that the source acknowledged to the first answer that holds it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from catalogs.testing import until
from tests.servers import JSON, RegistryServer
from tests.sources.consul_agent import ConsulSource
from tests.sources.etcd import EtcdSource
from tests.sources.eureka_server import EurekaSource
from tests.sources.files import FolderSource
from tests.sources.kubernetes import KubernetesSource

SOURCES: dict[str, tuple[Callable[[Path], Any], Callable[[Any], dict[str, Any]]]] = {
    "file": (FolderSource, lambda s: {"folder": str(s.folder)}),
    "kubernetes": (KubernetesSource, lambda s: {"kubeconfig": str(s.kubeconfig())}),
    "consul": (ConsulSource, lambda s: {"url": s.url}),
    "etcd": (EtcdSource, lambda s: {"endpoints": [s.url]}),
    "eureka": (lambda folder: EurekaSource(), lambda s: {"urls": [s.url], "interval_secs": 0.5}),
}
warnings.filterwarnings("ignore", "Unverified HTTPS request")  # a source's own API, on loopback
CHANGES, ROW, MANY = 50, 1000, 10_000
# As often as a cluster opens its watches again in an hour; a JVM is started less often.
RESTARTS = 12
QUIET_SECS = 30


def present(server: RegistryServer, app: str) -> set[str]:
    reply = server.eureka("GET", f"/apps/{app}", None, JSON)
    if reply.status != 200:
        return set()
    return {instance["ipAddr"] for instance in reply.json()["application"]["instance"]}


def report(server: RegistryServer) -> dict[str, Any]:
    return dict(server.send("GET", "/api/v1/catalogs").json()["catalogs"][0])


def shown(values: list[float]) -> str:
    ordered = sorted(values)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"{statistics.median(ordered) * 1000:.0f} / {p99 * 1000:.0f} ms"


def measure(kind: str, folder: Path) -> list[str]:
    make, settings = SOURCES[kind]
    source = make(folder)
    try:
        # Consul and Eureka may take longer to be back than entries stay unmarked by default, and
        # what is asked here is whether anything but the mark changes.
        terms = {"stale_after_secs": 60}
        catalogs = [{"kind": kind, "name": "bench", **terms, **settings(source)}]
        env = {"REGISTRY_CATALOGS": json.dumps(catalogs), "LOG_LEVEL": "warning"}
        with RegistryServer(folder, env=env) as server:
            source.put("app", "10.1.0.1", 80)
            until(lambda: present(server, "APP"))
            delays = []
            for number in range(CHANGES):
                host = f"10.1.1.{number + 1}"
                source.put("app", host, 80)
                began = time.perf_counter()
                until(lambda h=host: h in present(server, "APP"))
                delays.append(time.perf_counter() - began)
            began = time.perf_counter()
            for number in range(ROW):
                source.put(f"row{number % 50}", f"10.2.{number // 250}.{number % 250}", 80)
            until(lambda: len(server.apps()) == ROW + CHANGES + 1)
            row = time.perf_counter() - began
            time.sleep(1.5)  # a report is written once a second
            revision = report(server)["last_change_ms"]
            for _ in range(restarts := 3 if kind == "eureka" else RESTARTS):
                source.disturb()
                time.sleep(3)
            time.sleep(QUIET_SECS)
            quiet = "none" if report(server)["last_change_ms"] == revision else "some"
            killed = time.perf_counter()
            worker = report(server)["worker"]
            os.kill(worker, signal.SIGKILL)
            source.put("late", "10.3.0.1", 80)
            until(lambda: present(server, "LATE"))
            takeover = time.perf_counter() - killed
            idle = server.pss_bytes()
            server.stop()
            source.put_many(
                [(f"many{n % 100}", f"10.{10 + n // 60000}.{n // 250 % 240}.{n % 250}", 80)
                 for n in range(MANY)]
            )  # fmt: skip
            server.start()
            began, slowest = time.perf_counter(), 0.0
            while report(server)["entries"] < MANY or len(server.apps()) < MANY:
                asked = time.perf_counter()
                present(server, "APP")
                slowest = max(slowest, time.perf_counter() - asked)
                time.sleep(0.01)
                assert time.perf_counter() - began < 120
            loaded = time.perf_counter() - began
            memory = (server.pss_bytes() - idle) / 2**20
            return [
                shown(delays),
                f"{row:.1f} s",
                f"{quiet} ({restarts})",
                f"{takeover:.1f} s",
                f"{loaded:.1f} s",
                f"{memory:.0f} MiB",
                f"{slowest * 1000:.0f} ms",
            ]
    finally:
        getattr(source, "close", source.kill)()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SOURCES))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| catalog | change to answer, p50 / p99 | 1,000 changes in a row |"
        " changes by restarts of the source and half a quiet minute |"
        " worker killed, the next goes on | 10,000 listed | memory for them, two workers |"
        " slowest answer meanwhile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in arguments.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {kind} | {' | '.join(measure(kind, Path(folder)))} |")
            print(lines[-1], flush=True)
    if arguments.write is not None:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
