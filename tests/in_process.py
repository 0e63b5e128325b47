"""A server in the test's own process: everything but a socket, on a clock set by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from eureka_compat.settings import EurekaSettings
from eureka_server.access import Access, AccessSettings
from eureka_server.flask_door import blueprint
from eureka_server.gateway import Gateway
from native_api.settings import NativeSettings
from native_api.status import Server
from registry import (
    DEFAULT_NAMESPACE,
    HistorySettings,
    Recorder,
    Registry,
    RegistrySettings,
    Store,
)
from registry.history import History
from registry.stores.memory import MemoryStore
from registry.stores.memory_history import MemoryHistory
from registry.testing import ManualClock


class InProcess:
    """Its parts, put together. Nothing is evicted before a test asks for it.

    ``limits`` are the registry's settings; self-preservation is off unless they say otherwise.
    """

    def __init__(
        self,
        *,
        access: Access | None = None,
        eureka: EurekaSettings | None = None,
        native: NativeSettings | None = None,
        catalogs: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        store: Store | None = None,
        history: History | None = None,
        server: Server | None = None,
        **limits: Any,
    ) -> None:
        self.clock = ManualClock()
        self.store = store or MemoryStore()
        settings = RegistrySettings(**({"self_preservation": False} | limits))
        self.recorder = Recorder(
            history or MemoryHistory(1 << 30), self.clock, keep_ms=HistorySettings().keep_ms
        )
        self.whole = Registry(self.store, self.clock, settings, self.recorder)
        self.whole.start()
        self.recorder.begin(self.whole)
        self.registry = self.whole.in_namespace(DEFAULT_NAMESPACE)
        self.gateway = Gateway(
            self.whole,
            eureka or EurekaSettings(),
            native or NativeSettings(),
            access or Access(AccessSettings()),
            catalogs,
            server=server,
        )

    @cached_property
    def client(self) -> FlaskClient:
        """Asks through Flask's door."""
        app = Flask(__name__, static_folder=None)
        app.url_map.merge_slashes = False
        app.register_blueprint(blueprint(self.gateway, 8))
        return app.test_client()
