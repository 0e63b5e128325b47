"""Searching among instances: what each term finds, and pages that leave nothing out."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_http.exchange import Request
from native_api.lists import Lists, Wanted
from native_api.search import MAX_LENGTH, Pages, Search, SearchError
from registry import DataCenter, Instance, InstanceStatus, NotYetError
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on, sample_instance
from tests.in_process import InProcess

SHOP = sample_instance(
    "SHOP",
    "shop:1",
    host_name="shop-1.example",
    ip_addr="10.1.2.3",
    status=InstanceStatus.OUT_OF_SERVICE,
    overridden_status=InstanceStatus.OUT_OF_SERVICE,
    metadata={"zone": "eu-1", "Version": "2", "tags": "blue,Canary"},
    vip_address="shop,shop-all",
    secure_vip_address="shop-tls",
    port=8080,
    app_group_name="Retail",
)
EVERYTHING = Wanted(status="ALL")
CART = sample_instance(
    "CART",
    "cart:a b",
    host_name="cart.example",
    ip_addr="10.9.9.9",
    data_center=DataCenter("Amazon", {"availability-zone": "us-east-1c"}),
    metadata={"note": "app:shop is upstream"},
    source="consul:main",
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "both"),
        ("   ", "both"),
        ("app:sho", "shop"),
        ("APP=Shop", "shop"),
        ("app=sho", ""),
        ("id:cart", "cart"),
        ('id="cart:a b"', "cart"),
        ("status=up", "cart"),
        ("-status=UP", "shop"),
        ("override:", "shop"),
        ("-override:", "cart"),
        ("override=out_of_service", "shop"),
        ("zone=eu-1", "shop"),
        ("zone:us-east", "cart"),
        ("address:10.1.", "shop"),
        ("host=cart.example", "cart"),
        ("port=8080", "shop"),
        ("port=80", ""),
        ("vip=shop-all", "shop"),
        ("vip=shop-tls", "shop"),
        ("source:consul", "cart"),
        ("tag=canary", "shop"),
        ("group=retail", "shop"),
        ("meta.version=2", "shop"),
        ("meta.VERSION:", "shop"),
        ("meta.version=3", ""),
        ("meta:upstream", "cart"),
        ("shop", "both"),
        ("shop -cart", "shop"),
        ("10.9", "cart"),
        ("zone", "shop"),
        ("shop:1", "shop"),
        ("retail", "shop"),
        ("us-east-1c", "cart"),
        ('"app:shop"', "cart"),
        ('"app:shop is', "cart"),
        ("nothing=here", ""),
        ("zone=eu-1 status=UP", ""),
        ("zone=eu-1 app:shop meta.version=2 8080", "shop"),
    ],
)
def test_a_search_finds(text: str, found: str) -> None:
    search = Search.parsed(text)
    expected = {"both": [SHOP, CART], "shop": [SHOP], "cart": [CART], "": []}[found]
    assert [each for each in (SHOP, CART) if search.has(each)] == expected


@given(st.text(max_size=MAX_LENGTH))
def test_any_text_is_a_search(text: str) -> None:
    assert Search.parsed(text).has(SHOP) in (True, False)


def test_a_search_that_is_too_long_is_none() -> None:
    with pytest.raises(SearchError, match="500"):
        Search.parsed("a" * (MAX_LENGTH + 1))


@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "B", "C/D", "%2F", "É"]), st.integers(0, 30)),
        unique=True,
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_pages_together_have_each_instance_once_and_in_order(
    keys: list[tuple[str, int]], limit: int
) -> None:
    registry = registry_on(MemoryStore(), ManualClock())
    for app, number in keys:
        registry.register(sample_instance(app, f"i/{number}"))
    pages = Pages(registry, Lists(registry))
    found, after = [], ""
    while True:
        page = pages.instances(Search.parsed(""), EVERYTHING, limit=limit, after=after)
        assert page.total == len(keys)
        assert len(page.found) <= limit
        found += [(each["app"], each["id"]) for each in page.found]
        if page.next is None:
            break
        after = page.next
    assert found == sorted((app, f"i/{number}") for app, number in keys)


def world_of(*instances: Instance) -> InProcess:
    world = InProcess()
    for each in instances:
        world.registry.register(each)
    return world


def asked(world: InProcess, path: str, status: int = 200) -> Any:
    reply = world.client.get(f"/api/v1{path}")
    assert reply.status_code == status, reply.text
    return json.loads(reply.data)


def test_a_page_shows_what_is_named_with_the_lease_as_of_now() -> None:
    leased = sample_instance("SHOP", "shop:2", duration_secs=90)
    world = world_of(SHOP, CART, leased)
    world.clock.advance(30_000)
    world.registry.renew("SHOP", "shop:2")
    world.clock.advance(10_000)
    fields = "last_heartbeat,expires,override,zone,vips,address"
    told = asked(world, f"/instances?q={quote('app=shop')}&fields={fields}&limit=1")
    assert (told["total"], len(told["instances"]), told["next"]) == (2, 1, "SHOP/shop%3A1")
    rest = asked(world, f"/instances?q=app%3Dshop&fields={fields}&after={quote(told['next'])}")
    (shown,) = rest["instances"]
    assert rest["next"] is None
    assert (shown["id"], shown["vips"], shown["override"]) == ("shop:2", ["web"], None)
    seconds = [shown[name][17:19] for name in ("last_heartbeat", "expires")]
    assert (int(seconds[1]) - int(seconds[0])) % 60 == 30  # 90 s after the renewal
    one = asked(world, f"/instances/{quote('shop:1')}?fields=override,zone,urls")
    assert (one["override"], one["zone"]) == ("OUT_OF_SERVICE", "eu-1")


def test_a_page_has_any_status_unless_one_is_asked_for() -> None:
    world = world_of(SHOP, CART)
    assert asked(world, "/instances?limit=10")["total"] == 2
    assert asked(world, "/instances?limit=10&status=UP")["total"] == 1
    assert asked(world, "/instances?limit=10&service_name=cart")["total"] == 1


def test_services_come_in_pages_with_their_instances_counted() -> None:
    world = world_of(SHOP, CART, sample_instance("SHOP", "shop:2", metadata={"zone": "eu-2"}))
    told = asked(world, "/services?limit=1")
    assert (told["total"], told["instances"], told["next"]) == (2, 3, "CART/cart")
    assert told["services"][0]["sources"] == ["consul:main"]
    rest = asked(world, f"/services?limit=1&after={quote(told['next'])}")
    assert rest["services"] == [
        {
            "service_name": "shop",
            "app": "SHOP",
            "instances": 2,
            "statuses": {"OUT_OF_SERVICE": 1, "UP": 1},
            "overrides": 1,
            "zones": ["eu-1", "eu-2"],
            "sources": ["eureka"],
        }
    ]
    assert rest["next"] is None
    found = asked(world, "/services?q=zone%3Deu-2")
    assert [(each["service_name"], each["instances"]) for each in found["services"]] == [
        ("shop", 1)
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        (f"q={'a' * 501}", "q"),
    ],
)
def test_what_no_page_can_be_is_refused(query: str, field: str) -> None:
    world = world_of()
    for path in ("/instances", "/services"):
        told = asked(world, f"{path}?{query}", 400)
        assert [each["field"] for each in told["errors"]] == [field]


def test_a_long_search_is_left_to_a_thread() -> None:
    registry = registry_on(MemoryStore(), ManualClock())
    for number in range(501):
        registry.register(sample_instance("BIG", f"big:{number}"))
    registry.register(sample_instance("SMALL", "small:1"))
    pages = Pages(registry, Lists(registry))
    for text in ("", "app=big"):
        with pytest.raises(NotYetError):
            pages.instances(Search.parsed(text), EVERYTHING, limit=1, is_quick=True)
        with pytest.raises(NotYetError):
            pages.services(Search.parsed(text), limit=1, is_quick=True)
    quick = pages.instances(Search.parsed("app=small"), EVERYTHING, limit=1, is_quick=True)
    assert quick.total == 1


def test_a_watch_without_a_snapshot_is_told_that_it_missed_something() -> None:
    world = world_of(SHOP)
    request = Request(
        *("GET", "/api/v1/watch", "snapshot=false&wait=0", {"accept": "application/json"}),
        lambda _: b"",
    )
    answer = world.gateway.answer(request)
    assert json.loads(answer.body) == {"revision": 1, "missed": True}
    stream = world.client.get("/api/v1/watch?snapshot=false")
    assert next(iter(stream.response)) == b"id: 1\nevent: missed\ndata: {}\n\n"
    stream.close()
    asked(world, "/watch?snapshot=maybe", 400)
