"""Time: when an instance that no longer renews goes, and what stays of it.

Moments are read before a request for "not earlier than" and after it for "not later than", so that
a slow machine makes no case wrong.
"""

from __future__ import annotations

import time
from functools import partial

from conformance import documents
from conformance.case import Catalogue, FailedError, Session, forms
from conformance.documents import FULL, Form, Instance

catalogue = Catalogue()
case = catalogue.case


def short(s: Session) -> dict[str, int]:
    """The lease that the cases let end."""
    return {"renewalIntervalInSecs": 1, "durationInSecs": s.target.lease}


def listed(s: Session, sent: Instance) -> bool:
    return bool(s.listing("/apps").application(sent["app"]))


def unread(s: Session, path: str) -> None:
    s.status(s.get(path), 404)


def gone(s: Session, sent: Instance, *, not_before: float, by: float) -> None:
    """It leaves the list in this span of time (monotonic seconds)."""
    while True:
        asked = time.monotonic()
        present = listed(s, sent)
        if not present:
            break
        if asked > by:
            raise FailedError(f"it to be gone {asked - by:.1f} s ago")
        time.sleep(0.1)
    now = time.monotonic()
    s.require(now >= not_before, f"it to stay for {not_before - now:.1f} s more")


def latest(s: Session, since: float, leases: float = 1) -> float:
    return since + leases * s.target.lease + s.target.sweep + s.target.patience


@case(
    "lease",
    "Lease.isExpired",
    over={status: (status,) for status in documents.STATUSES},
    waits=True,
)
def an_instance_that_never_renews_goes_after_its_lease(s: Session, status: str) -> None:
    before = time.monotonic()
    sent = s.register(leaseInfo=short(s), status=status)
    after = time.monotonic()
    s.eventually(lambda: s.require(listed(s, sent), "it to be listed"))
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after))


@case("lease", "Lease.renew; a genuine server adds the duration twice", waits=True)
def a_renewed_instance_goes_after_its_lease(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    time.sleep(s.target.lease / 2)
    before = time.monotonic()
    s.status(s.send("PUT", s.path(sent)), 200)
    after = time.monotonic()
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after, leases=2))


@case("lease", "statusUpdate renews", waits=True)
def an_override_renews_as_a_heartbeat_does(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    time.sleep(s.target.lease / 2)
    before = time.monotonic()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    after = time.monotonic()
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after, leases=2))


@case("lease", "Lease.renew", waits=True)
def an_instance_that_renews_stays(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    registered = s.instance(sent)["leaseInfo"]["registrationTimestamp"]
    for _ in range(8):
        time.sleep(s.target.lease / 3)
        s.status(s.send("PUT", s.path(sent)), 200)
        s.require(listed(s, sent), "it to stay listed")
    s.equal(
        s.instance(sent)["leaseInfo"]["registrationTimestamp"], registered, "registrationTimestamp"
    )


@case("lease", "AbstractInstanceRegistry.register makes a new lease", waits=True)
def a_registration_with_a_longer_lease_gets_it(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    s.register({**sent, "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90}})
    time.sleep(2 * s.target.lease + s.target.sweep)
    s.require(listed(s, sent), "it to stay for its new lease")


@case("lease", "AbstractInstanceRegistry.evict; R22", over=forms(*FULL), waits=True)
def what_was_evicted_is_in_the_delta_as_deleted(s: Session, form: Form) -> None:
    sent = s.register(leaseInfo=short(s))
    s.eventually(lambda: s.require(listed(s, sent), "it to be listed"))
    gone(s, sent, not_before=0, by=latest(s, time.monotonic()))

    def check() -> None:
        exchange = s.get("/apps/delta", form)
        found = s.read(documents.listing, exchange).application(sent["app"])
        s.equal([i["actionType"] for i in found], ["DELETED"], "actionType", exchange)
        s.equal(found[0]["ipAddr"], sent["ipAddr"], "ipAddr", exchange)

    s.eventually(check)


@case("lease", "InstanceResource; the evicted client registers again; R4, R33", waits=True)
def an_evicted_client_is_told_and_comes_back(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    s.eventually(lambda: s.require(listed(s, sent), "it to be listed"))
    gone(s, sent, not_before=0, by=latest(s, time.monotonic(), leases=2))
    for path in (s.path(sent), f"/instances/{sent['instanceId']}", f"/apps/{sent['app']}"):
        s.eventually(partial(unread, s, path))
    s.status(s.send("PUT", s.path(sent)), 404)
    s.register({**sent, "leaseInfo": None} | {"leaseInfo": {"durationInSecs": 90}})
    got = s.instance(sent)
    s.equal((got["status"], got["overriddenStatus"]), ("UP", "UNKNOWN"), "without the override")

    def check() -> None:
        found = s.listing("/apps/delta").application(sent["app"])
        s.equal([i["actionType"] for i in found], ["ADDED"], "actionType")

    s.eventually(check)


@case("lease", "AbstractInstanceRegistry.getInstanceByAppAndId", over=forms(*FULL), waits=True)
def an_expired_instance_is_not_read_alone(s: Session, form: Form) -> None:
    sent = s.register(leaseInfo=short(s))
    time.sleep(s.target.lease + 0.2)
    s.status(s.get(s.path(sent), form), 404)
    s.status(s.get(f"/instances/{sent['instanceId']}", form), 404)


@case("lease", "AbstractInstanceRegistry.evict leaves the others", waits=True)
def an_eviction_takes_only_what_expired(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    other = s.register({**sent, "instanceId": f"{sent['instanceId']}-2", "leaseInfo": {}})
    deadline = latest(s, time.monotonic())
    while True:
        ids = [i["instanceId"] for i in s.listing("/apps").application(sent["app"])]
        if ids == [other["instanceId"]]:
            return
        s.require(time.monotonic() < deadline, f"only the other to be listed, not {ids}")
        time.sleep(0.1)


@case("self-preservation", "isLeaseExpirationEnabled", waits=True, self_preservation=True)
def nothing_is_evicted_while_few_renew(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    time.sleep(2 * s.target.lease + s.target.sweep)
    s.require(listed(s, sent), "it to stay listed")
    for form in FULL:
        s.equal(s.instance(sent, form)["status"], "UP", "its status, read alone")
    s.status(s.send("PUT", s.path(sent)), 200)


@case("self-preservation", "cancel is not an eviction", self_preservation=True)
def a_cancel_works_as_ever(s: Session) -> None:
    sent = s.register()
    s.status(s.send("DELETE", s.path(sent)), 200)
    s.status(s.get(s.path(sent)), 404)
