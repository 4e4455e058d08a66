"""Logs and metrics of recorded outcomes.

A success is counted and never logged. What an operator will look for (a delivery that was given up,
an open circuit, a disabled subscription) is one log line with the ids that lead to the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import structlog

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord, Outcome
from hookline_service.domain.delivery import DeliveryState, Exhaust, Move, Succeed
from hookline_service.domain.ids import DELIVERY_ID, format_type_id, unix_ms_of
from hookline_service.pipeline.dispatch.lane import Job, Lane
from hookline_service.store.database import RejectedError
from hookline_service.store.recording import Recorded
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

_MILLISECONDS = 1_000


class JobOutcome(Protocol):
    """An attempt's outcome and the move that it decided."""

    @property
    def job(self) -> Job:
        """The delivery."""

    @property
    def outcome(self) -> Outcome:
        """The attempt's outcome."""

    @property
    def move(self) -> Move:
        """The delivery's move."""


def measure(
    batch: Sequence[JobOutcome], recorded: Recorded, meters: Meters, now_ms: int, took_s: float
) -> None:
    """Count a stored batch; `now_ms` is database time in Unix milliseconds."""
    attempts: defaultdict[AttemptOutcome, list[int]] = defaultdict(list)
    delivered_s: list[float] = []
    finished: Counter[DeliveryState] = Counter()
    matched, lost = recorded.matched, 0
    for item in batch:
        job, attempt = item.job, item.outcome.record
        if job.delivery_id not in matched:
            lost += 1
            continue
        attempts[attempt.kind].append(attempt.latency_us)
        if isinstance(item.move, Succeed):
            accepted_ms = unix_ms_of(job.message.event.event_id)
            delivered_s.append(max(0, now_ms - accepted_ms) / _MILLISECONDS)
        elif isinstance(item.move, Exhaust):
            finished[DeliveryState.EXHAUSTED] += 1
    if delivered_s:
        finished[DeliveryState.SUCCEEDED] = len(delivered_s)
    meters.recorded(attempts, delivered_s, finished, lost=lost, took_s=took_s)


def log_exhausted(item: JobOutcome) -> None:
    """Log that a delivery became a dead letter."""
    job, attempt = item.job, item.outcome.record
    _log.warning(
        "delivery_exhausted",
        event_id=job.message.webhook_id,
        delivery=format_type_id(DELIVERY_ID, job.delivery_id),
        subscription=job.lane.name,
        attempt=job.attempt_count + 1,
        outcome=attempt.kind.value,
        http_status=attempt.http_status,
        error=attempt.error,
        trace_id=None if job.trace is None else job.trace.trace_text,
    )


def log_internal_error(job: Job, attempt: AttemptRecord) -> None:
    """Log an attempt that failed for a reason of our own: it is not recorded and is made again.

    This includes a bucket that moved, or a delivery that was cancelled, during the attempt.
    """
    _log.warning(
        "internal_error",
        reason=attempt.error,
        event_id=job.message.webhook_id,
        delivery=format_type_id(DELIVERY_ID, job.delivery_id),
        subscription=job.lane.name,
        attempt=job.attempt_count + 1,
        trace_id=None if job.trace is None else job.trace.trace_text,
    )


def log_circuit_opened(lane: Lane, rests_s: float) -> None:
    """Log that a target failed so often in a row that only probes are sent."""
    _log.warning(
        "circuit_opened",
        subscription=lane.name,
        failures=lane.failures,
        next_probe_in_s=round(rests_s, 1),
    )


def log_disabled(lane: Lane) -> None:
    """Log that the engine disabled a subscription."""
    _log.warning("subscription_disabled", subscription=lane.name)


def log_batch_repeated(deliveries: int, error: Exception) -> None:
    """Log that a batch waits for a database in trouble."""
    first_line = str(error).partition("\n")[0]
    _log.warning("record_retried", deliveries=deliveries, error=first_line)


def log_unstorable(event: str, job: Job, error: Exception) -> None:
    """Log a delivery whose outcome the server rejects.

    Of the server's message only the first line: the others quote the row, and data of others.
    """
    is_ours = not isinstance(error, RejectedError)
    _log.error(
        event,
        delivery=str(job.delivery_id),
        sqlstate=error.sqlstate if isinstance(error, RejectedError) else "",
        error=str(error).partition("\n")[0],
        exc_info=error if is_ours else None,
    )
