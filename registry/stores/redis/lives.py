"""Lives: how the machines and Redis agree again after Redis lost something.

A life is bound to one run of the Redis server; in a Cluster, of each server that has a part of the
registry (``scripts.py``). Where a script finds another run, or no life at all (the server was
started anew, or another took over or got the slot, or somebody emptied it), the first who notices
begins another life, which is one for all parts: the root first, then each namespace. Then every
machine *gives back* what its copy has: of each instance the state with the greatest revision
counts, of removed ones too. Nothing is lost that any machine had followed. Only then it *takes up*
what is there as its copy, in the new life. Both together are *adopting* a life. Of the workers of a
machine one adopts it, and the others find it done.

**Numbers.** A life begins at the microsecond in which it does, by Redis' clock, as its first
revision. So its revisions are beyond all that there ever were, also where a machine begins it that
knows of none: nobody changes a namespace a million times a second. Where that clock was set back, a
life begins a little beyond what its beginner knows; and who knows of a later life than the one that
Redis is in begins another.

**Once.** As long as no machine has taken up a life, what is given back keeps its revision, and so
does what Redis still has. So each state is sent once, by the machine that was first (the others
wait for it). Else a machine compares names and revisions alone and fetches what differs; its
records and leases stay as they are. What is given back later is a change, as any other.

**Awaited.** What a machine acknowledged just before, no other may have followed. So in another life
nothing is committed before all machines have taken it up that its beginner had heard of lately; or
before nobody gave anything back for a few seconds, for a machine may be gone. Else a change of what
another machine gives back later would be decided without that, and replace it.

**Many.** A life is adopted by all namespaces together: what is asked for each is a dialog, and they
share their round trips (``server.py``).

**Alone.** What a machine wrote while Redis was away has put its copy into a life of its own
(``LmdbStore.commit_alone``). So it adopts that of Redis before anything else, which may be the one
in which it was before. Where others changed the same meanwhile, the script compares the two.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import NamedTuple, TypeVar

from registry.errors import StoreError
from registry.lease import SystemClock
from registry.model import Instance, InstanceKey, Lease, Namespace, Revision
from registry.store import Commit
from registry.stores.lmdb import Contents, Held, LmdbStore, State, TakenUp
from registry.stores.lmdb.records import decode_instance
from registry.stores.redis import scripts
from registry.stores.redis.records import Begun, Listing, Records, heard_of, listed, packed
from registry.stores.redis.server import AnotherLifeError, Argument, Call, Dialog, Server

log = logging.getLogger("registry")

_T = TypeVar("_T")
_OFFERED_AT_ONCE = 500
_AGAIN_SECS = 0.1
_OPENED_TURNS = 5
# For so long a life is adopted again where Redis loses something meanwhile.
_ADOPTED_SECS = 3.0
# Where Redis' clock was set back, a life begins so far beyond what is known: more changes than can
# be lost that its beginner had not heard of; and yet the clock has soon caught up.
_BEYOND_KNOWN = 1 << 18
_NOTHING = (Revision(0), Revision(0))
# After it nothing changed: what is asked is how far a namespace is.
_BEYOND = Revision(1 << 60)
# Notes in the copy: of which registry it is one, and who this machine is among the others.
_COPY_OF, _NODE = "redis/copy-of", "redis/node"
# And which machines there are, this one among them, as far as it heard of them.
_NODES = "redis/nodes"
_ADOPTING = "adopting"


class OtherFormatError(StoreError):
    """What Redis has is another version's, which reads and writes it otherwise."""


class _Given(NamedTuple):
    """What the copy had of a namespace, and what Redis has after it was offered that."""

    held: Held
    listing: Listing
    taken: int
    """How much of what was offered it took."""


class _Part(NamedTuple):
    """How a part of the registry stands in Redis, as the script tells it."""

    life: Revision | None
    run: bytes
    """The run of the server in which the life began, and the format in which it is kept."""
    server_run: bytes
    """The server's own, and this version's format."""
    revision: Revision
    size: int
    begin: bytes
    """By which request it began, and when."""
    is_open: bool
    claim: int
    """The claim of a namespace; 0 where it never had one, less where that was taken from it."""

    @classmethod
    def of(cls, told: list[bytes]) -> _Part:
        life, run, server_run, revision, size, begin, is_open, claim = told
        return cls(
            Revision(int(life)) if life else None,
            run,
            server_run,
            Revision(int(revision)),
            int(size),
            begin,
            bool(is_open),
            int(claim or 0),
        )

    def is_lost(self, life: Revision, begun: Begun | None) -> bool:
        """Whether a namespace's is not as the root has it that was begun, in the root's life.

        Its server may be another run since, too; or the root lost something, and the part did not.
        """
        if begun is None or begun.life != life:
            return self.life is not None and self.life > life
        return (self.life, self.begin, self.run) != (*begun, self.server_run)

    def is_ready(self, life: Revision, *, holds: bool) -> bool:
        """Whether a namespace's is open in a life, and has a claim if it ``holds`` instances."""
        return self.life == life and self.is_open and (self.claim > 0 or not (holds or self.size))

    @property
    def format(self) -> str:
        return self.run.partition(b"/")[2].decode() or "0"

    def seen(self) -> tuple[Argument, Argument, Argument]:
        """What the script compares before it begins another life."""
        return "" if self.life is None else self.life, self.run, self.server_run


class Lives:
    """The life that the machine's copy is in. Thread-safe, also among the machine's workers."""

    def __init__(
        self, server: Server, copy: LmdbStore, prefix: str, first_life: Revision | None
    ) -> None:
        """``StoreError`` where the folder is a copy of another registry.

        ``first_life`` is where revisions begin if Redis is empty.
        """
        self._server = server
        self._records = Records(server)
        self._copy = copy
        self._prefix = prefix
        self._first_life = first_life
        self._clock = SystemClock()
        # The greatest revision that was seen in Redis, also where that was lost since.
        self._seen = Revision(0)
        self.node = self._identify()
        """The name of this machine among the others."""

    def _identify(self) -> str:
        with self._copy.locked(_ADOPTING):
            copy_of = self._copy.note(_COPY_OF)
            if copy_of is not None and copy_of.decode() != self._prefix:
                raise StoreError(f"the folder is a copy of the registry {copy_of.decode()!r}")
            node = self._copy.note(_NODE)
            if node is None:
                node = uuid.uuid4().hex.encode()
                self._copy.set_note(_NODE, node)
        return node.decode()

    def has_copy(self) -> bool:
        """Whether this machine ever had what Redis has."""
        return self._copy.note(_COPY_OF) is not None

    def in_life(self, call: Callable[[Revision], _T]) -> _T:
        """What a call answers that is given the copy's life, once that is the one Redis is in.

        ``StoreError`` where the call is refused in that one for some seconds, too.
        """
        refused_in = None
        until = time.monotonic() + _ADOPTED_SECS
        with self._server.one_window():
            while True:
                life = self._copy.life()
                try:
                    return call(life)
                except AnotherLifeError:
                    if life == refused_in:
                        if time.monotonic() > until:
                            raise self._again_and_again() from None
                        time.sleep(_AGAIN_SECS)
                    refused_in = life
                self.adopt()

    def _again_and_again(self) -> StoreError:
        return StoreError(f"Redis at {self._server.shown} loses what is given back to it")

    def known_nodes(self) -> list[bytes]:
        """The machines that there are, this one among them, as far as this one heard of them."""
        return (self._copy.note(_NODES) or b"").split()

    def know_of(self, nodes: Iterable[bytes]) -> None:
        """Remember the machines that there are; ``StoreError``."""
        noted = b" ".join(sorted(nodes))
        if noted != self._copy.note(_NODES):
            self._copy.set_note(_NODES, noted)

    def adopt(self, *, lost: bool = False) -> None:
        """Have the copy in the life that Redis is in, after giving back what Redis lacks.

        Another life begins first where Redis is in none, in one of an earlier run, or in one before
        the copy's; or where it ``lost`` something that it had acknowledged. ``StoreError``
        (``OtherFormatError`` among them), also where Redis loses something meanwhile for some
        seconds.
        """
        until = None
        while True:
            try:
                self._adopt(lost=lost)
                return
            except AnotherLifeError:
                now = time.monotonic()
                until = until or now + _ADOPTED_SECS
                if now > until:
                    raise self._again_and_again() from None
            lost = False  # what was lost before another life began is given back in that
            time.sleep(_AGAIN_SECS)

    def _adopt(self, *, lost: bool) -> None:
        """``adopt``, but for ``AnotherLifeError`` where Redis lost something meanwhile."""
        with self._copy.locked(_ADOPTING):
            root = self._server.ask(self._look(None))
            if root.life is not None and root.format != str(scripts.FORMAT):
                raise OtherFormatError(
                    f"Redis at {self._server.shown} has a registry of format {root.format}, "
                    f"and this version writes format {scripts.FORMAT}"
                )
            begun = self._records.begun()
            is_copy = self.has_copy()
            held = self._copy.namespaces()
            if not is_copy and root.life is not None and any(held.values()) and begun:
                raise StoreError(
                    f"Redis at {self._server.shown} has a registry, and the folder another: "
                    "start with an empty folder, or with an empty Redis"
                )
            parts = self._server.ask_each(self._look, begun.keys() | held.keys())
            seen = [part.revision for part in parts.values()]
            self._seen = max([self._seen, root.life or self._seen, *seen])
            life, former = root.life, self._copy.offering.former_life() if is_copy else 0
            if life is None or root.run != root.server_run or life < former:
                lost = True
            elif not lost:
                lost = any(part.is_lost(life, begun.get(each)) for each, part in parts.items())
                lost |= life == former and self._is_behind(parts)
            is_own = False
            if life is None or lost:
                life, is_own = self._begin(root, parts, is_copy=is_copy)
                if not is_own and life < former:
                    raise AnotherLifeError  # who was sooner knew less
            is_adopted = is_copy and self._copy.life() == life
            if not (is_own or is_adopted):
                self._await_opened(life, held)
            is_in_place = is_copy or any(held.values())
            opened = {
                each
                for each, part in parts.items()
                if part.is_ready(life, holds=held.get(each, 0) > 0)
            }
            while True:
                namespaces = self._records.begun().keys() | held.keys()
                self._open_all(life, namespaces - opened, parts if is_own else ())
                if is_adopted:
                    return
                if self._take_up(life, self._give_back_all(life, namespaces), is_in_place):
                    break
                # What was written in the former life was still on its way into the copy, and may
                # have been the first of its namespace.
                held = self._copy.namespaces()
                opened |= namespaces
            sizes = self._copy.namespaces()
            self._open_all(life, [each for each in sizes if sizes[each] > held.get(each, 0) == 0])
            self._tell_given(life)

    def _is_behind(self, parts: Mapping[Namespace, _Part]) -> bool:
        """Whether Redis lacks what this machine had of it before it went on by itself.

        A server may lose its office and get it back, in one life and run, without the last writes.
        """
        bases = self._copy.offering.bases()
        return any(0 < parts[each].revision < at for each, at in bases.items() if each in parts)

    def _tell_given(self, life: Revision) -> None:
        """Have nobody wait for this machine any more, where that can be told."""
        told = life, self.node
        with suppress(StoreError, AnotherLifeError):
            # In this order: what is begun after it does not await this machine.
            self._server.run(scripts.GIVEN, None, *told)
            self._server.run_each(
                [Call(scripts.GIVEN, each, told) for each in self._records.begun()]
            )

    def _look(self, namespace: Namespace | None) -> Dialog[_Part]:
        told = yield Call(scripts.LIFE, namespace, ("", "", "", "", ""))
        return self._part(namespace, told)

    def _part(self, namespace: Namespace | None, told: list[bytes]) -> _Part:
        with self._server.reading("life", namespace):
            int(told[0] or 0)
        with self._server.reading("meta", namespace):
            return _Part.of(told)

    def _begin(
        self, root: _Part, parts: Mapping[Namespace, _Part], *, is_copy: bool
    ) -> tuple[Revision, bool]:
        """Begin another life at the root, unless another machine did; with these namespaces listed.

        The one that it is in, and whether it was this machine.
        """
        if root.life is not None or self._first_life is None:
            greatest = self._copy.offering.greatest() if is_copy else Revision(0)
            known, beyond = max(self._seen, greatest), _BEYOND_KNOWN
        else:
            known, beyond = self._first_life, 0
        # One that knows of no other awaits nobody.
        awaited = [] if self.known_nodes() == [self.node.encode()] else self.known_nodes()
        request = uuid.uuid4().hex
        begins = known, *root.seen(), request, "", beyond, len(awaited), *awaited, *parts
        told = self._server.run(scripts.LIFE, None, *begins)
        if root.life is not None or is_copy:
            log.warning("Redis may have lost something: another life of the registry begins")
        begun = self._part(None, told)
        if begun.life is None:
            raise AnotherLifeError
        return begun.life, begun.begin.startswith(request.encode())

    def _await_opened(self, life: Revision, held: Collection[Namespace]) -> None:
        """Leave a moment to who began a life, to begin all namespaces in it."""
        for _ in range(_OPENED_TURNS):
            begun = self._records.begun()
            if begun.keys() >= set(held) and all(
                found is not None and found.life == life for found in begun.values()
            ):
                return
            time.sleep(_AGAIN_SECS)

    def _open_all(
        self,
        life: Revision,
        namespaces: Collection[Namespace],
        untaken: Collection[Namespace] = (),
    ) -> None:
        """Have namespaces open in a life, with a claim for each that holds instances.

        ``untaken``: those that no machine can have taken up the life without (``_open``).
        """
        sizes = self._copy.namespaces()

        def open_one(namespace: Namespace) -> Dialog[None]:
            part = yield from self._look(namespace)
            holds = sizes.get(namespace, 0) > 0 or part.size > 0
            if part.is_ready(life, holds=holds):
                return
            is_first = namespace in untaken
            yield from self._open(
                life, namespace, holds=holds, most=None, part=part, is_first=is_first
            )

        self._server.ask_each(open_one, namespaces)

    def open(
        self, life: Revision, namespace: Namespace, *, holds: bool, most: int | None = None
    ) -> bool:
        """Have a namespace begun in a life; ``StoreError``, ``AnotherLifeError``.

        Where it ``holds`` instances, or is to: whether it may, ``most`` namespaces at a time.
        """
        for _ in range(2):
            claimed = self._server.ask(self._open(life, namespace, holds=holds, most=most))
            if claimed is None:
                return True
            self._yield(life, claimed)
        return False

    def _open(
        self,
        life: Revision,
        namespace: Namespace,
        *,
        holds: bool,
        most: int | None,
        part: _Part | None = None,
        is_first: bool = False,
    ) -> Dialog[list[bytes] | None]:
        """Have a namespace open; or those that have all the claims that there may be.

        ``part`` is how it was found. ``is_first``: the life began here with this namespace listed,
        so nobody can have taken it up without; else somebody may have, and what is given back of
        it is a change.
        """
        asked = life, namespace, "1" if holds else "", "" if most is None else most
        told, claim, tokens, awaited = yield Call(scripts.OPEN, None, asked)
        if holds and not claim:
            return list(tokens)
        with self._server.reading("namespaces"):
            begun = Begun.of(told)
        begin = None if begun is None or begun.life != life else begun.begin
        awaits: tuple[Argument, ...] = ("",)
        if begin is None:
            if part is None:
                part = yield from self._look(namespace)
            if part.life is None or part.life < life:
                now, may_be_taken = self._server.now(), "" if is_first else "1"
                begins = life, *part.seen(), now, may_be_taken, "", len(awaited), *awaited
                part = self._part(namespace, (yield Call(scripts.LIFE, namespace, begins)))
            if part.life != life:
                raise AnotherLifeError
            noted = yield Call(scripts.BEGUN, None, (life, namespace, part.begin))
            begin, is_news, tokens, awaited = noted
            if is_news:
                awaits = len(awaited), *awaited
        yield Call(scripts.OPENED, namespace, (life, begin, claim, *awaits, *tokens))
        return None

    def _yield(self, life: Revision, claimed: Iterable[bytes]) -> None:
        """Take the claims from namespaces that are empty."""

        def take(namespace: Namespace) -> Dialog[None]:
            claim = yield Call(scripts.YIELD, namespace, (life,))
            if claim:
                yield Call(scripts.YIELDED, None, (life, namespace, claim))

        sizes = self._copy.namespaces()
        named = [Namespace(name.decode()) for name in claimed]
        self._server.ask_each(take, [each for each in named if sizes.get(each) == 0])

    def fence(self, lock: str, token: int) -> None:
        """Have all namespaces refuse what is fenced with an earlier token; ``StoreError``."""
        life = self._copy.life()
        calls = [
            Call(scripts.OPENED, namespace, (life, "", "", "", lock, token))
            for namespace, begun in self._records.begun().items()
            if begun is not None
        ]
        for answer in self._server.run_each(calls):
            if isinstance(answer, Exception):
                raise answer

    def take_up_again(self, life: Revision, namespace: Namespace, after: Revision) -> None:
        """Make the copy what Redis has, where it cannot go on from a revision.

        It is not done where another worker brought it further meanwhile. ``StoreError``,
        ``AnotherLifeError``.
        """
        with self._copy.locked(_ADOPTING):
            if self._copy.life() == life and self._copy.revision(namespace) == after:
                self._replace(life)

    # Giving back.

    def _give_back_all(
        self, life: Revision, namespaces: Iterable[Namespace]
    ) -> dict[Namespace, _Given]:
        """Give back what Redis lacks of each, and say in one line how much that was."""
        given = self._server.ask_each(partial(self._give_back, life), namespaces)
        counts = [found.taken for found in given.values() if found.taken]
        if counts:
            log.warning("gave %d changes in %d namespaces back to Redis", sum(counts), len(counts))
        return given

    def _give_back(self, life: Revision, namespace: Namespace) -> Dialog[_Given]:
        """Offer Redis what the copy has, as far as that is later than what Redis has."""
        records, node = self._records, self.node
        while True:
            held = self._copy.offering.held(namespace)
            theirs = yield from records.listing(life, namespace, node, takes_up=False)
            if theirs is not None:
                break
            yield None
        states, written, count = theirs.states, held.written, 0
        if held.former_life == life and self.has_copy():
            # Redis lost nothing: what it lacks has gone, but for what was written here since.
            wanted = [
                name
                for name, revision in held.revisions.items()
                if name in written or revision > held.based_on
            ]
            held = held._replace(unlisted_overrides={})
        else:
            wanted = [
                name
                for name, revision in held.revisions.items()
                if _may_lack(revision, states.get(name, _NOTHING), is_alone=name in written)
            ]
        if wanted or held.unlisted_overrides or not theirs.is_taken:
            count = yield from self._offer(life, namespace, held, wanted)
            theirs = yield from records.listing(life, namespace, node, takes_up=True)
            assert theirs is not None
        return _Given(held, theirs, count)

    def _offer(
        self, life: Revision, namespace: Namespace, held: Held, wanted: Sequence[bytes]
    ) -> Dialog[int]:
        """Offer some of what is held; how much of it was taken."""
        expected = self._copy.expected_clients(namespace)
        unlisted = [
            (b"\0" + each.encode() + b"\0", b"0", b"", b"o", b"", status.encode(), b"", b"", b"0")
            for each, status in held.unlisted_overrides.items()
        ]
        given = 0
        for start in range(0, max(1, len(wanted)), _OFFERED_AT_ONCE):
            items = [
                self._item(held, each)
                for each in self._copy.offering.states(
                    namespace, wanted[start : start + _OFFERED_AT_ONCE]
                )
            ]
            told = packed(value for each in (*items, *unlisted) for value in each)
            unlisted = []
            now, counted = self._server.now(), "" if expected is None else expected
            offered = life, now, self.node, counted, told
            given += yield Call(scripts.OFFER, namespace, offered, max(1, len(items)))
        return given

    def _item(self, held: Held, state: State) -> tuple[bytes, ...]:
        """A state as it is offered."""
        now = self._clock.mono_ms()  # the instant of writing may be of an earlier boot
        lease, written, at = state.lease, held.written.get(state.name), state.at_running_ms
        changed = None if at is None else now - (self._copy.running_ms(now) - at)
        lease = lease and self._from_now(lease)
        return (
            state.name,
            b"%d" % state.revision,
            state.encoded,
            b"" if state.is_listed else b"r" if state.encoded else b"o",
            b"" if lease is None else self._records.told(lease).encode(),
            state.override,
            b"" if written is None else b"%d" % self._server.time_of(min(written, now)),
            b"%d" % held.based_on if written is not None else self._told(changed),
            b"%d" % held.given_as.get(state.revision, state.revision),
        )

    def _told(self, at_mono_ms: int | None) -> bytes:
        """An instant in Redis' time; 0 where it is not known."""
        return b"0" if at_mono_ms is None else b"%d" % max(0, self._server.time_of(at_mono_ms))

    # Taking up.

    def _take_up(
        self, life: Revision, given: Mapping[Namespace, _Given], is_in_place: bool
    ) -> bool:
        """Make the copy what Redis has; False where it moved on since it was ``given``.

        Where the log in Redis tells of all that is listed, only what differs is fetched.
        """
        known = {each: found.held.revision for each, found in given.items()}
        if not is_in_place or any(each.listing.complete_after != life for each in given.values()):
            return self._replace(life, known)
        heard = self._server.ask_each(self._records.last_batch, given)
        taken = self._server.ask_each(
            lambda each: self._differences(life, each, given[each]), given
        )
        if any(each.complete_after != life for each in taken.values()):
            return self._replace(life, known)  # some of what differs was forgotten meanwhile
        for namespace in given:
            self._copy.offering.touch(namespace, self._clock.mono_ms())
        if not self._copy.take_up(life, taken, known, self._notes(heard)):
            return False
        self._copy.extend_all(self._clock.mono_ms())
        return True

    def _differences(self, life: Revision, namespace: Namespace, given: _Given) -> Dialog[TakenUp]:
        held, listing, _ = given
        names = [
            name
            for name, (revision, _) in listing.states.items()
            if held.revisions.get(name) != revision
        ]
        decided, given_as = [], {}
        for entry in (yield from self._records.named(life, namespace, names)):
            lease = None if entry.lease is None else self._from_now(entry.lease[0])
            decided.append((entry.revision, entry.commit._replace(lease=lease)))
            if entry.given_as:
                given_as[entry.revision] = entry.given_as
        lacking = [name for name in held.revisions if name not in listing.states]
        for state in self._copy.offering.states(namespace, lacking):
            if state.is_listed:
                instance = decode_instance(state.encoded, state.revision)
                now = self._clock.mono_ms()
                gone = Commit(instance.key, state.revision, None, now, instance, remove=True)
                decided.append((state.revision, gone))
        decided.sort(key=itemgetter(0))
        # The script after it says whether this is of the life still.
        overrides = yield from self._records.overrides(namespace)
        standing = yield from self._records.fetch(life, namespace, _BEYOND, is_first=True)
        return TakenUp(
            listing.revision,
            standing.complete_after,
            decided,
            overrides,
            standing.expected,
            given_as,
        )

    def _replace(self, life: Revision, known: Mapping[Namespace, Revision] | None = None) -> bool:
        namespaces = self._records.namespaces_in(life)
        self._open_all(life, namespaces)  # one may just be begun by another machine
        heard = self._server.ask_each(self._records.last_batch, namespaces)
        contents = self._server.ask_each(partial(self._contents, life), namespaces)
        return self._copy.replace(life, contents, known, self._notes(heard))

    def _notes(self, heard: Mapping[Namespace, bytes]) -> dict[str, bytes]:
        """What is noted where the copy becomes one."""
        numbers = {heard_of(namespace): number for namespace, number in heard.items()}
        return {_COPY_OF: self._prefix.encode(), **numbers}

    def _contents(self, life: Revision, namespace: Namespace) -> Dialog[Contents]:
        """All that Redis has of a namespace: page by page, and then what changed meanwhile."""
        records = self._records
        while True:
            standing = yield from records.fetch(life, namespace, _BEYOND, is_first=True)
            first = standing.revision
            overrides = yield from records.overrides(namespace)
            instances: dict[InstanceKey, Instance] = {}
            leases: dict[InstanceKey, Lease] = {}
            cursor: bytes | None = None
            while cursor != b"0":
                cursor, page = yield from records.page(life, namespace, cursor)
                with self._server.reading("record", namespace):
                    instances |= {key: listed(record) for key, record, _ in page}
                for key, _, listed_lease in page:
                    if listed_lease is not None:
                        leases[key] = self._from_now(listed_lease)
            log_after = Revision(0)
            changes: dict[bytes, tuple[Revision, Commit]] = {}
            given_as: dict[Revision, Revision] = {}
            while True:
                fetched = yield from records.fetch(
                    life, namespace, log_after, known_until=first, is_first=not log_after
                )
                for at, told, lease, name, before in fetched.entries:
                    log_after, commit = at, told
                    if before:
                        given_as[at] = before
                    known = instances.get(commit.key)
                    if commit.instance is None and known is not None and known.revision == at:
                        commit = commit._replace(instance=known)
                    # It may have been among an earlier portion, and changed again meanwhile.
                    changes.pop(name, None)
                    changes[name] = at, commit
                    if commit.instance is not None and commit.remove:
                        instances.pop(commit.key, None)
                        leases.pop(commit.key, None)
                    elif commit.instance is not None:
                        instances[commit.key] = commit.instance
                        if lease is not None:
                            leases[commit.key] = self._from_now(lease[0])
                    if commit.override is not None:
                        instance_id, status = commit.override
                        overrides.pop(instance_id, None)
                        if status is not None:
                            overrides[instance_id] = status
                if fetched.is_all:
                    break
            if fetched.complete_after <= max(first, life):
                return Contents(
                    fetched.revision,
                    fetched.complete_after,
                    tuple(instances.values()),
                    overrides,
                    list(changes.values()),
                    leases,
                    fetched.expected,
                    given_as,
                )

    def _from_now(self, lease: Lease) -> Lease:
        """A lease with its whole duration left: while it was not followed it may have renewed."""
        deadline = self._clock.mono_ms() + lease.duration_ms
        return lease._replace(deadline_mono_ms=max(deadline, lease.deadline_mono_ms))


def _may_lack(revision: Revision, there: tuple[Revision, Revision], *, is_alone: bool) -> bool:
    """Whether Redis may lack a state that is held with a revision, beside what is ``there``.

    Of that the revision is given, and that with which it was given back; which tells nothing beside
    others where it was written alone. ``is_alone``: the held one was.
    """
    known, before = there
    if is_alone:
        return revision != before
    return revision > known or (revision != known and before != known)
