"""Migrations: each runs once, in any number of processes, and only forward."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest

from hookline_service.store.migrations import (
    Migration,
    MigrationError,
    all_migrations,
    migrate,
    pending_migrations,
)
from hookline_service.store.partitions import PARENTS
from tests.postgres import PostgresServer, execute


@pytest.fixture
async def empty_url(database_url: str) -> str:
    """A database without a schema."""
    await execute(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return database_url


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {row[0] for row in rows}


GROWING_TABLES = (*PARENTS, "pending_deliveries", "idempotency_keys", "change_log", "audit_entries")
FIRST_PREBUILT = 38


def test_a_new_index_of_a_growing_table_may_be_built_before_the_migration() -> None:
    """docs/production.md: operators of large tables build it with CONCURRENTLY."""
    created = re.compile(r"CREATE (?:UNIQUE )?INDEX (.*?)\bON (?:ONLY )?(\w+)", re.DOTALL)
    assert any(created.findall(migration.sql) for migration in all_migrations())
    for migration in all_migrations():
        for name, table in created.findall(migration.sql):
            if migration.number >= FIRST_PREBUILT and table in GROWING_TABLES:
                assert name.startswith("IF NOT EXISTS "), (migration.number, table)


def numbered(*halves: tuple[int, str, str]) -> list[Migration]:
    return [
        Migration(number, f"step_{number}", "pre" if half == "pre" else "post", sql)
        for number, half, sql in halves
    ]


def test_migration_numbers_are_unique_and_have_a_pre_half() -> None:
    found = all_migrations()

    numbers = [m.number for m in found if m.half == "pre"]
    assert numbers == sorted(set(numbers))
    assert {m.number for m in found} == set(numbers)


async def test_empty_database_gets_all_migrations(empty_url: str) -> None:
    ours = [(m.number, m.half) for m in all_migrations() if m.half == "pre"]
    assert [(m.number, m.half) for m in await pending_migrations(empty_url)] == ours

    applied = await migrate(empty_url)

    assert [(m.number, m.half) for m in applied] == ours
    assert await pending_migrations(empty_url) == []
    assert {"tenants", "pending_deliveries", "nodes", *PARENTS} <= await tables(empty_url)


async def test_repeated_migration_does_nothing(database_url: str) -> None:
    before = await tables(database_url)

    assert await migrate(database_url) == []
    assert await tables(database_url) == before


async def test_concurrent_migrations_run_one_after_another(empty_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_url) for _ in range(5)))

    count = sum(m.half == "pre" for m in all_migrations())
    assert sorted(len(each) for each in applied) == [0, 0, 0, 0, count]
    assert await pending_migrations(empty_url) == []


async def test_failed_migration_is_rolled_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = all_migrations() + numbered(
        (902, "pre", "CREATE TABLE good ()"),
        (903, "pre", "CREATE TABLE half_way (); SELECT 1 / 0"),
        (904, "pre", "CREATE TABLE never ()"),
    )
    monkeypatch.setattr("hookline_service.store.migrations.all_migrations", lambda: found)

    with pytest.raises(MigrationError, match="division by zero"):
        await migrate(database_url)

    assert "good" in await tables(database_url)
    assert not {"half_way", "never"} & await tables(database_url)
    assert [m.number for m in await pending_migrations(database_url)] == [903, 904]


async def test_post_halves_run_only_on_request(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait until no node runs the previous version."""
    found = all_migrations() + numbered(
        (902, "pre", "CREATE TABLE new_one ()"),
        (902, "post", "DROP TABLE old_one"),
        (903, "pre", "CREATE TABLE newer_one ()"),
    )
    monkeypatch.setattr("hookline_service.store.migrations.all_migrations", lambda: found)
    await execute(database_url, "CREATE TABLE old_one ()")

    assert [(m.number, m.half) for m in await migrate(database_url)] == [(902, "pre"), (903, "pre")]
    assert "old_one" in await tables(database_url)
    assert await pending_migrations(database_url) == []

    assert [(m.number, m.half) for m in await migrate(database_url, post=True)] == [(902, "post")]
    assert "old_one" not in await tables(database_url)


async def test_an_older_version_leaves_a_newer_schema_alone(database_url: str) -> None:
    await execute(
        database_url,
        "CREATE TABLE of_the_future (); "
        "INSERT INTO schema_migrations (number, half, title) VALUES (999, 'pre', 'future')",
    )

    assert await migrate(database_url) == []
    assert await pending_migrations(database_url) == []
    assert "of_the_future" in await tables(database_url)


async def test_an_unreachable_server_is_an_error_of_one_sentence(
    postgres_server: PostgresServer,
) -> None:
    with pytest.raises(MigrationError, match="the database cannot be reached"):
        await migrate(postgres_server.url_of("no_such_database"))


async def test_a_migration_blocks_no_session_for_long(database_url: str) -> None:
    """A migration waits at most two seconds for locks on partitions."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP TABLE events_" + await _far_day(connection))
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(MigrationError, match="lock timeout"):
                await migrate(database_url)
        assert await migrate(database_url) == []
    finally:
        await connection.close()


async def _far_day(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    found = await connection.fetchval(
        "SELECT max(right(tablename, 8)) FROM pg_tables WHERE tablename ~ '^events_[0-9]{8}$'"
    )
    assert isinstance(found, str)
    return found
