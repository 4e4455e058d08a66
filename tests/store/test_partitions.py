"""Day partitions: created ahead, no default partition, dropped one day at a time. Rule 24."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

import asyncpg
import pytest

from hookline_service.domain.ids import unix_ms_of
from hookline_service.store.partitions import (
    DAYS_AHEAD,
    PARENTS,
    create_partitions,
    day_of,
    drop_day,
    first_id_of_day,
    old_days,
    partition_name,
)
from tests.waiting import PATIENCE_S, until

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"  # generic in its stubs alone

OLD = date(2026, 1, 31)
INSERT = """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, content_type, data)
            VALUES (gen_random_uuid(), $1, 1, true, 'a', 'b', '{}')"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[Connection]:
    """Another session, possibly inside a transaction."""
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Connection]:
    """A session that must not be blocked."""
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def attached(connection: Connection, parent: str) -> dict[str, bool]:
    """Return a parent's partitions, and whether each is half detached."""
    rows = await connection.fetch(
        """SELECT c.relname, i.inhdetachpending
           FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = $1::regclass""",
        parent,
    )
    return dict(map(tuple, rows))


async def make_old_day(connection: Connection, day: date = OLD) -> None:
    """Create partitions of an old day, with a row each."""
    for parent in PARENTS:
        name = partition_name(parent, day)
        first, end = first_id_of_day(day), first_id_of_day(day + timedelta(days=1))
        await connection.execute(
            f"CREATE TABLE {name} PARTITION OF {parent} FOR VALUES FROM ('{first}') TO ('{end}')"
        )
    await connection.execute(INSERT, first_id_of_day(day))


async def today(connection: Connection) -> date:
    found = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert isinstance(found, date)
    return found


def test_a_days_ids_begin_at_its_midnight_in_utc() -> None:
    moment = datetime.fromtimestamp(unix_ms_of(first_id_of_day(OLD)) / 1_000, UTC)

    assert moment == datetime(2026, 1, 31, tzinfo=UTC)
    assert day_of(partition_name("events", OLD)) == OLD


async def test_future_days_have_partitions_and_there_is_no_default_partition(
    connection: Connection,
) -> None:
    day = await today(connection)
    expected = [day + timedelta(days=n) for n in range(-1, DAYS_AHEAD + 1)]
    assert DAYS_AHEAD == 14

    for parent in PARENTS:
        names = await attached(connection, parent)
        assert sorted(names) == [partition_name(parent, each) for each in expected]
        assert not any(names.values())


async def test_row_without_a_partition_is_refused(connection: Connection) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(INSERT, first_id_of_day(OLD))


async def test_missing_partitions_are_created_once(connection: Connection) -> None:
    far = partition_name("events", await today(connection) + timedelta(days=DAYS_AHEAD))
    await connection.execute(f"DROP TABLE {far}")

    assert await create_partitions(connection) == [far]
    assert await create_partitions(connection) == []
    assert far in await attached(connection, "events")


async def test_concurrent_nodes_create_each_partition_once(
    connection: Connection, reader: Connection
) -> None:
    far = partition_name("attempts", await today(connection) + timedelta(days=DAYS_AHEAD))
    await connection.execute(f"DROP TABLE {far}")

    made = await asyncio.gather(create_partitions(connection), create_partitions(reader))

    assert sorted(made) == [[], [far]]


async def test_creating_a_day_does_not_wait_for_writers(
    connection: Connection, reader: Connection
) -> None:
    far = partition_name("events", await today(connection) + timedelta(days=DAYS_AHEAD))
    await connection.execute(f"DROP TABLE {far}")
    async with reader.transaction():
        await reader.execute(INSERT, first_id_of_day(await today(connection)))
        async with asyncio.timeout(PATIENCE_S):
            assert await create_partitions(connection) == [far]


async def test_all_days_have_the_same_indexes(connection: Connection) -> None:
    rows = await connection.fetch(
        """SELECT tablename, count(*) FROM pg_indexes
           WHERE tablename ~ '^(events|deliveries|attempts)_[0-9]{8}$' GROUP BY tablename"""
    )
    counts = {parent: {n for t, n in rows if t.startswith(f"{parent}_")} for parent in PARENTS}

    assert counts == {"events": {1}, "deliveries": {5}, "attempts": {1}}


async def test_all_partitions_of_an_old_day_are_dropped(connection: Connection) -> None:
    await make_old_day(connection)
    assert await old_days(connection, OLD + timedelta(days=1)) == [OLD]
    assert await old_days(connection, OLD) == []

    await drop_day(connection, OLD)

    assert await old_days(connection, OLD + timedelta(days=1)) == []
    for parent in PARENTS:
        assert partition_name(parent, OLD) not in await attached(connection, parent)


async def test_drop_of_a_day_being_read_is_retried(
    connection: Connection, reader: Connection
) -> None:
    """The first try leaves a partition half detached; the next one finishes it."""
    await make_old_day(connection)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("SELECT count(*) FROM events")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await drop_day(connection, OLD, lock_timeout_s=0.2)
        assert (await attached(connection, "events"))[partition_name("events", OLD)] is True
        assert await old_days(connection, OLD + timedelta(days=1)) == [OLD]

    await drop_day(connection, OLD, lock_timeout_s=0.2)

    assert await old_days(connection, OLD + timedelta(days=1)) == []


async def test_a_day_that_was_detached_but_not_dropped_is_found_and_dropped(
    connection: Connection,
) -> None:
    await make_old_day(connection)
    name = partition_name("deliveries", OLD)
    await connection.execute(f"ALTER TABLE deliveries DETACH PARTITION {name}")

    assert await old_days(connection, OLD + timedelta(days=1)) == [OLD]
    await drop_day(connection, OLD)
    assert await old_days(connection, OLD + timedelta(days=1)) == []


async def test_dropping_a_day_does_not_block_writers(
    connection: Connection, reader: Connection, writer: Connection
) -> None:
    await make_old_day(connection)
    day, dropper = await today(connection), connection.get_server_pid()

    async def waits() -> bool:
        statement = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $1"
        return bool(await writer.fetchval(statement, dropper) == "Lock")

    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("SELECT count(*) FROM events")
        dropping = asyncio.create_task(drop_day(connection, OLD, lock_timeout_s=2 * PATIENCE_S))
        await until(waits, "it waits for the reader")
        async with asyncio.timeout(PATIENCE_S):
            await writer.execute(INSERT, first_id_of_day(day))
        assert not dropping.done()
    await dropping
    assert await old_days(connection, OLD + timedelta(days=1)) == []
