"""Plays random sequences of requests to two servers and compares every answer.

    python -m conformance.differential GENUINE_URL OTHER_URL [--examples N]

Hypothesis makes the sequences and, where two answers disagree, shortens them to the least that
still does. The first server is the measure: where it answers 5xx to bad input, a 400 is right.
Both must evict nothing and answer lists without delay while it runs.

Not generated, since the genuine server's own answer is a fault: the name Amazon with the plain
class (it can no longer show the application), reads of single parts of a VIP attribute and compact
reads of VIPs (both are stale).
Not compared: clock readings, the delta's counter, pages of errors, the order of what has none,
lists after a peer's heartbeat brought an override (the genuine cache does not see it),
``instances/ID`` where two applications share the id (a hash map's order), and the entity of a
batch's conflict where a later item of the batch changes the same instance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conformance import documents
from conformance.case import unique
from conformance.cases.recorded import content, own_part
from conformance.documents import AMAZON_CLASS, FULL, PLAIN_CLASS, STATUSES, Form
from conformance.http import Connection, Exchange

TAIL = "~"  # stands for the names of one sequence until it is played
APPS = ("Da~", "Db~")
IDS = ("i~:1", "i~:2", "h~")
FIRST_DIRTY = 1700000000000
PEER = {"x-netflix-discovery-replication": "true"}


@dataclass(frozen=True)
class Request:
    """One request with placeholders, and what may be compared after it."""

    method: str
    path: str
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    app: str = APPS[0]
    id: str = IDS[0]
    brings_override: bool = False

    def named(self, tail: str) -> Request:
        """The same request with the sequence's own names."""
        body = None if self.body is None else self.body.replace(TAIL, tail)
        return Request(
            self.method,
            self.path.replace(TAIL, tail),
            body,
            self.headers,
            self.app.replace(TAIL, tail),
            self.id.replace(TAIL, tail),
            self.brings_override,
        )


apps, ids = st.sampled_from(APPS), st.sampled_from(IDS)
statuses = st.sampled_from(STATUSES)
moments = st.integers(FIRST_DIRTY, FIRST_DIRTY + 3)
forms = st.sampled_from(list(Form))
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co", "Cf", "Zl", "Zp"]),
    max_size=8,
).filter(lambda text: TAIL not in text)
AMAZON: list[dict[str, Any]] = [
    {"@class": AMAZON_CLASS, "name": "Amazon", "metadata": {}},
    {
        "@class": AMAZON_CLASS,
        "name": "Amazon",
        "metadata": {"instance-id": IDS[0], "foo": "bar", "local-ipv4": "1.2.3.4"},
    },
]
ODD: dict[str, st.SearchStrategy[Any]] = {
    "status": st.one_of(statuses, st.sampled_from([None, "up", "", "READY"])),
    "overriddenstatus": st.one_of(statuses, st.sampled_from([None, "foo", ""])),
    "overriddenStatus": st.one_of(statuses, st.sampled_from([None, "foo", ""])),
    "port": st.sampled_from(
        [
            None,
            {"$": "80", "@enabled": "true"},
            {"$": 0, "@enabled": "false"},
            {"$": -1, "@enabled": "x"},
            {"$": 80, "@enabled": True},
            {"$": 81},
        ]
    ),
    "securePort": st.sampled_from([None, {"$": 443, "@enabled": True}, {"$": "443"}]),
    "metadata": st.one_of(
        st.none(),
        st.dictionaries(st.sampled_from(["zone", "a_b", "x.y", "é", "k-1"]), texts, max_size=3),
        st.just({"n": 1, "f": 1.5, "b": False, "e": ""}),
    ),
    "leaseInfo": st.sampled_from(
        [
            None,
            {},
            {"durationInSecs": 600, "renewalIntervalInSecs": "7"},
            {"durationInSecs": 0, "renewalIntervalInSecs": -1},
            {"evictionDurationInSecs": 5},
            {"durationInSecs": 700, "registrationTimestamp": 5, "serviceUpTimestamp": 6},
        ]
    ),
    "countryId": st.sampled_from([7, "8", None, 0]),
    "sid": st.sampled_from(["s1", "na", "unknown", "", None]),
    "appGroupName": st.sampled_from(["grp", "GRP", "", None]),
    "asgName": st.sampled_from(["asg", "", None]),
    "homePageUrl": st.one_of(st.none(), texts),
    "statusPageUrl": st.sampled_from(["", "http://x/é?a=b&c", None]),
    "healthCheckUrl": st.sampled_from(["", "http://x/", None]),
    "secureHealthCheckUrl": st.sampled_from(["", "https://x/", None]),
    "vipAddress": st.sampled_from(["v~", "v~", "part~,other~", "", "a b", None]),
    "secureVipAddress": st.sampled_from(["sv~", "", None]),
    "lastDirtyTimestamp": st.one_of(moments.map(str), moments, st.none()),
    "lastUpdatedTimestamp": st.sampled_from(["5", 5, None]),
    "isCoordinatingDiscoveryServer": st.sampled_from([True, "true", None]),
    "actionType": st.sampled_from(["ADDED", "MODIFIED", "DELETED", None]),
    "fancy": st.sampled_from(["x", 5, True]),
    "hostName": st.sampled_from(["h~", "h~", "other~", "", None]),
    "ipAddr": st.sampled_from(["10.0.0.1", "10.0.0.2", "", None]),
    "instanceId": st.sampled_from(["", None]),
    "dataCenterInfo": st.sampled_from(
        [
            *AMAZON,
            {"@class": "com.netflix.appinfo.MyDataCenterInfo", "name": "Netflix"},
            {"@class": PLAIN_CLASS, "name": None},
            None,
        ]
    ),
}


@st.composite
def bodies(draw: st.DrawFn, app: str, instance_id: str) -> dict[str, Any]:
    """A registration with up to four odd fields."""
    fields = documents.sample(
        app, instance_id, hostName="h~", lastDirtyTimestamp=str(draw(moments))
    )
    fields.update(status=draw(statuses), vipAddress="v~", secureVipAddress="sv~")
    fields.pop("overriddenStatus")
    for name in draw(st.lists(st.sampled_from(sorted(ODD)), max_size=4, unique=True)):
        fields[name] = draw(ODD[name])
    return fields


def xml_of(fields: dict[str, Any]) -> str:
    """The body in XML, without what only JSON can say."""
    taken = dict(fields)
    if taken.get("leaseInfo"):
        taken["leaseInfo"] = {
            k: v for k, v in taken["leaseInfo"].items() if not k.startswith("eviction")
        }
    if taken.get("port") and taken["port"].get("@enabled") is None:
        taken["port"] = {**taken["port"], "@enabled": "true"}
    return documents.xml_body(taken)


def header(form: Form, *more: dict[str, str]) -> tuple[tuple[str, str], ...]:
    merged = dict(form.headers)
    for entries in more:
        merged.update(entries)
    return tuple(sorted(merged.items()))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A change or a read of one of a few instances."""
    app, instance_id, form = draw(apps), draw(ids), draw(st.sampled_from(FULL))
    peer = PEER if draw(st.integers(0, 4)) == 0 else {}
    path = f"/apps/{app}/{instance_id}"
    kind = draw(
        st.sampled_from(
            ["register"] * 6
            + ["renew"] * 3
            + ["override"] * 3
            + ["remove override"] * 2
            + ["metadata", "cancel", "cancel", "batch", "batch", "by id", "vip", "one"]
        )
    )
    made: dict[str, Any] = {"app": app, "id": instance_id}
    if kind == "register":
        fields = draw(bodies(app, instance_id))
        text = documents.json_body(fields) if form.is_json else xml_of(fields)
        headers = header(form, peer, {"Content-Type": form.media_type})
        return Request("POST", f"/apps/{app}", text, headers, **made)
    if kind == "renew":
        query = draw(st.sampled_from(["", "?status=DOWN", "?lastDirtyTimestamp={}"]))
        query = query.format(draw(moments))
        brings = bool(peer) and "Dirty" in query and draw(st.booleans())
        if brings:
            query += f"&overriddenstatus={draw(statuses)}"
        return Request(
            "PUT", path + query, None, header(form, peer), **made, brings_override=brings
        )
    if kind == "override":
        query = f"?value={draw(statuses)}"
        if draw(st.booleans()):
            query += f"&lastDirtyTimestamp={draw(moments)}"
        return Request("PUT", f"{path}/status{query}", None, header(form, peer), **made)
    if kind == "remove override":
        value = draw(st.sampled_from(["", *STATUSES]))
        query = f"?value={value}" if value else ""
        return Request("DELETE", f"{path}/status{query}", None, header(form, peer), **made)
    if kind == "metadata":
        query = f"?k{draw(st.integers(0, 2))}=v%20{draw(st.integers(0, 2))}&zone=b"
        return Request("PUT", f"{path}/metadata{query}", None, header(form), **made)
    if kind == "cancel":
        return Request("DELETE", path, None, header(form, peer), **made)
    if kind == "by id":
        return Request("GET", f"/instances/{instance_id}", None, header(form), **made)
    if kind == "vip":
        wanted = draw(st.sampled_from(["/vips/v~", "/svips/sv~"]))
        return Request("GET", wanted, None, header(form), **made)
    if kind == "one":
        return Request("GET", path, None, header(draw(forms)), **made)
    items = draw(st.lists(batch_items(), min_size=1, max_size=4))
    headers = header(Form.JSON, {"Content-Type": "application/json"})
    brings = any("overriddenStatus" in item for item in items)
    body = json.dumps({"replicationList": items})
    return Request("POST", "/peerreplication/batch/", body, headers, **made, brings_override=brings)


@st.composite
def batch_items(draw: st.DrawFn) -> dict[str, Any]:
    """One action of a peer's batch."""
    app, instance_id = draw(apps), draw(ids)
    action = draw(
        st.sampled_from(["Register", "Heartbeat", "Cancel", "StatusUpdate", "DeleteStatusOverride"])
    )
    item: dict[str, Any] = {
        "appName": app.upper() if draw(st.booleans()) else app,
        "id": instance_id,
        "lastDirtyTimestamp": draw(moments),
        "status": draw(statuses),
        "action": action,
    }
    if action == "Register":
        item["instanceInfo"] = draw(bodies(app, instance_id))
    elif action == "Heartbeat" and draw(st.integers(0, 5)) == 0:
        item["overriddenStatus"] = draw(statuses)
    return item


@dataclass(frozen=True)
class Turn:
    """A request and the list that is read after it."""

    request: Request
    reading: Form
    path: str  # of the list


turns = st.builds(
    Turn,
    requests(),
    forms,
    st.sampled_from([*(f"/apps/{a}" for a in APPS), "/apps/delta", "/apps"]),
)


class DisagreementError(AssertionError):
    """Two answers that should be the same."""


class Duel:
    """Plays sequences to both servers; each sequence has names of its own and is swept away."""

    def __init__(self, genuine: str, other: str) -> None:
        self._servers = (Connection(genuine), Connection(other))
        self.sequences = 0
        self.exchanges = 0

    def play(self, sequence: list[Turn]) -> None:
        """Raise ``DisagreementError`` at the first pair of answers that differ."""
        self.sequences += 1
        tail = unique("")
        lists_lag = False
        try:
            for turn in sequence:
                request = turn.request.named(tail)
                lists_lag = lists_lag or request.brings_override
                self._compare(request, tail, lists_lag)
                self._read(f"/apps/{request.app}/{request.id}", Form.JSON, tail)
                if not lists_lag:
                    self._read(turn.path.replace(TAIL, tail), turn.reading, tail)
        finally:
            self._sweep(tail)

    def _both(self, request: Request) -> tuple[Exchange, Exchange]:
        self.exchanges += 1
        first, second = (
            server.send(request.method, request.path, request.body, dict(request.headers))
            for server in self._servers
        )
        return first, second

    def _read(self, path: str, form: Form, tail: str) -> None:
        self._compare(Request("GET", path, None, header(form)), tail, lists_lag=False)

    def _compare(self, request: Request, tail: str, lists_lag: bool) -> None:
        if request.path.startswith("/instances/") and self._shared(tail, request.path):
            return
        if lists_lag and request.path.startswith(("/vips", "/svips")):
            return
        genuine, other = self._both(request)

        def disagree(what: str) -> None:
            raise DisagreementError(
                f"{what}\n  {request.method} {request.path} {dict(request.headers)} {request.body}"
                f"\n  genuine {genuine.status} {genuine.headers.get('content-type')} {genuine.body}"
                f"\n  other   {other.status} {other.headers.get('content-type')} {other.body}"
            )

        allowed = {genuine.status, 400} if genuine.status >= 500 else {genuine.status}
        if other.status not in allowed:
            disagree("the status")
        if genuine.status >= 300 and genuine.status != 409:
            return
        if genuine.media_type != other.media_type:
            disagree("the content type")
        bodies = []
        for exchange in (genuine, other):
            text = exchange.body
            if request.path in ("/apps", "/apps/delta"):
                text = own_part(text, tail)
            bodies.append(content(settled(request, text)))
        if bodies[0] != bodies[1]:
            disagree("the content")

    def _shared(self, tail: str, path: str) -> bool:
        identity = path.removeprefix("/instances/")
        found = 0
        for app in APPS:
            reply = self._servers[0].send(
                "GET", f"/apps/{app.replace(TAIL, tail)}/{identity}", None, Form.JSON.headers
            )
            found += reply.status == 200
        return found > 1

    def _sweep(self, tail: str) -> None:
        for app in APPS:
            path = f"/apps/{app.replace(TAIL, tail)}"
            for server in self._servers:
                found = server.send("GET", path, None, Form.JSON.headers)
                if found.status == 200:
                    for instance in json.loads(found.body)["application"]["instance"]:
                        identity = documents.effective_id(instance)
                        server.send("DELETE", f"{path}/{identity}", None, {})


def settled(request: Request, answer: str) -> str:
    """A batch's answer by position, without entities that later items of it had a hand in."""
    if not request.path.startswith("/peerreplication"):
        return answer
    items = json.loads(request.body or "{}")["replicationList"]
    results = json.loads(answer)["responseList"]
    named = [(item["appName"].upper(), item["id"]) for item in items]
    for place, result in enumerate(results):
        if named[place] in named[place + 1 :]:
            result.pop("responseEntity", None)
    placed = {str(place): result for place, result in enumerate(results)}
    return json.dumps(placed, separators=(",", ":"))


def compare(
    genuine: str, other: str, examples: int, played: Callable[[int], None] = lambda _: None
) -> Duel:
    """Play so many sequences; ``DisagreementError`` holds the shortest one found that differs."""
    duel = Duel(genuine, other)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(st.lists(turns, min_size=3, max_size=12))
    def agrees(sequence: list[Turn]) -> None:
        duel.play(sequence)
        played(duel.sequences)

    agrees()
    return duel


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.differential")
    parser.add_argument("genuine", help="URL of the server that is the measure")
    parser.add_argument("other", help="URL of the server that is compared")
    parser.add_argument("--examples", type=int, default=300)
    options = parser.parse_args()
    try:
        duel = compare(options.genuine, options.other, options.examples)
    except DisagreementError as found:
        print(found)
        return 1
    print(f"{duel.sequences} sequences, {duel.exchanges} requests to each: no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main())
