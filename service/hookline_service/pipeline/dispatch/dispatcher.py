"""Who may send now, and whose turn it is.

A lane may send while it has something queued, its subscription lets things out, its window, rate
and circuit allow one more, and its bucket does not rest. Lanes that may take turns (`turns.py`),
unless their tenant has its share of what is in flight: `TENANT_SHARE` times what is still free, so
that a tenant all of whose targets hang leaves slots for the others.

Targets of many tenants may hang at once. A lane is doubtful until its target has answered well, and
again once it fails, or says nothing for `SILENT_S`; all doubtful ones together have no more than
half of what may be in flight. The lanes beyond stand aside, and come back one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from uuid import UUID

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.fair_scheduler import FairScheduler
from hookline_service.pipeline.dispatch.lane import Job, Lane
from hookline_service.pipeline.dispatch.queue_budget import QueueBudget
from hookline_service.pipeline.timers import Timers

TENANT_SHARE = 4
SILENT_S = 1.0
"""A target that has said nothing for so long, with requests on the wire, may hang."""
CATCH_UP_S = 0.05
"""A rate makes up for so much lateness of ours, so that a busy node sends no less than it may."""


class Dispatcher:
    """The round of lanes that may send, and the jobs that leave them."""

    def __init__(self, clock: Clock, timers: Timers, shares: QueueBudget) -> None:
        self._clock = clock
        self._timers = timers
        self._shares = shares
        self._turns = FairScheduler()
        self._resting: set[int] = set()
        self._in_flight: dict[UUID, int] = {}
        """What each tenant has sent and not recorded."""
        self._trusted = self._doubtful = 0
        """The same, of lanes whose target answers, and of the others."""
        self._aside: OrderedDict[Lane, None] = OrderedDict()
        """Doubtful lanes whose turn came when all of these had as much as they may."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called when there may be one more job to take."""
        self.on_taken: Callable[[Lane], None] = lambda _lane: None
        """Called with the lane that a job was taken from."""
        self.on_quiet: Callable[[], None] = lambda: None
        """Called when a lane whose bucket rests has nothing in flight any more."""

    def has_ready(self) -> bool:
        """Whether a lane waits for its turn."""
        return bool(self._turns) or bool(self._aside)

    def take(self, free_slots: int) -> Job | None:
        """The next job to send, in turn; None where no lane may send.

        `free_slots` is how many more deliveries may be in flight, at least 1.
        """
        in_flight, most = self._in_flight, TENANT_SHARE * free_slots

        def may_have(tenant_uid: UUID) -> bool:
            return in_flight.get(tenant_uid, 0) < most

        self._call_back(free_slots)
        while (lane := self._turns.next(may_have)) is not None or self._call_back(free_slots):
            if lane is None:
                continue
            self._look_for_silence(lane)
            if lane.is_suspect and not self._may_doubt(free_slots):
                lane.has_turn = True
                self._aside[lane] = None
                continue
            job = self._take_from(lane)
            self.list_if_ready(lane)
            if job is not None:
                return job
        return None

    def _may_doubt(self, free_slots: int) -> bool:
        """Whether one more of a doubtful lane may be in flight."""
        return self._doubtful < self._trusted + free_slots

    def _call_back(self, free_slots: int) -> bool:
        """Have the first of those that stand aside join the round, where there is room for one."""
        if not self._aside or not self._may_doubt(free_slots):
            return False
        lane, _ = self._aside.popitem(last=False)
        lane.has_turn = False
        self.list_if_ready(lane)
        return True

    def _look_for_silence(self, lane: Lane) -> None:
        if not lane.in_flight:
            lane.heard_s = self._clock.boottime_s()
        elif not lane.is_suspect and self._clock.boottime_s() - lane.heard_s > SILENT_S:
            self._doubt(lane, is_suspect=True)

    def _doubt(self, lane: Lane, *, is_suspect: bool) -> None:
        """What it has in flight counts among the others from now on."""
        if lane.is_suspect is not is_suspect:
            lane.is_suspect = is_suspect
            if lane in self._aside:  # who is trusted waits for nobody there
                del self._aside[lane]
                lane.has_turn = False
            change = lane.unrecorded if is_suspect else -lane.unrecorded
            self._doubtful += change
            self._trusted -= change

    def _count(self, job: Job, change: int) -> None:
        """One more, or one less, is in flight."""
        lane, tenant_uid = job.lane, job.message.event.tenant_uid
        in_flight = self._in_flight.get(tenant_uid, 0) + change
        if in_flight:
            self._in_flight[tenant_uid] = in_flight
        else:
            del self._in_flight[tenant_uid]
        lane.unrecorded += change
        if lane.is_suspect:
            self._doubtful += change
        else:
            self._trusted += change

    def _take_from(self, lane: Lane) -> Job | None:
        config = lane.config
        if config is None or not self.may_take(lane):
            return None
        if config.max_per_second is not None:
            self._pace(lane, config.max_per_second)
        job = self.dequeue(lane)
        job.is_sent = True
        lane.in_flight += 1
        self._count(job, 1)
        self.on_taken(lane)
        return job

    def _pace(self, lane: Lane, per_second: float) -> None:
        now_s, due_s = self._clock.boottime_s(), lane.paced_until_s
        start_s = due_s if now_s - due_s < CATCH_UP_S else now_s
        lane.paced_until_s = start_s + 1 / per_second
        self._timers.add(lane.paced_until_s, lambda: self.list_if_ready(lane))

    def may_take(self, lane: Lane) -> bool:
        """Whether the lane's next job may go out now."""
        if not lane.queue or not lane.has_place() or not lane.sends():
            return False
        if lane.bucket in self._resting:
            return False
        if lane.circuit_open_until_s == 0.0 and lane.paced_until_s == 0.0:
            return True
        now_s = self._clock.boottime_s()
        return lane.circuit_open_until_s <= now_s and lane.paced_until_s <= now_s

    def answered(self, job: Job, outcome: Outcome) -> None:
        """A request is over: its place on the wire is free, and the window learns from it."""
        lane = job.lane
        lane.in_flight -= 1
        lane.learn(outcome)
        if outcome.kind is not AttemptOutcome.INTERNAL_ERROR:
            lane.heard_s = self._clock.boottime_s()
            self._doubt(lane, is_suspect=outcome.kind is not AttemptOutcome.ACCEPTED)
        self.list_if_ready(lane)

    def recorded(self, job: Job) -> None:
        """It is no longer in flight; where the target fails, that is what the next one awaits."""
        lane = job.lane
        if not job.is_sent:
            return
        job.is_sent = False
        self._count(job, -1)
        if lane.streak or lane.is_circuit_open:
            self.list_if_ready(lane)
        if self._resting and not lane.unrecorded and lane.bucket in self._resting:
            self.on_quiet()

    def list_if_ready(self, lane: Lane) -> None:
        """Give a lane that may send its turn."""
        config = lane.config
        if config is not None and not lane.has_turn and self.may_take(lane):
            self._turns.join(lane, config.tenant_uid)
            self.on_ready()

    def enqueue(self, job: Job) -> None:
        """Put a job behind the others of its lane."""
        lane = job.lane
        lane.queue.append(job)
        self._shares.jobs += 1
        self._shares.hold(lane, job.data_bytes)
        self.list_if_ready(lane)

    def dequeue(self, lane: Lane) -> Job:
        """Take the first job out of its lane."""
        job = lane.queue.popleft()
        self._shares.jobs -= 1
        self._shares.release(lane, job.data_bytes)
        return job

    def remove(self, job: Job) -> None:
        """Take a job out of its lane wherever it stands, if it stands there."""
        lane = job.lane
        if job in lane.queue:
            lane.queue.remove(job)
            self._shares.jobs -= 1
            self._shares.release(lane, job.data_bytes)

    def rest(self, buckets: set[int], lanes: Iterable[Lane]) -> None:
        """Nothing of these buckets is sent any more, of all others it is again."""
        awake, self._resting = self._resting - buckets, buckets
        for lane in lanes if awake else ():
            if lane.bucket in awake:
                self.list_if_ready(lane)
