"""Requests by route and status, what was sent, and how long answers took; in plain numbers.

Whoever answers counts. For most that is ``note``. Where an answer takes microseconds, ``note`` is
too much: there one item of the list is increased (``place``), and the clock is looked at for one
request in ``SAMPLED`` alone, which then counts for all of them (``took``): for that whose number
has none of the bits of ``UNMEASURED``.

The numbers are one list of the application's, so that it can add up those of several processes;
``Requests`` tells what stands where.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

STATUSES = (
    *(200, 201, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409),
    *(410, 411, 413, 415, 429, 431, 500, 501, 503),
)
"""The statuses that are counted one by one; the rest are counted together, as 0."""

BOUNDS_SECS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
"""The upper bounds of the histogram of durations."""

SAMPLED = 64
"""Of so many answers that come from a lane one is measured. A power of two."""
UNMEASURED = SAMPLED - 1

# By status: where it is counted, beside the others of its route.
_PLACES = [len(STATUSES)] * 1000
for _place, _status in enumerate(STATUSES):
    _PLACES[_status] = _place

_BYTES = len(STATUSES) + 1
_NANOSECONDS = _BYTES + 1
_BUCKETS = _NANOSECONDS + 1
_WIDTH = _BUCKETS + len(BOUNDS_SECS) + 1


class Requests:
    """The requests of one process, by the routes of its application."""

    def __init__(self, routes: Sequence[str], numbers: list[int] | None = None) -> None:
        """Count in ``numbers``, which must have as many as ``size`` says for these routes."""
        self.routes = tuple(routes)
        self.numbers = [0] * self.size(routes) if numbers is None else numbers
        self._first = {route: place * _WIDTH for place, route in enumerate(routes)}

    @staticmethod
    def size(routes: Sequence[str]) -> int:
        """How many numbers the requests of these routes take."""
        return len(routes) * _WIDTH

    def place(self, route: str) -> int:
        """Where a route is: ``numbers[place]`` counts its answers with 200."""
        return self._first[route]

    def bytes_place(self, route: str) -> int:
        """Which number counts the bytes of a route's bodies."""
        return self._first[route] + _BYTES

    def count(self, place: int, status: int) -> None:
        """Count an answer of the route that is there."""
        self.numbers[place + _PLACES[status]] += 1

    def note(
        self, route: str, status: int, secs: float | None, length: int = 0, times: int = 1
    ) -> None:
        """Count a request that was answered, and how long that took where it was measured.

        ``times``: so many that were answered together, each in this time and with this length.
        """
        place, numbers = self._first[route], self.numbers
        numbers[place + _PLACES[status]] += times
        numbers[place + _BYTES] += length * times
        if secs is not None:
            self.took(place, secs, times)

    def took(self, place: int, secs: float, weight: int = SAMPLED) -> None:
        """Count how long an answer took, for as many of the route as ``weight`` says."""
        numbers = self.numbers
        numbers[place + _NANOSECONDS] += int(secs * 1e9) * weight
        numbers[place + _BUCKETS + bisect_left(BOUNDS_SECS, secs)] += weight


class Told:
    """What was counted of one route, by one process or by several."""

    def __init__(self, route: str, numbers: Sequence[int]) -> None:
        self.route = route
        self._numbers = numbers

    @staticmethod
    def of(routes: Sequence[str], numbers: Sequence[int]) -> Iterator[Told]:
        """All routes of which something was counted."""
        for place, route in enumerate(routes):
            own = numbers[place * _WIDTH : (place + 1) * _WIDTH]
            if any(own):
                yield Told(route, own)

    def statuses(self) -> dict[int, int]:
        """How many answers had each status; 0 stands for all others."""
        counts = zip((*STATUSES, 0), self._numbers[:_BYTES], strict=True)
        return {status: count for status, count in counts if count}

    @property
    def bytes(self) -> int:
        """How many bytes of bodies were sent."""
        return self._numbers[_BYTES]

    @property
    def seconds(self) -> float:
        """How long all answers took together."""
        return self._numbers[_NANOSECONDS] / 1e9

    def buckets(self) -> list[tuple[float, int]]:
        """How many answers took no longer than each bound; the last is infinite."""
        found, total = [], 0
        bounds = (*BOUNDS_SECS, float("inf"))
        for bound, count in zip(bounds, self._numbers[_BUCKETS:], strict=True):
            total += count
            found.append((bound, total))
        return found
