"""The check of the server: one that could lose committed data is refused."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from hookline_service.store.connecting import UnsafeServerError
from hookline_service.store.database import Database
from hookline_service.store.embedded import EmbeddedPostgres
from tests.store.embedded_rig import make_ground

ground = pytest.fixture(make_ground)


async def checked(url: str) -> str:
    """Return the problem of a server; empty: none."""
    try:
        await Database(url).check_server()
    except UnsafeServerError as refusal:
        return refusal.problems
    return ""


async def test_suitable_server_is_accepted(database_url: str) -> None:
    assert await checked(database_url) == ""


@pytest.mark.parametrize(
    "setting,problem",
    [
        ("synchronous_commit = off", "its synchronous_commit is off, so a crash could lose events"),
        ("default_transaction_read_only = on", "it is read-only"),
    ],
)
async def test_read_only_or_non_durable_database_is_refused(
    database_url: str, setting: str, problem: str
) -> None:
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET {setting}')
    await connection.close()

    assert await checked(database_url) == problem


async def test_an_old_server_is_refused(database_url: str) -> None:
    """Simulates a server that reports Postgres 14."""
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(
        f"""CREATE FUNCTION public.current_setting(asked text) RETURNS text LANGUAGE sql AS
            $$SELECT CASE asked WHEN 'server_version_num' THEN '140011'
                     ELSE pg_catalog.current_setting(asked) END$$;
            ALTER DATABASE "{name}" SET search_path = public, pg_catalog"""
    )
    await connection.close()

    assert await checked(database_url) == "it is Postgres 14; 15 or newer is needed"


async def test_a_session_that_does_not_keep_its_settings_is_refused(database_url: str) -> None:
    """Simulates a session in which a setting has no effect, as behind some poolers."""
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(
        f"""CREATE FUNCTION public.current_setting(asked text, missing_ok boolean) RETURNS text
            LANGUAGE sql AS
            $$SELECT CASE asked WHEN 'idle_in_transaction_session_timeout' THEN '0'
                     ELSE pg_catalog.current_setting(asked, missing_ok) END$$;
            ALTER DATABASE "{name}" SET search_path = public, pg_catalog"""
    )
    await connection.close()

    kept_not = "its session does not keep idle_in_transaction_session_timeout as it was set"
    assert await checked(database_url) == kept_not


async def test_a_server_without_fsync_or_full_page_writes_is_refused(ground: Path) -> None:
    server = EmbeddedPostgres(
        ground / "data",
        settings={"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"},
    )
    try:
        problems = await checked(await server.start())
    finally:
        await server.remove()

    assert problems == (
        "its fsync is off, so a crash could lose events; "
        "its full_page_writes is off, so a crash could lose events"
    )
