"""How long each lease has left, as one of these servers tells another: ``peerreplication/leases``.

Lists are the same for all who ask, so they show when an instance registered and not when it last
renewed. A peer needs to know that: an instance that renews elsewhere is not to be evicted here, and
a dead one is not to get another lease. Told is what is left and no instant, so clocks do not
matter. A genuine server knows nothing of it and answers 404; its list has instants that are fresh.
"""

from __future__ import annotations

from typing import Any

from eureka_compat import codecs
from eureka_compat.negotiation import JSON
from eureka_compat.wire import ParseError
from eureka_http.exchange import Answer
from registry import InstanceKey, NamespaceRegistry

PATH = "peerreplication/leases"
_LONGEST_MS = 1 << 40


def answer(registry: NamespaceRegistry) -> Answer:
    """Milliseconds by application and id; negative where a lease has ended. ``StoreError``."""
    leases = registry.leases()
    now = registry.clock.mono_ms()
    told: dict[str, dict[str, int]] = {}
    for key, lease in leases.items():
        told.setdefault(key.app, {})[key.id] = lease.deadline_mono_ms - now
    return Answer(200, codecs.to_json({"leases": told}), JSON)


def read(body: bytes) -> dict[InstanceKey, int]:
    """What ``answer`` wrote; ``ParseError`` where it is not that."""
    document: Any = codecs.read_json(body)
    told = document.get("leases") if isinstance(document, dict) else None
    if not isinstance(told, dict) or not all(isinstance(each, dict) for each in told.values()):
        raise ParseError("leases: expected objects")
    found = {
        InstanceKey(app, instance_id): left
        for app, ids in told.items()
        for instance_id, left in ids.items()
    }
    if not all(type(left) is int and abs(left) < _LONGEST_MS for left in found.values()):
        raise ParseError("leases: expected milliseconds")
    return found
