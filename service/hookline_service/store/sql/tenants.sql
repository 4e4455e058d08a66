-- Tenants. The epoch and the count of subscriptions are moved by subscriptions.sql. Every change is audited in its statement.

-- name: database_time
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS unix_us

-- name: create
-- Nothing where the id is taken.
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
-- Over what the change was decided on ($4, $5).
WITH changed AS (
    UPDATE tenants SET display_name = $2, labels = $3
    WHERE tenant_uid = $1 AND deleted_at IS NULL AND display_name = $4 AND labels = $5
    RETURNING *
), audited AS (
    INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $6 FROM changed
)
SELECT * FROM changed

-- name: lock
-- Publishes to the tenant end before this returns, or begin after the transaction and find another epoch.
SELECT * FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE

-- name: has_pending
-- Of deleted subscriptions, whose owners have not cancelled all yet.
SELECT EXISTS (
    SELECT FROM subscriptions s JOIN pending_deliveries p ON p.bucket = s.bucket AND p.subscription_uid = s.subscription_uid
    WHERE s.tenant_uid = $1
)

-- name: delete
-- Its data keys end with it: what they sealed opens no more, in no copy of the database.
WITH deleted AS (
    UPDATE tenants SET deleted_at = hookline_now(), epoch = epoch + 1 WHERE tenant_uid = $1 RETURNING tenant_uid
), ended AS (
    DELETE FROM data_keys d USING deleted WHERE d.tenant_uid = deleted.tenant_uid
)
INSERT INTO audit_drafts (tenant_uid, entry) SELECT tenant_uid, $2 FROM deleted
