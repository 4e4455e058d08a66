"""Publishing: validate, match in memory, store in a group commit, hand over.

Theory of operation. Concurrent calls share one statement: while a group is being committed, the
next one gathers, and waits a moment until as many calls have come as were here when the last one
was stored; who calls alone waits for nobody. A group runs in a task of its own, so a caller that
gives up stops nobody. Calls whose tenant changed meanwhile are matched again, in the next group;
after some vain attempts their tenant is set apart (`contended.py`), so that others do not wait.
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
from hookline_service.pipeline.publishing.commit import MAX_MISSES, GroupCommitter, GroupLimits
from hookline_service.pipeline.publishing.contended import ContendedTenants
from hookline_service.pipeline.publishing.group import Group, PublishCall, Published
from hookline_service.pipeline.publishing.publish_queue import PublishQueue
from hookline_service.pipeline.publishing.quota import PendingQuota
from hookline_service.store.database import history_changed
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

__all__ = ["Published", "Publisher"]

GATHER_S = 0.002
"""How long a group may wait for calls: about what it takes to store one, and its caller to return.
"""
_ADVICE_S = 0.5


class Publisher:
    """Takes events in: one group commit at a time, which keeps publish order for free."""

    def __init__(
        self,
        committer: GroupCommitter,
        contended: GroupCommitter,
        catalog: EventTypeCatalog,
        quota: PendingQuota,
        limits: Limits,
        group_limits: GroupLimits | None = None,
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        """`contended` commits for tenants that another transaction has locked."""
        self._matcher = committer.matcher
        self._builder = committer.builder
        self._catalog = catalog
        self._quota = quota
        self._limits = limits
        self._group_limits = group_limits or GroupLimits()
        self._instruments = instruments
        self._queue = PublishQueue(limits)
        self._committer = committer
        self._committer.on_unreachable = self._fail_queued
        self._contended = ContendedTenants(contended, self._queue, self._group_limits)
        self._contended.on_rejoined = self._wake
        self._has_work = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._expected_calls = 1
        """How many were here when the last group was stored: in it, or queued behind it."""
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
        await self._contended.stop()  # what rejoins is committed below
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
        """Queue a call; what becomes of it, which is not to be cancelled.

        Calls of one `stream`, submitted one after the other, are stored in that order within each
        tenant. Raises what `publish` raises before the commit.
        """
        data_bytes = sum([len(event.data) for event in events])
        self.check_room(tenant_id, len(events), data_bytes)
        revisions = await self._catalog.check(tenant_id, events)
        index = self._matcher.cached(tenant_id) or await self._matcher.reload(tenant_id)
        done = asyncio.get_running_loop().create_future()
        call = PublishCall(index, list(events), revisions, data_bytes, done, stream)
        self._check_fan_out(call)
        # Others came while this one read, or the end.
        self.check_room(tenant_id, len(events), data_bytes)
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

    def check_room(self, tenant_id: str, events: int, data_bytes: int) -> None:
        """Raise what `publish` would for a call of this size, before anything is read of it."""
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
                self._queue.put_back(follower)  # a later call of its stream is queued already
            await self._match_again(again)
            if self._queue.first() is None:
                if self._is_stopping:
                    return
                self._has_work.clear()

    async def _await_others(self) -> None:
        """Callers that were answered are likely to call again: let them share the statement."""
        if not self._is_enough():
            self._has_enough.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._has_enough.wait()

    def _is_enough(self) -> bool:
        queue = self._queue
        return self._is_stopping or queue.calls >= self._expected_calls or queue.events >= ENOUGH

    def _gather(self) -> Group:
        """The calls of the next group: what is queued, up to its size."""
        group = self._builder.new_group()
        return self._group_limits.fill(group, self._queue.first, self._queue.take)

    async def _match_again(self, calls: Sequence[PublishCall]) -> None:
        """Calls whose tenant changed meanwhile: match them under the new epoch, before all others.

        A tenant is read once, however many calls of it there are.
        """
        tenants = list(dict.fromkeys([call.index.tenant_id for call in calls]))
        loads = [self._matcher.reload(tenant_id) for tenant_id in tenants]
        found = dict(
            zip(tenants, await asyncio.gather(*loads, return_exceptions=True), strict=True)
        )
        for call in reversed(calls):
            index = found[call.index.tenant_id]
            if isinstance(index, Exception):
                call.fail(index)
                continue
            if isinstance(index, BaseException):
                raise index  # we are being cancelled, and so is this group
            try:
                call.misses += 1
                call.match(index)
                self._check_fan_out(call)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the call's answer
                call.fail(error)
                continue
            self._queue.put_back(call)
            if call.misses >= MAX_MISSES:
                self._queue.set_apart(call.index.tenant_id, monotonic())

    def history_changed(self) -> None:
        """Fail what waits: it was matched on another copy of the database."""
        self._fail_queued(history_changed())

    def _fail_queued(self, error: Exception) -> None:
        """The database is away: nothing of what waits was sent to it, so its callers may repeat."""
        while self._queue.first() is not None:
            self._queue.take().fail(error)
