"""Day partitions of events, deliveries and attempts: made ahead, dropped whole.

There is no DEFAULT partition: a row without a place is a refusal, never a row in the wrong place. A
partition is made beside its parent (LIKE) and attached, which locks nothing that writers wait for;
it is dropped by DETACH CONCURRENTLY, then DROP. One node at a time does either.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from hookline_service.domain.ids import first_uuid_of
from hookline_service.store.database import Connection

PARENTS = ("events", "deliveries", "attempts")
DAYS_AHEAD = 14
_LOCK_KEY = 0x64617973  # "days"
_LIST = """
SELECT c.relname AS name, i.inhdetachpending AS detaching FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass ORDER BY c.relname"""

# Attached, or detached by a drop that was cut short.
_LEFT = """
SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind = 'r' AND c.relname ~ ('^' || $1 || '[0-9]{8}$')"""


def first_id_of_day(day: date) -> UUID:
    """The lower bound of a day's ids (UTC)."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return first_uuid_of(int(midnight.timestamp() * 1000))


def partition_name(parent: str, day: date) -> str:
    """Such as `events_20261124`."""
    return f"{parent}_{day:%Y%m%d}"


def day_of(name: str) -> date:
    """The day that a partition's name ends with."""
    return datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC).date()


async def create_partitions(connection: Connection, *, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Make the partitions from yesterday to `days_ahead` that are missing; returns their names.

    Yesterday's too: an id may be a moment older than midnight when its row is written.
    """
    made: list[str] = []
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    try:
        today = await connection.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        for parent in PARENTS:
            present = {row["name"] for row in await connection.fetch(_LIST, parent)}
            for ahead in range(-1, days_ahead + 1):
                day = today + timedelta(days=ahead)
                name = partition_name(parent, day)
                if name in present:
                    continue
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '2s'")
                    await connection.execute(_create_sql(parent, name, day))
                made.append(name)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)
    return made


async def locks_of_one_day(connection: Connection) -> int:
    """Return how many locks a day costs a read that no id confines to some days."""
    count: int = await connection.fetchval(
        """SELECT max(count) FROM (
               SELECT count(*) + 1 AS count FROM pg_index
               WHERE indrelid IN (SELECT unnest($1::text[])::regclass) GROUP BY indrelid) widest""",
        PARENTS,
    )
    return count


def _create_sql(parent: str, name: str, day: date) -> str:
    first, end = first_id_of_day(day), first_id_of_day(day + timedelta(days=1))
    return f"""
        CREATE TABLE {name}
            (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)
            WITH (autovacuum_freeze_min_age = 0, autovacuum_vacuum_insert_scale_factor = 0.1);
        ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}');
    """


async def old_days(connection: Connection, before: date) -> list[date]:
    """The days before `before` of which any partition is left, oldest first."""
    days = {
        day_of(row["name"])
        for parent in PARENTS
        for row in await connection.fetch(_LEFT, f"{parent}_")
    }
    return sorted(day for day in days if day < before)


async def drop_day(connection: Connection, day: date, *, lock_timeout_s: float = 5.0) -> None:
    """Detach and drop a day's partitions, wherever an earlier try was cut short.

    Raises where another session holds a partition for longer than the lock timeout; it is tried
    again.
    """
    await connection.execute(f"SET lock_timeout = '{lock_timeout_s * 1_000:.0f}ms'")
    for parent in reversed(PARENTS):
        name = partition_name(parent, day)
        attached = {row["name"]: row["detaching"] for row in await connection.fetch(_LIST, parent)}
        if name in attached:
            how = "FINALIZE" if attached[name] else "CONCURRENTLY"
            await connection.execute(f"ALTER TABLE {parent} DETACH PARTITION {name} {how}")
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
