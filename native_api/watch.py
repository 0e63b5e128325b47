"""Changes as they happen: one hub per namespace follows the change log for all its watchers.

A watcher costs its connection and a few hundred bytes; an event is encoded once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from native_api import form
from registry import Change, Instance, Namespace, Registry, Revision, StoreError

KEEP_ALIVE_SECS = 15.0
_POLL_SECS = 0.05
_SNAPSHOT = "snapshot"


class Event(NamedTuple):
    """What a watcher is told: an instance that changed, or a snapshot's instances."""

    revision: Revision
    kind: str
    shown: Any
    instance: Instance | None = None


@dataclass(slots=True, eq=False)
class Watcher:
    """One reader. ``waits_until`` (monotonic) is set for a long poll, which ends with one answer.

    ``service`` is the one that it wants to hear of, or None for all.
    """

    write: Callable[[bytes], None]
    end: Callable[[], None]
    service: str | None
    waits_until: float | None = None
    written_at: float = field(default_factory=time.monotonic)

    def wants(self, told: Event) -> bool:
        return _concerns(told, self.service)


class Hub:
    """All watchers of one namespace in this process. One thread joins, ticks and leaves."""

    def __init__(self, registry: Registry, namespace: Namespace) -> None:
        """Nothing is read before the first watcher comes."""
        self._registry = registry
        self._namespace = namespace
        self._watchers: set[Watcher] = set()
        self._revision = Revision(0)
        self._next_quiet_check = 0.0

    def __len__(self) -> int:
        return len(self._watchers)

    def join(self, watcher: Watcher, since: int | None) -> Callable[[], None]:
        """Bring a watcher up to date and keep it so; what is returned lets it go.

        ``since`` is the last revision that it knows. Where that is unknown here (too old, or of
        another life of the store), and where it is None, it gets a snapshot first.
        """
        self.tick()
        revision, events = missed(self._registry, self._namespace, since, watcher.service)
        if not self._watchers:
            self._revision = revision
        if watcher.waits_until is None:
            watcher.write(b"".join(map(as_event_stream, events)) or _still_here(revision))
        elif events:
            watcher.write(as_poll_answer(revision, events))
            watcher.end()
            return lambda: None
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    def tick(self) -> None:
        """Tell every watcher what has changed since the last tick."""
        if not self._watchers:
            return
        now = time.monotonic()
        try:
            view = self._registry.view(self._namespace)
        except StoreError:
            return  # of a namespace that was never seen: there is nothing to tell as yet
        if view.revision != self._revision:
            self._tell(now)
        if now >= self._next_quiet_check:
            self._next_quiet_check = now + 1.0
            self._keep_alive(now)

    def _tell(self, now: float) -> None:
        revision, events = missed(self._registry, self._namespace, self._revision, None)
        self._revision = revision
        encoded = [(told, as_event_stream(told)) for told in events]
        for watcher in list(self._watchers):
            if watcher.waits_until is None:
                stream = b"".join(bytes_ for told, bytes_ in encoded if watcher.wants(told))
                if stream:
                    watcher.written_at = now
                    watcher.write(stream)
                continue
            wanted = [told for told in events if watcher.wants(told)]
            if wanted:
                self._answer(watcher, wanted)

    def _answer(self, watcher: Watcher, events: list[Event]) -> None:
        watcher.write(as_poll_answer(self._revision, events))
        watcher.end()
        self._watchers.discard(watcher)

    def _keep_alive(self, now: float) -> None:
        for watcher in list(self._watchers):
            if watcher.waits_until is not None:
                if now >= watcher.waits_until:
                    self._answer(watcher, [])
            elif now - watcher.written_at >= KEEP_ALIVE_SECS:
                watcher.written_at = now
                watcher.write(_still_here(self._revision))


def missed(
    registry: Registry, namespace: Namespace, since: int | None, service: str | None
) -> tuple[Revision, list[Event]]:
    """The revision now, and what a reader at ``since`` has not seen: events, or a snapshot."""
    view = registry.view(namespace)
    with view.lock:
        if since is not None:
            changes = view.changes_since(Revision(since))
            if changes is not None:
                events = [told for told in map(_event, changes) if told is not None]
                return view.revision, [told for told in events if _concerns(told, service)]
        listed = [
            form.shown(instance)
            for app, application in view.applications.items()
            if service is None or app == service.upper()
            for instance in application.values()
            if service is None or form.is_of(instance, service)
        ]
        return view.revision, [Event(view.revision, _SNAPSHOT, listed)]


def _event(change: Change) -> Event | None:
    """A change as a watcher sees it; None where no instance changed."""
    if change.instance is None:
        return None
    if change.removed:
        kind = "evicted" if change.evicted else "deleted"
    else:
        kind = "added" if change.instance.action_type == "ADDED" else "modified"
    shown = {**form.shown(change.instance), "revision": change.revision}
    return Event(change.revision, kind, shown, change.instance)


def _concerns(told: Event, service: str | None) -> bool:
    return service is None or told.instance is None or form.is_of(told.instance, service)


def as_event_stream(told: Event) -> bytes:
    """One server-sent event, resumable by its revision."""
    head = f"id: {told.revision}\nevent: {told.kind}\ndata: ".encode()
    return head + orjson.dumps(told.shown) + b"\n\n"


def _still_here(revision: Revision) -> bytes:
    """A sign of life that brings the reader's last id up to date without an event."""
    return f"id: {revision}\n: still here\n\n".encode()


def as_poll_answer(revision: Revision, events: list[Event]) -> bytes:
    """The body of a long poll: events, or a snapshot, with the revision to go on from."""
    if events and events[0].kind == _SNAPSHOT:
        return orjson.dumps({"revision": revision, "snapshot": events[0].shown})
    told = [{"revision": e.revision, "event": e.kind, "instance": e.shown} for e in events]
    return orjson.dumps({"revision": revision, "events": told})


def polled(
    registry: Registry,
    namespace: Namespace,
    since: int | None,
    service: str | None,
    wait_secs: float,
) -> bytes:
    """A long poll in a thread of its own: all that was missed, or nothing after the wait."""
    deadline = time.monotonic() + wait_secs
    while True:
        revision, events = missed(registry, namespace, since, service)
        if events or time.monotonic() >= deadline:
            return as_poll_answer(revision, events)
        time.sleep(_POLL_SECS)


def streamed(
    registry: Registry, namespace: Namespace, since: int | None, service: str | None
) -> Iterator[bytes]:
    """Server-sent events in a thread of its own, without end."""
    known = since
    written_at = 0.0
    while True:
        known, events = missed(registry, namespace, known, service)
        if events:
            yield b"".join(map(as_event_stream, events))
        elif time.monotonic() - written_at >= KEEP_ALIVE_SECS:
            yield _still_here(known)
        else:
            time.sleep(_POLL_SECS)
            continue
        written_at = time.monotonic()
