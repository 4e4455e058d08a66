"""Commits one group of calls, and resolves each failure for the calls that it concerns.

    the tenant's epoch has changed    its calls are left, to be matched again
    a change of the tenant is open    the same; a group with a `lock_timeout_s` waits for the change
                                      instead, and is matched while the epoch is locked
    an idempotency key is taken       nothing was stored; the taken keys are looked up, their calls
                                      are answered with an error or the first event's name, and the
                                      same statement stores the rest
    another lock is not free          the group is split until the call that waits is left alone
    the data of a call is rejected    the group is split until that call is alone
    the answer was lost               the tenants' epochs are raised, so that the lost statement
                                      stores nothing more, and its events are looked up by id; calls
                                      that were not stored are matched again, then split. Calls of a
                                      tenant that another transaction has locked are left marked as
                                      `lost`, and looked up apart from the group commit
    the database is another copy      calls matched on the copy before fail as UNAVAILABLE

So OK means stored, and UNAVAILABLE means that nothing was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from time import perf_counter
from uuid import UUID

import structlog

from hookline_service.domain.errors import (
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from hookline_service.domain.event import accepted
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.instants import from_unix_ms
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.publishing.group import Group, PublishCall
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.store.database import (
    TRANSIENT,
    BadDataError,
    ContentionError,
    LockTimeoutError,
    OutcomeUnknownError,
    RejectedError,
    ServerTroubleError,
    unavailable,
)
from hookline_service.store.publishing import LookUp, PublishRows, PublishStore
from hookline_service.store.routes import IndexReader
from hookline_service.targets.payload import Message
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

_log = structlog.get_logger(__name__)

MAX_MISSES = 3
"""After so many writes that found another epoch, the tenant of a call is set apart."""
MAX_KEY_ROUNDS = 4
"""After so many writes that each found other keys taken, a group is split."""
MAX_LOSSES = 2
"""After so many lost writes that stored nothing, the group of a call is split, and the call refused
if it is alone."""
RECONNECT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """A group takes calls until it is this large; one call alone may be larger."""

    max_events: int = 500
    max_bytes: int = 8 * 1024 * 1024
    max_deliveries: int = 50_000
    lock_wait_s: float = 2.0
    """How long a call waits for another transaction's lock (HOOKLINE_PUBLISH_LOCK_WAIT_S)."""

    def fill(
        self,
        group: Group,
        first: Callable[[], PublishCall | None],
        take: Callable[[], PublishCall],
    ) -> Group:
        """Add calls to a group until it is full or `first` returns None; return the group."""
        deliveries = 0
        while (call := first()) is not None:
            deliveries += call.fan_out
            if group.calls and (
                group.event_count + len(call.events) > self.max_events
                or group.data_bytes + call.data_bytes > self.max_bytes
                or deliveries > self.max_deliveries
            ):
                break
            add_call(group, take())
        return group


def add_call(group: Group, call: PublishCall) -> None:
    """Add a call to a group, or fail it if its rows cannot be made."""
    try:
        group.add(call)
    except Exception as error:  # noqa: BLE001 - unforeseen data must not fail other calls
        _log.exception("publish_call_broken")
        call.fail(error)


class GroupBuilder:
    """Makes groups, and hands their deliveries to the lanes of this node.

    Delivery ids are announced to the lanes before the commit, so that no refill reads them
    meanwhile, and withdrawn after it. Committed deliveries go straight into the lanes that this
    node owns.
    """

    def __init__(self, time: DatabaseTime, random: Random, lanes: Lanes) -> None:
        self._time = time
        self._random = random
        self._lanes = lanes

    def new_group(self) -> Group:
        """Return an empty group with the current time of the database."""
        return Group(self._time.unix_ms(), self._random)

    def announce(self, group: Group) -> None:
        """Announce the ids that the commit may write."""
        announce = self._lanes.announce
        for row in group.rows.deliveries:
            if row[7] is not None:
                continue  # ordered subscriptions take no hand-offs
            lane = announce(row[5], row[4])
            if lane is not None:
                group.announced.append((lane, row[4]))

    def withdraw(self, group: Group, *, may_have_written: bool = False) -> None:
        """Withdraw the announced ids; if they may be stored, their lanes become DIRTY."""
        for lane, delivery_id in group.announced:
            lane.announced.discard(delivery_id)
        group.announced.clear()
        if may_have_written:
            for row in group.rows.deliveries:
                self._lanes.touch(row[5], row[1], tenant_uid=row[0])

    def touch_lanes(self, call: PublishCall) -> None:
        """Make the lanes of a call's deliveries DIRTY."""
        for event in call.events:
            for route in call.index.match(event.type):
                self._lanes.touch(route.subscription_uid, route.bucket, tenant_uid=call.index.uid)

    def hand_over(self, group: Group, passed: set[UUID]) -> None:
        """Add the committed deliveries to the lanes of this node, then withdraw the ids.

        In this order: a lane takes only announced ids.
        """
        try:
            self._hand_over(group, passed)
        finally:
            self.withdraw(group)

    def _hand_over(self, group: Group, passed: set[UUID]) -> None:
        lanes = self._lanes
        for call, position, placed in group.stored(passed):
            message: Message | None = None
            for row in placed.deliveries:
                if row[2] > 0:
                    continue  # due later: the sweep finds it in time
                lane = lanes.get(row[5])
                if lane is None:
                    lanes.touch(row[5], row[1], tenant_uid=row[0])
                    continue
                if row[7] is not None:
                    lanes.next_of_key(lane, row[7])
                    continue
                if message is None:
                    message = _message_of(call, position, placed.event_id, group.now_ms)
                lanes.hand_over(lane, row[4], message)


def _message_of(call: PublishCall, position: int, event_id: UUID, now_ms: int) -> Message:
    event, index = call.events[position], call.index
    stored = accepted(
        event,
        event_id,
        index.uid,
        index.tenant_id,
        call.revisions[position],
        from_unix_ms(now_ms),
        call.context_of(position),
    )
    return Message(stored, format_type_id(EVENT_ID, event_id))


class GroupCommitter:
    """Stores groups, one at a time, on a connection of its own."""

    def __init__(
        self,
        store: PublishStore,
        matcher: Matcher,
        builder: GroupBuilder,
        on_unreachable: Callable[[HooklineError], None],
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        """`on_unreachable` is called repeatedly while a look-up finds no database."""
        self._store = store
        self._matcher = matcher
        self._builder = builder
        self._on_unreachable = on_unreachable
        self._instruments = instruments
        self.committed_events = 0
        self.committed_groups = 0

    async def close(self) -> None:
        """Close the connection."""
        await self._store.close()

    async def commit(self, group: Group) -> list[PublishCall]:
        """Store a group and answer its calls; return the calls that are left, in order.

        A call is left because its tenant has changed, or because its write was lost and cannot be
        looked up yet (`PublishCall.lost`).
        """
        try:
            return await self._try_commit(group)
        except Exception as error:  # noqa: BLE001 - a bug: its calls must not wait for ever
            _log.exception("publish_group_broken")
            self._builder.withdraw(group, may_have_written=True)
            group.fail(error)
            return []

    async def _try_commit(self, group: Group) -> list[PublishCall]:
        while True:
            self._builder.announce(group)
            began_s = perf_counter()
            try:
                passed = await self._write(group)
            except LockTimeoutError as error:
                self._builder.withdraw(group)
                return await self._leave_blocked(group, error)
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
                return await self._resolve_lost(group, lost)
            else:
                if passed is None:
                    self._builder.withdraw(group)
                    return await self._split(group, _keys_contended())
                self._builder.hand_over(group, passed)
                if passed:
                    self._count(group, passed, perf_counter() - began_s)
                return group.answer(passed)

    def _count(self, group: Group, passed: set[UUID], took_s: float) -> None:
        """Count the events that were stored: calls that are left count when they are stored."""
        stored = [len(placed.deliveries) for _, _, placed in group.stored(passed)]
        self.committed_groups += 1
        self.committed_events += len(stored)
        self._instruments.meters.committed(
            events=len(stored), deliveries=sum(stored), took_s=took_s
        )

    async def _write(self, group: Group) -> set[UUID] | None:
        """Store the events without a taken key; None: every round found other keys taken."""
        for _ in range(MAX_KEY_ROUNDS):
            if group.lock_timeout_s is None:
                passed = await self._store.write(group.rows_to_store)
            else:
                passed = await self._write_held(group, group.lock_timeout_s)
            if passed is not None:
                return passed
            group.settle(await self._store.find_taken(group.rows))
        return None

    async def _write_held(self, group: Group, lock_timeout_s: float) -> set[UUID] | None:
        """Match the calls again while their tenants' epochs are locked, and store them."""

        async def place(reader: IndexReader) -> PublishRows:
            for tenant_id in group.tenant_ids():
                try:
                    await self._matcher.read(reader, tenant_id)
                except NotFoundError as error:
                    group.not_found = error  # its epoch does not match, so its calls are left
            self._builder.withdraw(group)
            group.place_again(self._matcher.cached)
            self._builder.announce(group)
            return group.rows_to_store

        return await self._store.write_held(group.rows.epochs, place, lock_timeout_s)

    async def _leave_blocked(self, group: Group, error: LockTimeoutError) -> list[PublishCall]:
        """Split the group until the call that needs the lock is alone, and leave that call."""
        if group.lock_timeout_s is not None:
            return group.calls
        if len(group.calls) == 1:
            _log.warning("publish_blocked", tenant=group.calls[0].index.tenant_id)
            group.calls[0].misses = MAX_MISSES
            return group.calls
        return await self._split(group, unavailable(error))

    async def _split(self, group: Group, error: HooklineError) -> list[PublishCall]:
        """Commit the halves of a group apart; a call that is alone fails with `error`."""
        if len(group.calls) == 1:
            _log.warning("publish_call_rejected", reason=error.reason, cause=str(error.__cause__))
            group.fail(error)
            return []
        middle = len(group.calls) // 2
        again: list[PublishCall] = []
        moved: set[UUID] = set()
        for half in (group.calls[:middle], group.calls[middle:]):
            part = self._builder.new_group()
            part.lock_timeout_s = group.lock_timeout_s
            for call in half:
                if call.index.uid in moved:  # it must not pass earlier calls of its tenant
                    again.append(call)
                else:
                    add_call(part, call)
            left = await self.commit(part) if part.calls else []
            moved.update([call.index.uid for call in left])
            again += left
        return again

    async def _resolve_lost(self, group: Group, lost: OutcomeUnknownError) -> list[PublishCall]:
        """Answer the calls that a lost write has stored, and leave the others."""
        found = await self._find_stored(group, lost)
        self._builder.withdraw(group, may_have_written=bool(found.stored))
        group.mark_lost(found.locked)
        if found.stored or found.locked:
            return group.answer(found.stored)
        for call in group.calls:
            call.losses += 1
        if any(call.losses >= MAX_LOSSES for call in group.calls):
            return await self._split(group, unavailable(lost))
        return group.calls

    async def _find_stored(self, group: Group, lost: OutcomeUnknownError) -> LookUp:
        """Look up a lost write; repeat until the database answers."""
        _log.warning("publish_answer_lost", calls=len(group.calls), error=str(lost))
        while True:
            try:
                return await self._store.find_stored(group.rows.epochs, group.witnesses())
            except RejectedError as error:
                raise lost from error  # it may have been stored: the callers get UNKNOWN
            except TRANSIENT as error:
                group.fail_followers(unavailable(error))
                self._on_unreachable(unavailable(error))
                await asyncio.sleep(RECONNECT_S)

    async def look_up(
        self, calls: Sequence[PublishCall], lock_timeout_s: float
    ) -> list[PublishCall] | None:
        """Look up the lost write of some calls of one tenant, which another transaction has locked.

        Answers the calls if they are stored; else returns those to be written again. None: it is
        still not known, because the lock was not free or the database did not answer.
        """
        uid, lost = calls[0].index.uid, calls[0].lost
        try:
            is_stored = await self._store.wait_and_find_stored(
                uid, lost and lost.witness, lock_timeout_s
            )
        except ContentionError:
            return None
        except TRANSIENT as error:
            self._on_unreachable(unavailable(error))
            await asyncio.sleep(RECONNECT_S)
            return None
        except Exception as error:  # noqa: BLE001 - a bug: its calls must not wait for ever
            _log.exception("publish_group_broken")
            fail_as_unknown(calls, error)
            return []
        left: list[PublishCall] = []
        for call in calls:
            lost, call.lost = call.lost, None
            if is_stored and lost is not None:
                self._builder.touch_lanes(call)
                call.settle(lost.answer)
                continue
            call.losses += 1
            if len(calls) == 1 and call.losses >= MAX_LOSSES:
                call.fail(unavailable(OutcomeUnknownError()))
            else:
                left.append(call)
        return left


def fail_as_unknown(calls: Iterable[PublishCall], cause: Exception | None = None) -> None:
    """Fail calls of which it is not known whether they are stored."""
    error = OutcomeUnknownError("the answer to a publish was lost and could not be looked up")
    error.__cause__ = cause
    for call in calls:
        call.fail(error)


def _keys_contended() -> UnavailableError:
    return UnavailableError(
        f"other calls took idempotency keys of this call {MAX_KEY_ROUNDS} times while it was being"
        " stored; nothing was stored, repeat the call",
        Reason.CONCURRENT_CHANGE,
        retry_after_s=RECONNECT_S,
    )


def _rejection(rejected: RejectedError) -> HooklineError:
    if isinstance(rejected, BadDataError):
        error: HooklineError = InvalidArgumentError(
            "the database cannot store these events; nothing was stored", Reason.PAYLOAD_INVALID
        )
    elif isinstance(rejected, ServerTroubleError):
        error = unavailable(rejected)
    else:
        error = HooklineError("the events could not be stored; nothing was", Reason.INTERNAL)
    error.__cause__ = rejected
    return error
