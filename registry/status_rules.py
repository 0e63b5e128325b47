"""Which status wins when an instance registers or renews: ordered rules, the first match wins.

Source: protocol section 7.5, ``registry/rule`` of eureka-core, without the rule that asks AWS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from registry.model import InstanceStatus

_SERVING = (InstanceStatus.UP, InstanceStatus.OUT_OF_SERVICE)


class Situation(NamedTuple):
    """What the rules look at.

    ``reported`` is the status that the instance carries, ``override`` the one an operator set,
    ``leased`` that of the instance holding the lease now (None where there is none).
    """

    reported: InstanceStatus
    override: InstanceStatus | None
    leased: InstanceStatus | None
    is_replication: bool


Rule = Callable[[Situation], InstanceStatus | None]


def down_or_starting(situation: Situation) -> InstanceStatus | None:
    """An instance that cannot serve is believed, whatever an operator wants."""
    return situation.reported if situation.reported not in _SERVING else None


def override_exists(situation: Situation) -> InstanceStatus | None:
    """An operator's word beats the instance's."""
    return situation.override


def lease_exists(situation: Situation) -> InstanceStatus | None:
    """A client cannot move itself between UP and OUT_OF_SERVICE; a peer's word can."""
    if not situation.is_replication and situation.leased in _SERVING:
        return situation.leased
    return None


RULES: tuple[Rule, ...] = (down_or_starting, override_exists, lease_exists)


def deciding_rule(situation: Situation) -> str:
    """The name of the first rule that answers; ``reported`` where none does."""
    for rule in RULES:
        if rule(situation) is not None:
            return rule.__name__
    return "reported"


@functools.cache  # there are a few hundred situations
def effective_status(situation: Situation) -> InstanceStatus:
    """The status that the registry shows: the first rule that answers, else what was reported."""
    for rule in RULES:
        status = rule(situation)
        if status is not None:
            return status
    return situation.reported


def status_after_renewal(listed: InstanceStatus, override: InstanceStatus | None) -> InstanceStatus:
    """What the rules give where an instance renews, which reports nothing but what is listed.

    Each heartbeat asks, so the three rules are put together: an override wins if the instance
    serves, and nothing else changes anything.
    """
    return listed if override is None or listed not in _SERVING else override
