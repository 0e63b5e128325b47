"""Following: what other machines change comes into this machine's copy.

A thread in each worker is told when the registry moved on, and brings the changes into the copy
unless another worker was faster. What is no news to the copy it passes over, so nobody needs to
wait for anybody. What others changed comes with the answer to an own write too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

import redis

from registry.errors import StoreError
from registry.model import Namespace, Revision
from registry.store import Commit
from registry.stores.lmdb import LmdbStore
from registry.stores.redis.lives import Lives
from registry.stores.redis.records import Entry, Records
from registry.stores.redis.server import AnotherLifeError, Server

log = logging.getLogger("registry")

_LISTENS_SECS = 0.25
_AGAIN_SECS = 0.2


class Follower:
    """Brings what changed in Redis into the copy. Thread-safe."""

    def __init__(self, server: Server, copy: LmdbStore, lives: Lives) -> None:
        """Follow nothing yet."""
        self._server = server
        self._records = Records(server)
        self._copy = copy
        self._lives = lives

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
            self._copy.follow(namespace, decided, expected)

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
        while True:
            after = self._copy.revision(namespace)
            life = self._copy.life()
            try:
                fetched = self._records.fetch(life, namespace, after)
            except AnotherLifeError:
                self._lives.adopt()
                continue
            if fetched.is_far:
                self._lives.take_up_again(life, namespace, after)
                continue
            self.take(namespace, after, fetched.entries, fetched.expected)
            if fetched.is_all:
                return

    def catch_up_all(self) -> None:
        """Bring into the copy what changed since in any namespace; ``StoreError``."""
        for namespace in self._records.namespaces():
            self.catch_up(namespace)

    def follow(self, stopping: threading.Event) -> None:
        """Bring changes into the copy as they are made, until it is over."""
        node = self._lives.node.encode()
        while not stopping.is_set():
            try:
                subscription = self._server.listen("moved")
                try:
                    self.catch_up_all()
                    while not stopping.is_set():
                        message = subscription.get_message(timeout=_LISTENS_SECS)
                        if message is None:
                            continue
                        name, revision, mover = message["data"].split(b" ")
                        namespace = Namespace(name.decode())
                        if mover != node and int(revision) > self._copy.revision(namespace):
                            self.catch_up(namespace)
                finally:
                    subscription.close()
            except (redis.RedisError, OSError, StoreError, AnotherLifeError) as error:
                log.debug("not following: %s", error)
            except Exception:
                log.exception("following the changes in Redis was interrupted")
            stopping.wait(_AGAIN_SECS)
