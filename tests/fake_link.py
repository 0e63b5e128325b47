"""A fake network between a node and Redis, which fails as a test tells it to.

It passes TCP bytes on. A genuine network delays, drops and cuts where nobody can foresee it; this
one does where the test wants it, by chances of its own that begin with a seed. Nodes are given its
port in place of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
_CHUNK = 1 << 16


class Fault(NamedTuple):
    """What befalls each portion of bytes; chances are between 0 and 1."""

    delay_secs: float = 0
    """At most so long it is on its way. Nothing overtakes anything on a connection."""
    loses_request: float = 0
    """The request never arrives, and nothing after it on its connection."""
    loses_answer: float = 0
    """The request arrives, and its answer never does, nor anything after it."""
    cuts: float = 0
    """Its connection is closed, after a request has arrived and before its answer has."""
    resets: float = 0
    """The same, but torn down without the farewell of TCP."""
    holds: bool = False
    """A black hole: nothing arrives anywhere, new connections are as silent, until it is healed.

    What was sent meanwhile arrives then, as TCP sends it again.
    """
    since: bytes = b""
    """It begins with the request that has these bytes, on whichever connection; empty: at once."""


HEALTHY = Fault()


class FakeLink:
    """The network between one node and a port of this machine. Thread-safe."""

    def __init__(self, to_port: int, seed: int | str = 0) -> None:
        self._to_port = to_port
        self._chance = random.Random(seed)
        self._fault = HEALTHY
        self._has_begun = True
        self._passes = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.befallen = 0
        """How many portions a chance of the faults has met, and held ones too."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._carry, sock=self._listener)).result()
        self._loop.call_soon_threadsafe(self._passes.set)

    def _do(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _at_once(self, work: Callable[[], object]) -> None:
        """Do it in the loop, and wait until it is done."""

        async def call() -> None:
            work()

        self._do(call()).result()

    @contextmanager
    def faulty(self, fault: Fault) -> Iterator[None]:
        """Have it fail so, and heal it afterwards."""
        self.fail(fault)
        try:
            yield
        finally:
            self.heal()

    def fail(self, fault: Fault) -> None:
        """Have it fail so from now on."""

        def begin() -> None:
            self._fault = fault
            self._has_begun = not fault.since
            if fault.holds:
                self._passes.clear()
            else:
                self._passes.set()

        self._at_once(begin)

    def heal(self) -> None:
        """Pass on everything from now on. Connections that lost something are gone."""
        self.fail(HEALTHY)
        self._at_once(lambda: self._part(lambda each: each.has_lost))

    def cut(self) -> None:
        """Tear down all connections of this moment."""
        self._at_once(lambda: self._part(lambda each: True))

    def _part(self, which: Callable[[_Connection], bool]) -> None:
        for connection in [each for each in self._connections if which(each)]:
            connection.reset()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            there = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, there[1])
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(connection, reader, there[1], is_request=True))
                both.create_task(self._pass_on(connection, there[0], writer, is_request=False))
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _pass_on(
        self,
        connection: _Connection,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        is_request: bool,
    ) -> None:
        is_lost = False
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if not self._passes.is_set():
                    self.befallen += 1
                    await self._passes.wait()
                self._has_begun |= is_request and self._fault.since in data
                fault = self._fault if self._has_begun else HEALTHY
                chance = self._chance.random
                if fault.delay_secs:
                    self.befallen += 1
                    await asyncio.sleep(fault.delay_secs * chance())
                loses = fault.loses_request if is_request else fault.loses_answer
                if chance() < loses:
                    is_lost = connection.has_lost = True
                if is_lost:
                    self.befallen += 1
                    continue
                if not is_request and chance() < fault.cuts + fault.resets:
                    self.befallen += 1
                    if chance() * (fault.cuts + fault.resets) < fault.resets:
                        connection.reset()
                    break
                sink.write(data)
                await sink.drain()
        connection.close()  # the other direction ends too: nobody here says half a farewell

    def close(self) -> None:
        """Let go of everything."""

        async def end() -> None:
            self._server.close()
            self._passes.set()
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                self._part(lambda each: True)
                await asyncio.wait(others, timeout=0.05)

        self._do(end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Connection:
    """One connection of the node, and the one that was opened for it."""

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.has_lost = False
        self._writers = here, there

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            held: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
