"""An instance that is renewed in time stays listed, whatever befalls the nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leases import EVICTING, Seen, gone_too_soon, keep
from tests.redis_nodes import Nodes

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
    assert gone_too_soon(calls, 10) == expected


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("nodes"), env=EVICTING) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.programs
def test_nobody_who_renews_in_time_at_any_of_three_nodes_is_evicted(nodes: Nodes) -> None:
    found = keep(nodes, range(16), "connections torn down")
    assert found.wrong == []
    assert found.instances == 16
