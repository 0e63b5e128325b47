"""The catalog of a genuine Consul."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from catalogs import RelistError, SourceError, Terms, consul
from catalogs.consul import ConsulCatalog, ConsulSettings
from catalogs.testing import HANG_SECS, Followed, RemoteCatalogSuite, until
from conformance.programs import free_port
from registry import Instance
from tests.servers import counted
from tests.sources import wait_for_sources
from tests.sources.consul_agent import ConsulSource


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulSource]:
    source = ConsulSource(tmp_path_factory.mktemp("consul"))
    yield source
    source.kill()


@pytest.fixture
def source(agent: ConsulSource) -> Iterator[ConsulSource]:
    yield agent
    agent.clear()


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow agent is waited for; but in the suite below, which has one that hangs."""
    if request.cls is None:
        wait_for_sources(monkeypatch)
        monkeypatch.setattr(consul, "_SLACK_SECS", HANG_SECS)


class TestConsulCatalog(RemoteCatalogSuite):
    """On a genuine server, one for all: it takes long to elect itself."""


def listed(catalog: ConsulCatalog) -> dict[str, Instance]:
    entries = [e.instance for group in catalog.list().values() for e in group]
    return {i.metadata["consul-id"]: i for i in entries}


def catalog_of(source: ConsulSource, **settings: Any) -> ConsulCatalog:
    return ConsulCatalog(ConsulSettings(name="test", url=source.url, **settings))


def test_tags_meta_nodes_and_zones_are_carried_over(source: ConsulSource) -> None:
    source.ask(
        "catalog/register",
        {
            "Node": "n1",
            "Address": "10.1.1.1",
            "NodeMeta": {"zone": "eu-1a", "rack": "7"},
            "Service": {
                "ID": "api-1",
                "Service": "api",
                "Port": 8443,
                "Tags": ["v2", "https"],
                "Meta": {"team": "blue"},
            },
        },
    )
    instance = listed(catalog_of(source, prefix="dc1-"))["api-1"]
    assert (instance.app, instance.ip_addr) == ("DC1-API", "10.1.1.1")
    assert (instance.secure_port, instance.secure_port_enabled) == (8443, True)
    assert instance.tags == ("v2", "https", "consul:test")
    wanted = {"team": "blue", "node-rack": "7", "zone": "eu-1a", "consul-node": "n1"}
    assert wanted.items() <= instance.metadata.items()


def test_checks_decide_the_status(source: ConsulSource) -> None:
    states = {
        "none": [],
        "good": [("c", "passing")],
        "warned": [("c", "passing"), ("d", "warning")],
        "bad": [("c", "warning"), ("d", "critical")],
        "aside": [("_service_maintenance:aside", "critical")],
    }
    for name, checks in states.items():
        source.register(
            {"ID": name, "Service": "web", "Address": "10.0.0.1", "Port": 1000 + len(name)},
            [
                {"CheckID": i if ":" in i else f"{name}-{i}", "Name": i, "Status": s}
                for i, s in checks
            ],
        )
    found = {name: str(i.status) for name, i in listed(catalog_of(source)).items()}
    assert found == {
        "none": "UP",
        "good": "UP",
        "warned": "UP",
        "bad": "DOWN",
        "aside": "OUT_OF_SERVICE",
    }
    assert set(listed(catalog_of(source, passing_only=True))) == {"none", "good", "warned"}


def test_services_are_chosen_by_tag_and_name(source: ConsulSource) -> None:
    for name, tags in (("a", ["x"]), ("b", ["y"]), ("c", ["x"])):
        source.register(
            {"ID": name, "Service": name, "Address": "10.0.0.1", "Port": 80, "Tags": tags}
        )
    assert set(listed(catalog_of(source))) == {"a", "b", "c"}
    assert set(listed(catalog_of(source, tag="x", without=("c",)))) == {"a"}


@pytest.mark.programs
def test_an_acl_token_is_needed_and_never_shown(tmp_path: Path) -> None:
    token = "5f8a3c1e-0000-4000-8000-000000000001"
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": token}}
    file = tmp_path / "token"
    file.write_text(token + "\n")
    source = ConsulSource(tmp_path, token, acl=acl)
    try:
        source.put("web", "10.0.0.1", 80)
        assert len(listed(catalog_of(source, token_file=file))) == 1
        file.write_text("5f8a3c1e-0000-4000-8000-00000000dead")
        with pytest.raises(SourceError, match="answers 403") as caught:
            catalog_of(source, token_file=file).list()
        assert "dead" not in str(caught.value)
    finally:
        source.kill()


def service_of(name: str, **more: Any) -> dict[str, Any]:
    return {"ID": name, "Service": name, "Address": "10.0.0.1", "Port": 80, **more}


def test_proxies_and_gateways_are_not_listed_as_if_they_spoke_http(source: ConsulSource) -> None:
    source.register(service_of("web"))
    source.register(
        service_of(
            "web-sidecar-proxy",
            Kind="connect-proxy",
            Port=21000,
            Proxy={"DestinationServiceName": "web"},
        )
    )
    source.register(service_of("mesh", Kind="mesh-gateway", Port=8443))
    assert set(listed(catalog_of(source))) == {"web"}


def test_a_service_without_a_port_is_where_it_is_and_nobody_sends_http_there(
    source: ConsulSource,
) -> None:
    source.register(service_of("batch", Port=0))
    instance = listed(catalog_of(source))["batch"]
    assert (instance.endpoint_type, instance.endpoint_value) == ("tcp", "10.0.0.1")
    assert (instance.host_name, instance.ip_addr) == ("10.0.0.1", "10.0.0.1")
    assert (instance.port_enabled, instance.secure_port_enabled) == (False, False)


def test_an_instance_that_cannot_be_listed_is_named_and_takes_no_other_with_it(
    source: ConsulSource,
) -> None:
    source.register(service_of("good"))
    source.register(service_of("n" * 200))
    source.register(service_of("odd", Address="no host"))
    catalog = catalog_of(source)
    assert set(listed(catalog)) == {"good"}
    first, second = catalog.problems
    assert first.startswith("n" * 80 + "… (200 characters)/")
    assert "no service's name" in first
    assert second.startswith("odd/odd: not host:port or a URL")


def checks(*indexes: int) -> list[dict[str, Any]]:
    return [
        {"Node": "n", "CheckID": f"c{n}", "ServiceName": "web", "Status": "passing"}
        | {"ModifyIndex": index}
        for n, index in enumerate(indexes)
    ]


class FakeChecks(ConsulCatalog):
    """A fake of which two answers differ, and their indexes add up to the same."""

    def __init__(self, settings: ConsulSettings) -> None:
        super().__init__(settings)
        self.asked: list[str] = []

    def _answered(self, path: str, index: int | None = None) -> tuple[bytes, int]:
        self.asked.append(path)
        if "state" in path:
            time.sleep(0.01)  # as the agent does while nothing happens
            told = checks(100, 50) if index is None else checks(150)
            return orjson.dumps(told), 7
        if "services" in path:
            time.sleep(0.01)
            return b'{"web": []}', 7
        return b"[]", 7


def test_checks_are_compared_one_by_one() -> None:
    catalog = FakeChecks(ConsulSettings(name="test"))
    catalog.list()
    catalog.asked.clear()
    changes = catalog.watch(threading.Event())
    until(lambda: next(changes) is not None and "/v1/health/service/web" in catalog.asked)
    changes.close()
    catalog.close()


def test_an_agent_that_is_not_there_is_named_with_the_reason() -> None:
    catalog = ConsulCatalog(ConsulSettings(name="test", url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(SourceError, match="cannot be reached: Connection refused"):
        catalog.list()


class FakeConsul(ConsulCatalog):
    """A fake whose index goes back, as a real one's does where its data were restored."""

    def _answered(self, path: str, index: int | None = None) -> tuple[bytes, int]:
        return (b"[]" if "state" in path else b"{}"), 7 if index is None else 3


def test_an_index_that_goes_back_asks_for_a_list() -> None:
    catalog = FakeConsul(ConsulSettings(name="test"))
    catalog.list()
    with pytest.raises(RelistError, match="went back from 7 to 3"):
        list(catalog.watch(threading.Event()))


def test_a_watch_that_ends_leaves_no_connections_behind(source: ConsulSource) -> None:
    source.put("web", "10.0.0.1", 80)
    catalog = catalog_of(source, wait_secs=1)
    catalog.list()
    before = len(catalog._clients)
    for _ in range(3):
        changes = catalog.watch(threading.Event())
        next(changes)
        changes.close()
    until(lambda: len(catalog._clients) == before)
    catalog.close()


def test_a_change_of_one_service_among_hundreds_is_seen_without_a_list(
    source: ConsulSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = counted(monkeypatch, ConsulCatalog, "list")
    source.put_many([(f"s{n % 200}", f"10.{n // 250}.{n % 250}.1", 80) for n in range(2000)])
    followed = Followed(source, Terms())
    followed.start()
    try:
        until(lambda: len(followed.instances()) == 2000)
        for number in range(5):
            source.put("s7", f"10.99.0.{number}", 80)
            until(lambda n=number: (f"10.99.0.{n}", 80) in followed.instances())
        assert len(lists) == 1
    finally:
        followed.runner.stop()
