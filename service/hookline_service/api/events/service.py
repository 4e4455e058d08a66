"""EventService: events come in, and are found again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext

from hookline.v1 import event_pb2, event_service_pb2
from hookline_service.api.conversion.names import tenant_and_uuid_in, tenant_id_in
from hookline_service.api.conversion.paging import NEWEST, Pages
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
    """The calls of EventService."""

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
        """Refuse the whole batch for anything wrong with it; answer once it is committed."""
        del context
        # Too many are refused before the work of reading them is done.
        tenant_id = tenant_id_in(request.tenant, [])
        self._publisher.check_capacity(tenant_id, len(request.events), 0)
        tenant_id, events = self._batches.read(request)
        return response_of(tenant_id, await self._publisher.publish(tenant_id, events))

    def StreamPublishEvents(
        self,
        request_iterator: AsyncIterator[event_service_pb2.StreamPublishEventsRequest],
        context: _Context,
    ) -> AsyncIterator[event_service_pb2.StreamPublishEventsResponse]:
        """The same for each message, until the client has sent all."""
        del context
        principal = current_caller().principal
        stream = PublishStream(
            self._publisher, self._batches, self._limits, self._stream_budget, principal
        )
        return stream.responses(request_iterator)

    async def GetEvent(
        self, request: event_service_pb2.GetEventRequest, context: _Context
    ) -> event_service_pb2.GetEventResponse:
        """One event with its data."""
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
        """A page of a tenant's events, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        check_enum(request.view, event_pb2.EventView, "view", violations)
        with_data = request.view == event_pb2.EVENT_VIEW_FULL
        binding = ("ListEvents", tenant_id, "FULL" if with_data else "BASIC")
        page = self._pages.asked(request, binding, violations)
        found = await self._events.page(
            tenant_id,
            before=UUID(bytes=page.cursor) if page.cursor else NEWEST,
            limit=page.size,
            with_data=with_data,
            max_bytes=self._limits.max_page_bytes,
        )
        messages = [message_of(event, with_data=with_data) for event in found.events]
        kept = self._pages.cut(messages)
        response = event_service_pb2.ListEventsResponse(events=kept)
        if found.has_more or len(kept) < len(messages):
            last = found.events[len(kept) - 1]
            response.next_page_token = self._pages.token(last.event_id.bytes, binding)
        return response
