"""The peers' batch on the wire: what a sender writes and what it reads back.

``PeerReplicationResource`` on a genuine server accepts exactly these keys and refuses the whole
batch for any other, so nothing is added here. Source: protocol sections 9.2 and 9.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from eureka_compat import codecs, wire
from eureka_compat.wire import ParseError
from registry import Instance, InstanceKey, InstanceStatus

PATH = "peerreplication/batch/"


class Action(StrEnum):
    """What a peer is asked to do with an instance."""

    REGISTER = "Register"
    HEARTBEAT = "Heartbeat"
    CANCEL = "Cancel"
    STATUS_UPDATE = "StatusUpdate"
    DELETE_STATUS_OVERRIDE = "DeleteStatusOverride"


class Item(NamedTuple):
    """One action. ``instance`` is the instance as it is listed here; a cancel needs none."""

    action: Action
    key: InstanceKey
    instance: Instance | None = None
    override: InstanceStatus | None = None


class Reply(NamedTuple):
    """What a peer answered to one item; ``entity`` is its own, newer instance (409)."""

    status: int
    entity: Instance | None = None


def encoded(items: Sequence[Item]) -> bytes:
    """The body of a batch."""
    return codecs.to_json({"replicationList": [_tree(item) for item in items]})


def _tree(item: Item) -> dict[str, Any]:
    """One item, keys in the original's order, nothing where it has nothing."""
    tree: dict[str, Any] = {"appName": item.key.app, "id": item.key.id}
    instance = item.instance
    if instance is None:
        tree["action"] = str(item.action)
        return tree
    tree["lastDirtyTimestamp"] = instance.last_dirty_ms
    if item.action is Action.HEARTBEAT and item.override is not None:
        tree["overriddenStatus"] = str(item.override)
    if item.action is Action.STATUS_UPDATE and item.override is not None:
        tree["status"] = str(item.override)
    else:
        tree["status"] = str(instance.status)
    if item.action is Action.REGISTER:
        tree["instanceInfo"] = wire.instance_tree(instance)
    tree["action"] = str(item.action)
    return tree


def read_replies(body: bytes, expected: int, now_ms: int) -> list[Reply]:
    """A peer's replies, one for each item in its order; ``ParseError`` where they are not that.

    ``now_ms`` stands in for a dirty timestamp that an entity leaves out.
    """
    document = codecs.read_json(body)
    listed = document.get("responseList") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) != expected:
        raise ParseError(f"responseList: expected {expected} replies")
    return [_reply(each, f"responseList[{at}]", now_ms) for at, each in enumerate(listed)]


def _reply(tree: Any, path: str, now_ms: int) -> Reply:
    status = tree.get("statusCode") if isinstance(tree, dict) else None
    if type(status) is not int:
        raise ParseError(f"{path}.statusCode: expected a number")
    entity = tree.get("responseEntity")
    if entity is None:
        return Reply(status)
    candidate = wire.read_candidate(codecs.as_read_from_json(entity))
    try:
        return Reply(status, wire.validated(candidate, candidate.app, now_ms))
    except wire.InvalidInstanceError as error:
        raise ParseError(f"{path}.responseEntity: {error}") from None
