"""Reads the ``application.yml`` or ``.properties`` that configures the server being replaced.

Names are Spring's, relaxed as there: ``enable-self-preservation`` and ``enableSelfPreservation``
are one property, and a later document or file counts before an earlier one. Netflix's own names
(``eureka.enableSelfPreservation`` without ``server.``) are read as well. What has a meaning here
becomes a setting, below what the environment says; of all else a warning names the reason.
Source: protocol sections 10 and 11.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eureka_server.foreign_settings import (
    DEFAULT_ZONE,
    SPRING,
    ZONES,
    is_region,
    is_zone,
    reduced,
)

Given = dict[str, tuple[str, str]]
"""A setting's key → the name that it was given under, and the text."""

_ENDINGS = (".yml", ".yaml", ".properties")  # the later one counts before the earlier
_DEEPEST = 50
_PROFILE = "spring.config.activate.onprofile"
_OLD_PROFILE = "spring.profiles"
_ACTIVE = "spring.profiles.active"
_READ = ("eureka.", "server.", "spring.application.name")

# What Spring spells otherwise than as a variable of the same name.
_MEANT = {
    "server.ssl.certificate": "TLS_CERT_FILE",
    "server.ssl.certificateprivatekey": "TLS_KEY_FILE",
}
_TLS_SWITCH = "server.ssl.enabled"
_ACCOUNTS = (
    "no account is taken from there; without REGISTRY_AUTH=basic and REGISTRY_USERS_FILE everybody"
    " may register"
)
# The longest that a name begins with counts.
_REASONS = {
    "server.": "it is the servlet container's, and there is none here",
    "server.compression": "answers are compressed for clients that ask for it",
    "server.forwardheadersstrategy": "proxies are believed that REGISTRY_TRUSTED_PROXIES names",
    "server.servlet.contextpath": "paths begin at /; let a proxy take the prefix away",
    "server.shutdown": "each stop is graceful",
    "server.ssl": "TLS is served with TLS_CERT_FILE and TLS_KEY_FILE, in PEM, and clients'"
    " certificates are checked with TLS_CLIENT_CA_FILE",
    "eureka.datacenter": "nothing shows it",
    "spring.security.user": _ACCOUNTS,
    "security.user": _ACCOUNTS,
    "security.basic": _ACCOUNTS,
    "spring.config.import": "no other file is read; SPRING_CONFIG_LOCATION may name several",
    "spring.profiles": "SPRING_PROFILES_ACTIVE names the profiles",
}
_OTHERS = "only server.*, eureka.* and spring.application.name are read"

# Netflix's names that are not those of Spring's server without the prefix.
_SPRINGS = ("server", "client", "instance", "environment", "datacenter", "dashboard")
_NETFLIX = {
    "registration.enabled": "EUREKA_CLIENT_REGISTERWITHEUREKA",
    "shouldfetchregistry": "EUREKA_CLIENT_FETCHREGISTRY",
    "name": "SPRING_APPLICATION_NAME",
    "serviceurl.default": DEFAULT_ZONE,
}
_NETFLIX_REASONS = {
    "eureka.port": "the port to listen on is PORT",
    "eureka.shouldusedns": "peers are named by service URLs",
    "eureka.eurekaserver": "peers are named by service URLs",
    "eureka.region": "each zone that has service URLs is a peer",
    "eureka.prefersamezone": "each zone that has service URLs is a peer",
    "eureka.vipaddress": "its own entry is made of its host, port and application",
}


class Property(NamedTuple):
    """A property as its file has it."""

    source: str
    name: str
    value: str

    @property
    def shown(self) -> str:
        """How a line for the operator names it."""
        return f"{self.source}: {self.name}"


Properties = dict[str, Property]
"""Canonical name → the property."""


@dataclass(frozen=True, slots=True)
class SpringConfig:
    """What files say: settings of this server, and a line for each property that changes none."""

    given: Given
    warnings: tuple[str, ...] = ()


# Places


def locations(text: str) -> tuple[str, ...]:
    """The words of ``SPRING_CONFIG_LOCATION``; ``ValueError`` where a file is not there."""
    words = tuple(word.strip() for word in re.split("[,;]", text) if word.strip())
    for word in words:
        path, is_optional = _place(word)
        if path is None or is_optional:
            continue
        if not os.path.exists(path) or (path.is_dir() and not _files(path)):
            raise ValueError("files, or folders with an application.yml or .properties")
        if path.is_file() and path.suffix not in _ENDINGS:
            raise ValueError(f"files that end in {', '.join(_ENDINGS)}")
    return words


def _place(word: str) -> tuple[Path | None, bool]:
    """The path that a location names, None within the old server's archive; and if it may lack."""
    rest = word.removeprefix("optional:")
    is_optional = rest != word
    if rest.startswith(("classpath:", "classpath*:", "configtree:")):
        return None, is_optional
    if rest.startswith("file:"):
        rest = re.sub(r"\A/+", "/", rest.removeprefix("file:"))
    return Path(rest), is_optional


def _files(path: Path, profile: str = "") -> list[Path]:
    """The files that a location stands for, in the order in which they count."""
    end = f"-{profile}" if profile else ""
    if path.is_dir():
        names = [f"application{end}{ending}" for ending in _ENDINGS]
    else:
        names = [f"{path.stem}{end}{path.suffix}"]
        path = path.parent
    return [path / name for name in names if (path / name).is_file()]


# Reading


def read_config(
    words: Iterable[str],
    profiles: Collection[str],
    environ: Mapping[str, str],
    own: Mapping[str, tuple[str, str]],
    known: Collection[str],
) -> SpringConfig:
    """Read the files at these locations; ``ValueError`` names the file and what is wrong with it.

    ``own`` are this server's settings that the environment sets: they count in placeholders too.
    ``known`` are the keys of all settings.
    """
    paths, warnings = [], []
    for word in words:
        path, _ = _place(word)
        if path is not None:
            paths.append(path)
        else:
            reason = "only files and folders are read, nothing of the old server's archive"
            warnings.append(f"SPRING_CONFIG_LOCATION: {word} has no effect here: {reason}")
    documents = [each for path in paths for file in _files(path) for each in _documents(file)]
    active = list(profiles) or _active(documents) or ["default"]
    for path in paths:
        for profile in active:
            for file in _files(path, profile):
                documents.extend(_documents(file))
    merged: Properties = {}
    for document in documents:
        if _is_active(document, active):
            merged.update(document)
    given, told = _settings(merged, _Placeholders(merged, environ, own), known)
    return SpringConfig(given, (*warnings, *told))


def _documents(file: Path) -> list[Properties]:
    """The documents of a file, in its order."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    if file.suffix == ".properties":
        pairs = list(_java_properties(_text(data)))
    else:
        pairs = list(_yaml_properties(file, data))
    return [
        {canonical(name): Property(str(file), name, value) for name, value in document}
        for document in pairs
    ]


def _yaml_properties(file: Path, data: bytes) -> Iterator[list[tuple[str, str]]]:
    try:
        for document in yaml.safe_load_all(data):
            if document is None:
                continue
            if not isinstance(document, Mapping):
                raise ValueError(f"{file}: expected properties with their values")
            yield list(_flat("", document, file))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise ValueError(f"{file}:{line} not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise ValueError(f"{file}: not YAML") from None


def _flat(prefix: str, value: Any, file: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    """What stands below a name, each with its dotted name; a list of scalars is one value."""
    if depth > _DEEPEST:
        raise ValueError(f"{file}: {prefix[:80]}… lies too deep")
    if isinstance(value, Mapping):
        for name, below in value.items():
            part = str(name).strip("[]")
            yield from _flat(f"{prefix}.{part}" if prefix else part, below, file, depth + 1)
    elif isinstance(value, list):
        if any(isinstance(item, Mapping | list) for item in value):
            for number, item in enumerate(value):
                yield from _flat(f"{prefix}[{number}]", item, file, depth + 1)
        else:
            yield prefix, ",".join(map(_scalar, value))
    else:
        yield prefix, _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(data: bytes) -> str:
    """Java's files are in Latin 1 by tradition, and in UTF-8 of late."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


_PAIR = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def _java_properties(text: str) -> Iterator[list[tuple[str, str]]]:
    """Documents are parted by ``#---``. Source: java.util.Properties, and Spring for that line."""
    document: list[tuple[str, str]] = []
    begun = ""
    for raw in re.split(r"\r\n|\r|\n", text):
        line = begun + raw.lstrip(" \t\f")
        if not begun and line[:1] in ("", "#", "!"):
            if line.rstrip() in ("#---", "!---"):
                yield document
                document = []
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            begun = line[:-1]
            continue
        begun = ""
        document.append(_pair(line))
    if begun:
        document.append(_pair(begun))
    yield document


def _pair(line: str) -> tuple[str, str]:
    found = _PAIR.fullmatch(line)
    assert found is not None  # it takes any text
    return _unescaped(found[1]), _unescaped(found[2])


def _unescaped(text: str) -> str:
    def meant(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return _CONTROLS.get(match[2], match[2])

    return _ESCAPE.sub(meant, text)


# Profiles


def _active(documents: Iterable[Properties]) -> list[str]:
    """The profiles that the files themselves make active."""
    told = ""
    for document in documents:
        if _condition(document) is None and _ACTIVE in document:
            told = document[_ACTIVE].value
    return [word.strip() for word in told.split(",") if word.strip()]


def _condition(document: Properties) -> Property | None:
    return document.get(_PROFILE) or document.get(_OLD_PROFILE)


def _is_active(document: Properties, active: Collection[str]) -> bool:
    """Whether a document counts: ``a``, ``!a``, ``a & b``, ``a | b``, or a list of such."""
    condition = _condition(document)
    if condition is None or not condition.value.strip():
        return True
    if "(" in condition.value:
        raise ValueError(f"{condition.shown}: expected profiles without parentheses")

    def holds(term: str) -> bool:
        name = term.strip()
        return name[1:].strip() not in active if name.startswith("!") else name in active

    ways = re.split("[,|]", condition.value)
    return any(all(map(holds, way.split("&"))) for way in ways)


# Names


def canonical(name: str) -> str:
    """A property's name without what may differ between two spellings of it."""
    return ".".join(re.sub("[-_]", "", part).lower() for part in name.split("."))


def _key(name: str) -> str:
    """The key of the variable that stands for a property (canonical), as ``reduced`` has it."""
    first, _, rest = name.partition(".")
    if first == "eureka" and rest.partition(".")[0] not in _SPRINGS:
        if rest in _NETFLIX:
            return _NETFLIX[rest]
        zone = rest.removeprefix("serviceurl.")
        flat = rest.replace(".", "").upper()
        return ZONES + zone.upper() if zone != rest else f"EUREKA_SERVER_{flat}"
    return reduced(name.replace(".", "_").upper())


def _target(name: str, known: Collection[str]) -> str | None:
    """The key of the setting that a property (canonical) is here; None for none."""
    if not name.startswith(_READ):
        return None
    key = _key(name)
    if name in _MEANT:
        return _MEANT[name]
    if key in SPRING.meant:
        return SPRING.meant[key][0]
    return key if key in known or is_zone(key) or is_region(key) else None


def _settings(
    merged: Properties, placeholders: _Placeholders, known: Collection[str]
) -> tuple[Given, list[str]]:
    """What becomes a setting, and a line for all else."""
    given: Given = {}
    others: dict[str, str] = {}
    without_tls = _TLS_SWITCH in merged and _is_off(merged[_TLS_SWITCH].value)
    for name, told in merged.items():
        target = _target(name, known)
        if target is None:
            if name not in (_PROFILE, _OLD_PROFILE, _ACTIVE, _TLS_SWITCH):
                subject, reason = _without_effect(name, told, known)
                others.setdefault(subject, f"{subject} has no effect here: {reason}")
        elif told.value and not (without_tls and name in _MEANT):
            value = placeholders.resolved(told.value, told)
            if name in _MEANT:
                value = value.removeprefix("file:")
            key = _key(name)
            spelled = SPRING.meant[key][1](value) if key in SPRING.meant else value
            given[target] = (told.shown, spelled)
    return given, list(others.values())


def _is_off(text: str) -> bool:
    return text.strip().lower() in ("false", "no", "off", "0")


def _without_effect(name: str, told: Property, known: Collection[str]) -> tuple[str, str]:
    """What a line names, and the reason: properties of no interest here are named together."""
    reasons = _REASONS | _NETFLIX_REASONS
    beginnings = [beginning for beginning in reasons if name.startswith(beginning)]
    if beginnings:
        return told.shown, reasons[max(beginnings, key=len)]
    if name.startswith("eureka."):
        return told.shown, SPRING.reason(_key(name), known)
    parts = told.name.split(".")
    group = parts[: 2 if parts[0] == "spring" else 1]
    shown = ".".join(group) + (".*" if len(parts) > len(group) else "")
    return f"{told.source}: {shown}", _OTHERS


# Placeholders


class _Placeholders:
    """``${name}`` and ``${name:default}``, from the environment first, then from the files."""

    def __init__(
        self,
        properties: Properties,
        environ: Mapping[str, str],
        own: Mapping[str, tuple[str, str]],
    ) -> None:
        self._properties = properties
        self._environ = environ
        self._own = own

    def resolved(self, text: str, told: Property, within: tuple[str, ...] = ()) -> str:
        """The text without placeholders; ``ValueError`` where one has no value."""
        found, place = "", 0
        while (start := text.find("${", place)) >= 0:
            end = _closing(text, start)
            if end < 0:
                break
            name, colon, default = text[start + 2 : end].partition(":")
            value = self._value(name.strip(), told, within)
            if value is None and not colon:
                raise ValueError(f"{told.shown}: ${{{name}}} is set nowhere")
            if value is None:
                value = self.resolved(default, told, within)
            found += text[place:start] + value
            place = end + 1
        return found + text[place:]

    def _value(self, name: str, told: Property, within: tuple[str, ...]) -> str | None:
        same = canonical(name)
        key = _key(same)
        # A setting of this server's counts before the property that it stands for.
        target = SPRING.meant[key][0] if key in SPRING.meant else key
        if target in self._own:
            return self._own[target][1]
        for variable in (name, re.sub("-", "", name).replace(".", "_").upper()):
            if variable in self._environ:
                return self._environ[variable]
        if same not in self._properties:
            return None
        if same in within or len(within) > _DEEPEST:
            raise ValueError(f"{told.shown}: ${{{name}}} stands for itself")
        return self.resolved(self._properties[same].value, told, (*within, same))


def _closing(text: str, start: int) -> int:
    """Where the placeholder ends that begins there; -1 where it does not."""
    depth = 0
    for match in re.finditer(r"\$\{|\}", text[start:]):
        depth += 1 if match[0] == "${" else -1
        if depth == 0:
            return start + match.start()
    return -1
