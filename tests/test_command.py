"""The command ``eureka-registry``, run as its operator runs it."""

from __future__ import annotations

import json
import operator
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.programs import free_port
from eureka_server.command import commands, parsed_flags
from eureka_server.settings import SETTINGS, Environment, Setting, load, with_flags
from tests.servers import HANG_SECS, ROOT, RegistryServer, wait_until

COMMAND = (sys.executable, "-m", "eureka_server")


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command away from the sources, until it ends."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )


class Served(RegistryServer):
    """The server as ``eureka-registry serve`` starts it, in a folder that has no file of ours."""

    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, workers=1, env={"PYTHONPATH": str(ROOT), **(env or {})})
        self.command = (*COMMAND, "serve", *arguments)
        self.runs_in = folder

    def is_listening(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0


# Serving


@pytest.mark.parametrize("worker_class", ["eureka_http.worker.EventLoopWorker", "gthread"])
def test_it_serves_in_its_own_process_as_gunicorn_does(tmp_path: Path, worker_class: str) -> None:
    port = free_port()
    wrong = {"PORT": "1", "STORE_URL": "memory:", "WORKER_CLASS": "none"}
    server = Served(
        tmp_path,
        *("--port", str(port), "--store-url", "lmdb:here", f"--worker-class={worker_class}"),
        env=wrong,
    )
    server.port = port  # flags count before the environment
    with server:
        assert server.register("SHOP", "shop:1") == 204
        assert (tmp_path / "here").is_dir()
        (first,) = server.worker_pids()

        server.tell(signal.SIGTTIN)
        wait_until(lambda: len(server.worker_pids()) == 2, "one more worker")
        server.tell(signal.SIGHUP)
        wait_until(
            lambda: server.worker_pids() and first not in server.worker_pids(), "other workers"
        )
        wait_until(lambda: "shop:1" in server.apps(), "the instance")
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def test_gunicorns_own_options_stand_behind_two_dashes(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text("keepalive = 3\ngraceful_timeout = 2\n")
    options = ("-w", "2", "-c", "more.py", "--keep-alive", "5")
    ended = run(tmp_path, "serve", "--port", "8799", "--", *options, "--print-config")
    told = dict(
        line.split("=", 1) for line in ended.stdout.replace(" ", "").splitlines() if "=" in line
    )
    assert ended.returncode == 0, ended.stderr
    assert told["bind"] == "['0.0.0.0:8799']"
    assert (told["workers"], told["keepalive"], told["graceful_timeout"]) == ("2", "5", "2")
    # What it needs of them is there without a file of settings.
    assert (told["preload_app"], told["forwarded_allow_ips"]) == ("False", "[]")


def test_it_can_replace_itself(tmp_path: Path) -> None:
    with Served(tmp_path, "--threads", "3", "--log-level", "debug") as server:
        before = set(server.worker_pids())
        server.tell(signal.SIGUSR2)

        def replacement() -> int:
            """The child of the main process that is one itself, with children of its own."""
            for pid in set(server.worker_pids()) - before:
                if Path(f"/proc/{pid}/task/{pid}/children").read_text():
                    return pid
            return 0

        new = wait_until(replacement, "another main process")
        words = Path(f"/proc/{new}/cmdline").read_bytes().split(b"\0")
        assert words[1:4] == [b"-m", b"eureka_server", b"serve"]
        assert server.stop() == 0
        assert server.register("SHOP", "shop:1") == 204
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not server.is_listening(), "the end of the second")


def test_a_start_that_cannot_succeed_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(tmp_path, "serve", "--host", "127.0.0.1", "--port", port)
    assert ended.returncode == 1
    told = f"HOST=127.0.0.1 PORT={port}: cannot listen there: Address already in use"
    assert [line for line in ended.stderr.splitlines() if "cannot start" in line] == [
        f"cannot start: {told}"
    ]
    for arguments, env, told in (
        ((), {"PORT": "none"}, "PORT='none': expected a whole number from 1 to 65535"),
        (("--store-url", "memory:", "--workers", "2"), {}, "WORKERS=2: expected 1, for"),
        (("--auth", "jwt"), {}, "REGISTRY_AUTH=jwt: expected REGISTRY_JWT_KEY"),
    ):
        ended = run(tmp_path, "serve", *arguments, env=env)
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"cannot start: {told}")
        assert ended.stderr.count("\n") == 1
    refused = run(
        tmp_path,
        *("serve", "--port", str(free_port()), "--store-url=memory:", "--workers=1"),
        *("--", "-w", "3"),
    )
    assert refused.returncode == 1
    assert "cannot start: 3 workers: expected 1" in refused.stderr


def test_what_only_a_worker_finds_out_is_told_once_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import registry.registry as r\n"
        "from registry import StoreError\n"
        "def start(self): raise StoreError('the store went away')\n"
        "r.Registry.start = start\n"
    )
    ended = run(
        tmp_path,
        *("serve", "--host", "127.0.0.1", "--port", str(free_port()), "--workers", "2"),
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert ended.returncode == 3
    assert [line for line in ended.stderr.splitlines() if "cannot start" in line] == [
        "cannot start: the store went away"
    ]


# Words


@pytest.mark.parametrize("words", [("--check",), ("serve", "--check")])
def test_settings_are_checked_without_serving(tmp_path: Path, words: tuple[str, ...]) -> None:
    good = run(tmp_path, *words, "--port", "8700", env={"ACCES_LOG": "true"})
    assert good.returncode == 0
    assert good.stdout == (
        "it would serve on 0.0.0.0:8700 with accounts 'none', lmdb:data and 0 catalogs\n"
    )
    assert good.stderr == (
        "warning: ACCES_LOG has no effect here: it is not known; is ACCESS_LOG meant?\n"
    )
    wrong = run(tmp_path, *words, env={"STORE_URL": "lmdb:/proc/nowhere"})
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("cannot start: ")
    assert wrong.stderr.count("\n") == 1


def test_the_version_is_the_installed_ones(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == "eureka-registry unknown\n"
    described = tmp_path / "eureka_registry-7.8.9.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: eureka-registry\nVersion: 7.8.9\n"
    )
    told = run(tmp_path, "--version", env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert told.stdout == "eureka-registry 7.8.9\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sevre"], "eureka-registry: neither a command nor a flag: sevre; there are serve, "),
        (["--chek"], "eureka-registry: neither a command nor a flag: --chek; there are "),
        (["serve", "--prot", "1"], "eureka-registry serve: no flag --prot; is --port meant?"),
        (["serve", "--po=1"], "eureka-registry serve: no flag --po"),
        (["serve", "--a\nb\x1b[31m"], "eureka-registry serve: no flag --a\\nb\\x1b[31m"),
        (["serve", "1"], "eureka-registry serve: every value stands behind its flag"),
        (["serve", "--port"], "eureka-registry serve: argument --port: expected one argument"),
        (["serve", "--port", "x"], "eureka-registry serve: --port='x': expected a whole number"),
        (["--check", "--port", "x"], "eureka-registry serve: --port='x': expected a whole"),
        (["serve", "--access-log", "si"], "eureka-registry serve: --access-log='si': expected "),
        (["serve", "--catalogs-file", "[]"], "eureka-registry serve: --catalogs-file=…: expected"),
        (["serve", "--", "app"], "eureka-registry serve: no option of gunicorn's: app"),
        (["serve", "--", "--wrkers=1"], "eureka-registry serve: no option of gunicorn's: --wrker"),
        (["serve", "--", "--workers"], "eureka-registry serve: argument -w/--workers: expected"),
        (["sidecar", "--nothing=1"], "cannot start: "),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    ended = run(tmp_path, *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith(told)
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_a_secret_has_no_flag_and_is_not_repeated(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "--jwt-key=TOPSECRET")
    assert ended.returncode == 2
    assert ended.stderr == ("eureka-registry serve: no flag --jwt-key; is --jwt-key-file meant?\n")


def test_the_help_names_every_flag_variable_and_default(tmp_path: Path) -> None:
    told = run(tmp_path, "serve", "--help", env={"COLUMNS": "500"}).stdout
    for setting in SETTINGS:
        if setting.flag:
            default = f"default {setting.default}; " if setting.default else ""
            assert f"  {setting.flag} " in told
            assert f" {setting.help} ({default}{setting.variable})\n" in told
    assert "REGISTRY_JWT_KEY: in the environment alone" in told


def test_without_a_word_it_says_what_there_is(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.returncode == 2
    assert all(f"\n  {name} " in ended.stderr for name in commands())


# Flags and variables


def _samples(folder: Path) -> dict[str, str]:
    """By the form of a value: one that is no default."""
    file = folder / "file"
    file.write_text("[]")
    spring = folder / "application.yml"
    spring.write_text("")
    return {
        "N": "17",
        "MS": "1700",
        "SECONDS": "17",
        "BYTES": "17",
        "7d": "3d",
        "256MiB": "64MiB",
        "SHARE": "0.25",
        "TEXT": "::1",
        "URL": "http://one:8761/eureka",
        "CLASS": "gthread",
        "FILE": str(file),
        "PATH": str(folder),
        "NAME,…": "peer1,test",
        "FILE,…": str(spring),
        "NETWORK,…": "10.0.0.0/8",
        "memory:|lmdb:PATH|redis://…": "lmdb:elsewhere",
    }


def _comparable(environment: Environment) -> Environment:
    return replace(environment, catalogs=())


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.flag], ids=lambda s: s.flag)
def test_a_flag_and_its_variable_mean_the_same(tmp_path: Path, setting: Setting) -> None:
    samples = _samples(tmp_path)
    context = {}
    if setting.variable.startswith("TLS_"):
        context = dict.fromkeys(("TLS_CERT_FILE", "TLS_KEY_FILE"), samples["FILE"])
    elif setting.field.startswith("access.") and setting.variable != "REGISTRY_AUTH":
        context = {"REGISTRY_AUTH": setting.mode or "trusted"}
        if setting.mode == "jwt" and setting.variable != "REGISTRY_JWT_KEY_FILE":
            context["REGISTRY_JWT_KEY"] = "k" * 32
    elif setting.variable == "REGISTRY_MAX_TTL":
        context = {"REGISTRY_DEFAULT_TTL": "12"}
    if setting.variable == "EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE":
        urls = tmp_path / "urls"
        urls.write_text("http://user:password@one:8761/eureka\n")
        value = str(urls)
    elif setting.variable == "PEERS_MAX_LIST_BYTES":
        value = str(1 << 21)  # some thousand bytes are no list
    elif setting.form in samples:
        value = samples[setting.form]
    else:
        words = setting.form.split("|")
        value = words[1] if words[0] == setting.default else words[0]
    by_flag, only_check = parsed_flags([f"{setting.flag}={value}"])
    assert parsed_flags([setting.flag, value]) == (by_flag, only_check)
    assert (list(by_flag), only_check) == ([setting.variable], False)
    flag = load(with_flags(context, by_flag))
    variable = load({**context, setting.variable: value})
    assert _comparable(flag) == _comparable(variable)
    if setting.variable != "REGISTRY_CATALOGS":
        meant = operator.attrgetter(setting.field)
        assert meant(flag) != meant(load({}))


def test_a_switch_that_is_named_is_on() -> None:
    assert parsed_flags(["--access-log", "--check"]) == ({"ACCESS_LOG": "true"}, True)
    assert parsed_flags(["--disable-delta", "no"]) == ({"EUREKA_SERVER_DISABLE_DELTA": "no"}, False)


def test_catalogs_are_named_by_their_file(tmp_path: Path) -> None:
    file = tmp_path / "catalogs.yaml"
    file.write_text(f"[{{kind: file, name: here, folder: {tmp_path}}}]")
    flags, _ = parsed_flags(["--catalogs-file", str(file)])
    (catalog,) = load(with_flags({}, flags)).catalogs
    assert catalog.source == "file:here"


# Programs that ship with the server


def test_another_server_is_examined_by_it(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        only = ("--only", "registers")
        good = run(tmp_path, "conformance", server.base, *only)
        assert good.returncode == 0, good.stdout + good.stderr
        assert " 0 failed" in good.stdout
        port = str(server.port)
    gone = run(tmp_path, "conformance", f"http://127.0.0.1:{port}/eureka", *only)
    assert gone.returncode == 2
    directly = subprocess.run(
        [sys.executable, "-m", "conformance", f"http://127.0.0.1:{port}/eureka", *only],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (gone.returncode, gone.stdout) == (directly.returncode, directly.stdout)


def test_what_the_examination_needs_besides_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'rich': raise ModuleNotFoundError(name='rich')\n"
        "sys.meta_path.insert(0, Missing)\n"
        "from eureka_server.command import main\n"
        "sys.exit(main(['conformance', 'http://127.0.0.1:1/eureka']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "eureka-registry conformance: rich is missing;"
        " it comes with pip install 'eureka-registry[conformance]'\n"
    )


def _imported(*arguments: str) -> set[str]:
    """What the command imports until it ends."""
    code = (
        "import json, sys\n"
        "from eureka_server.command import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    told: list[Any] = json.loads(ended.stdout.splitlines()[-1])
    return set(told)


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["sidecar", "--help"], ["peers", "--user=a"]]
)
def test_what_does_not_serve_is_light(words: list[str]) -> None:
    imported = _imported(*words)
    heavy = {"flask", "gunicorn", "registry", "eureka_compat", "catalogs", "jwt", "lmdb"}
    assert imported & heavy == set()
    own = {name for name in imported if name.startswith("eureka_server.")}
    asking = {name for name in own if name.startswith("eureka_server.operator")}
    assert own - asking == {"eureka_server.command"}
    assert (asking == set()) == (words[0] == "sidecar")
    if words[0] == "sidecar":
        assert "native_api.sidecar.settings" in imported
        assert not [name for name in imported if name.startswith("native_api.api")]
