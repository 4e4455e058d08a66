-- An answer other than 2xx is named HTTP_ERROR; it was REFUSED. No version is released yet, so no node of an earlier one runs
-- beside this and writes the earlier name.
ALTER TABLE attempts DROP CONSTRAINT attempts_outcome_check;
UPDATE attempts SET outcome = 'HTTP_ERROR' WHERE outcome = 'REFUSED';
ALTER TABLE attempts ADD CONSTRAINT attempts_outcome_check CHECK (outcome IN (
    'ACCEPTED', 'HTTP_ERROR', 'TIMEOUT', 'CONNECTION_FAILED', 'TLS_FAILED', 'PROTOCOL_ERROR', 'ADDRESS_BLOCKED'));
