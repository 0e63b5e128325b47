"""The search for an order of calls that explains what was answered."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

_S = TypeVar("_S", bound=Hashable)
_T = TypeVar("_T", bound=Hashable)
NEVER = float("inf")
_MOST_TRIED = 300_000
# How many calls further an order must have come to be preferred, for each call that was cut off and
# that it supposes done. Where much was cut off, the first finds in moments what the other never
# would; the other is for orders of which much that was cut off is a part.
_PRICES = (8, 2)


class Operation(NamedTuple):
    """A call and its answer. Of one that was cut off, ``answer`` is None and it never ended."""

    client: int
    sent: float
    ended: float
    call: Any
    answer: Any
    node: int = 0
    """Which one answered, by its place."""
    is_last: bool = False
    """A read after everything, which must see the truth on each node."""

    @property
    def is_cut_off(self) -> bool:
        return self.answer is None


Model = Callable[[_S, Any], tuple[_S, Any]]
"""The state after a call, and the answer to it."""
Steps = Callable[[_S, Operation], Iterable[_S]]
"""The states after an operation that gives the answer it was given; of a cut off one, after it."""


class UndecidedError(Exception):
    """The search was given up: there are too many orders."""


def explained(operations: Sequence[Operation], start: _S, model: Model[_S]) -> list[int] | None:
    """The places of the operations in an order that explains them; None where there is none."""

    def steps(state: _S, operation: Operation) -> Iterator[_S]:
        after, answer = model(state, operation.call)
        if operation.is_cut_off or answer == operation.answer:
            yield after

    return _search(operations, start, steps)


class Shown(NamedTuple):
    """What is true of an instance, after what was, and up to where each node shows that."""

    states: tuple[Any, ...]
    seen: tuple[int, ...]
    owed: tuple[tuple[int, float, int], ...] = ()
    """What nodes wrote and need not show yet: the node, when it acknowledges it, and its place."""


def explained_over_nodes(
    operations: Sequence[Operation],
    start: _S,
    model: Model[_S],
    nodes: int,
    is_written: Callable[[Any, Any], bool] = lambda call, answer: False,
) -> list[int] | None:
    """As ``explained``, where each node shows what was true lately.

    ``is_written`` says of a call and its answer that it was a write, even if it changed nothing: so
    its node showed the truth. ``UndecidedError``.
    """

    def steps(shown: Shown, operation: Operation) -> Iterator[Shown]:
        states, node, call = shown.states, operation.node, operation.call
        last = len(states) - 1
        after, answer = model(states[last], call)
        if after != states[last]:
            longer = shown._replace(states=(*states, after))
            if operation.is_cut_off:
                yield _shortened(longer)
            elif answer == operation.answer:
                # Others may see it before its own node, which must show it once it says so.
                owed = (*shown.owed, (node, operation.ended, last + 1))
                yield _seen(longer._replace(owed=owed), node, last)
        if operation.is_cut_off:
            return  # what changed nothing, or was never done, is left out
        acknowledged = (
            place for by, ended, place in shown.owed if by == node and ended < operation.sent
        )
        first = max(acknowledged, default=shown.seen[node])
        if operation.is_last or is_written(call, operation.answer):
            first = last
        for place in range(first, last + 1):
            after, answer = model(states[place], call)
            if after == states[place] and answer == operation.answer:
                # Whoever is further behind may still see all that others may.
                yield _seen(shown, node, place)
                return

    for price in _PRICES:
        with suppress(UndecidedError):
            shown = Shown((start,), (0,) * nodes)
            return _search(operations, shown, steps, price=price, most=_MOST_TRIED)
    raise UndecidedError


def _seen(shown: Shown, node: int, place: int) -> Shown:
    seen = (*shown.seen[:node], place, *shown.seen[node + 1 :])
    owed = tuple(each for each in shown.owed if each[0] != node or each[2] > place)
    return _shortened(shown._replace(seen=seen, owed=owed))


def _shortened(shown: Shown) -> Shown:
    """Without what no node shows any more."""
    gone = min(shown.seen)
    if not gone:
        return shown
    seen = tuple(place - gone for place in shown.seen)
    owed = tuple((node, ended, place - gone) for node, ended, place in shown.owed)
    return Shown(shown.states[gone:], seen, owed)


def _search(
    operations: Sequence[Operation],
    start: _T,
    steps: Steps[_T],
    *,
    price: int = _PRICES[0],
    most: float = NEVER,
) -> list[int] | None:
    order = sorted(range(len(operations)), key=lambda place: operations[place].sent)
    done_when = sum(
        1 << rank for rank, place in enumerate(order) if not operations[place].is_cut_off
    )
    tried: set[tuple[int, _T]] = set()
    # What surely was done is tried first, and of that what ended first.
    by_end = sorted(range(len(order)), key=lambda rank: operations[order[rank]].ended)
    # Each: how preferred, what was taken (by rank), the state then, the path to it as a linked
    # list. Of two that came as far, the one that supposes less of what was cut off is tried first.
    number = itertools.count()
    pending: list[tuple[int, int, int, _T, Any]] = [(0, next(number), 0, start, None)]
    while pending:
        preferred, _, taken, state, path = heapq.heappop(pending)
        if taken & done_when == done_when:
            found = []
            while path is not None:
                path, rank = path
                found.append(order[rank])
            return found[::-1]
        first_end = min(
            (operations[place].ended for rank, place in enumerate(order) if not taken >> rank & 1),
            default=NEVER,
        )
        if len(tried) > most:
            raise UndecidedError
        for rank in reversed(by_end):
            operation = operations[order[rank]]
            if taken >> rank & 1 or operation.sent > first_end:
                continue
            for after in steps(state, operation):
                key = (taken | 1 << rank, after)
                if key not in tried:
                    tried.add(key)
                    more = preferred + (price if operation.is_cut_off else -1)
                    heapq.heappush(pending, (more, -next(number), *key, (path, rank)))
    return None
