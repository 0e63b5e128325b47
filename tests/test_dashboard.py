"""The operator's page as files, and its token: what is served, where, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from eureka_server import dashboard
from eureka_server.access import Access, AccessSettings
from eureka_server.settings import SettingError, load
from registry.testing import sample_instance
from tests.in_process import InProcess
from tests.servers import JSON

STATIC = Path(dashboard.__file__).parent / "static"
NAMES = sorted(each.name for each in STATIC.iterdir())


def client_of(path: str = "/") -> FlaskClient:
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.register_blueprint(dashboard.blueprint(path))
    return app.test_client()


@pytest.mark.parametrize(
    ("path", "page", "base"),
    [("/", "/", "./"), ("/ops", "/ops/", "../"), ("/ops/registry/", "/ops/registry/", "../../")],
)
def test_the_page_is_where_it_is_set_to_be_and_knows_where_the_api_is(
    path: str, page: str, base: str
) -> None:
    client = client_of(path)
    answer = client.get(page)
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    assert f'<meta name="registry" content="{base}">' in answer.text
    for name in re.findall(r'(?:src|href)="(dashboard/[^"]+)"', answer.text):
        assert client.get(page + name).status_code == 200
    last = client.get(f"{page}lastn")
    assert (last.status_code, last.headers["Location"]) == (302, "./?view=activity")
    if page != "/":
        moved = client.get(page.rstrip("/"))
        assert (moved.status_code, moved.headers["Location"]) == (
            308,
            page.rstrip("/").rpartition("/")[2] + "/",
        )
        assert client.get("/").status_code == 404


def test_each_file_is_served_with_strict_headers_and_asked_for_anew() -> None:
    client = client_of()
    for path in ("/", *(f"/dashboard/{name}" for name in NAMES if name != "index.html")):
        answer = client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
    assert client.get("/dashboard/index.html").status_code == 404
    assert client.get("/dashboard/..%2f__init__.py").status_code == 404


def test_the_files_need_no_other_server_and_no_markup_from_texts() -> None:
    for name in NAMES:
        text = (STATIC / name).read_text(encoding="utf-8")
        others = re.findall(r"https?://[^\s'\"`)]+", text)
        assert set(others) <= {"http://www.w3.org/2000/svg"}, name
        for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert markup not in text, name
        assert " style=" not in text
        assert not re.search(r"\son[a-z]+=", text), name


def test_there_is_a_page_unless_it_is_switched_off() -> None:
    assert (load({}).dashboard, load({}).dashboard_path) == (True, "/")
    assert not load({"EUREKA_DASHBOARD_ENABLED": "false"}).dashboard
    assert load({"EUREKA_DASHBOARD_PATH": "ops/page"}).dashboard_path == "/ops/page"


def test_what_springs_file_says_of_the_page_counts(tmp_path: Path) -> None:
    file = tmp_path / "application.properties"
    file.write_text("eureka.dashboard.path=/ops\neureka.dashboard.enabled=false\n")
    found = load({"SPRING_CONFIG_LOCATION": str(file)})
    assert (found.dashboard, found.dashboard_path) == (False, "/ops")
    assert not any("dashboard" in warning for warning in found.warnings)


@pytest.mark.parametrize("path", ["/eureka", "/api/v1/x", "/a b", "/../x", "/a/./b", "//x", "/é"])
def test_a_path_that_the_page_cannot_have_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match="EUREKA_DASHBOARD_PATH"):
        load({"EUREKA_DASHBOARD_PATH": path})


@pytest.mark.parametrize(
    ("cookie", "field", "status"),
    [
        (None, None, 200),
        ("other=1", None, 200),
        ("registry-page=abc", "abc", 200),
        ("other=1; registry-page=abc", "abc", 200),
        ("registry-page=abc", None, 403),
        ("registry-page=abc", "abd", 403),
        ("registry-page=abc; registry-page=x", "abc", 403),
        ("registry-page=", None, 200),
    ],
)
def test_a_browser_that_knows_the_page_changes_something_only_with_its_token(
    cookie: str | None, field: str | None, status: int
) -> None:
    world = InProcess()
    world.registry.register(sample_instance("SHOP", "shop:1"))
    client = world.client.application.test_client(use_cookies=False)
    fields = {"Cookie": cookie, "X-Registry-Page": field}
    headers = {name: value for name, value in fields.items() if value is not None}
    body = json.dumps({"status": "OUT_OF_SERVICE"})
    for method, path in (
        ("PUT", "/api/v1/instances/shop:1/override"),
        ("PUT", "/eureka/apps/SHOP/shop:1"),
        ("DELETE", "/api/v1/instances/shop:1"),
    ):
        data = body if path.endswith("override") else None
        answer = client.open(path, method=method, data=data, headers=headers | JSON)
        assert answer.status_code == status, path
    # Reading changes nothing, and needs none.
    assert client.get("/eureka/apps", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("fields", "challenge"),
    [
        ({}, 'Bearer realm="registry"'),
        ({"X-Requested-With": "XMLHttpRequest"}, 'Page realm="registry", scheme="Bearer"'),
    ],
)
def test_a_page_is_refused_so_that_it_and_no_browser_asks_for_the_account(
    fields: dict[str, str], challenge: str
) -> None:
    world = InProcess(access=Access(AccessSettings(mode="trusted")))
    answer = world.client.get("/api/v1/account", headers=fields)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, challenge)


def test_who_asks_is_told_what_that_allows() -> None:
    answer = InProcess().client.get("/api/v1/account")
    assert answer.json == {
        "mode": "none",
        "user": "",
        "namespace": "default",
        "is_admin": True,
        "may_write": True,
    }
    assert InProcess().client.put("/api/v1/account").status_code == 405
