"""The operator's page in a real browser: what is seen, what is done, and who may.

One server and one browser serve all of it; each test has applications of its own.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright
from werkzeug.security import generate_password_hash

from conformance.programs import free_port
from tests.servers import JSON, RegistryServer, instance_body, wait_until

pytestmark = pytest.mark.programs

CHROMIUM = "/usr/bin/chromium"
# Under gthread a watch holds a thread, for a while also after its page was closed.
THREADS = {"THREADS": "64"}
ANN = {"Authorization": f"Basic {base64.b64encode(b'ann:secret').decode()}"}
LONG = {"renewalIntervalInSecs": 30, "durationInSecs": 3600}
_numbers = itertools.count()
PATIENCE_MS = 90_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """In self-preservation from the start, with a catalog that has a problem and a silent peer."""
    folder = tmp_path_factory.mktemp("page")
    listed = folder / "listed"
    listed.mkdir()
    entry = {"service_name": "from-file", "endpoint": {"type": "http", "value": "10.3.3.3:80"}}
    (listed / "default.json").write_text(json.dumps({"instances": [entry]}))
    (listed / "other.json").write_text(json.dumps({"instances": [{"service_name": "<b>x</b>"}]}))
    catalogs = [{"kind": "file", "name": "shelf", "folder": str(listed)}]
    env = THREADS | {
        "REGISTRY_CATALOGS": json.dumps(catalogs),
        "EUREKA_SERVER_ENABLE_SELF_PRESERVATION": "true",
        "EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE": f"http://127.0.0.1:{free_port()}/eureka/",
        "PEERS_START_WAIT_MS": "0",
    }
    with RegistryServer(folder, workers=2, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A server with accounts, which anybody may read."""
    folder = tmp_path_factory.mktemp("closed")
    users = folder / "users"
    hashed = generate_password_hash("secret", "pbkdf2:sha256:1")
    users.write_text(f"ann default user {hashed}\nbob other admin {hashed}\n")
    env = THREADS | {
        "STORE_URL": "memory:",
        "REGISTRY_AUTH": "basic",
        "REGISTRY_USERS_FILE": str(users),
        "REGISTRY_AUTH_READS": "false",
    }
    with RegistryServer(folder, workers=1, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A server that knows callers by tokens alone."""
    env = THREADS | {"STORE_URL": "memory:", "REGISTRY_AUTH": "trusted"}
    with RegistryServer(tmp_path_factory.mktemp("tokens"), workers=1, env=env) as server:
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


def registered_by(account: dict[str, str], server: RegistryServer, app: str) -> None:
    body = instance_body(app.upper(), f"{app}:1", leaseInfo=LONG)
    assert server.eureka("POST", f"/apps/{app.upper()}", body, JSON | account).status == 204


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


# The head, and the other views


def test_the_head_tells_how_the_server_is(server: RegistryServer, looked: Looked) -> None:
    registered(server, new_app())
    page = looked.go()
    figures = page.locator(".figures")
    for text in ("Instances", "UP", "Applications", "Renewals a minute", "threshold", "Revision"):
        expect(figures).to_contain_text(text)
    expect(figures.locator("[data-key=Uptime]")).to_contain_text("2 workers")
    expect(figures.locator("[data-key=Store]")).to_contain_text("lmdb")
    expect(figures.locator("[data-key=Peers]")).to_contain_text("0 of 1 up")
    expect(figures.locator("[data-key=Catalogs]")).to_contain_text("1 catalog")
    warnings = page.get_by_role("list", name="To be seen to")
    expect(warnings).to_contain_text("Self-preservation")
    expect(warnings).to_contain_text("does not answer")
    page.locator(".figures").get_by_role("link", name=re.compile("UP")).first.click()
    expect(page.get_by_role("searchbox")).to_have_value("status=UP")


def test_the_last_registrations_and_cancels_are_where_the_original_has_them(
    server: RegistryServer, looked: Looked
) -> None:
    app = new_app()
    name = registered(server, app)
    assert server.eureka("DELETE", f"/apps/{app.upper()}/{name}").status == 200
    page = looked.page
    page.goto(f"{server.root}/lastn")
    entries = page.locator(".history li", has_text=name)
    expect(entries).to_have_count(2)
    expect(entries.nth(0)).to_contain_text("Cancelled")
    expect(entries.nth(1)).to_contain_text("Registered")
    expect(entries.nth(0)).to_contain_text("127.0.0.1")
    page.get_by_label("Show").select_option(label="Cancels")
    expect(entries).to_have_count(1)
    assert "kind=cancelled" in page.url
    entries.get_by_role("link").click()
    expect(page.locator("main")).to_contain_text("not listed")
    expect(page.locator(".why")).to_contain_text(name)
    expect(page.locator(".history li")).to_have_count(2)
    # It is looked for, and is no more, which a browser notes.
    looked.told = [text for text in looked.told if "410" not in text]


def test_catalogs_tell_their_problems_and_peers_how_far_they_are_behind(
    server: RegistryServer, looked: Looked
) -> None:
    page = looked.go()
    page.get_by_role("link", name=re.compile("Catalogs")).click()
    row = page.get_by_role("row", name=re.compile("file:shelf"))
    expect(row).to_contain_text("following")
    expect(row).to_contain_text("endpoint")
    page.get_by_role("link", name="Peers").click()
    row = page.get_by_role("row", name=re.compile("127.0.0.1"))
    expect(row).to_contain_text("down")
    expect(row).to_contain_text("not compared yet")
    page = looked.go(q="source:file")
    page.get_by_role("link", name=re.compile("10.3.3.3|[0-9a-f]{24}")).first.click()
    expect(page.locator("main")).to_contain_text("listed by file:shelf")
    expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def test_applications_are_searched_by_their_instances(
    server: RegistryServer, looked: Looked
) -> None:
    app = new_app()
    registered(server, app, metadata={"canary": app})
    registered(server, new_app())
    page = looked.go()
    page.get_by_role("searchbox").fill(f"meta.canary={app}")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text("Applications")
    page.get_by_role("link", name=app, exact=True).click()
    expect(page.get_by_role("searchbox")).to_have_value(f"meta.canary={app}")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Applications")
    expect(page.locator("tbody tr")).to_have_count(1)


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


def test_the_loss_is_accepted_where_it_is_told_of(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = f"{app}:short"
    short = {"renewalIntervalInSecs": 1, "durationInSecs": 1}
    assert server.register(app.upper(), name, leaseInfo=short) == 204
    page = looked.go()
    warnings = page.get_by_role("list", name="To be seen to")
    expect(warnings).to_contain_text("Self-preservation")
    path = f"/api/v1/instances/{quote(name, safe='')}/why"
    wait_until(lambda: server.send("GET", path).json()["facts"].get("lease_ends_in_ms", 0) < 0)
    warnings.get_by_role("button", name="Accept the loss").click()
    page.get_by_role("dialog").get_by_role("button", name="Accept the loss").click()
    wait_until(lambda: name not in server.apps())
    expect(page.locator(".notice")).to_be_visible()


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
    page.get_by_text("All of it as JSON").click()
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img, main script, main svg").count() == 0


# Who may


def test_who_may_not_is_offered_nothing_until_there_is_an_account(
    closed: RegistryServer, browser: Browser
) -> None:
    registered_by(ANN, closed, "shop")
    looked = Looked(browser, closed.root)
    page = looked.go(app="shop", id="shop:1")
    expect(page.locator("main")).to_contain_text("Registration")
    expect(page.get_by_role("button", name="Take out of service")).to_have_count(0)
    for password, has_it in (("wrong", False), ("secret", True)):
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Name", exact=True).fill("ann")
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        if has_it:
            expect(page.get_by_role("button", name="ann", exact=True)).to_be_visible()
            page.get_by_role("button", name="Take out of service").click()
            expect(page.get_by_role("button", name="Back in service")).to_be_visible()
        else:
            expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    past = page.locator("section[data-key=History]")
    expect(past).to_contain_text("by ann")
    # A reload knows who it was; another tab does not.
    page.reload()
    expect(page.get_by_role("button", name="Back in service")).to_be_visible()
    assert {text for text in looked.told if "401" not in text} == set()
    looked.context.close()


def test_a_drain_is_followed_until_it_is_safe_to_stop(
    closed: RegistryServer, browser: Browser
) -> None:
    registered_by(ANN, closed, "drained")
    client = http.client.HTTPConnection("127.0.0.1", closed.port)

    def fetch() -> None:
        assert closed.eureka("GET", "/apps", None, JSON, client).status == 200

    fetch()
    wait_until(lambda: closed.send("GET", "/api/v1/readers").json()["total"])
    looked = Looked(browser, closed.root)
    stored = f"sessionStorage.setItem('registry credentials', '{ANN['Authorization']}')"
    looked.context.add_init_script(stored)
    page = looked.go(app="drained", id="drained:1")
    page.get_by_role("button", name="Drain").click()
    notice = page.locator(".notice")
    expect(notice).to_contain_text("Not yet safe to stop: 1 client")
    assert told(closed, "drained:1")["override"] == "OUT_OF_SERVICE"
    fetch()
    expect(notice).to_contain_text("Safe to stop")
    notice.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Take out of service")).to_be_visible()
    assert told(closed, "drained:1") == {**told(closed, "drained:1"), "status": "UP"}
    client.close()
    looked.context.close()


def test_what_is_refused_is_told_and_changes_nothing(
    closed: RegistryServer, browser: Browser
) -> None:
    registered_by(ANN, closed, "cart")
    looked = Looked(browser, closed.root)
    looked.page.route(
        "**/api/v1/account",
        lambda route: route.fulfill(
            json={
                "mode": "basic",
                "user": "",
                "namespace": "default",
                "is_admin": False,
                "may_write": True,
            }
        ),
    )
    page = looked.go(app="cart", id="cart:1")
    page.get_by_role("button", name="Take out of service").click()
    # The page was told that it may; the registry knows better, and asks for an account.
    expect(page.get_by_role("dialog")).to_contain_text("An account is needed for this.")
    page.get_by_role("button", name="Cancel").click()
    assert told(closed, "cart:1")["override"] is None
    looked.context.close()


def test_the_browsers_own_account_is_enough(closed: RegistryServer, browser: Browser) -> None:
    account = {"username": "bob", "password": "secret"}
    looked = Looked(browser, closed.root, http_credentials=account)
    # The browser was asked for it before, by the API itself, and knows it from then on.
    looked.page.goto(f"{closed.root}/api/v1/docs")
    looked.page.evaluate("fetch('instances', {method: 'POST'}).then((answer) => answer.status)")
    looked.told.clear()
    page = looked.go()
    expect(page.get_by_role("button", name="bob")).to_be_visible()
    expect(page.locator("#place")).to_have_text("other")
    # An administrator looks into another namespace.
    page.get_by_role("button", name="bob").click()
    page.get_by_label("Namespace").fill("elsewhere")
    page.keyboard.press("Enter")
    expect(page.locator("#place")).to_have_text("elsewhere")
    expect(page.locator("main")).to_contain_text("No instance is registered here.")
    assert looked.told == []
    looked.context.close()


def test_a_token_is_asked_for_and_kept_for_the_tab(
    tokens: RegistryServer, browser: Browser
) -> None:
    registered_by({"Authorization": "Bearer red"}, tokens, "shop")
    looked = Looked(browser, tokens.root)
    page = looked.go()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.locator("main").get_by_role("button", name="Sign in").click()
    page.get_by_label("Token").fill("red")
    page.keyboard.press("Enter")
    expect(page.locator("tbody")).to_contain_text("shop")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.reload()
    expect(page.locator("tbody")).to_contain_text("shop")
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert (stored[0], stored[1]) == (0, 1)
    assert "red" not in stored[2]
    assert {text for text in looked.told if "401" not in text} == set()
    looked.context.close()


def test_a_page_of_another_site_changes_nothing(
    server: RegistryServer, tokens: RegistryServer, browser: Browser
) -> None:
    """The other site is another port of this machine, which even has the same cookies."""
    name = registered(server, new_app())
    looked = Looked(browser, server.root)
    looked.go()
    url = f"{server.root}/api/v1/instances/{quote(name, safe='')}"
    page = looked.page
    page.goto(f"{tokens.root}/health/live")
    outcome = page.evaluate(
        """async (url) => {
          const tried = [];
          for (const init of [{method: 'DELETE'}, {method: 'POST', mode: 'no-cors'},
                              {method: 'POST', mode: 'no-cors', body: 'x'}]) {
            const path = init.method === 'POST' ? url + '/drain' : url;
            tried.push(await fetch(path, init).then((answer) => answer.type, () => 'failed'));
          }
          return tried;
        }""",
        url,
    )
    assert outcome == ["failed", "opaque", "opaque"]
    assert told(server, name) == {**told(server, name), "status": "UP", "override": None}
    looked.context.close()


# What was seen of clients


def test_findings_name_the_instance_and_the_setting(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = registered(server, app, hostName="localhost", ipAddr="127.0.0.1")
    wait_until(lambda: "loopback" in server.send("GET", "/api/v1/findings").body.decode())
    page = looked.go(view="findings")
    found = page.locator(".findings > li[data-key=loopback-host]")
    expect(found).to_contain_text("eureka.instance.hostname")
    expect(page.get_by_role("link", name=re.compile(r"Findings \d"))).to_be_visible()
    expect(found.get_by_role("link").first).to_be_visible()
    assert server.eureka("DELETE", f"/apps/{app.upper()}/{name}").status == 200


def test_trends_are_drawn_and_told_in_words(server: RegistryServer, looked: Looked) -> None:
    registered(server, new_app())
    # Something is counted each half minute.
    wait_until(lambda: len(server.send("GET", "/api/v1/series").json()["samples"]) > 1)
    page = looked.go(view="trends")
    drawing = page.get_by_role("img", name=re.compile("^Instances: .* now; between .* and "))
    expect(drawing).to_be_visible()
    expect(page.locator(".plot")).to_have_count(8)
    assert drawing.locator("path.line").count() >= 1
    page.get_by_label("The last").select_option(label="1 hour")
    assert "kind=60" in page.url
    expect(page.locator(".plot")).to_have_count(8)


# A server that goes and comes back


def test_what_was_shown_stays_while_the_server_is_away(
    browser: Browser, server: RegistryServer
) -> None:
    app = new_app()
    registered(server, app, 1)
    looked = Looked(browser, server.root)
    page = looked.go(app=app)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    server.kill9()
    expect(page.get_by_text("Reconnecting", exact=True)).to_be_visible()
    expect(page.locator("tbody")).to_contain_text(f"{app}:1")
    server.start()
    registered(server, app, 2)
    expect(page.locator("tbody")).to_contain_text(f"{app}:2")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    looked.context.close()


# For everybody

WIDTHS = (360, 800, 1440)


def test_everybody_can_use_it(server: RegistryServer, looked: Looked) -> None:
    """Axe finds nothing serious in any view, light and dark, at three widths; nothing overflows."""
    app = new_app()
    name = registered(server, app, metadata={"zone": "eu-1", "long": "x" * 300})
    path = f"/api/v1/instances/{quote(name, safe='')}/override"
    assert server.send("PUT", path, json.dumps({"status": "OUT_OF_SERVICE"}), JSON).status == 200
    axe = Axe()
    found = []
    page = looked.page
    for place in (
        {"view": "applications"},
        {"view": "instances", "q": f"app={app}"},
        {"app": app},
        {"app": app, "id": name},
        {"view": "trends"},
        {"view": "activity"},
        {"view": "findings"},
        {"view": "catalogs"},
        {"view": "peers"},
        {"dialog": "metadata"},
    ):
        if "dialog" in place:
            looked.go(app=app, id=name)
            page.get_by_role("button", name="Change metadata").click()
        else:
            looked.go(**place)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                results = axe.run(page, options={"resultTypes": ["violations"]})
                for violation in results.response["violations"]:
                    if violation["impact"] in ("serious", "critical"):
                        nodes = [node["html"] for node in violation["nodes"]][:3]
                        found.append((place, width, scheme, violation["id"], nodes))
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (place, width, wide)
    assert found == []


def test_the_keyboard_is_enough(server: RegistryServer, looked: Looked) -> None:
    app = new_app()
    name = registered(server, app)
    page = looked.go(app=app)
    page.locator("body").press("Tab")
    expect(page.locator(":focus")).to_be_visible()
    page.get_by_role("link", name=name).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    button = page.get_by_role("button", name="Remove")
    while not button.evaluate("node => node === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    # What would be done by mistake is not what has the focus.
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert told(server, name)["status"] == "UP"


# Many


def test_twenty_thousand_instances_are_searched_and_followed(
    browser: Browser, tmp_path: Path
) -> None:
    with RegistryServer(tmp_path, workers=2) as server:
        for begin in range(0, 20_000, 250):
            items = []
            for number in range(begin, begin + 250):
                app, name = f"MANY{number % 400}", f"many:{number:05}"
                fields = {"leaseInfo": LONG, "metadata": {"version": str(number % 7)}}
                instance = json.loads(instance_body(app, name, **fields))["instance"]
                item = {"appName": app, "id": name, "action": "Register", "instanceInfo": instance}
                items.append(item)
            batch = json.dumps({"replicationList": items})
            assert server.eureka("POST", "/peerreplication/batch/", batch, JSON).status == 200
        looked = Looked(browser, server.root)
        largest = 0

        def measure(response: Response) -> None:
            nonlocal largest
            if "/api/v1/" in response.url and "/watch" not in response.url:
                largest = max(largest, len(response.body()))

        looked.page.on("response", measure)
        page = looked.go()
        title = page.locator(".title")
        expect(title).to_contain_text("400 applications, 20,000 instances")
        expect(page.locator("tbody tr")).to_have_count(50)
        page.get_by_role("link", name="Instances").click()
        expect(title).to_contain_text("20,000 instances")
        first = page.locator("tbody tr").first
        before = first.inner_text()
        page.get_by_role("link", name="Next page").click()
        expect(first).not_to_have_text(before)
        assert "after=" in page.url
        page.get_by_role("link", name="First page").click()
        page.get_by_role("searchbox").fill("many:19999 meta.version=0")
        expect(title).to_contain_text("1 instance")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        assert server.eureka("PUT", "/apps/MANY399/many:19999/status?value=DOWN").status == 200
        expect(page.locator("tbody")).to_contain_text("DOWN")
        # The browser is never sent more than a page of them.
        assert largest < 200_000
        assert looked.told == []
        looked.context.close()
