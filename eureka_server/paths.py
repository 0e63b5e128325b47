"""Paths as the original's servlet container takes them.

What normalises to the protocol's base is the base, and what stands behind a semicolon in a segment
is left out.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes

from eureka_server.credentials import text_of

EUREKA = "/eureka"
"""The base of the Eureka protocol."""

_PARAMETERS = re.compile(r";[^/]*")
_NO_SEGMENT, _EMPTY_SEGMENTS = frozenset("/."), re.compile(r"\A(?:\.?/)+")
_NAMESPACE_OR_VERSION = frozenset("nv")
_OTHER_BASE, _VERSION = ["api", "eureka"], "v2"
_NAMESPACE = re.compile(r"(?:v2[^/]*/)?n/([^/]*)/?(.*)", re.DOTALL)


def normalised(path: str) -> str | None:
    """An odd path to something below the protocol's base, with that base as it is; None else.

    Empty segments and dots before the base are passed over, ``..`` goes back, and the base itself
    may be percent-encoded. What is below stays as it was sent. ``/api/eureka`` is a base as well,
    as the Amalgam8 registry has it: the version is below it, or a token and then the version.
    """
    before: list[str] = []
    segments = path.split("/")
    for place, segment in enumerate(segments):
        name = segment.partition(";")[0]
        if name == "..":
            if not before:
                return None
            before.pop()
            continue
        name = unquote(name)
        if name in ("", "."):
            continue
        before.append(name)
        if before == [EUREKA[1:]]:
            return "/".join((EUREKA, *segments[place + 1 :]))
        if before == _OTHER_BASE:
            return _below_other_base(segments[place + 1 :])
    return None


def below_eureka(path: str) -> tuple[str, str | None]:
    """The path below Eureka's base without a token, and the token where one is there.

    Clients that can send no header have it in the path, before or after the version.
    """
    rest = path[len(EUREKA) + 1 :]
    if ";" in rest:
        rest = _PARAMETERS.sub("", rest)
    if rest[:1] in _NO_SEGMENT:
        rest = _EMPTY_SEGMENTS.sub("", rest)
    if rest[:1] in _NAMESPACE_OR_VERSION:
        found = _NAMESPACE.match(rest)
        if found is not None:
            return found[2], text_of(unquote_to_bytes(found[1]))
    return rest, None


def _below_other_base(segments: list[str]) -> str | None:
    if segments[1:2] == [_VERSION]:
        return "/".join((EUREKA, "n", *segments))
    return "/".join((EUREKA, *segments)) if segments[:1] == [_VERSION] else None


def is_below(path: str, base: str) -> bool:
    """Whether a path is this base, or something below it."""
    return path.startswith(base) and (len(path) == len(base) or path[len(base)] == "/")
