"""Reads: the whole registry, one application, VIPs and single instances, in every form."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, forms, quoted, unique
from conformance.documents import COMPACT_ORDER, FULL, FULL_ORDER, LEASE_ORDER, Form, sample

catalogue = Catalogue()
case = catalogue.case
EVERY = forms(*Form)


@case(
    "full fetch",
    "ApplicationsResource.getContainers; R1, R19, R20",
    over={
        f"{form.value}, {path}": (form, path)
        for form, path in itertools.product(Form, ("/apps", "/apps/"))
    },
)
def the_registry_holds_what_was_registered(s: Session, form: Form, path: str) -> None:
    sent = s.register()

    def check() -> None:
        exchange = s.get(path, form)
        s.status(exchange, 200)
        s.equal(exchange.media_type, form.media_type, "Content-Type", exchange)
        found = s.read(documents.listing, exchange)
        s.equal(found.version, "1", "versions__delta of a full answer", exchange)
        s.equal(
            [i["instanceId"] for i in found.application(sent["app"])], [sent["instanceId"]], "ids"
        )

    s.eventually(check)


@case("full fetch", "Applications.getReconcileHashCode; R21, R26", over=EVERY)
def the_hash_code_is_that_of_what_is_listed(s: Session, form: Form) -> None:
    app = unique("HASH")
    for status in documents.STATUSES:
        s.register(sample(app, f"{app}:{status}", status=status))

    def check() -> None:
        exchange = s.get("/apps", form)
        found = s.read(documents.listing, exchange)
        s.equal(len(found.application(app)), 5, "how many of them are listed")
        statuses = [i["status"] for i in found.instances()]
        s.equal(found.hash_code, documents.hash_code(statuses), "apps__hashcode", exchange)
        s.require(set(statuses) <= set(documents.STATUSES), "only the five statuses", exchange)

    s.eventually(check)


def ordered(found: Any, form: Form) -> None:
    order = COMPACT_ORDER if form.is_compact else FULL_ORDER
    places = [order.index(name) for name in found]
    if places != sorted(places):
        raise ValueError(f"the fields stand in another order: {list(found)}")


@case("full fetch", "codecs; R25, R27", over=EVERY)
def an_instance_has_the_standard_fields_in_their_order(s: Session, form: Form) -> None:
    sent = s.register(sid="s-1", asgName="asg", appGroupName="GROUP")

    def check() -> None:
        exchange = s.get(f"/apps/{sent['app']}", form)
        s.status(exchange, 200)
        ((got,),) = (s.read(documents.application, exchange)[1],)
        wanted = (
            set(COMPACT_ORDER) if form.is_compact else set(FULL_ORDER) - {"secureHealthCheckUrl"}
        )
        s.equal(set(got), wanted, "the names of the fields", exchange)
        s.read(lambda _: ordered(got, form), exchange)
        if not form.is_compact:
            s.equal(tuple(got["leaseInfo"]), LEASE_ORDER, "the names in leaseInfo", exchange)

    s.eventually(check)


@case("full fetch", "LegacyJacksonJson; R14, R15, R20")
def json_has_texts_and_numbers_where_clients_expect_them(s: Session) -> None:
    sent = s.register()
    got = json.loads(s.get(s.path(sent)).body)["instance"]
    kinds = {
        "lastUpdatedTimestamp": str,
        "lastDirtyTimestamp": str,
        "isCoordinatingDiscoveryServer": str,
        "countryId": int,
    }
    s.equal({n: type(got[n]) for n in kinds}, kinds, "the JSON types")
    s.equal({type(v) for v in got["leaseInfo"].values()}, {int}, "the JSON types in leaseInfo")
    s.equal(got["port"], {"$": 8080, "@enabled": "true"}, "port")


@case("full fetch", "JacksonJsonMini; compact", column="json compact")
def compact_json_has_its_timestamp_as_a_number(s: Session) -> None:
    sent = s.register()
    body = s.eventually(lambda: _found(s, f"/apps/{sent['app']}", Form.JSON_COMPACT)).body
    got = json.loads(body)["application"]["instance"][0]
    s.equal(type(got["lastUpdatedTimestamp"]), int, "the type of lastUpdatedTimestamp")


def _found(s: Session, path: str, form: Form) -> Any:
    exchange = s.get(path, form)
    s.status(exchange, 200)
    return exchange


@case("full fetch", "XmlXStream; R28", over=forms(Form.XML, Form.XML_COMPACT))
def xml_has_no_declaration_and_no_namespace(s: Session, form: Form) -> None:
    s.register()
    exchange = s.get("/apps", form)
    s.require(exchange.body.startswith("<applications>"), "<applications> at the start", exchange)
    tags = {node.tag for node in ElementTree.fromstring(exchange.body).iter()}
    s.require(not any("}" in tag for tag in tags), "no namespaces", exchange)


@case(
    "full fetch",
    "ApplicationsResource, gzip; R34",
    over={
        f"{path}, {form.value}": (path, form)
        for path, form in itertools.product(("/apps", "/apps/delta"), Form)
    },
    column="gzip",
)
def gzip_comes_where_it_is_asked_for_and_only_there(s: Session, path: str, form: Form) -> None:
    sent = s.register()

    def check() -> None:
        plain = s.get(path, form)
        s.require("content-encoding" not in plain.headers, "no Content-Encoding unasked", plain)
        packed = s.get(path, form, Accept_Encoding="gzip, deflate")
        s.equal(packed.headers.get("content-encoding"), "gzip", "Content-Encoding", packed)
        s.equal(packed.media_type, form.media_type, "Content-Type", packed)
        found = s.read(documents.listing, packed).application(sent["app"])
        s.equal([i["instanceId"] for i in found], [sent["instanceId"]], "the ids", packed)

    s.eventually(check)


@case("one application", "ApplicationResource.getApplication; R31", over=EVERY)
def an_application_lists_its_instances(s: Session, form: Form) -> None:
    app = unique("APP")
    for number in range(3):
        s.register(sample(app, f"{app}:{number}"))

    def check() -> None:
        exchange = s.get(f"/apps/{app.lower()}", form)
        s.status(exchange, 200)
        s.equal(exchange.media_type, form.media_type, "Content-Type", exchange)
        name, found = s.read(documents.application, exchange)
        s.equal(name, app, "name", exchange)
        ids = sorted(i["instanceId"] for i in found)
        s.equal(ids, [f"{app}:{n}" for n in range(3)], "the ids", exchange)

    s.eventually(check)


@case("one application", "ApplicationResource.getApplication; R31", over=EVERY)
def an_unknown_application_is_404(s: Session, form: Form) -> None:
    s.status(s.get(f"/apps/{unique('NOPE')}", form), 404)


@case("one application", "AbstractInstanceRegistry.internalCancel; R19", over=EVERY)
def an_application_leaves_with_its_last_instance(s: Session, form: Form) -> None:
    sent = s.register()
    s.eventually(lambda: _found(s, f"/apps/{sent['app']}", form))
    s.status(s.send("DELETE", s.path(sent)), 200)
    s.eventually(lambda: s.status(s.get(f"/apps/{sent['app']}", form), 404))
    s.require(not s.listing("/apps", form).application(sent["app"]), "it to be gone from the list")


@case("one instance", "InstanceResource.getInstanceInfo; R31", over=forms(*FULL))
def an_instance_is_found_through_its_application(s: Session, form: Form) -> None:
    sent = s.register()
    exchange = s.get(s.path(sent), form)
    s.status(exchange, 200)
    s.equal(exchange.media_type, form.media_type, "Content-Type", exchange)
    got = s.read(documents.instance, exchange)
    s.equal(got["instanceId"], sent["instanceId"], "instanceId", exchange)
    s.status(s.get(f"/apps/{sent['app']}/nobody", form), 404)


@case("one instance", "InstancesResource.getById; R31", over=forms(*FULL))
def an_instance_is_found_by_its_id_alone(s: Session, form: Form) -> None:
    sent = s.register()
    path = f"/instances/{quoted(sent['instanceId'])}"
    exchange = s.get(path, form)
    s.status(exchange, 200)
    got = s.read(documents.instance, exchange)
    s.equal(got["app"], sent["app"], "app", exchange)
    s.status(s.get(f"/instances/{unique('nobody')}", form), 404)
    s.status(s.send("DELETE", s.path(sent)), 200)
    s.status(s.get(path, form), 404)


@case("one instance", "the compact header is for lists", over=forms(*FULL))
def a_single_instance_is_always_full(s: Session, form: Form) -> None:
    sent = s.register()
    got = s.read(documents.instance, s.get(s.path(sent), form, X_Eureka_Accept="compact"))
    s.equal(got["metadata"], sent["metadata"], "metadata")


@case("one instance", "XStream version marker, an inherited oddity")
def a_single_instance_in_xml_shows_out_of_service_and_unknown_as_down(s: Session) -> None:
    for status in ("OUT_OF_SERVICE", "UNKNOWN"):
        sent = s.register(status=status)
        s.equal(s.instance(sent, Form.XML)["status"], "DOWN", f"{status} of one instance in XML")
        s.equal(s.instance(sent, Form.JSON)["status"], status, f"{status} in JSON")

        def check(sent: Any = sent, status: str = status) -> None:
            (listed,) = s.listing("/apps", Form.XML).application(sent["app"])
            s.equal(listed["status"], status, f"{status} in an XML list")

        s.eventually(check)


VIPS = {
    f"{form.value}, {secure}": (form, path, field)
    for form in Form
    for secure, path, field in (
        ("vips", "/vips/", "vipAddress"),
        ("svips", "/svips/", "secureVipAddress"),
    )
}


@case("vip", "AbstractVIPResource; R20, R30", over=VIPS)
def a_vip_lists_who_answers_to_it(s: Session, form: Form, path: str, field: str) -> None:
    app, vip = unique("VIP"), unique("vip")
    s.register(sample(app, f"{app}:1", **{field: f"{vip},other"}))
    s.register(sample(app, f"{app}:2", **{field: vip, "status": "DOWN"}))
    s.register(sample(app, f"{app}:3", **{field: vip.upper()}))

    def check() -> None:
        exchange = s.get(path + vip, form)
        s.status(exchange, 200)
        s.equal(exchange.media_type, form.media_type, "Content-Type", exchange)
        found = s.read(documents.listing, exchange)
        ids = sorted(i["instanceId"] for i in found.instances())
        s.equal(ids, [f"{app}:1", f"{app}:2"], "who answers to it, DOWN too", exchange)
        s.equal(found.version, "-1", "versions__delta", exchange)
        s.equal(found.hash_code, "DOWN_1_UP_1_", "apps__hashcode of what is listed", exchange)

    s.eventually(check)


@case("vip", "AbstractVIPResource; R30", over=VIPS)
def an_unknown_vip_is_an_empty_list(s: Session, form: Form, path: str, field: str) -> None:
    del field
    exchange = s.get(path + unique("nope"), form)
    s.status(exchange, 200)
    found = s.read(documents.listing, exchange)
    s.equal((found.version, found.hash_code, found.applications), ("-1", "", {}), "the list")


@case("vip", "a constructor of a Go client sends a URL for a VIP; R30")
def a_vip_may_hold_a_colon(s: Session) -> None:
    vip = unique("host") + ":9004"
    sent = s.register(vipAddress=vip)

    def check() -> None:
        for path in (f"/vips/{vip}", f"/vips/{vip.replace(':', '%3A')}"):
            found = s.listing(path).instances()
            s.equal([i["instanceId"] for i in found], [sent["instanceId"]], "the ids")

    s.eventually(check)


@case(
    "vip",
    "AbstractInstanceRegistry invalidates the VIP",
    over={"a register": ("register",), "a cancel": ("cancel",), "a status": ("status",)},
)
def a_vip_is_current_after(s: Session, change: str) -> None:
    vip = unique("vip")
    sent = s.register(vipAddress=vip)
    s.eventually(lambda: s.equal(s.listing(f"/vips/{vip}").hash_code, "UP_1_", "hash"))
    if change == "register":
        s.register(vipAddress=vip)
        wanted = "UP_2_"
    elif change == "cancel":
        s.status(s.send("DELETE", s.path(sent)), 200)
        wanted = ""
    else:
        s.status(s.send("PUT", s.path(sent, "/status?value=DOWN")), 200)
        wanted = "DOWN_1_"
    s.eventually(lambda: s.equal(s.listing(f"/vips/{vip}").hash_code, wanted, "apps__hashcode"))


@case("full fetch", "ApplicationsResource; R36")
def headers_and_parameters_without_meaning_change_nothing(s: Session) -> None:
    sent = s.register()

    def check() -> None:
        exchange = s.get(
            "/apps/?regions=nowhere&fancy=1",
            DiscoveryIdentity_Name="DefaultClient",
            DiscoveryIdentity_Version="1.4",
            DiscoveryIdentity_Id="10.0.0.1",
            X_Discovery_AllowRedirect="true",
            X_Eureka_Accept="full",
        )
        s.status(exchange, 200)
        found = s.read(documents.listing, exchange).application(sent["app"])
        s.equal([i["instanceId"] for i in found], [sent["instanceId"]], "the ids", exchange)

    s.eventually(check)
