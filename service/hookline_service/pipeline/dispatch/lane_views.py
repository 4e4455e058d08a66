"""The condition of lanes, for operators: counts, the largest lanes, why a delivery waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from heapq import nlargest
from uuid import UUID

from hookline_service.domain.delivery import DeliveryStateReason
from hookline_service.pipeline.dispatch.lane import Lane


class LaneCondition(StrEnum):
    """What prevents a lane from sending."""

    READY = "READY"
    OPEN = "OPEN"
    """Its circuit is open."""
    LIMITED = "LIMITED"
    """Its rate limit or its concurrency limit is reached."""
    HELD = "HELD"
    """Its subscription is paused or disabled, or the node cannot prepare its target."""


_REASONS = {
    LaneCondition.OPEN: DeliveryStateReason.CIRCUIT_OPEN,
    LaneCondition.LIMITED: DeliveryStateReason.RATE_LIMITED,
}


@dataclass(frozen=True, slots=True)
class LaneCounts:
    """The number of lanes of this node, and of those that something prevents from sending."""

    total: int
    open: int
    limited: int
    held: int


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane for an operator."""

    subscription: str
    subscription_uid: UUID
    bucket: int
    state: str
    """A `LaneCondition`."""
    queued: int
    in_flight: int
    consecutive_failures: int


def counts_of(lanes: Collection[Lane], may_take: Callable[[Lane], bool]) -> LaneCounts:
    """Count lanes by their condition."""
    found = Counter(condition_of(lane, may_take) for lane in lanes)
    return LaneCounts(
        len(lanes),
        found[LaneCondition.OPEN],
        found[LaneCondition.LIMITED],
        found[LaneCondition.HELD],
    )


def top_of(lanes: Collection[Lane], may_take: Callable[[Lane], bool], count: int) -> list[LaneView]:
    """Return the lanes with the most deliveries in memory."""
    return [
        LaneView(
            lane.name,
            lane.subscription_uid,
            lane.bucket,
            condition_of(lane, may_take),
            len(lane.queue),
            lane.in_flight,
            lane.failures,
        )
        for lane in nlargest(count, lanes, key=lambda lane: len(lane.known))
    ]


def reason_of(
    lane: Lane | None, delivery_id: UUID, may_take: Callable[[Lane], bool]
) -> DeliveryStateReason | None:
    """Return why a due delivery waits; None where it is sent, or about to be, or elsewhere."""
    if lane is None:
        return None
    job = lane.known.get(delivery_id)
    if job is not None and job.is_sent:
        return None
    return _REASONS.get(condition_of(lane, may_take))


def condition_of(lane: Lane, may_take: Callable[[Lane], bool]) -> LaneCondition:
    """Return what prevents a lane from sending, or READY."""
    if lane.fault or (lane.config is not None and not lane.sends()):
        return LaneCondition.HELD
    if lane.is_circuit_open:
        return LaneCondition.OPEN
    if lane.queue and not may_take(lane):
        return LaneCondition.LIMITED
    return LaneCondition.READY
