"""Gunicorn with an application of the tests, and clients that say exactly what they are told to."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from conformance.programs import free_port
from tests.servers import HANG_SECS, MEASURED, ROOT, ended_gently, wait_until
from tests.turned import request

LOOP = "eureka_http.worker.EventLoopWorker"
APPLICATION = "tests.applications.loop"


class Site:
    """Gunicorn serving the test application from a folder."""

    def __init__(
        self,
        folder: Path,
        worker_class: str,
        application: str = f"{APPLICATION}:app",
        bind: str | None = None,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.folder = folder
        self._log = folder / "log"
        given = {
            "bind": bind or f"127.0.0.1:{self.port}",
            "worker_class": worker_class,
            "threads": 4,
            "keepalive": 30,
            "graceful_timeout": 60,
            "control_socket_disable": True,
            **settings,
        }
        hooks = given.pop("hooks", "")
        lines = [f"{name} = {value!r}" for name, value in given.items()]
        (folder / "conf.py").write_text("\n".join([*lines, hooks]))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            **MEASURED,
            **(env or {}),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "conf.py", application],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, "readiness")
        except BaseException:
            self.__exit__()
            raise

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return bool(self.worker_pids()) and "Booting worker" in self.log()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        ended_gently(self.process)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=HANG_SECS)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        main = self.process.pid
        return [int(p) for p in Path(f"/proc/{main}/task/{main}/children").read_text().split()]

    def wire(self, first: bytes = b"") -> Wire:
        """A connection, with what is to be sent on it first."""
        wire = Wire(socket.create_connection(("127.0.0.1", self.port), timeout=HANG_SECS))
        wire.send(first)
        return wire

    def get(self, path: str, headers: str = "", method: str = "GET") -> Reply:
        with self.wire(request(path, headers + "Connection: close\r\n", method)) as wire:
            return wire.reply(method)

    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.get("/state").body)
        return value


class Reply(NamedTuple):
    status: int
    version: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A client that says exactly what it is told to, and reads answers one by one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, str, dict[str, str]]:
        line = self._file.readline().decode()
        assert line, "the connection was closed before an answer"
        version, status, *_ = line.split(" ", 2)
        headers = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        return int(status), version, headers

    def chunk(self) -> bytes:
        """The next chunk of a body; empty at its end."""
        size = self._file.readline()
        assert size.endswith(b"\r\n"), "the body was cut off"
        data = self._file.read(int(size, 16))
        assert self._file.read(2) == b"\r\n"
        return data

    def reply(self, method: str = "GET") -> Reply:
        status, version, headers = self.head()
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
            assert len(body) == int(headers["content-length"])
        else:
            body = self._file.read()
        return Reply(status, version, headers, body)

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False where anything else comes."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


class Load:
    """Clients that keep their connections, until stopped; every error is a loss."""

    def __init__(self, port: int, paths: list[str]) -> None:
        self.errors: list[str] = []
        self.answers = 0
        self._port = port
        self._paths = paths
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HANG_SECS)
        while not self._stopped.is_set():
            path = self._paths[(self.answers + number) % len(self._paths)]
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                self.answers += 1
                if response.status != 200:
                    self.errors.append(f"{path}: {response.status}")
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(f"{path}: {error!r}")
                connection.close()
            if number % 2:
                connection.close()
            time.sleep(0.002)
        connection.close()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def tls(site: Site, folder: Path, client: str | None = None) -> Wire:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client is not None:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    plain = socket.create_connection(("127.0.0.1", site.port), timeout=HANG_SECS)
    return Wire(context.wrap_socket(plain, server_hostname="localhost"))
