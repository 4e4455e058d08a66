"""Reads of the change log: each change once, in pages, at the cost of new changes only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from hookline_service.store.database import Database
from hookline_service.store.lanes import SQL, LaneStore
from tests.pipeline.rival import rival
from tests.store.rows import Rows, rows_in
from tests.store.test_delivery_costs import blocks_read

LOG = "INSERT INTO change_log (kind, bucket) SELECT 'SUBSCRIPTION', unnest($1::smallint[])"


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[LaneStore]:
    opened = LaneStore(Database(database_url).session("changes"))
    yield opened
    await opened.close()


async def log(connection: asyncpg.Connection[asyncpg.Record], *buckets: int) -> None:
    """Log a change of each of these buckets: the tests distinguish changes by them."""
    await connection.execute(LOG, buckets)


async def test_each_change_is_returned_once_while_a_transaction_stays_open(
    store: LaneStore, rows: Rows, database_url: str
) -> None:
    cursor = await store.change_cursor()
    seen: list[int | None] = []
    async with rival(database_url) as open_one:
        await log(open_one, 99)
        for n in range(3):
            await log(rows.connection, n)
            changes, cursor = await store.changes(cursor)
            seen += [change.bucket for change in changes]
        await open_one.execute("COMMIT")
    changes, cursor = await store.changes(cursor)
    seen += [change.bucket for change in changes]

    assert seen == [0, 1, 2, 99]
    assert (await store.changes(cursor))[0] == []


async def test_pages_return_each_change_once_and_then_end(store: LaneStore, rows: Rows) -> None:
    cursor = await store.change_cursor()
    await log(rows.connection, *range(5))
    for n in range(5, 8):
        await log(rows.connection, n)

    pages: list[list[int | None]] = []
    while True:
        changes, cursor = await store.changes(cursor, 3)
        pages.append([change.bucket for change in changes])
        if cursor.until is None:
            break

    assert pages == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_changes_open_at_the_cursor_are_returned_once(
    store: LaneStore, rows: Rows, database_url: str
) -> None:
    async with rival(database_url) as first, rival(database_url) as second:
        await log(first, 0)
        await log(second, 1, 2)
        await log(rows.connection, 99)  # a snapshot lists what began before the last that ended
        cursor = await store.change_cursor()
        await first.execute("COMMIT")
        await second.execute("COMMIT")
    await log(rows.connection, 3)

    pages: list[list[int | None]] = []
    for _ in range(3):
        changes, cursor = await store.changes(cursor, 2)
        pages.append([change.bucket for change in changes])

    assert pages == [[0, 1], [2, 3], []]
    assert cursor.until is None


async def test_a_change_that_commits_between_two_pages_is_read_after_them(
    store: LaneStore, rows: Rows, database_url: str
) -> None:
    """Its place in the order is on the page before: only the next snapshot range has it."""
    cursor = await store.change_cursor()
    async with rival(database_url) as slow:
        await log(slow, 99)
        await log(rows.connection, *range(5))
        first, cursor = await store.changes(cursor, 3)
        await slow.execute("COMMIT")
    await log(rows.connection, 5)
    second, cursor = await store.changes(cursor, 3)
    assert cursor.until is None
    third, cursor = await store.changes(cursor, 3)

    assert [change.bucket for change in first] == [0, 1, 2]
    assert [change.bucket for change in second] == [3, 4]
    assert sorted(change.bucket or 0 for change in third) == [5, 99]


async def test_changes_already_read_cost_nothing_while_a_transaction_stays_open(
    store: LaneStore, rows: Rows, database_url: str
) -> None:
    """A hundred thousand changes, and one transaction that began before them."""
    async with rival(database_url) as open_one:
        await log(open_one, 99)
        cursor = await store.change_cursor()
        await rows.connection.execute(
            "INSERT INTO change_log (kind, bucket) SELECT 'SUBSCRIPTION', 1 FROM"
            " generate_series(1, 100000)"
        )
        await rows.connection.execute("ANALYZE change_log")
        whole = (cursor.seen, None, "0", 0, 2_000)
        assert await blocks_read(rows, SQL.changes, whole) <= 200, "a page, not the log"
        cursor = await store.change_cursor()
        await log(rows.connection, 2)
        (change,) = (await store.changes(cursor))[0]
        assert change.bucket == 2
        assert await blocks_read(rows, SQL.changes, (cursor.seen, None, "0", 0, 2_000)) <= 40
