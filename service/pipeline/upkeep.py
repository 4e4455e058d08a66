"""The chores of the house: partitions, expiry, sweeps; one node at a time, every minute."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from service.store.database import TRANSIENT, RejectedError

if TYPE_CHECKING:
    from service.store.upkeep import UpkeepStore

_log = structlog.get_logger(__name__)

INTERVAL_S = 60.0
BATCH = 1_000
CHANGES_KEPT_S = 3_600.0


class Upkeep:
    """Does the chores while it holds their lock."""

    def __init__(
        self,
        store: UpkeepStore,
        *,
        retention_days: int = 30,
        pending_retention_days: int = 30,
    ) -> None:
        self._store = store
        self._retention_days = retention_days
        self._pending_retention_days = pending_retention_days
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """End, and let another node have the chores."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.do_chores()
            except TRANSIENT as error:
                _log.warning("upkeep_failed", error=str(error))
            except RejectedError as error:
                # Such as a lock that was not to be had; the next minute tries again.
                _log.warning("upkeep_refused", sqlstate=error.sqlstate, error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("upkeep_broken")
            await asyncio.sleep(INTERVAL_S)

    async def do_chores(self) -> bool:
        """All chores once; False where another node is at them."""
        if not await self._store.try_lock():
            return False
        try:
            await self._store.create_partitions()
            now = await self._store.now()
            expired = await self._store.expire_pending(
                now - timedelta(days=self._pending_retention_days), BATCH
            )
            if expired:
                _log.warning("deliveries_expired", count=expired)
            while await self._store.sweep_keys(BATCH) == BATCH:
                pass
            await self._store.sweep_changes(CHANGES_KEPT_S)
            dropped, kept = await self._store.drop_days_before(
                now.date() - timedelta(days=self._retention_days)
            )
            if dropped:
                _log.info("days_dropped", days=[str(day) for day in dropped])
            if kept:
                _log.warning("days_kept_for_pending_work", days=[str(day) for day in kept])
        finally:
            await self._store.unlock()
        return True
