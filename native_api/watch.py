"""Changes as they happen: one hub per namespace follows the change log for all its watchers.

A watcher costs its connection and a few hundred bytes. What it is told is spelled once for all of
them: an event, and each piece of a snapshot. Who arrives is brought up to date a little at a time,
as fast as it reads, beside everybody else; so however many arrive at once, nobody waits for them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from eureka_http.cache import Cache
from native_api import form
from native_api.lists import Lists, Wanted
from registry import Change, Instance, NamespaceRegistry, NotYetError, Revision, StoreError

KEEP_ALIVE_SECS = 15.0
_POLL_SECS = 0.05
# Whoever missed more gets a snapshot.
_MISSED_AT_MOST = 1000
_KEPT_EVENTS = 2 * _MISSED_AT_MOST
_KEPT_SNAPSHOTS = 64
# A watcher that arrives is sent no more while so much lies unread, and so much at most in a turn of
# its own. In one turn of the loop watchers have theirs for so long.
_UNREAD_BYTES = 64 * 1024
_IN_ONE_TURN_BYTES = 256 * 1024
_TURN_SECS = 0.01
# Up to here parts are joined into one write.
_AT_ONCE_BYTES = 16 * 1024


class InstanceEvent(NamedTuple):
    """What happened to an instance, and the instance as it is spelled."""

    revision: Revision
    kind: str
    spelled: bytes
    instance: Instance

    def concerns(self, service: str | None) -> bool:
        """Whether a watcher of a service (None: of all) is told."""
        return service is None or form.is_of(self.instance, service)


def always() -> bool:
    """The ``holds`` of a watch that nobody ends."""
    return True


@dataclass(slots=True, eq=False)
class Watcher:
    """One reader of a stream of events, or of a long poll, which ends with its first answer.

    ``write`` sends bytes and returns how many the reader has not taken yet; with no bytes it only
    tells that. ``service`` is the one that is watched, None for all. ``waits_until`` is when a long
    poll ends without an event (monotonic seconds), None for a stream. ``holds`` is asked each
    second; once it gives False the watch ends, as when what an account may do has changed.
    """

    write: Callable[[bytes], int]
    end: Callable[[], None]
    service: str | None
    waits_until: float | None = None
    holds: Callable[[], bool] = always
    wants_snapshot: bool = True
    """Whether it is sent all instances where it cannot be told what it missed; or else that it
    missed something."""
    written_at: float = field(default_factory=time.monotonic)
    known: Revision | None = None
    """The last revision that it has been told of, or is by what is ``due``; None: a snapshot
    comes first."""
    due: deque[bytes] = field(default_factory=deque)
    """What it is still to be sent of what it missed."""
    has_begun: bool = False
    """Whether it was sent anything."""

    @property
    def is_poll(self) -> bool:
        """Whether it is a long poll."""
        return self.waits_until is not None


class Hub:
    """All watchers of one namespace in this process. One thread joins, ticks and leaves."""

    def __init__(self, registry: NamespaceRegistry, lists: Lists) -> None:
        """Nothing is read before the first watcher comes."""
        self._registry = registry
        self._lists = lists
        self._watchers: set[Watcher] = set()
        # Those who are not up to date yet, in the order of their turns. Each is sent what it missed
        # little by little, and then moves to ``_watchers``, who hear of changes as they happen.
        self._arriving: dict[Watcher, None] = {}
        self._version = -1
        self._revision = Revision(0)
        self._next_quiet_check = 0.0
        self._spent = 0.0
        # Events by their revision; beside each the change that it was made of.
        self._events: Cache[Revision, tuple[Change, InstanceEvent]] = Cache(_KEPT_EVENTS)
        # Snapshots by service that a thread has made for watchers who wait for them.
        self._snapshots: Cache[str | None, tuple[Revision, Sequence[bytes]]]
        self._snapshots = Cache(_KEPT_SNAPSHOTS)
        self._maker: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._watchers) + len(self._arriving)

    def join(self, watcher: Watcher, since: int | None) -> Callable[[], None]:
        """Bring a watcher up to date and keep it so; what is returned lets it go.

        ``since`` is the last revision that it knows. Where that is unknown here (too old, or of
        another life of the store), and where it is None, it gets a snapshot first.
        """
        self._follow(time.monotonic())
        watcher.known = None if since is None else Revision(since)
        self._arriving[watcher] = None
        if len(self._arriving) == 1 and self._spent < _TURN_SECS:
            # Most have missed little, and need not wait for a turn of the loop.
            began = time.monotonic()
            self._welcome(watcher, _AT_ONCE_BYTES)
            self._spent += time.monotonic() - began
        return lambda: self._forget(watcher)

    def _forget(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        self._arriving.pop(watcher, None)

    def tick(self) -> None:
        """Tell every watcher what has changed since the last tick."""
        if not self._watchers and not self._arriving:
            return
        now = time.monotonic()
        try:
            self._follow(now)
        except StoreError:
            return  # of a namespace that was never seen: there is nothing to tell as yet
        self._spent = 0.0
        until = now + _TURN_SECS
        for watcher in list(self._arriving):
            self._welcome(watcher, _IN_ONE_TURN_BYTES)
            if time.monotonic() >= until:
                break
        if not self._arriving and self._snapshots:
            self._snapshots.forget(lambda _: True)
        if now >= self._next_quiet_check:
            self._next_quiet_check = now + 1.0
            self._keep_alive(now)

    def _welcome(self, watcher: Watcher, at_most: int) -> None:
        """Give a watcher that arrives its turn: send it about so many bytes of what it missed."""
        # Its next turn comes after everybody else's.
        del self._arriving[watcher]
        self._arriving[watcher] = None
        if not watcher.due:
            try:
                revision, parts = self._news(watcher, is_quick=True)
            except NotYetError:
                made = self._snapshot(watcher.service)
                if made is None:
                    return
                revision, parts = made[0], self._as_snapshot(watcher.is_poll, *made)
            watcher.known = revision
            watcher.due.extend(parts)
            if not parts:
                if not watcher.has_begun and not watcher.is_poll:
                    watcher.write(_still_here(revision))
                del self._arriving[watcher]
                self._watchers.add(watcher)
                return
        due = watcher.due
        watcher.has_begun = True
        unread = watcher.write(b"")
        while due and at_most > 0 and unread < _UNREAD_BYTES:
            portion = [due.popleft()]
            size = len(portion[0])
            while due and size + len(due[0]) <= _AT_ONCE_BYTES:
                portion.append(due.popleft())
                size += len(portion[-1])
            at_most -= size
            # What is shared by many is not copied for each.
            unread = watcher.write(portion[0] if len(portion) == 1 else b"".join(portion))
        watcher.written_at = time.monotonic()
        if not due and watcher.is_poll:
            watcher.end()
            self._forget(watcher)
        elif not due and at_most > 0:
            self._welcome(watcher, at_most)

    def _snapshot(self, service: str | None) -> tuple[Revision, Sequence[bytes]] | None:
        """A snapshot that a thread has made; None where there is none yet, and one is begun.

        It may be a little old: the log still has all that changed since.
        """
        made = self._snapshots.get(service)
        if made is not None:
            view = self._registry.view()
            with view.lock:
                changes = view.changes_since(made[0])
            if changes is not None and len(changes) <= _MISSED_AT_MOST:
                return made
        if self._maker is None or not self._maker.is_alive():

            def make() -> None:
                wanted = Wanted(service, status="ALL")
                with suppress(StoreError):  # it is tried again
                    snapshot = self._lists.spelled(wanted, is_quick=False)
                    self._snapshots.keep(service, snapshot)

            self._maker = threading.Thread(target=make, name="snapshot", daemon=True)
            self._maker.start()
        return None

    def _follow(self, now: float) -> None:
        """Tell those who are up to date what has changed."""
        view = self._registry.view()
        if view.version == self._version:
            return
        with view.lock:
            changes = view.changes_since(self._revision) if self._watchers else []
            events = self._events_of(changes or [])
            before, self._revision, self._version = self._revision, view.revision, view.version
        if changes is None:
            # More happened than the log keeps: everybody begins anew, with a snapshot.
            for watcher in self._watchers:
                watcher.known = None
                self._arriving[watcher] = None
            self._watchers.clear()
            return
        spelled: dict[str | None, bytes] = {}
        for watcher in list(self._watchers):
            known, service = watcher.known, watcher.service
            watcher.known = self._revision
            if watcher.is_poll or (known is not None and known > before):
                wanted = [
                    event
                    for event in events
                    if event.concerns(service) and (known is None or event.revision > known)
                ]
                if watcher.is_poll:
                    if wanted:
                        self._answer(watcher, wanted)
                    continue
                stream = b"".join(map(as_event_stream, wanted))
            else:
                found = spelled.get(service)
                if found is None:
                    found = spelled[service] = b"".join(
                        as_event_stream(event) for event in events if event.concerns(service)
                    )
                stream = found
            if stream:
                watcher.written_at = now
                watcher.write(stream)

    def _answer(self, watcher: Watcher, events: list[InstanceEvent]) -> None:
        watcher.write(as_poll_answer(self._revision, events))
        watcher.end()
        self._watchers.discard(watcher)

    def _keep_alive(self, now: float) -> None:
        for watcher in (*self._watchers, *self._arriving):
            if not watcher.holds():
                if watcher.is_poll and not watcher.has_begun:
                    watcher.write(as_poll_answer(watcher.known or Revision(0), []))
                watcher.end()
                self._forget(watcher)
        for watcher in list(self._watchers):
            if watcher.waits_until is not None:
                if now >= watcher.waits_until:
                    self._answer(watcher, [])
            elif now - watcher.written_at >= KEEP_ALIVE_SECS:
                watcher.written_at = now
                watcher.write(_still_here(self._revision))

    # What there is to be told

    def _news(self, watcher: Watcher, *, is_quick: bool) -> tuple[Revision, list[bytes]]:
        """The revision now, and what a watcher has missed: events, or a snapshot.

        It comes in parts, to be sent one after the other; none where nothing is new.
        """
        view = self._registry.view()
        if watcher.known is not None:
            with view.lock:
                changes = view.changes_since(watcher.known)
                if changes is not None and len(changes) <= _MISSED_AT_MOST:
                    events = [e for e in self._events_of(changes) if e.concerns(watcher.service)]
                    revision = view.revision
                    if not events:
                        return revision, []
                    if watcher.is_poll:
                        return revision, [as_poll_answer(revision, events)]
                    return revision, list(map(as_event_stream, events))
        if not watcher.wants_snapshot:
            with view.lock:
                revision = view.revision
            return revision, [_as_missed(watcher.is_poll, revision)]
        wanted = Wanted(watcher.service, status="ALL")
        revision, pieces = self._lists.spelled(wanted, is_quick=is_quick)
        return revision, self._as_snapshot(watcher.is_poll, revision, pieces)

    def _as_snapshot(
        self, is_poll: bool, revision: Revision, pieces: Sequence[bytes]
    ) -> list[bytes]:
        if is_poll:
            return [b'{"revision":%d,"snapshot":[' % revision, *pieces, b"]}"]
        return [b"id: %d\nevent: snapshot\ndata: [" % revision, *pieces, b"]\n\n"]

    def _events_of(self, changes: Sequence[Change]) -> list[InstanceEvent]:
        """The changes as watchers see them, each spelled once; the caller holds the view's lock."""
        found = []
        kept = self._events
        for change in changes:
            if change.instance is None:
                continue
            known = kept.get(change.revision)
            if known is None or known[0] != change:
                known = (change, _event(change, change.instance))
                kept.keep(change.revision, known)
            found.append(known[1])
        return found

    # In a thread of its own for each watcher

    def polled(
        self,
        since: int | None,
        service: str | None,
        wait_secs: float,
        holds: Callable[[], bool] = always,
        wants_snapshot: bool = True,
    ) -> bytes:
        """A long poll: all that was missed; nothing after the wait, or when it holds no more."""
        deadline = time.monotonic() + wait_secs
        watcher = Watcher(
            *(len, lambda: None, service, deadline, holds, wants_snapshot), known=_revision(since)
        )
        while True:
            revision, parts = self._news(watcher, is_quick=False)
            if not holds():
                return as_poll_answer(watcher.known or Revision(0), [])
            if parts or time.monotonic() >= deadline:
                return b"".join(parts) or as_poll_answer(revision, [])
            time.sleep(_POLL_SECS)

    def streamed(
        self,
        since: int | None,
        service: str | None,
        holds: Callable[[], bool] = always,
        wants_snapshot: bool = True,
    ) -> Iterator[bytes]:
        """Server-sent events, as long as it holds."""
        watcher = Watcher(
            *(len, lambda: None, service, None, holds, wants_snapshot), known=_revision(since)
        )
        written_at = 0.0
        while holds():
            watcher.known, parts = self._news(watcher, is_quick=False)
            if parts:
                yield from parts
            elif time.monotonic() - written_at >= KEEP_ALIVE_SECS:
                yield _still_here(watcher.known)
            else:
                time.sleep(_POLL_SECS)
                continue
            written_at = time.monotonic()


def _revision(since: int | None) -> Revision | None:
    return None if since is None else Revision(since)


def _event(change: Change, instance: Instance) -> InstanceEvent:
    if change.removed:
        kind = "evicted" if change.evicted else "deleted"
    else:
        kind = "added" if instance.action_type == "ADDED" else "modified"
    shown = {**form.shown(instance), "revision": change.revision}
    return InstanceEvent(change.revision, kind, orjson.dumps(shown), instance)


def as_event_stream(event: InstanceEvent) -> bytes:
    """One server-sent event, resumable by its revision."""
    kind = event.kind.encode()
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.revision, kind, event.spelled)


def _as_missed(is_poll: bool, revision: Revision) -> bytes:
    """What stands for a snapshot to who wants none: read what matters to you again."""
    if is_poll:
        return b'{"revision":%d,"missed":true}' % revision
    return b"id: %d\nevent: missed\ndata: {}\n\n" % revision


def _still_here(revision: Revision) -> bytes:
    """A sign of life that brings the reader's last id up to date without an event."""
    return f"id: {revision}\n: still here\n\n".encode()


def as_poll_answer(revision: Revision, events: list[InstanceEvent]) -> bytes:
    """The body of a long poll with events, and the revision to go on from."""
    told = [
        {"revision": e.revision, "event": e.kind, "instance": orjson.Fragment(e.spelled)}
        for e in events
    ]
    return orjson.dumps({"revision": revision, "events": told})
