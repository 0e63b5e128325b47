"""Formats, methods, paths and headers: what a server makes of a request before its meaning."""

from __future__ import annotations

from conformance import documents
from conformance.case import Catalogue, Session
from conformance.documents import Form

catalogue = Catalogue()
case = catalogue.case

BETTER_ACCEPTED = {
    "application/json, */*": "json",
    "*/*, application/json": "json",
    "application/*": "xml",
    "application/json;q=0.5, */*": "xml",
    "application/xml;q=0.5, */*": "xml",
    "application/json;q=0.9, application/*": "xml",
    "application/json;q=1.0, application/xml": "json",
    "application/json, application/xml": "json",
    "application/xml, application/json": "xml",
    "application/json;q=0.1, application/xml;q=0.1": "json",
    "text/html, */*;q=0.1": "xml",
    "application/xml;q=0.1, application/*;q=0.1, application/json;q=0.2": "json",
    "application/*;q=0.5,application/json;q=0.5": "json",
}
LISTS = ("/apps", "/apps/", "/apps/delta")


@case(
    "negotiation",
    "XML is first in @Produces; R2",
    over={
        "none": ({}, "xml"),
        "anything": ({"Accept": "*/*"}, "xml"),
        "json": ({"Accept": "application/json"}, "json"),
        "xml": ({"Accept": "application/xml"}, "xml"),
        "json with parameters": ({"Accept": "application/json;charset=UTF-8"}, "json"),
        "json or anything": ({"Accept": "application/json, */*"}, "json"),
        "a body type of json on a GET": ({"Content-Type": "application/json"}, "xml"),
        "what HttpURLConnection sends": (
            {"Accept": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"},
            "xml",
        ),
    },
)
def the_format_follows_accept(s: Session, headers: dict[str, str], wanted: str) -> None:
    sent = s.register()
    app = f"/apps/{sent['app']}"
    s.eventually(lambda: s.status(s.get(app), 200))
    for path in (*LISTS, app, s.path(sent), f"/vips/{sent['vipAddress']}"):
        exchange = s.send("GET", path, None, headers)
        s.status(exchange, 200)
        s.equal(exchange.media_type, f"application/{wanted}", f"Content-Type of {path}", exchange)
        s.equal(exchange.body[0], "{" if wanted == "json" else "<", "how the body begins", exchange)


@case(
    "negotiation",
    "JAX-RS: quality, the more exact range, the earlier range, XML",
    over={accept: (accept, wanted) for accept, wanted in BETTER_ACCEPTED.items()},
)
def one_instance_comes_in_the_better_accepted_format(s: Session, accept: str, wanted: str) -> None:
    sent = s.register()
    exchange = s.send("GET", s.path(sent), None, {"Accept": accept})
    s.status(exchange, 200)
    s.equal(exchange.media_type, f"application/{wanted}", "Content-Type", exchange)


@case(
    "negotiation",
    "JAX-RS @Produces",
    over={"plain text": ("text/plain",), "html": ("text/html",), "images": ("image/png",)},
)
def what_cannot_be_given_is_a_406(s: Session, accept: str) -> None:
    for path in LISTS:
        s.status(s.send("GET", path, None, {"Accept": accept}), 406)


@case(
    "negotiation",
    "JAX-RS; the paths of the resources",
    over={
        "POST apps": ("POST", "/apps"),
        "PUT apps": ("PUT", "/apps"),
        "POST instances/x": ("POST", "/instances/x"),
        "DELETE instances/x": ("DELETE", "/instances/x"),
        "PUT vips/x": ("PUT", "/vips/x"),
        "GET peerreplication/batch": ("GET", "/peerreplication/batch/"),
        "GET status of an instance's asg": ("GET", "/asg/x/status"),
    },
)
def a_wrong_method_is_a_405(s: Session, method: str, path: str) -> None:
    body = "{}" if method in ("POST", "PUT") else None
    headers = {"Content-Type": "application/json"} if body else {}
    exchange = s.send(method, path, body, headers)
    s.status(exchange, 405)
    s.require(bool(exchange.headers.get("allow")), "an Allow header", exchange)


@case(
    "negotiation",
    "JAX-RS; the paths of the resources",
    over={
        p or "the base": (p,) for p in ("", "/", "/nope", "/vips", "/instances", "/apps/A/i/nope")
    },
)
def an_unknown_path_is_a_404(s: Session, path: str) -> None:
    for form in documents.FULL:
        s.status(s.get(path, form), 404)


@case("negotiation", "trailing slashes are used by genuine clients; R1")
def a_trailing_slash_is_taken_everywhere_without_a_redirect(s: Session) -> None:
    sent = s.register()
    s.eventually(lambda: s.status(s.get(f"/apps/{sent['app']}"), 200))
    for path in ("/apps", "/apps/delta", f"/apps/{sent['app']}", s.path(sent)):
        for spelling in (path, path + "/"):
            s.status(s.get(spelling), 200)
    s.status(s.send("PUT", s.path(sent) + "/"), 200)
    s.status(s.send("DELETE", s.path(sent) + "/"), 200)


@case("negotiation", "ApplicationsResource; literals have their case")
def delta_is_the_literal_in_lower_case(s: Session) -> None:
    s.status(s.get("/apps/delta"), 200)
    s.status(s.get("/apps/DELTA"), 404)


@case("negotiation", "JAX-RS answers HEAD as GET")
def head_is_get_without_the_body(s: Session) -> None:
    sent = s.register()
    for path in ("/apps", s.path(sent)):
        exchange = s.send("HEAD", path, None, Form.JSON.headers)
        s.status(exchange, 200)
        s.equal(exchange.media_type, "application/json", "Content-Type", exchange)
        s.equal(exchange.body, "", "body", exchange)


@case("negotiation", "no caching headers")
def answers_carry_no_caching_headers(s: Session) -> None:
    sent = s.register()
    for path in (*LISTS, s.path(sent)):
        exchange = s.get(path)
        for name in ("etag", "last-modified", "location"):
            s.require(name not in exchange.headers, f"no {name}", exchange)


@case("negotiation", "the Spring path filter; both prefixes are in use; R1")
def the_version_may_stand_in_the_path(s: Session) -> None:
    if s.target.url.rstrip("/").endswith("/v2"):
        return  # the base has it already
    sent = s.register()
    for path in ("/v2/apps", "/v2/apps/delta", f"/v2{s.path(sent)}"):
        s.status(s.get(path), 200)
    s.status(s.send("PUT", f"/v2{s.path(sent)}"), 200)


@case("negotiation", "py-eureka-client closes each connection; R34")
def a_closed_connection_is_closed(s: Session) -> None:
    exchange = s.send("GET", "/apps", None, {"Connection": "close", "Accept": "application/json"})
    s.status(exchange, 200)
    s.equal(exchange.headers.get("connection", "").lower(), "close", "Connection", exchange)
    s.status(s.send("GET", "/apps", None, {"Accept": "application/json"}), 200)


@case("negotiation", "ASG is for Amazon's registry alone")
def an_asg_status_is_a_400(s: Session) -> None:
    for query in ("?value=DISABLED", "?value=FOO", ""):
        s.status(s.send("PUT", f"/asg/asg-1/status{query}"), 400)
