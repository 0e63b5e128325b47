"""The server put together: what an import does, and what becomes of parts when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from catalogs import Runner
from eureka_compat.peers import Replicator
from eureka_server import app
from eureka_server.access import Access
from eureka_server.settings import load
from registry import Evictor, Registry, open_store
from registry.stores.memory import MemoryStore
from tests.servers import HANG_SECS, ROOT

# Imports every module of every package, and tells what that did to the process.
PROBE = """
import importlib, json, os, pkgutil, sys, threading

told = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    if event in ("socket.connect", "os.fork", "subprocess.Popen", "os.mkdir", "os.rename"):
        told.append(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        told.append(f"{event} {arguments}")

def state():
    threads = sorted(thread.name for thread in threading.enumerate())
    files = sorted(os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
                   if os.path.lexists(f"/proc/self/fd/{number}"))
    return {"threads": threads, "files": files, "os threads": len(os.listdir("/proc/self/task"))}

sys.dont_write_bytecode = True
before = state()
sys.addaudithook(watch)
imported = []
for name in PACKAGES:
    package = importlib.import_module(name)
    imported.append(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
        imported.append(module.name)
after = state()
print(json.dumps({"before": before, "after": after, "told": told, "imported": imported}))
"""
PACKAGES = sorted(
    path.parent.name
    for path in ROOT.glob("*/__init__.py")
    if path.parent.name not in ("tests", "bench")
)


def test_importing_anything_but_the_entry_point_starts_nothing(tmp_path: Path) -> None:
    probe = PROBE.replace("PACKAGES", repr(PACKAGES))
    ended = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path,
        # What is wrong with the environment is no matter of an import.
        env={"PYTHONPATH": str(ROOT), "PORT": "none", "STORE_URL": "lmdb:data"},
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found["imported"]) > 80
    assert found["told"] == []
    assert found["after"] == found["before"]
    assert list(tmp_path.iterdir()) == []


# Parts


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened and closed, in its order; nothing of it runs in the background."""
    told: list[str] = []
    here = threading.current_thread()

    def note(owner: type, verb: str, word: str) -> None:
        def noted(_: object) -> None:
            if threading.current_thread() is here:  # parts that other tests opened go on elsewhere
                told.append(word)

        monkeypatch.setattr(owner, verb, noted)

    note(Access, "start", "access opened")
    note(Access, "stop", "access closed")
    note(Registry, "start", "registry loaded")
    note(Evictor, "run_once", "evicted once")
    note(Evictor, "start", "evictor opened")
    note(Evictor, "stop", "evictor closed")
    note(Runner, "start", "catalogs opened")
    note(Runner, "stop", "catalogs closed")
    note(Replicator, "start", "peers opened")
    note(Replicator, "stop", "peers closed")
    note(MemoryStore, "close", "store closed")

    def opened(url: str, **options: Any) -> object:
        told.append("store opened")
        return open_store(url, **options)

    monkeypatch.setattr(app, "open_store", opened)
    monkeypatch.setattr("atexit.register", lambda close: told.append(close))
    return told


OPENED = [
    "access opened",
    "store opened",
    "registry loaded",
    "evicted once",
    "evictor opened",
    "catalogs opened",
    "peers opened",
]
CLOSED = ["peers closed", "catalogs closed", "evictor closed", "store closed", "access closed"]
IN_MEMORY = load({"STORE_URL": "memory:"})


def test_parts_are_opened_in_order_and_closed_in_reverse(parts: list[str]) -> None:
    app.create_app(IN_MEMORY)
    *opened, close = parts
    assert opened == OPENED
    del parts[:]
    close()  # type: ignore[operator]
    assert parts == CLOSED


class _BrokenError(Exception):
    pass


@pytest.mark.parametrize(
    ("part", "verb", "closed"),
    [
        (Access, "start", CLOSED[4:]),
        (app, "open_store", CLOSED[4:]),
        (Registry, "start", CLOSED[3:]),
        (Evictor, "run_once", CLOSED[2:]),
        (Evictor, "start", CLOSED[2:]),
        (Runner, "start", CLOSED[1:]),
        (Replicator, "start", CLOSED),
        (app, "Gateway", CLOSED),
        (app, "Door", CLOSED),
    ],
)
def test_what_was_opened_is_closed_where_a_part_cannot_be(
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    part: object,
    verb: str,
    closed: list[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise _BrokenError

    monkeypatch.setattr(part, verb, broken)
    with pytest.raises(_BrokenError):
        app.create_app(IN_MEMORY)
    assert [each for each in parts if each in CLOSED] == closed
    assert all(isinstance(each, str) for each in parts)  # nothing is left for the end to close
