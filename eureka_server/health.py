"""How this process is, for those who look after it: probes, Spring's among them.

Images and charts that were written for a Spring server ask it at ``/actuator/health`` whether it
lives. The answers here are Spring's own; what they say is what ``/health/live`` and
``/health/ready`` say. None of it needs an account.
``/uptime`` is for those who looked after an Amalgam8 registry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from flask import Blueprint, Response, json, jsonify, request

from registry import Registry, StoreError

_MEDIA = (
    "application/vnd.spring-boot.actuator.v3+json",
    "application/vnd.spring-boot.actuator.v2+json",
    "application/json",
)
_UNKNOWN_BUILD = {
    **dict.fromkeys(("build_version", "build_revision", "build_goversion"), "unknown"),
    "build_date": "0001-01-01T00:00:00Z",
}


def blueprint(registry: Registry, *, actuator: bool, is_open: Callable[[], bool]) -> Blueprint:
    """Probes; with ``actuator`` Spring's too, and ``/health``."""
    routes = Blueprint("health", __name__)

    def looked() -> tuple[bool, str | None]:
        """Whether this server is to be asked, and what is to be said of it.

        It is not for its store, or where it knows nothing as yet. Whether the store takes writes is
        tried: the evictor's own note is one.
        """
        try:
            remark = registry.check()
        except StoreError as error:
            return False, str(error)
        if not is_open():
            return False, "it started empty, and no peer has answered yet"
        return True, remark

    @routes.get("/health/live")
    def live() -> Response:
        """Whether this process answers."""
        return jsonify(status="UP")

    @routes.get("/health/ready")
    def ready() -> tuple[Response, int]:
        """Whether the store takes writes, and there is something to serve."""
        is_ready, reason = looked()
        told = {} if reason is None else {"reason": reason}
        return jsonify(status="UP" if is_ready else "DOWN", **told), 200 if is_ready else 503

    began = time.monotonic()

    @routes.get("/uptime")
    def uptime() -> Response:
        """How long this process has been there, and how busy the machine is."""
        loads = zip(("load_1m", "load_5m", "load_15m"), os.getloadavg(), strict=True)
        properties = {name: round(load, 3) for name, load in loads}
        up = {"uptime": f"{time.monotonic() - began:.3f}s", **properties, **_UNKNOWN_BUILD}
        return jsonify(UPTIME={"healthy": True, "properties": up})

    if actuator:
        _add_actuator(routes, lambda: looked()[0])
    return routes


def _add_actuator(routes: Blueprint, is_ready: Callable[[], bool]) -> None:
    def as_spring_does(status: str) -> Response:
        return _told({"status": status}, 200 if status == "UP" else 503)

    @routes.get("/health")
    @routes.get("/actuator/health", strict_slashes=False)
    def whole() -> Response:
        return as_spring_does("UP" if is_ready() else "DOWN")

    @routes.get("/actuator/health/readiness", strict_slashes=False)
    def readiness() -> Response:
        return as_spring_does("UP" if is_ready() else "OUT_OF_SERVICE")

    @routes.get("/actuator/health/liveness", strict_slashes=False)
    def liveness() -> Response:
        return as_spring_does("UP")

    @routes.get("/actuator/info", strict_slashes=False)
    def info() -> Response:
        return _told({})

    @routes.get("/actuator", strict_slashes=False)
    def links() -> Response:
        base = f"{request.root_url.rstrip('/')}/actuator"
        paths = {"self": "", "health": "/health", "health-path": "/health/{*path}", "info": "/info"}
        told = {
            name: {"href": base + path, "templated": "{" in path} for name, path in paths.items()
        }
        return _told({"_links": told})


def _told(document: dict[str, object], status: int = 200) -> Response:
    """A document in the actuator's type, or in the one of its types that is asked for."""
    # What asks for none of them, such as a browser, can still read it.
    media = request.accept_mimetypes.best_match(_MEDIA, default=_MEDIA[0])
    return Response(json.dumps(document, separators=(",", ":")), status, content_type=media)
