"""Brings what the registry lists of one catalog in line with what its source says.

Everything that may have changed is looked at again, compared with what is listed, and written only
where it differs: so after a restart, a takeover by another worker or a relist, an entry that is as
it was causes no change, and another's write is undone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from catalogs.bounds import shortened
from catalogs.catalog import Entry, Groups
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
"""Writes between two looks at the lock, and between two pauses in which requests are answered."""
STALE = "catalog-stale"
NO_ADDRESS = "0.0.0.0"
# What a source says; the rest of an instance is the registry's own.
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
    """The entries of one source, and their instances in the registry. One thread's."""

    def __init__(
        self,
        registry: Registry,
        source: str,
        *,
        address_of: Callable[[str], str | None],
        prefers_local: bool = False,
    ) -> None:
        """Nothing is known before the first ``replace``; until then marks alone are written."""
        self._registry = registry
        self._source = source
        self.prefers_local = prefers_local
        self._address_of = address_of
        self._is_known = False
        self._is_stale = False
        self._groups: dict[str, dict[Identity, Entry]] = {}
        # Those that nobody could read since this one began.
        self._unread: set[str] = set()
        self._holders: dict[Identity, dict[str, None]] = {}
        self._due: dict[Identity, None] = {}
        self._revisions: dict[Namespace, Revision] = {}
        self._shadowed: set[Identity] = set()
        self._refused: dict[Identity, str] = {}

    # What is known

    def replace(self, groups: Groups) -> None:
        """Know exactly these groups."""
        for gone in (self._groups.keys() | self._unread) - groups.keys():
            self._put(gone, ())
        for name, entries in groups.items():
            self._put(name, entries)
        if not self._is_known:
            self._is_known = True
            self._look_at_all_listed()

    def change(self, groups: Groups) -> None:
        """Know these groups as they are now, and the others as before."""
        for name, entries in groups.items():
            self._put(name, entries)

    def set_stale(self, stale: bool) -> None:
        """Mark every entry, or take the mark away; also of what another worker listed before."""
        if stale != self._is_stale:
            self._is_stale = stale
            self._due.update(dict.fromkeys(self._holders))
            if not self._is_known:
                self._look_at_all_listed()

    def addresses_changed(self) -> None:
        """Look again at the entries whose addresses are looked up."""
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
        """How many of them are not listed, because the instance is another's here."""
        return len(self._shadowed)

    def refused(self) -> Iterator[str]:
        """What cannot be listed as it is, and why; what was listed of it before stays."""
        for (_, key), reason in self._refused.items():
            yield f"{shortened(key.app)}/{shortened(key.id)} is not listed: {reason}"

    def try_refused_again(self) -> None:
        """Look at them again: a quota may have room by now."""
        self._due.update(dict.fromkeys(self._refused))

    def namespaces(self) -> Mapping[Namespace, str]:
        """The namespaces that there are entries in, each with a group that has one."""
        return {
            identity.namespace: group
            for group, entries in reversed(self._groups.items())
            for identity in islice(entries, 1)
        }

    def has_due(self) -> bool:
        """Whether there is something to look at."""
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
        """Of the groups that have it the first, whose word stands while it has it."""
        return next(iter(self._holders[identity]))

    def _entry(self, identity: Identity) -> Entry:
        return self._groups[self._group_of(identity)][identity]

    # What is listed

    def reconcile(self, lock: Callable[[], Fence | None]) -> Outcome:
        """Write what differs behind the fence of ``lock``, ``BATCH`` at a time, while it is held.

        What is due stays so until it is written: ``StoreError`` passes through, and the next call
        tries again.
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
                    # All of it is due still, for whoever holds the lock now.
                    self._due[identity] = None
                    return Outcome(listed, removed)
                except Exception:
                    # Due still, but behind the others: it may be this one that cannot be written.
                    self._due[identity] = None
                    raise
                listed += wrote > 0
                removed += wrote < 0
        return Outcome(listed, removed)

    def forget(self, lock: Callable[[], Fence | None]) -> Outcome:
        """Take out all that is listed, as of a source that will not come back."""
        self.replace({})
        self._is_known = True
        self._look_at_all_listed()
        outcome = self.reconcile(lock)
        self._is_known = bool(self._due)
        return outcome

    def _notice(self, namespace: Namespace) -> None:
        """Make due what others' writes since the last look may have changed."""
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
        """Write one instance if need be: 1 where it was listed, -1 where it was removed."""
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
            # Its source was silent before it said anything to this worker.
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
            # Whatever a source may say that nobody has thought of: it is this entry's alone.
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
            # A name that is no more keeps its last address.
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
    """``ValueError`` where a text cannot be answered to anybody: half a character, say."""
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
