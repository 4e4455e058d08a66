-- Subscriptions and their signing keys. Each change is one statement: it locks the tenant before the subscription (all
-- statements use this order), gives the subscription the tenant's next epoch, writes to the change log, and adds its audit
-- draft. A change that finds another version than the one that was read does nothing.

-- name: find_tenant
SELECT t.tenant_uid, t.state, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS unix_us, d.*
FROM tenants t
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(d.key_id ORDER BY d.create_time DESC, d.key_id), '{}') AS data_key_ids,
           coalesce(array_agg(d.sealed_key ORDER BY d.create_time DESC, d.key_id), '{}') AS data_keys
    FROM data_keys d WHERE d.tenant_uid = t.tenant_uid
) d
WHERE t.tenant_id = $1 AND t.deleted_at IS NULL

-- name: add_data_key
-- Adds a data key of a tenant, and registers the master key ($4) that encrypts it.
WITH registered AS (
    INSERT INTO master_keys (key_id) VALUES ($4) ON CONFLICT DO NOTHING
)
INSERT INTO data_keys (tenant_uid, key_id, sealed_key) VALUES ($1, $2, $3)

-- name: now
SELECT hookline_now() AS now

-- name: create
WITH bumped AS (
    UPDATE tenants SET epoch = epoch + 1, subscription_count = subscription_count + 1
    WHERE tenant_uid = $1 AND deleted_at IS NULL AND state = 'ACTIVE' AND subscription_count < $2
    RETURNING tenant_uid, epoch
), created AS (
    INSERT INTO subscriptions (
        tenant_uid, changed_epoch, subscription_uid, bucket, subscription_id, create_time, update_time,
        display_name, event_types, url, failover_urls, headers, timeout_ms, signature_scheme,
        max_attempts, min_backoff_s, max_backoff_s, schedule_s, max_per_second, max_in_flight, payload_format, labels,
        ordered, propagate_trace, handshake
    )
    SELECT tenant_uid, epoch, $3, $4, $5, hookline_now(), hookline_now(),
           $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $24, $25, $27::jsonb
    FROM bumped
    RETURNING tenant_uid, subscription_uid, bucket
), keyed AS (
    INSERT INTO signing_keys (subscription_uid, version, scheme, sealed_secret, public_key, create_time)
    SELECT subscription_uid, 1, $12, $21, $22, hookline_now() FROM created
), secrets_stored AS (
    INSERT INTO target_secrets (subscription_uid, kind, version, sealed, shown)
    SELECT created.subscription_uid, w.kind, 1, decode(w.sealed, 'base64'), w.shown
    FROM created, jsonb_to_recordset($26) AS w (kind text, sealed text, shown jsonb)
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM created
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $23 FROM created
)
SELECT subscription_uid FROM created

-- name: find
-- By name, newest first; '-' searches all tenants, of which several can have the id.
SELECT s.subscription_uid FROM subscriptions s JOIN tenants t USING (tenant_uid)
WHERE s.subscription_id = $2 AND (t.tenant_id = $1 OR $1 = '-') AND s.deleted_at IS NULL AND t.deleted_at IS NULL
ORDER BY s.subscription_uid DESC LIMIT 2

-- name: list_of_tenant
SELECT subscription_uid FROM subscriptions
WHERE tenant_uid = $1 AND subscription_uid < $2 AND deleted_at IS NULL
ORDER BY subscription_uid DESC LIMIT $3

-- name: list_of_all
SELECT subscription_uid FROM subscriptions
WHERE subscription_uid < $1 AND deleted_at IS NULL
ORDER BY subscription_uid DESC LIMIT $2

-- name: read
-- All columns of the given subscriptions, including tombstones, with their active signing keys, newest first, and the
-- data keys of their tenants.
SELECT s.*, t.tenant_id, hookline_now() AS read_time, k.*, d.*, x.*
FROM subscriptions s
JOIN tenants t USING (tenant_uid)
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(k.version ORDER BY k.version DESC), '{}') AS key_versions,
           coalesce(array_agg(k.scheme ORDER BY k.version DESC), '{}') AS key_schemes,
           coalesce(array_agg(k.sealed_secret ORDER BY k.version DESC), '{}') AS key_secrets,
           coalesce(array_agg(k.public_key ORDER BY k.version DESC), '{}') AS key_public_keys,
           coalesce(array_agg(k.create_time ORDER BY k.version DESC), '{}') AS key_create_times,
           coalesce(array_agg(k.expire_time ORDER BY k.version DESC), '{}') AS key_expire_times
    FROM signing_keys k
    WHERE k.subscription_uid = s.subscription_uid AND (k.expire_time IS NULL OR k.expire_time > hookline_now())
) k
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(d.key_id ORDER BY d.create_time DESC, d.key_id), '{}') AS data_key_ids,
           coalesce(array_agg(d.sealed_key ORDER BY d.create_time DESC, d.key_id), '{}') AS data_keys
    FROM data_keys d WHERE d.tenant_uid = s.tenant_uid
) d
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(x.kind ORDER BY x.kind), '{}') AS secret_kinds,
           coalesce(array_agg(x.version ORDER BY x.kind), '{}') AS secret_versions,
           coalesce(array_agg(x.sealed ORDER BY x.kind), '{}') AS secret_values,
           coalesce(array_agg(x.shown ORDER BY x.kind), '{}') AS secret_shown
    FROM target_secrets x WHERE x.subscription_uid = s.subscription_uid
) x
WHERE s.subscription_uid = ANY ($1::uuid[])

-- name: update
-- $23 are the changes of target secrets: each named kind is replaced, or removed if it has no value.
WITH locked AS MATERIALIZED (
    SELECT t.tenant_uid, t.epoch
    FROM subscriptions s JOIN tenants t USING (tenant_uid)
    WHERE s.subscription_uid = $1
    FOR NO KEY UPDATE OF t
), changed AS (
    UPDATE subscriptions s SET
        display_name = $3, event_types = $4, url = $5, failover_urls = $6, headers = $7, timeout_ms = $8,
        max_attempts = $9, min_backoff_s = $10, max_backoff_s = $11, schedule_s = $12,
        max_per_second = $13, max_in_flight = $14, payload_format = $15, labels = $16,
        state = $17, state_reason = $18, state_message = $19, propagate_trace = $22, handshake = $24,
        failing_since = CASE WHEN $20 THEN NULL ELSE s.failing_since END,
        version = s.version + 1, changed_epoch = locked.epoch + 1, update_time = hookline_now()
    FROM locked
    WHERE s.subscription_uid = $1 AND s.version = $2 AND s.deleted_at IS NULL
    RETURNING s.tenant_uid, s.subscription_uid, s.bucket
), bumped AS (
    UPDATE tenants t SET epoch = t.epoch + 1 FROM changed WHERE t.tenant_uid = changed.tenant_uid
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM changed
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $21 FROM changed
), removed AS (
    DELETE FROM target_secrets x
    USING changed, jsonb_to_recordset($23) AS w (kind text, sealed text)
    WHERE x.subscription_uid = changed.subscription_uid AND x.kind = w.kind AND w.sealed IS NULL
), secrets_stored AS (
    INSERT INTO target_secrets (subscription_uid, kind, version, sealed, shown)
    SELECT changed.subscription_uid, w.kind, $2 + 1, decode(w.sealed, 'base64'), w.shown
    FROM changed, jsonb_to_recordset($23) AS w (kind text, sealed text, shown jsonb) WHERE w.sealed IS NOT NULL
    ON CONFLICT (subscription_uid, kind) DO UPDATE
    SET version = excluded.version, sealed = excluded.sealed, shown = excluded.shown
)
SELECT subscription_uid FROM changed

-- name: rotate
-- The current key ($3) also signs for the overlap ($4, seconds); older keys end now, so at most two are active.
WITH locked AS MATERIALIZED (
    SELECT t.tenant_uid, t.epoch
    FROM subscriptions s JOIN tenants t USING (tenant_uid)
    WHERE s.subscription_uid = $1
    FOR NO KEY UPDATE OF t
), changed AS (
    UPDATE subscriptions s SET signature_scheme = $5,
        version = s.version + 1, changed_epoch = locked.epoch + 1, update_time = hookline_now()
    FROM locked
    WHERE s.subscription_uid = $1 AND s.version = $2 AND s.deleted_at IS NULL
    RETURNING s.tenant_uid, s.subscription_uid, s.bucket
), bumped AS (
    UPDATE tenants t SET epoch = t.epoch + 1 FROM changed WHERE t.tenant_uid = changed.tenant_uid
), ended AS (
    DELETE FROM signing_keys k USING changed WHERE k.subscription_uid = changed.subscription_uid AND k.version < $3
), previous AS (
    UPDATE signing_keys k SET expire_time = hookline_now() + make_interval(secs => $4)
    FROM changed WHERE k.subscription_uid = changed.subscription_uid AND k.version = $3
    RETURNING k.expire_time
), keyed AS (
    INSERT INTO signing_keys (subscription_uid, version, scheme, sealed_secret, public_key, create_time)
    SELECT subscription_uid, $3 + 1, $5, $6, $7, hookline_now() FROM changed
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM changed
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $8 FROM changed
)
SELECT expire_time FROM previous

-- name: delete
-- Leaves a tombstone with the next epoch and removes the secrets; the owner of the bucket cancels the pending deliveries.
WITH locked AS MATERIALIZED (
    SELECT t.tenant_uid, t.epoch
    FROM subscriptions s JOIN tenants t USING (tenant_uid)
    WHERE s.subscription_uid = $1
    FOR NO KEY UPDATE OF t
), changed AS (
    UPDATE subscriptions s SET
        deleted_at = hookline_now(), version = s.version + 1, changed_epoch = locked.epoch + 1, update_time = hookline_now()
    FROM locked
    WHERE s.subscription_uid = $1 AND s.version = $2 AND s.deleted_at IS NULL
    RETURNING s.tenant_uid, s.subscription_uid, s.bucket
), bumped AS (
    UPDATE tenants t SET epoch = t.epoch + 1, subscription_count = t.subscription_count - 1
    FROM changed WHERE t.tenant_uid = changed.tenant_uid
), ended AS (
    DELETE FROM signing_keys k USING changed WHERE k.subscription_uid = changed.subscription_uid
), secrets_removed AS (
    DELETE FROM target_secrets x USING changed WHERE x.subscription_uid = changed.subscription_uid
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM changed
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $3 FROM changed
)
SELECT subscription_uid FROM changed

-- name: discard
-- Cancels one batch of a lane's pending deliveries of events older than $3, in the order of the lane's index, from the due
-- time $4 on. The lane's owner, which can have them in memory, reads one change for all of them.
WITH doomed AS MATERIALIZED (
    SELECT bucket, delivery_id, due_at FROM pending_deliveries
    WHERE bucket = $1 AND subscription_uid = $2 AND event_id < $3 AND due_at >= $4
    ORDER BY due_at LIMIT $5
    FOR UPDATE
), gone AS (
    DELETE FROM pending_deliveries p USING doomed d
    WHERE p.bucket = d.bucket AND p.delivery_id = d.delivery_id
    RETURNING p.*
), kept AS (
    INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                            attempts_base, attempts_until, state, state_reason)
    SELECT $6, delivery_id, subscription_uid, event_id, hookline_now(), version + 1, attempt_count,
           attempts_base, attempts_until, $8, 'OPERATOR'
    FROM gone
), logged AS (
    INSERT INTO change_log (kind, bucket, subscription_uid) SELECT DISTINCT 'LANE', bucket, subscription_uid FROM gone
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry)
    SELECT $6, $7::jsonb || jsonb_build_object('after_json', jsonb_build_object('cancelled_count', count(*))::text)
    FROM gone HAVING count(*) > 0
)
SELECT due_at FROM doomed ORDER BY due_at

-- name: load_index
-- A tenant's epoch and the subscriptions that changed since the epoch $2 of the tenant uid $3, in one snapshot; one row
-- without a subscription if nothing changed. A full load omits tombstones and replaces the index in memory; it is also
-- returned if $2 is older than the last deletion whose tombstone was pruned.
SELECT t.tenant_uid, t.epoch, have.epoch = 0 AS is_whole, s.subscription_uid, s.bucket, s.event_types, s.deleted_at IS NOT NULL AS deleted,
       s.max_attempts, s.min_backoff_s, s.max_backoff_s, s.schedule_s, s.payload_format, s.ordered
FROM tenants t
CROSS JOIN LATERAL (
    SELECT CASE WHEN t.tenant_uid = $3::uuid AND $2::bigint >= t.pruned_epoch THEN $2::bigint ELSE 0 END AS epoch) have
LEFT JOIN subscriptions s
    ON s.tenant_uid = t.tenant_uid AND s.changed_epoch > have.epoch AND (s.deleted_at IS NULL OR have.epoch > 0)
WHERE t.tenant_id = $1 AND t.deleted_at IS NULL
