"""Suspect lanes: many targets that do not answer, beside targets that do."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import count
from uuid import UUID

import pytest

from hookline_service.pipeline.dispatch.dispatcher import SILENT_S
from hookline_service.pipeline.dispatch.lane import Job, Lane
from tests.pipeline.lane_harness import LaneHarness

SLOTS = 200
STEP_S = 0.05


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


class World:
    """The slots of a node, the hot table of its lanes, and targets with given answers."""

    def __init__(self, harness: LaneHarness) -> None:
        self.harness = harness
        self.answers: dict[Lane, tuple[float, int]] = {}
        """How many seconds each target takes, and its status."""
        self.table: dict[Lane, dict[UUID, float]] = {}
        """Pending deliveries, and since when."""
        self.most_suspect = 0
        """The largest number of suspect lanes' jobs in flight at once."""
        self.waited_s: dict[Lane, float] = {}
        """The longest time that a delivery waited for its first attempt."""
        self._wire: list[tuple[float, int, Job, int]] = []
        self._numbers = count()

    def store(self, lane: Lane, events: int) -> None:
        """Commit deliveries without a hand-off."""
        now_s = self.harness.clock.now_s
        self.table.setdefault(lane, {}).update(
            {self.harness.new_id(): now_s for _ in range(events)}
        )
        self.harness.lanes.touch(lane.subscription_uid, lane.bucket)

    def play(self, for_s: float, publishers: Iterable[Lane] = ()) -> None:
        """Advance the clock; each of the publishers stores an event at each step."""
        end_s = self.harness.clock.now_s + for_s
        while self.harness.clock.now_s < end_s:
            for lane in publishers:
                self.store(lane, 1)
            self.harness.turn(STEP_S)
            self._answer()
            self._read()
            self._send()

    def _answer(self) -> None:
        while self._wire and self._wire[0][0] <= self.harness.clock.now_s:
            *_, job, status = heapq.heappop(self._wire)
            if status == 200:
                del self.table[job.lane][job.delivery_id]
                self.harness.succeed(job)
            else:
                self.harness.fail(job)

    def _read(self) -> None:
        for lane in self.harness.lanes.take_wanted():
            limit = max(1, min(31, self.harness.lanes.budget.free_jobs(lane)))
            due = [one for one in self.table.get(lane, ()) if not lane.holds(one)][:limit]
            rows = [self.harness.row(lane, delivery_id) for delivery_id in due]
            self.harness.refill(lane, rows, found_all=len(due) < limit)

    def _send(self) -> None:
        now_s = self.harness.clock.now_s
        while len(self._wire) < SLOTS:
            job = self.harness.dispatcher.take(SLOTS - len(self._wire))
            if job is None:
                break
            lane = job.lane
            if not lane.failures:
                wait_s = now_s - self.table[lane][job.delivery_id]
                self.waited_s[lane] = max(self.waited_s.get(lane, 0.0), wait_s)
            takes_s, status = self.answers[lane]
            heapq.heappush(self._wire, (now_s + takes_s, next(self._numbers), job, status))
            if lane.is_suspect:
                suspect = sum(1 for *_, sent, _ in self._wire if sent.lane.is_suspect)
                self.most_suspect = max(self.most_suspect, suspect)


async def test_hanging_targets_delay_no_other_and_recover_together(harness: LaneHarness) -> None:
    """Twice as many as slots, each the only lane of its tenant; on the clock of the harness."""
    world = World(harness)
    healthy = harness.lane()
    world.answers[healthy] = (0.0, 200)
    hanging = [harness.new_lane() for _ in range(SLOTS * 2)]
    for lane in hanging:
        world.answers[lane] = (2.0, 500)
        world.store(lane, 20)

    world.play(120, [healthy])
    assert all(lane.is_circuit_open for lane in hanging)
    assert world.most_suspect == SLOTS // 2
    assert world.waited_s[healthy] <= STEP_S * 1.01, "hanging targets do not delay it"

    for lane in hanging:
        world.answers[lane] = (STEP_S, 200)
    world.play(max(lane.circuit_open_until_s for lane in hanging) - harness.clock.now_s, [healthy])
    world.play(10, [healthy])
    assert not any(lane.is_circuit_open for lane in hanging), "each had its probe"
    world.play(10)
    assert not any(world.table.values()), "everything is delivered"
    assert world.waited_s[healthy] < 10 * STEP_S, "it takes turns with the lanes that catch up"


def take_all(harness: LaneHarness, free: int) -> list[Job]:
    """Take jobs until none may be sent, beginning with so many free slots."""
    taken: list[Job] = []
    while len(taken) < free and (job := harness.dispatcher.take(free - len(taken))) is not None:
        taken.append(job)
    return taken


async def test_suspect_lanes_use_half_of_the_slots(
    harness: LaneHarness,
) -> None:
    for _ in range(50):
        harness.publish(harness.new_lane(), 10)
    taken = take_all(harness, 100)
    assert len(taken) == 50
    assert len({job.lane for job in taken}) == 50, "they take turns"

    trusted = harness.lane()
    harness.publish(trusted, 30)
    assert [job.lane for job in take_all(harness, 50)] == [trusted] * 30


async def test_a_record_resumes_a_lane_that_was_held_back(harness: LaneHarness) -> None:
    lanes = [harness.new_lane() for _ in range(30)]
    for lane in lanes:
        harness.publish(lane)
    on_the_wire, sent = take_all(harness, 10), 5
    assert len(on_the_wire) == 5
    while on_the_wire:
        harness.fail(on_the_wire.pop(0))
        taken = take_all(harness, 10 - len(on_the_wire))
        sent += len(taken)
        on_the_wire += taken
    assert sent == 30, "each once, although all fail"
    assert not harness.dispatcher.has_ready()


async def test_a_success_makes_a_lane_trusted_with_its_jobs_in_flight(harness: LaneHarness) -> None:
    lane = harness.new_lane()
    harness.publish(lane, 40)
    first, *_ = take_all(harness, 20)
    assert take_all(harness, 10) == []
    harness.succeed(first)
    assert len(take_all(harness, 11)) == 7, "16 of 20: only its tenant's share limits it"


async def test_a_lane_answered_while_held_back_is_scheduled_at_once(
    harness: LaneHarness,
) -> None:
    lane, *others = [harness.new_lane() for _ in range(50)]
    for one in (lane, *others):
        harness.publish(one, 10)
    on_the_wire = take_all(harness, 20)
    assert len(on_the_wire) == 10
    assert harness.dispatcher.take(10) is None, "all the others are held back"
    harness.succeed(on_the_wire[0])
    assert on_the_wire[0].lane is lane
    assert lane in [job.lane for job in take_all(harness, 11)[:3]]


async def test_a_failure_or_a_long_silence_makes_a_lane_suspect(harness: LaneHarness) -> None:
    for cause in ("failure", "silence"):
        lane = harness.lane()
        harness.publish(lane, 40)
        first = harness.dispatcher.take(20)
        assert first is not None
        if cause == "failure":
            harness.fail(first)
        else:
            harness.turn(SILENT_S + 0.1)
        unanswered = 0 if cause == "failure" else 1
        taken = take_all(harness, 20 - unanswered)
        assert len(taken) + unanswered == 10, cause
        for job in taken:
            harness.succeed(job)
        harness.lanes.disabled(lane)
