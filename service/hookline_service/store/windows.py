"""Lists of all tenants, read in windows of days, newest first.

Theory of operation. History is partitioned by day on the id, and its indexes begin with the tenant.
A statement over all days would look into each partition for each tenant. So a list of all tenants
reads one window of whole days after another until its page is full, usually only today's. After an
empty window the next one is twice as long, so that an empty history takes few statements.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg

from hookline_service.domain.ids import LAST_UUID, unix_ms_of
from hookline_service.store.database import Database
from hookline_service.store.partitions import day_of, first_id_of_day
from hookline_service.store.statements import Statements

SQL = Statements("windows")

_FIRST = UUID(int=0)


async def newest_rows(
    database: Database, statement: str, before: UUID, limit: int, *args: object
) -> list[asyncpg.Record]:
    """Return at most `limit` rows with ids below `before`, newest first.

    The statement's parameters are `before`, the limit, `args`, and the first id and the end of a
    window. A row that moves between tables keeps its id and so its window: it is read once.
    """
    (days,) = await database.fetch(SQL.days)
    today, oldest = days["today"], day_of(days["oldest"])
    day = _day_before(before, today + timedelta(days=1))
    end = LAST_UUID if day > today else first_id_of_day(day + timedelta(days=1))
    rows: list[asyncpg.Record] = []
    length = 1
    while True:
        first = first_id_of_day(day) if day > oldest else _FIRST
        found = await database.fetch(
            statement, min(before, end), limit - len(rows), *args, first, end
        )
        rows += found
        if len(rows) >= limit or day <= oldest:
            return rows
        length = 1 if found else length * 2
        day, end = day - timedelta(days=length), first


def _day_before(before: UUID, latest: date) -> date:
    """Return the day of the newest id below `before`, at most `latest`."""
    if before >= first_id_of_day(latest):
        return latest
    return datetime.fromtimestamp(unix_ms_of(before) / 1_000, UTC).date()
