-- Events, read by tenants and operators. `$1` is a tenant's id, or '-' for all tenants.

-- name: get
-- By its key in every tenant that is asked: an id alone has no index, and needs none for so few calls.
SELECT t.tenant_id, e.*
FROM (SELECT tenant_uid, tenant_id FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
      UNION ALL
      SELECT tenant_uid, tenant_id FROM tenants WHERE $1 = '-' AND deleted_at IS NULL) t
CROSS JOIN LATERAL (
    SELECT * FROM events e WHERE e.tenant_uid = t.tenant_uid AND e.event_id = $2 LIMIT 1) e

-- name: list
-- Newest first, before `$2`; at most `$3`, and no more than fit into `$5` bytes of data where data is asked for (`$4`),
-- but one at least. `found` counts what there was before the bytes were looked at.
WITH found AS MATERIALIZED (
    SELECT t.tenant_id, e.*
    FROM (SELECT tenant_uid, tenant_id FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
          UNION ALL
          SELECT tenant_uid, tenant_id FROM tenants WHERE $1 = '-' AND deleted_at IS NULL) t
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.tenant_uid = t.tenant_uid AND e.event_id < $2
        ORDER BY e.event_id DESC LIMIT $3) e
    ORDER BY e.event_id DESC LIMIT $3
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

-- name: tenant
SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL
