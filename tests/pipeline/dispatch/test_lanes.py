"""What memory takes, what it leaves to Postgres, and what it never holds twice. Rules 14 and 16."""

import pytest

from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.dispatcher import TIMER_HORIZON_S, TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.lane import NOTIFIED_QUEUE_MAX, LaneState
from tests.pipeline.lane_harness import LaneHarness


@pytest.fixture
async def harness() -> LaneHarness:
    """Inside the event loop, which the timers need."""
    return LaneHarness()


async def test_a_new_lane_is_dirty_and_wants_to_be_read(harness: LaneHarness) -> None:
    lane = harness.dirty_lane()

    assert lane.state is LaneState.DIRTY
    assert harness.lanes.take_wanted() == [lane]


async def test_a_complete_lane_takes_hand_offs_in_order(harness: LaneHarness) -> None:
    lane = harness.lane()

    ids = harness.publish(lane, 3)

    assert [job.delivery_id for job in harness.take_all()] == ids


async def test_a_dirty_lane_drops_hand_offs_and_asks_to_be_read(harness: LaneHarness) -> None:
    lane = harness.lane()
    lane.mark_dirty()

    harness.publish(lane)

    assert harness.take_all() == []
    assert lane.known == {}
    assert harness.lanes.take_wanted() == [lane]


async def test_a_lane_that_is_read_drops_hand_offs_and_must_be_read_again(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    lane.begin_refill()

    harness.publish(lane)
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_a_busy_lane_heeds_another_nodes_word_once_its_queue_is_short(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, NOTIFIED_QUEUE_MAX + 2)
    harness.lanes.refill_queue.joined.clear()
    harness.lanes.touch(lane.subscription_uid, lane.bucket, from_peer=True)

    harness.publish(lane)
    assert not harness.lanes.refill_queue.joined.is_set(), "the refiller is not woken yet"
    assert len(lane.known) == NOTIFIED_QUEUE_MAX + 3, "it takes hand-offs meanwhile"
    harness.dispatcher.take(2_000)
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == []
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == [lane]


async def test_the_sweep_makes_a_busy_lane_dirty_at_once(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, NOTIFIED_QUEUE_MAX + 2)
    harness.lanes.touch(lane.subscription_uid, lane.bucket)

    assert harness.lanes.take_wanted() == [lane]


async def test_a_word_that_comes_while_a_busy_lane_is_read_is_heeded_after(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, NOTIFIED_QUEUE_MAX + 1)
    harness.lanes.touch(lane.subscription_uid, lane.bucket, from_peer=True)
    lane.begin_refill()
    harness.lanes.end_refill(lane, found_all=True)
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == [], "the read was later than the word"

    harness.publish(lane)
    lane.begin_refill()
    harness.lanes.touch(lane.subscription_uid, lane.bucket, from_peer=True)
    harness.lanes.end_refill(lane, found_all=True)
    assert harness.lanes.take_wanted() == []
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == [lane]


async def test_a_lane_is_complete_only_if_the_read_found_all(harness: LaneHarness) -> None:
    lane = harness.dirty_lane()
    harness.lanes.configure(lane, harness.config())

    states: list[LaneState] = []
    for found_all in (False, True):
        harness.refill(lane, [harness.row(lane)], found_all=found_all)
        states.append(lane.state)

    assert states == [LaneState.DIRTY, LaneState.COMPLETE]


async def test_whoever_objects_during_a_read_makes_another_necessary(harness: LaneHarness) -> None:
    lane = harness.lane()
    lane.begin_refill()
    harness.lanes.touch(lane.subscription_uid, lane.bucket)
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.state is LaneState.DIRTY
    assert harness.lanes.take_wanted() == [lane]


async def test_what_is_announced_is_the_publishers_to_hand_over(harness: LaneHarness) -> None:
    """A read that began before the announcement may bring the row after the commit."""
    lane = harness.lane()
    delivery_id = harness.new_id()
    lane.begin_refill()
    harness.lanes.announce(lane.subscription_uid, delivery_id)
    harness.lanes.accept(lane, harness.row(lane, delivery_id), harness.message())
    harness.lanes.end_refill(lane, found_all=True)

    harness.lanes.hand_over(lane, delivery_id, harness.message())

    assert [job.delivery_id for job in harness.take_all()] == [delivery_id]


async def test_a_hand_off_to_a_lane_that_was_not_told_of_it_is_dropped(
    harness: LaneHarness,
) -> None:
    """The lane was made between announcement and commit; its read has the row, and sent it."""
    delivery_id, uid = harness.new_id(), harness.lane().subscription_uid
    assert harness.lanes.announce(harness.new_id(), delivery_id) is None
    lane = harness.lanes.get(uid)
    assert lane is not None
    harness.refill(lane, [harness.row(lane, delivery_id)])
    (job,) = harness.take_all()
    harness.succeed(job)

    harness.lanes.hand_over(lane, delivery_id, harness.message())

    assert harness.take_all() == []
    assert lane.state is LaneState.DIRTY


async def test_what_memory_holds_is_not_accepted_again(harness: LaneHarness) -> None:
    lane = harness.lane()
    (queued,) = harness.publish(lane)
    harness.refill(lane, [harness.row(lane, queued)])

    assert [job.delivery_id for job in harness.take_all()] == [queued]
    harness.refill(lane, [harness.row(lane, queued)])
    assert harness.take_all() == []


async def test_what_others_changed_during_a_read_is_discarded(harness: LaneHarness) -> None:
    """Cancelled between the statement and its answer: the row is stale, and must not be sent."""
    lane = harness.lane()
    cancelled, other = harness.new_id(), harness.new_id()
    lane.begin_refill()
    harness.lanes.forget(lane, cancelled)
    for delivery_id in (cancelled, other):
        harness.lanes.accept(lane, harness.row(lane, delivery_id), harness.message())
    harness.lanes.end_refill(lane, found_all=True)

    assert [job.delivery_id for job in harness.take_all()] == [other]
    assert lane.state is LaneState.DIRTY
    harness.refill(lane, [harness.row(lane, cancelled, version=1)])
    assert [job.delivery_id for job in harness.take_all()] == [cancelled]


async def test_forgetting_takes_a_job_out_of_the_queue(harness: LaneHarness) -> None:
    lane = harness.lane()
    first, second = harness.publish(lane, 2)

    harness.lanes.forget(lane, first)

    assert [job.delivery_id for job in harness.take_all()] == [second]
    assert harness.lanes.budget.jobs == 0
    assert harness.lanes.budget.bytes == 0


async def test_forgetting_what_is_on_the_wire_does_not_let_it_be_sent_twice(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    (job,) = harness.take_all()

    harness.lanes.forget(lane, delivery_id)
    harness.refill(lane, [harness.row(lane, delivery_id, version=1)])

    assert harness.take_all() == []
    harness.answer(job, 200)
    harness.lanes.mismatched(job)
    harness.refill(lane, [harness.row(lane, delivery_id, version=1)])
    assert [job.version for job in harness.take_all()] == [1]


async def test_what_was_changed_while_our_fault_kept_it_is_not_sent_again(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    (job,) = harness.take_all()

    harness.lanes.forget(lane, delivery_id)
    harness.release(job)
    harness.turn(2)

    assert harness.take_all() == []
    assert lane.known == {}


async def test_forgetting_what_waits_for_its_time_ends_its_waiting(harness: LaneHarness) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    harness.fail(harness.take_all()[0], delay_s=30)

    harness.lanes.forget(lane, delivery_id)
    harness.turn(31)

    assert harness.take_all() == []
    assert harness.lanes.budget.bytes == 0


async def test_a_retry_within_the_minute_waits_in_memory(harness: LaneHarness) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    harness.fail(harness.take_all()[0], delay_s=TIMER_HORIZON_S)

    harness.turn(TIMER_HORIZON_S - 1)
    assert harness.take_all() == []
    harness.turn(1)

    (job,) = harness.take_all()
    assert (job.delivery_id, job.version, job.attempt_count) == (delivery_id, 1, 1)


async def test_a_later_retry_is_left_to_postgres(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane)

    harness.fail(harness.take_all()[0], delay_s=TIMER_HORIZON_S + 1)

    assert lane.known == {}
    assert len(harness.timers) == 0


async def test_a_lane_keeps_no_more_waiting_retries_than_its_quota(harness: LaneHarness) -> None:
    lane = harness.lane(max_in_flight=500)
    harness.publish(lane, TIMERS_PER_LANE + 5)
    jobs = harness.take_all()

    for job in jobs:
        harness.fail(job, delay_s=30)
        lane.close_circuit()  # it would open, and drop the queue

    assert len(lane.known) == lane.timer_count == TIMERS_PER_LANE
    assert lane.state is LaneState.DIRTY


async def test_what_waits_counts_for_the_bytes_that_are_held() -> None:
    small = LaneHarness(max_queued_bytes=4_000)
    lane = small.lane()
    small.publish(lane, 3, data=b"x" * 250)
    assert small.lanes.budget.bytes == 750
    jobs = small.take_all()
    assert small.lanes.budget.bytes == 0
    for job in jobs:
        small.fail(job, delay_s=30)
    assert small.lanes.budget.bytes == 750

    small.turn(31)

    assert len(small.take_all()) == 3
    assert small.lanes.budget.bytes == 0


@pytest.mark.parametrize("state", [SubscriptionState.PAUSED, SubscriptionState.DISABLED])
async def test_a_held_lane_lets_go_of_everything_and_is_not_read(
    harness: LaneHarness, state: SubscriptionState
) -> None:
    lane = harness.lane()
    harness.publish(lane, 3)
    harness.fail(harness.take_all()[0], delay_s=10)
    harness.publish(lane, 3)

    harness.lanes.configure(lane, harness.config(version=2, state=state))
    harness.turn(11)
    harness.publish(lane)
    harness.lanes.touch(lane.subscription_uid, lane.bucket)

    assert harness.take_all() == []
    assert len(lane.queue) == 0
    assert harness.lanes.take_wanted() == []
    harness.lanes.configure(lane, harness.config(version=3))
    assert harness.lanes.take_wanted() == [lane]


async def test_a_row_that_is_read_while_its_lane_is_paused_is_not_queued(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    lane.begin_refill()
    harness.lanes.configure(lane, harness.config(version=2, state=SubscriptionState.PAUSED))
    harness.lanes.accept(lane, harness.row(lane), harness.message())
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_an_older_read_of_a_subscription_never_replaces_a_newer(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.lanes.configure(lane, harness.config(version=3, state=SubscriptionState.PAUSED))

    harness.lanes.configure(lane, harness.config(version=2))

    assert not lane.sends()


async def test_a_deleted_lane_asks_to_be_cancelled(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)

    harness.lanes.deleted(lane)

    assert harness.take_all() == []
    assert harness.lanes.take_wanted() == [lane]


async def test_an_outdated_lane_sends_nothing_but_decides_by_what_it_knew(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)

    harness.lanes.outdate(lane)

    assert harness.take_all() == []
    assert lane.config is not None
    assert harness.lanes.take_wanted() == [lane]
    harness.lanes.configure(lane, harness.config())
    harness.refill(lane, [harness.row(lane)])
    assert len(harness.take_all()) == 1
