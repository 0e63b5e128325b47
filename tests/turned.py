"""A worker without a process, whose loop is turned by hand; named as the fakes that they are.

When the kernel hands over what a client sent, and in which turn of a loop that is, is not ours to
choose. Here it is.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

from gunicorn.config import Config
from gunicorn.glogging import Logger

from eureka_http.connection import Connection
from eureka_http.exchange import Answer, Lane, LoopHooks, Promise, Request
from eureka_http.worker import EventLoopWorker


class Taken(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.reads = True
        self.is_closed = False
        self.has_ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        self.written += b"".join(parts)

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


class Turned:
    """A loop that is turned by hand, with a clock that is set."""

    def __init__(self) -> None:
        self._soon: list[tuple[Callable[..., Any], Any]] = []
        self.later: list[tuple[float, Callable[..., Any]]] = []
        self.seconds = 1000.0
        self.is_stopped = False
        self.remove_reader: Callable[[int], None] = lambda descriptor: None

    def time(self) -> float:
        return self.seconds

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._soon.append((function, arguments))

    def call_later(self, seconds: float, function: Callable[..., Any]) -> None:
        self.later.append((seconds, function))

    def stop(self) -> None:
        self.is_stopped = True

    def turn(self) -> None:
        """Call what was to be called soon, but not what comes of that."""
        soon, self._soon = self._soon, []
        for function, arguments in soon:
            function(*arguments)

    def run(self) -> None:
        """Turn until there is nothing to be called soon."""
        while self._soon:
            self.turn()


class Pool:
    """A pool that keeps what it is given and runs nothing."""

    def __init__(self) -> None:
        self.submitted: list[Callable[[], None]] = []

    def submit(self, function: Callable[[], None]) -> None:
        self.submitted.append(function)


class Counting:
    """An application that answers at once, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loop_hooks = LoopHooks(self.fast_lane)

    def fast_lane(self, request: Request) -> Answer:
        self.asked.append(request.path)
        return Answer(200, request.read_body(100_000))


class Laned(Counting):
    """It has a lane for all fields, which answers what is called so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop_hooks = LoopHooks(self.fast_lane, self.lane)

    def lane(self, headers: Mapping[str, str]) -> Lane:
        return self

    def reader(self, target: str) -> None:
        return None

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        if target != "/laned":
            return None
        self.asked.append(target)
        return Answer(200, b"laned")


class Promising(Laned):
    """Its lane promises everything, and says in the answer what."""

    def __init__(self) -> None:
        super().__init__()
        self.promised: list[tuple[Promise, str]] = []
        self.loop_hooks = LoopHooks(self.fast_lane, self.lane, self.settle)

    def fast_lane(self, request: Request) -> Answer:
        return Answer(200, b"fast %s" % request.path.encode())

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        promise = Promise()
        self.promised.append((promise, target))
        return promise

    def settle(self) -> None:
        for promise, target in self.promised:
            promise.answer = Answer(200, f"kept {target}".encode())
        self.promised.clear()


def a_worker(application: object) -> tuple[EventLoopWorker, Turned]:
    """A worker that serves the application; its threads run nothing."""
    cfg = Config()
    worker = EventLoopWorker(1, os.getppid(), [], cast(Any, None), 30, cfg, Logger(cfg))
    worker.wsgi = cast(Any, application)
    worker.prepare()
    worker.alive = True
    worker.keeps_alive = worker.is_quick = True
    worker.loop.close()
    weakref.finalize(worker, worker.tmp.close)  # in which its heartbeat is told
    loop = Turned()
    worker.loop = cast(asyncio.AbstractEventLoop, loop)
    return worker, loop


def connected(worker: EventLoopWorker) -> tuple[Connection, Taken]:
    """A connection to the worker, and its transport."""
    transport = Taken()
    connection = Connection(worker, ("127.0.0.1", 1), ("127.0.0.1", 2))
    worker._accepted += 1
    connection.connection_made(transport)
    return connection, transport


def request(path: str, headers: str = "", method: str = "GET", body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode("latin-1") + body
