"""What several test modules need, and what keeps the tiers apart.

A test that starts a program which Python does not bring along (Java, Node, Go, etcd and the like),
or that talks to another machine, is marked ``programs``; one that takes long is marked ``slow``.
``make test-fast`` runs what has neither mark. That no mark is missing does not rest on attention:
what is not marked cannot start such a program, nor connect to anything but this machine.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from registry.stores.redis import server as redis_server
from tests.certificates import make_certificates
from tests.parcel import Installed, Parcel, build
from tests.redis_servers import ClusterServers, RedisServer, SentinelServers, another_prefix
from tests.redis_suite import Machines
from tests.servers import HANG_SECS, ROOT

# How long a step takes is this machine's business, and no verdict on what it does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

EVERYWHERE = frozenset(["git", "sh", "true", "false", "sleep", "ps", "mount", "umount", "unshare"])
WITH_GENUINE_SOURCES = frozenset(
    f"test_catalog_{kind}" for kind in ("consul", "etcd", "eureka", "kubernetes")
)
# The test that is running, where it may start nothing else; an audit hook stays for ever.
_guarded: list[str] = []


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guarded:
        return
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        environ = arguments[-1] or os.environ
        program = shutil.which(os.fsdecode(arguments[0]), path=environ.get("PATH"))
        if program is not None and not _is_everywhere(Path(program)):
            raise RuntimeError(f"{_guarded[-1]} starts {program} and is not marked 'programs'")
    elif event == "socket.connect":
        connection, address = arguments
        # A datagram socket only asks the system which way it would send.
        is_stream = connection.type == socket.SOCK_STREAM and isinstance(address, tuple)
        if is_stream and not _is_here(str(address[0])):
            raise RuntimeError(f"{_guarded[-1]} connects to {address} and is not marked 'programs'")


def _is_everywhere(program: Path) -> bool:
    """Whether it belongs to a Python environment, or any Linux with the checkout has it."""
    folder = program.parent
    is_pythons = folder == Path(sys.executable).parent or (folder.parent / "pyvenv.cfg").exists()
    return is_pythons or program.name in EVERYWHERE


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


sys.addaudithook(_guard)


def pytest_configure() -> None:
    """A run that is told to end leaves nothing running: it ends as one that is interrupted.

    So does one that ``timeout`` cuts off. A process that a test forked ends as any does.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    runs_tests = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == runs_tests:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what follows a genuine source, and what fetches the packages that are locked."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        has_source = item.path.stem in WITH_GENUINE_SOURCES and "source" in fixtures
        if has_source or "installed" in fixtures:
            item.add_marker("programs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Guard a test, and what is set up for it."""
    if item.get_closest_marker("programs") is not None:
        return (yield)
    _guarded.append(item.nodeid)
    try:
        return (yield)
    finally:
        _guarded.clear()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate for localhost, and a client's."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="session")
def parcel(tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    """What ``make wheel`` leaves."""
    folder = tmp_path_factory.mktemp("parcel")
    build(ROOT, folder, "sdist", "wheel")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Parcel(wheel, sdist)


@pytest.fixture(scope="session")
def installed(parcel: Parcel, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel and what is locked, in an environment of their own."""
    return Installed(tmp_path_factory.mktemp("installed"), parcel.wheel)


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """For tests that do it no harm."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    """The same, as a Cluster."""
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"))
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def shared_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    """The same, behind Sentinel."""
    servers = SentinelServers(tmp_path_factory.mktemp("sentinel"))
    yield servers
    servers.stop()


@pytest.fixture
def unhurried() -> Iterator[None]:
    """No store takes a Redis for away that stands still for some seconds: the machine may be busy.

    Not where that is what is tested.
    """
    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own
        patch.setattr(redis_server, "_TRIED_SECS", HANG_SECS)
        yield


@pytest.fixture
def machines(unhurried: None, shared_redis: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    """Machines on the server that all tests share, under a prefix of their own."""
    machines = Machines(shared_redis, tmp_path)
    yield machines
    machines.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that nobody else asks anything, and that a test may kill."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def fragile(own: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    """Machines on a server that the test may kill."""
    machines = Machines(own, tmp_path)
    yield machines
    own.go_on()
    machines.close()


@pytest.fixture
def no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No thread of a store met what it had not foreseen."""
    yield
    assert [each for each in caplog.get_records("call") if each.exc_info] == []


@pytest.fixture(scope="session", params=["lmdb", pytest.param("redis", marks=pytest.mark.programs)])
def stored(request: pytest.FixtureRequest) -> Callable[[Path], dict[str, str]]:
    """Has a server with this folder keep all in an empty store, of each kind that workers share."""

    def on_lmdb(folder: Path) -> dict[str, str]:
        return {"STORE_URL": f"lmdb:{folder / 'store'}"}

    def on_redis(folder: Path) -> dict[str, str]:
        redis = request.getfixturevalue(f"shared_{request.param}")
        return {"STORE_URL": redis.url(another_prefix(), folder / "store")}

    return on_lmdb if request.param == "lmdb" else on_redis
