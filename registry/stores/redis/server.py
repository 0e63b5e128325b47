"""The Redis server: connections, calls of scripts, and its clock.

**Runs.** Each connection learns which run of the server it speaks to, before anything else. A life
of the store is bound to one run: a server that was started anew, or another that took over, may
lack what was written last, and the scripts refuse (``AnotherLifeError``) until another life began.

**Time.** Redis' clock and this machine's monotonic one differ by an offset. A round trip tells it
within the time that it took. What is used moves only where a round trip proves it wrong, and no
further than it must.

**Unknown.** A call that was cut off may have been executed. It is repeated until it is answered,
for a while: the scripts are such that this is the same as once (a group of commits has an id).
Where that is in vain, others do not wait for as long again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import redis

from registry.errors import LockLostError, StoreError
from registry.lease import SystemClock
from registry.stores.redis.address import Address
from registry.stores.redis.scripts import Script
from registry.stores.redis.topology import Topology, topology_of

_T = TypeVar("_T")
_TRIED_SECS = 3.0
_PAUSE_SECS = 0.05
# What a server answers that is not, or not yet, the one to ask.
_ELSEWHERE = (redis.exceptions.ReadOnlyError,)

Argument = bytes | str | int


class AnotherLifeError(Exception):
    """The server is not in the life in which it was asked, or is another run than that began in."""

    def __init__(self, *, was_cut_off: bool = False) -> None:
        """``was_cut_off``: the script may have been executed before, in the life that ended."""
        super().__init__()
        self.was_cut_off = was_cut_off


class Server:
    """The server as this process reaches it. Thread-safe."""

    def __init__(self, address: Address) -> None:
        """Connect to nothing yet."""
        self.shown = address.shown
        self._key = "{" + address.prefix + "}"
        self._topology = topology_of(address)
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._offset: int | None = None
        # Whether it was given up on: then no call waits for it, until it answers again.
        self._hangs = False

    def name(self, name: str) -> str:
        """The name of a key, or a channel, of this registry."""
        return f"{self._key}:{name}"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except redis.exceptions.NoPermissionError as error:
            raise StoreError(
                f"Redis at {self.shown} forbids its user what the registry needs: {error}"
            ) from error
        except redis.ResponseError as error:
            raise StoreError(f"Redis at {self.shown} refuses: {error}") from error
        except redis.RedisError as error:
            raise StoreError(f"Redis at {self.shown} does not answer: {error}") from error
        except OSError as error:
            raise StoreError(f"Redis at {self.shown} cannot be reached: {error}") from error

    def run(self, script: Script, *arguments: Argument) -> Any:
        """What a script returns, called with the server's run and the arguments.

        ``AnotherLifeError``, ``LockLostError``; ``StoreError`` where no answer came in three
        seconds. Then it is not known whether it was executed.
        """
        was_cut_off = False

        def execute(connection: Any) -> Any:
            nonlocal was_cut_off
            try:
                return self._run(connection, script, arguments)
            except redis.ResponseError:
                raise
            except BaseException:
                was_cut_off = True
                raise

        with self._failures():
            self._check()
            try:
                return self._tried(execute)
            except redis.ResponseError as error:
                text = str(error)
                if text.startswith("LIFE"):
                    raise AnotherLifeError(was_cut_off=was_cut_off) from None
                if text.startswith("FENCE"):
                    raise LockLostError from None
                raise

    def _run(self, connection: Any, script: Script, arguments: tuple[Argument, ...]) -> Any:
        command = "EVALSHA", script.sha, 1, self._key, connection.server_run, *arguments
        try:
            return _exchange(connection, command)
        except redis.exceptions.NoScriptError:
            _exchange(connection, ("SCRIPT", "LOAD", script.text))
        return _exchange(connection, command)

    def call(self, *command: Argument, waits: bool = False) -> Any:
        """What a plain command answers; ``StoreError``.

        With ``waits`` it is asked even where it hung lately; else that is an error at once.
        """
        with self._failures():
            if not waits:
                self._check()
            pool = self._topology.pool(self._key)
            try:
                with _connection(pool) as connection:
                    answer = _exchange(connection, command)
            except (redis.ConnectionError, redis.TimeoutError, *_ELSEWHERE):
                self._topology.look_again(pool)
                raise
            self._hangs = False
            return answer

    def _check(self) -> None:
        if self._hangs:
            raise redis.TimeoutError("it hangs")

    def _tried(self, exchange: Callable[[Any], _T]) -> _T:
        """What an exchange over a connection gives, repeated where it may succeed elsewhere."""
        until = time.monotonic() + _TRIED_SECS
        while True:
            pool = self._topology.pool(self._key)
            try:
                with _connection(pool) as connection:
                    return exchange(connection)
            except _ELSEWHERE:
                self._topology.look_again(pool)
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_SECS)
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError) as error:
                self._topology.look_again(pool)
                # Where it is refused, nobody is there who could have executed it.
                if _is_refused(error) and self._topology.pool(self._key) is pool:
                    raise
                if time.monotonic() > until:
                    self._hangs = True
                    raise

    def listen(self, channel: str) -> Subscription:
        """Be told of what is published, from now on; the driver's errors."""
        return Subscription(self._topology, self._key, self.name(channel))

    def look_at_clock(self) -> None:
        """Correct the offset between the two clocks; ``StoreError``."""
        before = self._clock.mono_ms()
        seconds, microseconds = self.call("TIME", waits=True)
        after = self._clock.mono_ms()
        now = int(seconds) * 1000 + int(microseconds) // 1000
        # The instant on the server was between the two, and each of the three was rounded down.
        earliest, latest = now - after - 1, now + 1 - before
        with self._lock:
            if self._offset is None:
                self._offset = (earliest + latest) // 2
            else:
                self._offset = min(max(self._offset, earliest), latest)

    def time_of(self, mono_ms: int) -> int:
        """An instant of this machine's monotonic clock in Redis' time."""
        return mono_ms + self._known_offset()

    def mono_of(self, time_ms: int) -> int:
        """An instant of Redis' time on this machine's monotonic clock."""
        return time_ms - self._known_offset()

    def now(self) -> int:
        """The present instant in Redis' time, as far as it is known here."""
        return self.time_of(self._clock.mono_ms())

    def _known_offset(self) -> int:
        if self._offset is None:
            self.look_at_clock()
        assert self._offset is not None
        return self._offset

    def close(self) -> None:
        """Give up all connections."""
        self._topology.close()


class Subscription:
    """What is published on a channel, as long as the server stays the same."""

    def __init__(self, topology: Topology, key: str, channel: str) -> None:
        """Subscribe; the driver's errors."""
        self._topology = topology
        self._key = key
        self._pool = topology.pool(key)
        client: Any = redis.Redis(connection_pool=self._pool)
        self._messages = client.pubsub(ignore_subscribe_messages=True)
        self._messages.subscribe(channel)

    def get_message(self, timeout: float) -> Any:
        """The next message; None where none came in so many seconds; the driver's errors."""
        if self._topology.pool(self._key) is not self._pool:
            raise redis.ConnectionError("another server took over")
        return self._messages.get_message(timeout=timeout)

    def close(self) -> None:
        """Be told of nothing more."""
        self._messages.close()


@contextmanager
def _connection(pool: Any) -> Iterator[Any]:
    """A connection for one thread; it is given up where an answer may be on its way."""
    connection = pool.get_connection()
    try:
        yield connection
    except redis.ResponseError:
        raise
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _is_refused(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _exchange(connection: Any, command: tuple[Argument, ...]) -> Any:
    connection.send_command(*command)
    return connection.read_response()
