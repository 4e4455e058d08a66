"""What waits in memory for its time: retries of the next minute, with a quota for each lane.

Later ones, and those beyond the quota, stay in Postgres alone: the sweep finds them in time.
"""

from __future__ import annotations

from collections.abc import Callable

from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher
from hookline_service.pipeline.dispatch.lane import Job, Lane
from hookline_service.pipeline.dispatch.queue_budget import QueueBudget
from hookline_service.pipeline.timers import Timers

TIMER_HORIZON_S = 60.0
"""What is due within this waits in memory; later ones stay in Postgres alone."""
TIMERS_PER_LANE = 100


class DelayQueue:
    """Deliveries, and keys of ordered lanes, that are due soon."""

    def __init__(
        self, clock: Clock, timers: Timers, shares: QueueBudget, sending: Dispatcher
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._shares = shares
        self._sending = sending

    def keep(self, job: Job, delay_s: float) -> bool:
        """Keep a job in memory until its time; False where it is left to Postgres."""
        lane, size = job.lane, job.data_bytes
        if (
            not _has_timer(lane, delay_s)
            or lane.is_gone
            or not lane.sends()
            or not self._shares.allows(lane.bytes_held, size)
        ):
            lane.drop(job)
            lane.mark_dirty()
            return False
        lane.timed += 1
        self._shares.hold(lane, size)
        self._timers.add(self._clock.boottime_s() + delay_s, lambda: self._due(job))
        return True

    def _due(self, job: Job) -> None:
        lane = job.lane
        lane.timed -= 1
        self._shares.release(lane, job.data_bytes)
        if not job.is_known():
            return
        if lane.sends():
            self._sending.enqueue(job)
        else:
            lane.drop(job)
            lane.mark_dirty()

    def keep_key(
        self, lane: Lane, key_hash: int, delay_s: float, then: Callable[[Lane, int], None]
    ) -> None:
        """Call `then` once the earliest delivery of a key is due; once, however often it is asked.

        The delivery itself is not kept: another one may be the earliest by then.
        """
        order = lane.order
        if order is None or key_hash in order.waiting or not _has_timer(lane, delay_s):
            return

        def end() -> None:
            lane.timed -= 1
            order.waiting.discard(key_hash)
            then(lane, key_hash)

        lane.timed += 1
        order.waiting.add(key_hash)
        self._timers.add(self._clock.boottime_s() + delay_s, end)


def _has_timer(lane: Lane, delay_s: float) -> bool:
    return delay_s <= TIMER_HORIZON_S and lane.timed < TIMERS_PER_LANE
