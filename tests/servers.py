"""The real server as its operator runs it: gunicorn with worker processes on a free port."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conformance.programs import free_port

ROOT = Path(__file__).parent.parent
# ``WORKER_CLASS=gthread make test`` has everything served by another worker than the default.
ANOTHER_WORKER = {k: v for k, v in os.environ.items() if k == "WORKER_CLASS"}
# What has processes tell which lines they ran, while that is measured.
MEASURED = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
# What takes longer hangs. No verdict on how fast anything is: the machine may be slow, and busy.
HANG_SECS = 600
# So a lease that no test is about ends in none.
LEASE_SECS = 6 * HANG_SECS
JSON = {"Content-Type": "application/json", "Accept": "application/json"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def wait_until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Poll until the condition holds, and return what it gave.

    There is an end to the waiting only so that what hangs is told by its name.
    """
    deadline = time.monotonic() + HANG_SECS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not hold within {HANG_SECS} s"
        time.sleep(0.02)


def counted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Count the calls of a method from now on: the list grows with each."""
    genuine, calls = getattr(owner, name), list[None]()

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return genuine(*arguments, **options)

    patch.setattr(owner, name, call)
    return calls


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few megabytes of its own; to mount it takes root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write to a disk until it is full; the file to be deleted when it is to have space again."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while file.write(b"x" * 65_536):
            file.flush()
    return ballast


def ended_gently(process: subprocess.Popen[bytes]) -> None:
    """Where lines are counted, have it end so that it can tell of them; or else do nothing."""
    if MEASURED and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> Reply:
    """One request, on a connection of its own unless one is given."""
    used = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_SECS)
    data = body.encode() if isinstance(body, str) else body
    used.request(method, path, body=data, headers=dict(headers or {}))
    response = used.getresponse()
    reply = Reply(
        response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    )
    if connection is None:
        used.close()
    return reply


def instance_body(app: str, instance_id: str, /, **fields: Any) -> str:
    """A registration as a Java client sends it, with some fields replaced."""
    instance = {
        "instanceId": instance_id,
        "hostName": "host.local",
        "app": app,
        "ipAddr": "10.0.0.1",
        "status": "UP",
        "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 8443, "@enabled": "false"},
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
            "name": "MyOwn",
        },
        "vipAddress": app.lower(),
        "metadata": {"zone": "a"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": LEASE_SECS},
        "lastDirtyTimestamp": "1700000000000",
    }
    return json.dumps({"instance": instance | fields})


class RegistryServer:
    """The server with its folder; it keeps its port over restarts."""

    command = (sys.executable, "-m", "gunicorn", "wsgi:app")
    runs_in = ROOT

    def __init__(
        self, folder: Path, *, workers: int = 2, env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.base = f"{self.root}/eureka"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WORKERS": str(workers),
            "STORE_URL": f"lmdb:{folder / 'store'}",
            "EUREKA_SERVER_ENABLE_SELF_PRESERVATION": "false",
            **ANOTHER_WORKER,
            **MEASURED,
            **(env or {}),
        }

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            ended_gently(self._process)
        with contextlib.suppress(ProcessLookupError):
            self.kill9()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the processes without waiting for them."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.runs_in,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Until it serves, with all of its workers."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, self.log()
            try:
                return self.send("GET", "/health/ready").status == 200
            except OSError:
                return False

        wait_until(ready, "readiness")
        workers = int(self.environment["WORKERS"])
        wait_until(lambda: len(self.worker_pids()) == workers, "all workers")

    def send(self, method: str, path: str, *arguments: Any, **options: Any) -> Reply:
        return send(self.port, method, path, *arguments, **options)

    def eureka(self, method: str, path: str, *arguments: Any, **options: Any) -> Reply:
        return self.send(method, "/eureka" + path, *arguments, **options)

    def register(self, app: str, instance_id: str, /, **fields: Any) -> int:
        body = instance_body(app, instance_id, **fields)
        return self.eureka("POST", f"/apps/{app}", body, JSON).status

    def settled(self, call: Callable[[], int]) -> int:
        """What a call is answered, once it is not that its Redis is away.

        A Redis that stands still for some seconds is, and on a busy machine any process may; and
        who gives something back may take longer than others wait for it. A store of the server's
        own has no such excuse.
        """
        if not self.environment["STORE_URL"].startswith("redis"):
            return call()
        return int(wait_until(lambda: (status := call()) != 503 and status, "Redis is there"))

    def take(self, app: str, instance_id: str, /, **fields: Any) -> None:
        """Register an instance, once its Redis is there."""
        assert self.settled(lambda: self.register(app, instance_id, **fields)) == 204

    def cancel(
        self, app: str, instance_id: str, connection: http.client.HTTPConnection | None = None
    ) -> None:
        """Cancel an instance that is known, once its Redis is there."""
        path, statuses = f"/apps/{app}/{instance_id}", list[int]()

        def cancel() -> int:
            statuses.append(self.eureka("DELETE", path, None, None, connection).status)
            return statuses[-1]

        # One that was refused may be done nevertheless: then it was not known.
        assert self.settled(cancel) in ((200,) if len(statuses) == 1 else (200, 404))

    def apps(self) -> dict[str, dict[str, Any]]:
        """Every instance by id."""
        answer = self.eureka("GET", "/apps", None, JSON).json()["applications"]
        return {i["instanceId"]: i for a in answer["application"] for i in a["instance"]}

    def kill(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def tell(self, number: int) -> None:
        """Signal the main process alone, as an init system does."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop; its exit code."""
        assert self._process is not None
        self.tell(number)
        code = self._process.wait(timeout=HANG_SECS)
        self._process = None
        return code

    def kill9(self) -> None:
        if self._process is not None:
            self.kill(signal.SIGKILL)
            self._process.wait(timeout=HANG_SECS)
            self._process = None

    def worker_pids(self) -> list[int]:
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text()
        return [int(pid) for pid in children.split()]

    def pss_bytes(self) -> int:
        """The memory of all processes, shared pages counted once."""
        assert self._process is not None
        total = 0
        for pid in [self._process.pid, *self.worker_pids()]:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Renewed:
    """Clients of short leases, and until when each surely has its own, however busy the machine is.

    A lease begins when a server comes to the registration or renewal: not before that was sent.
    """

    def __init__(self, app: str, lease_secs: int) -> None:
        self._app = app
        self._fields = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": lease_secs}}
        # A machine tells others of a renewal a moment after it answered.
        self._sure_secs = lease_secs - 1
        self._until: dict[str, float] = {}
        self._known_at: dict[str, set[int]] = {}
        self._late: set[str] = set()

    def register(self, server: RegistryServer, *names: str) -> None:
        for name in names:
            began = time.monotonic()
            server.take(self._app, name, **self._fields)
            self._known_at[name] = {server.port}
            self._until[name] = began + self._sure_secs

    def renew(self, server: RegistryServer, name: str) -> None:
        """Whose lease surely lasts is known, at least where it was since it registered.

        Another one, who may rightly be gone, registers again.
        """
        began = time.monotonic()
        status = server.eureka("PUT", f"/apps/{self._app}/{name}").status
        if time.monotonic() >= self._until[name]:
            self._late.add(name)
            self.register(server, name)
        elif status == 200:
            self._known_at[name].add(server.port)
            self._until[name] = began + self._sure_secs
        else:
            assert server.port not in self._known_at[name], (name, status)

    def resume(self) -> None:
        """What comes gives each its whole lease anew: a server goes on after an outage."""
        self._until = dict.fromkeys(self._until, time.monotonic() + self._sure_secs)

    def lasting(self) -> set[str]:
        """Whose lease surely lasts."""
        now = time.monotonic()
        return {name for name, until in self._until.items() if now < until}

    def all_last(self) -> bool:
        return self.lasting() == self._until.keys()

    def late(self) -> set[str]:
        """Who may rightly have been evicted some time, as it could not be renewed soon enough."""
        return self._late | (self._until.keys() - self.lasting())


class Watch:
    """A client that watches all instances of a server, and what it knows by that."""

    def __init__(
        self, server: RegistryServer, connection: http.client.HTTPConnection | None = None
    ) -> None:
        """Begin with a snapshot; on a connection to a certain worker, where one is given."""
        used = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECS)
        used.request("GET", "/api/v1/watch")
        self._connection, self._stream = used, used.getresponse()
        self.revision = 0
        self.known: dict[str, dict[str, Any]] = {}
        assert self.next() == ("snapshot", "")

    def next(self) -> tuple[str, str]:
        """Wait for the next event: its kind, and the instance that it is about."""
        kind = ""
        while True:
            line = self._stream.readline().decode()
            assert line, "the stream ended"
            word, _, value = line.rstrip("\n").partition(": ")
            if word == "id":
                self.revision = int(value)
            elif word == "event":
                kind = value
            elif word == "data":
                told = json.loads(value)
                if kind == "snapshot":
                    self.known = {each["id"]: each for each in told}
                    return kind, ""
                if kind in ("deleted", "evicted"):
                    self.known.pop(told["id"], None)
                else:
                    self.known[told["id"]] = told
                return kind, told["id"]

    def until(self, instance_id: str) -> list[tuple[str, str]]:
        """The events until the first about an instance, or a snapshot that has it."""
        events = [self.next()]
        while events[-1][1] != instance_id and instance_id not in self.known:
            events.append(self.next())
        return events

    def close(self) -> None:
        self._connection.close()
