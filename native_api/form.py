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
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from registry import Instance, InstanceStatus, duration_ms

SOURCE = "native"
ENDPOINT_TYPES = ("http", "https", "tcp", "udp", "user")
_DEFAULT_PORTS = {"http": 80, "https": 443}
NO_ADDRESS = "0.0.0.0"
_RESOLVED_FOR_SECS = 30
_TAGS, _WHOLE, _NAME = "tags", "metadata", "service_name"
# Labels as Java's ``IDN.toASCII`` takes them: Armeria gives a whole list up where one is none.
_LABEL = "[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")
# Latin, Greek, Cyrillic and Chinese letters, which every version of IDNA has.
_LETTER = r"[A-Za-z0-9_\u00df-\u00f6\u00f8-\u00ff\u03b1-\u03c9\u0430-\u044f\u4e00-\u9fa5-]"
_IDN = re.compile(rf"{_LETTER}{{1,30}}(?:\.{_LETTER}{{1,30}})*\Z")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*\Z")
_URL = re.compile(r"https?://[A-Za-z0-9._~:\[\]-]+(?:/[A-Za-z0-9._~:@!$&'()*+,;=/?%-]*)?\Z")


class EndpointError(ValueError):
    """An endpoint's value that its type cannot have."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an instance is reached, taken apart.

    ``host`` is in ASCII and lower case, without brackets; empty for ``user``. ``port`` is 0 where
    none is told and the type has no usual one. ``url`` is there for http and https only.
    """

    type: str
    value: str
    host: str
    port: int
    path: str
    url: str | None

    @property
    def canonical(self) -> str:
        """One text for all spellings of the same endpoint, such as with and without a scheme."""
        if self.type == "user":
            return self.value
        return f"{_in_url(self.host)}:{self.port}{self.path.rstrip('/')}"


@functools.lru_cache(maxsize=10_000)
def parsed_endpoint(kind: str, value: str) -> Endpoint:
    """Take a value such as ``host:port``, ``host`` or a URL apart; ``EndpointError``.

    A value of type ``user`` may be anything (the path of a socket, say).
    """
    if kind == "user":
        return Endpoint(kind, value, "", 0, "", None)
    scheme, mark, rest = value.partition("://")
    if not mark:
        scheme, rest = kind, value
    if scheme.lower() != kind:
        raise EndpointError(f"a {kind} endpoint cannot begin with {scheme}://")
    if _is_ipv6(rest):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"{kind}://{rest}")
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except ValueError as error:
        raise EndpointError(f"not host:port or a URL: {error}") from None
    if parts.username is not None or port == 0:
        raise EndpointError("not host:port or a URL")
    if not _PATH.match(parts.path) or parts.query or parts.fragment or rest[-1:] in "?#":
        raise EndpointError("a path has letters, digits, and . _ ~ / - only, and no query")
    if port is None:
        port = _DEFAULT_PORTS.get(kind, 0)
    url = None
    if kind in _DEFAULT_PORTS:
        path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        url = f"{kind}://{_in_url(host)}:{port}{path}"
    elif parts.path:
        raise EndpointError(f"a {kind} endpoint is host:port")
    return Endpoint(kind, value, host, port, parts.path, url)


def _ascii_host(host: str) -> str:
    """The host as it stands in a URL, but for brackets; ``ValueError`` where it cannot be one."""
    if _HOST.match(host):
        return host
    if _is_ipv6(host):
        return ipaddress.IPv6Address(host).compressed
    if not host.isascii() and _IDN.match(host):
        return host.encode("idna").decode()
    raise ValueError("this is no host")


def _is_ipv6(text: str) -> bool:
    # A zone is a matter of the machine that it was told on.
    try:
        return ":" in text and "%" not in text and bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def instance_id(service_name: str, endpoint: Endpoint) -> str:
    """The id of an instance: registering the same service and endpoint again gives the same."""
    text = "\0".join((service_name, endpoint.type, endpoint.canonical))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def literal_address(host: str, otherwise: str) -> str:
    """The host's address in digits, looked up where it is a name; ``otherwise`` where unknown."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        now = int(time.monotonic()) // _RESOLVED_FOR_SECS
        return (_resolved(host, now) if host else None) or otherwise or NO_ADDRESS


@functools.lru_cache(maxsize=1000)
def _resolved(host: str, _: int) -> str | None:
    return looked_up(host)


def looked_up(host: str) -> str | None:
    """The host's address, the same one while it is among the answers; None where it has none.

    IPv4 before IPv6, since Eureka's ipAddr is IPv4 to most of its clients.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # what is no host's name at all is one of these
        return None
    # Name servers answer in turns; without an order each look would be a change.
    found.sort(key=lambda entry: (entry[0] != socket.AF_INET, entry[4][0]))
    return str(found[0][4][0]) if found else None


def complete(
    *,
    service_name: str,
    endpoint: Endpoint,
    ttl_secs: int,
    address: str,
    status: str = "UP",
    tags: Sequence[str] = (),
    metadata: Any = None,
    source: str = SOURCE,
    last_dirty_ms: int = 0,
) -> Instance:
    """A whole Eureka instance from the native form.

    Metadata that are URLs named ``status_page_url`` or ``health_check_url`` replace what is
    guessed; ``zone`` is what Spring Cloud prefers zones by. Where the endpoint names no host,
    ``address`` is the host too: Eureka clients make URLs of it and give up at one that is none.
    """
    metadata = {} if metadata is None else metadata
    identity = instance_id(service_name, endpoint)
    is_secure = endpoint.type == "https"
    is_plain = not is_secure and endpoint.port > 0
    word, custom = _status(status)
    # Eureka would take a comma for the end of one VIP and the beginning of another.
    vip = service_name.lower().replace(",", "_")
    host = _in_url(endpoint.host or address)
    home = endpoint.url or f"http://{host}:{endpoint.port or 80}/"
    health = _url(metadata, "health_check_url") or f"{home}health"
    status_page = f"{home}info" if endpoint.url else None
    return Instance(
        app=service_name.upper(),
        id=identity,
        instance_id=identity,
        host_name=host,
        ip_addr=address,
        status=word,
        custom_status=custom,
        port=endpoint.port if is_plain else 80,
        port_enabled=is_plain,
        secure_port=endpoint.port if is_secure else 443,
        secure_port_enabled=is_secure,
        renewal_interval_secs=max(1, ttl_secs // 3),
        duration_secs=ttl_secs,
        metadata=flat(metadata, tags, service_name),
        home_page_url=endpoint.url,
        status_page_url=_url(metadata, "status_page_url") or status_page,
        health_check_url=health,
        secure_health_check_url=health if is_secure else None,
        vip_address=vip,
        secure_vip_address=vip,
        service_name=service_name,
        endpoint_type=endpoint.type,
        endpoint_value=endpoint.value,
        tags=tuple(tags),
        attributes=orjson.dumps(metadata).decode(),
        source=source,
        last_dirty_ms=last_dirty_ms,
    )


def changed(listed: Instance, change: Mapping[str, Any], now_ms: int) -> Instance:
    """A native instance with these fields in place of its own: status, tags and metadata.

    What is not among them stays. ``now_ms`` is the time of the change (epoch milliseconds).
    """
    made = complete(
        service_name=service_name(listed),
        endpoint=parsed_endpoint(listed.endpoint_type or "", listed.endpoint_value or ""),
        ttl_secs=listed.duration_secs,
        address=listed.ip_addr,
        status=change.get("status", "UP"),
        tags=change.get("tags", shown_tags(listed)),
        metadata=change.get("metadata", shown_metadata(listed)),
        last_dirty_ms=max(listed.last_dirty_ms, now_ms),
    )
    if "status" in change:
        return made
    return made._replace(status=listed.status, custom_status=listed.custom_status)


def _status(word: str) -> tuple[InstanceStatus, str | None]:
    """The protocol's status, and the word itself where the protocol has no such one.

    The case of a status does not count. A custom one is one in which the instance can be used: to
    Eureka clients it is UP.
    """
    try:
        return InstanceStatus(word.upper()), None
    except ValueError:
        return InstanceStatus.UP, word


def _url(metadata: Any, name: str) -> str | None:
    """A URL from the metadata, where it is one that every client can parse."""
    given = metadata.get(name) if isinstance(metadata, Mapping) else None
    return given if isinstance(given, str) and _URL.match(given) else None


def flat(metadata: Any, tags: Sequence[str], service_name: str) -> dict[str, str]:
    """Metadata as Eureka has it: texts; what is nested as JSON, and the tags under their name.

    Metadata that are no object are the entry ``metadata``. Two services whose names differ in case
    only are one application there: the entry ``service_name`` tells them apart.
    """
    entries = metadata if isinstance(metadata, Mapping) else {_WHOLE: metadata}
    made = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in entries.items()
    }
    if tags:
        made.setdefault(_TAGS, ",".join(tags))
    if service_name != service_name.upper().lower():
        made.setdefault(_NAME, service_name)
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


def shown_metadata(instance: Instance) -> Any:
    """The metadata with their types, and as texts what was changed through Eureka since."""
    typed = orjson.loads(instance.attributes) if instance.attributes else {}
    known = flat(typed, instance.tags, service_name(instance))
    if instance.metadata == known:
        return typed
    if not isinstance(typed, dict):
        typed = {_WHOLE: typed}
    made = {
        name: typed[name] if name in typed and known[name] == value else value
        for name, value in instance.metadata.items()
    }
    for name in (_TAGS, _NAME):
        if name not in typed and made.get(name) == known.get(name):
            made.pop(name, None)
    return made


def shown_endpoint(instance: Instance) -> dict[str, str]:
    """The endpoint; a Eureka client's is its enabled port, the secure one first."""
    if instance.endpoint_type is not None:
        return {"type": instance.endpoint_type, "value": instance.endpoint_value or ""}
    if instance.secure_port_enabled:
        return {"type": "https", "value": f"{instance.host_name}:{instance.secure_port}"}
    return {"type": "http", "value": f"{instance.host_name}:{instance.port}"}


def shown_override(instance: Instance) -> str | None:
    """The status that an operator has set above the instance's own."""
    overridden = instance.overridden_status
    return None if overridden is InstanceStatus.UNKNOWN else str(overridden)


def zone(instance: Instance) -> str | None:
    """Where it runs: what Spring Cloud prefers by, or Amazon's word for it."""
    amazon = instance.data_center.amazon_metadata or {}
    return instance.metadata.get("zone") or amazon.get("availability-zone")


def vips(address: str | None) -> list[str]:
    """The virtual addresses in what an instance names as one."""
    return [vip for vip in (address or "").split(",") if vip]


def service_name(instance: Instance) -> str:
    """How the native API calls the instance's application: as it was registered there."""
    return instance.app.lower() if instance.service_name is None else instance.service_name


def is_of(instance: Instance, service: str) -> bool:
    """Whether it is the service's.

    Case counts, but for those that a Eureka client registered: their names have none.
    """
    if instance.service_name is None:
        return instance.app == service.upper()
    return instance.service_name == service


def instant(epoch_ms: int) -> str:
    """An instant as RFC 3339 has it, in UTC."""
    return f"{_second(epoch_ms // 1000)}.{epoch_ms % 1000:03d}Z"


@functools.lru_cache(maxsize=1000)
def _second(epoch_secs: int) -> str:
    return datetime.fromtimestamp(epoch_secs, UTC).strftime("%Y-%m-%dT%H:%M:%S")


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
        "last_heartbeat": instant(instance.last_renewal_ms),
        "revision": instance.revision,
    }


def is_usable(instance: Instance) -> bool:
    """What a list shows unless asked for more: UP, or in a custom status."""
    return instance.status is InstanceStatus.UP


def details(instance: Instance, ends_ms: int | None = None) -> dict[str, Any]:
    """What lists leave out of an instance unasked, for those who look after it.

    ``ends_ms`` is when its lease ends; without it, when it did as of the instance's last change.
    """
    if ends_ms is None:
        ends_ms = instance.last_renewal_ms + duration_ms(instance.lease_secs)
    urls = {
        "home": instance.home_page_url,
        "status": instance.status_page_url,
        "health": instance.health_check_url,
        "secure_health": instance.secure_health_check_url,
    }
    return {
        "app": instance.app,
        "override": shown_override(instance),
        "zone": zone(instance),
        "address": instance.ip_addr,
        "host": instance.host_name,
        "vips": vips(instance.vip_address),
        "secure_vips": vips(instance.secure_vip_address),
        "renewal_interval": instance.renewal_interval_secs,
        "expires": instant(ends_ms) if instance.expires else None,
        "registered": instant(instance.registration_ms),
        "changed": instant(instance.last_updated_ms),
        "urls": {name: url for name, url in urls.items() if url},
    }
