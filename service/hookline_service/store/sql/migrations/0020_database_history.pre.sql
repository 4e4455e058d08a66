-- Which line of commits this database is on. A standby that is promoted has its primary's row and another timeline: the
-- first session that finds the two apart draws a new id. What a node holds in memory belongs to the id under which it was
-- read, so that an epoch or a transaction number that comes a second time after a failover is not taken for the first.
CREATE TABLE database_history (
    is_only           boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    history_id        uuid NOT NULL,
    system_identifier bigint NOT NULL,
    timeline          integer NOT NULL,
    begin_time        timestamptz NOT NULL
);
INSERT INTO database_history (history_id, system_identifier, timeline, begin_time)
SELECT gen_random_uuid(), system_identifier,
       ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer, clock_timestamp()
FROM pg_control_system();
