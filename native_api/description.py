"""What describes the API: its OpenAPI document and a page that shows it without any network."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import orjson
import yaml

from eureka_http.exchange import Answer
from native_api.settings import NativeSettings

_HERE = Path(__file__).parent


@functools.cache
def openapi(settings: NativeSettings) -> Answer:
    """The OpenAPI document as JSON, with the limits that are set."""
    document = yaml.safe_load((_HERE / "openapi.yaml").read_text(encoding="utf-8"))
    _set_limits(document["components"]["schemas"], settings)
    return Answer(200, orjson.dumps(document), "application/json")


def _set_limits(schemas: dict[str, Any], settings: NativeSettings) -> None:
    for form in schemas["Endpoint"]["oneOf"]:
        form["properties"]["value"]["maxLength"] = settings.max_endpoint
    schemas["Status"]["maxLength"] = settings.max_status
    schemas["Tags"]["maxItems"] = settings.max_tags
    schemas["Tags"]["items"]["maxLength"] = settings.max_service_name
    schemas["Metadata"]["description"] = (
        f"Any JSON, at most {settings.max_metadata_bytes} bytes of it (a setting)."
    )
    for kind in schemas["Metadata"]["anyOf"]:
        if kind["type"] == "string":
            kind["maxLength"] = settings.max_metadata_bytes - len('""')
    registration = schemas["Registration"]["properties"]
    registration["service_name"]["maxLength"] = settings.max_service_name
    bounds = f" They are {settings.min_ttl_secs} and {settings.max_ttl_secs}."
    registration["ttl"] |= {
        "description": registration["ttl"]["description"] + bounds,
        "default": settings.default_ttl_secs,
    }


@functools.cache
def page() -> Answer:
    """The documentation page; it fetches ``openapi.json`` beside itself and nothing else."""
    return html((_HERE / "docs.html").read_bytes())


def html(body: bytes) -> Answer:
    """A page of ours: nothing may frame it, and in it nothing runs or is fetched but its own."""

    def allowed(tag: bytes) -> str:
        parts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {allowed(b'script')}; style-src {allowed(b'style')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Answer(200, body, "text/html; charset=utf-8", headers)
