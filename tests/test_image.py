"""The image, made as ``Dockerfile`` says but without a container engine (``tests/image.py``)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.programs import free_port
from tests.image import Image, as_read, performed
from tests.parcel import Parcel, contents
from tests.servers import HANG_SECS, JSON, ROOT, Reply, instance_body, send, wait_until

pytestmark = [
    pytest.mark.programs,  # Go, for the engine's own reader, and packages
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11"),
]
VERSION = "9.8.7"


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Image]]:
    # Not in pytest's folder, which only one user may enter.
    folder = Path(tempfile.mkdtemp(prefix="eureka-image-"))
    folder.chmod(0o755)
    yield performed(ROOT / "Dockerfile", folder, {"VERSION": VERSION})
    shutil.rmtree(folder)


class Container:
    """The image, running."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.port = free_port()
        self.variables = {"PORT": str(self.port), "HOST": "127.0.0.1", "WORKERS": "2"}
        self.process = image.start(self.variables)

    def __enter__(self) -> Container:
        wait_until(self.is_ready, "readiness")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.image.log()
        try:
            return self.ask("GET", "/health/ready").status == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, body: str | None = None) -> Reply:
        return send(self.port, method, path, body, JSON)

    def health(self) -> int:
        return self.image.start(self.variables, self.image.health).wait(HANG_SECS)


def test_the_image_has_the_wheel_and_what_is_locked_and_nothing_else(
    stages: dict[str, Image], parcel: Parcel
) -> None:
    image, builder = stages[""], stages["builder"]
    (made,) = builder.place("/wheel").iterdir()
    assert made.name == f"eureka_registry-{VERSION}-py3-none-any.whl"
    assert contents(made) == parcel.files()
    assert {path.name for path in image.root.iterdir()} == {"python", "data", "users"}
    (packages,) = image.root.glob("python/lib/python*/site-packages")
    assert not (packages / "hatchling").exists()
    assert not (packages / "pytest").exists()


def test_the_image_serves_stops_and_keeps_its_data(stages: dict[str, Image]) -> None:
    image = stages[""]
    body = instance_body("SHOP", "shop:1")
    with Container(image) as container:
        assert container.ask("POST", "/eureka/apps/SHOP", body).status == 204
        assert container.ask("GET", "/api/v1/docs").status == 200
        container.process.send_signal(signal.SIGTERM)
        assert container.process.wait(HANG_SECS) == 0, image.log()
    with Container(image) as container:
        assert container.ask("GET", "/eureka/apps/SHOP/shop:1").status == 200


def test_the_image_tells_whether_it_is_healthy(stages: dict[str, Image]) -> None:
    with Container(stages[""]) as container:
        assert container.health() == 0
        container.process.send_signal(signal.SIGTERM)
        container.process.wait(HANG_SECS)
        assert container.health() != 0


def test_the_images_user_can_write_to_the_data_alone(stages: dict[str, Image]) -> None:
    image = stages[""]
    assert image.user == "10001:10001"
    assert "--uid 10001 " in (image.root / "users").read_text()
    assert image.volumes == ["/data"]
    if os.geteuid() != 0:
        pytest.skip("only root may give files to another user")
    theirs = [path for path in image.root.rglob("*") if path.lstat().st_uid == 10001]
    assert all(path.is_relative_to(image.root / "data") for path in theirs)
    assert image.root / "data" in theirs
    writable = "find -L . -writable -not -path './data*'"
    found = image.start({}, ["/bin/sh", "-c", f'cd {image.root}; test -z "$({writable})"'])
    assert found.wait(HANG_SECS) == 0


def test_the_engines_reader_finds_nothing_wrong() -> None:
    assert as_read("dockerfile", ROOT / "Dockerfile")["problems"] == []


def test_an_instruction_or_a_base_that_is_not_known_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").touch()
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:2")
    with pytest.raises(AssertionError, match="is not the Python"):
        performed(file, tmp_path, {})
    file.write_text((ROOT / "Dockerfile").read_text().splitlines()[4] + "\nSTOPSIGNAL SIGINT")
    with pytest.raises(AssertionError, match="STOPSIGNAL is not performed here"):
        performed(file, tmp_path, {})
    file.write_text("FROM python:2\nRUNN x")
    with pytest.raises(ValueError, match="unknown instruction: RUNN"):
        performed(file, tmp_path, {})


def test_nothing_goes_to_the_engine_but_what_the_wheel_is_made_of(
    stages: dict[str, Image],
) -> None:
    sources = stages["builder"].place("/sources")
    assert {path.name for path in sources.iterdir()} == {
        *("catalogs", "conformance", "eureka_compat", "eureka_http", "eureka_server"),
        *("native_api", "registry", "wsgi.py", "pyproject.toml", "README.md", "CHANGELOG.md"),
        *("LICENSE", "requirements.lock", "requirements-dev.lock", "requirements-build.lock"),
    }
    assert subprocess.run(["find", sources, "-name", "*.pyc"], capture_output=True).stdout == b""
