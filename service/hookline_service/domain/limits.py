"""The limits of the API. Each is a setting, and the error of an exceeded limit names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on requests and connections; `config` sets them from HOOKLINE_*."""

    max_data_bytes: int = 256 * 1024
    """Size of the data of one event (HOOKLINE_MAX_DATA_BYTES)."""
    max_batch_events: int = 1_000
    """Events in one PublishEvents call (HOOKLINE_MAX_BATCH_EVENTS)."""
    max_batch_bytes: int = 4 * 1024 * 1024
    """Size of all data in one PublishEvents call (HOOKLINE_MAX_BATCH_BYTES)."""
    max_batch_deliveries: int = 250_000
    """Deliveries that one PublishEvents call may create (HOOKLINE_MAX_BATCH_DELIVERIES)."""
    max_attribute_bytes: int = 1_024
    """Size of the value of one attribute (HOOKLINE_MAX_ATTRIBUTE_BYTES)."""
    max_json_depth: int = 128
    """Nesting depth of JSON data (HOOKLINE_MAX_JSON_DEPTH)."""
    max_page_size: int = 1_000
    default_page_size: int = 50
    max_page_bytes: int = 3 * 1024 * 1024
    """Size of one page of a list (HOOKLINE_MAX_PAGE_BYTES)."""
    max_patterns: int = 100
    """Event type patterns of one subscription (HOOKLINE_MAX_PATTERNS)."""
    max_labels: int = 64
    """Labels of one resource (HOOKLINE_MAX_LABELS)."""
    max_subscriptions_per_tenant: int = 200_000
    """Subscriptions of one tenant, without deleted ones (HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT)."""
    max_pending_per_tenant: int = 10_000_000
    """Pending deliveries of one tenant, estimated (HOOKLINE_MAX_PENDING_PER_TENANT)."""
    max_schema_bytes: int = 64 * 1024
    """Size of the text of a JSON Schema (HOOKLINE_MAX_SCHEMA_BYTES)."""
    max_schema_inline_ms: int = 10
    """Time on the event loop for the schema validation of one call; a longer validation runs in the
    evaluator process (HOOKLINE_MAX_SCHEMA_INLINE_MS)."""
    max_schema_cpu_ms: int = 250
    """CPU time of one call's validation in the evaluator process (HOOKLINE_MAX_SCHEMA_CPU_MS)."""
    max_schema_memory_mb: int = 128
    """Memory of the evaluator process (HOOKLINE_MAX_SCHEMA_MEMORY_MB)."""
    max_queued_schema_checks: int = 64
    """Calls that wait for the evaluator process (HOOKLINE_MAX_QUEUED_SCHEMA_CHECKS)."""
    max_queued_publish_bytes: int = 64 * 1024 * 1024
    """Size of the data that waits for a group commit (HOOKLINE_MAX_QUEUED_PUBLISH_BYTES)."""
    max_queued_publish_events: int = 50_000
    """Events that wait for a group commit (HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS)."""
    max_message_bytes: int = 8 * 1024 * 1024
    """Size of one received message (HOOKLINE_MAX_MESSAGE_BYTES)."""
    max_message_fields: int = 131_072
    """Fields of one message, including those of nested messages (HOOKLINE_MAX_MESSAGE_FIELDS)."""
    max_metadata_bytes: int = 16 * 1024
    """Size of the metadata of one call, counted as in HTTP/2 (HOOKLINE_MAX_METADATA_BYTES)."""
    max_requests_read: int = 12
    """Requests that are received concurrently (HOOKLINE_MAX_REQUESTS_READ)."""
    max_open_requests_read: int = 4
    """Requests received concurrently for methods that need no authentication
    (HOOKLINE_MAX_OPEN_REQUESTS_READ)."""
    request_timeout_s: int = 10
    """Timeout for receiving a request (HOOKLINE_REQUEST_TIMEOUT_S)."""
    max_request_bytes: int = 32 * 1024 * 1024
    """Size of all requests of running calls (HOOKLINE_MAX_REQUEST_BYTES)."""
    max_client_streams: int = 20
    """Concurrent client-streaming calls (HOOKLINE_MAX_CLIENT_STREAMS)."""
    stream_idle_s: int = 10
    """Idle time after which such a call is ended for a new one, if all are in use
    (HOOKLINE_STREAM_IDLE_S)."""
    max_client_stream_bytes: int = 16 * 1024 * 1024
    """Size of the messages of all streams that are read and not yet answered
    (HOOKLINE_MAX_CLIENT_STREAM_BYTES)."""
    max_answer_bytes: int = 48 * 1024 * 1024
    """Size of all responses that the clients have not read yet (HOOKLINE_MAX_ANSWER_BYTES)."""
    answer_timeout_s: int = 30
    """Timeout until the client has read a response (HOOKLINE_ANSWER_TIMEOUT_S)."""
    max_pending_calls: int = 1_500
    """Calls that wait for the event loop (HOOKLINE_MAX_PENDING_CALLS)."""
    max_caller_calls_per_s: int = 1_000
    """Calls and streamed messages of one caller on one node, per second
    (HOOKLINE_MAX_CALLER_CALLS_PER_S)."""
    max_caller_bytes_per_s: int = 64 * 1024 * 1024
    """Bytes of these calls and messages per second (HOOKLINE_MAX_CALLER_BYTES_PER_S)."""
    max_tenant_calls_per_s: int = 5_000
    """Calls and streamed messages for one tenant on one node, of all callers, per second
    (HOOKLINE_MAX_TENANT_CALLS_PER_S)."""
    max_tenant_bytes_per_s: int = 64 * 1024 * 1024
    """Bytes of these calls and messages per second (HOOKLINE_MAX_TENANT_BYTES_PER_S)."""
    max_tenant_lists: int = 4
    """List pages that are read concurrently for one tenant on one node (HOOKLINE_MAX_TENANT_LISTS).
    """
    max_lists: int = 8
    """List pages that are read concurrently on one node, for all tenants (HOOKLINE_MAX_LISTS)."""
    max_streams_per_connection: int = 100
    """Concurrent calls on one connection (HOOKLINE_MAX_STREAMS_PER_CONNECTION)."""
    max_connections: int = 1_024
    """Client connections on one node (HOOKLINE_MAX_CONNECTIONS)."""
    max_connection_idle_s: int = 300
    """Idle time after which a connection without a call is closed
    (HOOKLINE_MAX_CONNECTION_IDLE_S)."""
    max_connection_age_s: int = 3_600
    """Age at which a connection is drained (HOOKLINE_MAX_CONNECTION_AGE_S)."""
    connection_grace_s: int = 300
    """Time for the calls of a drained connection to finish (HOOKLINE_CONNECTION_GRACE_S)."""
    handshake_timeout_s: int = 10
    """Timeout of the TLS and HTTP/2 handshake (HOOKLINE_HANDSHAKE_TIMEOUT_S)."""
    min_ping_interval_s: int = 10
    """Minimum interval between two keepalive pings of a client
    (HOOKLINE_MIN_PING_INTERVAL_S)."""
    max_stream_messages: int = 1_000
    """Messages of one publishing stream that are read and not yet answered
    (HOOKLINE_MAX_STREAM_MESSAGES)."""
    max_stream_events: int = 10_000
    """Events of these messages (HOOKLINE_MAX_STREAM_EVENTS)."""
    max_stream_bytes: int = 2 * 1024 * 1024
    """Bytes of these messages (HOOKLINE_MAX_STREAM_BYTES)."""
