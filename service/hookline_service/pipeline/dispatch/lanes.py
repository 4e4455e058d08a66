"""All lanes of a node: the due deliveries in memory, one queue for each subscription.

Theory of operation. Memory is a cache of the hot table, and the state of a lane says how complete a
cache it is:

    DIRTY      something is due that memory lacks (or may lack; new lanes begin so)
    REFILLING  a read of the hot table is under way
    COMPLETE   memory holds all that is due, or enough to act on other nodes' notifications later

Only a COMPLETE lane with free capacity takes hand-offs; any other drops them and becomes DIRTY. A
publisher announces ids before its commit and withdraws them after. An announced delivery belongs to
the publisher: no refill takes it, and a delivery that was not announced is not taken from a
publisher. Otherwise a refill that reads between a commit and its hand-off would put a delivery into
memory twice. A refill clears DIRTY, reads, discards rows that other transactions changed meanwhile,
and makes the lane COMPLETE only if it found fewer rows than fit and the lane was not marked DIRTY
since.

An ordered lane takes no hand-offs: of each ordering key only the earliest row may be sent, and that
is read from the hot table (`key_order.py`).

Whether a lane may send is independent of its state; `dispatcher.py` decides that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from hookline_service.domain.delivery import DeliveryStateReason
from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.dispatcher import DelayQueue, Dispatcher
from hookline_service.pipeline.dispatch.lane import (
    LANE_BYTES,
    UNKNOWN_TENANT,
    Job,
    Lane,
    LaneConfig,
    LaneState,
)
from hookline_service.pipeline.dispatch.lane_views import (
    LaneCounts,
    LaneView,
    counts_of,
    reason_of,
    top_of,
)
from hookline_service.pipeline.dispatch.outcome_log import log_circuit_opened
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue
from hookline_service.pipeline.timers import Timers
from hookline_service.store.lanes import PendingRow
from hookline_service.targets.payload import Message

__all__ = ["LaneCounts", "LaneView", "Lanes"]

FAULT_PAUSE_S = 30.0
"""How long after a fault the lane's subscription is not read again."""
HEALTH_BYTES = 500
"""Memory of the health that is kept of an evicted lane, with its timer."""
EVICTION_STEPS = 64
"""How many lanes eviction looks at to make space for one."""
EVICTION_PAUSE_S = 0.01
"""How long eviction is not tried again after none of so many lanes could be evicted."""


@dataclass(frozen=True, slots=True)
class EvictedHealth:
    """The health of a lane that was evicted while it may not be read."""

    bucket: int
    tenant_uid: UUID
    until_s: float
    circuit_backoff_s: float
    failures: int


class Lanes:
    """All lanes of this node, and what publishing, refills, records and ownership do to them."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        dispatcher: Dispatcher,
        refill_queue: RefillQueue,
        owns: Callable[[int], bool],
        *,
        notify_owner: Callable[[UUID, int], None] = lambda _subscription_uid, _bucket: None,
        sweep_buckets: Callable[[Iterable[int]], None] = lambda _buckets: None,
        max_lane_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Create an empty set of lanes.

        `owns` says whether this node owns a bucket. `notify_owner` is called with a subscription
        that has due deliveries, and its bucket, where another node owns it; `sweep_buckets` with
        buckets that may have due deliveries for which memory has no lane.
        """
        self.dispatcher = dispatcher
        self.budget = dispatcher.budget
        self.delay_queue = DelayQueue(clock, timers, dispatcher)
        self.refill_queue = refill_queue
        self._clock = clock
        self._timers = timers
        self._owns = owns
        self._notify_owner = notify_owner
        self._sweep_buckets = sweep_buckets
        self._by_uid: OrderedDict[UUID, Lane] = OrderedDict()
        """In the order in which eviction looks at them."""
        self._evicted: OrderedDict[UUID, EvictedHealth] = OrderedDict()
        """By subscription; the lane that was evicted first comes first."""
        self._lane_bytes = 0
        """Memory of both."""
        self._max_lane_bytes = max_lane_bytes
        self._evict_again_s = 0.0
        self._stalled: dict[Lane, None] = {}
        """Lanes that lack due deliveries, and for which the budget has no space."""

    # -------------------------------------------------------------------- called by publishing

    def announce(self, subscription_uid: UUID, delivery_id: UUID) -> Lane | None:
        """Reserve a delivery for a commit that is about to begin; return its lane, if any."""
        lane = self._by_uid.get(subscription_uid)
        if lane is not None:
            lane.announce(delivery_id)
        return lane

    def hand_over(self, lane: Lane, delivery_id: UUID, message: Message) -> None:
        """Queue a committed delivery that is due now, or drop it and mark the lane DIRTY.

        A delivery that was not announced to this lane is dropped too: a refill may have read it.
        """
        if (
            delivery_id not in lane.announced
            or lane.state is not LaneState.COMPLETE
            or not lane.sends()
            or self.budget.free_jobs(lane) <= 0
            or not self.budget.allows(lane.bytes_held, len(message.event.data))
        ):
            lane.mark_dirty()
            self.refill_queue.join(lane)
            return
        lane.announced.discard(delivery_id)
        job = Job(lane, delivery_id, message)
        lane.keep(job)
        self.dispatcher.enqueue(job)

    def owns(self, bucket: int) -> bool:
        """Whether this node owns the lanes of a bucket."""
        return self._owns(bucket)

    def touch(
        self,
        subscription_uid: UUID,
        bucket: int,
        *,
        tenant_uid: UUID = UNKNOWN_TENANT,
        from_peer: bool = False,
    ) -> None:
        """Mark a lane DIRTY, and create it where it is missing: memory may lack due deliveries.

        `from_peer`: another node notified this one.
        """
        if not self._owns(bucket):
            self._notify_owner(subscription_uid, bucket)
            return
        lane = self._by_uid.get(subscription_uid) or self._create(
            subscription_uid, bucket, tenant_uid
        )
        if lane is not None:
            lane.mark_used()
            lane.mark_dirty(can_wait=from_peer)
            self.refill_queue.join(lane)

    def changed(self, subscription_uid: UUID, bucket: int) -> None:
        """Create a lane of a subscription that was changed: it may send again."""
        if self._owns(bucket):
            self._forget_health(subscription_uid)
            self.touch(subscription_uid, bucket)

    # ------------------------------------------------------------------------ called by refills

    def get(self, subscription_uid: UUID) -> Lane | None:
        """Return the lane of a subscription, if memory has one."""
        return self._by_uid.get(subscription_uid)

    def all(self) -> Iterable[Lane]:
        """Return every lane."""
        return self._by_uid.values()

    def wants_refill(self, lane: Lane) -> bool:
        """Whether a read of the hot table is useful: the lane needs it, may send, and has space."""
        if lane.is_gone or not lane.needs_reading():
            return False
        if lane.fault and not lane.is_deleted:
            return lane.config_retry_s <= self._clock.boottime_s()
        if lane.config is None or lane.is_deleted or lane.is_outdated:
            return True
        if not lane.sends() or lane.circuit_open_until_s > self._clock.boottime_s():
            return False
        if lane.order is not None and not (lane.order.touched or self.may_walk(lane)):
            return False
        return self.budget.is_low(lane)

    def accept(self, lane: Lane, row: PendingRow, message: Message) -> None:
        """Queue a row that a refill read, unless memory has it already or the row is stale."""
        if not lane.takes(row):
            return
        if not lane.sends():
            lane.mark_dirty()
            return
        job = Job.from_row(lane, row, message)
        lane.keep(job)
        self.dispatcher.enqueue(job)

    def end_refill(self, lane: Lane, *, found_all: bool, walk_pause_s: float = 0.0) -> None:
        """End a read; the walk through the keys of an ordered lane pauses for `walk_pause_s`."""
        lane.end_refill(found_all=found_all)
        if lane.order is not None and walk_pause_s:
            until_s = self._clock.boottime_s() + walk_pause_s
            lane.order.pause_walk(until_s)
            self._timers.add(until_s, partial(self.refill_queue.join, lane))
        self.refill_queue.join(lane)

    def configure(self, lane: Lane, config: LaneConfig) -> None:
        """Replace the lane's configuration, unless the present one is newer."""
        before_bytes = lane.memory_bytes
        if lane.is_gone or not lane.configure(config):
            return
        self._lane_bytes += lane.memory_bytes - before_bytes
        if lane.sends():
            self._resume(lane)
        else:
            self.dispatcher.clear(lane)

    def set_fault(self, lane: Lane, name: str, fault: str) -> None:
        """Stop a lane for an error on the node's side; its due deliveries wait in Postgres."""
        lane.set_fault(name, fault, self._clock.boottime_s() + FAULT_PAUSE_S)
        self._resume_at(lane, lane.config_retry_s)
        self.dispatcher.clear(lane)

    def take_wanted(self, most: int | None = None) -> list[Lane]:
        """Take up to `most` lanes from the refill queue; return those that are to be read."""
        taken = self.refill_queue.take(len(self.refill_queue) if most is None else most)
        wanted: list[Lane] = []
        now_s = self._clock.boottime_s()
        for lane in taken:
            if self.wants_refill(lane):
                wanted.append(lane)
            elif lane.needs_reading() and lane.sends() and lane.circuit_open_until_s <= now_s:
                self._stalled[lane] = None
        return wanted

    def put_back(self, lanes: Iterable[Lane]) -> None:
        """Queue lanes again whose read failed."""
        for lane in lanes:
            self.refill_queue.join(lane)

    def queue_stalled(self) -> None:
        """Queue the lanes again for which the budget had no space."""
        stalled, self._stalled = self._stalled, {}
        self.put_back(stalled)

    def next_of_key(self, lane: Lane, key_hash: int) -> None:
        """Have an ordering key read at once: its earliest row may have changed."""
        if lane.order is None or not lane.order.touch(key_hash):
            lane.mark_dirty()
        self.refill_queue.join(lane)

    def may_walk(self, lane: Lane) -> bool:
        """Whether a page of the lane's ordering keys may be read now."""
        until_s = 0.0 if lane.order is None else lane.order.walk_paused_until_s
        return lane.state is LaneState.DIRTY and until_s <= self._clock.boottime_s()

    # ------------------------------------------------------------------- called by the recorder

    def finished(self, job: Job) -> None:
        """Drop a job whose row left the hot table, or is held there."""
        self._drop_job(job)
        if job.key_hash is not None and job.message.event.ordering_key:
            self.next_of_key(job.lane, job.key_hash)

    def rescheduled(self, job: Job, delay_s: float) -> None:
        """Keep a job until its next attempt, if that is within the next minute; else drop it."""
        job.reschedule()
        self.dispatcher.recorded(job)
        if job.key_hash is None:
            self.delay_queue.keep(job, delay_s)
            return
        job.lane.drop(job)
        self.next_of_key(job.lane, job.key_hash)

    def released(self, job: Job, delay_s: float) -> None:
        """Keep a job whose attempt failed by an internal error; its row was not written.

        Where memory cannot keep them all, the lane pauses: their rows are due, and would be read
        and released again as fast as Postgres answers.
        """
        lane = job.lane
        if job.is_stale:
            self.mismatched(job)
            return
        self.dispatcher.recorded(job)
        if self.delay_queue.keep(job, delay_s):
            return
        now_s = self._clock.boottime_s()
        if lane.circuit_open_until_s <= now_s:
            lane.pause(now_s + delay_s)
            self._resume_at(lane, lane.circuit_open_until_s)

    def mismatched(self, job: Job) -> None:
        """Drop a job whose row another transaction changed, and mark its lane DIRTY."""
        self._drop_job(job)
        job.lane.mark_dirty()
        self.refill_queue.join(job.lane)

    def succeeded(self, lane: Lane) -> None:
        """Take in a recorded success; it closes the circuit."""
        if lane.record_success():
            self._resume(lane)

    def failed(self, lane: Lane, failing_since_us: int) -> None:
        """Take in a recorded failure; enough consecutive ones, or a failed probe, open the circuit.

        `failing_since_us` is database time in Unix microseconds.
        """
        if lane.record_failure(failing_since_us, self._clock.boottime_s()):
            log_circuit_opened(lane, lane.circuit_backoff_s)
            self.dispatcher.clear(lane)
            self._resume_at(lane, lane.circuit_open_until_s)

    def disabled(self, lane: Lane) -> None:
        """Stop a lane whose subscription the engine disabled."""
        lane.disable()
        self.dispatcher.clear(lane)

    # ----------------------------------------------------- called when the change log is read

    def deleted(self, lane: Lane) -> None:
        """Stop a lane whose subscription was deleted: its pending deliveries are cancelled."""
        lane.mark_deleted()
        self.dispatcher.clear(lane)
        self.refill_queue.join(lane)

    def outdate(self, lane: Lane) -> None:
        """Stop a lane until its subscription is read again."""
        lane.mark_outdated()
        self.dispatcher.clear(lane)
        self.refill_queue.join(lane)

    def forget(self, lane: Lane, delivery_id: UUID, key_hash: int | None = None) -> None:
        """Drop a delivery whose row another transaction changed, and the other one of its key.

        A sent delivery stays in memory until it is recorded, and matches no row then: a refill that
        read it now would send it a second time.
        """
        for job in lane.supersede(delivery_id, key_hash):
            if not job.is_sent:
                self.dispatcher.remove(job)
                lane.drop(job)
            elif job.delivery_id == delivery_id:
                job.is_stale = True
        if lane.order is not None and key_hash is not None:
            lane.order.change(key_hash)
        lane.mark_dirty()
        self.refill_queue.join(lane)

    def forget_all(self, lane: Lane) -> None:
        """Drop every delivery of a lane: one statement changed many of its rows.

        Sent deliveries stay until they are recorded, as in `forget`.
        """
        self.dispatcher.clear(lane)
        for job in lane.supersede_all():
            if job.is_sent:
                job.is_stale = True
            else:
                lane.drop(job)
        self.refill_queue.join(lane)

    # --------------------------------------------------------------------- called by ownership

    def buckets_gained(self, buckets: Iterable[int]) -> None:
        """Have buckets swept: memory has no lane of them."""
        self._sweep_buckets(buckets)

    def buckets_lost(self, buckets: Iterable[int]) -> None:
        """Drop everything of these buckets; the record of a sent delivery will not match."""
        lost = set(buckets)
        for lane in [lane for lane in self._by_uid.values() if lane.bucket in lost]:
            self.dispatcher.clear(lane)
            self._discard(lane)
        for uid in [uid for uid, health in self._evicted.items() if health.bucket in lost]:
            self._forget_health(uid)

    def quiet_buckets(self, buckets: Iterable[int]) -> set[int]:
        """Suspend these buckets, and no others; return those without unrecorded deliveries."""
        surplus = set(buckets)
        self.dispatcher.suspend(surplus, self._by_uid.values())
        lanes = self._by_uid.values() if surplus else ()
        return surplus - {lane.bucket for lane in lanes if lane.unrecorded}

    # ---------------------------------------------------------------------- eviction and views

    def shrink_to(self, max_bytes: int, most: int | None = None) -> None:
        """Evict lanes that hold nothing to be sent now, least recently used first.

        Ends at `max_bytes`, or after `most` lanes were looked at. The health of a lane that may not
        be read yet is kept.
        """
        now_s = self._clock.boottime_s()
        for _ in range(2 * len(self._by_uid) if most is None else most):
            if self._lane_bytes <= max_bytes or not self._by_uid:
                return
            uid, lane = next(iter(self._by_uid.items()))
            if (
                lane.is_used
                or lane in self._stalled
                or lane in self.refill_queue
                or not lane.is_idle(now_s)
            ):
                lane.mark_used(is_used=False)
                self._by_uid.move_to_end(uid)
                continue
            self._discard(lane)
            self._keep_health(lane, now_s)

    def counts(self) -> LaneCounts:
        """Count the lanes by their condition."""
        return counts_of(self._by_uid.values(), self.dispatcher.may_take)

    def top(self, count: int) -> list[LaneView]:
        """Return the lanes with the most deliveries in memory."""
        return top_of(self._by_uid.values(), self.dispatcher.may_take, count)

    def waiting_reason(
        self, subscription_uid: UUID, delivery_id: UUID
    ) -> DeliveryStateReason | None:
        """Return why a due delivery waits; None where it is sent, or about to be, or elsewhere."""
        lane = self._by_uid.get(subscription_uid)
        return reason_of(lane, delivery_id, self.dispatcher.may_take)

    # ---------------------------------------------------------------------------------- within

    def _drop_job(self, job: Job) -> None:
        job.lane.drop(job)
        self.dispatcher.recorded(job)

    def _create(self, subscription_uid: UUID, bucket: int, tenant_uid: UUID) -> Lane | None:
        """Create a lane; None where its circuit is open, or memory has no space for it."""
        health = self._evicted.get(subscription_uid)
        if health is not None and health.until_s > self._clock.boottime_s():
            return None
        if not self.refill_queue.allows(tenant_uid) or not self._has_space():
            self._sweep_buckets((bucket,))
            return None
        lane = self._by_uid[subscription_uid] = Lane(subscription_uid, bucket, tenant_uid)
        self._lane_bytes += lane.memory_bytes
        if health is not None:
            lane.restore_circuit(health.failures, health.circuit_backoff_s)
            self._forget_health(subscription_uid)
        return lane

    def _has_space(self) -> bool:
        """Whether memory has space for one more lane, after an eviction where that is due."""
        most, now_s = self._max_lane_bytes - LANE_BYTES, self._clock.boottime_s()
        if self._lane_bytes > most and now_s >= self._evict_again_s:
            self.shrink_to(most, EVICTION_STEPS)
            if self._lane_bytes > most:
                self._evict_again_s = now_s + EVICTION_PAUSE_S
        return self._lane_bytes <= most

    def _discard(self, lane: Lane) -> None:
        lane.discard()
        del self._by_uid[lane.subscription_uid]
        self._lane_bytes -= lane.memory_bytes
        self._stalled.pop(lane, None)

    def _keep_health(self, lane: Lane, now_s: float) -> None:
        """Keep the health of an evicted lane that may not be read yet.

        All of it takes at most half of the memory for lanes.
        """
        until_s = max(lane.circuit_open_until_s, lane.config_retry_s if lane.fault else 0.0)
        if lane.is_deleted or until_s <= now_s:
            return
        while self._evicted and 2 * HEALTH_BYTES * len(self._evicted) >= self._max_lane_bytes:
            self._forget_health(next(iter(self._evicted)))
        self._evicted[lane.subscription_uid] = EvictedHealth(
            lane.bucket, lane.tenant_uid, until_s, lane.circuit_backoff_s, lane.failures
        )
        self._lane_bytes += HEALTH_BYTES

    def _forget_health(self, subscription_uid: UUID) -> None:
        if self._evicted.pop(subscription_uid, None) is not None:
            self._lane_bytes -= HEALTH_BYTES

    def _resume_at(self, lane: Lane, at_s: float) -> None:
        """Resume a lane then, or create it again where it was evicted by then."""
        self._timers.add(at_s, partial(self._end_pause, lane.subscription_uid))

    def _end_pause(self, subscription_uid: UUID) -> None:
        lane = self._by_uid.get(subscription_uid)
        health = self._evicted.get(subscription_uid)
        if lane is not None:
            self._resume(lane)
        elif health is not None:
            self.touch(subscription_uid, health.bucket, tenant_uid=health.tenant_uid)

    def _resume(self, lane: Lane) -> None:
        """Let a lane send and be read, if it may."""
        self.dispatcher.list_if_ready(lane)
        self.refill_queue.join(lane)
