"""The promises of a bounded cache."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from eureka_http.cache import Cache


def test_what_is_kept_is_found_and_nothing_else() -> None:
    cache: Cache[str, int] = Cache(10)

    cache.keep("a", 1)

    assert cache.get("a") == 1
    assert cache.get("b") is None
    assert list(cache.items()) == [("a", 1)]


def test_a_value_takes_the_place_of_the_one_before_and_of_no_other() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.keep("a", 1)
    cache.keep("b", 2)

    for value in range(100):
        cache.keep("a", value)

    assert dict(cache.items()) == {"a": 99, "b": 2}


def test_a_full_cache_gives_up_one_entry_for_each_new_one() -> None:
    cache: Cache[int, int] = Cache(100)
    for key in range(100):
        cache.keep(key, key)

    for key in range(100, 1000):
        before = dict(cache.items())
        cache.keep(key, key)

        assert cache.get(key) == key
        assert len(before.keys() - dict(cache.items()).keys()) == 1
        assert len(cache) == 100


def test_what_was_kept_before_goes_little_by_little() -> None:
    cache: Cache[int, int] = Cache(1000)
    for key in range(1000):
        cache.keep(key, key)

    for key in range(1000, 1500):
        cache.keep(key, key)

    # 606 of them remain on average, with a deviation of 12.
    assert 500 < sum(key < 1000 for key, _ in cache.items()) < 712


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

    assert list(cache.items()) == [(b"a", 1)]


def test_a_cache_for_nothing_keeps_nothing() -> None:
    cache: Cache[str, int] = Cache(0)

    cache.keep("a", 1)

    assert len(cache) == 0


def test_a_smaller_bound_holds_at_once() -> None:
    cache: Cache[int, int] = Cache(100)
    for key in range(100):
        cache.keep(key, key)

    cache.resize(10)

    assert len(cache) == 10
    assert all(cache.get(key) == key for key, _ in cache.items())


@given(
    most=st.integers(0, 6),
    most_bytes=st.integers(0, 12),
    keys=st.lists(st.text("ab", max_size=4), max_size=40),
)
def test_no_bound_is_ever_exceeded(most: int, most_bytes: int, keys: list[str]) -> None:
    cache: Cache[str, int] = Cache(most, most_bytes=most_bytes, size_of=len)
    told: dict[str, int] = {}

    for number, key in enumerate(keys):
        cache.keep(key, number)
        told[key] = number

        kept = dict(cache.items())
        assert len(kept) <= most
        assert sum(map(len, kept)) <= most_bytes
        # Whatever is found is what was kept last.
        assert all(told[each] == value for each, value in kept.items())
        assert most < 1 or len(key) > most_bytes or cache.get(key) == number


def test_many_threads_keep_at_once() -> None:
    cache: Cache[int, int] = Cache(50)

    def fill(first: int) -> None:
        for key in range(first, first + 2000):
            cache.keep(key % 997, key % 997)
            assert cache.get(key % 997) in (None, key % 997)

    threads = [threading.Thread(target=fill, args=(number * 100,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(cache) == 50
    assert all(key == value for key, value in cache.items())
