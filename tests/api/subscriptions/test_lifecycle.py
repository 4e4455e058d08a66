"""Pause, resume, disabling and test events of subscriptions with a real target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.attempt_pb2 import ATTEMPT_OUTCOME_ACCEPTED, ATTEMPT_OUTCOME_HTTP_ERROR
from hookline.v1.delivery_pb2 import DELIVERY_STATE_EXHAUSTED, DELIVERY_STATE_SUCCEEDED
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import (
    MATCH_REASON_TYPE_NOT_SUBSCRIBED,
    MATCH_REASON_UNSPECIFIED,
)
from hookline.v1.policy_pb2 import DeliveryLimits
from hookline.v1.subscription_pb2 import (
    SUBSCRIPTION_STATE_ACTIVE,
    SUBSCRIPTION_STATE_DISABLED,
    SUBSCRIPTION_STATE_PAUSED,
    SUBSCRIPTION_STATE_REASON_GONE,
    SUBSCRIPTION_STATE_REASON_OPERATOR,
)
from hookline.v1.subscription_service_pb2 import SendTestEventRequest, SendTestEventResponse
from hookline.v1.target_pb2 import HttpTarget
from tests.api.control import ORDERS, Control, controlling, orders
from tests.api.refusals import refusal
from tests.pipeline.rig import Receiver
from tests.waiting import until


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def try_out(
    control: Control,
    event_type: str = "order.created",
    *,
    event: Event | None = None,
    validate_only: bool = False,
) -> SendTestEventResponse:
    request = SendTestEventRequest(
        name=ORDERS,
        event=event or Event(type=event_type, json_data='{"id":1}'),
        validate_only=validate_only,
    )
    return await control.subscriptions.SendTestEvent(request)


# --------------------------------------------------------------------------------- pause and resume


async def test_pausing_holds_deliveries_and_resuming_sends_them(control: Control) -> None:
    async with Receiver() as receiver, Receiver() as other:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        await control.create(orders(http=HttpTarget(url=other.url)), "bystander")
        paused = await control.pause()
        assert (paused.state, paused.state_reason) == (
            SUBSCRIPTION_STATE_PAUSED,
            SUBSCRIPTION_STATE_REASON_OPERATOR,
        )
        assert paused == await control.get() == await control.pause()
        assert (await control.publish()).delivery_count == 2
        await other.wait_for(1)
        assert receiver.ids == []
        resumed = await control.resume()
        assert (resumed.state, resumed.state_reason) == (SUBSCRIPTION_STATE_ACTIVE, 0)
        await receiver.wait_for(1)
        assert await control.resume() == resumed


async def test_a_disabled_subscription_shows_its_reason_and_resumes(control: Control) -> None:
    async def is_disabled() -> bool:
        return (await control.get()).state == SUBSCRIPTION_STATE_DISABLED

    async with Receiver() as receiver:
        receiver.answers = 410
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        await control.publish()
        await until(is_disabled, "the subscription is disabled")
        disabled = await control.get()
        assert disabled.state_reason == SUBSCRIPTION_STATE_REASON_GONE
        assert disabled.state_message
        assert (await control.resume()).state == SUBSCRIPTION_STATE_ACTIVE


async def test_resume_can_discard_the_backlog(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        await control.pause()
        await control.publish()
        moment = Timestamp()
        moment.FromDatetime(datetime.now(UTC))
        await control.resume(discard_before=moment)
        kept = await control.publish()
        await receiver.wait_for(1)
        assert receiver.ids == [kept.name.rpartition("/")[2]]
        (ended,) = [row for row in await control.rig.finished() if row["state"] == "CANCELLED"]
        assert ended["state_reason"] == "OPERATOR"


async def test_discarding_before_the_first_event_discards_nothing(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        await control.pause()
        await control.publish()
        await control.resume(discard_before=Timestamp(seconds=-62_135_596_800))
        await receiver.wait_for(1)


async def test_discard_includes_deliveries_held_in_the_lane(control: Control) -> None:
    async with Receiver() as receiver:
        receiver.gate = asyncio.Event()
        limits = DeliveryLimits(max_in_flight=1)
        made = await control.create(orders(http=HttpTarget(url=receiver.url), limits=limits))
        on_the_wire = await control.publish()
        await receiver.wait_for(1)
        for _ in range(3):
            await control.publish()
        moment = Timestamp()
        moment.FromDatetime(datetime.now(UTC))
        lane = control.rig.lanes.get(UUID(made.subscription.uid))
        assert lane is not None
        before = lane.config
        await control.resume(discard_before=moment)
        await until(lambda: lane.config is not before, "the node has applied the change")
        kept = await control.publish()
        receiver.gate.set()
        await until(lambda: kept.name.rpartition("/")[2] in receiver.ids, "the later one is sent")
        assert set(receiver.ids) == {
            result.name.rpartition("/")[2] for result in (on_the_wire, kept)
        }


# ------------------------------------------------------------------------------------ trying it out


async def test_test_event_is_sent_and_its_delivery_returned(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        await control.create(
            orders(event_types=["*"], http=HttpTarget(url=receiver.url)), "bystander"
        )
        answer = await try_out(control)
        assert answer.matched
        assert answer.mismatch_reason == MATCH_REASON_UNSPECIFIED
        assert answer.attempt.outcome == ATTEMPT_OUTCOME_ACCEPTED
        assert answer.delivery.state == DELIVERY_STATE_SUCCEEDED
        assert (answer.delivery.subscription, answer.delivery.event_type) == (
            ORDERS,
            "order.created",
        )
        assert receiver.ids == [answer.delivery.event.rpartition("/")[2]]


@pytest.mark.parametrize("state", ["PAUSED", "DISABLED"])
async def test_test_event_is_sent_while_the_subscription_is_paused_or_disabled(
    control: Control, state: str
) -> None:
    async with Receiver() as receiver:
        receiver.answers = 500
        made = (await control.create(orders(http=HttpTarget(url=receiver.url)))).subscription
        await control.rig.set_state(UUID(made.uid), state)
        answer = await try_out(control)
        assert answer.attempt.outcome == ATTEMPT_OUTCOME_HTTP_ERROR
        assert answer.attempt.http_status == 500
        assert answer.delivery.state == DELIVERY_STATE_EXHAUSTED
        assert len(receiver.ids) == 1


async def test_a_test_event_that_does_not_match_is_reported_and_sent(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        answer = await try_out(control, "user.created")
        assert answer.HasField("matched")
        assert not answer.matched
        assert answer.mismatch_reason == MATCH_REASON_TYPE_NOT_SUBSCRIBED
        assert answer.attempt.outcome == ATTEMPT_OUTCOME_ACCEPTED
        assert len(receiver.ids) == 1


async def test_validate_only_test_event_is_neither_sent_nor_stored(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url)))
        for event_type, matched in [("order.created", True), ("user.created", False)]:
            answer = await try_out(control, event_type, validate_only=True)
            assert answer.matched is matched
            assert not answer.HasField("delivery")
            assert not answer.HasField("attempt")
        assert receiver.ids == []
        assert await control.rig.database.fetch("SELECT 1 FROM events") == []


async def test_test_event_is_validated_like_a_published_event(control: Control) -> None:
    await control.create()
    refused = await refusal(try_out(control, event=Event(type="hookline.x", json_data="{")))
    assert refused.violations == {
        "event.type": "FIELD_INVALID",
        "event.json_data": "PAYLOAD_INVALID",
    }
