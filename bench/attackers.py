"""What clients that mean harm do to the heartbeats of the others.

    python bench/attackers.py [--only NAME …] [--connections 4 50] [--workers 1] [--write FILE]

One core serves. On the other, twenty-four clients renew their leases, each ten times a second, and
attackers do one thing for some seconds, over so many connections, as fast as they can. The time of
a heartbeat is counted from when it was due. Where it may, the server is preferred to whatever else
runs on this machine, and whoever renews to that. ``--root`` measures another checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.beside_genuine import ASKING, SERVING
from conformance.programs import free_port
from tests.servers import instance_body, wait_until

ROOT = Path(__file__).parent.parent
INSTANCES = 1000
BEATING, EACH_SECS = 24, 0.1
HOST = "Host: bench\r\n"
MEGABYTE = 1024 * 1024
BEGIN, END = "<!-- attackers: begin -->", "<!-- attackers: end -->"

_number = itertools.count()


def head(line: str, fields: str = "") -> bytes:
    return f"{line} HTTP/1.1\r\n{HOST}{fields}\r\n".encode()


def posting(path: str, length: int | None = None, fields: str = "") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return head(f"POST {path}", f"Content-Type: application/json\r\n{fields}{framing}\r\n")


@dataclass
class Target:
    """Where an attacker connects to."""

    port: int
    tls: ssl.SSLContext | None = None
    # Fresh for each attacker.
    number: int = field(default_factory=lambda: next(_number))

    def connect(self, buffer: int = 0) -> socket.socket:
        plain = socket.socket()
        plain.settimeout(5)
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.connect(("127.0.0.1", self.port))
        return plain if self.tls is None else self.tls.wrap_socket(plain)

    def say(self, *parts: bytes, again: bytes = b"") -> None:
        """Send the parts, then the same again without end, and read nothing."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            while again:
                connection.sendall(again)

    def ask(self, requests: bytes, answers: int = 1) -> None:
        """Send requests, and read as many answers, again and again."""
        with self.connect() as connection:
            while True:
                sender = None
                if answers > 1:
                    sender = threading.Thread(target=_quietly, args=(connection.sendall, requests))
                    sender.start()
                else:
                    connection.sendall(requests)
                self.read(connection, answers)
                if sender is not None:
                    sender.join()

    def read(self, connection: socket.socket, answers: int) -> None:
        """Read answers to their ends, whatever they are."""
        rest = b""
        for _ in range(answers):
            while b"\r\n\r\n" not in rest:
                rest += _some(connection)
            fields, _, rest = rest.partition(b"\r\n\r\n")
            lower = fields.lower()
            length = 0
            if b"content-length:" in lower:
                length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0])
            elif b"chunked" in lower:
                while not rest.endswith(b"0\r\n\r\n"):
                    rest += _some(connection)
                rest = b""
            if b"connection: close" in lower:
                raise ConnectionError
            while len(rest) < length:
                length -= len(rest)
                rest = _some(connection)
            rest = rest[length:]


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(MEGABYTE)
    if not data:
        raise ConnectionError
    return data


def _quietly(function: Callable[[bytes], None], data: bytes) -> None:
    with contextlib.suppress(OSError):
        function(data)


# The attacks. Each is done again whenever it ends, for as long as it is measured.

Attack = Callable[[Target], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


def batch(items: int) -> bytes:
    """A peer's batch of heartbeats for nobody."""
    item = {"appName": "NOBODY", "id": "nobody", "lastDirtyTimestamp": 1, "action": "Heartbeat"}
    return json.dumps({"replicationList": [item] * items}).encode()


BATCH = "/eureka/peerreplication/batch"


@attack
def tiny_chunks_for_nowhere(target: Target) -> None:
    target.say(posting("/nope"), again=b"1\r\nx\r\n" * 10_000)


@attack
def tiny_chunks(target: Target) -> None:
    target.say(posting(BATCH), again=b"1\r\nx\r\n" * 10_000)


@attack
def small_chunks(target: Target) -> None:
    target.say(posting(BATCH), again=b"10\r\n0123456789abcdef\r\n" * 5_000)


@attack
def long_chunk_extensions(target: Target) -> None:
    target.say(posting(BATCH), again=(b"10;" + b"e" * 4000 + b"\r\n0123456789abcdef\r\n") * 50)


@attack
def large_chunks(target: Target) -> None:
    target.say(posting(BATCH), again=b"100000\r\n" + bytes(MEGABYTE) + b"\r\n")


@attack
def long_bodies_for_nowhere(target: Target) -> None:
    target.say(posting("/nope", 67_000_000), bytes(66_999_999))
    time.sleep(1)


@attack
def long_bodies_withheld(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(posting(BATCH, 4_000_000) + bytes(3_999_999))
        time.sleep(0.5)


@attack
def bodies_where_none_belongs(target: Target) -> None:
    line = head("DELETE /eureka/apps/NOBODY/x", "Content-Length: 65000\r\n")
    target.ask(line + bytes(65_000))


@attack
def single_bytes(target: Target) -> None:
    with target.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in posting(BATCH, 1_000_000) + bytes(100_000):
            connection.send(bytes([byte]))


@attack
def pipelined_requests(target: Target) -> None:
    target.ask(head("GET /eureka/apps/NOBODY/x") * 2000, 2000)


@attack
def pipelined_requests_unread(target: Target) -> None:
    target.say(again=head("GET /eureka/apps/delta", "Accept: application/json\r\n") * 2000)


@attack
def pipelined_for_threads(target: Target) -> None:
    target.ask(head("GET /health/live") * 500, 500)


@attack
def pipelined_watches(target: Target) -> None:
    target.ask(head("GET /api/v1/watch?since=x") * 500, 500)


@attack
def lists_read_fast(target: Target) -> None:
    target.ask(head("GET /eureka/apps", "Accept: application/json\r\n"))


@attack
def lists_read_slowly(target: Target) -> None:
    with target.connect(buffer=4096) as connection:
        connection.sendall(head("GET /eureka/apps", "Accept: application/json\r\n") * 200)
        for _ in range(20):
            connection.recv(2048)
            time.sleep(0.05)


@attack
def lists_of_every_kind(target: Target) -> None:
    kinds = ("application/json", "application/xml", "*/*", "text/html, application/json;q=0.{}")
    with target.connect() as connection:
        for number in itertools.count():
            accept = kinds[number % 4].format(number)
            fields = f"Accept: {accept}\r\nX-Number: {target.number}.{number}\r\n"
            path = ("apps", "apps/delta", f"vips/app{number % 100}", f"apps/APP{number % 100}")
            connection.sendall(head(f"GET /eureka/{path[number % 4]}", fields))
            target.read(connection, 1)


@attack
def native_lists(target: Target) -> None:
    with target.connect() as connection:
        for number in itertools.count():
            query = f"status=ALL&fields=id,tags,metadata&tags={target.number}.{number}"
            connection.sendall(head(f"GET /api/v1/instances?{query}"))
            target.read(connection, 1)


@attack
def native_lists_whole(target: Target) -> None:
    target.ask(head("GET /api/v1/instances?status=ALL"))


@attack
def never_the_same_head(target: Target) -> None:
    with target.connect() as connection:
        for number in itertools.count():
            fields = f"X-Number: {target.number}.{number}\r\n{'X-Long: ' + 'a' * 7000}\r\n"
            connection.sendall(head(f"GET /eureka/apps/NOBODY{number}", fields))
            target.read(connection, 1)


@attack
def many_fields(target: Target) -> None:
    with target.connect() as connection:
        for number in itertools.count():
            fields = "".join(f"X-{n}-{number}: {'v' * 8000}\r\n" for n in range(80))
            connection.sendall(head("GET /eureka/apps/delta", fields))
            target.read(connection, 1)


@attack
def heads_without_end(target: Target) -> None:
    target.say(b"GET / HTTP/1.1\r\n" + HOST.encode(), again=b"X-Field: value\r\n" * 4000)


@attack
def long_queries(target: Target) -> None:
    target.ask(head("PUT /eureka/apps/NOBODY/x/metadata?" + "a%20=&" * 1300))


@attack
def unknown_paths(target: Target) -> None:
    with target.connect() as connection:
        for number in itertools.count():
            connection.sendall(head(f"GET /eureka/vips/{target.number}.{number}{'%2F' * 2000}"))
            target.read(connection, 1)


@attack
def nonsense(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        connection.recv(100)


@attack
def connections_without_requests(target: Target) -> None:
    target.connect().close()


@attack
def a_connection_for_each_request(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(head("GET /eureka/apps", "Connection: close\r\n"))
        while connection.recv(MEGABYTE):
            pass


@attack
def batches_of_heartbeats(target: Target) -> None:
    body = batch(40_000)
    target.ask(posting(BATCH, len(body)) + body)


@attack
def batches_of_nothing(target: Target) -> None:
    body = b'{"replicationList":[' + b"0," * 2_000_000 + b"0]}"
    target.ask(posting(BATCH, len(body)) + body)


@attack
def batches_of_registrations(target: Target) -> None:
    info = json.loads(instance_body("ATTACK", f"attack:{target.number}"))["instance"]
    item = {"appName": "ATTACK", "id": info["instanceId"], "action": "Register"}
    items = [item | {"instanceInfo": info}] * 2000
    body = json.dumps({"replicationList": items}).encode()
    target.ask(posting(BATCH, len(body)) + body)


@attack
def deep_json(target: Target) -> None:
    body = b'{"instance":' + b"[" * 1_000_000
    target.ask(posting("/eureka/apps/DEEP", len(body)) + body)


@attack
def deep_xml(target: Target) -> None:
    body = b"<instance>" + b"<a>" * 340_000
    kind = "Content-Type: application/xml\r\n"
    target.ask(head("POST /eureka/apps/DEEP", f"{kind}Content-Length: {len(body)}\r\n") + body)


@attack
def wide_xml(target: Target) -> None:
    body = b"<instance><metadata>" + b"<a>b</a>" * 120_000 + b"</metadata></instance>"
    kind = "Content-Type: application/xml\r\n"
    target.ask(head("POST /eureka/apps/WIDE", f"{kind}Content-Length: {len(body)}\r\n") + body)


@attack
def large_registrations(target: Target) -> None:
    extra = {f"key{n}": "v" * 90 for n in range(9_000)}
    body = instance_body("ATTACK", f"attack:{target.number}", metadata=extra).encode()
    target.ask(posting("/eureka/apps/ATTACK", len(body)) + body)


@attack
def gzip_bombs(target: Target) -> None:
    body = gzip.compress(bytes(500 * MEGABYTE))
    zipped = "Content-Encoding: gzip\r\n"
    target.ask(posting("/eureka/apps/BOMB", len(body), zipped) + body)


@attack
def gzip_batches(target: Target) -> None:
    body = gzip.compress(batch(40_000))
    zipped = "Content-Encoding: gzip\r\n"
    target.ask(posting(BATCH, len(body), zipped) + body)


@attack
def registrations_again_and_again(target: Target) -> None:
    body = instance_body("ATTACK", f"attack:{target.number}").encode()
    target.ask((posting("/eureka/apps/ATTACK", len(body)) + body) * 100, 100)


@attack
def watches_joined_and_left(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(head("GET /api/v1/watch"))
        connection.recv(65536)


@attack
def documents_and_metrics(target: Target) -> None:
    paths = ("/api/v1/openapi.json", "/metrics", "/eureka/status", "/health/ready")
    with target.connect() as connection:
        for path in itertools.cycle(paths):
            connection.sendall(head(f"GET {path}"))
            target.read(connection, 1)


@attack
def tls_handshakes(target: Target) -> None:
    target.connect().close()


@attack
def tls_handshakes_resumed_by_nobody(target: Target) -> None:
    """All at the same time: whoever has connected waits for the others."""
    made = []
    with contextlib.suppress(OSError):
        for _ in range(20):
            plain = socket.create_connection(("127.0.0.1", target.port), 5)
            made.append(plain)
        assert target.tls is not None
        for plain in made:
            target.tls.wrap_socket(plain).close()
    for plain in made:
        plain.close()


OVER_TLS = ("tls_handshakes", "tls_handshakes_resumed_by_nobody")


# Measuring


async def beat(port: int, seconds: float, over_tls: bool) -> list[float]:
    """The seconds that each heartbeat took."""
    took: list[float] = []
    context = unverified() if over_tls else None
    connections = [
        await asyncio.open_connection("127.0.0.1", port, ssl=context) for _ in range(BEATING)
    ]
    began = time.perf_counter() + 0.2

    async def client(number: int) -> None:
        reader, writer = connections[number]
        line = f"PUT /eureka/apps/APP{number % 100}/i:{number}?status=UP"
        renewal = head(line, "Accept: application/json\r\n")
        for due in itertools.count():
            when = began + (due + number / BEATING) * EACH_SECS
            if when > began + seconds:
                break
            await asyncio.sleep(max(0.0, when - time.perf_counter()))
            writer.write(renewal)
            answer = await reader.readuntil(b"\r\n\r\n")
            took.append(time.perf_counter() - when)
            assert b" 200 " in answer, answer
        writer.close()

    await asyncio.gather(*(client(number) for number in range(BEATING)))
    return took


def p99_beside(target: Target, seconds: float) -> float:
    """The p99 of heartbeats in a process of their own, in milliseconds."""
    command = [sys.executable, __file__, "--beat", str(target.port), "--seconds", str(seconds)]
    if target.tls is not None:
        command.append("--tls")
    done = subprocess.run(
        ["taskset", "-c", ASKING, *command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: preferred(-19),
    )
    if done.returncode:
        return float("inf")
    return statistics.quantiles(json.loads(done.stdout), n=100)[98] * 1000


@contextlib.contextmanager
def attackers(name: str, target: Target, connections: int) -> Iterator[None]:
    """A process that attacks."""
    command = [sys.executable, __file__, "--attack", name, "--port", str(target.port)]
    command += ["--connections", str(connections), *(["--tls"] if target.tls else [])]
    process = subprocess.Popen(["taskset", "-c", ASKING, *command])
    try:
        time.sleep(1)
        assert process.poll() is None, f"{name} ended by itself"
        yield
    finally:
        process.kill()
        process.wait()


def attack_for_ever(name: str, target: Target, connections: int) -> None:
    def again() -> None:
        own = Target(target.port, target.tls)
        while True:
            with contextlib.suppress(OSError):
                ATTACKS[name](own)

    for _ in range(connections):
        threading.Thread(target=again, daemon=True).start()
    threading.Event().wait()


def preferred(nice: int) -> None:
    """Others on this machine are not what is measured; not everybody may prefer, though."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def serving(root: Path, workers: int, over_tls: bool) -> Iterator[Target]:
    """A server with its instances."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = Target(free_port(), unverified() if over_tls else None)
        env = {
            "HOST": "127.0.0.1",
            "PORT": str(target.port),
            "WORKERS": str(workers),
            "STORE_URL": f"lmdb:{folder / 'store'}",
            "LOG_LEVEL": "error",
        }
        if over_tls:
            make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
            files = [folder / "key.pem", folder / "cert.pem"]
            made = [*make.split(), "-keyout", str(files[0]), "-out", str(files[1])]
            subprocess.run(made, check=True, capture_output=True)
            env |= {"TLS_KEY_FILE": str(files[0]), "TLS_CERT_FILE": str(files[1])}
        process = subprocess.Popen(
            ["taskset", "-c", SERVING, sys.executable, "-m", "gunicorn", "wsgi:app"],
            cwd=root,
            env={**os.environ, **env},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: preferred(-15),
        )
        try:
            wait_until(lambda: _answers(target), "the server")
            fill(target)
            yield target
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _answers(target: Target) -> bool:
    try:
        with target.connect():
            return True
    except OSError:
        return False


def fill(target: Target) -> None:
    items = []
    for number in range(INSTANCES):
        info = json.loads(instance_body(f"APP{number % 100}", f"i:{number}"))["instance"]
        info["leaseInfo"] = {"renewalIntervalInSecs": 30, "durationInSecs": 3600}
        items.append({"appName": info["app"], "id": info["instanceId"], "action": "Register"})
        items[-1]["instanceInfo"] = info
    for some in _by(items, 250):
        body = json.dumps({"replicationList": some}).encode()
        with target.connect() as connection:
            connection.sendall(posting(BATCH, len(body)) + body)
            target.read(connection, 1)


def _by(items: list[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def measure(
    names: Sequence[str], counts: Sequence[int], root: Path, workers: int, seconds: float
) -> Iterator[tuple[str, list[float]]]:
    """For each attack, the p99 without it, and with it over each number of connections."""
    for over_tls in (False, True):
        chosen = [name for name in names if (name in OVER_TLS) is over_tls]
        for name in chosen:
            # Each has a server of its own: what one leaves behind is not the next one's.
            with serving(root, workers, over_tls) as target:
                found = [p99_beside(target, seconds / 2)]
                for count in counts:
                    with attackers(name, target, count):
                        found.append(p99_beside(target, seconds))
            yield name, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--connections", nargs="+", type=int, default=[4, 50])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--write", type=Path, help="put the table between this file's marks")
    parser.add_argument("--beat", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tls", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.beat:
        took = uvloop.run(beat(given.beat, given.seconds, given.tls))
        print(json.dumps(took))
        return
    if given.attack:
        target = Target(given.port, unverified() if given.tls else None)
        attack_for_ever(given.attack, target, given.connections[0])
        return
    columns = [f"p99 with, {count} connections" for count in given.connections]
    lines = ["| attack | p99 without | " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " --- |" * (len(columns) + 1))
    print("\n".join(lines), flush=True)
    for name, found in measure(
        given.only, given.connections, given.root, given.workers, given.seconds
    ):
        cells = " | ".join(f"{each:.1f}" for each in found)
        lines.append(f"| {name.replace('_', ' ')} | {cells} |")
        print(lines[-1], flush=True)
    if given.write is not None:
        text = given.write.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        given.write.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


if __name__ == "__main__":
    main()
