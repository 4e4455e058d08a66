"""The operator's hands: retry and cancel, whatever moves at the same time."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.errors import FailedPreconditionError, NotFoundError, Reason
from hookline_service.pipeline.actions.delivery_actions import DeliveryActions
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.operations import OperationStore
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival, until_blocked
from tests.waiting import until


@pytest.fixture
async def failing(rig: Rig, receiver: Receiver) -> Receiver:
    """The target of acme's subscription, which refuses; two attempts, 30 s apart."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 30.0])
    receiver.answers = 500
    return receiver


async def _exhausted(rig: Rig) -> UUID:
    """A delivery whose two attempts have failed."""
    await rig.publisher.publish("acme", [order_created()])
    await _recorded(rig, 1)
    await rig.turn(31)
    await _recorded(rig, 2)
    (row,) = await rig.finished()
    assert row["state"] == "EXHAUSTED"
    delivery_id: UUID = row["delivery_id"]
    return delivery_id


async def _held(rig: Rig) -> UUID:
    """A delivery that waits for its second attempt."""
    await rig.publisher.publish("acme", [order_created()])
    await _recorded(rig, 1)
    (row,) = await rig.pending()
    delivery_id: UUID = row["delivery_id"]
    return delivery_id


async def _recorded(rig: Rig, count: int) -> None:
    await until(lambda: rig.recorder.recorded == count, f"{count} outcomes are recorded")


# ------------------------------------------------------------------------------------- retries


async def test_retry_of_a_dead_letter_gets_a_new_budget_and_continues_attempt_numbers(
    rig: Rig, failing: Receiver
) -> None:
    delivery_id = await _exhausted(rig)

    await rig.delivery_actions.retry("acme", delivery_id)
    await _recorded(rig, 3)
    (row,) = await rig.pending()
    assert (row["delivery_id"], row["attempt_count"]) == (delivery_id, 3)
    assert (row["attempts_base"], row["attempts_until"]) == (2, 4)
    assert await rig.finished() == []
    await rig.turn(31)  # the schedule begins anew, too: the second attempt comes after 30 s
    await _recorded(rig, 4)
    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("EXHAUSTED", 4)

    failing.answers = 200
    await rig.delivery_actions.retry("acme", delivery_id)
    await _recorded(rig, 5)
    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("SUCCEEDED", 5)
    assert [attempt["number"] for attempt in await rig.attempts()] == [1, 2, 3, 4, 5]
    assert len(set(failing.ids)) == 1, "the webhook id is the event's, at every attempt"


async def test_retry_of_a_pending_delivery_makes_it_due_within_its_budget(
    rig: Rig, failing: Receiver
) -> None:
    delivery_id = await _held(rig)

    await rig.delivery_actions.retry("acme", delivery_id)
    await _recorded(rig, 2)

    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("EXHAUSTED", 2)
    assert [a["number"] for a in await rig.attempts()] == [1, 2]
    await failing.wait_for(2)


async def test_retry_does_not_change_a_delivery_on_the_wire(rig: Rig, failing: Receiver) -> None:
    """It is due already. Raising its version would lose the answer, and send it once more."""
    failing.gate, failing.answers = asyncio.Event(), 200
    await rig.publisher.publish("acme", [order_created()])
    await failing.wait_for(1)
    (row,) = await rig.pending()

    await rig.delivery_actions.retry("acme", row["delivery_id"])
    failing.gate.set()
    await _recorded(rig, 1)

    assert [r["state"] for r in await rig.finished()] == ["SUCCEEDED"]
    assert len(failing.ids) == 1


async def test_retry_does_not_change_a_delivery_that_became_due_after_it_was_read(
    rig: Rig, failing: Receiver
) -> None:
    """Found waiting, on the wire by the time of the move."""
    delivery_id = await _held(rig)
    store = OperationStore(rig.database)
    found = await store.find("acme", delivery_id)
    assert found is not None
    assert not found.is_due
    failing.gate, failing.answers = asyncio.Event(), 200
    await rig.turn(31)
    await failing.wait_for(2)

    assert not await store.retry_pending(found, DeliveryState.PENDING)
    failing.gate.set()
    await _recorded(rig, 2)
    assert len(failing.ids) == 2


async def test_retry_does_not_change_a_delivery_due_before_its_node_reads_the_change(
    rig: Rig, failing: Receiver
) -> None:
    """Memory sends it at its time; a record of the version before would match nothing."""
    delivery_id = await _held(rig)
    await rig.database.fetch(
        "UPDATE pending_deliveries SET due_at = hookline_now() + interval '1900 ms'"
    )

    await rig.delivery_actions.retry("acme", delivery_id)

    (row,) = await rig.pending()
    assert row["version"] == 1
    failing.answers = 200
    await rig.turn(31)
    await _recorded(rig, 2)
    assert len(failing.ids) == 2


async def test_concurrent_retries_move_a_delivery_once(rig: Rig, failing: Receiver) -> None:
    delivery_id = await _exhausted(rig)
    failing.answers = 200
    await asyncio.gather(*(rig.delivery_actions.retry("acme", delivery_id) for _ in range(5)),
                         return_exceptions=True)  # fmt: skip
    await _recorded(rig, 3)
    assert await rig.pending() == []
    assert [row["attempt_count"] for row in await rig.finished()] == [3]
    assert len(failing.ids) == 3


async def test_succeeded_delivery_cannot_be_retried(rig: Rig, failing: Receiver) -> None:
    failing.answers = 200
    await rig.publisher.publish("acme", [order_created()])
    await _recorded(rig, 1)
    (row,) = await rig.finished()
    with pytest.raises(FailedPreconditionError) as refusal:
        await rig.delivery_actions.retry("acme", row["delivery_id"])
    assert refusal.value.reason is Reason.DELIVERY_ALREADY_SUCCEEDED


@pytest.mark.parametrize("state", ["CANCELLED", "EXPIRED"])
async def test_cancelled_and_expired_deliveries_can_be_retried(
    rig: Rig, failing: Receiver, state: str
) -> None:
    delivery_id = await _exhausted(rig)
    await rig.database.fetch("UPDATE deliveries SET state = $1", state)
    failing.answers = 200
    await rig.delivery_actions.retry("acme", delivery_id)
    await _recorded(rig, 3)
    assert [row["state"] for row in await rig.finished()] == ["SUCCEEDED"]


@pytest.mark.usefixtures("failing")
async def test_delivery_of_a_deleted_subscription_cannot_be_retried(rig: Rig) -> None:
    delivery_id = await _exhausted(rig)
    await rig.database.fetch("UPDATE subscriptions SET deleted_at = now()")
    with pytest.raises(FailedPreconditionError) as refusal:
        await rig.delivery_actions.retry("acme", delivery_id)
    assert refusal.value.reason is Reason.SUBSCRIPTION_DELETED
    assert len(await rig.finished()) == 1


async def test_delivery_whose_event_is_about_to_be_dropped_cannot_be_retried(
    rig: Rig, failing: Receiver
) -> None:
    delivery_id = await _exhausted(rig)
    store = OperationStore(rig.database)
    soon = DeliveryActions(store, rig.changes, rig.time, retention_days=4)
    with pytest.raises(FailedPreconditionError) as refusal:
        await soon.retry("acme", delivery_id)
    assert refusal.value.reason is Reason.EVENT_NEAR_EXPIRY

    in_time = DeliveryActions(store, rig.changes, rig.time, retention_days=5)
    failing.answers = 200
    await in_time.retry("acme", delivery_id)
    await _recorded(rig, 3)


@pytest.mark.usefixtures("failing")
async def test_delivery_without_its_event_stays_in_history(rig: Rig) -> None:
    """Retention differs between nodes, perhaps. A move that has nothing to send must not happen."""
    delivery_id = await _exhausted(rig)
    store = OperationStore(rig.database)
    found_before = await store.find("acme", delivery_id)
    assert found_before is not None
    await rig.database.fetch("DELETE FROM events")

    assert not await store.retry_finished(found_before, DeliveryState.PENDING, 2), (
        "gone between the look and the move"
    )
    with pytest.raises(FailedPreconditionError) as refusal:
        await rig.delivery_actions.retry("acme", delivery_id)
    assert refusal.value.reason is Reason.EVENT_NEAR_EXPIRY
    assert [row["state"] for row in await rig.finished()] == ["EXHAUSTED"]


async def test_retry_does_not_exceed_the_largest_attempt_number(
    rig: Rig, failing: Receiver
) -> None:
    delivery_id = await _exhausted(rig)
    await rig.database.fetch("UPDATE deliveries SET attempt_count = 32766")
    failing.answers = 200
    await rig.delivery_actions.retry("acme", delivery_id)
    await _recorded(rig, 3)
    assert [row["attempt_count"] for row in await rig.finished()] == [32_767]


# ------------------------------------------------------------------------------------- cancels


async def test_cancelled_delivery_is_not_attempted_again(rig: Rig, failing: Receiver) -> None:
    delivery_id = await _held(rig)
    await rig.delivery_actions.cancel("acme", delivery_id)

    (row,) = await rig.finished()
    assert (row["state"], row["state_reason"]) == ("CANCELLED", "OPERATOR")
    assert (row["attempt_count"], row["http_status"]) == (1, None)
    assert await rig.pending() == []
    await rig.delivery_actions.cancel("acme", delivery_id)  # again: it is so already
    (lane,) = rig.lanes.all()
    await until(lambda: not lane.holds(delivery_id), "its lane has applied the change")
    failing.answers = 200
    await rig.turn(31)
    await rig.publisher.publish("acme", [order_created(2)])
    await _recorded(rig, 2)
    assert set(failing.counts.values()) == {1}


async def test_outcome_of_a_delivery_cancelled_on_the_wire_is_ignored(
    rig: Rig, failing: Receiver
) -> None:
    failing.gate, failing.answers = asyncio.Event(), 200
    await rig.publisher.publish("acme", [order_created()])
    await failing.wait_for(1)
    (row,) = await rig.pending()
    await rig.delivery_actions.cancel("acme", row["delivery_id"])
    failing.gate.set()
    await rig.deliverer.stop()

    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("CANCELLED", 0)
    assert await rig.attempts() == []


@pytest.mark.parametrize("answer", [200, 500])
async def test_finished_delivery_cannot_be_cancelled(
    rig: Rig, failing: Receiver, answer: int
) -> None:
    failing.answers = answer
    await rig.publisher.publish("acme", [order_created()])
    await _recorded(rig, 1)
    if answer != 200:
        await rig.turn(31)
        await _recorded(rig, 2)
    (row,) = await rig.finished()
    with pytest.raises(FailedPreconditionError) as refusal:
        await rig.delivery_actions.cancel("acme", row["delivery_id"])
    assert refusal.value.reason is Reason.DELIVERY_ALREADY_FINISHED
    assert refusal.value.metadata["state"] == row["state"]


@pytest.mark.usefixtures("failing")
async def test_unknown_and_foreign_deliveries_have_the_same_error(rig: Rig) -> None:
    delivery_id = await _exhausted(rig)
    await rig.tenant("globex")
    for operation in (rig.delivery_actions.retry, rig.delivery_actions.cancel):
        for tenant, wanted in (
            ("globex", delivery_id),
            ("acme", rig.new_uid()),
            ("x", delivery_id),
        ):
            with pytest.raises(NotFoundError) as refusal:
                await operation(tenant, wanted)
            assert refusal.value.reason is Reason.DELIVERY_NOT_FOUND
    assert [row["state"] for row in await rig.finished()] == ["EXHAUSTED"]


@pytest.mark.usefixtures("failing")
async def test_owner_applies_actions_made_on_another_node(rig: Rig) -> None:
    delivery_id = await _held(rig)
    async with running(rig.url, seed=2) as other:
        await other.delivery_actions.retry("acme", delivery_id)
        rig.changes.poke()
        await _finished(rig)
    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("EXHAUSTED", 2)


async def _finished(rig: Rig) -> None:
    async def is_finished() -> bool:
        return len(await rig.finished()) == 1

    await until(is_finished, "the delivery has ended")


# ------------------------------------------------------------------------- moves and readings


@pytest.mark.usefixtures("failing")
async def test_delivery_is_found_during_every_move(rig: Rig) -> None:
    """While it moves back and forth, every read finds it in exactly one table."""
    delivery_id = await _held(rig)
    await rig.database.fetch("UPDATE subscriptions SET state = 'PAUSED', state_reason = 'OPERATOR'")
    store, reads = OperationStore(rig.database), DeliveryStore(rig.database)
    moves = 0

    async def read() -> None:
        count = 0
        while moves < 40 or count < 10:
            assert await store.find("acme", delivery_id) is not None
            await reads.get("acme", delivery_id)
            count += 1

    readers = [asyncio.create_task(read()) for _ in range(3)]
    while moves < 40 or not all(reader.done() for reader in readers):
        await rig.delivery_actions.cancel("acme", delivery_id)
        await rig.delivery_actions.retry("acme", delivery_id)
        moves += 1
    await asyncio.gather(*readers)
    assert len(await rig.pending()) == 1
    assert await rig.finished() == []


@pytest.mark.usefixtures("failing")
async def test_cancel_that_races_with_a_record_starts_again(rig: Rig) -> None:
    """It waits for the row, finds it gone, and looks where it went."""
    delivery_id = await _held(rig)
    async with rival(rig.url) as other:
        await _succeed(other, delivery_id)
        cancelling = asyncio.create_task(rig.delivery_actions.cancel("acme", delivery_id))
        await until_blocked(rig.database, "calls")
        await other.execute("COMMIT")
        with pytest.raises(FailedPreconditionError) as refusal:
            await cancelling
    assert refusal.value.metadata["state"] == DeliveryState.SUCCEEDED
    assert len(await rig.finished()) == 1


async def _succeed(connection: "asyncpg.Connection[asyncpg.Record]", delivery_id: UUID) -> None:
    await connection.execute(
        """WITH gone AS (DELETE FROM pending_deliveries WHERE delivery_id = $1 RETURNING *)
           INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time,
                                   version, attempt_count, state)
           SELECT tenant_uid, delivery_id, subscription_uid, event_id, now(), gone.version + 1, 2,
                  'SUCCEEDED'
           FROM gone JOIN subscriptions USING (subscription_uid)""",
        delivery_id,
    )
