"""``GET instances/ID/why``: the registry's explanation, in the native API's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from native_api.form import instant
from registry import NamespaceRegistry, explain

_INSTANT = "_ms"
_SPANS = frozenset({"renewed_ms_ago", "lease_ends_in_ms", "gone_ms_ago"})


def document(
    registry: NamespaceRegistry,
    instance_id: str,
    service: str | None,
    catalogs: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    is_quick: bool,
) -> dict[str, Any]:
    """The paragraph and its facts as JSON values; ``StoreError``, ``NotYetError``.

    Instants are RFC 3339, under the fact's name with ``_at`` in place of ``_ms``.
    """
    app = None if service is None else service.upper()
    found = explain(registry, instance_id, app, catalogs=catalogs, is_quick=is_quick)
    facts = dict(_told(name, value) for name, value in found.facts.items())
    return {"why": found.text, "facts": facts}


def _told(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith(_INSTANT) and name not in _SPANS:
        return f"{name.removesuffix(_INSTANT)}_at", None if value is None else instant(value)
    return name, value
