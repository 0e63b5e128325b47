"""What commands print: aligned columns for people; JSON, YAML or names for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from eureka_http.shown import escaped

FORMS = ("table", "json", "yaml", "name")


class Shown(NamedTuple):
    """An answer in each form that it is printed in, and whether all is as it should be."""

    document: Any
    """What programs read."""

    lines: Iterable[str]
    """What people read."""

    names: Iterable[str] = ()
    """What other commands take: ids, or names of services."""

    good: bool = True

    def printed(self, form: str, *, in_one_line: bool = False) -> Iterator[str]:
        """The lines of it in one of ``FORMS``; ``in_one_line`` for one of many documents."""
        match form:
            case "json":
                yield json.dumps(self.document, indent=None if in_one_line else 2)
            case "yaml":
                import yaml  # the others do without

                told = yaml.safe_dump(self.document, sort_keys=False, allow_unicode=True)
                yield from (["---"] if in_one_line else [])
                yield told.rstrip("\n")
            case "name":
                yield from map(escaped, self.names)
            case _:
                yield from map(escaped, self.lines)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines with aligned columns; an empty cell is a dash. Only the head where there is no row."""
    cells = [tuple(head), *(tuple(spelled(value) for value in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def pairs(told: Iterable[tuple[str, Any]]) -> list[str]:
    """A line for each name and its value."""
    named = [(name, spelled(value)) for name, value in told]
    width = max((len(name) for name, _ in named), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in named]


def spelled(value: Any) -> str:
    """A value in one line: nothing is a dash, an object its names and values."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(spelled(each) for each in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={spelled(each)}" for name, each in value.items())
    # In a table a line is a row.
    return escaped(str(value))


def ago(now_ms: int, at: str | int | None) -> str:
    """How long ago an instant was: RFC 3339, or milliseconds of the epoch."""
    if at is None or at == "" or at == 0:
        return "never"
    at_ms = at if isinstance(at, int) else epoch_ms(at)
    return "?" if at_ms is None else f"{duration(max(0, now_ms - at_ms))} ago"


def duration(ms: float) -> str:
    """A length of time in its two largest units."""
    seconds = int(ms // 1000)
    for name, size, less, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {name}" + (f" {rest} {less}" if rest else "")
    return f"{seconds} s"


def epoch_ms(instant: str) -> int | None:
    """The milliseconds of an instant in RFC 3339; None where it is none."""
    try:
        at = datetime.fromisoformat(instant)
    except ValueError:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
