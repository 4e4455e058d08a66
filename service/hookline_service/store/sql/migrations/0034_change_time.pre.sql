-- A change is kept for an hour from when it was written, not from when its transaction began: one that waited for a lock that
-- long would be old when it commits, and could be deleted before any node has read it.
ALTER TABLE change_log ALTER COLUMN create_time SET DEFAULT clock_timestamp();
