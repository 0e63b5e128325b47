"""What a client may send, checked with marshmallow; a refusal names the field.

A registration is read as the Amalgam8 registry reads it: unknown fields, those that are null, and
the case of the fields' names do not count; an empty status and a ``ttl`` of 0 are the defaults, and
a ``ttl`` out of bounds is moved to the bound. Documents that an operator writes are read strictly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from native_api.form import ENDPOINT_TYPES, EndpointError, parsed_endpoint
from native_api.problems import ProblemError, problem
from native_api.settings import NativeSettings
from registry import InstanceStatus

# Reserved for an instance that nobody has heard of; heartbeats would be refused.
_RESERVED = ("UNKNOWN", "ALL")
# What an operator can say. UNKNOWN would have each heartbeat refused.
_OVERRIDES = tuple(str(s) for s in InstanceStatus if s is not InstanceStatus.UNKNOWN)
_WORD = validate.Regexp(
    r"[A-Za-z0-9._-]+\Z", error="letters, digits, dots, dashes and underscores only"
)
_NAME = validate.Regexp(
    r"(?! )[^\x00-\x1f\x7f]*(?<! )\Z",
    error="no control characters, and no blank at either end",
)
_UNREADABLE = "error_instance_registration_failure"
# In the order in which that registry looks: the field, the type that it has to have, and the word.
_CODES: tuple[tuple[str, type, str], ...] = (
    ("endpoint.type", str, "error_instance_endpoint_type_invalid"),
    ("status", str, "error_instance_status_invalid"),
    ("service_name", str, "error_service_name_too_long"),
    ("endpoint.value", str, "error_instance_endpoint_too_long"),
    ("metadata", object, "error_meta_data_too_long"),
)
_LENGTH = " at most, not the "
_LONGEST_KEY = 128
_LARGEST_TTL = 2**32 - 1
_SHOWN = 80
_TEXT = validate.Regexp(r"[^\x00-\x1f\x7f]*\Z", error="no control characters")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class WrongFieldsError(ValueError):
    """What in a document is wrong: by the path of each field, what was expected of it."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in fields.items()))
        self.fields = fields


class _Whole(fields.Integer):
    """A JSON number without a fraction: ``30`` and ``30.0``, but neither a text nor a switch."""

    def _validated(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.make_error("invalid")
        return value


class _Metadata(fields.Field[Any]):
    """Any JSON value but null; an object's names are texts that XML can show."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def _deserialize(self, value: Any, *_: object, **__: object) -> Any:
        if isinstance(value, Mapping):
            for name in value:
                wrong = _wrong_name(name)
                if wrong is not None:
                    raise ValidationError(wrong)
        try:
            size = len(orjson.dumps(value))
        except TypeError as error:
            raise ValidationError(f"JSON expected: {error}") from None
        if size > self._limit:
            raise ValidationError(f"{self._limit} bytes as JSON{_LENGTH}{size}")
        return value


def _wrong_name(name: Any) -> str | None:
    """What is wrong with a name of metadata, which is an element of XML to Eureka clients."""
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_KEY:
        return f"names of 1 to {_LONGEST_KEY} characters"
    return None if _CONTROL.search(name) is None else "no control characters"


def _is_override(word: str) -> None:
    if word.upper() not in _OVERRIDES:
        raise ValidationError(f"one of {', '.join(_OVERRIDES)}")


def _length(low: int, high: int) -> Callable[[str], None]:
    """Refuse a text of another length; the refusal shows how it begins."""

    def check(text: str) -> None:
        if not low <= len(text) <= high:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise ValidationError(f"{low} to {high} characters{_LENGTH}{len(text)} of {shown!r}")

    return check


class Schemas:
    """The schemas for one set of limits."""

    def __init__(self, settings: NativeSettings) -> None:
        """Build them once; ``read_*`` may be called from any thread."""
        status_field = fields.String(
            validate=[
                _length(1, settings.max_status),
                _WORD,
                _is_free,
            ]
        )
        tags_field = fields.List(
            fields.String(required=True, validate=[_length(0, settings.max_service_name), _TEXT]),
            validate=validate.Length(max=settings.max_tags),
        )
        self._ttl_bounds = settings.min_ttl_secs, settings.max_ttl_secs

        class EndpointSchema(Schema):
            """Where the instance is reached."""

            class Meta:
                unknown = RAISE

            type = fields.String(required=True, validate=validate.OneOf(ENDPOINT_TYPES))
            value = fields.String(
                required=True, validate=[_length(1, settings.max_endpoint), _TEXT]
            )

            @validates_schema
            def has_a_host(self, data: Mapping[str, Any], **_: object) -> None:
                try:
                    parsed_endpoint(data["type"], data["value"])
                except EndpointError as error:
                    raise ValidationError(str(error), "value") from None

        class ChangeSchema(Schema):
            """What can be replaced while registered."""

            class Meta:
                unknown = RAISE

            status = status_field
            tags = tags_field
            metadata = _Metadata(settings.max_metadata_bytes)

        class OverrideSchema(Schema):
            """What an operator says of an instance."""

            class Meta:
                unknown = RAISE

            status = fields.String(required=True, validate=_is_override)

        class LossSchema(Schema):
            """Whose loss is accepted: a service's, or that of all."""

            class Meta:
                unknown = RAISE

            service_name = fields.String(allow_none=True, validate=validate.Length(min=1))

        class RegistrationSchema(ChangeSchema):
            """What an instance registers."""

            service_name = fields.String(
                required=True, validate=[_length(1, settings.max_service_name), _NAME]
            )
            endpoint = fields.Nested(EndpointSchema, required=True)
            ttl = _Whole(validate=validate.Range(0, _LARGEST_TTL))

        self._registration = RegistrationSchema()
        self._change = ChangeSchema()
        self._override = OverrideSchema()
        self._loss = LossSchema()

    def read_registration(self, body: bytes) -> dict[str, Any]:
        """A registration's fields; ``ProblemError`` with a 400 that names what is wrong."""
        document = _known_fields(_parsed(body, null={}), (*self._registration.fields,))
        endpoint = document.get("endpoint")
        if isinstance(endpoint, Mapping):
            document["endpoint"] = _known_fields(endpoint, ("type", "value"))
        if document.get("status") == "":
            del document["status"]
        data = _read(self._registration, document)
        ttl = data.pop("ttl", 0)
        if ttl:
            low, high = self._ttl_bounds
            data["ttl"] = min(max(ttl, low), high)
        return data

    def checked_registration(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A registration's fields from what an operator wrote; ``WrongFieldsError``."""
        return _checked(self._registration, document)

    def read_change(self, body: bytes) -> dict[str, Any]:
        """The fields to replace, at least one; ``ProblemError`` with a 400."""
        change = _read(self._change, _parsed(body))
        if not change:
            raise ProblemError(problem(400, "nothing to replace: give status, tags or metadata"))
        return change

    def read_override(self, body: bytes) -> InstanceStatus:
        """The status that is to stand above an instance's own; ``ProblemError`` with a 400."""
        return InstanceStatus(_read(self._override, _parsed(body))["status"].upper())

    def read_loss(self, body: bytes) -> str | None:
        """The service whose loss is accepted, None for all; ``ProblemError`` with a 400."""
        service: str | None = _read(self._loss, _parsed(body)).get("service_name")
        return service

    def read_patch(self, body: bytes) -> dict[str, Any]:
        """Metadata to be put in (null: taken away), at least one; ``ProblemError`` with a 400."""
        patch = _parsed(body)
        if not patch:
            raise ProblemError(problem(400, "nothing to change: give names and their values"))
        wrong = {name: text for name in patch if (text := _wrong_name(name)) is not None}
        if wrong:
            raise ProblemError(problem(400, f"wrong: {', '.join(wrong)}", errors=wrong))
        return dict(patch)

    def checked_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata as the one field of a change, if they may be so; ``ProblemError``: a 400."""
        return _read(self._change, {"metadata": metadata})


def _is_free(word: str) -> None:
    if word.upper() in _RESERVED:
        raise ValidationError("this word is reserved")


def _known_fields(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What of a document counts, under the fields' own names; the last of two spellings does."""
    told = {name.lower(): value for name, value in document.items()}
    return {name: told[name] for name in names if told.get(name) is not None}


def _parsed(body: bytes, null: Any = None) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = f"the body is not JSON: {error}"
        raise ProblemError(problem(400, text, code=_UNREADABLE)) from None
    if document is None:
        document = null
    if not isinstance(document, dict):
        raise ProblemError(problem(400, "the body must be a JSON object", code=_UNREADABLE))
    return document


def _read(schema: Schema, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _checked(schema, document)
    except WrongFieldsError as error:
        named = ", ".join(error.fields)
        code = _code(error.fields, document)
        refusal = problem(400, f"wrong: {named}", errors=error.fields, code=code)
        raise ProblemError(refusal) from None


def _code(wrong: Mapping[str, str], document: Mapping[str, Any]) -> str:
    """What the Amalgam8 registry calls the first thing that is wrong, in its own order."""
    name, endpoint = document.get("service_name"), document.get("endpoint")
    if not name:
        return "error_service_name_missing"
    if endpoint is None:
        return "error_instance_endpoint_missing"
    if isinstance(endpoint, Mapping) and not (endpoint.get("type") and endpoint.get("value")):
        return "error_instance_endpoint_missing_type_or_value"
    for field, kind, code in _CODES:
        value: Any = document
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if field in wrong:
            fits = isinstance(value, kind) and ("long" not in code or _LENGTH in wrong[field])
            return code if fits else _UNREADABLE
    return _UNREADABLE


def _checked(schema: Schema, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = schema.load(document)
    except ValidationError as error:
        messages = error.messages if isinstance(error.messages, dict) else {"": error.messages}
        raise WrongFieldsError(dict(_flat(messages))) from None
    return loaded


def _flat(messages: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, told in messages.items():
        path = prefix if name == "_schema" else f"{prefix}.{name}" if prefix else str(name)
        if isinstance(told, Mapping):
            found += _flat(told, path)
        else:
            found.append((path, " ".join(map(str, told))))
    return found
