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

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from registry.errors import LockLostError, StoreError
from registry.lease import SystemClock
from registry.stores.redis.scripts import Script

_CALL_SECS = 1.0
_TRIED_SECS = 3.0
_PAUSE_SECS = 0.05
_CONNECT_SECS = 1.0
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SHOWN = re.compile(r"//[^/@]*@")

Argument = bytes | str | int


class AnotherLifeError(Exception):
    """The server is not in the life in which it was asked, or is another run than that began in."""


class Address(NamedTuple):
    """What a URL says: the server, the registry's prefix on it, this machine's folder."""

    url: str
    prefix: str
    folder: str
    shown: str
    """Without the password."""


def read_address(url: str) -> Address:
    """Read ``redis://…?prefix=…&folder=…``, or ``rediss://``; ``ValueError`` for another."""
    scheme, netloc, path, query, fragment = urlsplit(url)
    if scheme not in ("redis", "rediss") or not netloc:
        raise ValueError("expected redis://HOST:PORT/DATABASE or rediss://")
    options = dict(parse_qsl(query, keep_blank_values=True))
    prefix = options.pop("prefix", "eureka")
    folder = options.pop("folder", "data")
    if not _PREFIX.match(prefix):
        raise ValueError(f"prefix={prefix!r}: expected letters, digits, points and dashes")
    if not folder:
        raise ValueError("folder=: expected a folder of this machine")
    plain = urlunsplit((scheme, netloc, path, urlencode(options), fragment))
    try:
        redis.ConnectionPool.from_url(plain)
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected redis://HOST:PORT/DATABASE ({error})") from None
    shown = _SHOWN.sub("//", urlunsplit((scheme, netloc, path, "", "")))
    return Address(plain, prefix, folder, shown)


class Server:
    """The server as this process reaches it. Thread-safe."""

    def __init__(self, address: Address) -> None:
        """Connect to nothing yet."""
        self.shown = address.shown
        self._key = "{" + address.prefix + "}"
        self._pool: Any = redis.ConnectionPool.from_url(
            address.url,
            socket_timeout=_CALL_SECS,
            socket_connect_timeout=_CONNECT_SECS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            redis_connect_func=_connected,
        )
        self._client: Any = redis.Redis(connection_pool=self._pool)
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
        except redis.RedisError as error:
            raise StoreError(f"Redis at {self.shown} does not answer: {error}") from error
        except OSError as error:
            raise StoreError(f"Redis at {self.shown} cannot be reached: {error}") from error

    def run(self, script: Script, *arguments: Argument) -> Any:
        """What a script returns, called with the server's run and the arguments.

        ``AnotherLifeError``, ``LockLostError``; ``StoreError`` where no answer came in three
        seconds. Then it is not known whether it was executed.
        """
        until = time.monotonic() + _TRIED_SECS
        with self._failures():
            self._check()
            while True:
                try:
                    return self._run(script, arguments)
                except redis.ResponseError as error:
                    text = str(error)
                    if text.startswith("LIFE"):
                        raise AnotherLifeError from None
                    if text.startswith("FENCE"):
                        raise LockLostError from None
                    if not isinstance(error, redis.ReadOnlyError):
                        raise
                    self._pool.disconnect(inuse_connections=False)
                    if time.monotonic() > until:
                        raise
                    time.sleep(_PAUSE_SECS)
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    if _is_refused(error):
                        raise  # nobody is there who could have executed it
                    if time.monotonic() > until:
                        self._hangs = True
                        raise

    def _run(self, script: Script, arguments: tuple[Argument, ...]) -> Any:
        with self._connection() as connection:
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
            with self._connection() as connection:
                answer = _exchange(connection, command)
            self._hangs = False
            return answer

    def _check(self) -> None:
        if self._hangs:
            raise redis.TimeoutError("it hangs")

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection for one thread; it is given up where an answer may be on its way."""
        connection = self._pool.get_connection()
        try:
            yield connection
        except redis.ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def listen(self, channel: str) -> Any:
        """A subscription, whose ``get_message`` raises the driver's errors."""
        subscription = self._client.pubsub(ignore_subscribe_messages=True)
        subscription.subscribe(self.name(channel))
        return subscription

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
        self._client.close()
        self._pool.disconnect()


def _connected(connection: Any) -> None:
    """Ask a server which run it is, on each new connection."""
    connection.on_connect()
    connection.send_command("INFO", "server")
    found = re.search(rb"run_id:(\w+)", connection.read_response())
    connection.server_run = found[1] if found else b""


def _is_refused(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _exchange(connection: Any, command: tuple[Argument, ...]) -> Any:
    connection.send_command(*command)
    return connection.read_response()
