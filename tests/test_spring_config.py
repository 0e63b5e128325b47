"""The files of a Spring or Netflix server, read as that server's operator wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_server.settings import Environment, SettingError, load
from tests.servers import ROOT

FILES = ROOT / "tests" / "spring_config"
PEERS = (
    "http://admin:s3cret@peer1:8761/eureka/",
    "http://admin:s3cret@peer2:8762/eureka/",
    "http://peer3:8763/eureka/",
)


def read(*files: Path | str, **environ: str) -> Environment:
    return load({"SPRING_CONFIG_LOCATION": ",".join(map(str, files)), **environ})


def written(folder: Path, text: str, name: str = "application.yml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def warned(environment: Environment, file: Path) -> dict[str, str]:
    """Each property that has no effect, with the reason."""
    pairs = (line.split(" has no effect here: ") for line in environment.warnings)
    return {name.removeprefix(f"{file}: "): reason for name, reason in pairs}


# Realistic files


def test_the_standalone_server_of_springs_guide() -> None:
    found = read(FILES / "standalone.yml")
    assert (found.port, found.peers.port) == (8762, 8762)
    assert found.peers.urls == ("http://localhost:8762/eureka/",)
    assert (found.peers.host_name, found.peers.app_name) == ("localhost", "discovery-service")
    assert (found.peers.register, found.peers.fetch) == (False, False)
    assert found.peers.start_wait_ms == 0
    assert found.registry.self_preservation is False
    assert found.registry.renewal_percent_threshold == 0.49
    assert found.registry.eviction_interval_ms == 5000
    assert warned(found, FILES / "standalone.yml") == {
        "eureka.server.response-cache-update-interval-ms": (
            "answers always come from the current registry, so there is no cache to set"
        )
    }


@pytest.mark.parametrize(
    ("profiles", "port", "host"),
    [({}, 8761, "peer1"), ({"SPRING_PROFILES_ACTIVE": "peer2"}, 8762, "peer2")],
    ids=["the file's own profile", "the environment's"],
)
def test_a_cluster_with_a_profile_for_each_of_its_servers(
    profiles: dict[str, str], port: int, host: str
) -> None:
    found = read(FILES / "cluster.yml", **profiles)
    assert (found.port, found.peers.host_name, found.peers.urls) == (port, host, PEERS)
    assert found.peers.read_timeout_ms == 1000
    assert found.eureka.environment == "production"
    assert found.registry.self_preservation is True


def test_what_has_no_meaning_here_is_named_with_the_reason() -> None:
    file = FILES / "cluster.yml"
    account = (
        "no account is taken from there; without REGISTRY_AUTH=basic and REGISTRY_USERS_FILE"
        " everybody may register"
    )
    own = "its own entry is made of its host, port and application"
    zones = "each zone that has service URLs is a peer"
    others = "only server.*, eureka.* and spring.application.name are read"
    found = read(file)
    assert warned(found, file) == {
        "spring.security.user.name": account,
        "spring.security.user.password": account,
        "spring.cloud.*": others,
        "server.tomcat.max-threads": "it is the servlet container's, and there is none here",
        "server.compression.enabled": "answers are compressed for clients that ask for it",
        "server.servlet.context-path": "paths begin at /; let a proxy take the prefix away",
        "management.*": others,
        "logging.*": others,
        "eureka.datacenter": "nothing shows it",
        "eureka.instance.prefer-ip-address": own,
        "eureka.instance.lease-renewal-interval-in-seconds": own,
        "eureka.instance.metadata-map.zone": own,
        "eureka.client.region": zones,
        "eureka.client.availability-zones.eu": zones,
        "eureka.server.use-read-only-response-cache": (
            "answers always come from the current registry, so there is no cache to set"
        ),
    }
    assert "s3cret" not in "".join(found.warnings)
    assert found.eureka.regions == {"us": "eureka:us"}


def test_the_properties_form() -> None:
    found = read(FILES / "cluster.properties", PORT_OF_EUREKA="8763")
    assert (found.host, found.port) == ("127.0.0.1", 8763)
    assert found.peers.urls == ("http://peer1:8761/eureka/", "http://peer2:8762/eureka/")
    assert (found.peers.app_name, found.peers.read_timeout_ms) == ("eureka-cluster", 1000)
    assert found.registry.self_preservation is True
    tested = read(FILES / "cluster.properties", SPRING_PROFILES_ACTIVE="test,other")
    assert tested.registry.self_preservation is False
    assert found.warnings == tested.warnings == ()


def test_netflixs_own_files() -> None:
    server, client = FILES / "eureka-server.properties", FILES / "eureka-client.properties"
    found = read(server, client)
    assert found.registry.self_preservation is False
    assert found.registry.renewal_percent_threshold == 0.6
    assert found.registry.eviction_interval_ms == 30_000
    assert found.peers.read_timeout_ms == 4000
    assert found.peers.my_url == "http://eureka-1:8080/eureka/v2/"
    assert found.peers.urls == tuple(
        f"http://eureka-{number}:8080/eureka/v2/" for number in (1, 2, 3)
    )
    assert (found.peers.app_name, found.peers.register, found.peers.fetch) == (
        "eureka",
        False,
        True,
    )
    told = [line.split(" has no effect")[0].split(": ")[1] for line in found.warnings]
    assert told == [
        "eureka.shouldUseReadOnlyResponseCache",
        "eureka.remoteRegion.disable.transparent.fallback",
        "eureka.region",
        "eureka.port",
        "eureka.vipAddress",
        "eureka.preferSameZone",
        "eureka.shouldUseDns",
    ]


# What counts before what


def test_variables_count_before_files_and_flags_before_both(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "server.port: 1001\n"
        "eureka:\n"
        "  server: {disable-delta: true}\n"
        "  client.service-url: {defaultZone: 'http://one/eureka', b: 'http://two/eureka'}\n",
    )
    assert read(file).port == 1001
    assert read(file, SERVER_PORT="1002").port == 1002
    assert read(file, SERVER_PORT="1002", PORT="1003").port == 1003
    assert read(file).eureka.delta_enabled is False
    assert read(file, EUREKA_SERVER_DISABLE_DELTA="false").eureka.delta_enabled is True
    assert read(file, EUREKA_SERVER_DISABLEDELTA="false").eureka.delta_enabled is True
    assert read(file, EUREKA_CLIENT_SERVICEURL_DEFAULTZONE="http://x/eureka").peers.urls == (
        "http://x/eureka",
        "http://two/eureka",
    )


def test_a_folder_stands_for_its_files_and_those_of_the_profiles(tmp_path: Path) -> None:
    written(tmp_path, "server.port: 1\neureka.environment: a\nspring.application.name: a\n")
    written(tmp_path, "server.port=2\nspring.application.name=b\n", "application.properties")
    written(tmp_path, "spring.application.name: c", "application-blue.yml")
    written(tmp_path, "spring.application.name: d", "application-green.yaml")

    def told(**environ: str) -> tuple[int, str, str]:
        found = read(tmp_path, **environ)
        return found.port, found.eureka.environment, found.peers.app_name

    assert told() == (2, "a", "b")
    assert told(SPRING_PROFILES_ACTIVE="blue") == (2, "a", "c")
    assert told(SPRING_PROFILES_ACTIVE="blue,green") == (2, "a", "d")
    assert told(SPRING_PROFILES_ACTIVE="green,blue") == (2, "a", "c")
    assert read(tmp_path / "application.yml", SPRING_PROFILES_ACTIVE="blue").port == 1


def test_a_later_location_counts_before_an_earlier_one_and_an_optional_one_may_lack(
    tmp_path: Path,
) -> None:
    one, two = written(tmp_path, "server.port: 1", "1.yml"), written(tmp_path, "server.port: 2")
    lacking = tmp_path / "lacking"
    assert read(one, f"file:{two}").port == 2
    assert read(two, f"optional:file:{one}", f"optional:{lacking}.yml").port == 1
    assert read(f"file://{one};optional:file:{lacking}/").port == 1
    found = read("optional:classpath:/", one, "classpath:/application.yml")
    reason = "only files and folders are read, nothing of the old server's archive"
    assert found.port == 1
    assert found.warnings == tuple(
        f"SPRING_CONFIG_LOCATION: {word} has no effect here: {reason}"
        for word in ("optional:classpath:/", "classpath:/application.yml")
    )


@pytest.mark.parametrize(
    ("condition", "active", "counts"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "", False),
        ("default", "", True),
        ("default", "a", False),
        ("a, b", "b", True),
        ("a | b", "b", True),
        ("a & b", "b", False),
        ("a & b", "b,a", True),
        ("'!a'", "b", True),
        ("'!a'", "a", False),
        ("'!a & b | c'", "a,c", True),
        ("[a, b]", "b", True),
    ],
)
@pytest.mark.parametrize("name", ["spring.config.activate.on-profile", "spring.profiles"])
def test_a_document_counts_for_its_profiles(
    tmp_path: Path, name: str, condition: str, active: str, counts: bool
) -> None:
    text = f"server.port: 1\n---\n{name}: {condition}\nserver.port: 2\n"
    found = read(written(tmp_path, text), SPRING_PROFILES_ACTIVE=active)
    assert (found.port, found.warnings) == (2 if counts else 1, ())


# Spellings


@pytest.mark.parametrize(
    "text",
    [
        "eureka: {server: {eviction-interval-timer-in-ms: 7}}",
        "eureka: {server: {evictionIntervalTimerInMs: 7}}",
        "eureka: {server: {eviction_interval_timer_in_ms: '7'}}",
        "eureka.server: {evictionintervaltimerinms: 7}",
        "EUREKA.SERVER.EVICTION-INTERVAL-TIMER-IN-MS: 7",
        "eureka.evictionIntervalTimerInMs: 7",
        "a: &a {evictionIntervalTimerInMs: 7}\neureka: {server: {<<: *a}}",
    ],
)
def test_names_are_relaxed_nested_or_dotted(tmp_path: Path, text: str) -> None:
    assert read(written(tmp_path, text)).registry.eviction_interval_ms == 7


@pytest.mark.parametrize("key", ["zone1", '"[zone1]"', "us-east-1c"])
def test_each_zone_is_a_peer(tmp_path: Path, key: str) -> None:
    text = f"eureka.client.serviceUrl: {{{key}: 'http://one/eureka'}}"
    found = read(written(tmp_path, text))
    assert (found.peers.urls, found.warnings) == (("http://one/eureka",), ())


@pytest.mark.parametrize(
    ("value", "environ", "expected"),
    [
        ("${NAME}", {"NAME": "x"}, "x"),
        ("a-${NAME:y}-b", {}, "a-y-b"),
        ("a-${NAME:y}-b", {"NAME": ""}, "a--b"),
        ("${A:${B:z}}", {}, "z"),
        ("${A:http://h:1}", {}, "http://h:1"),
        ("${some.key}", {}, "from the file"),
        ("${some-key}", {"SOMEKEY": "from the environment"}, "from the environment"),
        ("${some.key}", {"SOME_KEY": "from the environment"}, "from the environment"),
        ("${someOther.key}", {}, "from the file"),
        ("${server.port}", {}, "8700"),
        ("${server.port}", {"SERVER_PORT": "8701"}, "8701"),
        ("${server.port}", {"PORT": "8702", "SERVER_PORT": "8701"}, "8702"),
        ("${eureka.instance.hostname}", {"EUREKA_INSTANCE_HOSTNAME": "h"}, "h"),
        ("}${", {}, "}${"),
    ],
)
def test_placeholders_come_from_the_environment_and_from_the_files(
    tmp_path: Path, value: str, environ: dict[str, str], expected: str
) -> None:
    text = (
        f"eureka.environment: '{value}'\nserver.port: 8700\n"
        "some.key: from the file\nsome-other.key: ${some.key}\n"
    )
    assert read(written(tmp_path, text), **environ).eureka.environment == expected


def test_javas_properties(tmp_path: Path) -> None:
    text = (
        b"  # a comment = 1\n! another\\\n\n"
        b"eureka.environment = caf\\u00e9 \xe9\\tb\\\n   c\\\\\r\n"
        b"server.port:1\rspring.application.name\tname with blanks\n"
        b"eureka.server.my\\-url=http\\://h/eureka"
    )
    (tmp_path / "a.properties").write_bytes(text)
    found = read(tmp_path / "a.properties")
    assert found.eureka.environment == "café é\tbc\\"
    assert (found.port, found.peers.app_name) == (1, "name with blanks")
    assert found.peers.my_url == "http://h/eureka"


def test_tls_is_served_with_files_in_pem(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        written(tmp_path, "", name)
    ssl = (
        f"server.ssl: {{certificate: 'file:{tmp_path}/cert.pem', enabled: %s,"
        f" certificate-private-key: {tmp_path}/key.pem, client-auth: need}}"
    )
    found = read(written(tmp_path, ssl % "true"))
    assert (found.tls.cert_file, found.tls.key_file) == (
        tmp_path / "cert.pem",
        tmp_path / "key.pem",
    )
    assert list(warned(found, tmp_path / "application.yml")) == ["server.ssl.client-auth"]
    assert read(written(tmp_path, ssl % "false")).tls.cert_file is None


# What is wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server.port: x", ": server.port='x': expected a whole number from 1 to 65535"),
        ("a: b\nb: c: d", ": line 2: not YAML: mapping values are not allowed here"),
        ("- a", ": expected properties with their values"),
        ("a: !b c", ": line 1: not YAML: could not determine a constructor"),
        ("a: &a [*a]", ": a[0]"),
        ("server.port: ${NOWHERE}", ": server.port: ${NOWHERE} is set nowhere"),
        ("server.port: ${a}\na: ${b}\nb: ${a}", ": server.port: ${a} stands for itself"),
        ("spring.profiles: (a | b) & c", ": spring.profiles: expected profiles without parenth"),
        (
            "eureka.client.service-url.defaultZone: ftp://ann:s3cret@h",
            ": eureka.client.service-url.defaultZone=…: expected http:// or https:// service URLs",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, text: str, told: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}{told}")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lacking.yml", "files, or folders with an application.yml or .properties"),
        ("empty", "files, or folders with an application.yml or .properties"),
        ("a.txt", "files that end in .yml, .yaml, .properties"),
    ],
)
def test_a_location_that_is_none_is_refused(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    written(tmp_path, "", "a.txt")
    with pytest.raises(SettingError) as caught:
        read(tmp_path / name)
    place = str(tmp_path / name)
    assert str(caught.value) == f"SPRING_CONFIG_LOCATION={place!r}: expected {told}"


def test_an_unknown_property_is_named_with_what_may_be_meant(tmp_path: Path) -> None:
    file = written(tmp_path, "eureka.server: {enable-self-preservaton: false, other: 1}")
    assert warned(read(file), file) == {
        "eureka.server.enable-self-preservaton": (
            "it is not known; is EUREKA_SERVER_ENABLESELFPRESERVATION meant?"
        ),
        "eureka.server.other": "it is not known",
    }


def test_what_is_no_spring_property_is_no_setting(tmp_path: Path) -> None:
    found = read(written(tmp_path, "store.url: 'memory:'\nport: 1\nworkers: 3\nlog-level: debug\n"))
    assert (found.store_url, found.port, found.log_level) == ("lmdb:data", 8761, "info")
    assert len(found.warnings) == 4


values: Any = st.recursive(
    st.one_of(st.text("${}a:.", max_size=8), st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["eureka", "server", "port", "client"]), inner),
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["eureka", "server", "spring"]), values))
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("any") / "application.yml"
    file.write_text(json.dumps(document))
    told = "read"
    try:
        read(file)
    except SettingError as error:
        told = str(error)
    assert "\n" not in told
