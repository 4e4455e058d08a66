"""A test's audit log: read, verified, and tampered with as the owner of the database can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from service.domain.audit import ChainWalk
from service.store.audit import AuditLog

if TYPE_CHECKING:
    from service.domain.audit import AuditEntry, ChainHead
    from service.store.database import Database


async def entries_of(database: Database) -> list[AuditEntry]:
    """Every entry, oldest first."""
    log = AuditLog(database)
    return [entry async for entry in log.walk((await log.head()).sequence)]


async def newest(database: Database) -> AuditEntry:
    return (await entries_of(database))[-1]


async def verified(database: Database, noted: ChainHead | None = None) -> ChainHead:
    """The head of the chain, every entry of which was checked. Raises `BrokenChainError`."""
    log = AuditLog(database)
    head = await log.head()
    walk = ChainWalk(noted)
    async for entry in log.walk(head.sequence):
        walk.follow(entry)
    walk.end(head)
    return walk.head


async def tamper(database: Database, statement: str) -> None:
    """Run a statement as an owner of the tables may, who takes the triggers away first."""
    tables = ("audit_entries", "audit_head")
    async with database.transaction() as connection:
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER audit_refuse")
        await connection.execute(statement)
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER audit_refuse")


def shown(text: str) -> Any:  # noqa: ANN401 (any JSON)
    """One side of an entry."""
    return json.loads(text)
