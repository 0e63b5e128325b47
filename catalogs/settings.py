"""The catalogs that an operator sets up: one list, each with its kind, its name and its own terms.

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

import yaml

from catalogs.catalog import Catalog
from catalogs.runner import Terms
from registry import Namespace

# kind → module, its settings and its catalog. Each is imported only where it is set up.
KINDS = {
    "file": ("catalogs.file", "FileSettings", "FileCatalog"),
    "kubernetes": ("catalogs.kubernetes", "KubernetesSettings", "KubernetesCatalog"),
    "eureka": ("catalogs.eureka", "EurekaCatalogSettings", "EurekaCatalog"),
    "consul": ("catalogs.consul", "ConsulSettings", "ConsulCatalog"),
    "etcd": ("catalogs.etcd", "EtcdSettings", "EtcdCatalog"),
}
_TERMS = {f.name: f for f in fields(Terms)}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """One catalog: ``make`` builds it, in the worker that runs it."""

    source: str
    terms: Terms
    make: Callable[[], Catalog]


def read_catalogs(text: str) -> tuple[CatalogSettings, ...]:
    """The catalogs of a setting; ``ValueError`` says which of them is wrong, and why."""
    if "\n" not in text and not text.lstrip().startswith(("[", "{", "-")):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"a list of catalogs, or the path of a file: {error}") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"YAML or JSON: {' '.join(str(error).split())}") from None
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


def _read(number: int, item: Any) -> CatalogSettings:
    if not isinstance(item, Mapping) or item.get("kind") not in KINDS:
        raise ValueError(f"catalog {number}: a kind, one of {', '.join(KINDS)}")
    kind = item["kind"]
    name = str(item.get("name", "main"))
    where = f"catalog {number} ({kind}:{name})"
    if not name or not set(name) <= _NAME:
        raise ValueError(f"{where}: letters, digits, dots, dashes and underscores in its name")
    module_name, settings_name, catalog_name = KINDS[kind]
    module = importlib.import_module(module_name)
    own = {k: v for k, v in item.items() if k not in ("kind", "name") and k not in _TERMS}
    terms = {k: v for k, v in item.items() if k in _TERMS}
    settings = _made(getattr(module, settings_name), {"name": name, **own}, where)
    catalog = getattr(module, catalog_name)
    return CatalogSettings(f"{kind}:{name}", _made(Terms, terms, where), lambda: catalog(settings))


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass from what was written, each value as its field's type wants it."""
    assert is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: no setting {name!r}; there are {', '.join(known)}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in values:
            raise ValueError(f"{where}: {name} is missing")
    made = {name: _as(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


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
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint is Namespace and isinstance(value, str) and value:
        return Namespace(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    words = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
    raise ValueError(f"{where}: {words.get(hint, getattr(hint, '__name__', str(hint)))} expected")
