-- Data keys of tenants, what targets are told in secret, and which master keys have sealed anything.

-- The keys that seal a tenant's secrets, themselves sealed with a master key (store/data_keys.py). Several only where the
-- master key of an older one was lost.
CREATE TABLE data_keys (
    tenant_uid  uuid NOT NULL REFERENCES tenants,
    key_id      bytea NOT NULL,
    sealed_key  bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_uid, key_id)
);

-- Every master key that sealed something which is still stored, by its id: a hash of it. A node that lacks one of them
-- does not start.
CREATE TABLE master_keys (
    key_id      bytea PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO master_keys (key_id)
SELECT DISTINCT substring(sealed_secret FROM 2 FOR 8) FROM signing_keys WHERE get_byte(sealed_secret, 0) = 1;

-- What a target is told in secret: its secret headers, and the certificate that is shown to it.
CREATE TABLE target_secrets (
    subscription_uid uuid NOT NULL REFERENCES subscriptions,
    kind             text NOT NULL CHECK (kind IN ('HEADERS', 'CERTIFICATE')),
    version          integer NOT NULL,  -- of the subscription's row that brought it
    sealed           bytea NOT NULL,
    shown            jsonb NOT NULL,    -- what may be read of it
    PRIMARY KEY (subscription_uid, kind)
);
