"""What Redis has of instances, leases and changes, in its words and in the registry's own.

The scripts and what stands in their keys are described in ``scripts.py``. Instants are Redis' time
there and this machine's monotonic clock here. Nothing here decides anything, or changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from registry.lease import SystemClock
from registry.model import (
    Instance,
    InstanceKey,
    InstanceStatus,
    Lease,
    Namespace,
    OverrideChange,
    Revision,
)
from registry.store import Commit
from registry.stores.lmdb.records import decode_instance, encode_instance
from registry.stores.redis import scripts
from registry.stores.redis.server import Argument, Call, Command, Dialog, Server


def heard_of(namespace: Namespace) -> str:
    """The note in the copy of the last batch of a namespace's renewals that is in it."""
    return f"redis/heard/{namespace}"


ENTRY = 6
"""How many values scripts tell of a change."""

_FETCHED_AT_ONCE = 1_000
_PAGE = 1_000
_LISTED_AT_ONCE = 5_000
# The first portion of anything: where many are asked for theirs together, most have no more.
_FIRST = 50
_REMOVED, _OF_OVERRIDE, _EVICTED = 4, 2, 1


class Entry(NamedTuple):
    """A change: its revision, and the commit that made it, which is without its lease."""

    revision: Revision
    commit: Commit
    lease: tuple[Lease, Revision] | None
    """The instance's lease now, and the revision with which it began."""
    name: bytes
    """Of what changed: an instance, or an override that changed alone."""
    given_as: Revision | None
    """Its revision in an earlier life, where it was given back from that and has another now."""


class Fetched(NamedTuple):
    """What changed in a namespace after a revision, a portion of it."""

    revision: Revision
    """The last change's."""
    complete_after: Revision
    """Only changes after it are all there; those before may be forgotten."""
    expected: int | None
    is_far: bool
    """Whether so much was forgotten that a copy cannot go on from there."""
    entries: list[Entry]
    is_all: bool
    """Whether nothing more is to be fetched after these."""


class Listing(NamedTuple):
    """Which states Redis has of a namespace, as far as its log tells of them."""

    revision: Revision
    """What changed after it may be missing."""
    complete_after: Revision
    is_taken: bool
    """Whether any node has taken up this life."""
    states: dict[bytes, tuple[Revision, Revision]]
    """By names: the revision, and that with which the state was given back, or the same."""


class Begun(NamedTuple):
    """How a namespace was last begun, as the root has it."""

    life: Revision
    begin: bytes
    """What its own part has too, unless that lost something since."""

    @classmethod
    def of(cls, told: bytes) -> Begun | None:
        """None where it never was; ``ValueError`` where that is nonsense."""
        if not told:
            return None
        life, begin = told.split(b" ")
        return cls(Revision(int(life)), begin)


class Records:
    """Reads what Redis has. Thread-safe."""

    def __init__(self, server: Server) -> None:
        """Ask nothing yet."""
        self._server = server
        self._clock = SystemClock()

    def begun(self) -> dict[Namespace, Begun | None]:
        """The namespaces that Redis has, and how each was last begun; ``StoreError``.

        That is None for one that is listed and was not begun yet.
        """
        told = self._server.call("HGETALL", self._server.name("namespaces"))
        with self._server.reading("namespaces"):
            return begun_of(told)

    def namespaces(self) -> list[Namespace]:
        """Those that were begun; one may not be open yet. ``StoreError``."""
        return [namespace for namespace, begun in self.begun().items() if begun is not None]

    def namespaces_in(self, life: Revision) -> list[Namespace]:
        """As ``namespaces``, if Redis is in a life; ``StoreError``, ``AnotherLifeError``."""
        told = self._server.run(scripts.NAMESPACES, None, life)
        with self._server.reading("namespaces"):
            return [each for each, begun in begun_of(told).items() if begun is not None]

    def overrides(self, namespace: Namespace) -> Dialog[dict[str, InstanceStatus]]:
        """The overrides of a namespace, by the instance's id; ``StoreError``."""
        name = self._server.name("override", namespace)
        stored = yield Command(("HGETALL", name), namespace, _FIRST)
        with self._server.reading("override", namespace):
            return {
                each.decode(): InstanceStatus(word.decode())
                for each, word in zip(stored[::2], stored[1::2], strict=True)
            }

    def last_batch(self, namespace: Namespace) -> Dialog[bytes]:
        """The number of the last batch of renewals in a namespace; ``StoreError``."""
        told = yield Command(("GET", self._server.name("told", namespace)), namespace)
        return told or b"0"

    def pages(
        self, life: Revision, namespace: Namespace
    ) -> Iterator[tuple[InstanceKey, bytes, Lease | None]]:
        """All that is listed in a namespace, with its record (``listed``) and its lease.

        It is read page by page: what changes meanwhile may be missing, or come twice.
        ``StoreError``, ``AnotherLifeError``.
        """
        cursor: bytes | None = None
        while cursor != b"0":
            cursor, page = self._server.ask(self.page(life, namespace, cursor))
            yield from page

    def page(
        self, life: Revision, namespace: Namespace, cursor: bytes | None
    ) -> Dialog[tuple[bytes, list[tuple[InstanceKey, bytes, Lease | None]]]]:
        """One of the ``pages``, and where the next begins: none after ``b"0"``."""
        most = min(_PAGE, _FIRST) if cursor is None else _PAGE
        asked = life, cursor or b"0", most
        cursor, page = yield Call(scripts.PAGE, namespace, asked, most)
        with self._server.reading("lease", namespace):
            leases = [self.lease(each)[0] if each else None for each in page[2::3]]
        with self._server.reading("record", namespace):
            return cursor, list(zip(map(key_of, page[::3]), page[1::3], leases, strict=True))

    def fetch(
        self,
        life: Revision,
        namespace: Namespace,
        after: Revision,
        *,
        known_until: Revision | None = None,
        is_first: bool = False,
    ) -> Dialog[Fetched]:
        """What changed after a revision; ``StoreError``, ``AnotherLifeError``.

        With ``known_until`` all that is there is told, but without what is listed since then.
        ``is_first``: this is one of many, of which most have little to tell.
        """
        most = min(_FETCHED_AT_ONCE, _FIRST) if is_first else _FETCHED_AT_ONCE
        known = "" if known_until is None else known_until
        told = yield Call(scripts.FETCH, namespace, (life, after, most, known), most)
        revision, trimmed, expected, is_far, found = told
        entries = self.entries(namespace, found)
        return Fetched(
            Revision(int(revision)),
            Revision(int(trimmed)),
            int(expected) if expected else None,
            is_far == b"1",
            entries,
            len(entries) < most,
        )

    def entries(self, namespace: Namespace, told: list[bytes]) -> list[Entry]:
        """Changes as scripts tell them; ``NonsenseError``."""
        found = []
        key = "log"
        try:
            for start in range(0, len(told), ENTRY):
                name, number, change, record, override, lease = told[start : start + ENTRY]
                key = "log"
                now, _, before = number.partition(b" ")
                revision, instance_key = Revision(int(now)), key_of(name)
                given_as = Revision(int(before)) if before else None
                key = "change"
                at, kind_word, state = change.split(b" ", 2)
                kind = int(kind_word)
                at_mono_ms = self._server.mono_of(int(at))
                instance = decode_instance(state, revision) if kind & _REMOVED else None
                key = "record"
                if record and instance is None:
                    instance = listed(record)
                key = "override"
                status = InstanceStatus(override.decode()) if override else None
                key = "lease"
                leased = self.lease(lease) if lease else None
                commit = Commit(
                    instance_key,
                    revision,
                    None,
                    at_mono_ms,
                    instance,
                    remove=bool(kind & _REMOVED),
                    evicted=bool(kind & _EVICTED),
                    override=OverrideChange(instance_key.id, status)
                    if kind & _OF_OVERRIDE
                    else None,
                )
                found.append(Entry(revision, commit, leased, name, given_as))
        except (ValueError, TypeError, IndexError) as error:
            raise self._server.nonsense(self._server.name(key, namespace), error) from error
        return found

    def named(
        self, life: Revision, namespace: Namespace, names: list[bytes]
    ) -> Dialog[list[Entry]]:
        """The last changes of what has these names; ``StoreError``, ``AnotherLifeError``."""
        found: list[Entry] = []
        for start in range(0, len(names), _PAGE):
            portion = names[start : start + _PAGE]
            arguments = life, packed(portion)
            told = yield Call(scripts.NAMED, namespace, arguments, len(portion))
            found += self.entries(namespace, told)
        return found

    def listing(
        self, life: Revision, namespace: Namespace, node: str, *, takes_up: bool
    ) -> Dialog[Listing | None]:
        """Which states Redis has; None while another node gives back: ask again soon.

        With ``takes_up`` the node has no more to give that is not another change.
        ``StoreError``, ``AnotherLifeError``.
        """
        states: dict[bytes, tuple[Revision, Revision]] = {}
        first: tuple[Revision, bool] | None = None
        after, most = b"", min(_FIRST, _LISTED_AT_ONCE)
        while True:
            arguments = life, node, after, most, int(takes_up)
            told = yield Call(scripts.LISTING, namespace, arguments, most)
            revision, trimmed, is_taken, listed_states, last = told
            if not revision:
                return None
            if first is None:
                first = Revision(int(revision)), is_taken == b"1"
            values = unpacked(listed_states)
            for name, number, before in zip(values[::3], values[1::3], values[2::3], strict=True):
                states[name] = Revision(int(number)), Revision(int(before or number))
            if len(values) < 3 * most:
                # What was forgotten between two portions may be missing.
                complete_after = Revision(int(trimmed))
                return Listing(first[0], complete_after, first[1], states)
            after, most = last, _LISTED_AT_ONCE

    def sent(self, commit: Commit) -> tuple[Argument, ...]:
        """A commit in Redis' words."""
        flags = "r" * commit.remove + "e" * commit.evicted
        if commit.expected_deadline_mono_ms is not None:
            flags += "d"
        change, most = commit.override, commit.instances_at_most
        return (
            name_of(commit.key),
            commit.key.id,
            commit.expected,
            commit.expected_override or "",
            self._server.time_of(commit.at_mono_ms),
            b"" if commit.instance is None else encode_instance(commit.instance),
            "" if commit.lease is None else self.told(commit.lease),
            flags,
            "" if change is None else change.status or "-",
            commit.expected_clients_step,
            commit.opening_clients,
            "" if most is None else most,
        )

    def told(self, lease: Lease) -> str:
        """A lease in Redis' words, but for the batch and the revision at its end."""
        by_client = lease.client_mono_ms and self._server.time_of(lease.client_mono_ms)
        deadline = self._server.time_of(lease.deadline_mono_ms)
        return f"{deadline} {lease.duration_ms} {lease.last_renewal_ms} {by_client}"

    def lease(self, told: bytes) -> tuple[Lease, Revision]:
        """A lease as Redis tells it, and the revision with which it began.

        None ends later than its whole duration from now, though Redis' clock was set back.
        """
        deadline, duration, last, by_client, _, began = map(int, told.split(b" "))
        mono_of, now = self._server.mono_of, self._clock.mono_ms()
        deadline_mono_ms = mono_of(deadline)
        if deadline_mono_ms > now + duration + scripts.AHEAD_MS:
            deadline_mono_ms = now + duration
        # It may have ended before this machine was started.
        by_client = by_client and max(0, mono_of(by_client))
        lease = Lease(max(0, deadline_mono_ms), duration, last, by_client)
        return lease, Revision(began)


def begun_of(told: list[bytes]) -> dict[Namespace, Begun | None]:
    """The namespaces as Redis tells them, and how each was last begun."""
    return {
        Namespace(name.decode()): Begun.of(begun)
        for name, begun in zip(told[::2], told[1::2], strict=True)
    }


def packed(values: Iterable[bytes]) -> bytes:
    """Many values as one, as scripts read them."""
    listed = list(values)
    return b" ".join([b"%d" % len(each) for each in listed]) + b"\n" + b"".join(listed)


def unpacked(text: bytes) -> list[bytes]:
    """The values that a script made one of."""
    lengths, _, body = text.partition(b"\n")
    values, start = [], 0
    for length in map(int, lengths.split()):
        values.append(body[start : start + length])
        start += length
    return values


def name_of(key: InstanceKey) -> str:
    """What an instance is called in Redis."""
    return f"{key.app}\0{key.id}"


def key_of(name: bytes) -> InstanceKey:
    """Of which instance Redis speaks; an override's own name is understood too."""
    app, instance_id = name.decode().split("\0")[:2]
    return InstanceKey(app, instance_id)


def listed(record: bytes) -> Instance:
    """The instance in a record."""
    revision, _, encoded = record.partition(b" ")
    return decode_instance(encoded, int(revision))
