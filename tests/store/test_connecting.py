"""Checks of each new connection: whether the server is usable, and which history it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.store.connecting import SQL, History
from hookline_service.store.database import Database
from hookline_service.store.ownership import OwnershipStore


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database."""
    opened = Database(database_url, pool_size=2)
    await opened.open()
    yield opened
    await opened.close()


def known(database: Database) -> History:
    """Return the server identity that the database has stored."""
    history = database._history  # noqa: SLF001 - what is under test
    assert history is not None
    return history


def pretend(database: Database, history: History) -> None:
    """Replace the stored server identity."""
    database._history = history  # noqa: SLF001 - what is under test


async def test_a_server_that_is_not_promoted_keeps_its_history(
    database: Database, database_url: str
) -> None:
    other = Database(database_url, pool_size=1)
    await other.open()

    assert other.history_id == database.history_id
    await other.close()


async def test_one_of_many_connections_that_detect_a_promotion_starts_the_history(
    database: Database, database_url: str
) -> None:
    await database.fetch("UPDATE database_history SET timeline = timeline - 1")
    others = [Database(database_url, pool_size=1) for _ in range(8)]
    await asyncio.gather(*(other.open() for other in others))

    (found,) = {other.history_id for other in others}
    assert found != database.history_id
    for other in others:
        await other.close()


async def test_the_successor_of_a_history_is_begun_once(database: Database) -> None:
    """Two connections may both find that a history has ended before either begins the next."""
    ended = known(database)
    begun = []
    for _ in range(2):
        await database.fetch(
            SQL.begin_history, ended.history_id, ended.system_identifier, ended.timeline
        )
        (row,) = await database.fetch("SELECT history_id FROM database_history")
        begun.append(row["history_id"])
    assert begun[0] == begun[1] != ended.history_id


async def test_shorter_write_ahead_log_starts_a_new_history(database: Database) -> None:
    """An older copy of the disk has the same timeline."""
    before = known(database)
    changes: list[str] = []
    database.on_history_changed.append(lambda: changes.append("changed"))
    pretend(database, replace(before, flushed_bytes=before.flushed_bytes + 2**40))
    session = database.session("test")
    await session.fetch("SELECT 1")

    assert known(database).history_id != before.history_id
    assert changes == ["changed"]
    await session.close()


async def test_each_heartbeat_reads_the_length_of_the_write_ahead_log(database: Database) -> None:
    """A restored disk is compared with the last heartbeat, not with an old connection."""
    store, node_id = OwnershipStore(database.session("heartbeat")), uuid4()
    await store.register(node_id, 10.0, "host-1", "1.2.3", "")
    await database.fetch("SELECT pg_logical_emit_message(true, 'test', repeat('x', 100000))")
    (row,) = await database.fetch(
        "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS flushed_bytes"
    )
    assert known(database).flushed_bytes < row["flushed_bytes"]
    await store.renew(node_id, 10.0)

    assert known(database).flushed_bytes >= row["flushed_bytes"]
    await store.close()


async def test_connections_to_the_former_history_are_closed(database: Database) -> None:
    old = database.session("old")
    ((pid,),) = await old.fetch("SELECT pg_backend_pid()")
    pretend(database, replace(known(database), history_id=uuid4()))
    new = database.session("new")
    await new.fetch("SELECT 1")

    ((now,),) = await old.fetch("SELECT pg_backend_pid()")
    assert now != pid
    await old.close()
    await new.close()


async def test_former_primary_is_refused_after_a_failover(database: Database) -> None:
    newer = replace(known(database), history_id=uuid4(), timeline=known(database).timeline + 1)
    pretend(database, newer)
    session = database.session("test")

    with pytest.raises(UnavailableError, match="the primary of before a failover") as refusal:
        await session.fetch("SELECT 1")

    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
    assert known(database) is newer


async def test_statement_for_another_history_is_not_run(database: Database) -> None:
    session = database.session("test")
    await session.fetch("CREATE TABLE t (n integer)", history_id=database.history_id)

    with pytest.raises(UnavailableError, match="another copy"):
        await session.fetch("INSERT INTO t VALUES (1)", history_id=uuid4())
    with pytest.raises(UnavailableError, match="another copy"):
        async with session.transaction(uuid4()):
            pass

    assert await session.fetch("SELECT FROM t") == []
    await session.close()


async def test_first_statement_after_a_history_change_is_refused(database: Database) -> None:
    """The caller may have built the statement from data of the former history."""
    session = database.session("test")
    await session.fetch("CREATE TABLE t (n integer)")
    await database.fetch("UPDATE database_history SET timeline = timeline - 1")
    other = database.session("other")
    await other.open()  # finds the other history, and ends the connections of this one

    with pytest.raises(UnavailableError, match="another copy"):
        await session.fetch("INSERT INTO t VALUES (1)")
    await session.fetch("INSERT INTO t VALUES (2)")

    assert [row["n"] for row in await session.fetch("SELECT n FROM t")] == [2]
    await session.close()
    await other.close()


async def test_each_connection_checks_the_server(database: Database, database_url: str) -> None:
    """The address may have moved to a standby."""
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    session = database.session("test")

    with pytest.raises(UnavailableError, match="it is read-only") as refusal:
        await session.fetch("SELECT 1")
    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE

    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    assert len(await session.fetch("SELECT 1")) == 1
    await connection.close()
    await session.close()
