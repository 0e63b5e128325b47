"""Lives: how the machines and Redis agree again after Redis lost something.

A life is bound to one run of the Redis server; in a Cluster, of each server that has a part of the
registry (``scripts.py``). Where a script finds another run, or no life at all (the server was
started anew, or another took over or got the slot, or somebody emptied it), the first who notices
begins another life, which is one for all parts: the root first, then each namespace. Then every
machine *gives back* what its copy has: of each instance the state with the greatest revision
counts, of removed ones too. Nothing is lost that any machine had followed. Only then it *takes up*
what is there as its copy, in the new life. Both together are *adopting* a life. Of the workers of a
machine one adopts it, and the others find it done.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar, cast

from registry.errors import StoreError
from registry.lease import SystemClock
from registry.model import Instance, InstanceKey, Lease, Namespace, Revision
from registry.store import Commit, another_life
from registry.stores.lmdb import Contents, LmdbStore
from registry.stores.lmdb.records import encode_instance
from registry.stores.redis import scripts
from registry.stores.redis.records import Records, heard_of, listed, name_of
from registry.stores.redis.server import AnotherLifeError, Argument, Call, Server

log = logging.getLogger("registry")

_T = TypeVar("_T")
_OFFERED_AT_ONCE = 500
_ASKED_AT_ONCE = 2_000
_NEVER = 1 << 61
# Notes in the copy: of which registry it is one, and who this machine is among the others.
_COPY_OF, _NODE = "redis/copy-of", "redis/node"
_ADOPTING = "adopting"


class _Part(NamedTuple):
    """How a part of the registry stands in Redis, as the script tells it."""

    life: Revision | None
    run: bytes
    """The run of the server in which the life began."""
    server_run: bytes
    revision: Revision
    size: int

    @classmethod
    def of(cls, told: list[bytes]) -> _Part:
        life, run, server_run, revision, size = told
        return cls(
            Revision(int(life)) if life else None,
            run,
            server_run,
            Revision(int(revision)),
            int(size),
        )

    def is_in(self, life: Revision) -> bool:
        """Whether it is in a life, and its server still is the run in which that began."""
        return self.life == life and self.run == self.server_run

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
        """What a call answers that is given the copy's life, once that is the one Redis is in."""
        while True:
            try:
                return call(self._copy.life())
            except AnotherLifeError:
                self.adopt()

    def adopt(self, *, lost: bool = False) -> None:
        """Have the copy in the life that Redis is in, after giving back what Redis lacks.

        Another life begins first where Redis is in none, or in one of an earlier run; or where it
        ``lost`` something that it had acknowledged. ``StoreError``, and ``AnotherLifeError`` where
        Redis lost something meanwhile.
        """
        with self._copy.locked(_ADOPTING):
            root = self._look(None)
            begun = self._records.begun()
            is_copy = self.has_copy()
            held = self._copy.namespaces()
            if not is_copy and root.life is not None and any(held.values()) and begun:
                raise StoreError(
                    f"Redis at {self._server.shown} has a registry, and the folder another: "
                    "start with an empty folder, or with an empty Redis"
                )
            parts = self._look_at_each(begun.keys() | held.keys())
            life = root.life
            if life is None or root.run != root.server_run:
                lost = True
            elif not lost:
                lost = any(
                    in_life == life and not parts[each].is_in(life)
                    for each, in_life in begun.items()
                )
            if life is None or lost:
                life = self._begin(root, parts.values(), is_copy=is_copy)
                begun = self._records.begun()
            for namespace in begun.keys() | held.keys():
                if begun.get(namespace) != life:
                    self.open(life, namespace, holds=self._holds(namespace))
            if is_copy and self._copy.life() == life:
                return
            is_given_back = False
            while not is_given_back:
                # What was written in the former life may still be on its way into the copy.
                known = {each: self._copy.revision(each) for each in self._copy.namespaces()}
                for namespace in known:
                    self._give_back(life, namespace)
                is_given_back = self._take_up(life, known)

    def _look(self, namespace: Namespace | None) -> _Part:
        return _Part.of(self._server.run(scripts.LIFE, namespace, "", "", "", "", ""))

    def _look_at_each(self, namespaces: Iterable[Namespace]) -> dict[Namespace, _Part]:
        calls = [Call(scripts.LIFE, each, ("", "", "", "", "")) for each in namespaces]
        parts = {}
        for call, answer in zip(calls, self._server.run_each(calls), strict=True):
            if isinstance(answer, Exception):
                raise answer
            parts[cast(Namespace, call.namespace)] = _Part.of(answer)
        return parts

    def _begin(self, root: _Part, parts: Iterable[_Part], *, is_copy: bool) -> Revision:
        """Begin another life at the root, unless another machine did; the one that it is in."""
        if root.life is not None or self._first_life is None:
            known = max([root.life or 0, self._greatest(), *(part.revision for part in parts)])
            life = another_life(Revision(known))
        else:
            life = self._first_life
        if root.life is not None or is_copy:
            log.warning("Redis may have lost something: another life of the registry begins")
        begun = _Part.of(self._server.run(scripts.LIFE, None, life, *root.seen(), "")).life
        if begun is None:
            raise AnotherLifeError
        return begun

    def _holds(self, namespace: Namespace) -> bool:
        return self._copy.namespaces().get(namespace, 0) > 0 or self._look(namespace).size > 0

    def open(
        self, life: Revision, namespace: Namespace, *, holds: bool, most: int | None = None
    ) -> bool:
        """Have a namespace begun in a life; ``StoreError``, ``AnotherLifeError``.

        Where it ``holds`` instances, or is to: whether it may, ``most`` namespaces at a time.
        """
        server = self._server
        asked = (life, namespace, "1" if holds else "", "" if most is None else most)
        begun, claim, told = server.run(scripts.OPEN, None, *asked)
        if holds and not claim:
            self._yield(life, told)
            begun, claim, told = server.run(scripts.OPEN, None, *asked)
            if not claim:
                return False
        is_begun = begun != b"" and int(begun) == life
        if not is_begun:
            part = self._look(namespace)
            if part.life is None or part.life < life:
                now = server.now()
                server.run(scripts.LIFE, namespace, life, *part.seen(), now)
        server.run(scripts.OPENED, namespace, life, claim, *told)
        if not is_begun:
            server.run(scripts.BEGUN, None, life, namespace)
        return True

    def _yield(self, life: Revision, claimed: Iterable[bytes]) -> None:
        """Take the claims from namespaces that are empty."""
        held = self._copy.namespaces()
        for name in claimed:
            namespace = Namespace(name.decode())
            if held.get(namespace) == 0:
                claim = self._server.run(scripts.YIELD, namespace, life)
                if claim:
                    self._server.run(scripts.YIELDED, None, life, namespace, claim)

    def fence(self, lock: str, token: int) -> None:
        """Have all namespaces refuse what is fenced with an earlier token; ``StoreError``."""
        life = self._copy.life()
        calls = [
            Call(scripts.OPENED, namespace, (life, "", lock, token))
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
                self._take_up(life)

    def _greatest(self) -> Revision:
        """The greatest revision that the copy knows."""
        known = [self._copy.revision(namespace) for namespace in self._copy.namespaces()]
        return max([self._copy.life(), *known])

    # Giving back.

    def _give_back(self, life: Revision, namespace: Namespace) -> None:
        """Offer Redis what the copy has, as far as that is later than what Redis has."""
        snapshot = self._copy.load(namespace)
        leases = dict(self._copy.due(namespace, _NEVER).expired)
        expected = self._copy.expected_clients(namespace)
        held = [(instance, 0) for instance in snapshot.instances] + [
            (change.instance, 1)
            for change in snapshot.changes
            if change.instance is not None and change.removed
        ]
        wanted = list(self._wanted(life, namespace, held))

        def offer(instance: Instance, removed: int) -> Iterator[Argument]:
            lease = None if removed else leases.get(instance.key)
            override = "" if removed else snapshot.overrides.get(instance.id, "")
            yield from (name_of(instance.key), instance.revision)
            yield from (encode_instance(instance), removed)
            yield from ("" if lease is None else self._records.told(lease), override)

        given = 0
        for start in range(0, max(1, len(wanted)), _OFFERED_AT_ONCE):
            portion = [
                value for each in wanted[start : start + _OFFERED_AT_ONCE] for value in offer(*each)
            ]
            given += int(
                self._server.run(
                    scripts.OFFER,
                    namespace,
                    life,
                    self._server.now(),
                    self.node,
                    "" if expected is None else expected,
                    *portion,
                )
            )
        if given:
            log.warning("gave %d changes in %s back to Redis", given, namespace)

    def _wanted(
        self, life: Revision, namespace: Namespace, held: list[tuple[Instance, int]]
    ) -> Iterator[tuple[Instance, int]]:
        """Of what the copy has, what is news to Redis."""
        for start in range(0, len(held), _ASKED_AT_ONCE):
            portion = held[start : start + _ASKED_AT_ONCE]
            names = [
                value
                for instance, removed in portion
                for value in (name_of(instance.key), instance.revision, removed)
            ]
            for place in self._server.run(scripts.WANT, namespace, life, *names):
                yield portion[place]

    # Taking up.

    def _take_up(self, life: Revision, known: Mapping[Namespace, Revision] | None = None) -> bool:
        """Make the copy what Redis has; False where it is no more at what is ``known`` of it."""
        heard, contents = {}, {}
        for each in self._records.namespaces():
            name = self._server.name("told", each)
            heard[each] = self._server.call("GET", name, namespace=each) or b"0"
            contents[each] = self._contents(life, each)
        if not self._copy.replace(life, contents, known):
            return False
        for each, number in heard.items():
            self._copy.set_note(heard_of(each), number)
        self._copy.set_note(_COPY_OF, self._prefix.encode())
        return True

    def _contents(self, life: Revision, namespace: Namespace) -> Contents:
        """All that Redis has of a namespace: page by page, and then what changed meanwhile."""
        records = self._records
        while True:
            first = records.fetch(life, namespace, Revision(1 << 60)).revision
            overrides = records.overrides(namespace)
            instances: dict[InstanceKey, Instance] = {}
            leases: dict[InstanceKey, Lease] = {}
            for key, record, listed_lease in records.pages(life, namespace):
                instances[key] = listed(record)
                if listed_lease is not None:
                    leases[key] = self._from_now(listed_lease)
            log_after = Revision(0)
            changes: list[tuple[Revision, Commit]] = []
            while True:
                fetched = records.fetch(life, namespace, log_after, known_until=first)
                for at, told, lease in fetched.entries:
                    log_after, commit = at, told
                    known = instances.get(commit.key)
                    if commit.instance is None and known is not None and known.revision == at:
                        commit = commit._replace(instance=known)
                    changes.append((at, commit))
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
                    changes,
                    leases,
                    fetched.expected,
                )

    def _from_now(self, lease: Lease) -> Lease:
        """A lease with its whole duration left: while it was not followed it may have renewed."""
        deadline = self._clock.mono_ms() + lease.duration_ms
        return lease._replace(deadline_mono_ms=max(deadline, lease.deadline_mono_ms))
