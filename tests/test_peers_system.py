"""Servers that replicate: two of this project's and a genuine one, as processes."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance.programs import SMALL_JVM, built_jar, free_port
from tests.servers import JSON, ROOT, RegistryServer, instance_body, send, wait_until

pytestmark = pytest.mark.programs
# A genuine server asks nobody before it evicts, so words to it may be late by as much.
SHORT_SECS = 20
# One peer's leases end up to a second before another's, and instants are told in milliseconds.
_MARGIN_SECS = 2
LEAVING = {"renewalIntervalInSecs": 30, "durationInSecs": 30}
QUERY = "status=UP&lastDirtyTimestamp=1700000000000"
Listed = dict[str, dict[str, Any]]


def urls(*ports: int) -> str:
    return ",".join(f"http://127.0.0.1:{port}/eureka/" for port in ports)


def listed(port: int) -> Listed:
    """Every instance but the servers' own, by id; ``OSError`` where the server does not answer."""
    answer = send(port, "GET", "/eureka/apps", None, JSON)
    if answer.status != 200:
        raise OSError(answer.status)
    return {
        instance["instanceId"]: instance
        for application in answer.json()["applications"]["application"]
        for instance in application["instance"]
        if application["name"] != "EUREKA"
    }


def register(port: int, name: str, **fields: Any) -> None:
    body = instance_body("WEB", name, **fields)
    assert send(port, "POST", "/eureka/apps/WEB", body, JSON).status == 204


class Clients:
    """Clients that renew once a second, each at one server, until they are left.

    A client whose renewal was not acknowledged well before its lease ended may have lost it, and
    only the machine is to blame. It registers again then: that is a lapse.
    """

    def __init__(self, *renewing: tuple[int, str], secs: int) -> None:
        self.names = {name for _, name in renewing}
        self.lapses: Counter[str] = Counter()
        self.refused: list[str] = []
        """Whose renewals were refused though they came in time."""
        self._renewing = renewing
        self._secs = secs
        self._due: dict[str, float] = {}
        self._has_lapsed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Clients:
        for port, name in self._renewing:
            self._register(port, name)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def may_have_ended(self) -> bool:
        """Whether a lease may have ended, since the beginning or the last ``recover``."""
        return self._is_overdue() or self._has_lapsed

    def recover(self, ports: Sequence[int]) -> None:
        """Wait until everybody has registered again, and is listed at these servers."""
        wait_until(lambda: not self._is_overdue(), "renewals in time")
        self._has_lapsed = False
        for port in ports:
            wait_until(lambda port=port: self.names <= listed(port).keys(), f"all at {port}")

    def _is_overdue(self) -> bool:
        now = time.monotonic()
        return any(due < now for due in list(self._due.values()))

    def _run(self) -> None:
        while not self._ended.wait(1):
            for port, name in self._renewing:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self._renew(port, name)

    def _renew(self, port: int, name: str) -> None:
        sent = time.monotonic()
        status = send(port, "PUT", f"/eureka/apps/WEB/{name}?{QUERY}").status
        if time.monotonic() > self._due[name]:
            self._has_lapsed = True
            self.lapses[name] += 1
            self._register(port, name)
        elif status == 200:
            self._due[name] = sent + self._secs - _MARGIN_SECS
        elif status == 404:
            self.refused.append(name)

    def _register(self, port: int, name: str) -> None:
        sent = time.monotonic()
        lease = {"renewalIntervalInSecs": 1, "durationInSecs": self._secs}
        register(port, name, leaseInfo=lease)
        self._due[name] = sent + self._secs - _MARGIN_SECS


def watch(clients: Clients, ports: Sequence[int], secs: float) -> None:
    """Nobody is missing at any of these servers for so long; anew where a lease may have ended."""
    until = time.monotonic() + secs
    while time.monotonic() < until:
        for port in ports:
            missing = clients.names - listed(port).keys()
            if clients.may_have_ended():
                clients.recover(ports)
                until = time.monotonic() + secs
                break
            assert missing == set(), f"at {port}"
        assert clients.refused == []
        time.sleep(0.2)


def has(port: int, name: str, **fields: Any) -> bool:
    try:
        found = listed(port).get(name)
    except OSError:
        return False
    return found is not None and all(found[key] == value for key, value in fields.items())


class Peers:
    """Several servers of this project that name each other."""

    def __init__(self, folder: Path, count: int, *others: int, **settings: str) -> None:
        self.servers = []
        for number in range(count):
            home = folder / f"server-{number}"
            home.mkdir()
            self.servers.append(RegistryServer(home))
        self.ports = [server.port for server in self.servers]
        for number, server in enumerate(self.servers):
            server.environment |= {
                "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": urls(*self.ports, *others),
                "EUREKA_INSTANCE_HOSTNAME": f"server-{number}",
                "PEERS_COMPARE_INTERVAL_MS": "2000",
                **settings,
            }

    def __enter__(self) -> Peers:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            wait_until(lambda server=server: is_ready(server), "readiness of all")
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.kill9()


def is_ready(server: RegistryServer) -> bool:
    try:
        return server.send("GET", "/health/ready").status == 200
    except OSError:
        return False


def report(port: int) -> dict[str, Any]:
    found: dict[str, Any] = send(port, "GET", "/api/v1/peers").json()
    return found


class Genuine:
    """A genuine server that has these as its peers."""

    def __init__(self, port: int, *peers: int) -> None:
        self.port = port
        options = {
            "server.port": str(port),
            "spring.application.name": "EUREKA",
            "eureka.instance.hostname": "genuine",
            "eureka.client.register-with-eureka": "true",
            "eureka.client.fetch-registry": "true",
            "eureka.client.service-url.defaultZone": urls(*peers),
            "eureka.server.enable-self-preservation": "false",
            "eureka.server.eviction-interval-timer-in-ms": "1000",
            "eureka.server.response-cache-update-interval-ms": "500",
        }
        jar = built_jar(ROOT / "conformance" / "oracle")
        command = ["java", *SMALL_JVM, "-Xmx300m", "-jar", str(jar)]
        self._command = [*command, *(f"--{name}={value}" for name, value in options.items())]
        self.launch()

    def launch(self) -> None:
        """Start it, empty, without waiting for it."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        wait_until(lambda: answers(self.port), "the genuine server")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def answers(port: int) -> bool:
    try:
        return send(port, "GET", "/eureka/apps").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peers, Genuine]]:
    """Two of this project's servers, and a genuine one."""
    port = free_port()
    peers = Peers(tmp_path_factory.mktemp("cluster"), 2, port)
    genuine = Genuine(port, *peers.ports)
    with ExitStack() as running:
        running.callback(genuine.kill)
        running.enter_context(peers)
        genuine.wait()
        yield peers, genuine


@pytest.fixture
def cluster(members: tuple[Peers, Genuine]) -> list[int]:
    """The ports of them all, the genuine server's last."""
    peers, genuine = members
    return [*peers.ports, genuine.port]


@pytest.mark.parametrize("at", [0, 1, 2], ids=["ours", "another of ours", "genuine"])
def test_what_one_server_is_told_all_of_them_list(cluster: list[int], at: int) -> None:
    name, path = f"told:{at}", f"/eureka/apps/WEB/told:{at}"
    here = cluster[at]

    # Nobody renews it, and a genuine server may be slow to hear of it.
    register(here, name, leaseInfo={"renewalIntervalInSecs": 30, "durationInSecs": 3600})
    for port in cluster:
        wait_until(lambda port=port: has(port, name, status="UP"), f"a registration at {port}")

    assert send(here, "PUT", f"{path}/status?value=OUT_OF_SERVICE").status == 200
    for port in cluster:
        told = {"status": "OUT_OF_SERVICE", "overriddenStatus": "OUT_OF_SERVICE"}
        wait_until(lambda port=port, told=told: has(port, name, **told), f"an override at {port}")

    assert send(here, "DELETE", f"{path}/status?value=UP").status == 200
    for port in cluster:
        told = {"status": "UP", "overriddenStatus": "UNKNOWN"}
        wait_until(lambda port=port, told=told: has(port, name, **told), f"its end at {port}")

    assert send(here, "PUT", f"{path}/metadata?version=2").status == 200
    metadata = {"zone": "a", "version": "2"}
    for port in cluster:
        wait_until(lambda port=port: has(port, name, metadata=metadata), f"metadata at {port}")

    assert send(here, "DELETE", path).status == 200
    for port in cluster:
        wait_until(lambda port=port: not has(port, name), f"a cancel at {port}")


def test_who_renews_at_one_server_is_kept_by_all(cluster: list[int]) -> None:
    """For longer than a lease; a server that is told of no renewal would evict it."""
    renewing = [(port, f"renewing:{port}") for port in cluster]
    with Clients(*renewing, secs=SHORT_SECS) as clients:
        for port in cluster:
            wait_until(lambda port=port: clients.names <= listed(port).keys(), "registrations")
        watch(clients, cluster, 1.5 * SHORT_SECS)
    for here, name in renewing:
        status = send(here, "DELETE", f"/eureka/apps/WEB/{name}").status
        assert status == 200 or clients.may_have_ended()


def test_no_message_goes_round(cluster: list[int]) -> None:
    name = "once"
    for port in cluster[:2]:
        # What the servers tell of themselves when they begin has been told then.
        wait_until(lambda port=port: _is_settled(port), "equal registries")
    before = [_sent_by_now(port) for port in cluster[:2]]
    register(cluster[2], name)
    for port in cluster:
        wait_until(lambda port=port: has(port, name), f"a registration at {port}")
    assert send(cluster[2], "PUT", f"/eureka/apps/WEB/{name}?{QUERY}").status == 200
    assert send(cluster[2], "DELETE", f"/eureka/apps/WEB/{name}").status == 200
    for port in cluster:
        wait_until(lambda port=port: not has(port, name), f"a cancel at {port}")
    assert [_sent_by_now(port) for port in cluster[:2]] == before


def _sent_by_now(port: int) -> list[dict[str, int]]:
    """What a server has sent to each peer, renewals of its own entry aside.

    A report is as old as a second; in two more whatever is to go out has gone.
    """
    at_ms = report(port)["at_ms"]
    wait_until(lambda: report(port)["at_ms"] > at_ms + 3000, "reports")
    peers = report(port)["peers"]
    return [{k: v for k, v in peer["items"].items() if k != "Heartbeat"} for peer in peers]


def _is_settled(port: int) -> bool:
    return bool(report(port)["verdict"].startswith("Safe to switch: "))


def test_each_server_says_how_its_peers_are(cluster: list[int]) -> None:
    # A peer may be late with an answer, and is down until the next one.
    wait_until(lambda: _is_settled(cluster[0]), "equal registries")
    wait_until(lambda: _states(cluster[0]) == ["up", "up"], "two peers that are up")
    assert [peer["url"] for peer in report(cluster[0])["peers"]] == urls(*cluster[1:]).split(",")

    def replicas() -> tuple[str, str]:
        status = send(cluster[0], "GET", "/eureka/status", None, JSON).json()["applicationStats"]
        return status["available-replicas"], status["unavailable-replicas"]

    wait_until(lambda: replicas() == (f"{urls(*cluster[1:])},", ""), "both as replicas")


def test_each_server_is_listed_by_the_others(cluster: list[int]) -> None:
    def hosts(port: int) -> set[str]:
        answer = send(port, "GET", "/eureka/apps/EUREKA", None, JSON)
        found = answer.json()["application"]["instance"] if answer.status == 200 else []
        return {instance["hostName"] for instance in found}

    for port in cluster:
        everybody = {"server-0", "server-1", "genuine"}
        wait_until(lambda port=port, all=everybody: hosts(port) == all, f"all servers at {port}")


def test_a_genuine_server_that_starts_empty_is_filled_by_ours(
    members: tuple[Peers, Genuine], cluster: list[int]
) -> None:
    peers, genuine = members
    lasting = {"renewalIntervalInSecs": 30, "durationInSecs": 3600}
    names = {f"filled:{number}" for number in range(20)}
    for number, name in enumerate(sorted(names)):
        register(cluster[number % 3], name, leaseInfo=lasting)
    for port in cluster:
        wait_until(lambda port=port: names <= listed(port).keys(), f"all of them at {port}")
    assert send(cluster[0], "PUT", "/eureka/apps/WEB/filled:3/status?value=DOWN").status == 200
    for port in cluster:
        wait_until(lambda port=port: has(port, "filled:3", status="DOWN"), "the override")
    genuine.kill()
    for port in peers.ports:
        wait_until(lambda port=port: _states(port).count("down") == 1, "its absence")
    genuine.launch()
    genuine.wait()

    wait_until(lambda: names <= listed(genuine.port).keys(), "all of them")
    wait_until(lambda: has(genuine.port, "filled:3", overriddenStatus="DOWN"), "the override")
    for port in peers.ports:
        wait_until(lambda port=port: _states(port) == ["up", "up"], "its return")
        assert names <= listed(port).keys()


def test_ours_that_were_away_take_what_came_meanwhile_at_a_genuine_server(
    members: tuple[Peers, Genuine],
) -> None:
    peers, genuine = members
    there = [*peers.ports, genuine.port]
    # Until it is cancelled nobody renews it; after that, the test waits for its end.
    register(genuine.port, "leaves", leaseInfo=LEAVING)
    register(genuine.port, "changes")
    for port in there:
        wait_until(lambda port=port: has(port, "leaves") and has(port, "changes"), "both")
    for server in peers.servers:
        server.kill9()
    register(genuine.port, "comes")
    path = "/eureka/apps/WEB/changes"
    assert send(genuine.port, "PUT", f"{path}/status?value=OUT_OF_SERVICE").status == 200
    assert send(genuine.port, "PUT", f"{path}/metadata?version=9").status == 200
    assert send(genuine.port, "DELETE", "/eureka/apps/WEB/leaves").status == 200
    for server in peers.servers:
        server.launch()
    for server in peers.servers:
        wait_until(lambda server=server: is_ready(server), "readiness")

    told = {"overriddenStatus": "OUT_OF_SERVICE", "metadata": {"zone": "a", "version": "9"}}
    for port in peers.ports:
        wait_until(lambda port=port: has(port, "comes"), f"what came, at {port}")
        wait_until(lambda port=port: has(port, "changes", **told), f"what changed, at {port}")
        # Nobody tells them of a cancel any more; the lease ends, and nobody brings it back.
        wait_until(lambda port=port: not has(port, "leaves"), f"the end of what left, at {port}")
    for port in there:
        assert not has(port, "leaves")
        assert has(port, "comes")


def _states(port: int) -> list[str]:
    try:
        return [peer["state"] for peer in report(port)["peers"]]
    except OSError:
        return []


def test_a_server_that_starts_empty_says_nothing_before_a_peer_has_answered(
    tmp_path: Path,
) -> None:
    with Peers(tmp_path, 1, PEERS_START_WAIT_MS="600000") as alone:
        (server,) = alone.servers
    # Its only peer is itself, so there was nothing to wait for. Now there is one that is away.
    assert "no peer" not in server.log()
    server.environment |= {
        "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": urls(free_port()),
        "STORE_URL": f"lmdb:{tmp_path / 'empty'}",
    }
    server.launch()
    with server_stopped(server):
        wait_until(lambda: server_answers(server), "the server")
        assert server.send("GET", "/health/ready").status == 503
        for path in ("/eureka/apps", "/eureka/apps/delta", "/eureka/apps/WEB/one"):
            answer = server.send("GET", path, None, JSON)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1"), path
        assert server.send("GET", "/api/v1/instances").status == 503
        # Who is not known yet may be known to a peer: told 404, a client would register again.
        path = "/eureka/apps/WEB/one"
        for method, rest in (
            ("PUT", f"?{QUERY}"),
            ("PUT", "/status?value=DOWN"),
            ("DELETE", "/status?value=UP"),
            ("PUT", "/metadata?a=b"),
            ("DELETE", ""),
        ):
            assert server.send(method, path + rest).status == 503, (method, rest)
        peers_word = {"x-netflix-discovery-replication": "true"}
        assert server.send("PUT", path, None, peers_word).status == 404
        register(server.port, "early")
        wait_until(
            lambda: [peer["state"] for peer in report(server.port)["peers"]] == ["down"],
            "a peer that is away",
        )


def test_an_empty_server_whose_peers_stay_away_serves_in_the_end(tmp_path: Path) -> None:
    settings = {
        "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": urls(free_port()),
        "PEERS_START_WAIT_MS": "500",
    }
    server = RegistryServer(tmp_path, env=settings)
    server.launch()
    with server_stopped(server):
        wait_until(lambda: is_ready(server) and answers(server.port), "an answer")
        wait_until(lambda: _states(server.port) == ["down"], "a peer that is away")


def test_a_server_that_lost_its_store_is_filled_by_its_peers(tmp_path: Path) -> None:
    with Peers(tmp_path, 2) as peers:
        first, second = peers.servers
        for number in range(20):
            register(first.port, f"kept:{number}")
        assert send(first.port, "PUT", "/eureka/apps/WEB/kept:3/status?value=DOWN").status == 200
        wait_until(lambda: has(second.port, "kept:3", status="DOWN"), "replication")
        second.kill9()
        second.environment["STORE_URL"] = f"lmdb:{tmp_path / 'another'}"
        second.launch()
        wait_until(lambda: is_ready(second), "readiness")

        found = listed(second.port)
        assert sorted(found) == sorted(f"kept:{number}" for number in range(20))
        assert found["kept:3"]["overriddenStatus"] == "DOWN"


def test_what_came_while_a_server_was_away_it_has_soon_after(tmp_path: Path) -> None:
    with Peers(tmp_path, 2) as peers:
        first, second = peers.servers
        register(first.port, "leaves")
        register(first.port, "stays")
        wait_until(lambda: len(listed(second.port)) == 2, "replication")
        second.kill(signal.SIGSTOP)
        register(first.port, "comes")
        assert send(first.port, "DELETE", "/eureka/apps/WEB/leaves").status == 200
        wait_until(lambda: _states(first.port) == ["down"], "an open circuit")
        # Who is stopped holds up nobody else.
        assert sorted(listed(first.port)) == ["comes", "stays"]
        second.kill(signal.SIGCONT)

        wait_until(lambda: sorted(listed(second.port)) == ["comes", "stays"], "all of it")


def test_nothing_goes_from_a_shadow_to_its_peers_told_or_taken(tmp_path: Path) -> None:
    with Peers(tmp_path, 2) as peers:
        first, second = peers.servers
        # Who has not compared yet is still at its start, and takes what it is told.
        wait_until(lambda: all(_is_settled(each.port) for each in peers.servers), "verdicts")
        second.kill9()
        second.environment["PEERS_MODE"] = "shadow"
        second.start()
        register(first.port, "seen")
        wait_until(lambda: has(second.port, "seen"), "replication")
        wait_until(lambda: _is_settled(second.port), "a verdict")
        register(second.port, "own")
        at_ms = report(second.port)["at_ms"]
        wait_until(lambda: report(second.port)["at_ms"] > at_ms + 3000, "time to send in")

        def seen_at_first() -> list[int]:
            return [peer["comparison"]["extra"] for peer in report(first.port)["peers"]]

        wait_until(lambda: seen_at_first() == [1], "a comparison that is late enough to heal")
        assert not has(first.port, "own")
        assert {n for peer in report(second.port)["peers"] for n in peer["items"].values()} == {0}


def server_stopped(server: RegistryServer) -> ExitStack:
    stack = ExitStack()
    stack.callback(server.kill9)
    return stack


def server_answers(server: RegistryServer) -> bool:
    try:
        return server.send("GET", "/health/live").status == 200
    except OSError:
        return False
