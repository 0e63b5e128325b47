"""Drain: out of service, and safe to stop only once all who read have fetched since."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from werkzeug.test import TestResponse

from eureka_server.operator import commands
from registry.testing import sample_instance
from tests.noticed import SLOW
from tests.servers import HANG_SECS, JSON, RegistryServer, instance_body, send, wait_until
from tests.test_native_api import World, problem
from tests.test_native_system import started
from tests.test_operator import Operator


class Read(World):
    """A server that clients read from, each at an address of its own."""

    def fetches(self, who: str, path: str = "/apps", *, address: str = "10.1.0.1") -> None:
        reply = self.client.get(
            f"/eureka{path}",
            headers={"User-Agent": who, "Accept": "application/json"},
            environ_overrides={"REMOTE_ADDR": address, "REMOTE_PORT": "4711"},
        )
        assert reply.status_code == 200
        self.gateway.fetches.flush()

    def drains(self, path: str = "/instances/shop:1") -> TestResponse:
        """The answer once it is noted who has just fetched."""
        reply = self.send("POST", f"{path}/drain")
        if reply.json["sentence"].startswith("Not yet known"):
            assert (reply.status_code, reply.json["safe"]) == (202, False)
            self.clock.advance(2_000)
            reply = self.send("POST", f"{path}/drain")
        assert reply.status_code == (200 if reply.json["safe"] else 202), reply.text
        return reply

    def waits_for(self, path: str = "/instances/shop:1") -> list[str]:
        return [each["client"] for each in self.drains(path).json["waiting_for"]]


@pytest.fixture
def world() -> Read:
    made = Read()
    for number in (1, 2):
        made.eureka("POST", "/apps/SHOP", instance_body("SHOP", f"shop:{number}"))
    return made


def test_nobody_who_reads_is_nobody_to_wait_for(world: Read) -> None:
    told = world.drains().json
    assert told == {
        "service_name": "shop",
        "drained": ["shop:1"],
        "since": 3,
        "safe": True,
        "sentence": "Safe to stop: every client that reads from this server has fetched since.",
        "waiting_for": [],
        "more": 0,
    }
    assert world.shown("shop:1")["status"] == "OUT_OF_SERVICE"
    assert world.shown("shop:2")["status"] == "UP"


def test_it_is_safe_once_everybody_has_fetched_since(world: Read) -> None:
    world.fetches("one")
    world.fetches("two", address="10.1.0.2")
    world.clock.advance(12_000)

    told = world.send("POST", "/instances/shop:1/drain").json

    assert told["sentence"] == (
        "Not yet safe to stop: 2 clients last fetched before it: one at 10.1.0.1, 12 s ago;"
        " two at 10.1.0.2, 12 s ago."
    )
    assert {k: v for k, v in told["waiting_for"][0].items() if k != "last_fetch"} == {
        "client": "one",
        "address": "10.1.0.1",
        "reads": "all",
        "age_ms": 12_000,
        "interval_ms": None,
    }
    world.fetches("two", "/apps/delta", address="10.1.0.2")
    assert world.waits_for() == ["one"]
    world.fetches("one")
    assert world.drains().json["safe"]


def test_who_reads_other_applications_alone_need_not_have_fetched(world: Read) -> None:
    world.eureka("POST", "/apps/CART", instance_body("CART", "cart:1"))
    world.fetches("of the cart", "/apps/CART")
    world.fetches("of the shop", "/apps/SHOP", address="10.1.0.2")
    world.fetches("of its vip", "/vips/shop", address="10.1.0.3")
    assert world.waits_for() == ["of the shop", "of its vip"]


def test_who_has_gone_is_not_waited_for_any_more(world: Read) -> None:
    world.fetches("gone")
    assert world.waits_for() == ["gone"]
    world.clock.advance(91_000)
    assert world.waits_for() == []


def test_what_changes_besides_need_not_be_fetched_by_those_who_know_since_when(
    world: Read,
) -> None:
    world.fetches("one")
    since = world.drains().json["since"]
    world.fetches("one")
    world.send("PATCH", "/instances/shop:1/metadata", {"a": "b"})
    assert world.waits_for() == ["one"]
    world.clock.advance(2_000)
    assert world.send("POST", f"/instances/shop:1/drain?since={since}").json["safe"]
    # Brought back in between, it is taken out anew.
    world.send("DELETE", "/instances/shop:1/override?status=UP")
    told = world.send("POST", f"/instances/shop:1/drain?since={since}").json
    assert (told["safe"], told["since"] > since) == (False, True)


@pytest.mark.parametrize("since", ["", "x", "-1", "9" * 30, "999999"])
def test_a_revision_that_never_was_is_no_reason_to_call_it_safe(world: Read, since: str) -> None:
    world.fetches("one")
    world.drains()
    told = world.send("POST", f"/instances/shop:1/drain?since={since}").json
    assert (told["safe"], told["since"]) == (False, 3)


def test_all_of_a_service_are_drained_together(world: Read) -> None:
    world.fetches("one")
    told = world.drains("/services/shop").json
    assert (sorted(told["drained"]), told["safe"]) == (["shop:1", "shop:2"], False)
    world.fetches("one")
    assert world.drains("/services/shop").json["safe"]


def test_what_a_catalog_lists_is_not_drained(world: Read) -> None:
    world.registry.register(sample_instance("SHOP", "listed:1", source="kubernetes:main"))
    world.registry.register(sample_instance("CART", "cart:1", source="kubernetes:main"))
    assert sorted(world.drains("/services/shop").json["drained"]) == ["shop:1", "shop:2"]
    problem(world.send("POST", "/instances/listed:1/drain"), 409)
    problem(world.send("POST", "/services/cart/drain"), 409)
    problem(world.send("POST", "/instances/nobody/drain"), 410)
    problem(world.send("POST", "/services/nobody/drain"), 404)


def test_a_drain_is_in_the_history_once(world: Read) -> None:
    world.fetches("one")
    since = world.send("POST", "/instances/shop:1/drain").json["since"]
    world.send("POST", f"/instances/shop:1/drain?since={since}")
    entries = world.send("GET", "/instances/shop:1/history?kind=drained").json["entries"]
    assert [each["detail"] for each in entries] == [{"waiting_for": 1}]


# The command


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path) as running:
        yield running


class Fetching(threading.Thread):
    """A client that fetches a delta whenever it is told to, over one connection."""

    def __init__(self, server: RegistryServer) -> None:
        super().__init__(daemon=True)
        self._server = server

    def fetch(self) -> None:
        headers = {"User-Agent": "a client", "Accept": "application/json"}
        assert send(self._server.port, "GET", "/eureka/apps/delta", None, headers).status == 200


class FakeTime:
    """A fake of ``time`` that goes on by what is slept alone, however late an answer is."""

    def __init__(self) -> None:
        self._slept = 0.0

    def monotonic(self) -> float:
        return self._slept

    def sleep(self, secs: float) -> None:
        time.sleep(secs)
        self._slept += secs


def test_the_command_waits_until_all_have_fetched(
    server: RegistryServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.register("SHOP", "shop:1")
    client = Fetching(server)
    client.fetch()
    operator = Operator(capsys, server.root)
    wait_until(lambda: "a client" in operator.types("readers").out, "the client to be noted")

    with monkeypatch.context() as patched:
        patched.setattr(commands, "time", FakeTime())
        said = operator.types("drain", "shop:1", "--timeout", "3s")

    assert said.code == 1
    assert said.out.startswith("Not yet safe to stop: 1 client last fetched before it: a client")
    assert said.err == "waiting for a client at 127.0.0.1\n"
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(0.2):
            client.fetch()

    fetching = threading.Thread(target=go_on)
    fetching.start()
    try:
        said = operator.types("drain", "shop:1", "--grace", "1s", "-o", "json")
    finally:
        stop.set()
        fetching.join()
    assert (said.code, said.json()["safe"]) == (0, True)
    assert operator.types("show", "shop:1", "-o", "json").json()["override"] == "OUT_OF_SERVICE"
    assert operator.types("drain", "nobody").code == 1


# A rolling restart


class Node:
    """An instance of ``ratings``: a server that answers its name, registered for as long."""

    def __init__(self, server: RegistryServer, name: str) -> None:
        self.name = name
        self._server = server
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                node.is_called = True
                self.send_response(200)
                self.send_header("Content-Length", str(len(node.name)))
                self.end_headers()
                self.wfile.write(node.name.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler
        self.start()

    def start(self) -> None:
        self.is_called = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        port = {"$": self._http.server_port, "@enabled": "true"}
        lease = {"renewalIntervalInSecs": 30, "durationInSecs": 3600}
        body = instance_body(
            "RATINGS",
            self.name,
            hostName="127.0.0.1",
            ipAddr="127.0.0.1",
            port=port,
            leaseInfo=lease,
        )
        assert self._server.send("POST", "/eureka/apps/RATINGS", body, JSON).status == 204

    def stop(self) -> None:
        """It says goodbye and stops at once, as a program does that is told to."""
        self._server.send("DELETE", f"/eureka/apps/RATINGS/{self.name}")
        self._http.shutdown()
        self._http.server_close()


NODES = 10
GRACE_SECS = 3
# A client that was held up for as long as most of the grace may call whom it chose before.
_HELD_UP_SECS = 2


class Call(NamedTuple):
    """A call that a client's own load balancer made, as its caller saw it."""

    client: str
    sent: float
    ended: float
    status: int
    body: str


def failed(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.status != 200]


def is_late(call: Call, calls: Sequence[Call]) -> bool:
    """Whether a client's time limit shows, or the client was held up just before, or meanwhile."""
    return bool(SLOW.search(call.body)) or any(
        each.client == call.client
        and each.ended - each.sent > _HELD_UP_SECS
        and call.sent - GRACE_SECS < each.ended
        and each.sent < call.ended
        for each in calls
    )


@pytest.mark.programs
@pytest.mark.slow
def test_no_call_fails_during_a_rolling_restart_with_drain_and_some_do_without(
    server: RegistryServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two Spring clients call all the while; they fetch each second, and their load balancers keep
    what they fetched for half a second, which is what the grace is for."""
    nodes = [Node(server, f"node-{number}") for number in range(NODES)]
    clients = [
        started("spring-2025.0-resttemplate", server.base, f"c{n}:1", tmp_path) for n in (1, 2)
    ]
    everybody = {node.name for node in nodes}
    stop = threading.Event()
    calls: list[Call] = []

    def call(client: Any) -> None:
        while not stop.is_set():
            sent = time.monotonic()
            answer = client.get("/choose/ratings", timeout=HANG_SECS)
            calls.append(Call(client.id, sent, time.monotonic(), *answer))

    def restarted(*, drains: bool) -> list[Call]:
        """The calls that were made meanwhile."""
        wait_until(
            lambda: all(client.instances("ratings") == sorted(everybody) for client in clients),
            "all nodes to be known",
        )
        calls.clear()
        operator = Operator(capsys, server.root)
        for node in nodes:
            if drains:
                said = operator.types("drain", node.name, "--grace", f"{GRACE_SECS}s")
                assert said.code == 0, said
            node.stop()
            node.start()
            # The next one waits until this one is in use again.
            wait_until(lambda: node.is_called, "it to be called again")  # noqa: B023
        made = list(calls)
        lost = len(failed(made))
        print(f"{'with' if drains else 'without'} drain {lost} of {len(made)} calls failed")
        assert len(made) > NODES
        return made

    try:
        for client in clients:
            wait_until(client.is_ready, "the client")
        threads = [threading.Thread(target=call, args=(client,)) for client in clients]
        wait_until(
            lambda: all(client.chosen("ratings", 30) == everybody for client in clients),
            "all nodes to be called",
        )
        for thread in threads:
            thread.start()
        with_drain = restarted(drains=True)
        without = restarted(drains=False)
    finally:
        stop.set()
        for client in clients:
            client.end()
    assert [each for each in failed(with_drain) if not is_late(each, with_drain)] == []
    assert failed(without) != []
