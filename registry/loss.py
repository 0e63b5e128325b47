"""Accepting a loss: what self-preservation keeps is let go, because somebody says so.

Whichever worker is asked leaves a note, and the evictor acts on it at its next pass: it evicts,
behind the lock's fence, what had ended when it was asked and has not renewed since.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import orjson

from registry.errors import StoreError
from registry.lease import Clock
from registry.model import Namespace
from registry.store import Coordination

_NOTE, _LOCK = "accepted-losses", "accepting"
_LOCK_TTL_MS = 2_000
_TRIES, _PAUSE_SECS = 100, 0.02
# Before the evictor has acted, no more are taken than an operator can mean.
_MOST = 1_000


class Loss(NamedTuple):
    """A loss that was accepted: of one application, or of all. ``by`` is who asked."""

    id: str
    namespace: Namespace
    app: str | None
    at_mono_ms: int
    by: str


def accept(
    notes: Coordination, clock: Clock, namespace: Namespace, app: str | None, by: str
) -> None:
    """Have the evictor let go what ended in an application (None: in all); ``StoreError``."""
    loss = Loss(uuid.uuid4().hex, namespace, app, clock.mono_ms(), by)
    _change(notes, clock, lambda known: [*known, loss])


def accepted(notes: Coordination) -> list[Loss]:
    """What the evictor has not let go yet, in the order in which it was asked; ``StoreError``."""
    note = notes.note(_NOTE)
    return [] if note is None else [Loss(*each) for each in orjson.loads(note)]


def settle(notes: Coordination, clock: Clock, losses: list[Loss]) -> None:
    """Forget losses that were let go; ``StoreError``."""
    done = {loss.id for loss in losses}
    _change(notes, clock, lambda known: [loss for loss in known if loss.id not in done])


def _change(notes: Coordination, clock: Clock, change: Callable[[list[Loss]], list[Loss]]) -> None:
    """Change the note, alone among all workers."""
    owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for _ in range(_TRIES):
        if notes.acquire(_LOCK, owner, clock.mono_ms(), _LOCK_TTL_MS) is not None:
            break
        time.sleep(_PAUSE_SECS)
    else:
        raise StoreError("others are accepting losses; try again")
    try:
        changed = change(accepted(notes))
        if len(changed) > _MOST:
            raise StoreError("the losses that were accepted before are still being let go")
        notes.set_note(_NOTE, orjson.dumps([tuple(each) for each in changed]) if changed else None)
    finally:
        notes.release(_LOCK, owner)
