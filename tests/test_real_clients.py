"""Programs that run a real client library, unchanged, against the real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_clients import Program, python_client, spring
from tests.servers import RegistryServer, wait_until

LEASE_SECS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def gone_after(server: RegistryServer, instance_id: str, since: float, limit: float) -> float:
    wait_until(lambda: instance_id not in server.apps(), limit, f"{instance_id} to be gone")
    return time.monotonic() - since


@pytest.mark.parametrize("generation", ["spring-2025.0", "spring-hoxton"])
def test_a_spring_fleet_registers_balances_drains_and_recovers(
    generation: str, tmp_path: Path
) -> None:
    app = f"fleet-{generation.removeprefix('spring-').replace('.', '-')}"
    first_id, second_id = f"{app}:one", f"{app}:two"
    programs: list[Program] = []
    with RegistryServer(tmp_path) as server:
        try:
            first = spring(generation, server.base, app, first_id, tmp_path)
            second = spring(generation, server.base, app, second_id, tmp_path)
            programs += [first, second]
            for program in programs:
                program.wait_ready()
            both = sorted([first_id, second_id])
            for program in programs:
                wait_until(lambda p=program: p.instances(app) == both, 15, "both to be seen")
            wait_until(lambda: first.chosen(app) == {first_id, second_id}, 15, "both chosen")

            # Out of service: not chosen any more; removed: chosen again.
            status = f"/apps/{app}/{second_id}/status"
            assert server.eureka("PUT", f"{status}?value=OUT_OF_SERVICE").status == 200
            wait_until(lambda: first.chosen(app) == {first_id}, 15, "only the first chosen")
            assert server.eureka("DELETE", f"{status}?value=UP").status == 200
            wait_until(lambda: first.chosen(app) == {first_id, second_id}, 15, "both again")

            # The server dies and comes back: the same registrations, renewed and not repeated.
            before = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
            server.kill9()
            server.start()
            assert set(server.apps()) == set(both)
            time.sleep(LEASE_SECS + 2)
            after = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
            assert after == before
            wait_until(lambda: first.chosen(app) == {first_id, second_id}, 15, "both after it")

            # Killed: evicted when its lease ends. Its last renewal was up to a second before.
            killed = second.kill9()
            elapsed = gone_after(server, second_id, killed, LEASE_SECS + 3)
            assert LEASE_SECS - 2 < elapsed < LEASE_SECS + 2
            wait_until(lambda: first.instances(app) == [first_id], 15, "the other to see it")

            # Stopped politely: gone by the time it has stopped.
            first.stop()
            assert server.apps() == {}
        finally:
            for program in programs:
                program.end()


def test_a_python_and_a_spring_client_see_each_other(
    server: RegistryServer, tmp_path: Path
) -> None:
    java = spring("spring-2025.0", server.base, "java-side", "java-side:one", tmp_path)
    python = python_client(server.base, "python-side", "python-side:one", tmp_path)
    other = python_client(server.base, "python-side", "python-side:two", tmp_path)
    try:
        for program in (java, python, other):
            program.wait_ready()
        both = ["python-side:one", "python-side:two"]
        wait_until(lambda: java.instances("python-side") == both, 15, "Java to see Python")
        wait_until(lambda: python.instances("java-side") == ["java-side:one"], 15, "and back")
        wait_until(lambda: java.chosen("python-side") == set(both), 15, "Java calling Python")
        assert python.get("/choose/java-side") == (200, "java-side:one")

        status = "/apps/python-side/python-side:two/status"
        assert server.eureka("PUT", f"{status}?value=OUT_OF_SERVICE").status == 200
        for program in (java, python):
            wait_until(lambda p=program: p.instances("python-side") == both[:1], 15, "it drained")
        assert server.eureka("DELETE", f"{status}?value=UP").status == 200
        for program in (java, python):
            wait_until(lambda p=program: p.instances("python-side") == both, 15, "it back")

        killed = other.kill9()
        elapsed = gone_after(server, "python-side:two", killed, LEASE_SECS + 3)
        assert LEASE_SECS - 2 < elapsed < LEASE_SECS + 2
        python.stop()
        assert list(server.apps()) == ["java-side:one"]
    finally:
        for program in (java, python, other):
            program.end()
