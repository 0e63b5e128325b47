"""What a peer sends: batches of actions, and single requests with the replication header."""

from __future__ import annotations

import gzip
import json
from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, forms, unique
from conformance.documents import FULL, Form, Instance
from conformance.http import Exchange

catalogue = Catalogue()
case = catalogue.case
PEER = {"Content-Type": "application/json", "Accept": "application/json"}
MARK = {"x-netflix-discovery-replication": "true"}
DIRTY = 1700000000000


def item(sent: Instance, action: str, **fields: Any) -> Instance:
    made = {
        "appName": sent["app"],
        "id": sent["instanceId"],
        "lastDirtyTimestamp": DIRTY,
        "status": "UP",
        "action": action,
    }
    return {**made, **fields}


def batch(s: Session, *items: Instance, path: str = "/peerreplication/batch/") -> Exchange:
    exchange = s.send("POST", path, json.dumps({"replicationList": list(items)}), PEER)
    s.status(exchange, 200)
    s.equal(exchange.media_type, "application/json", "Content-Type", exchange)
    return exchange


def codes(s: Session, *items: Instance) -> list[int]:
    exchange = batch(s, *items)
    found = json.loads(exchange.body)
    s.equal(list(found), ["responseList"], "the keys of the answer", exchange)
    return [answer["statusCode"] for answer in found["responseList"]]


def unregistered(s: Session) -> Instance:
    app = unique("PEER")
    sent = documents.sample(app, f"{app}:one")
    s.sweep_later(app, sent)
    return sent


@case(
    "peer batch",
    "PeerReplicationResource.batchReplication",
    over={"with a slash": ("/peerreplication/batch/",), "without": ("/peerreplication/batch",)},
)
def an_empty_batch_has_an_empty_answer(s: Session, path: str) -> None:
    exchange = batch(s, path=path)
    s.equal(json.loads(exchange.body), {"responseList": []}, "the answer", exchange)


@case("peer batch", "PeerReplicationResource.handleRegister")
def a_batch_registers(s: Session) -> None:
    sent = unregistered(s)
    s.equal(codes(s, item(sent, "Register", instanceInfo=sent)), [200], "the codes")
    s.equal(s.instance(sent)["status"], "UP", "status")


@case("peer batch", "PeerReplicationResource.handleHeartbeat")
def a_batch_renews(s: Session) -> None:
    sent, absent = s.register(), unregistered(s)
    got = codes(
        s,
        item(sent, "Heartbeat"),
        item(absent, "Heartbeat"),
        item(sent, "Heartbeat", lastDirtyTimestamp=DIRTY + 1),
        item(sent, "Heartbeat", lastDirtyTimestamp=DIRTY - 1),
    )
    s.equal(got, [200, 404, 404, 409], "the codes")


@case("peer batch", "PeerReplicationResource; the entity of a conflict")
def a_conflict_carries_the_instance_without_a_wrapper(s: Session) -> None:
    sent = s.register()
    exchange = batch(s, item(sent, "Heartbeat", lastDirtyTimestamp=DIRTY - 1))
    (answer,) = json.loads(exchange.body)["responseList"]
    s.equal(answer["statusCode"], 409, "statusCode", exchange)
    got = s.read(lambda _: documents.json_instance(answer["responseEntity"]), exchange)
    s.equal(got["instanceId"], sent["instanceId"], "the instance", exchange)


@case("peer batch", "PeerReplicationResource; the old override goes with a newer heartbeat")
def a_batch_may_bring_an_override_with_a_heartbeat(s: Session) -> None:
    sent = s.register()
    newer = item(sent, "Heartbeat", lastDirtyTimestamp=DIRTY + 1, overriddenStatus="OUT_OF_SERVICE")
    s.equal(codes(s, newer), [404], "the code")
    s.status(s.send("PUT", s.path(sent)), 200)
    s.equal(s.instance(sent)["status"], "OUT_OF_SERVICE", "status after the next renewal")


@case("peer batch", "PeerReplicationResource.handleCancel")
def a_batch_cancels(s: Session) -> None:
    sent, absent = s.register(), unregistered(s)
    s.equal(codes(s, item(sent, "Cancel"), item(absent, "Cancel")), [200, 404], "the codes")
    s.status(s.get(s.path(sent)), 404)


@case("peer batch", "PeerReplicationResource.handleStatusUpdate")
def a_batch_sets_and_removes_an_override(s: Session) -> None:
    sent = s.register()
    update = item(sent, "StatusUpdate", status="OUT_OF_SERVICE")
    s.equal(codes(s, update), [200], "the code")
    s.equal(s.instance(sent)["overriddenStatus"], "OUT_OF_SERVICE", "overriddenStatus")
    s.equal(codes(s, item(sent, "DeleteStatusOverride", status="UP")), [200], "the code")
    got = s.instance(sent)
    s.equal(got["overriddenStatus"], "UNKNOWN", "overriddenStatus")


@case("peer batch", "PeerReplicationResource; same length, same order")
def many_items_are_answered_one_by_one_in_order(s: Session) -> None:
    sent, absent = unregistered(s), unregistered(s)
    got = codes(
        s,
        item(absent, "Heartbeat"),
        item(sent, "Register", instanceInfo=sent),
        item(sent, "Heartbeat"),
        item(sent, "StatusUpdate", status="DOWN"),
        item(absent, "Cancel"),
        item(sent, "Cancel"),
        item(sent, "Heartbeat"),
    )
    s.equal(got, [404, 200, 200, 200, 404, 200, 404], "the codes")


@case(
    "peer batch",
    "PeerReplicationResource; the reader",
    over={
        "half a body": ('{"replicationList": [',),
        "no body": ("",),
        "an array": ("[]",),
    },
)
def a_batch_that_cannot_be_read_is_refused(s: Session, body: str) -> None:
    s.status(s.send("POST", "/peerreplication/batch/", body, PEER), 400, 500)


@case(
    "peer batch",
    "ReplicationList, ReplicationInstance; the reader",
    over={
        "a key of nobody's": ({"colour": "green"}, True),
        "an action of nobody's": ({"action": "Forget"}, True),
        "one object for the list": ({}, False),
    },
)
def a_batch_with_what_is_none_of_the_protocols_is_refused_whole(
    s: Session, fields: Instance, is_list: bool
) -> None:
    sent, first = s.register(), unregistered(s)
    good, bad = item(first, "Register", instanceInfo=first), item(sent, "Cancel") | fields
    document = {"replicationList": [good, bad] if is_list else bad}
    s.status(s.send("POST", "/peerreplication/batch/", json.dumps(document), PEER), 400)
    s.status(s.get(s.path(first)), 404)
    s.status(s.get(s.path(sent)), 200)


@case(
    "peer batch",
    "PeerReplicationResource.dispatch; an exception amid a batch",
    over={
        "a Register without its instance": ("Register", {}),
        "a DeleteStatusOverride without a timestamp": (
            "DeleteStatusOverride",
            {"lastDirtyTimestamp": None},
        ),
        "no action": (None, {}),
    },
)
def an_item_without_what_it_needs_is_a_500_and_the_others_are_done(
    s: Session, action: str | None, fields: Instance
) -> None:
    sent, absent = s.register(), unregistered(s)
    made = item(sent, action or "", **fields)
    bad = {key: value for key, value in made.items() if value not in (None, "")}
    s.equal(codes(s, bad, item(sent, "Heartbeat"), item(absent, "Cancel")), [500, 200, 404], "them")


@case("peer batch", "PeerReplicationResource.handleRegister; its result is not looked at")
def a_registration_that_is_none_is_answered_200_and_not_taken(s: Session) -> None:
    sent = unregistered(s)
    invalid = {key: value for key, value in sent.items() if key != "hostName"}
    s.equal(codes(s, item(sent, "Register", instanceInfo=invalid)), [200], "the codes")
    s.status(s.get(s.path(sent)), 404)


@case("peer batch", "AbstractInstanceRegistry; who is unknown")
def whatever_is_said_of_an_unknown_instance_is_a_404(s: Session) -> None:
    absent = unregistered(s)
    actions = ("Heartbeat", "StatusUpdate", "DeleteStatusOverride", "Cancel")
    got = codes(s, *(item(absent, action) for action in actions))
    s.equal(got, [404] * len(actions), "the codes")


@case("peer batch", "PeerReplicationResource; names of applications in any case")
def an_application_is_found_in_lower_case(s: Session) -> None:
    sent = s.register()
    lower = item(sent, "Heartbeat") | {"appName": sent["app"].lower()}
    s.equal(codes(s, lower), [200], "the codes")


@case("peer batch", "AbstractInstanceRegistry.register; the newer dirty timestamp")
def an_older_registration_of_a_peer_changes_nothing(s: Session) -> None:
    sent = s.register(metadata={"v": "new"})
    older = {**sent, "metadata": {"v": "old"}, "lastDirtyTimestamp": str(DIRTY - 1)}
    told = item(sent, "Register", instanceInfo=older, lastDirtyTimestamp=DIRTY - 1)
    s.equal(codes(s, told), [200], "the codes")
    s.equal(s.instance(sent).get("metadata"), {"v": "new"}, "metadata")


@case("peer batch", "PeerReplicationResource; written when all of it is done")
def the_instance_of_a_conflict_is_as_it_is_after_the_batch(s: Session) -> None:
    sent = s.register()
    exchange = batch(
        s,
        item(sent, "Heartbeat", lastDirtyTimestamp=DIRTY - 1),
        item(sent, "StatusUpdate", status="OUT_OF_SERVICE"),
    )
    conflict, update = json.loads(exchange.body)["responseList"]
    s.equal((conflict["statusCode"], update["statusCode"]), (409, 200), "the codes", exchange)
    s.equal(conflict["responseEntity"]["status"], "OUT_OF_SERVICE", "its status", exchange)


@case(
    "peer batch",
    "ReplicationList; a compressed body",
    column="gzip",
    beyond="a genuine Spring server does not unpack request bodies",
)
def a_compressed_batch_is_read(s: Session) -> None:
    sent = s.register()
    body = gzip.compress(json.dumps({"replicationList": [item(sent, "Heartbeat")]}).encode())
    headers = {**PEER, "Content-Encoding": "gzip"}
    exchange = s.send("POST", "/peerreplication/batch/", body, headers)
    s.status(exchange, 200)
    s.equal(json.loads(exchange.body), {"responseList": [{"statusCode": 200}]}, "the answer")


@case(
    "peer request",
    "InstanceResource.validateDirtyTimestamp; replicated",
    over={"older": (-1, 409), "the same": (0, 200), "newer": (1, 404)},
)
def a_renewal_told_by_a_peer_is_judged_by_its_timestamp(
    s: Session, later: int, status: int
) -> None:
    sent = s.register()
    path = s.path(sent, f"?status=UP&lastDirtyTimestamp={DIRTY + later}")
    exchange = s.send("PUT", path, None, {**MARK, "Accept": "application/json"})
    s.status(exchange, status)
    if status == 409:
        got = s.read(documents.instance, exchange)
        s.equal(got["instanceId"], sent["instanceId"], "the instance", exchange)


@case("peer request", "InstanceResource.cancelLease; replicated")
def a_cancel_told_by_a_peer_is_done(s: Session) -> None:
    sent = s.register()
    s.status(s.send("DELETE", s.path(sent), None, MARK), 200)
    s.status(s.send("DELETE", s.path(sent), None, MARK), 404)


@case("peer request", "ApplicationResource.addInstance; replicated", over=forms(*FULL))
def a_registration_told_by_a_peer_is_taken(s: Session, form: Form) -> None:
    sent = s.register(form=form, headers=MARK)
    s.equal(s.instance(sent)["status"], "UP", "status")


@case("peer request", "InstanceResource; replicated")
def a_status_told_by_a_peer_is_taken(s: Session) -> None:
    sent = s.register()
    query = "/status?value=OUT_OF_SERVICE&lastDirtyTimestamp=1700000000000"
    s.status(s.send("PUT", s.path(sent, query), None, MARK), 200)
    s.equal(s.instance(sent)["status"], "OUT_OF_SERVICE", "status")
    s.status(s.send("DELETE", s.path(sent, "/status?value=UP"), None, MARK), 200)
    s.equal(s.instance(sent)["status"], "UP", "status")
