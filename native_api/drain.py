"""``POST …/drain``: out of service, and whether everybody who reads the registry knows it.

Who is asked to stop an instance without a failed call has to wait until nobody calls it any more.
The registry knows who fetched its lists, and what they showed. So the first call sets the instance
out of service, and it and each that follows answer whether all who read lists with that instance in
them have fetched since: 200 where it is safe to stop, 202 where somebody has not.

**What "fetched" covers.** A client then has the change in its copy of the registry. What it keeps
of that copy, its load balancer above all, may be older for as long as that one's cache lasts, and a
call may be under way: that time is the caller's to add. Watches are told at once. Clients that read
from another server are known to that one alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from eureka_http.exchange import Answer, Request
from native_api import form
from native_api.bodies import JSON
from native_api.problems import ProblemError, gone
from registry import (
    HistoryKind,
    Instance,
    InstanceKey,
    InstanceStatus,
    NamespaceRegistry,
    Reader,
    Revision,
)

# Workers note within a second who fetched from them; somebody may just have.
_NOTED_MS = 2_000
_SHOWN = 100
_NAMED = 3


class Drain:
    """Drains instances of one namespace. Thread-safe; raises what the registry's verbs raise."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        self._registry = registry

    def instances(self, request: Request, service: str, found: Iterable[Instance]) -> Answer:
        """Set them out of service, and answer whether they may be stopped.

        ``since`` in the request is that of an earlier answer: what has changed of an instance since
        then, beside its status, need nobody have fetched.
        """
        registry = self._registry
        told = _since(request)
        drained: list[Instance] = []
        is_new = False
        for instance in found:
            was_out = instance.status is InstanceStatus.OUT_OF_SERVICE
            changed = registry.set_override(
                instance.app, instance.id, InstanceStatus.OUT_OF_SERVICE
            )
            if changed is not None:
                drained.append(changed)
                is_new = is_new or not was_out
        if not drained:
            raise ProblemError(gone(service))
        view = registry.view()
        since = Revision(max(each.revision for each in drained))
        if told is not None and not is_new and told <= view.revision:
            since = min(since, told)
        now = registry.clock.wall_ms()
        waiting: dict[Any, Reader] = {}
        is_complete = True
        is_noted = all(now - each.last_updated_ms >= _NOTED_MS for each in drained)
        for each in drained:
            behind = registry.behind(since, each)
            is_complete = is_complete and behind.is_complete
            waiting.update((reader.client, reader) for reader in behind.readers)
        if told is None:
            one = drained[0].id if len(drained) == 1 else ""
            key = InstanceKey(drained[0].app, one)
            registry.record(HistoryKind.DRAINED, key, waiting_for=len(waiting))
        late = sorted(waiting.values(), key=lambda reader: reader.at_ms)
        is_safe = not late and is_complete and is_noted
        document = {
            "service_name": service,
            "drained": [each.id for each in drained],
            "since": since,
            "safe": is_safe,
            "sentence": _sentence(now, late, is_complete, is_noted),
            "waiting_for": [_shown(reader, now) for reader in late[:_SHOWN]],
            "more": max(0, len(late) - _SHOWN),
        }
        return Answer(200 if is_safe else 202, orjson.dumps(document), JSON)


def _since(request: Request) -> Revision | None:
    """The revision that a request names; what is none counts as not told."""
    told = request.parameters().get("since", "")
    return Revision(int(told)) if told.isascii() and told.isdigit() and len(told) < 20 else None


def _sentence(now: int, waiting: list[Reader], is_complete: bool, is_noted: bool) -> str:
    if waiting:
        who = "; ".join(
            f"{_name(reader)}, {max(0, now - reader.at_ms) // 1000} s ago"
            for reader in waiting[:_NAMED]
        )
        more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        count = "1 client" if len(waiting) == 1 else f"{len(waiting)} clients"
        return f"Not yet safe to stop: {count} last fetched before it: {who}{more}."
    if not is_complete:
        return "Not known: more clients read from this server than it keeps account of."
    if not is_noted:
        return "Not yet known: who has fetched in this moment is still being noted."
    return "Safe to stop: every client that reads from this server has fetched since."


def _name(reader: Reader) -> str:
    name, address = reader.client.name, reader.client.address
    return f"{name} at {address}" if name else address


def _shown(reader: Reader, now: int) -> dict[str, Any]:
    client = reader.client
    return {
        "client": client.name,
        "address": client.address,
        "reads": client.what,
        "last_fetch": form.instant(reader.at_ms),
        "age_ms": max(0, now - reader.at_ms),
        "interval_ms": reader.interval_ms or None,
    }
