"""``POST self-preservation/accept-loss``: what self-preservation keeps is let go."""

from __future__ import annotations

import orjson

from eureka_http.exchange import Answer, Request
from native_api.bodies import JSON, json_body
from native_api.problems import ProblemError, problem
from native_api.schemas import Schemas
from registry import AcceptedLoss, NamespaceRegistry

_NO_SERVICE = "error_service_enumeration"


def accept_loss(registry: NamespaceRegistry, schemas: Schemas, request: Request) -> Answer:
    """Accept the loss of a service, or of all; says how many go. ``ProblemError``, ``StoreError``.

    The evictor acts within a second, in whichever worker it is.
    """
    service = schemas.read_loss(json_body(request))
    app = None if service is None else service.upper()
    view = registry.view()
    with view.lock:
        is_known = app is None or app in view.applications
    if not is_known:
        text = f"no instance of {service!r} is registered"
        raise ProblemError(problem(404, text, code=_NO_SERVICE))
    found = registry.accept_loss(app)
    document = {
        "service_name": service,
        "will_go": found.ended,
        "held_by_peers": found.held_back,
        "sentence": _sentence(found, service),
    }
    return Answer(202, orjson.dumps(document), JSON)


def _sentence(found: AcceptedLoss, service: str | None) -> str:
    of = "all services" if service is None else service
    if found.ended:
        what = "instance" if found.ended == 1 else "instances"
        told = f"The loss is accepted: {found.ended} {what} of {of} whose leases have ended go now."
    else:
        told = f"The loss is accepted, but no lease of {of} has ended, so nothing goes."
    if found.held_back:
        told += f" {found.held_back} more stay, because another server may know that they live."
    return told
