"""Real clients of every kind at one server, side by side: what each does, and what each sees.

Every client has gates of its own, one to the server under test and one to the second server (or to
the same, where no second is given), so that its requests are counted and its servers taken away
without touching the others'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from conformance.case import Case, FailedError, Session, Target, unique
from conformance.documents import sample
from conformance.gate import Gate, Gatehouse, Passed
from conformance.programs import LEASE_SECS, Kind, Program
from conformance.run import Result, run_case

# How long what must come is waited for; a machine may be busy with all the others.
START_SECS = 180
SEES_SECS = 60
AWAY_SECS = 3
MOVES_SECS = 120


@dataclass
class Member:
    """One client of the fleet with its two ways to a server."""

    kind: Kind
    app: str
    id: str
    first: Gate
    second: Gate
    program: Program

    def passed(self) -> list[Passed]:
        return [*self.first.passed, *self.second.passed]


class Probe:
    """Two instances of a service that the suite serves itself, for clients to find and call."""

    def __init__(self) -> None:
        self.app = unique("probe")
        self.ids = [f"{self.app}:one", f"{self.app}:two"]
        self._servers = [self._serve(name) for name in self.ids]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def register(self, session: Session) -> None:
        for name, server in zip(self.ids, self._servers, strict=True):
            session.register(
                sample(
                    self.app,
                    name,
                    hostName="localhost",
                    ipAddr="127.0.0.1",
                    port={"$": server.server_port, "@enabled": "true"},
                    leaseInfo={"renewalIntervalInSecs": 30, "durationInSecs": 3600},
                )
            )

    def path(self, number: int, rest: str = "") -> str:
        return f"/apps/{self.app}/{self.ids[number]}{rest}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Fleet:
    """Starts the clients, puts them through their operations, and stops them.

    ``second`` is the URL of another server, between which the clients move.
    """

    def __init__(
        self, target: Target, second: str | None, kinds: Sequence[Kind], folder: Path
    ) -> None:
        self._target = target
        self._kinds = kinds
        self._folder = folder
        self._house = Gatehouse()
        self._session = Session(target)
        self._other = Session(Target(second or target.url, target.patience))
        self._mixed = second is not None
        self._probe = Probe()
        self.members: list[Member] = []

    def __enter__(self) -> Fleet:
        self._house.__enter__()
        # Before the clients: one that finds the registry empty fetches everything again.
        self._probe.register(self._session)
        if self._mixed:
            self._probe.register(self._other)
        for kind in self._kinds:
            kind.command()  # builds it: where that takes time, no client is to be older than others
        for kind in self._kinds:
            app = unique(kind.name.replace(".", "-"))
            first, second = (
                self._house.gate(self._target.url),
                self._house.gate(self._other.target.url),
            )
            second.shut()  # nobody's way before the failover
            bases = [first.url, second.url]
            program = Program(kind, bases, app, f"{app}:one", self._folder)
            self.members.append(Member(kind, app, f"{app}:one", first, second, program))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self.members:
            member.program.end()
        self._probe.close()
        for session in (self._session, self._other):
            with session.running():
                pass
        self._house.__exit__(kind, error, trace)

    def run(self, done: Callable[[Result], None]) -> list[Result]:
        """Every operation by every client; each operation by all of them at once."""
        results: list[Result] = []
        for operation, reference, step in self._operations():
            cases = [
                Case(
                    f"{operation}: {member.kind.title}",
                    operation,
                    member.kind.name,
                    reference,
                    partial(self._checked, member, step),
                    beyond=member.kind.defects.get(operation, ""),
                )
                for member in self.members
            ]
            if operation == "discover":
                self._touch()
            if operation == "follow changes":
                self._change_the_probe()
            with ThreadPoolExecutor(max(1, len(cases))) as together:
                for result in together.map(lambda c: run_case(c, self._target), cases):
                    results.append(result)
                    done(result)
        return results

    def _operations(self) -> list[tuple[str, str, Callable[[Session, Member], None]]]:
        return [
            ("start", "the program registers itself, UP", self._start),
            ("discover", "it sees itself and every other client", self._discover),
            ("balance", "its load balancer calls all instances of a service", self._balance),
            ("follow changes", "drained, back, new and gone instances", self._follow),
            ("keep the lease", "heartbeats; the same lease all the time", self._keep),
            ("one full fetch", "deltas with right hash codes; R21 to R23", self._full_fetches),
            ("outage", "its server is away for a while", self._outage),
            ("restart", "its server is back and has forgotten it; R4, R33", self._restart),
            ("failover", "its server goes, another takes over, and back; R37", self._failover),
            ("cancel", "it stops and is gone at once; R5", self._cancel),
        ]

    @staticmethod
    def _checked(member: Member, step: Callable[[Session, Member], None], session: Session) -> None:
        try:
            step(session, member)
        except ChildProcessError as error:
            raise FailedError(str(error)) from None

    # Operations.

    def _start(self, s: Session, member: Member) -> None:
        def check() -> None:
            s.require(member.program.is_ready(), "the program to answer")
            self._listed(s, member)

        try:
            s.eventually(check, START_SECS)
        except FailedError as failure:
            log = member.program.log()[-1500:]
            raise FailedError(f"{failure}; its log ends: {log}", failure.exchange) from None

    def _listed(self, s: Session, member: Member) -> int:
        """The registration's timestamp of a client that is listed and UP."""
        found = s.listing("/apps").application(member.app)
        s.require(bool(found), f"{member.id} to be listed")
        s.equal([(i["instanceId"], i["status"]) for i in found], [(member.id, "UP")], "the list")
        return int(found[0]["leaseInfo"]["registrationTimestamp"])

    def _discover(self, s: Session, member: Member) -> None:
        for other in self.members:
            if other is member or other.program.get("/whoami")[0] == 200:
                s.eventually(partial(self._sees, s, member, other.app, [other.id]), SEES_SECS)

    def _balance(self, s: Session, member: Member) -> None:
        wanted = set(self._probe.ids)
        s.eventually(
            lambda: s.equal(member.program.chosen(self._probe.app), wanted, "who was called"),
            SEES_SECS,
        )

    def _touch(self) -> None:
        """Change something, now that all are there.

        A genuine server that makes a list while somebody registers may keep it without them until
        the next change (a load of its cache that is under way is not undone by an invalidation).
        """
        self._session.send("PUT", self._probe.path(0, "/metadata?touched=yes"))

    def _change_the_probe(self) -> None:
        """Change the probe while the clients look on; what each must see follows from the last."""
        self._late = unique("late")
        late = sample(self._late, f"{self._late}:one", hostName="localhost")
        drained, back = "/status?value=OUT_OF_SERVICE", "/status?value=UP"
        put, delete = "PUT", "DELETE"
        session = self._session
        self._changes: list[tuple[str, Callable[[], object], str, list[str]]] = [
            (
                "drained",
                lambda: session.send(put, self._probe.path(1, drained)),
                self._probe.app,
                self._probe.ids[:1],
            ),
            (
                "back again",
                lambda: session.send(delete, self._probe.path(1, back)),
                self._probe.app,
                self._probe.ids,
            ),
            ("new", lambda: session.register(late), self._late, [late["instanceId"]]),
            ("gone", lambda: session.send(delete, session.path(late)), self._late, []),
        ]
        self._turn = threading.Barrier(max(1, len(self.members)), timeout=2 * SEES_SECS)

    def _follow(self, s: Session, member: Member) -> None:
        failure: FailedError | None = None
        for what, change, app, wanted in self._changes:
            if self._turn.wait() == 0:
                change()
            self._turn.wait()
            try:
                s.eventually(partial(self._sees, s, member, app, wanted, what), SEES_SECS)
            except FailedError as found:
                failure = failure or found  # the others wait for this one at the next turn
        if failure:
            raise failure

    def _keep(self, s: Session, member: Member) -> None:
        registered = self._listed(s, member)
        began = time.monotonic()
        while time.monotonic() < began + LEASE_SECS + 2:
            time.sleep(0.5)
            s.equal(self._listed(s, member), registered, "registrationTimestamp")
        beats = [p for p in member.passed() if p.is_heartbeat and p.at > began]
        # A machine that does all of this may stand still for twenty of the seconds.
        s.require(len(beats) >= LEASE_SECS / 3, f"a heartbeat each second; there were {len(beats)}")

    def _full_fetches(self, s: Session, member: Member) -> None:
        fetches = [p for p in member.passed() if p.is_full_fetch]
        s.equal(len(fetches), 1, "full fetches since it started")

    def _outage(self, s: Session, member: Member) -> None:
        self._listed(s, member)
        member.first.shut()
        time.sleep(AWAY_SECS)
        self._listed(s, member)
        opened = time.monotonic()
        member.first.open()
        self._renews(s, member, since=opened)
        self._listed(s, member)

    def _restart(self, s: Session, member: Member) -> None:
        self._listed(s, member)
        member.first.shut()
        s.status(s.send("DELETE", f"/apps/{member.app}/{member.id}"), 200)
        time.sleep(1)
        opened = time.monotonic()
        member.first.open()
        s.eventually(lambda: self._listed(s, member), MOVES_SECS)
        self._renews(s, member, since=opened)

    def _failover(self, s: Session, member: Member) -> None:
        try:
            self._moves(s, member, member.first, member.second, self._other)
            self._moves(s, member, member.second, member.first, self._session)
        finally:
            for gate in (member.first, member.second):
                gate.shut()
                gate.open()

    def _moves(self, s: Session, member: Member, left: Gate, to: Gate, at: Session) -> None:
        """One server goes and the client finds the other, with what it knows kept."""
        to.shut()
        to.open()
        left.shut()
        since = time.monotonic()
        there = Session(at.target)
        try:
            s.eventually(partial(self._listed, there, member), MOVES_SECS)
            s.eventually(partial(self._beats, s, to, since), MOVES_SECS)
        finally:
            there.close()
        s.eventually(partial(self._sees, s, member, self._probe.app, self._probe.ids), SEES_SECS)

    def _cancel(self, s: Session, member: Member) -> None:
        member.program.stop()
        # It says goodbye to the server that it last used, whichever of the two that is.
        ways = ((member.first, self._session), (member.second, self._other))
        told = [at.target for gate, at in ways if any(p.method == "DELETE" for p in gate.passed)]
        s.require(bool(told), "a DELETE to one of its servers")
        for target in told:
            there = Session(target)
            try:
                there.eventually(partial(self._gone, there, member), SEES_SECS)
            finally:
                there.close()

    @staticmethod
    def _gone(s: Session, member: Member) -> None:
        s.status(s.get(f"/apps/{member.app}"), 404)

    @staticmethod
    def _sees(s: Session, member: Member, app: str, wanted: list[str], once: str = "") -> None:
        what = f"what it sees of {app}" + (f" once {once}" if once else "")
        s.equal(member.program.instances(app), wanted, what)

    @staticmethod
    def _beats(s: Session, gate: Gate, since: float) -> None:
        beats = any(p.is_heartbeat and p.at > since for p in gate.passed)
        s.require(beats, f"heartbeats at {gate.url}")

    @staticmethod
    def _renews(s: Session, member: Member, since: float) -> None:
        s.eventually(
            lambda: s.require(
                any(p.is_heartbeat and p.at > since for p in member.passed()), "heartbeats again"
            ),
            SEES_SECS,
        )
