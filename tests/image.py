"""Performs a Dockerfile without a container engine, as the engine's own reader understands it.

Each stage is an empty folder, and an absolute path in an instruction means a place below it. What
the base image brings is an empty environment of the same Python, and a ``pip`` that works on that
and has what is locked at hand, without a network. ``RUN`` is a shell; ``CMD`` runs as ``USER``
where the test may change to another user.

What this cannot show: the base image itself, and anything of isolation (other paths can be read,
and the network is this machine's). An instruction that is not known here is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.programs import built
from tests.parcel import wheelhouse
from tests.servers import HANG_SECS

_READERS = Path(__file__).parent / "containers"
# An absolute path, in a word of its own or after what parts words; no URL.
_PATH = re.compile(r"(?:(?<=[\s=:'\"])|^)/(?=\w)")


def readers() -> Path:
    """The program that has both readers, built once."""

    def build(work: Path) -> Path:
        subprocess.run(["go", "build", "-o", "program", "."], cwd=work, check=True, timeout=1200)
        return work / "program"

    return built("containers", _READERS, build)


def as_read(kind: str, path: Path) -> Any:
    """What BuildKit and Compose make of a ``dockerfile``, a ``compose`` file or a ``context``.

    ``ValueError`` with what they find wrong.
    """
    read = subprocess.run(
        [readers(), kind, path], capture_output=True, text=True, timeout=HANG_SECS
    )
    if read.returncode != 0:
        raise ValueError(read.stderr)
    return json.loads(read.stdout)


@dataclass
class Image:
    """A stage as far as it is built."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: Path = Path("/")
    user: str = ""
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)

    def inside(self, text: str) -> str:
        """The same text, with its absolute paths below this root."""
        return _PATH.sub(lambda _: f"{self.root}/", text)

    def place(self, path: str) -> Path:
        """Where the image has this path, which may be relative to its working folder."""
        return self.root / Path(self.workdir, path).relative_to("/")

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """What a process in it finds as its environment."""
        python = self.root / "python" / "bin"
        return {
            "PATH": f"{python}:/usr/bin:/bin",
            "HOME": "/nowhere",
            **{name: self.inside(value) for name, value in self.environment.items()},
            **more,
        }

    def start(
        self, more: Mapping[str, str], command: list[str] | None = None
    ) -> subprocess.Popen[str]:
        """Run the image, or another command in it, with more variables."""
        with self._log.open("a") as log:
            return subprocess.Popen(
                command or self.command,
                cwd=self.place("."),
                env=self.variables(more),
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                **self._identity(),
            )

    def log(self) -> str:
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.root.with_suffix(".log")

    def _identity(self) -> dict[str, int]:
        if os.geteuid() != 0 or not self.user:
            return {}
        user, group = self.user.split(":")
        return {"user": int(user), "group": int(group)}


def performed(dockerfile: Path, folder: Path, arguments: Mapping[str, str]) -> dict[str, Image]:
    """Each stage by its name, the last under ``""``; the context is the Dockerfile's folder.

    ``folder`` has to be one that every user may enter.
    """
    stages: dict[str, Image] = {}
    now: Image | None = None
    context = as_read("context", dockerfile.parent)
    for word, rest in as_read("dockerfile", dockerfile)["instructions"]:
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            now = stages[name] = Image(folder / (name or "final"))
            _lay_base(now, base)
            continue
        assert now is not None, "an instruction before the first FROM"
        if word == "WORKDIR":
            now.workdir = now.workdir / rest
            now.place(".").mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            _copy(now, rest, dockerfile.parent, context, stages)
        elif word == "RUN":
            _run(now, rest)
        elif word == "ARG":
            name, _, default = rest.partition("=")
            now.arguments[name] = arguments.get(name, default)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            now.environment[name] = value
        elif word == "HEALTHCHECK":
            now.health = json.loads(rest.partition("CMD")[2])
        elif word == "CMD":
            now.command = json.loads(rest)
        elif word == "USER":
            now.user = rest
        elif word == "VOLUME":
            now.volumes.append(rest)
        elif word == "EXPOSE":
            now.ports.append(rest)
        else:
            raise AssertionError(f"{word} is not performed here")
    return stages


def _lay_base(image: Image, base: str) -> None:
    """An environment of the Python that the base image has, which other users may run, too."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert base == f"python:{version}-slim", f"{base} is not the Python of this test, {version}"
    image.root.mkdir()
    environment = image.root / "python"
    common = Path(f"/usr/bin/python{version}")  # root's own may lie where nobody else may look
    if common.exists():
        making = [str(common), "-m", "venv", "--without-pip", str(environment)]
        subprocess.run(making, check=True, timeout=HANG_SECS)
    else:
        venv.create(environment, symlinks=True)
    pip = f'exec "{sys.executable}" -m pip --python "{environment}/bin/python" "$@"'
    programs = {"pip": pip, "useradd": f'echo "$@" >> "{image.root}/users"'}
    if os.geteuid() != 0:
        programs["chown"] = "exit 0"
    for name, does in programs.items():
        file = environment / "bin" / name
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


def _run(image: Image, command: str) -> None:
    network = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse())}
    done = subprocess.run(
        ["/bin/sh", "-c", image.inside(command)],
        cwd=image.place("."),
        env=image.variables(image.arguments | network),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"RUN {command}: {done.stdout}{done.stderr}"


def _copy(
    image: Image, rest: str, folder: Path, context: list[str], stages: Mapping[str, Image]
) -> None:
    *words, target = rest.split()
    place = image.place(target)
    is_folder = target.endswith(("/", ".")) or len(words) > 1
    there = [folder / name for name in context]
    if words[0].startswith("--from="):
        folder = stages[words.pop(0).removeprefix("--from=")].root
        there = [path for path in folder.rglob("*") if path.is_file()]
    for word in words:
        source = folder / word.lstrip("/")
        files = [path for path in there if path.is_relative_to(source)]
        assert files, f"COPY {rest}: there is no {word}"
        for file in files:
            whole = place / file.name if is_folder else place
            made = place / file.relative_to(source) if source.is_dir() else whole
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, made)
