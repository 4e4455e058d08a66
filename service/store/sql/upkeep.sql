-- Upkeep: what is swept, dropped or given up with time.

-- name: expire_pending
-- Pending work past its retention (paused time counts), of one bucket, a batch at a time. What an operator retried is kept
-- from then on ($4: the moment whose id is $2).
WITH expired AS (
    DELETE FROM pending_deliveries p
    USING (SELECT bucket, delivery_id FROM pending_deliveries
           WHERE bucket = $1 AND delivery_id < $2 AND (retry_time IS NULL OR retry_time < $4) ORDER BY bucket, delivery_id LIMIT $3) w
    WHERE p.bucket = w.bucket AND p.delivery_id = w.delivery_id AND (p.retry_time IS NULL OR p.retry_time < $4)
    RETURNING p.*
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT DISTINCT 'LANE', bucket, subscription_uid FROM expired
)
INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                        attempts_base, attempts_until, state, state_reason)
SELECT s.tenant_uid, e.delivery_id, e.subscription_uid, e.event_id, hookline_now(), e.version + 1, e.attempt_count,
       e.attempts_base, e.attempts_until, 'EXPIRED', 'RETENTION'
FROM expired e JOIN subscriptions s USING (subscription_uid)
RETURNING delivery_id

-- name: sweep_keys
-- The outer WHERE repeats the inner one: a key may have been taken anew between the two.
DELETE FROM idempotency_keys
WHERE (tenant_uid, key) IN (
    SELECT tenant_uid, key FROM idempotency_keys WHERE expires_at <= hookline_now() ORDER BY expires_at LIMIT $1)
  AND expires_at <= hookline_now()
RETURNING 1

-- name: sweep_changes
DELETE FROM change_log WHERE create_time < now() - make_interval(secs => $1) RETURNING 1

-- name: is_pending_before
-- Whether a row is still pending whose event or delivery is older than an id. No index serves this: it is asked once a day.
SELECT EXISTS (SELECT FROM pending_deliveries WHERE event_id < $1 OR delivery_id < $1) AS is_pending

-- name: database_now
SELECT hookline_now() AS now
