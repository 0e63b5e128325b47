"""Two genuine servers become two of this project, and back, with twelve real clients running.

What is done is what ``docs/migrate/cluster.md`` says: its commands are typed, each at its machine,
and what it says to look at is waited for. The machines are three shells with loopback addresses of
their own; all servers have the same port. The clients' lists name the first two, half of them in
the other order, and are not changed. What is judged, and how: ``noticed.py``.
"""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from conformance.compare import GENERATIONS as POMS
from conformance.gate import Gate, Gatehouse
from conformance.programs import (
    HOXTON_OPTIONS,
    LEASE_SECS,
    SMALL_JVM,
    Kind,
    Program,
    built_jar,
    free_port,
    named,
)
from tests.noticed import (
    SERVICE,
    SPRINGS,
    Asked,
    Watch,
    answered,
    beyond_retries,
    entries,
    refused,
    start_clients,
)
from tests.servers import ANOTHER_WORKER, ROOT, wait_until
from tests.shells import Shell, path_with_commands
from tests.test_documents import Block, blocks, is_as_shown

pytestmark = [pytest.mark.programs, pytest.mark.slow]

PAGE = "docs/migrate/cluster.md"
NAMES = ("eureka-1", "eureka-2", "eureka-3")
ADDRESSES = {name: f"127.0.0.{number}" for number, name in enumerate(NAMES, start=2)}
_LINE = re.compile(r"^(eureka-\d)\$ (.+)$")


class Command(NamedTuple):
    """What is typed at a machine, and what it then shows."""

    machine: str
    text: str
    shown: str

    @property
    def is_a_look(self) -> bool:
        """Whether it changes nothing, so that it may be repeated until what is shown is there."""
        return self.text.startswith(("curl ", "eureka-registry peers "))


class Step(NamedTuple):
    """A section of the page: the files and the commands in it."""

    title: str
    blocks: Sequence[Block]


def steps() -> list[Step]:
    """The sections of the page that have something to do, in their order."""
    found: list[Step] = []
    text = (ROOT / PAGE).read_text()
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    sections = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    waiting = blocks(PAGE)
    for title, section in zip(titles, sections, strict=True):
        count = len(re.findall(r"^```\w", section, re.MULTILINE))
        step, waiting = Step(title, waiting[:count]), waiting[count:]
        if step.blocks:
            found.append(step)
    assert waiting == []
    return found


def commands(session: str) -> list[Command]:
    found: list[Command] = []
    for line in session.splitlines():
        if match := _LINE.match(line):
            found.append(Command(match[1], match[2], ""))
        else:
            found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{line}\n")
    return found


class Machine:
    """A shell with a folder, an address, and the settings that its servers have anywhere else."""

    def __init__(self, name: str, folder: Path, port: int, generation: str) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self._port = port
        self._address = ADDRESSES[name]
        jar = built_jar(ROOT / "conformance" / "oracle", POMS[generation])
        options = HOXTON_OPTIONS if generation == "hoxton" else ()
        (self.folder / "eureka-server.jar").symlink_to(jar)
        environment = {
            "PATH": path_with_commands(self.folder / "bin"),
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "WORKERS": "2",
            "SERVER_ADDRESS": self._address,
            "EUREKA_INSTANCE_HOSTNAME": self._address,
            "EUREKA_REGISTRY_URL": f"http://{self._address}:{port}",
            # Genuine servers on one machine would all have the same id.
            "EUREKA_INSTANCE_INSTANCE_ID": f"{self._address}:eureka:{port}",
            # Whoever a server forgets is to be missed at once.
            "EUREKA_SERVER_ENABLE_SELF_PRESERVATION": "false",
            "EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS": "1000",
            "PEERS_COMPARE_INTERVAL_MS": "2000",
            "JAVA_TOOL_OPTIONS": " ".join([*SMALL_JVM, "-Xmx300m", *options]),
            "ACCESS_LOG": "true",
            "SERVER_TOMCAT_BASEDIR": str(self.folder),
            "SERVER_TOMCAT_ACCESSLOG_ENABLED": "true",
            "SERVER_TOMCAT_ACCESSLOG_BUFFERED": "false",
            **ANOTHER_WORKER,
        }
        self._shell = Shell(self.folder, environment, self.folder / "typed")

    def here(self, text: str) -> str:
        """The page's text with the addresses and the port that there are here."""
        for name, address in ADDRESSES.items():
            text = text.replace(name, address)
        return text.replace("8761", str(self._port))

    def write(self, block: Block) -> None:
        (self.folder / block.title).write_text(self.here(block.text))

    def type(self, command: str) -> tuple[int, str]:
        """The status of a command, and what it prints."""
        return self._shell.type(self.here(command))

    def perform(self, command: Command) -> None:
        """Type it, and wait until it shows what the page shows."""

        def is_done() -> bool:
            status, printed = self.type(command.text)
            is_fine = (
                is_as_shown(self.here(command.shown), printed) if command.shown else not status
            )
            assert is_fine or command.is_a_look, f"{command}: {printed}\n{self.log()[-3000:]}"
            return is_fine

        wait_until(is_done, f"{command}\n{self.log()[-3000:]}")

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))

    def answers(self) -> list[Asked]:
        """Each request that a server answered here, as the servers' logs have it."""
        logs = [self.folder / "registry.log", *sorted(self.folder.glob("logs/access_log*"))]
        return [each for log in logs if log.exists() for each in answered(log)]

    def is_ours(self) -> bool:
        status, printed = self.type(
            "curl -s http://$EUREKA_INSTANCE_HOSTNAME:8761/api/v1/peers | grep -c verdict"
        )
        return (status, printed.strip()) == (0, "1")

    def close(self) -> None:
        self._shell.close()


class World:
    """Three machines and the clients of one service."""

    def __init__(self, folder: Path, generations: Mapping[str, str] | None = None) -> None:
        """``generations`` are the genuine servers' that are not of the newest."""
        self._folder = folder
        self._stack = ExitStack()
        port = port_of_all()
        self.machines = {
            name: Machine(name, folder, port, (generations or {}).get(name, "2025.0"))
            for name in NAMES
        }
        for machine in self.machines.values():
            self._stack.callback(machine.close)
        self.bases = {name: f"http://{ADDRESSES[name]}:{port}/eureka" for name in NAMES}
        self.programs: list[Program] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_clients(self, kinds: Sequence[Kind], lists: Sequence[Sequence[str]]) -> None:
        """One client of each kind with its list of URLs; until each sees all of them."""
        self.programs = start_clients(self._stack, kinds, lists, self._folder)

    def await_answer(self, name: str) -> None:
        def is_there() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{self.bases[name]}/apps"):
                return True
            return False

        wait_until(is_there, f"an answer of {name}")

    def perform(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.language == "yaml":
                for machine in self.machines.values():
                    machine.write(block)
                continue
            for command in commands(block.text):
                self.machines[command.machine].perform(command)

    def answers(self) -> Counter[Asked]:
        return Counter(each for machine in self.machines.values() for each in machine.answers())


def port_of_all() -> int:
    """A port that is free at each address."""
    while True:
        port = free_port()
        with ExitStack() as tried, suppress(OSError):
            for address in ADDRESSES.values():
                tried.enter_context(socket.create_server((address, port)))
            return port


@dataclass
class Way:
    """What was seen from the first step to the last."""

    watch: Watch
    answers: Counter[Asked]
    logs: dict[str, str]
    ours: list[str]


def gone(world: World, way: Sequence[Step]) -> Way:
    before = world.answers()
    logged = {program.id: len(program.log()) for program in world.programs}
    watch = Watch(world.programs)
    try:
        for step in way:
            watch.step = step.title
            world.perform(step.blocks)
        # Nothing is waited for: who was lost in the last step is to be missed.
        time.sleep(LEASE_SECS)
    finally:
        watch.stop()
    return Way(
        watch,
        world.answers() - before,
        {program.id: program.log()[logged[program.id] :] for program in world.programs},
        [name for name, machine in world.machines.items() if machine.is_ours()],
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def there(world: World) -> Way:
    first, *way = steps()[:-1]
    assert first.title.startswith("Step 0")
    file, start, *looks = first.blocks
    world.perform([file, start])
    for name in NAMES[:2]:
        world.await_answer(name)
    kinds = named("all")
    one, two, _ = world.bases.values()
    world.start_clients(kinds, [[two, one] if at % 2 else [one, two] for at in range(len(kinds))])
    world.perform(looks)
    return gone(world, way)


@pytest.fixture(scope="module")
def back(world: World, there: Way) -> Way:
    (way,) = steps()[-1:]
    assert way.title == "The way back"
    return gone(world, [way])


@pytest.fixture(params=["there", "back"])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.getfixturevalue(request.param)
    return found


def test_no_client_sees_an_instance_missing(way: Way) -> None:
    assert way.watch.views == []
    assert len(way.watch.looks) == 12


def test_no_client_fails_to_call_another(way: Way) -> None:
    assert way.watch.calls == []


def test_no_server_refuses_a_client(way: Way) -> None:
    assert refused(way.answers) == {}
    beats = {asked.path.rpartition(":")[2] for asked in way.answers if asked.method == "PUT"}
    assert beats >= {kind.name for kind in named("all")}


def test_no_client_logs_anything_but_its_retries(way: Way) -> None:
    beyond = {name: beyond_retries(entries(log)) for name, log in way.logs.items()}
    assert {name: found for name, found in beyond.items() if found} == {}
    assert all(entries(log) for log in way.logs.values())  # each had to


def test_the_servers_are_ours_in_the_end(there: Way) -> None:
    assert there.ours == ["eureka-1", "eureka-2"]


def test_the_servers_are_genuine_after_the_way_back(back: Way) -> None:
    assert back.ours == []


# The judges


def test_who_is_not_listed_for_a_moment_is_missed(world: World, back: Way) -> None:
    base, lost = world.bases["eureka-1"], world.programs[-1]
    status = f"{base}/apps/{SERVICE}/{lost.id}/status?value="
    watch = Watch(world.programs)
    try:
        asked = urllib.request.Request(f"{status}OUT_OF_SERVICE", method="PUT")
        with urllib.request.urlopen(asked):
            wait_until(lambda: len({seen.client for seen in watch.views}) == 12, "all to miss it")
    finally:
        watch.stop()
    assert {seen.what for seen in watch.views} == {f"lacks ['{lost.id}']"}


def test_what_a_client_gives_up_without_a_time_limit_is_beyond_its_retries() -> None:
    away = "WARN RetryableEurekaHttpClient: Request execution failed with message: refused\n"
    cut = "WARN RetryableEurekaHttpClient: Request execution failed with message: {}\n"
    gave_up = "ERROR DiscoveryClient: was unable to send heartbeat!\n\tat DiscoveryClient.renew\n"

    assert beyond_retries(entries(away + gave_up)) == [gave_up]
    assert beyond_retries(entries(cut.format("InterruptedException") + gave_up)) == []
    assert beyond_retries(entries(cut.format("Read timed out") + gave_up)) == []


@pytest.mark.parametrize(
    "told",
    [
        "Not updating application delta as another thread is updating it already",
        "Not updating applications as another thread is updating it already",
        "Ignoring delta update with apps hashcode 7, as another thread is updating it already",
        "Not setting the applications map as another thread has advanced the update generation",
        "Cannot acquire update lock, aborting getAndUpdateDelta",
        "task supervisor rejected the task",
    ],
)
def test_a_fetch_that_meets_its_own_that_was_given_up_is_of_a_time_limit(told: str) -> None:
    assert beyond_retries(entries(f"WARN DiscoveryClient : {told}\n")) == []


def test_a_hash_that_does_not_match_is_beyond_a_clients_retries() -> None:
    told = "WARN DiscoveryClient : The Reconcile hashcodes do not match, client : {UP_1_}\n"
    assert beyond_retries(entries(told)) == [told]


@pytest.mark.parametrize(
    ("asked", "is_fine"),
    [
        (Asked("PUT", "/eureka/apps/SHOP/shop:one", 200), True),
        (Asked("PUT", "/eureka/apps/shop/shop:one", 404), False),
        (Asked("PUT", "/eureka/apps/SHOP/shop:one", 503), True),
        (Asked("PUT", "/eureka/apps/SHOP/shop:one", 409), False),
        (Asked("POST", "/eureka/apps/shop", 204), False),
        (Asked("DELETE", "/eureka/apps/SHOP/shop:one", 200), False),
        (Asked("GET", "/eureka/apps/", 200), True),
        (Asked("GET", "/eureka/apps/delta", 503), True),
        (Asked("GET", "/eureka/apps", 500), False),
        (Asked("POST", "/eureka/apps/EUREKA", 204), True),
        (Asked("POST", "/eureka/peerreplication/batch/", 503), True),
    ],
)
def test_what_clients_are_refused(asked: Asked, is_fine: bool) -> None:
    assert (refused(Counter([asked])) == {}) is is_fine


# A client of each generation, and servers of each


def test_a_spring_client_of_each_generation_moves_between_all_servers(tmp_path: Path) -> None:
    """Two genuine servers, a generation each, and one of ours; every way from one to another.

    Each client has three gates, one to each server, of which one is open. It is judged as above,
    and the gates tell that nobody registered again.
    """
    (file,) = [block for block in steps()[1].blocks if block.language == "yaml"]
    genuine = "java -jar eureka-server.jar >> eureka.log 2>&1 &"
    ours = "eureka-registry serve --spring-config application.yml >> registry.log 2>&1 &"
    with World(tmp_path, {"eureka-2": "hoxton"}) as world, Gatehouse() as house:
        world.perform([file])
        for machine, text in zip(world.machines.values(), (genuine, genuine, ours), strict=True):
            machine.perform(Command(machine.name, text, ""))
        for name in NAMES:
            world.await_answer(name)
        kinds = [kind for name in SPRINGS for kind in named(name)]
        gates = [{name: house.gate(base) for name, base in world.bases.items()} for _ in kinds]
        for each in gates:
            for name in NAMES[1:]:
                each[name].shut()
        world.start_clients(kinds, [[gate.url for gate in each.values()] for each in gates])
        registered = [registrations(each) for each in gates]
        answered = world.answers()
        watch = Watch(world.programs)
        try:
            for number in (2, 3, 1, 3, 2, 1):
                watch.step = f"the move to eureka-{number}"
                move(gates, f"eureka-{number}")
        finally:
            watch.stop()

        assert watch.views == []
        assert watch.calls == []
        assert [registrations(each) for each in gates] == registered
        assert refused(world.answers() - answered) == {}


def move(gates: Sequence[dict[str, Gate]], to: str) -> None:
    """Leave but one server to each client, and wait until it renews and fetches there."""
    for each in gates:
        each[to].open()
        for name, gate in each.items():
            if name != to:
                gate.shut()
    for each in gates:
        seen = len(each[to].passed)

        def is_there(gate: Gate = each[to], seen: int = seen) -> bool:
            passed = gate.passed[seen:]
            beats = sum(request.is_heartbeat for request in passed)
            return beats > 1 and sum(request.method == "GET" for request in passed) > 1

        wait_until(is_there, f"renewals and fetches at {to}")


def registrations(gates: Mapping[str, Gate]) -> int:
    return sum(passed.is_registration for gate in gates.values() for passed in gate.passed)
