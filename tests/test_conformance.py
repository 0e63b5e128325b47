"""The conformance suite on this server, and on servers with one fault each, which it must find."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from rich.console import Console

from conformance import documents, report
from conformance.__main__ import bars, main, reachable, reachable_natively, run_suite, tells
from conformance.case import Case, FailedError, Session, Target, chosen
from conformance.cases import ALL, NATIVE, sending
from conformance.cases.native import CORRECTIONS, RECORDED, replay
from conformance.cases.native import named as named_natively
from conformance.cases.recorded import (
    SCENARIOS,
    content,
    difference,
    is_fault,
    scenario,
    taken_back,
)
from conformance.cases.replicating import DIRTY
from conformance.compare import Started, differences, last_words
from conformance.differential import APPS, IDS, DisagreementError, Duel, Request, Turn, compare
from conformance.documents import Form, sample
from conformance.follower import follow
from conformance.gate import Gatehouse
from conformance.http import Connection
from conformance.peer import PeerEndpoint
from conformance.programs import free_port, named
from conformance.report import Run
from conformance.run import Outcome, Result, run_cases
from eureka_server.app import create_app
from eureka_server.settings import load
from tests.servers import HANG_SECS, JSON, RegistryServer

OF_PEERS = [case for case in ALL if case.peer]
INSTANT = [case for case in ALL if not case.waits and not case.self_preservation]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recording_is_answered_whole_on_an_empty_server(name: str, tmp_path: Path) -> None:
    """Hash codes and complete lists too, which the suite cannot compare on a server in use."""
    compared = 0
    exchanges = scenario(name)
    with RegistryServer(tmp_path, env={"LEASE_EXPIRY": "genuine"}) as server:
        connection = Connection(server.base)
        for recorded in exchanges:
            request, want = recorded["request"], recorded["response"]
            got = connection.send(
                request["method"], request["path"], request["body"], request["headers"]
            )
            if is_fault(name, request):
                assert got.status < 500
                continue
            compared += 1
            assert difference(want, got, got.body) == "", f"{request} {got}"
            if got.status != 409 and got.status >= 300 and request["method"] in ("PUT", "DELETE"):
                assert got.body == ""
        connection.close()
    assert compared >= len(exchanges) // 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def patient(url: str, **expected: Any) -> Target:
    """A server on a machine that may be slow, and busy."""
    return Target(url, patience=HANG_SECS / 3, lease=10, **expected)


def ran(cases: list[Any], target: Target) -> dict[str, Result]:
    return {f"{r.case.name} {r.case.column}": r for r in run_cases(cases, target, lambda _: None)}


@pytest.mark.slow
def test_every_case_passes_here_those_beyond_a_genuine_server_too(server: RegistryServer) -> None:
    results = ran(chosen(ALL, self_preservation=False), patient(server.base))
    assert len(results) > 650
    assert {k: r.message for k, r in results.items() if r.outcome is not Outcome.PASSED} == {}


def test_the_cases_leave_nothing_behind(server: RegistryServer) -> None:
    assert server.apps() == {}


@pytest.mark.slow
def test_self_preservation_keeps_what_expired(tmp_path: Path) -> None:
    preserving = {"EUREKA_SERVER_ENABLE_SELF_PRESERVATION": "true"}
    with RegistryServer(tmp_path, env=preserving) as server:
        cases = chosen(ALL, self_preservation=True)
        results = ran(cases, patient(server.base, self_preservation=True))
    assert results
    assert {k: r.message for k, r in results.items() if r.outcome is not Outcome.PASSED} == {}


@pytest.mark.slow
def test_it_tells_its_peers_what_a_genuine_server_tells(tmp_path: Path) -> None:
    with closing(PeerEndpoint()) as peer:
        env = {
            "EUREKA_CLIENT_SERVICEURL_DEFAULTZONE": peer.url,
            "EUREKA_CLIENT_REGISTERWITHEUREKA": "false",
            "EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS": "500",
        }
        with RegistryServer(tmp_path, env=env) as server:
            target = patient(server.base, peer=peer)
            assert tells(target) == ""
            results = ran(OF_PEERS, target)
    assert len(results) > 20
    assert {k: r.message for k, r in results.items() if r.outcome is not Outcome.PASSED} == {}


# Servers with one fault each (fakes, made of this one).

Answer = tuple[str, list[tuple[str, str]], bytes]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Callable[[Callable[[dict[str, Any], Answer], Answer]], str]]:
    """Serves this application with each answer changed by a function; gives its URL."""
    servers: list[WSGIServer] = []

    def serve(change: Callable[[dict[str, Any], Answer], Answer]) -> str:
        application = create_app(load({"STORE_URL": "memory:"}))

        def changed(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            kept: dict[str, Any] = {}

            def start(status: str, headers: list[tuple[str, str]], *_: object) -> None:
                kept.update(status=status, headers=headers)

            body = b"".join(application(environ, start))
            status, headers, body = change(environ, (kept["status"], kept["headers"], body))
            named = [(k, v) for k, v in headers if k.lower() != "content-length"]
            start_response(status, [*named, ("Content-Length", str(len(body)))])
            return [body]

        server = make_server("127.0.0.1", 0, changed, handler_class=Quiet)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/eureka"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def registers_with_200(environ: dict[str, Any], answer: Answer) -> Answer:
    return ("200 OK", *answer[1:]) if answer[0].startswith("204") else answer


def counts_wrong(_: dict[str, Any], answer: Answer) -> Answer:
    return *answer[:2], re.sub(rb"UP_(\d)_", rb"UP_9\1_", answer[2])


def forgets_deletions(environ: dict[str, Any], answer: Answer) -> Answer:
    if not environ["PATH_INFO"].endswith("/delta") or not answer[2].startswith(b"{"):
        return answer
    document = json.loads(answer[2])
    for application in document["applications"]["application"]:
        application["instance"] = [
            i for i in application["instance"] if i["actionType"] != "DELETED"
        ]
    root = document["applications"]
    root["application"] = [a for a in root["application"] if a["instance"]]
    return *answer[:2], json.dumps(document).encode()


def single_object(_: dict[str, Any], answer: Answer) -> Answer:
    if not answer[2].startswith(b'{"applications"'):
        return answer
    document = json.loads(answer[2])
    applications = document["applications"]["application"]
    if len(applications) == 1:
        document["applications"]["application"] = applications[0]
    return *answer[:2], json.dumps(document).encode()


def numbers_for_texts(_: dict[str, Any], answer: Answer) -> Answer:
    return *answer[:2], re.sub(rb'("lastDirtyTimestamp":)"(\d+)"', rb"\1\2", answer[2])


def pages_on_heartbeats(environ: dict[str, Any], answer: Answer) -> Answer:
    if environ["REQUEST_METHOD"] == "PUT" and answer[0].startswith("200"):
        return answer[0], [("Content-Type", "application/json")], b"{}"
    return answer


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        (registers_with_200, "a registration is answered 204 with nothing"),
        (counts_wrong, "the hash code is that of what is listed"),
        (forgets_deletions, "the delta shows [a cancel, json]"),
        (single_object, "a vip lists who answers to it [json, vips]"),
        (numbers_for_texts, "json has texts and numbers where clients expect them"),
        (pages_on_heartbeats, "a heartbeat is answered 200 with nothing"),
    ],
)
def test_a_server_with_a_fault_is_found_out(faulty: Any, fault: Any, found_by: str) -> None:
    url = faulty(fault)
    results = ran(chosen(INSTANT, self_preservation=False, only=found_by), Target(url, 0.05))
    outcomes = {result.outcome for result in results.values()}
    assert Outcome.FAILED in outcomes, results


def test_the_sound_server_in_the_same_dress_passes_them(faulty: Any) -> None:
    url = faulty(lambda _, answer: answer)
    results = ran(chosen(INSTANT, self_preservation=False, only="heartbeat"), Target(url, 0.05))
    assert {r.outcome for r in results.values()} == {Outcome.PASSED}


@pytest.mark.slow
def test_random_sequences_find_a_server_that_differs(server: RegistryServer, faulty: Any) -> None:
    with pytest.raises(DisagreementError, match="the content"):
        compare(server.base, faulty(numbers_for_texts), 30)


@pytest.mark.slow
def test_random_sequences_agree_through_both_workers_and_one_process(
    server: RegistryServer, faulty: Any
) -> None:
    duel = compare(server.base, faulty(lambda _, answer: answer), 60)
    assert duel.sequences >= 60
    assert duel.exchanges > 200


def test_lists_that_a_genuine_cache_does_not_bring_up_to_date_are_not_compared(
    server: RegistryServer, faulty: Any
) -> None:
    """A heartbeat takes up an override that was set through another application."""
    kept: dict[str, Answer] = {}

    def lists_are_kept(environ: dict[str, Any], answer: Answer) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method == "GET" and path.count("/") == 3:
            return kept.setdefault(path, answer)
        if method != "GET" and (method != "PUT" or path.endswith("/status")):
            kept.clear()
        return answer

    first, second = (app.upper() for app in APPS)

    def registers(app: str, status: str) -> Request:
        fields = sample(app, IDS[0], status=status, hostName="h~")
        body = json.dumps({"instance": fields})
        return Request("POST", f"/apps/{app}", body, tuple(JSON.items()), app=app)

    path = f"/apps/{second}/{IDS[0]}/status?value=UP"
    is_of_both = frozenset([(second, IDS[0])])
    overrides = Request("PUT", path, app=second, overrides=is_of_both)
    renews = Request("PUT", f"/apps/{first}/{IDS[0]}", app=first)
    requests = [registers(first, "OUT_OF_SERVICE"), registers(second, "DOWN"), overrides]
    duel = Duel(faulty(lists_are_kept), server.base)

    def play(last: Request) -> None:
        duel.play([Turn(each, Form.JSON, f"/apps/{first}") for each in [*requests, last]])

    with pytest.raises(DisagreementError, match="the content"):
        play(renews)
    play(replace(renews, renews=frozenset([(first, IDS[0])])))


class FakeSender:
    """A fake of what a server tells its peers: one item for each request that it did.

    It knows the instances that cases register by name alone. A fault changes an item, or has it
    told though it should not be.
    """

    def __init__(self, peer: PeerEndpoint, fault: Callable[[dict[str, Any]], None]) -> None:
        self._connection = Connection(peer.url)
        self._fault = fault

    def __call__(self, environ: dict[str, Any], answer: Answer) -> Answer:
        app = environ["PATH_INFO"].split("/")[3]
        method, done = environ["REQUEST_METHOD"], answer[0].startswith("20")
        action = {"POST": "Register", "PUT": "Heartbeat", "DELETE": "Cancel"}.get(method)
        if not done or action is None or "peerreplication" in environ["PATH_INFO"]:
            return answer
        instance = sample(app, f"{app.lower()}:one")
        item = {"appName": app.upper(), "id": instance["instanceId"], "action": action}
        if action != "Cancel":
            item |= {"lastDirtyTimestamp": DIRTY, "status": "UP"}
        if action == "Register":
            item["instanceInfo"] = json.loads(documents.body(instance, Form.JSON)[0])["instance"]
        self._fault(item)
        body = json.dumps({"replicationList": [item]})
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
        }
        self._connection.send("POST", "/peerreplication/batch/", body, headers)
        return answer


@pytest.mark.parametrize(
    ("found_by", "fault"),
    [
        (
            "a registration is told with the whole instance",
            lambda item: item.get("instanceInfo", {}).update(ipAddr="10.9.9.9"),
        ),
        (
            "a registration is told with the whole instance",
            lambda item: item.update(lastDirtyTimestamp=str(DIRTY)),
        ),
        (
            "a renewal is told with its timestamp and without the instance",
            lambda item: item.update(instanceInfo={}) if item["action"] == "Heartbeat" else None,
        ),
        ("a cancel is told by name alone", lambda item: item.update(lastDirtyTimestamp=DIRTY)),
    ],
)
def test_a_server_that_tells_its_peers_otherwise_is_found_out(
    faulty: Any, found_by: str, fault: Callable[[dict[str, Any]], None]
) -> None:
    cases = [case for case in OF_PEERS if case.name == found_by]
    assert len(cases) == 1
    for change, want in ((lambda _: None, Outcome.PASSED), (fault, Outcome.FAILED)):
        with closing(PeerEndpoint()) as peer:
            url = faulty(FakeSender(peer, change))
            (result,) = ran(cases, Target(url, peer=peer)).values()
            assert result.outcome is want, result.message


def test_a_server_that_passes_on_what_a_peer_said_is_found_out(faulty: Any) -> None:
    (case,) = [each for each in OF_PEERS if "no other [with the mark]" in each.name]
    with closing(PeerEndpoint()) as peer:
        (result,) = ran([case], Target(faulty(FakeSender(peer, id)), peer=peer)).values()
        assert result.outcome is Outcome.FAILED
        assert "what the other peer is told: expected []" in result.message


def test_a_server_that_has_the_suite_not_among_its_peers_is_said(
    faulty: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sending, "SOON", 0.1)
    url = faulty(lambda _, answer: answer)
    port = str(free_port())
    assert main([url, "--peer-port", port, "--only", "peer"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"it does not tell http://127.0.0.1:{port}/eureka/: is that among its peers?" in said


def test_a_peer_lists_what_it_is_told() -> None:
    with closing(PeerEndpoint()) as peer:
        connection = Connection(peer.url)

        def tell(*items: dict[str, Any]) -> list[int]:
            body = json.dumps({"replicationList": items})
            answer = connection.send("POST", "/peerreplication/batch/", body, {})
            return [each["statusCode"] for each in json.loads(answer.body)["responseList"]]

        instance = json.loads(documents.body(sample("APP", "app:1"), Form.JSON)[0])["instance"]
        name = {"appName": "APP", "id": "app:1"}
        update = {**name, "action": "StatusUpdate", "status": "DOWN"}
        assert tell(update) == [404]
        assert tell({**name, "action": "Register", "instanceInfo": instance}, update) == [200, 200]
        listing = documents.listing(connection.send("GET", "/apps/", None, {}).body)
        assert listing.hash_code == "DOWN_1_"
        assert [each["overriddenStatus"] for each in listing.instances()] == ["DOWN"]
        assert tell({**name, "action": "Cancel"}) == [200]
        assert documents.listing(connection.send("GET", "/apps", None, {}).body).instances() == []
        assert [each.action for each in peer.told("app")][1:] == [
            *("Register", "StatusUpdate", "Cancel")
        ]
        connection.close()


def test_a_follower_notices_a_delta_without_deletions(faulty: Any) -> None:
    session = Session(Target(faulty(forgets_deletions), 0.05))
    with session.running(), pytest.raises(FailedError, match=r"full fetches|the copy"):
        follow(session, Form.JSON, 120, 1)


def test_what_is_no_eureka_server_is_said(faulty: Any) -> None:
    nothing = faulty(lambda *_: ("404 Not Found", [], b""))
    assert "200 for /apps" in reachable(Target(nothing))
    assert "an answer" in reachable(Target("http://127.0.0.1:9/eureka"))
    with pytest.raises(ValueError, match="not the URL"):
        reachable(Target("localhost:8761"))
    with pytest.raises(ValueError, match="no client 'cobol'"):
        named("python,cobol")


# Reports.


@pytest.fixture
def run(faulty: Any) -> Run:
    target = Target(faulty(registers_with_200), 0.05)
    results = run_cases(chosen(INSTANT, self_preservation=False, only="bare port"), target, id)
    results += run_cases(chosen(INSTANT, self_preservation=False, only="HEAD is"), target, id)
    results += run_cases(chosen(INSTANT, self_preservation=False, only="406"), target, id)
    return Run(target.url, results, 1.5)


def test_junit_counts_failures_and_what_is_not_required(run: Run) -> None:
    suite = ElementTree.fromstring(report.junit(run)).find("testsuite")
    assert suite is not None
    counted = {name: suite.attrib[name] for name in ("tests", "failures", "skipped")}
    assert counted == {"tests": "5", "failures": "1", "skipped": "1"}
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.text is not None
    assert "POST /apps/" in failure.text
    assert "answer: 200" in failure.text


def test_the_page_shows_request_answer_and_expectation_and_needs_no_network(run: Run) -> None:
    page = report.page(run)
    assert "does not conform" in page
    assert "the registration to be accepted with 204" in page
    assert "Content-Type: application/json" in page
    assert "JAX-RS answers HEAD as GET" in page
    assert "&#34;instanceId&#34;" in page  # what servers and clients send is escaped
    assert not re.search(r"(src|href)=|@import|url\(", page)


def test_the_coverage_names_what_was_not_offered(run: Run) -> None:
    document = report.coverage({"a server": run}, ["a note"])
    assert "5 cases in 2 s: 3 passed, 1 failed, 1 not offered." in document
    assert "a genuine server answers 400 to a bare port number" in document
    assert "- a note" in document


def test_what_fails_only_once_passes_at_the_second_try_and_the_run_says_so(faulty: Any) -> None:
    answered: list[str] = []

    def stumbles(environ: dict[str, Any], answer: Answer) -> Answer:
        """Forget how to answer HEAD, once."""
        if environ["REQUEST_METHOD"] == "HEAD" and not answered:
            answered.append("HEAD")
            return "500 Internal Server Error", [], b""
        return answer

    quiet = Console(quiet=True)
    cases = chosen(INSTANT, self_preservation=False, only="HEAD is")
    run = run_suite(Target(faulty(stumbles), 0.05), cases, (), None, bars(quiet), second_try=True)
    assert run.conforms
    assert len(run.unsteady) == 1
    assert "200" in run.unsteady[0].unsteady
    assert "Passed at the second try only" in report.page(run)
    assert "Passed at the second try only" in report.coverage({"a server": run}, [])
    assert last_words({"a server": run})[0].startswith("passed at the second try, a server: ")


def test_what_fails_twice_has_failed_and_is_named_last(faulty: Any) -> None:
    target = Target(faulty(registers_with_200), 0.05)
    cases = chosen(INSTANT, self_preservation=False, only="204")
    run = run_suite(target, cases, (), None, bars(Console(quiet=True)), second_try=True)
    failed = run.having(Outcome.FAILED)
    assert failed
    assert run.unsteady == []
    words = last_words({"a server": run})
    assert [w for w in words if w.startswith("failed, a server: ")] == words
    assert len(words) == len(failed)
    once = run_suite(target, cases, (), None, bars(Console(quiet=True)))
    assert [r.unsteady for r in once.results] == [""] * len(once.results)


def test_a_case_may_have_any_name_and_any_message_where_two_differ() -> None:
    case = Case("a path [//apps]", "paths", "json", "", lambda s: None, beyond="[/eureka] is 404")
    passed, refused = (
        Run("http://x", [Result(case, outcome, 0, 0, message)], 0)
        for outcome, message in ((Outcome.PASSED, ""), (Outcome.BEYOND, "[/eureka]"))
    )
    console = Console(width=150, record=True, quiet=False, file=io.StringIO())
    console.print(differences({"ours": passed, "theirs": refused}))
    shown = console.export_text()
    assert "a path [//apps] (json)" in shown
    assert "[/eureka] is 404" in shown


def test_no_required_case_is_no_proof() -> None:
    assert not Run("http://x", [], 0).conforms


# Gates.


def test_a_gate_counts_and_can_be_shut_and_opened(server: RegistryServer) -> None:
    server.register("GATED", "gated:1")
    with Gatehouse() as house:
        gate = house.gate(server.base)
        connection = Connection(gate.url)
        for method, path in (
            ("GET", "/apps/"),
            ("GET", "/apps/delta"),
            ("PUT", "/apps/GATED/gated:1"),
        ):
            assert connection.send(method, path, None, {}).status == 200
        assert [p.is_full_fetch for p in gate.passed] == [True, False, False]
        assert [p.is_heartbeat for p in gate.passed] == [False, False, True]
        gate.shut()
        with pytest.raises(OSError, match=r"refused|reset"):
            connection.send("GET", "/apps/", None, {})
        gate.open()
        assert connection.send("GET", "/apps/", None, {}).status == 200
        assert len(gate.passed) == 4
        connection.close()
    server.eureka("DELETE", "/apps/GATED/gated:1")


def test_each_connection_through_a_gate_to_several_is_anothers_in_its_turn() -> None:
    with closing(PeerEndpoint()) as one, closing(PeerEndpoint()) as two, Gatehouse() as house:
        servers = (one, two)
        gate = house.gate(*(server.url for server in servers))
        for number in range(4):
            connection = Connection(gate.url)
            for name in ("first", "second"):
                item = {"appName": "GATED", "id": f"{name}:{number}", "action": "Cancel"}
                body = json.dumps({"replicationList": [item]})
                reply = connection.send("POST", "/peerreplication/batch/", body, {})
                assert reply.status == 200
            connection.close()
        told = [[each.item["id"] for each in server.told("GATED")] for server in servers]
    assert told == [
        ["first:0", "second:0", "first:2", "second:2"],
        ["first:1", "second:1", "first:3", "second:3"],
    ]


def test_an_id_that_was_not_sent_makes_no_difference_in_a_list() -> None:
    told = {"hostName": "a", "dataCenterInfo": {}}
    lists = [
        [{"instanceId": "h", **told}, {"instanceId": "a", **told}],
        [{"instanceId": "h", **told}, told],
    ]
    first, second = (content(taken_back(json.dumps({"instance": each}))) for each in lists)
    assert first == second


def test_a_server_of_the_comparison_that_does_not_come_up_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conformance.compare._STARTS_IN_SECS", 0)
    command = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(3600)"]
    started = Started(command, {}, "http://h", lambda url: f"{url} is away")
    with pytest.raises(RuntimeError, match="http://h is away"), started:
        pass
    assert started._process.returncode is not None


def test_a_recorded_body_is_compared_without_clock_order_and_blanks() -> None:
    first = '{"application":[{"name":"A"},{"name":"B"}],"at":1795490524817}'
    second = '{"application": [{"name": "B"}, {"name": "A"}], "at":1795490999999}'
    assert content(first) == content(second)
    assert content(first) != content(second.replace('"B"', '"C"'))
    assert content("<a>\n <b>1</b></a>") == content("<a><b>1</b></a>")


def test_waiting_cases_wait_beside_each_other(server: RegistryServer) -> None:
    """Each waits for all the others, and none would end if one came after another."""
    together = threading.Barrier(10, timeout=HANG_SECS)
    cases = [
        Case(f"waits {n}", "lease", "any", "", lambda _: together.wait() and None, waits=True)
        for n in range(together.parties)
    ]
    results = ran(cases, patient(server.base))
    assert [r.outcome for r in results.values()] == [Outcome.PASSED] * together.parties


# The native protocol, as the Amalgam8 registry speaks it.

QUIRKS = Path(__file__).parent.parent / "native_api" / "QUIRKS.md"


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["eureka_http.worker.EventLoopWorker", "gthread"])
def test_every_answer_of_an_amalgam8_registry_is_given_or_has_its_quirk(
    worker: str, tmp_path: Path
) -> None:
    with RegistryServer(tmp_path, env={"WORKER_CLASS": worker}) as running:
        results = ran(NATIVE, patient(running.root))
        assert len(results) == len(RECORDED) + 1
        assert {k: r.message for k, r in results.items() if r.outcome is not Outcome.PASSED} == {}
        left = running.send("GET", "/api/v1/instances?status=ALL").json()
        assert left == {"instances": []}


def test_each_correction_is_needed_and_has_its_quirk(server: RegistryServer) -> None:
    entries = re.findall(r"^\| (.*?) ✱ \|", QUIRKS.read_text(), re.MULTILINE)
    assert {told["quirk"] for told in CORRECTIONS.values()} == set(entries)
    for number in range(len(RECORDED)):
        session = Session(Target(server.root))
        with session.running():
            if named_natively(number) in CORRECTIONS:
                with pytest.raises(FailedError):
                    replay(session, number, corrected=False)
            else:
                replay(session, number, corrected=False)


def test_each_quirk_of_the_native_api_names_a_test_that_there_is() -> None:
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", QUIRKS.read_text())
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []


def answers_relative_links(_: dict[str, Any], answer: Answer) -> Answer:
    return *answer[:2], re.sub(rb"http://[^/]+/api", b"/api", answer[2])


def answers_epochs(_: dict[str, Any], answer: Answer) -> Answer:
    return *answer[:2], re.sub(rb'"last_heartbeat":"[^"]+"', b'"last_heartbeat":1', answer[2])


def names_no_error(_: dict[str, Any], answer: Answer) -> Answer:
    return *answer[:2], answer[2].replace(b'"Error"', b'"error"')


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        (answers_relative_links, "112 life"),
        (answers_epochs, "116 list"),
        (names_no_error, "158 del again"),
    ],
)
def test_a_fault_of_the_native_protocol_is_found_out(
    faulty: Any, fault: Any, found_by: str
) -> None:
    root = faulty(fault).removesuffix("/eureka")
    (result,) = ran(
        chosen(NATIVE, self_preservation=False, only=f"[{found_by}]"), Target(root)
    ).values()
    assert result.outcome is Outcome.FAILED


def test_what_speaks_no_native_protocol_is_said(server: RegistryServer) -> None:
    assert reachable_natively(Target(server.root)) == ""
    assert "status 200" in reachable_natively(Target(server.base))
