"""What a genuine server answered once, asked again.

The recordings were made on an empty server with fixed names. Here each name gets a tail that no
other has, which is taken out of the answers again, and from the lists is read only what bears it.
Not compared: readings of the server's clock, the delta's counter, hash codes of the whole
registry, the order of applications, instances and metadata, and the pages of errors.
"""

from __future__ import annotations

import json
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from conformance import documents
from conformance.case import Catalogue, Session, unique
from conformance.http import Exchange

catalogue = Catalogue()
FOLDER = Path(__file__).parent.parent / "recordings"
SCENARIOS = sorted(file.stem for file in FOLDER.glob("*.json") if file.stem != "corrections")
# Answers that are faults of the genuine server's, and its servlet container's refusal of %2F.
FAULTS = {tuple(entry) for entry in json.loads((FOLDER / "corrections.json").read_text())["skip"]}
CLOCK = re.compile(r"\b1[789]\d{11}\b")
SENT = re.compile(r"1[5-8]00000000\d{3}")
COUNTER = re.compile(r'("versions__delta":"|<versions__delta>)\d+')
HASH = re.compile(r'("apps__hashcode":"|<apps__hashcode>)[A-Z_0-9]*')
NAMED = re.compile(
    r'("(?:instanceId|hostName|app|appName|id|instance-id|vipAddress|secureVipAddress)"\s*:\s*")([^"]+)'
    r"|(<(?:instanceId|hostName|app|instance-id|vipAddress|secureVipAddress)>)([^<]+)"
)


def scenario(name: str) -> list[dict[str, Any]]:
    """The exchanges of a recording."""
    (found,) = json.loads((FOLDER / f"{name}.json").read_text())
    return list(found["exchanges"])


def is_fault(name: str, request: dict[str, Any]) -> bool:
    """Whether this recorded answer is not one to be repeated."""
    accept = request["headers"].get("Accept", "")
    return (name, request["method"], request["path"], accept) in FAULTS


def masked(text: str) -> str:
    text = CLOCK.sub(lambda m: m[0] if SENT.fullmatch(m[0]) else "CLOCK", text)
    return COUNTER.sub(r"\1N", text)


def content(text: str) -> Any:
    """A body as a value without order, blanks and clock readings."""
    text = masked(text).replace(":CLOCK", ':"CLOCK"').strip()
    if text.startswith("{"):
        return _unordered(json.loads(text))
    return _element(ElementTree.fromstring(text)) if text.startswith("<") else text


def _unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_unordered(item) for item in value), key=repr)
    return value


def _element(node: ElementTree.Element) -> Any:
    children = [_element(child) for child in node]
    if node.tag in ("metadata", "application", "applications"):
        children.sort(key=repr)
    return node.tag, sorted(node.attrib.items()), (node.text or "").strip(), children


def difference(want: dict[str, Any], got: Exchange, answered: str) -> str:
    """What is not as recorded, or nothing; ``answered`` is the body to compare."""
    allowed = {want["status"], 400} if want["status"] >= 500 else {want["status"]}
    if got.status not in allowed:
        return f"status {want['status']}, got {got.status}"
    if got.status >= 300 and got.status != 409:
        return ""
    if content(taken_back(answered)) != content(taken_back(want["body"])):
        return f"the recorded body {want['body']}"
    if want["body"]:
        media = want["headers"]["content-type"].split(";")[0]
        if got.media_type != media:
            return f"Content-Type {media}, got {got.media_type}"
    packed = want["headers"].get("content-encoding")
    if packed and got.headers.get("content-encoding") != packed:
        return f"Content-Encoding {packed}"
    return ""


def own_part(text: str, tail: str) -> str:
    """A list with only the applications whose names bear the tail, and no hash code."""
    text = HASH.sub(r"\1", text)
    if text.startswith("{"):
        document = json.loads(text)
        root = document.get("applications")
        if root is not None:
            root["application"] = [a for a in root["application"] if tail in a["name"]]
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    if text.startswith("<applications"):
        node = ElementTree.fromstring(text)
        for child in node.findall("application"):
            if tail not in (child.findtext("name") or ""):
                node.remove(child)
        return ElementTree.tostring(node, encoding="unicode")
    return text


_PREFIX = re.compile(r"(</?[^<>:/\s]+):(?=[^<>/\s]*/?>)")


def taken_back(answer: str) -> str:
    """An answer without what a server may do better than a genuine one: ids and escaped colons."""
    if answer.startswith("{"):
        document = json.loads(answer)
        _with_ids(document)
        # Some of its answers write half a surrogate pair as an escape, others as a question mark.
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace").decode()
    if not answer.startswith("<"):
        return answer
    while _PREFIX.search(answer):
        answer = _PREFIX.sub(r"\1_.003a", answer)
    root = ElementTree.fromstring(answer)
    for node in root.iter("instance"):
        if node.find("instanceId") is None:
            amazon = node.findtext("dataCenterInfo/metadata/instance-id")
            made = ElementTree.Element("instanceId")
            made.text = amazon or node.findtext("hostName")
            node.insert(0, made)
    return ElementTree.tostring(root, encoding="unicode")


def _with_ids(value: Any) -> None:
    if isinstance(value, dict):
        if "hostName" in value and "dataCenterInfo" in value:
            # In its place, since lists are compared in the order of their elements' text.
            own = {"instanceId": documents.effective_id(value), **value}
            value.clear()
            value.update(own)
        for item in value.values():
            _with_ids(item)
    elif isinstance(value, list):
        for item in value:
            _with_ids(item)


class Renamer:
    """Gives every name in a request its tail."""

    def __init__(self) -> None:
        self.tail = unique("")

    def body(self, text: str | None) -> str | None:
        def renamed(match: re.Match[str]) -> str:
            opening, value = (match[1], match[2]) if match[1] else (match[3], match[4])
            return str(opening) + self._names(str(value))

        return None if text is None else NAMED.sub(renamed, text)

    def path(self, path: str) -> str:
        bare, mark, query = path.partition("?")
        parts = bare.split("/")
        for place, part in enumerate(parts[:-1]):
            if part == "apps" and parts[place + 1] not in ("", "delta"):
                parts[place + 1] = self._quoted(parts[place + 1])
                if len(parts) > place + 2 and parts[place + 2]:
                    parts[place + 2] = self._quoted(parts[place + 2])
                break
            if part in ("vips", "svips", "instances") and parts[place + 1]:
                parts[place + 1] = self._quoted(parts[place + 1])
                break
        return "/".join(parts) + mark + query

    def _names(self, value: str) -> str:
        return ",".join(part + self.tail if part else part for part in value.split(","))

    def _quoted(self, part: str) -> str:
        return urllib.parse.quote(self._names(urllib.parse.unquote(part)), safe=":,")


def replay(s: Session, name: str) -> None:
    """Play one recording; ``FailedError`` at the first answer that differs."""
    renamer = Renamer()
    for recorded in scenario(name):
        request, want = recorded["request"], recorded["response"]
        body = renamer.body(request["body"])
        path = renamer.path(request["path"])
        if request["method"] == "POST" and "/apps/" in path:
            _sweep(s, path, body or "")
        got = s.send(request["method"], path, body, request["headers"])
        if is_fault(name, request):
            s.require(got.status < 500 or want["status"] >= 500, "no 5xx", got)
            continue
        listed = HASH.search(want["body"]) is not None
        answered = own_part(got.body, renamer.tail) if listed else got.body
        recorded_body = HASH.sub(r"\1", want["body"]) if listed else want["body"]
        found = difference({**want, "body": recorded_body}, got, answered.replace(renamer.tail, ""))
        s.require(not found, found, got)


def _sweep(s: Session, path: str, body: str) -> None:
    app = urllib.parse.unquote(path.split("/apps/")[1].split("/")[0])
    fields = {
        key: match[2]
        for key in ("instanceId", "hostName", "instance-id")
        if (match := re.search(rf'("{key}"\s*:\s*"|<{key}>)([^"<]+)', body))
    }
    for identity in fields.values():
        s.sweep_later(app, {"instanceId": identity})


catalogue.case(
    "recording",
    "answers of Spring Cloud Netflix Eureka Server 4.3",
    over={name: (name,) for name in SCENARIOS},
)(replay)
