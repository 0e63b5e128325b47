"""Bodies and paths as clients spell them: bytes, numbers, names and segments."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, unique
from conformance.documents import AMAZON_CLASS, FULL, PLAIN_CLASS, Form, Instance, sample
from conformance.spellings import DRESSES, JSON_SPELLINGS, XML_SPELLINGS, Dress, Spelling

catalogue = Catalogue()
case = catalogue.case
JSON_TYPE, XML_TYPE = {"Content-Type": "application/json"}, {"Content-Type": "application/xml"}


def fresh(**fields: Any) -> Instance:
    app = unique("SPELL")
    return sample(app, f"{app.lower()}:one", **fields)


def posted(s: Session, sent: Instance, body: bytes, headers: dict[str, str], status: int) -> None:
    s.sweep_later(sent["app"], sent)
    s.status(s.send("POST", f"/apps/{sent['app']}", body, headers), status)


@case(
    "register",
    "Jackson's ByteSourceJsonBootstrapper; nothing is read after the document",
    over={name: (spelled,) for name, spelled in JSON_SPELLINGS.items()},
    column="json",
)
def json_in_the_bytes_of(s: Session, spelled: Spelling) -> None:
    sent = fresh(metadata={"k": "é☃𝄞"})
    posted(s, sent, spelled(json.dumps({"instance": sent}, ensure_ascii=False)), JSON_TYPE, 204)
    s.equal(s.instance(sent)["metadata"], {"k": "é☃𝄞"}, "metadata")


@case("register", "Java's UTF-8 encoder", column="json")
def half_a_surrogate_pair_is_a_question_mark(s: Session) -> None:
    sent = fresh(metadata={"k": "a\ud800b\udc00\ud834\udd1e"})
    posted(s, sent, documents.json_body(sent).encode(), JSON_TYPE, 204)
    # A genuine server may keep the half until it writes bytes of it, as an escape in JSON.
    told = s.instance(sent)["metadata"]["k"].encode("utf-8", "replace").decode()
    s.equal(told, "a?b?𝄞", "metadata")


@case(
    "register",
    "XStream's reader: the encoding that the document declares",
    over={
        name: (spelled, 400 if name == "declared wrongly" else 204)
        for name, spelled in XML_SPELLINGS.items()
    },
    column="xml",
)
def xml_in_the_bytes_of(s: Session, spelled: Spelling, status: int) -> None:
    sent = fresh(metadata={"k": "é☃"})
    posted(s, sent, spelled(documents.xml_body(sent)), XML_TYPE, status)
    if status == 204:
        s.equal(s.instance(sent)["metadata"], {"k": "é☃"}, "metadata")


NUMBERS: dict[Any, int] = {
    " 8080": 8080,
    "8080\n": 8080,
    "8080.0": 8080,
    "80.9": 80,
    "8.08e3": 8080,
    "+80": 80,
    "-80": -80,
    "80f": 80,
    "0x1p3": 8,
    "Infinity": 2**31 - 1,
    "NaN": 0,
    "\uff18\uff10": 0,
    "0x50": 0,
    "8_080": 0,
    "2147483648": 0,
    "US": 0,
    "": 0,
    True: 1,
    80.9: 80,
}


@case(
    "register",
    "Jackson's NumberInput",
    over={f"{sent!r}": (sent, meant) for sent, meant in NUMBERS.items()},
    column="json",
)
def a_number_may_be_written(s: Session, sent: Any, meant: int) -> None:
    instance = s.register(
        fresh(port={"$": sent, "@enabled": "true"}, securePort={"$": sent}, countryId=sent)
    )
    got = s.instance(instance)
    s.equal(got["port"], (meant, True), "port")
    s.equal(got["securePort"], (meant, False), "securePort")
    s.equal(got["countryId"], meant, "countryId")


@case(
    "register",
    "Jackson's NumberInput; LeaseInfo.Builder",
    over={
        "blanks": (" 600\n", " 1700000000007 ", 600, 1700000000007),
        "fractions": ("600.9", "1700000000007.5", 600, 1700000000007),
        "exponents": ("6e2", "1.7e12", 600, 1700000000000),
        "signs": ("-600", "-5", 90, -5),
        "letters": ("x", "x", 90, 0),
    },
    column="json",
)
def a_duration_and_a_timestamp_may_have(
    s: Session, duration: str, dirty: str, secs: int, moment: int
) -> None:
    sent = fresh(leaseInfo={"durationInSecs": duration}, lastDirtyTimestamp=dirty)
    s.register(sent)
    got = s.instance(sent)
    s.equal(got["leaseInfo"]["durationInSecs"], secs, "durationInSecs")
    s.equal(got["lastDirtyTimestamp"], moment, "lastDirtyTimestamp")


@case(
    "register",
    "Jackson's getValueAsBoolean",
    over={
        "true in blanks": (" true ", True),
        "TRUE": ("TRUE", False),
        "null": (None, False),
        "1": (1, True),
        "1.5": (1.5, False),
    },
    column="json",
)
def a_ports_switch_may_be(s: Session, told: Any, on: bool) -> None:
    sent = s.register(fresh(port={"$": None, "@enabled": told}))
    s.equal(s.instance(sent)["port"], (0, on), "port")


@case(
    "register",
    "Jackson's getText",
    over={
        digits: (digits,)
        for digits in ("1.50", "1e5", "-0", "0.1000", "18446744073709551616", "1e400")
    },
    column="json",
)
def a_number_in_metadata_keeps_its_digits(s: Session, digits: str) -> None:
    sent = fresh(metadata={"n": "DIGITS"})
    posted(s, sent, documents.json_body(sent).replace('"DIGITS"', digits).encode(), JSON_TYPE, 204)
    for form in FULL:
        s.equal(s.instance(sent, form)["metadata"], {"n": digits}, f"metadata in {form.value}")


@case(
    "register",
    "the servlet container, Jersey; @Path of the version",
    over={name: (dress,) for name, dress in DRESSES.items()},
)
def a_path_may_be_written_with(s: Session, dress: Dress) -> None:
    sent = fresh()
    s.sweep_later(sent["app"], sent)
    body = documents.json_body(sent)
    s.status(s.send("POST", f"/apps/{sent['app']}", body, JSON_TYPE, dress), 204)
    for path in ("/apps", "/apps/delta", f"/apps/{sent['app']}", s.path(sent)):
        s.status(s.send("GET", path, None, Form.JSON.headers, dress), 200)
    s.status(s.send("PUT", s.path(sent), None, {}, dress), 200)
    s.status(s.send("PUT", s.path(sent, "/status?value=DOWN"), None, {}, dress), 200)
    s.status(s.send("DELETE", s.path(sent), None, {}, dress), 200)


@case("register", "XStream's XmlFriendlyNameCoder", spoils=True)
def an_escaped_colon_is_read(s: Session) -> None:
    sent = fresh(metadata={"aws_.003agroup": "g", "k_.003A": "h"})
    s.register(sent, Form.XML)
    s.equal(s.instance(sent)["metadata"], {"aws:group": "g", "k:": "h"}, "metadata")


# Beyond a genuine server.


@case(
    "full fetch",
    "XML namespaces; XStream's XmlFriendlyNameCoder",
    beyond="a genuine server writes a colon in a metadata key into an element's name",
    column="xml",
    spoils=True,
)
def a_colon_in_a_metadata_key_makes_no_prefix(s: Session) -> None:
    sent = fresh(metadata={"aws:autoscaling:group": "g"})
    s.register(sent)
    exchange = s.get(f"/apps/{sent['app']}", Form.XML)
    try:
        ElementTree.fromstring(exchange.body)
    except ElementTree.ParseError as error:
        s.require(False, f"XML that readers of namespaces take: {error}", exchange)
    s.equal(s.instance(sent, Form.XML)["metadata"], sent["metadata"], "metadata")


@case(
    "one application",
    "Steeltoe fails where there is no instanceId; R29",
    beyond="a genuine server shows no id where none was sent",
)
def an_id_that_was_not_sent_is_shown(s: Session) -> None:
    sent = fresh(instanceId=None, hostName=unique("host"))
    s.register(sent)
    for form in FULL:
        s.equal(s.instance(sent, form).get("instanceId"), sent["hostName"], "instanceId")


@case(
    "register",
    "an early Rust client",
    beyond="a genuine server answers 400 to a key beside instance",
    column="json",
)
def keys_beside_the_root_are_ignored(s: Session) -> None:
    sent = fresh()
    body = json.dumps({"more": [1], "instance": sent, "and": {"more": 2}}).encode()
    posted(s, sent, body, JSON_TYPE, 204)


@case(
    "register",
    "clients in other languages; R17",
    over={
        "metadata null": ({"@class": AMAZON_CLASS, "name": "Amazon", "metadata": None}, {}),
        "no metadata": ({"@class": AMAZON_CLASS, "name": "Amazon"}, {}),
        "keys beside the name": (
            {"@class": AMAZON_CLASS, "name": "Amazon", "ami-id": "a"},
            {"ami-id": "a"},
        ),
        "a plain one with metadata": (
            {"@class": PLAIN_CLASS, "name": "MyOwn", "metadata": {}},
            None,
        ),
    },
    beyond="a genuine server answers 400",
    column="json",
)
def a_data_center_may_have(s: Session, sent: Instance, kept: Instance | None) -> None:
    instance = s.register(fresh(dataCenterInfo=sent))
    got = s.instance(instance)["dataCenterInfo"]
    wanted = None if kept is None else {"instance-id": instance["instanceId"], **kept}
    s.equal(got.get("metadata"), wanted, "metadata")


@case(
    "register",
    "base URLs with a slash at their end",
    over={path: (path,) for path in ("//apps", "/./apps", "/v2//apps")},
    beyond="a genuine server answers 404",
)
def what_follows_the_base_may_begin_with(s: Session, path: str) -> None:
    s.status(s.send("GET", path, None, Form.JSON.headers), 200)
