"""The instances of a namespace in the form of the native API, encoded once per change.

A list is made of pieces, one for each portion of the view's listing, and so is a watch's snapshot.
A piece lies in its portion's ``kept``, which a change empties: so a change encodes one portion, and
everybody is sent the same bytes. A renewal is no change, so ``last_heartbeat`` in a list is as of
the instance's last change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from native_api import form
from registry import (
    Application,
    Instance,
    InstanceStatus,
    NamespaceRegistry,
    NotYetError,
    Portion,
    Revision,
    View,
)

COLUMNS = (
    *("id", "service_name", "endpoint", "status", "tags", "metadata", "ttl"),
    *("source", "last_heartbeat", "revision"),
)
DETAILS = (
    *("app", "override", "zone", "address", "host", "vips", "secure_vips", "renewal_interval"),
    *("expires", "registered", "changed", "urls"),
)
"""What an instance has besides, for those who name it."""

# A filtered list is made for one caller. Where the answer is to be quick, it may look at so many.
_LOOKED_AT_AT_ONCE = 500
_KEPT_STATUSES = frozenset({None, "ALL", *InstanceStatus})
_NAMES = "native names"
_ALL = "ALL"
_NOTHING = Application("")


class Wanted(NamedTuple):
    """Which instances a list has, and which of their fields.

    Without ``status`` (in upper case) and the other filters: those that can be used.
    """

    service: str | None = None
    id: str | None = None
    tags: frozenset[str] | None = None
    status: str | None = None
    columns: tuple[str, ...] = COLUMNS

    @property
    def is_usual(self) -> bool:
        """Whether others are likely to ask for the same, so that it is kept."""
        return (
            self.id is None
            and self.tags is None
            and self.status in _KEPT_STATUSES
            and self.columns == COLUMNS
        )

    def has(self, instance: Instance) -> bool:
        """Whether an instance is among them."""
        service, status = self.service, self.status
        if status is None and service is None and self.id is None and self.tags is None:
            return form.is_usable(instance)
        if service is not None and not form.is_of(instance, service):
            return False
        if self.id is not None and instance.id != self.id:
            return False
        if status not in (None, _ALL) and form.shown_status(instance).upper() != status:
            return False
        return self.tags is None or self.tags <= set(form.shown_tags(instance))

    def spelled(self, instances: Iterable[Instance]) -> bytes:
        """Those of the instances that are wanted, encoded, each with a comma before it."""
        columns = self.columns
        wanted = [instance for instance in instances if self.has(instance)]
        if columns == COLUMNS:
            found = list(map(form.shown, wanted))
        else:
            whole = ({**form.shown(instance), **form.details(instance)} for instance in wanted)
            found = [{name: shown[name] for name in columns} for shown in whole]
        return b"," + orjson.dumps(found)[1:-1] if found else b""


class Lists:
    """All native lists of one namespace. Thread-safe."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        """Nothing is spelled before it is asked for."""
        self._registry = registry

    def spelled(self, wanted: Wanted, *, is_quick: bool) -> tuple[Revision, Sequence[bytes]]:
        """The revision, and the wanted instances as of it: pieces, to be sent one after the other.

        ``NotYetError`` where it is to be quick, and takes long.
        """
        view = self._registry.view()
        with view.lock:
            is_usual = wanted.is_usual and _is_spelled_so(view, wanted.service)
            if not is_usual:
                if is_quick and _how_many(view, wanted.service) > _LOOKED_AT_AT_ONCE:
                    raise NotYetError
                revision, instances = view.revision, _candidates(view, wanted.service)
        if not is_usual:
            return revision, without_comma([wanted.spelled(instances)])

        def missing() -> Iterator[_Cell]:
            return (each for each in _cut(view, wanted.service) if wanted not in each[0].kept)

        def make(cell: _Cell) -> None:
            portion, instances = cell
            with view.lock:
                if wanted not in portion.kept:
                    portion.kept[wanted] = wanted.spelled(instances)

        view.prepare(missing, make, is_quick=is_quick)
        with view.lock:
            kept = _kept(view, wanted.service)
            pieces: Sequence[bytes] | None = kept.get(wanted)
            if pieces is None:
                found = []
                for cell in _cut(view, wanted.service):
                    make(cell)
                    found.append(cell[0].kept[wanted])
                if not found:
                    found = [wanted.spelled(_candidates(view, wanted.service))]
                pieces = without_comma(found)
                kept[wanted] = pieces
            return view.revision, pieces

    def has(self, service: str) -> bool:
        """Whether any instance of a service is listed."""
        view = self._registry.view()
        with view.lock:
            instances = _candidates(view, service)
        return any(form.is_of(instance, service) for instance in instances)

    def names(self) -> list[str]:
        """The names of all services."""
        view = self._registry.view()
        with view.lock:
            kept: list[str] | None = view.listing.kept.get(_NAMES)
            if kept is None:
                found: set[str] = set().union(*map(_names_in, view.listing.cut()))
                kept = view.listing.kept[_NAMES] = sorted(found)
            return kept


_Cell = tuple[Portion[Any], Iterable[Instance]]


# Of these the caller holds the view's lock.


def _is_spelled_so(view: View, service: str | None) -> bool:
    """Whether a service has this name, letter for letter.

    Only lists of such names are kept, since anybody may ask for any other spelling.
    """
    if service is None:
        return True
    application = _application(view, service)
    if not application:
        return False
    names: set[str] | None = application.kept.get(_NAMES)
    if names is None:
        if application.portions is None:
            names = set(map(form.service_name, application.values()))
        else:
            names = set().union(*map(_names_in, application.cut()))
        application.kept[_NAMES] = names
    return service in names


def _application(view: View, service: str) -> Application:
    return view.applications.get(service.upper()) or _NOTHING


def _kept(view: View, service: str | None) -> dict[Any, Any]:
    """Where a whole list is kept."""
    return (view.listing if service is None else _application(view, service)).kept


def _cut(view: View, service: str | None) -> Iterator[_Cell]:
    return (view.listing if service is None else _application(view, service)).cut()


def _how_many(view: View, service: str | None) -> int:
    return view.size() if service is None else len(_application(view, service))


def _candidates(view: View, service: str | None) -> list[Instance]:
    if service is None:
        return [i for each in view.applications.values() for i in each.values()]
    return list(_application(view, service).values())


def _names_in(cell: _Cell) -> set[str]:
    portion, instances = cell
    names: set[str] | None = portion.kept.get(_NAMES)
    if names is None:
        names = portion.kept[_NAMES] = set(map(form.service_name, instances))
    return names


def without_comma(pieces: list[bytes]) -> list[bytes]:
    """The pieces that have anything, the first without the comma before it."""
    found = [piece for piece in pieces if piece]
    if found:
        found[0] = found[0][1:]
    return found
