"""Lanes of buckets that move to another node, eviction, and the views of lanes. Rule 13."""

import pytest

from hookline_service.domain.ids import bucket_of
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.lane import (
    CIRCUIT_BACKOFF_S,
    CIRCUIT_FAILURES,
    LANE_BYTES,
    LaneState,
)
from tests.pipeline.lane_harness import LaneHarness, sender_with


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


async def test_a_lost_bucket_is_dropped_from_memory(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 3)
    job = harness.dispatcher.take(2_000)
    assert job is not None

    harness.lanes.buckets_lost([lane.bucket])

    assert harness.lanes.get(lane.subscription_uid) is None
    assert harness.take_all() == []
    assert (harness.lanes.budget.jobs, harness.lanes.budget.bytes) == (0, 0)
    harness.answer(job, 500)
    harness.lanes.mismatched(job)
    assert harness.lanes.take_wanted() == []


async def test_a_lost_lane_does_not_affect_its_successor(harness: LaneHarness) -> None:
    """Its late records cause no refill, and a refill of the old lane queues nothing."""
    old = harness.lane()
    (delivery_id,) = harness.publish(old)
    (job,) = harness.take_all()
    old.begin_refill()
    harness.lanes.buckets_lost([old.bucket])
    harness.lanes.touch(old.subscription_uid, old.bucket)
    new = harness.lanes.get(old.subscription_uid)
    assert new is not None
    harness.lanes.configure(new, harness.config())
    harness.refill(new, [harness.row(new, delivery_id)])
    (again,) = harness.take_all()
    harness.succeed(again)

    harness.lanes.accept(old, harness.row(old, delivery_id), harness.message())
    harness.lanes.end_refill(old, found_all=False)
    harness.lanes.mismatched(job)

    assert harness.take_all() == []
    assert harness.lanes.take_wanted() == []
    assert new.state is LaneState.COMPLETE


async def test_no_lane_is_created_for_a_bucket_of_another_node(harness: LaneHarness) -> None:
    harness.owned.clear()
    uid = harness.new_id()

    harness.lanes.touch(uid, 7)

    assert harness.lanes.get(uid) is None


async def test_a_bucket_is_quiet_when_all_sent_deliveries_are_recorded(
    harness: LaneHarness,
) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)
    job = harness.dispatcher.take(2_000)
    assert job is not None

    assert harness.lanes.quiet_buckets([lane.bucket]) == set()
    assert harness.take_all() == []
    harness.answer(job, 500)
    assert harness.lanes.quiet_buckets([lane.bucket]) == set()
    assert harness.drained == 0
    harness.lanes.rescheduled(job, 30)
    assert harness.drained == 1
    assert harness.lanes.quiet_buckets([lane.bucket]) == {lane.bucket}


async def test_a_forgotten_retry_does_not_make_a_bucket_quiet(harness: LaneHarness) -> None:
    lane = harness.lane()
    first, _ = harness.publish(lane, 2)
    job = harness.dispatcher.take(2_000)
    assert job is not None
    harness.fail(job, delay_s=30)
    harness.take_all()

    harness.lanes.forget(lane, first)

    assert harness.lanes.quiet_buckets([lane.bucket]) == set()


async def test_a_bucket_that_is_no_longer_surplus_sends_again(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 2)
    busy = harness.dispatcher.take(2_000)
    harness.lanes.quiet_buckets([lane.bucket])
    assert busy is not None
    assert harness.take_all() == []

    harness.lanes.quiet_buckets([])

    assert len(harness.take_all()) == 1


async def test_only_idle_lanes_are_evicted(
    harness: LaneHarness,
) -> None:
    idle, waiting, paused, deleted, paced, queued, sent = (
        harness.lane(max_per_second=rate) for rate in (None, None, None, None, 1.0, None, None)
    )
    harness.publish(waiting)
    harness.fail(harness.take_all()[0], delay_s=30)
    harness.lanes.configure(paused, harness.config(version=2, state=SubscriptionState.PAUSED))
    harness.lanes.deleted(deleted)
    harness.lanes.take_wanted()
    harness.publish(paced)
    harness.succeed(harness.take_all()[0])
    harness.publish(sent)
    harness.take_all()
    harness.publish(queued)

    harness.lanes.shrink_to(0)

    assert set(harness.lanes.all()) == {paced, queued, sent}
    assert idle.is_gone
    harness.turn(31)
    assert harness.lanes.budget.bytes == 2, "only the queued job counts"


async def test_the_circuit_of_an_evicted_lane_is_kept(
    harness: LaneHarness,
) -> None:
    """Otherwise a dead target would be called each time that its lane is created again."""
    lane = harness.lane(max_in_flight=CIRCUIT_FAILURES)
    uid, bucket = lane.subscription_uid, lane.bucket
    harness.publish(lane, CIRCUIT_FAILURES)
    for job in harness.take_all():
        harness.fail(job)
    harness.lanes.shrink_to(0)
    assert lane.is_gone

    harness.lanes.touch(uid, bucket)
    assert harness.lanes.get(uid) is None, "it is not read while its circuit is open"
    harness.turn(CIRCUIT_BACKOFF_S)
    (again,) = harness.lanes.take_wanted()
    assert again.subscription_uid == uid
    harness.lanes.configure(again, harness.config(failing_since_us=1))
    harness.refill(again, [harness.row(again), harness.row(again)])
    (probe,) = harness.take_all()
    harness.fail(probe)

    assert again.circuit_backoff_s == 2 * CIRCUIT_BACKOFF_S, "its backoff continues"


async def test_a_lane_of_a_failing_subscription_begins_with_one_probe(
    harness: LaneHarness,
) -> None:
    lane = harness.dirty_lane()
    harness.lanes.configure(lane, harness.config(failing_since_us=1))
    harness.refill(lane, [harness.row(lane) for _ in range(5)], found_all=False)

    (probe,) = harness.take_all()
    assert harness.take_all() == []
    harness.succeed(probe)

    assert len(harness.take_all()) == 2, "success closes the circuit and raises the limit"
    assert not lane.is_circuit_open


async def test_kept_health_ends_with_a_change_or_the_loss_of_its_bucket(
    harness: LaneHarness,
) -> None:
    lanes = [harness.lane(max_in_flight=CIRCUIT_FAILURES) for _ in range(2)]
    for lane in lanes:
        harness.publish(lane, CIRCUIT_FAILURES)
        for job in harness.take_all():
            harness.fail(job)
    harness.lanes.shrink_to(0)
    changed, lost = lanes

    harness.lanes.changed(changed.subscription_uid, changed.bucket)
    harness.owned.discard(lost.bucket)
    harness.lanes.buckets_lost([lost.bucket])
    harness.turn(CIRCUIT_BACKOFF_S)

    assert [lane.subscription_uid for lane in harness.lanes.take_wanted()] == [
        changed.subscription_uid
    ]
    assert harness.notified == []


async def test_memory_for_lanes_is_bounded_and_buckets_of_missing_lanes_are_swept() -> None:
    harness = LaneHarness(max_lane_bytes=4 * LANE_BYTES)
    idle = [harness.lane() for _ in range(4)]
    large = {f"x-{n}": "v" * 1_000 for n in range(5)}
    assert harness.config(sender=sender_with(large)).memory_bytes > LANE_BYTES + 5_000

    busy = [harness.lane() for _ in range(2)]
    for lane in busy:
        harness.publish(lane)
    assert len(list(harness.lanes.all())) == 4
    assert sum(lane.is_gone for lane in idle) == 2
    harness.lanes.configure(busy[0], harness.config(version=2, sender=sender_with(large)))
    assert harness.swept == []

    uid = harness.new_id()
    harness.lanes.touch(uid, bucket_of(uid))

    assert harness.lanes.get(uid) is None
    assert harness.swept == [bucket_of(uid)]
    assert not any(lane.is_gone for lane in busy)


async def test_counts_and_top_show_the_condition_of_lanes(harness: LaneHarness) -> None:
    ready, limited, held = (
        harness.lane(name="a"),
        harness.lane(name="b", max_in_flight=1),
        harness.lane(),
    )
    harness.publish(limited, 3)
    harness.take_all()
    harness.publish(ready, 2)
    harness.lanes.configure(held, harness.config(version=2, state=SubscriptionState.PAUSED))

    counts = harness.lanes.counts()

    assert (counts.total, counts.open, counts.limited, counts.held) == (3, 0, 1, 1)
    first, second = harness.lanes.top(2)
    assert (first.subscription, first.state, first.queued, first.in_flight) == (
        "b",
        "LIMITED",
        2,
        1,
    )
    assert (second.subscription, second.state, second.queued) == ("a", "READY", 2)
