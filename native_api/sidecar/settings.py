"""The sidecar's settings: a file, the environment and flags, the later one counting."""

from __future__ import annotations

import argparse
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml

from eureka_http.shown import masked
from native_api.sidecar.client import Site


class SettingError(ValueError):
    """A setting that cannot be used; the text names it and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """One health check. Seconds are seconds; ``failures`` and ``successes`` are in a row.

    ``expect`` is the status, or the exit status of a command; None is the usual one.
    """

    type: str
    url: str = ""
    method: str = "GET"
    expect: int | None = None
    ca_file: str = ""
    address: str = ""
    command: tuple[str, ...] = ()
    interval: float = 5.0
    timeout: float = 2.0
    failures: int = 3
    successes: int = 1

    @property
    def expected(self) -> int:
        """The status, or exit status, that is well."""
        if self.expect is not None:
            return self.expect
        return 0 if self.type == "command" else 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """One process to start; ``on_exit`` is what its end means: terminate all, or ignore.

    ``env`` is what it is given beside the sidecar's own environment.
    """

    command: tuple[str, ...]
    on_exit: str = "terminate"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that is set from outside; the table below says what each means."""

    registries: tuple[str, ...]
    protocol: str = "native"
    service_name: str
    endpoint_type: str = "http"
    endpoint: str
    instance_id: str = ""
    ttl: int = 30
    renew_fraction: float = 1 / 3
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any]
    checks: tuple[CheckSettings, ...] = ()
    on_unhealthy: str = "silence"
    supervise: tuple[ChildSettings, ...] = ()
    grace: float = 10.0
    username: str = ""
    password: str = ""
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout: float = 3.0
    max_backoff: float = 30.0
    log_level: str = "info"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return read


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = low - 1
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return number

    return read


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = _number(low, high)(value)
        if number != int(number):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(number)

    return read


def _texts(value: Any) -> tuple[str, ...]:
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(v, str) and v for v in found):
        raise ValueError("texts, parted by commas or as a list")
    return tuple(v.strip() for v in found)


def read_token(value: Any) -> str:
    """A token that a header can carry; ``ValueError`` says nothing of it."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value.strip()):
        raise ValueError("a text of printable ASCII without blanks")
    return value.strip()


def _urls(value: Any) -> tuple[str, ...]:
    urls = tuple(url.rstrip("/") for url in _texts(value))
    if not urls or any("?" in url for url in urls):
        raise ValueError("URLs without a query")
    for url in urls:
        Site.of(url)
    return urls


def _readable(value: Any) -> str:
    try:
        with Path(_text(value)).open("rb"):
            return str(value)
    except OSError:
        raise ValueError("a file that can be read") from None


def _endpoint(kind: str, text: str) -> None:
    """Whether others could make sense of it: an instance that nobody can call is a mistake."""
    if kind == "user":
        return
    scheme, found, _ = text.partition("://")
    is_web = kind in ("http", "https")
    try:
        parts = urlsplit(text if found else f"{kind}://{text}")
        port = parts.port
    except ValueError:
        port, parts = 0, urlsplit("")
    fits = (not found or (is_web and scheme.lower() == kind)) and "@" not in parts.netloc
    if not fits or not parts.hostname or port == 0 or (port is None and not (is_web and found)):
        raise SettingError(
            f"endpoint={json.dumps(text)}: expected "
            + (f"host:port or a URL that begins with {kind}://" if is_web else "host:port")
        )


def own_address() -> str:
    """The address that others reach this machine at, in brackets where it is IPv6's.

    That of its way out; ``SettingError`` where it has none. Nothing is sent.
    """
    outside = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
    for family, address in outside:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probing:
                probing.connect((address, 9))
                found = str(probing.getsockname()[0])
        except OSError:
            continue
        return f"[{found}]" if ":" in found else found
    raise SettingError("endpoint: no address of this machine is known; name a host")


def _structure(value: Any) -> Any:
    """What flags and variables hold as JSON or YAML."""
    if not isinstance(value, str):
        return value
    return _read(value, "JSON or YAML")


def _read(text: str, what: str) -> Any:
    """What YAML holds, in lists and mappings that end; ``ValueError`` without the text itself."""
    try:
        found = yaml.safe_load(text)
        json.dumps(found, default=str, skipkeys=True)  # which refuses what stands inside itself
    except yaml.YAMLError as error:
        raise ValueError(f"{what} ({_problem(error)})") from None
    except (ValueError, RecursionError):
        # A date or a number that is none, or a mapping within itself.
        raise ValueError(f"{what} (it cannot be read)") from None
    return found


def _problem(error: yaml.YAMLError) -> str:
    """Where it is wrong, without the line itself: that may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return "it cannot be read"


def _mapping(value: Any) -> Mapping[str, Any]:
    found = _structure(value)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("a mapping with texts as its keys")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("values that JSON has; dates and the like in quotes") from None
    return found


def _list(value: Any) -> list[Mapping[str, Any]]:
    found = _structure(value)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError("a list of mappings")
    return found


def _command(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of texts, the program first")
    return tuple(value)


def _variables(value: Any) -> Mapping[str, str]:
    """A mapping, or a list of ``NAME=value``."""
    if isinstance(value, list) and all(isinstance(v, str) and "=" in v for v in value):
        value = dict(entry.split("=", 1) for entry in value)
    if (
        not isinstance(value, dict)
        or not all(isinstance(v, str) for pair in value.items() for v in pair)
        or any(not name or "=" in name or "\0" in name + text for name, text in value.items())
    ):
        raise ValueError("a mapping of texts, or a list of NAME=value")
    return value


_CHECK: dict[str, Callable[[Any], Any]] = {
    "type": _choice("http", "https", "tcp", "command"),
    "url": _text,
    "method": _choice("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
    "expect": _whole(0, 599),
    "ca_file": _readable,
    "address": _text,
    "command": _command,
    "interval": _number(0.05, 3600),
    "timeout": _number(0.05, 600),
    "failures": _whole(1, 1000),
    "successes": _whole(1, 1000),
}
_NEEDED = {"http": "url", "https": "url", "tcp": "address", "command": "command"}
_CHILD: dict[str, Callable[[Any], Any]] = {
    "command": _command,
    "on_exit": _choice("terminate", "ignore"),
    "env": _variables,
}


def _entry(kind: type, readers: Mapping[str, Callable[[Any], Any]], entry: Any) -> Any:
    made = {}
    for name, value in entry.items():
        if name not in readers:
            raise ValueError(f"no {name!r}; there are {', '.join(readers)}")
        try:
            made[name] = readers[name](value)
        except ValueError as error:
            raise ValueError(f"in {name}: {error}") from None
    try:
        return kind(**made)
    except TypeError:
        missing = [
            f.name for f in fields(kind) if f.name in ("type", "command") and f.name not in made
        ]
        raise ValueError(f"a {missing[0]}") from None


def _checks(value: Any) -> tuple[CheckSettings, ...]:
    found = []
    for entry in _list(value):
        check: CheckSettings = _entry(CheckSettings, _CHECK, entry)
        low, high = (0, 255) if check.type == "command" else (100, 599)
        if not low <= check.expected <= high:
            raise ValueError("in expect: an exit status, or a status of HTTP")
        needed = _NEEDED[check.type]
        if not getattr(check, needed):
            raise ValueError(f"a {needed} for a {check.type} check")
        if needed == "url" and not check.url.startswith(f"{check.type}://"):
            raise ValueError(f"a url that begins with {check.type}://")
        if check.url:
            Site.of(check.url)
        if check.address:
            _tcp_address(check.address)
        found.append(check)
    return tuple(found)


def _tcp_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ValueError("an address such as host:port")


def _children(value: Any) -> tuple[ChildSettings, ...]:
    return tuple(_entry(ChildSettings, _CHILD, entry) for entry in _list(value))


# Name: its reader, and what it means.
TABLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "registries": (_urls, "base URLs of the registry, tried in turn"),
    "protocol": (_choice("native", "eureka"), "what the registry speaks (native)"),
    "service_name": (_text, "the service that the instance belongs to"),
    "endpoint_type": (_choice("http", "https", "tcp", "udp", "user"), "http unless told"),
    "endpoint": (_text, "where the instance is reached: host:port, :port (here), or a URL"),
    "instance_id": (_text, "its id at a Eureka server (host:service:port)"),
    "ttl": (_whole(3, 86_400), "seconds that it stays without a heartbeat (30)"),
    "renew_fraction": (_number(0.05, 0.9), "renewed after this share of the ttl (a third)"),
    "tags": (_texts, "tags, parted by commas"),
    "metadata": (_mapping, "a JSON or YAML mapping"),
    "checks": (_checks, "health checks, a JSON or YAML list"),
    "on_unhealthy": (
        _choice("silence", "out_of_service", "deregister"),
        "while unwell: stop renewing (silence), report it, or deregister",
    ),
    "supervise": (_children, "processes to start, a JSON or YAML list"),
    "grace": (_number(0, 3600), "seconds that children have to end (10)"),
    "username": (_text, "of an account at the registry (the URL may name it too)"),
    "password": (_text, "its password"),
    "token": (read_token, "sent as a bearer token"),
    "token_file": (_text, "a file with the token, read again when it changes"),
    "ca_file": (_readable, "who may have signed the registry's certificate"),
    "cert_file": (_readable, "the sidecar's own certificate"),
    "key_file": (_readable, "its key"),
    "timeout": (_number(0.05, 60), "seconds for one request to the registry (3)"),
    "max_backoff": (_number(0.1, 3600), "the longest pause between two tries (30)"),
    "log_level": (_choice("debug", "info", "warning", "error"), "info unless told"),
}
_SECRET = frozenset({"token", "password"})


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings; ``SettingError`` with one line for the first that is wrong.

    What follows ``--`` is a command to supervise, whose end is the sidecar's.
    """
    given, command = _split(list(arguments))
    flags = _flags(given)
    config = flags.pop("config", environ.get("SIDECAR_CONFIG"))
    values: dict[str, tuple[str, Any]] = {}
    if config is not None:
        values |= {k: (f"{k} in {config}", v) for k, v in _file(Path(config)).items()}
    for variable, value in environ.items():
        name = variable.removeprefix("SIDECAR_").lower()
        if variable.startswith("SIDECAR_") and name != "config":
            if name not in TABLE:
                raise SettingError(f"{variable}: there is no such setting")
            values[name] = (variable, value)
    values |= {k: (f"--{k.replace('_', '-')}", v) for k, v in flags.items()}
    read: dict[str, Any] = {"metadata": {}}
    for name, (where, value) in values.items():
        try:
            read[name] = TABLE[name][0](value)
        except ValueError as error:
            shown = masked(json.dumps(value, default=str, ensure_ascii=False))
            # An @ is where a URL has credentials before it.
            if name in _SECRET or "@" in shown:
                shown = "…"
            raise SettingError(f"{where}={shown}: expected {error}") from None
    for needed in ("registries", "service_name", "endpoint"):
        if needed not in read:
            raise SettingError(f"{needed} is missing: set it in the file, SIDECAR_… or by a flag")
    if read["endpoint"].startswith(":") and read.get("endpoint_type") != "user":
        read["endpoint"] = own_address() + read["endpoint"]
    _endpoint(read.get("endpoint_type", "http"), read["endpoint"])
    _agree(read)
    if command:
        child = ChildSettings(command=tuple(command))
        read["supervise"] = (child, *read.get("supervise", ()))
    return Settings(**read)


def _agree(read: Mapping[str, Any]) -> None:
    """``SettingError`` where two settings contradict each other."""
    accounts = [name for name in ("token", "token_file", "username") if name in read]
    if len(accounts) > 1:
        raise SettingError(f"{' and '.join(accounts)}: expected one of them")
    if "password" in read and "username" not in read:
        raise SettingError("password: expected username too")
    if "key_file" in read and "cert_file" not in read:
        raise SettingError("key_file: expected cert_file too")
    is_eureka = read.get("protocol") == "eureka"
    if "instance_id" in read and not is_eureka:
        raise SettingError("instance_id: expected protocol eureka; the native API gives ids itself")
    if is_eureka and read.get("endpoint_type") == "user":
        raise SettingError("endpoint_type user: expected a host and a port for protocol eureka")


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """What children are given: they have no use for the sidecar's credentials."""
    secret = {f"SIDECAR_{name.upper()}" for name in (*_SECRET, "registries")}
    return {name: value for name, value in environ.items() if name.upper() not in secret}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


def _flags(arguments: list[str]) -> dict[str, str]:
    parser = _Parser(
        prog="python -m native_api.sidecar",
        usage="%(prog)s [--config FILE] [--SETTING VALUE …] [-- COMMAND …]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file with these names")
    for name, (_, meaning) in TABLE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=meaning)
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Not its value: that may be a secret after a flag that is misspelt.
        named = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        raise SettingError(f"{named[0]}: there is no such flag" if named else "expected flags only")
    return {k: v for k, v in vars(found).items() if v is not None}


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path}: expected UTF-8") from None
    try:
        found = _read(text, "YAML")
    except ValueError as error:
        raise SettingError(f"{path}: expected {error}") from None
    if not isinstance(found, dict):
        raise SettingError(f"{path}: expected a mapping of settings")
    for name in found:
        if name not in TABLE:
            raise SettingError(f"{name} in {path}: there is no such setting")
    return found
