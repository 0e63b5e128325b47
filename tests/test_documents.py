"""The documents hold: links lead somewhere, the drawing is true, commands do what they show."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify
from markdown_it import MarkdownIt
from markdown_it.token import Token

from conformance.programs import free_port, named
from tests.servers import ANOTHER_WORKER, HANG_SECS, ROOT, wait_until
from tests.shells import Shell, path_with_commands

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


# What works


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, its head included."""
    text = (ROOT / document).read_text().split(f"\n{heading}\n", 1)[1]
    lines = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines()),
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_says_of_what_works_what_the_last_comparison_found() -> None:
    head, _, *found = rows("conformance/COVERAGE.md", "## this server")
    passed = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in found}
    _, _, *told = rows("README.md", "## What works")

    for names, *ticks in told:
        for name in names.split(", "):
            cases = passed[name]
            compact = cases["json compact"] and cases["xml compact"]
            forms = (cases["json"], cases["xml"], compact)
            assert ticks == ["✓" if form else "" for form in forms], name


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

    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECS)

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


def test_each_module_that_the_architecture_names_is_in_its_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    paragraphs = re.findall(r"^\*\*`(\w+)`\*\* (.*?)\n\n", text, re.DOTALL | re.MULTILINE)

    named = [
        ROOT / package / name
        for package, paragraph in paragraphs
        for name in re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", paragraph)
    ]

    assert [path for path in named if not path.exists()] == []
    assert len(named) > 30


# Blocks


@dataclass(frozen=True)
class Block:
    """A fenced block: ``console`` is a session at a terminal, a titled one is a file."""

    document: str
    language: str
    title: str
    text: str


# Blocks that no test here runs, with the reason: documents, and how their first lines begin.
NOT_RUN = {
    "makes the environment that this suite runs in": {
        ("README.md", "$ make run"),
        ("CONTRIBUTING.md", "$ uv pip compile"),
    },
    "takes minutes": {
        ("README.md", "$ eureka-registry conformance"),
        ("CONTRIBUTING.md", "$ .venv/bin/python -m tests.histories"),
        ("docs/migrate/from-eureka.md", "$ eureka-registry conformance"),
        ("docs/reference/conformance.md", "$ eureka-registry conformance"),
        ("docs/reference/conformance.md", "$ EUREKA_CLIENT_SERVICEURL_DEFAULTZONE"),
        ("docs/reference/conformance.md", "$ make conformance"),
    },
    "is a part of what tests/test_real_clients.py runs whole": {
        ("docs/operate/accounts.md", "eureka.client.tls.enabled"),
        ("docs/start/clients.md", "<dependency>"),
        ("docs/start/clients.md", "@Bean"),
        ("docs/start/clients.md", "spring.application.name"),
        ("docs/start/clients.md", "eureka.client.registry-fetch-interval-seconds"),
    },
    "is run by the tests of its language below": {
        ("docs/start/clients.md", "const { Eureka }"),
        ("docs/start/clients.md", "eureka := fargo.NewConn"),
    },
    "is done by tests/test_parcel.py, as far as it can be done without root": {
        ("docs/operate/deploying.md", "$ python3 -m venv"),
    },
    "needs a cluster, a container or etcd": {
        ("docs/operate/deploying.md", "$ docker build"),
        ("docs/operate/deploying.md", "$ kubectl apply"),
        ("docs/operate/observing.md", "exec: "),
        ("docs/reference/catalogs.md", "$ kubectl"),
        ("docs/reference/catalogs.md", "REGISTRY_CATALOGS: '[{kind: kubernetes, name: main}]'"),
        ("docs/reference/catalogs.md", "REGISTRY_CATALOGS: '[{kind: kubernetes, name: main, kube"),
        ("docs/reference/catalogs.md", "$ etcdctl"),
        ("docs/reference/sidecar.md", "ENTRYPOINT"),
        ("docs/reference/command.md", "spec:"),
    },
    "asks a registry with a past; tests/test_history.py does it": {
        ("docs/operate/history.md", "$ curl 'http://localhost:8761/api/v1/history"),
        ("docs/operate/history.md", "{"),
        ("docs/operate/history.md", "$ curl 'http://localhost:8761/api/v1/services"),
    },
    "needs a peer that runs; tests/test_command_peers.py does it": {
        ("docs/reference/command.md", "$ eureka-registry peers"),
    },
    "is Redis' own; tests/test_redis_tls.py takes it from the document": {
        ("docs/operate/stores.md", "ACL SETUSER eureka"),
    },
    "tags this very checkout": {
        ("docs/releasing.md", "$ git tag"),
    },
    "asks for a password": {
        ("docs/operate/accounts.md", "$ python -c 'import getpass"),
    },
}

# Documents that are performed whole, by a test of their own.
PERFORMED = {"docs/migrate/cluster.md": "tests/test_migration.py"}


def reasons(block: Block) -> list[str]:
    """Why it is not run here."""
    return [
        reason
        for reason, named in NOT_RUN.items()
        for document, beginning in named
        if block.document == document and block.text.startswith(beginning)
    ]


def blocks(document: str) -> list[Block]:
    found = []
    for token in parsed(document):
        assert token.type != "code_block", f"{document}: not fenced: {token.content}"
        if token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title = re.fullmatch(r'title="(.+)"', rest.strip())
            found.append(Block(document, language, title[1] if title else "", token.content))
    return found


def runnable(document: str) -> list[Block]:
    """The sessions of a document, and the files that their commands name."""
    if document in PERFORMED:
        return []
    shown = [block for block in blocks(document) if not reasons(block)]
    sessions = "".join(block.text for block in shown if block.language == "console")
    return [block for block in shown if block.language == "console" or is_used(block, sessions)]


def is_used(block: Block, sessions: str) -> bool:
    """Whether a command names the file, or the folder that it is in."""
    return block.title != "" and block.title.split("/")[0] in sessions


@pytest.mark.parametrize(("document", "module"), PERFORMED.items())
def test_what_is_performed_whole_is_named_by_the_test_that_performs_it(
    document: str, module: str
) -> None:
    assert f'"{document}"' in (ROOT / module).read_text()
    assert module in (ROOT / document).read_text()


def test_each_block_is_run_or_named_with_the_reason_why_it_is_not() -> None:
    every = [block for document in DOCUMENTS for block in blocks(document)]
    run = [block for document in DOCUMENTS for block in runnable(document)]
    every = [block for block in every if block.document not in PERFORMED]

    assert [block for block in every if block not in run and not reasons(block)] == []
    named = [reason for block in every for reason in reasons(block)]
    assert len(named) == sum(len(blocks) for blocks in NOT_RUN.values())


# Commands


class Terminal:
    """A shell in an empty folder, with the command that the wheel installs.

    The documents' ports are free ones here, and servers listen on loopback alone. A server stands
    for one in another terminal: it runs until the document starts another on its port, or ends.
    """

    def __init__(self, folder: Path) -> None:
        self._home = folder / "home"
        self._folder = folder / "folder"
        self._folder.mkdir()
        self._home.mkdir()
        (self._home / ".curlrc").write_text("no-progress-meter\n")  # as at a terminal
        self._ports = {shown: str(free_port()) for shown in ("8761", "8762", "9080")}
        self._environment = {
            "PATH": path_with_commands(self._home / "bin"),
            "HOME": str(self._home),
            "PYTHONPATH": str(ROOT),
            "HOST": "127.0.0.1",
            "EUREKA_REGISTRY_URL": f"http://127.0.0.1:{self._ports['8761']}",
            "PORT": self._ports["8761"],
            "WORKERS": "2",
            **ANOTHER_WORKER,
        }
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._shell = Shell(self._folder, self._environment, self._home / "typed")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            self._shell.close()

    def here(self, text: str) -> str:
        """A document's text with the ports of this terminal."""
        for shown, real in self._ports.items():
            text = text.replace(shown, real)
        return text.replace("0.0.0.0", "127.0.0.1")

    def write(self, name: str, text: str) -> None:
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.here(text))

    def type(self, command: str, *, seconds: float = HANG_SECS) -> tuple[int, str]:
        """The status of a command, and what it prints; after these seconds it hangs."""
        if re.search(r"\beureka-registry serve\b(?!.*--check)", command):
            self._serve(command)
            return 0, ""
        if re.search(r"\beureka-registry sidecar\b", command):
            self._start(command)
            return 0, ""
        status, printed = self._shell.type(command, seconds=seconds)
        return status, printed.replace("\r", "")

    def _serve(self, command: str) -> None:
        told = re.search(r"--port (\d+)", command)
        port = told[1] if told else self._ports["8761"]
        self._stop(port)
        process = self._start(command, port)

        def listens() -> bool:
            assert process.poll() is None, f"it ended: {command}\n{self.log()}"
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", int(port))) == 0

        wait_until(listens, command)

    def _start(self, command: str, port: str = "") -> subprocess.Popen[bytes]:
        with (self._home / "log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append((port, process))
        return process

    def _stop(self, port: str | None = None) -> None:
        """End what listens on this port; without one, all that was left running."""
        ending = [(p, process) for p, process in self._running if port in (None, p)]
        for _, process in reversed(ending):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        try:
            for _, process in ending:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(HANG_SECS)
        finally:
            # Whatever did not end, or was left behind by who did; also where the test is cut off.
            for each in ending:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each[1].pid, signal.SIGKILL)
                each[1].wait()
                self._running.remove(each)

    def log(self) -> str:
        log = self._home / "log"
        return log.read_text() if log.exists() else ""


def commands(session: str) -> list[tuple[str, str]]:
    """Each command after a ``$``, continued after ``>``, with the answer that is shown."""
    found: list[tuple[str, str]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), ""))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", "")
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether it is the same; ``…`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def is_a_look(command: str) -> bool:
    """Whether it changes nothing, so that it may be repeated until what is shown is there."""
    if re.match(r"eureka-registry (status|apps|instances|show|why|history|readers)\b", command):
        return True
    return command.startswith("curl ") and not re.search(r" -(X|d|o)\b", command)


@pytest.mark.programs  # a shell and curl, which a machine may lack
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if runnable(name)])
def test_the_commands_of_a_document_do_what_it_shows(document: str, tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        for block in runnable(document):
            if block.language != "console":
                terminal.write(block.title, block.text)
                continue
            for command, shown in commands(terminal.here(block.text)):
                deadline = time.monotonic() + HANG_SECS
                while True:
                    status, printed = terminal.type(command)
                    is_fine = is_as_shown(shown, printed) and (shown != "" or status == 0)
                    if is_fine or not is_a_look(command) or time.monotonic() > deadline:
                        break
                    time.sleep(0.1)
                assert is_fine, f"$ {command}\n{printed}\n(shown: {shown})\n{terminal.log()}"


# Programs of other languages


def program(language: str) -> str:
    (block,) = (b for b in blocks("docs/start/clients.md") if b.language == language)
    return block.text


def is_registered(terminal: Terminal) -> bool:
    status, _ = terminal.type(terminal.here("curl -sf localhost:8761/eureka/apps/SHOP/shop:1"))
    return status == 0


@pytest.mark.programs
def test_the_program_in_node_registers(tmp_path: Path) -> None:
    (node,) = named("node")
    _, client = node.command()

    with Terminal(tmp_path) as terminal:
        terminal.type("eureka-registry serve")
        terminal.write("shop.js", program("js"))
        terminal.type(f"NODE_PATH={Path(client).parent}/node_modules node shop.js > log 2>&1 &")

        wait_until(lambda: is_registered(terminal), "its registration")


@pytest.mark.programs
def test_the_program_in_go_registers(tmp_path: Path) -> None:
    imports = 'import (\n\t"log"\n\t"time"\n\n\t"github.com/hudl/fargo"\n)\n'
    main = f"package main\n\n{imports}\nfunc main() {{\n{program('go')}log.Fatal(err)\n}}\n"
    clients = ROOT / "conformance/clients/fargo"

    with Terminal(tmp_path) as terminal:
        terminal.type("eureka-registry serve")
        for name in ("go.mod", "go.sum"):
            (tmp_path / "folder" / name).write_bytes((clients / name).read_bytes())
        terminal.write("main.go", main)
        built = terminal.type(f"HOME={Path.home()} go build -mod=mod -o shop main.go", seconds=600)
        terminal.type("./shop > log 2>&1 &")

        assert built[0] == 0, built[1]
        wait_until(lambda: is_registered(terminal), "its registration")
