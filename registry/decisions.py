"""What each verb comes to: the one commit that the protocol's rules make of it (section 7).

A decision looks at a view, which its caller has locked, and at the clocks. It writes nothing, so it
can be asked again where another worker was faster (``namespace.py``). None means that nothing is to
be done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from registry.errors import InvalidIdentityError, QuotaError, SourceConflictError
from registry.lease import Clock, deadline_after_registration, duration_ms
from registry.model import (
    DEFAULT_NAMESPACE,
    LEASED_SOURCES,
    ActionType,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
    registered,
)
from registry.settings import RegistrySettings
from registry.status_rules import Situation, effective_status, status_after_renewal
from registry.store import Commit, Records
from registry.view import View

MAX_IDENTITY_BYTES = 400
# Makes a named tuple without the Python function that its class would call: where requests come by
# the thousand. All fields must be given, in their order.
_new = tuple.__new__


class Decisions:
    """The rules for one namespace. They keep nothing, so any thread may ask."""

    def __init__(
        self, namespace: Namespace, records: Records, clock: Clock, settings: RegistrySettings
    ) -> None:
        """Decide nothing yet."""
        self._namespace = namespace
        self._records = records
        self._clock = clock
        self._settings = settings

    def now(self) -> tuple[int, int]:
        """The wall clock and the monotonic one, in milliseconds."""
        return self._clock.wall_ms(), self._clock.mono_ms()

    # Registering.

    def registration(
        self,
        view: View,
        instance: Instance,
        is_replication: bool,
        at: tuple[int, int],
        *,
        age_ms: int = 0,
        drops_override: bool = False,
    ) -> Commit:
        """The commit that lists an instance as the rules have it; the view is locked.

        ``at`` is the wall clock and the monotonic one. ``InvalidIdentityError``,
        ``SourceConflictError``, ``QuotaError``.
        """
        now, mono = at
        key = instance.key
        existing = view.get(key)
        others_at_most = None
        if existing is None:
            _check_identity(instance)  # what is listed has had room in the store
            others_at_most = self._check_room(view)
        elif existing.source != instance.source:
            _check_source(existing, instance.source, is_replication=is_replication)
        is_leased = instance.is_leased
        was_leased = existing is not None and existing.is_leased
        override = stored_override = view.overrides.get(key.id)
        # Whose data are listed: the incoming ones, unless the listed ones are newer.
        chosen = instance
        if (
            existing is not None
            and existing.last_dirty_ms > instance.last_dirty_ms
            and was_leased
            and is_leased
        ):
            if instance.source == "eureka":
                chosen = existing
            else:
                chosen = instance._replace(last_dirty_ms=existing.last_dirty_ms)
        override_change = None
        status = chosen.status
        if not is_leased:
            override = None
        else:
            if drops_override and override is not None:
                override = None
                override_change = OverrideChange(key.id, None)
            if chosen.overridden_status is not InstanceStatus.UNKNOWN and override is None:
                override = chosen.overridden_status
                override_change = OverrideChange(key.id, override)
            leased = existing.status if existing is not None and was_leased else None
            # The rules are not asked where all they could answer is the same.
            if override is not None or leased is not status:
                situation = _new(Situation, (status, override, leased, is_replication))
                status = effective_status(situation)
        service_up = existing.service_up_ms if existing is not None else 0
        if status is InstanceStatus.UP and not service_up:
            service_up = now
        duration = duration_ms(instance.duration_secs)
        # The native API registers by a peer's rules, and is none.
        peers_know = is_replication and instance.source == "eureka"
        # In the order of its parameters: to match seven names would cost each registration more.
        listed = registered(
            chosen,
            status,
            override or chosen.overridden_status,
            duration // 1000,
            now,
            service_up,
            peers_know,
        )
        lease = None
        if is_leased:
            deadline = deadline_after_registration(mono, duration) - age_ms
            lease = _new(Lease, (deadline, duration, now - age_ms, 0))
        return _new(
            Commit,
            (
                key,
                existing.revision if existing is not None else Revision(0),
                stored_override,
                mono,
                listed,
                lease,
                False,  # remove
                False,  # evicted
                None,  # expected_deadline_mono_ms
                override_change,
                int(is_leased and not was_leased),
                self._settings.default_open_for_traffic_count,
                self._settings.max_instances,
                others_at_most,
                existing,
            ),
        )

    def _check_room(self, view: View) -> int | None:
        """``QuotaError`` where there is no room for another instance in this namespace.

        Returns what the commit guards: how many other namespaces may hold an instance, where this
        one would be the next to hold any; else None.
        """
        settings, size = self._settings, view.size()
        if size >= settings.max_instances:
            raise QuotaError(f"this namespace may hold {settings.max_instances} instances")
        if size or self._namespace == DEFAULT_NAMESPACE:
            return None
        most = settings.max_namespaces
        others = self._records.namespaces()
        if sum(map(bool, others.values())) - bool(others.get(DEFAULT_NAMESPACE)) >= most:
            raise QuotaError(f"there may be {most} namespaces that hold an instance")
        return most + bool(others.get(DEFAULT_NAMESPACE))

    def adoption(
        self, view: View, instance: Instance, age_ms: int, at: tuple[int, int]
    ) -> Commit | None:
        """The commit that lists what a copy says; None where what is listed is as new.

        ``InvalidIdentityError``, ``SourceConflictError``, ``QuotaError``.
        """
        existing = view.get(instance.key)
        if existing is not None and existing.is_leased:
            is_overridden = instance.overridden_status is not InstanceStatus.UNKNOWN
            adds_override = is_overridden and instance.id not in view.overrides
            ours, theirs = existing.last_dirty_ms, instance.last_dirty_ms
            if ours > theirs or (ours == theirs and not adds_override):
                return None
        commit = self.registration(view, instance, True, at, age_ms=age_ms)
        if commit.instance is None:
            return commit
        # Nobody else was told of it: peers are to hear it from here.
        return commit._replace(instance=commit.instance._replace(peers_know=False))

    def amendment(
        self,
        view: View,
        key: InstanceKey,
        change: Callable[[Instance], Instance],
        source: str | None,
        is_replication: bool,
        drops_override: bool,
    ) -> Commit | None:
        """The commit that registers the listed instance again, as ``change`` makes it.

        None where none is listed, or one of another source; ``SourceConflictError``.
        """
        listed = view.get(key)
        check_leased(listed)
        if listed is None or source not in (None, listed.source):
            return None
        wanted = change(listed)
        if (wanted.key, wanted.source) != (key, listed.source):
            raise ValueError("an amendment leaves the key and the source")
        return self.registration(
            view, wanted, is_replication, self.now(), drops_override=drops_override
        )

    # Changing what is listed.

    def status_by_rule(self, view: View, key: InstanceKey, source: str) -> Commit | None:
        """The commit that shows the status which the rules give now."""
        instance = view.get(key)
        override = view.overrides.get(key.id)
        if instance is None or instance.source != source:
            return None
        status = status_after_renewal(instance.status, override)
        if status in (instance.status, InstanceStatus.UNKNOWN):
            return None
        return self._update(instance, override, status=status)

    def override(
        self,
        view: View,
        key: InstanceKey,
        status: InstanceStatus,
        source: str | None,
        last_dirty_ms: int,
        is_replication: bool,
    ) -> tuple[Commit | None, Instance | None]:
        """The commit that sets an override, and what is listed; ``SourceConflictError``.

        Neither where what is listed is of another source than ``source``.
        """
        instance = view.get(key)
        if instance is not None and source is not None and instance.source != source:
            return None, None
        check_leased(instance)
        if instance is None or instance.status is status:
            return None, instance
        service_up = instance.service_up_ms
        if status is InstanceStatus.UP and not service_up:
            service_up = self._clock.wall_ms()
        commit = self._by_operator(
            instance,
            view.overrides.get(key.id),
            OverrideChange(key.id, status),
            last_dirty_ms,
            is_replication,
            status=status,
            overridden_status=status,
            service_up_ms=service_up,
        )
        return commit, instance

    def override_removal(
        self,
        view: View,
        key: InstanceKey,
        status: InstanceStatus,
        last_dirty_ms: int,
        is_replication: bool,
    ) -> tuple[Commit | None, Instance | None]:
        """The commit that removes an override, and what is listed; ``SourceConflictError``."""
        instance = view.get(key)
        override = view.overrides.get(key.id)
        check_leased(instance)
        if instance is None or override is None:
            return None, instance
        commit = self._by_operator(
            instance,
            override,
            OverrideChange(key.id, None),
            last_dirty_ms,
            is_replication,
            status=status,
            overridden_status=InstanceStatus.UNKNOWN,
        )
        return commit, instance

    def _by_operator(
        self,
        instance: Instance,
        stored_override: InstanceStatus | None,
        change: OverrideChange,
        last_dirty_ms: int,
        is_replication: bool,
        **changes: Any,
    ) -> Commit:
        """The commit of an operator's word, with what is noted of each."""
        now = self._clock.wall_ms()
        return self._update(
            instance,
            stored_override,
            override=change,
            last_dirty_ms=max(instance.last_dirty_ms, last_dirty_ms),
            last_updated_ms=now,
            last_renewal_ms=now,
            action_type=ActionType.MODIFIED,
            peers_know=is_replication,
            **changes,
        )

    def stored_override(
        self, view: View, key: InstanceKey, status: InstanceStatus, last_dirty_ms: int
    ) -> Commit | None:
        """The commit that stores an override which is to be shown by the next renewal.

        ``SourceConflictError``.
        """
        instance = view.get(key)
        override = view.overrides.get(key.id)
        check_leased(instance)
        if instance is None or override is status or instance.last_dirty_ms >= last_dirty_ms:
            return None
        change = OverrideChange(key.id, status)
        return self._update(
            instance, override, override=change, overridden_status=status, peers_know=True
        )

    def _update(
        self,
        instance: Instance,
        stored_override: InstanceStatus | None,
        *,
        override: OverrideChange | None = None,
        **changes: Any,
    ) -> Commit:
        """The commit that changes some fields of a listed instance, and leaves its lease alone."""
        return Commit(
            key=instance.key,
            expected=instance.revision,
            expected_override=stored_override,
            at_mono_ms=self._clock.mono_ms(),
            instance=instance._replace(**changes),
            override=override,
            before=instance,
        )

    # Removing.

    def cancellation(
        self,
        view: View,
        key: InstanceKey,
        source: str | None,
        is_replication: bool,
        revision: Revision | None,
    ) -> tuple[Commit | None, bool]:
        """The commit that cancels, and whether an instance is listed that it removes.

        ``SourceConflictError``. With a ``revision`` it is to be at that one.
        """
        instance = view.get(key)
        override = view.overrides.get(key.id)
        if revision is not None and (instance is None or instance.revision != revision):
            return None, False
        if instance is not None:
            if source is None:
                check_leased(instance)
            elif not is_of(instance, source, is_replication):
                return None, False
            return self._removal(instance, override, peers_know=is_replication), True
        if override is None:
            return None, False
        # The genuine server drops an id's override even where the cancel finds no lease.
        commit = Commit(
            key=key,
            expected=Revision(0),
            expected_override=override,
            at_mono_ms=self._clock.mono_ms(),
            instance=None,
            override=OverrideChange(key.id, None),
        )
        return commit, False

    def eviction(self, view: View, key: InstanceKey, lease: Lease) -> Commit | None:
        """The commit that removes an instance, if its lease is this one still."""
        instance = view.get(key)
        if instance is None or not instance.expires:
            return None
        return self._removal(
            instance,
            view.overrides.get(key.id),
            evicted=True,
            deadline_mono_ms=lease.deadline_mono_ms,
        )

    def _removal(
        self,
        instance: Instance,
        override: InstanceStatus | None,
        *,
        peers_know: bool = False,
        evicted: bool = False,
        deadline_mono_ms: int | None = None,
    ) -> Commit:
        """The commit that removes a listed instance; with a deadline, only if that still holds."""
        now = self._clock.wall_ms()
        return Commit(
            key=instance.key,
            expected=instance.revision,
            expected_override=override,
            at_mono_ms=self._clock.mono_ms(),
            instance=instance._replace(
                action_type=ActionType.DELETED,
                last_updated_ms=now,
                eviction_ms=instance.eviction_ms or now,
                peers_know=peers_know,
            ),
            remove=True,
            evicted=evicted,
            expected_deadline_mono_ms=deadline_mono_ms,
            override=None if override is None else OverrideChange(instance.id, None),
            expected_clients_step=-1 if instance.is_leased else 0,
            opening_clients=self._settings.default_open_for_traffic_count,
            before=instance,
        )


def _check_identity(instance: Instance) -> None:
    """``InvalidIdentityError`` where no store could hold an instance under its names."""
    identity = instance.app + instance.id
    # A character has four bytes at most, so most identities need not be encoded to be measured.
    may_be_long = len(identity) > MAX_IDENTITY_BYTES // 4
    if (may_be_long and len(identity.encode()) > MAX_IDENTITY_BYTES) or "\0" in identity:
        raise InvalidIdentityError(MAX_IDENTITY_BYTES)


def check_leased(instance: Instance | None) -> None:
    """``SourceConflictError`` for what a catalog lists: its source alone says what is true."""
    if instance is not None and not instance.is_leased:
        raise SourceConflictError(instance.app, instance.id, instance.source)


def _check_source(existing: Instance, source: str, *, is_replication: bool) -> None:
    """``SourceConflictError`` where this instance, of another source, must not be replaced.

    There are exceptions. An instance that a catalog listed from another Eureka server may register
    here itself, and replaces the catalog's entry. One that a peer told of may register through
    either API. And a peer replaces what registered through either: it knows only one kind.
    """
    if source in LEASED_SOURCES and existing.is_leased:
        if existing.peers_know or (is_replication and source == "eureka"):
            return
    elif source == "eureka" and existing.source.startswith("eureka:"):
        return
    raise SourceConflictError(existing.app, existing.id, existing.source)


def is_of(instance: Instance, source: str, is_replication: bool) -> bool:
    """Whether a source may renew or cancel an instance; a peer may where it registered itself."""
    return instance.source == source or (is_replication and instance.is_leased)
