-- Pending deliveries of events of another millisecond than their own, such as replayed ones: what keeps a day from being dropped
-- is found by an index. Deliveries of a first fan-out share their event's leading bits, and have no entry in it. Publishing waits
-- while the index is built over what is pending then.
CREATE INDEX pending_of_older_events ON pending_deliveries (event_id)
    WHERE substr(uuid_send(event_id), 1, 6) <> substr(uuid_send(delivery_id), 1, 6);
