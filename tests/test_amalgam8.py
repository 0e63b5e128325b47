"""What users of the Amalgam8 registry bring along: their client, and their settings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from conformance.programs import FOLDER, built
from eureka_server.amalgam8 import AMALGAM8
from eureka_server.settings import Environment, SettingError, load
from tests.servers import HANG_SECS, ROOT, RegistryServer


def go_client() -> Path:
    def build(work: Path) -> Path:
        subprocess.run(["go", "build", "-o", "program", "."], cwd=work, check=True, timeout=600)
        return work / "program"

    return built("amalgam8", FOLDER / "amalgam8", build)


@pytest.mark.programs
@pytest.mark.parametrize("worker", ["eureka_http.worker.EventLoopWorker", "gthread"])
@pytest.mark.parametrize("token", [None, "red"])
def test_a_go_client_registers_renews_lists_is_told_410_and_comes_back(
    worker: str, token: str | None, tmp_path: Path
) -> None:
    env = {"WORKER_CLASS": worker, "A8_MIN_TTL": "1s"}
    if token is not None:
        env["A8_AUTH_MODE"] = "trusted"
    with RegistryServer(tmp_path, env=env) as server:
        arguments = [server.root + "/", *([] if token is None else [token])]
        run = subprocess.run(
            [str(go_client()), *arguments], capture_output=True, text=True, timeout=HANG_SECS
        )
    assert (run.returncode, run.stdout) == (0, "ok\n")


@pytest.mark.parametrize(
    ("variable", "value", "meant"),
    [
        ("API_PORT", "8080", lambda e: e.port == 8080),
        ("LOG_LEVEL", "warn", lambda e: e.log_level == "warning"),
        ("LOG_LEVEL", "panic", lambda e: e.log_level == "error"),
        ("LOG_LEVEL", "debug", lambda e: e.log_level == "debug"),
        ("AUTH_MODE", "trusted", lambda e: e.access.mode == "trusted"),
        ("REQUIRE_HTTPS", "t", lambda e: e.access.require_https),
        ("REQUIRE_HTTPS", "false", lambda e: not e.access.require_https),
        ("DEFAULT_TTL", "45s", lambda e: e.native.default_ttl_secs == 45),
        ("MIN_TTL", "1500ms", lambda e: e.native.min_ttl_secs == 2),
        ("MAX_TTL", "1h30m", lambda e: e.native.max_ttl_secs == 5400),
        ("MAX_TTL", "0.5h", lambda e: e.native.max_ttl_secs == 1800),
        ("NAMESPACE_CAPACITY", "50", lambda e: 50 in limits(e)),
        ("NAMESPACE_CAPACITY", "-1", lambda e: 2**31 in limits(e)),
    ],
)
def test_an_operators_variables_mean_the_same_here(
    variable: str, value: str, meant: Callable[[Environment], bool]
) -> None:
    environment = load({f"A8_{variable}": value})
    assert meant(environment)
    assert environment.warnings == ()


def limits(environment: Environment) -> list[object]:
    return [*vars_of(environment.registry), *vars_of(environment.native)]


def vars_of(settings: Any) -> list[object]:
    return [getattr(settings, field.name) for field in fields(settings)]


def test_its_secret_brings_tokens_without_an_end_along() -> None:
    secret = {"A8_AUTH_MODE": "jwt", "A8_JWT_SECRET": "x" * 32}
    access = load(secret).access
    assert (access.mode, access.key, access.require_expiry) == ("jwt", "x" * 32, False)
    assert load(secret | {"REGISTRY_JWT_REQUIRE_EXP": "true"}).access.require_expiry
    with pytest.raises(SettingError, match="A8_JWT_SECRET: expected REGISTRY_AUTH=jwt"):
        load({"A8_JWT_SECRET": "x" * 32})


def test_its_catalogs_are_followed(tmp_path: Path) -> None:
    environment = load(
        {
            "A8_K8S_URL": "https://10.0.0.1:6443",
            "A8_K8S_TOKEN": "secret",
            "A8_EUREKA_URL": "http://one:8761/eureka,http://two:8761/eureka",
            "A8_FS_CATALOG": str(tmp_path),
            "REGISTRY_CATALOGS": f"[{{kind: file, folder: {tmp_path}}}]",
        }
    )
    sources = [catalog.source for catalog in environment.catalogs]
    assert sources == ["file:main", "kubernetes:a8", "eureka:a8", "file:a8"]
    assert environment.warnings == ()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"A8_API_PORT": "none"}, "A8_API_PORT='none': expected a whole number"),
        ({"A8_MAX_TTL": "soon"}, "A8_MAX_TTL='soon': expected a whole number"),
        ({"A8_AUTH_MODE": "trusted,jwt"}, "A8_AUTH_MODE='trusted,jwt': expected none or"),
        ({"A8_K8S_URL": "10.0.0.1", "A8_K8S_TOKEN": "secret"}, "A8_K8S_URL=…: expected"),
        ({"A8_EUREKA_URL": "one:8761/eureka"}, "A8_EUREKA_URL=…: expected"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(environ)
    assert str(caught.value).startswith(told)
    assert "secret" not in str(caught.value)


def test_this_servers_own_variables_count_and_what_has_no_meaning_is_named() -> None:
    environment = load(
        {
            "A8_API_PORT": "8080",
            "PORT": "9000",
            "A8_REPLICATION": "true",
            "A8_STORE_PASSWORD": "secret",
            "A8_K8S_TOKEN": "secret",
            "A8_REGISTRY_URL": "http://x",
            "A8_COLOUR": "red",
            "A8_STORE": "",
        }
    )
    assert environment.port == 9000
    assert environment.warnings == (
        "A8_API_PORT has no effect here: PORT is set too",
        "A8_COLOUR has no effect here: it is not known",
        "A8_K8S_TOKEN has no effect here: it belongs to A8_K8S_URL, which is not set",
        "A8_REGISTRY_URL has no effect here: it is a sidecar's, not a registry's",
        "A8_REPLICATION has no effect here: servers replicate as Eureka's do here, see "
        "EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE",
        "A8_STORE_PASSWORD has no effect here: the store is this server's own: STORE_URL",
    )


def test_the_page_maps_every_variable_of_the_registry() -> None:
    page = (ROOT / "docs/migrate/from-amalgam8.md").read_text()
    named = [*AMALGAM8.meant, *AMALGAM8.without_meaning]
    named += ["A8_K8S_URL", "A8_EUREKA_URL", "A8_FS_CATALOG"]
    assert [name for name in named if f"`{name}" not in page] == []
