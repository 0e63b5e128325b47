"""What a genuine Amalgam8 registry answered once, asked again (``--api native``).

Recorded on an empty server with fixed names. Here each service's name gets a tail that no other
has, and from the lists is read only what the case itself registered. ``{l1}`` to ``{l4}`` are the
ids of the four instances that most lists are about, ``{id}`` is any id, ``{instant}`` any instant
in RFC 3339, ``{base}`` the server's URL. Order does not count.

A server passes with the recorded answer, or with one that ``corrections.json`` allows beside it:
what another server does better, each under the name of its entry in that server's list of quirks.
Members that the recorded server does not have are allowed in whole instances and in errors.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from pathlib import Path
from typing import Any

from conformance.case import Catalogue, Session, unique
from conformance.http import Exchange

catalogue = Catalogue()
FOLDER = Path(__file__).parent.parent / "recordings-amalgam8"
RECORDED: list[dict[str, Any]] = json.loads((FOLDER / "exchanges.json").read_text())
CORRECTIONS: dict[str, dict[str, Any]] = json.loads((FOLDER / "corrections.json").read_text())
API = "/api/v1"
_MEDIA = ("application/json", "application/problem+json")
_MORE = {"source", "revision"}
_CLOCKS = frozenset({"uptime", "load_1m", "load_5m", "load_15m"})
_NAMED = re.compile(r'("service_name"\s*:\s*")([^"]+)(")', re.IGNORECASE)
_ASKED = re.compile(r"(service_name=|/services/)([^&/?]+)")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"
_SHORTEST_LEASE_SECS = 10
_SETUP = [exchange for exchange in RECORDED if "save_id_as" in exchange]


def named(number: int) -> str:
    """How an exchange is called: its number is its name, since others repeat."""
    return f"{number} {RECORDED[number]['name']}"


class Replay:
    """One case's replay: its own names, and the ids that it was given."""

    def __init__(self, s: Session) -> None:
        self._s = s
        self._tail = unique("")
        self._ids: dict[str, str] = {}
        self._registered: list[str] = []

    def send(self, number: int) -> Exchange:
        """Ask as recorded, after what it needs."""
        recorded = RECORDED[number]
        if "save_id_as" not in recorded and "{l" in json.dumps(
            [recorded["path"], recorded["answer"]]
        ):
            for exchange in _SETUP:
                got = self._ask(exchange)
                self._s.status(got, 201)
                self._ids[exchange["save_id_as"]] = self._read(got)["id"]
        # What was done to the one that is taken out, in its order.
        if recorded["method"] in ("PUT", "DELETE") and "{l1}" in recorded["path"]:
            for earlier in RECORDED[:number]:
                if earlier["method"] == "DELETE" and earlier["path"] == f"{API}/instances/{{l1}}":
                    self._ask(earlier)
        got = self._ask(recorded)
        if got.status == 201 and "save_id_as" in recorded:
            self._ids[recorded["save_id_as"]] = self._read(got)["id"]
        return got

    def _ask(self, recorded: dict[str, Any]) -> Exchange:
        def renamed(match: re.Match[str]) -> str:
            return match[1] + match[2] + self._tail

        path = _ASKED.sub(renamed, recorded["path"])
        path = _PLACEHOLDER.sub(lambda m: urllib.parse.quote(self._ids[m[1]], safe=""), path)
        body = recorded["body"]
        if body is not None:
            body = _NAMED.sub(lambda m: f"{m[1]}{m[2]}{self._tail}{m[3]}", body)
        got = self._s.send(recorded["method"], path, body, recorded["headers"])
        if got.status == 201:
            self._registered.append(self._read(got)["id"])
        return got

    def _read(self, got: Exchange) -> Any:
        try:
            return json.loads(got.body)
        except ValueError:
            self._s.require(False, "JSON", got)

    def sweep(self) -> None:
        """Take everything out again."""
        for identity in self._registered:
            path = f"{API}/instances/{urllib.parse.quote(identity, safe='')}"
            self._s.send("DELETE", path, None, {})

    def difference(self, number: int, want: dict[str, Any], got: Exchange) -> str:
        """What is not as wanted, or nothing."""
        if got.status != want["status"]:
            return f"status {want['status']}, got {got.status}"
        location = want.get("location")
        if location and not self._same(location, got.headers.get("location")):
            return f"Location {location}, got {got.headers.get('location')}"
        if "answer" not in want:
            return ""
        answer = want["answer"]
        if answer == "":
            return "an empty body" if got.body else ""
        if got.media_type not in _MEDIA[: 1 + (got.status >= 400)]:
            return f"Content-Type application/json, got {got.media_type}"
        more = _MORE if "fields=" not in RECORDED[number]["path"] else set()
        if not self._fits(answer, self._own_part(self._read(got)), more):
            return f"the recorded answer {json.dumps(answer, ensure_ascii=False)}"
        return ""

    def _own_part(self, answer: Any) -> Any:
        """A list with only what this case registered, under the recorded names."""
        text = json.dumps(answer, ensure_ascii=False)
        if isinstance(answer, dict) and "services" in answer:
            answer = {**answer, "services": [n for n in answer["services"] if self._tail in n]}
            text = json.dumps(answer, ensure_ascii=False)
        if isinstance(answer, dict) and "instances" in answer:
            own = [i for i in answer["instances"] if i.get("id") in self._ids.values()]
            text = json.dumps({**answer, "instances": own}, ensure_ascii=False)
        return json.loads(text.replace(self._tail, ""))

    def _fits(self, want: Any, got: Any, more: set[str]) -> bool:
        if isinstance(want, dict) and isinstance(got, dict):
            beyond = {n for n in got.keys() - want.keys() if got[n] not in ([], {}, None)}
            return (
                want.keys() <= got.keys()
                and ("Error" in want or beyond <= more)
                and all(name in _CLOCKS or self._fits(want[name], got[name], more) for name in want)
            )
        if isinstance(want, list) and isinstance(got, list):
            # An instance that no recorded request registered is not there to be listed again.
            want = [w for w in want if not (isinstance(w, dict) and w.get("id") == "{id}")]
            return len(want) == len(got) and all(
                any(self._fits(w, g, more) for g in got) for w in want
            )
        if isinstance(want, str):
            return self._same(want, got)
        return type(want) is type(got) and bool(want == got)

    def _same(self, want: str, got: Any) -> bool:
        known = {"id": "[^/]+", "instant": _INSTANT, "base": re.escape(self._s.target.url)}
        known |= {name: re.escape(identity) for name, identity in self._ids.items()}
        parts = _PLACEHOLDER.split(want)
        # Texts and the names of placeholders take turns.
        made = "".join(known[p] if n % 2 else re.escape(p) for n, p in enumerate(parts))
        return isinstance(got, str) and re.fullmatch(made, got) is not None


def replay(s: Session, number: int, *, corrected: bool = True) -> None:
    """Ask one recorded question; ``FailedError`` where the answer is another.

    With ``corrected`` what ``corrections.json`` has for it will do as well.
    """
    play = Replay(s)
    try:
        got = play.send(number)
        found = play.difference(number, RECORDED[number], got)
        if found and corrected and named(number) in CORRECTIONS:
            correction = CORRECTIONS[named(number)]
            found = play.difference(number, correction, got) and found
        s.require(not found, found, got)
    finally:
        play.sweep()


for _resource in ("instances", "services", "other"):
    catalogue.case(
        _resource,
        "answers of the Amalgam8 registry, in memory and without accounts",
        over={
            named(number): (number,)
            for number, exchange in enumerate(RECORDED)
            if ([r for r in ("instances", "services") if r in exchange["path"]] or ["other"])[0]
            == _resource
        },
    )(replay)


@catalogue.case("lease", "its ErrorNoSuchServiceInstance is a 410, at which clients register again")
def silence_ends_the_lease_and_a_registration_after_the_410_begins_another(s: Session) -> None:
    service = unique("lease")
    body = json.dumps(
        {
            "service_name": service,
            "endpoint": {"type": "http", "value": "10.9.0.1:80"},
            "ttl": _SHORTEST_LEASE_SECS,
        }
    )
    headers = {"Content-Type": "application/json"}
    first = s.send("POST", f"{API}/instances", body, headers)
    s.status(first, 201)
    path = f"{API}/instances/{json.loads(first.body)['id']}"
    s.status(s.send("PUT", f"{path}/heartbeat", None, headers), 200)
    time.sleep(_SHORTEST_LEASE_SECS * 0.6)
    s.status(s.send("PUT", f"{path}/heartbeat", None, headers), 200)
    time.sleep(_SHORTEST_LEASE_SECS)

    def gone() -> None:
        listed = s.send("GET", f"{API}/instances?service_name={service}", None, {})
        s.equal(json.loads(listed.body)["instances"], [], "what is listed", listed)

    s.eventually(gone, s.target.sweep + s.target.patience)
    s.status(s.send("PUT", f"{path}/heartbeat", None, headers), 410)
    again = s.send("POST", f"{API}/instances", body, headers)
    s.status(again, 201)
    s.equal(json.loads(again.body)["id"], json.loads(first.body)["id"], "the id", again)
    s.status(s.send("DELETE", path, None, headers), 200)
