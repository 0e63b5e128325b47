"""What a client may send, checked with marshmallow; a refusal names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from native_api.form import ENDPOINT_TYPES, EndpointError, parsed_endpoint
from native_api.problems import ProblemError, problem
from native_api.settings import NativeSettings

# Reserved for an instance that nobody has heard of; heartbeats would be refused.
_RESERVED = ("UNKNOWN", "ALL")
_WORD = validate.Regexp(
    r"[A-Za-z0-9._-]+\Z", error="letters, digits, dots, dashes and underscores only"
)
_TEXT = validate.Regexp(r"[^\x00-\x1f\x7f]*\Z", error="no control characters")


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


class Schemas:
    """The schemas for one set of limits."""

    def __init__(self, settings: NativeSettings) -> None:
        """Build them once; ``read_*`` may be called from any thread."""
        status_field = fields.String(
            validate=[
                validate.Length(1, settings.max_status),
                _WORD,
                validate.NoneOf(_RESERVED, error="this word is reserved"),
            ]
        )
        tags_field = fields.List(
            fields.String(
                required=True,
                validate=[
                    validate.Length(1, settings.max_service_name),
                    _TEXT,
                    validate.ContainsNoneOf(",", error="no comma: it parts tags in a query"),
                ],
            ),
            validate=validate.Length(max=settings.max_tags),
        )
        limit = settings.max_metadata_bytes

        class EndpointSchema(Schema):
            """Where the instance is reached."""

            class Meta:
                unknown = RAISE

            type = fields.String(required=True, validate=validate.OneOf(ENDPOINT_TYPES))
            value = fields.String(
                required=True, validate=[validate.Length(1, settings.max_endpoint), _TEXT]
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
            metadata = fields.Dict(keys=fields.String(validate=[validate.Length(1, 128), _TEXT]))

            @validates_schema
            def metadata_is_short(self, data: Mapping[str, Any], **_: object) -> None:
                size = len(orjson.dumps(data.get("metadata", {})))
                if size > limit:
                    raise ValidationError(f"at most {limit} bytes as JSON, not {size}", "metadata")

        class RegistrationSchema(ChangeSchema):
            """What an instance registers."""

            service_name = fields.String(
                required=True, validate=[validate.Length(1, settings.max_service_name), _WORD]
            )
            endpoint = fields.Nested(EndpointSchema, required=True)
            ttl = _Whole(validate=validate.Range(settings.min_ttl_secs, settings.max_ttl_secs))

        self._registration = RegistrationSchema()
        self._change = ChangeSchema()

    def read_registration(self, body: bytes) -> dict[str, Any]:
        """A registration's fields; ``ProblemError`` with a 400 that names what is wrong."""
        return _read(self._registration, body)

    def checked_registration(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A registration's fields from what has been parsed already; ``WrongFieldsError``."""
        return _checked(self._registration, document)

    def read_change(self, body: bytes) -> dict[str, Any]:
        """The fields to replace, at least one; ``ProblemError`` with a 400."""
        change = _read(self._change, body)
        if not change:
            raise ProblemError(problem(400, "nothing to replace: give status, tags or metadata"))
        return change


def _read(schema: Schema, body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(problem(400, f"the body is not JSON: {error}")) from None
    if not isinstance(document, dict):
        raise ProblemError(problem(400, "the body must be a JSON object"))
    try:
        return _checked(schema, document)
    except WrongFieldsError as error:
        named = ", ".join(error.fields)
        raise ProblemError(problem(400, f"wrong: {named}", errors=error.fields)) from None


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
