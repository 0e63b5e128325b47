"""Why an instance is as it is: each sentence from its situation, on a clock set by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from eureka_compat.peers.hold import Asked, Hold, tell
from registry import (
    DEFAULT_NAMESPACE,
    Asker,
    Evictor,
    InstanceStatus,
    NotYetError,
    Registering,
    StoreError,
    asking,
    explain,
)
from registry.testing import sample_instance
from tests.in_process import InProcess

AT_START = "2023-11-14 22:13:20 UTC"


class World(InProcess):
    """A server in this process, its evictor, and what it says of ``web:1``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.evictor = Evictor(self.whole, self.store, rng=random.Random(1))
        self.evictor.run_once()

    def pass_time(self, secs: float) -> None:
        for _ in range(int(secs * 2)):
            self.clock.advance(500)
            self.evictor.run_once()

    def why(self, instance_id: str = "web:1", **query: str) -> tuple[str, dict[str, Any]]:
        reply = self.client.get(f"/api/v1/instances/{instance_id}/why", query_string=query)
        assert reply.status_code == 200, reply.text
        return reply.json["why"], reply.json["facts"]

    def fleet(self, count: int, **fields: Any) -> None:
        """So many others, so that one in a hundred has room to go."""
        for number in range(count):
            self.registry.register(sample_instance(instance_id=f"other:{number}", **fields))


@pytest.fixture
def world() -> World:
    return World()


def test_one_paragraph_says_status_renewal_end_and_origin(world: World) -> None:
    world.registry.register(sample_instance(duration_secs=90))
    world.pass_time(20)
    world.registry.renew("WEB", "web:1")
    world.pass_time(12.5)
    text, facts = world.why()
    assert text == (
        "web:1 of WEB is listed as UP: it says so itself, and there is no override."
        " Its client renewed its lease 12 s ago, at this server; it says that it renews every 30 s."
        " Its lease of 90 s ends in 77 s, at 2023-11-14 22:15:10 UTC. If no renewal comes, it is"
        " evicted within about a second then."
        f" It registered itself by the Eureka protocol, last at {AT_START}."
    )
    assert facts == {
        "id": "web:1",
        "application": "WEB",
        "namespace": "default",
        "listed": True,
        "revision": 1,
        "status": "UP",
        "custom_status": None,
        "override": None,
        "rule": "reported",
        "renewed_by": "client",
        "renewed_ms_ago": 12_500,
        "last_renewal_at": "2023-11-14T22:13:40.000Z",
        "renewal_interval_secs": 30,
        "missed_heartbeats": 0,
        "lease_secs": 90,
        "lease_ends_at": "2023-11-14T22:15:10.000Z",
        "lease_ends_in_ms": 77_500,
        "lease_has_ended": False,
        "held_by": [],
        "source": "eureka",
        "origin": None,
        "told_by_peer": False,
        "registered_at": "2023-11-14T22:13:20.000Z",
    }


# What its status is, and which rule decided


def test_an_override_decides(world: World) -> None:
    world.registry.register(sample_instance())
    world.registry.set_override("WEB", "web:1", InstanceStatus.OUT_OF_SERVICE)
    text, facts = world.why()
    assert text.startswith(
        "web:1 of WEB is listed as OUT_OF_SERVICE: an override says so, whatever it says itself"
        " (rule override_exists)."
    )
    assert (facts["rule"], facts["override"]) == ("override_exists", "OUT_OF_SERVICE")


def test_who_cannot_serve_is_believed_before_an_override(world: World) -> None:
    world.registry.register(sample_instance())
    world.registry.set_override("WEB", "web:1", InstanceStatus.OUT_OF_SERVICE)
    world.registry.register(sample_instance(status=InstanceStatus.DOWN, last_dirty_ms=1 << 50))
    text, facts = world.why()
    assert text.startswith(
        "web:1 of WEB is listed as DOWN: it says so itself, and whoever cannot serve is believed,"
        " before the override OUT_OF_SERVICE that is set for its id (rule down_or_starting)."
    )
    assert facts["rule"] == "down_or_starting"


def test_who_says_that_it_starts_is_believed(world: World) -> None:
    world.registry.register(sample_instance(status=InstanceStatus.STARTING))
    assert "listed as STARTING: it says so itself, and whoever cannot serve is" in world.why()[0]


def test_who_registered_out_of_service_cannot_come_back_by_itself(world: World) -> None:
    world.registry.register(sample_instance(status=InstanceStatus.OUT_OF_SERVICE))
    world.registry.register(sample_instance(status=InstanceStatus.UP, last_dirty_ms=1 << 50))
    text, facts = world.why()
    assert text.startswith(
        "web:1 of WEB is listed as OUT_OF_SERVICE: it registered so, without an override, and"
        " cannot put itself back by registering as UP (rule lease_exists); an override UP does, or"
        " registering after a cancel."
    )
    assert facts["rule"] == "lease_exists"


def test_an_override_removed_without_a_status_leaves_unknown(world: World) -> None:
    world.registry.register(sample_instance())
    world.registry.set_override("WEB", "web:1", InstanceStatus.OUT_OF_SERVICE)
    world.registry.remove_override("WEB", "web:1")
    text, _ = world.why()
    assert text.startswith(
        "web:1 of WEB is listed as UNKNOWN: an override was removed without a status to be shown"
        " instead; its client's next heartbeat is answered that it must register again"
    )
    assert world.registry.renew("WEB", "web:1") is None


def test_an_override_of_a_peers_waits_for_the_next_heartbeat(world: World) -> None:
    world.registry.register(sample_instance())
    down = InstanceStatus.OUT_OF_SERVICE
    world.registry.store_override("WEB", "web:1", down, last_dirty_ms=1 << 50)
    text, facts = world.why()
    assert "listed as UP: so it was registered; the override OUT_OF_SERVICE that another" in text
    assert facts["rule"] == "reported"
    world.registry.renew("WEB", "web:1")
    assert world.why()[1]["rule"] == "override_exists"


def test_a_word_of_its_own_is_told(world: World) -> None:
    document = {"service_name": "web", "endpoint": {"type": "tcp", "value": "h:1"}}
    reply = world.client.post("/api/v1/instances", json=document | {"status": "canary"})
    text, facts = world.why(reply.json["id"])
    assert "Its own word for that is 'canary', which the native API shows." in text
    assert facts["custom_status"] == "canary"


# When it renewed last, and through whom


def test_who_never_renewed_has_registered_and_who_is_late_has_missed_heartbeats(
    world: World,
) -> None:
    world.registry.register(sample_instance())
    world.pass_time(80)
    text, facts = world.why()
    assert (
        "It registered 80 s ago and has not renewed since; it says that it renews every 30 s,"
        " so 2 heartbeats did not come." in text
    )
    assert (facts["renewed_by"], facts["missed_heartbeats"]) == ("registration", 2)


@pytest.mark.parametrize(("secs", "missed"), [(30, 0), (44, 0), (46, 1), (74, 1), (76, 2)])
def test_a_heartbeat_is_missed_when_it_is_half_an_interval_late(
    world: World, secs: int, missed: int
) -> None:
    world.registry.register(sample_instance())
    world.pass_time(secs)
    assert world.why()[1]["missed_heartbeats"] == missed


@pytest.mark.parametrize("expiry", ["exact", "genuine"])
def test_a_renewal_by_a_peer_is_told_as_such(expiry: str) -> None:
    world = World(lease_expiry=expiry)
    world.registry.register(sample_instance())
    world.pass_time(20)
    world.registry.renew("WEB", "web:1")
    world.pass_time(30)
    world.registry.renew("WEB", "web:1", is_replication=True)
    world.pass_time(5)
    text, facts = world.why()
    assert "Its client renewed its lease 5 s ago, at another server;" in text
    assert (facts["renewed_by"], facts["renewed_ms_ago"]) == ("peer", 5_000)
    world.registry.renew("WEB", "web:1")
    assert world.why()[1]["renewed_by"] == "client"


def test_an_operators_change_renews_a_lease_too(world: World) -> None:
    world.registry.register(sample_instance())
    world.pass_time(40)
    world.registry.set_override("WEB", "web:1", InstanceStatus.OUT_OF_SERVICE)
    world.pass_time(3)
    text, facts = world.why()
    assert "A change of its status renewed its lease 3 s ago;" in text
    assert facts["renewed_by"] == "operator"


# When it goes, and what holds it


def test_self_preservation_holds_it_with_its_numbers() -> None:
    world = World(self_preservation=True)
    world.registry.register(sample_instance())
    world.pass_time(1)
    assert "It would be kept then: Self-preservation has been on since" in world.why()[0]
    world.pass_time(120)
    text, facts = world.why()
    assert "Its lease of 90 s ended 31 s ago, at 2023-11-14 22:14:50 UTC." in text
    assert (
        "Self-preservation has been on since 2023-11-14 22:13:20 UTC: 0 renewals came in the last"
        " whole minute, and nothing is evicted unless more than 3 come (85 % of what 2 expected"
        " clients send, each every 30 s)." in text
    )
    assert facts["held_by"] == ["self-preservation"]


def test_the_eviction_limit_holds_it(world: World) -> None:
    world.fleet(9)
    world.registry.register(sample_instance())
    world.pass_time(92)
    held = next(i for i in world.registry.view().applications["WEB"])
    text, facts = world.why(held)
    assert (
        "The eviction limit holds it: 2 of 10 instances were evicted in the last 60 s, and no more"
        " than 2 may be." in text
    )
    assert facts["held_by"] == ["eviction-limit"]


def test_nothing_holds_it(world: World) -> None:
    world.registry.register(sample_instance())
    world.clock.advance(2_000)
    world.evictor.run_once()
    world.clock.advance(89_000)
    text, facts = world.why()
    assert "Nothing holds it: it goes with the evictor's next pass, within a second." in text
    assert (facts["lease_has_ended"], facts["held_by"]) == (True, [])


def test_the_genuine_timing_has_sweeps() -> None:
    world = World(lease_expiry="genuine")
    world.registry.register(sample_instance())
    world.pass_time(10)
    assert "it goes with the next sweep then, one every 60 s." in world.why()[0]
    world.clock.advance(2_000)
    world.evictor.run_once()
    world.clock.advance(81_000)
    assert "Nothing holds it: it goes with the next sweep, one every 60 s." in world.why()[0]


def test_a_peer_that_is_away_holds_it(world: World) -> None:
    world.registry.hold_back(Hold(world.whole, 600_000, doubled=False))
    tell(world.whole, {"http://b": Asked(0, 0)})
    world.registry.register_all([Registering(sample_instance(), is_replication=True)])
    world.pass_time(60)
    tell(world.whole, {"http://b": Asked(0, world.clock.mono_ms())})
    world.pass_time(40)
    text, facts = world.why()
    assert (
        "It renewed last at another server, and it is kept because a server that may know more does"
        " not answer: http://b (away for 40 s); for 9 min 50 s more at most." in text
    )
    assert facts["held_by"] == ["peer"]
    tell(world.whole, {"http://b": Asked(0, 0)})
    world.clock.advance(1_000)
    assert "it is kept until all of them have been asked since its lease ended" in world.why()[0]
    tell(world.whole, {"http://b": Asked(world.clock.mono_ms(), 0)})
    world.clock.advance(1_000)
    assert world.why()[1]["held_by"] == []


def test_a_native_instance_out_of_service_waits(world: World) -> None:
    document = {"service_name": "web", "endpoint": {"type": "tcp", "value": "h:1"}}
    reply = world.client.post("/api/v1/instances", json=document | {"status": "out_of_service"})
    world.pass_time(60)
    text, facts = world.why(reply.json["id"])
    assert "It is put aside and waits to return: while it is OUT_OF_SERVICE it needs no" in text
    assert (
        f"It was registered by the native API, last at {AT_START}, by somebody at 127.0.0.1" in text
    )
    assert facts["held_by"] == ["out-of-service"]


# What a catalog lists


CATALOG = {"source": "file:x", "state": "following", "stale": False, "last_success_ms": 1}


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({}, "That source answers."),
        ({"state": "failing"}, "That source last answered 40 s ago."),
        (
            {"state": "stale", "stale": True},
            "That source last answered 40 s ago, and its entries are marked as stale.",
        ),
        ({"last_success_ms": 0, "state": "failing"}, "That source has not answered yet."),
    ],
)
def test_a_catalogs_entry_has_no_lease(report: dict[str, Any], said: str) -> None:
    at = {"last_success_ms": 1_700_000_000_000} | report
    world = World(catalogs=lambda: [CATALOG | at])
    world.registry.register(sample_instance(source="file:x", origin="web.yaml"))
    world.pass_time(40)
    text, facts = world.why()
    assert text == (
        "web:1 of WEB is listed as UP: its source file:x alone says what it is. It has no lease and"
        f" needs no heartbeats: it goes when file:x no longer has it. {said}"
        f" The catalog file:x (web.yaml) listed it at {AT_START}."
    )
    assert (facts["rule"], facts["held_by"]) == ("source", ["source"])


def test_a_catalog_that_is_no_longer_set_up_keeps_nothing_up_to_date(world: World) -> None:
    world.registry.register(sample_instance(source="file:x"))
    assert "No catalog file:x is set up here any more, so nothing keeps it" in world.why()[0]


# Where it came from


def test_a_peer_told_of_it(world: World) -> None:
    world.registry.register(sample_instance(), is_replication=True)
    text, facts = world.why()
    assert text.endswith(
        f"Another server told of it by the Eureka protocol; it was last registered at {AT_START}."
    )
    assert facts["told_by_peer"] is True


# Who is not listed


def test_who_was_evicted(world: World) -> None:
    world.registry.register(sample_instance())
    world.pass_time(100)
    text, facts = world.why()
    assert text == (
        "web:1 of WEB is not listed: it was evicted 9.5 s ago, at 2023-11-14 22:14:50 UTC, because"
        " its lease of 90 s had ended. It was last heard of 90 s before that. It was UP, and last"
        f" registered at {AT_START}."
    )
    assert (facts["listed"], facts["gone"], facts["gone_ms_ago"]) == (False, "evicted", 9_500)


def test_who_was_kept_for_a_while_and_then_evicted() -> None:
    world = World(self_preservation=True)
    world.registry.register(sample_instance())
    world.pass_time(120)
    world.registry.accept_loss(None)
    world.pass_time(1)
    assert (
        "It was last heard of 2 min before that, and self-preservation had kept it for 30 s."
        in world.why()[0]
    )


CANCELS = [
    ("eureka", False, "because its client or an operator cancelled it."),
    ("eureka", True, "because it was cancelled at another server."),
    ("file:x", False, "because file:x no longer had it."),
]


@pytest.mark.parametrize("is_kept", [True, False], ids=["history", "log"])
@pytest.mark.parametrize(("source", "by_peer", "said"), CANCELS)
def test_who_was_cancelled(
    world: World, source: str, by_peer: bool, said: str, is_kept: bool
) -> None:
    """By the history, and without one by the log of changes."""
    if not is_kept:
        world.registry.history = None
    world.registry.register(sample_instance(source=source))
    world.registry.cancel("WEB", "web:1", source=source, is_replication=by_peer)
    world.clock.advance(2_000)
    text, facts = world.why()
    assert f"web:1 of WEB is not listed: it went 2 s ago, at {AT_START}, {said}" in text
    assert facts["gone"] == "cancelled"


def test_who_was_evicted_before_the_log_begins_is_in_the_history(world: World) -> None:
    world.registry.register(sample_instance())
    world.pass_time(100)
    world.pass_time(220)
    text, _ = world.why()
    assert "web:1 of WEB is not listed: it was evicted 3 min 49 s ago, at 2023-11-14" in text
    world.registry.history = None
    assert "what was before that is not remembered" in world.why()[0]


def test_who_was_never_there(world: World) -> None:
    text, facts = world.why("nobody")
    assert text == (
        "nobody is not listed in the namespace default, and no such instance went since"
        f" {AT_START}, when the history begins."
    )
    assert facts == {
        "id": "nobody",
        "application": None,
        "namespace": "default",
        "listed": False,
        "override": None,
        "gone": None,
    }
    world.registry.history = None
    assert world.why("nobody")[0] == (
        "nobody is not listed in the namespace default, and no such instance went in the last"
        " 3 min; what was before that is not remembered."
    )


# Who asked, by the history


ANN = Asker("ann", "10.0.0.1", "curl/8")


def as_ann(work: Callable[[], object]) -> None:
    before = asking.set(lambda: ANN)
    work()
    asking.reset(before)


def test_who_set_the_override_and_when(world: World) -> None:
    registry, down = world.registry, InstanceStatus.OUT_OF_SERVICE
    registry.register(sample_instance())
    world.pass_time(20)
    as_ann(lambda: registry.set_override("WEB", "web:1", down))
    world.pass_time(12)
    text, facts = world.why()
    assert (
        "(rule override_exists). The override was set 12 s ago, at 2023-11-14 22:13:40 UTC, by ann"
        " at 10.0.0.1 (curl/8)." in text
    )
    assert facts["override_set_by"] == "ann at 10.0.0.1 (curl/8)"
    assert facts["override_set_at"] == "2023-11-14T22:13:40.000Z"


def test_an_override_that_came_with_the_registration_was_set_by_nobody_here(world: World) -> None:
    instance = sample_instance(overridden_status=InstanceStatus.OUT_OF_SERVICE)
    world.registry.register(instance)
    text, facts = world.why()
    assert "The override was set" not in text
    assert "override_set_by" not in facts


def test_an_override_by_a_peer(world: World) -> None:
    world.registry.register(sample_instance())
    down = InstanceStatus.OUT_OF_SERVICE
    world.registry.set_override("WEB", "web:1", down, is_replication=True)
    assert "The override was set 0 s ago, at" in world.why()[0]
    assert world.why()[1]["override_set_by"] == "another server"


def test_who_registered_it(world: World) -> None:
    as_ann(lambda: world.registry.register(sample_instance()))
    text, facts = world.why()
    assert text.endswith(
        f"It was registered by the Eureka protocol, last at {AT_START},"
        " by ann at 10.0.0.1 (curl/8)."
    )
    assert facts["registered_by"] == "ann at 10.0.0.1 (curl/8)"


def test_who_cancelled_it(world: World) -> None:
    world.registry.register(sample_instance())
    as_ann(lambda: world.registry.cancel("WEB", "web:1", source=None))
    text, facts = world.why()
    assert f"at {AT_START}, because it was cancelled by ann at 10.0.0.1 (curl/8)." in text
    assert facts["gone_by"] == "ann at 10.0.0.1 (curl/8)"


def test_a_history_that_does_not_answer_costs_no_more_than_its_sentences(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StoreError("no answer")

    as_ann(lambda: world.registry.register(sample_instance()))
    monkeypatch.setattr(world.recorder, "read", broken)
    monkeypatch.setattr(world.recorder, "extent", broken)
    assert "It registered itself by the Eureka protocol" in world.why()[0]
    assert "what was before that is not remembered" in world.why("nobody")[0]


# Ids


def test_one_id_in_several_services_is_told_apart(world: World) -> None:
    world.registry.register(sample_instance("WEB"))
    world.registry.register(sample_instance("API", status=InstanceStatus.DOWN))
    assert world.why()[0].endswith("Instances of the same id are in API, too.")
    assert world.why(service_name="api")[1]["status"] == "DOWN"
    assert world.why(service_name="nobody")[1]["listed"] is False


@pytest.mark.parametrize("instance_id", ["http://h:1/x", "a/b", "why"])
def test_any_id_can_be_asked_for(world: World, instance_id: str) -> None:
    world.registry.register(sample_instance(instance_id=instance_id))
    assert world.why(instance_id.replace("/", "%2F"))[1]["id"] == instance_id


def test_history_and_what_has_gone_are_not_looked_through_in_the_loop(world: World) -> None:
    registry = world.whole.in_namespace(DEFAULT_NAMESPACE)
    registry.register(sample_instance())
    with pytest.raises(NotYetError):
        explain(registry, "web:1", is_quick=True)
    registry.history = None
    assert explain(registry, "web:1", is_quick=True).facts["listed"]
    with pytest.raises(NotYetError):
        explain(registry, "nobody", is_quick=True)
