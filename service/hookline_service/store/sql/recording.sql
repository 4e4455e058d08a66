-- Writes of a batch of outcomes. Rules 20 to 22 of the data path.

-- name: record
-- The fence: a row is written only in the version that the record names, and only while this node's lease holds. Returns the
-- deliveries that matched; the others were changed by another transaction. An attempt is written only for a row that matched.
WITH fence AS MATERIALIZED (
    SELECT node_id FROM nodes WHERE node_id = $1 AND lease_until > clock_timestamp() FOR KEY SHARE
), finished AS (
    DELETE FROM pending_deliveries p
    USING (SELECT * FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::uuid[], $6::text[], $7::smallint[],
                                $8::integer[], $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::bytea[],
                                $14::bytea[], $15::bytea[])
                AS o (bucket, delivery_id, version, tenant_uid, state, http_status, latency_us, url, remote_address,
                      outcome, start_time, error, response_excerpt, trace_id)
           ORDER BY bucket, delivery_id) o
    WHERE p.bucket = o.bucket AND p.delivery_id = o.delivery_id AND p.version = o.version
      AND EXISTS (SELECT FROM fence)
    RETURNING o.*, p.subscription_uid, p.event_id, p.attempt_count, p.attempts_base, p.attempts_until
), history AS (
    INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                            http_status, latency_us, attempts_base, attempts_until, state, url, remote_address)
    SELECT tenant_uid, delivery_id, subscription_uid, event_id, hookline_now(), version + 1, attempt_count + 1,
           CASE WHEN outcome IS NULL THEN http_status END, CASE WHEN outcome IS NULL THEN latency_us END,
           attempts_base, attempts_until, state,
           CASE WHEN outcome IS NULL THEN url END, CASE WHEN outcome IS NULL THEN remote_address END
    FROM finished
), rescheduled AS (
    UPDATE pending_deliveries p
    SET version = p.version + 1, attempt_count = p.attempt_count + 1,
        due_at = hookline_now() + make_interval(secs => o.delay_s)
    FROM (SELECT * FROM unnest($16::smallint[], $17::uuid[], $18::integer[], $19::float8[], $20::smallint[], $21::integer[],
                               $22::text[], $23::text[], $24::text[], $25::timestamptz[], $26::bytea[], $27::bytea[],
                               $28::bytea[])
               AS o (bucket, delivery_id, version, delay_s, http_status, latency_us, url, remote_address, outcome,
                     start_time, error, response_excerpt, trace_id)
          ORDER BY bucket, delivery_id) o
    WHERE p.bucket = o.bucket AND p.delivery_id = o.delivery_id AND p.version = o.version
      AND EXISTS (SELECT FROM fence)
    RETURNING o.*, p.attempt_count
), tried AS (
    INSERT INTO attempts (delivery_id, number, http_status, latency_us, start_time, outcome, url, remote_address, error,
                          response_excerpt, trace_id)
    SELECT delivery_id, attempt_count + 1, http_status, latency_us, start_time, outcome, url, remote_address, error,
           response_excerpt, trace_id
    FROM finished WHERE outcome IS NOT NULL
    UNION ALL
    SELECT delivery_id, attempt_count, http_status, latency_us, start_time, outcome, url, remote_address, error,
           response_excerpt, trace_id
    FROM rescheduled
)
SELECT delivery_id FROM finished UNION ALL SELECT delivery_id FROM rescheduled

-- name: park
-- Postpones a row whose outcome cannot be stored even without its texts, so that it neither loops nor delays other rows.
UPDATE pending_deliveries SET version = version + 1, due_at = hookline_now() + make_interval(secs => $5)
WHERE bucket = $2 AND delivery_id = $3 AND version = $4
  AND EXISTS (SELECT FROM nodes WHERE node_id = $1 AND lease_until > clock_timestamp() FOR KEY SHARE)
RETURNING delivery_id

-- name: disable
-- Disables subscriptions for their own failures. A subscription that was changed meanwhile is left alone: one with another target,
-- one that is paused, one that had a success since its first failure.
WITH disabled AS (
    UPDATE subscriptions s
    SET state = 'DISABLED', state_reason = w.reason, state_message = w.message, version = s.version + 1,
        update_time = hookline_now()
    FROM (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
                     AS w (subscription_uid, reason, message, url)
          ORDER BY subscription_uid) w
    WHERE s.subscription_uid = w.subscription_uid AND s.state = 'ACTIVE' AND s.deleted_at IS NULL
      AND (s.url = w.url OR w.url = ANY (s.failover_urls))
      AND (w.reason <> 'FAILING' OR s.failing_since <= hookline_now() - make_interval(secs => $5))
    RETURNING s.bucket, s.subscription_uid
)
INSERT INTO change_log (kind, bucket, subscription_uid)
SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM disabled
RETURNING subscription_uid

-- name: mark_failing
-- The first failure since the last success. Written once, not for each attempt.
UPDATE subscriptions SET failing_since = hookline_now()
WHERE subscription_uid = ANY ($1::uuid[]) AND failing_since IS NULL

-- name: mark_recovered
UPDATE subscriptions SET failing_since = NULL
WHERE subscription_uid = ANY ($1::uuid[]) AND failing_since IS NOT NULL

-- name: ping
SELECT
