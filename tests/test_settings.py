"""Every setting, in every spelling, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_server.settings import SETTINGS, SUBJECTS, SettingError, load, with_flags
from tests.servers import ROOT

PROPERTIES = [
    ("ENABLE_SELF_PRESERVATION", "false", "self_preservation", False),
    ("RENEWAL_PERCENT_THRESHOLD", "0.5", "renewal_percent_threshold", 0.5),
    ("RENEWAL_THRESHOLD_UPDATE_INTERVAL_MS", "1000", "renewal_threshold_update_interval_ms", 1000),
    (
        "EXPECTED_CLIENT_RENEWAL_INTERVAL_SECONDS",
        "10",
        "expected_client_renewal_interval_secs",
        10,
    ),
    ("EVICTION_INTERVAL_TIMER_IN_MS", "500", "eviction_interval_ms", 500),
    ("RETENTION_TIME_IN_M_S_IN_DELTA_QUEUE", "5000", "delta_retention_ms", 5000),
    ("DELTA_RETENTION_TIMER_INTERVAL_IN_MS", "700", "delta_retention_timer_interval_ms", 700),
]


@pytest.mark.parametrize("spelling", ["underscores", "joined"])
@pytest.mark.parametrize(("name", "value", "field", "expected"), PROPERTIES)
def test_an_operators_spring_settings_mean_the_same_here(
    spelling: str, name: str, value: str, field: str, expected: object
) -> None:
    variable = name if spelling == "underscores" else name.replace("_", "")
    environment = load({f"EUREKA_SERVER_{variable}": value})
    assert getattr(environment.registry, field) == expected
    assert environment.warnings == ()


@pytest.mark.parametrize("name", ["DISABLE_DELTA", "DISABLEDELTA"])
def test_the_delta_can_be_disabled(name: str) -> None:
    assert load({f"EUREKA_SERVER_{name}": "TRUE"}).eureka.delta_enabled is False


@pytest.mark.parametrize("name", ["SYNC_WHEN_TIMESTAMP_DIFFERS", "SYNCWHENTIMESTAMPDIFFERS"])
def test_the_comparison_of_timestamps_can_be_disabled(name: str) -> None:
    assert load({f"EUREKA_SERVER_{name}": "no"}).eureka.sync_when_timestamp_differs is False


def test_an_interval_that_is_not_positive_means_30_seconds() -> None:
    registry = load({"EUREKA_SERVER_EXPECTED_CLIENT_RENEWAL_INTERVAL_SECONDS": "0"}).registry
    assert registry.expected_client_renewal_interval_secs == 30


def test_the_defaults_are_those_of_the_original_but_for_the_end_of_a_lease() -> None:
    environment = load({})
    assert (environment.host, environment.port, environment.store_url) == (
        "0.0.0.0",
        8761,
        "lmdb:data",
    )
    assert environment.registry.lease_expiry == "exact"
    assert environment.registry.self_preservation is True
    assert environment.registry.renewal_percent_threshold == 0.85


def test_springs_port_is_read_where_ours_is_not_set() -> None:
    assert load({"SERVER_PORT": "9000"}).port == 9000
    assert load({"SERVER_PORT": "9000", "PORT": "9001"}).port == 9001
    assert load({"SERVER_ADDRESS": "127.0.0.1"}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("WORKERS", "none", "a whole number from 1 to 256"),
        ("STORE_URL", "sqlite:x", "memory:, lmdb:PATH or redis://HOST:PORT/DATABASE"),
        ("LEASE_EXPIRY", "never", "exact or genuine"),
        ("LOG_LEVEL", "loud", "debug or info or warning or error"),
        ("EUREKA_SERVER_ENABLESELFPRESERVATION", "maybe", "true or false"),
        ("EUREKA_SERVER_RENEWAL_PERCENT_THRESHOLD", "1.5", "a number above 0, up to 1"),
        ("EUREKA_SERVER_EVICTIONINTERVALTIMERINMS", "1s", "a whole number from 1 to"),
    ],
)
def test_a_wrong_value_is_refused_by_name(variable: str, value: str, expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        load({variable: value})
    assert str(caught.value).startswith(f"{variable}={value!r}: expected {expected}")
    assert "\n" not in str(caught.value)


def test_memory_is_refused_to_several_workers() -> None:
    assert load({"STORE_URL": "memory:"}).workers == 1
    with pytest.raises(SettingError, match="WORKERS=2: expected 1"):
        load({"STORE_URL": "memory:", "WORKERS": "2"})


def test_a_property_without_meaning_is_named_with_the_reason() -> None:
    warnings = load(
        {
            "EUREKA_SERVER_USE_READ_ONLY_RESPONSE_CACHE": "true",
            "EUREKA_SERVER_PEER_NODE_TOTAL_CONNECTIONS": "9",
            "EUREKA_SERVER_TYPO": "1",
            "EUREKA_CLIENT_EUREKA_SERVER_READ_TIMEOUT_SECONDS": "8",
        }
    ).warnings
    assert warnings == (
        "EUREKA_CLIENT_EUREKA_SERVER_READ_TIMEOUT_SECONDS has no effect here: this server is"
        " nobody's client but its peers', which it asks in its own time",
        "EUREKA_SERVER_PEER_NODE_TOTAL_CONNECTIONS has no effect here: each peer has one connection"
        " and one batch under way",
        "EUREKA_SERVER_TYPO has no effect here: it is not known",
        "EUREKA_SERVER_USE_READ_ONLY_RESPONSE_CACHE has no effect here: answers always come from"
        " the current registry, so there is no cache to set",
    )


@pytest.mark.parametrize(
    ("variable", "field"),
    [("REGISTRY_MAX_INSTANCES", "max_instances"), ("REGISTRY_MAX_NAMESPACES", "max_namespaces")],
)
def test_the_registrys_limits_are_read_and_have_no_effect_below_one(
    variable: str, field: str
) -> None:
    environment = load({variable: "7"})
    assert getattr(environment.registry, field) == 7
    assert environment.warnings == ()
    with pytest.raises(SettingError, match=variable):
        load({variable: "0"})


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("ACCES_LOG", "ACCESS_LOG"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("STORE_URI", "STORE_URL"),
        ("WORKER", "WORKERS"),
        ("REGISTRY_CATALOG", "REGISTRY_CATALOGS"),
        ("REGISTRY_MAX_TAG", "REGISTRY_MAX_TAGS"),
    ],
)
def test_a_variable_that_is_almost_ours_is_named_with_the_right_one(
    given: str, nearest: str
) -> None:
    (told,) = load({given: "x"}).warnings
    assert told == f"{given} has no effect here: it is not known; is {nearest} meant?"


def test_a_property_of_springs_that_is_almost_one_is_named_with_the_right_one() -> None:
    (told,) = load({"EUREKA_SERVER_ENABLE_SELF_PRESERVATON": "false"}).warnings
    assert told.endswith("is EUREKA_SERVER_ENABLESELFPRESERVATION meant?")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("REGISTRY_AUHT", "REGISTRY_AUTH"),
        ("REGISTRY_USER_FILE", "REGISTRY_USERS_FILE"),
        ("REGISTRY_JWT_KEYFILE", "REGISTRY_JWT_KEY_FILE"),
        ("REGISTRY_REQUIRE_HTTP", "REGISTRY_REQUIRE_HTTPS"),
        ("TLS_CERTFILE", "TLS_CERT_FILE"),
        ("TLS_CLIENT_CA", "TLS_CLIENT_CA_FILE"),
        ("registry_auth", "REGISTRY_AUTH"),
        ("Registry_Users_File", "REGISTRY_USERS_FILE"),
        ("REGISTRYAUTH", "REGISTRY_AUTH"),
        ("TLSCERTFILE", "TLS_CERT_FILE"),
    ],
)
def test_a_letter_that_is_missing_does_not_open_the_server(given: str, nearest: str) -> None:
    with pytest.raises(SettingError) as caught:
        load({given: "secret"})
    assert str(caught.value) == f"{given} is not known: expected {nearest}, or nothing"


def test_a_value_is_shown_without_its_secrets() -> None:
    with pytest.raises(SettingError) as caught:
        load({"STORE_URL": "valkey://ann:s3cret@h/0"})
    expected = "memory:, lmdb:PATH or redis://HOST:PORT/DATABASE"
    assert str(caught.value) == f"STORE_URL='valkey://…@h/0': expected {expected}"


@pytest.mark.parametrize(
    "variable", [s.variable for s in SETTINGS if s.form in ("FILE", "PATH") or s.is_secret]
)
def test_a_path_that_the_system_refuses_to_look_at_is_refused_in_one_line(variable: str) -> None:
    if variable == "REGISTRY_JWT_KEY":
        return  # not a path, however long
    with pytest.raises(SettingError) as caught:
        load({variable: "/" + "x" * 5000})
    assert str(caught.value).startswith(f"{variable}=")


@given(
    st.dictionaries(
        st.sampled_from([setting.variable for setting in SETTINGS]),
        st.one_of(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            st.sampled_from(["true", "0", "1", "-1", "nan", "1e400", "9" * 5000, "jwt", "basic"]),
            st.sampled_from(["memory:", "lmdb:x", "/etc/hostname", "[{}]", "{", "::/0", "1.5"]),
        ),
        max_size=4,
    )
)
def test_whatever_is_set_is_read_or_refused_in_one_line(environ: dict[str, str]) -> None:
    told = "read"
    try:
        load(environ)
    except SettingError as error:
        told = str(error)
    assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]+", told)


@pytest.mark.parametrize(
    "environ",
    [
        {"REGISTRY_USERS_FILE": "/etc/hostname"},
        {"REGISTRY_USERS_FILE": "/etc/hostname", "REGISTRY_AUTH": "none"},
        {"REGISTRY_USERS_FILE": "/etc/hostname", "REGISTRY_AUTH": "trusted"},
        {"REGISTRY_JWT_KEY": "x" * 32},
        {"REGISTRY_JWT_KEY_FILE": "/etc/hostname"},
        {"REGISTRY_JWT_AUDIENCE": "registry"},
        {"REGISTRY_JWT_ISSUER": "https://ids"},
        {"REGISTRY_JWT_REQUIRE_EXP": "false"},
        {"REGISTRY_AUTH_READS": "true"},
        {"REGISTRY_AUTH_WRITES": "true"},
        {
            "REGISTRY_AUTH": "jwt",
            "REGISTRY_JWT_KEY": "x" * 32,
            "REGISTRY_JWT_KEY_FILE": "/etc/hostname",
        },
    ],
)
def test_what_asks_for_accounts_without_switching_them_on_is_refused(
    environ: dict[str, str],
) -> None:
    with pytest.raises(SettingError, match="REGISTRY_"):
        load(environ)


def test_what_kubernetes_says_of_a_service_with_our_name_is_no_mistake() -> None:
    links = {
        "REGISTRY_SERVICE_HOST": "10.0.0.1",
        "REGISTRY_SERVICE_PORT": "8761",
        "REGISTRY_SERVICE_PORT_HTTP": "8761",
        "REGISTRY_PORT": "tcp://10.0.0.1:8761",
        "REGISTRY_PORT_8761_TCP": "tcp://10.0.0.1:8761",
        "REGISTRY_PORT_8761_TCP_ADDR": "10.0.0.1",
        "EUREKA_SERVER_SERVICE_HOST": "10.0.0.1",
        "EUREKA_SERVER_PORT_8761_TCP_PROTO": "tcp",
    }
    assert load(links | {"HOSTNAME": "a", "LANG": "C", "PATH": "/bin"}).warnings == ()


# The table, and the pages that repeat it


def section(subject: str) -> str:
    """The table of one subject, as the page of the settings has it."""
    lines = [
        f"## {subject}",
        "",
        "| variable | flag | value | default | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting in SUBJECTS[subject]:
        form = " or ".join(f"`{word}`" for word in setting.reader.form.split("|"))
        default = f"`{setting.default}`" if setting.default else ""
        flag = f"`{setting.flag}`" if setting.flag else "none: it is a secret"
        cells = (f"`{setting.variable}`", flag, form, default, setting.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("|  |", "| |")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_page_of_the_settings_repeats_the_table(subject: str) -> None:
    assert f"\n{section(subject)}\n" in (ROOT / "docs/operate/settings.md").read_text()


def test_what_the_readme_says_of_settings_is_in_the_table() -> None:
    text = (ROOT / "README.md").read_text().split("## Settings\n")[1].split("\n## ")[0]
    known = {setting.variable: setting.default for setting in SETTINGS}
    told = 0
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        variables, defaults, _ = (re.findall(r"`([^`]*)`", cell) for cell in line.split("|")[1:4])
        if any(name.endswith("*") for name in variables):
            assert all(any(k.startswith(n.rstrip("*")) for k in (*known, "A8_")) for n in variables)
            continue
        assert [known[name] for name in variables if known[name]] == defaults
        told += len(variables)
    assert told > 8


def test_each_row_is_another_setting() -> None:
    for names in (
        [setting.key for setting in SETTINGS],
        [setting.field for setting in SETTINGS],
        [setting.flag for setting in SETTINGS if setting.flag],
    ):
        assert len(set(names)) == len(names)


def test_the_defaults_of_the_table_are_those_of_the_classes() -> None:
    environment = load({})
    for setting in SETTINGS:
        if not setting.default:
            continue
        owner: object = environment
        for name in setting.field.split("."):
            owner = getattr(owner, name)
        assert setting.reader.read(setting.default) == owner, setting.variable


def test_what_has_no_default_is_off() -> None:
    environment = load({})
    for setting in SETTINGS:
        if setting.default or setting.variable == "WORKERS":
            continue
        owner: object = environment
        for name in setting.field.split("."):
            owner = getattr(owner, name)
        assert owner in (None, "", ()), setting.variable


def test_every_field_of_the_parts_can_be_set_but_those_that_are_named() -> None:
    fixed = {
        "eureka.max_instance_bytes",
        "eureka.max_batch_bytes",
        "eureka.regions",  # of settings whose names are not known before
        "access.users_copy",
        "registry.names_are_secret",  # follows from the mode of access
    }
    environment = load({})
    fields_of_parts = {
        f"{part}.{field.name}"
        for part in ("registry", "eureka", "native", "access", "tls")
        for field in fields(getattr(environment, part))
    }
    assert fields_of_parts - {setting.field for setting in SETTINGS} == fixed


def test_a_flag_counts_before_every_spelling_of_the_variable() -> None:
    environ = {"EUREKA_SERVER_DISABLEDELTA": "true", "PORT": "1", "HOME": "/"}
    changed = with_flags(environ, {"EUREKA_SERVER_DISABLE_DELTA": "false", "PORT": "2"})
    assert changed == {"EUREKA_SERVER_DISABLE_DELTA": "false", "PORT": "2", "HOME": "/"}


def test_no_secret_has_a_flag_that_shows_it() -> None:
    flags = {setting.variable: setting.flag for setting in SETTINGS if setting.is_secret}
    assert flags == {
        "EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE": "--service-url-default-zone-file",
        "REGISTRY_JWT_KEY": "",
        "REGISTRY_CATALOGS": "--catalogs-file",
    }


def test_where_another_servers_variable_counts_behind_ours_that_is_said() -> None:
    told = load({"SERVER_PORT": "9000", "PORT": "9001"}).warnings
    assert told == ("SERVER_PORT has no effect here: PORT is set too",)
    told = load({"A8_API_PORTS": "1"}).warnings
    assert told == ("A8_API_PORTS has no effect here: it is not known; is A8_API_PORT meant?",)
