"""Read, verify and tamper with the audit log of a test, as an owner of the database can."""

from __future__ import annotations

import json
from typing import Any

from hookline_service.domain.audit import AuditEntry, ChainHead, ChainWalk
from hookline_service.store.audit import AuditLog
from hookline_service.store.database import Database


async def entries_of(database: Database) -> list[AuditEntry]:
    """Return every entry, oldest first."""
    log = AuditLog(database)
    return [entry async for entry in log.walk((await log.head()).sequence)]


async def newest(database: Database) -> AuditEntry:
    return (await entries_of(database))[-1]


async def verified(database: Database, noted: ChainHead | None = None) -> ChainHead:
    """Verify every entry and return the head of the chain. Raises `BrokenChainError`."""
    log = AuditLog(database)
    head = await log.head()
    walk = ChainWalk(noted)
    async for entry in log.walk(head.sequence):
        walk.follow(entry)
    walk.end(head)
    return walk.head


PROTECTING_TRIGGERS = (
    ("audit_entries", "audit_refuse"),
    ("audit_entries", "audit_refuse_deletion"),
    ("audit_head", "audit_refuse"),
    ("audit_checkpoints", "audit_refuse"),
    ("audit_checkpoints", "audit_refuse_deletion"),
    ("audit_pruned", "audit_refuse"),
    ("audit_pruned", "audit_refuse_return"),
)


async def tamper(database: Database, statement: str) -> None:
    """Run a statement with the triggers disabled, as an owner of the tables can."""
    async with database.transaction() as connection:
        for table, trigger in PROTECTING_TRIGGERS:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
        await connection.execute(statement)
        for table, trigger in PROTECTING_TRIGGERS:
            await connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")


REWRITE = """
DO $$
DECLARE
    one record;
    before bytea := decode(repeat('00', 32), 'hex');
BEGIN
    UPDATE audit_entries SET principal = 'apiKeys/framed' WHERE sequence = 2;
    FOR one IN SELECT * FROM audit_entries ORDER BY sequence LOOP
        before := sha256(before || audit_part(one.encoding::text) || audit_part(one.sequence::text)
            || audit_part((extract(epoch FROM one.create_time) * 1000000)::bigint::text)
            || audit_part(one.principal) || audit_part(one.method) || audit_part(one.resource)
            || audit_part(one.tenant) || audit_part(coalesce(one.tenant_uid::text, ''))
            || audit_part(one.remote_address) || audit_part(one.before_json)
            || audit_part(one.after_json) || audit_part(one.trace_id));
        UPDATE audit_entries SET hash = before WHERE sequence = one.sequence;
    END LOOP;
    UPDATE audit_head SET hash = before;
END $$"""
"""Another principal in entry 2, with all later hashes recomputed."""
FORGE = r"""
    UPDATE audit_checkpoints SET note = regexp_replace(note, '\n2(\d{3}-)', E'\n3\\1')
    WHERE sequence = 4
"""
"""Another moment is signed; no letter of the hash or the signature, which differ in each run."""
CUT_OFF = """
WITH gone AS (DELETE FROM audit_entries WHERE sequence > 3)
UPDATE audit_head SET sequence = e.sequence, hash = e.hash FROM audit_entries e WHERE e.sequence = 3
"""
"""The newest entries deleted, and the head changed to match."""
ENTRY_1000 = """
INSERT INTO audit_entries SELECT (jsonb_populate_record(e, '{"sequence": 1000}')).*
FROM audit_entries e WHERE sequence = 2
"""
"""An entry behind the head, which lists show as the newest."""


def shown(text: str) -> Any:  # noqa: ANN401 (any JSON)
    """Return one side of an entry."""
    return json.loads(text)
