"""One lane: the queue of one subscription, the health of its target, and all changes of both.

Every attribute of a `Lane` is assigned here and nowhere else (`tests/architecture/test_state.py`).
The module does not depend on other lanes: `dispatcher.py` decides which lane sends next and how
much memory each may take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from hookline_service.domain.attempt import Outcome, Verdict
from hookline_service.domain.delivery import Budget
from hookline_service.domain.retry import RetrySchedule
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.key_order import KeyOrder
from hookline_service.store.lanes import PendingRow
from hookline_service.targets.payload import Message
from hookline_service.targets.sender import TargetSender
from hookline_service.telemetry.attempts import AttemptTrace

CIRCUIT_FAILURES = 10
"""Consecutive failures that open a lane's circuit."""
CIRCUIT_BACKOFF_S = 5.0
CIRCUIT_BACKOFF_MAX_S = 300.0
LANE_BYTES = 3_500
"""Memory of a lane with a plain target and an empty queue, measured; see `ADR 35`."""
CONFIG_BYTES = 2_400
UNKNOWN_TENANT = UUID(int=0)
NOTIFIED_QUEUE_MAX = 16
"""A lane with a longer queue does not act on another node's notification yet."""
CATCH_UP_S = 0.05
"""A rate limit makes up for delays of the node up to this, so that a busy node keeps the rate."""


class LaneState(StrEnum):
    """How complete a cache of the hot table a lane is."""

    COMPLETE = "COMPLETE"
    DIRTY = "DIRTY"
    REFILLING = "REFILLING"


def _never() -> bool:
    return False


class Job:
    """A pending delivery in memory; while it is sent, the `SendJob` of its target's sender."""

    __slots__ = (
        "attempt_count",
        "attempts_base",
        "attempts_until",
        "data_bytes",
        "delivery_id",
        "holds_lease",
        "is_sent",
        "is_stale",
        "key_hash",
        "lane",
        "message",
        "start_us",
        "trace",
        "version",
    )

    def __init__(self, lane: Lane, delivery_id: UUID, message: Message) -> None:
        self.lane = lane
        self.delivery_id = delivery_id
        self.message = message
        self.data_bytes = len(message.event.data)
        """Its part of the event data that memory may hold."""
        self.version = 0
        self.attempt_count = 0
        self.attempts_base: int | None = None
        self.attempts_until: int | None = None
        self.key_hash: int | None = None
        """The hash of its ordering key, where its lane is ordered."""
        self.is_sent = False
        """Whether a worker has taken it and its outcome is not recorded yet."""
        self.is_stale = False
        """Whether another transaction changed its row while it was sent."""
        self.trace: AttemptTrace | None = None
        """The trace of the attempt under way, where it is traced."""
        self.start_us = 0
        """The start of the attempt under way: database time, Unix microseconds."""
        self.holds_lease: Callable[[], bool] = _never
        """Whether this node's lease holds; set when an attempt starts."""

    @classmethod
    def from_row(cls, lane: Lane, row: PendingRow, message: Message) -> Job:
        """Create the job of a row of the hot table."""
        job = cls(lane, row.delivery_id, message)
        job.version = row.version
        job.attempt_count = row.attempt_count
        job.attempts_base = row.attempts_base
        job.attempts_until = row.attempts_until
        job.key_hash = row.key_hash
        return job

    def is_known(self) -> bool:
        """Whether memory still holds it; a job that memory dropped is neither sent nor recorded."""
        return self.lane.known.get(self.delivery_id) is self

    def may_send(self) -> bool:
        """Whether it may be sent now: the lease holds, and its row has not changed.

        A lease that was lost and acquired anew does not allow what memory held before, nor what
        was cancelled meanwhile.
        """
        return self.holds_lease() and self.is_known() and not self.is_stale

    @property
    def traceparent(self) -> bytes | None:
        """The trace context for the receiver, where its subscription propagates it."""
        trace, config = self.trace, self.lane.config
        if trace is None or config is None or not config.propagate_trace:
            return None
        return trace.traceparent

    def budget(self, schedule: RetrySchedule) -> Budget:
        """Return the attempts spent and allowed; an operator's retry sets a budget of its own."""
        return Budget(
            self.attempt_count,
            schedule.max_attempts if self.attempts_until is None else self.attempts_until,
            self.attempts_base or 0,
        )

    def reschedule(self) -> None:
        """Count the recorded attempt; its row has the next version."""
        self.version += 1
        self.attempt_count += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConfig:
    """The properties of a subscription that its lane depends on."""

    name: str
    """The subscription's resource name, for operators."""
    version: int
    """The version of the subscription's row; an older one never replaces a newer."""
    tenant_uid: UUID
    state: SubscriptionState
    schedule: RetrySchedule
    max_in_flight: int
    max_per_second: float | None
    is_ordered: bool
    sender: TargetSender
    propagate_trace: bool = False
    """Whether requests carry the trace, for the receiver to continue."""
    failing_since_us: int | None
    """Database time in Unix microseconds."""

    @property
    def memory_bytes(self) -> int:
        """Estimate the memory of a lane with this configuration and an empty queue."""
        return CONFIG_BYTES + self.sender.memory_bytes


class Lane:
    """The queue of one subscription, and the health of its target."""

    __slots__ = (
        "announced",
        "answered_failures",
        "answered_s",
        "bucket",
        "bytes_held",
        "circuit_backoff_s",
        "circuit_open_until_s",
        "concurrency_limit",
        "config",
        "config_retry_s",
        "dirty_since_read",
        "failing_since_us",
        "failures",
        "fault",
        "in_flight",
        "is_deleted",
        "is_gone",
        "is_notified",
        "is_outdated",
        "is_read_stale",
        "is_suspect",
        "is_used",
        "known",
        "memory_bytes",
        "name",
        "order",
        "queue",
        "rate_limited_until_s",
        "secret_expiry",
        "stale",
        "state",
        "subscription_uid",
        "tenant_uid",
        "timer_count",
        "unrecorded",
    )

    def __init__(  # noqa: PLR0915 - one assignment for each attribute
        self, subscription_uid: UUID, bucket: int, tenant_uid: UUID = UNKNOWN_TENANT
    ) -> None:
        self.subscription_uid, self.bucket, self.tenant_uid = subscription_uid, bucket, tenant_uid
        self.config: LaneConfig | None = None
        self.name = str(subscription_uid)
        """The subscription's resource name, once it is read."""
        self.fault = ""
        """An error on the node's side that prevents sending, such as a secret that cannot be
        decrypted; empty: none."""
        self.config_retry_s = 0.0
        """With a fault, the subscription is not read before then, unless it changes."""
        self.secret_expiry: datetime | None = None
        """The end of a rotated secret's overlap that a timer waits for."""
        self.is_outdated = False
        """Whether the configuration is out of date; nothing is sent until it is read again."""
        self.is_deleted = False
        """Whether its subscription is a tombstone: its pending deliveries are to be cancelled."""
        self.is_gone = False
        """Whether memory dropped the lane: its bucket was lost, or it was evicted."""

        self.state = LaneState.DIRTY
        self.dirty_since_read = False
        """Whether it was marked DIRTY since the refill under way began."""
        self.is_notified = False
        """Whether another node notified of due work that is read once the queue is short."""
        self.is_read_stale = False
        """Whether all rows of the refill under way are to be discarded."""
        self.stale: set[UUID | int | None] = set()
        """Delivery ids, and hashes of ordering keys, that were changed since the refill under way
        began: its rows of these are discarded."""

        self.queue: deque[Job] = deque()
        self.known: dict[UUID, Job] = {}
        """Every job in memory: queued, in flight, not yet recorded, or waiting for its due time."""
        self.announced: set[UUID] = set()
        """Deliveries that a commit under way may write; handed over after it, or withdrawn."""
        self.order: KeyOrder | None = None
        """Its ordering keys; None where its subscription is not ordered, or not read yet."""
        self.bytes_held = 0
        """Event data of the jobs that are queued or wait for their due time."""
        self.timer_count = 0
        """Jobs and ordering keys that wait for their due time in memory."""
        self.memory_bytes = LANE_BYTES
        """Its part of the memory that lanes may take."""
        self.is_used = True
        """Whether it was used since eviction last looked at it."""

        self.in_flight = 0
        """Requests without an answer."""
        self.unrecorded = 0
        """Jobs that were sent and are not yet recorded."""
        self.concurrency_limit = 1.0
        """Requests at a time: AIMD, between 1 and the subscription's `max_in_flight`."""
        self.rate_limited_until_s = 0.0
        """Nothing is sent before then: the subscription's rate limit."""
        self.answered_s = 0.0
        """The time of the last answer, or of the first request after an idle time."""
        self.is_suspect = True
        """Whether the target may hang: its last attempt failed, it has not answered yet, or it has
        been silent (`dispatcher.py`)."""
        self.failures = self.answered_failures = 0
        """Consecutive failures: the recorded ones, and all that were answered."""
        self.failing_since_us: int | None = None
        self.circuit_backoff_s = 0.0
        """Above zero: the circuit is open, or half-open after `circuit_open_until_s`."""
        self.circuit_open_until_s = 0.0
        """Nothing is sent or read before then."""

    # --------------------------------------------------------------------- its subscription

    def sends(self) -> bool:
        """Whether its subscription allows sending at all."""
        config = self.config
        return (
            config is not None
            and config.state is SubscriptionState.ACTIVE
            and not self.is_deleted
            and not self.is_outdated
            and not self.fault
        )

    def configure(self, config: LaneConfig) -> bool:
        """Replace the configuration; False where the present one is newer."""
        before = self.config
        if before is not None and config.version < before.version:
            return False
        self.config = config
        self.tenant_uid = config.tenant_uid
        self.name = config.name
        self.memory_bytes = config.memory_bytes
        self.fault = ""
        self.is_outdated = False
        if config.is_ordered and self.order is None:
            self.order = KeyOrder()
        if before is None:
            self.failing_since_us = config.failing_since_us
            if config.failing_since_us is not None and not self.is_circuit_open:
                self.circuit_backoff_s = CIRCUIT_BACKOFF_S  # half-open: one probe decides
            self.concurrency_limit = 1.0 if self.is_circuit_open else float(config.max_in_flight)
            return True
        self.concurrency_limit = min(self.concurrency_limit, float(config.max_in_flight))
        if (
            config.state is not before.state
            or config.sender.destination != before.sender.destination
        ):
            self.close_circuit()  # an operator changed the target or resumed it: start afresh
            self.concurrency_limit = float(config.max_in_flight)
            self.failing_since_us = config.failing_since_us
        if config.max_per_second != before.max_per_second:
            self.rate_limited_until_s = 0.0
        return True

    def assign_tenant(self, tenant_uid: UUID) -> None:
        """Set the tenant of a lane that was created without one."""
        self.tenant_uid = tenant_uid

    def set_fault(self, name: str, fault: str, retry_s: float) -> None:
        """Stop sending for an error on the node's side; the subscription is read again later."""
        self.name, self.fault, self.config_retry_s = name, fault, retry_s

    def expect_secret_expiry(self, expiry: datetime | None) -> None:
        """Set the end of a secret's overlap that a timer waits for; None: no timer waits."""
        self.secret_expiry = expiry

    def mark_outdated(self) -> None:
        """Stop sending until the subscription is read again."""
        self.is_outdated = True

    def mark_deleted(self) -> None:
        """Stop sending for good: the pending deliveries are cancelled, in any order."""
        self.is_deleted = True
        self.order = None

    def disable(self) -> None:
        """Stop sending: the engine disabled the subscription."""
        if self.config is not None:
            self.config = replace(self.config, state=SubscriptionState.DISABLED)

    def discard(self) -> None:
        """Drop all jobs and the configuration: memory no longer has this lane."""
        self.is_gone = True
        self.config = None
        self.known.clear()

    # ------------------------------------------------------------------------ jobs in memory

    def announce(self, delivery_id: UUID) -> None:
        """Reserve a delivery for the publisher whose commit may write it."""
        self.is_used = True
        self.announced.add(delivery_id)

    def holds(self, delivery_id: UUID) -> bool:
        """Whether memory has this delivery, or a publisher is about to hand it over."""
        return delivery_id in self.known or delivery_id in self.announced

    def takes(self, row: PendingRow) -> bool:
        """Whether a row that was read is missing in memory, and not stale."""
        if self.is_gone or self.is_read_stale or self.holds(row.delivery_id):
            return False
        if self.stale and self.stale & {row.delivery_id, row.key_hash}:
            return False
        return self.order is None or row.key_hash not in self.order.busy

    def keep(self, job: Job) -> None:
        """Hold a job in memory."""
        self.known[job.delivery_id] = job
        if self.order is not None and job.key_hash is not None:
            self.order.hold(job.key_hash)

    def drop(self, job: Job) -> None:
        """Drop a job from memory; a job that was read later for the same delivery stays."""
        if job.is_known():
            del self.known[job.delivery_id]
            if self.order is not None and job.key_hash is not None:
                self.order.release(job.key_hash)

    def append(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self.queue.append(job)
        self.bytes_held += job.data_bytes

    def pop(self) -> Job:
        """Remove the first job of the queue."""
        job = self.queue.popleft()
        self.bytes_held -= job.data_bytes
        return job

    def remove(self, job: Job) -> bool:
        """Remove a job from anywhere in the queue; False where it is not queued."""
        if job not in self.queue:
            return False
        self.queue.remove(job)
        self.bytes_held -= job.data_bytes
        return True

    def start_timer(self, data_bytes: int = 0) -> None:
        """Count a job, or an ordering key, that waits in memory for its due time."""
        self.timer_count += 1
        self.bytes_held += data_bytes

    def end_timer(self, data_bytes: int = 0) -> None:
        """Stop counting it: it came due."""
        self.timer_count -= 1
        self.bytes_held -= data_bytes

    def supersede(self, delivery_id: UUID, key_hash: int | None) -> list[Job]:
        """Return the jobs of a delivery that another transaction changed, and of its ordering key.

        The changed delivery may now be the earliest of its key. Rows of both that a refill under
        way returns are discarded.
        """
        order = None if key_hash is None else self.order
        if self.state is LaneState.REFILLING:
            self.stale |= {delivery_id} if order is None else {delivery_id, key_hash}
        if order is None:
            return [self.known[delivery_id]] if delivery_id in self.known else []
        jobs = self.known.values() if key_hash in order.busy else ()
        return [job for job in jobs if job.key_hash == key_hash]

    def supersede_all(self) -> list[Job]:
        """Return every job in memory; all rows of a refill under way are discarded."""
        if self.state is LaneState.REFILLING:
            self.is_read_stale = True
        if self.order is not None:
            self.order.end_waits()
        return list(self.known.values())

    def mark_used(self, *, is_used: bool = True) -> None:
        """Set whether eviction passes the lane over when it next looks at it."""
        self.is_used = is_used

    def is_idle(self, now_s: float) -> bool:
        """Whether the lane can be evicted and nothing is lost that Postgres does not have.

        Deliveries that wait for their due time do not count: the sweep finds them once they are
        due.
        """
        return not (
            self.queue or self.unrecorded or self.announced or self.rate_limited_until_s > now_s
        )

    # -------------------------------------------------------------------------------- refills

    def needs_reading(self) -> bool:
        """Whether the hot table may have due deliveries that memory lacks."""
        if self.state is LaneState.COMPLETE:
            return self.order is not None and bool(self.order.touched)
        return self.state is LaneState.DIRTY

    def mark_dirty(self, *, can_wait: bool = False) -> None:
        """Record that deliveries may be due that memory lacks.

        With `can_wait`, only once the queue is short: the lane is read less often, for more
        deliveries at a time, and takes hand-offs meanwhile.
        """
        self.is_notified = can_wait and self.order is None and len(self.queue) > NOTIFIED_QUEUE_MAX
        if self.is_notified:
            return
        self.dirty_since_read = True
        if self.state is LaneState.COMPLETE:
            self.state = LaneState.DIRTY

    def begin_refill(self) -> None:
        """Begin to read; a later `mark_dirty` requires another read."""
        self.state = LaneState.REFILLING
        self.dirty_since_read = self.is_notified = False

    def end_refill(self, *, found_all: bool) -> None:
        """End a read; COMPLETE if it found everything and the lane was not marked DIRTY since."""
        self.is_used = True
        is_complete = found_all and not self.dirty_since_read
        self.state = LaneState.COMPLETE if is_complete else LaneState.DIRTY
        self.stale.clear()
        self.is_read_stale = False

    # ------------------------------------------------------- attempts, concurrency and rate

    def has_capacity(self) -> bool:
        """Whether the concurrency limit and the circuit allow one more request.

        While the circuit is half-open one probe is sent at a time, and the next waits for its
        record. After as many answered failures as open the circuit, none is sent before they are
        recorded; nor after a single 410, which may disable the subscription.
        """
        if self.circuit_backoff_s > 0:
            return self.unrecorded == 0
        if self.answered_failures >= CIRCUIT_FAILURES and self.unrecorded > self.in_flight:
            return False
        return self.in_flight < max(1, int(self.concurrency_limit))

    def start_next(self, now_s: float) -> Job:
        """Remove the first job of the queue and count it as sent."""
        job = self.queue.popleft()
        self.bytes_held -= job.data_bytes
        job.is_sent = True
        if not self.in_flight:
            self.answered_s = now_s
        self.in_flight += 1
        self.unrecorded += 1
        return job

    def end_request(self, outcome: Outcome, now_s: float) -> None:
        """Count an answer and adapt the concurrency limit: success raises it, a throttle halves it.

        An internal error says nothing about the target.
        """
        self.in_flight -= 1
        verdict = outcome.verdict
        if verdict is Verdict.INTERNAL_ERROR:
            return
        self.answered_s = now_s
        if verdict is Verdict.ACCEPTED:
            self.answered_failures = 0
            if self.config is not None and self.concurrency_limit < self.config.max_in_flight:
                self.concurrency_limit += 1 / self.concurrency_limit
            return
        is_gone = verdict is Verdict.GONE
        self.answered_failures = max(self.answered_failures + 1, CIRCUIT_FAILURES if is_gone else 0)
        if verdict is Verdict.THROTTLED:
            self.concurrency_limit = max(1.0, self.concurrency_limit / 2)

    def end_attempt(self, job: Job) -> None:
        """Count a sent job as recorded."""
        job.is_sent = False
        self.unrecorded -= 1

    def limit_rate(self, per_second: float, now_s: float) -> float:
        """Count one request against the rate limit; return when the next one may be sent."""
        due_s = self.rate_limited_until_s
        start_s = due_s if now_s - due_s < CATCH_UP_S else now_s
        self.rate_limited_until_s = start_s + 1 / per_second
        return self.rate_limited_until_s

    # ------------------------------------------------------------- suspicion and the circuit

    def set_suspect(self, *, is_suspect: bool) -> None:
        """Set whether the target may hang."""
        self.is_suspect = is_suspect

    @property
    def is_circuit_open(self) -> bool:
        """Whether the circuit is open or half-open: only probes are sent."""
        return self.circuit_backoff_s > 0

    def record_success(self) -> bool:
        """Take in a recorded success; True where it closed the circuit."""
        self.failures = 0
        self.failing_since_us = None
        if self.circuit_backoff_s == 0:
            return False
        self.close_circuit()
        return True

    def record_failure(self, failing_since_us: int, now_s: float) -> bool:
        """Take in a recorded failure; True where it opened the circuit.

        `CIRCUIT_FAILURES` consecutive failures open it, and so does a failed probe.
        """
        self.failures += 1
        if self.failing_since_us is None:
            self.failing_since_us = failing_since_us
        return (self.failures >= CIRCUIT_FAILURES or self.is_circuit_open) and self._open_circuit(
            now_s
        )

    def close_circuit(self) -> None:
        """Close the circuit; the concurrency limit grows again from one request."""
        self.failures = 0
        self.answered_failures = 0
        self.circuit_backoff_s = 0.0
        self.circuit_open_until_s = 0.0

    def restore_circuit(self, failures: int, backoff_s: float) -> None:
        """Take over the circuit of a lane of the same subscription that was evicted."""
        self.failures, self.circuit_backoff_s = failures, backoff_s

    def pause(self, until_s: float) -> None:
        """Neither send nor read before then; the circuit stays as it is."""
        self.circuit_open_until_s = until_s

    def _open_circuit(self, now_s: float) -> bool:
        """Open it for twice the last backoff; False where it is open already."""
        if self.is_circuit_open and self.circuit_open_until_s > now_s:
            return False  # late answers of requests that were on the wire when it opened
        doubled_s = self.circuit_backoff_s * 2 or CIRCUIT_BACKOFF_S
        self.circuit_backoff_s = min(doubled_s, CIRCUIT_BACKOFF_MAX_S)
        self.circuit_open_until_s = now_s + self.circuit_backoff_s
        self.concurrency_limit = 1.0
        return True
