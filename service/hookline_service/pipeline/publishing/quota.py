"""How much a tenant may have pending: beyond, its publishes are refused before the commit.

Theory of operation. Nobody counts millions of rows for a publish, so every few seconds each node
estimates whose backlog is large, from a sample of the table; where the whole table is too small for
anybody's to be, it does not even look. A tenant that has reached half of what it may is then
watched: what this node accepts for it is added until the next look. So the bound is met within the
error of the sample and what other nodes accept meanwhile; who comes from below the half within one
look may overshoot by what is published in that time. What is delivered counts from the next look.
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
    """Bounds what each tenant has pending."""

    def __init__(self, store: BacklogStore, max_per_tenant: int) -> None:
        self._store = store
        self._max_per_tenant = max_per_tenant
        self._watched: dict[UUID, int] = {}
        """Tenants that have half of what they may, or more, and how much."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="pending quota")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def admit(self, tenant_uid: UUID, tenant_id: str, count: int) -> None:
        """Count so many deliveries; raises `ResourceExhaustedError` where that is too much."""
        pending = self._watched.get(tenant_uid)
        if pending is None or not count:
            return
        if pending + count > self._max_per_tenant:
            name = tenant_name(tenant_id)
            raise ResourceExhaustedError(
                f"{name} has about {pending:,} deliveries pending, and {_SETTING} allows"
                f" {self._max_per_tenant:,}; nothing was stored, come back when there are fewer",
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
        """Estimate whose backlog is large."""
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
            except Exception:  # noqa: BLE001 - what was known goes on counting
                _log.exception("pending_quota_broken")
            await asyncio.sleep(LOOK_S)
