"""A genuine peer, played by the suite: what a server replicates arrives here and is noted.

It keeps what it is told and lists it, as a peer does, so a server that compares finds it in order.
A case may have it answer otherwise about an application of its own.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conformance.documents import hash_code

BASE = "/eureka"
BATCH = f"{BASE}/peerreplication/batch/"
Tree = dict[str, Any]
Replies = Callable[[Tree], Tree | None]
"""What to answer to an item; None for what a peer that has no objection answers."""


@dataclass(frozen=True)
class Told:
    """One item as it arrived, with the request that brought it."""

    item: Tree
    method: str
    path: str
    headers: Mapping[str, str]
    keys: tuple[str, ...]
    """Of the whole body."""

    @property
    def action(self) -> str:
        return str(self.item.get("action"))


class PeerEndpoint:
    """An HTTP server on the loopback that a server under test has among its peers."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """It listens from now on; ``OSError`` where the port is another's."""
        self._lock = threading.Lock()
        self._told: list[Told] = []
        self._listed: dict[tuple[str, str], Tree] = {}
        self._replies: dict[str, Replies] = {}
        self._unavailable: dict[str, int] = {}
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://{host}:{self.port}{BASE}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # What a case asks and decides.

    def told(self, app: str, action: str = "") -> list[Told]:
        """What arrived of an application, in its order, or all of one action."""
        with self._lock:
            return [
                each
                for each in self._told
                if each.item.get("appName") == app.upper() and action in ("", each.action)
            ]

    @contextmanager
    def answering(self, app: str, replies: Replies) -> Iterator[None]:
        """Answer to the items of an application otherwise than in the ordinary way."""
        with self._lock:
            self._replies[app.upper()] = replies
        try:
            yield
        finally:
            with self._lock:
                del self._replies[app.upper()]

    def be_unavailable(self, app: str, times: int) -> None:
        """Answer 503 to so many batches that hold an item of an application."""
        with self._lock:
            self._unavailable[app.upper()] = times

    # What a server does to it.

    def _batch(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        """The answer to a batch; None for 503."""
        document = json.loads(body)
        items: list[Tree] = document["replicationList"]
        with self._lock:
            self._told += [Told(each, method, path, headers, tuple(document)) for each in items]
            for app in {str(each.get("appName")) for each in items}:
                if self._unavailable.get(app, 0):
                    self._unavailable[app] -= 1
                    return None
            return {"responseList": [self._done(each) for each in items]}

    def _done(self, item: Tree) -> Tree:
        app, instance_id = str(item.get("appName")), str(item.get("id"))
        replies = self._replies.get(app)
        reply = None if replies is None else replies(item)
        if reply is not None:
            return reply
        key = app, instance_id
        match item.get("action"):
            case "Register":
                self._listed[key] = item["instanceInfo"]
                return {"statusCode": 200}
            case "Cancel":
                return {"statusCode": 200 if self._listed.pop(key, None) else 404}
        known = self._listed.get(key)
        if known is None:
            return {"statusCode": 404}
        match item.get("action"):
            case "StatusUpdate":
                known |= {"status": item["status"], "overriddenStatus": item["status"]}
            case "DeleteStatusOverride":
                known |= {"status": item["status"], "overriddenStatus": "UNKNOWN"}
        return {"statusCode": 200}

    def _listing(self) -> Tree:
        with self._lock:
            applications: dict[str, list[Tree]] = {}
            for (app, _), instance in self._listed.items():
                applications.setdefault(app, []).append(instance)
            statuses = [str(instance["status"]) for instance in self._listed.values()]
            return {
                "applications": {
                    "versions__delta": "1",
                    "apps__hashcode": hash_code(statuses),
                    "application": [
                        {"name": app, "instance": listed} for app, listed in applications.items()
                    ],
                }
            }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    body = b"".join(parts)
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    return gzip.decompress(body)
                return body

            def do_GET(self) -> None:
                path = self.path.split("?")[0].rstrip("/")
                if path in (f"{BASE}/apps", f"{BASE}/apps/delta"):
                    self._answer(200, peer._listing())
                else:
                    self._answer(404)

            def do_POST(self) -> None:
                body = self._body()
                if self.path.rstrip("/") != BATCH.rstrip("/"):
                    self._answer(204)  # a server's own registration, as a client of this peer
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = peer._batch("POST", self.path, headers, body)
                self._answer(503 if answer is None else 200, answer)

            def do_PUT(self) -> None:
                self._body()
                self._answer(200)

            def do_DELETE(self) -> None:
                self._body()
                self._answer(200)

            def _answer(self, status: int, document: Any = None) -> None:
                body = b"" if document is None else json.dumps(document).encode()
                self.send_response(status)
                if body:
                    self.send_header("Content-Type", "application/json")
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
