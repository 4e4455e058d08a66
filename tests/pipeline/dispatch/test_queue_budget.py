"""No lane takes all of a node's memory, in jobs or in bytes."""

import pytest

from hookline_service.pipeline.dispatch.dispatcher import LANE_QUEUE_MAX, LANE_QUEUE_MIN
from tests.pipeline.lane_harness import LaneHarness

KIB = 1_024


def filled(harness: LaneHarness, data: bytes = b"{}", max_per_second: float | None = None) -> int:
    """Return how many deliveries a new lane queues of a publisher that does not stop."""
    lane = harness.lane(max_in_flight=1, max_per_second=max_per_second)
    harness.publish(lane, LANE_QUEUE_MAX + 100, data)
    return len(lane.queue)


@pytest.mark.parametrize("max_jobs,queued", [(50_000, LANE_QUEUE_MAX), (1_000, 200)])
async def test_a_lane_may_queue_a_quarter_of_the_free_jobs(max_jobs: int, queued: int) -> None:
    assert filled(LaneHarness(max_queued_jobs=max_jobs)) == queued


async def test_more_lanes_get_smaller_shares() -> None:
    harness = LaneHarness(max_queued_jobs=1_000)

    shares = [filled(harness) for _ in range(40)]

    assert shares == sorted(shares, reverse=True)
    assert shares[-1] >= LANE_QUEUE_MIN
    assert harness.lanes.budget.jobs <= 1_000 + 40 * LANE_QUEUE_MIN


async def test_large_events_of_one_lane_leave_bytes_for_others() -> None:
    harness = LaneHarness(max_queued_bytes=1_024 * KIB)

    greedy = filled(harness, b"x" * 64 * KIB)
    modest = filled(harness, b"x" * KIB)

    assert greedy == 3
    assert modest > 100
    assert harness.lanes.budget.bytes < 1_024 * KIB


async def test_an_empty_lane_may_hold_one_event_of_any_size() -> None:
    harness = LaneHarness(max_queued_bytes=100 * KIB)

    assert [filled(harness, b"x" * 90 * KIB) for _ in range(2)] == [1, 1]


async def test_held_bytes_exceed_twice_the_limit_by_one_event_at_most() -> None:
    harness = LaneHarness(max_queued_bytes=100 * KIB)

    shares = [filled(harness, b"x" * 50 * KIB) for _ in range(10)]

    assert shares == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


async def test_a_rate_limited_lane_queues_one_minute_at_most() -> None:
    harness = LaneHarness()

    assert filled(harness, max_per_second=2.0) == 120
    assert filled(harness, max_per_second=0.01) == LANE_QUEUE_MIN


async def test_taken_jobs_leave_the_budget() -> None:
    harness = LaneHarness()
    lane = harness.lane()
    harness.publish(lane, 10, b"x" * 100)
    assert (harness.lanes.budget.jobs, harness.lanes.budget.bytes, lane.bytes_held) == (
        10,
        1_000,
        1_000,
    )

    harness.take_all()

    assert (harness.lanes.budget.jobs, harness.lanes.budget.bytes, lane.bytes_held) == (0, 0, 0)


async def test_a_lane_is_read_again_when_its_queue_is_half_empty() -> None:
    harness = LaneHarness(max_queued_jobs=400)
    lane = harness.lane(max_in_flight=100)
    harness.publish(lane, 100)
    assert harness.lanes.take_wanted() == []
    assert lane.state == "DIRTY"

    took = 0
    while not harness.lanes.take_wanted():
        assert harness.dispatcher.take(2_000) is not None
        took += 1

    assert 30 <= took <= 50
