-- Connecting: what a new session asks before anything else runs in it.

-- name: check_server
-- What the server is, and whether another client's session was handed over as it was left: then a pooler shares sessions.
SELECT current_setting('server_version_num')::int / 10000 AS version,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only,
       array(SELECT name FROM pg_settings
             WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name) AS unsafe,
       nullif(current_setting('hookline.session', true), '') IS NOT NULL AS is_shared

-- name: set
SELECT s.name, set_config(s.name, s.value, false) AS value FROM unnest($1::text[], $2::text[]) AS s (name, value)

-- name: read_settings
SELECT s.name, current_setting(s.name, true) AS value FROM unnest($1::text[]) AS s (name)

-- name: read_history
-- The timeline is that of the log that is being written: the control file has the new one only after a checkpoint.
SELECT h.history_id, s.system_identifier, s.timeline,
       h.system_identifier = s.system_identifier AND h.timeline = s.timeline AS is_current,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS flushed_bytes
FROM database_history h
CROSS JOIN (SELECT system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer AS timeline
            FROM pg_control_system()) s

-- name: begin_history
-- Of several sessions that find the same history ended, one begins the next.
UPDATE database_history SET history_id = gen_random_uuid(), system_identifier = $2, timeline = $3, begin_time = clock_timestamp()
WHERE history_id = $1
