"""What the registry is told, in its native protocol or in Eureka's."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from native_api.sidecar.settings import Settings

_TRY_AGAIN = frozenset({408, 425, 429})
_LONGEST_ANSWER = 64 * 1024


class GoneError(Exception):
    """The registry does not know the instance (any more): register it again."""


class RefusedError(Exception):
    """The registry refused, and would again: a setting is wrong, or an account."""


class UnreachableError(Exception):
    """No answer, or none that makes sense: another registry, or another time, may do."""


class RegistryProtocol(Protocol):
    """One registry as the sidecar uses it.

    Each method raises ``RefusedError`` and ``UnreachableError``, and all but ``register`` also
    ``GoneError``. Registering again what is registered changes nothing but its lease.
    """

    url: str

    def register(self, *, in_service: bool) -> None:
        """Register the instance, or its state anew."""
        ...

    def renew(self) -> None:
        """Renew the lease."""
        ...

    def set_in_service(self, in_service: bool) -> None:
        """Tell whether it is to be used."""
        ...

    def deregister(self) -> None:
        """Take it out."""
        ...


class Transport:
    """Requests to one registry, each on a connection of its own: it may have moved meanwhile."""

    def __init__(self, url: str, settings: Settings) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._is_secure = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._user = (unquote(parts.username or ""), unquote(parts.password or ""))
        self._settings = settings

    def send(self, method: str, path: str, document: Any = None) -> tuple[int, bytes]:
        """The answer's status and body; ``RefusedError`` and ``UnreachableError``."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"Accept": "application/json", "Connection": "close", **self._credentials()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection = self._connection()
            try:
                connection.request(method, self._prefix + path, body, headers)
                response = connection.getresponse()
                status, answer = response.status, response.read(_LONGEST_ANSWER)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(str(error) or type(error).__name__) from None
        if status in _TRY_AGAIN or status >= 500 or status < 200:
            raise UnreachableError(f"status {status}")
        if 300 <= status < 400:
            raise UnreachableError(f"status {status}: this is not the registry's own URL")
        if status >= 400 and status not in (404, 410):
            raise RefusedError(f"status {status}: {answer[:300].decode('utf-8', 'replace')}")
        return status, answer

    def _connection(self) -> http.client.HTTPConnection:
        settings = self._settings
        if not self._is_secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=settings.timeout)
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=settings.timeout, context=context
        )

    def _credentials(self) -> Mapping[str, str]:
        token = self._settings.token
        if self._settings.token_file:
            # Read each time: whoever renews it replaces the file.
            try:
                token = Path(self._settings.token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UnreachableError(f"the token cannot be read: {error}") from None
        if token:
            return {"Authorization": f"Bearer {token}"}
        name, password = self._user
        if name:
            encoded = base64.b64encode(f"{name}:{password}".encode()).decode()
            return {"Authorization": f"Basic {encoded}"}
        return {}


class NativeProtocol:
    """The native REST API."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self._transport = Transport(url, settings)
        self._settings = settings
        self._id = ""

    def register(self, *, in_service: bool) -> None:
        settings = self._settings
        document = {
            "service_name": settings.service_name,
            "endpoint": {"type": settings.endpoint_type, "value": settings.endpoint},
            "ttl": settings.ttl,
            "status": "UP" if in_service else "OUT_OF_SERVICE",
            "tags": list(settings.tags),
            "metadata": dict(settings.metadata),
        }
        status, answer = self._transport.send("POST", "/instances", document)
        try:
            self._id = str(json.loads(answer)["id"])
        except (ValueError, KeyError, TypeError):
            raise UnreachableError(f"status {status} without an id: not a registry") from None

    def renew(self) -> None:
        self._on_instance("PUT", "/heartbeat")

    def set_in_service(self, in_service: bool) -> None:
        self._on_instance("PUT", "", {"status": "UP" if in_service else "OUT_OF_SERVICE"})

    def deregister(self) -> None:
        self._on_instance("DELETE", "")

    def _on_instance(self, method: str, rest: str, document: Any = None) -> None:
        if not self._id:
            raise GoneError  # registered with another registry of the list
        path = f"/instances/{quote(self._id, safe='')}{rest}"
        if self._transport.send(method, path, document)[0] != 200:
            raise GoneError


class EurekaProtocol:
    """Eureka v2, as a Java client speaks it."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self._transport = Transport(url, settings)
        self._settings = settings
        text = settings.endpoint
        scheme = "https" if settings.endpoint_type == "https" else "http"
        parts = urlsplit(text if "://" in text else f"{scheme}://{text}")
        self._host = parts.hostname or text
        self._port = parts.port or (443 if scheme == "https" else 80)
        self._home = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/"
        self._is_secure = scheme == "https"
        name = settings.service_name
        self._app = f"/apps/{quote(name.upper(), safe='')}"
        self._id = f"{self._host}:{name.lower()}:{self._port}"
        self._path = f"{self._app}/{quote(self._id, safe=':')}"

    def register(self, *, in_service: bool) -> None:
        settings = self._settings
        name = settings.service_name
        metadata = {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.metadata.items()
        }
        if settings.tags:
            metadata.setdefault("tags", ",".join(settings.tags))
        plain, secure = (80, self._port) if self._is_secure else (self._port, 443)
        instance = {
            "instanceId": self._id,
            "app": name.upper(),
            "hostName": self._host,
            "ipAddr": self._host,
            "vipAddress": name.lower(),
            "secureVipAddress": name.lower(),
            "status": "UP",
            "port": {"$": plain, "@enabled": str(not self._is_secure).lower()},
            "securePort": {"$": secure, "@enabled": str(self._is_secure).lower()},
            "homePageUrl": self._home,
            "statusPageUrl": f"{self._home}info",
            "healthCheckUrl": f"{self._home}health",
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                "name": "MyOwn",
            },
            "leaseInfo": {
                "renewalIntervalInSecs": max(1, settings.ttl // 3),
                "durationInSecs": settings.ttl,
            },
            "metadata": metadata,
        }
        status, _ = self._transport.send("POST", self._app, {"instance": instance})
        if status != 204:
            raise UnreachableError(f"status {status} for a registration: not a Eureka server")
        if not in_service:
            self.set_in_service(False)

    def renew(self) -> None:
        self._on_instance("PUT", "?status=UP")

    def set_in_service(self, in_service: bool) -> None:
        if in_service:
            self._on_instance("DELETE", "/status?value=UP")
        else:
            self._on_instance("PUT", "/status?value=OUT_OF_SERVICE")

    def deregister(self) -> None:
        self._on_instance("DELETE", "")

    def _on_instance(self, method: str, rest: str) -> None:
        if self._transport.send(method, self._path + rest)[0] != 200:
            raise GoneError


def protocols(settings: Settings) -> list[RegistryProtocol]:
    """One for each registry of the settings, in their order."""
    made = NativeProtocol if settings.protocol == "native" else EurekaProtocol
    return [made(url, settings) for url in settings.registries]
