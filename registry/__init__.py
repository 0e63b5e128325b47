"""A registry of running instances: leases, overrides, a change log. Knows no wire format."""

from registry.errors import (
    ConflictError,
    InvalidIdentityError,
    LockLostError,
    QuotaError,
    RegistryError,
    SourceConflictError,
    StoreError,
)
from registry.evictor import Evictor
from registry.lease import Clock, SystemClock, duration_ms
from registry.listing import Application, Listing, Portion, Portions
from registry.model import (
    DEFAULT_DURATION_SECS,
    DEFAULT_NAMESPACE,
    NAMESPACE,
    ActionType,
    Change,
    DataCenter,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    Revision,
)
from registry.namespace import HoldBack, NamespaceRegistry, Registering
from registry.preservation import Preservation, SelfPreservation
from registry.registry import Registry
from registry.settings import RegistrySettings
from registry.store import Coordination, Fence, Records, Store, StoreState
from registry.stores import open_store
from registry.view import NotYetError, View
from registry.why import Why, explain

__all__ = [
    "DEFAULT_DURATION_SECS",
    "DEFAULT_NAMESPACE",
    "NAMESPACE",
    "ActionType",
    "Application",
    "Change",
    "Clock",
    "ConflictError",
    "Coordination",
    "DataCenter",
    "Evictor",
    "Fence",
    "HoldBack",
    "Instance",
    "InstanceKey",
    "InstanceStatus",
    "InvalidIdentityError",
    "Lease",
    "Listing",
    "LockLostError",
    "Namespace",
    "NamespaceRegistry",
    "NotYetError",
    "Portion",
    "Portions",
    "Preservation",
    "QuotaError",
    "Records",
    "Registering",
    "Registry",
    "RegistryError",
    "RegistrySettings",
    "Revision",
    "SelfPreservation",
    "SourceConflictError",
    "Store",
    "StoreError",
    "StoreState",
    "SystemClock",
    "View",
    "Why",
    "duration_ms",
    "explain",
    "open_store",
]
