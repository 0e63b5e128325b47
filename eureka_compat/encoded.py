"""Encoded answers, made once per change.

An answer is made in three steps, and what each step makes is kept::

    fragment   one instance, encoded               made anew when the instance changes
    piece      one portion of a listing: some 64   made anew when an instance in it changes:
               instances, plain and compressed     fragments are joined, and compressed
    answer     the pieces of a list, put together  made anew when anything in the list changes

So one change encodes one instance and compresses one piece, however many there are, and a request
on an unchanged registry costs a look-up. A portion is several applications, or a part of a large
one.

Nothing stale is found: a piece or an answer lies in the ``kept`` of what it was made of, which is
emptied by each change, or beside the version of the view, which never comes again. Delta, hash code
and version are of one moment, because all of them are read under the view's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from eureka_compat import codecs, wire
from eureka_compat.negotiation import Form
from eureka_compat.pieces import EncodedAnswer, Piece
from eureka_http.cache import Cache
from registry import (
    Application,
    Instance,
    InstanceStatus,
    Listing,
    NamespaceRegistry,
    NotYetError,
    Portion,
    Portions,
    View,
)

# Stands for the instant of the last renewal, to find where it is in an encoded instance.
_MARK = 7_046_029_254_386_353_131
_KEPT_ANSWERS = 256
_KEPT_SELECTIONS = 8
# Beside what is shown, the encoded forms of so many instances that went are kept for a while.
_FRAGMENTS_BEYOND = 1000
_COMMA = Piece([b","])
_OPENING = Piece([b'{"application":'])
_CLOSING = Piece([b"}"])


class _Cell(NamedTuple):
    """A portion, and how a piece is made of it.

    ``name`` is what the piece is kept by: its form, its depth in the document, and whether it opens
    and closes its application. ``application`` is the one that the portion is a part of, None where
    the portion has whole applications.
    """

    portion: Portion[Any]
    name: tuple[Form, int, bool, bool]
    application: Application | None

    @property
    def opens(self) -> bool:
        """Whether the beginning of an application is in it."""
        return self.name[2]


class _Selection(NamedTuple):
    """What is listed, and what changed, without some sources.

    It is of one version of the view, and of a window that holds the same ``until`` an instant.
    """

    version: int
    until: int | None
    listing: Listing
    changed: Listing


def hash_code(counts: Iterable[tuple[InstanceStatus, int]]) -> str:
    """The apps hash code: per-status counts, sorted by name (protocol section 5)."""
    return "".join(f"{status}_{count}_" for status, count in sorted(counts) if count)


def encode_single(instance: Instance, form: Form) -> bytes:
    """A single instance under its root, with the status that such an answer shows (4.6)."""
    if form.is_json:
        return codecs.to_json({"instance": wire.instance_tree(instance)})
    tree = wire.instance_tree(instance, wire.down_mapped(instance.status))
    return codecs.to_xml("instance", tree).rstrip("\n").encode()


class EncodedAnswers:
    """The encoded answers of one namespace in one worker."""

    def __init__(
        self, registry: NamespaceRegistry, remote: Iterable[str] = (), *, falls_back: bool = True
    ) -> None:
        """Nothing is encoded before it is asked for.

        ``remote`` are the sources of regions; ``falls_back`` tells whether an application or a VIP
        that is not here is shown as it is there.
        """
        self._registry = registry
        self._remote = frozenset(remote)
        self._hidden = frozenset() if falls_back else self._remote
        self._selections: Cache[frozenset[str], _Selection] = Cache(_KEPT_SELECTIONS)
        # The delta by form; before it the version of the view that it is of. It holds until its
        # oldest change leaves the window.
        self._deltas: dict[Form, tuple[int, EncodedAnswer]] = {}
        self._vips: Cache[tuple[str, bool, Form], tuple[int, EncodedAnswer]] = Cache(_KEPT_ANSWERS)
        # The answers with single applications, oldest first: each lies in this ``kept``, and goes
        # from there when there are too many.
        self._kept: deque[tuple[dict[Any, Any], Hashable]] = deque()
        # By application and id: an instance, and the bytes that it was encoded to, by form.
        self._fragments: Cache[tuple[str, str], tuple[Instance, dict[Any, Any]]]
        self._fragments = Cache(_FRAGMENTS_BEYOND)

    def applications(
        self, form: Form, *, zipped: bool | None = None, is_quick: bool = False
    ) -> EncodedAnswer:
        """Everything: ``GET apps``.

        ``zipped`` tells whether the answer is wanted compressed; None: both forms, when they are
        asked for. Where it is told and many pieces are to be made first, that is done a little at a
        time, with room for other threads. Where ``is_quick`` it is not done: ``NotYetError``. The
        other lists do the same.
        """
        view = self._registry.view()
        kept: EncodedAnswer | None = view.listing.kept.get(form)
        if kept is not None and (zipped is None or kept.made[zipped]):
            return kept
        self._prepare(view, lambda: self._cells(view.listing, form), zipped, is_quick)
        with view.lock:
            return self._listed(view.listing, "1", form, view.revision)

    def _listed(
        self, listing: Listing, version: str, form: Form, revision: int = 0
    ) -> EncodedAnswer:
        """The answer with a listing, kept with it; the listing is as of ``revision``."""
        answer: EncodedAnswer | None = listing.kept.get(form)
        if answer is None:
            code = hash_code(listing.counts.items())
            answer = _wrapped(self._pieces(listing, form), version, code, form, revision)
            listing.kept[form] = answer
        return answer

    def _cells(self, listing: Listing, form: Form) -> Iterator[_Cell]:
        """What the pieces of a listing are made of."""
        for portion in listing.portions.all:
            first = next(iter(portion.members.values()))
            if first.portions is None:
                yield _Cell(portion, (form, 1, True, True), None)
            else:  # it stands alone
                yield from self._cells_of(first, first.portions, form, 1)

    def _cells_of(
        self, application: Application, portions: Portions[Instance], form: Form, depth: int
    ) -> Iterator[_Cell]:
        """What the pieces of a large application are made of."""
        last = len(portions.all) - 1
        for place, portion in enumerate(portions.all):
            yield _Cell(portion, (form, depth, place == 0, place == last), application)

    def _made(self, cell: _Cell) -> Piece:
        """The piece that is made of a portion: whole applications, or a part of one."""
        portion, name, application = cell
        piece: Piece | None = portion.kept.get(name)
        if piece is None:
            form, depth, opens, closes = name
            parts: list[bytes] = []
            if application is not None:
                parts = self._join(
                    application.name, portion.members.values(), form, depth, opens, closes
                )
            else:
                for each in portion.members.values():
                    if form.is_json:
                        parts.append(b",")
                    parts += self._join(each.name, each.values(), form, depth)
            piece = portion.kept[name] = Piece(parts)
        return piece

    def _pieces(self, listing: Listing, form: Form) -> list[Piece]:
        """All applications of a listing; in JSON each with a comma before it."""
        pieces: list[Piece] = []
        for cell in self._cells(listing, form):
            if cell.application is not None and cell.opens and form.is_json:
                pieces.append(_COMMA)
            pieces.append(self._made(cell))
        return pieces

    def _prepare(
        self,
        view: View,
        cells: Callable[[], Iterable[_Cell]],
        zipped: bool | None,
        is_quick: bool,
    ) -> None:
        """Make the pieces of these cells that are missing, without holding the lock throughout."""
        self._make_room(view)
        if zipped is None:
            return

        def is_missing(cell: _Cell) -> bool:
            piece = cell.portion.kept.get(cell.name)
            return piece is None or not piece.has(gzipped=zipped)

        def make(cell: _Cell) -> None:
            with view.lock:
                piece = self._made(cell)
            piece.make(gzipped=zipped)

        view.prepare(lambda: filter(is_missing, cells()), make, is_quick=is_quick)

    def delta(
        self, form: Form, *, zipped: bool | None = None, is_quick: bool = False
    ) -> EncodedAnswer:
        """What changed in the retention window: ``GET apps/delta``."""
        registry = self._registry
        view = registry.view()
        kept = self._deltas.get(form)
        if (
            kept is not None
            and kept[0] == view.version
            and ((until := kept[1].until) is None or registry.clock.mono_ms() <= until)
            and (zipped is None or kept[1].made[zipped])
        ):
            return kept[1]
        self._prepare(view, lambda: self._cells(view.changed, form), zipped, is_quick)
        with view.lock:
            until = view.recent_until(registry.clock.mono_ms())
            self._make_room(view)
            code = hash_code(view.listing.counts.items())
            pieces = self._pieces(view.changed, form)
            answer = _wrapped(pieces, str(view.revision + 1), code, form, view.revision)
            answer.until = until
            self._deltas[form] = (view.version, answer)
            return answer

    def selected(
        self,
        without: frozenset[str],
        form: Form,
        *,
        is_delta: bool,
        zipped: bool | None = None,
        is_quick: bool = False,
    ) -> EncodedAnswer:
        """The same two answers without the instances of some sources: ``?regions=``.

        These lists are collected anew after each change, of fragments that are kept.
        """
        view = self._registry.view()
        now = self._registry.clock.mono_ms()
        with view.lock:
            found = self._selections.get(without)
            until = view.recent_until(now)
            if (
                found is None
                or found.version != view.version
                or (found.until is not None and now > found.until)
            ):
                if is_quick and view.listing.is_large:
                    raise NotYetError
                listing, changed = (
                    _without(each, without) for each in (view.listing, view.changed)
                )
                found = _Selection(view.version, until, listing, changed)
                self._selections.keep(without, found)
            revision = view.revision
            version = str(revision + 1) if is_delta else "1"
        listing = found.changed if is_delta else found.listing
        self._prepare(view, lambda: self._cells(listing, form), zipped, is_quick)
        with view.lock:
            answer: EncodedAnswer | None = listing.kept.get(form)
            if answer is None:
                code = hash_code(found.listing.counts.items())
                answer = _wrapped(self._pieces(listing, form), version, code, form, revision)
                answer.until = found.until
                listing.kept[form] = answer
            return answer

    def application(
        self, app: str, form: Form, *, zipped: bool | None = None, is_quick: bool = False
    ) -> EncodedAnswer | None:
        """One application; None where nothing is registered under its name.

        Of one that is here and in remote regions, the instances that are here.
        """
        app = app.upper()
        view = self._registry.view()

        def cells() -> Iterable[_Cell]:
            application = view.applications.get(app)
            if application is None or application.portions is None:
                return ()
            return self._cells_of(application, application.portions, form, 0)

        with view.lock:
            application = view.applications.get(app)
            if application is None:
                return None
            if self._remote:
                local = [each for each in application.values() if each.source not in self._remote]
                if not local and self._hidden:
                    return None
                if 0 < len(local) < len(application):
                    return self._local_part(application, local, form, view.revision)
            answer: EncodedAnswer | None = application.kept.get(form)
            if answer is not None and (zipped is None or answer.made[zipped]):
                return answer
        self._prepare(view, cells, zipped, is_quick)
        with view.lock:
            application = view.applications.get(app)
            if application is None:
                return None
            return self._whole_application(application, form, view.revision)

    def _whole_application(
        self, application: Application, form: Form, revision: int = 0
    ) -> EncodedAnswer:
        """The answer with all of an application, as of ``revision``."""
        answer: EncodedAnswer | None = application.kept.get(form)
        if answer is None:
            if application.portions is None:
                pieces = [Piece(self._join(application.name, application.values(), form, 0))]
            else:
                cells = self._cells_of(application, application.portions, form, 0)
                pieces = [self._made(cell) for cell in cells]
            answer = self._keep_application(application, form, pieces, form, revision)
        return answer

    def of_past(
        self, instances: Iterable[Instance], form: Form, app: str | None = None
    ) -> EncodedAnswer | None:
        """Everything, or one application, as these instances have it; None for one of none."""
        listing = Listing(instances)
        if app is None:
            return self._listed(listing, "1", form)
        application = listing.applications.get(app.upper())
        return None if application is None else self._whole_application(application, form)

    def _local_part(
        self, application: Application, local: Sequence[Instance], form: Form, revision: int
    ) -> EncodedAnswer:
        """The answer with those instances of an application that are of no remote region."""
        answer: EncodedAnswer | None = application.kept.get(("local", form))
        if answer is None:
            pieces = [Piece(self._join(application.name, local, form, 0))]
            answer = self._keep_application(application, ("local", form), pieces, form, revision)
        return answer

    def _keep_application(
        self,
        application: Application,
        name: Hashable,
        pieces: list[Piece],
        form: Form,
        revision: int,
    ) -> EncodedAnswer:
        """The answer with an application, of its pieces, kept with it by this name."""
        if form.is_json:
            pieces = [_OPENING, *pieces, _CLOSING]
        else:
            pieces[-1] = Piece([*pieces[-1].parts[:-1], pieces[-1].parts[-1].rstrip()])
        answer = application.kept[name] = EncodedAnswer(pieces, form.media, revision)
        self._kept.append((application.kept, name))
        if len(self._kept) > _KEPT_ANSWERS:
            kept, other = self._kept.popleft()
            kept.pop(other, None)
        return answer

    def instance(self, instance: Instance, last_renewal_ms: int, form: Form) -> bytes:
        """A single instance that was last renewed then: ``GET apps/APP/ID``.

        Between two registrations only the instant of the renewal changes, so the bytes before it
        and after it are kept.
        """
        variants = self._variants(instance)
        around: tuple[bytes, ...] | None = variants.get(("alone", form))
        if around is None:
            marked = encode_single(instance._replace(last_renewal_ms=_MARK), form)
            around = tuple(marked.split(b"%d" % _MARK))
            if len(around) != 2:  # the client sent this very number in a field
                return encode_single(instance._replace(last_renewal_ms=last_renewal_ms), form)
            variants["alone", form] = around
        return b"%b%d%b" % (around[0], last_renewal_ms, around[1])

    def vip(
        self,
        vip: str,
        form: Form,
        *,
        secure: bool,
        zipped: bool | None = None,
        is_quick: bool = False,
    ) -> EncodedAnswer:
        """The instances of a VIP; an empty answer where there are none."""
        view = self._registry.view()
        with view.lock:
            kept = self._vips.get((vip, secure, form))
            if (
                kept is not None
                and kept[0] == view.version
                and (zipped is None or kept[1].made[zipped])
            ):
                return kept[1]
            version, listing = view.version, self._of_vip(view, vip, secure=secure)
        if listing.is_large:
            self._prepare(view, lambda: self._cells(listing, form), zipped, is_quick)
        with view.lock:
            if view.version != version:
                listing = self._of_vip(view, vip, secure=secure)
            answer = self._listed(listing, "-1", form, view.revision)
            self._vips.keep((vip, secure, form), (view.version, answer))
            return answer

    def _of_vip(self, view: View, vip: str, *, secure: bool) -> Listing:
        found = view.by_vip(vip, secure=secure)
        return _without(found, self._hidden) if self._hidden else found

    def _join(
        self,
        app: str,
        instances: Iterable[Instance],
        form: Form,
        depth: int,
        opens: bool = True,
        closes: bool = True,
    ) -> list[bytes]:
        """The bytes of an application, in parts: the fragments of these instances among them.

        Of a large application these may be one portion: the first ``opens`` it, the last ``closes``
        it.
        """
        fragments = [self._fragment(instance, form, depth + 1) for instance in instances]
        parts: list[bytes] = []
        if form.is_json:
            if opens:
                parts.append(b'{"name":' + codecs.to_json(app) + b',"instance":[')
            for fragment in fragments:
                parts += (fragment, b",")
            if closes:
                parts[-1] = b"]}"
            return parts
        indent = form is Form.XML
        space = b"  " * depth if indent else b""
        end = b"\n" if indent else b""
        if opens:
            name = codecs.to_xml("name", app, depth + 1, indent=indent).encode()
            parts.append(space + b"<application>" + end + name)
        parts += fragments
        if closes:
            parts.append(space + b"</application>" + end)
        return parts

    def _fragment(self, instance: Instance, form: Form, depth: int) -> bytes:
        variants = self._variants(instance)
        variant = (form, depth) if form is Form.XML else form
        fragment: bytes | None = variants.get(variant)
        if fragment is None:
            tree = wire.compact_tree(instance) if form.is_compact else wire.instance_tree(instance)
            if form.is_json:
                # A copy: the encoder's bytes keep the buffer they were written to, of eight times
                # their size.
                fragment = bytes(memoryview(codecs.to_json(tree)))
            else:
                indent = form is Form.XML
                fragment = codecs.to_xml("instance", tree, depth, indent=indent).encode()
            variants[variant] = fragment
        return fragment

    def _make_room(self, view: View) -> None:
        """Have room for the encoded forms of all that is shown."""
        self._fragments.resize(_FRAGMENTS_BEYOND + view.size() + view.changed.size)

    def _variants(self, instance: Instance) -> dict[Any, Any]:
        """What was encoded of an instance as it is now."""
        place = (instance.app, instance.id)
        kept = self._fragments.get(place)
        # A revision may come again, in another life of the store, with another content.
        if kept is None or (kept[0] is not instance and kept[0] != instance):
            kept = (instance, {})
            self._fragments.keep(place, kept)
        return kept[1]


def _without(listing: Listing, sources: frozenset[str]) -> Listing:
    return Listing(
        instance
        for application in listing.applications.values()
        for instance in application.values()
        if instance.source not in sources
    )


def _wrapped(
    applications: list[Piece], version: str, code: str, form: Form, revision: int
) -> EncodedAnswer:
    opening, closing = _frame(version.encode(), code.encode(), form)
    first = [opening]
    if form.is_json and applications:
        # The first has no comma before it; what is before it changes with every answer anyway.
        first += applications[0].parts[1:]
        applications = applications[1:]
    return EncodedAnswer([Piece(first), *applications, Piece([closing])], form.media, revision)


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
