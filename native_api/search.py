"""A search among instances: what may be asked for, and which instances answer it.

A search is some terms parted by blanks, and an instance has to answer all of them:

* ``app:shop`` where a field has the text somewhere in it, and ``zone=eu-1`` where it is all of it;
* ``meta.version=2`` for one entry of the metadata;
* any other text, where one of the fields has it: also one that looks like a field and is none,
  such as ``web:8080``;
* ``-`` before a term for those that do not answer it, and double quotes around what has blanks, or
  is not the field that it looks like: ``"app:1"``.

The case of letters does not count. A field that has no value has nothing in it: ``override:`` finds
those that have an override. For example:

    >>> search = Search.parsed('zone=eu-1 -status=UP shop')
    >>> search.has(sample_instance("SHOP", "shop:1", metadata={"zone": "eu-1"}))
    False
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from native_api import form
from native_api.lists import COLUMNS, Lists, Wanted
from registry import Instance, InstanceKey, NamespaceRegistry, NotYetError, Revision

MAX_LENGTH = 500
"""The most characters of a search."""

DEFAULT_LIMIT, MAX_LIMIT = 50, 500
"""How many entries a page has."""

# Where the answer is to be quick, it may look at so many. In a thread there is a pause after as
# many, in which others get the interpreter.
_LOOKED_AT_AT_ONCE = 500
_PAUSE_SECS = 0.0001
_TERM = re.compile(r'\s*(-?)((?:"[^"]*(?:"|\Z)|[^\s"])+)')
_NAMED = re.compile(r"([A-Za-z][A-Za-z_]*(?:\.[^:=\"]+)?)([:=])(.*)", re.DOTALL)

_Values = Callable[[Instance], Iterable[str]]


class SearchError(ValueError):
    """A search that means nothing; the text says why."""


def _ports(instance: Instance) -> list[str]:
    found = []
    if instance.port_enabled:
        found.append(str(instance.port))
    if instance.secure_port_enabled:
        found.append(str(instance.secure_port))
    return found


def _some(*values: str | None) -> list[str]:
    return [value for value in values if value]


FIELDS: Mapping[str, _Values] = {
    "app": lambda i: {i.app, form.service_name(i)},
    "id": lambda i: (i.id,),
    "status": lambda i: {str(i.status), form.shown_status(i)},
    "override": lambda i: _some(form.shown_override(i)),
    "zone": lambda i: _some(form.zone(i)),
    "address": lambda i: (i.ip_addr,),
    "host": lambda i: (i.host_name,),
    "port": _ports,
    "vip": lambda i: {*form.vips(i.vip_address), *form.vips(i.secure_vip_address)},
    "source": lambda i: (i.source,),
    "tag": form.shown_tags,
    "group": lambda i: _some(i.app_group_name, i.asg_name),
    "meta": lambda i: i.metadata.values(),
}
"""What can be searched by name, and the values that an instance has there."""


class _Term(NamedTuple):
    """One condition. ``entry`` is the key of the metadata's entry that is meant, if one is."""

    field: str | None
    entry: str
    is_whole: bool
    text: str
    is_negated: bool

    def is_met(self, instance: Instance) -> bool:
        if self.field is None:
            found = self._is_anywhere(instance)
        else:
            values = _entry(instance, self.entry) if self.entry else FIELDS[self.field](instance)
            found = any(map(self._fits, values))
        return found is not self.is_negated

    def _fits(self, value: str) -> bool:
        folded = value.casefold()
        return folded == self.text if self.is_whole else self.text in folded

    def _is_anywhere(self, instance: Instance) -> bool:
        # One long text is looked through several times as fast as many short ones.
        texts = [
            *(instance.app, instance.id, instance.host_name, instance.ip_addr, instance.status),
            *(instance.source, instance.vip_address or "", instance.secure_vip_address or ""),
            *(instance.custom_status or "", *instance.tags, *instance.metadata),
            *instance.metadata.values(),
        ]
        for name in _ELSEWHERE:
            texts += FIELDS[name](instance)
        return self.text in "\n".join(texts).casefold()


# What else a text without a field may stand in.
_ELSEWHERE = ("override", "zone", "port", "group")


class Search(NamedTuple):
    """A search that was understood."""

    terms: tuple[_Term, ...]

    @classmethod
    def parsed(cls, text: str) -> Search:
        """What a text asks for; nothing asks for everything. ``SearchError``."""
        if len(text) > MAX_LENGTH:
            raise SearchError(f"expected at most {MAX_LENGTH} characters")
        return cls(tuple(_term(found[1], found[2]) for found in _TERM.finditer(text)))

    def has(self, instance: Instance) -> bool:
        """Whether an instance answers all of it."""
        return all(term.is_met(instance) for term in self.terms)

    @property
    def only_app(self) -> str | None:
        """The application, in upper case, that alone can have what is searched."""
        for term in self.terms:
            if term.field == "app" and term.is_whole and not term.is_negated:
                return term.text.upper()
        return None


def _term(negation: str, text: str) -> _Term:
    is_negated = negation == "-"
    named = _NAMED.fullmatch(text)
    if named is not None:
        name, mark, value = named.groups()
        field, _, entry = name.partition(".")
        field = field.lower()
        if field in FIELDS and (not entry or field == "meta"):
            wanted = value.replace('"', "").casefold()
            return _Term(field, entry.casefold(), mark == "=", wanted, is_negated)
    return _Term(None, "", False, text.replace('"', "").casefold(), is_negated)


def _entry(instance: Instance, key: str) -> Iterable[str]:
    return [value for name, value in instance.metadata.items() if name.casefold() == key]


class Page(NamedTuple):
    """Some of what was found, in the order of applications and ids.

    ``total`` is how many there are on all pages, and ``next`` what the page after this one comes
    after; None where there is none.
    """

    revision: Revision
    found: list[dict[str, Any]]
    total: int
    next: str | None


class Pages:
    """Searches in one namespace, answered page by page. Thread-safe.

    Nothing is locked while instances are looked at, so a search that takes long holds nobody up.
    Where everything is asked for, only what a page shows is looked at.
    """

    def __init__(self, registry: NamespaceRegistry, lists: Lists) -> None:
        """Nothing is read before it is asked for."""
        self._registry = registry
        self._lists = lists

    def instances(
        self,
        search: Search,
        wanted: Wanted,
        *,
        limit: int,
        after: str = "",
        is_quick: bool = False,
    ) -> Page:
        """Those of the wanted that answer a search, as ``shown_now`` shows them.

        ``after`` is the ``next`` of the page before. ``NotYetError`` where it is to be quick, and
        takes long.
        """
        begins = _place(after)
        is_all = not search.terms and wanted._replace(columns=COLUMNS) == _EVERYTHING
        revision, size, names = self._names(search, begins.app if is_all else "")
        found: list[Instance] = []
        total = 0
        for app, instances in self._applications(names, is_quick):
            if not is_all:
                instances = [i for i in instances if wanted.has(i) and search.has(i)]
            total += len(instances)
            if app >= begins.app and len(found) <= limit:
                if app == begins.app:
                    instances = [i for i in instances if i.id > begins.id]
                instances.sort(key=_by_id)
                found += instances[: limit + 1 - len(found)]
            if is_all and len(found) > limit:
                break
        shown = found[:limit]
        follows = _spelled(shown[-1].key) if len(found) > limit else None
        total = size if is_all else total
        return Page(revision, list(map(self.shown_now, shown)), total, follows)

    def services(
        self, search: Search, *, limit: int, after: str = "", is_quick: bool = False
    ) -> tuple[Page, int]:
        """The services that have instances which answer a search, and how many instances do.

        Each with the number of those instances by status, of overrides among them, and the zones
        and sources that they are of. Otherwise as ``instances``.
        """
        begins = _place(after)
        is_all = not search.terms
        revision, size, names = self._names(search, begins.app if is_all else "")
        found: dict[InstanceKey, list[Instance]] = {}
        total = answering = 0
        for app, instances in self._applications(names, is_quick):
            by_name: dict[str, list[Instance]] = {}
            for instance in instances:
                if search.has(instance):
                    by_name.setdefault(form.service_name(instance), []).append(instance)
            total += len(by_name)
            answering += sum(map(len, by_name.values()))
            for name in sorted(by_name):
                place = InstanceKey(app, name)
                if place > begins and len(found) <= limit:
                    found[place] = by_name[name]
            if is_all and len(found) > limit:
                break
        shown = list(found)[:limit]
        follows = _spelled(shown[-1]) if len(found) > limit else None
        if is_all:
            total, answering = len(self._lists.names()), size
        summed = [_summed(place.id, found[place]) for place in shown]
        return Page(revision, summed, total, follows), answering

    def shown_now(self, instance: Instance) -> dict[str, Any]:
        """All of an instance's native form, with its details and its lease as of now."""
        lease = self._registry.lease(instance.key) if instance.is_leased else None
        if lease is None:
            return {**form.shown(instance), **form.details(instance)}
        clock = self._registry.clock
        ends_ms = clock.wall_ms() + lease.deadline_mono_ms - clock.mono_ms()
        instance = instance._replace(last_renewal_ms=lease.last_renewal_ms)
        return {**form.shown(instance), **form.details(instance, ends_ms)}

    def _names(self, search: Search, begins: str) -> tuple[Revision, int, list[str]]:
        """The revision, how many instances there are, and the applications to be looked at."""
        view = self._registry.view()
        only = search.only_app
        with view.lock:
            names = [name for name in view.applications if name >= begins]
            if only is not None:
                names = [only] if only in view.applications else []
            revision, size = view.revision, view.size()
        names.sort()
        return revision, size, names

    def _applications(
        self, names: list[str], is_quick: bool
    ) -> Iterator[tuple[str, list[Instance]]]:
        """Each of these applications with its instances, with a pause now and then."""
        view = self._registry.view()
        looked_at = 0
        for name in names:
            with view.lock:
                instances = list(view.applications.get(name, _NONE).values())
            looked_at += len(instances)
            if looked_at > _LOOKED_AT_AT_ONCE:
                if is_quick:
                    raise NotYetError
                looked_at = 0
                time.sleep(_PAUSE_SECS)
            yield name, instances


def _summed(name: str, instances: list[Instance]) -> dict[str, Any]:
    statuses = Counter(map(form.shown_status, instances))
    return {
        "service_name": name,
        "app": instances[0].app,
        "instances": len(instances),
        "statuses": dict(sorted(statuses.items())),
        "overrides": sum(form.shown_override(i) is not None for i in instances),
        "zones": sorted({zone for i in instances if (zone := form.zone(i))})[:_MOST_NAMED],
        "sources": sorted({i.source for i in instances})[:_MOST_NAMED],
    }


_EVERYTHING = Wanted(status="ALL")
_NONE: Mapping[str, Instance] = {}
# Anybody may register as many zones as instances.
_MOST_NAMED = 20


def _by_id(instance: Instance) -> str:
    return instance.id


def _spelled(place: InstanceKey) -> str:
    return f"{quote(place.app, safe='')}/{quote(place.id, safe='')}"


def _place(after: str) -> InstanceKey:
    app, _, name = after.partition("/")
    return InstanceKey(unquote(app), unquote(name))
