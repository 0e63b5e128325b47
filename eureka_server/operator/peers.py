"""How a running server's peers are, and what differs between its instances and theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eureka_server.operator.client import UNREACHABLE, EndError, Server
from eureka_server.operator.tables import Shown, table

# A server looks at its peers each second. A report that is so old, nobody has written since.
_STALE_SECS = 30
_NEEDED = {"url", "state", "last_exchange_ms", "pending", "lag_ms", "problem", "comparison"}
_KINDS = ("missing", "extra", "differs")


def shown(server: Server, *, is_difference: bool) -> Shown:
    """How the peers are; or what differs, which is only good where nothing does. ``EndError``."""
    told = server.get("/peers")
    if not _is_report(told):
        reason = f"{server.shown} answers 200, and is no registry that has peers"
        raise EndError(UNREACHABLE, reason)
    report = _Report(told, server.now_ms)
    names = [peer["url"] for peer in report.peers]
    if is_difference:
        return Shown(_differences(report), _diff_lines(report), names, report.is_same)
    return Shown(told, _state_lines(report), names, report.is_up)


class _Report(NamedTuple):
    """What a server said of its peers, and when, by its own clock."""

    told: Mapping[str, Any]
    now_ms: int

    @property
    def peers(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.told["peers"]
        return found

    @property
    def is_stale(self) -> bool:
        """Whether no worker of the server looks at its peers any more."""
        at_ms = self.told.get("at_ms")
        return at_ms is not None and self.now_ms - at_ms > _STALE_SECS * 1000

    @property
    def is_up(self) -> bool:
        """Whether there are peers, and all of them answer."""
        states = [peer["state"] for peer in self.peers]
        return bool(states) and set(states) == {"up"} and not self.is_stale

    @property
    def is_same(self) -> bool:
        """Whether all answer and list what this server lists."""
        compared = [peer["comparison"] for peer in self.peers]
        return self.is_up and all(
            comparison is not None and not any(comparison[kind] for kind in _KINDS)
            for comparison in compared
        )

    def ago(self, at_ms: int | None) -> str:
        """How long ago that was."""
        return "never" if at_ms is None else f"{max(0, self.now_ms - at_ms) // 1000} s ago"


def _is_report(told: Any) -> bool:
    """Whether an answer is what this command can read."""
    if not isinstance(told, dict) or not isinstance(told.get("peers"), list):
        return False
    if not isinstance(told.get("verdict"), str):
        return False
    return all(isinstance(peer, dict) and peer.keys() >= _NEEDED for peer in told["peers"])


def _state_lines(report: _Report) -> Iterable[str]:
    head = ("PEER", "STATE", "LAST EXCHANGE", "PENDING", "LAG", "PROBLEM")
    rows = [
        (
            peer["url"],
            peer["state"],
            report.ago(peer["last_exchange_ms"]),
            peer["pending"],
            f"{peer['lag_ms']} ms",
            peer["problem"] or "none",
        )
        for peer in report.peers
    ]
    if rows:
        yield from table(head, rows)
    yield from _verdict_lines(report)


def _diff_lines(report: _Report) -> Iterable[str]:
    for peer in report.peers:
        comparison = peer["comparison"]
        if comparison is None:
            yield f"{peer['url']}: not compared yet"
            continue
        counts = ", ".join(f"{comparison[kind]} {kind}" for kind in (*_KINDS, "settling"))
        yield (
            f"{peer['url']}: {comparison['ours']} instances here, {comparison['theirs']} there;"
            f" {counts} (compared {report.ago(comparison['at_ms'])})"
        )
        examples = comparison["examples"]
        for example in examples:
            yield f"  {example['kind']}  {example['app']}/{example['id']}"
            for name, (ours, theirs) in example["fields"].items():
                yield f"    {name}: here {_value(ours)}, there {_value(theirs)}"
        more = sum(comparison[kind] for kind in _KINDS) - len(examples)
        if more > 0:
            yield f"  and {more} more"
    yield from _verdict_lines(report)


def _verdict_lines(report: _Report) -> Iterable[str]:
    if report.is_stale:
        yield f"Not known: the server looked at its peers {report.ago(report.told['at_ms'])}."
    else:
        yield report.told["verdict"]


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _differences(report: _Report) -> dict[str, Any]:
    """What ``diff`` is about, of all that the server said."""
    peers = [{name: peer[name] for name in ("url", "state", "comparison")} for peer in report.peers]
    return {"peers": peers, "verdict": report.told["verdict"]}
