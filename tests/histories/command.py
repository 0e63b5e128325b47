"""The command line of what is played by seeds, also that of ``tests/leases.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tests.servers import RegistryServer

_AT_ONCE = 16


class Found(Protocol):
    """What a batch of seeds found, told as one line."""

    @property
    def wrong(self) -> list[str]: ...


def parser_of(module: str, doc: str | None, faults: Iterable[str]) -> argparse.ArgumentParser:
    """What is the same in each search over nodes; ``in_turn`` does as is asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=3, help="on one Redis, each a server")
    parser.add_argument(
        "--faults",
        nargs="+",
        default=[],
        choices=["all", *faults],
        help="of nodes on a Redis; all is each of its store's in turn",
    )
    parser.add_argument("--keep", type=Path, help="a folder for what is wrong, and the logs then")
    return parser


def in_turn(
    options: argparse.Namespace,
    servers: Sequence[RegistryServer],
    known: Iterable[str],
    play: Callable[[Sequence[int], str | None], Found],
    keep: Path | None,
) -> list[str]:
    """Play some seeds at a time, each time amid another fault; what is wrong, with its fault."""
    faults: list[str | None] = list(known) if options.faults == ["all"] else [*options.faults]
    faults = faults or [None]
    wrong = []
    for place, start in enumerate(range(0, options.count, _AT_ONCE)):
        seeds = range(options.seed + start, options.seed + min(start + _AT_ONCE, options.count))
        fault = faults[place % len(faults)]
        try:
            found = play(seeds, fault)
            print(found, flush=True)
            batch = found.wrong
        except AssertionError as error:  # they never agreed, or one answered as no server may
            batch = [f"seeds {seeds[0]} to {seeds[-1]}: {error}"]
            print(f"{fault or 'none'}: {batch[0]}", flush=True)
        wrong += [f"{fault or 'none'}, {each}" for each in batch]
        if batch and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for server in servers:
                name = f"{server.folder.name}-{seeds[0]}.log"
                (keep / name).write_text(server.log())
            (keep / f"wrong-{seeds[0]}").write_text("\n\n".join(batch))
    return wrong


def told(wrong: Sequence[str], verdict: str) -> int:
    """Print some of what is wrong, and the verdict on all; the exit code."""
    print("\n\n".join(wrong[:10]))
    print(verdict)
    return min(1, len(wrong))
