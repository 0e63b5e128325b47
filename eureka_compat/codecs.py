"""The protocol's tree spelled as JSON and as XML, and both read back. Spelling only.

XML input is pulled through expat with a bound on depth; a document type (and so any entity) is
refused. Source: protocol sections 3 and 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from xml.parsers import expat

import orjson

from eureka_compat.wire import AMAZON_CLASS, DEFAULT_CLASS, ParseError, Tree

MAX_XML_DEPTH = 16

# JSON


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON, as the original writes it."""
    return orjson.dumps(value)


def read_json(body: bytes) -> Any:
    """Any JSON document; ``ParseError`` else."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ParseError(f"not JSON: {error}") from error


def instance_tree_from_json(body: bytes) -> Any:
    """The tree under the root key ``instance``, which must be the only one."""
    document = read_json(body)
    if not isinstance(document, dict) or len(document) != 1 or "instance" not in document:
        raise ParseError('expected one root key: {"instance": {...}}')
    return as_read_from_json(document["instance"])


def as_read_from_json(tree: Any) -> Any:
    """An instance's tree with what the original does to JSON alone: the group in upper case."""
    group = tree.get("appGroupName") if isinstance(tree, dict) else None
    if isinstance(group, str):
        tree["appGroupName"] = group.upper()
    return tree


# XML out

_UNSAFE = re.compile(r"[&<>\"'\r]")
_ESCAPES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&apos;",
    "\r": "&#xd;",
}
# Characters that no XML 1.0 document may hold, not even escaped.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def _escape(text: str) -> str:
    text = _FORBIDDEN.sub("\ufffd", text)
    return _UNSAFE.sub(lambda match: _ESCAPES[match[0]], text)


@lru_cache(maxsize=8192)
def _fits_name(character: str, *, first: bool) -> bool:
    """Whether a character may stand in an element name, for the oldest readers too.

    expat itself is asked: it keeps to the fourth edition of XML 1.0, as many clients' parsers do.
    """
    try:
        expat.ParserCreate().Parse(f"<{'' if first else 'a'}{character}/>", True)
    except (expat.ExpatError, UnicodeEncodeError):
        return False
    return character not in "/>= \t\r\n"


@lru_cache(maxsize=4096)
def encode_name(name: str) -> str:
    """An element name as the original escapes it (protocol 4.2)."""
    out = []
    for position, character in enumerate(name):
        if character == "_":
            out.append("__")
        elif character == "$":
            out.append("_-")
        elif _fits_name(character, first=not position):
            out.append(character)
        else:
            for unit in _utf16_units(character):
                out.append(f"_.{unit:04x}")
    return "".join(out) or "__"


def _utf16_units(character: str) -> list[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


_ESCAPED = re.compile(r"__|_-|((?:_\.[0-9a-f]{4})+)")


def decode_name(name: str) -> str:
    """The reverse of ``encode_name``; a lone underscore is kept."""

    def decode(match: re.Match[str]) -> str:
        if match[0] == "__":
            return "_"
        if match[0] == "_-":
            return "$"
        units = bytes.fromhex(match[1].replace("_.", ""))
        return units.decode("utf-16-be", "replace")

    return _ESCAPED.sub(decode, name)


def to_xml(name: str, value: Any, depth: int = 0, *, indent: bool = True) -> str:
    """One element of the tree, on lines indented by ``depth``, or in one line."""
    out: list[str] = []
    _write(out, name, value, depth, indent)
    return "".join(out)


def _write(out: list[str], name: str, value: Any, depth: int, indent: bool) -> None:
    space = "  " * depth if indent else ""
    end = "\n" if indent else ""
    if not isinstance(value, dict):
        text = _escape(value if isinstance(value, str) else str(value))
        out.append(f"{space}<{name}>{text}</{name}>{end}")
        return
    kind = value.get("@class")
    if name == "metadata":
        kind = kind if len(value) == 1 and kind is not None else None
    attributes = f' class="{_escape(kind)}"' if kind is not None else ""
    if "$" in value and "@enabled" in value:
        out.append(f'{space}<{name} enabled="{value["@enabled"]}">{value["$"]}</{name}>{end}')
        return
    children = [
        item for item in value.items() if item[0] != "@class" or (name == "metadata" and not kind)
    ]
    if not children:
        out.append(f"{space}<{name}{attributes}/>{end}")
        return
    out.append(f"{space}<{name}{attributes}>{end}")
    for child, item in children:
        tag = "overriddenstatus" if child == "overriddenStatus" else child
        _write(out, encode_name(tag) if name == "metadata" else tag, item, depth + 1, indent)
    out.append(f"{space}</{name}>{end}")


# XML in


@dataclass(slots=True)
class Element:
    """One element as parsed: its text is that of its own character data, not trimmed."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""


def read_xml(body: bytes) -> Element:
    """Parse a document; ``ParseError`` where it is none, is too deep or has a document type."""
    parser = expat.ParserCreate(encoding="utf-8")
    stack: list[Element] = []
    roots: list[Element] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        element = Element(name, attributes)
        if len(stack) >= MAX_XML_DEPTH:
            raise ParseError(f"XML: more than {MAX_XML_DEPTH} elements inside each other")
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def refuse(*_: Any) -> None:
        raise ParseError("XML: a document type is not accepted")

    def text(data: str) -> None:
        if stack:
            stack[-1].text += data

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise ParseError(f"not XML: {error}") from error
    return roots[0]


def instance_tree_from_xml(body: bytes) -> Tree:
    """The tree of a document with the root ``instance``, its XML spellings put as JSON has them."""
    root = read_xml(body)
    if root.name != "instance":
        raise ParseError("expected the root element instance")
    tree: Tree = {}
    for child in root.children:
        name = decode_name(child.name)
        reader = _XML_READERS.get(name)
        tree[name] = reader(child) if reader is not None else child.text
    for name in ("lastDirtyTimestamp", "lastUpdatedTimestamp"):
        if name in tree and not tree[name].isdecimal():
            del tree[name]
    return tree


def _xml_status(element: Element) -> str:
    return element.text.upper()


def _xml_port(element: Element, *, enabled_unless: str | None) -> Tree:
    try:
        number = int(element.text) if element.text == element.text.strip() else None
    except ValueError:
        number = None
    if number is None:
        raise ParseError(f"instance.{element.name}: expected a number, without white space")
    flag = element.attributes.get("enabled", "")
    enabled = flag != enabled_unless if enabled_unless is not None else flag == "true"
    return {"$": number, "@enabled": enabled}


def _xml_children(element: Element) -> Tree:
    return {decode_name(child.name): child.text for child in element.children}


def _xml_data_center(element: Element) -> Tree:
    tree: Tree = {"@class": DEFAULT_CLASS}
    for child in element.children:
        if child.name == "name":
            tree["name"] = child.text
        elif child.name == "metadata" and tree.get("name", "").lower() == "amazon":
            tree["metadata"] = _xml_children(child)
    if tree.get("name", "").lower() == "amazon":
        return {"@class": AMAZON_CLASS, "name": "Amazon", "metadata": tree.get("metadata", {})}
    return tree


_XML_READERS = {
    "status": _xml_status,
    "overriddenstatus": _xml_status,
    "overriddenStatus": _xml_status,
    "port": lambda element: _xml_port(element, enabled_unless="false"),
    "securePort": lambda element: _xml_port(element, enabled_unless=None),
    "metadata": _xml_children,
    "leaseInfo": _xml_children,
    "dataCenterInfo": _xml_data_center,
}
