"""The verbs of one namespace, and the only place that decides what is true in it.

Every mutation uses *optimistic concurrency*. It looks at the worker's view, decides by the rules,
and hands the store one conditional write, whose guards are the revisions that it looked at. Where a
guard no longer holds nothing is written: it looks and decides again. For example, where ``web:1``
is listed at revision 7 and two workers change it at the same time:

    worker A, an operator's override            worker B, new metadata
    sees web:1 at 7, decides OUT_OF_SERVICE     sees web:1 at 7, decides zone=a
    commits "if it is still at 7": revision 8
                                                commits "if it is still at 7": ``ConflictError``
                                                catches up: web:1 at 8, OUT_OF_SERVICE
                                                decides again: OUT_OF_SERVICE and zone=a
                                                commits "if it is still at 8": revision 9

So no lock is held while anybody thinks, and neither change is lost. It follows that a caller must
not read an instance, change it and register it: between its read and its write another may come.
It says what is to be changed instead (``amend``), as a function that can be asked again. What each
verb comes to is decided in ``decisions.py``, and written in ``writing.py``.

A line is logged only after what it tells of was committed. The semantics are those of the
protocol's section 7.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from registry import loss
from registry.decisions import Decisions, is_of
from registry.errors import RegistryError, StoreError, StoreGoneError
from registry.history import Asker, Asking, HistoryKind, asking
from registry.lease import (
    EVICTION_WINDOW_MS,
    Clock,
    duration_ms,
)
from registry.model import (
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    Revision,
    at_revision,
)
from registry.preservation import (
    Preservation,
    SelfPreservation,
    arithmetic,
    mode_of,
    note_name,
    read_note,
)
from registry.readers import ALL, Behind, Reader, Readers, what
from registry.recording import Cause, NamespaceHistory, Recorder, event
from registry.settings import RegistrySettings
from registry.status_rules import status_after_renewal
from registry.store import Commit, Fence, Store
from registry.view import NotYetError, View
from registry.words import who
from registry.writing import Writer, Written

log = logging.getLogger("registry")

_NEVER = 1 << 61
# Makes a named tuple without the Python function that its class would call: where requests come by
# the thousand. All fields must be given, in their order.
_new = tuple.__new__


class Registering(NamedTuple):
    """An instance to be registered, whether a peer says so, and who asks."""

    instance: Instance
    is_replication: bool = False
    by: Asking | None = None


class AcceptedLoss(NamedTuple):
    """What a loss that was accepted comes to: how many go, and how many peers hold back."""

    ended: int
    held_back: int


class HoldBack(Protocol):
    """Says which instances stay though their leases ended (``NamespaceRegistry.hold_back``)."""

    def __call__(self, instance: Instance, lease: Lease) -> bool:
        """Whether the instance stays. Cheap: it is asked of each before its eviction."""
        ...

    def reason(self, instance: Instance, lease: Lease) -> str:
        """Why it stays, and how long at most, as a sentence; empty where it does not."""
        ...


class NamespaceRegistry:
    """One namespace, as this worker process sees and changes it. Thread-safe.

    It comes from ``Registry.in_namespace``. A process has one of these for a namespace at a time.
    """

    def __init__(
        self,
        namespace: Namespace,
        records: Store,
        clock: Clock,
        settings: RegistrySettings,
        moved: Callable[[Namespace], None],
        recorder: Recorder | None,
        counted: list[int],
        readers: Readers,
    ) -> None:
        """Read nothing yet. ``moved`` is called whenever the view may show something new.

        What happens is told to the ``recorder``, and counted in ``counted`` (``figures.EVENTS``).
        """
        self.namespace = namespace
        self.clock = clock
        self.settings = settings
        self._records = records
        self._decisions = Decisions(namespace, records, clock, settings)
        self._view = View(records, namespace, settings.delta_retention_ms)
        self._writer = Writer(
            records,
            self._view,
            clock,
            moved,
            recorder,
            counted,
            doubled=settings.lease_expiry == "genuine",
        )
        self._recorder = recorder
        self.history = None if recorder is None else NamespaceHistory(recorder, namespace)
        """What happened here; None where none is kept."""
        self.counted = counted
        self._readers = readers
        self._held_back: HoldBack | None = None

    def hold_back(self, decision: HoldBack) -> None:
        """Let ``decision`` say which instances stay though their leases ended.

        Others may know that such an instance lives. It is asked of each before its eviction, again
        and again, so it must be cheap; for as long as it says so, the instance counts as alive.
        """
        self._held_back = decision

    def is_held_back(self, instance: Instance, lease: Lease) -> bool:
        """Whether an instance whose lease ended stays all the same."""
        return self._held_back is not None and self._held_back(instance, lease)

    def held_back_reason(self, instance: Instance, lease: Lease) -> str:
        """Why it stays, as a sentence; empty where it is not held back."""
        return "" if self._held_back is None else self._held_back.reason(instance, lease)

    def evictable(
        self, ended: Sequence[tuple[InstanceKey, Lease]]
    ) -> tuple[list[tuple[InstanceKey, Lease]], int]:
        """Of the ended leases, those whose instances are to go; and how many are held back.

        See ``Instance.expires`` and ``hold_back``. Self-preservation is another matter.
        """
        view = self.view()
        with view.lock:
            found = [(view.get(key), key, lease) for key, lease in ended]
        going, held_back = [], 0
        for instance, key, lease in found:
            if instance is None:
                going.append((key, lease))
            elif instance.expires:
                if self.is_held_back(instance, lease):
                    held_back += 1
                else:
                    going.append((key, lease))
        return going, held_back

    @property
    def is_blank(self) -> bool:
        """Whether nothing is listed here, as far as this process knows, and nothing was lately."""
        return self._view.is_blank()

    def held(self) -> int:
        """How many instances are in this process's memory: listed, and told of by the delta.

        One that is both counts twice.
        """
        return self._view.size() + self._view.changed.size

    def forget_old_changes(self, now_mono_ms: int, at_most: int) -> bool:
        """Forget at most so many changes that are too old for the delta; whether some remain."""
        return self._view.forget(now_mono_ms, at_most)

    # Reads

    def view(self) -> View:
        """The current view, or the last known one while the store does not answer.

        ``StoreError`` where the store was never read: an unknown namespace must not look empty.
        Also where the store's files are gone for good, for other workers may be on new ones.
        """
        try:
            return self._writer.synced()
        except StoreGoneError:
            raise
        except StoreError as error:
            if not self._view.is_loaded:
                raise
            log.warning("the store does not answer, reads go on from memory: %s", error)
            return self._view

    def instance(self, app: str, instance_id: str) -> Instance | None:
        """One instance, with the instant of its last renewal; None where unknown or expired.

        While self-preservation holds evictions back, an expired instance is still told.
        """
        return _as_renewed(self.renewed(app, instance_id))

    def renewed(self, app: str, instance_id: str) -> tuple[Instance, int] | None:
        """As ``instance``, but as it is listed, and its last renewal (epoch ms) beside it.

        The listed object is the same until it changes, so that what was encoded of it can be kept.
        """
        key = _new(InstanceKey, (app.upper(), instance_id))
        view = self.view()
        with view.lock:
            found = view.get(key)
        return None if found is None else self._with_lease(key, found)

    def instance_by_id(self, instance_id: str) -> Instance | None:
        """As ``instance``, looked for in every application."""
        found = self._by_id(instance_id)
        return None if found is None else _as_renewed(self._with_lease(found.key, found))

    def listed_by_id(self, instance_id: str, app: str | None = None) -> Instance | None:
        """As ``instance_by_id``, but an expired instance is found until it is evicted.

        With ``app``, looked for in that application alone.
        """
        if app is None:
            found = self._by_id(instance_id)
        else:
            view = self.view()
            with view.lock:
                found = view.get(InstanceKey(app.upper(), instance_id))
        if found is None:
            return None
        try:
            lease = self._records.lease(self.namespace, found.key)
        except StoreError:
            return found
        return found if lease is None else found._replace(last_renewal_ms=lease.last_renewal_ms)

    def lease(self, key: InstanceKey) -> Lease | None:
        """The lease as it is now, also one that ended; None without one, and while none is told."""
        try:
            return self._records.lease(self.namespace, key)
        except StoreError:
            return None

    def _by_id(self, instance_id: str) -> Instance | None:
        view = self.view()
        with view.lock:
            return view.by_id(instance_id)

    def _with_lease(self, key: InstanceKey, found: Instance) -> tuple[Instance, int] | None:
        try:
            lease = self._records.lease(self.namespace, key)
            if lease is None:
                return found, found.last_renewal_ms
            now_mono_ms = self.clock.mono_ms()
            if (
                now_mono_ms > lease.deadline_mono_ms
                and found.expires
                and self._ran_between(lease.deadline_mono_ms, now_mono_ms)
                and self._hides_ended()
                and not self.is_held_back(found, lease)
            ):
                return None
        except StoreError:
            return found, found.last_renewal_ms
        return found, lease.last_renewal_ms

    def _ran_between(self, earlier_mono_ms: int, later_mono_ms: int) -> bool:
        """Whether the registry ran at all from one instant to another.

        Else nobody was evicted then, for nobody knows who renewed elsewhere; and the leases are to
        get their whole time again (``Evictor``).
        """
        running_ms = self._records.running_ms
        return running_ms(earlier_mono_ms) < running_ms(later_mono_ms)

    def _hides_ended(self) -> bool:
        """Whether an instance whose lease ended is no longer told of, before it is evicted.

        By application it is decided within a second whether it goes; until then it is shown.
        """
        is_by_application = mode_of(self.settings) == "by-application"
        return not is_by_application and self.self_preservation().expiration_enabled

    def self_preservation(self) -> SelfPreservation:
        """The renewal arithmetic of this moment; ``StoreError`` if the store does not answer."""
        return arithmetic(self._records, self.namespace, self.clock.mono_ms(), self.settings)

    def preservation(self) -> Preservation:
        """Self-preservation at this moment, to be told; ``StoreError``.

        Since when, and for which applications, is as the evictor noted it.
        """
        view = self.view()
        with view.lock:
            leases = view.leased
        note = read_note(self._records.note(note_name(self.namespace)))
        return note.told(leases, self.self_preservation(), self.settings)

    def renewed_by_clients(self, after_mono_ms: int) -> list[tuple[InstanceKey, int]]:
        """Whose client itself renewed here after an instant, and when it last did; ``StoreError``.

        A registration does not count: it is a change, and is in the log.
        """
        return self._records.renewed_by_clients(self.namespace, after_mono_ms)

    def evicted_lately(self) -> int:
        """How many were evicted in the last 60 s, for the eviction limit; ``StoreError``."""
        after = self.clock.mono_ms() - EVICTION_WINDOW_MS
        return self._records.evictions(self.namespace, after)

    def leases(self) -> dict[InstanceKey, Lease]:
        """All leases as they are now, those that ended too; ``StoreError``. It takes a while."""
        return dict(self._records.due(self.namespace, _NEVER).expired)

    def record(self, kind: HistoryKind, key: InstanceKey, *, rule: str = "", **detail: Any) -> None:
        """Tell the history, where one is kept, of what changed nothing that is listed.

        ``key`` may have an empty id (it concerns the application), or be empty altogether. Who asks
        is found out here. ``detail`` are JSON values.
        """
        if self._recorder is None:
            return
        by = asking.get()
        told = event(
            self.namespace,
            self._view.revision,
            self.clock.wall_ms(),
            kind,
            key,
            None if by is None else by(),
            (rule, detail),
        )
        self._recorder.note_event(told)

    # Who reads

    def behind(self, revision: Revision, instance: Instance | None = None) -> Behind:
        """Who reads lists with an instance in them, and has not fetched one since a revision.

        Without an instance: who reads anything. Where nobody is behind, and the answer is complete,
        every client that reads from this machine's workers knows what became of the instance.
        Watches of the native API are told at once and are not among them.
        """
        now = self.clock.wall_ms()
        if instance is None:
            return self._readers.behind(self.namespace, revision, now)
        concerned = {ALL, what("apps", instance.app)}
        for kind, names in (
            ("vips", instance.vip_address),
            ("svips", instance.secure_vip_address),
        ):
            concerned.update(what(kind, name) for name in (names or "").split(","))
        return self._readers.behind(self.namespace, revision, now, concerned.__contains__)

    def readers(self) -> list[Reader]:
        """Who reads what is listed here; a client may be several."""
        return [each for each in self._readers.all() if each.client.namespace == self.namespace]

    # Writes

    def register(
        self,
        instance: Instance,
        *,
        is_replication: bool = False,
        age_ms: int = 0,
        fence: Fence | None = None,
    ) -> None:
        """List an instance with a new lease, or replace the listed one (protocol 7.1).

        Of the lease ``age_ms`` have gone: so long ago the instance last renewed at another server.

        By source:

        * A Eureka client's data are kept where the listed ones have a newer dirty timestamp; the
          lease is new all the same.
        * The native API's timestamps are this server's own, so its last word counts. It is stored
          with a timestamp that is no older than the one before, though the clock was set back.
        * A catalog's entry has no lease and replaces what the catalog listed before, whatever the
          timestamps say. A Eureka catalog's entry gives way to the instance itself.

        ``QuotaError`` where a new instance exceeds the settings' limits; ``SourceConflictError``
        where it belongs to another source; ``InvalidIdentityError``; ``StoreError``; and, with a
        ``fence``, ``LockLostError``.
        """
        decisions = self._decisions

        def decide(view: View) -> tuple[Commit, bool]:
            now = decisions.now()
            commit = decisions.registration(view, instance, is_replication, now, age_ms=age_ms)
            return commit, not commit.expected

        is_new, _ = self._writer.decide(decide, fence)
        _log_registered(instance, is_new)

    def adopt_all(self, wanted: Sequence[tuple[Instance, int]]) -> list[bool | RegistryError]:
        """List what another registry's copy says, unless what is listed is as new.

        Each comes with how much of its lease has gone (ms). The newest dirty timestamp wins. Of two
        that are alike, a copy with an override is listed where there is none here; else it only
        tells how long the lease still goes, which counts where that is longer. An override that
        stands here stays.

        All are one operation of the store, and each is decided for itself: the outcome is whether
        it was listed, or the error that ``register`` would raise for it. ``StoreError`` where the
        store did not say of all of them whether it took them.
        """
        outcomes: list[bool | RegistryError] = [False] * len(wanted)
        view = self._writer.synced()
        commits: list[Commit] = []
        places: list[int] = []
        now = self._decisions.now()
        with view.lock:
            for place, (instance, age_ms) in enumerate(wanted):
                try:
                    commit = self._decisions.adoption(view, instance, age_ms, now)
                except RegistryError as error:
                    outcomes[place] = error
                    continue
                if commit is not None:
                    commits.append(commit)
                    places.append(place)
        revisions = self._writer.commit_all(commits, asking.get())
        for place, revision in zip(places, revisions, strict=True):
            try:  # without a revision it lost a race, maybe to one before it
                outcomes[place] = revision is not None or self._adopt(*wanted[place])
            except StoreError:
                raise
            except RegistryError as error:
                outcomes[place] = error
        for (instance, age_ms), outcome in zip(wanted, outcomes, strict=True):
            if outcome is True:
                log.debug("adopted %s/%s as %s", instance.app, instance.id, instance.status)
            elif outcome is False:
                remaining = duration_ms(instance.duration_secs) - age_ms
                self._writer.extend(instance.key, self.clock.mono_ms() + remaining)
        return outcomes

    def _adopt(self, instance: Instance, age_ms: int) -> bool:
        def decide(view: View) -> tuple[Commit | None, bool]:
            commit = self._decisions.adoption(view, instance, age_ms, self._decisions.now())
            return commit, commit is not None

        return self._writer.decide(decide)[0]

    def register_all(self, wanted: Sequence[Registering]) -> list[RegistryError | None]:
        """Register several in one operation of the store (a *group commit*).

        Each is decided for itself: the outcome is None, or the error that ``register`` would raise
        for it. ``StoreError`` where the store took none of them.
        """
        outcomes: list[RegistryError | None] = [None] * len(wanted)
        view = self._writer.synced()
        commits: list[Commit] = []
        askers: list[Asking | None] = []
        places: list[int] = []
        now = self._decisions.now()
        with view.lock:
            for place, (instance, is_replication, by) in enumerate(wanted):
                try:
                    commits.append(
                        self._decisions.registration(view, instance, is_replication, now)
                    )
                    places.append(place)
                    askers.append(by)
                except RegistryError as error:
                    outcomes[place] = error
        revisions = self._writer.commit_all(commits, askers)
        tells_all = log.isEnabledFor(logging.DEBUG)
        for place, commit, revision in zip(places, commits, revisions, strict=True):
            if revision is not None and commit.expected and not tells_all:
                continue
            instance, is_replication, by = wanted[place]
            if revision is not None:
                _log_registered(instance, not commit.expected)
                continue
            before = asking.set(by)
            try:  # it lost a race, to another worker or to one before it in the group
                self.register(instance, is_replication=is_replication)
            except RegistryError as error:
                outcomes[place] = error
            finally:
                asking.reset(before)
        return outcomes

    def amend(
        self,
        app: str,
        instance_id: str,
        change: Callable[[Instance], Instance],
        *,
        source: str | None = None,
        is_replication: bool = False,
        drops_override: bool = False,
    ) -> Instance | None:
        """Change the listed instance and register it again; returns it as it is listed then.

        ``change`` maps the listed instance to the wanted one. It is asked again after a lost race,
        so it must be pure; it must leave the key and the source as they are. ``drops_override``
        removes the override in the same step.

        None, and nothing is done, where no such instance is listed, or one of another source than
        ``source``: what was cancelled stays cancelled. Raises what ``register`` raises, and
        ``SourceConflictError`` for what a catalog lists.
        """
        key = InstanceKey(app.upper(), instance_id)

        def decide(view: View) -> tuple[Commit | None, None]:
            commit = self._decisions.amendment(
                view, key, change, source, is_replication, drops_override
            )
            return commit, None

        amended = _listed(self._writer.decide(decide)[1])
        if amended is not None:
            _log_registered(amended, is_new=False)
        return amended

    def renew(
        self,
        app: str,
        instance_id: str,
        *,
        source: str = "eureka",
        is_replication: bool = False,
        is_quick: bool = False,
    ) -> Instance | None:
        """Renew a lease (protocol 7.2); the instance, or None where its client must register again.

        That is where there is no lease, where the instance belongs to another source, and where its
        status is UNKNOWN. ``is_replication``: another server says that the client renewed there.
        Where it ``is_quick``, and more than a lease is to be written, ``NotYetError``, and nothing
        was done.
        """
        key = _new(InstanceKey, (app.upper(), instance_id))
        view = self._writer.synced()
        with view.lock:
            instance = view.get(key)
            override = view.overrides.get(key.id)
        # Heartbeats come by the thousand: what nearly all of them pass is asked without a call.
        if instance is None or (
            instance.source != source and not is_of(instance, source, is_replication)
        ):
            return None
        status = instance.status
        if override is not None:
            status = status_after_renewal(status, override)
        if status is not instance.status:
            if status is InstanceStatus.UNKNOWN:
                return None
            if is_quick:
                raise NotYetError
            committed = self._set_status_by_rule(key, instance.source)
            if committed is not None:
                # Others may have read this status already, so the renewal is acknowledged even if
                # the instance is cancelled before its lease is written.
                self._writer.renew(key, committed, counts=True, by_client=not is_replication)
                return committed
            return self.renew(app, instance_id, source=source, is_replication=is_replication)
        if status is InstanceStatus.UNKNOWN:
            return None
        renewed = self._writer.renew(key, instance, counts=True, by_client=not is_replication)
        return instance if renewed else None

    def _set_status_by_rule(self, key: InstanceKey, source: str) -> Instance | None:
        """Show the status that the rules now give; None where nothing is left to be changed.

        Unlike the genuine server, the delta tells of it.
        """

        def decide(view: View) -> tuple[Commit | None, None]:
            return self._decisions.status_by_rule(view, key, source), None

        return _listed(self._writer.decide(decide)[1])

    def extend_lease(self, key: InstanceKey, deadline_mono_ms: int) -> bool:
        """Give a lease until then, where it would end before; whether it did. ``StoreError``.

        For what another server knows of a renewal: it is no renewal of this moment, is not counted,
        and leaves no change. A lease never gets longer than its duration from now.
        """
        return self._writer.extend(key, deadline_mono_ms)

    def set_override(
        self,
        app: str,
        instance_id: str,
        status: InstanceStatus,
        *,
        source: str | None = None,
        last_dirty_ms: int = 0,
        is_replication: bool = False,
    ) -> Instance | None:
        """Set an operator's status above the instance's own (protocol 7.3).

        Returns the instance as it is listed then; None where it is unknown, or of another source
        than ``source``. Nothing is stored where it has that status already. Either way its lease is
        renewed, which does not count for self-preservation. ``SourceConflictError`` for what a
        catalog lists.
        """
        key = InstanceKey(app.upper(), instance_id)

        def decide(view: View) -> tuple[Commit | None, Instance | None]:
            return self._decisions.override(
                view, key, status, source, last_dirty_ms, is_replication
            )

        listed, written = self._writer.decide(decide)
        changed = _listed(written)
        if changed is not None:
            log.info("override %s for %s/%s", status, key.app, key.id)
        return self._renewed_by_operator(listed, changed)

    def _renewed_by_operator(
        self, listed: Instance | None, changed: Instance | None
    ) -> Instance | None:
        """What an override answers: the instance, its lease renewed; None where it is gone.

        ``listed`` is the instance that the decision saw, ``changed`` as it was committed.
        """
        if changed is not None:
            # The override was committed, even if a cancel comes before the lease is renewed.
            self._writer.renew(changed.key, changed, counts=False)
            return changed
        if listed is None:
            return None
        renewed = self._writer.renew(listed.key, listed, counts=False)
        return listed if renewed else None

    def remove_override(
        self,
        app: str,
        instance_id: str,
        status: InstanceStatus = InstanceStatus.UNKNOWN,
        *,
        last_dirty_ms: int = 0,
        is_replication: bool = False,
    ) -> Instance | None:
        """Remove an override and show ``status`` instead (protocol 7.4); None where unknown.

        As at the genuine server, ``service_up_ms`` stays 0 where this is what brings it up.
        ``SourceConflictError`` for what a catalog lists.
        """
        key = InstanceKey(app.upper(), instance_id)

        def decide(view: View) -> tuple[Commit | None, Instance | None]:
            return self._decisions.override_removal(
                view, key, status, last_dirty_ms, is_replication
            )

        listed, written = self._writer.decide(decide)
        changed = _listed(written)
        if changed is not None:
            log.info("override of %s/%s removed", key.app, key.id)
        return self._renewed_by_operator(listed, changed)

    def store_override(
        self,
        app: str,
        instance_id: str,
        status: InstanceStatus,
        *,
        last_dirty_ms: int,
    ) -> None:
        """Store an override that a peer told of (protocol 7.6); the next renewal applies it.

        Only where the peer's instance, with this dirty timestamp, is newer than the listed one.
        """
        key = InstanceKey(app.upper(), instance_id)

        def decide(view: View) -> tuple[Commit | None, None]:
            return self._decisions.stored_override(view, key, status, last_dirty_ms), None

        self._writer.decide(decide)

    def update_metadata(
        self,
        app: str,
        instance_id: str,
        metadata: Mapping[str, str],
    ) -> bool:
        """Merge metadata by registering the instance again (protocol 2.10); False where unknown."""

        def merged(listed: Instance) -> Instance:
            return listed._replace(metadata={**listed.metadata, **metadata})

        return self.amend(app, instance_id, merged) is not None

    def cancel(
        self,
        app: str,
        instance_id: str,
        *,
        source: str | None = "eureka",
        is_replication: bool = False,
        fence: Fence | None = None,
        revision: Revision | None = None,
    ) -> bool:
        """Remove an instance, and the override of its id (protocol 7.7); False where unknown.

        With a ``revision`` only as it was at that one, and else False.

        Where ``source`` is None an operator says so, who may remove whatever registered itself,
        at either door; ``SourceConflictError`` for what a catalog lists.

        ``StoreError``, and with a ``fence`` ``LockLostError``.
        """
        key = InstanceKey(app.upper(), instance_id)

        def decide(view: View) -> tuple[Commit | None, bool]:
            return self._decisions.cancellation(view, key, source, is_replication, revision)

        found, _ = self._writer.decide(decide, fence)
        if found:
            log.info("cancelled %s/%s", key.app, key.id)
        return found

    def accept_loss(self, app: str | None) -> AcceptedLoss:
        """Let what has ended go though self-preservation keeps it; ``StoreError``.

        Of one application, or of all (None). The evictor acts within a second, beyond the eviction
        limit. With the genuine arithmetic the expected clients are then those that remain. Log and
        history name who asks.
        """
        asked = asking.get()
        asker = Asker() if asked is None else asked()
        by = who(asker.account, asker.address)
        ended = [
            each
            for each in self._records.due(self.namespace, self.clock.mono_ms()).expired
            if app in (None, each[0].app)
        ]
        going, held_back = self.evictable(ended)
        loss.accept(self._records, self.clock, self.namespace, app, by)
        where = self.settings.shown(self.namespace)
        log.warning("the loss of %s is accepted in %s by %s", app or "all", where, by)
        self.record(
            HistoryKind.LOSS_ACCEPTED,
            InstanceKey(app or "", ""),
            rule="operator",
            ended=len(going),
            held_by_peers=held_back,
        )
        return AcceptedLoss(len(going), held_back)

    def evict(
        self,
        ended: Iterable[tuple[InstanceKey, Lease]],
        *,
        fence: Fence | None = None,
        held_by: Callable[[InstanceKey, Lease], str] = lambda key, lease: "",
        is_accepted: bool = False,
    ) -> int:
        """Remove the instances whose leases ended so, in one operation; how many were removed.

        ``held_by`` tells the history what kept each listed until now, after its lease had ended;
        ``is_accepted`` that somebody has let them go.

        One that was renewed, registered again or cancelled meanwhile is left alone, and so is one
        that stays without a lease (``Instance.expires``). With ``StoreError`` and
        ``LockLostError`` none was removed.
        """
        view = self._writer.synced()
        commits: list[Commit] = []
        causes: list[Cause] = []
        with view.lock:
            for key, lease in ended:
                commit = self._decisions.eviction(view, key, lease)
                if commit is not None:
                    commits.append(commit)
                    causes.append(_cause_of_eviction(commit, lease, held_by(key, lease)))
        revisions = self._writer.commit_all(
            commits, None, fence=fence, causes=causes, is_accepted=is_accepted
        )
        gone = [c.key for c, revision in zip(commits, revisions, strict=True) if revision]
        for key in gone:
            log.warning("evicted %s/%s: its lease ended", key.app, key.id)
        return len(gone)


def _cause_of_eviction(commit: Commit, lease: Lease, held_by: str) -> Cause:
    late = commit.at_mono_ms - lease.deadline_mono_ms
    detail: dict[str, Any] = {
        "last_renewal_ms": lease.last_renewal_ms,
        "lease_secs": lease.duration_ms // 1000,
        "ended_ms_before": max(0, late),
    }
    if held_by:
        detail["held_by"] = held_by
    return "lease-ended", detail


def _log_registered(instance: Instance, is_new: bool) -> None:
    if is_new:
        log.info("registered %s/%s as %s", instance.app, instance.id, instance.status)
    else:
        log.debug("registered %s/%s again", instance.app, instance.id)


def _listed(written: Written | None) -> Instance | None:
    """The instance as a commit listed it; None where nothing was written, or none listed."""
    if written is None or written.commit.instance is None:
        return None
    return at_revision(written.commit.instance, written.revision)


def _as_renewed(found: tuple[Instance, int] | None) -> Instance | None:
    if found is None:
        return None
    instance, last_renewal_ms = found
    return instance._replace(last_renewal_ms=last_renewal_ms)
