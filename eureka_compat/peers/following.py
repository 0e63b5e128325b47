"""One peer: what goes on between it and this server, and how the two are made equal.

Each peer has two threads, one that sends and one that compares, so a peer that is dead or slow
costs the others nothing, and one whose list is long in coming is told of renewals meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from eureka_compat.peers import leases
from eureka_compat.peers.comparison import Comparison, Difference, DifferenceKind, compared
from eureka_compat.peers.hold import Asked
from eureka_compat.peers.leases import Ending, Removal
from eureka_compat.peers.link import Link, PeerError
from eureka_compat.peers.local import LocalRegistry
from eureka_compat.peers.membership import Peer
from eureka_compat.peers.outbox import Pending
from eureka_compat.peers.settings import PeersSettings
from registry import Change, Instance, InstanceKey, duration_ms
from registry.duty import Duty

log = logging.getLogger("peers")

_GATHER_SECS = 0.05
_IDLE_SECS = 0.5
# A genuine server may list a change as late as that (its response cache), and until then a
# difference says nothing. A server of ours lists it at once: only what is under way is younger.
_CACHED_MS, _UNDER_WAY_MS = 35_000, 3_000
_EXAMPLES = 5
# A difference that is still there after so many attempts is left; the report tells of it.
_HEALED_AT_MOST = 3
# A list may lie in a cache, so there is no use in asking for it much more often.
_ASKED_AGAIN_SECS = 3.0


class Following:
    """A peer with the two threads that see to it: one sends, and one compares."""

    def __init__(
        self,
        peer: Peer,
        settings: PeersSettings,
        local: LocalRegistry,
        answered: Callable[[int], None],
        is_open: Callable[[], bool],
        left: Asked,
    ) -> None:
        """``is_open``: whether this server answers reads, and has begun with what peers had."""
        self.link = Link(peer, settings, local)
        self._asked = left
        self.was_asked = False
        """Whether the peer was asked for everything, answered or not."""
        self.is_shadow = False
        """Whether the peer said so last: nothing is taken of it, and nobody lives by its word."""
        self._settings = settings
        self._local = local
        self._answered = answered
        self._is_open = is_open
        self._stopping = threading.Event()
        self._something, self._wanted = threading.Event(), threading.Event()
        self._next_comparison = 0.0
        # What was done about differences that are still there: the two states, and how often.
        self._healed: dict[InstanceKey, tuple[object, int]] = {}
        self._heals = 0
        self._compared_at = -_ASKED_AGAIN_SECS
        self._comparison: dict[str, Any] | None = None
        self._has_sent = False
        self._ending: set[InstanceKey] = (
            set()
        )  # whose end the peer was told of since it listed them
        # Apart, since a list may be long in coming, and renewals have no time to wait for it.
        self.threads = [
            threading.Thread(target=work, name=f"peer {peer.name}: {what}", daemon=True)
            for what, work in (("batches", self._tell), ("lists", self._compare_again))
        ]
        for thread in self.threads:
            thread.start()

    def put(self, key: InstanceKey, what: Pending) -> None:
        """Tell the peer, soon."""
        if self._settings.mode != "shadow":
            self.link.outbox.put(key, what)
            self._something.set()

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()
        self._something.set()
        self._wanted.set()

    def asked(self) -> Asked:
        """How the peer stands, as ``Hold`` is to know it."""
        away = self._asked.away_mono_ms
        if self.link.is_up and self.link.answered_at is not None:
            away = 0
        elif not self.link.is_up:
            away = away or self._local.clock.mono_ms()
        self._asked = self._asked._replace(away_mono_ms=away)
        return self._asked

    def compare_anew(self) -> None:
        """Compare at the next turn, and heal what differs though it is young."""
        self.link.needs_comparison = True
        self._wanted.set()

    def compare_soon(self) -> None:
        """Compare at the next turn, unless that was done a moment ago."""
        if time.monotonic() - self._compared_at > _ASKED_AGAIN_SECS:
            self._next_comparison = 0.0
            self._wanted.set()

    def _tell(self) -> None:
        """Send whatever there is, until stopped."""
        turn = Duty(f"telling {self.link.peer.name}", 0.0, self._send, log)
        while not self._stopping.is_set():
            if turn.run(time.monotonic()) and self._has_sent:
                continue
            waits = self.link.waits(time.monotonic())
            if waits:
                self._stopping.wait(min(_IDLE_SECS, waits))
            else:
                self._something.wait(_IDLE_SECS)
                self._something.clear()
                self._stopping.wait(_GATHER_SECS)  # what comes together is told together

    def _send(self) -> None:
        self._has_sent = self.link.run_once(time.monotonic())
        if self.link.needs_comparison:
            self._wanted.set()

    def _compare_again(self) -> None:
        """Compare whenever it is due, until stopped."""
        duty = Duty(f"comparing with {self.link.peer.name}", 0.0, self._compare_if_due, log)
        while not self._stopping.is_set():
            duty.run(time.monotonic())
            self._wanted.wait(_IDLE_SECS)
            self._wanted.clear()

    def _compare_if_due(self) -> None:
        now = time.monotonic()
        is_due = self.link.needs_comparison or now >= self._next_comparison
        if is_due and self.link.may_fetch(now):
            self.link.outbox.note_cancels()
            try:
                self._compare()
            finally:
                self.link.outbox.cancels_noted()

    @property
    def has_told(self) -> bool:
        """Whether the peer has told everything that it lists."""
        return self._comparison is not None

    def _compare(self) -> None:
        link, local = self.link, self._local
        is_first = link.needs_comparison
        link.needs_comparison = False
        now_ms, began = local.clock.wall_ms(), local.clock.mono_ms()
        self._compared_at = time.monotonic()
        try:
            theirs, skew = link.fetch(now_ms)
            asked_ms, removals_ms = local.clock.mono_ms(), local.clock.wall_ms()
            told_of = link.leases()
        except PeerError as error:
            if self._stopping.is_set():
                return
            self.was_asked = True
            link.needs_comparison |= is_first
            link.fetched(error)
            self._answered(0)
            return
        if self._stopping.is_set():
            return
        ended: Mapping[InstanceKey, Removal] = {}
        leased: Collection[InstanceKey] | None = None
        if told_of is None:
            young_ms = _CACHED_MS
            left = {key: _left_by_list(each, now_ms + skew) for key, each in theirs.items()}
        else:
            young_ms = _UNDER_WAY_MS
            left = dict(told_of.left_ms)
            leased = left.keys()
        self.is_shadow = told_of is not None and told_of.is_shadow
        # Who has nothing yet takes over from a shadow too: a genuine server does so from any peer.
        believes = not self.is_shadow or not self._is_open()
        ends = {key: asked_ms + ms for key, ms in left.items() if key in theirs}
        if believes:
            local.extend(ends)
            ended = {} if told_of is None else told_of.removed
        self._next_comparison = time.monotonic() + self._settings.compare_interval_ms / 1000
        theirs = local.comparable(theirs, leased)
        found = compared(local.listed(), theirs, skew_ms=skew)
        removed = leases.removed_lately(local.namespace)
        told = [
            each
            for each in found.differences
            if not self._settles(each, theirs, removed, skew, young_ms)
        ]
        if self._settings.mode != "shadow" or self._comparison is None:
            renewed = local.renewed_here()
            self._ending = link.outbox.cancels_noted()
            for each in found.differences if is_first else told:
                if not self._ended_there(each, ended.get(each.key), removals_ms):
                    self._heal(
                        each,
                        theirs.get(each.key),
                        removed.get(each.key),
                        renewed,
                        ends.get(each.key),
                        believes=believes,
                    )
        differing = {each.key for each in found.differences}
        self._healed = {key: what for key, what in self._healed.items() if key in differing}
        self._asked = Asked(asked_mono_ms=began)
        self._note_comparison(found, told, now_ms)
        self.was_asked = True
        link.fetched(None)
        # One that starts empty at the same time lists itself: that is nothing to be opened for.
        servers = self._settings.app_name.upper()
        self._answered(sum(key.app != servers for key in theirs))

    def _settles(
        self,
        difference: Difference,
        theirs: dict[InstanceKey, Instance],
        removed: dict[InstanceKey, Change],
        skew_ms: int,
        young_ms: int,
    ) -> bool:
        """Whether a difference is so young that it may be a cached answer's, or under way."""
        since = self._local.clock.wall_ms() - young_ms
        gone = removed.get(difference.key)
        there = theirs.get(difference.key)
        found = self._local.outgoing(difference.key)
        return (
            (
                gone is not None
                and gone.instance is not None
                and gone.instance.last_updated_ms > since
            )
            or (there is not None and there.last_updated_ms - skew_ms > since)
            or (found is not None and found[0].last_updated_ms > since)
        )

    def _ended_there(self, difference: Difference, removal: Removal | None, at_ms: int) -> bool:
        """Whether a peer removed what only this server lists, after it was last heard of here.

        The peer is not to list it again then: this server may have been away, or cut off from where
        it was cancelled. It ends here too where the peer knows that from its own client. A word of
        a third server may have been under way for longer than the client needed to come back, so
        that ends nothing here: the next renewal of who lives lists him everywhere again.

        ``at_ms`` is the wall clock when the peer was asked: so long before that, the removal was at
        the earliest.
        """
        if difference.kind is not DifferenceKind.MISSING or removal is None:
            return False
        local = self._local
        found = local.outgoing(difference.key)
        # What is never renewed ends at a peer with each lease, and is told anew.
        if found is None or not found[0].expires:
            return False
        if at_ms - removal.ago_ms <= local.heard_ms(found[0]):
            return False
        if removal.how is Ending.CANCELLED and self._settings.fetch and local.end(found[0]):
            self._heals += 1
        return True

    def _heal(
        self,
        difference: Difference,
        theirs: Instance | None,
        gone: Change | None,
        renewed: dict[InstanceKey, int],
        ends_mono_ms: int | None,
        *,
        believes: bool,
    ) -> None:
        """Do about a difference what the newer state asks for, once for the same two states.

        ``ends_mono_ms`` is when the lease ends at the peer. A peer that is not to be believed is
        told what is newer here, and nothing is taken of it.
        """
        key, link, local = difference.key, self.link, self._local
        found = local.outgoing(key)
        mine = None if found is None else found[0]
        states = (
            None if mine is None else (mine.last_dirty_ms, mine.last_updated_ms),
            None if theirs is None else (theirs.last_dirty_ms, theirs.last_updated_ms),
        )
        before, times = self._healed.get(key, (None, 0))
        if difference.kind is DifferenceKind.DIFFERS and (
            before == states or times >= _HEALED_AT_MOST
        ):
            return
        sends = self._settings.mode != "shadow"
        if difference.kind is DifferenceKind.MISSING or (
            difference.kind is DifferenceKind.DIFFERS and difference.ours_wins
        ):
            if not sends or mine is None or not self._lives_here(mine, renewed):
                return
            what = Pending.REGISTER
            if "overriddenStatus" in difference.fields or "status" in difference.fields:
                what |= Pending.OVERRIDE
            link.outbox.put(key, what)
        elif theirs is None or not self._settings.fetch:
            return
        elif difference.kind is DifferenceKind.EXTRA:
            if ends_mono_ms is None or not self._take(
                theirs, gone, ends_mono_ms, sends=sends, believes=believes
            ):
                return
        elif not believes:
            return
        else:
            if "overriddenStatus" in difference.fields:
                local.take_override(theirs)
            local.take(theirs)
        self._healed[key] = (states, times + 1)
        self._heals += 1

    def _lives_here(self, instance: Instance, renewed: dict[InstanceKey, int]) -> bool:
        """Whether this server knows of its own that an instance lives: it may tell others then.

        What only peers renew is theirs to tell of. Otherwise two servers would keep a dead one
        alive, each by the other's word.
        """
        if not instance.is_leased or not instance.peers_know:
            return True
        at = renewed.get(instance.key)
        return at is not None and self._local.clock.mono_ms() - at < instance.lease_secs * 1000

    def _take(
        self,
        theirs: Instance,
        gone: Change | None,
        ends_mono_ms: int,
        *,
        sends: bool,
        believes: bool,
    ) -> bool:
        """Take what only the peer lists, for the rest of its lease; or tell it of a cancel."""
        local, outbox = self._local, self.link.outbox
        now = local.clock.mono_ms()
        age_ms = max(0, now + duration_ms(theirs.duration_secs) - ends_mono_ms)
        if gone is not None and gone.instance is not None:
            left = gone.instance
            if gone.evicted:
                if local.clock.wall_ms() - age_ms <= left.last_updated_ms:
                    return False
            elif theirs.last_dirty_ms <= left.last_dirty_ms:
                if sends and not left.peers_know:
                    outbox.put(theirs.key, Pending.CANCEL)
                return False
        if not believes or ends_mono_ms <= now or theirs.key in self._ending:
            return False
        return local.take(theirs, age_ms)

    def _note_comparison(self, found: Comparison, told: list[Difference], now_ms: int) -> None:
        self._comparison = {
            "at_ms": now_ms,
            "ours": found.ours,
            "theirs": found.theirs,
            "settling": len(found.differences) - len(told),
            **{str(kind): sum(each.kind is kind for each in told) for kind in DifferenceKind},
            "examples": [
                {
                    "app": each.key.app,
                    "id": each.key.id,
                    "kind": str(each.kind),
                    "fields": {name: list(values) for name, values in each.fields.items()},
                }
                for each in told[:_EXAMPLES]
            ],
        }

    def report(self) -> dict[str, Any]:
        """How this peer is, as JSON values."""
        link, now = self.link, time.monotonic()
        answered = link.answered_at
        clock = self._local.clock.wall_ms()
        return {
            "url": link.peer.name,
            "state": "up"
            if link.is_up and answered is not None
            else "starting"
            if link.is_up
            else "down",
            "last_exchange_ms": None if answered is None else clock - int((now - answered) * 1000),
            "pending": len(link.outbox),
            "lag_ms": 0
            if not len(link.outbox) or answered is None
            else int((now - answered) * 1000),
            "problem": link.problem,
            "failures": link.failures,
            "healed": self._heals,
            **asdict(link.tally),
            "comparison": self._comparison,
        }


def _left_by_list(theirs: Instance, now_ms: int) -> int:
    """What a lease has left by a genuine peer's list, whose clock says ``now_ms``; milliseconds.

    What a genuine server shows as the instant of a renewal is one duration later (``Lease.renew``
    of eureka-core), and it keeps the instance for another one. Here it ends as at any of ours.
    """
    duration = duration_ms(theirs.duration_secs)
    renewed = theirs.last_renewal_ms or now_ms
    if theirs.registration_ms and renewed > theirs.registration_ms:
        renewed = max(theirs.registration_ms, renewed - duration)
    return min(duration, renewed + duration - now_ms)


def verdict(peers: list[dict[str, Any]]) -> str:
    """One sentence for whoever wonders whether clients may be pointed at this server."""
    if not peers:
        return "Not known: there is no peer."
    for peer in peers:
        if peer["state"] != "up":
            reason = peer["problem"] or "it was not asked yet"
            return f"Not known: {peer['url']} is {peer['state']} ({reason})."
        if peer["comparison"] is None:
            return f"Not known: {peer['url']} was not compared yet."
    differing = []
    for peer in peers:
        counts = {str(kind): peer["comparison"][str(kind)] for kind in DifferenceKind}
        if any(counts.values()):
            told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            differing.append(f"{peer['url']}: {told}")
    if differing:
        return f"Not yet: this server and its peers differ ({'; '.join(differing)})."
    count = max(peer["comparison"]["ours"] for peer in peers)
    return f"Safe to switch: {count} instances, the same here and at each of {len(peers)} peers."
