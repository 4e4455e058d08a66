"""EventService: publishes and reads events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc.aio import ServicerContext

from hookline.v1 import event_pb2, event_service_pb2
from hookline_service.api.conversion.names import tenant_and_uuid_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.values import check_enum
from hookline_service.api.events.conversion import message_of
from hookline_service.api.events.publish_batch import BatchReader, response_of
from hookline_service.api.events.publish_stream import PublishStream
from hookline_service.api.middleware.client_streams import StreamBudget
from hookline_service.api.unimplemented import UnbuiltEventRpcs
from hookline_service.domain.caller import current_caller
from hookline_service.domain.errors import Violation, invalid
from hookline_service.domain.ids import EVENT_ID
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.publish import Publisher
from hookline_service.store.events import EventStore

_Context = ServicerContext[Any, Any]


class EventServicer(UnbuiltEventRpcs):
    """Implements EventService."""

    def __init__(
        self, *, publisher: Publisher, events: EventStore, pages: Pages, limits: Limits
    ) -> None:
        self._publisher = publisher
        self._events = events
        self._pages = pages
        self._limits = limits
        self._batches = BatchReader(limits)
        self._stream_budget = StreamBudget(limits.max_client_stream_bytes)

    async def PublishEvents(
        self, request: event_service_pb2.PublishEventsRequest, context: _Context
    ) -> event_service_pb2.PublishEventsResponse:
        """Publish a batch; reject it whole if any event is invalid; return after the commit."""
        del context
        # An overload is rejected before the events are read.
        tenant_id = tenant_id_in(request.tenant, [])
        self._publisher.check_capacity(tenant_id, len(request.events), 0)
        tenant_id, events = self._batches.read(request)
        return response_of(tenant_id, await self._publisher.publish(tenant_id, events))

    def StreamPublishEvents(
        self,
        request_iterator: AsyncIterator[event_service_pb2.StreamPublishEventsRequest],
        context: _Context,
    ) -> AsyncIterator[event_service_pb2.StreamPublishEventsResponse]:
        """Publish each message of the stream as a batch, until the client ends the stream."""
        del context
        principal = current_caller().principal
        stream = PublishStream(
            self._publisher, self._batches, self._limits, self._stream_budget, principal
        )
        return stream.responses(request_iterator)

    async def GetEvent(
        self, request: event_service_pb2.GetEventRequest, context: _Context
    ) -> event_service_pb2.GetEventResponse:
        """Return one event with its data."""
        del context
        violations: list[Violation] = []
        tenant_id, event_id = tenant_and_uuid_in(
            request.name, "events", EVENT_ID, violations, across=True
        )
        if violations:
            raise invalid(violations)
        event = await self._events.get(tenant_id, event_id)
        return event_service_pb2.GetEventResponse(event=message_of(event, with_data=True))

    async def ListEvents(
        self, request: event_service_pb2.ListEventsRequest, context: _Context
    ) -> event_service_pb2.ListEventsResponse:
        """List a tenant's events, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        check_enum(request.view, event_pb2.EventView, "view", violations)
        with_data = request.view == event_pb2.EVENT_VIEW_FULL
        binding = ("ListEvents", tenant_id, "FULL" if with_data else "BASIC")
        page = self._pages.requested(request, binding, violations)
        found = await self._events.page(
            tenant_id,
            before=page.before,
            limit=page.size,
            with_data=with_data,
            max_bytes=self._limits.max_page_bytes,
        )
        messages = [message_of(event, with_data=with_data) for event in found.events]
        kept, token = self._pages.finished(
            messages,
            binding,
            lambda at: found.events[at].event_id.bytes,
            has_more=found.has_more,
        )
        return event_service_pb2.ListEventsResponse(events=kept, next_page_token=token)
