"""``python -m conformance URL``: what a Eureka server does and does not do.

With ``--api native`` the same of a server that speaks the Amalgam8 registry's protocol, and with
``--peer-port`` what it tells its peers too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from conformance import report
from conformance.case import Case, FailedError, Session, Target, chosen
from conformance.cases import ALL, NATIVE, sending
from conformance.cases.native import API
from conformance.fleet import Fleet
from conformance.peer import PeerEndpoint
from conformance.programs import KINDS, Kind, named
from conformance.report import Run
from conformance.run import Outcome, Result, failing, run_cases, told_again

OPERATIONS_OF_A_CLIENT = 10


def real_timing(target: Target) -> Target:
    """As a genuine server comes: lists up to 30 s late, a sweep each minute."""
    return replace(target, patience=35.0, lease=40, sweep=70.0)


def run_suite(
    target: Target,
    cases: Sequence[Case],
    kinds: Sequence[Kind],
    second: str | None,
    progress: Progress,
    second_try: bool = False,
) -> Run:
    """Run the cases and then the clients, with a bar of its own in ``progress``.

    With a second try, a case that failed is run again when all others have ended, and a client that
    failed in anything goes through all of its operations again in a freshly started program: a
    machine short of time then looks like what it is, and not like the server. The results say so.
    """
    began = time.monotonic()
    console = progress.console
    total = len(cases) + OPERATIONS_OF_A_CLIENT * len(kinds)
    task = progress.add_task(target.url, total=total)

    def done(result: Result) -> None:
        progress.advance(task)
        if result.outcome is Outcome.FAILED:
            case = result.case
            console.print(
                escape(f"failed {target.url} {case.operation}: {case.name} ({case.column})\n")
                + escape(f"       {result.message}"),
                style="red",
                highlight=False,
            )

    def played(cases: Sequence[Case], kinds: Sequence[Kind]) -> list[Result]:
        results = run_cases(cases, target, done)
        if kinds:
            with tempfile.TemporaryDirectory() as folder:
                with Fleet(target, second, kinds, Path(folder)) as fleet:
                    results += fleet.run(done)
        return results

    harmless = [case for case in cases if not case.spoils]
    results = played(harmless, kinds)
    if second_try and (failed := failing(results)):
        once_more = {(result.case.name, result.case.column) for result in failed}
        again = [case for case in harmless if (case.name, case.column) in once_more]
        clients = {column for _, column in once_more}
        console.print(f"{target.url}: once more, what failed", style="yellow", highlight=False)
        more = played(again, [kind for kind in kinds if kind.name in clients])
        results = told_again(results, more)
    results += run_cases([case for case in cases if case.spoils], target, done)
    progress.remove_task(task)
    return Run(target.url, results, time.monotonic() - began)


def bars(console: Console) -> Progress:
    """How far each run is, for as long as its ``with`` lasts."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def wide_console() -> Console:
    """The terminal, or lines wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def reachable(target: Target) -> str:
    """Nothing, or why there is no Eureka server at this URL."""
    return _failure(target, lambda session: session.listing("/apps"))


def reachable_natively(target: Target) -> str:
    """Nothing, or why there is no registry of the native protocol at this URL."""
    return _failure(
        target, lambda session: session.status(session.send("GET", f"{API}/services"), 200)
    )


def _failure(target: Target, ask: Callable[[Session], object]) -> str:
    session = Session(target)
    try:
        ask(session)
    except FailedError as failure:
        return str(failure)
    finally:
        session.close()
    return ""


def tells(target: Target) -> str:
    """Nothing, or why the suite learns nothing of what this server tells its peers."""
    session = Session(target)
    try:
        with session.running():
            sending.told(session, session.register(), "Register")
    except FailedError:
        return f"it does not tell {session.peer.url}: is that among its peers?"
    return ""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m conformance",
        description="Says what a Eureka server does and does not do. Exit code 0 where every "
        "required case passes, 1 where one fails, 2 where it could not be run.",
    )
    made.add_argument(
        "url",
        help="the server's service URL, such as http://host:8761/eureka; for the native protocol "
        "what stands before /api/v1",
    )
    made.add_argument(
        "--api",
        choices=("eureka", "native"),
        default="eureka",
        help="the protocol to speak; native: as recorded of an Amalgam8 registry, clients have "
        "no part in it",
    )
    made.add_argument(
        "--clients",
        default="none",
        metavar="NAMES",
        help="real clients to run: all, none, or a comma list of beginnings of "
        + ", ".join(kind.name for kind in KINDS),
    )
    made.add_argument(
        "--second", metavar="URL", help="another server that clients move to and back"
    )
    made.add_argument("--report", metavar="DIR", type=Path, help="leave report.html and junit.xml")
    made.add_argument(
        "--timing",
        choices=("fast", "real"),
        default="fast",
        help="fast: lists at once, sweeps within seconds; real: a genuine server's defaults",
    )
    made.add_argument(
        "--self-preservation",
        choices=("on", "off"),
        default="off",
        help="whether the server has it switched on, and has run for less than a minute; leases "
        "then cannot be tested",
    )
    made.add_argument(
        "--peer-port",
        type=int,
        metavar="PORT",
        help="be a peer of the server, and say what it tells its peers; it must have "
        "http://HOST:PORT/eureka/ in its list of them",
    )
    made.add_argument(
        "--peer-host", default="127.0.0.1", metavar="HOST", help="the address to listen on for that"
    )
    made.add_argument("--only", default="", metavar="TEXT", help="cases that hold this text")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = wide_console()
    with ExitStack() as stack:
        try:
            peer = None
            if options.peer_port is not None:
                peer = PeerEndpoint(options.peer_port, options.peer_host)
                stack.callback(peer.close)
            return played(options, peer, console)
        except (ValueError, OSError) as error:
            console.print(f"[red]{options.url}[/]: {escape(str(error))}", highlight=False)
            return 2


def played(options: argparse.Namespace, peer: PeerEndpoint | None, console: Console) -> int:
    """Play what was asked for; the exit code. ``ValueError`` where that cannot be done."""
    preserving = options.self_preservation == "on"
    is_native = options.api == "native"
    url = options.url.rstrip("/").removesuffix(API) if is_native else options.url
    target = Target(url, self_preservation=preserving, peer=peer)
    if options.timing == "real":
        target = real_timing(target)
    kinds = () if is_native else named(options.clients)
    problem = reachable_natively(target) if is_native else reachable(target)
    if peer is not None:
        problem = problem or tells(target)
    if problem:
        raise ValueError(problem)
    cases = chosen(
        NATIVE if is_native else ALL,
        self_preservation=preserving,
        only=options.only,
        peer=peer is not None,
    )
    with bars(console) as progress:
        run = run_suite(target, cases, kinds, options.second, progress)
    for table in report.summary(run):
        console.print(table)
    counts = {o: len(run.having(o)) for o in Outcome}
    console.print(
        f"{len(run.results)} cases in {run.seconds:.0f} s: {counts[Outcome.PASSED]} passed, "
        f"{counts[Outcome.FAILED]} failed, {counts[Outcome.BEYOND]} not offered",
        highlight=False,
    )
    if options.report:
        report.write(run, options.report)
        console.print(f"{options.report / 'report.html'}", highlight=False)
    return 0 if run.conforms else 1


if __name__ == "__main__":
    sys.exit(main())
