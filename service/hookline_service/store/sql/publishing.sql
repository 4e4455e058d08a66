-- Publishing: what a group commit writes. Rules 1 to 8 of the data path.

-- name: publish
-- Insert events and deliveries of the tenants ($1) whose epoch still is the one that was matched under ($2), and return which
-- of $1 passed. Until the commit a change of their subscriptions waits. A tenant with a change under way does not pass.
-- With new idempotency keys it is all or nothing for the tenants that passed: if a key is taken, the statement raises HK001
-- and stores nothing; it is run again without the events of that key. Keys are inserted sorted, so that two groups cannot
-- deadlock. Rows name their tenant by its position in $1, and `passed` is indexed by it, which costs the same in every plan:
-- a join of two arrays would be a nested loop where the planner estimates them as short.
WITH checked AS MATERIALIZED (
    SELECT hookline_check_epochs($1::uuid[], $2::bigint[], $33) AS passed
), claimed AS (
    INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint, delivery_count, expires_at)
    SELECT ($1::uuid[])[k.tenant], k.key, k.event_id, k.fingerprint, k.delivery_count,
           hookline_now() + make_interval(secs => $27)
    FROM unnest($28::integer[], $29::text[], $30::uuid[], $31::bytea[], $32::integer[])
         AS k (tenant, key, event_id, fingerprint, delivery_count)
    WHERE (SELECT passed FROM checked)[k.tenant]
    ORDER BY 1, 2
    ON CONFLICT (tenant_uid, key) DO UPDATE
    SET event_id = excluded.event_id, fingerprint = excluded.fingerprint, delivery_count = excluded.delivery_count,
        expires_at = excluded.expires_at
    WHERE idempotency_keys.expires_at <= hookline_now()
    RETURNING 1
), clear AS MATERIALIZED (
    SELECT CASE WHEN (SELECT count(*) FROM claimed)
                     = (SELECT count(*) FROM unnest($28) AS k (tenant) WHERE (SELECT passed FROM checked)[k.tenant])
                THEN true ELSE hookline_refuse('a key is taken') END AS is_clear
), place AS MATERIALIZED (
    SELECT nextval('publish_ordinal') * 65536 AS base FROM clear WHERE is_clear
), stored AS (
    INSERT INTO events (tenant_uid, event_id, ordinal, occur_time, event_type_revision, is_json, type, source, content_type,
                        subject, external_id, data_schema, idempotency_key, ordering_key, attributes, data,
                        trace_context)
    SELECT ($1::uuid[])[e.tenant], e.event_id, (SELECT base FROM place) + e.n, e.occur_time, e.event_type_revision, e.is_json,
           e.type, e.source, e.content_type, e.subject, e.external_id, e.data_schema, e.idempotency_key, e.ordering_key,
           e.attributes, e.data, e.trace_context
    FROM unnest($3::integer[], $4::uuid[], $5::timestamptz[], $6::integer[], $7::boolean[], $8::text[], $9::text[],
                $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::jsonb[],
                $17::bytea[], $18::bytea[])
         WITH ORDINALITY AS e (tenant, event_id, occur_time, event_type_revision, is_json, type, source, content_type,
                               subject, external_id, data_schema, idempotency_key, ordering_key, attributes, data,
                               trace_context, n)
    WHERE (SELECT passed FROM checked)[e.tenant]
), promised AS (
    INSERT INTO pending_deliveries (bucket, version, due_at, ordinal, delivery_id, subscription_uid, event_id, key_hash)
    SELECT d.bucket, (d.delay_s > 0)::integer, hookline_now() + make_interval(secs => d.delay_s),
           (SELECT base FROM place) + d.n, d.delivery_id, d.subscription_uid, d.event_id, d.key_hash
    FROM unnest($19::integer[], $20::smallint[], $21::float8[], $22::integer[], $23::uuid[], $24::uuid[], $25::uuid[],
                $26::bigint[])
         AS d (tenant, bucket, delay_s, n, delivery_id, subscription_uid, event_id, key_hash)
    WHERE (SELECT passed FROM checked)[d.tenant]
)
SELECT (SELECT passed FROM checked) AS passed FROM clear WHERE is_clear

-- name: limit_lock_waits
SELECT set_config('lock_timeout', $1, true)

-- name: hold_tenants
-- Lock the tenants' epochs, whatever they are, until the transaction ends. Sorted, so that two transactions cannot deadlock.
SELECT pg_advisory_xact_lock_shared(hookline_epoch_lock(t.tenant_uid))
FROM (SELECT tenant_uid FROM unnest($1::uuid[]) AS w (tenant_uid) ORDER BY 1) t

-- name: find_taken_keys
-- The keys for which `publish` refused to run. A statement of its own, so that its snapshot is younger. Expired keys are free.
SELECT k.tenant_uid, k.key, k.event_id, k.fingerprint, k.delivery_count
FROM unnest($1::uuid[], $2::text[]) AS w (tenant_uid, key)
JOIN idempotency_keys k ON k.tenant_uid = w.tenant_uid AND k.key = w.key
WHERE k.expires_at > hookline_now()

-- name: fence
-- After a lost answer: raise the epochs of these tenants. An epoch is raised under the exclusive epoch lock, which a publish
-- that compared it earlier holds until it ends; a publish that compares it later stores nothing. So the next statement sees
-- everything that the lost one stored. Waits for no lock: returns the tenants of which the row or the epoch lock is not free.
WITH rows_locked AS MATERIALIZED (
    SELECT tenant_uid FROM tenants WHERE tenant_uid = ANY ($1::uuid[]) ORDER BY tenant_uid FOR NO KEY UPDATE SKIP LOCKED
), epochs_locked AS MATERIALIZED (
    SELECT tenant_uid FROM rows_locked WHERE pg_try_advisory_xact_lock(hookline_epoch_lock(tenant_uid))
), raised AS (
    UPDATE tenants t SET epoch = t.epoch + 1 FROM epochs_locked l WHERE t.tenant_uid = l.tenant_uid RETURNING t.tenant_uid
)
SELECT t.tenant_uid FROM tenants t
WHERE t.tenant_uid = ANY ($1::uuid[]) AND NOT EXISTS (SELECT FROM raised r WHERE r.tenant_uid = t.tenant_uid)

-- name: fence_waiting
-- The same for one tenant; waits for both locks.
UPDATE tenants SET epoch = epoch + 1 WHERE tenant_uid = $1

-- name: find_events
SELECT w.tenant_uid FROM unnest($1::uuid[], $2::uuid[]) AS w (tenant_uid, event_id)
WHERE EXISTS (SELECT FROM events e WHERE e.tenant_uid = w.tenant_uid AND e.event_id = w.event_id)
