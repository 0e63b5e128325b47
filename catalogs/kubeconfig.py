"""How a Kubernetes API server is reached: from inside a Pod, or as a kubeconfig file says."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from catalogs.catalog import SourceError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server and how to be somebody there. ``headers`` is asked before each request."""

    url: str
    ca_file: Path | None
    cert_files: tuple[Path, Path] | None
    headers: Callable[[], Mapping[str, str]]


def in_cluster(account: Path = _ACCOUNT) -> Cluster:
    """The API server of the Pod that this process runs in; ``SourceError`` where there is none.

    Its token is replaced in its file from time to time, and so is read at each request.
    """
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port:
        raise SourceError("not in a Pod: KUBERNETES_SERVICE_HOST and _PORT are not set")
    shown = f"[{host}]" if ":" in host else host
    return Cluster(
        f"https://{shown}:{port}", account / "ca.crt", None, _bearer_from(account / "token")
    )


def from_kubeconfig(path: Path, context: str | None, scratch: Path) -> Cluster:
    """The cluster and user of a context, the current one by default; ``SourceError``.

    Certificates that stand in the file itself are written below ``scratch``: TLS wants files. Users
    that a program authenticates (``exec``, ``auth-provider``) are not supported.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = context or document["current-context"]
        chosen = _named(document, "contexts", name)["context"]
        cluster = _named(document, "clusters", chosen["cluster"])["cluster"]
        user = _named(document, "users", chosen["user"])["user"] or {}
        url = str(cluster["server"])
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {type(error).__name__}") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is no kubeconfig: {type(error).__name__} {error}") from None
    for unsupported in ("exec", "auth-provider"):
        if unsupported in user:
            raise SourceError(
                f"{path}: {unsupported} is not supported, use a token or a certificate"
            )

    def file(holder: Mapping[str, Any], key: str) -> Path | None:
        data = holder.get(f"{key}-data")
        if data is not None:
            made = tempfile.NamedTemporaryFile(dir=scratch, delete=False)  # noqa: SIM115
            with made:
                made.write(base64.b64decode(data))
            return Path(made.name)
        named = holder.get(key)
        return path.parent / named if named is not None else None

    ca_file = file(cluster, "certificate-authority")
    cert, key = file(user, "client-certificate"), file(user, "client-key")
    headers: Callable[[], Mapping[str, str]] = dict
    if user.get("tokenFile"):
        headers = _bearer_from(path.parent / user["tokenFile"])
    elif user.get("token"):
        token = {"Authorization": f"Bearer {user['token']}"}
        headers = lambda: token  # noqa: E731
    elif user.get("username"):
        account = f"{user['username']}:{user.get('password', '')}".encode()
        basic = {"Authorization": f"Basic {base64.b64encode(account).decode()}"}
        headers = lambda: basic  # noqa: E731
    pair = (cert, key) if cert is not None and key is not None else None
    return Cluster(url.rstrip("/"), ca_file, pair, headers)


def _named(document: Any, section: str, name: str) -> Any:
    for item in document[section]:
        if item["name"] == name:
            return item
    raise KeyError(f"{name} in {section}")


def _bearer_from(file: Path) -> Callable[[], Mapping[str, str]]:
    def headers() -> Mapping[str, str]:
        try:
            return {"Authorization": f"Bearer {file.read_text(encoding='utf-8').strip()}"}
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"the token's file cannot be read: {type(error).__name__}") from None

    return headers
