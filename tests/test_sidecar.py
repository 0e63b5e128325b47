"""The sidecar: its decisions, with time passed in, and what it reads from others."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformance.programs import free_port
from native_api.sidecar import settings
from native_api.sidecar.client import Deadline, Site, connect
from native_api.sidecar.probes import Health, Tally, probe
from native_api.sidecar.protocols import (
    GoneError,
    NativeProtocol,
    RefusedError,
    Transport,
    UnreachableError,
    protocols,
)
from native_api.sidecar.registration import Registration
from native_api.sidecar.settings import CheckSettings, SettingError, load, without_secrets
from native_api.sidecar.supervisor import Supervisor
from tests.servers import HANG_SECS, wait_until

NEEDED = ["--registries", "http://h:1/api/v1", "--service-name", "s", "--endpoint", "h:80"]


# Settings.


@pytest.mark.parametrize("endpoint", ["HTTP://h:80", "Http://h", "http://h/", "h:80"])
def test_an_endpoint_is_understood_in_any_spelling(endpoint: str) -> None:
    assert load([*NEEDED, "--endpoint", endpoint], {}).endpoint == endpoint


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
        (["--on-unhealthy", "panic"], "silence or out_of_service or deregister"),
        (["--checks", "[{type: command, command: [x], expect: 256}]"], "expect"),
        (["--checks", "[{type: http, url: 'http://h', expect: 3}]"], "expect"),
        (["--supervise", "[{command: [x], env: {A: 1}}]"], "NAME=value"),
        (["--supervise", "[{command: [x], env: [A]}]"], "NAME=value"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--registries", "http://h:99999"], "--registries"),
        (["--registries", "http://h/?q=1"], "query"),
        (["--endpoint", "h"], "host:port"),
        (["--endpoint", "h:abc"], "host:port"),
        (["--endpoint", "https://h:1"], "http://"),
        (["--endpoint-type", "tcp", "--endpoint", "h"], "host:port"),
        (["--checks", "[{type: tcp, address: 'h:0'}]"], "host:port"),
        (["--metadata", "{day: 2020-01-01}"], "quotes"),
        (["--metadata", "{1: x}"], "texts"),
        (["--renew-fraction", "1"], "--renew-fraction"),
        (["--ca-file", "/nowhere.pem"], "a file"),
        (["--key-file", "/etc/hostname"], "cert_file"),
        (["--token", "t", "--username", "u"], "token and username"),
        (["--password", "p"], "username"),
        (["--instance-id", "x"], "eureka"),
        (["--protocol", "eureka", "--endpoint-type", "user"], "user"),
        (["--colour", "red"], "--colour"),
        (["--regis", "http://h"], "--regis"),
        (["--ttl"], "--ttl"),
        (["left over"], "flags only"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", "sesame open"],
        ["--registries", "bob:sesame@host"],
        ["--registries", "http://bob:ses/ame@host"],
        ["--checks", "[{type: http, url: 'ftp://bob:sesame@host'}]"],
        ["--checks", "[{type: http, url: 'http://bob:sesame@host"],
        ["--tokn", "sesame"],
        ["--tokn=sesame"],
    ],
)
def test_credentials_are_not_shown_where_they_are_wrong(arguments: list[str]) -> None:
    with pytest.raises(SettingError) as refused:
        load([*NEEDED, *arguments], {})
    assert "ses" not in str(refused.value)


@pytest.mark.parametrize("text", ["&a {b: *a}", "{a: 2024-99-99}", f"[{'9' * 5000}]", "[" * 5000])
def test_yaml_that_cannot_be_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(f"metadata: {text}\n")
    for arguments in (["--config", str(config)], [*NEEDED, "--metadata", text]):
        with pytest.raises(SettingError) as refused:
            load(arguments, {})
        assert "\n" not in str(refused.value)


def test_a_broken_file_is_told_by_its_line_and_not_by_its_text(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text('ttl: 5\ntoken: "sesame\n')
    with pytest.raises(SettingError, match=r"line \d") as refused:
        load(["--config", str(file)], {})
    assert "sesame" not in str(refused.value)


def test_children_are_not_given_the_credentials() -> None:
    environ = {"PATH": "/bin", "SIDECAR_TOKEN": "t", "SIDECAR_PASSWORD": "p", "SIDECAR_TTL": "9"}
    assert without_secrets(environ) == {"PATH": "/bin", "SIDECAR_TTL": "9"}


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
        self.port = 0
        self.start()

    def start(self) -> None:
        self.handler = type("Handler", (Answers,), {})

        def bound() -> ThreadingHTTPServer | None:
            # Between two lives another may hold the port for a moment, as a connection's own end.
            with contextlib.suppress(OSError):
                return ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
            return None

        self._server = wait_until(bound, "the port")
        self.port = self._server.server_port
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

    def failing(timeout: float = HANG_SECS, **fields: Any) -> str | None:
        return probe(CheckSettings(timeout=timeout, **fields), supervisor)

    url = f"http://127.0.0.1:{instance.port}/"
    assert failing(type="http", url=url) is None
    assert failing(type="http", url=url, expect=204) == "status 200"
    instance.handler.pause = HANG_SECS  # type: ignore[attr-defined]
    assert "timed out" in str(failing(0.3, type="http", url=url))
    assert failing(type="tcp", address=f"127.0.0.1:{instance.port}") is None
    assert "refused" in str(failing(type="tcp", address=f"127.0.0.1:{free_port()}"))
    assert failing(type="command", command=("true",)) is None
    assert failing(type="command", command=("false",)) == "exit status 1"
    assert "no end" in str(failing(0.3, type="command", command=("sleep", "60")))
    assert "No such file" in str(failing(type="command", command=("no-such-program",)))


def dripping(port_taken: socket.socket) -> None:
    """A fake of a server whose answer comes a byte now and then, and never ends."""

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = port_taken.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def test_a_server_that_drips_meets_the_timeout_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping(listening)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert "timed out" in str(
            probe(CheckSettings(type="http", url=url, timeout=0.4), Supervisor((), 1))
        )
        settings = load([*NEEDED, "--registries", url, "--timeout", "0.4"], {})
        with pytest.raises(UnreachableError, match="timed out"):
            NativeProtocol(url, settings).register(in_service=True)


def test_a_resolver_that_hangs_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, goes_on = socket.getaddrinfo, threading.Event()

    def hanging(*arguments: Any, flags: int = 0, **options: Any) -> Any:
        if flags != socket.AI_NUMERICHOST:
            goes_on.wait()
        return genuine(*arguments, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    with pytest.raises(TimeoutError):
        connect("some-name.invalid", 80, Deadline(0.2))
    goes_on.set()


def test_a_name_that_cannot_be_one_is_a_failure_as_any_other() -> None:
    failed = probe(CheckSettings(type="tcp", address="a..b:80"), Supervisor((), 1))
    assert failed is not None
    assert "a..b" in failed


@pytest.mark.parametrize(("code", "expect"), [(0, None), (3, 3)])
def test_a_command_is_well_with_the_exit_status_that_is_expected(
    code: int, expect: int | None
) -> None:
    check = {"type": "command", "command": ["sh", "-c", f"exit {code}"]}
    told = check if expect is None else check | {"expect": expect}
    (made,) = load([*NEEDED, "--checks", json.dumps([told])], {}).checks
    assert probe(made, Supervisor((), 1)) is None
    other = replace(made, command=("sh", "-c", "exit 7"))
    assert probe(other, Supervisor((), 1)) == "exit status 7"


def test_a_port_alone_is_this_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(SettingError):  # a machine without any network has none
        assert not ipaddress.ip_address(settings.own_address().strip("[]")).is_unspecified
    monkeypatch.setattr(settings, "own_address", lambda: "10.0.0.7")
    assert load([*NEEDED, "--endpoint", ":9080"], {}).endpoint == "10.0.0.7:9080"


def test_what_a_command_started_ends_with_it() -> None:
    command = ("sh", "-c", "sleep 47.11 & wait")
    assert probe(CheckSettings(type="command", command=command, timeout=0.3), Supervisor((), 1))

    def left() -> bool:
        found = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True)
        lines = found.stdout.splitlines()
        return any("sleep 47.11" in line and line[0] != "Z" for line in lines)

    wait_until(lambda: not left(), "its end")


def test_an_https_check_knows_its_authority(certificates: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"https://localhost:{server.server_port}/"
        known = CheckSettings(type="https", url=url, ca_file=str(certificates / "ca.pem"))
        assert probe(known, Supervisor((), 1)) is None
        stranger = CheckSettings(type="https", url=url)
        assert "certificate" in str(probe(stranger, Supervisor((), 1)))
    finally:
        server.shutdown()
        server.server_close()


def test_a_check_that_hangs_delays_no_other(instance: Instance) -> None:
    def check(**fields: Any) -> CheckSettings:
        return CheckSettings(interval=0.05, failures=1, **fields)

    hanging = check(type="command", command=("sleep", "3600"), timeout=3600)
    tcp = check(type="tcp", address=f"127.0.0.1:{instance.port}", timeout=HANG_SECS)
    supervisor = Supervisor((), 0.1)
    changes: list[None] = []
    health = Health([hanging, tcp], supervisor, lambda: changes.append(None))
    health.start()
    wait_until(lambda: changes, "the quick one's verdict")
    assert health.verdict() is None  # the other has none yet
    instance.kill()
    wait_until(lambda: health.verdict() is False, "the quick one's other verdict")
    health.stop()
    supervisor.end()
    instance.start()


# The state machine, against a fake registry.


class FakeRegistry:
    """Keeps what it is told; each call may be made to fail."""

    def __init__(self, name: str = "http://fake") -> None:
        self.name = name
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


def machine(
    *registries: FakeRegistry, reports: bool = False, when_unwell: str = "silence"
) -> Registration:
    return Registration(
        registries,
        interval_secs=10,
        when_unwell="out_of_service" if reports else when_unwell,
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


def test_one_that_is_unwell_is_taken_out_where_that_is_set_and_registered_when_well() -> None:
    registry = FakeRegistry()
    registration = machine(registry, when_unwell="deregister")
    now = play(registration, 1, True, 0)
    now = play(registration, 30, False, now)
    assert registry.calls == ["register", "deregister"]
    registration.step(now, True)
    assert registry.calls[2:] == ["register"]
    registration.end()
    assert registry.calls[3:] == ["deregister"]


def test_one_that_cannot_be_taken_out_is_tried_again_and_ever_more_slowly() -> None:
    registry = FakeRegistry()
    registration = machine(registry, when_unwell="deregister")
    now = play(registration, 1, True, 0)
    registry.failure = UnreachableError("no answer")
    now = play(registration, 60, False, now)
    assert 5 <= registry.calls.count("deregister") <= 20
    registry.failure = None
    play(registration, 20, False, now)
    told = registry.calls.count("deregister")
    assert not registration.registered
    play(registration, 60, False, now + 20)
    assert registry.calls.count("deregister") == told


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


def test_one_that_refuses_does_not_keep_the_lease_from_another() -> None:
    first, second = FakeRegistry("http://a"), FakeRegistry("http://b")
    registration = machine(first, second)
    now = play(registration, 1, True, 0)
    first.failure = RefusedError("status 401")
    play(registration, 12, True, now)
    assert first.calls == ["register", "renew"]
    assert second.calls[0] == "renew"


def test_a_problem_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, second = FakeRegistry("http://a"), FakeRegistry("http://b")
    first.failure = second.failure = UnreachableError("refused")
    registration = machine(first, second)
    now = play(registration, 100, True, 0)
    assert caplog.text.count("cannot be reached") == 2
    first.failure = second.failure = None
    play(registration, 25, True, now)
    assert caplog.text.count("answers again") == 1


def test_what_may_have_come_through_is_deregistered_at_the_end() -> None:
    registry = FakeRegistry()
    registration = machine(registry)
    registry.failure = UnreachableError("the answer was lost")
    play(registration, 1, True, 0)
    registration.end()
    assert registry.calls[-1] == "deregister"


def test_one_lost_while_ill_is_registered_once_it_is_well() -> None:
    registry = FakeRegistry()
    registration = machine(registry, reports=True)
    now = play(registration, 1, True, 0)
    now = play(registration, 1, False, now)
    registry.failure = GoneError()
    now = play(registration, 15, False, now)
    registry.failure = None
    told = len(registry.calls)
    now = play(registration, 30, False, now)
    assert len(registry.calls) == told
    play(registration, 1, True, now)
    assert registry.calls[told:] == ["register"]


def test_the_end_deregisters_wherever_that_can_be_done() -> None:
    first, second = FakeRegistry("http://a"), FakeRegistry("http://b")
    registration = machine(first, second)
    registration.end()
    assert first.calls == []
    play(registration, 1, True, 0)
    first.failure = UnreachableError("gone")
    registration.end()
    assert (first.calls[-1], second.calls) == ("deregister", ["deregister"])


# What registries answer that are none, or that refuse.


class FakeAnswers:
    """A fake of a registry that answers whatever it is given, byte for byte."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://bob:sesame@127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection:
                    connection.settimeout(HANG_SECS)
                    self.requests.append(connection.recv(65536))
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listening.close()


def http_answer(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\xfe garbage",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        http_answer(200, b"<html>log in first</html>"),
        http_answer(201, b"{}"),
        http_answer(201, b'{"id": null}'),
        http_answer(201, b"[" * 60_000),
        http_answer(302),
        http_answer(404),
        http_answer(429),
        http_answer(503),
    ],
)
@pytest.mark.parametrize("protocol", ["native", "eureka"])
def test_nonsense_is_no_registry(protocol: str, answer: bytes) -> None:
    fake = FakeAnswers(answer)
    flags = ["--protocol", protocol, "--registries", fake.url, "--timeout", "2"]
    (registry,) = protocols(load([*NEEDED, *flags], {}))
    with pytest.raises(UnreachableError) as told:
        registry.register(in_service=True)
    assert "\n" not in str(told.value)
    fake.close()


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413])
def test_a_refusal_is_quoted_but_for_credentials(status: int) -> None:
    fake = FakeAnswers(http_answer(status, b"that\nis wrong"))
    (registry,) = protocols(load([*NEEDED, "--registries", fake.url], {}))
    with pytest.raises(RefusedError, match=f"status {status}: that is wrong"):
        registry.register(in_service=True)
    fake.close()
    for repeated in (b"sesame is no password", base64.b64encode(b"bob:sesame")):
        fake = FakeAnswers(http_answer(status, repeated))
        (registry,) = protocols(load([*NEEDED, "--registries", fake.url], {}))
        with pytest.raises(RefusedError, match="not shown"):
            registry.register(in_service=True)
        fake.close()


def test_a_heartbeat_does_not_follow_a_link_to_another_host() -> None:
    links = {"self": "http://evil.invalid/x", "heartbeat": "http://evil.invalid/x/heartbeat"}
    body = json.dumps({"id": "a/b:1", "ttl": 30, "links": links}).encode()
    fake = FakeAnswers(http_answer(200, body))
    settings = load([*NEEDED, "--registries", f"{fake.url}/api/v1/"], {})
    (registry,) = protocols(settings)
    registry.register(in_service=True)
    registry.renew()
    assert fake.requests[0].startswith(b"POST /api/v1/instances HTTP/1.1\r\n")
    assert fake.requests[1].startswith(b"PUT /api/v1/instances/a%2Fb%3A1/heartbeat HTTP/1.1\r\n")
    fake.close()


def test_an_address_is_shown_without_its_account() -> None:
    site = Site.of("https://bob:pass%40word@host:8761/api/v1")
    assert site.shown == "https://host:8761/api/v1"
    assert base64.b64decode(site.authorization.split()[1]) == b"bob:pass@word"


# What a Eureka server is told of the address.


def eureka_instance(endpoint: str, registry: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    arguments = [*NEEDED[2:4], "--registries", registry, "--protocol", "eureka"]
    (protocol,) = protocols(load([*arguments, "--endpoint", endpoint], {}))
    sent: list[Any] = []

    def send(_: Transport, method: str, path: str, document: Any = None) -> tuple[int, bytes]:
        sent.append(document)
        return 204, b""

    monkeypatch.setattr(Transport, "send", send)
    protocol.register(in_service=True)
    return sent[0]["instance"]


@pytest.mark.parametrize(
    ("endpoint", "host", "address"),
    [
        ("10.0.0.7:80", "10.0.0.7", "10.0.0.7"),
        ("http://[fd00::7]:80/x", "[fd00::7]", "fd00::7"),
        ("two.example:80", "two.example", "10.0.0.1"),
        ("six.example:80", "six.example", "fd00::1"),
        ("nobody.example:80", "nobody.example", "127.0.0.1"),
    ],
)
def test_eureka_clients_are_given_an_address_in_digits(
    endpoint: str, host: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one however name servers turn; this machine's where the name is unknown here."""
    names = {
        "two.example": ["fd00::2", "10.0.0.2", "10.0.0.1"],
        "six.example": ["fd00::2", "fd00::1"],
    }
    genuine = socket.getaddrinfo

    def getaddrinfo(name: str, *given: Any, **named: Any) -> Any:
        if name.endswith(".example"):
            if name not in names or named.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, 0))
                for a in names[name]
            ]
        return genuine(name, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.create_server(("127.0.0.1", 0)) as registry:
        url = f"http://127.0.0.1:{registry.getsockname()[1]}/eureka"
        told = eureka_instance(endpoint, url, monkeypatch)
    assert (told["hostName"], told["ipAddr"]) == (host, address)
