"""What the requests of the protocol are counted as."""

from __future__ import annotations

from collections.abc import Sequence

FETCH_ALL = "fetch-all"
FETCH_DELTA = "fetch-delta"
FETCH_APPLICATION = "fetch-application"
FETCH_VIP = "fetch-vip"
FETCH_INSTANCE = "fetch-instance"
REGISTER = "register"
RENEW = "renew"
CANCEL = "cancel"
OVERRIDE = "override"
METADATA = "metadata"
REPLICATE = "replicate"
OTHER = "eureka-other"

FETCHES = (FETCH_ALL, FETCH_DELTA, FETCH_APPLICATION, FETCH_VIP, FETCH_INSTANCE)
"""Those by which clients learn of instances."""

ROUTES = (*FETCHES, REGISTER, RENEW, CANCEL, OVERRIDE, METADATA, REPLICATE, OTHER)


def route(method: str, resource: str, rest: Sequence[str]) -> str:
    """The route of a request: its path is the resource, and what follows that."""
    is_read = method in ("GET", "HEAD")
    match resource, rest:
        case "apps", []:
            return FETCH_ALL if is_read else OTHER
        case "apps", ["delta"]:
            return FETCH_DELTA if is_read else OTHER
        case "apps", [_]:
            return FETCH_APPLICATION if is_read else REGISTER if method == "POST" else OTHER
        case "apps", [*_, last] if len(rest) > 2 and last == "status" and not is_read:
            return OVERRIDE
        case "apps", [*_, last] if len(rest) > 2 and last == "metadata" and not is_read:
            return METADATA
        case "apps", _:
            return _OF_INSTANCES.get(method, OTHER)
        case (("vips" | "svips"), [_, *_]):
            return FETCH_VIP if is_read else OTHER
        case "instances", [_, *_]:
            return FETCH_INSTANCE if is_read else OTHER
        case "peerreplication", ["batch"]:
            return REPLICATE
    return OTHER


_OF_INSTANCES = {"GET": FETCH_INSTANCE, "HEAD": FETCH_INSTANCE, "PUT": RENEW, "DELETE": CANCEL}
