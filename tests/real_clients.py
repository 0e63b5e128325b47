"""Real client programs: Spring Cloud applications of two generations, and py-eureka-client.

Java programs are built once and kept outside the tree, under a name that holds their sources' hash.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.servers import ROOT, free_port, send, wait_until

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eureka-registry"
OPENED = (
    "java.base/java.util",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.text",
    "java.desktop/java.awt.font",
)
SMALL = ("-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def built(folder: Path) -> Path:
    """The jar of a Maven project, from the cache where its sources have not changed."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and "target" not in p.parts):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    jar = CACHE / f"{folder.name}-{digest.hexdigest()[:16]}.jar"
    if not jar.exists():
        work = CACHE / f"build-{folder.name}-{os.getpid()}"
        shutil.copytree(folder, work, ignore=shutil.ignore_patterns("target"))
        try:
            subprocess.run(["mvn", "-q", "-B", "package"], cwd=work, check=True, timeout=900)
            (result,) = (work / "target").glob("*.jar")
            shutil.copyfile(result, jar.with_suffix(".part"))
            jar.with_suffix(".part").replace(jar)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return jar


class Program:
    """A client process that answers over HTTP."""

    def __init__(self, command: list[str], log: Path, instance_id: str, port: int) -> None:
        self.id = instance_id
        self.port = port
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, start_new_session=True, cwd=ROOT
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            reply = send(self.port, "GET", path)
        except (OSError, http.client.HTTPException):
            return 0, ""
        return reply.status, reply.body.decode()

    def instances(self, service: str) -> list[str]:
        status, body = self.get(f"/instances/{service}")
        return sorted(json.loads(body)) if status == 200 else []

    def chosen(self, service: str, tries: int = 12) -> set[str]:
        """Who answered a number of calls made through the client's own load balancer."""
        answers = [self.get(f"/choose/{service}") for _ in range(tries)]
        return {body if status == 200 else f"status {status}" for status, body in answers}

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-3000:]
            return self.get("/whoami") == (200, self.id)

        wait_until(ready, 90, f"{self.id} to answer")

    def kill9(self) -> float:
        """Kill it at once; the moment of it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        return time.monotonic()

    def stop(self) -> None:
        """Ask it to stop, which makes it deregister."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill9()


def spring(generation: str, base: str, app: str, instance_id: str, folder: Path) -> Program:
    """Start a Spring Cloud application with intervals of a second and a lease of three."""
    port = free_port()
    opened = [f"--add-opens={module}=ALL-UNNAMED" for module in OPENED]
    settings: dict[str, Any] = {
        "server.port": port,
        "spring.application.name": app,
        "eureka.client.service-url.defaultZone": base + "/",
        "eureka.client.registry-fetch-interval-seconds": 1,
        "eureka.client.instance-info-replication-interval-seconds": 1,
        "eureka.client.initial-instance-info-replication-interval-seconds": 0,
        "eureka.instance.instance-id": instance_id,
        "eureka.instance.hostname": "localhost",
        "eureka.instance.lease-renewal-interval-in-seconds": 1,
        "eureka.instance.lease-expiration-duration-in-seconds": 3,
        "spring.cloud.loadbalancer.cache.ttl": "500ms",
        "ribbon.ServerListRefreshInterval": 500,
        "spring.main.banner-mode": "off",
    }
    command = [
        *("java", *SMALL),
        *(opened if generation == "spring-hoxton" else ()),
        *("-jar", str(built(ROOT / "conformance" / "clients" / generation))),
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    return Program(command, folder / f"{instance_id}.log", instance_id, port)


def python_client(base: str, app: str, instance_id: str, folder: Path) -> Program:
    """Start a program on py-eureka-client with the same intervals."""
    port = free_port()
    program = Path(__file__).parent / "programs" / "py_client.py"
    command = [sys.executable, str(program), base, app, instance_id, str(port)]
    return Program(command, folder / f"{instance_id}.log", instance_id, port)
