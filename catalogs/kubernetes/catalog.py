"""Keeps the current objects of a cluster, as far as entries depend on them."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from catalogs.catalog import QUIET_SECS, Entry, Groups
from catalogs.http import Client
from catalogs.kubernetes.kubeconfig import Cluster
from catalogs.kubernetes.mapping import Mapper, Name, full_name, name_of, pods_of, service_of
from catalogs.kubernetes.settings import KubernetesSettings
from catalogs.kubernetes.watching import (
    PODS,
    SERVICES,
    SLICES,
    WATCHED,
    Event,
    Kind,
    Object,
    Scope,
    Watches,
    listed,
)

log = logging.getLogger("catalogs")


class KubernetesCatalog:
    """The catalog of one cluster; see ``catalogs.catalog.Catalog``. A group is a Service."""

    quiet_secs = QUIET_SECS
    prefers_local = False

    def __init__(self, settings: KubernetesSettings) -> None:
        """Nothing is asked before ``list``."""
        self.source = f"kubernetes:{settings.name}"
        self._settings = settings
        self._mapper = Mapper(self.source, settings)
        self._found: Mapping[str, dict[Name, Object]] = {}
        self._forget()
        self._versions: dict[Scope, str] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._scratch: Path | None = None
        self._cluster: Cluster | None = None
        self._clients: list[Client] = []

    def _forget(self) -> None:
        self._found = {kind.name: {} for kind in WATCHED}
        self._slices_of: defaultdict[Name, set[Name]] = defaultdict(set)
        # Pod → the slices that refer to it.
        self._slices_with: defaultdict[Name, set[Name]] = defaultdict(set)
        self._problems: dict[Name, Sequence[str]] = {}
        self._called: defaultdict[str, set[Name]] = defaultdict(set)

    @property
    def problems(self) -> Sequence[str]:
        """Endpoints that cannot be used, namespaces without Services, and names that clash."""
        found = [text for name in sorted(self._problems) for text in self._problems[name]]
        with_services = {namespace for namespace, _ in self._found[SERVICES.name]}
        found += [
            f"the namespace {namespace} has no such Services, or there is no such namespace"
            for namespace in self._settings.namespaces
            if namespace not in with_services
        ]
        for called, names in sorted(self._called.items()):
            if len({namespace for namespace, _ in names}) > 1:
                together = " and ".join(map(full_name, sorted(names)))
                found.append(
                    f"{together} are one service, {called}: "
                    "template '{service}-{namespace}' would tell them apart"
                )
        return found

    def list(self) -> Groups:
        """Every Service's instances."""
        self._reach()
        client = self._connect()
        try:
            told = {scope: listed(client, scope) for scope in self._scopes()}
        finally:
            client.close()
        self._forget()
        for scope, (items, version) in told.items():
            self._versions[scope] = version
            for item in items:
                self._know(Event(scope.kind, item, is_gone=False))
        services = {*self._found[SERVICES.name], *self._slices_of}
        return {full_name(name): self._entries(name) for name in services if self._is_taken(name)}

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The Services concerned by each event of the watches."""
        watches = Watches(self._connect, self._versions)
        for events in watches.events(lambda: not stopping.is_set() and not self._ended.is_set()):
            changed: set[Name] = set()
            for event in events:
                changed |= self._know(event)
            yield {full_name(name): self._entries(name) for name in changed}

    def close(self) -> None:
        """Close the connections, which ends a watch that waits, and remove temporary files."""
        self._ended.set()
        with self._lock:
            for client in self._clients:
                client.close()
            self._drop_scratch()

    # Reaching the server

    def _reach(self) -> None:
        """Read again how the server is reached: a kubeconfig may have been replaced."""
        with self._lock:
            self._drop_scratch()
            self._scratch = Path(tempfile.mkdtemp(prefix="kubernetes-"))
            self._cluster = self._settings.cluster(self._scratch)

    def _drop_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _connect(self) -> Client:
        cluster = self._cluster
        assert cluster is not None
        client = Client(
            [cluster.url],
            headers=cluster.headers,
            ca_file=cluster.ca_file,
            cert_files=cluster.cert_files,
        )
        with self._lock:
            self._clients = [c for c in self._clients if not c.is_closed]
            self._clients.append(client)
        return client

    def _scopes(self) -> Sequence[Scope]:
        settings = self._settings

        def selector(kind: Kind) -> str | None:
            return settings.label_selector if kind is SERVICES else None

        namespaces: Sequence[str | None] = settings.namespaces or (None,)
        return [Scope(k, namespace, selector(k)) for k in WATCHED for namespace in namespaces]

    # What is known

    def _know(self, event: Event) -> set[Name]:
        """Record the object's current state; the Services whose entries may change."""
        kind, item = event.kind, event.object
        try:
            name = name_of(item)
        except (KeyError, TypeError, AttributeError):
            return set()  # every object has a name; this is none
        if kind is PODS:
            item = self._mapper.pod(item)
        known = self._found[kind.name]
        before = known.pop(name, None)
        if not event.is_gone:
            known[name] = item
        if kind is SERVICES:
            return {name}
        if kind is PODS:
            is_same = before is not None and not event.is_gone and before == item
            return set() if is_same else self._services_with(name)
        concerned = set()
        if before is not None:
            concerned |= self._link(name, before, is_there=False)
        if not event.is_gone:
            concerned |= self._link(name, item, is_there=True)
        return concerned

    def _services_with(self, pod: Name) -> set[Name]:
        slices = (self._found[SLICES.name][s] for s in self._slices_with.get(pod, ()))
        return {service for item in slices if (service := service_of(item)) is not None}

    def _link(self, name: Name, item: Object, *, is_there: bool) -> set[Name]:
        """Add a slice to the indexes by Service and by Pod, or remove it; its Service."""
        service = service_of(item)
        for index, keys in (
            (self._slices_of, set() if service is None else {service}),
            (self._slices_with, pods_of(item)),
        ):
            for key in keys:
                if is_there:
                    index[key].add(name)
                else:
                    index[key].discard(name)
                    if not index[key]:
                        del index[key]
        return set() if service is None else {service}

    def _is_taken(self, name: Name) -> bool:
        """Whether the Service exists and is not left out."""
        return name in self._found[SERVICES.name] and full_name(name) not in self._settings.without

    def _entries(self, name: Name) -> Sequence[Entry] | None:
        """A Service's instances; None, and a problem in the report, after an unforeseen error."""
        called = self._settings.service_name(*name).lower()
        self._problems.pop(name, None)
        if not self._is_taken(name):
            self._called[called].discard(name)
            if not self._called[called]:
                del self._called[called]
            return ()
        self._called[called].add(name)
        slices = [self._found[SLICES.name][s] for s in sorted(self._slices_of.get(name, ()))]
        try:
            mapped = self._mapper.mapped(
                self._found[SERVICES.name][name], slices, self._found[PODS.name]
            )
        except Exception as error:
            log.exception("%s: %s cannot be used", self.source, full_name(name))
            self._problems[name] = [f"{full_name(name)}: {type(error).__name__}: {error}"]
            return None
        if mapped.problems:
            self._problems[name] = mapped.problems
        return mapped.entries
