"""What goes on in the background while a fault lasts: the rest, and a log that can be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eureka_http.worker import EventLoopWorker
from eureka_server.access import Access, AccessSettings
from registry.duty import Duty
from registry.errors import StoreError
from registry.recording import Recorder
from registry.registry import Registry
from registry.settings import RegistrySettings
from registry.stores.memory import MemoryStore
from registry.stores.memory_history import MemoryHistory
from registry.testing import ManualClock

LOG = logging.getLogger("registry")


class Turns(threading.Event):
    """Lets a thread's loop have so many turns, without waiting between them."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._left = turns

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left < 0:
            self.set()
        return self.is_set()


class Tried:
    """Fails each time, or each time but every so often; for no reason that was foreseen."""

    def __init__(self, succeeds_every: int = 0) -> None:
        self.count = 0
        self._succeeds_every = succeeds_every

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        if not self._succeeds_every or self.count % self._succeeds_every:
            raise IndexError("a defect")


def logged_faults(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.exc_info is not None for record in caplog.records)


def test_a_duty_that_fails_is_tried_at_growing_intervals_and_says_when_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    faults: list[Exception | None] = []

    def do() -> None:
        fault = ValueError("a fault") if len(faults) < 12 else None
        faults.append(fault)
        if fault is not None:
            raise fault

    duty = Duty("the work", 5.0, do, LOG)
    done = [now for now in range(1000) if duty.run(float(now))]

    assert len(faults) - 12 == len(done)
    assert done[0] > 12 * 5
    assert [later - earlier for earlier, later in pairwise(done)] == [5] * (len(done) - 1)
    said = [each.getMessage() for each in caplog.records]
    assert said == ["the work failed, and is tried again at growing intervals", "the work goes on"]


@pytest.mark.parametrize("succeeds_every", [2, 3])
def test_a_fault_that_comes_and_goes_counts_as_one_that_lasts(
    succeeds_every: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tried = Tried(succeeds_every)
    duty = Duty("the work", 0.0, tried, LOG)
    for tenth in range(100_000):
        duty.run(tenth / 10)
    assert tried.count < 1_000
    assert len(caplog.records) == 1


def test_a_store_that_does_not_answer_is_asked_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([False, False, True])

    def do() -> None:
        if not next(answers):
            raise StoreError("away")

    duty = Duty("the work", 5.0, do, LOG)
    assert [duty.run(float(now)) for now in range(4)] == [False, False, True, False]
    assert caplog.records == []


def recorder() -> tuple[Recorder, Registry]:
    clock = ManualClock()
    recorder = Recorder(MemoryHistory(1 << 20), clock, keep_ms=10**9, settled_secs=0)
    return recorder, Registry(MemoryStore(), clock, RegistrySettings(), recorder)


def history_loop(fails: str, tried: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    made, registry = recorder()
    patch.setattr(made, fails, tried)
    patch.setattr(made, "_stopping", Turns(1_000))
    made._run(registry)


def accounts_loop(tried: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    access = Access(AccessSettings())
    patch.setattr(access, "refresh", tried)
    patch.setattr(access, "_stopping", Turns(1_000))
    access._follow()


LOOPS: dict[str, Callable[[Callable[..., Any], pytest.MonkeyPatch], None]] = {
    "history: writing": lambda tried, patch: history_loop("flush", tried, patch),
    "history: forgetting": lambda tried, patch: history_loop("prune", tried, patch),
    "history: making up": lambda tried, patch: history_loop("_make_up", tried, patch),
    "accounts": accounts_loop,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_lasting_defect_is_logged_once_and_does_not_end_the_thread(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each background loop has a thousand turns in a moment, and its work fails in each."""
    tried = Tried()
    LOOPS[name](tried, monkeypatch)
    assert tried.count >= 1
    assert logged_faults(caplog) == 1
    assert len(caplog.records) == 1


def test_a_lasting_defect_of_the_tick_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, tried = 0.0, Tried()
    loop = SimpleNamespace(call_later=lambda *_: None, time=lambda: now)
    hooks = SimpleNamespace(tick=tried)
    worker = SimpleNamespace(_streams=1, _tick_logged_at=0.0, loop=loop, hooks=hooks, log=LOG)
    worker._tick = lambda: None
    for turn in range(6_000):
        now = turn / 50
        EventLoopWorker._tick(cast("EventLoopWorker", worker))
    assert tried.count == 6_000
    assert logged_faults(caplog) == 2


def test_what_the_history_lacks_after_a_defect_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, registry = recorder()
    made._lacks_some = False
    made_up: list[Registry] = []
    monkeypatch.setattr(made, "_make_up", made_up.append)
    monkeypatch.setattr(made, "flush", Tried())
    monkeypatch.setattr(made, "_stopping", Turns(3))
    made._run(registry)
    assert made_up == [registry]
