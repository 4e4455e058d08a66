"""The fields of an accepted event, and its defaults."""

from dataclasses import fields
from datetime import UTC, datetime
from uuid import UUID

from hookline_service.domain.event import Event, NewEvent, accepted

EVENT_ID, TENANT_UID = UUID(int=1), UUID(int=2)
NOW, THEN = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)


def test_accepted_event_has_every_published_field() -> None:
    new = NewEvent(
        type="order.created",
        data=b"x",
        is_json=False,
        content_type="text/plain",
        source="/shop",
        subject="order/1",
        occur_time=THEN,
        external_id="e-1",
        data_schema="https://example.com/schema",
        idempotency_key="k",
        ordering_key="o",
        attributes={"a": "b"},
    )
    event = accepted(new, EVENT_ID, TENANT_UID, "acme", 3, NOW)

    kept = {field.name for field in fields(NewEvent)} - {"traceparent"}
    for name in kept:
        assert getattr(event, name) == getattr(new, name), name
    assert (event.event_id, event.tenant_uid, event.tenant_id) == (EVENT_ID, TENANT_UID, "acme")
    assert (event.event_type_revision, event.create_time) == (3, NOW)
    more = {"event_id", "tenant_uid", "tenant_id", "event_type_revision", "create_time"}
    more.add("trace_context")  # what becomes of its traceparent
    assert {field.name for field in fields(Event)} == kept | more


def test_source_defaults_to_the_tenant() -> None:
    event = accepted(NewEvent(type="t", data=b"1"), EVENT_ID, TENANT_UID, "acme", 0, NOW)
    assert (event.source, event.content_type) == ("/tenants/acme", "application/json")
