"""The batch of actions by which a peer replicates: ``POST peerreplication/batch``.

Source: protocol section 9.3.
"""

from __future__ import annotations

import logging
from typing import Any

from eureka_compat import codecs, wire
from eureka_compat.actions import Actions
from eureka_compat.negotiation import JSON, XML, is_json_body, negotiated, read_body
from eureka_compat.refusals import parse_failure
from eureka_http.exchange import Answer, Request
from registry import (
    RENEWED_BY_PEER,
    Instance,
    InvalidIdentityError,
    NamespaceRegistry,
    QuotaError,
    SourceConflictError,
)

log = logging.getLogger("eureka")

_KEYS = {
    "appName",
    "id",
    "lastDirtyTimestamp",
    "overriddenStatus",
    "status",
    "instanceInfo",
    "action",
}
_ACTIONS = {"Register", "Heartbeat", "Cancel", "StatusUpdate", "DeleteStatusOverride"}
_PACKAGE = "com.netflix.eureka.cluster.protocol"


class Batches:
    """Answers the batches of peers, in one namespace."""

    def __init__(self, registry: NamespaceRegistry, actions: Actions, max_batch_bytes: int) -> None:
        """A body of more bytes is refused."""
        self._registry = registry
        self._actions = actions
        self._max_batch_bytes = max_batch_bytes

    def answer(self, request: Request) -> Answer:
        """Do all actions, in their order, and tell what became of each."""
        body = read_body(request, self._max_batch_bytes)
        if not is_json_body(request.headers):
            return Answer(415)
        try:
            items = _items(codecs.batch_from_json(body))
        except wire.ParseError as error:
            return parse_failure(str(error), True)
        outcomes = [self._outcome(item) for item in items]
        responses: list[dict[str, Any]] = []
        for status, entity in outcomes:
            response: dict[str, Any] = {"statusCode": status}
            if entity is not None:
                # Entities show the state after the whole batch, as the original's do.
                current = self._registry.instance(entity.app, entity.id)
                response["responseEntity"] = wire.instance_tree(current or entity)
            responses.append(response)
        if negotiated(request.headers.get("accept")) == XML:
            # No peer asks for it; the original names its classes here, and so do we.
            return Answer(200, _as_xml(responses), XML)
        return Answer(200, codecs.to_json({"responseList": responses}), JSON)

    def _outcome(self, item: dict[str, Any]) -> tuple[int, Instance | None]:
        """Do one action: its status, and the instance of a 409."""
        app, instance_id = item.get("appName"), item.get("id")
        if not isinstance(app, str) or not isinstance(instance_id, str):
            return 500, None
        try:
            code, entity = self._done(app, instance_id, item)
        except (SourceConflictError, InvalidIdentityError, QuotaError) as error:
            log.warning("refused from a peer: %s", error)
            return 500, None
        # What a request is refused with is an exception of the original's, amid a batch.
        return (500 if code == 400 else code), entity

    def _done(
        self, app: str, instance_id: str, item: dict[str, Any]
    ) -> tuple[int, Instance | None]:
        actions, dirty, status = self._actions, item.get("lastDirtyTimestamp"), item.get("status")
        told = None if dirty is None else str(dirty)
        match item.get("action"):
            case "Register":
                return self._register(app, item.get("instanceInfo")), None
            case "Heartbeat":
                override = item.get("overriddenStatus")
                found = actions.renew(app, instance_id, told, override, is_replication=True)
                self._registry.counted[RENEWED_BY_PEER] += found[0] == 200
                return found
            case "Cancel":
                return actions.cancel(app, instance_id, is_replication=True), None
            case "StatusUpdate":
                code = actions.update_status(app, instance_id, status, told, is_replication=True)
                return code, None
            case "DeleteStatusOverride" if told is not None:
                code = actions.delete_override(app, instance_id, status, told, is_replication=True)
                return code, None
        return 500, None

    def _register(self, app: str, candidate: wire.Candidate | None) -> int:
        if candidate is None:
            return 500
        try:
            instance = self._actions.validated(app, candidate)
        except wire.InvalidInstanceError as error:
            # The original answers 200 even for an instance that it refused.
            log.warning("a peer sent an instance that is none: %s", error)
            return 200
        self._actions.register(instance, is_replication=True)
        return 200


def _items(document: Any) -> list[dict[str, Any]]:
    """The items of a batch; ``ParseError`` where any is not as a genuine peer sends it."""
    if not isinstance(document, dict) or not isinstance(document.get("replicationList"), list):
        raise wire.ParseError("replicationList: expected an array")
    items: list[dict[str, Any]] = document["replicationList"]
    for position, item in enumerate(items):
        path = f"replicationList[{position}]"
        if not isinstance(item, dict):
            raise wire.ParseError(f"{path}: expected an object")
        unknown = item.keys() - _KEYS
        if unknown:
            raise wire.ParseError(f"{path}.{min(unknown)}: unknown key")
        action = item.get("action")
        if action is not None and (not isinstance(action, str) or action not in _ACTIONS):
            raise wire.ParseError(f"{path}.action: expected one of {sorted(_ACTIONS)}")
        for name in ("appName", "id", "status", "overriddenStatus"):
            if item.get(name) is not None:
                item[name] = wire.scalar(item[name], f"{path}.{name}")
        told = f"{path}.lastDirtyTimestamp"
        item["lastDirtyTimestamp"] = wire.long_number(item.get("lastDirtyTimestamp"), told)
        if item.get("instanceInfo") is not None:
            tree = codecs.as_read_from_json(item["instanceInfo"])
            item["instanceInfo"] = wire.read_candidate(tree)
    return items


def _as_xml(responses: list[dict[str, Any]]) -> bytes:
    lines = [f"<{_PACKAGE}.ReplicationListResponse>"]
    if responses:
        lines.append("  <responseList>")
        for response in responses:
            item = codecs.to_xml(f"{_PACKAGE}.ReplicationInstanceResponse", response, 2)
            lines.append(item.rstrip("\n"))
        lines.append("  </responseList>")
    else:
        lines.append("  <responseList/>")
    lines.append(f"</{_PACKAGE}.ReplicationListResponse>")
    return "\n".join(lines).encode()
