"""Programs that run a real client library, unchanged: how each is built, started and asked.

All take the same arguments, ``BASES APP ID PORT VARIANT``, and answer over HTTP on their port:
``/whoami`` (their id), ``/instances/SERVICE`` (the ids that they would use, as a JSON array) and
``/choose/SERVICE`` (who answered a call made through their own load balancer). They renew and fetch
each second with leases of thirty, so that none ends where a machine is busy for a while, and
deregister on SIGTERM.

Builds are kept outside the tree, under a name that holds their sources' hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "clients"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eureka-registry"
LEASE_SECS = 30
# What takes longer hangs: the machine may be slow, and busy.
_ENDS_IN_SECS = 600
# JDK 17 shuts what Hoxton's XStream and Gson reach into.
HOXTON_OPTIONS = tuple(
    f"--add-opens={module}=ALL-UNNAMED"
    for module in (
        "java.base/java.util",
        "java.base/java.lang",
        "java.base/java.lang.reflect",
        "java.base/java.text",
        "java.desktop/java.awt.font",
    )
)
SMALL_JVM = ("-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


@dataclass(frozen=True)
class Kind:
    """A client library in one of its ways of use.

    ``command`` gives the words before the common arguments, building what they need. ``defects``
    holds, by operation, what keeps this client from doing as the others do; the operation is then
    not required. ``tool`` is the program that building or running needs.
    """

    name: str
    title: str
    variant: str
    command: Callable[[], Sequence[str]]
    tool: str
    defects: dict[str, str] = field(default_factory=dict)


def built(name: str, folder: Path, build: Callable[[Path], Path]) -> Path:
    """What a build makes of a copy of the folder, from the cache where nothing has changed."""
    digest = hashlib.sha256()
    ignored = shutil.ignore_patterns("target*", "node_modules", "__pycache__")
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside = file.relative_to(folder)
        if not any(ignored("", [part]) for part in inside.parts):
            digest.update(str(inside).encode() + b"\0" + file.read_bytes())
    kept = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it
        work = CACHE / f"build-{name}"
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        if not kept.exists():
            shutil.copytree(folder, work, ignore=ignored)
            try:
                build(work).rename(kept)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return kept


def built_jar(folder: Path, pom: str = "pom.xml") -> Path:
    """The runnable jar of a Maven project."""

    def build(work: Path) -> Path:
        command = ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", pom, "package"]
        subprocess.run(command, cwd=work, check=True, timeout=1200)
        (jar,) = work.glob("target*/*.jar")
        return jar

    variant = pom.removesuffix(".xml").removeprefix("pom").lstrip("-")
    return built("-".join(filter(None, (folder.name, variant))), folder, build)


def _node() -> Sequence[str]:
    def build(work: Path) -> Path:
        command = ["npm", "ci", "--no-audit", "--no-fund", "--omit=dev", "--silent"]
        subprocess.run(command, cwd=work, check=True, timeout=600)
        return work

    return "node", str(built("node", FOLDER / "node", build) / "client.js")


def _fargo() -> Sequence[str]:
    def build(work: Path) -> Path:
        subprocess.run(["go", "build", "-o", "program", "."], cwd=work, check=True, timeout=600)
        return work / "program"

    return (str(built("fargo", FOLDER / "fargo", build)),)


def _spring(pom: str, *options: str) -> Callable[[], Sequence[str]]:
    return lambda: (
        *("java", *SMALL_JVM, *options, "-jar"),
        str(built_jar(FOLDER / "spring", f"pom-{pom}.xml")),
    )


def _netflix() -> Sequence[str]:
    return ("java", *SMALL_JVM, "-jar", str(built_jar(FOLDER / "netflix")))


def _python() -> Sequence[str]:
    return sys.executable, str(FOLDER / "python" / "client.py")


_JERSEY_404 = (
    "Netflix's Jersey transports cannot read the JSON page that a genuine Spring server sends "
    "with a heartbeat's 404, and never register again"
)
_JERSEY = {"restart": _JERSEY_404, "failover": _JERSEY_404}
KINDS = (
    Kind(
        "python",
        "py-eureka-client 0.13",
        "json",
        _python,
        "python3",
        {
            "one full fetch": "a new application in a delta makes it fetch everything again",
            "failover": "its lock is not re-entrant; a full fetch during a move may hang it",
            "cancel": "where a move has hung it, it cannot say goodbye any more",
        },
    ),
    Kind(
        "spring-hoxton",
        "Spring Cloud Hoxton, Ribbon, Jersey 1",
        "ribbon",
        _spring("hoxton", *HOXTON_OPTIONS),
        "mvn",
        _JERSEY,
    ),
    Kind(
        "spring-2025.0-resttemplate",
        "Spring Cloud 2025.0, RestTemplate",
        "resttemplate",
        _spring("2025.0"),
        "mvn",
    ),
    Kind(
        "spring-2025.0-restclient",
        "Spring Cloud 2025.0, RestClient",
        "restclient",
        _spring("2025.0"),
        "mvn",
    ),
    Kind(
        "spring-2025.0-webclient",
        "Spring Cloud 2025.0, WebClient",
        "webclient",
        _spring("2025.0"),
        "mvn",
    ),
    Kind(
        "spring-2025.0-jersey3",
        "Spring Cloud 2025.0, Jersey 3",
        "jersey3",
        _spring("2025.0"),
        "mvn",
        _JERSEY,
    ),
    Kind(
        "spring-2025.1",
        "Spring Cloud 2025.1 on Boot 4, RestClient",
        "restclient",
        _spring("2025.1"),
        "mvn",
    ),
    Kind("netflix", "Netflix eureka-client 2.0.5, Jersey 3", "plain", _netflix, "mvn", _JERSEY),
    Kind("ribbon", "Netflix Ribbon 2.7 on eureka-client 2.0.5", "ribbon", _netflix, "mvn", _JERSEY),
    Kind("node", "eureka-js-client 4.5", "json", _node, "npm"),
    Kind(
        "fargo-xml",
        "fargo 1.4, XML",
        "xml",
        _fargo,
        "go",
        {
            "one full fetch": "it knows no delta fetches",
        },
    ),
    Kind(
        "fargo-json",
        "fargo 1.4, JSON",
        "json",
        _fargo,
        "go",
        {
            "one full fetch": "it knows no delta fetches",
        },
    ),
)


def named(wanted: str) -> list[Kind]:
    """The kinds of a comma list of names or beginnings of names, or ``all`` or ``none``.

    ``ValueError`` for a name that no kind has.
    """
    if wanted in ("", "none"):
        return []
    if wanted == "all":
        return list(KINDS)
    found: list[Kind] = []
    for name in wanted.split(","):
        matching = [kind for kind in KINDS if kind.name.startswith(name.strip())]
        if not matching:
            raise ValueError(f"no client {name!r}; there are {', '.join(k.name for k in KINDS)}")
        found += [kind for kind in matching if kind not in found]
    return found


def free_port() -> int:
    """A port that nobody listens on, for a program that is started a moment later.

    Taken from below the ports that the system gives to outgoing connections: one that the system
    chose itself may be some connection's own by the time the program asks for it.
    """
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Program:
    """A running client program."""

    def __init__(
        self, kind: Kind, bases: Sequence[str], app: str, instance_id: str, folder: Path
    ) -> None:
        self.kind = kind
        self.app = app
        self.id = instance_id
        self.port = free_port()
        self._log = folder / f"{instance_id.replace(':', '-')}.log"
        arguments = [",".join(bases), app, instance_id, str(self.port), kind.variant]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [*kind.command(), *arguments], stdout=out, stderr=out, start_new_session=True
            )

    def get(self, path: str, timeout: float = 10) -> tuple[int, str]:
        """Ask the program; status 0 where it does not answer."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=timeout
            ) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")
        except OSError:
            return 0, ""

    def instances(self, service: str) -> list[str]:
        """The ids that it would use of a service; nothing where it does not answer."""
        status, body = self.get(f"/instances/{service}")
        return sorted(json.loads(body)) if status == 200 else []

    def chosen(self, service: str, tries: int = 12) -> set[str]:
        """Who answered a number of calls made through its load balancer."""
        answers = [self.get(f"/choose/{service}") for _ in range(tries)]
        return {body if status == 200 else f"status {status}" for status, body in answers}

    def is_ready(self) -> bool:
        """Whether it answers; ``ChildProcessError`` with the end of its log where it has ended."""
        if self._process.poll() is not None:
            raise ChildProcessError(f"{self.kind.name} ended: {self.log()[-1500:]}")
        return self.get("/whoami", timeout=2) == (200, self.id)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill9(self) -> float:
        """Kill it at once; the moment of it (monotonic seconds)."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=_ENDS_IN_SECS)
        return time.monotonic()

    def stop(self) -> None:
        """Ask it to stop, which makes it deregister; ``TimeoutExpired`` where it does not."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill9()
