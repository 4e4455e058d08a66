"""Lanes as a cache: hand-offs, refills, retries, and no delivery twice. Rules 14 and 16."""

import pytest

from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.dispatcher import TIMER_HORIZON_S, TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.lane import NOTIFIED_QUEUE_MAX, LaneState
from tests.pipeline.lane_harness import LaneHarness


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


async def test_a_new_lane_is_dirty_and_queued_for_a_refill(harness: LaneHarness) -> None:
    lane = harness.dirty_lane()

    assert lane.state is LaneState.DIRTY
    assert harness.lanes.take_wanted() == [lane]


async def test_a_complete_lane_takes_hand_offs_in_order(harness: LaneHarness) -> None:
    lane = harness.lane()

    ids = harness.publish(lane, 3)

    assert [job.delivery_id for job in harness.take_all()] == ids


async def test_a_dirty_lane_drops_hand_offs_and_is_queued_for_a_refill(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    lane.mark_dirty()

    harness.publish(lane)

    assert harness.take_all() == []
    assert lane.known == {}
    assert harness.lanes.take_wanted() == [lane]


async def test_a_hand_off_during_a_refill_requires_another_refill(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    lane.begin_refill()

    harness.publish(lane)
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_a_notified_lane_is_read_once_its_queue_is_short(
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


async def test_a_sweep_marks_a_busy_lane_dirty_at_once(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, NOTIFIED_QUEUE_MAX + 2)
    harness.lanes.touch(lane.subscription_uid, lane.bucket)

    assert harness.lanes.take_wanted() == [lane]


async def test_a_notification_during_a_refill_takes_effect_after_it(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, NOTIFIED_QUEUE_MAX + 1)
    harness.lanes.touch(lane.subscription_uid, lane.bucket, from_peer=True)
    lane.begin_refill()
    harness.lanes.end_refill(lane, found_all=True)
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == [], "the refill began after the notification"

    harness.publish(lane)
    lane.begin_refill()
    harness.lanes.touch(lane.subscription_uid, lane.bucket, from_peer=True)
    harness.lanes.end_refill(lane, found_all=True)
    assert harness.lanes.take_wanted() == []
    harness.dispatcher.take(2_000)
    assert harness.lanes.take_wanted() == [lane]


async def test_a_lane_is_complete_only_if_the_refill_found_everything(harness: LaneHarness) -> None:
    lane = harness.dirty_lane()
    harness.lanes.configure(lane, harness.config())

    states: list[LaneState] = []
    for found_all in (False, True):
        harness.refill(lane, [harness.row(lane)], found_all=found_all)
        states.append(lane.state)

    assert states == [LaneState.DIRTY, LaneState.COMPLETE]


async def test_a_lane_marked_dirty_during_a_refill_is_read_again(harness: LaneHarness) -> None:
    lane = harness.lane()
    lane.begin_refill()
    harness.lanes.touch(lane.subscription_uid, lane.bucket)
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.state is LaneState.DIRTY
    assert harness.lanes.take_wanted() == [lane]


async def test_a_refill_does_not_take_announced_deliveries(harness: LaneHarness) -> None:
    """A read that began before the announcement may return the row after the commit."""
    lane = harness.lane()
    delivery_id = harness.new_id()
    lane.begin_refill()
    harness.lanes.announce(lane.subscription_uid, delivery_id)
    harness.lanes.accept(lane, harness.row(lane, delivery_id), harness.message())
    harness.lanes.end_refill(lane, found_all=True)

    harness.lanes.hand_over(lane, delivery_id, harness.message())

    assert [job.delivery_id for job in harness.take_all()] == [delivery_id]


async def test_an_unannounced_hand_off_is_dropped(
    harness: LaneHarness,
) -> None:
    """The lane was created between announcement and commit; its refill read and sent the row."""
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


async def test_a_row_in_memory_is_not_accepted_again(harness: LaneHarness) -> None:
    lane = harness.lane()
    (queued,) = harness.publish(lane)
    harness.refill(lane, [harness.row(lane, queued)])

    assert [job.delivery_id for job in harness.take_all()] == [queued]
    harness.refill(lane, [harness.row(lane, queued)])
    assert harness.take_all() == []


async def test_rows_changed_during_a_refill_are_discarded(harness: LaneHarness) -> None:
    """Cancelled between the statement and its result: the row is stale and must not be sent."""
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


async def test_only_the_refill_under_way_is_discarded_when_all_rows_change(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    delivery_id = harness.new_id()
    lane.begin_refill()
    harness.lanes.forget_all(lane)
    harness.lanes.accept(lane, harness.row(lane, delivery_id), harness.message())
    harness.lanes.end_refill(lane, found_all=True)
    assert harness.take_all() == []

    harness.refill(lane, [harness.row(lane, delivery_id, version=1)])
    assert [job.delivery_id for job in harness.take_all()] == [delivery_id]


async def test_forget_removes_a_queued_job(harness: LaneHarness) -> None:
    lane = harness.lane()
    first, second = harness.publish(lane, 2)

    harness.lanes.forget(lane, first)

    assert [job.delivery_id for job in harness.take_all()] == [second]
    assert harness.lanes.budget.jobs == 0
    assert harness.lanes.budget.bytes == 0


async def test_forget_does_not_send_a_sent_job_twice(
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


async def test_a_changed_job_is_not_sent_again_after_an_internal_error(
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


async def test_forget_drops_a_delayed_job(harness: LaneHarness) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    harness.fail(harness.take_all()[0], delay_s=30)

    harness.lanes.forget(lane, delivery_id)
    harness.turn(31)

    assert harness.take_all() == []
    assert harness.lanes.budget.bytes == 0


async def test_a_retry_within_a_minute_waits_in_memory(harness: LaneHarness) -> None:
    lane = harness.lane()
    (delivery_id,) = harness.publish(lane)
    harness.fail(harness.take_all()[0], delay_s=TIMER_HORIZON_S)

    harness.turn(TIMER_HORIZON_S - 1)
    assert harness.take_all() == []
    harness.turn(1)

    (job,) = harness.take_all()
    assert (job.delivery_id, job.version, job.attempt_count) == (delivery_id, 1, 1)


async def test_a_later_retry_waits_in_postgres_alone(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane)

    harness.fail(harness.take_all()[0], delay_s=TIMER_HORIZON_S + 1)

    assert lane.known == {}
    assert len(harness.timers) == 0


async def test_delayed_retries_of_a_lane_are_limited(harness: LaneHarness) -> None:
    lane = harness.lane(max_in_flight=500)
    harness.publish(lane, TIMERS_PER_LANE + 5)
    jobs = harness.take_all()

    for job in jobs:
        harness.fail(job, delay_s=30)
        lane.close_circuit()  # it would open, and drop the queue

    assert len(lane.known) == lane.timer_count == TIMERS_PER_LANE
    assert lane.state is LaneState.DIRTY


async def test_delayed_retries_count_as_held_bytes() -> None:
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
async def test_a_paused_or_disabled_lane_drops_its_jobs_and_is_not_read(
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


async def test_a_row_read_during_a_pause_is_not_queued(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    lane.begin_refill()
    harness.lanes.configure(lane, harness.config(version=2, state=SubscriptionState.PAUSED))
    harness.lanes.accept(lane, harness.row(lane), harness.message())
    harness.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_an_older_configuration_never_replaces_a_newer(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.lanes.configure(lane, harness.config(version=3, state=SubscriptionState.PAUSED))

    harness.lanes.configure(lane, harness.config(version=2))

    assert not lane.sends()


async def test_a_deleted_lane_is_queued_to_be_cancelled(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)

    harness.lanes.deleted(lane)

    assert harness.take_all() == []
    assert harness.lanes.take_wanted() == [lane]


async def test_an_outdated_lane_keeps_its_configuration_and_sends_nothing(
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
