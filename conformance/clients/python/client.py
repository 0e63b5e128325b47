"""A program on py-eureka-client that tells over HTTP what it sees: BASES APP ID PORT VARIANT."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from py_eureka_client import eureka_client

bases, app, instance_id, port, _ = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    """What the suite asks."""

    def do_GET(self) -> None:
        _, command, *rest = self.path.split("/")
        if command == "whoami":
            self.answer(200, instance_id)
        elif command == "instances":
            found = eureka_client.get_client().applications.get_application(rest[0].upper())
            self.answer(200, json.dumps(sorted(i.instanceId for i in found.up_instances)))
        elif command == "choose":
            try:
                self.answer(200, eureka_client.do_service(rest[0], "/whoami"))
            except (OSError, urllib.error.URLError) as error:
                self.answer(503, str(error))
        else:
            self.answer(404, "")

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def stop(*_: object) -> None:
    eureka_client.stop()
    os._exit(0)  # its heartbeat thread would register again


signal.signal(signal.SIGTERM, stop)
eureka_client.init(
    eureka_server=bases,
    app_name=app,
    instance_id=instance_id,
    instance_host="localhost",
    instance_ip="127.0.0.1",
    instance_port=int(port),
    renewal_interval_in_secs=1,
    duration_in_secs=30,
)
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
