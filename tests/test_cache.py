"""The promises of a bounded cache."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eureka_http.cache import Cache

ROOT = Path(__file__).parents[1]
PACKAGES = ["registry", "eureka_http", "eureka_compat", "native_api", "catalogs", "eureka_server"]


def caches_in(source: str) -> set[str]:
    """The names by which a module keeps a ``Cache``, and of the functions that are cached."""
    found: set[str] = set()

    def visit(node: ast.AST, name: str) -> None:
        match node:
            case ast.FunctionDef(name=name, decorator_list=decorators):
                if any(re.search(r"\b(lru_)?cache\b", ast.unparse(each)) for each in decorators):
                    found.add(name)
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                name = ast.unparse(target).removeprefix("self.")
        if isinstance(node, ast.Call) and re.match(
            r"Cache$|(functools\.)?(lru_)?cache\(", ast.unparse(node.func)
        ):
            found.add(name)
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def test_the_table_of_caches_is_complete_and_names_nothing_that_is_not_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) in `([^`|]+)` \|", text, re.MULTILINE)
    told = {(path, name) for names, path in rows for name in re.findall(r"`(\w+)`", names)}
    sources = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }

    there = {(path, name) for path, source in sources.items() for name in caches_in(source)}

    assert there - told == set()
    assert {(p, n) for p, n in told if not re.search(rf"\b{n}\b", sources.get(p, ""))} == set()


def entries(cache: Cache[Any, Any], keys: Iterable[Any]) -> dict[Any, Any]:
    """What is kept under these keys."""
    return {key: cache.get(key) for key in keys if cache.get(key) is not None}


def test_what_is_kept_is_found_and_nothing_else() -> None:
    cache: Cache[str, int] = Cache(10)

    cache.keep("a", 1)

    assert cache.get("a") == 1
    assert cache.get("b") is None
    assert len(cache) == 1


def test_a_value_takes_the_place_of_the_one_before_and_of_no_other() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.keep("a", 1)
    cache.keep("b", 2)

    for value in range(100):
        cache.keep("a", value)

    assert entries(cache, "ab") == {"a": 99, "b": 2}


def test_a_full_cache_gives_up_one_entry_for_each_new_one() -> None:
    cache: Cache[int, int] = Cache(100)
    for key in range(100):
        cache.keep(key, key)

    for key in range(100, 1000):
        before = entries(cache, range(key))
        cache.keep(key, key)

        after = entries(cache, range(key + 1))
        assert len(after) == len(cache) == 100
        assert after[key] == key
        assert len(before.keys() - after.keys()) == 1


def test_what_was_kept_before_goes_little_by_little() -> None:
    cache: Cache[int, int] = Cache(1000)
    for key in range(1000):
        cache.keep(key, key)

    for key in range(1000, 1500):
        cache.keep(key, key)

    # 606 of them remain on average, with a deviation of 12.
    assert 500 < len(entries(cache, range(1000))) < 712


def test_more_keys_in_turn_than_there_is_room_for_do_not_make_every_look_up_miss() -> None:
    cache: Cache[int, int] = Cache(500)
    found = 0

    for key in list(range(1000)) * 10:
        if cache.get(key) is None:
            cache.keep(key, key)
        else:
            found += 1

    assert found > 0


def test_long_keys_are_bounded_by_their_bytes() -> None:
    cache: Cache[bytes, int] = Cache(1000, most_bytes=100, size_of=len)

    for number in range(50):
        cache.keep(b"%040d" % number, number)

        assert cache.get(b"%040d" % number) == number
        assert len(cache) <= 2


def test_a_key_beyond_the_bound_displaces_nothing() -> None:
    cache: Cache[bytes, int] = Cache(1000, most_bytes=100, size_of=len)
    cache.keep(b"a", 1)

    cache.keep(bytes(101), 2)

    assert entries(cache, (b"a", bytes(101))) == {b"a": 1}


def test_a_cache_for_nothing_keeps_nothing() -> None:
    cache: Cache[str, int] = Cache(0)

    cache.keep("a", 1)

    assert len(cache) == 0


def test_a_smaller_bound_holds_at_once() -> None:
    cache: Cache[int, int] = Cache(100)
    for key in range(100):
        cache.keep(key, key)

    cache.resize(10)

    assert len(cache) == len(entries(cache, range(100))) == 10


def test_what_is_over_is_forgotten_and_makes_room() -> None:
    cache: Cache[str, int] = Cache(10, most_bytes=10, size_of=len)
    for number, key in enumerate("abcdefghij"):
        cache.keep(key, number)

    cache.forget(lambda number: number < 9)
    cache.keep("123456789", 1)

    assert entries(cache, ("j", "123456789")) == {"j": 9, "123456789": 1}


@given(
    most=st.integers(0, 6),
    most_bytes=st.integers(0, 12),
    steps=st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=40),
)
def test_no_bound_is_ever_exceeded(
    most: int, most_bytes: int, steps: list[tuple[str, bool]]
) -> None:
    cache: Cache[str, int] = Cache(most, most_bytes=most_bytes, size_of=len)
    told: dict[str, int] = {}

    for number, (key, forgets) in enumerate(steps):
        if forgets:
            cache.forget(lambda value: value % 2 == 1)
            told = {name: value for name, value in told.items() if value % 2 == 0}
        cache.keep(key, number)
        told[key] = number

        kept = entries(cache, [each for each, _ in steps])
        assert len(kept) == len(cache) <= most
        assert sum(map(len, kept)) <= most_bytes
        # Whatever is found is what was kept last.
        assert kept.items() <= told.items()
        assert (key in kept) == (most > 0 and len(key) <= most_bytes)


def test_many_threads_keep_at_once() -> None:
    cache: Cache[int, int] = Cache(50)

    def fill(first: int) -> None:
        for key in range(first, first + 2000):
            cache.keep(key % 997, key % 997)

    threads = [threading.Thread(target=fill, args=(number * 100,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    kept = entries(cache, range(997))
    assert len(kept) == len(cache) == 50
    assert all(key == value for key, value in kept.items())
