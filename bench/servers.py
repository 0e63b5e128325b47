"""The same application under other servers, on one core, in turns.

Gunicorn with the worker of this project and with its own threads, granian and waitress: a thousand
instances, one process each. Run with ``python bench/servers.py``; the others are installed into a
folder of the cache once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.beside_genuine import CONNECTIONS, fill, reads, started, wrk
from conformance.programs import CACHE, free_port

OTHERS = ("granian==2.8.7", "waitress==3.0.2")
INSTANCES = 1000
ROUNDS = 3
SECONDS = 3


def python_with_others() -> str:
    """A Python that has this project's packages and the other servers."""
    folder = CACHE / "servers"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        link = folder / "lib" / version / "site-packages" / "project.pth"
        link.write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *OTHERS], check=True)
    return str(python)


def commands(python: str, port: int) -> dict[str, list[str]]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return {
        "this worker": [python, "-m", "gunicorn", "wsgi:app"],
        "gthread": [python, "-m", "gunicorn", "--worker-class", "gthread", "wsgi:app"],
        "granian": [python, "-m", "granian", "--interface", "wsgi", *where, "wsgi:app"],
        "waitress": [python, "-m", "waitress", *where, f"--threads={CONNECTIONS}", "wsgi:app"],
    }


def main() -> None:
    python = python_with_others()
    wanted = [each for each in reads(INSTANCES) if "10,000" not in each[0].name]
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        servers = []
        for name in commands(python, 0):
            port = free_port()
            env = {
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "WORKERS": "1",
                "STORE_URL": f"lmdb:{made}/{port}",
                "LOG_LEVEL": "error",
            }
            command = commands(python, port)[name]
            servers.append(stack.enter_context(started(name, command, port, env)))
        for server in servers:
            fill(server, INSTANCES)
        for _ in range(ROUNDS):
            for row, path, headers, script in wanted:
                for server in servers:
                    value = wrk(server.url(path), headers, SECONDS, script)
                    figures.setdefault((row.name, server.name), []).append(value)
    names = [server.name for server in servers]
    print("| measure |", " | ".join(names), "|")
    print("| --- |", " | ".join("---" for _ in names), "|")
    for row, *_ in wanted:
        cells = [f"{statistics.median(figures[row.name, name]):,.0f}" for name in names]
        print(f"| {row.name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
