"""The native API on a clock set by hand: what it takes, shows and refuses, and what Eureka sees."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from eureka_http.exchange import Promise, Request
from native_api import form, watch
from native_api.api import NativeApi
from native_api.description import openapi
from native_api.lists import Lists, Wanted
from native_api.settings import NativeSettings
from registry import (
    DEFAULT_NAMESPACE,
    Evictor,
    InstanceStatus,
    NotYetError,
    listing,
)
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on, sample_instance
from tests.in_process import InProcess
from tests.servers import HANG_SECS, JSON, instance_body

BASE = "/api/v1"


class World(InProcess):
    """A server in this process, and its evictor."""

    def __init__(self, *, max_instances: int = 100_000, **native: Any) -> None:
        super().__init__(native=NativeSettings(**native), max_instances=max_instances)
        self.evictor = Evictor(self.whole, self.store)

    def send(self, method: str, path: str, document: Any = None) -> TestResponse:
        data = None if document is None else json.dumps(document)
        return self.client.open(
            BASE + path, method=method, data=data, content_type="application/json"
        )

    def register(self, service: str = "reviews", **fields: Any) -> str:
        document = {"service_name": service, "endpoint": {"type": "http", "value": "10.0.0.7:9080"}}
        reply = self.send("POST", "/instances", document | fields)
        assert reply.status_code == 201, reply.text
        return str(reply.json["id"])

    def shown(self, instance_id: str) -> dict[str, Any]:
        reply = self.send("GET", f"/instances/{instance_id}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json)

    def eureka(self, method: str, path: str, body: str | None = None) -> TestResponse:
        return self.client.open(f"/eureka{path}", method=method, data=body, headers=JSON)

    def eureka_instance(self, app: str = "REVIEWS") -> dict[str, Any]:
        reply = self.eureka("GET", f"/apps/{app}")
        assert reply.status_code == 200
        (instance,) = reply.json["application"]["instance"]
        return dict(instance)

    def pass_time(self, seconds: float) -> None:
        """Let time go by with the evictor's passes in it, as they come while the server runs."""
        for _ in range(int(seconds)):
            self.clock.advance(1000)
            self.evictor.run_once()


@pytest.fixture
def world() -> World:
    return World()


def rfc3339(epoch_ms: int) -> str:
    at = datetime.fromtimestamp(epoch_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def problem(reply: TestResponse, status: int) -> dict[str, str]:
    assert reply.status_code == status, reply.text
    assert reply.content_type == "application/problem+json"
    assert reply.json["status"] == status
    assert reply.json["Error"]
    return {e["field"]: e["message"] for e in reply.json.get("errors", [])}


def test_a_registration_is_answered_with_its_id_lease_and_links(world: World) -> None:
    document = {"service_name": "reviews", "endpoint": {"type": "tcp", "value": "10.0.0.1:5"}}
    reply = world.send("POST", "/instances", document | {"ttl": 60})
    assert reply.status_code == 201
    identity = reply.json["id"]
    link = f"http://localhost{BASE}/instances/{identity}"
    assert reply.json == {
        "id": identity,
        "ttl": 60,
        "links": {"self": link, "heartbeat": f"{link}/heartbeat"},
    }
    assert reply.headers["Location"] == link
    assert world.client.get(link).json["endpoint"] == document["endpoint"]


def test_registering_twice_is_once_and_another_endpoint_is_another(world: World) -> None:
    first = world.register()
    assert world.register(metadata={"n": 1}) == first
    other = world.register(endpoint={"type": "http", "value": "10.0.0.8:9080"})
    assert other != first
    listed = world.send("GET", "/instances?fields=id").json["instances"]
    assert sorted(i["id"] for i in listed) == sorted([first, other])


def test_what_was_registered_is_shown_with_its_types(world: World) -> None:
    metadata = {"zone": "a", "weight": 3, "deep": {"list": [1, None, True]}}
    identity = world.register(tags=["v2", "canary"], metadata=metadata, status="STARTING", ttl=45)
    shown = world.shown(identity)
    assert shown.pop("last_heartbeat") == rfc3339(world.clock.wall_ms())
    assert shown == {
        "id": identity,
        "service_name": "reviews",
        "endpoint": {"type": "http", "value": "10.0.0.7:9080"},
        "status": "STARTING",
        "tags": ["v2", "canary"],
        "metadata": metadata,
        "ttl": 45,
        "source": "native",
        "revision": 1,
    }


def test_a_heartbeat_renews_and_silence_ends_it(world: World) -> None:
    identity = world.register(ttl=10)
    world.pass_time(8)
    assert world.send("PUT", f"/instances/{identity}/heartbeat").status_code == 200
    world.pass_time(8)
    assert world.shown(identity)["status"] == "UP"
    world.pass_time(4)
    problem(world.send("PUT", f"/instances/{identity}/heartbeat"), 410)
    problem(world.send("GET", f"/instances/{identity}"), 410)
    assert world.register() == identity


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "", {"metadata": {"zone": "b"}}, 200),
        ("PUT", "", {"status": "BUSY"}, 200),
        ("PUT", "/heartbeat", None, 200),
        ("DELETE", "", None, 410),
    ],
)
def test_of_two_changes_at_once_neither_is_lost(
    method: str, path: str, body: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes between the first one's decision and its write."""
    world = World()
    identity = world.register(tags=["v1"], metadata={"zone": "a"})
    commit = world.store.commit

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        assert world.send(method, f"/instances/{identity}{path}", body).status_code == 200
        return commit(*arguments)

    monkeypatch.setattr(world.store, "commit", meanwhile)
    reply = world.send("PUT", f"/instances/{identity}", {"tags": ["v2"]})
    assert reply.status_code == status
    left = world.send("GET", f"/instances/{identity}")
    if method == "DELETE":
        problem(left, 410)
        return
    shown = {"metadata": {"zone": "a"}, "status": "UP"} | (body or {}) | {"tags": ["v2"]}
    assert left.json | shown == left.json == reply.json


def test_a_change_is_answered_with_what_it_made_though_it_is_gone_by_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = world.register()
    commit = world.store.commit

    def cancelled_after(*arguments: Any) -> Any:
        monkeypatch.undo()
        revision = commit(*arguments)
        assert world.send("DELETE", f"/instances/{identity}").status_code == 200
        return revision

    monkeypatch.setattr(world.store, "commit", cancelled_after)
    reply = world.send("PUT", f"/instances/{identity}", {"tags": ["v2"]})
    assert (reply.status_code, reply.json["tags"]) == (200, ["v2"])
    problem(world.send("GET", f"/instances/{identity}"), 410)


def test_what_waits_for_its_eviction_is_listed_renewed_and_taken_out_like_any_other(
    world: World,
) -> None:
    """No more than 15 % go in a minute; whatever lists show, its owner can still speak of."""
    ids = [
        world.register(ttl=10, endpoint={"type": "tcp", "value": f"10.0.0.1:{port}"})
        for port in range(1, 21)
    ]
    world.pass_time(15)
    listed = [i["id"] for i in world.send("GET", "/instances?fields=id").json["instances"]]
    assert len(listed) == 17
    shown = world.shown(listed[0])
    assert shown["last_heartbeat"] == rfc3339(world.clock.wall_ms() - 15_000)
    assert world.send("PUT", f"/instances/{listed[1]}/heartbeat").status_code == 200
    assert world.send("PUT", f"/instances/{listed[2]}", {"tags": ["v2"]}).status_code == 200
    assert world.send("DELETE", f"/instances/{listed[3]}").status_code == 200
    problem(world.send("DELETE", f"/instances/{listed[3]}"), 410)
    for gone in set(ids) - set(listed):
        problem(world.send("GET", f"/instances/{gone}"), 410)


def test_a_custom_status_stays_under_an_override_when_other_fields_change(world: World) -> None:
    identity = world.register(status="BUSY")
    assert world.eureka("PUT", f"/apps/REVIEWS/{identity}/status?value=DOWN").status_code == 200
    reply = world.send("PUT", f"/instances/{identity}", {"tags": ["v2"]})
    assert (reply.json["status"], reply.json["tags"]) == ("DOWN", ["v2"])
    assert world.eureka("DELETE", f"/apps/REVIEWS/{identity}/status?value=UP").status_code == 200
    assert world.shown(identity)["status"] == "BUSY"


def test_what_is_out_of_service_waits_without_heartbeats(world: World) -> None:
    identity = world.register(ttl=10, status="OUT_OF_SERVICE")
    world.pass_time(300)
    assert world.shown(identity)["status"] == "OUT_OF_SERVICE"
    reply = world.send("PUT", f"/instances/{identity}", {"status": "UP"})
    assert reply.json["status"] == "UP"
    world.pass_time(8)
    assert world.shown(identity)["status"] == "UP"
    world.pass_time(4)
    problem(world.send("GET", f"/instances/{identity}"), 410)


def test_deregistering_is_final(world: World) -> None:
    identity = world.register()
    assert world.send("DELETE", f"/instances/{identity}").status_code == 200
    problem(world.send("DELETE", f"/instances/{identity}"), 410)
    assert world.send("GET", "/services").json == {"services": []}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"status": "OUT_OF_SERVICE"}, "status", "OUT_OF_SERVICE"),
        ({"status": "UP"}, "status", "UP"),
        ({"status": "draining"}, "status", "draining"),
        ({"tags": []}, "tags", []),
        ({"tags": ["v3"]}, "tags", ["v3"]),
        ({"metadata": {"new": [1]}}, "metadata", {"new": [1]}),
    ],
)
def test_fields_are_replaced_and_the_others_stay(
    world: World, change: dict[str, Any], field: str, value: Any
) -> None:
    identity = world.register(tags=["v2"], metadata={"n": 1}, status="STARTING")
    before = world.shown(identity)
    after = world.send("PUT", f"/instances/{identity}", change).json
    assert after[field] == value
    for name in ("status", "tags", "metadata", "endpoint", "ttl"):
        if name != field:
            assert after[name] == before[name], name


def test_a_list_shows_what_can_be_used_unless_asked_for_more(world: World) -> None:
    for number, status in enumerate(("UP", "STARTING", "OUT_OF_SERVICE", "DOWN", "canary")):
        endpoint = {"type": "http", "value": f"10.0.0.{number}:80"}
        world.register(endpoint=endpoint, status=status)

    def statuses(query: str) -> list[str]:
        listed = world.send("GET", f"/instances{query}").json["instances"]
        return sorted(i["status"] for i in listed)

    assert statuses("") == ["UP", "canary"]
    assert statuses("?status=ALL") == ["DOWN", "OUT_OF_SERVICE", "STARTING", "UP", "canary"]
    assert statuses("?status=STARTING") == ["STARTING"]
    assert statuses("?status=canary") == ["canary"]
    assert statuses("?status=other") == []
    assert statuses("?status=") == []
    assert statuses("?status=Starting") == ["STARTING"]
    assert statuses("?status=all") == statuses("?status=ALL")
    # Whoever asks for a service, or for tags, wants to know how it is.
    assert statuses("?service_name=reviews") == statuses("?status=ALL")
    assert statuses("?service_name=reviews&status=UP") == ["UP"]


def test_a_list_is_narrowed_by_service_and_tags_and_shows_the_named_fields(world: World) -> None:
    both = world.register(tags=["a", "b"])
    world.register(endpoint={"type": "http", "value": "10.0.0.8"}, tags=["a"])
    world.register("other", tags=["a", "b"])
    reply = world.send("GET", "/instances?service_name=reviews&tags=b,a&fields=tags")
    endpoint = {"type": "http", "value": "10.0.0.7:9080"}
    assert reply.json == {"instances": [{"id": both, "endpoint": endpoint, "tags": ["a", "b"]}]}
    assert [i["id"] for i in world.send("GET", f"/instances?id={both}").json["instances"]] == [both]
    assert world.send("GET", "/services").json == {"services": ["other", "reviews"]}
    one = world.send("GET", "/services/reviews").json
    assert (one["service_name"], len(one["instances"])) == ("reviews", 2)
    problem(world.send("GET", "/services/nobody"), 404)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"service_name": ""}, "service_name"),
        ({"service_name": "a" * 65}, "service_name"),
        ({"service_name": 5}, "service_name"),
        ({"service_name": " "}, "service_name"),
        ({"service_name": "a "}, "service_name"),
        ({"service_name": "a\nb"}, "service_name"),
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": {"type": "http"}}, "endpoint.value"),
        ({"endpoint": {"type": "ftp", "value": "h:1"}}, "endpoint.type"),
        ({"endpoint": {"type": "http", "value": "h:http"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "a..b"}}, "endpoint.value"),
        ({"endpoint": {"type": "tcp", "value": "a.-b:1"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": f"{'a' * 64}.b"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "https://h"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "http://u:p@h/"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "a" * 129}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": " "}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "10.0.0.1:99999"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "10.0.0.1:0"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "fe80::1%eth0"}}, "endpoint.value"),
        ({"endpoint": {"type": "http", "value": "h/a?b"}}, "endpoint.value"),
        ({"endpoint": {"type": "tcp", "value": "a b:80"}}, "endpoint.value"),
        ({"endpoint": {"type": "tcp", "value": "h:1/path"}}, "endpoint.value"),
        ({"ttl": "30"}, "ttl"),
        ({"ttl": 30.5}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"ttl": -1}, "ttl"),
        ({"ttl": 2**32}, "ttl"),
        ({"status": "a" * 33}, "status"),
        ({"status": "UNKNOWN"}, "status"),
        ({"status": "ALL"}, "status"),
        ({"status": "unknown"}, "status"),
        ({"status": "a b"}, "status"),
        ({"tags": "v2"}, "tags"),
        ({"tags": ["t"] * 129}, "tags"),
        ({"tags": ["t" * 65]}, "tags"),
        ({"metadata": {"a": "x" * 1024}}, "metadata"),
        ({"metadata": {"": 1}}, "metadata"),
    ],
)
def test_a_bad_field_is_named_and_nothing_changes(
    world: World, document: dict[str, Any], field: str
) -> None:
    good = {"service_name": "x", "endpoint": {"type": "http", "value": "10.0.0.1:80"}}
    errors = problem(world.send("POST", "/instances", good | document), 400)
    assert any(name.startswith(field) for name in errors), errors
    assert world.send("GET", "/instances?status=ALL").json == {"instances": []}


@pytest.mark.parametrize("body", ["", "{", "[]", "5", '{"a":', "\xff"])
def test_what_is_no_json_object_is_a_400(world: World, body: str) -> None:
    reply = world.client.post(f"{BASE}/instances", data=body.encode("latin-1"), headers=JSON)
    problem(reply, 400)


def test_bodies_queries_methods_and_paths_have_their_refusals(world: World) -> None:
    identity = world.register()
    problem(world.client.post(f"{BASE}/instances", data=b"x" * 70_000, headers=JSON), 413)
    problem(world.send("PUT", f"/instances/{identity}", {}), 400)
    assert problem(world.send("GET", "/instances?fields=secret"), 400) != {}
    assert problem(world.send("GET", "/watch?since=x"), 400) != {}
    assert problem(world.send("GET", "/watch?wait=301"), 400) != {}
    for name in ("since", "wait"):
        assert problem(world.send("GET", f"/watch?{name}={'9' * 5000}"), 400) != {}
    assert world.send("PATCH", "/instances").headers["Allow"] == "GET, HEAD, POST"
    problem(world.send("DELETE", "/services"), 405)
    problem(world.send("GET", "/nothing"), 404)
    problem(world.send("GET", "/"), 404)


def test_a_full_namespace_refuses_the_next_and_renews_the_others() -> None:
    world = World(max_instances=2)
    first = world.register()
    world.eureka("POST", "/apps/E", instance_body("E", "e:1"))
    other = {"service_name": "x", "endpoint": {"type": "http", "value": "10.0.0.9"}}
    problem(world.send("POST", "/instances", other), 403)
    assert world.eureka("POST", "/apps/E", instance_body("E", "e:2")).status_code == 403
    item = {"appName": "E", "id": "e:3", "action": "Register"}
    item["instanceInfo"] = json.loads(instance_body("E", "e:3"))["instance"]
    batch = json.dumps({"replicationList": [item]})
    reply = world.eureka("POST", "/peerreplication/batch/", batch)
    assert reply.json["responseList"] == [{"statusCode": 500}]
    promised = world.gateway.lane({"content-type": "application/json", "host": "x"})
    assert promised is not None
    promise = promised.answer("POST", "/eureka/apps/E", instance_body("E", "e:4").encode())
    world.gateway.settle()
    assert isinstance(promise, Promise)
    assert promise.answer is not None
    assert promise.answer.status == 403
    assert world.eureka("POST", "/apps/E", instance_body("E", "e:1")).status_code == 204
    assert world.register() == first
    assert world.send("PUT", f"/instances/{first}/heartbeat").status_code == 200


# What Eureka clients see of it.


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "secure", "url"),
    [
        (("http", "10.0.0.7:9080"), "10.0.0.7", (9080, "true"), (443, "false"), "http://10.0.0.7:9080/"),
        (("http", "10.0.0.7"), "10.0.0.7", (80, "true"), (443, "false"), "http://10.0.0.7:80/"),
        (("http", "http://10.0.0.7:81/a"), "10.0.0.7", (81, "true"), (443, "false"), "http://10.0.0.7:81/a/"),
        (("https", "10.0.0.7"), "10.0.0.7", (80, "false"), (443, "true"), "https://10.0.0.7:443/"),
        (("https", "[::1]:8443"), "[::1]", (80, "false"), (8443, "true"), "https://[::1]:8443/"),
        (("http", "0:0::1"), "[::1]", (80, "true"), (443, "false"), "http://[::1]:80/"),
        (("http", "höst:81"), "xn--hst-sna", (81, "true"), (443, "false"), "http://xn--hst-sna:81/"),
        (("tcp", "10.0.0.7"), "10.0.0.7", (80, "false"), (443, "false"), None),
        (("tcp", "10.0.0.7:5432"), "10.0.0.7", (5432, "true"), (443, "false"), None),
        (("udp", "10.0.0.7:53"), "10.0.0.7", (53, "true"), (443, "false"), None),
        (("user", "queue orders"), "127.0.0.1", (80, "false"), (443, "false"), None),
    ],
)  # fmt: skip
def test_it_is_a_whole_instance_to_eureka_clients(
    world: World,
    endpoint: tuple[str, str],
    host: str,
    port: tuple[int, str],
    secure: tuple[int, str],
    url: str | None,
) -> None:
    kind, value = endpoint
    world.register("reviews", endpoint={"type": kind, "value": value}, metadata={"zone": "z"})
    seen = world.eureka_instance()
    assert (seen["hostName"], seen["vipAddress"], seen["secureVipAddress"]) == (
        host,
        "reviews",
        "reviews",
    )
    assert (seen["port"]["$"], seen["port"]["@enabled"]) == port
    assert (seen["securePort"]["$"], seen["securePort"]["@enabled"]) == secure
    assert seen.get("homePageUrl") == url
    port_number = (
        (443 if kind == "https" else 80) if seen["port"]["@enabled"] == "false" else port[0]
    )
    assert seen["healthCheckUrl"] == (url or f"http://{host}:{port_number}/") + "health"
    assert seen.get("statusPageUrl") == (None if url is None else url + "info")
    assert seen["dataCenterInfo"]["name"] == "MyOwn"
    assert seen["metadata"]["zone"] == "z"
    assert seen["ipAddr"].replace(".", "").replace(":", "").isalnum()


def test_a_name_is_resolved_to_a_literal_address(world: World) -> None:
    world.register(endpoint={"type": "http", "value": "localhost:80"})
    seen = world.eureka_instance()
    assert (seen["hostName"], seen["ipAddr"]) == ("localhost", "127.0.0.1")


def test_a_name_that_nobody_knows_has_the_senders_address(world: World) -> None:
    world.register(endpoint={"type": "http", "value": "no-such-host.invalid:80"})
    assert world.eureka_instance()["ipAddr"] == "127.0.0.1"


def test_urls_in_the_metadata_replace_the_guessed_ones(world: World) -> None:
    world.register(metadata={"health_check_url": "http://h/up", "status_page_url": "http://h/s"})
    seen = world.eureka_instance()
    assert (seen["healthCheckUrl"], seen["statusPageUrl"]) == ("http://h/up", "http://h/s")


def test_it_counts_in_delta_and_hash_code(world: World) -> None:
    identity = world.register()
    delta = world.eureka("GET", "/apps/delta").json["applications"]
    assert delta["apps__hashcode"] == "UP_1_"
    assert delta["application"][0]["instance"][0]["actionType"] == "ADDED"
    world.send("PUT", f"/instances/{identity}", {"status": "OUT_OF_SERVICE"})
    assert (
        world.eureka("GET", "/apps").json["applications"]["apps__hashcode"] == "OUT_OF_SERVICE_1_"
    )
    world.send("DELETE", f"/instances/{identity}")
    delta = world.eureka("GET", "/apps/delta").json["applications"]
    assert delta["apps__hashcode"] == ""
    assert delta["application"][0]["instance"][0]["actionType"] == "DELETED"


def test_a_status_set_on_one_side_shows_on_the_other(world: World) -> None:
    identity = world.register()
    path = f"/apps/REVIEWS/{identity}/status"
    assert world.eureka("PUT", f"{path}?value=OUT_OF_SERVICE").status_code == 200
    assert world.shown(identity)["status"] == "OUT_OF_SERVICE"
    # The instance's own word does not beat the operator's; an operator's on this side does.
    world.register()
    assert world.shown(identity)["status"] == "OUT_OF_SERVICE"
    world.send("PUT", f"/instances/{identity}", {"status": "UP"})
    assert world.eureka_instance()["status"] == "UP"
    assert world.eureka_instance()["overriddenStatus"] == "UNKNOWN"


def test_a_status_is_not_set_on_what_took_the_place_of_the_one_that_was_meant(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that a Eureka client gave up, and the native API has meanwhile, or the reverse."""
    identity = world.register()
    native = world.registry.listed_by_id(identity)
    assert native is not None
    of_eureka = native._replace(source="eureka")
    for seen, listed in ((of_eureka, native), (native, of_eureka)):
        world.registry.cancel(native.app, identity, source=None)
        world.registry.register(listed)
        with monkeypatch.context() as patch:
            patch.setattr(type(world.registry), "listed_by_id", lambda *_, seen=seen: seen)
            reply = world.send("PUT", f"/instances/{identity}", {"status": "DOWN"})
        problem(reply, 410)
        now = world.registry.listed_by_id(identity)
        assert now is not None
        assert (now.source, now.status, now.overridden_status) == (listed.source, "UP", "UNKNOWN")


def test_a_custom_status_is_up_to_eureka_and_hidden_by_an_override(world: World) -> None:
    identity = world.register(status="canary")
    assert world.eureka_instance()["status"] == "UP"
    world.eureka("PUT", f"/apps/REVIEWS/{identity}/status?value=DOWN")
    assert world.shown(identity)["status"] == "DOWN"
    world.eureka("DELETE", f"/apps/REVIEWS/{identity}/status?value=UP")
    assert world.shown(identity)["status"] == "canary"


@pytest.mark.parametrize(
    ("word", "meant"), [("down", "DOWN"), ("Out_Of_Service", "OUT_OF_SERVICE"), ("up", "UP")]
)
def test_the_case_of_a_status_does_not_count(world: World, word: str, meant: str) -> None:
    identity = world.register(status=word)
    assert (world.shown(identity)["status"], world.eureka_instance()["status"]) == (meant, meant)
    world.send("PUT", f"/instances/{identity}", {"status": "STARTING"})
    assert world.send("PUT", f"/instances/{identity}", {"status": word}).json["status"] == meant
    world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1"))
    assert world.send("PUT", "/instances/shop:1", {"status": word}).json["status"] == meant


@pytest.mark.parametrize(
    ("kind", "spellings"),
    [
        ("http", ("10.0.0.1:80", "http://10.0.0.1:80", "10.0.0.1:80/", "10.0.0.1", "HTTP://10.0.0.1/")),
        ("https", ("https://Host.local:443/a/", "host.local/a")),
        ("tcp", ("[::1]:5432", "[0:0::1]:5432", "tcp://[::1]:5432")),
        ("http", ("::1", "[::1]", "[::1]:80", "http://[0::1]/")),
    ],
)  # fmt: skip
def test_one_endpoint_in_many_spellings_is_one_instance(
    world: World, kind: str, spellings: tuple[str, ...]
) -> None:
    ids = {world.register(endpoint={"type": kind, "value": value}) for value in spellings}
    assert len(ids) == 1
    (listed,) = world.send("GET", "/instances").json["instances"]
    assert listed["endpoint"] == {"type": kind, "value": spellings[-1]}
    assert world.register(endpoint={"type": kind, "value": "10.0.0.2:5"}) not in ids


def test_names_differ_by_their_case_and_eureka_clients_can_tell_them_apart(world: World) -> None:
    ids = {name: world.register(name) for name in ("reviews", "Reviews")}
    assert len(set(ids.values())) == 2
    assert world.send("GET", "/services").json == {"services": ["Reviews", "reviews"]}
    for name, identity in ids.items():
        for path in (f"/services/{name}", f"/instances?service_name={name}"):
            listed = world.send("GET", path).json["instances"]
            assert [(i["id"], i["service_name"]) for i in listed] == [(identity, name)]
        world.send("PUT", f"/instances/{identity}", {"tags": ["x"]})
        assert world.shown(identity)["metadata"] == {}
    problem(world.send("GET", "/services/REVIEWS"), 404)
    seen = world.eureka("GET", "/apps/REVIEWS").json["application"]["instance"]
    names = {i["instanceId"]: i["metadata"].get("service_name", i["vipAddress"]) for i in seen}
    assert names == {identity: name for name, identity in ids.items()}


@pytest.mark.parametrize("name", ["has space", "sl/ash", "ünï", "a:b", "a%2Fb", "-", "a,b", "ß"])
def test_any_name_can_be_listed_and_renewed_here_and_by_eureka_clients(
    world: World, name: str
) -> None:
    identity = world.register(name)
    path = quote(name, safe="")
    assert world.send("GET", f"/services/{path}").json["service_name"] == name
    assert world.send("GET", f"/instances?service_name={path}").json["instances"] != []
    assert world.send("PUT", f"/instances/{identity}/heartbeat").status_code == 200
    seen = world.eureka("GET", f"/apps/{quote(name.upper(), safe='')}").json["application"]
    assert [i["instanceId"] for i in seen["instance"]] == [identity]
    vip = quote(seen["instance"][0]["vipAddress"], safe="")
    found = world.eureka("GET", f"/vips/{vip}").json["applications"]["application"]
    assert [i["instanceId"] for a in found for i in a["instance"]] == [identity]


@pytest.mark.parametrize("metadata", [1, 1.5, True, False, "text", [], [1, {"a": 2}], {}])
def test_metadata_may_be_any_json_value(world: World, metadata: Any) -> None:
    identity = world.register(metadata=metadata)
    assert world.shown(identity)["metadata"] == metadata
    assert all(isinstance(v, str) for v in world.eureka_instance()["metadata"].values())
    world.eureka("PUT", f"/apps/REVIEWS/{identity}/metadata?new=x")
    assert world.shown(identity)["metadata"]["new"] == "x"


def test_a_url_in_the_metadata_that_is_none_is_not_shown_as_one(world: World) -> None:
    world.register(metadata={"health_check_url": "http://a b/", "status_page_url": "/status"})
    seen = world.eureka_instance()
    assert seen["healthCheckUrl"] == "http://10.0.0.7:9080/health"
    assert seen["statusPageUrl"] == "http://10.0.0.7:9080/info"


def test_what_a_go_client_sends_of_its_whole_struct_is_taken(world: World) -> None:
    """Its zero values, what it was told, and what it does not know; in any case of the names."""
    told = {"id": "x", "last_heartbeat": "0001-01-01T00:00:00Z", "links": None, "Status": ""}
    identity = world.register(**told, tags=None, metadata=None, ttl=0, foo=1)
    assert world.shown(identity)["status"] == "UP"
    assert (world.shown(identity)["ttl"], world.shown(identity)["tags"]) == (30, [])
    odd = {"Service_Name": "reviews", "ENDPOINT": {"Type": "http", "VALUE": "10.0.0.7:9080"}}
    assert world.send("POST", "/instances", odd).json["id"] == identity


@pytest.mark.parametrize(("asked", "given"), [(0, 30), (3, 10), (601, 600), (100_000, 600)])
def test_a_ttl_out_of_bounds_is_moved_to_the_bound(world: World, asked: int, given: int) -> None:
    identity = world.register(ttl=asked)
    assert world.shown(identity)["ttl"] == given


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=iso-8859-1",
        "application/xml",
    ],
)
def test_a_body_that_does_not_say_that_it_is_json_is_refused(world: World, kind: str) -> None:
    """A web page elsewhere can send the others without being asked."""
    document = {"service_name": "x", "endpoint": {"type": "http", "value": "10.0.0.1:80"}}
    identity = world.register()
    for method, path in (("POST", "/instances"), ("PUT", f"/instances/{identity}")):
        reply = world.client.open(
            BASE + path, method=method, data=json.dumps(document), content_type=kind
        )
        problem(reply, 415)
    assert world.client.put(f"{BASE}/instances/{identity}/heartbeat").status_code == 200
    assert world.send("GET", "/services").json == {"services": ["reviews"]}


def test_a_list_by_what_cannot_be_listed_by_is_refused(world: World) -> None:
    world.register()
    for name in ("ttl", "endpoint", "metadata", "links", "last_heartbeat", "BLA"):
        assert problem(world.send("GET", f"/instances?{name}=x"), 400) != {}
    reply = world.send("GET", "/instances?fields=status&fields=nonsense")
    assert [sorted(i) for i in reply.json["instances"]] == [["endpoint", "id", "status"]]


def test_a_services_list_can_be_narrowed(world: World) -> None:
    world.register()
    world.register(status="DOWN", endpoint={"type": "http", "value": "10.0.0.8"})
    listed = world.send("GET", "/services/reviews?status=DOWN&fields=status").json["instances"]
    assert [i["status"] for i in listed] == ["DOWN"]


def test_a_heartbeat_is_answered_with_the_lease(world: World) -> None:
    identity = world.register(ttl=45)
    reply = world.send("PUT", f"/instances/{identity}/heartbeat")
    assert reply.json == {"id": identity, "ttl": 45}


def test_the_other_methods_of_a_list_are_those_of_http(world: World) -> None:
    identity = world.register()
    for path in ("/instances", "/services", "/services/reviews", f"/instances/{identity}"):
        for spelled in (path, f"{path}/"):
            got, head = world.send("GET", spelled), world.send("HEAD", spelled)
            assert (got.status_code, head.status_code, head.data) == (200, 200, b"")
            assert world.send("PATCH", spelled).json["Error"] == "Method not allowed"
            assert world.send("OPTIONS", spelled).status_code == 405


def test_a_eureka_clients_service_is_found_in_any_case(world: World) -> None:
    world.eureka("POST", "/apps/Shop", instance_body("Shop", "shop:1"))
    assert world.send("GET", "/services").json == {"services": ["shop"]}
    for name in ("shop", "Shop", "SHOP"):
        listed = world.send("GET", f"/instances?service_name={name}").json["instances"]
        assert [i["service_name"] for i in listed] == ["shop"]


def test_metadata_are_measured_without_blanks(world: World) -> None:
    text = "x" * (1024 - len('{"k":""}'))
    assert world.shown(world.register(metadata={"k": text}))["metadata"] == {"k": text}


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({}, "error_service_name_missing"),
        ({"service_name": "a" * 65}, "error_service_name_too_long"),
        ({"endpoint": None}, "error_instance_endpoint_missing"),
        ({"endpoint": {"type": "http"}}, "error_instance_endpoint_missing_type_or_value"),
        ({"endpoint": {"type": "HTTP", "value": "h"}}, "error_instance_endpoint_type_invalid"),
        ({"endpoint": {"type": "user", "value": "a" * 129}}, "error_instance_endpoint_too_long"),
        ({"endpoint": {"type": "http", "value": "h:0"}}, "error_instance_registration_failure"),
        ({"endpoint": 5}, "error_instance_registration_failure"),
        ({"status": "a b"}, "error_instance_status_invalid"),
        ({"status": 5}, "error_instance_registration_failure"),
        ({"metadata": "a" * 1024}, "error_meta_data_too_long"),
        ({"ttl": "5"}, "error_instance_registration_failure"),
    ],
)
def test_a_refusal_has_the_word_that_the_genuine_registry_has_for_it(
    world: World, document: dict[str, Any], word: str
) -> None:
    good = {"service_name": "x", "endpoint": {"type": "http", "value": "10.0.0.1:80"}}
    reply = world.send("POST", "/instances", good | document if document else {})
    assert reply.json["Error"] == word


def test_a_list_has_the_heartbeat_of_the_instances_last_change(world: World) -> None:
    identity = world.register()
    at = rfc3339(world.clock.wall_ms())
    world.pass_time(5)
    world.send("PUT", f"/instances/{identity}/heartbeat")
    (listed,) = world.send("GET", "/instances").json["instances"]
    assert listed["last_heartbeat"] == at
    assert world.shown(identity)["last_heartbeat"] == rfc3339(world.clock.wall_ms())


def test_an_over_long_name_is_reported_with_the_name(world: World) -> None:
    document = {"service_name": "n" * 90, "endpoint": {"type": "http", "value": "h"}}
    told = problem(world.send("POST", "/instances", document), 400)["service_name"]
    assert told == f"1 to 64 characters at most, not the 90 of {'n' * 80 + '…'!r}"


def test_tags_and_metadata_cross_over(world: World) -> None:
    identity = world.register(tags=["v2"], metadata={"n": 1, "deep": {"a": [1]}})
    assert world.eureka_instance()["metadata"] == {"n": "1", "deep": '{"a":[1]}', "tags": "v2"}
    world.eureka("PUT", f"/apps/REVIEWS/{identity}/metadata?n=2&new=x")
    assert world.shown(identity)["metadata"] == {"n": "2", "deep": {"a": [1]}, "new": "x"}
    assert world.shown(identity)["tags"] == ["v2"]


def test_a_eureka_instance_is_listed_and_only_its_status_can_be_set(world: World) -> None:
    fields = {"metadata": {"zone": "a", "tags": "v1, blue"}, "leaseInfo": {"durationInSecs": 90}}
    world.eureka("POST", "/apps/SHOP", instance_body("SHOP", "shop:1", **fields))
    shown = world.shown("shop:1")
    assert shown["endpoint"] == {"type": "http", "value": "host.local:8080"}
    assert (shown["tags"], shown["source"], shown["ttl"]) == (["v1", "blue"], "eureka", 90)
    assert world.send("PUT", "/instances/shop:1", {"status": "OUT_OF_SERVICE"}).status_code == 200
    assert world.eureka_instance("SHOP")["overriddenStatus"] == "OUT_OF_SERVICE"
    problem(world.send("PUT", "/instances/shop:1", {"status": "canary"}), 400)
    problem(world.send("PUT", "/instances/shop:1", {"tags": ["x"]}), 409)
    problem(world.send("PUT", "/instances/shop:1/heartbeat"), 409)


def test_eureka_clients_cannot_take_a_native_instance_over(world: World) -> None:
    identity = world.register()
    body = instance_body("REVIEWS", identity)
    assert world.eureka("POST", "/apps/REVIEWS", body).status_code == 409
    assert world.eureka("PUT", f"/apps/REVIEWS/{identity}").status_code == 404
    assert world.eureka("DELETE", f"/apps/REVIEWS/{identity}").status_code == 404
    assert world.shown(identity)["source"] == "native"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=6
)


@given(metadata=st.dictionaries(names, json_values, max_size=3))
def test_any_metadata_comes_back_and_is_text_to_eureka(metadata: dict[str, Any]) -> None:
    endpoint = form.parsed_endpoint("http", "10.0.0.1:80")
    instance = form.complete(
        service_name="s", endpoint=endpoint, ttl_secs=30, address="10.0.0.1", metadata=metadata
    )
    assert form.shown_metadata(instance) == metadata
    assert all(isinstance(value, str) for value in instance.metadata.values())


# Watches.


class Reader:
    """What a watch writes, kept."""

    def __init__(self, world: World, query: str = "", **headers: str) -> None:
        self.written = b""
        self.ended = False
        self.api = NativeApi(world.registry, NativeSettings())
        request = Request("GET", f"{BASE}/watch", query, headers, lambda _: b"")
        stream: Any = self.api.stream(request)
        self.content_type = stream.content_type
        self.leave: Callable[[], None] = stream.subscribe(self._write, self._end)

    def _write(self, data: bytes) -> int:
        assert not self.ended
        self.written += data
        return 0

    def _end(self) -> None:
        self.ended = True

    def events(self) -> list[tuple[str, str, Any]]:
        """(id, event, data) of each event told so far."""
        found = []
        for block in self.written.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "event" in fields:
                found.append((fields["id"], fields["event"], json.loads(fields["data"])))
        self.written = b""
        return found


def test_a_watch_begins_with_a_snapshot_and_goes_on_with_each_change(world: World) -> None:
    identity = world.register()
    reader = Reader(world)
    assert reader.content_type == "text/event-stream"
    ((revision, name, data),) = reader.events()
    assert (revision, name, [i["id"] for i in data]) == ("1", "snapshot", [identity])
    world.send("PUT", f"/instances/{identity}", {"status": "draining"})
    reader.api.tick()
    world.eureka("PUT", f"/apps/REVIEWS/{identity}/status?value=DOWN")
    reader.api.tick()
    world.send("DELETE", f"/instances/{identity}")
    reader.api.tick()
    told = [(number, name, data["status"]) for number, name, data in reader.events()]
    assert told == [("2", "added", "draining"), ("3", "modified", "DOWN"), ("4", "deleted", "DOWN")]
    reader.leave()
    world.register()
    reader.api.tick()
    assert reader.written == b""


def test_an_eviction_is_told_as_such(world: World) -> None:
    world.register(ttl=10)
    reader = Reader(world, "since=1")
    world.pass_time(12)
    reader.api.tick()
    assert [name for _, name, _ in reader.events()] == ["evicted"]


def test_a_watch_resumes_after_the_last_event_that_was_seen(world: World) -> None:
    identity = world.register()
    world.register("other")
    world.send("DELETE", f"/instances/{identity}")
    reader = Reader(world, "since=99", **{"last-event-id": "1"})
    assert [(n, name) for n, name, _ in reader.events()] == [("2", "added"), ("3", "deleted")]
    assert Reader(world, "since=3").events() == []


def test_what_changed_often_between_two_looks_is_one_event_of_how_it_is_now(world: World) -> None:
    identity = world.register()
    for status in ("draining", "busy"):
        world.send("PUT", f"/instances/{identity}", {"status": status})
    world.register("other")
    events = Reader(world, "since=0").events()
    assert [(n, name, data["status"]) for n, name, data in events] == [
        ("3", "added", "busy"),
        ("4", "added", "UP"),
    ]


@pytest.mark.parametrize("since", ["0", "99"])
def test_a_revision_that_is_not_known_gets_a_snapshot(world: World, since: str) -> None:
    world.register()
    world.pass_time(400)  # the change log has forgotten it
    world.register("other")
    if since == "0":
        world.registry.view().recent(world.clock.mono_ms())
    assert [name for _, name, _ in Reader(world, f"since={since}").events()] == ["snapshot"]


def test_a_watch_of_one_service_hears_of_no_other(world: World) -> None:
    reader = Reader(world, "service_name=reviews&since=0")
    world.register("other")
    world.register("Reviews")
    reader.api.tick()
    assert reader.events() == []
    world.register("reviews")
    reader.api.tick()
    assert [data["service_name"] for _, _, data in reader.events()] == ["reviews"]


def test_a_quiet_watch_is_told_the_revision_from_time_to_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(world, "since=0&service_name=reviews")
    world.register("other")
    reader.api.tick()
    reader.written = b""
    monkeypatch.setattr(watch, "KEEP_ALIVE_SECS", 0.0)
    monkeypatch.setattr("native_api.watch.time.monotonic", lambda: 1e9)
    reader.api.tick()
    assert reader.written == b"id: 1\n: still here\n\n"


def test_a_long_poll_ends_with_what_was_missed(world: World) -> None:
    world.register()
    world.register("other")
    reader = Reader(world, "since=0", accept="application/json")
    assert reader.ended
    answer = json.loads(reader.written)
    assert answer["revision"] == 2
    assert [e["event"] for e in answer["events"]] == ["added", "added"]


def test_a_long_poll_waits_for_the_first_change(world: World) -> None:
    reader = Reader(world, "since=0&service_name=reviews", accept="application/json")
    world.register("other")
    reader.api.tick()
    assert not reader.ended
    world.register("reviews")
    reader.api.tick()
    assert reader.ended
    assert json.loads(reader.written)["revision"] == 2


def test_a_long_poll_that_waited_in_vain_says_so(world: World) -> None:
    reply = world.send("GET", "/watch?since=0&wait=0")
    assert reply.content_type == "text/event-stream"
    reply = world.client.get(f"{BASE}/watch?since=0&wait=0", headers={"Accept": "application/json"})
    assert reply.json == {"revision": 0, "events": []}


def whole_events(parts: Iterator[bytes]) -> Iterator[bytes]:
    """A stream in its events, whatever parts it comes in."""
    told = b""
    for part in parts:
        told += part
        while b"\n\n" in told:
            event, _, told = told.partition(b"\n\n")
            yield event + b"\n\n"


def test_a_watch_in_a_thread_tells_the_same(world: World) -> None:
    identity = world.register()
    lists = Lists(world.registry)
    told = watch.Hub(world.registry, lists).streamed(None, None)
    events = whole_events(told)
    assert next(events).startswith(b"id: 1\nevent: snapshot\ndata: [{")
    world.send("DELETE", f"/instances/{identity}")
    assert next(events).startswith(b"id: 2\nevent: deleted\ndata: {")


def test_half_of_the_threads_may_watch(world: World) -> None:
    replies = [world.client.get(f"{BASE}/watch", buffered=False) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 200, 503]
    for reply in replies:
        reply.close()
    assert world.client.get(f"{BASE}/watch", buffered=False).status_code == 200


# Description.


def test_the_description_tells_the_limits_that_are_set() -> None:
    settings = NativeSettings(
        default_ttl_secs=7,
        min_ttl_secs=5,
        max_ttl_secs=9,
        max_service_name=11,
        max_endpoint=13,
        max_status=15,
        max_tags=17,
        max_metadata_bytes=19,
    )
    schemas = json.loads(openapi(settings).body)["components"]["schemas"]
    registration = schemas["Registration"]["properties"]
    assert registration["ttl"]["default"] == 7
    assert registration["ttl"]["description"].endswith("5 and 9.")
    assert registration["service_name"]["maxLength"] == 11
    assert {e["properties"]["value"]["maxLength"] for e in schemas["Endpoint"]["oneOf"]} == {13}
    assert (schemas["Status"]["maxLength"], schemas["Tags"]["maxItems"]) == (15, 17)
    assert "19 bytes" in schemas["Metadata"]["description"]


def test_the_description_and_its_page_are_served_without_reaching_out(world: World) -> None:
    document = world.send("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    page = world.send("GET", "/docs")
    assert page.content_type == "text/html; charset=utf-8"
    for sign in ("://", "@import", "src="):
        assert sign not in page.text


# At scale


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 12), st.sampled_from("UPD-X")), max_size=60
    ),
    st.sampled_from([1, 3, 64]),
)
def test_kept_lists_are_always_what_fresh_ones_are(
    steps: list[tuple[int, int, str]], size: int
) -> None:
    """Whatever changed between two of them, and however often a worker loads all anew."""
    store, clock = MemoryStore(), ManualClock()
    here, elsewhere = (registry_on(store, clock) for _ in "ab")
    wishes = [
        *(Wanted(status=status) for status in (None, "ALL", "DOWN", "busy")),
        *(Wanted("a0", status=status) for status in (None, "UP")),
        *(Wanted("A0"), Wanted("gone"), Wanted(id="i3"), Wanted(columns=("id", "status"))),
    ]
    with mock.patch.object(listing, "PORTION", size):
        kept = Lists(here)
        for number, (app, instance, step) in enumerate(steps):
            key, name = f"A{app}", f"i{instance}"
            if step == "-":
                elsewhere.cancel(key, name)
            elif step == "X":
                store.trim(DEFAULT_NAMESPACE, clock.mono_ms() + 1)
            else:
                status = {"U": "UP", "P": "STARTING", "D": "DOWN"}[step]
                elsewhere.register(
                    sample_instance(key, name, last_dirty_ms=number, status=InstanceStatus(status))
                )
            listed = elsewhere.view().applications
            assert kept.names() == sorted(app.lower() for app in listed)
            for wanted in wishes:
                revision, pieces = kept.spelled(wanted, is_quick=False)
                got = json.loads(b"[" + b"".join(pieces) + b"]")
                expected = [
                    {name: form.shown(each)[name] for name in wanted.columns}
                    for application in listed.values()
                    for each in application.values()
                    if wanted.has(each)
                ]
                assert sorted(got, key=str) == sorted(expected, key=str)
                assert revision == elsewhere.view().revision


def fleet(count: int) -> World:
    world = World()
    for number in range(count):
        world.registry.register(sample_instance("BIG", f"i{number}"))
    return world


@pytest.fixture
def spelled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread in which an instance was spelled, for each time that one was."""
    threads: list[str] = []
    shown = form.shown

    def spell(instance: Any) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return shown(instance)

    monkeypatch.setattr(form, "shown", spell)
    return threads


@pytest.mark.parametrize("path", ["/instances", "/services/big", "/instances?status=ALL"])
def test_a_fleet_is_spelled_once_for_all_callers_and_not_in_the_loop(
    path: str, spelled: list[str]
) -> None:
    world = fleet(3000)
    api = NativeApi(world.registry, NativeSettings())

    def answer(is_quick: bool) -> Any:
        target, _, query = path.partition("?")
        return api.answer(
            Request("GET", BASE + target, query, {}, lambda _: b"", is_quick=is_quick)
        )

    assert answer(is_quick=True) is None
    first = answer(is_quick=False)
    again = answer(is_quick=True)
    assert len(spelled) <= 3000 + 16 * 2 * listing.PORTION
    spelled.clear()
    assert answer(is_quick=True) == first == again
    assert spelled == []
    assert len(json.loads(first.whole_body())["instances"]) == 3000
    world.registry.register(sample_instance("BIG", "i7", last_dirty_ms=1))
    changed = answer(is_quick=True)
    assert len(spelled) <= 2 * listing.PORTION
    assert {id(part) for part in changed.parts} & {id(part) for part in first.parts}


def test_what_only_one_caller_asks_for_is_looked_for_in_a_thread(world: World) -> None:
    for number in range(600):
        world.registry.register(sample_instance("BIG", f"i{number}"))
    lists = Lists(world.registry)
    for wanted in (Wanted(id="i7"), Wanted(tags=frozenset("x")), Wanted(columns=("id",))):
        with pytest.raises(NotYetError):
            lists.spelled(wanted, is_quick=True)
    assert b"i7" in b"".join(lists.spelled(Wanted(id="i7"), is_quick=False)[1])


class SlowReader(Reader):
    """One that reads nothing until it is told to."""

    def __init__(self, world: World, api: NativeApi, query: str = "", **headers: str) -> None:
        self.unread = 0
        self.pieces: list[bytes] = []
        self.written = b""
        self.ended = False
        self.api = api
        stream: Any = api.stream(Request("GET", f"{BASE}/watch", query, headers, lambda _: b""))
        self.leave = stream.subscribe(self._write, self._end)

    def _write(self, data: bytes) -> int:
        self.unread += len(data)
        if data:
            self.pieces.append(data)
        super()._write(data)
        return self.unread


def test_many_watchers_that_come_at_once_share_one_snapshot(spelled: list[str]) -> None:
    """Each gets it as fast as it reads, and holds up neither the others nor the loop."""
    world = fleet(3000)
    api = NativeApi(world.registry, NativeSettings())
    readers = [SlowReader(world, api) for _ in range(20)]
    assert all(reader.written == b"" for reader in readers)
    for _ in range(1000):
        api.tick()
        for thread in threading.enumerate():
            if thread.name == "snapshot":
                thread.join(HANG_SECS)
        for reader in readers[1:]:
            reader.unread = 0
        if all(reader.written.endswith(b"\n\n") for reader in readers[1:]):
            break
    assert len(readers[0].written) < 300_000 < len(readers[1].written)
    for reader in readers[1:]:
        ((_, kind, data),) = reader.events()
        assert (kind, len(data)) == ("snapshot", 3000)
    assert len(spelled) <= 3000 + 16 * 2 * listing.PORTION
    assert spelled.count("MainThread") <= 16 * 2 * listing.PORTION
    shared = [{id(piece) for piece in reader.pieces} for reader in readers[1:]]
    assert len(set.intersection(*shared)) > 3000 // (3 * listing.PORTION)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_what_changes_while_a_watcher_arrives_is_told_once_and_in_order(accept: str) -> None:
    world = fleet(900)
    api = NativeApi(world.registry, NativeSettings())
    reader = SlowReader(world, api, accept=accept)
    changed = []
    for number in range(30):
        world.registry.register(sample_instance("BIG", f"i{number}", last_dirty_ms=1 + number))
        changed.append(str(world.registry.view().revision))
        api.tick()
        reader.unread = 0
    api.tick()
    if accept == "application/json":
        assert reader.ended
        told = json.loads(reader.written)
        assert (told["revision"], len(told["snapshot"])) == (900, 900)
        return
    for _ in range(30):
        reader.unread = 0
        api.tick()
    (revision, kind, data), *events = reader.events()
    assert (kind, len(data)) == ("snapshot", 900)
    assert [n for n, _, _ in events] == [n for n in changed if int(n) > int(revision)]
