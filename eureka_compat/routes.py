"""What the requests of the protocol are counted as."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

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


def split(path: str) -> tuple[str, list[str]]:
    """The resource that a path names, and what follows it."""
    raw = path.split("/")
    if raw[0].startswith("v2") and len(raw) > 1:
        raw = raw[1:]  # to the original, too, whatever begins so is a version
    while len(raw) > 1 and raw[0] in ("", "."):
        raw = raw[1:]
    if len(raw) > 1 and raw[-1] == "":
        raw.pop()  # one trailing slash is as good as none
    return raw[0], raw[1:]


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


def fetched(path: str) -> tuple[str, str, bool] | None:
    """What a path lists: ``apps``, ``vips`` or ``svips``, and the name of that which is listed.

    Of everything both are empty. Last comes whether it is a delta. None for what is no list.
    """
    match split(path):
        case "apps", []:
            return "", "", False
        case "apps", ["delta"]:
            return "", "", True
        case "apps", [app]:
            return "apps", unquote(app).upper(), False
        case ("vips" | "svips") as kind, [_, *_] as rest:
            return kind, unquote("/".join(rest)), False
    return None
