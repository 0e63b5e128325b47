"""The settings of a Kubernetes catalog."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from catalogs.bounds import checked_prefix
from catalogs.http import Url, checked_files
from catalogs.kubernetes.kubeconfig import Cluster, at_server, from_kubeconfig, in_cluster
from registry import DEFAULT_NAMESPACE, Namespace

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_TEMPLATE = re.compile(r"[A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """One cluster."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    kubeconfig: Path | None = None
    """How to reach the API server; without it, as the Pod's service account."""

    server: Url | None = None
    """The API server's URL, instead of a kubeconfig."""

    token: str = ""
    """The account's token, with ``server``."""

    context: str | None = None
    """A context of the kubeconfig other than the current one."""

    namespaces: tuple[str, ...] = ()
    """Only these Kubernetes namespaces; empty: all, which needs a ClusterRole."""

    label_selector: str | None = None
    """Only Services with these labels, in Kubernetes's own notation."""

    without: tuple[str, ...] = ("default/kubernetes",)
    """Services that are left out, as ``namespace/name``: by default the API server's own."""

    namespace: Namespace = DEFAULT_NAMESPACE
    """Where its instances are listed in the registry."""

    template: str = "{service}"
    """A service's name here, made of ``{service}`` and ``{namespace}``. By default the Service's
    name alone, as in its own namespace."""

    prefix: str = ""
    """Put before each service's name."""

    port: str | None = None
    """The port to list if there are several: its name, or its number at the Pod. A Service's
    annotation ``registry/port`` takes precedence."""

    annotations: str = "registry/"
    """Pods' annotations with this prefix become metadata, without the prefix."""

    def __post_init__(self) -> None:
        """Refuse what cannot work; ``ValueError``."""
        checked_prefix(self.prefix)
        rest = self.template.replace("{service}", "").replace("{namespace}", "")
        if "{service}" not in self.template or not _TEMPLATE.match(rest):
            raise ValueError(
                "template: {service}, {namespace}, letters, digits, dots, dashes and underscores"
            )
        for namespace in self.namespaces:
            if not re.fullmatch(_LABEL, namespace):
                raise ValueError(f"namespaces: {namespace} is no name of a namespace there")
        for service in self.without:
            if not re.fullmatch(f"{_LABEL}/{_LABEL}", service):
                raise ValueError(f"without: expected namespace/name, not {service}")
        if self.server is not None and self.kubeconfig is not None:
            raise ValueError("server: expected it, or a kubeconfig")
        if self.token and (self.server is None or not re.fullmatch(r"[!-~]+", self.token)):
            raise ValueError("token: expected printable ASCII without blanks, and a server")
        if self.context is not None and self.kubeconfig is None:
            raise ValueError("context: expected a kubeconfig too")

    def check(self) -> None:
        """Look at its files; ``SourceError`` and ``ValueError``."""
        with tempfile.TemporaryDirectory(prefix="kubernetes-") as scratch:
            cluster = self.cluster(Path(scratch))
            checked_files(cluster.ca_file, *(cluster.cert_files or ()))

    def cluster(self, scratch: Path) -> Cluster:
        """The API server and the credentials to use now; ``SourceError``."""
        if self.server is not None:
            return at_server(self.server, self.token)
        if self.kubeconfig is None:
            return in_cluster()
        return from_kubeconfig(self.kubeconfig, self.context, scratch)

    def service_name(self, namespace: str, service: str) -> str:
        """The service's name here."""
        return self.prefix + self.template.replace("{namespace}", namespace).replace(
            "{service}", service
        )
