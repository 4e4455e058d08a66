-- Reads of events, for tenants and operators. `$1` is a tenant's id, or '-' for all tenants.

-- name: get
-- Looked up by key in each tenant: there is no index on the id alone, since such calls are rare.
SELECT t.tenant_id, e.*
FROM (SELECT tenant_uid, tenant_id FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
      UNION ALL
      SELECT tenant_uid, tenant_id FROM tenants WHERE $1 = '-' AND deleted_at IS NULL) t
CROSS JOIN LATERAL (
    SELECT * FROM events e WHERE e.tenant_uid = t.tenant_uid AND e.event_id = $2 LIMIT 1) e

-- name: list
-- Events below `$2`, newest first, at most `$3`; with data (`$4`) also at most `$5` bytes of data, but at least one event. `found`
-- is the count before the limit on bytes.
WITH found AS MATERIALIZED (
    SELECT t.tenant_id, e.*
    FROM tenants t CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.tenant_uid = t.tenant_uid AND e.event_id < $2
        ORDER BY e.event_id DESC LIMIT $3) e
    WHERE t.tenant_id = $1 AND t.deleted_at IS NULL
), weighed AS (
    SELECT *, count(*) OVER () AS found, row_number() OVER newest AS place,
           sum(octet_length(data)) OVER newest AS total_bytes
    FROM found WINDOW newest AS (ORDER BY event_id DESC)
)
SELECT tenant_id, tenant_uid, event_id, occur_time, event_type_revision, is_json, type, source, content_type, subject,
       external_id, data_schema, idempotency_key, ordering_key, attributes, CASE WHEN $4 THEN data ELSE '' END AS data,
       trace_context, found
FROM weighed
WHERE place = 1 OR NOT $4 OR total_bytes <= $5
ORDER BY event_id DESC

-- name: newest_of_all
-- The ids of the newest events of all tenants, within a window of whole days from `$3` up to `$4` (store/windows.py). Works as
-- list_of_all in deliveries.sql.
WITH RECURSIVE active AS (
    (SELECT e.tenant_uid FROM events e
     WHERE e.event_id >= $3::uuid AND e.event_id < $4::uuid ORDER BY e.tenant_uid LIMIT 1)
    UNION ALL
    SELECT (SELECT e.tenant_uid FROM events e
            WHERE e.tenant_uid > a.tenant_uid AND e.event_id >= $3::uuid AND e.event_id < $4::uuid
            ORDER BY e.tenant_uid LIMIT 1)
    FROM active a WHERE a.tenant_uid IS NOT NULL
), newest AS MATERIALIZED (
    SELECT t.tenant_uid, n.event_id
    FROM active a JOIN tenants t ON t.tenant_uid = a.tenant_uid AND t.deleted_at IS NULL
    CROSS JOIN LATERAL (
        SELECT e.event_id FROM events e
        WHERE e.tenant_uid = t.tenant_uid AND e.event_id >= $3::uuid AND e.event_id < $1::uuid
        ORDER BY e.event_id DESC LIMIT 1) n
    ORDER BY n.event_id DESC LIMIT $2
), bound AS MATERIALIZED (
    SELECT CASE WHEN count(*) = $2 THEN (array_agg(event_id ORDER BY event_id))[1] ELSE $3::uuid END AS event_id FROM newest
)
SELECT e.tenant_uid, e.event_id
FROM newest n CROSS JOIN bound b CROSS JOIN LATERAL (
    SELECT e.tenant_uid, e.event_id FROM events e
    WHERE e.tenant_uid = n.tenant_uid AND e.event_id >= b.event_id AND e.event_id >= $3::uuid AND e.event_id < $1::uuid
    ORDER BY e.event_id DESC LIMIT $2) e
ORDER BY e.event_id DESC LIMIT $2

-- name: read
-- The events `$2` of the tenants `$1`, newest first; as in `list`, at most `$4` bytes of data.
WITH found AS MATERIALIZED (
    SELECT t.tenant_id, e.*
    FROM unnest($1::uuid[], $2::uuid[]) AS w (tenant_uid, event_id) JOIN tenants t ON t.tenant_uid = w.tenant_uid
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.tenant_uid = w.tenant_uid AND e.event_id = w.event_id LIMIT 1) e
), weighed AS (
    SELECT *, count(*) OVER () AS found, row_number() OVER newest AS place,
           sum(octet_length(data)) OVER newest AS total_bytes
    FROM found WINDOW newest AS (ORDER BY event_id DESC)
)
SELECT tenant_id, tenant_uid, event_id, occur_time, event_type_revision, is_json, type, source, content_type, subject,
       external_id, data_schema, idempotency_key, ordering_key, attributes, CASE WHEN $3 THEN data ELSE '' END AS data,
       trace_context, found
FROM weighed
WHERE place = 1 OR NOT $3 OR total_bytes <= $4
ORDER BY event_id DESC

-- name: tenant
SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
