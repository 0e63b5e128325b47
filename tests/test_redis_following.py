"""Following: what others change comes into a machine's copy by messages, or is fetched."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from registry.model import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit
from registry.stores.redis import RedisStore
from registry.stores.redis import server as redis_server
from registry.stores.redis.following import Follower
from registry.stores.redis.renewals import Teller
from registry.testing import put, sample_instance
from tests.redis_suite import (
    Machines,
    is_following,
    lease_from,
    listed,
    mono,
)
from tests.servers import counted, wait_until
from tests.test_duties import Tried, Turns, logged_faults

NS = DEFAULT_NAMESPACE
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


def followed_by_messages(store: RedisStore, patch: pytest.MonkeyPatch) -> list[None]:
    """From now on it hears of changes by messages alone; how often it fetched any."""
    wait_until(lambda: is_following(store))
    patch.setattr(store._teller, "tell", lambda: None)
    return counted(patch, store._follower, "catch_up")


def test_a_change_comes_with_the_message_that_tells_of_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is; several in one group, and each after the other."""
    here, there = machines.open("here"), machines.open("there")
    fetched = followed_by_messages(there, monkeypatch)
    lease = lease_from(mono())
    instances = [sample_instance(instance_id=f"wéb {n}") for n in range(3)]
    down = OverrideChange("wéb 0", InstanceStatus.DOWN)
    first, second, _ = here.commit_all(
        NS, [put(instances[0], lease=lease, override=down), *(put(i) for i in instances[1:])]
    )
    assert first is not None
    assert second is not None
    up = OverrideChange("wéb 0", None)
    without = Commit(instances[0].key, first, InstanceStatus.DOWN, 100, None, override=up)
    unlisted = Commit(
        sample_instance("API", "api:1").key, Revision(0), None, 100, None, override=down
    )
    gone = put(instances[1], expected=second, remove=True, lease=None, evicted=True)
    for commit in (without, unlisted._replace(override=down._replace(id="api:1")), gone):
        here.commit(NS, commit)
    here.commit(NS, put(instances[0]._replace(ip_addr="10.9.9.9"), expected=first, lease=None))
    here.set_expected_clients(NS, 5)
    last = here.commit(NS, put(sample_instance(instance_id="late"), expected_clients_step=2))
    wait_until(lambda: there.revision(NS) == last)
    ours, theirs = here.load(NS), there.load(NS)
    assert [change._replace(at_running_ms=0) for change in theirs.changes] == [
        change._replace(at_running_ms=0) for change in ours.changes
    ]
    assert sorted(theirs.instances) == sorted(ours.instances)
    assert theirs.overrides == {"api:1": InstanceStatus.DOWN}
    assert there.expected_clients(NS) == 7
    found = there.lease(NS, instances[0].key)
    assert found is not None
    assert found._replace(deadline_mono_ms=0) == lease._replace(deadline_mono_ms=0)
    assert fetched == []


def test_what_no_message_brought_is_fetched(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was missed, and one whose changes are too long for a message."""
    here, there = machines.open("here"), machines.open("there")
    fetched = followed_by_messages(there, monkeypatch)
    hear, missed = there._follower._hear, []

    def miss_one(data: bytes) -> None:
        if missed:
            hear(data)
        missed.append(data)

    monkeypatch.setattr(there._follower, "_hear", miss_one)
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    wait_until(lambda: missed)
    last = here.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == last)
    assert listed(there) == {"web:1", "web:2"}
    assert len(fetched) == 1
    long = [sample_instance(instance_id=f"long:{n}", metadata={"a": "b" * 999}) for n in range(99)]
    here.commit_all(NS, [put(each) for each in long])
    wait_until(lambda: listed(there) == listed(here))
    assert len(listed(there)) == 101
    assert len(fetched) >= 2


@pytest.mark.parametrize("portion", [1, 7, 1 << 20])
def test_messages_are_read_in_whatever_portions_they_come(portion: int) -> None:
    head = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$"
    bodies = [b"", b"a\r\nb", b"*3\r\n" * 99]
    stream = b"".join(head + b"%d\r\n%s\r\n" % (len(each), each) for each in bodies)
    found, received = [], b""
    for start in range(0, len(stream), portion):
        told, received = redis_server.published(head, received + stream[start : start + portion])
        found += told
    assert (found, received) == (bodies, b"")
    with pytest.raises(redis.ConnectionError, match="no message"):
        redis_server.published(head, b"*3\r\n$9\r\nsubscribe")


def test_nonsense_on_the_channel_holds_up_nobody(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may publish may write anything there: what follows it is followed as before."""
    here, there = machines.open("here"), machines.open("there")
    here.commit(NS, put(sample_instance(instance_id="web:1")))
    wait_until(lambda: there.revision(NS) == here.revision(NS))
    followed_by_messages(there, monkeypatch)
    subscriptions = there._follower._subscription
    revision = here.revision(NS)
    state = [b"WEB\0forged", b"%d" % (revision + 9), b"1 4 nonsense", b"", b"", b""]
    lengths = b" ".join(b"%d" % len(each) for each in state)
    unopened = b"ghost 0 %d n \n" % (revision + 9)
    for nonsense in (
        b"",
        b"nonsense",
        b"\n" * 100,
        b"x" * 5_000_000,
        b"\xff 1 2 n 5\n",
        b"default x y z 0\n",
        b"default 0 %d n  \n" % (revision + 9),
        b"default 0 %d n  -5\nabc" % (revision + 9),
        b"default 0 %d n  9999999\nabc" % (revision + 9),
        b"default 0 %s n \n" % (b"9" * 5_000),
        b"default %d %d n  %s\n%s" % (revision, revision + 9, lengths, b"".join(state)),
        b"default 0 %d n \n" % (revision + 10**15),
        b"a namespace 0 5 n \n",
        unopened,
        unopened,
    ):
        here._server.call("PUBLISH", here._server.name("moved"), nonsense)
    last = here.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == last)
    assert listed(there) == {"web:1", "web:2"}
    assert there._follower._subscription is subscriptions


def test_what_is_told_of_a_namespace_that_nobody_began_is_asked_for_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines.open("here")
    monkeypatch.setattr(store._teller, "tell", lambda: None)
    adopted = counted(monkeypatch, store._lives, "adopt")
    store._follower.catch_up(Namespace("ghost"))
    assert len(adopted) == 1


def test_a_worker_does_what_the_first_of_its_machine_leaves_undone(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may have been stopped; it also brings in what a killed writer of its own wrote."""
    here, there = machines.open("here"), machines.open("there")
    wait_until(lambda: is_following(there))
    monkeypatch.setattr(there._copy, "lead", lambda *_: False)
    wait_until(lambda: not there._follower.is_first)
    revision = here.commit(NS, put(sample_instance()))
    wait_until(lambda: there.revision(NS) == revision)
    take, writer = there._follower.take, threading.current_thread()

    def taken_by_others(*arguments: Any) -> None:
        if threading.current_thread() is not writer:
            take(*arguments)

    monkeypatch.setattr(there._follower, "take", taken_by_others)
    revision = there.commit(NS, put(sample_instance(instance_id="web:2")))
    wait_until(lambda: there.revision(NS) == revision)
    assert listed(there) == {"web:1", "web:2"}


@pytest.mark.parametrize("thread", ["follower", "teller"])
def test_a_lasting_defect_of_a_thread_is_logged_once(
    machines: Machines,
    thread: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, tried = machines.open("here"), Tried()
    follower = Follower(store._server, store._copy, store._lives)
    teller = Teller(store._server, store._copy, store._lives, follower, is_away=False)
    for each in (follower, teller):
        monkeypatch.setattr(each, "_server", SimpleNamespace(listen=tried, look_at_clock=tried))
    if thread == "follower":
        follower.follow(Turns(1_000))
    else:
        teller.keep_telling(Turns(1_000))
    assert tried.count >= 1
    assert logged_faults(caplog) == 1
    caplog.clear()
