"""Entries from the native form, for the sources that know services and endpoints only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from catalogs.addresses import is_literal
from catalogs.bounds import shortened
from catalogs.catalog import Entry
from native_api import form
from native_api.settings import NativeSettings
from registry import DEFAULT_DURATION_SECS, DEFAULT_NAMESPACE, Namespace

LIMITS = NativeSettings(max_endpoint=2048, max_metadata_bytes=65_536)
"""What a service may have here: a longer endpoint and more metadata than a client may register."""


class EntryError(ValueError):
    """What cannot be listed of what a source says, and why."""


def entry(
    source: str,
    *,
    service_name: str,
    endpoint_type: str,
    endpoint_value: str,
    status: str = "UP",
    tags: Sequence[str] = (),
    metadata: Any = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> Entry:
    """A whole Eureka instance of what a source says; ``EntryError``.

    Its address is left open where the endpoint names a host: the reconciler looks it up. Its id
    comes from service and endpoint, so the same endpoint is the same instance wherever it is found.
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
    except (ValueError, TypeError) as error:  # what JSON does not have is a TypeError of its own
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
    """The entry of a document in the native form, as ``Schemas.checked_registration`` gives it."""
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
