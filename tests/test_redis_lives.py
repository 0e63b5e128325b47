"""Lives: what Redis lost the machines give back, and take up; what was removed stays so."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import pytest
import redis

from registry import StoreError
from registry.errors import ConflictError
from registry.model import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit
from registry.stores.redis import RedisStore, scripts
from registry.stores.redis import records as redis_records
from registry.stores.redis import server as redis_server
from registry.stores.redis import store as redis_store
from registry.stores.redis.lives import Lives
from registry.stores.redis.records import Records
from registry.stores.redis.scripts import Script
from registry.stores.redis.server import AnotherLifeError, AwaitedError, Call, Dialog, Server
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer
from tests.redis_suite import (
    Machines,
    alone_with_many,
    is_taken,
    lease_from,
    listed,
    mono,
    stop_threads,
)
from tests.servers import HANG_SECS, wait_until

_T = TypeVar("_T")
NS = DEFAULT_NAMESPACE
_DAY_MS = 86_400_000
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects", "unhurried")]


@pytest.mark.parametrize("how", ["restarted", "emptied"])
def test_what_redis_lost_the_machines_give_back(fragile: Machines, how: str) -> None:
    """In another life; what is removed stays so, though another machine had not heard of it."""
    here, there = fragile.open("here"), fragile.open("there")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(4)]
    override = OverrideChange("web:0", InstanceStatus.OUT_OF_SERVICE)
    first = put(instances[0], override=override)
    revisions = here.commit_all(NS, [first, *map(put, instances[1:])])
    here.set_expected_clients(NS, 7)
    known = here.revision(NS)
    wait_until(lambda: there.revision(NS) == known)
    fragile.close(there)
    only_here = put(instances[3], expected=revisions[3], remove=True, lease=None)
    known = here.commit(NS, only_here)
    if how == "restarted":
        fragile.server.kill()
        fragile.server.start()
    else:
        with fragile.server.client() as client:
            client.flushall()
    wait_until(lambda: here.revision(NS) > known + 1_000)
    there = fragile.open("there")
    for store in (here, there, fragile.open("new")):
        wait_until(lambda store=store: store.revision(NS) == here.revision(NS))
        assert listed(store) == {"web:0", "web:1", "web:2"}
        assert store.load(NS).overrides == {"web:0": InstanceStatus.OUT_OF_SERVICE}
        assert store.changes(NS, known) is None
        assert store.expected_clients(NS) == 7
        assert store.due(NS, 0).leases == 3
        told = {c.instance.id for c in store.load(NS).changes if c.instance and not c.removed}
        assert told == listed(store)
    token = here.acquire("evictor", "a", 0, 100)
    assert token is not None
    assert token > known


def test_the_tail_that_a_restarted_redis_lost_is_given_back(fragile: Machines) -> None:
    """It has an earlier state: the machines know better, and what they know is later."""
    here, there = fragile.open("here"), fragile.open("there")
    one, two, three = (sample_instance(instance_id=f"web:{number}") for number in range(3))
    first, second = here.commit_all(NS, [put(one), put(two)])
    with fragile.server.client() as client:
        client.save()
    changed = one._replace(ip_addr="10.9.9.9")
    here.commit(NS, put(changed, expected=first))
    here.commit(NS, put(two, expected=second, remove=True, lease=None))
    known = here.commit(NS, put(three))
    wait_until(lambda: there.revision(NS) == known)
    fragile.server.kill()
    fragile.server.start()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > known + 1_000)
        wait_until(lambda store=store: listed(store) == {"web:0", "web:2"})
        assert {each.ip_addr for each in store.load(NS).instances} == {"10.9.9.9", "10.0.0.1"}
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    machine = fragile.open("new")
    assert listed(machine) == {"web:0", "web:2"}


@pytest.mark.parametrize("part", ["root", "namespace"])
def test_a_part_that_lost_everything_begins_another_life_for_all(
    machines: Machines, part: str
) -> None:
    """As where a server of a Cluster lost what it had, and the others did not."""
    here, there = machines.open("here"), machines.open("there")
    other = Namespace("other")
    for namespace in (NS, other):
        known = here.commit(namespace, put(sample_instance(), lease=lease_from(mono())))
        wait_until(lambda namespace=namespace, known=known: there.revision(namespace) == known)
    name = here._server.name("*", None if part == "root" else NS)
    with machines.server.client() as client:
        client.delete(*client.keys(name))
    for store in (here, there):
        for namespace in (NS, other):
            wait_until(lambda each=namespace, store=store: store.revision(each) > known + 1_000)
            assert {each.id for each in store.load(namespace).instances} == {"web:1"}
    limited = put(sample_instance(instance_id="web:2"), namespaces_at_most=2)
    assert here.commit(other, limited)
    with pytest.raises(ConflictError):
        here.commit(Namespace("third"), limited)


@pytest.mark.parametrize(("changes_since", "at_once"), [(0, 1_000), (1, 1_000), (1, 1)])
def test_who_comes_after_the_log_of_a_life_was_trimmed_has_everything(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch, changes_since: int, at_once: int
) -> None:
    """Also between two portions of the trimming; with a machine that never had anything."""
    here, there = fragile.open("here"), fragile.open("there")
    here.commit_all(NS, [put(sample_instance(instance_id=f"web:{n}")) for n in range(4)])
    wait_until(lambda: len(listed(there)) == 4)
    fragile.close(there)
    known = here.revision(NS)
    with fragile.server.client() as client:
        client.flushall()
    wait_until(lambda: here.revision(NS) > known + 1_000)
    for number in range(changes_since):

        def is_committed(number: int = number) -> bool:
            with suppress(AwaitedError):  # who was closed is awaited for a while
                here.commit(NS, put(sample_instance(instance_id=f"new:{number}")))
                return True
            return False

        wait_until(is_committed)

    run = here._server.run

    def run_once(script: Any, *arguments: Any) -> Any:
        return run(script, *arguments) and 0

    monkeypatch.setattr("registry.stores.redis.store.TRIMMED_AT_ONCE", at_once)
    monkeypatch.setattr(here._server, "run", run_once)
    here.trim(NS, 1 << 50)
    monkeypatch.undo()

    for name in ("there", "new"):
        store = fragile.open(name)
        assert listed(store) == listed(here)
        assert len(listed(store)) == 4 + changes_since
        assert store.revision(NS) == here.revision(NS)


def test_what_all_machines_have_is_sent_once_and_fetched_by_none(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its revisions, its leases their places; and all of it counts as just changed."""
    here, there = fragile.open("here"), fragile.open("there")
    now = mono()
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(700)]
    here.commit_all(NS, [put(each, lease=lease_from(now)) for each in instances])
    known = here.commit(NS, put(sample_instance(instance_id="web:last"), lease=lease_from(now)))
    wait_until(lambda: there.revision(NS) == known)
    before = {each.id: each.revision for each in here.load(NS).instances}
    asked, genuine = list[str](), redis_server._command

    def command(connection: Any, tag: str, script: scripts.Script, arguments: Any) -> Any:
        asked.extend(name for name, each in vars(scripts).items() if each is script)
        return genuine(connection, tag, script, arguments)

    monkeypatch.setattr(redis_server, "_command", command)
    fragile.forget()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > known + 1_000)
        after = store.load(NS)
        assert {each.id: each.revision for each in after.instances} == before
        assert len(after.changes) == len(before)
        assert store.due(NS, now).leases == len(before)
        assert store.renew(NS, instances[0].key, lease_from(mono()), None)
    assert {"PAGE", "NAMED"}.isdisjoint(asked)
    assert asked.count("OFFER") == 2
    # Whoever comes new gets all of it.
    assert listed(fragile.open("new")) == listed(here) == listed(there)


def test_a_machine_that_only_followed_a_removal_gives_it_back(machines: Machines) -> None:
    """Or else who did not follow it would bring the instance back."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))
    removal = put(sample_instance(), expected=first, remove=True, lease=None)
    there._copy.follow(NS, [(Revision(first + 1), removal)], None)
    machines.forget()
    for store in (here, there):
        wait_until(lambda store=store: store.revision(NS) > first + 1_000)
        wait_until(lambda store=store: listed(store) == set())


def test_overrides_are_given_back_and_so_is_their_removal(fragile: Machines) -> None:
    """Also of ids that nobody has registered, and though Redis has an earlier word of them."""
    here = fragile.open("here")
    down, up = (
        lambda name: OverrideChange(name, InstanceStatus.DOWN),
        lambda name: OverrideChange(name, None),
    )
    web, api = sample_instance(), sample_instance("API", "api:1")
    alone = Commit(api.key, Revision(0), None, 100, None)
    here.commit(NS, alone._replace(override=down("api:1")))
    here.commit(NS, put(sample_instance("OLD", "old:1"), override=down("old:1")))
    first = here.commit(NS, put(web, override=down("web:1")))
    with fragile.server.client() as client:
        client.save()
    here.commit(
        NS,
        put(web, expected=first, expected_override=InstanceStatus.DOWN, override=up("web:1")),
    )
    other = sample_instance("OTHER", "other:1")
    known = here.commit(
        NS, Commit(other.key, Revision(0), None, 100, None, override=down("other:1"))
    )
    expected = {"api:1", "old:1", "other:1"}
    assert set(here.load(NS).overrides) == expected
    for lose in (fragile.server.kill, fragile.forget):
        lose()
        if lose == fragile.server.kill:
            fragile.server.start()
        wait_until(lambda known=known: here.revision(NS) > known + 1_000)
        known = here.revision(NS)
        assert set(here.load(NS).overrides) == expected
        there = fragile.open("there" if lose == fragile.server.kill else "elsewhere")
        assert set(there.load(NS).overrides) == expected


@pytest.mark.parametrize("ends_by", ["removal of the override", "removal of the instance"])
def test_an_override_that_was_removed_does_not_come_back_with_redis(
    fragile: Machines, ends_by: str
) -> None:
    """It comes back with an earlier state, in which the override still stood."""
    store = fragile.open("here")
    down = OverrideChange("web:1", InstanceStatus.DOWN)
    first = store.commit(NS, put(sample_instance(), override=down))
    with fragile.server.client() as client:
        client.save()
    removed = put(
        sample_instance(),
        expected=first,
        expected_override=InstanceStatus.DOWN,
        override=OverrideChange("web:1", None),
    )
    if ends_by == "removal of the instance":
        removed = removed._replace(remove=True, lease=None)
    known = store.commit(NS, removed)
    fragile.server.kill()
    fragile.server.start()
    wait_until(lambda: store.revision(NS) > known + 1_000)
    assert store.load(NS).overrides == {}
    assert fragile.open("new").load(NS).overrides == {}


def test_what_is_given_back_is_told_in_one_line(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    """However many namespaces it is of."""
    store = machines.open("here")
    for number in range(5):
        store.commit(Namespace(f"n{number}"), put(sample_instance()))
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    told = [each for each in caplog.messages if "back to Redis" in each]
    assert told == ["gave 5 changes in 5 namespaces back to Redis"]


def test_a_life_that_redis_refuses_is_not_told_of(
    fragile: Machines, own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a replica does, to which the address leads: it is asked again and again."""
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    stop_threads(store)
    own.kill()
    own.start()
    with own.client() as client:
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(StoreError, match="replicas"):
            store._lives.adopt()
        assert "another life" not in caplog.text
        client.config_set("min-replicas-to-write", 0)
    store._lives.adopt()
    assert caplog.text.count("another life") == 1


# Many namespaces.


def test_many_namespaces_are_given_back_and_taken_up_in_few_round_trips(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the server knows no script any more; and none holds it up for long."""
    store, namespaces = alone_with_many(machines, 200)
    machines.forget()
    with machines.server.client() as client:
        client.script_flush()
    sent: list[int] = []
    genuine = redis.connection.Connection.send_packed_command

    def send(connection: Any, command: Any, *arguments: Any, **options: Any) -> None:
        sent.append(b"".join(command).count(b"EVALSHA"))
        genuine(connection, command, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.connection.Connection, "send_packed_command", send)
        store._lives.adopt()
        assert (len(sent) < 100, max(sent)) == (True, 100)
        sent.clear()
        store._follower.catch_up_all()
        assert len(sent) < 10
    there = machines.open("there")
    assert set(there.namespaces()) == set(namespaces)
    for namespace in namespaces:
        assert there.revision(namespace) == store.revision(namespace)
        assert there.load(namespace).instances == store.load(namespace).instances


def test_a_namespace_that_another_machine_gives_back_holds_up_no_other(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, namespaces = alone_with_many(machines, 5)
    machines.forget()
    give_back, given_back = store._lives._give_back, list[Namespace]()
    waits_for = namespaces[0]

    def given(life: Revision, namespace: Namespace) -> Any:
        if namespace == waits_for:
            listing = store._records.listing(life, namespace, "another", takes_up=False)
            assert (yield from listing) is not None
        found = yield from give_back(life, namespace)
        given_back.append(namespace)
        return found

    monkeypatch.setattr(store._lives, "_give_back", given)
    store._lives.adopt()
    assert set(given_back) == set(namespaces)
    assert given_back[-1] == waits_for
    there = machines.open("there")
    for namespace in namespaces:
        assert there.load(namespace).instances == store.load(namespace).instances


def test_many_namespaces_are_given_back_though_the_connection_is_cut(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have been asked; and what was cut off is asked for again with all others."""
    store, namespaces = alone_with_many(machines, 20)
    machines.forget()
    genuine, cut = redis_server._exchange_each, list[int]()

    def exchange_each(connection: Any, commands: Any) -> Any:
        answers = genuine(connection, commands)
        if len(commands) > 1 and len(cut) < 9 and len(commands) not in cut[-1:]:
            cut.append(len(commands))
            raise redis.ConnectionError("cut off")
        return answers

    monkeypatch.setattr(redis_server, "_exchange_each", exchange_each)
    store._lives.adopt()
    assert cut
    there = machines.open("there")
    for namespace in namespaces:
        assert there.load(namespace).instances == store.load(namespace).instances


# What is begun, and by requests that come late.


def lose(machines: Machines, store: RedisStore, what: str) -> None:
    """Have Redis lose everything, or all that it has of the namespace."""
    if what == "everything":
        machines.server.empty()
        return
    with machines.server.client() as client:
        client.delete(*client.keys(store._server.name("*", NS)))


def ask_until(dialog: Dialog[_T], server: Server, script: Script | None) -> Call | None:
    """Ask what a dialog asks, until it is about to begin or call with a script; None: it ended."""
    try:
        question = next(dialog)
        while True:
            assert isinstance(question, Call)
            if question.script is script and question.arguments[0] != "":
                return question
            question = dialog.send(server._alone(question))
    except StopIteration:
        return None


@pytest.mark.parametrize("what", ["everything", "the namespace"])
def test_what_redis_loses_while_a_namespace_is_begun_is_not_begun_in_the_same_life(
    fragile: Machines, what: str
) -> None:
    """Else its revisions are given out twice, and who has the first passes over the second."""
    store = fragile.open("here")
    stop_threads(store)
    opening = store._lives._open(store.state().life, NS, holds=True, most=None)
    question = ask_until(opening, store._server, scripts.LIFE)
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(4)]
    store.commit_all(NS, [put(each) for each in instances[:3]])
    known = store.revision(NS)
    lose(fragile, store, what)
    with suppress(StoreError, AnotherLifeError):
        while question is not None:
            answer = store._server._alone(question)
            asked = opening.throw(answer) if isinstance(answer, Exception) else opening.send(answer)
            assert isinstance(asked, Call)
            question = asked
    assert store.commit(NS, put(instances[3])) > known + 1_000
    assert listed(store) == {"web:0", "web:1", "web:2", "web:3"}


@pytest.mark.parametrize("what", ["everything", "the namespace"])
def test_a_namespace_that_a_late_request_begins_holds_nothing(fragile: Machines, what: str) -> None:
    """One that was sent again since, or by a machine that is gone; not even an override alone."""
    store = fragile.open("here")
    known = store.commit(NS, put(sample_instance(instance_id="web:0")))
    stop_threads(store)
    life = store.state().life
    run_id = store._server.run(scripts.LIFE, NS, "", "", "", "", "")[2]
    lose(fragile, store, what)
    for _ in range(2):
        store._server.run(scripts.LIFE, NS, life, "", "", run_id, store._server.now(), "", "", 0)
    override = OverrideChange("web:1", InstanceStatus.DOWN)
    key = sample_instance(instance_id="web:1").key
    alone = Commit(key, Revision(0), None, 100, None, override=override)
    assert store.commit(NS, alone) > known + 1_000
    assert store.commit(NS, put(sample_instance(instance_id="web:2"))) > known + 1_000
    assert listed(store) == {"web:0", "web:2"}
    assert store.load(NS).overrides == {"web:1": InstanceStatus.DOWN}


def test_a_life_that_a_late_request_begins_is_another(fragile: Machines) -> None:
    store = fragile.open("here")
    stop_threads(store)
    run = store._server.run
    run_id = run(scripts.LIFE, None, "", "", "", "", "")[2]
    begun = set()
    for _ in range(2):
        fragile.server.empty()
        begun.add(run(scripts.LIFE, None, 1_000, "", "", run_id, "", "", 1 << 30, 0)[0])
    assert len(begun) == 2


@pytest.mark.parametrize("is_later", [False, True])
def test_a_namespace_that_is_left_in_another_life_is_begun_anew(
    fragile: Machines, is_later: bool
) -> None:
    """One that nobody holds: a request for it came when Redis had lost everything."""
    store = fragile.open("here")
    store.commit(NS, put(sample_instance()))
    stop_threads(store)
    fresh, life = Namespace("fresh"), store.state().life
    run_id = store._server.run(scripts.LIFE, NS, "", "", "", "", "")[2]
    fragile.server.empty()
    another = life + (10**14 if is_later else 0)
    store._server.run(scripts.LIFE, fresh, another, "", "", run_id, 0, "", "", 0)
    assert store.commit(fresh, put(sample_instance()))
    assert (store.state().life > another, another > life) == (True, is_later)
    assert listed(store) == listed(store, fresh) == {"web:1"}


@pytest.mark.parametrize("done", range(1, 6))
def test_a_namespace_whose_beginner_was_killed_is_opened_by_the_next(
    fragile: Machines, done: int
) -> None:
    """Whatever had been done: it was listed, begun in its slot, or noted at the root."""
    here, there, namespace = fragile.open("here"), fragile.open("there"), Namespace("fresh")
    stop_threads(here)
    opening = here._lives._open(here.state().life, namespace, holds=True, most=None)
    question = next(opening)
    for place in range(done):
        assert isinstance(question, Call)
        answer = here._server._alone(question)
        if place < done - 1:
            question = opening.send(answer)
    opening.close()
    assert there.commit(namespace, put(sample_instance()))
    assert listed(there, namespace) == {"web:1"}
    assert listed(fragile.open("new"), namespace) == {"web:1"}


def test_a_machine_begins_its_work_while_another_begins_a_namespace(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fragile.open("here")
    here.commit(NS, put(sample_instance()))
    stop_threads(here)
    fresh = Namespace("fresh")
    opening = here._lives._open(here.state().life, fresh, holds=True, most=None)
    replace = Lives._replace

    def noted_before(self: Lives, *arguments: Any) -> bool:
        if self is not here._lives:
            assert ask_until(opening, here._server, scripts.OPENED) is not None
        return replace(self, *arguments)

    monkeypatch.setattr(Lives, "_replace", noted_before)
    there = fragile.open("there")
    assert listed(there) == {"web:1"}
    assert there.commit(fresh, put(sample_instance()))


def opened_amid_adopting(
    machines: Machines, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> RedisStore:
    """Have a machine begin another life, and one come and take it up before it opened anything."""
    open_all, opened = Lives._open_all, list[RedisStore]()

    def open_late(self: Lives, *arguments: Any) -> None:
        if self is store._lives and not opened:
            opened.append(machines.open("there"))
        open_all(self, *arguments)

    monkeypatch.setattr(Lives, "_open_all", open_late)
    store._lives.adopt()
    return opened[0]


def test_who_takes_up_a_life_before_all_is_given_back_has_the_rest_too(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace that only the machine holds which began the life."""
    here, other = fragile.open("here"), Namespace("other")
    here.commit(other, put(sample_instance()))
    stop_threads(here)
    fragile.server.empty()
    there = opened_amid_adopting(fragile, here, monkeypatch)
    wait_until(lambda: listed(there, other) == listed(here, other) == {"web:1"})


@pytest.mark.parametrize("how", ["adopting", "catching up"])
def test_a_machine_does_not_take_it_up_that_redis_lost_everything(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Between two requests: what it has then is all that there is."""
    here, there, other = fragile.open("here"), fragile.open("there"), Namespace("other")
    for namespace in (NS, other):
        known = here.commit(namespace, put(sample_instance()))
        wait_until(lambda each=namespace, known=known: there.revision(each) == known)
    stop_threads(here, there)
    fragile.server.empty()
    here._lives.adopt()
    # As after minutes: of what was before, the log tells no more.
    beyond = here.state().life + 1
    if how == "catching up":
        there._lives.adopt()
        beyond = here.commit(NS, put(sample_instance(instance_id="web:2")))
    with fragile.server.client() as client:
        client.hset(here._server.name("meta", NS), "trimmed", beyond)
    ask = Records.namespaces_in
    asked: list[None] = []

    def late(self: Records, life: Revision) -> list[Namespace]:
        if not asked:
            asked.append(None)
            fragile.server.empty()
        return ask(self, life)

    monkeypatch.setattr(Records, "namespaces_in", late)
    there._lives.adopt() if how == "adopting" else there._follower.catch_up(NS)
    assert asked
    assert "web:1" in listed(there)
    assert listed(there, other) == {"web:1"}


def test_a_machine_does_not_take_it_up_that_redis_lost_the_overrides(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = fragile.open("here"), fragile.open("there")
    override = OverrideChange("web:1", InstanceStatus.DOWN)
    known = here.commit(NS, put(sample_instance(), override=override))
    wait_until(lambda: there.revision(NS) == known)
    stop_threads(here, there)
    fragile.server.empty()
    here._lives.adopt()
    ask = Records.overrides
    asked: list[None] = []

    def late(self: Records, namespace: Namespace) -> Any:
        if not asked:
            asked.append(None)
            fragile.server.empty()
        return ask(self, namespace)

    monkeypatch.setattr(Records, "overrides", late)
    there._lives.adopt()
    assert asked
    assert there.load(NS).overrides == {"web:1": InstanceStatus.DOWN}


def test_who_holds_instances_has_the_claim_for_them_whoever_opened_the_namespace(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = fragile.open("here"), Namespace("other")
    for namespace in (NS, other):
        here.commit(namespace, put(sample_instance()))
    stop_threads(here)
    fragile.server.empty()
    opened_amid_adopting(fragile, here, monkeypatch)
    limited = put(sample_instance(instance_id="web:2"), namespaces_at_most=2)
    with pytest.raises(ConflictError):
        here.commit(Namespace("third"), limited)
    assert here.commit(other, limited)


def test_of_two_claims_for_a_namespace_the_later_counts_in_whatever_order_they_come(
    fragile: Machines,
) -> None:
    store, fresh = fragile.open("here"), Namespace("fresh")
    store.commit(NS, put(sample_instance()))
    stop_threads(store)
    life = store.state().life
    openings = [store._lives._open(life, fresh, holds=True, most=2) for _ in range(2)]
    asked = [ask_until(opening, store._server, scripts.OPENED) for opening in openings]
    for question in reversed(asked):
        assert question is not None
        assert store._server._alone(question) == 1
    limited = put(sample_instance(), namespaces_at_most=2)
    gone = limited._replace(expected=store.commit(fresh, limited), remove=True, lease=None)
    store.commit(fresh, gone)
    assert store.commit(Namespace("third"), limited)


def test_an_instance_that_comes_into_the_copy_while_a_life_is_adopted_has_a_claim(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written in the former life, as the first of its namespace."""
    store, late = fragile.open("here"), put(sample_instance(instance_id="web:2"))
    first = store.commit(NS, put(sample_instance()))
    known = store.commit(NS, put(sample_instance(), expected=first, remove=True, lease=None))
    stop_threads(store)
    fragile.server.empty()
    open_all = Lives._open_all

    def comes(self: Lives, *arguments: Any) -> None:
        open_all(self, *arguments)
        store._copy.follow(NS, [(Revision(known + 1), late)], None)

    monkeypatch.setattr(Lives, "_open_all", comes)
    store._lives.adopt()
    assert listed(store) == {"web:2"}
    limited = put(sample_instance(instance_id="web:3"), namespaces_at_most=1)
    with pytest.raises(ConflictError):
        store.commit(Namespace("other"), limited)
    assert store.commit(NS, limited)


def test_what_a_slot_kept_has_everybody_who_took_the_life_up_before(fragile: Machines) -> None:
    """The server of the root lost everything, that of the namespace nothing."""
    here, there, other = fragile.open("here"), fragile.open("there"), Namespace("other")
    known = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == known)
    stop_threads(here, there)
    here.commit(other, put(sample_instance()))
    with fragile.server.client() as client:
        client.delete(*client.keys(here._server.name("*")))
    there._lives.adopt()
    here._lives.adopt()
    for store in (here, there):
        store._follower.catch_up_all()
        assert (listed(store), listed(store, other)) == ({"web:1"}, {"web:1"})


# Who waits for whom.


def test_while_one_machine_gives_back_the_others_wait_for_it(machines: Machines) -> None:
    store = machines.open("here")
    stop_threads(store)
    run = store._server.run

    def listing(*arguments: Any, takes_up: bool) -> redis_records.Listing | None:
        return store._server.ask(store._records.listing(*arguments, takes_up=takes_up))

    store.commit(NS, put(sample_instance()))
    life, begun_in, run_id, *_ = run(scripts.LIFE, NS, "", "", "", "", "")
    another = Revision(int(life) + 1_000)
    run(scripts.LIFE, NS, another, life, begun_in, run_id, store._server.now(), "", "", 0)
    begin = run(scripts.LIFE, NS, "", "", "", "", "")[5]
    run(scripts.OPENED, NS, another, begin, "", "")
    assert listing(another, NS, "a", takes_up=False) is not None
    assert listing(another, NS, "b", takes_up=False) is None
    # Since then the clock of Redis was set back.
    meta = store._server.name("meta", NS)
    began = store._server.now() + _DAY_MS
    store._server.call("HSET", meta, "giving", began, namespace=NS)
    assert listing(another, NS, "b", takes_up=False) is not None
    assert listing(another, NS, "a", takes_up=False) is None
    taken = listing(another, NS, "a", takes_up=True)
    assert taken is not None
    found = listing(another, NS, "b", takes_up=False)
    assert found is not None
    assert found.is_taken


def known_to_each_other(*stores: RedisStore) -> bool:
    return all(len(store._lives.known_nodes()) == len(stores) for store in stores)


def await_for_long(monkeypatch: pytest.MonkeyPatch, *stores: RedisStore) -> None:
    """Have nobody forgotten who is awaited, nor that there is who is known, however slow all is."""
    for name in ("LIFE", "LISTING", "OFFER"):
        genuine = getattr(scripts, name).text
        text = genuine.replace("'awaited', 5)", f"'awaited', {HANG_SECS})")
        assert text != genuine
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(scripts, name, Script(text, sha))
    for store in stores:
        monkeypatch.setattr(store._lives, "know_of", lambda nodes: None)


def awaited(store: RedisStore, namespace: Namespace | None = NS) -> list[bytes]:
    """The nodes that have not given back yet."""
    name = store._server.name("awaited", namespace)
    found: list[bytes] = store._server.call("HGETALL", name, namespace=namespace)
    return found[::2]


def two_with_an_instance(machines: Machines) -> tuple[RedisStore, RedisStore, Revision]:
    """Two machines that know each other and one instance, at that revision."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == first and known_to_each_other(here, there))
    return here, there, first


def test_nothing_is_written_before_all_machines_have_given_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a change that was acknowledged, and that no other had followed, would be replaced."""
    here, there, first = two_with_an_instance(machines)
    await_for_long(monkeypatch, here, there)
    goes_on, refused, adopt = threading.Event(), [], there._lives.adopt

    def adopted_late(*, lost: bool = False) -> None:
        assert goes_on.wait(HANG_SECS)
        adopt(lost=lost)

    monkeypatch.setattr(there._lives, "adopt", adopted_late)
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(here._follower, "_hear", lambda data: None)
        patch.setattr(here._follower, "catch_up", lambda namespace: None)
        second = there.commit(NS, put(sample_instance(ip_addr="10.9.9.9"), expected=first))
        machines.server.empty()
    wait_until(lambda: here.revision(NS) > second + 1_000)

    def write() -> Revision:
        while True:
            try:
                return here.commit(NS, put(sample_instance(ip_addr="10.7.7.7"), expected=first))
            except AwaitedError as error:
                refused.append(error)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        wait_until(lambda: refused or writing.done())
        goes_on.set()
        with pytest.raises(ConflictError):
            writing.result(HANG_SECS)
    wait_until(lambda: here.revision(NS) == there.revision(NS))
    for store in (here, there):
        assert [each.ip_addr for each in store.load(NS).instances] == ["10.9.9.9"]
    wait_until(lambda: awaited(here) == awaited(here, None) == [])


def test_a_machine_that_does_not_come_is_awaited_for_a_while(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few seconds after one gave back for the last time."""
    here, there, first = two_with_an_instance(machines)
    machines.close(there)
    machines.forget()
    wait_until(lambda: here.revision(NS) > first + 1_000)
    for namespace in (None, NS):
        name = here._server.name("awaited", namespace)
        assert here._server.call("TTL", name, namespace=namespace) != -1
    wait_until(lambda: is_taken(here, put(sample_instance(), expected=first)))
    assert awaited(here) == []
    # It is not one of the machines any more.
    wait_until(lambda: known_to_each_other(here))


def test_who_takes_long_to_adopt_a_life_waits_for_the_others_nevertheless(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, _ = two_with_an_instance(machines)
    await_for_long(monkeypatch, here, there)
    stop_threads(here, there)
    machines.forget()
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0.01)
    adopt, run, commits = here._lives.adopt, here._server.run, list[None]()

    def adopted_late(*, lost: bool = False) -> None:
        adopt(lost=lost)
        time.sleep(0.02)
        commits.clear()

    def counted_run(script: Script, *arguments: Any) -> Any:
        commits.extend([None] * (script is scripts.COMMIT))
        return run(script, *arguments)

    monkeypatch.setattr(here._lives, "adopt", adopted_late)
    monkeypatch.setattr(here._server, "run", counted_run)
    with pytest.raises(AwaitedError):
        here.commit(NS, put(sample_instance(instance_id="web:2")))
    assert len(commits) > 1


@pytest.mark.parametrize("before", [scripts.LIFE, scripts.OPENED], ids=["life", "opened"])
def test_who_gives_back_while_a_namespace_is_begun_is_not_awaited_in_it(
    fragile: Machines, monkeypatch: pytest.MonkeyPatch, before: Script
) -> None:
    here, there = fragile.open("here"), fragile.open("there")
    known = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == known and known_to_each_other(here, there))
    stop_threads(here, there)
    fragile.server.empty()
    here._lives.adopt()
    fresh = Namespace("fresh")
    opening = here._lives._open(here.state().life, fresh, holds=True, most=None)
    question, tell = None, there._lives._tell_given

    def told_amid(life: Revision) -> None:
        nonlocal question
        question = ask_until(opening, here._server, before)
        tell(life)

    monkeypatch.setattr(there._lives, "_tell_given", told_amid)
    there._lives.adopt()
    assert question is not None
    with suppress(StopIteration):
        while True:
            question = opening.send(here._server._alone(question))
            assert isinstance(question, Call)
    assert awaited(here, fresh) == []
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    assert here.commit(fresh, put(sample_instance()))


def test_a_machine_alone_awaits_nobody(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machines.open("here")
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    for turn in range(3):
        wait_until(lambda: known_to_each_other(store))
        known = store.commit(NS, put(sample_instance(instance_id=f"web:{turn}")))
        machines.server.empty()
        # Whichever notices first: the write, or the teller.
        assert store.commit(NS, put(sample_instance(instance_id=f"late:{turn}"))) > known + 1_000
    assert len(listed(store)) == 6


def test_a_namespace_that_is_new_waits_too_for_whoever_may_have_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines.open("here"), machines.open("there")
    other = Namespace("other")
    first = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == first and known_to_each_other(here, there))
    await_for_long(monkeypatch, here, there)
    goes_on, adopt = threading.Event(), there._lives.adopt

    def adopted_late(*, lost: bool = False) -> None:
        assert goes_on.wait(HANG_SECS)
        adopt(lost=lost)

    monkeypatch.setattr(there._lives, "adopt", adopted_late)
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0)
    with monkeypatch.context() as patch:
        for name, does in (("catch_up", lambda _: None), ("_hear", lambda _: None)):
            patch.setattr(here._follower, name, does)
        there.commit(other, put(sample_instance(ip_addr="10.9.9.9")))
        machines.server.empty()
    wait_until(lambda: here.revision(NS) > first + 1_000)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(here.commit, other, put(sample_instance()))
        with pytest.raises(AwaitedError):
            writing.result(HANG_SECS)
    goes_on.set()
    wait_until(lambda: [each.ip_addr for each in here.load(other).instances] == ["10.9.9.9"])
