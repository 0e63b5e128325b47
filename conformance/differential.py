"""Plays random sequences of requests to two servers and compares every answer.

    python -m conformance.differential GENUINE_URL OTHER_URL [--examples N]

Hypothesis makes the sequences and, where two answers disagree, shortens them to the least that
still does. The first server is the measure: where it answers 5xx to bad input, a 400 is right.
Both must evict nothing and answer lists without delay while it runs.

Not generated, since the genuine server's own answer is a fault: the name Amazon with the plain
class (it can no longer show the application), reads of single parts of a VIP attribute and compact
reads of VIPs (both are stale); arrays and objects in the place of texts or numbers, and numbers in
a lease of XML that are none (its parser loses its place); leases so long that they are over to it.
Taken back before answers are compared: ids that were not sent, which the other server may show, and
colons in element names, which it may escape.
Not compared: clock readings, the delta's counter, pages of errors, the order of what has none,
lists after a heartbeat brought an override or took one up that was set through another application
(the genuine cache does not see it),
``instances/ID`` where two applications share the id (a hash map's order), and the entity of a
batch's conflict where a later item of the batch changes the same instance.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conformance import documents
from conformance.case import unique
from conformance.cases.recorded import content, own_part, taken_back
from conformance.documents import AMAZON_CLASS, FULL, PLAIN_CLASS, STATUSES, Form
from conformance.http import Connection, Exchange
from conformance.spellings import DRESSES, JSON_SPELLINGS, SPELLINGS, XML_SPELLINGS

TAIL = "~"  # stands for the names of one sequence until it is played
APPS = ("Da~", "Db~")
IDS = ("i~:1", "i~:2", "h~")
FIRST_DIRTY = 1700000000000
PEER = {"x-netflix-discovery-replication": "true"}


Name = tuple[str, str]
"""An application in capitals, and an id."""


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
    overrides: frozenset[Name] = frozenset()
    """Whose status it may override: that of an id, in whichever application."""
    renews: frozenset[Name] = frozenset()
    spelling: str = "utf-8"
    dress: str = "plain"

    def named(self, tail: str) -> Request:
        """The same request with the sequence's own names."""
        return replace(
            self,
            path=self.path.replace(TAIL, tail),
            body=None if self.body is None else self.body.replace(TAIL, tail),
            app=self.app.replace(TAIL, tail),
            id=self.id.replace(TAIL, tail),
        )

    @property
    def data(self) -> bytes | None:
        """The body's bytes."""
        return None if self.body is None else SPELLINGS[self.spelling](self.body)

    def target(self, base: str = "") -> str:
        """The path as it is sent to a server with this base."""
        return DRESSES[self.dress](base, self.path)


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
RAW = "RAW:"  # what follows stands in JSON as it is, without quotes
_RAW = re.compile(rf'"{RAW}([^"]*)"')
NUMBERS: tuple[Any, ...] = (
    *(" 8080", "8080\n", "8080.0", "80.9", "8.08e3", "+80", "+-80", "-80", "8080\x00", "80f", "5."),
    *("\uff18\uff10", "0x50", "0x1p3", "8_080", "", " ", "NaN", "Infinity", "-Infinity", "1e400"),
    *("2147483647", "2147483648", "US", "null", True, False, None, -80, 80.9, -1.5, 2**31),
    *(RAW + text for text in ("1e3", "80.50", "-0", "1e19", "9223372036854775808")),
)
SECONDS: tuple[Any, ...] = (
    *(600, "600", " 600\n", "600.5", "6e2", "+600", "-1", "", "x", "0x1p9", None, -5, 600.7),
    *(2**31, RAW + "6.5e2"),
)
MOMENTS: tuple[Any, ...] = (
    *("1.7e12", " 1700000000001 ", "1700000000002.5", "-5", -5, "x", "", True, "1e19"),
    *(RAW + "1.700000000001e12", "9223372036854775808", RAW + "9223372036854775808"),
)
SWITCHES = (True, False, " true ", "TRUE", "", None, 0, 1, -1, 1.5, RAW + "99999999999")
DIGITS = ("1.50", "1e5", "-0", "18446744073709551616", "0.1000", "1e400", "1" + "0" * 30)
ACCEPTED = (
    *("*", "*/*", "*/json", "application/*", "application/json;q=0", "*/*;q=0"),
    *("application/xml;Q=0.1, application/json;q=0.2", "text/plain", "application/json, */*"),
)
ODD: dict[str, st.SearchStrategy[Any]] = {
    "status": st.one_of(statuses, st.sampled_from([None, "up", "", "READY"])),
    "overriddenstatus": st.one_of(statuses, st.sampled_from([None, "foo", ""])),
    "overriddenStatus": st.one_of(statuses, st.sampled_from([None, "foo", ""])),
    "port": st.one_of(
        st.sampled_from([None, {"$": "80", "@enabled": "true"}, {"$": -1, "@enabled": "x"}]),
        st.fixed_dictionaries(
            {"$": st.sampled_from(NUMBERS)}, optional={"@enabled": st.sampled_from(SWITCHES)}
        ),
    ),
    "securePort": st.one_of(
        st.sampled_from([None, {"$": 443, "@enabled": True}, {"$": "443"}]),
        st.fixed_dictionaries(
            {"$": st.sampled_from(NUMBERS)}, optional={"@enabled": st.sampled_from(SWITCHES)}
        ),
    ),
    "metadata": st.one_of(
        st.none(),
        st.dictionaries(st.sampled_from(["zone", "a_b", "x.y", "é", "k-1"]), texts, max_size=3),
        st.sampled_from(
            [
                {"n": 1, "f": 1.5, "b": False, "e": "", "none": None},
                {"aws:autoscaling:group": "g", "k&": "x"},
                {"halves": "a\ud800b\udc00"},
            ]
        ),
        st.sampled_from(DIGITS).map(lambda digits: {"d": RAW + digits}),
    ),
    "leaseInfo": st.one_of(
        st.sampled_from(
            [
                None,
                {},
                {"durationInSecs": 600, "renewalIntervalInSecs": "7"},
                {"durationInSecs": 0, "renewalIntervalInSecs": -1},
                {"evictionDurationInSecs": 5},
                {"durationInSecs": 700, "registrationTimestamp": 5, "serviceUpTimestamp": 6},
            ]
        ),
        st.fixed_dictionaries(
            {
                "durationInSecs": st.sampled_from(SECONDS),
                "renewalIntervalInSecs": st.sampled_from(SECONDS),
            }
        ),
    ),
    "countryId": st.one_of(st.sampled_from([7, "8", None, 0]), st.sampled_from(NUMBERS)),
    "sid": st.sampled_from(["s1", "na", "unknown", "", None, RAW + "1.50", True]),
    "appGroupName": st.sampled_from(["grp", "GRP", "", None]),
    "asgName": st.sampled_from(["asg", "", None]),
    "homePageUrl": st.one_of(st.none(), texts),
    "statusPageUrl": st.sampled_from(["", "http://x/é?a=b&c", None]),
    "healthCheckUrl": st.sampled_from(["", "http://x/", None]),
    "secureHealthCheckUrl": st.sampled_from(["", "https://x/", None]),
    "vipAddress": st.sampled_from(["v~", "v~", "part~,other~", "", "a b", None]),
    "secureVipAddress": st.sampled_from(["sv~", "", None]),
    "lastDirtyTimestamp": st.one_of(moments.map(str), moments, st.none(), st.sampled_from(MOMENTS)),
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


def json_of(document: Any, *, is_ascii: bool = True) -> str:
    """The document in JSON, what is raw as it is."""
    return _RAW.sub(r"\1", json.dumps(document, ensure_ascii=is_ascii))


_XML_DIGITS = re.compile(r"[+-]?[0-9]+")


def xml_of(fields: dict[str, Any]) -> str:
    """The body in XML, without what only JSON can say."""
    taken = dict(fields)
    if taken.get("leaseInfo"):
        taken["leaseInfo"] = {
            k: v
            for k, v in taken["leaseInfo"].items()
            if not k.startswith("eviction") and _XML_DIGITS.fullmatch(str(v))
        }
    for name in ("port", "securePort"):
        if taken.get(name):
            taken[name] = {"@enabled": "true", **taken[name]}
    if taken.get("metadata"):
        taken["metadata"] = {
            k: v
            for k, v in taken["metadata"].items()
            if k != "k&" and not re.search("[\ud800-\udfff]", str(v))
        }
    return documents.xml_body(taken).replace(RAW, "")


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
    if draw(st.integers(0, 3)) == 0:
        made["dress"] = draw(st.sampled_from(sorted(DRESSES)))
    if kind == "register":
        fields = draw(bodies(app, instance_id))
        spellings = JSON_SPELLINGS if form.is_json else XML_SPELLINGS
        made["spelling"] = next(iter(spellings))
        if draw(st.integers(0, 2)) == 0:
            made["spelling"] = draw(st.sampled_from(sorted(spellings)))
        is_ascii = draw(st.booleans())
        text = json_of({"instance": fields}, is_ascii=is_ascii) if form.is_json else xml_of(fields)
        charset = draw(st.sampled_from(["", "", ";charset=UTF-8", "; charset=iso-8859-1"]))
        headers = header(form, peer, {"Content-Type": form.media_type + charset})
        if not OVERRIDING.isdisjoint(fields):
            made["overrides"] = of_all_ids(app)
        return Request("POST", f"/apps/{app}", text, headers, **made)
    if kind == "renew":
        query = draw(st.sampled_from(["", "?status=DOWN", "?lastDirtyTimestamp={}"]))
        odd = st.sampled_from(["x", "", "1e3", "1_7", "%201", "+5", "-5", "9223372036854775808"])
        query = query.format(draw(st.one_of(moments, moments, odd)))
        brings = bool(peer) and "Dirty" in query and draw(st.booleans())
        if brings:
            query += f"&overriddenstatus={draw(statuses)}"
        made["renews"] = frozenset([(app.upper(), instance_id)])
        return Request(
            "PUT", path + query, None, header(form, peer), **made, brings_override=brings
        )
    if kind == "override":
        query = f"?value={draw(statuses)}"
        if draw(st.booleans()):
            query += f"&lastDirtyTimestamp={draw(moments)}"
        made["overrides"] = frozenset([(app.upper(), instance_id)])
        return Request("PUT", f"{path}/status{query}", None, header(form, peer), **made)
    if kind == "remove override":
        value = draw(st.sampled_from(["", *STATUSES]))
        query = f"?value={value}" if value else ""
        return Request("DELETE", f"{path}/status{query}", None, header(form, peer), **made)
    if kind == "metadata":
        query = f"?k{draw(st.integers(0, 2))}=v%20{draw(st.integers(0, 2))}&zone=b"
        query += draw(st.sampled_from(["", "&zone=c", "&=x", "&e", "&%C3%A9=a+b", "&a:b==", "&&"]))
        return Request("PUT", f"{path}/metadata{query}", None, header(form), **made)
    if kind == "cancel":
        return Request("DELETE", path, None, header(form, peer), **made)
    if kind == "by id":
        return Request("GET", f"/instances/{instance_id}", None, header(form), **made)
    if kind == "vip":
        wanted = draw(st.sampled_from(["/vips/v~", "/svips/sv~"]))
        return Request("GET", wanted, None, header(form), **made)
    if kind == "one":
        wanted = draw(st.one_of(forms.map(lambda form: form.media_type), st.sampled_from(ACCEPTED)))
        return Request("GET", path, None, (("Accept", wanted),), **made)
    items = draw(st.lists(batch_items(), min_size=1, max_size=4))
    headers = header(Form.JSON, {"Content-Type": "application/json"})
    brings = any("overriddenStatus" in item for item in items)
    made["overrides"] = frozenset[Name]().union(*map(overridden_by, items))
    made["renews"] = frozenset(name_of(item) for item in items if item["action"] == "Heartbeat")
    body = json_of({"replicationList": items})
    if draw(st.integers(0, 3)) == 0:
        made["spelling"] = draw(st.sampled_from(sorted(JSON_SPELLINGS)))
    return Request("POST", "/peerreplication/batch/", body, headers, **made, brings_override=brings)


OVERRIDING = frozenset(["overriddenstatus", "overriddenStatus"])


def of_all_ids(app: str) -> frozenset[Name]:
    """All that a registration may be for: its id may be one of several fields."""
    return frozenset((app.upper(), each) for each in IDS)


def name_of(item: dict[str, Any]) -> Name:
    return item["appName"].upper(), item["id"]


def overridden_by(item: dict[str, Any]) -> frozenset[Name]:
    """Whose status an item of a batch may override."""
    if item["action"] == "StatusUpdate":
        return frozenset([name_of(item)])
    if OVERRIDING.isdisjoint(item.get("instanceInfo", ())):
        return frozenset()
    return of_all_ids(item["appName"])


TOLD = (" 1700000000001 ", "", "x", "1e3", 1.5, None, True, RAW + "1.700000000001e12", -1, 2**63)


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
        "lastDirtyTimestamp": draw(st.one_of(moments, moments, st.sampled_from(TOLD))),
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


# For so long both servers' deltas have all of a sequence. Each forgets at an instant of its own
# what is five seconds old (``compare.py`` starts them so), and a busy machine may take that long.
DELTA_SECS = 4.0


class DisagreementError(AssertionError):
    """Two answers that should be the same."""


class Duel:
    """Plays sequences to both servers; each has names and connections of its own and is swept away.

    Where several servers are behind one address, another sequence thus comes to another of them.
    """

    def __init__(self, genuine: str, other: str) -> None:
        self._servers = (Connection(genuine), Connection(other))
        self._began = 0.0
        self.sequences = 0
        self.exchanges = 0

    def play(self, sequence: list[Turn]) -> None:
        """Raise ``DisagreementError`` at the first pair of answers that differ."""
        self.sequences += 1
        self._began = time.monotonic()
        for server in self._servers:
            server.close()  # the next request opens another
        tail = unique("")
        lists_lag = False
        overridden: set[Name] = set()
        try:
            for turn in sequence:
                request = turn.request.named(tail)
                overridden |= request.overrides
                lists_lag = (
                    lists_lag
                    or request.brings_override
                    or any(
                        instance_id == each and app != other
                        for app, instance_id in request.renews
                        for other, each in overridden
                    )
                )
                self._compare(request, tail, lists_lag)
                self._read(f"/apps/{request.app}/{request.id}", Form.JSON, tail)
                if not lists_lag:
                    self._read(turn.path.replace(TAIL, tail), turn.reading, tail)
        finally:
            self._sweep(tail)

    def _both(self, request: Request) -> tuple[Exchange, Exchange]:
        self.exchanges += 1
        first, second = (self._send(side, request) for side in (0, 1))
        return first, second

    def _send(self, side: int, request: Request) -> Exchange:
        headers, dress = dict(request.headers), DRESSES[request.dress]
        return self._servers[side].send(request.method, request.path, request.data, headers, dress)

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
                f"{what}\n  {request.method} {request.target()} {dict(request.headers)} "
                f"{request.spelling}: {request.body}"
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
            text = taken_back(exchange.body)
            if request.path in ("/apps", "/apps/delta"):
                text = own_part(text, tail)
            bodies.append(content(settled(request, text)))
        forgets = request.path == "/apps/delta" and time.monotonic() > self._began + DELTA_SECS
        if bodies[0] != bodies[1] and not forgets:
            disagree("the content")

    def _shared(self, tail: str, path: str) -> bool:
        identity = path.removeprefix("/instances/")
        found = 0
        for app in APPS:
            path = f"/apps/{app.replace(TAIL, tail)}/{identity}"
            reply = self._send(0, Request("GET", path, None, header(Form.JSON)))
            found += reply.status == 200
        return found > 1

    def _sweep(self, tail: str) -> None:
        for app in APPS:
            path = f"/apps/{app.replace(TAIL, tail)}"
            for side in (0, 1):
                found = self._send(side, Request("GET", path, None, header(Form.JSON)))
                if found.status == 200:
                    for instance in json.loads(found.body)["application"]["instance"]:
                        identity = documents.effective_id(instance)
                        self._send(side, Request("DELETE", f"{path}/{identity}"))


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

    try:
        agrees()
    except DisagreementError as found:
        raise DisagreementError("\n".join([str(found), *getattr(found, "__notes__", ())])) from None
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
