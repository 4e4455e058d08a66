"""Expiry, sweeps, pruning and partitions; one node at a time.

Each statement deletes at most one batch. A sweep begins where the one before ended: what it deleted
stays in the index until vacuum has been there, which a transaction that stays open keeps away.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from hookline_service.domain.delivery import DeliveryState, Trigger, advance
from hookline_service.domain.ids import first_uuid_of
from hookline_service.store.database import Session
from hookline_service.store.partitions import (
    DAYS_AHEAD,
    create_partitions,
    drop_day,
    first_id_of_day,
    locks_of_one_day,
    old_days,
)
from hookline_service.store.statements import Statements

SQL = Statements("upkeep")

_LOCK_KEY = 0x75706B70  # "upkp"
_DDL_TIMEOUT_S = 120.0
_NO_TOMBSTONE = (datetime.min.replace(tzinfo=UTC), UUID(int=0))


class RetentionError(Exception):
    """The server's lock table is too small for the days that are to be kept."""

    def __init__(self, days: int, most: int, reads: int, per_transaction: int) -> None:
        needed = -(-per_transaction * (days + DAYS_AHEAD + 2) // (max(most, 0) + DAYS_AHEAD + 2))
        super().__init__(
            f"HOOKLINE_RETENTION_DAYS or HOOKLINE_PENDING_RETENTION_DAYS is {days}: reads of all"
            f" those days on {reads} connections (HOOKLINE_POOL_SIZE) take more locks than the"
            f" server holds with max_locks_per_transaction = {per_transaction}. Set it to"
            f" {needed} or more, or keep at most {max(most, 0)} days"
        )


class UpkeepStore:
    """The statements of the chores, on a connection of their own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.forget()

    def forget(self) -> None:
        """Begin the sweeps anew, as on another copy of the database."""
        self._keys_swept_to = datetime.min.replace(tzinfo=UTC)
        """No idempotency key that expired before is left."""
        self._pruned_to: dict[str, tuple[datetime, UUID]] = {}
        """The last tombstone that was looked at, by chore, where there are more behind it."""
        self._changes_swept_to = 0
        """No old change with a `change_id` up to this is left, but of a commit that came late."""

    async def try_lock(self, chore: str) -> bool:
        """Take a chore's lock; return whether it was free. It lives as long as the connection."""
        rows = await self._session.fetch(SQL.try_lock, _LOCK_KEY, chore)
        return bool(rows[0]["got"])

    async def unlock(self, chore: str) -> None:
        """Let another node do a chore."""
        await self._session.fetch(SQL.unlock, _LOCK_KEY, chore)

    async def now(self) -> datetime:
        """The database's clock."""
        rows = await self._session.fetch(SQL.database_now)
        now: datetime = rows[0]["now"]
        return now

    async def expire_pending(self, before: datetime, limit: int) -> int:
        """Expire up to `limit` pending deliveries older than a moment; return how many."""
        oldest = first_uuid_of(int(before.timestamp() * 1000))
        state = advance(DeliveryState.PENDING, Trigger.EXPIRED)
        return len(await self._session.fetch(SQL.expire_pending, oldest, limit, before, state))

    async def sweep_keys(self, limit: int) -> int:
        """Delete up to `limit` idempotency keys whose window is over; return how many."""
        rows = await self._session.fetch(SQL.sweep_keys, limit, self._keys_swept_to)
        if len(rows) == limit:
            self._keys_swept_to = max(row["expires_at"] for row in rows)
        return len(rows)

    async def sweep_changes(self, older_than_s: float, limit: int) -> int:
        """Delete up to `limit` changes that every owner has read long ago; return how many."""
        rows = await self._session.fetch(
            SQL.sweep_changes, older_than_s, limit, self._changes_swept_to
        )
        if len(rows) == limit:
            self._changes_swept_to = max(row["change_id"] for row in rows)
        return len(rows)

    async def prune_subscriptions(self, before: datetime, limit: int) -> tuple[int, bool]:
        """Delete tombstones of subscriptions deleted before a moment that nothing names any more.

        At most `limit` are looked at; returns how many went, and whether there are more to look at.
        """
        return await self._prune("prune_subscriptions", SQL.prune_subscriptions, before, limit)

    async def prune_tenants(self, before: datetime, limit: int) -> tuple[int, bool]:
        """Delete tombstones of tenants, as `prune_subscriptions` does."""
        return await self._prune("prune_tenants", SQL.prune_tenants, before, limit)

    async def _prune(
        self, chore: str, statement: str, before: datetime, limit: int
    ) -> tuple[int, bool]:
        after = self._pruned_to.pop(chore, _NO_TOMBSTONE)
        rows = await self._session.fetch(statement, before, limit, *after)
        has_more = len(rows) == limit
        if has_more:
            self._pruned_to[chore] = (rows[-1]["deleted_at"], rows[-1]["uid"])
        return sum(row["is_pruned"] for row in rows), has_more

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

    async def check_locks(self, days: int, reads: int) -> None:
        """Refuse a retention whose partitions the server's lock table cannot hold.

        `reads`: how many reads of all days run at once. Raises `RetentionError`.
        """
        async with self._session.connection(_DDL_TIMEOUT_S) as connection:
            each = await locks_of_one_day(connection)
        (capacity,) = await self._session.fetch(SQL.lock_capacity)
        most = capacity["locks"] // (each * reads) - DAYS_AHEAD - 2
        if days > most:
            raise RetentionError(days, most, reads, capacity["per_transaction"])

    async def close(self) -> None:
        """Close the connection, and with it the lock."""
        await self._session.close()
