"""The body of a request: an event in one of the payload formats, built once per event and format.

Bytes accepted are bytes sent: JSON data is copied into the envelope, never parsed and serialized
again, so that numbers, key order and white space remain the publisher's.

Sources: Standard Webhooks 1.0.0 ("Payload structure"), CloudEvents 1.0.2 JSON event format.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never

from hookline_service.domain.event import JSON_CONTENT_TYPE, Event
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.subscription import PayloadFormat

CORE_MEMBERS = frozenset(
    {
        "specversion", "id", "source", "type", "time", "datacontenttype", "subject", "dataschema",
        "data", "data_base64",
    }
)  # fmt: skip
"""CloudEvents' own names, which no attribute of an event may use (rejected at publish)."""

_PRINTABLE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes that are signed and sent, and their content type."""

    body: bytes
    content_type: bytes


class Message:
    """An event as it is sent: its id on the wire, and its body in each format, built once.

    All deliveries of the event in memory share one message.
    """

    __slots__ = ("_payloads", "event", "webhook_id")

    def __init__(self, event: Event, webhook_id: str) -> None:
        self.event = event
        self.webhook_id = webhook_id
        """The event's id, the same for every delivery and attempt."""
        self._payloads: dict[PayloadFormat, Payload] = {}

    def payload(self, payload_format: PayloadFormat) -> Payload:
        """Return the body in a format; raise ValueError as `build_payload` does."""
        payload = self._payloads.get(payload_format)
        if payload is None:
            payload = self._payloads[payload_format] = build_payload(self.event, payload_format)
        return payload


def build_payload(event: Event, payload_format: PayloadFormat) -> Payload:
    """Build the body of every request with this event in this format.

    Raises ValueError if a RAW event's content type is not valid in a header: publishing should have
    rejected the event.
    """
    match payload_format:
        case PayloadFormat.STANDARD:
            return Payload(_standard(event), JSON_CONTENT_TYPE.encode())
        case PayloadFormat.CLOUDEVENTS:
            return Payload(_cloudevents(event), b"application/cloudevents+json")
        case PayloadFormat.RAW:
            if not _PRINTABLE.fullmatch(event.content_type):
                raise ValueError("an event's content type must be printable ASCII")
            return Payload(event.data, event.content_type.encode())
        case _:
            assert_never(payload_format)


def _standard(event: Event) -> bytes:
    timestamp = format_time(event.occur_time or event.create_time)
    head = f'{{"type":{json.dumps(event.type)},"timestamp":"{timestamp}","data":'
    return head.encode() + _json_data(event) + b"}"


def _cloudevents(event: Event) -> bytes:
    members = {
        "specversion": "1.0",
        "id": event.external_id or format_type_id(EVENT_ID, event.event_id),
        "source": event.source or f"/tenants/{event.tenant_id}",
        "type": event.type,
        "time": format_time(event.occur_time or event.create_time),
        "datacontenttype": event.content_type,
    }
    if event.subject:
        members["subject"] = event.subject
    if event.data_schema:
        members["dataschema"] = event.data_schema
    extensions = {
        name: value for name, value in event.attributes.items() if name not in CORE_MEMBERS
    }
    head = json.dumps({**members, **extensions}, separators=(",", ":"))[:-1]
    member = "data" if event.is_json else "data_base64"
    return f'{head},"{member}":'.encode() + _json_data(event) + b"}"


def _json_data(event: Event) -> bytes:
    return event.data if event.is_json else b'"' + base64.b64encode(event.data) + b'"'


def format_time(moment: datetime) -> str:
    """Format a time by RFC 3339 in UTC, microseconds only if not zero: `2026-11-24T03:00:00Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
