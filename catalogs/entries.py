"""Entries from the native form, for the sources that know services and endpoints only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalogs.addresses import is_literal
from catalogs.catalog import Entry
from native_api import form
from registry import DEFAULT_DURATION_SECS, DEFAULT_NAMESPACE, Namespace


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
    """A whole Eureka instance of what a source says; ``form.EndpointError``.

    Its address is left open where the endpoint names a host: the reconciler looks it up. Its id
    comes from service and endpoint, so the same endpoint is the same instance wherever it is found.
    """
    endpoint = form.parsed_endpoint(endpoint_type, endpoint_value)
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
    return Entry(instance, namespace)


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
