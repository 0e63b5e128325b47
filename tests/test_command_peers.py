"""``eureka-registry peers``, against answers of every kind and against two servers that run."""

from __future__ import annotations

import base64
import copy
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eureka_server.command import main
from eureka_server.operator import commands
from tests.servers import HANG_SECS, ROOT, RegistryServer, send, wait_until
from tests.site import Site

NOW = "Thu, 26 Nov 2026 12:00:40 GMT"
NOW_MS = 1795694440000
COMPARISON = {
    "at_ms": NOW_MS - 12_000,
    "ours": 3,
    "theirs": 3,
    "settling": 0,
    "missing": 0,
    "extra": 0,
    "differs": 0,
    "examples": [],
}
UP = {
    "url": "http://two:8761/eureka/",
    "state": "up",
    "last_exchange_ms": NOW_MS - 2_000,
    "pending": 0,
    "lag_ms": 0,
    "problem": "",
    "comparison": COMPARISON,
}
SAFE = {
    "mode": "replicate",
    "at_ms": NOW_MS - 1_000,
    "peers": [UP],
    "verdict": "Safe to switch: 3 instances, the same here and at each of 1 peers.",
}


def peers(words: list[str], environ: dict[str, str]) -> int:
    return commands.run("peers", words, environ)


class PeersSite(Site):
    """A server that says how its peers are."""

    def tells(self, change: Callable[[dict[str, Any]], Any]) -> None:
        report = copy.deepcopy(SAFE)
        change(report)
        self.body = json.dumps(report).encode()


@pytest.fixture
def site() -> Iterator[PeersSite]:
    started = PeersSite(json.dumps(SAFE).encode(), NOW)
    yield started
    started.close()


def test_each_peer_has_a_line_and_the_verdict_is_the_last(
    site: PeersSite, capsys: pytest.CaptureFixture[str]
) -> None:
    down = UP | {
        "url": "http://three:8761/eureka/",
        "state": "down",
        "last_exchange_ms": None,
        "pending": 7,
        "lag_ms": 1500,
        "problem": "Connection\nrefused",
    }
    site.tells(lambda report: report.update(peers=[UP, down], verdict="Not known: three."))
    assert peers(["--url", site.url], {}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "PEER                       STATE  LAST EXCHANGE  PENDING  LAG      PROBLEM",
        "http://two:8761/eureka/    up     2 s ago        0        0 ms     none",
        "http://three:8761/eureka/  down   never          7        1500 ms  Connection\\nrefused",
        "Not known: three.",
    ]


def test_what_differs_is_told_with_its_fields(
    site: PeersSite, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [
        {"app": "SHOP", "id": "shop:1", "kind": "missing", "fields": {}},
        {
            "app": "SHOP",
            "id": "shop:2",
            "kind": "differs",
            "fields": {"status": ["UP", "DOWN"], "asgName": [None, "a"], "port": [{"$": 1}, 2]},
        },
    ]

    def differ(report: dict[str, Any]) -> None:
        comparison = report["peers"][0]["comparison"]
        comparison.update(missing=3, differs=1, settling=2, theirs=0, examples=examples)
        report["verdict"] = "Not yet."

    site.tells(differ)
    assert peers(["diff", "--url", site.url], {}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "http://two:8761/eureka/: 3 instances here, 0 there; 3 missing, 0 extra, 1 differs,"
        " 2 settling (compared 12 s ago)",
        "  missing  SHOP/shop:1",
        "  differs  SHOP/shop:2",
        '    status: here "UP", there "DOWN"',
        '    asgName: here nothing, there "a"',
        '    port: here {"$": 1}, there 2',
        "  and 2 more",
        "Not yet.",
    ]
    assert peers(["--url", site.url], {}) == 0  # they differ, and all are up


@pytest.mark.parametrize(
    ("change", "states", "diff"),
    [
        (lambda report: None, 0, 0),
        (lambda report: report.update(peers=[]), 1, 1),
        (lambda report: report["peers"][0].update(state="starting"), 1, 1),
        (lambda report: report["peers"][0].update(state="down"), 1, 1),
        (lambda report: report["peers"][0].update(comparison=None), 0, 1),
        (lambda report: report["peers"][0]["comparison"].update(extra=1), 0, 1),
        (lambda report: report["peers"][0]["comparison"].update(settling=1), 0, 0),
        (lambda report: report.update(at_ms=NOW_MS - 60_000), 1, 1),
    ],
    ids=["safe", "alone", "starting", "down", "not compared", "extra", "settling", "old"],
)
def test_the_exit_code_is_the_verdict(
    site: PeersSite, change: Callable[[dict[str, Any]], Any], states: int, diff: int
) -> None:
    site.tells(change)
    assert (peers(["--url", site.url], {}), peers(["diff", "--url", site.url], {})) == (
        states,
        diff,
    )


def test_a_report_that_nobody_writes_any_more_is_no_verdict(
    site: PeersSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.tells(lambda report: report.update(at_ms=NOW_MS - 60_000))
    assert peers(["--url", site.url], {}) == 1
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "Not known: the server looked at its peers 60 s ago."


def test_programs_read_json(site: PeersSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers(["-o", "json", "--url", site.url], {}) == 0
    assert json.loads(capsys.readouterr().out) == SAFE
    assert peers(["diff", "-o", "json", "--url", site.url], {}) == 0
    assert json.loads(capsys.readouterr().out) == {
        "peers": [{"url": UP["url"], "state": "up", "comparison": COMPARISON}],
        "verdict": SAFE["verdict"],
    }


def test_credentials_come_from_the_environment(site: PeersSite) -> None:
    environ = {
        "EUREKA_REGISTRY_URL": site.url + "/registry/",
        "EUREKA_REGISTRY_PASSWORD": "s3cret:ä",
        "EUREKA_REGISTRY_TOKEN": "a.b.c",
    }
    assert peers([], environ) == 0
    assert peers(["--user", "ann"], environ) == 0
    assert peers([], {"EUREKA_REGISTRY_URL": site.url}) == 0
    basic = "Basic " + base64.b64encode("ann:s3cret:ä".encode()).decode()
    assert [(each.path, each.authorization) for each in site.asked] == [
        ("/registry/api/v1/peers", "Bearer a.b.c"),
        ("/registry/api/v1/peers", basic),
        ("/api/v1/peers", None),
    ]


@pytest.mark.parametrize(
    ("words", "environ", "told"),
    [
        (["difff"], {}, "argument what: invalid choice: 'difff'"),
        (["--tokens=x"], {}, "unrecognized arguments: --tokens=x"),
        (["-o", "xml"], {}, "argument -o/--output: invalid choice: 'xml'"),
        (["--url", "two:8761"], {}, "--url: expected a URL such as http://127.0.0.1:8761"),
        (["--url", "http://h:x"], {}, "--url: expected a URL such as http://127.0.0.1:8761"),
        (["--user", "ann"], {}, "--user: expected the password in EUREKA_REGISTRY_PASSWORD"),
        ([], {"EUREKA_REGISTRY_TOKEN": "a\nb"}, "EUREKA_REGISTRY_TOKEN: expected printable ASCII"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    words: list[str], environ: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = peers(words, environ)
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith(f"eureka-registry peers: {told}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "body", [b'{"peers": [], "verdict": 1}', b'{"peers": [{"state": "up"}], "verdict": ""}']
)
def test_an_answer_that_tells_nothing_of_peers(
    site: PeersSite, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no answer of a registry is the same for all commands (``test_operator.py``)."""
    site.body = body
    assert peers(["--url", site.url], {}) == 3
    told = f"eureka-registry peers: {site.url} answers 200, and is no registry"
    assert capsys.readouterr().err.startswith(told)


def test_without_a_date_this_machines_clock_counts(
    site: PeersSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.date = "yesterday"
    site.tells(lambda report: report["peers"][0].update(last_exchange_ms=2**52))
    peers(["--url", site.url], {})
    assert " up     0 s ago " in capsys.readouterr().out


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert main(["peers", "--url", url]) == 3
    told = f"eureka-registry peers: {url} does not answer: Connection refused\n"
    assert capsys.readouterr().err == told


def test_two_servers_that_run_are_asked_by_the_command(tmp_path: Path) -> None:
    servers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        servers.append(RegistryServer(tmp_path / name, workers=1))
    urls = ",".join(f"{server.base}/" for server in servers)
    for server in servers:
        server.environment["EUREKA_CLIENT_SERVICEURL_DEFAULTZONE"] = urls
        server.environment["PEERS_COMPARE_INTERVAL_MS"] = "1000"
        # The other is not to be down because it is slow.
        server.environment["EUREKA_SERVER_PEER_NODE_READ_TIMEOUT_MS"] = str(HANG_SECS * 1000)

    def asked(*words: str, at: int = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "eureka_server", "peers", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "EUREKA_REGISTRY_URL": servers[at].root},
            capture_output=True,
            text=True,
        )

    def verdict() -> str:
        told: str = send(servers[0].port, "GET", "/api/v1/peers").json()["verdict"]
        return told

    with ExitStack() as running:
        for server in servers:
            server.launch()
            running.callback(server.kill9)
        for server in servers:
            server.await_ready()
        wait_until(lambda: verdict().startswith("Safe to switch"), "the verdict")
        states, diff = asked(), asked("diff")
        assert (states.returncode, diff.returncode) == (0, 0), states.stderr + diff.stderr
        assert f"http://127.0.0.1:{servers[1].port}/eureka/  up" in states.stdout
        assert "0 missing, 0 extra, 0 differs" in diff.stdout
        assert diff.stdout.splitlines()[-1].startswith("Safe to switch: ")
        servers[1].kill9()
        wait_until(lambda: verdict().startswith("Not known"), "the verdict")
        assert (asked().returncode, asked("diff").returncode) == (1, 1)
        assert asked(at=1).returncode == 3
