"""What was on its way when Redis lost something, or when its answer was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from registry import StoreError
from registry.model import (
    DEFAULT_NAMESPACE,
    Revision,
)
from registry.stores.redis import scripts
from registry.stores.redis import server as redis_server
from registry.stores.redis.server import AnotherLifeError
from registry.testing import put, sample_instance
from tests.redis_suite import (
    Machines,
    is_following,
    listed,
    stop_threads,
)
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


def cut_off_once(
    patch: pytest.MonkeyPatch, script: scripts.Script, then: Callable[[], object]
) -> None:
    """Have a script's answer lost, once, and something happen before it is asked again."""
    exchange, cut = redis_server._exchange, []

    def exchanged(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (script.sha,) and not cut:
            cut.append(command)
            then()
            raise redis.TimeoutError("cut off")
        return answer

    patch.setattr(redis_server, "_exchange", exchanged)


def test_a_write_whose_answer_was_cut_off_is_asked_for_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was executed, so it must not be executed again, nor be told to have failed."""
    store = machines.open("here")
    before = store.commit(NS, put(sample_instance()))
    exchange, cut = redis_server._exchange, []

    def cut_off(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (scripts.COMMIT.sha,) and not cut:
            cut.append(command)
            raise redis.TimeoutError("cut off")
        return answer

    monkeypatch.setattr(redis_server, "_exchange", cut_off)
    assert store.commit(NS, put(sample_instance(instance_id="web:2"))) == before + 1
    assert len(cut) == 1
    assert store.revision(NS) == before + 1
    assert listed(store) == {"web:1", "web:2"}


def test_what_may_have_been_written_before_redis_lost_it_is_not_decided_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have given it back, so a lost race would be told of its own doing."""
    here, there = machines.open("here"), machines.open("there")
    first = here.commit(NS, put(sample_instance()))

    def lose() -> None:
        wait_until(lambda: there.revision(NS) == first + 1)
        machines.forget()
        wait_until(lambda: there.revision(NS) > first + 1_000)

    cut_off_once(monkeypatch, scripts.COMMIT, lose)
    with pytest.raises(StoreError, match="it is not known whether this was written"):
        here.commit(NS, put(sample_instance(), expected=first, remove=True, lease=None))
    wait_until(lambda: listed(here) == listed(there) == set())


def test_what_redis_lost_before_its_answer_came_is_not_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines.open("here")
    wait_until(lambda: is_following(store))  # it has caught up, and does so again only if told
    first = store.commit(NS, put(sample_instance()))
    exchange = redis_server._exchange

    def late(connection: Any, command: tuple[Any, ...]) -> Any:
        answer = exchange(connection, command)
        if command[1:2] == (scripts.COMMIT.sha,) and store.revision(NS) == first:
            machines.forget()
            wait_until(lambda: store.revision(NS) > first + 1_000)
        return answer

    monkeypatch.setattr(redis_server, "_exchange", late)
    for name in ("_hear", "catch_up"):  # nor does a thread follow it
        monkeypatch.setattr(store._follower, name, lambda _: None)
    with pytest.raises(StoreError, match="it is not known whether this was written"):
        store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert listed(store) == {"web:1"}


def test_what_the_copy_lacks_is_not_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker of this machine would not show it."""
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))

    def fail(*_: Any) -> None:
        raise StoreError("Redis does not answer")

    cut_off_once(monkeypatch, scripts.COMMIT, lambda: None)
    monkeypatch.setattr(store._follower, "catch_up", fail)
    with pytest.raises(StoreError, match="Redis does not answer"):
        store.commit(NS, put(sample_instance(instance_id="web:2")))
    monkeypatch.undo()
    wait_until(lambda: listed(store) == {"web:1", "web:2"})


def test_what_the_copy_could_not_be_brought_up_to_is_not_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where catching up is given up, as where a namespace is not open for a moment."""
    here, there = machines.open("here"), machines.open("there")
    stop_threads(there)
    there.commit(NS, put(sample_instance()))
    here.commit_all(NS, [put(sample_instance(instance_id=f"web:{n}")) for n in range(2, 300)])
    refused = AnotherLifeError()

    def fetch(*_: Any, **__: Any) -> Any:
        raise refused

    monkeypatch.setattr(there._records, "fetch", fetch)
    monkeypatch.setattr(there._follower._records, "fetch", fetch)
    with pytest.raises(StoreError, match="not known whether"):
        there.commit(NS, put(sample_instance(instance_id="web:300")))
    monkeypatch.undo()
    there._follower.catch_up(NS)
    assert listed(there) == {f"web:{n}" for n in range(1, 301)}


def test_what_redis_loses_again_while_it_is_given_back_is_given_back_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that met it waits for that."""
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    adopt, lost = store._lives._adopt, []

    def adopted(**options: bool) -> None:
        if not lost:
            lost.append(None)
            raise AnotherLifeError
        adopt(**options)

    stop_threads(store)
    monkeypatch.setattr(store._lives, "_adopt", adopted)
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert lost
    assert listed(store) == {"web:1", "web:2"}


def test_a_namespace_that_comes_into_the_copy_while_it_is_given_back_is_given_back_too(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written in the former life may be the first of its namespace, and come late."""
    store = machines.open("here")
    stop_threads(store)
    give_back, came = store._lives._give_back_all, list[None]()

    def giving_back(*arguments: Any) -> Any:
        given = give_back(*arguments)
        if not came:
            came.append(None)
            late = Revision(store._copy.life() + 1)
            store._copy.follow(NS, [(late, put(sample_instance()))], None)
        return given

    monkeypatch.setattr(store._lives, "_give_back_all", giving_back)
    machines.forget()
    store.commit(NS, put(sample_instance(instance_id="web:2")))
    assert listed(store) == {"web:1", "web:2"}
    assert listed(machines.open("there")) == {"web:1", "web:2"}


def test_what_came_into_the_copy_while_it_was_given_back_is_given_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written, and acknowledged, just before Redis lost it."""
    store = machines.open("here")
    first = store.commit(NS, put(sample_instance()))
    give_back, late = store._lives._give_back, put(sample_instance(instance_id="web:2"))

    def given_back(life: Revision, namespace: Any) -> Any:
        given = yield from give_back(life, namespace)
        store._copy.follow(NS, [(Revision(first + 1), late)], None)
        return given

    monkeypatch.setattr(store._lives, "_give_back", given_back)
    machines.forget()
    wait_until(lambda: store.revision(NS) > first + 1_000)
    assert listed(store) == {"web:1", "web:2"}
    assert listed(machines.open("there")) == {"web:1", "web:2"}


def test_a_copy_that_is_taken_up_again_does_not_lose_what_was_written_meanwhile(
    machines: Machines,
) -> None:
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    life = store._copy.life()
    taken_up = store._server.ask(store._lives._contents(life, NS))
    revision = store.commit(NS, put(sample_instance(instance_id="web:2")))
    store._copy.replace(life, {NS: taken_up}, None, {})
    assert store.revision(NS) == revision
    assert listed(store) == {"web:1", "web:2"}
