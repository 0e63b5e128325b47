"""What happened in the registry and who asked for it: the values, and who keeps them.

The log of changes has the last change of each instance, for a few minutes. The history has every
change for days, with the account, the address and the client behind it, the rule that decided, and
the instance as it was afterwards. So it also tells what was listed at an earlier instant.

It stands beside the store, not in it. Nothing that is acknowledged depends on it: where it cannot
be written the registry goes on without (``recording``).

**Order.** Entries are told by their instants. What was listed at an instant is, for each instance,
the entry of the highest revision up to that instant: revisions order, instants only select.

**Bounds.** ``prune`` forgets entries by age, and ``add`` by the bytes that all may take. The newest
forgotten state of each instance that was listed then is kept, so that what was listed can be told
exactly for every instant from ``Extent.earliest_ms`` on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from registry.model import Instance, InstanceKey, Namespace, Revision


class HistoryKind(StrEnum):
    """What an entry tells of."""

    REGISTERED = "registered"
    CHANGED = "changed"
    METADATA = "metadata"
    OVERRIDE = "override"
    OVERRIDE_REMOVED = "override-removed"
    CANCELLED = "cancelled"
    EVICTED = "evicted"
    EXPIRED_BUT_KEPT = "expired-but-kept"
    PRESERVATION_ENTERED = "preservation-entered"
    PRESERVATION_LEFT = "preservation-left"
    BUDGET_REACHED = "budget-reached"
    LOSS_ACCEPTED = "loss-accepted"
    DRAINED = "drained"


class Asker(NamedTuple):
    """Who asked for a change, as far as that is known; never with a secret."""

    account: str = ""
    address: str = ""
    client: str = ""


Asking = Callable[[], Asker]
"""Gives the asker when the entry is written: to ask for a change must not pay for telling it."""

asking: ContextVar[Asking | None] = ContextVar("asking", default=None)
"""Who asks for what this thread does; None where nobody outside did."""


class HistoryEntry(NamedTuple):
    """Something that happened, at an instant of the wall clock (epoch milliseconds).

    ``revision`` is that of the change, or, where nothing that is listed changed, the one at which
    it happened. ``number`` is then above 0 and tells such entries apart. ``app`` and ``id`` are
    empty where it concerns a whole application, or all of the namespace.
    """

    namespace: Namespace
    revision: Revision
    at_ms: int
    kind: HistoryKind
    app: str = ""
    id: str = ""
    instance: Instance | None = None
    """The instance as it was listed afterwards; of a removed one its last state, where known."""
    removed: bool = False
    by: Asker | None = None
    rule: str = ""
    """What decided, where it was a rule and not who asked."""
    detail: Mapping[str, Any] = {}
    """More about it, as JSON values."""
    number: int = 0

    @property
    def is_state(self) -> bool:
        """Whether it says how an instance was listed from then on."""
        return self.removed or self.instance is not None


class Moment(NamedTuple):
    """An instant (epoch milliseconds), or the revision at which one looks."""

    at_ms: int | None = None
    revision: int | None = None

    def has(self, at_ms: int, revision: int) -> bool:
        """Whether an entry had happened by then."""
        if self.revision is not None:
            return revision <= self.revision
        return self.at_ms is None or at_ms <= self.at_ms


class Wish(NamedTuple):
    """Which entries are asked for; instants are epoch milliseconds, both inclusive."""

    since_ms: int | None = None
    until_ms: int | None = None
    app: str | None = None
    id: str | None = None
    kinds: frozenset[HistoryKind] = frozenset()
    """Empty: all."""
    limit: int = 100
    before: tuple[int, int, int] | None = None
    """Where a page ended: instant, revision and number of its last entry."""

    def has(self, entry: HistoryEntry) -> bool:
        """Whether an entry is among them, whatever its instant."""
        return (
            (self.app is None or entry.app == self.app)
            and (self.id is None or entry.id == self.id)
            and (not self.kinds or entry.kind in self.kinds)
        )


class Page(NamedTuple):
    """Some entries, the newest first; ``before`` asks for the next page, None at the end."""

    entries: list[HistoryEntry]
    before: tuple[int, int, int] | None


class Extent(NamedTuple):
    """How much is kept. ``earliest_ms`` is None as long as it was not begun."""

    earliest_ms: int | None
    entries: int
    bytes: int


class ForgottenError(Exception):
    """A moment before what is kept; ``earliest_ms`` is the earliest instant that is told of."""

    def __init__(self, earliest_ms: int | None) -> None:
        """None where nothing can be told at any instant."""
        self.earliest_ms = earliest_ms
        if earliest_ms is None:
            super().__init__("what was listed is not kept")
        else:
            earliest = datetime.fromtimestamp(earliest_ms / 1000, UTC).isoformat(
                "T", "milliseconds"
            )
            super().__init__(f"the history begins at {earliest.replace('+00:00', 'Z')}")


class History(Protocol):
    """Who keeps the history of all namespaces, shared by all workers of a store.

    Each method raises ``StoreError`` where it cannot be read or written.
    ``registry.testing.HistorySuite`` is this contract, executable.
    """

    def begin(self, revisions: Mapping[Namespace, Revision], now_ms: int) -> None:
        """State that all that is listed was added; from now on what was listed can be told.

        ``revisions`` are those of the namespaces then. Begun once, it stays so.
        """
        ...

    def add(self, entries: Sequence[HistoryEntry]) -> None:
        """Keep these entries; where there is no room for them, forget the oldest."""
        ...

    def read(self, namespace: Namespace, wish: Wish) -> Page:
        """The wanted entries of a namespace, the newest first.

        A page may have fewer than the limit though more follow: how long it takes is bounded.
        """
        ...

    def state(self, namespace: Namespace, moment: Moment) -> Iterator[Instance]:
        """What was listed at a moment, in the order of applications and ids.

        ``ForgottenError``. What it gives is to be taken soon, and in one thread.
        """
        ...

    def differences(
        self, namespace: Namespace, first: Moment, second: Moment
    ) -> Iterator[tuple[Instance | None, Instance | None]]:
        """Each instance that was listed otherwise at the second moment: as it was at each.

        None: it was not listed. ``ForgottenError``, and what holds for ``state``.
        """
        ...

    def known(self, namespace: Namespace) -> dict[InstanceKey, tuple[Revision, bool]]:
        """The newest state of each instance: its revision, and whether it is listed."""
        ...

    def prune(self, before_ms: int) -> bool:
        """Forget some entries from before an instant; whether some are left."""
        ...

    def extent(self) -> Extent:
        """How much is kept of all namespaces."""
        ...

    def close(self) -> None:
        """Let go of everything; it is not used after."""
        ...


_REVISION = re.compile(r"[0-9]{1,18}")
_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+ -])(\d\d):(\d\d))",
    re.ASCII,
)


class NotYetThereError(Exception):
    """A moment that is still to come."""


def told_moment(text: str, now_ms: int, revision: Revision) -> Moment:
    """The moment that a text names: an RFC 3339 instant, or a revision.

    ``ValueError``, which says what was expected, for any other text, and ``NotYetThereError`` for
    what is after this instant, or this revision.
    """
    if _REVISION.fullmatch(text):
        if int(text) > revision:
            raise NotYetThereError(f"the newest revision is {revision}")
        return Moment(revision=int(text))
    try:
        at_ms = told_instant(text)
    except ValueError as error:
        raise ValueError(f"{error}, or a revision") from None
    if at_ms > now_ms:
        raise NotYetThereError(f"it is not {text} yet")
    return Moment(at_ms)


def told_instant(text: str) -> int:
    """The epoch milliseconds of an RFC 3339 instant; ``ValueError`` for any other text.

    What was before the epoch counts as its beginning, and a leap second as the one before it. In a
    query a plus sign that was not escaped means a blank, so one may stand for it.
    """
    found = _INSTANT.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        year, month, day, hour, minute, second = (int(found[place]) for place in range(1, 7))
        at = datetime(max(year, 1), month, day, hour, minute, min(second, 59), tzinfo=UTC)
        if second > _LEAP:
            raise ValueError
        ahead = timedelta(0)
        if found[8] is not None:
            ahead = timedelta(hours=int(found[9]), minutes=int(found[10]))
        past = (at - _EPOCH) // _MILLISECOND + int(f"{found[7] or ''}000"[:3])
        shift = ahead // _MILLISECOND
        return max(0, past + shift if found[8] == "-" else past - shift)
    except ValueError:
        raise ValueError("an RFC 3339 instant, such as 2026-01-31T12:00:00Z") from None


_LEAP = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
