"""The run's Postgres, looked at from beside the service: its log, its hot table, who owns what.

Also what would take hours through the API: a tenant's hundred thousand subscriptions.
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
# Inside the session that writes: what another one is told is not what holds there.
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
# None of them matches `order.created`; all share what an index of prefixes would look under first.
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
    """A stretch of the write-ahead log."""

    image_bytes: int
    """Of it, images of whole pages."""
    commits: int


@dataclass(frozen=True)
class HotTable:
    """The size of `pending_deliveries`, in bytes."""

    heap: int
    indexes: int


class BenchDatabase:
    """A connection that no part of the service uses."""

    def __init__(self, url: str, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.url = url
        self._connection = connection

    async def prepare(self) -> None:
        """Make the meters; raises `BenchError` where commits here would not be durable."""
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            if await self._connection.fetchval("SELECT current_setting($1)", setting) != "on":
                raise BenchError(f"{setting} is not on")
        await self._connection.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")

    async def watch_commits(self) -> None:
        """Let the sessions that write say how they commit. It costs, so not while measuring."""
        await self._connection.execute(_WATCH_COMMITS)

    async def check_commits(self) -> None:
        """Stop watching; raises `BenchError` where a session did not commit durably."""
        rows = await self._connection.fetch("SELECT DISTINCT writes, setting FROM bench_commits")
        await self._connection.execute(_STOP_WATCHING)
        seen = {(row["writes"], row["setting"]) for row in rows}
        if not seen or any(setting != "on" for _, setting in seen):
            raise BenchError(f"synchronous_commit in the sessions that write: {seen or 'unseen'}")

    async def postmaster_pid(self) -> int:
        """The process whose descendants are this Postgres."""
        return int(
            await self._connection.fetchval(
                "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
            )
        )

    async def checkpoint(self) -> None:
        """Begin a stretch of the log in which every page's first change costs its whole image."""
        await self._connection.execute("CHECKPOINT")

    async def wal_position(self) -> int:
        """Bytes of write-ahead log since the cluster began."""
        return int(
            await self._connection.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
            )
        )

    async def logged(self, begin: int, end: int) -> Logged | None:
        """What the log holds between two positions; None: it has been recycled."""
        try:
            row = await self._connection.fetchrow(_LOGGED, begin, end)
        except asyncpg.PostgresError:
            return None
        return None if row is None else Logged(row["image_bytes"], row["commits"])

    async def is_drained(self) -> bool:
        """Whether nothing is pending."""
        return not await self._connection.fetchval("SELECT EXISTS (SELECT FROM pending_deliveries)")

    async def pending(self) -> int:
        """How many deliveries are pending."""
        return int(await self._connection.fetchval("SELECT count(*) FROM pending_deliveries"))

    async def hot_table(self) -> HotTable:
        """How large it is on disk, free space included."""
        row = await self._connection.fetchrow(
            "SELECT pg_table_size(c), pg_indexes_size(c)"
            " FROM (SELECT 'pending_deliveries'::regclass AS c)"
        )
        if row is None:
            raise LookupError("a SELECT without WHERE returns a row")
        return HotTable(row[0], row[1])

    async def buckets_by_node(self) -> list[int]:
        """How many buckets each living node owns."""
        rows = await self._connection.fetch(
            "SELECT count(l.bucket) FROM nodes n LEFT JOIN bucket_leases l USING (node_id)"
            " WHERE n.lease_until > clock_timestamp() GROUP BY n.node_id"
        )
        return [row[0] for row in rows]

    async def add_subscriptions(self, tenant: str, count: int) -> None:
        """Give a tenant so many subscriptions that match nothing that is published here."""
        await self._connection.execute(_ADD_SUBSCRIPTIONS, tenant.removeprefix("tenants/"), count)
        await self._connection.execute("ANALYZE subscriptions")

    async def add_tenants(self, count: int) -> list[UUID]:
        """So many tenants, at epoch 1; their uids."""
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
        """While inside, somebody's transaction is open: no row that dies can be vacuumed away."""
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute("SELECT pg_current_xact_id(), count(*) FROM tenants")
                yield
        finally:
            await connection.close()
