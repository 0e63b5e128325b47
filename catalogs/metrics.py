"""The catalogs' reports as metrics, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catalogs.runner import Report


def _silence(report: Report, now_ms: int) -> float:
    if not report.last_success_ms:
        return float("nan")
    return max(0.0, (now_ms - report.last_success_ms) / 1000)


_FIGURES: tuple[tuple[str, str, str, Callable[[Report, int], float]], ...] = (
    ("entries", "gauge", "Entries that the source has.", lambda r, now: r.entries),
    (
        "shadowed",
        "gauge",
        "Entries not listed because another source owns the instance.",
        lambda r, now: r.shadowed,
    ),
    ("stale", "gauge", "1 while its entries are marked as stale.", lambda r, now: r.stale),
    (
        "problems",
        "gauge",
        "Problems that the catalog reports about its source.",
        lambda r, now: len(r.problems),
    ),
    (
        "lag_seconds",
        "gauge",
        "From the source's last change to its listing.",
        lambda r, now: r.lag_ms / 1e3,
    ),
    ("silence_seconds", "gauge", "Since the source last answered.", _silence),
    ("errors_total", "counter", "How often the source failed.", lambda r, now: r.errors),
    (
        "relists_total",
        "counter",
        "How often everything was listed again.",
        lambda r, now: r.relists,
    ),
)


def exposition(reports: Sequence[Report], now_ms: int) -> str:
    """One line for each catalog and metric; the name of a source needs no escaping."""
    lines = []
    for name, kind, meaning, value in _FIGURES:
        metric = f"registry_catalog_{name}"
        lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} {kind}"]
        for report in reports:
            figure = float(value(report, now_ms))
            shown = "NaN" if figure != figure else f"{figure:g}"
            lines.append(f'{metric}{{source="{report.source}"}} {shown}')
    return "\n".join(lines) + "\n"
