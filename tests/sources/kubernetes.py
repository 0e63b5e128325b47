"""A genuine kube-apiserver on a genuine etcd as a source.

No kubelet and no controller runs: Services, Pods and endpoint slices are created as they would.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from catalogs.kubernetes import KubernetesCatalog, KubernetesSettings
from conformance.programs import built, free_port
from tests.servers import HANG_SECS, wait_until
from tests.sources.etcd import Etcd
from tests.sources.process import OwnProcess

FOLDER = Path(__file__).parent / "kube-apiserver"
VERSION = "v1.31.4"
TOKEN = "secret-token"
Object = dict[str, Any]


def program() -> Path:
    """The API server, built once."""

    def build(work: Path) -> Path:
        names = {"gitVersion": VERSION, "gitMajor": "1", "gitMinor": "31"}
        stamps = [f"-X k8s.io/component-base/version.{k}={v}" for k, v in names.items()]
        command = ["go", "build", f"-ldflags=-s -w {' '.join(stamps)}", "-o", "program", "."]
        subprocess.run(command, cwd=work, check=True, timeout=2400)
        return work / "program"

    return built("kube-apiserver", FOLDER, build)


class KubernetesSource(OwnProcess):
    """It keeps its port and its data over restarts. Each service has one slice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.etcd = Etcd(folder)
        (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        key = rsa.generate_private_key(65537, 2048)
        (folder / "sa.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self.session = requests.Session()
        self.session.trust_env = False  # a bundle of the machine's would overrule this
        self.session.verify = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"
        self._slices: dict[str, dict[tuple[str, int], Object]] = {}
        # An API server that finds an etcd which nothing was ever written to may know its whole
        # history, and then no version is too old for it.
        for _ in range(2):
            self.etcd.ask("kv/put", {"key": "bm9uZQ==", "value": ""})
        self.start()
        wait_until(
            lambda: self._ask("GET", "/api/v1/namespaces/default").status_code == 200, "default"
        )

    def start(self) -> None:
        folder = self.folder
        self._process = subprocess.Popen(
            [
                str(program()),
                f"--etcd-servers={self.etcd.url}",
                f"--cert-dir={folder / 'certs'}",
                f"--secure-port={self.port}",
                "--bind-address=127.0.0.1",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/16,fd00:1::/108",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={folder / 'sa.key'}",
                f"--service-account-signing-key-file={folder / 'sa.key'}",
                "--disable-admission-plugins=ServiceAccount",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def ready() -> bool:
            try:
                return self._ask("GET", "/readyz").status_code == 200
            except requests.RequestException:
                return False

        wait_until(ready, "kube-apiserver")

    def close(self) -> None:
        self.kill()
        self.etcd.kill()

    def _ask(self, method: str, path: str, document: Any = None, **headers: str) -> Any:
        return self.session.request(
            method, self.url + path, json=document, headers=headers, timeout=HANG_SECS
        )

    def ask(self, method: str, path: str, document: Any = None, **headers: str) -> Any:
        answer = self._ask(method, path, document, **headers)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def apply(self, path: str, document: Object) -> None:
        """Create it, or replace it."""
        name = document["metadata"]["name"]
        if self._ask("POST", path, document).status_code == 409:
            self.ask("PUT", f"{path}/{name}", document)

    def delete(self, path: str) -> None:
        answer = self._ask("DELETE", f"{path}?gracePeriodSeconds=0")
        assert answer.ok, answer.text

    def namespace(self, name: str) -> None:
        self.apply("/api/v1/namespaces", {"metadata": {"name": name}})

    def service(self, name: str, namespace: str = "default", **spec: Any) -> None:
        ports = [{"name": "http", "port": 80}]
        document = {
            "metadata": {"name": name, "labels": spec.pop("labels", {})},
            "spec": {"ports": ports, **spec},
        }
        path = f"/api/v1/namespaces/{namespace}/services"
        if self._ask("GET", f"{path}/{name}").status_code == 404:
            self.ask("POST", path, document)

    def pod(self, name: str, namespace: str = "default", **metadata: Any) -> None:
        spec = {"containers": [{"name": "c", "image": "image"}]}
        document = {"metadata": {"name": name, **metadata}, "spec": spec}
        self.apply(f"/api/v1/namespaces/{namespace}/pods", document)

    def slice(
        self,
        name: str,
        service: str,
        endpoints: Sequence[Object],
        ports: Sequence[Object] = ({"name": "http", "port": 80},),
        *,
        namespace: str = "default",
        family: str = "IPv4",
    ) -> None:
        document = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": family,
            "endpoints": list(endpoints),
            "ports": list(ports),
        }
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self.apply(path, document)

    # As every source

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        self._have(service, host, port, status == "UP")
        self._write(service)

    def _have(self, service: str, host: str, port: int, is_ready: bool) -> None:
        endpoint = {"addresses": [host], "conditions": {"ready": is_ready}}
        self._slices.setdefault(service, {})[host, port] = endpoint

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        for service, host, port in instances:
            self._have(service, host, port, True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._write, sorted({service for service, _, _ in instances})))

    def _write(self, service: str) -> None:
        name = service.lower()  # as Kubernetes wants it
        self.service(name)
        by_port: dict[int, list[Object]] = {}
        for (_, port), endpoint in self._slices[service].items():
            by_port.setdefault(port, []).append(endpoint)
        for port, endpoints in by_port.items():
            # A slice holds a thousand endpoints at most.
            for part in range(0, len(endpoints), 500):
                self.slice(
                    f"{name}-{port}-{part // 500}",
                    name,
                    endpoints[part : part + 500],
                    [{"name": "http", "port": port}],
                )
        if not by_port:
            selector = f"labelSelector=kubernetes.io/service-name={name}"
            path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
            self.ask("DELETE", f"{path}?{selector}")

    def remove(self, service: str, host: str, port: int) -> None:
        del self._slices[service][host, port]
        self._write(service)

    def clear(self) -> None:
        """Have no services any more."""
        self._slices.clear()
        for path in (
            "/apis/discovery.k8s.io/v1/{}/endpointslices",
            "/api/v1/{}/services",
            "/api/v1/{}/pods",
        ):
            for item in self.ask("GET", path.format("").replace("//", "/"))["items"]:
                meta = item["metadata"]
                if meta["name"] != "kubernetes":
                    where = path.format(f"namespaces/{meta['namespace']}")
                    self.delete(f"{where}/{meta['name']}")

    def etcd_revision(self) -> int:
        found = self.etcd.ask("kv/range", {"key": "bm9uZQ=="})
        return int(found["header"]["revision"])

    def disturb(self) -> None:
        self.kill()
        self.start()

    def kubeconfig(self, token: str = TOKEN, name: str = "config", **user: Any) -> Path:
        path = self.folder / name
        authority = str(self.folder / "certs" / "apiserver.crt")
        cluster = {"server": self.url, "certificate-authority": authority}
        path.write_text(
            yaml.dump(
                {
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": user or {"token": token}}],
                }
            )
        )
        return path

    def path_of(self, document: Object) -> str:
        """Where the API server has an object of this kind, namespace and name."""
        version, kind, meta = document["apiVersion"], document["kind"], document["metadata"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        found = [r for r in self.ask("GET", group)["resources"] if r["kind"] == kind]
        resource = next(r for r in found if "/" not in r["name"])
        where = f"/namespaces/{meta['namespace']}" if resource["namespaced"] else ""
        return f"{group}{where}/{resource['name']}/{meta['name']}"

    def manifests(self, file: Path) -> list[str]:
        """Apply a file as ``kubectl apply --server-side`` does; the warnings that it brings.

        A field that the API server does not know is an error.
        """
        warnings = []
        for document in yaml.safe_load_all(file.read_text()):
            path = f"{self.path_of(document)}?fieldManager=operator&fieldValidation=Strict"
            form = {"Content-Type": "application/apply-patch+yaml"}
            answer = self._ask("PATCH", path, document, **form)
            assert answer.ok, f"{document['kind']}: {answer.status_code} {answer.text}"
            warnings += answer.raw.headers.getlist("Warning")
        return warnings

    def token_of(self, account: str, namespace: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        document = {"spec": {"audiences": [], "expirationSeconds": 3600}}
        return str(self.ask("POST", path, document)["status"]["token"])

    def catalog(self, **settings: Any) -> KubernetesCatalog:
        made = KubernetesSettings(name="test", kubeconfig=self.kubeconfig(), **settings)
        return KubernetesCatalog(made)
