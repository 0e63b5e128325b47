"""What a genuine server does not do and its users have asked for. None of it is required."""

from __future__ import annotations

import gzip
import time

from conformance import documents
from conformance.case import Catalogue, Session, unique
from conformance.cases.leasing import gone, in_time, renewed, seen, short
from conformance.documents import PLAIN_CLASS, Form, sample

catalogue = Catalogue()
case = catalogue.case


@case(
    "register",
    "eureka-js-client's own documentation; R13",
    beyond="a genuine server answers 400 to a bare port number",
)
def a_bare_port_number_is_taken(s: Session) -> None:
    sent = s.register(port=8080)
    s.equal(s.instance(sent)["port"], (8080, True), "port")


@case(
    "register",
    "eureka-js-client's own documentation; R17",
    beyond="a genuine server answers 400 to a data center without a class",
)
def a_data_center_without_a_class_is_taken(s: Session) -> None:
    sent = s.register(dataCenterInfo={"name": "MyOwn"})
    s.equal(s.instance(sent)["dataCenterInfo"]["@class"], PLAIN_CLASS, "@class")


@case(
    "lease",
    "Lease.renew",
    beyond="a genuine server keeps a renewed instance for twice its lease (a known fault of it)",
    waits=True,
)
@in_time
def a_renewed_instance_goes_after_one_lease(s: Session) -> None:
    registering = time.monotonic()
    sent = s.register(leaseInfo=short(s))
    seen(s, sent, registering)
    renewing = renewed(s, sent, registering)
    gone(s, sent, not_before=0, by=renewing + 2 * s.target.lease)


@case(
    "lease",
    "Lease.renew",
    beyond="a genuine server shows a last renewal that lies in the future",
)
def the_last_renewal_is_when_it_was(s: Session) -> None:
    sent = s.register()
    first = s.instance(sent)["leaseInfo"]["registrationTimestamp"]
    s.status(s.send("PUT", s.path(sent)), 200)
    last = s.instance(sent)["leaseInfo"]["lastRenewalTimestamp"]
    s.require(0 <= last - first < 60_000, "a moment of this minute")


@case(
    "vip",
    "ResponseCacheImpl",
    beyond="a genuine server may show each part of a VIP attribute minutes late",
)
def a_part_of_a_vip_is_current_at_once(s: Session) -> None:
    vip = unique("vip")
    app = unique("PART")
    s.equal(s.listing(f"/vips/{vip}").hash_code, "", "apps__hashcode before")
    s.register(sample(app, f"{app}:1", vipAddress=f"{vip},other"))
    s.equal(s.listing(f"/vips/{vip}").hash_code, "UP_1_", "apps__hashcode after")


@case(
    "heartbeat",
    "Jersey 3 decodes what comes with a 404; R4, R38",
    beyond="a genuine Spring server sends a JSON page, which Netflix's Jersey 3 client cannot read",
)
def a_heartbeat_of_an_unknown_instance_is_an_empty_404(s: Session) -> None:
    for method, rest in (("PUT", ""), ("DELETE", ""), ("PUT", "/status?value=UP")):
        exchange = s.send(method, f"/apps/{unique('NOPE')}/x{rest}", None, Form.JSON.headers)
        s.status(exchange, 404)
        s.equal(exchange.body, "", "body", exchange)


@case(
    "status override",
    "InstanceStatus.valueOf",
    beyond="a genuine server answers 500, with the status changed before a bad timestamp",
)
def bad_input_is_a_400(s: Session) -> None:
    sent = s.register()
    s.status(s.send("PUT", s.path(sent, "/status?value=READY")), 400)
    s.status(s.send("PUT", s.path(sent, "?lastDirtyTimestamp=x")), 400)
    s.status(s.send("DELETE", s.path(sent, "/status?value=READY")), 400)
    s.status(s.send("PUT", s.path(sent, "/status?value=DOWN&lastDirtyTimestamp=x")), 400)
    s.equal(s.instance(sent)["status"], "UP", "status: nothing changed")


@case(
    "register",
    "GZIPContentEncodingFilter of the Netflix war",
    beyond="a genuine Spring server does not unpack request bodies",
    column="gzip",
)
def a_compressed_registration_is_read(s: Session) -> None:
    app = unique("GZIP")
    sent = sample(app, f"{app}:one")
    s.sweep_later(app, sent)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    packed = gzip.compress(documents.json_body(sent).encode())
    s.status(s.send("POST", f"/apps/{app}", packed, headers), 204)
    s.equal(s.instance(sent)["status"], "UP", "status")


@case(
    "one application",
    "one application, VIPs; R34",
    beyond="a genuine Spring server compresses only apps and apps/delta",
    column="gzip",
)
def every_list_is_compressed_where_asked_for(s: Session) -> None:
    sent = s.register()
    for path in (f"/apps/{sent['app']}", f"/vips/{sent['vipAddress']}"):
        exchange = s.get(path, Accept_Encoding="gzip")
        s.equal(exchange.headers.get("content-encoding"), "gzip", "Content-Encoding", exchange)


@case(
    "negotiation",
    "R40",
    beyond="a genuine server labels a JSON body as XML where both are accepted",
)
def the_type_of_an_answer_is_true(s: Session) -> None:
    for accept in ("application/xml, application/json", "application/json;q=0.5,application/xml"):
        exchange = s.send("GET", "/apps", None, {"Accept": accept})
        wanted = "application/json" if exchange.body.startswith("{") else "application/xml"
        s.equal(exchange.media_type, wanted, "Content-Type", exchange)


@case(
    "register",
    "the servlet container refuses an encoded slash",
    beyond="a genuine Spring server's container answers 400 to %2F",
)
def an_id_may_hold_a_slash(s: Session) -> None:
    app = unique("SLASH")
    s.register(sample(app, f"{app}/one/two"))
    path = f"/apps/{app}/{app}%2Fone%2Ftwo"
    s.status(s.get(path), 200)
    s.status(s.send("PUT", path), 200)
    s.status(s.send("DELETE", path), 200)
