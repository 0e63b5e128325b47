"""What happened in a namespace, and what was listed at an earlier moment, as the native API has it.

Each answer is made for one caller, and may look at much: so it is made in a thread that may wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from eureka_http.exchange import Answer, Request
from native_api import form
from native_api.problems import ProblemError, problem
from registry import (
    ForgottenError,
    HistoryEntry,
    HistoryKind,
    Instance,
    Moment,
    NamespaceHistory,
    NamespaceRegistry,
    NotYetError,
    NotYetThereError,
    Wish,
    told_instant,
    told_moment,
)

_JSON = "application/json"
_LIMIT, _MOST = 100, 1000
_ENCODED_AT_ONCE = 200
_OF_INSTANCE = frozenset({"since", "until", "kind", "limit", "after", "service_name"})
_DIFF = frozenset({"from", "to"})
_KINDS = ", ".join(HistoryKind)
_PLACES = 3
_MOST_DIGITS = 20


class Past:
    """The history of one namespace, as functions from a request to an answer."""

    def __init__(self, registry: NamespaceRegistry) -> None:
        """Nothing is read before it is asked for."""
        self._registry = registry

    def _kept(self, request: Request) -> NamespaceHistory:
        """The history, in a thread that may wait for it."""
        if self._registry.history is None:
            text = "no history is kept here (REGISTRY_HISTORY or REGISTRY_HISTORY_BYTES is 0)"
            raise ProblemError(problem(404, text))
        if request.is_quick:
            raise NotYetError
        return self._registry.history

    def entries(self, request: Request, name: str) -> Answer:
        """What happened, the newest first."""
        return self._page(request, None)

    def of_instance(self, request: Request, name: str) -> Answer:
        """What happened to the instances of one id."""
        return self._page(request, name)

    def _page(self, request: Request, instance_id: str | None) -> Answer:
        query = request.parameters()
        _check_names(query, _OF_INSTANCE)
        service = query.get("service_name")
        wish = Wish(
            _instant(query, "since"),
            _instant(query, "until"),
            service.upper() if service else None,
            instance_id,
            _kinds(query),
            _limit(query),
            _place(query),
        )
        history = self._kept(request)
        page = history.read(wish)
        if (
            instance_id is not None
            and not page.entries
            and page.before is None
            and self._registry.listed_by_id(instance_id) is None
            and not history.read(Wish(id=instance_id, limit=1)).entries
        ):
            raise ProblemError(problem(404, f"nothing is known of an instance {instance_id!r}"))
        earliest = history.earliest_ms()
        following = None if page.before is None else ".".join(map(str, page.before))
        return Answer(
            200,
            orjson.dumps(
                {
                    "entries": [_shown(entry) for entry in page.entries],
                    "next": following,
                    "earliest": None if earliest is None else form.instant(earliest),
                }
            ),
            _JSON,
        )

    def diff(self, request: Request, name: str) -> Answer:
        """What was listed otherwise at one moment than at another."""
        query = request.parameters()
        _check_names(query, _DIFF)
        if "from" not in query:
            raise _expected("from", "an RFC 3339 instant, or a revision")
        first = self._moment(query, "from")
        second = self._moment(query, "to") if "to" in query else Moment()
        history = self._kept(request)
        added, removed, changed = [], [], []
        try:
            for before, after in history.differences(first, second):
                if before is None and after is not None:
                    added.append(form.shown(after))
                elif before is not None and after is None:
                    removed.append(form.shown(before))
                elif before is not None and after is not None:
                    shown = {"from": form.shown(before), "to": form.shown(after)}
                    changed.append(
                        {"id": after.id, "service_name": form.service_name(after)} | shown
                    )
        except ForgottenError as error:
            raise _forgotten(error) from None
        return Answer(
            200, orjson.dumps({"added": added, "removed": removed, "changed": changed}), _JSON
        )

    def asked(self, request: Request) -> Iterator[list[Instance]] | None:
        """What was listed at the moment that a request asks for, some at a time.

        None where it asks for the present.
        """
        if "at=" not in request.query:
            return None
        query = request.parameters()
        if "at" not in query:
            return None
        moment = self._moment(query, "at")
        found = self._kept(request).state(moment)
        try:
            first = list(itertools.islice(found, _ENCODED_AT_ONCE))
        except ForgottenError as error:
            raise _forgotten(error) from None
        return itertools.chain([first], _in_portions(found))

    def one(self, request: Request, name: str, service: str | None) -> Instance | None:
        """The instance of an id, of a service where one is named, as it was then.

        None where the request asks for the present.
        """
        past = self.asked(request)
        if past is None:
            return None
        for each in itertools.chain.from_iterable(past):
            if each.id == name and (service is None or form.is_of(each, service)):
                return each
        raise ProblemError(problem(410, f"no instance {name!r} was registered then"))

    def _moment(self, query: Mapping[str, str], name: str) -> Moment:
        registry = self._registry
        try:
            return told_moment(query[name], registry.clock.wall_ms(), registry.view().revision)
        except ValueError as error:
            raise _expected(name, str(error)) from None
        except NotYetThereError as error:
            errors = {name: str(error)}
            raise ProblemError(problem(404, f"{name}: {error}", errors=errors)) from None


def _in_portions(found: Iterator[Instance]) -> Iterator[list[Instance]]:
    while portion := list(itertools.islice(found, _ENCODED_AT_ONCE)):
        yield portion


def _shown(entry: HistoryEntry) -> dict[str, Any]:
    instance, by = entry.instance, entry.by
    detail = dict(entry.detail)
    if "last_renewal_ms" in detail:
        detail["last_renewal"] = form.instant(detail.pop("last_renewal_ms"))
    return {
        "revision": entry.revision,
        "at": form.instant(entry.at_ms),
        "kind": entry.kind,
        "service_name": form.service_name(instance) if instance else entry.app.lower(),
        "id": entry.id,
        "by": None if by is None else by._asdict(),
        "rule": entry.rule,
        "detail": detail,
        "instance": None
        if instance is None
        else form.shown(instance._replace(revision=entry.revision)),
    }


def _check_names(query: Mapping[str, str], known: frozenset[str]) -> None:
    unknown = sorted(query.keys() - known)
    if unknown:
        text = f"expected only {', '.join(sorted(known))}"
        raise ProblemError(problem(400, text, errors=dict.fromkeys(unknown, text)))


def _expected(name: str, text: str) -> ProblemError:
    return ProblemError(problem(400, f"{name}: expected {text}", errors={name: f"expected {text}"}))


def _instant(query: Mapping[str, str], name: str) -> int | None:
    if name not in query:
        return None
    try:
        return told_instant(query[name])
    except ValueError as error:
        raise _expected(name, str(error)) from None


def _kinds(query: Mapping[str, str]) -> frozenset[HistoryKind]:
    if "kind" not in query:
        return frozenset()
    try:
        return frozenset(map(HistoryKind, query["kind"].split(",")))
    except ValueError:
        raise _expected("kind", f"some of {_KINDS}, parted by commas") from None


def _limit(query: Mapping[str, str]) -> int:
    found = _numbers(query.get("limit", str(_LIMIT)))
    if found is None or len(found) != 1 or not 1 <= found[0] <= _MOST:
        raise _expected("limit", f"a whole number from 1 to {_MOST}")
    return found[0]


def _place(query: Mapping[str, str]) -> tuple[int, int, int] | None:
    if "after" not in query:
        return None
    found = _numbers(query["after"])
    if found is None or len(found) != _PLACES or max(found[:2]) >= 1 << 63 or found[2] >= 1 << 32:
        raise _expected("after", "what an answer gave as next")
    return found[0], found[1], found[2]


def _numbers(text: str) -> list[int] | None:
    words = text.split(".")
    if all(w.isascii() and w.isdigit() and len(w) <= _MOST_DIGITS for w in words):
        return list(map(int, words))
    return None


def _forgotten(error: ForgottenError) -> ProblemError:
    """The answer for a moment that is not told of any more."""
    if error.earliest_ms is None:
        return ProblemError(problem(410, f"{error}: REGISTRY_HISTORY_BYTES is too small for it"))
    earliest = form.instant(error.earliest_ms)
    errors = {"at": f"expected {earliest} or later"}
    return ProblemError(problem(410, str(error), errors=errors))
