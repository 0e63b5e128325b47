"""Places: which lease has which slot of the lease file, and what follows from that.

It is said in the store (``leased``, ``free``), and changed under the lease file's lock: its version
odd, one transaction, the slots in line, its version even. What renewals change stands in the lease
file (``leases.py``) and nowhere else.

**Kept in memory** are places, with the lease file's version before they were read: they count as
long as a slot's generation is theirs, which each look compares.

**Crashes.** Where a killed process left the version odd, the next who locks the file brings the
slots in line with what was committed.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

from registry.errors import StoreError, StoreGoneError
from registry.model import InstanceKey, Lease, Namespace
from registry.store import Due
from registry.stores.lmdb.environment import Environment, items, key_of
from registry.stores.lmdb.leases import LeaseFile, Place
from registry.stores.lmdb.records import ENTRY, LEASED, U64

NO_LEASE = Lease(0, 0, 0)
"""What stands in a slot that is nobody's."""

# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__
_PLACE = struct.Struct(">QQ")
_FREED = struct.Struct(">QQ")  # at which version, slot
_DUE = struct.Struct(">QQQ")
_LOOKED_AT_AT_ONCE = 1_000
_EXTENDED_AT_ONCE = 1_000
_PAUSE_SECS = 0.002


class Renewed(NamedTuple):
    """A lease as it was renewed."""

    namespace: Namespace
    key: InstanceKey
    lease: Lease


class _Alone:
    """What ``Places.alone`` gives. Not a generator, which would cost each registration more."""

    __slots__ = ("_env", "_live", "_publish")

    def __init__(self, env: Environment, live: LeaseFile, publish: Callable[[Any], None]) -> None:
        self._env = env
        self._live = live
        self._publish = publish

    def __enter__(self) -> None:
        self._env.lock.acquire()
        try:
            if self._live.lock():
                self._env.read(self._publish)
                self._live.end_change()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._live.unlock()
        except OSError as failed:
            error = error or failed
        finally:
            self._env.lock.release()
        if isinstance(error, OSError):
            raise StoreError(f"cannot use the lease file: {error}") from error


class Places:
    """The leases of a store. Thread-safe, and so among the processes that have it open."""

    def __init__(self, env: Environment, live: LeaseFile) -> None:
        """Know nothing yet."""
        self._env = env
        self._live = live
        self._alone = _Alone(env, live, self._publish)
        self.known: dict[Namespace, dict[InstanceKey, Place]] = {}
        """Where leases were found."""
        self.counters: dict[Namespace, int] = {}
        """The slots in which this process counts the renewals of namespaces."""
        self._owners: dict[Place, tuple[Namespace, InstanceKey]] = {}
        # The revision up to which each namespace's changes are in it.
        self._owned: dict[Namespace, int] = {}

    def forget(self) -> None:
        """Go by what is in the store, and not by what was there."""
        self.known.clear()

    def alone(self) -> AbstractContextManager[None]:
        """Keep all others from changing places, one that was killed at it included."""
        return self._alone

    def _publish(self, txn: Any) -> None:
        """Bring the file's slots to what the store says of them."""
        for _, value in txn.cursor(self._env.leased):
            place = place_of(value)
            if not self._live.holds(place):
                self._live.write(place, Lease(*LEASED.unpack(value)[2:]))
        for key, value in txn.cursor(self._env.free):
            self._live.write(Place(_FREED.unpack(key)[1], U64.unpack(value)[0]), NO_LEASE)

    # Changing places; only under ``alone``.

    def put_in_line(
        self, namespace: Namespace, changed: Sequence[tuple[InstanceKey, Place, Lease | None]]
    ) -> None:
        """Have the slots say what was written: whose lease each is now, or nobody's."""
        self._live.write_all([(place, lease or NO_LEASE) for _, place, lease in changed])
        places = self.known.setdefault(namespace, {})
        for key, place, lease in changed:
            if lease is None:
                places.pop(key, None)
            else:
                places[key] = place

    def let_go(self, txn: Any, leased: bytes) -> Place:
        """Let go of a lease's slot; the place is nobody's, and the slot not yet another's."""
        place = place_of(leased).next()
        freed = _FREED.pack(self._live.version, place.slot)
        txn.put(freed, U64.pack(place.generation), db=self._env.free)
        return place

    def take(self, txn: Any) -> Place:
        """A place for another lease: of a slot to which nobody can write, or of a further one."""
        cursor = txn.cursor(self._env.free)
        if cursor.first():
            version, slot = _FREED.unpack(cursor.key())
            if self._live.is_over(version):
                generation = U64.unpack(cursor.value())[0]
                cursor.delete()
                return Place(slot, generation).next()
        slot = self._env.number(txn, b"slots") or 0
        self._live.reserve(slot)
        txn.put(b"slots", U64.pack(slot + 1), db=self._env.meta)
        return Place(slot, 1)

    def last_freed(self, txn: Any) -> int:
        """The version of the lease file at which a slot was last let go of."""
        cursor = txn.cursor(self._env.free)
        return int(_FREED.unpack(cursor.key())[0]) if cursor.last() else 0

    def as_renewed(self, leased: bytes) -> Lease:
        """A lease as it is now; as it was registered where no slot was written since."""
        return self._live.read(place_of(leased)) or Lease(*LEASED.unpack(leased)[2:])

    def extend_all(self, now_mono_ms: int) -> int:
        """Give every lease its whole duration from now, unless it has more; how many that were.

        A renewal that comes meanwhile finds the version moved, and is stored again afterwards.
        """
        extended = 0
        last: bytes | None = None

        def read(txn: Any) -> list[tuple[bytes, bytes]]:
            """The next portion."""
            cursor = txn.cursor(self._env.leased)
            found = []
            if cursor.set_range(b"" if last is None else last + b"\0"):
                for item in cursor:
                    found.append(item)
                    if len(found) == _EXTENDED_AT_ONCE:
                        break
            return found

        while True:
            with self.alone():
                portion = self._env.read(read)
                self._live.begin_change()
                try:
                    for _, value in portion:
                        extended += self._live.extend(now_mono_ms, *LEASED.unpack(value))
                finally:
                    self._live.end_change()
            if len(portion) < _EXTENDED_AT_ONCE:
                return extended
            last = portion[-1][0]

    # Renewing and reading.

    def find(self, namespace: Namespace, key: InstanceKey) -> Place | None:
        """The place of a lease that another worker registered, where it is sure; else None."""
        version = self._live.version
        stored_key = key_of(namespace, *key)
        leased = self._env.read(lambda txn: txn.get(stored_key, db=self._env.leased))
        if leased is None or version & 1 or self._live.version != version:
            return None
        return self._remember(namespace, key, place_of(leased))

    def _remember(self, namespace: Namespace, key: InstanceKey, place: Place) -> Place:
        places = self.known.setdefault(namespace, {})
        if len(places) > self._live.size():
            places.clear()  # most of them ended in other processes
        places[key] = place
        return place

    def renew_surely(self, namespace: Namespace, key: InstanceKey, lease: Lease) -> bool:
        """Renew where nobody else changes places meanwhile."""
        stored_key = key_of(namespace, *key)
        with self.alone():
            leased = self._env.read(lambda txn: txn.get(stored_key, db=self._env.leased))
            if leased is None:
                self.known.get(namespace, {}).pop(key, None)
                return False
            known = self.as_renewed(leased)
            if known.duration_ms != lease.duration_ms:
                return False
            if not lease.client_mono_ms:
                lease = lease._replace(client_mono_ms=known.client_mono_ms)
            self._live.write(self._remember(namespace, key, place_of(leased)), lease)
            return True

    def lease(self, namespace: Namespace, key: InstanceKey) -> Lease | None:
        """A lease as it is now, looked up in the store; None where there is none."""
        version = self._live.version
        stored_key = key_of(namespace, *key)
        leased = self._env.read(lambda txn: txn.get(stored_key, db=self._env.leased))
        if leased is None:
            return None
        if not version & 1 and self._live.version == version:
            self._remember(namespace, key, place_of(leased))
        return self.as_renewed(leased)

    def due(self, namespace: Namespace, now_mono_ms: int) -> Due:
        deadline_of = self._live.deadline
        expired: list[tuple[InstanceKey, Lease]] = []
        leases, earliest = 0, 1 << 62
        last: bytes | None = None

        def look(txn: Any) -> bool:
            """Look at the next portion; whether there is more."""
            nonlocal leases, earliest, last
            for number, (key, value) in enumerate(items(txn, self._env.leased, namespace, last)):
                if number == _LOOKED_AT_AT_ONCE:
                    return True
                slot, generation, registered = _DUE.unpack_from(value)
                deadline = deadline_of(slot, generation, registered)
                leases += 1
                if deadline < now_mono_ms:
                    place = InstanceKey(*key.decode().split("\0"))
                    expired.append((place, self.as_renewed(value)))
                elif deadline < earliest:
                    earliest = deadline
                last = key
            return False

        # Neither this process' other threads nor its transactions wait for a look at all leases.
        while self._env.read(look):
            time.sleep(_PAUSE_SECS)
        return Due(expired, leases, earliest if leases > len(expired) else None)

    # Leading.

    def lead(self, now_mono_ms: int, ttl_ms: int) -> bool:
        """Whether this process leads those that have the store open, for so long from now.

        One of them does. All of it stands in the lease file, so that a full disk takes it from
        nobody.
        """
        if self._live.is_led(now_mono_ms):
            return False
        with self.alone():
            if self._live.is_led(now_mono_ms):
                return False
            self._live.lead(now_mono_ms + ttl_ms)
        return True

    # Counting.

    def counter(self, namespace: Namespace) -> int | None:
        """The slot in which this process counts the renewals of a namespace.

        None where it has none yet and the disk is full: renewals are accepted uncounted then.
        """
        slot = self.counters.get(namespace)
        if slot is None:
            key = b"counter\0" + namespace.encode() + b"\0" + U64.pack(self._live.owner)

            def write(txn: Any) -> int:
                stored = self._env.number(txn, key)
                if stored is None:
                    stored = self._env.number(txn, b"slots") or 0
                    self._live.reserve(stored)
                    txn.put(b"slots", U64.pack(stored + 1), db=self._env.meta)
                    txn.put(key, U64.pack(stored), db=self._env.meta)
                return stored

            try:
                slot = self.counters[namespace] = self._env.write(write)
            except StoreGoneError:
                raise
            except StoreError:
                return None
        return slot

    def count_renewals(self, namespace: Namespace, window: int, count: int) -> None:
        """Count so many renewals of elsewhere in a window."""
        counter = self.counter(namespace) if count > 0 else None
        if counter is not None:
            self._live.count(counter, window, count)

    def renewals(self, namespace: Namespace, window: int) -> int:
        prefix = b"counter\0" + namespace.encode() + b"\0"

        def slots(txn: Any) -> list[int]:
            found = []
            cursor = txn.cursor(self._env.meta)
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    found.append(U64.unpack(value)[0])
            return found

        return sum(self._live.counted(slot, window) for slot in self._env.read(slots))

    # Who renewed.

    def renewed_by_clients(
        self, namespace: Namespace, after_mono_ms: int
    ) -> list[tuple[InstanceKey, int]]:
        renewed = self._live.renewed_by_clients(after_mono_ms)
        if any(place not in self._owners for place, _ in renewed):
            self._owners = self._owners_of_places()
        found = []
        for place, at in renewed:
            owner = self._owners.get(place)
            if owner is not None and owner[0] == namespace:
                found.append((owner[1], at))
        return found

    def _owners_of_places(self) -> dict[Place, tuple[Namespace, InstanceKey]]:
        """Whose lease each place is, of all namespaces; read a portion at a time."""
        owners: dict[Place, tuple[Namespace, InstanceKey]] = {}
        last: bytes | None = None

        def look(txn: Any) -> bool:
            """Look at the next portion; whether there is more."""
            nonlocal last
            cursor = txn.cursor(self._env.leased)
            if cursor.set_range(b"" if last is None else last + b"\0"):
                for number, (key, value) in enumerate(cursor):
                    if number == _LOOKED_AT_AT_ONCE:
                        return True
                    namespace, app, instance_id = bytes(key).decode().split("\0")
                    owner = Namespace(namespace), InstanceKey(app, instance_id)
                    owners[place_of(value)] = owner
                    last = bytes(key)
            return False

        while self._env.read(look):
            time.sleep(_PAUSE_SECS)
        return owners

    def renewed_since(self, seen: list[int]) -> tuple[list[int], list[Renewed]]:
        """What tells renewals from the next time, and the leases that were renewed since.

        It is what was returned the last time, or an empty list: then all are told. Leases that
        began since are told too.
        """
        now = self._live.renewals()
        places = [
            slot
            for slot, (is_now, was) in enumerate(
                itertools.zip_longest(now, seen[: len(now)], fillvalue=0)
            )
            if is_now != was
        ]
        if places:
            self._look_for_owners()
        found = []
        for slot in places:
            place = self._live.place(slot)
            owner = self._owners.get(place)
            lease = None if owner is None else self._live.read(place)
            if owner is not None and lease is not None:
                found.append(Renewed(*owner, lease))
        return now, found

    def _look_for_owners(self) -> None:
        """Know whose lease each place is: from the log, where that tells all that changed."""

        def look(txn: Any) -> bool:
            """Look at what changed; whether that was all there is to be known."""
            for name, after in self._owned.items():
                if after < self._env.trimmed(txn, name):
                    return False
            for name in self._env.sizes(txn):
                after = self._owned.get(name, 0)
                prefix = name.encode() + b"\0"
                for _, value in items(txn, self._env.log, name, U64.pack(after)):
                    key = value[ENTRY.size :]
                    leased = txn.get(prefix + key, db=self._env.leased)
                    if leased is not None:
                        owner = name, InstanceKey(*key.decode().split("\0"))
                        self._owners[place_of(leased)] = owner
                self._owned[name] = self._env.revision(txn, name)
            return True

        if len(self._owners) <= 2 * self._live.size() and self._env.read(look) and self._owners:
            return
        # What is known may be older than what is found, never newer.
        self._owned = self._env.read(
            lambda txn: {name: self._env.revision(txn, name) for name in self._env.sizes(txn)}
        )
        self._owners = self._owners_of_places()


def place_of(leased: bytes) -> Place:
    """The place in an item of ``leased``."""
    return _new(Place, _PLACE.unpack_from(leased))


def pack(place: Place, lease: Lease) -> bytes:
    """An item of ``leased``."""
    deadline, duration, renewed, _ = lease
    return LEASED.pack(*place, deadline, duration, renewed)
