"""What time does to rows: expiry, sweeps, partitions; one node at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from service.domain.ids import BUCKET_COUNT, first_uuid_of
from service.store.partitions import create_partitions, drop_day, first_id_of_day, old_days
from service.store.statements import Statements

if TYPE_CHECKING:
    from datetime import date, datetime

    from service.store.database import Session

SQL = Statements("upkeep")

_LOCK_KEY = 0x75706B70  # "upkp"
_DDL_TIMEOUT_S = 120.0


class UpkeepStore:
    """The house's chores, on a connection of their own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def try_lock(self) -> bool:
        """Whether the chores are this node's; the lock lives as long as the connection."""
        rows = await self._session.fetch("SELECT pg_try_advisory_lock($1) AS got", _LOCK_KEY)
        return bool(rows[0]["got"])

    async def unlock(self) -> None:
        """Let another node have the chores."""
        await self._session.fetch("SELECT pg_advisory_unlock($1)", _LOCK_KEY)

    async def now(self) -> datetime:
        """The database's clock."""
        rows = await self._session.fetch(SQL.database_now)
        now: datetime = rows[0]["now"]
        return now

    async def expire_pending(self, before: datetime, batch: int) -> int:
        """Give up pending work older than a moment; how many rows."""
        oldest = first_uuid_of(int(before.timestamp() * 1000))
        expired = 0
        for bucket in range(BUCKET_COUNT):
            while count := len(
                await self._session.fetch(SQL.expire_pending, bucket, oldest, batch, before)
            ):
                expired += count
        return expired

    async def sweep_keys(self, limit: int) -> int:
        """Delete up to `limit` idempotency keys whose window is over; how many."""
        return len(await self._session.fetch(SQL.sweep_keys, limit))

    async def sweep_changes(self, older_than_s: float) -> int:
        """Delete what every owner has read long ago; how many rows."""
        return len(await self._session.fetch(SQL.sweep_changes, older_than_s))

    async def create_partitions(self) -> list[str]:
        """Make the days ahead; the names of those that were missing."""
        async with self._session.connection(_DDL_TIMEOUT_S) as connection:
            return await create_partitions(connection)

    async def drop_days_before(self, day: date) -> tuple[list[date], list[date]]:
        """Drop the days before `day`, oldest first; the dropped, and those still needed."""
        async with self._session.connection(_DDL_TIMEOUT_S) as connection:
            days = await old_days(connection, day)
        for position, old in enumerate(days):
            end = first_id_of_day(old + timedelta(days=1))
            rows = await self._session.fetch(SQL.is_pending_before, end)
            if rows[0]["is_pending"]:
                return days[:position], days[position:]
            async with self._session.connection(_DDL_TIMEOUT_S) as connection:
                await drop_day(connection, old)
        return days, []

    async def close(self) -> None:
        """Close the connection, and with it the lock."""
        await self._session.close()
