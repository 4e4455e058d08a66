"""Publishing for tenants whose rows another transaction has locked, apart from the group commit.

A change of subscriptions locks its tenant's epoch until it commits, and an event with an
idempotency key waits for another transaction with the same key. That mostly takes milliseconds;
a transaction that stays open must stop no tenant but its own. So the group commit waits for no
change: a tenant that has not passed some times in a row is set apart, and its calls are committed
here, on a connection of their own, where the lock is waited for. Tenants set apart take turns,
each a part of the wait. After a commit a tenant goes back; a call that waited too long is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.domain.names import tenant_name
from hookline_service.pipeline.publishing.commit import GroupCommitter, GroupLimits
from hookline_service.pipeline.publishing.group import PublishCall
from hookline_service.pipeline.publishing.publish_queue import PublishQueue

_log = structlog.get_logger(__name__)

TURNS_PER_WAIT = 8
"""So many turns a tenant alone has while its calls may wait; all tenants together, half as many."""
LEAST_TURN_S = 0.01
"""Longer than an ordinary change takes to commit."""
_ADVICE_S = 1.0


class ContendedTenants:
    """Commits the calls of tenants that are set apart, one tenant at a time."""

    def __init__(
        self,
        committer: GroupCommitter,
        queue: PublishQueue,
        limits: GroupLimits,
    ) -> None:
        self.committer = committer
        self._queue = queue
        self._limits = limits
        self._tenants: dict[str, None] = {}
        """Those that have calls, in the order of their turns."""
        self._has_work = asyncio.Event()
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None
        self.on_rejoined: Callable[[], None] = lambda: None
        """Called when a tenant's calls have turns in the group commit again."""
        queue.on_apart = self._add

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="contended publisher")

    async def stop(self) -> None:
        """Commit or refuse what is set apart, and end."""
        self._is_stopping = True
        self._has_work.set()
        if self._task is not None:
            await self._task
        await self.committer.close()

    def _add(self, tenant_id: str) -> None:
        self._tenants[tenant_id] = None
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            if self._tenants:
                tenant_id = next(iter(self._tenants))
                del self._tenants[tenant_id]
                await self._commit(tenant_id)
            elif self._is_stopping:
                return
            else:
                self._has_work.clear()
                await self._has_work.wait()

    async def _commit(self, tenant_id: str) -> None:
        """Give a tenant its turn."""
        queue = self._queue
        group = self._limits.fill(
            self.committer.builder.new_group(),
            lambda: queue.first_apart(tenant_id),
            lambda: queue.take_apart(tenant_id),
        )
        group.lock_timeout_s = self._turn_s()
        left = await self.committer.commit(group) if group.calls else []
        for follower in reversed(group.answer_followers()):
            queue.put_back(follower)
        if group.not_found is not None:
            for call in left:
                call.fail(group.not_found)
        elif left:
            for call in reversed(left):
                queue.put_back(call)
            self._refuse_late(tenant_id)
            return
        queue.rejoin(tenant_id)
        self._tenants.pop(tenant_id, None)
        self.on_rejoined()

    def _turn_s(self) -> float:
        """How long a turn waits for the lock: the shorter, the more tenants wait for theirs."""
        parts = max(TURNS_PER_WAIT, 2 * len(self._tenants))
        return max(LEAST_TURN_S, self._limits.lock_wait_s / parts)

    def _refuse_late(self, tenant_id: str) -> None:
        """Refuse the tenant's calls that have waited too long; the first have waited longest."""
        now_s = monotonic()
        refused = 0
        while (call := self._queue.first_apart(tenant_id)) is not None:
            if now_s - self._waits_since_s(call) < self._limits.lock_wait_s:
                break
            self._queue.take_apart(tenant_id).fail(self._refusal(tenant_id))
            refused += 1
        if refused:
            _log.warning("publish_lock_timeout", tenant=tenant_id, calls=refused)
        if call is None:
            self._tenants.pop(tenant_id, None)

    def _waits_since_s(self, call: PublishCall) -> float:
        apart_since_s = self._queue.apart_since_s(call.index.tenant_id)
        return call.queued_s if apart_since_s is None else max(call.queued_s, apart_since_s)

    def _refusal(self, tenant_id: str) -> UnavailableError:
        return UnavailableError(
            f"another transaction has locked the subscriptions of {tenant_name(tenant_id)}, or an"
            f" idempotency key of this call, for more than {self._limits.lock_wait_s:g} s"
            " (HOOKLINE_PUBLISH_LOCK_WAIT_S); nothing was stored, repeat the call",
            Reason.CONCURRENT_CHANGE,
            retry_after_s=_ADVICE_S,
        )
