"""``GET /api/v1/status``: figures, sentences and warnings, on a clock set by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from eureka_compat.settings import EurekaSettings
from eureka_http.exchange import Answer, Request
from eureka_server.access import Access, AccessSettings
from eureka_server.gateway import Gateway
from native_api.settings import NativeSettings
from native_api.status import Server, Status
from registry import (
    Evictor,
    InstanceStatus,
    NotYetError,
    Registry,
    RegistrySettings,
    StoreError,
    StoreState,
)
from registry.model import Revision
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, sample_instance

PEER = {"url": "http://b:8761/eureka", "state": "up", "pending": 3, "lag_ms": 40, "problem": ""}
CATALOG = {"source": "file:x", "state": "following", "entries": 2, "stale": False, "problems": ()}


class Broken(MemoryStore):
    """A store that does not answer while it is told so."""

    fails = False

    def expected_clients(self, namespace: Any) -> int | None:
        if self.fails:
            raise StoreError("no answer")
        return super().expected_clients(namespace)


class World:
    """A namespace, its evictor, and its status as an administrator sees it."""

    def __init__(
        self,
        *,
        catalogs: tuple[dict[str, Any], ...] = (),
        peers: dict[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
        warnings: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.clock = ManualClock()
        self.store = Broken()
        self.whole = Registry(self.store, self.clock, RegistrySettings(**options))
        self.registry = self.whole.in_namespace(self.whole.namespaces()[0])
        self.evictor = Evictor(self.whole, self.store)
        self.server = Server(
            version="1.2.3",
            workers=4,
            began=time.monotonic() - 5,
            store_url="redis://user:secret@host:6379/0",
            state=lambda: StoreState(Revision(7), 4096),
            check=check,
            warnings=warnings,
        )
        self.status = Status(self.registry, self.server, lambda: catalogs, lambda: peers or {})

    def pass_time(self, secs: float) -> None:
        for _ in range(int(secs * 2)):
            self.clock.advance(500)
            self.evictor.run_once()

    def shown(self, *, is_admin: bool = True) -> dict[str, Any]:
        self.clock.advance(1_000)
        return self.status.document(is_admin=is_admin)


def test_it_has_all_the_figures_of_a_namespace() -> None:
    peers = {"mode": "replicate", "verdict": "Safe.", "peers": [PEER], "worker": 1}
    world = World(catalogs=(CATALOG,), peers=peers)
    for number in range(3):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.registry.register(sample_instance("API", "api:1", status=InstanceStatus.DOWN))
    world.registry.register(sample_instance("API", "api:2", source="file:x"))
    for _ in range(5):
        world.pass_time(20)
        for number in range(3):
            world.registry.renew("WEB", f"web:{number}")
        world.registry.renew("API", "api:1")
    found = world.shown()
    assert found.pop("uptime_ms") >= 5_000
    assert found == {
        "version": "1.2.3",
        "namespace": "default",
        "revision": 5,
        "applications": 2,
        "instances": {
            "total": 5,
            "UP": 4,
            "DOWN": 1,
            "STARTING": 0,
            "OUT_OF_SERVICE": 0,
            "UNKNOWN": 0,
        },
        "leases": 4,
        "renewals": {"last_minute": 12, "threshold": 8, "expected": 10, "expected_clients": 5},
        "self_preservation": {
            "mode": "genuine",
            "active": False,
            "since": None,
            "sentence": (
                "Self-preservation is not on: 12 renewals came in the last whole minute, and more"
                " than 8 are enough (85 % of what 5 expected clients send)."
            ),
            "applications": [],
        },
        "workers": 4,
        "store": {"url": "redis://host:6379/0", "size_bytes": 4096, "life": 7},
        "peers": {
            "mode": "replicate",
            "verdict": "Safe.",
            "peers": [
                {"url": "http://b:8761/eureka", "state": "up", "pending": 3, "lag_ms": 40},
            ],
        },
        "catalogs": [{"source": "file:x", "state": "following", "entries": 2, "stale": False}],
        "warnings": [],
    }


def test_self_preservation_says_since_when_and_what_ends_it() -> None:
    world = World()
    world.registry.register(sample_instance())
    world.pass_time(2)
    world.pass_time(100)
    sentence = (
        "Self-preservation has been on since 2023-11-14 22:13:20 UTC: 0 renewals came in the last"
        " whole minute, and nothing is evicted unless more than 3 come (85 % of what 2 expected"
        " clients send, each every 30 s). It ends after a minute with more than 3; the count of"
        " expected clients will not go down by itself, for the 1 that are registered are not more"
        " than 85 % of it; or when the loss is accepted."
    )
    found = world.shown()
    assert found["self_preservation"] == {
        "mode": "genuine",
        "active": True,
        "since": "2023-11-14T22:13:20.500Z",
        "sentence": sentence,
        "applications": [],
    }
    assert found["warnings"] == [sentence]


def test_self_preservation_says_what_the_next_count_of_clients_will_change() -> None:
    world = World()
    for number in range(9):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.pass_time(1)
    assert (
        "; or when the expected clients are counted again, which is each 15 min: 9 are registered,"
        " for whom more than 15 are enough; or when the loss is accepted."
        in world.shown()["self_preservation"]["sentence"]
    )


def test_self_preservation_without_expected_clients_says_so() -> None:
    world = World(default_open_for_traffic_count=0)
    assert world.shown()["self_preservation"]["sentence"] == (
        "Self-preservation is not on: nobody is registered who has to renew."
    )
    world.registry.register(sample_instance())
    assert world.shown()["self_preservation"]["sentence"] == (
        "Self-preservation is on: no client is expected to renew yet, and until one is nothing is"
        " evicted. It ends when the expected clients are counted again, which is each 15 min, or"
        " when the loss is accepted."
    )


def test_self_preservation_that_is_off_says_what_goes() -> None:
    world = World(self_preservation=False)
    found = world.shown()["self_preservation"]
    assert (found["mode"], found["active"]) == ("off", False)
    assert found["sentence"] == (
        "Self-preservation is switched off: what expires goes, at most 15 % of the registry in any"
        " 60 s."
    )


def test_entering_and_leaving_are_logged_once_and_known_to_every_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(renewal_threshold_update_interval_ms=200_000)
    for number in range(9):
        world.registry.register(sample_instance(instance_id=f"web:{number}"))
    world.pass_time(1)
    another = Registry(world.store, world.clock, world.registry.settings)
    assert another.in_namespace(world.registry.namespace).preservation().since_ms is not None
    world.evictor.stop()
    world.evictor = Evictor(another, world.store)
    for _ in range(20):
        world.pass_time(15)
        for number in range(9):
            world.registry.renew("WEB", f"web:{number}")
    lines = [line for line in caplog.messages if "self-preservation in" in line]
    assert [line.split(": ")[0] for line in lines] == [
        "entered self-preservation in default",
        "left self-preservation in default",
    ]
    assert "Self-preservation has been on since 2023-11-14 22:13:20 UTC: 0 renewals" in lines[0]
    assert "Self-preservation is not on: " in lines[1]
    assert world.registry.preservation().since_ms is None


def test_a_warning_is_a_sentence_about_something_to_do() -> None:
    def broken() -> None:
        raise StoreError("the disk is full")

    down = PEER | {"state": "down", "problem": "refused"}
    stale = CATALOG | {"stale": True, "state": "stale"}
    troubled = CATALOG | {"source": "file:y", "problems": ("port 0",)}
    world = World(
        catalogs=(stale, troubled),
        peers={"mode": "replicate", "verdict": "Not known.", "peers": [down, PEER]},
        check=broken,
        warnings=("X has no effect here.",),
        max_instances=1,
        self_preservation=False,
    )
    world.registry.register(sample_instance())
    assert world.shown()["warnings"] == [
        "The store takes no writes, so nobody can register or renew: the disk is full.",
        "This namespace lists 1 instances of the 1 that it may; raise REGISTRY_MAX_INSTANCES before"
        " the next are refused.",
        "The catalog file:x does not answer, and what it brought is shown as stale.",
        "The catalog file:y has problems: see /api/v1/catalogs.",
        "The peer http://b:8761/eureka does not answer: refused.",
        "X has no effect here.",
    ]


def test_who_is_no_administrator_sees_what_concerns_the_namespace_alone() -> None:
    world = World(
        catalogs=(CATALOG, CATALOG | {"source": "file:y"}),
        peers={"mode": "replicate", "verdict": "Safe.", "peers": [PEER | {"state": "down"}]},
        warnings=("X has no effect here.",),
        self_preservation=False,
    )
    world.registry.register(sample_instance(source="file:x"))
    found = world.shown(is_admin=False)
    assert (found["store"], found["peers"], found["warnings"]) == (None, None, [])
    assert found["catalogs"] == [
        {"source": "file:x", "state": "following", "entries": 1, "stale": False}
    ]


def test_a_store_that_does_not_answer_leaves_what_is_in_memory() -> None:
    world = World()
    world.registry.register(sample_instance())
    world.store.fails = True
    found = world.shown()
    assert found["instances"]["total"] == 1
    assert (found["renewals"], found["self_preservation"]) == (None, None)


def test_it_is_made_once_a_second_and_never_in_the_loop() -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1

    world = World(check=check)
    for _ in range(10):
        world.clock.advance(200)
        world.status.document(is_admin=True)
        assert world.status.document(is_admin=True, is_quick=True)["version"] == "1.2.3"
    assert asked == 2
    world.clock.advance(1_000)
    with pytest.raises(NotYetError):
        world.status.document(is_admin=True, is_quick=True)


def test_it_is_served_to_all_namespaces_and_before_a_peer_has_answered() -> None:
    class Waiting:
        def is_open(self) -> bool:
            return False

        def is_shadow(self) -> bool:
            return False

        def report(self) -> dict[str, Any]:
            return {"mode": "replicate", "peers": [], "verdict": "Not known."}

    world = World()
    access = Access(AccessSettings(mode="trusted"))
    gateway = Gateway(
        world.whole, EurekaSettings(), NativeSettings(), access, tuple, Waiting(), world.server
    )
    request = Request("GET", "/api/v1/status", "", {"authorization": "Bearer red"}, lambda _: b"")
    answer = gateway.answer(request)
    assert isinstance(answer, Answer)
    assert (answer.status, b'"namespace":"red"' in answer.body) == (200, True)
