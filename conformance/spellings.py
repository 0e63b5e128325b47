"""How the same request may be written: bytes of a body, and ways to a path."""

from __future__ import annotations

import codecs
from collections.abc import Callable

Spelling = Callable[[str], bytes]
"""From a body's text to its bytes."""

Dress = Callable[[str, str], str]
"""From a server's base and a path below it to what is sent."""


def _encoded(name: str) -> Spelling:
    return lambda text: text.encode(name, "surrogatepass")


def _declared(name: str) -> Spelling:
    return lambda text: (f'<?xml version="1.0" encoding="{name}"?>\n' + text).encode(
        name, "xmlcharrefreplace"
    )


def _followed(tail: bytes) -> Spelling:
    return lambda text: text.encode("utf-8", "surrogatepass") + tail


JSON_SPELLINGS: dict[str, Spelling] = {
    "utf-8": _encoded("utf-8"),
    "a mark": lambda text: codecs.BOM_UTF8 + text.encode("utf-8", "surrogatepass"),
    **{name: _encoded(name) for name in ("utf-16", "utf-16-le", "utf-16-be")},
    **{name: _encoded(name) for name in ("utf-32", "utf-32-le", "utf-32-be")},
    **{f"{tail!r} after it": _followed(tail) for tail in (b"\0", b";", b"}", b"\x1a", b" {}")},
}
XML_SPELLINGS: dict[str, Spelling] = {
    "plain": _encoded("utf-8"),
    "an xml mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    **{
        f"declared {name}": _declared(name)
        for name in ("UTF-8", "ISO-8859-1", "ISO-8859-15", "windows-1252", "GBK", "UTF-16")
    },
    "declared wrongly": lambda text: b'<?xml version="1.0" encoding="x-none"?>' + text.encode(),
}
SPELLINGS = JSON_SPELLINGS | XML_SPELLINGS


def plain(base: str, path: str) -> str:
    """The path as it is."""
    return base + path


def _with_parameters(base: str, path: str) -> str:
    bare, mark, query = (base + path).partition("?")
    return "/".join(part + ";a=b" if part else part for part in bare.split("/")) + mark + query


def _encoded_base(base: str, path: str) -> str:
    return f"/%{ord(base[1]):02x}{base[2:]}{path}" if base else path


def _version(name: str) -> Dress:
    return lambda base, path: f"{base}/{name}{path}"


DRESSES: dict[str, Dress] = {
    "plain": plain,
    "slashes": lambda base, path: "//" + base + path,
    "a dot": lambda base, path: "/." + base + path,
    "a way back": lambda base, path: "/x/.." + base + path,
    "an encoded base": _encoded_base,
    "parameters": _with_parameters,
    **{name: _version(name) for name in ("v2", "v2%20", "v2.0", "v2x", "v2;a=b")},
}
