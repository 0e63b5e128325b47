"""``python -m conformance.compare``: the suite on a genuine server and on this project's.

Builds and starts both on free ports of the loopback, each with the other as the second server that
clients move to and back, then plays random sequences to the two, and says what differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conformance import report
from conformance.__main__ import reachable, run_suite, wide_console
from conformance.case import Target, chosen
from conformance.cases import ALL
from conformance.differential import DisagreementError, compare
from conformance.peer import PeerEndpoint
from conformance.programs import HOXTON_OPTIONS, Kind, built_jar, free_port, named
from conformance.report import Run
from conformance.run import Outcome, Result

HERE = Path(__file__).parent
GENERATIONS = {"2025.0": "pom.xml", "hoxton": "pom-hoxton.xml"}
GENUINE, OURS = "genuine", "this server"
# What both servers are started with, in the genuine server's own names: quick sweeps for the cases
# that let leases end; none, and a short window of deltas, for random sequences by the thousand.
PROFILES: dict[str, Mapping[str, str]] = {
    "cases": {"enable-self-preservation": "false", "eviction-interval-timer-in-ms": "500"},
    "self-preservation": {
        "enable-self-preservation": "true",
        "eviction-interval-timer-in-ms": "500",
    },
    "peers": {
        "enable-self-preservation": "false",
        "eviction-interval-timer-in-ms": "500",
        # Spring's 200 ms are no time for a peer on a machine that does all of this at once.
        "peer-node-connect-timeout-ms": "10000",
        "peer-node-read-timeout-ms": "10000",
    },
    "sequences": {
        "enable-self-preservation": "false",
        "eviction-interval-timer-in-ms": "3600000",
        "retention-time-in-m-s-in-delta-queue": "5000",
        "delta-retention-timer-interval-in-ms": "1000",
    },
}


class Started:
    """A server process on a free port, stopped at the end of its ``with``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/eureka"
        self._command = command
        self._environment = {**os.environ, **environment}

    def __enter__(self) -> Started:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=HERE.parent,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + 90
        while problem := reachable(Target(self.url)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                raise RuntimeError(f"{problem}: {self._log.read()[-2000:].decode()}")
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def genuine(
    generation: str, profile: Mapping[str, str], port: int | None = None, peer: str = ""
) -> Started:
    """A genuine Spring Cloud Eureka server, built where it has not been; ``peer`` is a URL."""
    port = port or free_port()
    jar = built_jar(HERE / "oracle", GENERATIONS[generation])
    options = HOXTON_OPTIONS if generation == "hoxton" else ()
    settings = [f"--eureka.server.{name}={value}" for name, value in profile.items()]
    if peer:
        settings.append(f"--eureka.client.service-url.defaultZone={peer}")
    command = ["java", "-Xmx400m", *options, "-jar", str(jar), f"--server.port={port}", *settings]
    return Started(command, {}, port)


def ours(profile: Mapping[str, str], folder: Path, peer: str = "") -> Started:
    """The server of this project with two worker processes and an empty store."""
    port = free_port()
    named_as_variables = {
        "EUREKA_SERVER_" + name.replace("-", "").upper(): value for name, value in profile.items()
    }
    environment = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": "2",
        "STORE_URL": f"lmdb:{folder / f'store-{port}'}",
        **named_as_variables,
    }
    if peer:
        # The genuine server's settings are not to list itself anywhere either.
        environment["EUREKA_CLIENT_SERVICEURL_DEFAULTZONE"] = peer
        environment["EUREKA_CLIENT_REGISTERWITHEUREKA"] = "false"
    return Started([sys.executable, "-m", "gunicorn", "wsgi:app"], environment, port)


def differences(runs: Mapping[str, Run]) -> Table:
    """The cases whose outcome is not the same on both."""
    table = Table(title="where the two differ", title_justify="left", show_lines=True)
    for name in ("case", *runs, "what was expected"):
        table.add_column(name)
    by_case: dict[tuple[str, str], dict[str, Result]] = {}
    for name, run in runs.items():
        for result in run.results:
            by_case.setdefault((result.case.name, result.case.column), {})[name] = result
    for (case, column), results in by_case.items():
        if len({result.outcome for result in results.values()}) > 1:
            told = next(r.case.beyond or r.message for r in results.values() if r.message)
            table.add_row(
                escape(f"{case} ({column})"),
                *(results[name].outcome.value if name in results else "" for name in runs),
                escape(told[:200]),
            )
    return table


def last_words(runs: Mapping[str, Run]) -> list[str]:
    """What failed, and what failed at first, where a log that is cut at its head still holds it."""
    words = []
    for name, run in runs.items():
        for result in run.having(Outcome.FAILED):
            words.append(f"failed, {name}: {_place(result)}: {result.message}")
        for result in run.unsteady:
            words.append(f"passed at the second try, {name}: {_place(result)}: {result.unsteady}")
    return words


def _place(result: Result) -> str:
    return f"{result.case.operation}: {result.case.name} ({result.case.column})"


def run_both(
    generation: str, kinds: Sequence[Kind], folder: Path, console: Console
) -> dict[str, Run]:
    """The suite on both, clients and self-preservation included."""
    runs: dict[str, Run] = {}
    profile = PROFILES["cases"]
    with genuine(generation, profile) as theirs, ours(profile, folder) as own:
        for name, server, other in ((GENUINE, theirs, own), (OURS, own, theirs)):
            cases = chosen(ALL, self_preservation=False)
            runs[name] = run_suite(
                Target(server.url), cases, kinds, other.url, console, second_try=True
            )
    profile = PROFILES["self-preservation"]
    with genuine(generation, profile) as theirs, ours(profile, folder) as own:
        cases = chosen(ALL, self_preservation=True)
        for name, server in ((GENUINE, theirs), (OURS, own)):
            target = Target(server.url, self_preservation=True)
            more = run_suite(target, cases, (), None, console, second_try=True)
            runs[name] = joined(runs[name], more)
    for name, more in as_a_peer(generation, folder, console).items():
        runs[name] = joined(runs[name], more)
    return runs


def as_a_peer(generation: str, folder: Path, console: Console) -> dict[str, Run]:
    """What each of the two tells the suite, which it has among its peers."""
    profile = PROFILES["peers"]
    cases = [case for case in chosen(ALL, self_preservation=False, peer=True) if case.peer]
    runs: dict[str, Run] = {}
    for name in (GENUINE, OURS):
        with closing(PeerEndpoint()) as peer:
            started = (
                genuine(generation, profile, peer=peer.url)
                if name == GENUINE
                else ours(profile, folder, peer.url)
            )
            with started as server:
                target = Target(server.url, peer=peer)
                runs[name] = run_suite(target, cases, (), None, console, second_try=True)
    return runs


def joined(first: Run, more: Run) -> Run:
    return Run(first.url, [*first.results, *more.results], first.seconds + more.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conformance.compare", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--genuine", choices=tuple(GENERATIONS), default="2025.0")
    parser.add_argument("--clients", default="all", metavar="NAMES")
    parser.add_argument("--examples", type=int, default=300, help="random sequences to play")
    parser.add_argument("--report", type=Path, metavar="DIR")
    parser.add_argument("--coverage", type=Path, metavar="FILE", help="write COVERAGE.md there")
    parser.add_argument(
        "--serve",
        type=int,
        metavar="PORT",
        help="only start the genuine server there, until interrupted",
    )
    options = parser.parse_args()
    console = wide_console()
    if options.serve:
        with genuine(options.genuine, PROFILES["cases"], options.serve) as server:
            console.print(f"a genuine server: {server.url}", highlight=False)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                return 0
    began = time.monotonic()
    kinds = named(options.clients)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        runs = run_both(options.genuine, kinds, folder, console)
        for run in runs.values():
            for table in report.summary(run):
                console.print(table)
        console.print(differences(runs))
        profile = PROFILES["sequences"]
        with genuine(options.genuine, profile) as theirs, ours(profile, folder) as own:
            try:
                duel = compare(theirs.url, own.url, options.examples)
                note = (
                    f"{duel.sequences} random sequences, {duel.exchanges} requests to each server: "
                    "no disagreement"
                )
            except DisagreementError as found:
                note = f"a disagreement: {found}"
    agreed = note.endswith("no disagreement")
    notes = [f"{GENUINE}: Spring Cloud Netflix Eureka Server {options.genuine}", note]
    for name, run in runs.items():
        failed = len(run.having(Outcome.FAILED))
        console.print(
            f"{name}: {len(run.results)} cases in {run.seconds:.0f} s, {failed} failed, "
            f"{len(run.having(Outcome.BEYOND))} not offered",
            highlight=False,
        )
        if options.report:
            report.write(run, options.report / name.replace(" ", "-"))
    console.print(note, highlight=False, markup=False)
    console.print(
        f"{len(kinds)} clients on each; {time.monotonic() - began:.0f} s in all", highlight=False
    )
    for line in last_words(runs):
        console.print(line, highlight=False, markup=False)
    if options.coverage:
        options.coverage.write_text(report.coverage(runs, notes), encoding="utf-8")
    return 0 if agreed and all(run.conforms for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
