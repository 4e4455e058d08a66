"""The cache with a bound in bytes: what it evicts, and how it counts."""

from __future__ import annotations

from random import Random

from hookline_service.pipeline.publishing.byte_cache import ByteCache

SIZE = 1_000


def cache_of(values: int) -> ByteCache[str]:
    return ByteCache(values * SIZE, Random(7))


def put(cache: ByteCache[str], *keys: str) -> None:
    for key in keys:
        cache.put(key, key, SIZE)


def test_most_lookups_hit_while_the_working_set_exceeds_the_bound_by_a_tenth() -> None:
    cache, hits, rounds = cache_of(500), 0, 10
    keys = [f"t{n}" for n in range(550)]
    for number in range(rounds + 5):
        for key in keys:
            is_held = cache.get(key) is not None
            hits += is_held and number >= 5
            if not is_held:
                put(cache, key)
    assert hits / (rounds * len(keys)) > 0.6
    assert cache.held_bytes <= 500 * SIZE


def test_frequently_used_value_is_not_evicted() -> None:
    cache = cache_of(100)
    put(cache, "busy")
    misses = 0
    for number in range(5_000):
        put(cache, f"t{number}")
        if cache.get("busy") is None:
            misses += 1
            put(cache, "busy")
    assert misses < 10, "random eviction alone would evict it fifty times"


def test_value_larger_than_the_bound_evicts_all_others() -> None:
    cache = cache_of(3)
    put(cache, "a", "b")
    cache.put("large", "large", 100 * SIZE)
    assert cache.peek("large") == "large"
    assert cache.peek("a") is cache.peek("b") is None
    assert cache.held_bytes == 100 * SIZE


def test_replaced_value_is_counted_by_its_new_size() -> None:
    cache = cache_of(10)
    put(cache, "a", "b", "c")
    cache.put("c", "grown", 9 * SIZE)
    assert cache.peek("c") == "grown"
    assert cache.held_bytes <= 10 * SIZE
    for key in ("c", "a", "b"):
        cache.pop(key)
    assert cache.held_bytes == 0
    put(cache, "a")
    cache.clear()
    assert (cache.peek("a"), cache.held_bytes) == (None, 0)
