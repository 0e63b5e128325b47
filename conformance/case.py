"""What a case is, what it may do, and how it says that a server failed it."""

from __future__ import annotations

import itertools
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from conformance import documents
from conformance.documents import Form, Instance, Listing
from conformance.http import ANSWER_SECS, Connection, Exchange
from conformance.peer import PeerEndpoint
from conformance.spellings import Dress, plain

_T = TypeVar("_T")


@dataclass(frozen=True)
class Target:
    """The server under test and what the run may expect of it.

    ``patience`` is how many seconds a list may lag behind a change, ``lease`` how many seconds long
    the short leases are (longer than the patience), ``sweep`` how many an expired one may wait for
    eviction; ``self_preservation`` is whether the server has it switched on; ``peer`` is the suite
    itself as one of the server's peers, where it is one.
    """

    url: str
    patience: float = 1.0
    lease: int = 2
    sweep: float = 3.0
    self_preservation: bool = False
    peer: PeerEndpoint | None = None


class FailedError(Exception):
    """The server did not do what the case requires: what was expected, and the exchange."""

    def __init__(self, expected: str, exchange: Exchange | None = None) -> None:
        super().__init__(expected)
        self.exchange = exchange


@dataclass(frozen=True)
class Case:
    """One thing that a server does or does not do.

    ``column`` is the wire form that it is about, or ``any``. ``reference`` names the place in the
    genuine server's sources, or the requirements of clients (R numbers, ``requirements.py``).
    ``beyond`` is empty, or says why a genuine server need not pass; such a case is not required.
    A case that ``waits`` passes its time waiting and may run beside others. One that ``spoils``
    leaves a genuine server's lists as some readers cannot take them, so it comes last. One with
    ``peer`` is about a server that has the suite among its peers.
    """

    name: str
    operation: str
    column: str
    reference: str
    run: Callable[[Session], None]
    beyond: str = ""
    waits: bool = False
    self_preservation: bool = False
    spoils: bool = False
    peer: bool = False


@dataclass
class Catalogue:
    """The cases of one subject, filled by its decorator."""

    cases: list[Case] = field(default_factory=list)

    def case(
        self,
        operation: str,
        reference: str,
        *,
        over: Mapping[str, tuple[Any, ...]] | None = None,
        column: str = "any",
        beyond: str = "",
        waits: bool = False,
        self_preservation: bool = False,
        spoils: bool = False,
        peer: bool = False,
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a case of a function, or one for each entry of ``over`` (its name: its arguments).

        A ``Form`` among the arguments is the case's column, unless one is given.
        """

        def add(function: Callable[..., None]) -> Callable[..., None]:
            title = function.__name__.replace("_", " ")
            for label, arguments in (over or {"": ()}).items():
                forms = [a.value for a in arguments if isinstance(a, Form)]
                self.cases.append(
                    Case(
                        f"{title} [{label}]" if label else title,
                        operation,
                        forms[0] if forms and column == "any" else column,
                        reference,
                        _bound(function, arguments),
                        beyond,
                        waits,
                        self_preservation,
                        spoils,
                        peer,
                    )
                )
            return function

        return add


def _bound(function: Callable[..., None], arguments: tuple[Any, ...]) -> Callable[[Session], None]:
    return lambda session: function(session, *arguments)


def forms(*wanted: Form) -> dict[str, tuple[Any, ...]]:
    """``over`` for a case in several forms."""
    return {form.value: (form,) for form in wanted}


# Digits only, so that no change of case touches it; different in each run.
RUN = f"{os.getpid() % 10000:04d}{int(time.time() * 10) % 1_000_000:06d}"
_serial = itertools.count(1)
_serial_lock = threading.Lock()


def unique(prefix: str) -> str:
    """A name that nobody else has, of letters, digits and a dash."""
    with _serial_lock:
        return f"{prefix}-{RUN}{next(_serial):05d}"


def quoted(part: str) -> str:
    return urllib.parse.quote(part, safe=":")


class Session:
    """What a case has in hand: a connection of its own, unique names, and a broom.

    Everything registered through it is cancelled when the case ends.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.exchanges = 0
        self._connection = Connection(target.url, max(ANSWER_SECS, target.patience))
        self._registered: dict[tuple[str, str], None] = {}

    @contextmanager
    def running(self) -> Iterator[Session]:
        try:
            yield self
        finally:
            try:
                for app, instance_id in self._registered:
                    self._connection.send(
                        "DELETE", f"/apps/{quoted(app)}/{quoted(instance_id)}", None, {}
                    )
            except OSError:
                pass  # gone, and the case that found it out has said so
            self._connection.close()

    def close(self) -> None:
        """End it and leave everything registered."""
        self._connection.close()

    @property
    def peer(self) -> PeerEndpoint:
        """The suite's own side as the server's peer."""
        if self.target.peer is None:
            raise FailedError("the suite to be among the server's peers")
        return self.target.peer

    # Requests.

    def send(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        dress: Dress = plain,
    ) -> Exchange:
        self.exchanges += 1
        try:
            return self._connection.send(method, path, body, headers or {}, dress)
        except OSError as error:
            raise FailedError(f"{method} {path}: an answer; there was none: {error!r}") from None

    def get(self, path: str, form: Form = Form.JSON, **headers: str) -> Exchange:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("GET", path, None, {**form.headers, **named})

    def post(
        self, instance: Instance, form: Form = Form.JSON, headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """Send a registration, whatever comes of it."""
        text, own = documents.body(instance, form)
        app = str(instance.get("app") or unique("NOAPP"))
        self.sweep_later(app, instance)
        return self.send("POST", f"/apps/{quoted(app)}", text, {**own, **(headers or {})})

    def sweep_later(self, app: str, instance: Instance) -> None:
        """Cancel this one too when the case ends."""
        if instance.get("hostName") or instance.get("instanceId"):
            self._registered[app, documents.effective_id({"hostName": "", **instance})] = None

    def register(
        self,
        instance: Instance | None = None,
        form: Form = Form.JSON,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Instance:
        """Register what a case needs: the given instance, or a sample with these fields."""
        if instance is None:
            app = unique("CASE")
            instance = documents.sample(app, f"{app.lower()}:one", **fields)
        exchange = self.post(instance, form, headers)
        self.require(exchange.status == 204, "the registration to be accepted with 204", exchange)
        return instance

    # What most cases ask for.

    @staticmethod
    def path(instance: Instance, rest: str = "") -> str:
        return f"/apps/{quoted(instance['app'])}/{quoted(documents.effective_id(instance))}{rest}"

    def instance(self, instance: Instance, form: Form = Form.JSON) -> Instance:
        """The instance as the server shows it alone."""
        exchange = self.get(self.path(instance), form)
        self.require(exchange.status == 200, "200 for a registered instance", exchange)
        return self.read(documents.instance, exchange)

    def listing(self, path: str, form: Form = Form.JSON, **headers: str) -> Listing:
        exchange = self.get(path, form, **headers)
        self.require(exchange.status == 200, f"200 for {path}", exchange)
        return self.read(documents.listing, exchange)

    def read(self, reader: Callable[[str], _T], exchange: Exchange) -> _T:
        try:
            return reader(exchange.body)
        except (documents.MalformedError, KeyError, ValueError, TypeError) as error:
            raise FailedError(f"a document of the protocol: {error!r}", exchange) from None

    # Judgement.

    @staticmethod
    def require(holds: bool, expected: str, exchange: Exchange | None = None) -> None:
        if not holds:
            raise FailedError(expected, exchange)

    def equal(self, got: Any, want: Any, what: str, exchange: Exchange | None = None) -> None:
        self.require(got == want, f"{what}: expected {want!r}, got {got!r}", exchange)

    def status(self, exchange: Exchange, *allowed: int) -> None:
        wanted = " or ".join(map(str, allowed))
        self.require(
            exchange.status in allowed, f"status {wanted}, got {exchange.status}", exchange
        )

    def eventually(self, check: Callable[[], _T], seconds: float | None = None) -> _T:
        """The check's result once it holds, tried again while the server may still lag behind."""
        deadline = time.monotonic() + (self.target.patience if seconds is None else seconds)
        pause = 0.01
        while True:
            try:
                return check()
            except FailedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.25)


def chosen(
    cases: Iterable[Case], *, self_preservation: bool, only: str = "", peer: bool = False
) -> list[Case]:
    """The cases that fit a server's setting and whose name or operation holds a text.

    With ``peer`` those too that need the suite among the server's peers.
    """
    return [
        c
        for c in cases
        if c.self_preservation == self_preservation
        and (peer or not c.peer)
        and only.lower() in f"{c.operation}: {c.name} [{c.column}]".lower()
    ]
