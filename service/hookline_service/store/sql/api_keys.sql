-- API keys: kept, and looked up at the door. Every change is audited in its statement.

-- name: now
SELECT hookline_now() AS now

-- name: create
-- Nothing where there is no such tenant; `$4` NULL: for all of them.
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
-- `$2`: of this tenant alone; NULL: of any.
SELECT k.*, t.tenant_id FROM api_keys k LEFT JOIN tenants t USING (tenant_uid)
WHERE k.key_id = $1 AND ($2::text IS NULL OR t.tenant_id = $2 AND t.deleted_at IS NULL)

-- name: revoke
-- Nothing where it is revoked already: the first revocation counts.
WITH revoked AS (
    UPDATE api_keys SET revoke_time = hookline_now() WHERE key_id = $1 AND revoke_time IS NULL RETURNING tenant_uid
)
INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $2 FROM revoked

-- name: find
-- What is known of these ids; a key of a deleted tenant is as good as revoked.
SELECT k.key_id, k.digest, k.scopes, k.expire_time, t.tenant_id,
       k.revoke_time IS NULL AND (k.tenant_uid IS NULL OR t.tenant_uid IS NOT NULL) AS is_live,
       extract(epoch FROM k.expire_time - hookline_now())::double precision AS expires_in_s
FROM api_keys k LEFT JOIN tenants t ON t.tenant_uid = k.tenant_uid AND t.deleted_at IS NULL
WHERE k.key_id = ANY($1::text[])

-- name: touch
-- One write a key and minute, however many nodes it is used on; who finds a row taken leaves it to the other.
UPDATE api_keys SET last_use_time = date_trunc('minute', hookline_now())
WHERE key_id IN (
    SELECT key_id FROM api_keys
    WHERE key_id = ANY($1::text[]) AND (last_use_time IS NULL OR last_use_time < date_trunc('minute', hookline_now()))
    FOR NO KEY UPDATE SKIP LOCKED
)
