"""How fast and how wide a lane sends: window, rate, circuit, faults of our own. Rules 16 and 21."""

import itertools

import pytest

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.delay_queue import TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.lane import CIRCUIT_BACKOFF_MAX_S, CIRCUIT_FAILURES, Lane
from tests.pipeline.desk import URL, Desk


@pytest.fixture
async def desk() -> Desk:
    """Inside the event loop, which the timers need."""
    return Desk()


def open_circuit(desk: Desk, lane: Lane) -> None:
    """Fail so often in a row that the circuit opens."""
    desk.publish(lane, CIRCUIT_FAILURES)
    for job in desk.take_all():
        desk.fail(job)
    assert lane.is_circuit_open


# ------------------------------------------------------------------------------------ the window


async def test_no_more_than_max_in_flight_are_on_the_wire(desk: Desk) -> None:
    lane = desk.lane(max_in_flight=3)
    desk.publish(lane, 10)

    jobs = desk.take_all()
    assert len(jobs) == 3
    desk.answer(jobs[0], 200)
    assert len(desk.take_all()) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_throttling_answer_halves_the_window(desk: Desk, status: int) -> None:
    lane = desk.lane(max_in_flight=8)
    desk.publish(lane, 20)
    jobs = desk.take_all()

    desk.answer(jobs[0], status)

    assert lane.window == 4
    for job in jobs[1:5]:
        desk.answer(job, 500)
    assert len(desk.take_all()) == 1


async def test_the_window_never_falls_below_one_and_grows_again_by_success(desk: Desk) -> None:
    lane = desk.lane(max_in_flight=8)
    desk.publish(lane, 500)
    for job in desk.take_all():
        desk.answer(job, 503)
    assert lane.window == 1

    widths: list[int] = []
    while len(jobs := desk.take_all()) < 8:
        widths.append(len(jobs))
        for job in jobs:
            desk.succeed(job)

    assert widths == sorted(widths)
    assert widths[0] == 1
    assert len(widths) > 4
    for job in jobs:
        desk.succeed(job)
    assert len(desk.take_all()) == 8


# -------------------------------------------------------------------------------------- the rate


@pytest.mark.parametrize("rate", [0.5, 10.0, 3_000.0])
async def test_a_rate_is_kept_exactly_and_smoothly(desk: Desk, rate: float) -> None:
    lane = desk.lane(max_per_second=rate, max_in_flight=1_000)
    desk.publish(lane, 30)
    sent_at: list[float] = []
    began_s = desk.clock.now_s
    while len(sent_at) < 30:
        sent_at += [desk.clock.now_s - began_s for _ in desk.take_all()]
        desk.turn(0.25 / rate)

    assert sent_at[0] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
    assert min(gaps) == pytest.approx(1 / rate, rel=0.3)
    assert sent_at[-1] == pytest.approx(29 / rate, rel=0.01)


async def test_a_lane_that_was_idle_saves_up_no_burst(desk: Desk) -> None:
    lane = desk.lane(max_per_second=10.0)
    desk.publish(lane)
    desk.take_all()
    desk.turn(60)

    desk.publish(lane, 20)

    assert len(desk.take_all()) == 1


async def test_a_rate_makes_up_for_lateness_of_ours(desk: Desk) -> None:
    """The loop wakes 5 ms too late each time; the rate is what was asked for all the same."""
    lane = desk.lane(max_per_second=1_000.0, max_in_flight=1_000)
    desk.publish(lane, 1_000)
    sent = 0
    for _ in range(200):
        sent += len(desk.take_all())
        desk.turn(0.005)

    assert sent == pytest.approx(1_000, abs=10)


async def test_a_lane_that_waits_for_its_rate_is_still_read_in_time(desk: Desk) -> None:
    """Or a fast lane with a backlog would send one queue, then wait for the sweep."""
    lane = desk.lane(max_per_second=100.0)
    lane.mark_dirty()
    desk.refill(lane, [desk.row(lane)], found_all=False)
    assert len(desk.take_all()) == 1

    assert desk.lanes.take_wanted() == [lane]


async def test_another_rate_holds_from_now_on(desk: Desk) -> None:
    lane = desk.lane(max_per_second=0.001)
    desk.publish(lane, 2)
    desk.take_all()

    desk.lanes.configure(lane, desk.config(version=2, max_per_second=10.0))

    assert len(desk.take_all()) == 1


# ----------------------------------------------------------------------------------- the circuit


async def test_ten_failures_in_a_row_open_the_circuit_and_nothing_is_read(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, CIRCUIT_FAILURES + 5)
    jobs = [desk.sending.take(2_000) for _ in range(CIRCUIT_FAILURES)]

    opened: list[bool] = []
    for job in jobs:
        assert job is not None
        desk.fail(job)
        opened.append(lane.is_circuit_open)

    assert opened == [False] * (CIRCUIT_FAILURES - 1) + [True]
    assert len(lane.queue) == 0
    assert desk.take_all() == []
    desk.lanes.touch(lane.subscription_uid, lane.bucket)
    assert desk.lanes.take_wanted() == []


async def test_a_success_in_between_begins_the_count_anew(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2 * CIRCUIT_FAILURES)
    jobs = desk.take_all()
    for job in jobs[: CIRCUIT_FAILURES - 1]:
        desk.fail(job)
    desk.succeed(jobs[CIRCUIT_FAILURES - 1])
    for job in jobs[CIRCUIT_FAILURES : 2 * CIRCUIT_FAILURES - 1]:
        desk.fail(job)

    assert not lane.is_circuit_open


async def test_one_probe_goes_at_a_time_and_the_next_waits_for_its_record(desk: Desk) -> None:
    lane = desk.lane()
    open_circuit(desk, lane)
    desk.turn(5)
    assert desk.lanes.take_wanted() == [lane]
    assert desk.lanes.shares.room(lane) == 1
    desk.refill(lane, [desk.row(lane), desk.row(lane)], found_all=False)

    (probe,) = desk.take_all()
    desk.answer(probe, 500)
    assert desk.take_all() == []
    desk.lanes.failed(lane, 1)
    desk.lanes.rescheduled(probe, 3_600)
    assert desk.take_all() == []


async def test_the_circuit_backs_off_twice_as_long_up_to_five_minutes(desk: Desk) -> None:
    lane = desk.lane()
    open_circuit(desk, lane)
    rests: list[float] = []
    for _ in range(9):
        rests.append(lane.rests_until_s - desk.clock.now_s)
        desk.turn(rests[-1] - 0.1)
        assert desk.lanes.take_wanted() == []
        desk.turn(0.1)
        desk.refill(lane, [desk.row(lane)], found_all=False)
        (probe,) = desk.take_all()
        desk.fail(probe)

    assert rests == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300])
    assert rests[-1] == pytest.approx(CIRCUIT_BACKOFF_MAX_S)


async def test_late_answers_of_before_do_not_lengthen_the_rest(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 40)
    for job in desk.take_all():
        desk.fail(job)

    assert lane.rests_until_s - desk.clock.now_s == pytest.approx(5)


async def test_success_closes_the_circuit_and_the_lane_ramps_up(desk: Desk) -> None:
    lane = desk.lane()
    open_circuit(desk, lane)
    desk.turn(5)
    desk.refill(lane, [desk.row(lane)], found_all=False)
    (probe,) = desk.take_all()

    desk.succeed(probe)

    assert not lane.is_circuit_open
    assert desk.lanes.take_wanted() == [lane]
    desk.refill(lane, [desk.row(lane) for _ in range(64)])
    assert len(desk.take_all()) <= 2


@pytest.mark.parametrize("status", [500, 200])
async def test_a_probe_that_was_somebody_elses_is_followed_by_another(
    desk: Desk, status: int
) -> None:
    """Whatever it came to: what is queued behind it is in memory, so no sweep would find it."""
    lane = desk.lane()
    open_circuit(desk, lane)
    desk.turn(5)
    desk.refill(lane, [desk.row(lane), desk.row(lane)], found_all=False)
    (probe,) = desk.take_all()
    desk.answer(probe, status)
    desk.lanes.mismatched(probe)

    assert len(desk.take_all()) == 1


async def test_an_operator_who_resumes_or_moves_the_target_closes_the_circuit(desk: Desk) -> None:
    lane = desk.lane()
    open_circuit(desk, lane)
    lane.failing_since_us = 5

    desk.lanes.configure(lane, desk.config(version=2, url="http://127.0.0.1:1025/"))

    assert not lane.is_circuit_open
    assert lane.window == 64
    desk.lanes.configure(lane, desk.config(version=3, state=SubscriptionState.PAUSED))
    desk.lanes.configure(lane, desk.config(version=4))
    assert lane.failing_since_us is None


# ------------------------------------------------------------------------------------ our faults


async def test_faults_of_our_own_count_for_nothing(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 3 * CIRCUIT_FAILURES)

    for job in desk.take_all():
        desk.release(job)

    assert (lane.failures, lane.failing_since_us, lane.is_circuit_open) == (0, None, False)
    assert lane.window == 64
    desk.turn(1)
    jobs = desk.take_all()
    assert len(jobs) == 3 * CIRCUIT_FAILURES
    assert {(job.version, job.attempt_count) for job in jobs} == {(0, 0)}


async def test_a_lane_whose_faults_memory_cannot_keep_rests_instead_of_reading(desk: Desk) -> None:
    """They are due: a lane that did not rest would read and release them as fast as it can."""
    lane = desk.lane(max_in_flight=1_000)
    desk.publish(lane, TIMERS_PER_LANE + 50)
    for job in desk.take_all():
        desk.release(job)

    assert desk.lanes.take_wanted() == []
    desk.publish(lane)
    assert desk.take_all() == []
    desk.turn(1)
    assert desk.lanes.take_wanted() == [lane]
    assert len(desk.take_all()) == TIMERS_PER_LANE


async def test_one_event_that_we_cannot_send_does_not_hold_up_its_lane(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2)
    bad, _ = desk.take_all()
    desk.release(bad)

    desk.publish(lane)

    assert len(desk.take_all()) == 1


async def test_what_an_attempt_of_ours_teaches_is_nothing(desk: Desk) -> None:
    lane = desk.lane(max_in_flight=8)
    lane.window = 2.0
    desk.publish(lane)
    (job,) = desk.take_all()

    desk.sending.answered(job, Outcome(AttemptOutcome.OWN_FAULT, 0, URL))

    assert lane.window == 2


async def test_no_more_than_a_window_is_spent_before_the_circuit_opens(desk: Desk) -> None:
    """However late the record is: answers that failed in a row are waited for."""
    lane = desk.lane(max_in_flight=20)
    desk.publish(lane, 100)
    answered = []
    while jobs := desk.take_all():
        for job in jobs:
            desk.answer(job, 500)
        answered += jobs

    assert len(answered) == 20
    for job in answered[:9]:
        desk.lanes.failed(lane, 1)
        desk.lanes.rescheduled(job, 3_600)
    for job in answered[9:]:
        desk.lanes.mismatched(job)
    assert not lane.is_circuit_open
    assert len(desk.take_all()) == 20
