-- The dead letters, counted at a glance: those that were cancelled, of which there may be millions, are not looked at. A
-- delivery that succeeds costs no write here.
CREATE INDEX deliveries_exhausted ON deliveries (delivery_id) WHERE state = 'EXHAUSTED';
