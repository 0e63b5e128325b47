"""What instances look like on the wire, in both formats, read into one neutral shape.

An instance is a dictionary with the JSON names, ports as ``(number, enabled)``, lease numbers as
integers, and the override under ``overriddenStatus`` whichever spelling the format has. What is in
JSON a string and in XML a text is a string.
"""

from __future__ import annotations

import enum
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

Instance = dict[str, Any]
STATUSES = ("UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN")
PLAIN_CLASS = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"
AMAZON_CLASS = "com.netflix.appinfo.AmazonInfo"
# In the order in which a genuine server writes them (protocol: LegacyJacksonJson, XStreamXml).
FULL_ORDER = (
    *("instanceId", "hostName", "app", "ipAddr", "sid", "status", "overriddenStatus", "port"),
    *("securePort", "countryId", "dataCenterInfo", "leaseInfo", "metadata", "appGroupName"),
    *("homePageUrl", "statusPageUrl", "healthCheckUrl", "secureHealthCheckUrl", "vipAddress"),
    *("secureVipAddress", "isCoordinatingDiscoveryServer", "lastUpdatedTimestamp"),
    *("lastDirtyTimestamp", "actionType", "asgName"),
)
COMPACT_ORDER = (
    *("instanceId", "app", "ipAddr", "vipAddress", "secureVipAddress", "dataCenterInfo"),
    *("hostName", "status", "lastUpdatedTimestamp", "actionType", "asgName", "port", "securePort"),
)
LEASE_ORDER = (
    *("renewalIntervalInSecs", "durationInSecs", "registrationTimestamp"),
    *("lastRenewalTimestamp", "evictionTimestamp", "serviceUpTimestamp"),
)


class Form(enum.Enum):
    """How an answer is asked for."""

    JSON = "json"
    XML = "xml"
    JSON_COMPACT = "json compact"
    XML_COMPACT = "xml compact"

    @property
    def is_json(self) -> bool:
        return self in (Form.JSON, Form.JSON_COMPACT)

    @property
    def is_compact(self) -> bool:
        return self in (Form.JSON_COMPACT, Form.XML_COMPACT)

    @property
    def media_type(self) -> str:
        return "application/json" if self.is_json else "application/xml"

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that ask for it."""
        compact = {"X-Eureka-Accept": "compact"} if self.is_compact else {}
        return {"Accept": self.media_type, **compact}


FULL = (Form.JSON, Form.XML)


class MalformedError(ValueError):
    """An answer that is not of the protocol's shape."""


@dataclass(frozen=True)
class Listing:
    """What ``apps``, ``apps/delta``, ``vips`` and ``svips`` answer."""

    version: str
    hash_code: str
    applications: dict[str, list[Instance]]

    def application(self, app: str) -> list[Instance]:
        return self.applications.get(app.upper(), [])

    def instances(self) -> list[Instance]:
        return [i for application in self.applications.values() for i in application]


def hash_code(statuses: list[str]) -> str:
    """Each status with its count, sorted by name: ``DOWN_1_UP_3_``."""
    return "".join(f"{status}_{count}_" for status, count in sorted(Counter(statuses).items()))


def effective_id(instance: Instance) -> str:
    """What stands for the instance in URLs: its id, else Amazon's, else the host name."""
    metadata = instance.get("dataCenterInfo", {}).get("metadata") or {}
    amazon = metadata.get("instance-id")
    return str(instance.get("instanceId") or amazon or instance["hostName"])


# Reading.


def listing(text: str) -> Listing:
    """The answer of a list resource; ``MalformedError`` where its frame is not the protocol's."""
    if text.lstrip().startswith("{"):
        root = _json_root(text, "applications")
        version, code = root.get("versions__delta"), root.get("apps__hashcode")
        if not isinstance(version, str) or not isinstance(code, str):
            raise MalformedError("versions__delta and apps__hashcode must be there, as strings")
        if not isinstance(root.get("application"), list):
            raise MalformedError("application must be an array, and present")
        found = [_json_application(a) for a in root["application"]]
    else:
        node = _xml_root(text, "applications")
        version = node.findtext("versions__delta")
        code = node.findtext("apps__hashcode")
        if version is None or code is None:
            raise MalformedError("versions__delta and apps__hashcode must be there")
        found = [_xml_application(child) for child in node.iter("application")]
    if len({name for name, _ in found}) != len(found):
        raise MalformedError("an application is listed twice")
    return Listing(version, code, dict(found))


def application(text: str) -> tuple[str, list[Instance]]:
    """The answer of ``apps/APP``: its name and its instances."""
    if text.lstrip().startswith("{"):
        return _json_application(_json_root(text, "application"))
    return _xml_application(_xml_root(text, "application"))


def instance(text: str) -> Instance:
    """The answer of ``apps/APP/ID`` and ``instances/ID``."""
    if text.lstrip().startswith("{"):
        return json_instance(_json_root(text, "instance"))
    return _xml_instance(_xml_root(text, "instance"))


def json_instance(found: Instance) -> Instance:
    """An instance as it stands in JSON, made neutral."""
    neutral = dict(found)
    for name in ("port", "securePort"):
        port = neutral.get(name)
        if not isinstance(port, dict) or set(port) != {"$", "@enabled"}:
            raise MalformedError(f"{name} must be an object of $ and @enabled")
        if not isinstance(port["$"], int) or port["@enabled"] not in ("true", "false"):
            raise MalformedError(f'{name} must be {{"$": number, "@enabled": "true" or "false"}}')
        neutral[name] = (port["$"], port["@enabled"] == "true")
    if "metadata" in neutral:
        neutral["metadata"] = {k: v for k, v in neutral["metadata"].items() if k != "@class"}
    for name in ("lastUpdatedTimestamp", "lastDirtyTimestamp"):
        if name in neutral:
            neutral[name] = int(neutral[name])
    return neutral


def _json_root(text: str, key: str) -> Any:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise MalformedError(f"not JSON: {error}") from None
    if not isinstance(document, dict) or list(document) != [key]:
        raise MalformedError(f"the root must be an object with the one key {key}")
    return document[key]


def _json_application(found: Any) -> tuple[str, list[Instance]]:
    if set(found) != {"name", "instance"} or not isinstance(found["instance"], list):
        raise MalformedError(
            "an application has a name and an array of instances, and nothing else"
        )
    if not found["instance"]:
        raise MalformedError("an application without instances is not listed")
    return found["name"], [json_instance(i) for i in found["instance"]]


def _xml_root(text: str, tag: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise MalformedError(f"not XML: {error}") from None
    if root.tag != tag:
        raise MalformedError(f"the root must be {tag}, is {root.tag}")
    return root


def _xml_application(node: ElementTree.Element) -> tuple[str, list[Instance]]:
    name = node.findtext("name")
    instances = [_xml_instance(child) for child in node.findall("instance")]
    if name is None or not instances:
        raise MalformedError("an application has a name and at least one instance")
    return name, instances


def _xml_instance(node: ElementTree.Element) -> Instance:
    neutral: Instance = {}
    for child in node:
        name = "overriddenStatus" if child.tag == "overriddenstatus" else child.tag
        if name in neutral:
            raise MalformedError(f"{name} stands twice")
        text = child.text or ""
        if name in ("port", "securePort"):
            neutral[name] = (int(text), {"true": True, "false": False}[child.attrib["enabled"]])
        elif name in ("countryId", "lastUpdatedTimestamp", "lastDirtyTimestamp"):
            neutral[name] = int(text)
        elif name == "leaseInfo":
            neutral[name] = {c.tag: int(c.text or "") for c in child}
        elif name == "metadata":
            neutral[name] = {_unescaped(c.tag): c.text or "" for c in child}
        elif name == "dataCenterInfo":
            neutral[name] = {"@class": child.attrib["class"], "name": child.findtext("name")}
            metadata = child.find("metadata")
            if metadata is not None:
                neutral[name]["metadata"] = {_unescaped(c.tag): c.text or "" for c in metadata}
        else:
            neutral[name] = text
    return neutral


def _unescaped(tag: str) -> str:
    """A metadata key from its element's name (``__``, ``_-`` and ``_.hhhh`` undone)."""
    key, rest = "", tag
    while rest:
        if rest.startswith("__"):
            key, rest = key + "_", rest[2:]
        elif rest.startswith("_-"):
            key, rest = key + "$", rest[2:]
        elif rest.startswith("_."):
            key, rest = key + chr(int(rest[2:6], 16)), rest[6:]
        else:
            key, rest = key + rest[0], rest[1:]
    return key


# Writing.


def json_body(fields: Instance) -> str:
    """A registration in JSON."""
    return json.dumps({"instance": fields})


def xml_body(fields: Instance) -> str:
    """The same registration in XML; fields that are None are left out."""
    parts = ["<instance>"]
    for name, value in fields.items():
        if value is None:
            continue
        if name in ("port", "securePort"):
            enabled = str(value.get("@enabled", "true")).lower()
            parts.append(f"<{name} enabled={quoteattr(enabled)}>{value['$']}</{name}>")
        elif name == "dataCenterInfo":
            inside = "" if value.get("name") is None else f"<name>{value['name']}</name>"
            if "metadata" in value:
                inside += _xml_map("metadata", value["metadata"])
            parts.append(f"<{name} class={quoteattr(value.get('@class', ''))}>{inside}</{name}>")
        elif isinstance(value, dict):
            parts.append(_xml_map(name, value))
        else:
            parts.append(f"<{name}>{escape(str(value))}</{name}>")
    return "".join(parts) + "</instance>"


def _xml_map(name: str, entries: dict[str, Any]) -> str:
    inside = "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in entries.items() if k != "@class")
    return f"<{name}>{inside}</{name}>"


def body(fields: Instance, form: Form) -> tuple[str, dict[str, str]]:
    """A registration in the form's format, and its headers."""
    text = json_body(fields) if form.is_json else xml_body(fields)
    return text, {"Content-Type": form.media_type}


def sample(app: str, instance_id: str, **fields: Any) -> Instance:
    """A registration as a Java client sends it, some fields replaced; ``None`` leaves one out."""
    made: Instance = {
        "instanceId": instance_id,
        "hostName": "web-1.local",
        "app": app.upper(),
        "ipAddr": "10.0.0.1",
        "status": "UP",
        "overriddenStatus": "UNKNOWN",
        "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 8443, "@enabled": "false"},
        "countryId": 1,
        "dataCenterInfo": {"@class": PLAIN_CLASS, "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90},
        "metadata": {"zone": "a", "management.port": "8081"},
        "homePageUrl": "http://web-1.local:8080/",
        "statusPageUrl": "http://web-1.local:8080/info",
        "healthCheckUrl": "http://web-1.local:8080/health",
        "vipAddress": app.lower(),
        "secureVipAddress": f"{app.lower()}-secure",
        "lastDirtyTimestamp": "1700000000000",
    }
    made.update(fields)
    return {name: value for name, value in made.items() if value is not None}
