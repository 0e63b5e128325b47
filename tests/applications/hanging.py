"""An application whose loop hook never returns where it is asked for ``/hang``."""

from __future__ import annotations

import time
from typing import Any

from eureka_http.exchange import LoopHooks, Request


class Hanging:
    def __init__(self) -> None:
        self.loop_hooks = LoopHooks(self.fast_lane)

    def fast_lane(self, request: Request) -> None:
        while request.path == "/hang":
            time.sleep(0.01)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "0")])
        return []


app = Hanging()
