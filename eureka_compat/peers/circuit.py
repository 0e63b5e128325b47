"""When to try a peer again: a circuit breaker with back-off.

===========  =====================================  ======================================
state        means                                  ends with
===========  =====================================  ======================================
``CLOSED``   the last exchange succeeded            a failure: ``OPEN``
``OPEN``     nothing is sent before ``retry_at``    that instant: ``HALF_OPEN``
``HALF_OPEN``  one exchange may try                 its success: ``CLOSED``; failure: ``OPEN``
===========  =====================================  ======================================

Each failure in a row doubles the wait, from ``first_secs`` to ``longest_secs``. A random part of it
is taken off, so that peers that lost the same server do not all come back at the same instant.
"""

from __future__ import annotations

import random
from enum import Enum, auto


class Circuit(Enum):
    """Whether a peer may be asked."""

    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class Breaker:
    """One peer's circuit. Instants are monotonic seconds that the caller passes in."""

    def __init__(
        self,
        *,
        first_secs: float = 0.1,
        longest_secs: float = 5.0,
        jitter: random.Random | None = None,
    ) -> None:
        """A closed circuit: nothing has been tried yet."""
        self._first_secs = first_secs
        self._longest_secs = longest_secs
        self._jitter = jitter or random.Random()
        self.failures = 0
        """How many exchanges failed in a row."""
        self.retry_at = 0.0
        """Before this instant nothing is sent."""

    def state(self, now: float) -> Circuit:
        """The circuit at an instant."""
        if not self.failures:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.retry_at else Circuit.HALF_OPEN

    def succeeded(self) -> bool:
        """Note that an exchange succeeded; whether that closed an open circuit."""
        was_open, self.failures = bool(self.failures), 0
        return was_open

    def failed(self, now: float) -> bool:
        """Note that an exchange failed; whether that opened a closed circuit."""
        wait = min(self._longest_secs, self._first_secs * 2 ** min(self.failures, 16))
        self.retry_at = now + wait * self._jitter.uniform(0.5, 1.0)
        self.failures += 1
        return self.failures == 1
