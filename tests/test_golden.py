"""What a genuine server answered, recorded, and answered by this one.

Not compared: the server's own clock readings, the delta's counter, the order of applications,
instances and metadata, and the pages of errors. A recorded 5xx for bad input may be a 400 here.
"""

from __future__ import annotations

import gzip
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RegistryServer

GOLDEN = Path(__file__).parent / "golden"
SCENARIOS = sorted(f.stem for f in GOLDEN.glob("*.json") if f.stem != "corrections")
FAULTS = {tuple(entry) for entry in json.loads((GOLDEN / "corrections.json").read_text())["skip"]}
# Where this server does better on purpose (eureka_compat/QUIRKS.md).
BETTER = {
    ("content-negotiation", "GET", "/apps/NEG/n-1", "APPLICATION/JSON"): "echoes-accept-case",
    ("content-negotiation", "GET", "/instances/n-1", "APPLICATION/JSON"): "echoes-accept-case",
    ("register-variants", "GET", "/apps/VAR/var%20a%2Fb", "application/json"): "slash-in-id",
    ("register-variants", "DELETE", "/apps/VAR/var%20a%2Fb", ""): "slash-in-id",
}
CLOCK = re.compile(r"\b1[789]\d{11}\b")
SENT = re.compile(r"1[5-8]00000000\d{3}")
COUNTER = re.compile(r'("versions__delta":"|<versions__delta>)\d+')


def masked(text: str) -> str:
    text = CLOCK.sub(lambda m: m[0] if SENT.fullmatch(m[0]) else "CLOCK", text)
    return COUNTER.sub(r"\1N", text)


def unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((unordered(item) for item in value), key=repr)
    return value


def element(node: ElementTree.Element) -> Any:
    children = [element(child) for child in node]
    if node.tag in ("metadata", "application", "applications"):
        children.sort(key=repr)
    return node.tag, sorted(node.attrib.items()), (node.text or "").strip(), children


def content(text: str) -> Any:
    text = masked(text).replace(":CLOCK", ':"CLOCK"').strip()
    if text.startswith("{"):
        return unordered(json.loads(text))
    return element(ElementTree.fromstring(text)) if text.startswith("<") else text


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recorded_scenario_is_answered_as_the_genuine_server_did(
    name: str, tmp_path: Path
) -> None:
    (scenario,) = json.loads((GOLDEN / f"{name}.json").read_text())
    compared = 0
    with RegistryServer(tmp_path, env={"LEASE_EXPIRY": "genuine"}) as server:
        for exchange in scenario["exchanges"]:
            request, want = exchange["request"], exchange["response"]
            method, path = request["method"], request["path"]
            got = server.eureka(method, path, request["body"], request["headers"])
            identity = (name, method, path, request["headers"].get("Accept", ""))
            what = f"{method} {path} {request['headers']}"
            if identity in FAULTS or identity in BETTER:
                assert got.status < 500, what
                continue
            compared += 1
            allowed = {want["status"], 400} if want["status"] >= 500 else {want["status"]}
            assert got.status in allowed, (what, got)
            if got.status != 409 and got.status >= 300:
                if method in ("PUT", "DELETE"):
                    assert got.body == b"", what
                continue
            body = got.body
            if got.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert content(body.decode()) == content(want["body"]), what
            if want["body"]:
                media = want["headers"]["content-type"].split(";")[0]
                assert got.headers["content-type"].split(";")[0] == media, what
            if want["headers"].get("content-encoding"):
                assert got.headers["content-encoding"] == want["headers"]["content-encoding"], what
    assert compared >= len(scenario["exchanges"]) // 2
