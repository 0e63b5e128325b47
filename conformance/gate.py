"""A door in front of a server for each client: it counts what goes through, and can be shut.

A shut gate is what a client sees of a server that is down: connections are reset and refused.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
import urllib.parse
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from conformance.programs import free_port

_T = TypeVar("_T")
_REQUEST = re.compile(rb"(GET|PUT|POST|DELETE) (\S+) HTTP/1\.[01]\r\n")
_LONGEST_LINE = 2048
# What the loop has not done by then it never will.
_HANGS_SECS = 300.0


class Passed(NamedTuple):
    """A request that went through: when (monotonic seconds), its method and its path."""

    at: float
    method: str
    path: str

    @property
    def is_full_fetch(self) -> bool:
        return self.method == "GET" and self.path.split("?")[0].rstrip("/").endswith("/apps")

    @property
    def is_heartbeat(self) -> bool:
        return self.method == "PUT" and re.search(r"/apps/[^/]+/[^/]+$", self._bare) is not None

    @property
    def is_registration(self) -> bool:
        return self.method == "POST" and re.search(r"/apps/[^/]+$", self._bare) is not None

    @property
    def _bare(self) -> str:
        return self.path.split("?")[0].rstrip("/")


class Gatehouse:
    """The thread that all gates of a run work in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._gates: list[Gate] = []

    def __enter__(self) -> Gatehouse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for gate in self._gates:
            gate.shut()
        self.wait(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _settle() -> None:
        """Let what was cut off come to its end."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def gate(self, *urls: str) -> Gate:
        """A new open gate to the server of this URL, or of each of these to one after another."""
        made = Gate(urls, self)
        self._gates.append(made)
        made.open()
        return made

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_HANGS_SECS)


class Gate:
    """One client's way to one server; or that of many to several, for each connection the next."""

    def __init__(self, urls: Sequence[str], house: Gatehouse) -> None:
        upstreams = []
        for url in urls:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme != "http" or not parts.hostname:
                raise ValueError(f"clients are sent through plain HTTP; not possible for {url}")
            upstreams.append((parts.hostname, parts.port or 80))
        self._upstreams = itertools.cycle(upstreams)
        self._base_path = parts.path.rstrip("/")
        self._house = house
        self._server: asyncio.Server | None = None
        # Shut for seconds, it must find its port free again.
        self._port = free_port()
        self._writers: set[asyncio.StreamWriter] = set()
        self.passed: list[Passed] = []

    @property
    def url(self) -> str:
        """The base URL to give to the client."""
        return f"http://127.0.0.1:{self._port}{self._base_path}"

    def open(self) -> None:
        """Let connections through, at the same port as ever."""
        self._house.wait(self._open())

    def shut(self) -> None:
        """Cut all connections and refuse new ones."""
        self._house.wait(self._shut())

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*next(self._upstreams))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, up_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, up_writer, watched=True))
                both.create_task(self._pump(up_reader, writer, watched=False))
        except* OSError:
            pass
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool
    ) -> None:
        tail = b""
        while data := await reader.read(65536):
            if watched:
                tail = self._note(tail + data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def _note(self, seen: bytes) -> bytes:
        """Note the request lines; what may be the beginning of another is given back."""
        end = 0
        for match in _REQUEST.finditer(seen):
            method, path = match[1].decode(), match[2].decode("latin-1")
            self.passed.append(Passed(time.monotonic(), method, path))
            end = match.end()
        return seen[end:][-_LONGEST_LINE:]
