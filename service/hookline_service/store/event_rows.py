"""An event as a row of `events`, and a row as an event.

A field that an event does not have is NULL, and so is the usual content type: that saves 17 bytes
in the table, and as many in the write-ahead log, for almost every event.
"""

from __future__ import annotations

from uuid import UUID

import asyncpg

from hookline_service.domain.event import BINARY_CONTENT_TYPE, JSON_CONTENT_TYPE, Event, NewEvent
from hookline_service.domain.ids import unix_ms_of
from hookline_service.domain.instants import from_unix_ms

EventRow = tuple[object, ...]


def row_of(
    tenant_uid: UUID,
    event_id: UUID,
    event: NewEvent,
    revision: int,
    trace_context: bytes | None = None,
) -> EventRow:
    """Return the columns of an event in the order of the statement `publish`."""
    return (
        tenant_uid,
        event_id,
        event.occur_time,
        revision,
        event.is_json,
        event.type,
        event.source,
        stored_content_type(event),
        event.subject or None,
        event.external_id or None,
        event.data_schema or None,
        event.idempotency_key or None,
        event.ordering_key or None,
        event.attributes or None,
        event.data,
        trace_context,
    )


def stored_content_type(event: NewEvent | Event) -> str | None:
    """Return the content type as stored: None for the usual one."""
    usual = JSON_CONTENT_TYPE if event.is_json else BINARY_CONTENT_TYPE
    return None if event.content_type == usual else event.content_type


def event_of(row: asyncpg.Record) -> Event:
    """Return the event in a row of `events` that has its tenant's id."""
    is_json = row["is_json"]
    usual = JSON_CONTENT_TYPE if is_json else BINARY_CONTENT_TYPE
    return Event(
        event_id=row["event_id"],
        tenant_uid=row["tenant_uid"],
        tenant_id=row["tenant_id"],
        type=row["type"],
        data=row["data"],
        is_json=is_json,
        content_type=row["content_type"] or usual,
        source=row["source"] or f"/tenants/{row['tenant_id']}",
        subject=row["subject"] or "",
        occur_time=row["occur_time"],
        external_id=row["external_id"] or "",
        data_schema=row["data_schema"] or "",
        idempotency_key=row["idempotency_key"] or "",
        ordering_key=row["ordering_key"] or "",
        attributes=row["attributes"] or {},
        event_type_revision=row["event_type_revision"],
        create_time=from_unix_ms(unix_ms_of(row["event_id"])),
        trace_context=row["trace_context"],
    )
