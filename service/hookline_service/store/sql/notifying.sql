-- Notifications between nodes. Nothing depends on them: the heartbeat, the sweep and the change log find what is lost.

-- name: no_flush
SET synchronous_commit = off

-- name: ping
SELECT

-- name: notify
SELECT pg_notify(m.channel, m.payload) FROM unnest($1::text[], $2::text[]) AS m (channel, payload)
