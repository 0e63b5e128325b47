"""Renewals: how machines tell each other whose leases were renewed.

Renewals are stores into the copy's lease file and nothing else. A few times a second one worker of
each machine (*the teller*) tells Redis whose leases were renewed here, and hears of the others'.
That is one call for each namespace in which something was renewed or is to be heard: together one
round trip to each server. Then it tells the root until when everything was told. An eviction is
refused as long as a machine that was heard of in the last five seconds has not told beyond the
lease's deadline, or where the evictor has not heard the lease's last renewal. So none of them
evicts what another renewed in time. Until when all have told may be asked before the eviction is
written, since what was told stays told.

Renewals are accepted while the disk under the copy is full. So nothing that is told needs to be
written there: which worker tells stands in the lease file, and what cannot be noted is known to the
teller until it can.

**How far each namespace is**, its revision and its last batch of renewals, is told at the root
where it moved, and the same call tells how far others said it was. So only those namespaces are
asked for in which this machine lacks something, as after a message that it missed.

**Losses.** Each answer says how far Redis is, and where that is less than the copy knows, Redis
lost something. That is noticed within a fifth of a second where a server lost what it had, for each
has the root or is asked for a namespace at least. What is lost of a single namespace, in which
nothing happens, is noticed within twenty seconds, or by its next write.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from typing import cast

import orjson

from registry.duty import Duty
from registry.errors import StoreError
from registry.lease import SystemClock, renewal_window
from registry.model import InstanceKey, Lease, Namespace, Revision
from registry.stores.lmdb import LmdbStore, Renewed
from registry.stores.redis import scripts
from registry.stores.redis.following import LONGEST_FAULT_SECS, Follower
from registry.stores.redis.lives import Lives
from registry.stores.redis.records import Records, heard_of, key_of, name_of
from registry.stores.redis.server import AnotherLifeError, Call, Server

log = logging.getLogger("registry")

TRIMMED_AT_ONCE = 1_000
"""How many changes Redis forgets in one call."""

_TELL_SECS = 0.2
_TELLER_MS = 1_000
_TOLD_AT_ONCE = 2_000
# A namespace in which nothing was renewed here is asked for once in so many rounds where others
# told of something, and once in so many where nobody did.
_BEHIND_ROUNDS = 10
_IDLE_ROUNDS = 100
# How many namespaces are told of at the root in one call.
_FAR_AT_ONCE = 1_000
# A node that is not heard of any more is one of the nodes for so many rounds.
_PRESENT_ROUNDS = 10
# The copy's note of what was counted and told.
_COUNTED = "redis/counted"


class Teller:
    """Tells of this machine's renewals and hears of the others', while it is the teller."""

    def __init__(
        self, server: Server, copy: LmdbStore, lives: Lives, follower: Follower, *, is_away: bool
    ) -> None:
        """``is_away``: whether Redis is known not to answer, which was said."""
        self._server = server
        self._records = Records(server)
        self._copy = copy
        self._lives = lives
        self._follower = follower
        self._clock = SystemClock()
        self._is_away = is_away
        self._is_teller = False
        self.told_until = 0
        """The instant of Redis' time until which all renewals here were told."""
        # What was told last, and what was heard since.
        self._seen: list[int] = []
        self._heard: dict[tuple[Namespace, InstanceKey], int] = {}
        self._counted: dict[tuple[Namespace, int], int] = {}
        self._trimmed: dict[Namespace, int] = {}
        # Up to which batch was heard where the copy could not note that, and where it did not take
        # what others had written.
        self._unnoted: dict[Namespace, bytes] = {}
        self._unfollowed: set[Namespace] = set()
        # The rounds, and the one in which each namespace was last asked for.
        self._round = 0
        self._asked: dict[Namespace, int] = {}
        # The life in which the following was told. The last news; how far each namespace is, as
        # this machine told, and the last batch that it told there; where it lacks something.
        self._life: Revision | None = None
        self._newest = 0
        self._far: dict[Namespace, tuple[Revision, int]] = {}
        self._batches: dict[Namespace, int] = {}
        self._behind: set[Namespace] = set()
        # In which round each node was last heard of: a Redis that lost everything knows of none.
        self._present: dict[bytes, int] = {}

    def keep_telling(self, stopping: threading.Event) -> None:
        """Be the teller of this machine, or be ready to, until it is over."""
        duty = Duty(
            "telling Redis of renewals",
            0.0,
            lambda: self._tell_in_turn(stopping),
            log,
            longest_secs=LONGEST_FAULT_SECS,
        )
        while not stopping.wait(_TELL_SECS):
            duty.run(time.monotonic())

    def _tell_in_turn(self, stopping: threading.Event) -> None:
        try:
            self._server.look_at_clock()
            now = self._clock.mono_ms()
            holds = self._copy.lead(now, _TELLER_MS)
            self._follower.is_first = holds
            if holds:
                try:
                    self.tell()
                except AnotherLifeError:
                    self._lives.adopt()
            else:
                self._is_teller = False
            if self._is_away:
                log.warning("Redis at %s answers again", self._server.shown)
            self._is_away = False
        except StoreError as error:
            if not self._is_away and not stopping.is_set():
                log.warning("reads go on from this machine's copy: %s", error)
            self._is_away = True

    def close(self) -> None:
        """Tell what is to be told, and let another worker be the teller."""
        with suppress(StoreError, AnotherLifeError):
            if self._is_teller:
                self.tell()
                self._copy.lead(self._clock.mono_ms(), 0)

    def tell(self) -> None:
        """Tell of the renewals since the last time, and hear of the others'.

        ``StoreError``, ``AnotherLifeError``.
        """
        copy, server = self._copy, self._server
        life, until = copy.life(), server.now()
        if not self._is_teller or life != self._life:
            self._life, self._newest = life, 0
            self._far, self._batches, self._behind = {}, {}, set()
        if not self._is_teller:
            self._is_teller = True
            self._seen, self._heard = [], {}
            self._unnoted, self._unfollowed = {}, set()
            self._present = dict.fromkeys(self._lives.known_nodes(), self._round)
            stored = orjson.loads(copy.note(_COUNTED) or b"[]")
            self._counted = {(Namespace(name), window): n for name, window, n in stored}
        known = {namespace: copy.revision(namespace) for namespace in copy.namespaces()}
        if copy.life() != life:
            return  # and those revisions may be of another
        seen, renewed = copy.renewed_since(self._seen)
        heard, self._heard = self._heard, {}
        told: dict[Namespace, list[Renewed]] = {}
        for each in renewed:
            if heard.get((each.namespace, each.key)) != each.lease.last_renewal_ms:
                told.setdefault(each.namespace, []).append(each)
        counted = self._count(known)
        turn = self._in_turn(known, told.keys() | counted.keys())
        while turn:
            portions = {each: told.pop(each, []) for each in turn}
            for namespace, portion in portions.items():
                if len(portion) > _TOLD_AT_ONCE:
                    told[namespace] = portion[_TOLD_AT_ONCE:]
                    portions[namespace] = portion[:_TOLD_AT_ONCE]
            self._exchange(life, known, portions, counted)
            counted = {}
            turn = list(told)
        self._seen = seen
        kept = orjson.dumps([(*place, total) for place, total in self._counted.items() if total])
        if kept != copy.note(_COUNTED):
            with suppress(StoreError):
                copy.set_note(_COUNTED, kept)  # where another worker takes over
        self.told_until = until
        nodes = self._tell_how_far(life, until, known)
        self._present |= dict.fromkeys(nodes, self._round)
        for node, heard_in in list(self._present.items()):
            if heard_in <= self._round - _PRESENT_ROUNDS:
                del self._present[node]
        with suppress(StoreError):
            self._lives.know_of(self._present)
        if self._round % _IDLE_ROUNDS == 0:
            for namespace in self._records.namespaces():
                if namespace not in known:
                    with self._following(namespace):
                        self._follower.catch_up(namespace)

    def _tell_how_far(
        self, life: Revision, until: int, known: Mapping[Namespace, Revision]
    ) -> list[bytes]:
        """Tell until when everything was told, and how far each namespace is; the nodes heard of.

        ``StoreError``, ``AnotherLifeError``.
        """
        batches = self._batches
        far = {each: (revision, batches.get(each, 0)) for each, revision in known.items()}
        moved = [each for each in far.items() if self._far.get(each[0]) != each[1]][:_FAR_AT_ONCE]
        told = [
            word for namespace, (revision, batch) in moved for word in (namespace, revision, batch)
        ]
        _, nodes, newest, names, theirs = self._server.run(
            scripts.TOLD, None, life, self._lives.node, until, self._newest, *told
        )
        self._far |= moved
        self._newest = int(newest)
        with self._server.reading("far"):
            for name, word in zip(names, theirs, strict=True):
                namespace = Namespace(name.decode())
                revision, batch = map(int, word.split())
                if revision > self._copy.revision(namespace) or batch > int(self._noted(namespace)):
                    self._behind.add(namespace)
        return cast(list[bytes], nodes)

    def _in_turn(self, known: Iterable[Namespace], busy: AbstractSet[Namespace]) -> list[Namespace]:
        """The namespaces that are asked for in this round: few of the idle ones."""
        asked, self._round = self._asked, self._round + 1
        long_ago = self._round - _BEHIND_ROUNDS
        turn = [
            *busy,
            *(each for each in self._behind - busy if asked.get(each, -_BEHIND_ROUNDS) <= long_ago),
        ]
        idle = sorted(set(known).difference(turn), key=lambda each: asked.get(each, 0))
        turn += idle[: -(-len(idle) // _IDLE_ROUNDS)]
        with suppress(StoreError):  # which is said where one is asked
            turn += set(self._server.first_at_each([*turn, *idle])).difference(turn)
        asked.update(dict.fromkeys(turn, self._round))
        return turn

    def _exchange(
        self,
        life: Revision,
        known: Mapping[Namespace, Revision],
        portions: Mapping[Namespace, Sequence[Renewed]],
        counted: Mapping[Namespace, int],
    ) -> None:
        """Tell of renewals in some namespaces, and hear of the others' there and how far each is.

        ``StoreError``, ``AnotherLifeError``: after all were told that could be.
        """
        calls, heard = [], {}
        for namespace, portion in portions.items():
            heard[namespace] = self._noted(namespace)
            count = counted.get(namespace, 0)
            batch = self._batch(portion, count) if portion or count else b""
            calls.append(Call(scripts.TELL, namespace, (life, heard[namespace], batch)))
        answers = self._server.run_each(calls)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            namespace = cast(Namespace, call.namespace)
            number, is_far, batches, *standing = answer
            self._behind.discard(namespace)
            if call.arguments[-1]:
                self._batches[namespace] = int(number)
            is_same = True
            with self._following(namespace):
                self._hear(life, namespace, heard[namespace], number, is_far == b"1", batches)
                is_same = self._stand(life, namespace, known.get(namespace, life), standing)
            if not is_same:
                return

    @contextmanager
    def _following(self, namespace: Namespace) -> Iterator[None]:
        """What was told is told, whether the copy takes what is heard or not."""
        try:
            yield
        except StoreError as error:
            if not self._unfollowed:
                log.warning("this machine's copy does not take what others write: %s", error)
            self._unfollowed.add(namespace)
            return
        if namespace in self._unfollowed:
            self._unfollowed.discard(namespace)
            if not self._unfollowed:
                log.warning("this machine's copy takes what others write again")

    def _noted(self, namespace: Namespace) -> bytes:
        """The number of the last batch that was heard of."""
        return self._unnoted.get(namespace) or self._copy.note(heard_of(namespace)) or b"0"

    def _batch(self, renewed: Sequence[Renewed], count: int) -> bytes:
        time_of = self._server.time_of
        leases = [
            (
                name_of(key),
                time_of(lease.deadline_mono_ms),
                lease.duration_ms,
                lease.last_renewal_ms,
                lease.client_mono_ms and time_of(lease.client_mono_ms),
            )
            for _, key, lease in renewed
        ]
        return orjson.dumps({"node": self._lives.node, "counted": count, "leases": leases})

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
        self,
        life: Revision,
        namespace: Namespace,
        heard: bytes,
        number: bytes,
        is_far: bool,
        batches: list[bytes],
    ) -> None:
        """Take over what other machines told of renewals in a namespace."""
        window = renewal_window(self._clock.mono_ms())
        mono_of = self._server.mono_of
        for batch in batches:
            told = orjson.loads(batch)
            if told["node"] == self._lives.node:
                continue
            for name, deadline, duration, last, by_client in told["leases"]:
                by_client_mono = by_client and mono_of(by_client)
                lease = Lease(mono_of(deadline), duration, last, by_client_mono)
                self._renewed_elsewhere(namespace, key_of(name.encode()), lease)
            if told["counted"]:
                self._copy.count_renewals(namespace, window, told["counted"])
                place = namespace, window
                self._counted[place] = self._counted.get(place, 0) + told["counted"]
        if is_far:
            for key, _, listed_lease in self._records.pages(life, namespace):
                if listed_lease is not None:
                    self._renewed_elsewhere(namespace, key, listed_lease)
        if number != heard or namespace in self._unnoted:
            self._unnoted[namespace] = number
            with suppress(StoreError):
                self._copy.set_note(heard_of(namespace), number)
                del self._unnoted[namespace]

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
        self, life: Revision, namespace: Namespace, known: Revision, standing: list[bytes]
    ) -> bool:
        """Compare how far Redis and the copy are, and bring either to what the other knows.

        Whether that was all; else another life began, because Redis had lost something.
        """
        told_revision, told_trimmed, told_expected = standing
        revision, trimmed = Revision(int(told_revision)), Revision(int(told_trimmed))
        if revision < known:
            self._lives.adopt(lost=True)
            return False
        if revision > self._copy.revision(namespace):
            self._follower.catch_up(namespace)
        if told_expected and int(told_expected) != self._copy.expected_clients(namespace):
            self._copy.set_expected_clients(namespace, int(told_expected))
        complete_after = self._copy.complete_after(namespace)
        if complete_after > trimmed:
            self._server.run(scripts.TRIM, namespace, life, complete_after, TRIMMED_AT_ONCE)
        elif (
            complete_after < trimmed != self._trimmed.get(namespace)
            and self._copy.trim_to(namespace, trimmed) == 0
        ):
            self._trimmed[namespace] = trimmed
        return True
