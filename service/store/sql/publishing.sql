-- Publishing: what a group commit writes. Rules 1 to 8 of the data path.

-- name: publish
-- Events and their deliveries, for the tenants whose epoch is still the one that was matched under; returns those tenants.
-- FOR SHARE makes a change of subscriptions wait for us, or us for it: then its epoch no longer equals ours.
-- With new idempotency keys it is all or nothing: where a key is taken or an epoch has moved on it refuses itself, leaves
-- nothing behind, and the group is run again step by step. Keys go in sorted, so that two groups never lock crosswise.
WITH passed AS MATERIALIZED (
    SELECT t.tenant_uid
    FROM unnest($1::uuid[], $2::bigint[]) AS w (tenant_uid, epoch)
    JOIN tenants t ON t.tenant_uid = w.tenant_uid AND t.epoch = w.epoch
    WHERE t.deleted_at IS NULL
    ORDER BY t.tenant_uid
    FOR SHARE OF t
), claimed AS (
    INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint, delivery_count, expires_at)
    SELECT k.tenant_uid, k.key, k.event_id, k.fingerprint, k.delivery_count, hookline_now() + make_interval(secs => $27)
    FROM unnest($28::uuid[], $29::text[], $30::uuid[], $31::bytea[], $32::integer[])
         AS k (tenant_uid, key, event_id, fingerprint, delivery_count)
    ORDER BY k.tenant_uid, k.key
    ON CONFLICT (tenant_uid, key) DO UPDATE
    SET event_id = excluded.event_id, fingerprint = excluded.fingerprint, delivery_count = excluded.delivery_count,
        expires_at = excluded.expires_at
    WHERE idempotency_keys.expires_at <= hookline_now()
    RETURNING 1
), clear AS MATERIALIZED (
    SELECT CASE WHEN cardinality($29) = 0 THEN true
                WHEN (SELECT count(*) FROM claimed) = cardinality($29) AND (SELECT count(*) FROM passed) = cardinality($1)
                THEN true ELSE hookline_refuse('a key is taken or an epoch has moved on') END AS is_clear
), place AS MATERIALIZED (
    SELECT nextval('publish_ordinal') * 65536 AS base FROM clear WHERE is_clear
), stored AS (
    INSERT INTO events (tenant_uid, event_id, ordinal, occur_time, event_type_revision, is_json, type, source, content_type,
                        subject, external_id, data_schema, idempotency_key, ordering_key, attributes, data,
                        trace_context)
    SELECT e.tenant_uid, e.event_id, place.base + e.n, e.occur_time, e.event_type_revision, e.is_json, e.type, e.source,
           e.content_type, e.subject, e.external_id, e.data_schema, e.idempotency_key, e.ordering_key, e.attributes, e.data,
           e.trace_context
    FROM place, unnest($3::uuid[], $4::uuid[], $5::timestamptz[], $6::integer[], $7::boolean[], $8::text[], $9::text[],
                       $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::jsonb[],
                       $17::bytea[], $18::bytea[])
         WITH ORDINALITY AS e (tenant_uid, event_id, occur_time, event_type_revision, is_json, type, source, content_type,
                               subject, external_id, data_schema, idempotency_key, ordering_key, attributes, data,
                               trace_context, n)
    WHERE e.tenant_uid IN (SELECT tenant_uid FROM passed)
), promised AS (
    INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid, event_id, key_hash)
    SELECT d.bucket, hookline_now() + make_interval(secs => d.delay_s), place.base + d.n, d.delivery_id, d.subscription_uid,
           d.event_id, d.key_hash
    FROM place, unnest($19::uuid[], $20::smallint[], $21::float8[], $22::integer[], $23::uuid[], $24::uuid[], $25::uuid[],
                       $26::bigint[])
         AS d (tenant_uid, bucket, delay_s, n, delivery_id, subscription_uid, event_id, key_hash)
    WHERE d.tenant_uid IN (SELECT tenant_uid FROM passed)
)
SELECT tenant_uid FROM passed, clear WHERE is_clear

-- name: lock_tenants
SELECT t.tenant_uid
FROM unnest($1::uuid[], $2::bigint[]) AS w (tenant_uid, epoch)
JOIN tenants t ON t.tenant_uid = w.tenant_uid AND t.epoch = w.epoch
WHERE t.deleted_at IS NULL
ORDER BY t.tenant_uid
FOR SHARE OF t

-- name: hold_tenants
-- Whatever their epoch is: it stays that until the transaction ends.
SELECT FROM tenants WHERE tenant_uid = ANY ($1::uuid[]) ORDER BY tenant_uid FOR SHARE

-- name: claim_keys
INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint, delivery_count, expires_at)
SELECT k.tenant_uid, k.key, k.event_id, k.fingerprint, k.delivery_count, hookline_now() + make_interval(secs => $1)
FROM unnest($2::uuid[], $3::text[], $4::uuid[], $5::bytea[], $6::integer[])
     AS k (tenant_uid, key, event_id, fingerprint, delivery_count)
ORDER BY k.tenant_uid, k.key
ON CONFLICT (tenant_uid, key) DO UPDATE
SET event_id = excluded.event_id, fingerprint = excluded.fingerprint, delivery_count = excluded.delivery_count,
    expires_at = excluded.expires_at
WHERE idempotency_keys.expires_at <= hookline_now()
RETURNING tenant_uid, key

-- name: read_keys
-- A statement after claim_keys, so that its snapshot sees what the claim ran into.
SELECT k.tenant_uid, k.key, k.event_id, k.fingerprint, k.delivery_count
FROM unnest($1::uuid[], $2::text[]) AS w (tenant_uid, key)
JOIN idempotency_keys k ON k.tenant_uid = w.tenant_uid AND k.key = w.key

-- name: drop_keys
-- The new keys of calls that were refused after all: a key must never outlive its batch.
DELETE FROM idempotency_keys k
USING (SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS w (tenant_uid, key, event_id) ORDER BY 1, 2) w
WHERE k.tenant_uid = w.tenant_uid AND k.key = w.key AND k.event_id = w.event_id

-- name: find_events
SELECT w.tenant_uid FROM unnest($1::uuid[], $2::uuid[]) AS w (tenant_uid, event_id)
WHERE EXISTS (SELECT FROM events e WHERE e.tenant_uid = w.tenant_uid AND e.event_id = w.event_id)

-- name: terminate_backend
-- Ends the backend of a lost statement and waits until its process is gone, a second at most; its start time keeps a
-- recycled pid safe.
SELECT pg_terminate_backend(pid, 1000) AS is_gone FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2
