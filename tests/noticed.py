"""What clients notice while the servers behind them are stopped, started and exchanged.

How it is judged that no client noticed:

* **Views.** All clients are instances of one service. Each is asked five times a second which of
  them it would use. A client fetches once a second, so each state that it had is seen. Every one
  must be all of them.
* **Calls.** Each client calls one that its own load balancer chooses. Every call must succeed.
* **Answers.** The servers' access logs have every answer that a client got. No heartbeat may be
  refused and nobody may register again: both would mean that a server had lost somebody. A server
  that is not ready yet may answer 503. Then, as where a connection fails, the client goes to the
  next one of its list, which is the retry of its own.
* **Logs.** What a client logs must be of such retries, or of a time limit of its own: renewing each
  second, Netflix's client gives an exchange no longer than that.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from conformance.programs import Kind, Program
from tests.servers import wait_until

SERVICE = "shop"
SPRINGS = ("spring-hoxton", "spring-2025.0-resttemplate", "spring-2025.1")
# How a time limit of a client's own shows: Netflix's client gives up an exchange after a second.
# That tells of this machine, and not of the servers.
SLOW = re.compile(
    r"timed out|Timeout(Exception|Error)|(httpx\.\w+|Client\.)Timeout\b|deadline exceeded"
    r"|Interrupted(IO)?Exception|TIMEDOUT"
    # Its next exchange, begun while the one that it gave up is still on its way out.
    r"|another thread (is updating it already|has advanced the update generation)"
    r"|Cannot acquire update lock|task supervisor rejected the task"
)
# What clients log where a server is away and they go to the next one.
_RETRY = re.compile(
    r"RetryableEurekaHttpClient\b.*Request execution fail"
    r"|HttpClientConnect\b.*The connection observed an error"
    r"|is down, use next url to try"
    r"|Problem making eureka request Error: "
    r"|(Error sending heartbeat|Could not complete|Couldn't get apps).* error: .*"
    r"(connection refused|connection reset|EOF)"
    # Reactor's word for an answer that came to nothing after its asker had gone on.
    r"|default onErrorDropped"
)
_ANSWER = re.compile(r'"([A-Z]+) (\S+) HTTP/1\.[01]" (\d{3})')


class Asked(NamedTuple):
    """A request that a server answered."""

    method: str
    path: str
    status: int


def answered(log: Path) -> list[Asked]:
    """Each request that a server answered, as its access log has it."""
    return [
        Asked(method, unquote(path.partition("?")[0]), int(status))
        for method, path, status in _ANSWER.findall(log.read_text(errors="replace"))
    ]


def start_clients(
    stack: ExitStack, kinds: Sequence[Kind], lists: Sequence[Sequence[str]], folder: Path
) -> list[Program]:
    """One client of each kind with its list of URLs; each sees all of them then."""
    for kind in kinds:
        kind.command()  # builds it, where that has not been done
    programs = []
    for kind, bases in zip(kinds, lists, strict=True):
        program = Program(kind, bases, SERVICE, f"{SERVICE}:{kind.name}", folder)
        stack.callback(program.end)
        programs.append(program)
    for program in programs:
        wait_until(program.is_ready, f"{program.id} to answer")
    ids = sorted(program.id for program in programs)
    for program in programs:
        wait_until(lambda p=program: p.instances(SERVICE) == ids, f"{program.id} to see all")
    return programs


class Seen(NamedTuple):
    """What one client saw or was told that it should not."""

    step: str
    client: str
    what: str


class Watch:
    """Looks at each client's own view, and has it call the others, all the time."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.step = ""
        self.views: list[Seen] = []
        self.calls: list[Seen] = []
        self.looks: Counter[str] = Counter()
        self._wanted = sorted(program.id for program in programs)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._look, args=(program,), daemon=True)
            for program in programs
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, program: Program) -> None:
        turn = 0
        while not self._stopping.wait(0.2):
            step = self.step
            status, body = program.get(f"/instances/{SERVICE}", timeout=60)
            view = sorted(re.findall(r'"([^"]+)"', body)) if status == 200 else [f"({status})"]
            if view != self._wanted:
                missing = sorted(set(self._wanted) - set(view))
                told = f"lacks {missing}" if missing else f"has {view}"
                self.views.append(Seen(step, program.id, told))
            if turn % 5 == 0:
                status, body = program.get(f"/choose/{SERVICE}", timeout=60)
                is_fine = (status, body in self._wanted) == (200, True)
                if not is_fine and not SLOW.search(body):
                    self.calls.append(Seen(step, program.id, f"{status} {body[:200]}"))
            turn += 1
            self.looks[program.id] += 1

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def refused(answers: Counter[Asked]) -> Counter[Asked]:
    """What clients were answered that is beyond the retries of their own."""
    of_service = re.compile(rf"/eureka/apps/{SERVICE}(/|$)", re.IGNORECASE)
    of_all = re.compile(r"/eureka/apps(/|/delta)?")

    def is_fine(asked: Asked) -> bool:
        if of_service.match(asked.path) and asked.method != "GET":
            return asked.method == "PUT" and asked.status in (200, 503)
        return not of_all.fullmatch(asked.path) or asked.status in (200, 503)

    return Counter({asked: count for asked, count in answers.items() if not is_fine(asked)})


def entries(log: str) -> list[str]:
    """Each entry of a client's log that tells of trouble, with the lines that belong to it."""
    trouble = r"\b(WARN|WARNING|ERROR)\b|^Problem |^Error|^\d{4}/\d\d/\d\d "
    begins = [match.start() for match in re.finditer(rf"^.*?({trouble})", log, re.MULTILINE)]
    return [log[at:end] for at, end in pairwise([*begins, len(log)])]


def beyond_retries(found: Sequence[str]) -> list[str]:
    """The entries that tell of more than retries, and of more than a client's own time limit.

    Netflix's client says of an exchange that it was unable to do it, after what it says of each
    attempt that it cut off or gave up waiting for; the next one follows in its time.
    """
    return [
        entry
        for at, entry in enumerate(found)
        if not _RETRY.search(entry)
        and not SLOW.search(entry)
        and not ("was unable to" in entry and any(map(SLOW.search, found[max(0, at - 4) : at])))
    ]
