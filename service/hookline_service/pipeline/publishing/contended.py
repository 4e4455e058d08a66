"""Commits for tenants that another transaction has locked, apart from the group commit.

A change of subscriptions locks its tenant's epoch until it commits, and an event with an
idempotency key waits for another transaction with the same key. That mostly takes milliseconds; a
transaction that stays open must delay no other tenant. So the group commit waits for no lock: after
some vain writes a tenant is set apart, and its calls are committed here, on a connection of their
own, which waits for the lock. So is a tenant whose lost write cannot be looked up because the lock
on the tenant is not free.

The tenants set apart take turns, each for a part of the wait. After a commit a tenant rejoins the
group commit; a call that has waited too long is refused. A call whose write was lost is not: it may
be stored, so it waits until it is looked up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog

from hookline_service.domain.errors import HooklineError, Reason, UnavailableError
from hookline_service.domain.names import tenant_name
from hookline_service.pipeline.publishing.commit import (
    GroupBuilder,
    GroupCommitter,
    GroupLimits,
    fail_as_unknown,
)
from hookline_service.pipeline.publishing.group import PublishCall
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.pipeline.publishing.publish_queue import PublishQueue
from hookline_service.store.publishing import PublishStore
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

_log = structlog.get_logger(__name__)

TURNS_PER_WAIT = 8
"""The turns of a tenant alone while its calls may wait; all tenants together have half as many."""
LEAST_TURN_S = 0.01
"""Longer than an ordinary change takes to commit."""
_ADVICE_S = 1.0


class ContendedTenants:
    """Commits the calls of the tenants that are set apart, one tenant at a time."""

    def __init__(
        self,
        store: PublishStore,
        matcher: Matcher,
        builder: GroupBuilder,
        queue: PublishQueue,
        limits: GroupLimits,
        on_rejoined: Callable[[], None],
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        """`on_rejoined` is called when a tenant's calls take part in the group commit again."""
        self.committer = GroupCommitter(store, matcher, builder, self._fail_queued, instruments)
        self._builder = builder
        self._queue = queue
        self._limits = limits
        self._on_rejoined = on_rejoined
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="contended publisher")

    async def stop(self) -> None:
        """Commit or refuse the queued calls, and end."""
        self._is_stopping = True
        self._queue.has_apart.set()
        if self._task is not None:
            await self._task
        await self.committer.close()

    async def _run(self) -> None:
        has_apart = self._queue.has_apart
        while True:
            if (tenant_id := self._queue.next_apart()) is not None:
                await self._take_turn(tenant_id)
            elif self._is_stopping:
                return
            else:
                has_apart.clear()
                await has_apart.wait()

    async def _take_turn(self, tenant_id: str) -> None:
        queue = self._queue
        if not await self._look_up_lost(tenant_id) or not await self._commit(tenant_id):
            self._refuse_late(tenant_id)
            return
        queue.rejoin(tenant_id)
        self._on_rejoined()

    async def _look_up_lost(self, tenant_id: str) -> bool:
        """Resolve the tenant's lost writes; False: not yet, and its calls must wait."""
        lost = self._queue.take_lost(tenant_id)
        left: list[PublishCall] = []
        while lost:
            uid = lost[0].index.uid
            ours = [call for call in lost if call.index.uid == uid]
            found = await self.committer.look_up(ours, self._turn_s())
            if found is None:
                if not (self._is_stopping and self._is_late(ours[0])):
                    break
                fail_as_unknown(ours)
            left += found or []
            lost = [call for call in lost if call.index.uid != uid]
        for call in reversed(lost + left):
            self._queue.put_back(call)
        return not lost

    async def _commit(self, tenant_id: str) -> bool:
        """Store the tenant's next calls; False: not yet, and its calls must wait.

        A call whose write was lost is stored alone: the call itself may be the cause.
        """
        queue = self._queue
        group = self._builder.new_group()

        def first() -> PublishCall | None:
            has_loss = bool(group.calls) and group.calls[0].losses > 0
            return None if has_loss else queue.first_apart(tenant_id)

        self._limits.fill(group, first, lambda: queue.take_apart(tenant_id))
        group.lock_timeout_s = self._turn_s()
        left = await self.committer.commit(group) if group.calls else []
        for follower in reversed(group.answer_followers()):
            queue.put_back(follower)
        waiting: list[PublishCall] = []
        for call in left:
            if group.not_found is not None and call.lost is None:
                call.fail(group.not_found)
            else:
                waiting.append(call)
        for call in reversed(waiting):
            queue.put_back(call)
        return not waiting

    def _turn_s(self) -> float:
        """Return how long a turn waits for a lock: the more tenants wait, the shorter it is."""
        parts = max(TURNS_PER_WAIT, 2 * self._queue.apart_count)
        return max(LEAST_TURN_S, self._limits.lock_wait_s / parts)

    def _is_late(self, call: PublishCall) -> bool:
        """Return whether a call has waited for a lock as long as it may."""
        apart_since_s = self._queue.apart_since_s(call.index.tenant_id)
        since_s = call.queued_s if apart_since_s is None else max(call.queued_s, apart_since_s)
        return monotonic() - since_s >= self._limits.lock_wait_s

    def _refuse_late(self, tenant_id: str) -> None:
        """Refuse the tenant's calls that have waited too long; the first have waited longest."""
        queue = self._queue
        lost = queue.take_lost(tenant_id)
        refused = 0
        while (call := queue.first_apart(tenant_id)) is not None and self._is_late(call):
            queue.take_apart(tenant_id).fail(self._refusal(tenant_id))
            refused += 1
        for call in reversed(lost):
            queue.put_back(call)
        if refused:
            _log.warning("publish_lock_timeout", tenant=tenant_id, calls=refused)

    def _fail_queued(self, error: HooklineError) -> None:
        """Fail the queued calls while the database is not reachable: none of them was sent."""
        queue = self._queue
        for tenant_id in queue.tenants_apart():
            lost = queue.take_lost(tenant_id)
            while queue.first_apart(tenant_id) is not None:
                queue.take_apart(tenant_id).fail(error)
            for call in reversed(lost):
                queue.put_back(call)

    def _refusal(self, tenant_id: str) -> UnavailableError:
        return UnavailableError(
            f"another transaction has locked the subscriptions of {tenant_name(tenant_id)}, or an"
            f" idempotency key of this call, for more than {self._limits.lock_wait_s:g} s"
            " (HOOKLINE_PUBLISH_LOCK_WAIT_S); nothing was stored, repeat the call",
            Reason.CONCURRENT_CHANGE,
            retry_after_s=_ADVICE_S,
        )
