"""A registry as lines of JSON, to move it to another server: ``GET /export``, ``POST /import``.

The form is described in ``docs/operate/moving.md``. Instances that registered at the native API
are written as they registered; all others field by field, as the registry keeps them.

Whatever comes in is checked as if a client sent it: an export may have been edited, or be no export
at all. Each line is taken or refused for itself, since importing twice does no harm.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from eureka_http.exchange import Answer, Request
from native_api import form
from native_api.bodies import json_answer
from native_api.problems import ProblemError, problem
from native_api.schemas import Schemas, WrongFieldsError
from native_api.settings import NativeSettings
from registry import (
    DataCenter,
    Instance,
    InstanceStatus,
    Lease,
    NamespaceRegistry,
    NotYetError,
    RegistryError,
    duration_ms,
)

FORMAT = "eureka-registry export"
VERSION = 1
"""Grows where an older reader would misread what a newer writer wrote; new fields alone do not."""

MEDIA_TYPE = "application/x-ndjson"
MAX_IMPORT_BYTES = 4 * 1024 * 1024
"""Of one request. A longer export comes in parts, each behind its first line."""

MAX_IMPORT_LINES = 20_000
"""Of one request: each line that is refused is answered for, and is far shorter than its answer."""

_PORTION = 500
# So many are listed in one operation of the store.
_GROUP = 200
_PAUSE_SECS = 0.0001
_SHOWN = 200


class _LineError(ValueError):
    """A line that says nothing that could be listed; the text says why."""


class _Read(NamedTuple):
    """What a line tells of."""

    line: int
    instance: Instance
    age_ms: int


class _Refused(NamedTuple):
    """A line that was refused, and why."""

    line: int
    id: str | None
    detail: str


class Transfer:
    """Writes and reads the exports of one namespace. Thread-safe."""

    def __init__(
        self, registry: NamespaceRegistry, settings: NativeSettings, schemas: Schemas
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._schemas = schemas

    # Out

    def export(self, request: Request, name: str) -> Answer:
        """All that is listed at one revision, with overrides and leases."""
        if request.is_quick:
            raise NotYetError
        return Answer(200, b"", MEDIA_TYPE, {"Cache-Control": "no-store"}, list(self._parts()))

    def _parts(self) -> Iterator[bytes]:
        registry = self._registry
        view = registry.view()
        with view.lock:
            revision = view.revision
            listed = [i for each in view.applications.values() for i in each.values()]
            overrides = dict(view.overrides)
        leases = registry.leases()
        now_ms, mono = registry.clock.wall_ms(), registry.clock.mono_ms()
        yield _line(
            {
                "kind": "header",
                "format": FORMAT,
                "version": VERSION,
                "namespace": registry.namespace,
                "revision": revision,
                "at": form.instant(now_ms),
            }
        )
        for begin in range(0, len(listed), _PORTION):
            yield b"".join(
                _line(_written(each, overrides.get(each.id), leases.get(each.key), mono))
                for each in listed[begin : begin + _PORTION]
            )
            time.sleep(_PAUSE_SECS)  # others get the interpreter
        yield _line({"kind": "end", "instances": len(listed)})

    # In

    def take(self, request: Request, name: str) -> Answer:
        """List what an export says, where nothing as new is listed; what became of each line.

        ``ProblemError`` where the first line is not that of an export that this version can read.
        """
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != MEDIA_TYPE:
            raise ProblemError(problem(415, f"expected Content-Type: {MEDIA_TYPE}"))
        body = request.read_body(MAX_IMPORT_BYTES)
        if body.count(b"\n") > MAX_IMPORT_LINES:
            raise ProblemError(problem(413, f"the body has more than {MAX_IMPORT_LINES} lines"))
        first, *lines = body.split(b"\n")
        self._check_header(first)
        counts: Counter[str] = Counter()
        refused: list[_Refused] = []
        group: list[_Read] = []
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            identity = None
            try:
                told = _parsed(line)
                identity = _identity(told)
                found = self._read(told)
            except _LineError as error:
                refused.append(_Refused(number, identity, str(error)))
                continue
            if found is None:
                counts["of_catalogs"] += told.get("kind") != "end"
                continue
            group.append(_Read(number, *found))
            if len(group) == _GROUP:
                self._adopt(group, counts, refused)
        self._adopt(group, counts, refused)
        done = {word: counts[word] for word in ("taken", "kept", "of_catalogs")}
        refused.sort()
        return json_answer({**done, "refused": [each._asdict() for each in refused]})

    def _adopt(self, group: list[_Read], counts: Counter[str], refused: list[_Refused]) -> None:
        """List what some lines say, and tell what became of each."""
        wanted = [(read.instance, read.age_ms) for read in group]
        for read, outcome in zip(group, self._registry.adopt_all(wanted), strict=True):
            if isinstance(outcome, RegistryError):
                refused.append(_Refused(read.line, read.instance.id[:_SHOWN], str(outcome)))
            else:
                counts["taken" if outcome else "kept"] += 1
        group.clear()

    def _check_header(self, line: bytes) -> None:
        try:
            header = _parsed(line)
        except _LineError as error:
            raise ProblemError(problem(400, f"line 1: {error}")) from None
        if header.get("kind") != "header" or header.get("format") != FORMAT:
            raise ProblemError(problem(400, "line 1: this is no export of a registry"))
        version = header.get("version")
        if type(version) is not int or version < 1:
            raise ProblemError(problem(400, "line 1: the export has no version"))
        if version > VERSION:
            text = f"the export is of version {version}, and this server reads up to {VERSION}"
            raise ProblemError(problem(409, text))
        if header.get("namespace") != self._registry.namespace:
            told = str(header.get("namespace"))[:_SHOWN]
            text = (
                f"this is the namespace {self._registry.namespace!r}, and the export is of"
                f" {told!r}: name the one that is meant"
            )
            raise ProblemError(problem(409, text))

    def _read(self, told: Mapping[str, Any]) -> tuple[Instance, int] | None:
        """The instance that a line tells of, and how much of its lease has gone (ms).

        None where it tells of none that is to be listed.
        """
        if told.get("kind") == "end":
            return None
        if told.get("kind") != "instance":
            raise _LineError("expected a line of the kind instance")
        source = _field(told, "source", _text)
        if source not in ("eureka", form.SOURCE):
            return None
        if source == form.SOURCE:
            instance = self._native(told)
        else:
            instance = _eureka(_object(told, "instance"))
        override = _field(told, "override", _override)
        if override is not None:
            instance = instance._replace(overridden_status=override)
        duration = duration_ms(instance.duration_secs)
        remaining = _field(told, "lease_remaining_ms", _optional(_whole(0, 2**53)))
        if remaining is None or remaining > duration:
            remaining = duration
        return instance, duration - remaining

    def _native(self, told: Mapping[str, Any]) -> Instance:
        """What registered at this API, from its registration, which is checked as ever."""
        document = _object(told, "registration")
        address = _field(told, "address", _text)
        dirty = _field(told, "last_dirty_ms", _LONG)
        try:
            data = self._schemas.checked_registration(document)
        except WrongFieldsError as error:
            raise _LineError(str(error)) from None
        ttl = data.get("ttl", 0) or self._settings.default_ttl_secs
        return form.complete(
            service_name=data["service_name"],
            endpoint=form.parsed_endpoint(data["endpoint"]["type"], data["endpoint"]["value"]),
            ttl_secs=min(max(ttl, self._settings.min_ttl_secs), self._settings.max_ttl_secs),
            address=address,
            status=data.get("status", "UP"),
            tags=data.get("tags", ()),
            metadata=data.get("metadata"),
            last_dirty_ms=dirty,
        )


def _line(document: Mapping[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _written(
    instance: Instance, override: InstanceStatus | None, lease: Lease | None, mono: int
) -> dict[str, Any]:
    """The line of an instance. ``mono`` is the monotonic clock, by which its lease is measured."""
    remaining = None if lease is None else max(0, lease.deadline_mono_ms - mono)
    line: dict[str, Any] = {
        "kind": "instance",
        "source": instance.source,
        "id": instance.id,
        "override": override,
        "lease_remaining_ms": remaining,
    }
    if instance.source != form.SOURCE:
        line["instance"] = {name: _spelled(getattr(instance, name)) for name in _FIELDS}
        return line
    # What it says of itself, as far as that is known: an override hides the rest.
    is_custom = instance.custom_status is not None and (
        override is not None or instance.status is InstanceStatus.UP
    )
    status = instance.custom_status if is_custom else instance.status
    line["registration"] = {
        "service_name": form.service_name(instance),
        "endpoint": form.shown_endpoint(instance),
        "ttl": instance.duration_secs,
        "status": "UP" if status is InstanceStatus.UNKNOWN else status,
        "tags": form.shown_tags(instance),
        "metadata": form.shown_metadata(instance),
    }
    line["address"] = instance.ip_addr
    line["last_dirty_ms"] = instance.last_dirty_ms
    return line


def _spelled(value: Any) -> Any:
    if isinstance(value, DataCenter):
        return {"name": value.name, "amazon_metadata": value.amazon_metadata}
    return value


# What may stand in a line


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _LineError(f"this is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise _LineError("expected a JSON object")
    return told


def _identity(told: Mapping[str, Any]) -> str | None:
    """The id that a line tells, to name it by if it is refused."""
    identity = told.get("id")
    return identity[:_SHOWN] if isinstance(identity, str) else None


_Check = Callable[[Any], Any]


def _field(told: Mapping[str, Any], name: str, check: _Check) -> Any:
    try:
        return check(told.get(name))
    except _LineError as error:
        raise _LineError(f"{name}: {error}") from None


def _object(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = told.get(name)
    if not isinstance(found, dict):
        raise _LineError(f"{name}: expected a JSON object")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _LineError("expected a text")
    return value


def _any_text(value: Any) -> str:
    if not isinstance(value, str):
        raise _LineError("expected a text")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _LineError("expected true or false")
    return value


def _whole(low: int, high: int) -> _Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _LineError(f"expected a whole number from {low} to {high}")
        return value

    return check


def _optional(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _status(value: Any) -> InstanceStatus:
    try:
        return InstanceStatus(value)
    except ValueError:
        raise _LineError(f"expected one of {', '.join(InstanceStatus)}") from None


def _override(value: Any) -> InstanceStatus | None:
    return None if value in (None, InstanceStatus.UNKNOWN) else _status(value)


def _texts(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise _LineError("expected a JSON object of texts")
    return value


def _data_center(value: Any) -> DataCenter:
    if not isinstance(value, dict):
        raise _LineError("expected a JSON object")
    name = _field(value, "name", _text)
    return DataCenter(name, _field(value, "amazon_metadata", _optional(_texts)))


_INT, _LONG = _whole(-(2**31), 2**31 - 1), _whole(-(2**63), 2**63 - 1)


class _Field(NamedTuple):
    """How a field is checked, and whether it has to be there; else it has the model's default."""

    check: _Check
    is_needed: bool = False


# An instance as a Eureka client registered it. What the server adds (when it registered, say) is
# made anew where it is imported.
_FIELDS: Mapping[str, _Field] = {
    "app": _Field(_text, is_needed=True),
    "id": _Field(_text, is_needed=True),
    "instance_id": _Field(_optional(_any_text)),
    "host_name": _Field(_text, is_needed=True),
    "ip_addr": _Field(_text, is_needed=True),
    "status": _Field(_status, is_needed=True),
    "sid": _Field(_any_text),
    "port": _Field(_INT),
    "port_enabled": _Field(_switch),
    "secure_port": _Field(_INT),
    "secure_port_enabled": _Field(_switch),
    "country_id": _Field(_INT),
    "data_center": _Field(_data_center),
    "renewal_interval_secs": _Field(_INT),
    "duration_secs": _Field(_INT),
    "metadata": _Field(_texts),
    "app_group_name": _Field(_optional(_any_text)),
    "home_page_url": _Field(_optional(_any_text)),
    "status_page_url": _Field(_optional(_any_text)),
    "health_check_url": _Field(_optional(_any_text)),
    "secure_health_check_url": _Field(_optional(_any_text)),
    "vip_address": _Field(_optional(_any_text)),
    "secure_vip_address": _Field(_optional(_any_text)),
    "asg_name": _Field(_optional(_any_text)),
    "last_dirty_ms": _Field(_LONG, is_needed=True),
}


def _eureka(told: Mapping[str, Any]) -> Instance:
    """What a Eureka client registered; a field that this version does not know is passed over."""
    fields = {
        name: _field(told, name, field.check)
        for name, field in _FIELDS.items()
        if field.is_needed or name in told
    }
    fields["app"] = fields["app"].upper()
    return Instance(**{"instance_id": fields["id"], **fields})
