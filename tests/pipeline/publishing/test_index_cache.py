"""Indexes in memory: bounded by bytes, and no cliff where a few more are used than fit."""

from __future__ import annotations

from random import Random
from uuid import uuid4

from hookline_service.domain.subscription import PayloadFormat
from hookline_service.pipeline.publishing.index_cache import (
    SUBSCRIPTION_BYTES,
    TENANT_BYTES,
    IndexCache,
)
from hookline_service.pipeline.publishing.tenant_index import TenantIndex
from hookline_service.store.routes import IndexRow


def index_of(tenant_id: str, subscriptions: int = 0) -> TenantIndex:
    index = TenantIndex(tenant_id, uuid4())
    index.apply(
        1,
        [
            IndexRow(uuid4(), 0, ("*",), False, 0.0, 1, PayloadFormat.STANDARD, False)
            for _ in range(subscriptions)
        ],
    )
    return index


def cache_of(tenants: int) -> IndexCache:
    return IndexCache(tenants * TENANT_BYTES, Random(7))


def test_a_tenth_more_than_fits_used_in_turn_is_mostly_held() -> None:
    cache, hits, rounds = cache_of(500), 0, 10
    tenants = [f"t{n}" for n in range(550)]
    for number in range(rounds + 5):
        for tenant_id in tenants:
            held = cache.get(tenant_id) is not None
            hits += held and number >= 5
            if not held:
                cache.put(tenant_id, index_of(tenant_id))
    assert hits / (rounds * len(tenants)) > 0.6
    assert cache.held_bytes <= 500 * TENANT_BYTES


def test_what_is_used_often_stays() -> None:
    cache = cache_of(100)
    cache.put("busy", index_of("busy"))
    misses = 0
    for number in range(5_000):
        cache.put(f"t{number}", index_of(f"t{number}"))
        if cache.get("busy") is None:
            misses += 1
            cache.put("busy", index_of("busy"))
    assert misses < 10, "drawn at random alone it would be evicted fifty times"


def test_an_index_weighs_by_its_subscriptions_and_may_exceed_the_bound_alone() -> None:
    cache = cache_of(3)
    for tenant_id in ("a", "b"):
        cache.put(tenant_id, index_of(tenant_id))
    cache.put("large", index_of("large", 100))
    assert cache.peek("large") is not None
    assert cache.peek("a") is cache.peek("b") is None
    assert cache.held_bytes == TENANT_BYTES + 100 * SUBSCRIPTION_BYTES


def test_an_index_that_has_grown_is_weighed_anew() -> None:
    cache = cache_of(10)
    for tenant_id in ("a", "b", "c"):
        cache.put(tenant_id, index_of(tenant_id))
    cache.put("c", index_of("c", 12))
    assert cache.peek("c") is not None
    assert cache.held_bytes <= 10 * TENANT_BYTES
    cache.pop("c")
    cache.pop("a")
    cache.pop("b")
    assert cache.held_bytes == 0
    cache.put("a", index_of("a"))
    cache.clear()
    assert (cache.peek("a"), cache.held_bytes) == (None, 0)
