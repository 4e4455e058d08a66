-- When an operator last retried a pending delivery: its retention counts from then. NULL for all others, whose rows are no
-- larger for it: nearly every row has a null bitmap already.

ALTER TABLE pending_deliveries ADD COLUMN retry_time timestamptz;
