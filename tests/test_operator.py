"""The commands that ask a server that runs: against a genuine one, and against answers of no use.

What the peers' command says is in ``test_command_peers.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from eureka_server.command import commands, main
from eureka_server.operator import commands as operators
from eureka_server.operator import completion
from eureka_server.operator.client import Server
from eureka_server.operator.commands import COMMANDS, arguments_of, parser_of
from eureka_server.operator.completion import candidates
from eureka_server.operator.tables import ago, duration, epoch_ms, table
from tests.servers import HANG_SECS, JSON, ROOT, RegistryServer, wait_until
from tests.site import Site

# They go on between two answers.
_AGES = re.compile(r"[\d.]+ (s|min)\b")


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def json(self) -> Any:
        return json.loads(self.out)


class Operator:
    """Somebody at a terminal, whose environment names the server."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys = capsys
        self.environ: dict[str, str] = {"EUREKA_REGISTRY_URL": url}

    def types(self, *words: str) -> Said:
        self._capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            # An operator gives a server up after some seconds, and this one may be that slow.
            patch.setitem(Server.__init__.__kwdefaults__, "patience_secs", HANG_SECS)
            try:
                code = operators.run(words[0], words[1:], self.environ)
            except SystemExit as end:
                code = int(end.code or 0)
        return Said(code, *self._capsys.readouterr())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("server"), workers=1) as running:
        yield running


@pytest.fixture
def operator(server: RegistryServer, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    """Two services: ``shop`` of a Eureka client's, and ``reviews`` of a native one's."""
    for number in (1, 2):
        server.register("SHOP", f"shop:{number}")
    body = {"service_name": "reviews", "endpoint": {"type": "http", "value": "10.0.0.7:9080"}}
    body |= {"ttl": 600}
    assert server.send("POST", "/api/v1/instances", json.dumps(body), JSON).status == 201
    at_terminal = Operator(capsys, server.root)
    yield at_terminal
    for service in ("shop", "reviews"):
        server.send("DELETE", f"/api/v1/services/{service}")


# Looking


def test_the_services_are_counted(operator: Operator) -> None:
    said = operator.types("apps")
    assert (said.code, said.lines) == (
        0,
        [
            "SERVICE  INSTANCES  UP  OTHERS  ZONES  SOURCES",
            "reviews  1          1   -       -      native",
            "shop     2          2   -       a      eureka",
        ],
    )
    operator.types("down", "shop:1")
    assert "shop     2          1   OUT_OF_SERVICE=1" in operator.types("apps", "app:shop").out
    assert operator.types("apps", "-o", "name").lines == ["reviews", "shop"]


def test_instances_are_listed_and_sought(operator: Operator) -> None:
    said = operator.types("instances", "--service", "shop")
    assert said.code == 0
    assert [line.split()[:6] for line in said.lines] == [
        ["ID", "SERVICE", "STATUS", "ENDPOINT", "ZONE", "SOURCE"],
        *([f"shop:{number}", "shop", "UP", "host.local:8080", "a", "eureka"] for number in (1, 2)),
    ]
    assert operator.types("instances", "zone=a", "id:2", "-o", "name").lines == ["shop:2"]
    assert operator.types("instances", "id:nobody", "-o", "name").lines == []


def test_programs_read_json_or_yaml(operator: Operator) -> None:
    told = operator.types("instances", "id:shop:1", "-o", "json").json()["instances"]
    assert [each["id"] for each in told] == ["shop:1"]
    again = yaml.safe_load(operator.types("instances", "id:shop:1", "-o", "yaml").out)["instances"]
    same = [each.keys() - {"last_heartbeat", "lease"} for each in told]  # it renews meanwhile
    assert [each.keys() - {"last_heartbeat", "lease"} for each in again] == same
    assert [each["endpoint"] for each in again] == [each["endpoint"] for each in told]


def test_an_instance_is_shown_with_all_that_is_known_of_it(operator: Operator) -> None:
    said = operator.types("show", "shop:1")
    shown = dict(line.split("  ", 1) for line in said.lines)
    told = {name: value.strip() for name, value in shown.items()}
    assert said.code == 0
    assert (told["id"], told["endpoint"], told["override"]) == (
        "shop:1",
        "http host.local:8080",
        "-",
    )
    assert told["metadata"] == "zone=a"
    assert " ago)" in told["last heartbeat"]
    assert operator.types("show", "shop:1", "-o", "json").json()["id"] == "shop:1"


def test_an_instance_that_is_not_listed_is_one_line_and_the_code_1(operator: Operator) -> None:
    said = operator.types("show", "nobody")
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "eureka-registry show: no instance 'nobody' is registered; register it again\n"
    )


def watching_to(out: Path, count: int, url: str) -> subprocess.Popen[bytes]:
    """The command runs for itself, as one terminal does while another changes something."""
    with out.open("wb") as file:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "eureka_server",
                *("watch", "--count", str(count), "-o", "json"),
            ],
            cwd=ROOT,
            env={**os.environ, "EUREKA_REGISTRY_URL": url},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def test_a_server_that_is_restarted_is_followed_on(tmp_path: Path) -> None:
    with RegistryServer(tmp_path, workers=1) as server:
        server.register("SHOP", "shop:1")
        out = tmp_path / "out"
        watching = watching_to(out, 2, server.root)
        wait_until(lambda: b"listed" in out.read_bytes(), "the snapshot")
        server.register("SHOP", "shop:2")
        wait_until(lambda: b"shop:2" in out.read_bytes(), "the first change")
        server.stop()
        wait_until(lambda: b"it is asked again" in out.read_bytes(), "the loss of the server")
        server.start()
        server.register("SHOP", "shop:3")
        assert watching.wait() == 0
    told = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    assert [each["instance"]["id"] for each in told] == ["shop:1", "shop:2", "shop:3"]


def test_changes_are_followed_as_they_come(
    operator: Operator, server: RegistryServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    watching = watching_to(out, 2, server.root)
    wait_until(lambda: out.read_bytes().count(b"listed") == 3, "the snapshot")
    operator.types("down", "shop:1")
    operator.types("rm", "shop:2")
    assert watching.wait() == 0
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["event"], each["instance"]["id"]) for each in told[3:]] == [
        ("modified", "shop:1"),
        ("deleted", "shop:2"),
    ]
    assert told[3]["revision"] < told[4]["revision"]


def test_who_reads_is_told(operator: Operator, server: RegistryServer) -> None:
    fetching = {"User-Agent": "cart/1.0", "Accept": "application/json"}
    assert server.send("GET", "/eureka/apps", None, fetching).status == 200
    wait_until(lambda: "cart/1.0" in operator.types("readers").out, "the reader to be noted")
    said = operator.types("readers")
    assert said.code == 0
    (line,) = [line for line in said.lines if line.startswith("cart/1.0")]
    assert line.split()[1:3] == ["127.0.0.1", "all"]
    operator.types("down", "shop:1")
    wait_until(lambda: "cart/1.0" in operator.types("readers", "--behind").out, "it to be behind")


def test_what_is_wrong_with_clients_is_told_with_the_setting_to_change(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {
        "kind": "clock-off",
        "sentence": "The clocks of 2 clients are off.",
        "count": 2,
        "settings": [{"client": "the machine", "name": "NTP"}],
        "examples": [{"id": "shop:1", "off_ms": 7000}],
    }
    at_site = Operator(capsys, f"http://{site.host}")
    site.body = json.dumps({"findings": [finding]}).encode()
    said = at_site.types("findings")
    assert (said.code, said.lines) == (
        1,
        [
            "clock-off (2): The clocks of 2 clients are off.",
            "    change NTP (the machine)",
            "    such as id=shop:1 off_ms=7000",
        ],
    )
    site.body = b'{"findings": []}'
    assert at_site.types("findings") == (0, "nothing is wrong with the clients\n", "")


def test_a_servers_findings_can_be_read(operator: Operator) -> None:
    said = operator.types("findings")
    found = operator.types("findings", "-o", "json").json()["findings"]
    assert said.code == (1 if found else 0)
    assert all(f"{each['kind']} (" in said.out for each in found)


def test_catalogs_are_told_where_there_is_none(operator: Operator) -> None:
    said = operator.types("catalogs")
    assert (said.code, said.lines) == (0, ["CATALOG  STATE  ENTRIES  LAST SUCCESS  PROBLEM"])


def test_the_server_is_told_in_figures(operator: Operator) -> None:
    said = operator.types("status")
    told = dict(line.split("  ", 1) for line in said.lines if not line.startswith("warning"))
    told = {name: value.strip() for name, value in told.items()}
    assert (told["applications"], told["instances"]) == ("2", "3 (3 UP)")
    assert told["self-preservation"] != "-"
    document = operator.types("status", "-o", "json").json()
    assert said.code == (1 if document["warnings"] else 0)
    assert (
        said.lines[-len(document["warnings"]) :]
        == [f"warning: {text}" for text in document["warnings"]]
        or not document["warnings"]
    )


def test_why_is_answered_in_sentences(operator: Operator) -> None:
    operator.types("down", "shop:1")
    said = operator.types("why", "shop:1")
    assert (said.code, len(said.lines)) == (0, 1)
    assert "OUT_OF_SERVICE" in said.out
    document = operator.types("why", "shop:1", "-o", "json").json()
    assert _AGES.sub("…", document["why"]) == _AGES.sub("…", said.lines[0])


def test_what_happened_is_told_with_the_newest_last(operator: Operator) -> None:
    operator.types("down", "shop:1")
    operator.types("up", "shop:1")
    said = operator.types("history", "shop:1")
    kinds = [line.split()[1] for line in said.lines]
    assert (said.code, kinds[0], kinds[-3:]) == (
        0,
        "WHAT",
        ["registered", "override", "override-removed"],
    )
    assert "127.0.0.1" in said.lines[-1]
    wanted = ("history", "--service", "shop", "--kind", "override", "--since", "1h")
    assert [each["kind"] for each in operator.types(*wanted, "-o", "json").json()["entries"]] == [
        "override"
    ] * (len(operator.types(*wanted).lines) - 1)
    assert len(operator.types("history", "--limit", "1", "-o", "name").lines) == 1


def test_two_moments_are_compared(operator: Operator, server: RegistryServer) -> None:
    def revision() -> int:
        return int(server.send("GET", "/api/v1/services?limit=1").json()["revision"])

    before = revision()
    operator.types("down", "shop:1")
    operator.types("rm", "shop:2")
    said = operator.types("diff", str(before))
    assert (said.code, said.lines) == (
        1,
        [
            "- shop  shop:2  UP",
            "~ shop  shop:1",
            '    status: "UP" -> "OUT_OF_SERVICE"',
        ],
    )
    assert operator.types("diff", str(revision())) == (0, "nothing differs\n", "")


# Changing


def test_out_of_service_and_back(operator: Operator) -> None:
    assert operator.types("down", "shop:1", "shop:2") == (
        0,
        "shop:1  OUT_OF_SERVICE\nshop:2  OUT_OF_SERVICE\n",
        "",
    )
    assert "OUT_OF_SERVICE (set)" in operator.types("instances", "id:shop:1").out
    assert operator.types("up", "shop:1").lines == ["shop:1  UP"]
    assert operator.types("up", "--ask", "shop:2").lines == ["shop:2  UNKNOWN"]
    assert operator.types("down", "--status", "DOWN", "shop:1").lines == ["shop:1  DOWN"]


def test_all_of_a_service(operator: Operator) -> None:
    said = operator.types("down", "--service", "shop")
    assert (said.code, sorted(said.lines)) == (0, ["shop:1  done", "shop:2  done"])
    assert sorted(operator.types("rm", "--service", "shop", "-o", "name").lines) == [
        "shop:1",
        "shop:2",
    ]
    said = operator.types("rm", "--service", "shop")
    assert said.code == 1
    assert said.err.startswith("eureka-registry rm: no instance of 'shop' is registered")


def test_what_is_refused_is_told_and_the_others_are_done(operator: Operator) -> None:
    said = operator.types("rm", "nobody", "shop:1", "-o", "json")
    assert said.code == 1
    assert said.json() == {
        "done": [{"id": "shop:1", "status": "removed"}],
        "refused": [
            {"id": "nobody", "detail": "no instance 'nobody' is registered; register it again"}
        ],
    }


def test_a_loss_is_accepted(operator: Operator) -> None:
    said = operator.types("accept-loss", "shop")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("The loss is accepted, but no lease of shop has ended")
    assert operator.types("accept-loss", "--all", "-o", "json").json()["will_go"] == 0
    assert operator.types("accept-loss", "nobody").code == 1


# Words


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_tells_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        operators.run(name, ["--help"], {})
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[name].summary[1:] in told
    for argument in arguments_of(COMMANDS[name]):
        assert " ".join(argument.help.split()) in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["down"], "expected ids, or --service for all of a service"),
        (["show"], "the following arguments are required: ID"),
        (["down", "--status", "BUSY", "x"], "argument --status: invalid choice: 'BUSY'"),
        (["apps", "--watch", "often"], "argument --watch: expected a length of time such as 90s"),
        (["history", "--since", "soon"], "argument --since: expected an instant such as 2026"),
        (["diff", "yesterday"], "argument FROM: expected an instant such as 2026"),
        (["accept-loss"], "expected a service, or --all"),
        (["accept-loss", "shop", "--all"], "expected a service, or --all"),
        (["watch", "--count", "0"], "argument --count: expected a whole number above 0"),
        (["apps", "--token", "a\nb"], "--token: expected printable ASCII"),
        (["apps", "--namespace", "ä"], "--namespace: expected printable ASCII"),
        (["apps", "--url", "ftp://x"], "--url: expected a URL such as"),
        (["apps", "--user", "ann"], "--user: expected the password in EUREKA_REGISTRY_PASSWORD"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    operator: Operator, words: list[str], told: str
) -> None:
    said = operator.types(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"eureka-registry {words[0]}: {told}")
    assert said.err.count("\n") == 1


# Who asks


@pytest.fixture
def site() -> Iterator[Site]:
    started = Site(b'{"services": [], "next": null}')
    yield started
    started.close()


def test_who_asks_is_told_by_the_nearest_word(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command line, the URL, the environment, then the file of all programs."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login nora password n\n")
    operator = Operator(capsys, f"http://{site.host}")
    operator.environ |= {"HOME": str(tmp_path)}
    operator.types("apps")
    operator.environ |= {"EUREKA_REGISTRY_TOKEN": "env"}
    operator.types("apps")
    operator.types("apps", "--url", f"http://ur%6c:p%40@{site.host}")
    operator.environ |= {"EUREKA_REGISTRY_PASSWORD": "p"}
    operator.types("apps", "--user", "ann", "--namespace", "other")
    operator.types("apps", "--user", "ann", "--token", "word")
    assert [(each.authorization, each.namespace) for each in site.asked] == [
        ("Basic bm9yYTpu", None),  # nora:n
        ("Bearer env", None),
        ("Basic dXJsOnBA", None),  # url:p@
        ("Basic YW5uOnA=", "other"),  # ann:p
        ("Bearer word", None),
    ]


@pytest.mark.parametrize(
    ("status", "body", "code", "told"),
    [
        (401, b"", 2, "answers 401: it asks for other credentials"),
        (403, b'{"detail": "only an administrator"}', 2, "answers 403: only an administrator ("),
        (302, b"", 3, "answers 302, and is no registry of ours"),
        (404, b"", 3, "answers 404, and is no registry of ours"),
        (404, b'{"Error": "Resource not found", "detail": ""}', 3, "is of a version without this"),
        (200, b"<html>", 3, "answers 200, and is no registry of ours"),
        (200, b"[]", 3, "answers what this version cannot read"),
        (200, b'{"services": [1], "next": null}', 3, "answers what this version cannot read"),
    ],
)
def test_an_answer_of_no_use_is_one_line(
    site: Site,
    capsys: pytest.CaptureFixture[str],
    status: int,
    body: bytes,
    code: int,
    told: str,
) -> None:
    site.status, site.body = status, body
    said = Operator(capsys, f"http://a:secret@{site.host}").types("apps")
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"eureka-registry apps: http://{site.host} {told}")
    assert "secret" not in said.err


def test_what_a_server_says_cannot_colour_the_terminal(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.body = json.dumps(
        {
            "next": None,
            "services": [
                {
                    "service_name": "a\x1b[31m\nb",
                    "instances": 1,
                    "statuses": {},
                    "zones": [],
                    "sources": [],
                }
            ],
        }
    ).encode()
    said = Operator(capsys, f"http://{site.host}").types("apps")
    assert said.lines[1].startswith("a\\x1b[31m\\nb  1")


# Shells


def test_commands_flags_and_choices_are_completed() -> None:
    assert candidates(["ap"], {}) == ["apps"]
    assert candidates([""], {}) == [*commands_in_order(), "--version", "--check", "--help"]
    assert candidates(["down", "--st"], {}) == ["--status"]
    assert candidates(["down", "--status", "D"], {}) == ["DOWN"]
    assert candidates(["peers", "d"], {}) == ["diff"]
    assert candidates(["serve", "--port"], {}) == ["--port"]
    assert candidates(["completion", ""], {}) == ["bash", "zsh", "fish"]
    assert candidates(["sidecar", ""], {}) == []


def commands_in_order() -> list[str]:
    others = ["serve", "completion", "conformance", "sidecar"]
    assert set(commands()) == {*COMMANDS, *others}
    return [*COMMANDS, *others]


def test_ids_and_services_are_completed_by_the_server(
    operator: Operator, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beyond its patience nothing is completed, and the server may be that slow.
    monkeypatch.setattr(completion, "_PATIENCE_SECS", HANG_SECS)
    assert candidates(["rm", "shop:1", "sh"], operator.environ) == ["shop:1", "shop:2"]
    assert candidates(["down", "--service", "re"], operator.environ) == ["reviews"]
    assert candidates(["rm", "--url", server.root, "shop:2"], {}) == ["shop:2"]
    assert candidates(["rm", f"--url={server.root}", "shop:2"], {}) == ["shop:2"]
    assert candidates(["rm", "--url", "http://127.0.0.1:1", "sh"], {}) == []


def test_what_means_something_to_a_shell_is_not_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, an id such as ``a;reboot`` was put on an operator's command line, to be run."""
    hostile = [f"a{mark}b" for mark in " \n\t\x1b\x9b;&|<>()$`\\\"'*?[]{}!#^~é"]
    hostile += ["--url=http://other", "-h", "=ls", "~root", ""]
    page = {"instances": [{"id": each} for each in (*hostile, "host:shop-1.a:8080/x_y=z")]}
    monkeypatch.setattr(Server, "get", lambda *arguments, **query: page)
    assert candidates(["rm", ""], {}) == ["host:shop-1.a:8080/x_y=z"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shells_script_asks_this_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "eureka-registry completion words" in capsys.readouterr().out
    assert main(["completion", "csh"]) == 2


@pytest.mark.programs
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("eureka-registry down --st", ["--status"]),
        # To bash a colon ends a word: it is given what stands behind it.
        ("eureka-registry rm shop:", ["1", "2"]),
        ("eureka-registry peers ", ["diff"]),
    ],
)
def test_bash_completes(line: str, found: list[str], operator: Operator, tmp_path: Path) -> None:
    program = tmp_path / "eureka-registry"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m eureka_server "$@"\n')
    program.chmod(0o755)
    script = (
        f"source <(eureka-registry completion bash); COMP_LINE='{line}'; COMP_POINT={len(line)};"
        ' _eureka_registry; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"

    def told() -> list[str]:
        """What is completed; nothing where the server was asked and took too long."""
        answer = subprocess.run(
            ["bash", "--norc", "-c", script],
            env={"PATH": path, "PYTHONPATH": str(ROOT), **operator.environ},
            capture_output=True,
            text=True,
        )
        assert answer.stdout.split() in ([], found), answer.stderr
        return answer.stdout.split()

    wait_until(lambda: told() == found, "what is completed")


# Tables


def test_columns_are_aligned_and_a_cell_is_one_line() -> None:
    rows: list[list[Any]] = [["a", None], ["long\nname", {"x": True}], ["", [1, "b"]]]
    assert table(("NAME", "VALUE"), rows) == [
        "NAME        VALUE",
        "a           -",
        "long\\nname  x=yes",
        "-           1,b",
    ]


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        (999, "0 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_lengths_of_time_have_their_two_largest_units(ms: int, told: str) -> None:
    assert duration(ms) == told


def test_instants_are_told_by_the_servers_clock() -> None:
    assert epoch_ms("2026-11-26T12:00:40.000Z") == 1795694440000
    assert ago(1795694440000, "2026-11-26T12:00:30Z") == "10 s ago"
    assert ago(1795694440000, 0) == "never"
    assert ago(1795694440000, "yesterday") == "?"


def test_the_parsers_take_what_the_table_says() -> None:
    options = parser_of("down", {"EUREKA_REGISTRY_URL": "http://there"}).parse_args(["a", "b"])
    assert (options.id, options.url, options.status) == (
        ["a", "b"],
        "http://there",
        "OUT_OF_SERVICE",
    )


def test_the_reference_names_each_command() -> None:
    text = (ROOT / "docs/reference/command.md").read_text()
    assert [name for name in commands() if f"| `eureka-registry {name}" not in text] == []
