"""What a server tells its peers; the suite is one of them (``--peer-port``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, quoted, unique
from conformance.cases.leasing import gone, latest, short
from conformance.cases.replicating import DIRTY, MARK, batch, item
from conformance.documents import Instance
from conformance.peer import BATCH, Told, Tree

catalogue = Catalogue()
# A sender gathers what comes within half a second, and may have been refused just now.
SOON = 20.0
# So long after a later word has arrived, an earlier one is not on its way any more.
STRAGGLING = 1.0


case = partial(catalogue.case, "peer sending", peer=True)


def told(s: Session, sent: Instance, action: str, count: int = 1) -> Told:
    """The latest item of an action, once there are so many."""

    def check() -> Told:
        found = s.peer.told(sent["app"], action)
        s.require(
            len(found) >= count,
            f"{count} {action} of {sent['app']} at a peer, not "
            f"{[each.action for each in s.peer.told(sent['app'])]}",
        )
        return found[-1]

    return s.eventually(check, soon(s))


def soon(s: Session) -> float:
    return max(SOON, s.target.patience)


def registered(s: Session, **fields: Any) -> Instance:
    """An instance of which the peer has been told."""
    sent = s.register(**fields)
    told(s, sent, "Register")
    return sent


def renew(s: Session, sent: Instance, dirty: int = DIRTY) -> None:
    path = s.path(sent, f"?status=UP&lastDirtyTimestamp={dirty}")
    s.status(s.send("PUT", path), 200)


def fenced(s: Session, sent: Instance) -> list[str]:
    """What was told of an application by the time something later has been told."""
    registered(s)
    time.sleep(STRAGGLING)
    return [each.action for each in s.peer.told(sent["app"])]


@case("PeerEurekaNode.register; ReplicationInstance")
def a_registration_is_told_with_the_whole_instance(s: Session) -> None:
    sent = s.register()
    got = told(s, sent, "Register").item
    keys = {"appName", "id", "lastDirtyTimestamp", "status", "instanceInfo", "action"}
    s.equal(set(got) - {"overriddenStatus"}, keys, "the item's keys")
    s.equal(got["appName"], sent["app"].upper(), "appName")
    s.equal(got["id"], sent["instanceId"], "id")
    s.equal(got["lastDirtyTimestamp"], DIRTY, "lastDirtyTimestamp, a number")
    s.equal(got["status"], "UP", "status")
    here, there = s.instance(sent), documents.json_instance(got["instanceInfo"])
    for name in (
        *("instanceId", "hostName", "app", "ipAddr", "status", "overriddenStatus", "port"),
        *("securePort", "dataCenterInfo", "metadata", "vipAddress", "lastDirtyTimestamp"),
    ):
        s.equal(there.get(name), here.get(name), f"instanceInfo.{name}")
    lease = there["leaseInfo"]
    s.equal(lease["durationInSecs"], here["leaseInfo"]["durationInSecs"], "durationInSecs")


@case("JerseyReplicationClient.submitBatchUpdates; ReplicationList")
def a_batch_is_asked_for_as_a_genuine_sender_does(s: Session) -> None:
    sent = s.register()
    got = told(s, sent, "Register")
    s.equal((got.method, got.path), ("POST", BATCH), "the request")
    s.equal(got.keys, ("replicationList",), "the body's keys")
    for name in ("content-type", "accept"):
        s.equal(got.headers.get(name), "application/json", name)
    for name, want in (
        ("accept-encoding", "gzip"),
        ("content-encoding", None),
        ("x-netflix-discovery-replication", None),
    ):
        s.equal(got.headers.get(name), want, name)


@case("PeerEurekaNode.heartbeat")
def a_renewal_is_told_with_its_timestamp_and_without_the_instance(s: Session) -> None:
    sent = registered(s)
    renew(s, sent)
    got = told(s, sent, "Heartbeat").item
    keys = {"appName", "id", "lastDirtyTimestamp", "status", "action"}
    s.equal(set(got), keys, "the item's keys")
    s.equal((got["lastDirtyTimestamp"], got["status"]), (DIRTY, "UP"), "timestamp and status")


@case("PeerEurekaNode.heartbeat; the override in force")
def a_renewal_is_told_with_the_override(s: Session) -> None:
    sent = registered(s)
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    told(s, sent, "StatusUpdate")
    renew(s, sent)
    got = told(s, sent, "Heartbeat").item
    s.equal(got.get("overriddenStatus"), "OUT_OF_SERVICE", "overriddenStatus")


@case("PeerEurekaNode.heartbeat; each renewal")
def each_renewal_is_told(s: Session) -> None:
    sent = registered(s)
    for count in (1, 2, 3):
        renew(s, sent)
        told(s, sent, "Heartbeat", count)


@case("PeerEurekaNode.statusUpdate")
def an_override_is_told_as_a_status(s: Session) -> None:
    sent = registered(s)
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    got = told(s, sent, "StatusUpdate").item
    keys = {"appName", "id", "lastDirtyTimestamp", "status", "action"}
    s.equal(set(got), keys, "the item's keys")
    s.equal(got["status"], "OUT_OF_SERVICE", "status")
    s.require(isinstance(got["lastDirtyTimestamp"], int), "lastDirtyTimestamp, a number")


@case("PeerEurekaNode.deleteStatusOverride")
def the_end_of_an_override_is_told_with_a_timestamp(s: Session) -> None:
    sent = registered(s)
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    told(s, sent, "StatusUpdate")
    s.status(s.send("DELETE", s.path(sent, "/status?value=UP")), 200)
    got = told(s, sent, "DeleteStatusOverride").item
    keys = {"appName", "id", "lastDirtyTimestamp", "status", "action"}
    s.equal(set(got), keys, "the item's keys")
    s.equal(got["status"], "UP", "status")
    s.require(isinstance(got["lastDirtyTimestamp"], int), "lastDirtyTimestamp, a number")


@case("InstanceResource.updateMetadata; a registration to the peers")
def metadata_is_told_as_a_registration(s: Session) -> None:
    sent = registered(s)
    s.status(s.send("PUT", s.path(sent, "/metadata?version=2")), 200)
    got = told(s, sent, "Register", 2).item
    s.equal(got["instanceInfo"]["metadata"].get("version"), "2", "metadata.version")


@case("PeerEurekaNode.cancel")
def a_cancel_is_told_by_name_alone(s: Session) -> None:
    sent = registered(s)
    s.status(s.send("DELETE", s.path(sent)), 200)
    got = told(s, sent, "Cancel").item
    want = {"appName": sent["app"].upper(), "id": sent["instanceId"], "action": "Cancel"}
    s.equal(got, want, "the item")


@case(
    "ReplicationInstance; names as the registry has them",
    over={"lower case": ("low", "low:1"), "no letters of English": ("low", "gr\u00fc\u00df:1")},
)
def names_are_told_as_they_are_kept(s: Session, prefix: str, suffix: str) -> None:
    app = unique(prefix)
    sent = documents.sample(app, f"{app}:{suffix}")
    s.sweep_later(app, sent)
    s.status(s.post(sent), 204)
    got = told(s, sent, "Register").item
    s.equal((got["appName"], got["id"]), (app.upper(), sent["instanceId"]), "application and id")


def _by_batch(s: Session, sent: Instance) -> None:
    batch(s, item(sent, "Register", instanceInfo=sent))
    batch(s, item(sent, "Heartbeat"), item(sent, "StatusUpdate", status="OUT_OF_SERVICE"))
    batch(s, item(sent, "DeleteStatusOverride", status="UP"))
    batch(s, item(sent, "Cancel"))


def _by_request(s: Session, sent: Instance) -> None:
    text, headers = documents.body(sent, documents.Form.JSON)
    s.status(s.send("POST", f"/apps/{quoted(sent['app'])}", text, {**headers, **MARK}), 204)
    dirty = f"lastDirtyTimestamp={DIRTY}"
    for method, rest in (
        ("PUT", f"?status=UP&{dirty}"),
        ("PUT", f"/status?value=OUT_OF_SERVICE&{dirty}"),
        ("DELETE", f"/status?value=UP&{dirty}"),
        ("DELETE", ""),
    ):
        s.status(s.send(method, s.path(sent, rest), None, MARK), 200)


@case(
    "PeerAwareInstanceRegistryImpl.replicateToPeers; one hop",
    over={"in a batch": (_by_batch,), "with the mark": (_by_request,)},
)
def what_a_peer_said_is_told_to_no_other(s: Session, say: Callable[..., None]) -> None:
    app = unique("LOOP")
    sent = documents.sample(app, f"{app}:one")
    s.sweep_later(app, sent)
    say(s, sent)
    s.equal(fenced(s, sent), [], "what the other peer is told")


@case("InstanceResource; only what was done is replicated")
def what_was_refused_is_not_told(s: Session) -> None:
    app = unique("REFUSED")
    sent = documents.sample(app, f"{app}:one")
    s.status(s.send("PUT", s.path(sent)), 404)
    s.status(s.send("DELETE", s.path(sent)), 404)
    s.status(s.send("PUT", s.path(sent, "/status?value=DOWN")), 404)
    invalid = {key: value for key, value in sent.items() if key != "hostName"}
    s.status(s.post(invalid), 400)
    s.equal(fenced(s, sent), [], "what a peer is told")


@case("PeerEurekaNode.heartbeat; a peer that does not know the instance")
def who_is_unknown_to_a_peer_is_registered_there(s: Session) -> None:
    sent = registered(s)

    def forgotten(told: Tree) -> Tree | None:
        return {"statusCode": 404} if told["action"] == "Heartbeat" else None

    with s.peer.answering(sent["app"], forgotten):
        renew(s, sent)
        got = told(s, sent, "Register", 2).item
    s.equal(got["instanceInfo"]["instanceId"], sent["instanceId"], "instanceInfo.instanceId")


@case("PeerEurekaNode.syncInstancesIfTimestampDiffers; a peer that knows better")
def a_newer_instance_of_a_peer_is_adopted(s: Session) -> None:
    sent = registered(s)
    newer = told(s, sent, "Register").item["instanceInfo"] | {
        "lastDirtyTimestamp": str(DIRTY + 5),
        "metadata": {"adopted": "yes"},
    }
    with s.peer.answering(sent["app"], lambda _: {"statusCode": 409, "responseEntity": newer}):
        renew(s, sent)

        def check() -> None:
            s.equal(s.instance(sent).get("metadata"), {"adopted": "yes"}, "metadata")

        s.eventually(check, soon(s))
    s.equal(s.instance(sent)["lastDirtyTimestamp"], DIRTY + 5, "lastDirtyTimestamp")


@case("PeerEurekaNode.syncInstancesIfTimestampDiffers; its override")
def the_override_of_a_newer_instance_is_adopted(s: Session) -> None:
    sent = registered(s)
    newer = told(s, sent, "Register").item["instanceInfo"] | {
        "lastDirtyTimestamp": str(DIRTY + 5),
        "status": "OUT_OF_SERVICE",
        "overriddenStatus": "OUT_OF_SERVICE",
    }
    with s.peer.answering(sent["app"], lambda _: {"statusCode": 409, "responseEntity": newer}):
        renew(s, sent)

        def check() -> None:
            s.equal(s.instance(sent)["status"], "OUT_OF_SERVICE", "status")

        s.eventually(check, soon(s))
    # Nor does the next word of the client undo it.
    s.status(s.send("PUT", s.path(sent, f"?status=UP&lastDirtyTimestamp={DIRTY + 5}")), 200)
    s.equal(s.instance(sent)["status"], "OUT_OF_SERVICE", "status after a renewal")


@case("ReplicationTaskProcessor; congestion")
def what_a_peer_had_no_time_for_is_told_again(s: Session) -> None:
    app = unique("BUSY")
    s.peer.be_unavailable(app, 1)
    sent = s.register(documents.sample(app, f"{app}:one"))
    got = told(s, sent, "Register", 2).item
    s.equal(got["instanceInfo"]["instanceId"], sent["instanceId"], "instanceInfo.instanceId")


@case(
    "ReplicationTaskProcessor; an item of a batch",
    over={"400": (400,), "404": (404,), "500": (500,)},
)
def an_item_that_a_peer_refuses_is_its_own_loss_alone(s: Session, status: int) -> None:
    app = unique("LOSS")
    with s.peer.answering(app, lambda _: {"statusCode": status}):
        sent = s.register(documents.sample(app, f"{app}:one"))
        told(s, sent, "Register")
        registered(s)
    renew(s, sent)
    told(s, sent, "Heartbeat")


@case("AbstractInstanceRegistry.evict; a peer's own lease", waits=True)
def an_eviction_is_not_told(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    after = time.monotonic()
    told(s, sent, "Register")
    gone(s, sent, not_before=0.0, by=latest(s, after))
    s.require("Cancel" not in fenced(s, sent), "no Cancel of who was evicted")
