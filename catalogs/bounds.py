"""What settings and names may be, and how they are shown where they are not."""

from __future__ import annotations

LONGEST_SECS = 366 * 86_400.0
_SHOWN = 80


def in_bounds(name: str, value: float, low: float, high: float) -> None:
    """``ValueError`` where a number is outside its bounds, or none at all."""
    if not low <= value <= high:
        raise ValueError(f"{name}: from {low:.15g} to {high:.15g}, not {value:g}")


def shortened(text: str) -> str:
    """A name of any length as it can stand in a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
