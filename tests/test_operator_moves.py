"""``eureka-registry export`` and ``import``, from one server that runs to another.

What comes across, and what is refused, is in ``test_transfer.py``; here is how it gets there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.security import generate_password_hash

from eureka_server.operator import client, transfer
from tests.servers import RegistryServer, instance_body
from tests.test_operator import Operator, Said


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RegistryServer]]:
    """Two with the same accounts: ``root`` is an administrator, ``ann`` has a namespace."""
    folder = tmp_path_factory.mktemp("servers")
    users = folder / "users"
    word = generate_password_hash("word", "pbkdf2:sha256:1000")
    users.write_text(f"root default admin {word}\nann red user {word}\n")
    env = {"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(users)}
    started = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        started.append(RegistryServer(folder / name, workers=1, env=env))
    with started[0], started[1]:
        yield started


class Mover:
    """An operator with an account at both servers."""

    def __init__(self, servers: list[RegistryServer], capsys: pytest.CaptureFixture[str]) -> None:
        self._servers = servers
        self._capsys = capsys

    def types(self, at: int, *words: str, user: str = "root") -> Said:
        url = f"http://{user}:word@127.0.0.1:{self._servers[at].port}"
        return Operator(self._capsys, url).types(*words)

    def registers(self, user: str, app: str, *ids: str) -> None:
        headers = {"Content-Type": "application/json", **BASIC[user]}
        for each in ids:
            body = instance_body(app, each)
            path = f"/eureka/apps/{app}"
            assert self._servers[0].send("POST", path, body, headers).status == 204

    def lists(self, at: int, user: str = "root") -> list[str]:
        return self.types(at, "instances", "-o", "name", user=user).lines


BASIC = {
    "root": {"Authorization": "Basic cm9vdDp3b3Jk"},
    "ann": {"Authorization": "Basic YW5uOndvcmQ="},
}


@pytest.fixture
def mover(servers: list[RegistryServer], capsys: pytest.CaptureFixture[str]) -> Iterator[Mover]:
    moving = Mover(servers, capsys)
    yield moving
    for at in (0, 1):
        for user in BASIC:
            for name in moving.types(at, "apps", "-o", "name", user=user).lines:
                moving.types(at, "rm", "--service", name, user=user)


def test_an_administrator_moves_all_namespaces(mover: Mover, tmp_path: Path) -> None:
    mover.registers("root", "SHOP", "shop:1", "shop:2")
    mover.registers("ann", "CART", "cart:1")
    mover.types(0, "down", "shop:1")
    file = tmp_path / "export"

    said = mover.types(0, "export", str(file))

    assert (said.code, said.lines) == (
        0,
        ["NAMESPACE  INSTANCES", "default    2", "red        1"],
    )
    assert list(tmp_path.iterdir()) == [file]
    said = mover.types(1, "import", str(file))
    assert (said.code, said.lines) == (
        0,
        [
            "NAMESPACE  TAKEN  KEPT  OF CATALOGS",
            "default    2      0     0",
            "red        1      0     0",
        ],
    )
    assert (mover.lists(1), mover.lists(1, "ann")) == (["shop:1", "shop:2"], ["cart:1"])
    assert "OUT_OF_SERVICE (set)" in mover.types(1, "instances", "id:shop:1").out
    again = mover.types(1, "import", str(file), "-o", "json").json()
    assert again["namespaces"]["default"] == {"taken": 0, "kept": 2, "of_catalogs": 0}


def test_others_move_their_own(mover: Mover, tmp_path: Path) -> None:
    mover.registers("root", "SHOP", "shop:1")
    mover.registers("ann", "CART", "cart:1")
    file = tmp_path / "export"
    file.write_text(mover.types(0, "export", user="ann").out)
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == [
        "header",
        "instance",
        "end",
    ]
    assert mover.types(1, "import", str(file), user="ann").code == 0
    assert mover.lists(1, "ann") == ["cart:1"]
    file.write_text(mover.types(0, "export").out)
    said = mover.types(1, "import", str(file), user="ann")
    assert (said.code, "answers 403" in said.err) == (2, True)


def test_a_namespace_can_be_imported_into_another(mover: Mover, tmp_path: Path) -> None:
    mover.registers("ann", "CART", "cart:1")
    file = tmp_path / "export"
    mover.types(0, "export", str(file), "--namespace", "red")
    assert mover.types(1, "import", str(file), "--into", "default").code == 0
    assert (mover.lists(1), mover.lists(1, "ann")) == (["cart:1"], [])
    mover.registers("root", "SHOP", "shop:1")
    mover.types(0, "export", str(file))
    said = mover.types(1, "import", str(file), "--into", "default")
    assert (
        said.code,
        said.err.endswith("--into takes one namespace, and there are several\n"),
    ) == (
        2,
        True,
    )


def test_an_export_is_sent_in_parts_and_a_refused_line_is_named_as_it_stands_in_the_file(
    mover: Mover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover.registers("root", "SHOP", *(f"shop:{number}" for number in range(10)))
    file = tmp_path / "export"
    mover.types(0, "export", str(file))
    header, *lines = file.read_text().splitlines()
    broken = json.loads(lines[7])
    broken["instance"]["port"] = "no"
    file.write_text("\n".join([header, *lines[:7], json.dumps(broken), *lines[8:], ""]))
    monkeypatch.setattr(transfer, "_PART_BYTES", 3 * len(lines[0]))
    sent = []
    send = client.Server.send
    monkeypatch.setattr(
        client.Server, "send", lambda *a, **k: (sent.append(a[1]), send(*a, **k))[1]
    )

    said = mover.types(1, "import", str(file))

    assert sent.count("POST") > 3
    assert said.code == 1
    assert said.lines[1] == "default    9      0     0"
    told = f"line 9, {broken['id']}: port: expected a whole number"
    assert said.lines[-1].startswith(told)
    assert len(mover.lists(1)) == 9


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[:-1]) + "\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "there is nothing in it"),
        (lambda text: "hello\n" + text, "line 1: this is no export of a registry"),
        (lambda text: text + "more\n", "line 4: this is no export of a registry"),
        (_end, "line 2: the export is cut off: its end is missing after 1 instances"),
        (lambda text: _end(text) + text, "line 3: the export is cut off: its end is missing"),
        (
            lambda text: text.replace('"instances":1', '"instances":7'),
            "line 3: instead of 7 instances there are 1",
        ),
        (
            lambda text: text.replace('"version":1', '"version":9'),
            "the export is of version 9, and this server reads up to 1",
        ),
    ],
)
def test_a_file_that_is_no_whole_export_is_one_line(
    mover: Mover, tmp_path: Path, change: Any, told: str
) -> None:
    mover.registers("root", "SHOP", "shop:1")
    file = tmp_path / "export"
    mover.types(0, "export", str(file), "--namespace", "default")
    file.write_text(change(file.read_text()))
    said = mover.types(1, "import", str(file))
    assert said.code == 1
    assert said.err.startswith(f"eureka-registry import: {told}")


def test_a_file_that_cannot_be_used(mover: Mover, tmp_path: Path) -> None:
    missing = tmp_path / "none" / "export"
    said = mover.types(1, "import", str(missing))
    assert (said.code, said.err) == (
        2,
        f"eureka-registry import: {missing}: No such file or directory\n",
    )
    said = mover.types(0, "export", str(missing))
    assert (said.code, said.err) == (
        1,
        f"eureka-registry export: {missing}: No such file or directory\n",
    )


def test_an_answer_that_breaks_off_leaves_no_file(
    mover: Mover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover.registers("root", "SHOP", "shop:1")
    lines = client.Server.lines
    monkeypatch.setattr(client.Server, "lines", lambda *a: list(lines(*a))[:-1])
    said = mover.types(0, "export", str(tmp_path / "export"))
    assert (said.code, "the answer broke off" in said.err) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_accounts_takes_no_other_namespace(
    mover: Mover, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mover.registers("ann", "CART", "cart:1")
    file = tmp_path / "export"
    mover.types(0, "export", str(file), "--namespace", "red")
    (tmp_path / "open").mkdir()
    with RegistryServer(tmp_path / "open", workers=1) as server:
        operator = Operator(capsys, server.root)
        said = operator.types("import", str(file))
        assert said.code == 1
        assert "this is the namespace 'default', and the export is of 'red'" in said.err
        assert operator.types("import", str(file), "--into", "default").code == 0
        assert operator.types("instances", "-o", "name").lines == ["cart:1"]
        said = operator.types("export", "--namespace", "red")
        assert (said.code, "does not know namespaces by name" in said.err) == (3, True)
