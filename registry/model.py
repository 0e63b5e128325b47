"""The values of the registry: instances, leases, changes. Frozen, free of any wire format.

Instants ending in ``_ms`` are epoch milliseconds of the wall clock and are only shown; those
ending in ``_mono_ms`` are milliseconds of the machine's monotonic clock and decide. Nothing here
orders anything by time: a ``Revision`` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, NewType

# Makes a named tuple at a third of what calling its class costs.
_new = tuple.__new__

Revision = NewType("Revision", int)
Namespace = NewType("Namespace", str)

DEFAULT_NAMESPACE = Namespace("default")
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
"""What a namespace may be called."""
DEFAULT_RENEWAL_INTERVAL_SECS = 30
DEFAULT_DURATION_SECS = 90
LEASED_SOURCES = frozenset({"eureka", "native"})
"""The doors at which instances register themselves. Any other source is a catalog, ``kind:name``,
that lists on behalf of those who do not."""


class InstanceStatus(StrEnum):
    """What an instance says of itself, or an operator says of it."""

    UP = "UP"
    DOWN = "DOWN"
    STARTING = "STARTING"
    OUT_OF_SERVICE = "OUT_OF_SERVICE"
    UNKNOWN = "UNKNOWN"

    # Statuses are keys on the hot path, and the hash of ``Enum`` is written in Python.
    __hash__ = str.__hash__


class ActionType(StrEnum):
    """What the last change did to an instance."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class InstanceKey(NamedTuple):
    """An instance's identity inside its namespace: upper-case application and effective id."""

    app: str
    id: str


@dataclass(frozen=True, slots=True)
class DataCenter:
    """Where an instance runs. Only one of Amazon's has metadata (possibly empty)."""

    name: str = "MyOwn"
    amazon_metadata: Mapping[str, str] | None = None


class Instance(NamedTuple):
    """One running copy of an application: all that it registered, and what the server adds.

    ``id`` is the effective id (see ``key``); ``instance_id`` is what the client sent, if anything.
    ``lease_secs`` is the length of the lease: ``duration_secs``, unless a registration with an
    older dirty timestamp kept the data and brought a lease of another length.
    """

    # What the client registered.
    app: str
    id: str
    instance_id: str | None
    host_name: str
    ip_addr: str
    status: InstanceStatus = InstanceStatus.UP
    overridden_status: InstanceStatus = InstanceStatus.UNKNOWN
    sid: str = "na"
    port: int = 7001
    port_enabled: bool = True
    secure_port: int = 7002
    secure_port_enabled: bool = False
    country_id: int = 1
    data_center: DataCenter = DataCenter()
    renewal_interval_secs: int = DEFAULT_RENEWAL_INTERVAL_SECS
    duration_secs: int = DEFAULT_DURATION_SECS
    metadata: Mapping[str, str] = {}
    app_group_name: str | None = None
    home_page_url: str | None = None
    status_page_url: str | None = None
    health_check_url: str | None = None
    secure_health_check_url: str | None = None
    vip_address: str | None = None
    secure_vip_address: str | None = None
    asg_name: str | None = None
    last_dirty_ms: int = 0
    # What only sources other than Eureka have.
    custom_status: str | None = None
    """A native instance's own word for its status, which stands for UP."""
    service_name: str | None = None
    """The service's name as it was told; ``app`` is the same in upper case."""
    endpoint_type: str | None = None
    endpoint_value: str | None = None
    tags: tuple[str, ...] = ()
    attributes: str | None = None
    """The metadata as a JSON object, where they have types that ``metadata`` cannot hold."""
    # What the server adds.
    source: str = "eureka"
    origin: str | None = None
    """Of a catalog's entry: the part of its source that brought it."""
    lease_secs: int = DEFAULT_DURATION_SECS
    revision: Revision = Revision(0)
    action_type: ActionType = ActionType.ADDED
    last_updated_ms: int = 0
    registration_ms: int = 0
    last_renewal_ms: int = 0
    eviction_ms: int = 0
    service_up_ms: int = 0
    peers_know: bool = False
    """Whether other servers need not be told of the last change: it was the word of one of them."""

    @property
    def key(self) -> InstanceKey:
        """The identity under which the registry keeps this instance."""
        return _new(InstanceKey, self[:2])

    @property
    def is_leased(self) -> bool:
        """Whether it registered itself and renews; what a catalog brought has no lease."""
        return self.source in LEASED_SOURCES

    @property
    def expires(self) -> bool:
        """Whether it is evicted when its lease ends.

        A native instance that is out of service is not: it was put aside, and waits to return.
        """
        return self.is_leased and not (
            self.source == "native" and self.status is InstanceStatus.OUT_OF_SERVICE
        )


_AT = {name: place for place, name in enumerate(Instance._fields)}
_REVISION = _AT["revision"]


def at_revision(instance: Instance, revision: Revision) -> Instance:
    """The same instance at another revision, at a fifth of what ``_replace`` costs."""
    fields: list[Any] = list(instance)
    fields[_REVISION] = revision
    return _new(Instance, fields)


_STATUS = slice(_AT["status"], _AT["overridden_status"] + 1)
_LEASE = slice(_AT["lease_secs"], len(Instance._fields))


def registered(
    instance: Instance,
    status: InstanceStatus,
    overridden_status: InstanceStatus,
    lease_secs: int,
    now_ms: int,
    service_up_ms: int,
    peers_know: bool,
) -> Instance:
    """An instance as a registration at this instant lists it, before it has a revision.

    The same as ``_replace`` would give, at a quarter of the cost.
    """
    fields: list[Any] = list(instance)
    fields[_STATUS] = (status, overridden_status)
    fields[_LEASE] = (
        lease_secs,
        instance.revision,
        ActionType.ADDED,
        now_ms,
        now_ms,
        now_ms,
        0,
        service_up_ms,
        peers_know,
    )
    return _new(Instance, fields)


class Lease(NamedTuple):
    """The time-limited right of an instance to be listed.

    ``client_mono_ms`` is when the instance itself last renewed here; 0 where it has not since this
    lease began, and whatever renewed it came from another server.
    """

    deadline_mono_ms: int
    duration_ms: int
    last_renewal_ms: int
    client_mono_ms: int = 0


class OverrideChange(NamedTuple):
    """An override of an instance id that was set, or removed where ``status`` is None."""

    id: str
    status: InstanceStatus | None


class Change(NamedTuple):
    """The last change of an instance, or of an override alone.

    ``instance`` is the instance as it is (its last state where it was removed), or None where only
    an override changed. ``at_running_ms`` is the server's running time (``Store.running_ms``).
    """

    revision: Revision
    at_running_ms: int
    instance: Instance | None
    removed: bool = False
    evicted: bool = False
    override: OverrideChange | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A namespace at one revision, with what its change log still holds.

    ``changes`` has all that changed after ``complete_after``, and some of what changed before; of
    what is listed it refers to the same objects as ``instances``, so that nobody holds them twice.
    """

    revision: Revision
    instances: tuple[Instance, ...]
    overrides: Mapping[str, InstanceStatus]
    changes: tuple[Change, ...]
    complete_after: Revision
