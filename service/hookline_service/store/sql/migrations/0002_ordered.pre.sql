-- Ordered subscriptions. A row of theirs names its ordering key by a hash (service/hookline_service/domain/ordering.py); rows of others do
-- not, and cost no byte more than before. Both columns are added without a rewrite; the index is built over nothing.

ALTER TABLE subscriptions ADD COLUMN ordered boolean NOT NULL DEFAULT false;

ALTER TABLE pending_deliveries ADD COLUMN key_hash bigint CHECK (key_hash >= 0);
-- The first of each key is one descent, and the first of all keys one for each.
CREATE INDEX pending_by_key ON pending_deliveries (bucket, subscription_uid, key_hash, ordinal) WHERE key_hash IS NOT NULL;
