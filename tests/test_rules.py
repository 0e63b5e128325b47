"""Tables: the status rules, expiry, the eviction limit, self-preservation."""

from __future__ import annotations

import itertools

import pytest

from registry.lease import (
    deadline_after_registration,
    deadline_after_renewal,
    duration_ms,
    eviction_limit,
    lease_expiration_enabled,
    renewal_threshold,
)
from registry.model import InstanceStatus as S
from registry.status_rules import (
    Situation,
    down_or_starting,
    effective_status,
    lease_exists,
    override_exists,
    status_after_renewal,
)


@pytest.mark.parametrize(
    ("reported", "override", "leased", "is_replication", "expected"),
    [
        (S.UP, None, None, False, S.UP),
        (S.OUT_OF_SERVICE, None, None, False, S.OUT_OF_SERVICE),
        (S.DOWN, S.UP, S.UP, False, S.DOWN),  # rule 1 beats the override
        (S.STARTING, S.OUT_OF_SERVICE, S.UP, False, S.STARTING),
        (S.UNKNOWN, S.UP, S.UP, False, S.UNKNOWN),
        (S.UP, S.OUT_OF_SERVICE, S.UP, False, S.OUT_OF_SERVICE),  # rule 2
        (S.OUT_OF_SERVICE, S.UP, None, True, S.UP),
        (S.UP, S.DOWN, None, False, S.DOWN),
        (S.OUT_OF_SERVICE, None, S.UP, False, S.UP),  # rule 4: the lease's status stays
        (S.UP, None, S.OUT_OF_SERVICE, False, S.OUT_OF_SERVICE),
        (S.OUT_OF_SERVICE, None, S.UP, True, S.OUT_OF_SERVICE),  # but a peer is believed
        (S.UP, None, S.DOWN, False, S.UP),  # and DOWN does not hold
        (S.UP, None, S.STARTING, False, S.UP),
    ],
)
def test_the_first_matching_rule_wins(
    reported: S, override: S | None, leased: S | None, is_replication: bool, expected: S
) -> None:
    assert effective_status(Situation(reported, override, leased, is_replication)) is expected


def test_a_renewal_gets_what_the_rules_give_for_an_unchanged_report() -> None:
    for listed, override, is_replication in itertools.product(S, (None, *S), (False, True)):
        expected = effective_status(Situation(listed, override, listed, is_replication))
        assert status_after_renewal(listed, override) is expected


def test_the_rules_keep_their_order_in_every_combination() -> None:
    for reported, override, leased, peer in itertools.product(
        S, [None, *S], [None, *S], [False, True]
    ):
        situation = Situation(reported, override, leased, peer)
        rules = (down_or_starting, override_exists, lease_exists)
        answers = [answer for rule in rules if (answer := rule(situation)) is not None]
        assert effective_status(situation) is (answers[0] if answers else reported)


@pytest.mark.parametrize(
    ("secs", "expected"), [(90, 90_000), (3, 3_000), (0, 90_000), (-5, 90_000)]
)
def test_a_duration_that_is_not_positive_means_the_default(secs: int, expected: int) -> None:
    assert duration_ms(secs) == expected


def test_a_lease_ends_when_it_says_unless_the_genuine_doubling_is_asked_for() -> None:
    assert deadline_after_registration(1_000, 90_000) == 91_000
    assert deadline_after_renewal(1_000, 90_000, doubled=False) == 91_000
    assert deadline_after_renewal(1_000, 90_000, doubled=True) == 181_000


@pytest.mark.parametrize(("size", "limit"), [(0, 0), (1, 1), (2, 1), (7, 2), (10, 2), (100, 15)])
def test_one_window_evicts_at_most_fifteen_percent(size: int, limit: int) -> None:
    assert eviction_limit(size, 0.85) == limit


@pytest.mark.parametrize(
    ("clients", "interval", "threshold"),
    [(0, 30, 0), (1, 30, 1), (2, 30, 3), (100, 30, 170), (2, 10, 10)],
)
def test_the_renewal_threshold(clients: int, interval: int, threshold: int) -> None:
    assert renewal_threshold(clients, interval, 0.85) == threshold


@pytest.mark.parametrize(
    ("on", "threshold", "renewals", "expected"),
    [
        (True, 3, 3, False),  # strictly more is needed
        (True, 3, 4, True),
        (True, 0, 10, False),
        (False, 3, 0, True),
        (False, 0, 0, True),
    ],
)
def test_self_preservation_holds_evictions_back(
    on: bool, threshold: int, renewals: int, expected: bool
) -> None:
    answer = lease_expiration_enabled(self_preservation=on, threshold=threshold, renewals=renewals)
    assert answer is expected
