"""The limits: what each may be set to, and which of them must not exceed which."""

from __future__ import annotations

from collections.abc import Iterator

from service.config.reading import Reader, integer
from service.domain.limits import Limits

_KIB, _MIB = 1024, 1024 * 1024


def limit_contradictions(limits: Limits) -> Iterator[str]:
    """Where one is above another that has to hold it."""
    for low_name, high_name, why in (
        ("max_data_bytes", "max_batch_bytes", "one event must fit into a batch"),
        ("max_batch_bytes", "max_queued_publish_bytes", "one batch must fit into the queue"),
        ("max_batch_events", "max_queued_publish_events", "one batch must fit into the queue"),
    ):
        low, high = getattr(limits, low_name), getattr(limits, high_name)
        if low > high:
            yield (
                f"HOOKLINE_{low_name.upper()} is {low:g}, above HOOKLINE_{high_name.upper()}, which"
                f" is {high:g}: {why}"
            )


def read_limits(read: Reader) -> Limits:
    """Every limit, by itself."""
    default = Limits()
    return Limits(
        max_data_bytes=read(
            "MAX_DATA_BYTES", integer(1, 4 * _MIB, "bytes"), default.max_data_bytes
        ),
        max_batch_events=read("MAX_BATCH_EVENTS", integer(1, 10_000), default.max_batch_events),
        max_batch_bytes=read(
            "MAX_BATCH_BYTES", integer(_KIB, 16 * _MIB, "bytes"), default.max_batch_bytes
        ),
        max_batch_deliveries=read(
            "MAX_BATCH_DELIVERIES", integer(1, 1 << 20), default.max_batch_deliveries
        ),
        max_attribute_bytes=read(
            "MAX_ATTRIBUTE_BYTES", integer(1, 64 * _KIB, "bytes"), default.max_attribute_bytes
        ),
        max_json_depth=read("MAX_JSON_DEPTH", integer(1, 512), default.max_json_depth),
        max_page_bytes=read(
            "MAX_PAGE_BYTES", integer(_KIB, 3 * _MIB, "bytes"), default.max_page_bytes
        ),
        max_patterns=read("MAX_PATTERNS", integer(1, 1_000), default.max_patterns),
        max_labels=read("MAX_LABELS", integer(0, 1_000), default.max_labels),
        max_subscriptions_per_tenant=read(
            "MAX_SUBSCRIPTIONS_PER_TENANT",
            integer(1, 10_000_000),
            default.max_subscriptions_per_tenant,
        ),
        max_schema_bytes=read(
            "MAX_SCHEMA_BYTES", integer(_KIB, _MIB, "bytes"), default.max_schema_bytes
        ),
        max_queued_publish_bytes=read(
            "MAX_QUEUED_PUBLISH_BYTES",
            integer(_MIB, 4096 * _MIB, "bytes"),
            default.max_queued_publish_bytes,
        ),
        max_queued_publish_events=read(
            "MAX_QUEUED_PUBLISH_EVENTS",
            integer(1, 10_000_000),
            default.max_queued_publish_events,
        ),
        max_stream_messages=read(
            "MAX_STREAM_MESSAGES", integer(1, 100_000), default.max_stream_messages
        ),
        max_stream_events=read(
            "MAX_STREAM_EVENTS", integer(1, 1_000_000), default.max_stream_events
        ),
        max_stream_bytes=read(
            "MAX_STREAM_BYTES", integer(_KIB, 1024 * _MIB, "bytes"), default.max_stream_bytes
        ),
    )
