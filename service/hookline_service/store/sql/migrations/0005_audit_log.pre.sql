-- The audit log: appended in the transaction of its cause, never changed, each entry's hash over itself and the hash before.
--
-- Whoever changes something inserts a draft, in the statement that makes the change. At COMMIT, and not before, a trigger
-- numbers and hashes it. So the one row that all such transactions share, the head of the chain, is locked last, by the
-- server alone, for as long as a commit takes: a client that is slow, frozen or dead never holds it, and whoever waits for
-- it waits for nobody who waits for him. A transaction that is rolled back leaves neither an entry nor a gap.

CREATE TABLE audit_entries (
    sequence       bigint PRIMARY KEY CHECK (sequence > 0),
    encoding       smallint NOT NULL,      -- which encoding the hash is over; service/hookline_service/domain/audit.py describes it
    create_time    timestamptz NOT NULL,
    tenant_uid     uuid,                   -- NULL: of no tenant, or across them; a recreated name is another's
    principal      text NOT NULL,
    method         text NOT NULL,
    resource       text NOT NULL,
    tenant         text NOT NULL,          -- tenants/ID
    remote_address text NOT NULL,
    before_json    text NOT NULL,
    after_json     text NOT NULL,
    trace_id       text NOT NULL,
    hash           bytea NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX audit_entries_by_tenant ON audit_entries (tenant_uid, sequence);

-- What the chain has come to. Beside the entries, so that one taken from the end is missed.
CREATE TABLE audit_head (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    sequence bigint NOT NULL,
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32)
) WITH (fillfactor = 20);
INSERT INTO audit_head (sequence, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

-- Lives for a transaction. `entry` has the text columns above by their names.
CREATE TABLE audit_drafts (
    draft_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_uid uuid,
    entry      jsonb NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION audit_part(value text) RETURNS bytea LANGUAGE sql STABLE
RETURN int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8');

-- Waits for the head no longer than commits take; whoever could not have it (55P03) has changed nothing, and may repeat.
CREATE FUNCTION audit_append() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '3s' AS $$
DECLARE
    head audit_head;
    made audit_entries;
BEGIN
    SELECT * INTO STRICT head FROM audit_head FOR UPDATE;
    made.sequence := head.sequence + 1;
    made.encoding := 1;
    made.create_time := hookline_now();
    made.tenant_uid := NEW.tenant_uid;
    made.principal := coalesce(NEW.entry ->> 'principal', '');
    made.method := coalesce(NEW.entry ->> 'method', '');
    made.resource := coalesce(NEW.entry ->> 'resource', '');
    made.tenant := coalesce(NEW.entry ->> 'tenant', '');
    made.remote_address := coalesce(NEW.entry ->> 'remote_address', '');
    made.before_json := coalesce(NEW.entry ->> 'before_json', '');
    made.after_json := coalesce(NEW.entry ->> 'after_json', '');
    made.trace_id := coalesce(NEW.entry ->> 'trace_id', '');
    made.hash := sha256(
        head.hash
        || audit_part(made.encoding::text)
        || audit_part(made.sequence::text)
        || audit_part((extract(epoch FROM made.create_time) * 1000000)::bigint::text)
        || audit_part(made.principal)
        || audit_part(made.method)
        || audit_part(made.resource)
        || audit_part(made.tenant)
        || audit_part(coalesce(made.tenant_uid::text, ''))
        || audit_part(made.remote_address)
        || audit_part(made.before_json)
        || audit_part(made.after_json)
        || audit_part(made.trace_id)
    );
    INSERT INTO audit_entries SELECT made.*;
    UPDATE audit_head SET sequence = made.sequence, hash = made.hash;
    DELETE FROM audit_drafts WHERE draft_id = NEW.draft_id;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER audit_append AFTER INSERT ON audit_drafts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_append();

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = format('%s is only ever appended to', TG_TABLE_NAME), ERRCODE = 'HK002';
END $$;

-- Also where a replica's session applies what another server sent.
CREATE TRIGGER audit_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_refuse;
CREATE TRIGGER audit_refuse BEFORE INSERT OR DELETE OR TRUNCATE ON audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_head ENABLE ALWAYS TRIGGER audit_refuse;
