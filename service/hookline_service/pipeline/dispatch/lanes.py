"""Lanes: what is due, in memory, one queue a subscription; who is sent next.

Theory of operation. Memory is a cache of the hot table, and a lane says how good a cache it is:

    DIRTY      something is due that memory does not hold (or may not; new lanes begin so)
    REFILLING  a read of the hot table is under way
    COMPLETE   memory holds all that is due, or enough until another node's word is heeded

Only a COMPLETE lane with room takes hand-offs; any other drops them and becomes DIRTY. A publisher
announces ids before its commit and withdraws them after. What is announced belongs to the
publisher: no refill takes it, and nothing else is taken from the publisher, or a refill that read
between a commit and its hand-off would put a delivery into memory twice. A refill clears DIRTY,
reads, discards what others changed meanwhile, and makes the lane COMPLETE only if it found fewer
than it had room for and nobody made the lane DIRTY.

An ordered lane takes no hand-off at all: of each ordering key only the earliest row may go, and
that is read (`key_order.py`).

Whether a lane may send is asked apart from that: its subscription's state, its window (how many
requests at once: halved by a throttling answer, widened by success), its rate, its circuit. Lanes
take turns within a tenant, and tenants between them; `shares.py` says how much each may hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.delay_queue import DelayQueue
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher
from hookline_service.pipeline.dispatch.lane import (
    CIRCUIT_FAILURES,
    LANE_BYTES,
    UNKNOWN_TENANT,
    Job,
    Lane,
    LaneConfig,
    LaneState,
    Message,
)
from hookline_service.pipeline.dispatch.lane_views import LaneCounts, LaneView, counts_of, top_of
from hookline_service.pipeline.dispatch.outcome_log import tell_circuit_opened
from hookline_service.pipeline.dispatch.queue_budget import QueueBudget
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue
from hookline_service.pipeline.timers import Timers
from hookline_service.store.lanes import PendingRow

__all__ = ["LaneCounts", "LaneView", "Lanes"]

FAULT_PAUSE_S = 30.0
"""How long a lane that cannot be made ready is left alone."""
REST_BYTES = 500
"""What is kept of a lane that was evicted while it rests, with its timer."""
EVICTION_STEPS = 64
"""How many lanes are looked at to make room for one."""
FULL_S = 0.01
"""How long none are looked at where none of so many could go."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is kept of a lane that was evicted before it may be read again."""

    bucket: int
    tenant_uid: UUID
    until_s: float
    circuit_backoff_s: float
    failures: int


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
        max_lane_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._owns = owns
        self._by_uid: OrderedDict[UUID, Lane] = OrderedDict()
        """In the order in which eviction looks at them."""
        self._resting: OrderedDict[UUID, Rest] = OrderedDict()
        """Of lanes that were evicted; longest ago first."""
        self._lane_bytes = 0
        """Of both."""
        self._max_lane_bytes = max_lane_bytes
        self._full_until_s = 0.0
        self._stalled: dict[Lane, None] = {}
        """Lanes that lack something that is due, and for which there was no room."""
        self.refills = RefillQueue(max(1, max_lane_bytes // (2 * LANE_BYTES)))
        self.shares = QueueBudget(max_queued_jobs, max_queued_bytes)
        self.sending = Dispatcher(clock, timers, self.shares)
        self.waiting = DelayQueue(clock, timers, self.shares, self.sending)
        self.sending.on_taken = self._taken
        self.sending.on_quiet = self._quieted
        self.on_wanted: Callable[[], None] = lambda: None
        """Called when a lane wants to be refilled."""
        self.on_gained: Callable[[Iterable[int]], None] = lambda _buckets: None
        """Called with buckets of whose lanes memory has none yet."""
        self.on_left_out: Callable[[int], None] = lambda _bucket: None
        """Called with the bucket of a lane for which there is no room: it is to be found again."""
        self.on_quiet: Callable[[], None] = lambda: None
        """Called when nothing of a bucket that rests is in flight any more."""
        self.on_foreign: Callable[[UUID, int], None] = lambda _subscription_uid, _bucket: None
        """Called with a subscription for which something is due, and its bucket: another node's."""

    # ------------------------------------------------------------------ what the publisher does

    def announce(self, subscription_uid: UUID, delivery_id: UUID) -> Lane | None:
        """A commit that may write this delivery is about to begin; the lane, if there is one."""
        lane = self._by_uid.get(subscription_uid)
        if lane is not None:
            lane.is_used = True
            lane.announced.add(delivery_id)
        return lane

    def hand_over(self, lane: Lane, delivery_id: UUID, message: Message) -> None:
        """A committed delivery, due now; dropped (and the lane DIRTY) where there is no place.

        One that was not announced to this very lane is dropped too: a refill may have read it.
        """
        if (
            delivery_id not in lane.announced
            or lane.state is not LaneState.COMPLETE
            or not lane.sends()
            or self.shares.room(lane) <= 0
            or not self.shares.allows(lane.bytes_held, len(message.event.data))
        ):
            lane.mark_dirty()
            self._want(lane)
            return
        lane.announced.discard(delivery_id)
        job = Job(lane, delivery_id, message)
        lane.keep(job)
        self.sending.enqueue(job)

    def owns(self, bucket: int) -> bool:
        """Whether the lanes of a bucket are this node's."""
        return self._owns(bucket)

    def touch(
        self,
        subscription_uid: UUID,
        bucket: int,
        *,
        tenant_uid: UUID = UNKNOWN_TENANT,
        from_peer: bool = False,
    ) -> None:
        """Something is due that memory may not hold; `from_peer`: so another node says."""
        if not self._owns(bucket):
            self.on_foreign(subscription_uid, bucket)
            return
        lane = self._by_uid.get(subscription_uid) or self._create(
            subscription_uid, bucket, tenant_uid
        )
        if lane is not None:
            lane.is_used = True
            lane.mark_dirty(can_wait=from_peer)
            self._want(lane)

    def changed(self, subscription_uid: UUID, bucket: int) -> None:
        """A subscription was changed of which there is no lane: one may be sent for again."""
        if self._owns(bucket):
            self._end_rest(subscription_uid)
            self.touch(subscription_uid, bucket)

    # ----------------------------------------------------------------------- what refills do

    def get(self, subscription_uid: UUID) -> Lane | None:
        """The lane of a subscription, if memory has one."""
        return self._by_uid.get(subscription_uid)

    def all(self) -> Iterable[Lane]:
        """Every lane."""
        return self._by_uid.values()

    def wants_refill(self, lane: Lane) -> bool:
        """Whether reading the hot table for a lane would lead anywhere."""
        if lane.is_gone or not lane.needs_reading():
            return False
        if lane.fault and not lane.is_deleted:
            return lane.read_again_s <= self._clock.boottime_s()
        if lane.config is None or lane.is_deleted or lane.is_outdated:
            return True
        if not lane.sends() or lane.circuit_open_until_s > self._clock.boottime_s():
            return False
        if lane.order is not None and not (lane.order.touched or self.may_walk(lane)):
            return False
        return self.shares.is_low(lane)

    def begin_refill(self, lane: Lane) -> None:
        """A read is about to begin; whatever makes the lane DIRTY from now on needs another."""
        lane.state = LaneState.REFILLING
        lane.dirty_since_read = lane.is_told = False

    def accept(self, lane: Lane, row: PendingRow, message: Message) -> None:
        """A row that a refill found; ignored where memory has it after all, or the row is stale."""
        if not lane.takes(row):
            return
        if not lane.sends():
            lane.mark_dirty()
            return
        job = Job(lane, row.delivery_id, message)
        job.version = row.version
        job.attempt_count = row.attempt_count
        job.attempts_base = row.attempts_base
        job.attempts_until = row.attempts_until
        job.key_hash = row.key_hash
        lane.keep(job)
        self.sending.enqueue(job)

    def end_refill(self, lane: Lane, *, found_all: bool, rests_s: float = 0.0) -> None:
        """The read is over: COMPLETE if it found all, and nobody objected. Walks rest `rests_s`."""
        lane.is_used = True
        complete = found_all and not lane.dirty_since_read
        lane.state = LaneState.COMPLETE if complete else LaneState.DIRTY
        lane.stale.clear()
        lane.is_read_stale = False
        if lane.order is not None and rests_s:
            lane.order.walks_on_s = self._clock.boottime_s() + rests_s
            self._timers.add(lane.order.walks_on_s, lambda: self._want(lane))
        self._want(lane)

    def configure(self, lane: Lane, config: LaneConfig) -> None:
        """What is now true of the lane's subscription; an older read never replaces a newer."""
        if lane.is_gone or not lane.adopt(config):
            return
        self._lane_bytes += config.memory_bytes - lane.memory_bytes
        lane.memory_bytes = config.memory_bytes
        if lane.sends():
            self.sending.list_if_ready(lane)
            self._want(lane)
        else:
            self._empty(lane)

    def unusable(self, lane: Lane, name: str, fault: str) -> None:
        """Its subscription cannot be sent for, by our own fault: what is due waits in Postgres."""
        lane.name, lane.fault = name, fault
        lane.read_again_s = self._clock.boottime_s() + FAULT_PAUSE_S
        self._wake_after(lane, lane.read_again_s)
        self._empty(lane)

    # ------------------------------------------------------------------ what ordered lanes do

    def next_of_key(self, lane: Lane, key_hash: int) -> None:
        """The earliest row of an ordering key may be another one now: it is read at once."""
        if lane.order is None or not lane.order.touch(key_hash):
            lane.mark_dirty()
        self._want(lane)

    def may_walk(self, lane: Lane) -> bool:
        """Whether a page of its keys may be read now."""
        circuit_open_until_s = 0.0 if lane.order is None else lane.order.walks_on_s
        return lane.state is LaneState.DIRTY and circuit_open_until_s <= self._clock.boottime_s()

    # ------------------------------------------------------------------- what the recorder does

    def finished(self, job: Job) -> None:
        """Its row has left the hot table, or waits in it for what memory need not watch."""
        self._forget(job)
        if job.key_hash is not None and job.message.event.ordering_key:
            self.next_of_key(job.lane, job.key_hash)

    def rescheduled(self, job: Job, delay_s: float) -> None:
        """Its row waits for another attempt; memory keeps it within the minute, else Postgres."""
        job.version += 1
        job.attempt_count += 1
        self.sending.recorded(job)
        if job.key_hash is None:
            self.waiting.keep(job, delay_s)
            return
        job.lane.drop(job)
        self.next_of_key(job.lane, job.key_hash)

    def released(self, job: Job, delay_s: float) -> None:
        """Nothing came of it that the target can answer for, and its row is as it was.

        Where so many of a lane are released that memory does not keep them all, the lane rests:
        they are due, and would be read and released again as fast as Postgres can be asked.
        """
        lane = job.lane
        if job.is_stale:
            self.mismatched(job)
            return
        self.sending.recorded(job)
        if self.waiting.keep(job, delay_s):
            return
        now_s = self._clock.boottime_s()
        if lane.circuit_open_until_s <= now_s:
            lane.circuit_open_until_s = now_s + delay_s
            self._wake_after(lane, lane.circuit_open_until_s)

    def mismatched(self, job: Job) -> None:
        """Its row was somebody else's meanwhile: memory knows nothing of it any more."""
        self._forget(job)
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
        """A recorded failure of the target's: enough in a row, or of a probe, open the circuit."""
        lane.failures += 1
        if lane.failing_since_us is None:
            lane.failing_since_us = failing_since_us
        is_open = lane.failures >= CIRCUIT_FAILURES or lane.is_circuit_open
        if is_open and lane.open_circuit(self._clock.boottime_s()):
            tell_circuit_opened(lane, lane.circuit_backoff_s)
            self._empty(lane)
            self._wake_after(lane, lane.circuit_open_until_s)

    def deleted(self, lane: Lane) -> None:
        """Its subscription is gone: nothing goes out, what is pending is cancelled in any order."""
        lane.is_deleted = True
        self._empty(lane)
        lane.order = None
        self._want(lane)

    def outdate(self, lane: Lane) -> None:
        """What a lane knows of its subscription is no longer true; it is read again."""
        lane.is_outdated = True
        self._empty(lane)
        self._want(lane)

    def disabled(self, lane: Lane) -> None:
        """The engine turned its subscription off."""
        if lane.config is not None:
            lane.config = replace(lane.config, state=SubscriptionState.DISABLED)
        self._empty(lane)

    def forget(self, lane: Lane, delivery_id: UUID, key_hash: int | None = None) -> None:
        """Somebody changed this delivery: memory's copy is stale, the row is the truth.

        What is on the wire stays known until it is recorded, and matches nothing then: a refill
        that read it now would send it a second time. What else waits of its ordering key gives way.
        """
        for job in lane.supersede(delivery_id, key_hash):
            if not job.is_sent:
                self.sending.remove(job)
                lane.drop(job)
            elif job.delivery_id == delivery_id:
                job.is_stale = True
        if lane.order is not None and key_hash is not None:
            lane.order.change(key_hash)
        lane.mark_dirty()
        self._want(lane)

    def forget_all(self, lane: Lane) -> None:
        """Forget every delivery of a lane: many of its rows were changed by one statement.

        What is on the wire stays known until it is recorded, as in `forget`.
        """
        self._empty(lane)
        for job in lane.supersede_all():
            if job.is_sent:
                job.is_stale = True
            else:
                lane.drop(job)
        self._want(lane)

    # --------------------------------------------------------------- what ownership does

    def buckets_gained(self, buckets: Iterable[int]) -> None:
        """Nothing of theirs is in memory; the sweep that is asked for here finds it."""
        self.on_gained(buckets)

    def buckets_lost(self, buckets: Iterable[int]) -> None:
        """Forget everything of these buckets; what is on the wire will not match its fence."""
        gone = set(buckets)
        for lane in [lane for lane in self._by_uid.values() if lane.bucket in gone]:
            self._empty(lane)
            lane.config = None
            self._drop(lane)
        for uid in [uid for uid, rest in self._resting.items() if rest.bucket in gone]:
            self._end_rest(uid)

    def quiet_buckets(self, buckets: Iterable[int]) -> set[int]:
        """Let these buckets rest, and no others; those of which nothing is sent and unrecorded."""
        surplus = set(buckets)
        self.sending.rest(surplus, self._by_uid.values())
        lanes = self._by_uid.values() if surplus else ()
        return surplus - {lane.bucket for lane in lanes if lane.unrecorded}

    def shrink_to(self, max_bytes: int, most: int | None = None) -> None:
        """Evict lanes that hold nothing to be sent now, least used first, down to so many bytes.

        At most `most` lanes are looked at. Of one that rests, its health is kept.
        """
        now_s = self._clock.boottime_s()
        for _ in range(2 * len(self._by_uid) if most is None else most):
            if self._lane_bytes <= max_bytes or not self._by_uid:
                return
            uid, lane = next(iter(self._by_uid.items()))
            if lane.is_used or lane in self._stalled or not lane.may_be_evicted(now_s):
                lane.is_used = False
                self._by_uid.move_to_end(uid)
                continue
            self._drop(lane)
            self._keep_rest(lane, now_s)

    # ------------------------------------------------------------------------------ views

    def take_wanted(self, most: int | None = None) -> list[Lane]:
        """Take up to so many lanes out of the refill queue; those that may be read."""
        taken = self.refills.take(len(self.refills) if most is None else most)
        wanted: list[Lane] = []
        now_s = self._clock.boottime_s()
        for lane in taken:
            if self.wants_refill(lane):
                wanted.append(lane)
            elif lane.needs_reading() and lane.sends() and lane.circuit_open_until_s <= now_s:
                self._stalled[lane] = None
        return wanted

    def put_back(self, lanes: Iterable[Lane]) -> None:
        """Queue lanes again whose read has failed."""
        for lane in lanes:
            self._want(lane)

    def want_stalled(self) -> None:
        """Ask again for what there was no room to read."""
        stalled, self._stalled = self._stalled, {}
        for lane in stalled:
            self._want(lane)

    def counts(self) -> LaneCounts:
        """How the lanes stand."""
        return counts_of(self._by_uid.values(), self.sending.may_take)

    def top(self, count: int) -> list[LaneView]:
        """The lanes with the most in memory."""
        return top_of(self._by_uid.values(), self.sending.may_take, count)

    # ------------------------------------------------------------------------- within

    def _taken(self, lane: Lane) -> None:
        if lane.is_told:
            lane.mark_dirty(can_wait=True)
        self._want(lane)

    def _quieted(self) -> None:
        self.on_quiet()

    def _forget(self, job: Job) -> None:
        job.lane.drop(job)
        self.sending.recorded(job)

    def _empty(self, lane: Lane) -> None:
        while lane.queue:
            lane.drop(self.sending.dequeue(lane))
        lane.mark_dirty()

    def _create(self, subscription_uid: UUID, bucket: int, tenant_uid: UUID) -> Lane | None:
        """Create a lane; None where it rests, or memory has no room for it."""
        rest = self._resting.get(subscription_uid)
        if rest is not None and rest.until_s > self._clock.boottime_s():
            return None
        if not self.refills.allows(tenant_uid) or not self._has_room():
            self.on_left_out(bucket)
            return None
        lane = self._by_uid[subscription_uid] = Lane(subscription_uid, bucket, tenant_uid)
        self._lane_bytes += lane.memory_bytes
        if rest is not None:
            lane.failures, lane.circuit_backoff_s = rest.failures, rest.circuit_backoff_s
            self._end_rest(subscription_uid)
        return lane

    def _has_room(self) -> bool:
        """Whether one more lane fits, once others have given way; not tried again at once."""
        most, now_s = self._max_lane_bytes - LANE_BYTES, self._clock.boottime_s()
        if self._lane_bytes > most and now_s >= self._full_until_s:
            self.shrink_to(most, EVICTION_STEPS)
            if self._lane_bytes > most:
                self._full_until_s = now_s + FULL_S
        return self._lane_bytes <= most

    def _drop(self, lane: Lane) -> None:
        lane.is_gone = True
        lane.known.clear()
        del self._by_uid[lane.subscription_uid]
        self._lane_bytes -= lane.memory_bytes
        self._stalled.pop(lane, None)

    def _keep_rest(self, lane: Lane, now_s: float) -> None:
        """Keep the health of a lane that is dropped, until it may be read; of half the memory."""
        until_s = max(lane.circuit_open_until_s, lane.read_again_s if lane.fault else 0.0)
        if lane.is_deleted or until_s <= now_s:
            return
        while self._resting and 2 * REST_BYTES * len(self._resting) >= self._max_lane_bytes:
            self._end_rest(next(iter(self._resting)))
        self._resting[lane.subscription_uid] = Rest(
            lane.bucket, lane.tenant_uid, until_s, lane.circuit_backoff_s, lane.failures
        )
        self._lane_bytes += REST_BYTES

    def _end_rest(self, subscription_uid: UUID) -> None:
        if self._resting.pop(subscription_uid, None) is not None:
            self._lane_bytes -= REST_BYTES

    def _wake_after(self, lane: Lane, at_s: float) -> None:
        """Look at a lane at a moment, or have it created again where it was evicted by then."""
        self._timers.add(at_s, partial(self._rest_is_over, lane.subscription_uid))

    def _rest_is_over(self, subscription_uid: UUID) -> None:
        lane, rest = self._by_uid.get(subscription_uid), self._resting.get(subscription_uid)
        if lane is not None:
            self._probe(lane)
        elif rest is not None:
            self.touch(subscription_uid, rest.bucket, tenant_uid=rest.tenant_uid)

    def _want(self, lane: Lane) -> None:
        if not lane.is_gone and lane.needs_reading() and self.refills.join(lane):
            self.on_wanted()

    def _probe(self, lane: Lane) -> None:
        self.sending.list_if_ready(lane)
        self._want(lane)
