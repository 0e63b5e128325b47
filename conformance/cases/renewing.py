"""Heartbeats and cancels."""

from __future__ import annotations

import time

from conformance import documents
from conformance.case import Catalogue, Session, forms, unique
from conformance.documents import FULL, Form

catalogue = Catalogue()
case = catalogue.case
REPLICATED = {"x-netflix-discovery-replication": "true"}


@case("heartbeat", "InstanceResource.renewLease; R4, R8", over=forms(*FULL))
def a_heartbeat_is_answered_200_with_nothing(s: Session, form: Form) -> None:
    sent = s.register()
    for query in ("", "?status=UP&lastDirtyTimestamp=1700000000000", "?status=UP"):
        exchange = s.send("PUT", s.path(sent, query), None, form.headers)
        s.status(exchange, 200)
        s.equal(exchange.body, "", "body", exchange)


@case("heartbeat", "InstanceResource.renewLease; R4", over=forms(*FULL))
def a_heartbeat_of_an_unknown_instance_is_404(s: Session, form: Form) -> None:
    s.status(s.send("PUT", f"/apps/{unique('NOPE')}/x", None, form.headers), 404)
    sent = s.register()
    s.status(s.send("PUT", f"/apps/{sent['app']}/nobody", None, form.headers), 404)


@case(
    "heartbeat",
    "Jersey 2 and 3 send {}, RestClient a type with no body; R7",
    over={
        "an empty object": (b"{}", "application/json"),
        "a type and no body": (None, "application/json"),
        "plain text": (b"", "text/plain"),
        "an unreadable body": (b"\xff{", "application/json"),
        "a form": (b"a=b", "application/x-www-form-urlencoded"),
    },
)
def the_body_of_a_heartbeat_is_not_read(s: Session, body: bytes | None, media: str) -> None:
    sent = s.register()
    exchange = s.send("PUT", s.path(sent), body, {"Content-Type": media})
    s.status(exchange, 200)
    s.equal(exchange.body, "", "body", exchange)


@case("heartbeat", "InstanceResource ignores it")
def the_status_of_a_heartbeat_changes_nothing(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "?status=DOWN&lastDirtyTimestamp=1700000000000")), 200)
    s.equal(s.instance(sent)["status"], "UP", "status")


TIMESTAMPS = {"an equal": (0, 200, 200), "an older": (-1, 200, 409), "a newer": (1, 404, 404)}


@case(
    "heartbeat",
    "InstanceResource.validateDirtyTimestamp; R33",
    over={k: (offset, client) for k, (offset, client, _) in TIMESTAMPS.items()},
)
def from_a_client_with_this_dirty_timestamp(s: Session, offset: int, wanted: int) -> None:
    sent = s.register()
    stamp = int(sent["lastDirtyTimestamp"]) + offset
    s.status(s.send("PUT", s.path(sent, f"?lastDirtyTimestamp={stamp}")), wanted)


@case(
    "heartbeat",
    "InstanceResource.validateDirtyTimestamp",
    over={
        f"{k}, {form.value}": (form, offset, peer)
        for form in FULL
        for k, (offset, _, peer) in TIMESTAMPS.items()
    },
)
def from_a_peer_with_this_dirty_timestamp(s: Session, form: Form, offset: int, wanted: int) -> None:
    sent = s.register()
    stamp = int(sent["lastDirtyTimestamp"]) + offset
    path = s.path(sent, f"?status=UP&lastDirtyTimestamp={stamp}")
    exchange = s.send("PUT", path, None, {**form.headers, **REPLICATED})
    s.status(exchange, wanted)
    if wanted == 409:
        got = s.read(documents.instance, exchange)
        s.equal(got["instanceId"], sent["instanceId"], "the instance in the answer", exchange)


@case("heartbeat", "InstanceResource.renewLease renews before it looks at the timestamp")
def a_heartbeat_that_is_told_to_register_again_has_renewed(s: Session) -> None:
    sent = s.register()
    before = s.instance(sent)["leaseInfo"]["lastRenewalTimestamp"]
    time.sleep(0.02)
    s.status(s.send("PUT", s.path(sent, "?lastDirtyTimestamp=1800000000000")), 404)
    after = s.instance(sent)["leaseInfo"]["lastRenewalTimestamp"]
    s.require(after > before, "lastRenewalTimestamp to have moved")


@case("heartbeat", "replication counts only as exactly true")
def another_word_in_the_replication_header_is_none(s: Session) -> None:
    sent = s.register()
    for word in ("True", "1", "yes"):
        headers = {"x-netflix-discovery-replication": word}
        older = s.path(sent, "?lastDirtyTimestamp=1600000000000")
        s.status(s.send("PUT", older, None, headers), 200)


@case("heartbeat", "PeerAwareInstanceRegistryImpl.storeOverriddenStatusIfRequired")
def a_peers_heartbeat_may_bring_an_override(s: Session) -> None:
    sent = s.register()
    newer = "?lastDirtyTimestamp=1800000000000&overriddenstatus=OUT_OF_SERVICE"
    s.status(s.send("PUT", s.path(sent, newer), None, REPLICATED), 404)
    s.status(s.send("PUT", s.path(sent)), 200)
    s.equal(s.instance(sent)["status"], "OUT_OF_SERVICE", "status after the next renewal")


@case("heartbeat", "AbstractInstanceRegistry.renew")
def an_instance_of_unknown_status_is_told_to_register_again(s: Session) -> None:
    sent = s.register(status="UNKNOWN")
    s.status(s.send("PUT", s.path(sent)), 404)
    s.equal(s.instance(sent)["status"], "UNKNOWN", "status")


@case("heartbeat", "Lease.renew")
def a_heartbeat_moves_the_last_renewal_and_no_other_time(s: Session) -> None:
    sent = s.register()
    before = s.instance(sent)
    time.sleep(0.02)
    s.status(s.send("PUT", s.path(sent)), 200)
    after = s.instance(sent)
    last = "lastRenewalTimestamp"
    s.require(after["leaseInfo"][last] > before["leaseInfo"][last], f"{last} to have moved")
    for name in ("registrationTimestamp", "evictionTimestamp", "serviceUpTimestamp"):
        s.equal(after["leaseInfo"][name], before["leaseInfo"][name], name)
    for name in ("lastUpdatedTimestamp", "lastDirtyTimestamp", "actionType"):
        s.equal(after[name], before[name], name)


@case("cancel", "InstanceResource.cancelLease; R5", over=forms(*FULL))
def a_cancel_is_answered_200_and_the_next_404(s: Session, form: Form) -> None:
    sent = s.register()
    exchange = s.send("DELETE", s.path(sent), None, form.headers)
    s.status(exchange, 200)
    s.equal(exchange.body, "", "body", exchange)
    s.status(s.get(s.path(sent), form), 404)
    s.status(s.send("DELETE", s.path(sent), None, form.headers), 404)
    s.status(s.send("PUT", s.path(sent)), 404)


@case("cancel", "InstanceResource.cancelLease")
def a_cancel_by_a_peer_is_the_same(s: Session) -> None:
    sent = s.register()
    s.status(s.send("DELETE", s.path(sent), None, REPLICATED), 200)
    s.status(s.get(s.path(sent)), 404)


@case("cancel", "InstanceResource.cancelLease")
def a_cancel_leaves_the_others_alone(s: Session) -> None:
    sent = s.register()
    other = s.register({**sent, "instanceId": f"{sent['instanceId']}-2"})
    s.status(s.send("DELETE", s.path(sent)), 200)
    s.equal(s.instance(other)["status"], "UP", "the other's status")

    def check() -> None:
        found = s.listing("/apps").application(sent["app"])
        s.equal([i["instanceId"] for i in found], [other["instanceId"]], "who is listed")

    s.eventually(check)
