"""What was removed at a peer is not told to it anew, and what lives is.

One server in this process with ``FakePeer``, whose removals are those of a real registry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from eureka_compat.peers import hold, leases
from eureka_compat.peers.link import Link
from eureka_compat.peers.local import LocalRegistry
from eureka_compat.peers.outbox import Pending
from registry import DEFAULT_NAMESPACE, Instance, InstanceKey, InstanceStatus
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on
from tests.servers import wait_until
from tests.test_peers_hostile import (
    KEY,
    Answer,
    FakePeer,
    Running,
    instance,
    listed,
    peer,
    to_peer,
)

__all__ = ["peer", "to_peer"]
LATER_MS = 20_000


class Two:
    """This server (``here``), and the registry whose list and removals the fake peer tells."""

    def __init__(self, peer: FakePeer) -> None:
        self._clocks = ManualClock(), ManualClock()
        self.there = registry_on(MemoryStore(), self._clocks[1])
        self._peer = peer
        peer.lists = lambda: listed(self._listed())
        self.is_shadow = False
        peer.leases = self._leases
        self._running = Running(
            peer, clock=self._clocks[0], compare_interval_ms=50, sends_catalogs=True
        )
        self.registry = self._running.registry
        self.here = self.registry.in_namespace(DEFAULT_NAMESPACE)

    def __enter__(self) -> Two:
        self._running.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__()

    def _listed(self) -> list[Instance]:
        view = self.there.view()
        with view.lock:
            return [each for app in view.applications.values() for each in app.values()]

    def _leases(self) -> Answer:
        return 200, {}, bytes(leases.answer(self.there, is_shadow=self.is_shadow).body)

    def advance(self, ms: int = LATER_MS) -> None:
        for clock in self._clocks:
            clock.advance(ms)

    def set_wall(self, ms: int, *, here: bool) -> None:
        self._clocks[0 if here else 1].wall += ms

    def compare(self) -> None:
        """Until the two were compared twice more, and what followed was told."""
        for _ in range(2):
            seen = self._peer.lists_told
            wait_until(lambda seen=seen: self._peer.lists_told > seen + 1, "a comparison")

    def told(self) -> set[str]:
        """What the peer was told of since this was last asked."""
        batches, self._peer.batches = self._peer.batches, []
        return {item["action"] for batch in batches for item in batch}


@pytest.fixture
def two(peer: FakePeer) -> Iterator[Two]:
    with Two(peer) as both:
        yield both


def known_to_both(two: Two, **fields: Any) -> None:
    """One instance that registered here, as both list it."""
    here = instance(**fields)
    two.there.register(here._replace(source="eureka"), is_replication=True)
    two.here.register(here)
    two.compare()
    two.advance()
    two.told()


def test_who_was_cancelled_there_ends_here(two: Two) -> None:
    known_to_both(two)
    two.there.cancel(*KEY)
    two.advance()
    wait_until(lambda: two.here.instance(*KEY) is None, "its end")
    assert two.told() == set()


def test_what_another_told_the_peer_ends_nothing_here_and_is_not_told_anew(two: Two) -> None:
    known_to_both(two)
    two.there.cancel(*KEY, is_replication=True)
    two.advance()
    two.compare()
    assert two.here.instance(*KEY) is not None
    assert two.told() == set()


def test_who_was_heard_of_since_is_told(two: Two) -> None:
    known_to_both(two)
    two.there.cancel(*KEY)
    two.advance()
    two.here.register(instance())
    wait_until(lambda: "Register" in two.told(), "a registration")
    assert two.here.instance(*KEY) is not None


def test_what_a_catalog_dropped_there_ends_no_client_here(two: Two) -> None:
    two.there.register(instance(source="consul:dc1"))
    two.here.register(instance())
    two.compare()
    two.advance()
    two.there.cancel(*KEY, source="consul:dc1")
    two.advance()
    wait_until(lambda: "Register" in two.told(), "a registration")
    assert two.here.instance(*KEY) is not None


@pytest.mark.parametrize(
    "fields",
    [{"source": "file:one"}, {"source": "native", "status": InstanceStatus.OUT_OF_SERVICE}],
    ids=["a catalog's", "out of service"],
)
def test_what_is_never_renewed_is_told_anew_after_its_lease_ended_there(
    two: Two, fields: dict[str, Any]
) -> None:
    known_to_both(two, **fields)
    two.advance(91_000)
    assert two.there.evict(list(two.there.leases().items())) == 1
    two.advance(5_000)
    wait_until(lambda: "Register" in two.told(), "a registration")


@pytest.mark.parametrize(("back_ms", "here"), [(-60_000, False), (60_000, True)])
def test_a_clock_that_is_set_ends_no_client(
    peer: FakePeer, two: Two, back_ms: int, here: bool
) -> None:
    """Who came here after he was cancelled there lives, whatever the clocks become."""
    two.compare()
    two.there.register(instance())
    two.there.cancel(*KEY)
    two.advance()
    peer.takes = lambda _: (503, {}, b"")
    two.here.register(instance(last_dirty_ms=2_000))
    two.advance()
    two.set_wall(back_ms, here=here)
    two.compare()
    assert two.here.instance(*KEY) is not None


def test_who_registers_while_his_end_is_looked_at_stays(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_to_both(two)
    heard_ms, again = LocalRegistry.heard_ms, instance(last_dirty_ms=9_000)

    def overtaken(local: LocalRegistry, found: Instance) -> int:
        at = heard_ms(local, found)
        two.here.register(again)
        return at

    monkeypatch.setattr(LocalRegistry, "heard_ms", overtaken)
    two.there.cancel(*KEY)
    two.advance()
    two.compare()
    found = two.here.instance(*KEY)
    assert found is not None
    assert found.last_dirty_ms == again.last_dirty_ms


def unknown(items: list[dict[str, Any]]) -> Answer:
    """The peer knows none of them."""
    replies = [{"statusCode": 404} for _ in items]
    return 200, {}, json.dumps({"responseList": replies}).encode()


def test_whose_renewal_had_to_wait_is_compared_where_he_is_unknown(
    peer: FakePeer, to_peer: Link
) -> None:
    """He may have been cancelled elsewhere meanwhile."""
    peer.takes = lambda _: (503, {}, b"")
    to_peer.outbox.put(KEY, Pending.HEARTBEAT)
    assert not to_peer.run_once(time.monotonic())
    peer.batches.clear()
    peer.takes = unknown
    assert to_peer.run_once(time.monotonic() + 60)

    assert [item["action"] for batch in peer.batches for item in batch] == ["Heartbeat"]
    assert (len(to_peer.outbox), to_peer.needs_comparison) == (0, True)


def test_whose_renewal_is_told_at_once_registers_where_he_is_unknown(
    peer: FakePeer, to_peer: Link
) -> None:
    peer.takes = unknown
    to_peer.outbox.put(KEY, Pending.HEARTBEAT)
    assert to_peer.run_once(time.monotonic())
    assert to_peer.outbox.take(10) == [(KEY, Pending.REGISTER)]


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_shadow_fills_a_server_that_starts_empty_and_no_other(
    peer: FakePeer, is_empty: bool
) -> None:
    starting = Two(peer)
    starting.is_shadow = True
    starting.there.register(instance())
    if not is_empty:
        starting.here.register(instance(InstanceKey("APP", "other")))
    with starting as two:
        two.compare()
        assert (two.here.instance(*KEY) is not None) == is_empty


def test_a_shadow_is_told_what_it_lacks_and_what_has_gone(two: Two) -> None:
    known_to_both(two)
    two.is_shadow = True
    lists, two.there = two.there, registry_on(MemoryStore(), ManualClock())
    wait_until(lambda: "Register" in two.told(), "what is missing there")
    two.there = lists
    two.here.cancel(*KEY)
    wait_until(lambda: "Cancel" in two.told(), "what is told at once, and is lost")
    two.advance()
    wait_until(lambda: "Cancel" in two.told(), "what a comparison tells")


def test_nobody_is_kept_for_the_word_of_a_shadow_that_does_not_answer(
    two: Two, peer: FakePeer
) -> None:
    wait_until(lambda: len(hold.known(two.registry)) == 1, "the peer as one that may know more")
    two.is_shadow = True
    wait_until(lambda: hold.known(two.registry) == {}, "nobody to be waited for")
    peer.lists = lambda: (503, {}, b"")
    seen = peer.lists_told
    wait_until(lambda: peer.lists_told > seen, "a question in vain")
    assert hold.known(two.registry) == {}


@pytest.mark.parametrize("is_shadow", [False, True])
def test_what_is_at_a_shadow_alone_changes_nothing_elsewhere(two: Two, is_shadow: bool) -> None:
    """Who lists it, until when its lease lasts, and that it was cancelled."""
    for name in ("renewed", "cancelled"):
        for one in (two.here, two.there):
            one.register(instance(InstanceKey("APP", name)))
    two.compare()
    two.is_shadow = is_shadow
    two.advance()
    deadlines = {key: each.deadline_mono_ms for key, each in two.here.leases().items()}
    two.there.register(instance())
    assert two.there.renew("APP", "renewed") is not None
    assert two.there.cancel("APP", "cancelled")
    two.advance()
    two.compare()
    two.compare()

    found = {key.id: each.deadline_mono_ms for key, each in two.here.leases().items()}
    if is_shadow:
        assert found == {key.id: ms for key, ms in deadlines.items()}
    else:
        assert found.keys() == {"renewed", KEY.id}
        assert found["renewed"] > deadlines["APP", "renewed"]
