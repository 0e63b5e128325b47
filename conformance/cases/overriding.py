"""Status overrides, metadata updates, and the rules that decide an instance's status."""

from __future__ import annotations

import itertools
import time

from conformance.case import Catalogue, Session, forms, unique
from conformance.documents import FULL, STATUSES, Form

catalogue = Catalogue()
case = catalogue.case
REPLICATED = {"x-netflix-discovery-replication": "true"}


def ruled(reported: str, override: str | None, existing: str | None, replicated: bool) -> str:
    """The status that the rules give, first match wins (FirstMatchWinsCompositeRule)."""
    if reported not in ("UP", "OUT_OF_SERVICE"):
        return reported  # DownOrStartingRule
    if override is not None:
        return override  # OverrideExistsRule
    if not replicated and existing in ("UP", "OUT_OF_SERVICE"):
        return existing  # LeaseExistsRule
    return reported  # AlwaysMatchInstanceStatusRule


CHAIN = {
    f"{first}, overridden {override}, then {second}{', told by a peer' if replicated else ''}": (
        first,
        override,
        second,
        replicated,
    )
    for first, override, second, replicated in itertools.product(
        STATUSES, (None, *STATUSES), STATUSES, (False, True)
    )
}


@case("status rules", "InstanceStatusOverrideRule and its chain; R32", over=CHAIN)
def an_instance_first(
    s: Session, first: str, override: str | None, second: str, replicated: bool
) -> None:
    sent = s.register(status=first)
    status, stored = first, None
    if override is not None:
        s.status(s.send("PUT", s.path(sent, f"/status?value={override}")), 200)
        if override != status:  # the same status stores nothing
            status = stored = override
    s.equal(s.instance(sent)["status"], status, "status after the override")
    headers = REPLICATED if replicated else {}
    again = {**sent, "status": second, "lastDirtyTimestamp": "1700000000001"}
    s.register(again, headers=headers)
    status = ruled(second, stored, status, replicated)
    got = s.instance(sent)
    s.equal(got["status"], status, "status after registering again")
    s.equal(got["overriddenStatus"], stored or "UNKNOWN", "overriddenStatus")
    status = ruled(status, stored, status, replicated)
    renewed = s.send("PUT", s.path(sent), None, headers)
    s.status(renewed, 404 if status == "UNKNOWN" else 200)
    s.equal(s.instance(sent)["status"], status, "status after a heartbeat")


@case(
    "status override",
    "InstanceResource.statusUpdate; R6",
    over={f"{status}, {form.value}": (form, status) for form in FULL for status in STATUSES},
)
def a_status_is_set_and_listed(s: Session, form: Form, status: str) -> None:
    sent = s.register(status="STARTING" if status == "UP" else "UP")
    exchange = s.send("PUT", s.path(sent, f"/status?value={status}"), None, form.headers)
    s.status(exchange, 200)
    s.equal(exchange.body, "", "body", exchange)

    def check() -> None:
        (got,) = s.listing("/apps", form).application(sent["app"])
        s.equal(got["status"], status, "status")
        s.equal(got["overriddenStatus"], status, "overriddenStatus")
        s.equal(got["actionType"], "MODIFIED", "actionType")

    s.eventually(check)


@case("status override", "InstanceResource.statusUpdate")
def a_status_of_an_unknown_instance_is_404(s: Session) -> None:
    path = f"/apps/{unique('NOPE')}/x/status"
    s.status(s.send("PUT", f"{path}?value=DOWN"), 404)
    s.status(s.send("PUT", f"{path}?value=NONSENSE"), 404)
    s.status(s.send("DELETE", path), 404)


@case(
    "status override",
    "InstanceStatus.valueOf; a 500 on a genuine server",
    over={
        "an unknown word": ("?value=READY",),
        "lower case": ("?value=down",),
        "none": ("",),
        "an empty one": ("?value=",),
    },
)
def a_status_that_is_none_is_refused(s: Session, query: str) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, f"/status{query}")), 400, 500)
    got = s.instance(sent)
    s.equal((got["status"], got["overriddenStatus"]), ("UP", "UNKNOWN"), "nothing changed")


@case("status override", "AbstractInstanceRegistry.statusUpdate")
def setting_the_status_that_it_has_stores_no_override(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=UP")), 200)
    s.equal(s.instance(sent)["overriddenStatus"], "UNKNOWN", "overriddenStatus")


@case("status override", "AbstractInstanceRegistry.statusUpdate")
def setting_it_up_is_an_override_too(s: Session) -> None:
    sent = s.register()
    for status in ("OUT_OF_SERVICE", "UP"):
        s.status(s.send("PUT", s.path(sent, f"/status?value={status}")), 200)
    s.equal(s.instance(sent)["overriddenStatus"], "UP", "overriddenStatus")


@case(
    "status override",
    "AbstractInstanceRegistry.statusUpdate",
    over={"a newer": (5, 1700000000005), "an older": (-5, 1700000000000)},
)
def a_status_may_bring_a_dirty_timestamp(s: Session, offset: int, wanted: int) -> None:
    sent = s.register()
    query = f"/status?value=DOWN&lastDirtyTimestamp={1700000000000 + offset}"
    s.status(s.send("PUT", s.path(sent, query)), 200)
    s.equal(s.instance(sent)["lastDirtyTimestamp"], wanted, "lastDirtyTimestamp")


@case("status override", "AbstractInstanceRegistry.statusUpdate renews the lease")
def a_status_renews_the_lease(s: Session) -> None:
    sent = s.register()
    before = s.instance(sent)["leaseInfo"]["lastRenewalTimestamp"]
    time.sleep(0.02)
    s.status(s.send("PUT", s.path(sent, "/status?value=DOWN")), 200)
    after = s.instance(sent)["leaseInfo"]["lastRenewalTimestamp"]
    s.require(after > before, "lastRenewalTimestamp to have moved")


@case(
    "status override",
    "InstanceResource.deleteStatusUpdate; R6",
    over={f"to {value}": (value,) for value in (None, *STATUSES)},
)
def an_override_is_removed(s: Session, value: str | None) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    query = "/status" if value is None else f"/status?value={value}"
    exchange = s.send("DELETE", s.path(sent, query))
    s.status(exchange, 200)
    s.equal(exchange.body, "", "body", exchange)
    got = s.instance(sent)
    s.equal(got["status"], value or "UNKNOWN", "status")
    s.equal(got["overriddenStatus"], "UNKNOWN", "overriddenStatus")
    s.equal(got["actionType"], "MODIFIED", "actionType")


@case("status override", "AbstractInstanceRegistry.deleteStatusOverride")
def removing_no_override_changes_nothing(s: Session) -> None:
    sent = s.register()
    s.status(s.send("DELETE", s.path(sent, "/status?value=DOWN")), 200)
    got = s.instance(sent)
    s.equal((got["status"], got["actionType"]), ("UP", "ADDED"), "status and actionType")


@case("status override", "the way back after a removed override; R33")
def a_client_comes_back_after_its_override_was_removed(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    s.status(s.send("DELETE", s.path(sent, "/status")), 200)
    s.status(s.send("PUT", s.path(sent)), 404)
    s.register({**sent, "lastDirtyTimestamp": "1700000000001"})
    s.equal(s.instance(sent)["status"], "UP", "status")


@case("status override", "AbstractInstanceRegistry.internalCancel")
def an_override_goes_with_its_instance(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    s.status(s.send("DELETE", s.path(sent)), 200)
    s.register(sent)
    got = s.instance(sent)
    s.equal((got["status"], got["overriddenStatus"]), ("UP", "UNKNOWN"), "after coming back")


@case("status override", "the override map has the instance's id alone for a key")
def an_override_is_by_the_id_alone(s: Session) -> None:
    shared = unique("shared")
    first = s.register(instanceId=shared)
    s.status(s.send("PUT", s.path(first, "/status?value=OUT_OF_SERVICE")), 200)
    second = s.register(instanceId=shared)
    s.equal(s.instance(second)["status"], "OUT_OF_SERVICE", "status of the other application's")


@case("metadata", "InstanceResource.updateMetadata; R6", over=forms(*FULL))
def metadata_is_merged(s: Session, form: Form) -> None:
    sent = s.register()
    path = s.path(sent, "/metadata?zone=b&new=%D1%8F%20%26&new=second")
    exchange = s.send("PUT", path, None, form.headers)
    s.status(exchange, 200)
    s.equal(exchange.body, "", "body", exchange)
    wanted = {"zone": "b", "management.port": "8081", "new": "я &"}
    s.equal(s.instance(sent, form)["metadata"], wanted, "metadata")


@case("metadata", "InstanceResource.updateMetadata registers the instance again")
def metadata_is_a_new_registration_with_the_old_timestamp(s: Session) -> None:
    sent = s.register()
    before = s.instance(sent)
    time.sleep(0.02)
    s.status(s.send("PUT", s.path(sent, "/metadata?a=b")), 200)
    after = s.instance(sent)
    s.equal(after["lastDirtyTimestamp"], before["lastDirtyTimestamp"], "lastDirtyTimestamp")
    s.equal(after["actionType"], "ADDED", "actionType")
    moved = "registrationTimestamp"
    s.require(after["leaseInfo"][moved] > before["leaseInfo"][moved], f"{moved} to have moved")


@case("metadata", "InstanceResource.updateMetadata")
def metadata_of_an_unknown_instance_is_404(s: Session) -> None:
    s.status(s.send("PUT", f"/apps/{unique('NOPE')}/x/metadata?a=b"), 404)


@case("metadata", "AbstractInstanceRegistry.register")
def metadata_leaves_an_override_alone(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    s.status(s.send("PUT", s.path(sent, "/metadata?a=b")), 200)
    got = s.instance(sent)
    both = (got["status"], got["overriddenStatus"])
    s.equal(both, ("OUT_OF_SERVICE", "OUT_OF_SERVICE"), "status and overriddenStatus")
