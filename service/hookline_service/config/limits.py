"""The limits: what each may be set to, and which of them must not exceed which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from hookline_service.config.reading import Reader, integer
from hookline_service.domain.limits import Limits

_KIB, _MIB = 1024, 1024 * 1024


_BOUNDS: Final[Mapping[str, tuple[int, int] | tuple[int, int, str]]] = {
    "max_data_bytes": (1, 4 * _MIB, "bytes"),
    "max_batch_events": (1, 10_000),
    "max_batch_bytes": (_KIB, 16 * _MIB, "bytes"),
    "max_batch_deliveries": (1, 1 << 20),
    "max_attribute_bytes": (1, 64 * _KIB, "bytes"),
    "max_json_depth": (1, 512),
    "max_page_bytes": (_KIB, 3 * _MIB, "bytes"),
    "max_patterns": (1, 1_000),
    "max_labels": (0, 1_000),
    "max_subscriptions_per_tenant": (1, 10_000_000),
    "max_pending_per_tenant": (1_000, 1_000_000_000),
    "max_schema_bytes": (_KIB, _MIB, "bytes"),
    "max_schema_inline_ms": (0, 1_000, "milliseconds"),
    "max_schema_cpu_ms": (10, 60_000, "milliseconds"),
    "max_schema_memory_mb": (96, 4_096, "MiB"),
    "max_queued_schema_checks": (1, 10_000),
    "max_queued_publish_bytes": (_MIB, 4096 * _MIB, "bytes"),
    "max_queued_publish_events": (1, 10_000_000),
    "max_message_bytes": (64 * _KIB, 64 * _MIB, "bytes"),
    "max_message_fields": (1_000, 10_000_000),
    "max_metadata_bytes": (_KIB, _MIB, "bytes"),
    "max_requests_read": (2, 10_000),
    "max_open_requests_read": (2, 10_000),
    "request_timeout_s": (1, 3_600, "seconds"),
    "max_request_bytes": (_MIB, 65_536 * _MIB, "bytes"),
    "max_client_streams": (2, 100_000),
    "stream_idle_s": (1, 3_600, "seconds"),
    "max_client_stream_bytes": (_MIB, 65_536 * _MIB, "bytes"),
    "max_answer_bytes": (_MIB, 65_536 * _MIB, "bytes"),
    "answer_timeout_s": (1, 3_600, "seconds"),
    "max_pending_calls": (10, 1_000_000),
    "max_caller_calls_per_s": (1, 1_000_000),
    "max_caller_bytes_per_s": (_KIB, 4096 * _MIB, "bytes"),
    "max_tenant_calls_per_s": (1, 1_000_000),
    "max_tenant_bytes_per_s": (_KIB, 4096 * _MIB, "bytes"),
    "max_tenant_lists": (1, 100),
    "max_lists": (1, 10_000),
    "max_streams_per_connection": (1, 100_000),
    "max_connections": (1, 1_000_000),
    "max_connection_idle_s": (1, 604_800, "seconds"),
    "max_connection_age_s": (1, 604_800, "seconds"),
    "connection_grace_s": (1, 86_400, "seconds"),
    "handshake_timeout_s": (1, 120, "seconds"),
    "min_ping_interval_s": (1, 3_600, "seconds"),
    "max_stream_messages": (1, 100_000),
    "max_stream_events": (1, 1_000_000),
    "max_stream_bytes": (_KIB, 1024 * _MIB, "bytes"),
}
"""The least and the most that each may be set to, and the unit."""


def limit_contradictions(limits: Limits) -> Iterator[str]:
    """Where one is above another that has to hold it."""
    for low_name, high_name, why in (
        ("max_data_bytes", "max_batch_bytes", "one event must fit into a batch"),
        ("max_batch_bytes", "max_message_bytes", "one batch must fit into a message"),
        ("max_batch_bytes", "max_queued_publish_bytes", "one batch must fit into the queue"),
        ("max_message_bytes", "max_request_bytes", "one message must fit into it"),
        ("max_page_bytes", "max_answer_bytes", "one page must fit into it"),
        ("max_batch_events", "max_queued_publish_events", "one batch must fit into the queue"),
    ):
        low, high = getattr(limits, low_name), getattr(limits, high_name)
        if low > high:
            yield (
                f"HOOKLINE_{low_name.upper()} is {low:g}, above HOOKLINE_{high_name.upper()}, which"
                f" is {high:g}: {why}"
            )


_HOLD_MEMORY: Final = frozenset(
    {
        "max_requests_read",
        "max_request_bytes",
        "max_client_streams",
        "max_client_stream_bytes",
        "max_answer_bytes",
        "max_pending_calls",
        "max_connections",
        "max_queued_publish_bytes",
    }
)
"""Their defaults fit HOOKLINE_MEMORY_MB."""


def read_limits(read: Reader, fitting: Callable[[int, int], int]) -> Limits:
    """Every limit, by itself; `fitting` turns a default and the most into what memory allows."""
    default = Limits()

    def default_of(name: str) -> int:
        value: int = getattr(default, name)
        return fitting(value, _BOUNDS[name][1]) if name in _HOLD_MEMORY else value

    return Limits(
        **{
            name: read(name.upper(), integer(*bounds), default_of(name))
            for name, bounds in _BOUNDS.items()
        }
    )
