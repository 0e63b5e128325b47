"""Instances as the Eureka protocol names them. Every wire name and default stands here, once.

The neutral form is a tree of dicts as the protocol's JSON has it (``"$"``, ``"@enabled"``,
``"@class"``); ``codecs`` spells it as JSON or XML and reads both back into it. Knows no HTTP.
Source: protocol sections 2.4, 3.3 to 3.8, 4.1 and 4.3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from registry import DataCenter, Instance, InstanceStatus

Tree = dict[str, Any]

DEFAULT_CLASS = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"
MY_CLASS = "com.netflix.appinfo.MyDataCenterInfo"
AMAZON_CLASS = "com.netflix.appinfo.AmazonInfo"
EMPTY_MAP = "java.util.Collections$EmptyMap"
DATA_CENTER_NAMES = ("MyOwn", "Netflix", "Amazon")
_DATA_CENTERS = {name: DataCenter(name) for name in DATA_CENTER_NAMES}
COMPACT_AMAZON_KEYS = (
    "instance-id",
    "public-ipv4",
    "public-hostname",
    "local-ipv4",
    "availability-zone",
)
# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__
_HIDDEN_SIDS = ("na", "unknown")


class ParseError(ValueError):
    """A body that is no instance; the text names the field and what was expected."""


class Digits(str):
    """A number of JSON as it was written, for fields that are texts."""

    __slots__ = ()


class InvalidInstanceError(ValueError):
    """An instance that lacks what the protocol requires; the text begins as the original's."""


# Out


def instance_tree(instance: Instance, status: InstanceStatus | None = None) -> Tree:
    """An instance in full, in the original's order of keys.

    ``status`` replaces the shown status (the down-mapping of protocol 4.6).
    """
    tree: Tree = {"instanceId": _shown_id(instance)}
    tree["hostName"] = instance.host_name
    tree["app"] = instance.app
    tree["ipAddr"] = instance.ip_addr
    if instance.sid not in _HIDDEN_SIDS:
        tree["sid"] = instance.sid
    tree["status"] = str(status or instance.status)
    tree["overriddenStatus"] = str(instance.overridden_status)
    tree["port"] = _port(instance.port, instance.port_enabled)
    tree["securePort"] = _port(instance.secure_port, instance.secure_port_enabled)
    tree["countryId"] = instance.country_id
    tree["dataCenterInfo"] = _data_center_tree(instance.data_center)
    tree["leaseInfo"] = {
        "renewalIntervalInSecs": instance.renewal_interval_secs,
        "durationInSecs": instance.duration_secs,
        "registrationTimestamp": instance.registration_ms,
        "lastRenewalTimestamp": instance.last_renewal_ms,
        "evictionTimestamp": instance.eviction_ms,
        "serviceUpTimestamp": instance.service_up_ms,
    }
    tree["metadata"] = dict(instance.metadata) or {"@class": EMPTY_MAP}
    _put(tree, "appGroupName", instance.app_group_name)
    _put(tree, "homePageUrl", instance.home_page_url)
    _put(tree, "statusPageUrl", instance.status_page_url)
    _put(tree, "healthCheckUrl", instance.health_check_url)
    _put(tree, "secureHealthCheckUrl", instance.secure_health_check_url)
    _put(tree, "vipAddress", instance.vip_address)
    _put(tree, "secureVipAddress", instance.secure_vip_address)
    tree["isCoordinatingDiscoveryServer"] = "false"
    tree["lastUpdatedTimestamp"] = str(instance.last_updated_ms)
    tree["lastDirtyTimestamp"] = str(instance.last_dirty_ms)
    tree["actionType"] = str(instance.action_type)
    _put(tree, "asgName", instance.asg_name)
    return tree


def compact_tree(instance: Instance) -> Tree:
    """The short form of an instance that ``X-Eureka-Accept: compact`` asks for (protocol 3.7)."""
    tree: Tree = {"instanceId": _shown_id(instance)}
    tree["app"] = instance.app
    tree["ipAddr"] = instance.ip_addr
    _put(tree, "vipAddress", instance.vip_address)
    _put(tree, "secureVipAddress", instance.secure_vip_address)
    tree["dataCenterInfo"] = _data_center_tree(instance.data_center, COMPACT_AMAZON_KEYS)
    tree["hostName"] = instance.host_name
    tree["status"] = str(instance.status)
    tree["lastUpdatedTimestamp"] = instance.last_updated_ms
    tree["actionType"] = str(instance.action_type)
    _put(tree, "asgName", instance.asg_name)
    tree["port"] = _port(instance.port, instance.port_enabled)
    tree["securePort"] = _port(instance.secure_port, instance.secure_port_enabled)
    return tree


def _shown_id(instance: Instance) -> str:
    """The id; where the client sent none, the one that paths have."""
    return instance.id if instance.instance_id is None else instance.instance_id


def _put(tree: Tree, name: str, value: str | None) -> None:
    if value is not None:
        tree[name] = value


def _port(number: int, enabled: bool) -> Tree:
    return {"$": number, "@enabled": "true" if enabled else "false"}


def _data_center_tree(data_center: DataCenter, only: tuple[str, ...] | None = None) -> Tree:
    metadata = data_center.amazon_metadata
    if metadata is None:
        return {"@class": DEFAULT_CLASS, "name": data_center.name}
    kept = {k: v for k, v in metadata.items() if only is None or k in only}
    return {"@class": AMAZON_CLASS, "name": data_center.name, "metadata": kept}


def down_mapped(status: InstanceStatus) -> InstanceStatus:
    """What an XML answer for a single instance shows (protocol 4.6)."""
    if status in (InstanceStatus.OUT_OF_SERVICE, InstanceStatus.UNKNOWN):
        return InstanceStatus.DOWN
    return status


# In


_AT = {name: place for place, name in enumerate(Instance._fields)}
_METADATA, _STATUS, _OVERRIDDEN = _AT["metadata"], _AT["status"], _AT["overridden_status"]
_DATA_CENTER, _LAST_DIRTY = _AT["data_center"], _AT["last_dirty_ms"]
_APP, _ID, _SENT_ID = _AT["app"], _AT["id"], _AT["instance_id"]
_HOST, _ADDRESS, _COUNTRY = _AT["host_name"], _AT["ip_addr"], _AT["country_id"]
_DEFAULTS: list[Any] = [Instance._field_defaults.get(name) for name in Instance._fields]
_DEFAULTS[_DATA_CENTER] = _DEFAULTS[_LAST_DIRTY] = None


class Candidate:
    """A parsed instance that is not validated yet.

    ``fields`` are an ``Instance``'s, in its order: made from names, an instance costs each
    registration a microsecond more. What is required, and the last change, is None where absent.
    """

    __slots__ = ("data_center_named", "fields")

    def __init__(self) -> None:
        self.fields = _DEFAULTS.copy()
        self.data_center_named = True

    @property
    def app(self) -> str:
        """The application, in upper case."""
        app: str = self.fields[_APP]
        return app


_TEXT_FIELDS = {
    "instanceId": _SENT_ID,
    "hostName": _HOST,
    "ipAddr": _ADDRESS,
    "sid": _AT["sid"],
    "asgName": _AT["asg_name"],
    "appGroupName": _AT["app_group_name"],
    "homePageUrl": _AT["home_page_url"],
    "statusPageUrl": _AT["status_page_url"],
    "healthCheckUrl": _AT["health_check_url"],
    "secureHealthCheckUrl": _AT["secure_health_check_url"],
    "vipAddress": _AT["vip_address"],
    "secureVipAddress": _AT["secure_vip_address"],
}


def read_candidate(tree: Any) -> Candidate:
    """Read the tree of one instance, as tolerantly as real clients need; ``ParseError`` else."""
    if not isinstance(tree, dict):
        raise ParseError("instance: expected an object")
    app = _text(tree, "app")
    if app is None:
        raise ParseError("instance.app: expected the application's name, as a string")
    candidate = Candidate()
    fields = candidate.fields
    fields[_APP] = app.upper()
    metadata = fields[_METADATA] = _metadata(tree.get("metadata"))
    for name, place in _TEXT_FIELDS.items():
        value = tree.get(name)
        if value is not None:
            fields[place] = value if type(value) is str else scalar(value, f"instance.{name}")
    if fields[_SENT_ID] is None and metadata.get("instanceId", "").strip():
        fields[_SENT_ID] = _id_from_metadata(metadata["instanceId"], fields[_HOST])
    overridden = _overridden_status(tree)
    if overridden is not None:
        fields[_OVERRIDDEN] = _STATUSES.get(overridden, _UNKNOWN)
    status = _text(tree, "status")
    if status is not None:
        fields[_STATUS] = _STATUSES.get(status, _UNKNOWN)
    _read_port(tree.get("port"), "port", fields)
    _read_port(tree.get("securePort"), "securePort", fields)
    country = tree.get("countryId")
    if country is not None:
        fields[_COUNTRY] = _whole(country, 32, "instance.countryId")
    _read_lease(tree.get("leaseInfo"), fields)
    _read_data_center(tree, candidate)
    dirty = tree.get("lastDirtyTimestamp")
    if type(dirty) is str and len(dirty) < 19 and dirty.isdecimal() and dirty.isascii():
        fields[_LAST_DIRTY] = int(dirty)  # as nearly all clients send it
    elif dirty is not None:
        fields[_LAST_DIRTY] = _timestamp(dirty, "instance.lastDirtyTimestamp")
    return candidate


def _overridden_status(tree: Tree) -> str | None:
    """It has two spellings. Where a client sends both the later one wins, as in the original."""
    if "overriddenstatus" not in tree:
        return _text(tree, "overriddenStatus")
    told = [
        scalar(value, f"instance.{name}")
        for name, value in tree.items()
        if name in ("overriddenStatus", "overriddenstatus") and value is not None
    ]
    return told[-1] if told else None


def _id_from_metadata(value: str, host_name: str | None) -> str:
    """Spring's codec takes the id from the metadata where the client sent none (3.8)."""
    if host_name and not value.startswith(host_name):
        return f"{host_name}:{value}"
    return value


def scalar(value: Any, path: str) -> str:
    """A value of JSON as a text; ``ParseError`` for an array or an object."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return str(value)
    raise ParseError(f"{path}: expected a string")


def _text(tree: Tree, name: str) -> str | None:
    value = tree.get(name)
    if value is None or type(value) is str:
        return value
    return scalar(value, f"instance.{name}")


_STATUSES = {str(status): status for status in InstanceStatus}
_UNKNOWN = InstanceStatus.UNKNOWN


_BLANKS = "".join(map(chr, range(33)))
_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(
    r"\s*+([+-]?(?:NaN|Infinity|(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?))[fFdD]?",
    re.ASCII,
)
_HEXADECIMAL = re.compile(
    r"\s*([+-]?0[xX](?:[0-9a-fA-F]+\.?|[0-9a-fA-F]*\.[0-9a-fA-F]+)[pP][+-]?[0-9]+)[fFdD]?", re.ASCII
)
_LONGEST_NUMBER = 1000


def number_in(text: str, bits: int) -> int | None:
    """The number that the original reads from a text of JSON, None where it reads none.

    Blanks around it, a fraction and an exponent are allowed, as in Java's ``parseDouble``; the
    value is cut to a whole number of so many bits. Source: Jackson's ``NumberInput``.
    """
    text = text.strip(_BLANKS)
    if len(text) > _LONGEST_NUMBER:
        return None
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    unsigned = text.removeprefix("+")
    digits = text[1:] if text[:1] == "-" else unsigned
    if digits.isdecimal() and digits.isascii():
        number = int(unsigned)
        return number if least <= number <= most else None
    decimal = _DECIMAL.fullmatch(unsigned)
    if decimal is not None:
        value = float(decimal[1])
    else:
        hexadecimal = _HEXADECIMAL.fullmatch(unsigned)
        if hexadecimal is None:
            return None
        try:
            value = float.fromhex(hexadecimal[1])
        except OverflowError:
            value = -math.inf if hexadecimal[1][0] == "-" else math.inf
    if math.isnan(value):
        return 0
    return least if value <= least else most if value >= most else int(value)


def _whole(value: Any, bits: int, path: str) -> int:
    """A number of so many bits from any value of JSON, as the original reads it.

    A text that is none counts as 0, as null does; ``ParseError`` for a number that is too large.
    """
    if type(value) is int or type(value) is bool:
        number = int(value)
    elif isinstance(value, Digits) or type(value) is float:
        try:
            number = int(value)
        except (ValueError, OverflowError):
            exact = float(value)
            number = int(exact) if math.isfinite(exact) else 1 << bits
    elif isinstance(value, str):
        return number_in(value, bits) or 0
    elif value is None:
        return 0
    else:
        raise ParseError(f"{path}: expected a number")
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise ParseError(f"{path}: expected a number of at most {bits} bits")
    return number


_LONG = re.compile(r"[+-]?[0-9]{1,100}")


def long_number(value: Any, path: str) -> int | None:
    """A number of a peer's batch, None where it is null or blank; ``ParseError`` otherwise.

    Another part of the original reads it than reads instances, and it is stricter.
    """
    if isinstance(value, str) and not isinstance(value, Digits):
        text = value.strip(_BLANKS)
        if not text:
            return None
        if not _LONG.fullmatch(text):
            raise ParseError(f"{path}: expected a number")
        value = int(text)
    if isinstance(value, bool):
        raise ParseError(f"{path}: expected a number")
    return None if value is None else _whole(value, 64, path)


def _timestamp(value: Any, path: str) -> int:
    """Epoch milliseconds; what is no number counts as 0, as in the original."""
    return 0 if isinstance(value, list | dict) else _whole(value, 64, path)


def _metadata(value: Any) -> dict[str, str]:
    if value is None or value == []:  # an empty map, as PHP writes it
        return {}
    if not isinstance(value, dict):
        raise ParseError("instance.metadata: expected an object of strings")
    return {
        name: item if type(item) is str else scalar(item, f"instance.metadata.{name}")
        for name, item in value.items()
        if name != "@class"
    }


_PORT_FIELDS = {
    "port": (_AT["port"], _AT["port_enabled"]),
    "securePort": (_AT["secure_port"], _AT["secure_port_enabled"]),
}


def _read_port(value: Any, name: str, fields: list[Any]) -> None:
    if value is None:
        return
    place, flag_place = _PORT_FIELDS[name]
    enabled = fields[flag_place]  # as an instance has it by default
    if isinstance(value, dict):
        has_number, has_flag = "$" in value, "@enabled" in value
        if len(value) != has_number + has_flag:
            raise ParseError(
                f'instance.{name}: expected {{"$": 8080, "@enabled": "true"}} and no other key'
            )
        if has_number:
            number = value["$"]
            fields[place] = (
                number
                if type(number) is int and 0 <= number < 65536
                else _whole(number, 32, f"instance.{name}.$")
            )
        if has_flag:
            flag = value["@enabled"]
            enabled = flag == "true" or (
                flag != "false" and _flag(flag, f"instance.{name}.@enabled")
            )
    else:
        fields[place] = _bare_port(value, name)
    fields[flag_place] = enabled


def _flag(value: Any, path: str) -> bool:
    """A switch: the text ``true``, true, or a whole number that is not 0."""
    if isinstance(value, str) and not isinstance(value, Digits):
        return value.strip(_BLANKS) == "true"
    if isinstance(value, list | dict):
        raise ParseError(f'{path}: expected "true" or "false"')
    is_fraction = type(value) is float or (
        isinstance(value, Digits) and not _WHOLE.fullmatch(value)
    )
    return not is_fraction and _whole(value, 32, path) != 0


def _bare_port(value: Any, name: str) -> int:
    """A port that is a number instead of an object, as one client's documentation shows it."""
    number = None
    if type(value) is int or isinstance(value, Digits):
        number = _whole(value, 32, f"instance.{name}")
    elif isinstance(value, str):
        number = number_in(value, 32)
    if number is None:
        raise ParseError(f'instance.{name}: expected {{"$": 8080, "@enabled": "true"}}')
    return number


_LEASE_FIELDS = (
    ("renewalIntervalInSecs", _AT["renewal_interval_secs"]),
    ("durationInSecs", _AT["duration_secs"]),
)


def _read_lease(value: Any, fields: list[Any]) -> None:
    # Anything but an object is ignored; PHP writes an empty one as [].
    if not isinstance(value, dict):
        return
    for name, place in _LEASE_FIELDS:
        number = value.get(name)
        if type(number) is not int or not 0 < number < 2**31:
            number = (
                0 if isinstance(number, list | dict) else _whole(number, 32, f"instance.{name}")
            )
        # Not positive means the default.
        if number > 0:
            fields[place] = number


_CENTER_KEYS = frozenset({"@class", "name", "metadata"})


def _read_data_center(tree: Tree, candidate: Candidate) -> None:
    value = tree.get("dataCenterInfo")
    if value is None:
        return
    path = "instance.dataCenterInfo"
    if not isinstance(value, dict):
        raise ParseError(f"{path}: expected an object")
    kind = value.get("@class")
    name = value.get("name")
    if kind == DEFAULT_CLASS and len(value) == 2 and name in DATA_CENTER_NAMES:
        candidate.fields[_DATA_CENTER] = _DATA_CENTERS[name]
        return
    if kind not in (None, AMAZON_CLASS, DEFAULT_CLASS, MY_CLASS):
        raise ParseError(f"{path}.@class: expected {DEFAULT_CLASS}")
    metadata = value.get("metadata")
    if metadata is None or metadata == []:
        metadata = {}
    if not isinstance(metadata, dict):
        raise ParseError(f"{path}.metadata: expected an object for an Amazon data center")
    # Helidon writes them beside the name.
    flat = {key: item for key, item in value.items() if key not in _CENTER_KEYS}
    if kind == AMAZON_CLASS or (name == "Amazon" and (flat or metadata)):
        amazon = {
            key: scalar(item, f"{path}.metadata.{key}")
            for key, item in {**flat, **metadata}.items()
            if key != "@class"
        }
        candidate.fields[_DATA_CENTER] = DataCenter("Amazon", amazon)
        return
    if kind is not None and (flat or metadata):
        raise ParseError(f"{path}: expected no other key than @class and name")
    if name is None:
        candidate.fields[_DATA_CENTER] = DataCenter("MyOwn")
        candidate.data_center_named = False
    elif name in DATA_CENTER_NAMES:
        candidate.fields[_DATA_CENTER] = _DATA_CENTERS[name]
    else:
        raise ParseError(f"{path}.name: expected one of {', '.join(DATA_CENTER_NAMES)}")


def validated(candidate: Candidate, path_app: str, now_ms: int) -> Instance:
    """The instance, if it has what the protocol requires (2.4); else ``InvalidInstanceError``.

    The checks come in the original's order and their texts begin with the original's. A candidate
    becomes one instance, and is of no use afterwards.
    """
    # The candidate's own list: nobody needs it any more, and it is long.
    fields = candidate.fields
    app, _, sent_id, host_name, ip_addr = fields[:5]
    data_center: DataCenter | None = fields[_DATA_CENTER]
    amazon = data_center.amazon_metadata if data_center is not None else None
    effective_id = sent_id or (amazon or {}).get("instance-id") or host_name
    expected = path_app.upper()
    if not effective_id:
        raise InvalidInstanceError("Missing instanceId: instance.instanceId must be a string")
    if not host_name:
        raise InvalidInstanceError("Missing hostname: instance.hostName must be a string")
    if not ip_addr:
        raise InvalidInstanceError("Missing ip address: instance.ipAddr must be a string")
    if not app:
        raise InvalidInstanceError("Missing appName: instance.app must be a string")
    if app != expected:
        raise InvalidInstanceError(
            f"Mismatched appName, expecting {expected} but was {app}:"
            " instance.app must be the application in the path"
        )
    if data_center is None:
        raise InvalidInstanceError(
            f'Missing dataCenterInfo: expected {{"@class":"{DEFAULT_CLASS}","name":"MyOwn"}}'
        )
    if not candidate.data_center_named:
        raise InvalidInstanceError(
            f"Missing dataCenterInfo Name: expected one of {', '.join(DATA_CENTER_NAMES)}"
        )
    if amazon is not None and not amazon.get("instance-id"):
        named = {**amazon, "instance-id": effective_id}
        fields[_DATA_CENTER] = DataCenter(data_center.name, named)
    fields[_ID] = effective_id
    if fields[_LAST_DIRTY] is None:
        fields[_LAST_DIRTY] = now_ms
    return _new(Instance, fields)


# A registry, as another server tells of it


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An instance in a registry that cannot be read: which, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Told:
    """A registry or a delta: each instance with its action, in the order in which they came."""

    instances: list[tuple[str, Instance] | Unreadable]
    hash_code: str | None


def read_applications(document: Any) -> Told:
    """What a server answers to ``apps`` and ``apps/delta`` in JSON; ``ParseError``.

    An instance or an application that cannot be read is among the results as ``Unreadable``, and
    the others are read.
    """
    root = document.get("applications") if isinstance(document, dict) else None
    if not isinstance(root, dict):
        raise ParseError('expected one root key: {"applications": {...}}')
    applications = root.get("application")
    if not isinstance(applications, list | dict | None):
        raise ParseError("applications.application: expected a list")
    found: list[tuple[str, Instance] | Unreadable] = []
    for application in _listed(applications):
        name = application.get("name") if isinstance(application, dict) else None
        if not isinstance(name, str):
            found.append(Unreadable("an application", "expected an object with a name"))
            continue
        for tree in _listed(application.get("instance")):
            try:
                instance = validated(read_candidate(tree), name, 0)
                updated = _timestamp(tree.get("lastUpdatedTimestamp"), "lastUpdatedTimestamp")
                lease = tree.get("leaseInfo")
                instants = lease if isinstance(lease, dict) else {}
                renewed, began = [
                    _timestamp(instants.get(name), f"leaseInfo.{name}")
                    for name in ("lastRenewalTimestamp", "registrationTimestamp")
                ]
            except (ParseError, InvalidInstanceError) as error:
                shown = tree.get("instanceId", "?") if isinstance(tree, dict) else "?"
                found.append(Unreadable(f"{name}/{shown}", str(error)))
                continue
            action = str(tree.get("actionType") or "ADDED")
            listed = instance._replace(
                last_updated_ms=updated, registration_ms=began, last_renewal_ms=renewed
            )
            found.append((action, listed))
    hash_code = root.get("apps__hashcode")
    return Told(found, hash_code if isinstance(hash_code, str) else None)


def _listed(value: Any) -> list[Any]:
    """A list; older servers write one element without it."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
