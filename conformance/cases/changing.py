"""Delta fetches: what each change looks like, and the hash code that goes with it."""

from __future__ import annotations

from collections.abc import Callable

from conformance import documents
from conformance.case import Catalogue, FailedError, Session, forms
from conformance.documents import FULL, Form, Instance
from conformance.follower import follow

catalogue = Catalogue()
case = catalogue.case


def registered(s: Session) -> Instance:
    return s.register()


def registered_again(s: Session) -> Instance:
    sent = s.register()
    s.register({**sent, "ipAddr": "10.2.2.2", "lastDirtyTimestamp": "1700000000001"})
    return sent


def registered_again_with_older_data(s: Session) -> Instance:
    sent = s.register()
    s.register({**sent, "ipAddr": "10.2.2.2", "lastDirtyTimestamp": "1600000000000"})
    return sent


def given_metadata(s: Session) -> Instance:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/metadata?a=b")), 200)
    return sent


def overridden(s: Session) -> Instance:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=OUT_OF_SERVICE")), 200)
    return sent


def no_longer_overridden(s: Session) -> Instance:
    sent = overridden(s)
    s.status(s.send("DELETE", s.path(sent, "/status?value=DOWN")), 200)
    return sent


def cancelled(s: Session) -> Instance:
    sent = s.register()
    s.status(s.send("DELETE", s.path(sent)), 200)
    return sent


def cancelled_and_registered_again(s: Session) -> Instance:
    sent = cancelled(s)
    return s.register(sent)


def renewed(s: Session) -> Instance:
    sent = overridden(s)
    s.status(s.send("PUT", s.path(sent)), 200)
    return sent


MUTATIONS: dict[str, tuple[Callable[[Session], Instance], str, str]] = {
    "a registration": (registered, "ADDED", "UP"),
    "another registration": (registered_again, "ADDED", "UP"),
    "an older registration": (registered_again_with_older_data, "ADDED", "UP"),
    "metadata": (given_metadata, "ADDED", "UP"),
    "an override": (overridden, "MODIFIED", "OUT_OF_SERVICE"),
    "a removed override": (no_longer_overridden, "MODIFIED", "DOWN"),
    "a cancel": (cancelled, "DELETED", "UP"),
    "a cancel and a registration": (cancelled_and_registered_again, "ADDED", "UP"),
    "a heartbeat after an override": (renewed, "MODIFIED", "OUT_OF_SERVICE"),
}


@case(
    "delta",
    "AbstractInstanceRegistry.getApplicationDeltas; R22, R23",
    over={
        f"{what}, {form.value}": (form, *entry)
        for form in Form
        for what, entry in MUTATIONS.items()
    },
)
def the_delta_shows(
    s: Session, form: Form, mutate: Callable[[Session], Instance], action: str, status: str
) -> None:
    sent = mutate(s)

    def check() -> None:
        exchange = s.get("/apps/delta", form)
        s.status(exchange, 200)
        s.equal(exchange.media_type, form.media_type, "Content-Type", exchange)
        found = s.read(documents.listing, exchange).application(sent["app"])
        s.equal([i["instanceId"] for i in found], [sent["instanceId"]], "once, each", exchange)
        s.equal((found[0]["actionType"], found[0]["status"]), (action, status), "it", exchange)
        for name in ("hostName", "ipAddr", "vipAddress", "port"):
            s.require(name in found[0], f"{name}, also where it was deleted", exchange)
        hash_of_all(s, form)

    s.eventually(check)


def hash_of_all(s: Session, form: Form) -> None:
    """The delta's hash code is the full registry's, read while nothing else changes."""
    for _ in range(20):
        before = s.listing("/apps", form).hash_code
        exchange = s.get("/apps/delta", form)
        code = s.read(documents.listing, exchange).hash_code
        if before == s.listing("/apps", form).hash_code:
            s.equal(code, before, "apps__hashcode of the delta", exchange)
            return
    raise FailedError("a moment in which nothing changes", exchange)


@case("delta", "AbstractInstanceRegistry; R23", over=forms(*Form))
def an_older_change_does_not_hide_a_newer(s: Session, form: Form) -> None:
    first = s.register()
    second = s.register({**first, "instanceId": f"{first['instanceId']}-2"})
    s.status(s.send("PUT", s.path(first, "/status?value=DOWN")), 200)
    s.status(s.send("DELETE", s.path(second)), 200)

    def check() -> None:
        found = s.listing("/apps/delta", form).application(first["app"])
        got = sorted((i["instanceId"], i["actionType"]) for i in found)
        wanted = [(first["instanceId"], "MODIFIED"), (second["instanceId"], "DELETED")]
        s.equal(got, wanted, "the two")

    s.eventually(check)


@case("delta", "heartbeats make no delta entries; R23")
def a_quiet_registry_has_one_version_and_one_content(s: Session) -> None:
    sent = s.register()

    def check() -> None:
        first = s.listing("/apps/delta")
        s.status(s.send("PUT", s.path(sent)), 200)
        second = s.listing("/apps/delta")
        s.require(bool(first.application(sent["app"])), "the change in the delta")
        if (first.version, first.hash_code) == (second.version, second.hash_code):
            ids = set(map(documents.effective_id, first.instances()))
            s.equal(set(map(documents.effective_id, second.instances())), ids, "the content")
        s.require(int(second.version) >= int(first.version) > 0, "a version that never falls")

    s.eventually(check)


@case("delta", "ApplicationsResource.getContainerDifferential; R36", over=forms(*Form))
def a_delta_with_regions_is_the_local_one(s: Session, form: Form) -> None:
    sent = s.register()

    def check() -> None:
        found = s.listing("/apps/delta?regions=nowhere", form).application(sent["app"])
        s.equal([i["instanceId"] for i in found], [sent["instanceId"]], "the ids")

    s.eventually(check)


CHANGES, WRITERS = 3000, 6


@case("delta", "DiscoveryClient.getAndUpdateDelta; R21, R22, R23", over=forms(*FULL))
def a_follower_of_thousands_of_changes_needs_one_full_fetch(s: Session, form: Form) -> None:
    follow(s, form, CHANGES, WRITERS)
