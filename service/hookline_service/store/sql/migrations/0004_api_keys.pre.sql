-- API keys, and the keys of the deployment itself.

-- Keys that all nodes share and that outlive a rotation of the master key, which only seals them anew: a row each purpose,
-- sealed with a master key (store/deployment_keys.py).
CREATE TABLE deployment_keys (
    purpose     text PRIMARY KEY,
    sealed      bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

-- Of a token only a keyed hash is kept (domain/api_key.py). Nothing is deleted: a revoked key stays to be seen.
CREATE TABLE api_keys (
    key_id        text COLLATE "C" PRIMARY KEY,
    digest        bytea NOT NULL CHECK (octet_length(digest) = 32),
    tenant_uid    uuid REFERENCES tenants,  -- NULL: of all tenants
    display_name  text NOT NULL DEFAULT '',
    scopes        text[] NOT NULL CHECK (cardinality(scopes) > 0
                                         AND scopes <@ ARRAY['PUBLISH', 'CONSUME', 'MANAGE', 'OPERATE', 'ADMIN']),
    create_time   timestamptz NOT NULL,
    expire_time   timestamptz,              -- NULL: never
    last_use_time timestamptz,              -- to the minute
    revoke_time   timestamptz
) WITH (fillfactor = 80);
CREATE INDEX api_keys_by_time ON api_keys (create_time, key_id);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_uid, create_time, key_id) WHERE tenant_uid IS NOT NULL;
