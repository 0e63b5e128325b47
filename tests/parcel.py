"""What leaves the house: the wheel, built once, and environments that hold it and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

from conformance.programs import built
from tests.servers import HANG_SECS, ROOT

LOCKS = ("requirements.lock", "requirements-build.lock")
# What the extra ``conformance`` brings beside that.
EXTRA = ("markdown-it-py", "mdurl", "pygments", "rich")


def build(source: Path, folder: Path, *targets: str) -> None:
    """What ``make wheel`` does, from a folder of sources into another folder."""
    chosen = [word for target in targets for word in ("-t", target)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *chosen, "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=HANG_SECS,
    )


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, but for those that tell of the wheel itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def locked(lock: str) -> dict[str, str]:
    """The entries of a lock by name: each a version and the hashes of its files."""
    entries = re.split(r"(?m)^(?=\S)", (ROOT / lock).read_text())
    return {re.split(r"[=\[]", entry)[0].lower(): entry for entry in entries if entry.strip()}


def extra() -> str:
    """The lock of the extra, of the entries that it has for development."""
    entries = locked("requirements-dev.lock")
    return "".join(entries[name] for name in EXTRA)


def wheelhouse() -> Path:
    """The wheels of all that is locked, for this Python; fetched once for each state of the locks.

    They are kept outside the tree, so that an empty environment costs no network.
    """

    def fetch(work: Path) -> Path:
        house = work / "wheels"
        for lock in (*LOCKS, "extra.lock"):
            pip("download", "--require-hashes", "-r", str(work / lock), "-d", str(house))
        return house

    with tempfile.TemporaryDirectory() as folder:
        for lock in LOCKS:
            # An image's Python may be of another patch release than the one that runs the tests.
            text = re.sub(r" ; python_full_version [^\\\n]*", " ", (ROOT / lock).read_text())
            Path(folder, lock).write_text(text)
        Path(folder, "extra.lock").write_text(extra())
        Path(folder, "python").write_text(f"{sys.implementation.cache_tag} {sys.platform}")
        return built("wheels", Path(folder), fetch)


def pip(*words: str, python: Path | None = None) -> None:
    """Run pip, on another environment than this one where its Python is named."""
    where = ["--python", str(python)] if python else []
    done = subprocess.run(
        [sys.executable, "-m", "pip", *where, "--disable-pip-version-check", "-q", *words],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Parcel:
    """What ``make wheel`` leaves."""

    wheel: Path
    sdist: Path

    def files(self) -> dict[str, bytes]:
        return contents(self.wheel)


class Installed:
    """An environment with the locked dependencies and the wheel, as an operator makes it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "eureka-registry"
        offline = ("install", "--no-index", "--no-compile")
        house = str(wheelhouse())
        lock = ("--require-hashes", "-r", str(ROOT / "requirements.lock"))
        pip(*offline, "--find-links", house, *lock, python=self.python)
        pip(*offline, "--no-deps", str(wheel), python=self.python)
        pip("check", python=self.python)
