"""Time: when an instance that no longer renews goes, and what stays of it.

Moments are read before a request for "not earlier than" and after it for "not later than", so that
a slow machine makes no case wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from typing import Any

from conformance import documents
from conformance.case import Catalogue, FailedError, Session, forms
from conformance.documents import FULL, Form, Instance

catalogue = Catalogue()
case = catalogue.case
_TRIES = 20


class LateError(Exception):
    """An answer supposes a lease that may have ended before it came, so it tells nothing."""


def in_time(play: Callable[..., None]) -> Callable[..., None]:
    """Play a case again where this machine was too slow for what a lease allows while it lasts."""

    @wraps(play)
    def again(s: Session, *arguments: Any) -> None:
        for _ in range(_TRIES):
            with suppress(LateError):
                return play(s, *arguments)
        raise FailedError(f"answers within a lease of {s.target.lease} s")

    return again


def renewed(s: Session, sent: Instance, since: float, rest: str = "") -> float:
    """Renew what was registered or renewed ``since`` then; when the request was sent."""
    before = time.monotonic()
    exchange = s.send("PUT", s.path(sent, rest))
    if time.monotonic() >= since + s.target.lease:
        raise LateError
    s.status(exchange, 200)
    return before


def short(s: Session) -> dict[str, int]:
    """The lease that the cases let end."""
    return {"renewalIntervalInSecs": 1, "durationInSecs": s.target.lease}


def listed(s: Session, sent: Instance) -> bool:
    return bool(s.listing("/apps").application(sent["app"]))


def seen(s: Session, sent: Instance, since: float) -> None:
    """It is listed, while its lease since then lasts."""

    def check() -> None:
        is_listed = listed(s, sent)
        if time.monotonic() >= since + s.target.lease:
            raise LateError
        s.require(is_listed, "it to be listed")

    s.eventually(check)


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
@in_time
def an_instance_that_never_renews_goes_after_its_lease(s: Session, status: str) -> None:
    before = time.monotonic()
    sent = s.register(leaseInfo=short(s), status=status)
    after = time.monotonic()
    seen(s, sent, before)
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after))


@case("lease", "Lease.renew; a genuine server adds the duration twice", waits=True)
@in_time
def a_renewed_instance_goes_after_its_lease(s: Session) -> None:
    registering = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    time.sleep(s.target.lease / 2)
    before = renewed(s, sent, registering)
    after = time.monotonic()
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after, leases=2))


@case("lease", "statusUpdate renews", waits=True)
@in_time
def an_override_renews_as_a_heartbeat_does(s: Session) -> None:
    registering = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    time.sleep(s.target.lease / 2)
    before = renewed(s, sent, registering, "/status?value=OUT_OF_SERVICE")
    after = time.monotonic()
    gone(s, sent, not_before=before + s.target.lease, by=latest(s, after, leases=2))


@case("lease", "Lease.renew", waits=True)
@in_time
def an_instance_that_renews_stays(s: Session) -> None:
    last = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    first = None
    for _ in range(9):
        last = renewed(s, sent, last)
        exchange = s.get(s.path(sent))
        if time.monotonic() >= last + s.target.lease:
            raise LateError
        s.status(exchange, 200)
        registered = s.read(documents.instance, exchange)["leaseInfo"]["registrationTimestamp"]
        first = first or registered
        s.equal(registered, first, "registrationTimestamp")
        seen(s, sent, last)
        time.sleep(s.target.lease / 3)


@case("lease", "AbstractInstanceRegistry.register makes a new lease", waits=True)
def a_registration_with_a_longer_lease_gets_it(s: Session) -> None:
    sent = s.register(leaseInfo=short(s))
    s.register({**sent, "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90}})
    time.sleep(2 * s.target.lease + s.target.sweep)
    s.require(listed(s, sent), "it to stay for its new lease")


@case("lease", "AbstractInstanceRegistry.evict; R22", over=forms(*FULL), waits=True)
@in_time
def what_was_evicted_is_in_the_delta_as_deleted(s: Session, form: Form) -> None:
    registering = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    seen(s, sent, registering)
    gone(s, sent, not_before=0, by=latest(s, time.monotonic()))

    def check() -> None:
        exchange = s.get("/apps/delta", form)
        found = s.read(documents.listing, exchange).application(sent["app"])
        s.equal([i["actionType"] for i in found], ["DELETED"], "actionType", exchange)
        s.equal(found[0]["ipAddr"], sent["ipAddr"], "ipAddr", exchange)

    s.eventually(check)


@case("lease", "InstanceResource; the evicted client registers again; R4, R33", waits=True)
@in_time
def an_evicted_client_is_told_and_comes_back(s: Session) -> None:
    registering = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    renewing = renewed(s, sent, registering, "/status?value=OUT_OF_SERVICE")
    seen(s, sent, renewing)
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
