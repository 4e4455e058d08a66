"""A transaction of another session, held open while a test checks what waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from hookline_service.store.database import Database
from tests.waiting import until

BUMP = "UPDATE tenants SET epoch = epoch + 1 WHERE tenant_uid = $1 RETURNING epoch"
STALL = "LOCK TABLE events IN SHARE MODE"
"""Every publish waits, and has locked nothing yet."""


async def take_key(
    connection: asyncpg.Connection[asyncpg.Record], tenant_uid: UUID, key: str
) -> None:
    """Take an idempotency key: a publish with it waits, and has locked its tenants' epochs."""
    await connection.execute(
        """INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint, delivery_count,
                                         expires_at)
           VALUES ($1, $2, $1, '', 0, now() + interval '1 h')""",
        tenant_uid,
        key,
    )


@asynccontextmanager
async def rival(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection in a transaction, which the test ends itself or which is rolled back."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        yield connection
    finally:
        connection.terminate()


async def until_blocked(database: Database, session: str = "publish", count: int = 1) -> None:
    """Wait until so many of a session's statements wait for a lock."""

    async def is_blocked() -> bool:
        row = await database.fetchrow(
            """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = $1
                 AND wait_event_type = 'Lock'""",
            f"hookline {session}",
        )
        return row is not None and row[0] == count

    await until(is_blocked, f"{count} statements of {session} wait for a lock")


async def until_waiting(database: Database, lock_type: str) -> None:
    """Wait until a statement in this database waits for a lock of this type."""

    async def is_waiting() -> bool:
        row = await database.fetchrow(
            """SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
               WHERE a.datname = current_database() AND l.locktype = $1 AND NOT l.granted""",
            lock_type,
        )
        return row is not None and row[0] > 0

    await until(is_waiting, f"a statement waits for a lock of type {lock_type}")


async def copy_subscription(
    connection: asyncpg.Connection[asyncpg.Record], subscription_uid: UUID, new_uid: UUID
) -> None:
    """Create a subscription like another, under the tenant's next epoch, in the transaction."""
    await connection.execute(
        """WITH source AS (SELECT * FROM subscriptions WHERE subscription_uid = $1),
                bumped AS (UPDATE tenants SET epoch = epoch + 1
                           WHERE tenant_uid IN (SELECT tenant_uid FROM source) RETURNING epoch)
           INSERT INTO subscriptions (subscription_uid, tenant_uid, bucket, subscription_id,
                                      event_types, url, timeout_ms, max_in_flight, changed_epoch)
           SELECT $2, tenant_uid, bucket, 's-copy', event_types, url, timeout_ms, max_in_flight,
                  bumped.epoch
           FROM source, bumped""",
        subscription_uid,
        new_uid,
    )
