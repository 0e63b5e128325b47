"""The sidecar: its decisions with time passed in, then the program beside a real instance."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformance.gate import Gatehouse
from native_api.sidecar.checks import Tally, probe
from native_api.sidecar.protocols import GoneError, RefusedError, UnreachableError
from native_api.sidecar.registration import Registration
from native_api.sidecar.settings import CheckSettings, SettingError, load
from native_api.sidecar.supervisor import Supervisor
from tests.servers import ROOT, RegistryServer, free_port, wait_until

NEEDED = ["--registries", "http://h:1/api/v1", "--service-name", "s", "--endpoint", "h:80"]


# Settings.


def test_flags_count_before_variables_and_variables_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(
        "registries: [http://file:1/api/v1]\nservice_name: of-the-file\nendpoint: h:1\nttl: 11\n"
        "tags: [a, b]\nmetadata: {zone: z, n: 1}\n"
        "checks: [{type: http, url: 'http://h/health', failures: 2}]\n"
    )
    environ = {"SIDECAR_SERVICE_NAME": "of-the-variable", "SIDECAR_TTL": "12"}
    settings = load(["--config", str(file), "--ttl", "13"], environ)
    assert settings.ttl == 13
    assert settings.service_name == "of-the-variable"
    assert settings.registries == ("http://file:1/api/v1",)
    assert (settings.tags, settings.metadata) == (("a", "b"), {"zone": "z", "n": 1})
    assert settings.checks[0].failures == 2


def test_structures_are_taken_from_flags_and_what_follows_the_dashes_is_a_child() -> None:
    checks = '[{"type": "tcp", "address": "h:5"}, {"type": "command", "command": ["true"]}]'
    arguments = [*NEEDED, "--checks", checks, "--metadata", "{zone: a}", "--", "app", "--flag"]
    settings = load(arguments, {})
    assert [check.type for check in settings.checks] == ["tcp", "command"]
    assert settings.metadata == {"zone": "a"}
    assert settings.supervise[0].command == ("app", "--flag")
    assert settings.supervise[0].on_exit == "terminate"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ttl", "2"], "--ttl"),
        (["--ttl", "x"], "--ttl"),
        (["--protocol", "soap"], "native or eureka"),
        (["--registries", "host:1"], "http://"),
        (["--checks", "[{type: http}]"], "a url"),
        (["--checks", "[{type: http, url: 'https://h'}]"], "http://"),
        (["--checks", "[{type: tcp, address: h}]"], "host:port"),
        (["--checks", "[{type: smoke}]"], "type"),
        (["--checks", "[{type: tcp, address: 'h:1', often: 1}]"], "often"),
        (["--checks", "{"], "JSON or YAML"),
        (["--supervise", "[{command: app}]"], "command"),
        (["--supervise", "[{on_exit: ignore}]"], "command"),
        (["--on-unhealthy", "panic"], "silence or out_of_service"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(arguments: list[str], told: str) -> None:
    with pytest.raises(SettingError) as refused:
        load([*NEEDED, *arguments], {})
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_missing_or_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="service_name is missing"):
        load(["--registries", "http://h/api/v1"], {})
    with pytest.raises(SettingError, match="SIDECAR_COLOUR"):
        load(NEEDED, {"SIDECAR_COLOUR": "red"})
    file = tmp_path / "s.yaml"
    file.write_text("colour: red\n")
    with pytest.raises(SettingError, match="colour"):
        load([*NEEDED, "--config", str(file)], {})


def test_a_token_is_not_shown_where_it_is_wrong() -> None:
    with pytest.raises(SettingError) as refused:
        load(NEEDED, {"SIDECAR_TOKEN": ""})
    assert "…" in str(refused.value)


# The verdict of a check.


def test_failures_and_successes_count_in_a_row() -> None:
    tally = Tally(CheckSettings(type="tcp", failures=3, successes=2))
    verdicts = []
    for reason in (None, None, "x", "x", None, "x", "x", "x", None, None):
        tally.note(reason)
        verdicts.append(tally.well)
    assert verdicts == [None, True, True, True, True, True, True, False, False, True]


class Answers(BaseHTTPRequestHandler):
    """An instance that can be made ill."""

    status = 200
    pause = 0.0

    def do_GET(self) -> None:
        time.sleep(type(self).pause)
        self.send_response(type(self).status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Instance:
    """A real HTTP server, on one port over its lives."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.handler = type("Handler", (Answers,), {})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kill(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance()
    yield made
    made.kill()


def test_each_kind_of_check_passes_and_fails(instance: Instance) -> None:
    supervisor = Supervisor((), 1)

    def failing(**fields: Any) -> str | None:
        return probe(CheckSettings(timeout=0.3, **fields), supervisor)

    url = f"http://127.0.0.1:{instance.port}/"
    assert failing(type="http", url=url) is None
    assert failing(type="http", url=url, expect=204) == "status 200"
    instance.handler.pause = 1.0  # type: ignore[attr-defined]
    assert "timed out" in str(failing(type="http", url=url))
    assert failing(type="tcp", address=f"127.0.0.1:{instance.port}") is None
    assert "refused" in str(failing(type="tcp", address=f"127.0.0.1:{free_port()}"))
    assert failing(type="command", command=("true",)) is None
    assert failing(type="command", command=("false",)) == "exit status 1"
    assert "no end" in str(failing(type="command", command=("sleep", "9")))
    assert "No such file" in str(failing(type="command", command=("no-such-program",)))


# The state machine, against a fake registry.


class FakeRegistry:
    """Keeps what it is told; each call may be made to fail."""

    def __init__(self, url: str = "http://fake") -> None:
        self.url = url
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.failure is not None:
            raise self.failure

    def register(self, *, in_service: bool) -> None:
        self._call("register" if in_service else "register out")

    def renew(self) -> None:
        self._call("renew")

    def set_in_service(self, in_service: bool) -> None:
        self._call("in" if in_service else "out")

    def deregister(self) -> None:
        self._call("deregister")


def machine(*registries: FakeRegistry, reports: bool = False) -> Registration:
    return Registration(
        registries,
        ttl_secs=30,
        reports_illness=reports,
        max_backoff_secs=20,
        chance=random.Random(1),
    )


def play(registration: Registration, seconds: float, verdict: bool | None, start: float) -> float:
    """Step as the thread does until that much time has gone by."""
    now = start
    while now < start + seconds:
        now += max(0.001, registration.step(now, verdict))
    return now


def test_it_registers_after_the_first_good_verdict_and_renews_by_thirds() -> None:
    registry = FakeRegistry()
    registration = machine(registry)
    now = play(registration, 10, None, 0)
    assert registry.calls == []
    play(registration, 60, True, now)
    assert registry.calls[0] == "register"
    assert 6 <= registry.calls.count("renew") <= 8
    assert set(registry.calls) == {"register", "renew"}


def test_silence_while_unwell_and_back_by_a_renewal() -> None:
    registry = FakeRegistry()
    registration = machine(registry)
    now = play(registration, 5, True, 0)
    told = len(registry.calls)
    now = play(registration, 20, False, now)
    assert len(registry.calls) == told
    registration.step(now, True)
    assert registry.calls[told:] == ["renew"]


def test_illness_is_reported_once_and_the_lease_kept() -> None:
    registry = FakeRegistry()
    registration = machine(registry, reports=True)
    now = play(registration, 1, True, 0)
    now = play(registration, 30, False, now)
    assert registry.calls[:2] == ["register", "out"]
    assert set(registry.calls[2:]) == {"renew"}
    registration.step(now, True)
    assert registry.calls[-1] == "in"


def test_one_that_is_gone_is_registered_again_at_once_and_then_ever_more_slowly() -> None:
    registry = FakeRegistry()
    registration = machine(registry)
    now = play(registration, 1, True, 0)
    registry.failure = GoneError()
    play(registration, 120, True, now)
    assert registry.calls[:2] == ["register", "renew"]
    assert "register" in registry.calls[2:4]
    assert len(registry.calls) < 40


def test_a_registry_that_is_away_is_tried_ever_more_slowly_and_never_given_up() -> None:
    registry = FakeRegistry()
    registry.failure = UnreachableError("refused")
    registration = machine(registry)
    now = play(registration, 600, True, 0)
    assert 30 < len(registry.calls) < 80
    registry.failure = None
    play(registration, 25, True, now)
    assert registration.registered


def test_registries_are_tried_in_turn_and_a_renewal_in_time_keeps_the_lease() -> None:
    first, second = FakeRegistry("http://a"), FakeRegistry("http://b")
    registration = machine(first, second)
    now = play(registration, 1, True, 0)
    first.failure = UnreachableError("gone")
    play(registration, 15, True, now)
    assert first.calls == ["register", "renew"]
    assert second.calls[0] == "renew"


def test_a_refusal_is_tried_again_slowly() -> None:
    registry = FakeRegistry()
    registry.failure = RefusedError("status 401")
    play(machine(registry), 100, True, 0)
    assert 4 <= len(registry.calls) <= 11


def test_the_end_deregisters_wherever_that_can_be_done() -> None:
    first, second = FakeRegistry("http://a"), FakeRegistry("http://b")
    registration = machine(first, second)
    registration.end()
    assert first.calls == []
    play(registration, 1, True, 0)
    first.failure = UnreachableError("gone")
    registration.end()
    assert (first.calls[-1], second.calls) == ("deregister", ["deregister"])


# The program.


class Sidecar:
    """The real process."""

    def __init__(self, folder: Path, arguments: list[str], prefix: tuple[str, ...] = ()) -> None:
        self._log = folder / f"sidecar-{time.monotonic_ns()}.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "native_api.sidecar", *arguments],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
            )

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=15)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    started: list[Sidecar] = []

    def start(*arguments: str, prefix: tuple[str, ...] = ()) -> Sidecar:
        started.append(Sidecar(tmp_path, list(arguments), prefix))
        return started[-1]

    yield start
    for sidecar in started:
        sidecar.end()


def health(instance: Instance) -> list[str]:
    check = {
        "type": "http",
        "url": f"http://127.0.0.1:{instance.port}/",
        "interval": 0.1,
        "timeout": 0.5,
        "failures": 2,
    }
    return ["--checks", json.dumps([check])]


def arguments(protocol: str, base: str, instance: Instance, ttl: int = 3) -> list[str]:
    path = "/api/v1" if protocol == "native" else "/eureka"
    return [
        *("--protocol", protocol, "--registries", base + path, "--service-name", "beside"),
        *("--endpoint", f"127.0.0.1:{instance.port}", "--ttl", str(ttl), "--max-backoff", "1"),
    ]


SHORT_LEASES = {"REGISTRY_MIN_TTL": "3"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path, env=SHORT_LEASES) as running:
        # A crowd, since of a few instances only one may be evicted in a minute.
        for number in range(40):
            lease = {"renewalIntervalInSecs": 30, "durationInSecs": 600}
            assert running.register("CROWD", f"crowd:{number}", leaseInfo=lease) == 204
        yield running


def statuses(server: RegistryServer) -> list[str]:
    try:
        return [i["status"] for i in server.apps().values() if i["app"] == "BESIDE"]
    except (OSError, ValueError, KeyError):
        return []


def seconds_until(condition: Callable[[], Any], limit: float, what: str) -> float:
    began = time.monotonic()
    wait_until(condition, limit, what)
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", ["native", "eureka"])
def test_the_registry_follows_an_instance_through_its_illnesses(
    protocol: str, server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    sidecar = beside(*arguments(protocol, server.root, instance), *health(instance))
    times = {}
    times["registered"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "registration")
    instance.handler.status = 500  # type: ignore[attr-defined]
    times["ill, gone"] = seconds_until(lambda: not statuses(server), 10, "it to go")
    instance.handler.status = 200  # type: ignore[attr-defined]
    times["well, back"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "it back")
    instance.handler.pause = 5.0  # type: ignore[attr-defined]
    times["hanging, gone"] = seconds_until(lambda: not statuses(server), 10, "it to go")
    instance.handler.pause = 0.0  # type: ignore[attr-defined]
    times["answering, back"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "it back")
    instance.kill()
    times["killed, gone"] = seconds_until(lambda: not statuses(server), 10, "it to go")
    instance.start()
    times["started, back"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "it back")
    assert sidecar.stop() == 0
    assert statuses(server) == []
    print(protocol, {name: f"{secs:.2f} s" for name, secs in times.items()})
    # Two failures at most a tenth apart (and a hanging one's half second), then the lease.
    assert all(secs < 3 + 2.5 for secs in times.values()), times


@pytest.mark.parametrize("protocol", ["native", "eureka"])
def test_an_illness_can_be_reported_instead(
    protocol: str, server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    report = ["--on-unhealthy", "out_of_service"]
    beside(*arguments(protocol, server.root, instance), *health(instance), *report)
    wait_until(lambda: statuses(server) == ["UP"], 10, "registration")
    instance.handler.status = 500  # type: ignore[attr-defined]
    took = seconds_until(lambda: statuses(server) == ["OUT_OF_SERVICE"], 5, "the report")
    assert took < 2
    time.sleep(4)  # longer than the lease
    assert statuses(server) == ["OUT_OF_SERVICE"]
    instance.handler.status = 200  # type: ignore[attr-defined]
    assert seconds_until(lambda: statuses(server) == ["UP"], 5, "it back") < 2


@pytest.mark.parametrize("protocol", ["native", "eureka"])
def test_a_registry_that_is_away_restarted_or_emptied_gets_the_instance_back(
    protocol: str, tmp_path: Path, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    (tmp_path / "one").mkdir()
    server = RegistryServer(tmp_path / "one", env=SHORT_LEASES)
    sidecar = beside(*arguments(protocol, server.root, instance))
    time.sleep(1)
    assert sidecar.process.poll() is None
    with server:
        times = {"started": seconds_until(lambda: statuses(server) == ["UP"], 10, "registration")}
        server.kill9()
        time.sleep(1)
        server.start()
        times["restarted"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "it back")
        server.kill9()
        (tmp_path / "one" / "store").rename(tmp_path / "lost")
        server.start()
        times["emptied"] = seconds_until(lambda: statuses(server) == ["UP"], 10, "it back")
        print(protocol, {name: f"{secs:.2f} s" for name, secs in times.items()})
        assert sidecar.stop() == 0
        assert statuses(server) == []


def test_a_partition_ends_the_lease_and_its_end_brings_it_back_once(
    server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    with Gatehouse() as house:
        gate = house.gate(server.root)
        sidecar = beside(*arguments("native", gate.url, instance))
        wait_until(lambda: statuses(server) == ["UP"], 10, "registration")
        gate.shut()
        gone = seconds_until(lambda: not statuses(server), 10, "it to go")
        time.sleep(2)
        gate.open()
        back = seconds_until(lambda: statuses(server) == ["UP"], 5, "it back")
        time.sleep(3)
        assert statuses(server) == ["UP"]
        posts = [p for p in gate.passed if p.method == "POST"]
        assert len(posts) == 2
        assert sidecar.stop() == 0
        print(f"partition: gone after {gone:.2f} s, back {back:.2f} s after its end")


def test_another_registry_of_the_list_takes_over(
    server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    dead = f"http://127.0.0.1:{free_port()}/api/v1"
    unknown = "http://no-such-host.invalid/api/v1"
    bases = ",".join((dead, unknown, f"{server.root}/nothing", f"{server.root}/api/v1"))
    beside(*arguments("native", server.root, instance), "--registries", bases)
    wait_until(lambda: statuses(server) == ["UP"], 15, "registration")


def test_a_refused_token_is_told_of_and_kept_out_of_the_log(
    tmp_path: Path, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    env = {**SHORT_LEASES, "REGISTRY_AUTH": "jwt", "REGISTRY_JWT_KEY": "k" * 40}
    with RegistryServer(tmp_path, env=env) as server:
        sidecar = beside(*arguments("native", server.root, instance), "--token", "sesame-1234")
        wait_until(lambda: "401" in sidecar.log(), 10, "the refusal in the log")
        assert "sesame" not in sidecar.log()
        assert sidecar.process.poll() is None


# Supervision.


def test_it_is_fit_to_be_the_first_process_of_a_container(
    server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    # The child leaves an orphan that ends, then ends itself with a code of its own.
    script = "(sh -c 'sleep 0.3' & ) ; sleep 3; ps -e -o stat= | grep -c Z; exit 7"
    own_pids = ("unshare", "--pid", "--fork", "--mount-proc")
    sidecar = beside(
        *arguments("native", server.root, instance), "--", "sh", "-c", script, prefix=own_pids
    )
    wait_until(lambda: statuses(server) == ["UP"], 10, "registration")
    assert sidecar.process.wait(timeout=15) == 7
    assert statuses(server) == []
    assert "\n0\n" in sidecar.log()  # no zombie was left


def test_signals_are_passed_on_and_a_stop_deregisters_first(
    server: RegistryServer, instance: Instance, beside: Callable[..., Sidecar], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    script = (
        f"trap 'echo hup >> {told}' HUP; trap 'echo usr1 >> {told}' USR1; "
        f"trap 'echo term >> {told}; exit 3' TERM; while :; do sleep 0.05; done"
    )
    sidecar = beside(*arguments("native", server.root, instance), "--", "sh", "-c", script)
    wait_until(lambda: statuses(server) == ["UP"], 10, "registration")
    for number, word in ((signal.SIGHUP, "hup"), (signal.SIGUSR1, "usr1")):
        sidecar.process.send_signal(number)
        wait_until(lambda w=word: told.exists() and w in told.read_text(), 5, f"{word} passed on")
    assert sidecar.stop() == 3
    assert told.read_text().split() == ["hup", "usr1", "term"]
    assert statuses(server) == []


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 5", 5), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_childs_end_is_the_sidecars(
    script: str, code: int, instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    sidecar = beside(*arguments("native", away, instance), "--", "sh", "-c", f"sleep 0.2; {script}")
    assert sidecar.process.wait(timeout=10) == code


def test_an_end_that_does_not_matter_is_ignored_and_what_does_not_end_is_killed(
    instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    children = [
        {"command": ["sh", "-c", "exit 4"], "on_exit": "ignore"},
        {"command": ["sh", "-c", stubborn], "on_exit": "terminate"},
    ]
    away = f"http://127.0.0.1:{free_port()}"
    options = ["--supervise", json.dumps(children), "--grace", "0.5"]
    sidecar = beside(*arguments("native", away, instance), *options)
    wait_until(lambda: "sh ended with 4" in sidecar.log(), 10, "the first to end")
    assert sidecar.process.poll() is None
    assert sidecar.stop() == 137


def test_a_command_that_cannot_be_started_is_said(
    instance: Instance, beside: Callable[..., Sidecar]
) -> None:
    sidecar = beside(*arguments("native", "http://h", instance), "--", "no-such-program")
    assert sidecar.process.wait(timeout=10) == 127
    assert "no-such-program" in sidecar.log()


def test_a_wrong_setting_ends_it_with_one_line(beside: Callable[..., Sidecar]) -> None:
    sidecar = beside("--ttl", "x")
    assert sidecar.process.wait(timeout=10) == 2
    assert sidecar.log().startswith("cannot start: --ttl")
    assert sidecar.log().count("\n") == 1


def test_it_is_light(instance: Instance, beside: Callable[..., Sidecar]) -> None:
    sidecar = beside(*arguments("native", f"http://127.0.0.1:{free_port()}", instance))
    wait_until(lambda: "cannot be reached" in sidecar.log(), 10, "its first try")
    status = Path(f"/proc/{sidecar.process.pid}/smaps_rollup").read_text()
    (pss,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("Pss:"))
    print(f"the sidecar holds {pss / 1024:.1f} MiB")
    assert pss < 40 * 1024
