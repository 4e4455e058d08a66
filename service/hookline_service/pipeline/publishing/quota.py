"""A bound on the pending deliveries of each tenant: beyond it, publishes are refused.

Theory of operation. Counting millions of rows for each publish costs too much. So every few seconds
each node estimates the backlog of each tenant from a sample of the table; if the whole table is
smaller than half the bound, it takes no sample. A tenant with at least half of the bound is
watched: the deliveries that this node accepts for it are added until the next estimate. So the
bound is kept within the error of the sample and what other nodes accept in between. A tenant that
grows from below half within one interval may exceed the bound by what is published in that
interval. Deliveries that finish count from the next estimate.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import structlog

from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.names import tenant_name
from hookline_service.store.backlog import BacklogStore
from hookline_service.store.database import TRANSIENT

LOOK_S: Final = 5.0
ADVICE_S: Final = 30.0

_SETTING: Final = "HOOKLINE_MAX_PENDING_PER_TENANT"
_log = structlog.get_logger(__name__)


class PendingQuota:
    """Refuses publishes of tenants with too many pending deliveries."""

    def __init__(self, store: BacklogStore, max_per_tenant: int) -> None:
        self._store = store
        self._max_per_tenant = max_per_tenant
        self._watched: dict[UUID, int] = {}
        """Tenants with half of the bound or more, and their pending deliveries."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to estimate."""
        self._task = asyncio.create_task(self._run(), name="pending quota")

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def admit(self, tenant_uid: UUID, tenant_id: str, count: int) -> None:
        """Count new deliveries; raises `ResourceExhaustedError` if they exceed the bound."""
        pending = self._watched.get(tenant_uid)
        if pending is None or not count:
            return
        if pending + count > self._max_per_tenant:
            name = tenant_name(tenant_id)
            raise ResourceExhaustedError(
                f"{name} has about {pending:,} deliveries pending, and {_SETTING} allows"
                f" {self._max_per_tenant:,}; nothing was stored, repeat it when there are fewer",
                Reason.QUOTA_EXCEEDED,
                retry_after_s=ADVICE_S,
                metadata={
                    "subject": name,
                    "limit": _SETTING,
                    "maximum": str(self._max_per_tenant),
                },
            )
        self._watched[tenant_uid] = pending + count

    async def look(self) -> None:
        """Estimate the backlogs."""
        if await self._store.most() * 2 < self._max_per_tenant:
            self._watched.clear()
            return
        pending = await self._store.by_tenant()
        self._watched = {
            uid: count for uid, count in pending.items() if count * 2 >= self._max_per_tenant
        }

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except TRANSIENT as error:
                _log.warning("pending_count_failed", error=str(error))
            except Exception:  # noqa: BLE001 - the last estimate stays in use
                _log.exception("pending_quota_broken")
            await asyncio.sleep(LOOK_S)
