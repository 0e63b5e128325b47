"""What is in ``deploy/``: applied, verified or performed as far as that goes without a cluster."""

from __future__ import annotations

import configparser
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from catalogs.kubernetes import KubernetesCatalog, KubernetesSettings
from conformance.programs import free_port
from eureka_server.settings import load
from registry.stores.redis import read_address
from tests.image import as_read
from tests.parcel import Installed
from tests.servers import HANG_SECS, ROOT, RegistryServer, send, wait_until
from tests.sources.kubernetes import KubernetesSource, Object

DEPLOY = ROOT / "deploy"
REGISTRY = DEPLOY / "kubernetes" / "registry.yaml"
ON_REDIS = DEPLOY / "kubernetes" / "registry-on-redis.yaml"
CATALOG = DEPLOY / "kubernetes" / "catalog.yaml"
UNIT = DEPLOY / "eureka-registry.service"
REQUESTS_SECS = 10  # gunicorn's graceful_timeout


def documents(file: Path) -> list[Object]:
    return list(yaml.safe_load_all(file.read_text()))


def of_kind(kind: str, file: Path = REGISTRY) -> Object:
    """The one object of this kind; of the Services, the one for clients."""
    found = [each for each in documents(file) if each["kind"] == kind]
    (one,) = [each for each in found if each["metadata"]["name"] == "registry"]
    return one


def test_all_that_deploys_names_one_version() -> None:
    text = "\n".join(file.read_text() for file in DEPLOY.rglob("*") if file.is_file())
    named = re.findall(r"(?:eureka-registry:|eureka_registry-|VERSION: )(\d+\.\d+\.\d+)", text)
    assert len(named) == 5
    assert len(set(named)) == 1


# Kubernetes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesSource]:
    source = KubernetesSource(tmp_path_factory.mktemp("cluster"))
    yield source
    source.close()


@pytest.fixture(scope="module")
def warnings(cluster: KubernetesSource) -> list[str]:
    """What the API server has to say of the manifests, which it has afterwards."""
    return cluster.manifests(REGISTRY) + cluster.manifests(CATALOG)


def missing(wanted: Any, there: Any, path: str = "") -> list[str]:
    """The places where something is not there as it is wanted; more may be there."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [
            place
            for key, value in wanted.items()
            for place in missing(value, there.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = enumerate(zip(wanted, there, strict=True))
        return [place for i, (w, t) in pairs for place in missing(w, t, f"{path}[{i}]")]
    return [] if wanted == there else [f"{path}: {wanted!r}, and there is {there!r}"]


@pytest.mark.programs
@pytest.mark.usefixtures("warnings")
def test_the_api_server_takes_the_manifests_as_they_are(cluster: KubernetesSource) -> None:
    for document in documents(REGISTRY) + documents(CATALOG):
        assert missing(document, cluster.ask("GET", cluster.path_of(document))) == []


@pytest.mark.programs
def test_nothing_in_the_manifests_is_worth_a_warning(warnings: list[str]) -> None:
    assert warnings == []


@pytest.mark.programs
@pytest.mark.usefixtures("warnings")
def test_the_api_server_takes_those_for_redis_in_their_place(cluster: KubernetesSource) -> None:
    try:
        assert cluster.manifests(ON_REDIS) == []
        for document in documents(ON_REDIS):
            assert missing(document, cluster.ask("GET", cluster.path_of(document))) == []
    finally:
        cluster.manifests(REGISTRY)


def pod_of(controller: Object) -> Object:
    """The first Pod, as the controller of stateful sets or of deployments makes it."""
    spec = controller["spec"]
    template = spec["template"]
    claims = [
        {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-registry-0"}}
        for name in (claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ()))
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "registry-0", "namespace": "registry"},
        "spec": {**template["spec"], "volumes": [*template["spec"]["volumes"], *claims]},
    }


@pytest.mark.programs
@pytest.mark.usefixtures("warnings")
@pytest.mark.parametrize(("kind", "file"), [("StatefulSet", REGISTRY), ("Deployment", ON_REDIS)])
def test_the_pod_fits_the_strictest_profile(
    cluster: KubernetesSource, kind: str, file: Path
) -> None:
    pod = pod_of(of_kind(kind, file))
    answer = cluster.session.post(
        f"{cluster.url}/api/v1/namespaces/registry/pods?dryRun=All&fieldValidation=Strict",
        json=pod,
        timeout=HANG_SECS,
    )
    assert (answer.status_code, answer.headers.get("Warning")) == (201, None), answer.text
    # It is asked for at all: the same Pod with one right more is refused.
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    refused = cluster.session.post(answer.url, json=pod, timeout=HANG_SECS)
    assert refused.status_code == 403
    assert "PodSecurity" in refused.text


def as_account(cluster: KubernetesSource, token: str, path: str, spec: Object) -> Object:
    answer = cluster.session.post(
        f"{cluster.url}/apis/authorization.k8s.io/v1/{path}",
        json={"spec": spec},
        headers={"Authorization": f"Bearer {token}"},
        timeout=HANG_SECS,
    )
    assert answer.status_code == 201, answer.text
    status: Object = answer.json()["status"]
    return status


def rules(cluster: KubernetesSource, account: str) -> set[tuple[str, str, str]]:
    """Each verb on each kind of object that an account has by the rules of its roles."""
    token = cluster.token_of(account, "registry")
    spec = {"namespace": "registry"}
    told = as_account(cluster, token, "selfsubjectrulesreviews", spec)
    assert not told["incomplete"]
    return {
        triple
        for rule in told["resourceRules"]
        for triple in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


NEEDED = set(itertools.product([""], ["services", "pods"], ["list", "watch"])) | {
    ("discovery.k8s.io", "endpointslices", "list"),
    ("discovery.k8s.io", "endpointslices", "watch"),
}


@pytest.mark.programs
@pytest.mark.usefixtures("warnings")
def test_the_account_may_do_what_the_catalog_does_and_nothing_else(
    cluster: KubernetesSource,
) -> None:
    nobody: Object = {"metadata": {"name": "nobody"}}
    cluster.apply("/api/v1/namespaces/registry/serviceaccounts", nobody)
    assert rules(cluster, "registry") - rules(cluster, "nobody") == NEEDED
    token = cluster.token_of("registry", "registry")
    kinds = [("", "services"), ("", "pods"), ("discovery.k8s.io", "endpointslices")]
    kinds += [("", "secrets"), ("", "configmaps"), ("", "nodes"), ("apps", "statefulsets")]
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    allowed = set()
    for (group, resource), verb in itertools.product(kinds, verbs):
        spec = {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}}
        if as_account(cluster, token, "selfsubjectaccessreviews", spec)["allowed"]:
            allowed.add((group, resource, verb))
    assert allowed == NEEDED


@pytest.mark.programs
@pytest.mark.usefixtures("warnings")
def test_with_that_account_the_catalog_lists_and_watches(cluster: KubernetesSource) -> None:
    cluster.put("api", "10.1.0.1", 80)
    file = cluster.kubeconfig(cluster.token_of("registry", "registry"), "least")
    catalog = KubernetesCatalog(KubernetesSettings(name="test", kubeconfig=file))
    listed = [entry for group in catalog.list().values() for entry in group]
    assert {entry.instance.endpoint_value for entry in listed} == {"10.1.0.1:80"}
    cluster.put("api", "10.1.0.2", 80)
    stop = threading.Event()
    for changed in catalog.watch(stop):
        found = {e.instance.endpoint_value for group in changed.values() for e in group or ()}
        if found == {"10.1.0.1:80", "10.1.0.2:80"}:
            break
    stop.set()
    catalog.close()


def test_the_pod_asks_for_what_there_is() -> None:
    stateful = of_kind("StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    users = environ.pop("REGISTRY_USERS_FILE")
    environment = load(environ | {"REGISTRY_AUTH": "trusted"})
    assert environment.warnings == ()
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert environment.store_url.removeprefix("lmdb:") in mounts
    assert str(Path(users).parent) in mounts
    (port,) = container["ports"]
    assert port["containerPort"] == environment.port
    assert of_kind("Service")["spec"]["ports"][0]["port"] == environment.port
    assert of_kind("NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"] == port["name"]
    assert stateful["spec"]["replicas"] == 1
    assert pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] > REQUESTS_SECS
    assert pod["serviceAccountName"] == of_kind("ServiceAccount")["metadata"]["name"]
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"] == labels
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert of_kind(kind)["spec"][field]["matchLabels"] == labels


def test_what_is_switched_off_in_the_pod_can_be_switched_on() -> None:
    """The catalog of the cluster, and peers where there are more replicas than one."""
    text = re.sub(r"# (- \{ name: [A-Z_]+, value)", r"\1", REGISTRY.read_text())
    objects = list(yaml.safe_load_all(text))
    (stateful,) = [each for each in objects if each["kind"] == "StatefulSet"]
    (headless,) = [each for each in objects if each.get("spec", {}).get("clusterIP") == "None"]
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    environ.pop("REGISTRY_USERS_FILE")
    (catalog,) = yaml.safe_load(environ.pop("REGISTRY_CATALOGS"))  # it is read in a Pod alone
    environment = load(environ | {"REGISTRY_AUTH": "trusted"})
    assert environment.warnings == ()
    assert catalog == {"kind": "kubernetes", "name": "main"}
    (url,) = environment.peers.urls
    assert urlsplit(str(url)).hostname == headless["metadata"]["name"]
    assert stateful["spec"]["serviceName"] == headless["metadata"]["name"]
    assert headless["spec"]["ports"] == of_kind("Service")["spec"]["ports"]
    assert headless["spec"]["selector"] == of_kind("Service")["spec"]["selector"]
    # Who asks each other at the start finds each other before one is ready, and none waits.
    assert headless["spec"]["publishNotReadyAddresses"] is True
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"


def test_several_on_redis_differ_from_one_in_what_redis_needs_alone() -> None:
    for kind in ("Namespace", "ServiceAccount", "Service", "NetworkPolicy"):
        assert of_kind(kind, ON_REDIS) == of_kind(kind)
    alone, several = of_kind("StatefulSet"), of_kind("Deployment", ON_REDIS)
    assert several["spec"]["selector"] == alone["spec"]["selector"]
    # The next one is ready before another goes, and a drain takes no second one meanwhile.
    assert several["spec"]["replicas"] > 1
    assert several["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert of_kind("PodDisruptionBudget", ON_REDIS)["spec"]["maxUnavailable"] == 1

    pod, other = (each["spec"]["template"]["spec"] for each in (alone, several))
    assert pod["securityContext"].pop("fsGroupChangePolicy") == "OnRootMismatch"
    (spread,) = other.pop("topologySpreadConstraints")
    assert spread["labelSelector"] == several["spec"]["selector"]
    # Of each Pod's own, and gone with it.
    (copy,) = [each for each in other["volumes"] if each["name"] == "data"]
    other["volumes"].remove(copy)
    assert set(copy) == {"name", "emptyDir"}
    # While Redis is away no Pod is ready by its own word, though all of them serve.
    variables, probes = [], []
    for each in (pod, other):
        (container,) = each["containers"]
        gets = (container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness"))
        probes.append([get.pop("path") for get in gets])
        variables.append({variable["name"]: variable for variable in container.pop("env")})
        container["env"] = {k: v for k, v in variables[-1].items() if k != "STORE_URL"}
    assert other == pod
    assert probes == [["/health/ready"] * 2, ["/health/live"] * 2]

    # The Secret that its head tells how to make.
    head = ON_REDIS.read_text().partition("\napiVersion")[0]
    secret = variables[1]["STORE_URL"]["valueFrom"]["secretKeyRef"]
    assert f"secret generic {secret['name']} " in head
    ((key, url),) = re.findall(r"--from-literal=(\w+)='(.+)'", head)
    assert key == secret["key"]
    assert load({"STORE_URL": url}).warnings == ()
    (container,) = pod["containers"]
    assert read_address(url).folder in {each["mountPath"] for each in container["volumeMounts"]}


# Compose


@pytest.mark.programs
def test_compose_runs_the_image_as_it_is_made() -> None:
    """As Compose itself reads the file, which refuses what it does not know."""
    project = as_read("compose", DEPLOY / "compose.yaml")
    (service,) = project["services"].values()
    dockerfile = as_read("dockerfile", ROOT / "Dockerfile")["instructions"]
    given = dict(dockerfile)
    assert service["build"]["context"] == str(ROOT)
    assert [f"{name}=" for name in service["build"]["args"]] == [given["ARG"]]
    environment = load(service["environment"])
    assert environment.warnings == ()
    (port,) = service["ports"]
    assert (port["published"], port["target"]) == (str(environment.port), environment.port)
    assert given["EXPOSE"] == str(environment.port)
    (volume,) = service["volumes"]
    assert (volume["type"], volume["source"] in project["volumes"]) == ("volume", True)
    assert given["VOLUME"] == volume["target"]
    assert given["ENV"] == f"STORE_URL=lmdb:{volume['target']}"
    # Nothing else can be written, and nothing more can be had.
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["stop_grace_period"].removesuffix("s")) > REQUESTS_SECS


@pytest.mark.programs
def test_compose_runs_several_on_redis_that_differ_from_one_in_what_redis_needs_alone() -> None:
    (alone,) = as_read("compose", DEPLOY / "compose.yaml")["services"].values()
    services = as_read("compose", DEPLOY / "compose.redis.yaml")["services"]
    several = services["registry"]
    environment = several.pop("environment")
    assert load(environment).warnings == ()
    address = read_address(environment["STORE_URL"])
    assert urlsplit(environment["STORE_URL"]).hostname in services
    # A volume without a name is of one container alone.
    (volume,) = several.pop("volumes")
    assert (volume["type"], volume.get("source"), volume["target"]) == (
        "volume",
        None,
        address.folder,
    )
    (port,), (one,) = several.pop("ports"), alone.pop("ports")
    first, last = map(int, port["published"].split("-"))
    assert (str(first), port["target"]) == (one["published"], one["target"])
    assert last - first + 1 == several["deploy"].pop("replicas")
    assert several.pop("depends_on")["redis"]["condition"] == "service_healthy"
    for name in ("environment", "volumes"):
        del alone[name]
    assert several == alone
    command = services["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


# systemd


def unit(text: str) -> dict[str, dict[str, list[str]]]:
    """The sections of a unit; a name that comes again has several values."""

    class Values(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(
        dict_type=Values, strict=False, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: {k: v.split("\n") for k, v in parser[name].items()} for name in parser.sections()}


def test_the_unit_closes_what_the_service_does_not_need() -> None:
    service = unit(UNIT.read_text())["Service"]
    state = f"/var/lib/{service['StateDirectory'][0]}"
    assert service["Environment"] == [f"STORE_URL=lmdb:{state}"]
    assert service["WorkingDirectory"] == [state]
    assert int(service["TimeoutStopSec"][0]) > REQUESTS_SECS
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert service[name] == ["yes"]


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"
)


@pytest.mark.programs
@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    file = tmp_path / UNIT.name
    # The command need not be installed here.
    file.write_text(UNIT.read_text().replace("/opt/eureka-registry/bin/eureka-registry", "/bin/sh"))
    words = ["systemd-analyze", "verify", "--man=no", str(file)]
    verified = subprocess.run(words, capture_output=True, text=True, timeout=HANG_SECS)
    # It looks at others' units, too.
    assert [line for line in verified.stderr.splitlines() if UNIT.stem in line] == []


@pytest.mark.programs
@needs_systemd
def test_systemd_thinks_the_unit_well_closed() -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)]
    judged = subprocess.run(words, capture_output=True, text=True, timeout=HANG_SECS)
    assert judged.returncode == 0, judged.stdout


# What systemd does for UMask= and, from Linux 6.3 on, for MemoryDenyWriteExecute=.
CLOSED = (
    "import ctypes, os, sys; os.umask(0o077); ctypes.CDLL(None).prctl(65, 1, 0, 0, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_the_unit_is_told_when_the_server_is_ready_and_ends_it_well(
    installed: Installed, tmp_path: Path
) -> None:
    """Its command, variables and reload, with a folder in place of the system's root."""
    service = unit(UNIT.read_text())["Service"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert (service["UMask"], service["MemoryDenyWriteExecute"]) == (["0077"], ["yes"])
    state = tmp_path / "state"
    state.mkdir()
    (there,) = service["WorkingDirectory"]
    variables = [each.replace(there, str(state)).partition("=") for each in service["Environment"]]
    program, *words = service["ExecStart"][0].split()
    assert Path(program).name == installed.command.name
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(HANG_SECS)
        systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        systemd.bind(str(tmp_path / "notify"))
        process = subprocess.Popen(
            [sys.executable, "-c", CLOSED, installed.command, *words],
            cwd=state,
            env={
                "PATH": "/usr/bin:/bin",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "WORKERS": "1",
                **{name: value for name, _, value in variables},
            },
            start_new_session=True,
        )
        try:
            told, credentials, _, _ = systemd.recvmsg(4096, socket.CMSG_SPACE(12))
            assert b"READY=1" in told.splitlines()
            # NotifyAccess=main lets the word of the main process alone count.
            assert struct.unpack("iii", credentials[0][2])[0] == process.pid
            assert send(port, "GET", "/eureka/apps").status == 200
            assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
            before = children(process.pid)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: not before & children(process.pid), "other workers")
            assert service["KillMode"] == ["mixed"]  # SIGTERM for the main process alone
            wait_until(lambda: send(port, "GET", "/health/ready").status == 200, "readiness")
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_SECS) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def calls_of(group: str) -> set[str]:
    """The system calls of one of systemd's groups, those of the groups in it among them."""
    words = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    told = subprocess.run(
        words, capture_output=True, text=True, timeout=HANG_SECS, check=True
    ).stdout
    names = [line.strip() for line in told.splitlines()[1:] if line.strip()]
    inside = [calls_of(name) if name[0] == "@" else {name} for name in names if name[0] != "#"]
    return set().union(*inside)


@needs_systemd
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
def test_the_unit_lets_through_each_system_call_that_a_server_makes(
    installed: Installed, tmp_path: Path
) -> None:
    service = unit(UNIT.read_text())["Service"]
    allowed, (refused, *others) = calls_of("@system-service"), service["SystemCallFilter"][1:]
    assert (service["SystemCallFilter"][0], others) == ("@system-service", [])
    allowed -= calls_of(refused.removeprefix("~"))
    trace = tmp_path / "trace"
    server = RegistryServer(tmp_path)
    server.command = ("strace", "-f", "-qq", "-o", str(trace), str(installed.command), "serve")
    server.runs_in = tmp_path
    process = server.launch()
    try:
        wait_until(lambda: trace.exists() and answers(server), "readiness")
        assert server.register("SHOP", "shop:1") == 204
        assert server.send("GET", "/api/v1/docs").status == 200
        (main,) = children(process.pid)
        before = children(int(main))
        os.kill(int(main), signal.SIGHUP)
        wait_until(lambda: not before & children(int(main)), "other workers")
        os.kill(int(main), signal.SIGTERM)
        assert process.wait(HANG_SECS) == 0
    finally:
        if process.poll() is None:
            server.kill9()
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert len(made) > 50
    assert made - allowed == set()


def answers(server: RegistryServer) -> bool:
    try:
        return server.send("GET", "/health/ready").status == 200
    except OSError:
        return False
