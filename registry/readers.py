"""Who reads the registry: what each client fetched, up to which revision, and when.

Whoever takes an instance out of service has to know when nobody calls it any more: that is when all
who fetched lists before have fetched again since (``behind``).

**What a reader is.** A client is told apart by its address and by what it says of itself, which two
processes on one machine may have in common. Their connections they have not. So there is a reader
for each *connection* on which lists were fetched, and one that was closed counts on as long as it
is not known that its client goes on over another one:

* While it is open, it is behind until it fetches what it lacks.
* Once it is closed, it is behind until a connection of the same client, which began to fetch after
  that, has fetched instead. That one is then judged for itself.
* Either way it is nobody's any more where it did not fetch for ``WINDOW_MS`` (three of a client's
  usual intervals), or for two and a half of the intervals that it had. So a client that left holds
  nobody up for long, nor does a connection that its client's pool uses for other things now.

A client behind a proxy that does not tell of it (``REGISTRY_TRUSTED_PROXIES``) shares its address
and its connections with others: they are one reader.

**Where they are.** Each worker writes its own readers into a file, one record for each, and reads
those of the others; what a worker that ended wrote counts on, and its successor goes on from it.
What a client of a killed worker fetched in its last moment may not be there: then it seems to be
behind, never the other way round. Whoever reads a record while it is written sees that by its
checksum, and looks again. A worker knows so many readers at most; beyond it the one that has not
fetched for longest is forgotten, and that is told (``Behind.is_complete``).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from registry.figures import EVENTS, FULL_AFTER_DELTA, Figures
from registry.model import Namespace, Revision

log = logging.getLogger("registry")

WINDOW_MS = 90_000
"""Who did not fetch for so long does not read any more, unless its usual interval is longer."""
ALL = "all"
"""What full lists and deltas are of."""
MOST_READERS = 65_536
"""How many readers each worker knows."""
_FORGOTTEN_MS = 900_000
# A full list so soon after a delta, by the same client: what it made of the delta was not right.
_RIGHT_AFTER_MS = 5_000
_INTERVALS = 2.5
_RECORD_BYTES = 288
_FIRST_RECORDS = 256
# Checksum, length of the text, port, fulls, deltas; then revision, five instants, an interval.
_RECORD = struct.Struct("<IHHIIqqqqqqq")
_MOST_TEXT = _RECORD_BYTES - _RECORD.size
_LONGEST = 48  # characters of each part of the text
_MOST_COUNTED = (1 << 32) - 1
# In place of the first record: when a reader was forgotten that was still to be reckoned with.
_HEADER = struct.Struct("<q")
_TRIES = 5
# Begins each checksum: records of another format do not have it.
_FORMAT = 1


class Client(NamedTuple):
    """Who fetches: over which connection, in which namespace."""

    namespace: Namespace
    address: str
    port: int
    """Of the connection, on the client's side; 0 where there is none."""
    name: str
    """What the client says of itself."""
    what: str
    """Lists of what: ``ALL``, or an application or a VIP, as ``apps/WEB``."""


def client(namespace: Namespace, address: str, port: int, name: str, what: str) -> Client:
    """A client, what it says of itself shortened to what there is room for."""
    cut = [_cut(text) for text in (address, name, what)]
    return Client(namespace, cut[0], port & 0xFFFF, cut[1], cut[2])


class Reader(NamedTuple):
    """What is known of a reader. Instants are epoch milliseconds, 0 if it has not happened."""

    client: Client
    revision: Revision
    """What it fetched last shows all changes up to this one."""
    at_ms: int
    """When it fetched last."""
    since_ms: int
    """When it first did, on this connection."""
    full_ms: int
    """When it last fetched everything."""
    delta_ms: int
    """When it last fetched a delta."""
    closed_ms: int
    """When its connection ended; 0 while it is open."""
    interval_ms: int
    """The time between its last two fetches."""
    fulls: int
    """How often it fetched everything, on connections before this one too."""
    deltas: int
    """How often it fetched a delta."""

    def is_live(self, now_ms: int) -> bool:
        """Whether it is still to be reckoned with."""
        return now_ms - self.at_ms <= max(WINDOW_MS, _INTERVALS * self.interval_ms)

    def is_replaced_by(self, other: Reader) -> bool:
        """Whether its client goes on as another reader."""
        return (
            other is not self
            and 0 < self.closed_ms <= other.since_ms
            and _common(self.client) == _common(other.client)
        )


class Behind(NamedTuple):
    """Who has not fetched since a revision; and whether nobody else can be so."""

    readers: list[Reader]
    is_complete: bool


def opened(figures: Figures, folder: Path | None) -> Readers:
    """The readers of all workers, in that folder; where it cannot be used, of this one alone."""
    try:
        return Readers(figures, folder)
    except OSError as error:
        log.warning("who reads is known to this worker alone: %s", error)
        return Readers(figures)


class _Entry:
    """A reader of this worker, and where its record is."""

    __slots__ = ("place", "reader")

    def __init__(self, reader: Reader, place: int) -> None:
        self.reader = reader
        self.place = place


class Readers:
    """The readers of all workers of a machine.

    This worker's are noted by one thread; ``all`` and ``behind`` may be asked in any.
    """

    def __init__(
        self, figures: Figures, folder: Path | None = None, most: int = MOST_READERS
    ) -> None:
        """Keep a file for each worker in ``folder``; without one this worker is alone.

        Which worker this is, and which others live, ``figures`` tells. ``OSError``.
        """
        self._figures = figures
        self._folder = folder if figures.is_shared else None
        self._most = most
        # In the order of their last fetches.
        self._entries: dict[Client, _Entry] = {}
        # The last closed one of each client.
        self._closed: dict[tuple[str, ...], Client] = {}
        self._free: list[int] = []
        self._room = 0
        self._file: int | None = None
        self._mapped = mmap.mmap(-1, _RECORD_BYTES)
        if self._folder is not None:
            path = self._path(figures.number)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._grow(min(_FIRST_RECORDS, most))
        self._take_over()

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"readers.{number}"

    def _grow(self, records: int) -> None:
        """Make room for so many; what a worker before this one had made is kept."""
        size = (records + 1) * _RECORD_BYTES
        if self._file is None:
            mapped = mmap.mmap(-1, size)
            mapped[: len(self._mapped)] = self._mapped[:]
        else:
            size = max(size, os.fstat(self._file).st_size // _RECORD_BYTES * _RECORD_BYTES)
            os.posix_fallocate(self._file, 0, size)
            mapped = mmap.mmap(self._file, size)
        room = size // _RECORD_BYTES - 1
        self._free += range(room, self._room, -1)
        self._mapped, self._room = mapped, room

    def _take_over(self) -> None:
        """Go on from what the worker before this one has written: its connections are gone."""
        found = list(_records(self._mapped[:], lambda place: None))
        taken = set()
        for place, reader in sorted(found, key=lambda each: each[1].at_ms):
            if reader.client not in self._entries:
                taken.add(place)
                entry = self._entries[reader.client] = _Entry(reader, place)
                self._close(entry, reader.closed_ms or reader.at_ms)
        self._free = [place for place in self._free if place not in taken]

    # What happens

    def note(self, client: Client, revision: Revision, at_ms: int, *, is_delta: bool) -> None:
        """A client has fetched what changed (``is_delta``), or everything."""
        entry = self._entries.pop(client, None)
        since = None if entry is None or entry.reader.closed_ms else entry.reader.since_ms
        if entry is None:
            entry = self._before(client) or self._begun(client, at_ms)
        before = entry.reader
        if not is_delta and 0 <= at_ms - before.delta_ms <= _RIGHT_AFTER_MS:
            self._figures.numbers(EVENTS)[FULL_AFTER_DELTA] += 1
        self._entries[client] = entry
        self._write(
            entry,
            Reader(
                client=client,
                revision=revision,
                at_ms=at_ms,
                since_ms=at_ms if since is None else since,
                full_ms=before.full_ms if is_delta else at_ms,
                delta_ms=at_ms if is_delta else before.delta_ms,
                closed_ms=0,
                interval_ms=max(0, at_ms - before.at_ms),
                fulls=min(before.fulls + (not is_delta), _MOST_COUNTED),
                deltas=min(before.deltas + is_delta, _MOST_COUNTED),
            ),
        )

    def again(self, client: Client, at_ms: int) -> None:
        """It has fetched the same once more, for there was nothing new."""
        entry = self._entries.get(client)
        if entry is not None and at_ms > entry.reader.at_ms:
            last = entry.reader
            self.note(client, last.revision, at_ms, is_delta=last.delta_ms > last.full_ms)

    def left(self, client: Client, at_ms: int) -> None:
        """Its connection has ended."""
        entry = self._entries.get(client)
        if entry is not None and not entry.reader.closed_ms:
            self._close(entry, at_ms)

    def forget(self, now_ms: int) -> None:
        """Forget who has not fetched for long."""
        for entry in list(self._entries.values()):
            reader = entry.reader
            if now_ms - reader.at_ms < _FORGOTTEN_MS or reader.is_live(now_ms):
                break
            self._drop(entry)

    def _close(self, entry: _Entry, at_ms: int) -> None:
        closed = entry.reader._replace(closed_ms=max(at_ms, entry.reader.at_ms, 1))
        self._write(entry, closed)
        common = _common(closed.client)
        before = self._closed.get(common)
        if before is not None and before != closed.client:
            older = self._entries.get(before)
            if older is not None and older.reader.is_replaced_by(closed):
                self._drop(older)
        self._closed[common] = closed.client

    def _before(self, client: Client) -> _Entry | None:
        """The closed reader that goes on as this one."""
        closed = self._closed.pop(_common(client), None)
        return None if closed is None else self._entries.pop(closed, None)

    def _begun(self, client: Client, at_ms: int) -> _Entry:
        if not self._free and self._room < self._most:
            self._grow(min(self._most, self._room * 2))
        if not self._free:
            oldest = next(iter(self._entries.values()))
            if oldest.reader.is_live(at_ms):
                _HEADER.pack_into(self._mapped, 0, at_ms)
            self._drop(oldest)
        return _Entry(Reader(client, Revision(0), at_ms, at_ms, 0, 0, 0, 0, 0, 0), self._free.pop())

    def _drop(self, entry: _Entry) -> None:
        client = entry.reader.client
        del self._entries[client]
        if self._closed.get(_common(client)) == client:
            del self._closed[_common(client)]
        begin = entry.place * _RECORD_BYTES
        self._mapped[begin : begin + _RECORD_BYTES] = bytes(_RECORD_BYTES)
        self._free.append(entry.place)

    def _write(self, entry: _Entry, reader: Reader) -> None:
        entry.reader = reader
        record = _packed(reader)
        begin = entry.place * _RECORD_BYTES
        self._mapped[begin : begin + len(record)] = record

    # What is asked

    def all(self) -> list[Reader]:
        """The readers of all workers, in no order; a client may have several."""
        return self._all()[0]

    def behind(
        self,
        namespace: Namespace,
        revision: Revision,
        now_ms: int,
        concerned: Callable[[str], bool] = lambda what: True,
    ) -> Behind:
        """Who reads a namespace, and lacks something up to a revision.

        ``concerned`` tells whether lists of something (``Client.what``) are meant.
        """
        found, lost_ms = self._all()
        live = [
            each
            for each in found
            if each.client.namespace == namespace and concerned(each.client.what)
        ]
        by_client: dict[tuple[str, ...], list[Reader]] = {}
        for each in live:
            by_client.setdefault(_common(each.client), []).append(each)
        readers = [
            each
            for each in live
            if each.revision < revision
            and each.is_live(now_ms)
            and not any(map(each.is_replaced_by, by_client[_common(each.client)]))
        ]
        return Behind(readers, now_ms - lost_ms > WINDOW_MS)

    def _all(self) -> tuple[list[Reader], int]:
        """All readers, and when one was last forgotten that should not have been."""
        mapped = self._mapped
        found = [reader for _, reader in _records(mapped[:], _reread(mapped))]
        lost = int(_HEADER.unpack_from(mapped)[0])
        folder = self._folder
        for path in folder.glob("readers.*") if folder is not None else ():
            number = path.suffix[1:]
            if not number.isdigit() or int(number) == self._figures.number:
                continue
            is_alive = self._figures.is_alive(int(number))
            try:
                with path.open("rb") as file:
                    data = file.read()
                    if len(data) < _RECORD_BYTES:
                        continue
                    lost = max(lost, _HEADER.unpack_from(data)[0])
                    readers = [each for _, each in _records(data, _reread_from(file.fileno()))]
            except FileNotFoundError:
                continue
            if not is_alive:
                readers = [
                    each if each.closed_ms else each._replace(closed_ms=each.at_ms)
                    for each in readers
                ]
            found += readers
        return found, lost

    def close(self) -> None:
        """Leave what is written to the next worker."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _cut(text: str) -> str:
    kept = "".join(c for c in text[:_LONGEST] if c.isprintable())
    return kept.encode()[:_LONGEST].decode("utf-8", "ignore")


def what(kind: str, name: str) -> str:
    """What lists of one application or VIP are of: ``what("apps", "WEB")``."""
    return _cut(f"{kind}/{name}")


def _common(client: Client) -> tuple[str, ...]:
    """What two connections of a client have in common."""
    return client.namespace, client.address, client.name, client.what


def _packed(reader: Reader) -> bytes:
    client = reader.client
    text = "\0".join(_common(client)).encode()[:_MOST_TEXT]
    numbers = (len(text), client.port, reader.fulls, reader.deltas)
    body = _RECORD.pack(0, *numbers, *reader[1:8])[4:] + text
    return zlib.crc32(body, _FORMAT).to_bytes(4, "little") + body


def _unpacked(record: bytes) -> Reader | None:
    """The reader; None where there is none, or the record is amid being written."""
    crc, length, port, fulls, deltas, revision, *instants = _RECORD.unpack_from(record)
    end = _RECORD.size + length
    if not length or zlib.crc32(record[4:end], _FORMAT) != crc:
        return None
    namespace, address, name, about = record[_RECORD.size : end].decode().split("\0")
    client = Client(Namespace(namespace), address, port, name, about)
    at, since, full, delta, closed, interval = instants
    return Reader(
        client, Revision(revision), at, since, full, delta, closed, interval, fulls, deltas
    )


def _records(data: bytes, reread: Callable[[int], bytes | None]) -> Iterator[tuple[int, Reader]]:
    """The readers of a file, each with its place; ``reread`` gives what stands at one by now."""
    nothing = bytes(8)
    for begin in range(_RECORD_BYTES, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
        if data[begin : begin + 8] == nothing:
            continue
        record: bytes | None = data[begin : begin + _RECORD_BYTES]
        for _ in range(_TRIES):
            if record is None or len(record) < _RECORD_BYTES:
                break
            reader = _unpacked(record)
            if reader is not None:
                yield begin // _RECORD_BYTES, reader
                break
            record = reread(begin)


def _reread(mapped: mmap.mmap) -> Callable[[int], bytes]:
    return lambda begin: mapped[begin : begin + _RECORD_BYTES]


def _reread_from(file: int) -> Callable[[int], bytes]:
    return lambda begin: os.pread(file, _RECORD_BYTES, begin)
