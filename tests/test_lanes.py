"""Requests whose header fields come again have a lane, which may change no answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_compat.settings import EurekaSettings
from eureka_http.exchange import Answer, BodyTooLargeError, Lane, Promise, Request
from eureka_server.access import Access, AccessSettings
from registry import DEFAULT_NAMESPACE, InstanceStatus
from registry.testing import sample_instance
from tests.in_process import InProcess
from tests.servers import instance_body

BASES = ("/eureka/", "/eureka/v2/", "/other/", "//eureka/", "/%65ureka/", "/eureka/v2x/")
RESOURCES = (
    "apps",
    "apps/",
    "apps/delta",
    "apps/WEB",
    "apps/web/",
    "apps/WEB?x=1",
    "apps/WEB/web:1",
    "apps/web/web:2",
    "apps/WEB/web:1/",
    "apps/WEB/web:1/status?value=DOWN",
    "apps/WEB/web%3A1",
    "apps/delta/web:1",
    "apps;x=1",
    "apps/WEB;x",
    "apps/WEB;x/web:1;y=z",
    "apps/NONE/none",
    "vips/web",
    "vips/none",
    "instances/web:1",
    "apps/WEB/web:1?status=UP&lastDirtyTimestamp=1700000000000",
    "apps/WEB/web:1?status=UP&lastDirtyTimestamp=1600000000000",
    "apps/WEB/web:1?status=UP&lastDirtyTimestamp=1800000000000",
    "apps/WEB/web:1?status=UP&lastDirtyTimestamp=1234567890123456789",
    "apps/WEB/web:1?status=UP&lastDirtyTimestamp=x",
    "apps/WEB/web:1?lastDirtyTimestamp=1800000000000&overriddenstatus=DOWN",
)
BODIES = (
    b"",
    b"{}",
    b"[",
    *(instance_body("WEB", name).encode() for name in ("web:1", "web:2")),
    instance_body("WEB", "web:1", lastDirtyTimestamp="1600000000000").encode(),
    instance_body("WEB", "web:1", status="OUT_OF_SERVICE").encode(),
    instance_body("DELTA", "d").encode(),
    instance_body("WEB", "x" * 500).encode(),
    b"<instance><app>WEB</app><instanceId>web:3</instanceId><hostName>h</hostName>"
    b"<ipAddr>1</ipAddr><dataCenterInfo><name>MyOwn</name></dataCenterInfo></instance>",
)
FIELDS: tuple[dict[str, str], ...] = (
    {},
    {"accept": "application/json"},
    {"accept": "text/plain"},
    {"accept": "application/json", "accept-encoding": "gzip"},
    {"accept": "application/json", "x-eureka-accept": "compact"},
    {"accept": "application/json", "x-netflix-discovery-replication": "true"},
    {"content-type": "application/json"},
    {"content-type": "application/xml"},
    {"content-type": "application/json; charset=koi8-r"},
    {"content-type": "text/plain"},
    {"content-type": "application/json", "content-encoding": "gzip"},
    {"content-type": "application/json", "x-netflix-discovery-replication": "true"},
)


class Side(InProcess):
    """A gateway of its own; with lanes for the fields that it has seen, or without."""

    def __init__(self, *, has_lanes: bool) -> None:
        super().__init__(eureka=EurekaSettings(max_instance_bytes=1000))
        self._lanes: dict[int, Lane | None] | None = {} if has_lanes else None
        self.taken = 0

    def ask(self, method: str, target: str, place: int, body: bytes) -> Any:
        fields = FIELDS[place] | ({"content-length": str(len(body))} if body else {})
        if self._lanes is not None:
            if place not in self._lanes:
                self._lanes[place] = self.gateway.lane(FIELDS[place])
            lane = self._lanes[place]
            assert lane is not None
            answer = lane.answer(method, target, body)
            read = lane.reader(target) if method == "GET" else None
            assert read is None or read() == answer
            if isinstance(answer, Promise):
                self.gateway.settle()
                answer = answer.answer
            if answer is not None:
                self.taken += 1
                return answer

        def read_body(limit: int) -> bytes:
            if len(body) > limit:
                raise BodyTooLargeError
            return body

        path, _, query = target.partition("?")

        def request() -> Request:
            return Request(method, path, query, fields, read_body)

        return self.gateway.fast_lane(request()) or self.gateway.answer(request())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("GET", "PUT", "POST", "POST", "DELETE", "HEAD")),
            st.sampled_from(BASES),
            st.sampled_from(RESOURCES),
            st.integers(0, len(FIELDS) - 1),
            st.sampled_from(BODIES),
            st.integers(0, 40_000),
        ),
        max_size=30,
    )
)
def test_a_lane_answers_as_the_gateway_does(
    steps: list[tuple[str, str, str, int, bytes, int]],
) -> None:
    direct, laned = Side(has_lanes=False), Side(has_lanes=True)
    for method, base, resource, place, body, milliseconds in steps:
        for side in (direct, laned):
            side.clock.advance(milliseconds)
        asked = (method, base + resource, place, body)
        assert laned.ask(*asked) == direct.ask(*asked), asked


def test_what_comes_by_the_thousand_takes_its_lane() -> None:
    side = Side(has_lanes=True)
    for _ in "ab":  # a list is found there at the second time
        for method, resource, place, body in (
            ("POST", "apps/WEB", 6, BODIES[3]),
            ("PUT", "apps/WEB/web:1?status=UP&lastDirtyTimestamp=1700000000000", 1, b""),
            ("GET", "apps/WEB/web:1", 1, b""),
            ("GET", "apps/delta", 3, b""),
            ("GET", "apps/WEB", 3, b""),
        ):
            assert side.ask(method, f"/eureka/{resource}", place, body).status in (200, 204)
    assert side.taken == 3 + 5


@pytest.mark.parametrize("source", ["eureka", "native"])
def test_a_heartbeat_that_is_more_than_one_is_answered_in_a_thread(source: str) -> None:
    """It shows the status that an override wants: a change, for which a store may wait."""
    server = InProcess()
    registry, gateway = server.registry, server.gateway
    registry.register(sample_instance()._replace(source=source))
    target = {
        "eureka": "/eureka/apps/WEB/web:1",
        "native": "/api/v1/instances/web:1/heartbeat",
    }[source]

    def asked() -> tuple[Any, Any]:
        lane = gateway.lane({})
        assert lane is not None
        request = Request("PUT", target, "", {}, lambda limit: b"")
        return lane.answer("PUT", target, b""), gateway.fast_lane(request)

    in_lane, in_loop = asked()
    assert (in_lane is not None) is (source == "eureka")
    assert in_loop is not None
    registry.store_override("WEB", "web:1", InstanceStatus.OUT_OF_SERVICE, last_dirty_ms=1 << 50)
    revision = server.store.revision(DEFAULT_NAMESPACE)
    renewals = server.registry.self_preservation().renewals_last_minute
    assert asked() == (None, None)
    assert server.store.revision(DEFAULT_NAMESPACE) == revision
    assert server.registry.self_preservation().renewals_last_minute == renewals
    answer = gateway.answer(Request("PUT", target, "", {}, lambda limit: b""))
    assert isinstance(answer, Answer)
    assert answer.status == 200
    listed = registry.instance("WEB", "web:1")
    assert listed is not None
    assert listed.status is InstanceStatus.OUT_OF_SERVICE
    assert asked()[1] is not None


def test_a_list_that_is_given_again_is_that_of_now() -> None:
    """Each change ends it, and a delta also the end of its window, in which nothing changes."""
    side = Side(has_lanes=True)

    def listed(resource: str) -> int:
        return int(side.ask("GET", f"/eureka/{resource}", 1, b"").body.count(b'"instanceId"'))

    def both() -> tuple[int, int]:
        return listed("apps"), listed("apps/delta")

    side.ask("POST", "/eureka/apps/WEB", 6, BODIES[3])
    assert [both() for _ in "abc"] == [(1, 1)] * 3  # the last are the kept ones
    side.clock.advance(100_000)
    side.ask("POST", "/eureka/apps/WEB", 6, BODIES[4])
    assert [both() for _ in "ab"] == [(2, 2)] * 2
    side.clock.advance(80_000)
    assert [both() for _ in "ab"] == [(2, 2)] * 2
    side.clock.advance(1)
    assert [both() for _ in "ab"] == [(2, 1)] * 2
    side.clock.advance(100_000)
    assert [both() for _ in "ab"] == [(2, 0)] * 2


@pytest.mark.parametrize(
    "settings",
    [AccessSettings(mode="trusted"), AccessSettings(require_https=True)],
)
def test_where_it_matters_who_asks_there_is_no_lane(settings: AccessSettings) -> None:
    assert InProcess(access=Access(settings)).gateway.lane({}) is None


@pytest.mark.parametrize("path", ["/eureka/apps/WEB", "/eureka/peerreplication/batch"])
def test_a_compressed_body_is_not_read_in_the_loop(path: str) -> None:
    """Some bytes of it may be tens of thousands of heartbeats."""
    gateway = InProcess().gateway
    for coding, is_left in ((None, False), ("gzip", True), ("identity", True)):
        body = b'{"replicationList":[]}'
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        fields |= {"content-encoding": coding} if coding else {}
        found = gateway.fast_lane(Request("POST", path, "", fields, lambda limit, body=body: body))
        assert (found is None) is is_left
