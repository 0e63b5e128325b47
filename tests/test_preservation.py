"""Self-preservation in both arithmetics, with fleets on a clock set by hand; accepting a loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eureka_compat.peers.hold import Asked, Hold, tell
from registry import DEFAULT_NAMESPACE, Asker, Evictor, Registering, Registry, StoreError, asking
from registry.figures import EVICTED, EVICTION_REASONS
from registry.lease import eviction_limit
from registry.loss import accept, accepted
from registry.testing import sample_instance
from tests.fleets import Fleet, Member
from tests.in_process import InProcess
from tests.servers import ROOT, RegistryServer, send, wait_until
from tests.test_system import worker_connections

MODES = ("genuine", "by-application")


def by_application(applications: dict[str, Any], **options: Any) -> Fleet:
    return Fleet(applications, {"self_preservation_by": "by-application"} | options)


def evicted(members: Sequence[Member]) -> int:
    return sum(each.evicted_ms is not None for each in members)


# Who is kept and who goes: what the documents show


LARGE = {"SHOP": [(40, 30, 90)], "BANK": [(10, 5, 15), (10, 30, 90)], "ADMIN": [(3, 30, 90)]}
SMALL = {"ADMIN": [(3, 30, 90)]}


def half_cancels_and_one_dies(fleet: Fleet) -> None:
    fleet.cancel(fleet.of("SHOP")[:20])
    fleet.cut_off(fleet.of("SHOP")[:1])


SCENARIOS: tuple[tuple[str, dict[str, Any], Callable[[Fleet], None]], ...] = (
    ("one of SHOP dies", LARGE, lambda f: f.cut_off(f.of("SHOP")[:1])),
    ("half of SHOP cancels, then one of it dies", LARGE, half_cancels_and_one_dies),
    ("one of ADMIN dies", LARGE, lambda f: f.cut_off(f.of("ADMIN")[:1])),
    (
        "one of ADMIN dies, which is alone",
        SMALL,
        lambda f: f.cut_off(f.of("ADMIN")[:1]),
    ),
    ("the network parts SHOP from the server", LARGE, lambda f: f.cut_off(f.of("SHOP"))),
    ("the network parts BANK from the server", LARGE, lambda f: f.cut_off(f.of("BANK"))),
    ("the network parts all of them", LARGE, lambda f: f.cut_off(f.members.values())),
    ("half of SHOP is killed", LARGE, lambda f: f.cut_off(f.of("SHOP")[:20])),
)


def outcome(applications: dict[str, Any], happens: Callable[[Fleet], None], mode: str) -> str:
    """What becomes of those that are silent, ten minutes later; all others must be there."""
    fleet = Fleet(applications, {"self_preservation_by": mode})
    fleet.run(180)
    happens(fleet)
    fleet.run(600)
    told = []
    for app in applications:
        silent = [each for each in fleet.of(app) if each.is_cut_off]
        assert evicted(fleet.of(app)) == evicted(silent)
        if silent:
            gone = evicted(silent)
            told.append(f"{app}: {'kept' if not gone else f'{gone} of {len(silent)} go'}")
    return "; ".join(told)


def test_the_documents_say_who_is_kept_and_who_goes() -> None:
    page = (ROOT / "docs/operate/self-preservation.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    shown = {what: (genuine, by_app) for what, genuine, by_app in rows}
    for what, applications, happens in SCENARIOS:
        found = tuple(outcome(applications, happens, mode) for mode in MODES)
        assert shown.get(what) == found, what


def test_the_genuine_arithmetic_keeps_a_handful_for_ever_and_six_are_enough() -> None:
    """One more than have registered is expected, and five are not more than 85 % of six."""
    for count in range(1, 8):
        fleet = Fleet({"WEB": [(count, 30, 90)]})
        fleet.run(180)
        assert fleet.registry.preservation().is_active == (count <= 5)
        fleet.run(2 * 900)
        assert fleet.registry.preservation().is_active == (count <= 5)


# By application


def test_an_application_behind_a_parted_network_is_kept_whole() -> None:
    fleet = by_application({"WEB": [(20, 30, 90)], "API": [(20, 30, 90)]})
    fleet.run(120)
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(600)
    assert (evicted(fleet.of("WEB")), evicted(fleet.of("API"))) == (0, 0)
    found = fleet.registry.preservation()
    (state,) = found.applications
    assert (state.app, state.instances, state.missing, state.at_most) == ("WEB", 20, 20, 3)
    assert (state.ended, found.is_active, found.mode) == (20, True, "by-application")
    assert (found.holds("WEB"), found.holds("API")) == (True, False)


@pytest.mark.parametrize("expiry", ["exact", "genuine"])
def test_an_application_that_comes_back_is_no_longer_kept_and_its_dead_go(expiry: str) -> None:
    fleet = by_application({"WEB": [(20, 10, 30)]}, lease_expiry=expiry)
    fleet.run(90)
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(200)
    assert evicted(fleet.of("WEB")) == 0
    assert fleet.registry.preservation().is_active
    fleet.reconnect()
    dead = fleet.of("WEB")[:3]
    fleet.cut_off(dead)
    fleet.run(130)
    assert evicted(fleet.of("WEB")) == evicted(dead) == 3
    assert not fleet.registry.preservation().is_active


@pytest.mark.parametrize(("dead", "gone"), [(3, 3), (4, 0)])
def test_as_many_may_be_missing_as_the_share_allows(dead: int, gone: int) -> None:
    """Of twenty, 15 % are three. More of them look like a fault of the network."""
    fleet = by_application({"WEB": [(20, 30, 90)]})
    fleet.run(120)
    fleet.cut_off(fleet.of("WEB")[:dead])
    fleet.run(300)
    assert evicted(fleet.of("WEB")) == gone


@pytest.mark.parametrize(("size", "gone"), [(9, 9), (10, 0)])
def test_a_small_application_is_not_preserved(size: int, gone: int) -> None:
    fleet = by_application({"SMALL": [(size, 30, 90)], "OTHER": [(60, 30, 90)]})
    fleet.run(120)
    fleet.cut_off(fleet.of("SMALL"))
    fleet.run(120)
    assert evicted(fleet.of("SMALL")) == gone


def test_what_is_small_is_a_setting() -> None:
    fleet = by_application({"WEB": [(3, 30, 90)]}, self_preservation_minimum=2)
    fleet.run(120)
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(300)
    assert evicted(fleet.of("WEB")) == 0


def test_who_cancels_does_not_count() -> None:
    """Of forty thirty leave, and of the ten that are left one dies: it goes at once."""
    fleet = by_application({"WEB": [(40, 30, 90)]})
    fleet.run(120)
    fleet.cancel(fleet.of("WEB")[:30])
    fleet.cut_off(fleet.of("WEB")[:1])
    fleet.run(91)
    assert evicted(fleet.of("WEB")) == 1


def test_leases_too_short_for_a_warning_are_not_lost_one_by_one() -> None:
    """Where a lease is one interval long nobody is late before it ends.

    Those that have gone in the last minute count as missing, so the share is not lost again and
    again while the network is parted.
    """
    fleet = by_application({"WEB": [(40, 20, 20)], "OTHER": [(200, 30, 90)]})
    for member in fleet.of("WEB"):
        member.next_ms -= 1_000  # in time, and yet hardly
        member.instance = member.instance._replace(renewal_interval_secs=19)
    fleet.run(120)
    assert evicted(fleet.of("WEB")) == 0
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(50)
    assert 0 < evicted(fleet.of("WEB")) <= eviction_limit(40, 0.85)


def test_an_evictor_that_takes_over_knows_what_went_in_the_last_minute() -> None:
    fleet = by_application({"WEB": [(20, 10, 30)]})
    fleet.run(60)
    fleet.cut_off(fleet.of("WEB")[:3])
    fleet.run(41)
    assert evicted(fleet.of("WEB")) == 3
    fleet.evictor.stop()
    another = Registry(fleet.store, fleet.clock, fleet.whole.settings)
    fleet.evictor = Evictor(another, fleet.store)
    fleet.cut_off([each for each in fleet.of("WEB") if each.evicted_ms is None][:1])
    fleet.run(18)
    assert evicted(fleet.of("WEB")) == 3
    fleet.run(60)
    assert evicted(fleet.of("WEB")) == 4


def test_an_instance_whose_lease_ended_is_shown_until_it_goes() -> None:
    fleet = by_application({"WEB": [(20, 30, 90)]})
    fleet.run(120)
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(300)
    assert fleet.registry.instance("WEB", "WEB:1") is not None


def test_it_says_of_which_applications_since_when_and_what_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    apps = {f"A{number}": [(20, 30, 90)] for number in range(5)}
    fleet = by_application(apps | {"WEB": [(30, 30, 90)]})
    assert fleet.registry.preservation().sentence == (
        "Self-preservation is not on: of no application with at least 10 instances more than 15 %"
        " are missing with leases that have ended."
    )
    fleet.run(120)
    fleet.cut_off(fleet.of("WEB")[:10])
    fleet.run(120)
    assert re.fullmatch(
        r"Self-preservation has been on since 2023-11-14 22:1\d:\d\d UTC and keeps 10 ended leases"
        r" of 1 application: of WEB 10 of 30 instances are missing, and 5 may be. It ends for an"
        r" application when no more of it are missing than may be, because they renew, register"
        r" again or cancel; or when the loss is accepted.",
        fleet.registry.preservation().sentence,
    )
    fleet.cut_off(fleet.members.values())
    fleet.run(120)
    assert "of 6 applications: of WEB 30 of 30" in fleet.registry.preservation().sentence
    assert "of A1 20 of 20 instances are missing, and 3 may be; and 3 more. It ends" in (
        fleet.registry.preservation().sentence
    )
    fleet.reconnect()
    fleet.run(60)
    lines = [line.split(": ")[0] for line in caplog.messages if "self-preservation in" in line]
    told: dict[str, list[str]] = {"entered": [], "left": []}
    for line in lines:
        told[line.split()[0]] += line.partition(" for ")[2].split(", ")
    entered, left = told.values()
    assert sorted(entered) == sorted(left) == sorted(fleet.applications)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_left_when_nobody_is_registered_any_more(mode: str) -> None:
    fleet = Fleet({"WEB": [(12, 10, 30)]}, {"self_preservation_by": mode})
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(60)
    assert fleet.registry.preservation().since_ms is not None
    fleet.cancel(fleet.of("WEB"))
    fleet.run(1)
    fleet.registry.register(sample_instance())
    found = fleet.registry.preservation()
    assert (found.since_ms, found.applications) == (None, ())


KINDS = st.sampled_from([(5, 15), (10, 30), (30, 90), (30, 60), (7, 100)])
APPS = st.lists(
    st.lists(st.tuples(st.integers(1, 8), KINDS), min_size=1, max_size=3), min_size=1, max_size=3
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "reconnect", "cancel"]),
        st.integers(0, 2),
        st.integers(1, 24),
        st.integers(1, 100),
    ),
    min_size=1,
    max_size=6,
)


@given(apps=APPS, events=EVENTS)
@settings(max_examples=60)
def test_nobody_who_renews_in_time_goes_and_the_dead_of_a_small_application_go_at_once(
    apps: list[list[tuple[int, tuple[int, int]]]], events: list[tuple[str, int, int, int]]
) -> None:
    """At once: within the lease and a second, unless the eviction limit was reached."""
    fleet = by_application(
        {f"A{n}": [(count, *kind) for count, kind in kinds] for n, kinds in enumerate(apps)}
    )
    small = {app for app, kinds in fleet.applications.items() if sum(k[0] for k in kinds) < 10}

    def look() -> None:
        now = fleet.clock.mono
        gone = fleet.registry.evicted_lately()
        view = fleet.registry.view()
        has_room = gone < eviction_limit(view.leased + gone, 0.85)
        for key, member in fleet.members.items():
            lease_ms = member.instance.duration_secs * 1000
            if member.evicted_ms == now:
                assert now - member.renewed_ms > lease_ms
            if member.evicted_ms is None and key.app in small and has_room:
                assert now - member.renewed_ms <= lease_ms + 1_000

    for what, which, count, secs in events:
        members = fleet.of(f"A{which % len(apps)}")[:count]
        if what == "cut":
            fleet.cut_off(members)
        elif what == "cancel":
            fleet.cancel(members)
        else:
            fleet.reconnect()
        fleet.run(secs, look)


# Accepting a loss


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_accepted_goes_at_once_and_beyond_the_limit(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet({"WEB": [(40, 30, 90)], "API": [(20, 30, 90)]}, {"self_preservation_by": mode})
    fleet.run(120)
    fleet.cut_off([*fleet.of("WEB")[:30], *fleet.of("API")[:10]])
    fleet.run(240)
    before = evicted(fleet.of("WEB"))
    another = Registry(fleet.store, fleet.clock, fleet.whole.settings)
    asked = asking.set(lambda: Asker("ann", "10.0.0.1"))
    found = another.in_namespace(DEFAULT_NAMESPACE).accept_loss("WEB")
    asking.reset(asked)
    assert (found.ended, found.held_back) == (30 - before, 0)
    fleet.run(1)
    assert evicted(fleet.of("WEB")) == 30
    assert evicted(fleet.of("API")) == 0
    said = f"ann at 10.0.0.1 accepted the loss in default: {30 - before} instances of WEB evicted"
    assert said in caplog.messages
    assert accepted(fleet.store) == []


def test_a_loss_of_all_lets_every_application_go() -> None:
    fleet = by_application({"WEB": [(20, 30, 90)], "API": [(20, 30, 90)]})
    fleet.cut_off([*fleet.of("WEB"), *fleet.of("API")[:10]])
    fleet.run(120)
    assert fleet.registry.accept_loss(None).ended == 30
    fleet.run(1)
    assert (evicted(fleet.of("WEB")), evicted(fleet.of("API"))) == (20, 10)
    assert fleet.registry.counted[EVICTED + EVICTION_REASONS.index("loss-accepted")] == 30
    assert not fleet.registry.preservation().is_active


def test_with_the_genuine_arithmetic_the_expected_clients_are_those_that_remain() -> None:
    """So a handful that was in self-preservation from the start is so no longer."""
    fleet = Fleet({"WEB": [(3, 30, 90)]})
    fleet.run(240)
    assert fleet.registry.self_preservation().expected_clients == 4
    assert fleet.registry.preservation().is_active
    assert fleet.registry.accept_loss(None).ended == 0
    fleet.run(1)
    assert fleet.registry.self_preservation().expected_clients == 3
    assert not fleet.registry.preservation().is_active


def test_who_renews_after_a_loss_was_accepted_stays_and_who_ends_later_is_kept() -> None:
    fleet = by_application({"WEB": [(10, 30, 90), (10, 30, 120)]})
    fleet.cut_off(fleet.members.values())
    fleet.run(119.5)
    short, long = fleet.of("WEB")[:10], fleet.of("WEB")[10:]
    assert fleet.registry.accept_loss("WEB").ended == 10
    fleet.registry.renew(*short[0].instance.key)
    fleet.run(2)
    assert (evicted(short), evicted(long)) == (9, 0)
    assert fleet.registry.preservation().holds("WEB")


def test_a_loss_is_let_go_behind_the_fence_by_whoever_has_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The evictor that began with it loses the lock in between; the next one ends it."""
    fleet = by_application({"WEB": [(120, 30, 90)]})
    fleet.cut_off(fleet.of("WEB"))
    fleet.run(120)
    fleet.registry.accept_loss("WEB")
    second = Evictor(Registry(fleet.store, fleet.clock, fleet.whole.settings), fleet.store)
    first = fleet.evictor
    commit_all, calls = fleet.store.commit_all, 0

    def lose_the_lock(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            monkeypatch.setattr(fleet.store, "commit_all", commit_all)
            first_owner = first._owner
            fleet.store.release("evictor", first_owner)
            second.run_once()
        return commit_all(*arguments)

    monkeypatch.setattr(fleet.store, "commit_all", lose_the_lock)
    first.run_once()
    assert fleet.registry.view().size() == 0
    assert accepted(fleet.store) == []


def test_losses_are_accepted_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = by_application({"WEB": [(12, 30, 90)]})
    for number in range(3):
        fleet.registry.accept_loss(f"A{number}")
    assert [each.app for each in accepted(fleet.store)] == ["A0", "A1", "A2"]
    fleet.store.acquire("accepting", "another", fleet.clock.mono, 60_000)
    monkeypatch.setattr("registry.loss._TRIES", 2)
    with pytest.raises(StoreError, match="try again"):
        accept(fleet.store, fleet.clock, DEFAULT_NAMESPACE, None, "ann")
    fleet.store.release("accepting", "another")
    monkeypatch.setattr("registry.loss._MOST", 3)
    with pytest.raises(StoreError, match="still being let go"):
        accept(fleet.store, fleet.clock, DEFAULT_NAMESPACE, None, "ann")


class TestByTheApi:
    """``POST self-preservation/accept-loss``."""

    def world(self, **options: Any) -> InProcess:
        return InProcess(self_preservation=True, **options)

    def accept(self, world: InProcess, body: Any, **headers: str) -> Any:
        path = "/api/v1/self-preservation/accept-loss"
        return world.client.post(path, json=body, headers=headers)

    @pytest.mark.parametrize(
        ("body", "service"),
        [({"service_name": "web"}, "web"), ({}, None), ({"service_name": None}, None)],
    )
    def test_it_says_how_many_go(self, body: Any, service: str | None) -> None:
        world = self.world()
        world.registry.register_all(
            [Registering(sample_instance(instance_id=f"web:{n}")) for n in range(2)]
        )
        world.clock.advance(100_000)
        world.registry.register(sample_instance("API", "api:1"))
        reply = self.accept(world, body)
        of = "all services" if service is None else "web"
        assert (reply.status_code, reply.json) == (
            202,
            {
                "service_name": service,
                "will_go": 2,
                "held_by_peers": 0,
                "sentence": (
                    f"The loss is accepted: 2 instances of {of} whose leases have ended go now."
                ),
            },
        )
        Evictor(world.whole, world.store).run_once()
        assert [i.app for a in world.registry.view().applications.values() for i in a.values()] == [
            "API"
        ]

    def test_it_says_that_nothing_goes(self) -> None:
        world = self.world()
        world.registry.register(sample_instance())
        assert self.accept(world, {}).json["sentence"] == (
            "The loss is accepted, but no lease of all services has ended, so nothing goes."
        )

    def test_what_a_peer_may_know_better_stays(self) -> None:
        world = self.world()
        world.registry.hold_back(Hold(world.whole, 600_000, doubled=False))
        world.registry.register(sample_instance(), is_replication=True)
        tell(world.whole, {"http://b": Asked(0, world.clock.mono)})
        world.clock.advance(100_000)
        found = self.accept(world, {"service_name": "web"}).json
        assert (found["will_go"], found["held_by_peers"]) == (0, 1)
        assert found["sentence"].endswith(
            " 1 more stay, because another server may know that they live."
        )

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"service_name": "nobody"}, 404),
            ({"service_name": ""}, 400),
            ({"service_name": 1}, 400),
            ({"service": "web"}, 400),
            ([], 400),
        ],
    )
    def test_what_it_cannot_do_is_refused_and_changes_nothing(self, body: Any, status: int) -> None:
        world = self.world()
        world.registry.register(sample_instance())
        reply = self.accept(world, body)
        assert (reply.status_code, reply.content_type) == (status, "application/problem+json")
        assert accepted(world.store) == []

    @pytest.mark.parametrize(
        ("asker", "who"),
        [
            (Asker("ann", "10.0.0.1", "curl"), "ann at 10.0.0.1"),
            (Asker("", "10.0.0.1"), "somebody at 10.0.0.1"),
            (None, "somebody"),
        ],
    )
    def test_note_and_history_name_who_asked(self, asker: Asker | None, who: str) -> None:
        world = self.world()
        asked = asking.set(None if asker is None else lambda: asker)
        world.registry.accept_loss("WEB")
        asking.reset(asked)
        (loss,) = accepted(world.store)
        assert (loss.namespace, loss.app, loss.by) == (DEFAULT_NAMESPACE, "WEB", who)

    def test_the_history_has_the_applications_the_kept_and_the_loss(self) -> None:
        world = self.world(self_preservation_by="by-application")
        evictor = Evictor(world.whole, world.store)
        for number in range(12):
            world.registry.register(sample_instance(instance_id=f"web:{number}"))

        def pass_time(secs: int) -> None:
            for _ in range(secs):
                world.clock.advance(1_000)
                evictor.run_once()
            world.recorder.flush()

        pass_time(95)
        self.accept(world, {"service_name": "web"})
        pass_time(1)
        told = world.client.get("/api/v1/history?limit=1000").json["entries"]
        kinds = Counter(each["kind"] for each in told)
        assert (kinds["expired-but-kept"], kinds["evicted"]) == (12, 12)
        found = {each["kind"]: each for each in told}
        for kind in ("preservation-entered", "preservation-left", "loss-accepted"):
            assert (kinds[kind], found[kind]["service_name"]) == (1, "web")
        assert found["loss-accepted"]["by"]["address"] == "127.0.0.1"
        assert found["loss-accepted"]["detail"]["ended"] == 12
        assert found["evicted"]["detail"]["held_by"] == "self-preservation"


@pytest.mark.slow
def test_each_worker_tells_the_same_and_any_may_be_told_to_accept_the_loss(tmp_path: Path) -> None:
    """Two workers, one of which evicts: over the socket, with a lease of two seconds."""
    preserving = {
        "SELF_PRESERVATION": "by-application",
        "EUREKA_SERVER_ENABLE_SELF_PRESERVATION": "true",
    }
    short = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": 2}}
    with RegistryServer(tmp_path, env=preserving) as server:
        for number in range(12):
            assert server.register("WEB", f"web:{number}", **short) == 204
        connections = worker_connections(server, 2).values()

        def told(connection: HTTPConnection, path: str) -> Any:
            reply = send(server.port, "GET", f"/api/v1/{path}", connection=connection)
            return reply.json()

        went = []
        for number, connection in enumerate(connections):
            if number:
                for again in range(12):
                    assert server.register("WEB", f"web:{again}", **short) == 204

            def has_ended(connection: HTTPConnection = connection) -> bool:
                facts = told(connection, "instances/web:11/why")["facts"]
                return facts.get("held_by") == ["self-preservation"]

            wait_until(has_ended, "that the last lease ends, and is kept")
            # While they registered the first two may have ended, and gone.
            kept = len(server.apps())
            assert kept >= 10

            def tells_of_it(connection: HTTPConnection = connection, kept: int = kept) -> bool:
                status = told(connection, "status")
                apps = status["self_preservation"]["applications"]
                is_warned = any(f"keeps {kept} ended leases" in w for w in status["warnings"])
                return is_warned and [(a["application"], a["ended"]) for a in apps] == [
                    ("WEB", kept)
                ]

            wait_until(tells_of_it, "that the status tells of it")
            reply = send(
                server.port,
                "POST",
                "/api/v1/self-preservation/accept-loss",
                '{"service_name": "web"}',
                {"Content-Type": "application/json"},
                connection,
            )
            assert (reply.status, reply.json()["will_go"]) == (202, kept)
            wait_until(lambda: server.apps() == {}, "that they go")
            went.append(kept)
        log = server.log()
    said = r"somebody at 127\.0\.0\.1 accepted the loss in default: (\d+) instances of WEB evicted"
    assert list(map(int, re.findall(said, log))) == went
