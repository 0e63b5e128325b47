"""What the server sees of its clients: who reads and how far, what is wrong, what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eureka_http.exchange import Answer, Request
from native_api import form
from native_api.bodies import json_answer
from native_api.findings import Findings
from native_api.problems import ProblemError, problem
from native_api.status import Server
from registry import Instance, NamespaceRegistry, NotYetError, Reader, Revision

_SERIES = frozenset({"minutes"})
_MINUTES, _MOST_MINUTES = 180, 1440
_READERS = frozenset({"since", "behind", "limit"})
_LIMIT, _MOST = 100, 1000
_MOST_INSTANCES = 10
_MOST_DIGITS = 20


class Observed:
    """What is seen of the clients of one namespace, as functions from a request to an answer."""

    def __init__(self, registry: NamespaceRegistry, server: Server) -> None:
        """Nothing is looked at before it is asked for."""
        self._registry = registry
        self._server = server
        self._findings = Findings(registry, delta_enabled=server.delta_enabled)

    def readers(self, request: Request, name: str) -> Answer:
        """Who fetches lists, who has fetched last first; with ``behind``, who lacks a change."""
        query = request.parameters()
        _check_names(query, _READERS)
        limit = _whole(query, "limit", _LIMIT, 1, _MOST)
        only_behind = _flag(query, "behind")
        if request.is_quick:
            raise NotYetError  # files are read
        registry = self._registry
        view = registry.view()
        since = Revision(_whole(query, "since", view.revision, 0, 2**63 - 1))
        found = registry.behind(since)
        behind = {each.client for each in found.readers}
        readers = sorted(registry.readers(), key=lambda each: -each.at_ms)
        if only_behind:
            readers = [each for each in readers if each.client in behind]
        shown = readers[:limit]
        here = _by_address(registry, {each.client.address for each in shown})
        now = registry.clock.wall_ms()
        return json_answer(
            {
                "revision": since,
                "complete": found.is_complete,
                "total": len(readers),
                "behind": len(behind),
                "readers": [
                    _shown_reader(each, now, each.client in behind, here.get(each.client.address))
                    for each in shown
                ],
            }
        )

    def findings(self, request: Request, name: str) -> Answer:
        """What is wrong with clients, with the setting to change."""
        found = self._findings.all(is_quick=request.is_quick)
        return json_answer(
            {
                "findings": [
                    {
                        "kind": each.kind,
                        "sentence": each.sentence,
                        "count": each.cases,
                        "settings": [setting._asdict() for setting in each.settings],
                        "examples": each.examples,
                    }
                    for each in found
                ]
            }
        )

    def series(self, request: Request, name: str) -> Answer:
        """What was counted in the last hours."""
        query = request.parameters()
        _check_names(query, _SERIES)
        minutes = _whole(query, "minutes", _MINUTES, 1, _MOST_MINUTES)
        if request.is_quick:
            raise NotYetError  # some thousand numbers are put together
        now = self._registry.clock.wall_ms() / 1000
        found = self._server.samples(now - minutes * 60)
        return json_answer(
            {
                "step_secs": found.step_secs,
                "columns": ["at", *found.columns],
                "samples": [[form.instant(int(at * 1000)), *row] for at, *row in found.rows],
            }
        )


def _shown_reader(
    reader: Reader, now_ms: int, is_behind: bool, instances: list[Instance] | None
) -> dict[str, Any]:
    client = reader.client
    return {
        "address": client.address,
        "port": client.port,
        "client": client.name,
        "what": client.what,
        "revision": reader.revision,
        "behind": is_behind,
        "live": reader.is_live(now_ms),
        "open": not reader.closed_ms,
        "last_fetch": form.instant(reader.at_ms),
        "last_full": form.instant(reader.full_ms) if reader.full_ms else None,
        "last_delta": form.instant(reader.delta_ms) if reader.delta_ms else None,
        "interval_ms": reader.interval_ms,
        "fulls": reader.fulls,
        "deltas": reader.deltas,
        "instances": [
            {"service_name": form.service_name(each), "id": each.id}
            for each in (instances or ())[:_MOST_INSTANCES]
        ],
    }


def _by_address(registry: NamespaceRegistry, addresses: set[str]) -> dict[str, list[Instance]]:
    """The instances at these addresses, which may well be those of the clients."""
    view = registry.view()
    found: dict[str, list[Instance]] = {}
    with view.lock:
        applications = list(view.applications.values())
    for application in applications:
        with view.lock:
            for instance in application.values():
                if instance.ip_addr in addresses:
                    found.setdefault(instance.ip_addr, []).append(instance)
    return found


def _check_names(query: Mapping[str, str], known: frozenset[str]) -> None:
    unknown = sorted(query.keys() - known)
    if unknown:
        text = f"expected only {', '.join(sorted(known))}"
        errors = dict.fromkeys(unknown, text)
        raise ProblemError(problem(400, f"unknown: {', '.join(unknown)}", errors=errors))


def _flag(query: Mapping[str, str], name: str) -> bool:
    told = query.get(name, "false")
    if told not in ("true", "false"):
        raise _expected(name, "true or false")
    return told == "true"


def _whole(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    told = query.get(name)
    if told is None:
        return default
    if len(told) <= _MOST_DIGITS and told.isascii() and told.isdigit() and low <= int(told) <= high:
        return int(told)
    raise _expected(name, f"a whole number from {low} to {high}")


def _expected(name: str, text: str) -> ProblemError:
    return ProblemError(problem(400, f"{name}: expected {text}", errors={name: f"expected {text}"}))
