"""How much of a node's memory each lane may take, so that the slow ones never have all of it.

A lane may hold a quarter of what is left, of places and of bytes alike: the more lanes there are,
the smaller each one's part, and there is always some left for one more. Two small reserves lie
beyond: `LANE_QUEUE_MIN` places, and one event for a lane that holds none.
"""

from __future__ import annotations

from hookline_service.pipeline.dispatch.lane import Lane

LANE_QUEUE_MIN, LANE_QUEUE_MAX = 16, 4_000
SHARE = 4
PACED_S = 60
"""A lane with a rate holds no more than it can send in this time."""


class QueueBudget:
    """What is held, of what may be."""

    __slots__ = ("bytes", "jobs", "max_bytes", "max_jobs")

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.jobs = 0
        """Deliveries that are queued."""
        self.bytes = 0
        """Event data of deliveries that are queued or wait for their time."""

    def room(self, lane: Lane) -> int:
        """How many more deliveries a lane may queue; below zero where it holds too many."""
        if lane.is_circuit_open:
            return 1 - len(lane.queue)
        most = min(LANE_QUEUE_MAX, max(LANE_QUEUE_MIN, (self.max_jobs - self.jobs) // SHARE))
        if lane.config is not None and lane.config.max_per_second is not None:
            paced = int(lane.config.max_per_second * PACED_S)
            most = min(most, max(LANE_QUEUE_MIN, paced))
        return most - len(lane.queue)

    def allows(self, held: int, size: int, coming: int = 0) -> bool:
        """Whether a lane that holds so many bytes may take `size` more.

        `coming`: bytes that others are about to take. A lane that holds nothing may have one event
        of whatever size, until twice the bytes that may be held are: then nobody gets any.
        """
        if not held:
            return self.bytes + coming < 2 * self.max_bytes
        return held + size <= (self.max_bytes - self.bytes - coming) // SHARE

    def is_low(self, lane: Lane) -> bool:
        """Whether a lane holds so little that a read for it is worth its while."""
        room = self.room(lane)
        if room <= 0 or len(lane.queue) > room:
            return False
        return self.allows(lane.bytes_held, lane.bytes_held)

    def hold(self, lane: Lane, size: int) -> None:
        """A lane takes bytes."""
        self.bytes += size
        lane.bytes_held += size

    def release(self, lane: Lane, size: int) -> None:
        """A lane gives them back."""
        self.bytes -= size
        lane.bytes_held -= size
