"""Catalogs as parts of the server: what is set up, who may write what, who runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from catalogs import Entry, Groups, RelistError, Report, Runner, Terms, read_catalogs
from catalogs.addresses import Addresses
from catalogs.entries import entry
from catalogs.metrics import families
from catalogs.testing import until
from conformance.programs import Program
from conformance.programs import named as named_program
from registry import (
    DEFAULT_NAMESPACE,
    Instance,
    Namespace,
    NamespaceRegistry,
    Registry,
    RegistrySettings,
    SourceConflictError,
    SystemClock,
    open_store,
)
from registry.testing import sample_instance
from tests.servers import HANG_SECS, JSON, RegistryServer, instance_body, wait_until
from tests.sources.kubernetes import KubernetesSource
from tests.test_native_api import World

SOURCE = "file:test"


def catalog_instance(host: str = "10.9.9.9:80") -> Instance:
    told = entry(
        SOURCE,
        service_name="outside",
        endpoint_type="http",
        endpoint_value=host,
        namespace=DEFAULT_NAMESPACE,
    )
    return told.instance


@pytest.fixture
def world() -> World:
    return World()


# Settings


def test_catalogs_are_set_up_by_a_list_or_a_file(tmp_path: Path) -> None:
    text = json.dumps(
        [
            {"kind": "file", "name": "a", "folder": str(tmp_path)},
            {"kind": "file", "name": "b", "folder": str(tmp_path), "stale_after_secs": 3},
        ]
    )
    (tmp_path / "catalogs.yaml").write_text(f"catalogs: {text}")
    for given in (text, str(tmp_path / "catalogs.yaml")):
        first, second = read_catalogs(given)
        assert (first.source, second.source) == ("file:a", "file:b")
        assert (first.terms.stale_after_secs, second.terms.stale_after_secs) == (10.0, 3.0)
        assert second.make().source == "file:b"


def file_with(setting: str) -> str:
    return f"[{{kind: file, folder: /x, {setting}}}]"


def eureka_with(setting: str) -> str:
    return f"[{{kind: eureka, urls: ['http://h/'], {setting}}}]"


def urls(url: str) -> str:
    return f"[{{kind: eureka, urls: ['http://good/', '{url}']}}]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/no/such/file", "No such file"),
        ("[1]", "catalog 1: a kind, one of file"),
        ("[{kind: ftp}]", "catalog 1: a kind, one of file"),
        ("[{kind: file}]", "catalog 1 (file:main): folder is missing"),
        ("[{kind: file, folder: /x, colour: red}]", "no setting 'colour'; there are"),
        ("[{kind: file, folder: 7}]", "folder: "),
        ("[{kind: file, name: 'a b', folder: /x}]", "letters, digits"),
        ("[{kind: file, folder: /x}, {kind: file, folder: /y}]", "file:main is there twice"),
        ("[{kind: file, folder: /x, stale_after_secs: soon}]", "a number expected"),
        ("{a: [}", "YAML or JSON"),
        ("[{kind: [file]}]", "catalog 1: a kind, one of file"),
        ("[{kind: file, kind: etcd, folder: /x}]", "kind stands twice"),
        ("[{kind: file, name: null, folder: /x}]", "letters, digits"),
        ("[{kind: file, name: 7, folder: /x}]", "letters, digits"),
        ("[{kind: file, folder: ''}]", "folder: a path expected"),
        ('[{kind: file, folder: "a\\0b"}]', "folder: a path expected"),
        ("[{kind: file, 7: x, folder: /x}]", "the key 7 is no text"),
        (file_with("stale_after_secs: -1"), "stale_after_secs: from 0.1 to 31622400, not -1"),
        (file_with("stale_after_secs: 0"), "stale_after_secs: from 0.1 to"),
        (file_with("stale_after_secs: .nan"), ".nan is no float"),
        (file_with("stale_after_secs: .inf"), ".inf is no float"),
        (file_with("stale_after_secs: 1.0e+300"), "stale_after_secs: from 0.1 to"),
        (file_with("stale_after_secs: true"), "a number expected"),
        (file_with("remove_after_secs: -1"), "remove_after_secs: from 0.1 to"),
        (file_with("remove_after_secs: " + "9" * 400), "a number expected"),
        (urls("eureka-1:8761/eureka"), "urls: http:// or https:// must stand before eureka-1:8761"),
        (urls("http://h:99999"), "urls: not an http(s) URL: its host or its port"),
        (urls("http://h:0"), "urls: not an http(s) URL: "),
        (urls("http://h:x"), "urls: not an http(s) URL: "),
        (urls("http://"), "urls: not an http(s) URL: "),
        (urls("http://a b/"), "urls: not an http(s) URL: "),
        (urls("http://a/\u00e9"), "urls: not an http(s) URL: "),
        (urls(" http://a/"), "urls: not an http(s) URL"),
        (urls("ftp://a/"), "urls: not an http(s) URL: ftp://a/"),
        (urls("http://a/?b=c"), "urls: no query and no fragment"),
        (urls("http://[::1/"), "urls: not an http(s) URL: its host or its port"),
        (urls("http://-a-/"), "urls: no host's name"),
        (urls(""), "urls: a URL expected"),
        (urls("http://u:SECRET/@h"), "urls: not an http(s) URL"),
        ("[{kind: eureka, urls: []}]", "urls: at least one"),
        ("[{kind: eureka, urls: [7]}]", "urls: a URL expected"),
        ("[{kind: eureka, urls: {a: b}}]", "urls: a URL expected"),
        (eureka_with("interval_secs: 0"), "interval_secs: from 0.1 to 3600, not 0"),
        (eureka_with("interval_secs: 1.0e+30"), "interval_secs: from 0.1 to 3600"),
        (eureka_with("grace_secs: -1"), "grace_secs: from 0 to"),
        (eureka_with("applications: ['']"), "applications: a text on one line expected"),
        (eureka_with("namespace: 'bad ns!'"), "namespace: a namespace's name"),
        (eureka_with("local_wins: maybe"), "local_wins: one of application, instance"),
        (eureka_with("ca_file: /no/such"), "/no/such cannot be used: No such file"),
        ("[{kind: consul, url: 'localhost:8500'}]", "must stand before localhost:8500"),
        ("[{kind: consul, url: 'http://u:SECRET@h'}]", "no name and no password can stand in"),
        ("[{kind: consul, wait_secs: 0}]", "wait_secs: from 1 to 600, not 0"),
        ("[{kind: consul, prefix: 'a/b,'}]", "prefix: letters, digits"),
        ("[{kind: consul, token_file: /no/such}]", "token_file: /no/such cannot be read: No such"),
        ("[{kind: etcd, endpoints: ['127.0.0.1:2379']}]", "must stand before 127.0.0.1:2379"),
        ("[{kind: etcd, endpoints: []}]", "endpoints: at least one"),
        ("[{kind: etcd, prefix: /}]", "prefix: at least one character"),
        ("[{kind: etcd, username: a}]", "username and password_file, both or neither"),
        ("[{kind: etcd, ca_file: /etc/hostname}]", "/etc/hostname cannot be used: "),
        ('[{kind: file, folder: /x, name: "a\\nb"}]', "(file:a\\nb): letters"),
        ('[{kind: file, folder: /x, name: "http://u:SECRET@h"}]', "(file:http://…@h): letters"),
        ('[{kind: file, folder: /x, "http://u:SECRET@h": 1}]', "no setting 'http://…@h'"),
        ("[{kind: file, folder: /etc/hostname}]", "folder: /etc/hostname is a file"),
        ("kind: eureka, urls: http://u:SECRET@h/", "the path of a file: No such file"),
    ],
)
def test_a_wrong_setting_is_named_with_its_catalog(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        read_catalogs(text)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Who may write what


def test_what_a_catalog_lists_has_no_lease_and_does_not_count(world: World) -> None:
    registry = world.registry
    before = registry.self_preservation().expected_clients
    registry.register(catalog_instance())
    assert registry.self_preservation().expected_clients == before
    world.pass_time(500)
    assert registry.instance("OUTSIDE", catalog_instance().id) is not None


def test_nobody_else_changes_what_a_catalog_lists(world: World) -> None:
    instance = catalog_instance()
    world.registry.register(instance)
    revision = world.registry.view().revision
    for method, path, body in (
        ("PUT", f"/instances/{instance.id}", {"status": "DOWN"}),
        ("PUT", f"/instances/{instance.id}", {"metadata": {"a": 1}}),
        ("PUT", f"/instances/{instance.id}/heartbeat", None),
        ("DELETE", f"/instances/{instance.id}", None),
    ):
        reply = world.send(method, path, body)
        assert reply.status_code == 409, path
        assert SOURCE in reply.json["detail"]
    same = {"service_name": "outside", "endpoint": {"type": "http", "value": "10.9.9.9:80"}}
    assert world.send("POST", "/instances", same).status_code == 409
    below = f"/apps/OUTSIDE/{instance.id}"
    assert world.eureka("PUT", below).status_code == 404
    assert world.eureka("DELETE", below).status_code == 404
    assert world.eureka("PUT", f"{below}/status?value=DOWN").status_code == 409
    assert world.eureka("DELETE", f"{below}/status").status_code == 409
    assert world.eureka("PUT", f"{below}/metadata?a=1").status_code == 409
    body = instance_body("OUTSIDE", instance.id)
    assert world.eureka("POST", "/apps/OUTSIDE", body).status_code == 409
    assert world.registry.view().revision == revision


def test_a_client_known_from_another_eureka_server_may_register_here(world: World) -> None:
    registry: NamespaceRegistry = world.registry
    registry.register(sample_instance(source="eureka:old", last_dirty_ms=99))
    registry.register(sample_instance(last_dirty_ms=1))
    found = registry.instance("WEB", "web:1")
    assert found is not None
    assert found.source == "eureka"
    with pytest.raises(SourceConflictError):
        registry.register(sample_instance(source="eureka:old"))
    assert registry.renew("WEB", "web:1") is not None


def test_the_word_of_a_source_replaces_its_last_one_whatever_the_timestamps(world: World) -> None:
    registry = world.registry
    registry.register(sample_instance(source="eureka:old", last_dirty_ms=99))
    registry.register(sample_instance(source="eureka:old", last_dirty_ms=1, port=81))
    found = registry.instance("WEB", "web:1")
    assert found is not None
    assert found.port == 81


def test_each_catalog_has_its_figures() -> None:
    reports = [Report(source="file:a", entries=3, stale=True, last_success_ms=1000, errors=2)]
    samples = [each for family in families(reports, 3500) for each in family.samples]
    told = {each.name: each.value for each in samples}
    assert {each.labels["source"] for each in samples} == {"file:a"}
    assert told["registry_catalog_entries"] == 3
    assert told["registry_catalog_stale"] == 1
    assert told["registry_catalog_silence_seconds"] == 2.5
    assert told["registry_catalog_errors_total"] == 2


# Who runs them, and what goes wrong


class FakeCatalog:
    """A fake source: it says what it is given, or fails as it is told to."""

    quiet_secs = 60.0
    prefers_local = False
    problems: Sequence[str] = ()

    def __init__(self, source: str, *entries: Entry, errors: Sequence[Exception] = ()) -> None:
        self.source = source
        self.entries = entries
        self.errors = list(errors)
        self.listed = 0
        self.hang = threading.Event()
        self.hang.set()

    def list(self) -> Groups:
        self.listed += 1
        if self.errors:
            raise self.errors.pop(0)
        return {"all": self.entries}

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        while not stopping.wait(0.02):
            self.hang.wait(HANG_SECS)
            yield {}

    def close(self) -> None:
        pass


class Running:
    """A runner over some catalogs, on a registry in memory."""

    def __init__(self, *catalogs: FakeCatalog, makes: dict[str, Any] | None = None) -> None:
        self.registry = Registry(open_store("memory:"), SystemClock(), RegistrySettings())
        self.registry.start()
        made = {c.source: (lambda c=c: c) for c in catalogs} | (makes or {})
        set_up = [(make, source, Terms()) for source, make in made.items()]
        self.runner = Runner(self.registry, set_up, is_open=True)
        self.runner.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.stop()

    def apps(self, namespace: Namespace = DEFAULT_NAMESPACE) -> set[str]:
        view = self.registry.in_namespace(namespace).view()
        with view.lock:
            return set(view.applications)

    def report(self, source: str) -> Report:
        return next(r for r in self.runner.reports() if r.source == source)


def an_entry(source: str, name: str = "web", **more: Any) -> Entry:
    told = {"endpoint_type": "http", "endpoint_value": "10.0.0.1:80"} | more
    return entry(source, service_name=name, **({"namespace": DEFAULT_NAMESPACE} | told))


def test_a_catalog_that_cannot_be_made_is_told_and_tried_again_and_touches_no_other() -> None:
    may = threading.Event()
    late = FakeCatalog("fake:late", an_entry("fake:late", "late"))

    def make() -> FakeCatalog:
        if not may.is_set():
            raise ValueError("not an http(s) URL")
        return late

    good = FakeCatalog("fake:good", an_entry("fake:good", "good"))
    with Running(good, makes={"fake:late": make}) as running:
        until(lambda: running.apps() == {"GOOD"})
        report = until(lambda: (r := running.report("fake:late")).state == "failing" and r)
        assert report.last_error == "ValueError: not an http(s) URL"
        may.set()
        until(lambda: running.apps() == {"GOOD", "LATE"})
        until(lambda: running.report("fake:late").state == "following")


def test_a_catalog_whose_making_hangs_holds_up_no_other() -> None:
    may = threading.Event()

    def make() -> FakeCatalog:
        may.wait(HANG_SECS)
        return FakeCatalog("fake:slow")

    good = FakeCatalog("fake:good", an_entry("fake:good", "good"))
    with Running(makes={"fake:slow": make, "fake:good": lambda: good}) as running:
        until(lambda: running.apps() == {"GOOD"})
        may.set()


def test_a_source_that_hangs_without_a_word_is_noticed() -> None:
    """As a folder on a file server that is gone: its own thread cannot say so."""
    source = FakeCatalog("fake:a", an_entry("fake:a"))
    source.quiet_secs = 0.2
    with Running(source) as running:
        until(lambda: running.report("fake:a").state == "following")
        source.hang.clear()
        report = until(lambda: (r := running.report("fake:a")).state == "failing" and r)
        assert "not a word for" in str(report.last_error)
        assert running.apps() == {"WEB"}
        source.quiet_secs = 60.0
        source.hang.set()
        until(lambda: running.report("fake:a").state == "following")


def test_an_unforeseen_error_is_logged_once_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    errors = [KeyError("header") for _ in range(3)]
    with Running(FakeCatalog("fake:odd", an_entry("fake:odd"), errors=errors)) as running:
        until(lambda: running.apps() == {"WEB"})
        report = running.report("fake:odd")
        assert (report.last_error, report.errors) == ("KeyError: 'header'", 3)
    told = [r for r in caplog.records if "KeyError" in r.getMessage()]
    assert len(told) == 1
    assert "\n" not in told[0].getMessage()


def test_what_cannot_be_listed_is_told_by_its_name_and_holds_up_nothing() -> None:
    source = "fake:odd"
    good = an_entry(source, "good")
    long = Entry(good.instance._replace(app="LONG" * 500), DEFAULT_NAMESPACE)
    half = Entry(good.instance._replace(app="HALF", metadata={"a": "\ud800"}), DEFAULT_NAMESPACE)
    tagged = Entry(good.instance._replace(app="TAGGED", tags=("\udfff",)), DEFAULT_NAMESPACE)
    wrong = Entry(
        good.instance._replace(app="WRONG", port=2**70, last_dirty_ms=2**70), DEFAULT_NAMESPACE
    )
    with Running(FakeCatalog(source, long, half, tagged, wrong, good)) as running:
        until(lambda: running.apps() >= {"GOOD"})
        problems = until(lambda: len(p := running.report(source).problems) >= 3 and p)
        assert "GOOD" in running.apps()
        assert not running.apps() & {"HALF", "TAGGED"}
        text = "\n".join(problems)
        assert "LONGLONG" in text
        assert "(2000 characters)" in text
        assert "HALF/" in text
        assert "TAGGED/" in text
        assert running.report(source).state == "following"
        assert running.report(source).shadowed == 0


def test_entries_that_nobody_sees_are_told(caplog: pytest.LogCaptureFixture) -> None:
    hidden = an_entry("fake:a", namespace=Namespace("partners"))
    with Running(FakeCatalog("fake:a", hidden)) as running:
        (problem,) = until(lambda: running.report("fake:a").problems)
        assert problem == (
            "all is in the namespace partners, and nobody sees it: without accounts there is "
            "default alone"
        )
        assert running.apps(Namespace("partners")) == {"WEB"}
    assert len([r for r in caplog.records if "nobody sees it" in r.getMessage()]) == 1


def test_a_source_that_asks_for_a_list_again_and_again_is_not_asked_all_the_time() -> None:
    again = FakeCatalog("fake:a", errors=[RelistError("again")] * 1000)
    with Running(again) as running:
        until(lambda: running.report("fake:a").relists >= 2)
        assert again.listed < 20


def test_a_name_is_not_looked_up_any_more_once_all_is_over() -> None:
    addresses = Addresses(lambda: None, lambda host: "10.0.0.1")
    addresses.close()
    addresses.refresh({"db.example"})
    assert addresses.get("db.example") is None


# In the real server


def write(folder: Path, instances: list[dict[str, Any]]) -> None:
    fresh = folder / ".new"
    fresh.write_text(json.dumps({"instances": instances}))
    fresh.rename(folder / "default.json")


def outside(count: int) -> list[dict[str, Any]]:
    return [
        {"service_name": "outside", "endpoint": {"type": "http", "value": f"10.77.0.{n}:80"}}
        for n in range(1, count + 1)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    return folder


def server_with(folder: Path, tmp_path: Path, **terms: Any) -> RegistryServer:
    catalogs = [{"kind": "file", "name": "test", "folder": str(folder), **terms}]
    return RegistryServer(tmp_path, env={"REGISTRY_CATALOGS": json.dumps(catalogs)})


def report_of(server: RegistryServer) -> dict[str, Any]:
    (report,) = server.send("GET", "/api/v1/catalogs").json()["catalogs"]
    return dict(report)


@pytest.mark.slow
def test_a_killed_workers_catalog_goes_on_in_another(folder: Path, tmp_path: Path) -> None:
    write(folder, outside(5))
    with server_with(folder, tmp_path) as server:
        wait_until(lambda: len(server.apps()) == 5, "the entries")
        for size in (6, 7):
            worker = wait_until(lambda: report_of(server)["worker"], "a report")
            os.kill(worker, signal.SIGKILL)
            write(folder, outside(size))
            wait_until(lambda n=size: len(server.apps()) == n, "another worker to go on")
            wait_until(lambda w=worker: report_of(server)["worker"] != w, "its report")
        delta = server.eureka("GET", "/apps/delta", None, JSON).json()["applications"]
        told = [i for a in delta["application"] for i in a["instance"]]
        assert len(told) == 7, "the unchanged are told of once"


@pytest.mark.slow
def test_everything_killed_comes_back_without_a_change(folder: Path, tmp_path: Path) -> None:
    write(folder, outside(5))
    with server_with(folder, tmp_path) as server:
        wait_until(lambda: len(server.apps()) == 5, "the entries")
        wait_until(lambda: report_of(server)["state"] == "following", "its report")
        first = report_of(server)["last_change_ms"]
        before = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
        server.kill9()
        server.start()
        wait_until(lambda: report_of(server)["state"] == "following", "the catalog to go on")
        wait_until(lambda: report_of(server)["last_success_ms"] > first, "a word of it")
        time.sleep(1)
        after = {i: v["leaseInfo"]["registrationTimestamp"] for i, v in server.apps().items()}
        assert after == before


def test_what_is_not_set_up_any_more_goes(folder: Path, tmp_path: Path) -> None:
    write(folder, outside(3))
    server = server_with(folder, tmp_path)
    with server:
        wait_until(lambda: len(server.apps()) == 3, "the entries")
        assert server.register("OWN", "own:1") == 204
        server.stop()
        server.environment["REGISTRY_CATALOGS"] = "[]"
        server.start()
        wait_until(lambda: set(server.apps()) == {"own:1"}, "the entries to go")


def test_reports_and_metrics_are_the_same_from_every_worker(folder: Path, tmp_path: Path) -> None:
    write(folder, outside(2))
    with server_with(folder, tmp_path) as server:
        wait_until(lambda: len(server.apps()) == 2, "the entries")
        wait_until(lambda: report_of(server)["state"] == "following", "its report")
        for _ in range(10):
            report = report_of(server)
            assert (report["source"], report["entries"], report["stale"]) == (SOURCE, 2, False)
            text = server.send("GET", "/metrics").body.decode()
            assert f'registry_catalog_entries{{source="{SOURCE}"}} 2.0\n' in text
        folder.rename(tmp_path / "away")
        wait_until(lambda: report_of(server)["last_error"], "its error")
        assert len(server.apps()) == 2


class Named:
    """A program that says who it is, on every address of this machine."""

    def __init__(self, name: str) -> None:
        self.name = name

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def own_address() -> str:
    """This machine's address on its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.mark.programs
@pytest.mark.slow
def test_a_spring_client_balances_over_a_cluster_and_a_file(folder: Path, tmp_path: Path) -> None:
    """The programs that it calls have never registered anywhere."""
    answering = [Named(name) for name in ("pod-1", "pod-2", "outside-1")]
    cluster = KubernetesSource(tmp_path)
    program = None
    try:
        cluster.service("shop")
        for named in answering[:2]:
            ports = [{"name": "http", "port": named.port}]
            # The API refuses loopback addresses.
            endpoint = {"addresses": [own_address()], "conditions": {"ready": True}}
            cluster.slice(named.name, "shop", [endpoint], ports)
        outside = {"type": "http", "value": f"127.0.0.1:{answering[2].port}"}
        write(folder, [{"service_name": "shop", "endpoint": outside}])
        catalogs = [
            {"kind": "kubernetes", "name": "k", "kubeconfig": str(cluster.kubeconfig())},
            {"kind": "file", "name": "f", "folder": str(folder)},
        ]
        env = {"REGISTRY_CATALOGS": json.dumps(catalogs)}
        with RegistryServer(tmp_path, env=env) as server:
            (kind,) = named_program("spring-2025.0-resttemplate")
            program = Program(kind, [server.base], "caller", "caller:one", tmp_path)
            wait_until(program.is_ready, "the client to answer")
            wait_until(lambda: len(program.instances("shop")) == 3, "all to be seen")
            wait_until(
                lambda: program.chosen("shop") == {"pod-1", "pod-2", "outside-1"}, "all called"
            )
            cluster.delete("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/pod-1")
            wait_until(
                lambda: program.chosen("shop") == {"pod-2", "outside-1"}, "one to be left out"
            )
    finally:
        if program is not None:
            program.end()
        cluster.close()
        for named in answering:
            named.close()
