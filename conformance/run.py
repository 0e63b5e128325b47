"""Runs cases against one server and collects what came of them."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from conformance.case import Case, FailedError, Session, Target, unique
from conformance.documents import sample
from conformance.http import Exchange

# Cases that wait hold a thread each; the long-lived crowd keeps a genuine server from spreading
# evictions over several sweeps, since it evicts at most 15 % of what is registered in one.
WAITING_AT_ONCE = 40
CROWD = 150


class Outcome(enum.Enum):
    """What a run of a case came to."""

    PASSED = "passed"
    FAILED = "failed"
    BEYOND = "not offered"  # a case that no server is required to pass


@dataclass(frozen=True)
class Result:
    """One case's outcome; ``message`` and ``exchange`` say what was expected and what came."""

    case: Case
    outcome: Outcome
    seconds: float
    exchanges: int
    message: str = ""
    exchange: Exchange | None = None
    unsteady: str = ""  # what failed at a first try, where this is the outcome of a second


def run_case(case: Case, target: Target) -> Result:
    """Run one case; an error in the case itself counts as its failure."""
    began = time.monotonic()
    session = Session(target)
    message, exchange = "", None
    try:
        with session.running():
            case.run(session)
    except FailedError as failure:
        message, exchange = str(failure) or "a failure", failure.exchange
    except Exception as error:  # a fault of the suite must not look like a pass
        message = f"the case itself broke: {error!r}"
    outcome = Outcome.PASSED
    if message:
        outcome = Outcome.BEYOND if case.beyond else Outcome.FAILED
    return Result(case, outcome, time.monotonic() - began, session.exchanges, message, exchange)


def failing(results: Iterable[Result]) -> list[Result]:
    """Those that a server is required to pass and that failed."""
    return [result for result in results if result.outcome is Outcome.FAILED]


def told_again(first: Iterable[Result], second: Iterable[Result]) -> list[Result]:
    """The first results with those of a second try in their places, marked as such.

    A case keeps what its first try failed with, so that a second try hides nothing.
    """
    again = {(result.case.name, result.case.column): result for result in second}
    return [
        replace(again[key], unsteady=result.message)
        if result.outcome is Outcome.FAILED
        and (key := (result.case.name, result.case.column)) in again
        else result
        for result in first
    ]


def run_cases(
    cases: Iterable[Case], target: Target, done: Callable[[Result], None]
) -> list[Result]:
    """Run them all, those that wait beside the others; ``done`` is called after each."""
    cases = list(cases)
    crowd = Session(target)
    with crowd.running(), ThreadPoolExecutor(WAITING_AT_ONCE) as waiting:
        if any(case.waits for case in cases):
            app = unique("CROWD")
            for number in range(CROWD):
                lease = {"renewalIntervalInSecs": 30, "durationInSecs": 600}
                crowd.register(sample(app, f"{app}:{number}", leaseInfo=lease))
        futures = {
            case.name: waiting.submit(run_case, case, target) for case in cases if case.waits
        }
        results = []
        for case in cases:
            if not case.waits:
                results.append(run_case(case, target))
                done(results[-1])
        for future in futures.values():
            results.append(future.result())
            done(results[-1])
    order = {id(case): place for place, case in enumerate(cases)}
    return sorted(results, key=lambda result: order[id(result.case)])
