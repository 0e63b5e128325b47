"""What is left in memory and on the disk of storms that list next to nothing.

    python bench/storms.py [--only large,cycles,applications] [--cycles 1000000]

``large``: one client registers one instance of 1 MiB again 38 times a second, for a minute.
``cycles``: instances of 1 KB are registered and cancelled, each under an id of its own.
``applications``: 60,000 applications are registered, fetched and cancelled.
Real servers; the largest worker and the folder are measured.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.servers import JSON, RegistryServer, instance_body

MIB = 1024 * 1024
PIPELINED = 64


def memory_mib(server: RegistryServer) -> int:
    """The largest worker's resident memory."""
    largest = 0
    for pid in server.worker_pids():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                largest = max(largest, int(line.split()[1]))
    return largest // 1024


def disk_mib(server: RegistryServer, name: str = "**/*") -> float:
    """What the store's files take, or some of them."""
    found = (path.stat() for path in (server.folder / "store").glob(name) if path.is_file())
    return round(sum(status.st_blocks * 512 for status in found) / MIB, 1)


def report(server: RegistryServer, what: str) -> None:
    print(
        f"{what}: {memory_mib(server)} MiB in the largest worker, {disk_mib(server)} MiB on the "
        f"disk, {disk_mib(server, 'checkpoint.mdb')} MiB the checkpoint",
        flush=True,
    )


def send_all(server: RegistryServer, requests: Iterable[bytes]) -> None:
    """Requests whose answers have no body, some at a time on one connection."""
    remaining = iter(requests)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        while batch := list(islice(remaining, PIPELINED)):
            connection.sendall(b"".join(batch))
            received = b""
            while received.count(b"\r\n\r\n") < len(batch):
                more = connection.recv(65_536)
                assert more, received
                received += more
            assert received.count(b" 204 ") + received.count(b" 200 ") == len(batch), received


def register(app: str, instance_id: str, **fields: object) -> bytes:
    body = instance_body(app, instance_id, **fields).encode()
    head = f"POST /eureka/apps/{app} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def cancel(app: str, instance_id: str) -> bytes:
    return f"DELETE /eureka/apps/{app}/{instance_id} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def large(server: RegistryServer, _: int) -> None:
    request = register("LARGE", "large:1", metadata={"pad": "x" * 1_040_000})
    begun = time.monotonic()
    for number in range(38 * 60):
        time.sleep(max(0.0, begun + number / 38 - time.monotonic()))
        send_all(server, [request])
    report(server, f"38/s of 1 MiB in {time.monotonic() - begun:.0f} s")


def cycles(server: RegistryServer, count: int) -> None:
    pad = {"pad": "x" * 400}

    def requests() -> Iterable[bytes]:
        for number in range(count):
            yield register("CYCLES", f"i:{number}", metadata=pad)
            yield cancel("CYCLES", f"i:{number}")

    begun = time.monotonic()
    send_all(server, requests())
    report(server, f"{count:,} cycles in {time.monotonic() - begun:.0f} s")
    time.sleep(60)
    report(server, "a minute later")
    send_all(server, [register("ONE", "one:1")])
    time.sleep(10)
    report(server, "after one more registration")


def applications(server: RegistryServer, _: int) -> None:
    report(server, "before")
    count = 60_000
    send_all(server, (register(f"A{n}", f"i:{n}") for n in range(count)))
    for accept in ("application/json", "application/xml"):
        for _ in range(4):
            server.eureka("GET", "/apps", None, JSON | {"Accept": accept})
    report(server, f"{count:,} applications")
    send_all(server, (cancel(f"A{n}", f"i:{n}") for n in range(count)))
    report(server, "cancelled")
    time.sleep(240)
    assert json.loads(server.eureka("GET", "/apps", None, JSON).body)
    report(server, "four minutes later")


def main() -> None:
    parts = {"large": (large, 4), "cycles": (cycles, 4), "applications": (applications, 1)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--cycles", type=int, default=1_000_000)
    options = parser.parse_args()
    for name in options.only.split(","):
        part, workers = parts[name]
        with (
            tempfile.TemporaryDirectory() as folder,
            RegistryServer(Path(folder), workers=workers) as server,
        ):
            print(f"{name}, {workers} workers", flush=True)
            part(server, options.cycles)


if __name__ == "__main__":
    main()
