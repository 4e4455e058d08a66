-- The change log is read by snapshots, in pages in the order of (xid, change_id). A statement that changes many deliveries of a
-- lane logs one change of the kind LANE. NOT VALID: the rows that are there are of the kinds before.
ALTER TABLE change_log DROP CONSTRAINT change_log_kind_check;
ALTER TABLE change_log ADD CONSTRAINT change_log_kind_check
    CHECK (kind IN ('SUBSCRIPTION', 'DELIVERY', 'LANE', 'EVENT_TYPE')) NOT VALID;
CREATE INDEX change_log_in_order ON change_log (xid, change_id);
DROP INDEX change_log_by_xid;
ALTER TABLE change_log SET (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 1
);
