-- Event types. Every change is one statement that also writes the change log, for every node, and an audit draft.

-- name: create
-- Nothing where the name is taken, be it archived.
WITH created AS (
    INSERT INTO event_types (name, description, json_schema, example_json, create_time, update_time)
    VALUES ($1, $2, $3, $4, hookline_now(), hookline_now())
    ON CONFLICT (name) DO NOTHING
    RETURNING *
), logged AS (
    INSERT INTO change_log (kind) SELECT 'EVENT_TYPE' FROM created
), audited AS (
    INSERT INTO audit_drafts (entry) SELECT $5 FROM created
)
SELECT * FROM created

-- name: get
SELECT * FROM event_types WHERE name = $1

-- name: list
SELECT * FROM event_types WHERE (create_time, name) < ($1::timestamptz, $2::text)
ORDER BY create_time DESC, name DESC LIMIT $3

-- name: heads
SELECT name, state, revision, json_schema <> '' AS has_schema FROM event_types

-- name: schema
SELECT revision, json_schema FROM event_types WHERE name = $1

-- name: update
-- Over the version that was decided on. Another schema is another revision.
WITH changed AS (
    UPDATE event_types SET
        description = $3, json_schema = $4, example_json = $5, state = $6,
        revision = revision + (json_schema <> $4)::integer, version = version + 1, update_time = hookline_now()
    WHERE name = $1 AND version = $2
    RETURNING *
), logged AS (
    INSERT INTO change_log (kind) SELECT 'EVENT_TYPE' FROM changed
), audited AS (
    INSERT INTO audit_drafts (entry) SELECT $7 FROM changed
)
SELECT * FROM changed
