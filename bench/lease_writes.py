"""What a renewal costs the store: a slot in the lease file, against a put in an LMDB transaction.

Renews at random among stored leases, in one, two and four processes at once, each way in turn, in
every round; then the same beside a process that registers without pause. Thousands of renewals a
second of all processes together, as min / median / max. Run with ``python bench/lease_writes.py``.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

sys.path.insert(0, str(Path(__file__).parent.parent))

from registry.model import DEFAULT_NAMESPACE, InstanceKey, Lease
from registry.stores.lmdb import LmdbStore
from registry.testing import put, sample_instance

LEASES = 10_000
SECONDS = 1.5
ROUNDS = 5
PACKED = struct.Struct(">QQQ")


def lease_file(folder: Path) -> Callable[[int], None]:
    """A renewal as the store makes it."""
    store = LmdbStore(folder / "ours")
    keys = [InstanceKey("WEB", f"web:{number}") for number in range(LEASES)]

    def renew(number: int) -> None:
        store.renew(DEFAULT_NAMESPACE, keys[number], Lease(number, 90_000, number), 7)

    return renew


def transaction(folder: Path) -> Callable[[int], None]:
    """A renewal as a get and two puts, committed without a flush."""
    environment = lmdb.open(
        str(folder / "puts"), map_size=1 << 28, max_dbs=2, sync=False, metasync=False
    )
    leases, meta = environment.open_db(b"lease"), environment.open_db(b"meta")
    keys = [f"default\0WEB\0web:{number}".encode() for number in range(LEASES)]

    def renew(number: int) -> None:
        with environment.begin(write=True) as txn:
            txn.get(keys[number], db=leases)
            txn.put(keys[number], PACKED.pack(number, 90_000, number), db=leases)
            txn.put(b"window", PACKED.pack(7, number, 0), db=meta)

    return renew


WAYS = {"lease file": lease_file, "transaction": transaction}


def renew_for(way: str, folder: Path, start: Any, told: Any) -> None:
    renew = WAYS[way](folder)
    numbers = [random.randrange(LEASES) for _ in range(5_000)]
    for number in numbers:
        renew(number)
    start.wait()
    done, until = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        for number in numbers[:500]:
            renew(number)
        done += 500
    told.put(done / SECONDS)


def register_for(folder: Path, start: Any, told: Any) -> None:
    store = LmdbStore(folder / "ours")
    start.wait()
    done, until = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        revision = store.commit(DEFAULT_NAMESPACE, put(sample_instance(instance_id="busy")))
        instance = sample_instance(instance_id="busy")
        store.commit(DEFAULT_NAMESPACE, put(instance, expected=revision, remove=True))
        done += 2
    told.put(done / SECONDS)


def run(targets: list[tuple[Any, tuple[Any, ...]]]) -> list[float]:
    spawn = multiprocessing.get_context("spawn")
    start, told = spawn.Barrier(len(targets)), spawn.Queue()
    processes = [spawn.Process(target=t, args=(*a, start, told)) for t, a in targets]
    for process in processes:
        process.start()
    figures = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return figures


def shown(figures: list[float]) -> str:
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    return f"{low / 1000:.0f} / {middle / 1000:.0f} / {high / 1000:.0f}"


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        store = LmdbStore(folder / "ours")
        for number in range(LEASES):
            instance = sample_instance(instance_id=f"web:{number}")
            store.commit(DEFAULT_NAMESPACE, put(instance))
        store.close()
        renew = transaction(folder)
        for number in range(LEASES):
            renew(number)
        figures: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS):
            for processes in (1, 2, 4):
                for way in WAYS:
                    told = run([(renew_for, (way, folder))] * processes)
                    row = f"{processes} process{'es' if processes > 1 else ''}"
                    figures.setdefault((row, way), []).append(sum(told))
            together = run([(renew_for, ("lease file", folder)), (register_for, (folder,))])
            figures.setdefault(("beside registrations", "lease file"), []).append(max(together))
    print("| thousand renewals/s | lease file | transaction | ratio |\n| --- | --- | --- | --- |")
    for row in dict.fromkeys(row for row, _ in figures):
        ours, theirs = figures[row, "lease file"], figures.get((row, "transaction"), [])
        ratio = f"{statistics.median(ours) / statistics.median(theirs):.1f}x" if theirs else ""
        print(f"| {row} | {shown(ours)} | {shown(theirs) if theirs else ''} | {ratio} |")


if __name__ == "__main__":
    main()
