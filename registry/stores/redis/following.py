"""Following: what other machines change comes into this machine's copy.

A thread in each worker is told of each change when it is made. The message has the change itself,
and the revision that it comes after: where that is the one the copy is at, nothing is fetched. What
was told while the thread was at work goes into the copy together.

One worker of the machine, the *first*, brings changes into the copy at once. The others look a
moment later whether the copy has them, and do it themselves where it has not: the first may have
been stopped or killed. So does the first with what this machine itself changed, which the writer
brings into the copy. What is no news to the copy is passed over, so nobody needs to wait for
anybody. What others changed comes with the answer to an own write too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import redis

from registry.duty import Duty
from registry.errors import StoreError
from registry.model import NAMESPACE, Namespace, Revision
from registry.store import Commit
from registry.stores.lmdb import LmdbStore
from registry.stores.redis.lives import Lives
from registry.stores.redis.records import ENTRY, Entry, Records
from registry.stores.redis.server import (
    AnotherLifeError,
    Dialog,
    ForbiddenError,
    NonsenseError,
    Server,
)

log = logging.getLogger("registry")

LONGEST_FAULT_SECS = 5.0
"""Between two attempts of a thread at what a defect prevents, at most."""

_LISTENS_SECS = 0.25
_AGAIN_SECS = 0.2
# How long the first, or the writer itself, has to bring a change into the copy.
_OTHERS_SECS = 0.003


class _Moved(NamedTuple):
    """That a namespace moved on from a revision to another."""

    namespace: Namespace
    before: Revision
    revision: Revision
    expected: int | None
    told: list[bytes]
    """The changes in between, as scripts tell them; none where they are to be fetched."""
    due: float
    """When it should be in the copy, in monotonic seconds."""


class Follower:
    """Brings what changed in Redis into the copy. Thread-safe, but for ``follow``."""

    def __init__(self, server: Server, copy: LmdbStore, lives: Lives) -> None:
        """Follow nothing yet."""
        self._server = server
        self._records = Records(server)
        self._copy = copy
        self._lives = lives
        self._node = lives.node.encode()
        self._subscription: Any = None
        self._moved: list[_Moved] = []
        self.is_first = False
        """Whether this worker is the first of its machine's to bring changes into the copy."""
        self.refusal = ""
        """Why Redis tells this worker of no changes, where its user may not hear of them."""

    def take(
        self,
        namespace: Namespace,
        after: Revision,
        entries: list[Entry],
        expected: int | None,
        own: Iterable[tuple[Revision, Commit]] = (),
    ) -> None:
        """Bring changes into the copy that came after a revision; ``StoreError``.

        ``own`` are those that this machine made, and that come after the others.
        """
        decided = [(each.revision, self._with_lease(namespace, each, after)) for each in entries]
        decided += own
        if decided:
            given_as = {each.revision: each.given_as for each in entries if each.given_as}
            self._copy.follow(namespace, decided, expected, given_as)

    def _with_lease(self, namespace: Namespace, entry: Entry, after: Revision) -> Commit:
        """A change with its lease, if that began after a revision; others are the copy's matter."""
        if entry.lease is None or entry.lease[1] <= after:
            return entry.commit
        lease = entry.lease[0]
        known = self._copy.lease(namespace, entry.commit.key)
        if (
            known is not None
            and known.duration_ms == lease.duration_ms
            and known.deadline_mono_ms > lease.deadline_mono_ms
        ):
            lease = known
        return entry.commit._replace(lease=lease)

    def catch_up(self, namespace: Namespace) -> None:
        """Bring into the copy what changed since; ``StoreError``."""
        refused_in = None
        while True:
            # In this order: else it may be of a life in which the revision is beyond all others.
            life = self._copy.life()
            after = self._copy.revision(namespace)
            try:
                fetched = self._server.ask(self._records.fetch(life, namespace, after))
                if fetched.is_far:
                    self._lives.take_up_again(life, namespace, after)
                    continue
            except AnotherLifeError:
                if life == refused_in:
                    return  # nobody began it in this life, whoever told of it
                refused_in = life
                self._lives.adopt()
                continue
            self.take(namespace, after, fetched.entries, fetched.expected)
            if fetched.is_all:
                return

    def catch_up_all(self) -> None:
        """Bring into the copy what changed since in any namespace; ``StoreError``.

        Most have little to tell, so the first portion is asked of all together.
        """
        namespaces = self._records.namespaces()
        try:
            is_done = self._server.ask_each(self._begin_to_catch_up, namespaces)
        except AnotherLifeError:
            self._lives.adopt()
            is_done = {}
        for namespace in namespaces:
            if not is_done.get(namespace):
                self.catch_up(namespace)

    def _begin_to_catch_up(self, namespace: Namespace) -> Dialog[bool]:
        """Bring the first changes into the copy; whether those were all."""
        life = self._copy.life()
        after = self._copy.revision(namespace)
        fetched = yield from self._records.fetch(life, namespace, after, is_first=True)
        if fetched.is_far:
            return False
        self.take(namespace, after, fetched.entries, fetched.expected)
        return fetched.is_all

    def follow(self, stopping: threading.Event) -> None:
        """Bring changes into the copy as they are made, until it is over."""
        duty = Duty(
            "following the changes in Redis",
            0.0,
            self._follow,
            log,
            longest_secs=LONGEST_FAULT_SECS,
        )
        while not stopping.is_set():
            if not duty.run(time.monotonic()):
                self._leave()
                stopping.wait(_AGAIN_SECS)
        self._leave()

    def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._moved.clear()
        if subscription is not None:
            subscription.close()

    def _follow(self) -> None:
        """Wait a moment for news, and bring into the copy what is due; ``StoreError``."""
        try:
            if self._subscription is None:
                self._subscription = self._listened()
                self.catch_up_all()
            self._listen()
            self._take_moved()
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"Redis at {self._server.shown} is not followed: {error}") from error

    def _listened(self) -> Any:
        try:
            subscription = self._server.listen("moved")
        except ForbiddenError as error:
            if not self.refusal:
                log.warning("what other machines write is heard of late: %s", error)
            self.refusal = str(error)
            raise
        self.refusal = ""
        return subscription

    def _listen(self) -> None:
        """Hear what moved since, after waiting for it as long as nothing is due."""
        wait = _LISTENS_SECS
        if self._moved:
            wait = max(0.0, self._moved[0].due - time.monotonic())
            if not self.is_first:
                time.sleep(wait)  # rather than be woken by each message
                wait = 0.0
        for data in self._subscription.messages(timeout=wait):
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        try:
            moved = self._read(data)
        except ValueError:
            log.debug("a message that no machine of the registry wrote is passed over")
            return
        self._moved.append(moved)

    def _read(self, data: bytes) -> _Moved:
        """What a message says; ``ValueError``: anybody who may publish may write nonsense.

        So is the empty one with which a machine finds out whether it may publish.
        """
        head, _, body = data.partition(b"\n")
        name, before, revision, node, expected, *lengths = head.split(b" ")
        namespace = name.decode()
        if not NAMESPACE.match(namespace):
            raise ValueError(namespace)
        is_own = node == self._node
        told, start = [], 0
        for length in lengths:
            told.append(body[start : start + int(length)])
            start += int(length)
        if start != len(body) or len(told) % ENTRY:
            raise ValueError(data)
        return _Moved(
            Namespace(namespace),
            Revision(int(before)),
            Revision(int(revision)),
            int(expected) if expected else None,
            told,
            time.monotonic() + (0.0 if self.is_first and not is_own else _OTHERS_SECS),
        )

    def _take_moved(self) -> None:
        """Bring into the copy what is due and not there yet, with all before it."""
        by_namespace: dict[Namespace, list[_Moved]] = {}
        for moved in self._moved:
            by_namespace.setdefault(moved.namespace, []).append(moved)
        now = time.monotonic()
        self._moved = []
        for namespace, found in by_namespace.items():
            known = self._copy.revision(namespace)
            news = [moved for moved in found if moved.revision > known]
            if any(moved.due <= now for moved in news):
                self._take_news(namespace, known, news)
            else:
                self._moved += news

    def _take_news(self, namespace: Namespace, known: Revision, news: list[_Moved]) -> None:
        """Bring into the copy what comes after the revision that it is at."""
        until, told = known, []
        for moved in news:
            if not moved.told or moved.before > until:
                self.catch_up(namespace)
                return
            until = moved.revision
            told += moved.told
        try:
            entries = self._records.entries(namespace, told)
        except NonsenseError:  # anybody may tell it
            self.catch_up(namespace)
            return
        self.take(namespace, known, entries, news[-1].expected)
