-- Writes of operators on one delivery, and the storage of test events. Each transition is guarded by the state it was decided on,
-- and audited. The states come from the transition table (domain/delivery.py) as parameters.

-- name: find
-- One delivery, pending or finished: both tables in one statement, so that a concurrent move cannot hide it.
SELECT p.delivery_id, t.tenant_id, s.subscription_id, 'PENDING' AS state, p.due_at <= hookline_now() + interval '2 s' AS is_due, p.attempt_count, p.event_id,
       s.subscription_uid, s.bucket, s.tenant_uid, s.deleted_at IS NOT NULL AS is_deleted,
       s.max_attempts, s.min_backoff_s, s.max_backoff_s, s.schedule_s, s.ordered, true AS has_event, NULL AS ordering_key
FROM pending_deliveries p JOIN subscriptions s USING (subscription_uid) JOIN tenants t USING (tenant_uid)
WHERE p.bucket = $2 AND p.delivery_id = $3 AND t.tenant_id = $1 AND t.deleted_at IS NULL
UNION ALL
SELECT d.delivery_id, t.tenant_id, s.subscription_id, d.state, false, d.attempt_count, d.event_id,
       s.subscription_uid, s.bucket, s.tenant_uid, s.deleted_at IS NOT NULL,
       s.max_attempts, s.min_backoff_s, s.max_backoff_s, s.schedule_s, s.ordered, e.event_id IS NOT NULL, e.ordering_key
FROM tenants t JOIN deliveries d USING (tenant_uid) JOIN subscriptions s USING (subscription_uid)
LEFT JOIN LATERAL (
    SELECT e.event_id, e.ordering_key FROM events e
    WHERE e.tenant_uid = d.tenant_uid AND e.event_id = d.event_id LIMIT 1) e ON true
WHERE d.delivery_id = $3 AND t.tenant_id = $1 AND t.deleted_at IS NULL

-- name: retry_pending
-- Only a delivery that is due later than its node needs to read the change: one that is due before may be on the wire by then, and
-- a new version would discard its outcome.
WITH moved AS (
    UPDATE pending_deliveries SET due_at = hookline_now(), retry_time = hookline_now(), version = version + 1
    WHERE bucket = $1 AND delivery_id = $2 AND due_at > hookline_now() + interval '2 s'
    RETURNING bucket, subscription_uid, delivery_id
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT $3, $4 FROM moved
)
INSERT INTO change_log (kind, bucket, subscription_uid, delivery_id) SELECT 'DELIVERY', moved.* FROM moved
RETURNING delivery_id

-- name: retry_due
-- The delivery is due and may be on the wire, so its version is unchanged: only its retention starts again.
WITH kept AS (
    UPDATE pending_deliveries SET retry_time = hookline_now() WHERE bucket = $1 AND delivery_id = $2 RETURNING delivery_id
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT $3, $4 FROM kept
)
SELECT delivery_id FROM kept

-- name: retry_finished
-- From history back to pending: attempt numbers continue, the budget starts again. A delivery without its event is not moved. $7 is
-- the state it was read in. In an ordered subscription ($6: the hash of its key) it takes its place in publish order.
WITH taken AS (
    DELETE FROM deliveries
    WHERE tenant_uid = $1 AND delivery_id = $2 AND state = $7
      AND EXISTS (SELECT FROM events e WHERE e.tenant_uid = $1 AND e.event_id = deliveries.event_id)
    RETURNING *
), moved AS (
    INSERT INTO pending_deliveries (bucket, attempt_count, version, due_at, ordinal, delivery_id, subscription_uid, event_id,
                                    attempts_base, attempts_until, key_hash, retry_time)
    SELECT $3, d.attempt_count, d.version + 1, hookline_now(), e.ordinal, d.delivery_id, d.subscription_uid, d.event_id,
           d.attempt_count, least(d.attempt_count + $4::integer, 32767), $6, hookline_now()
    FROM taken d JOIN events e ON e.tenant_uid = d.tenant_uid AND e.event_id = d.event_id
    RETURNING bucket, subscription_uid, delivery_id
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT $1, $5 FROM moved
)
INSERT INTO change_log (kind, bucket, subscription_uid, delivery_id) SELECT 'DELIVERY', moved.* FROM moved
RETURNING delivery_id

-- name: cancel
-- Moves a pending delivery to history in the state $5.
WITH taken AS (
    DELETE FROM pending_deliveries WHERE bucket = $2 AND delivery_id = $3 RETURNING *
), moved AS (
    INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                            attempts_base, attempts_until, state, state_reason)
    SELECT $1, delivery_id, subscription_uid, event_id, hookline_now(), version + 1, attempt_count, attempts_base,
           attempts_until, $5, 'OPERATOR'
    FROM taken
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT $1, $4 FROM taken
)
INSERT INTO change_log (kind, bucket, subscription_uid, delivery_id)
SELECT 'DELIVERY', bucket, subscription_uid, delivery_id FROM taken
RETURNING delivery_id

-- name: store_test_event
-- A test event, its delivery and its one attempt, stored after the attempt.
WITH stored AS (
    INSERT INTO events (tenant_uid, event_id, ordinal, occur_time, event_type_revision, is_json, type, source, content_type,
                        subject, external_id, data_schema, ordering_key, attributes, data, trace_context)
    VALUES ($1, $2, nextval('publish_ordinal') * 65536, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $27)
), finished AS (
    INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count, state)
    VALUES ($1, $15, $16, $2, hookline_now(), 0, 1, $17)
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) VALUES ($1, $26)
)
INSERT INTO attempts (delivery_id, number, http_status, latency_us, start_time, outcome, url, remote_address, error,
                      response_excerpt, trace_id)
VALUES ($15, 1, $18, $19, $20, $21, $22, $23, $24, $25, substr($27, 1, 16))
