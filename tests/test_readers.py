"""Who reads, and who has not read since: told apart by connections, across all workers."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import DEFAULT_NAMESPACE, EVENTS, Figures, Revision
from registry.figures import FULL_AFTER_DELTA
from registry.readers import ALL, WINDOW_MS, Client, Reader, Readers, client, what
from tests.servers import ANOTHER_WORKER, JSON, RegistryServer, wait_until

NOW = 1_700_000_000_000


class World:
    """The readers of one worker; its clock is set by hand."""

    def __init__(self, folder: Path | None = None, most: int = 1000) -> None:
        self.figures = Figures([EVENTS], None if folder is None else folder / "figures")
        self.readers = Readers(self.figures, folder, most)

    def fetch(self, who: Client, revision: int, at: int, *, is_delta: bool = True) -> None:
        self.readers.note(who, Revision(revision), NOW + at, is_delta=is_delta)

    def left(self, who: Client, at: int) -> None:
        self.readers.left(who, NOW + at)

    def behind(self, revision: int, at: int) -> list[tuple[str, int]]:
        found = self.readers.behind(DEFAULT_NAMESPACE, Revision(revision), NOW + at)
        return sorted((each.client.address, each.client.port) for each in found.readers)

    def all(self) -> dict[Client, Reader]:
        return {each.client: each for each in self.readers.all()}

    def close(self) -> None:
        self.readers.close()
        self.figures.close()


def who(port: int = 1, address: str = "10.0.0.1", about: str = ALL) -> Client:
    return client(DEFAULT_NAMESPACE, address, port, "DefaultClient", about)


@pytest.fixture(params=["alone", "shared"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path if request.param == "shared" else None)
    yield world
    world.close()


def test_who_has_fetched_since_is_not_behind(world: World) -> None:
    world.fetch(who(1), 5, 0)
    world.fetch(who(2), 7, 0)
    assert world.behind(7, 10) == [("10.0.0.1", 1)]
    world.fetch(who(1), 7, 20)
    assert world.behind(7, 30) == []
    assert world.behind(8, 30) == [("10.0.0.1", 1), ("10.0.0.1", 2)]


def test_what_is_known_of_a_reader(world: World) -> None:
    world.fetch(who(), 5, 0, is_delta=False)
    world.fetch(who(), 6, 30_000)
    world.readers.again(who(), NOW + 61_000)
    assert world.all()[who()] == Reader(
        client=who(),
        revision=Revision(6),
        at_ms=NOW + 61_000,
        since_ms=NOW,
        full_ms=NOW,
        delta_ms=NOW + 61_000,
        closed_ms=0,
        interval_ms=31_000,
        fulls=1,
        deltas=2,
    )


def test_two_processes_on_one_machine_are_two_readers(world: World) -> None:
    world.fetch(who(1), 5, 0)
    world.fetch(who(2), 5, 0)
    world.fetch(who(1), 7, 10)
    assert world.behind(7, 20) == [("10.0.0.1", 2)]


def test_who_closed_its_connection_is_behind_until_it_comes_back(world: World) -> None:
    world.fetch(who(1), 5, 0)
    world.left(who(1), 10)
    assert world.behind(7, 20) == [("10.0.0.1", 1)]
    world.fetch(who(2), 7, 30)
    assert world.behind(7, 40) == []
    assert [each.port for each in world.all()] == [2]


def test_another_process_does_not_stand_in_for_one_that_closed_its_connection(
    world: World,
) -> None:
    world.fetch(who(1), 5, 0)
    world.fetch(who(2), 5, 0)
    world.left(who(1), 10)
    world.fetch(who(2), 7, 20)
    assert world.behind(7, 30) == [("10.0.0.1", 1)]


def test_who_opens_a_connection_for_each_fetch_is_one_reader(world: World) -> None:
    for turn in range(20):
        world.fetch(who(100 + turn), 5 + turn, turn * 30_000)
        world.left(who(100 + turn), turn * 30_000 + 1)
    (reader,) = world.all().values()
    assert (reader.deltas, reader.interval_ms) == (20, 30_000)
    assert world.behind(25, 19 * 30_000 + 10) == [("10.0.0.1", 119)]


def test_who_does_not_fetch_any_more_holds_nobody_up(world: World) -> None:
    world.fetch(who(1), 5, 0)
    assert world.behind(7, WINDOW_MS) == [("10.0.0.1", 1)]
    assert world.behind(7, WINDOW_MS + 1) == []


def test_who_fetches_seldom_is_waited_for_as_long_as_that_takes(world: World) -> None:
    world.fetch(who(1), 4, 0)
    world.fetch(who(1), 5, 100_000)
    assert world.behind(7, 100_000 + 250_000) == [("10.0.0.1", 1)]
    assert world.behind(7, 100_000 + 250_001) == []


def test_those_who_read_something_else_do_not_count(world: World) -> None:
    world.fetch(who(1, about=what("apps", "WEB")), 5, 0)
    world.fetch(who(2, about=what("vips", "web")), 5, 0)
    found = world.readers.behind(
        DEFAULT_NAMESPACE, Revision(7), NOW + 1, {ALL, what("apps", "WEB")}.__contains__
    )
    assert [each.client.port for each in found.readers] == [1]


def test_a_full_list_right_after_a_delta_is_counted(world: World) -> None:
    counted = world.figures.numbers(EVENTS)
    world.fetch(who(1), 5, 0, is_delta=False)
    world.fetch(who(1), 6, 30_000)
    assert counted[FULL_AFTER_DELTA] == 0
    world.fetch(who(1), 6, 30_100, is_delta=False)
    assert counted[FULL_AFTER_DELTA] == 1
    world.fetch(who(1), 6, 60_000)
    world.fetch(who(1), 6, 90_000, is_delta=False)
    assert counted[FULL_AFTER_DELTA] == 1


def test_where_there_is_no_room_the_oldest_goes_and_that_is_told() -> None:
    world = World(most=3)
    for port in range(1, 4):
        world.fetch(who(port), 5, port)
    assert world.readers.behind(DEFAULT_NAMESPACE, Revision(7), NOW + 5).is_complete
    world.fetch(who(4), 5, 10)
    found = world.readers.behind(DEFAULT_NAMESPACE, Revision(7), NOW + 11)
    assert sorted(each.client.port for each in found.readers) == [2, 3, 4]
    assert not found.is_complete
    later = NOW + 11 + WINDOW_MS
    assert world.readers.behind(DEFAULT_NAMESPACE, Revision(7), later).is_complete
    world.close()


def test_there_is_room_for_many(tmp_path: Path) -> None:
    one, other = World(tmp_path, most=5_000), World(tmp_path)
    for port in range(1, 3_001):
        one.fetch(who(port), port, 0)
    assert {c.port: r.revision for c, r in other.all().items()} == {
        port: port for port in range(1, 3_001)
    }
    one.readers.forget(NOW + 10_000_000)
    assert other.all() == {}
    one.close()
    other.close()


def test_a_client_goes_on_at_another_worker(tmp_path: Path) -> None:
    one, other = World(tmp_path), World(tmp_path)
    one.fetch(who(1), 5, 0)
    assert other.behind(7, 10) == [("10.0.0.1", 1)]
    one.left(who(1), 20)
    other.fetch(who(2), 7, 30)
    assert one.behind(7, 40) == other.behind(7, 40) == []
    one.close()
    other.close()


def test_what_a_worker_knew_that_ended_counts_on(tmp_path: Path) -> None:
    one, other = World(tmp_path), World(tmp_path)
    one.fetch(who(1), 5, 0)
    one.close()
    assert other.behind(7, 10) == [("10.0.0.1", 1)]
    assert other.all()[who(1)].closed_ms == NOW
    following = World(tmp_path)
    assert following.behind(7, 10) == [("10.0.0.1", 1)]
    following.fetch(who(2), 7, 20)
    assert other.behind(7, 30) == []
    following.close()
    other.close()


def test_clients_names_are_made_fit() -> None:
    world = World()
    odd = client(DEFAULT_NAMESPACE, "::1", 70_000, "a\0b\n" + "é" * 500, what("apps", "X" * 500))
    world.fetch(odd, 1, 0)
    assert world.all()[odd].client == odd
    assert odd.name.startswith("abé")
    world.close()


# Through the doors


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("readers")) as running:
        running.register("WEB", "web:1")
        yield running


AS_JAVA = JSON | {
    "DiscoveryIdentity-Name": "DefaultClient",
    "User-Agent": "Java-EurekaClient/v2.0.4",
    "Accept-Encoding": "gzip",
}


def told(server: RegistryServer, port: int) -> dict[str, object] | None:
    """What the server knows of the reader on a connection."""
    readers = server.send("GET", "/api/v1/readers").json()["readers"]
    return next((each for each in readers if each["port"] == port), None)


def test_each_fetch_is_known_whichever_worker_is_asked(server: RegistryServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.connect()
    port = connection.sock.getsockname()[1]
    server.eureka("GET", "/apps", None, AS_JAVA, connection=connection)
    first = wait_until(lambda: told(server, port), "the first fetch")
    assert (first["address"], first["what"]) == ("127.0.0.1", "all")
    assert first["client"] == "DefaultClient Java-EurekaClient/v2.0.4"
    assert (first["fulls"], first["deltas"], first["open"]) == (1, 0, True)
    for _ in range(5):
        server.eureka("GET", "/apps/delta", None, AS_JAVA, connection=connection)

    server.register("WEB", "web:2")
    revision = server.send("GET", "/api/v1/readers").json()["revision"]
    wait_until(lambda: (told(server, port) or {}).get("behind"), "to be behind")
    server.eureka("GET", "/apps/delta", None, AS_JAVA, connection=connection)
    wait_until(lambda: (told(server, port) or {}).get("revision") == revision, "to be up to date")
    reader = told(server, port)
    assert reader is not None
    assert reader["behind"] is False
    assert reader["last_delta"] is not None
    connection.close()
    if not ANOTHER_WORKER:  # no other tells of the ends of connections
        wait_until(lambda: (told(server, port) or {}).get("open") is False, "its end")
