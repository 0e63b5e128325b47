"""What probes are told, those that were written for a Spring server among them."""

from __future__ import annotations

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from eureka_server import health
from eureka_server.settings import load
from registry import Registry, RegistrySettings, StoreError
from registry.model import Revision
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock

READY = ("/health/ready", "/health", "/actuator/health", "/actuator/health/readiness")
LIVE = ("/health/live", "/actuator/health/liveness")
OTHERS = ("/actuator", "/actuator/info")


class Broken(MemoryStore):
    """A store that takes no writes while it is told so."""

    fails = False
    remark: str | None = None

    def probe(self) -> str | None:
        if self.fails:
            raise StoreError("no room")
        return self.remark


def client_of(store: MemoryStore, *, actuator: bool = True, is_open: bool = True) -> FlaskClient:
    registry = Registry(store, ManualClock(), RegistrySettings())
    registry.start()
    app = Flask(__name__)
    app.register_blueprint(health.blueprint(registry, actuator=actuator, is_open=lambda: is_open))
    return app.test_client()


@pytest.mark.parametrize("path", [*READY, *LIVE, *OTHERS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_answered_by_both_methods(path: str, method: str) -> None:
    client = client_of(MemoryStore())
    for spelled in (path, path + "/" if path.startswith("/actuator") else path):
        answer = client.open(spelled, method=method)
        assert answer.status_code == 200
        if method == "GET" and path in (*READY, *LIVE):
            assert answer.get_json(force=True) == {"status": "UP"}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/vnd.spring-boot.actuator.v3+json"),
        ("*/*", "application/vnd.spring-boot.actuator.v3+json"),
        ("application/json", "application/json"),
        (
            "application/vnd.spring-boot.actuator.v2+json",
            "application/vnd.spring-boot.actuator.v2+json",
        ),
        ("text/html", "application/vnd.spring-boot.actuator.v3+json"),
    ],
)
def test_health_has_the_type_that_spring_gives_it(accept: str | None, expected: str) -> None:
    headers = {"Accept": accept} if accept else {}
    answer = client_of(MemoryStore()).get("/actuator/health", headers=headers)
    assert (answer.content_type, answer.data) == (expected, b'{"status":"UP"}')


def test_health_follows_readiness_and_liveness_does_not() -> None:
    store = Broken()
    client = client_of(store)
    store.fails = True
    told = {path: client.get(path).get_json(force=True)["status"] for path in READY}
    assert {client.get(path).status_code for path in READY} == {503}
    assert told == dict.fromkeys(READY, "DOWN") | {"/actuator/health/readiness": "OUT_OF_SERVICE"}
    assert {client.get(path).status_code for path in (*LIVE, *OTHERS)} == {200}
    store.fails = False
    assert {client.get(path).status_code for path in READY} == {200}


def test_links_of_the_actuator_lead_somewhere() -> None:
    client = client_of(MemoryStore())
    links = client.get("/actuator").get_json(force=True)["_links"]
    for link in links.values():
        if not link["templated"]:
            assert client.get(link["href"]).status_code == 200


def test_what_spring_has_is_switched_off_by_a_setting() -> None:
    assert load({}).actuator
    assert not load({"REGISTRY_ACTUATOR": "false"}).actuator
    client = client_of(MemoryStore(), actuator=False)
    for path in (*READY, *LIVE, *OTHERS):
        wanted = 200 if path in ("/health/ready", "/health/live") else 404
        assert client.get(path).status_code == wanted


@pytest.mark.parametrize("actuator", [True, False])
def test_the_amalgam8_registrys_uptime_is_answered(actuator: bool) -> None:
    told = client_of(MemoryStore(), actuator=actuator).get("/uptime").json["UPTIME"]
    assert told["healthy"] is True
    assert re.fullmatch(r"\d+\.\d+s", told["properties"]["uptime"])


def test_a_server_that_knows_nothing_yet_is_not_ready() -> None:
    client = client_of(MemoryStore(), is_open=False)

    answer = client.get("/health/ready")

    assert (answer.status_code, answer.json) == (
        503,
        {"status": "DOWN", "reason": "it started empty, and no peer has answered yet"},
    )
    assert client.get("/health/live").status_code == 200


def test_what_is_to_be_said_of_writes_is_said_by_a_server_that_is_ready() -> None:
    store = Broken(Revision(0))
    client = client_of(store)
    assert client.get("/health/ready").json == {"status": "UP"}
    store.remark = "it is offered later"
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json) == (200, {"status": "UP", "reason": store.remark})
    assert client.get("/actuator/health").status_code == 200
