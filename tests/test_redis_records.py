"""What Redis has, read in portions; and what no registry wrote there."""

from __future__ import annotations

import operator
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry import StoreError
from registry.model import (
    DEFAULT_NAMESPACE,
    InstanceStatus,
    OverrideChange,
    Revision,
)
from registry.store import Commit
from registry.stores.redis import read_address
from registry.stores.redis import records as redis_records
from registry.stores.redis.server import Server
from registry.testing import put, sample_instance
from tests.redis_servers import RedisServer
from tests.redis_suite import (
    Machines,
    lease_from,
    listed,
    mono,
)
from tests.servers import wait_until

NS = DEFAULT_NAMESPACE
by_revision = operator.attrgetter("revision")
pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("no_defects")]


def test_a_new_machine_gets_everything_page_by_page(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_records, "_PAGE", 5)
    monkeypatch.setattr(redis_records, "_FETCHED_AT_ONCE", 7)
    here = machines.open("here")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(600)]
    revisions = here.commit_all(NS, [put(each) for each in instances])
    removed = put(instances[0], expected=revisions[0], remove=True, lease=None)
    here.commit(NS, removed)
    # An override that changed alone, before its instance was listed.
    down = OverrideChange("api:1", InstanceStatus.DOWN)
    api = sample_instance("API", "api:1")
    here.commit(NS, Commit(api.key, Revision(0), None, 100, None, override=down))
    here.commit(NS, put(api, expected_override=InstanceStatus.DOWN))
    before = mono()
    there = machines.open("there")
    ours, theirs = here.load(NS), there.load(NS)
    assert sorted(theirs.instances, key=by_revision) == sorted(ours.instances, key=by_revision)
    assert [change._replace(at_running_ms=0) for change in theirs.changes] == [
        change._replace(at_running_ms=0) for change in ours.changes
    ]
    assert theirs.overrides == ours.overrides
    assert theirs.revision == ours.revision
    # What was renewed meanwhile it cannot know.
    due = there.due(NS, before)
    assert (due.leases, due.expired) == (600, [])


@pytest.mark.parametrize("meanwhile", ["removed", "changed"])
def test_what_changes_while_a_new_machine_gets_everything_is_told_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Between two portions of the log; the first told of the same instance."""
    monkeypatch.setattr(redis_records, "_FETCHED_AT_ONCE", 5)
    here = machines.open("here")
    instances = [sample_instance(instance_id=f"web:{number}") for number in range(12)]
    first = here.commit_all(NS, [put(each) for each in instances])[0]
    fetch = redis_records.Records.fetch

    def fetched(records: Any, life: Any, namespace: Any, after: Revision, **options: Any) -> Any:
        if first < after < first + 12 and here.revision(NS) == first + 11:
            change = put(instances[0], expected=first)
            if meanwhile == "removed":
                change = change._replace(remove=True, lease=None)
            here.commit(NS, change)
        return fetch(records, life, namespace, after, **options)

    monkeypatch.setattr(redis_records.Records, "fetch", fetched)
    there = machines.open("there")
    assert here.revision(NS) == first + 12
    assert listed(there) == listed(here)
    assert [(change.revision, change.removed) for change in there.load(NS).changes] == [
        (change.revision, change.removed) for change in here.load(NS).changes
    ]


def test_a_listing_tells_what_was_forgotten_between_two_of_its_portions(
    shared_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is missing would be taken for removed."""
    monkeypatch.setattr(redis_records, "_FIRST", 1)
    monkeypatch.setattr(redis_records, "_LISTED_AT_ONCE", 1)
    records = redis_records.Records(Server(read_address(shared_redis.url("listing", tmp_path))))
    listing = records.listing(Revision(100), NS, "node", takes_up=True)
    state = redis_records.packed([b"WEB\0web:1", b"90", b""])
    next(listing)
    listing.send([b"130", b"100", b"1", state, b"90"])
    with pytest.raises(StopIteration) as ended:
        listing.send([b"140", b"120", b"1", redis_records.packed([]), b""])
    assert ended.value.value == redis_records.Listing(
        Revision(130),
        Revision(120),
        True,
        {b"WEB\0web:1": (Revision(90), Revision(90))},
    )


# What no registry wrote, in keys of the registry.


JUNK = {
    "namespaces": [("HSET", "namespaces", "n0", "junk"), ("HSET", "namespaces", b"\xff", "1")],
    "life": [("HSET", "life", "number", "junk")],
    "meta": [
        ("HSET", "meta", "revision", "junk"),
        ("HSET", "meta", "trimmed", "junk"),
        ("HSET", "meta", "expected", "junk"),
        ("HSET", "meta", "size", "junk"),
    ],
    "record": [("HSET", "record", "WEB\0web:1", "junk"), ("HSET", "record", "junk", "1 junk")],
    "lease": [("HSET", "lease", "WEB\0web:1", "junk")],
    "change": [("HSET", "change", "WEB\0web:1", "junk")],
    "override": [("HSET", "override", "web:1", "junk")],
    "log": [("SET", "log", "junk")],
    "told": [("SET", "told", "junk")],
}


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, all_of in JUNK.items() for command in all_of]
)
def test_what_no_registry_wrote_is_said_once_with_the_name_of_its_key(
    machines: Machines,
    name: str,
    command: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither is it a traceback, nor is it taken for anything else."""
    here = machines.open("here")
    here.commit(NS, put(sample_instance(), lease=lease_from(mono())))
    if command[0] == "SET":
        here._server.call("DEL", here._server.name(name, NS), namespace=NS)
    namespace = None if name == "namespaces" else NS
    key = here._server.name(name, namespace)
    here._server.call(command[0], key, *command[2:], namespace=namespace)
    shown = f"a key of {here._server._tag(NS)}" if name == "log" else key
    if name == "told":
        rounds = here._teller._round
        wait_until(lambda: here._teller._round > rounds + 30)
    elif name == "life":
        with pytest.raises(StoreError, match=re.escape(shown)):
            here.commit(NS, put(sample_instance(instance_id="web:2")))
    else:
        with pytest.raises(StoreError, match=re.escape(shown)):
            machines.open("there")
    for number in range(3):
        with suppress(StoreError):
            here.commit(NS, put(sample_instance(instance_id=f"late:{number}")))
    rounds = here._teller._round
    wait_until(lambda: here._teller._is_away or here._teller._round > rounds + 30)
    machines.close()
    told = [each for each in caplog.messages if shown in each]
    assert len(told) <= 1
    if name in ("life", "told"):
        assert len(told) == 1


def test_what_no_registry_wrote_of_evictions_is_said(machines: Machines) -> None:
    store = machines.open("here")
    store.commit(NS, put(sample_instance()))
    key = store._server.name("evicted", NS)
    store._server.call("HSET", key, "junk", "1", namespace=NS)
    with pytest.raises(StoreError, match=re.escape(key)):
        store.evictions(NS, 0)
