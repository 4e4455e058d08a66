"""Test events: one event to one subscription, sent at once, with the attempt as the result.

A test event bypasses the lane: it is sent while the subscription is paused or disabled, does not
queue, and changes neither the circuit breaker nor the concurrency limit nor the state.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple
from uuid import UUID

from hookline_service.domain.attempt import Attempt, Verdict
from hookline_service.domain.delivery import DeliveryState, Trigger, advance
from hookline_service.domain.errors import NotFoundError, Reason, UnavailableError
from hookline_service.domain.event import Event, NewEvent, accepted
from hookline_service.domain.ids import EVENT_ID, delivery_id_of, format_type_id, make_uuid7
from hookline_service.domain.instants import from_unix_ms, from_unix_us
from hookline_service.domain.names import subscription_name
from hookline_service.domain.subscription import Subscription
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.store.operations import OperationStore
from hookline_service.store.routes import RouteRow
from hookline_service.targets.payload import Message
from hookline_service.telemetry.attempts import AttemptTrace
from hookline_service.telemetry.tracing import Tracer


class _TestJob(NamedTuple):
    """A `SendJob` outside of any lane: no lease restricts it."""

    message: Message
    start_us: int
    traceparent: bytes | None

    def may_send(self) -> bool:
        """Return True: a test event may be sent by any node."""
        return True


class TestEvents:
    """Sends test events."""

    def __init__(
        self,
        store: OperationStore,
        configs: LaneConfigs,
        catalog: EventTypeCatalog,
        time: DatabaseTime,
        random: Random,
        tracer: Tracer | None = None,
    ) -> None:
        self._store = store
        self._configs = configs
        self._catalog = catalog
        self._time = time
        self._random = random
        self._tracer = tracer or Tracer()

    async def send(self, subscription: Subscription, event: NewEvent) -> tuple[UUID, Attempt]:
        """Send an event to one subscription and store the attempt; return delivery id and attempt.

        Raises the errors of publishing for the event's type and data, and `UnavailableError` if
        nothing was sent because of an internal error.
        """
        tenant_id = subscription.tenant_id
        (revision,) = await self._catalog.check(tenant_id, [event], "event")
        prepared = await self._configs.prepare(subscription.uid)
        name = subscription_name(subscription.tenant_id, subscription.subscription_id)
        if prepared is None:
            raise NotFoundError(
                f"there is no subscription {name}",
                Reason.SUBSCRIPTION_NOT_FOUND,
                metadata={"subscription": name},
            )
        route, sender = prepared
        stored = self._event_of(route, event, revision)
        start_us = self._time.unix_us()
        delivery_id = delivery_id_of(stored.event_id, 0, route.bucket)
        message = Message(stored, format_type_id(EVENT_ID, stored.event_id))
        trace = self._trace(message, delivery_id, name)
        traceparent = trace.traceparent if trace and subscription.propagate_trace else None
        outcome = await sender.send(_TestJob(message, start_us, traceparent))
        verdict, record = outcome.verdict, outcome.record
        if trace is not None:
            trace.answered(record)
            trace.recorded(is_recorded=verdict is not Verdict.INTERNAL_ERROR)
        if verdict is Verdict.INTERNAL_ERROR:
            raise UnavailableError(
                f"nothing was sent to {name}: {record.error}", Reason.INTERNAL, retry_after_s=1.0
            )
        is_accepted = verdict is Verdict.ACCEPTED
        trigger = Trigger.ACCEPTED if is_accepted else Trigger.FAILED_LAST
        state = advance(DeliveryState.PENDING, trigger)
        await self._store.store_test_event(
            stored, delivery_id, subscription, record, from_unix_us(start_us), state
        )
        return delivery_id, Attempt(1, start_us, record, None if trace is None else trace.trace_id)

    def _trace(self, message: Message, delivery_id: UUID, name: str) -> AttemptTrace | None:
        """Start the trace of the attempt, if the call is traced."""
        context = message.event.trace_context
        if context is None:
            return None
        return self._tracer.attempt_began(
            context,
            number=1,
            event=message.webhook_id,
            delivery_id=delivery_id,
            subscription=name,
        )

    def _event_of(self, route: RouteRow, event: NewEvent, revision: int) -> Event:
        now_ms = self._time.unix_ms()
        event_id = make_uuid7(now_ms, self._random.getrandbits(74))
        tenant_id = route.subscription.tenant_id
        return accepted(
            event,
            event_id,
            route.tenant_uid,
            tenant_id,
            revision,
            from_unix_ms(now_ms),
            self._tracer.current_context(),
        )
