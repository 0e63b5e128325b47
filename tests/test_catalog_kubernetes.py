"""The catalog of a cluster, on a genuine API server."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from catalogs import RelistError, SourceError, Terms, read_catalogs
from catalogs.kubernetes import KubernetesCatalog, KubernetesSettings, watching
from catalogs.kubernetes.kubeconfig import in_cluster
from catalogs.kubernetes.mapping import Mapped, Mapper
from catalogs.kubernetes.watching import PODS, SERVICES, SLICES, Event
from catalogs.testing import HANG_SECS, Followed, RemoteCatalogSuite, until
from registry import Instance
from tests.servers import counted
from tests.sources import wait_for_sources
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


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow server is waited for; but in the suite below, which has one that hangs."""
    if request.cls is None:
        wait_for_sources(monkeypatch)
        monkeypatch.setattr(watching, "SILENT_SECS", HANG_SECS)


class TestKubernetesCatalog(RemoteCatalogSuite):
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


# What a Service comes to, without asking anybody


def mapped(
    ports: Sequence[dict[str, Any]],
    *,
    annotations: dict[str, str] | None = None,
    endpoints: Sequence[dict[str, Any]] = ({"addresses": ["10.1.0.2"], "conditions": READY},),
    **settings: Any,
) -> Mapped:
    meta = {"namespace": "prod", "name": "api"}
    service = {"metadata": {**meta, "annotations": annotations}, "spec": {}}
    item = {
        "metadata": {**meta, "name": "api-1", "labels": {"kubernetes.io/service-name": "api"}},
        "addressType": "IPv4",
        "ports": list(ports),
        "endpoints": list(endpoints),
    }
    mapper = Mapper("kubernetes:test", KubernetesSettings(name="test", **settings))
    return mapper.mapped(service, [item], {})


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        ({"name": "http", "port": 80}, "http"),
        ({"name": "https", "port": 80}, "https"),
        ({"name": "https-admin", "port": 80}, "https"),
        ({"name": "web", "port": 80, "appProtocol": "https"}, "https"),
        ({"name": "grpc", "port": 80}, "tcp"),
        ({"name": "dns", "port": 80, "protocol": "UDP"}, "udp"),
        ({"name": "http", "port": 80, "protocol": "UDP"}, "udp"),
        ({"name": "udp-like", "port": 80, "protocol": "TCP"}, "tcp"),
        ({"name": "", "port": 80}, "http"),
        ({"name": None, "port": 8443}, "https"),
    ],
)
def test_a_ports_name_and_protocol_set_the_endpoints_type(port: dict[str, Any], kind: str) -> None:
    (one,) = mapped([port]).entries
    assert one.instance.endpoint_type == kind


HTTP = {"name": "http", "port": 8080}
HTTPS = {"name": "https", "port": 8443}
METRICS = {"name": "metrics", "port": 9090, "protocol": "TCP"}
GRPC = {"name": "grpc", "port": 9000}
DNS = {"name": "dns", "port": 5353, "protocol": "UDP"}
SIGNAL = {"name": "signal", "port": 2905, "protocol": "SCTP"}
OWN = {"name": "api", "port": 7070}


@pytest.mark.parametrize(
    ("ports", "more", "wanted"),
    [
        ([DNS, METRICS, GRPC, HTTP], {}, ("http", "10.1.0.2:8080")),
        ([METRICS, HTTPS, HTTP], {}, ("http", "10.1.0.2:8080")),
        ([METRICS, HTTPS], {}, ("https", "10.1.0.2:8443")),
        ([METRICS, OWN], {}, ("http", "10.1.0.2:7070")),
        ([SIGNAL, DNS, METRICS, GRPC], {}, ("http", "10.1.0.2:9090")),
        ([SIGNAL, DNS], {}, ("udp", "10.1.0.2:5353")),
        ([{"name": "http", "port": 1, "protocol": "UDP"}, GRPC], {}, ("tcp", "10.1.0.2:9000")),
        ([HTTP, METRICS], {"port": "metrics"}, ("http", "10.1.0.2:9090")),
        ([HTTP, METRICS], {"port": "9090"}, ("http", "10.1.0.2:9090")),
        ([HTTP, METRICS], {"port": "elsewhere"}, ("http", "10.1.0.2:8080")),
        (
            [HTTP, METRICS, GRPC],
            {"port": "metrics", "annotations": {"registry/port": "grpc"}},
            ("tcp", "10.1.0.2:9000"),
        ),
        ([HTTP, METRICS], {"annotations": {"registry/port": "9090"}}, ("http", "10.1.0.2:9090")),
        ([HTTP, DNS], {"annotations": {"registry/port": "dns"}}, ("udp", "10.1.0.2:5353")),
        ([HTTP, {"name": "all", "port": None}], {}, ("http", "10.1.0.2:8080")),
    ],
)
def test_of_several_ports_the_one_that_is_meant_is_listed(
    ports: Sequence[dict[str, Any]], more: dict[str, Any], wanted: tuple[str, str]
) -> None:
    (one,) = mapped(ports, **more).entries
    assert (one.instance.endpoint_type, one.instance.endpoint_value) == wanted


def test_the_other_ports_are_metadata() -> None:
    (one,) = mapped([HTTP, METRICS, DNS, SIGNAL]).entries
    found = {k: v for k, v in one.instance.metadata.items() if "port" in k}
    assert found == {
        "kubernetes-port": "http",
        "port.metrics": "9090",
        "port.dns": "5353/udp",
        "port.signal": "2905/sctp",
    }


@pytest.mark.parametrize(
    ("ports", "annotations", "told"),
    [
        ([HTTP, DNS], {"registry/port": "web"}, "registry/port is web, and there are http, dns"),
        ([HTTP, SIGNAL], {"registry/port": "signal"}, "registry/port is signal, and there are"),
        ([SIGNAL], None, "prod/api: no port of TCP or UDP"),
    ],
)
def test_a_port_that_is_not_there_is_told_and_nothing_is_listed_instead(
    ports: Sequence[dict[str, Any]], annotations: dict[str, str] | None, told: str
) -> None:
    found = mapped(ports, annotations=annotations)
    assert found.entries == []
    (problem,) = found.problems
    assert told in problem


def test_an_endpoint_that_cannot_be_listed_takes_no_other_with_it() -> None:
    endpoints = [
        {"addresses": ["10.1.0.1"], "conditions": READY},
        {"addresses": ["not a host"]},
        {"addresses": ["10.1.0.3"], "nodeName": "n" * 70_000},
        {"addresses": []},
    ]
    found = mapped([HTTP], endpoints=endpoints)
    assert [e.instance.ip_addr for e in found.entries] == ["10.1.0.1"]
    first, second = found.problems
    assert first.startswith("prod/api at not a host:8080: ")
    assert second.startswith("prod/api at 10.1.0.3:8080: at most 65536 bytes of metadata")


def test_a_template_names_services() -> None:
    (one,) = mapped([HTTP], template="{namespace}-{service}", prefix="k-").entries
    assert (one.instance.app, one.instance.vip_address) == ("K-PROD-API", "k-prod-api")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"template": "{namespace}"}, "template: {service}, {namespace}, letters"),
        ({"template": "{service}/{name}"}, "template: "),
        ({"template": "{service}{}"}, "template: "),
        ({"namespaces": ("Prod",)}, "namespaces: Prod is no name"),
        ({"without": ("kubernetes",)}, "without: expected namespace/name, not kubernetes"),
        ({"context": "here"}, "context: expected a kubeconfig too"),
        ({"prefix": "a b"}, "prefix: letters"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        KubernetesSettings(name="test", **setting)


# From the API server


def test_each_endpoint_is_an_instance_and_what_ends_is_none(source: KubernetesSource) -> None:
    source.service("api")
    ports = [METRICS, {"name": "http", "port": 80}, DNS]
    endpoints = [
        {"addresses": ["10.1.0.1"], "conditions": READY},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": False, "terminating": True}},
        {"addresses": ["10.1.0.4"]},
    ]
    source.slice("api-a", "api", endpoints, ports)
    found = {value: str(i.status) for value, i in listed(source.catalog()).items()}
    assert found == {"10.1.0.1:80": "UP", "10.1.0.2:80": "DOWN", "10.1.0.4:80": "UP"}


def test_names_that_meet_are_told_and_a_template_parts_them(source: KubernetesSource) -> None:
    for namespace, address in (("prod", "10.1.0.1"), ("dev", "10.1.0.2")):
        source.namespace(namespace)
        for name in ("same", f"only-{namespace}"):
            source.service(name, namespace)
            source.slice(f"{name}-a", name, [{"addresses": [address]}], namespace=namespace)
    catalog = source.catalog()
    catalog.list()
    (problem,) = catalog.problems
    assert problem.startswith("dev/same and prod/same are one service, same: ")
    apart = source.catalog(template="{service}-{namespace}")
    groups = apart.list().values()
    assert {e.instance.app for g in groups for e in g or ()} == {
        "SAME-PROD",
        "SAME-DEV",
        "ONLY-PROD-PROD",
        "ONLY-DEV-DEV",
    }
    assert apart.problems == []


def test_a_namespace_without_services_is_told(source: KubernetesSource) -> None:
    source.put("api", "10.1.0.1", 80)
    catalog = source.catalog(namespaces=("nowhere", "default"))
    catalog.list()
    (problem,) = catalog.problems
    assert problem.startswith("the namespace nowhere has no such Services")


def test_what_is_known_of_pods_that_came_and_went_is_forgotten() -> None:
    catalog = KubernetesCatalog(KubernetesSettings(name="test"))
    meta = {"namespace": "default", "name": "api"}
    catalog._know(Event(SERVICES, {"metadata": meta, "spec": {}}, is_gone=False))

    def a_slice(pods: Sequence[str]) -> dict[str, Any]:
        labels = {"kubernetes.io/service-name": "api"}
        return {
            "metadata": {**meta, "name": "api-a", "labels": labels},
            "ports": [HTTP],
            "endpoints": [pod_endpoint(pod, "10.1.0.1") for pod in pods],
        }

    for number in range(100):
        pod = {"metadata": {**meta, "name": f"api-{number}"}}
        catalog._know(Event(PODS, pod, is_gone=False))
        both = [f"api-{number}", f"api-{number + 1}"]
        assert catalog._know(Event(SLICES, a_slice(both), is_gone=False)) == {("default", "api")}
        assert len(catalog._entries(("default", "api")) or ()) == 2
        assert catalog._know(Event(PODS, pod, is_gone=True)) == {("default", "api")}
        assert len(catalog._slices_with) == 2
    catalog._know(Event(SLICES, a_slice(both), is_gone=True))
    catalog._know(Event(SERVICES, {"metadata": meta}, is_gone=True))
    assert catalog._entries(("default", "api")) == ()
    known = (catalog._slices_with, catalog._slices_of, catalog._called, catalog._problems)
    assert [len(index) for index in (*known, *catalog._found.values())] == [0] * 7


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
        (tmp_path / "none", "cannot be read: No such file"),
        (broken, "is no kubeconfig: line 2: "),
        (source.kubeconfig(name="exec", exec={"command": "aws"}), "exec is not supported"),
    ):
        catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
        with pytest.raises(SourceError, match=told):
            catalog.list()


def kubeconfig(path: Path, cluster: dict[str, Any], user: Any = None, **more: Any) -> Path:
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
        "users": [{"name": "u", "user": user}],
        **more,
    }
    path.write_text(yaml.dump(document))
    return path


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"cluster": {"insecure-skip-tls-verify": True}},
            "clusters: c: insecure-skip-tls-verify is not supported",
        ),
        ({"cluster": {"proxy-url": "http://p"}}, "proxy-url is not supported"),
        ({"cluster": {"tls-server-name": "other"}}, "tls-server-name is not supported"),
        ({"cluster": {}, "user": {"as": "somebody"}}, "users: u: as is not supported"),
        (
            {"cluster": {"certificate-authority-data": "%%%"}},
            "clusters: c: certificate-authority-data is no base64",
        ),
        ({"cluster": {"certificate-authority-data": "YWJj"}}, "cannot be used: "),
        ({"cluster": {"certificate-authority": "none.pem"}}, "none.pem cannot be used: No such"),
        ({"cluster": {"server": "127.0.0.1:6443"}}, "server: http:// or https:// must stand"),
        ({"cluster": {"server": 7}}, "server is no text"),
        ({"cluster": {}, "user": {"client-key-data": "YWJj"}}, "both or neither"),
        ({"cluster": {}, "user": []}, "expected a mapping"),
        ({"cluster": {}, "contexts": []}, "no here in contexts"),
        ({"cluster": {}, "clusters": None}, "no c in clusters"),
        ({"cluster": {}, "current-context": None}, "no current-context"),
    ],
)
def test_a_kubeconfig_that_would_not_do_ends_the_start_in_a_line(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    file = kubeconfig(tmp_path / "config", **wrong)
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        read_catalogs(f"[{{kind: kubernetes, kubeconfig: '{file}'}}]")
    assert str(caught.value).startswith("catalog 1 (kubernetes:main): ")


def test_outside_of_a_pod_a_kubeconfig_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ValueError, match=r"not in a Pod: .* set kubeconfig"):
        read_catalogs("[{kind: kubernetes}]")


def test_the_servers_certificate_is_checked(source: KubernetesSource, certificates: Path) -> None:
    other = certificates / "ca.pem"
    text = source.kubeconfig(name="distrust").read_text()
    file = source.folder / "distrust"
    file.write_text(text.replace(str(source.folder / "certs" / "apiserver.crt"), str(other)))
    catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
    with pytest.raises(SourceError, match="cannot be trusted"):
        catalog.list()


def test_a_change_among_thousands_is_seen_without_a_list(
    source: KubernetesSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = counted(monkeypatch, KubernetesCatalog, "list")
    source.put_many([(f"s{n % 20}", f"10.{n // 250}.{n % 250}.1", 80) for n in range(4000)])
    followed = Followed(source, Terms())
    followed.start()
    try:
        until(lambda: len(followed.instances()) >= 4000)
        for number in range(5):
            source.put("alone", f"10.99.0.{number}", 80)
            until(lambda n=number: (f"10.99.0.{n}", 80) in followed.instances())
        assert len(lists) == 1
    finally:
        followed.runner.stop()
