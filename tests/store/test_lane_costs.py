"""The cost of reading lanes with much that is due at one time, in blocks read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from hookline_service.domain.ids import LAST_UUID, bucket_of, first_uuid_of
from hookline_service.store.lanes import SQL
from hookline_service.store.subscriptions import SQL as SUBSCRIPTIONS
from tests.store.rows import Rows, rows_in
from tests.store.test_delivery_costs import blocks_read

FIRST = UUID(int=0)


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def test_a_refill_does_not_sort_a_hundred_thousand_due_rows(rows: Rows) -> None:
    place = await rows.subscription(await rows.tenant("acme"), "orders")
    event_id, bucket = await rows.event(place.tenant_uid), bucket_of(place.uid)
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           SELECT $1, now() - interval '1 s', 1, md5(n::text)::uuid, $2, $3
           FROM generate_series(1, 100000) AS n""",
        bucket,
        place.uid,
        event_id,
    )
    await rows.connection.execute("ANALYZE pending_deliveries")
    lane = ([bucket], [place.uid], [place.tenant_uid], [100])

    (first, *_) = await rows.connection.fetch(SQL.refill, *lane, [], 4_096)
    rest = await rows.connection.fetch(SQL.refill, *lane, [first["delivery_id"]], 4_096)

    assert len(rest) == 100
    assert first["delivery_id"] not in {row["delivery_id"] for row in rest}
    assert await blocks_read(rows, SQL.heads, [[bucket], [FIRST], 100]) <= 20
    assert await blocks_read(rows, SQL.refill, (*lane, [], 4_096)) <= 1_000
    discard = await rows.connection.fetch(
        f"EXPLAIN {SUBSCRIPTIONS.discard}", bucket, place.uid, LAST_UUID, rows.now, 500,
        place.tenant_uid, "{}", "CANCELLED",
    )  # fmt: skip
    sorts = [row[0] for row in discard if "Sort Key" in row[0]]
    assert len(sorts) == 1, "it sorts a batch at most"


async def test_the_cost_of_a_sweep_turn_does_not_depend_on_waiting_lanes(
    rows: Rows,
) -> None:
    """Each lane has a retry due tomorrow; one also has many rows due for an hour."""
    place = await rows.subscription(await rows.tenant("acme"), "orders")
    event_id, bucket = await rows.event(place.tenant_uid), bucket_of(place.uid)
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, version, due_at, ordinal, delivery_id,
                                           subscription_uid, event_id)
           SELECT $1::smallint, 1, now() + interval '1 day' + n * interval '1 ms', 1,
                  ('00000000' || substr(md5(n::text), 9))::uuid, md5(n::text || 's')::uuid, $2::uuid
           FROM generate_series(1, 100000) AS n
           UNION ALL
           SELECT $1::smallint, 1, now() - interval '1 hour' - n * interval '1 ms', 1,
                  ('00000001' || substr(md5(n::text), 9))::uuid, $3::uuid, $2::uuid
           FROM generate_series(1, 20000) AS n""",
        bucket,
        event_id,
        place.uid,
    )
    await rows.connection.execute("ANALYZE pending_deliveries")
    since = rows.now - timedelta(seconds=6)
    look = ([bucket], first_uuid_of(int(since.timestamp() * 1_000)), since, 500)

    walked = await rows.connection.fetch(SQL.heads, [bucket], [FIRST], 2_048)
    assert [row["is_last"] for row in walked][-1:] == [True]
    assert await rows.connection.fetch(SQL.arrivals, *look) == []
    assert await blocks_read(rows, SQL.heads, [[bucket], [FIRST], 2_048]) <= 5 * 2_048
    assert await blocks_read(rows, SQL.arrivals, look) <= 50


async def test_rows_due_at_publish_are_not_in_the_index_of_later_rows(
    rows: Rows,
) -> None:
    (definition,) = await rows.connection.fetch(
        "SELECT pg_get_indexdef('pending_later'::regclass) AS sql"
    )
    place = await rows.subscription(await rows.tenant("acme"), "orders")
    event_id = await rows.event(place.tenant_uid)
    size = "SELECT pg_relation_size('pending_later')"
    before = await rows.connection.fetchval(size)
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id,
                                           subscription_uid, event_id)
           SELECT $1, now(), 1, md5(n::text)::uuid, $2, $3 FROM generate_series(1, 2000) AS n""",
        bucket_of(place.uid),
        place.uid,
        event_id,
    )

    assert definition["sql"].endswith("(bucket, due_at) WHERE (version > 0)")
    assert await rows.connection.fetchval(size) == before
