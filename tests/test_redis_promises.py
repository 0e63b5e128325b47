"""What many nodes on one Redis promise, each promise as a test on real servers.

Three nodes with two workers each, every one behind a fake link to Redis, and the wall clocks of two
of them wrong by days. That no acknowledged word is lost whatever befalls them is searched for in
histories (``tests/test_histories.py``); what stores promise is in ``tests/test_store_redis.py``
and the modules of its rooms, as ``tests/test_redis_lives.py``.
"""

from __future__ import annotations

import itertools
import random
import re
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Session, Target
from conformance.documents import Form
from conformance.follower import Follower
from registry.lease import eviction_limit
from tests.fake_link import Fault
from tests.redis_nodes import FAULTS, Node, Nodes
from tests.redis_servers import another_prefix
from tests.servers import (
    HANG_SECS,
    JSON,
    RegistryServer,
    Renewed,
    Watch,
    instance_body,
    wait_until,
)

pytestmark = pytest.mark.programs
LEASE_SECS = 5
SHORT = {"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": LEASE_SECS}}
LONG = {"leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": HANG_SECS}}
_DAY_SECS = 86_400
CLOCKS_OFF_SECS = (3 * _DAY_SECS, 0, -3 * _DAY_SECS)
BLACK_HOLE = Fault(holds=True)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(
        tmp_path_factory.mktemp("nodes"), 3, workers=2, clocks_off_secs=CLOCKS_OFF_SECS
    ) as nodes:
        yield nodes


@pytest.fixture
def nodes(started: Nodes) -> Iterator[Nodes]:
    """All healed, and nobody listed."""
    yield started
    started.heal()
    server = started.servers[0]

    def is_empty() -> bool:
        # Again, where Redis was away for a moment, or something was written late.
        for name, instance in server.apps().items():
            server.eureka("DELETE", f"/apps/{instance['app']}/{name}")
        return all_list(started, set())

    wait_until(is_empty)


def all_list(nodes: Nodes, names: set[str]) -> bool:
    return all(set(server.apps()) == names for server in nodes.servers)


def registered(nodes: Nodes, *names: str, **fields: Any) -> set[str]:
    """Register them at the nodes in turn, until all nodes list them."""
    for turn, name in enumerate(names):
        nodes.servers[turn % len(nodes.servers)].take("WEB", name, **fields)
    wait_until(lambda: all_list(nodes, set(names)))
    return set(names)


def leased(nodes: Nodes, *names: str) -> Renewed:
    """Register them at the nodes in turn with short leases, and renew them until all list them."""
    leases = Renewed("WEB", LEASE_SECS)
    for server, name in zip(itertools.cycle(nodes.servers), names):
        leases.register(server, name)
    with renewing(leases, set(names), *nodes.servers):
        wait_until(lambda: all_list(nodes, set(names)))
    return leases


@contextmanager
def renewing(leases: Renewed, names: set[str], *servers: RegistryServer) -> Iterator[None]:
    """Renew each at the servers in turn, beside what the test does meanwhile."""
    ended = threading.Event()

    def renew() -> None:
        order = list(servers)
        while not ended.wait(0.2):
            for server, name in zip(itertools.cycle(order), sorted(names)):
                leases.renew(server, name)
            order.append(order.pop(0))

    with ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(renew)
        try:
            yield
        finally:
            ended.set()
    renewed.result()


def asked(nodes: Nodes, command: str) -> Any:
    """What Redis answers."""
    with nodes.redis.client() as client:
        return client.execute_command(*command.split())


def tag(nodes: Nodes) -> str:
    """What the keys of the default namespace begin with."""
    return f"{{{nodes.prefix}:default}}"


def revision(nodes: Nodes) -> int:
    """Of the last change that Redis has."""
    return int(asked(nodes, f"HGET {tag(nodes)}:meta revision"))


# Reads, heartbeats and registrations


def test_what_a_node_acknowledged_all_of_its_workers_show_at_once_and_the_others_soon(
    nodes: Nodes,
) -> None:
    names = set()
    for turn in range(12):
        server, name = nodes.servers[turn % 3], f"web:{turn}"
        server.take("WEB", name)
        names.add(name)
        for _ in range(6):  # each is any worker's
            assert name in server.apps()
    wait_until(lambda: all_list(nodes, names))


def test_reads_and_heartbeats_wait_for_no_call(nodes: Nodes) -> None:
    """No byte comes from Redis until they were answered; registrations before them wait for one."""
    names = registered(nodes, "web:1", "web:2")

    def nobody_waited(server: RegistryServer) -> bool:
        nodes.heal()
        with nodes.linked(BLACK_HOLE):
            # So many that both workers have some.
            waiting = [sent_registration(server, f"late:{number}") for number in range(12)]
            for _ in range(8):
                # What an earlier round gave up may be written late.
                assert {each for each in server.apps() if not each.startswith("late:")} == names
                for name in names:
                    assert server.eureka("PUT", f"/apps/WEB/{name}").status == 200
            answered, _, _ = select.select(waiting, [], [], 0)
            for connection in waiting:
                connection.close()

        def is_as_before() -> bool:
            # What its client has given up may yet be written.
            for number in range(12):
                server.eureka("DELETE", f"/apps/WEB/late:{number}")
            return all_list(nodes, names)

        wait_until(is_as_before)
        # On a slow machine the registrations are given up meanwhile: then it showed nothing.
        return not answered

    for server in nodes.servers:
        wait_until(lambda server=server: nobody_waited(server))


def sent_registration(server: RegistryServer, name: str) -> socket.socket:
    """A connection on which the answer to a registration will come."""
    body = instance_body("WEB", name, **SHORT)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECS)
    connection.sendall(
        f"POST /eureka/apps/WEB HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n"
        f"Accept: application/json\r\nContent-Type: application/json\r\n\r\n{body}".encode()
    )
    return connection


def test_registrations_that_arrive_together_share_a_round_trip(nodes: Nodes) -> None:
    """One of each worker goes alone, and those that come until it is answered go together."""
    server, count = nodes.servers[0], 60

    def scripts() -> set[bytes]:
        """Which groups were written: each leaves its outcome for a minute."""
        return set(asked(nodes, f"KEYS {tag(nodes)}:done:*"))

    def evaluations() -> int:
        return int(asked(nodes, "INFO commandstats")["cmdstat_evalsha"]["calls"])

    def round_trips(number: int) -> int:
        before, evaluated = scripts(), evaluations()
        with nodes.linked(Fault(delay_secs=0.3), nodes.all[0]):
            waiting = [sent_registration(server, f"web:{number}-{place}") for place in range(count)]
            answers = [connection.recv(100)[:12] for connection in waiting]
            for connection in waiting:
                connection.close()
        if b"HTTP/1.1 503" in answers:  # given up on a slow machine: then it showed nothing
            return count
        assert set(answers) == {b"HTTP/1.1 204"}
        groups = len(scripts() - before)
        assert 0 < groups <= evaluations() - evaluated
        return groups

    # How many arrive while the first is on its way is the machine's business.
    attempts = iter(range(1_000))
    wait_until(lambda: round_trips(next(attempts)) <= count // 6)


# What is lost with Redis


@pytest.mark.parametrize("fault", ["killed", "emptied"])
def test_followers_and_watches_come_out_right_when_redis_loses_everything(
    nodes: Nodes, fault: str
) -> None:
    names = registered(nodes, *(f"web:{number}" for number in range(6)))
    follower = Follower(Session(Target(nodes.servers[0].base)), Form.JSON)
    follower.fetch_all()
    assert {name for _, name in follower.instances} == names
    watch = Watch(nodes.servers[0])
    before = watch.revision
    if fault == "killed":
        nodes.redis.kill()
        nodes.redis.start()
    else:
        nodes.forget()
    # A snapshot of the new life, in which nothing is missing.
    assert watch.next()[0] == "snapshot"
    assert watch.revision > before
    assert set(watch.known) == names
    watch.close()
    nodes.heal()
    nodes.servers[1].cancel("WEB", "web:0")
    nodes.servers[2].take("WEB", "late")
    expected = names - {"web:0"} | {"late"}

    def is_right() -> bool:
        follower.fetch_delta()
        return {name for _, name in follower.instances} == expected

    wait_until(is_right)
    wait_until(lambda: all_list(nodes, expected))


# Redis away, or a node alone


def test_while_redis_is_away_nobody_goes_and_after_its_return_everybody_has_a_whole_lease(
    nodes: Nodes,
) -> None:
    names = {"web:1", "web:2", "web:3"}
    while True:
        leases = leased(nodes, *names)
        nodes.redis.kill()
        if leases.all_last():
            break
        nodes.redis.start()  # too slow: some may have ended before
        nodes.heal()
    time.sleep(LEASE_SECS * 1.5)
    for server in nodes.servers:
        assert set(server.apps()) == names
        alone = [server.eureka("GET", f"/apps/WEB/{name}").status for name in names]
        assert alone == [200] * len(names)
        answer = server.eureka("POST", "/apps/WEB", instance_body("WEB", "late"), JSON)
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        assert server.send("GET", "/health/ready").status == 503
    returned = time.monotonic()
    nodes.redis.start()
    gone = wait_until(lambda: names - set(nodes.servers[0].apps()) and time.monotonic())
    assert gone - returned > LEASE_SECS


def test_a_node_that_is_cut_off_alone_evicts_nobody_and_agrees_when_it_is_back(
    nodes: Nodes,
) -> None:
    """First nothing arrives, for longer than a lease, and then its connections are torn down."""
    stays, goes = {"web:both", "web:others"}, {"web:alone"}
    # So many that what other tests had evicted leaves room for more.
    crowd = registered(nodes, *(f"crowd:{number}" for number in range(40)), **LONG)
    whole = crowd | stays | goes
    cut_off, *others = nodes.all
    servers = [node.server for node in others]
    leases = Renewed("WEB", LEASE_SECS)
    leases.register(servers[0], *stays, *goes)
    renewed = stays | goes

    def late() -> set[str]:
        """Who may rightly have been evicted, as this machine was too slow."""
        return unsure | (stays & leases.late())

    def is_listed(listed: Iterable[str], expected: set[str]) -> bool:
        """Whether these are, but for those."""
        unjudged = late()
        return set(listed) - unjudged == expected - unjudged

    def goes_on() -> None:
        """Who is cut off reads, follows the deltas and renews as ever."""
        for name in goes | {"web:both"}:
            answer = cut_off.server.eureka("PUT", f"/apps/WEB/{name}")
            assert answer.status == 200 or name in unsure, (name, answer)
        assert set(cut_off.server.apps()) - unsure == whole - unsure
        follower.fetch_delta()
        assert {name for _, name in follower.instances} - unsure == whole - unsure

    with renewing(leases, renewed, *servers):
        wait_until(lambda: all_list(nodes, whole))
        follower = Follower(Session(Target(cut_off.server.base)), Form.JSON)
        follower.fetch_all()
        watches = [Watch(server) for server in nodes.servers]
        with nodes.linked(BLACK_HOLE, cut_off):
            unsure = leases.late()
            renewed -= goes
            refused = sent_registration(cut_off.server, "refused")
            while any(goes & set(server.apps()) for server in servers):
                goes_on()
                time.sleep(0.2)
            # What was held up is lost with the connections.
            cut_off.link.fail(Fault(loses_request=1, loses_answer=1))
            cut_off.link.cut()
            assert refused.recv(100).startswith(b"HTTP/1.1 503")
            refused.close()
            for _ in range(10):
                goes_on()
            assert cut_off.server.send("GET", "/health/ready").status == 503
            for server in servers:
                assert is_listed(server.apps(), whole - goes)
                wait_until(lambda server=server: server.send("GET", "/health/ready").status == 200)
        wait_until(lambda: all_list(nodes, whole - goes))
        assert cut_off.server.eureka("PUT", "/apps/WEB/web:alone").status == 404
        servers[1].take("WEB", "late", **LONG)
        for watch in watches:
            told, unjudged = watch.until("late"), late()
            gone = [] if "web:alone" in unjudged else [("evicted", "web:alone")]
            judged = [event for event in told if event[1] not in unjudged]
            assert judged == [*gone, ("added", "late")]
            watch.close()
        expected = whole - goes | {"late"}
        wait_until(lambda: all_list(nodes, expected))
        follower.fetch_delta()
        assert is_listed({name for _, name in follower.instances}, expected)
        assert follower.full_fetches == 1
        time.sleep(LEASE_SECS * 1.2)
        for server in nodes.servers:
            assert is_listed(server.apps(), expected)


# Evictions


def test_who_renews_anywhere_stays_though_the_nodes_clocks_are_days_apart(nodes: Nodes) -> None:
    names = {"web:1", "web:2", "web:3"}
    leases = leased(nodes, *names)
    shown = [server.send("GET", "/health").headers.get("date") for server in nodes.servers]
    assert len(set(shown)) == 3
    with renewing(leases, names, *nodes.servers):
        time.sleep(LEASE_SECS * 1.5)
        for server in nodes.servers:
            listed = set(server.apps())
            assert names - leases.late() <= listed <= names


def test_the_cap_of_evictions_holds_over_all_nodes_and_none_is_evicted_twice(
    nodes: Nodes,
) -> None:
    """Though who evicts is killed again and again, and another node goes on."""
    count = 40
    names = {f"web:{number}" for number in range(count)}
    # On a slow machine some were evicted before all were listed at once, and registered again.
    again = leased(nodes, *sorted(names)).late()
    limit = eviction_limit(count, 0.85)
    logged = [len(server.log()) for server in nodes.servers]

    def evicted() -> list[str]:
        lines = [
            server.log()[before:] for server, before in zip(nodes.servers, logged, strict=True)
        ]
        found = [each for text in lines for each in re.findall(r"evicted WEB/(\S+):", text)]
        return [each for each in found if each not in again]

    whole_at = time.monotonic()

    def shown() -> int:
        nonlocal whole_at
        began = time.monotonic()
        with suppress(OSError, HTTPException):
            found = len(nodes.servers[0].apps())
            if found == count:
                whole_at = began
            return found
        return count

    with FAULTS["workers killed"](nodes, random.Random(1)):
        wait_until(lambda: count - shown() >= limit)
        first = time.monotonic()
        while time.monotonic() < first + LEASE_SECS:
            with suppress(OSError, HTTPException):  # who would have answered was killed
                left = [len(server.apps()) for server in nodes.servers]
                # A minute after the first eviction there may be more; a node may show it late.
                assert min(left) >= count - limit or time.monotonic() > whole_at + 40
            time.sleep(0.1)
    nodes.heal()

    def all_agree() -> bool:
        told = evicted()
        assert len(told) == len(set(told))
        lists = [set(server.apps()) for server in nodes.servers]
        return lists.count(lists[0]) == len(lists) and lists[0] <= names - set(told)

    wait_until(all_agree)


# Unknown


@pytest.mark.parametrize("fault", [Fault(loses_answer=1), Fault(cuts=1), Fault(resets=1)])
def test_a_registration_whose_answer_was_cut_off_is_written_once(
    nodes: Nodes, fault: Fault
) -> None:
    registered(nodes, "web:1")
    node, before = nodes.all[0], revision(nodes)
    attempts = iter(range(1_000))

    def is_written_once() -> bool:
        before, name = revision(nodes), f"cut:{next(attempts)}"
        with ThreadPoolExecutor(1) as pool:
            with nodes.linked(fault, node):
                answer = pool.submit(node.server.register, "WEB", name)
                wait_until(lambda: revision(nodes) > before or answer.done())
            status = answer.result()
        assert revision(nodes) <= before + 1
        nodes.heal()
        if status != 503:
            assert (status, revision(nodes)) == (204, before + 1)
        # On a slow machine it is given up before the link is healed, and told so.
        return status == 204

    wait_until(is_written_once)
    assert revision(nodes) > before


# Several registries


def test_two_registries_in_one_redis_do_not_meet(nodes: Nodes, tmp_path: Path) -> None:
    names = registered(nodes, "web:1", "web:2")
    before = set(asked(nodes, "KEYS *"))
    prefix = another_prefix()
    other = Node(tmp_path / "other", nodes.redis, prefix, workers=1)
    try:
        other.server.start()
        assert other.server.apps() == {}
        other.server.take("WEB", "web:1", ipAddr="10.9.9.9")
        other.server.take("WEB", "only")
        other.server.cancel("WEB", "web:1")
        assert all_list(nodes, names)
        assert nodes.servers[0].eureka("PUT", "/apps/WEB/only").status == 404
        assert set(other.server.apps()) == {"only"}
        new = set(asked(nodes, "KEYS *")) - before
        owners = {key[1:].partition(b"}")[0].partition(b":")[0].decode() for key in new}
        assert prefix in owners
        assert owners <= {prefix, nodes.prefix}
    finally:
        other.close()


def test_what_redis_keeps_for_an_instance_is_as_the_documents_say(nodes: Nodes) -> None:
    """However often it registers: 730 bytes and what the registration takes, roughly."""

    def used() -> int:
        """Without the outcomes of groups, which go within a minute."""
        with nodes.redis.client() as client:
            keys = [f"{tag(nodes)}:{name}" for name in ("record", "lease", "log", "change", "was")]
            return sum(client.memory_usage(key, samples=0) or 0 for key in keys)

    count = 200
    before = used()
    for _ in range(2):
        for number in range(count):
            nodes.servers[number % 3].take("WEB", f"memory:{number}")
    with nodes.redis.client() as client:
        records = client.hvals(f"{tag(nodes)}:record")
    taken = sum(map(len, records)) / count
    assert (used() - before) / count <= taken + 730
