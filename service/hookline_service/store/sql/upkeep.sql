-- Upkeep: what is swept, dropped or given up with time.

-- name: try_lock
-- A lock for each chore: one whose statement was given up is held by its backend until that ends, and no other is.
SELECT pg_try_advisory_lock($1::integer, hashtext($2)) AS got

-- name: unlock
SELECT pg_advisory_unlock($1::integer, hashtext($2))

-- name: expire_pending
-- Pending work past its retention (paused time counts), a batch at a time: bucket by bucket, until the batch is full. What an
-- operator retried is kept from then on ($3: the moment whose id is $1).
WITH oldest AS MATERIALIZED (
    SELECT q.bucket, q.delivery_id
    FROM generate_series(0, 255) AS b (bucket) CROSS JOIN LATERAL (
        SELECT p.bucket, p.delivery_id FROM pending_deliveries p
        WHERE p.bucket = b.bucket AND p.delivery_id < $1 AND (p.retry_time IS NULL OR p.retry_time < $3)
        ORDER BY p.bucket, p.delivery_id LIMIT $2) q
    LIMIT $2
), expired AS (
    DELETE FROM pending_deliveries p USING oldest w
    WHERE p.bucket = w.bucket AND p.delivery_id = w.delivery_id AND (p.retry_time IS NULL OR p.retry_time < $3)
    RETURNING p.*
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT DISTINCT 'LANE', bucket, subscription_uid FROM expired
)
INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                        attempts_base, attempts_until, state, state_reason)
SELECT s.tenant_uid, e.delivery_id, e.subscription_uid, e.event_id, hookline_now(), e.version + 1, e.attempt_count,
       e.attempts_base, e.attempts_until, $4, 'RETENTION'
FROM expired e JOIN subscriptions s USING (subscription_uid)
RETURNING delivery_id

-- name: sweep_keys
-- Those that expired from $2 on. The outer WHERE repeats the inner one: a key may have been taken anew between the two.
DELETE FROM idempotency_keys
WHERE (tenant_uid, key) IN (
    SELECT tenant_uid, key FROM idempotency_keys
    WHERE expires_at >= $2 AND expires_at <= hookline_now() ORDER BY expires_at LIMIT $1)
  AND expires_at <= hookline_now()
RETURNING expires_at

-- name: sweep_changes
-- The old ones among the first $2 behind $3: changes are numbered in the order of their time, but for a little.
WITH first AS MATERIALIZED (
    SELECT change_id, create_time FROM change_log WHERE change_id > $3 ORDER BY change_id LIMIT $2
)
DELETE FROM change_log c USING first f
WHERE c.change_id = f.change_id AND f.create_time < now() - make_interval(secs => $1)
RETURNING c.change_id

-- name: prune_subscriptions
-- The tombstones from before $1 among the next $2 behind ($3, $4), but those that history or a pending row still names. The
-- tenant's `pruned_epoch` marks indexes that lack the deletion. Each is looked up by an index: an anti-join might
-- read history whole.
WITH old AS MATERIALIZED (
    SELECT deleted_at, subscription_uid, tenant_uid, bucket, changed_epoch FROM subscriptions
    WHERE deleted_at IS NOT NULL AND deleted_at < $1 AND (deleted_at, subscription_uid) > ($3, $4)
    ORDER BY deleted_at, subscription_uid LIMIT $2
), unnamed AS MATERIALIZED (
    SELECT * FROM old o
    WHERE (SELECT true FROM pending_deliveries p
           WHERE p.bucket = o.bucket AND p.subscription_uid = o.subscription_uid LIMIT 1) IS NULL
      AND (SELECT true FROM deliveries d WHERE d.subscription_uid = o.subscription_uid LIMIT 1) IS NULL
), marked AS (
    UPDATE tenants t SET pruned_epoch = greatest(t.pruned_epoch, u.epoch)
    FROM (SELECT tenant_uid, max(changed_epoch) AS epoch FROM unnamed GROUP BY tenant_uid) u
    WHERE t.tenant_uid = u.tenant_uid
), signing AS (
    DELETE FROM signing_keys k USING unnamed u WHERE k.subscription_uid = u.subscription_uid
), target AS (
    DELETE FROM target_secrets x USING unnamed u WHERE x.subscription_uid = u.subscription_uid
), pruned AS (
    DELETE FROM subscriptions s USING unnamed u WHERE s.subscription_uid = u.subscription_uid
    RETURNING s.subscription_uid
)
SELECT o.deleted_at, o.subscription_uid AS uid, p.subscription_uid IS NOT NULL AS is_pruned
FROM old o LEFT JOIN pruned p USING (subscription_uid)
ORDER BY o.deleted_at, o.subscription_uid

-- name: prune_tenants
-- The same of tenants that nothing names any more; their API keys, which open nothing, end with them.
WITH old AS MATERIALIZED (
    SELECT deleted_at, tenant_uid FROM tenants
    WHERE deleted_at IS NOT NULL AND deleted_at < $1 AND (deleted_at, tenant_uid) > ($3, $4)
    ORDER BY deleted_at, tenant_uid LIMIT $2
), unnamed AS MATERIALIZED (
    SELECT * FROM old o
    WHERE (SELECT true FROM subscriptions s WHERE s.tenant_uid = o.tenant_uid LIMIT 1) IS NULL
      AND (SELECT true FROM events e WHERE e.tenant_uid = o.tenant_uid LIMIT 1) IS NULL
      AND (SELECT true FROM deliveries d WHERE d.tenant_uid = o.tenant_uid LIMIT 1) IS NULL
      AND (SELECT true FROM idempotency_keys k WHERE k.tenant_uid = o.tenant_uid LIMIT 1) IS NULL
), access AS (
    DELETE FROM api_keys a USING unnamed u WHERE a.tenant_uid = u.tenant_uid
), sealing AS (
    DELETE FROM data_keys d USING unnamed u WHERE d.tenant_uid = u.tenant_uid
), pruned AS (
    DELETE FROM tenants t USING unnamed u WHERE t.tenant_uid = u.tenant_uid RETURNING t.tenant_uid
)
SELECT o.deleted_at, o.tenant_uid AS uid, p.tenant_uid IS NOT NULL AS is_pruned
FROM old o LEFT JOIN pruned p USING (tenant_uid)
ORDER BY o.deleted_at, o.tenant_uid

-- name: is_pending_before
-- Whether a row is still pending whose event or delivery is older than an id: the first of each bucket by its delivery, and
-- by its event where that is of another millisecond (an index holds only those).
SELECT EXISTS (
    SELECT FROM generate_series(0, 255) AS b (bucket) CROSS JOIN LATERAL (
        SELECT FROM pending_deliveries p WHERE p.bucket = b.bucket AND p.delivery_id < $1 LIMIT 1) q
) OR EXISTS (
    SELECT FROM pending_deliveries p
    WHERE p.event_id < $1 AND substr(uuid_send(p.event_id), 1, 6) <> substr(uuid_send(p.delivery_id), 1, 6)
) AS is_pending

-- name: database_now
SELECT hookline_now() AS now

-- name: lock_capacity
-- How many locks the server can hold, of all sessions together.
SELECT (l.setting::bigint * (SELECT sum(setting::bigint) FROM pg_settings
                             WHERE name IN ('max_connections', 'max_prepared_transactions')))::bigint AS locks,
       l.setting::integer AS per_transaction
FROM pg_settings l WHERE l.name = 'max_locks_per_transaction'
