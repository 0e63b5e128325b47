"""The catalog of another Eureka server, a genuine one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from catalogs import RelistError, SourceError, Terms
from catalogs.eureka import EurekaCatalog, EurekaCatalogSettings
from catalogs.http import parsed
from catalogs.testing import Followed, RemoteCatalogSuite, until
from conformance.programs import free_port
from eureka_compat import wire
from registry import Instance
from registry.testing import sample_instance
from tests.servers import JSON, instance_body, send
from tests.sources.eureka_server import EurekaSource


@pytest.fixture(scope="module")
def server() -> Iterator[EurekaSource]:
    source = EurekaSource()
    yield source
    source.close()


@pytest.fixture
def source(server: EurekaSource) -> Iterator[EurekaSource]:
    yield server
    server.clear()


class TestEurekaCatalog(RemoteCatalogSuite):
    """On a genuine server, one for all: it takes long to start."""


@pytest.fixture
def followed(source: EurekaSource) -> Iterator[Followed]:
    followed = Followed(source, Terms())
    followed.start()
    yield followed
    followed.runner.stop()


def genuine(source: EurekaSource, app: str) -> dict[str, Any]:
    reply = send(source.port, "GET", f"/eureka/apps/{app}", None, JSON)
    (instance,) = reply.json()["application"]["instance"]
    return dict(instance)


def test_everything_of_an_instance_is_kept(source: EurekaSource, followed: Followed) -> None:
    body = instance_body(
        "RICH",
        "rich:1",
        status="STARTING",
        port={"$": 8080, "@enabled": "false"},
        securePort={"$": 8443, "@enabled": "true"},
        countryId=7,
        appGroupName="GROUP",
        asgName="asg",
        homePageUrl="https://h:8443/",
        statusPageUrl="https://h:8443/info",
        healthCheckUrl="http://h:8080/health",
        secureHealthCheckUrl="https://h:8443/health",
        vipAddress="a,b",
        secureVipAddress="c",
        metadata={"zone": "z", "odd key": "<&>", "empty": ""},
        dataCenterInfo={
            "@class": wire.AMAZON_CLASS,
            "name": "Amazon",
            "metadata": {"instance-id": "i-1", "availability-zone": "us-1a"},
        },
        leaseInfo={"renewalIntervalInSecs": 7, "durationInSecs": 77},
        lastDirtyTimestamp="1700000000123",
    )
    source.register("RICH", "rich:1", body)
    found = until(lambda: followed.registry.instance("RICH", "rich:1"))
    ours = orjson.loads(orjson.dumps(wire.instance_tree(found)))
    theirs = genuine(source, "RICH")
    for tree in (ours, theirs):
        for name in ("registrationTimestamp", "lastRenewalTimestamp", "serviceUpTimestamp"):
            tree["leaseInfo"].pop(name)
        tree.pop("lastUpdatedTimestamp")
    assert ours == theirs


def test_a_status_that_an_operator_sets_there_is_shown_here(
    source: EurekaSource, followed: Followed
) -> None:
    source.put("web", "10.0.0.1", 80)
    until(lambda: followed.instances())
    path = "/eureka/apps/WEB/10.0.0.1:80/status"
    assert send(source.port, "PUT", f"{path}?value=OUT_OF_SERVICE").status == 200
    until(lambda: followed.instances()["10.0.0.1", 80].status == "OUT_OF_SERVICE")
    assert send(source.port, "DELETE", f"{path}?value=UP").status == 200
    until(lambda: followed.instances()["10.0.0.1", 80].status == "UP")


def test_an_application_that_registers_here_hides_it_and_its_end_brings_it_back(
    source: EurekaSource, followed: Followed
) -> None:
    source.put("web", "10.0.0.1", 80)
    source.put("web", "10.0.0.2", 80)
    until(lambda: len(followed.instances()) == 2)
    own = sample_instance(app="WEB", instance_id="10.0.0.1:80", ip_addr="10.9.9.9", port=80)
    followed.registry.register(own)
    until(lambda: set(followed.instances()) == {("10.9.9.9", 80)})
    assert followed.instances()["10.9.9.9", 80].source == "eureka"
    assert followed.registry.cancel("WEB", "10.0.0.1:80")
    until(lambda: set(followed.instances()) == {("10.0.0.1", 80), ("10.0.0.2", 80)})


def test_a_server_that_does_not_answer_is_left_for_the_next(source: EurekaSource) -> None:
    source.put("web", "10.0.0.1", 80)
    down = f"http://user:s3cret@127.0.0.1:{free_port()}/eureka"
    settings = EurekaCatalogSettings(name="test", urls=(down, source.url))
    assert set(EurekaCatalog(settings).list()) == {"WEB"}
    alone = EurekaCatalog(EurekaCatalogSettings(name="test", urls=(down,)))
    with pytest.raises(SourceError, match="cannot be reached") as caught:
        alone.list()
    assert "s3cret" not in str(caught.value)
    by_path = (f"http://127.0.0.1:{free_port()}/eureka/n/svc:s3cret",)
    with pytest.raises(SourceError, match="/eureka/n/… cannot be reached") as caught:
        EurekaCatalog(EurekaCatalogSettings(name="test", urls=by_path)).list()
    assert "s3cret" not in str(caught.value)


def test_only_the_named_applications_are_taken(source: EurekaSource) -> None:
    for service in ("one", "two", "three"):
        source.put(service, "10.0.0.1", 80)

    def taken(**filters: Any) -> set[str]:
        settings = EurekaCatalogSettings(name="test", urls=(source.url,), **filters)
        return set(EurekaCatalog(settings).list())

    assert taken(applications=("One", "two")) == {"ONE", "TWO"}
    assert taken(without=("one",)) == {"TWO", "THREE"}


class FakeServer(EurekaCatalog):
    """A fake: its answers are given, for what a genuine server cannot be made to say."""

    def __init__(self, *answers: Any) -> None:
        self.now = 0.0
        settings = EurekaCatalogSettings(name="test", urls=("http://fake",), interval_secs=0.1)
        super().__init__(settings, clock=lambda: self.now)
        self._answers = list(answers)
        self._client.read = lambda *_, **__: self._answers.pop(0)  # type: ignore[method-assign]


def document(*instances: Instance, hash_code: str = "") -> dict[str, Any]:
    trees = [wire.instance_tree(instance) for instance in instances]
    apps = [{"name": tree["app"], "instance": [tree]} for tree in trees]
    return {"applications": {"apps__hashcode": hash_code, "application": apps}}


ONE, TWO = sample_instance(instance_id="one"), sample_instance(instance_id="two")


def ids(groups: Any) -> set[str]:
    return {entry.instance.id for entries in groups.values() for entry in entries}


def test_a_hash_code_that_differs_asks_for_a_list() -> None:
    catalog = FakeServer(document(ONE), document(hash_code="UP_2_"))
    catalog.list()
    with pytest.raises(RelistError, match="its hash code is UP_2_, here it is UP_1_"):
        next(catalog.watch(threading.Event()))


def test_a_server_that_has_forgotten_is_believed_after_the_grace() -> None:
    catalog = FakeServer(
        document(ONE, TWO), document(ONE), document(hash_code="UP_1_"), document(hash_code="UP_1_")
    )
    assert ids(catalog.list()) == {"one", "two"}
    assert ids(catalog.list()) == {"one", "two"}
    watch = catalog.watch(threading.Event())
    assert ids(next(watch)) == set()
    catalog.now = 91
    (entries,) = next(watch).values()
    assert [entry.instance.id for entry in entries] == ["one"]


@pytest.mark.parametrize("answer", [[], {"applications": 1}, {"applications": {"application": 7}}])
def test_what_is_no_registry_is_a_fault_of_the_source(answer: Any) -> None:
    with pytest.raises(SourceError, match="no registry"):
        FakeServer(answer).list()


def test_an_instance_that_cannot_be_read_holds_up_no_other() -> None:
    broken = document(ONE, TWO)
    del broken["applications"]["application"][0]["instance"][0]["hostName"]
    catalog = FakeServer(broken)
    assert ids(catalog.list()) == {"two"}
    assert catalog.problems[0].startswith("WEB/one: Missing hostname")


def test_an_application_that_cannot_be_read_holds_up_no_other() -> None:
    broken = document(ONE, TWO)
    broken["applications"]["application"][0]["name"] = 7
    broken["applications"]["application"].append([])
    catalog = FakeServer(broken)
    assert ids(catalog.list()) == {"two"}
    assert catalog.problems == ["an application: expected an object with a name"]


def test_an_instance_that_cannot_be_read_does_not_have_all_listed_at_each_turn() -> None:
    """It is counted in the server's hash code, and not in ours."""
    broken = document(ONE, TWO)
    del broken["applications"]["application"][0]["instance"][0]["hostName"]
    other = document(hash_code="UP_2_")
    mended = document(ONE, hash_code="UP_2_")
    catalog = FakeServer(broken, other, other, mended, document(hash_code="UP_3_"))
    catalog.list()
    watch = catalog.watch(threading.Event())
    assert [ids(next(watch)) for _ in range(3)] == [set(), set(), {"one", "two"}]
    assert catalog.problems == []
    with pytest.raises(RelistError, match="its hash code is UP_3_"):
        next(watch)
    late = FakeServer(broken, other)
    late.list()
    late.now = 61
    assert list(late.watch(threading.Event())) == []


def test_a_text_that_is_none_is_one_instances_affair() -> None:
    """Half of a surrogate pair, as a JSON text can spell it."""
    data = orjson.dumps(document(ONE, TWO)).replace(b'"hostName":"', b'"hostName":"\\ud800', 1)
    catalog = FakeServer(parsed(data))
    assert ids(catalog.list()) >= {"two"}
