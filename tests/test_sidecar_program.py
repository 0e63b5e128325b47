"""The sidecar's program, beside a real instance and a real registry."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from werkzeug.security import generate_password_hash

from conformance.programs import free_port
from native_api.sidecar.protocols import NativeProtocol, UnreachableError
from native_api.sidecar.settings import load
from tests.servers import HANG_SECS, ROOT, RegistryServer, wait_until
from tests.test_sidecar import NEEDED, Instance


class Sidecar:
    """The real process."""

    def __init__(
        self, folder: Path, arguments: list[str], prefix: tuple[str, ...] = (), **environ: str
    ) -> None:
        self._log = folder / f"sidecar-{time.monotonic_ns()}.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "native_api.sidecar", *arguments],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environ},
                start_new_session=True,
            )

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=HANG_SECS)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        if self.process.poll() is None:
            # With what stands between it and us, such as unshare.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    started: list[Sidecar] = []

    def start(*arguments: str, prefix: tuple[str, ...] = (), **environ: str) -> Sidecar:
        started.append(Sidecar(tmp_path, list(arguments), prefix, **environ))
        return started[-1]

    yield start
    for sidecar in started:
        sidecar.end()


def health(instance: Instance) -> list[str]:
    check = {
        "type": "http",
        "url": f"http://127.0.0.1:{instance.port}/",
        "interval": 0.1,
        "timeout": 2,
        "failures": 2,
    }
    return ["--checks", json.dumps([check])]


LEASE_SECS = 3


def arguments(
    protocol: str, base: str, port: int, service: str = "beside", *, timeout: float = 60
) -> list[str]:
    # Where no timeout is the subject, none comes before a goodbye that takes its time.
    path = "/api/v1" if protocol == "native" else "/eureka"
    return [
        *("--protocol", protocol, "--registries", base + path, "--service-name", service),
        *("--endpoint", f"127.0.0.1:{port}", "--ttl", str(LEASE_SECS)),
        *("--max-backoff", "1", "--timeout", str(timeout)),
    ]


SHORT_LEASES = {"REGISTRY_MIN_TTL": str(LEASE_SECS)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("server"), env=SHORT_LEASES) as running:
        # A crowd, since of a few instances only one may be evicted in a minute.
        for number in range(120):
            lease = {"renewalIntervalInSecs": 30, "durationInSecs": 600}
            assert running.register("CROWD", f"crowd:{number}", leaseInfo=lease) == 204
        yield running


def statuses(server: RegistryServer, service: str = "beside") -> list[str]:
    try:
        return [i["status"] for i in server.apps().values() if i["app"] == service.upper()]
    except (OSError, ValueError, KeyError):
        return []


class FakePartition:
    """A fake of a partition: a proxy that carries, refuses, swallows, or loses answers alone."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.mode = "carries"
        self.registrations = 0
        self.renewals = 0
        self._swallowed: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _pass(self, connection: socket.socket) -> None:
        if self.mode == "refuses":
            # Reset, as by a machine that knows of no such connection.
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
            return
        if self.mode == "swallows":
            self._swallowed.append(connection)
            return
        loses_answers = self.mode == "loses answers"
        with contextlib.suppress(OSError):
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port), HANG_SECS)
            forth = threading.Thread(target=self._carry, args=(connection, upstream), daemon=True)
            forth.start()
            while data := upstream.recv(65536):
                if not loses_answers:
                    connection.sendall(data)
            upstream.close()
        if loses_answers:
            self._swallowed.append(connection)
        else:
            connection.close()

    def _carry(self, connection: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                self.registrations += data.startswith(b"POST ")
                self.renewals += data.startswith(b"PUT ")
                upstream.sendall(data)

    def close(self) -> None:
        self._listening.close()
        for connection in self._swallowed:
            connection.close()


# Drills: what an instance, the network and the registry go through, and what is listed of it.
# They wait for leases most of the time, so they run side by side.


def follow(server: RegistryServer, service: str, words: list[str], what: str) -> None:
    wait_until(lambda: statuses(server, service) == words, f"{service}: {what}")


def leaves(sidecar: Sidecar, server: RegistryServer, service: str) -> bool:
    """Stop it; whether it was told that it is deregistered, and so is gone at once.

    It is not told in a time that is too short here, or where its lease had ended just before.
    """
    assert sidecar.stop() == 0
    is_told = "registration deregistered at" in sidecar.log()
    if is_told:
        assert statuses(server, service) == []
    follow(server, service, [], "stopped: gone")
    return is_told


def comes_and_leaves(
    folder: Path, options: list[str], server: RegistryServer, service: str
) -> bool:
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "another: registered")
        return leaves(sidecar, server, service)


def is_gone_once_stopped(
    sidecar: Sidecar, folder: Path, options: list[str], server: RegistryServer, service: str
) -> None:
    if not leaves(sidecar, server, service):
        wait_until(
            lambda: comes_and_leaves(folder, options, server, service), f"{service}: a goodbye"
        )


def ill_and_silent(protocol: str, server: RegistryServer, folder: Path) -> None:
    instance, service = Instance(), f"silent-{protocol}"
    handler: Any = instance.handler
    options = [*arguments(protocol, server.root, instance.port, service), *health(instance)]
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "registered")
        handler.status = 500
        follow(server, service, [], "answers 500: gone")
        handler.status = 200
        follow(server, service, ["UP"], "answers 200: back")
        handler.pause = 5.0
        follow(server, service, [], "hangs: gone")
        handler.pause = 0.0
        follow(server, service, ["UP"], "answers: back")
        instance.kill()
        follow(server, service, [], "killed: gone")
        instance.start()
        follow(server, service, ["UP"], "restarted: back")
        assert sidecar.stop() == 0
        assert statuses(server, service) == []
    instance.kill()


def ill_and_told(protocol: str, server: RegistryServer, folder: Path) -> None:
    instance, service = Instance(), f"told-{protocol}"
    handler: Any = instance.handler
    options = [*arguments(protocol, server.root, instance.port, service), *health(instance)]
    # Who is unwell when its lease ends is not registered again, so this one outlasts a busy moment.
    lease_secs = 20
    options += ["--on-unhealthy", "out_of_service"]
    options += ["--ttl", str(lease_secs), "--renew-fraction", "0.05"]
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "registered")
        handler.status = 500
        follow(server, service, ["OUT_OF_SERVICE"], "answers 500: out of service")
        ends, seen = time.monotonic() + lease_secs + 1, set()
        while time.monotonic() < ends:
            seen.update(statuses(server, service))
            time.sleep(0.05)
        assert seen == {"OUT_OF_SERVICE"}
        handler.status = 200
        follow(server, service, ["UP"], "answers 200: in service")
        handler.status = 500
        follow(server, service, ["OUT_OF_SERVICE"], "answers 500 again: out of service")
        sidecar.process.kill()
        sidecar.process.wait()
    # What the killed one has said must not stay for ever.
    handler.status = 200
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "sidecar killed and started anew: in service")
        assert sidecar.stop() == 0
    instance.kill()


def cut_off(mode: str, protocol: str, server: RegistryServer, folder: Path) -> None:
    """Once the way is free again it registers, and then it renews and registers no more."""
    partition, service = FakePartition(server.port), f"{mode.split()[0]}-{protocol}"
    options = arguments(protocol, partition.url, 9, service, timeout=5)
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "registered")
        partition.mode = mode
        follow(server, service, [], f"{mode}: gone")
        partition.mode = "carries"
        follow(server, service, ["UP"], "carries: back")

        def renews_alone() -> bool:
            before = sidecar.log()
            registrations, renewals = partition.registrations, partition.renewals
            wait_until(lambda: partition.renewals >= renewals + 3, "renewals")
            made = partition.registrations - registrations
            told = before.rpartition("registered at")[2] + sidecar.log()[len(before) :]
            if "is registered again" in told:
                return False  # too slow: its lease has ended meanwhile, or just before
            assert made == 0
            return True

        wait_until(renews_alone, "renewals in time")
        follow(server, service, ["UP"], "renewed: still there")
        is_gone_once_stopped(sidecar, folder, options, server, service)
    partition.close()


def deaf(protocol: str, server: RegistryServer, folder: Path) -> None:
    """Requests come through and answers do not: it registers over and over, and is there once."""
    partition, service = FakePartition(server.port), f"deaf-{protocol}"
    partition.mode = "loses answers"
    seen: set[tuple[str, ...]] = set()
    options = arguments(protocol, partition.url, 9, service, timeout=1)
    with Sidecar(folder, options) as sidecar:
        follow(server, service, ["UP"], "registered")

        def registered_thrice() -> bool:
            seen.add(tuple(statuses(server, service)))
            return partition.registrations >= 3

        wait_until(registered_thrice, "three registrations")
        partition.mode = "carries"
        wait_until(lambda: "registered at" in sidecar.log(), "an answer")
        assert seen <= {("UP",), ()}  # between two of them its lease may end
        is_gone_once_stopped(sidecar, folder, options, server, service)
    partition.close()


def registry_lost(folder: Path) -> None:
    """One registry, killed and emptied, and a sidecar of each protocol."""
    own = RegistryServer(folder, env=SHORT_LEASES)
    services = {"native": "lost-native", "eureka": "lost-eureka"}

    def all_up(what: str) -> None:
        for service in services.values():
            follow(own, service, ["UP"], what)

    with contextlib.ExitStack() as stack:
        sidecars = [
            stack.enter_context(Sidecar(folder, arguments(protocol, own.root, 9, service)))
            for protocol, service in services.items()
        ]
        for sidecar in sidecars:
            wait_until(lambda s=sidecar: "refused" in s.log(), "a try in vain")
        assert [sidecar.process.poll() for sidecar in sidecars] == [None, None]
        with own:
            all_up("away at the start")
            own.kill9()
            time.sleep(1)
            own.start()
            all_up("killed and restarted")
            own.kill9()
            (folder / "store").rename(folder / "lost")
            own.start()
            all_up("emptied")
            assert [sidecar.stop() for sidecar in sidecars] == [0, 0]
            assert [statuses(own, service) for service in services.values()] == [[], []]


DRILLS: dict[str, Callable[[RegistryServer, Path], None]] = {
    f"{name}-{protocol}": (lambda server, folder, p=protocol, d=drill: d(p, server, folder))
    for protocol in ("native", "eureka")
    for name, drill in {
        "ill_and_silent": ill_and_silent,
        "ill_and_told": ill_and_told,
        "cut_off_by_resets": lambda *given: cut_off("refuses", *given),
        "cut_off_by_silence": lambda *given: cut_off("swallows", *given),
        "deaf": deaf,
    }.items()
} | {"registry_lost": lambda _, folder: registry_lost(folder)}


@pytest.fixture(scope="module")
def drills(
    server: RegistryServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    with ThreadPoolExecutor(len(DRILLS)) as pool:
        yield {
            name: pool.submit(drill, server, tmp_path_factory.mktemp(name))
            for name, drill in DRILLS.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_the_registry_follows_what_happens(name: str, drills: dict[str, Future[None]]) -> None:
    drills[name].result()


def test_another_registry_of_the_list_takes_over(
    server: RegistryServer, beside: Callable[..., Sidecar]
) -> None:
    dead = f"http://127.0.0.1:{free_port()}/api/v1"
    unknown = "http://no-such-host.invalid/api/v1"
    bases = ",".join((dead, unknown, f"{server.root}/nothing", f"{server.root}/api/v1"))
    # A resolver may be silent too.
    options = arguments("native", server.root, 9, "takes-over", timeout=5)
    sidecar = beside(*options, "--registries", bases)
    wait_until(lambda: statuses(server, "takes-over") == ["UP"], "registration")
    assert sidecar.stop() == 0


def test_a_token_that_is_refused_is_told_and_another_in_its_file_is_used(
    tmp_path: Path, beside: Callable[..., Sidecar]
) -> None:
    key = "k" * 40
    env = {**SHORT_LEASES, "REGISTRY_AUTH": "jwt", "REGISTRY_JWT_KEY": key}
    file = tmp_path / "token"
    file.write_text("sesame-1234\n")
    with RegistryServer(tmp_path, env=env) as own:
        # A lease that does not end before it is told of its deregistration.
        options = [*arguments("native", own.root, 9), "--ttl", "60", "--renew-fraction", "0.05"]
        sidecar = beside(*options, "--token-file", str(file))
        wait_until(lambda: "401" in sidecar.log(), "the refusal in the log")
        assert "sesame" not in sidecar.log()
        claims = {"namespace": "red", "exp": int(time.time()) + 600}
        token = jwt.encode(claims, key, algorithm="HS256")
        file.write_text(f"{token}\n")
        wait_until(lambda: "registered at" in sidecar.log(), "registration")
        file.write_text("broken\ntoken")
        wait_until(lambda: "holds no token" in sidecar.log(), "the broken file in the log")
        file.write_text(token)
        wait_until(lambda: "answers again" in sidecar.log(), "a renewal")
        assert sidecar.stop() == 0
        assert "deregistered at" in sidecar.log()
        assert token not in sidecar.log()


def test_an_account_may_stand_in_the_url_or_in_the_settings(
    tmp_path: Path, beside: Callable[..., Sidecar]
) -> None:
    users = tmp_path / "users"
    users.write_text(f"bob blue user {generate_password_hash('ses:me@1', 'pbkdf2:sha256:1')}\n")
    env = {**SHORT_LEASES, "REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(users)}
    with RegistryServer(tmp_path, env=env) as own:
        in_url = own.root.replace("//", "//bob:ses%3Ame%401@")
        one = beside(*arguments("native", in_url, 9))
        two = beside(
            *arguments("native", own.root, 9, "another"),
            SIDECAR_USERNAME="bob",
            SIDECAR_PASSWORD="ses:me@1",
        )
        for sidecar in (one, two):
            wait_until(lambda s=sidecar: "registered at" in s.log(), "registration")
            assert sidecar.stop() == 0
            assert "ses" not in sidecar.log()


def test_certificates_are_shown_and_asked_for(tmp_path: Path, certificates: Path) -> None:
    def file(name: str) -> str:
        return str(certificates / name)

    env = {
        "TLS_CERT_FILE": file("server.pem"),
        "TLS_KEY_FILE": file("server.key"),
        "TLS_CLIENT_CA_FILE": file("ca.pem"),
    }
    own = RegistryServer(tmp_path, env=env)
    base = f"https://localhost:{own.port}"
    flags = [*NEEDED, "--registries", f"{base}/api/v1", "--timeout", "2"]
    known = ["--ca-file", file("ca.pem")]
    shown = ["--cert-file", file("client.pem"), "--key-file", file("client.key")]

    def refused(*more: str) -> bool:
        try:
            NativeProtocol(f"{base}/api/v1", load([*flags, *more], {})).register(in_service=True)
        except UnreachableError:
            return True
        return False

    try:
        own.launch()
        wait_until(lambda: not refused(*known, *shown), "a registration")
        assert refused(*known)
        assert refused(*shown)
    finally:
        own.kill9()


# Supervision.


def test_it_is_fit_to_be_the_first_process_of_a_container(
    server: RegistryServer, beside: Callable[..., Sidecar], tmp_path: Path
) -> None:
    # The child leaves orphans that end, then ends itself with a code of its own.
    goes_on = tmp_path / "goes on"
    script = (
        "for i in 1 2 3; do (sh -c 'sleep 0.3' & ); done; sleep 1; "
        f"until [ -e '{goes_on}' ]; do sleep 0.1; done; ps -e -o stat= | grep -c Z; exit 7"
    )
    own_pids = ("unshare", "--pid", "--fork", "--mount-proc")
    options = arguments("native", server.root, 9, "first")
    sidecar = beside(*options, "--", "sh", "-c", script, prefix=own_pids)
    wait_until(lambda: statuses(server, "first") == ["UP"], "registration")
    goes_on.touch()
    assert sidecar.process.wait(timeout=HANG_SECS) == 7
    assert statuses(server, "first") == []
    assert "\n0\n" in sidecar.log()  # no zombie was left


def test_it_needs_no_process_file_system(beside: Callable[..., Sidecar]) -> None:
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    # What is mounted tells of other processes than its own.
    foreign = ("unshare", "--pid", "--fork")
    sidecar = beside(*away, "--", "sh", "-c", "exit 7", prefix=foreign)
    assert sidecar.process.wait(timeout=HANG_SECS) == 7


def test_a_child_has_its_own_variables_beside_the_sidecars(
    beside: Callable[..., Sidecar],
) -> None:
    show = {"command": ["sh", "-c", 'echo "<$COLOUR,$SIZE,${PATH:+path}>"; sleep 60']}
    children = [show | {"env": {"COLOUR": "red"}}, show | {"env": ["SIZE=5"]}]
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    sidecar = beside(*away, "--supervise", json.dumps(children))
    wait_until(lambda: "<red,,path>" in sidecar.log(), "the first")
    wait_until(lambda: "<,5,path>" in sidecar.log(), "the second")


def test_signals_are_passed_on_and_a_stop_deregisters_first(
    server: RegistryServer, beside: Callable[..., Sidecar], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    traps = "".join(f"trap 'echo {n} >> {told}' {n}; " for n in ("HUP", "USR1", "USR2"))
    # What is told while it ends counts too.
    traps += f"trap 'echo TERM >> {told}; ending=1' TERM; "
    script = f"{traps} echo ready >> {told}; "
    script += f'until [ -n "$ending" ] && grep -q again {told}; do sleep 0.05; '
    script += f"[ -n \"$ending\" ] && trap 'echo again >> {told}' USR1; done; exit 3"
    options = arguments("native", server.root, 9, "signalled")
    sidecar = beside(*options, "--", "sh", "-c", script)

    def was_told(word: str) -> None:
        wait_until(lambda: told.exists() and word in told.read_text().split(), word)

    was_told("ready")
    wait_until(lambda: statuses(server, "signalled") == ["UP"], "registration")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        sidecar.process.send_signal(number)
        was_told(number.name.removeprefix("SIG"))
    sidecar.process.terminate()
    was_told("TERM")
    assert statuses(server, "signalled") == []

    def again() -> bool:
        sidecar.process.send_signal(signal.SIGUSR1)
        return "again" in told.read_text()

    wait_until(again, "a signal passed on while it ends")
    until = time.monotonic() + HANG_SECS
    while sidecar.process.poll() is None and time.monotonic() < until:
        sidecar.process.send_signal(signal.SIGUSR1)  # one may come at the very last moment
    assert sidecar.process.wait(timeout=HANG_SECS) == 3


def test_an_interrupt_arrives_as_one(beside: Callable[..., Sidecar]) -> None:
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    script = "import signal,sys; signal.signal(2, lambda *_: sys.exit(9)); print('ready', flush=1)"
    sidecar = beside(*away, "--", sys.executable, "-c", f"{script}\nwhile 1: signal.pause()")
    wait_until(lambda: "ready" in sidecar.log(), "the child")
    assert sidecar.stop(signal.SIGINT) == 9


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 5", 5), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_childs_end_is_the_sidecars(
    script: str, code: int, beside: Callable[..., Sidecar]
) -> None:
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    sidecar = beside(*away, "--", "sh", "-c", f"sleep 0.2; {script}")
    assert sidecar.process.wait(timeout=HANG_SECS) == code


def test_an_end_that_does_not_matter_is_ignored_and_what_does_not_end_is_killed(
    beside: Callable[..., Sidecar],
) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    children = [
        {"command": ["sh", "-c", "exit 4"], "on_exit": "ignore"},
        {"command": ["sh", "-c", stubborn], "on_exit": "terminate"},
    ]
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    sidecar = beside(*away, "--supervise", json.dumps(children), "--grace", "0.5")
    wait_until(lambda: "sh ended with 4" in sidecar.log(), "the first to end")
    wait_until(lambda: "ready" in sidecar.log(), "the second")
    assert sidecar.process.poll() is None
    assert sidecar.stop() == 137


def test_the_code_is_the_applications_and_not_that_of_whoever_ends_with_it(
    beside: Callable[..., Sidecar],
) -> None:
    other = [{"command": ["sleep", "60"]}]
    away = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    options = [*away, "--supervise", json.dumps(other)]
    ended = beside(*options, "--", "sh", "-c", "sleep 0.2; exit 6")
    assert ended.process.wait(timeout=HANG_SECS) == 6
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    told = beside(*options, "--", "sh", "-c", script)
    wait_until(lambda: "ready" in told.log(), "the child")
    assert told.stop() == 5


def test_an_application_can_read_from_its_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = arguments("native", f"http://127.0.0.1:{free_port()}", 9)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        script = f"read line; echo $line > {log}; exit 4"
        program = [sys.executable, "-m", "native_api.sidecar", *options, "--", "sh", "-c", script]
        os.execv(program[0], program)
    os.write(terminal, b"hello\n")
    statuses_seen: list[int] = []

    def ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        statuses_seen.extend([status] if found else [])
        return bool(found)

    try:
        wait_until(ended, "its end")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise
    assert [os.waitstatus_to_exitcode(status) for status in statuses_seen] == [4]
    assert log.read_text() == "hello\n"
    os.close(terminal)


def test_a_registry_that_hangs_does_not_use_up_the_childrens_time(
    beside: Callable[..., Sidecar],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        silent = f"http://127.0.0.1:{listening.getsockname()[1]}"
        options = [*arguments("native", silent, 9, timeout=3), "--grace", "1"]
        sidecar = beside(*options, "--", "sleep", "3600")
        wait_until(lambda: "started sleep" in sidecar.log(), "the child")
        assert sidecar.stop() == 143  # told to end, and not killed after its second


@pytest.mark.parametrize(("mode", "code"), [(None, 127), (0o644, 126)])
def test_a_command_that_cannot_be_started_is_said(
    mode: int | None, code: int, tmp_path: Path, beside: Callable[..., Sidecar]
) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    sidecar = beside(*arguments("native", "http://h", 9), "--", str(program))
    assert sidecar.process.wait(timeout=HANG_SECS) == code
    assert str(program) in sidecar.log()


def test_a_wrong_setting_ends_it_with_one_line(beside: Callable[..., Sidecar]) -> None:
    for wrong, flags in (("--ttl", ["--ttl", "x"]), ("--tll", ["--tll", "9"])):
        sidecar = beside(*flags)
        assert sidecar.process.wait(timeout=HANG_SECS) == 2
        assert sidecar.log().startswith(f"cannot start: {wrong}")
        assert sidecar.log().count("\n") == 1


def test_it_is_light(server: RegistryServer, beside: Callable[..., Sidecar]) -> None:
    sidecar = beside(*arguments("native", server.root, 9, "light"))
    wait_until(lambda: "registered at" in sidecar.log(), "its registration")
    lines = Path(f"/proc/{sidecar.process.pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    assert sizes["Rss"] < 48
    assert sidecar.stop() == 0
