"""Debian's Redis, as tests start, kill, pause and empty it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import redis

from conformance.programs import free_port
from tests.servers import wait_until

_PREFIXES = itertools.count()


def another_prefix() -> str:
    """One under which nothing is stored yet."""
    return f"registry-{os.getpid()}-{next(_PREFIXES)}"


class RedisServer:
    """A server on a free port, which keeps nothing when it ends unless it is told to."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._options = options
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._folder), *self._options],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self.answers, "Redis answers")

    def answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "redis.log").read_text()[-2000:]
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> Any:
        return redis.Redis(port=self.port)

    def url(self, prefix: str, folder: Path) -> str:
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}&folder={folder}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, whether it runs or not."""
        self.go_on()
        self.kill()
