"""The model: one instance of which both APIs speak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

_SERVING = ("UP", "OUT_OF_SERVICE")
Pairs = frozenset[tuple[str, str]]


class Listed(NamedTuple):
    """What is listed of it. ``word`` is a status that only the native API knows, shown for UP."""

    source: str
    status: str
    metadata: Pairs
    overridden: str = "UNKNOWN"
    dirty: int = 0
    word: str | None = None
    tags: tuple[str, ...] = ()


class State(NamedTuple):
    """What is listed, if anything, and what an operator said."""

    listed: Listed | None = None
    override: str | None = None


class Call(NamedTuple):
    """A call of one of either API's operations on one instance."""

    name: str
    status: str | None = None
    metadata: Pairs | None = None
    tags: tuple[str, ...] | None = None
    dirty: int = 0


def registry_model(state: State, call: Call) -> tuple[State, Any]:
    """The registry's rules for one instance, as a client sees them."""
    return _MODEL[call.name](state, call)


def _effective(
    reported: str, override: str | None, leased: Listed | None, *, is_told: bool = False
) -> str:
    if reported not in _SERVING:
        return reported
    if override is not None:
        return override
    if not is_told and leased is not None and leased.status in _SERVING:
        return leased.status
    return reported


def _listed_as(state: State, told: Listed, *, is_told: bool) -> State:
    """As a registration lists it, below an override; a peer and the native API are believed."""
    override = state.override
    if override is None and told.overridden != "UNKNOWN":
        override = told.overridden
    status = _effective(told.status, override, state.listed, is_told=is_told)
    return State(told._replace(status=status, overridden=override or told.overridden), override)


def _register(state: State, call: Call, *, is_told: bool = False) -> tuple[State, Any]:
    listed = state.listed
    if listed is not None and listed.source != "eureka":
        return state, 409
    told = Listed("eureka", call.status or "", call.metadata or frozenset(), dirty=call.dirty)
    if listed is not None and listed.dirty > call.dirty:
        told = listed
    return _listed_as(state, told, is_told=is_told), 204


def _peer_register(state: State, call: Call) -> tuple[State, Any]:
    after, answer = _register(state, call, is_told=True)
    return after, {204: 200, 409: 500}[answer]


def _renewed(state: State, source: str, gone: int) -> tuple[State, int]:
    listed = state.listed
    if listed is None or listed.source != source:
        return state, gone
    status = listed.status
    if status in _SERVING and state.override is not None:
        status = state.override
    if status == "UNKNOWN":
        return state, gone
    return state._replace(listed=listed._replace(status=status)), 200


def _heartbeat(state: State, call: Call) -> tuple[State, Any]:
    after, answer = _renewed(state, "eureka", 404)
    if answer == 200 and after.listed is not None and call.dirty > after.listed.dirty:
        return after, 404
    return after, answer


def _set_status(state: State, call: Call) -> tuple[State, Any]:
    listed, status = state.listed, call.status
    if listed is None:
        return state, 404
    if listed.status == status or status is None:
        return state, 200
    return State(listed._replace(status=status, overridden=status), status), 200


def _remove_status(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 404
    if state.override is None:
        return state, 200
    return State(listed._replace(status=call.status or "UNKNOWN", overridden="UNKNOWN")), 200


def _merge(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 404
    merged = frozenset((dict(listed.metadata) | dict(call.metadata or ())).items())
    return _listed_as(state, listed._replace(metadata=merged), is_told=False), 200


def _cancel(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is None:
        return State(), 404
    return (State(), 200) if state.listed.source == "eureka" else (state, 404)


def _as_told(word: str) -> tuple[str, str | None]:
    known = ("UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN")
    return (word, None) if word in known else ("UP", word)


def _post(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is not None and state.listed.source != "native":
        return state, 409
    status, word = _as_told(call.status or "UP")
    told = Listed("native", status, call.metadata or frozenset(), word=word, tags=call.tags or ())
    return _listed_as(state, told, is_told=True), 201


def _put(state: State, call: Call) -> tuple[State, Any]:
    listed = state.listed
    if listed is None:
        return state, 410
    if listed.source != "native":
        if call.status is None or call.metadata is not None or call.tags is not None:
            return state, 409
        after, _ = _set_status(state, call)
        return after, _shown(after.listed)
    told = listed._replace(
        metadata=listed.metadata if call.metadata is None else call.metadata,
        tags=listed.tags if call.tags is None else call.tags,
        overridden="UNKNOWN",
    )
    if call.status is not None:
        status, word = _as_told(call.status)
        state, told = State(listed), told._replace(status=status, word=word)
    after = _listed_as(state, told, is_told=True)
    return after, _shown(after.listed)


def _beat(state: State, call: Call) -> tuple[State, Any]:
    if state.listed is not None and state.listed.source != "native":
        return state, 409
    return _renewed(state, "native", 410)


def _delete(state: State, call: Call) -> tuple[State, Any]:
    return (state, 410) if state.listed is None else (State(), 200)


def _override(state: State, call: Call) -> tuple[State, Any]:
    after, _ = _set_status(state, call)
    return after, _shown(after.listed)


def _lift(state: State, call: Call) -> tuple[State, Any]:
    after, _ = _remove_status(state, call)
    return after, _shown(after.listed)


def _patch(state: State, call: Call) -> tuple[State, Any]:
    """As ``_merge`` for what Eureka clients registered, and as ``_put`` for the others."""
    listed = state.listed
    if listed is None:
        return state, 410
    merged = frozenset((dict(listed.metadata) | dict(call.metadata or ())).items())
    if listed.source == "native":
        return _put(state, call._replace(metadata=merged))
    after = _listed_as(state, listed._replace(metadata=merged), is_told=False)
    return after, _shown(after.listed)


def _import(state: State, call: Call) -> tuple[State, Any]:
    """As a peer's registration, where nothing as new is listed; native ones are new to it."""
    listed = state.listed
    if listed is not None and (listed.source == "native" or listed.dirty >= call.dirty):
        return state, 0
    told = Listed("eureka", call.status or "", call.metadata or frozenset(), dirty=call.dirty)
    return _listed_as(state, told, is_told=True), 1


def _shown(listed: Listed | None) -> Any:
    """As the native API shows it."""
    if listed is None:
        return 410
    shown = listed.word if listed.word is not None and listed.status == "UP" else listed.status
    return (listed.source, shown, listed.metadata, listed.tags)


def _told(listed: Listed | None) -> Any:
    """As a Eureka client reads it."""
    return 404 if listed is None else (listed.status, listed.overridden, listed.metadata)


_MODEL: dict[str, Callable[[State, Call], tuple[State, Any]]] = {
    "register": _register,
    "peer register": _peer_register,
    "heartbeat": _heartbeat,
    "set status": _set_status,
    "remove status": _remove_status,
    "metadata": _merge,
    "cancel": _cancel,
    "post": _post,
    "put": _put,
    "beat": _beat,
    "delete": _delete,
    "override": _override,
    "lift": _lift,
    "patch": _patch,
    "import": _import,
    "get": lambda state, call: (state, _told(state.listed)),
    "list": lambda state, call: (state, _told(state.listed)),
    "show": lambda state, call: (state, _shown(state.listed)),
}


def is_written(call: Call, answer: Any) -> bool:
    """Whether a call was surely written, though it may have changed nothing."""
    if isinstance(answer, tuple):
        return call.name == "patch" or (call.name == "put" and answer[0] == "native")
    return (call.name, answer) in _WRITTEN


_WRITTEN = {("register", 204), ("peer register", 200), ("post", 201), ("metadata", 200)}
_WRITTEN |= {("import", 1)}
