-- The range of days of a list of all tenants.

-- name: days
-- The events of a day are dropped last.
SELECT (hookline_now() AT TIME ZONE 'UTC')::date AS today, min(c.relname::text) AS oldest
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass
