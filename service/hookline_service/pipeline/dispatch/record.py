"""Recording: outcomes become moves, and many moves share one statement (group commit).

A record names the version of the row that it saw. A row that still has this version is written, and
the lane is updated; a row that another transaction changed is not, and the job is dropped. The
circuit breaker and the disabling of subscriptions act on written rows only; a subscription is
disabled in the same transaction. If a batch cannot be written nothing is lost: its rows are still
pending, and are sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from time import perf_counter
from uuid import UUID

import structlog

from hookline_service.domain.attempt import Outcome
from hookline_service.domain.delivery import (
    DeliveryState,
    Exhaust,
    HoldGone,
    Move,
    Release,
    RetryLater,
    Succeed,
    Trigger,
    advance,
    decide,
)
from hookline_service.domain.retry import RetrySchedule
from hookline_service.domain.subscription import SubscriptionStateReason
from hookline_service.pipeline.batch_queue import BatchQueue
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.lane import Job
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.outcome_log import (
    log_batch_repeated,
    log_disabled,
    log_exhausted,
    log_internal_error,
    log_unstorable,
    measure,
)
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.store.database import REPEATABLE, TRANSIENT, ContentionError
from hookline_service.store.recording import (
    Consequences,
    Disabling,
    OutcomeRows,
    Recorded,
    RecordStore,
)
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

DISABLE_AFTER_S = 5 * 86_400.0
PARK_S = 3_600.0
"""How long a delivery waits if its outcome cannot be stored, in seconds."""
UNSTORABLE = "the response could not be stored as received"
GONE = "the target is gone"

REPEAT_S = 0.2
"""How long a batch waits for a database in trouble, in seconds."""
DEADLOCKS_MAX = 8
"""After so many lost deadlocks in a row the database counts as in trouble."""
DEADLOCK_BACKOFF_S = 0.002
"""The longest wait after the first lost deadlock; doubles with each. Without it two statements that
met in a deadlock would meet again."""

_DEFAULT_SCHEDULE = RetrySchedule()
_NOTHING = Recorded(frozenset(), frozenset())


@dataclass(slots=True)
class _Record:
    job: Job
    outcome: Outcome
    move: Move
    start_us: int
    is_settled: bool = False
    """Whether its lane is updated, which happens once."""


class Recorder:
    """Writes outcomes, one batch at a time, while the next batch accumulates."""

    def __init__(  # noqa: PLR0913 - each is a collaborator or a setting
        self,
        store: RecordStore,
        lanes: Lanes,
        ownership: Ownership,
        time: DatabaseTime,
        random: Random,
        *,
        in_flight: Callable[[], int] = lambda: 0,
        on_recorded: Callable[[int], None] = lambda _count: None,
        disable_after_s: float = DISABLE_AFTER_S,
        meters: Meters | None = None,
    ) -> None:
        """Create a recorder without outcomes.

        `in_flight` counts the deliveries that are sent and not yet recorded; `on_recorded` is
        called with the number of those that no longer are.
        """
        self._store = store
        self._lanes = lanes
        self._ownership = ownership
        self._time = time
        self._random = random
        self._disable_after_us = int(disable_after_s * 1_000_000)
        self._meters = meters or Meters(is_on=False)
        self._waiting = BatchQueue[_Record](in_flight)
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._on_recorded = on_recorded
        self.recorded = 0
        self.batches = 0
        self.is_failing = False
        """Whether the database refused or lost the last batch."""

    def start(self) -> None:
        """Start the recorder's task."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        """Record all queued outcomes, then end."""
        self._is_stopping = True
        self._waiting.stop()
        if self._task is not None:
            await self._task
        await self._store.close()

    def add(self, job: Job, outcome: Outcome, start_us: int) -> None:
        """Queue an outcome; the queue is bounded by the slots of deliveries in flight."""
        config = job.lane.config
        schedule = _DEFAULT_SCHEDULE if config is None else config.schedule
        move = decide(outcome, job.budget(schedule), schedule, self._random.random())
        if isinstance(move, Release):
            advance(DeliveryState.PENDING, move.trigger)  # stays PENDING; nothing is written
            log_internal_error(job, outcome.record)
            if job.trace is not None:
                job.trace.recorded(is_recorded=False)
                job.trace = None
            self._meters.released(outcome.record.kind)
            self._lanes.released(job, move.delay_s)
            self._on_recorded(1)
            return
        record = _Record(job, outcome, move, start_us)
        self._waiting.add(record, is_urgent=job.lane.order is not None)

    async def _run(self) -> None:
        while batch := await self._waiting.next():
            try:
                await self._record(batch)
            except Exception:  # noqa: BLE001 - logged whole; the next batch goes on
                _log.exception("record_broken", deliveries=len(batch))
                self._settle(batch, _NOTHING)
            self._on_recorded(len(batch))
            await self._recover()

    async def _recover(self) -> None:
        """After a failed batch whose buckets were lost, wait until the database answers again."""
        while self.is_failing and not self._is_stopping:
            try:
                await self._store.ping()
                self.is_failing = False
            except TRANSIENT:
                await asyncio.sleep(REPEAT_S)

    async def _record(self, batch: Sequence[_Record]) -> None:
        repeats = 0
        while batch := self._still_ours(batch):
            began_s = perf_counter()
            try:
                rows, may_change = self._rows_of(batch)
                recorded = await self._store.record(
                    self._ownership.node_id,
                    rows,
                    self._consequences_of(batch) if may_change else None,
                )
            except Exception as error:  # noqa: BLE001 - the batch is split until the bad row is found
                if not isinstance(error, REPEATABLE):
                    await self._split(batch, error)
                    return
                # Written again, not sent again: if the first statement committed after all, its
                # rows have another version, and the second statement matches nothing.
                repeats += 1
                pause_s = deadlock_backoff_s(error, repeats, self._random.random())
                if pause_s is None:
                    if self._is_stopping:
                        self._settle(batch, _NOTHING)
                        return
                    log_batch_repeated(len(batch), error)
                    self.is_failing = True
                    pause_s = REPEAT_S
                await asyncio.sleep(pause_s)
            else:
                self.is_failing = False
                self.batches += 1
                self.recorded += len(recorded.matched)
                if self._meters.is_on:
                    took_s = perf_counter() - began_s
                    measure(batch, recorded, self._meters, self._time.unix_ms(), took_s)
                self._settle(batch, recorded)
                return

    def _still_ours(self, batch: Sequence[_Record]) -> Sequence[_Record]:
        """Return the records whose jobs memory still holds; drop the others: their bucket was lost.

        The fence in SQL cannot detect this if the node has registered anew since, because its new
        lease holds. So this is checked before each statement that names the node's id, with no
        await between the two.
        """
        ours = [record for record in batch if record.job.is_known()]
        if len(ours) < len(batch):
            self._settle([record for record in batch if not record.job.is_known()], _NOTHING)
        return ours

    async def _split(self, batch: Sequence[_Record], error: Exception) -> None:
        """Halve a rejected batch until the bad row is alone, then write that row without texts.

        If it is rejected even so, its delivery is put off by `PARK_S` and its attempt is not
        stored, so that it neither loops nor delays other rows. The log names the delivery.
        """
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        (record,) = batch
        job, outcome = record.job, record.outcome
        if outcome.record.error != UNSTORABLE:
            log_unstorable("record_rejected", job, error)
            record.outcome = outcome._replace(record=outcome.record.without_texts(UNSTORABLE))
            await self._record(batch)
            return
        log_unstorable("delivery_parked", job, error)
        if not self._still_ours(batch):
            return
        advance(DeliveryState.PENDING, Trigger.INTERNAL_ERROR)
        await self._store.park(
            self._ownership.node_id, job.lane.bucket, job.delivery_id, job.version, PARK_S
        )
        self._settle(batch, _NOTHING)

    def _rows_of(self, batch: Sequence[_Record]) -> tuple[OutcomeRows, bool]:
        """Return the rows of a batch, and whether it may change a subscription."""
        rows = OutcomeRows()
        may_change = False
        for record in batch:
            job, move = record.job, record.move
            trace_id = job.trace.trace_id if job.trace is not None else None
            row = (job.lane.bucket, job.delivery_id, job.version)
            state = advance(DeliveryState.PENDING, move.trigger)
            if state is not DeliveryState.PENDING:
                is_first = isinstance(move, Succeed) and job.attempt_count == 0
                rows.finish(
                    row,
                    job.message.event.tenant_uid,
                    state,
                    record.outcome.record,
                    None if is_first else record.start_us,
                    trace_id,
                )
            else:
                delay_s = self._delay_left_s(record, move) if isinstance(move, RetryLater) else 0.0
                rows.reschedule(row, delay_s, record.outcome.record, record.start_us, trace_id)
            may_change = may_change or self._may_change_subscription(record)
        return rows, may_change

    def _delay_left_s(self, record: _Record, move: RetryLater) -> float:
        """Return the delay from now: that of the move counts from the attempt's start."""
        elapsed_s = (self._time.unix_us() - record.start_us) / 1_000_000
        return max(0.0, move.delay_s - elapsed_s)

    def _may_change_subscription(self, record: _Record) -> bool:
        """Whether a record may mark its subscription failing or recovered, or disable it."""
        is_failing = record.job.lane.failing_since_us is not None
        match record.move:
            case Succeed():
                return is_failing
            case RetryLater() | Exhaust():
                return not is_failing or self._has_failed_too_long(record)
            case _:
                return True

    def _consequences_of(self, batch: Sequence[_Record]) -> Callable[[set[UUID]], Consequences]:
        def consequences(matched: set[UUID]) -> Consequences:
            failing: dict[UUID, bool] = {}
            recovered: set[UUID] = set()
            disabling: dict[UUID, Disabling] = {}
            for record in batch:
                lane = record.job.lane
                uid = lane.subscription_uid
                if record.job.delivery_id not in matched:
                    continue
                if isinstance(record.move, Succeed):
                    if failing.get(uid, lane.failing_since_us is not None):
                        recovered.add(uid)
                    failing[uid] = False
                    continue
                if uid in failing or lane.failing_since_us is None:
                    failing[uid] = True
                if isinstance(record.move, HoldGone):
                    attempt = record.outcome.record
                    message = GONE if attempt.error == UNSTORABLE else attempt.error
                    disabling[uid] = Disabling(
                        uid, SubscriptionStateReason.GONE, message, attempt.url
                    )
                elif self._has_failed_too_long(record):
                    disabling.setdefault(
                        uid, self._failing_too_long(uid, record.outcome.record.url)
                    )
            return Consequences(
                sorted(recovered),
                sorted(uid for uid, fails in failing.items() if fails),
                [disabling[uid] for uid in sorted(disabling)],
                self._disable_after_us / 1_000_000,
            )

        return consequences

    def _has_failed_too_long(self, record: _Record) -> bool:
        since_us = record.job.lane.failing_since_us
        return since_us is not None and record.start_us - since_us > self._disable_after_us

    def _failing_too_long(self, uid: UUID, url: str) -> Disabling:
        days = self._disable_after_us / 86_400_000_000
        return Disabling(
            uid, SubscriptionStateReason.FAILING, f"every attempt failed for {days:g} days", url
        )

    def _settle(self, batch: Sequence[_Record], recorded: Recorded) -> None:
        """Update the lanes with what was written."""
        lanes = self._lanes
        for record in batch:
            job, move = record.job, record.move
            if record.is_settled:
                continue
            record.is_settled = True
            is_recorded = job.delivery_id in recorded.matched
            if isinstance(move, Exhaust) and is_recorded:
                log_exhausted(record)
            if job.trace is not None:
                job.trace.recorded(is_recorded=is_recorded)
                job.trace = None
            if not is_recorded:
                lanes.mismatched(job)
                continue
            if isinstance(move, Succeed):
                lanes.finished(job)
                lanes.succeeded(job.lane)
                continue
            lanes.failed(job.lane, record.start_us)
            if isinstance(move, RetryLater):
                lanes.rescheduled(job, self._delay_left_s(record, move))
            else:
                lanes.finished(job)
            if job.lane.subscription_uid in recorded.disabled:
                log_disabled(job.lane)
                lanes.disabled(job.lane)
            elif isinstance(move, HoldGone) and job.lane.sends():
                lanes.outdate(job.lane)  # the subscription was changed meanwhile: read it again


def deadlock_backoff_s(error: Exception, repeats: int, unit: float) -> float | None:
    """Return how long to wait after the `repeats`-th failure of a statement, counted from 1.

    None if it was no lost deadlock, or the last of `DEADLOCKS_MAX` in a row. `unit` is uniform in
    [0, 1).
    """
    lost = repeats % DEADLOCKS_MAX
    if not isinstance(error, ContentionError) or not lost:
        return None
    return unit * DEADLOCK_BACKOFF_S * 2.0 ** (lost - 1)
