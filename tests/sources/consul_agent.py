"""A genuine Consul server as a source."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from catalogs.consul import ConsulCatalog, ConsulSettings
from conformance.programs import built, free_port
from tests.servers import HANG_SECS, wait_until
from tests.sources.process import OwnProcess

FOLDER = Path(__file__).parent / "consul"


def program() -> Path:
    """Consul, built once."""

    def build(work: Path) -> Path:
        options = ["-mod=mod", "-ldflags=-checklinkname=0", "-o", "program"]
        command = ["go", "build", *options, "github.com/hashicorp/consul"]
        subprocess.run(command, cwd=work, check=True, timeout=1800)
        return work / "program"

    return built("consul", FOLDER, build)


class ConsulSource(OwnProcess):
    """One server; it keeps its ports and its data over restarts."""

    def __init__(self, folder: Path, token: str = "", **config: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        names = ("server", "serf_lan", "serf_wan")
        self._config = folder / "consul.json"
        self._config.write_text(
            json.dumps(
                {
                    "server": True,
                    "bootstrap_expect": 1,
                    "data_dir": str(folder / "consul"),
                    "bind_addr": "127.0.0.1",
                    "node_name": "one",
                    "performance": {"raft_multiplier": 1},  # it elects itself the sooner
                    "ports": {
                        "http": self.port,
                        "dns": -1,
                        "grpc": -1,
                        **{name: free_port() for name in names},
                    },
                    **config,
                }
            )
        )
        self.session = requests.Session()
        if token:
            self.session.headers["X-Consul-Token"] = token
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(program()), "agent", "-config-file", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def leads() -> bool:
            try:
                url = f"{self.url}/v1/status/leader"
                return bool(
                    requests.get(url, timeout=HANG_SECS, headers=dict(self.session.headers)).json()
                )
            except (requests.RequestException, ValueError):
                return False

        wait_until(leads, "consul")
        wait_until(self._accepts, "consul to take writes")

    def _accepts(self) -> bool:
        body = {"Node": "probe", "Address": "127.0.0.1"}
        url = f"{self.url}/v1/catalog/register"
        return self.session.put(url, json=body, timeout=HANG_SECS).status_code == 200

    def ask(self, path: str, document: Any) -> None:
        answer = self.session.put(f"{self.url}/v1/{path}", json=document, timeout=HANG_SECS)
        assert answer.status_code == 200, answer.text

    def register(self, service: dict[str, Any], checks: Sequence[dict[str, Any]] = ()) -> None:
        checks = [{"ServiceID": service["ID"], "Node": "web-node", **check} for check in checks]
        node = {"Node": "web-node", "Address": "10.200.0.1", "SkipNodeUpdate": True}
        self.ask("catalog/register", {**node, "Service": service, "Checks": checks})

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        name = f"{service}-{host}-{port}"
        told = {"ID": name, "Service": service, "Address": host, "Port": port}
        state = {"UP": "passing", "DOWN": "critical"}[status]
        check = {"CheckID": f"check-{name}", "Name": "check", "Status": state}
        self.register({**told, "Meta": metadata or {}}, [check])

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        for begin in range(0, len(instances), 60):
            operations = []
            for service, host, port in instances[begin : begin + 60]:
                told = {"ID": f"{service}-{host}-{port}", "Service": service}
                told |= {"Address": host, "Port": port}  # type: ignore[dict-item]  # a number
                operations.append({"Service": {"Verb": "set", "Node": "probe", "Service": told}})
            self.ask("txn", operations)

    def remove(self, service: str, host: str, port: int) -> None:
        for node in ("web-node", "probe"):
            told = {"Node": node, "ServiceID": f"{service}-{host}-{port}"}
            self.ask("catalog/deregister", told)

    def clear(self) -> None:
        """Have no services any more."""
        nodes = self.session.get(f"{self.url}/v1/catalog/nodes", timeout=HANG_SECS).json()
        for name in {node["Node"] for node in nodes} - {"one"}:
            self.ask("catalog/deregister", {"Node": name})
        assert self._accepts()  # and with it the node that services are put on

    def disturb(self) -> None:
        self.kill()
        self.start()

    def catalog(self) -> ConsulCatalog:
        return ConsulCatalog(ConsulSettings(name="test", url=self.url, wait_secs=5))
