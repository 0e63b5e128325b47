"""How a Kubernetes API server is reached: from inside a Pod, or as a kubeconfig file says."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogs.catalog import SourceError
from catalogs.document import DocumentError, decoded, yaml_document
from catalogs.http import checked_url

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Ignoring one of these would mean another server, another account or another trust than intended.
_UNSUPPORTED = {
    "insecure-skip-tls-verify": "give its certificate-authority, it is always checked",
    "tls-server-name": "the certificate must be for the server's own name",
    "proxy-url": "the server must be reached directly",
    "exec": "use a token or a certificate",
    "auth-provider": "use a token or a certificate",
    "as": "use the account itself",
    "as-uid": "use the account itself",
    "as-groups": "use the account itself",
    "as-user-extra": "use the account itself",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server, and credentials for it. ``headers`` is called before each request."""

    url: str
    ca_file: Path | None
    cert_files: tuple[Path, Path] | None
    headers: Callable[[], Mapping[str, str]]


def in_cluster(account: Path = _ACCOUNT) -> Cluster:
    """The API server of the Pod that this process runs in; ``SourceError`` outside of a Pod.

    The token is read at each request, since Kubernetes replaces it from time to time.
    """
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port:
        raise SourceError(
            "not in a Pod: KUBERNETES_SERVICE_HOST and _PORT are not set; elsewhere, set kubeconfig"
        )
    shown = f"[{host}]" if ":" in host else host
    return Cluster(
        f"https://{shown}:{port}", account / "ca.crt", None, _bearer_from(account / "token")
    )


def at_server(url: str, token: str, account: Path = _ACCOUNT) -> Cluster:
    """The API server at this URL; in a Pod its certificate may be of the cluster's authority."""
    authority = account / "ca.crt"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Cluster(
        url.rstrip("/"), authority if authority.is_file() else None, None, lambda: headers
    )


def from_kubeconfig(path: Path, context: str | None, scratch: Path) -> Cluster:
    """The cluster and user of a context, the current one by default; ``SourceError``.

    Certificates inside the kubeconfig are written below ``scratch``, since TLS needs files.
    Unsupported entries that say which server to trust, or as whom to act, are refused by name.
    """
    try:
        document = _Part(str(path), yaml_document(decoded(path.read_bytes())).value)
        name = context or document.text("current-context")
        if name is None:
            raise SourceError(f"{path} is no kubeconfig: no current-context, and no context is set")
        chosen = document.named("contexts", name).part("context")
        cluster = document.named("clusters", chosen.needed("cluster")).part("cluster")
        user = document.named("users", chosen.needed("user")).part("user")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise SourceError(f"{path} is no kubeconfig: {error}") from None
    for part in (cluster, user):
        for unsupported, instead in _UNSUPPORTED.items():
            if part.holds(unsupported):
                raise SourceError(f"{part.where}: {unsupported} is not supported, {instead}")
    try:
        url = checked_url(cluster.needed("server"))
    except ValueError as error:
        raise SourceError(f"{cluster.where}: server: {error}") from None

    def file(part: _Part, key: str) -> Path | None:
        data, named = part.text(f"{key}-data"), part.text(key)
        if data is None:
            return None if named is None else path.parent / named
        try:
            content = base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise SourceError(f"{part.where}: {key}-data is no base64") from None
        made = tempfile.NamedTemporaryFile(dir=scratch, delete=False)  # noqa: SIM115
        with made:
            made.write(content)
        return Path(made.name)

    ca_file = file(cluster, "certificate-authority")
    cert, key = file(user, "client-certificate"), file(user, "client-key")
    if (cert is None) != (key is None):
        raise SourceError(f"{user.where}: client-certificate and client-key, both or neither")
    pair = (cert, key) if cert is not None and key is not None else None
    return Cluster(url.rstrip("/"), ca_file, pair, _account(user, path.parent))


def _account(user: _Part, folder: Path) -> Callable[[], Mapping[str, str]]:
    file, token, name = user.text("tokenFile"), user.text("token"), user.text("username")
    if file is not None:
        return _bearer_from(folder / file)
    if token is not None:
        bearer = {"Authorization": f"Bearer {token}"}
        return lambda: bearer
    if name is not None:
        account = f"{name}:{user.text('password') or ''}".encode()
        basic = {"Authorization": f"Basic {base64.b64encode(account).decode()}"}
        return lambda: basic
    return dict


class _Part:
    """A mapping of the file, and its place in it for error messages."""

    def __init__(self, where: str, value: Any) -> None:
        self.where = where
        self._value = {} if value is None else value
        if not isinstance(self._value, Mapping):
            raise SourceError(f"{where} is no kubeconfig: expected a mapping")

    def holds(self, key: str) -> bool:
        """Whether the key has a value that is neither empty nor false."""
        return bool(self._value.get(key))

    def text(self, key: str) -> str | None:
        """The text below a key; None where there is none."""
        value = self._value.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise SourceError(f"{self.where}: {key} is no text")
        return value

    def needed(self, key: str) -> str:
        """The text below a key, which must be there."""
        found = self.text(key)
        if found is None:
            raise SourceError(f"{self.where}: {key} is missing")
        return found

    def part(self, key: str) -> _Part:
        """The mapping below a key."""
        return _Part(self.where, self._value.get(key))

    def named(self, section: str, name: str) -> _Part:
        """The item of that name in a list."""
        items = self._value.get(section)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping) and item.get("name") == name:
                return _Part(f"{self.where}, {section}: {name}", item)
        raise SourceError(f"{self.where} is no kubeconfig: no {name} in {section}")


def _bearer_from(file: Path) -> Callable[[], Mapping[str, str]]:
    def headers() -> Mapping[str, str]:
        try:
            return {"Authorization": f"Bearer {file.read_text(encoding='utf-8').strip()}"}
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"the token's file cannot be read: {type(error).__name__}") from None

    return headers
