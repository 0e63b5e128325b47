"""Services of Kubernetes: endpoint slices, and what their Services and Pods add to them.

Three lists and three watches of one REST API are all that is needed, and ``requests`` is here
anyway: the official client takes 1.6 s and 131 MiB to be imported, in the process that serves.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from catalogs.catalog import Entry, Groups, RelistError, SourceError
from catalogs.entries import entry
from catalogs.http import Client, Quiet, StatusError, documents
from catalogs.kubeconfig import Cluster, from_kubeconfig, in_cluster
from native_api.form import EndpointError
from registry import DEFAULT_NAMESPACE, Namespace

_PAGE = 500
_WATCH_SECS = 300
_QUIET_SECS = 30.0
_TICK_SECS = 2.0
_GATHER_SECS = 0.02
_SERVICE_OF = "kubernetes.io/service-name"
_VERSIONS = ("app.kubernetes.io/version", "version")
_HASHES = ("pod-template-hash", "deployment", "controller-revision-hash")
_TYPES = ("https", "http", "tcp", "udp")

Object = Mapping[str, Any]
Name = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """One cluster."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    kubeconfig: Path | None = None
    """How the API server is reached; without it, as a Pod's service account does."""

    context: str | None = None
    """Of the kubeconfig, where it is not the current one."""

    namespaces: tuple[str, ...] = ()
    """Only these Kubernetes namespaces; empty: all, which needs a ClusterRole."""

    label_selector: str | None = None
    """Only Services with these labels, in Kubernetes's own notation."""

    without: tuple[str, ...] = ("default/kubernetes",)
    """Services that are left out, as ``namespace/name``: by default the API server's own."""

    namespace: Namespace = DEFAULT_NAMESPACE
    """Where its instances are listed in the registry."""

    prefix: str = ""
    """Stands before each Service's name."""

    annotations: str = "registry/"
    """Pods' annotations that begin so become metadata, without the beginning."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A resource, and the path of its lists below a namespace."""

    name: str
    path: str

    def url(self, namespace: str | None) -> str:
        group, _, resource = self.path.rpartition("/")
        where = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
        return f"/{group}/{where}{resource}"


_SLICES = _Kind("endpointslices", "apis/discovery.k8s.io/v1/endpointslices")
_SERVICES = _Kind("services", "api/v1/services")
_PODS = _Kind("pods", "api/v1/pods")
_KINDS = (_SERVICES, _PODS, _SLICES)


@dataclass(frozen=True, slots=True)
class _Event:
    """What one watch told: an object that is there or gone, or an error that ends it."""

    kind: _Kind
    type: str
    object: Object
    error: Exception | None = None


class KubernetesCatalog:
    """The catalog of one cluster; see ``catalogs.catalog.Catalog``. A group is a Service."""

    prefers_local = False

    def __init__(self, settings: KubernetesSettings) -> None:
        """Nothing is asked before ``list``."""
        self.source = f"kubernetes:{settings.name}"
        self._settings = settings
        self._scratch = Path(tempfile.mkdtemp(prefix="kubernetes-"))
        self._found: dict[str, dict[Name, Object]] = {kind.name: {} for kind in _KINDS}
        self._versions: dict[tuple[str, str | None], str] = {}
        self._slices_of: defaultdict[Name, set[Name]] = defaultdict(set)
        self._services_of: defaultdict[Name, set[Name]] = defaultdict(set)
        self._problems: dict[Name, list[str]] = {}
        self._ended = threading.Event()
        self._clients: list[Client] = []
        self._listing: Client | None = None

    @property
    def problems(self) -> Sequence[str]:
        """Endpoints that cannot be used, and why."""
        return [text for name in sorted(self._problems) for text in self._problems[name]]

    def list(self) -> Groups:
        """Every Service's instances."""
        if self._listing is None:
            self._listing = self._client()
        for kind in _KINDS:
            self._found[kind.name] = {}
        self._slices_of.clear()
        self._services_of.clear()
        self._problems.clear()
        for kind in _KINDS:
            for namespace in self._namespaces():
                self._list_kind(self._listing, kind, namespace)
        services = {*self._found["services"], *self._slices_of}
        return {_shown(name): self._entries(name) for name in services if self._is_taken(name)}

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The Services that change, as soon as any of the watches tells."""
        told: queue.Queue[_Event] = queue.Queue()
        ended = threading.Event()
        for kind in _KINDS:
            for namespace in self._namespaces():
                threading.Thread(
                    target=self._follow, args=(kind, namespace, told, ended), daemon=True
                ).start()
        try:
            while not stopping.is_set() and not self._ended.is_set():
                changed: set[Name] = set()
                try:
                    event = told.get(timeout=_TICK_SECS)
                    while True:
                        if event.error is not None:
                            raise event.error
                        changed |= self._take(event)
                        # A rollout changes a slice and its Pods at once: told once.
                        event = told.get(timeout=_GATHER_SECS)
                except queue.Empty:
                    yield {
                        _shown(name): self._entries(name) if self._is_taken(name) else ()
                        for name in changed
                    }
        finally:
            ended.set()

    def close(self) -> None:
        """Let go of everything; a watch that waits ends with its connection."""
        self._ended.set()
        for client in self._clients:
            client.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # Listing and watching

    def _client(self) -> Client:
        settings = self._settings
        cluster: Cluster
        if settings.kubeconfig is not None:
            cluster = from_kubeconfig(settings.kubeconfig, settings.context, self._scratch)
        else:
            cluster = in_cluster()
        client = Client(
            [cluster.url],
            headers=cluster.headers,
            ca_file=cluster.ca_file,
            cert_files=cluster.cert_files,
        )
        self._clients.append(client)
        return client

    def _namespaces(self) -> Sequence[str | None]:
        return self._settings.namespaces or (None,)

    def _params(self, kind: _Kind) -> dict[str, str]:
        selector = self._settings.label_selector
        return {"labelSelector": selector} if kind is _SERVICES and selector else {}

    def _list_kind(self, client: Client, kind: _Kind, namespace: str | None) -> None:
        proceed = ""
        while True:
            params = {**self._params(kind), "limit": str(_PAGE)}
            if proceed:
                params["continue"] = proceed
            try:
                page = client.read("GET", kind.url(namespace), params=params)
                items = page["items"]
                meta = page["metadata"]
            except StatusError as error:
                if error.status == 410:
                    raise RelistError("the list went on for too long") from None
                raise
            except (KeyError, TypeError):
                raise SourceError(f"{client.url} answers with what is no list") from None
            for item in items or ():
                self._take(_Event(kind, "ADDED", item))
            proceed = meta.get("continue") or ""
            if not proceed:
                self._versions[kind.name, namespace] = meta["resourceVersion"]
                return

    def _follow(
        self,
        kind: _Kind,
        namespace: str | None,
        told: queue.Queue[_Event],
        ended: threading.Event,
    ) -> None:
        """One watch, opened again where it was when the server ends it; in its own thread."""
        where = (kind.name, namespace)
        client: Client | None = None
        try:
            client = self._client()
            while not ended.is_set():
                params = {
                    **self._params(kind),
                    "watch": "1",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": self._versions[where],
                    "timeoutSeconds": str(_WATCH_SECS),
                }
                stream = client.send(
                    "GET", kind.url(namespace), params=params, read_secs=_QUIET_SECS, stream=True
                )
                try:
                    for event in documents(stream):
                        if ended.is_set():
                            return
                        self._tell(kind, where, event, told)
                except Quiet:
                    continue  # asked again, from where it was: is the server still there?
        except StatusError as error:
            gone = error.status == 410
            told.put(_Event(kind, "", {}, RelistError("history is gone") if gone else error))
        except Exception as error:
            told.put(_Event(kind, "", {}, error))
        finally:
            if client is not None:
                client.close()
                self._clients.remove(client)

    def _tell(
        self,
        kind: _Kind,
        where: tuple[str, str | None],
        event: Any,
        told: queue.Queue[_Event],
    ) -> None:
        happened, item = event["type"], event["object"]
        if happened == "ERROR":
            if item.get("code") == 410:
                raise RelistError(f"{kind.name}: {item.get('message', 'history is gone')}")
            raise SourceError(
                f"the watch of {kind.name} failed: {item.get('message', 'no reason')}"
            )
        self._versions[where] = item["metadata"]["resourceVersion"]
        if happened != "BOOKMARK":
            told.put(_Event(kind, happened, item))

    def _take(self, event: _Event) -> set[Name]:
        """Know the object as it is now; the Services that it concerns."""
        name = _name(event.object)
        known = self._found[event.kind.name]
        before = known.pop(name, None)
        if event.type != "DELETED":
            known[name] = event.object
        if event.kind is _SERVICES:
            return {name}
        if event.kind is _PODS:
            is_same = before is not None and _told_of(before) == _told_of(event.object)
            return set() if is_same else set(self._services_of.get(name, ()))
        concerned = set()
        for item in (before, event.object):
            service = None if item is None else _service_of(item)
            if service is not None:
                concerned.add(service)
                self._slices_of[service].discard(name)
        if event.type != "DELETED" and (service := _service_of(event.object)) is not None:
            self._slices_of[service].add(name)
        return concerned

    # From objects to entries

    def _is_taken(self, name: Name) -> bool:
        """Whether the Service is one that was asked for."""
        return name in self._found["services"] and _shown(name) not in self._settings.without

    def _entries(self, name: Name) -> Sequence[Entry]:
        service = self._found["services"][name]
        self._problems.pop(name, None)
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return self._external(name, spec)
        families = spec.get("ipFamilies") or ["IPv4"]
        slices = sorted(
            (self._found["endpointslices"][s] for s in self._slices_of.get(name, ())),
            # A Pod of two families is one instance, at its address of the Service's first family.
            key=lambda s: s.get("addressType") != families[0],
        )
        found: list[Entry] = []
        seen: set[tuple[str, str]] = set()
        for item in slices:
            for port in item.get("ports") or ():
                for endpoint in item.get("endpoints") or ():
                    one = self._endpoint(name, item, port, endpoint)
                    if one is None:
                        continue
                    target = (endpoint.get("targetRef") or {}).get("name")
                    # Of one Pod each port counts once; without a Pod, each address and port.
                    key = (
                        (target, str(port.get("name") or port["port"]))
                        if target
                        else (one.instance.ip_addr, str(port["port"]))
                    )
                    if key not in seen:
                        seen.add(key)
                        found.append(one)
        return found

    def _endpoint(self, name: Name, item: Object, port: Object, endpoint: Object) -> Entry | None:
        conditions = endpoint.get("conditions") or {}
        addresses = endpoint.get("addresses") or ()
        if conditions.get("terminating") or not addresses or not port.get("port"):
            return None
        namespace, service = name
        metadata: dict[str, Any] = {"kubernetes-namespace": namespace}
        target = endpoint.get("targetRef") or {}
        tags: list[str] = []
        if target.get("kind") == "Pod":
            pod_name = (target.get("namespace") or namespace, target.get("name") or "")
            self._services_of[pod_name].add(name)
            pod = self._found["pods"].get(pod_name)
            if pod is not None:
                if (pod.get("metadata") or {}).get("deletionTimestamp"):
                    return None
                told, version = self._of_pod(pod)
                metadata = {**told, **metadata}
                if version:
                    tags.append(version)
                    metadata["version"] = version
            metadata["kubernetes-pod"] = pod_name[1]
        if endpoint.get("nodeName"):
            metadata["kubernetes-node"] = endpoint["nodeName"]
        if endpoint.get("zone"):
            metadata["zone"] = endpoint["zone"]
        if port.get("name"):
            metadata["kubernetes-port"] = port["name"]
        shown = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
        # An unknown readiness counts as ready, as the API says.
        is_ready = conditions.get("ready") is not False
        return self._entry(
            name, service, _type_of(port), f"{shown}:{port['port']}", is_ready, tags, metadata
        )

    def _of_pod(self, pod: Object) -> tuple[dict[str, Any], str | None]:
        """A Pod's labels and chosen annotations, and the version that it runs."""
        meta = pod.get("metadata") or {}
        labels = meta.get("labels") or {}
        start = self._settings.annotations
        annotations = meta.get("annotations") or {}
        told = {**labels}
        if start:
            told |= {k[len(start) :]: v for k, v in annotations.items() if k.startswith(start)}
        version = next((labels[v] for v in (*_VERSIONS, *_HASHES) if labels.get(v)), None)
        if version is None:
            for owner in meta.get("ownerReferences") or ():
                if owner.get("kind") in ("ReplicaSet", "ReplicationController"):
                    version = str(owner.get("name", "")).rpartition("-")[2] or None
        return told, version

    def _external(self, name: Name, spec: Object) -> Sequence[Entry]:
        host = spec.get("externalName")
        ports = spec.get("ports") or [{"name": "https", "port": 443}]
        metadata = {"kubernetes-namespace": name[0]}
        made = (
            self._entry(
                name,
                name[1],
                _type_of(port),
                f"{host}:{port['port']}",
                True,
                ["external"],
                metadata,
            )
            for port in ports
        )
        return [one for one in made if one is not None]

    def _entry(
        self,
        name: Name,
        service: str,
        kind: str,
        value: str,
        is_ready: bool,
        tags: Sequence[str],
        metadata: Mapping[str, Any],
    ) -> Entry | None:
        settings = self._settings
        try:
            return entry(
                self.source,
                service_name=settings.prefix + service,
                endpoint_type=kind,
                endpoint_value=value,
                status="UP" if is_ready else "DOWN",
                tags=tags,
                metadata=metadata,
                namespace=settings.namespace,
            )
        except EndpointError as error:
            self._problems.setdefault(name, []).append(f"{_shown(name)} at {value}: {error}")
            return None


def _name(item: Object) -> Name:
    meta = item["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _shown(name: Name) -> str:
    return "/".join(name)


def _service_of(item: Object) -> Name | None:
    """The Service that a slice belongs to."""
    service = (item["metadata"].get("labels") or {}).get(_SERVICE_OF)
    return None if service is None else (item["metadata"].get("namespace", ""), service)


def _told_of(pod: Object) -> Any:
    """What of a Pod shows in an entry; its status changes far more often."""
    meta = pod.get("metadata") or {}
    names = ("labels", "annotations", "deletionTimestamp", "ownerReferences")
    return [meta.get(name) for name in names]


def _type_of(port: Object) -> str:
    """The endpoint's type: http unless the port's name, its protocol or its number tells otherwise.

    ``https-admin`` is https as ``https`` is: Kubernetes wants names that are unique in a Service.
    """
    if str(port.get("protocol") or "TCP").upper() == "UDP":
        return "udp"
    for told in (port.get("appProtocol"), port.get("name")):
        first = str(told or "").lower().partition("-")[0]
        if first in _TYPES:
            return first
        if first in ("grpc", "tls", "mysql", "redis", "postgres", "postgresql", "amqp", "kafka"):
            return "tcp"
    return "https" if port.get("port") in (443, 8443) else "http"
