"""A genuine etcd as a source."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from catalogs.etcd import EtcdCatalog, EtcdSettings
from conformance.programs import free_port
from tests.servers import HANG_SECS, wait_until
from tests.sources.process import OwnProcess


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Etcd(OwnProcess):
    """One member on loopback; it keeps its ports and its data over restarts."""

    def __init__(self, folder: Path) -> None:
        self.port, self._peer_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._session = requests.Session()
        self.start()

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(self._folder / "etcd"), "--name", "one"),
                *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"one={peer}", "--log-level", "error"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def healthy() -> bool:
            try:
                return (
                    requests.get(f"{self.url}/health", timeout=HANG_SECS).json()["health"] == "true"
                )
            except (requests.RequestException, ValueError):
                return False

        wait_until(healthy, "etcd")

    def ask(self, path: str, document: dict[str, Any], **headers: str) -> dict[str, Any]:
        answer = self._session.post(
            f"{self.url}/v3/{path}", json=document, headers=headers, timeout=HANG_SECS
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


class EtcdSource(Etcd):
    """Instances under ``registry/default/SERVICE/``."""

    def put_value(self, key: str, value: str, **fields: Any) -> None:
        self.ask("kv/put", {"key": b64(key), "value": b64(value), **fields})

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        endpoint = json.dumps(
            {
                "service_name": service,
                "endpoint": {"type": "http", "value": f"{host}:{port}"},
                "status": status,
                "metadata": metadata or {},
            }
        )
        self.put_value(f"registry/default/{service}/{host}-{port}", endpoint)

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        for begin in range(0, len(instances), 100):
            puts = []
            for service, host, port in instances[begin : begin + 100]:
                value = f'{{"endpoint": {{"type": "http", "value": "{host}:{port}"}}}}'
                key = b64(f"registry/default/{service}/{host}-{port}")
                puts.append({"requestPut": {"key": key, "value": b64(value)}})
            self.ask("kv/txn", {"success": puts})

    def remove(self, service: str, host: str, port: int) -> None:
        self.ask("kv/deleterange", {"key": b64(f"registry/default/{service}/{host}-{port}")})

    def clear(self) -> None:
        """Have no keys any more."""
        self.ask("kv/deleterange", {"key": b64("\0"), "range_end": b64("\0")})

    def revision(self) -> int:
        return int(self.ask("kv/range", {"key": b64("none")})["header"]["revision"])

    def disturb(self) -> None:
        """Compacted while nobody could watch, the history has a gap for the watch."""
        self.kill()
        self.start()
        for number in range(3):
            self.put_value("elsewhere", str(number))
        self.ask("kv/compaction", {"revision": str(self.revision()), "physical": True})
        time.sleep(0.1)

    def catalog(self) -> EtcdCatalog:
        return EtcdCatalog(EtcdSettings(name="test", endpoints=(self.url,)))
