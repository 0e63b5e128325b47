"""The tiers: no test of the fast one can need what a machine may lack."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.servers import HANG_SECS, ROOT, wait_until

pytest_plugins = ["pytester"]

STARTS = """
import subprocess, sys
import pytest

def test_python_is_here():
    assert subprocess.run([sys.executable, "-c", ""]).returncode == 0

def test_others_may_not_be():
    subprocess.run(["uname"])

@pytest.mark.programs
def test_marked():
    subprocess.run(["uname"])
"""
CONNECTS = """
import socket

def test_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        socket.create_connection(listening.getsockname()).close()

def test_another_machine():
    socket.create_connection(("192.0.2.1", 9), timeout=0.01)
"""
STAYS = """
import signal
from pathlib import Path
import pytest

@pytest.fixture
def server():
    yield
    Path("ended").touch()

def test_that_is_cut_off(server):
    Path("began").touch()
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(
    ("text", "passed", "told"),
    [
        (STARTS, 2, "*test_others_may_not_be starts */uname and is not marked 'programs'*"),
        (CONNECTS, 1, "*test_another_machine connects to ('192.0.2.1', 9) and is not marked*"),
    ],
)
def test_what_is_not_marked_starts_no_program_and_asks_no_other_machine(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str, passed: int, told: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["programs"]')
    pytester.makepyfile(text)
    result = pytester.runpytest_subprocess("-p", "tests.conftest")
    result.assert_outcomes(passed=passed, failed=1)
    result.stdout.fnmatch_lines(told)


def test_a_run_that_is_told_to_end_ends_what_its_tests_started(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["programs"]')
    file = pytester.makepyfile(STAYS)
    run = subprocess.Popen([sys.executable, "-m", "pytest", "-p", "tests.conftest", str(file)])
    try:
        wait_until((pytester.path / "began").exists, "the test")
        run.send_signal(signal.SIGTERM)
        run.wait(HANG_SECS)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert (pytester.path / "ended").exists()
