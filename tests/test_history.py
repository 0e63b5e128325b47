"""The history: each keeper against the contract, what is told of, and what becomes of a crash."""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.security import generate_password_hash

from eureka_compat import EurekaApi, EurekaSettings
from eureka_http.exchange import Promise, Request
from eureka_server.access import Access, AccessSettings
from native_api import form
from native_api.api import NativeApi
from native_api.settings import NativeSettings
from registry import (
    Clock,
    Evictor,
    Instance,
    InstanceKey,
    InstanceStatus,
    Recorder,
    Registry,
    RegistrySettings,
    SystemClock,
    recording,
    told_instant,
)
from registry.history import ForgottenError, History, HistoryEntry, HistoryKind, Moment, Page, Wish
from registry.model import DEFAULT_NAMESPACE, Namespace, Revision
from registry.stores.lmdb import LmdbStore
from registry.stores.lmdb_history import LmdbHistory
from registry.stores.memory import MemoryStore
from registry.stores.memory_history import MemoryHistory
from registry.testing import (
    HistorySuite,
    ManualClock,
    happened,
    registry_on,
    sample_instance,
)
from tests.in_process import InProcess
from tests.servers import HANG_SECS, instance_body, wait_until

NS = DEFAULT_NAMESPACE
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

    def get(self, path: str, status: int = 200, /, **headers: Any) -> Any:
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


def test_an_operators_change_amid_repetitions_is_told_with_the_name(world: World) -> None:
    """Also where the dirty timestamp stays as it was, and so does what the client says after it."""
    lane = world.gateway.lane({"content-type": "application/json", "host": "x"})
    assert lane is not None

    def register() -> None:
        lane.answer("POST", "/eureka/apps/WEB", instance_body("WEB", "web:1").encode())
        world.gateway.settle()
        world.clock.advance(10)

    for _ in range(4):
        register()
    fields = {"user-agent": "operator"}
    assert world.eureka("PUT", "/apps/WEB/web:1/metadata?zone=b", headers=fields) == 200
    register()
    world.clock.advance(20_000)
    told = [(e["kind"], e["by"]["client"], e["detail"].get("times")) for e in world.entries()]
    assert told == [
        ("metadata", "", None),
        ("metadata", "operator", None),
        ("registered", "", 2),
        ("registered", "", None),
        ("registered", "", None),
    ]


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
        "/history?since=2026-02-30T00:00:00Z",
        "/history?since=2026-01-31T12:00:61Z",
        "/history?since=2026-01-31T12:00:00%2B1:00",
        "/instances/a/history?since=x",
        "/instances?at=x",
        "/instances?at=99999999999999999999999",
        "/instances?at=",
        "/services?at=-1",
        "/services/a?at=x",
        "/instances/a?at=x",
        "/diff",
        "/diff?from=x",
        "/diff?from=0&to=x",
        "/diff?from=0&of=1",
    ],
)
def test_what_makes_no_sense_is_a_400_that_says_why(world: World, path: str) -> None:
    reply = world.client.get(f"/api/v1{path}")
    assert reply.status_code == 400
    assert reply.content_type == "application/problem+json"
    assert reply.json is not None
    assert reply.json["detail"]


@pytest.mark.parametrize(
    ("at", "status"),
    [("x", 400), ("", 400), ("2999-01-01T00:00:00Z", 404), ("99999999999999999", 404)],
)
def test_a_moment_that_makes_no_sense_or_is_to_come_is_refused(
    world: World, at: str, status: int
) -> None:
    for path in ("apps", "apps/WEB", "apps/WEB/web:1"):
        assert world.client.get(f"/eureka/{path}?at={at}").status_code == status
    for path in ("instances", "services", "services/web", "instances/web:1"):
        assert world.get(f"/{path}?at={at}", status)["detail"]
    assert world.get(f"/diff?from={at}", status)["detail"]


def test_the_present_alone_can_be_searched(world: World) -> None:
    for path in ("/instances?at=0&q=x", "/services?at=0&limit=2"):
        assert world.get(path, 404)["detail"] == "only the present can be searched"


@pytest.mark.parametrize(
    ("text", "epoch_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("0000-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999Z", 0),
        ("2026-01-31T12:00:00.1239Z", 1_769_860_800_123),
        ("2026-01-31t12:00:00.5z", 1_769_860_800_500),
        ("2026-01-31T14:00:00+02:00", 1_769_860_800_000),
        ("2026-01-31T14:00:00 02:00", 1_769_860_800_000),
        ("2026-01-31T06:30:00-05:30", 1_769_860_800_000),
        ("2016-12-31T23:59:60Z", 1_483_228_799_000),
    ],
)
def test_an_instant_is_read_as_rfc_3339_has_it(text: str, epoch_ms: int) -> None:
    assert told_instant(text) == epoch_ms


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


# What lies on the disk


def numbered(first: int, count: int, ids: int = 50) -> list[HistoryEntry]:
    return [happened(n, 1_000 + n, f"web:{n % ids}") for n in range(first, first + count)]


def test_it_takes_no_more_of_the_disk_than_it_may(tmp_path: Path) -> None:
    """Also where nobody ever prunes it."""
    history = LmdbHistory(tmp_path, BYTES)
    history.begin({}, 0)
    for start in range(1, 20_000, 500):
        history.add(numbered(start, 500, ids=2_000))
    file = (tmp_path / "data.mdb").stat()
    assert max(file.st_size, file.st_blocks * 512) <= BYTES
    assert history.extent().entries > 1_000
    assert len(list(history.state(NS, Moment()))) == 2_000


def test_it_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = LmdbHistory(tmp_path, BYTES)
    first.begin({}, 0)
    first.add(numbered(1, 200))
    told = first.read(NS, Wish(limit=1000))
    assert len(told.entries) == 200
    first.close()
    second = LmdbHistory(tmp_path, BYTES)
    assert second.read(NS, Wish(limit=1000)) == told
    assert second.extent().earliest_ms == 0


def test_where_it_may_take_less_than_before_it_is_made_smaller(tmp_path: Path) -> None:
    """By who opens it alone: what others have open is not moved away from under them."""
    large = LmdbHistory(tmp_path, 8 * BYTES)
    large.begin({}, 0)
    for start in range(1, 12_000, 1000):
        large.add(numbered(start, 1000))
    data = tmp_path / "data.mdb"
    assert data.stat().st_size > BYTES
    newest = large.read(NS, Wish(limit=100)).entries
    listed = list(large.state(NS, Moment()))
    large.close()
    with (tmp_path / "in-use.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        LmdbHistory(tmp_path, BYTES).close()
        assert data.stat().st_size > BYTES
    small = LmdbHistory(tmp_path, BYTES)
    assert data.stat().st_size <= BYTES
    assert small.read(NS, Wish(limit=100)).entries == newest
    assert list(small.state(NS, Moment())) == listed


@pytest.mark.parametrize("damage", ["cut", "overwritten", "other"])
def test_a_damaged_file_is_put_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    history = LmdbHistory(tmp_path, BYTES)
    history.begin({}, 0)
    history.add(numbered(1, 2_000))
    history.close()
    data = tmp_path / "data.mdb"
    content = data.read_bytes()
    if damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        data.write_bytes(b"\xff" * 8192 + content[8192:])
    else:
        with lmdb.open(str(tmp_path), max_dbs=4) as env:
            with env.begin(write=True) as txn:
                txn.put(b"format", b"99", db=env.open_db(b"meta", txn))
    history = LmdbHistory(tmp_path, BYTES)
    assert "put aside" in caplog.text
    assert history.read(NS, Wish()).entries == []
    assert history.extent().earliest_ms is None
    history.begin({}, 0)
    history.add(numbered(1, 10))
    assert len(history.read(NS, Wish()).entries) == 10
    assert (tmp_path / "damaged.mdb").exists()


def test_where_the_states_alone_are_too_much_it_tells_of_what_happened(tmp_path: Path) -> None:
    """And of all again where it may take more."""
    history = LmdbHistory(tmp_path, BYTES)
    history.begin({}, 0)
    for start in range(1, 12_000, 500):
        history.add(numbered(start, 500, ids=20_000))
        while history.prune(0):
            pass
    assert history.extent().earliest_ms is None
    with pytest.raises(ForgottenError):
        list(history.state(NS, Moment()))
    newest = history.read(NS, Wish(limit=5)).entries
    assert [entry.revision for entry in newest] == [12_000, 11_999, 11_998, 11_997, 11_996]
    file = (tmp_path / "data.mdb").stat()
    assert file.st_size <= BYTES
    history.close()
    larger = LmdbHistory(tmp_path, 16 * BYTES)
    assert larger.extent().earliest_ms is None
    larger.begin({NS: Revision(12_000)}, 20_000)
    assert larger.extent().earliest_ms == 20_000


def test_a_page_looks_at_so_many_entries_and_no_more(tmp_path: Path) -> None:
    """So an answer takes a bounded time, however much there is and however little is wanted."""
    history = LmdbHistory(tmp_path, 256 << 20)
    history.begin({}, 0)
    for start in range(1, 100_001, 5_000):
        history.add(numbered(start, 5_000, ids=10_000))
    pages, wish = [], Wish(kinds=frozenset({HistoryKind.EVICTED}))
    page = history.read(NS, wish)
    while page.before is not None:
        pages.append(page.before[1])
        assert page.entries == []
        page = history.read(NS, wish._replace(before=page.before))
    assert pages == [80_001, 60_001, 40_001, 20_001, 1]
    of_one = history.read(NS, Wish(id="web:7", limit=1000))
    assert [entry.revision for entry in of_one.entries] == list(range(90_007, 0, -10_000))
    assert of_one.before is None


# What a crash or a full disk leaves


class Restarted:
    """A server on a store and a history in a folder, of which there may be several workers."""

    def __init__(self, folder: Path, clock: Clock, beside: Restarted | None = None) -> None:
        self.store: LmdbStore = LmdbStore(folder) if beside is None else beside.store
        if beside is None or not (folder / "history").exists():
            self.history = LmdbHistory(folder / "history", BYTES)
        else:
            self.history = beside.history
        self.recorder = Recorder(self.history, clock, keep_ms=10**9, settled_secs=0.5)
        self.whole = Registry(self.store, clock, RegistrySettings(), self.recorder)
        self.whole.start()
        if self.history.extent().earliest_ms is None:
            self.recorder.begin(self.whole)
        self.registry = self.whole.in_namespace(NS)

    def told(self) -> list[tuple[str, str, bool]]:
        page = self.recorder.read(NS, Wish(limit=1000))
        return [(e.kind, e.id, "made_up" in e.detail) for e in page.entries]

    def reconcile(self) -> int:
        return self.recorder.reconcile(self.whole, {NS: self.registry.view().revision})


def test_what_a_killed_worker_did_not_tell_is_told_from_the_list(tmp_path: Path) -> None:
    """All of it that can be known, once; and then what was listed can be told again."""
    clock = ManualClock()
    killed = Restarted(tmp_path, clock)
    other = Restarted(tmp_path, clock, killed)
    for number in range(4):
        clock.advance(1)
        killed.registry.register(sample_instance(instance_id=f"web:{number}"))
    killed.recorder.flush()
    clock.advance(1)
    killed.registry.set_override("WEB", "web:0", InstanceStatus.DOWN)
    killed.registry.cancel("WEB", "web:1")
    killed.registry.register(sample_instance(instance_id="web:4"))
    other.registry.cancel("WEB", "web:2")
    assert other.told()[0] == ("cancelled", "web:2", False)
    assert len(other.told()) == 5
    assert other.reconcile() == 3
    assert sorted(other.told()[:4]) == [
        ("cancelled", "web:1", True),
        ("cancelled", "web:2", False),
        ("changed", "web:0", True),
        ("registered", "web:4", True),
    ]
    assert other.reconcile() == 0
    view = other.registry.view()
    listed = sorted(i for app in view.applications.values() for i in app.values())
    assert sorted(other.recorder.state(NS, Moment())) == listed


def test_what_happened_without_a_history_is_found_at_the_next_start(tmp_path: Path) -> None:
    """One that was switched off, or lost its folder, begins with what is listed."""
    clock = ManualClock()
    before = Restarted(tmp_path, clock)
    for number in range(4):
        before.registry.register(sample_instance(instance_id=f"web:{number}"))
    before.recorder.stop()
    without = Registry(before.store, clock, RegistrySettings())
    without.start()
    registry = without.in_namespace(NS)
    registry.cancel("WEB", "web:0")
    registry.register(sample_instance(instance_id="web:1", host_name="new"))
    clock.advance(10_000_000)
    before.store.trim(NS, clock.mono_ms())
    before.store.close()
    after = Restarted(tmp_path, clock)
    assert after.reconcile() == 2
    assert sorted(after.told()[:2]) == [("cancelled", "web:0", True), ("registered", "web:1", True)]
    found = {each.id: each.host_name for each in after.recorder.state(NS, Moment())}
    assert found == {"web:1": "new", "web:2": "host.local", "web:3": "host.local"}
    after.recorder.stop()
    shutil.rmtree(tmp_path / "history")
    again = Restarted(tmp_path, clock, after)
    assert again.told() == []
    assert {each.id for each in again.recorder.state(NS, Moment())} == set(found)


def test_a_history_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, one that it goes on; and what was noted meanwhile is told then."""
    server = Restarted(tmp_path, ManualClock())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for number in range(3):
        server.registry.register(sample_instance(instance_id=f"web:{number}"))
        server.recorder.flush()
    assert len(server.registry.view().applications["WEB"]) == 3
    assert server.told() == []
    assert caplog.text.count("goes on without its history") == 1
    monkeypatch.undo()
    assert [told[1] for told in server.told()] == ["web:2", "web:1", "web:0"]
    assert caplog.text.count("the history goes on") == 1
    assert server.recorder.lost == 0


def test_what_waits_for_a_history_is_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Restarted(tmp_path, ManualClock())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(recording, "_MOST_WAITING", 5)
    monkeypatch.setattr(recording, "_MOST_NOTED", 8)
    for number in range(10):
        server.registry.register(sample_instance(instance_id=f"web:{number}"))
    assert server.recorder.lost == 2
    server.recorder.flush()
    assert server.recorder.lost == 5
    monkeypatch.undo()
    assert [told[1] for told in server.told()] == [f"web:{n}" for n in (7, 6, 5, 4, 3)]
    assert server.reconcile() == 5
    assert len(list(server.recorder.state(NS, Moment()))) == 10


def test_what_cannot_be_written_at_all_holds_up_none_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Restarted(tmp_path, ManualClock())
    for number in range(3):
        server.registry.register(sample_instance(instance_id=f"web:{number}"))
        server.registry.record(HistoryKind.DRAINED, InstanceKey("WEB", ""), of=object())
    assert [told[1] for told in server.told()] == ["web:2", "web:1", "web:0"]
    assert server.recorder.lost == 3
    assert caplog.text.count("the history cannot hold an entry") == 3


@pytest.mark.parametrize(
    ("noted", "pauses"),
    [
        # Told of as 25, 25 and 10; packed and written at once.
        (60, 2),
        # Told of in 50 portions, written as five, and each of those packed as five: were a portion
        # as small as it may be, the thread would not keep pace with a storm.
        (2_500, 49 + 5 * 4 + 4),
    ],
)
def test_whoever_waits_for_the_interpreter_has_a_turn_while_much_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: int, pauses: int
) -> None:
    server = Restarted(tmp_path, ManualClock())
    for number in range(noted):
        server.registry.register(sample_instance(instance_id=f"web:{number}"))
    turns: list[float] = []
    monkeypatch.setattr(time, "sleep", turns.append)
    server.recorder.flush()
    assert turns == [0.001] * pauses
    assert server.recorder.extent().entries == noted


def test_the_thread_writes_what_was_noted_and_makes_up_for_the_rest(tmp_path: Path) -> None:
    """On the machine's clock, as a worker has it."""
    clock = SystemClock()
    killed = Restarted(tmp_path, clock)
    killed.registry.register(sample_instance())
    other = Restarted(tmp_path, clock, killed)
    history = other.history
    other.recorder.start(other.whole)
    other.registry.register(sample_instance(instance_id="web:2"))
    wait_until(lambda: len(history.read(NS, Wish()).entries) == 2)
    told = {e.id: "made_up" in e.detail for e in history.read(NS, Wish()).entries}
    assert told == {"web:1": True, "web:2": False}
    other.registry.cancel("WEB", "web:2")
    other.recorder.stop()
    assert LmdbHistory(tmp_path / "history", BYTES).read(NS, Wish()).entries[0].removed


# Who asked, and who may see it


def test_the_account_is_told_and_no_secret(tmp_path: Path) -> None:
    """A named proxy may say from where; the client's word for itself is masked, and cut."""
    users = tmp_path / "users"
    users.write_text(f"ann default admin {generate_password_hash('s3cret', 'pbkdf2:sha256:1')}\n")
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)
    access = AccessSettings(mode="basic", users_file=users, trusted_proxies=proxies)
    world = World(access=Access(access))
    fields = {
        "authorization": "Basic " + base64.b64encode(b"ann:s3cret").decode(),
        "x-forwarded-for": "10.9.9.9, 10.0.0.7",
        "user-agent": "tool http://ann:s3cret@host/ " + "x" * 200,
    }
    body = instance_body("WEB", "web:1")
    assert world.eureka("POST", "/apps/WEB", body, headers=fields) == 204
    (entry,) = world.get("/history", authorization=fields["authorization"])["entries"]
    assert (entry["by"]["account"], entry["by"]["address"]) == ("ann", "10.0.0.7")
    assert entry["by"]["client"].startswith("tool http://…@host/ xxx")
    assert len(entry["by"]["client"]) == 128
    assert "s3cret" not in str(world.get("/history", authorization=fields["authorization"]))
    world.get("/history", 401)


class HeldUp(MemoryHistory):
    """Whose reading takes until it is let go."""

    def __init__(self) -> None:
        super().__init__(BYTES)
        self.reading = threading.Semaphore(0)
        self.may_go_on = threading.Event()

    def read(self, namespace: Namespace, wish: Wish) -> Page:
        self.reading.release()
        assert self.may_go_on.wait(HANG_SECS)
        return super().read(namespace, wish)


def test_who_looks_up_the_past_leaves_threads_to_the_others() -> None:
    """Once, some clients that asked for the past had all threads, and probes failed meanwhile."""
    history = HeldUp()
    world = World(history=history)
    client = world.client.application.test_client
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client().get, "/api/v1/history") for _ in range(4)]
        try:
            for _ in asked:
                assert history.reading.acquire(timeout=HANG_SECS)
            for costly in (
                "history",
                "diff?from=0",
                "findings",
                "series",
                "readers",
                "export",
                "instances?at=0",
                "instances/a?at=0",
                "instances/a/why",
                "instances/a/history",
                "instances?q=a",
                "services/a?at=0",
                "services?limit=1",
            ):
                reply = client().get(f"/api/v1/{costly}")
                assert (reply.status_code, reply.headers["retry-after"]) == (429, "1"), costly
            assert client().get("/api/v1/instances").status_code == 200
            assert client().get("/api/v1/status").status_code == 200
            world.register()
        finally:
            history.may_go_on.set()
        assert [each.result().status_code for each in asked] == [200] * 4
    assert client().get("/api/v1/history").status_code == 200


def test_the_history_of_a_namespace_shows_there_alone() -> None:
    world = World(access=Access(AccessSettings(mode="trusted")))
    for name in ("red", "blue"):
        fields = {"authorization": f"Bearer {name}"}
        body = instance_body("WEB", f"of-{name}")
        assert world.eureka("POST", "/apps/WEB", body, headers=fields) == 204
    at = rfc3339(world)
    for name in ("red", "blue"):
        fields = {"authorization": f"Bearer {name}"}
        assert [e["id"] for e in world.get("/history", **fields)["entries"]] == [f"of-{name}"]
        listed = world.get(f"/instances?at={at}", **fields)["instances"]
        assert [each["id"] for each in listed] == [f"of-{name}"]
        assert world.get("/diff?from=0", **fields)["added"][0]["id"] == f"of-{name}"
        world.get(f"/instances/of-{'red' if name == 'blue' else 'blue'}/history", 404, **fields)
    assert "of-" not in str(world.get("/history", authorization="Bearer green"))


def test_who_registers_in_the_fast_lane_is_told_too() -> None:
    """The address is the connection's, which the event loop gives the promise."""
    world = World()
    headers = {"content-type": "application/json", "user-agent": "java/21", "host": "x"}
    lane = world.gateway.lane(headers)
    assert lane is not None
    promises = []
    for number in range(2):
        body = instance_body("WEB", f"web:{number}").encode()
        promise = lane.answer("POST", "/eureka/apps/WEB", body)
        assert isinstance(promise, Promise)
        promise.peer = f"10.0.0.{number}"
        promises.append(promise)
    world.gateway.settle()
    assert [(e["id"], e["by"]["address"], e["by"]["client"]) for e in world.entries()] == [
        ("web:1", "10.0.0.1", "java/21"),
        ("web:0", "10.0.0.0", "java/21"),
    ]


def test_what_a_catalog_lists_is_told_as_its_own(world: World) -> None:
    """Nobody asked for it: the source says where it is from."""
    world.registry.register(sample_instance(source="file:main"))
    (entry,) = world.entries()
    assert (entry["by"], entry["instance"]["source"]) == (None, "file:main")


def test_without_a_history_there_is_a_404_and_the_lists_are_as_ever() -> None:
    registry = registry_on(MemoryStore(), ManualClock())
    registry.record(HistoryKind.DRAINED, InstanceKey("WEB", ""))
    assert registry.history is None
    api = NativeApi(registry, NativeSettings())
    for path, query in (("history", ""), ("diff", "from=0"), ("instances", "at=0")):
        request = Request("GET", f"/api/v1/{path}", query, {}, lambda _: b"")
        answer = api.answer(request)
        assert answer is not None
        assert answer.status == 404
        assert b"no history is kept" in answer.body
    eureka = EurekaApi(registry, EurekaSettings())
    answer = eureka.answer(Request("GET", "/", "at=0", {}, lambda _: b""), "apps")
    assert answer is not None
    assert (answer.status, answer.body) == (404, b"no history is kept here")


# Against a model


class Operation(NamedTuple):
    """Something that is done to one of a few instances."""

    what: str
    number: int
    value: int


operations = st.lists(
    st.builds(
        Operation,
        st.sampled_from(
            [
                "register",
                "again",
                "cancel",
                "override",
                "remove",
                "renew",
                "evict",
                "prune",
                "flush",
            ]
        ),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@given(done=operations)
@settings(max_examples=100)
def test_what_was_listed_is_what_a_model_says(
    done: list[Operation], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At each revision and instant from the earliest on, and so is each difference."""
    with ExitStack() as opened:
        history: History = MemoryHistory(BYTES)
        if kind == "lmdb":
            history = LmdbHistory(tmp_path_factory.mktemp("history"), BYTES)
            opened.callback(history.close)
        check_against_model(World(history=history), history, done)


def check_against_model(world: World, history: History, done: list[Operation]) -> None:
    registry, clock = world.registry, world.clock

    def listed() -> dict[str, Instance]:
        view = registry.view()
        return {i.id: i for app in view.applications.values() for i in app.values()}

    states = [(clock.wall_ms(), registry.view().revision, listed())]
    for number, (what, which, value) in enumerate(done, 1):
        clock.advance(20)
        key = InstanceKey("WEB", f"web:{which}")
        match what:
            case "register":
                metadata = {"v": str(value)}
                instance = sample_instance(*key, metadata=metadata, last_dirty_ms=1_000 + number)
                registry.register(instance)
            case "again":
                registry.amend(*key, lambda listed: listed)
            case "cancel":
                registry.cancel(*key)
            case "override":
                registry.set_override(*key, list(InstanceStatus)[value])
            case "remove":
                registry.remove_override(*key, list(InstanceStatus)[value])
            case "renew":
                registry.renew(*key)
            case "evict":
                lease = registry.lease(key)
                registry.evict([(key, lease)] if lease is not None else [])
            case "prune":
                world.recorder.flush()
                while history.prune(clock.wall_ms() - 100 * value):
                    pass
            case "flush":
                world.recorder.flush()
        states.append((clock.wall_ms(), registry.view().revision, listed()))
    earliest = world.recorder.extent().earliest_ms
    assert earliest is not None
    told = [state for state in states if state[0] >= earliest]
    repeated = {o.number for o in done if o.what == "again"}

    def shown(instances: Iterable[Instance]) -> dict[str, tuple[Any, ...]]:
        """Who registers again unchanged is told of once in ten seconds: but for the instants."""
        behind = Instance._fields.index("revision")
        found = {}
        for each in instances:
            is_exact = int(each.id.rpartition(":")[2]) not in repeated
            found[each.id] = tuple(each) if is_exact else tuple(each)[:behind]
        return found

    for at_ms, revision, expected in told:
        for moment in (Moment(at_ms), Moment(at_ms + 19), Moment(revision=revision)):
            try:
                found = list(world.recorder.state(NS, moment))
            except ForgottenError:
                assert moment.revision is not None  # pruned up to a later revision
                continue
            assert shown(found) == shown(expected.values())
    if told:
        first, last = told[0], told[-1]
        pairs = list(world.recorder.differences(NS, Moment(first[0]), Moment(last[0])))
        expected_pairs = {
            name: (first[2].get(name), last[2].get(name))
            for name in first[2].keys() | last[2].keys()
            if first[2].get(name) != last[2].get(name)
        }
        exact = [name for name in expected_pairs if int(name[-1]) not in repeated]
        found_pairs = {(b or a).id: (a, b) for a, b in pairs if (b or a) is not None}  # type: ignore[union-attr]
        assert {n: found_pairs[n] for n in exact} == {n: expected_pairs[n] for n in exact}
        assert {n for n in found_pairs if int(n[-1]) not in repeated} == set(exact)
