"""A gunicorn worker whose connections live in one loop: ``eureka_http.worker.EventLoopWorker``.

The WSGI application may offer ``LoopHooks`` as its attribute ``loop_hooks``. What they leave to the
application is called in one of ``threads`` threads; what has a long body, one after the other in a
thread of its own.

All else is as with gunicorn's own workers, whose settings hold: ``keepalive``, ``timeout`` (here
also the longest that the head or the body of a request may take), ``graceful_timeout``,
``worker_connections``, ``max_requests``, ``limit_request_*``, ``forwarded_allow_ips``, TLS, the
access log and the hooks. Of HTTP there are versions 1.0 and 1.1; no PROXY protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from eureka_http.answers import PromisedAnswer
from eureka_http.connection import RECENT_SECS, Connection
from eureka_http.exchange import LoopHooks, LoopState
from eureka_http.gunicorn_glue import Gunicorn, GunicornWorker
from eureka_http.heads import Heads
from eureka_http.reader import Address, Reader, SpoolRoom
from eureka_http.recall import FieldNames, known_fields, known_requests

# All bodies of a worker that lie in files, together.
_MAX_SPOOLED_BYTES = 256 * 1024 * 1024
# For how long one turn of the loop reads requests as they come; those after them wait in the queue.
_AS_THEY_COME_SECS = 0.004
# For how long one turn of the loop gives shares to connections that wait in the queue.
_TURN_SECS = 0.004
# How often a piece of what is only thrown away is read, on all connections together.
_DISCARD_SECS = 0.001
# What the kernel holds of one connection, either way. Copying much at once holds the others up, and
# so does freeing it when a connection ends.
_SOCKET_BUFFER_BYTES = 256 * 1024
_TICK_SECS = 0.02
# An error that lasts is not logged at each tick.
_LOGGED_AGAIN_SECS = 60.0
_SWEEP_SECS = 0.5
# How long a client has to read the last answer.
_LINGER_SECS = 2.0
_DEFAULT_PATIENCE_SECS = 60.0


class EventLoopWorker(GunicornWorker):
    """The worker process: accepts connections, gives them their turns, and stops.

    Its loop's thread runs everything but the WSGI application. It is the ``Host`` of its
    connections and their answers.
    """

    def run(self) -> None:
        """Serve until told to stop."""
        self.prepare()
        loop = self.loop
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._quit)
        loop.add_signal_handler(signal.SIGQUIT, self._quit)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        for listener in self.sockets:
            listener.setblocking(False)
            # The connections inherit them.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        self._choose_accepting()
        loop.call_soon(self._sweep)
        try:
            loop.run_forever()
        finally:
            for connection in list(self._connections):
                connection.drop()
            # The dropped connections hear of it in one more turn.
            loop.call_soon(loop.stop)
            loop.run_forever()
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.long_pool.shutdown(wait=False, cancel_futures=True)
            loop.close()

    def prepare(self) -> None:
        """Make what the connections share, once the application is there."""
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.gunicorn = Gunicorn(self)
        self.observes = self.gunicorn.is_observed()
        hooks = getattr(self.wsgi, "loop_hooks", None)
        self.hooks: LoopHooks = LoopHooks() if hooks is None else hooks
        self.pool = ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="wsgi")
        # Long bodies are read one after the other: several at once would leave the interpreter to
        # nobody else, and fill the pool.
        self.long_pool = ThreadPoolExecutor(1, thread_name_prefix="wsgi-long")
        self.heads = Heads(int(time.time()), self.gunicorn.server_name)
        self.limits = self.gunicorn.limits()
        self.known_fields = known_fields()
        self.known_requests = known_requests()
        self._names = FieldNames(self.gunicorn.takes_underscore)
        self._room = SpoolRoom(_MAX_SPOOLED_BYTES)
        # A client is given time for its first request even where no connection is kept.
        self._keepalive = float(self.cfg.keepalive or _LINGER_SECS)
        self._idle_secs = self._keepalive
        self.linger_secs = _LINGER_SECS
        self.patience = float(self.cfg.timeout or _DEFAULT_PATIENCE_SECS)
        self.recent_since = 0.0
        self.keeps_alive = self.cfg.keepalive > 0
        self.is_quick = False
        self._ssl_context = self.gunicorn.ssl_context()
        self.is_tls = self._ssl_context is not None
        # Those that tell of their end, and all that were accepted.
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._accepts = False
        self._welcomes: set[asyncio.Task[None]] = set()
        # Under TLS: clients that have said nothing yet, and until when they may; and those that
        # have, and wait for their handshake.
        self._silent: dict[socket.socket, float] = {}
        self._heard: deque[tuple[socket.socket, Address, Address]] = deque()
        # Connections with more to be read than a share.
        self._queued: deque[Connection] = deque()
        self._gives_turns = False
        # The time that this turn of the loop has spent on reading requests as they come.
        self._spent = 0.0
        self.is_crowded = False
        # Connections with something to be thrown away.
        self._discarding: deque[Connection] = deque()
        # What is done at the end of a turn of the loop.
        self._sends_soon = False
        self.to_send: list[Connection] = []
        self._promised: list[PromisedAnswer] = []
        self._is_settling = False
        self._streams = 0
        self._ticks = False
        self._tick_logged_at = 0.0
        self._stops_at: float | None = None
        self.refused = 0
        self._sweeps_at = math.inf
        self._late_secs = 0.0
        self._look_at_clock()
        self.hooks.began(self._state)

    def _state(self) -> LoopState:
        return LoopState(self._accepted, self.refused, self._late_secs)

    # Time

    def _look_at_clock(self) -> None:
        """Set the clock of the connections, which stands still until this is called again."""
        self.now = self.loop.time()
        self.idle_until = self.now + self._idle_secs

    def _sweep(self) -> None:
        self.loop.call_later(_SWEEP_SECS, self._sweep)
        self._look_at_clock()
        now = self.now
        self._late_secs += max(0.0, now - self._sweeps_at)
        self._sweeps_at = now + _SWEEP_SECS
        self.notify()
        self._refresh_heads()
        if self.ppid != os.getppid() and not self.is_stopping():
            self.log.info("Parent changed, shutting down: %s", self)
            self._stop()
        if not self.alive and not self.is_stopping():
            self._stop()
        # Deadlines are counted from ``now``, which stands still between two sweeps and may be this
        # much too early.
        late = now - _SWEEP_SECS
        for connection in [each for each in self._connections if each.deadline < late]:
            connection.overdue()
        self._forget_silent()
        if self._stops_at is not None and now >= self._stops_at:
            self.log.warning("%d connections did not end in time", self._accepted)
            self.loop.stop()
        self._choose_accepting()

    def _refresh_heads(self) -> None:
        second = int(time.time())
        if self.heads.second != second:
            self.heads = Heads(second, self.gunicorn.server_name)

    def _tick(self) -> None:
        if not self._streams:
            self._ticks = False
            return
        self.loop.call_later(_TICK_SECS, self._tick)
        try:
            self.hooks.tick()
        except Exception:
            now = self.loop.time()
            if now >= self._tick_logged_at:
                self._tick_logged_at = now + _LOGGED_AGAIN_SECS
                self.log.exception("Error in the application's tick")

    def stream_opened(self) -> None:
        self._streams += 1
        if not self._ticks:
            self._ticks = True
            self.loop.call_later(_TICK_SECS, self._tick)

    def stream_closed(self) -> None:
        self._streams -= 1

    # Accepting

    def _choose_accepting(self) -> None:
        """Take new connections unless there are too many, or the worker is to stop."""
        has_room = self._accepted < self.cfg.worker_connections
        accepts = self.alive and has_room
        # Clients that keep their connections must not keep everyone else out.
        self.keeps_alive = accepts and self.cfg.keepalive > 0
        self.is_quick = self.keeps_alive and not self.observes and not self.gunicorn.base_path
        if accepts == self._accepts:
            return
        self._accepts = accepts
        for listener in self.sockets:
            if accepts:
                self.loop.add_reader(listener.fileno(), self._accept, listener)
            else:
                self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: Any) -> None:
        # One at a time, so that other workers have their share of a burst.
        try:
            client, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor is free. The next sweep tries again.
            self.log.warning("Cannot accept a connection: %s", error)
            for each in self.sockets:
                self.loop.remove_reader(each.fileno())
            self._accepts = False
            return
        self._accepted += 1
        if self._accepted >= self.cfg.worker_connections:
            self._choose_accepting()
        client.setblocking(False)
        server = listener.getsockname()
        if self._ssl_context is None:
            self._welcome_soon(client, peer, server)
        else:
            self._silent[client] = self.now + self.patience
            self.loop.add_reader(client.fileno(), self._hear, client, peer, server)

    def _hear(self, client: socket.socket, peer: Address, server: Address) -> None:
        """Queue a client that has begun to speak: a handshake takes much of the processor."""
        self.loop.remove_reader(client.fileno())
        del self._silent[client]
        self._heard.append((client, peer, server))
        if len(self._heard) == 1:
            self.loop.call_soon(self._greet)

    def _greet(self) -> None:
        """Begin one handshake in each turn of the loop."""
        self._welcome_soon(*self._heard.popleft())
        if self._heard:
            self.loop.call_soon(self._greet)

    def _forget_silent(self) -> None:
        for client in [each for each, until in self._silent.items() if until < self.now]:
            del self._silent[client]
            self.loop.remove_reader(client.fileno())
            client.close()
            self._one_less()

    def _welcome_soon(self, client: socket.socket, peer: Address, server: Address) -> None:
        welcome = self.loop.create_task(self._welcome(client, peer, server))
        self._welcomes.add(welcome)
        welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, client: socket.socket, peer: Address, server: Address) -> None:
        timeouts: dict[str, Any] = {}
        if self._ssl_context is not None:
            timeouts = {"ssl_handshake_timeout": self.patience, "ssl_shutdown_timeout": 2.0}
        connection = Connection(self, peer, server)
        try:
            await self.loop.connect_accepted_socket(
                lambda: connection, client, ssl=self._ssl_context, **timeouts
            )
        except OSError as error:
            self.log.debug("A connection could not begin: %s", error)
        finally:
            # Only a connection that was made tells of its end.
            if not connection.was_made():
                self._one_less()

    def _one_less(self) -> None:
        self._accepted -= 1
        if self.is_stopping():
            if not self._accepted:
                self.loop.stop()
        elif not self._accepts:
            self._choose_accepting()

    # For the connections

    def reader(self, peer: Address) -> Reader:
        return Reader(self.limits, self._names, self._room, peer)

    def connection_made(self, connection: Connection) -> None:
        self._connections.add(connection)

    def connection_lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._one_less()

    def take_turns(self, connection: Connection) -> None:
        self._queued.append(connection)
        if not self._gives_turns:
            self._gives_turns = True
            self.loop.call_soon(self._give_turns)

    def _give_turns(self) -> None:
        """Give shares for a moment; the others have theirs in the next turns of the loop.

        In between everybody is heard whose requests are few and cheap, as heartbeats are.
        """
        queued = self._queued
        until = time.perf_counter() + _TURN_SECS
        try:
            while queued:
                queued.popleft().share()
                if time.perf_counter() >= until:
                    break
        finally:
            self._gives_turns = bool(queued)
            if queued:
                self.loop.call_soon(self._give_turns)

    def spend(self, seconds: float) -> None:
        if not self._spent:
            self.loop.call_soon(self._begin_turn)
        self._spent += seconds
        self.is_crowded = self._spent >= _AS_THEY_COME_SECS

    def _begin_turn(self) -> None:
        self._spent = 0.0
        self.is_crowded = False

    def discard_soon(self, connection: Connection) -> None:
        self._discarding.append(connection)
        if len(self._discarding) == 1:
            self.loop.call_later(_DISCARD_SECS, self._discard)

    def _discard(self) -> None:
        self._discarding.popleft().share()
        if self._discarding:
            self.loop.call_later(_DISCARD_SECS, self._discard)

    def send_soon(self) -> None:
        # A client on this machine that sleeps is then woken for many answers at once, not for each.
        if not self._sends_soon:
            self._sends_soon = True
            self.loop.call_soon(self._send_now)

    def settle_soon(self, promised: PromisedAnswer) -> None:
        if not self._sends_soon:
            self._sends_soon = True
            self.loop.call_soon(self._send_now)
        self._promised.append(promised)

    def _send_now(self) -> None:
        if self._promised:
            if self.hooks.settle_apart is None:
                promised, self._promised = self._promised, []
                self._keep(self.hooks.settle)
                for each in promised:
                    each.settle()
            else:
                self._settle_apart(self.hooks.settle_apart)
        to_send, self.to_send = self.to_send, []
        self._sends_soon = False
        for connection in to_send:
            connection.flush()

    def _keep(self, promises: Callable[[], None]) -> None:
        try:
            promises()
        except Exception:
            self.log.exception("Error in the application's settling")

    def _settle_apart(self, take: Callable[[], Callable[[], None]]) -> None:
        if self._is_settling:
            return  # then what was promised meanwhile goes together
        self._is_settling = True
        promised, self._promised = self._promised, []
        promises = take()

        def settled() -> None:
            self._is_settling = False
            for each in promised:
                each.settle()
            if self._promised:
                self._settle_apart(take)

        def keep() -> None:
            self._keep(promises)
            # A closed loop raises RuntimeError; then nobody waits for an answer any more.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(settled)

        self.pool.submit(keep)

    def submit(self, run: Callable[[], None], is_long: bool) -> None:
        (self.long_pool if is_long else self.pool).submit(run)

    def count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self.keeps_alive = self.is_quick = False
            self.loop.call_soon(self._stop)

    # Stopping

    def _stop(self) -> None:
        """Accept no more; end when every connection has had its answer."""
        if self.is_stopping():
            return
        self.alive = False
        # The sweep adds up to its own period to every deadline.
        self._idle_secs = RECENT_SECS - _SWEEP_SECS
        self._look_at_clock()
        self._stops_at = self.now + self.cfg.graceful_timeout
        self.recent_since = self.now + self._keepalive - RECENT_SECS
        self.linger_secs = 0.0
        self._choose_accepting()
        # Whoever comes now is for another worker or, where there is none, refused at once.
        for listener in self.sockets:
            listener.close()
        for connection in list(self._connections):
            connection.wind_down()
        self._silent = dict.fromkeys(self._silent, self.now + RECENT_SECS)
        for welcome in self._welcomes:
            self.loop.call_later(RECENT_SECS, welcome.cancel)
        if not self._accepted:
            self.loop.stop()

    def is_stopping(self) -> bool:
        """Whether the worker was told to stop."""
        return self._stops_at is not None

    def _quit(self) -> None:
        self.alive = False
        self.cfg.worker_int(self)
        self.loop.stop()

    def handle_abort(self, sig: int, frame: Any) -> None:
        """End at once, for a loop that hangs."""
        # The parser and the loop would take an exception for an error of the request.
        self.cfg.worker_abort(self)
        os._exit(1)

    def _reopen_logs(self) -> None:
        self.log.reopen_files()
