"""Payloads: the bytes of an event in each format."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from hookline_service.domain.event import Event
from hookline_service.domain.ids import format_type_id
from hookline_service.domain.subscription import PayloadFormat
from hookline_service.targets.payload import build_payload, format_time

# Numbers, order, spaces and escapes that a parser would not give back as they came.
ODD_JSON = b'{ "b":1.0,\n"a":12345678901234567890123, "a":1e2,"\\u0041":"\\u00e9\xc3\xa9","z":[ ] }'

EVENT = Event(
    event_id=UUID("01932f00-0000-7000-8000-000000000001"),
    tenant_uid=UUID(int=1),
    tenant_id="acme",
    type="order.created",
    data=ODD_JSON,
    is_json=True,
    content_type="application/json",
    source="/tenants/acme",
    subject="",
    occur_time=None,
    external_id="",
    data_schema="",
    idempotency_key="key",
    ordering_key="",
    attributes={},
    event_type_revision=1,
    create_time=datetime(2026, 11, 24, 3, 0, 0, 123456, tzinfo=UTC),
)
BINARY = dataclasses.replace(
    EVENT, data=b"\x00\xff\r\n", is_json=False, content_type="application/octet-stream"
)
OCCURRED = datetime(2026, 11, 23, 22, 0, 0, tzinfo=timezone(timedelta(hours=-5)))


def test_standard_embeds_the_data_unchanged() -> None:
    payload = build_payload(EVENT, PayloadFormat.STANDARD)
    assert payload.content_type == b"application/json"
    assert payload.body == (
        b'{"type":"order.created","timestamp":"2026-11-24T03:00:00.123456Z","data":'
        + ODD_JSON
        + b"}"
    )


def test_standard_uses_the_occur_time_if_it_is_set() -> None:
    event = dataclasses.replace(EVENT, occur_time=OCCURRED)
    body = build_payload(event, PayloadFormat.STANDARD).body
    assert json.loads(body)["timestamp"] == "2026-11-24T03:00:00Z"


def test_standard_encodes_binary_data_as_base64() -> None:
    payload = build_payload(BINARY, PayloadFormat.STANDARD)
    assert payload.content_type == b"application/json"
    assert base64.b64decode(json.loads(payload.body)["data"]) == b"\x00\xff\r\n"


@pytest.mark.parametrize("event", [EVENT, BINARY], ids=["json", "binary"])
def test_raw_is_the_data_and_its_content_type(event: Event) -> None:
    payload = build_payload(event, PayloadFormat.RAW)
    assert payload.body == event.data
    assert payload.content_type == event.content_type.encode()


@pytest.mark.parametrize("content_type", ["text/plain\r\nx: y", "text/\x00", "text/é", ""])
def test_raw_rejects_a_content_type_that_would_forge_a_header(content_type: str) -> None:
    event = dataclasses.replace(BINARY, content_type=content_type)
    with pytest.raises(ValueError, match="printable ASCII"):
        build_payload(event, PayloadFormat.RAW)


def test_cloudevents_of_an_event_without_optional_fields() -> None:
    payload = build_payload(EVENT, PayloadFormat.CLOUDEVENTS)
    assert payload.content_type == b"application/cloudevents+json"
    assert payload.body.endswith(b',"data":' + ODD_JSON + b"}")
    envelope = json.loads(payload.body)
    del envelope["data"]
    assert envelope == {
        "specversion": "1.0",
        "id": format_type_id("evt", EVENT.event_id),
        "source": "/tenants/acme",
        "type": "order.created",
        "time": "2026-11-24T03:00:00.123456Z",
        "datacontenttype": "application/json",
    }


def test_cloudevents_of_an_event_with_all_fields() -> None:
    event = dataclasses.replace(
        BINARY,
        external_id="e-1",
        source="https://shop.example/orders",
        subject='order "1"',
        data_schema="https://shop.example/schema",
        occur_time=OCCURRED,
        attributes={"region": "eu\u0000", "id": "forged", "data": "forged"},
    )
    assert json.loads(build_payload(event, PayloadFormat.CLOUDEVENTS).body) == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "https://shop.example/orders",
        "type": "order.created",
        "time": "2026-11-24T03:00:00Z",
        "datacontenttype": "application/octet-stream",
        "subject": 'order "1"',
        "dataschema": "https://shop.example/schema",
        "region": "eu\u0000",
        "data_base64": base64.b64encode(b"\x00\xff\r\n").decode(),
    }


@pytest.mark.parametrize(
    "moment, text",
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC), "2026-01-02T03:04:05.000600Z"),
        (OCCURRED, "2026-11-24T03:00:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(moment: datetime, text: str) -> None:
    assert format_time(moment) == text
