"""What all workers of a machine count together, at the price of plain numbers.

A heartbeat costs some microseconds, and an increment with a lock of its own a good part of one. So
each worker counts in plain lists: ``numbers[EVICTED] += 1`` is one item of one list. There is no
call in that line, and CPython switches threads at calls and at the ends of loops alone, so that no
two threads of a worker overwrite each other's.

A few times a second each worker copies its lists to its *slot* in a file that all of them map
(``publish``). Whoever is asked adds up all slots (``totals``): its own as it is now, the others' as
of a moment ago. For example, with two workers, of which one dies:

    >>> path = folder / "figures"
    >>> a, b = Figures([EVENTS], path), Figures([EVENTS], path)
    >>> a.numbers(EVENTS)[EVICTED] += 5
    >>> b.numbers(EVENTS)[EVICTED] += 2
    >>> b.publish()
    >>> a.totals(EVENTS)[EVICTED], a.workers()
    (7, 2)
    >>> b.close()
    >>> a.totals(EVENTS)[EVICTED], a.workers()
    (7, 1)

The slot of a worker that died still counts. The next worker takes it over and goes on from its
numbers, so no total ever goes backwards, and nothing has to be moved while others look:

    >>> c = Figures([EVENTS], path)
    >>> c.numbers(EVENTS)[EVICTED] += 1
    >>> c.publish()
    >>> a.totals(EVENTS)[EVICTED], a.workers()
    (8, 2)

What a killed worker counted since its last ``publish`` is lost. A *gauge* is what a worker has now
(its connections): it begins at zero, and that of a dead worker does not count.

**Samples.** The file also has a ring of what was counted at regular instants, for plots. Whichever
worker comes first at an instant writes its sample.

**Format**, in words of eight bytes: a header (word 0 tells which sections there are: other code may
have others; 1 how many slots were ever taken), the ring, the slots. Which worker has which slot is
told by locks on the file, which the system gives back when a process ends (``owners``).
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from registry.owners import disown, is_free, own

log = logging.getLogger("registry")

SAMPLE_SECS = 30
"""The time between two samples."""
SAMPLES = 2_880
"""How many are kept: those of a day."""
SAMPLE_WORDS = 16
_WORD_BYTES = 8
_HEADER_WORDS = 64
_LAYOUT, _SLOTS = 0, 1
_FIRST_SLOT = _HEADER_WORDS + SAMPLES * SAMPLE_WORDS
_MOST_WORKERS = 512


class Section(NamedTuple):
    """Numbers that belong together. ``is_gauge``: of what a worker has now, and not a count."""

    name: str
    size: int
    is_gauge: bool = False


SOURCES = ("eureka", "native", "peer", "catalog")
"""Who tells of an instance, in the order of the numbers that are parted by it."""
EVICTION_REASONS = ("expired", "loss-accepted")

# Places in the section ``EVENTS``.
RENEWED_BY_PEER = 0
RENEWAL_UNKNOWN = 1
RENEWAL_REFUSED = 2
REGISTERED = 3  # and the three after it, one for each of ``SOURCES``
REGISTERED_AGAIN = 7
CANCELLED = 11
EVICTED = 15  # and the one after it: ``EVICTION_REASONS``
OVERRIDDEN = 17
OVERRIDE_REMOVED = 18
COMMITS = 19
COMMIT_NANOSECONDS = 20
COMMITS_FAILED = 21
FULL_AFTER_DELTA = 22
EVENTS = Section("events", 24)


class Figures:
    """The numbers of this process, and those of all workers together.

    The lists of ``numbers`` may be changed in any thread; the other methods are called by one
    thread at a time, or lock. ``OSError`` where the file cannot be used.
    """

    def __init__(self, sections: Sequence[Section] = (EVENTS,), path: Path | None = None) -> None:
        """Count in a file that other workers use too; without a ``path`` alone."""
        self._places: dict[Section, slice] = {}
        end = 0
        for section in sections:
            self._places[section] = slice(end, end + section.size)
            end += section.size
        self._slot_words = end
        layout = zlib.crc32(repr((tuple(sections), SAMPLES, SAMPLE_WORDS, SAMPLE_SECS)).encode())
        self._file: int | None = None
        self._mine = 0
        if path is None:
            self._words = _words(mmap.mmap(-1, self._size(1)))
            self._words[_SLOTS] = 1
        else:
            self._open(path, layout + 1)
        found = self._slot(self._mine)
        self._numbers = {
            section: [0] * section.size if section.is_gauge else found[place].tolist()
            for section, place in self._places.items()
        }
        self.publish()

    def _size(self, slots: int) -> int:
        return (_FIRST_SLOT + slots * self._slot_words) * _WORD_BYTES

    def _open(self, path: Path, layout: int) -> None:
        self._file = file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                told = os.pread(file, _WORD_BYTES, _LAYOUT * _WORD_BYTES)
                if int.from_bytes(told, "little") != layout:
                    if not is_free(file, 0, _MOST_WORKERS):
                        raise OSError(f"{path} is in use by another version")
                    os.ftruncate(file, 0)
                mine = own(file, _MOST_WORKERS)
                if mine is None:
                    raise OSError(f"more than {_MOST_WORKERS} processes use {path}")
                self._mine = mine
                # On the disk too: a full one must fail here, and not where a number is written.
                os.posix_fallocate(file, 0, self._size(mine + 1))
                self._map()
                self._words[_LAYOUT] = layout
                self._words[_SLOTS] = max(self._words[_SLOTS], mine + 1)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        except BaseException:
            os.close(file)
            self._file = None
            raise

    def _map(self) -> None:
        assert self._file is not None
        self._words = _words(mmap.mmap(self._file, os.fstat(self._file).st_size))

    @property
    def is_shared(self) -> bool:
        """Whether other workers use the same file."""
        return self._file is not None

    @property
    def number(self) -> int:
        """Which of the workers this is: a small number that no other living one has."""
        return self._mine

    def numbers(self, section: Section) -> list[int]:
        """What this worker counts. The list stays the same object."""
        return self._numbers[section]

    def publish(self) -> None:
        """Let the other workers see what was counted here."""
        for section in self._places:
            self._publish(section)

    def _publish(self, section: Section) -> list[int]:
        numbers = list(self._numbers[section])
        self._slot(self._mine)[self._places[section]] = memoryview(array("q", numbers))
        return numbers

    def totals(self, section: Section) -> list[int]:
        """What all workers have counted, those included that died; of gauges, what all have.

        What is told of this worker was shown to the others before: whichever worker is asked next
        tells of no less.
        """
        totals = self._publish(section)
        place = self._places[section]
        for number in self._others():
            if not section.is_gauge or self.is_alive(number):
                for at, value in enumerate(self._slot(number)[place].tolist()):
                    totals[at] += value
        return totals

    def workers(self) -> int:
        """How many workers there are."""
        return 1 + sum(map(self.is_alive, self._others()))

    def _others(self) -> list[int]:
        return [each for each in range(self._words[_SLOTS]) if each != self._mine]

    def is_alive(self, number: int) -> bool:
        """Whether another worker with this number lives."""
        return self._file is not None and not is_free(self._file, number, 1)

    def _slot(self, number: int) -> memoryview:
        begin = _FIRST_SLOT + number * self._slot_words
        if begin + self._slot_words > len(self._words):
            self._map()  # another worker made room
        return self._words[begin : begin + self._slot_words]

    # Samples

    def sample(self, now_secs: float, values: Callable[[], Sequence[int]]) -> None:
        """Keep what ``values`` gives, unless this instant's sample is there already."""
        at = int(now_secs) // SAMPLE_SECS * SAMPLE_SECS
        begin = _sample(at)
        words = self._words
        if words[begin] == at or not self._may_sample():
            return
        try:
            if words[begin] != at:
                taken = list(values())
                words[begin] = 0
                for place, value in enumerate(taken, begin + 1):
                    words[place] = value
                words[begin] = at
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _may_sample(self) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # another worker is at it
        return True

    def samples(self, now_secs: float, since_secs: float) -> list[list[int]]:
        """The samples that are not older than an instant, oldest first: the instant, the values."""
        found = []
        at = max(int(since_secs), int(now_secs) - (SAMPLES - 1) * SAMPLE_SECS)
        for instant in range(-(-at // SAMPLE_SECS) * SAMPLE_SECS, int(now_secs) + 1, SAMPLE_SECS):
            begin = _sample(instant)
            row = self._words[begin : begin + SAMPLE_WORDS].tolist()
            if instant and row[0] == instant == self._words[begin]:
                found.append(row)
        return found

    def close(self) -> None:
        """Publish, and leave the slot to the next worker."""
        if self._file is not None:
            for section in self._places:
                if section.is_gauge:
                    self._numbers[section][:] = [0] * section.size
            self.publish()
            disown(self._file, _MOST_WORKERS)
            os.close(self._file)
            self._file = None


def opened(sections: Sequence[Section], path: Path | None) -> Figures:
    """The figures in that file; where it cannot be used, those of this worker alone."""
    try:
        return Figures(sections, path)
    except OSError as error:
        log.warning("what is counted here is counted for this worker alone: %s", error)
        return Figures(sections)


def _words(mapped: mmap.mmap) -> memoryview:
    return memoryview(mapped).cast("q")


def _sample(at: int) -> int:
    """Where the sample of an instant is."""
    return _HEADER_WORDS + at // SAMPLE_SECS % SAMPLES * SAMPLE_WORDS
