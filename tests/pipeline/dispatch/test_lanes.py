"""What memory takes, what it leaves to Postgres, and what it never holds twice. Rules 14 and 16."""

import pytest

from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.delay_queue import TIMER_HORIZON_S, TIMERS_PER_LANE
from hookline_service.pipeline.dispatch.lane import ENOUGH_QUEUED, LaneState
from tests.pipeline.desk import Desk


@pytest.fixture
async def desk() -> Desk:
    """Inside the event loop, which the timers need."""
    return Desk()


async def test_a_new_lane_is_dirty_and_wants_to_be_read(desk: Desk) -> None:
    lane = desk.dirty_lane()

    assert lane.state is LaneState.DIRTY
    assert desk.lanes.take_wanted() == [lane]


async def test_a_complete_lane_takes_hand_offs_in_order(desk: Desk) -> None:
    lane = desk.lane()

    ids = desk.publish(lane, 3)

    assert [job.delivery_id for job in desk.take_all()] == ids


async def test_a_dirty_lane_drops_hand_offs_and_asks_to_be_read(desk: Desk) -> None:
    lane = desk.lane()
    lane.mark_dirty()

    desk.publish(lane)

    assert desk.take_all() == []
    assert lane.known == {}
    assert desk.lanes.take_wanted() == [lane]


async def test_a_lane_that_is_read_drops_hand_offs_and_must_be_read_again(desk: Desk) -> None:
    lane = desk.lane()
    desk.lanes.begin_refill(lane)

    desk.publish(lane)
    desk.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_a_busy_lane_heeds_another_nodes_word_once_its_queue_is_short(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, ENOUGH_QUEUED + 2)
    woken: list[None] = []
    desk.lanes.on_wanted = lambda: woken.append(None)
    desk.lanes.touch(lane.subscription_uid, lane.bucket, is_word=True)

    desk.publish(lane)
    assert not woken, "nobody is woken to read what is not to be read yet"
    assert len(lane.known) == ENOUGH_QUEUED + 3, "it takes hand-offs meanwhile"
    desk.sending.take(2_000)
    desk.sending.take(2_000)
    assert desk.lanes.take_wanted() == []
    desk.sending.take(2_000)
    assert desk.lanes.take_wanted() == [lane]


async def test_the_sweep_makes_a_busy_lane_dirty_at_once(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, ENOUGH_QUEUED + 2)
    desk.lanes.touch(lane.subscription_uid, lane.bucket)

    assert desk.lanes.take_wanted() == [lane]


async def test_a_word_that_comes_while_a_busy_lane_is_read_is_heeded_after(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, ENOUGH_QUEUED + 1)
    desk.lanes.touch(lane.subscription_uid, lane.bucket, is_word=True)
    desk.lanes.begin_refill(lane)
    desk.lanes.end_refill(lane, found_all=True)
    desk.sending.take(2_000)
    assert desk.lanes.take_wanted() == [], "the read was later than the word"

    desk.publish(lane)
    desk.lanes.begin_refill(lane)
    desk.lanes.touch(lane.subscription_uid, lane.bucket, is_word=True)
    desk.lanes.end_refill(lane, found_all=True)
    assert desk.lanes.take_wanted() == []
    desk.sending.take(2_000)
    assert desk.lanes.take_wanted() == [lane]


async def test_a_lane_is_complete_only_if_the_read_found_all(desk: Desk) -> None:
    lane = desk.dirty_lane()
    desk.lanes.configure(lane, desk.config())

    states: list[LaneState] = []
    for found_all in (False, True):
        desk.refill(lane, [desk.row(lane)], found_all=found_all)
        states.append(lane.state)

    assert states == [LaneState.DIRTY, LaneState.COMPLETE]


async def test_whoever_objects_during_a_read_makes_another_necessary(desk: Desk) -> None:
    lane = desk.lane()
    desk.lanes.begin_refill(lane)
    desk.lanes.touch(lane.subscription_uid, lane.bucket)
    desk.lanes.end_refill(lane, found_all=True)

    assert lane.state is LaneState.DIRTY
    assert desk.lanes.take_wanted() == [lane]


async def test_what_is_announced_is_the_publishers_to_hand_over(desk: Desk) -> None:
    """A read that began before the announcement may bring the row after the commit."""
    lane = desk.lane()
    delivery_id = desk.new_id()
    desk.lanes.begin_refill(lane)
    desk.lanes.announce(lane.subscription_uid, delivery_id)
    desk.lanes.accept(lane, desk.row(lane, delivery_id), desk.message())
    desk.lanes.end_refill(lane, found_all=True)

    desk.lanes.hand_over(lane, delivery_id, desk.message())

    assert [job.delivery_id for job in desk.take_all()] == [delivery_id]


async def test_a_hand_off_to_a_lane_that_was_not_told_of_it_is_dropped(desk: Desk) -> None:
    """The lane was made between announcement and commit; its read has the row, and sent it."""
    delivery_id, uid = desk.new_id(), desk.lane().subscription_uid
    assert desk.lanes.announce(desk.new_id(), delivery_id) is None
    lane = desk.lanes.get(uid)
    assert lane is not None
    desk.refill(lane, [desk.row(lane, delivery_id)])
    (job,) = desk.take_all()
    desk.succeed(job)

    desk.lanes.hand_over(lane, delivery_id, desk.message())

    assert desk.take_all() == []
    assert lane.state is LaneState.DIRTY


async def test_what_memory_holds_is_not_accepted_again(desk: Desk) -> None:
    lane = desk.lane()
    (queued,) = desk.publish(lane)
    desk.refill(lane, [desk.row(lane, queued)])

    assert [job.delivery_id for job in desk.take_all()] == [queued]
    desk.refill(lane, [desk.row(lane, queued)])
    assert desk.take_all() == []


async def test_what_others_changed_during_a_read_is_discarded(desk: Desk) -> None:
    """Cancelled between the statement and its answer: the row is stale, and must not be sent."""
    lane = desk.lane()
    cancelled, other = desk.new_id(), desk.new_id()
    desk.lanes.begin_refill(lane)
    desk.lanes.forget(lane, cancelled)
    for delivery_id in (cancelled, other):
        desk.lanes.accept(lane, desk.row(lane, delivery_id), desk.message())
    desk.lanes.end_refill(lane, found_all=True)

    assert [job.delivery_id for job in desk.take_all()] == [other]
    assert lane.state is LaneState.DIRTY
    desk.refill(lane, [desk.row(lane, cancelled, version=1)])
    assert [job.delivery_id for job in desk.take_all()] == [cancelled]


async def test_forgetting_takes_a_job_out_of_the_queue(desk: Desk) -> None:
    lane = desk.lane()
    first, second = desk.publish(lane, 2)

    desk.lanes.forget(lane, first)

    assert [job.delivery_id for job in desk.take_all()] == [second]
    assert desk.lanes.shares.jobs == 0
    assert desk.lanes.shares.bytes == 0


async def test_forgetting_what_is_on_the_wire_does_not_let_it_be_sent_twice(desk: Desk) -> None:
    lane = desk.lane()
    (delivery_id,) = desk.publish(lane)
    (job,) = desk.take_all()

    desk.lanes.forget(lane, delivery_id)
    desk.refill(lane, [desk.row(lane, delivery_id, version=1)])

    assert desk.take_all() == []
    desk.answer(job, 200)
    desk.lanes.mismatched(job)
    desk.refill(lane, [desk.row(lane, delivery_id, version=1)])
    assert [job.version for job in desk.take_all()] == [1]


async def test_what_was_changed_while_our_fault_kept_it_is_not_sent_again(desk: Desk) -> None:
    lane = desk.lane()
    (delivery_id,) = desk.publish(lane)
    (job,) = desk.take_all()

    desk.lanes.forget(lane, delivery_id)
    desk.release(job)
    desk.turn(2)

    assert desk.take_all() == []
    assert lane.known == {}


async def test_forgetting_what_waits_for_its_time_ends_its_waiting(desk: Desk) -> None:
    lane = desk.lane()
    (delivery_id,) = desk.publish(lane)
    desk.fail(desk.take_all()[0], delay_s=30)

    desk.lanes.forget(lane, delivery_id)
    desk.turn(31)

    assert desk.take_all() == []
    assert desk.lanes.shares.bytes == 0


async def test_a_retry_within_the_minute_waits_in_memory(desk: Desk) -> None:
    lane = desk.lane()
    (delivery_id,) = desk.publish(lane)
    desk.fail(desk.take_all()[0], delay_s=TIMER_HORIZON_S)

    desk.turn(TIMER_HORIZON_S - 1)
    assert desk.take_all() == []
    desk.turn(1)

    (job,) = desk.take_all()
    assert (job.delivery_id, job.version, job.attempt_count) == (delivery_id, 1, 1)


async def test_a_later_retry_is_left_to_postgres(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane)

    desk.fail(desk.take_all()[0], delay_s=TIMER_HORIZON_S + 1)

    assert lane.known == {}
    assert len(desk.timers) == 0


async def test_a_lane_keeps_no_more_waiting_retries_than_its_quota(desk: Desk) -> None:
    lane = desk.lane(max_in_flight=500)
    desk.publish(lane, TIMERS_PER_LANE + 5)
    jobs = desk.take_all()
    lane.failures = -1_000  # the circuit is another matter

    for job in jobs:
        desk.fail(job, delay_s=30)

    assert len(lane.known) == lane.timed == TIMERS_PER_LANE
    assert lane.state is LaneState.DIRTY


async def test_what_waits_counts_for_the_bytes_that_are_held() -> None:
    small = Desk(max_queued_bytes=4_000)
    lane = small.lane()
    small.publish(lane, 3, data=b"x" * 250)
    assert small.lanes.shares.bytes == 750
    jobs = small.take_all()
    assert small.lanes.shares.bytes == 0
    for job in jobs:
        small.fail(job, delay_s=30)
    assert small.lanes.shares.bytes == 750

    small.turn(31)

    assert len(small.take_all()) == 3
    assert small.lanes.shares.bytes == 0


@pytest.mark.parametrize("state", [SubscriptionState.PAUSED, SubscriptionState.DISABLED])
async def test_a_held_lane_lets_go_of_everything_and_is_not_read(
    desk: Desk, state: SubscriptionState
) -> None:
    lane = desk.lane()
    desk.publish(lane, 3)
    desk.fail(desk.take_all()[0], delay_s=10)
    desk.publish(lane, 3)

    desk.lanes.configure(lane, desk.config(version=2, state=state))
    desk.turn(11)
    desk.publish(lane)
    desk.lanes.touch(lane.subscription_uid, lane.bucket)

    assert desk.take_all() == []
    assert len(lane.queue) == 0
    assert desk.lanes.take_wanted() == []
    desk.lanes.configure(lane, desk.config(version=3))
    assert desk.lanes.take_wanted() == [lane]


async def test_a_row_that_is_read_while_its_lane_is_paused_is_not_queued(desk: Desk) -> None:
    lane = desk.lane()
    desk.lanes.begin_refill(lane)
    desk.lanes.configure(lane, desk.config(version=2, state=SubscriptionState.PAUSED))
    desk.lanes.accept(lane, desk.row(lane), desk.message())
    desk.lanes.end_refill(lane, found_all=True)

    assert lane.known == {}
    assert lane.state is LaneState.DIRTY


async def test_an_older_read_of_a_subscription_never_replaces_a_newer(desk: Desk) -> None:
    lane = desk.lane()
    desk.lanes.configure(lane, desk.config(version=3, state=SubscriptionState.PAUSED))

    desk.lanes.configure(lane, desk.config(version=2))

    assert not lane.sends()


async def test_a_deleted_lane_asks_to_be_cancelled(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2)

    desk.lanes.deleted(lane)

    assert desk.take_all() == []
    assert desk.lanes.take_wanted() == [lane]


async def test_an_outdated_lane_sends_nothing_but_decides_by_what_it_knew(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2)

    desk.lanes.outdate(lane)

    assert desk.take_all() == []
    assert lane.config is not None
    assert desk.lanes.take_wanted() == [lane]
    desk.lanes.configure(lane, desk.config())
    desk.refill(lane, [desk.row(lane)])
    assert len(desk.take_all()) == 1
