"""``python -m tests.histories``."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests import histories
from tests.histories.command import in_turn, parser_of, told
from tests.histories.playing import search, search_over_nodes
from tests.redis_nodes import (
    FAILOVERS,
    FAULTS,
    FORGETTING,
    OF_A_CLUSTER,
    ClusterNodes,
    Nodes,
    SentinelNodes,
)
from tests.servers import RegistryServer

_FAULTS: Mapping[str, Iterable[str]] = {
    "lmdb": (),
    "redis": FAULTS,
    "redis+sentinel": FAILOVERS,
    "redis+cluster": OF_A_CLUSTER,
}


@contextmanager
def _killing(server: RegistryServer, every_secs: float | None) -> Iterator[None]:
    """Kill one of the workers now and then; the main process starts another."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(every_secs):
            with suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(server.worker_pids()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    if every_secs is not None:
        killer.start()
    yield
    ended.set()
    if every_secs is not None:
        killer.join()


def _over_nodes(options: argparse.Namespace, store: str, run: str) -> list[str]:
    """As the command line asks for on one of the stores; what is wrong."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        nodes: Nodes | SentinelNodes | ClusterNodes
        if store == "redis":
            nodes = Nodes(
                Path(folder),
                options.nodes,
                workers=options.workers,
                accepting=options.accepting,
                env=FORGETTING,
                seed=options.seed,
            )
        else:
            led = SentinelNodes if store == "redis+sentinel" else ClusterNodes
            nodes = led(
                Path(folder),
                options.nodes,
                workers=options.workers,
                accepting=options.accepting,
                env=FORGETTING,
            )
        opened.enter_context(nodes)
        return in_turn(
            options,
            nodes.servers,
            _FAULTS[store],
            lambda seeds, fault: search_over_nodes(nodes, seeds, fault, run),
            options.keep and options.keep / store,
        )


def main(arguments: Sequence[str]) -> int:
    """Search as many histories as asked for, and print what is wrong; 1 where anything is."""
    of_any = (fault for each in _FAULTS.values() for fault in each)
    parser = parser_of("tests.histories", histories.__doc__, of_any)
    parser.add_argument("node", nargs="*", help="HOST:PORT of each node of one registry")
    parser.add_argument("--workers", type=int, default=4, help="of each server that it starts")
    parser.add_argument("--kill-every", type=float, metavar="SECS", help="one of its workers")
    parser.add_argument(
        "--store", nargs="+", choices=_FAULTS, default=["lmdb"], help="as many histories on each"
    )
    parser.add_argument(
        "--accepting", action="store_true", help="nodes accept writes while Redis is away"
    )
    options = parser.parse_args(arguments)
    for store in options.store:
        if not {"all", *_FAULTS[store]}.issuperset(options.faults):
            parser.error(f"on {store} there are other faults")
    if "lmdb" in options.store and len(options.store) > 1:
        parser.error("nodes share no lmdb")
    seeds = range(options.seed, options.seed + options.count)
    run = format(time.time_ns(), "x")
    if options.node:
        parted = [node.rpartition(":") for node in options.node]
        wrong = search([(host, int(port)) for host, _, port in parted], seeds, run)
    elif options.store != ["lmdb"]:
        wrong = [wrong for store in options.store for wrong in _over_nodes(options, store, run)]
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            RegistryServer(Path(folder), workers=options.workers) as server,
            _killing(server, options.kill_every),
        ):
            wrong = search([("127.0.0.1", server.port)], seeds, run)
    played = options.count * len(options.store)
    return told(wrong, f"{played} histories, {len(wrong)} of them not to be explained")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
