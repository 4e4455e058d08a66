"""Publishing: validate, match in memory, store in a group commit, hand over.

Theory of operation. Concurrent calls share one statement: while a group is being committed, the next
one gathers. A group runs in a task of its own, so a caller that gives up stops nobody. What a group
meets, it resolves for each call alone:

    a tenant's epoch moved on     its calls are matched again, in the next group
    a key is taken                the call is told so, or told the first event's name
    one call's data poisons it    the group is split until that call stands alone
    the answer was lost           the backend is ended, then the event is looked up by its id

so that OK means stored, and UNAVAILABLE means that nothing was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from service.domain.errors import (
    HooklineError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from service.pipeline.group import PublishCall, Published
from service.store.database import (
    ContentionError,
    OutcomeUnknownError,
    RejectedError,
    unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from service.domain.event import NewEvent
    from service.domain.limits import Limits
    from service.pipeline.catalog import EventTypeCatalog
    from service.pipeline.group import Group, GroupBuilder
    from service.pipeline.matching import Matcher
    from service.store.publishing import PublishStore

__all__ = ["Published", "Publisher"]

_log = structlog.get_logger(__name__)

MAX_GROUP_EVENTS = 2_000
MAX_GROUP_BYTES = 8 * 1024 * 1024
MAX_GROUP_DELIVERIES = 50_000
"""A group takes calls until it is this large; one call alone may be larger."""
RECONNECT_S = 0.2
_ADVICE_S = 0.5


class Publisher:
    """Takes events in: one group commit at a time, which keeps publish order for free."""

    def __init__(
        self,
        store: PublishStore,
        matcher: Matcher,
        catalog: EventTypeCatalog,
        builder: GroupBuilder,
        limits: Limits,
    ) -> None:
        self._store = store
        self._matcher = matcher
        self._catalog = catalog
        self._builder = builder
        self._limits = limits
        self._queue: deque[PublishCall] = deque()
        self._queued_events = 0
        self._queued_bytes = 0
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.committed_events = 0
        self.committed_groups = 0

    def start(self) -> None:
        """Begin to commit groups."""
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self) -> None:
        """Refuse new calls, commit what is queued, end."""
        self._is_stopping = True
        self._has_work.set()
        if self._task is not None:
            await self._task
        await self._store.close()

    async def publish(self, tenant_id: str, events: Sequence[NewEvent]) -> list[Published]:
        """Store events and their deliveries, durably, all or none; in the order of the request.

        Raises `NotFoundError` (tenant), `FailedPreconditionError` (type), `InvalidArgumentError`
        (schema), `AlreadyExistsError` (key), `ResourceExhaustedError` (too much is queued),
        `UnavailableError` (nothing was stored).
        """
        data_bytes = sum([len(event.data) for event in events])
        self._admit(len(events), data_bytes)
        revisions = await self._catalog.check(events)
        index = self._matcher.cached(tenant_id) or await self._matcher.reload(tenant_id)
        loop = asyncio.get_running_loop()
        call = PublishCall(index, list(events), revisions, data_bytes, loop.create_future())
        self._enqueue(call)
        return await asyncio.shield(call.done)

    def _admit(self, event_count: int, data_bytes: int) -> None:
        if self._is_stopping:
            raise UnavailableError(
                "this node is shutting down; nothing was stored, repeat the call",
                Reason.SHUTTING_DOWN,
                retry_after_s=_ADVICE_S,
            )
        limits = self._limits
        if self._queued_events + event_count > limits.max_queued_publish_events:
            raise _overloaded("HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS", "events")
        if self._queued_bytes + data_bytes > limits.max_queued_publish_bytes:
            raise _overloaded("HOOKLINE_MAX_QUEUED_PUBLISH_BYTES", "bytes")

    def _enqueue(self, call: PublishCall, *, first: bool = False) -> None:
        if first:
            self._queue.appendleft(call)
        else:
            self._queue.append(call)
        self._queued_events += len(call.events)
        self._queued_bytes += call.data_bytes
        self._has_work.set()

    # ------------------------------------------------------------------------ the group commit

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            group = self._gather()
            if group.calls:
                try:
                    await self._commit(group)
                except Exception as error:  # a bug of ours: its calls must not wait for ever
                    _log.exception("publish_group_broken")
                    for call in group.calls:
                        call.fail(error)
            for follower in group.answer_followers():
                self._enqueue(follower)
            if not self._queue:
                if self._is_stopping:
                    return
                self._has_work.clear()

    def _gather(self) -> Group:
        """The calls of the next group: what is queued, up to its size."""
        group = self._builder.new_group()
        deliveries = 0
        while self._queue:
            call = self._queue[0]
            deliveries += call.fan_out()
            if group.calls and (
                group.event_count + len(call.events) > MAX_GROUP_EVENTS
                or group.data_bytes + call.data_bytes > MAX_GROUP_BYTES
                or deliveries > MAX_GROUP_DELIVERIES
            ):
                break
            self._queue.popleft()
            self._queued_events -= len(call.events)
            self._queued_bytes -= call.data_bytes
            group.add(call)
        return group

    async def _commit(self, group: Group) -> None:
        """Store a group, and answer each of its calls or queue it again."""
        while True:
            self._builder.announce(group)
            try:
                passed = await self._write(group)
            except ContentionError:
                self._builder.withdraw(group)
                continue
            except RejectedError as error:
                self._builder.withdraw(group)
                await self._split(group, error)
                return
            except UnavailableError as error:
                self._builder.withdraw(group)
                for call in group.calls:
                    call.fail(error)
                return
            except OutcomeUnknownError as error:
                found = await self._find_stored(group, error)
                self._builder.withdraw(group, may_have_written=bool(found))
                if found:
                    await self._match_again(group.answer(group.passed_by(found)))
                    return
            else:
                self._builder.hand_over(group, passed)
                self.committed_groups += 1
                self.committed_events += group.event_count
                await self._match_again(group.answer(passed))
                return

    async def _write(self, group: Group) -> set[UUID]:
        passed = await self._store.write(group.rows)
        if passed is None:
            passed = await self._store.write_stepwise(group.rows, group.settle)
        return passed

    async def _match_again(self, calls: Sequence[PublishCall]) -> None:
        """Calls whose tenant changed meanwhile: match them under the new epoch, before all others."""
        for call in reversed(calls):
            try:
                call.index = await self._matcher.reload(call.index.tenant_id)
            except HooklineError as error:
                call.fail(error)
            except Exception as error:
                _log.exception("match_again_failed")
                call.fail(error)
            else:
                self._enqueue(call, first=True)

    async def _split(self, group: Group, error: RejectedError) -> None:
        """One call poisons the statement: halve until it stands alone, so its neighbours commit."""
        if len(group.calls) == 1:
            _log.warning("publish_call_rejected", sqlstate=error.sqlstate, error=str(error))
            group.calls[0].fail(_rejection(error))
            return
        middle = len(group.calls) // 2
        for half in (group.calls[:middle], group.calls[middle:]):
            part = self._builder.new_group()
            for call in half:
                part.add(call)
            await self._commit(part)

    async def _find_stored(self, group: Group, lost: OutcomeUnknownError) -> set[UUID]:
        """The answer was lost: whose events are there. Waits until the database can tell."""
        _log.warning("publish_answer_lost", calls=len(group.calls), error=str(lost))
        while True:
            try:
                return await self._store.find_stored(lost, group.witnesses())
            except (UnavailableError, OutcomeUnknownError, ContentionError) as error:
                self._fail_queued(error)
                await asyncio.sleep(RECONNECT_S)

    def _fail_queued(self, cause: Exception) -> None:
        """The database is away: nothing of what waits was sent to it, so its callers may repeat."""
        while self._queue:
            call = self._queue.popleft()
            self._queued_events -= len(call.events)
            self._queued_bytes -= call.data_bytes
            call.fail(unavailable(cause))


def _overloaded(setting: str, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"too many {what} wait to be stored ({setting}); nothing was stored, come back later",
        Reason.OVERLOADED,
        metadata={"limit": setting},
        retry_after_s=_ADVICE_S,
    )


def _rejection(error: RejectedError) -> HooklineError:
    if error.sqlstate[:2] in {"22", "23"}:
        return InvalidArgumentError(
            "the database cannot store these events; nothing was stored", Reason.PAYLOAD_INVALID
        )
    return HooklineError("the events could not be stored; nothing was", Reason.INTERNAL)
