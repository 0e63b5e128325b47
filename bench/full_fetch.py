"""What a full fetch costs, what the processes weigh, and how soon a full store is ready.

    python bench/full_fetch.py [INSTANCES …]

Two parts. In process: the microseconds to make the answer to ``GET apps``, unchanged and with one
change between two requests. As served: gunicorn with two workers, its memory (shared pages counted
once), the time from start to ready with everything stored, and whole fetches over loopback.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from eureka_compat.encoded import EncodedAnswers
from eureka_compat.negotiation import Form
from registry import DEFAULT_NAMESPACE, Registry, RegistrySettings, SystemClock
from registry.stores.memory import MemoryStore
from registry.testing import sample_instance
from tests.servers import JSON, RegistryServer, instance_body, send

ROUNDS = 15
URLS = {
    "homePageUrl": "http://host.local:8080/",
    "statusPageUrl": "http://host.local:8080/actuator/info",
    "healthCheckUrl": "http://host.local:8080/actuator/health",
}


def spread(values: list[float], unit: str = "ms") -> str:
    """Minimum, median and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f} {unit}"


def timed(work: Callable[[], object], before: Callable[[], object] | None = None) -> str:
    """Milliseconds of several rounds, after one that is not counted."""
    values = []
    for number in range(ROUNDS + 1):
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        if number:
            values.append((time.perf_counter() - start) * 1000)
    return spread(values)


def in_process(count: int) -> None:
    """The cost of making one answer."""
    store, clock = MemoryStore(), SystemClock()
    registry = Registry(store, clock, RegistrySettings()).in_namespace(DEFAULT_NAMESPACE)
    for number in range(count):
        registry.register(sample_instance(f"APP{number // 10}", f"host-{number}:app:8080"))
    answers = EncodedAnswers(registry)
    turn = iter(range(1_000_000))

    def change() -> None:
        instance_id = f"host-{next(turn) % count}:app:8080"
        number = int(instance_id.split("-")[1].split(":")[0])
        registry.register(sample_instance(f"APP{number // 10}", instance_id))

    for form in (Form.JSON, Form.XML):
        plain = lambda form=form: answers.applications(form).plain()  # noqa: E731
        zipped = lambda form=form: answers.applications(form).gzipped()  # noqa: E731
        print(f"| {count:,} | {form.value}, unchanged | {timed(plain)} |")
        print(f"| {count:,} | {form.value}, one change | {timed(plain, change)} |")
        print(f"| {count:,} | {form.value} gzip, unchanged | {timed(zipped)} |")
        print(f"| {count:,} | {form.value} gzip, one change | {timed(zipped, change)} |")


def as_served(count: int) -> None:
    """The whole server with so many instances in its store."""
    with tempfile.TemporaryDirectory() as folder, RegistryServer(Path(folder)) as server:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        start = time.perf_counter()
        for number in range(count):
            app = f"APP{number // 10}"
            body = instance_body(app, f"host-{number}:app:8080", **URLS)
            reply = send(server.port, "POST", f"/eureka/apps/{app}", body, JSON, connection)
            assert reply.status == 204
        rate = count / (time.perf_counter() - start)
        print(f"| {count:,} | registrations on one connection | {rate:,.0f} /s |")
        connection.close()
        starts = []
        for _ in range(5):
            server.stop()
            start = time.perf_counter()
            server.start()
            starts.append(time.perf_counter() - start)
        print(f"| {count:,} | start to ready | {spread(starts, 's')} |")
        accepts = {"JSON": "application/json", "XML": "application/xml"}
        for name, accept in accepts.items():
            for encoding in ("identity", "gzip"):
                headers = {"Accept": accept, "Accept-Encoding": encoding}

                def fetch(headers: dict[str, str] = headers) -> None:
                    assert server.eureka("GET", "/apps", None, headers).status == 200

                for _ in range(6):
                    fetch()  # both workers have made it once
                body = server.eureka("GET", "/apps", None, headers).body
                size = len(body) / 1024
                whole = len(gzip.decompress(body) if encoding == "gzip" else body) / count
                print(
                    f"| {count:,} | fetch {name} {encoding} ({size:,.0f} KiB, {whole:,.0f} bytes an"
                    f" instance) | {timed(fetch)} |"
                )
        print(f"| {count:,} | memory, all processes (PSS) | {server.pss_bytes() / 2**20:.0f} MiB |")


def main() -> None:
    """Print a Markdown table."""
    print("| instances | what | min / median / max |\n| --- | --- | --- |")
    for count in [int(argument) for argument in sys.argv[1:]] or [1_000, 10_000]:
        in_process(count)
        as_served(count)


if __name__ == "__main__":
    main()
