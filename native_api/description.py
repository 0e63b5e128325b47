"""What describes the API: its OpenAPI document and a page that shows it without any network."""

from __future__ import annotations

import functools
from pathlib import Path

import orjson
import yaml

from exchange import Answer

_HERE = Path(__file__).parent


@functools.cache
def openapi() -> Answer:
    """The OpenAPI document as JSON."""
    document = yaml.safe_load((_HERE / "openapi.yaml").read_text(encoding="utf-8"))
    return Answer(200, orjson.dumps(document), "application/json")


@functools.cache
def page() -> Answer:
    """The documentation page; it fetches ``openapi.json`` beside itself and nothing else."""
    body = (_HERE / "docs.html").read_bytes()
    return Answer(200, body, "text/html; charset=utf-8")
