"""The entry of publishing: checks calls, matches them in memory, and stores them in groups.

Theory of operation. Concurrent calls share one statement: while a group is being committed, the
next group gathers calls. It waits up to `GATHER_S` until as many calls are queued as there were
when the last group was stored; a single caller is not delayed. A group runs in a task of its own,
so a caller that gives up does not stop it. Calls whose tenant has changed meanwhile are matched
again, in the next group. After some vain attempts their tenant is set apart (`contended.py`), so
that other tenants do not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from hookline_service.domain.errors import Reason, UnavailableError, invalid, over_limit
from hookline_service.domain.event import NewEvent
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.batch_queue import ENOUGH
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.pipeline.publishing.commit import (
    MAX_MISSES,
    GroupBuilder,
    GroupCommitter,
    GroupLimits,
)
from hookline_service.pipeline.publishing.contended import ContendedTenants
from hookline_service.pipeline.publishing.group import Group, PublishCall, Published
from hookline_service.pipeline.publishing.matching import Matcher, TenantIndex
from hookline_service.pipeline.publishing.publish_queue import PublishQueue
from hookline_service.pipeline.publishing.quota import PendingQuota
from hookline_service.store.database import history_changed
from hookline_service.store.publishing import PublishStore
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

__all__ = ["Published", "Publisher"]

GATHER_S = 0.002
"""How long a group may wait for calls: about the time to store a group and to answer its calls."""
_ADVICE_S = 0.5


class Publisher:
    """Stores the events of concurrent calls in one group commit at a time."""

    def __init__(  # noqa: PLR0913 - the parts of publishing, each named by the composition root
        self,
        *,
        store: PublishStore,
        contended_store: PublishStore,
        matcher: Matcher,
        builder: GroupBuilder,
        catalog: EventTypeCatalog,
        quota: PendingQuota,
        limits: Limits,
        group_limits: GroupLimits | None = None,
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        """`contended_store` is the connection for tenants that another transaction has locked."""
        self._matcher = matcher
        self._builder = builder
        self._catalog = catalog
        self._quota = quota
        self._limits = limits
        self._group_limits = group_limits or GroupLimits()
        self._instruments = instruments
        self._queue = PublishQueue(limits)
        self._committer = GroupCommitter(store, matcher, builder, self._fail_queued, instruments)
        self._contended = ContendedTenants(
            contended_store,
            matcher,
            builder,
            self._queue,
            self._group_limits,
            self._wake,
            instruments,
        )
        self._has_work = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._expected_calls = 1
        """The number of calls, in the group or queued, when the last group was stored."""
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def committed_events(self) -> int:
        """Events stored since the start."""
        return self._committer.committed_events + self._contended.committer.committed_events

    @property
    def committed_groups(self) -> int:
        """Groups stored since the start."""
        return self._committer.committed_groups + self._contended.committer.committed_groups

    def start(self) -> None:
        """Begin to commit groups."""
        self._task = asyncio.create_task(self._run(), name="publisher")
        self._contended.start()

    async def stop(self) -> None:
        """Refuse new calls, commit what is queued, end."""
        self._is_stopping = True
        self._has_work.set()
        self._has_enough.set()
        await self._contended.stop()  # tenants that rejoin are committed below
        if self._task is not None:
            await self._task
        await self._committer.close()

    async def publish(self, tenant_id: str, events: Sequence[NewEvent]) -> list[Published]:
        """Store events and their deliveries, durably, all or none; in the order of the request.

        Raises `NotFoundError` (tenant), `FailedPreconditionError` (type), `InvalidArgumentError`
        (schema), `AlreadyExistsError` (key), `ResourceExhaustedError` (too much queued or pending),
        `UnavailableError` (nothing was stored).
        """
        return await asyncio.shield(await self.submit(tenant_id, events))

    async def submit(
        self, tenant_id: str, events: Sequence[NewEvent], stream: object | None = None
    ) -> asyncio.Future[list[Published]]:
        """Queue a call and return the future of its answer, which must not be cancelled.

        Calls of one `stream`, submitted one after the other, are stored in that order within each
        tenant. Raises what `publish` raises before the commit.
        """
        data_bytes = sum([len(event.data) for event in events])
        self.check_capacity(tenant_id, len(events), data_bytes)
        revisions = await self._catalog.check(tenant_id, events)
        index = self._matcher.cached(tenant_id) or await self._matcher.reload(tenant_id)
        done = asyncio.get_running_loop().create_future()
        call = PublishCall(index, list(events), revisions, data_bytes, done, stream)
        self._check_fan_out(call)
        # During the reads above other calls may have been queued, or the node may have stopped.
        self.check_capacity(tenant_id, len(events), data_bytes)
        self._quota.admit(index.uid, tenant_id, call.fan_out)
        if (trace := self._instruments.tracer.publish_began(tenant_id, events)) is not None:
            call.contexts = trace.contexts
            done.add_done_callback(trace.settled)
        self._queue.append(call)
        self._wake()
        return call.done

    def _wake(self) -> None:
        self._has_work.set()
        if self._is_enough():
            self._has_enough.set()

    def check_capacity(self, tenant_id: str, events: int, data_bytes: int) -> None:
        """Raise as `publish` does if a call of this size cannot be queued now."""
        if self._is_stopping:
            raise UnavailableError(
                "this node is shutting down; nothing was stored, repeat the call",
                Reason.SHUTTING_DOWN,
                retry_after_s=_ADVICE_S,
            )
        self._queue.admit(tenant_id, events, data_bytes)

    def _check_fan_out(self, call: PublishCall) -> None:
        most = self._limits.max_batch_deliveries
        if call.fan_out > most:
            setting = "HOOKLINE_MAX_BATCH_DELIVERIES"
            raise invalid([over_limit("events", call.fan_out, "deliveries", setting, most)])

    # ------------------------------------------------------------------------ the group commit

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            await self._await_others()
            group = self._gather()
            again = await self._committer.commit(group) if group.calls else []
            self._expected_calls = len(group.calls) + self._queue.calls
            for follower in reversed(group.answer_followers()):
                self._queue.put_back(follower)  # before later calls of its stream
            await self._match_again(again)
            if self._queue.first() is None:
                if self._is_stopping:
                    return
                self._has_work.clear()

    async def _await_others(self) -> None:
        """Wait until the callers that were answered have called again, `GATHER_S` at most."""
        if not self._is_enough():
            self._has_enough.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._has_enough.wait()

    def _is_enough(self) -> bool:
        queue = self._queue
        return self._is_stopping or queue.calls >= self._expected_calls or queue.events >= ENOUGH

    def _gather(self) -> Group:
        """Return the next group."""
        group = self._builder.new_group()
        return self._group_limits.fill(group, self._queue.first, self._queue.take)

    async def _match_again(self, calls: Sequence[PublishCall]) -> None:
        """Match the calls that a commit has left, and queue them before all others.

        Each tenant is read once. A call with a lost write is not matched: its tenant is set apart
        until the write is looked up.
        """
        tenants = list(dict.fromkeys([one.index.tenant_id for one in calls if one.lost is None]))
        loads = [self._matcher.reload(tenant_id) for tenant_id in tenants]
        found = dict(
            zip(tenants, await asyncio.gather(*loads, return_exceptions=True), strict=True)
        )
        for call in reversed(calls):
            if call.lost is None and not self._is_matched(call, found[call.index.tenant_id]):
                continue
            self._queue.put_back(call)
            if call.lost is not None or call.misses >= MAX_MISSES:
                self._queue.set_apart(call.index.tenant_id, monotonic())

    def _is_matched(self, call: PublishCall, index: TenantIndex | BaseException) -> bool:
        """Match a call with the index that was read, or fail it."""
        if isinstance(index, Exception):
            call.fail(index)
            return False
        if isinstance(index, BaseException):
            raise index  # the publisher is being cancelled
        try:
            call.misses += 1
            call.match(index)
            self._check_fan_out(call)
        except Exception as error:  # noqa: BLE001 - any error is the call's answer
            call.fail(error)
            return False
        return True

    def history_changed(self) -> None:
        """Fail the queued calls: they were matched on another copy of the database."""
        self._fail_queued(history_changed())

    def _fail_queued(self, error: Exception) -> None:
        """Fail the queued calls with turns: none of them was sent to the database."""
        while self._queue.first() is not None:
            self._queue.take().fail(error)
