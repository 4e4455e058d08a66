-- History is appended to, then kept: its tuples are frozen by the vacuum that follows the inserts, so that no vacuum against
-- wraparound has to read a month of days again. New days are created with these settings (store/partitions.py).
DO $$
DECLARE
    day regclass;
BEGIN
    FOR day IN SELECT inhrelid::regclass FROM pg_inherits
               WHERE inhparent IN ('events'::regclass, 'deliveries'::regclass, 'attempts'::regclass) LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_freeze_min_age = 0, autovacuum_vacuum_insert_scale_factor = 0.1)', day);
    END LOOP;
END $$;

-- Keys come and go at the rate of events: by default a fifth of three days' keys would have to be dead before vacuum begins.
ALTER TABLE idempotency_keys SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 1
);
