-- Tombstones of subscriptions and tenants are pruned. An index in a node's memory that is of an epoch below `pruned_epoch` may lack
-- a deletion whose tombstone is gone, so it is loaded whole.
ALTER TABLE tenants ADD COLUMN pruned_epoch bigint NOT NULL DEFAULT 0;
CREATE INDEX subscriptions_deleted ON subscriptions (deleted_at, subscription_uid) WHERE deleted_at IS NOT NULL;
CREATE INDEX tenants_deleted ON tenants (deleted_at, tenant_uid) WHERE deleted_at IS NOT NULL;
