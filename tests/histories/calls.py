"""The calls on the wire, and what is read of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from native_api.transfer import FORMAT, MEDIA_TYPE, VERSION
from tests.histories.model import Call
from tests.servers import instance_body

# Nobody's lease ends in a history.
_LEASE_SECS = 600


class Instance(NamedTuple):
    """Where an instance is found. ``endpoint`` is that of the one which native clients register."""

    app: str
    id: str
    endpoint: str | None = None
    namespace: str = ""
    """Empty where nobody says which: it is the default one."""
    home: int | None = None
    """The place of the only node that it is written at; None: at any."""
    writer: int | None = None
    """The only client that writes it; None: all do."""
    contested: tuple[str, ...] = ()
    """The calls of one that is registered at all nodes, as another state each time."""


_JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def _wire(instance: Instance, call: Call) -> tuple[str, str, Any]:
    """Method, path and document of a call."""
    app, identity = instance.app, instance.id
    eureka, native = f"/eureka/apps/{app}/{identity}", f"/api/v1/instances/{identity}"
    fields = {
        name: value
        for name, value in (
            ("status", call.status),
            ("metadata", None if call.metadata is None else dict(call.metadata)),
            ("tags", call.tags),
        )
        if value is not None
    }
    registration = json.loads(
        instance_body(
            app,
            identity,
            status=call.status,
            metadata=dict(call.metadata or ()),
            leaseInfo={"renewalIntervalInSecs": 30, "durationInSecs": _LEASE_SECS},
            lastDirtyTimestamp=str(call.dirty),
        )
    )
    query = "&".join(f"{name}={value}" for name, value in call.metadata or ())
    told = {"appName": app, "id": identity, "action": "Register"}
    batch = {"replicationList": [told | {"instanceInfo": registration["instance"]}]}
    header = {"kind": "header", "format": FORMAT, "version": VERSION}
    header["namespace"] = instance.namespace or "default"
    exported = {"app": app, "id": identity, "host_name": "h", "ip_addr": "10.0.0.1"}
    exported |= {"status": call.status, "last_dirty_ms": call.dirty}
    exported |= {"duration_secs": _LEASE_SECS}
    exported |= {"metadata": dict(call.metadata or ())}
    line = {"kind": "instance", "source": "eureka", "instance": exported}
    posted = {"service_name": app.lower(), "ttl": _LEASE_SECS}
    posted |= {"endpoint": {"type": "http", "value": instance.endpoint}}
    return {
        "register": ("POST", f"/eureka/apps/{app}", registration),
        "peer register": ("POST", "/eureka/peerreplication/batch/", batch),
        "heartbeat": ("PUT", f"{eureka}?lastDirtyTimestamp={call.dirty}", None),
        "set status": ("PUT", f"{eureka}/status?value={call.status}", None),
        "remove status": ("DELETE", f"{eureka}/status?value={call.status}", None),
        "metadata": ("PUT", f"{eureka}/metadata?{query}", None),
        "cancel": ("DELETE", eureka, None),
        "post": ("POST", "/api/v1/instances", posted | fields),
        "put": ("PUT", native, fields),
        "beat": ("PUT", f"{native}/heartbeat", None),
        "delete": ("DELETE", native, None),
        "override": ("PUT", f"{native}/override", {"status": call.status}),
        "lift": ("DELETE", f"{native}/override?status={call.status}", None),
        "import": ("POST", "/api/v1/import", [header, line]),
        "patch": ("PATCH", f"{native}/metadata", fields.get("metadata")),
        "get": ("GET", eureka, None),
        "list": ("GET", "/eureka/apps/" + app, None),
        "show": ("GET", native, None),
    }[call.name]


def request(instance: Instance, call: Call) -> bytes:
    method, path, document = _wire(instance, call)
    lines = document if isinstance(document, list) else [] if document is None else [document]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    fields = _JSON | {"Host": "registry", "Connection": "close", "Content-Length": str(len(body))}
    if call.name == "import":
        fields["Content-Type"] = MEDIA_TYPE
    if instance.namespace:
        fields["Authorization"] = f"Bearer {instance.namespace}"
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return head.encode() + b"\r\n" + body


def read_answer(instance: Instance, call: Call, reply: bytes) -> Any:
    """What the model answers, as the server spelled it; None where it did not come whole."""
    head, _, body = reply.partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
        document = json.loads(body) if body else None
    except (ValueError, IndexError):
        return None
    if status == 503:
        return None  # the store may have written it all the same
    if status >= 500:
        raise AssertionError(f"{call} was answered {head.decode()}\n{body.decode()}")
    if call.name == "peer register":
        return document["responseList"][0]["statusCode"]
    if call.name == "import":
        return document["taken"]
    if call.name == "list":
        listed = [] if status == 404 else document["application"]["instance"]
        found = [each for each in listed if each["instanceId"] == instance.id]
        return _read_eureka(found[0]) if found else 404
    if call.name == "get" and status == 200:
        return _read_eureka(document["instance"])
    if call.name in ("show", "put", "override", "lift", "patch") and status == 200:
        metadata = frozenset(document["metadata"].items())
        return (document["source"], document["status"], metadata, tuple(document["tags"]))
    return status


def _read_eureka(shown: Mapping[str, Any]) -> Any:
    metadata = {k: v for k, v in shown["metadata"].items() if k not in ("tags", "@class")}
    return shown["status"], shown["overriddenStatus"], frozenset(metadata.items())
