"""The memory of a node: its ceiling, what each bound may come to, and defaults that fit it.

HOOKLINE_MEMORY_MB is the ceiling of one process. Defaults are those of `DEFAULT_MB`; with another
ceiling those that hold memory grow or shrink with what is left of it beside the process itself.
What all bounds come to at once must not exceed it. Unit costs are estimates with a margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from hookline_service.domain.limits import Limits

DEFAULT_MB: Final = 1_536
LEAST_MB: Final = 1_152
PROCESS_MB: Final = 140
"""The interpreter, the code, connections to the database: 90 MB at rest."""

_KIB, _MIB = 1_024, 1_024 * 1_024
_CALL_BYTES: Final = 32 * _KIB
"""A call beside its metadata: what gRPC's core takes before it is read, and objects."""
_CONNECTION_BYTES: Final = 48 * _KIB
_DATABASE_CONNECTION_BYTES: Final = 512 * _KIB
"""Of a session's buffers, and of a hundred prepared statements."""
_MESSAGE_HEADROOM_BYTES: Final = 256 * _KIB
_REQUEST_COPIES: Final = 3
"""The bytes, the message that was parsed, the events that were made of it."""
_STREAM_COPIES: Final = 2
"""The message that was parsed, the events that were made of it."""
_ANSWER_COPIES: Final = 2
_PAGE_COPIES: Final = 4
"""Rows, values, messages, bytes."""
_DELIVERY_BYTES: Final = 1_024
"""A queued delivery beside its data."""
_ATTEMPT_BYTES: Final = 64 * _KIB
"""What is read of a receiver's answer."""
_CERTIFICATE_COPIES: Final = 14
"""Crafted certificates, parsed, take so many times their bytes."""
_KEY_BYTES: Final = 512


def scaled(default: int, memory_mb: int) -> int:
    """The default of a bound that holds memory, under a ceiling."""
    return max(1, default * (memory_mb - PROCESS_MB) // (DEFAULT_MB - PROCESS_MB))


class Part(NamedTuple):
    """What some settings may come to."""

    what: str
    settings: str
    size: int


def parts(  # noqa: PLR0913 - each is a bound of its own
    limits: Limits,
    *,
    max_calls: int,
    pool_size: int,
    path_pool_size: int,
    max_in_flight: int,
    max_handshakes: int,
    max_handshake_bytes: int,
    max_certificate_bytes: int,
    max_queued_deliveries: int,
    max_queued_delivery_bytes: int,
    max_index_bytes: int,
    max_lane_bytes: int,
    max_schema_cache_bytes: int,
    max_cached_keys: int,
) -> Iterator[Part]:
    """Everything that callers, receivers and backlogs can have a node hold, in bytes."""
    yield Part("the process", "", PROCESS_MB * _MIB)
    yield from _messages(limits)
    yield Part(
        "connections to the database",
        "HOOKLINE_POOL_SIZE, HOOKLINE_PATH_POOL_SIZE",
        (pool_size + path_pool_size) * _DATABASE_CONNECTION_BYTES,
    )
    yield Part(
        "calls",
        "HOOKLINE_MAX_CALLS, HOOKLINE_MAX_PENDING_CALLS, HOOKLINE_MAX_METADATA_BYTES",
        (max_calls + limits.max_pending_calls) * (_CALL_BYTES + limits.max_metadata_bytes),
    )
    yield Part(
        "connections", "HOOKLINE_MAX_CONNECTIONS", limits.max_connections * _CONNECTION_BYTES
    )
    yield Part(
        "events that wait for their commit",
        "HOOKLINE_MAX_QUEUED_PUBLISH_BYTES",
        limits.max_queued_publish_bytes,
    )
    yield Part(
        "queued deliveries",
        "HOOKLINE_MAX_QUEUED_DELIVERIES, HOOKLINE_MAX_QUEUED_DELIVERY_BYTES",
        max_queued_delivery_bytes + max_queued_deliveries * _DELIVERY_BYTES,
    )
    yield Part("attempts", "HOOKLINE_MAX_IN_FLIGHT", max_in_flight * _ATTEMPT_BYTES)
    yield Part(
        "certificates of targets",
        "HOOKLINE_EGRESS_CERTIFICATE_BYTES, HOOKLINE_EGRESS_HANDSHAKES,"
        " HOOKLINE_EGRESS_HANDSHAKE_BYTES",
        _CERTIFICATE_COPIES * (max_certificate_bytes + max_handshakes * max_handshake_bytes),
    )
    yield Part("subscriptions that events match", "HOOKLINE_MAX_INDEX_BYTES", max_index_bytes)
    yield Part("subscriptions with deliveries", "HOOKLINE_MAX_LANE_BYTES", max_lane_bytes)
    yield Part("JSON Schemas", "HOOKLINE_MAX_SCHEMA_CACHE_BYTES", max_schema_cache_bytes)
    yield Part("API keys", "HOOKLINE_MAX_CACHED_KEYS", 3 * max_cached_keys * _KEY_BYTES)


def _messages(limits: Limits) -> Iterator[Part]:
    """What requests, streams and answers come to."""
    message = limits.max_message_bytes + _MESSAGE_HEADROOM_BYTES
    yield Part(
        "requests on their way",
        "HOOKLINE_MAX_REQUESTS_READ, HOOKLINE_MAX_OPEN_REQUESTS_READ, HOOKLINE_MAX_MESSAGE_BYTES",
        (limits.max_requests_read + limits.max_open_requests_read) * message,
    )
    yield Part("requests", "HOOKLINE_MAX_REQUEST_BYTES", _REQUEST_COPIES * limits.max_request_bytes)
    yield Part(
        "client streams",
        "HOOKLINE_MAX_CLIENT_STREAMS, HOOKLINE_MAX_MESSAGE_BYTES",
        limits.max_client_streams * message,
    )
    yield Part(
        "messages of client streams",
        "HOOKLINE_MAX_CLIENT_STREAM_BYTES",
        _STREAM_COPIES * limits.max_client_stream_bytes,
    )
    yield Part("answers", "HOOKLINE_MAX_ANSWER_BYTES", _ANSWER_COPIES * limits.max_answer_bytes)
    yield Part(
        "pages of lists",
        "HOOKLINE_MAX_LISTS, HOOKLINE_MAX_PAGE_BYTES",
        limits.max_lists * _PAGE_COPIES * limits.max_page_bytes,
    )


def contradiction(memory_mb: int, held: list[Part]) -> str | None:
    """What is wrong where all parts together exceed the ceiling: the largest are named."""
    needed_mb = -(-sum(part.size for part in held) // _MIB)
    if needed_mb <= memory_mb:
        return None
    largest = sorted(held[1:], key=lambda part: -part.size)[:3]
    named = "; ".join(f"{part.what} {part.size // _MIB} MB ({part.settings})" for part in largest)
    return (
        f"HOOKLINE_MEMORY_MB is {memory_mb}, and what the bounds allow comes to {needed_mb} MB: set"
        f" it to {needed_mb} at least, or lower a bound. The largest are: {named}"
    )
