"""What several test modules need."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.parcel import Installed, Parcel, build
from tests.servers import ROOT

# How long a step takes is this machine's business, and no verdict on what it does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate for localhost, and a client's."""
    folder = tmp_path_factory.mktemp("certificates")
    quiet: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True}
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    authority = ["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca"]
    subprocess.run([*new, *authority], **quiet)
    for name in ("server", "client"):
        request = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=localhost"]
        subprocess.run([*new, *request], **quiet)
        (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        signing = ["openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem"]
        rest = ["-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        subprocess.run([*signing, *rest, "-out", f"{name}.pem"], **quiet)
    return folder


@pytest.fixture(scope="session")
def parcel(tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    """What ``make wheel`` leaves."""
    folder = tmp_path_factory.mktemp("parcel")
    build(ROOT, folder, "sdist", "wheel")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Parcel(wheel, sdist)


@pytest.fixture(scope="session")
def installed(parcel: Parcel, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel and what is locked, in an environment of their own."""
    return Installed(tmp_path_factory.mktemp("installed"), parcel.wheel)
