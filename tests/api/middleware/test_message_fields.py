"""A message is decoded only if it has few enough fields."""

from __future__ import annotations

from typing import Any

import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline_service.api.middleware.message_fields import has_more_fields
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import MAX_ATTRIBUTES
from tests.api.conftest import serving
from tests.api.refusals import refusal

MOST = Limits().max_message_fields
DESCRIPTOR = PublishEventsRequest.DESCRIPTOR
EMPTY_EVENT = PublishEventsRequest(events=[Event()]).SerializeToString()


def batch(events: int) -> bytes:
    event = Event(type="order.created", json_data="{}")
    return PublishEventsRequest(tenant="tenants/acme", events=[event] * events).SerializeToString()


def event_with(attributes: int) -> bytes:
    """An event whose map has the same entry again and again."""
    entries = b"\x52\x00" * attributes
    return b"\x12" + bytes((len(entries) & 0x7F | 0x80, len(entries) >> 7)) + entries


@pytest.mark.parametrize(
    "data, most, expected",
    [
        pytest.param(EMPTY_EVENT * 100, 100, False, id="as many as may be"),
        pytest.param(EMPTY_EVENT * 101, 100, True, id="one more"),
        pytest.param(event_with(100), 101, False, id="of a part, as many as may be"),
        pytest.param(event_with(100), 100, True, id="of a part, one more"),
        pytest.param(batch(33), 100, False, id="events"),
        pytest.param(batch(34), 100, True, id="more events"),
        pytest.param(b"\x0a\x05hello\x12\xff", 2, False, id="ends within a length"),
        pytest.param(b"\x3f" * 300, 10, False, id="no wire type"),
        pytest.param(EMPTY_EVENT * 3_000_000, MOST, True, id="six megabytes of empty events"),
    ],
)
def test_fields_are_counted(data: bytes, most: int, expected: bool) -> None:  # noqa: FBT001
    assert has_more_fields(data, DESCRIPTOR, most) is expected


def test_the_largest_batch_that_is_allowed_passes() -> None:
    limits = Limits()
    attributes = {f"name{number}": "value" for number in range(MAX_ATTRIBUTES)}
    event = Event(
        type="order.created",
        source="/shop",
        subject="order/1",
        external_id="1",
        data_schema="https://example.org/order",
        idempotency_key="key",
        ordering_key="key",
        attributes=attributes,
        content_type="application/json",
        json_data="{}",
    )
    event.occur_time.GetCurrentTime()
    request = PublishEventsRequest(tenant="tenants/acme", events=[event] * limits.max_batch_events)
    assert not has_more_fields(request.SerializeToString(), DESCRIPTOR, MOST)


async def test_a_message_of_too_many_fields_is_refused_before_it_is_decoded(
    database_url: str,
) -> None:
    async with serving(database_url, limits=Limits(max_message_fields=1_000)) as api:
        publish: Any = api.channel.unary_unary("/hookline.v1.EventService/PublishEvents")
        answer = await refusal(publish(EMPTY_EVENT * 1_001, timeout=20))
    assert answer.reason == "LIMIT_EXCEEDED"
    assert answer.metadata["limit"] == "HOOKLINE_MAX_MESSAGE_FIELDS"
