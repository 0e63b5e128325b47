"""The operator's page in a real browser: what is seen, what is done, and who may.

One server and one browser serve all of it; each test has applications of its own.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.servers import JSON, RegistryServer, wait_until

pytestmark = pytest.mark.programs

CHROMIUM = "/usr/bin/chromium"
LONG = {"renewalIntervalInSecs": 30, "durationInSecs": 3600}
_numbers = itertools.count()
PATIENCE_MS = 90_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    folder = tmp_path_factory.mktemp("page")
    with RegistryServer(folder, workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Looked:
    """A page, and whatever its console has told."""

    def __init__(self, browser: Browser, root: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.root = root
        self.page: Page = self.context.new_page()
        self.told: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def go(self, **place: str) -> Page:
        self.page.goto(f"{self.root}/?{urlencode(place)}" if place else f"{self.root}/")
        self.page.wait_for_selector("h1")
        return self.page


@pytest.fixture
def looked(browser: Browser, server: RegistryServer) -> Iterator[Looked]:
    looked = Looked(browser, server.root)
    yield looked
    looked.context.close()
    # Nothing is wrong, and nobody else was asked for anything.
    assert looked.told == []
    assert {url for url in looked.asked if not url.startswith(server.root)} == set()


def new_app() -> str:
    return f"app{next(_numbers)}"


def registered(server: RegistryServer, app: str, number: int = 1, **fields: Any) -> str:
    name = f"{app}:{number}"
    assert server.register(app.upper(), name, leaseInfo=LONG, **fields) == 204
    return name


def told(server: RegistryServer, name: str) -> Any:
    answer = server.send("GET", f"/api/v1/instances/{quote(name, safe='')}?fields=override,status")
    return answer.json()


# Finding


def test_applications_lead_to_their_instances_and_these_to_all_about_one(
    server: RegistryServer, looked: Looked
) -> None:
    app = new_app()
    registered(server, app, 1, metadata={"zone": "eu-1", "version": "2"})
    registered(server, app, 2, status="DOWN")
    page = looked.go(q=f"app={app}", view="applications")
    row = page.get_by_role("row", name=re.compile(app))
    expect(row).to_contain_text("UP 1")
    expect(row).to_contain_text("DOWN 1")
    row.get_by_role("link", name=app, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(app)
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    first = page.get_by_role("row", name=re.compile(f"{app}:1"))
    for text in (
        "eu-1",
        "version=2",
        "10.0.0.1",
        "host.local:8080",
        "renewed",
        "ends in",
        "eureka",
    ):
        expect(first).to_contain_text(text)
    first.get_by_role("link", name=f"{app}:1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{app}:1")
    for text in ("eu-1", "host.local", "Metadata", "Lease", "60 min"):
        expect(page.locator("main")).to_contain_text(text)
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(app)


def test_the_url_holds_the_search_and_the_field_is_a_key_away(
    server: RegistryServer, looked: Looked
) -> None:
    app = new_app()
    registered(server, app, 1, metadata={"version": "1"})
    registered(server, app, 2, metadata={"version": "2"})
    page = looked.go(view="instances")
    page.locator("main").press("/")
    field = page.get_by_role("searchbox")
    expect(field).to_be_focused()
    field.type(f"app={app} meta.version=2")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody")).to_contain_text(f"{app}:2")
    expect(field).to_be_focused()
    assert f"q=app%3D{app}+meta.version%3D2" in page.url
    page.reload()
    expect(page.get_by_role("searchbox")).to_have_value(f"app={app} meta.version=2")
    expect(page.locator("tbody tr")).to_have_count(1)
    field.fill("nobody-has-this")
    expect(page.locator("main")).to_contain_text("Nothing answers this search.")


# Live


def test_changes_are_shown_as_they_happen(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    registered(server, app, 1)
    page = looked.go(app=app)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    link = page.get_by_role("link", name=f"{app}:1")
    link.focus()
    registered(server, app, 0)
    expect(rows).to_have_count(2)
    expect(link).to_be_focused()
    path = f"/api/v1/instances/{quote(f'{app}:1', safe='')}/override"
    assert server.send("PUT", path, json.dumps({"status": "OUT_OF_SERVICE"}), JSON).status == 200
    expect(rows.nth(1)).to_contain_text("OUT_OF_SERVICE")
    expect(link).to_be_focused()
    assert server.eureka("DELETE", f"/apps/{app.upper()}/{app}:0").status == 200
    expect(rows).to_have_count(1)


# Doing


def test_an_instance_is_taken_out_of_service_and_that_is_undone(
    server: RegistryServer, looked: Looked
) -> None:
    app = new_app()
    name = registered(server, app)
    page = looked.go(app=app, id=name)
    page.get_by_role("button", name="Take out of service").click()
    expect(page.get_by_role("heading", level=1).locator("..")).to_contain_text("OUT_OF_SERVICE")
    assert told(server, name)["override"] == "OUT_OF_SERVICE"
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("heading", level=1).locator("..")).to_contain_text("UP")
    assert told(server, name)["override"] is None
    page.get_by_role("button", name="Take out of service").click()
    page.get_by_role("button", name="Back in service").click()
    expect(page.get_by_role("button", name="Take out of service")).to_be_visible()
    assert told(server, name)["status"] == "UP"


def test_metadata_are_changed_and_changed_back(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = registered(server, app, metadata={"zone": "eu-1", "canary": "yes"})
    page = looked.go(app=app, id=name)
    page.get_by_role("button", name="Change metadata").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("zone=eu-2\nnew=a=b")
    page.get_by_role("dialog").get_by_role("button", name="Change").click()
    section = page.locator("section[data-key=Metadata]")
    expect(section).to_contain_text("a=b")
    answer = server.send("GET", f"/api/v1/instances/{name}?fields=metadata").json()
    assert answer["metadata"] == {"zone": "eu-2", "new": "a=b"}
    page.get_by_role("button", name="Undo").click()
    expect(section).to_contain_text("canary")
    answer = server.send("GET", f"/api/v1/instances/{name}?fields=metadata").json()
    assert answer["metadata"] == {"zone": "eu-1", "canary": "yes"}


def test_removing_is_asked_for_first(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = registered(server, app)
    page = looked.go(app=app, id=name)
    page.get_by_role("button", name="Remove").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert told(server, name)["status"] == "UP"
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    wait_until(lambda: server.send("GET", f"/api/v1/instances/{name}").status == 410)
    expect(page.locator("main")).to_contain_text("not listed")
    # It is asked for again and is no more, which a browser notes.
    looked.told = [text for text in looked.told if "410" not in text]


def test_an_application_is_done_at_once(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    names = [registered(server, app, number) for number in range(3)]
    page = looked.go(app=app)
    group = page.get_by_role("group", name=f"All instances of {app}")
    dialog = page.get_by_role("dialog")
    group.get_by_role("button", name="Out of service").click()
    dialog.get_by_role("button", name="Out of service").click()
    expect(page.locator("tbody .status[data-status=OUT_OF_SERVICE]")).to_have_count(3)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("tbody .status[data-status=UP]")).to_have_count(3)
    assert [told(server, name)["override"] for name in names] == [None] * 3
    group.get_by_role("button", name="Remove").click()
    dialog.get_by_role("button", name="Remove all").click()
    expect(page.locator("main")).to_contain_text("No instance is registered here.")
    assert not set(names) & server.apps().keys()


# Hostile clients


def test_what_clients_send_is_text(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = f"<img src=x onerror=alert(1)>'\"&amp;{app}"
    script = "<script>window.hurt = 1</script>"
    fields = {
        "metadata": {script: "\"><svg onload='window.hurt=1'>", "zone": script},
        "homePageUrl": "javascript:window.hurt=1",
        "statusPageUrl": "data:text/html,<script>window.hurt=1</script>",
        "healthCheckUrl": "https://health.example/<script>",
        "vipAddress": script,
        "hostName": "</td><script>window.hurt=1</script>",
    }
    assert server.register(app.upper(), name, leaseInfo=LONG, **fields) == 204
    page = looked.go(app=app)
    expect(page.locator("tbody")).to_contain_text(name)
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    main = page.locator("main")
    expect(main).to_contain_text(script)
    expect(main).to_contain_text("javascript:window.hurt=1")
    links = main.locator("section[data-key=Links] a")
    expect(links).to_have_count(1)
    assert links.get_attribute("rel") == "noopener noreferrer"
    assert links.get_attribute("href") == "https://health.example/%3Cscript%3E"
    page.locator("summary").click()
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img, main script, main svg").count() == 0
