"""One lane can never take all of a node's memory, in places or in bytes."""

import pytest

from hookline_service.pipeline.dispatch.dispatcher import LANE_QUEUE_MAX, LANE_QUEUE_MIN
from tests.pipeline.lane_harness import LaneHarness

KIB = 1_024


def filled(harness: LaneHarness, data: bytes = b"{}", max_per_second: float | None = None) -> int:
    """How many deliveries a new lane takes of a publisher that does not stop."""
    lane = harness.lane(max_in_flight=1, max_per_second=max_per_second)
    harness.publish(lane, LANE_QUEUE_MAX + 100, data)
    return len(lane.queue)


@pytest.mark.parametrize("places,most", [(50_000, LANE_QUEUE_MAX), (1_000, 200)])
async def test_a_lane_takes_a_quarter_of_the_places_that_are_left(places: int, most: int) -> None:
    assert filled(LaneHarness(max_queued_jobs=places)) == most


async def test_the_more_lanes_there_are_the_smaller_is_the_part_of_each() -> None:
    harness = LaneHarness(max_queued_jobs=1_000)

    parts = [filled(harness) for _ in range(40)]

    assert parts == sorted(parts, reverse=True)
    assert parts[-1] >= LANE_QUEUE_MIN
    assert harness.lanes.budget.jobs <= 1_000 + 40 * LANE_QUEUE_MIN


async def test_large_events_of_one_lane_leave_bytes_for_the_others() -> None:
    harness = LaneHarness(max_queued_bytes=1_024 * KIB)

    greedy = filled(harness, b"x" * 64 * KIB)
    modest = filled(harness, b"x" * KIB)

    assert greedy == 3
    assert modest > 100
    assert harness.lanes.budget.bytes < 1_024 * KIB


async def test_a_lane_that_holds_nothing_may_have_one_event_of_any_size() -> None:
    harness = LaneHarness(max_queued_bytes=100 * KIB)

    assert [filled(harness, b"x" * 90 * KIB) for _ in range(2)] == [1, 1]


async def test_twice_the_bytes_that_may_be_held_are_never_exceeded_by_more_than_one_event() -> None:
    harness = LaneHarness(max_queued_bytes=100 * KIB)

    parts = [filled(harness, b"x" * 50 * KIB) for _ in range(10)]

    assert parts == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


async def test_a_slow_lane_holds_no_more_than_it_can_send_in_a_minute() -> None:
    harness = LaneHarness()

    assert filled(harness, max_per_second=2.0) == 120
    assert filled(harness, max_per_second=0.01) == LANE_QUEUE_MIN


async def test_what_leaves_a_lane_is_given_back() -> None:
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


async def test_a_lane_is_read_again_once_it_holds_half_of_what_it_may() -> None:
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
