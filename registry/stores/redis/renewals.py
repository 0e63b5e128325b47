"""Renewals: how machines tell each other whose leases were renewed.

Renewals are stores into the copy's lease file and nothing else. A few times a second one worker of
each machine (*the teller*) tells Redis whose leases were renewed here, and hears of the others'.
With it goes until when everything was told. An eviction is refused as long as a machine that was
heard of in the last five seconds has not told beyond the lease's deadline, or where the evictor has
not heard the lease's last renewal. So none of them evicts what another renewed in time.

The teller compares besides how far Redis and the copy are, so that a machine that missed a message
catches up, and that a loss is noticed which no write has met.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress

import orjson

from registry.duty import Duty
from registry.errors import StoreError
from registry.lease import SystemClock, renewal_window
from registry.model import InstanceKey, Lease, Namespace, Revision
from registry.stores.lmdb import LmdbStore, Renewed
from registry.stores.redis import scripts
from registry.stores.redis.following import LONGEST_FAULT_SECS, Follower
from registry.stores.redis.lives import Lives
from registry.stores.redis.records import HEARD, Records, key_of, name_of
from registry.stores.redis.server import AnotherLifeError, Server

log = logging.getLogger("registry")

TRIMMED_AT_ONCE = 1_000
"""How many changes Redis forgets in one call."""

_TELL_SECS = 0.2
_TELLER_MS = 1_000
_TOLD_AT_ONCE = 2_000
# The copy's lock that the teller has, and its note of what was counted and told.
_TELLER, _COUNTED = "redis/teller", "redis/counted"


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
        self._owner = uuid.uuid4().hex
        self._is_away = is_away
        self._is_teller = False
        self.told_until = 0
        """The instant of Redis' time until which all renewals here were told."""
        # What was told last, and what was heard since.
        self._seen: list[int] = []
        self._heard: dict[tuple[Namespace, InstanceKey], int] = {}
        self._counted: dict[tuple[Namespace, int], int] = {}
        self._trimmed: dict[Namespace, int] = {}

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
            holds = self._copy.acquire(_TELLER, self._owner, now, _TELLER_MS) is not None
            self._follower.is_first = holds
            if holds:
                self.tell()
            else:
                self._is_teller = False
            if self._is_away:
                log.warning("Redis at %s answers again", self._server.shown)
            self._is_away = False
        except StoreError as error:
            if not self._is_away and not stopping.is_set():
                log.warning("reads go on from this machine's copy: %s", error)
            self._is_away = True
        except AnotherLifeError:
            with suppress(StoreError):
                self._lives.adopt()

    def close(self) -> None:
        """Tell what is to be told, and let another worker be the teller."""
        with suppress(StoreError, AnotherLifeError):
            if self._is_teller:
                self.tell()
                self._copy.release(_TELLER, self._owner)

    def tell(self) -> None:
        """Tell of the renewals since the last time, and hear of the others'.

        ``StoreError``, ``AnotherLifeError``.
        """
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
                self.told_until = until
            batch = self._batch(portion, counted) if portion or counted else b""
            counted = {}
            heard = copy.note(HEARD) or b"0"
            number, is_far, batches, standing = server.run(
                scripts.TELL, life, self._lives.node, self.told_until, heard, batch
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
                name_of(key),
                time_of(lease.deadline_mono_ms),
                lease.duration_ms,
                lease.last_renewal_ms,
                lease.client_mono_ms and time_of(lease.client_mono_ms),
            )
            for namespace, key, lease in renewed
        ]
        return orjson.dumps({"node": self._lives.node, "counted": counted, "leases": leases})

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
            if told["node"] == self._lives.node:
                continue
            for name, deadline, duration, last, by_client in (
                (each[:2], *each[2:]) for each in told["leases"]
            ):
                namespace, key = Namespace(name[0]), key_of(name[1].encode())
                by_client = by_client and mono_of(by_client)
                lease = Lease(mono_of(deadline), duration, last, by_client)
                self._renewed_elsewhere(namespace, key, lease)
            for name, count in told["counted"].items():
                namespace = Namespace(name)
                self._copy.count_renewals(namespace, window, count)
                place = namespace, window
                self._counted[place] = self._counted.get(place, 0) + count
        if is_far:
            for namespace in self._records.namespaces():
                for key, _, listed_lease in self._records.pages(life, namespace):
                    if listed_lease is not None:
                        self._renewed_elsewhere(namespace, key, listed_lease)
        if number != heard:
            self._copy.set_note(HEARD, number)

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
                self._lives.adopt(lost=True)
                return
            if revision > self._copy.revision(namespace):
                self._follower.catch_up(namespace)
            if told_expected and int(told_expected) != self._copy.expected_clients(namespace):
                self._copy.set_expected_clients(namespace, int(told_expected))
            complete_after = self._copy.complete_after(namespace)
            if complete_after > trimmed:
                self._server.run(scripts.TRIM, life, namespace, complete_after, TRIMMED_AT_ONCE)
            elif (
                complete_after < trimmed != self._trimmed.get(namespace)
                and self._copy.trim_to(namespace, trimmed) == 0
            ):
                self._trimmed[namespace] = trimmed
