"""What the registry is told, in its native protocol or in Eureka's."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from native_api.sidecar.client import (
    Deadline,
    ExchangeError,
    Site,
    basic,
    exchange,
    one_line,
    resolved_address,
)
from native_api.sidecar.settings import Settings, read_token

_TRY_AGAIN = frozenset({408, 425, 429})
_LONGEST_ANSWER = 64 * 1024


class GoneError(Exception):
    """The registry does not know the instance (any more): register it again."""


class RefusedError(Exception):
    """The registry refused, and would again: a setting is wrong, or an account."""


class UnreachableError(Exception):
    """No answer, or none that makes sense: another registry, or another time, may do."""


class RegistryProtocol(Protocol):
    """One registry as the sidecar uses it; ``name`` is its URL without credentials.

    Each method raises ``RefusedError`` and ``UnreachableError``, and all but ``register`` also
    ``GoneError``. Registering again what is registered changes nothing but its lease.
    """

    name: str

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
        self._site = Site.of(url)
        self._prefix = self._site.path.rstrip("/")
        self._settings = settings
        self.name = self._site.shown

    def send(self, method: str, path: str, document: Any = None) -> tuple[int, bytes]:
        """The answer's status and body; ``RefusedError`` and ``UnreachableError``."""
        body = None if document is None else json.dumps(document).encode()
        authorization = self._authorization()
        headers = {"Accept": "application/json", "Connection": "close"}
        if authorization:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            status, answer = exchange(
                self._site,
                method,
                self._prefix + path,
                timeout=self._settings.timeout,
                body=body,
                headers=headers,
                context=self._context(),
            )
        except (ExchangeError, OSError) as error:
            raise UnreachableError(str(error)) from None
        if status in _TRY_AGAIN or status >= 500 or status < 200:
            raise UnreachableError(f"status {status}")
        if 300 <= status < 400:
            raise UnreachableError(f"status {status}: this is not the registry's own URL")
        if status >= 400 and status not in (404, 410):
            raise RefusedError(f"status {status}: {self._quoted(answer, authorization)}")
        return status, answer

    def address_of(self, host: str) -> str:
        """An instance's address in digits, as Eureka clients want it; ``UnreachableError``."""
        try:
            return resolved_address(host, self._site, Deadline(self._settings.timeout))
        except OSError as error:
            raise UnreachableError(str(error)) from None

    def _context(self) -> ssl.SSLContext | None:
        """Made each time, since whoever renews a certificate replaces its file."""
        settings = self._settings
        if not self._site.is_secure:
            return None
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
        return context

    def _authorization(self) -> str:
        settings = self._settings
        if settings.token_file:
            # Read each time: whoever renews it replaces the file.
            try:
                return "Bearer " + read_token(Path(settings.token_file).read_text(encoding="ascii"))
            except OSError as error:
                raise UnreachableError(f"the token cannot be read: {error.strerror}") from None
            except ValueError:
                raise UnreachableError("the token's file holds no token") from None
        if settings.token:
            return f"Bearer {settings.token}"
        return self._site.authorization or basic(settings.username, settings.password)

    @staticmethod
    def _quoted(answer: bytes, authorization: str) -> str:
        """A refusal's text; a server may repeat in it what it was sent."""
        text = answer.decode("utf-8", "replace")
        kind, _, secret = authorization.partition(" ")
        secrets = [secret]
        if kind == "Basic":
            secrets.append(base64.b64decode(secret).decode().partition(":")[2])
        if any(secret and secret in text for secret in secrets):
            return "(not shown: it repeats the credentials)"
        return one_line(text)


class NativeProtocol:
    """The native REST API."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._transport = Transport(url, settings)
        self.name = self._transport.name
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
            found = json.loads(answer)["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not found or not isinstance(found, str):
            raise UnreachableError(f"status {status} without an id: not a registry")
        # Where it is renewed follows from it; a link may lead to a host that is not trusted.
        self._id = found

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
        self._transport = Transport(url, settings)
        self.name = self._transport.name
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
        self._id = settings.instance_id or f"{self._host}:{name.lower()}:{self._port}"
        # What it overrides it has to take back; otherwise an override is an operator's alone.
        self._overrides = settings.on_unhealthy == "out_of_service"
        self._path = f"{self._app}/{quote(self._id, safe=':')}"

    def register(self, *, in_service: bool) -> None:
        settings = self._settings
        name = settings.service_name
        metadata = {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.metadata.items()
        }
        if settings.tags:
            metadata.setdefault("tags", ",".join(settings.tags))
        vip = name.lower().replace(",", "_")  # a comma would part it into two
        plain, secure = (80, self._port) if self._is_secure else (self._port, 443)
        instance = {
            "instanceId": self._id,
            "app": name.upper(),
            "hostName": f"[{self._host}]" if ":" in self._host else self._host,
            "ipAddr": self._transport.address_of(self._host),
            "vipAddress": vip,
            "secureVipAddress": vip,
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
        elif self._overrides:
            # One that a sidecar before this one left behind would outlast the registration.
            self.set_in_service(True)

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
