"""The native form of an instance, and the same instance as Eureka clients need it.

Spring Cloud finds instances by VIP, Spring Boot Admin needs the health check URL, and gateways need
both ports and a literal address: so whatever is registered here gets all of them.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from registry import Instance, InstanceStatus

SOURCE = "native"
ENDPOINT_TYPES = ("http", "https", "tcp", "udp", "user")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NO_ADDRESS = "0.0.0.0"
_RESOLVED_FOR_SECS = 30
_TAGS = "tags"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*\Z")


class EndpointError(ValueError):
    """An endpoint's value that its type cannot have."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an instance is reached, taken apart; ``url`` only for http and https."""

    type: str
    value: str
    host: str
    port: int
    url: str | None


@functools.lru_cache(maxsize=10_000)
def parsed_endpoint(kind: str, value: str) -> Endpoint:
    """Take a value such as ``host:port``, ``host`` or a URL apart; ``EndpointError``.

    Of type ``user`` anything goes (a socket's path, say): nobody but its users understands it.
    """
    if kind == "user":
        return Endpoint(kind, value, value, 0, None)
    scheme, mark, rest = value.partition("://")
    if not mark:
        scheme, rest = kind, value
    if scheme.lower() != kind:
        raise EndpointError(f"a {kind} endpoint cannot begin with {scheme}://")
    try:
        parts = urlsplit(f"{kind}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise EndpointError(f"not host:port or a URL: {error}") from None
    if not host or not _is_host(host) or parts.username is not None:
        raise EndpointError("not host:port or a URL")
    if not _PATH.match(parts.path) or parts.query or parts.fragment or rest[-1:] in "?#":
        raise EndpointError("a path has letters, digits, and . _ ~ / - only, and no query")
    if port is None:
        port = _DEFAULT_PORTS.get(kind)
    if not port:
        raise EndpointError(f"a {kind} endpoint needs a port")
    url = None
    if kind in _DEFAULT_PORTS:
        shown = f"[{host}]" if ":" in host else host
        path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        url = f"{kind}://{shown}:{port}{path}"
    elif parts.path:
        raise EndpointError(f"a {kind} endpoint is host:port")
    return Endpoint(kind, value, host, port, url)


def _is_host(host: str) -> bool:
    if _HOST.match(host):
        return True
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def instance_id(service_name: str, endpoint: Endpoint) -> str:
    """The same for the same service and endpoint, so that registering twice is once."""
    text = "\0".join((service_name.lower(), endpoint.type, endpoint.value))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def literal_address(host: str, otherwise: str) -> str:
    """The host's address in digits, looked up where it is a name; ``otherwise`` where unknown."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return _resolved(host, int(time.monotonic()) // _RESOLVED_FOR_SECS) or otherwise


@functools.lru_cache(maxsize=1000)
def _resolved(host: str, _: int) -> str | None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    # Eureka's ipAddr is IPv4 to most of its clients.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]) if found else None


def complete(
    *,
    service_name: str,
    endpoint: Endpoint,
    ttl_secs: int,
    address: str,
    status: str = "UP",
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    source: str = SOURCE,
    last_dirty_ms: int = 0,
) -> Instance:
    """A whole Eureka instance from the native form.

    Metadata that are texts named ``status_page_url`` or ``health_check_url`` replace what is
    guessed; ``zone`` is what Spring Cloud prefers zones by.
    """
    metadata = metadata or {}
    identity = instance_id(service_name, endpoint)
    is_secure, is_plain = endpoint.type == "https", endpoint.type not in ("https", "user")
    word, custom = _status(status)
    vip = service_name.lower()
    return Instance(
        app=service_name.upper(),
        id=identity,
        instance_id=identity,
        host_name=endpoint.host,
        ip_addr=address,
        status=word,
        custom_status=custom,
        port=endpoint.port if is_plain else 80,
        port_enabled=is_plain,
        secure_port=endpoint.port if is_secure else 443,
        secure_port_enabled=is_secure,
        renewal_interval_secs=max(1, ttl_secs // 3),
        duration_secs=ttl_secs,
        metadata=flat(metadata, tags),
        home_page_url=endpoint.url,
        status_page_url=_url(metadata, "status_page_url", endpoint, "info"),
        health_check_url=_url(metadata, "health_check_url", endpoint, "health"),
        secure_health_check_url=(
            _url(metadata, "health_check_url", endpoint, "health") if is_secure else None
        ),
        vip_address=vip,
        secure_vip_address=vip,
        endpoint_type=endpoint.type,
        endpoint_value=endpoint.value,
        tags=tuple(tags),
        attributes=orjson.dumps(metadata).decode(),
        source=source,
        last_dirty_ms=last_dirty_ms,
    )


def _status(word: str) -> tuple[InstanceStatus, str | None]:
    """The protocol's status, and the word itself where the protocol has no such one.

    A custom status is one in which the instance can be used: to Eureka clients it is UP.
    """
    try:
        return InstanceStatus(word), None
    except ValueError:
        return InstanceStatus.UP, word


def _url(metadata: Mapping[str, Any], name: str, endpoint: Endpoint, last: str) -> str | None:
    given = metadata.get(name)
    if isinstance(given, str):
        return given
    return None if endpoint.url is None else endpoint.url + last


def flat(metadata: Mapping[str, Any], tags: Sequence[str]) -> dict[str, str]:
    """Metadata as Eureka has it: texts; what is nested as JSON, and the tags under their name."""
    made = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in metadata.items()
    }
    if tags:
        made.setdefault(_TAGS, ",".join(tags))
    return made


def shown_status(instance: Instance) -> str:
    """The custom word while nobody has set another status."""
    if instance.custom_status is not None and instance.status is InstanceStatus.UP:
        return instance.custom_status
    return str(instance.status)


def shown_tags(instance: Instance) -> list[str]:
    """The tags; those of a Eureka client stand in its metadata, parted by commas."""
    if instance.tags:
        return list(instance.tags)
    told = instance.metadata.get(_TAGS, "")
    return [tag.strip() for tag in told.split(",") if tag.strip()]


def shown_metadata(instance: Instance) -> dict[str, Any]:
    """The metadata with their types, and as texts what was changed through Eureka since."""
    typed = orjson.loads(instance.attributes) if instance.attributes else {}
    known = flat(typed, instance.tags)
    made = {
        name: typed[name] if name in typed and known[name] == value else value
        for name, value in instance.metadata.items()
    }
    if _TAGS not in typed and made.get(_TAGS) == known.get(_TAGS):
        made.pop(_TAGS, None)
    return made


def shown_endpoint(instance: Instance) -> dict[str, str]:
    """The endpoint; a Eureka client's is its enabled port, the secure one first."""
    if instance.endpoint_type is not None:
        return {"type": instance.endpoint_type, "value": instance.endpoint_value or ""}
    if instance.secure_port_enabled:
        return {"type": "https", "value": f"{instance.host_name}:{instance.secure_port}"}
    return {"type": "http", "value": f"{instance.host_name}:{instance.port}"}


def service_name(instance: Instance) -> str:
    """How the native API calls the instance's application."""
    return instance.app.lower()


def shown(instance: Instance) -> dict[str, Any]:
    """The native form of any instance, whoever registered it."""
    return {
        "id": instance.id,
        "service_name": service_name(instance),
        "endpoint": shown_endpoint(instance),
        "status": shown_status(instance),
        "tags": shown_tags(instance),
        "metadata": shown_metadata(instance),
        "ttl": instance.duration_secs,
        "source": instance.source,
        "last_heartbeat": instance.last_renewal_ms,
        "revision": instance.revision,
    }


def is_usable(instance: Instance) -> bool:
    """What a list shows unless asked for more: UP, or in a custom status."""
    return instance.status is InstanceStatus.UP
