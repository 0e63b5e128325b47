"""Makes entries from services and endpoints, which is all that most sources know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from catalogs.addresses import is_literal
from catalogs.bounds import shortened
from catalogs.catalog import Entry
from native_api import form
from native_api.settings import NativeSettings
from registry import DEFAULT_DURATION_SECS, Namespace

LIMITS = NativeSettings(max_endpoint=2048, max_metadata_bytes=65_536)
"""A source may have longer endpoints and more metadata than a client may register."""


class EntryError(ValueError):
    """Something in a source cannot be listed; the text says why."""


def entry(
    source: str,
    *,
    service_name: str,
    endpoint_type: str,
    endpoint_value: str,
    namespace: Namespace,
    status: str = "UP",
    tags: Sequence[str] = (),
    metadata: Any = None,
) -> Entry:
    """A complete Eureka instance for an endpoint; raises ``EntryError``.

    If the endpoint names a host, ``ip_addr`` stays empty, and the reconciler looks it up. The id
    is derived from service and endpoint, so the same endpoint is the same instance wherever it is
    found.
    """
    try:
        _check_name(service_name)
        endpoint = form.parsed_endpoint(endpoint_type, endpoint_value)
        _check_size(metadata)
        instance = form.complete(
            service_name=service_name,
            endpoint=endpoint,
            ttl_secs=DEFAULT_DURATION_SECS,
            address=_address(endpoint),
            status=status,
            tags=(*tags, source),
            metadata=metadata,
            source=source,
        )
    except (ValueError, TypeError) as error:  # a TypeError: metadata that JSON cannot express
        raise EntryError(str(error)) from None
    return Entry(instance, namespace)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= LIMITS.max_service_name:
        raise ValueError(
            f"{shortened(name)} is no service's name: from 1 to {LIMITS.max_service_name} "
            "characters"
        )
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"{shortened(repr(name))} is no service's name")


def _check_size(metadata: Any) -> None:
    size = len(orjson.dumps(metadata))
    if size > LIMITS.max_metadata_bytes:
        raise ValueError(f"at most {LIMITS.max_metadata_bytes} bytes of metadata, not {size}")


def _address(endpoint: form.Endpoint) -> str:
    if not endpoint.host:
        return form.NO_ADDRESS
    return endpoint.host if is_literal(endpoint.host) else ""


def entry_of(source: str, data: Mapping[str, Any], namespace: Namespace) -> Entry:
    """The entry of a registration in the native form, checked by ``Schemas``."""
    return entry(
        source,
        service_name=data["service_name"],
        endpoint_type=data["endpoint"]["type"],
        endpoint_value=data["endpoint"]["value"],
        status=data.get("status", "UP"),
        tags=data.get("tags", ()),
        metadata=data.get("metadata"),
        namespace=namespace,
    )
