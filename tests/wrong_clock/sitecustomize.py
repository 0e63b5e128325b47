"""A fake wall clock for every Python process that finds this folder in its ``PYTHONPATH``.

It is wrong by ``WRONG_CLOCK_SECS``. The monotonic clocks are as ever, as on a machine whose clock
somebody has set.
"""

import os
import time
from collections.abc import Callable

_OFF_SECS = int(os.environ.get("WRONG_CLOCK_SECS", "0"))
_time, _time_ns = time.time, time.time_ns


def _wrong(clock: Callable[[], int | float], off: int) -> Callable[[], int | float]:
    return lambda: clock() + off


time.time = _wrong(_time, _OFF_SECS)  # type: ignore[assignment]
time.time_ns = _wrong(_time_ns, _OFF_SECS * 10**9)  # type: ignore[assignment]
