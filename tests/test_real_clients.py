"""Programs that run a real client library, unchanged, against the real server.

What every client does at any server is the conformance suite's; here is what this server adds:
the same registrations after a kill, and evictions on time.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.programs import LEASE_SECS, Program, named
from tests.servers import JSON, RegistryServer, wait_until

pytestmark = [pytest.mark.programs, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def started(kind: str, server: RegistryServer, instance_id: str, folder: Path) -> Program:
    (found,) = named(kind)
    return Program(found, [server.base], instance_id.split(":")[0], instance_id, folder)


def last_renewal(server: RegistryServer, app: str, instance_id: str) -> int | None:
    """When it last renewed (epoch milliseconds); None where its lease has ended."""
    reply = server.eureka("GET", f"/apps/{app}/{instance_id}", None, JSON)
    if reply.status == 404:
        return None
    return int(reply.json()["instance"]["leaseInfo"]["lastRenewalTimestamp"])


def renews_again(server: RegistryServer, app: str, instance_id: str) -> None:
    now = time.time() * 1000
    wait_until(lambda: (last_renewal(server, app, instance_id) or 0) > now, "a renewal")


def goes_after_its_lease(server: RegistryServer, app: str, instance_id: str) -> None:
    """Wait until one that was killed has gone, and not before its lease had ended."""
    renewed = last_renewal(server, app, instance_id)
    assert renewed is not None
    while True:
        # The list first: who is still there when asked afterwards was there then.
        listed = instance_id in server.apps()
        later = last_renewal(server, app, instance_id)
        if later is None:
            break
        assert listed
        renewed = later
        time.sleep(0.1)
    assert time.time() * 1000 >= renewed + LEASE_SECS * 1000
    wait_until(lambda: instance_id not in server.apps(), f"{instance_id} gone")


@pytest.mark.parametrize("kind", ["spring-2025.0-resttemplate", "spring-hoxton"])
def test_a_spring_fleet_registers_balances_drains_and_recovers(kind: str, tmp_path: Path) -> None:
    app = f"fleet-{kind.replace('.', '-')}"
    ids = [f"{app}:one", f"{app}:two"]
    programs: list[Program] = []
    with RegistryServer(tmp_path) as server:
        try:
            first, second = programs = [started(kind, server, i, tmp_path) for i in ids]
            for program in programs:
                wait_until(program.is_ready, f"{program.id} to answer")
            for program in programs:
                wait_until(lambda p=program: p.instances(app) == ids, "both to be seen")
            wait_until(lambda: first.chosen(app) == set(ids), "both chosen")

            # Out of service: not chosen any more; removed: chosen again.
            status = f"/apps/{app}/{ids[1]}/status"
            assert server.eureka("PUT", f"{status}?value=OUT_OF_SERVICE").status == 200
            wait_until(lambda: first.chosen(app) == {ids[0]}, "only the first chosen")
            assert server.eureka("DELETE", f"{status}?value=UP").status == 200
            wait_until(lambda: first.chosen(app) == set(ids), "both again")

            # The server dies and comes back: the same registrations, renewed and not repeated.
            before = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
            server.kill9()
            server.start()
            assert set(server.apps()) == set(ids)
            for instance_id in ids * 2:
                renews_again(server, app, instance_id)
            after = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
            assert after == before
            wait_until(lambda: first.chosen(app) == set(ids), "both after it")

            # Killed: evicted when its lease ends.
            second.kill9()
            goes_after_its_lease(server, app, ids[1])
            wait_until(lambda: first.instances(app) == ids[:1], "the other to see it")

            # Stopped politely: gone by the time it has stopped.
            first.stop()
            assert server.apps() == {}
        finally:
            for program in programs:
                program.end()


def test_a_python_and_a_spring_client_see_each_other(
    server: RegistryServer, tmp_path: Path
) -> None:
    java = started("spring-2025.0-resttemplate", server, "java-side:one", tmp_path)
    python = started("python", server, "python-side:one", tmp_path)
    other = started("python", server, "python-side:two", tmp_path)
    try:
        for program in (java, python, other):
            wait_until(program.is_ready, f"{program.id} to answer")
        both = ["python-side:one", "python-side:two"]
        wait_until(lambda: java.instances("python-side") == both, "Java to see Python")
        wait_until(lambda: python.instances("java-side") == ["java-side:one"], "and back")
        wait_until(lambda: java.chosen("python-side") == set(both), "Java calling Python")
        wait_until(lambda: python.chosen("java-side") == {"java-side:one"}, "Python calling Java")

        other.kill9()
        goes_after_its_lease(server, "python-side", "python-side:two")
        try:
            python.stop()
        except subprocess.TimeoutExpired:
            # Its lock is not re-entrant: a full fetch, as after a delta that it could not use,
            # may have hung it. Then its lease ends.
            python.kill9()
            wait_until(lambda: "python-side:one" not in server.apps(), "its lease to end")
        assert list(server.apps()) == ["java-side:one"]
    finally:
        for program in (java, python, other):
            program.end()
