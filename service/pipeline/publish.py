"""Publishing: validate, match in memory, store in a group commit, hand over.

Theory of operation. Concurrent calls share one statement: while a group is being committed, the
next one gathers, and waits a moment until as many calls have come as were here when the last one
was stored; who calls alone waits for nobody. A group runs in a task of its own, so a caller that
gives up stops nobody. What a group meets, it resolves for each call alone:

    a tenant's epoch moved on     its calls are matched again, in the next group; where changes
                                  come faster than that, under the tenant's lock
    a key is taken                the call is told so, or told the first event's name
    one call's data poisons it    the group is split until that call stands alone
    the answer was lost           the backend is ended, then the event is looked up by its id;
                                  what was not stored is sent again, then split

so that OK means stored, and UNAVAILABLE means that nothing was.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from service.domain.errors import (
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
    invalid,
    over_limit,
)
from service.pipeline.gathering import ENOUGH
from service.pipeline.group import PublishCall, Published
from service.pipeline.publish_queue import PublishQueue
from service.store.database import (
    TRANSIENT,
    ContentionError,
    OutcomeUnknownError,
    RejectedError,
    unavailable,
)
from service.telemetry.instruments import UNOBSERVED, Instruments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from service.domain.event import NewEvent
    from service.domain.limits import Limits
    from service.pipeline.catalog import EventTypeCatalog
    from service.pipeline.group import Group
    from service.pipeline.hand_off import GroupBuilder
    from service.pipeline.matching import Matcher
    from service.pipeline.quota import PendingQuota
    from service.store.publishing import PublishRows, PublishStore
    from service.store.routes import Reader

__all__ = ["Published", "Publisher"]

_log = structlog.get_logger(__name__)

MAX_MISSES = 3
"""How often a call is matched in vain until its tenant is held still for it."""
MAX_LOSSES = 2
"""How often a group may be sent and lost, having stored nothing, until it is split."""
GATHER_S = 0.002
"""How long a group may wait for calls: about what it takes to store one, and its caller to return.
"""
RECONNECT_S = 0.2
_ADVICE_S = 0.5
_BAD_DATA = "22"
_PASSING = ("23505", "25", "53", "57", "58")
"""Of the server and not of the data: an id drawn twice, read-only, no room, cancelled, I/O."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """A group takes calls until it is this large; one call alone may be larger."""

    max_events: int = 500
    max_bytes: int = 8 * 1024 * 1024
    max_deliveries: int = 50_000


class Publisher:
    """Takes events in: one group commit at a time, which keeps publish order for free."""

    def __init__(
        self,
        store: PublishStore,
        matcher: Matcher,
        catalog: EventTypeCatalog,
        builder: GroupBuilder,
        quota: PendingQuota,
        limits: Limits,
        group_limits: GroupLimits | None = None,
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        self._store = store
        self._matcher = matcher
        self._catalog = catalog
        self._builder = builder
        self._quota = quota
        self._limits = limits
        self._group_limits = group_limits or GroupLimits()
        self._instruments = instruments
        self._queue = PublishQueue(limits)
        self._has_work = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._expected_calls = 1
        """How many were here when the last group was stored: in it, or queued behind it."""
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
        self._has_enough.set()
        if self._task is not None:
            await self._task
        await self._store.close()

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
        revisions = await self._catalog.check(events)
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
        self._has_work.set()
        if self._is_enough():
            self._has_enough.set()
        return call.done

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
            again = await self._commit(group) if group.calls else []
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
        group, limits = self._builder.new_group(), self._group_limits
        deliveries = 0
        while (call := self._queue.first()) is not None:
            deliveries += call.fan_out
            holds = call.misses >= MAX_MISSES
            if group.calls and (
                holds is not group.holds
                or group.event_count + len(call.events) > limits.max_events
                or group.data_bytes + call.data_bytes > limits.max_bytes
                or deliveries > limits.max_deliveries
            ):
                break
            group.holds = holds
            _add(group, self._queue.take())
        return group

    async def _commit(self, group: Group) -> list[PublishCall]:
        """Store a group and answer its calls; those whose tenant changed are left, in order."""
        try:
            return await self._try_commit(group)
        except Exception as error:  # noqa: BLE001 - a bug of ours: its calls must not wait for ever
            _log.exception("publish_group_broken")
            self._builder.withdraw(group, may_have_written=True)
            group.fail(error)
            return []

    async def _try_commit(self, group: Group) -> list[PublishCall]:
        losses = 0
        while True:
            self._builder.announce(group)
            began_s = perf_counter()
            try:
                passed = await self._write(group)
            except ContentionError:
                self._builder.withdraw(group)
            except RejectedError as error:
                self._builder.withdraw(group)
                return await self._split(group, _rejection(error))
            except UnavailableError as error:
                _log.warning("publish_failed", calls=len(group.calls), error=str(error))
                self._builder.withdraw(group)
                group.fail(error)
                return []
            except OutcomeUnknownError as lost:
                found = await self._find_stored(group, lost)
                self._builder.withdraw(group, may_have_written=bool(found))
                if found:
                    return group.answer(group.passed_by(found))
                losses += 1
                if losses == MAX_LOSSES:
                    return await self._split(group, unavailable(lost))
            else:
                self._builder.hand_over(group, passed)
                self.committed_groups += 1
                self.committed_events += group.event_count
                self._instruments.meters.committed(
                    events=group.event_count,
                    deliveries=len(group.rows.deliveries),
                    took_s=perf_counter() - began_s,
                )
                return group.answer(passed)

    async def _write(self, group: Group) -> set[UUID]:
        group.unsettle()
        if group.holds:
            return await self._write_held(group)
        passed = await self._store.write(group.rows)
        if passed is None:
            passed = await self._store.write_stepwise(group.rows, group.settle)
        return passed

    async def _write_held(self, group: Group) -> set[UUID]:
        """Match while the tenants are locked: for calls that changes beat again and again."""

        async def place(reader: Reader) -> PublishRows:
            for tenant_id in group.tenant_ids():
                # Where it is gone, its epoch is not ours, and its calls hear of it.
                with suppress(NotFoundError):
                    await self._matcher.read(reader, tenant_id)
            self._builder.withdraw(group)
            group.place_again(self._matcher.cached)
            self._builder.announce(group)
            return group.rows

        return await self._store.write_held(group.rows.epochs, place, group.settle)

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
            else:
                self._queue.put_back(call)

    async def _split(self, group: Group, error: HooklineError) -> list[PublishCall]:
        """One call poisons the statement: halve until it stands alone, so its neighbours commit."""
        if len(group.calls) == 1:
            _log.warning("publish_call_rejected", reason=error.reason, cause=str(error.__cause__))
            group.fail(error)
            return []
        middle = len(group.calls) // 2
        again: list[PublishCall] = []
        moved: set[UUID] = set()
        for half in (group.calls[:middle], group.calls[middle:]):
            part = self._builder.new_group()
            for call in half:
                if call.index.uid in moved:  # by whatever index: it must not pass those before it
                    again.append(call)
                else:
                    _add(part, call)
            left = await self._commit(part) if part.calls else []
            moved.update([call.index.uid for call in left])
            again += left
        return again

    async def _find_stored(self, group: Group, lost: OutcomeUnknownError) -> set[UUID]:
        """The answer was lost: whose events are there. Waits until the database can tell."""
        _log.warning("publish_answer_lost", calls=len(group.calls), error=str(lost))
        while True:
            try:
                return await self._store.find_stored(lost, group.witnesses())
            except RejectedError as error:
                raise lost from error  # it may have been stored, and its callers are told so
            except TRANSIENT as error:
                group.fail_followers(unavailable(error))
                self._fail_queued(unavailable(error))
                await asyncio.sleep(RECONNECT_S)

    def _fail_queued(self, error: Exception) -> None:
        """The database is away: nothing of what waits was sent to it, so its callers may repeat."""
        while self._queue.first() is not None:
            self._queue.take().fail(error)


def _add(group: Group, call: PublishCall) -> None:
    try:
        group.add(call)
    except Exception as error:  # noqa: BLE001 - data nobody foresaw must not stop the others
        _log.exception("publish_call_unfit")
        call.fail(error)


def _rejection(rejected: RejectedError) -> HooklineError:
    if rejected.sqlstate.startswith(_BAD_DATA):
        error: HooklineError = InvalidArgumentError(
            "the database cannot store these events; nothing was stored", Reason.PAYLOAD_INVALID
        )
    elif rejected.sqlstate.startswith(_PASSING):
        error = unavailable(rejected)
    else:
        error = HooklineError("the events could not be stored; nothing was", Reason.INTERNAL)
    error.__cause__ = rejected
    return error
