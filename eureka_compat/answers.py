"""Encoded answers, made once per change.

Each instance is encoded once per format when it changes. Applications are gathered in buckets of
some 64 instances, each a piece of the body with its compressed form, so that a change costs the
joining and compressing of one bucket. A whole answer is put together from them, plain or
compressed, and kept until the revision moves: a request on an unchanged registry costs a look-up.
Delta, hash code and version come from one moment, because all is read under the view's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from eureka_compat import codecs, wire
from eureka_compat.pieces import EncodedAnswer, Piece
from registry import (
    Instance,
    InstanceStatus,
    Namespace,
    Registry,
    Revision,
)

JSON = "application/json"
XML = "application/xml"
_MARK = 7_046_029_254_386_353_131
_KEPT_ANSWERS = 256
_BUCKET_INSTANCES = 64


class Form(Enum):
    """How an answer is spelled: format and shape."""

    JSON = "json"
    XML = "xml"
    COMPACT_JSON = "compact json"
    COMPACT_XML = "compact xml"

    # That of ``Enum`` is written in Python, and each list is looked up by its form.
    __hash__ = object.__hash__

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON."""
        return self in (Form.JSON, Form.COMPACT_JSON)

    @property
    def media(self) -> str:
        """The media type of the body."""
        return JSON if self.is_json else XML

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
        # At which revision, and until when, each is what changed lately.
        self._deltas: dict[Form, tuple[Revision, int | None, EncodedAnswer]] = {}
        self._fragments: dict[tuple[str, str], tuple[Revision, dict[Any, Any]]] = {}
        self._most_fragments = 0
        self._view = registry.view(namespace)
        self._buckets: dict[tuple[str, Form], list[tuple[Any, Piece]]] = {}

    def applications(self, form: Form) -> EncodedAnswer:
        """Everything: ``GET apps``."""
        view = self._registry.view(self._namespace)
        kept = self._answers.get(("apps", form))
        if kept is not None and kept[0] == view.revision:
            return kept[1]
        with view.lock:
            joined = self._in_buckets(
                "apps", view.applications, view.application_revisions, view.size(), form
            )
            code = hash_code(view.status_counts.items())
            answer = _wrapped(joined, "1", code, form)
            for other in Form:
                stale = self._answers.get(("apps", other))
                if stale is not None and stale[0] != view.revision:
                    del self._answers["apps", other]
            self._answers["apps", form] = (view.revision, answer)
            return answer

    def _in_buckets(
        self,
        name: str,
        applications: Mapping[str, Mapping[str, Instance]],
        revisions: Mapping[str, Revision],
        size: int,
        form: Form,
    ) -> list[Piece]:
        """These applications; a bucket in which nothing changed is the piece that it was.

        ``revisions`` has the last change of each, and ``size`` is how many instances they have.
        """
        # A power of two, so that a growing list splits its buckets and seldom mixes them anew.
        count = 1 << max(0, (size // _BUCKET_INSTANCES).bit_length())
        apps_of: list[list[str]] = [[] for _ in range(count)]
        for app in applications:
            apps_of[hash(app) & (count - 1)].append(app)
        buckets = self._buckets.get((name, form), [])
        if len(buckets) != count:
            buckets = [(None, Piece(()))] * count
        for place, apps in enumerate(apps_of):
            # A change raises a revision over all there were before. What only goes lowers the
            # number of applications, or that of their instances.
            marker = (
                len(apps),
                sum([revisions[app] for app in apps]),
                sum([len(applications[app]) for app in apps]),
            )
            if buckets[place][0] != marker:
                joined = [
                    self._join(app, applications[app].values(), form, depth=1) for app in apps
                ]
                buckets[place] = (marker, _in_list(joined, form))
        self._buckets[name, form] = buckets
        return [piece for _, piece in buckets if piece.parts]

    def delta(self, form: Form) -> EncodedAnswer:
        """What changed in the retention window: ``GET apps/delta``."""
        registry = self._registry
        view = registry.view(self._namespace)
        kept = self._deltas.get(form)
        if kept is not None and kept[0] == view.revision:
            until = kept[1]
            if until is None or registry.clock.mono_ms() <= until:
                return kept[2]
        with view.lock:
            until = view.recent_until(registry.clock.mono_ms())
            changed = view.recent_applications
            size = sum(map(len, changed.values()))
            joined = self._in_buckets("delta", changed, view.recent_revisions, size, form)
            code = hash_code(view.status_counts.items())
            answer = _wrapped(joined, str(view.revision + 1), code, form)
            self._deltas[form] = (view.revision, until, answer)
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
            body = b"".join(self._join(app, instances.values(), form, depth=0))
            if form.is_json:
                body = b'{"application":' + body + b"}"
            answer = EncodedAnswer([Piece([body.rstrip(b"\n")])], form.media)
            self._keep((app, form), revision, answer)
            return answer

    def instance(self, instance: Instance, last_renewal_ms: int, form: Form) -> bytes:
        """A single instance that was last renewed then: ``GET apps/APP/ID``.

        Only the instant of the renewal changes between two registrations, so what stands before and
        after it is kept.
        """
        variants = self._variants(instance)
        around: tuple[bytes, ...] | None = variants.get(("alone", form))
        if around is None:
            marked = encode_instance(instance._replace(last_renewal_ms=_MARK), form)
            around = tuple(marked.split(b"%d" % _MARK))
            if len(around) != 2:  # a client has this number somewhere, of all numbers
                return encode_instance(instance._replace(last_renewal_ms=last_renewal_ms), form)
            variants["alone", form] = around
        return b"%b%d%b" % (around[0], last_renewal_ms, around[1])

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

    def _join(self, app: str, instances: Iterable[Instance], form: Form, depth: int) -> list[bytes]:
        """An application's parts, its instances' among them as they are kept."""
        fragments = [self._fragment(instance, form, depth + 1) for instance in instances]
        if form.is_json:
            parts = [b'{"name":' + codecs.to_json(app) + b',"instance":[']
            for fragment in fragments:
                parts += (fragment, b",")
            parts[-1] = b"]}"
            return parts
        indent = form is Form.XML
        name = codecs.to_xml("name", app, depth + 1, indent=indent).encode()
        space = b"  " * depth if indent else b""
        end = b"\n" if indent else b""
        return [
            space + b"<application>" + end + name,
            *fragments,
            space + b"</application>" + end,
        ]

    def _fragment(self, instance: Instance, form: Form, depth: int) -> bytes:
        variants = self._variants(instance)
        variant = (form, depth) if form is Form.XML else form
        fragment: bytes | None = variants.get(variant)
        if fragment is None:
            tree = wire.compact_tree(instance) if form.is_compact else wire.instance_tree(instance)
            if form.is_json:
                # A copy, since the encoder's own bytes keep the buffer that they were written to,
                # eight times their size.
                fragment = bytes(memoryview(codecs.to_json(tree)))
            else:
                indent = form is Form.XML
                fragment = codecs.to_xml("instance", tree, depth, indent=indent).encode()
            variants[variant] = fragment
        return fragment

    def _make_room(self) -> None:
        """Forget what was encoded, once half of it at least is of instances that went."""
        # Not asked of the registry: that would move the view on, amid an answer.
        view = self._view
        with view.lock:
            self._most_fragments = 2 * view.size() + 1000
        if len(self._fragments) >= self._most_fragments:
            self._fragments.clear()

    def _variants(self, instance: Instance) -> dict[Any, Any]:
        """What was encoded of an instance as it is now."""
        place = (instance.app, instance.id)
        kept = self._fragments.get(place)
        if kept is None or kept[0] != instance.revision:
            if len(self._fragments) >= self._most_fragments:
                self._make_room()
            kept = (instance.revision, {})
            self._fragments[place] = kept
        return kept[1]


def _in_list(applications: list[list[bytes]], form: Form) -> Piece:
    """Applications as they stand in a list: in JSON each with a comma before it."""
    if form.is_json:
        return Piece([part for parts in applications for part in (b",", *parts)])
    return Piece([part for parts in applications for part in parts])


def _wrapped(applications: list[Piece], version: str, code: str, form: Form) -> EncodedAnswer:
    opening, closing = _frame(version.encode(), code.encode(), form)
    first = [opening]
    if form.is_json and applications and applications[0].parts:
        # The first has no comma before it; what is before it changes with every answer anyway.
        first += applications[0].parts[1:]
        applications = applications[1:]
    return EncodedAnswer([Piece(first), *applications, Piece([closing])], form.media)


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
