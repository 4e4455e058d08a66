-- Checkpoints of the audit log, and the key that signs them.

-- name: begin
-- The key and the first checkpoint, or neither: where there is a key, checkpoints without one were removed.
WITH made AS (
    INSERT INTO deployment_keys (purpose, sealed) VALUES ($1, $2) ON CONFLICT (purpose) DO NOTHING RETURNING 1
)
INSERT INTO audit_checkpoints (sequence, note) SELECT 0, $3 FROM made ON CONFLICT DO NOTHING

-- name: latest
SELECT sequence, note FROM audit_checkpoints ORDER BY sequence DESC LIMIT 1

-- name: add
-- Several nodes sign the same head: the first counts.
INSERT INTO audit_checkpoints (sequence, note) VALUES ($1, $2) ON CONFLICT (sequence) DO NOTHING

-- name: walk
-- In order, from $1 on.
SELECT sequence, note FROM audit_checkpoints WHERE sequence >= $1 ORDER BY sequence LIMIT $2
