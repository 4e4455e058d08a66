"""A trial: one event to one subscription, now, with the answer as the result.

Apart from the lanes on purpose: it works while the subscription is paused or disabled, waits for
nobody, and turns nothing: neither circuit nor window nor state learn from it.
"""

from __future__ import annotations

from random import Random
from uuid import UUID

from hookline_service.domain.attempt import Attempt, AttemptOutcome
from hookline_service.domain.delivery import DeliveryState, Trigger, advance
from hookline_service.domain.errors import NotFoundError, Reason, UnavailableError
from hookline_service.domain.event import Event, NewEvent, accepted
from hookline_service.domain.ids import EVENT_ID, delivery_id_of, format_type_id, make_uuid7
from hookline_service.domain.instants import from_unix_ms, from_unix_us
from hookline_service.domain.names import subscription_name
from hookline_service.domain.subscription import Subscription
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.deliver import TRACEPARENT
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.store.operations import OperationStore
from hookline_service.store.routes import RouteRow
from hookline_service.targets.http.payload import build_payload
from hookline_service.targets.http.sender import WebhookSender
from hookline_service.telemetry.attempts import AttemptTrace
from hookline_service.telemetry.tracing import Tracer


class TestEvents:
    """Sends test events."""

    def __init__(
        self,
        store: OperationStore,
        configs: LaneConfigs,
        catalog: EventTypeCatalog,
        sender: WebhookSender,
        time: DatabaseTime,
        random: Random,
        tracer: Tracer | None = None,
    ) -> None:
        self._store = store
        self._configs = configs
        self._catalog = catalog
        self._sender = sender
        self._time = time
        self._random = random
        self._tracer = tracer or Tracer()

    async def send(self, subscription: Subscription, event: NewEvent) -> tuple[UUID, Attempt]:
        """Send an event to a subscription alone and keep what came of it; delivery id and attempt.

        Raises what publishing raises for the event's type and data, and `UnavailableError` where
        the fault was ours and nothing was sent.
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
        route, target = prepared
        stored = self._event_of(route, event, revision)
        start_us = self._time.unix_us()
        delivery_id = delivery_id_of(stored.event_id, 0, route.bucket)
        webhook_id = format_type_id(EVENT_ID, stored.event_id)
        trace, headers = self._trace(stored, webhook_id, delivery_id, name, subscription)
        outcome = await self._sender.send(
            target,
            webhook_id,
            start_us // 1_000_000,
            build_payload(stored, subscription.payload_format),
            lambda: True,
            headers,
        )
        if trace is not None:
            trace.answered(outcome)
            trace.recorded(is_recorded=outcome.kind is not AttemptOutcome.INTERNAL_ERROR)
        if outcome.kind is AttemptOutcome.INTERNAL_ERROR:
            raise UnavailableError(
                f"nothing was sent to {name}: {outcome.error}", Reason.INTERNAL, retry_after_s=1.0
            )
        is_accepted = outcome.kind is AttemptOutcome.ACCEPTED
        trigger = Trigger.ACCEPTED if is_accepted else Trigger.FAILED_LAST
        state = advance(DeliveryState.PENDING, trigger)
        await self._store.store_trial(
            stored, delivery_id, subscription, outcome, from_unix_us(start_us), state
        )
        return delivery_id, Attempt(1, start_us, outcome, None if trace is None else trace.trace_id)

    def _trace(
        self,
        event: Event,
        webhook_id: str,
        delivery_id: UUID,
        name: str,
        subscription: Subscription,
    ) -> tuple[AttemptTrace | None, list[tuple[bytes, bytes]] | None]:
        """The trial's trace, if its call is traced, and the headers that carry it on."""
        if event.trace_context is None:
            return None, None
        trace = self._tracer.attempt_began(
            event.trace_context,
            number=1,
            event=webhook_id,
            delivery_id=delivery_id,
            subscription=name,
        )
        if trace is None or not subscription.propagate_trace:
            return trace, None
        return trace, [(TRACEPARENT, trace.traceparent)]

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
