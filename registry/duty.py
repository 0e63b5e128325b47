"""What a background thread does again and again, and what becomes of it while a fault lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from registry.errors import StoreError


class Duty:
    """Something to be done again and again, whatever becomes of the thread's other duties.

    A fault that lasts is logged when it begins and when it ends, and between them the duty is tried
    at growing intervals. One that comes and goes counts as one that lasts. A store that does not
    answer is no fault of the duty's.
    """

    def __init__(
        self,
        name: str,
        every_secs: float,
        do: Callable[[], None],
        log: logging.Logger,
        *,
        first_secs: float = 1.0,
        longest_secs: float = 60.0,
    ) -> None:
        """``first_secs`` is the wait after a first fault; each further one doubles it.

        A fault has ended when there was none for twice as long as the longest wait.
        """
        self._name = name
        self._every_secs = every_secs
        self._do = do
        self._log = log
        self._first_secs = first_secs
        self._longest_secs = longest_secs
        self._next = 0.0
        self._wait_secs = 0.0
        self._failed_at = 0.0

    def run(self, now: float) -> bool:
        """Do it, where it is due (monotonic seconds); whether it was done."""
        if now < self._next:
            return False
        try:
            self._do()
        except StoreError as error:
            self._log.debug("the store does not answer, %s comes later: %s", self._name, error)
            return False
        except Exception:
            if not self._wait_secs:
                self._log.exception(
                    "%s failed, and is tried again at growing intervals", self._name
                )
            self._wait_secs = min(self._longest_secs, 2 * self._wait_secs or self._first_secs)
            self._failed_at = now
            self._next = now + self._wait_secs
            return False
        if self._wait_secs and now - self._failed_at >= 2 * self._longest_secs:
            self._log.info("%s goes on", self._name)
            self._wait_secs = 0.0
        self._next = now + self._every_secs
        return True
