"""What the tests of the event loop serve: each path shows one thing that an application may do.

``plain`` is a WSGI application alone, ``app`` the same with hooks for the loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eureka_http.exchange import Answer, LoopHooks, Promise, Request, Stream

state: dict[str, Any] = {
    "closed": 0,
    "made": 0,
    "ticks": 0,
    "joined": 0,
    "left": 0,
    "fast": 0,
    "lanes": 0,
    "lane": 0,
    "read": 0,
    "settled": [],
    "asked": 0,
}
TOLD = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "RAW_URI",
    "QUERY_STRING",
    "SCRIPT_NAME",
    "REMOTE_ADDR",
    "SERVER_PROTOCOL",
    "SERVER_NAME",
    "SERVER_PORT",
    "CONTENT_TYPE",
    "CONTENT_LENGTH",
    "wsgi.url_scheme",
    "wsgi.multithread",
    "wsgi.run_once",
    "wsgi.version",
)
TEXT = ("Content-Type", "text/plain")


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._parts)

    def close(self) -> None:
        state["closed"] += 1


def endless() -> Iterator[bytes]:
    while True:
        state["made"] += 1
        yield b"x" * 65536


def late() -> Iterator[bytes]:
    yield b"the beginning"
    raise RuntimeError("in the middle")


def slowly(seconds: float) -> Iterator[bytes]:
    time.sleep(seconds)
    yield b"at last"


def until(path: Path) -> Iterator[bytes]:
    while not path.exists():
        time.sleep(0.01)
    yield b"at last"


def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]

    def whole(body: bytes, status: str = "200 OK") -> list[bytes]:
        start_response(status, [TEXT, ("Content-Length", str(len(body)))])
        return [body]

    if path == "/echo":
        body = environ["wsgi.input"].read()
        answer = {name: environ.get(name) for name in TOLD}
        answer |= {name: value for name, value in environ.items() if name.startswith("HTTP_")}
        answer |= {"length": len(body), "digest": hashlib.sha256(body).hexdigest()}
        return whole(json.dumps(answer).encode())
    if path == "/state":
        return whole(json.dumps(state | {"threads": threading.active_count()}).encode())
    if path == "/lines":
        return whole(b"|".join(environ["wsgi.input"]))
    if path == "/parts":
        start_response("200 OK", [TEXT])
        return Closing([b"one ", b"", b"two ", b"three"])
    if path == "/write":
        write = start_response("200 OK", [TEXT])
        write(b"written ")
        return [b"and returned"]
    if path == "/exc-info":
        start_response("200 OK", [])
        try:
            raise ValueError
        except ValueError:
            start_response("503 Service Unavailable", [TEXT], sys.exc_info())
        return [b"changed its mind"]
    if path == "/boom":
        raise RuntimeError("before anything")
    if path == "/boom-late":
        start_response("200 OK", [TEXT])
        return late()
    if path == "/bad-header":
        start_response("200 OK", [("X-Split", "a\r\nb: c")])
        return [b"never"]
    if path == "/endless":
        start_response("200 OK", [TEXT])
        return Closing(endless())
    if path == "/file":
        start_response("200 OK", [TEXT])
        wrapper: Callable[[Any], Iterable[bytes]] = environ["wsgi.file_wrapper"]
        return wrapper(Path(__file__).open("rb"))
    if path == "/peer":
        certificate = environ["gunicorn.socket"].getpeercert()
        subject = (certificate or {}).get("subject")
        return whole(json.dumps([environ["wsgi.url_scheme"], subject]).encode())
    if path.startswith("/slow/"):
        state["made"] += 1
        start_response("200 OK", [TEXT, ("Content-Length", "7")])
        return slowly(float(path.rpartition("/")[2]))
    if path.startswith("/until/"):
        state["made"] += 1
        start_response("200 OK", [TEXT, ("Content-Length", "7")])
        return until(Path(path[len("/until") :]))
    if path.startswith("/status/"):
        status = path.rpartition("/")[2]
        start_response(status + " As Asked", [TEXT])
        return [] if status in ("204", "304") else [b"body"]
    if path == "/short":
        start_response("200 OK", [TEXT, ("Content-Length", "10")])
        return [b"short"]
    return whole(b"plain")


class Application:
    def __init__(self) -> None:
        self._writers: dict[object, Callable[[bytes], object]] = {}
        self._promised: list[tuple[Promise, str]] = []
        self.loop_hooks = LoopHooks(self.fast_lane, self.lane, self.settle, self.admit, self.tick)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return plain(environ, start_response)

    def fast_lane(self, request: Request) -> Answer | Stream | None:
        state["fast"] += 1
        path = request.path
        if not path.startswith("/fast") or path == "/fast/none":
            return None
        if path == "/fast/boom":
            raise RuntimeError("in the fast lane")
        if path == "/fast/split":
            return Answer(200, b"", None, {"X-Split": "a\r\nb: c"})
        if path == "/fast/304":
            return Answer(304, b"", None, {"ETag": "x"})
        if path == "/fast/big":
            return Answer(200, b"y" * 1_000_000, "text/plain")
        if path == "/fast/parts":
            return Answer(200, b"", "text/plain", {}, [b"a" * 700_000, b"b" * 700_000])
        if path == "/fast/state":
            return Answer(200, json.dumps(state).encode(), "application/json")
        if path == "/fast/stream":
            return Stream("text/event-stream", {"X-Stream": "yes"}, self._subscribe)
        if path == "/fast/poll":
            return Stream("text/plain", {}, self._poll)
        if path == "/fast/once":
            return Stream("text/plain", {}, self._once)
        told = ("method", "path", "query", "scheme", "peer", "base")
        body = {name: getattr(request, name) for name in told}
        body |= {"headers": dict(request.headers), "body": request.read_body(100).decode()}
        return Answer(200, json.dumps(body).encode(), "application/json", {"X-Fast": "yes"})

    def admit(self, request: Request) -> Answer | int:
        state["asked"] += 1
        if request.path == "/nowhere":
            return Answer(404, b"not here", "text/plain", {"X-Admit": request.method})
        return 1000 if request.path == "/few" else 64 * 1024 * 1024

    # Lanes

    def lane(self, headers: Mapping[str, str]) -> Application | None:
        if "x-lane" not in headers:
            return None
        state["lanes"] += 1
        return self

    def reader(self, target: str) -> Callable[[], Answer | None] | None:
        return self._read if target.startswith("/fast/read") else None

    def _read(self) -> Answer | None:
        state["read"] += 1
        if state["read"] == 3:
            return None
        if state["read"] == 5:
            raise RuntimeError("while reading")
        return Answer(200, b"read", "text/plain", revision=1)

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        state["lane"] += 1
        if target == "/fast/left":
            return None
        if target == "/lane/boom":
            raise RuntimeError("in the lane")
        if target.startswith("/lane/promise"):
            promise = Promise()
            self._promised.append((promise, target))
            return promise
        text = f"{method} {target} {body.decode()}".encode()
        size = 1_000_000 if target == "/lane/big" else len(text)
        lists = target.startswith("/fast/read")
        return Answer(200, text.ljust(size), "text/plain", {"X-Lane": "yes"}, revision=int(lists))

    def settle(self) -> None:
        promised, self._promised = self._promised, []
        state["settled"].append(len(promised))
        if any(target.endswith("boom") for _, target in promised):
            raise RuntimeError("while settling")
        for promise, target in promised:
            promise.answer = Answer(200, target.encode(), "text/plain")

    # Streams

    def _subscribe(
        self, write: Callable[[bytes], int], end: Callable[[], None]
    ) -> Callable[[], None]:
        key = object()
        self._writers[key] = write
        state["joined"] += 1
        write(b"welcome\n")

        def leave() -> None:
            del self._writers[key]
            state["left"] += 1

        return leave

    def _poll(self, write: Callable[[bytes], int], end: Callable[[], None]) -> Callable[[], None]:
        self._writers[end] = lambda data: (write(b"polled"), end())
        return lambda: self._writers.pop(end) and None

    def _once(self, write: Callable[[bytes], int], end: Callable[[], None]) -> Callable[[], None]:
        write(b"once")
        end()
        write(b"too late")

        def leave() -> None:
            state["left"] += 1

        return leave

    def tick(self) -> None:
        state["ticks"] += 1
        size = int(os.environ.get("EVENT_BYTES", "0"))
        for write in list(self._writers.values()):
            write(b"event %d\n" % state["ticks"] + b"z" * size)


app = Application()


class Patient(Application):
    """Its promises take until a file is there, and are kept apart."""

    def __init__(self) -> None:
        super().__init__()
        self.loop_hooks = replace(self.loop_hooks, settle_apart=self.settle_apart)

    def settle_apart(self) -> Callable[[], None]:
        promised, self._promised = self._promised, []
        state["settled"].append(len(promised))

        def keep() -> None:
            while not Path("kept").exists():
                time.sleep(0.01)
            for promise, target in promised:
                if target.endswith("boom"):
                    raise RuntimeError("while settling")
                promise.answer = Answer(200, target.encode(), "text/plain")

        return keep


patient = Patient()
