"""An instance that is renewed in time stays listed, whatever befalls the nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leases import EvictingNodes, Look, Seen, gone_too_soon, keep, may_differ_secs

REGISTERED = Seen("register", 0, 0, 0.1, listed=True)


def renewed(sent: float) -> Seen:
    return Seen("renew", 1, sent, sent + 0.1, listed=True)


def looked(sent: float, *, listed: bool, node: int = 0) -> Seen:
    return Seen("list", node, sent, sent + 0.1, listed)


GONE = looked(13, listed=False)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([REGISTERED, looked(5, listed=True), looked(11, listed=False)], None),
        ([REGISTERED, renewed(5), GONE], GONE),
        ([REGISTERED, renewed(5), renewed(12), GONE._replace(node=1)], GONE._replace(node=1)),
        # What comes too late gives nothing, until it is registered again.
        ([REGISTERED, renewed(11), GONE], None),
        ([REGISTERED, renewed(11), REGISTERED._replace(sent=12, ended=12.1), GONE], GONE),
        # Another node may not know it as yet, but does not forget it.
        ([REGISTERED, looked(1, listed=False, node=2)], None),
        (
            [
                *(REGISTERED, looked(1, listed=True, node=2)),
                looked(2, listed=False, node=2),
            ],
            looked(2, listed=False, node=2),
        ),
        # An answer that never came gives nothing and takes nothing.
        ([REGISTERED, renewed(5)._replace(listed=None), GONE], None),
        ([REGISTERED, renewed(5), renewed(6)._replace(listed=None), GONE], GONE),
        # And a renewal that is refused is as bad.
        (
            [REGISTERED, renewed(5), renewed(6)._replace(listed=False)],
            renewed(6)._replace(listed=False),
        ),
    ],
)
def test_only_who_was_renewed_in_time_is_missed(calls: list[Seen], expected: Seen | None) -> None:
    assert gone_too_soon(calls, [], 10) == expected


def test_nodes_differ_by_no_more_than_their_looks_at_the_clock_took() -> None:
    looks = [Look(1, "a", 3), Look(2, "b", 0.5), Look(5, "a", 0.25), Look(8, "b", 0.125)]
    late = REGISTERED._replace(sent=5, ended=5.1)
    for since, until, expected in (
        # What a process does before its first look, it does not do by that clock.
        (0, 0.5, 0),
        (0, 1, 3),
        (3, 4, 3.5),
        # What it told before a better look counts, and what it told after it does not.
        (3, 6, 3.5),
        (5, 6, 0.75),
        (9, 10, 0.375),
    ):
        assert may_differ_secs(looks, since, until) == pytest.approx(0.01 + expected)
    # The lease ends at 15, and 0.76 s earlier at the most; a look at the list takes 0.1 s.
    early, gone = looked(14.1, listed=False), looked(14.2, listed=False)
    assert gone_too_soon([late, early], looks[:3], 10) == early
    assert gone_too_soon([late, gone], looks[:3], 10) is None


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvictingNodes]:
    with EvictingNodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
def test_nobody_who_renews_in_time_at_any_of_three_nodes_is_evicted(
    nodes: EvictingNodes,
) -> None:
    found = keep(nodes, range(16), "connections torn down")
    assert not found.wrong, "\n\n".join(found.wrong)
    assert found.instances == 16
