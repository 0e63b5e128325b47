"""Checks of settings and names, and how a long one is shown in a message."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_SECS = 366 * 86_400.0
_SHOWN = 80
_WORD = re.compile(r"[A-Za-z0-9._-]{0,64}\Z")


def in_bounds(name: str, value: float, low: float, high: float) -> None:
    """``ValueError`` if a number is out of bounds, or not a number (NaN)."""
    if not low <= value <= high:
        raise ValueError(f"{name}: from {low:.15g} to {high:.15g}, not {value:g}")


def checked_prefix(prefix: str) -> None:
    """``ValueError`` if a prefix has characters that no name may have."""
    if not _WORD.match(prefix):
        raise ValueError("prefix: letters, digits, dots, dashes and underscores, 64 at most")


def readable(name: str, file: Path | None) -> None:
    """``ValueError`` if a file is set and cannot be read now."""
    if file is None:
        return
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"{name}: {file} cannot be read: {reason}") from None


def shortened(text: str) -> str:
    """A name of any length as it can stand in a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
