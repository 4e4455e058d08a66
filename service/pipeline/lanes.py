"""Lanes: what is due, in memory, one queue a subscription; who is sent next.

Theory of operation. Memory is a cache of the hot table, and a lane says how good a cache it is:

    DIRTY      something is due that memory does not hold (or may not; new lanes begin so)
    REFILLING  a read of the hot table is under way
    COMPLETE   memory holds all that is due

Only a COMPLETE lane with room takes hand-offs; any other drops them and becomes DIRTY. A publisher
announces ids before its commit and withdraws them after, so that a refill in between does not read
what is about to be handed over. A refill clears DIRTY, reads, and makes the lane COMPLETE only if it
found fewer than it had room for and nobody made the lane DIRTY meanwhile.

Whether a lane may send is asked apart from that: its subscription's state, its window (how many
requests at once: halved by a throttling answer, widened by success), its rate, its circuit. Lanes
take turns within a tenant, and tenants between them. A lane may hold a quarter of the room that is
left, so that the slow ones can never take all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import nlargest
from typing import TYPE_CHECKING

from service.domain.subscription import SubscriptionState
from service.pipeline.lane import CIRCUIT_FAILURES, Job, Lane, LaneState
from service.pipeline.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from service.domain.attempt import Outcome
    from service.pipeline.clock import Clock
    from service.pipeline.lane import LaneConfig, Message
    from service.pipeline.timers import Timers
    from service.store.lanes import PendingRow

TIMER_HORIZON_S = 60.0
"""Retries due within this wait in memory; later ones stay in Postgres alone."""
TIMERS_PER_LANE = 100
LANE_QUEUE_MIN, LANE_QUEUE_MAX = 16, 4_000
_SHARE = 4


@dataclass(frozen=True, slots=True)
class LaneCounts:
    """How many lanes this node has, and how many of them cannot send freely."""

    total: int
    open: int
    limited: int
    held: int


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane for an operator."""

    subscription: str
    state: str
    """READY, OPEN (circuit), LIMITED (rate or window) or HELD (paused or disabled)."""
    queued: int
    in_flight: int
    consecutive_failures: int


class Lanes:
    """All lanes of this node, and the turn they take."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        owns: Callable[[int], bool],
        *,
        max_queued_jobs: int = 50_000,
        max_queued_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._owns = owns
        self._max_queued_jobs = max_queued_jobs
        self._max_queued_bytes = max_queued_bytes
        self._by_uid: dict[UUID, Lane] = {}
        self._turns = Turns()
        self._resting: set[int] = set()
        self._wanted: dict[UUID, Lane] = {}
        self.queued_jobs = 0
        self.queued_bytes = 0
        self.on_ready: Callable[[], None] = lambda: None
        """Called when there may be one more job to take."""
        self.on_wanted: Callable[[], None] = lambda: None
        """Called when a lane wants to be refilled."""

    # ------------------------------------------------------------------ what the publisher does

    def announce(self, subscription_uid: UUID, delivery_id: UUID) -> Lane | None:
        """A commit that may write this delivery is about to begin; the lane, if there is one."""
        lane = self._by_uid.get(subscription_uid)
        if lane is not None:
            lane.announced.add(delivery_id)
        return lane

    def hand_over(self, lane: Lane, delivery_id: UUID, message: Message) -> None:
        """A committed delivery, due now; dropped (and the lane DIRTY) where there is no place."""
        if lane.state is not LaneState.COMPLETE or not lane.sends() or self.room(lane) <= 0:
            lane.mark_dirty()
            self._want(lane)
            return
        job = Job(lane, delivery_id, message)
        lane.known[delivery_id] = job
        self._enqueue(job)

    def touch(self, subscription_uid: UUID, bucket: int) -> None:
        """Something is due for this subscription that memory may not hold."""
        if not self._owns(bucket):
            return
        lane = self._by_uid.get(subscription_uid)
        if lane is None:
            lane = self._by_uid[subscription_uid] = Lane(subscription_uid, bucket)
        lane.mark_dirty()
        self._want(lane)

    # ----------------------------------------------------------------------- what refills do

    def get(self, subscription_uid: UUID) -> Lane | None:
        """The lane of a subscription, if memory has one."""
        return self._by_uid.get(subscription_uid)

    def all(self) -> Iterable[Lane]:
        """Every lane."""
        return self._by_uid.values()

    def room(self, lane: Lane) -> int:
        """How many jobs a lane may take on: a share of what is free, more where it drains faster."""
        free = self._max_queued_jobs - self.queued_jobs
        if self.queued_bytes >= self._max_queued_bytes:
            return 0
        most = min(LANE_QUEUE_MAX, max(LANE_QUEUE_MIN, free // _SHARE))
        if lane.is_circuit_open:
            most = 1
        return most - len(lane.queue)

    def bytes_free(self) -> int:
        """Bytes of event data that may still be queued."""
        return self._max_queued_bytes - self.queued_bytes

    def wants_refill(self, lane: Lane) -> bool:
        """Whether reading the hot table for a lane would lead anywhere."""
        if lane.state is not LaneState.DIRTY or not self._owns(lane.bucket):
            return False
        if lane.config is None or lane.is_deleted:
            return True
        if not lane.sends() or lane.rests_until_s > self._clock.boottime_s():
            return False
        room = self.room(lane)
        return room > 0 and len(lane.queue) <= room

    def begin_refill(self, lane: Lane) -> None:
        """A read is about to begin; whatever makes the lane DIRTY from now on needs another."""
        lane.state = LaneState.REFILLING
        lane.dirty_since_read = False

    def accept(self, row: PendingRow, message: Message) -> None:
        """A row that a refill found; ignored where the lane is gone or has it after all."""
        lane = self._by_uid.get(row.subscription_uid)
        if lane is None or lane.config is None or row.delivery_id in lane.known:
            return
        job = Job(lane, row.delivery_id, message)
        job.version = row.version
        job.attempt_count = row.attempt_count
        job.attempts_base = row.attempts_base
        job.attempts_until = row.attempts_until
        if lane.sends():
            lane.known[row.delivery_id] = job
            self._enqueue(job)
        else:
            lane.mark_dirty()

    def end_refill(self, lane: Lane, *, found_all: bool) -> None:
        """The read is over; COMPLETE only if it found all there is and nobody objected."""
        complete = found_all and not lane.dirty_since_read
        lane.state = LaneState.COMPLETE if complete else LaneState.DIRTY
        if not complete:
            self._want(lane)

    def configure(self, lane: Lane, config: LaneConfig) -> None:
        """What is now true of the lane's subscription."""
        before = lane.config
        lane.config = config
        if before is None:
            lane.window = float(config.max_in_flight)
            lane.failing_since_us = config.failing_since_us
        else:
            lane.window = min(lane.window, float(config.max_in_flight))
            if config.state is not before.state or config.url != before.url:
                lane.close_circuit()  # an operator has seen to it: begin afresh
                lane.window = float(config.max_in_flight)
        if lane.sends():
            self.list_if_ready(lane)
            self._want(lane)
        else:
            self._empty(lane)

    # --------------------------------------------------------------------- what deliverers do

    def take(self) -> Job | None:
        """The next job to send, in turn; None where no lane may send."""
        while (lane := self._turns.next()) is not None:
            job = self._take_from(lane)
            self.list_if_ready(lane)
            if job is not None:
                return job
        return None

    def _take_from(self, lane: Lane) -> Job | None:
        config = lane.config
        if config is None or not self._may_take(lane):
            return None
        if config.max_per_second is not None:
            now_s = self._clock.boottime_s()
            lane.rests_until_s = max(now_s, lane.rests_until_s) + 1 / config.max_per_second
            self._timers.add(lane.rests_until_s, lambda: self.list_if_ready(lane))
        job = self._dequeue(lane)
        lane.in_flight += 1
        if lane.state is LaneState.DIRTY:
            self._want(lane)
        return job

    def _may_take(self, lane: Lane) -> bool:
        return (
            bool(lane.queue)
            and lane.in_flight < lane.width()
            and lane.sends()
            and lane.bucket not in self._resting
            and (lane.rests_until_s == 0.0 or lane.rests_until_s <= self._clock.boottime_s())
        )

    def answered(self, job: Job, outcome: Outcome) -> None:
        """A request is over: its place on the wire is free, and the window learns from it."""
        lane = job.lane
        lane.in_flight -= 1
        lane.learn(outcome)
        self.list_if_ready(lane)

    def list_if_ready(self, lane: Lane) -> None:
        """Give a lane that may send its turn."""
        config = lane.config
        if config is not None and not lane.has_turn and self._may_take(lane):
            self._turns.join(lane, config.tenant_uid)
            self.on_ready()

    # ------------------------------------------------------------------- what the recorder does

    def finished(self, job: Job) -> None:
        """Its row has left the hot table."""
        job.lane.known.pop(job.delivery_id, None)

    def rescheduled(self, job: Job, delay_s: float) -> None:
        """Its row waits for another attempt; within the minute memory keeps it, else Postgres alone."""
        job.version += 1
        job.attempt_count += 1
        self._wait(job, delay_s)

    def released(self, job: Job, delay_s: float) -> None:
        """Nothing came of it that the target can answer for, and its row is as it was."""
        self._wait(job, delay_s)

    def mismatched(self, job: Job) -> None:
        """Its row was somebody else's meanwhile: memory knows nothing of it any more."""
        job.lane.known.pop(job.delivery_id, None)
        job.lane.mark_dirty()
        self._want(job.lane)

    def succeeded(self, lane: Lane) -> None:
        """A recorded success: closes the circuit, which then widens step by step."""
        lane.failures = 0
        lane.failing_since_us = None
        if lane.is_circuit_open:
            lane.close_circuit()
            self._probe(lane)

    def failed(self, lane: Lane, failing_since_us: int) -> None:
        """A recorded failure of the target's: enough of them in a row open the circuit."""
        lane.failures += 1
        if lane.failing_since_us is None:
            lane.failing_since_us = failing_since_us
        if lane.failures >= CIRCUIT_FAILURES and lane.open_circuit(self._clock.boottime_s()):
            self._empty(lane)
            self._timers.add(lane.rests_until_s, lambda: self._probe(lane))

    def deleted(self, lane: Lane) -> None:
        """Its subscription is gone: nothing goes out any more."""
        lane.is_deleted = True
        self._empty(lane)

    def outdate(self, subscription_uid: UUID) -> None:
        """What a lane knows of its subscription is no longer true; it is read again."""
        lane = self._by_uid.get(subscription_uid)
        if lane is not None:
            self._empty(lane)
            lane.config = None
            self._want(lane)

    def disabled(self, lane: Lane) -> None:
        """The engine turned its subscription off."""
        if lane.config is not None:
            lane.config = replace(lane.config, state=SubscriptionState.DISABLED)
        self._empty(lane)

    def forget(self, lane: Lane, delivery_id: UUID) -> None:
        """An operator changed this delivery: memory's copy is stale, the row is the truth."""
        job = lane.known.get(delivery_id)
        if job is not None and job in lane.queue:
            lane.queue.remove(job)
            self.queued_jobs -= 1
            self.queued_bytes -= len(job.message.event.data)
        lane.known.pop(delivery_id, None)
        lane.mark_dirty()
        self._want(lane)

    def _wait(self, job: Job, delay_s: float) -> None:
        lane = job.lane
        if delay_s > TIMER_HORIZON_S or lane.timed >= TIMERS_PER_LANE or not lane.sends():
            lane.known.pop(job.delivery_id, None)
            lane.mark_dirty()
            return
        lane.timed += 1
        self._timers.add(self._clock.boottime_s() + delay_s, lambda: self._due(job))

    def _due(self, job: Job) -> None:
        lane = job.lane
        lane.timed -= 1
        if lane.known.get(job.delivery_id) is not job:
            return
        if lane.sends():
            self._enqueue(job)
        else:
            lane.known.pop(job.delivery_id, None)
            lane.mark_dirty()

    # --------------------------------------------------------------- what ownership does

    def buckets_gained(self, buckets: Iterable[int]) -> None:
        """Nothing of theirs is in memory; the sweep that is asked for here finds it."""
        self._resting.difference_update(buckets)
        self.on_wanted()

    def buckets_lost(self, buckets: Iterable[int]) -> None:
        """Forget everything of these buckets; what is on the wire will not match its fence."""
        gone = set(buckets)
        self._resting -= gone
        for lane in [lane for lane in self._by_uid.values() if lane.bucket in gone]:
            self._empty(lane)
            lane.known.clear()
            lane.config = None
            del self._by_uid[lane.subscription_uid]
            self._wanted.pop(lane.subscription_uid, None)

    def quiet_buckets(self, buckets: Iterable[int]) -> set[int]:
        """Let these buckets rest; those of which nothing is on the wire or unrecorded any more."""
        self._resting.update(buckets)
        busy = {
            lane.bucket
            for lane in self._by_uid.values()
            if len(lane.known) - len(lane.queue) - lane.timed > 0
        }
        return set(buckets) - busy

    def evict_idle(self, keep: int) -> None:
        """Drop lanes that hold nothing, oldest first, until `keep` are left."""
        surplus = len(self._by_uid) - keep
        for lane in list(self._by_uid.values()) if surplus > 0 else ():
            if surplus <= 0:
                return
            if not lane.known and not lane.announced and lane.failures == 0:
                del self._by_uid[lane.subscription_uid]
                surplus -= 1

    # ------------------------------------------------------------------------------ views

    def take_wanted(self) -> list[Lane]:
        """The lanes that want a refill and may have one; asking clears the list."""
        wanted = [lane for lane in self._wanted.values() if self.wants_refill(lane)]
        self._wanted.clear()
        return wanted

    def counts(self) -> LaneCounts:
        """How the lanes stand."""
        states = [self._state_of(lane) for lane in self._by_uid.values()]
        return LaneCounts(
            len(states), states.count("OPEN"), states.count("LIMITED"), states.count("HELD")
        )

    def top(self, count: int) -> list[LaneView]:
        """The lanes with the most in memory."""
        busiest = nlargest(count, self._by_uid.values(), key=lambda lane: len(lane.known))
        return [
            LaneView(
                lane.config.name if lane.config else str(lane.subscription_uid),
                self._state_of(lane),
                len(lane.queue),
                lane.in_flight,
                lane.failures,
            )
            for lane in busiest
        ]

    def _state_of(self, lane: Lane) -> str:
        if lane.config is not None and not lane.sends():
            return "HELD"
        if lane.is_circuit_open:
            return "OPEN"
        if lane.queue and not self._may_take(lane):
            return "LIMITED"
        return "READY"

    # ------------------------------------------------------------------------- within

    def _enqueue(self, job: Job) -> None:
        job.lane.queue.append(job)
        self.queued_jobs += 1
        self.queued_bytes += len(job.message.event.data)
        self.list_if_ready(job.lane)

    def _dequeue(self, lane: Lane) -> Job:
        job = lane.queue.popleft()
        self.queued_jobs -= 1
        self.queued_bytes -= len(job.message.event.data)
        return job

    def _empty(self, lane: Lane) -> None:
        while lane.queue:
            lane.known.pop(self._dequeue(lane).delivery_id, None)
        lane.mark_dirty()

    def _want(self, lane: Lane) -> None:
        self._wanted[lane.subscription_uid] = lane
        self.on_wanted()

    def _probe(self, lane: Lane) -> None:
        self.list_if_ready(lane)
        self._want(lane)
