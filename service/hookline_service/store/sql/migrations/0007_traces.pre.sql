-- Where an event belongs in a trace: 16 bytes of the trace's id, 8 of its span's, 1 of flags. NULL, which costs nothing, for
-- every event whose trace is not recorded.
ALTER TABLE events ADD COLUMN trace_context bytea CHECK (octet_length(trace_context) = 25);

-- Whether a subscription's receiver may continue the trace: whether requests have a `traceparent`.
ALTER TABLE subscriptions ADD COLUMN propagate_trace boolean NOT NULL DEFAULT false;
