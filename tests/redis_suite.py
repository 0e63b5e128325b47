"""The contract of stores on Redis (alone, behind Sentinel, as a Cluster), and several machines."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lmdb
import pytest
import redis

from registry import StoreError, open_store
from registry.lease import SystemClock
from registry.model import DEFAULT_NAMESPACE, Lease, Namespace, Revision
from registry.store import Commit, Store
from registry.stores.lmdb import LmdbStore, opening
from registry.stores.redis import RedisStore, read_address
from registry.stores.redis.server import Server
from registry.testing import Failing, StoreSuite, put, sample_instance
from tests.redis_servers import RedisServer, another_prefix
from tests.servers import wait_until
from tests.test_stores import FragileEnvironment


class Servers(Protocol):
    """What carries registries."""

    def url(self, prefix: str, folder: Path) -> str: ...

    def forget(self, prefix: str) -> None: ...


class RedisSuite(StoreSuite):
    """The contract of stores, on the servers that the fixture ``server`` starts."""

    @pytest.fixture(autouse=True)
    def one_offset(self, unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """The offset of Redis' clock is taken once.

        A correction moves what is read back of a lease, by less than a round trip took. How large
        it may be has a test of its own.
        """
        look = Server.look_at_clock

        def look_once(server: Server) -> None:
            if server._offset is None:
                look(server)
            else:
                server.call("TIME", waits=True)

        monkeypatch.setattr(Server, "look_at_clock", look_once)

    @pytest.fixture
    def prefix(self) -> str:
        return another_prefix()

    @pytest.fixture
    def opened(self) -> Iterator[list[Store]]:
        """The stores that are to be closed."""
        opened: list[Store] = []
        yield opened
        for store in opened:
            store.close()

    @pytest.fixture
    def store(
        self,
        server: Servers,
        prefix: str,
        failing: Failing,
        opened: list[Store],
        tmp_path: Path,
    ) -> Store:
        address = read_address(server.url(prefix, tmp_path / "copy"))
        opened.append(RedisStore(address, life=Revision(0)))
        return opened[0]

    @pytest.fixture
    def another_life(
        self, server: Servers, prefix: str, opened: list[Store], tmp_path: Path
    ) -> Callable[[], Store]:
        def lose() -> Store:
            opened.pop().close()
            server.forget(prefix)
            opened.append(open_store(server.url(prefix, tmp_path / "another")))
            return opened[0]

        return lose

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Failing:
        """Neither Redis nor the files of this machine's copy can be had."""
        opened: list[FragileEnvironment] = []
        lmdb_open, send = lmdb.open, redis.connection.Connection.send_packed_command
        fails = False

        def open_fragile(*arguments: Any, **options: Any) -> FragileEnvironment:
            opened.append(FragileEnvironment(lmdb_open(*arguments, **options)))
            return opened[-1]

        def send_packed(connection: Any, *arguments: Any, **options: Any) -> None:
            if fails:
                raise redis.ConnectionError("refused") from ConnectionRefusedError()
            send(connection, *arguments, **options)

        @contextmanager
        def fail() -> Iterator[None]:
            nonlocal fails
            fails = True
            for environment in opened:
                environment.fails = True
            yield
            fails = False
            for environment in opened:
                environment.fails = False

        monkeypatch.setattr(lmdb, "open", open_fragile)
        monkeypatch.setattr(redis.connection.Connection, "send_packed_command", send_packed)
        return fail


class Machines:
    """The stores of several machines on one Redis, in this process."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self.prefix = another_prefix()
        self._folder = folder
        self._opened: list[RedisStore] = []

    def url(self, name: str) -> str:
        return self.server.url(self.prefix, self._folder / name)

    def open(self, name: str, *, accepts: bool = False, port: int | None = None) -> RedisStore:
        """Another machine's store, which reaches Redis at a port; ``accepts``: while it is away."""
        url = self.url(name)
        if port is not None:
            url = url.replace(f":{self.server.port}/", f":{port}/")
        store = open_store(url, accepts_while_away=accepts)
        assert isinstance(store, RedisStore)
        self._opened.append(store)
        return store

    def open_folder(self, name: str) -> LmdbStore:
        """The store of a machine that is closed, without Redis."""
        return LmdbStore(self._folder / name)

    def reboot(self, name: str) -> None:
        """Start the machine of a store that is closed anew: its clock, and so its leases, too."""
        (self._folder / name / "boot").write_text("another")

    def close(self, *stores: RedisStore) -> None:
        for store in stores or tuple(self._opened):
            self._opened.remove(store)
            store.close()

    def forget(self) -> None:
        """Have Redis lose everything of this registry."""
        self.server.forget(self.prefix)


class WritingNodes:
    """The stores of two machines, and a writer on each that notes what was acknowledged."""

    def __init__(
        self,
        servers: Servers,
        folder: Path,
        namespaces: Sequence[Namespace] = (DEFAULT_NAMESPACE,),
    ) -> None:
        self.prefix = another_prefix()
        self.stores = [
            RedisStore(read_address(servers.url(self.prefix, folder / name))) for name in ("a", "b")
        ]
        self._namespaces = namespaces
        self._acknowledged: set[tuple[Namespace, str]] = set()
        self._stopping = threading.Event()
        self._writers: list[threading.Thread] = []

    def write(self) -> None:
        """Register instances on both, until ``settle``; each namespace has a writer on each."""
        for number, store in enumerate(self.stores):
            for namespace in self._namespaces:
                arguments = [store, namespace, f"w{number}"]
                writer = threading.Thread(target=self._write, args=arguments)
                self._writers.append(writer)
                writer.start()

    def _write(self, store: Store, namespace: Namespace, name: str) -> None:
        number = 0
        while not self._stopping.wait(0.01):
            number += 1
            instance_id = f"{name}:{number}"
            instance = sample_instance(instance_id=instance_id)
            try:
                store.commit(namespace, put(instance, lease=lease_from(mono())))
            except StoreError:
                continue
            self._acknowledged.add((namespace, instance_id))

    def lives(self) -> list[Revision]:
        """In which lives the copies are."""
        return [store._copy.life() for store in self.stores]

    def wait_for_another_life(self, lives: list[Revision]) -> None:
        """Wait until both are in a later life than they were."""
        wait_until(lambda: all(map(operator.gt, self.lives(), lives)), "another life")

    def wait_for_more(self) -> None:
        """Wait until all writers' writes are taken again."""
        known = self._counts()
        wait_until(lambda: all(map(operator.gt, self._counts(), known)), "all write")

    def _counts(self) -> list[int]:
        taken = tuple(self._acknowledged)
        return [
            sum(where == namespace and each.startswith(name) for where, each in taken)
            for namespace in self._namespaces
            for name in ("w0", "w1")
        ]

    def settle(self) -> None:
        """Stop the writers, and have both nodes list all that was acknowledged, and the same."""
        self._stop()
        one, two = self.stores
        for name in self._namespaces:
            taken = {each for where, each in tuple(self._acknowledged) if where == name}
            for store in self.stores:
                wait_until(partial(_lists_all, store, name, taken), "all is listed")
            wait_until(partial(_are_as_far, one, two, name), "both follow")
            assert listed(one, name) == listed(two, name)

    def _stop(self) -> None:
        self._stopping.set()
        for writer in self._writers:
            writer.join()

    def close(self) -> None:
        self._stop()
        for store in self.stores:
            store.close()


def lease_from(now_mono_ms: int, duration_ms: int = 90_000, by_client: int = 0) -> Lease:
    return Lease(now_mono_ms + duration_ms, duration_ms, now_mono_ms, by_client)


def mono() -> int:
    return SystemClock().mono_ms()


def listed(store: Store, namespace: Namespace = DEFAULT_NAMESPACE) -> set[str]:
    return {instance.id for instance in store.load(namespace).instances}


def is_following(store: RedisStore) -> bool:
    """Whether it hears of each change, and is the first of its machine to bring it in."""
    return store._follower.is_first and store._follower._subscription is not None


def is_taken(store: Store, commit: Commit) -> bool:
    """Whether a write is acknowledged."""
    try:
        store.commit(DEFAULT_NAMESPACE, commit)
    except StoreError:
        return False
    return True


def stop_threads(*stores: RedisStore) -> None:
    """From now on they follow and tell only what they are told to."""
    for store in stores:
        store._stopping.set()
        for thread in store._threads:
            thread.join()


def settle(*stores: RedisStore) -> None:
    """Have all give back, and follow what the others gave."""
    for _ in range(2):
        for store in stores:
            store._lives.adopt()
    for store in stores:
        store._follower.catch_up_all()


def addresses(store: Store) -> dict[str, str]:
    """Of all that is listed."""
    return {each.id: each.ip_addr for each in store.load(DEFAULT_NAMESPACE).instances}


def cut_power(store: RedisStore) -> None:
    """Do to a machine's copy what its next start does after a power cut."""
    env = store._copy.offering._env
    env.write(lambda txn: opening._begin_again(env, txn))


def alone_with_many(machines: Machines, count: int) -> tuple[RedisStore, list[Namespace]]:
    """A store that nobody else works in, with an instance in each of many namespaces."""
    store = machines.open("here")
    stop_threads(store)
    namespaces = [Namespace(f"n{number}") for number in range(count)]
    for namespace in namespaces:
        store.commit(namespace, put(sample_instance(), lease=lease_from(mono())))
    return store, namespaces


def _lists_all(store: Store, namespace: Namespace, names: set[str]) -> bool:
    return listed(store, namespace) >= names


def _are_as_far(one: Store, two: Store, namespace: Namespace) -> bool:
    return one.revision(namespace) == two.revision(namespace)
