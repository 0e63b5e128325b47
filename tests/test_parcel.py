"""The wheel: what is in it, and that it serves where nothing else is installed."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from conformance.programs import free_port
from tests.parcel import Installed, Parcel, build, contents, extra, locked, pip, wheelhouse
from tests.servers import HANG_SECS, ROOT, RegistryServer

PACKAGES = {
    "catalogs",
    "conformance",
    "eureka_compat",
    "eureka_http",
    "eureka_server",
    "native_api",
    "registry",
}
# What others may import from each package itself, a name a line: change it on purpose.
SURFACE = Path(__file__).parent / "public_surface.txt"


def described(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (found,) = [each for each in archive.namelist() if each.endswith(f".dist-info/{name}")]
        return archive.read(found).decode()


# What is in it


def test_the_wheels_top_level_is_the_packages_and_the_entry_point_of_gunicorn(
    parcel: Parcel,
) -> None:
    assert {name.partition("/")[0] for name in parcel.files()} == PACKAGES | {"wsgi.py"}
    assert {name for name in parcel.files() if name.endswith("py.typed")} == {
        f"{package}/py.typed" for package in PACKAGES
    }


def test_the_wheel_holds_what_is_tracked_but_for_what_is_named_as_left_out(
    parcel: Parcel,
) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    there = {name for name in listed if (ROOT / name).exists()}
    left_out = {
        name
        for name in there
        if name.endswith("/testing.py")
        or name.startswith(("conformance/oracle/", "conformance/clients/amalgam8/"))
    } | {f"conformance/{name}" for name in ("compare.py", "differential.py", "COVERAGE.md")}
    assert set(parcel.files()) == there - left_out | {"wsgi.py"}
    # These are read while it runs.
    assert {"native_api/openapi.yaml", "native_api/docs.html"} <= set(parcel.files())
    assert {"eureka_compat/QUIRKS.md", "conformance/report.html.j2"} <= set(parcel.files())
    assert "registry/stores/redis/lua/commit.lua" in parcel.files()


def test_the_source_archive_makes_the_same_wheel(parcel: Parcel, tmp_path: Path) -> None:
    shutil.unpack_archive(parcel.sdist, tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "again", "wheel")
    (again,) = (tmp_path / "again").iterdir()
    assert again.name == parcel.wheel.name
    assert contents(again) == parcel.files()
    assert again.read_bytes() == parcel.wheel.read_bytes()


def test_the_wheel_says_what_it_is(parcel: Parcel) -> None:
    lines = described(parcel.wheel, "METADATA").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Name: eureka-registry" in lines
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: >=3.11" in lines
    assert {f"Classifier: {each}" for each in project["classifiers"]} <= set(lines)
    required = [line for line in lines if line.startswith("Requires-Dist:") and ";" not in line]
    assert len(required) == len(project["dependencies"])
    commands = described(parcel.wheel, "entry_points.txt")
    assert "eureka-registry = eureka_server.command:main" in commands


def version_in(folder: Path) -> str:
    """The version that a wheel of this folder's sources would have."""
    told = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip()


def test_the_version_is_the_tags(tmp_path: Path) -> None:
    coming = "0.2.0.dev"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    assert version_in(tmp_path) == f"{coming}0"  # an archive, without a repository

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "tag.gpgSign=false")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one", "--no-gpg-sign")
    assert version_in(tmp_path).startswith(f"{coming}1+g")  # a clone without tags
    git("tag", "v0.2.0")
    assert version_in(tmp_path) == "0.2.0"
    git("commit", "-q", "-m", "two", "--allow-empty", "--no-gpg-sign")
    assert version_in(tmp_path).startswith("0.2.1.dev1+g")


def test_what_builds_the_wheel_is_locked_as_for_development() -> None:
    everything = locked("requirements-dev.lock")
    for name, entry in locked("requirements-build.lock").items():
        assert entry == everything[name]


def test_all_that_is_imported_is_locked(parcel: Parcel) -> None:
    """Also what is imported late; conformance's own are an extra."""
    owners = importlib.metadata.packages_distributions()
    dependencies = {name.replace("_", "-") for name in locked("requirements.lock")}
    missing = set()
    for name, source in parcel.files().items():
        if not name.endswith(".py") or name.startswith("conformance/"):
            continue
        for node in ast.walk(ast.parse(source)):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported = [node.module]
            for top in {each.partition(".")[0] for each in imported}:
                if top in sys.stdlib_module_names | PACKAGES | {"wsgi"}:
                    continue
                if not {d.lower().replace("_", "-") for d in owners[top]} & dependencies:
                    missing.add((name, top))
    assert missing == set()


def test_a_commit_is_checked_by_what_checks_the_tree() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0].splitlines()[1:]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = hooks["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"] for hook in local["hooks"]]
    assert entries == [line.strip().replace("$(VENV)", ".venv") for line in recipe]


# What comes of it where nothing else is installed


def asked(installed: Installed, folder: Path, code: str) -> str:
    """What a program prints in the environment of the wheel, away from the sources."""
    done = subprocess.run(
        [installed.python, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_package_offers_what_it_says_and_no_more(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import importlib\n"
        f"for package in {sorted(PACKAGES)!r}:\n"
        "    module = importlib.import_module(package)\n"
        "    for name in sorted(getattr(module, '__all__', [])):\n"
        "        getattr(module, name)\n"
        "        print(f'{package}.{name}')"
    )
    assert asked(installed, tmp_path, code).splitlines() == SURFACE.read_text().splitlines()


def test_each_module_of_the_wheel_finds_what_it_imports(
    installed: Installed, parcel: Parcel, tmp_path: Path
) -> None:
    """But for conformance, which has dependencies of its own, and what starts when imported."""
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in parcel.files()
        if name.endswith(".py") and not name.startswith(("conformance/", "wsgi.py"))
    )
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    asked(installed, tmp_path, code)


def serving(installed: Installed, folder: Path, *flags: str) -> RegistryServer:
    """The server as the wheel's command serves it, in a folder that has none of its sources."""
    server = RegistryServer(folder)
    server.command = (str(installed.command), "serve", *flags)
    server.runs_in = folder
    return server


def ran(installed: Installed, folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    """What the wheel's command ends with, and what it prints."""
    done = subprocess.run(
        [installed.command, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_knows_its_version(
    installed: Installed, parcel: Parcel, tmp_path: Path
) -> None:
    version = parcel.wheel.name.split("-")[1]
    assert ran(installed, tmp_path, "--version") == (0, f"eureka-registry {version}\n", "")


def test_the_command_serves_and_stops(installed: Installed, tmp_path: Path) -> None:
    with serving(installed, tmp_path, "--log-level", "debug") as server:
        assert server.register("SHOP", "shop:1") == 204
        assert set(server.apps()) == {"shop:1"}
        assert server.send("GET", "/api/v1/openapi.json").status == 200
        assert server.stop() == 0
        server.start()  # what it kept
        assert set(server.apps()) == {"shop:1"}


def test_the_command_checks_settings_and_serves_nothing(
    installed: Installed, tmp_path: Path
) -> None:
    store = f"lmdb:{tmp_path / 'store'}"
    port = str(free_port())
    code, told, _ = ran(installed, tmp_path, "--check", STORE_URL=store, PORT=port)
    assert (code, port in told) == (0, True)
    code, _, told = ran(installed, tmp_path, "--check", STORE_URL=store, REGISTRY_AUTH="x")
    assert (code, told.startswith("cannot start: REGISTRY_AUTH")) == (1, True)


def test_the_command_says_what_a_server_does(installed: Installed, tmp_path: Path) -> None:
    """With what the extra brings; without it, in one line, what is missing."""
    with serving(installed, tmp_path) as server:
        words = ("conformance", server.base, "--only", "heartbeat")
        code, _, told = ran(installed, tmp_path, *words)
        assert (code, len(told.splitlines())) == (2, 1)
        assert "pip install 'eureka-registry[conformance]'" in told
        (tmp_path / "extra.lock").write_text(extra())
        beside = str(tmp_path / "extra")
        house = ("--no-index", "--find-links", str(wheelhouse()), "--require-hashes")
        pip("install", "--target", beside, *house, "-r", str(tmp_path / "extra.lock"))
        report = str(tmp_path / "report")
        code, told, _ = ran(installed, tmp_path, *words, "--report", report, PYTHONPATH=beside)
    assert code == 0, told
    assert " 0 failed" in told
    assert (tmp_path / "report" / "report.html").exists()


def test_the_command_has_the_sidecar(installed: Installed, tmp_path: Path) -> None:
    code, told, _ = ran(installed, tmp_path, "sidecar", "--help")
    assert (code, told.startswith("usage:")) == (0, True)
