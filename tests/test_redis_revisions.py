"""Revisions go on, whichever machine begins a life, and however little it knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from registry import StoreError
from registry.errors import ConflictError, LockLostError
from registry.lease import SystemClock
from registry.model import DEFAULT_NAMESPACE, Revision
from registry.store import Fence
from registry.stores.redis import RedisStore, read_address
from registry.stores.redis import store as redis_store
from registry.stores.redis.lives import Lives
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer
from tests.redis_suite import Machines, addresses, cut_power, mono, settle, stop_threads
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
_OLD, _NEW = "10.0.0.1", "10.9.9.9"
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


@pytest.mark.parametrize("knows", ["nothing", "an earlier life"])
def test_a_machine_that_knows_little_begins_no_life_below_what_others_know(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, knows: str
) -> None:
    """What it acknowledges then is later than what they give back."""
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0.2)
    here = machines.open("here")
    if knows == "an earlier life":
        machines.close(machines.open("there"))
    known = in_a_later_life(machines, here, 4)
    machines.forget()
    there = machines.open("there")
    revision = acknowledged(there, here)
    assert revision > known
    settle(here, there)
    assert both_list_it(here, there, revision)


@pytest.mark.slow
def test_wherever_in_a_machines_first_requests_redis_loses_everything_revisions_go_on(
    own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each request in turn, from the first of its start to that after its first write."""
    monkeypatch.setattr(redis_store, "_AWAITS_SECS", 0.2)
    for number in range(10_000):
        machines = Machines(own, tmp_path / str(number))
        here = machines.open("here")
        known = in_a_later_life(machines, here, 2)
        with before_request(number, machines.forget) as is_lost:
            there = machines.open("there")
            revision = acknowledged(there, here)
        assert revision > known
        settle(here, there)
        assert both_list_it(here, there, revision)
        machines.close()
        if not is_lost():
            break
    assert number > 20


def test_a_life_below_what_a_machine_knows_is_followed_by_one_beyond(machines: Machines) -> None:
    """Where Redis' clock was set back, a machine that knows nothing can begin such a one."""
    here = machines.open("here")
    known = in_a_later_life(machines, here, 1)
    machines.forget()
    there = RedisStore(read_address(machines.url("there")), life=Revision(0))
    try:
        low = there.commit(NS, put(sample_instance(instance_id="web:3")))
        assert low < known
        settle(here, there)
        for store in (here, there):
            assert store.revision(NS) > known
            assert addresses(store).keys() == {"web:1", "web:2", "web:3"}
    finally:
        there.close()


def test_of_two_that_begin_a_life_who_knows_less_does_not_have_it_his_way(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though he is the first; and who had a lock in a life that was beyond it does not keep it."""
    here = in_a_life_beyond(machines, "here")
    known = here.commit(NS, put(sample_instance()))
    held = here.acquire("evict", "former", mono(), 1)
    machines.forget()
    begin, opened = here._lives._begin, list[RedisStore]()

    def begin_late(*arguments: Any, **options: Any) -> Any:
        if not opened:
            opened.append(machines.open("there"))
        return begin(*arguments, **options)

    monkeypatch.setattr(here._lives, "_begin", begin_late)
    here._lives.adopt()
    there = opened[0]
    settle(here, there)
    assert here.state().life == there.state().life > known
    assert there.acquire("evict", "other", mono(), 60_000)
    assert held is not None
    with pytest.raises(LockLostError):
        here.commit(NS, put(sample_instance(instance_id="web:9")), Fence("evict", held))
    here.close()


def test_many_that_know_of_lives_beyond_agree_on_one_beyond_all(machines: Machines) -> None:
    stores = [machines.open(f"m{number}") for number in range(4)]
    stop_threads(*stores)
    greatest = Revision(0)
    for number, store in enumerate(stores):
        greatest = Revision((1 << 52) + (number << 22))
        assert store._copy.replace(greatest, {}, {}, {})
    machines.forget()
    with ThreadPoolExecutor(len(stores)) as at_once:
        for store in stores * 8:
            at_once.submit(store._lives.adopt)
    lives = {store.state().life for store in stores}
    assert len(lives) == 1
    assert lives.pop() > greatest


def test_lives_go_on_beyond_what_was_known_though_redis_clock_was_set_back(
    machines: Machines,
) -> None:
    store = in_a_life_beyond(machines, "here")
    known = store.commit(NS, put(sample_instance()))
    store.close()
    lives = []
    for _ in range(3):
        machines.forget()
        store = machines.open("here")
        assert addresses(store) == {"web:1": _OLD}
        lives.append(store.state().life)
        machines.close(store)
    assert known < lives[0] < lives[1] < lives[2]
    assert lives[2] < known + (1 << 22), "the clock has soon caught up"


@pytest.mark.parametrize("then", ["nothing", "writes alone", "power cut"])
def test_with_the_clock_set_back_a_life_begins_beyond_all_that_its_beginner_followed(
    machines: Machines, then: str
) -> None:
    """However many changes there were in the life before, which are written here as followed."""
    store = in_a_life_beyond(machines, "here")
    far = Revision(store.commit(NS, put(sample_instance())) + (1 << 24))
    store._copy.follow(NS, [(far, put(sample_instance(instance_id="web:2")))], None)
    if then == "writes alone":
        store._copy.commit_alone(NS, [put(sample_instance(instance_id="web:3"))])
    if then == "power cut":
        cut_power(store)
    store.close()
    machines.forget()
    store = machines.open("here")
    assert far < store.state().life < far + (1 << 22)
    assert addresses(store).keys() >= {"web:1", "web:2"}


def test_what_is_written_while_redis_is_away_puts_no_later_life_beyond_the_clock(
    machines: Machines,
) -> None:
    """A machine that knows nothing would be below it for as long."""
    here = machines.open("here", accepts=True)
    known = in_a_later_life(machines, here, 1)
    alone = here._copy.commit_alone(NS, [put(sample_instance(instance_id="web:3"))])
    assert alone[0] is not None
    assert alone[0] > known + (1 << 40)
    machines.forget()
    settle(here)
    assert known < here.state().life < 1_000 * (SystemClock().wall_ms() + 1)
    known = here.revision(NS)
    machines.forget()
    there = machines.open("there")
    assert there.commit(NS, put(sample_instance(instance_id="web:4"))) > known
    settle(here, there)
    for store in (here, there):
        assert addresses(store).keys() == {"web:1", "web:2", "web:3", "web:4"}


def test_a_machine_that_was_killed_as_it_took_up_its_first_life_is_started_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is noted of the copy is noted with it."""
    here = machines.open("here")
    known = here.commit(NS, put(sample_instance()))

    class KilledError(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Lives, "_tell_given", killed)
        with pytest.raises(KilledError):
            machines.open("there")
    there = machines.open("there")
    assert there.revision(NS) == known


def in_a_life_beyond(machines: Machines, name: str) -> RedisStore:
    """A machine's store as it is where Redis' clock was set back since the life began."""
    store = RedisStore(read_address(machines.url(name)), life=Revision(1 << 52))
    stop_threads(store)
    store._lives._first_life = None
    return store


def in_a_later_life(machines: Machines, store: RedisStore, lives: int) -> Revision:
    """Two instances, and so many lives; the revision after which nothing changes any more."""
    store.commit_all(NS, [put(sample_instance(instance_id=f"web:{n}")) for n in (1, 2)])
    stop_threads(store)
    for _ in range(lives):
        machines.forget()
        store._lives.adopt()
    return store.revision(NS)


def acknowledged(store: RedisStore, other: RedisStore) -> Revision:
    """Register an instance at another address until that is acknowledged, as a client does."""
    changed = sample_instance()._replace(ip_addr=_NEW)
    found: list[Revision] = []

    def is_taken() -> bool:
        stored = {each.id: each.revision for each in store.load(NS).instances}
        try:
            found.append(store.commit(NS, put(changed, expected=stored.get("web:1", Revision(0)))))
        except ConflictError:
            return False
        except StoreError:  # it may be awaited
            other._lives.adopt()
            return False
        return True

    wait_until(is_taken, "the write is acknowledged")
    return found[0]


def both_list_it(here: RedisStore, there: RedisStore, revision: Revision) -> bool:
    """Whether both list what was acknowledged with a revision, and are as far."""
    return all(
        addresses(store) == {"web:1": _NEW, "web:2": _OLD} and store.revision(NS) >= revision
        for store in (here, there)
    )


@contextmanager
def before_request(number: int, lose: Callable[[], Any]) -> Iterator[Callable[[], bool]]:
    """Have something happen before this thread sends a request, counted from here.

    What is yielded says whether it happened.
    """
    send = redis.connection.Connection.send_packed_command
    this_thread, sent, lost = threading.get_ident(), 0, False

    def send_packed(connection: Any, *arguments: Any, **options: Any) -> None:
        nonlocal sent, lost
        if threading.get_ident() == this_thread:
            sent += 1
            if sent > number and not lost:
                lost = True
                lose()
        send(connection, *arguments, **options)

    redis.connection.Connection.send_packed_command = send_packed
    try:
        yield lambda: lost
    finally:
        redis.connection.Connection.send_packed_command = send
