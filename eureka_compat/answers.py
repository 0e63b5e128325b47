"""Encoded answers, made once per change.

Each instance is encoded once per format when it changes. Applications are gathered in buckets of
some 64 instances, each a piece of the body with its compressed form, so that a change costs the
joining and compressing of one bucket. A whole answer is put together from them, plain or
compressed, and kept until the revision moves: a request on an unchanged registry costs a look-up.
Delta, hash code and version come from one moment, because all is read under the view's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from eureka_compat import codecs, wire
from eureka_compat.pieces import EncodedAnswer, Piece
from registry import (
    Instance,
    InstanceKey,
    InstanceStatus,
    Namespace,
    Registry,
    Revision,
    View,
)

_KEPT_ANSWERS = 256
_BUCKET_INSTANCES = 64


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
        self._buckets: dict[Form, list[tuple[Any, Piece]]] = {}

    def applications(self, form: Form) -> EncodedAnswer:
        """Everything: ``GET apps``."""
        view = self._registry.view(self._namespace)
        kept = self._answers.get(("apps", form))
        if kept is not None and kept[0] == view.revision:
            return kept[1]
        with view.lock:
            if len(self._fragments) > 2 * view.size() + 1000:
                self._fragments.clear()
            joined = self._in_buckets(view, form)
            code = hash_code(view.status_counts.items())
            answer = _wrapped(joined, "1", code, form)
            self._answers["apps", form] = (view.revision, answer)
            return answer

    def _in_buckets(self, view: View, form: Form) -> list[Piece]:
        """All applications; a bucket in which nothing changed is the piece that it was."""
        # A power of two, so that a growing registry splits its buckets and seldom mixes them anew.
        count = 1 << max(0, (view.size() // _BUCKET_INSTANCES).bit_length())
        apps_of: list[list[str]] = [[] for _ in range(count)]
        for app in view.applications:
            apps_of[hash(app) & (count - 1)].append(app)
        buckets = self._buckets.get(form, [])
        if len(buckets) != count:
            buckets = [(None, Piece(b""))] * count
        revisions = view.application_revisions
        for place, apps in enumerate(apps_of):
            # Each change raises a revision; one that takes an application away lowers the count.
            marker = (len(apps), sum([revisions[app] for app in apps]))
            if buckets[place][0] != marker:
                joined = [
                    self._join(app, view.applications[app].values(), form, depth=1) for app in apps
                ]
                buckets[place] = (marker, _in_list(joined, form))
        self._buckets[form] = buckets
        return [piece for _, piece in buckets if piece.raw]

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
            answer = _wrapped([_in_list(joined, form)], str(view.revision + 1), code, form)
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
            answer = EncodedAnswer([Piece(body.rstrip(b"\n"))])
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
            code = hash_code(counts.items())
            answer = _wrapped([_in_list(joined, form)], "-1", code, form)
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


def _in_list(applications: list[bytes], form: Form) -> Piece:
    """Applications as they stand in a list: in JSON each with a comma before it."""
    if form.is_json and applications:
        return Piece(b"," + b",".join(applications))
    return Piece(b"".join(applications))


def _wrapped(applications: list[Piece], version: str, code: str, form: Form) -> EncodedAnswer:
    opening, closing = _frame(version.encode(), code.encode(), form)
    if form.is_json and applications:
        # The first has no comma before it; what is before it changes with every answer anyway.
        opening += applications[0].raw[1:]
        applications = applications[1:]
    return EncodedAnswer([Piece(opening), *applications, Piece(closing)])


def _frame(version: bytes, code: bytes, form: Form) -> tuple[bytes, bytes]:
    """What stands before and after the applications."""
    if form.is_json:
        numbers = b'"versions__delta":"%b","apps__hashcode":"%b"' % (version, code)
        if form.is_compact:
            return b'{"applications":{"application":[', b"]," + numbers + b"}}"
        return b'{"applications":{' + numbers + b',"application":[', b"]}}"
    numbers = b"<versions__delta>%b</versions__delta>" % version
    numbers_code = b"<apps__hashcode>%b</apps__hashcode>" % code
    if form.is_compact:
        return b"<applications>", numbers + numbers_code + b"</applications>"
    opening = b"<applications>\n  " + numbers + b"\n  " + numbers_code + b"\n"
    return opening, b"</applications>"
