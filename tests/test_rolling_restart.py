"""Three nodes on one Redis are stopped and started in turn, under load, and no client notices.

The clients' lists name all three, each list from another one on, and are not changed. Judged is
what ``noticed.py`` says, and besides that each change of a client with less patience, who takes the
nodes in turn, is listed by all of them in the end.

The steps:

* Each node is stopped as an init system stops it, and started with what is in its folder.
* Redis is killed and comes back without its data.
* Each node is replaced, as Kubernetes replaces a Pod: by one with an empty folder, and with another
  kind of worker. The first who is replaced finds a Redis that others have filled again.
* Redis comes back without its data once more, amid a restart.
* A machine is lost: all of a node's processes are killed at once, and its folder is gone.

All nodes are of this version. ``UPGRADE_FROM=CHECKOUT`` has them be of another one until each is
started again in the first step, which is a rolling upgrade.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest

from conformance.programs import LEASE_SECS, Program, named
from tests.noticed import (
    SPRINGS,
    Asked,
    Watch,
    answered,
    beyond_retries,
    entries,
    refused,
    start_clients,
)
from tests.redis_servers import RedisServer, another_prefix
from tests.servers import (
    ANOTHER_WORKER,
    JSON,
    ROOT,
    RegistryServer,
    Reply,
    instance_body,
    wait_until,
)

pytestmark = [pytest.mark.programs, pytest.mark.slow]
BEFORE = Path(os.environ.get("UPGRADE_FROM", ROOT))
WORKERS = (2, 1, 1)
INSTANCES = 200
RENEWALS_OF_A_CHANGE = 5
PAUSE_SECS = 0.01
EVENT_LOOP = "eureka_http.worker.EventLoopWorker"
OTHER_WORKER = EVENT_LOOP if ANOTHER_WORKER.get("WORKER_CLASS") == "gthread" else "gthread"


class Node(RegistryServer):
    """A node with its copy in a folder."""

    def __init__(self, folder: Path, redis: RedisServer, prefix: str, workers: int) -> None:
        folder.mkdir()
        self.copy = folder / "copy"
        super().__init__(
            folder,
            workers=workers,
            env={
                "STORE_URL": redis.url(prefix, self.copy),
                "ACCESS_LOG": "true",
                # Whoever is forgotten is to be missed at once.
                "EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS": "1000",
            },
        )
        self.runs_in = BEFORE

    def restart(self) -> None:
        assert self.stop() == 0
        self.runs_in = ROOT
        self.start()

    def replace(self) -> None:
        assert self.stop() == 0
        self.lose()

    def lose(self) -> None:
        self.kill9()
        shutil.rmtree(self.copy)
        self.environment["WORKER_CLASS"] = OTHER_WORKER
        self.start()

    def is_ready(self) -> bool:
        return self.send("GET", "/health/ready").status == 200


class Load(threading.Thread):
    """Instances that register, renew, and change their metadata at the nodes in turn.

    Where a node is away or says 503, the next one is asked, as clients do.
    """

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(daemon=True)
        self.changes: dict[str, int] = {}
        """The last change of each that was acknowledged."""
        self.refused: Counter[Asked] = Counter()
        self.sent = 0
        self._nodes = itertools.cycle(nodes)
        self._stopping = threading.Event()
        for number in range(INSTANCES):
            self._change(f"load:{number}", 0)

    def run(self) -> None:
        for number in itertools.count():
            name = f"load:{number % INSTANCES}"
            self._ask("PUT", f"/apps/LOAD/{name}")
            if number % RENEWALS_OF_A_CHANGE == 0:
                # Another one than has just been renewed: the next node may not know it yet.
                self._change(f"load:{(number + INSTANCES // 2) % INSTANCES}", number)
            if self._stopping.wait(PAUSE_SECS):
                return

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _change(self, name: str, number: int) -> None:
        body = instance_body("LOAD", name, metadata={"change": str(number)})
        reply = self._ask("POST", "/apps/LOAD", body)
        if reply is not None:
            self.changes[name] = number

    def _ask(self, method: str, path: str, body: str | None = None) -> Reply | None:
        """The answer of the first who gives one; none where a change may or may not be made."""
        while True:
            try:
                reply = next(self._nodes).eureka(method, path, body, JSON)
            except (OSError, HTTPException):
                if self._stopping.wait(PAUSE_SECS):
                    return None
                continue
            if reply.status == 503:
                if self._stopping.wait(PAUSE_SECS):
                    return None
                continue
            self.sent += 1
            if reply.status not in (200, 204):
                self.refused[Asked(method, path, reply.status)] += 1
            return reply


class Gone(NamedTuple):
    """What was seen from the first step to the last."""

    nodes: list[Node]
    programs: list[Program]
    load: Load
    watch: Watch
    answers: Counter[Asked]
    logs: dict[str, str]


def performed(nodes: list[Node], redis: RedisServer, watch: Watch) -> None:
    def lose_all() -> None:
        redis.kill()
        redis.start()

    def all_ready() -> None:
        for node in nodes:
            wait_until(node.is_ready, "a node to be ready")

    for number, node in enumerate(nodes, start=1):
        watch.step = f"restart of {number}"
        node.restart()
    watch.step = "Redis loses all"
    lose_all()
    all_ready()
    for number, node in enumerate(nodes, start=1):
        watch.step = f"replacement of {number}"
        node.replace()
    watch.step = "Redis loses all amid a restart"
    assert nodes[0].stop() == 0
    lose_all()
    nodes[0].start()
    all_ready()
    watch.step = "loss of 2"
    nodes[1].lose()
    watch.step = "afterwards"
    # Nothing is waited for: who was lost in the last step is to be missed.
    time.sleep(LEASE_SECS)


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gone]:
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as running:
        redis = RedisServer(folder)
        running.callback(redis.stop)
        prefix = another_prefix()
        nodes = [
            running.enter_context(Node(folder / f"node-{number}", redis, prefix, workers))
            for number, workers in enumerate(WORKERS, start=1)
        ]
        bases = [node.base for node in nodes]
        lists = [bases[first:] + bases[:first] for first in range(len(bases))]
        kinds = [kind for name in SPRINGS for kind in named(name)]
        programs = start_clients(running, kinds, lists, folder)
        logged = {program.id: len(program.log()) for program in programs}
        seen = Counter(each for node in nodes for each in answered(node.folder / "server.log"))
        load = Load(nodes)
        load.start()
        watch = Watch(programs)
        try:
            performed(nodes, redis, watch)
        finally:
            watch.stop()
            load.stop()
        answers = Counter(each for node in nodes for each in answered(node.folder / "server.log"))
        yield Gone(
            nodes,
            programs,
            load,
            watch,
            answers - seen,
            {program.id: program.log()[logged[program.id] :] for program in programs},
        )


def test_no_client_sees_a_shrunken_list(gone: Gone) -> None:
    assert gone.watch.views == []
    assert set(gone.watch.looks) == {program.id for program in gone.programs}


def test_no_client_fails_to_call_another(gone: Gone) -> None:
    assert gone.watch.calls == []


def test_no_node_refuses_a_client(gone: Gone) -> None:
    """Nobody had to register again, so no node had lost anybody."""
    assert refused(gone.answers) == {}
    beats = {asked.path.rpartition(":")[2] for asked in gone.answers if asked.method == "PUT"}
    assert beats >= {program.kind.name for program in gone.programs}


def test_no_client_logs_anything_but_its_retries(gone: Gone) -> None:
    beyond = {name: beyond_retries(entries(log)) for name, log in gone.logs.items()}
    assert {name: found for name, found in beyond.items() if found} == {}
    assert all(entries(log) for log in gone.logs.values())  # each had to


def test_all_that_was_acknowledged_is_listed_by_every_node(gone: Gone) -> None:
    assert gone.load.refused == {}
    assert len(gone.load.changes) == INSTANCES
    for node in gone.nodes:

        def listed(node: Node = node) -> dict[str, int]:
            return {
                name: int(instance["metadata"]["change"])
                for name, instance in node.apps().items()
                if name.startswith("load:")
            }

        wait_until(lambda listed=listed: listed() == gone.load.changes, "all changes to be listed")
