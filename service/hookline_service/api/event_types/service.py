"""EventTypeService: manages event types."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from grpc.aio import ServicerContext

from hookline.v1 import event_type_pb2, event_type_service_pb2
from hookline_service.api.conversion.names import event_type_in
from hookline_service.api.conversion.paging import Pages, time_cursor
from hookline_service.api.conversion.text import text_in
from hookline_service.api.conversion.update_mask import etag_in, leaves_in
from hookline_service.api.conversion.values import enum_of, timestamp_of
from hookline_service.api.event_types.schema import check_schema
from hookline_service.api.middleware.errors import not_implemented
from hookline_service.api.unimplemented import UnbuiltEventTypeRpcs
from hookline_service.domain.errors import Reason, Violation, invalid, over_limit
from hookline_service.domain.event import RESERVED_TYPE_PREFIX, EventType
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_event_type, event_type_name
from hookline_service.pipeline.coordination.changes import Changes
from hookline_service.schema.checker import SchemaChecker
from hookline_service.store.event_types import EventTypes

_Context = ServicerContext[Any, Any]
_LEAVES = ("description", "json_schema", "proto_message", "example_json")
_DESCRIPTION_LENGTH_MAX = 4_096
_EXAMPLE_BYTES_MAX = 64 * 1_024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class EventTypeServicer(UnbuiltEventTypeRpcs):
    """Implements EventTypeService."""

    def __init__(
        self,
        *,
        event_types: EventTypes,
        schemas: SchemaChecker,
        changes: Changes,
        pages: Pages,
        limits: Limits,
    ) -> None:
        self._event_types = event_types
        self._schemas = schemas
        self._changes = changes
        self._pages = pages
        self._limits = limits

    async def CreateEventType(
        self, request: event_type_service_pb2.CreateEventTypeRequest, context: _Context
    ) -> event_type_service_pb2.CreateEventTypeResponse:
        """Create an event type."""
        del context
        violations: list[Violation] = []
        _check_new_name(request.event_type_id, violations)
        leaves = frozenset(_LEAVES)
        self._check_fields(request.event_type, leaves, violations)
        draft = _merged(EventType(name=request.event_type_id), request.event_type, leaves)
        if violations:
            raise invalid(violations)
        await self._check_schema(draft)
        _refuse_unimplemented(request.event_type, leaves)
        event_type = await self._event_types.create(draft)
        await self._changes.event_types_changed()
        return event_type_service_pb2.CreateEventTypeResponse(event_type=_message_of(event_type))

    async def GetEventType(
        self, request: event_type_service_pb2.GetEventTypeRequest, context: _Context
    ) -> event_type_service_pb2.GetEventTypeResponse:
        """Return one event type."""
        del context
        event_type = await self._event_types.get(_named(request.name))
        return event_type_service_pb2.GetEventTypeResponse(event_type=_message_of(event_type))

    async def ListEventTypes(
        self, request: event_type_service_pb2.ListEventTypesRequest, context: _Context
    ) -> event_type_service_pb2.ListEventTypesResponse:
        """List event types, newest first."""
        del context
        violations: list[Violation] = []
        binding = ("ListEventTypes",)
        page = self._pages.requested(request, binding, violations)
        found = await self._event_types.list_page(
            before=page.before_time_and_key, limit=page.size + 1
        )
        messages = [_message_of(event_type) for event_type in found[: page.size]]
        kept, token = self._pages.finished(
            messages,
            binding,
            lambda at: _cursor_of(found[at]),
            has_more=len(found) > page.size,
        )
        return event_type_service_pb2.ListEventTypesResponse(
            event_types=kept, next_page_token=token
        )

    async def UpdateEventType(
        self, request: event_type_service_pb2.UpdateEventTypeRequest, context: _Context
    ) -> event_type_service_pb2.UpdateEventTypeResponse:
        """Change an event type; a changed schema gets a new revision."""
        del context
        violations: list[Violation] = []
        new = request.event_type
        name = event_type_in(new.name, violations, field="event_type.name")
        etag = etag_in(request.etag, new.etag, "event_type.etag", violations)
        leaves = leaves_in(request.update_mask.paths, new, _LEAVES, violations)
        self._check_fields(new, leaves, violations)
        if violations:
            raise invalid(violations)
        _refuse_unimplemented(new, leaves)

        async def check(seen: EventType, wanted: EventType) -> None:
            if (wanted.json_schema, wanted.example_json) != (seen.json_schema, seen.example_json):
                await self._check_schema(wanted)

        event_type = await self._event_types.change(
            name, lambda seen: _merged(seen, new, leaves), etag=etag, check=check
        )
        await self._changes.event_types_changed()
        return event_type_service_pb2.UpdateEventTypeResponse(event_type=_message_of(event_type))

    async def ArchiveEventType(
        self, request: event_type_service_pb2.ArchiveEventTypeRequest, context: _Context
    ) -> event_type_service_pb2.ArchiveEventTypeResponse:
        """Archive an event type; this cannot be undone."""
        del context
        event_type = await self._event_types.archive(_named(request.name), etag=request.etag)
        await self._changes.event_types_changed()
        return event_type_service_pb2.ArchiveEventTypeResponse(event_type=_message_of(event_type))

    async def _check_schema(self, event_type: EventType) -> None:
        """Validate schema and example; called after the other fields are valid."""
        violations: list[Violation] = []
        await check_schema(
            event_type.json_schema, event_type.example_json, self._schemas, violations
        )
        if violations:
            raise invalid(violations)

    def _check_fields(
        self,
        message: event_type_pb2.EventType,
        leaves: frozenset[str],
        violations: list[Violation],
    ) -> None:
        """Check the changed fields individually."""
        if "description" in leaves:
            text_in(
                message.description, _DESCRIPTION_LENGTH_MAX, "event_type.description", violations
            )
        size, limit = len(message.json_schema.encode()), self._limits.max_schema_bytes
        if "json_schema" in leaves and size > limit:
            setting = "HOOKLINE_MAX_SCHEMA_BYTES"
            violations.append(over_limit("event_type.json_schema", size, "bytes", setting, limit))
        size = len(message.example_json.encode())
        if "example_json" in leaves and size > _EXAMPLE_BYTES_MAX:
            violations.append(
                Violation(
                    "event_type.example_json",
                    f"has {size:,} bytes; at most {_EXAMPLE_BYTES_MAX:,} are allowed",
                    Reason.LIMIT_EXCEEDED,
                )
            )


def _check_new_name(event_type_id: str, violations: list[Violation]) -> None:
    field = "event_type_id"
    if not event_type_id:
        violations.append(Violation(field, "is required", Reason.FIELD_REQUIRED))
    elif problem := check_event_type(event_type_id):
        violations.append(Violation(field, problem))
    elif event_type_id.startswith(RESERVED_TYPE_PREFIX):
        violations.append(
            Violation(
                field,
                f"must not begin with '{RESERVED_TYPE_PREFIX}': it is reserved for Hookline",
            )
        )


def _refuse_unimplemented(message: event_type_pb2.EventType, leaves: frozenset[str]) -> None:
    if message.proto_message and "proto_message" in leaves:
        raise not_implemented("proto_message", field="event_type.proto_message")


def _merged(
    seen: EventType, message: event_type_pb2.EventType, leaves: frozenset[str]
) -> EventType:
    return replace(
        seen,
        description=message.description if "description" in leaves else seen.description,
        json_schema=message.json_schema if "json_schema" in leaves else seen.json_schema,
        example_json=message.example_json if "example_json" in leaves else seen.example_json,
    )


def _named(name: str) -> str:
    violations: list[Violation] = []
    event_type = event_type_in(name, violations)
    if violations:
        raise invalid(violations)
    return event_type


def _cursor_of(event_type: EventType) -> bytes:
    return time_cursor(event_type.create_time or _EPOCH, event_type.name)


def _message_of(event_type: EventType) -> event_type_pb2.EventType:
    created, updated = event_type.create_time, event_type.update_time
    message = event_type_pb2.EventType(
        name=event_type_name(event_type.name),
        description=event_type.description,
        example_json=event_type.example_json,
        state=enum_of(event_type_pb2.EventTypeState, "EVENT_TYPE_STATE_", event_type.state),
        revision=event_type.revision,
        create_time=timestamp_of(created) if created else None,
        update_time=timestamp_of(updated) if updated else None,
        etag=event_type.etag,
    )
    if event_type.json_schema:
        message.json_schema = event_type.json_schema
    elif event_type.proto_message:
        message.proto_message = event_type.proto_message
    return message
