"""``/metrics``: how the registry is, and what all workers of this machine have counted.

The counting is done elsewhere, in plain numbers (``registry.figures``). Here a thread of each
worker shows them to the others a few times a second, and adds what only a process itself can tell.
Whoever asks gets the sum, whichever worker answers.
"""

from __future__ import annotations

import itertools
import logging
import os
import platform
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flask import Blueprint, Response
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from catalogs import Report
from catalogs.metrics import families as of_catalogs
from eureka_compat import routes
from eureka_compat.peers.comparison import DifferenceKind
from eureka_http.counting import Requests, Told
from eureka_http.exchange import LoopState
from eureka_server.gateway import NATIVE_RENEW, ROUTES
from native_api.status import Samples
from registry import (
    EVENTS,
    InstanceStatus,
    NamespaceRegistry,
    Registry,
    Section,
    StoreError,
    figures,
)

log = logging.getLogger("server")

REQUESTS = Section(f"requests of {' '.join(ROUTES)}", Requests.size(ROUTES))
# Places in the sections ``HAS`` and ``SPENT``: what a process has, and what it has used up.
_CONNECTIONS, _WATCHERS, _RESIDENT_BYTES, _OPEN_FILES = range(4)
HAS = Section("has", 8, is_gauge=True)
_CPU_NANOSECONDS, _UNREADABLE, _LATE_NANOSECONDS = range(3)
SPENT = Section("spent", 4)
SECTIONS = (EVENTS, REQUESTS, HAS, SPENT)
SAMPLED = (
    *("instances", "up", "renewals", "registrations", "cancellations", "evictions"),
    *("full_fetches", "delta_fetches"),
)
"""The columns of a sample, after its instant."""
# So many of them are what there is; the rest is counted.
_STOCKS = 2

_PUBLISH_SECS = 0.25
# After so many turns what takes longer to find out is looked at again.
_LOOKED_AT_SELDOM = 20
_PAGE_BYTES = resource.getpagesize()
_OTHERS = "other"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_RENEWALS = (routes.RENEW, NATIVE_RENEW)
_FETCHES = {
    routes.FETCH_ALL: "full",
    routes.FETCH_DELTA: "delta",
    routes.FETCH_APPLICATION: "application",
    routes.FETCH_VIP: "vip",
    routes.FETCH_INSTANCE: "instance",
}


class Metrics(Collector):
    """Publishes what this worker counts, and tells what all of them have. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        *,
        version: str,
        most_applications: int,
        catalogs: Callable[[], Sequence[Report]],
        peers: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Of so many applications, the largest, the instances are told one by one."""
        self._registry = registry
        self._figures = registry.figures
        self._version = version
        self._most_applications = most_applications
        self._watchers: Callable[[], int] = lambda: 0
        self._flush: Callable[[], None] = lambda: None
        self._catalogs = catalogs
        self._peers = peers
        self._loop: Callable[[], LoopState] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._looking = threading.Lock()
        # What the processes before this one have used up, whose slot it has.
        self._spent_before = list(self._figures.numbers(SPENT))
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)

    def follow(self, state: Callable[[], LoopState]) -> None:
        """Tell of an event loop from now on."""
        self._loop = state

    def start(self, watchers: Callable[[], int], flush: Callable[[], None]) -> None:
        """Publish in the background until ``stop``.

        ``watchers`` tells how many of this worker's clients are told of changes; ``flush`` is
        called before its numbers are published.
        """
        self._watchers, self._flush = watchers, flush
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish once more, and leave this worker's numbers to the next."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        with self._looking:
            self._figures.close()

    def _run(self) -> None:
        fails = False
        for turn in itertools.count():
            if self._stopping.wait(_PUBLISH_SECS):
                return
            try:
                if turn % _LOOKED_AT_SELDOM == 0:
                    self._look_at_process()
                self._flush()
                self.publish()
                self.sample()
                fails = False
            except Exception as error:
                if not fails:
                    is_known = isinstance(error, StoreError | OSError)
                    log.warning("figures wait: %s", error, exc_info=None if is_known else error)
                fails = True

    def publish(self) -> None:
        """Show this worker's numbers to the others."""
        with self._looking:
            self._look()
            self._figures.publish()

    def _look(self) -> None:
        """Bring what only the process itself can tell up to date."""
        has, spent = self._figures.numbers(HAS), self._figures.numbers(SPENT)
        loop = self._loop
        if loop is not None:
            state = loop()
            has[_CONNECTIONS] = state.connections
            spent[_UNREADABLE] = self._spent_before[_UNREADABLE] + state.refused
            late = int(state.late_secs * 1e9)
            spent[_LATE_NANOSECONDS] = self._spent_before[_LATE_NANOSECONDS] + late
        has[_WATCHERS] = self._watchers()
        spent[_CPU_NANOSECONDS] = self._spent_before[_CPU_NANOSECONDS] + time.process_time_ns()

    def sample(self) -> None:
        """Keep a sample of now for plots, unless another worker has."""
        now = self._registry.clock.wall_ms() / 1000
        with self._looking:
            self._figures.sample(now, self.sampled)

    def sampled(self) -> list[int]:
        """The columns of a sample as they are now: what there is, and what was counted."""
        listed: Counter[InstanceStatus] = Counter()
        for _, registry in self._namespaces():
            view = registry.view()
            with view.lock:
                listed.update(view.listing.counts)
        events = self._figures.totals(EVENTS)
        fetched = {told.route: told.statuses().get(200, 0) for told in self._requests()}
        return [
            sum(listed.values()),
            listed[InstanceStatus.UP],
            self._renewed(events),
            sum(_by_source(events, figures.REGISTERED)),
            sum(_by_source(events, figures.CANCELLED)),
            sum(_by_reason(events)),
            fetched.get(routes.FETCH_ALL, 0),
            fetched.get(routes.FETCH_DELTA, 0),
        ]

    def samples(self, since_secs: float) -> Samples:
        """The samples since an instant, and one of now; what is counted, as so many a minute."""
        now = self._registry.clock.wall_ms() / 1000
        with self._looking:
            kept = self._figures.samples(now, since_secs - figures.SAMPLE_SECS)
            taken: list[list[float]] = [[*row[: len(SAMPLED) + 1]] for row in kept]
            taken.append([now, *self.sampled()])
        rows = []
        for before, after in itertools.pairwise(taken):
            minutes = max(after[0] - before[0], 1.0) / 60
            rates = [
                # Counts begin anew where their file does.
                round(max(0.0, value - earlier) / minutes, 2)
                for earlier, value in zip(before[_STOCKS + 1 :], after[_STOCKS + 1 :], strict=True)
            ]
            rows.append([*after[: _STOCKS + 1], *rates])
        return Samples(figures.SAMPLE_SECS, SAMPLED, rows)

    def exposition(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._collectors)

    def collect(self) -> Iterator[Metric]:
        """Everything, as prometheus-client has it."""
        with self._looking:
            self._look_at_process()
            self._look()
            found = [*self._of_requests(), *self._of_events(), *self._of_processes()]
        yield from found
        yield from self._of_namespaces()
        yield from self._of_store()
        yield from of_catalogs(self._catalogs(), self._registry.clock.wall_ms())
        yield from _of_peers(self._peers())

    # What was counted

    def _requests(self) -> Iterable[Told]:
        return Told.of(ROUTES, self._figures.totals(REQUESTS))

    def _renewed(self, events: Sequence[int]) -> int:
        """How many heartbeats renewed a lease: of clients they are counted as their answers."""
        by_clients = [
            told.statuses().get(200, 0) for told in self._requests() if told.route in _RENEWALS
        ]
        return sum(by_clients) + events[figures.RENEWED_BY_PEER]

    def _of_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "registry_requests", "Requests that were answered.", labels=("route", "status")
        )
        sent = CounterMetricFamily(
            "registry_response_bytes", "Bytes of the bodies of answers.", labels=("route",)
        )
        took = HistogramMetricFamily(
            "registry_request_duration_seconds",
            "From a request that was read to its answer; one in 64 of the quickest is measured.",
            labels=("route",),
        )
        fetches = CounterMetricFamily(
            "registry_fetches", "Answers with instances, by what was asked for.", labels=("kind",)
        )
        fetched = CounterMetricFamily(
            "registry_fetch_bytes", "Bytes of the answers with instances.", labels=("kind",)
        )
        unauthorized = 0
        for told in self._requests():
            statuses = told.statuses()
            unauthorized += statuses.get(401, 0)
            for status, count in statuses.items():
                requests.add_metric((told.route, str(status or _OTHERS)), count)
            sent.add_metric((told.route,), told.bytes)
            buckets = [
                ("+Inf" if bound == float("inf") else f"{bound:g}", count)
                for bound, count in told.buckets()
            ]
            took.add_metric((told.route,), buckets, told.seconds)
            kind = _FETCHES.get(told.route)
            if kind is not None:
                fetches.add_metric((kind,), statuses.get(200, 0))
                fetched.add_metric((kind,), told.bytes)
        yield from (requests, sent, took, fetches, fetched)
        yield CounterMetricFamily(
            "registry_unauthorized_requests", "Requests that were answered 401.", unauthorized
        )
        yield CounterMetricFamily(
            "registry_unreadable_requests",
            "What arrived and was no request.",
            self._figures.totals(SPENT)[_UNREADABLE],
        )

    def _of_events(self) -> Iterator[Metric]:
        events = self._figures.totals(EVENTS)
        registrations = CounterMetricFamily(
            "registry_registrations",
            "Registrations that were written, of instances that were not listed and of others.",
            labels=("source", "kind"),
        )
        for kind, first in (("new", figures.REGISTERED), ("again", figures.REGISTERED_AGAIN)):
            for source, count in _labelled(figures.SOURCES, events, first):
                registrations.add_metric((source, kind), count)
        yield registrations
        renewals = CounterMetricFamily(
            "registry_renewals",
            "Heartbeats: known, of unknown instances, and refused because the client is to"
            " register again.",
            labels=("result",),
        )
        for result, place in (
            ("unknown", figures.RENEWAL_UNKNOWN),
            ("refused", figures.RENEWAL_REFUSED),
        ):
            renewals.add_metric((result,), events[place])
        renewals.add_metric(("known",), self._renewed(events))
        yield renewals
        cancellations = CounterMetricFamily(
            "registry_cancellations", "Instances that were taken out.", labels=("source",)
        )
        for source, count in _labelled(figures.SOURCES, events, figures.CANCELLED):
            cancellations.add_metric((source,), count)
        yield cancellations
        evictions = CounterMetricFamily(
            "registry_evictions", "Instances whose leases ended.", labels=("reason",)
        )
        for reason, count in _labelled(figures.EVICTION_REASONS, events, figures.EVICTED):
            evictions.add_metric((reason,), count)
        yield evictions
        yield CounterMetricFamily(
            "registry_full_fetches_after_delta",
            "Full lists that were fetched right after a delta: its hash did not match.",
            events[figures.FULL_AFTER_DELTA],
        )
        changes = CounterMetricFamily(
            "registry_override_changes", "Overrides that were set or removed.", labels=("kind",)
        )
        changes.add_metric(("set",), events[figures.OVERRIDDEN])
        changes.add_metric(("removed",), events[figures.OVERRIDE_REMOVED])
        yield changes
        yield SummaryMetricFamily(
            "registry_store_commit_duration_seconds",
            "What the store took for its writes, each of one change or of several.",
            count_value=events[figures.COMMITS],
            sum_value=events[figures.COMMIT_NANOSECONDS] / 1e9,
        )
        yield CounterMetricFamily(
            "registry_store_commit_failures",
            "Writes that the store refused.",
            events[figures.COMMITS_FAILED],
        )

    # What there is

    def _namespaces(self) -> list[tuple[str, NamespaceRegistry]]:
        """The namespaces that hold something, and the default one, by what they are shown as."""
        found = [self._registry.in_namespace(each) for each in self._registry.occupied()]
        return [(each.settings.shown(each.namespace), each) for each in found]

    def _of_namespaces(self) -> Iterator[Metric]:
        try:
            namespaces = self._namespaces()
            states = [(name, each, each.preservation()) for name, each in namespaces]
            views = [(name, each.view()) for name, each in namespaces]
        except StoreError:
            yield GaugeMetricFamily("registry_store_up", "Whether the store answers.", 0)
            return
        yield GaugeMetricFamily("registry_store_up", "Whether the store answers.", 1)
        instances = _gauge(
            "instances", "Instances that are listed.", "namespace", "application", "status"
        )
        applications = _gauge("applications", "Applications that are listed.", "namespace")
        leases = _gauge("leases", "Instances with a lease.", "namespace")
        overrides = _gauge("overrides", "Overrides that are set.", "namespace")
        revision = _gauge("revision", "The revision of the last change.", "namespace")
        changed = _gauge("delta_instances", "Instances that the delta tells of.", "namespace")
        counted: Counter[tuple[str, str]] = Counter()
        by_application: dict[tuple[str, str], Mapping[InstanceStatus, int]] = {}
        for name, view in views:
            with view.lock:
                applications.add_metric((name,), len(view.applications))
                leases.add_metric((name,), view.leased)
                overrides.add_metric((name,), len(view.overrides))
                revision.add_metric((name,), view.revision)
                changed.add_metric((name,), view.changed.size)
                for application in view.applications.values():
                    kept = application.kept.get(_KEPT)
                    if kept is None:
                        kept = Counter(each.status for each in application.values())
                        application.kept[_KEPT] = kept
                    by_application[(name, application.name)] = kept
                    counted[(name, application.name)] = len(application)
        named = dict(counted.most_common(self._most_applications))
        rest: dict[str, Counter[InstanceStatus]] = {}
        for (name, app), statuses in by_application.items():
            if (name, app) in named:
                for status, count in statuses.items():
                    instances.add_metric((name, app, status), count)
            else:
                rest.setdefault(name, Counter()).update(statuses)
        for name, statuses in rest.items():
            for status, count in statuses.items():
                instances.add_metric((name, _OTHERS, status), count)
        yield from (instances, applications, leases, overrides, revision, changed)
        preserving = _gauge(
            "self_preservation_active",
            "1 while ended leases are kept because too few clients renew.",
            "namespace",
        )
        renewals = _gauge(
            "renewals_in_window", "Renewals in the last whole window of 60 s.", "namespace"
        )
        threshold = _gauge(
            "renewals_threshold", "Below so many, evictions are held back.", "namespace"
        )
        expected = _gauge("expected_clients", "Clients that are expected to renew.", "namespace")
        kept = _gauge(
            "preserved_applications",
            "Applications whose ended leases are kept, each for itself.",
            "namespace",
        )
        for name, _, state in states:
            numbers = state.arithmetic
            preserving.add_metric((name,), state.is_active)
            kept.add_metric((name,), len(state.applications))
            renewals.add_metric((name,), numbers.renewals_last_minute)
            threshold.add_metric((name,), numbers.threshold)
            expected.add_metric((name,), numbers.expected_clients)
        yield from (preserving, kept, renewals, threshold, expected)

    def _of_store(self) -> Iterator[Metric]:
        with suppress(StoreError):
            size = self._registry.store_state().size_bytes
            if size is not None:
                yield GaugeMetricFamily("registry_store_bytes", "What the store takes.", size)
        recorder = self._registry.recorder
        if recorder is not None:
            with suppress(StoreError):
                extent = recorder.extent()
                for name, text, value in (
                    ("entries", "Entries of the history.", extent.entries),
                    ("bytes", "What the history takes.", extent.bytes),
                ):
                    yield GaugeMetricFamily(f"registry_history_{name}", text, value)

    # The processes

    def _look_at_process(self) -> None:
        has = self._figures.numbers(HAS)
        resident = Path("/proc/self/statm").read_text().split()[1]
        has[_RESIDENT_BYTES] = int(resident) * _PAGE_BYTES
        has[_OPEN_FILES] = len(os.listdir("/proc/self/fd"))

    def _of_processes(self) -> Iterator[Metric]:
        has, spent = self._figures.totals(HAS), self._figures.totals(SPENT)
        workers = self._figures.workers()
        for name, text, value in (
            ("registry_workers", "Worker processes on this machine.", workers),
            ("registry_connections", "Open connections.", has[_CONNECTIONS]),
            ("registry_watchers", "Clients that are told of changes.", has[_WATCHERS]),
            ("process_resident_memory_bytes", "Memory of all workers.", has[_RESIDENT_BYTES]),
            ("process_open_fds", "Open files of all workers.", has[_OPEN_FILES]),
            ("process_start_time_seconds", "When the server began.", _began()),
        ):
            yield GaugeMetricFamily(name, text, value)
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "Processor time of all workers, those included that ended.",
            spent[_CPU_NANOSECONDS] / 1e9,
        )
        yield CounterMetricFamily(
            "registry_loop_late_seconds",
            "By how much the workers' loops came late to what is due twice a second, all in all.",
            spent[_LATE_NANOSECONDS] / 1e9,
        )
        yield InfoMetricFamily(
            "registry_build",
            "What runs here.",
            {"version": self._version, "python": platform.python_version()},
        )


_KEPT = "statuses"


def blueprint(metrics: Metrics, *, actuator: bool) -> Blueprint:
    """``/metrics``, and the same where Spring has it."""
    told = Blueprint("metrics", __name__)

    @told.get("/metrics")
    def show() -> Response:
        """All metrics in Prometheus's text format."""
        return Response(metrics.exposition(), content_type=_TEXT)

    if actuator:
        told.add_url_rule("/actuator/prometheus", "actuator", show, strict_slashes=False)
    return told


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"registry_{name}", text, labels=labels)


def _labelled(labels: Sequence[str], events: Sequence[int], first: int) -> Iterable[Any]:
    return zip(labels, events[first : first + len(labels)], strict=True)


def _by_source(events: Sequence[int], first: int) -> Sequence[int]:
    return events[first : first + len(figures.SOURCES)]


def _by_reason(events: Sequence[int]) -> Sequence[int]:
    return events[figures.EVICTED : figures.EVICTED + len(figures.EVICTION_REASONS)]


def _of_peers(report: Mapping[str, Any]) -> Iterator[Metric]:
    """The peers, as their report has them."""
    peers = report.get("peers", ())
    up = _gauge("peer_up", "1 while the peer answers.", "peer")
    pending = _gauge("peer_pending", "Instances that the peer is still to be told of.", "peer")
    lag = _gauge("peer_lag_seconds", "Since when it was not told of them.", "peer")
    differences = _gauge(
        "peer_differences", "What the last comparison found to differ.", "peer", "kind"
    )
    failures = CounterMetricFamily(
        "registry_peer_failures", "Exchanges with the peer that failed.", labels=("peer",)
    )
    healed = CounterMetricFamily(
        "registry_peer_healed", "Differences that were settled.", labels=("peer",)
    )
    for peer in peers:
        name = peer["url"]
        up.add_metric((name,), peer["state"] == "up")
        pending.add_metric((name,), peer["pending"])
        lag.add_metric((name,), peer["lag_ms"] / 1000)
        failures.add_metric((name,), peer["failures"])
        healed.add_metric((name,), peer["healed"])
        if peer["comparison"] is not None:
            for kind in DifferenceKind:
                differences.add_metric((name, kind), peer["comparison"][kind])
    yield from (up, pending, lag, differences, failures, healed)


def _began() -> float:
    """When the main process began, in seconds of the epoch."""
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up + ticks
