"""What becomes of a cluster whose network or servers fail: three of this project, as processes.

``FakeNetwork`` stands between each two of them, so that a way can be cut, delayed, or lose one
direction, while all of them run on one machine.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers import HANG_SECS, JSON, LEASE_SECS, RegistryServer, send, wait_until
from tests.test_peers_system import (
    QUERY,
    Clients,
    has,
    is_ready,
    listed,
    register,
    report,
    watch,
)

pytestmark = pytest.mark.slow

SECS = 6
"""A lease of those that renew once a second."""


class FakeWay:
    """A fake of the network between one server and one of its peers: a TCP proxy on loopback."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.is_cut = False
        self.loses_answers = False
        self.delay_secs = 0.0
        self.lost_batches = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self.is_cut:
                self.lost_batches += near.recv(4) == b"POST"
                return
            with socket.create_connection(("127.0.0.1", self.target)) as far:
                self._open |= {near, far}
                back = threading.Thread(target=self._pump, args=(far, near, True), daemon=True)
                back.start()
                self._pump(near, far, False)
                back.join()
                self._open -= {near, far}

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                time.sleep(self.delay_secs)
                if self.is_cut:
                    break
                if not (is_answer and self.loses_answers):
                    sink.sendall(part)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break what is connected, and everything that comes."""
        self.is_cut = True
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()


class FakeNetwork:
    """Servers of this project, each of which reaches each other by a fake way."""

    def __init__(self, folder: Path, count: int = 3, workers: int = 1, **settings: str) -> None:
        self.servers: list[RegistryServer] = []
        for number in range(count):
            home = folder / f"server-{number}"
            home.mkdir()
            self.servers.append(RegistryServer(home, workers=workers))
        self.ports = [server.port for server in self.servers]
        self.ways = {
            (here, there): FakeWay(self.ports[there])
            for here in range(count)
            for there in range(count)
            if here != there
        }
        for number, server in enumerate(self.servers):
            peers = [way.port for (here, _), way in self.ways.items() if here == number]
            server.environment |= {
                "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": ",".join(
                    f"http://127.0.0.1:{port}/eureka/" for port in peers
                ),
                "EUREKA_INSTANCE_HOSTNAME": f"server-{number}",
                "EUREKA_CLIENT_REGISTERWITHEUREKA": "false",
                "PEERS_COMPARE_INTERVAL_MS": "2000",
                **settings,
            }

    def __enter__(self) -> FakeNetwork:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            wait_until(lambda server=server: is_ready(server), "readiness of all")
        for number in range(len(self.servers)):
            wait_until(lambda number=number: self.is_whole(number), "peers")
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                server.kill9()
        for way in self.ways.values():
            way.close()

    def between(self, one: int, other: int) -> list[FakeWay]:
        return [self.ways[one, other], self.ways[other, one]]

    def is_whole(self, number: int) -> bool:
        """Whether a server reaches all of its peers, and has compared with each."""
        peers = report(self.ports[number])["peers"]
        return bool(peers) and all(peer["state"] == "up" and peer["comparison"] for peer in peers)

    def are_equal(self) -> bool:
        """Whether all list the same, but for what each says for itself."""
        found = []
        for port in self.ports:
            content = listed(port)
            for instance in content.values():
                for name in ("leaseInfo", "lastUpdatedTimestamp", "actionType"):
                    instance.pop(name)
            found.append(content)
        return all(content == found[0] for content in found)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[FakeNetwork]:
    with FakeNetwork(tmp_path) as network:
        yield network


def all_have(network: FakeNetwork, names: set[str]) -> None:
    for port in network.ports:
        wait_until(lambda port=port: names <= listed(port).keys(), f"all of them at {port}")


def test_who_renews_beyond_a_partition_is_evicted_nowhere(three: FakeNetwork) -> None:
    renewing = [(port, f"at:{number}") for number, port in enumerate(three.ports)]
    names = {name for _, name in renewing}
    with Clients(*renewing, secs=SECS) as clients:
        all_have(three, names)
        for way in three.between(0, 2) + three.between(1, 2):
            way.cut()
        register(three.ports[2], "beyond")
        told = send(three.ports[0], "PUT", "/eureka/apps/WEB/at:0/status?value=DOWN").status
        assert told == 200 or clients.lapses["at:0"] or clients.may_have_ended()
        watch(clients, three.ports, 3 * SECS)
        for way in three.between(0, 2) + three.between(1, 2):
            way.heal()

        all_have(three, names | {"beyond"})
        wait_until(three.are_equal, "equal content")
        # With a lease, its override ends too.
        is_there = has(three.ports[2], "at:0", overriddenStatus="DOWN")
        assert is_there or clients.lapses["at:0"] or clients.may_have_ended()
        watch(clients, three.ports, 2 * SECS)


def test_who_renews_where_words_go_but_one_way_is_evicted_nowhere(three: FakeNetwork) -> None:
    """The server that cannot tell its peer is asked by the peer."""
    with Clients((three.ports[0], "renews"), secs=SECS) as clients:
        all_have(three, {"renews"})
        three.ways[0, 1].cut()
        watch(clients, three.ports, 3 * SECS)


def is_down(network: FakeNetwork, here: int, there: int) -> bool:
    """Whether a server has noticed that it gets no answer in time from a peer."""
    number = there - (there > here)
    peer = report(network.ports[here])["peers"][number]
    return bool(peer["state"] == "down" and peer["problem"] == "no answer in time")


def wait_for_lost_words(*ways: FakeWay) -> None:
    """Until a server has tried again to tell a peer beyond each of these what it could not."""
    for way in ways:
        way.lost_batches = 0
        wait_until(lambda way=way: way.lost_batches > 1, "words that cannot be told")


def test_a_peer_whose_answers_are_late_holds_up_nobody(tmp_path: Path) -> None:
    settings = {"EUREKA_SERVER_PEER_NODE_READ_TIMEOUT_MS": "1000"}
    with FakeNetwork(tmp_path, **settings) as network:
        names = {"renews", "elsewhere"}
        first, _, third = network.ports
        with Clients((first, "renews"), (third, "elsewhere"), secs=SECS) as clients:
            all_have(network, names)
            late = network.ways[0, 1]
            late.delay_secs = 4.0
            for number in range(5):
                register(first, f"told:{number}")
                wait_until(lambda number=number: has(third, f"told:{number}"), "the third server")
            wait_until(lambda: is_down(network, 0, 1), "an open circuit")
            # The third may be late with one answer, and not with all.
            wait_until(
                lambda: [peer["state"] for peer in report(first)["peers"]] == ["down", "up"],
                "the third server to be up",
            )
            # Who renews behind the late peer's back is evicted nowhere, the late peer included.
            watch(clients, network.ports, 2 * SECS)
            late.delay_secs = 0.0
            all_have(network, names | {f"told:{number}" for number in range(5)})
            wait_until(network.are_equal, "equal content")


def test_a_delay_that_is_shorter_than_the_timeout_is_no_fault(tmp_path: Path) -> None:
    # The machine is not to add what is longer.
    settings = {"EUREKA_SERVER_PEER_NODE_READ_TIMEOUT_MS": str(HANG_SECS * 1000)}
    with FakeNetwork(tmp_path, **settings) as network:
        for way in network.ways.values():
            way.delay_secs = 0.2
        renewing = [(port, f"at:{number}") for number, port in enumerate(network.ports)]
        with Clients(*renewing, secs=SECS) as clients:
            all_have(network, clients.names)
            watch(clients, network.ports, 2 * SECS)
            wait_until(network.are_equal, "equal content")
        for number in range(3):
            assert network.is_whole(number)


def test_where_answers_are_lost_words_arrive_and_are_true_however_often(tmp_path: Path) -> None:
    """A batch that was done and not answered is sent again, with how things are by then."""
    settings = {"EUREKA_SERVER_PEER_NODE_READ_TIMEOUT_MS": "1000"}
    with FakeNetwork(tmp_path, **settings) as network:
        first, second, third = network.ports
        with Clients((first, "renews"), secs=SECS) as clients:
            all_have(network, {"renews"})
            network.ways[0, 1].loses_answers = True
            register(first, "stays")
            register(first, "goes")
            path = "/eureka/apps/WEB/stays/status?value=DOWN"
            assert send(first, "PUT", path).status == 200
            wait_until(lambda: has(second, "stays", status="DOWN") and has(second, "goes"), "words")
            wait_until(lambda: is_down(network, 0, 1), "an open circuit")
            assert send(first, "DELETE", "/eureka/apps/WEB/goes").status == 200
            assert send(first, "DELETE", "/eureka/apps/WEB/stays/status?value=UP").status == 200
            for port in (third, second):
                wait_until(lambda port=port: not has(port, "goes"), f"its end at {port}")
                wait_until(lambda port=port: has(port, "stays", status="UP"), f"UP at {port}")
            watch(clients, network.ports, 2 * SECS)
            network.ways[0, 1].loses_answers = False
            network.ways[0, 1].cut()  # and whoever waits for one that was lost
            network.ways[0, 1].heal()
            wait_until(lambda: network.is_whole(0), "answers")
            wait_until(network.are_equal, "equal content")
            assert set(listed(second)) - {"renews"} == {"stays"}


def test_a_server_that_lost_its_store_takes_who_has_long_been_there(three: FakeNetwork) -> None:
    """From its peers, whose lists show when each registered, not when it last renewed."""
    lost, secs = three.servers[0], 2 * SECS  # it is to be back before a lease ends
    with Clients((three.ports[0], "here"), (three.ports[1], "there"), secs=secs) as clients:
        all_have(three, clients.names)
        for attempt in itertools.count():
            watch(clients, three.ports, secs + 1)
            lost.kill9()
            lost.environment["STORE_URL"] = f"lmdb:{lost.folder / f'another-{attempt}'}"
            lost.launch()
            wait_until(lambda: is_ready(lost), "readiness")
            found = set(listed(lost.port))
            if not clients.may_have_ended():
                break
        assert found == clients.names
        watch(clients, three.ports, secs + 1)


def test_who_renewed_while_a_server_stood_still_is_evicted_nowhere(three: FakeNetwork) -> None:
    renewing = [(three.ports[0], "first"), (three.ports[1], "second")]
    with Clients(*renewing, secs=SECS) as clients:
        all_have(three, {"first", "second"})
        three.servers[2].kill(signal.SIGSTOP)
        watch(clients, three.ports[:2], 2 * SECS)
        three.servers[2].kill(signal.SIGCONT)
        watch(clients, three.ports, 2 * SECS)


def compared_at(network: FakeNetwork, here: int) -> list[int]:
    """When a server last compared with each of its peers (epoch milliseconds)."""
    return [peer["comparison"]["at_ms"] for peer in report(network.ports[here])["peers"]]


def wait_for_comparisons(network: FakeNetwork, here: int, there: int) -> None:
    """Until a server has compared with a peer once more from beginning to end."""
    number = there - (there > here)
    for _ in range(2):
        before = compared_at(network, here)[number]
        wait_until(
            lambda before=before: compared_at(network, here)[number] > before, "a comparison"
        )


def test_who_was_cancelled_is_listed_nowhere_again_by_who_was_not_told(three: FakeNetwork) -> None:
    """The server that he registered at cannot be told, and asks: for it, too, he is gone."""
    register(three.ports[1], "leaves")
    register(three.ports[1], "stays")
    all_have(three, {"leaves", "stays"})
    three.ways[2, 1].cut()
    assert send(three.ports[2], "DELETE", "/eureka/apps/WEB/leaves").status == 200
    wait_until(lambda: "leaves" not in listed(three.ports[0]), "its end where that was told")
    wait_until(lambda: "leaves" not in listed(three.ports[1]), "its end where it registered")
    wait_for_comparisons(three, 1, 0)
    assert [set(listed(port)) for port in three.ports] == [{"stays"}] * 3


def test_what_a_third_server_told_of_a_cancel_ends_nobody_and_lists_nobody_again(
    three: FakeNetwork,
) -> None:
    """It may be old; whoever lives renews, and is listed everywhere by that.

    Once the ways are healed the cancel may still come to where he renewed; then he registers again.
    """
    first, second, third = three.ports

    def is_everywhere_with_his_next_renewal() -> bool:
        if send(second, "PUT", f"/eureka/apps/WEB/lives?{QUERY}").status == 404:
            register(second, "lives")
        return all(set(listed(port)) == {"lives"} for port in three.ports)

    for name in ("leaves", "lives"):
        register(second, name)
    all_have(three, {"leaves", "lives"})
    for way in three.between(1, 2):
        way.cut()
    for name in ("leaves", "lives"):
        assert send(third, "DELETE", f"/eureka/apps/WEB/{name}").status == 200
    wait_until(lambda: not listed(first), "their end where that was told")
    wait_for_comparisons(three, 1, 0)
    assert (set(listed(first)), set(listed(second))) == (set(), {"leaves", "lives"})

    renewed = send(second, "PUT", f"/eureka/apps/WEB/lives?{QUERY}")
    assert renewed.status == 200
    wait_until(lambda: set(listed(first)) == {"lives"}, "who lives")
    for way in three.between(1, 2):
        way.heal()
    wait_until(is_everywhere_with_his_next_renewal, "who lives, and nobody else")


def test_who_was_cancelled_during_a_partition_that_he_renewed_in_is_listed_nowhere_again(
    three: FakeNetwork,
) -> None:
    """What was to be told of the renewal is told late, and the cancel may come later still."""
    first, second, third = three.ports
    register(third, "leaves")
    all_have(three, {"leaves"})
    beyond = [*three.between(0, 2), *three.between(1, 2)]
    for way in beyond:
        way.cut()
    assert send(third, "PUT", f"/eureka/apps/WEB/leaves?{QUERY}").status == 200
    wait_for_lost_words(three.ways[2, 0], three.ways[2, 1])
    assert send(first, "DELETE", "/eureka/apps/WEB/leaves").status == 200
    wait_until(lambda: not listed(second), "its end where that was told")
    for way in (three.ways[2, 0], three.ways[2, 1]):
        way.heal()
    wait_until(lambda: not listed(third), "its end where it renewed")
    for way in beyond:
        way.heal()
    for here in range(3):
        wait_until(lambda here=here: three.is_whole(here), "words")
    assert [set(listed(port)) for port in three.ports] == [set()] * 3


def test_a_cancel_that_comes_late_ends_nobody_who_has_registered_since(three: FakeNetwork) -> None:
    first, second, _ = three.ports
    register(first, "moves")
    all_have(three, {"moves"})
    three.ways[0, 2].cut()
    assert send(first, "DELETE", "/eureka/apps/WEB/moves").status == 200
    wait_until(lambda: "moves" not in listed(second), "its end where that was told")
    wait_for_lost_words(three.ways[0, 2])
    register(second, "moves")
    wait_until(lambda: "moves" in listed(first), "it, at its new server's word")
    three.ways[0, 2].heal()
    wait_until(lambda: three.is_whole(0) and not report(first)["peers"][1]["pending"], "words")
    wait_for_comparisons(three, 0, 2)
    log = three.servers[2].log()
    assert "cancelled WEB/moves" not in log
    all_have(three, {"moves"})


def test_each_is_killed_in_turn_and_all_are_equal_again(three: FakeNetwork) -> None:
    for number, server in enumerate(three.servers):
        server.kill9()
        other = three.ports[(number + 1) % 3]
        register(other, f"while:{number}")
        assert send(other, "PUT", f"/eureka/apps/WEB/while:{number}/metadata?v=2").status == 200
        if number:
            assert send(other, "DELETE", f"/eureka/apps/WEB/while:{number - 1}").status == 200
        server.launch()
        wait_until(lambda server=server: is_ready(server), "readiness")
        expected = {f"while:{number}"}
        for port in three.ports:
            wait_until(
                lambda port=port, all=expected: listed(port).keys() == all, f"{expected} at {port}"
            )
    wait_until(three.are_equal, "equal content")


@pytest.mark.parametrize("count", [2, 3])
def test_the_dead_end_everywhere_once_though_all_compare_all_the_time(
    tmp_path: Path, count: int
) -> None:
    """Nobody keeps a dead instance alive by another's word, and none comes back."""
    settings = {
        "PEERS_COMPARE_INTERVAL_MS": "300",
        "EUREKA_SERVER_RENEWAL_PERCENT_THRESHOLD": "0.01",  # all may go at once
    }
    with FakeNetwork(tmp_path, count, **settings) as network:
        renewing = [(port, f"at:{number}") for number, port in enumerate(network.ports)]
        with Clients(*renewing, secs=SECS) as clients:
            all_have(network, clients.names)
            watch(clients, network.ports, 2 * SECS)
        for port in network.ports:
            wait_until(lambda port=port: not listed(port), f"the end of all at {port}")
        until = time.monotonic() + 2 * SECS
        while time.monotonic() < until:
            assert [listed(port) for port in network.ports] == [{}] * count
            time.sleep(0.2)
        for server in network.servers:
            log = server.log()
            for name in clients.names:
                # Once more at most where the machine let a lease end.
                ends = log.count(f"evicted WEB/{name}:")
                assert 1 <= ends <= 1 + clients.lapses[name], name


def test_a_cancel_during_a_partition_ends_the_instance_everywhere(three: FakeNetwork) -> None:
    """Though servers beyond hold it, and are compared with before they are told."""
    names = {"cancelled", "stays"}
    with Clients((three.ports[2], "stays"), secs=LEASE_SECS):
        register(three.ports[0], "cancelled")
        all_have(three, names)
        for way in three.between(0, 1) + three.between(0, 2):
            way.cut()
        assert send(three.ports[0], "DELETE", "/eureka/apps/WEB/cancelled").status == 200
        wait_until(
            lambda: [each["state"] for each in report(three.ports[0])["peers"]] == ["down"] * 2,
            "the partition",
        )
        for way in three.between(0, 1) + three.between(0, 2):
            way.heal()
        for port in three.ports:
            wait_until(lambda port=port: listed(port).keys() == {"stays"}, f"its end at {port}")
        until = time.monotonic() + SECS
        while time.monotonic() < until:
            assert [set(listed(port)) for port in three.ports] == [{"stays"}] * 3
            time.sleep(0.2)


@pytest.mark.parametrize("later", [0, 5], ids=["equal timestamps", "one is newer"])
def test_one_id_that_registers_at_two_servers_at_once_is_one_instance(
    three: FakeNetwork, later: int
) -> None:
    stamps = (1_700_000_000_000, 1_700_000_000_000 + later)
    with ThreadPoolExecutor(2) as pool:
        for name in ("a", "b", "c", "d"):
            for number in (0, 1):
                fields = {
                    "metadata": {"from": str(number)},
                    "lastDirtyTimestamp": str(stamps[number]),
                }
                pool.submit(register, three.ports[number], name, **fields)
    all_have(three, {"a", "b", "c", "d"})
    wait_until(three.are_equal, "equal content")
    if later:
        found = listed(three.ports[0])
        assert {each["metadata"]["from"] for each in found.values()} == {"1"}


def test_overrides_of_two_sides_at_once_become_one(three: FakeNetwork) -> None:
    register(three.ports[2], "one")
    all_have(three, {"one"})
    with ThreadPoolExecutor(2) as pool:
        for number, status in enumerate(("OUT_OF_SERVICE", "DOWN")):
            path = f"/eureka/apps/WEB/one/status?value={status}"
            pool.submit(send, three.ports[number], "PUT", path)

    def is_settled() -> bool:
        found = {listed(port)["one"]["overriddenStatus"] for port in three.ports}
        return len(found) == 1 and "UNKNOWN" not in found and three.are_equal()

    wait_until(is_settled, "one override")
    for port in three.ports:
        wait_until(
            lambda port=port: report(port)["verdict"].startswith("Safe to switch"), "a verdict"
        )


def test_a_native_client_moves_from_one_server_to_another(three: FakeNetwork) -> None:
    first, second, _ = three.ports
    ttl = 10
    document = {
        "service_name": "SHOP",
        "endpoint": {"type": "tcp", "value": "10.0.0.1:80"},
        "ttl": ttl,
    }
    body = json.dumps(document)

    answer = send(first, "POST", "/api/v1/instances", body, JSON)
    assert answer.status == 201
    name = answer.json()["id"]

    def at(port: int) -> bool:
        return send(port, "GET", f"/eureka/apps/SHOP/{name}").status == 200

    def is_everywhere() -> bool:
        return all(map(at, three.ports))

    def heartbeat(port: int) -> int:
        return send(port, "PUT", f"/api/v1/instances/{name}/heartbeat").status

    def keep(port: int) -> float:
        """Send a heartbeat, or register where that is refused; when."""
        sent = time.monotonic()
        if heartbeat(port) != 200:
            assert send(port, "POST", "/api/v1/instances", body, JSON).status == 201
        return sent

    wait_until(lambda: keep(first) and is_everywhere(), "it at all of them")
    kept = keep(second)
    until = time.monotonic() + 2 * ttl
    while time.monotonic() < until:
        sent = time.monotonic()
        found = heartbeat(second), is_everywhere()
        if time.monotonic() < kept + ttl - 2:
            assert found == (200, True)
            kept = sent
        else:  # the machine may have let the lease end, and it begins anew
            wait_until(lambda: keep(second) and is_everywhere(), "it at all of them")
            kept, until = keep(second), time.monotonic() + 2 * ttl
        time.sleep(1)
    status = send(second, "DELETE", f"/api/v1/instances/{name}").status
    assert status == 200 or time.monotonic() > kept + ttl - 2
    for port in three.ports:
        wait_until(lambda port=port: not at(port), f"its end at {port}")


def test_another_worker_goes_on_where_the_one_that_sees_to_the_peers_is_killed(
    tmp_path: Path,
) -> None:
    with FakeNetwork(tmp_path, 2, workers=2) as network:
        first, second = network.ports
        names: list[str] = []
        for _ in range(2):
            killed = report(first)["worker"]
            for number in range(100):
                if number == 50:
                    os.kill(killed, signal.SIGKILL)
                name = f"{killed}:{number}"
                with contextlib.suppress(OSError, AssertionError):  # it was that worker's
                    register(first, name)
                    names.append(name)
            wait_until(lambda killed=killed: report(first)["worker"] != killed, "another worker")
        assert len(names) > 100
        wait_until(lambda: set(names) <= listed(second).keys(), "all that was acknowledged")
        wait_until(network.are_equal, "equal content")
