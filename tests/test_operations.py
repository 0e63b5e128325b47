"""An operator's operations, whichever door the instances came by: on one, and on all of a service.

What only one client at a time can show is here; what several do at once, in ``tests/histories``.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from registry import InstanceStatus
from registry.testing import sample_instance
from tests.servers import instance_body
from tests.test_native_api import World, problem

CATALOG = "kubernetes:main"
LISTED_BY = (
    f"'listed:1' is listed by the catalog {CATALOG!r}, whose source alone can change it or take it"
    " out"
)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=["eureka", "native"])
def identity(request: pytest.FixtureRequest, world: World) -> str:
    """An instance of ``reviews`` that registered at either door."""
    if request.param == "native":
        return world.register(metadata={"zone": "a", "weight": 3})
    body = instance_body("REVIEWS", "reviews:1", metadata={"zone": "a", "weight": "3"})
    assert world.eureka("POST", "/apps/REVIEWS", body).status_code == 204
    return "reviews:1"


def beat(world: World, identity: str) -> int:
    """The status of the answer to a heartbeat, at the door that it registered at."""
    if world.shown(identity)["source"] == "native":
        return world.send("PUT", f"/instances/{identity}/heartbeat").status_code
    return world.eureka("PUT", f"/apps/REVIEWS/{identity}").status_code


def listed_by_a_catalog(world: World, app: str = "REVIEWS") -> None:
    world.registry.register(sample_instance(app, "listed:1", source=CATALOG))


def detail(reply: Any, status: int) -> str:
    problem(reply, status)
    return str(reply.json["detail"])


def statuses(world: World, service: str = "reviews") -> dict[str, str]:
    shown = world.send("GET", f"/services/{service}?fields=status").json["instances"]
    return {each["id"]: each["status"] for each in shown}


# Overrides


def test_an_override_stands_above_what_the_instance_says(world: World, identity: str) -> None:
    reply = world.send("PUT", f"/instances/{identity}/override", {"status": "out_of_service"})

    assert (reply.status_code, reply.json) == (200, world.shown(identity))
    assert reply.json["status"] == "OUT_OF_SERVICE"
    assert world.eureka_instance()["overriddenStatus"] == "OUT_OF_SERVICE"
    assert beat(world, identity) == 200
    assert world.shown(identity)["status"] == "OUT_OF_SERVICE"


def test_an_override_that_is_taken_away_has_the_client_say_its_status(
    world: World, identity: str
) -> None:
    world.send("PUT", f"/instances/{identity}/override", {"status": "OUT_OF_SERVICE"})

    reply = world.send("DELETE", f"/instances/{identity}/override")

    assert (reply.status_code, reply.json["status"]) == (200, "UNKNOWN")
    assert beat(world, identity) in (404, 410)
    if reply.json["source"] == "native":
        assert world.register() == identity
    else:
        world.eureka("POST", "/apps/REVIEWS", instance_body("REVIEWS", identity))
    assert world.shown(identity)["status"] == "UP"


def test_the_status_after_an_override_can_be_named(world: World, identity: str) -> None:
    world.send("PUT", f"/instances/{identity}/override", {"status": "OUT_OF_SERVICE"})
    assert world.send("DELETE", f"/instances/{identity}/override?status=up").json["status"] == "UP"
    assert beat(world, identity) == 200
    assert world.eureka_instance()["overriddenStatus"] == "UNKNOWN"


def test_an_override_that_is_not_there_is_taken_away_without_a_change(
    world: World, identity: str
) -> None:
    before = world.shown(identity)
    reply = world.send("DELETE", f"/instances/{identity}/override")
    assert (reply.status_code, reply.json) == (200, before)


@pytest.mark.parametrize(
    "document", [{}, {"status": "UNKNOWN"}, {"status": "canary"}, {"status": 1}, {"status": None}]
)
def test_a_status_that_is_none_is_refused_and_nothing_changes(
    world: World, identity: str, document: dict[str, Any]
) -> None:
    before = world.shown(identity)
    for path in (f"/instances/{identity}/override", "/services/reviews/override"):
        assert list(problem(world.send("PUT", path, document), 400)) == ["status"]
    problem(world.send("DELETE", f"/instances/{identity}/override?status=canary"), 400)
    problem(world.send("DELETE", "/services/reviews/override?status=canary"), 400)
    assert world.shown(identity) == before


# Metadata


def test_metadata_are_put_in_and_taken_away_and_the_others_stay(
    world: World, identity: str
) -> None:
    patch = {"zone": "b", "canary": True, "weight": None, "never": None}

    reply = world.send("PATCH", f"/instances/{identity}/metadata", patch)

    shown = world.shown(identity)
    is_native = shown["source"] == "native"
    assert (reply.status_code, reply.json) == (200, shown)
    assert shown["metadata"] == {"zone": "b", "canary": True if is_native else "true"}
    assert world.eureka_instance()["metadata"] == {"zone": "b", "canary": "true"}
    assert beat(world, identity) == 200


def test_metadata_change_while_an_override_stands_and_it_stays(world: World, identity: str) -> None:
    world.send("PUT", f"/instances/{identity}/override", {"status": "DOWN"})
    world.send("PATCH", f"/instances/{identity}/metadata", {"zone": "b"})
    assert world.shown(identity)["status"] == "DOWN"
    assert world.registry.view().overrides == {identity: InstanceStatus.DOWN}


@pytest.mark.parametrize("patch", [{}, [], None, {"": "x"}, {"n" * 129: 1}, {"a\nb": 1}])
def test_a_patch_that_is_none_is_refused_and_nothing_changes(
    world: World, identity: str, patch: Any
) -> None:
    before = world.shown(identity)
    body = json.dumps(patch)
    reply = world.client.patch(
        f"/api/v1/instances/{identity}/metadata", data=body, content_type="application/json"
    )
    problem(reply, 400)
    assert world.shown(identity) == before


def test_metadata_that_get_too_large_are_refused_and_nothing_changes(
    world: World, identity: str
) -> None:
    most = 1024 if world.shown(identity)["source"] == "native" else 64 * 1024
    world.send("PATCH", f"/instances/{identity}/metadata", {"a": "x" * (most // 2)})
    before = world.shown(identity)
    patch = {"b": "x" * (most // 2)}
    problem(world.send("PATCH", f"/instances/{identity}/metadata", patch), 400)
    assert world.shown(identity) == before


def test_metadata_that_are_no_object_have_no_names_to_change(world: World) -> None:
    identity = world.register(metadata=["a"])
    problem(world.send("PATCH", f"/instances/{identity}/metadata", {"b": 1}), 409)
    assert world.shown(identity)["metadata"] == ["a"]


# Removal


def test_what_registered_at_either_door_can_be_taken_out(world: World, identity: str) -> None:
    world.send("PUT", f"/instances/{identity}/override", {"status": "DOWN"})

    assert world.send("DELETE", f"/instances/{identity}").status_code == 200

    problem(world.send("DELETE", f"/instances/{identity}"), 410)
    assert world.registry.view().overrides == {}
    assert world.eureka("GET", "/apps/REVIEWS").status_code == 404


@pytest.mark.parametrize("identity", ["http://10.0.0.1:80/", "a b", "ä:1", "x/override", "%2F"])
def test_whatever_its_id_looks_like_an_instance_can_be_taken_out(
    world: World, identity: str
) -> None:
    world.eureka("POST", "/apps/REVIEWS", instance_body("REVIEWS", identity))
    path = f"/instances/{quote(identity, safe='')}"
    assert world.send("PUT", f"{path}/override", {"status": "DOWN"}).json["status"] == "DOWN"
    assert world.send("DELETE", path).status_code == 200
    problem(world.send("GET", path), 410)


def test_an_instance_that_is_unknown_cannot_be_operated_on(world: World) -> None:
    problem(world.send("PUT", "/instances/nobody/override", {"status": "DOWN"}), 410)
    problem(world.send("DELETE", "/instances/nobody/override"), 410)
    problem(world.send("PATCH", "/instances/nobody/metadata", {"a": 1}), 410)
    problem(world.send("DELETE", "/instances/nobody"), 410)


def test_an_expired_instance_that_is_still_listed_can_be_taken_out(
    world: World, identity: str
) -> None:
    world.clock.advance(100_000)
    assert world.send("DELETE", f"/instances/{identity}").status_code == 200
    assert world.registry.view().applications == {}


# Which is meant


def test_of_two_services_with_one_id_the_named_one_is_meant(world: World) -> None:
    for app in ("SHOP", "CART"):
        world.eureka("POST", f"/apps/{app}", instance_body(app, "one"))
    for method, path, document in (
        ("PUT", "/override", {"status": "DOWN"}),
        ("DELETE", "/override", None),
        ("PATCH", "/metadata", {"a": "b"}),
        ("DELETE", "", None),
    ):
        reply = world.send(method, f"/instances/one{path}", document)
        assert list(problem(reply, 409)) == ["service_name"]
        assert reply.json["detail"] == "'one' is an id in several services: 'cart', 'shop'"

    patched = world.send("PATCH", "/instances/one/metadata?service_name=cart", {"a": "b"}).json
    assert (patched["service_name"], patched["metadata"]) == ("cart", {"zone": "a", "a": "b"})
    assert world.send("GET", "/instances/one?service_name=shop").json["metadata"] == {"zone": "a"}
    assert world.send("DELETE", "/instances/one?service_name=shop").status_code == 200
    assert world.shown("one")["service_name"] == "cart"
    problem(world.send("DELETE", "/instances/one?service_name=shop"), 410)


def test_what_a_catalog_lists_is_refused_with_the_catalogs_name(world: World) -> None:
    listed_by_a_catalog(world)
    before = world.shown("listed:1")
    for method, path, document in (
        ("PUT", "/override", {"status": "DOWN"}),
        ("DELETE", "/override", None),
        ("PATCH", "/metadata", {"a": "b"}),
        ("DELETE", "", None),
    ):
        assert detail(world.send(method, f"/instances/listed:1{path}", document), 409) == LISTED_BY
    assert world.shown("listed:1") == before


def test_what_becomes_a_catalogs_meanwhile_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the write the instance goes, and a catalog lists one with its id."""
    identity = "listed:1"
    world.eureka("POST", "/apps/REVIEWS", instance_body("REVIEWS", identity))
    commit = world.store.commit

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        world.eureka("DELETE", f"/apps/REVIEWS/{identity}")
        listed_by_a_catalog(world)
        return commit(*arguments)

    monkeypatch.setattr(world.store, "commit", meanwhile)
    problem(world.send("DELETE", f"/instances/{identity}"), 409)
    assert world.shown(identity)["source"] == CATALOG


# All of a service


def test_all_of_a_service_go_out_of_service_and_come_back(world: World, identity: str) -> None:
    other = world.register(endpoint={"type": "http", "value": "10.0.0.9:80"})
    both = sorted([identity, other])

    reply = world.send("PUT", "/services/reviews/override", {"status": "OUT_OF_SERVICE"})

    assert reply.status_code == 200
    assert sorted(reply.json["done"]) == both
    assert reply.json["refused"] == []
    assert statuses(world) == dict.fromkeys(both, "OUT_OF_SERVICE")
    reply = world.send("DELETE", "/services/reviews/override?status=UP")
    assert sorted(reply.json["done"]) == both
    assert statuses(world) == dict.fromkeys(both, "UP")


def test_all_of_a_service_are_taken_out_but_what_a_catalog_lists(
    world: World, identity: str
) -> None:
    listed_by_a_catalog(world)
    reply = world.send("DELETE", "/services/reviews")
    assert reply.json == {
        "service_name": "reviews",
        "done": [identity],
        "refused": [{"id": "listed:1", "detail": LISTED_BY}],
    }
    assert list(statuses(world)) == ["listed:1"]
    assert detail(world.send("DELETE", "/services/reviews"), 409) == LISTED_BY


def test_a_service_without_instances_cannot_be_operated_on(world: World) -> None:
    problem(world.send("PUT", "/services/nobody/override", {"status": "DOWN"}), 404)
    problem(world.send("DELETE", "/services/nobody/override"), 404)
    problem(world.send("DELETE", "/services/nobody"), 404)


def test_names_that_differ_by_case_are_two_services_here_too(world: World) -> None:
    world.register("reviews")
    kept = world.register("Reviews")
    assert len(world.send("DELETE", "/services/reviews").json["done"]) == 1
    assert list(statuses(world, "Reviews")) == [kept]
