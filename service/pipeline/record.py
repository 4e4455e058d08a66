"""Recording: outcomes become moves, and many of them one statement.

A record names the version it saw; what matched is carried into the lanes, what did not was somebody
else's meanwhile and is forgotten. Circuit and disabling act on what matched, disabling in the same
transaction. Nothing is lost where a record fails: its row is still pending, and goes out again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

import structlog

from service.domain.attempt import AttemptOutcome
from service.domain.delivery import (
    DeliveryState,
    Exhaust,
    HoldGone,
    Release,
    RetryLater,
    Succeed,
    Trigger,
    advance,
    decide,
)
from service.domain.errors import UnavailableError
from service.domain.instants import from_unix_us
from service.domain.retry import RetrySchedule
from service.domain.subscription import SubscriptionStateReason
from service.store.database import ContentionError, OutcomeUnknownError, RejectedError
from service.store.recording import Consequences, Disabling, OutcomeRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random
    from uuid import UUID

    from service.domain.attempt import Outcome
    from service.domain.delivery import Move
    from service.pipeline.clock import DatabaseTime
    from service.pipeline.lane import Job
    from service.pipeline.lanes import Lanes
    from service.pipeline.ownership import Ownership
    from service.store.recording import RecordStore

_log = structlog.get_logger(__name__)

MAX_BATCH = 1_000
REPEAT_S = 0.2
DISABLE_AFTER_S = 5 * 86_400.0
UNSTORABLE = "the answer could not be stored as it came"
_DEFAULT_SCHEDULE = RetrySchedule()


@dataclass(slots=True)
class _Record:
    job: Job
    outcome: Outcome
    move: Move
    start_us: int


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
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._ownership = ownership
        self._time = time
        self._random = random
        self._disable_after_us = int(disable_after_s * 1_000_000)
        self._waiting: list[_Record] = []
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.on_recorded: Callable[[int], None] = lambda _count: None
        """Called with the number of deliveries that are no longer in flight."""
        self.recorded = 0
        self.batches = 0

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        """Record what is waiting, then end."""
        self._is_stopping = True
        self._has_work.set()
        if self._task is not None:
            await self._task
        await self._store.close()

    def add(self, job: Job, outcome: Outcome, start_us: int) -> None:
        """Take an outcome in; bounded by the slots of what is in flight."""
        config = job.lane.config
        schedule = _DEFAULT_SCHEDULE if config is None else config.schedule
        move = decide(outcome, job.budget(schedule), schedule, self._random.random())
        if isinstance(move, Release):
            self._lanes.released(job, move.delay_s)
            self.on_recorded(1)
            return
        self._waiting.append(_Record(job, outcome, move, start_us))
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            if not self._waiting:
                if self._is_stopping:
                    return
                self._has_work.clear()
                continue
            batch = self._waiting[:MAX_BATCH]
            del self._waiting[:MAX_BATCH]
            try:
                await self._record(batch)
            except Exception:
                _log.exception("record_broken", deliveries=len(batch))
                self._settle(batch, set())
            self.on_recorded(len(batch))

    async def _record(self, batch: Sequence[_Record]) -> None:
        rows, may_turn = self._rows_of(batch)
        consequences = self._consequences_of(batch) if may_turn else None
        while True:
            try:
                matched = await self._store.record(self._ownership.node_id, rows, consequences)
            except ContentionError:
                continue
            except RejectedError as error:
                await self._split(batch, error)
                return
            except OutcomeUnknownError:
                # It may have committed: what did no longer matches its version, what did not is
                # still pending. Either way memory knows nothing of these rows any more.
                _log.warning("record_answer_lost", deliveries=len(batch))
                self._settle(batch, set())
                return
            except UnavailableError:
                if self._is_stopping:
                    self._settle(batch, set())
                    return
                await asyncio.sleep(REPEAT_S)
                continue
            break
        self.batches += 1
        self.recorded += len(matched)
        self._settle(batch, matched)

    async def _split(self, batch: Sequence[_Record], error: RejectedError) -> None:
        """One row poisons the statement: halve until it stands alone, then write it without words.

        A row that cannot even be written so stays where it is: in memory, pending, and not sent
        again until this node starts anew. The log says which.
        """
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._record(batch[:middle])
            await self._record(batch[middle:])
            return
        (record,) = batch
        _log.error(
            "record_rejected",
            delivery=str(record.job.delivery_id),
            sqlstate=error.sqlstate,
            error=str(error),
        )
        if record.outcome.error != UNSTORABLE:
            plain = replace(record.outcome, error=UNSTORABLE, excerpt=b"", remote_address=None)
            await self._record([replace(record, outcome=plain)])

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
        since_us = record.job.lane.failing_since_us
        return since_us is None or record.start_us - since_us > self._disable_after_us

    def _consequences_of(self, batch: Sequence[_Record]) -> Callable[[set[UUID]], Consequences]:
        def consequences(matched: set[UUID]) -> Consequences:
            effect = Consequences()
            failing: set[UUID] = set()
            recovered: set[UUID] = set()
            disabling: dict[UUID, Disabling] = {}
            for record in batch:
                lane = record.job.lane
                uid = lane.subscription_uid
                if record.job.delivery_id not in matched:
                    continue
                if isinstance(record.move, Succeed):
                    failing.discard(uid)
                    recovered.add(uid)
                    continue
                if lane.failing_since_us is None:
                    failing.add(uid)
                if isinstance(record.move, HoldGone):
                    disabling[uid] = Disabling(
                        uid, SubscriptionStateReason.GONE, "the target answered 410 Gone"
                    )
                elif self._has_failed_too_long(record):
                    disabling.setdefault(uid, self._failing_too_long(uid))
            effect.failing = sorted(failing)
            effect.recovered = sorted(recovered - failing)
            effect.disabling = [disabling[uid] for uid in sorted(disabling)]
            return effect

        return consequences

    def _has_failed_too_long(self, record: _Record) -> bool:
        since_us = record.job.lane.failing_since_us
        return since_us is not None and record.start_us - since_us > self._disable_after_us

    def _failing_too_long(self, uid: UUID) -> Disabling:
        days = self._disable_after_us / 86_400_000_000
        return Disabling(
            uid, SubscriptionStateReason.FAILING, f"every attempt failed for {days:g} days"
        )

    def _settle(self, batch: Sequence[_Record], matched: set[UUID]) -> None:
        """Carry what was written into the lanes."""
        lanes = self._lanes
        for record in batch:
            job, move = record.job, record.move
            if job.delivery_id not in matched:
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
            if isinstance(move, HoldGone) or self._has_failed_too_long(record):
                lanes.disabled(job.lane)


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
            (None, None, None, None)
            if is_first
            else (
                outcome.kind,
                from_unix_us(record.start_us),
                outcome.error.encode(),
                outcome.excerpt,
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
        outcome.error.encode(),
        outcome.excerpt,
    )
