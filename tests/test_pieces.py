"""Bodies put together from pieces that were compressed apart."""

from __future__ import annotations

import gzip
import json
import threading
from unittest import mock
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_compat import EurekaApi, EurekaSettings, pieces
from eureka_compat.encoded import EncodedAnswers
from eureka_compat.negotiation import Form
from eureka_compat.pieces import EncodedAnswer, Piece
from eureka_http.exchange import Answer, Request
from registry import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceStatus,
    View,
    listing,
)
from registry import view as view_module
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, registry_on, sample_instance
from tests.servers import HANG_SECS


@given(parts=st.lists(st.binary(max_size=300), max_size=8))
def test_pieces_compressed_apart_are_one_gzip_stream(parts: list[bytes]) -> None:
    answer = EncodedAnswer([Piece([part]) for part in parts], "text/plain")
    assert gzip.decompress(answer.gzipped().body) == b"".join(parts) == answer.plain().body


def test_what_repeats_over_many_pieces_is_still_one_stream() -> None:
    pieces = [Piece([b"x" * 70_000]), Piece([bytes(range(256)), b"y"] * 500)] * 3
    answer = EncodedAnswer(pieces, "text/plain")
    assert gzip.decompress(answer.gzipped().body) == answer.plain().body


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 30),
            st.sampled_from(["register", "another status", "another vip", "cancel", "miss"]),
        ),
        min_size=1,
        max_size=80,
    ),
    form=st.sampled_from(list(Form)),
    size=st.sampled_from([1, 2, 5, 64]),
)
def test_kept_answers_are_always_what_fresh_ones_are(
    steps: list[tuple[int, int, str]], form: Form, size: int
) -> None:
    """Whatever came and went between two answers, none shows what is no longer so.

    The answers are those of a worker that changes nothing itself, and now and then misses so much
    that it loads everything anew.
    """
    store, clock = MemoryStore(), ManualClock()
    here, elsewhere = (registry_on(store, clock) for _ in "ab")
    with mock.patch.object(listing, "PORTION", size):
        kept = EncodedAnswers(here)
        for number, (app, instance, step) in enumerate(steps):
            name, key = f"i{instance}", f"A{app}"
            if step == "cancel":
                elsewhere.cancel(key, name)
            else:
                vip = "other" if step == "another vip" else "all,web"
                status = "DOWN" if step == "another status" else "UP"
                elsewhere.register(
                    sample_instance(
                        key,
                        name,
                        last_dirty_ms=number,
                        vip_address=vip,
                        status=InstanceStatus(status),
                    )
                )
            if step == "miss":
                store.trim(DEFAULT_NAMESPACE, clock.mono_ms() + 1)
            fresh = EncodedAnswers(elsewhere)
            for got, expected in (
                (kept.applications(form), fresh.applications(form)),
                (kept.application(key, form), fresh.application(key, form)),
                (kept.vip("all", form, secure=False), fresh.vip("all", form, secure=False)),
            ):
                if got is None or expected is None:
                    assert got is expected
                    continue
                assert gzip.decompress(got.gzipped().body) == got.plain().body
                assert _shown(got, form) == _shown(expected, form)


def _shown(answer: EncodedAnswer, form: Form) -> tuple[str, list[str]]:
    """What an answer says, but for its order: a load gives another one."""
    body = answer.plain().body.decode()
    if not form.is_json:
        tree = ElementTree.fromstring(body)
        shown = [
            ElementTree.canonicalize(ElementTree.tostring(e, "unicode"), strip_text=True)
            for e in tree.iter("instance")
        ]
        return tree.findtext("apps__hashcode", ""), sorted(shown)
    document = json.loads(body)
    root = document.get("applications", document)
    applications = root["application"]
    if isinstance(applications, dict):
        applications = [applications]
    shown = [json.dumps([a["name"], i]) for a in applications for i in a["instance"]]
    return root.get("apps__hashcode", ""), sorted(shown)


def test_a_worker_that_missed_a_cancellation_does_not_list_the_instance() -> None:
    """Nor anything else that it kept: all the others were there before, at the same revisions."""
    store, clock = MemoryStore(), ManualClock()
    idle, busy = (registry_on(store, clock) for _ in "ab")
    for number in (1, 2):
        busy.register(sample_instance("WEB", f"web:{number}", vip_address="web"))
    kept = EncodedAnswers(idle)

    def shown() -> set[tuple[str, ...]]:
        answers = [
            kept.applications(Form.JSON),
            kept.application("WEB", Form.JSON),
            kept.vip("web", Form.JSON, secure=False),
        ]
        return {
            tuple(name for name in ("web:1", "web:2") if name.encode() in each.plain().body)
            for each in answers
            if each is not None
        }

    assert shown() == {("web:1", "web:2")}
    busy.cancel("WEB", "web:1")
    store.trim(DEFAULT_NAMESPACE, clock.mono_ms() + 1)
    assert shown() == {("web:2",)}


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("answer", ["apps", "application", "delta", "vip"])
def test_a_change_in_a_large_application_costs_what_changed(
    form: Form, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of instances one is spelled anew, and the few portions that it touches."""
    registry = registry_on(MemoryStore(), ManualClock())
    for number in range(3000):
        registry.register(sample_instance("BIG", f"i{number}", vip_address="big"))
    answers = EncodedAnswers(registry)
    wanted = {
        "apps": answers.applications,
        "application": lambda form: answers.application("BIG", form),
        "delta": answers.delta,
        "vip": lambda form: answers.vip("big", form, secure=False),
    }[answer]
    wanted(form).gzipped()
    spelled: list[str] = []
    compressed: list[int] = []
    encode, compress = EncodedAnswers._fragment, pieces._compressed

    def spell(self: EncodedAnswers, instance: Instance, form: Form, depth: int) -> bytes:
        spelled.append(instance.id)
        return encode(self, instance, form, depth)

    def squeeze(raw: bytes) -> bytes:
        compressed.append(len(raw))
        return compress(raw)

    monkeypatch.setattr(EncodedAnswers, "_fragment", spell)
    monkeypatch.setattr(pieces, "_compressed", squeeze)
    registry.register(sample_instance("BIG", "i1500", vip_address="big", last_dirty_ms=5))
    body = gzip.decompress(wanted(form).gzipped().whole_body())
    assert body == wanted(form).plain().whole_body()
    assert b"i1500" in body
    assert len(spelled) <= 2 * listing.PORTION
    assert sum(compressed) < len(body) // 5


@pytest.mark.parametrize("path", ["apps", "apps/delta", "apps/BIG", "vips/big"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_the_first_answer_with_a_fleet_holds_nobody_up(
    path: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left to a thread, which gives way between two pieces, and is then at hand."""
    registry = registry_on(MemoryStore(), ManualClock())
    for number in range(3000):
        registry.register(sample_instance("BIG", f"i{number}", vip_address="big"))
    protocol = EurekaApi(registry, EurekaSettings())
    headers = {"accept": "application/json", "accept-encoding": encoding}
    turns: list[bool] = []

    def others_turn(_: float) -> None:
        def take() -> None:
            turns.append(registry.view().lock.acquire(timeout=HANG_SECS))
            registry.view().lock.release()

        other = threading.Thread(target=take)
        other.start()
        other.join()

    monkeypatch.setattr(view_module.time, "sleep", others_turn)

    def answer(is_quick: bool) -> Answer | None:
        request = Request("GET", path, "", headers, lambda _: b"", is_quick=is_quick)
        return protocol.answer(request, path)

    assert answer(is_quick=True) is None
    made = answer(is_quick=False)
    assert made is not None
    assert made == answer(is_quick=True)
    assert len(turns) >= 3000 // (2 * listing.PORTION)
    assert all(turns)


@given(
    st.sampled_from(list(Form)),
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans(), st.integers(0, 60_000)),
        max_size=120,
    ),
)
def test_a_delta_put_together_from_kept_pieces_is_what_it_would_be_anew(
    form: Form, steps: list[tuple[int, int, bool, int]]
) -> None:
    """Each instance that changed in the window once, as it is after its last change."""
    clock = ManualClock()
    registry = registry_on(MemoryStore(), clock)
    kept = EncodedAnswers(registry)
    log: dict[tuple[str, str], tuple[int, int]] = {}
    for number, (app, instance, stays, milliseconds) in enumerate(steps):
        name = f"i{instance}"
        clock.advance(milliseconds)
        if stays:
            registry.register(sample_instance(f"A{app}", name, last_dirty_ms=number))
        elif not registry.cancel(f"A{app}", name):
            continue
        log[f"A{app}", name] = (clock.mono, number)
        got = kept.delta(form)
        fresh = EncodedAnswers(registry).delta(form)
        assert got.plain().body == fresh.plain().body
        assert gzip.decompress(got.gzipped().body) == got.plain().body
        window = {key for key, (at, _) in log.items() if at >= clock.mono - 180_000}
        shown = registry.view().changed.applications
        assert {(a, i) for a, instances in shown.items() for i in instances} == window


def test_a_long_body_is_not_copied_together() -> None:
    pieces = [Piece([bytes([number]) * 300_000]) for number in range(5)]
    answer = EncodedAnswer(pieces, "text/plain").plain()
    assert answer.whole_body() == b"".join(piece.raw() for piece in pieces)
    assert list(map(id, answer.parts)) == [id(piece.raw()) for piece in pieces]
    assert answer.length == 1_500_000


def test_what_comes_while_a_delta_is_made_is_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Body and hash code are of one moment, however long the encoding takes."""
    store, clock = MemoryStore(), ManualClock()
    here, elsewhere = (registry_on(store, clock) for _ in "ab")
    elsewhere.register(sample_instance("A", "first"))
    answers = EncodedAnswers(here)
    look = here.view

    def looked() -> View:
        found = look()
        elsewhere.register(sample_instance("A", f"beside {found.revision}"))
        return found

    monkeypatch.setattr(here, "view", looked)
    for make in (answers.delta, answers.applications):
        shown = json.loads(make(Form.JSON).plain().body)["applications"]
        count = sum(len(application["instance"]) for application in shown["application"])
        assert shown["apps__hashcode"] == f"UP_{count}_"


def test_a_growing_registry_lists_everybody_once() -> None:
    registry = registry_on(MemoryStore(), ManualClock())
    answers = EncodedAnswers(registry)
    for number in range(700):
        registry.register(sample_instance(f"A{number // 3}", f"i{number}"))
        if number % 50 == 0 or number == 699:
            applications = json.loads(answers.applications(Form.JSON).plain().body)["applications"]
            ids = [i["instanceId"] for a in applications["application"] for i in a["instance"]]
            assert sorted(ids) == sorted(f"i{n}" for n in range(number + 1))


def test_what_was_encoded_of_a_fleet_that_went_is_forgotten() -> None:
    clock = ManualClock()
    registry = registry_on(MemoryStore(), clock)
    answers = EncodedAnswers(registry)
    for number in range(3_000):
        registry.register(sample_instance("A", f"i{number}"))
    answers.applications(Form.JSON).plain()
    for number in range(3_000):
        registry.cancel("A", f"i{number}")
    answers.delta(Form.JSON).plain()
    clock.advance(400_000)
    answers.delta(Form.JSON).plain()
    assert len(answers._fragments) <= 1_000
