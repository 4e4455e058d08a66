-- Ownership: nodes and their buckets. Rules 11 to 13 of the data path.

-- name: register
INSERT INTO nodes (node_id, lease_until, hostname, version, place)
VALUES ($1, clock_timestamp() + make_interval(secs => $2), $3, $4, $5)

-- name: renew
-- No row: this node was expired; it drops everything and registers again under a new id.
UPDATE nodes SET lease_until = clock_timestamp() + make_interval(secs => $2), address = $3, is_leaving = $4 WHERE node_id = $1
RETURNING extract(epoch FROM hookline_now())::float8 AS database_s,
          pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS flushed_bytes

-- name: survey
-- The owner of each bucket, whether it is overdue, how many nodes share, and when the first lease of another node ends.
SELECT b.bucket, b.node_id, b.epoch, n.lease_until <= clock_timestamp() AS overdue, n.node_id IS NULL AS vacant,
       all_nodes.*
FROM bucket_leases b LEFT JOIN nodes n USING (node_id),
     (SELECT count(*) FILTER (WHERE lease_until > clock_timestamp() AND NOT is_leaving) AS sharing_nodes,
             count(*) FILTER (WHERE lease_until > clock_timestamp() AND NOT is_leaving AND node_id <> $1) AS others,
             extract(epoch FROM min(lease_until) FILTER (WHERE node_id <> $1 AND lease_until > clock_timestamp())
                                - clock_timestamp())::float8 AS next_end_s
      FROM nodes) all_nodes

-- name: expire
-- Fails to delete a node that renewed meanwhile. One whose record batch is being written holds its row: then the next
-- heartbeat tries again, because waiting here could cost the waiting node its own lease.
DELETE FROM nodes WHERE node_id = (
    SELECT node_id FROM nodes WHERE node_id = $1 AND lease_until < clock_timestamp() FOR UPDATE SKIP LOCKED)
RETURNING node_id

-- name: expire_all
DELETE FROM nodes

-- name: expire_predecessor
-- The supervisor has seen the process end, so no node needs to wait for its lease.
DELETE FROM nodes WHERE node_id IN (SELECT node_id FROM nodes WHERE place = $1 FOR UPDATE SKIP LOCKED)

-- name: take
-- Buckets whose owner is gone, unless another node took them first.
UPDATE bucket_leases b SET node_id = $1, epoch = b.epoch + 1
FROM (SELECT * FROM unnest($2::smallint[], $3::bigint[]) AS w (bucket, epoch) ORDER BY bucket) w
WHERE b.bucket = w.bucket AND b.epoch = w.epoch
  AND NOT EXISTS (SELECT FROM nodes n WHERE n.node_id = b.node_id)
RETURNING b.bucket

-- name: give
-- A clean hand-over: nothing of these buckets is in flight any more.
UPDATE bucket_leases SET node_id = NULL, epoch = epoch + 1 WHERE node_id = $1 AND bucket = ANY ($2::smallint[])
RETURNING bucket

-- name: leave
DELETE FROM nodes WHERE node_id = $1
