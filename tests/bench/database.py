"""Measurements of the run's Postgres: write-ahead log, hot table, bucket owners.

Also creates what would take hours through the API: a hundred thousand subscriptions of a tenant.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from tests.bench.processes import BenchError

_LOGGED = """
SELECT coalesce(sum(fpi_size), 0)::bigint AS image_bytes,
       coalesce(sum(count) FILTER (WHERE "resource_manager/record_type" = 'Transaction/COMMIT'), 0)
           ::bigint AS commits
FROM pg_get_wal_stats($1, least($2, pg_current_wal_flush_lsn()), true)
"""
# Read inside the session that writes, because another session may have another setting.
_WATCH_COMMITS = """
CREATE TABLE bench_commits (writes text, setting text);
CREATE FUNCTION bench_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_commits VALUES (TG_TABLE_NAME, current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE TRIGGER bench_commit AFTER INSERT ON events EXECUTE FUNCTION bench_commit();
CREATE TRIGGER bench_commit AFTER INSERT ON deliveries EXECUTE FUNCTION bench_commit();
"""
_STOP_WATCHING = """
DROP FUNCTION bench_commit() CASCADE;
DROP TABLE bench_commits;
"""
# None of them matches `order.created`; all share the prefix that an index looks up first.
_ADD_SUBSCRIPTIONS = """
WITH bumped AS (
    UPDATE tenants SET epoch = epoch + 1, subscription_count = subscription_count + $2
    WHERE tenant_id = $1 AND deleted_at IS NULL
    RETURNING tenant_uid, epoch
)
INSERT INTO subscriptions (subscription_uid, tenant_uid, bucket, subscription_id, event_types, url,
                           timeout_ms, max_in_flight, changed_epoch)
SELECT uuidv7(), tenant_uid, n % 256, 'bulk-' || n,
       ARRAY[CASE WHEN n % 2 = 0 THEN 'order.t' || n ELSE 'order.t' || n % 1000 || '.*' END],
       'http://127.0.0.1:1024/', 15000, 64, epoch
FROM bumped, generate_series(1, $2) AS n
"""


@dataclass(frozen=True)
class Logged:
    """A section of the write-ahead log."""

    image_bytes: int
    """Bytes of full-page images."""
    commits: int


@dataclass(frozen=True)
class HotTable:
    """The size of `pending_deliveries`, in bytes."""

    heap: int
    indexes: int


class BenchDatabase:
    """A connection that the service does not use."""

    def __init__(self, url: str, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.url = url
        self._connection = connection

    async def prepare(self) -> None:
        """Create the meters; raise `BenchError` if commits would not be durable."""
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            if await self._connection.fetchval("SELECT current_setting($1)", setting) != "on":
                raise BenchError(f"{setting} is not on")
        await self._connection.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")

    async def watch_commits(self) -> None:
        """Record `synchronous_commit` of writing sessions; costs CPU, so not while measuring."""
        await self._connection.execute(_WATCH_COMMITS)

    async def check_commits(self) -> None:
        """Stop recording; raise `BenchError` if a session did not commit durably."""
        rows = await self._connection.fetch("SELECT DISTINCT writes, setting FROM bench_commits")
        await self._connection.execute(_STOP_WATCHING)
        seen = {(row["writes"], row["setting"]) for row in rows}
        if not seen or any(setting != "on" for _, setting in seen):
            raise BenchError(f"synchronous_commit in the sessions that write: {seen or 'unseen'}")

    async def postmaster_pid(self) -> int:
        """Return the pid of the postmaster."""
        return int(
            await self._connection.fetchval(
                "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
            )
        )

    async def checkpoint(self) -> None:
        """Run a checkpoint, so that the first change of every page includes a full-page image."""
        await self._connection.execute("CHECKPOINT")

    async def wal_position(self) -> int:
        """Return the position in the write-ahead log, in bytes."""
        return int(
            await self._connection.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
            )
        )

    async def logged(self, begin: int, end: int) -> Logged | None:
        """Return the section between two positions; None if it was recycled."""
        try:
            row = await self._connection.fetchrow(_LOGGED, begin, end)
        except asyncpg.PostgresError:
            return None
        return None if row is None else Logged(row["image_bytes"], row["commits"])

    async def is_drained(self) -> bool:
        """Return whether no delivery is pending."""
        return not await self._connection.fetchval("SELECT EXISTS (SELECT FROM pending_deliveries)")

    async def pending(self) -> int:
        """Return the number of pending deliveries."""
        return int(await self._connection.fetchval("SELECT count(*) FROM pending_deliveries"))

    async def hot_table(self) -> HotTable:
        """Return its size on disk in bytes, including free space."""
        row = await self._connection.fetchrow(
            "SELECT pg_table_size(c), pg_indexes_size(c)"
            " FROM (SELECT 'pending_deliveries'::regclass AS c)"
        )
        if row is None:
            raise LookupError("a SELECT without WHERE returns a row")
        return HotTable(row[0], row[1])

    async def buckets_by_node(self) -> list[int]:
        """Return the number of buckets of each live node."""
        rows = await self._connection.fetch(
            "SELECT count(l.bucket) FROM nodes n LEFT JOIN bucket_leases l USING (node_id)"
            " WHERE n.lease_until > clock_timestamp() GROUP BY n.node_id"
        )
        return [row[0] for row in rows]

    async def add_subscriptions(self, tenant: str, count: int) -> None:
        """Create subscriptions of a tenant that match no published event."""
        await self._connection.execute(_ADD_SUBSCRIPTIONS, tenant.removeprefix("tenants/"), count)
        await self._connection.execute("ANALYZE subscriptions")

    async def add_tenants(self, count: int) -> list[UUID]:
        """Create tenants at epoch 1; return their uids."""
        rows = await self._connection.fetch(
            "INSERT INTO tenants (tenant_uid, tenant_id)"
            " SELECT gen_random_uuid(), 'bench-' || n FROM generate_series(1, $1::int) AS n"
            " RETURNING tenant_uid",
            count,
        )
        return [row[0] for row in rows]

    async def forget_pending(self) -> None:
        """Empty the hot table."""
        await self._connection.execute("TRUNCATE pending_deliveries")

    @asynccontextmanager
    async def transaction_held(self) -> AsyncIterator[None]:
        """Hold a transaction open during the block, so that vacuum can remove no dead row."""
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute("SELECT pg_current_xact_id(), count(*) FROM tenants")
                yield
        finally:
            await connection.close()
