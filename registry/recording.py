"""How what happens gets into the history: noted by who writes, written a moment later by a thread.

Whoever changes something notes it in memory, as references to what was committed: that costs a part
of a microsecond, and a whole group of registrations no more than one. A thread of each worker takes
the notes several times a second, finds out what each changed, and writes them in one transaction.

So a worker that is killed takes the last quarter of a second of notes with it. The registry itself
loses nothing by that, and ``reconcile`` tells from it what the history lacks: another worker does
so when it starts. What is made up for so is marked, for who asked is not known any more.

A client that registers again and again without changing anything is told of at once, and then once
in ten seconds, with how often it did. The history of an instance stays readable, and a storm small.
To the protocol data of one dirty timestamp are the same data, and while a client is counted so its
word is taken for it: all of it is compared only when it is told of.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from registry.duty import Duty
from registry.errors import StoreError
from registry.history import (
    Asker,
    Asking,
    Extent,
    History,
    HistoryEntry,
    HistoryKind,
    Moment,
    Page,
    Wish,
)
from registry.lease import Clock
from registry.model import ActionType, Change, Instance, InstanceKey, Namespace, Revision
from registry.store import Commit

if TYPE_CHECKING:
    from registry.registry import Registry

log = logging.getLogger("registry")

WRITTEN_EVERY_SECS = 0.25
_REPEATED_MS = 10_000
_MOST_REPEATED = 10_000
# All that is noted is written by then, by workers that live.
SETTLED_SECS = 12.0
_PRUNED_EVERY_SECS = 10.0
# So many notes wait at most, each of a group of commits; and so many entries, where none can be
# written.
_MOST_NOTED = 20_000
_MOST_WAITING = 20_000
_WRITTEN_AT_ONCE = 500
# What is noted is told of in so many portions, so that pauses between them do not make for a delay
# that grows with a storm; but none is smaller than this.
_PORTIONS = 50
_SMALLEST_PORTION = 25
_PAUSE_SECS = 0.001
# Of the system: whoever seeds the generator that all share would have processes draw the same.
_chance = random.SystemRandom()
_MADE_UP = {"made_up": "told from the list; who asked is not known"}

# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__

Cause = tuple[str, Mapping[str, Any]]
"""The rule that decided, and more about it."""


class _Noted(NamedTuple):
    """What was committed, as which revision, who asked for it, and what decided."""

    namespace: Namespace
    commit: Commit
    revision: Revision
    by: Asking | None
    cause: Cause | None


class _Repeated:
    """An instance that registers again unchanged: since when, and what was not yet told of it.

    It holds no commit: the instance that a commit replaced would live as long.
    """

    __slots__ = (
        "at_mono_ms",
        "by",
        "dirty_ms",
        "latest",
        "revision",
        "since_mono_ms",
        "status",
        "times",
        "told",
    )

    def __init__(self, told: Instance, since_mono_ms: int) -> None:
        """``told`` is the instance as it was last told of."""
        self.told = told
        self.dirty_ms = told.last_dirty_ms
        self.status = told.status
        self.since_mono_ms = since_mono_ms
        self.times = 0
        self.latest: Instance | None = None
        self.revision = Revision(0)
        self.at_mono_ms = 0
        self.by: Asking | None = None


class _Ended(NamedTuple):
    """A repetition that ended with another change."""

    namespace: Namespace
    repeated: _Repeated


class Recorder:
    """Writes the history of a process. Thread-safe."""

    def __init__(
        self,
        history: History,
        clock: Clock,
        *,
        keep_ms: int,
        others_lag_ms: int = 0,
        settled_secs: float = SETTLED_SECS,
    ) -> None:
        """Write nothing before ``start`` or ``flush``.

        What is older than ``keep_ms`` is forgotten. Other workers may take ``others_lag_ms`` until
        what they did is told of, and ``settled_secs`` until all of it is.
        """
        self._settled_secs = settled_secs
        self._history = history
        self._clock = clock
        self._keep_ms = keep_ms
        self._others_lag_ms = others_lag_ms
        self._noted: deque[_Noted | _Ended | HistoryEntry] = deque()
        self._waiting: list[HistoryEntry] = []
        self._repeated: dict[Namespace, dict[InstanceKey, _Repeated]] = {}
        self._lock = threading.Lock()  # of what is repeated
        self._flushing = threading.Lock()
        self._rebuilding = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_failing = False
        self._lacks_some = True
        self.lost = 0
        """How much could not be kept since the start of this worker, in entries."""

    # Noting

    def note(
        self,
        namespace: Namespace,
        commits: Sequence[Commit],
        revisions: Sequence[Revision | None],
        by: Asking | Sequence[Asking | None] | None,
        causes: Sequence[Cause] = (),
    ) -> None:
        """Note what was committed; ``causes`` of each, where there is more to say than it says.

        A registration that changed nothing is most of what comes in a storm. It is looked for here,
        while most of it is in the processor's cache, and then only counted.
        """
        if len(self._noted) >= _MOST_NOTED:
            self._lose(len(commits))
            return
        one = by if by is None or callable(by) else None
        several = None if by is None or callable(by) else by
        with self._lock:
            known = self._repeated.get(namespace)
            if known is None:
                known = self._repeated[namespace] = {}
            for place, commit in enumerate(commits):
                revision = revisions[place]
                if revision is None:
                    continue
                who = one if several is None else several[place]
                instance = commit.instance
                if commit.before is not None and commit.lease is not None and instance is not None:
                    key = commit.key
                    repeated = known.get(key)
                    if repeated is not None:
                        # What comes alone may be an operator's change of the same data.
                        if (
                            repeated.dirty_ms == instance.last_dirty_ms
                            and repeated.status is instance.status
                            and commit.override is None
                            and (several is not None or is_repetition(commit))
                        ):
                            repeated.times += 1
                            repeated.latest = instance
                            repeated.revision = revision
                            repeated.at_mono_ms = commit.at_mono_ms
                            repeated.by = who
                            continue
                        self._noted.append(_new(_Ended, (namespace, known.pop(key))))
                    elif len(known) < _MOST_REPEATED and is_repetition(commit):
                        known[key] = _Repeated(instance, commit.at_mono_ms)
                cause = causes[place] if causes else None
                self._noted.append(_new(_Noted, (namespace, commit, revision, who, cause)))

    def note_event(self, entry: HistoryEntry) -> None:
        """Note what changed nothing that is listed."""
        if len(self._noted) < _MOST_NOTED:
            self._noted.append(entry)
        else:
            self._lose(1)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._lacks_some = True

    # Writing

    def start(self, registry: Registry) -> None:
        """Write in a background thread until ``stop``."""
        try:
            if self._history.extent().earliest_ms is None:
                self.begin(registry)
        except StoreError as error:
            self._tell_failure(error)
        self._thread = threading.Thread(
            target=self._run, args=(registry,), name="history", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Write what was noted, and let go of the history."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.flush(is_last=True)
        self._history.close()

    def _run(self, registry: Registry) -> None:
        # A defect must not end the history for as long as this worker lives.
        duties = (
            Duty("writing the history", 0.0, self._write_noted, log),
            Duty("forgetting what is old", _PRUNED_EVERY_SECS, self._prune_all, log),
            Duty("making up for what the history lacks", 0.0, self._made_up(registry), log),
        )
        while not self._stopping.wait(WRITTEN_EVERY_SECS):
            for duty in duties:
                duty.run(time.monotonic())

    def _write_noted(self) -> None:
        with self._failures():
            self.flush()

    def _prune_all(self) -> None:
        with self._failures():
            while self.prune() and not self._stopping.wait(_PAUSE_SECS):
                pass

    def _made_up(self, registry: Registry) -> Callable[[], None]:
        """What makes up, now and then, for what the history lacks."""
        due_at = time.monotonic() + self._settled_secs

        def make_up() -> None:
            nonlocal due_at
            now = time.monotonic()
            if not self._lacks_some or self._is_failing or now < due_at:
                return
            due_at = now + self._settled_secs
            self._lacks_some = False
            with self._failures():
                self._make_up(registry)

        return make_up

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What the history lacks after a failure is made up for."""
        try:
            yield
        except StoreError as error:
            self._lacks_some = True
            self._tell_failure(error)
        except BaseException:
            self._lacks_some = True
            raise

    def flush(self, *, is_last: bool = False) -> None:
        """Write what was noted. Where that fails it waits for the next time, and is logged once."""
        with self._flushing:
            for entries in self._entries(is_last=is_last):
                self._waiting += entries
            too_many = len(self._waiting) - _MOST_WAITING
            if too_many > 0:
                del self._waiting[:too_many]
                self._lose(too_many)
            try:
                while self._waiting:
                    self._add(self._waiting[:_WRITTEN_AT_ONCE])
                    del self._waiting[:_WRITTEN_AT_ONCE]
                    if self._waiting:
                        time.sleep(_PAUSE_SECS)
            except StoreError as error:
                self._tell_failure(error)
            else:
                if self._is_failing and not is_last:
                    log.warning("the history goes on; what it lacks is told from the list")
                    self._lacks_some = True
                self._is_failing = False

    def _add(self, entries: Sequence[HistoryEntry]) -> None:
        """Write entries; what cannot be written at all is lost, and holds up none behind it."""
        try:
            self._history.add(entries)
        except StoreError:
            raise
        except Exception:
            if len(entries) > 1:
                for entry in entries:
                    self._add((entry,))
                return
            log.exception("the history cannot hold an entry")
            self._lose(1)

    def _tell_failure(self, error: StoreError) -> None:
        if not self._is_failing:
            log.error("the registry goes on without its history: %s", error)
        self._is_failing = True

    def prune(self) -> bool:
        """Forget some of what is too old; whether some is left. ``StoreError``."""
        return self._history.prune(self._clock.wall_ms() - self._keep_ms)

    def _entries(self, *, is_last: bool) -> Iterator[list[HistoryEntry]]:
        """What was noted since the last call, in small portions with pauses between them.

        A storm notes thousands in a quarter of a second. Told of in one go they would have each
        request wait for the interpreter again and again, for as long as that takes.
        """
        now = self._clock.mono_ms()
        since_boot = self._clock.wall_ms() - now
        found: list[HistoryEntry] = []
        count = len(self._noted)
        at_once = max(_SMALLEST_PORTION, count // _PORTIONS)
        for _ in range(count):
            if len(found) >= at_once:
                yield found
                found = []
                time.sleep(_PAUSE_SECS)
            noted = self._noted.popleft()
            if isinstance(noted, HistoryEntry):
                found.append(noted)
            elif isinstance(noted, _Ended):
                found += _entries_of(*noted, since_boot)
            else:
                found.append(_entry_of(noted, since_boot))
        for namespace, repeated in self._told_of(now, is_last=is_last):
            found += _entries_of(namespace, repeated, since_boot)
        yield found

    def _told_of(self, now_mono_ms: int, *, is_last: bool) -> list[tuple[Namespace, _Repeated]]:
        """Of those that registered again, the ones of whom nothing was told for a while."""
        told = []
        with self._lock:
            for namespace, known in list(self._repeated.items()):
                ended = []
                for key, repeated in known.items():
                    if now_mono_ms - repeated.since_mono_ms < _REPEATED_MS and not is_last:
                        break  # they are in the order of these instants
                    ended.append((key, repeated))
                for key, repeated in ended:
                    del known[key]
                    if repeated.latest is not None:
                        known[key] = _Repeated(repeated.latest, now_mono_ms)
                        told.append((namespace, repeated))
                if not known:
                    del self._repeated[namespace]
        return told

    # What the history lacks

    def begin(self, registry: Registry) -> None:
        """Tell of all that is listed, and begin with it; ``StoreError``."""
        revisions: dict[Namespace, Revision] = {}
        for namespace in registry.namespaces():
            view = registry.in_namespace(namespace).view()
            with view.lock:
                revisions[namespace] = view.revision
        self.reconcile(registry, revisions)
        self._history.begin(revisions, self._clock.wall_ms())

    def _make_up(self, registry: Registry) -> None:
        """Tell of what no worker that lives will tell of any more."""
        if self._history.extent().earliest_ms is None:
            self.begin(registry)
            return
        revisions: dict[Namespace, Revision] = {}
        for namespace in registry.namespaces():
            view = registry.in_namespace(namespace).view()
            with view.lock:
                revisions[namespace] = view.revision
        until = time.monotonic() + self._settled_secs
        while time.monotonic() < until and not self._stopping.wait(WRITTEN_EVERY_SECS):
            self.flush()
        if not self._stopping.is_set():
            self.reconcile(registry, revisions)

    def reconcile(self, registry: Registry, revisions: Mapping[Namespace, Revision]) -> int:
        """Make up for what the history lacks up to these revisions; how much that was.

        ``StoreError``. Whatever was noted before must have been written, by all workers.
        """
        count = 0
        for namespace, revision in revisions.items():
            view = registry.in_namespace(namespace).view()
            with view.lock:
                changes = view.recent(self._clock.mono_ms())
                listed = [i for app in view.applications.values() for i in app.values()]
            known = self._history.known(namespace)
            now = self._clock.wall_ms()
            lacking = _lacking(namespace, listed, changes, known, revision, now)
            while portion := lacking[:_WRITTEN_AT_ONCE]:
                self._history.add(portion)
                del lacking[:_WRITTEN_AT_ONCE]
                count += len(portion)
                time.sleep(_PAUSE_SECS)
        if count:
            log.info("the history lacked %d changes, which were told from the list", count)
        return count

    # Reading

    def read(self, namespace: Namespace, wish: Wish) -> Page:
        """What is wanted of the history of a namespace; ``StoreError``."""
        self.flush()
        return self._history.read(namespace, wish)

    def state(self, namespace: Namespace, moment: Moment) -> Iterator[Instance]:
        """What was listed at a moment; ``ForgottenError``, ``StoreError``.

        Only one at a time is told in a process, for it may be much.
        """
        self._settle(moment)
        with self._rebuilding:
            yield from self._history.state(namespace, moment)

    def differences(
        self, namespace: Namespace, first: Moment, second: Moment
    ) -> Iterator[tuple[Instance | None, Instance | None]]:
        """How what was listed differs between two moments; what holds for ``state``."""
        self._settle(first)
        self._settle(second)
        with self._rebuilding:
            yield from self._history.differences(namespace, first, second)

    def _settle(self, moment: Moment) -> None:
        """Have all workers write what they did until then."""
        self.flush()
        at_ms = self._clock.wall_ms() if moment.at_ms is None else moment.at_ms
        lag = at_ms + self._others_lag_ms - self._clock.wall_ms()
        if lag > 0:
            time.sleep(min(lag, self._others_lag_ms) / 1000)

    def extent(self) -> Extent:
        """How much is kept; ``StoreError``."""
        return self._history.extent()


class NamespaceHistory:
    """The history of one namespace: all that any caller of it may see."""

    def __init__(self, recorder: Recorder, namespace: Namespace) -> None:
        """Nothing is read before it is asked for."""
        self._recorder = recorder
        self._namespace = namespace

    def read(self, wish: Wish) -> Page:
        """The wanted entries, the newest first; ``StoreError``."""
        return self._recorder.read(self._namespace, wish)

    def state(self, moment: Moment) -> Iterator[Instance]:
        """What was listed at a moment, in order; ``ForgottenError``, ``StoreError``."""
        return self._recorder.state(self._namespace, moment)

    def differences(
        self, first: Moment, second: Moment
    ) -> Iterator[tuple[Instance | None, Instance | None]]:
        """Each instance that differs, as it was at both; ``ForgottenError``, ``StoreError``."""
        return self._recorder.differences(self._namespace, first, second)

    def earliest_ms(self) -> int | None:
        """From when on all is told; None where the states are not kept. ``StoreError``."""
        return self._recorder.extent().earliest_ms


_AGAIN: Mapping[str, Any] = {"again": True}
_NOTHING: Mapping[str, Any] = {}
_DIRTY = Instance._fields.index("last_dirty_ms")
_BEHIND = Instance._fields.index("revision")
_METADATA = Instance._fields.index("metadata")
_TOLD = tuple(
    (place, name)
    for place, name in enumerate(Instance._fields[:_BEHIND])
    if name not in ("last_dirty_ms", "metadata", "attributes", "origin")
)


def is_repetition(commit: Commit) -> bool:
    """Whether a registration changed nothing but the instants."""
    before, instance = commit.before, commit.instance
    return (
        before is not None
        and instance is not None
        and commit.lease is not None
        and commit.override is None
        and _is_same(before, instance)
    )


def _is_same(one: Instance, other: Instance) -> bool:
    """Whether two registrations differ in nothing but the instants."""
    return (
        one[:_DIRTY] == other[:_DIRTY] and one[_DIRTY + 1 : _BEHIND] == other[_DIRTY + 1 : _BEHIND]
    )


def _entries_of(
    namespace: Namespace, repeated: _Repeated, since_boot: int
) -> Iterator[HistoryEntry]:
    """What a repetition comes to: nothing where it was not repeated since it was last told of."""
    told, latest, by = repeated.told, repeated.latest, repeated.by
    if latest is None:
        return
    if _is_same(told, latest):
        kind, detail = HistoryKind.REGISTERED, _AGAIN
    else:
        kind, detail = _differences(told, latest)
    yield HistoryEntry(
        namespace,
        repeated.revision,
        repeated.at_mono_ms + since_boot,
        kind,
        latest.app,
        latest.id,
        latest,
        by=None if by is None else by(),
        detail={**detail, "times": repeated.times},
    )


def _entry_of(noted: _Noted, since_boot: int) -> HistoryEntry:
    namespace, commit, revision, by, cause = noted
    kind: HistoryKind
    detail: Mapping[str, Any]
    rule, more = cause or ("", _NOTHING)
    if is_repetition(commit):  # found at less cost than what changed
        kind, detail = HistoryKind.REGISTERED, _of_peer(commit.instance)
        more = more if cause else _AGAIN
    else:
        kind, detail = what_changed(commit)
        if cause is None and commit.lease is None and commit.override is None:
            rule = "" if commit.remove else "override"
    key = commit.key
    return HistoryEntry(
        namespace,
        revision,
        commit.at_mono_ms + since_boot,
        kind,
        key.app,
        key.id,
        commit.instance,
        commit.remove,
        None if by is None else by(),
        rule,
        {**detail, **more} if more else detail,
    )


def what_changed(commit: Commit) -> tuple[HistoryKind, Mapping[str, Any]]:
    """What a commit did, and to which fields, as JSON values."""
    instance, before = commit.instance, commit.before
    if commit.remove:
        return HistoryKind.EVICTED if commit.evicted else HistoryKind.CANCELLED, _of_peer(instance)
    override = commit.override
    if override is not None and (commit.lease is None or override.status is None):
        if override.status is None:
            return HistoryKind.OVERRIDE_REMOVED, _of_peer(instance)
        return HistoryKind.OVERRIDE, {"override": str(override.status), **_of_peer(instance)}
    if instance is None or before is None:
        return HistoryKind.REGISTERED, _of_peer(instance)
    return _differences(before, instance)


def _differences(before: Instance, instance: Instance) -> tuple[HistoryKind, Mapping[str, Any]]:
    """How an instance differs from what it was before."""
    changed = {
        name: {"from": _json(before[place]), "to": _json(instance[place])}
        for place, name in _TOLD
        if before[place] != instance[place]
    }
    old, new = before.metadata, instance.metadata
    metadata = {
        key: {"from": old.get(key), "to": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    detail: dict[str, Any] = {**_of_peer(instance)}
    if changed:
        detail["changed"] = changed
    if metadata:
        detail["metadata"] = metadata
    if not detail.keys() - {"peer"}:
        return HistoryKind.REGISTERED, detail
    kind = HistoryKind.METADATA if metadata and not changed else HistoryKind.CHANGED
    return kind, detail


def _of_peer(instance: Instance | None) -> Mapping[str, Any]:
    return {"peer": True} if instance is not None and instance.peers_know else {}


def _json(value: Any) -> Any:
    """A field's value as JSON: a data center is told by its name."""
    if value is None or isinstance(value, (str, int)):
        return value
    return list(value) if isinstance(value, tuple) else str(getattr(value, "name", value))


def _lacking(
    namespace: Namespace,
    listed: Sequence[Instance],
    changes: Sequence[Change],
    known: Mapping[InstanceKey, tuple[Revision, bool]],
    revision: Revision,
    now: int,
) -> list[HistoryEntry]:
    """What a namespace's history lacks, up to a revision."""
    found = []
    nothing = Revision(0), False
    for instance in listed:
        if known.get(instance.key, nothing)[0] < instance.revision <= revision:
            is_new = instance.action_type is ActionType.ADDED
            found.append(
                HistoryEntry(
                    namespace,
                    instance.revision,
                    min(now, max(instance.last_updated_ms, instance.registration_ms)),
                    HistoryKind.REGISTERED if is_new else HistoryKind.CHANGED,
                    instance.app,
                    instance.id,
                    instance,
                    detail=_MADE_UP,
                )
            )
    removed = {
        change.instance.key: change
        for change in changes
        if change.removed and change.instance is not None
    }
    here = {instance.key for instance in listed}
    for key, (seen, is_listed) in known.items():
        if not is_listed or key in here or seen > revision:
            continue
        change = removed.get(key)
        if change is not None and change.revision > revision:
            continue  # whoever removed it will tell
        last = None if change is None else change.instance
        evicted = change is not None and change.evicted
        found.append(
            HistoryEntry(
                namespace,
                revision if change is None else change.revision,
                now if last is None else min(now, last.last_updated_ms),
                HistoryKind.EVICTED if evicted else HistoryKind.CANCELLED,
                key.app,
                key.id,
                last,
                removed=True,
                detail=_MADE_UP,
                number=1 if change is None else 0,
            )
        )
    return found


def event(
    namespace: Namespace,
    revision: Revision,
    at_ms: int,
    kind: HistoryKind,
    key: InstanceKey,
    by: Asker | None,
    cause: Cause,
) -> HistoryEntry:
    """An entry of what changed nothing that is listed."""
    rule, detail = cause
    return HistoryEntry(
        namespace,
        revision,
        at_ms,
        kind,
        key.app,
        key.id,
        by=by,
        rule=rule,
        detail=detail,
        number=_chance.getrandbits(31) + 1,
    )
