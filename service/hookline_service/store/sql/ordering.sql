-- Ordering: what lanes of ordered subscriptions read of the hot table. Rule 17 of the data path. Only the earliest row of a
-- key can be sent; however many wait behind it, none of them is looked at.

-- name: heads
-- The earliest pending row of each of these keys, and how long until it is due.
SELECT w.subscription_uid, p.*, e.data_bytes
FROM unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::bigint[]) AS w (bucket, subscription_uid, tenant_uid, key_hash)
CROSS JOIN LATERAL (
    SELECT q.key_hash, q.delivery_id, q.event_id, q.version, q.attempt_count, q.attempts_base, q.attempts_until,
           extract(epoch FROM q.due_at - hookline_now())::float8 AS due_in_s
    FROM pending_deliveries q
    WHERE q.bucket = w.bucket AND q.subscription_uid = w.subscription_uid AND q.key_hash = w.key_hash
    ORDER BY q.ordinal LIMIT 1) p
CROSS JOIN LATERAL (
    SELECT octet_length(e.data) AS data_bytes FROM events e
    WHERE e.tenant_uid = w.tenant_uid AND e.event_id = p.event_id OFFSET 0) e

-- name: page
-- The same for all keys of some lanes, from a hash on: those that are due and not in memory ($7, $8), up to what each lane
-- wants. At most $6 keys of a lane are walked through, one descent each; the last of them is returned in any case, and a row
-- of NULLs where the walk came to the end.
SELECT l.subscription_uid, h.*, e.data_bytes
FROM unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::integer[], $5::bigint[])
     AS l (bucket, subscription_uid, tenant_uid, wanted, from_hash)
CROSS JOIN LATERAL (
    WITH RECURSIVE head AS (
        (SELECT 1 AS n, q.key_hash, q.delivery_id, q.event_id, q.version, q.attempt_count, q.attempts_base, q.attempts_until,
                q.due_at
         FROM pending_deliveries q
         WHERE q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid AND q.key_hash >= l.from_hash
         ORDER BY q.bucket, q.subscription_uid, q.key_hash, q.ordinal LIMIT 1)
        UNION ALL
        SELECT head.n + 1, n.* FROM head LEFT JOIN LATERAL (
            SELECT q.key_hash, q.delivery_id, q.event_id, q.version, q.attempt_count, q.attempts_base, q.attempts_until,
                   q.due_at
            FROM pending_deliveries q
            WHERE q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid AND q.key_hash > head.key_hash
            ORDER BY q.bucket, q.subscription_uid, q.key_hash, q.ordinal LIMIT 1) n ON true
        WHERE head.key_hash IS NOT NULL AND head.n < $6
    ), seen AS (
        SELECT head.*, due_at <= hookline_now()
               AND (l.subscription_uid, key_hash) NOT IN (SELECT * FROM unnest($7::uuid[], $8::bigint[])) AS is_free
        FROM head
    )
    SELECT key_hash, delivery_id, event_id, version, attempt_count, attempts_base, attempts_until, is_free
    FROM seen WHERE is_free OR n = $6 OR key_hash IS NULL
    LIMIT l.wanted) h
LEFT JOIN LATERAL (
    SELECT octet_length(e.data) AS data_bytes FROM events e
    WHERE h.is_free AND e.tenant_uid = l.tenant_uid AND e.event_id = h.event_id OFFSET 0) e ON true
