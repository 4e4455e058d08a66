-- The registry of master keys by their ids, and the rows that each of them encrypts.

-- name: registered
SELECT key_id FROM master_keys ORDER BY create_time, key_id

-- name: register
-- Only if all registered keys are among the node's keys ($2): of two nodes that start with different keys, one finds the
-- key of the other.
INSERT INTO master_keys (key_id) SELECT $1::bytea
WHERE NOT EXISTS (SELECT FROM master_keys WHERE key_id <> ALL ($2::bytea[]))
ON CONFLICT DO NOTHING

-- name: lock
LOCK TABLE master_keys IN SHARE ROW EXCLUSIVE MODE

-- name: retire
-- Removes keys that encrypt nothing, as found by the statement `used`; the current key ($2) stays. Runs under the lock: a
-- node that still encrypts with one of them registers it in the same statement.
DELETE FROM master_keys m WHERE m.key_id <> $2 AND m.key_id = ANY ($1::bytea[])
AND NOT EXISTS (SELECT FROM data_keys d WHERE substring(d.sealed_key FROM 2 FOR 8) = m.key_id)
AND NOT EXISTS (SELECT FROM deployment_keys d WHERE substring(d.sealed FROM 2 FOR 8) = m.key_id)

-- name: forget
-- Deployment keys that it encrypts are deleted and will be created again.
WITH ended AS (
    DELETE FROM deployment_keys WHERE substring(sealed FROM 2 FOR 8) = $1
), forgotten AS (
    DELETE FROM master_keys WHERE key_id = $1 RETURNING key_id
), audited AS (
    INSERT INTO audit_drafts (entry) SELECT $2 FROM forgotten
)
SELECT key_id FROM forgotten

-- name: used
-- The number of rows that each master key encrypts.
SELECT key_id, sum(data_keys)::bigint AS data_keys, sum(secrets)::bigint AS secrets,
       sum(deployment_keys)::bigint AS deployment_keys
FROM (
    SELECT substring(sealed_key FROM 2 FOR 8) AS key_id, count(*) AS data_keys, 0 AS secrets, 0 AS deployment_keys
    FROM data_keys GROUP BY 1
    UNION ALL
    SELECT substring(sealed_secret FROM 2 FOR 8), 0, count(*), 0 FROM signing_keys WHERE get_byte(sealed_secret, 0) = 1
    GROUP BY 1
    UNION ALL
    SELECT substring(sealed FROM 2 FOR 8), 0, 0, count(*) FROM deployment_keys GROUP BY 1
) u GROUP BY key_id ORDER BY key_id

-- name: count
SELECT (SELECT count(*) FROM data_keys WHERE substring(sealed_key FROM 2 FOR 8) <> $1)
     + (SELECT count(*) FROM signing_keys WHERE get_byte(sealed_secret, 0) = 1)
     + (SELECT count(*) FROM deployment_keys WHERE substring(sealed FROM 2 FOR 8) <> $1) AS left_over

-- name: deployment_keys
-- The deployment keys that are not encrypted with the current master key ($1): a few at most.
SELECT purpose, sealed FROM deployment_keys WHERE substring(sealed FROM 2 FOR 8) <> $1

-- name: put_deployment_keys
UPDATE deployment_keys d SET sealed = w.new_key
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS w (purpose, old_key, new_key)
WHERE d.purpose = w.purpose AND d.sealed = w.old_key
RETURNING 1

-- name: data_keys
-- A batch of the data keys that are not encrypted with the current master key ($1), after ($2, $3).
SELECT tenant_uid, key_id, sealed_key FROM data_keys
WHERE substring(sealed_key FROM 2 FOR 8) <> $1 AND (tenant_uid, key_id) > ($2::uuid, $3::bytea)
ORDER BY tenant_uid, key_id LIMIT $4

-- name: put_data_keys
-- Each only if it is as it was read: a concurrent rotation writes an equivalent value.
UPDATE data_keys d SET sealed_key = w.new_key
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[]) AS w (tenant_uid, key_id, old_key, new_key)
WHERE d.tenant_uid = w.tenant_uid AND d.key_id = w.key_id AND d.sealed_key = w.old_key
RETURNING 1

-- name: signing_secrets
-- A batch of the signing secrets of the old format, encrypted with a master key directly, after ($1, $2).
SELECT k.subscription_uid, k.version, k.sealed_secret, s.tenant_uid, d.*
FROM signing_keys k JOIN subscriptions s USING (subscription_uid)
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(d.key_id ORDER BY d.create_time DESC, d.key_id), '{}') AS data_key_ids,
           coalesce(array_agg(d.sealed_key ORDER BY d.create_time DESC, d.key_id), '{}') AS data_keys
    FROM data_keys d WHERE d.tenant_uid = s.tenant_uid
) d
WHERE get_byte(k.sealed_secret, 0) = 1 AND (k.subscription_uid, k.version) > ($1::uuid, $2::integer)
ORDER BY k.subscription_uid, k.version LIMIT $3

-- name: put_signing_secrets
UPDATE signing_keys k SET sealed_secret = w.new_secret
FROM unnest($1::uuid[], $2::integer[], $3::bytea[], $4::bytea[]) AS w (subscription_uid, version, old_secret, new_secret)
WHERE k.subscription_uid = w.subscription_uid AND k.version = w.version AND k.sealed_secret = w.old_secret
RETURNING 1
