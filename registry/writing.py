"""Writing in one namespace: decisions until one is written, and what follows each write.

How concurrent decisions come one after the other is told in ``namespace.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from registry.errors import ConflictError, StoreError
from registry.figures import (
    CANCELLED,
    COMMIT_NANOSECONDS,
    COMMITS,
    COMMITS_FAILED,
    EVICTED,
    OVERRIDDEN,
    OVERRIDE_REMOVED,
    REGISTERED,
    REGISTERED_AGAIN,
)
from registry.history import Asking, asking
from registry.lease import Clock, deadline_after_renewal, renewal_window
from registry.model import Instance, InstanceKey, Lease, Namespace, Revision
from registry.recording import Cause, Recorder
from registry.store import Commit, Fence, Store
from registry.view import View

# A thread that took longer from one step to the next was not running; others were, meanwhile.
_HELD_UP_MS = 1_000
_C = TypeVar("_C")
_T = TypeVar("_T")
# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__


class Written(NamedTuple):
    """A commit that was written, and as which revision."""

    commit: Commit
    revision: Revision


class Writer:
    """Writes what is decided, and renews leases. Thread-safe."""

    def __init__(
        self,
        records: Store,
        view: View,
        clock: Clock,
        moved: Callable[[Namespace], None],
        recorder: Recorder | None,
        counted: list[int],
        *,
        doubled: bool,
    ) -> None:
        """``moved`` is called whenever the view may show something new.

        ``doubled``: whether leases last for twice their duration, as at the genuine server.
        """
        self._namespace = view.namespace
        self._records = records
        self._view = view
        self._clock = clock
        self._moved = moved
        self._recorder = recorder
        self._counted = counted
        self._doubled = doubled

    def synced(self) -> View:
        """The view, after it caught up with the store; ``StoreError`` where it cannot."""
        view = self._view
        # Nearly always there is nothing new: then this is all that a request pays for.
        if view.is_loaded and self._records.revision(self._namespace) == view.revision:
            return view
        if view.sync():
            self._moved(self._namespace)
        return view

    def decide(
        self,
        decision: Callable[[View], tuple[Commit | None, _T]],
        fence: Fence | None = None,
    ) -> tuple[_T, Written | None]:
        """Decide on the current view and commit, and after a lost race again (see the module).

        ``decision`` is asked with the view locked, and returns the commit (None: nothing is to be
        done) and an answer. Returns the last answer, and what was written, if anything.
        """
        while True:
            view = self.synced()
            with view.lock:
                commit, answer = decision(view)
            if commit is None:
                return answer, None
            try:
                revision = self._timed(self._records.commit, commit, fence)
            except ConflictError:
                continue
            self._follow((commit,), (revision,), asking.get())
            return answer, Written(commit, revision)

    def commit_all(
        self,
        commits: Sequence[Commit],
        by: Asking | Sequence[Asking | None] | None,
        *,
        fence: Fence | None = None,
        causes: Sequence[Cause] = (),
        is_accepted: bool = False,
    ) -> list[Revision | None]:
        """Commit what was decided together, in one operation; the revision of each.

        None where it lost a race. ``by`` is who asked for each, or for all; ``causes`` are why the
        evicted go, and ``is_accepted`` that somebody let them. ``StoreError``, ``LockLostError``.
        """
        revisions = self._timed(self._records.commit_all, commits, fence)
        self._follow(commits, revisions, by, causes, is_accepted=is_accepted)
        return revisions

    def _timed(
        self,
        write: Callable[[Namespace, _C, Fence | None], _T],
        commits: _C,
        fence: Fence | None,
    ) -> _T:
        """Write a commit, or a group of them; count it, and how long the store takes for it."""
        counted, began = self._counted, time.perf_counter_ns()
        try:
            written = write(self._namespace, commits, fence)
        except StoreError:
            counted[COMMITS_FAILED] += 1
            raise
        counted[COMMITS] += 1
        counted[COMMIT_NANOSECONDS] += time.perf_counter_ns() - began
        return written

    def _follow(
        self,
        commits: Sequence[Commit],
        revisions: Sequence[Revision | None],
        by: Asking | Sequence[Asking | None] | None,
        causes: Sequence[Cause] = (),
        *,
        is_accepted: bool = False,
    ) -> None:
        """Do what follows every write of this process. ``by``: who asked for each, or for all."""
        if self._recorder is not None:
            self._recorder.note(self._namespace, commits, revisions, by, causes)
        self._view.follow_all(commits, revisions)
        self._count(commits, revisions, is_accepted)
        self._moved(self._namespace)
        self._make_up_for(commits, revisions)

    def _count(
        self,
        commits: Sequence[Commit],
        revisions: Sequence[Revision | None],
        is_accepted: bool,
    ) -> None:
        """Count what was written."""
        counted = self._counted
        for commit, revision in zip(commits, revisions, strict=True):
            instance = commit.instance
            if revision is None:
                continue
            if commit.override is not None:
                is_set = commit.override.status is not None
                counted[OVERRIDDEN if is_set else OVERRIDE_REMOVED] += 1
            if instance is None:
                continue
            if commit.evicted:
                counted[EVICTED + is_accepted] += 1
            elif commit.remove:
                counted[CANCELLED + _source(instance)] += 1
            elif commit.lease is not None or not instance.is_leased:
                is_new = not commit.expected
                counted[(REGISTERED if is_new else REGISTERED_AGAIN) + _source(instance)] += 1

    def _make_up_for(self, commits: Sequence[Commit], revisions: Sequence[Revision | None]) -> None:
        """Renew leases that were written long after their deadlines were decided.

        A process can be stopped between decision and write for longer than a lease lasts, while the
        client renews at another worker. The deadline that was decided before would then replace a
        later one, and the instance be evicted at once. All of ``commits`` were decided together.
        """
        if not commits or self._clock.mono_ms() <= commits[0].at_mono_ms + _HELD_UP_MS:
            return
        for commit, revision in zip(commits, revisions, strict=True):
            if revision is not None and commit.lease is not None and commit.instance is not None:
                self.renew(commit.key, commit.instance, counts=False)

    # Leases.

    def renew(
        self, key: InstanceKey, instance: Instance, *, counts: bool, by_client: bool = False
    ) -> bool:
        """Renew the lease of an instance that was listed as this; False where it is gone.

        ``counts``: for self-preservation. ``by_client``: the client itself renewed, at this server.
        """
        clock, doubled = self._clock, self._doubled
        while True:
            mono = clock.mono_ms()
            now = clock.wall_ms()
            duration = instance.lease_secs * 1000
            lease = _new(
                Lease,
                (
                    deadline_after_renewal(mono, duration, doubled=doubled),
                    duration,
                    now + duration if doubled else now,
                    mono if by_client else 0,
                ),
            )
            window = renewal_window(mono) if counts else None
            if self._records.renew(self._namespace, key, lease, window):
                if clock.mono_ms() - mono > _HELD_UP_MS:
                    # Others may have stored a later deadline before this one replaced it.
                    counts = False
                    continue
                return True
            # Refused: it is gone, or it registered again with a lease of another length, which is
            # to be renewed then.
            view = self.synced()
            with view.lock:
                listed = view.get(key)
            if (
                listed is None
                or listed.source != instance.source
                or listed.lease_secs == instance.lease_secs
            ):
                return False
            instance = listed

    def extend(self, key: InstanceKey, deadline_mono_ms: int) -> bool:
        """Give a lease until then; see ``NamespaceRegistry.extend_lease``."""
        view = self.synced()
        with view.lock:
            instance = view.get(key)
        lease = None if instance is None else self._records.lease(self._namespace, key)
        if instance is None or lease is None:
            return False
        now, mono = self._clock.wall_ms(), self._clock.mono_ms()
        deadline = min(deadline_mono_ms, mono + lease.duration_ms)
        if deadline <= lease.deadline_mono_ms:
            return False
        renewed = max(lease.last_renewal_ms, now - (mono + lease.duration_ms - deadline))
        extended = Lease(deadline, lease.duration_ms, renewed)
        return self._records.renew(self._namespace, key, extended, None)


_SOURCES = {"eureka": 0, "native": 1}


def _source(instance: Instance) -> int:
    """Which of ``figures.SOURCES`` told of an instance."""
    return 2 if instance.peers_know else _SOURCES.get(instance.source, 3)
