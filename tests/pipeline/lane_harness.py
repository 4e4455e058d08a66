"""Real lanes and timers on a manual clock, without a database.

For decisions without I/O: which lane may send, and which deliveries memory takes or leaves to
Postgres.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from uuid import UUID

import httpx

from hookline_service.domain.attempt import (
    AttemptOutcome,
    AttemptRecord,
    Outcome,
    Verdict,
    internal_error,
)
from hookline_service.domain.event import NewEvent, accepted
from hookline_service.domain.ids import bucket_of, make_uuid7
from hookline_service.domain.instants import from_unix_ms
from hookline_service.domain.retry import RetrySchedule
from hookline_service.domain.subscription import HttpTarget, PayloadFormat, SubscriptionState
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher, QueueBudget
from hookline_service.pipeline.dispatch.lane import Job, Lane, LaneConfig
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue
from hookline_service.pipeline.timers import Timers
from hookline_service.store.lanes import PendingRow
from hookline_service.targets.http.sender import HttpTargetSender, WebhookSender, prepare_target
from hookline_service.targets.http.signature import Signer, parse_secret
from hookline_service.targets.payload import Message
from hookline_service.targets.sender import TargetSender
from tests.pipeline.rig import SECRET

URL = "http://127.0.0.1:1024/hook"
NOW_MS = 1_800_000_000_000


def sender_with(headers: dict[str, str], url: str = URL) -> TargetSender:
    """Create a sender whose requests carry these headers."""
    signer = Signer([parse_secret(SECRET)])
    target = HttpTarget(url=url, headers=headers)
    prepared = prepare_target(target, signer, user_agent="hookline/0")
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    return HttpTargetSender(WebhookSender(transport), prepared, PayloadFormat.STANDARD)


def outcome_of(status: int) -> Outcome:
    """The outcome of a response with this status."""
    throttles = dict.fromkeys((429, 502, 503, 504), Verdict.THROTTLED)
    verdict = {200: Verdict.ACCEPTED, 410: Verdict.GONE, **throttles}.get(status)
    kind = AttemptOutcome.ACCEPTED if status == 200 else AttemptOutcome.HTTP_ERROR
    return Outcome(verdict or Verdict.RETRYABLE, AttemptRecord(kind, 1, URL, status))


class ManualClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def boottime_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


class LaneHarness:
    """Lanes that only the test drives."""

    def __init__(
        self,
        *,
        max_queued_jobs: int = 50_000,
        max_queued_bytes: int = 64 * 1024 * 1024,
        max_lane_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.clock = ManualClock()
        self.timers = Timers(self.clock)
        self.owned = set(range(256))
        self.notified: list[tuple[UUID, int]] = []
        """Subscriptions, and their buckets, of which another node was notified."""
        self.swept: list[int] = []
        """Buckets that the sweep was asked to visit."""
        self.drained = 0
        """How often the last unrecorded job of a lane in a suspended bucket was recorded."""
        refill_queue = RefillQueue(max_lane_bytes)
        self.dispatcher = Dispatcher(
            self.clock,
            self.timers,
            QueueBudget(max_queued_jobs, max_queued_bytes),
            refill_queue,
            on_drained=self._count_drained,
        )
        self.lanes = Lanes(
            self.clock,
            self.timers,
            self.dispatcher,
            refill_queue,
            lambda bucket: bucket in self.owned,
            notify_owner=lambda uid, bucket: self.notified.append((uid, bucket)),
            sweep_buckets=self.swept.extend,
            max_lane_bytes=max_lane_bytes,
        )
        self._random = Random(3)

    def _count_drained(self) -> None:
        self.drained += 1

    def new_id(self) -> UUID:
        return make_uuid7(NOW_MS, self._random.getrandbits(74))

    def turn(self, ahead_s: float) -> None:
        """Advance the clock, and run the timers that came due."""
        self.clock.now_s += ahead_s
        self.timers.poke()

    def lane(self, *, tenant_uid: UUID | None = None, **fields: object) -> Lane:
        """Create a COMPLETE lane that may send, and whose target has answered before."""
        lane = self.new_lane(tenant_uid=tenant_uid, **fields)
        lane.set_suspect(is_suspect=False)
        return lane

    def new_lane(self, *, tenant_uid: UUID | None = None, **fields: object) -> Lane:
        """The same, with a target that has not answered yet."""
        lane = self.dirty_lane()
        self.lanes.configure(lane, self.config(tenant_uid=tenant_uid, **fields))
        lane.begin_refill()
        self.lanes.end_refill(lane, found_all=True)
        self.lanes.take_wanted()
        return lane

    def dirty_lane(self) -> Lane:
        """Create a lane as the sweep does."""
        uid = self.new_id()
        self.lanes.touch(uid, bucket_of(uid))
        lane = self.lanes.get(uid)
        assert lane is not None
        return lane

    def config(self, **fields: object) -> LaneConfig:
        """Create the configuration of a lane."""
        values: dict[str, object] = {
            "name": "tenants/acme/subscriptions/s-1",
            "version": 1,
            "tenant_uid": self.new_id(),
            "state": SubscriptionState.ACTIVE,
            "schedule": RetrySchedule(),
            "max_in_flight": 64,
            "max_per_second": None,
            "is_ordered": False,
            "sender": sender_with({}),
            "failing_since_us": None,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return LaneConfig(**(values | given))  # type: ignore[arg-type]  # a test's own fields

    def message(
        self, data: bytes = b"{}", ordering_key: str = "", lane: Lane | None = None
    ) -> Message:
        """Create the message of an event of the lane's tenant."""
        event_id = self.new_id()
        tenant_uid = lane.tenant_uid if lane is not None and lane.config else event_id
        new = NewEvent(type="order.created", data=data, ordering_key=ordering_key)
        event = accepted(new, event_id, tenant_uid, "acme", 0, from_unix_ms(NOW_MS))
        return Message(event, f"evt_{event_id}")

    def publish(self, lane: Lane, count: int = 1, data: bytes = b"{}") -> list[UUID]:
        """Announce and hand over deliveries, as the publisher does."""
        ids = [self.new_id() for _ in range(count)]
        for delivery_id in ids:
            self.lanes.announce(lane.subscription_uid, delivery_id)
            self.lanes.hand_over(lane, delivery_id, self.message(data, lane=lane))
            lane.announced.discard(delivery_id)
        return ids

    def row(
        self,
        lane: Lane,
        delivery_id: UUID | None = None,
        *,
        key_hash: int | None = None,
        **fields: int,
    ) -> PendingRow:
        """Create a due row as a refill reads it."""
        values = {"version": 0, "attempt_count": 0, "data_bytes": 2} | fields
        return PendingRow(
            subscription_uid=lane.subscription_uid,
            delivery_id=delivery_id or self.new_id(),
            event_id=self.new_id(),
            attempts_base=None,
            attempts_until=None,
            key_hash=key_hash,
            event=None,
            **values,
        )

    def refill(self, lane: Lane, rows: Iterable[PendingRow], *, found_all: bool = True) -> None:
        """Refill a lane as the refiller does."""
        lane.begin_refill()
        for row in rows:
            key = "" if row.key_hash is None else str(row.key_hash)
            self.lanes.accept(lane, row, self.message(ordering_key=key, lane=lane))
        self.lanes.end_refill(lane, found_all=found_all)

    def take_all(self) -> list[Job]:
        """Take every job that may be sent now."""
        taken: list[Job] = []
        while (job := self.dispatcher.take(2_000)) is not None:
            taken.append(job)
        return taken

    def answer(self, job: Job, status: int) -> None:
        """Answer a request; its outcome is not recorded yet."""
        self.dispatcher.answered(job, outcome_of(status))

    def succeed(self, job: Job) -> None:
        """Accept a request, and record that."""
        self.answer(job, 200)
        self.lanes.finished(job)
        self.lanes.succeeded(job.lane)

    def fail(self, job: Job, *, delay_s: float = 3_600.0, status: int = 500) -> None:
        """Fail a request, and record that: it is due again later."""
        self.answer(job, status)
        self.lanes.failed(job.lane, 1)
        self.lanes.rescheduled(job, delay_s)

    def release(self, job: Job, *, delay_s: float = 1.0) -> None:
        """End an attempt with an internal error."""
        self.dispatcher.answered(job, internal_error("no descriptors"))
        self.lanes.released(job, delay_s)
