"""What the workers count together: no total goes backwards, whoever dies and whoever is asked."""

from __future__ import annotations

import doctest
import os
import signal
from functools import partial
from pathlib import Path

import pytest

import registry.figures
from eureka_http.counting import BOUNDS_SECS, SAMPLED, Requests, Told
from registry import EVENTS, Figures, Section
from registry.figures import EVICTED, SAMPLE_SECS, SAMPLES, opened

HAS = Section("has", 3, is_gauge=True)
BOTH = (EVENTS, HAS)


def test_the_example_that_opens_the_module_holds(tmp_path: Path) -> None:
    found = doctest.testmod(registry.figures, extraglobs={"folder": tmp_path})
    assert found.attempted > 0
    assert found.failed == 0


def test_alone_a_worker_counts_for_itself() -> None:
    figures = Figures(BOTH)
    figures.numbers(EVENTS)[EVICTED] += 3
    assert figures.totals(EVENTS)[EVICTED] == 3
    assert figures.workers() == 1
    figures.close()


def test_a_killed_worker_counts_on_and_what_it_had_does_not(tmp_path: Path) -> None:
    path = tmp_path / "figures"
    staying = Figures(BOTH, path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # a worker of its own, that is killed while it waits
        figures = Figures(BOTH, path)
        figures.numbers(EVENTS)[EVICTED] += 7
        figures.numbers(HAS)[0] = 5
        figures.publish()
        os.write(writing, b"x")
        signal.pause()
    assert os.read(reading, 1) == b"x"
    assert (staying.totals(EVENTS)[EVICTED], staying.totals(HAS)[0]) == (7, 5)
    assert staying.workers() == 2

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert (staying.totals(EVENTS)[EVICTED], staying.totals(HAS)[0]) == (7, 0)
    assert staying.workers() == 1
    following = Figures(BOTH, path)
    assert following.number == 1
    following.numbers(EVENTS)[EVICTED] += 1
    assert (following.totals(EVENTS)[EVICTED], staying.totals(EVENTS)[EVICTED]) == (
        8,
        8,
    )
    following.close()
    staying.close()


def test_whichever_worker_is_asked_next_tells_of_no_less(tmp_path: Path) -> None:
    one, other = (Figures(BOTH, tmp_path / "figures") for _ in "ab")
    told = 0
    for asked in (one, other) * 5:
        one.numbers(EVENTS)[EVICTED] += 1
        found = asked.totals(EVENTS)[EVICTED]
        assert found >= told
        told = found
    one.close()
    other.close()


def test_counts_go_on_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        figures = Figures(BOTH, tmp_path / "figures")
        figures.numbers(EVENTS)[EVICTED] += 1
        assert figures.totals(EVENTS)[EVICTED] == expected
        figures.close()


def test_a_file_of_another_version_is_begun_anew_and_left_alone_while_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "figures"
    older = Figures([EVENTS], path)
    older.numbers(EVENTS)[EVICTED] = 9
    newer = opened(BOTH, path)
    assert "in use by another version" in caplog.text
    assert (newer.totals(EVENTS)[EVICTED], newer.workers()) == (0, 1)
    newer.close()
    assert older.totals(EVENTS)[EVICTED] == 9
    older.close()

    newer = Figures(BOTH, path)
    assert newer.totals(EVENTS)[EVICTED] == 0
    newer.close()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 5000])
def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "figures"
    path.write_bytes(content)
    figures = Figures(BOTH, path)
    assert figures.totals(EVENTS) == [0] * EVENTS.size
    assert figures.samples(10_000, 0) == []
    figures.close()


# Samples


def test_each_instant_has_one_sample_whoever_takes_it(tmp_path: Path) -> None:
    one, other = (Figures(BOTH, tmp_path / "figures") for _ in "ab")
    one.sample(SAMPLE_SECS * 10 + 1, lambda: [1, 2])
    other.sample(SAMPLE_SECS * 10 + 2, lambda: [3, 4])
    other.sample(SAMPLE_SECS * 11, lambda: [5, 6])
    rows = one.samples(SAMPLE_SECS * 12, 0)
    assert [row[:3] for row in rows] == [[SAMPLE_SECS * 10, 1, 2], [SAMPLE_SECS * 11, 5, 6]]
    assert one.samples(SAMPLE_SECS * 12, SAMPLE_SECS * 10 + 1) == rows[1:]
    one.close()
    other.close()


def test_the_oldest_samples_give_way() -> None:
    figures = Figures()
    for instant in range(1, SAMPLES + 11):
        figures.sample(instant * SAMPLE_SECS, partial(list, [instant]))
    rows = figures.samples((SAMPLES + 10) * SAMPLE_SECS, 0)
    assert [row[1] for row in rows] == list(range(11, SAMPLES + 11))
    figures.close()


# Requests


def test_requests_are_told_as_they_were_counted() -> None:
    requests = Requests(["one", "other"])
    requests.note("other", 200, 0.0003, 10)
    requests.note("other", 418, 2.0, 5)
    requests.note("other", 404, None)
    requests.took(requests.place("other"), 0.00001)
    (told,) = Told.of(requests.routes, requests.numbers)
    assert told.route == "other"
    assert told.statuses() == {200: 1, 404: 1, 0: 1}
    assert told.bytes == 15
    assert told.seconds == pytest.approx(2.0003 + 0.00001 * SAMPLED)
    buckets = dict(told.buckets())
    assert list(buckets) == [*BOUNDS_SECS, float("inf")]
    assert buckets[0.00001] == SAMPLED
    assert buckets[0.00025] == SAMPLED
    assert buckets[0.0005] == SAMPLED + 1
    assert buckets[float("inf")] == SAMPLED + 2
