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
from registry.figures import (
    EVENTS,
    RENEWAL_REFUSED,
    RENEWAL_UNKNOWN,
    RENEWED_BY_PEER,
    Figures,
    Section,
)
from registry.history import (
    Asker,
    Extent,
    ForgottenError,
    HistoryEntry,
    HistoryKind,
    Moment,
    NotYetThereError,
    Page,
    Wish,
    asking,
    told_instant,
    told_moment,
)
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
from registry.namespace import AcceptedLoss, HoldBack, NamespaceRegistry, Registering
from registry.preservation import Preservation, Preserved, SelfPreservation
from registry.readers import Behind, Reader
from registry.recording import NamespaceHistory, Recorder
from registry.registry import Registry
from registry.settings import HistorySettings, RegistrySettings
from registry.store import Coordination, Fence, Records, Store, StoreState
from registry.stores import folder_of, open_history, open_store
from registry.view import NotYetError, View
from registry.why import Why, explain

__all__ = [
    "DEFAULT_DURATION_SECS",
    "DEFAULT_NAMESPACE",
    "EVENTS",
    "NAMESPACE",
    "RENEWAL_REFUSED",
    "RENEWAL_UNKNOWN",
    "RENEWED_BY_PEER",
    "AcceptedLoss",
    "ActionType",
    "Application",
    "Asker",
    "Behind",
    "Change",
    "Clock",
    "ConflictError",
    "Coordination",
    "DataCenter",
    "Evictor",
    "Extent",
    "Fence",
    "Figures",
    "ForgottenError",
    "HistoryEntry",
    "HistoryKind",
    "HistorySettings",
    "HoldBack",
    "Instance",
    "InstanceKey",
    "InstanceStatus",
    "InvalidIdentityError",
    "Lease",
    "Listing",
    "LockLostError",
    "Moment",
    "Namespace",
    "NamespaceHistory",
    "NamespaceRegistry",
    "NotYetError",
    "NotYetThereError",
    "Page",
    "Portion",
    "Portions",
    "Preservation",
    "Preserved",
    "QuotaError",
    "Reader",
    "Recorder",
    "Records",
    "Registering",
    "Registry",
    "RegistryError",
    "RegistrySettings",
    "Revision",
    "Section",
    "SelfPreservation",
    "SourceConflictError",
    "Store",
    "StoreError",
    "StoreState",
    "SystemClock",
    "View",
    "Why",
    "Wish",
    "asking",
    "duration_ms",
    "explain",
    "folder_of",
    "open_history",
    "open_store",
    "told_instant",
    "told_moment",
]
