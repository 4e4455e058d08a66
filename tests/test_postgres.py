"""The Postgres that tests get: durable as in production, migrated, and each test's own."""

import asyncpg
import pytest


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_each_test_has_a_database_to_itself(database_url: str, turn: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE left_behind ()")
        assert await connection.fetchval("SELECT count(*) FROM schema_migrations") > 0, turn
    finally:
        await connection.close()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_what_makes_a_commit_durable_is_on(database_url: str, setting: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT current_setting($1)", setting) == "on"
    finally:
        await connection.close()
