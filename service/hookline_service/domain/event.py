"""Events, which are immutable after they are accepted, and event types, their contracts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

JSON_CONTENT_TYPE = "application/json"
BINARY_CONTENT_TYPE = "application/octet-stream"
RESERVED_TYPE_PREFIX = "hookline."
"""The prefix of the types of system events, which only Hookline publishes."""


class EventTypeState(StrEnum):
    """Whether events of a type are accepted."""

    ACTIVE = "ACTIVE"
    ARCHIVED = "ARCHIVED"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventType:
    """An event type: a named contract of events, global to the deployment."""

    name: str
    """The id, for example `order.created`."""
    description: str = ""
    json_schema: str = ""
    """A JSON Schema (draft 2020-12 by default) that the data must satisfy; empty: any data."""
    proto_message: str = ""
    example_json: str = ""
    state: EventTypeState = EventTypeState.ACTIVE
    revision: int = 1
    """Incremented when the schema changes; stored with each event."""
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""


@dataclass(slots=True, kw_only=True)
class NewEvent:
    """A validated event of a publisher that is not stored yet. Treated as immutable."""

    type: str
    data: bytes
    """The exact bytes that are sent as data."""
    is_json: bool = True
    """True: `data` is a JSON text. False: opaque bytes."""
    content_type: str = JSON_CONTENT_TYPE
    source: str = ""
    """A URI reference; empty: `/tenants/ID`."""
    subject: str = ""
    occur_time: datetime | None = None
    external_id: str = ""
    data_schema: str = ""
    idempotency_key: str = ""
    ordering_key: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    traceparent: str = ""
    """The trace context of its origin (W3C); empty: that of the publishing call."""


@dataclass(slots=True, kw_only=True)
class Event:
    """A stored event. Treated as immutable."""

    event_id: UUID
    tenant_uid: UUID
    tenant_id: str
    type: str
    data: bytes
    is_json: bool
    content_type: str
    source: str
    subject: str
    occur_time: datetime | None
    external_id: str
    data_schema: str
    idempotency_key: str
    ordering_key: str
    attributes: Mapping[str, str]
    event_type_revision: int
    """The revision of its type at acceptance; 0 for an unregistered type."""
    create_time: datetime
    """The database's time at acceptance; the id begins with the same time."""
    trace_context: bytes | None = None
    """The packed trace context of a sampled trace; None if it belongs to none."""


def default_source(tenant_id: str) -> str:
    """Return the default source of an event."""
    return f"/tenants/{tenant_id}"


def accepted(
    new: NewEvent,
    event_id: UUID,
    tenant_uid: UUID,
    tenant_id: str,
    event_type_revision: int,
    create_time: datetime,
    trace_context: bytes | None = None,
) -> Event:
    """Return the stored form of a publisher's event."""
    return Event(
        event_id=event_id,
        tenant_uid=tenant_uid,
        tenant_id=tenant_id,
        type=new.type,
        data=new.data,
        is_json=new.is_json,
        content_type=new.content_type,
        source=new.source or default_source(tenant_id),
        subject=new.subject,
        occur_time=new.occur_time,
        external_id=new.external_id,
        data_schema=new.data_schema,
        idempotency_key=new.idempotency_key,
        ordering_key=new.ordering_key,
        attributes=new.attributes,
        event_type_revision=event_type_revision,
        create_time=create_time,
        trace_context=trace_context,
    )
