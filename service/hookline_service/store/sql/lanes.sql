-- Lanes: reads of the hot table. Rules 14 to 18 of the data path.

-- name: heads
-- The earliest pending row of each lane of some buckets, where it is due and its subscription is ACTIVE or deleted: no lane is
-- created in memory for a paused or disabled subscription. One index descent for each lane; at most $3 lanes of a bucket are
-- visited, beginning after $2. The last of $3 lanes is returned in any case, since the walk continues after it.
SELECT w.bucket, h.subscription_uid, h.delivery_id, s.tenant_uid, h.n = $3 AS is_last
FROM unnest($1::smallint[], $2::uuid[]) AS w (bucket, after_uid) CROSS JOIN LATERAL (
    WITH RECURSIVE head AS (
        (SELECT 1 AS n, p.subscription_uid, p.due_at, p.delivery_id FROM pending_deliveries p
         WHERE p.bucket = w.bucket AND p.subscription_uid > w.after_uid
         ORDER BY p.bucket, p.subscription_uid, p.due_at LIMIT 1)
        UNION ALL
        SELECT head.n + 1, n.* FROM head CROSS JOIN LATERAL (
            SELECT p.subscription_uid, p.due_at, p.delivery_id FROM pending_deliveries p
            WHERE p.bucket = w.bucket AND p.subscription_uid > head.subscription_uid
            ORDER BY p.bucket, p.subscription_uid, p.due_at LIMIT 1) n
        WHERE head.n < $3
    ) SELECT * FROM head) h
LEFT JOIN LATERAL (
    SELECT s.tenant_uid FROM subscriptions s
    WHERE h.due_at <= hookline_now() AND s.subscription_uid = h.subscription_uid
      AND (s.state = 'ACTIVE' OR s.deleted_at IS NOT NULL) OFFSET 0) s ON true
WHERE s.tenant_uid IS NOT NULL OR h.n = $3

-- name: arrivals
-- Arrivals of some buckets: rows published since $2 (the first id of that time), and rows with a later due time that came due
-- since $3. At most $4 rows of each kind and bucket are read. The earliest row of each lane is returned, and the last of $4
-- rows in any case: there may be more then.
SELECT w.bucket, a.subscription_uid, a.delivery_id, s.tenant_uid, a.is_last
FROM unnest($1::smallint[]) AS w (bucket) CROSS JOIN LATERAL (
    SELECT DISTINCT ON (c.subscription_uid, c.is_last) c.* FROM (
        (SELECT p.subscription_uid, p.delivery_id, p.due_at, row_number() OVER () = $4 AS is_last
         FROM (SELECT q.subscription_uid, q.delivery_id, q.due_at FROM pending_deliveries q
               WHERE q.bucket = w.bucket AND q.delivery_id >= $2 ORDER BY q.bucket, q.delivery_id LIMIT $4) p)
        UNION ALL
        (SELECT p.subscription_uid, p.delivery_id, p.due_at, row_number() OVER () = $4
         FROM (SELECT q.subscription_uid, q.delivery_id, q.due_at FROM pending_deliveries q
               WHERE q.bucket = w.bucket AND q.version > 0 AND q.due_at BETWEEN $3 AND hookline_now()
               ORDER BY q.bucket, q.due_at LIMIT $4) p)) c
    WHERE c.due_at <= hookline_now() OR c.is_last
    ORDER BY c.subscription_uid, c.is_last, c.due_at) a
LEFT JOIN LATERAL (
    SELECT s.tenant_uid FROM subscriptions s
    WHERE a.due_at <= hookline_now() AND s.subscription_uid = a.subscription_uid
      AND (s.state = 'ACTIVE' OR s.deleted_at IS NOT NULL) OFFSET 0) s ON true
WHERE s.tenant_uid IS NOT NULL OR a.is_last

-- name: tenants
SELECT subscription_uid, tenant_uid FROM subscriptions WHERE subscription_uid = ANY ($1::uuid[])

-- name: refill
-- Due rows of some lanes that are not in memory, the earliest of each lane first; never by a cursor. The ids in memory are
-- hashed (NOT IN a subquery): `<> ALL` would compare each row with each id. OFFSET 0 keeps the planner from walking a
-- tenant's events before its pending rows. Data of more than $6 bytes is read by `events`, where it fits into memory.
SELECT l.subscription_uid, p.*, l.tenant_uid, l.tenant_id, e.*
FROM (SELECT w.*, t.tenant_id
      FROM unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::integer[]) AS w (bucket, subscription_uid, tenant_uid, wanted)
      JOIN tenants t ON t.tenant_uid = w.tenant_uid OFFSET 0) l
CROSS JOIN LATERAL (
    SELECT q.delivery_id, q.event_id, q.version, q.attempt_count, q.attempts_base, q.attempts_until
    FROM pending_deliveries q
    WHERE q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid AND q.due_at <= hookline_now()
      AND q.delivery_id NOT IN (SELECT unnest($5::uuid[]))
    ORDER BY q.due_at LIMIT l.wanted) p
CROSS JOIN LATERAL (
    SELECT octet_length(e.data) AS data_bytes, e.occur_time, e.event_type_revision, e.is_json, e.type, e.source,
           e.content_type, e.subject, e.external_id, e.data_schema, e.idempotency_key, e.ordering_key, e.attributes,
           CASE WHEN octet_length(e.data) <= $6 THEN e.data END AS data, e.trace_context
    FROM events e WHERE e.tenant_uid = l.tenant_uid AND e.event_id = p.event_id OFFSET 0) e

-- name: events
SELECT t.tenant_id, e.*
FROM unnest($1::uuid[], $2::uuid[]) AS w (tenant_uid, event_id)
CROSS JOIN LATERAL (
    SELECT e.tenant_uid, e.event_id, e.occur_time, e.event_type_revision, e.is_json, e.type, e.source, e.content_type,
           e.subject, e.external_id, e.data_schema, e.idempotency_key, e.ordering_key, e.attributes, e.data, e.trace_context
    FROM events e WHERE e.tenant_uid = w.tenant_uid AND e.event_id = w.event_id OFFSET 0) e
JOIN tenants t ON t.tenant_uid = e.tenant_uid

-- name: current_snapshot
SELECT pg_current_snapshot()::text

-- name: changes
-- Up to $5 changes that the snapshot $2 (NULL: the statement's own) sees and the snapshot $1 does not, after ($3, $4) in the
-- order of (xid, change_id). The changes that a snapshot does not see are two ranges of the index: those of transactions that
-- it lists as in progress, and those from its xmax on. So no change is read twice, however long a transaction stays open.
SELECT s.snapshot, c.xid::text AS xid, c.change_id, c.kind, c.bucket, c.subscription_uid, c.delivery_id,
       (SELECT p.key_hash FROM pending_deliveries p
        WHERE p.bucket = c.bucket AND p.delivery_id = c.delivery_id) AS key_hash
FROM (SELECT pg_current_snapshot()::text AS snapshot) s
LEFT JOIN LATERAL (
    (SELECT l.*
     FROM (SELECT pg_snapshot_xip($1::text::pg_snapshot) AS xid) open CROSS JOIN LATERAL (
         SELECT * FROM change_log o
         WHERE (o.xid, o.change_id) > (open.xid, CASE WHEN open.xid = $3::text::xid8 THEN $4::bigint ELSE 0 END)
           AND (o.xid, o.change_id) <= (open.xid, 9223372036854775807)
           AND ($2::text IS NULL OR pg_visible_in_snapshot(o.xid, $2::text::pg_snapshot))
         ORDER BY o.xid, o.change_id LIMIT $5) l
     WHERE open.xid >= $3::text::xid8
     ORDER BY l.xid, l.change_id LIMIT $5)
    UNION ALL
    (SELECT l.*
     FROM (SELECT pg_snapshot_xmax($1::text::pg_snapshot) AS xid) next CROSS JOIN LATERAL (
         SELECT * FROM change_log n
         WHERE (n.xid, n.change_id) > (CASE WHEN $3::text::xid8 >= next.xid THEN $3::text::xid8 ELSE next.xid END,
                                       CASE WHEN $3::text::xid8 >= next.xid THEN $4::bigint ELSE 0 END)
           AND ($2::text IS NULL OR pg_visible_in_snapshot(n.xid, $2::text::pg_snapshot))
         ORDER BY n.xid, n.change_id LIMIT $5) l
     ORDER BY l.xid, l.change_id)
    ORDER BY xid, change_id LIMIT $5) c ON true
ORDER BY c.xid, c.change_id

-- name: cancel_deleted
-- Cancels a batch of a deleted subscription's pending deliveries, by the owner of its bucket. Selected in the order of the
-- lane's index, so that a batch reads its own rows alone; deleted in the order of the primary key, as all writes are.
WITH cancelled AS (
    DELETE FROM pending_deliveries p
    USING (SELECT * FROM (SELECT q.bucket, q.delivery_id FROM pending_deliveries q
                          WHERE q.bucket = $1 AND q.subscription_uid = $2 ORDER BY q.due_at LIMIT $3) first
           ORDER BY bucket, delivery_id) w
    WHERE p.bucket = w.bucket AND p.delivery_id = w.delivery_id
    RETURNING p.*
)
INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id, finish_time, version, attempt_count,
                        attempts_base, attempts_until, state, state_reason)
SELECT s.tenant_uid, c.delivery_id, c.subscription_uid, c.event_id, hookline_now(), c.version + 1, c.attempt_count,
       c.attempts_base, c.attempts_until, $4, 'SUBSCRIPTION_DELETED'
FROM cancelled c JOIN subscriptions s USING (subscription_uid)
RETURNING delivery_id

-- name: ping
SELECT
