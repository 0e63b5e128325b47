"""The catalog of a cluster, on a genuine API server."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalogs import RelistError, SourceError, Terms
from catalogs.kubeconfig import in_cluster
from catalogs.kubernetes import KubernetesCatalog, KubernetesSettings
from catalogs.testing import CatalogSuite, Followed, until
from registry import Instance
from tests.servers import ROOT
from tests.sources.kubernetes import KubernetesSource

READY = {"ready": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesSource]:
    source = KubernetesSource(tmp_path_factory.mktemp("cluster"))
    yield source
    source.close()


@pytest.fixture
def source(cluster: KubernetesSource) -> Iterator[KubernetesSource]:
    yield cluster
    cluster.clear()


class TestKubernetesCatalog(CatalogSuite):
    """On one API server for all."""


def listed(catalog: KubernetesCatalog) -> dict[str, Instance]:
    groups = catalog.list().values()
    catalog.close()
    return {e.instance.endpoint_value or "": e.instance for g in groups for e in g}


def pod_endpoint(pod: str, address: str, **fields: Any) -> dict[str, Any]:
    target = {"kind": "Pod", "name": pod, "namespace": "default"}
    return {"addresses": [address], "conditions": READY, "targetRef": target, **fields}


def test_a_pod_brings_its_labels_annotations_zone_and_version(source: KubernetesSource) -> None:
    source.service("api")
    source.pod(
        "api-1",
        labels={"app.kubernetes.io/version": "1.4", "team": "blue"},
        annotations={"registry/weight": "3", "other": "x"},
    )
    source.slice("api-a", "api", [pod_endpoint("api-1", "10.1.0.1", zone="eu-1a", nodeName="n1")])
    instance = listed(source.catalog(prefix="k-"))["10.1.0.1:80"]
    assert (instance.app, instance.vip_address) == ("K-API", "k-api")
    assert instance.tags == ("1.4", "kubernetes:test")
    assert dict(instance.metadata) == {
        "app.kubernetes.io/version": "1.4",
        "team": "blue",
        "weight": "3",
        "version": "1.4",
        "zone": "eu-1a",
        "kubernetes-namespace": "default",
        "kubernetes-pod": "api-1",
        "kubernetes-node": "n1",
        "kubernetes-port": "http",
        "tags": "1.4,kubernetes:test",
    }


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        ({"name": "http", "port": 80}, "http"),
        ({"name": "https", "port": 80}, "https"),
        ({"name": "https-admin", "port": 80}, "https"),
        ({"name": "web", "port": 80, "appProtocol": "https"}, "https"),
        ({"name": "grpc", "port": 80}, "tcp"),
        ({"name": "dns", "port": 80, "protocol": "UDP"}, "udp"),
        ({"name": "", "port": 80}, "http"),
        ({"name": "", "port": 8443}, "https"),
    ],
)
def test_a_ports_name_and_protocol_set_the_endpoints_type(
    source: KubernetesSource, port: dict[str, Any], kind: str
) -> None:
    source.service("api")
    source.slice("api-a", "api", [{"addresses": ["10.1.0.2"], "conditions": READY}], [port])
    (instance,) = listed(source.catalog()).values()
    assert instance.endpoint_type == kind


def test_each_port_of_each_address_is_an_instance_and_what_ends_is_none(
    source: KubernetesSource,
) -> None:
    source.service("api")
    ports = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    endpoints = [
        {"addresses": ["10.1.0.1"], "conditions": READY},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": False, "terminating": True}},
        {"addresses": ["10.1.0.4"]},
    ]
    source.slice("api-a", "api", endpoints, ports)
    found = {value: str(i.status) for value, i in listed(source.catalog()).items()}
    assert found == {
        "10.1.0.1:80": "UP",
        "10.1.0.1:81": "UP",
        "10.1.0.2:80": "DOWN",
        "10.1.0.2:81": "DOWN",
        "10.1.0.4:80": "UP",
        "10.1.0.4:81": "UP",
    }


def test_a_pod_of_two_families_is_one_instance_at_its_services_first(
    source: KubernetesSource,
) -> None:
    for name, families, wanted in (
        ("four", ["IPv4", "IPv6"], "10.1.0.9:80"),
        ("six", ["IPv6", "IPv4"], "[fd00::9]:80"),
    ):
        source.service(name, ipFamilyPolicy="RequireDualStack", ipFamilies=families)
        source.pod("both")
        source.slice(f"{name}-4", name, [pod_endpoint("both", "10.1.0.9")])
        source.slice(f"{name}-6", name, [pod_endpoint("both", "fd00::9")], family="IPv6")
        found = {v for v, i in listed(source.catalog()).items() if i.app == name.upper()}
        assert found == {wanted}


def test_headless_and_hand_made_services_are_as_others(source: KubernetesSource) -> None:
    source.service("headless", clusterIP="None")
    source.slice("h", "headless", [{"addresses": ["10.1.0.5"], "hostname": "db-0"}])
    assert set(listed(source.catalog())) == {"10.1.0.5:80"}


def test_an_external_name_is_an_instance_whose_address_is_looked_up(
    source: KubernetesSource,
) -> None:
    source.service("outside", type="ExternalName", externalName="api.example.com")
    (instance,) = listed(source.catalog()).values()
    assert (instance.host_name, instance.ip_addr, instance.port) == ("api.example.com", "", 80)


def test_namespaces_and_labels_choose(source: KubernetesSource) -> None:
    source.namespace("blue")
    for namespace, address in (("default", "10.1.0.1"), ("blue", "10.1.0.2")):
        source.service("api", namespace, labels={"in": namespace})
        source.slice("a", "api", [{"addresses": [address]}], namespace=namespace)
    assert set(listed(source.catalog(namespaces=("blue",)))) == {"10.1.0.2:80"}
    assert set(listed(source.catalog(label_selector="in=default"))) == {"10.1.0.1:80"}
    assert len(listed(source.catalog(namespaces=("blue", "default")))) == 2


def test_a_pods_new_label_and_its_end_are_seen_at_once(source: KubernetesSource) -> None:
    source.service("api")
    source.pod("api-1", labels={"version": "1"})
    source.slice("api-a", "api", [pod_endpoint("api-1", "10.1.0.1")])
    followed = Followed(source, Terms())
    followed.start()
    try:
        key = ("10.1.0.1", 80)
        until(lambda: key in followed.instances())
        pod = "/api/v1/namespaces/default/pods/api-1"
        patch = {"metadata": {"labels": {"version": "2"}}}
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = source.session.patch(source.url + pod, json=patch, headers=headers)
        assert answer.ok
        until(lambda: followed.instances()[key].metadata["version"] == "2")
        source.delete("/api/v1/namespaces/default/services/api")
        until(lambda: key not in followed.instances())
    finally:
        followed.runner.stop()


def test_a_history_that_is_gone_is_listed_again(source: KubernetesSource) -> None:
    catalog = source.catalog()
    catalog.list()
    for number in range(3):
        source.put("api", "10.1.0.1", 80 + number)
    source.etcd.ask("kv/compaction", {"revision": str(int(source.etcd_revision()))})
    catalog._versions = dict.fromkeys(catalog._versions, "1")
    with pytest.raises(RelistError):
        for _ in catalog.watch(threading.Event()):
            pass
    assert listed(catalog)


def test_the_manifest_grants_what_is_needed_and_no_more(source: KubernetesSource) -> None:
    source.namespace("registry")
    source.manifests(ROOT / "docs" / "kubernetes-rbac.yaml")
    source.put("api", "10.1.0.1", 80)
    token = source.token_of("registry", "registry")
    file = source.kubeconfig(token, "least")
    catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
    assert set(listed(catalog)) == {"10.1.0.1:80"}
    for path in ("/api/v1/secrets", "/api/v1/nodes", "/api/v1/namespaces/default/services/api"):
        headers = {"Authorization": f"Bearer {token}"}
        answer = source.session.get(source.url + path, headers=headers, timeout=5)
        assert answer.status_code == 403, path


def test_a_token_is_read_again_from_its_file(source: KubernetesSource) -> None:
    source.put("api", "10.1.0.1", 80)
    token = source.folder / "token"
    token.write_text("wrong")
    file = source.kubeconfig(name="by-file", tokenFile=str(token))
    catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
    with pytest.raises(SourceError, match="answers 401"):
        catalog.list()
    token.write_text("secret-token")
    assert len(listed(catalog)) == 1


def test_a_pod_finds_its_server_by_its_environment(
    source: KubernetesSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="not in a Pod"):
        in_cluster()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(source.port))
    (tmp_path / "token").write_text("secret-token\n")
    cluster = in_cluster(tmp_path)
    assert cluster.url == source.url
    assert cluster.headers() == {"Authorization": "Bearer secret-token"}


def test_an_unusable_kubeconfig_is_told(source: KubernetesSource, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("a: [")
    for file, told in (
        (tmp_path / "none", "cannot be read: FileNotFoundError"),
        (broken, "is no kubeconfig"),
        (source.kubeconfig(name="exec", exec={"command": "aws"}), "exec is not supported"),
    ):
        catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
        with pytest.raises(SourceError, match=told):
            catalog.list()


def test_the_servers_certificate_is_checked(source: KubernetesSource, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(other)),
        ],
        check=True,
        capture_output=True,
    )
    text = source.kubeconfig(name="distrust").read_text()
    file = source.folder / "distrust"
    file.write_text(text.replace(str(source.folder / "certs" / "apiserver.crt"), str(other)))
    catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
    with pytest.raises(SourceError, match="cannot be trusted"):
        catalog.list()


def test_a_change_among_thousands_is_seen_soon(source: KubernetesSource) -> None:
    source.put_many([(f"s{n % 20}", f"10.{n // 250}.{n % 250}.1", 80) for n in range(4000)])
    followed = Followed(source, Terms())
    followed.start()
    try:
        until(lambda: len(followed.instances()) >= 4000, 30)
        for number in range(5):
            began = time.monotonic()
            source.put("alone", f"10.99.0.{number}", 80)
            until(lambda n=number: (f"10.99.0.{n}", 80) in followed.instances())
            assert time.monotonic() - began < 3
    finally:
        followed.runner.stop()
