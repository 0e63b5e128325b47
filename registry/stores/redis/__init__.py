"""Many machines, one registry: the truth is in Redis, and each machine has a copy of it.

**The copy** is an LMDB store in a folder of the machine (``lmdb.py``), which all of its workers
share. All reads are of the copy, so they cost no call and go on while Redis is away; all that one
worker knows all workers of the machine know. It survives them: a machine that is started while
Redis is away serves what it last had.

**Writing.** A group of commits is one script (``scripts.py``), which looks at the guards, and
answers with the revisions and with what others changed before and the copy lacks. Both go into the
copy before the writer is answered.

**Following.** A thread in each worker is told when the registry moved on, and brings the changes
into the copy unless another worker was faster. What is no news to the copy it passes over, so
nobody needs to wait for anybody.

**Renewals** are stores into the copy's lease file and nothing else. A few times a second one worker
of each machine (*the teller*) tells Redis whose leases were renewed here, and hears of the others'.
With it goes until when everything was told. An eviction is refused as long as a machine that was
heard of in the last five seconds has not told beyond the lease's deadline, or where the evictor has
not heard the lease's last renewal. So none of them evicts what another renewed in time.

**Time.** Callers speak of this machine's monotonic clock. What leaves the machine is translated
into Redis' time (``server.py``), what comes is translated back. Nobody's wall clock matters; where
Redis' own is set, machines go on from their copies' leases.

**Lives.** A life is bound to one run of the Redis server. Where a script finds another run, or no
life at all (the server was started anew, or another took over, or somebody emptied it), the first
who notices begins another life. Then every machine *gives back* what its copy has: of each instance
the state with the greatest revision counts, of removed ones too. Nothing is lost that any machine
had followed. Only then it takes up what is there as its copy, in the new life.

**Pauses.** That the server runs is noted in the copy where Redis answers (``resume``). So while it
is away running time stands still on every machine, and when it is back the copy's leases get their
whole duration, before anybody can be evicted.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson
import redis

from registry.errors import ConflictError, StoreError
from registry.lease import SystemClock, renewal_window
from registry.model import (
    Change,
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
    Snapshot,
)
from registry.store import Commit, Due, Fence, StoreState, another_life
from registry.stores.lmdb import Contents, LmdbStore, Renewed
from registry.stores.records import decode_instance, encode_instance
from registry.stores.redis import scripts
from registry.stores.redis.server import (
    Address,
    AnotherLifeError,
    Argument,
    Server,
    read_address,
)

__all__ = ["RedisStore", "read_address"]

log = logging.getLogger("registry")

_T = TypeVar("_T")
_TELL_SECS = 0.2
_TELLER_MS = 1_000
_TOLD_AT_ONCE = 2_000
_FETCHED_AT_ONCE = 1_000
_PAGE = 1_000
_LISTENS_SECS = 0.25
_AGAIN_SECS = 0.2
_TRIMMED_AT_ONCE = 1_000
_OFFERED_AT_ONCE = 500
_ASKED_AT_ONCE = 2_000
# Notes in the copy, which are none of the contract's.
_COPY_OF, _NODE, _TELLER = "redis/copy-of", "redis/node", "redis/teller"
_HEARD, _COUNTED = "redis/heard", "redis/counted"
_ENTRY = 6
_REMOVED, _OF_OVERRIDE, _EVICTED = 4, 2, 1


class RedisStore:
    """A registry in Redis, and this machine's copy of it."""

    def __init__(self, address: Address, *, life: Revision | None = None) -> None:
        """Open the copy and bring it up to date; ``StoreError``.

        Where Redis does not answer, it is opened all the same if it was up to date before. ``life``
        is where revisions begin if Redis is empty.
        """
        self._server = Server(address)
        self._prefix = address.prefix
        self._first_life = life
        self._copy = LmdbStore(Path(address.folder), life=life)
        self._clock = SystemClock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._owner = uuid.uuid4().hex
        self._is_away = False
        # What the teller told last, and what it heard since.
        self._is_teller = False
        self._seen: list[int] = []
        self._told_until = 0
        self._heard: dict[tuple[Namespace, InstanceKey], int] = {}
        self._counted: dict[tuple[Namespace, int], int] = {}
        self._trimmed: dict[Namespace, int] = {}
        try:
            self._node = self._identify()
            self._open()
        except BaseException:
            self._server.close()
            self._copy.close()
            raise
        for work in (self._follow_changes, self._keep_telling):
            thread = threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _identify(self) -> str:
        """The name of this machine among the others; ``StoreError`` for a foreign folder."""
        with self._copy.locked("adopting"):
            copy_of = self._copy.note(_COPY_OF)
            if copy_of is not None and copy_of.decode() != self._prefix:
                raise StoreError(f"the folder is a copy of the registry {copy_of.decode()!r}")
            node = self._copy.note(_NODE)
            if node is None:
                node = uuid.uuid4().hex.encode()
                self._copy.set_note(_NODE, node)
        return node.decode()

    def _open(self) -> None:
        try:
            self._server.look_at_clock()
            self._adopt()
            self._catch_up_all()
        except StoreError as error:
            if self._copy.note(_COPY_OF) is None:
                raise
            log.warning("this machine's copy is served until Redis answers: %s", error)
            self._is_away = True

    # Lives.

    def _in_life(self, call: Callable[[Revision], _T]) -> _T:
        """What a call answers that is given the copy's life, once that is the one Redis is in."""
        while True:
            try:
                return call(self._copy.life())
            except AnotherLifeError:
                self._adopt()

    def _adopt(self, *, lost: bool = False) -> None:
        """Have the copy in the life that Redis is in, after giving back what Redis lacks.

        Another life begins first where Redis is in none, or in one of an earlier run; or where it
        ``lost`` something that it had acknowledged.
        """
        with self._copy.locked("adopting"):
            begun, began_in, known, run = self._server.run(scripts.LIFE, "", "", "")
            is_copy = self._copy.note(_COPY_OF) is not None
            held = self._copy.namespaces()
            if not is_copy and begun and any(held.values()) and self._namespaces():
                raise StoreError(
                    f"Redis at {self._server.shown} has a registry, and the folder another: "
                    "start with an empty folder, or with an empty Redis"
                )
            if not begun or began_in != run or lost:
                if begun or self._first_life is None:
                    life = another_life(Revision(max(int(known), self._greatest())))
                else:
                    life = self._first_life
                if begun or is_copy:
                    log.warning(
                        "Redis may have lost something: another life of the registry begins"
                    )
                begun = self._server.run(scripts.LIFE, life, begun, began_in)[0]
            life = Revision(int(begun))
            if is_copy and self._copy.life() == life:
                return
            for namespace in held:
                self._give_back(life, namespace)
            self._take_up(life)

    def _greatest(self) -> Revision:
        """The greatest revision that the copy knows."""
        known = [self._copy.revision(namespace) for namespace in self._copy.namespaces()]
        return max([self._copy.life(), *known])

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
            yield from (_name(instance.key), instance.revision, encode_instance(instance), removed)
            yield from ("" if lease is None else self._told(lease), override)

        given = 0
        for start in range(0, max(1, len(wanted)), _OFFERED_AT_ONCE):
            portion = [
                value for each in wanted[start : start + _OFFERED_AT_ONCE] for value in offer(*each)
            ]
            given += int(
                self._server.run(
                    scripts.OFFER,
                    life,
                    namespace,
                    self._node,
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
                for value in (_name(instance.key), instance.revision, removed)
            ]
            for place in self._server.run(scripts.WANT, life, namespace, *names):
                yield portion[place]

    def _told(self, lease: Lease) -> str:
        """A lease in Redis' words, but for the batch and the revision at its end."""
        by_client = lease.client_mono_ms and self._server.time_of(lease.client_mono_ms)
        deadline = self._server.time_of(lease.deadline_mono_ms)
        return f"{deadline} {lease.duration_ms} {lease.last_renewal_ms} {by_client}"

    def _lease(self, told: bytes) -> tuple[Lease, int]:
        """A lease as Redis tells it, and the revision with which it began."""
        deadline, duration, last, by_client, _, began = map(int, told.split(b" "))
        mono_of = self._server.mono_of
        lease = Lease(mono_of(deadline), duration, last, by_client and mono_of(by_client))
        return lease, began

    def _namespaces(self) -> list[Namespace]:
        """Those that Redis has."""
        names = self._server.call("HKEYS", self._server.name("sizes"))
        return [Namespace(name.decode()) for name in names]

    def _take_up(self, life: Revision) -> None:
        """Make the copy what Redis has."""
        heard = self._server.call("GET", self._server.name("told")) or b"0"
        contents = {each: self._contents(life, each) for each in self._namespaces()}
        self._copy.replace(life, contents)
        self._copy.set_note(_HEARD, heard)
        self._copy.set_note(_COPY_OF, self._prefix.encode())

    def _contents(self, life: Revision, namespace: Namespace) -> Contents:
        """All that Redis has of a namespace: page by page, and then what changed meanwhile."""
        server = self._server
        while True:
            first, *_ = self._fetch(life, namespace, Revision(1 << 60))
            stored = server.call("HGETALL", server.name(f"{namespace}:override"))
            overrides = {
                each.decode(): InstanceStatus(word.decode())
                for each, word in zip(stored[::2], stored[1::2], strict=True)
            }
            instances: dict[InstanceKey, Instance] = {}
            leases: dict[InstanceKey, Lease] = {}
            cursor = b"0"
            while True:
                cursor, page = server.run(scripts.PAGE, life, namespace, cursor, _PAGE)
                for name, record, lease in zip(page[::3], page[1::3], page[2::3], strict=True):
                    key = _key(name)
                    instances[key] = _listed(record)
                    if lease:
                        leases[key] = self._from_now(self._lease(lease)[0])
                if cursor == b"0":
                    break
            log_after, changes = Revision(0), []
            while True:
                revision, trimmed, expected, _, entries = self._fetch(
                    life, namespace, log_after, known_until=first
                )
                for at, told, lease in entries:
                    log_after, commit = at, told
                    listed = instances.get(commit.key)
                    if commit.instance is None and listed is not None and listed.revision == at:
                        commit = commit._replace(instance=listed)
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
                if len(entries) < _FETCHED_AT_ONCE:
                    break
            if trimmed <= max(first, life):
                return Contents(
                    revision,
                    trimmed,
                    tuple(instances.values()),
                    overrides,
                    changes,
                    leases,
                    expected,
                )

    def _from_now(self, lease: Lease) -> Lease:
        """A lease with its whole duration left: while it was not followed it may have renewed."""
        deadline = self._clock.mono_ms() + lease.duration_ms
        return lease._replace(deadline_mono_ms=max(deadline, lease.deadline_mono_ms))

    # Following.

    def _fetch(
        self,
        life: Revision,
        namespace: Namespace,
        after: Revision,
        *,
        known_until: Revision | None = None,
    ) -> tuple[Revision, Revision, int | None, bool, list[_Entry]]:
        """What changed after a revision, a portion at a time.

        Before it the revision of the last change, that after which all is told, the number of
        expected clients, and whether so much was forgotten that the copy cannot go on from there.
        With ``known_until`` all that is there is told, but without what is listed since then.
        """
        revision, trimmed, expected, is_far, found = self._server.run(
            scripts.FETCH,
            life,
            namespace,
            after,
            _FETCHED_AT_ONCE,
            "" if known_until is None else known_until,
        )
        return (
            Revision(int(revision)),
            Revision(int(trimmed)),
            int(expected) if expected else None,
            is_far == b"1",
            self._entries(found),
        )

    def _entries(self, told: list[bytes]) -> list[_Entry]:
        """Changes as scripts tell them: each as a commit, which is without its lease."""
        found = []
        for start in range(0, len(told), _ENTRY):
            name, number, change, record, override, lease = told[start : start + _ENTRY]
            revision = Revision(int(number))
            at, kind_word, state = change.split(b" ", 2)
            kind, key = int(kind_word), _key(name)
            instance = None
            if kind & _REMOVED:
                instance = decode_instance(state, revision)
            elif record:
                instance = _listed(record)
            status = InstanceStatus(override.decode()) if override else None
            commit = Commit(
                key,
                revision,
                None,
                self._server.mono_of(int(at)),
                instance,
                remove=bool(kind & _REMOVED),
                evicted=bool(kind & _EVICTED),
                override=OverrideChange(key.id, status) if kind & _OF_OVERRIDE else None,
            )
            found.append((revision, commit, self._lease(lease) if lease else None))
        return found

    def _with_leases(
        self, namespace: Namespace, entries: list[_Entry], after: Revision
    ) -> list[tuple[Revision, Commit]]:
        """Changes with the leases that began after a revision; others are the copy's own matter."""
        decided = []
        for revision, commit, told in entries:
            if told is not None and told[1] > after:
                lease = told[0]
                known = self._copy.lease(namespace, commit.key)
                if (
                    known is not None
                    and known.duration_ms == lease.duration_ms
                    and known.deadline_mono_ms > lease.deadline_mono_ms
                ):
                    lease = known
                commit = commit._replace(lease=lease)
            decided.append((revision, commit))
        return decided

    def _catch_up(self, namespace: Namespace) -> None:
        """Bring into the copy what changed since."""
        while True:
            after = self._copy.revision(namespace)
            life = self._copy.life()
            try:
                _, _, expected, is_far, entries = self._fetch(life, namespace, after)
            except AnotherLifeError:
                self._adopt()
                continue
            if is_far:
                with self._copy.locked("adopting"):
                    if self._copy.life() == life and self._copy.revision(namespace) == after:
                        self._take_up(life)
                continue
            if entries:
                decided = self._with_leases(namespace, entries, after)
                self._copy.follow(namespace, decided, expected)
            if len(entries) < _FETCHED_AT_ONCE:
                return

    def _catch_up_all(self) -> None:
        for namespace in self._namespaces():
            self._catch_up(namespace)

    def _follow_changes(self) -> None:
        """Bring changes into the copy as they are made, until this store is closed."""
        node = self._node.encode()
        while not self._stopping.is_set():
            try:
                subscription = self._server.listen("moved")
                try:
                    self._catch_up_all()
                    while not self._stopping.is_set():
                        message = subscription.get_message(timeout=_LISTENS_SECS)
                        if message is None:
                            continue
                        name, revision, mover = message["data"].split(b" ")
                        namespace = Namespace(name.decode())
                        if mover != node and int(revision) > self._copy.revision(namespace):
                            self._catch_up(namespace)
                finally:
                    subscription.close()
            except (redis.RedisError, OSError, StoreError, AnotherLifeError) as error:
                log.debug("not following: %s", error)
            except Exception:
                log.exception("following the changes in Redis was interrupted")
            self._stopping.wait(_AGAIN_SECS)

    # Renewals.

    def _keep_telling(self) -> None:
        """Be the teller of this machine, or be ready to, until this store is closed."""
        while not self._stopping.wait(_TELL_SECS):
            try:
                self._server.look_at_clock()
                now = self._clock.mono_ms()
                if self._copy.acquire(_TELLER, self._owner, now, _TELLER_MS) is not None:
                    self._tell()
                else:
                    self._is_teller = False
                if self._is_away:
                    log.warning("Redis at %s answers again", self._server.shown)
                self._is_away = False
            except StoreError as error:
                if not self._is_away and not self._stopping.is_set():
                    log.warning("reads go on from this machine's copy: %s", error)
                self._is_away = True
            except AnotherLifeError:
                with suppress(StoreError):
                    self._adopt()
            except Exception:
                log.exception("telling Redis of renewals was interrupted")

    def _tell(self) -> None:
        """Tell of the renewals since the last time, and hear of the others'."""
        copy, server = self._copy, self._server
        life, until = copy.life(), server.now()
        if not self._is_teller:
            self._is_teller = True
            self._seen, self._heard = [], {}
            stored = orjson.loads(copy.note(_COUNTED) or b"[]")
            self._counted = {(Namespace(name), window): n for name, window, n in stored}
        known = {namespace: copy.revision(namespace) for namespace in copy.namespaces()}
        seen, renewed = copy.renewed_since(self._seen)
        told = [
            each
            for each in renewed
            if self._heard.get((each.namespace, each.key)) != each.lease.last_renewal_ms
        ]
        counted = self._count(known)
        for start in range(0, max(1, len(told)), _TOLD_AT_ONCE):
            portion = told[start : start + _TOLD_AT_ONCE]
            if start + _TOLD_AT_ONCE >= len(told):
                self._told_until = until
            batch = self._batch(portion, counted) if portion or counted else b""
            counted = {}
            heard = copy.note(_HEARD) or b"0"
            number, is_far, batches, standing = server.run(
                scripts.TELL, life, self._node, self._told_until, heard, batch
            )
            self._hear(life, heard, number, is_far == b"1", batches)
        self._seen, self._heard = seen, {}
        kept = orjson.dumps([(*place, total) for place, total in self._counted.items() if total])
        if kept != copy.note(_COUNTED):
            copy.set_note(_COUNTED, kept)  # where another worker takes over
        self._stand(life, known, standing)

    def _batch(self, renewed: Sequence[Renewed], counted: dict[Namespace, int]) -> bytes:
        time_of = self._server.time_of
        leases = [
            (
                namespace,
                _name(key),
                time_of(lease.deadline_mono_ms),
                lease.duration_ms,
                lease.last_renewal_ms,
                lease.client_mono_ms and time_of(lease.client_mono_ms),
            )
            for namespace, key, lease in renewed
        ]
        return orjson.dumps({"node": self._node, "counted": counted, "leases": leases})

    def _count(self, namespaces: Iterable[Namespace]) -> dict[Namespace, int]:
        """How many renewals were counted here since the last time."""
        window = renewal_window(self._clock.mono_ms())
        counted: dict[Namespace, int] = {}
        totals = {}
        for namespace in namespaces:
            for each in (window - 1, window):
                total = totals[namespace, each] = self._copy.renewals(namespace, each)
                more = total - self._counted.get((namespace, each), 0)
                if more > 0:
                    counted[namespace] = counted.get(namespace, 0) + more
        self._counted = totals
        return counted

    def _hear(
        self, life: Revision, heard: bytes, number: bytes, is_far: bool, batches: list[bytes]
    ) -> None:
        """Take over what other machines told of renewals."""
        window = renewal_window(self._clock.mono_ms())
        mono_of = self._server.mono_of
        for batch in batches:
            told = orjson.loads(batch)
            if told["node"] == self._node:
                continue
            for name, deadline, duration, last, by_client in (
                (each[:2], *each[2:]) for each in told["leases"]
            ):
                namespace, key = Namespace(name[0]), _key(name[1].encode())
                by_client = by_client and mono_of(by_client)
                lease = Lease(mono_of(deadline), duration, last, by_client)
                self._renewed_elsewhere(namespace, key, lease)
            for name, count in told["counted"].items():
                namespace = Namespace(name)
                self._copy.count_renewals(namespace, window, count)
                place = namespace, window
                self._counted[place] = self._counted.get(place, 0) + count
        if is_far:
            for namespace in self._namespaces():
                cursor = b"0"
                while True:
                    cursor, page = self._server.run(scripts.PAGE, life, namespace, cursor, _PAGE)
                    for key_name, lease_told in zip(page[::3], page[2::3], strict=True):
                        if lease_told:
                            lease = self._lease(lease_told)[0]
                            self._renewed_elsewhere(namespace, _key(key_name), lease)
                    if cursor == b"0":
                        break
        if number != heard:
            self._copy.set_note(_HEARD, number)

    def _renewed_elsewhere(self, namespace: Namespace, key: InstanceKey, lease: Lease) -> None:
        known = self._copy.lease(namespace, key)
        if (
            known is not None
            and known.duration_ms == lease.duration_ms
            and known.deadline_mono_ms < lease.deadline_mono_ms
            and self._copy.renew(namespace, key, lease, None)
        ):
            self._heard[namespace, key] = lease.last_renewal_ms

    def _stand(
        self, life: Revision, known: dict[Namespace, Revision], standing: list[bytes]
    ) -> None:
        """Compare how far Redis and the copy are, and bring either to what the other knows."""
        for start in range(0, len(standing), 4):
            name, told_revision, told_trimmed, told_expected = standing[start : start + 4]
            namespace = Namespace(name.decode())
            revision, trimmed = Revision(int(told_revision)), Revision(int(told_trimmed))
            if revision < known.get(namespace, 0):
                self._adopt(lost=True)
                return
            if revision > self._copy.revision(namespace):
                self._catch_up(namespace)
            if told_expected and int(told_expected) != self._copy.expected_clients(namespace):
                self._copy.set_expected_clients(namespace, int(told_expected))
            complete_after = self._copy.complete_after(namespace)
            if complete_after > trimmed:
                self._server.run(scripts.TRIM, life, namespace, complete_after, _TRIMMED_AT_ONCE)
            elif (
                complete_after < trimmed != self._trimmed.get(namespace)
                and self._copy.trim_to(namespace, trimmed) == 0
            ):
                self._trimmed[namespace] = trimmed

    # Records: writes are Redis' to decide, reads are of the copy.

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        revision = self.commit_all(namespace, (commit,), fence)[0]
        if revision is None:
            raise ConflictError
        return revision

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        outcomes: list[Revision | None] = [None] * len(commits)
        places = [
            place
            for place, commit in enumerate(commits)
            if commit.expected_deadline_mono_ms is None
            or self._ends_so(namespace, commit.key, commit.expected_deadline_mono_ms)
        ]
        if not places:
            return outcomes
        lock, token = ("", 0) if fence is None else fence
        group = uuid.uuid4().hex
        sent = [each for place in places for each in self._sent(commits[place])]

        def commit(life: Revision) -> tuple[Revision, Any]:
            after = self._copy.revision(namespace)
            heard = self._copy.note(_HEARD) or b"0"
            told = (namespace, group, after, lock, token, heard, self._node)
            return after, self._server.run(scripts.COMMIT, life, *told, *sent)

        after, (outcome, _, _, expected, is_far, missing) = self._in_life(commit)
        decided = self._with_leases(namespace, self._entries(missing), after)
        for place, word in zip(places, outcome.split(b" "), strict=True):
            if word != b"-":
                revision = outcomes[place] = Revision(int(word))
                decided.append((revision, commits[place]))
        try:
            if is_far == b"1":
                self._catch_up(namespace)
            elif decided:
                self._copy.follow(namespace, decided, int(expected) if expected else None)
        except StoreError as error:
            # It is written all the same, and the copy will follow.
            log.warning("the copy is behind what was written to Redis: %s", error)
        return outcomes

    def _ends_so(self, namespace: Namespace, key: InstanceKey, deadline_mono_ms: int) -> bool:
        lease = self._copy.lease(namespace, key)
        return lease is not None and lease.deadline_mono_ms == deadline_mono_ms

    def _sent(self, commit: Commit) -> tuple[Argument, ...]:
        """A commit in Redis' words."""
        flags = "r" * commit.remove + "e" * commit.evicted
        if commit.expected_deadline_mono_ms is not None:
            flags += "d"
        change, most = commit.override, commit.instances_at_most
        others = commit.namespaces_at_most
        return (
            _name(commit.key),
            commit.key.id,
            commit.expected,
            commit.expected_override or "",
            self._server.time_of(commit.at_mono_ms),
            b"" if commit.instance is None else encode_instance(commit.instance),
            "" if commit.lease is None else self._told(commit.lease),
            flags,
            "" if change is None else change.status or "-",
            commit.expected_clients_step,
            commit.opening_clients,
            "" if most is None else most,
            "" if others is None else others,
        )

    def revision(self, namespace: Namespace) -> Revision:
        return self._copy.revision(namespace)

    def load(self, namespace: Namespace) -> Snapshot:
        return self._copy.load(namespace)

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        return self._copy.changes(namespace, after)

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        return self._copy.renew(namespace, key, lease, window)

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        return self._copy.renewed_by_clients(namespace, after_mono_ms)

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        return self._copy.lease(namespace, key)

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        return self._copy.due(namespace, now_mono_ms)

    def renewals(self, namespace: Namespace, window: int) -> int:
        return self._copy.renewals(namespace, window)

    def expected_clients(self, namespace: Namespace) -> int | None:
        return self._copy.expected_clients(namespace)

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        self._server.call("HSET", self._server.name(f"{namespace}:meta"), "expected", count)
        self._copy.set_expected_clients(namespace, count)

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        after = self._server.time_of(after_mono_ms) // 1000
        found = self._server.call("HGETALL", self._server.name(f"{namespace}:evicted"))
        seconds = zip(map(int, found[::2]), map(int, found[1::2]), strict=True)
        return sum(count for second, count in seconds if second >= after)

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        gone = self._copy.trim(namespace, before_mono_ms)
        if gone:
            up_to = self._copy.complete_after(namespace)

            def trim(life: Revision) -> Any:
                return self._server.run(scripts.TRIM, life, namespace, up_to, _TRIMMED_AT_ONCE)

            while self._in_life(trim) == _TRIMMED_AT_ONCE:
                pass
        return gone

    def namespaces(self) -> dict[Namespace, int]:
        return self._copy.namespaces()

    def resume(self, now_mono_ms: int) -> int | None:
        self._server.call("PING")  # while Redis is away the registry does not run
        return self._copy.resume(now_mono_ms)

    def running_ms(self, now_mono_ms: int) -> int:
        return self._copy.running_ms(now_mono_ms)

    def flush(self) -> None:
        self._copy.flush()

    # Coordination.

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        now = self._server.time_of(now_mono_ms)

        def acquire(life: Revision) -> Any:
            return self._server.run(scripts.ACQUIRE, life, name, owner, now, ttl_ms)

        token = self._in_life(acquire)
        return int(token) if token else None

    def release(self, name: str, owner: str) -> None:
        self._in_life(lambda life: self._server.run(scripts.RELEASE, life, name, owner))

    def note(self, name: str) -> bytes | None:
        noted: bytes | None = self._server.call("HGET", self._server.name("notes"), name)
        return noted

    def set_note(self, name: str, value: bytes | None) -> None:
        notes = self._server.name("notes")
        if value is None:
            self._server.call("HDEL", notes, name)
        else:
            self._server.call("HSET", notes, name, value)

    def probe(self) -> None:
        self._server.call("SET", self._server.name("probe"), self._node, "EX", 60)
        self._copy.probe()

    def state(self) -> StoreState:
        """The size is that of all that the Redis server has in memory."""
        told: bytes = self._server.call("INFO", "memory")
        found = re.search(rb"used_memory:(\d+)", told)
        return StoreState(self._copy.life(), int(found[1]) if found else None)

    def close(self) -> None:
        """Tell what is to be told, and let go."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)
        try:
            with suppress(StoreError, AnotherLifeError):
                if self._is_teller:
                    self._tell()
                    self._copy.release(_TELLER, self._owner)
        finally:
            self._server.close()
            self._copy.close()


_Entry = tuple[Revision, Commit, tuple[Lease, int] | None]
_NEVER = 1 << 61


def _name(key: InstanceKey) -> str:
    return f"{key.app}\0{key.id}"


def _key(name: bytes) -> InstanceKey:
    app, instance_id = name.decode().split("\0")[:2]
    return InstanceKey(app, instance_id)


def _listed(record: bytes) -> Instance:
    revision, _, encoded = record.partition(b" ")
    return decode_instance(encoded, int(revision))
