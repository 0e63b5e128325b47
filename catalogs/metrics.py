"""The catalogs' reports as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from catalogs.runner import Report


def _silence(report: Report, now_ms: int) -> float:
    if not report.last_success_ms:
        return float("nan")
    return max(0.0, (now_ms - report.last_success_ms) / 1000)


_GAUGES: tuple[tuple[str, str, Callable[[Report, int], float]], ...] = (
    ("entries", "Entries that the source has.", lambda r, now: r.entries),
    (
        "shadowed",
        "Entries not listed because another source owns the instance.",
        lambda r, now: r.shadowed,
    ),
    ("stale", "1 while its entries are marked as stale.", lambda r, now: r.stale),
    (
        "problems",
        "Problems that the catalog reports about its source.",
        lambda r, now: len(r.problems),
    ),
    (
        "lag_seconds",
        "From the source's last change to its listing.",
        lambda r, now: r.lag_ms / 1e3,
    ),
    ("silence_seconds", "Since the source last answered.", _silence),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Report], int]], ...] = (
    ("errors", "How often the source failed.", lambda r: r.errors),
    ("relists", "How often everything was listed again.", lambda r: r.relists),
)


def families(reports: Sequence[Report], now_ms: int) -> Iterator[Metric]:
    """Each metric of the catalogs, with a sample for each of them."""
    for name, text, value in _GAUGES:
        gauge = GaugeMetricFamily(f"registry_catalog_{name}", text, labels=("source",))
        for report in reports:
            gauge.add_metric((report.source,), value(report, now_ms))
        yield gauge
    for name, text, count in _COUNTERS:
        counter = CounterMetricFamily(f"registry_catalog_{name}", text, labels=("source",))
        for report in reports:
            counter.add_metric((report.source,), count(report))
        yield counter
