"""The cost of reading a page among many deliveries, in blocks read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.ids import LAST_UUID, bucket_of_delivery, delivery_range_of
from hookline_service.store.deliveries import SQL
from hookline_service.store.events import SQL as EVENTS
from hookline_service.store.partitions import first_id_of_day
from hookline_service.store.status import SQL as STATUS
from tests.store.rows import Place, Rows, rows_in

ALL_STATES = [state.value for state in DeliveryState]


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def test_reads_touch_only_rows_of_their_result(rows: Rows) -> None:
    """Among 30,000 deliveries a page costs a few blocks, never what it would take to see all."""
    acme, other = await rows.tenant("acme"), await rows.tenant("other")
    busy, quiet = await rows.subscription(acme, "busy"), await rows.subscription(acme, "quiet")
    noise = await rows.subscription(other, "noise")
    for place in (busy, noise):
        await fill_history(rows, place, 8_000)
        await fill_pending(rows, place, 7_000)
    event_id = await rows.event(acme)
    pending = await rows.pending(quiet, event_id)
    dead = await rows.finished(quiet, await rows.event(acme), state="EXHAUSTED")
    await rows.connection.execute("ANALYZE")
    page = (LAST_UUID, 51)
    of_event = (acme, event_id, *delivery_range_of(event_id), None)
    letters = ["EXHAUSTED", "CANCELLED"]
    window = today(rows)
    reads: list[tuple[int, str, tuple[object, ...]]] = [
        (20, SQL.get, ("acme", pending, bucket_of_delivery(pending))),
        (20, SQL.get, ("-", dead, bucket_of_delivery(dead))),
        (20, SQL.list_of_tenant, (*page, letters, acme)),
        (20, SQL.list_of_subscriptions, (*page, letters, [busy.uid])),
        (100, SQL.list_of_subscriptions, (*page, ALL_STATES, [quiet.uid])),
        (350, SQL.list_of_subscriptions, (*page, ALL_STATES, [busy.uid])),
        (350, SQL.list_of_tenant, (*page, ALL_STATES, acme)),
        # Each of the 256 buckets is looked into.
        (700, SQL.list_of_event, (*page, ALL_STATES, *of_event)),
        (900, SQL.list_of_all, (window[1], 51, ALL_STATES, *window)),
        (20, SQL.list_of_all, (window[1], 51, letters, *window)),
    ]
    for most, sql, arguments in reads:
        assert await blocks_read(rows, sql, arguments) <= most


async def test_page_of_all_tenants_reads_few_blocks_for_each_tenant(rows: Rows) -> None:
    """Each tenant with something in the window costs two descents of an index, not a page."""
    tenants, each = 500, 60
    await fill_tenants(rows, tenants, each)
    await rows.connection.execute("ANALYZE")
    window = today(rows)
    page = (window[1], 51)
    reads: list[tuple[int, str, tuple[object, ...]]] = [
        (15 * tenants, SQL.list_of_all, (*page, ["SUCCEEDED"], *window)),
        (15 * tenants, EVENTS.newest_of_all, (*page, *window)),
        (300, SQL.list_of_all, (*page, ["EXHAUSTED"], *window)),
    ]
    for most, sql, arguments in reads:
        assert await blocks_read(rows, sql, arguments) <= most


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_dead_letter_count_reads_only_dead_letters(
    rows: Rows,
    is_analysed: bool,  # noqa: FBT001
) -> None:
    busy = await rows.subscription(await rows.tenant("acme"), "busy")
    await fill_history(rows, busy, 8_000)
    await fill_history(rows, busy, 2_000, "CANCELLED")
    await fill_history(rows, busy, 300, "EXHAUSTED")
    if is_analysed:
        await rows.connection.execute("ANALYZE")
    for most, counted in ((200, 200), (10_000, 300)):
        assert await rows.connection.fetchval(STATUS.dead_letters, most) == counted
        assert await blocks_read(rows, STATUS.dead_letters, (most,)) <= 100


async def fill_history(rows: Rows, place: Place, count: int, state: str = "SUCCEEDED") -> None:
    ids = [rows.new_id() for _ in range(count)]
    await rows.connection.execute(
        """INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time,
               version, attempt_count, state, url, http_status, latency_us)
           SELECT $1, id, $2, id, now(), 1, 1, $4, 'https://example.com/', 200, 900
           FROM unnest($3::uuid[]) AS id""",
        place.tenant_uid,
        place.uid,
        ids,
        state,
    )


async def fill_tenants(rows: Rows, tenants: int, each: int) -> None:
    """Tenants with events and deliveries of their own; the newest of every tenth is dead."""
    places = [await rows.subscription(await rows.tenant(f"t{n}"), "s") for n in range(tenants)]
    ids = [rows.new_id() for _ in range(tenants * each)]
    uids = [place.tenant_uid for place in places] * each
    await rows.connection.execute(
        """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, data)
           SELECT *, 1, true, 'order.created', '{}' FROM unnest($1::uuid[], $2::uuid[])""",
        uids,
        ids,
    )
    await rows.connection.execute(
        """INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id,
               finish_time, version, attempt_count, state, url, http_status, latency_us)
           SELECT w.tenant_uid, w.id, s.subscription_uid, w.id, now(), 1, 1,
                  CASE WHEN w.place % 10 = 0 THEN 'EXHAUSTED' ELSE 'SUCCEEDED' END,
                  'https://example.com/', 200, 900
           FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS w (tenant_uid, id, place)
           JOIN subscriptions s USING (tenant_uid)""",
        uids,
        ids,
    )


def today(rows: Rows) -> tuple[UUID, UUID]:
    """Return the window of the day that has the rows."""
    day = rows.now.date()
    return first_id_of_day(day), first_id_of_day(day + timedelta(days=1))


async def fill_pending(rows: Rows, place: Place, count: int) -> None:
    ids = [rows.new_id() for _ in range(count)]
    await rows.connection.execute(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
               event_id)
           SELECT s.bucket, now(), 1, id, s.subscription_uid, id
           FROM subscriptions s, unnest($2::uuid[]) AS id WHERE s.subscription_uid = $1""",
        place.uid,
        ids,
    )


async def blocks_read(rows: Rows, sql: str, arguments: Sequence[object]) -> int:
    """Return how many blocks of tables and indexes a statement reads."""
    explained = await rows.connection.fetchval(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments
    )
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
