"""What may be shown: URLs without their secrets, and text from outside that stays on its line.

The one place for both, for the server and for the sidecar alike; needs the standard library only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from urllib.parse import urlsplit

# A secret may hold quotes: rather too much is left out than a part of one shown.
_USER = re.compile(r"(?<=//)[^/?#\s]*@")


def _spelled(word: str) -> str:
    """A path's segment, as it is and with letters percent-encoded, with its parameters."""
    return "".join(f"(?:{c}|%{ord(c):02x}|%{ord(c):02X})" for c in word) + r"(?:;[^/?#\s]*)?"


# Segments that a path is read without, and the slash before the next.
_ON = r"/(?:(?:\.|%2[eE])?(?:;[^/?#\s]*)?/)*"
# A token stands in the path of clients that can send no header; an application may be called "n".
_PATH_TOKEN = re.compile(
    rf"((?<!/apps)/{_spelled('n')}{_ON}"
    rf"|/{_spelled('api')}{_ON}(?:[^?#\s]{{1,64}}?/\.\.{_ON})?{_spelled('eureka')}{_ON}"
    r"(?!v2/(?!v2(?:/|\b)))(?=[^/?#\s]*/v2(?:/|\b)))[^/?#\s]+"
)
# A query's parameter up to its value, whatever stands in its name; each letter is read once, for
# the text is anybody's.
_PARAMETER = re.compile(r"[?&;][^=&\s\"']*")
_SECRET_NAME = re.compile(
    r"""token|passw(?:or)?d|passwd|pwd|secret|credential|api[_-]?key|access[_-]?key|sig(?:nature)?
    |[?&;](?:key|auth|jwt|pass)\Z""",
    re.IGNORECASE | re.VERBOSE,
)
_VALUE = re.compile(r"=[^&#\s]+")
_HEADER_SECRET = re.compile(r"\b(Basic|Bearer)\s+[A-Za-z0-9+/=._~-]{6,}", re.IGNORECASE)
# Controls, what else ends a line, what turns the direction of writing, and halves of characters.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

caller: ContextVar[object] = ContextVar("caller", default="")
"""Who asks for what this thread does: as text what a line of the log says, empty where nobody."""


def masked(text: str) -> str:
    """Any text, its URLs without accounts, tokens in paths and secrets in queries."""
    if "//" in text:
        text = _USER.sub("…@", text)
    if "/n" in text or "/eureka" in text or "%" in text:
        text = _PATH_TOKEN.sub(r"\1…", text)
    if "=" in text:
        text = "".join(_without_values(text))
    return _HEADER_SECRET.sub(r"\1 …", text)


def _without_values(text: str) -> Iterator[str]:
    """A text, in parts, without the values of parameters whose names sound secret."""
    end = 0
    while (parameter := _PARAMETER.search(text, end)) is not None:
        value = _VALUE.match(text, parameter.end())
        yield text[end : parameter.end()]
        end = parameter.end()
        if value is not None and _SECRET_NAME.search(parameter[0]):
            yield "=…"
            end = value.end()
    yield text[end:]


def masked_url(url: str) -> str:
    """A URL without its account, the tokens in its path, its query and its fragment.

    It may name several hosts, parted by commas.
    Of one that is not well formed hardly anything is shown: what looks like a path may be the rest
    of a password.
    """
    try:
        parts = urlsplit(url)
        places = [_place(each) for each in parts.netloc.rpartition("@")[2].split(",")]
    except ValueError:
        return "…"
    if not all(places) or any("@" in rest for rest in (parts.path, parts.query, parts.fragment)):
        return f"{parts.scheme}://…" if parts.netloc else "…"
    return escaped(masked(f"{parts.scheme}://{','.join(places)}{parts.path}"))


def _place(text: str) -> str:
    """A host with its port, or nothing; ``ValueError`` where it is neither."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if parts.port is None else f"{host}:{parts.port}"


def escaped(text: str) -> str:
    """Text from outside as a part of one line, which it can neither end nor colour."""
    return _UNSAFE.sub(_spelled_out, text)


def _spelled_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


class LineFormatter(logging.Formatter):
    """One line for each record, masked and escaped, with who asked; a traceback is set in."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as it is written."""
        who = str(caller.get())
        record.caller = f" [{who}]" if who else ""
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line itself."""
        return escaped(masked(super().formatMessage(record)))

    def formatException(self, ei: object) -> str:  # noqa: N802  # logging's name
        """A traceback, each line set in, so that none can be taken for a record's own."""
        return _set_in(super().formatException(ei))  # type: ignore[arg-type]  # logging's triple

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  # logging's name
        """A stack, set in as a traceback is."""
        return _set_in(super().formatStack(stack_info))


def _set_in(text: str) -> str:
    return "\n".join(f"    {escaped(masked(line))}" for line in text.split("\n"))
