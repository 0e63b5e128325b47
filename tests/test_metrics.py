"""What ``/metrics`` tells: of all workers, whoever of them died, in the form that is read."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import JSON, RegistryServer, instance_body, wait_until

Samples = dict[str, float]


def read(text: str) -> Samples:
    """Each sample by its name and labels, as they are written."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={sample.labels[name]}" for name in sorted(sample.labels))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def told(server: RegistryServer, path: str = "/metrics") -> Samples:
    reply = server.send("GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(reply.body.decode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Two workers; what a test counts is compared with what was counted before it."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = {"REGISTRY_METRICS_APPLICATIONS": "2", "REGISTRY_MIN_TTL": "1"}
    with RegistryServer(folder, env=settings) as running:
        yield running


@pytest.fixture
def before(server: RegistryServer) -> Samples:
    return told(server)


def counted(server: RegistryServer, before: Samples, name: str, expected: float) -> None:
    """Wait until all workers' counts have come together, and are as many as they should be."""
    since = before.get(name, 0)
    wait_until(lambda: told(server).get(name, 0) - since >= expected, name)
    assert told(server)[name] - since == expected


@pytest.mark.programs
def test_promtool_has_nothing_to_say_against_it(server: RegistryServer) -> None:
    server.register("LINT", "lint:1")
    server.eureka("GET", "/apps")
    text = server.send("GET", "/metrics").body
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


def test_instances_are_told_by_application_and_status_and_the_small_together(
    server: RegistryServer,
) -> None:
    for app, size in (("BIG", 4), ("MIDDLE", 3), ("SMALL", 1), ("TINY", 1)):
        for number in range(size):
            status = "DOWN" if number == 2 else "UP"
            assert server.register(app, f"{app}:{number}", status=status) == 204
    found = told(server)
    shown = {
        name.removeprefix("registry_instances"): value
        for name, value in found.items()
        if name.startswith("registry_instances{")
    }
    assert shown["{application=BIG,namespace=default,status=UP}"] == 3
    assert shown["{application=BIG,namespace=default,status=DOWN}"] == 1
    assert shown["{application=MIDDLE,namespace=default,status=UP}"] == 2
    assert {name.split(",")[0] for name in shown} == {
        "{application=BIG",
        "{application=MIDDLE",
        "{application=other",
    }
    listed = server.apps()
    assert sum(shown.values()) == len(listed)
    assert found["registry_leases{namespace=default}"] == len(listed)


def test_each_kind_of_renewal_counts_for_itself(server: RegistryServer, before: Samples) -> None:
    server.register("RENEW", "renew:1", lastDirtyTimestamp="1700000000000")
    path = "/apps/RENEW/renew:1"
    for _ in range(5):
        assert server.eureka("PUT", path).status == 200
    assert server.eureka("PUT", "/apps/RENEW/nobody").status == 404
    assert server.eureka("PUT", f"{path}?lastDirtyTimestamp=1800000000000").status == 404
    counted(server, before, "registry_renewals_total{result=known}", 5)
    counted(server, before, "registry_renewals_total{result=unknown}", 1)
    counted(server, before, "registry_renewals_total{result=refused}", 1)
    counted(server, before, "registry_requests_total{route=renew,status=200}", 5)
    counted(server, before, "registry_requests_total{route=renew,status=404}", 2)


def test_on_a_kept_connection_all_heartbeats_count(server: RegistryServer, before: Samples) -> None:
    """Most of them take a lane, which counts by itself."""
    server.register("LANE", "lane:1")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(200):
        server.eureka("PUT", "/apps/LANE/lane:1", connection=connection)
    for _ in range(20):
        server.eureka("GET", "/apps/LANE/lane:1", None, JSON, connection=connection)
        size = len(server.eureka("GET", "/apps", None, JSON, connection=connection).body)
        server.eureka("GET", "/apps/delta", None, JSON, connection=connection)
    connection.close()
    counted(server, before, "registry_requests_total{route=renew,status=200}", 200)
    counted(server, before, "registry_fetches_total{kind=instance}", 20)
    counted(server, before, "registry_fetches_total{kind=full}", 20)
    counted(server, before, "registry_fetches_total{kind=delta}", 20)
    counted(server, before, "registry_fetch_bytes_total{kind=full}", 20 * size)
    name = "registry_request_duration_seconds_count{route=renew}"
    # One in 64 of a worker's is measured, for as many.
    assert 64 <= told(server)[name] - before.get(name, 0) <= 200 + 2 * 64


def test_what_is_registered_cancelled_and_overridden_counts(
    server: RegistryServer, before: Samples
) -> None:
    for name in ("new:1", "new:2", "new:1"):
        server.register("NEW", name)
    server.eureka("PUT", "/apps/NEW/new:1/status?value=OUT_OF_SERVICE")
    server.eureka("DELETE", "/apps/NEW/new:1/status")
    server.eureka("DELETE", "/apps/NEW/new:2")
    counted(server, before, "registry_registrations_total{kind=new,source=eureka}", 2)
    counted(server, before, "registry_registrations_total{kind=again,source=eureka}", 1)
    counted(server, before, "registry_cancellations_total{source=eureka}", 1)
    counted(server, before, "registry_override_changes_total{kind=set}", 1)
    counted(server, before, "registry_override_changes_total{kind=removed}", 1)


def test_what_came_by_the_native_api_counts_as_such(
    server: RegistryServer, before: Samples
) -> None:
    body = '{"service_name": "native", "endpoint": {"type": "tcp", "value": "10.0.0.1:80"}}'
    made = server.send("POST", "/api/v1/instances", body, JSON).json()["id"]
    assert server.send("PUT", f"/api/v1/instances/{made}/heartbeat").status == 200
    assert server.send("PUT", "/api/v1/instances/nobody/heartbeat").status == 410
    assert server.send("GET", "/api/v1/instances").status == 200
    counted(server, before, "registry_registrations_total{kind=new,source=native}", 1)
    counted(server, before, "registry_renewals_total{result=known}", 1)
    counted(server, before, "registry_renewals_total{result=unknown}", 1)
    counted(server, before, "registry_requests_total{route=native-list,status=200}", 1)
    counted(server, before, "registry_requests_total{route=native-renew,status=410}", 1)


@pytest.mark.slow
def test_an_eviction_counts(server: RegistryServer, before: Samples) -> None:
    lease = {"renewalIntervalInSecs": 1, "durationInSecs": 1}
    server.register("SHORT", "short:1", leaseInfo=lease)
    counted(server, before, "registry_evictions_total{reason=expired}", 1)


@pytest.mark.slow
def test_no_count_goes_backwards_when_a_worker_dies(
    server: RegistryServer, before: Samples
) -> None:
    server.register("DEATH", "death:1")
    name = "registry_requests_total{route=renew,status=200}"
    for _ in range(50):
        server.eureka("PUT", "/apps/DEATH/death:1")
    counted(server, before, name, 50)
    known = told(server)
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _refused(server), "another worker")
    wait_until(lambda: told(server)["registry_workers"] == 2, "both workers")
    found = told(server)
    assert found[name] == known[name]
    fallen = {
        each: (value, found[each])
        for each, value in known.items()
        if ("_total" in each or "_count" in each) and found[each] < value
    }
    assert fallen == {}


def _refused(server: RegistryServer) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.send("GET", "/health/ready").status != 200
    return True


def test_spring_has_the_same_at_its_own_path(server: RegistryServer) -> None:
    assert told(server, "/actuator/prometheus").keys() >= told(server).keys() - {
        "registry_requests_total{route=metrics,status=200}"
    }


@pytest.mark.slow
def test_it_needs_no_account_and_tells_how_many_were_refused(tmp_path: Path) -> None:
    settings = {"REGISTRY_AUTH": "trusted", "REGISTRY_ACTUATOR": "false"}
    with RegistryServer(tmp_path, workers=1, env=settings) as server:
        assert server.send("GET", "/actuator/prometheus").status == 404
        assert server.eureka("GET", "/apps").status == 401
        body = instance_body("WEB", "web:1")
        assert server.eureka("POST", "/apps/WEB", body, JSON).status == 401
        assert server.send("GET", "/api/v1/instances").status == 401
        token = {"authorization": "Bearer s3cret-team", **JSON}
        assert server.eureka("POST", "/apps/WEB", body, token).status == 204
        found = told(server)
        assert server.send("GET", "/api/v1/series", headers=token).status == 403
        accepted = "/api/v1/self-preservation/accept-loss"
        assert server.send("POST", accepted, "{}", token).status == 202
        wait_until(lambda: "the loss of all is accepted in 8d73d18472e0 " in server.log())
        assert "s3cret" not in server.log() + str(found)
    # sha256sum of the name, which is the token.
    assert found["registry_leases{namespace=8d73d18472e0}"] == 1
    assert found["registry_unauthorized_requests_total"] == 3
    assert found["registry_requests_total{route=fetch-all,status=401}"] == 1
    assert found["registry_requests_total{route=register,status=401}"] == 1
    assert found["registry_requests_total{route=native-list,status=401}"] == 1


@pytest.mark.slow
def test_one_worker_without_a_folder_tells_the_same(tmp_path: Path) -> None:
    with RegistryServer(tmp_path, workers=1, env={"STORE_URL": "memory:"}) as server:
        server.register("WEB", "web:1")
        found = told(server)
    assert found["registry_instances{application=WEB,namespace=default,status=UP}"] == 1
    assert found["registry_requests_total{route=register,status=204}"] == 1
    assert found["registry_workers"] == 1


# The series


def test_the_series_ends_with_now_and_knows_what_there_is(server: RegistryServer) -> None:
    server.register("SERIES", "series:1")

    def last() -> dict[str, float] | None:
        told = server.send("GET", "/api/v1/series?minutes=1").json()
        assert told["step_secs"] == 30
        rows = told["samples"]
        return dict(zip(told["columns"], rows[-1], strict=True)) if rows else None

    wait_until(lambda: (last() or {}).get("instances") == len(server.apps()), "the instances")
    for _ in range(200):
        server.eureka("PUT", "/apps/SERIES/series:1")
    wait_until(lambda: (last() or {}).get("renewals", 0) > 0, "renewals")
