"""DeliveryService: reads, retries and cancels deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext

from hookline.v1 import delivery_pb2, delivery_service_pb2
from hookline_service.api.conversion.names import tenant_and_id_in, tenant_and_uuid_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.values import enum_in
from hookline_service.api.deliveries.conversion import attempt_message, delivery_message
from hookline_service.api.unimplemented import UnbuiltDeliveryRpcs
from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.errors import Reason, Violation, invalid
from hookline_service.domain.ids import DELIVERY_ID, EVENT_ID
from hookline_service.domain.names import WILDCARD
from hookline_service.pipeline.actions.delivery_actions import DeliveryActions
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.store.deliveries import Delivery, DeliveryStore, Selection

_Context = ServicerContext[Any, Any]
_NUMBER_BYTES = 4
_STATES_MAX = 100


class DeliveryServicer(UnbuiltDeliveryRpcs):
    """Implements DeliveryService."""

    def __init__(
        self,
        *,
        deliveries: DeliveryStore,
        delivery_actions: DeliveryActions,
        lanes: Lanes,
        pages: Pages,
    ) -> None:
        self._deliveries = deliveries
        self._lanes = lanes
        self._delivery_actions = delivery_actions
        self._pages = pages

    async def GetDelivery(
        self, request: delivery_service_pb2.GetDeliveryRequest, context: _Context
    ) -> delivery_service_pb2.GetDeliveryResponse:
        """Return one delivery."""
        del context
        tenant_id, delivery_id = _named(request.name, across=True)
        delivery = await self._deliveries.get(tenant_id, delivery_id)
        return delivery_service_pb2.GetDeliveryResponse(delivery=self._message_of(delivery))

    async def ListDeliveries(
        self, request: delivery_service_pb2.ListDeliveriesRequest, context: _Context
    ) -> delivery_service_pb2.ListDeliveriesResponse:
        """List a tenant's deliveries, newest first."""
        del context
        violations: list[Violation] = []
        selection = _selection_in(request, violations)
        binding = (
            "ListDeliveries",
            request.tenant,
            request.subscription,
            request.event,
            *sorted(selection.states),
        )
        page = self._pages.requested(request, binding, violations)
        found = await self._deliveries.page(
            selection,
            before=page.before,
            limit=page.size,
        )
        messages = [self._message_of(delivery) for delivery in found.deliveries]
        kept, token = self._pages.finished(
            messages,
            binding,
            lambda at: found.deliveries[at].delivery_id.bytes,
            has_more=found.has_more,
        )
        return delivery_service_pb2.ListDeliveriesResponse(deliveries=kept, next_page_token=token)

    async def ListAttempts(
        self, request: delivery_service_pb2.ListAttemptsRequest, context: _Context
    ) -> delivery_service_pb2.ListAttemptsResponse:
        """List a delivery's attempts, oldest first."""
        del context
        violations: list[Violation] = []
        tenant_id, delivery_id = tenant_and_uuid_in(
            request.delivery, "deliveries", DELIVERY_ID, violations, field="delivery", across=True
        )
        binding = ("ListAttempts", request.delivery)
        page = self._pages.requested(request, binding, violations)
        found = await self._deliveries.attempts(
            tenant_id, delivery_id, after=int.from_bytes(page.cursor, "big"), limit=page.size
        )
        messages = [attempt_message(attempt) for attempt in found.attempts]
        kept, token = self._pages.finished(
            messages,
            binding,
            lambda at: messages[at].number.to_bytes(_NUMBER_BYTES, "big"),
            has_more=found.has_more,
        )
        return delivery_service_pb2.ListAttemptsResponse(attempts=kept, next_page_token=token)

    async def RetryDelivery(
        self, request: delivery_service_pb2.RetryDeliveryRequest, context: _Context
    ) -> delivery_service_pb2.RetryDeliveryResponse:
        """Retry a delivery and return it."""
        del context
        tenant_id, delivery_id = _named(request.name)
        await self._delivery_actions.retry(tenant_id, delivery_id)
        delivery = await self._deliveries.get(tenant_id, delivery_id)
        return delivery_service_pb2.RetryDeliveryResponse(delivery=self._message_of(delivery))

    async def CancelDelivery(
        self, request: delivery_service_pb2.CancelDeliveryRequest, context: _Context
    ) -> delivery_service_pb2.CancelDeliveryResponse:
        """Cancel a delivery and return it."""
        del context
        tenant_id, delivery_id = _named(request.name)
        await self._delivery_actions.cancel(tenant_id, delivery_id)
        delivery = await self._deliveries.get(tenant_id, delivery_id)
        return delivery_service_pb2.CancelDeliveryResponse(delivery=self._message_of(delivery))

    def _message_of(self, delivery: Delivery) -> delivery_pb2.Delivery:
        """Return the message of a delivery, with the reasons that only this node can report."""
        if delivery.is_due:
            reason = self._lanes.waiting_reason(delivery.subscription_uid, delivery.delivery_id)
            delivery = replace(delivery, state_reason=reason)
        return delivery_message(delivery)


def _named(name: str, *, across: bool = False) -> tuple[str, UUID]:
    violations: list[Violation] = []
    ids = tenant_and_uuid_in(name, "deliveries", DELIVERY_ID, violations, across=across)
    if violations:
        raise invalid(violations)
    return ids


def _selection_in(
    request: delivery_service_pb2.ListDeliveriesRequest, violations: list[Violation]
) -> Selection:
    tenant_id = tenant_id_in(request.tenant, violations, across=True)
    subscription: tuple[str, str] | None = None
    if request.subscription:
        subscription = tenant_and_id_in(
            request.subscription, "subscriptions", violations, field="subscription"
        )
        _check_owner(subscription[0], tenant_id, "subscription", violations)
    event_id: UUID | None = None
    if request.event:
        owner, event_id = tenant_and_uuid_in(
            request.event, "events", EVENT_ID, violations, field="event", across=True
        )
        _check_owner(owner, tenant_id, "event", violations)
        tenant_id = owner if tenant_id == WILDCARD else tenant_id
    return Selection(
        tenant_id=tenant_id,
        subscription=subscription,
        event_id=event_id,
        states=_states_in(request.states, violations),
    )


def _check_owner(owner: str, tenant_id: str, field: str, violations: list[Violation]) -> None:
    if owner and tenant_id not in (owner, WILDCARD, ""):
        violations.append(Violation(field, "must belong to the tenant of the request"))


def _states_in(
    numbers: Sequence[delivery_pb2.DeliveryState.ValueType], violations: list[Violation]
) -> frozenset[DeliveryState]:
    """Return the requested states; all states if none is given."""
    if len(numbers) > _STATES_MAX:
        text = f"has {len(numbers):,} entries; at most {_STATES_MAX} are allowed"
        violations.append(Violation("states", text, Reason.LIMIT_EXCEEDED))
        return frozenset()
    found = {
        _state_in(number, f"states[{index}]", violations) for index, number in enumerate(numbers)
    }
    return frozenset(found or DeliveryState)


def _state_in(
    number: delivery_pb2.DeliveryState.ValueType, field: str, violations: list[Violation]
) -> DeliveryState:
    if number == 0:
        violations.append(Violation(field, "must not be DELIVERY_STATE_UNSPECIFIED"))
    state = enum_in(
        number, delivery_pb2.DeliveryState, "DELIVERY_STATE_", DeliveryState, field, violations
    )
    return state or DeliveryState.PENDING
