-- Retention of the audit log. A row here is a signed statement that the log begins behind an entry: up to it, and no further,
-- entries may be deleted. The service signs it (store/audit_checkpoints.py); `hookline audit verify` refuses any other beginning.
CREATE TABLE audit_pruned (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    sequence bigint NOT NULL CHECK (sequence > 0),  -- the last entry that was deleted
    note     text NOT NULL                          -- a signed note (C2SP) of that entry's sequence and hash
);

CREATE FUNCTION audit_refuse_return() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.sequence < OLD.sequence THEN
        RAISE EXCEPTION USING MESSAGE = 'audit_pruned never goes back', ERRCODE = 'HK002';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_refuse BEFORE DELETE OR TRUNCATE ON audit_pruned
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_pruned ENABLE ALWAYS TRIGGER audit_refuse;
CREATE TRIGGER audit_refuse_return BEFORE UPDATE ON audit_pruned
    FOR EACH ROW EXECUTE FUNCTION audit_refuse_return();
ALTER TABLE audit_pruned ENABLE ALWAYS TRIGGER audit_refuse_return;

-- Entries up to the statement's may be deleted, and the checkpoints of entries before it.
CREATE FUNCTION audit_refuse_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.sequence + TG_ARGV[0]::bigint > coalesce((SELECT sequence FROM audit_pruned), 0) THEN
        RAISE EXCEPTION USING MESSAGE = format('%s is only ever appended to', TG_TABLE_NAME), ERRCODE = 'HK002';
    END IF;
    RETURN OLD;
END $$;
DROP TRIGGER audit_refuse ON audit_entries;
CREATE TRIGGER audit_refuse BEFORE UPDATE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_refuse;
CREATE TRIGGER audit_refuse_deletion BEFORE DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_refuse_deletion('0');
ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_refuse_deletion;
DROP TRIGGER audit_refuse ON audit_checkpoints;
CREATE TRIGGER audit_refuse BEFORE UPDATE OR TRUNCATE ON audit_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_refuse;
CREATE TRIGGER audit_refuse_deletion BEFORE DELETE ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit_refuse_deletion('1');
ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_refuse_deletion;
