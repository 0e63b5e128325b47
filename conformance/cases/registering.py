"""Registration: what is accepted, what it becomes, and what is refused."""

from __future__ import annotations

from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, forms, unique
from conformance.documents import AMAZON_CLASS, FULL, PLAIN_CLASS, Form, Instance, sample

catalogue = Catalogue()
case = catalogue.case


def fresh(**fields: Any) -> Instance:
    app = unique("REG")
    return sample(app, f"{app.lower()}:one", **fields)


@case("register", "ApplicationResource.addInstance; R3", over=forms(*FULL))
def a_registration_is_answered_204_with_nothing(s: Session, form: Form) -> None:
    exchange = s.post(fresh(), form)
    s.status(exchange, 204)
    s.equal(exchange.body, "", "body", exchange)


@case("register", "ApplicationResource.addInstance; R9, R31", over=forms(*FULL))
def every_field_comes_back_as_it_was_sent(s: Session, form: Form) -> None:
    sent = fresh(
        sid="site-1",
        appGroupName="GROUP",
        asgName="asg-1",
        secureHealthCheckUrl="https://web-1.local:8443/health",
        countryId=44,
    )
    s.register(sent, form)
    for reading in FULL:
        got = s.instance(sent, reading)
        for name, value in sent.items():
            if name in ("port", "securePort"):
                value = (value["$"], value["@enabled"] == "true")
            elif name == "lastDirtyTimestamp":
                value = int(value)
            elif name == "leaseInfo":
                s.equal({k: got[name][k] for k in value}, value, f"{name} in {reading.value}")
                continue
            s.equal(got.get(name), value, f"{name} in {reading.value}")
        s.equal(got["isCoordinatingDiscoveryServer"], "false", "isCoordinatingDiscoveryServer")
        s.equal(got["actionType"], "ADDED", "actionType")


@case("register", "ApplicationResource.addInstance", over=forms(*FULL))
def the_least_that_is_accepted_gets_the_defaults(s: Session, form: Form) -> None:
    least = {
        "hostName": unique("host"),
        "app": unique("MIN"),
        "ipAddr": "10.0.0.9",
        "dataCenterInfo": {"@class": PLAIN_CLASS, "name": "MyOwn"},
    }
    s.register(least, form)
    got = s.instance(least)
    wanted = {
        "status": "UP",
        "overriddenStatus": "UNKNOWN",
        "port": (7001, True),
        "securePort": (7002, False),
        "countryId": 1,
        "metadata": {},
        "isCoordinatingDiscoveryServer": "false",
    }
    s.equal({name: got.get(name) for name in wanted}, wanted, "the defaults")
    lease = got["leaseInfo"]
    s.equal((lease["renewalIntervalInSecs"], lease["durationInSecs"]), (30, 90), "lease defaults")
    for absent in ("vipAddress", "sid", "asgName", "appGroupName", "homePageUrl"):
        s.require(absent not in got, f"{absent} to be left out where it was not sent")


@case("register", "CloudJacksonJson writes nulls; R15")
def null_counts_as_absent(s: Session) -> None:
    nulls = ("appGroupName", "asgName", "actionType", "sid", "homePageUrl", "vipAddress")
    sent = {**fresh(vipAddress=None, homePageUrl=None), **dict.fromkeys(nulls)}
    s.register(sent)
    got = s.instance(sent)
    for name in ("appGroupName", "asgName", "homePageUrl", "vipAddress", "sid"):
        s.require(name not in got, f"{name} to be left out where null was sent")


@case(
    "register",
    "LegacyJacksonJson, InstanceInfo deserializer; R13, R15, R16, R18",
    over={
        "ports as texts": (
            {"port": {"$": "81", "@enabled": True}, "securePort": {"$": "444", "@enabled": "true"}},
            {"port": (81, True), "securePort": (444, True)},
        ),
        "port number zero": (
            {"securePort": {"$": 0, "@enabled": "false"}},
            {"securePort": (0, False)},
        ),
        "a port without its switch": (
            {"port": {"$": 82}, "securePort": {"$": 83}},
            {"port": (82, True), "securePort": (83, False)},
        ),
        "timestamps as numbers": (
            {"lastDirtyTimestamp": 1700000000123, "lastUpdatedTimestamp": 5},
            {"lastDirtyTimestamp": 1700000000123},
        ),
        "lower-case overriddenstatus": (
            {"overriddenStatus": None, "overriddenstatus": "OUT_OF_SERVICE"},
            {"overriddenStatus": "OUT_OF_SERVICE", "status": "OUT_OF_SERVICE"},
        ),
        "camel-case overriddenStatus": (
            {"overriddenStatus": "OUT_OF_SERVICE"},
            {"overriddenStatus": "OUT_OF_SERVICE", "status": "OUT_OF_SERVICE"},
        ),
        "an empty override": (
            {"overriddenStatus": None, "overriddenstatus": ""},
            {"overriddenStatus": "UNKNOWN"},
        ),
        "an unknown status word": ({"status": "READY"}, {"status": "UNKNOWN"}),
        "a status in lower case": ({"status": "up"}, {"status": "UNKNOWN"}),
        "no status": ({"status": None}, {"status": "UP"}),
        "a country as text": ({"countryId": "49"}, {"countryId": 49}),
        "a metadata marker": (
            {"metadata": {"@class": "java.util.Collections$EmptyMap"}},
            {"metadata": {}},
        ),
        "metadata of other types": (
            {"metadata": {"n": 1, "b": True, "f": 1.5}},
            {"metadata": {"n": "1", "b": "true", "f": "1.5"}},
        ),
        "no metadata": ({"metadata": None}, {"metadata": {}}),
        "an unused site": ({"sid": "na"}, {"sid": None}),
        "a group in lower case": ({"appGroupName": "grp"}, {"appGroupName": "GRP"}),
        "unknown fields": ({"identifyingAttribute": "x", "fancy": 7}, {"status": "UP"}),
        "what the server sets itself": (
            {"isCoordinatingDiscoveryServer": True, "actionType": "DELETED"},
            {"isCoordinatingDiscoveryServer": "false", "actionType": "ADDED"},
        ),
        "the other plain class": (
            {"dataCenterInfo": {"@class": "com.netflix.appinfo.MyDataCenterInfo", "name": "MyOwn"}},
            {"dataCenterInfo": {"@class": PLAIN_CLASS, "name": "MyOwn"}},
        ),
        "the data center Netflix": (
            {"dataCenterInfo": {"name": "Netflix", "@class": PLAIN_CLASS}},
            {"dataCenterInfo": {"@class": PLAIN_CLASS, "name": "Netflix"}},
        ),
        "Amazon": (
            {
                "dataCenterInfo": {
                    "@class": AMAZON_CLASS,
                    "name": "Amazon",
                    "metadata": {"instance-id": "i-1", "availability-zone": "us-east-1c"},
                }
            },
            {
                "dataCenterInfo": {
                    "@class": AMAZON_CLASS,
                    "name": "Amazon",
                    "metadata": {"instance-id": "i-1", "availability-zone": "us-east-1c"},
                }
            },
        ),
        "signs and letters": (
            {"homePageUrl": "http://h/?a=b&c=<d>\"e'", "metadata": {"ключ": "значение ☃ & <b>"}},
            {"homePageUrl": "http://h/?a=b&c=<d>\"e'", "metadata": {"ключ": "значение ☃ & <b>"}},
        ),
        "odd metadata keys": (
            {"metadata": {"a_b": "1", "$x": "2", "x y": "3", "1n": "4", "k&": "5", "a.b-c": "6"}},
            {"metadata": {"a_b": "1", "$x": "2", "x y": "3", "1n": "4", "k&": "5", "a.b-c": "6"}},
        ),
        "an empty VIP": ({"vipAddress": ""}, {"vipAddress": ""}),
        "an empty metadata value": ({"metadata": {"e": ""}}, {"metadata": {"e": ""}}),
        "a URL for a VIP": (
            {"vipAddress": "http://localhost:9004"},
            {"vipAddress": "http://localhost:9004"},
        ),
    },
    column="json",
)
def a_client_may_send(s: Session, fields: Instance, wanted: Instance) -> None:
    given = {k: v for k, v in fields.items() if v is not None}
    sent = {**fresh(**dict.fromkeys(k for k in fields if fields[k] is None)), **given}
    s.register(sent)
    for form in FULL:
        got = s.instance(sent, form)
        # A single instance in XML shows these two as DOWN, which has a case of its own.
        want = dict(wanted)
        if form is Form.XML and want.get("status") in ("OUT_OF_SERVICE", "UNKNOWN"):
            want["status"] = "DOWN"
        s.equal({name: got.get(name) for name in want}, want, f"the fields in {form.value}")


@case(
    "register",
    "XStream InstanceInfoConverter; R9, R17, R28",
    over={
        "status in lower case": ({"status": "down"}, {"status": "DOWN"}),
        "an override in lower case": (
            {"overriddenStatus": None, "overriddenstatus": "down"},
            {"overriddenStatus": "DOWN"},
        ),
        "an unknown status word": ({"status": "READY"}, {"status": "UNKNOWN"}),
        "a group in lower case": ({"appGroupName": "grp"}, {"appGroupName": "grp"}),
        "a data center without a class": (
            {"dataCenterInfo": {"name": "MyOwn", "metadata": {}}},
            {"dataCenterInfo": {"@class": PLAIN_CLASS, "name": "MyOwn"}},
        ),
        "Amazon in lower case": (
            {"dataCenterInfo": {"name": "amazon", "metadata": {"instance-id": "i-7"}}},
            {
                "dataCenterInfo": {
                    "@class": AMAZON_CLASS,
                    "name": "Amazon",
                    "metadata": {"instance-id": "i-7"},
                }
            },
        ),
        "unknown elements": ({"fancy": "x", "nested": {"a": "b"}}, {"status": "UP"}),
        "a disabled secure port of zero": (
            {"securePort": {"$": 0, "@enabled": "false"}},
            {"securePort": (0, False)},
        ),
        "lease numbers of zero": (
            {"leaseInfo": {"renewalIntervalInSecs": 0, "durationInSecs": 0}},
            {"status": "UP"},
        ),
        "letters and signs": ({"homePageUrl": "http://ü/<&>"}, {"homePageUrl": "http://ü/<&>"}),
    },
    column="xml",
)
def an_xml_client_may_send(s: Session, fields: Instance, wanted: Instance) -> None:
    given = {k: v for k, v in fields.items() if v is not None}
    sent = {**fresh(**dict.fromkeys(k for k in fields if fields[k] is None)), **given}
    s.register(sent, Form.XML)
    got = s.instance(sent)
    s.equal({name: got.get(name) for name in wanted}, wanted, "the fields")


@case("register", "XStream reader")
def xml_may_have_a_declaration_comments_and_blanks(s: Session) -> None:
    sent = fresh()
    text = documents.xml_body(sent).replace("><hostName>", ">\n  <!-- a note -->\n  <hostName>")
    s.sweep_later(sent["app"], sent)
    exchange = s.send(
        "POST",
        f"/apps/{sent['app']}",
        f'<?xml version="1.0" encoding="UTF-8"?>\n{text}',
        {"Content-Type": "application/xml"},
    )
    s.status(exchange, 204)
    s.equal(s.instance(sent)["hostName"], sent["hostName"], "hostName")


@case(
    "register",
    "LeaseInfo.Builder; R18",
    over={
        "zero": ({"renewalIntervalInSecs": 0, "durationInSecs": 0}, (30, 90)),
        "below zero": ({"renewalIntervalInSecs": -1, "durationInSecs": -5}, (30, 90)),
        "small": ({"renewalIntervalInSecs": 1, "durationInSecs": 3}, (1, 3)),
        "texts": ({"renewalIntervalInSecs": "7", "durationInSecs": "600"}, (7, 600)),
        "foreign keys": ({"evictionDurationInSecs": 5}, (30, 90)),
        "absent": (None, (30, 90)),
    },
)
def a_lease_of(s: Session, lease: Instance | None, wanted: tuple[int, int]) -> None:
    sent = fresh(leaseInfo=lease)
    s.register(sent)
    for form in FULL:
        got = s.instance(sent, form)["leaseInfo"]
        s.equal((got["renewalIntervalInSecs"], got["durationInSecs"]), wanted, form.value)


@case("register", "PortWrapper; R14", over=forms(*FULL))
def both_ports_are_always_there_with_their_switches(s: Session, form: Form) -> None:
    sent = s.register(fresh(port=None, securePort=None))
    exchange = s.get(s.path(sent), form)
    got = s.read(documents.instance, exchange)
    s.require("port" in got and "securePort" in got, "both ports", exchange)


@case(
    "register",
    "InstanceInfo.getId; R12",
    over={
        "the host name where there is no id": ({"instanceId": None}, "hostName"),
        "the host name where the id is empty": ({"instanceId": ""}, "hostName"),
        "Amazon's id where there is no id": (
            {
                "instanceId": None,
                "dataCenterInfo": {
                    "@class": AMAZON_CLASS,
                    "name": "Amazon",
                    "metadata": {"instance-id": "i-0042"},
                },
            },
            "amazon",
        ),
    },
)
def an_instance_is_known_by(s: Session, fields: Instance, by: str) -> None:
    sent = {**fresh(hostName=unique("host"), instanceId=None), **fields}
    sent = {k: v for k, v in sent.items() if v is not None}
    s.register(sent)
    identity = sent["hostName"] if by == "hostName" else "i-0042"
    exchange = s.get(f"/apps/{sent['app']}/{identity}")
    s.status(exchange, 200)
    s.status(s.send("PUT", f"/apps/{sent['app']}/{identity}"), 200)
    s.status(s.send("DELETE", f"/apps/{sent['app']}/{identity}"), 200)


@case("register", "InstanceResource; R10", over=forms(*FULL))
def application_names_know_no_case(s: Session, form: Form) -> None:
    app = unique("mixedCase")
    sent = {**sample(app, f"{app}:one"), "app": app}
    s.register(sent, form)
    s.equal(s.instance(sent)["app"], app.upper(), "app")
    for spelling in (app.lower(), app.upper(), app):
        exchange = s.get(f"/apps/{spelling}")
        s.status(exchange, 200)
        s.equal(s.read(documents.application, exchange)[0], app.upper(), "name", exchange)


@case("register", "InstanceResource; R11")
def ids_are_taken_encoded_and_raw(s: Session) -> None:
    sent = s.register(fresh())
    raw = f"/apps/{sent['app']}/{sent['instanceId']}"
    for path in (raw, raw.replace(":", "%3A"), raw.replace(":", "%3a")):
        s.status(s.send("PUT", path), 200)
        s.status(s.get(path), 200)


@case("register", "InstanceResource")
def instance_ids_know_their_case(s: Session) -> None:
    sent = s.register(fresh())
    s.status(s.get(f"/apps/{sent['app']}/{sent['instanceId'].upper()}"), 404)


@case(
    "register",
    "DiscoveryJerseyProvider; R9, R40",
    over={
        "json with utf-8": ("application/json; charset=utf-8", Form.JSON, 204),
        "json with UTF-8": ("application/json;charset=UTF-8", Form.JSON, 204),
        "json with latin-1": ("application/json; charset=ISO-8859-1", Form.JSON, 204),
        "json with another charset": ("application/json; charset=utf-16", Form.JSON, 415),
        "xml with utf-8": ("application/xml; charset=utf-8", Form.XML, 204),
        "text/json": ("text/json", Form.JSON, 415),
        "a form": ("application/x-www-form-urlencoded", Form.JSON, 415),
        "plain text": ("text/plain", Form.XML, 415),
        "no type": (None, Form.JSON, 415),
    },
)
def a_body_of_the_type(s: Session, media: str | None, form: Form, wanted: int) -> None:
    sent = fresh()
    text, _ = documents.body(sent, form)
    s.sweep_later(sent["app"], sent)
    headers = {} if media is None else {"Content-Type": media}
    s.status(s.send("POST", f"/apps/{sent['app']}", text, headers), wanted)


REFUSED: dict[str, tuple[Instance, str]] = {
    "no host name": ({"hostName": None}, "Missing hostname"),
    "an empty host name": ({"hostName": ""}, "Missing hostname"),
    "no address": ({"ipAddr": None}, "Missing ip address"),
    "an empty address": ({"ipAddr": ""}, "Missing ip address"),
    "neither id nor host name": ({"instanceId": None, "hostName": None}, "Missing instanceId"),
    "an empty application": ({"app": ""}, "Missing appName"),
    "no data center": ({"dataCenterInfo": None}, "Missing dataCenterInfo"),
}


@case(
    "register",
    "ApplicationResource.addInstance, validation",
    over={
        f"{what}, {form.value}": (form, fields, text)
        for form in FULL
        for what, (fields, text) in REFUSED.items()
    },
)
def a_registration_is_refused_for(s: Session, form: Form, fields: Instance, text: str) -> None:
    app = unique("BAD")
    sent = {k: v for k, v in {**sample(app, f"{app}:x"), **fields}.items() if v is not None}
    body, headers = documents.body(sent, form)
    s.sweep_later(app, sent)
    exchange = s.send("POST", f"/apps/{app}", body, headers)
    s.status(exchange, 400)
    s.require(exchange.body.startswith(text), f"the text {text!r}", exchange)
    s.status(s.get(f"/apps/{app}"), 404)


@case("register", "ApplicationResource.addInstance, validation", over=forms(*FULL))
def a_body_for_another_application_is_refused(s: Session, form: Form) -> None:
    sent, other = fresh(), unique("other")
    text, headers = documents.body(sent, form)
    exchange = s.send("POST", f"/apps/{other}", text, headers)
    s.status(exchange, 400)
    wanted = f"Mismatched appName, expecting {other.upper()} but was {sent['app']}"
    s.require(exchange.body.startswith(wanted), f"the text {wanted!r}", exchange)
    s.status(s.get(f"/apps/{other}"), 404)


def _json(change: str, *, by: str = "") -> tuple[Form, str, str]:
    return Form.JSON, change, by


@case(
    "register",
    "DiscoveryJerseyProvider.readFrom",
    over={
        "no body": _json("empty"),
        "half a body": _json("half"),
        "another format": _json("xml"),
        "no root": _json("bare"),
        "no application": _json("no app"),
        "an array": _json("array"),
        "a port with more keys": _json("fields", by="port"),
        "xml: no body": (Form.XML, "empty", ""),
        "xml: half a body": (Form.XML, "half", ""),
        "xml: another root": (Form.XML, "root", ""),
        "xml: a port of letters": (Form.XML, "letters", ""),
        "xml: no application": (Form.XML, "no app", ""),
        "xml: an unknown data center": (Form.XML, "center", ""),
        "xml: another format": (Form.XML, "json", ""),
    },
)
def what_cannot_be_read_is_a_400(s: Session, form: Form, change: str, _: str) -> None:
    sent = fresh()
    text, headers = documents.body(sent, form)
    bare = {k: v for k, v in sent.items() if k != "app"}
    changed = {
        "empty": "",
        "half": text[: len(text) // 2],
        "xml": documents.xml_body(sent),
        "json": documents.json_body(sent),
        "bare": documents.json_body(sent)[len('{"instance": ') : -1],
        "no app": documents.body(bare, form)[0],
        "array": "[]",
        "fields": documents.json_body({**sent, "port": {"$": 1, "@enabled": "true", "x": 1}}),
        "root": text.replace("instance>", "example>"),
        "letters": text.replace(">8080<", ">http<"),
        "center": text.replace("<name>MyOwn<", "<name>Moon<"),
    }[change]
    exchange = s.send("POST", f"/apps/{sent['app']}", changed, headers)
    s.status(exchange, 400)
    if exchange.media_type == "application/json":
        wanted = '{"error": "cannot parse request body'
    else:
        wanted = "<error><message>cannot parse request body"
    s.require(exchange.body.startswith(wanted), f"the text {wanted!r}", exchange)
    s.status(s.get(f"/apps/{sent['app']}"), 404)


@case("register", "LegacyJacksonJson")
def a_data_center_without_a_name_is_refused(s: Session) -> None:
    exchange = s.post(fresh(dataCenterInfo={"@class": PLAIN_CLASS, "name": None}))
    s.status(exchange, 400)
    wanted = "Missing dataCenterInfo Name"
    s.require(exchange.body.startswith(wanted), f"the text {wanted!r}", exchange)


@case("register", "AbstractInstanceRegistry.register; R32", over=forms(*FULL))
def registering_again_replaces_the_data(s: Session, form: Form) -> None:
    sent = s.register(fresh(), form)
    before = s.instance(sent)
    newer = {**sent, "ipAddr": "10.9.9.9", "lastDirtyTimestamp": "1700000000001"}
    s.register({**newer, "metadata": {"only": "this"}}, form)
    after = s.instance(sent)
    s.equal(after["ipAddr"], "10.9.9.9", "ipAddr")
    s.equal(after["metadata"], {"only": "this"}, "metadata")
    s.equal(after["lastDirtyTimestamp"], 1700000000001, "lastDirtyTimestamp")
    up = "serviceUpTimestamp"
    s.equal(after["leaseInfo"][up], before["leaseInfo"][up], f"{up} of the first registration")


@case("register", "AbstractInstanceRegistry.register; R32")
def registering_again_with_an_older_timestamp_keeps_the_data(s: Session) -> None:
    sent = s.register(fresh())
    older = {**sent, "ipAddr": "10.9.9.9", "lastDirtyTimestamp": "1699999999999"}
    s.register(older)
    got = s.instance(sent)
    s.equal(got["ipAddr"], "10.0.0.1", "ipAddr")
    s.equal(got["lastDirtyTimestamp"], 1700000000000, "lastDirtyTimestamp")


@case("register", "DiscoveryClient.unregister; R32")
def a_last_word_of_down_comes_before_the_cancel(s: Session) -> None:
    sent = s.register(fresh())
    s.register({**sent, "status": "DOWN", "lastDirtyTimestamp": "1700000000009"})
    s.equal(s.instance(sent)["status"], "DOWN", "status")
    s.status(s.send("DELETE", s.path(sent)), 200)


@case("register", "MyDataCenterInfo; clients write it in both ways; R17", over=forms(*FULL))
def a_plain_data_center_is_written_with_class_and_name_alone(s: Session, form: Form) -> None:
    sent = s.register(fresh())
    got = s.instance(sent, form)
    s.equal(got["dataCenterInfo"], {"@class": PLAIN_CLASS, "name": "MyOwn"}, "dataCenterInfo")


@case("register", "AmazonInfo; ApplicationResource.addInstance")
def amazon_without_an_id_gets_the_instances(s: Session) -> None:
    center = {"@class": AMAZON_CLASS, "name": "Amazon", "metadata": {}}
    sent = s.register(fresh(dataCenterInfo=center))
    got = s.instance(sent)["dataCenterInfo"]["metadata"]
    s.equal(got, {"instance-id": sent["instanceId"]}, "Amazon's metadata")
