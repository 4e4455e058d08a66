"""Recording: outcomes become moves, and many of them one statement.

A record names the version it saw; what matched is carried into the lanes, what did not was somebody
else's meanwhile and is forgotten. Circuit and disabling act on what matched, disabling in the same
transaction. Nothing is lost where a record fails: its row is still pending, and goes out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from time import perf_counter
from typing import assert_never
from uuid import UUID

import structlog

from hookline_service.domain.attempt import AttemptOutcome, Outcome
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
from hookline_service.domain.instants import from_unix_us
from hookline_service.domain.retry import RetrySchedule
from hookline_service.domain.subscription import SubscriptionStateReason
from hookline_service.pipeline.batch_queue import BatchQueue
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.db_errors import (
    REPEAT_S,
    deadlock_backoff_s,
    is_transient,
    tell_repeated,
    tell_unstorable,
)
from hookline_service.pipeline.dispatch.lane import Job
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.outcome_log import (
    measure,
    tell_disabled,
    tell_exhausted,
    tell_own_fault,
)
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.store.database import TRANSIENT
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
"""How long a delivery waits whose outcome cannot be stored."""
UNSTORABLE = "the answer could not be stored as it came"
_DEFAULT_SCHEDULE = RetrySchedule()
_NOTHING = Recorded(frozenset(), frozenset())


@dataclass(slots=True)
class _Record:
    job: Job
    outcome: Outcome
    move: Move
    start_us: int
    is_settled: bool = False
    """Carried into its lane, which happens once."""


class Recorder:
    """Writes outcomes, one batch at a time; the next one gathers meanwhile."""

    def __init__(
        self,
        store: RecordStore,
        lanes: Lanes,
        ownership: Ownership,
        time: DatabaseTime,
        random: Random,
        *,
        disable_after_s: float = DISABLE_AFTER_S,
        meters: Meters | None = None,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._ownership = ownership
        self._time = time
        self._random = random
        self._disable_after_us = int(disable_after_s * 1_000_000)
        self._meters = meters or Meters(is_on=False)
        self._waiting = BatchQueue[_Record]()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.on_recorded: Callable[[int], None] = lambda _count: None
        """Called with the number of deliveries that are no longer in flight."""
        self.recorded = 0
        self.batches = 0
        self.is_failing = False
        """Whether the last batch could not be written, by the database's doing."""

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    def watch(self, in_flight: Callable[[], int]) -> None:
        """Have it ask how many deliveries are sent and not yet recorded."""
        self._waiting.coming = in_flight

    async def stop(self) -> None:
        """Record what is waiting, then end."""
        self._is_stopping = True
        self._waiting.stop()
        if self._task is not None:
            await self._task
        await self._store.close()

    def add(self, job: Job, outcome: Outcome, start_us: int) -> None:
        """Take an outcome in; bounded by the slots of what is in flight."""
        config = job.lane.config
        schedule = _DEFAULT_SCHEDULE if config is None else config.schedule
        move = decide(outcome, job.budget(schedule), schedule, self._random.random())
        if isinstance(move, Release):
            tell_own_fault(job, outcome)
            if job.trace is not None:
                job.trace.recorded(is_recorded=False)
                job.trace = None
            self._meters.released(outcome.kind)
            self._lanes.released(job, move.delay_s)
            self.on_recorded(1)
            return
        record = _Record(job, outcome, move, start_us)
        self._waiting.add(record, hurries=job.lane.order is not None)

    async def _run(self) -> None:
        while batch := await self._waiting.next():
            try:
                await self._record(batch)
            except Exception:  # noqa: BLE001 - logged whole; the next batch goes on
                _log.exception("record_broken", deliveries=len(batch))
                self._settle(batch, _NOTHING)
            self.on_recorded(len(batch))
            await self._recover()

    async def _recover(self) -> None:
        """Where a batch was given up, since its buckets were: wait until there is a session."""
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
                rows, may_turn = self._rows_of(batch)
                recorded = await self._store.record(
                    self._ownership.node_id,
                    rows,
                    self._consequences_of(batch) if may_turn else None,
                )
            except Exception as error:  # noqa: BLE001 - a row that cannot be written is found
                if not is_transient(error):
                    await self._split(batch, error)
                    return
                # Written again, not sent again: what had committed after all has another version by
                # now, and the second one matches nothing.
                repeats += 1
                pause_s = deadlock_backoff_s(error, repeats, self._random.random())
                if pause_s is None:
                    if self._is_stopping:
                        self._settle(batch, _NOTHING)
                        return
                    tell_repeated(len(batch), error)
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
        """What memory has forgotten is somebody else's: its bucket was lost.

        The fence cannot tell where this node has registered anew since: its new lease holds. So it
        is asked before each statement that names the node's id, with no await between the two.
        """
        ours = [record for record in batch if record.job.is_known()]
        if len(ours) < len(batch):
            self._settle([record for record in batch if not record.job.is_known()], _NOTHING)
        return ours

    async def _split(self, batch: Sequence[_Record], error: Exception) -> None:
        """One row poisons the statement: halve until it stands alone, then write it without words.

        A row that cannot be written even so is put off, with nothing said of its attempt: it is no
        loop, and hides no other row of its lane. The log says which.
        """
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        (record,) = batch
        job, outcome = record.job, record.outcome
        if outcome.error != UNSTORABLE:
            tell_unstorable("record_rejected", job, error)
            record.outcome = replace(outcome, error=UNSTORABLE, excerpt=b"", remote_address=None)
            await self._record(batch)
            return
        tell_unstorable("delivery_parked", job, error)
        if not self._still_ours(batch):
            return
        await self._store.park(
            self._ownership.node_id, job.lane.bucket, job.delivery_id, job.version, PARK_S
        )
        self._settle(batch, _NOTHING)

    def _rows_of(self, batch: Sequence[_Record]) -> tuple[OutcomeRows, bool]:
        """The rows of a batch, and whether it may turn a subscription."""
        rows = OutcomeRows()
        may_turn = False
        for record in batch:
            job, outcome, move = record.job, record.outcome, record.move
            lane = job.lane
            match move:
                case Succeed():
                    may_turn = may_turn or lane.failing_since_us is not None
                    rows.finished.append(_finished(record, Trigger.ACCEPTED))
                case Exhaust():
                    may_turn = True
                    rows.finished.append(_finished(record, Trigger.FAILED_LAST))
                case RetryLater():
                    may_turn = may_turn or self._may_turn_by_failure(record)
                    elapsed_s = (self._time.unix_us() - record.start_us) / 1_000_000
                    rows.rescheduled.append(
                        _rescheduled(
                            job, outcome, max(0.0, move.delay_s - elapsed_s), record.start_us
                        )
                    )
                case HoldGone():
                    may_turn = True
                    rows.rescheduled.append(_rescheduled(job, outcome, 0.0, record.start_us))
                case Release():
                    raise AssertionError("a release is never recorded")
                case _:
                    assert_never(move)
        return rows, may_turn

    def _may_turn_by_failure(self, record: _Record) -> bool:
        return record.job.lane.failing_since_us is None or self._has_failed_too_long(record)

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
                    disabling[uid] = Disabling(
                        uid,
                        SubscriptionStateReason.GONE,
                        "the target answered 410 Gone",
                        record.outcome.url,
                    )
                elif self._has_failed_too_long(record):
                    disabling.setdefault(uid, self._failing_too_long(uid, record.outcome.url))
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
        """Carry what was written into the lanes."""
        lanes = self._lanes
        for record in batch:
            job, move = record.job, record.move
            if record.is_settled:
                continue
            record.is_settled = True
            is_recorded = job.delivery_id in recorded.matched
            if isinstance(move, Exhaust) and is_recorded:
                tell_exhausted(record)
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
                elapsed_s = (self._time.unix_us() - record.start_us) / 1_000_000
                lanes.rescheduled(job, max(0.0, move.delay_s - elapsed_s))
            else:
                lanes.finished(job)
            if job.lane.subscription_uid in recorded.disabled:
                tell_disabled(job.lane)
                lanes.disabled(job.lane)
            elif isinstance(move, HoldGone) and job.lane.sends():
                lanes.outdate(job.lane)  # changed meanwhile: its row says what is to be done


def _finished(record: _Record, trigger: Trigger) -> tuple[object, ...]:
    """A row that leaves the hot table; a first-attempt success keeps its attempt in itself."""
    job, outcome = record.job, record.outcome
    lane = job.lane
    state = advance(DeliveryState.PENDING, trigger)
    is_first = outcome.kind is AttemptOutcome.ACCEPTED and job.attempt_count == 0
    return (
        lane.bucket,
        job.delivery_id,
        job.version,
        job.message.event.tenant_uid,
        state,
        outcome.http_status,
        outcome.latency_us,
        outcome.url,
        outcome.remote_address,
        *(
            (None, None, None, None, None)
            if is_first
            else (
                outcome.kind,
                from_unix_us(record.start_us),
                outcome.error.encode(errors="replace"),
                outcome.excerpt,
                job.trace and job.trace.trace_id,
            )
        ),
    )


def _rescheduled(job: Job, outcome: Outcome, delay_s: float, start_us: int) -> tuple[object, ...]:
    """A row that stays: the target failed, and is tried again or held."""
    return (
        job.lane.bucket,
        job.delivery_id,
        job.version,
        delay_s,
        outcome.http_status,
        outcome.latency_us,
        outcome.url,
        outcome.remote_address,
        outcome.kind,
        from_unix_us(start_us),
        outcome.error.encode(errors="replace"),
        outcome.excerpt,
        job.trace and job.trace.trace_id,
    )
