"""The history: each keeper against the contract, what is told of, and what becomes of a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.history import History
from registry.stores.lmdb_history import LmdbHistory
from registry.stores.memory_history import MemoryHistory
from registry.testing import HistorySuite
from tests.in_process import InProcess
from tests.servers import instance_body

BYTES = 4 << 20


class TestMemoryHistory(HistorySuite):
    @pytest.fixture
    def history(self) -> History:
        return MemoryHistory(BYTES)


class TestLmdbHistory(HistorySuite):
    @pytest.fixture
    def history(self, tmp_path: Path) -> History:
        return LmdbHistory(tmp_path / "history", BYTES)


class World(InProcess):
    """A server in this process, asked as a client does."""

    def get(self, path: str, status: int = 200, **headers: str) -> Any:
        reply = self.client.get(f"/api/v1{path}", headers=headers)
        assert reply.status_code == status, reply.text
        return reply.json

    def entries(self, query: str = "", path: str = "/history") -> list[dict[str, Any]]:
        return list(self.get(f"{path}?{query}")["entries"])

    def eureka(self, method: str, path: str, body: str | None = None, **more: Any) -> int:
        self.clock.advance(10)
        headers = {"content-type": "application/json"} | more.pop("headers", {})
        reply = self.client.open(
            f"/eureka{path}", method=method, data=body, headers=headers, **more
        )
        return reply.status_code

    def register(self, app: str = "WEB", instance_id: str = "web:1", **fields: Any) -> None:
        body = instance_body(app, instance_id, **fields)
        assert self.eureka("POST", f"/apps/{app}", body) == 204


@pytest.fixture
def world() -> World:
    return World()


def test_each_change_is_told_with_who_asked_for_it(world: World) -> None:
    """The address is that of the connection, the client what the request calls itself."""
    world.register()
    fields = {"user-agent": "curl/8", "discoveryidentity-name": "DefaultClient"}
    override = "/apps/WEB/web:1/status?value=OUT_OF_SERVICE"
    assert world.eureka("PUT", override, headers=fields) == 200
    assert world.eureka("DELETE", "/apps/WEB/web:1/status?value=UP") == 200
    assert world.eureka("PUT", "/apps/WEB/web:1/metadata?zone=b") == 200
    assert world.eureka("DELETE", "/apps/WEB/web:1") == 200
    told = world.entries()
    assert [entry["kind"] for entry in told] == [
        "cancelled",
        "metadata",
        "override-removed",
        "override",
        "registered",
    ]
    by = {"account": "", "address": "127.0.0.1", "client": "DefaultClient curl/8"}
    assert told[3]["by"] == by
    assert told[3]["detail"] == {"override": "OUT_OF_SERVICE"}
    assert told[3]["instance"]["status"] == "OUT_OF_SERVICE"
    assert told[1]["detail"] == {"metadata": {"zone": {"from": "a", "to": "b"}}}
    assert told == world.entries(path="/instances/web:1/history")
    assert [e["revision"] for e in told] == sorted((e["revision"] for e in told), reverse=True)
