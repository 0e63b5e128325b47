"""Remote regions: how they are set, and what ``?regions=`` shows of them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from eureka_compat import EurekaApi, EurekaSettings
from eureka_http.exchange import Request
from eureka_server.settings import Environment, SettingError, load
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on, sample_instance
from tests.in_process import InProcess
from tests.servers import JSON, RegistryServer, instance_body, wait_until

URLS, WHITELIST = (
    "EUREKA_SERVER_REMOTE_REGION_URLS_WITH_NAME",
    "EUREKA_SERVER_REMOTE_REGION_APP_WHITELIST",
)
REGIONS = {"eu": "eureka:eu", "us": "eureka:us"}
EU, US = "http://eu:8761/eureka", "http://us:8761/eureka"


# How they are set


def sources(environment: Environment) -> dict[str, str]:
    """The regions, each with its catalog's source, which must be there."""
    listed = {each.source for each in environment.catalogs}
    assert listed == set(environment.eureka.regions.values())
    return dict(environment.eureka.regions)


@pytest.mark.parametrize(
    "environ",
    [
        {f"{URLS}_EU": EU, f"{URLS}_US": US},
        {f"{URLS.replace('_REGION_URLS_WITH_', 'REGIONURLSWITH')}_EU": EU, f"{URLS}_US": US},
        {URLS: f"eu;{EU}, us;{US}"},
        {"EUREKA_SERVER_REMOTEREGIONURLSWITHNAME": f"EU;{EU},us;{US},"},
    ],
)
def test_each_region_is_followed(environ: dict[str, str]) -> None:
    environment = load(environ)
    assert sources(environment) == REGIONS
    assert environment.warnings == ()
    terms = [(each.make()._settings) for each in environment.catalogs]  # type: ignore[attr-defined]
    assert [(each.name, each.urls, each.local_wins) for each in terms] == [
        ("eu", (EU,), "instance"),
        ("us", (US,), "instance"),
    ]


def test_an_underscore_of_a_variable_is_a_dash_of_the_region() -> None:
    assert list(sources(load({f"{URLS}_EU_WEST_1": EU}))) == ["eu-west-1"]


def test_regions_stand_in_files_too(tmp_path: Path) -> None:
    file = tmp_path / "application.yml"
    file.write_text(
        "eureka.server:\n"
        f"  remote-region-urls-with-name: {{eu-west-1: '{EU}', eu_2: '{EU}'}}\n"
        "  remoteRegionAppWhitelist: {global: [shop, bank], eu_2: news}\n"
    )
    environment = load({"SPRING_CONFIG_LOCATION": str(file), f"{URLS}_EU_WEST_1": US})
    assert list(sources(environment)) == ["eu-west-1", "eu_2"]
    made: list[Any] = [each.make() for each in environment.catalogs]
    assert [each._settings.applications for each in made] == [("shop", "bank"), ("news",)]
    assert [each._settings.urls for each in made] == [(US,), (EU,)]
    assert environment.warnings == ()


@pytest.mark.parametrize("region", ["GLOBAL", "EU"])
def test_a_whitelist_names_what_is_taken(region: str) -> None:
    (catalog,) = load({f"{URLS}_EU": EU, f"{WHITELIST}_{region}": "shop, bank"}).catalogs
    made: Any = catalog.make()
    assert made._settings.applications == ("shop", "bank")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({f"{URLS}_EU": "eu:8761"}, f"{URLS}_EU=…: expected the service URL of a region"),
        ({f"{URLS}_EU": "ftp://ann:s3cret@h"}, f"{URLS}_EU=…: expected the service URL of a"),
        ({URLS: "eu"}, f"{URLS}=…: expected the service URL of a region"),
        ({URLS: f"e u;{EU}"}, "remote regions: expected catalog 1 (eureka:e u): letters"),
        (
            {
                f"{URLS}_EU": EU,
                "REGISTRY_CATALOGS": f"[{{kind: eureka, name: eu, urls: ['{EU}']}}]",
            },
            "eureka:eu: expected either a catalog or a remote region",
        ),
    ],
)
def test_what_is_no_region_is_refused_in_one_line(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(environ)
    assert str(caught.value).startswith(told)
    assert "s3cret" not in str(caught.value)


# What is shown of them


@pytest.fixture
def server() -> InProcess:
    started = InProcess(eureka=EurekaSettings(regions=REGIONS))
    for app, name, source, status in (
        ("SHOP", "here:1", "eureka", "UP"),
        ("SHOP", "eu:1", "eureka:eu", "DOWN"),
        ("SHOP", "us:1", "eureka:us", "UP"),
        ("NEWS", "eu:2", "eureka:eu", "UP"),
        ("FILE", "file:1", "file:here", "UP"),
    ):
        started.registry.register(
            sample_instance(app, name, source=source, status=status, vip_address="web")
        )
    return started


def listed(client: FlaskClient, path: str) -> tuple[set[str], str]:
    """The ids that a list has, and its hash code."""
    answer = client.get(f"/eureka/{path}", headers=JSON)
    assert answer.status_code == 200
    found = answer.get_json()["applications"]
    ids = {each["instanceId"] for app in found["application"] for each in app["instance"]}
    return ids, found["apps__hashcode"]


HERE = {"here:1", "file:1"}
OF_EU, OF_US = {"eu:1", "eu:2"}, {"us:1"}


@pytest.mark.parametrize("path", ["apps", "apps/", "apps/delta", "v2/apps"])
@pytest.mark.parametrize(
    ("query", "ids", "code"),
    [
        ("", HERE | OF_EU | OF_US, "DOWN_1_UP_4_"),
        ("?regions=", HERE | OF_EU | OF_US, "DOWN_1_UP_4_"),
        ("?regions=eu", HERE | OF_EU, "DOWN_1_UP_3_"),
        ("?regions=US", HERE | OF_US, "UP_3_"),
        ("?regions=us,eu", HERE | OF_EU | OF_US, "DOWN_1_UP_4_"),
        ("?regions=eu%2Cus", HERE | OF_EU | OF_US, "DOWN_1_UP_4_"),
        ("?regions=nowhere", HERE, "UP_2_"),
        ("?regions=nowhere,us", HERE | OF_US, "UP_3_"),
        ("?other=1", HERE | OF_EU | OF_US, "DOWN_1_UP_4_"),
    ],
)
def test_who_asks_for_regions_is_shown_those_and_what_is_here(
    server: InProcess, path: str, query: str, ids: set[str], code: str
) -> None:
    for asked in ("", "?regions=nowhere", query, query):  # what one asked for is not another's
        found = listed(server.client, path + asked)
    assert found == (ids, code)


@pytest.mark.parametrize(
    "headers", [{}, {"X-Eureka-Accept": "compact"}, {"Accept-Encoding": "gzip"}]
)
@pytest.mark.parametrize("media", ["application/json", "application/xml"])
def test_each_form_is_as_that_of_a_server_that_has_no_more(
    headers: dict[str, str], media: str
) -> None:
    bodies = []
    for regions in (("eureka:us", "eureka:eu"), ("eureka:eu",)):
        started = InProcess(eureka=EurekaSettings(regions=REGIONS))
        for source in ("eureka", *regions):
            started.registry.register(sample_instance("SHOP", source, source=source))
        asked = {"Accept": media, **headers}
        answer = started.client.get("/eureka/apps?regions=eu", headers=asked)
        bodies.append((answer.status_code, answer.content_type, answer.data))
    assert bodies[0] == bodies[1]


def test_a_delta_of_regions_tells_of_what_changed_there(server: InProcess) -> None:
    client = server.client
    listed(client, "apps/delta?regions=eu")
    server.registry.cancel("SHOP", "eu:1", source="eureka:eu")
    server.registry.cancel("SHOP", "us:1", source="eureka:us")
    ids, code = listed(client, "apps/delta?regions=eu")
    assert (ids, code) == (HERE | OF_EU, "UP_3_")
    gone = client.get("/eureka/apps/delta?regions=eu", headers=JSON).get_data(as_text=True)
    assert gone.count('"actionType":"DELETED"') == 1
    assert listed(client, "apps?regions=eu") == (HERE | {"eu:2"}, "UP_3_")
    server.clock.advance(10**6)
    assert listed(client, "apps/delta?regions=eu") == (set(), "UP_3_")


def test_an_application_is_shown_as_it_is_here_and_else_as_it_is_elsewhere(
    server: InProcess,
) -> None:
    def of(app: str) -> set[str]:
        answer = server.client.get(f"/eureka/apps/{app}", headers=JSON).get_json()
        return {each["instanceId"] for each in answer["application"]["instance"]}

    assert (of("SHOP"), of("NEWS"), of("FILE")) == ({"here:1"}, {"eu:2"}, {"file:1"})
    assert of("SHOP") == {"here:1"}
    xml = server.client.get("/eureka/apps/SHOP", headers={"Accept": "application/xml"})
    assert xml.get_data(as_text=True).count("<instance>") == 1
    server.registry.cancel("SHOP", "here:1")
    assert of("SHOP") == {"eu:1", "us:1"}


def test_the_vips_are_those_of_all_regions(server: InProcess) -> None:
    assert listed(server.client, "vips/web?regions=eu")[0] == HERE | OF_EU | OF_US


def test_without_the_fallback_only_who_asks_is_shown_other_regions() -> None:
    server = InProcess(eureka=EurekaSettings(regions=REGIONS, falls_back=False))
    for app, source in (("SHOP", "eureka"), ("SHOP", "eureka:eu"), ("NEWS", "eureka:us")):
        server.registry.register(sample_instance(app, source, source=source, vip_address="web"))
    client = server.client
    for _ in range(2):
        for path in ("apps", "apps?regions=", "apps?other=1", "apps/delta", "vips/web"):
            assert listed(client, path) == ({"eureka"}, "UP_1_")
        assert listed(client, "apps?regions=us,eu")[0] == {"eureka", "eureka:eu", "eureka:us"}
        assert listed(client, "apps?regions=us")[0] == {"eureka", "eureka:us"}
        assert client.get("/eureka/apps/NEWS", headers=JSON).status_code == 404
        found = client.get("/eureka/apps/SHOP", headers=JSON).get_json()["application"]
        assert [each["instanceId"] for each in found["instance"]] == ["eureka"]
    # One that is asked for by its id is shown wherever it is.
    assert client.get("/eureka/apps/NEWS/eureka:us", headers=JSON).status_code == 200


def test_a_large_vip_has_no_hidden_regions_instances() -> None:
    server = InProcess(eureka=EurekaSettings(regions=REGIONS, falls_back=False))
    for number in range(300):
        source = "eureka" if number % 3 else "eureka:us"
        server.registry.register(
            sample_instance("BIG", f"i{number}", source=source, vip_address="big")
        )
    ids, code = listed(server.client, "vips/big")
    assert (len(ids), code) == (200, "UP_200_")
    server.registry.cancel("BIG", "i1")
    assert listed(server.client, "vips/big")[1] == "UP_199_"


def test_without_regions_the_parameter_says_nothing() -> None:
    server = InProcess()
    server.registry.register(sample_instance("SHOP", "eu:1", source="eureka:eu"))
    assert listed(server.client, "apps?regions=us")[0] == {"eu:1"}


def test_a_large_list_of_regions_is_left_to_a_thread() -> None:
    registry = registry_on(MemoryStore(), ManualClock())
    for number in range(300):
        source = "eureka" if number % 3 else "eureka:us"
        registry.register(sample_instance("BIG", f"i{number}", source=source))
    api = EurekaApi(registry, EurekaSettings(regions=REGIONS))

    def asked(*, is_quick: bool) -> bytes | None:
        headers = {"accept": "application/json"}
        request = Request("GET", "apps", "regions=eu", headers, lambda _: b"", is_quick=is_quick)
        answer = api.answer(request, "apps")
        return None if answer is None else answer.body

    assert asked(is_quick=True) is None
    body = asked(is_quick=False)
    assert body is not None
    (application,) = json.loads(body)["applications"]["application"]
    assert len(application["instance"]) == 200
    assert asked(is_quick=True) == body


@pytest.mark.slow
def test_a_server_of_another_region_is_followed(tmp_path: Path) -> None:
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    with RegistryServer(tmp_path / "there", workers=1) as there:
        environ = {f"{URLS}_EU": there.base}
        with RegistryServer(tmp_path / "here", workers=1, env=environ) as here:
            there.register("SHOP", "there:1")
            here.register("SHOP", "here:1")

            def shown(query: str) -> set[str]:
                found = here.eureka("GET", f"/apps{query}", None, JSON).json()["applications"]
                return {i["instanceId"] for a in found["application"] for i in a["instance"]}

            wait_until(lambda: "there:1" in shown(""), "the other region's instance")
            for _ in range(2):  # the second answer is a lane's
                assert shown("?regions=eu") == {"here:1", "there:1"}
                assert shown("?regions=none") == {"here:1"}
                assert shown("") == {"here:1", "there:1"}
            body = instance_body("SHOP", "there:1", ipAddr="10.9.9.9")
            assert here.eureka("POST", "/apps/SHOP", body, JSON).status == 204
            assert shown("?regions=none") == {"here:1", "there:1"}


@pytest.mark.slow
def test_peers_that_follow_the_same_region_agree_and_keep_it_apart(tmp_path: Path) -> None:
    names = ("there", "one", "two")
    for name in names:
        (tmp_path / name).mkdir()
    there, *peers = (RegistryServer(tmp_path / name, workers=1) for name in names)
    with there, ExitStack() as running:
        there.register("SHOP", "there:1")
        for peer in peers:
            running.callback(peer.kill9)
            peer.environment |= {
                f"{URLS}_EU": there.base,
                "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": ",".join(each.base for each in peers),
                "EUREKA_CLIENT_REGISTERWITHEUREKA": "false",
                "PEERS_START_WAIT_MS": "1000",
                "PEERS_COMPARE_INTERVAL_MS": "500",
            }
        # The second starts empty, while the first lists the region already.
        for peer in peers:
            peer.start()
            wait_until(lambda peer=peer: "there:1" in peer.apps(), "the region's instance")
        peers[0].register("SHOP", "here:1")

        def agree(peer: RegistryServer) -> bool:
            told = peer.send("GET", "/api/v1/peers").json()["peers"]  # none until they are known
            return [
                found is not None
                and (
                    found["ours"],
                    found["theirs"],
                    found["settling"] + found["missing"] + found["extra"] + found["differs"],
                )
                for found in (each["comparison"] for each in told)
            ] == [(1, 1, 0)]

        for peer in peers:
            wait_until(lambda peer=peer: agree(peer), "two that list the same")
            found = peer.eureka("GET", "/apps?regions=none", None, JSON).json()["applications"]
            assert [i["instanceId"] for a in found["application"] for i in a["instance"]] == [
                "here:1"
            ]
