-- Whether a subscription's target is asked for its consent (NULL: it is not), and what rate it allowed:
-- {"per_minute": 120}, or null for any.
ALTER TABLE subscriptions ADD COLUMN handshake jsonb;
