-- Tenants. The epoch and the count of subscriptions are moved by subscriptions.sql.

-- name: database_time
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS unix_us

-- name: create
-- Nothing where the id is taken.
INSERT INTO tenants (tenant_uid, tenant_id, display_name, labels, create_time)
VALUES ($1, $2, $3, $4, hookline_now())
ON CONFLICT (tenant_id) WHERE deleted_at IS NULL DO NOTHING
RETURNING *

-- name: get
SELECT * FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL

-- name: list
SELECT * FROM tenants WHERE tenant_uid < $1 AND deleted_at IS NULL ORDER BY tenant_uid DESC LIMIT $2

-- name: update
-- NULL leaves a field as it is.
UPDATE tenants SET display_name = coalesce($2, display_name), labels = coalesce($3, labels)
WHERE tenant_id = $1 AND deleted_at IS NULL
RETURNING *

-- name: lock
-- Publishes to the tenant end before this returns, or begin after the transaction and find another epoch.
SELECT tenant_uid, subscription_count FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE

-- name: has_pending
-- Of deleted subscriptions, whose owners have not cancelled all yet.
SELECT EXISTS (
    SELECT FROM subscriptions s JOIN pending_deliveries p ON p.bucket = s.bucket AND p.subscription_uid = s.subscription_uid
    WHERE s.tenant_uid = $1
)

-- name: delete
UPDATE tenants SET deleted_at = hookline_now(), epoch = epoch + 1 WHERE tenant_uid = $1
