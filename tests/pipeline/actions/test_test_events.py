"""Trials: one event to one subscription, now, and nothing else is moved by it."""

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.ids import format_type_id
from hookline_service.domain.subscription import Subscription
from hookline_service.pipeline.actions import test_events
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.operations import OperationStore
from hookline_service.store.subscriptions import Subscriptions
from tests.pipeline.rig import Receiver, Rig, order_created
from tests.telemetry.spans import CALLER_TRACE, SAMPLED, Spans


@pytest.fixture
async def subscription(rig: Rig, receiver: Receiver) -> Subscription:
    """A subscription of acme's, as the API has read it."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, subscription_id="orders")
    return await _read(rig)


async def _read(rig: Rig) -> Subscription:
    return await Subscriptions(rig.database, rig.secrets).get("acme", "orders")


async def test_test_event_is_sent_and_stored(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    delivery_id, attempt = await rig.test_events.send(
        subscription, order_created(7, subject="s", attributes={"a": "b"})
    )

    assert (attempt.number, attempt.record.kind) == (1, AttemptOutcome.ACCEPTED)
    assert attempt.record.http_status == 200
    headers, body = receiver.requests[0]
    assert b'"data":{"id":7}' in body
    assert headers["webhook-signature"].startswith("v1,")
    delivery = await DeliveryStore(rig.database).get("acme", delivery_id)
    assert headers["webhook-id"] == format_type_id("evt", delivery.event_id)
    assert (delivery.state, delivery.attempt_count) == ("SUCCEEDED", 1)
    assert delivery.last_attempt == attempt
    page = await DeliveryStore(rig.database).attempts("acme", delivery_id, after=0, limit=10)
    assert page.attempts == [attempt]
    (event,) = await rig.database.fetch("SELECT * FROM events")
    assert (event["subject"], event["attributes"]) == ("s", {"a": "b"})
    assert await rig.pending() == []
    assert list(rig.lanes.all()) == []


async def test_rejected_test_event_stores_the_reason_and_is_final(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    receiver.answers, receiver.body = 500, b"oh \x00 no"
    delivery_id, attempt = await rig.test_events.send(subscription, order_created())

    assert (attempt.record.kind, attempt.record.http_status) == (AttemptOutcome.HTTP_ERROR, 500)
    assert attempt.record.excerpt == b"oh \x00 no"
    delivery = await DeliveryStore(rig.database).get("acme", delivery_id)
    assert delivery.state == "EXHAUSTED"
    assert delivery.last_attempt == attempt
    assert await rig.pending() == []


@pytest.mark.parametrize("state", ["PAUSED", "DISABLED"])
async def test_test_event_is_sent_to_a_held_subscription(
    rig: Rig, receiver: Receiver, subscription: Subscription, state: str
) -> None:
    await rig.set_state(subscription.uid, state)
    _, attempt = await rig.test_events.send(await _read(rig), order_created())
    assert attempt.record.kind is AttemptOutcome.ACCEPTED
    assert len(receiver.ids) == 1
    assert (await _read(rig)).state == state


async def test_410_for_a_test_event_does_not_disable_the_subscription(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    receiver.answers = 410
    await rig.test_events.send(subscription, order_created())
    assert (await _read(rig)).state == "ACTIVE"


async def test_test_event_reaches_no_other_subscription(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    (tenant,) = await rig.database.fetch("SELECT tenant_uid FROM tenants")
    await rig.subscription(tenant["tenant_uid"], receiver.url)
    await rig.test_events.send(subscription, order_created())
    assert len(receiver.ids) == 1
    assert len(await rig.finished()) == 1


async def test_test_event_is_validated_like_a_published_event(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    rig.event_types.event_types = [
        EventType(name="order.created", json_schema='{"type": "array"}'),
        EventType(name="old", state=EventTypeState.ARCHIVED),
    ]
    await rig.catalog.reload()
    with pytest.raises(InvalidArgumentError) as refusal:
        await rig.test_events.send(subscription, order_created())
    assert [violation.field for violation in refusal.value.violations] == ["event.json_data"]
    with pytest.raises(FailedPreconditionError):
        await rig.test_events.send(subscription, order_created(type="old"))
    assert receiver.ids == []


async def test_test_event_for_a_deleted_subscription_is_not_found(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    await Subscriptions(rig.database, rig.secrets).delete("acme", "orders")
    with pytest.raises(NotFoundError) as refusal:
        await rig.test_events.send(subscription, order_created())
    assert refusal.value.reason is Reason.SUBSCRIPTION_NOT_FOUND
    assert receiver.ids == []


async def test_internal_error_stores_no_attempt(rig: Rig, subscription: Subscription) -> None:
    await rig.transport.aclose()
    with pytest.raises(UnavailableError):
        await rig.test_events.send(subscription, order_created())
    assert await rig.finished() == []
    assert await rig.database.fetch("SELECT FROM events") == []


async def test_secret_that_cannot_be_opened_is_an_internal_error(
    rig: Rig, receiver: Receiver, subscription: Subscription
) -> None:
    await rig.database.fetch("UPDATE signing_keys SET sealed_secret = 'garbage'")
    with pytest.raises(UnavailableError):
        await rig.test_events.send(subscription, order_created())
    assert receiver.ids == []


@pytest.mark.parametrize("propagates", [True, False])
async def test_test_event_belongs_to_the_trace_of_its_call(
    rig: Rig, receiver: Receiver, *, propagates: bool
) -> None:
    spans = Spans()
    traced = test_events.TestEvents(
        OperationStore(rig.database), rig.configs, rig.catalog, rig.time, rig.random,
        spans.tracer,
    )  # fmt: skip
    await rig.subscription(
        await rig.tenant(), receiver.url, subscription_id="orders", propagate_trace=propagates
    )
    subscription = await _read(rig)
    spans.tracer.call_began("hookline.v1.SubscriptionService/SendTestEvent", SAMPLED)
    _, attempt = await traced.send(subscription, order_created())
    spans.tracer.call_ended("OK")

    assert attempt.trace_id == CALLER_TRACE.to_bytes(16, "big")
    (row,) = await rig.attempts()
    assert row["trace_id"] == attempt.trace_id
    assert {span.name for span in spans.ended()} >= {"deliver", "POST"}
    headers, _ = receiver.requests[0]
    assert ("traceparent" in headers) is propagates
