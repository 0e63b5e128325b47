"""What is wrong with clients: each finding from its situation, by requests as clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from eureka_compat.settings import EurekaSettings
from native_api.status import Server
from registry import DEFAULT_NAMESPACE
from tests.in_process import InProcess
from tests.servers import JSON, instance_body

JAVA = JSON | {"DiscoveryIdentity-Name": "DefaultClient", "User-Agent": "Java-EurekaClient/v2"}


class World(InProcess):
    """A server whose clients do something wrong."""

    def __init__(self, *, delta_enabled: bool = True) -> None:
        super().__init__(
            eureka=EurekaSettings(delta_enabled=delta_enabled),
            server=Server(delta_enabled=delta_enabled),
        )

    def register(self, app: str, instance_id: str, /, **fields: Any) -> None:
        now = str(self.clock.wall_ms())
        body = instance_body(app, instance_id, **{"lastDirtyTimestamp": now, **fields})
        reply = self.client.post(f"/eureka/apps/{app}", data=body, headers=JSON)
        assert reply.status_code == 204

    def renew(self, app: str, instance_id: str) -> None:
        assert self.client.put(f"/eureka/apps/{app}/{instance_id}").status_code == 200

    def fetch(self, path: str, headers: dict[str, str], port: int = 4711) -> int:
        place = {"REMOTE_PORT": str(port)}
        reply = self.client.get(f"/eureka/{path}", headers=headers, environ_overrides=place)
        self.gateway.fetches.flush()
        return reply.status_code

    def pass_time(self, secs: float) -> None:
        self.clock.advance(int(secs * 1000))

    def findings(self) -> dict[str, dict[str, Any]]:
        """By their kinds; the look before is forgotten."""
        self.pass_time(6)
        found = self.client.get("/api/v1/findings").get_json()["findings"]
        return {each["kind"]: each for each in found}


@pytest.fixture
def world() -> World:
    return World()


def test_where_nothing_is_wrong_nothing_is_found(world: World) -> None:
    world.register("WEB", "web:1")
    world.register("WEB", "web:2", ipAddr="10.0.0.2")
    for _ in range(4):
        world.fetch("apps/delta", JAVA)
        world.pass_time(24)
        world.renew("WEB", "web:1")
        assert world.findings() == {}


@pytest.mark.parametrize(("interval", "lease", "is_found"), [(30, 90, False), (30, 10, True)])
def test_a_lease_that_ends_between_two_renewals(
    world: World, interval: int, lease: int, is_found: bool
) -> None:
    told = {"renewalIntervalInSecs": interval, "durationInSecs": lease}
    world.register("WEB", "web:1", leaseInfo=told)
    found = world.findings()
    assert ("lease-too-short" in found) is is_found
    if is_found:
        each = found["lease-too-short"]
        assert each["count"] == 1
        assert each["examples"] == [
            {"service_name": "WEB", "id": "web:1", "renews_every_secs": 30, "lease_secs": 10}
        ]
        names = [setting["name"] for setting in each["settings"]]
        assert "eureka.instance.lease-expiration-duration-in-seconds" in names


@pytest.mark.parametrize(
    ("says", "really", "kind"),
    [
        (30, 10, "renews-more-often"),
        (10, 30, "renews-less-often"),
        (30, 30, None),
        (30, 28, None),
    ],
)
def test_a_client_that_does_not_renew_as_it_says(
    world: World, says: int, really: int, kind: str | None
) -> None:
    world.register("WEB", "web:1", leaseInfo={"renewalIntervalInSecs": says, "durationInSecs": 90})
    found: set[str] = set()
    for second in range(120):
        world.pass_time(1)
        if second % really == really - 1:
            world.renew("WEB", "web:1")
        if second % 10 == 9:
            world.clock.advance(-6_000)  # which ``findings`` lets pass
            found |= world.findings().keys()
    found.discard("interval-not-expected")
    assert found == ({kind} if kind else set())


def test_most_clients_renew_otherwise_than_the_server_expects(world: World) -> None:
    for number in range(3):
        lease = {"renewalIntervalInSecs": 10, "durationInSecs": 30}
        world.register("WEB", f"web:{number}", ipAddr=f"10.0.0.{number}", leaseInfo=lease)
    each = world.findings()["interval-not-expected"]
    assert each["examples"] == [{"expected_secs": 30, "otherwise": 3, "instances": 3}]
    assert each["settings"][0]["name"] == "EUREKA_SERVER_EXPECTED_CLIENT_RENEWAL_INTERVAL_SECONDS"


def test_one_endpoint_under_two_ids(world: World) -> None:
    world.register("WEB", "web:one")
    assert "endpoint-under-two-ids" not in world.findings()
    world.register("WEB", "web:two")
    world.register("API", "api:1")  # another application may well be there too
    each = world.findings()["endpoint-under-two-ids"]
    assert each["count"] == 1
    assert each["examples"][0]["ids"] == ["web:one", "web:two"]
    assert each["examples"][0]["endpoint"] == "10.0.0.1:8080"


def test_one_id_from_two_addresses(world: World) -> None:
    world.register("WEB", "web:1", ipAddr="10.0.0.1")
    world.register("WEB", "web:1", ipAddr="10.0.0.2")
    assert "id-from-two-addresses" not in world.findings()  # it may have moved
    world.register("WEB", "web:1", ipAddr="10.0.0.1")
    each = world.findings()["id-from-two-addresses"]
    assert each["examples"] == [
        {
            "service_name": "WEB",
            "id": "web:1",
            "addresses": ["10.0.0.1", "10.0.0.2"],
            "replaced": 1,
        }
    ]


@pytest.mark.parametrize(
    "fields",
    [{"hostName": "localhost"}, {"hostName": "127.0.0.1"}, {"ipAddr": "127.0.0.1"}],
)
def test_an_address_that_means_each_callers_own_machine(
    world: World, fields: dict[str, str]
) -> None:
    world.register("WEB", "web:1", **fields)
    each = world.findings()["loopback-host"]
    assert each["examples"][0]["id"] == "web:1"
    assert "eureka.instance.prefer-ip-address=true" in each["settings"][0]["name"]


@pytest.mark.parametrize(
    ("off_secs", "is_found"), [(0, False), (25, False), (60, True), (-600, True)]
)
def test_a_clock_that_is_off(world: World, off_secs: int, is_found: bool) -> None:
    dirty = str(world.clock.wall_ms() + off_secs * 1000)
    world.register("WEB", "web:1", lastDirtyTimestamp=dirty)
    found = world.findings()
    assert ("clock-off" in found) is is_found
    if is_found:
        assert found["clock-off"]["examples"][0]["seconds_ahead"] == off_secs
    # What an operator changes later is no word of the client's clock.
    world.pass_time(3600)
    world.client.put("/eureka/apps/WEB/web:1/status?value=OUT_OF_SERVICE")
    assert ("clock-off" in world.findings()) is is_found


@pytest.mark.parametrize(
    ("headers", "kind"), [(JAVA, "delta-switched-off"), (JSON, "full-fetch-each-time")]
)
def test_everything_is_fetched_each_time(world: World, headers: dict[str, str], kind: str) -> None:
    world.register("WEB", "web:1")
    for _ in range(4):
        assert world.fetch("apps", headers) == 200
        world.pass_time(30)
    each = world.findings()[kind]
    assert each["examples"][0]["fulls"] == 4
    assert each["settings"][0]["name"] == "eureka.client.disable-delta=false"


def test_deltas_are_refused_by_the_server_itself() -> None:
    world = World(delta_enabled=False)
    world.register("WEB", "web:1")
    for _ in range(4):
        assert world.fetch("apps/delta", JAVA) == 403
        assert world.fetch("apps", JAVA) == 200
        world.pass_time(30)
    each = world.findings()["delta-switched-off-here"]
    assert each["settings"] == [
        {"client": "this server", "name": "EUREKA_SERVER_DISABLE_DELTA=false"}
    ]


def test_everything_is_fetched_after_each_delta(world: World) -> None:
    world.register("WEB", "web:1")
    for _ in range(4):
        world.fetch("apps/delta", JAVA)
        world.fetch("apps", JAVA)
        world.pass_time(30)
    assert world.findings()["full-after-delta"]["examples"][0]["deltas"] == 4


def test_all_are_counted_and_some_are_shown(world: World) -> None:
    for number in range(20):
        world.register("WEB", f"web:{number}", hostName="localhost", ipAddr=f"10.0.0.{number}")
    each = world.findings()["loopback-host"]
    assert each["count"] == 20
    assert len(each["examples"]) == 5


def test_a_look_is_kept_for_a_while(world: World) -> None:
    assert world.findings() == {}
    world.register("WEB", "web:1", hostName="localhost")
    assert world.client.get("/api/v1/findings").get_json() == {"findings": []}
    assert "loopback-host" in world.findings()


# The series


def test_there_is_a_sample_of_now_and_what_is_asked_for_is_checked(world: World) -> None:
    assert world.client.get("/api/v1/series").get_json()["samples"] == []
    for query in ("minutes=0", "minutes=x", "minutes=1441", "hours=1"):
        assert world.client.get(f"/api/v1/series?{query}").status_code == 400
    assert world.registry.namespace == DEFAULT_NAMESPACE
