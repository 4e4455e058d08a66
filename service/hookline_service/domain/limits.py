"""What a call may ask for: every bound of the API, each a setting, each named by its refusal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on requests; `config` fills them from HOOKLINE_*, the defaults are the contract's."""

    max_data_bytes: int = 256 * 1024
    """One event's data (HOOKLINE_MAX_DATA_BYTES)."""
    max_batch_events: int = 1_000
    """Events of one PublishEvents (HOOKLINE_MAX_BATCH_EVENTS)."""
    max_batch_bytes: int = 4 * 1024 * 1024
    """All data of one PublishEvents (HOOKLINE_MAX_BATCH_BYTES)."""
    max_batch_deliveries: int = 250_000
    """What one PublishEvents may fan out to (HOOKLINE_MAX_BATCH_DELIVERIES)."""
    max_attribute_bytes: int = 1_024
    """One attribute's value (HOOKLINE_MAX_ATTRIBUTE_BYTES)."""
    max_json_depth: int = 128
    """Nesting of JSON data (HOOKLINE_MAX_JSON_DEPTH)."""
    max_page_size: int = 1_000
    default_page_size: int = 50
    max_page_bytes: int = 3 * 1024 * 1024
    """A page of a list ends at this size (HOOKLINE_MAX_PAGE_BYTES)."""
    max_patterns: int = 100
    """Event type patterns of one subscription (HOOKLINE_MAX_PATTERNS)."""
    max_labels: int = 64
    """Labels of one resource (HOOKLINE_MAX_LABELS)."""
    max_subscriptions_per_tenant: int = 200_000
    """Live subscriptions of one tenant (HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT)."""
    max_pending_per_tenant: int = 10_000_000
    """Pending deliveries of one tenant, as estimated (HOOKLINE_MAX_PENDING_PER_TENANT)."""
    max_schema_bytes: int = 64 * 1024
    """A JSON Schema's text (HOOKLINE_MAX_SCHEMA_BYTES)."""
    max_schema_inline_ms: int = 10
    """Of the event loop's time, for one call's checks against schemas; what may take longer is
    checked in the evaluator process (HOOKLINE_MAX_SCHEMA_INLINE_MS)."""
    max_schema_cpu_ms: int = 250
    """Processor time of one call's checks in that process (HOOKLINE_MAX_SCHEMA_CPU_MS)."""
    max_schema_memory_mb: int = 128
    """That process's memory (HOOKLINE_MAX_SCHEMA_MEMORY_MB)."""
    max_queued_schema_checks: int = 64
    """Calls that wait for that process (HOOKLINE_MAX_QUEUED_SCHEMA_CHECKS)."""
    max_queued_publish_bytes: int = 64 * 1024 * 1024
    """Data that may wait for a group commit (HOOKLINE_MAX_QUEUED_PUBLISH_BYTES)."""
    max_queued_publish_events: int = 50_000
    """Events that may wait for a group commit (HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS)."""
    max_message_bytes: int = 8 * 1024 * 1024
    """One message as it comes over the wire (HOOKLINE_MAX_MESSAGE_BYTES)."""
    max_message_fields: int = 131_072
    """Fields of one message, those of its parts included (HOOKLINE_MAX_MESSAGE_FIELDS)."""
    max_metadata_bytes: int = 16 * 1024
    """A call's metadata, counted as HTTP/2 does (HOOKLINE_MAX_METADATA_BYTES)."""
    max_requests_read: int = 12
    """Requests on their way at once (HOOKLINE_MAX_REQUESTS_READ)."""
    max_open_requests_read: int = 4
    """Those of methods that need no key (HOOKLINE_MAX_OPEN_REQUESTS_READ)."""
    request_timeout_s: int = 10
    """How long a request is awaited (HOOKLINE_REQUEST_TIMEOUT_S)."""
    max_request_bytes: int = 32 * 1024 * 1024
    """Requests that were read and whose calls run (HOOKLINE_MAX_REQUEST_BYTES)."""
    max_client_streams: int = 20
    """Calls that send a stream of messages (HOOKLINE_MAX_CLIENT_STREAMS)."""
    stream_idle_s: int = 10
    """Then such a call gives way to another, where all are taken (HOOKLINE_STREAM_IDLE_S)."""
    max_client_stream_bytes: int = 16 * 1024 * 1024
    """Messages of all streams, read and not yet answered (HOOKLINE_MAX_CLIENT_STREAM_BYTES)."""
    max_answer_bytes: int = 48 * 1024 * 1024
    """Answers that are not taken yet (HOOKLINE_MAX_ANSWER_BYTES)."""
    answer_timeout_s: int = 30
    """Until an answer is taken (HOOKLINE_ANSWER_TIMEOUT_S)."""
    max_pending_calls: int = 1_500
    """Calls that wait for the event loop (HOOKLINE_MAX_PENDING_CALLS)."""
    max_caller_calls_per_s: int = 1_000
    """Calls and streamed messages of one caller on one node (HOOKLINE_MAX_CALLER_CALLS_PER_S)."""
    max_caller_bytes_per_s: int = 64 * 1024 * 1024
    """The bytes of these (HOOKLINE_MAX_CALLER_BYTES_PER_S)."""
    max_tenant_calls_per_s: int = 5_000
    """Of all callers for one tenant on one node (HOOKLINE_MAX_TENANT_CALLS_PER_S)."""
    max_tenant_bytes_per_s: int = 64 * 1024 * 1024
    """The bytes of these (HOOKLINE_MAX_TENANT_BYTES_PER_S)."""
    max_tenant_lists: int = 4
    """Pages of lists that are read at once for one tenant on one node (HOOKLINE_MAX_TENANT_LISTS).
    """
    max_lists: int = 8
    """Pages of lists that are read at once on one node, of all tenants (HOOKLINE_MAX_LISTS)."""
    max_streams_per_connection: int = 100
    """Calls at once on one connection (HOOKLINE_MAX_STREAMS_PER_CONNECTION)."""
    max_connections: int = 1_024
    """Of callers, on one node (HOOKLINE_MAX_CONNECTIONS)."""
    max_connection_idle_s: int = 300
    """Then a connection without a call is ended (HOOKLINE_MAX_CONNECTION_IDLE_S)."""
    max_connection_age_s: int = 3_600
    """Then a connection is asked to end (HOOKLINE_MAX_CONNECTION_AGE_S)."""
    connection_grace_s: int = 300
    """How long its calls may go on then (HOOKLINE_CONNECTION_GRACE_S)."""
    handshake_timeout_s: int = 10
    """Until a new connection speaks TLS and HTTP/2 (HOOKLINE_HANDSHAKE_TIMEOUT_S)."""
    min_ping_interval_s: int = 10
    """Between two pings of a client that sends nothing else (HOOKLINE_MIN_PING_INTERVAL_S)."""
    max_stream_messages: int = 1_000
    """A publishing stream's, read and not yet answered (HOOKLINE_MAX_STREAM_MESSAGES)."""
    max_stream_events: int = 10_000
    """The events of these (HOOKLINE_MAX_STREAM_EVENTS)."""
    max_stream_bytes: int = 2 * 1024 * 1024
    """The bytes of these (HOOKLINE_MAX_STREAM_BYTES)."""
