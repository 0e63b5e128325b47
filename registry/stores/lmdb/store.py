"""The store in a folder: the contract, which its parts keep.

What each request asks (``revision``, ``renew``, ``lease``) is answered here as long as that costs
no transaction: from what the parts have in memory, and from the lease file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from registry.errors import ConflictError
from registry.model import Change, InstanceKey, Lease, Namespace, Revision, Snapshot
from registry.store import Commit, Due, Fence, StoreState
from registry.stores.lmdb.commits import Commits
from registry.stores.lmdb.coordination import Coordination
from registry.stores.lmdb.copying import Copying
from registry.stores.lmdb.leases import VERSION, Place
from registry.stores.lmdb.log import Log
from registry.stores.lmdb.offering import Offering
from registry.stores.lmdb.opening import open_folder
from registry.stores.lmdb.places import Places
from registry.stores.lmdb.upkeep import Upkeep

_NO_PLACES: dict[InstanceKey, Place] = {}


class LmdbStore:
    """A store in a folder, shared by all processes of this machine that open it."""

    def __init__(
        self, folder: Path, *, boot_id: str | None = None, life: Revision | None = None
    ) -> None:
        """Open or create the store; ``StoreError`` where the folder cannot be used.

        A new one begins with a life of its own, unless it is given one.
        """
        opened = open_folder(folder, boot_id, life)
        self._files = opened.files
        self._live = opened.live
        self._log = Log(opened.env, opened.live)
        self._places = Places(opened.env, opened.live)
        self._coordination = Coordination(opened.env, opened.files, opened.live, self._places)
        self._commits = Commits(
            opened.env, opened.live, self._log, self._places, self._coordination
        )
        self._upkeep = Upkeep(opened, self._log, self._places)
        # Where it is a copy of what another has decided (``registry.stores.redis``).
        copying = Copying(opened.env, opened.live, self._places, self._commits)
        self.follow = copying.follow
        self.commit_alone = copying.commit_alone
        self.take_up = copying.take_up
        self.replace = copying.replace
        self.life = self._log.life
        self.complete_after = self._log.complete_after
        self.trim_to = self._log.trim_to
        self.extend_all = self._places.extend_all
        self.renewed_since = self._places.renewed_since
        self.count_renewals = self._places.count_renewals
        self.lead = self._places.lead
        self.offering = Offering(opened.env, opened.live, self._places)
        """What it has to offer then."""
        # What the parts keep in memory, where each request looks.
        self._revisions = self._log.revisions
        self._known = self._places.known
        self._counters = self._places.counters

    # Records.

    def revision(self, namespace: Namespace) -> Revision:
        # Every request asks, so the version is taken from where it is, without a call.
        seen = self._revisions.get(namespace)
        if seen is not None and seen[0] == self._live.words[VERSION]:
            return seen[1]
        return self._log.revision(namespace)

    def load(self, namespace: Namespace) -> Snapshot:
        return self._log.load(namespace)

    def changes(self, namespace: Namespace, after: Revision) -> list[Change] | None:
        return self._log.changes(namespace, after)

    def commit(self, namespace: Namespace, commit: Commit, fence: Fence | None = None) -> Revision:
        revision = self._commits.commit_all(namespace, (commit,), fence)[0]
        if revision is None:
            raise ConflictError
        return revision

    def commit_all(
        self, namespace: Namespace, commits: Sequence[Commit], fence: Fence | None = None
    ) -> list[Revision | None]:
        return self._commits.commit_all(namespace, commits, fence)

    def renew(
        self, namespace: Namespace, key: InstanceKey, lease: Lease, window: int | None
    ) -> bool:
        live, places = self._live, self._places
        place = self._known.get(namespace, _NO_PLACES).get(key) or places.find(namespace, key)
        counter = None
        if window is not None:
            counter = self._counters.get(namespace)
            if counter is None:
                counter = places.counter(namespace)
        stored = None if place is None else live.renew(place, lease, counter, window or 0)
        if stored:
            return True
        if not places.renew_surely(namespace, key, lease):
            return False
        if stored is None and counter is not None:
            live.count(counter, window or 0)
        return True

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        return self._places.renewed_by_clients(namespace, after_mono_ms)

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        live = self._live
        words = live.words  # the version is at the same place in older mappings of the file
        version = words[VERSION]
        place = self._known.get(namespace, _NO_PLACES).get(key)
        if place is not None and not version & 1:
            found = live.read(place)
            if found is not None and words[VERSION] == version:
                return found
        return self._places.lease(namespace, key)

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        return self._places.due(namespace, now_mono_ms)

    def renewals(self, namespace: Namespace, window: int) -> int:
        return self._places.renewals(namespace, window)

    def expected_clients(self, namespace: Namespace) -> int | None:
        return self._log.expected_clients(namespace)

    def set_expected_clients(self, namespace: Namespace, count: int) -> None:
        self._log.set_expected_clients(namespace, count)

    def evictions(self, namespace: Namespace, after_mono_ms: int) -> int:
        return self._log.evictions(namespace, after_mono_ms)

    def trim(self, namespace: Namespace, before_mono_ms: int) -> int:
        return self._log.trim(namespace, before_mono_ms)

    def namespaces(self) -> dict[Namespace, int]:
        return self._log.namespaces()

    def resume(self, now_mono_ms: int) -> int | None:
        self._upkeep.check()
        return self._coordination.resume(now_mono_ms)

    def running_ms(self, now_mono_ms: int) -> int:
        return self._live.running_ms(now_mono_ms)

    def flush(self) -> None:
        self._upkeep.flush()

    # Coordination.

    def acquire(self, name: str, owner: str, now_mono_ms: int, ttl_ms: int) -> int | None:
        return self._coordination.acquire(name, owner, now_mono_ms, ttl_ms)

    def release(self, name: str, owner: str) -> None:
        self._coordination.release(name, owner)

    def note(self, name: str) -> bytes | None:
        return self._coordination.note(name)

    def set_note(self, name: str, value: bytes | None) -> None:
        self._coordination.set_note(name, value)

    # The whole.

    def probe(self) -> str | None:
        self._upkeep.probe()
        return None

    def state(self) -> StoreState:
        return self._upkeep.state()

    def close(self) -> None:
        self._upkeep.close()

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes, and other threads, from doing what has this name meanwhile."""
        return self._files.locked(f"{name}.lock")
