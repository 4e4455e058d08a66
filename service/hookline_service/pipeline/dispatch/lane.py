"""One lane: the queue of one subscription, and its target's health.

Knows nothing of other lanes; their turns and their shares are `lanes.py`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.delivery import GONE, THROTTLES, Budget
from hookline_service.domain.event import Event
from hookline_service.domain.retry import RetrySchedule
from hookline_service.domain.subscription import PayloadFormat, SubscriptionState
from hookline_service.pipeline.dispatch.key_order import KeyOrder
from hookline_service.store.lanes import PendingRow
from hookline_service.targets.http.payload import Payload
from hookline_service.targets.http.prepared import PreparedTarget
from hookline_service.telemetry.attempts import AttemptTrace

CIRCUIT_FAILURES = 10
"""Failures in a row that open a lane's circuit."""
CIRCUIT_BACKOFF_S = 5.0
CIRCUIT_BACKOFF_MAX_S = 300.0
LANE_BYTES = 3_500
"""What a lane takes of memory with a plain target and nothing queued, measured; see `ADR 35`."""
CONFIG_BYTES, ENDPOINT_BYTES, HEADER_BYTES = 2_400, 500, 120
UNKNOWN_TENANT = UUID(int=0)
ENOUGH_QUEUED = 16
"""With more in its queue, a lane does not heed the word of another node yet."""


class LaneState(StrEnum):
    """How good a cache of the hot table a lane is."""

    COMPLETE = "COMPLETE"
    DIRTY = "DIRTY"
    REFILLING = "REFILLING"


class Message:
    """One event as it is sent: its id on the wire, and its body in each format, built once."""

    __slots__ = ("event", "payloads", "webhook_id")

    def __init__(self, event: Event, webhook_id: str) -> None:
        self.event = event
        self.webhook_id = webhook_id
        self.payloads: dict[PayloadFormat, Payload] = {}


class Job:
    """A pending delivery in memory."""

    __slots__ = (
        "attempt_count",
        "attempts_base",
        "attempts_until",
        "delivery_id",
        "is_sent",
        "is_stale",
        "key_hash",
        "lane",
        "message",
        "trace",
        "version",
    )

    def __init__(self, lane: Lane, delivery_id: UUID, message: Message) -> None:
        self.lane = lane
        self.delivery_id = delivery_id
        self.message = message
        self.version = 0
        self.attempt_count = 0
        self.attempts_base: int | None = None
        self.attempts_until: int | None = None
        self.key_hash: int | None = None
        """Of its ordering key, where its lane is ordered."""
        self.is_sent = False
        """Taken by a deliverer and not yet recorded."""
        self.is_stale = False
        """Somebody else changed its row while it was sent."""
        self.trace: AttemptTrace | None = None
        """Of the attempt under way, where it is traced."""

    def is_known(self) -> bool:
        """Whether memory still has it; what it forgot is not this node's to send or record."""
        return self.lane.known.get(self.delivery_id) is self

    @property
    def data_bytes(self) -> int:
        """What it counts for against the bytes that may be held."""
        return len(self.message.event.data)

    def budget(self, schedule: RetrySchedule) -> Budget:
        """What it has spent and may spend; an operator's retry gave it a budget of its own."""
        return Budget(
            self.attempt_count,
            schedule.max_attempts if self.attempts_until is None else self.attempts_until,
            self.attempts_base or 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConfig:
    """What a lane must know of its subscription."""

    name: str
    """The subscription's resource name, for people."""
    version: int
    """Of the subscription's row; an older one never replaces a newer."""
    tenant_uid: UUID
    state: SubscriptionState
    schedule: RetrySchedule
    max_in_flight: int
    max_per_second: float | None
    is_ordered: bool
    payload_format: PayloadFormat
    url: str
    target: PreparedTarget
    propagate_trace: bool = False
    """Whether requests carry the trace, for the receiver to continue."""
    failing_since_us: int | None
    """Database time in Unix microseconds."""

    @property
    def memory_bytes(self) -> int:
        """What a lane takes of memory with it, about; nothing of what is queued."""
        endpoints = self.target.endpoints
        headers = [header for endpoint in endpoints for header in endpoint.headers]
        texts = sum(len(name) + len(value) + HEADER_BYTES for name, value in headers)
        return CONFIG_BYTES + ENDPOINT_BYTES * len(endpoints) + texts


class Lane:
    """The queue of one subscription, and what it knows of its target."""

    __slots__ = (
        "announced",
        "bucket",
        "bytes_held",
        "circuit_backoff_s",
        "circuit_open_until_s",
        "concurrency_limit",
        "config",
        "dirty_since_read",
        "failing_since_us",
        "failures",
        "fault",
        "has_turn",
        "heard_s",
        "in_flight",
        "is_being_read",
        "is_deleted",
        "is_gone",
        "is_outdated",
        "is_read_stale",
        "is_suspect",
        "is_told",
        "is_used",
        "known",
        "memory_bytes",
        "name",
        "order",
        "paced_until_s",
        "queue",
        "read_again_s",
        "stale",
        "state",
        "streak",
        "subscription_uid",
        "tenant_uid",
        "timed",
        "unrecorded",
        "waits_for_refill",
        "watched_expiry",
    )

    def __init__(
        self, subscription_uid: UUID, bucket: int, tenant_uid: UUID = UNKNOWN_TENANT
    ) -> None:
        self.subscription_uid, self.bucket, self.tenant_uid = subscription_uid, bucket, tenant_uid
        self.config: LaneConfig | None = None
        self.name = str(subscription_uid)
        """The subscription's resource name, once it is known."""
        self.fault = ""
        """Why it cannot be made ready, which is ours to mend: a secret that does not open."""
        self.read_again_s = 0.0
        """With a fault, its subscription is not read before then, unless it changes."""
        self.state = LaneState.DIRTY
        self.dirty_since_read = self.is_told = False
        """Told: another node has something for it, which is read when its queue is short."""
        self.queue: deque[Job] = deque()
        self.known: dict[UUID, Job] = {}
        """Every job in memory: queued, in flight, not yet recorded, waiting for its time."""
        self.announced: set[UUID] = set()
        """What a commit under way may write; handed over after it, or withdrawn."""
        self.is_read_stale = False
        self.stale: set[UUID | int | None] = set()
        """What others changed since the refill under way began, and the hashes of their ordering
        keys: its rows of these are discarded. Where `is_read_stale`, all of its rows are."""
        self.order: KeyOrder | None = None
        """Its keys, where its subscription is ordered; that is known once it is configured."""
        self.bytes_held = 0
        """Event data of what is queued or waits for its time."""
        self.timed = self.in_flight = 0
        self.unrecorded = 0
        """Sent and not yet recorded."""
        self.concurrency_limit = 1.0
        self.failures = self.streak = 0
        """In a row: those that are recorded, and all."""
        self.failing_since_us: int | None = None
        self.circuit_backoff_s = 0.0
        """Above zero: the circuit is open, or half open once `circuit_open_until_s` has come."""
        self.circuit_open_until_s = 0.0
        """Until then nothing is sent, and nothing is read either."""
        self.paced_until_s = 0.0
        """Until then nothing is sent: its rate."""
        self.is_suspect, self.heard_s = True, 0.0
        """Whether its target does not answer well, and when it was last heard (`sending.py`)."""
        self.is_deleted = False
        """Its subscription is a tombstone: what is still pending is to be cancelled."""
        self.is_outdated = False
        """What it knows of its subscription is no longer true; nothing is sent until it is read."""
        self.is_gone = False
        """Memory has forgotten it: its bucket is another's, or another lane stands in its place."""
        self.watched_expiry: datetime | None = None
        """The end of a secret's overlap that a timer waits for."""
        self.memory_bytes = LANE_BYTES  # what it counts for against the bytes that lanes may take
        self.is_used = True  # since eviction last came by
        # In the round of those that may send; in the refill queue; taken from it and not done with.
        self.has_turn = self.waits_for_refill = self.is_being_read = False

    def may_be_evicted(self, now_s: float) -> bool:
        """Whether nothing is lost with it but what Postgres has, or is read anew.

        Deliveries that wait for their time may go: a sweep finds them when they are due.
        """
        return not (
            self.queue
            or self.unrecorded
            or self.announced
            or self.waits_for_refill
            or self.is_being_read
            or self.paced_until_s > now_s
        )

    def holds(self, delivery_id: UUID) -> bool:
        """Whether memory has this delivery, or is about to be handed it."""
        return delivery_id in self.known or delivery_id in self.announced

    def takes(self, row: PendingRow) -> bool:
        """Whether a row that was read is news, and still true."""
        if self.is_gone or self.is_read_stale or self.holds(row.delivery_id):
            return False
        if self.stale and self.stale & {row.delivery_id, row.key_hash}:
            return False
        return self.order is None or row.key_hash not in self.order.busy

    def keep(self, job: Job) -> None:
        """Have a job in memory."""
        self.known[job.delivery_id] = job
        if self.order is not None and job.key_hash is not None:
            self.order.hold(job.key_hash)

    def drop(self, job: Job) -> None:
        """Forget a job; one that was read since for the same delivery stays."""
        if job.is_known():
            del self.known[job.delivery_id]
            if self.order is not None and job.key_hash is not None:
                self.order.busy.discard(job.key_hash)

    def supersede(self, delivery_id: UUID, key_hash: int | None) -> list[Job]:
        """Somebody changed a delivery, which may be the earliest of its key by now.

        What is being read of both is discarded; what memory has of both is returned.
        """
        order = None if key_hash is None else self.order
        if self.state is LaneState.REFILLING:
            self.stale |= {delivery_id} if order is None else {delivery_id, key_hash}
        if order is None:
            return [self.known[delivery_id]] if delivery_id in self.known else []
        jobs = self.known.values() if key_hash in order.busy else ()
        return [job for job in jobs if job.key_hash == key_hash]

    def supersede_all(self) -> list[Job]:
        """Return every delivery in memory; the rows of a refill under way are discarded."""
        if self.state is LaneState.REFILLING:
            self.is_read_stale = True
        if self.order is not None:
            self.order.waiting.clear()
        return list(self.known.values())

    def needs_reading(self) -> bool:
        """Whether something is due, or may be, that only the hot table knows."""
        if self.state is LaneState.COMPLETE:
            return self.order is not None and bool(self.order.touched)
        return self.state is LaneState.DIRTY

    @property
    def is_circuit_open(self) -> bool:
        """Whether the target has failed so often that only probes go out."""
        return self.circuit_backoff_s > 0

    def mark_dirty(self, *, can_wait: bool = False) -> None:
        """Something is due that memory may not hold.

        `can_wait`: while enough is queued. So a lane is read less often, for more at a time, with
        less to leave out, and takes hand-offs meanwhile.
        """
        self.is_told = can_wait and self.order is None and len(self.queue) > ENOUGH_QUEUED
        if self.is_told:
            return
        self.dirty_since_read = True
        if self.state is LaneState.COMPLETE:
            self.state = LaneState.DIRTY

    def sends(self) -> bool:
        """Whether its subscription lets anything out at all."""
        config = self.config
        return (
            config is not None
            and config.state is SubscriptionState.ACTIVE
            and not self.is_deleted
            and not self.is_outdated
            and not self.fault
        )

    def adopt(self, config: LaneConfig) -> bool:
        """Take in what is now true of its subscription; False where it knows something newer."""
        before = self.config
        if before is not None and config.version < before.version:
            return False
        self.config = config
        self.tenant_uid = config.tenant_uid
        self.name = config.name
        self.fault = ""
        self.is_outdated = False
        if config.is_ordered and self.order is None:
            self.order = KeyOrder()
        if before is None:
            self.failing_since_us = config.failing_since_us
            if config.failing_since_us is not None and not self.is_circuit_open:
                self.circuit_backoff_s = CIRCUIT_BACKOFF_S  # half open: one probe tells
            self.concurrency_limit = 1.0 if self.is_circuit_open else float(config.max_in_flight)
            return True
        self.concurrency_limit = min(self.concurrency_limit, float(config.max_in_flight))
        if config.state is not before.state or config.url != before.url:
            self.close_circuit()  # an operator has seen to it: begin afresh
            self.concurrency_limit = float(config.max_in_flight)
            self.failing_since_us = config.failing_since_us
        if config.max_per_second != before.max_per_second:
            self.paced_until_s = 0.0
        return True

    def has_place(self) -> bool:
        """Whether one more request may be on the wire.

        While the circuit is open one probe goes at a time, and the next waits for what came of it.
        Where so many have failed in a row that it should be, none goes before they are recorded;
        nor after a single 410, which may disable the subscription.
        """
        if self.is_circuit_open:
            return self.unrecorded == 0
        if self.streak >= CIRCUIT_FAILURES and self.unrecorded > self.in_flight:
            return False
        return self.in_flight < max(1, int(self.concurrency_limit))

    def learn(self, outcome: Outcome) -> None:
        """What an answer says of how many requests the target takes at once."""
        if outcome.kind is AttemptOutcome.ACCEPTED:
            self.streak = 0
            if self.config is not None and self.concurrency_limit < self.config.max_in_flight:
                self.concurrency_limit += 1 / self.concurrency_limit
        elif outcome.kind is not AttemptOutcome.INTERNAL_ERROR:
            is_gone = outcome.http_status == GONE
            self.streak = max(self.streak + 1, CIRCUIT_FAILURES if is_gone else 0)
            if outcome.http_status in THROTTLES:
                self.concurrency_limit = max(1.0, self.concurrency_limit / 2)

    def open_circuit(self, now_s: float) -> bool:
        """Rest, twice as long as the last time; False where it rests already."""
        if self.is_circuit_open and self.circuit_open_until_s > now_s:
            return False  # late answers of requests that were on the wire when it opened
        doubled_s = self.circuit_backoff_s * 2 or CIRCUIT_BACKOFF_S
        self.circuit_backoff_s = min(doubled_s, CIRCUIT_BACKOFF_MAX_S)
        self.circuit_open_until_s = now_s + self.circuit_backoff_s
        self.concurrency_limit = 1.0
        return True

    def close_circuit(self) -> None:
        """The target answers again; the window widens from one request, step by step."""
        self.failures = 0
        self.streak = 0
        self.circuit_backoff_s = 0.0
        self.circuit_open_until_s = 0.0
