"""Schema migrations: numbered SQL files, forward only, under an advisory lock.

`NNNN_title.pre.sql` runs before the new version's nodes start and must leave the schema usable by
version N-1; `NNNN_title.post.sql` runs once no node of N-1 is left (`hookline migrate --post`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import asyncpg

from hookline_service.store.partitions import create_partitions

Half = Literal["pre", "post"]

_FILE = re.compile(r"(\d{4})_(\w+)\.(pre|post)\.sql")
_CONNECT_TIMEOUT_S = 10.0
_LOCK_KEY = 0x686F6F6B  # "hook"
_REFUSED = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     integer NOT NULL,
    half       text NOT NULL CHECK (half IN ('pre', 'post')),
    title      text NOT NULL,
    apply_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (number, half)
)"""


class MigrationError(Exception):
    """The database cannot be reached, or refuses what a migration needs."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: what it is and what it runs."""

    number: int
    title: str
    half: Half
    sql: str


def all_migrations() -> list[Migration]:
    """Every migration of this version, in the order in which they run."""
    found: list[Migration] = []
    for file in resources.files("hookline_service.store").joinpath("sql/migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        half: Half = "pre" if match[3] == "pre" else "post"
        found.append(Migration(int(match[1]), match[2], half, file.read_text("utf-8")))
    return sorted(found, key=lambda migration: (migration.number, migration.half == "post"))


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    try:
        connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S)
    except _REFUSED as error:
        said = str(error) or f"it was silent for {_CONNECT_TIMEOUT_S:g} s"
        raise MigrationError(f"the database cannot be reached ({said})") from error
    try:
        yield connection
    except _REFUSED as error:
        raise MigrationError(f"the schema cannot be brought up to date: {error}") from error
    finally:
        await connection.close()


async def migrate(url: str, *, post: bool = False) -> list[Migration]:
    """Bring the schema up to this version and create the partitions; returns what was applied.

    Safe to run from several processes at once: they take turns. Raises `MigrationError`.
    """
    applied: list[Migration] = []
    async with _connected(url) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
        await connection.execute(_BOOKKEEPING)
        done = {
            (row["number"], row["half"])
            for row in await connection.fetch("SELECT number, half FROM schema_migrations")
        }
        for migration in all_migrations():
            if (migration.number, migration.half) in done or (
                migration.half == "post" and not post
            ):
                continue
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, half, title) VALUES ($1, $2, $3)",
                    migration.number,
                    migration.half,
                    migration.title,
                )
            applied.append(migration)
        await create_partitions(connection)
    return applied


async def pending_migrations(url: str) -> list[Migration]:
    """The `pre` halves that this version needs and the database lacks."""
    async with _connected(url) as connection:
        if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            done = set()
        else:
            rows = await connection.fetch("SELECT number, half FROM schema_migrations")
            done = {(row["number"], row["half"]) for row in rows}
    return [m for m in all_migrations() if m.half == "pre" and (m.number, m.half) not in done]
