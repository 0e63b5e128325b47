"""The sources of catalogs, as processes; all but the fakes are genuine."""

from __future__ import annotations

import pytest

from catalogs import http
from catalogs.testing import HANG_SECS


def wait_for_sources(patch: pytest.MonkeyPatch) -> None:
    """Have catalogs wait for a source that is slow: the machine may be, and no test is about it."""
    patch.setattr(http, "CONNECT_SECS", HANG_SECS)
    patch.setattr(http, "READ_SECS", HANG_SECS)
