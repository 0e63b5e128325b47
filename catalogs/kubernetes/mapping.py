"""Turns objects of Kubernetes into entries; pure functions of objects and settings.

Each endpoint is one instance with one port, since clients of a service call one port of it. Its
other ports (for metrics, say) are not further instances of the service; they become metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalogs.catalog import Entry
from catalogs.entries import EntryError, entry
from catalogs.kubernetes.settings import KubernetesSettings
from catalogs.kubernetes.watching import Object

Name = tuple[str, str]
"""A namespace, and a name in it."""

_SERVICE_OF = "kubernetes.io/service-name"
_VERSIONS = ("app.kubernetes.io/version", "version")
_HASHES = ("pod-template-hash", "deployment", "controller-revision-hash")
_TYPES = ("https", "http", "tcp", "udp")
_OTHERS = ("grpc", "tls", "mysql", "redis", "postgres", "postgresql", "amqp", "kafka")
_POD_META = ("namespace", "name", "labels", "deletionTimestamp", "ownerReferences")


@dataclass(slots=True)
class Mapped:
    """The entries of one Service, and what in it cannot be used."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def name_of(item: Object) -> Name:
    """An object's name."""
    meta = item["metadata"]
    return meta.get("namespace") or "", meta["name"]


def full_name(name: Name) -> str:
    """A name as operators write it, ``namespace/name``."""
    return "/".join(name)


def service_of(item: Object) -> Name | None:
    """The Service that a slice belongs to."""
    service = (item["metadata"].get("labels") or {}).get(_SERVICE_OF)
    return None if service is None else (name_of(item)[0], service)


def pods_of(item: Object) -> set[Name]:
    """The Pods that a slice refers to."""
    found = (_pod_of(item, endpoint) for endpoint in item.get("endpoints") or ())
    return {name for name in found if name is not None}


def _pod_of(item: Object, endpoint: Object) -> Name | None:
    target = endpoint.get("targetRef") or {}
    if target.get("kind") != "Pod":
        return None
    return target.get("namespace") or name_of(item)[0], target.get("name") or ""


class Mapper:
    """Entries by the settings of one cluster."""

    def __init__(self, source: str, settings: KubernetesSettings) -> None:
        self._source = source
        self._settings = settings

    def pod(self, item: Object) -> Object:
        """The parts of a Pod that entries depend on; its status would change far more often."""
        meta, start = item["metadata"], self._settings.annotations
        annotations = (meta.get("annotations") or {}).items() if start else ()
        return {
            "metadata": {
                **{key: meta[key] for key in _POD_META if meta.get(key)},
                "annotations": {k: v for k, v in annotations if k.startswith(start)},
            }
        }

    def mapped(
        self, service: Object, slices: Sequence[Object], pods: Mapping[Name, Object]
    ) -> Mapped:
        """The instances of a Service."""
        name, spec = name_of(service), service.get("spec") or {}
        mapped = Mapped()
        if spec.get("type") == "ExternalName":
            self._external(mapped, service, spec)
            return mapped
        families = spec.get("ipFamilies") or ["IPv4"]
        seen: set[Any] = set()
        # A Pod of two families is one instance, at its address of the Service's first family.
        for item in sorted(slices, key=lambda s: s.get("addressType") != families[0]):
            ports = [port for port in item.get("ports") or () if port.get("port")]
            endpoints = item.get("endpoints") or ()
            if not ports or not endpoints:
                continue
            port = self._port(mapped, service, ports)
            if port is None:
                continue
            for endpoint in endpoints:
                made = self._endpoint(mapped, name, item, ports, port, endpoint, pods)
                if made is None:
                    continue
                # An endpoint without a Pod is identified by its address and port.
                key = _pod_of(item, endpoint) or (made.instance.host_name, port["port"])
                if key not in seen:
                    seen.add(key)
                    mapped.entries.append(made)
        return mapped

    def _port(self, mapped: Mapped, service: Object, ports: Sequence[Object]) -> Object | None:
        """The port to list; None, and a problem, if there is none."""
        name = name_of(service)
        meta, start = service["metadata"], self._settings.annotations
        wanted = (meta.get("annotations") or {}).get(f"{start}port") if start else None
        if wanted is not None:
            found = _named(ports, wanted)
            if found is None:
                names = ", ".join(str(p.get("name") or p["port"]) for p in ports)
                _problem(
                    mapped, f"{full_name(name)}: {start}port is {wanted}, and there are {names}"
                )
            return found
        if self._settings.port is not None:
            found = _named(ports, self._settings.port)
            if found is not None:
                return found
        of_tcp = [port for port in ports if _protocol(port) == "TCP"]
        for usual in ("http", "https", name[1]):
            for port in of_tcp:
                if port.get("name") == usual:
                    return port
        others = [port for port in ports if _protocol(port) == "UDP"]
        found = next(iter(of_tcp or others), None)
        if found is None:
            _problem(mapped, f"{full_name(name)}: no port of TCP or UDP")
        return found

    def _endpoint(
        self,
        mapped: Mapped,
        name: Name,
        item: Object,
        ports: Sequence[Object],
        port: Object,
        endpoint: Object,
        pods: Mapping[Name, Object],
    ) -> Entry | None:
        conditions = endpoint.get("conditions") or {}
        addresses = endpoint.get("addresses") or ()
        if conditions.get("terminating") or not addresses:
            return None
        metadata: dict[str, Any] = _ports_beside(ports, port)
        metadata["kubernetes-namespace"] = name[0]
        tags: list[str] = []
        pod_name = _pod_of(item, endpoint)
        if pod_name is not None:
            pod = pods.get(pod_name)
            if pod is not None:
                if pod["metadata"].get("deletionTimestamp"):
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
        # An unknown readiness counts as ready, as the API says.
        is_ready = conditions.get("ready") is not False
        return self._entry(mapped, name, port, addresses[0], is_ready, tags, metadata)

    def _of_pod(self, pod: Object) -> tuple[dict[str, Any], str | None]:
        """A Pod's labels and chosen annotations, and the version that it runs."""
        meta, start = pod["metadata"], self._settings.annotations
        labels = meta.get("labels") or {}
        told = {**labels, **{k[len(start) :]: v for k, v in meta["annotations"].items()}}
        version = next((labels[v] for v in (*_VERSIONS, *_HASHES) if labels.get(v)), None)
        if version is None:
            for owner in meta.get("ownerReferences") or ():
                if owner.get("kind") in ("ReplicaSet", "ReplicationController"):
                    version = str(owner.get("name", "")).rpartition("-")[2] or None
        return told, version

    def _external(self, mapped: Mapped, service: Object, spec: Object) -> None:
        name = name_of(service)
        ports = spec.get("ports") or [{"name": "https", "port": 443}]
        port = self._port(mapped, service, ports)
        if port is None:
            return
        metadata = {**_ports_beside(ports, port), "kubernetes-namespace": name[0]}
        host = str(spec.get("externalName"))
        made = self._entry(mapped, name, port, host, True, ["external"], metadata)
        mapped.entries += [made] if made is not None else []

    def _entry(
        self,
        mapped: Mapped,
        name: Name,
        port: Object,
        host: str,
        is_ready: bool,
        tags: Sequence[str],
        metadata: Mapping[str, Any],
    ) -> Entry | None:
        settings = self._settings
        value = f"[{host}]:{port['port']}" if ":" in host else f"{host}:{port['port']}"
        if port.get("name"):
            metadata = {**metadata, "kubernetes-port": port["name"]}
        try:
            return entry(
                self._source,
                service_name=settings.service_name(*name),
                endpoint_type=type_of(port),
                endpoint_value=value,
                status="UP" if is_ready else "DOWN",
                tags=tags,
                metadata=metadata,
                namespace=settings.namespace,
            )
        except EntryError as error:
            _problem(mapped, f"{full_name(name)} at {value}: {error}")
            return None


def _problem(mapped: Mapped, problem: str) -> None:
    """Report it once, although each slice of the Service may have it."""
    if problem not in mapped.problems:
        mapped.problems.append(problem)


def _protocol(port: Object) -> str:
    return str(port.get("protocol") or "TCP").upper()


def _named(ports: Sequence[Object], wanted: str) -> Object | None:
    """The port of that name, or of that number; SCTP is never listed."""
    usable = [port for port in ports if _protocol(port) in ("TCP", "UDP")]
    by_name = (port for port in usable if port.get("name") == wanted)
    by_number = (port for port in usable if str(port["port"]) == wanted)
    return next(by_name, None) or next(by_number, None)


def _ports_beside(ports: Sequence[Object], chosen: Object) -> dict[str, str]:
    """The other ports as metadata: ``port.NAME``, with the protocol unless it is TCP."""
    return {
        f"port.{port.get('name') or port['port']}": (
            str(port["port"])
            if _protocol(port) == "TCP"
            else f"{port['port']}/{_protocol(port).lower()}"
        )
        for port in ports
        if port is not chosen
    }


def type_of(port: Object) -> str:
    """The endpoint's type: http, unless the port's name, protocol or number says otherwise.

    ``https-admin`` counts as https: names must be unique in a Service, so they have suffixes.
    """
    if _protocol(port) == "UDP":
        return "udp"
    for told in (port.get("appProtocol"), port.get("name")):
        first = str(told or "").lower().partition("-")[0]
        if first in _TYPES:
            # The protocol is TCP here, whatever the name says.
            return "tcp" if first == "udp" else first
        if first in _OTHERS:
            return "tcp"
    return "https" if port.get("port") in (443, 8443) else "http"
