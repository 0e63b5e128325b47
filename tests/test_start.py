"""Starting for real: what cannot serve says so in one line and ends, and what serves has room."""

from __future__ import annotations

import base64
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from werkzeug.security import generate_password_hash

from conformance.programs import free_port
from tests.certificates import make_certificates
from tests.servers import HANG_SECS, JSON, ROOT, RegistryServer, instance_body, wait_until

WORKER_CLASSES = ["eureka_http.worker.EventLoopWorker", "gthread"]
QUICK_HASH = "pbkdf2:sha256:1"


def outcome(
    folder: Path, env: Mapping[str, str], *arguments: str, port: int | None = None
) -> tuple[int, list[str], int]:
    """A server that is expected not to start: its exit code, what it says, and its port."""
    port = port or free_port()
    base = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": "2",
        "STORE_URL": f"lmdb:{folder / 'store'}",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "wsgi:app", *arguments],
        cwd=ROOT,
        env=base | dict(env),
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )
    return ended.returncode, ended.stderr.splitlines(), port


def _broken_users(folder: Path) -> dict[str, str]:
    (folder / "users").write_text("ann red user\n")
    return {"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(folder / "users")}


def _unknown_hash(folder: Path) -> dict[str, str]:
    (folder / "users").write_text("ann red user md5$salt$0123\n")
    return {"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(folder / "users")}


def _garbage_key(folder: Path) -> dict[str, str]:
    (folder / "key.pem").write_text("-----BEGIN PUBLIC KEY-----\nno\n-----END PUBLIC KEY-----\n")
    return {"REGISTRY_AUTH": "jwt", "REGISTRY_JWT_KEY_FILE": str(folder / "key.pem")}


def _certificate_of_another_key(folder: Path) -> dict[str, str]:
    make_certificates(folder)
    files = {"TLS_CERT_FILE": "server.pem", "TLS_KEY_FILE": "client.key"}
    return {variable: str(folder / name) for variable, name in files.items()}


def _garbage_certificate(folder: Path) -> dict[str, str]:
    (folder / "x.pem").write_text("no certificate")
    return {"TLS_CERT_FILE": str(folder / "x.pem"), "TLS_KEY_FILE": str(folder / "x.pem")}


def _impossible_store(folder: Path) -> dict[str, str]:
    return {"STORE_URL": "lmdb:/proc/nowhere"}


def _file_as_store(folder: Path) -> dict[str, str]:
    (folder / "file").write_text("x")
    return {"STORE_URL": f"lmdb:{folder / 'file'}"}


REASONS: list[tuple[Callable[[Path], dict[str, str]], str]] = [
    (lambda _: {"REGISTRY_AUTH": "jwt", "REGISTRY_JWT_KEY": "short"}, "at least 32 characters"),
    (lambda _: {"REGISTRY_AUTH": "jwt"}, "REGISTRY_JWT_KEY"),
    (_broken_users, "line 1: expected NAME NAMESPACE user|admin HASH"),
    (_unknown_hash, "line 1: a password hash of an unknown method"),
    (_garbage_key, "key.pem"),
    (_certificate_of_another_key, "they do not belong to each other"),
    (_garbage_certificate, "TLS_CERT_FILE"),
    (_impossible_store, "/proc/nowhere"),
    (_file_as_store, "file"),
    (lambda _: {"STORE_URL": "memory:", "WORKERS": "2"}, "WORKERS=2: expected 1"),
    (lambda _: {"REGISTRY_CATALOGS": "[{kind: nothing}]"}, "REGISTRY_CATALOGS"),
    (lambda _: {"WORKER_CLASS": "nonsense"}, "WORKER_CLASS='nonsense'"),
    (lambda _: {"WORKER_CLASS": "os.system"}, "WORKER_CLASS='os.system'"),
    (lambda _: {"HOST": "[::1]"}, "HOST='[::1]': expected a name or an address"),
    (lambda _: {"REGISTRY_AUHT": "basic"}, "REGISTRY_AUHT is not known: expected REGISTRY_AUTH"),
]


# Both workers run the same code before any is forked: a few under the other stand for all.
STARTS = [(WORKER_CLASSES[0], *each) for each in REASONS]
STARTS += [(WORKER_CLASSES[1], *each) for each in REASONS[::4]]


@pytest.mark.parametrize(("worker_class", "spoil", "told"), STARTS, ids=range(len(STARTS)))
def test_a_start_that_cannot_succeed_is_one_line_and_an_end(
    tmp_path: Path, worker_class: str, spoil: Callable[[Path], dict[str, str]], told: str
) -> None:
    env = {"WORKER_CLASS": worker_class} | spoil(tmp_path)
    code, lines, port = outcome(tmp_path, env)
    reasons = [line for line in lines if "cannot start" in line]
    assert code not in (0, None), lines
    assert len(reasons) == 1, lines
    assert told in reasons[0]
    assert not any("Traceback" in line for line in lines), lines
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=HANG_SECS)


def test_a_port_that_is_taken_is_one_line_and_an_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines, _ = outcome(tmp_path, {}, port=port)
    told = [line for line in lines if "cannot start" in line]
    assert code == 1
    assert told == [
        f"cannot start: HOST=127.0.0.1 PORT={port}: cannot listen there: Address already in use"
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["-w", "3"], "3 workers: expected 1"), (["--preload"], "--preload")],
)
def test_the_command_line_cannot_ask_for_what_the_store_forbids(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    code, lines, _ = outcome(tmp_path, {"STORE_URL": "memory:", "WORKERS": "1"}, *arguments)
    assert code == 1
    assert [line for line in lines if "cannot start" in line and told in line], lines


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_what_only_a_worker_finds_out_is_told_once_and_ends_the_server(
    tmp_path: Path, worker_class: str
) -> None:
    # What was read before the workers were forked is not read again in time to see this.
    spoiling = tmp_path / "sitecustomize.py"
    spoiling.write_text(
        "import registry.registry as r\n"
        "from registry import StoreError\n"
        "def start(self): raise StoreError('the store went away')\n"
        "r.Registry.start = start\n"
    )
    env = {"WORKER_CLASS": worker_class, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, lines, _ = outcome(tmp_path, env)
    assert code == 3
    assert [line for line in lines if "cannot start" in line] == [
        "cannot start: the store went away"
    ]


def test_a_worker_that_cannot_start_later_is_tried_again_without_haste(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, registry.registry as r\n"
        "from registry import StoreError\n"
        "genuine = r.Registry.start\n"
        "def start(self):\n"
        f"    if os.path.exists({str(flag)!r}): raise StoreError('the store went away')\n"
        "    genuine(self)\n"
        "r.Registry.start = start\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        flag.touch()
        began = time.monotonic()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        told = "cannot start a worker, tried again: the store went away"
        wait_until(lambda: server.log().count(told) >= 3, "three tries")
        assert time.monotonic() - began >= 2.0  # a second lies between two of them
        flag.unlink()
        wait_until(lambda: server.send("GET", "/health/ready").status == 200, "readiness")


def test_a_reload_with_settings_that_are_wrong_changes_nothing(
    tmp_path: Path, certificates: Path
) -> None:
    for name in ("server.pem", "server.key"):
        shutil.copy(certificates / name, tmp_path / name)
    users = tmp_path / "users"
    users.write_text(f"ann red user {generate_password_hash('secret', QUICK_HASH)}\n")
    catalogs = tmp_path / "catalogs.yaml"
    catalogs.write_text("[]")
    env = {"REGISTRY_CATALOGS": str(catalogs)}
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        before = server.worker_pids()
        catalogs.write_text("[{kind: nothing}]")
        server.tell(signal.SIGHUP)
        wait_until(lambda: "not reloaded, all stays as it is" in server.log())
        assert "REGISTRY_CATALOGS" in server.log()
        assert server.worker_pids() == before
        assert server.send("GET", "/health/ready").status == 200
        catalogs.write_text("[]")
        server.tell(signal.SIGHUP)
        wait_until(lambda: server.worker_pids() and before[0] not in server.worker_pids())
        wait_until(lambda: server.send("GET", "/health/ready").status == 200)


def test_as_many_files_as_may_be_are_opened_and_no_more_connections_than_that(
    tmp_path: Path,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 1000));"
        "from eureka_server import start;"
        "print(start.raise_file_limit()); print(start.most_connections());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)); print(start.raise_file_limit())"
    )
    assert hard >= 1000
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told == ["each process may open 1000 files now, not 400", "800", "(1000, 1000)", ""]


def test_settings_are_checked_without_serving(tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "STORE_URL": f"lmdb:{tmp_path / 'store'}",
        "ACCES_LOG": "true",
    }
    command = [sys.executable, "-m", "eureka_server", "--check"]
    good = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert good.returncode == 0
    assert good.stdout.startswith("it would serve on 0.0.0.0:8761")
    assert "ACCES_LOG has no effect here: it is not known; is ACCESS_LOG meant?" in good.stderr
    wrong = subprocess.run(
        command, cwd=ROOT, env=env | _broken_users(tmp_path), capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "line 1" in wrong.stderr


# Accounts in a server that runs


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_watch_ends_with_its_account(tmp_path: Path, worker_class: str, accept: str) -> None:
    users = tmp_path / "users"
    lines = [
        f"{name} red user {generate_password_hash('secret', QUICK_HASH)}\n"
        for name in ("ann", "bob")
    ]
    users.write_text("".join(lines))
    env = {
        "REGISTRY_AUTH": "basic",
        "REGISTRY_USERS_FILE": str(users),
        "WORKER_CLASS": worker_class,
    }
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        watches = {}
        for name in ("ann", "bob"):
            account = base64.b64encode(f"{name}:secret".encode()).decode()
            headers = {"Authorization": f"Basic {account}", "Accept": accept}
            revision = server.send(
                "GET", "/api/v1/watch?wait=0", None, headers | {"Accept": "application/json"}
            ).json()["revision"]
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECS)
            connection.request("GET", f"/api/v1/watch?wait=300&since={revision}", headers=headers)
            watches[name] = connection
        for _ in range(50):  # what comes later is answered later: both are watching by now
            assert server.send("GET", "/health/live").status == 200
        users.write_text(lines[1])
        # It ends, well before anything else would end it, and the other does not.
        body = watches["ann"].getresponse().read()
        if accept == "application/json":
            assert json.loads(body)["events"] == []
        body = instance_body("SHOP", "shop:1")
        assert server.eureka("POST", "/apps/SHOP", body, headers | JSON).status == 204
        answer = watches["bob"].getresponse()
        told = answer.read() if accept == "application/json" else answer.read1() + answer.read1()
        assert b"shop" in told
        answer.close()
        for connection in watches.values():
            connection.close()


def test_a_broken_edit_of_the_users_file_is_logged_though_nobody_asks(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann red user {generate_password_hash('secret', QUICK_HASH)}\n")
    env = {"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(users)}
    account = {"Authorization": "Basic " + base64.b64encode(b"ann:secret").decode()}
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        users.write_text("# a remark\nann red\n")
        told = "line 2: expected NAME NAMESPACE user|admin HASH"
        wait_until(lambda: told in server.log(), "the line")
        # After a restart the last good one is in force still.
        assert server.stop() == 0
        server.start()
        assert server.send("GET", "/api/v1/services", None, account).status == 200
        assert server.send("GET", "/api/v1/services").status == 401
        body = instance_body("SHOP", "shop:1")
        assert server.eureka("POST", "/apps/SHOP", body, JSON | account).status == 204
        wait_until(lambda: "[ann@red] " in server.log(), "who asked")


def test_secrets_and_line_feeds_do_not_get_into_the_log(tmp_path: Path) -> None:
    env = {"REGISTRY_AUTH": "trusted", "ACCESS_LOG": "true"}
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        body = instance_body("SHOP", "shop:1\nERROR forged\x1b[31m")
        path = "/eureka/n/TOPSECRET/apps/SHOP"
        assert server.send("POST", path, body, JSON).status == 204
        assert server.send("GET", "/eureka/v2/n/TOPSECRET/apps", None, JSON).status == 200
        as_name = {"Authorization": "Basic " + base64.b64encode(b"TOPSECRET:").decode()}
        assert server.send("GET", "/eureka/apps", None, as_name).status == 200
        assert server.send("GET", "//u:TOPSECRET@h/eureka", None, JSON).status == 404
        assert server.send("GET", "/eureka/apps?token=TOPSECRET", None, JSON).status == 401
        wait_until(lambda: "token=" in server.log())
        log = server.log()
    assert "shop:1\\nERROR forged\\x1b[31m" in log
    assert not [line for line in log.splitlines() if line.startswith("ERROR")]
    # Where the namespace's name is the token, not even who asked is said.
    assert "TOPSECRET" not in log


def test_the_access_log_names_users_that_are_let_in(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann red user {generate_password_hash('x', QUICK_HASH)}\n")
    env = {
        "REGISTRY_AUTH": "basic",
        "REGISTRY_USERS_FILE": str(tmp_path / "users"),
        "ACCESS_LOG": "true",
    }
    with RegistryServer(tmp_path, workers=1, env=env) as server:
        for account, status in ((b"slipped:", 401), (b"ann:x", 200)):
            headers = {"Authorization": "Basic " + base64.b64encode(account).decode()}
            assert server.send("GET", "/eureka/apps", None, headers).status == status
        wait_until(lambda: " - ann [" in server.log())
        assert "slipped" not in server.log()
