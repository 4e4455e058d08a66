"""Conversions of deliveries and attempts to messages of the contract."""

from __future__ import annotations

from hookline.v1 import attempt_pb2, delivery_pb2
from hookline_service.api.conversion.values import (
    duration_of_us,
    enum_of,
    timestamp_of,
    timestamp_of_ms,
    timestamp_of_us,
)
from hookline_service.domain.attempt import Attempt
from hookline_service.domain.ids import DELIVERY_ID, EVENT_ID, format_type_id, unix_ms_of
from hookline_service.domain.names import delivery_name, event_name, subscription_name
from hookline_service.store.deliveries import Delivery


def delivery_message(delivery: Delivery) -> delivery_pb2.Delivery:
    """Return the message of a delivery, with its last attempt."""
    tenant_id = delivery.tenant_id
    due, finished = delivery.next_attempt_time, delivery.finish_time
    return delivery_pb2.Delivery(
        name=delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery.delivery_id)),
        event=event_name(tenant_id, format_type_id(EVENT_ID, delivery.event_id)),
        event_type=delivery.event_type,
        subscription=subscription_name(tenant_id, delivery.subscription_id),
        state=enum_of(delivery_pb2.DeliveryState, "DELIVERY_STATE_", delivery.state),
        state_reason=enum_of(
            delivery_pb2.DeliveryStateReason, "DELIVERY_STATE_REASON_", delivery.state_reason
        ),
        attempt_count=delivery.attempt_count,
        next_attempt_time=timestamp_of(due) if due else None,
        last_attempt=attempt_message(delivery.last_attempt) if delivery.last_attempt else None,
        create_time=timestamp_of_ms(unix_ms_of(delivery.delivery_id)),
        finish_time=timestamp_of(finished) if finished else None,
    )


def attempt_message(attempt: Attempt) -> attempt_pb2.Attempt:
    """Return the message of an attempt; invalid UTF-8 in the response excerpt is replaced."""
    record = attempt.record
    return attempt_pb2.Attempt(
        number=attempt.number,
        start_time=timestamp_of_us(attempt.start_time_us),
        latency=duration_of_us(record.latency_us),
        outcome=enum_of(attempt_pb2.AttemptOutcome, "ATTEMPT_OUTCOME_", record.kind),
        http_status=record.http_status or 0,
        error=record.error,
        response_excerpt=record.excerpt.decode(errors="replace"),
        url=record.url,
        remote_address=record.remote_address or "",
        trace_id=attempt.trace_id.hex() if attempt.trace_id else "",
    )
