-- Signed heads of the audit log's chain: what nodes have seen of it, in notes that the tables' owner cannot write.
-- The first one is of the empty chain, and is written with the key that signs (deployment_keys).
CREATE TABLE audit_checkpoints (
    sequence bigint PRIMARY KEY,
    note     text NOT NULL          -- a signed note (C2SP): store/audit_checkpoints.py
);

CREATE TRIGGER audit_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_refuse;
