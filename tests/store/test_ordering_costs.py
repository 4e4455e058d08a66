"""The cost of refills of ordered lanes, in blocks read. Rule 17."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hookline_service.domain.ids import bucket_of
from hookline_service.domain.ordering import FIRST_KEY_HASH, LAST_KEY_HASH
from hookline_service.store import lanes
from hookline_service.store.database import Database
from hookline_service.store.deliveries import SQL as DELIVERIES
from hookline_service.store.lanes import ORDER_SQL, LaneStore, PageRequest
from hookline_service.store.lanes import SQL as LANES
from tests.store.rows import Place, Rows, rows_in
from tests.store.test_delivery_costs import blocks_read


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def queue_up(rows: Rows, place: Place, key_hash: int, count: int) -> None:
    """Insert pending deliveries of one key, all of one event, since only their number matters."""
    event_id = await rows.event(place.tenant_uid)
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id, key_hash)
           SELECT $1, now() - interval '1 s', n,
                  (left($3::uuid::text, 24) || left(md5(n::text || $4), 12))::uuid, $2, $3, $5
           FROM generate_series(1, $6) AS n""",
        bucket_of(place.uid),
        place.uid,
        event_id,
        str(key_hash),
        key_hash,
        count,
    )


async def test_a_hundred_thousand_rows_behind_one_key_are_not_read(rows: Rows) -> None:
    place = await rows.subscription(await rows.tenant("acme"), "orders", ordered=True)
    await queue_up(rows, place, 5, 100_000)
    for key_hash in (1, 9):
        await queue_up(rows, place, key_hash, 10)
    await rows.connection.execute("ANALYZE pending_deliveries")
    lane = ([bucket_of(place.uid)], [place.uid], [place.tenant_uid])

    one = await blocks_read(rows, ORDER_SQL.heads, (*lane, [5]))
    all_of_them = await blocks_read(rows, ORDER_SQL.page, (*lane, [100], [0], 5_000, [], []))
    but_one = (*lane, [100], [0], 5_000, [place.uid], [5])

    assert one <= 20
    assert all_of_them <= 60
    assert await blocks_read(rows, ORDER_SQL.page, but_one) <= 60
    found = await rows.connection.fetch(ORDER_SQL.page, *but_one)
    assert [row["key_hash"] for row in found] == [1, 9, None]


async def test_a_walk_ends_at_the_largest_hash(
    rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "KEYS_PER_PAGE", 1)
    monkeypatch.setattr(lanes, "KEYS_PER_PAGE_MIN", 1)
    place = await rows.subscription(await rows.tenant("acme"), "orders", ordered=True)
    await queue_up(rows, place, LAST_KEY_HASH, 2)
    request = PageRequest(bucket_of(place.uid), place.uid, place.tenant_uid, 10, FIRST_KEY_HASH)
    store = LaneStore(Database(database_url).session("refill"))
    try:
        page = (await store.first_of_lanes([request], []))[place.uid]
    finally:
        await store.close()

    assert [row.key_hash for row in page.rows] == [LAST_KEY_HASH]
    assert page.next_hash is None


async def test_lanes_in_one_statement_share_its_limit_of_keys(
    rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a statement for many lanes would delay all others by seconds."""
    monkeypatch.setattr(lanes, "KEYS_PER_PAGE", 10)
    monkeypatch.setattr(lanes, "KEYS_PER_PAGE_MIN", 2)
    tenant_uid = await rows.tenant("acme")
    places = [await rows.subscription(tenant_uid, f"s{n}", ordered=True) for n in range(20)]
    for place in places:
        for key_hash in range(12):
            await queue_up(rows, place, key_hash, 1)
    requests = [PageRequest(bucket_of(p.uid), p.uid, p.tenant_uid, 99, 0) for p in places]
    store = LaneStore(Database(database_url).session("refill"))
    try:
        found = [await store.first_of_lanes(requests[:count], []) for count in (1, 2, 20)]
    finally:
        await store.close()

    assert [{len(page.rows) for page in pages.values()} for pages in found] == [{10}, {5}, {2}]
    assert {page.next_hash for page in found[2].values()} == {2}


async def test_a_cancelled_batch_reads_its_own_rows(rows: Rows) -> None:
    place = await rows.subscription(await rows.tenant("acme"), "orders", ordered=True)
    await queue_up(rows, place, 5, 1_000)
    batch = (bucket_of(place.uid), place.uid, 10, "CANCELLED")
    few = await blocks_read(rows, LANES.cancel_deleted, batch)
    await queue_up(rows, place, 6, 50_000)

    assert await blocks_read(rows, LANES.cancel_deleted, batch) <= few + 50


async def test_blocked_check_stops_at_the_first_earlier_row(
    rows: Rows,
) -> None:
    place = await rows.subscription(await rows.tenant("acme"), "orders", ordered=True)
    await queue_up(rows, place, 5, 20_000)
    await rows.connection.execute("ANALYZE pending_deliveries")
    last = await rows.connection.fetchrow(
        "SELECT * FROM pending_deliveries ORDER BY ordinal DESC LIMIT 1"
    )
    assert last is not None
    shown = ([last["delivery_id"]], [place.uid], [last["event_id"]], [0])

    (row,) = await rows.connection.fetch(DELIVERIES.details, *shown)

    assert row["is_behind"]
    assert await blocks_read(rows, DELIVERIES.details, shown) <= 40


async def test_a_page_ends_after_its_limit_of_keys(rows: Rows) -> None:
    """All keys but the last wait for a retry."""
    place = await rows.subscription(await rows.tenant("acme"), "orders", ordered=True)
    event_id = await rows.event(place.tenant_uid)
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id, key_hash)
           SELECT $1, CASE WHEN n < 2500 THEN now() + interval '1 h' ELSE now() END, n,
                  md5(n::text)::uuid, $2, $3, n
           FROM generate_series(1, 2500) AS n""",
        bucket_of(place.uid),
        place.uid,
        event_id,
    )
    await rows.connection.execute("ANALYZE pending_deliveries")
    lane = ([bucket_of(place.uid)], [place.uid], [place.tenant_uid], [100])

    seen = []
    from_hash = 0
    for _ in range(3):
        page = await rows.connection.fetch(ORDER_SQL.page, *lane, [from_hash], 1_000, [], [])
        seen.append([(row["key_hash"], row["is_free"]) for row in page])
        from_hash = (page[-1]["key_hash"] or 0) + 1

    assert seen == [[(1_000, False)], [(2_000, False)], [(2_500, True), (None, None)]]
    assert await blocks_read(rows, ORDER_SQL.page, (*lane, [0], 10, [], [])) <= 60
