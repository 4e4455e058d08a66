-- The audit log. Changes insert their draft in their own statements (`audited`); the schema makes entries of drafts.

-- name: add_read
-- A privileged read, of a live tenant or of none.
INSERT INTO audit_drafts (tenant_uid, entry)
SELECT (SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL), $2

-- name: add
INSERT INTO audit_drafts (tenant_uid, entry) SELECT * FROM unnest($1::uuid[], $2::jsonb[])

-- name: find_tenant
SELECT tenant_uid FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL

-- name: list_of_tenant
-- Newest first, before $2; at most $3, and no more than fit into $4 bytes, but one at least.
WITH found AS MATERIALIZED (
    SELECT * FROM audit_entries WHERE tenant_uid = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3
), weighed AS (
    SELECT *, count(*) OVER () AS found, row_number() OVER newest AS place,
           sum(octet_length(before_json) + octet_length(after_json)) OVER newest AS total_bytes
    FROM found WINDOW newest AS (ORDER BY sequence DESC)
)
SELECT * FROM weighed WHERE place = 1 OR total_bytes <= $4 ORDER BY sequence DESC

-- name: list_of_all
WITH found AS MATERIALIZED (
    SELECT * FROM audit_entries WHERE sequence < $1 ORDER BY sequence DESC LIMIT $2
), weighed AS (
    SELECT *, count(*) OVER () AS found, row_number() OVER newest AS place,
           sum(octet_length(before_json) + octet_length(after_json)) OVER newest AS total_bytes
    FROM found WINDOW newest AS (ORDER BY sequence DESC)
)
SELECT * FROM weighed WHERE place = 1 OR total_bytes <= $3 ORDER BY sequence DESC

-- name: head
SELECT sequence, hash FROM audit_head

-- name: ends
-- Where the log begins and ends, in one snapshot: pruning may run meanwhile.
SELECT h.sequence, h.hash, (SELECT min(sequence) FROM audit_entries) AS first,
       (SELECT note FROM audit_pruned) AS pruned_note
FROM audit_head h

-- name: pruned_note
SELECT note FROM audit_pruned

-- name: state_pruned
-- The beginning never moves back: a node that was slow must not replace a later statement.
INSERT INTO audit_pruned (sequence, note) VALUES ($1, $2)
ON CONFLICT (is_only) DO UPDATE SET sequence = excluded.sequence, note = excluded.note
WHERE audit_pruned.sequence < excluded.sequence
RETURNING sequence

-- name: delete_entries
DELETE FROM audit_entries WHERE sequence <= $1

-- name: delete_checkpoints
-- The checkpoint of the entry itself stays: where no entry is left, it is the newest one.
DELETE FROM audit_checkpoints WHERE sequence < $1

-- name: walk
-- Oldest first, behind $1, up to $2.
SELECT * FROM audit_entries WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3

-- name: extent
SELECT h.sequence, h.hash, (SELECT min(sequence) FROM audit_entries) AS first,
       (SELECT max(sequence) FROM audit_entries) AS last, (SELECT count(*) FROM audit_drafts) AS drafts,
       (SELECT note FROM audit_pruned) AS pruned_note
FROM audit_head h

-- name: missing_triggers
SELECT wanted.trigger || ' on ' || wanted.relation AS name
FROM (VALUES ('audit_append', 'audit_drafts', 'OA'), ('audit_refuse', 'audit_entries', 'A'),
             ('audit_refuse', 'audit_head', 'A'), ('audit_refuse', 'audit_checkpoints', 'A'),
             ('audit_refuse', 'audit_pruned', 'A'), ('audit_refuse_return', 'audit_pruned', 'A'),
             ('audit_refuse_deletion', 'audit_entries', 'A'), ('audit_refuse_deletion', 'audit_checkpoints', 'A'))
    AS wanted (trigger, relation, enabled)
WHERE NOT EXISTS (
    SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass(wanted.relation) AND t.tgname = wanted.trigger
        AND strpos(wanted.enabled, t.tgenabled::text) > 0
)
ORDER BY name
