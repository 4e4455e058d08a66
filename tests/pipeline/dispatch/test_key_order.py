"""Ordered lanes in memory: one delivery of each key, and only if it may be sent. Rule 17."""

from __future__ import annotations

import pytest

from hookline_service.domain.ordering import FIRST_KEY_HASH
from hookline_service.pipeline.dispatch.dispatcher import TIMER_HORIZON_S, TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.key_order import TOUCHED_MAX, KeyOrder
from hookline_service.pipeline.dispatch.lane import Lane, LaneState
from tests.pipeline.lane_harness import LaneHarness


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


def ordered(harness: LaneHarness) -> tuple[Lane, KeyOrder]:
    """Create a COMPLETE lane of an ordered subscription."""
    lane = harness.lane(is_ordered=True)
    assert lane.order is not None
    return lane, lane.order


def wants(harness: LaneHarness, lane: Lane) -> bool:
    return lane in harness.lanes.take_wanted()


async def test_a_published_key_is_read_by_hash(harness: LaneHarness) -> None:
    lane, order = ordered(harness)

    harness.lanes.next_of_key(lane, 7)

    assert lane.state is LaneState.COMPLETE
    assert wants(harness, lane)
    assert order.take_touched(10) == [7]


async def test_too_many_touched_keys_cause_a_walk(harness: LaneHarness) -> None:
    lane, order = ordered(harness)

    for key_hash in range(TOUCHED_MAX + 1):
        harness.lanes.next_of_key(lane, key_hash)

    assert len(order.touched) == TOUCHED_MAX
    assert lane.state is LaneState.DIRTY
    assert wants(harness, lane)


async def test_memory_holds_one_delivery_of_each_key(harness: LaneHarness) -> None:
    lane, _ = ordered(harness)

    harness.refill(lane, [harness.row(lane, key_hash=1), harness.row(lane, key_hash=1)])
    harness.refill(lane, [harness.row(lane, key_hash=1), harness.row(lane, key_hash=2)])

    assert [job.key_hash for job in harness.take_all()] == [1, 2]


async def test_a_key_is_busy_until_its_delivery_is_recorded(harness: LaneHarness) -> None:
    lane, order = ordered(harness)
    harness.refill(lane, [harness.row(lane, key_hash=1)])
    (job,) = harness.take_all()
    harness.lanes.next_of_key(lane, 1)
    harness.answer(job, 200)
    assert not order.touched

    harness.lanes.finished(job)

    assert wants(harness, lane)
    assert order.take_touched(10) == [1]


async def test_a_touched_key_that_became_busy_is_not_read(
    harness: LaneHarness,
) -> None:
    """A read that began before its record would return its row, and it would be sent twice."""
    lane, order = ordered(harness)
    harness.lanes.next_of_key(lane, 1)
    harness.lanes.next_of_key(lane, 2)
    harness.refill(lane, [harness.row(lane, key_hash=1)])

    assert order.take_touched(10) == [2]
    assert order.take_touched(10) == []


async def test_a_retry_of_an_ordered_lane_is_not_kept_in_memory(
    harness: LaneHarness,
) -> None:
    lane, order = ordered(harness)
    harness.refill(lane, [harness.row(lane, key_hash=1)])
    (job,) = harness.take_all()

    harness.fail(job, delay_s=5.0)

    assert not lane.known
    assert not order.busy
    assert order.take_touched(10) == [1]
    harness.lanes.delay_queue.keep_key(lane, 1, 5.0, harness.lanes.next_of_key)
    harness.lanes.next_of_key(lane, 1)
    assert not order.touched, "a timer waits for its earliest row"
    harness.turn(5.0)
    assert order.take_touched(10) == [1]


async def test_a_success_ends_the_wait_of_its_key(harness: LaneHarness) -> None:
    """The delivery that it waited for was cancelled: the next one does not wait for that timer."""
    lane, order = ordered(harness)
    harness.lanes.delay_queue.keep_key(lane, 1, 50.0, harness.lanes.next_of_key)
    harness.refill(lane, [harness.row(lane, key_hash=1)])
    (job,) = harness.take_all()

    harness.succeed(job)

    assert order.take_touched(10) == [1]


async def test_timers_are_limited_to_one_a_key_and_a_quota_a_lane(harness: LaneHarness) -> None:
    lane, order = ordered(harness)

    for key_hash in [1, 1, *range(TIMERS_PER_LANE + 5)]:
        harness.lanes.delay_queue.keep_key(lane, key_hash, 5.0, harness.lanes.next_of_key)
    harness.lanes.delay_queue.keep_key(lane, -1, TIMER_HORIZON_S + 1, harness.lanes.next_of_key)

    assert len(harness.timers) == lane.timer_count == len(order.waiting) == TIMERS_PER_LANE
    harness.turn(5.0)
    assert (lane.timer_count, order.waiting) == (0, set())
    assert len(order.touched) == TIMERS_PER_LANE


async def test_a_dropped_delivery_releases_its_key(harness: LaneHarness) -> None:
    lane, order = ordered(harness)
    cancelled, held = harness.row(lane, key_hash=1), harness.row(lane, key_hash=2)
    harness.refill(lane, [cancelled, held])

    harness.lanes.forget(lane, cancelled.delivery_id)
    assert order.busy == {2}
    harness.lanes.disabled(lane)

    assert not order.busy
    assert lane.state is LaneState.DIRTY


async def test_an_internal_error_keeps_its_key_busy(harness: LaneHarness) -> None:
    lane, order = ordered(harness)
    harness.refill(lane, [harness.row(lane, key_hash=1)])
    (job,) = harness.take_all()

    harness.release(job, delay_s=1.0)

    assert order.busy == {1}
    harness.turn(1.0)
    assert harness.take_all() == [job]


async def test_a_fruitless_walk_pauses_and_continues_by_timer(
    harness: LaneHarness,
) -> None:
    lane, order = ordered(harness)
    lane.mark_dirty()
    lane.begin_refill()

    harness.lanes.end_refill(lane, found_all=False, walk_pause_s=0.5)

    harness.lanes.touch(lane.subscription_uid, lane.bucket)
    assert not wants(harness, lane), "a sweep does not end the pause"
    harness.lanes.next_of_key(lane, 7)
    assert wants(harness, lane), "but a key is read by hash"
    assert not harness.lanes.may_walk(lane)
    order.take_touched(10)
    harness.turn(0.5)
    assert wants(harness, lane)
    assert len(harness.timers) == 0


async def test_rows_read_before_a_change_of_their_key_are_discarded(
    harness: LaneHarness,
) -> None:
    """An operator retried an earlier delivery: the next read returns that first."""
    lane, order = ordered(harness)
    harness.refill(lane, [harness.row(lane, key_hash=1), harness.row(lane, key_hash=2)])
    order.begin_wait(3)
    lane.begin_refill()

    for key_hash in (1, 3, 4):
        harness.lanes.forget(lane, harness.new_id(), key_hash)
    for key_hash in (1, 3, 4, 5):
        row = harness.row(lane, key_hash=key_hash)
        harness.lanes.accept(lane, row, harness.message(lane=lane))
    harness.lanes.end_refill(lane, found_all=True)

    assert [job.key_hash for job in harness.take_all()] == [2, 5]
    assert order.take_touched(10) == [1, 3, 4]
    assert wants(harness, lane)


async def test_a_changed_key_does_not_affect_its_sent_delivery(harness: LaneHarness) -> None:
    lane, order = ordered(harness)
    harness.refill(lane, [harness.row(lane, key_hash=1)])
    (job,) = harness.take_all()

    harness.lanes.forget(lane, harness.new_id(), 1)

    assert (order.busy, job.is_stale) == ({1}, False)
    harness.succeed(job)
    assert order.take_touched(10) == [1]


def test_a_change_during_a_pause_makes_the_walk_incomplete() -> None:
    order = KeyOrder()
    order.begin_page(is_disturbed=False)
    assert not order.end_page(5)
    order.pass_over(is_disturbed=True)
    order.begin_page(is_disturbed=False)

    assert not order.end_page(None)


def test_only_an_undisturbed_walk_is_complete() -> None:
    order = KeyOrder()
    order.begin_page(is_disturbed=True)
    assert order.end_page(None), "a change before the walk began does not matter"

    order.begin_page(is_disturbed=False)
    assert not order.end_page(5)
    order.begin_page(is_disturbed=True)
    assert not order.end_page(None), "a key was changed that the walk may have passed"
    assert order.from_hash == FIRST_KEY_HASH
    order.begin_page(is_disturbed=False)
    assert order.end_page(None)
