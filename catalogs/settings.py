"""Reads the list of catalogs that an operator has set up.

``REGISTRY_CATALOGS`` holds the list as YAML or JSON, or the path of a file that does.
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from catalogs.bounds import shortened
from catalogs.catalog import Catalog, SourceError
from catalogs.document import DocumentError, decoded, json_document, yaml_document
from catalogs.http import AccountUrl, Url, checked_url
from catalogs.runner import Terms
from eureka_http.shown import escaped, masked
from registry import NAMESPACE, Namespace

# kind → module, class of its settings, class of the catalog. A module is imported only if a catalog
# of its kind is set up.
KINDS = {
    "file": ("catalogs.file", "FileSettings", "FileCatalog"),
    "kubernetes": ("catalogs.kubernetes", "KubernetesSettings", "KubernetesCatalog"),
    "eureka": ("catalogs.eureka", "EurekaCatalogSettings", "EurekaCatalog"),
    "consul": ("catalogs.consul", "ConsulSettings", "ConsulCatalog"),
    "etcd": ("catalogs.etcd", "EtcdSettings", "EtcdCatalog"),
}
_TERMS = {f.name: f for f in fields(Terms)}
_EXPECTED: Mapping[Any, str] = {
    bool: "true or false",
    str: "a text on one line",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    Namespace: "a namespace's name (letters, digits, dots, dashes and underscores)",
    Url: "a URL",
    AccountUrl: "a URL",
}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """One catalog: ``make`` builds it, in the worker that runs it."""

    source: str
    terms: Terms
    make: Callable[[], Catalog]


def read_catalogs(text: str) -> tuple[CatalogSettings, ...]:
    """The catalogs of a setting; ``ValueError`` says which of them is wrong, and why.

    Everything is checked that does not need the source, files of tokens and certificates included.
    """
    if "\n" not in text and not text.lstrip().startswith(("[", "{", "-")):
        try:
            text = decoded(Path(text).read_bytes())
        except (OSError, ValueError) as error:
            # Not the text itself: it may be a malformed list with passwords in it.
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"a list of catalogs, or the path of a file: {reason}") from None
    document = _document(text)
    if isinstance(document, Mapping) and document.keys() == {"catalogs"}:
        document = document["catalogs"]
    if not isinstance(document, list):
        raise ValueError("a list of catalogs")
    found = tuple(_read(number, item) for number, item in enumerate(document, 1))
    sources = [each.source for each in found]
    for source in sources:
        if sources.count(source) > 1:
            raise ValueError(
                f"a name of its own for each catalog of a kind: {source} is there twice"
            )
    return found


def _document(text: str) -> Any:
    try:
        return json_document(text).value
    except DocumentError:
        pass  # YAML is a superset, and its error is the more useful one
    try:
        return yaml_document(text).value
    except DocumentError as error:
        raise ValueError(f"YAML or JSON: {error}") from None


def _read(number: int, item: Any) -> CatalogSettings:
    kind = item.get("kind") if isinstance(item, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"catalog {number}: a kind, one of {', '.join(KINDS)}")
    name = item.get("name", "main")
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not set(name) <= _NAME:
        shown = escaped(masked(shortened(str(name))))
        raise ValueError(
            f"catalog {number} ({kind}:{shown}): letters, digits, dots, dashes and underscores"
            " in its name, 64 at most"
        )
    where = f"catalog {number} ({kind}:{name})"
    module_name, settings_name, catalog_name = KINDS[kind]
    module = importlib.import_module(module_name)
    settings_type = getattr(module, settings_name)
    known = [f.name for f in fields(settings_type)] + list(_TERMS)
    for given in item:
        if given not in known and given != "kind":
            raise ValueError(
                f"{where}: no setting {masked(shortened(given))!r}; there are {', '.join(known)}"
            )
    own = {k: v for k, v in item.items() if k not in ("kind", "name") and k not in _TERMS}
    terms = {k: v for k, v in item.items() if k in _TERMS}
    settings = _made(settings_type, {"name": name, **own}, where)
    catalog = getattr(module, catalog_name)
    return CatalogSettings(f"{kind}:{name}", _made(Terms, terms, where), lambda: catalog(settings))


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass of these values, each converted to its field's type.

    If the class has a ``check``, it is called: it looks at files, for example.
    """
    assert is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in values:
            raise ValueError(f"{where}: {name} is missing")
    made = {}
    for name, value in values.items():
        if value == "" and known[name].default == "":
            made[name] = value
        else:
            made[name] = _as(hints[name], value, f"{where}: {name}")
    try:
        settings = kind(**made)
        if hasattr(settings, "check"):
            settings.check()
    except (ValueError, SourceError) as error:
        raise ValueError(f"{where}: {error}") from None
    return settings


def _as(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _as(hint, value, where)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_as(arguments[0], item, where) for item in items)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where}: one of {', '.join(map(str, arguments))}")
    is_text = isinstance(value, str) and value != "" and value.isprintable()
    if hint in (Url, AccountUrl) and isinstance(value, str) and value:
        try:
            return checked_url(value, credentials=hint is AccountUrl)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if hint is Path and is_text:
        return Path(value)
    if hint is Namespace and isinstance(value, str) and NAMESPACE.match(value):
        return Namespace(value)
    if hint is str and is_text:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if hint is float:
            return float(value)
        if hint is int and isinstance(value, int):
            return value
    raise ValueError(f"{where}: {_EXPECTED[hint]} expected")
