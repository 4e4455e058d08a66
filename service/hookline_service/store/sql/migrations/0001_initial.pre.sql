-- The first schema. Conventions: a state is text under a CHECK that names the states of service/hookline_service/domain; ids are UUIDv7
-- of database time; what a remote party wrote is bytea; history is partitioned by day on its id, without a DEFAULT.

-- The engine's notion of now: the database's. Tests replace the body to turn the clock; nothing else may.
CREATE FUNCTION hookline_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE RETURN now();

-- Refuses the statement that calls it; the SQLSTATE is how store/publishing.py knows its own refusal.
CREATE FUNCTION hookline_refuse(what text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = what, ERRCODE = 'HK001';
END $$;


-- ---------------------------------------------------------------------------------------------------- the contract's nouns

CREATE TABLE tenants (
    tenant_uid   uuid PRIMARY KEY,
    tenant_id    text NOT NULL,
    display_name text NOT NULL DEFAULT '',
    labels       jsonb NOT NULL DEFAULT '{}',
    state        text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'DELETING')),
    -- Raised by every change of the tenant's subscriptions, in that change's transaction. A publish locks the row FOR SHARE
    -- and writes only if the epoch is still the one it matched under.
    epoch        bigint NOT NULL DEFAULT 1,
    -- Live ones. Kept with the epoch, so that a quota costs nothing: counting would make the hundred-thousandth creation a
    -- hundred thousand times as dear as the first.
    subscription_count integer NOT NULL DEFAULT 0 CHECK (subscription_count >= 0),
    create_time  timestamptz NOT NULL DEFAULT now(),
    deleted_at   timestamptz
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX tenants_by_id ON tenants (tenant_id) WHERE deleted_at IS NULL;

CREATE TABLE event_types (
    name          text PRIMARY KEY,
    description   text NOT NULL DEFAULT '',
    json_schema   text NOT NULL DEFAULT '',
    proto_message text NOT NULL DEFAULT '',
    example_json  text NOT NULL DEFAULT '',
    state         text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'ARCHIVED')),
    revision      integer NOT NULL DEFAULT 1,  -- of the schema
    version       bigint NOT NULL DEFAULT 1,   -- of the row; the etag
    create_time   timestamptz NOT NULL DEFAULT now(),
    update_time   timestamptz NOT NULL DEFAULT now(),
    CHECK (json_schema = '' OR proto_message = '')
);
CREATE INDEX event_types_by_time ON event_types (create_time, name);

CREATE TABLE subscriptions (
    subscription_uid uuid PRIMARY KEY,
    tenant_uid       uuid NOT NULL REFERENCES tenants,
    bucket           smallint NOT NULL CHECK (bucket BETWEEN 0 AND 255),
    subscription_id  text NOT NULL,
    display_name     text NOT NULL DEFAULT '',
    event_types      text[] NOT NULL CHECK (cardinality(event_types) > 0),
    url              text NOT NULL,
    failover_urls    text[] NOT NULL DEFAULT '{}',
    headers          jsonb NOT NULL DEFAULT '{}',
    timeout_ms       integer NOT NULL,
    signature_scheme text NOT NULL DEFAULT 'HMAC_SHA256' CHECK (signature_scheme IN ('HMAC_SHA256', 'ED25519')),
    max_attempts     integer,           -- NULL: the policy does not say
    min_backoff_s    double precision,
    max_backoff_s    double precision,
    schedule_s       double precision[] NOT NULL DEFAULT '{}',
    max_per_second   double precision,
    max_in_flight    integer NOT NULL,
    payload_format   text NOT NULL DEFAULT 'STANDARD' CHECK (payload_format IN ('STANDARD', 'CLOUDEVENTS', 'RAW')),
    labels           jsonb NOT NULL DEFAULT '{}',
    state            text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'PAUSED', 'DISABLED')),
    state_reason     text CHECK (state_reason IN ('OPERATOR', 'GONE', 'FAILING')),
    state_message    text NOT NULL DEFAULT '',
    failing_since    timestamptz,       -- the first failure since the last success
    create_time      timestamptz NOT NULL DEFAULT now(),
    update_time      timestamptz NOT NULL DEFAULT now(),
    version          bigint NOT NULL DEFAULT 1,  -- of the row; the etag
    changed_epoch    bigint NOT NULL,   -- the tenant's epoch that this change made
    deleted_at       timestamptz,       -- a tombstone: the owner of the bucket cancels what is still pending
    CHECK ((state = 'ACTIVE') = (state_reason IS NULL))
);
CREATE UNIQUE INDEX subscriptions_by_id ON subscriptions (tenant_uid, subscription_id) WHERE deleted_at IS NULL;
CREATE INDEX subscriptions_by_change ON subscriptions (tenant_uid, changed_epoch);
-- Lists are newest first: uids begin with the time of their creation.
CREATE INDEX subscriptions_by_time ON subscriptions (tenant_uid, subscription_uid) WHERE deleted_at IS NULL;

-- Secrets are sealed (store/secrets.py): version, key id and nonce stand in front of the ciphertext.
CREATE TABLE signing_keys (
    subscription_uid uuid NOT NULL REFERENCES subscriptions,
    version          integer NOT NULL,
    scheme           text NOT NULL CHECK (scheme IN ('HMAC_SHA256', 'ED25519')),
    sealed_secret    bytea NOT NULL,
    public_key       text NOT NULL DEFAULT '',
    create_time      timestamptz NOT NULL DEFAULT now(),
    expire_time      timestamptz,       -- NULL: the newest; else the end of a rotation's overlap
    PRIMARY KEY (subscription_uid, version)
);


-- ------------------------------------------------------------------------------------------------------------ the data path

-- One number a publish statement; an event's ordinal is that number * 65536 + its place in the statement.
CREATE SEQUENCE publish_ordinal;

CREATE TABLE events (
    tenant_uid          uuid NOT NULL,
    event_id            uuid NOT NULL,
    ordinal             bigint NOT NULL,
    occur_time          timestamptz,
    event_type_revision integer NOT NULL DEFAULT 0,
    is_json             boolean NOT NULL,
    type                text NOT NULL,
    source              text NOT NULL DEFAULT '',  -- '': /tenants/ID
    content_type        text,                      -- NULL: application/json, or application/octet-stream
    subject             text,
    external_id         text,
    data_schema         text,
    idempotency_key     text,
    ordering_key        text,
    attributes          jsonb,
    data                bytea NOT NULL,            -- exactly the bytes that are sent as data
    PRIMARY KEY (tenant_uid, event_id)
) PARTITION BY RANGE (event_id);

-- The hot table: what is still to be delivered. Every write by anyone raises `version`; a record of an attempt names the
-- version it saw, and matches nothing if somebody else was there in between.
CREATE TABLE pending_deliveries (
    bucket           smallint NOT NULL,
    attempt_count    smallint NOT NULL DEFAULT 0,
    version          integer NOT NULL DEFAULT 0,
    due_at           timestamptz NOT NULL,
    ordinal          bigint NOT NULL,
    delivery_id      uuid NOT NULL,
    subscription_uid uuid NOT NULL,
    event_id         uuid NOT NULL,
    attempts_base    smallint,          -- where an operator's retry began the budget anew; NULL: at 0
    attempts_until   smallint,          -- the last attempt of that budget; NULL: what the policy says
    PRIMARY KEY (bucket, delivery_id)
) WITH (
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX pending_by_lane ON pending_deliveries (bucket, subscription_uid, due_at, delivery_id);

-- Finished deliveries. A success at the first attempt keeps its attempt in its own row (url, http_status, latency_us,
-- remote_address); all other attempts stand in `attempts`.
CREATE TABLE deliveries (
    tenant_uid       uuid NOT NULL,
    delivery_id      uuid NOT NULL,
    subscription_uid uuid NOT NULL,
    event_id         uuid NOT NULL,
    finish_time      timestamptz NOT NULL,
    version          integer NOT NULL,
    attempt_count    smallint NOT NULL,
    http_status      smallint,
    latency_us       integer,
    attempts_base    smallint,
    attempts_until   smallint,
    state            text NOT NULL CHECK (state IN ('SUCCEEDED', 'EXHAUSTED', 'CANCELLED', 'EXPIRED')),
    state_reason     text CHECK (state_reason IN ('OPERATOR', 'SUBSCRIPTION_DELETED', 'RETENTION')),
    url              text,
    remote_address   text,
    PRIMARY KEY (tenant_uid, delivery_id)
) PARTITION BY RANGE (delivery_id);
CREATE INDEX deliveries_by_subscription ON deliveries (subscription_uid, delivery_id);
-- The dead letters among millions of successes; costs a success nothing.
CREATE INDEX deliveries_unsuccessful ON deliveries (tenant_uid, delivery_id) WHERE state <> 'SUCCEEDED';
CREATE INDEX deliveries_unsuccessful_by_subscription ON deliveries (subscription_uid, delivery_id)
    WHERE state <> 'SUCCEEDED';

CREATE TABLE attempts (
    delivery_id      uuid NOT NULL,
    number           smallint NOT NULL,
    http_status      smallint,
    latency_us       integer NOT NULL,
    start_time       timestamptz NOT NULL,
    outcome          text NOT NULL CHECK (outcome IN ('ACCEPTED', 'REFUSED', 'TIMEOUT', 'CONNECTION_FAILED', 'TLS_FAILED',
                                                      'PROTOCOL_ERROR', 'ADDRESS_BLOCKED')),
    url              text NOT NULL,
    remote_address   text,
    error            bytea NOT NULL DEFAULT '',
    response_excerpt bytea NOT NULL DEFAULT '',
    trace_id         bytea,
    PRIMARY KEY (delivery_id, number)
) PARTITION BY RANGE (delivery_id);

CREATE TABLE idempotency_keys (
    tenant_uid     uuid NOT NULL,
    event_id       uuid NOT NULL,
    expires_at     timestamptz NOT NULL,
    delivery_count integer NOT NULL,
    key            text NOT NULL,
    fingerprint    bytea NOT NULL,      -- of everything that makes two events equal
    PRIMARY KEY (tenant_uid, key)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);


-- --------------------------------------------------------------------------------------------------------------- who owns what

-- Liveness is this row and nothing else; renewed on a connection of its own.
CREATE TABLE nodes (
    node_id     uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    start_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
    hostname    text NOT NULL,
    version     text NOT NULL,
    address     text NOT NULL DEFAULT '',  -- where it serves gRPC; '': not yet
    place       text NOT NULL DEFAULT '',  -- of a process under a supervisor: whoever starts there succeeds who died there
    is_leaving  boolean NOT NULL DEFAULT false  -- it hands over what it has; no share is kept for it
) WITH (fillfactor = 20);

-- Changes only when ownership does.
CREATE TABLE bucket_leases (
    bucket  smallint PRIMARY KEY,
    node_id uuid,
    epoch   bigint NOT NULL DEFAULT 0
);
INSERT INTO bucket_leases (bucket) SELECT generate_series(0, 255);

-- What owners must learn within two seconds. Read by `xid >= cursor`, cursor := pg_snapshot_xmin, overlaps read again.
CREATE TABLE change_log (
    change_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid              xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind             text NOT NULL CHECK (kind IN ('SUBSCRIPTION', 'DELIVERY', 'EVENT_TYPE')),
    bucket           smallint,          -- NULL: every node's
    subscription_uid uuid,
    delivery_id      uuid,
    create_time      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX change_log_by_xid ON change_log (xid);
