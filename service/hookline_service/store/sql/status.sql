-- What operators see at a glance. Cheap enough to be asked every second, however much is pending.

-- name: nodes
SELECT n.node_id, n.hostname, n.address, n.version, n.start_time, n.lease_until,
       (SELECT count(*) FROM bucket_leases b WHERE b.node_id = n.node_id) AS bucket_count
FROM nodes n ORDER BY n.start_time, n.node_id

-- name: pending
-- Counted up to `$1`; beyond, the planner's density (rows a page when the table was last analysed) times the pages of now.
-- The oldest: ids begin with their time, and each bucket's first is one descent of the index.
SELECT counted.exact, counted.exact < $1 AS is_exact, estimate.rows AS estimate, oldest.delivery_id AS oldest_id
FROM (SELECT count(*) AS exact FROM (SELECT FROM pending_deliveries LIMIT $1) p) counted,
     (SELECT CASE WHEN reltuples > 0 AND relpages > 0
                  THEN (reltuples / relpages * pg_relation_size(oid) / current_setting('block_size')::integer)::bigint
                  ELSE 0 END AS rows
      FROM pg_class WHERE oid = 'pending_deliveries'::regclass) estimate,
     (SELECT (SELECT p.delivery_id
              FROM generate_series(0, 255) AS b (bucket) CROSS JOIN LATERAL (
                  SELECT q.delivery_id FROM pending_deliveries q
                  WHERE q.bucket = b.bucket ORDER BY q.delivery_id LIMIT 1) p
              ORDER BY p.delivery_id LIMIT 1) AS delivery_id) oldest

-- name: dead_letters
-- As far as `$1`, by an index that holds nothing else.
SELECT count(*) AS count FROM (SELECT FROM deliveries WHERE state = 'EXHAUSTED' LIMIT $1) d

-- name: oldest_due
-- One descent of the lane's index each.
SELECT l.subscription_uid, p.due_at
FROM unnest($1::smallint[], $2::uuid[]) AS l (bucket, subscription_uid) CROSS JOIN LATERAL (
    SELECT q.due_at FROM pending_deliveries q
    WHERE q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid
    ORDER BY q.due_at LIMIT 1) p
WHERE p.due_at <= hookline_now()

-- name: oldest_xmin
-- How many transactions lie between now and the oldest snapshot that any session holds: vacuum cannot remove what was deleted since.
SELECT greatest(
    (SELECT max(age(backend_xmin)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()),
    (SELECT max(age(transaction)) FROM pg_prepared_xacts),
    (SELECT max(greatest(age(xmin), age(catalog_xmin))) FROM pg_replication_slots), 0) AS age

-- name: unfrozen
-- Autovacuum freezes from 200 and 400 million on (autovacuum_freeze_max_age, autovacuum_multixact_freeze_max_age).
SELECT max(age(datfrozenxid)) AS transaction, max(mxid_age(datminmxid)) AS multixact FROM pg_database
