"""One lane can never take all of a node's memory, in places or in bytes."""

import pytest

from hookline_service.pipeline.dispatch.queue_budget import LANE_QUEUE_MAX, LANE_QUEUE_MIN
from tests.pipeline.desk import Desk

KIB = 1_024


def filled(desk: Desk, data: bytes = b"{}", max_per_second: float | None = None) -> int:
    """How many deliveries a new lane takes of a publisher that does not stop."""
    lane = desk.lane(max_in_flight=1, max_per_second=max_per_second)
    desk.publish(lane, LANE_QUEUE_MAX + 100, data)
    return len(lane.queue)


@pytest.mark.parametrize("places,most", [(50_000, LANE_QUEUE_MAX), (1_000, 200)])
async def test_a_lane_takes_a_quarter_of_the_places_that_are_left(places: int, most: int) -> None:
    assert filled(Desk(max_queued_jobs=places)) == most


async def test_the_more_lanes_there_are_the_smaller_is_the_part_of_each() -> None:
    desk = Desk(max_queued_jobs=1_000)

    parts = [filled(desk) for _ in range(40)]

    assert parts == sorted(parts, reverse=True)
    assert parts[-1] >= LANE_QUEUE_MIN
    assert desk.lanes.shares.jobs <= 1_000 + 40 * LANE_QUEUE_MIN


async def test_large_events_of_one_lane_leave_bytes_for_the_others() -> None:
    desk = Desk(max_queued_bytes=1_024 * KIB)

    greedy = filled(desk, b"x" * 64 * KIB)
    modest = filled(desk, b"x" * KIB)

    assert greedy == 3
    assert modest > 100
    assert desk.lanes.shares.bytes < 1_024 * KIB


async def test_a_lane_that_holds_nothing_may_have_one_event_of_any_size() -> None:
    desk = Desk(max_queued_bytes=100 * KIB)

    assert [filled(desk, b"x" * 90 * KIB) for _ in range(2)] == [1, 1]


async def test_twice_the_bytes_that_may_be_held_are_never_exceeded_by_more_than_one_event() -> None:
    desk = Desk(max_queued_bytes=100 * KIB)

    parts = [filled(desk, b"x" * 50 * KIB) for _ in range(10)]

    assert parts == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


async def test_a_slow_lane_holds_no_more_than_it_can_send_in_a_minute() -> None:
    desk = Desk()

    assert filled(desk, max_per_second=2.0) == 120
    assert filled(desk, max_per_second=0.01) == LANE_QUEUE_MIN


async def test_what_leaves_a_lane_is_given_back() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.publish(lane, 10, b"x" * 100)
    assert (desk.lanes.shares.jobs, desk.lanes.shares.bytes, lane.bytes_held) == (10, 1_000, 1_000)

    desk.take_all()

    assert (desk.lanes.shares.jobs, desk.lanes.shares.bytes, lane.bytes_held) == (0, 0, 0)


async def test_a_lane_is_read_again_once_it_holds_half_of_what_it_may() -> None:
    desk = Desk(max_queued_jobs=400)
    lane = desk.lane(max_in_flight=100)
    desk.publish(lane, 100)
    assert desk.lanes.take_wanted() == []
    assert lane.state == "DIRTY"

    took = 0
    while not desk.lanes.take_wanted():
        assert desk.sending.take(2_000) is not None
        took += 1

    assert 30 <= took <= 50
