-- Which days a list of all tenants walks through.

-- name: days
-- Events are the last to be dropped of a day.
SELECT (hookline_now() AT TIME ZONE 'UTC')::date AS today, min(c.relname::text) AS oldest
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass
