-- What is pending for a later moment, by that moment: retries, and first attempts that are delayed. Their version is above 0; a
-- row that is due as it is published has version 0 and costs nothing here. Publishers wait while the index is built.

CREATE INDEX pending_later ON pending_deliveries (bucket, due_at) WHERE version > 0;
