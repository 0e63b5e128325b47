"""Bodies put together from pieces that were compressed apart."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eureka_compat.answers import Answers, Form
from eureka_compat.pieces import EncodedAnswer, Piece
from registry import DEFAULT_NAMESPACE, Namespace, Registry, RegistrySettings, View
from registry.stores.memory import MemoryStore
from registry.testing import ManualClock, sample_instance


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
        st.tuples(st.integers(0, 12), st.integers(0, 40), st.booleans()), min_size=1, max_size=60
    ),
    form=st.sampled_from(list(Form)),
)
def test_kept_pieces_always_make_the_answer_that_fresh_ones_make(
    steps: list[tuple[int, int, bool]], form: Form
) -> None:
    """Whatever came and went between two answers, none shows what is no longer so."""
    registry = Registry(MemoryStore(), ManualClock(), RegistrySettings())
    registry.start()
    kept = Answers(registry, DEFAULT_NAMESPACE)
    for number, (app, instance, stays) in enumerate(steps):
        name = f"i{instance}"
        if stays:
            registry.register(sample_instance(f"A{app}", name, last_dirty_ms=number))
        else:
            registry.cancel(f"A{app}", name)
        got = kept.applications(form)
        fresh = Answers(registry, DEFAULT_NAMESPACE).applications(form)
        assert got.plain().body == fresh.plain().body
        assert gzip.decompress(got.gzipped().body) == got.plain().body


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
    registry = Registry(MemoryStore(), clock, RegistrySettings())
    registry.start()
    kept = Answers(registry, DEFAULT_NAMESPACE)
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
        fresh = Answers(registry, DEFAULT_NAMESPACE).delta(form)
        assert got.plain().body == fresh.plain().body
        assert gzip.decompress(got.gzipped().body) == got.plain().body
        window = {key for key, (at, _) in log.items() if at >= clock.mono - 180_000}
        shown = registry.view().recent_applications
        assert {(a, i) for a, instances in shown.items() for i in instances} == window


def test_what_comes_while_a_delta_is_made_is_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Body and hash code are of one moment, however long the encoding takes."""
    store, clock = MemoryStore(), ManualClock()
    here, elsewhere = (Registry(store, clock, RegistrySettings()) for _ in "ab")
    for registry in (here, elsewhere):
        registry.start()
    elsewhere.register(sample_instance("A", "first"))
    answers = Answers(here, DEFAULT_NAMESPACE)
    look = here.view

    def looked(namespace: Namespace) -> View:
        found = look(namespace)
        elsewhere.register(sample_instance("A", f"beside {found.revision}"))
        return found

    monkeypatch.setattr(here, "view", looked)
    for make in (answers.delta, answers.applications):
        shown = json.loads(make(Form.JSON).plain().body)["applications"]
        count = sum(len(application["instance"]) for application in shown["application"])
        assert shown["apps__hashcode"] == f"UP_{count}_"


def test_a_growing_registry_lists_everybody_once() -> None:
    registry = Registry(MemoryStore(), ManualClock(), RegistrySettings())
    registry.start()
    answers = Answers(registry, DEFAULT_NAMESPACE)
    for number in range(700):
        registry.register(sample_instance(f"A{number // 3}", f"i{number}"))
        if number % 50 == 0 or number == 699:
            applications = json.loads(answers.applications(Form.JSON).plain().body)["applications"]
            ids = [i["instanceId"] for a in applications["application"] for i in a["instance"]]
            assert sorted(ids) == sorted(f"i{n}" for n in range(number + 1))
