"""Dispatch: which lane sends next, and how many deliveries may wait in memory.

A lane may send while it has queued jobs, its subscription allows sending, its concurrency limit,
rate limit and circuit allow one more request, and its bucket is not suspended. Such lanes take
turns, within their tenant and between tenants (`FairScheduler`), unless the tenant has used its
share of the in-flight slots: `TENANT_SHARE` times the free slots. So a tenant whose targets all
hang leaves slots for other tenants.

Targets of many tenants may hang at the same time. A lane is suspect until its target has answered
with success, and again after a failure or `SILENT_S` without an answer; all suspect lanes together
use at most half of the in-flight slots. Suspect lanes beyond that are held back, and join the turns
again one by one.

`QueueBudget` bounds the memory of queued deliveries; `DelayQueue` holds deliveries that come due
within the next minute.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from uuid import UUID

from hookline_service.domain.attempt import Outcome, Verdict
from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.lane import Job, Lane
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue
from hookline_service.pipeline.timers import Timers

TENANT_SHARE = 4
SILENT_S = 1.0
"""A target without an answer for this long, while requests are on the wire, may hang."""
LANE_QUEUE_MIN, LANE_QUEUE_MAX = 16, 4_000
QUEUE_SHARE = 4
RATE_LIMITED_QUEUE_S = 60
"""A lane with a rate limit queues no more than it can send in this time."""
TIMER_HORIZON_S = 60.0
"""Deliveries that are due within this time wait in memory; later ones in Postgres alone."""
TIMERS_PER_LANE = 100


class QueueBudget:
    """The memory that queued and delayed deliveries take, and its bounds.

    A lane may hold a quarter of what is left, in jobs and in bytes: the more lanes there are, the
    smaller the share of each, and one more lane always gets something. Two small reserves exceed
    the bounds: `LANE_QUEUE_MIN` jobs, and one event for a lane that holds none.
    """

    __slots__ = ("bytes", "jobs", "max_bytes", "max_jobs")

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.jobs = 0
        """Queued deliveries."""
        self.bytes = 0
        """Event data of deliveries that are queued or wait for their due time."""

    def free_jobs(self, lane: Lane) -> int:
        """Return how many more jobs a lane may queue; negative where it queues too many."""
        if lane.circuit_backoff_s > 0:  # open or half-open: one probe
            return 1 - len(lane.queue)
        most = min(LANE_QUEUE_MAX, max(LANE_QUEUE_MIN, (self.max_jobs - self.jobs) // QUEUE_SHARE))
        if lane.config is not None and lane.config.max_per_second is not None:
            sendable = int(lane.config.max_per_second * RATE_LIMITED_QUEUE_S)
            most = min(most, max(LANE_QUEUE_MIN, sendable))
        return most - len(lane.queue)

    def allows(self, held_bytes: int, size: int, reserved_bytes: int = 0) -> bool:
        """Whether a lane that holds `held_bytes` may take `size` more.

        `reserved_bytes` are about to be taken by others. A lane that holds nothing may take one
        event of any size, until twice `max_bytes` are held: then no lane takes any.
        """
        if not held_bytes:
            return self.bytes + reserved_bytes < 2 * self.max_bytes
        return held_bytes + size <= (self.max_bytes - self.bytes - reserved_bytes) // QUEUE_SHARE

    def is_low(self, lane: Lane) -> bool:
        """Whether a lane holds so little that reading for it is worth a statement."""
        free = self.free_jobs(lane)
        if free <= 0 or len(lane.queue) > free:
            return False
        return self.allows(lane.bytes_held, lane.bytes_held)

    def add_queued(self, size: int) -> None:
        """Count a job of so many bytes that is queued."""
        self.jobs += 1
        self.bytes += size

    def remove_queued(self, size: int) -> None:
        """Stop counting a job that left its queue."""
        self.jobs -= 1
        self.bytes -= size

    def add_delayed(self, size: int) -> None:
        """Count the bytes of a job that waits for its due time."""
        self.bytes += size

    def remove_delayed(self, size: int) -> None:
        """Stop counting them."""
        self.bytes -= size


class FairScheduler:
    """The lanes that may send: they take turns within their tenant, and tenants between them.

    A tenant has a place in the round exactly while one of its lanes has one, and a lane has at most
    one. So a tenant with a thousand busy lanes gets one turn in a round, like a tenant with one.
    """

    def __init__(self) -> None:
        self.scheduled: set[Lane] = set()
        """All lanes that have a place."""
        self._round: deque[UUID] = deque()
        self._lanes: dict[UUID, deque[Lane]] = {}

    def join(self, lane: Lane, tenant_uid: UUID) -> None:
        """Put a lane behind the tenant's other lanes; no effect where it has a place already."""
        if lane in self.scheduled:
            return
        self.scheduled.add(lane)
        lanes = self._lanes.get(tenant_uid)
        if lanes is None:
            lanes = self._lanes[tenant_uid] = deque()
            self._round.append(tenant_uid)
        lanes.append(lane)

    def __bool__(self) -> bool:
        """Whether any lane has a place."""
        return bool(self._round)

    def next(self, may_send: Callable[[UUID], bool]) -> Lane | None:
        """Remove and return the lane whose turn it is; it joins again where it has more to send.

        A tenant for which `may_send` is false is passed over and keeps its place.
        """
        for _ in range(len(self._round)):
            tenant_uid = self._round.popleft()
            if may_send(tenant_uid):
                return self._pop_first(tenant_uid)
            self._round.append(tenant_uid)
        return None

    def _pop_first(self, tenant_uid: UUID) -> Lane:
        lanes = self._lanes[tenant_uid]
        lane = lanes.popleft()
        self.scheduled.discard(lane)
        if lanes:
            self._round.append(tenant_uid)
        else:
            del self._lanes[tenant_uid]
        return lane


class Dispatcher:
    """The queues of all lanes, and the turns in which their jobs are sent."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        budget: QueueBudget,
        refill_queue: RefillQueue,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_drained: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a dispatcher without jobs.

        `on_ready` is called when one more job may be sent, `on_drained` when a lane of a
        suspended bucket has no unrecorded job any more.
        """
        self.budget = budget
        self._clock = clock
        self._timers = timers
        self._refill_queue = refill_queue
        self._on_ready = on_ready
        self._on_drained = on_drained
        self._scheduler = FairScheduler()
        self._scheduled = self._scheduler.scheduled
        self._suspended: set[int] = set()
        """Buckets of which nothing is sent."""
        self._in_flight: dict[UUID, int] = {}
        """Jobs of each tenant that are sent and not recorded."""
        self._trusted_in_flight = self._suspect_in_flight = 0
        """The same, of lanes whose target answers, and of suspect lanes."""
        self._held_back: OrderedDict[Lane, None] = OrderedDict()
        """Suspect lanes whose turn came when suspect lanes had all the slots that they may use."""

    # ------------------------------------------------------------------------- sent jobs

    def has_ready(self) -> bool:
        """Whether a lane waits for its turn."""
        return bool(self._scheduler) or bool(self._held_back)

    def take(self, free_slots: int) -> Job | None:
        """Remove and return the next job to send; None where no lane may send.

        `free_slots` is how many more deliveries may be in flight, at least 1.
        """
        in_flight, most = self._in_flight, TENANT_SHARE * free_slots

        def may_send(tenant_uid: UUID) -> bool:
            return in_flight.get(tenant_uid, 0) < most

        self._resume_one(free_slots)
        while (lane := self._scheduler.next(may_send)) is not None or self._resume_one(free_slots):
            if lane is None:
                continue
            now_s = self._clock.boottime_s()
            if lane.in_flight and not lane.is_suspect and now_s - lane.answered_s > SILENT_S:
                self._set_suspect(lane, is_suspect=True)
            if lane.is_suspect and not self._may_send_suspect(free_slots):
                self._held_back[lane] = None
                continue
            job = self._take_from(lane, now_s)
            self._schedule(lane)
            if job is not None:
                return job
        return None

    def answered(self, job: Job, outcome: Outcome) -> None:
        """Take in an answer: the request no longer counts against the concurrency limit."""
        lane = job.lane
        lane.end_request(outcome, self._clock.boottime_s())
        verdict = outcome.verdict
        if verdict is not Verdict.INTERNAL_ERROR:
            self._set_suspect(lane, is_suspect=verdict is not Verdict.ACCEPTED)
        self.list_if_ready(lane)

    def recorded(self, job: Job) -> None:
        """Take in a record: the job is no longer in flight. No effect where it was not sent.

        A lane whose target fails sends its next job only now.
        """
        lane = job.lane
        if not job.is_sent:
            return
        lane.end_attempt(job)
        self._count_in_flight(job, -1)
        if lane.answered_failures or lane.circuit_backoff_s > 0:
            self.list_if_ready(lane)
        if self._suspended and not lane.unrecorded and lane.bucket in self._suspended:
            self._on_drained()

    def may_take(self, lane: Lane) -> bool:
        """Whether the lane's next job may be sent now."""
        if not lane.queue or not lane.has_capacity() or not lane.sends():
            return False
        if lane.bucket in self._suspended:
            return False
        if lane.circuit_open_until_s == 0.0 and lane.rate_limited_until_s == 0.0:
            return True
        now_s = self._clock.boottime_s()
        return lane.circuit_open_until_s <= now_s and lane.rate_limited_until_s <= now_s

    def list_if_ready(self, lane: Lane) -> None:
        """Schedule a lane that may send."""
        if self._schedule(lane):
            self._on_ready()

    def suspend(self, buckets: set[int], lanes: Iterable[Lane]) -> None:
        """Send nothing of these buckets, and resume all others that were suspended."""
        resumed, self._suspended = self._suspended - buckets, buckets
        for lane in lanes if resumed else ():
            if lane.bucket in resumed:
                self.list_if_ready(lane)

    # ----------------------------------------------------------------------- queued jobs

    def enqueue(self, job: Job) -> None:
        """Put a job behind the others of its lane."""
        lane = job.lane
        lane.append(job)
        self.budget.add_queued(job.data_bytes)
        self.list_if_ready(lane)

    def remove(self, job: Job) -> None:
        """Remove a job from the queue of its lane, if it is queued."""
        if job.lane.remove(job):
            self.budget.remove_queued(job.data_bytes)

    def clear(self, lane: Lane) -> None:
        """Drop all queued jobs of a lane from memory, and mark it DIRTY."""
        while lane.queue:
            job = lane.pop()
            self.budget.remove_queued(job.data_bytes)
            lane.drop(job)
        lane.mark_dirty()

    # ---------------------------------------------------------------------------- within

    def _schedule(self, lane: Lane) -> bool:
        """Schedule a lane that may send; False where it may not, or is scheduled already."""
        config = lane.config
        if (
            config is None
            or lane in self._scheduled
            or lane in self._held_back
            or not self.may_take(lane)
        ):
            return False
        self._scheduler.join(lane, config.tenant_uid)
        return True

    def _take_from(self, lane: Lane, now_s: float) -> Job | None:
        config = lane.config
        if config is None or not self.may_take(lane):
            return None
        if config.max_per_second is not None:
            at_s = lane.limit_rate(config.max_per_second, now_s)
            self._timers.add(at_s, lambda: self.list_if_ready(lane))
        job = lane.start_next(now_s)
        self.budget.remove_queued(job.data_bytes)
        self._count_in_flight(job, 1)
        if lane.is_notified:
            lane.mark_dirty(can_wait=True)
        self._refill_queue.join(lane)
        return job

    def _count_in_flight(self, job: Job, change: int) -> None:
        tenant_uid = job.message.event.tenant_uid
        in_flight = self._in_flight.get(tenant_uid, 0) + change
        if in_flight:
            self._in_flight[tenant_uid] = in_flight
        else:
            del self._in_flight[tenant_uid]
        if job.lane.is_suspect:
            self._suspect_in_flight += change
        else:
            self._trusted_in_flight += change

    def _may_send_suspect(self, free_slots: int) -> bool:
        """Whether one more job of a suspect lane may be in flight."""
        return self._suspect_in_flight < self._trusted_in_flight + free_slots

    def _resume_one(self, free_slots: int) -> bool:
        """Schedule the first lane that was held back, where suspect lanes may use one more slot."""
        if not self._held_back or not self._may_send_suspect(free_slots):
            return False
        lane, _ = self._held_back.popitem(last=False)
        self._schedule(lane)
        return True

    def _set_suspect(self, lane: Lane, *, is_suspect: bool) -> None:
        """Move a lane's jobs in flight to the other count; a trusted lane is not held back."""
        if lane.is_suspect is not is_suspect:
            lane.set_suspect(is_suspect=is_suspect)
            self._held_back.pop(lane, None)
            change = lane.unrecorded if is_suspect else -lane.unrecorded
            self._suspect_in_flight += change
            self._trusted_in_flight -= change


class DelayQueue:
    """Deliveries, and keys of ordered lanes, that come due within the next minute.

    Each lane has a quota. Later deliveries, and those beyond the quota, stay in Postgres alone,
    where the sweep finds them when they are due.
    """

    def __init__(self, clock: Clock, timers: Timers, dispatcher: Dispatcher) -> None:
        self._clock = clock
        self._timers = timers
        self._dispatcher = dispatcher
        self._budget = dispatcher.budget

    def keep(self, job: Job, delay_s: float) -> bool:
        """Keep a job in memory until it is due; False where it is left to Postgres."""
        lane, size = job.lane, job.data_bytes
        if (
            not _has_timer(lane, delay_s)
            or lane.is_gone
            or not lane.sends()
            or not self._budget.allows(lane.bytes_held, size)
        ):
            lane.drop(job)
            lane.mark_dirty()
            return False
        lane.start_timer(size)
        self._budget.add_delayed(size)
        self._timers.add(self._clock.boottime_s() + delay_s, lambda: self._end(job))
        return True

    def _end(self, job: Job) -> None:
        lane = job.lane
        lane.end_timer(job.data_bytes)
        self._budget.remove_delayed(job.data_bytes)
        if not job.is_known():
            return
        if lane.sends():
            self._dispatcher.enqueue(job)
        else:
            lane.drop(job)
            lane.mark_dirty()

    def keep_key(
        self, lane: Lane, key_hash: int, delay_s: float, then: Callable[[Lane, int], None]
    ) -> None:
        """Call `then` once the earliest delivery of a key is due; at most once for each key.

        The delivery itself is not kept: another one may be the earliest by then.
        """
        order = lane.order
        if order is None or key_hash in order.waiting or not _has_timer(lane, delay_s):
            return

        def end() -> None:
            lane.end_timer()
            order.end_wait(key_hash)
            then(lane, key_hash)

        lane.start_timer()
        order.begin_wait(key_hash)
        self._timers.add(self._clock.boottime_s() + delay_s, end)


def _has_timer(lane: Lane, delay_s: float) -> bool:
    return delay_s <= TIMER_HORIZON_S and lane.timer_count < TIMERS_PER_LANE
