"""A folder of files as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from catalogs.file import FileCatalog, FileSettings


class FolderSource:
    """One file, replaced as a whole at each change; being killed is being renamed away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "catalog"
        self._away = folder / "away"
        self.folder.mkdir()
        self._instances: dict[tuple[str, str, int], dict[str, Any]] = {}

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        self._instances[service, host, port] = {
            "service_name": service,
            "endpoint": {"type": "http", "value": f"{host}:{port}"},
            "status": status,
            "metadata": metadata or {},
        }
        self._write()

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        for service, host, port in instances:
            endpoint = f"{host}:{port}"
            told = {"service_name": service, "endpoint": endpoint}
            self._instances[service, host, port] = told
        self._write()

    def remove(self, service: str, host: str, port: int) -> None:
        del self._instances[service, host, port]
        self._write()

    def _write(self) -> None:
        document = {"instances": list(self._instances.values())}
        fresh = self.folder / ".default.yaml.new"
        fresh.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper))
        fresh.rename(self.folder / "default.yaml")

    def kill(self) -> None:
        self.folder.rename(self._away)

    def start(self) -> None:
        self._away.rename(self.folder)

    def disturb(self) -> None:
        os.utime(self.folder / "default.yaml")

    def catalog(self) -> FileCatalog:
        return FileCatalog(FileSettings(name="test", folder=self.folder))
