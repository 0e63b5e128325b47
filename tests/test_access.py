"""Who may read and write which namespace, on both sides, by header and by path."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flask.testing import FlaskClient
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.test import TestResponse

from catalogs.entries import entry_of
from eureka_http.exchange import Answer, Request
from eureka_http.shown import masked
from eureka_server.access import Access, AccessError, AccessSettings
from eureka_server.settings import SettingError, load
from registry import Namespace
from registry.stores.memory import MemoryStore
from tests.in_process import InProcess
from tests.servers import HANG_SECS, JSON, instance_body

KEY = "a key of more than thirty-two characters"
QUICK_HASH = "pbkdf2:sha256:1"


def client_of(**settings: Any) -> FlaskClient:
    return client_with(Access(AccessSettings(**settings)))


def client_with(access: Access) -> FlaskClient:
    return InProcess(access=access).client


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(key: Any = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    made = {"namespace": "red", "exp": time.time() + 60} | claims
    return jwt.encode({k: v for k, v in made.items() if v is not None}, key, algorithm)


def register(client: FlaskClient, app: str, headers: dict[str, str], base: str = "/eureka") -> int:
    body = instance_body(app, f"{app.lower()}:1")
    return client.post(f"{base}/apps/{app}", data=body, headers=JSON | headers).status_code


def apps(client: FlaskClient, headers: dict[str, str], base: str = "/eureka") -> list[str]:
    reply = client.get(f"{base}/apps", headers=JSON | headers)
    assert reply.status_code == 200, reply.status
    return sorted(a["name"] for a in reply.json["applications"]["application"])


def is_challenge(reply: TestResponse, scheme: str) -> bool:
    return (
        reply.status_code == 401
        and reply.headers["WWW-Authenticate"].startswith(scheme)
        and len(reply.data) == 0
    )


def test_without_accounts_there_is_one_open_namespace() -> None:
    client = client_of()
    assert register(client, "SHOP", {}) == 204
    assert apps(client, bearer("whatever")) == ["SHOP"]
    assert client.get("/eureka/n/red/apps", headers=JSON).status_code == 404


def test_trusted_tokens_are_namespaces_that_never_see_each_other() -> None:
    client = client_of(mode="trusted")
    red, blue = bearer("red"), basic("blue", "")
    assert register(client, "SHOP", red) == 204
    assert register(client, "SHOP", blue) == 204
    assert register(client, "CART", blue) == 204
    assert apps(client, red) == ["SHOP"]
    assert apps(client, blue) == ["CART", "SHOP"]
    for headers, code in ((red, "UP_1_"), (blue, "UP_2_")):
        delta = client.get("/eureka/apps/delta", headers=JSON | headers).json["applications"]
        assert delta["apps__hashcode"] == code
        assert client.get("/api/v1/services", headers=headers).json["services"] == [
            name.lower() for name in apps(client, headers)
        ]
    assert client.delete("/eureka/apps/CART/cart:1", headers=red).status_code == 404
    assert client.get("/eureka/instances/cart:1", headers=JSON | red).status_code == 404
    assert is_challenge(client.get("/eureka/apps"), "Bearer")


def test_a_namespace_that_is_only_read_takes_nobodys_place() -> None:
    """Whoever invents tokens and asks with them finds nothing, and leaves nothing."""
    served = InProcess(access=Access(AccessSettings(mode="trusted")), max_namespaces=2)
    client, gateway = served.client, served.gateway
    for number in range(1_001):
        invented = bearer(f"invented-{number}")
        assert client.get("/eureka/apps", headers=JSON | invented).status_code == 200
        if number % 20:
            continue
        assert client.get("/api/v1/instances", headers=invented).status_code == 200
        assert client.put("/eureka/apps/A/a:1", headers=invented).status_code == 404
        assert client.delete("/eureka/apps/A/a:1", headers=invented).status_code == 404
    assert list(gateway._eureka_apis) == served.whole.namespaces() == ["default"]
    assert not gateway._native_apis
    for token in ("red", "blue"):
        assert register(client, "SHOP", bearer(token)) == 204
        assert apps(client, bearer(token)) == ["SHOP"]
        assert client.get("/api/v1/services", headers=bearer(token)).json == {"services": ["shop"]}


def test_so_many_namespaces_hold_something_whichever_worker_is_asked() -> None:
    """The store counts, and one that is empty again makes room; the default one always has it."""
    store = MemoryStore()
    access = Access(AccessSettings(mode="trusted"))
    one, other = (InProcess(access=access, store=store, max_namespaces=2).client for _ in range(2))
    assert register(one, "SHOP", bearer("red")) == 204
    assert register(other, "SHOP", bearer("blue")) == 204
    assert register(other, "SHOP", bearer("default")) == 204
    native = {"service_name": "x", "endpoint": {"type": "http", "value": "10.0.0.9"}}
    for client in (one, other):
        assert register(client, "SHOP", bearer("green")) == 403
        assert apps(client, bearer("green")) == []
        reply = client.post("/api/v1/instances", json=native, headers=bearer("green"))
        assert reply.status_code == 403
        assert register(client, "CART", bearer("red")) == 204
    assert one.delete("/eureka/apps/SHOP/shop:1", headers=bearer("blue")).status_code == 200
    assert register(other, "SHOP", bearer("green")) == 204
    assert register(one, "SHOP", bearer("blue")) == 403


@pytest.mark.parametrize(
    "base",
    [
        *("/eureka/n/red", "/eureka/n/red/v2", "/eureka/v2/n/red"),
        *("/api/eureka/red/v2", "/api//%65ureka/red/v2"),
    ],
)
def test_a_namespace_is_reached_by_path_where_no_header_can_be_sent(base: str) -> None:
    client = client_of(mode="trusted")
    assert register(client, "SHOP", {}, base) == 204
    assert apps(client, {}, base) == ["SHOP"]
    assert client.put(f"{base}/apps/SHOP/shop:1").status_code == 200
    assert apps(client, bearer("red")) == ["SHOP"]
    assert apps(client, {}, base.replace("red", "blue")) == []


def test_eureka_is_where_the_amalgam8_registry_has_it_too() -> None:
    client = client_of()
    for base in ("/api/eureka/v2", "/eureka"):
        assert register(client, "SHOP", {}, base) == 204
        assert apps(client, {}, base) == ["SHOP"]
    # Without accounts a token could only pretend to part namespaces.
    assert client.get("/api/eureka/red/v2/apps").status_code == 404
    assert client.get("/api/eureka/apps").status_code == 404
    assert client.get("/api/eureka").status_code == 404
    with_headers = client_of(mode="trusted")
    assert register(with_headers, "SHOP", bearer("red"), "/api/eureka/v2") == 204
    assert apps(with_headers, {}, "/api/eureka/red/v2") == ["SHOP"]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/api/eureka/secret/v2/apps", "/api/eureka/…/v2/apps"),
        ("/api/eureka/v2/v2/apps", "/api/eureka/…/v2/apps"),
        ("/api/eureka/secret/v2", "/api/eureka/…/v2"),
        ("/api/eureka/v2/apps/A/v2", "/api/eureka/v2/apps/A/v2"),
        ("/api/eureka/v2/v2x", "/api/eureka/v2/v2x"),
        ("/api//eureka/secret/v2", "/api//eureka/…/v2"),
        ("/api/./eureka/secret/v2", "/api/./eureka/…/v2"),
        ("/%61pi/e%75reka/secret/v2", "/%61pi/e%75reka/…/v2"),
        ("/api;a=b/eureka;c/secret/v2", "/api;a=b/eureka;c/…/v2"),
        ("/api/x/../eureka//secret/v2", "/api/x/../eureka//…/v2"),
        ("/x/../api/eureka/secret/v2", "/x/../api/eureka/…/v2"),
    ],
)
def test_a_token_in_the_amalgam8_registrys_path_is_masked(path: str, shown: str) -> None:
    assert masked(f"GET {path} HTTP/1.1") == f"GET {shown} HTTP/1.1"


@pytest.mark.parametrize("token", ["", "a b", "../x", "é", "x" * 65, ".hidden"])
def test_a_namespace_has_a_name_that_can_be_kept(token: str) -> None:
    client = client_of(mode="trusted")
    encoded = "".join(f"%{byte:02x}" for byte in token.encode())
    assert client.get(f"/eureka/n/{encoded}/apps").status_code == 401


def test_a_signed_token_names_its_namespace() -> None:
    client = client_of(mode="jwt", key=KEY)
    token = signed()
    assert register(client, "SHOP", bearer(token)) == 204
    assert apps(client, basic("any", token)) == ["SHOP"]
    assert apps(client, {}, f"/eureka/n/{token}") == ["SHOP"]
    assert apps(client, bearer(signed(namespace="blue"))) == []


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: "nonsense", id="nonsense"),
        pytest.param(lambda: "", id="nothing"),
        pytest.param(lambda: signed("another key of more than thirty-two letters"), id="other key"),
        pytest.param(lambda: signed(exp=time.time() - 60), id="ended"),
        pytest.param(lambda: signed(exp=None), id="without an end"),
        pytest.param(lambda: signed(namespace=None), id="of no namespace"),
        pytest.param(lambda: signed(namespace=5), id="namespace is a number"),
        pytest.param(lambda: signed(namespace="a b"), id="namespace has a blank"),
        pytest.param(
            lambda: jwt.encode({"namespace": "red", "exp": time.time() + 60}, "", "none"),
            id="unsigned",
        ),
    ],
)
def test_a_token_that_does_not_hold_is_a_401(made: Callable[[], str]) -> None:
    client, token = client_of(mode="jwt", key=KEY), made()
    assert is_challenge(client.get("/eureka/apps", headers=bearer(token)), "Bearer")
    assert is_challenge(client.put("/eureka/apps/A/a", headers=bearer(token)), "Bearer")


def test_tokens_without_an_end_are_taken_where_that_is_set() -> None:
    client = client_of(mode="jwt", key=KEY, require_expiry=False)
    endless = signed(exp=None)
    assert register(client, "SHOP", bearer(endless)) == 204
    assert apps(client, {}, f"/api/eureka/{endless}/v2") == ["SHOP"]
    # One that has ended is at its end all the same.
    ended = bearer(signed(exp=time.time() - 60))
    assert is_challenge(client.get("/eureka/apps", headers=ended), "Bearer")
    environ = {"REGISTRY_AUTH": "jwt", "REGISTRY_JWT_KEY": KEY}
    assert load(environ).access.require_expiry
    assert not load(environ | {"REGISTRY_JWT_REQUIRE_EXP": "false"}).access.require_expiry


def test_an_end_beyond_all_numbers_is_no_error_of_ours() -> None:
    access = Access(AccessSettings(mode="jwt", key=KEY))
    assert status_of(access, bearer(signed(exp=10**400))) == 200
    endless = {"namespace": "red", "exp": float("inf")}
    for claims in (endless, {"namespace": "red", "exp": time.time() + 60, "nbf": float("inf")}):
        token = jwt.PyJWS().encode(json.dumps(claims).encode(), KEY, "HS256")
        assert status_of(access, bearer(token)) == 401


class Later(datetime):
    """What the JWT library asks for the time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


def test_a_token_ends_when_it_says_though_it_was_seen_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = 0
    access = Access(AccessSettings(mode="jwt", key=KEY), clock=lambda: time.time() + later)
    request = Request(
        "GET", "/", "", {"authorization": f"Bearer {signed(exp=time.time() + 1800)}"}, bytes
    )
    assert not isinstance(access.grant(request), Answer)
    later = 3600
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    refused = access.grant(request)
    assert isinstance(refused, Answer)
    assert refused.status == 401


def test_tokens_signed_with_a_private_key_are_checked_with_the_public_one() -> None:
    private = rsa.generate_private_key(65537, 2048)
    public = (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    client = client_of(mode="jwt", key=public)
    assert apps(client, bearer(signed(private, "RS256"))) == []
    # The public key is no secret: a token signed with it as one must not hold.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jwt.algorithms.HMACAlgorithm.prepare_key", lambda _, key: key.encode())
        forged = signed(public, "HS256")
    assert client.get("/eureka/apps", headers=bearer(forged)).status_code == 401


def test_an_administrator_may_name_another_namespace_and_others_may_not() -> None:
    client = client_of(mode="jwt", key=KEY)
    other = {"Registry-Namespace": "blue"}
    assert register(client, "SHOP", bearer(signed(role="admin")) | other) == 204
    assert apps(client, bearer(signed(namespace="blue"))) == ["SHOP"]
    assert apps(client, bearer(signed()) | {"Registry-Namespace": "red"}) == []
    refused = client.get("/eureka/apps", headers=bearer(signed()) | other)
    assert (refused.status_code, refused.data) == (403, b"")
    bad = bearer(signed(role="admin")) | {"Registry-Namespace": "a b"}
    assert client.get("/eureka/apps", headers=bad).status_code == 403


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    lines = (
        "# name namespace role hash",
        f"ann red user {generate_password_hash('secret', QUICK_HASH)}",
        f"bob blue admin {generate_password_hash('p:w', QUICK_HASH)}",
    )
    path.write_text("\n".join(lines))
    return path


def test_users_have_their_namespace(users: Path) -> None:
    client = client_of(mode="basic", users_file=users)
    assert register(client, "SHOP", basic("ann", "secret")) == 204
    assert apps(client, basic("ann", "secret")) == ["SHOP"]
    assert apps(client, basic("bob", "p:w")) == []
    assert apps(client, basic("bob", "p:w") | {"Registry-Namespace": "red"}) == ["SHOP"]
    assert apps(client, {}, "/eureka/n/ann%3Asecret") == ["SHOP"]
    for headers in (
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("eve", "secret"),
        bearer("secret"),
        {"Authorization": "Basic !"},
        {"Authorization": "Basic"},
        {},
    ):
        assert is_challenge(client.get("/eureka/apps", headers=headers), "Basic"), headers


def test_a_changed_users_file_counts_and_a_broken_one_does_not(
    users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))
    client = client_with(access)
    assert apps(client, basic("ann", "secret")) == []
    users.write_text(f"ann red user {generate_password_hash('changed', QUICK_HASH)}\n")
    access.refresh()
    assert client.get("/eureka/apps", headers=basic("ann", "secret")).status_code == 401
    assert apps(client, basic("ann", "changed")) == []
    users.write_text("# a remark\nann red user\n")
    caplog.clear()
    access.refresh()
    access.refresh()
    assert apps(client, basic("ann", "changed")) == []
    # At once and once, whether or not anybody asks for anything.
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"the users file {users} cannot be used, what was last good stays in force:"
        " line 2: expected NAME NAMESPACE user|admin HASH"
    ]


def test_the_last_good_users_stay_in_force_after_a_restart(users: Path, tmp_path: Path) -> None:
    settings = AccessSettings(mode="basic", users_file=users, users_copy=tmp_path / "s" / "copy")
    Access(settings)
    assert (tmp_path / "s" / "copy").stat().st_mode & 0o777 == 0o600
    users.write_text("broken")
    assert apps(client_with(Access(settings)), basic("ann", "secret")) == []
    # A file that was taken away was meant to be, and a copy of another file is another's.
    users.unlink()
    with pytest.raises(AccessError, match="No such file"):
        Access(settings)
    (tmp_path / "others").write_text("broken")
    with pytest.raises(AccessError, match="line 1"):
        Access(
            AccessSettings(
                mode="basic", users_file=tmp_path / "others", users_copy=settings.users_copy
            )
        )


@pytest.mark.parametrize(
    "text", ["", "ann red user", "ann red boss a$b$c", "ann a/b user a$b$c", "a r user a$b$c\n" * 2]
)
def test_users_that_cannot_be_read_are_refused_at_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "users").write_text(text)
    with pytest.raises(AccessError, match="users"):
        Access(AccessSettings(mode="basic", users_file=tmp_path / "users"))


@pytest.mark.parametrize(
    "line", ["ann s3cr/t user HASH", "ann HASH user red", "ann:s3cr/t red user HASH", "s3cr/t HASH"]
)
def test_what_is_told_of_a_wrong_line_is_none_of_its_words(tmp_path: Path, line: str) -> None:
    hashed = generate_password_hash("x", QUICK_HASH)
    (tmp_path / "users").write_text(line.replace("HASH", hashed))
    with pytest.raises(AccessError, match="line 1: ") as caught:
        Access(AccessSettings(mode="basic", users_file=tmp_path / "users"))
    assert "s3cr/t" not in str(caught.value)
    assert hashed not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_users_name(tmp_path: Path) -> None:
    hashed = generate_password_hash("secret", QUICK_HASH)
    users = tmp_path / "users"
    users.write_text(f"ann red user {hashed}\n", encoding="utf-8-sig")
    settings = AccessSettings(mode="basic", users_file=users, users_copy=tmp_path / "copy")
    assert status_of(Access(settings), basic("ann", "secret")) == 200
    users.write_text("broken")
    assert status_of(Access(settings), basic("ann", "secret")) == 200


def test_reading_without_an_account_tells_of_no_other_namespace() -> None:
    client = client_of(mode="trusted", protect_reads=False)
    assert client.get("/eureka/apps").status_code == 200
    wanted = {"Registry-Namespace": "red"}
    assert client.get("/eureka/apps", headers=wanted).status_code == 403


@pytest.mark.parametrize(
    ("protect", "read", "write"),
    [
        ({"protect_reads": False}, 200, 401),
        ({"protect_writes": False}, 401, 204),
        ({"protect_reads": False, "protect_writes": False}, 200, 204),
        ({}, 401, 401),
    ],
)
def test_reads_and_writes_are_protected_apart(
    protect: dict[str, bool], read: int, write: int
) -> None:
    client = client_of(mode="trusted", **protect)
    assert client.get("/eureka/apps").status_code == read
    assert register(client, "SHOP", {}) == write
    # Whoever shows a token means it.
    assert client.get("/eureka/apps", headers=bearer("a b")).status_code == 401


def test_plain_http_is_refused_where_https_is_asked_for() -> None:
    client = client_of(require_https=True)
    assert client.get("/eureka/apps").status_code == 403
    assert client.get("/eureka/apps", headers={"X-Forwarded-Proto": "https"}).status_code == 403
    assert client.get("/eureka/apps", base_url="https://localhost").status_code == 200


@pytest.mark.parametrize(
    ("told", "status"),
    [("https", 200), ("http", 403), ("https, http", 403), ("http, https", 200), ("", 403)],
)
def test_a_named_proxys_last_word_counts(told: str, status: int) -> None:
    proxies = load({"REGISTRY_TRUSTED_PROXIES": "127.0.0.0/8, ::1"}).access.trusted_proxies
    client = client_of(require_https=True, trusted_proxies=proxies)
    headers = {"X-Forwarded-Proto": told}
    assert client.get("/eureka/apps", headers=headers).status_code == status
    stranger = {"REMOTE_ADDR": "10.0.0.1"}
    reply = client.get("/eureka/apps", headers=headers, environ_overrides=stranger)
    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("peer", "headers", "scheme", "begins"),
    [
        ("10.9.9.9", {}, "http", "http://registry:8761"),
        ("10.9.9.9", {}, "https", "https://registry:8761"),
        ("10.9.9.9", {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "x"}, "http",
         "http://registry:8761"),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, "http", "https://registry:8761"),
        ("127.0.0.1", {"X-Forwarded-Host": "a, [::1]:80", "X-Forwarded-Proto": "x, http"}, "http",
         "http://[::1]:80"),
        ("127.0.0.1", {"X-Forwarded-Host": "a b"}, "http", ""),
    ],
)  # fmt: skip
def test_links_lead_to_where_the_caller_came_from(
    peer: str, headers: dict[str, str], scheme: str, begins: str
) -> None:
    proxies = load({"REGISTRY_TRUSTED_PROXIES": "127.0.0.0/8"}).access.trusted_proxies
    client = client_of(trusted_proxies=proxies)
    document = {"service_name": "s", "endpoint": {"type": "http", "value": "10.0.0.1:80"}}
    reply = client.post(
        "/api/v1/instances",
        json=document,
        headers={"Host": "registry:8761"} | headers,
        environ_overrides={"REMOTE_ADDR": peer, "wsgi.url_scheme": scheme},
    )
    link = f"{begins}/api/v1/instances/{reply.json['id']}"
    assert reply.json["links"] == {"self": link, "heartbeat": f"{link}/heartbeat"}


@pytest.mark.parametrize("host", ["", "a/b", 'a"b', "a b", "a@b", "[::1", "h:1:2", "é"])
def test_a_host_that_is_none_makes_no_link(host: str) -> None:
    access = Access(AccessSettings())
    assert access.origin(Request("GET", "/", "", {"host": host}, bytes)) == ""
    assert access.origin(Request("GET", "/", "", {}, bytes)) == ""


def test_the_description_and_health_need_no_account() -> None:
    client = client_of(mode="trusted")
    assert client.get("/api/v1/openapi.json").status_code == 200
    assert client.get("/api/v1/docs").status_code == 200


def test_a_password_not_seen_before_is_not_looked_at_in_the_fast_lane(users: Path) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))
    request = Request(
        "GET", "/", "", {"authorization": basic("ann", "secret")["Authorization"]}, bytes
    )
    assert access.grant(request, quick=True) is None
    assert not isinstance(access.grant(request), Answer)
    assert access.grant(request, quick=True) is not None


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"REGISTRY_AUTH": "magic"}, "REGISTRY_AUTH"),
        ({"REGISTRY_AUTH": "jwt"}, "REGISTRY_JWT_KEY"),
        ({"REGISTRY_AUTH": "basic"}, "REGISTRY_USERS_FILE"),
        ({"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": "/nowhere"}, "REGISTRY_USERS_FILE"),
        ({"REGISTRY_TRUSTED_PROXIES": "proxy"}, "REGISTRY_TRUSTED_PROXIES"),
        ({"REGISTRY_REQUIRE_HTTPS": "maybe"}, "REGISTRY_REQUIRE_HTTPS"),
        ({"REGISTRY_MIN_TTL": "90"}, "REGISTRY_MIN_TTL"),
        ({"REGISTRY_MAX_ENDPOINT": "0"}, "REGISTRY_MAX_ENDPOINT"),
        ({"TLS_CERT_FILE": "/etc/hostname"}, "TLS_KEY_FILE"),
        ({"TLS_CLIENT_CA_FILE": "/etc/hostname"}, "TLS_CERT_FILE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        load(environ)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(AccessError, match="32 characters"):
        Access(AccessSettings(mode="jwt", key="short"))


def test_an_unknown_variable_of_ours_is_warned_of() -> None:
    assert load({"REGISTRY_COLOUR": "red"}).warnings == (
        "REGISTRY_COLOUR has no effect here: it is not known",
    )


# Keys


def public_pem(private: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def private_pem(private: Any) -> str:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


PRIVATE = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ec.generate_private_key(ec.SECP256R1())


def with_kid(kid: str, private: Any, algorithm: str) -> str:
    claims = {"namespace": "red", "exp": time.time() + 60}
    return jwt.encode(claims, private, algorithm, headers={"kid": kid})


def as_jwk(private: Any, **more: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.get_default_algorithms()[
        {v: k for k, v in PRIVATE.items()}.get(private, "ES256")
    ]
    return json.loads(algorithm.to_jwk(private.public_key())) | more  # type: ignore[no-any-return]


def status_of(access: Access, headers: dict[str, str]) -> int:
    found = access.grant(Request("GET", "/", "", {k.lower(): v for k, v in headers.items()}, bytes))
    return found.status if isinstance(found, Answer) else 200


@pytest.mark.parametrize("algorithm", list(PRIVATE))
def test_tokens_are_signed_with_rsa_elliptic_curves_or_edwards(algorithm: str) -> None:
    private = PRIVATE[algorithm]
    access = Access(AccessSettings(mode="jwt", key=public_pem(private)))
    assert status_of(access, bearer(signed(private, algorithm))) == 200
    assert status_of(access, bearer(signed(OTHER, "ES256"))) == 401


def test_keys_are_told_apart_by_their_names_and_change_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = PRIVATE["ES256"], OTHER
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [as_jwk(old, kid="old")]}))
    access = Access(AccessSettings(mode="jwt", keys_path=path))
    by_old, by_new = with_kid("old", old, "ES256"), with_kid("new", new, "ES256")
    swapped = with_kid("old", new, "ES256")
    assert [status_of(access, bearer(t)) for t in (by_old, by_new, swapped)] == [200, 401, 401]
    both = [as_jwk(old, kid="old"), as_jwk(new, kid="new", alg="ES256")]
    encrypting = as_jwk(PRIVATE["RS256"], kid="x", use="enc")
    path.write_text(json.dumps({"keys": [*both, encrypting]}))
    access.refresh()
    assert [status_of(access, bearer(t)) for t in (by_old, by_new, swapped)] == [200, 200, 401]
    path.write_text("{broken")
    access.refresh()
    assert [status_of(access, bearer(t)) for t in (by_old, by_new)] == [200, 200]
    assert any("cannot be used, what was last good stays" in m for m in caplog.messages)
    path.write_text(json.dumps({"keys": [as_jwk(new, kid="new")]}))
    access.refresh()
    # Seen before, and all the same its key is gone.
    assert [status_of(access, bearer(t)) for t in (by_old, by_new)] == [401, 200]


def test_a_folder_holds_a_key_in_each_file(tmp_path: Path) -> None:
    (tmp_path / "2024.pem").write_text(public_pem(PRIVATE["RS256"]))
    (tmp_path / "2025.pem").write_text(public_pem(OTHER))
    (tmp_path / "..data").write_text("a remainder of Kubernetes")
    access = Access(AccessSettings(mode="jwt", keys_path=tmp_path))
    good = with_kid("2025", OTHER, "ES256"), with_kid("2024", PRIVATE["RS256"], "RS256")
    assert [status_of(access, bearer(token)) for token in good] == [200, 200]
    assert status_of(access, bearer(with_kid("2026", OTHER, "ES256"))) == 401
    assert status_of(access, bearer(signed(OTHER, "ES256"))) == 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (private_pem(OTHER), "a private key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no key that can be read"),
        ("-----BEGIN NOTHING-----\nAAAA\n-----END NOTHING-----", "without a public key"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "less than 2048 bits"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "of another kind"),
        ("{}", "without a key"),
        ("{", "JWKS"),
        ('{"keys": 5}', "JWKS"),
        ('{"keys": []}', "without a key"),
        ('{"keys": [{"kty": "EC"}]}', "key 1: not a key"),
        (json.dumps({"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}), "key 1: the key of HS256"),
        (json.dumps({"keys": [as_jwk(OTHER, d="AAAA")]}), "key 1: a private key"),
        ("", "at least 32 characters"),
        (json.dumps({"keys": [as_jwk(OTHER, alg=["ES256"])]}), "without a key"),
        ('{"keys": [{"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}]}', "without a key"),
        # What anybody may know would sign whatever anybody likes, were it the secret of HS256.
        (json.dumps([as_jwk(OTHER)]), "JWKS"),
        ("\ufeff" + json.dumps({"keys": []}), "without a key"),
        ("https://ids.example.com/realms/shop/certs", "no secret"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExample me@host", "no secret"),
        ("".join(public_pem(OTHER).splitlines()[1:-1]), "no secret"),
        ("\n".join(public_pem(PRIVATE["RS256"]).splitlines()[1:-1]), "no secret"),
        (public_pem(OTHER)[1:], "no secret"),
    ],
)
def test_a_key_that_can_check_nothing_is_refused_at_the_start(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "key").write_text(text)
    for path in (tmp_path / "key", tmp_path):
        with pytest.raises(AccessError, match=told) as caught:
            Access(AccessSettings(mode="jwt", keys_path=path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"aud": "registry", "iss": "https://ids"}, 200),
        ({"aud": ["other", "registry"], "iss": "https://ids"}, 200),
        ({"aud": "other", "iss": "https://ids"}, 401),
        ({"aud": "registry", "iss": "https://others"}, 401),
        ({"aud": "registry"}, 401),
        ({"iss": "https://ids"}, 401),
    ],
)
def test_a_token_is_for_us_and_from_whom_we_trust(claims: dict[str, Any], status: int) -> None:
    access = Access(AccessSettings(mode="jwt", key=KEY, audience="registry", issuer="https://ids"))
    assert status_of(access, bearer(signed(**claims))) == status


# Passwords


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that were compared with."""
    found: list[str] = []

    def check(password_hash: str, password: str) -> bool:
        found.append(password_hash)
        return check_password_hash(password_hash, password)

    monkeypatch.setattr("eureka_server.accounts.check_password_hash", check)
    return found


def test_a_name_that_nobody_has_costs_as_much_as_one_that_somebody_has(
    tmp_path: Path, hashed: list[str]
) -> None:
    path = tmp_path / "users"
    path.write_text(f"ann red user {generate_password_hash('x', 'pbkdf2:sha256:7')}\n")
    access = Access(AccessSettings(mode="basic", users_file=path))
    assert status_of(access, basic("ann", "wrong")) == 401
    assert status_of(access, basic("eve", "wrong")) == 401
    assert [each.split("$")[0] for each in hashed] == ["pbkdf2:sha256:7"] * 2
    assert len(hashed[0].split("$")[2]) == len(hashed[1].split("$")[2])


def test_wrong_passwords_are_looked_at_a_few_times_only(users: Path, hashed: list[str]) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))
    assert status_of(access, basic("ann", "secret")) == 200
    found = [status_of(access, basic("ann", f"wrong {number}")) for number in range(40)]
    assert set(found) == {401, 429}
    # The clock goes on: a few more than there may be at once.
    assert len(hashed) < 30
    # Whoever is known already is not concerned, and the loop itself answers whoever guesses.
    assert status_of(access, basic("ann", "secret")) == 200
    headers = {k.lower(): v for k, v in basic("ann", "one more").items()}
    refused = access.grant(Request("GET", "/", "", headers, bytes), quick=True)
    assert isinstance(refused, Answer)
    assert (refused.status, refused.headers) == (429, {"Retry-After": "2"})


def test_the_same_wrong_password_is_hashed_once(users: Path, hashed: list[str]) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))
    assert [status_of(access, basic("ann", "old")) for _ in range(20)] == [401] * 20
    assert len(hashed) == 1
    users.write_text(f"ann red user {generate_password_hash('old', QUICK_HASH)}\n")
    access.refresh()
    assert status_of(access, basic("ann", "old")) == 200


def test_guesses_hold_half_of_the_threads_at_most(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    began = threading.Semaphore(0)

    def check(password_hash: str, password: str) -> bool:
        began.release()
        goes_on.wait(HANG_SECS)
        return False

    access = Access(AccessSettings(mode="basic", users_file=users), threads=4)
    monkeypatch.setattr("eureka_server.accounts.check_password_hash", check)
    found: list[int] = []
    guessing = [
        threading.Thread(target=lambda n=n: found.append(status_of(access, basic("ann", str(n)))))
        for n in range(2)
    ]
    for each in guessing:
        each.start()
    for _ in guessing:
        assert began.acquire(timeout=HANG_SECS)
    assert status_of(access, basic("bob", "p:w")) == 429
    goes_on.set()
    for each in guessing:
        each.join()
    assert found == [401, 401]


def test_who_was_known_stays_known_where_the_users_line_is_unchanged(
    users: Path, hashed: list[str]
) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))
    assert status_of(access, basic("ann", "secret")) == 200
    assert status_of(access, basic("bob", "p:w")) == 200
    kept = users.read_text().splitlines()[1]
    users.write_text(f"{kept}\n")
    access.refresh()
    assert status_of(access, basic("ann", "secret")) == 200
    assert len(hashed) == 2
    assert status_of(access, basic("bob", "p:w")) == 401


def test_an_account_that_ends_while_its_password_is_looked_at_is_not_let_in(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(AccessSettings(mode="basic", users_file=users))

    def check(password_hash: str, password: str) -> bool:
        users.write_text(users.read_text().splitlines()[-1])
        access.refresh()
        return check_password_hash(password_hash, password)

    monkeypatch.setattr("eureka_server.accounts.check_password_hash", check)
    assert status_of(access, basic("ann", "secret")) == 401
    monkeypatch.undo()
    assert status_of(access, basic("ann", "secret")) == 401


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_password_with_an_accent_is_understood_in_either_encoding(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "users"
    path.write_text(f"zoé red user {generate_password_hash('crème', QUICK_HASH)}\n")
    client = client_of(mode="basic", users_file=path)
    pair = "zoé:crème".encode(encoding)
    headers = {"Authorization": "Basic " + base64.b64encode(pair).decode()}
    assert apps(client, headers) == []
    quoted = "".join(f"%{byte:02x}" for byte in pair)
    assert client.get(f"/eureka/n/{quoted}/apps", headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "line",
    [
        "ann red user md5$salt$d41d8cd98f00b204e9800998ecf8427e",
        "ann red user scrypt:3:1:1$salt$00",
        "ann red user scrypt:x$salt$00",
        "ann red user pbkdf2:nothing:1$salt$00",
        "ann red user pbkdf2:sha256:0$salt$00",
        f"ann red user pbkdf2:sha256:1$$ {'0' * 64}",
        "ann red user pbkdf2:sha256:1$salt$0123",
        f"ann red user pbkdf2:sha256:1$salt${'x' * 64}",
        "an:n red user " + generate_password_hash("x", QUICK_HASH),
        "ann red user plain",
    ],
)
def test_a_hash_that_nothing_can_be_compared_with_is_refused_when_it_is_read(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "users"
    path.write_text(f"# remark\n{line}\n")
    with pytest.raises(AccessError, match="line 2: ") as caught:
        Access(AccessSettings(mode="basic", users_file=path))
    assert line.split()[3].partition("$")[2][:8] not in str(caught.value) or "$" not in line


def test_refused_logins_are_logged_without_their_secrets_and_not_without_end(
    users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "access")
    by_password = Access(AccessSettings(mode="basic", users_file=users))
    by_token = Access(AccessSettings(mode="jwt", key=KEY))
    for access, headers in (
        (by_password, basic("ann", "hunter2")),
        (by_password, basic("hunter2", "")),
        (by_token, bearer("hunter2")),
        (by_token, basic("hunter2", "")),
        (by_token, bearer(signed("another key of more than thirty-two letters"))),
    ):
        assert status_of(access, headers) == 401
    assert len(caplog.messages) == 5
    assert "'ann'" in caplog.messages[0]
    assert "InvalidSignatureError" in caplog.messages[4]
    assert not any("hunter2" in message for message in caplog.messages)
    caplog.clear()
    for _ in range(200):
        status_of(by_token, bearer("nonsense"))
    assert len(caplog.messages) < 100


# Browsers


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ({}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        # The browser knows; behind a proxy our own name may be another than it sees.
        ({"Origin": "https://registry.example", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
    ],
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/json"])
def test_a_page_of_another_site_registers_nothing(
    sent: dict[str, str], taken: bool, content_type: str
) -> None:
    client = client_of()
    document = '{"service_name": "shop", "endpoint": {"type": "tcp", "value": "h:1"}}'
    headers = sent | {"Content-Type": content_type}
    native = client.post("/api/v1/instances", data=document, headers=headers)
    is_read = content_type == "application/json"
    assert native.status_code == (403 if not taken else 201 if is_read else 415)
    for method, path in (
        ("POST", "/eureka/apps/CART"),
        ("PUT", "/eureka/apps/CART/cart:1"),
        ("DELETE", "/eureka/apps/CART/cart:1"),
    ):
        body = instance_body("CART", "cart:1") if method == "POST" else None
        reply = client.open(path, method=method, data=body, headers=JSON | sent)
        assert (reply.status_code < 300) == taken, method
    assert client.get("/eureka/apps", headers=JSON | sent).status_code == 200


def test_the_page_can_be_framed_by_none_and_runs_nothing_but_its_own() -> None:
    reply = client_of().get("/api/v1/docs")
    headers = reply.headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    script = reply.data.partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


# Addresses


@pytest.mark.parametrize("proxies", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.0/104"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_an_ipv4_proxy_is_itself_on_a_socket_for_both_kinds(proxies: str, peer: str) -> None:
    networks = load({"REGISTRY_TRUSTED_PROXIES": proxies}).access.trusted_proxies
    client = client_of(require_https=True, trusted_proxies=networks)
    told = {"X-Forwarded-Proto": "https"}
    from_proxy = {"REMOTE_ADDR": peer}
    reply = client.get("/eureka/apps", headers=told, environ_overrides=from_proxy)
    assert reply.status_code == 200
    # What registers without an address has its peer's, as one writes it.
    client = client_of()
    document = '{"service_name": "shop", "endpoint": {"type": "tcp", "value": "name:1"}}'
    client.post("/api/v1/instances", data=document, headers=JSON, environ_overrides=from_proxy)
    told_of = client.get("/eureka/apps/SHOP", headers=JSON).json["application"]["instance"][0]
    assert told_of["ipAddr"] == "127.0.0.1"


# Tenants


def test_a_tenant_sees_of_the_catalogs_what_they_bring_to_its_namespace() -> None:
    reports = [
        {"source": source, "entries": 9, "last_error": "host.blue", "problems": ["blue.yaml: 1"]}
        for source in ("file:main", "consul:main")
    ]
    served = InProcess(access=Access(AccessSettings(mode="jwt", key=KEY)), catalogs=lambda: reports)
    for namespace, source in (("red", "file:main"), ("blue", "consul:main")):
        shown = entry_of(
            source,
            {
                "service_name": "shop",
                "endpoint": {"type": "http", "value": "10.0.0.1:80"},
            },
            Namespace(namespace),
        )
        served.whole.in_namespace(shown.namespace).register(shown.instance)
    client = served.client

    def seen(**claims: Any) -> list[dict[str, Any]]:
        reply = client.get("/api/v1/catalogs", headers=bearer(signed(**claims)))
        return reply.json["catalogs"]  # type: ignore[no-any-return]

    (own,) = seen()
    assert (own["source"], own["entries"]) == ("file:main", 1)
    assert "blue" not in json.dumps(own)
    assert [each["source"] for each in seen(namespace="blue")] == ["consul:main"]
    assert seen(namespace="green") == []
    assert seen(role="admin") == reports
    reports[0] |= {"last_error": "http://ann:s3cret@h/ fails", "problems": ["/n/s3cret"]}
    assert "fails" in json.dumps(seen(role="admin"))
    assert "s3cret" not in json.dumps(seen(role="admin"))
