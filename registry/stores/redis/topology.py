"""Where the servers are: one; the one that sentinels agree on; or those of a Cluster.

**Sentinel.** A write goes to a server only while a majority of the sentinels that the URL names
says that this is the master, asked once a second. A node that was cut off with an old master cannot
ask a majority, so after three seconds it takes no writes that the others would not see. Where it
can ask them, it leaves an old master as soon as they do.

**Cluster.** The slot table is the driver's. It is read again where a server redirects, refuses or
fails, and where it has nobody for a slot.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.retry import Retry

from registry.stores.redis import scripts
from registry.stores.redis.address import Address, Kind, Options

CALL_SECS = 1.0
_CONNECT_SECS = 1.0
_SENTINEL_SECS = 0.5
# The sentinels are asked again after the first, and nothing is written after the second.
_ASKED_SECS = 1.0
_AGREED_SECS = 3.0
_AGAIN_SECS = 0.1
_OF_A_CLUSTER = "it is a server of a Cluster: expected redis+cluster://"
_ClusterNode: Any = ClusterNode


class Topology(Protocol):
    """Which server has a key. Thread-safe; it connects to nothing before it is asked."""

    def pool(self, key: str) -> Any:
        """The connections to the server that has a key; the driver's errors."""
        ...

    def pools(self) -> list[Any]:
        """The connections to each server that has any; the driver's errors."""
        ...

    def look_again(self, failed: Any) -> None:
        """A server failed, or refused as one that has the key no longer: ask where it is now."""
        ...

    def redirected(self, error: redis.exceptions.AskError) -> Any:
        """The connections to the server to which another one sent the caller."""
        ...

    def close(self) -> None:
        """Give up all connections."""
        ...


def topology_of(address: Address) -> Topology:
    """The servers that a URL names."""
    match address.kind:
        case Kind.SENTINEL:
            return _Sentinels(address)
        case Kind.CLUSTER:
            return _Cluster(address)
    (host,) = address.hosts
    return _One(_pool(address.options, *host))


def _settled(options: Options) -> dict[str, Any]:
    """The options of connections to servers."""
    return {
        "socket_timeout": CALL_SECS,
        "socket_connect_timeout": _CONNECT_SECS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "redis_connect_func": _connected,
        "driver_info": None,  # a command less for each connection, and for its user
        **options,
    }


def _pool(options: Options, host: str, port: int) -> Any:
    settled = {**_settled(options), "redis_connect_func": _connected_to_one}
    return redis.ConnectionPool(host=host, port=port, **settled)


def _connected(connection: Any) -> bytes:
    """Ask a server which run it is, on each new connection; with it goes the format.

    What it says of itself.
    """
    connection.on_connect()
    connection.send_command("INFO", "server")
    told: bytes = connection.read_response()
    found = re.search(rb"run_id:(\w+)", told)
    connection.server_run = b"%s/%d" % (found[1] if found else b"", scripts.FORMAT)
    return told


def _connected_to_one(connection: Any) -> None:
    """The same, of a server that has all keys: part of a Cluster may have those asked for first."""
    told = _connected(connection)
    mode = re.search(rb"(?:redis|server)_mode:(\w+)", told)
    if mode and mode[1] == b"sentinel":
        raise redis.ConnectionError("it is a sentinel: expected redis+sentinel://")
    if mode and mode[1] == b"cluster":
        raise redis.ConnectionError(_OF_A_CLUSTER)


class _One:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def pool(self, key: str) -> Any:
        return self._pool

    def pools(self) -> list[Any]:
        return [self._pool]

    def look_again(self, failed: Any) -> None:
        failed.disconnect(inuse_connections=False)

    def redirected(self, error: redis.exceptions.AskError) -> Any:
        raise redis.ConnectionError(_OF_A_CLUSTER)

    def close(self) -> None:
        self._pool.disconnect()


class _Sentinels:
    def __init__(self, address: Address) -> None:
        self._options = address.options
        self._service = address.service
        limits = {"socket_timeout": _SENTINEL_SECS, "socket_connect_timeout": _SENTINEL_SECS}
        self._sentinels: list[Any] = [
            redis.Redis(
                connection_pool=redis.ConnectionPool(
                    host=host,
                    port=port,
                    retry=Retry(NoBackoff(), 0),
                    protocol=2,
                    **{**limits, **address.sentinel_options},
                )
            )
            for host, port in address.hosts
        ]
        self._asking = threading.Lock()
        self._asked_at = self._agreed_at = -_AGREED_SECS
        self._master: tuple[str, int] | None = None
        self._pool: Any = None

    def pool(self, key: str) -> Any:
        agreed_at = self._agreed_at
        age = time.monotonic() - agreed_at
        # One asks. The others wait for it only where the last answer is too old to go by.
        if age > _ASKED_SECS and self._asking.acquire(blocking=age > _AGREED_SECS):
            try:
                if self._agreed_at == agreed_at:
                    self._ask()
            except redis.ConnectionError:
                if age > _AGREED_SECS:
                    raise
            finally:
                self._asking.release()
        return self._pool

    def pools(self) -> list[Any]:
        return [self.pool("")]

    def look_again(self, failed: Any) -> None:
        failed.disconnect(inuse_connections=False)
        with self._asking, suppress(redis.ConnectionError):
            if failed is self._pool and time.monotonic() - self._asked_at > _AGAIN_SECS:
                self._ask()

    def redirected(self, error: redis.exceptions.AskError) -> Any:
        raise redis.ConnectionError(_OF_A_CLUSTER)

    def _ask(self) -> None:
        """Go by what a majority of the sentinels says; ``redis.ConnectionError`` if none does."""
        self._asked_at = began = time.monotonic()
        votes: Counter[tuple[str, int]] = Counter()
        silent = ""
        for sentinel in self._sentinels:
            try:
                told = sentinel.execute_command(
                    "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
                )
            except redis.RedisError as error:
                silent = f" ({error})"
                continue
            if told is None:
                silent = f" (one does not know {self._service})"
                continue
            master = told[0].decode(), int(told[1])
            votes[master] += 1
            if votes[master] * 2 > len(self._sentinels):
                self._agreed_at = began
                if master != self._master:
                    before, self._master = self._pool, master
                    self._pool = _pool(self._options, *master)
                    if before is not None:
                        before.disconnect()
                return
        raise redis.ConnectionError(
            f"no majority of {len(self._sentinels)} sentinels tells"
            f" the master of {self._service}{silent}"
        )

    def close(self) -> None:
        for sentinel in self._sentinels:
            sentinel.close()
        if self._pool is not None:
            self._pool.disconnect()


class _Cluster:
    def __init__(self, address: Address) -> None:
        self._address = address
        self._looking = threading.Lock()
        self._looked_at = 0.0
        self._known: Any = None

    def _nodes(self) -> Any:
        if self._known is None:
            with self._looking:
                if self._known is None:
                    with _as_failures():
                        self._known = NodesManager(
                            [_ClusterNode(*host) for host in self._address.hosts],
                            from_url=True,
                            **_settled(self._address.options),
                        )
        return self._known

    def pool(self, key: str) -> Any:
        slot, nodes = _slot(key), self._nodes()
        with _as_failures():
            try:
                node = nodes.get_node_from_slot(slot)
            except redis.exceptions.SlotNotCoveredError:
                # Nobody had it when the table was read, so nobody is asked who could redirect.
                self._read_table()
                node = nodes.get_node_from_slot(slot)
            return self._pool_of(node)

    def pools(self) -> list[Any]:
        masters = self._nodes().get_nodes_by_server_type("primary")
        return [self._pool_of(node) for node in masters]

    def _pool_of(self, node: Any) -> Any:
        self._nodes().create_redis_connections([node])
        return node.redis_connection.connection_pool

    def look_again(self, failed: Any) -> None:
        failed.disconnect(inuse_connections=False)
        self._read_table()

    def _read_table(self) -> None:
        """Have the driver read who has which slot, unless it did so just before."""
        nodes = self._nodes()
        with self._looking:
            if time.monotonic() - self._looked_at > _AGAIN_SECS:
                self._looked_at = time.monotonic()
                with suppress(redis.ConnectionError), _as_failures():
                    nodes.initialize()

    def redirected(self, error: redis.exceptions.AskError) -> Any:
        nodes = self._nodes()
        if isinstance(error, redis.exceptions.MovedError):
            nodes.move_slot(error)
            return self._pool_of(nodes.get_node_from_slot(error.slot_id))
        node = nodes.get_node(host=error.host, port=error.port)
        return self._pool_of(node or _ClusterNode(error.host, error.port, "primary"))

    def close(self) -> None:
        if self._known is not None:
            self._known.close()


@lru_cache(4096)
def _slot(key: str) -> int:
    return key_slot(key.encode())


@contextmanager
def _as_failures() -> Iterator[None]:
    """The driver's errors of a Cluster are none of its base class."""
    try:
        yield
    except redis.exceptions.RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error
    except IndexError as error:  # the driver's own, of a table without any server
        raise redis.ConnectionError("no server has a slot") from error
