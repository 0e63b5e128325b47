"""Reads YAML and JSON documents; every error has its line.

A value is whatever JSON can express, so that it can be listed in any answer: a date stays as it is
written, and an integer beyond 64 bits becomes its digits. What JSON cannot express (``!!binary``,
``.nan``, half of a surrogate pair) is refused, and so is what only an attack or a mistake produces:
a duplicate key, a list inside itself, aliases of aliases of aliases, brackets ten thousand deep.

YAML is read event by event rather than by PyYAML's composer, which recurses for each bracket and
crashes the process if there are too many.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import yaml

from catalogs.bounds import shortened

_DEPTH = 100
_LONGEST_NUMBER = 1000
# How much larger than its text a document may become by its aliases.
_ALIASES = 8 * 1024 * 1024
_YAML = "tag:yaml.org,2002:"
_TEXTS = frozenset({"str", "timestamp", "value", "merge"})
_INSTANCES = re.compile(r'\s*\{\s*"[^"\\]*"\s*:\s*\[|\s*\[')
_BLANK = re.compile(r"[\s,]*")


class DocumentError(ValueError):
    """A document that cannot be read; the text begins with the line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {' '.join(reason.split())}")


@dataclass(frozen=True, slots=True)
class Document:
    """What was read. ``line_of(n)`` is the line where item ``n`` of its list begins.

    The list is the root, or the first list directly below it.
    """

    value: Any
    line_of: Callable[[int], int]


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8; raises ``DocumentError``."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, "not UTF-8") from None


# YAML


@dataclass(slots=True)
class _Open:
    """A list or mapping that has begun; ``size`` counts its content with all aliases expanded."""

    made: Any
    line: int
    anchor: str | None
    size: int = 1
    key: str | None = None
    merged: list[Any] = field(default_factory=list)
    """The mappings merged by ``<<``; the first one takes precedence."""


def yaml_document(text: str) -> Document:
    """Read a YAML document, and so a JSON one; raises ``DocumentError``."""
    loader = None
    try:
        loader = yaml.CSafeLoader(text)
        return _Yaml(loader, 2 * len(text) + _ALIASES).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise DocumentError(line, str(error.problem or error.context)) from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise DocumentError(line, f"a character that YAML does not have: {error.reason}") from None
    except yaml.YAMLError as error:
        raise DocumentError(1, f"not YAML: {error}") from None
    except UnicodeEncodeError:
        raise DocumentError(1, "not UTF-8") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Yaml:
    """Builds a document from the parser's events."""

    def __init__(self, loader: Any, most: int) -> None:
        self._loader = loader
        self._most = most
        self._open: list[_Open] = []
        # Anchor → its value, and the value's size with all aliases expanded.
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._lines: list[int] = []
        self._list: Any = None
        self._documents = 0
        self._root: Any = None

    def read(self) -> Document:
        while True:
            event = self._loader.get_event()
            line = event.start_mark.line + 1
            match event:
                case yaml.StreamEndEvent():
                    break
                case yaml.DocumentStartEvent():
                    self._documents += 1
                    if self._documents > 1:
                        raise DocumentError(line, "a second document")
                case yaml.ScalarEvent():
                    self._add(*self._scalar(event, line), line, event.anchor, event.value)
                case yaml.AliasEvent():
                    named = str(event.anchor)
                    known = self._anchors.get(named)
                    if known is None:
                        inside = any(o.anchor == named for o in self._open)
                        reason = "stands inside itself" if inside else "is not known before it"
                        raise DocumentError(line, f"*{named} {reason}")
                    self._add(*known, False, line, None, named)
                case yaml.MappingStartEvent():
                    self._begin({}, "map", event, line)
                case yaml.SequenceStartEvent():
                    self._begin([], "seq", event, line)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._end()
        if not self._documents:
            raise DocumentError(1, "it is empty")
        return Document(self._root, lambda n: self._lines[n] if n < len(self._lines) else 1)

    def _begin(self, made: Any, kind: str, event: Any, line: int) -> None:
        if event.tag not in (None, "!", _YAML + kind):
            raise _no_type(line, event.tag)
        if len(self._open) >= _DEPTH:
            raise DocumentError(line, f"more than {_DEPTH} lists and mappings inside each other")
        if self._open and isinstance(self._open[-1].made, dict) and self._open[-1].key is None:
            raise DocumentError(line, "a list or a mapping cannot be a key")
        if self._list is None and kind == "seq" and len(self._open) < 2:
            self._list = made
        elif self._open and self._open[-1].made is self._list:
            self._lines.append(line)
        self._open.append(_Open(made, line, event.anchor))

    def _end(self) -> None:
        ended = self._open.pop()
        made = ended.made
        if ended.merged:
            below: dict[str, Any] = {}
            for merged in reversed(ended.merged):
                below |= merged
            made.update({k: v for k, v in below.items() if k not in made})
        self._put(made, ended.size, ended.line, ended.anchor)

    def _scalar(self, event: Any, line: int) -> tuple[Any, int, bool]:
        """The value, its size, and whether it is the merge key ``<<``."""
        tag, text = event.tag, event.value
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
        kind = tag.removeprefix(_YAML)
        # To YAML 1.1 the text 12:30 is the number 750, in base 60; here it stays a text.
        if kind in _TEXTS or (kind in ("int", "float") and ":" in text):
            return text, 1 + len(text), kind == "merge"
        node = yaml.ScalarNode(tag, text)
        try:
            if kind == "null":
                return None, 1, False
            if kind == "bool":
                return self._loader.construct_yaml_bool(node), 1, False
            if kind in ("int", "float"):
                if len(text) > _LONGEST_NUMBER:
                    raise DocumentError(line, f"a number of {len(text)} characters")
                number = (
                    _in_64_bits(self._loader.construct_yaml_int(node))
                    if kind == "int"
                    else _finite(self._loader.construct_yaml_float(node))
                )
                return number, 1 + len(text), False
        except DocumentError:
            raise
        except (ValueError, KeyError, IndexError, OverflowError):
            raise DocumentError(line, f"{shortened(text)} is no {kind} that JSON has") from None
        raise _no_type(line, tag)

    def _add(
        self, value: Any, size: int, is_merge: bool, line: int, anchor: str | None, written: str
    ) -> None:
        """Add a scalar or an alias. In a mapping, it is a key or a value by turns."""
        if self._open and self._open[-1].made is self._list:
            self._lines.append(line)
        inside = self._open[-1] if self._open else None
        if inside is not None and isinstance(inside.made, dict) and inside.key is None:
            if not isinstance(value, str):
                raise DocumentError(line, f"the key {shortened(written)} is no text: quote it")
            if anchor is not None:
                self._anchors[anchor] = (value, size)
            if value in inside.made:
                raise DocumentError(line, f"{shortened(value)} stands twice")
            inside.size += size
            inside.key = "\0<<" if is_merge else value
            return
        self._put(value, size, line, anchor)

    def _put(self, value: Any, size: int, line: int, anchor: str | None) -> None:
        """Put a complete value into the list or mapping around it."""
        if anchor is not None:
            self._anchors[anchor] = (value, size)
        if not self._open:
            self._root = value
            return
        around = self._open[-1]
        around.size += size
        if around.size > self._most:
            raise DocumentError(line, "aliases of aliases come to more than can be read")
        if isinstance(around.made, list):
            around.made.append(value)
            return
        key, around.key = around.key, None
        if key == "\0<<":
            merged = value if isinstance(value, list) else [value]
            if not all(isinstance(item, dict) for item in merged):
                raise DocumentError(line, "<< wants a mapping, or a list of them")
            around.merged += merged
        else:
            assert key is not None
            around.made[key] = value


def _in_64_bits(number: int) -> int | str:
    """The number, or its digits if it needs more than 64 bits."""
    return number if -(2**63) <= number < 2**64 else str(number)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError
    return number


def _no_type(line: int, tag: str) -> DocumentError:
    named = tag.replace(_YAML, "!!")
    return DocumentError(
        line, f"could not determine a constructor for {shortened(named)}: JSON has no such type"
    )


# JSON


class _RefusedError(ValueError):
    """Valid JSON that is refused here."""


def json_document(text: str) -> Document:
    """Read a JSON document; raises ``DocumentError``."""

    def line_of(item: int) -> int:
        for number, (at, _) in enumerate(_items(text)):
            if number == item:
                return text.count("\n", 0, at) + 1
        return 1

    if not text.strip():
        raise DocumentError(1, "it is empty")
    try:
        value = _JSON.decode(text)
        orjson.dumps(value)
    except json.JSONDecodeError as error:
        raise DocumentError(error.lineno, error.msg) from None
    except RecursionError:
        raise DocumentError(1, "lists and mappings too deep inside each other") from None
    except (_RefusedError, TypeError) as error:
        raise DocumentError(_first_wrong(text), str(error)) from None
    return Document(value, line_of)


def _items(text: str) -> Any:
    """The offset and the text of each item of the list, as far as they can be parsed."""
    begin = _INSTANCES.match(text)
    at = len(text) if begin is None else begin.end()
    while True:
        blank = _BLANK.match(text, at)
        at = at if blank is None else blank.end()
        if at >= len(text) or text[at] == "]":
            return
        try:
            _, end = _GRAMMAR.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            return
        yield at, text[at:end]
        at = end


def _first_wrong(text: str) -> int:
    for at, item in _items(text):
        try:
            orjson.dumps(_JSON.decode(item))
        except (_RefusedError, TypeError):
            return text.count("\n", 0, at) + 1
    return 1


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RefusedError(f"{shortened(name)} stands twice")
            seen.add(name)
    return made


def _whole(digits: str) -> int | str:
    if len(digits) > _LONGEST_NUMBER:
        raise _RefusedError(f"a number of {len(digits)} characters")
    return _in_64_bits(int(digits))


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError(f"{shortened(text)} is more than a number can be")
    return number


def _constant(text: str) -> Any:
    raise _RefusedError(f"JSON has no {text}")


_JSON = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_float, parse_constant=_constant
)
_GRAMMAR = json.JSONDecoder(parse_int=str, parse_float=str)
