"""Counts of pending deliveries by tenant: exact for small backlogs, estimated for large ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hookline_service.store.backlog import ROWS_PER_PAGE_MAX, BacklogStore
from tests.pipeline.rig import Rig

INSERT = """
INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid, event_id)
SELECT n % 256, now(), n, gen_random_uuid(), $1, gen_random_uuid() FROM generate_series(1, $2) AS n
"""


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    """An idle node: the tests use only its database."""
    rig = Rig(database_url)
    await rig.database.open()
    yield rig
    await rig.database.close()


async def tenant_with(rig: Rig, name: str, count: int, parts: int = 1) -> UUID:
    """Create a tenant with `count` pending deliveries of two subscriptions."""
    uid = await rig.tenant(name)
    for _ in range(2):
        subscription = await rig.subscription(uid, "http://127.0.0.1:1024/")
        for _ in range(parts):
            await rig.database.fetch(INSERT, subscription, count // 2 // parts)
    return uid


async def test_small_backlog_is_counted_exactly(rig: Rig) -> None:
    store = BacklogStore(rig.database)
    assert (await store.most(), await store.by_tenant()) == (0, {})
    acme, other = await tenant_with(rig, "acme", 700), await tenant_with(rig, "other", 40)
    await rig.tenant("idle")
    assert await store.by_tenant() == {acme: 700, other: 40}
    assert await store.most() >= 740


async def test_large_backlog_is_estimated_from_a_sample(rig: Rig) -> None:
    acme = await tenant_with(rig, "acme", 30_000, parts=3)
    other = await tenant_with(rig, "other", 10_000, parts=3)
    estimated = await BacklogStore(rig.database, pages_sampled=150).by_tenant()
    assert estimated[acme] == pytest.approx(30_000, rel=0.5)
    assert estimated[other] == pytest.approx(10_000, rel=0.8)
    assert estimated[acme] > estimated[other]


async def test_no_page_has_more_rows_than_the_estimate_assumes(rig: Rig) -> None:
    await tenant_with(rig, "acme", 5_000)
    (row,) = await rig.database.fetch(
        """SELECT max(count) AS most FROM (
               SELECT count(*) FROM pending_deliveries GROUP BY (ctid::text::point)[0]) page"""
    )
    assert 50 <= row["most"] <= ROWS_PER_PAGE_MAX
