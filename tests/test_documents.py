"""The documents hold: links lead somewhere, the drawing is true, commands do what they show."""

from __future__ import annotations

import itertools
import posixpath
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *("eureka_compat/QUIRKS.md", "native_api/QUIRKS.md", "conformance/COVERAGE.md"),
]


def parsed(document: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / document).read_text())


# Links


def inside(token: Token) -> list[Token]:
    return [token, *(found for child in token.children or () for found in inside(child))]


def links(document: str) -> list[str]:
    tokens = [found for token in parsed(document) for found in inside(token)]
    found = [token.attrGet("href") or token.attrGet("src") for token in tokens]
    return [str(link) for link in found if link is not None]


def anchors(document: str) -> set[str]:
    """The headings of a document as the site names them."""
    tokens = parsed(document)
    texts = [
        "".join(child.content for child in following.children or ())
        for token, following in itertools.pairwise(tokens)
        if token.type == "heading_open"
    ]
    return {slugify(text, "-") for text in texts}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_within_the_project_leads_somewhere(document: str) -> None:
    broken = []
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(document), path))
        if not path:
            target = document
        if not (ROOT / target).exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


# The site


class Loads(HTMLParser):
    """What a browser loads for a page without being asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "object", "embed"):
            self.found.append(given.get("src") or given.get("data") or "")


def test_the_site_is_built_and_asks_nobody_else_for_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]

    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert built.returncode == 0, built.stderr
    loaded = set()
    for page in tmp_path.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        loaded.update(loads.found)
    for sheet in tmp_path.rglob("*.css"):
        loaded.update(re.findall(r"(?:@import\s*|url\()[\"']?([^\"')]+)", sheet.read_text()))
    elsewhere = {place for place in loaded if re.match(r"(https?:)?//", place)}
    assert elsewhere == set()
    assert len(loaded) > 5


# The drawing


def test_the_drawing_shows_the_packages_on_the_floors_that_the_imports_keep() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    drawing = ElementTree.parse(ROOT / "docs/architecture.svg")
    packages = [
        (float(text.get("y", 0)), float(text.get("x", 0)), text.text)
        for text in drawing.iter("{http://www.w3.org/2000/svg}text")
        if text.get("class") == "package"
    ]

    floors: dict[float, list[str]] = {}
    for height, _, name in sorted(packages):
        if name != "conformance":  # it stands beside
            floors.setdefault(height, []).append(str(name))

    layers = next(c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    assert [" | ".join(names) for names in floors.values()] == layers
    assert {name for _, _, name in packages} == set(settings["root_packages"])
