"""What peers are told and what is taken from them, without a network."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from eureka_compat import wire
from eureka_compat.peers import comparison, hold, items, leases, membership
from eureka_compat.peers.circuit import Breaker, Circuit
from eureka_compat.peers.comparison import DifferenceKind, compared
from eureka_compat.peers.hold import Asked, Hold
from eureka_compat.peers.items import Action, Item, Reply
from eureka_compat.peers.leases import Ending, Leases, Removal
from eureka_compat.peers.membership import Peer, others, read_url
from eureka_compat.peers.outbox import Outbox, Pending
from eureka_compat.wire import ParseError
from registry import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceKey,
    InstanceStatus,
    NamespaceRegistry,
    Registry,
    RegistrySettings,
)
from registry.evictor import Evictor
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on

KEY = InstanceKey("APP", "one")
OTHER = InstanceKey("APP", "two")
CANCEL, REGISTER, OVERRIDE, HEARTBEAT, LATE = Pending


def instance(key: InstanceKey = KEY, **fields: Any) -> Instance:
    made = Instance(key.app, key.id, key.id, "host", "10.0.0.1", last_dirty_ms=1000)
    return made._replace(**fields)


class TestOutbox:
    @pytest.mark.parametrize(
        ("said", "left"),
        [
            ([REGISTER, HEARTBEAT], REGISTER),
            ([HEARTBEAT, REGISTER], REGISTER),
            ([HEARTBEAT, OVERRIDE], HEARTBEAT | OVERRIDE),
            ([REGISTER, OVERRIDE], REGISTER | OVERRIDE),
            ([REGISTER, OVERRIDE, HEARTBEAT, CANCEL], CANCEL),
            ([CANCEL, REGISTER], CANCEL | REGISTER),
            ([CANCEL, REGISTER, CANCEL], CANCEL),
            ([REGISTER, LATE, OVERRIDE], REGISTER | OVERRIDE | LATE),
            ([REGISTER, LATE, CANCEL], CANCEL),
        ],
    )
    def test_the_newest_word_about_an_instance_wins(
        self, said: list[Pending], left: Pending
    ) -> None:
        outbox = Outbox(10)
        for what in said:
            if what is LATE:
                outbox.mark_late()
            else:
                outbox.put(KEY, what)

        assert outbox.take(10) == [(KEY, left)]
        assert len(outbox) == 0

    def test_the_oldest_come_first_and_a_later_word_changes_nobodys_place(self) -> None:
        outbox = Outbox(10)
        outbox.put(KEY, REGISTER)
        outbox.put(OTHER, REGISTER)
        outbox.put(KEY, OVERRIDE)

        assert outbox.take(1) == [(KEY, REGISTER | OVERRIDE)]
        assert outbox.take(1) == [(OTHER, REGISTER)]

    @pytest.mark.parametrize(
        ("taken", "meanwhile", "left"),
        [
            (REGISTER, CANCEL, CANCEL),
            (CANCEL, REGISTER, CANCEL | REGISTER),
            (HEARTBEAT, REGISTER, REGISTER),
            (OVERRIDE, HEARTBEAT, OVERRIDE | HEARTBEAT),
        ],
    )
    def test_what_could_not_be_sent_is_older_than_what_came_meanwhile(
        self, taken: Pending, meanwhile: Pending, left: Pending
    ) -> None:
        outbox = Outbox(10)
        outbox.put(KEY, taken)
        entries = outbox.take(10)
        outbox.put(OTHER, REGISTER)
        outbox.put(KEY, meanwhile)
        outbox.put_back(entries)

        assert outbox.take(10) == [(KEY, left), (OTHER, REGISTER)]

    def test_beyond_its_bound_nothing_is_kept_and_a_comparison_is_asked_for_once(self) -> None:
        outbox = Outbox(2)
        keys = [InstanceKey("APP", str(n)) for n in range(3)]
        for key in keys:
            outbox.put(key, HEARTBEAT)

        assert len(outbox) == 0
        assert outbox.overflowed()
        assert not outbox.overflowed()

    def test_whose_end_is_told_is_known_while_a_list_is_fetched_and_no_longer(self) -> None:
        outbox = Outbox(10)
        names = ("under way", "waiting", "later", "registered", "after")
        under_way, waiting, later, registered, after = (InstanceKey("APP", n) for n in names)
        outbox.put(under_way, CANCEL)
        outbox.take(1)
        outbox.put(waiting, CANCEL)
        outbox.put(registered, REGISTER)
        outbox.note_cancels()
        outbox.put(later, CANCEL)
        outbox.take(10)

        assert outbox.cancels_noted() == {under_way, waiting, later}
        outbox.put(after, CANCEL)
        assert outbox.cancels_noted() == set()


class TestBatch:
    def test_a_batch_is_spelled_as_a_genuine_sender_does(self) -> None:
        one = instance(status=InstanceStatus.UP)
        body = items.encoded(
            [
                Item(Action.REGISTER, KEY, one),
                Item(Action.HEARTBEAT, KEY, one, InstanceStatus.OUT_OF_SERVICE),
                Item(Action.HEARTBEAT, KEY, one),
                Item(Action.STATUS_UPDATE, KEY, one, InstanceStatus.DOWN),
                Item(Action.DELETE_STATUS_OVERRIDE, KEY, one),
                Item(Action.CANCEL, KEY),
            ]
        )

        name = {"appName": "APP", "id": "one"}
        told = {**name, "lastDirtyTimestamp": 1000}
        expected = [
            {**told, "status": "UP", "instanceInfo": wire.instance_tree(one), "action": "Register"},
            {**told, "overriddenStatus": "OUT_OF_SERVICE", "status": "UP", "action": "Heartbeat"},
            {**told, "status": "UP", "action": "Heartbeat"},
            {**told, "status": "DOWN", "action": "StatusUpdate"},
            {**told, "status": "UP", "action": "DeleteStatusOverride"},
            {**name, "action": "Cancel"},
        ]
        sent = json.loads(body)["replicationList"]
        assert sent == expected
        assert [list(item) for item in sent] == [list(item) for item in expected]

    def test_replies_are_read_with_the_newer_instance_of_a_conflict(self) -> None:
        theirs = instance(last_dirty_ms=2000)
        entity = wire.instance_tree(theirs)
        body = json.dumps(
            {"responseList": [{"statusCode": 404}, {"statusCode": 409, "responseEntity": entity}]}
        ).encode()

        first, second = items.read_replies(body, 2, 5)

        assert first == Reply(404)
        assert second.status == 409
        assert second.entity is not None
        assert wire.instance_tree(second.entity)["lastDirtyTimestamp"] == "2000"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"{}",
            b'{"responseList":[]}',
            b'{"responseList":[{}]}',
            b'{"responseList":[{"statusCode":"200"}]}',
            b'{"responseList":[{"statusCode":409,"responseEntity":{}}]}',
            b'{"responseList":[{"statusCode":409,"responseEntity":{"app":"A"}}]}',
        ],
    )
    def test_what_is_no_list_of_replies_is_not_guessed_at(self, body: bytes) -> None:
        with pytest.raises(ParseError):
            items.read_replies(body, 1, 5)


class TestBreaker:
    def test_a_failure_opens_it_and_each_further_one_doubles_the_wait(self) -> None:
        breaker = Breaker(first_secs=1.0, longest_secs=6.0, jitter=_Longest())
        opened = [breaker.failed(0.0) for _ in range(5)]

        assert opened == [True, False, False, False, False]
        assert breaker.retry_at == 6.0
        assert breaker.state(5.9) is Circuit.OPEN
        assert breaker.state(6.0) is Circuit.HALF_OPEN

    def test_a_success_closes_it_and_says_so_once(self) -> None:
        breaker = Breaker()
        breaker.failed(0.0)

        assert [breaker.succeeded(), breaker.succeeded()] == [True, False]
        assert breaker.state(0.0) is Circuit.CLOSED

    def test_peers_that_lost_the_same_server_come_back_at_different_instants(self) -> None:
        waits = set()
        for seed in range(20):
            breaker = Breaker(jitter=random.Random(seed))
            breaker.failed(0.0)
            waits.add(breaker.retry_at)

        assert len(waits) == 20
        assert all(0.05 <= wait <= 0.1 for wait in waits)


class _Longest(random.Random):
    """No jitter: always the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


class TestAddresses:
    def test_a_service_url_is_read_with_its_credentials(self) -> None:
        assert read_url("http://user:p%40ss@One:8761/eureka") == Peer(
            "http", "one", 8761, "/eureka/", ("user", "p@ss")
        )
        assert read_url(" https://two/eureka/ ") == Peer("https", "two", 443, "/eureka/")

    @pytest.mark.parametrize(
        "text", ["", "one:8761", "ftp://one/", "http:///eureka", "http://one:0/", "http://a:b:c/"]
    )
    def test_what_is_no_url_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="not an http"):
            read_url(text)

    def test_a_refusal_and_a_name_show_no_password(self) -> None:
        with pytest.raises(ValueError, match="http") as caught:
            read_url("ftp://user:secret@one/eureka")

        assert "secret" not in str(caught.value)
        assert "secret" not in read_url("http://user:secret@one/eureka").name

    def found(self, urls: str, **own: Any) -> list[str]:
        names = {"one": ["10.0.0.1"], "two": ["10.0.0.2"], "here": ["127.0.0.1"]}
        names["all"] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"]
        peers = others(
            urls.split(","),
            **{"my_url": None, "host_name": None, "port": 8761, **own},
            resolve=lambda host: names.get(host, []),
            is_own=lambda address: address == "127.0.0.1",
        )
        return [peer.name for peer in peers]

    def test_this_server_is_left_out_by_its_url(self) -> None:
        urls = "http://one:8761/eureka,http://one:8762/eureka/"

        assert self.found(urls, my_url="http://ONE:8761/eureka/") == ["http://one:8762/eureka/"]

    def test_this_server_is_left_out_by_its_host_whatever_its_port(self) -> None:
        urls = "http://one:80/eureka/,http://two:80/eureka/"

        assert self.found(urls, host_name="one") == ["http://two:80/eureka/"]

    def test_of_several_on_its_host_only_the_one_at_its_port_is_this_server(self) -> None:
        urls = "http://one:8761/eureka/,http://one:8762/eureka/"

        assert self.found(urls, host_name="one") == ["http://one:8762/eureka/"]

    def test_this_server_is_left_out_by_what_it_listens_on(self) -> None:
        urls = "http://here:8761/eureka/,http://here:8762/eureka/,http://127.0.0.1:8761/eureka/"

        assert self.found(urls) == ["http://here:8762/eureka/"]

    def test_a_name_with_several_addresses_is_several_peers_without_this_one(self) -> None:
        assert self.found("http://all:8761/eureka/") == [
            "http://all:8761/eureka/ (10.0.0.1)",
            "http://all:8761/eureka/ (10.0.0.2)",
        ]

    def test_a_name_that_has_no_address_yet_stays_a_peer(self) -> None:
        assert self.found("http://later:8761/eureka/") == ["http://later:8761/eureka/"]

    def test_a_peer_that_is_named_twice_is_one(self) -> None:
        assert self.found("http://one:1/eureka,http://one:1/eureka/") == ["http://one:1/eureka/"]

    def test_both_families_of_one_server_are_one_peer(self) -> None:
        peers = others(
            ["http://dual:8761/eureka/"],
            my_url=None,
            host_name=None,
            port=1,
            resolve=lambda _: ["10.0.0.1", "fd00::1"],
            is_own=lambda _: False,
        )

        assert [peer.address for peer in peers] == [None]

    def test_an_address_is_this_machines_where_one_can_bind_to_it(self) -> None:
        assert membership.is_local("127.0.0.1")
        assert not membership.is_local("192.0.2.1")

    @pytest.mark.parametrize(
        ("listens", "own"),
        [
            ("0.0.0.0", ["127.0.0.1", "127.0.0.2"]),
            ("::", ["127.0.0.1", "127.0.0.2"]),
            ("127.0.0.2", ["127.0.0.2"]),
            ("name", ["127.0.0.1"]),
        ],
    )
    def test_servers_at_one_port_are_told_apart_by_the_addresses_that_they_listen_at(
        self, listens: str, own: list[str]
    ) -> None:
        addresses = ["127.0.0.1", "127.0.0.2", "192.0.2.1"]

        found = [
            address
            for address in addresses
            if membership.is_reached_by(
                address, listens, resolve={"name": ["127.0.0.1"]}.__getitem__
            )
        ]

        assert found == own


class TestComparison:
    def test_equal_instances_do_not_differ_by_what_each_server_says_for_itself(self) -> None:
        mine = instance(registration_ms=1, last_renewal_ms=2, last_updated_ms=3)
        other = instance(registration_ms=9, last_renewal_ms=8, last_updated_ms=7)

        found = compared({KEY: mine}, {KEY: other})

        assert found.differences == []
        assert (found.ours, found.theirs) == (1, 1)

    def test_what_one_lacks_is_missing_or_extra(self) -> None:
        found = compared({KEY: instance()}, {OTHER: instance(OTHER)})

        assert [(each.key, each.kind) for each in found.differences] == [
            (KEY, DifferenceKind.MISSING),
            (OTHER, DifferenceKind.EXTRA),
        ]
        assert found.count(DifferenceKind.MISSING) == 1

    @pytest.mark.parametrize(
        ("mine", "other", "ours_wins"),
        [
            ({"last_dirty_ms": 2}, {"last_dirty_ms": 1}, True),
            ({"last_dirty_ms": 1}, {"last_dirty_ms": 2}, False),
            ({"last_updated_ms": 2}, {"last_updated_ms": 1}, True),
            ({"last_updated_ms": 1}, {"last_updated_ms": 2}, False),
            ({"last_dirty_ms": 2, "last_updated_ms": 1}, {"last_updated_ms": 9}, False),
        ],
    )
    def test_the_newer_dirty_timestamp_wins_then_the_later_change(
        self, mine: dict[str, int], other: dict[str, int], ours_wins: bool
    ) -> None:
        here = instance(metadata={"v": "1"}, **mine)
        there = instance(metadata={"v": "2"}, **other)

        (difference,) = compared({KEY: here}, {KEY: there}).differences

        assert difference.ours_wins is ours_wins
        assert difference.fields["metadata"] == ({"v": "1"}, {"v": "2"})

    def test_of_two_states_of_one_instant_both_sides_choose_the_same(self) -> None:
        one, other = instance(metadata={"v": "1"}), instance(metadata={"v": "2", "a": "b"})
        wins = [
            compared({KEY: mine}, {KEY: theirs}).differences[0].ours_wins
            for mine, theirs in ((one, other), (other, one))
        ]

        assert sorted(wins) == [False, True]

    def test_a_peers_clock_that_is_ahead_makes_nothing_newer(self) -> None:
        here = instance(status=InstanceStatus.UP, last_updated_ms=1000)
        there = instance(status=InstanceStatus.DOWN, last_updated_ms=60_500)

        (difference,) = compared({KEY: here}, {KEY: there}, skew_ms=60_000).differences

        assert difference.ours_wins
        assert comparison.differing_fields(here, there) == {"status": ("UP", "DOWN")}


class TestHold:
    """Who outlives the lease because a peer may know better; in one worker of this server."""

    LEASE_MS = 90_000
    HOLD_MS = 600_000

    def server(self) -> tuple[NamespaceRegistry, Evictor, ManualClock]:
        store, clock = MemoryStore(), ManualClock()
        whole = Registry(store, clock, RegistrySettings(self_preservation=False))
        whole.start()
        registry = whole.in_namespace(DEFAULT_NAMESPACE)
        registry.hold_back(Hold(whole, self.HOLD_MS, doubled=False))
        self.whole = whole
        return registry, Evictor(whole, store), clock

    def evicted(self, clock: ManualClock, evictor: Evictor, ms: int) -> int:
        """How many go while so much time passes."""
        until, count = clock.mono + ms, 0
        while clock.mono < until:
            clock.advance(500)
            count += evictor.run_once()
        return count

    def test_who_a_peer_renewed_goes_when_all_peers_were_asked_since(self) -> None:
        registry, evictor, clock = self.server()
        began = clock.mono
        hold.tell(self.whole, {"one": Asked(began), "two": Asked(began)})
        registry.register(instance(), is_replication=True)

        assert self.evicted(clock, evictor, self.LEASE_MS + 2000) == 0
        assert hold.wanted_at(self.whole) > began + self.LEASE_MS
        # Until it is evicted it is told to everybody.
        assert registry.instance(*KEY) is not None
        hold.tell(self.whole, {"one": Asked(clock.mono), "two": Asked(began)})
        assert self.evicted(clock, evictor, 2000) == 0
        hold.tell(self.whole, {"one": Asked(clock.mono), "two": Asked(clock.mono)})
        assert self.evicted(clock, evictor, 2000) == 1

    def test_a_peer_that_is_away_holds_for_a_while_and_no_longer(self) -> None:
        registry, evictor, clock = self.server()
        registry.register(instance(), is_replication=True)
        hold.tell(self.whole, {"one": Asked(clock.mono, away_mono_ms=clock.mono + 1)})

        assert self.evicted(clock, evictor, self.HOLD_MS) == 0
        assert self.evicted(clock, evictor, self.LEASE_MS) == 1
        # One that has been away for so long holds nobody any more.
        registry.register(instance(), is_replication=True)
        assert self.evicted(clock, evictor, self.LEASE_MS + 1000) == 1

    def test_whose_client_renewed_here_last_is_held_by_nobody(self) -> None:
        registry, evictor, clock = self.server()
        registry.register(instance(), is_replication=True)
        clock.advance(1000)
        assert registry.renew(*KEY) is not None
        registry.register(instance(OTHER))
        hold.tell(self.whole, {"one": Asked(away_mono_ms=clock.mono)})

        # One of two a minute: more the cap forbids.
        assert self.evicted(clock, evictor, self.LEASE_MS + 62_000) == 2

    def test_a_client_that_moved_to_a_peer_is_held(self) -> None:
        registry, evictor, clock = self.server()
        registry.register(instance())
        clock.advance(1000)
        assert registry.renew(*KEY) is not None
        clock.advance(5000)
        assert registry.renew(*KEY, is_replication=True) is not None
        hold.tell(self.whole, {"one": Asked(away_mono_ms=clock.mono)})

        assert self.evicted(clock, evictor, self.LEASE_MS + 10_000) == 0

    def test_what_was_noted_in_another_boot_of_the_machine_is_forgotten(self) -> None:
        note = b'{"one":[900,0],"two":[50,0]}'
        assert hold.asked(note, 100) == {"two": Asked(50)}

    def test_a_lease_is_extended_to_an_instant_and_never_shortened(self) -> None:
        registry, _, clock = self.server()
        registry.register(instance(), is_replication=True)
        began = registry.leases()[KEY]
        clock.advance(60_000)
        assert not registry.extend_lease(KEY, began.deadline_mono_ms - 1)
        assert registry.extend_lease(KEY, began.deadline_mono_ms + 10_000)
        extended = registry.leases()[KEY]
        assert extended.deadline_mono_ms == began.deadline_mono_ms + 10_000
        assert extended.last_renewal_ms == began.last_renewal_ms + 10_000
        assert registry.extend_lease(KEY, clock.mono + 10 * self.LEASE_MS)
        assert registry.leases()[KEY].deadline_mono_ms == clock.mono + self.LEASE_MS
        assert not registry.extend_lease(OTHER, clock.mono)


class TestLeases:
    def test_what_one_tells_the_other_reads(self) -> None:
        store, clock = MemoryStore(), ManualClock()
        registry = registry_on(store, clock)
        registry.register(instance())
        clock.advance(100_000)
        registry.register(instance(OTHER))

        told = leases.read(bytes(leases.answer(registry).body))
        assert told == Leases({KEY: -10_000, OTHER: 90_000}, {})

    def test_what_was_removed_is_told_with_how_and_when_until_it_is_listed_again(self) -> None:
        store, clock = MemoryStore(), ManualClock()
        registry = registry_on(store, clock)
        for key in (KEY, OTHER):
            registry.register(instance(key))
        assert registry.cancel(*KEY)
        clock.advance(1_000)
        assert registry.cancel(*OTHER, is_replication=True)
        clock.advance(500)

        assert leases.read(bytes(leases.answer(registry).body)) == Leases(
            {}, {KEY: Removal(Ending.CANCELLED, 1_500), OTHER: Removal(Ending.TOLD, 500)}
        )
        registry.register(instance(KEY))
        told = leases.read(bytes(leases.answer(registry).body))
        assert told.removed.keys() == {OTHER}

    def test_a_server_that_tells_leases_alone_is_understood(self) -> None:
        assert leases.read(b'{"leases":{"APP":{"one":5}}}') == Leases({KEY: 5}, {})

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"[]", b"{}", b'{"leases":[]}', b'{"leases":{"A":1}}'),
            *(b'{"leases":{"A":{"b":"1"}}}', b'{"leases":{},"cancelled":[]}'),
            b'{"leases":{},"evicted":{"A":{"b":null}}}',
            b'{"leases":{},"cancelled":{"A":{"b":-1}}}',
        ],
    )
    def test_what_is_none_is_not_guessed_at(self, body: bytes) -> None:
        with pytest.raises(ParseError):
            leases.read(body)
