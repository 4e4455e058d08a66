-- Reads of deliveries, for tenants and operators. Each reads the hot table and history in one statement: in one snapshot a
-- delivery that moves between them is seen exactly once. The details of a page (`details`) may be read afterwards: they never
-- change, or give the reason why a delivery is held at that moment.
--
-- All lists return the newest deliveries below `$1`, at most `$2`, in the states `$3`. A condition on parameters alone disables a
-- part of the union before it is executed; deliveries that did not succeed have an index of their own, which needs the condition
-- `state <> 'SUCCEEDED'`.

-- name: get
-- A delivery of the tenant `$1`, or of any tenant if `$1` is '-'. The id of a delivery contains its bucket (`$3`).
WITH owners AS MATERIALIZED (
    SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
    UNION ALL
    SELECT tenant_uid FROM tenants WHERE $1 = '-' AND deleted_at IS NULL
)
SELECT p.delivery_id, p.subscription_uid, p.event_id, 'PENDING' AS state, NULL AS state_reason, p.attempt_count, p.due_at,
       NULL::timestamptz AS finish_time, NULL AS url, NULL::smallint AS http_status, NULL::integer AS latency_us,
       NULL AS remote_address
FROM pending_deliveries p JOIN subscriptions s USING (subscription_uid) JOIN owners o USING (tenant_uid)
WHERE p.bucket = $3 AND p.delivery_id = $2
UNION ALL
SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time, d.url,
       d.http_status, d.latency_us, d.remote_address
FROM owners o CROSS JOIN LATERAL (
    SELECT * FROM deliveries d WHERE d.tenant_uid = o.tenant_uid AND d.delivery_id = $2 LIMIT 1) d

-- name: list_of_event
-- The deliveries of the event `$5` of the tenant `$4`, a range of ids from `$6` to `$7`; only of the subscriptions `$8` unless
-- that is NULL.
SELECT * FROM (
    SELECT p.delivery_id, p.subscription_uid, p.event_id, 'PENDING' AS state, NULL AS state_reason, p.attempt_count,
           p.due_at, NULL::timestamptz AS finish_time, NULL AS url, NULL::smallint AS http_status,
           NULL::integer AS latency_us, NULL AS remote_address
    FROM generate_series(0, 255) AS b (bucket) CROSS JOIN LATERAL (
        SELECT * FROM pending_deliveries q
        WHERE 'PENDING' = ANY ($3::text[]) AND q.bucket = b.bucket AND q.delivery_id BETWEEN $6 AND least($1::uuid, $7::uuid)
        OFFSET 0) p
    WHERE p.event_id = $5 AND p.delivery_id < $1 AND (p.subscription_uid = ANY ($8::uuid[]) OR $8 IS NULL)
    UNION ALL
    SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
           d.url, d.http_status, d.latency_us, d.remote_address
    FROM deliveries d
    WHERE d.tenant_uid = $4 AND d.delivery_id BETWEEN $6 AND $7 AND d.event_id = $5 AND d.delivery_id < $1
      AND d.state = ANY ($3::text[]) AND (d.subscription_uid = ANY ($8::uuid[]) OR $8 IS NULL)
) page
ORDER BY delivery_id DESC LIMIT $2

-- name: list_of_subscriptions
-- A lane with few pending rows is read completely; for one with many the bucket is scanned from its newest id, since most of its
-- rows are of this lane.
WITH lanes AS MATERIALIZED (
    SELECT s.bucket, s.subscription_uid, (
        SELECT count(*) FROM (
            SELECT FROM pending_deliveries p
            WHERE p.bucket = s.bucket AND p.subscription_uid = s.subscription_uid LIMIT 5000) seen) AS size
    FROM subscriptions s
    WHERE s.subscription_uid = ANY ($4::uuid[]) AND 'PENDING' = ANY ($3::text[])
)
SELECT * FROM (
    (SELECT p.delivery_id, p.subscription_uid, p.event_id, 'PENDING' AS state, NULL AS state_reason, p.attempt_count,
            p.due_at, NULL::timestamptz AS finish_time, NULL AS url, NULL::smallint AS http_status,
            NULL::integer AS latency_us, NULL AS remote_address
     FROM lanes l CROSS JOIN LATERAL (
         (SELECT * FROM (
              SELECT * FROM pending_deliveries q
              WHERE l.size BETWEEN 1 AND 4999 AND q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid
              OFFSET 0) few
          WHERE few.delivery_id < $1 ORDER BY few.delivery_id DESC LIMIT $2)
         UNION ALL
         (SELECT * FROM pending_deliveries q
          WHERE l.size = 5000 AND q.bucket = l.bucket AND q.delivery_id < $1
            AND q.subscription_uid IS NOT DISTINCT FROM l.subscription_uid  -- "=" would read the lane and sort it
          ORDER BY q.delivery_id DESC LIMIT $2)) p
     ORDER BY p.delivery_id DESC LIMIT $2)
    UNION ALL
    (SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
            d.url, d.http_status, d.latency_us, d.remote_address
     FROM unnest($4::uuid[]) AS w (subscription_uid) CROSS JOIN LATERAL (
         (SELECT * FROM deliveries h
          WHERE 'SUCCEEDED' = ANY ($3::text[]) AND h.subscription_uid = w.subscription_uid AND h.delivery_id < $1
            AND h.state = ANY ($3::text[])
          ORDER BY h.delivery_id DESC LIMIT $2)
         UNION ALL
         (SELECT * FROM deliveries h
          WHERE 'SUCCEEDED' <> ALL ($3::text[]) AND h.state <> 'SUCCEEDED' AND h.subscription_uid = w.subscription_uid
            AND h.delivery_id < $1 AND h.state = ANY ($3::text[])
          ORDER BY h.delivery_id DESC LIMIT $2)) d
     ORDER BY d.delivery_id DESC LIMIT $2)
) page
ORDER BY delivery_id DESC LIMIT $2

-- name: list_of_tenant
-- As `list_of_subscriptions`, for all lanes of the tenant `$4`.
WITH lanes AS MATERIALIZED (
    SELECT s.bucket, s.subscription_uid, (
        SELECT count(*) FROM (
            SELECT FROM pending_deliveries p
            WHERE p.bucket = s.bucket AND p.subscription_uid = s.subscription_uid LIMIT 5000) seen) AS size
    FROM subscriptions s
    WHERE s.tenant_uid = $4 AND 'PENDING' = ANY ($3::text[])
)
SELECT * FROM (
    (SELECT p.delivery_id, p.subscription_uid, p.event_id, 'PENDING' AS state, NULL AS state_reason, p.attempt_count,
            p.due_at, NULL::timestamptz AS finish_time, NULL AS url, NULL::smallint AS http_status,
            NULL::integer AS latency_us, NULL AS remote_address
     FROM lanes l CROSS JOIN LATERAL (
         (SELECT * FROM (
              SELECT * FROM pending_deliveries q
              WHERE l.size BETWEEN 1 AND 4999 AND q.bucket = l.bucket AND q.subscription_uid = l.subscription_uid
              OFFSET 0) few
          WHERE few.delivery_id < $1 ORDER BY few.delivery_id DESC LIMIT $2)
         UNION ALL
         (SELECT * FROM pending_deliveries q
          WHERE l.size = 5000 AND q.bucket = l.bucket AND q.delivery_id < $1
            AND q.subscription_uid IS NOT DISTINCT FROM l.subscription_uid
          ORDER BY q.delivery_id DESC LIMIT $2)) p
     ORDER BY p.delivery_id DESC LIMIT $2)
    UNION ALL
    (SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
            d.url, d.http_status, d.latency_us, d.remote_address
     FROM deliveries d
     WHERE 'SUCCEEDED' = ANY ($3::text[]) AND d.tenant_uid = $4 AND d.delivery_id < $1 AND d.state = ANY ($3::text[])
     ORDER BY d.delivery_id DESC LIMIT $2)
    UNION ALL
    (SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
            d.url, d.http_status, d.latency_us, d.remote_address
     FROM deliveries d
     WHERE 'SUCCEEDED' <> ALL ($3::text[]) AND d.state <> 'SUCCEEDED' AND d.tenant_uid = $4 AND d.delivery_id < $1
       AND d.state = ANY ($3::text[])
     ORDER BY d.delivery_id DESC LIMIT $2)
) page
ORDER BY delivery_id DESC LIMIT $2

-- name: list_of_all
-- Of all tenants, within a window of whole days from `$4` up to `$5` (store/windows.py). The index of successes begins with the
-- tenant, so this reads the newest delivery of each tenant that has one in these days, and more only of the `$2` tenants whose newest are
-- the newest, down to the last of those: no other delivery can be among the newest `$2`. Deliveries that did not succeed have an
-- index by state.
WITH RECURSIVE active AS (
    (SELECT d.tenant_uid FROM deliveries d
     WHERE 'SUCCEEDED' = ANY ($3::text[]) AND d.delivery_id >= $4::uuid AND d.delivery_id < $5::uuid
     ORDER BY d.tenant_uid LIMIT 1)
    UNION ALL
    SELECT (SELECT d.tenant_uid FROM deliveries d
            WHERE d.tenant_uid > a.tenant_uid AND d.delivery_id >= $4::uuid AND d.delivery_id < $5::uuid
            ORDER BY d.tenant_uid LIMIT 1)
    FROM active a WHERE a.tenant_uid IS NOT NULL
), newest AS MATERIALIZED (
    SELECT t.tenant_uid, n.delivery_id
    FROM active a JOIN tenants t ON t.tenant_uid = a.tenant_uid AND t.deleted_at IS NULL
    CROSS JOIN LATERAL (
        SELECT h.delivery_id FROM deliveries h
        WHERE h.tenant_uid = t.tenant_uid AND h.delivery_id >= $4::uuid AND h.delivery_id < $1::uuid
          AND h.state = ANY ($3::text[])
        ORDER BY h.delivery_id DESC LIMIT 1) n
    ORDER BY n.delivery_id DESC LIMIT $2
), bound AS MATERIALIZED (
    SELECT CASE WHEN count(*) = $2 THEN (array_agg(delivery_id ORDER BY delivery_id))[1] ELSE $4::uuid END AS delivery_id
    FROM newest
)
SELECT * FROM (
    (SELECT p.delivery_id, p.subscription_uid, p.event_id, 'PENDING' AS state, NULL AS state_reason, p.attempt_count,
            p.due_at, NULL::timestamptz AS finish_time, NULL AS url, NULL::smallint AS http_status,
            NULL::integer AS latency_us, NULL AS remote_address
     FROM generate_series(0, 255) AS b (bucket) CROSS JOIN LATERAL (
         SELECT * FROM pending_deliveries q
         WHERE 'PENDING' = ANY ($3::text[]) AND q.bucket = b.bucket AND q.delivery_id >= $4::uuid AND q.delivery_id < $1::uuid
         ORDER BY q.delivery_id DESC LIMIT $2) p
     ORDER BY p.delivery_id DESC LIMIT $2)
    UNION ALL
    (SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
            d.url, d.http_status, d.latency_us, d.remote_address
     FROM newest n CROSS JOIN bound b CROSS JOIN LATERAL (
         SELECT * FROM deliveries h
         WHERE h.tenant_uid = n.tenant_uid AND h.delivery_id >= b.delivery_id
           AND h.delivery_id >= $4::uuid AND h.delivery_id < $1::uuid AND h.state = ANY ($3::text[])
         ORDER BY h.delivery_id DESC LIMIT $2) d
     ORDER BY d.delivery_id DESC LIMIT $2)
    UNION ALL
    (SELECT d.delivery_id, d.subscription_uid, d.event_id, d.state, d.state_reason, d.attempt_count, NULL, d.finish_time,
            d.url, d.http_status, d.latency_us, d.remote_address
     FROM unnest($3::text[]) AS w (state) CROSS JOIN LATERAL (
         SELECT h.* FROM deliveries h
         WHERE 'SUCCEEDED' <> ALL ($3::text[]) AND h.state <> 'SUCCEEDED' AND h.state = w.state
           AND h.delivery_id >= $4::uuid AND h.delivery_id < $1::uuid
           AND EXISTS (SELECT FROM tenants t WHERE t.tenant_uid = h.tenant_uid AND t.deleted_at IS NULL)
         ORDER BY h.delivery_id DESC LIMIT $2) d
     ORDER BY d.delivery_id DESC LIMIT $2)
) page
ORDER BY delivery_id DESC LIMIT $2

-- name: details
-- The details of deliveries, in the order of the parameters (`place`, from 1 on). `$4` is the number of the attempt to show; 0: none.
SELECT w.place, t.tenant_id, s.subscription_id, s.state AS subscription_state, s.deleted_at IS NOT NULL AS is_orphan,
       hookline_now() AS read_time,
       s.ordered AND (
           SELECT p.ordinal > (
               SELECT q.ordinal FROM pending_deliveries q
               WHERE q.bucket = p.bucket AND q.subscription_uid = p.subscription_uid AND q.key_hash = p.key_hash
               ORDER BY q.ordinal LIMIT 1)
           FROM pending_deliveries p WHERE p.bucket = s.bucket AND p.delivery_id = w.delivery_id) IS TRUE AS is_behind,
       e.type AS event_type, a.number, a.outcome, a.start_time, a.http_status, a.latency_us, a.url, a.remote_address,
       a.error, a.response_excerpt, a.trace_id, e.trace_context
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::smallint[])
     WITH ORDINALITY AS w (delivery_id, subscription_uid, event_id, number, place)
JOIN subscriptions s ON s.subscription_uid = w.subscription_uid
JOIN tenants t ON t.tenant_uid = s.tenant_uid
LEFT JOIN LATERAL (
    SELECT e.type, e.trace_context FROM events e
    WHERE e.tenant_uid = s.tenant_uid AND e.event_id = w.event_id LIMIT 1) e ON true
LEFT JOIN LATERAL (
    SELECT * FROM attempts a WHERE a.delivery_id = w.delivery_id AND a.number = w.number AND w.number > 0 LIMIT 1) a ON true
ORDER BY w.place

-- name: attempts
-- The attempts of one delivery with numbers above `$2`, oldest first.
SELECT number, outcome, start_time, http_status, latency_us, url, remote_address, error, response_excerpt, trace_id
FROM attempts WHERE delivery_id = $1 AND number > $2
ORDER BY number LIMIT $3

-- name: tenant
SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL

-- name: event_owner
-- The tenant of an event, if the tenant `$1` (or any tenant, '-') has it.
SELECT t.tenant_uid
FROM (SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
      UNION ALL
      SELECT tenant_uid FROM tenants WHERE $1 = '-' AND deleted_at IS NULL) t
CROSS JOIN LATERAL (
    SELECT FROM events e WHERE e.tenant_uid = t.tenant_uid AND e.event_id = $2 LIMIT 1) e

-- name: subscriptions_named
-- A recreated subscription does not inherit deliveries: deleted subscriptions of this name count only while no live one has it.
WITH live AS (
    SELECT s.subscription_uid FROM subscriptions s JOIN tenants t USING (tenant_uid)
    WHERE t.tenant_id = $1 AND t.deleted_at IS NULL AND s.subscription_id = $2 AND s.deleted_at IS NULL
)
SELECT subscription_uid FROM live
UNION ALL
SELECT s.subscription_uid FROM subscriptions s JOIN tenants t USING (tenant_uid)
WHERE NOT EXISTS (SELECT FROM live)
  AND t.tenant_id = $1 AND t.deleted_at IS NULL AND s.subscription_id = $2 AND s.deleted_at IS NOT NULL
