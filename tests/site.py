"""A server that gives one answer, whatever it is asked."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple


class AskedOfSite(NamedTuple):
    """What a request was, as far as the tests look at it."""

    path: str
    authorization: str | None
    namespace: str | None


class Site:
    """The server; it keeps what it was asked."""

    def __init__(self, body: bytes, date: str = "Thu, 26 Nov 2026 12:00:40 GMT") -> None:
        self.status, self.body, self.date = 200, body, date
        self.asked: list[AskedOfSite] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fields = self.headers
                asked = AskedOfSite(
                    self.path, fields["Authorization"], fields["Registry-Namespace"]
                )
                site.asked.append(asked)
                self.send_response_only(site.status)
                self.send_header("Date", site.date)
                self.send_header("Content-Length", str(len(site.body)))
                self.end_headers()
                self.wfile.write(site.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
