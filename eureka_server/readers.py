"""How the values of settings are written, and what each text means.

``Spelling.read`` raises ``ValueError`` for any other text; its message says what was expected.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogs import read_catalogs
from eureka_compat.peers.membership import read_url
from eureka_server.access import Network
from eureka_server.spring_config import locations
from registry import folder_of


@dataclass(frozen=True, slots=True)
class Spelling:
    """``form`` is what a value looks like, for the help; ``read`` is what a text means."""

    form: str
    read: Callable[[str], Any]


def whole(low: int, high: int, form: str = "N") -> Spelling:
    """A whole number within these bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return Spelling(form, read)


def choice(*words: str) -> Spelling:
    """One of these words, in capitals or not."""

    def read(text: str) -> str:
        if text.strip().lower() not in words:
            raise ValueError(" or ".join(words))
        return text.strip().lower()

    return Spelling("|".join(words), read)


def _boolean(text: str) -> bool:
    value = text.strip().lower()
    if value in ("true", "yes", "on", "1"):
        return True
    if value in ("false", "no", "off", "0"):
        return False
    raise ValueError("true or false")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError("a number above 0, up to 1")
    return value


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text.strip()


def _file(text: str) -> Path:
    # Unlike Path's own, this knows an answer where the system refuses to look.
    if not os.path.isfile(text):
        raise ValueError("a file that can be read")
    return Path(text)


def _path(text: str) -> Path:
    if not os.path.exists(text):
        raise ValueError("a file, or a folder of files, that can be read")
    return Path(text)


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("addresses or networks, such as 10.0.0.0/8, parted by commas") from None


def _network(text: str) -> Network:
    """A network, of IPv4 as such where it is written in IPv6's way: peers are compared so."""
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def _store_url(text: str) -> str:
    try:
        folder_of(text)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("expected ")) from None
    return text


def _urls(text: str) -> tuple[str, ...]:
    """Service URLs, or the file that holds them: they may hold passwords."""
    if text.startswith(("/", ".")) and os.path.isfile(text):
        try:
            text = Path(text).read_text()
        except (OSError, UnicodeDecodeError):
            raise ValueError("service URLs, or a file of them that can be read") from None
    urls = tuple(url for url in re.split(r"[\s,]+", text) if url)
    for url in urls:
        _url(url)
    return urls


def _url(text: str) -> str:
    try:
        read_url(text)
    except ValueError as error:
        raise ValueError(f"http:// or https:// service URLs ({error})") from None
    return text


# What stands on each side of a slash is a word that needs no escape, and not a dot alone.
_PAGE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*/?")
_TAKEN = ("eureka", "api", "health", "actuator", "metrics", "uptime", "dashboard", "lastn")


def _page_path(text: str) -> str:
    path = text.strip()
    # Spring takes one without the slash before it too.
    path = path if path.startswith("/") else f"/{path}"
    if _PAGE_PATH.fullmatch(path) is None or path.split("/")[1] in _TAKEN:
        raise ValueError("a path such as / or /ops/registry, below no other of this server's")
    return path


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _interval(text: str) -> int:
    """Seconds; the original takes 30 for a value that is not positive."""
    value: int = whole(-(2**31), 2**31).read(text)
    return value if value > 0 else 30


_DURATION = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LONGEST = 3_650 * _DURATION["d"]
_SMALLEST, _LARGEST = 4 << 20, 1 << 40


def _duration(text: str) -> int:
    """Milliseconds; 0 for never."""
    found = re.fullmatch(r"([0-9]{1,9})\s*([smhd])", text.strip())
    value = 0 if text.strip() == "0" else -1
    if found:
        value = int(found[1]) * _DURATION[found[2]]
    if not 0 <= value <= _LONGEST:
        raise ValueError("a number with s, m, h or d behind it, up to 3650d, or 0")
    return value


def _size(text: str) -> int:
    """Bytes; 0 for none."""
    found = re.fullmatch(r"([0-9]{1,13})\s*(KiB|MiB|GiB)?", text.strip())
    value = int(found[1]) * _SIZE.get(found[2], 1) if found else -1
    if value and not _SMALLEST <= value <= _LARGEST:
        raise ValueError("bytes, or a number with KiB, MiB or GiB behind it, from 4MiB, or 0")
    return value


BOOLEAN = Spelling("true|false", _boolean)
INVERTED = Spelling("true|false", lambda text: not _boolean(text))
SHARE = Spelling("SHARE", _share)
TEXT = Spelling("TEXT", str)
WORDS = Spelling("TEXT", _words)
FILE = Spelling("FILE", _file)
PATH = Spelling("PATH", _path)
NETWORKS = Spelling("NETWORK,…", _networks)
PAGE_PATH = Spelling("/PATH", _page_path)
NAMES = Spelling("NAME,…", _list)
SPRING_CONFIG = Spelling("FILE,…", locations)
URL = Spelling("URL", _url)
URLS = Spelling("URL,…", _urls)
DURATION = Spelling("7d", _duration)
SIZE = Spelling("256MiB", _size)
STORE_URL = Spelling("memory:|lmdb:PATH|redis://…", _store_url)
CATALOGS = Spelling("YAML|FILE", read_catalogs)
INTERVAL = Spelling("SECONDS", _interval)
MILLISECONDS = whole(0, 2**53, "MS")
POSITIVE_MILLISECONDS = whole(1, 2**53, "MS")
