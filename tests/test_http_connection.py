"""A connection as a state machine, and what it does with each turn of the loop."""

from __future__ import annotations

import itertools
import math
import re
import socket
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import pytest

from eureka_http import connection as module
from eureka_http.connection import Connection, Reading, Writing
from eureka_http.exchange import Answer, LoopHooks, Promise, Request, Stream
from eureka_http.worker import EventLoopWorker
from tests.turned import (
    Counting,
    Laned,
    Pool,
    Promising,
    Taken,
    Turned,
    a_worker,
    connected,
    request,
)

State = tuple[str, str]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is dear, and no turn too short, because this machine is slow."""
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 100.0)
    monkeypatch.setattr("eureka_http.worker._AS_THEY_COME_SECS", 100.0)


QUICK = "X-Quick: 1\r\n"


class Answering:
    """An application that gives everybody the same."""

    def __init__(self, found: Answer | Stream) -> None:
        self.loop_hooks = LoopHooks(lambda request: found)


class Side:
    """A connection and what is on either side of it. Threads run nothing."""

    def __init__(self) -> None:
        def fast_lane(asked: Request) -> Answer | None:
            return Answer(200, b"quick") if "x-quick" in asked.headers else None

        application = lambda environ, start_response: []  # noqa: E731  # takes an attribute
        application.loop_hooks = LoopHooks(fast_lane)  # type: ignore[attr-defined]
        self.worker: EventLoopWorker
        self.loop: Turned
        self.worker, self.loop = a_worker(application)
        self.worker.pool = cast(Any, Pool())
        self.worker._look_at_clock()
        self.connection: Connection
        self.transport: Taken
        self.connection, self.transport = connected(self.worker)

    def state(self) -> State:
        return self.connection.reading.name, self.connection.writing.name

    def assert_deadline(self) -> None:
        """It is derived from the state, whatever led there."""
        worker = self.worker
        reading, writing = self.state()
        expected = {
            "READY": math.inf if reading == "HALF_CLOSED" else worker.idle_until,
            "ANSWERING": math.inf,
            "LINGERING": worker.now + worker.linger_secs,
        }.get(writing, worker.now + worker.patience)
        if (reading, writing) == ("PARTIAL", "READY"):
            expected = worker.now + worker.patience
        assert self.connection.deadline == expected

    def pass_time(self, seconds: float) -> None:
        self.loop.seconds += seconds
        self.worker._sweep()

    def say(self, fields: str) -> None:
        begun = self.connection.reading is Reading.PARTIAL
        whole = request("/", fields)
        self.connection.data_received(whole[16:] if begun else whole)

    def part(self) -> None:
        self.connection.data_received(request("/")[:16])

    def eof(self) -> None:
        if not self.connection.eof_received():
            self.transport.close()

    def early(self) -> None:
        self.wait()
        self.eof()

    def wait(self) -> None:
        """Have a request wait in the queue."""
        self.connection._dear_until = math.inf
        self.connection.data_received(request("/"))

    def pause(self) -> None:
        self.transport.unsent = 100
        self.connection.pause_writing()

    def resume(self) -> None:
        self.transport.unsent = 0
        self.connection.resume_writing()
        self.loop.turn()

    def stop(self) -> None:
        self.worker.recent_since = math.inf
        self.connection.wind_down()


EVENTS: dict[str, Callable[[Side], Any]] = {
    "part": Side.part,
    "request": lambda side: side.say(""),
    "quick": lambda side: side.say(QUICK),
    "last": lambda side: side.say("Connection: close\r\n"),
    "nonsense": lambda side: side.connection.data_received(b"\0nonsense\r\n\r\n"),
    "eof": Side.eof,
    "early": Side.early,
    "pause": Side.pause,
    "resume": lambda side: (side.resume(), side.loop.run()),
    "done": lambda side: side.connection.answered(True),
    "finished": lambda side: side.connection.answered(False),
    "turn": lambda side: side.connection.share(),
    "deadline": lambda side: side.connection.overdue(),
    "stop": Side.stop,
    "lost": lambda side: side.connection.connection_lost(None),
}
INTO: dict[State, Callable[[Side], Any]] = {}


def into(state: str, *events: str) -> None:
    def lead(side: Side) -> None:
        for event in events:
            EVENTS[event](side)

    reading, writing = state.split()
    INTO[reading, writing] = lead


into("IDLE READY")
into("IDLE ANSWERING", "request")
into("IDLE STALLED", "request", "pause")
into("IDLE BLOCKED", "request", "pause", "done")
into("PARTIAL READY", "part")
into("PARTIAL BLOCKED", "part", "pause")
into("HALF_CLOSED READY", "early")
into("HALF_CLOSED ANSWERING", "request", "eof")
into("HALF_CLOSED STALLED", "request", "eof", "pause")
into("HALF_CLOSED BLOCKED", "request", "eof", "pause", "done")
into("DEAF ANSWERING", "last")
into("DEAF STALLED", "last", "pause")
into("DEAF BLOCKED", "last", "pause", "finished")
into("DEAF LINGERING", "last", "finished")


class Row(NamedTuple):
    reading: str
    writing: str
    event: str
    then_reading: str
    then_writing: str

    def fits(self, state: State, event: str | None = None) -> bool:
        named = zip((self.reading, self.writing), state, strict=True)
        return event in (None, self.event) and all(row in ("*", is_) for row, is_ in named)


def table() -> list[Row]:
    text = (module.__doc__ or "").split("\n")
    first, _, last = (n for n, line in enumerate(text) if line.startswith("====="))
    return [Row(*line.split()) for line in text[first + 3 : last]]


def after(state: State, event: str) -> State:
    for row in table():
        if row.fits(state, event):
            reading, writing = row.then_reading, row.then_writing
            return (
                state[0] if reading == "=" else reading,
                state[1] if writing == "=" else writing,
            )
    return state


def can_happen(state: State, event: str) -> bool:
    """Whether the loop, an answer or the worker may do this in this state."""
    reading, writing = state
    is_answering = writing in ("ANSWERING", "STALLED")
    if event in ("part", "request", "quick", "last", "nonsense", "eof"):
        # Nothing comes after the end, and what waits in the queue comes before anything else.
        return reading != "HALF_CLOSED" and not (event == "part" and reading == "PARTIAL")
    if event == "early":
        return state == ("IDLE", "READY")
    if event in ("done", "finished"):
        return is_answering and not (event == "done" and reading == "DEAF")
    if event == "pause":
        return writing in ("READY", "ANSWERING", "LINGERING")
    if event == "resume":
        return writing in ("STALLED", "BLOCKED")
    if event == "turn":
        return state == ("HALF_CLOSED", "READY")
    if event == "deadline":
        return writing != "ANSWERING" and state != ("HALF_CLOSED", "READY")
    return True


class TestStates:
    """The table in the module's docstring, over every pair of states and every event."""

    def test_only_these_states_can_be_reached(self) -> None:
        reached: set[State] = set()
        found: list[State] = [("IDLE", "READY")]
        while found:
            state = found.pop()
            if state not in reached:
                reached.add(state)
                events = [each for each in EVENTS if can_happen(state, each)]
                found += [after(state, each) for each in events]
        assert reached == set(INTO)

    def test_each_row_is_needed(self) -> None:
        rows = table()
        for row in rows:
            states = [state for state in INTO if row.fits(state) and can_happen(state, row.event)]
            assert states, row
            assert any(after(state, row.event) != state for state in states), row
            for state in states:
                assert [each for each in rows if each.fits(state, row.event)] == [row]

    @pytest.mark.parametrize("event", EVENTS)
    @pytest.mark.parametrize("state", [f"{r.name} {w.name}" for r in Reading for w in Writing])
    def test_each_event_in_each_state_does_as_the_table_says(self, state: str, event: str) -> None:
        reading, writing = state.split()
        if (reading, writing) not in INTO:
            return  # nothing leads there, as the first of these tests says
        side = Side()
        INTO[reading, writing](side)
        assert side.state() == (reading, writing)
        side.assert_deadline()
        if not can_happen((reading, writing), event):
            if event == "deadline":
                assert side.connection.deadline == math.inf
            return
        EVENTS[event](side)
        assert side.state() == after((reading, writing), event)
        if event != "lost":
            side.assert_deadline()

    def test_half_closed_with_more_in_the_stash_answers_that_first(self) -> None:
        for writing in ("ANSWERING", "STALLED"):
            side = Side()
            INTO["IDLE", writing](side)
            side.connection.data_received(request("/slow") + request("/quick", QUICK))
            side.connection.eof_received()
            side.connection.answered(True)
            if writing == "STALLED":
                assert side.state() == ("HALF_CLOSED", "BLOCKED")
                side.resume()
            assert side.state() == ("HALF_CLOSED", "READY")
            side.loop.turn()
            assert side.state() == ("HALF_CLOSED", "ANSWERING")
            side.connection.answered(True)
            side.loop.run()
            assert side.state() == ("DEAF", "LINGERING")
            assert side.transport.written.count(b"quick") == 1
            assert side.transport.is_closed

    def test_half_closed_while_the_client_reads_nothing_still_answers_all(self) -> None:
        side = Side()
        side.connection.data_received(request("/quick", QUICK))
        side.pause()
        side.connection.data_received(request("/quick", QUICK) * 2)
        assert side.connection.eof_received()
        side.resume()
        side.loop.run()
        assert side.transport.written.count(b"quick") == 3
        assert side.transport.is_closed

    @pytest.mark.parametrize("application", [Laned, Promising])
    def test_an_answer_to_be_sent_soon_is_sent_to_who_ends_its_sending(
        self, application: type[Laned]
    ) -> None:
        worker, loop = a_worker(application())
        connection, transport = connected(worker)
        connection.data_received(request("/first"))
        connection.data_received(request("/laned"))
        if not connection.eof_received():
            transport.close()
        loop.run()
        assert transport.written.count(b"laned") == 1
        assert transport.is_closed

    def test_who_ends_its_sending_while_it_reads_a_stream_has_left(self) -> None:
        left: list[bool] = []
        stream = Stream("text/plain", {}, lambda write, end: lambda: left.append(True))
        worker, _ = a_worker(Answering(stream))
        connection, transport = connected(worker)
        connection.data_received(request("/"))
        assert (connection.reading, connection.writing) == (Reading.IDLE, Writing.ANSWERING)
        assert not connection.eof_received()
        connection.connection_lost(None)
        assert left == [True]
        assert transport.written.count(b"HTTP/1.1 200") == 1


class TestTime:
    def test_an_idle_connection_is_closed_after_its_time(self) -> None:
        side = Side()
        worker, connection = side.worker, side.connection
        assert connection.deadline == worker.now + worker.cfg.keepalive
        side.pass_time(worker.cfg.keepalive)
        assert not side.transport.is_closed
        side.pass_time(1)
        assert side.transport.is_closed
        assert side.transport.written == b""

    def test_each_request_gives_more_time(self) -> None:
        side = Side()
        first = side.connection.deadline
        side.pass_time(1)
        side.connection.data_received(request("/", QUICK))
        assert side.connection.deadline == first + 1

    def test_a_request_that_comes_little_by_little_gets_no_more_time(self) -> None:
        side = Side()
        for byte in request("/slow")[:20]:
            side.connection.data_received(bytes([byte]))
            side.pass_time(1)
        side.pass_time(side.worker.patience - 20 + 1)
        assert side.transport.written.startswith(b"HTTP/1.1 408 ")
        assert side.transport.has_ended

    def test_who_reads_slowly_is_waited_for_and_who_reads_nothing_is_dropped(self) -> None:
        side = Side()
        side.pause()
        for unsent in (90, 50, 1):
            side.transport.unsent = unsent
            side.pass_time(side.worker.patience + 1)
            assert not side.transport.is_closed
        side.pass_time(side.worker.patience + 1)
        assert side.transport.is_closed

    def test_a_refused_client_has_a_moment_to_read_why(self) -> None:
        side = Side()
        side.connection.data_received(b"nonsense\r\n\r\n")
        assert side.transport.has_ended
        side.pass_time(1)
        assert not side.transport.is_closed
        side.pass_time(2)
        assert side.transport.is_closed

    def test_a_stop_closes_who_has_long_been_idle_and_waits_a_moment_for_others(self) -> None:
        side = Side()
        other, heard = connected(side.worker)
        side.pass_time(1.5)
        other.data_received(request("/quick", QUICK))
        side.worker._stop()
        assert (side.transport.is_closed, heard.is_closed) == (True, False)
        other.data_received(request("/quick", QUICK))
        assert heard.written.count(b"quick") == 2
        side.pass_time(0.6)
        side.pass_time(0.6)
        assert heard.is_closed
        for each in (side.connection, other):
            each.connection_lost(None)
        assert side.loop.is_stopped


BUSY = {
    "requests": b"".join(request(f"/{number}") for number in range(50)),
    "requests in chunks": b"".join(
        request(f"/{n}", "Transfer-Encoding: chunked\r\n", "POST", b"1\r\nx\r\n0\r\n\r\n")
        for n in range(50)
    ),
    "small chunks": request("/", "Transfer-Encoding: chunked\r\n", "POST")
    + b"10\r\n0123456789abcdef\r\n" * 50_000,
    "a long body": request("/", "Content-Length: 60000000\r\n", "POST") + bytes(1_000_000),
}


@pytest.mark.parametrize("kind", BUSY)
def test_whoever_sends_much_has_one_share_of_a_turn(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has arrived: so others are answered, and no more is read meanwhile."""
    monkeypatch.setattr("eureka_http.worker._TURN_SECS", 0.0)
    application = Counting()
    worker, loop = a_worker(application)
    several = [connected(worker) for _ in range(3)]
    other, heard = connected(worker)
    left = []
    for connection, _ in several:
        connection.data_received(BUSY[kind])
    for number in range(10):
        left.append([len(connection._stash) for connection, _ in several])
        assert not any(transport.reads for _, transport in several)
        other.data_received(request("/beat"))
        assert application.asked.count("/beat") == number + 1
        assert heard.reads
        loop.turn()
    # In each turn one of them had a share: a request, or a piece of a body.
    for before, after in itertools.pairwise(left):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert max(b - a for a, b in zip(after, before, strict=True)) <= 64 * 1024
    # All is answered in the end, in its order.
    while any(connection._is_queued for connection, _ in several):
        loop.turn()
    if kind.startswith("requests"):
        answered = [path for path in application.asked if path != "/beat"]
        assert sorted(answered) == sorted(f"/{n}" for n in range(50) for _ in several)
    assert all(transport.reads for _, transport in several)
    for connection, _ in several:
        connection.connection_lost(None)


def test_whoever_asks_what_is_dear_waits_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 0.0)
    monkeypatch.setattr("eureka_http.worker._TURN_SECS", 0.0)
    application = Counting()
    worker, loop = a_worker(application)
    several = [connected(worker) for _ in range(3)]
    for connection, _ in several:
        connection.data_received(request("/dear"))
    assert len(application.asked) == 3
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 100.0)
    for connection, _ in several:
        connection.data_received(request("/dear"))
    other, _ = connected(worker)
    other.data_received(request("/beat"))
    assert application.asked[3:] == ["/beat"]
    for number in range(3):
        loop.turn()
        assert len(application.asked) == number + 5


def test_whoever_waits_in_the_queue_is_known_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a heartbeat's next one needs no turn, whatever the first one took."""
    monkeypatch.setattr("eureka_http.connection._DEAR_SECS", 0.0)
    application = Laned()
    worker, loop = a_worker(application)
    connection, _ = connected(worker)
    connection.data_received(request("/dear", "X-Other: fields\r\n"))
    connection.data_received(request("/laned"))
    assert application.asked == ["/dear"]
    loop.turn()
    connection.data_received(request("/laned"))
    assert application.asked == ["/dear", "/laned", "/laned"]


def test_handshakes_begin_one_in_a_turn() -> None:
    worker, loop = a_worker(Counting())
    begun: list[Any] = []
    worker._welcome_soon = lambda client, peer, server: begun.append(peer)  # type: ignore[method-assign]
    clients = [socket.socket() for _ in range(4)]
    worker._silent = dict.fromkeys(clients, 0.0)
    for number, client in enumerate(clients):
        worker._hear(client, str(number), "")
    for number in range(4):
        assert begun == [str(each) for each in range(number)]
        loop.turn()
    assert begun == ["0", "1", "2", "3"]
    assert worker._silent == {}
    for client in clients:
        client.close()


def test_long_bodies_have_one_thread_of_their_own() -> None:
    """Several that are parsed at once would leave the interpreter, and a thread, to nobody else."""
    worker, _ = a_worker(lambda environ, start_response: [])
    assert worker.long_pool._max_workers == 1
    pool, long_pool = Pool(), Pool()
    worker.pool, worker.long_pool = cast(Any, pool), cast(Any, long_pool)
    zipped = "Content-Encoding: gzip\r\n"
    for size, fields in (
        (0, ""),
        (16384, ""),
        (16385, ""),
        (100_000, ""),
        (0, zipped),
        (9, zipped),
    ):
        connection, _ = connected(worker)
        fields += f"Content-Length: {size}\r\n"
        connection.data_received(request("/", fields, "POST", bytes(size)))
        while connection._is_queued:
            connection.share()
    assert (len(pool.submitted), len(long_pool.submitted)) == (3, 3)


@pytest.mark.parametrize("ends", [False, True])
def test_what_follows_a_promise_waits_for_it(ends: bool) -> None:
    """All is answered in its order, also to a client that has ceased to send."""
    worker, loop = a_worker(Promising())
    connection, transport = connected(worker)
    connection.data_received(request("/first"))
    connection.data_received(request("/second"))
    assert not transport.written.count(b"kept")
    connection.data_received(request("/third"))
    connection.data_received(request("/fourth")[:20])
    assert not transport.reads
    connection.data_received(request("/fourth")[20:] + request("/fifth"))
    if ends:
        assert connection.eof_received()
    for _ in range(9):
        loop.turn()
    bodies = re.findall(rb"(?:fast|kept) /[a-z]+", transport.written)
    assert [body.split()[1] for body in bodies] == [
        b"/first",
        b"/second",
        b"/third",
        b"/fourth",
        b"/fifth",
    ]
    assert bodies[1] == b"kept /second"
    assert transport.is_closed is ends
    assert transport.reads


def test_many_who_come_at_once_wait_for_later_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is cheap; all together they would hold up everybody else. A lane's client is heard."""
    monkeypatch.setattr("eureka_http.worker._AS_THEY_COME_SECS", 0.0)
    monkeypatch.setattr("eureka_http.worker._TURN_SECS", 0.0)
    application = Laned()
    worker, loop = a_worker(application)
    beating, _ = connected(worker)
    for _ in "ab":
        beating.data_received(request("/laned"))
        loop.run()
    application.asked.clear()
    several = [connected(worker)[0] for _ in range(5)]
    for number, connection in enumerate(several):
        connection.data_received(request(f"/{number}", "X-Other: fields\r\n"))
    assert application.asked == ["/0"]
    beating.data_received(request("/laned"))
    assert application.asked == ["/0", "/laned"]
    for number in range(1, 5):
        loop.turn()
        assert application.asked[2:] == [f"/{each}" for each in range(1, number + 1)]
    again, _ = connected(worker)
    loop.run()
    again.data_received(request("/again", "X-Other: fields\r\n"))
    assert application.asked[-1] == "/again"


def test_what_is_thrown_away_is_read_a_piece_at_a_time_on_all_connections_together() -> None:
    worker, loop = a_worker(Counting())
    several = [connected(worker) for _ in range(4)]
    for connection, transport in several:
        connection.data_received(b"nonsense\r\n\r\n")
        assert transport.reads
        connection.data_received(bytes(250_000))
        connection.data_received(bytes(250_000))
        assert not transport.reads
    for number in range(4):
        assert [transport.reads for _, transport in several] == [n < number for n in range(4)]
        ((_, discard),) = loop.later
        loop.later.clear()
        discard()
    assert all(transport.reads for _, transport in several)
    assert loop.later == []


class Listing(Laned):
    """Its lane gives a list, of the revision that a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.list = Answer(200, b"list", revision=1)
        self.gave: list[tuple[bytes, int]] = []
        self.gone: list[Any] = []
        self.loop_hooks = LoopHooks(
            self.fast_lane,
            self.lane,
            gave=lambda fetcher, data, revision: self.gave.append((data, revision)),
            gone=self.gone.append,
        )

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        return self.list

    def reader(self, target: str) -> Callable[[], Answer]:  # type: ignore[override]
        return self.readers.setdefault(target, lambda: self.list)

    readers: ClassVar[dict[str, Callable[[], Answer]]] = {}


def test_a_list_is_told_of_where_it_is_another_than_the_last_on_its_connection() -> None:
    application = Listing()
    worker, loop = a_worker(application)
    connection, _ = connected(worker)
    one, other = request("/list"), request("/another")

    def ask(data: bytes) -> None:
        worker.now += 1
        connection.data_received(data)
        loop.run()

    for data in (one, one, one, one):  # the first is read whole, the second finds its lane
        ask(data)
    assert application.gave == [(one, 1)]
    assert connection.given_at == worker.now
    application.list = Answer(200, b"longer", revision=2)
    ask(one)
    ask(one)
    ask(other)
    assert application.gave == [(one, 1), (one, 2), (other, 2)]
    assert application.gone == []
    connection.connection_lost(None)
    assert application.gone == [("127.0.0.1", 1)]
