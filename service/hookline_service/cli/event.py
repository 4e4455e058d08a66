"""`hookline event`: where an event is, why, and what happens next, in one answer.

Reads the event, its deliveries with their attempts, and the subscription of each pending one.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from hookline import HooklineClient
from hookline.errors import NotFoundError, PermissionDeniedError
from hookline.v1.attempt_pb2 import Attempt
from hookline.v1.delivery_pb2 import Delivery, DeliveryState, DeliveryStateReason
from hookline.v1.delivery_service_pb2 import ListAttemptsRequest, ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import GetEventRequest
from hookline.v1.subscription_service_pb2 import GetSubscriptionRequest
from hookline_service.cli.failure import CommandError
from hookline_service.cli.server import ask
from hookline_service.cli.wording import (
    duration,
    has_passed,
    plain,
    state_of,
    time_of,
    until,
    wording_of_attempt,
)

_MAX_DELIVERIES = 100
_MAX_ATTEMPTS = 1_000

_FINAL = {
    DeliveryState.DELIVERY_STATE_SUCCEEDED: "nothing: the target accepted it",
    DeliveryState.DELIVERY_STATE_EXHAUSTED: (
        "nothing: all attempts have failed; RetryDelivery starts it again"
    ),
    DeliveryState.DELIVERY_STATE_CANCELLED: (
        "nothing: it was cancelled; RetryDelivery starts it again"
    ),
    DeliveryState.DELIVERY_STATE_EXPIRED: (
        "nothing: it was pending longer than the retention; RetryDelivery starts it again"
    ),
}
_WAITING = {
    DeliveryStateReason.DELIVERY_STATE_REASON_SUBSCRIPTION_PAUSED: (
        "held until ResumeSubscription: its subscription is paused"
    ),
    DeliveryStateReason.DELIVERY_STATE_REASON_SUBSCRIPTION_DISABLED: (
        "held until ResumeSubscription: its subscription is disabled"
    ),
    DeliveryStateReason.DELIVERY_STATE_REASON_CIRCUIT_OPEN: (
        "it waits for its target, which failed several times in a row and is only probed for now"
    ),
    DeliveryStateReason.DELIVERY_STATE_REASON_RATE_LIMITED: (
        "it waits: the subscription's limits, or the target's own, are reached"
    ),
    DeliveryStateReason.DELIVERY_STATE_REASON_BLOCKED_BY_ORDER: (
        "it waits for an earlier delivery of its ordering key to finish"
    ),
}
_NOT_FOUND = (
    "it was never accepted here, was deleted after HOOKLINE_RETENTION_DAYS, or the caller may not"
    " read it"
)
_NAME_IT_WHOLE = "give the full name, as tenants/ID/events/evt_…"


def run(asked: argparse.Namespace) -> int:
    """Read and print."""
    name = asked.name if "/" in asked.name else f"tenants/-/events/{asked.name}"

    async def questions(client: HooklineClient) -> int:
        try:
            event = (await client.events.GetEvent(GetEventRequest(name=name))).event
        except NotFoundError as error:
            raise CommandError(f"{error.message}: {_NOT_FOUND}", code=1) from error
        except PermissionDeniedError as error:
            if "/" in asked.name:
                raise
            raise CommandError(f"{error.message}: {_NAME_IT_WHOLE}", code=1) from error
        async for line in _lines(client, event):
            print(line)
        return 0

    return ask(asked, questions)


async def _lines(client: HooklineClient, event: Event) -> AsyncIterator[str]:
    yield event.name
    yield f"  {event.type}, accepted {time_of(event.create_time)} ({until(event.create_time)})"
    for label, text in (
        ("subject", event.subject),
        ("ordering key", event.ordering_key),
        ("idempotency key", event.idempotency_key),
    ):
        if text:
            yield f"  {label} {plain(text)}"
    listed = await client.deliveries.ListDeliveries(
        ListDeliveriesRequest(
            tenant=event.name.partition("/events/")[0],
            event=event.name,
            page_size=_MAX_DELIVERIES,
        )
    )
    if not listed.deliveries:
        yield "  no deliveries: no subscription matched it when it was accepted"
    for delivery in reversed(listed.deliveries):
        async for line in _delivery_lines(client, delivery):
            yield line
    if listed.next_page_token:
        yield f"\nMore than {_MAX_DELIVERIES} deliveries: ListDeliveries shows the others."


async def _delivery_lines(client: HooklineClient, delivery: Delivery) -> AsyncIterator[str]:
    yield f"\n{delivery.name}"
    yield f"  for {delivery.subscription}: {state_of(delivery)}"
    attempts = await client.deliveries.ListAttempts(
        ListAttemptsRequest(delivery=delivery.name, page_size=_MAX_ATTEMPTS)
    )
    for attempt in attempts.attempts:
        yield f"    {_attempt(attempt)}"
    yield f"  next: {await _next(client, delivery)}"


def _attempt(attempt: Attempt) -> str:
    took = duration(attempt.latency.ToTimedelta().total_seconds())
    excerpt = " ".join(attempt.response_excerpt.split())
    body = f', body "{plain(excerpt[:80])}"' if excerpt else ""
    start = time_of(attempt.start_time)
    return f"{attempt.number:>3}  {start}  {wording_of_attempt(attempt)} after {took}{body}"


async def _next(client: HooklineClient, delivery: Delivery) -> str:
    if delivery.state_reason == DeliveryStateReason.DELIVERY_STATE_REASON_SUBSCRIPTION_DELETED:
        return "nothing: its subscription was deleted"
    if delivery.state in _FINAL:
        return _FINAL[delivery.state]
    number, due = delivery.attempt_count + 1, delivery.next_attempt_time
    waits = _WAITING.get(delivery.state_reason)
    if waits is None:
        if has_passed(due):  # the database does not say which; its node does
            since = f"attempt {number} has been due since {time_of(due)}"
            return f"{since}: it is on the wire, or waits for its target (hookline status)"
        return f"attempt {number} is due at {time_of(due)}, {until(due)}"
    try:
        read = await client.subscriptions.GetSubscription(
            GetSubscriptionRequest(name=delivery.subscription)
        )
    except NotFoundError:
        return "it is cancelled within seconds: its subscription was deleted"
    message = read.subscription.state_message
    return f"{waits} ({message})" if message else waits
