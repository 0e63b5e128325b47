"""The Redis server: connections, calls of scripts, and its clock.

**Runs.** Each connection learns which run of the server it speaks to, before anything else. A life
of the store is bound to one run: a server that was started anew, or another that took over, may
lack what was written last, and the scripts refuse (``AnotherLifeError``) until another life began.

**Time.** Redis' clock and this machine's monotonic one differ by an offset. A round trip tells it
within the time that it took. What is used moves only where a round trip proves it wrong, and no
further than it must.

**Unknown.** A call that was cut off may have been executed. It is repeated until it is answered,
for a while: the scripts are such that this is the same as once (a group of commits has an id).
Where that is in vain, others do not wait for as long again. What a client asks for may take several
calls, which are repeated for as long in all (``one_window``).

**Together.** What is to be asked of many namespaces is written for one of them, as a *dialog*: a
generator that yields what it asks and is sent the answer. Dialogs are held together, and what each
asks next goes to its server in one round trip with what the others ask.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import redis

from registry.errors import LockLostError, StoreAwayError, StoreError
from registry.lease import SystemClock
from registry.model import Namespace
from registry.stores.redis.address import Address
from registry.stores.redis.scripts import Script
from registry.stores.redis.topology import Topology, topology_of

_TRIED_SECS = 3.0
# One that begins when that is over already is repeated for as long: a connection may be an old one.
_TRIED_LATE_SECS = 0.5
_CONFIRMED_SECS = 1.0
_RECEIVED_AT_ONCE = 1 << 18
_PAUSE_SECS = 0.05
# What a server answers that is not, or not yet, the one to ask.
_ELSEWHERE = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
# What is not allowed in a script has no code of its own: in Redis 7.0, and since 7.2 and in Valkey.
_FORBIDDEN = ("The user executing the script can't", "ACL failure in script")

# What goes to a server in one round trip at most: so many calls, bytes, and entries in the answers.
# It serves nobody else meanwhile, and is to begin its answer within a second.
_CALLS_AT_ONCE, _BYTES_AT_ONCE, _ENTRIES_AT_ONCE = 100, 1 << 20, 5_000
_WAITS_SECS = 0.1

# Where a script meets what no registry wrote, it says in which key, or ends in an error of its own.
_NONSENSE = re.compile(r"NONSENSE (\S+)")
_DEFECT = re.compile(r"user_script:\d+: |WRONGTYPE")

Argument = bytes | str | int
_T = TypeVar("_T")


# In the place of an answer: it was not asked, or nobody answered.
_UNANSWERED = object()


class AwayError(StoreAwayError):
    """Redis cannot be reached, or did not answer."""

    may_be_done = False
    """Whether it was asked, so that it may have done it, or do it later."""


class ForbiddenError(StoreError):
    """The user that the registry has at Redis may not do what the registry needs."""


class NonsenseError(StoreError):
    """In a key of the registry's is what no registry wrote."""


class AnotherLifeError(Exception):
    """The server is not in the life in which it was asked, or is another run than that began in."""

    def __init__(self, *, was_cut_off: bool = False) -> None:
        """``was_cut_off``: the script may have been executed before, in the life that ended."""
        super().__init__()
        self.was_cut_off = was_cut_off


class UnopenedError(AnotherLifeError):
    """The namespace is not open: it was never begun, or may hold no instances."""


class AwaitedError(StoreAwayError):
    """Nothing was written, since other machines have not given back yet what Redis lost.

    It is not accepted by one machine alone (``AwayError``): Redis is there, and soon takes it.
    """


class Call(NamedTuple):
    """A script that is to be called on a namespace or the root, with these arguments."""

    script: Script
    namespace: Namespace | None
    arguments: tuple[Argument, ...]
    most: int = 1
    """How many entries it may be answered with."""


class Command(NamedTuple):
    """A plain command that is to be called on a key of a namespace or the root, whole."""

    words: tuple[Argument, ...]
    namespace: Namespace | None
    most: int = 1
    """How many entries it may be answered with."""


Dialog = Generator[Call | Command | None, Any, _T]
"""What is asked one after another, and what comes of it.

It yields what it asks, and is sent the answer, or thrown the ``StoreError`` or
``AnotherLifeError``. With None it waits a moment.
"""


class Server:
    """The server as this process reaches it. Thread-safe."""

    def __init__(self, address: Address) -> None:
        """Connect to nothing yet."""
        self.shown = address.shown
        self._prefix = address.prefix
        self._topology = topology_of(address)
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._offset: int | None = None
        # The servers that were given up on: no call waits for them, until they answer again.
        self._hanging: set[Any] = set()
        self._window = threading.local()

    def name(self, name: str, namespace: Namespace | None = None) -> str:
        """The name of a key of a namespace; without one of a key, or a channel, of the root."""
        return f"{self._tag(namespace)}:{name}"

    @contextmanager
    def reading(self, name: str, namespace: Namespace | None = None) -> Iterator[None]:
        """Where what a key has cannot be read, that is a ``NonsenseError`` which names it."""
        try:
            yield
        except (ValueError, TypeError, IndexError) as error:
            raise self.nonsense(self.name(name, namespace), error) from error

    def nonsense(self, key: str, reason: object) -> NonsenseError:
        """What is said of a key in which is what no registry wrote."""
        return NonsenseError(f"Redis at {self.shown} has in {key} what no registry wrote: {reason}")

    def _tag(self, namespace: Namespace | None) -> str:
        return f"{{{self._prefix}}}" if namespace is None else f"{{{self._prefix}:{namespace}}}"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except redis.exceptions.AskError as error:
            raise StoreError(f"Redis at {self.shown} moves slot {error.slot_id}") from error
        except redis.exceptions.ClusterDownError as error:
            raise AwayError(f"Redis at {self.shown} does not serve: {error}") from error
        except redis.ResponseError as error:
            text = str(error)
            is_forbidden = isinstance(error, redis.exceptions.NoPermissionError)
            if is_forbidden or text.startswith(_FORBIDDEN):
                needed = "forbids its user what the registry needs"
                raise ForbiddenError(f"Redis at {self.shown} {needed}: {text}") from error
            raise StoreError(f"Redis at {self.shown} refuses: {text}") from error
        except redis.AuthenticationError as error:
            raise AwayError(f"Redis at {self.shown} refuses its user: {error}") from error
        except redis.RedisError as error:
            raise AwayError(f"Redis at {self.shown} does not answer: {error}") from error
        except OSError as error:
            raise AwayError(f"Redis at {self.shown} cannot be reached: {error}") from error

    @contextmanager
    def one_window(self) -> Iterator[None]:
        """Have this thread's calls repeated for no longer in all than one of them would be."""
        if self._until() is not None:
            yield
            return
        self._window.until = time.monotonic() + _TRIED_SECS
        try:
            yield
        finally:
            self._window.until = None

    def _until(self) -> float | None:
        until: float | None = getattr(self._window, "until", None)
        return until

    def run(self, script: Script, namespace: Namespace | None, *arguments: Argument) -> Any:
        """What a script returns, called on a namespace or the root.

        Its arguments are the server's run, and these. ``AnotherLifeError``, ``UnopenedError``,
        ``LockLostError``; ``StoreError`` where no answer came in three seconds. Then it is not
        known whether it was executed.
        """
        cut_off: list[Exception] = []
        try:
            with self._failures():
                return self._tried(self._tag(namespace), script, arguments, cut_off)
        except AwayError as error:
            error.may_be_done = bool(cut_off)
            raise

    def ask(self, dialog: Dialog[_T]) -> _T:
        """What comes of a dialog; ``StoreError``, ``AnotherLifeError``."""
        return self._held([dialog])[0]

    def ask_each(
        self, dialog: Callable[[Namespace], Dialog[_T]], namespaces: Iterable[Namespace]
    ) -> dict[Namespace, _T]:
        """What comes of a dialog about each namespace, which goes on as if it were the only one.

        Their calls go together, of a hundred dialogs at a time: where one is over, the next begins.
        Those that wait do so as long as others go on. What one of them raises ends them all:
        ``StoreError``, ``AnotherLifeError``.
        """
        asked = list(namespaces)
        return dict(zip(asked, self._held(map(dialog, asked)), strict=True))

    def _held(self, dialogs: Iterable[Dialog[_T]]) -> list[_T]:
        """What comes of dialogs that are held together."""
        outcomes: dict[int, _T] = {}
        asked: dict[int, tuple[Dialog[_T], Call | Command]] = {}
        waiting: dict[int, Dialog[_T]] = {}

        def go_on(place: int, dialog: Dialog[_T], answer: Any) -> None:
            try:
                if isinstance(answer, Exception):
                    question = dialog.throw(answer)
                else:
                    question = dialog.send(answer)
            except StopIteration as over:
                outcomes[place] = over.value
                return
            if question is None:
                waiting[place] = dialog
            else:
                asked[place] = dialog, question

        coming = enumerate(dialogs)
        while True:
            while len(asked) + len(waiting) < _CALLS_AT_ONCE:
                following = next(coming, None)
                if following is None:
                    break
                go_on(*following, None)
            if asked:
                going, asked = asked, {}
                answers = self._answers([question for _, question in going.values()])
                for (place, (dialog, question)), answer in zip(going.items(), answers, strict=True):
                    if answer is _UNANSWERED:
                        asked[place] = dialog, question
                    else:
                        go_on(place, dialog, answer)
            elif waiting:
                time.sleep(_WAITS_SECS)
                awaking, waiting = waiting, {}
                for place, dialog in awaking.items():
                    go_on(place, dialog, None)
            else:
                return [outcomes[place] for place in range(len(outcomes))]

    def _answers(self, questions: Sequence[Call | Command]) -> list[Any]:
        """What is answered, or the error in its place; some may be ``_UNANSWERED`` yet.

        Where a server could not be reached, the first of its questions is asked by itself, which is
        tried for a while.
        """
        answers = self._each(questions, waits=False)
        was_away = False
        for place, answer in enumerate(answers):
            if isinstance(answer, AwayError):
                answers[place] = _UNANSWERED if was_away else self._alone(questions[place])
                was_away = True
        return answers

    def _alone(self, question: Call | Command) -> Any:
        """What is answered, or the error."""
        try:
            if isinstance(question, Command):
                return self.call(*question.words, namespace=question.namespace)
            return self.run(question.script, question.namespace, *question.arguments)
        except (StoreError, AnotherLifeError) as error:
            return error

    def run_each(self, calls: Sequence[Call]) -> list[Any]:
        """What scripts return that are called together, each once, as ``run`` does.

        Those for one server are one round trip, or a few where they are many. One that cannot be
        asked fails no other: in the place of an answer is the ``StoreError`` or
        ``AnotherLifeError``.
        """
        return self._each(calls, waits=True)

    def _each(self, questions: Sequence[Call | Command], *, waits: bool) -> list[Any]:
        answers: list[Any] = [None] * len(questions)
        by_pool: dict[Any, list[int]] = {}
        for place, question in enumerate(questions):
            try:
                with self._failures():
                    pool = self._topology.pool(self._tag(question.namespace))
                    by_pool.setdefault(pool, []).append(place)
            except StoreError as error:
                answers[place] = error
        for pool, places in by_pool.items():
            away: AwayError | None = None
            for portion in _portions(places, questions):
                try:
                    if away is not None:
                        raise away
                    with self._failures():
                        if not waits:
                            self._check(pool)
                        told = self._together(pool, [questions[place] for place in portion])
                except StoreError as error:
                    told = [error] * len(portion)
                    away = error if isinstance(error, AwayError) else None
                for place, answer in zip(portion, told, strict=True):
                    answers[place] = answer
                    if isinstance(answer, redis.ResponseError):
                        answers[place] = self._alone(questions[place])
        return answers

    def _together(self, pool: Any, questions: Sequence[Call | Command]) -> list[Any]:
        """What is answered at one server, or the error that it answers."""
        with self._watched(pool), _connection(pool) as connection:
            commands = [self._words(connection, question) for question in questions]
            answers = _exchange_each(connection, commands)
            unknown = [
                place
                for place, answer in enumerate(answers)
                if isinstance(answer, redis.exceptions.NoScriptError)
            ]
            if unknown:
                for text in {_text_of(questions[place]) for place in unknown}:
                    _exchange(connection, ("SCRIPT", "LOAD", text))
                again = _exchange_each(connection, [commands[place] for place in unknown])
                for place, answer in zip(unknown, again, strict=True):
                    answers[place] = answer
        return answers

    def _words(self, connection: Any, question: Call | Command) -> tuple[Argument, ...]:
        if isinstance(question, Command):
            return question.words
        tag = self._tag(question.namespace)
        return _command(connection, tag, question.script, question.arguments)

    def call(
        self, *command: Argument, namespace: Namespace | None = None, waits: bool = False
    ) -> Any:
        """What a plain command answers, on a key of a namespace or the root; ``StoreError``.

        With ``waits`` it is asked even where it hung lately; else that is an error at once.
        """
        with self._failures():
            pool = self._topology.pool(self._tag(namespace))
            if not waits:
                self._check(pool)
            with self._watched(pool):
                try:
                    with _connection(pool) as connection:
                        answer = _exchange(connection, command)
                except redis.exceptions.AskError as error:
                    answer = self._redirected(error, command)
            return answer

    def call_each(self, *command: Argument) -> list[Any]:
        """What a plain command answers at each server; ``StoreError``."""
        answers = []
        with self._failures():
            for pool in self._topology.pools():
                self._check(pool)
                with self._watched(pool), _connection(pool) as connection:
                    answers.append(_exchange(connection, command))
        return answers

    @contextmanager
    def _watched(self, pool: Any) -> Iterator[None]:
        """Where a server fails, look where it is now, for the next call."""
        try:
            yield
            self._hanging.discard(pool)
        except (redis.ConnectionError, redis.TimeoutError, *_ELSEWHERE):
            self._topology.look_again(pool)
            raise

    def _redirected(self, error: Any, command: tuple[Argument, ...]) -> Any:
        """What the server answers to which another one sends for this once, or from now on."""
        with _connection(self._topology.redirected(error)) as connection:
            if not isinstance(error, redis.exceptions.MovedError):
                _exchange(connection, ("ASKING",))
            return _exchange(connection, command)

    def _check(self, pool: Any) -> None:
        if pool in self._hanging:
            raise redis.TimeoutError("it hangs")

    def _tried(
        self,
        tag: str,
        script: Script,
        arguments: Sequence[Argument],
        cut_off: list[Exception],
    ) -> Any:
        """What a script returns, called again where it may succeed at once or elsewhere.

        What ended a call on its way is added to ``cut_off``: the script may have been executed.
        """
        began, until = time.monotonic(), self._until()
        if until is None:
            until = began + _TRIED_SECS
        until = max(until, began + _TRIED_LATE_SECS)
        pool = None
        while True:
            is_sent = False
            try:
                pool = pool or self._topology.pool(tag)
                self._check(pool)
                with _connection(pool) as connection:
                    is_sent = True
                    return _run(connection, tag, script, arguments)
            except redis.exceptions.MovedError as error:
                if time.monotonic() > until:
                    raise
                pool = self._topology.redirected(error)
            except (*_ELSEWHERE, redis.exceptions.AskError):
                # While a slot is moved, no script runs on it: that would see a part of the keys.
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_SECS)
                if pool is not None:
                    self._topology.look_again(pool)
                pool = None
            except redis.ResponseError as error:
                text = str(error)
                named = _NONSENSE.search(text)
                if named or _DEFECT.search(text):
                    key = named[1] if named else f"a key of {tag}"
                    raise self.nonsense(key, text) from None
                raise _meaning(error, was_cut_off=bool(cut_off)) from None
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if pool is None:
                    raise
                if is_sent:
                    cut_off.append(error)
                failed, pool = pool, None
                self._topology.look_again(failed)
                # Where it is refused, nobody is there who could have executed it.
                if _is_refused(error) and self._topology.pool(tag) is failed:
                    raise
                if failed in self._hanging:
                    raise
                if time.monotonic() > until:
                    self._hanging.add(failed)
                    raise

    def first_at_each(self, namespaces: Iterable[Namespace]) -> list[Namespace]:
        """Of these the first at each server, but for the one that has the root; ``StoreError``."""
        found = []
        with self._failures():
            left = set(self._topology.pools())
            left.discard(self._topology.pool(self._tag(None)))
            for namespace in namespaces:
                if not left:
                    break
                pool = self._topology.pool(self._tag(namespace))
                if pool in left:
                    left.discard(pool)
                    found.append(namespace)
        return found

    def listen(self, channel: str) -> Subscription:
        """Be told of what is published, from now on; ``StoreError``, ``ForbiddenError``."""
        with self._failures():
            return Subscription(self._topology, self._tag(None), self.name(channel))

    def look_at_clock(self) -> None:
        """Correct the offset between the two clocks; ``StoreError``."""
        before = self._clock.mono_ms()
        seconds, microseconds = self.call("TIME", waits=True)
        after = self._clock.mono_ms()
        now = int(seconds) * 1000 + int(microseconds) // 1000
        # The instant on the server was between the two, and each of the three was rounded down.
        earliest, latest = now - after - 1, now + 1 - before
        with self._lock:
            if self._offset is None:
                self._offset = (earliest + latest) // 2
            else:
                self._offset = min(max(self._offset, earliest), latest)

    def time_of(self, mono_ms: int) -> int:
        """An instant of this machine's monotonic clock in Redis' time."""
        return mono_ms + self._known_offset()

    def mono_of(self, time_ms: int) -> int:
        """An instant of Redis' time on this machine's monotonic clock."""
        return time_ms - self._known_offset()

    def now(self) -> int:
        """The present instant in Redis' time, as far as it is known here."""
        return self.time_of(self._clock.mono_ms())

    def _known_offset(self) -> int:
        if self._offset is None:
            self.look_at_clock()
        assert self._offset is not None
        return self._offset

    def close(self) -> None:
        """Give up all connections."""
        self._topology.close()


class Subscription:
    """What is published on a channel, as long as the server stays the same.

    All workers of all machines hear of each change. So what came is read together, and the driver
    only connects: it would take longer for a message than what the message is for.
    """

    def __init__(self, topology: Topology, key: str, channel: str) -> None:
        """Subscribe, and wait until that is so; the driver's errors."""
        self._topology = topology
        self._key = key
        self._pool = topology.pool(key)
        named = b"$%d\r\n%s\r\n" % (len(channel.encode()), channel.encode())
        self._head = b"*3\r\n$7\r\nmessage\r\n" + named + b"$"
        confirmed = b"*3\r\n$9\r\nsubscribe\r\n" + named + b":1\r\n"
        self._received = b""
        with _closed_meanwhile():
            self._connection = self._pool.get_connection()
        try:
            with _closed_meanwhile():
                self._connection.send_command("SUBSCRIBE", channel)
            while len(self._received) < len(confirmed):
                if not self._receive(_CONFIRMED_SECS):
                    raise redis.TimeoutError("it does not answer")
                if self._received[:1] == b"-":
                    text = self._received[1:200].decode(errors="replace").strip()
                    if text.startswith("NOPERM"):
                        raise redis.exceptions.NoPermissionError(text)
                    raise redis.ResponseError(text)
        except BaseException:
            self.close()
            raise
        # It begins with what confirms that, and no message is between.
        self._received = self._received[len(confirmed) :]

    def messages(self, timeout: float) -> list[bytes]:
        """The next messages; none where none came in so many seconds. The driver's errors."""
        if self._topology.pool(self._key) is not self._pool:
            raise redis.ConnectionError("another server took over")
        if not self._receive(timeout) and not self._received:
            return []
        found, self._received = published(self._head, self._received)
        return found

    def _receive(self, timeout: float) -> bool:
        with _closed_meanwhile():
            reached = self._connection._sock
            reached.settimeout(timeout)
            try:
                data = reached.recv(_RECEIVED_AT_ONCE)
            except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                return False
        if not data:
            raise redis.ConnectionError("the server closed the connection")
        self._received += data
        return True

    def close(self) -> None:
        """Be told of nothing more."""
        self._connection.disconnect()
        self._pool.release(self._connection)


def published(head: bytes, received: bytes) -> tuple[list[bytes], bytes]:
    """The messages that were received, and what is left: the beginning of another one.

    ``head`` is how each begins, up to its length; ``redis.ConnectionError`` where one does not.
    """
    found, at = [], 0
    while len(received) > at:
        begin = at + len(head)
        if not received.startswith(head, at) and not head.startswith(received[at:begin]):
            raise redis.ConnectionError(f"no message: {received[at : at + 100]!r}")
        end = received.find(b"\r\n", begin)
        if end < 0:
            break
        start = end + 2
        stop = start + int(received[begin:end])
        if len(received) < stop + 2:
            break
        found.append(received[start:stop])
        at = stop + 2
    return found, received[at:]


@contextmanager
def _connection(pool: Any) -> Iterator[Any]:
    """A connection for one thread; it is given up where an answer may be on its way."""
    with _closed_meanwhile():
        connection = pool.get_connection()
    try:
        yield connection
    except redis.ResponseError:
        raise
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _is_refused(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _meaning(error: redis.ResponseError, *, was_cut_off: bool) -> Exception:
    """What a script says with an error, or the error."""
    text = str(error)
    if text.startswith("LIFE"):
        return AnotherLifeError(was_cut_off=was_cut_off)
    if text.startswith("OPEN"):
        return UnopenedError(was_cut_off=was_cut_off)
    if text.startswith("WAIT"):
        return AwaitedError("the machines are giving back what Redis lost")
    if text.startswith("FENCE"):
        return LockLostError()
    return error


def _command(
    connection: Any, tag: str, script: Script, arguments: Sequence[Argument]
) -> tuple[Argument, ...]:
    return "EVALSHA", script.sha, 2, tag, f"{tag}:life", connection.server_run, *arguments


def _run(connection: Any, tag: str, script: Script, arguments: Sequence[Argument]) -> Any:
    command = _command(connection, tag, script, arguments)
    try:
        return _exchange(connection, command)
    except redis.exceptions.NoScriptError:
        _exchange(connection, ("SCRIPT", "LOAD", script.text))
    return _exchange(connection, command)


def _text_of(question: Call | Command) -> str:
    assert isinstance(question, Call)
    return question.script.text


def _portions(places: Iterable[int], questions: Sequence[Call | Command]) -> Iterator[list[int]]:
    """What goes to a server in one round trip each."""
    portion: list[int] = []
    size = entries = 0
    for place in places:
        question = questions[place]
        words = question.words if isinstance(question, Command) else question.arguments
        asks = sum(len(each) for each in words if not isinstance(each, int))
        is_full = len(portion) == _CALLS_AT_ONCE or size + asks > _BYTES_AT_ONCE
        if portion and (is_full or entries + question.most > _ENTRIES_AT_ONCE):
            yield portion
            portion, size, entries = [], 0, 0
        portion.append(place)
        size += asks
        entries += question.most
    if portion:
        yield portion


def _exchange_each(connection: Any, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """What several commands are answered that are sent together, or the server's errors."""
    answers: list[Any] = []
    with _closed_meanwhile():
        connection.send_packed_command([b"".join(map(_packed, commands))])
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except redis.ResponseError as error:
                answers.append(error)
    return answers


def _exchange(connection: Any, command: tuple[Argument, ...]) -> Any:
    with _closed_meanwhile():
        connection.send_packed_command([_packed(command)])
        return connection.read_response()


def _packed(command: Sequence[Argument]) -> bytes:
    """A command as it is sent. The driver takes several times as long for the many of a commit."""
    parts = [b"*%d\r\n" % len(command)]
    for each in command:
        told = each if isinstance(each, bytes) else str(each).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(told), told))
    return b"".join(parts)


@contextmanager
def _closed_meanwhile() -> Iterator[None]:
    """The driver has other words where another thread closes a connection that one reads from."""
    try:
        yield
    except (ValueError, AttributeError) as error:
        raise redis.ConnectionError(f"the connection was closed: {error}") from error
