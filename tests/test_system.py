"""Promises that only real processes can keep: kills, restarts, full disks, several workers."""

from __future__ import annotations

import gzip
import http.client
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers import (
    HANG_SECS,
    JSON,
    ROOT,
    RegistryServer,
    Renewed,
    Reply,
    fill,
    instance_body,
    send,
    small_disk,
    wait_until,
)

Stored = Callable[[Path], dict[str, str]]
# What asks the servers of Redis for more than one after the other, or for much of what they have.
ON_ALL_STORES = pytest.mark.parametrize(
    "stored",
    [
        "lmdb",
        *(
            pytest.param(each, marks=pytest.mark.programs)
            for each in ("redis", "cluster", "sentinel")
        ),
    ],
    indirect=True,
    scope="session",
)
GZIP = {"Accept-Encoding": "gzip"}
# Long enough for a renewal to come in time on a machine that is slow, and busy.
LEASE_SECS = 5
SHORT = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": LEASE_SECS}}


def worker_connections(server: RegistryServer, count: int) -> dict[int, http.client.HTTPConnection]:
    """A kept connection to each of ``count`` workers, known by the socket that each holds."""
    found: dict[int, http.client.HTTPConnection] = {}
    spare: list[http.client.HTTPConnection] = []

    def close_spare() -> None:
        for connection in spare:
            connection.close()
        spare.clear()

    def all_found() -> bool:
        """With one more, which is any worker's, but not that of one that stands still."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECS)
        assert send(server.port, "GET", "/health/live", connection=connection).status == 200
        pid = _owner(server, connection)
        if pid in found:
            spare.append(connection)
        else:
            found[pid] = connection
        if len(spare) == 100:
            close_spare()
        return len(found) == count

    wait_until(all_found, "a connection to each worker")
    close_spare()
    return found


def _owner(server: RegistryServer, connection: http.client.HTTPConnection) -> int:
    local = connection.sock.getsockname()[1]
    wanted = f":{local:04X}"
    inode = next(
        fields[9]
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[2].endswith(wanted) and fields[1].endswith(f":{server.port:04X}")
    )
    for pid in server.worker_pids():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return pid
            except OSError:
                continue
    raise AssertionError("no worker holds the connection")


@pytest.mark.slow
@ON_ALL_STORES
def test_what_one_worker_accepted_is_in_the_next_answer_of_the_other(
    tmp_path: Path, stored: Stored
) -> None:
    """Thousands of tries, none stale, in every kind of read."""
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        one, other = worker_connections(server, 2).values()
        stale = 0

        def register(app: str, body: str, writer: http.client.HTTPConnection) -> int:
            path = f"/apps/{app}"
            return server.settled(lambda: server.eureka("POST", path, body, JSON, writer).status)

        for number in range(1_500):
            writer, reader = (one, other) if number % 2 else (other, one)
            instance_id = f"i-{number % 40}:{number}"
            app = f"APP{number % 5}"
            body = instance_body(app, instance_id)
            assert register(app, body, writer) == 204
            for path in (f"/apps/{app}", f"/apps/{app}/{instance_id}"):
                got = send(server.port, "GET", "/eureka" + path, None, JSON, reader)
                stale += f'"{instance_id}"'.encode() not in got.body
            if number % 10 == 0:
                for path in ("/apps", "/apps/delta", f"/vips/{app.lower()}"):
                    got = send(server.port, "GET", "/eureka" + path, None, JSON, reader)
                    stale += f'"{instance_id}"'.encode() not in got.body
            if number % 2:
                path = f"/eureka/apps/{app}/{instance_id}"
                server.cancel(app, instance_id, writer)
                stale += send(server.port, "GET", path, None, JSON, reader).status != 404
        for connection in (one, other):
            connection.close()
        assert stale == 0


class Load:
    """Registrations and renewals from several threads until it is told to stop."""

    def __init__(self, server: RegistryServer, threads: int = 4) -> None:
        self.acknowledged: set[str] = set()
        self.failures: list[tuple[float, str]] = []
        self.refusals: list[Reply] = []
        # A Redis that stands still for some seconds, on a busy machine, is away: that is no fault.
        self.while_away: list[Reply] = []
        self._is_on_redis = server.environment["STORE_URL"].startswith("redis")
        self._server = server
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name,)) for name in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=HANG_SECS)

    def goes_on(self, more: int = 100) -> None:
        """Wait until so many more are acknowledged."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, "more to be acknowledged")

    def _run(self, name: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=HANG_SECS)
        number = 0
        while not self._stop.is_set():
            instance_id = f"load-{name}:{number}"
            try:
                reply = send(
                    self._server.port,
                    "POST",
                    "/eureka/apps/LOAD",
                    instance_body("LOAD", instance_id),
                    JSON,
                    connection,
                )
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((time.monotonic(), repr(error)))
                connection.close()
                self._stop.wait(0.01)
                continue
            if reply.status == 204:
                self.acknowledged.add(instance_id)
                number += 1
            elif self._is_on_redis and reply.status == 503:
                self.while_away.append(reply)
            else:
                self.refusals.append(reply)
            self._stop.wait(0.001)
        connection.close()


def renew_for_longer_than_a_lease(
    server: RegistryServer, leases: Renewed, names: set[str]
) -> set[str]:
    """Each is known as long as its lease lasts; what is listed then."""
    end = time.monotonic() + LEASE_SECS + 1
    while time.monotonic() < end:
        for name in sorted(names):
            leases.renew(server, name)
        time.sleep(0.2)
    listed = set(server.apps())
    assert leases.lasting() <= listed
    return listed


@pytest.mark.slow
@ON_ALL_STORES
def test_no_acknowledged_registration_is_lost_when_everything_is_killed(
    tmp_path: Path, stored: Stored
) -> None:
    """Killed under load and started again: all there, renewing goes on, nobody is evicted."""
    names = {f"short:{number}" for number in range(20)}
    leases = Renewed("SHORT", LEASE_SECS)
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        with Load(server) as load:
            load.goes_on()
            while True:
                leases.register(server, *names)
                if leases.all_last():  # or else too slow: some may have ended since
                    server.kill9()
                    if leases.all_last():
                        break
                    server.start()
            time.sleep(LEASE_SECS + 1)  # the outage is the server's own
        leases.resume()
        before = len(server.log())
        server.start()

        listed = renew_for_longer_than_a_lease(server, leases, names)
        assert load.acknowledged <= listed
        # Where the start took so long that none of that was judged, it is said all the same.
        extended = re.findall(r"paused: (\d+) leases got their time back", server.log()[before:])
        assert max(map(int, extended)) >= len(names)


@pytest.mark.slow
def test_a_killed_worker_costs_the_requests_in_flight_and_nothing_else(
    tmp_path: Path, stored: Stored
) -> None:
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        with Load(server) as load:
            load.goes_on()
            for _ in range(3):
                victim = server.worker_pids()[0]
                os.kill(victim, signal.SIGKILL)
                wait_until(
                    lambda v=victim: (
                        len(server.worker_pids()) == 2 and v not in server.worker_pids()
                    ),
                    "another worker",
                )
                load.goes_on()
        # Each kill can cost each of the four connections one request.
        assert len(load.failures) <= 3 * 4
        assert load.refusals == []
        assert load.acknowledged <= set(server.apps())
        # The evictor's lock does not die with its holder.
        server.take("GONE", "gone:1", **SHORT)
        wait_until(lambda: "gone:1" not in server.apps(), "the eviction")


@pytest.mark.slow
def test_an_instance_is_evicted_when_its_lease_has_ended_and_a_renewing_one_never(
    tmp_path: Path,
    stored: Stored,
) -> None:
    """How soon after is the evictor's plan, which is tested with a clock that is set by hand."""
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        live = {f"live:{number}" for number in range(10)}
        leases = Renewed("LIVE", LEASE_SECS)
        leases.register(server, *live)
        status = 0
        while status != 200:  # too slow: it had ended before it was renewed
            registered = time.monotonic()
            server.take("DEAD", "dead:1", **SHORT)
            renewing = time.monotonic()
            status = server.eureka("PUT", "/apps/DEAD/dead:1").status
            assert status == 200 or time.monotonic() > registered + LEASE_SECS
        while "dead:1" in server.apps():
            for name in sorted(live):
                leases.renew(server, name)
            assert time.monotonic() < renewing + HANG_SECS, "it stays for ever"
            time.sleep(0.05)
        assert time.monotonic() >= renewing + LEASE_SECS
        listed = set(server.apps())
        assert leases.lasting() <= listed <= live


@pytest.mark.slow
def test_the_genuine_timing_doubles_a_renewed_lease(tmp_path: Path) -> None:
    env = {"LEASE_EXPIRY": "genuine", "EUREKA_SERVER_EVICTIONINTERVALTIMERINMS": "500"}
    short = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": 2}}
    with RegistryServer(tmp_path, env=env) as server:
        for number in itertools.count():
            path, registered = f"/apps/DEAD/renewed:{number}", time.monotonic()
            server.register("DEAD", f"renewed:{number}", **short)
            before, sent = time.time(), time.monotonic()
            renewal, got = server.eureka("PUT", path), server.eureka("GET", path, None, JSON)
            if renewal.status == got.status == 200:
                break
            # Too slow: its lease had ended before.
            since, secs = (sent, 4) if renewal.status == 200 else (registered, 2)
            assert time.monotonic() > since + secs
        shown = got.json()["instance"]
        # The duration is added twice: once to what is shown as the last renewal.
        renewed = shown["leaseInfo"]["lastRenewalTimestamp"] - 2_000
        assert int(before * 1000) <= renewed <= time.time() * 1000
        wait_until(lambda: server.apps() == {}, "the eviction")
        assert time.monotonic() >= sent + 4


@pytest.mark.slow
def test_ten_thousand_instances_come_back_in_every_format(tmp_path: Path) -> None:
    """How long and how large is measured in ``bench``; here, that nothing is missing."""
    count = 10_000
    lasting = {"leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 36_000}}
    with RegistryServer(tmp_path) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECS)
        for number in range(count):
            app = f"APP{number // 10}"
            body = instance_body(app, f"i:{number}", **lasting)
            path = f"/eureka/apps/{app}"
            assert send(server.port, "POST", path, body, JSON, connection).status == 204
        connection.close()
        server.kill9()
        server.start()
        assert set(server.apps()) == {f"i:{number}" for number in range(count)}
        for accept in ("application/json", "application/xml"):
            plain = server.eureka("GET", "/apps", None, {"Accept": accept})
            packed = server.eureka("GET", "/apps", None, {"Accept": accept} | GZIP)
            assert gzip.decompress(packed.body) == plain.body
            assert plain.body.count(b"UP_10000_") == 1
            assert plain.body.count(b"instanceId") == (count if "json" in accept else 2 * count)
        delta = server.eureka("GET", "/apps/delta", None, JSON).json()["applications"]
        assert sum(len(a["instance"]) for a in delta["application"]) == count


@ON_ALL_STORES
def test_overrides_survive_a_kill(tmp_path: Path, stored: Stored) -> None:
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        server.take("WEB", "web:1")
        path = "/apps/WEB/web:1/status?value=OUT_OF_SERVICE"
        assert server.settled(lambda: server.eureka("PUT", path).status) == 200
        server.kill9()
        server.start()
        assert server.apps()["web:1"]["status"] == "OUT_OF_SERVICE"
        assert server.eureka("GET", "/serverinfo/statusoverrides").json() == {
            "web:1": "OUT_OF_SERVICE"
        }
        server.take("WEB", "web:1", lastDirtyTimestamp="1700000000005")
        assert server.apps()["web:1"]["status"] == "OUT_OF_SERVICE"


@pytest.mark.slow
def test_a_paused_server_evicts_nobody_for_it(tmp_path: Path, stored: Stored) -> None:
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        names = {f"web:{number}" for number in range(5)}
        leases = Renewed("WEB", LEASE_SECS)
        while True:
            leases.register(server, *names)
            server.kill(signal.SIGSTOP)
            if leases.all_last():
                break
            server.kill(signal.SIGCONT)  # too slow: some may have ended before
        time.sleep(LEASE_SECS + 1)
        leases.resume()
        server.kill(signal.SIGCONT)
        assert renew_for_longer_than_a_lease(server, leases, names) <= names
        assert "got their time back" in server.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system is mounted, which takes root")
def test_a_full_disk_refuses_writes_answers_reads_and_recovers(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        RegistryServer(tmp_path, env={"STORE_URL": f"lmdb:{disk / 'store'}"}) as server,
    ):
        server.register("WEB", "web:1")
        ballast = fill(disk)
        refused = None
        written = {"web:1"}
        for number in range(2, 400):
            status = server.register("WEB", f"web:{number}", metadata={"pad": "x" * 20_000})
            if status == 503:
                refused = number
                break
            assert status == 204
            written.add(f"web:{number}")
        assert refused is not None
        # Each worker believes what it last tried for a second.
        wait_until(lambda: server.send("GET", "/health/ready").status == 503, "unreadiness")
        assert server.send("GET", "/health/live").status == 200
        assert set(server.apps()) == written
        assert server.eureka("GET", "/apps/WEB/web:1", None, JSON).status == 200

        ballast.unlink()
        wait_until(lambda: server.send("GET", "/health/ready").status == 200, "readiness")
        assert server.register("WEB", "web:again") == 204
        assert set(server.apps()) == written | {"web:again"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains_and_exits_cleanly(
    number: signal.Signals, tmp_path: Path, stored: Stored
) -> None:
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        with Load(server, threads=2) as load:
            load.goes_on()
            assert server.stop(number) == 0
        assert load.refusals == []
        assert "Traceback" not in server.log()
        server.start()
        assert load.acknowledged <= set(server.apps())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("STORE_URL", "redis:nowhere"),
        ("LEASE_EXPIRY", "sometimes"),
        ("EUREKA_SERVER_RENEWAL_PERCENT_THRESHOLD", "85"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(variable: str, value: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gunicorn", "wsgi:app"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), variable: value},
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )
    assert result.returncode != 0
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"cannot start: {variable}={value!r}: expected ")


def test_a_setting_without_meaning_is_named_in_the_log(tmp_path: Path) -> None:
    env = {"EUREKA_SERVER_USE_READ_ONLY_RESPONSE_CACHE": "false"}
    with RegistryServer(tmp_path, env=env) as server:
        line = "EUREKA_SERVER_USE_READ_ONLY_RESPONSE_CACHE has no effect here"
        assert server.log().count(line) == 1


def test_one_process_serves_from_memory(tmp_path: Path) -> None:
    with RegistryServer(tmp_path, workers=1, env={"STORE_URL": "memory:"}) as server:
        assert server.register("WEB", "web:1") == 204
        assert list(server.apps()) == ["web:1"]


@pytest.mark.slow
def test_a_delta_follower_never_needs_a_second_full_fetch(tmp_path: Path, stored: Stored) -> None:
    """Changes through all workers; after each delta the follower's hash code is the server's."""
    with RegistryServer(tmp_path, env=stored(tmp_path)) as server:
        known: dict[tuple[str, str], Any] = {}
        done = threading.Event()
        deltas = 0

        def change(name: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECS)
            for number in itertools.count():
                if number >= 400 and deltas > 20:
                    break
                app, instance_id = f"APP{number % 7}", f"{name}:{number % 23}"
                base = f"/eureka/apps/{app}"
                body = instance_body(app, instance_id, lastDirtyTimestamp=str(number))
                send(server.port, "POST", base, body, JSON, connection)
                path = f"{base}/{instance_id}"
                if number % 3 == 0:
                    value = ("OUT_OF_SERVICE", "DOWN", "UP")[number % 9 // 3]
                    send(server.port, "PUT", f"{path}/status?value={value}", None, None, connection)
                if number % 5 == 0:
                    send(server.port, "DELETE", f"{path}/status", None, None, connection)
                if number % 4 == 0:
                    send(server.port, "DELETE", path, None, None, connection)
            connection.close()

        threads = [threading.Thread(target=change, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        while not done.is_set():
            if not any(thread.is_alive() for thread in threads):
                done.set()  # and follow once more
            delta = server.eureka("GET", "/apps/delta", None, JSON).json()["applications"]
            for application in delta["application"]:
                for instance in application["instance"]:
                    key = (application["name"], instance["instanceId"])
                    if instance["actionType"] == "DELETED":
                        known.pop(key, None)
                    else:
                        known[key] = instance
            counts: dict[str, int] = {}
            for instance in known.values():
                counts[instance["status"]] = counts.get(instance["status"], 0) + 1
            code = "".join(f"{status}_{counts[status]}_" for status in sorted(counts))
            assert code == delta["apps__hashcode"]
            deltas += 1
        full = server.eureka("GET", "/apps", None, JSON).json()["applications"]
        everything = {
            (a["name"], i["instanceId"]): i for a in full["application"] for i in a["instance"]
        }
        assert known == everything
