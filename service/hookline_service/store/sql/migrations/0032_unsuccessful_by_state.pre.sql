-- What did not succeed, by state: lists of all tenants' dead letters, and their count. In place of the index of the exhausted
-- alone; a delivery that succeeds costs no write here.
CREATE INDEX deliveries_unsuccessful_by_state ON deliveries (state, delivery_id) WHERE state <> 'SUCCEEDED';
DROP INDEX deliveries_exhausted;
