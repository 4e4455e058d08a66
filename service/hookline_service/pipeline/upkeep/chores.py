"""The chores of the deployment: partitions, expiry, sweeps; by one node at a time, each minute.

Each chore works in batches, each a transaction of its own: what a batch did is done, whatever comes
after it. A chore that fails fails alone, and is tried again; one with much to do leaves the others
their turn, and goes on in the next round, which then begins at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from hookline_service.pipeline.upkeep.audit_pruner import AuditPruner
from hookline_service.store.database import TRANSIENT, RejectedError
from hookline_service.store.upkeep import UpkeepStore
from hookline_service.telemetry.instruments import UNOBSERVED
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
SLICE_S: Final = 10.0
"""How long a chore works before the others have their turn, and a batch longer at most."""
BATCH: Final = 1_000
PRUNE_BATCH: Final = 200
"""Tombstones: each is looked for in every day of history."""
CHANGES_KEPT_S: Final = 3_600.0


class Upkeep:
    """Does each chore while this node holds its lock."""

    def __init__(
        self,
        store: UpkeepStore,
        *,
        retention_days: int = 30,
        pending_retention_days: int = 30,
        tombstone_retention_days: int = 30,
        slice_s: float = SLICE_S,
        audit: AuditPruner | None = None,
        meters: Meters = UNOBSERVED.meters,
    ) -> None:
        """`audit`: None where the audit log is kept for good."""
        self._store = store
        self._retention_days = retention_days
        self._pending_retention_days = pending_retention_days
        # While history may name a tombstone, there is no use in looking whether it does.
        self._tombstone_days = max(tombstone_retention_days, retention_days + 1)
        self._slice_s = slice_s
        self._meters = meters
        self._task: asyncio.Task[None] | None = None
        self._chores: Mapping[str, Callable[[], Awaitable[bool]]] = {
            "create_partitions": self._create_partitions,
            "expire_pending": self._expire_pending,
            "sweep_idempotency_keys": self._sweep_keys,
            "sweep_change_log": self._sweep_changes,
            "drop_days": self._drop_days,
            "prune_subscriptions": partial(self._prune, store.prune_subscriptions),
            "prune_tenants": partial(self._prune, store.prune_tenants),
            **({} if audit is None else {"prune_audit_log": audit.prune}),
        }
        """By name; each does a batch, and returns whether there may be more to do."""
        self.is_behind = False
        """Whether a chore of the last round has more to do."""

    def history_changed(self) -> None:
        """Forget how far the sweeps came: the database is another copy of itself."""
        self._store.forget()

    def start(self) -> None:
        """Begin."""
        for name in self._chores:
            self._meters.chore_ended(name, has_failed=None)
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """End, and let another node have the chores."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    async def _run(self) -> None:
        while True:
            await self.do_chores()
            await asyncio.sleep(0 if self.is_behind else INTERVAL_S)

    async def do_chores(self) -> bool:
        """Do every chore for a while; return False where another node is at one of them."""
        self.is_behind, had_all = False, True
        for name, batch in self._chores.items():
            has_failed = True
            try:
                if not await self._do(name, batch):
                    had_all = False
                    continue
                has_failed = False
            except (*TRANSIENT, RejectedError) as error:
                _log.warning("upkeep_chore_failed", chore=name, error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next chore is done
                _log.exception("upkeep_chore_failed", chore=name)
            self._meters.chore_ended(name, has_failed=has_failed)
        return had_all

    async def _do(self, name: str, batch: Callable[[], Awaitable[bool]]) -> bool:
        """Do a chore's batches until none is left or its time is over; False: without the lock."""
        loop = asyncio.get_running_loop()
        if not await self._store.try_lock(name):
            return False
        ends_s = loop.time() + self._slice_s
        try:
            while await batch():
                if loop.time() >= ends_s:
                    self.is_behind = True
                    break
        finally:
            await self._store.unlock(name)
        return True

    async def _create_partitions(self) -> bool:
        await self._store.create_partitions()
        return False

    async def _expire_pending(self) -> bool:
        before = await self._store.now() - timedelta(days=self._pending_retention_days)
        expired = await self._store.expire_pending(before, BATCH)
        if expired:
            _log.warning("deliveries_expired", count=expired)
        return expired == BATCH

    async def _sweep_keys(self) -> bool:
        return await self._store.sweep_keys(BATCH) == BATCH

    async def _sweep_changes(self) -> bool:
        return await self._store.sweep_changes(CHANGES_KEPT_S, BATCH) == BATCH

    async def _prune(self, prune: Callable[[datetime, int], Awaitable[tuple[int, bool]]]) -> bool:
        before = await self._store.now() - timedelta(days=self._tombstone_days)
        pruned, has_more = await prune(before, PRUNE_BATCH)
        if pruned:
            _log.info("tombstones_pruned", chore=prune.__name__, count=pruned)
        return has_more

    async def _drop_days(self) -> bool:
        before = (await self._store.now()).date() - timedelta(days=self._retention_days)
        dropped, kept = await self._store.drop_days_before(before)
        if dropped:
            _log.info("days_dropped", days=[str(day) for day in dropped])
        if kept:
            _log.warning("days_kept_for_pending_work", days=[str(day) for day in kept])
        return False
