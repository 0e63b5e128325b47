"""The native API and accounts with real processes: Spring clients, a thousand watchers, TLS."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)
from werkzeug.security import generate_password_hash

from conformance.case import Session, Target
from conformance.documents import Form
from conformance.follower import Follower
from conformance.programs import Kind, Program, named
from tests.servers import HANG_SECS, JSON, RegistryServer, instance_body, send, wait_until

API = "/api/v1"
WATCHERS = 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path) as running:
        yield running


def register(server: RegistryServer, service: str, port: int, **fields: Any) -> str:
    document = {"service_name": service, "endpoint": {"type": "http", "value": f"localhost:{port}"}}
    reply = server.send("POST", f"{API}/instances", json.dumps(document | fields), JSON)
    assert reply.status == 201, reply
    return str(reply.json()["id"])


def serve(text: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


def started(
    kind: str, base: str, instance_id: str, folder: Path, options: tuple[str, ...] = ()
) -> Program:
    (found,) = named(kind)

    def command() -> list[str]:
        java, *rest = found.command()
        return [java, *options, *rest]

    optioned = Kind(found.name, found.title, found.variant, command, found.tool)
    return Program(optioned, [base], instance_id.split(":")[0], instance_id, folder)


@pytest.mark.programs
@pytest.mark.slow
def test_a_spring_client_balances_over_natively_registered_instances(
    server: RegistryServer, tmp_path: Path
) -> None:
    servers = {name: serve(name) for name in ("one", "two")}
    ids = {n: register(server, "Ratings", s.server_port, ttl=600) for n, s in servers.items()}
    client = started("spring-2025.0-resttemplate", server.base, "caller:1", tmp_path)
    try:
        wait_until(client.is_ready, "the client")
        wait_until(lambda: client.chosen("ratings") == {"one", "two"}, "both to be called")
        assert client.instances("ratings") == sorted(ids.values())
        server.send("PUT", f"{API}/instances/{ids['two']}", '{"status": "OUT_OF_SERVICE"}', JSON)
        wait_until(lambda: client.chosen("ratings") == {"one"}, "one to be drained")
        server.send("PUT", f"{API}/instances/{ids['two']}", '{"status": "canary"}', JSON)
        wait_until(lambda: client.chosen("ratings") == {"one", "two"}, "it back")
        server.send("DELETE", f"{API}/instances/{ids['one']}")
        wait_until(lambda: client.chosen("ratings") == {"two"}, "one to be gone")
        listed = server.send("GET", f"{API}/services/caller").json()["instances"]
        assert [i["id"] for i in listed] == ["caller:1"]
    finally:
        client.end()
        for made in servers.values():
            made.shutdown()


@pytest.mark.slow
def test_two_namespaces_under_load_never_mix(
    tmp_path: Path, stored: Callable[[Path], dict[str, str]]
) -> None:
    """A delta follower in each, while both change as fast as they can through all workers."""
    env = {"REGISTRY_AUTH": "trusted", **stored(tmp_path)}
    with RegistryServer(tmp_path, env=env) as server:
        errors: list[str] = []
        done = threading.Event()
        written, followed = Counter[str](), Counter[str]()

        def register_in(namespace: str, body: str, headers: dict[str, str]) -> int:
            path = f"/apps/APP-{namespace}"
            return server.settled(lambda: server.eureka("POST", path, body, headers).status)

        def write(namespace: str, seed: int) -> None:
            headers = JSON | {"Authorization": f"Bearer {namespace}"}
            number = 0
            while not done.is_set():
                number += 1
                name = f"{namespace}-{seed}-{number % 20}"
                body = instance_body(f"APP-{namespace}", name, lastDirtyTimestamp=str(number))
                status = register_in(namespace, body, headers)
                if status != 204:
                    errors.append(f"{namespace}: {status}")
                written[f"{namespace}-{seed}"] += 1
                if number % 3 == 0:
                    server.eureka("DELETE", f"/apps/APP-{namespace}/{name}", None, headers)

        def follow(namespace: str) -> None:
            session = Session(Target(f"{server.base}/n/{namespace}"))
            follower = Follower(session, Form.JSON)
            follower.fetch_all()
            while not done.is_set():
                follower.fetch_delta()
                followed[namespace] += 1
                strange = [k for k in follower.instances if k[0] != f"APP-{namespace.upper()}"]
                if strange:
                    errors.append(f"{namespace} saw {strange}")
            if follower.full_fetches != 1:
                errors.append(f"{namespace}: {follower.mismatches[:3]}")
            session.close()

        threads = []
        for namespace in ("red", "blue"):
            threads.append(threading.Thread(target=follow, args=(namespace,)))
            threads += [threading.Thread(target=write, args=(namespace, n)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        wait_until(
            lambda: (
                errors
                or (
                    (len(written) == 4 and min(written.values()) > 300)
                    and (len(followed) == 2 and min(followed.values()) > 50)
                )
            ),
            "enough to be written, and followed",
        )
        done.set()
        for thread in threads:
            thread.join()
        assert errors == []
        # The same after a restart: each in its own again.
        before = ids_in(server, "red")
        server.kill9()
        server.start()
        assert ids_in(server, "red") == before
        assert before
        assert ids_in(server, "green") == []


def ids_in(server: RegistryServer, namespace: str) -> list[str]:
    headers = {"Authorization": f"Bearer {namespace}"}
    listed = server.send("GET", f"{API}/instances?fields=id", None, headers).json()["instances"]
    return sorted(i["id"] for i in listed)


@pytest.fixture
def on_the_loop(tmp_path: Path) -> Iterator[RegistryServer]:
    """What follows is a promise of the event-loop worker's, whichever serves the rest."""
    env = {"WORKER_CLASS": "eureka_http.worker.EventLoopWorker"}
    with RegistryServer(tmp_path, env=env) as running:
        yield running


@pytest.mark.slow
def test_a_thousand_watchers_cost_no_thread_and_hear_of_each_change(
    on_the_loop: RegistryServer,
) -> None:
    server = on_the_loop
    first = register(server, "first", 1)
    revision = server.send("GET", f"{API}/instances/{first}").json()["revision"]
    memory = server.pss_bytes()
    threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in server.worker_pids())
    request = f"GET {API}/watch?since={revision} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    watchers = []
    for _ in range(WATCHERS):
        watcher = socket.create_connection(("127.0.0.1", server.port))
        watcher.sendall(request)
        watchers.append(watcher)
    selector = selectors.DefaultSelector()
    for watcher in watchers:
        received = b""
        while b"still here" not in received:
            more = watcher.recv(4096)
            assert more, received
            received += more
        watcher.setblocking(False)
        selector.register(watcher, selectors.EVENT_READ)
    grown = server.pss_bytes() - memory
    more_threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in server.worker_pids())
    for number in range(5):
        register(server, f"changed-{number}", 2)
        heard: dict[int, bytes] = {}
        while sum(f"changed-{number}".encode() in told for told in heard.values()) < WATCHERS:
            ready = selector.select(HANG_SECS)
            assert ready, f"nothing more comes, and {len(heard)} have heard"
            for key, _ in ready:
                heard[key.fd] = heard.get(key.fd, b"") + key.fileobj.recv(65536)  # type: ignore[union-attr]
    selector.close()
    for watcher in watchers:
        watcher.close()
    assert more_threads - threads <= 2 * 8  # the pools of two workers, and nothing else
    assert grown / WATCHERS < 64 * 1024


def test_an_id_may_have_a_line_feed(server: RegistryServer) -> None:
    """No such instance is told as any other is, whoever's door the request came through."""
    reply = send(server.port, "PUT", f"{API}/instances/%C2%87%0C%0B%0A6sZ", '{"tags": []}', JSON)
    assert (reply.status, reply.headers["content-type"]) == (410, "application/problem+json")


@pytest.mark.slow
def test_the_description_holds_against_generated_requests(tmp_path: Path) -> None:
    """Schemathesis plays what the OpenAPI document allows, and what it does not.

    How long metadata may be as JSON cannot be said in a schema, so here it may be long. No lease
    ends meanwhile, however slow the machine is.
    """
    ttl = dict.fromkeys(("REGISTRY_MIN_TTL", "REGISTRY_DEFAULT_TTL", "REGISTRY_MAX_TTL"), "3600")
    with RegistryServer(tmp_path, env={"REGISTRY_MAX_METADATA_BYTES": "4096", **ttl}) as server:
        _play_the_description(server)


def _play_the_description(server: RegistryServer) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).parent / "schemathesis.toml"), "run"),
            *(f"{server.root}{API}/openapi.json", "--checks", "all", "--max-examples", "40"),
            # A watch without end would be read to its end; lines of JSON it cannot write
            # (tests/test_transfer.py does).
            *(
                "--generation-deterministic",
                *("--exclude-path", "/watch", "--exclude-path", "/import"),
                "--phases",
                "examples,coverage,fuzzing,stateful",
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.mark.programs
@pytest.mark.slow
def test_a_spring_client_speaks_tls_with_its_own_certificate(
    tmp_path: Path, certificates: Path
) -> None:
    env = {
        "TLS_CERT_FILE": str(certificates / "server.pem"),
        "TLS_KEY_FILE": str(certificates / "server.key"),
        "TLS_CLIENT_CA_FILE": str(certificates / "ca.pem"),
        "REGISTRY_REQUIRE_HTTPS": "true",
    }
    server = RegistryServer(tmp_path, env=env)
    stores = {name: tmp_path / f"{name}.p12" for name in ("key", "trust")}
    stores["key"].write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"client",
            load_pem_private_key((certificates / "client.key").read_bytes(), None),
            x509.load_pem_x509_certificate((certificates / "client.pem").read_bytes()),
            None,
            BestAvailableEncryption(b"changeit"),
        )
    )
    # Which certificates of a store are trusted, the JDK's own tool alone says.
    subprocess.run(
        [
            *("keytool", "-importcert", "-noprompt", "-alias", "ca", "-storetype", "PKCS12"),
            *("-file", str(certificates / "ca.pem"), "-keystore", str(stores["trust"])),
            *("-storepass", "changeit"),
        ],
        check=True,
        capture_output=True,
    )
    options = (
        "-Deureka.client.tls.enabled=true",
        f"-Deureka.client.tls.key-store=file:{stores['key']}",
        "-Deureka.client.tls.key-store-type=PKCS12",
        "-Deureka.client.tls.key-store-password=changeit",
        "-Deureka.client.tls.key-password=changeit",
        f"-Deureka.client.tls.trust-store=file:{stores['trust']}",
        "-Deureka.client.tls.trust-store-type=PKCS12",
        "-Deureka.client.tls.trust-store-password=changeit",
    )
    server.launch()
    base = f"https://localhost:{server.port}/eureka"
    client = None
    try:
        wait_until(lambda: "Booting worker" in server.log(), "the server")
        client = started("spring-2025.0-restclient", base, "secure:1", tmp_path, options)
        wait_until(client.is_ready, "the client")
        wait_until(lambda: client.instances("secure") == ["secure:1"], "it to see itself")
        with pytest.raises(OSError, match=r".*"):
            send(server.port, "GET", "/eureka/apps")  # plain HTTP finds nobody there
    finally:
        if client is not None:
            client.end()
        server.kill9()


@pytest.mark.programs
@pytest.mark.slow
def test_a_spring_client_with_a_password_reaches_its_namespace_and_no_log_tells_it(
    tmp_path: Path,
) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann red user {generate_password_hash('s3same', 'pbkdf2:sha256:1000')}\n")
    env = {"REGISTRY_AUTH": "basic", "REGISTRY_USERS_FILE": str(users), "LOG_LEVEL": "debug"}
    with RegistryServer(tmp_path, env=env) as server:
        base = server.base.replace("://", "://ann:s3same@")
        client = started("spring-2025.0-resttemplate", base, "mine:1", tmp_path)
        by_path = started(
            "spring-2025.0-webclient", f"{server.base}/n/ann:s3same", "two:1", tmp_path
        )
        try:
            for program in (client, by_path):
                wait_until(program.is_ready, "the clients")
            wait_until(lambda: client.instances("two") == ["two:1"], "it to see the other")
            assert server.eureka("GET", "/apps", None, JSON).status == 401
        finally:
            client.end()
            by_path.end()
        assert "s3same" not in server.log()


def test_a_token_in_a_path_is_masked_in_the_access_log(tmp_path: Path) -> None:
    env = {"REGISTRY_AUTH": "trusted", "ACCESS_LOG": "true"}
    for worker in ("eureka_http.worker.EventLoopWorker", "gthread"):
        folder = tmp_path / worker
        folder.mkdir()
        with RegistryServer(folder, env=env | {"WORKER_CLASS": worker}) as server:
            assert server.send("GET", "/eureka/n/secret-name/apps").status == 200
            wait_until(lambda s=server: "/eureka/n/…/apps" in s.log(), "the line")
            assert "secret-name" not in server.log()
