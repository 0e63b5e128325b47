"""A registry moved from one server to another: what comes across, what is refused, what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from native_api.transfer import FORMAT, MEDIA_TYPE, VERSION
from registry import InstanceKey
from registry.errors import StoreAwayError
from registry.store import Commit
from registry.testing import sample_instance
from tests.servers import instance_body
from tests.test_native_api import World, problem

HEADER = {"kind": "header", "format": FORMAT, "version": VERSION, "namespace": "default"}


def exported(world: World) -> list[dict[str, Any]]:
    reply = world.send("GET", "/export")
    assert (reply.status_code, reply.content_type) == (200, MEDIA_TYPE)
    return [json.loads(line) for line in reply.text.splitlines()]


def imported(world: World, *lines: Any) -> TestResponse:
    body = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    return world.client.post("/api/v1/import", data=body, content_type=MEDIA_TYPE)


def taken(world: World, *lines: Any) -> dict[str, Any]:
    reply = imported(world, *lines)
    assert reply.status_code == 200, reply.text
    return dict(reply.json)


def listed(world: World) -> list[dict[str, Any]]:
    """All that both APIs show, but for what each server makes itself."""
    shown = world.send("GET", "/instances?status=ALL").json["instances"]
    mine = [
        {k: v for k, v in each.items() if k not in ("revision", "last_heartbeat")} for each in shown
    ]
    apps = world.eureka("GET", "/apps").json["applications"]["application"]
    theirs = [each for app in apps for each in app["instance"]]
    for each in theirs:
        for name in ("leaseInfo", "lastUpdatedTimestamp", "actionType"):
            del each[name]
    return sorted([*mine, *theirs], key=json.dumps)


def full() -> World:
    """Instances of each kind, with what can be said of them."""
    world = World()
    world.register("Reviews", tags=["v2"], metadata={"deep": {"a": [1]}}, status="canary", ttl=60)
    other = world.register("ratings", endpoint={"type": "tcp", "value": "10.0.0.8:1"})
    world.eureka("PUT", f"/apps/RATINGS/{other}/metadata?zone=b")
    world.send("PUT", f"/instances/{other}/override", {"status": "DOWN"})
    world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1"))
    world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:2", status="STARTING"))
    world.send("PUT", "/instances/shop:1/override", {"status": "OUT_OF_SERVICE"})
    amazon = {"@class": "com.netflix.appinfo.AmazonInfo", "name": "Amazon"}
    amazon |= {"metadata": {"instance-id": "i-1", "availability-zone": "eu-1a"}}
    world.eureka("POST", "/apps/CLOUD", instance_body("CLOUD", "i-1", dataCenterInfo=amazon))
    return world


def test_what_is_listed_here_is_listed_there() -> None:
    here, there = full(), World()
    there.clock.advance(77_777)
    lines = exported(here)
    assert taken(there, *lines) == {"taken": 5, "kept": 0, "of_catalogs": 0, "refused": []}
    assert listed(there) == listed(here)
    assert there.registry.view().overrides == here.registry.view().overrides


def test_importing_twice_is_once() -> None:
    there = World()
    lines = exported(full())
    taken(there, *lines)
    revision = there.registry.view().revision
    assert taken(there, *lines)["kept"] == 5
    assert there.registry.view().revision == revision


def test_what_the_store_did_not_answer_for_is_no_refused_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be listed or not: who imports is to do it again."""
    lines, there = exported(full()), World()

    def lose_all(namespace: Any, commits: Sequence[Commit], fence: Any = None) -> list[None]:
        return [None] * len(commits)

    def fail(*_: Any) -> None:
        raise StoreAwayError("away")

    monkeypatch.setattr(there.store, "commit_all", lose_all)
    monkeypatch.setattr(there.store, "commit", fail)
    reply = imported(there, *lines)
    assert (reply.status_code, "retry-after" in reply.headers) == (503, True)


def test_an_export_of_what_was_imported_is_the_same() -> None:
    here, there = full(), World()
    lines = exported(here)
    taken(there, *lines)
    assert [line for line in exported(there) if line["kind"] == "instance"] == [
        line for line in lines if line["kind"] == "instance"
    ]


def test_a_lease_goes_on_where_it_stood() -> None:
    here, there = World(), World()
    body = instance_body("SHOP", "shop:1", leaseInfo={"durationInSecs": 90})
    here.eureka("POST", "/apps/SHOP", body)
    here.pass_time(60)
    taken(there, *exported(here))
    there.pass_time(29)
    assert there.shown("shop:1")["status"] == "UP"
    there.pass_time(2)
    problem(there.send("GET", "/instances/shop:1"), 410)


def test_a_renewal_that_only_the_export_knows_lengthens_the_lease() -> None:
    here, there = World(), World()
    for world in (here, there):
        world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1"))
    there.pass_time(80)
    assert taken(there, *exported(here))["kept"] == 1
    there.pass_time(80)
    assert there.shown("shop:1")["status"] == "UP"


def test_the_newest_dirty_timestamp_wins() -> None:
    here, there = World(), World()

    def register(world: World, zone: str, dirty: int) -> None:
        body = instance_body(
            "SHOP", "shop:1", metadata={"zone": zone}, lastDirtyTimestamp=str(dirty)
        )
        world.eureka("POST", "/apps/SHOP", body)

    register(here, "old", 1_000)
    register(there, "new", 2_000)
    assert taken(there, *exported(here))["kept"] == 1
    assert there.shown("shop:1")["metadata"] == {"zone": "new"}
    register(here, "newest", 3_000)
    assert taken(there, *exported(here))["taken"] == 1
    assert there.shown("shop:1")["metadata"] == {"zone": "newest"}


def test_of_what_is_alike_an_override_comes_across_and_one_that_stands_stays() -> None:
    here, there = World(), World()
    for world in (here, there):
        world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1"))
    here.send("PUT", "/instances/shop:1/override", {"status": "OUT_OF_SERVICE"})
    assert taken(there, *exported(here))["taken"] == 1
    assert there.shown("shop:1")["status"] == "OUT_OF_SERVICE"
    here.send("PUT", "/instances/shop:1/override", {"status": "DOWN"})
    assert taken(there, *exported(here))["kept"] == 1
    assert there.shown("shop:1")["status"] == "OUT_OF_SERVICE"


def test_what_is_imported_is_told_to_peers() -> None:
    there = World()
    taken(there, *exported(full()))
    view = there.registry.view()
    assert {i.peers_know for each in view.applications.values() for i in each.values()} == {False}


def test_what_a_catalog_lists_is_exported_and_left_to_the_catalog() -> None:
    here, there = World(), World()
    here.registry.register(sample_instance("CART", "cart:1", source="kubernetes:main"))
    lines = exported(here)
    assert (lines[1]["source"], lines[1]["lease_remaining_ms"]) == ("kubernetes:main", None)
    assert taken(there, *lines)["of_catalogs"] == 1
    assert there.registry.view().applications == {}


def test_an_instance_that_is_anothers_here_is_refused() -> None:
    here, there = World(), World()
    here.eureka("POST", "/apps/CART", instance_body("CART", "cart:1"))
    there.registry.register(sample_instance("CART", "cart:1", source="kubernetes:main"))
    assert taken(there, *exported(here))["refused"] == [
        {
            "line": 2,
            "id": "cart:1",
            "detail": "CART/cart:1 belongs to the source 'kubernetes:main'",
        }
    ]


def test_there_is_no_room_for_more_than_the_settings_say() -> None:
    there = World(max_instances=3)
    told = taken(there, *exported(full()))
    assert (told["taken"], len(told["refused"])) == (3, 2)
    assert told["refused"][0]["detail"] == "this namespace may hold 3 instances"


# What is no export


def line_of(change: Callable[[dict[str, Any]], Any], *, native: bool = False) -> dict[str, Any]:
    """An instance's line with something in it changed."""
    world = World()
    if native:
        world.register("reviews")
    else:
        world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1"))
    line = exported(world)[1]
    change(line)
    return line


@pytest.mark.parametrize(
    ("first", "status", "told"),
    [
        (b"", 400, "line 1: this is no JSON"),
        (b"\xff", 400, "line 1: this is no JSON"),
        (b"[]", 400, "line 1: expected a JSON object"),
        ({}, 400, "line 1: this is no export of a registry"),
        (HEADER | {"format": "other"}, 400, "line 1: this is no export of a registry"),
        (HEADER | {"version": "1"}, 400, "line 1: the export has no version"),
        (HEADER | {"version": True}, 400, "line 1: the export has no version"),
        (HEADER | {"version": 2}, 409, "the export is of version 2, and this server reads up to 1"),
        (HEADER | {"namespace": "a"}, 409, "this is the namespace 'default', and the export is of"),
    ],
)
def test_a_first_line_that_is_not_an_exports_is_refused(first: Any, status: int, told: str) -> None:
    there = World()
    reply = imported(there, first, line_of(lambda line: None))
    problem(reply, status)
    assert reply.json["detail"].startswith(told)
    assert there.registry.view().applications == {}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "this is no JSON: "),
        (b"1", "expected a JSON object"),
        ({"kind": "more"}, "expected a line of the kind instance"),
        (line_of(lambda line: line.pop("source")), "source: expected a text"),
        (line_of(lambda line: line.pop("instance")), "instance: expected a JSON object"),
        (line_of(lambda line: line["instance"].pop("app")), "app: expected a text"),
        (line_of(lambda line: line["instance"].update(id="")), "id: expected a text"),
        (
            line_of(lambda line: line["instance"].update(status="BUSY")),
            "status: expected one of UP",
        ),
        (line_of(lambda line: line["instance"].update(port="80")), "port: expected a whole number"),
        (
            line_of(lambda line: line["instance"].update(port=2**31)),
            "port: expected a whole number",
        ),
        (line_of(lambda line: line["instance"].update(metadata={"a": 1})), "metadata: expected a"),
        (line_of(lambda line: line["instance"].update(data_center={})), "data_center: name: "),
        (line_of(lambda line: line["instance"].update(last_dirty_ms=1e300)), "last_dirty_ms: "),
        (
            line_of(lambda line: line["instance"].update(id="x" * 500)),
            "application and instance id",
        ),
        (line_of(lambda line: line["instance"].update(id="x\0")), "application and instance id"),
        (line_of(lambda line: line.update(override="BUSY")), "override: expected one of UP"),
        (line_of(lambda line: line.update(override=[])), "override: expected one of UP"),
        (line_of(lambda line: line.update(lease_remaining_ms=-1)), "lease_remaining_ms: expected"),
        (line_of(lambda line: line.pop("registration"), native=True), "registration: expected a"),
        (line_of(lambda line: line.pop("address"), native=True), "address: expected a text"),
        (
            line_of(lambda line: line["registration"].pop("endpoint"), native=True),
            "endpoint: Missing data for required field.",
        ),
        (
            line_of(
                lambda line: line["registration"].update(metadata={"a": "x" * 2000}), native=True
            ),
            "metadata: 1024 bytes as JSON at most",
        ),
    ],
)
def test_a_line_that_says_nothing_is_refused_and_the_others_are_taken(line: Any, told: str) -> None:
    there = World()
    good = line_of(lambda each: each["instance"].update(id="good"))
    answer = taken(there, HEADER, line, good)
    assert (answer["taken"], [each["line"] for each in answer["refused"]]) == (1, [2])
    assert answer["refused"][0]["detail"].startswith(told)
    assert list(there.registry.view().applications["SHOP"]) == ["good"]


def test_fields_of_a_later_version_are_passed_over_and_missing_ones_are_the_defaults() -> None:
    there = World()

    def change(line: dict[str, Any]) -> None:
        line["colour"] = line["instance"]["colour"] = "blue"
        for name in ("instance_id", "vip_address", "metadata", "port", "data_center"):
            del line["instance"][name]

    assert taken(there, HEADER | {"colour": "blue"}, line_of(change))["taken"] == 1
    instance = there.registry.view().get(InstanceKey("SHOP", "shop:1"))
    assert instance is not None
    assert (instance.instance_id, instance.port) == ("shop:1", 7001)
    assert (instance.vip_address, instance.metadata) == (None, {})


def test_another_media_type_is_refused() -> None:
    problem(World().client.post("/api/v1/import", data=b"{}", content_type="text/plain"), 415)


def test_more_than_one_request_may_have_is_refused() -> None:
    body = json.dumps(HEADER).encode() + b"\n" + b" " * 5_000_000
    reply = World().client.post("/api/v1/import", data=body, content_type=MEDIA_TYPE)
    problem(reply, 413)
    assert reply.json["detail"] == "the body is longer than 4194304 bytes"


def test_lines_that_say_nothing_are_not_answered_for_by_the_million() -> None:
    """Once, 4 MiB of them had an answer of 120 MB, and took several times that as memory."""
    world = World()
    head = json.dumps(HEADER).encode()
    for lines, status in ((20_000, 200), (20_001, 413)):
        reply = world.client.post(
            "/api/v1/import", data=head + b"\n1" * lines, content_type=MEDIA_TYPE
        )
        assert reply.status_code == status
    assert reply.json["detail"] == "the body has more than 20000 lines"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
SAMPLES = [line_of(lambda line: None), line_of(lambda line: None, native=True)]


@given(data=st.data())
def test_whatever_stands_in_a_line_it_is_taken_whole_or_refused(data: st.DataObject) -> None:
    line = json.loads(json.dumps(data.draw(st.sampled_from(SAMPLES))))
    place = line
    inner = [name for name in ("instance", "registration") if name in line]
    if inner and data.draw(st.booleans()):
        place = line[inner[0]]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    there = World()
    answer = taken(there, HEADER, line)
    there.eureka("GET", "/apps")
    assert answer["taken"] + answer["of_catalogs"] + len(answer["refused"]) in (0, 1)
    assert len(exported(there)) == 2 + answer["taken"]
