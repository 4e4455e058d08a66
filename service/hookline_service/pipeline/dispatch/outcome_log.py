"""What is told of recorded outcomes: measurements of a batch, and a line where a reader is needed.

A success is counted and never logged; what an operator will ask about (a delivery that was given
up, a circuit that opened, a subscription that was turned off) is one line, with all it takes to
find the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import structlog

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.delivery import DeliveryState, Exhaust, Move, Succeed
from hookline_service.domain.ids import DELIVERY_ID, format_type_id, unix_ms_of
from hookline_service.pipeline.dispatch.lane import Job, Lane
from hookline_service.store.recording import Recorded
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

_MILLISECONDS = 1_000


class Told(Protocol):
    """An outcome and what it moved."""

    @property
    def job(self) -> Job:
        """The delivery."""

    @property
    def outcome(self) -> Outcome:
        """What the attempt came to."""

    @property
    def move(self) -> Move:
        """Where that leads."""


def measure(
    batch: Sequence[Told], recorded: Recorded, meters: Meters, now_ms: int, took_s: float
) -> None:
    """Count a batch that one statement stored; `now_ms` is database time, Unix milliseconds."""
    attempts: defaultdict[AttemptOutcome, list[int]] = defaultdict(list)
    delivered_s: list[float] = []
    finished: Counter[DeliveryState] = Counter()
    matched, lost = recorded.matched, 0
    for told in batch:
        job, outcome = told.job, told.outcome
        if job.delivery_id not in matched:
            lost += 1
            continue
        attempts[outcome.kind].append(outcome.latency_us)
        if isinstance(told.move, Succeed):
            accepted_ms = unix_ms_of(job.message.event.event_id)
            delivered_s.append(max(0, now_ms - accepted_ms) / _MILLISECONDS)
        elif isinstance(told.move, Exhaust):
            finished[DeliveryState.EXHAUSTED] += 1
    if delivered_s:
        finished[DeliveryState.SUCCEEDED] = len(delivered_s)
    meters.recorded(attempts, delivered_s, finished, lost=lost, took_s=took_s)


def tell_exhausted(told: Told) -> None:
    """A delivery was given up: it waits among the dead letters for somebody."""
    job, outcome = told.job, told.outcome
    _log.warning(
        "delivery_exhausted",
        event_id=job.message.webhook_id,
        delivery=format_type_id(DELIVERY_ID, job.delivery_id),
        subscription=name_of(job.lane),
        attempt=job.attempt_count + 1,
        outcome=outcome.kind.value,
        http_status=outcome.http_status,
        error=outcome.error,
        trace_id=None if job.trace is None else job.trace.trace_text,
    )


def tell_own_fault(job: Job, outcome: Outcome) -> None:
    """An attempt failed by our own doing: nothing is recorded of it, and it is made again.

    Also where a bucket moved or somebody cancelled the delivery meanwhile, which passes.
    """
    _log.warning(
        "internal_error",
        reason=outcome.error,
        event_id=job.message.webhook_id,
        delivery=format_type_id(DELIVERY_ID, job.delivery_id),
        subscription=name_of(job.lane),
        attempt=job.attempt_count + 1,
        trace_id=None if job.trace is None else job.trace.trace_text,
    )


def tell_circuit_opened(lane: Lane, rests_s: float) -> None:
    """A target has failed so often in a row that only probes go out."""
    _log.warning(
        "circuit_opened",
        subscription=name_of(lane),
        failures=lane.failures,
        next_probe_in_s=round(rests_s, 1),
    )


def tell_disabled(lane: Lane) -> None:
    """The engine turned a subscription off."""
    _log.warning("subscription_disabled", subscription=name_of(lane))


def name_of(lane: Lane) -> str:
    """The subscription's name, or its uid where that is all that is known."""
    return str(lane.subscription_uid) if lane.config is None else lane.config.name
