"""The protocol's tree spelled as JSON and as XML, and both read back. Spelling only.

Bodies are read in whatever encoding they are in, as the original's parsers do: JSON by its first
bytes, XML by these or its declaration. XML is read with xmltodict, with a bound on depth; a
document type (and so any entity) is refused. Source: protocol sections 3 and 4.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import Any, NoReturn
from xml.parsers import expat

import orjson
import xmltodict

from eureka_compat.wire import AMAZON_CLASS, DEFAULT_CLASS, Digits, ParseError, Tree, scalar

MAX_XML_DEPTH = 16

# JSON


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON, as the original writes it."""
    return orjson.dumps(value)


def read_json(body: bytes) -> Any:
    """The JSON document that a body begins with; ``ParseError`` where it begins with none.

    What comes after the document is ignored. Half of a surrogate pair is read as a question mark.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _read_exactly(body)


def instance_tree_from_json(body: bytes) -> Any:
    """The tree under the root key ``instance``; other keys beside it are ignored."""
    document = read_json(body)
    if not isinstance(document, dict) or "instance" not in document:
        raise ParseError('expected one root key: {"instance": {...}}')
    if _lost_digits(document["instance"]) or _has_minus_zero(body):
        document = _read_exactly(body)
    return as_read_from_json(document["instance"])


def batch_from_json(body: bytes) -> Any:
    """The document of a peer's batch; numbers in the place of texts keep their digits."""
    document = read_json(body)
    items = document.get("replicationList") if isinstance(document, dict) else None
    if _has_minus_zero(body):
        return _read_exactly(body)
    for item in items if isinstance(items, list) else ():
        told = item.get("instanceInfo") if isinstance(item, dict) else None
        if _lost_digits(item) or _lost_digits(told):
            return _read_exactly(body)
    return document


def as_read_from_json(tree: Any) -> Any:
    """An instance's tree with what the original does to JSON alone: the group in upper case."""
    group = tree.get("appGroupName") if isinstance(tree, dict) else None
    if group is not None:
        tree["appGroupName"] = scalar(group, "instance.appGroupName").upper()
    return tree


def _lost_digits(tree: Any) -> bool:
    """Whether the fast parser lost digits of numbers that a client sent in the place of texts.

    The original keeps such a number as it was written: ``1.50``, ``-0``, any length. The fast
    parser makes a float of a fraction, an exponent or more than 64 bits, and 0 of ``-0``, which
    ``_has_minus_zero`` looks for. Every registration is checked here, so only fields that are texts
    are looked at.
    """
    if type(tree) is not dict:
        return False
    metadata, center = tree.get("metadata"), tree.get("dataCenterInfo")
    return (
        float in map(type, tree.values())
        or (type(metadata) is dict and float in map(type, metadata.values()))
        or (type(center) is dict and len(center) > 2 and _center_lost_digits(center))
    )


def _center_lost_digits(center: Tree) -> bool:
    metadata = center.get("metadata")
    return float in map(type, center.values()) or (
        type(metadata) is dict and float in map(type, metadata.values())
    )


def _has_minus_zero(body: bytes) -> bool:
    return b"-0" in body and _MINUS_ZERO.search(body) is not None


_MINUS_ZERO = re.compile(rb"[:\s]-0\s*[,}]")


_JSON_BLANKS = " \t\r\n"


def _read_exactly(body: bytes) -> Any:
    """As ``read_json``, by a slower parser, which keeps all numbers as they were written."""
    text, reason = _json_text(body)
    try:
        document, _ = _exact_decoder.raw_decode(text.lstrip(_JSON_BLANKS))
    except RecursionError:
        raise ParseError("not JSON: too many levels inside each other") from None
    except ValueError as error:
        raise ParseError(f"not JSON: {reason or error}") from None
    return _without_halves(document) if _SURROGATE.search(text) or "\\u" in text else document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_exact_decoder = json.JSONDecoder(
    parse_int=Digits, parse_float=Digits, parse_constant=_no_constant, strict=True
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def _json_text(body: bytes) -> tuple[str, str]:
    """The text that a JSON body begins with, and where it ends early, why.

    Its encoding is told by a byte order mark, or by where the first characters, which are ASCII,
    have their zeros. Halves of surrogate pairs are let through.
    """
    encoding = _by_first_bytes(body) or "utf-8"
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode(encoding, "surrogatepass"), ""
    except UnicodeDecodeError as error:
        # The document may have ended before; what comes after it is ignored.
        return body[: error.start].decode(encoding, "surrogatepass"), str(error)


def _by_first_bytes(body: bytes) -> str | None:
    """The encoding that the first bytes show, where that is UTF-16 or UTF-32."""
    first = body[:4]
    if first in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    zeros = tuple(not byte for byte in first)
    if zeros[:4] == (True, True, True, False):
        return "utf-32-be"
    if zeros[:4] == (False, True, True, True):
        return "utf-32-le"
    if zeros[:2] == (True, False):
        return "utf-16-be"
    return "utf-16-le" if zeros[:2] == (False, True) else None


def _without_halves(value: Any) -> Any:
    """The value with pairs of surrogates joined and a question mark for each half of one."""
    if isinstance(value, dict):
        return {_whole_text(key): _without_halves(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    return _whole_text(value) if isinstance(value, str) else value


def _whole_text(text: str) -> str:
    if not _SURROGATE.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return joined.encode("utf-8", "replace").decode()


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
    To those that know namespaces a colon parts a prefix from a name, and a prefix that nobody
    declared makes them refuse the whole answer.
    """
    if character == ":":
        return False
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


_ESCAPED = re.compile(r"__|_-|((?:_\.[0-9a-fA-F]{4})+)")


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
        if name == "metadata":
            tag = encode_name(child)
        else:
            tag = "overriddenstatus" if child == "overriddenStatus" else child
        _write(out, tag, item, depth + 1, indent)
    out.append(f"{space}</{name}>{end}")


# XML in

# Larger bodies are read bit by bit, so that one that is too deep is not read to its end.
_XML_CHUNK = 4096
_DECLARED = re.compile(r"""<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
# Python has these encodings and XML has not, or their bytes look like other characters.
_NO_XML_ENCODINGS = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
)
_EBCDIC_DECLARATION = "<?xm".encode("cp037")


class _Expat:
    """expat as xmltodict uses it, but refusing document types, and elements that are too deep."""

    def __init__(self) -> None:
        self._parser: Any = None

    def ParserCreate(self, encoding: str, separator: str | None) -> Any:  # noqa: N802
        self._parser = expat.ParserCreate(encoding, separator)
        self._parser.StartDoctypeDeclHandler = self._refuse
        return self._parser

    @staticmethod
    def _refuse(*_: Any) -> NoReturn:
        raise ParseError("XML: a document type is not accepted")

    def chunks(self, body: bytes) -> Generator[bytes, None, None]:
        """The body, piece by piece; ``ParseError`` once an element is too deep."""
        for start in range(0, len(body), _XML_CHUNK):
            yield body[start : start + _XML_CHUNK]
            # The path is that of xmltodict's handler, which is asked for each element.
            if len(self._parser.StartElementHandler.__self__.path) > MAX_XML_DEPTH:
                raise _too_deep()


def _too_deep() -> ParseError:
    return ParseError(f"XML: more than {MAX_XML_DEPTH} elements inside each other")


def read_xml(body: bytes) -> Tree:
    """A document as xmltodict spells it, with its blanks.

    ``ParseError`` where it is not XML, is too deep, or has a document type.
    """
    source = _xml_source(body)
    parser = _Expat()
    try:
        found: Tree | None = xmltodict.parse(
            parser.chunks(source) if len(source) > _XML_CHUNK else source,
            encoding="utf-8",
            expat=parser,
            strip_whitespace=False,
        )
    except (expat.ExpatError, ValueError) as error:
        if isinstance(error, ParseError):
            raise
        raise ParseError(f"not XML: {error}") from error
    assert found is not None  # expat refuses what has no root
    if not _is_shallow(found, MAX_XML_DEPTH):
        raise _too_deep()
    return found


def _is_shallow(tree: Tree, levels: int) -> bool:
    """Whether no element has more than so many levels in it, its own among them."""
    for name, value in tree.items():
        for item in value if type(value) is list else (value,):
            if not levels and name[0] not in "@#":
                return False
            if type(item) is dict and not _is_shallow(item, levels - 1):
                return False
    return True


def _xml_source(body: bytes) -> bytes:
    """The body in UTF-8."""
    encoding = _by_first_bytes(body)
    if encoding is None and body[:5] == b"<?xml":
        encoding = _declared(body[:1024].decode("latin-1"))
    elif encoding is None and body[:4] == _EBCDIC_DECLARATION:
        encoding = _declared(body[:1024].decode("cp037"))
    if encoding is None:
        return body
    try:
        text = body.decode(encoding)
    except (LookupError, ValueError) as error:
        raise ParseError(f"not XML: {error}") from error
    return text.encode()


def _declared(beginning: str) -> str | None:
    """The encoding that an XML declaration names, where that is not UTF-8; ``ParseError``."""
    declared = _DECLARED.match(beginning)
    if declared is None:
        return None
    try:
        name = codecs.lookup(declared[1]).name
    except LookupError as error:
        raise ParseError(f"not XML: {error}") from None
    if name in _NO_XML_ENCODINGS:
        raise ParseError(f"not XML: unknown encoding: {declared[1]}")
    if name.startswith(("utf-16", "utf-32")):
        raise ParseError(f"not XML: it is said to be {declared[1]}, and is not")
    return None if name == "utf-8" else name


_ROOTS = ("instance", "com.netflix.appinfo.InstanceInfo")


def instance_tree_from_xml(body: bytes) -> Tree:
    """The tree of a document with the root ``instance``, its XML spellings put as JSON has them."""
    ((root, children),) = read_xml(body).items()
    if root not in _ROOTS:
        raise ParseError("expected the root element instance")
    tree: Tree = {}
    for name, value in _children(children):
        reader = _XML_READERS.get(name)
        tree[name] = reader(name, value) if reader is not None else _xml_text(value)
    for name in ("lastDirtyTimestamp", "lastUpdatedTimestamp"):
        if name in tree and (number := _xml_number(tree.pop(name), 64)) is not None:
            tree[name] = number
    return tree


def _children(element: Any) -> Iterator[tuple[str, Any]]:
    """The elements inside one; where a name comes again, the last of them."""
    if type(element) is dict:
        for name, value in element.items():
            if name[0] not in "@#":
                yield (
                    decode_name(name) if "_" in name else name,
                    value[-1] if type(value) is list else value,
                )


def _xml_text(element: Any) -> str:
    """An element's own character data."""
    if type(element) is dict:
        element = element.get("#text")
    return element or ""


_XML_NUMBER = re.compile(r"[+-]?\d+")


def _xml_number(text: str, bits: int) -> int | None:
    """Digits, of any script, and nothing beside them; None for all else."""
    if not _XML_NUMBER.fullmatch(text) or len(text) > 100:
        return None
    number = int(text)
    return number if -(1 << bits - 1) <= number < 1 << bits - 1 else None


def _xml_status(_: str, element: Any) -> str:
    return _xml_text(element).upper()


def _xml_whole(name: str, element: Any) -> int:
    number = _xml_number(_xml_text(element), 32)
    if number is None:
        raise ParseError(f"instance.{name}: expected a number, without white space")
    return number


def _xml_port(name: str, element: Any) -> Tree:
    flag = element.get("@enabled", "") if type(element) is dict else ""
    enabled = flag != "false" if name == "port" else flag == "true"
    return {"$": _xml_whole(name, element), "@enabled": enabled}


def _xml_lease(_: str, element: Any) -> Tree:
    tree: Tree = {}
    for name, value in _children(element):
        number = _xml_number(_xml_text(value), 64)
        if number is not None:
            # The original cuts what is longer than 32 bits off.
            tree[name] = (number + (1 << 31)) % (1 << 32) - (1 << 31)
    return tree


def _xml_map(_: str, element: Any) -> Tree:
    return {name: _xml_text(value) for name, value in _children(element)}


def _xml_data_center(_: str, element: Any) -> Tree:
    children = dict(_children(element))
    tree: Tree = {"@class": DEFAULT_CLASS}
    if "name" in children:
        tree["name"] = _xml_text(children["name"])
        if tree["name"].lower() == "amazon":
            metadata = _xml_map("metadata", children.get("metadata"))
            return {"@class": AMAZON_CLASS, "name": "Amazon", "metadata": metadata}
    return tree


_XML_READERS = {
    "status": _xml_status,
    "overriddenstatus": _xml_status,
    "overriddenStatus": _xml_status,
    "port": _xml_port,
    "securePort": _xml_port,
    "countryId": _xml_whole,
    "metadata": _xml_map,
    "leaseInfo": _xml_lease,
    "dataCenterInfo": _xml_data_center,
}
