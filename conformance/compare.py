"""``python -m conformance.compare``: the suite on a genuine server and on this project's.

Builds and starts a genuine server and one of this project's for each of its stores, on free ports
of the loopback, plays the suite to each and random sequences to the genuine one and each other, and
says what differs. On Redis this project's is three nodes behind one address, so what is played
there goes through all of them: each connection, which is each case or sequence, is another node's
in its turn. (Who changes connections in between may find the other node some milliseconds behind.)
Behind Sentinel the cases that need no waiting are played, and sequences: half of them, then the
master is killed, and the other half when a replica has taken over.
Real clients are on the genuine server and the first of the others, and move between those two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from conformance import report
from conformance.__main__ import bars, reachable, run_suite, wide_console
from conformance.case import Case, FailedError, Session, Target, chosen
from conformance.cases import ALL
from conformance.differential import DisagreementError, Duel, compare
from conformance.gate import Gatehouse
from conformance.peer import PeerEndpoint
from conformance.programs import HOXTON_OPTIONS, SMALL_JVM, Kind, built_jar, free_port, named
from conformance.report import Run
from conformance.run import Outcome, Result

HERE = Path(__file__).parent
GENERATIONS = {"2025.0": "pom.xml", "hoxton": "pom-hoxton.xml"}
GENUINE = "genuine"
OURS = {
    "lmdb": "this server",
    "redis": "three nodes on Redis",
    "redis+cluster": "three nodes on a Redis Cluster",
    "redis+sentinel": "three nodes on Redis, over a failover",
}
FAILING_OVER = OURS["redis+sentinel"]
# How many workers each has.
NODES = (2, 1, 1)
SERVICE = "registry"
# A machine that is busy with all of this takes its time.
_STARTS_IN_SECS = 600
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
    """A server process on a free port, stopped at the end of its ``with``, which gives its URL.

    ``problem`` says of a URL why nobody answers there yet, or nothing.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        problem: Callable[[str], str] = lambda url: reachable(Target(url)),
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self._url = url
        self._problem = problem

    def __enter__(self) -> str:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=HERE.parent,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + _STARTS_IN_SECS
        while problem := self._problem(self._url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                self._log.seek(0)
                raise RuntimeError(f"{problem}: {self._log.read()[-2000:].decode()}")
            time.sleep(0.2)
        return self._url

    def kill(self) -> None:
        """Have it end at once, amid what it does."""
        self._process.kill()
        self._process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._log.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()


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
    command = ["java", *SMALL_JVM, "-Xmx400m", *options, "-jar", str(jar)]
    return Started([*command, f"--server.port={port}", *settings], {}, service_url(port))


def service_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/eureka"


def ours(profile: Mapping[str, str], store_url: str, workers: int, peer: str = "") -> Started:
    """The server of this project."""
    port = free_port()
    named_as_variables = {
        "EUREKA_SERVER_" + name.replace("-", "").upper(): value for name, value in profile.items()
    }
    environment = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": str(workers),
        "STORE_URL": store_url,
        **named_as_variables,
    }
    if peer:
        # The genuine server's settings are not to list itself anywhere either.
        environment["EUREKA_CLIENT_SERVICEURL_DEFAULTZONE"] = peer
        environment["EUREKA_CLIENT_REGISTERWITHEUREKA"] = "false"
    return Started([sys.executable, "-m", "gunicorn", "wsgi:app"], environment, service_url(port))


class Running(NamedTuple):
    """Where a server is, and what has its store fail over, if that can."""

    url: str
    fail_over: Callable[[], None] | None = None


def on_lmdb(profile: Mapping[str, str], peer: str = "") -> Iterator[Running]:
    """With two worker processes and an empty store."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ours(profile, f"lmdb:{folder}", 2, peer) as url,
    ):
        yield Running(url)


class Redis:
    """Empty servers of Redis, and the nodes on them, for as long as the ``with`` lasts."""

    def __enter__(self) -> Redis:
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def server(self, *options: object) -> tuple[int, Started]:
        """Start one with these options; its port, and itself."""
        port = free_port()
        folder = self._folder / f"server-{port}"
        folder.mkdir()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        return port, self._started(port, *command, "--dir", str(folder), *map(str, options))

    def sentinel(self, master: int) -> int:
        """Start one of three that watch a master and its replica; its port."""
        port = free_port()
        configuration = self._folder / f"sentinel-{port}.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 5000\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
        )
        self._started(port, "redis-server", str(configuration), "--sentinel")
        return port

    def _started(self, port: int, *command: str) -> Started:
        def problem(url: str) -> str:
            told = asked(port, "PING")
            return "" if told == "PONG" else f"{url} {told}"

        started = Started(command, {}, f"redis://127.0.0.1:{port}/0", problem)
        self._stack.enter_context(started)
        return started

    def nodes(self, profile: Mapping[str, str], peer: str, url: str) -> list[str]:
        """Start three nodes on a store, each with a folder of its own; their URLs."""
        return [
            self._stack.enter_context(
                ours(profile, f"{url}?folder={self._folder}/{place}", workers, peer)
            )
            for place, workers in enumerate(NODES)
        ]

    def gate(self, nodes: Sequence[str]) -> str:
        """Open one address of all nodes; its URL."""
        return self._stack.enter_context(Gatehouse()).gate(*nodes).url


def asked(port: int, *words: object) -> str:
    """What a server of Redis answers, or why it does not."""
    command = ["redis-cli", "-p", str(port), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_STARTS_IN_SECS)
    return (done.stdout or done.stderr).strip()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Ask until it holds; ``RuntimeError`` where it never does."""
    deadline = time.monotonic() + _STARTS_IN_SECS
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {_STARTS_IN_SECS} s")
        time.sleep(0.2)


def on_redis(profile: Mapping[str, str], peer: str = "") -> Iterator[Running]:
    """Three nodes on one server, behind one address."""
    with Redis() as redis:
        port, _ = redis.server()
        yield Running(redis.gate(redis.nodes(profile, peer, f"redis://127.0.0.1:{port}/0")))


def on_cluster(profile: Mapping[str, str], peer: str = "") -> Iterator[Running]:
    """Three nodes on a Cluster of three servers, behind one address."""
    slots = 16384
    with Redis() as redis:
        ports: list[int] = []
        for place in range(3):
            bus = free_port()
            port, _ = redis.server("--cluster-enabled", "yes", "--cluster-port", bus)
            first, last = slots * place // 3, slots * (place + 1) // 3 - 1
            asked(port, "CLUSTER", "ADDSLOTSRANGE", first, last)
            for other in ports:
                asked(other, "CLUSTER", "MEET", "127.0.0.1", port, bus)
            ports.append(port)
        wait_until(
            lambda: all("cluster_state:ok" in asked(port, "CLUSTER", "INFO") for port in ports),
            "the Cluster serves",
        )
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield Running(redis.gate(redis.nodes(profile, peer, f"redis+cluster://{hosts}")))


def behind_sentinel(profile: Mapping[str, str], peer: str = "") -> Iterator[Running]:
    """Three nodes on a master with a replica and three sentinels, behind one address."""
    with Redis() as redis:
        port, master = redis.server()
        redis.server("--replicaof", "127.0.0.1", port, "--repl-diskless-sync-delay", 0)
        sentinels = [redis.sentinel(port) for _ in range(3)]

        def knows_all(sentinel: int) -> bool:
            words = asked(sentinel, "SENTINEL", "MASTER", SERVICE).split("\n")
            told = dict(zip(words[::2], words[1::2], strict=False))
            return (told["num-other-sentinels"], told["num-slaves"]) == ("2", "1")

        wait_until(lambda: all(map(knows_all, sentinels)), "the sentinels know of each other")
        hosts = ",".join(f"127.0.0.1:{sentinel}" for sentinel in sentinels)
        nodes = redis.nodes(profile, peer, f"redis+sentinel://{hosts}/{SERVICE}/0")

        def fail_over() -> None:
            # Nobody can be registered before the replica is the master.
            master.kill()
            wait_until(lambda: all(map(accepts, nodes)), "the nodes accept registrations again")

        yield Running(redis.gate(nodes), fail_over)


def accepts(url: str) -> bool:
    """Whether a server registers an instance."""
    with Session(Target(url)).running() as session:
        try:
            session.register()
        except FailedError:
            return False
    return True


class Start(Protocol):
    """Starts an empty server with the settings of a profile, and perhaps a peer."""

    def __call__(
        self, profile: Mapping[str, str], peer: str = ""
    ) -> AbstractContextManager[Running]: ...


STORES: Mapping[str, Start] = {
    "lmdb": contextmanager(on_lmdb),
    "redis": contextmanager(on_redis),
    "redis+cluster": contextmanager(on_cluster),
    "redis+sentinel": contextmanager(behind_sentinel),
}


def named_stores(text: str) -> list[str]:
    """The stores of a comma list; ``ArgumentTypeError`` for one that there is not."""
    names = text.split(",")
    if unknown := set(names) - set(STORES):
        raise argparse.ArgumentTypeError(f"there are {', '.join(STORES)}, and not {unknown.pop()}")
    return names


def servers(generation: str, stores: Sequence[str]) -> dict[str, Start]:
    """How each of those that are compared is started, the genuine one first."""

    @contextmanager
    def start(profile: Mapping[str, str], peer: str = "") -> Iterator[Running]:
        with genuine(generation, profile, peer=peer) as url:
            yield Running(url)

    return {GENUINE: start} | {OURS[store]: STORES[store] for store in stores}


def differences(runs: Mapping[str, Run]) -> Table:
    """The cases whose outcome is not the same on all."""
    table = Table(title="where they differ", title_justify="left", show_lines=True)
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


class Comparison:
    """The suite on each of those that are compared, and random sequences.

    Much of it is waiting for leases, so two things go on at a time: the clients, which are on the
    first two servers and move between these, beside the cases on the others, and then sequences.
    """

    def __init__(
        self,
        compared: Mapping[str, Start],
        kinds: Sequence[Kind],
        examples: int,
        progress: Progress,
    ) -> None:
        self._compared = compared
        self._kinds = kinds
        self._examples = examples
        self._progress = progress

    def run(self) -> tuple[dict[str, Run], Agreed]:
        """Play all of it; the run on each, and what came of the sequences."""
        with ThreadPoolExecutor(2) as pool:
            with_clients = pool.submit(self._with_clients)
            others = pool.submit(self._others)
            agreed = pool.submit(sequences, self._compared, self._examples)
            try:
                runs = with_clients.result()
                for name, more in others.result().items():
                    runs[name] = joined(runs[name], more) if name in runs else more
                return runs, agreed.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # where one of them broke

    def _with_clients(self) -> dict[str, Run]:
        """The cases on the first two, and the clients."""
        cases, profile = chosen(ALL, self_preservation=False), PROFILES["cases"]
        theirs, own, *_ = self._compared
        with (
            self._compared[theirs](profile) as (url, _),
            self._compared[own](profile) as (second, _),
        ):
            return {
                theirs: self._played(url, cases, self._kinds, second),
                own: self._played(second, cases, self._kinds, url),
            }

    def _others(self) -> dict[str, Run]:
        """The cases on the others, and on each self-preservation and what it tells a peer.

        Of one that fails over there are the cases that need no waiting, every other one before it.
        """
        runs: dict[str, Run] = {}
        cases, profile = chosen(ALL, self_preservation=False), PROFILES["cases"]
        for name in list(self._compared)[2:]:
            with self._compared[name](profile) as (url, fail_over):
                if fail_over is None:
                    runs[name] = self._played(url, cases)
                    continue
                quick = [case for case in cases if not case.waits and not case.spoils]
                before = self._played(url, quick[::2])
                fail_over()
                runs[name] = joined(before, self._played(url, quick[1::2]))
        for name, start in self._compared.items():
            if name == FAILING_OVER:
                continue
            cases = chosen(ALL, self_preservation=True)
            with start(PROFILES["self-preservation"]) as (url, _):
                more = self._played(url, cases, self_preservation=True)
            cases = [case for case in chosen(ALL, self_preservation=False, peer=True) if case.peer]
            with closing(PeerEndpoint()) as peer, start(PROFILES["peers"], peer.url) as (url, _):
                more = joined(more, self._played(url, cases, peer=peer))
            runs[name] = joined(runs[name], more) if name in runs else more
        return runs

    def _played(
        self,
        url: str,
        cases: Sequence[Case],
        kinds: Sequence[Kind] = (),
        second: str | None = None,
        **expected: Any,
    ) -> Run:
        target = Target(url, **expected)
        return run_suite(target, cases, kinds, second, self._progress, second_try=True)


class Agreed(NamedTuple):
    """Whether random sequences were answered alike by all, and what to say of each server."""

    by_all: bool
    told: list[str]


def sequences(compared: Mapping[str, Start], examples: int) -> Agreed:
    """Have random sequences answered by each and by the first.

    The second one is asked so many, and those after it a third: they decide by the same rules.
    """
    theirs, own, *_ = compared
    agreed, notes = True, []
    profile = PROFILES["sequences"]
    with compared[theirs](profile) as (measure, _):
        for name in list(compared)[1:]:
            with compared[name](profile) as running:
                try:
                    told = duel(measure, running, examples if name == own else examples // 3)
                    notes.append(
                        f"{name}: {told.sequences} random sequences, {told.exchanges} requests to "
                        "it and to the genuine server: no disagreement"
                    )
                except DisagreementError as found:
                    agreed = False
                    notes.append(f"{name}: a disagreement: {found}")
    return Agreed(agreed, notes)


def duel(measure: str, running: Running, count: int) -> Duel:
    """Play so many sequences to both; where one can fail over, it does after half of them."""

    def played(number: int) -> None:
        if running.fail_over is not None and number == count // 2:
            running.fail_over()

    return compare(measure, running.url, count, played)


def joined(first: Run, more: Run) -> Run:
    return Run(first.url, [*first.results, *more.results], first.seconds + more.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conformance.compare", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--genuine", choices=tuple(GENERATIONS), default="2025.0")
    parser.add_argument("--clients", default="all", metavar="NAMES")
    parser.add_argument(
        "--stores",
        type=named_stores,
        default=list(OURS),
        metavar="NAMES",
        help=f"what this project's runs on: a comma list of {', '.join(STORES)} (default: all)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=300,
        help="random sequences to play (a third on further stores)",
    )
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
        with genuine(options.genuine, PROFILES["cases"], options.serve) as url:
            console.print(f"a genuine server: {url}", highlight=False)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                return 0
    began = time.monotonic()
    kinds = named(options.clients)
    compared = servers(options.genuine, options.stores)
    with bars(console) as progress:
        runs, (agreed, told) = Comparison(compared, kinds, options.examples, progress).run()
    for run in runs.values():
        for table in report.summary(run):
            console.print(table)
    console.print(differences(runs))
    notes = [f"{GENUINE}: Spring Cloud Netflix Eureka Server {options.genuine}", *told]
    for name, run in runs.items():
        failed = len(run.having(Outcome.FAILED))
        console.print(
            f"{name}: {len(run.results)} cases in {run.seconds:.0f} s, {failed} failed, "
            f"{len(run.having(Outcome.BEYOND))} not offered",
            highlight=False,
        )
        if options.report:
            report.write(run, options.report / name.replace(" ", "-"))
    console.print(
        f"{len(kinds)} clients on each of {', '.join(list(runs)[:2])}; "
        f"{time.monotonic() - began:.0f} s in all",
        highlight=False,
    )
    for line in [*told, *last_words(runs)]:
        console.print(line, highlight=False, markup=False)
    if options.coverage:
        options.coverage.write_text(report.coverage(runs, notes), encoding="utf-8")
    return 0 if agreed and all(run.conforms for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
