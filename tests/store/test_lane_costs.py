"""What reading a lane costs where much is due at one moment, in blocks that are looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.domain.ids import bucket_of
from service.store.lanes import SQL
from service.store.subscriptions import NEWEST
from service.store.subscriptions import SQL as SUBSCRIPTIONS
from tests.store.rows import Rows, rows_in
from tests.store.test_delivery_costs import blocks_read


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def test_a_hundred_thousand_due_at_one_moment_are_not_sorted(rows: Rows) -> None:
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
    assert await blocks_read(rows, SQL.heads, [[bucket]]) <= 20
    assert await blocks_read(rows, SQL.refill, (*lane, [], 4_096)) <= 1_000
    discard = await rows.connection.fetch(
        f"EXPLAIN {SUBSCRIPTIONS.discard}", bucket, place.uid, NEWEST, rows.now, 500,
        place.tenant_uid, "{}",
    )  # fmt: skip
    sorts = [row[0] for row in discard if "Sort Key" in row[0]]
    assert len(sorts) == 1, "of what it tells, a batch at most"
