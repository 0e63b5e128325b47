"""Live leases in a file that all worker processes map: a renewal is three stores into memory.

Which lease has which slot is said elsewhere, in the store's transactions; the file holds only what
renewals change. Its ``version`` is that of a seqlock (a counter that is odd while a writer is at
work, and by which a reader knows that nothing happened meanwhile), with the difference that
renewers, who play the reader's part, write too.

**An example.** The lease of *web:1* has slot 3, where it is generation 5. The version is 8.

1. *A renewal.* The renewer notes ``began = 9``, the version and one. It finds the version even and
   generation 5 in the slot, stores when it renewed and then, in one word, the deadline and the 5,
   notes ``began = 0`` and finds the version to be 8 still. The lease is renewed.
2. *An evictor at the same instant.* It takes the lock, makes the version 9, and then reads the
   deadline. If the renewer stored its deadline before that, the evictor sees it, and leaves the
   lease. If not, the evictor writes the eviction into the store, makes the slot generation 6, which
   is nobody's, and the version 10. The renewer, whose last look finds 9 or 10 instead of 8, takes
   the lock and asks the store: the lease is gone, and the client is told so. One of the two sees
   the other.
3. *The next registration* would take slot 3, which was let go of at version 9. But the renewer was
   held up before its stores: it still says ``began = 9``, and slot 3 waits until nobody says 10 or
   less. The registration takes slot 4, and the version goes to 11 and to 12. When the renewer goes
   on, it writes into a slot that is nobody's, and then finds 12. If it was killed instead, the
   system has taken back the lock on its place among the openers, and its word counts no more.
4. *A worker is killed in the middle of a change*, after its transaction, before it brought the
   slots in line: the version stays 13. Renewers find it odd, and wait for the lock. Whoever has it
   next finds the version odd under the lock, so somebody died: it brings all slots to what the
   store says, and makes the version 14.

**Format**, in words of eight bytes: a header (word 0 is the version; 1 when it was last noted that
the server runs and 2 how long it did not, for running time; 3 how many openers there were at once
at most; 4 the number of the store's format; 5 which opener leads, from 1 on, and 6 until when; from
512 on ``began`` of each opener), then slots of four words: deadline and generation, duration, last
renewal, last renewal by the client itself. A slot may instead count renewals: words 0 and 1 are the
windows of even and odd number, the window's number and its count in one word.

**Validity.** The file belongs to one boot of the machine, since deadlines do. A slot's words are of
the lease that the store gives this slot and the generation in word 0; of no lease where the
generations differ. A slot counts as free once the store says so and nobody is amid a renewal that
found it in use. So slots are used up meanwhile, 32 bytes for each registration.

**Reading** (``read``, ``renew``). Look at the version, at the slot, and at the version again. If it
is even and the same, what was found in between is of one state. If not, take the lock, under which
nobody changes places, and look into the store.

**Crashes.** A killed process leaves single words, each of them whole, and at worst an odd version
(4). Losing the file loses no more than the renewals since the last registration: every lease gets
its whole duration then. What remains: someone held up amid the stores for the *same* lease puts
back a deadline that others have moved on meanwhile. It renews again as soon as it goes on
(``Registry``), so that matters only where it is held up for longer than the lease lasts, and killed
or outrun at that very instant.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from registry.model import Lease
from registry.owners import disown, is_free, own
from registry.store import PAUSE_MS
from registry.stores.lmdb.formats import FORMAT

# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__
GENERATIONS = 1 << 20
_GENERATION = GENERATIONS - 1
_DEADLINE_SHIFT = 20
_WINDOW_SHIFT = 28
_COUNT = (1 << _WINDOW_SHIFT) - 1
_HEADER_BYTES = 16_384
_WORD_BYTES = 8
_SLOT_WORDS = 4
_SLOT_BYTES = _SLOT_WORDS * _WORD_BYTES
_FIRST_WORD = _HEADER_BYTES // _WORD_BYTES
_INITIAL_SLOTS = 1024
_OWNERS = 1024
VERSION = 0
"""Where the version is in ``LeaseFile.words``."""
_VERSION, _ALIVE, _OUTAGES, _OPENERS, _FORMAT, _LEADER, _LEADS_UNTIL = VERSION, 1, 2, 3, 4, 5, 6
_BEGAN = 512
_SLACK_MS = 60_000
_MOST = 1 << 60
_BIAS = 1 << 62  # instants may lie before the boot; 0 is none at all


class Place(NamedTuple):
    """Where a lease is: its slot, and which of the slot's leases it is."""

    slot: int
    generation: int

    def next(self) -> Place:
        """The same slot for another lease."""
        return _new(Place, (self.slot, (self.generation + 1) % GENERATIONS))


class LeaseFile:
    """The mapped file; one per process and store. Methods may raise ``OSError``."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make an empty one."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Threads of this process; also the barrier between storing a deadline and the next look at
        # the version, which a processor might otherwise do in the other order.
        self._lock = threading.Lock()
        # The same between saying that a renewal began and the look at the version.
        self._barrier = threading.Lock()
        try:
            status = os.fstat(self._file)
            self.identity = (status.st_dev, status.st_ino)
            is_new = status.st_size == 0
            if not is_new and not self._is_of_this_version() and not self.is_alone():
                raise OSError(f"{path} is in use by another version")
            if status.st_size < _HEADER_BYTES + _INITIAL_SLOTS * _SLOT_BYTES:
                os.posix_fallocate(self._file, 0, _HEADER_BYTES + _INITIAL_SLOTS * _SLOT_BYTES)
            self._map()
            self.owner = self._own()
            if is_new:
                self._words[_FORMAT] = FORMAT
            self._mine = _BEGAN + self.owner
            self._words[self._mine] = 0
            self._words[_OPENERS] = max(self._words[_OPENERS], self.owner + 1)
        except BaseException:
            os.close(self._file)
            raise

    def _is_of_this_version(self) -> bool:
        word = os.pread(self._file, _WORD_BYTES, _FORMAT * _WORD_BYTES)
        return int.from_bytes(word, sys.byteorder) == FORMAT

    def _map(self) -> None:
        size = os.fstat(self._file).st_size
        self.words = self._words = _mapped(self._file, size)
        self._slots = (size - _HEADER_BYTES) // _SLOT_BYTES

    def _own(self) -> int:
        """A number that no other opener has, given back by the system when the process ends."""
        number = own(self._file, _OWNERS)
        if number is None:
            raise OSError(f"more than {_OWNERS} processes use the store")
        return number

    @staticmethod
    def is_open(path: Path) -> bool:
        """Whether any process has the file open, of whatever version."""
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not is_free(file, 0, _OWNERS)
        finally:
            os.close(file)

    def is_alone(self) -> bool:
        """Whether no other opener is there."""
        return is_free(self._file, 0, _OWNERS)

    @property
    def version(self) -> int:
        """Changes with every change of a lease's place; odd while one is being made."""
        return self._words[_VERSION]

    def show_clock(self, alive_mono_ms: int | None, outages_ms: int) -> None:
        """State when the server was last known to run, and how long it did not."""
        # In this order running time never runs ahead.
        self._words[_OUTAGES] = outages_ms + _BIAS
        self._words[_ALIVE] = 0 if alive_mono_ms is None else alive_mono_ms + _BIAS

    def running_ms(self, now_mono_ms: int) -> int:
        """How long the server had run at an instant; it stands still while nobody notes that."""
        alive = self._words[_ALIVE]
        if alive:
            now_mono_ms = min(now_mono_ms, alive - _BIAS + PAUSE_MS)
        return now_mono_ms - (self._words[_OUTAGES] - _BIAS)

    def is_led(self, now_mono_ms: int) -> bool:
        """Whether another opener leads; what says so of long after now is nonsense."""
        ahead_ms = self._words[_LEADS_UNTIL] - _BIAS - now_mono_ms
        return self._words[_LEADER] != self.owner + 1 and 0 < ahead_ms <= _SLACK_MS

    def lead(self, until_mono_ms: int) -> None:
        """Lead until an instant, or until it is said again; only under ``lock``."""
        self._words[_LEADER] = self.owner + 1
        self._words[_LEADS_UNTIL] = until_mono_ms + _BIAS

    def skip_to(self, version: int) -> None:
        """Go on from a version that others know; for a file that is new, and alone with it."""
        self._words[_VERSION] = max(self._words[_VERSION], version + (version & 1))

    def is_over(self, version: int) -> bool:
        """Whether every renewal that began before the end of the change to a version has ended."""
        openers = self._words[_BEGAN : _BEGAN + min(self._words[_OPENERS], _OWNERS)].tolist()
        return not any(openers) or all(
            not began or began > version + 1 or is_free(self._file, number, 1)
            for number, began in enumerate(openers)
        )

    def size(self) -> int:
        """How many slots this process has seen room for; there are no more leases than that."""
        return self._slots

    def lock(self) -> bool:
        """Keep all others from changing which lease has which slot, until ``unlock``.

        Returns whether one of them was killed in the middle of it: what it left is to be published
        then, and the change to be ended.
        """
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return bool(self._words[_VERSION] & 1)

    def unlock(self) -> None:
        """Let the others."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def begin_change(self) -> None:
        """Say that which lease has which slot is about to change; only under ``lock``."""
        self._words[_VERSION] |= 1

    def end_change(self) -> None:
        """Say that it has, or that nothing came of it."""
        self._words[_VERSION] = (self._words[_VERSION] | 1) + 1

    def reserve(self, slot: int) -> None:
        """Make room for a slot, on the disk too: a full one must fail here, not at a renewal."""
        if slot < self._slots:
            return
        wanted = max(slot + 1, self._slots * 2)
        os.posix_fallocate(self._file, 0, _HEADER_BYTES + wanted * _SLOT_BYTES)
        self._map()

    def _word(self, slot: int) -> int:
        """Where a slot begins; asked for before ``_words`` is, which it may replace."""
        if slot >= self._slots:
            self._map()  # another process made room
        return _FIRST_WORD + slot * _SLOT_WORDS

    def holds(self, place: Place) -> bool:
        """Whether the slot is this lease's."""
        word = self._word(place.slot)
        return self._words[word] & _GENERATION == place.generation

    def write(self, place: Place, lease: Lease) -> None:
        """Store a lease."""
        self.write_all(((place, lease),))

    def write_all(self, leases: Iterable[tuple[Place, Lease]]) -> None:
        """Store several leases; those of a group of registrations."""
        with self._lock:
            for (slot, generation), (deadline, duration, renewed, by_client) in leases:
                word = self._word(slot)
                words = self._words
                words[word + 1] = duration
                words[word + 2] = renewed
                words[word + 3] = by_client
                words[word] = deadline << _DEADLINE_SHIFT | generation

    def renew(
        self, place: Place, lease: Lease, counter: int | None = None, window: int = 0
    ) -> bool | None:
        """Store a lease where its place is sure to be its own before and after: True.

        Else it is to be stored again under ``lock``: None where it was not stored, for another
        duration was registered too, and False where it may have been. Whatever may have been stored
        is counted as ``count`` does, where a ``counter`` is given.
        """
        # Each heartbeat comes here, so what ``_word`` does is done without its calls.
        slot, generation = place
        if slot >= self._slots or (counter is not None and counter >= self._slots):
            self._map()
        word = _FIRST_WORD + slot * _SLOT_WORDS
        if counter is not None:
            counter = _FIRST_WORD + counter * _SLOT_WORDS + (window & 1)
        words = self._words
        deadline, duration, renewed, by_client = lease
        mine = self._mine
        with self._lock:
            words[mine] = words[_VERSION] + 1
            with self._barrier:
                version = words[_VERSION]
            if (
                version & 1
                or words[word] & _GENERATION != generation
                or words[word + 1] != duration
            ):
                words[mine] = 0
                return None
            words[word + 2] = renewed
            if by_client:
                words[word + 3] = by_client
            words[word] = deadline << _DEADLINE_SHIFT | generation
            words[mine] = 0
            if counter is not None:
                words[counter] = _counted_once_more(words[counter], window)
        return words[_VERSION] == version

    def read(self, place: Place) -> Lease | None:
        """What is stored of a lease; None where its registration was not published yet."""
        slot, generation = place
        word = self._word(slot)
        words = self._words
        first = words[word]
        if first & _GENERATION != generation:
            return None
        return _new(
            Lease, (first >> _DEADLINE_SHIFT, words[word + 1], words[word + 2], words[word + 3])
        )

    def deadline(self, slot: int, generation: int, otherwise: int) -> int:
        """The deadline stored of a lease; ``otherwise`` where none was published yet."""
        word = self._word(slot)
        first = self._words[word]
        return first >> _DEADLINE_SHIFT if first & _GENERATION == generation else otherwise

    def renewed_by_clients(self, after_mono_ms: int) -> list[tuple[Place, int]]:
        """The leases that their clients renewed after an instant, and when they last did."""
        self._map()  # others may have made room
        words = self._words
        found = []
        for slot, at in enumerate(words[_FIRST_WORD + 3 :: _SLOT_WORDS].tolist()):
            if at > after_mono_ms:
                generation = words[_FIRST_WORD + slot * _SLOT_WORDS] & _GENERATION
                found.append((Place(slot, generation), at))
        return found

    def renewals(self) -> list[int]:
        """When each slot's lease was last renewed: it differs after a renewal."""
        self._map()  # others may have made room
        return self._words[_FIRST_WORD + 2 :: _SLOT_WORDS].tolist()

    def place(self, slot: int) -> Place:
        """Which lease has a slot."""
        return Place(slot, self._words[self._word(slot)] & _GENERATION)

    def count(self, slot: int, window: int, count: int = 1) -> None:
        """Count renewals in a window, in a slot of this owner's own."""
        word = self._word(slot) + (window & 1)
        words = self._words
        with self._lock:
            words[word] = _counted_more(words[word], window, count)

    def counted(self, slot: int, window: int) -> int:
        """How many renewals were counted there in a window."""
        word = self._word(slot) + (window & 1)
        stored = self._words[word]
        return stored & _COUNT if stored >> _WINDOW_SHIFT == window else 0

    def extend(
        self,
        now_mono_ms: int,
        slot: int,
        generation: int,
        deadline_mono_ms: int,
        duration_ms: int,
        last_renewal_ms: int,
    ) -> bool:
        """Give a lease its whole duration from now, unless it has more; whether it had less.

        The slot's lease is given as it was registered, for where no slot was written since.
        """
        word = self._word(slot)
        words = self._words
        first = words[word]
        by_client = 0
        if first & _GENERATION == generation:
            deadline_mono_ms = first >> _DEADLINE_SHIFT
            duration_ms, last_renewal_ms, by_client = words[word + 1 : word + 4].tolist()
        deadline = now_mono_ms + duration_ms
        if deadline <= deadline_mono_ms:
            return False
        lease = Lease(deadline, duration_ms, last_renewal_ms, by_client)
        self.write(Place(slot, generation), lease)
        return True

    def is_plausible(
        self, slot: int, generation: int, deadline_mono_ms: int, duration_ms: int
    ) -> bool:
        """Whether what is stored of a lease can be what renewals made of it.

        It is given as it was registered.
        """
        word = self._word(slot)
        words = self._words
        first = words[word]
        if first & _GENERATION != generation or words[word + 1] != duration_ms:
            return False
        found = first >> _DEADLINE_SHIFT
        alive = words[_ALIVE]
        latest = alive - _BIAS + 2 * duration_ms + _SLACK_MS if alive else found
        return (
            deadline_mono_ms <= found <= latest
            and words[word + 2] < _MOST
            and words[_VERSION] < _MOST
            and words[_FORMAT] == FORMAT
        )

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last use of it."""
        # The mapping has the file open too, and with it the lock.
        disown(self._file, _OWNERS)
        os.close(self._file)


def _mapped(file: int, size: int) -> memoryview:
    """The words of a file, in memory that all who map it share."""
    return memoryview(mmap.mmap(file, size)).cast("Q")


def _counted_once_more(stored: int, window: int) -> int:
    return stored + 1 if stored >> _WINDOW_SHIFT == window else window << _WINDOW_SHIFT | 1


def _counted_more(stored: int, window: int, count: int) -> int:
    if stored >> _WINDOW_SHIFT == window:
        return stored + count
    return window << _WINDOW_SHIFT | count
