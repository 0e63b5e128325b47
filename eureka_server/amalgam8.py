"""An Amalgam8 registry's environment variables. Source: the registry's ``config`` package."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping

from eureka_server.foreign_settings import ForeignSettings, Understood

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_NO_LIMIT = str(2**31)


def _seconds(text: str) -> str:
    """A duration as Go writes it (``1m30s``) in whole seconds, rounded up."""
    if not _DURATION.fullmatch(text):
        return text
    return str(math.ceil(sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text))))


def _switch(text: str) -> str:
    return {"t": "true", "f": "false"}.get(text.strip().lower(), text)


def _level(text: str) -> str:
    known = {"warn": "warning", "fatal": "error", "panic": "error"}
    return known.get(text.strip().lower(), text)


def _capacity(text: str) -> str:
    return _NO_LIMIT if text.strip() == "-1" else text


# Variable → this server's, and how its value is spelled there.
_MEANT: dict[str, tuple[str, Callable[[str], str]]] = {
    "A8_API_PORT": ("PORT", str),
    "A8_LOG_LEVEL": ("LOG_LEVEL", _level),
    "A8_AUTH_MODE": ("REGISTRY_AUTH", str),
    "A8_JWT_SECRET": ("REGISTRY_JWT_KEY", str),
    "A8_REQUIRE_HTTPS": ("REGISTRY_REQUIRE_HTTPS", _switch),
    "A8_DEFAULT_TTL": ("REGISTRY_DEFAULT_TTL", _seconds),
    "A8_MIN_TTL": ("REGISTRY_MIN_TTL", _seconds),
    "A8_MAX_TTL": ("REGISTRY_MAX_TTL", _seconds),
    "A8_NAMESPACE_CAPACITY": ("REGISTRY_MAX_INSTANCES", _capacity),
}
_CATALOGS = ("A8_K8S_URL", "A8_EUREKA_URL", "A8_FS_CATALOG")
CATALOGS = "its catalogs"
"""Stands for what ``REGISTRY_CATALOGS`` would hold, which may be set beside it."""

_ONE_STORE = "the store is this server's own: STORE_URL"
_NO_PEERS = "servers replicate as Eureka's do here, see EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE"
_SIDECAR = "it is a sidecar's, not a registry's"
_WITHOUT_MEANING: dict[str, str] = {
    "A8_LOG_FORMAT": "the log has one form",
    "A8_REPLICATION": _NO_PEERS,
    "A8_REPLICATION_PORT": _NO_PEERS,
    "A8_SYNC_TIMEOUT": _NO_PEERS,
    "A8_CLUSTER_DIR": _NO_PEERS,
    "A8_CLUSTER_SIZE": _NO_PEERS,
    "A8_STORE": _ONE_STORE,
    "A8_STORE_ADDRESS": _ONE_STORE,
    "A8_STORE_PASSWORD": _ONE_STORE,
    "A8_K8S_TOKEN": "it belongs to A8_K8S_URL, which is not set",
    **dict.fromkeys(
        (
            *("A8_CONFIG", "A8_REGISTER", "A8_PROXY", "A8_SERVICE", "A8_SUPERVISE"),
            *("A8_ENDPOINT_HOST", "A8_ENDPOINT_PORT", "A8_ENDPOINT_TYPE", "A8_HEALTHCHECKS"),
            *("A8_REGISTRY_URL", "A8_REGISTRY_TOKEN", "A8_REGISTRY_POLL", "A8_DEBUG"),
            *("A8_CONTROLLER_URL", "A8_CONTROLLER_TOKEN", "A8_CONTROLLER_POLL"),
        ),
        _SIDECAR,
    ),
}


def _several(given: Mapping[str, str]) -> tuple[Understood, frozenset[str]]:
    """What variables say together: tokens without an end, and the catalogs."""
    found: Understood = {}
    if "A8_JWT_SECRET" in given:
        # The tokens that its clients hold have no end.
        found["REGISTRY_JWT_REQUIRE_EXP"] = ("A8_JWT_SECRET", "false")
    catalogs: list[dict[str, object]] = []
    counted = [name for name in _CATALOGS if name in given]
    if "A8_K8S_URL" in given:
        kubernetes: dict[str, object] = {
            "kind": "kubernetes",
            "name": "a8",
            "server": given["A8_K8S_URL"],
        }
        if "A8_K8S_TOKEN" in given:
            kubernetes["token"] = given["A8_K8S_TOKEN"]
        catalogs.append(kubernetes)
    if "A8_EUREKA_URL" in given:
        urls = [url.strip() for url in given["A8_EUREKA_URL"].split(",") if url.strip()]
        catalogs.append({"kind": "eureka", "name": "a8", "urls": urls})
    if "A8_FS_CATALOG" in given:
        catalogs.append({"kind": "file", "name": "a8", "folder": given["A8_FS_CATALOG"]})
    if catalogs:
        found[CATALOGS] = (" and ".join(counted), json.dumps(catalogs))
    with_token = ["A8_K8S_TOKEN"] if "A8_K8S_URL" in given else []
    return found, frozenset((*counted, *with_token))


AMALGAM8 = ForeignSettings(
    prefixes=("A8_",),
    meant=_MEANT,
    without_meaning=_WITHOUT_MEANING,
    several=_several,
)
