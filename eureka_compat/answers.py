"""Encoded answers, made once per change.

Each instance is encoded once per format when it changes; an application's bytes are the join of its
instances, a whole answer the join of its applications, kept with its gzip form until the revision
moves. A request on an unchanged registry costs a look-up. Delta, hash code and version come from
one moment, because all is read under the view's lock.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from eureka_compat import codecs, wire
from registry import (
    Instance,
    InstanceKey,
    InstanceStatus,
    Namespace,
    Registry,
    Revision,
    View,
)

GZIP_LEVEL = 5
_KEPT_ANSWERS = 256


class Form(Enum):
    """How an answer is spelled: format and shape."""

    JSON = "json"
    XML = "xml"
    COMPACT_JSON = "compact json"
    COMPACT_XML = "compact xml"

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON."""
        return self in (Form.JSON, Form.COMPACT_JSON)

    @property
    def is_compact(self) -> bool:
        """Whether instances are in their short form."""
        return self in (Form.COMPACT_JSON, Form.COMPACT_XML)


@dataclass(slots=True)
class EncodedAnswer:
    """A body, and its gzip form once somebody asked for it."""

    body: bytes
    _gzipped: bytes | None = None

    def gzipped(self) -> bytes:
        """The body compressed, made once."""
        if self._gzipped is None:
            self._gzipped = gzip.compress(self.body, GZIP_LEVEL, mtime=0)
        return self._gzipped


def hash_code(counts: Iterable[tuple[InstanceStatus, int]]) -> str:
    """The apps hash code: per-status counts, sorted by name (protocol section 5)."""
    return "".join(f"{status}_{count}_" for status, count in sorted(counts) if count)


def encode_instance(instance: Instance, form: Form) -> bytes:
    """A single instance under its root, with the status that such an answer shows (4.6)."""
    if form.is_json:
        return codecs.to_json({"instance": wire.instance_tree(instance)})
    tree = wire.instance_tree(instance, wire.down_mapped(instance.status))
    return codecs.to_xml("instance", tree).rstrip("\n").encode()


class Answers:
    """The encoded answers of one namespace in one worker."""

    def __init__(self, registry: Registry, namespace: Namespace) -> None:
        """Nothing is encoded before it is asked for."""
        self._registry = registry
        self._namespace = namespace
        self._answers: dict[Any, tuple[Any, EncodedAnswer]] = {}
        self._fragments: dict[InstanceKey, tuple[Revision, dict[Any, bytes]]] = {}
        self._joined: dict[tuple[str, Form], tuple[Revision, bytes]] = {}

    def applications(self, form: Form) -> EncodedAnswer:
        """Everything: ``GET apps``."""
        view = self._registry.view(self._namespace)
        kept = self._answers.get(("apps", form))
        if kept is not None and kept[0] == view.revision:
            return kept[1]
        with view.lock:
            if len(self._fragments) > 2 * view.size() + 1000:
                self._fragments.clear()
                self._joined.clear()
            joined = [self._application(view, app, form) for app in view.applications]
            code = hash_code(view.status_counts.items())
            answer = EncodedAnswer(_wrap(joined, "1", code, form))
            self._answers["apps", form] = (view.revision, answer)
            return answer

    def _application(self, view: View, app: str, form: Form) -> bytes:
        revision = view.application_revisions[app]
        kept = self._joined.get((app, form))
        if kept is not None and kept[0] == revision:
            return kept[1]
        body = self._join(app, view.applications[app].values(), form, depth=1)
        self._joined[app, form] = (revision, body)
        return body

    def delta(self, form: Form) -> EncodedAnswer:
        """What changed in the retention window: ``GET apps/delta``."""
        registry = self._registry
        view = registry.view(self._namespace)
        now = registry.clock.mono_ms()
        with view.lock:
            marker = view.recent_marker(now)
            kept = self._answers.get(("delta", form))
            if kept is not None and kept[0] == marker:
                return kept[1]
            apps: dict[str, dict[str, Instance]] = {}
            for change in view.recent(now):
                if change.instance is not None:
                    instances = apps.setdefault(change.instance.app, {})
                    # An instance shows once, at the place of its last change.
                    instances.pop(change.instance.id, None)
                    instances[change.instance.id] = change.instance
            joined = [self._join(app, found.values(), form, 1) for app, found in apps.items()]
            code = hash_code(view.status_counts.items())
            answer = EncodedAnswer(_wrap(joined, str(view.revision + 1), code, form))
            self._answers["delta", form] = (marker, answer)
            return answer

    def application(self, app: str, form: Form) -> EncodedAnswer | None:
        """One application; None where nothing is registered under its name."""
        app = app.upper()
        view = self._registry.view(self._namespace)
        with view.lock:
            instances = view.applications.get(app)
            if instances is None:
                return None
            revision = view.application_revisions[app]
            kept = self._answers.get((app, form))
            if kept is not None and kept[0] == revision:
                return kept[1]
            body = self._join(app, instances.values(), form, depth=0)
            if form.is_json:
                body = b'{"application":' + body + b"}"
            answer = EncodedAnswer(body.rstrip(b"\n"))
            self._keep((app, form), revision, answer)
            return answer

    def vip(self, vip: str, form: Form, *, secure: bool) -> EncodedAnswer:
        """The instances of a VIP; an empty answer where there are none."""
        view = self._registry.view(self._namespace)
        with view.lock:
            kept = self._answers.get((vip, secure, form))
            if kept is not None and kept[0] == view.revision:
                return kept[1]
            apps: dict[str, list[Instance]] = {}
            counts: dict[InstanceStatus, int] = {}
            for instance in view.by_vip(vip, secure=secure):
                apps.setdefault(instance.app, []).append(instance)
                counts[instance.status] = counts.get(instance.status, 0) + 1
            joined = [self._join(app, found, form, 1) for app, found in apps.items()]
            answer = EncodedAnswer(_wrap(joined, "-1", hash_code(counts.items()), form))
            self._keep((vip, secure, form), view.revision, answer)
            return answer

    def _keep(self, name: Any, marker: Any, answer: EncodedAnswer) -> None:
        if len(self._answers) >= _KEPT_ANSWERS:
            self._answers.clear()
        self._answers[name] = (marker, answer)

    def _join(self, app: str, instances: Iterable[Instance], form: Form, depth: int) -> bytes:
        fragments = [self._fragment(instance, form, depth + 1) for instance in instances]
        if form.is_json:
            name = codecs.to_json(app)
            return b'{"name":' + name + b',"instance":[' + b",".join(fragments) + b"]}"
        indent = form is Form.XML
        name = codecs.to_xml("name", app, depth + 1, indent=indent).encode()
        space = b"  " * depth if indent else b""
        end = b"\n" if indent else b""
        return b"".join(
            (
                space + b"<application>" + end + name,
                *fragments,
                space + b"</application>" + end,
            )
        )

    def _fragment(self, instance: Instance, form: Form, depth: int) -> bytes:
        key = instance.key
        kept = self._fragments.get(key)
        if kept is None or kept[0] != instance.revision:
            kept = (instance.revision, {})
            self._fragments[key] = kept
        variant = (form, depth) if form is Form.XML else form
        fragment = kept[1].get(variant)
        if fragment is None:
            tree = wire.compact_tree(instance) if form.is_compact else wire.instance_tree(instance)
            if form.is_json:
                fragment = codecs.to_json(tree)
            else:
                indent = form is Form.XML
                fragment = codecs.to_xml("instance", tree, depth, indent=indent).encode()
            kept[1][variant] = fragment
        return fragment


def _wrap(applications: list[bytes], version: str, code: str, form: Form) -> bytes:
    version_bytes, code_bytes = version.encode(), code.encode()
    if form.is_json:
        content = b'"application":[' + b",".join(applications) + b"]"
        numbers = b'"versions__delta":"%b","apps__hashcode":"%b"' % (version_bytes, code_bytes)
        parts = (content, numbers) if form.is_compact else (numbers, content)
        return b'{"applications":{' + b",".join(parts) + b"}}"
    numbers = b"<versions__delta>%b</versions__delta>" % version_bytes
    numbers_code = b"<apps__hashcode>%b</apps__hashcode>" % code_bytes
    body = b"".join(applications)
    if form.is_compact:
        return b"<applications>" + body + numbers + numbers_code + b"</applications>"
    return (
        b"<applications>\n  " + numbers + b"\n  " + numbers_code + b"\n" + body + b"</applications>"
    )
