"""Committing one group: what it meets on the way, it resolves for each of its calls alone.

    a tenant's epoch moved on     its calls are left, to be matched again
    a tenant is being changed     the same; or, where the group waits for that, it is matched while
                                  the epoch is locked
    a key is taken                nothing was stored; which keys are taken is looked up, and those
                                  calls are told so, or told the first event's name; then the
                                  same statement stores the rest
    another's lock on a row       the group is split until the call that waits for it is left alone
    one call's data poisons it    the group is split until that call stands alone
    the answer was lost           the tenants' epochs are raised, so that what was lost can store
                                  nothing more; then its events are looked up by their ids, and
                                  what was not stored is matched again, then split
    the database is another copy  what was matched on the one before fails as UNAVAILABLE

so that OK means stored, and UNAVAILABLE means that nothing was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
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
from hookline_service.pipeline.publishing.group import Group, PublishCall
from hookline_service.pipeline.publishing.hand_off import GroupBuilder
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.store.database import (
    TRANSIENT,
    ContentionError,
    LockTimeoutError,
    OutcomeUnknownError,
    RejectedError,
    unavailable,
)
from hookline_service.store.publishing import PublishRows, PublishStore
from hookline_service.store.routes import IndexReader
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

_log = structlog.get_logger(__name__)

MAX_MISSES = 3
"""How often a call is matched in vain until its tenant is set apart."""
MAX_KEY_ROUNDS = 4
"""How often a group may find keys taken that were free before, until it is split."""
MAX_LOSSES = 2
"""How often a call may be sent and lost, having stored nothing, until its group is split."""
RECONNECT_S = 0.2
_BAD_DATA = "22"
_PASSING = ("25", "53", "57", "58")
"""Of the server and not of the data: read-only, no room, cancelled, I/O."""


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
        """Take calls into a group, each that `first` shows, until it is full; returns the group."""
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
    """Take a call into a group, or answer it where it cannot be stored."""
    try:
        group.add(call)
    except Exception as error:  # noqa: BLE001 - data nobody foresaw must not stop the others
        _log.exception("publish_call_unfit")
        call.fail(error)


class GroupCommitter:
    """Stores groups, one at a time, on a connection of its own."""

    def __init__(
        self,
        store: PublishStore,
        matcher: Matcher,
        builder: GroupBuilder,
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        self._store = store
        self.matcher = matcher
        self.builder = builder
        self._instruments = instruments
        self.on_unreachable: Callable[[HooklineError], None] = lambda _error: None
        """Called while it waits for a database that cannot be asked what became of a group."""
        self.committed_events = 0
        self.committed_groups = 0

    async def close(self) -> None:
        """Close the connection."""
        await self._store.close()

    async def commit(self, group: Group) -> list[PublishCall]:
        """Store a group and answer its calls; those whose tenant changed are left, in order."""
        try:
            return await self._try_commit(group)
        except Exception as error:  # noqa: BLE001 - a bug of ours: its calls must not wait for ever
            _log.exception("publish_group_broken")
            self.builder.withdraw(group, may_have_written=True)
            group.fail(error)
            return []

    async def _try_commit(self, group: Group) -> list[PublishCall]:
        while True:
            self.builder.announce(group)
            began_s = perf_counter()
            try:
                passed = await self._write(group)
            except LockTimeoutError as error:
                self.builder.withdraw(group)
                return await self._leave_blocked(group, error)
            except ContentionError:
                self.builder.withdraw(group)
            except RejectedError as error:
                self.builder.withdraw(group)
                return await self._split(group, _rejection(error))
            except UnavailableError as error:
                _log.warning("publish_failed", calls=len(group.calls), error=str(error))
                self.builder.withdraw(group)
                group.fail(error)
                return []
            except OutcomeUnknownError as lost:
                found = await self._find_stored(group, lost)
                self.builder.withdraw(group, may_have_written=bool(found))
                if found:
                    return group.answer(found)
                return await self._lose(group, lost)
            else:
                if passed is None:
                    self.builder.withdraw(group)
                    return await self._split(group, _keys_contended())
                self.builder.hand_over(group, passed)
                if passed:
                    self._count(group, perf_counter() - began_s)
                return group.answer(passed)

    def _count(self, group: Group, took_s: float) -> None:
        self.committed_groups += 1
        self.committed_events += group.event_count
        self._instruments.meters.committed(
            events=group.event_count, deliveries=len(group.rows.deliveries), took_s=took_s
        )

    async def _write(self, group: Group) -> set[UUID] | None:
        """Store what no taken key forbids; None: keys were taken anew in each round."""
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
        """Match while the tenants' epochs are locked: for calls that changes beat every time."""

        async def place(reader: IndexReader) -> PublishRows:
            for tenant_id in group.tenant_ids():
                try:
                    await self.matcher.read(reader, tenant_id)
                except NotFoundError as error:
                    group.not_found = error  # its epoch is not ours, so its calls are left
            self.builder.withdraw(group)
            group.place_again(self.matcher.cached)
            self.builder.announce(group)
            return group.rows_to_store

        return await self._store.write_held(group.rows.epochs, place, lock_timeout_s)

    async def _leave_blocked(self, group: Group, error: LockTimeoutError) -> list[PublishCall]:
        """Another transaction holds a lock that one of the calls needs: that one is left."""
        if group.lock_timeout_s is not None:
            return group.calls
        if len(group.calls) == 1:
            _log.warning("publish_blocked", tenant=group.calls[0].index.tenant_id)
            group.calls[0].misses = MAX_MISSES
            return group.calls
        return await self._split(group, unavailable(error))

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
            part = self.builder.new_group()
            part.lock_timeout_s = group.lock_timeout_s
            for call in half:
                if call.index.uid in moved:  # by whatever index: it must not pass those before it
                    again.append(call)
                else:
                    add_call(part, call)
            left = await self.commit(part) if part.calls else []
            moved.update([call.index.uid for call in left])
            again += left
        return again

    async def _lose(self, group: Group, lost: OutcomeUnknownError) -> list[PublishCall]:
        """Nothing of it was stored, nor will be: its calls are left, or it is split."""
        for call in group.calls:
            call.losses += 1
        if any(call.losses >= MAX_LOSSES for call in group.calls):
            return await self._split(group, unavailable(lost))
        return group.calls

    async def _find_stored(self, group: Group, lost: OutcomeUnknownError) -> set[UUID]:
        """The answer was lost: whose events are there. Waits until the database can tell."""
        _log.warning("publish_answer_lost", calls=len(group.calls), error=str(lost))
        while True:
            try:
                return await self._store.find_stored(group.rows.epochs, group.witnesses())
            except RejectedError as error:
                raise lost from error  # it may have been stored, and its callers are told so
            except TRANSIENT as error:
                group.fail_followers(unavailable(error))
                self.on_unreachable(unavailable(error))
                await asyncio.sleep(RECONNECT_S)


def _keys_contended() -> UnavailableError:
    return UnavailableError(
        f"other calls took idempotency keys of this call {MAX_KEY_ROUNDS} times while it was being"
        " stored; nothing was stored, repeat the call",
        Reason.CONCURRENT_CHANGE,
        retry_after_s=RECONNECT_S,
    )


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
