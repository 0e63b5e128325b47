"""A genuine Eureka server as a source, with clients that renew."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

from catalogs.eureka import EurekaCatalog, EurekaCatalogSettings
from catalogs.testing import NEVER_SECS
from conformance.programs import SMALL_JVM, built_jar, free_port
from tests.servers import JSON, ROOT, instance_body, send, wait_until
from tests.sources.process import OwnProcess

RENEWS_EACH_SECS = 20.0
# A genuine server that makes a list just when an instance registers can keep it without that
# instance until its cache forgets it: after three minutes, by default.
FORGETS_LISTS = "--eureka.server.response-cache-auto-expiration-in-seconds=5"


class EurekaSource(OwnProcess):
    """It keeps its port; it forgets everything at a restart, and its clients register again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/eureka"
        self._bodies: dict[tuple[str, str], str] = {}
        self._stopping = threading.Event()
        self._is_up = False
        self.start()
        threading.Thread(target=self._renew, daemon=True).start()

    def start(self) -> None:
        jar = built_jar(ROOT / "conformance" / "oracle")
        self._process = subprocess.Popen(
            [
                *("java", *SMALL_JVM, "-Xmx300m", "-jar", str(jar)),
                *(f"--server.port={self.port}", FORGETS_LISTS),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return send(self.port, "GET", "/eureka/apps").status == 200
            except OSError:
                return False

        wait_until(answers, "the genuine server")
        for (app, _), body in self._bodies.items():
            assert send(self.port, "POST", f"/eureka/apps/{app}", body, JSON).status == 204
        self._is_up = True

    def kill(self) -> None:
        self._is_up = False
        super().kill()

    def suspend(self) -> None:
        self._is_up = False
        super().suspend()

    def resume(self) -> None:
        super().resume()
        self._is_up = True

    def close(self) -> None:
        self._stopping.set()
        self.kill()

    def _renew(self) -> None:
        while not self._stopping.wait(RENEWS_EACH_SECS):
            for app, instance_id in list(self._bodies):
                if self._is_up:
                    try:
                        send(self.port, "PUT", f"/eureka/apps/{app}/{instance_id}")
                    except OSError:
                        if self._is_up:
                            raise  # else it was killed or suspended meanwhile

    def register(self, app: str, instance_id: str, body: str) -> None:
        self._bodies[app, instance_id] = body
        assert send(self.port, "POST", f"/eureka/apps/{app}", body, JSON).status == 204

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        app = service.upper()
        body = instance_body(
            app,
            f"{host}:{port}",
            hostName=host,
            ipAddr=host,
            port={"$": port, "@enabled": "true"},
            vipAddress=service.lower(),
            status=status,
            metadata=metadata or {},
        )
        self.register(app, f"{host}:{port}", body)

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        for service, host, port in instances:
            self.put(service, host, port)

    def remove(self, service: str, host: str, port: int) -> None:
        app = service.upper()
        del self._bodies[app, f"{host}:{port}"]
        assert send(self.port, "DELETE", f"/eureka/apps/{app}/{host}:{port}").status == 200

    def clear(self) -> None:
        """Have no instance any more."""
        for app, instance_id in list(self._bodies):
            del self._bodies[app, instance_id]
            send(self.port, "DELETE", f"/eureka/apps/{app}/{instance_id}")

    def disturb(self) -> None:
        """Restarted, its deltas are not what they were."""
        self.kill()
        self.start()

    def catalog(self) -> EurekaCatalog:
        settings = EurekaCatalogSettings(
            name="test", urls=(self.url,), interval_secs=0.2, grace_secs=NEVER_SECS
        )
        return EurekaCatalog(settings)
