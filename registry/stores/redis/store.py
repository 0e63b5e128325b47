"""The store on Redis: the contract, of which Redis decides the writes and the copy the reads.

A group of commits is one script (``scripts.py``), which looks at the guards, and answers with the
revisions and with what others changed before and the copy lacks. Both go into the copy before the
writer is answered. Locks and notes are Redis' too; renewals and all reads are the copy's.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registry.errors import ConflictError, StoreError
from registry.model import InstanceKey, Namespace, Revision
from registry.store import Commit, Fence, StoreState
from registry.stores.lmdb import LmdbStore
from registry.stores.redis import scripts
from registry.stores.redis.address import Address
from registry.stores.redis.following import Follower
from registry.stores.redis.lives import Lives, OtherFormatError
from registry.stores.redis.records import Records, heard_of
from registry.stores.redis.renewals import TRIMMED_AT_ONCE, Teller
from registry.stores.redis.server import (
    AnotherLifeError,
    AwaitedError,
    AwayError,
    Server,
    UnopenedError,
)

log = logging.getLogger("registry")

# How long a write waits for what other machines give back, and after what pause it is tried again.
_AWAITS_SECS, _AGAIN_SECS = 3.0, 0.02
_UNHEARD = "Redis did not answer, and it is not known whether this was written"
_UNKNOWN = "Redis lost something meanwhile, and it is not known whether this was written"


class RedisStore:
    """A registry in Redis, and this machine's copy of it."""

    def __init__(
        self, address: Address, *, life: Revision | None = None, accepts_while_away: bool = False
    ) -> None:
        """Open the copy and bring it up to date; ``StoreError``.

        Where Redis does not answer, it is opened all the same if it was up to date before. ``life``
        is where revisions begin if Redis is empty. With ``accepts_while_away`` writes go into the
        copy alone while Redis is away, and are offered when it is back.
        """
        self._accepts_while_away = accepts_while_away
        self._server = server = Server(address)
        self._records = Records(server)
        self._copy = copy = LmdbStore(Path(address.folder), life=life)
        try:
            self._lives = Lives(server, copy, address.prefix, life)
            self._follower = Follower(server, copy, self._lives)
            is_away = not self._is_up_to_date()
            self._teller = Teller(server, copy, self._lives, self._follower, is_away=is_away)
        except BaseException:
            server.close()
            copy.close()
            raise
        # What the copy alone answers, each heartbeat among it, is its own method: no call between.
        self.revision = copy.revision
        self.load = copy.load
        self.changes = copy.changes
        self.renew = copy.renew
        self.renewed_by_clients = copy.renewed_by_clients
        self.lease = copy.lease
        self.due = copy.due
        self.renewals = copy.renewals
        self.expected_clients = copy.expected_clients
        self.namespaces = copy.namespaces
        self.running_ms = copy.running_ms
        self.flush = copy.flush
        # The tokens of locks, as all namespaces know them.
        self._fenced: dict[str, bytes] = {}
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, args=[self._stopping], name=work.__name__, daemon=True)
            for work in (self._follower.follow, self._teller.keep_telling)
        ]
        for thread in self._threads:
            thread.start()

    def _is_up_to_date(self) -> bool:
        try:
            self._server.look_at_clock()
            self._check_channel()
            self._server.listen("moved").close()
            self._lives.adopt()
            self._follower.catch_up_all()
        except OtherFormatError:
            raise
        except StoreError as error:
            if not self._lives.has_copy():
                raise
            log.warning("this machine's copy is served until Redis answers: %s", error)
            return False
        return True

    # Records: writes are Redis' to decide.

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        revision = self.commit_all(namespace, (commit,), fence)[0]
        if revision is None:
            raise ConflictError
        return revision

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        try:
            with self._server.one_window():
                return self._commit_all(namespace, commits, fence)
        except AwayError as error:
            # What is fenced, or evicts, is for all machines together to decide.
            if not self._accepts_while_away or fence is not None:
                raise
            if any(commit.expected_deadline_mono_ms is not None for commit in commits):
                raise
            if not self._copy.offering.is_alone():
                log.warning("writes are accepted by this machine alone from now on: %s", error)
            outcomes = self._copy.commit_alone(namespace, commits)
            # Redis may have done it, and the copy have followed that: then it is not to be decided
            # again, as if another had done it.
            if error.may_be_done and None in outcomes:
                raise StoreError(_UNHEARD) from error
            return outcomes

    def _commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None
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
        sent = [each for place in places for each in self._records.sent(commits[place])]
        # Which of them may be a namespace's first instances, and the limits of those.
        limits = [
            commits[place].namespaces_at_most
            for place in places
            if commits[place].instance is not None and not commits[place].remove
        ]
        most = None if None in limits else max(map(int, filter(None, limits)), default=0)
        evicts = any(commits[place].expected_deadline_mono_ms is not None for place in places)
        awaits_until: float | None = None  # from when it first has to: to adopt a life takes long
        refused_in: Revision | None = None

        def commit(life: Revision) -> tuple[Revision, Revision, Any]:
            nonlocal refused_in, awaits_until
            heard, told = b"0", b"0"
            if evicts:
                heard = self._copy.note(heard_of(namespace)) or b"0"
                told = self._server.run(scripts.TOLD, None, life, "", "")[0]
            no_room = ""
            while True:
                after = self._copy.revision(namespace)
                node = self._lives.node
                guards = (group, after, lock, token, heard, node, told, no_room)
                try:
                    answer = self._server.run(scripts.COMMIT, namespace, life, *guards, *sent)
                    return life, after, answer
                except AwaitedError:
                    now = time.monotonic()
                    awaits_until = awaits_until or now + _AWAITS_SECS
                    if now > awaits_until:
                        raise
                    time.sleep(_AGAIN_SECS)
                except AnotherLifeError as error:
                    if error.was_cut_off:  # and another machine may have given it back
                        raise StoreError(_UNKNOWN) from error
                    # A namespace that the copy does not know may be left in an earlier life.
                    if not isinstance(error, UnopenedError) and life != refused_in:
                        refused_in = life
                        raise
                    if no_room:
                        return life, after, None
                    if not self._lives.open(life, namespace, holds=bool(limits), most=most):
                        no_room = "1"

        life, after, answer = self._lives.in_life(commit)
        if answer is None:
            return outcomes
        outcome, _, _, expected, is_far, missing = answer
        own = []
        for place, word in zip(places, outcome.split(b" "), strict=True):
            if word != b"-":
                revision = outcomes[place] = Revision(int(word))
                own.append((revision, commits[place]))
        is_followed = True
        if is_far == b"1":
            self._follower.catch_up(namespace)
            is_followed = not own or self._copy.revision(namespace) >= own[-1][0]
        else:
            others = self._records.entries(namespace, missing)
            clients = int(expected) if expected else None
            self._follower.take(namespace, after, others, clients, own)
        if self._copy.life() != life or not is_followed:
            # Whoever adopted the new life in between gave back a copy without it.
            raise StoreError(_UNKNOWN)
        return outcomes

    def _ends_so(self, namespace: Namespace, key: InstanceKey, deadline_mono_ms: int) -> bool:
        lease = self._copy.lease(namespace, key)
        return lease is not None and lease.deadline_mono_ms == deadline_mono_ms

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        meta = self._server.name("meta", namespace)
        self._server.call("HSET", meta, "expected", count, namespace=namespace)
        self._copy.set_expected_clients(namespace, count)

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        after = self._server.time_of(after_mono_ms) // 1000
        name = self._server.name("evicted", namespace)
        found = self._server.call("HGETALL", name, namespace=namespace)
        # Those that are yet to come were counted before Redis' clock was set back.
        until = self._server.now() // 1000 + 1
        with self._server.reading("evicted", namespace):
            seconds = zip(map(int, found[::2]), map(int, found[1::2]), strict=True)
            return sum(count for second, count in seconds if after <= second <= until)

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        gone = self._copy.trim(namespace, before_mono_ms)
        if gone:
            up_to = self._copy.complete_after(namespace)

            def trim(life: Revision) -> Any:
                return self._server.run(scripts.TRIM, namespace, life, up_to, TRIMMED_AT_ONCE)

            while self._lives.in_life(trim) == TRIMMED_AT_ONCE:
                pass
        return gone

    def resume(self, now_mono_ms: int) -> int | None:
        self._probe()  # while Redis is away the registry does not run
        return self._copy.resume(now_mono_ms)

    # Coordination.

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        now = self._server.time_of(now_mono_ms)

        def acquire(life: Revision) -> Any:
            token = self._server.run(scripts.ACQUIRE, None, life, name, owner, now, ttl_ms)
            if token and self._fenced.get(name) != token:
                self._lives.fence(name, int(token))
                self._fenced[name] = token
            return token

        token = self._lives.in_life(acquire)
        return int(token) if token else None

    def release(self, name: str, owner: str) -> None:
        self._lives.in_life(lambda life: self._server.run(scripts.RELEASE, None, life, name, owner))

    def note(self, name: str) -> bytes | None:
        noted: bytes | None = self._server.call("HGET", self._server.name("notes"), name)
        return noted

    def set_note(self, name: str, value: bytes | None) -> None:
        notes = self._server.name("notes")
        if value is None:
            self._server.call("HDEL", notes, name)
        else:
            self._server.call("HSET", notes, name, value)

    def probe(self) -> str | None:
        self._copy.probe()
        try:
            self._probe()
            self._check_channel()
        except AwayError as error:
            if not self._accepts_while_away:
                raise
            return f"what is written here is offered to the other machines later: {error}"
        return None

    def _check_channel(self) -> None:
        """That what is written may be told: a script that may not is refused after it wrote.

        And that what others write may be heard.
        """
        self._server.call("PUBLISH", self._server.name("moved"), "")
        refusal = self._follower.refusal
        if refusal:
            raise StoreError(refusal)

    def _probe(self) -> None:
        self._server.call("SET", self._server.name("probe"), self._lives.node, "EX", 60)
        self._server.call_each("PING")

    def state(self) -> StoreState:
        """The size is that of all that the Redis servers have in memory."""
        size = 0
        for told in self._server.call_each("INFO", "memory"):
            found = re.search(rb"used_memory:(\d+)", told)
            size += int(found[1]) if found else 0
        return StoreState(self._copy.life(), size or None)

    def close(self) -> None:
        """Tell what is to be told, and let go."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)
        try:
            self._teller.close()
        finally:
            self._server.close()
            self._copy.close()
