"""Dispatch of a lane: concurrency limit, rate limit, circuit, internal errors. Rules 16 and 21."""

import itertools

import pytest

from hookline_service.domain.attempt import internal_error
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.dispatcher import TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.lane import CIRCUIT_BACKOFF_MAX_S, CIRCUIT_FAILURES, Lane
from tests.pipeline.lane_harness import LaneHarness, sender_with


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


def open_circuit(harness: LaneHarness, lane: Lane) -> None:
    """Fail as many times in a row as open the circuit."""
    harness.publish(lane, CIRCUIT_FAILURES)
    for job in harness.take_all():
        harness.fail(job)
    assert lane.is_circuit_open


# ------------------------------------------------------------------------- the concurrency limit


async def test_requests_are_limited_to_max_in_flight(harness: LaneHarness) -> None:
    lane = harness.lane(max_in_flight=3)
    harness.publish(lane, 10)

    jobs = harness.take_all()
    assert len(jobs) == 3
    harness.answer(jobs[0], 200)
    assert len(harness.take_all()) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_throttling_answer_halves_the_concurrency_limit(
    harness: LaneHarness, status: int
) -> None:
    lane = harness.lane(max_in_flight=8)
    harness.publish(lane, 20)
    jobs = harness.take_all()

    harness.answer(jobs[0], status)

    assert lane.concurrency_limit == 4
    for job in jobs[1:5]:
        harness.answer(job, 500)
    assert len(harness.take_all()) == 1


async def test_the_concurrency_limit_stays_above_zero_and_grows_by_success(
    harness: LaneHarness,
) -> None:
    lane = harness.lane(max_in_flight=8)
    harness.publish(lane, 500)
    for job in harness.take_all():
        harness.answer(job, 503)
    assert lane.concurrency_limit == 1

    batches: list[int] = []
    while len(jobs := harness.take_all()) < 8:
        batches.append(len(jobs))
        for job in jobs:
            harness.succeed(job)

    assert batches == sorted(batches)
    assert batches[0] == 1
    assert len(batches) > 4
    for job in jobs:
        harness.succeed(job)
    assert len(harness.take_all()) == 8


# -------------------------------------------------------------------------------- the rate limit


@pytest.mark.parametrize("rate", [0.5, 10.0, 3_000.0])
async def test_a_rate_limit_spaces_requests_evenly(harness: LaneHarness, rate: float) -> None:
    lane = harness.lane(max_per_second=rate, max_in_flight=1_000)
    harness.publish(lane, 30)
    sent_at: list[float] = []
    began_s = harness.clock.now_s
    while len(sent_at) < 30:
        sent_at += [harness.clock.now_s - began_s for _ in harness.take_all()]
        harness.turn(0.25 / rate)

    assert sent_at[0] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
    assert min(gaps) == pytest.approx(1 / rate, rel=0.3)
    assert sent_at[-1] == pytest.approx(29 / rate, rel=0.01)


async def test_an_idle_lane_accumulates_no_burst(harness: LaneHarness) -> None:
    lane = harness.lane(max_per_second=10.0)
    harness.publish(lane)
    harness.take_all()
    harness.turn(60)

    harness.publish(lane, 20)

    assert len(harness.take_all()) == 1


async def test_a_rate_limit_makes_up_for_delays_of_the_node(harness: LaneHarness) -> None:
    """The event loop wakes 5 ms late each time; the configured rate is reached nevertheless."""
    lane = harness.lane(max_per_second=1_000.0, max_in_flight=1_000)
    harness.publish(lane, 1_000)
    sent = 0
    for _ in range(200):
        sent += len(harness.take_all())
        harness.turn(0.005)

    assert sent == pytest.approx(1_000, abs=10)


async def test_a_rate_limited_lane_is_read_while_it_waits(harness: LaneHarness) -> None:
    """Otherwise a fast lane with a backlog sends one queue, then waits for the sweep."""
    lane = harness.lane(max_per_second=100.0)
    lane.mark_dirty()
    harness.refill(lane, [harness.row(lane)], found_all=False)
    assert len(harness.take_all()) == 1

    assert harness.lanes.take_wanted() == [lane]


async def test_a_changed_rate_limit_applies_at_once(harness: LaneHarness) -> None:
    lane = harness.lane(max_per_second=0.001)
    harness.publish(lane, 2)
    harness.take_all()

    harness.lanes.configure(lane, harness.config(version=2, max_per_second=10.0))

    assert len(harness.take_all()) == 1


# ----------------------------------------------------------------------------------- the circuit


async def test_ten_consecutive_failures_open_the_circuit(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, CIRCUIT_FAILURES + 5)
    jobs = [harness.dispatcher.take(2_000) for _ in range(CIRCUIT_FAILURES)]

    opened: list[bool] = []
    for job in jobs:
        assert job is not None
        harness.fail(job)
        opened.append(lane.is_circuit_open)

    assert opened == [False] * (CIRCUIT_FAILURES - 1) + [True]
    assert len(lane.queue) == 0
    assert harness.take_all() == []
    harness.lanes.touch(lane.subscription_uid, lane.bucket)
    assert harness.lanes.take_wanted() == []


async def test_a_success_resets_the_failure_count(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 2 * CIRCUIT_FAILURES)
    jobs = harness.take_all()
    for job in jobs[: CIRCUIT_FAILURES - 1]:
        harness.fail(job)
    harness.succeed(jobs[CIRCUIT_FAILURES - 1])
    for job in jobs[CIRCUIT_FAILURES : 2 * CIRCUIT_FAILURES - 1]:
        harness.fail(job)

    assert not lane.is_circuit_open


async def test_a_half_open_circuit_sends_one_probe_until_it_is_recorded(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    open_circuit(harness, lane)
    harness.turn(5)
    assert harness.lanes.take_wanted() == [lane]
    assert harness.lanes.budget.free_jobs(lane) == 1
    harness.refill(lane, [harness.row(lane), harness.row(lane)], found_all=False)

    (probe,) = harness.take_all()
    harness.answer(probe, 500)
    assert harness.take_all() == []
    harness.lanes.failed(lane, 1)
    harness.lanes.rescheduled(probe, 3_600)
    assert harness.take_all() == []


async def test_the_circuit_backoff_doubles_up_to_five_minutes(harness: LaneHarness) -> None:
    lane = harness.lane()
    open_circuit(harness, lane)
    backoffs: list[float] = []
    for _ in range(9):
        backoffs.append(lane.circuit_open_until_s - harness.clock.now_s)
        harness.turn(backoffs[-1] - 0.1)
        assert harness.lanes.take_wanted() == []
        harness.turn(0.1)
        harness.refill(lane, [harness.row(lane)], found_all=False)
        (probe,) = harness.take_all()
        harness.fail(probe)

    assert backoffs == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300])
    assert backoffs[-1] == pytest.approx(CIRCUIT_BACKOFF_MAX_S)


async def test_late_failures_do_not_extend_the_backoff(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 40)
    for job in harness.take_all():
        harness.fail(job)

    assert lane.circuit_open_until_s - harness.clock.now_s == pytest.approx(5)


async def test_a_successful_probe_closes_the_circuit(harness: LaneHarness) -> None:
    lane = harness.lane()
    open_circuit(harness, lane)
    harness.turn(5)
    harness.refill(lane, [harness.row(lane)], found_all=False)
    (probe,) = harness.take_all()

    harness.succeed(probe)

    assert not lane.is_circuit_open
    assert harness.lanes.take_wanted() == [lane]
    harness.refill(lane, [harness.row(lane) for _ in range(64)])
    assert len(harness.take_all()) <= 2


@pytest.mark.parametrize("status", [500, 200])
async def test_a_probe_whose_record_did_not_match_is_followed_by_another(
    harness: LaneHarness, status: int
) -> None:
    """Jobs queued behind it are in memory, so no sweep would find them, whatever its outcome."""
    lane = harness.lane()
    open_circuit(harness, lane)
    harness.turn(5)
    harness.refill(lane, [harness.row(lane), harness.row(lane)], found_all=False)
    (probe,) = harness.take_all()
    harness.answer(probe, status)
    harness.lanes.mismatched(probe)

    assert len(harness.take_all()) == 1


async def test_a_resume_or_a_new_target_closes_the_circuit(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    open_circuit(harness, lane)
    assert lane.failing_since_us is not None

    harness.lanes.configure(
        lane, harness.config(version=2, sender=sender_with({}, "http://127.0.0.1:1025/"))
    )

    assert not lane.is_circuit_open
    assert lane.concurrency_limit == 64
    harness.lanes.configure(lane, harness.config(version=3, state=SubscriptionState.PAUSED))
    harness.lanes.configure(lane, harness.config(version=4))
    assert lane.failing_since_us is None


# ------------------------------------------------------------------------------- internal errors


async def test_internal_errors_count_neither_attempts_nor_failures(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 3 * CIRCUIT_FAILURES)

    for job in harness.take_all():
        harness.release(job)

    assert (lane.failures, lane.failing_since_us, lane.is_circuit_open) == (0, None, False)
    assert lane.concurrency_limit == 64
    harness.turn(1)
    jobs = harness.take_all()
    assert len(jobs) == 3 * CIRCUIT_FAILURES
    assert {(job.version, job.attempt_count) for job in jobs} == {(0, 0)}


async def test_a_lane_with_too_many_internal_errors_pauses(
    harness: LaneHarness,
) -> None:
    """Their rows are due: without a pause the lane would read and release them in a loop."""
    lane = harness.lane(max_in_flight=1_000)
    harness.publish(lane, TIMERS_PER_LANE + 50)
    for job in harness.take_all():
        harness.release(job)

    assert harness.lanes.take_wanted() == []
    harness.publish(lane)
    assert harness.take_all() == []
    harness.turn(1)
    assert harness.lanes.take_wanted() == [lane]
    assert len(harness.take_all()) == TIMERS_PER_LANE


async def test_an_event_with_an_internal_error_does_not_block_its_lane(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)
    bad, _ = harness.take_all()
    harness.release(bad)

    harness.publish(lane)

    assert len(harness.take_all()) == 1


async def test_an_internal_error_does_not_change_the_concurrency_limit(
    harness: LaneHarness,
) -> None:
    lane = harness.lane(max_in_flight=4)
    harness.publish(lane, 2)
    throttled, job = harness.take_all()
    harness.answer(throttled, 429)
    assert lane.concurrency_limit == 2

    harness.dispatcher.answered(job, internal_error("no descriptors"))

    assert lane.concurrency_limit == 2


async def test_unrecorded_failures_stop_further_requests(
    harness: LaneHarness,
) -> None:
    """However late the record is: consecutive answered failures are recorded first."""
    lane = harness.lane(max_in_flight=20)
    harness.publish(lane, 100)
    answered = []
    while jobs := harness.take_all():
        for job in jobs:
            harness.answer(job, 500)
        answered += jobs

    assert len(answered) == 20
    for job in answered[:9]:
        harness.lanes.failed(lane, 1)
        harness.lanes.rescheduled(job, 3_600)
    for job in answered[9:]:
        harness.lanes.mismatched(job)
    assert not lane.is_circuit_open
    assert len(harness.take_all()) == 20
