"""The history of real processes: several workers, kills and restarts, and a disk that is full."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import JSON, RegistryServer, instance_body, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, stored: Callable[[Path], dict[str, str]]
) -> Iterator[RegistryServer]:
    folder = tmp_path_factory.mktemp("server")
    with RegistryServer(folder, env=stored(folder)) as started:
        yield started


def entries(server: RegistryServer, query: str = "") -> list[dict[str, Any]]:
    reply = server.send("GET", f"/api/v1/history?limit=1000&{query}")
    assert reply.status == 200, reply.body
    return list(reply.json()["entries"])


def told(server: RegistryServer, app: str) -> set[tuple[str, str]]:
    return {(e["kind"], e["id"]) for e in entries(server, f"service_name={app}")}


def test_each_worker_tells_what_all_of_them_did(server: RegistryServer) -> None:
    """A moment later; and the list of this very moment has it at once."""
    names = {f"web:{number}" for number in range(4)}
    fields = JSON | {"User-Agent": "java/21", "DiscoveryIdentity-Name": "DefaultClient"}

    def register(name: str) -> int:
        body = instance_body("WEB", name)
        return server.settled(lambda: server.eureka("POST", "/apps/WEB", body, fields).status)

    for name in names:
        assert register(name) == 204
        at = entries_at(server)
        assert name in at
    wait_until(lambda: told(server, "web") == {("registered", name) for name in names})
    for entry in entries(server, "service_name=web"):
        by = {"account": "", "address": "127.0.0.1", "client": "DefaultClient java/21"}
        assert entry["by"] == by


def entries_at(server: RegistryServer) -> set[str]:
    """The ids that a list of the newest revision has."""
    status = server.send("GET", "/api/v1/instances?status=ALL&limit=1").json()
    listed = server.send("GET", f"/api/v1/instances?status=ALL&at={status['revision']}").json()
    return {each["id"] for each in listed["instances"]}


def test_what_was_told_survives_any_kill_and_a_restart(server: RegistryServer) -> None:
    for number in range(5):
        server.take("KILLED", f"k:{number}")
    server.cancel("KILLED", "k:0")
    whole = {("registered", f"k:{number}") for number in range(5)} | {("cancelled", "k:0")}
    wait_until(lambda: told(server, "killed") == whole)
    before = entries(server, "service_name=killed")
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.send("GET", "/health/ready").status == 200)
    assert entries(server, "service_name=killed") == before
    server.kill9()
    server.start()
    assert entries(server, "service_name=killed") == before
    assert server.stop() == 0
    server.start()
    assert entries(server, "service_name=killed") == before


def test_what_a_kill_took_along_is_made_up_for(server: RegistryServer) -> None:
    """Whatever was listed when all processes were killed is in the history some time later."""
    names = [f"lost:{number}" for number in range(40)]
    for name in names:
        server.take("LOST", name)
    server.kill9()
    server.start()
    wait_until(lambda: told(server, "lost") == {("registered", name) for name in names})
    for entry in entries(server, "service_name=lost"):
        assert (entry["by"] is None) == ("made_up" in entry["detail"])


def test_a_stop_writes_what_was_noted(server: RegistryServer) -> None:
    """Up to the last request."""
    # One that was refused, as Redis was away for a moment, may be noted nevertheless.
    numbers = itertools.count()
    assert server.settled(lambda: server.register(f"LAST{next(numbers)}", "last:1")) == 204
    assert server.stop() == 0
    server.start()
    (entry,) = entries(server, f"service_name=last{next(numbers) - 1}")
    assert entry["by"]["address"] == "127.0.0.1"


def test_without_a_history_nothing_is_kept(tmp_path: Path) -> None:
    with RegistryServer(tmp_path, env={"REGISTRY_HISTORY": "0"}) as server:
        assert server.register("WEB", "web:1") == 204
        assert server.send("GET", "/api/v1/history").status == 404
        assert not (tmp_path / "store" / "history").exists()


def test_a_history_that_cannot_be_opened_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "history").write_text("in the way")
    with RegistryServer(tmp_path) as server:
        assert server.register("WEB", "web:1") == 204
        assert server.send("GET", "/api/v1/history").status == 404
        assert "goes on without its history" in server.log()
