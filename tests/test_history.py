"""The history: each keeper against the contract, what is told of, and what becomes of a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from native_api import form
from registry import Evictor, InstanceStatus
from registry.history import History
from registry.stores.lmdb_history import LmdbHistory
from registry.stores.memory_history import MemoryHistory
from registry.testing import HistorySuite
from tests.in_process import InProcess
from tests.servers import instance_body

BYTES = 4 << 20


class TestMemoryHistory(HistorySuite):
    @pytest.fixture
    def history(self) -> History:
        return MemoryHistory(BYTES)


class TestLmdbHistory(HistorySuite):
    @pytest.fixture
    def history(self, tmp_path: Path) -> History:
        return LmdbHistory(tmp_path / "history", BYTES)


class World(InProcess):
    """A server in this process, asked as a client does."""

    def get(self, path: str, status: int = 200, **headers: str) -> Any:
        reply = self.client.get(f"/api/v1{path}", headers=headers)
        assert reply.status_code == status, reply.text
        return reply.json

    def entries(self, query: str = "", path: str = "/history") -> list[dict[str, Any]]:
        return list(self.get(f"{path}?{query}")["entries"])

    def eureka(self, method: str, path: str, body: str | None = None, **more: Any) -> int:
        self.clock.advance(10)
        headers = {"content-type": "application/json"} | more.pop("headers", {})
        reply = self.client.open(
            f"/eureka{path}", method=method, data=body, headers=headers, **more
        )
        return reply.status_code

    def register(self, app: str = "WEB", instance_id: str = "web:1", **fields: Any) -> None:
        body = instance_body(app, instance_id, **fields)
        assert self.eureka("POST", f"/apps/{app}", body) == 204


@pytest.fixture
def world() -> World:
    return World()


def test_each_change_is_told_with_who_asked_for_it(world: World) -> None:
    """The address is that of the connection, the client what the request calls itself."""
    world.register()
    fields = {"user-agent": "curl/8", "discoveryidentity-name": "DefaultClient"}
    override = "/apps/WEB/web:1/status?value=OUT_OF_SERVICE"
    assert world.eureka("PUT", override, headers=fields) == 200
    assert world.eureka("DELETE", "/apps/WEB/web:1/status?value=UP") == 200
    assert world.eureka("PUT", "/apps/WEB/web:1/metadata?zone=b") == 200
    assert world.eureka("DELETE", "/apps/WEB/web:1") == 200
    told = world.entries()
    assert [entry["kind"] for entry in told] == [
        "cancelled",
        "metadata",
        "override-removed",
        "override",
        "registered",
    ]
    by = {"account": "", "address": "127.0.0.1", "client": "DefaultClient curl/8"}
    assert told[3]["by"] == by
    assert told[3]["detail"] == {"override": "OUT_OF_SERVICE"}
    assert told[3]["instance"]["status"] == "OUT_OF_SERVICE"
    assert told[1]["detail"] == {"metadata": {"zone": {"from": "a", "to": "b"}}}
    assert told == world.entries(path="/instances/web:1/history")
    assert [e["revision"] for e in told] == sorted((e["revision"] for e in told), reverse=True)


class Evicting(World):
    """The same with an evictor, and leases of ten seconds."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.evictor = Evictor(self.whole, self.store)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1000)
            self.evictor.run_once()

    def register_short(self, instance_id: str = "web:1") -> None:
        self.register(instance_id=instance_id, leaseInfo={"durationInSecs": 10})


def test_an_eviction_tells_the_rule_and_the_last_renewal() -> None:
    world = Evicting()
    for number in range(7):
        world.register_short(f"web:{number}")
    renewed = world.clock.wall_ms()
    world.pass_time(12)
    told = world.entries("kind=evicted,expired-but-kept,budget-reached")
    (capped,) = [e for e in told if e["kind"] == "budget-reached"]
    assert (capped["id"], capped["service_name"], capped["by"]) == ("", "", None)
    assert capped["detail"] == {"limit": 2, "waiting": 4}  # the seventh ends a moment later
    first = [entry for entry in told if entry["kind"] == "evicted"]
    assert [(e["rule"], e["by"], e["detail"]["lease_secs"]) for e in first] == [
        ("lease-ended", None, 10)
    ] * 2
    assert all(entry["detail"]["ended_ms_before"] <= 1_000 for entry in first)
    kept = [entry for entry in told if entry["kind"] == "expired-but-kept"]
    assert {entry["rule"] for entry in kept} == {"eviction-budget"}
    assert len({entry["id"] for entry in kept}) == len(kept) == 5
    world.pass_time(65)
    (late, *_) = world.entries("kind=evicted")
    assert late["id"] in {entry["id"] for entry in kept}
    assert late["detail"]["held_by"] == "eviction-budget"
    assert late["detail"]["ended_ms_before"] >= 50_000
    assert late["detail"]["last_renewal"] <= form.instant(renewed)


def test_self_preservation_is_told_and_what_it_keeps() -> None:
    world = Evicting(self_preservation=True)
    world.register_short()
    world.register_short("web:2")
    world.pass_time(30)
    told = world.entries()
    kept = [entry for entry in told if entry["kind"] == "expired-but-kept"]
    assert {(e["id"], e["rule"]) for e in kept} == {
        ("web:1", "self-preservation"),
        ("web:2", "self-preservation"),
    }
    assert len(kept) == 2
    (entered,) = world.entries("kind=preservation-entered")
    assert entered["detail"]["sentence"].startswith("Self-preservation has been on since ")
    for _ in range(120):
        assert world.eureka("PUT", "/apps/WEB/web:1") == 200
        world.pass_time(1)
    (left,) = world.entries("kind=preservation-left")
    assert left["detail"]["sentence"].startswith("Self-preservation is not on")
    (evicted,) = world.entries("kind=evicted")
    assert (evicted["id"], evicted["detail"]["held_by"]) == ("web:2", "self-preservation")


def test_a_status_by_rule_names_the_rule(world: World) -> None:
    """An override that a peer told of is shown at the next renewal."""
    world.register()
    world.registry.store_override(
        "WEB", "web:1", InstanceStatus.OUT_OF_SERVICE, last_dirty_ms=1_800_000_000_000
    )
    assert world.eureka("PUT", "/apps/WEB/web:1") == 200
    told = world.entries()
    assert [(e["kind"], e["rule"]) for e in told] == [
        ("changed", "override"),
        ("override", ""),
        ("registered", ""),
    ]
    assert told[0]["detail"]["changed"] == {"status": {"from": "UP", "to": "OUT_OF_SERVICE"}}
    assert told[1]["detail"] == {"override": "OUT_OF_SERVICE", "peer": True}


def test_a_renewal_is_not_in_the_history(world: World) -> None:
    world.register()
    for _ in range(5):
        assert world.eureka("PUT", "/apps/WEB/web:1") == 200
    assert len(world.entries()) == 1


def test_a_client_that_registers_all_the_time_is_told_of_now_and_then(world: World) -> None:
    """With how often it did, and the newest state."""
    for _ in range(15):
        world.register()
        world.clock.advance(90)
    assert len(world.entries()) == 2
    world.clock.advance(10_000)
    told = world.entries()
    assert [e["kind"] for e in told] == ["registered"] * 3
    assert [e["detail"] for e in told] == [{"again": True, "times": 13}, {"again": True}, {}]
    assert told[0]["revision"] == world.registry.view().revision


def test_what_changed_is_told_field_by_field(world: World) -> None:
    world.register()
    later = {"lastDirtyTimestamp": "1700000001000"}
    world.register(ipAddr="10.0.0.9", metadata={"zone": "b", "v": "2"}, **later)
    world.register(ipAddr="10.0.0.9", metadata={"zone": "b"}, **later)
    metadata, changed, _ = world.entries()
    assert changed["kind"] == "changed"
    assert changed["detail"] == {
        "changed": {"ip_addr": {"from": "10.0.0.1", "to": "10.0.0.9"}},
        "metadata": {"v": {"from": None, "to": "2"}, "zone": {"from": "a", "to": "b"}},
    }
    assert (metadata["kind"], metadata["detail"]) == (
        "metadata",
        {"metadata": {"v": {"from": "2", "to": None}}},
    )


def test_the_registry_is_shown_as_it_was_at_either_api(world: World) -> None:
    world.register()
    world.register("API", "api:1")
    first, one = world.registry.view().revision, rfc3339(world)
    assert world.eureka("PUT", "/apps/WEB/web:1/status?value=OUT_OF_SERVICE") == 200
    assert world.eureka("DELETE", "/apps/API/api:1") == 200
    world.register("NEW", "new:1")
    for at in (one, first, one.replace("Z", "%2B00:00"), one.replace("Z", "+00:00")):
        ids = [each["id"] for each in world.get(f"/instances?at={at}")["instances"]]
        assert ids == ["api:1", "web:1"]
        assert world.get(f"/services?at={at}") == {"services": ["api", "web"]}
        assert world.get(f"/services/api?at={at}")["instances"][0]["id"] == "api:1"
        assert world.get(f"/instances/web:1?at={at}")["status"] == "UP"
        for accept in ("application/json", "application/xml"):
            reply = world.client.get(f"/eureka/apps?at={at}", headers={"accept": accept})
            assert reply.status_code == 200
            assert "api:1" in reply.text
            assert "new:1" not in reply.text
        reply = world.client.get(
            f"/eureka/apps/web?at={at}", headers={"accept": "application/json"}
        )
        assert reply.json["application"]["instance"][0]["status"] == "UP"
        reply = world.client.get(f"/eureka/apps/API/api:1?at={at}")
        assert reply.status_code == 200
        assert world.client.get(f"/eureka/apps/NEW?at={at}").status_code == 404
        assert world.client.get(f"/eureka/apps/NEW/new:1?at={at}").status_code == 404
        world.get(f"/instances/new:1?at={at}", 410)
        world.get(f"/services/new?at={at}", 404)
    now = world.registry.view().revision
    for moment in (f"to={now}", f"to={rfc3339(world)}", ""):
        diff = world.get(f"/diff?from={one}&{moment}")
        assert [each["id"] for each in diff["added"]] == ["new:1"]
        assert [each["id"] for each in diff["removed"]] == ["api:1"]
        ((change),) = diff["changed"]
        assert (change["id"], change["service_name"]) == ("web:1", "web")
        assert (change["from"]["status"], change["to"]["status"]) == ("UP", "OUT_OF_SERVICE")


def test_a_list_of_the_present_is_the_same_as_one_of_this_moment(world: World) -> None:
    """Byte for byte, where nothing was renewed; in each form."""
    for number in range(200):
        world.register(f"APP{number % 3}", f"i{number}", status="DOWN" if number % 7 else "UP")
    at = world.registry.view().revision
    for path in ("/eureka/apps", "/eureka/apps/APP1", "/eureka/apps/APP1/i1"):
        for accept in ("application/json", "application/xml"):
            fields = {"accept": accept}
            now = world.client.get(path, headers=fields)
            then = world.client.get(f"{path}?at={at}", headers=fields)
            assert sorted(then.data) == sorted(now.data)
            assert then.headers["content-type"] == now.headers["content-type"]
    for query in ("status=ALL", "status=UP&fields=id", "service_name=app1", "tags=x"):
        now = world.get(f"/instances?{query}")["instances"]
        then = world.get(f"/instances?{query}&at={at}")["instances"]
        assert sorted(map(str, then)) == sorted(map(str, now))


@pytest.mark.parametrize(
    "path",
    [
        "/history?since=yesterday",
        "/history?until=2026-01-31",
        "/history?kind=gone",
        "/history?limit=0",
        "/history?limit=1001",
        "/history?limit=x",
        "/history?after=1",
        "/history?after=1.2.99999999999",
        "/history?who=ann",
        "/history?since=2026-01-31T12:00:00",
        "/history?since=9999999999999999999999",
        "/instances/a/history?since=x",
        "/instances?at=x",
        "/instances?at=2999-01-01T00:00:00Z",
        "/instances?at=99999999999999999",
        "/instances?at=99999999999999999999999",
        "/instances?at=",
        "/instances?at=2026-01-01T00:00:00Z&q=x",
        "/services?at=-1",
        "/services/a?at=x",
        "/instances/a?at=x",
        "/diff",
        "/diff?from=x",
        "/diff?from=0&to=x",
        "/diff?from=0&of=1",
        "/diff?from=1&to=0",
    ],
)
def test_what_makes_no_sense_is_a_400_that_says_why(world: World, path: str) -> None:
    reply = world.client.get(f"/api/v1{path}")
    assert reply.status_code == 400
    assert reply.content_type == "application/problem+json"
    assert reply.json["detail"]


@pytest.mark.parametrize("at", ["x", "", "2999-01-01T00:00:00Z", "99999999999999999"])
def test_the_protocol_refuses_a_moment_that_makes_no_sense(world: World, at: str) -> None:
    for path in ("apps", "apps/WEB", "apps/WEB/web:1"):
        assert world.client.get(f"/eureka/{path}?at={at}").status_code == 400


def test_a_moment_before_what_is_kept_names_the_earliest(world: World) -> None:
    earliest = form.instant(world.clock.wall_ms())
    assert world.get("/history")["earliest"] == earliest
    for path in ("/instances", "/services", "/services/a", "/instances/a"):
        told = world.get(f"{path}?at=2001-01-01T00:00:00Z", 410)
        assert earliest in told["detail"]
    assert earliest in world.get("/diff?from=2001-01-01T00:00:00Z", 410)["detail"]
    reply = world.client.get("/eureka/apps?at=2001-01-01T00:00:00Z")
    assert (reply.status_code, earliest in reply.text) == (410, True)


def test_of_an_id_that_nobody_knows_there_is_no_history(world: World) -> None:
    world.get("/instances/nobody/history", 404)
    world.register()
    assert world.entries("kind=evicted", "/instances/web:1/history") == []
    assert world.eureka("DELETE", "/apps/WEB/web:1") == 200
    assert len(world.entries(path="/instances/web:1/history")) == 2
    world.register("API", "web:1")
    assert len(world.entries(path="/instances/web:1/history")) == 3
    assert len(world.entries("service_name=web", "/instances/web:1/history")) == 2


def test_pages_of_the_history_follow_each_other(world: World) -> None:
    for number in range(25):
        world.register(instance_id=f"web:{number}")
    whole = world.entries()
    found: list[dict[str, Any]] = []
    page = world.get("/history?limit=10")
    found += page["entries"]
    while page["next"] is not None:
        page = world.get(f"/history?limit=10&after={page['next']}")
        found += page["entries"]
    assert found == whole


def rfc3339(world: World) -> str:
    return form.instant(world.clock.wall_ms())
