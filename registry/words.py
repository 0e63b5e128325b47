"""Counts, instants and spans of time, as sentences for people have them."""

from __future__ import annotations

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def counted(count: int, what: str) -> str:
    """So many of something: ``1 renewal``, ``2 renewals``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def instant(epoch_ms: int) -> str:
    """An instant of the wall clock, to the second, in UTC."""
    return datetime.fromtimestamp(epoch_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(milliseconds: int) -> str:
    """How long something takes, in two units at most; what is negative counts as nothing."""
    secs = max(0, milliseconds) // 1000
    if secs < 10:
        return f"{max(0, milliseconds) / 1000:.1f}".removesuffix(".0") + " s"
    if secs < 2 * _MINUTE:
        return f"{secs} s"
    if secs < 2 * _HOUR:
        return _in_two(secs, _MINUTE, "min", 1, "s")
    if secs < 2 * _DAY:
        return _in_two(secs, _HOUR, "h", _MINUTE, "min")
    return _in_two(secs, _DAY, "d", _HOUR, "h")


def _in_two(secs: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = secs % large // small
    return f"{secs // large} {large_name}" + (f" {rest} {small_name}" if rest else "")


def who(account: str, address: str, client: str = "") -> str:
    """Who asked, as far as that is known, and with what."""
    told = account or "somebody"
    if address:
        told += f" at {address}"
    return f"{told} ({client})" if client else told
