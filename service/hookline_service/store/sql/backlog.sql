-- Estimates of the pending deliveries of each tenant, at a cost that does not grow with their number.

-- name: pages
SELECT (pg_relation_size('pending_deliveries') / current_setting('block_size')::integer)::bigint AS pages

-- name: by_tenant
-- Of a sample of `$1` per cent of the table's pages.
SELECT s.tenant_uid, count(*) AS sampled
FROM pending_deliveries p TABLESAMPLE SYSTEM ($1) JOIN subscriptions s USING (subscription_uid)
GROUP BY s.tenant_uid
