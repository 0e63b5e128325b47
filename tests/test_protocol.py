"""The protocol's edges: odd names, bad bodies, limits, negotiation. In process, through Flask."""

from __future__ import annotations

import codecs as encodings
import gzip
import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from eureka_compat import codecs, wire
from eureka_compat.encoded import encode_single
from eureka_compat.negotiation import Form
from eureka_compat.settings import EurekaSettings
from registry import Instance
from registry.testing import sample_instance
from tests.in_process import InProcess
from tests.servers import JSON, instance_body

XML = {"Content-Type": "application/xml", "Accept": "application/xml"}
AMAZON = {"@class": wire.AMAZON_CLASS, "name": "Amazon"}


def make_client(settings: EurekaSettings | None = None) -> FlaskClient:
    return InProcess(eureka=settings).client


@pytest.fixture
def client() -> FlaskClient:
    return make_client()


def register(client: FlaskClient, app: str, instance_id: str, /, **fields: Any) -> Any:
    path = f"/eureka/apps/{quote(app, safe='')}"
    return client.post(path, data=instance_body(app, instance_id, **fields), headers=JSON)


ODD_IDS = [
    "http://host:8080/path",
    "with space",
    "a/b",
    "p-é-☃",
    "[::1]:8080",
    "::1",
    "50%",
    "a+b?c#d;e",
    "host:app:8080/status",
]


@pytest.mark.parametrize("base", ["/eureka", "/eureka/v2"])
@pytest.mark.parametrize("instance_id", ODD_IDS)
def test_any_id_can_be_registered_read_renewed_and_cancelled(
    client: FlaskClient, base: str, instance_id: str
) -> None:
    assert register(client, "ODD", instance_id, vipAddress=instance_id).status_code == 204
    path = f"{base}/apps/odd/{quote(instance_id, safe='')}"
    assert client.get(path, headers=JSON).get_json()["instance"]["instanceId"] == instance_id
    by_id = client.get(f"{base}/instances/{quote(instance_id, safe='')}", headers=JSON)
    assert by_id.get_json()["instance"]["instanceId"] == instance_id
    assert client.put(path).status_code == 200
    assert client.put(f"{path}/status?value=DOWN").status_code == 200
    assert client.put(f"{path}/metadata?k=v").status_code == 200
    vip = client.get(f"{base}/vips/{quote(instance_id.split(',')[0], safe='')}", headers=JSON)
    assert len(vip.get_json()["applications"]["application"]) == 1
    assert client.delete(path).status_code == 200
    assert client.get(path, headers=JSON).status_code == 404


def test_an_id_with_raw_slashes_is_found_too(client: FlaskClient) -> None:
    register(client, "ODD", "http://host:8080", vipAddress="http://host:8080")
    assert client.put("/eureka/apps/ODD/http://host:8080").status_code == 200
    vip = client.get("/eureka/vips/http://host:8080", headers=JSON).get_json()
    assert vip["applications"]["apps__hashcode"] == "UP_1_"


@pytest.mark.parametrize(
    "path",
    ["/apps", "/apps/", "/apps/delta", "/apps/delta/", "/apps/WEB/", "/vips/web/", "/status/"],
)
@pytest.mark.parametrize("base", ["/eureka", "/eureka/v2"])
def test_a_trailing_slash_is_never_redirected(client: FlaskClient, base: str, path: str) -> None:
    register(client, "WEB", "web:1")
    assert client.get(base + path).status_code == 200


@pytest.mark.parametrize("method", ["put", "delete"])
@pytest.mark.parametrize("suffix", ["", "/status?value=UP", "/metadata?a=b"])
@pytest.mark.parametrize("data", [None, "{}", "not json"])
def test_answers_to_put_and_delete_have_no_body(
    client: FlaskClient, method: str, suffix: str, data: str | None
) -> None:
    for known in (False, True):
        if known:
            register(client, "WEB", "web:1")
        response = client.open(
            f"/eureka/apps/WEB/web:1{suffix}", method=method, data=data, headers=JSON
        )
        if method == "delete" and suffix.startswith("/metadata"):
            assert response.status_code == 405
        else:
            assert response.status_code == (200 if known else 404)
        assert response.data == b""


BAD_FIELDS = [
    ("port", {"$": 1, "@enabled": "true", "x": 1}, "instance.port"),
    ("port", [8080], "instance.port"),
    ("port", True, "instance.port"),
    ("metadata", {"a": {"b": "c"}}, "instance.metadata.a"),
    ("metadata", ["x"], "instance.metadata"),
    ("dataCenterInfo", {"@class": "java.lang.String", "name": "MyOwn"}, "dataCenterInfo.@class"),
    ("dataCenterInfo", {"name": "Mars"}, "dataCenterInfo.name"),
    ("dataCenterInfo", "MyOwn", "instance.dataCenterInfo"),
    ("leaseInfo", {"durationInSecs": 2**31}, "instance.durationInSecs"),
    ("lastDirtyTimestamp", 2**63, "instance.lastDirtyTimestamp"),
    ("hostName", {"a": 1}, "instance.hostName"),
    ("countryId", [1], "instance.countryId"),
    ("app", None, "instance.app"),
]


@pytest.mark.parametrize(("name", "value", "named"), BAD_FIELDS)
def test_a_bad_field_is_named_after_the_genuine_text_and_changes_nothing(
    client: FlaskClient, name: str, value: Any, named: str
) -> None:
    response = register(client, "WEB", "web:1", **{name: value})
    assert response.status_code == 400
    error = json.loads(response.data)["error"]
    assert error.startswith("cannot parse request body: ")
    assert named in error
    assert client.get("/eureka/apps", headers=JSON).get_json()["applications"]["application"] == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hostName": ""}, "Missing hostname: "),
        ({"ipAddr": None}, "Missing ip address: "),
        ({"app": ""}, "Missing appName: "),
        ({"app": "other"}, "Mismatched appName, expecting WEB but was OTHER: "),
        ({"dataCenterInfo": None}, "Missing dataCenterInfo: "),
        ({"dataCenterInfo": {"@class": wire.DEFAULT_CLASS}}, "Missing dataCenterInfo Name: "),
        ({"instanceId": "", "hostName": ""}, "Missing instanceId: "),
    ],
)
def test_a_missing_field_is_refused_with_the_genuine_text(
    client: FlaskClient, fields: dict[str, Any], text: str
) -> None:
    response = register(client, "WEB", "web:1", **fields)
    assert response.status_code == 400
    assert response.text.startswith(text)


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE instance [<!ENTITY a "b">]><instance><app>&a;</app></instance>',
        '<!DOCTYPE instance SYSTEM "file:///etc/passwd"><instance/>',
        "<instance>" + "<a>" * 40 + "</a>" * 40 + "</instance>",
        "<instance><hostName>",
        "<other/>",
        "",
        "\x00",
        "<instance><app>A</app><port> 81 </port></instance>",
    ],
)
def test_unsafe_or_broken_xml_is_a_400(client: FlaskClient, document: str) -> None:
    response = client.post("/eureka/apps/A", data=document, headers=XML)
    assert response.status_code == 400
    assert response.data.startswith(b"<error><message>cannot parse request body")
    assert response.content_type == "application/xml"


def test_what_eureka_js_client_and_fargo_send_is_accepted(client: FlaskClient) -> None:
    assert (
        register(client, "JS", "js", port=8080, dataCenterInfo={"name": "MyOwn"}).status_code == 204
    )
    fargo = register(
        client,
        "FARGO",
        "",
        port={"$": "8080", "@enabled": "true"},
        overriddenstatus="",
        leaseInfo={"renewalIntervalInSecs": 0, "durationInSecs": 0},
        countryId=0,
        dataCenterInfo={"@class": wire.MY_CLASS, "name": "MyOwn"},
    )
    assert fargo.status_code == 204
    found = client.get("/eureka/apps/FARGO/host.local", headers=JSON).get_json()["instance"]
    assert found["leaseInfo"]["durationInSecs"] == 90
    assert found["overriddenStatus"] == "UNKNOWN"
    assert found["port"] == {"$": 8080, "@enabled": "true"}


NUMBERS: list[tuple[Any, int | None]] = [
    (" 8080", 8080),
    ("\t8080\r\n", 8080),
    ("8080\x00", 8080),
    ("8080.0", 8080),
    ("8080.9", 8080),
    ("8.08e3", 8080),
    ("8.08E+3", 8080),
    ("+8080", 8080),
    ("+ 8080", 8080),
    ("8080.", 8080),
    ("8080f", 8080),
    ("8080D", 8080),
    ("0x1p3", 8),
    ("-80.5", -80),
    ("+-80", -80),
    (".5", 0),
    ("Infinity", 2**31 - 1),
    ("-Infinity", -(2**31)),
    ("0x1p99999", 2**31 - 1),
    ("1e400", 2**31 - 1),
    ("1.632719563702E12", 2**31 - 1),
    ("-2147483648", -(2**31)),
    ("2147483648", 0),
    ("99999999999", 0),
    ("9" * 5000, 0),
    ("NaN", 0),
    ("\uff18\uff10\uff18\uff10", 0),
    ("٨٠", 0),
    ("8_080", 0),
    ("0x50", 0),
    ("- 80", 0),
    ("--80", 0),
    ("1e", 0),
    ("80L", 0),
    ("\u00a080", 0),
    ("true", 0),
    ("US", 0),
    ("-", 0),
    ("+", 0),
    ("", 0),
    (" ", 0),
    (True, 1),
    (False, 0),
    (80.9, 80),
    (-1.5, -1),
    (-80, -80),
    (2**31, None),
    (-(2**31) - 1, None),
    (1e19, None),
    (2**70, None),
]


@pytest.mark.parametrize(
    "text",
    [
        "1" * 998 + "x",
        "." + "1" * 998 + "x",
        "1e" + "9" * 990 + "x",
        "0x" + "f" * 990 + "x",
        "0x." + "f" * 990 + "pp",
        "1" * 500 + " " * 400 + "x",
    ],
)
def test_a_text_that_is_nearly_a_number_costs_no_more_than_another(text: str) -> None:
    # Read again at each digit it would be hundreds of times as much as a number of that length.
    assert wire.number_in(text, 64) is None
    assert least_cost(text) < 50 * least_cost("1" * 999)


def least_cost(text: str) -> float:
    """The least of several measurements, which no other process lengthens by much."""

    def once() -> float:
        began = time.process_time()
        for _ in range(50):
            wire.number_in(text, 64)
        return time.process_time() - began

    return min(once() for _ in range(5))


@pytest.mark.parametrize(("sent", "meant"), NUMBERS)
def test_a_number_is_what_the_original_takes_it_for_in_every_field(
    client: FlaskClient, sent: Any, meant: int | None
) -> None:
    fields: list[tuple[dict[str, Any], Callable[[Any], Any], Callable[[int], int]]] = [
        ({"port": {"$": sent, "@enabled": "true"}}, lambda i: i["port"]["$"], int),
        ({"securePort": {"$": sent}}, lambda i: i["securePort"]["$"], int),
        ({"countryId": sent}, lambda i: i["countryId"], int),
        (
            {"leaseInfo": {"durationInSecs": sent}},
            lambda i: i["leaseInfo"]["durationInSecs"],
            lambda n: n if n > 0 else 90,
        ),
        (
            {"leaseInfo": {"renewalIntervalInSecs": sent}},
            lambda i: i["leaseInfo"]["renewalIntervalInSecs"],
            lambda n: n if n > 0 else 30,
        ),
    ]
    for place, (told, shown, kept) in enumerate(fields):
        status = register(client, "NUM", f"num:{place}", **told).status_code
        assert status == (400 if meant is None else 204), told
        if meant is not None:
            found = client.get(f"/eureka/apps/NUM/num:{place}", headers=JSON).get_json()
            assert shown(found["instance"]) == kept(meant), told


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("1.632719563702E12", 1632719563702),
        (" 1632719563702 ", 1632719563702),
        ("-80", -80),
        (-80, -80),
        (True, 1),
        ("1e19", 2**63 - 1),
        ("9223372036854775808", 0),
        ([80], 0),
        (2**63, None),
        (1e19, None),
    ],
)
def test_a_dirty_timestamp_is_what_the_original_takes_it_for(
    client: FlaskClient, sent: Any, meant: int | None
) -> None:
    status = register(client, "NUM", "num:1", lastDirtyTimestamp=sent).status_code
    assert status == (400 if meant is None else 204)
    if meant is not None:
        found = client.get("/eureka/apps/NUM/num:1", headers=JSON).get_json()["instance"]
        assert found["lastDirtyTimestamp"] == str(meant)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("true", True),
        (" true\n", True),
        (True, True),
        (1, True),
        (-7, True),
        ("TRUE", False),
        ("1", False),
        ("yes", False),
        ("", False),
        (None, False),
        (0, False),
        (1.5, False),
        (1e300, False),
        (2**40, None),
        ([], None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", ["port", "securePort"])
def test_a_ports_switch_is_what_the_original_takes_it_for(
    client: FlaskClient, name: str, sent: Any, meant: bool | None
) -> None:
    response = register(client, "NUM", "num:1", **{name: {"$": None, "@enabled": sent}})
    assert response.status_code == (400 if meant is None else 204)
    if meant is not None:
        found = client.get("/eureka/apps/NUM/num:1", headers=JSON).get_json()["instance"]
        assert found[name] == {"$": 0, "@enabled": "true" if meant else "false"}


@pytest.mark.parametrize(
    "digits",
    [
        "18446744073709551616",
        "1" + "0" * 400,
        "1.50",
        "1e5",
        "1E+05",
        "0.1234567890123456789012345",
        "1e400",
        "-0",
        "-0.0",
        "12345678901234567.0",
    ],
)
def test_a_number_that_stands_for_a_text_keeps_its_digits(client: FlaskClient, digits: str) -> None:
    body = instance_body("WEB", "web:1", metadata={"n": "N"}, sid="N", dataCenterInfo="C")
    body = body.replace('"N"', digits)
    center = AMAZON | {"metadata": {"instance-id": "i-1", "n": "N", "none": None}}
    body = body.replace('"C"', json.dumps(center).replace('"N"', digits))
    assert client.post("/eureka/apps/WEB", data=body, headers=JSON).status_code == 204
    item = {"appName": "WEB", "id": "web:2", "action": "Register", "instanceInfo": "I"}
    told = body.replace("web:1", "web:2")[len('{"instance": ') : -1]
    batch = json.dumps({"replicationList": [item]}).replace('"I"', told)
    assert client.post("/eureka/peerreplication/batch", data=batch, headers=JSON).status_code == 200
    for instance_id in ("web:1", "web:2"):
        found = client.get(f"/eureka/apps/WEB/{instance_id}", headers=JSON).get_json()["instance"]
        assert found["metadata"] == {"n": digits}
        assert found["sid"] == digits
        assert found["dataCenterInfo"]["metadata"]["n"] == digits
        assert found["dataCenterInfo"]["metadata"]["none"] == "null"


JSON_BYTES: list[tuple[str, Callable[[str], bytes]]] = [
    ("UTF-8 after a mark", lambda text: encodings.BOM_UTF8 + text.encode()),
    *((f"{name}", lambda text, name=name: text.encode(name)) for name in ("utf-16", "utf-32")),
    *(
        (f"{name}", lambda text, name=name: text.encode(name))
        for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    ),
    ("a mark, the other way", lambda text: encodings.BOM_UTF16_BE + text.encode("utf-16-be")),
    ("half a character after it", lambda text: text.encode("utf-16-le") + b"x"),
    *(
        (f"{tail!r} after it", lambda text, tail=tail: encodings.BOM_UTF8 + text.encode() + tail)
        for tail in (b"\0", b";", b"}", b"\x1a", b"{}", b"\xff", b"null", b" //")
    ),
]


@pytest.mark.parametrize(
    "spelled", [pytest.param(spelled, id=name) for name, spelled in JSON_BYTES]
)
def test_json_is_read_whatever_bytes_it_is_in_and_whatever_comes_after_it(
    client: FlaskClient, spelled: Callable[[str], bytes]
) -> None:
    text = json.dumps(json.loads(instance_body("WEB", "web:1", sid="é☃𝄞")), ensure_ascii=False)
    assert client.post("/eureka/apps/WEB", data=spelled(text), headers=JSON).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["sid"] == "é☃𝄞"
    half = text.replace("é☃𝄞", "a\\ud800b\\udc00\\ud834\\udd1e")
    assert client.post("/eureka/apps/WEB", data=spelled(half), headers=JSON).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["sid"] == "a?b?𝄞"
    cut = spelled(text)[: len(spelled(text)) // 2]
    assert client.post("/eureka/apps/WEB", data=cut, headers=JSON).status_code == 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ISO-8859-1", "é"),
        ("latin1", "é"),
        ("ISO-8859-15", "€"),
        ("windows-1252", "€"),
        ("Cp1252", "€"),
        ("ISO-8859-2", "ł"),
        ("windows-1251", "ж"),
        ("KOI8-R", "ж"),
        ("GBK", "中"),
        ("GB18030", "中"),
        ("Big5", "中"),
        ("Shift_JIS", "本"),
        ("EUC-KR", "한"),
        ("ISO-2022-JP", "本"),
        ("IBM037", "é"),
        ("UTF-16", "☃𝄞"),
        ("UTF-8", "☃𝄞"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(
    client: FlaskClient, name: str, text: str
) -> None:
    document = encode_single(sample_instance(metadata={"k": text}), Form.XML).decode()
    declaration = f'<?xml version="1.0"  encoding = "{name}" ?>'
    for declared in (declaration, declaration.replace('"', "'")):
        body = (declared + "\n" + document).encode(name)
        assert client.post("/eureka/apps/WEB", data=body, headers=XML).status_code == 204
        (found,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"][
            "instance"
        ]
        assert found["metadata"] == {"k": text}


@pytest.mark.parametrize(
    ("declared", "used"),
    [
        ("x-none", "utf-8"),
        ("rot13", "utf-8"),
        ("unicode-escape", "utf-8"),
        ("UTF-7", "utf-8"),
        ("UTF-16", "utf-8"),
        ("GBK", "latin-1"),
        ("UTF-8", "latin-1"),
    ],
)
def test_xml_in_no_encoding_that_it_declares_is_a_400(
    client: FlaskClient, declared: str, used: str
) -> None:
    document = encode_single(sample_instance(metadata={"k": "é"}), Form.XML).decode()
    body = (f'<?xml version="1.0" encoding="{declared}"?>' + document).encode(used)
    assert client.post("/eureka/apps/WEB", data=body, headers=XML).status_code == 400


def test_xml_means_the_same_however_it_is_written(client: FlaskClient) -> None:
    plain = encode_single(sample_instance(metadata={"a": "b", "c": " d "}), Form.XML).decode()
    client.post("/eureka/apps/WEB", data=plain, headers=XML)
    (wanted,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"]["instance"]
    app = wanted["app"]
    for old, new in (
        ("<instance>", '<instance xmlns="urn:x" class="y">'),
        ("<a>b</a>", "<a>x</a><a><![CDATA[b]]></a>"),
        ("<a>b</a>", "<a z='y'><!-- c --><?p q?>&#98;</a>"),
        ("<metadata>", "<metadata><never>x</never></metadata><metadata class='y'>text"),
        (f"<app>{app}</app>", f"<app>other</app><fancy><deep><er/></deep></fancy><app>{app}</app>"),
        ("</instance>", "</instance> <!-- c --> <?p q?>\n"),
    ):
        assert old in plain
        answer = client.post("/eureka/apps/WEB", data=plain.replace(old, new, 1), headers=XML)
        assert answer.status_code == 204
        (got,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"]["instance"]
        for found in (wanted, got):
            found["leaseInfo"].pop("lastRenewalTimestamp", None)
            found.pop("lastUpdatedTimestamp", None)
            found["leaseInfo"].pop("registrationTimestamp", None)
        assert got == wanted
    other = plain.replace("instance>", "com.netflix.appinfo.InstanceInfo>")
    assert client.post("/eureka/apps/WEB", data=other, headers=XML).status_code == 204


@pytest.mark.parametrize(
    "name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32", "utf-8-sig"]
)
def test_xml_is_read_where_its_first_bytes_tell_its_encoding(
    client: FlaskClient, name: str
) -> None:
    document = encode_single(sample_instance(metadata={"k": "é☃𝄞"}), Form.XML).decode()
    for declaration in ("", '<?xml version="1.0" encoding="UTF-8"?>'):
        body = (declaration + document).encode(name)
        assert client.post("/eureka/apps/WEB", data=body, headers=XML).status_code == 204
        (found,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"][
            "instance"
        ]
        assert found["metadata"] == {"k": "é☃𝄞"}


@pytest.mark.parametrize("text", ["", " 7", "7.0", "x", "<y>7</y>", "9" * 30])
def test_a_bad_number_in_an_xml_lease_costs_nothing_else(client: FlaskClient, text: str) -> None:
    document = encode_single(sample_instance(metadata={"k": "v"}, duration_secs=77), Form.XML)
    body = document.decode().replace(">77<", f">{text}<")
    assert client.post("/eureka/apps/WEB", data=body, headers=XML).status_code == 204
    (found,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"]["instance"]
    assert found["leaseInfo"]["durationInSecs"] == 90
    assert found["metadata"] == {"k": "v"}


@pytest.mark.parametrize("spelled", [b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xff", b"\xe2\x98"])
def test_overlong_characters_are_refused(client: FlaskClient, spelled: bytes) -> None:
    body = instance_body("WEB", "web:1", sid="S").encode().replace(b'"S"', b'"' + spelled + b'"')
    assert client.post("/eureka/apps/WEB", data=body, headers=JSON).status_code == 400


def test_a_field_that_comes_twice_counts_as_the_last_says(client: FlaskClient) -> None:
    body = instance_body("WEB", "web:1", sid="S").replace('"sid": "S"', '"sid": "a", "sid": "b"')
    assert client.post("/eureka/apps/WEB", data=body, headers=JSON).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["sid"] == "b"


def test_xml_that_is_too_deep_is_not_read_to_its_end() -> None:
    deep = b"<instance>" + b"<a>" * 300_000
    with pytest.raises(wire.ParseError, match="inside each other"):
        codecs.read_xml(deep)  # to its end it would be unclosed


@pytest.mark.parametrize(
    ("field", "text", "status"),
    [
        ("port", "+80", 204),
        ("port", "٨٠", 204),
        ("port", "8_0", 400),
        ("port", " 80", 400),
        ("port", "80.0", 400),
        ("port", "2147483648", 400),
        ("port", "", 400),
        ("countryId", "80", 204),
        ("countryId", "8_0", 400),
        ("countryId", "", 400),
    ],
)
def test_a_number_in_xml_has_digits_alone(
    client: FlaskClient, field: str, text: str, status: int
) -> None:
    document = encode_single(sample_instance(port=7777, country_id=7777), Form.XML).decode()
    other = "countryId" if field == "port" else "port"
    body = document.replace(">7777<", f">{text}<" if field == "port" else ">1<", 1)
    body = body.replace(">7777<", f">{text}<" if field == "countryId" else ">1<", 1)
    assert client.post("/eureka/apps/WEB", data=body, headers=XML).status_code == status
    if status == 204:
        (found,) = client.get("/eureka/apps/WEB", headers=JSON).get_json()["application"][
            "instance"
        ]
        numbers = {"port": found["port"]["$"], "countryId": found["countryId"]}
        assert numbers == {field: 80, other: 1}


CENTERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (AMAZON, {}),
    (AMAZON | {"metadata": None}, {}),
    (AMAZON | {"metadata": []}, {}),
    (AMAZON | {"instance-id": "i-7", "ami-id": "a"}, {"instance-id": "i-7", "ami-id": "a"}),
    ({"name": "Amazon", "instance-id": "i-7"}, {"instance-id": "i-7"}),
    ({"name": "Amazon", "metadata": {"instance-id": "i-7"}}, {"instance-id": "i-7"}),
]


@pytest.mark.parametrize(("sent", "kept"), CENTERS)
def test_an_amazon_data_center_is_read_however_it_is_written(
    client: FlaskClient, sent: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert register(client, "WEB", "web:1", dataCenterInfo=sent).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["dataCenterInfo"] == AMAZON | {"metadata": {"instance-id": "web:1"} | kept}


@pytest.mark.parametrize("metadata", [None, {}, []])
def test_an_empty_metadata_of_a_plain_data_center_says_nothing(
    client: FlaskClient, metadata: Any
) -> None:
    plain = {"@class": wire.DEFAULT_CLASS, "name": "MyOwn"}
    sent = plain | {"metadata": metadata}
    assert register(client, "WEB", "web:1", dataCenterInfo=sent).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["dataCenterInfo"] == plain
    full = plain | {"metadata": {"a": "b"}}
    assert register(client, "WEB", "web:1", dataCenterInfo=full).status_code == 400


def test_what_php_calls_an_empty_map_is_one(client: FlaskClient) -> None:
    assert register(client, "WEB", "web:1", metadata=[], leaseInfo=[]).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["metadata"] == {"@class": "java.util.Collections$EmptyMap"}
    assert found["leaseInfo"]["durationInSecs"] == 90


def test_keys_beside_the_root_are_ignored(client: FlaskClient) -> None:
    body = json.loads(instance_body("WEB", "web:1"))
    for document in (body | {"more": {"a": [1]}}, {"first": 1} | body):
        answer = client.post("/eureka/apps/WEB", data=json.dumps(document), headers=JSON)
        assert answer.status_code == 204
    assert client.post("/eureka/apps/WEB", data='{"more": {}}', headers=JSON).status_code == 400


def test_an_id_that_was_not_sent_is_shown(client: FlaskClient) -> None:
    assert register(client, "WEB", "web:1", instanceId=None).status_code == 204
    for headers in (JSON, JSON | {"X-Eureka-Accept": "compact"}):
        for path in ("/apps/WEB", "/apps", "/apps/delta"):
            answer = client.get(f"/eureka{path}", headers=headers).data
            assert answer.count(b'"instanceId":"host.local"') == 1
    assert b"<instanceId>host.local</instanceId>" in client.get("/eureka/apps", headers=XML).data
    assert client.put("/eureka/apps/WEB/host.local").status_code == 200


ODD_PATHS = [
    "/eureka/v2%20/apps",
    "/eureka/v2x/apps",
    "/eureka/v2.0/apps",
    "/eureka/v22/apps",
    "/eureka/v2+/apps",
    "/eureka/v2%C3%A9/apps",
    "/eureka/v2;a=b/apps",
    "//eureka/apps",
    "///eureka/apps",
    "/./eureka/apps",
    "/.//eureka/apps",
    "/x/../eureka/apps",
    "/x/y/../../eureka/apps",
    "/%65ureka/apps",
    "/%2e/eureka/apps",
    "/eureka;x=1/apps",
    "/;x/eureka/apps",
    "/eureka//apps",
    "/eureka/./apps",
    "/eureka/v2//apps",
    "//eureka/v2/apps",
    "/eureka/apps;jsessionid=1",
]


@pytest.mark.parametrize("apps", ODD_PATHS)
def test_a_path_means_what_its_normal_form_means(client: FlaskClient, apps: str) -> None:
    body = instance_body("WEB", "web:1")
    apps = "http://localhost" + apps
    posted = client.open(apps + "/WEB;v=1", method="POST", data=body, headers=JSON)
    assert posted.status_code == 204
    one = apps + "/WEB/web:1;v=2"
    listed = client.open(apps, headers=JSON).get_json()["applications"]
    assert listed["apps__hashcode"] == "UP_1_"
    assert client.open(apps, method="HEAD", headers=JSON).status_code == 200
    assert client.open(apps + "/delta;x", headers=JSON).status_code == 200
    found = client.open(one, headers=JSON).get_json()["instance"]
    assert found["instanceId"] == "web:1"
    assert client.open(one, method="PUT").status_code == 200
    status = client.open(apps + "/WEB/web:1/status;x?value=DOWN", method="PUT")
    assert status.status_code == 200
    assert client.open(apps, method="OPTIONS").headers["Allow"] == "GET,HEAD,OPTIONS"
    assert client.open(apps, method="DELETE").status_code == 405
    assert client.open(one, method="DELETE").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../eureka/apps",
        "/x/%2e%2e/eureka/apps",
        "/eureka/../apps",
        "/Eureka/apps",
        "/eurekax/apps",
        "/x/eureka/apps",
        "/eureka/V2/apps",
        "/eureka/v1/apps",
        "/eureka/v3/apps",
        "/eureka/v2/v2/apps",
        "/eureka/%61pps",
        "/eureka/%76%32/apps",
        "/eureka/apps%3Bjsessionid=1",
        "/eureka/apps//",
        "/eureka/v2",
        "/apps",
        "/%2feureka/apps",
    ],
)
def test_what_is_no_way_to_write_the_base_is_a_404(client: FlaskClient, path: str) -> None:
    assert client.open("http://localhost" + path, headers=JSON).status_code == 404


def test_what_steeltoe_sends_can_be_read_back(client: FlaskClient) -> None:
    center = {"@class": wire.DEFAULT_CLASS, "name": "Amazon"}
    assert register(client, "NET", "net:1", dataCenterInfo=center).status_code == 204
    found = client.get("/eureka/apps/NET", headers=JSON).get_json()["application"]["instance"]
    assert found[0]["dataCenterInfo"] == center


def test_a_vip_of_several_parts_is_never_stale(client: FlaskClient) -> None:
    def sizes() -> list[int]:
        answers = [client.get(f"/eureka/vips/{vip}", headers=JSON).get_json() for vip in "abc"]
        return [len(answer["applications"]["application"]) for answer in answers]

    assert sizes() == [0, 0, 0]
    register(client, "WEB", "web:1", vipAddress="a,b")
    assert sizes() == [1, 1, 0]
    register(client, "WEB", "web:1", vipAddress="b,c", lastDirtyTimestamp="1700000000001")
    assert sizes() == [0, 1, 1]


def test_the_group_is_in_upper_case_from_json_alone_a_batch_included(client: FlaskClient) -> None:
    item = json.loads(instance_body("WEB", "web:1", appGroupName="grp"))["instance"]
    entry = {"appName": "WEB", "id": "web:1", "action": "Register", "instanceInfo": item}
    batch = json.dumps({"replicationList": [entry]})
    assert client.post("/eureka/peerreplication/batch", data=batch, headers=JSON).status_code == 200
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["appGroupName"] == "GRP"


def test_springs_nulls_count_as_absent(client: FlaskClient) -> None:
    nulls = {"appGroupName": None, "asgName": None, "actionType": None, "metadata": None}
    assert register(client, "WEB", "web:1", sid="na", **nulls).status_code == 204
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert not {"appGroupName", "asgName", "sid"} & found.keys()
    assert found["metadata"] == {"@class": "java.util.Collections$EmptyMap"}


def test_a_body_over_the_limit_is_a_413(client: FlaskClient) -> None:
    big = register(client, "WEB", "web:1", metadata={"pad": "x" * 1024 * 1024})
    assert big.status_code == 413
    small = make_client(EurekaSettings(max_batch_bytes=50))
    batch = json.dumps({"replicationList": [{"appName": "A", "id": "b", "action": "Cancel"}]})
    assert small.post("/eureka/peerreplication/batch", data=batch, headers=JSON).status_code == 413


def test_a_compressed_body_is_read_within_the_limit(client: FlaskClient) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    body = gzip.compress(instance_body("WEB", "web:1").encode())
    assert client.post("/eureka/apps/WEB", data=body, headers=headers).status_code == 204
    bomb = gzip.compress(b"x" * 4 * 1024 * 1024)
    assert client.post("/eureka/apps/WEB", data=bomb, headers=headers).status_code == 413
    assert client.post("/eureka/apps/WEB", data=b"plain", headers=headers).status_code == 400


def test_a_disabled_delta_is_a_403() -> None:
    response = make_client(EurekaSettings(delta_enabled=False)).get("/eureka/apps/delta")
    assert (response.status_code, response.data) == (403, b"")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/xml"),
        ("*/*", "application/xml"),
        ("application/json", "application/json"),
        ("application/json;q=0.4, application/xml;q=0.9", "application/xml"),
        ("application/json, */*;q=0.1", "application/json"),
        ("text/html, */*;q=0.1", "application/xml"),
        ("application/json;q=0", "application/json"),
        ("application/json;q=0, */*", "application/xml"),
        ("application/json;Q=0.1, application/xml;q=0.2", "application/xml"),
        ("*/*;q=0", "application/xml"),
        ("*", "application/xml"),
        ("*/json", "application/json"),
        ("text/html, image/gif, *; q=.2, */*; q=.2", "application/xml"),
        ("text/plain,\tapplication/json", "application/json"),
    ],
)
def test_a_single_instance_is_negotiated_by_quality(
    client: FlaskClient, accept: str | None, expected: str
) -> None:
    register(client, "WEB", "web:1")
    headers = {"Accept": accept} if accept else {}
    assert client.get("/eureka/apps/WEB/web:1", headers=headers).content_type == expected


@pytest.mark.parametrize("accept", ["application/json;q=abc", "application/json;q=-1", "text/html"])
def test_what_accepts_neither_format_is_a_406(client: FlaskClient, accept: str) -> None:
    register(client, "WEB", "web:1")
    for path in ("/apps", "/apps/WEB", "/apps/WEB/web:1", "/vips/web"):
        assert client.get(f"/eureka{path}", headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize(
    "text",
    ["", "x", "1e3", "1.0", "0x10", "1_7", "+1700000000000", "%201", "1%20", "9223372036854775808"],
)
def test_a_timestamp_in_a_query_has_digits_alone(client: FlaskClient, text: str) -> None:
    register(client, "WEB", "web:1")
    path = "/eureka/apps/WEB/web:1"
    before = client.get(path, headers=JSON).data
    for rest in (f"?lastDirtyTimestamp={text}", f"/status?value=DOWN&lastDirtyTimestamp={text}"):
        assert client.put(path + rest).status_code == 400
    assert client.get(path, headers=JSON).data == before


def test_who_is_unknown_is_told_so_whatever_the_timestamp(client: FlaskClient) -> None:
    for text in ("x", "", "1700000000000"):
        assert client.put(f"/eureka/apps/NO/no:1?lastDirtyTimestamp={text}").status_code == 404


def test_the_first_of_several_replication_marks_counts(client: FlaskClient) -> None:
    register(client, "WEB", "web:1")
    for told, status in (("true,false", 409), ("true, true", 409), ("false,true", 200)):
        answer = client.put(
            "/eureka/apps/WEB/web:1?lastDirtyTimestamp=1600000000000",
            headers={"x-netflix-discovery-replication": told},
        )
        assert answer.status_code == status


def batch_of(client: FlaskClient, **fields: Any) -> tuple[int, list[int]]:
    """The status of a batch of one heartbeat with these fields, and of what is in it."""
    item = {"appName": "WEB", "id": "web:1", "action": "Heartbeat"} | fields
    body = json.dumps({"replicationList": [item]})
    answer = client.post("/eureka/peerreplication/batch", data=body, headers=JSON)
    if answer.status_code != 200:
        return answer.status_code, []
    return 200, [each["statusCode"] for each in answer.get_json()["responseList"]]


@pytest.mark.parametrize(
    ("told", "answered"),
    [
        (1700000000000, 200),
        ("1700000000000", 200),
        (" 1700000000000\n", 200),
        (1.7e12, 200),
        (1.5, 409),
        (-1, 409),
        ("1700000000001", 404),
        ("", 200),
        (None, 200),
        ("1.7e12", None),
        ("x", None),
        (2**63, None),
        ("9223372036854775808", None),
        (True, None),
        ([], None),
    ],
)
def test_a_peers_timestamp_is_what_the_original_takes_it_for(
    client: FlaskClient, told: Any, answered: int | None
) -> None:
    register(client, "WEB", "web:1")
    wanted = (400, []) if answered is None else (200, [answered])
    assert batch_of(client, lastDirtyTimestamp=told) == wanted


def test_texts_of_a_batch_may_be_any_scalar(client: FlaskClient) -> None:
    register(client, "5", "1.50")
    body = '{"replicationList":[{"appName":5,"id":1.50,"action":"Heartbeat","status":true}]}'
    answer = client.post("/eureka/peerreplication/batch", data=body, headers=JSON)
    assert answer.get_json() == {"responseList": [{"statusCode": 200}]}
    assert batch_of(client, appName=[]) == (400, [])
    register(client, "WEB", "web:1")
    newer = {"lastDirtyTimestamp": 1800000000000}
    assert batch_of(client, overriddenStatus="up", **newer) == (200, [500])
    removal = {"action": "DeleteStatusOverride", "lastDirtyTimestamp": 1}
    assert batch_of(client, status="", **removal) == (200, [500])
    assert batch_of(client, status=None, **removal) == (200, [200])


@pytest.mark.parametrize("action", [0, 1, "heartbeat", "", True, [], {}])
def test_an_action_has_a_name(client: FlaskClient, action: Any) -> None:
    register(client, "WEB", "web:1")
    assert batch_of(client, action=action) == (400, [])


@pytest.mark.parametrize("told", [[], "x", {}, {"app": "WEB", "port": "x"}])
def test_a_batch_with_an_instance_that_is_none_changes_nothing(
    client: FlaskClient, told: Any
) -> None:
    register(client, "WEB", "web:1")
    items = [
        {"appName": "WEB", "id": "web:1", "action": "Cancel"},
        {"appName": "WEB", "id": "web:2", "action": "Register", "instanceInfo": told},
    ]
    body = json.dumps({"replicationList": items})
    answer = client.post("/eureka/peerreplication/batch", data=body, headers=JSON)
    assert answer.status_code == 400
    assert client.get("/eureka/apps/WEB/web:1").status_code == 200


def test_metadata_of_a_query_without_a_name_is_none(client: FlaskClient) -> None:
    register(client, "WEB", "web:1", metadata={})
    assert client.put("/eureka/apps/WEB/web:1/metadata?=b&a=c&a=d&e&f=").status_code == 200
    found = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert found["metadata"] == {"a": "c", "e": "", "f": ""}


def test_an_unknown_vip_is_an_empty_answer(client: FlaskClient) -> None:
    answer = client.get("/eureka/svips/nobody", headers=JSON).get_json()
    assert answer == {
        "applications": {"versions__delta": "-1", "apps__hashcode": "", "application": []}
    }


def test_xml_shows_a_single_drained_instance_as_down_and_lists_it_as_it_is(
    client: FlaskClient,
) -> None:
    register(client, "WEB", "web:1", status="OUT_OF_SERVICE")
    assert b"<status>DOWN</status>" in client.get("/eureka/apps/WEB/web:1").data
    assert b"<status>OUT_OF_SERVICE</status>" in client.get("/eureka/apps/WEB").data
    single = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()
    assert single["instance"]["status"] == "OUT_OF_SERVICE"


def test_metadata_that_is_no_element_name_is_escaped_as_the_original_does() -> None:
    names = {"x y": "x_.0020y", "1n": "_.0031n", "k&": "k_.0026", "a_b": "a__b", "$": "_-"}
    names |= {"aws:a:b": "aws_.003aa_.003ab", ":": "_.003a"}
    for key, expected in names.items():
        assert codecs.encode_name(key) == expected
        assert codecs.decode_name(expected) == key
    assert codecs.decode_name("k_.00E9_.00e9") == "kéé"


def test_a_colon_in_a_metadata_key_is_no_prefix_to_readers_that_know_namespaces(
    client: FlaskClient,
) -> None:
    keys = {"aws:autoscaling:groupName": "g", "xmlns:x": "y", ":": "z"}
    amazon = AMAZON | {"metadata": {"instance-id": "i-1", "a:b": "c"}}
    assert register(client, "WEB", "web:1", metadata=keys, dataCenterInfo=amazon).status_code == 204
    for path in ("/apps", "/apps/delta", "/apps/WEB", "/apps/WEB/web:1", "/vips/web"):
        for compact in ({}, {"X-Eureka-Accept": "compact"}):
            answer = client.get(f"/eureka{path}", headers=XML | compact)
            root = ElementTree.fromstring(answer.data)
            (found,) = root.iter("instance")
            if not compact or path == "/apps/WEB/web:1":
                posted = client.post(
                    "/eureka/apps/WEB", data=ElementTree.tostring(found), headers=XML
                )
                assert posted.status_code == 204
    back = client.get("/eureka/apps/WEB/web:1", headers=JSON).get_json()["instance"]
    assert back["metadata"] == keys
    assert back["dataCenterInfo"]["metadata"]["a:b"] == "c"


@given(st.text(min_size=1))
def test_every_metadata_key_survives_the_element_name(key: str) -> None:
    assert codecs.decode_name(codecs.encode_name(key)) == key


xml_text = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
)


@given(st.dictionaries(xml_text.filter(bool), xml_text, max_size=5), xml_text.filter(bool))
@example({"overriddenStatus": "x", "port": "1", "leaseInfo": "y"}, "host")
def test_an_instance_comes_back_from_both_formats(metadata: dict[str, str], host: str) -> None:
    metadata.pop("@class", None)
    metadata.pop("instanceId", None)
    instance = sample_instance(metadata=metadata, host_name=host)
    for form, read in (
        (Form.JSON, codecs.instance_tree_from_json),
        (Form.XML, codecs.instance_tree_from_xml),
    ):
        candidate = wire.read_candidate(read(encode_single(instance, form)))
        back: Instance = wire.validated(candidate, "WEB", 0)
        assert (back.metadata, back.host_name, back.id) == (metadata, host, instance.id)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_400(body: bytes) -> None:
    client = make_client()
    for headers in (JSON, XML):
        response = client.post("/eureka/apps/WEB", data=body, headers=headers)
        assert response.status_code == 400
    batch = client.post("/eureka/peerreplication/batch/", data=body, headers=JSON)
    assert batch.status_code == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted(json.loads(instance_body("WEB", "web:1"))["instance"])


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_in_any_field_is_accepted_or_a_400(name: str, value: Any) -> None:
    client = make_client()
    response = register(client, "WEB", "web:1", **{name: value})
    assert response.status_code in (204, 400)
    for headers in (JSON, XML):
        assert client.get("/eureka/apps", headers=headers).status_code == 200
