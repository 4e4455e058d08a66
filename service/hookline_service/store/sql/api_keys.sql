-- API keys: management, and look-ups for authentication. Each change adds its audit draft in the same statement.

-- name: now
SELECT hookline_now() AS now

-- name: create
-- No row if the tenant does not exist; $4 NULL: for all tenants.
WITH made AS (
    INSERT INTO api_keys (key_id, digest, display_name, tenant_uid, scopes, create_time, expire_time)
    SELECT $1, $2, $3, t.tenant_uid, $5, hookline_now(), $6
    FROM (SELECT) one LEFT JOIN tenants t ON t.tenant_id = $4 AND t.deleted_at IS NULL
    WHERE $4::text IS NULL OR t.tenant_uid IS NOT NULL
    RETURNING *
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $7 FROM made
)
SELECT made.*, $4::text AS tenant_id FROM made

-- name: list
SELECT k.*, t.tenant_id FROM api_keys k LEFT JOIN tenants t USING (tenant_uid)
WHERE (k.create_time, k.key_id) < ($1, $2) ORDER BY k.create_time DESC, k.key_id DESC LIMIT $3

-- name: list_of_tenant
SELECT k.*, t.tenant_id FROM tenants t JOIN api_keys k USING (tenant_uid)
WHERE t.tenant_id = $4 AND t.deleted_at IS NULL AND (k.create_time, k.key_id) < ($1, $2)
ORDER BY k.create_time DESC, k.key_id DESC LIMIT $3

-- name: get
-- $2: the tenant of the key; NULL: any tenant.
SELECT k.*, t.tenant_id FROM api_keys k LEFT JOIN tenants t USING (tenant_uid)
WHERE k.key_id = $1 AND ($2::text IS NULL OR t.tenant_id = $2 AND t.deleted_at IS NULL)

-- name: revoke
-- No change if the key is already revoked: the time of the first revocation stays.
WITH revoked AS (
    UPDATE api_keys SET revoke_time = hookline_now() WHERE key_id = $1 AND revoke_time IS NULL RETURNING tenant_uid
)
INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $2 FROM revoked

-- name: find
-- The keys with these ids; a key of a deleted tenant is not live.
SELECT k.key_id, k.digest, k.scopes, k.expire_time, t.tenant_id,
       k.revoke_time IS NULL AND (k.tenant_uid IS NULL OR t.tenant_uid IS NOT NULL) AS is_live,
       extract(epoch FROM k.expire_time - hookline_now())::double precision AS expires_in_s
FROM api_keys k LEFT JOIN tenants t ON t.tenant_uid = k.tenant_uid AND t.deleted_at IS NULL
WHERE k.key_id = ANY($1::text[])

-- name: touch
-- One write per key and minute, over all nodes; locked rows are skipped, because another node writes them.
UPDATE api_keys SET last_use_time = date_trunc('minute', hookline_now())
WHERE key_id IN (
    SELECT key_id FROM api_keys
    WHERE key_id = ANY($1::text[]) AND (last_use_time IS NULL OR last_use_time < date_trunc('minute', hookline_now()))
    FOR NO KEY UPDATE SKIP LOCKED
)
