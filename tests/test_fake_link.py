"""The fake network of the tests does what is said of it, so that what it proves is proved."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fake_link import FakeLink, Fault
from tests.servers import HANG_SECS, wait_until


class Echo:
    """Answers each byte with itself, and remembers what has arrived."""

    def __init__(self) -> None:
        self.arrived = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(100):
                self.arrived += data
                connection.sendall(data)
        except OSError:
            pass
        connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[FakeLink]:
    link = FakeLink(echo.port, seed=1)
    yield link
    link.close()


@pytest.fixture
def connection(link: FakeLink) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", link.port), timeout=HANG_SECS) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        yield connection


def is_silent(connection: socket.socket) -> bool:
    """Whether nothing has come, not even an end."""
    connection.settimeout(0.1)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(HANG_SECS)
    return False


def test_a_healthy_one_and_a_slow_one_pass_everything_on(
    link: FakeLink, connection: socket.socket
) -> None:
    with link.faulty(Fault(delay_secs=0.01)):
        for byte in b"bcdef":
            connection.sendall(bytes([byte]))
            assert connection.recv(1) == bytes([byte])
    connection.sendall(b"g")
    assert connection.recv(1) == b"g"
    assert link.befallen >= 10


def test_of_a_lost_answer_the_request_arrives(
    link: FakeLink, connection: socket.socket, echo: Echo
) -> None:
    with link.faulty(Fault(loses_answer=1)):
        connection.sendall(b"b")
        wait_until(lambda: echo.arrived == b"ab")
        assert is_silent(connection)
    # Nothing comes after what was lost.
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_a_fault_can_begin_with_a_request(
    link: FakeLink, connection: socket.socket, echo: Echo
) -> None:
    with link.faulty(Fault(loses_answer=1, since=b"bc")):
        connection.sendall(b"c")
        assert connection.recv(1) == b"c"
        connection.sendall(b"bc")
        wait_until(lambda: echo.arrived == b"acbc")
        assert is_silent(connection)


def test_a_lost_request_does_not_arrive(
    link: FakeLink, connection: socket.socket, echo: Echo
) -> None:
    with link.faulty(Fault(loses_request=1)):
        connection.sendall(b"b")
        wait_until(lambda: link.befallen)
        assert is_silent(connection)
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert echo.arrived == b"a"


def test_what_a_black_hole_holds_arrives_when_it_is_healed(
    link: FakeLink, connection: socket.socket, echo: Echo
) -> None:
    with link.faulty(Fault(holds=True)):
        connection.sendall(b"b")
        another = socket.create_connection(("127.0.0.1", link.port), timeout=HANG_SECS)
        another.sendall(b"c")
        wait_until(lambda: link.befallen)
        assert is_silent(connection)
        assert is_silent(another)
        assert echo.arrived == b"a"
    assert connection.recv(1) == b"b"
    assert another.recv(1) == b"c"
    another.close()


@pytest.mark.parametrize("fault", [Fault(cuts=1), Fault(resets=1)], ids=["closed", "reset"])
def test_a_connection_ends_after_a_request_and_before_its_answer(
    link: FakeLink, connection: socket.socket, echo: Echo, fault: Fault
) -> None:
    with link.faulty(fault):
        connection.sendall(b"b")
        if fault.cuts:
            assert connection.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert echo.arrived == b"ab"


def test_all_connections_of_a_moment_are_torn_down(
    link: FakeLink, connection: socket.socket
) -> None:
    link.cut()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_chances_are_those_of_the_seed(echo: Echo) -> None:
    def met(seed: int) -> list[bool]:
        link = FakeLink(echo.port, seed)
        lost = []
        with link.faulty(Fault(cuts=0.5)):
            for _ in range(12):
                with socket.create_connection(("127.0.0.1", link.port)) as connection:
                    connection.sendall(b"a")
                    lost.append(connection.recv(1) == b"")
        link.close()
        return lost

    assert met(1) == met(1)
    assert len(set(met(1))) == 2
