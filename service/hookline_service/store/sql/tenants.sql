-- Tenants. subscriptions.sql updates the epoch and the number of subscriptions. Each change adds its audit draft.

-- name: database_time
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS unix_us

-- name: create
-- No row if the id is used.
WITH created AS (
    INSERT INTO tenants (tenant_uid, tenant_id, display_name, labels, create_time)
    VALUES ($1, $2, $3, $4, hookline_now())
    ON CONFLICT (tenant_id) WHERE deleted_at IS NULL DO NOTHING
    RETURNING *
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $5 FROM created
)
SELECT * FROM created

-- name: get
SELECT * FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL

-- name: list
SELECT * FROM tenants WHERE tenant_uid < $1 AND deleted_at IS NULL ORDER BY tenant_uid DESC LIMIT $2

-- name: update
-- Only if the current values are $4 and $5.
WITH changed AS (
    UPDATE tenants SET display_name = $2, labels = $3
    WHERE tenant_uid = $1 AND deleted_at IS NULL AND display_name = $4 AND labels = $5
    RETURNING *
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $6 FROM changed
)
SELECT * FROM changed

-- name: lock
-- Publishes to the tenant finish before this returns, or begin after the transaction with another epoch.
SELECT * FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE

-- name: has_pending
-- Pending deliveries of deleted subscriptions, which the owners of their buckets have not cancelled yet.
SELECT EXISTS (
    SELECT FROM subscriptions s JOIN pending_deliveries p ON p.bucket = s.bucket AND p.subscription_uid = s.subscription_uid
    WHERE s.tenant_uid = $1
)

-- name: delete
-- Also deletes its data keys, so that its secrets cannot be decrypted any more.
WITH deleted AS (
    UPDATE tenants SET deleted_at = hookline_now(), epoch = epoch + 1 WHERE tenant_uid = $1 RETURNING tenant_uid
), ended AS (
    DELETE FROM data_keys d USING deleted WHERE d.tenant_uid = deleted.tenant_uid
)
INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $2 FROM deleted
