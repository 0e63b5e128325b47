"""Peers that are broken or mean harm: ``FakePeer`` answers whatever a test has it answer."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from eureka_compat import wire
from eureka_compat.peers import PeersSettings, Replicator, following, link, replicator
from eureka_compat.peers.following import Following
from eureka_compat.peers.link import Link, PeerError
from eureka_compat.peers.local import LocalRegistry
from eureka_compat.peers.membership import Peer, read_url
from eureka_compat.peers.outbox import Pending
from registry import (
    DEFAULT_NAMESPACE,
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Registry,
)
from registry.settings import RegistrySettings
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock
from tests.servers import HANG_SECS, counted, wait_until

KEY = InstanceKey("APP", "one")
Answer = tuple[int, dict[str, str], bytes]


class FakePeer:
    """A fake of a peer: an HTTP server that answers as ``lists`` and ``takes`` say."""

    def __init__(self) -> None:
        self.lists: Callable[[], Answer] = lambda: listed([])
        self.leases: Callable[[], Answer] = lambda: (404, {}, b"")
        self.takes: Callable[[list[dict[str, Any]]], Answer] = taken
        self.batches: list[list[dict[str, Any]]] = []
        self.lists_told = 0
        self.writes: Callable[[Any], None] | None = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.endswith("leases"):
                    self._answer(*fake.leases())
                elif fake.writes is not None:
                    fake.writes(self.wfile)
                    self.close_connection = True
                else:
                    answer = fake.lists()
                    fake.lists_told += 1
                    self._answer(*answer)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                items = json.loads(body)["replicationList"]
                fake.batches.append(items)
                self._answer(*fake.takes(items))

            def _answer(self, status: int, fields: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)  # without a date: the test's clock is another
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/eureka/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def taken(items: list[dict[str, Any]]) -> Answer:
    """Every item is done."""
    replies = [{"statusCode": 200} for _ in items]
    return 200, {}, json.dumps({"responseList": replies}).encode()


def listed(instances: list[Instance]) -> Answer:
    """A list of one application for each instance."""
    applications = [
        {"name": each.app, "instance": [wire.instance_tree(each)]} for each in instances
    ]
    document = {"applications": {"apps__hashcode": "", "application": applications}}
    return 200, {}, json.dumps(document).encode()


def instance(key: InstanceKey = KEY, **fields: Any) -> Instance:
    made = Instance(key.app, key.id, key.id, "host", "10.0.0.1", last_dirty_ms=1000)
    return made._replace(vip_address="app", **fields)


class FakeLocal:
    """A fake of this server: it lists what it is asked for, and adopts nothing."""

    def outgoing(self, key: InstanceKey) -> tuple[Instance, InstanceStatus | None] | None:
        return instance(key), None

    def adopt(self, entity: Instance) -> None:
        raise AssertionError(entity)


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    fake = FakePeer()
    yield fake
    fake.close()


@pytest.fixture
def to_peer(peer: FakePeer) -> Link:
    return Link(read_url(peer.url), PeersSettings(urls=(peer.url,)), FakeLocal())


def bounded_link(peer: FakePeer, most_list_bytes: int) -> Link:
    settings = PeersSettings(urls=(peer.url,), most_list_bytes=most_list_bytes)
    return Link(read_url(peer.url), settings, FakeLocal())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"garbage"),
        (200, {}, b'{"responseList":[]}'),
        (200, {}, b'{"responseList":[{"statusCode":200},{"statusCode":200}]}'),
        (302, {"Location": "http://192.0.2.1/"}, b""),
        (401, {}, b""),
        (404, {}, b""),
        (503, {}, b""),
    ],
    ids=["garbage", "fewer", "more", "redirect", "401", "404", "503"],
)
def test_who_is_not_in_order_gets_it_again_and_is_logged_once(
    peer: FakePeer, to_peer: Link, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    peer.takes = lambda _: answer
    to_peer.outbox.put(KEY, Pending.HEARTBEAT)
    for _ in range(4):
        assert not to_peer.run_once(time.monotonic() + 60)

    assert (len(to_peer.outbox), len(peer.batches)) == (1, 4)
    assert not to_peer.is_up
    assert len(warnings(caplog)) == 1
    peer.takes = taken
    assert to_peer.run_once(time.monotonic() + 60)
    assert to_peer.is_up
    assert to_peer.needs_comparison


@pytest.mark.parametrize("status", [400, 500])
def test_who_refuses_everything_is_not_asked_again_and_again(
    peer: FakePeer, to_peer: Link, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    peer.takes = lambda _: (status, {}, b"")
    for number in range(300):
        to_peer.outbox.put(InstanceKey("APP", str(number)), Pending.HEARTBEAT)
    assert not to_peer.run_once(time.monotonic())

    assert len(to_peer.outbox) == 300 - link.MOST_ITEMS
    assert to_peer.waits(time.monotonic()) > 0
    assert len(warnings(caplog)) <= link._MOST_LOGGED + 1


def test_what_a_peer_refuses_spoils_nothing_else(peer: FakePeer, to_peer: Link) -> None:
    def takes(items: list[dict[str, Any]]) -> Answer:
        return (400, {}, b"") if any(each["id"] == "7" for each in items) else taken(items)

    peer.takes = takes
    for number in range(20):
        to_peer.outbox.put(InstanceKey("APP", str(number)), Pending.REGISTER)

    assert to_peer.run_once(time.monotonic())
    done = {each["id"] for batch in peer.batches for each in batch}
    assert done == {str(number) for number in range(20)}
    assert (to_peer.tally.refused, len(to_peer.outbox), to_peer.is_up) == (1, 0, True)


def test_who_serves_lists_and_refuses_batches_is_no_flood_of_either(
    peer: FakePeer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a server that wants a token for a POST: each success of one undid the other's circuit."""
    lists: list[None] = []

    def count() -> Answer:
        lists.append(None)
        return listed([])

    peer.lists, peer.takes = count, lambda _: (403, {}, b"")
    with Running(peer, compare_interval_ms=10 * HANG_SECS * 1000) as (registry, whole):
        registry.in_namespace(DEFAULT_NAMESPACE).register(instance())
        wait_until(lambda: len(peer.batches) >= 6, "several attempts")
        assert len(lists) <= 2
        wait_until(lambda: [each["state"] for each in whole.report()["peers"]] == ["down"], "down")
    assert len([each for each in warnings(caplog) if "does not answer" in each]) == 1


def renew_until_it_is_told(registry: Registry, clock: ManualClock, peer: FakePeer) -> None:
    """Register an instance, and renew it until the peer was told of heartbeats too."""
    namespace = registry.in_namespace(DEFAULT_NAMESPACE)
    namespace.register(instance())

    def is_told() -> bool:
        clock.advance(10)
        return namespace.renew(*KEY) is not None and len(peer.batches) >= 3

    wait_until(is_told, "heartbeats")


def test_who_takes_batches_and_serves_no_list_is_told_of_heartbeats(peer: FakePeer) -> None:
    peer.lists = lambda: (500, {}, b"")
    clock = ManualClock()
    with Running(peer, clock) as (registry, _):
        renew_until_it_is_told(registry, clock, peer)


def test_whose_list_is_long_in_coming_is_told_of_renewals_meanwhile(peer: FakePeer) -> None:
    """Each had to wait for the other: 250 words in each half minute, and leases ended there."""
    let_go, asked = threading.Event(), threading.Event()

    def hang(_: Any) -> None:
        asked.set()
        let_go.wait(HANG_SECS)

    peer.writes = hang
    clock = ManualClock()
    with Running(peer, clock) as (registry, _):
        assert asked.wait(HANG_SECS)
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        namespace.register(instance())
        batches = len(peer.batches)

        def renewed() -> bool:
            clock.advance(10)
            return namespace.renew(*KEY) is not None and len(peer.batches) >= batches + 3

        wait_until(renewed, "heartbeats")
        assert peer.lists_told == 0
        let_go.set()


def test_who_is_cancelled_while_a_list_is_under_way_does_not_come_back_with_it(
    peer: FakePeer,
) -> None:
    clock = ManualClock()
    fresh = {"last_renewal_ms": clock.wall, "last_updated_ms": clock.wall - 100_000}
    asked, let_go = threading.Event(), threading.Event()

    def stale() -> Answer:
        if peer.lists_told:
            asked.set()
            let_go.wait(HANG_SECS)
        return listed([instance(**fresh), instance(InstanceKey("APP", "other"), **fresh)])

    peer.lists = stale
    # So that it is forgotten at once who was removed.
    of_registry = RegistrySettings(delta_retention_ms=1, delta_retention_timer_interval_ms=1)
    with Running(peer, clock, of_registry, compare_interval_ms=20) as (registry, _):
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        wait_until(lambda: namespace.instance(*KEY), "what the peer lists")
        assert asked.wait(HANG_SECS)
        # It is this server's own from now on, and ends here; the list on its way still has it.
        namespace.register(instance(last_dirty_ms=2000))
        wait_until(lambda: is_told(peer, KEY), "its registration")
        assert namespace.cancel(*KEY)
        wait_until(lambda: "Cancel" in actions(peer, KEY), "its end")
        clock.advance(1000)
        peer.lists = lambda: listed([instance(InstanceKey("APP", "other"), **fresh)])
        told = peer.lists_told
        let_go.set()
        wait_until(lambda: peer.lists_told > told + 2, "more comparisons")
        assert namespace.instance(*KEY) is None


def actions(peer: FakePeer, key: InstanceKey) -> list[str]:
    return [each["action"] for batch in peer.batches for each in batch if each["id"] == key.id]


def test_an_answer_without_an_end_is_given_up(peer: FakePeer) -> None:
    to_peer = bounded_link(peer, 1 << 20)
    ended = threading.Event()

    def endless(wire: Any) -> None:
        wire.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                wire.write(b" " * 65536)
        ended.set()

    peer.writes = endless
    with pytest.raises(PeerError, match="more than 1 MB"):
        to_peer.fetch(0)
    assert ended.wait(HANG_SECS)


def test_an_answer_that_comes_a_byte_at_a_time_is_given_up(
    peer: FakePeer, to_peer: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_FETCH_SECS", 1.0)
    ended = threading.Event()

    def trickle(wire: Any) -> None:
        wire.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                wire.write(b" ")

    peer.writes = trickle
    # The one where a byte is that late itself. With neither limit it would hang.
    with pytest.raises(PeerError, match=r"no end|no answer in time"):
        to_peer.fetch(0)
    ended.set()


def test_a_compressed_answer_is_bounded_by_what_it_unfolds_to(peer: FakePeer) -> None:
    to_peer = bounded_link(peer, 4 << 20)
    bomb = gzip.compress(b" " * (64 << 20))
    peer.lists = lambda: (200, {"Content-Encoding": "gzip"}, bomb)
    with pytest.raises(PeerError, match="more than 4 MB"):
        to_peer.fetch(0)


@pytest.mark.parametrize("part", [b"[],", b"{},", b'{"a":[]},'])
def test_a_list_that_would_unfold_in_memory_is_not_read(peer: FakePeer, part: bytes) -> None:
    """Twenty times its length it would take, and half a minute of this server's time."""
    to_peer = bounded_link(peer, 16 << 20)
    body = b'{"applications":{"application":[' + part * ((12 << 20) // len(part)) + b"{}]}}"
    peer.lists = lambda: (200, {}, body)
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="no list of instances"):
            to_peer.fetch(0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is read from the network, once in parts and once as a whole, on both sides.
    assert most < 4 * len(body)


def test_a_list_of_as_many_as_a_registry_holds_is_taken_with_the_default_bound() -> None:
    """Reckoned from one, not made: the longest list is for the whole suite too long."""
    told = InstanceKey("PAYMENTS", "payments-7d9f8b6c5-x2x4z.payments:8080")
    urls = {
        name: f"http://payments-7d9f8b6c5-x2x4z.payments.svc.cluster.local:8080/actuator/{name}"
        for name in ("home_page_url", "status_page_url", "health_check_url")
    }
    one = instance(told, metadata={"zone": "eu-1a", "management.port": "8081"}, **urls)
    length = len(json.dumps(wire.instance_tree(one), separators=(",", ":")))
    assert length * RegistrySettings().max_instances < PeersSettings().most_list_bytes


def test_what_cannot_be_taken_is_left_out_and_logged_once(
    peer: FakePeer, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    fresh = {"last_renewal_ms": clock.wall, "last_updated_ms": clock.wall}
    bad = InstanceKey("APP", "x" * 500)
    peer.lists = lambda: listed([instance(bad, **fresh), instance(**fresh)])
    with Running(peer, compare_interval_ms=50) as (registry, _):
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        wait_until(lambda: namespace.instance(*KEY), "the good one")
        wait_until(lambda: peer.lists_told > 5, "more comparisons")
        assert namespace.instance(*bad) is None
    assert len([each for each in warnings(caplog) if "is not taken" in each]) == 1


@pytest.mark.parametrize("answers", [b"", b"HTTP/1.1 200 OK\r\n\r\n{"], ids=["no", "half an"])
def test_threads_end_though_a_peer_gives_no_answer_or_half_of_one(
    peer: FakePeer,
    answers: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fetch may take half a minute; who stops does not wait for it, and blames nobody."""
    # Here it takes for ever, so that nothing ends it but the stop.
    monkeypatch.setattr(link, "_FETCH_SECS", 10.0 * HANG_SECS)
    let_go, asked = threading.Event(), threading.Event()

    def hang(wire: Any) -> None:
        wire.write(answers)
        asked.set()
        let_go.wait()

    peer.writes = hang
    with Running(peer) as (registry, _):
        assert asked.wait(HANG_SECS)
    wait_until(lambda: threads() == [], "the end of the threads")
    wait_until(
        lambda: registry.coordination.acquire("peers", "another", 0, 1000) is not None, "the lock"
    )
    let_go.set()
    assert warnings(caplog) == []


def test_a_batch_under_way_may_end_before_all_stops(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given a second; here longer, so that nobody is too slow for it."""
    monkeypatch.setattr(replicator, "_GRACE_SECS", HANG_SECS)
    under_way, stopping = threading.Event(), threading.Event()

    def takes(items: list[dict[str, Any]]) -> Answer:
        under_way.set()
        stopping.wait(HANG_SECS)
        time.sleep(0.2)  # whoever breaks off at once does not get the answer
        return taken(items)

    genuine = Following.stop

    def stops(stopped: Any) -> None:
        genuine(stopped)
        stopping.set()

    monkeypatch.setattr(Following, "stop", stops)
    peer.takes = takes
    with Running(peer) as (registry, running):
        wait_until(lambda: (running.report()["peers"] or [{}])[0].get("comparison"), "a comparison")
        registry.in_namespace(DEFAULT_NAMESPACE).register(instance())
        assert under_way.wait(HANG_SECS)
        assert running._run is not None
        (one,) = running._run._links.values()
    wait_until(lambda: threads() == [], "the end of the threads")
    assert [each["id"] for batch in peer.batches for each in batch] == [KEY.id]
    # The answer, too, has come.
    assert (one.link.tally.batches, one.link.problem) == (1, "")


def test_a_change_that_cannot_be_told_holds_up_no_other(
    peer: FakePeer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison tells of it: it was tried again for ever, and nothing else was told."""
    # But for what it is asked for on account of the fault, nothing is compared again.
    monkeypatch.setattr(following, "_ASKED_AGAIN_SECS", 10.0 * HANG_SECS)
    monkeypatch.setattr(replicator, "_LONGEST_FAULT_SECS", 10.0 * HANG_SECS)
    genuine = LocalRegistry.news_of

    def fails(local: Any, change: Change) -> Any:
        if change.instance is not None and change.instance.key == KEY:
            raise ValueError("a fault")
        return genuine(local, change)

    monkeypatch.setattr(LocalRegistry, "news_of", fails)
    with Running(peer, compare_interval_ms=10 * HANG_SECS * 1000) as (registry, _):
        wait_until(lambda: peer.lists_told, "the first comparison")
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        for number in range(5):
            namespace.register(instance(last_dirty_ms=1000 + number))
            other = InstanceKey("APP", f"other:{number}")
            namespace.register(instance(other))
            wait_until(lambda key=other: is_told(peer, key), "the one that can be told")
        wait_until(lambda: is_told(peer, KEY), "what a comparison finds")
        assert peer.lists_told <= 3
    assert len([each for each in caplog.records if "cannot be told" in each.getMessage()]) == 1


def test_what_changes_before_the_first_look_at_changes_is_told(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not left to the comparison of a minute later."""
    monkeypatch.setattr(replicator, "_FOLLOW_SECS", 1.0)
    with Running(peer, compare_interval_ms=10 * HANG_SECS * 1000) as (registry, _):
        wait_until(lambda: peer.lists_told, "the first comparison")
        registry.in_namespace(DEFAULT_NAMESPACE).register(instance())
        wait_until(lambda: is_told(peer, KEY), "the change")


def is_told(peer: FakePeer, key: InstanceKey) -> bool:
    return any(item["id"] == key.id for batch in peer.batches for item in batch)


def test_a_lasting_fault_of_one_duty_leaves_the_others_and_the_log_alone(
    peer: FakePeer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[None] = []

    def fails(run: Any) -> None:
        tried.append(None)
        raise ValueError("a fault")

    monkeypatch.setattr(replicator._Run, "_tell_changes", fails)
    clock = ManualClock()
    with Running(peer, clock) as (registry, running):
        renew_until_it_is_told(registry, clock, peer)
        assert running.report()["peers"]
    assert tried
    faults = [each for each in caplog.records if "growing intervals" in each.getMessage()]
    assert [each.exc_info is not None for each in faults] == [True]


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("peer")]


class Running:
    """A server's exchange with a fake peer, in this process."""

    def __init__(
        self,
        peer: FakePeer,
        clock: ManualClock | None = None,
        of_registry: RegistrySettings | None = None,
        **settings: Any,
    ) -> None:
        self.registry = Registry(
            MemoryStore(), clock or ManualClock(), of_registry or RegistrySettings()
        )
        self.registry.start()
        settings = {"urls": (peer.url,), "register": False, "port": 1, **settings}
        told = PeersSettings(**settings)
        self._replicator = Replicator(self.registry, told)

    def __enter__(self) -> tuple[Registry, Replicator]:
        self._replicator.start()
        return self.registry, self._replicator

    def __exit__(self, *_: object) -> None:
        self._replicator.stop()


def test_a_peer_that_lists_but_itself_opens_nothing_while_another_was_not_asked(
    peer: FakePeer,
) -> None:
    """Two servers that start empty at once are both to wait for the third."""
    itself = InstanceKey("EUREKA", "another:eureka:8761")
    peer.lists = lambda: listed([instance(itself)])
    third, let_go = FakePeer(), threading.Event()

    def late() -> Answer:
        let_go.wait(HANG_SECS)
        return listed([instance()])

    third.lists = late
    urls = (peer.url, third.url)
    try:
        with Running(peer, urls=urls, compare_interval_ms=50) as (registry, running):
            wait_until(lambda: peer.lists_told > 3, "comparisons with the one")
            assert not running.is_open()
            let_go.set()
            wait_until(running.is_open, "an answer of the other")
            assert registry.in_namespace(DEFAULT_NAMESPACE).instance(*KEY) is not None
    finally:
        let_go.set()
        third.close()


def test_where_no_peer_has_anything_one_that_fails_last_is_not_waited_for(
    peer: FakePeer,
) -> None:
    failing, let_go = FakePeer(), threading.Event()
    failing.writes = lambda _: let_go.wait(HANG_SECS) and None
    long = {"compare_interval_ms": 10 * HANG_SECS * 1000, "start_wait_ms": 10 * HANG_SECS * 1000}
    try:
        with Running(peer, urls=(peer.url, failing.url), **long) as (_, running):
            wait_until(lambda: "'comparison': {" in str(running.report()), "a comparison")
            assert not running.is_open()
            let_go.set()
            wait_until(running.is_open, "readiness")
    finally:
        let_go.set()
        failing.close()


def test_once_one_worker_calls_the_server_ready_none_refuses_a_read(peer: FakePeer) -> None:
    let_go = threading.Event()

    def late() -> Answer:
        let_go.wait(HANG_SECS)
        return listed([instance()])

    peer.lists = late
    try:
        with Running(peer) as (registry, running):
            # It has never looked by itself, as another worker between two looks.
            another = Replicator(registry, PeersSettings(urls=(peer.url,)))
            assert (running.is_open(), another.is_open()) == (False, False)
            let_go.set()
            wait_until(running.is_open, "readiness")
            assert another.is_open()
    finally:
        let_go.set()


def test_a_worker_that_starts_later_takes_what_came_meanwhile_for_no_list(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server began with nothing, and a peer may know far more than registered here since."""
    let_go = threading.Event()

    def late() -> Answer:
        let_go.wait(HANG_SECS)
        return listed([instance()])

    peer.lists = late
    long = PeersSettings(urls=(peer.url,), register=False, port=1, start_wait_ms=HANG_SECS * 10_000)
    try:
        with Running(peer, start_wait_ms=HANG_SECS * 10_000) as (registry, running):
            registry.in_namespace(DEFAULT_NAMESPACE).register(instance())
            later = Replicator(registry, long)
            later.start()
            assert (running.is_open(), later.is_open()) == (False, False)
            later.stop()

            monkeypatch.setattr(replicator, "_server_run", lambda: b"another run")
            restarted = Replicator(registry, long)
            restarted.start()
            assert restarted.is_open()  # it began with what the run before had left
            restarted.stop()
    finally:
        let_go.set()


def test_what_was_compared_before_a_restart_is_no_verdict_after_it(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.lists = lambda: listed([])
    with Running(peer) as (registry, running):
        wait_until(lambda: running.report()["peers"], "a report")
    monkeypatch.setattr(replicator, "_server_run", lambda: b"another run")

    restarted = Replicator(registry, PeersSettings(urls=(peer.url,)))

    assert restarted.report()["verdict"] == "Not known: nothing is compared."


def test_nothing_is_said_of_the_peers_but_of_all_that_are_known(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names may take long to look up: there was said to be no peer, or only the first of them."""
    monkeypatch.setattr(replicator, "_REPORT_SECS", 0.01)
    reports = counted(monkeypatch, replicator._Run, "_report")
    written = list[int]()
    are_known = threading.Event()
    peers = [read_url(peer.url.replace("127.0.0.1", f"127.0.0.{n}")) for n in range(1, 4)]
    found = peers[:1]

    def look_up(*_: Any, **__: Any) -> list[Peer]:
        assert are_known.wait(HANG_SECS)
        return found

    class Slow(Following):
        """One that is added when others have had time to report what is there."""

        def __init__(self, *told: Any) -> None:
            until, seen = time.monotonic() + 0.5, len(reports)
            while len(reports) < seen + 3 and time.monotonic() < until:
                time.sleep(0.01)
            super().__init__(*told)

    monkeypatch.setattr(replicator, "others", look_up)
    monkeypatch.setattr(replicator, "Following", Slow)
    with Running(peer, resolve_interval_ms=50) as (registry, running):
        note = registry.coordination.set_note

        def set_note(name: str, what: bytes) -> None:
            if name == replicator._REPORT_NOTE:
                written.append(len(json.loads(what)["peers"]))
            note(name, what)

        monkeypatch.setattr(registry.coordination, "set_note", set_note)
        wait_until(lambda: len(reports) > 2, "turns of what reports")
        assert running.report()["verdict"] == "Not known: nothing is compared."
        are_known.set()
        wait_until(lambda: 1 in written, "a report of the first")
        found = peers
        wait_until(lambda: 3 in written, "a report of all")
    assert set(written) == {1, 3}


def test_a_cancelled_instance_that_an_old_list_still_has_stays_cancelled(peer: FakePeer) -> None:
    """A genuine server's list lags by as much as half a minute."""
    clock = ManualClock()
    fresh = {"last_renewal_ms": clock.wall, "last_updated_ms": clock.wall}
    gone, evicted = InstanceKey("APP", "cancelled"), InstanceKey("APP", "told")
    peer.lists = lambda: listed([instance(each, **fresh) for each in (gone, evicted, KEY)])
    with Running(peer, compare_interval_ms=50) as (registry, _):
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        wait_until(lambda: namespace.view().size() == 3, "all three")
        namespace.register(instance(gone, last_dirty_ms=1000))
        assert namespace.cancel(*gone)
        assert namespace.cancel(*evicted, is_replication=True)
        lists_told = peer.lists_told
        wait_until(lambda: peer.lists_told > lists_told + 3, "more comparisons")
        assert [namespace.instance(*each) is None for each in (gone, evicted)] == [True, True]
        assert namespace.instance(*KEY) is not None
        cancels = {item["id"] for batch in peer.batches for item in batch}
        assert "told" not in cancels


def test_what_cannot_be_made_equal_is_not_healed_for_ever(peer: FakePeer) -> None:
    """A peer that shows a field in its own way, and a new instant whenever it is told."""
    clock = ManualClock()

    def shows() -> Answer:
        updated = clock.wall - 100_000 + peer.lists_told
        fields = {"last_renewal_ms": clock.wall, "last_updated_ms": updated}
        return listed([instance(home_page_url="/mine", **fields)])

    peer.lists = shows
    with Running(peer, compare_interval_ms=20) as (registry, _):
        namespace = registry.in_namespace(DEFAULT_NAMESPACE)
        namespace.register(instance(last_dirty_ms=1000, home_page_url="/ours"))
        wait_until(lambda: peer.lists_told > 9, "many comparisons")
    registers = [item for batch in peer.batches for item in batch if item["action"] == "Register"]
    assert len(registers) <= following._HEALED_AT_MOST + 2
