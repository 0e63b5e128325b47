"""Keeps the registry's instances of one catalog equal to what its source says.

Whatever may have changed becomes *due*: its entry is compared with the listed instance, and written
only if they differ. So a restart, a takeover by another worker or a relist causes no change where
nothing has changed, and a change of such an instance by somebody else is undone.

An example, with two groups ``a`` and ``b``::

    replace({"a": [x, y], "b": [y]})   x, y due → both registered
    change({"a": [x]})                 y due → still in b: compared, nothing written
    change({"b": []})                  y due → in no group: cancelled
    x registered itself before that     x due → refused, since it is another's: shadowed
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from catalogs.bounds import shortened
from catalogs.catalog import Entry, Groups
from native_api.form import NO_ADDRESS
from registry import (
    Fence,
    Instance,
    InstanceKey,
    LockLostError,
    Namespace,
    Registry,
    RegistryError,
    Revision,
    SourceConflictError,
    StoreError,
    View,
)

log = logging.getLogger("catalogs")

BATCH = 50
"""Writes between two checks of the lock; each check pauses, so that requests are answered."""
STALE = "catalog-stale"
# The fields that a source decides; the registry sets the others.
_TOLD = tuple(
    name
    for name in Instance._fields
    if name
    not in (
        *("revision", "action_type", "last_updated_ms", "registration_ms", "last_renewal_ms"),
        *("eviction_ms", "service_up_ms", "lease_secs", "last_dirty_ms", "origin"),
    )
)


class Identity(NamedTuple):
    """An instance's key in its namespace."""

    namespace: Namespace
    key: InstanceKey


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconciliation wrote."""

    listed: int = 0
    removed: int = 0


class Reconciler:
    """The entries of one source, and their instances in the registry. For one thread."""

    def __init__(
        self,
        registry: Registry,
        source: str,
        *,
        address_of: Callable[[str], str | None],
        prefers_local: bool = False,
    ) -> None:
        """Before the first ``replace`` nothing is known, and only stale marks are written."""
        self._registry = registry
        self._source = source
        self.prefers_local = prefers_local
        self._address_of = address_of
        self._is_known = False
        self._is_stale = False
        self._groups: dict[str, dict[Identity, Entry]] = {}
        # Groups that exist, but could never be read since this object was made.
        self._unread: set[str] = set()
        self._holders: dict[Identity, dict[str, None]] = {}
        self._due: dict[Identity, None] = {}
        self._revisions: dict[Namespace, Revision] = {}
        self._shadowed: set[Identity] = set()
        self._refused: dict[Identity, str] = {}

    # What is known

    def replace(self, groups: Groups) -> None:
        """Set the groups to exactly these."""
        for gone in (self._groups.keys() | self._unread) - groups.keys():
            self._put(gone, ())
        for name, entries in groups.items():
            self._put(name, entries)
        if not self._is_known:
            self._is_known = True
            self._look_at_all_listed()

    def change(self, groups: Groups) -> None:
        """Set these groups; the others stay as they are."""
        for name, entries in groups.items():
            self._put(name, entries)

    def set_stale(self, stale: bool) -> None:
        """Mark every entry as stale, or remove the marks, on what other workers listed too."""
        if stale != self._is_stale:
            self._is_stale = stale
            self._due.update(dict.fromkeys(self._holders))
            if not self._is_known:
                self._look_at_all_listed()

    def addresses_changed(self) -> None:
        """Compare again the entries whose addresses are looked up."""
        self._due.update(
            dict.fromkeys(i for i in self._holders if not self._entry(i).instance.ip_addr)
        )

    def hosts(self) -> set[str]:
        """The host names whose addresses are wanted."""
        found = (self._entry(identity).instance for identity in self._holders)
        return {instance.host_name for instance in found if not instance.ip_addr}

    def size(self) -> int:
        """How many entries the source has."""
        return len(self._holders)

    def shadowed(self) -> int:
        """How many of them are not listed because another source owns the instance."""
        return len(self._shadowed)

    def refused(self) -> Iterator[str]:
        """The entries that the registry refuses, and why; their last listed state stays."""
        for (_, key), reason in self._refused.items():
            yield f"{shortened(key.app)}/{shortened(key.id)} is not listed: {reason}"

    def try_refused_again(self) -> None:
        """Try the refused entries again: a quota may have room now."""
        self._due.update(dict.fromkeys(self._refused))

    def namespaces(self) -> Mapping[Namespace, str]:
        """The namespaces with entries, each with one of its groups."""
        return {
            identity.namespace: group
            for group, entries in reversed(self._groups.items())
            for identity in islice(entries, 1)
        }

    def has_due(self) -> bool:
        """Whether anything is left to compare."""
        return bool(self._due)

    def _put(self, name: str, entries: Sequence[Entry] | None) -> None:
        if entries is None:
            if name not in self._groups:
                self._unread.add(name)
            return
        if name in self._unread:
            self._unread.discard(name)
            self._look_at_all_listed()
        fresh = {Identity(e.namespace, e.instance.key): e for e in entries}
        before = self._groups.get(name, {})
        if fresh:
            self._groups[name] = fresh
        else:
            self._groups.pop(name, None)
        for identity in before.keys() - fresh.keys():
            holders = self._holders[identity]
            del holders[name]
            if not holders:
                del self._holders[identity]
            self._due[identity] = None
        for identity, entry in fresh.items():
            self._holders.setdefault(identity, {})[name] = None
            if before.get(identity) != entry:
                self._due[identity] = None

    def _group_of(self, identity: Identity) -> str:
        """The first of the groups that have this entry: its version counts."""
        return next(iter(self._holders[identity]))

    def _entry(self, identity: Identity) -> Entry:
        return self._groups[self._group_of(identity)][identity]

    # What is listed

    def reconcile(self, lock: Callable[[], Fence | None]) -> Outcome:
        """Write what differs, ``BATCH`` at a time, while ``lock`` gives a fence to write with.

        An entry stays due until it is written. ``StoreError`` is raised, and the next call tries
        again.
        """
        if self._is_known:
            for namespace in {*self._revisions, *(i.namespace for i in self._due)}:
                self._notice(namespace)
        elif not self._is_stale:
            return Outcome()
        listed = removed = 0
        while self._due and (fence := lock()) is not None:
            for identity in list(islice(self._due, BATCH)):
                del self._due[identity]
                try:
                    wrote = self._settle(identity, fence)
                except LockLostError:
                    # Nothing of it is done; the worker that has the lock now compares everything.
                    self._due[identity] = None
                    return Outcome(listed, removed)
                except Exception:
                    # Try it again after the others: it may be the only one that cannot be written.
                    self._due[identity] = None
                    raise
                listed += wrote > 0
                removed += wrote < 0
        return Outcome(listed, removed)

    def forget(self, lock: Callable[[], Fence | None]) -> Outcome:
        """Remove all instances of this source, which has been silent for too long."""
        self.replace({})
        self._is_known = True
        self._look_at_all_listed()
        outcome = self.reconcile(lock)
        self._is_known = bool(self._due)
        return outcome

    def _notice(self, namespace: Namespace) -> None:
        """Make due what has changed in the registry since the last call, by whomever."""
        view = self._registry.in_namespace(namespace).view()
        with view.lock:
            since = self._revisions.get(namespace)
            changes = None if since is None else view.changes_since(since)
            if changes is None:
                self._all_listed(view)
                self._due.update(dict.fromkeys(i for i in self._holders if i[0] == namespace))
            else:
                apps = set()
                for change in changes:
                    instance = change.instance
                    if instance is None:
                        continue
                    identity = Identity(namespace, instance.key)
                    if instance.source == self._source or identity in self._holders:
                        self._due[identity] = None
                    if self.prefers_local and instance.is_leased:
                        apps.add(instance.app)
                if apps:
                    self._due.update(
                        dict.fromkeys(
                            i for i in self._holders if i[0] == namespace and i.key.app in apps
                        )
                    )
            self._revisions[namespace] = view.revision

    def _look_at_all_listed(self) -> None:
        for namespace in self._registry.namespaces():
            self._all_listed(self._registry.in_namespace(namespace).view())

    def _all_listed(self, view: View) -> None:
        with view.lock:
            for application in view.applications.values():
                for instance in application.values():
                    if instance.source == self._source:
                        self._due[Identity(view.namespace, instance.key)] = None

    def _settle(self, identity: Identity, fence: Fence) -> int:
        """Make one instance equal to its entry: 1 if it was written, -1 if removed, 0 otherwise."""
        key = identity.key
        registry = self._registry.in_namespace(identity.namespace)
        view = registry.view()
        with view.lock:
            present = view.get(key)
            is_local = self.prefers_local and any(
                other.is_leased for other in view.applications.get(key.app, {}).values()
            )
        wanted = None
        is_own = present is not None and present.source == self._source
        if identity in self._holders and not is_local:
            wanted = self._complete(identity, present)
        elif not self._is_known and is_own and present is not None:
            # The source has not answered this worker yet; only the mark can be set.
            wanted = present._replace(metadata={**present.metadata, STALE: "true"})
        if wanted is None:
            if is_local and identity in self._holders:
                self._shadowed.add(identity)
            else:
                self._shadowed.discard(identity)
            self._refused.pop(identity, None)
            if present is None or not is_own:
                return 0
            if present.origin in self._unread and not is_local:
                return 0
            gone = registry.cancel(key.app, key.id, source=self._source, fence=fence)
            return -1 if gone else 0
        if present is not None and is_own and _is_same(present, wanted):
            return 0
        try:
            _check_texts(wanted)
            registry.register(wanted, fence=fence)
        except (StoreError, LockLostError):
            raise
        except SourceConflictError as error:
            if identity not in self._shadowed:
                log.warning("%s: not listed: %s", self._source, error)
            self._shadowed.add(identity)
            self._refused.pop(identity, None)
            return 0
        except Exception as error:
            # An unforeseen error must not affect the other entries.
            known = isinstance(error, RegistryError | ValueError)
            self._refused[identity] = str(error) if known else f"{type(error).__name__}: {error}"
            self._shadowed.discard(identity)
            return 0
        self._shadowed.discard(identity)
        self._refused.pop(identity, None)
        return 1

    def _complete(self, identity: Identity, present: Instance | None) -> Instance:
        group = self._group_of(identity)
        told = self._groups[group][identity].instance
        address = told.ip_addr or self._address_of(told.host_name)
        if not address:
            # A name that no longer resolves keeps its last address.
            is_own = present is not None and present.source == self._source
            address = present.ip_addr if is_own and present is not None else NO_ADDRESS
        metadata = told.metadata
        if self._is_stale:
            metadata = {**metadata, STALE: "true"}
        return told._replace(
            ip_addr=address,
            source=self._source,
            origin=group,
            metadata=metadata,
            last_dirty_ms=told.last_dirty_ms or self._registry.clock.wall_ms(),
        )


def _check_texts(instance: Instance) -> None:
    """``ValueError`` if a text has no encoding in UTF-8: half of a surrogate pair."""
    told = (*instance.metadata.items(), *instance.tags, *instance)
    try:
        for item in told:
            for text in item if isinstance(item, tuple) else (item,):
                if isinstance(text, str):
                    text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None


def _is_same(listed: Instance, wanted: Instance) -> bool:
    return all(getattr(listed, name) == getattr(wanted, name) for name in _TOLD)
